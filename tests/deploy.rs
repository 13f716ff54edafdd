//! The manifests in `deploy/` with a real API server, and weir with the permissions that they give it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::helm::helm;
use crate::support::kube::KubeCluster;
use crate::support::mesh::{Serve, until};
use crate::support::process::free_port;

const OBJECTS: [&str; 23] = [
    "namespace/weir-system",
    "serviceaccount/weir",
    "clusterrole/weir",
    "clusterrolebinding/weir",
    "role/weir-status",
    "rolebinding/weir-status",
    "service/weir-replicas",
    "deployment/weir",
    "service/weir",
    "poddisruptionbudget/weir",
    "networkpolicy/weir",
    "validatingwebhookconfiguration/weir",
    "clusterrole/weir-webhook",
    "clusterrolebinding/weir-webhook",
    "role/weir-webhook",
    "rolebinding/weir-webhook",
    "mutatingwebhookconfiguration/weir-sidecar-injector",
    "clusterrole/weir-sidecar-injector",
    "clusterrolebinding/weir-sidecar-injector",
    "clusterrole/weir-identity",
    "clusterrolebinding/weir-identity",
    "role/weir-identity",
    "rolebinding/weir-identity",
];

/// The resources that weir reads.
const RESOURCES: [&str; 12] = [
    "destinationrules",
    "endpoints",
    "endpointslices",
    "namespaces",
    "nodes",
    "peerauthentications",
    "pods",
    "serviceentries",
    "services",
    "sidecars",
    "virtualservices",
    "workloadentries",
];

#[test]
fn the_manifests_fit_a_cluster_with_and_without_the_istio_kinds() {
    let Some(cluster) =
        KubeCluster::start("the_manifests_fit_a_cluster_with_and_without_the_istio_kinds")
    else {
        return;
    };
    cluster.apply_kustomization("deploy", &[]);
    for object in OBJECTS {
        cluster.kubectl_ok(&["get", object, "-n", "weir-system"]);
    }
    // Strict validation finds no field that does not exist.
    cluster.apply_kustomization("deploy", &["--validate=strict"]);
    cluster.apply_kustomization("deploy/overlays/with-istio-crds", &["--validate=strict"]);
    let crds = cluster.kubectl_ok(&["get", "crds", "-o", "name"]);
    assert_eq!(crds.lines().count(), 6, "{crds}");
    // Applied again and again it changes nothing.
    for object in ["deployment/weir", "poddisruptionbudget/weir", "networkpolicy/weir"] {
        let path = "jsonpath={.metadata.generation}";
        let generation = cluster.kubectl_ok(&["get", object, "-n", "weir-system", "-o", path]);
        assert_eq!(generation, "1", "{object}");
    }
    cluster.apply_kustomization("deploy/overlays/ha", &["--validate=strict"]);
    let path = "jsonpath={.items[*].spec['replicas', 'minAvailable']}";
    let counts = cluster.kubectl_ok(&["get", "deployments,pdb", "-n", "weir-system", "-o", path]);
    assert_eq!(counts, "3 2");
}

/// weir with the permissions of its ServiceAccount, and its log.
struct Weir {
    serve: Serve,
    _folder: tempfile::TempDir,
    log: std::path::PathBuf,
}

impl Weir {
    fn start(kubeconfig: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let (xds, admin) = (free_port(), free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("serve")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--xds-listen", &format!("127.0.0.1:{xds}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin}")])
            .args(["--pod-namespace", "weir-system", "--pod-name", "weir-0"])
            .args(["--replicas-service", "weir-replicas", "--status-lease", "6"])
            .args(["--webhook", "on", "--injection", "on", "--webhook-listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { serve: Serve::of(child, xds, admin), _folder: folder, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log says of each of these resources that this may not be done with it.
    async fn lacks(&self, verb: &str, resources: &[&str]) {
        for resource in resources {
            until(&format!("the log names {verb} of {resource}"), async || {
                self.log().contains(&format!("cannot {verb} resource \\\"{resource}\\\""))
            })
            .await;
        }
    }

    fn doctor(&self) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["doctor", "--admin", &format!("127.0.0.1:{}", self.serve.admin)])
            .output()
            .unwrap()
    }

    fn wait(&self, object: &str) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["wait", object, "-n", "your-namespace", "--timeout", "30s"])
            .args(["--admin", &format!("127.0.0.1:{}", self.serve.admin)])
            .output()
            .unwrap()
    }
}

/// Replaces the rules of weir's Role, and waits until the API server applies them.
async fn allow_leases(cluster: &KubeCluster, account: &Path, verbs: &[&str]) {
    let rules =
        json!([{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs}]);
    let patch = json!([{"op": "replace", "path": "/rules", "value": rules}]).to_string();
    cluster.kubectl_ok(&[
        "-n",
        "weir-system",
        "patch",
        "role",
        "weir-status",
        "--type=json",
        "-p",
        &patch,
    ]);
    let account = account.to_str().expect("UTF-8");
    for verb in ["create", "get", "update"] {
        let wanted = verbs.contains(&verb);
        let ask = ["--kubeconfig", account, "-n", "weir-system", "auth", "can-i", verb];
        let ask = [&ask[..], &["leases/weir-status"]].concat();
        until("the role takes effect", async || cluster.kubectl(&ask).status.success() == wanted)
            .await;
    }
}

/// Replaces the rules of weir's ClusterRole, and waits until the API server applies them.
async fn allow(cluster: &KubeCluster, account: &Path, verbs: &[&str]) {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let rules = json!([
        rule("", &["*"], verbs),
        rule("discovery.k8s.io", &["*"], verbs),
        rule("networking.istio.io", &["*"], verbs),
        rule("security.istio.io", &["*"], verbs)
    ]);
    let patch = json!([{"op": "replace", "path": "/rules", "value": rules}]).to_string();
    cluster.kubectl_ok(&["patch", "clusterrole", "weir", "--type=json", "-p", &patch]);
    let account = account.to_str().expect("UTF-8");
    for verb in ["list", "watch", "get", "patch"] {
        let wanted = verbs.contains(&verb);
        until("the role takes effect", async || {
            let asked =
                cluster.kubectl(&["--kubeconfig", account, "auth", "can-i", verb, "vs", "-A"]);
            asked.status.success() == wanted
        })
        .await;
    }
}

/// An API server with weir's manifests and the example, and the kubeconfig of weir's ServiceAccount.
async fn deployed(test: &str) -> Option<(KubeCluster, PathBuf)> {
    let cluster = KubeCluster::start(test)?;
    cluster.apply_crds();
    cluster.apply_kustomization("deploy", &[]);
    cluster.apply_folder("deploy/examples/canary");
    let account = cluster.kubeconfig_for_service_account("weir-system", "weir");
    let may_list = ["--kubeconfig", account.to_str().expect("UTF-8"), "get", "pods", "-A"];
    until("the role takes effect", async || cluster.kubectl(&may_list).status.success()).await;
    Some((cluster, account))
}

#[tokio::test]
async fn weir_serves_with_the_role_of_its_manifests_and_needs_each_verb_of_it() {
    let name = "weir_serves_with_the_role_of_its_manifests_and_needs_each_verb_of_it";
    let Some((cluster, account)) = deployed(name).await else { return };
    let weir = Weir::start(&account);
    weir.serve.ready().await;
    for object in ["vs/my-app", "dr/my-app"] {
        let waited = weir.wait(object);
        assert!(waited.status.success(), "{waited:?}\n{}", weir.log());
    }
    assert!(!weir.log().contains("forbidden"), "{}", weir.log());
    drop(weir);

    // Without `list` nothing is known, and it is not ready.
    allow(&cluster, &account, &["watch", "get"]).await;
    let weir = Weir::start(&account);
    weir.lacks("list", &RESOURCES).await;
    assert!(weir.serve.admin().get("/ready").await.is_err());
    drop(weir);

    // Without `watch` changes are not seen.
    allow(&cluster, &account, &["list", "get"]).await;
    let weir = Weir::start(&account);
    weir.lacks("watch", &RESOURCES).await;
    drop(weir);

    // Without `get` nobody can tell whether the newest form is live.
    allow(&cluster, &account, &["list", "watch"]).await;
    let weir = Weir::start(&account);
    weir.serve.ready().await;
    for object in ["vs/my-app", "dr/my-app"] {
        let waited = weir.wait(object);
        assert!(!waited.status.success(), "{waited:?}");
        assert!(
            String::from_utf8_lossy(&waited.stderr).contains("cannot get resource"),
            "{waited:?}"
        );
    }
}

#[tokio::test]
async fn weir_writes_the_status_with_its_roles_and_needs_each_verb_for_it() {
    let name = "weir_writes_the_status_with_its_roles_and_needs_each_verb_for_it";
    let Some((cluster, account)) = deployed(name).await else { return };
    let lease = |path: &str| {
        let path = format!("jsonpath={{.spec.{path}}}");
        let get = ["-n", "weir-system", "get", "lease", "weir-status", "-o", &path];
        String::from_utf8(cluster.kubectl(&get).stdout).expect("UTF-8")
    };
    let weir = Weir::start(&account);
    for object in ["vs/my-app", "dr/my-app"] {
        let what = "--for=condition=Programmed";
        cluster.kubectl_ok(&["-n", "your-namespace", "wait", what, object, "--timeout=60s"]);
    }
    let begun = lease("renewTime");
    until("the Lease is renewed", async || lease("renewTime") != begun).await;
    weir.serve.terminate();
    until("the Lease is given up", async || lease("holderIdentity").is_empty()).await;
    assert!(!weir.log().contains("forbidden"), "{}", weir.log());
    drop(weir);

    // Without `patch` no status is written.
    let change = |object: &str, spec: &str| {
        let patch = ["patch", object, "--type=merge", "-p", spec];
        cluster.kubectl_ok(&[&["-n", "your-namespace"], &patch[..]].concat());
    };
    change("vs/my-app", r#"{"spec":{"http":[{"route":[{"destination":{"host":"my-app"}}]}]}}"#);
    change("dr/my-app", r#"{"spec":{"trafficPolicy":{"loadBalancer":{"simple":"RANDOM"}}}}"#);
    allow(&cluster, &account, &["list", "watch", "get"]).await;
    let weir = Weir::start(&account);
    weir.lacks("patch", &["destinationrules/status", "virtualservices/status"]).await;
    drop(weir);

    // Without one of these nobody stays elected.
    allow(&cluster, &account, &["list", "watch", "get", "patch"]).await;
    let verbs = ["create", "get", "update"];
    for missing in verbs {
        let delete = ["delete", "lease", "weir-status", "--ignore-not-found"];
        cluster.kubectl_ok(&[&["-n", "weir-system"], &delete[..]].concat());
        let others: Vec<&str> = verbs.into_iter().filter(|verb| *verb != missing).collect();
        allow_leases(&cluster, &account, &others).await;
        let weir = Weir::start(&account);
        weir.lacks(missing, &["leases"]).await;
    }
}

/// Gives or takes a verb of one rule of a role, which otherwise has `others`, and waits until the API server applies that.
async fn allow_verb(
    cluster: &KubeCluster,
    account: &Path,
    (role, rule): (&[&str], usize),
    verb: &str,
    others: &[&str],
    allowed: bool,
) {
    let mut verbs = others.to_vec();
    // A rule needs a verb.
    verbs.push(if allowed { verb } else { "deletecollection" });
    let path = format!("/rules/{rule}/verbs");
    let patch = json!([{"op": "replace", "path": path, "value": verbs}]).to_string();
    cluster.kubectl_ok(&[role, &["--type=json", "-p", &patch]].concat());
    let account = account.to_str().expect("UTF-8");
    let object = match (role.contains(&"clusterrole"), verb) {
        (true, _) if role.contains(&"weir-sidecar-injector") => {
            "mutatingwebhookconfigurations/weir-sidecar-injector"
        }
        (true, _) => "validatingwebhookconfigurations/weir",
        (false, "create") => "secrets",
        (false, _) => "secrets/weir-webhook-cert",
    };
    let ask = ["--kubeconfig", account, "-n", "weir-system", "auth", "can-i", verb, object];
    until("the role takes effect", async || cluster.kubectl(&ask).status.success() == allowed)
        .await;
}

/// The webhook configurations, and how many webhooks they have.
const CONFIGURATIONS: [(&str, &str, usize); 2] = [
    ("validatingwebhookconfiguration", "weir", 1),
    ("mutatingwebhookconfiguration", "weir-sidecar-injector", 4),
];

/// The authority in the webhook configurations; empty before weir has written it into all of them.
fn ca_bundle(cluster: &KubeCluster) -> String {
    let path = "jsonpath={.webhooks[*].clientConfig.caBundle}";
    let mut all = Vec::new();
    for (kind, name, count) in CONFIGURATIONS {
        let bundles = cluster.kubectl_ok(&["get", kind, name, "-o", path]);
        let bundles: Vec<_> = bundles.split_whitespace().map(str::to_owned).collect();
        if bundles.len() < count {
            return String::new();
        }
        all.extend(bundles);
    }
    let first = all.remove(0);
    if all.iter().all(|bundle| *bundle == first) { first } else { String::new() }
}

/// kubectl in the namespace of weir.
fn in_weir_system(cluster: &KubeCluster, args: &[&str]) -> String {
    cluster.kubectl_ok(&[&["-n", "weir-system"], args].concat())
}

fn delete_certificate(cluster: &KubeCluster) {
    in_weir_system(cluster, &["delete", "secret", "weir-webhook-cert", "--ignore-not-found"]);
}

#[tokio::test]
async fn weir_keeps_the_certificate_of_its_webhook_with_its_roles() {
    let name = "weir_keeps_the_certificate_of_its_webhook_with_its_roles";
    let Some((cluster, account)) = deployed(name).await else { return };
    let weir = Weir::start(&account);
    until("the authority is in the configuration", async || !ca_bundle(&cluster).is_empty()).await;
    // A configuration that somebody writes anew gets it again, and so does a Secret.
    let remove = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    for (kind, name, _) in CONFIGURATIONS {
        cluster.kubectl_ok(&["patch", kind, name, "--type=json", "-p", remove]);
        until("the authority is back", async || !ca_bundle(&cluster).is_empty()).await;
    }
    let before = ca_bundle(&cluster);
    delete_certificate(&cluster);
    until("another authority is there", async || {
        ![String::new(), before.clone()].contains(&ca_bundle(&cluster))
    })
    .await;
    assert!(!weir.log().contains("forbidden"), "{}", weir.log());
    let path = "jsonpath={.data.tls\\.key}";
    let key = in_weir_system(&cluster, &["get", "secret", "weir-webhook-cert", "-o", path]);
    assert!(!key.is_empty() && !weir.log().contains("PRIVATE KEY"), "{}", weir.log());
}

#[tokio::test]
async fn weir_needs_each_verb_for_the_certificate_of_its_webhook() {
    let name = "weir_needs_each_verb_for_the_certificate_of_its_webhook";
    let Some((cluster, account)) = deployed(name).await else { return };
    // Another role lets weir create Secrets as well.
    in_weir_system(&cluster, &["delete", "rolebinding", "weir-identity"]);
    let configuration = (&["patch", "clusterrole", "weir-webhook"][..], 0);
    let injection = (&["patch", "clusterrole", "weir-sidecar-injector"][..], 0);
    let role = &["-n", "weir-system", "patch", "role", "weir-webhook"][..];
    let (created, kept) = ((role, 0), (role, 1));
    for (rule, verb, others, resource) in [
        (configuration, "list", &["watch", "patch"][..], "validatingwebhookconfigurations"),
        (configuration, "watch", &["list", "patch"], "validatingwebhookconfigurations"),
        (configuration, "patch", &["list", "watch"], "validatingwebhookconfigurations"),
        (injection, "list", &["watch", "patch"], "mutatingwebhookconfigurations"),
        (injection, "watch", &["list", "patch"], "mutatingwebhookconfigurations"),
        (injection, "patch", &["list", "watch"], "mutatingwebhookconfigurations"),
        (kept, "list", &["watch", "update"], "secrets"),
        (kept, "watch", &["list", "update"], "secrets"),
        (kept, "update", &["list", "watch"], "secrets"),
        (created, "create", &[], "secrets"),
    ] {
        delete_certificate(&cluster);
        if verb == "update" {
            // One without a certificate is written, not created.
            in_weir_system(&cluster, &["create", "secret", "generic", "weir-webhook-cert"]);
        }
        allow_verb(&cluster, &account, rule, verb, others, false).await;
        let weir = Weir::start(&account);
        weir.lacks(verb, &[resource]).await;
        // weir serves all the same, and `weir doctor` says what is missing.
        weir.serve.ready().await;
        let missing = format!("cannot {verb} resource");
        until(&format!("`weir doctor` says: {missing}"), async || {
            let doctor = weir.doctor();
            let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
            doctor.status.code() == Some(1)
                && said.contains("the webhook does not work")
                && said.contains(&missing)
        })
        .await;
        drop(weir);
        allow_verb(&cluster, &account, rule, verb, others, true).await;
    }
}

/// The objects of YAML, by kind and name.
fn objects(yaml: &str) -> BTreeMap<String, Value> {
    let documents = weir::source::yaml::documents(yaml.as_bytes()).unwrap();
    let named = documents.into_iter().map(|document| {
        let value = document.value;
        let text = |at: &str| value.pointer(at).and_then(Value::as_str).unwrap().to_owned();
        (format!("{}/{}", text("/kind"), text("/metadata/name")), value)
    });
    named.collect()
}

fn assert_same_objects(left: &BTreeMap<String, Value>, right: &BTreeMap<String, Value>) {
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
    for (name, object) in left {
        let pretty = |object: &Value| serde_json::to_string_pretty(object).unwrap();
        assert!(object == &right[name], "{}\n\n{}", pretty(object), pretty(&right[name]));
    }
}

const CHART: [&str; 3] = ["template", "weir", "deploy/helm/weir"];

/// What Helm renders of the chart; `None` without Helm.
fn rendered(test: &str, more: &[&str]) -> Option<String> {
    let output = helm(test, &[&CHART[..], more].concat())?;
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_chart_renders_what_the_kustomizations_do() {
    let test = "the_chart_renders_what_the_kustomizations_do";
    let Some(cluster) = KubeCluster::start(test) else {
        return;
    };
    let created = ["--set", "namespace.create=true"];
    for (folder, namespace, more) in [
        ("deploy", "weir-system", &created[..]),
        (
            "deploy/overlays/ha",
            "weir-system",
            &[
                "--set",
                "namespace.create=true,replicas=3,topologySpread=DoNotSchedule,podDisruptionBudget.minAvailable=2",
            ],
        ),
        ("deploy/overlays/one-namespace", "your-namespace", &["--set", "serve.onlyNamespace=true"]),
    ] {
        let Some(chart) = rendered(test, &[&["-n", namespace], more].concat()) else {
            return;
        };
        let folder = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
        let kustomization = cluster.kubectl_ok(&["kustomize", &folder]);
        assert_same_objects(&objects(&chart), &objects(&kustomization));
    }
}

#[test]
fn what_the_chart_renders_fits_a_cluster() {
    let test = "what_the_chart_renders_fits_a_cluster";
    let Some(cluster) = KubeCluster::start(test) else {
        return;
    };
    let values = "namespace.create=true,image.repository=registry.example/weir,image.tag=1.2.3,image.pullPolicy=Always,\
                  serve.revision=weir,serve.extraArgs={--outbound-policy=registry-only},\
                  networkPolicy.adminFromNamespaces={monitoring},networkPolicy.webhookFrom={10.0.0.0/28},\
                  webhook.failurePolicy=Fail,podDisruptionBudget.minAvailable=50%";
    let selectors = "serve.discoverySelectors[0]=team in (a\\,b)";
    let more = json!({
        "extraEnv": [{"name": "OTEL_EXPORTER_OTLP_CERTIFICATE", "value": "/roots/ca.crt"}],
        "extraVolumes": [{"name": "roots", "configMap": {"name": "collector"}}],
        "extraVolumeMounts": [{"name": "roots", "mountPath": "/roots", "readOnly": true}],
    });
    let more = format!("serve={more}");
    let args = ["-n", "weir-system", "--set-json", &more, "--set", values, "--set", selectors];
    let Some(chart) = rendered(test, &args) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chart.yaml");
    std::fs::write(&file, chart).unwrap();
    cluster.kubectl_ok(&["apply", "--validate=strict", "-f", file.to_str().unwrap()]);
    let get = ["get", "deployment", "weir", "-n", "weir-system", "-o"];
    let container = "{.spec.template.spec.containers[0]";
    let path =
        format!("jsonpath={container}['image', 'args']}} {container}.volumeMounts[0].mountPath}}");
    let found = cluster.kubectl_ok(&[&get[..], &[&path]].concat());
    assert_eq!(
        found,
        r#"registry.example/weir:1.2.3 ["serve","--replicas-service=weir-replicas","--gates-listen=[::]:15018","--xds-listen=[::]:15010","--webhook=on","--injection=on","--identity=on","--revision=weir","--discovery-selector=team in (a,b)","--outbound-policy=registry-only"] /roots"#
    );
}

#[test]
fn the_chart_refuses_values_that_mean_nothing() {
    for wrong in [
        "replica=3",
        "replicas=0",
        "serve.revision=Weir!",
        "topologySpread=Never",
        "webhook.failurePolicy=Maybe",
        "webhook.timeoutSeconds=1",
        "injection.failurePolicy=Maybe",
        "injection.timeoutSeconds=1",
        "networkPolicy.webhookFrom={everywhere}",
        "serve.onlyNamespace=true,serve.discoverySelectors={a=b}",
        "serve.extraEnv[0].value=nameless",
        "serve.extraEnv[0].name=POD_NAME",
        "serve.extraVolumeMounts[0].name=nowhere",
    ] {
        let args = [&CHART[..], &["-n", "weir-system", "--set", wrong]].concat();
        let Some(output) = helm("the_chart_refuses_values_that_mean_nothing", &args) else {
            return;
        };
        assert!(!output.status.success(), "{wrong}");
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(why.contains("don't meet the specifications of the schema"), "{wrong}: {why}");
    }
}

/// The manifests of the example for a cluster. Nothing runs pods here, but the command of the client's init container is
/// run as it stands, with the fields of a pod in place of its variables.
#[test]
fn the_example_for_a_cluster_is_valid_and_its_bootstrap_is_written() {
    let test = "the_example_for_a_cluster_is_valid_and_its_bootstrap_is_written";
    let Some(cluster) = KubeCluster::start(test) else {
        return;
    };
    cluster.apply_crds();
    let example = format!("{}/deploy/examples/in-cluster", env!("CARGO_MANIFEST_DIR"));
    cluster.kubectl_ok(&["apply", "--validate=strict", "-f", &example]);
    let path = "jsonpath={.spec.template.spec.initContainers[0].args}";
    let args =
        cluster.kubectl_ok(&["get", "deployment", "client", "-n", "your-namespace", "-o", path]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bootstrap.yaml");
    let args: Vec<String> = serde_json::from_str(&args).unwrap();
    let args = args.iter().map(|arg| {
        arg.replace("$(POD_NAMESPACE)", "your-namespace")
            .replace("$(POD_NAME)", "client-0")
            .replace("$(POD_IP)", "10.1.2.3")
            .replace("$(NODE_NAME)", "node-1")
            .replace("/etc/envoy/bootstrap.yaml", file.to_str().unwrap())
    });
    let output = Command::new(env!("CARGO_BIN_EXE_weir")).args(args).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.contains("sidecar~10.1.2.3~client-0.your-namespace~"), "{written}");
    let analyzed =
        Command::new(env!("CARGO_BIN_EXE_weir")).args(["analyze", "-f", &example]).output();
    assert!(analyzed.unwrap().status.success());
}
