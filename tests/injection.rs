//! Sidecar injection: by a real API server that calls the webhook, and into files whose result it then accepts.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::support::kube::KubeCluster;
use crate::support::mesh::until;
use crate::support::network;
use crate::webhook::{World, said};

fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A pod that runs under the Pod Security Standard `restricted`.
fn pod(name: &str, namespace: &str, labels: &Value, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations},
        "spec": {
            // Where controllers run, the API server adds it before it asks webhooks.
            "serviceAccountName": "default",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "initContainers": [container("migrate", &json!({}))],
            "containers": [container("app", &json!({
                "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
            }))],
        },
    })
}

fn container(name: &str, more: &Value) -> Value {
    let mut container = json!({
        "name": name, "image": "registry.example/app:1",
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    });
    for (name, value) in more.as_object().unwrap() {
        container[name] = value.clone();
    }
    container
}

/// The names of the members of a list in the spec.
fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    let items = pod["spec"][list].as_array().into_iter().flatten();
    items.map(|item| item["name"].as_str().unwrap()).collect()
}

fn is_injected(pod: &Value) -> bool {
    names(pod, "initContainers").contains(&"istio-proxy")
}

impl World {
    /// The pod that the API server makes of one, which it does not store.
    async fn tried(&self, pod: &Value) -> Result<Value, kube::Error> {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap();
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let params = PostParams { dry_run: true, ..Default::default() };
        let created = api.create(&params, &serde_json::from_value(pod.clone()).unwrap()).await?;
        Ok(serde_json::to_value(created).unwrap())
    }

    async fn create_namespace(&self, name: &str, labels: &Value) {
        let object = serde_json::from_value(namespace(name, labels)).unwrap();
        let api = Api::<Namespace>::all(self.client.clone());
        api.create(&PostParams::default(), &object).await.unwrap();
    }

    /// Waits until the API server gets sidecars for the pods of a namespace that asks for them.
    async fn injects(&self, namespace: &str) {
        let probe = pod("probe", namespace, &json!({}), &json!({}));
        until("the API server gets a sidecar", async || {
            self.tried(&probe).await.is_ok_and(|pod| is_injected(&pod))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_get_sidecars_by_the_labels_of_istio() {
    if !network::is_inside() {
        return;
    }
    let Some(world) = World::start("pods_get_sidecars_by_the_labels_of_istio").await else {
        return;
    };
    let replica = world.replica(0, &["--injection", "on", "--proxy-xds-tls", "on"]).await;
    let spaces = [
        ("enabled", json!({"istio-injection": "enabled"})),
        ("disabled", json!({"istio-injection": "disabled"})),
        ("revision", json!({"istio.io/rev": "default"})),
        ("other", json!({"istio.io/rev": "other"})),
        ("both", json!({"istio-injection": "enabled", "istio.io/rev": "other"})),
        ("neither", json!({})),
    ];
    for (name, labels) in &spaces {
        world.create_namespace(name, labels).await;
    }
    world.injects("enabled").await;
    const INJECT: &str = "sidecar.istio.io/inject";
    const REVISION: &str = "istio.io/rev";
    // By label of the pod: in which of these namespaces it gets a sidecar.
    for (labels, expected) in [
        (json!({}), &["enabled", "revision", "both"][..]),
        (json!({INJECT: "true"}), &["enabled", "revision", "both", "neither"]),
        (json!({INJECT: "false"}), &[]),
        (json!({INJECT: "maybe"}), &["enabled", "revision", "both"]),
        (json!({REVISION: "default"}), &["enabled", "revision", "both", "neither"]),
        (json!({REVISION: "other"}), &["enabled", "revision", "both"]),
        (json!({REVISION: "other", INJECT: "true"}), &["enabled", "revision", "both"]),
        (json!({REVISION: "default", INJECT: "false"}), &[]),
    ] {
        for (name, _) in &spaces {
            let seen = world.tried(&pod("web", name, &labels, &json!({}))).await.unwrap();
            assert_eq!(is_injected(&seen), expected.contains(name), "{name} {labels}");
        }
    }
    let unwanted = pod("web", "enabled", &json!({}), &json!({INJECT: "false"}));
    assert!(!is_injected(&world.tried(&unwanted).await.unwrap()));
    for (metric, least) in [("success", 21), ("skip", 1)] {
        let name = format!("sidecar_injection_{metric}_total ");
        let count = replica.serve.metric(&name).await.unwrap_or_default();
        assert!(count >= least, "{metric}: {count}");
    }
    assert_eq!(replica.serve.metric("sidecar_injection_failure_total ").await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_injected_pod_is_stored_with_its_sidecar_and_an_impossible_one_is_refused() {
    if !network::is_inside() {
        return;
    }
    let test = "an_injected_pod_is_stored_with_its_sidecar_and_an_impossible_one_is_refused";
    let Some(world) = World::start(test).await else { return };
    let mut replica = world
        .replica(
            0,
            &["--injection", "on", "--proxy-xds-tls", "on", "--weir-image", "r.example/weir:2"],
        )
        .await;
    world.create_namespace("shop", &json!({"istio-injection": "enabled"})).await;
    world.create_namespace("lab", &json!({})).await;
    world.injects("shop").await;

    let applied = world.apply(&pod("web", "shop", &json!({}), &json!({})), &["--validate=strict"]);
    assert!(applied.status.success() && said(&applied).is_empty(), "{applied:?}");
    let get = ["-n", "shop", "get", "pod", "web", "-o", "json"];
    let stored: Value = serde_json::from_str(&world.cluster.kubectl_ok(&get)).unwrap();
    let init = ["istio-init", "weir-install", "istio-proxy", "migrate"];
    assert_eq!(names(&stored, "initContainers"), init);
    assert_eq!(stored["spec"]["initContainers"][1]["image"], "r.example/weir:2");
    assert_eq!(stored["spec"]["initContainers"][2]["restartPolicy"], "Always");
    let probe = &stored["spec"]["containers"][0]["readinessProbe"]["httpGet"];
    assert_eq!((&probe["path"], &probe["port"]), (&json!("/app-health/app/readyz"), &json!(15020)));
    assert_eq!(stored["metadata"]["labels"]["service.istio.io/canonical-name"], "web");
    let status = stored["metadata"]["annotations"]["sidecar.istio.io/status"].as_str().unwrap();
    let status: Value = serde_json::from_str(status).unwrap();
    assert_eq!(status["initContainers"], json!(["istio-init", "weir-install", "istio-proxy"]));

    let wrong = json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "db"});
    let refused = world.apply(&pod("wrong", "shop", &json!({}), &wrong), &[]);
    let message = "admission webhook \"namespace.sidecar-injector.weir.dev\" denied the request: Pod shop/wrong: \
                   metadata.annotations[traffic.sidecar.istio.io/excludeOutboundPorts]: is `db`; expected ports";
    assert!(!refused.status.success() && said(&refused).contains(message), "{}", said(&refused));
    // One whose namespace alone asks is created as it is, with a warning.
    let mut taken = pod("taken", "shop", &json!({}), &json!({}));
    taken["spec"]["containers"][0]["ports"] = json!([{"containerPort": 15001}]);
    let applied = world.apply(&taken, &[]);
    assert!(
        applied.status.success() && said(&applied).contains("gets no sidecar: spec.containers[0]"),
        "{applied:?}"
    );

    // Without weir, pods that need it are not created, and all others are.
    replica.serve.kill();
    let refused = world.apply(&pod("late", "shop", &json!({}), &json!({})), &[]);
    assert!(!refused.status.success(), "{refused:?}");
    let injected = json!({"sidecar.istio.io/status": "{}"});
    for (name, namespace, annotations) in
        [("has-one", "shop", injected), ("late", "lab", json!({}))]
    {
        let applied = world.apply(&pod(name, namespace, &json!({}), &annotations), &[]);
        assert!(applied.status.success(), "{applied:?}");
    }
}

/// Runs `weir inject` with standard input.
fn inject(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
        .arg("inject")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// An object of every kind that has pods.
fn workloads() -> String {
    let of = |kind: &str, version: &str, mut spec: Value, at: &str, restart: &str| {
        let mut template = pod("", "", &json!({"app": "web"}), &json!({}));
        template["metadata"] = json!({"labels": {"app": "web"}});
        let template = template.as_object_mut().unwrap();
        template.remove("apiVersion");
        template.remove("kind");
        template["spec"]["restartPolicy"] = json!(restart);
        *spec.pointer_mut(at).unwrap() = Value::Object(template.clone());
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": kind.to_lowercase()}, "spec": spec})
    };
    let selecting = || json!({"selector": {"matchLabels": {"app": "web"}}, "template": null});
    let mut stateful = selecting();
    stateful["serviceName"] = json!("web");
    let plain = json!({"selector": {"app": "web"}, "template": null});
    let cron = json!({"schedule": "@daily", "jobTemplate": {"spec": {"template": null}}});
    let objects = [
        pod("pod", "default", &json!({}), &json!({})),
        of("Deployment", "apps/v1", selecting(), "/template", "Always"),
        of("ReplicaSet", "apps/v1", selecting(), "/template", "Always"),
        of("DaemonSet", "apps/v1", selecting(), "/template", "Always"),
        of("StatefulSet", "apps/v1", stateful, "/template", "Always"),
        of("ReplicationController", "v1", plain, "/template", "Always"),
        of("Job", "batch/v1", json!({"template": null}), "/template", "Never"),
        of("CronJob", "batch/v1", cron, "/jobTemplate/spec/template", "Never"),
    ];
    objects.map(|object| object.to_string()).join("\n---\n")
}

#[test]
fn the_api_server_accepts_what_is_injected_into_files() {
    let test = "the_api_server_accepts_what_is_injected_into_files";
    let Some(cluster) = KubeCluster::start(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("injected.yaml");
    let file = file.to_str().unwrap();
    for args in [
        &[][..],
        &["--native-sidecars", "off"],
        &["--proxy", "istio-proxy", "--image-pull-secret", "registry"],
        &["--proxy", "istio-proxy", "--native-sidecars", "off", "--merge-prometheus", "on"],
        &["--proxy-xds-tls", "off"],
    ] {
        let output = inject(&[&["-f", "-", "-o", file], args].concat(), &workloads());
        assert!(output.status.success(), "{output:?}");
        let stderr = said(&output);
        let of_jobs =
            |line: &str| line.contains("warning: ") && line.contains("the Job will not end");
        assert!(stderr.lines().all(of_jobs), "{stderr}");
        let written = std::fs::read_to_string(file).unwrap();
        assert_eq!(written.matches("sidecar.istio.io/status: ").count(), 8, "{written}");
        let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", file];
        let applied = cluster.kubectl(&apply);
        assert!(applied.status.success() && said(&applied).is_empty(), "{args:?}: {applied:?}");
    }
}

#[test]
fn without_redirection_a_sidecar_fits_the_strictest_pod_security_standard() {
    let test = "without_redirection_a_sidecar_fits_the_strictest_pod_security_standard";
    let Some(cluster) = KubeCluster::start(test) else { return };
    for level in ["restricted", "baseline", "privileged"] {
        let labels = json!({"pod-security.kubernetes.io/enforce": level});
        cluster.apply(&namespace(level, &labels).to_string());
        for (mode, fits) in [("NONE", true), ("REDIRECT", level == "privileged")] {
            let annotations = json!({"sidecar.istio.io/interceptionMode": mode});
            let output =
                inject(&["-f", "-"], &pod("web", level, &json!({}), &annotations).to_string());
            assert!(output.status.success(), "{output:?}");
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &output.stdout).unwrap();
            let path = file.path().to_str().unwrap();
            let applied = cluster.kubectl(&["apply", "--dry-run=server", "-f", path]);
            assert_eq!(applied.status.success(), fits, "{level} {mode}: {applied:?}");
            assert!(fits || said(&applied).contains("NET_ADMIN"), "{applied:?}");
        }
    }
}

#[test]
fn files_are_injected_as_a_whole_or_not_at_all() {
    let good = pod("web", "shop", &json!({}), &json!({})).to_string();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.json"), &good).unwrap();
    std::fs::write(folder.path().join("b.yml"), "# kept\nkind: ConfigMap\n").unwrap();
    let path = folder.path().to_str().unwrap();
    let output = inject(&["-f", path], "");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.ends_with("---\n# kept\nkind: ConfigMap\n"), "{text}");
    // Again: nothing changes.
    let again = inject(&["-f", "-"], &text);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), text);
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(
        said.contains("stdin:1: Pod shop/web: not injected: it has a sidecar already"),
        "{said}"
    );

    let bad = json!({"sidecar.istio.io/proxyMemory": "much"});
    std::fs::write(folder.path().join("c.yaml"), pod("bad", "shop", &json!({}), &bad).to_string())
        .unwrap();
    let output = inject(&["-f", path], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    let place = format!(
        "{path}/c.yaml:1: Pod shop/bad: metadata.annotations[sidecar.istio.io/proxyMemory]: is `much`; "
    );
    assert!(said.starts_with(&place), "{said}");
    for args in [
        &["-f", "/nowhere"][..],
        &["-f", "-", "--proxy-cpu", "fast"],
        &["-f", "-", "--proxy", "istio-proxy", "--proxy-xds-tls", "off"],
        &[],
    ] {
        assert_eq!(inject(args, "").status.code(), Some(2), "{args:?}");
    }
}
