//! Which objects of a cluster weir reads, with a real API server: discovery selectors, revisions, one namespace, and
//! missing permissions; and what `weir preflight` and `weir doctor` tell.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::support::ads::{self, CDS, EDS, Variant, ask};
use crate::support::kube::KubeCluster;
use crate::support::mesh::{Serve, until};
use crate::support::process::free_port;

/// A namespace with a service, its endpoint and a rule.
fn namespace(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {name}}}\n\
         spec: {{ports: [{{name: http, port: 80}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: {name}, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.1.1.1]}}]\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: web, namespace: {name}}}\nspec: {{host: web, subsets: [{{name: all}}]}}\n---\n"
    )
}

fn weir(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A stream of a sidecar.
async fn client(weir: &Serve) -> ads::Client {
    let to = format!("http://127.0.0.1:{}", weir.xds);
    let channel = Channel::from_shared(to).unwrap().connect().await.unwrap();
    ads::Client::open(channel, Variant::Sotw, None).await
}

/// The namespaces whose service a sidecar gets, and whether each has its endpoint and its subset.
async fn served(weir: &Serve) -> BTreeSet<String> {
    let mut client = client(weir).await;
    let clusters = client.fetch(CDS, &[]).await;
    let all: Vec<&str> =
        clusters.names().into_iter().filter(|name| name.contains("||web.")).collect();
    let mut namespaces = BTreeSet::new();
    for name in all {
        let namespace = name.split('.').nth(1).unwrap();
        assert!(clusters.has(&name.replace("||", "|all|")), "{namespace} has no subset");
        namespaces.insert(namespace.to_owned());
    }
    if !namespaces.is_empty() {
        let names: Vec<String> = namespaces
            .iter()
            .map(|ns| format!("outbound|80||web.{ns}.svc.cluster.local"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        client.send(ask(EDS, &names)).await;
        let endpoints = loop {
            let got = client.next().await.unwrap();
            client.ack(&got).await;
            // The clusters may change meanwhile.
            if got.type_url == EDS {
                break got;
            }
        };
        for (name, (_, bytes)) in &endpoints.resources {
            assert!(text(bytes).contains("10.1.1.1"), "{name} has no endpoint");
        }
    }
    namespaces
}

async fn serves(weir: &Serve, expected: &[&str]) {
    until(&format!("{expected:?} are served"), async || {
        served(weir).await.iter().map(String::as_str).eq(expected.iter().copied())
    })
    .await;
}

#[tokio::test]
async fn discovery_selectors_decide_which_namespaces_are_held() {
    let Some(mut cluster) =
        KubeCluster::start("discovery_selectors_decide_which_namespaces_are_held")
    else {
        return;
    };
    cluster.apply_crds();
    cluster.apply(&(namespace("a", "env: prod") + &namespace("b", "env: dev")));
    let kubeconfig = cluster.kubeconfig_path().to_str().unwrap().to_owned();
    let selectors =
        ["--discovery-selector", "env=prod", "--discovery-selector", "team in (mesh),!legacy"];
    let args = [&["--kubeconfig", &kubeconfig], &selectors[..]].concat();
    let weir = Serve::start(&args, free_port(), free_port());
    weir.ready().await;
    assert_eq!(served(&weir).await, BTreeSet::from(["a".to_owned()]));

    // A namespace comes with all it has when its label changes, and goes with it.
    cluster.kubectl_ok(&["label", "namespace", "b", "team=mesh"]);
    serves(&weir, &["a", "b"]).await;
    cluster.kubectl_ok(&["label", "namespace", "b", "legacy=yes"]);
    serves(&weir, &["a"]).await;

    // A new one comes with what is written to it.
    cluster.apply(&namespace("c", "env: prod"));
    serves(&weir, &["a", "c"]).await;

    // Labels that change while the API server is away count afterwards: it writes them when it is back.
    cluster.stop_apiserver();
    assert_eq!(served(&weir).await.len(), 2);
    cluster.start_apiserver();
    cluster.kubectl_ok(&["label", "namespace", "a", "env=dev", "--overwrite"]);
    cluster.kubectl_ok(&["label", "namespace", "b", "legacy-"]);
    serves(&weir, &["b", "c"]).await;
    until("there are no problems", async || weir.metric("weir_config_problems ").await == Some(0))
        .await;
}

#[tokio::test]
async fn a_revision_reads_its_own_objects_and_those_without_one() {
    let Some(cluster) =
        KubeCluster::start("a_revision_reads_its_own_objects_and_those_without_one")
    else {
        return;
    };
    cluster.apply_crds();
    let rule = |name: &str, labels: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: {name}, namespace: a, labels: {{{labels}}}}}\nspec: {{host: {name}}}\n---\n"
        )
    };
    cluster.apply(
        &(namespace("a", "a: b")
            + &rule("ours", "istio.io/rev: weir")
            + &rule("theirs", "istio.io/rev: stable")
            + &rule("anybodys", "a: b")),
    );
    let kubeconfig = cluster.kubeconfig_path().to_str().unwrap().to_owned();
    let args = ["--kubeconfig", &kubeconfig, "--revision", "weir"];
    let weir = Serve::start(&args, free_port(), free_port());
    weir.ready().await;
    let known =
        async |name: &str| weir.admin().get(&format!("/api/v1/objects/dr/a/{name}")).await.is_ok();
    assert!(known("ours").await && known("anybodys").await && !known("theirs").await);
    cluster.kubectl_ok(&["label", "dr", "theirs", "-n", "a", "istio.io/rev-"]);
    until("it is everybody's now", async || known("theirs").await).await;
    cluster.kubectl_ok(&["label", "dr", "ours", "-n", "a", "istio.io/rev=stable", "--overwrite"]);
    until("it is no longer read", async || !known("ours").await).await;
}

/// The exit status of `weir doctor` and what it prints; null where weir does not listen yet.
fn doctor(weir_: &Serve) -> (Option<i32>, Value) {
    let admin = format!("127.0.0.1:{}", weir_.admin);
    let output = weir(&["doctor", "-o", "json", "--admin", &admin]);
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

/// The state of a kind and the verb it lacks; `None` where nothing is known of it yet.
fn state_of(answer: &Value, resource: &str) -> Option<(String, String)> {
    let kind = answer["kinds"].as_array()?.iter().find(|kind| kind["resource"] == resource)?;
    let field = |name: &str| kind[name].as_str().unwrap().to_owned();
    Some((field("state"), field("missingVerb")))
}

/// Status and body of the page `/ready?verbose`.
async fn readiness(weir: &Serve) -> (u16, String) {
    let url = format!("http://127.0.0.1:{}/ready?verbose", weir.admin);
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let response = client.get(url.parse().unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, text(&body))
}

#[tokio::test]
async fn a_missing_permission_is_named_for_each_kind() {
    let users: [(&str, &[&str]); 1] = [("weir", &[])];
    let Some(cluster) =
        KubeCluster::start_with_users("a_missing_permission_is_named_for_each_kind", &users)
    else {
        return;
    };
    cluster.apply(namespace("a", "a: b").split("---\napiVersion: networking").next().unwrap());
    let most = "services,endpoints,namespaces,endpointslices.discovery.k8s.io";
    cluster.allow("weir", "most", "list,watch", most);
    cluster.allow("weir", "pods", "list", "pods");
    let kubeconfig = cluster.kubeconfig_for("weir");
    let weir_ =
        Serve::start(&["--kubeconfig", kubeconfig.to_str().unwrap()], free_port(), free_port());
    let expected = [
        ("services", ("SYNCED", "")),
        ("pods", ("FORBIDDEN", "watch")),
        ("nodes", ("FORBIDDEN", "list")),
        // Its CustomResourceDefinition is not installed: nothing is wrong.
        ("virtualservices.networking.istio.io", ("ABSENT", "")),
    ];
    until("the state of each kind", async || {
        let (status, answer) = doctor(&weir_);
        assert_ne!(status, Some(0));
        expected.iter().all(|(resource, (state, verb))| {
            state_of(&answer, resource) == Some(((*state).to_owned(), (*verb).to_owned()))
        })
    })
    .await;
    let (status, body) = readiness(&weir_).await;
    assert_eq!(status, 503, "{body}");
    for line in [
        "[+] services: synced, answered ",
        "[-] pods: forbidden: missing verb watch: ",
        "[-] nodes: forbidden: missing verb list: ",
        "[+] virtualservices.networking.istio.io: absent: the API does not serve it\n",
    ] {
        assert!(body.contains(line), "{line}\n{body}");
    }
    let advice = weir(&["doctor", "--admin", &format!("127.0.0.1:{}", weir_.admin)]);
    assert!(text(&advice.stdout).contains("allow the verb `list` on nodes"), "{advice:?}");

    // It recovers by itself.
    cluster.allow("weir", "rest", "list,watch", "nodes,pods");
    weir_.ready().await;
    until("everything is well", async || doctor(&weir_).0 == Some(0)).await;
    let (status, body) = readiness(&weir_).await;
    assert!(status == 200 && body.ends_with("\nready\n") && !body.contains("[-]"), "{body}");
}

#[tokio::test]
async fn a_role_in_one_namespace_is_enough_for_that_namespace() {
    let Some(cluster) = KubeCluster::start("a_role_in_one_namespace_is_enough_for_that_namespace")
    else {
        return;
    };
    cluster.apply_crds();
    cluster.apply(&(namespace("your-namespace", "a: b") + &namespace("b", "a: b")));
    cluster.apply_kustomization("deploy/overlays/one-namespace", &["--validate=strict"]);
    let cluster_wide = cluster.kubectl_ok(&[
        "get",
        "clusterroles,clusterrolebindings",
        "-l",
        "app.kubernetes.io/name=weir",
        "-o",
        "name",
    ]);
    assert_eq!(cluster_wide, "");
    let path = "jsonpath={.spec.template.spec.containers[0].args[*]}";
    let args =
        cluster.kubectl_ok(&["get", "deployment", "weir", "-n", "your-namespace", "-o", path]);
    let mut args: Vec<&str> = args.split_whitespace().collect();
    assert_eq!(args.remove(0), "serve");
    // It listens on a port of the test.
    args.retain(|arg| !arg.starts_with("--xds-listen="));
    let account = cluster.kubeconfig_for_service_account("your-namespace", "weir");
    args.extend(["--kubeconfig", account.to_str().unwrap()]);
    let weir = Serve::start(&args, free_port(), free_port());
    weir.ready().await;
    assert_eq!(served(&weir).await, BTreeSet::from(["your-namespace".to_owned()]));
    until("nothing is forbidden", async || doctor(&weir).0 == Some(0)).await;
}

/// Kinds that weir does not read, with any content.
fn crd(group: &str, plural: &str, kind: &str) -> String {
    let singular = kind.to_lowercase();
    format!(
        "---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: {plural}.{group}}}\n\
         spec:\n  group: {group}\n  scope: Namespaced\n\
         \x20 names: {{plural: {plural}, singular: {singular}, kind: {kind}}}\n\
         \x20 versions:\n  - name: v1\n    served: true\n    storage: true\n    schema:\n      openAPIV3Schema: \
         {{type: object, x-kubernetes-preserve-unknown-fields: true}}\n"
    )
}

/// A mesh of Istio: sidecars are injected into `a`, a policy applies to a pod of `b`, and `z` has no objects of Istio's.
/// Requests may only go to known hosts.
async fn apply_istio_mesh(cluster: &KubeCluster) {
    cluster.apply_crds();
    cluster.apply(&crd("security.istio.io", "authorizationpolicies", "AuthorizationPolicy"));
    cluster.kubectl_ok(&[
        "wait",
        "--for=condition=Established",
        "--timeout=120s",
        "crd/authorizationpolicies.security.istio.io",
    ]);
    cluster.apply(
        &(namespace("a", "istio-injection: enabled")
            + &namespace("b", "a: b")
            + &namespace("z", "a: b")),
    );
    cluster.kubectl_ok(&["delete", "dr", "web", "-n", "z"]);
    until("the kind is served", async || {
        let _ = cluster.kubectl(&["api-resources", "--cached=false"]);
        cluster.kubectl(&["get", "authorizationpolicies", "-A"]).status.success()
    })
    .await;
    cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: b}\n\
         spec: {selector: {matchLabels: {app: web}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: web-0, namespace: b, labels: {app: web}}\n\
         spec: {containers: [{name: app, image: app}]}\n",
    );
    cluster.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
         data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}\n",
    );
}

/// `weir preflight` with JSON output.
fn preflight(kubeconfig: &Path, more: &[&str]) -> Output {
    let kubeconfig = kubeconfig.to_str().unwrap();
    weir(&[&["preflight", "-o", "json", "--kubeconfig", kubeconfig], more].concat())
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output:?}"))
}

#[tokio::test]
async fn preflight_judges_a_cluster() {
    let Some(cluster) = KubeCluster::start("preflight_judges_a_cluster") else { return };
    let admin = cluster.kubeconfig_path();
    // Without any of Istio's kinds.
    let nothing = preflight(admin, &[]);
    assert!(nothing.status.success() && nothing.stderr.is_empty(), "{nothing:?}");
    assert_eq!(parsed(&nothing)["namespaces"], json!([]));

    apply_istio_mesh(&cluster).await;
    let found = preflight(admin, &[]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let answer = parsed(&found);
    assert_eq!(
        answer["namespaces"],
        json!([{"name": "a", "canMove": "yes"}, {"name": "b", "canMove": "no"}])
    );
    let findings = answer["findings"].as_array().unwrap();
    assert_eq!(findings[0]["name"], "deny");
    let mesh = findings.iter().find(|finding| finding["kind"] == "ConfigMap").unwrap();
    assert_eq!(mesh["advice"], "start weir with --outbound-policy registry-only");
    assert_eq!(preflight(admin, &["-n", "a"]).status.code(), Some(0));
}

#[tokio::test]
async fn preflight_names_what_it_may_not_read() {
    let users: [(&str, &[&str]); 1] = [("jo", &[])];
    let Some(cluster) =
        KubeCluster::start_with_users("preflight_names_what_it_may_not_read", &users)
    else {
        return;
    };
    apply_istio_mesh(&cluster).await;
    // Permission for all but one kind.
    cluster.allow(
        "jo",
        "reader",
        "list",
        "pods,namespaces,virtualservices.networking.istio.io,destinationrules.networking.istio.io,\
         serviceentries.networking.istio.io,workloadentries.networking.istio.io,sidecars.networking.istio.io,\
         peerauthentications.security.istio.io",
    );
    let jo = cluster.kubeconfig_for("jo");
    let list_sidecars = ["--kubeconfig", jo.to_str().unwrap(), "get", "sidecars", "-A"];
    until("the role takes effect", async || cluster.kubectl(&list_sidecars).status.success()).await;
    let partial = preflight(&jo, &["-n", "a"]);
    assert_eq!(partial.status.code(), Some(1), "{partial:?}");
    let unreadable = &parsed(&partial)["unreadable"];
    assert_eq!(unreadable.as_array().map(Vec::len), Some(2), "{unreadable}");
    assert_eq!(unreadable[0]["what"], "authorizationpolicies.security.istio.io");
    assert_eq!(unreadable[1]["what"], "configmaps of istio-system");
    assert!(text(&partial.stderr).contains("cannot list resource"), "{partial:?}");
}

#[test]
fn preflight_judges_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    let path = file.to_str().unwrap().to_owned();
    let preflight = |more: &[&str]| weir(&[&["preflight", "-f", &path], more].concat());
    std::fs::write(&file, namespace("a", "istio-injection: enabled")).unwrap();
    let well = preflight(&[]);
    assert!(well.status.success(), "{well:?}");
    assert!(text(&well.stdout).contains("istio-injection"), "{well:?}");
    let filter = "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: f, namespace: a}\n\
                  spec: {configPatches: [{applyTo: CLUSTER}]}\n";
    std::fs::write(&file, namespace("a", "a: b") + filter).unwrap();
    let stays = preflight(&[]);
    assert_eq!(stays.status.code(), Some(1), "{stays:?}");
    let output = text(&stays.stdout);
    assert!(output.contains("EnvoyFilter a/f") && output.contains("mesh.yaml:"), "{output}");
    assert!(output.lines().all(|line| line.chars().count() <= 100), "{output}");
    std::fs::write(&file, "a: [").unwrap();
    let broken = preflight(&[]);
    assert_eq!(broken.status.code(), Some(1), "{broken:?}");
    assert!(text(&broken.stderr).contains("mesh.yaml:1"), "{broken:?}");
    assert_eq!(weir(&["preflight", "-f", "/nonexistent"]).status.code(), Some(2));
    std::fs::write(&file, "").unwrap();
    assert_eq!(preflight(&[]).status.code(), Some(2));
}
