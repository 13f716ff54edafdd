//! The manifests in `deploy/` with a real API server, and weir with the permissions that they give it.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::kube::KubeCluster;
use crate::support::mesh::{Serve, until};
use crate::support::process::free_port;

const OBJECTS: [&str; 8] = [
    "namespace/weir-system",
    "serviceaccount/weir",
    "clusterrole/weir",
    "clusterrolebinding/weir",
    "deployment/weir",
    "service/weir",
    "poddisruptionbudget/weir",
    "networkpolicy/weir",
];

/// The resources that weir reads.
const RESOURCES: [&str; 11] = [
    "destinationrules",
    "endpoints",
    "endpointslices",
    "namespaces",
    "nodes",
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
    assert_eq!(crds.lines().count(), 5, "{crds}");
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
                self.log().contains(&format!("cannot {verb} resource \"{resource}\""))
            })
            .await;
        }
    }

    fn wait(&self, object: &str) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["wait", object, "-n", "your-namespace", "--timeout", "30s"])
            .args(["--admin", &format!("127.0.0.1:{}", self.serve.admin)])
            .output()
            .unwrap()
    }
}

/// Replaces the rules of weir's ClusterRole, and waits until the API server applies them.
async fn allow(cluster: &KubeCluster, account: &Path, verbs: &[&str]) {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| serde_json::json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let rules = serde_json::json!([
        rule("", &["*"], verbs),
        rule("discovery.k8s.io", &["*"], verbs),
        rule("networking.istio.io", &["*"], verbs)
    ]);
    let patch =
        serde_json::json!([{"op": "replace", "path": "/rules", "value": rules}]).to_string();
    cluster.kubectl_ok(&["patch", "clusterrole", "weir", "--type=json", "-p", &patch]);
    let account = account.to_str().expect("UTF-8");
    for verb in ["list", "watch", "get"] {
        let wanted = verbs.contains(&verb);
        until("the role takes effect", async || {
            let asked =
                cluster.kubectl(&["--kubeconfig", account, "auth", "can-i", verb, "vs", "-A"]);
            asked.status.success() == wanted
        })
        .await;
    }
}

#[tokio::test]
async fn weir_serves_with_the_role_of_its_manifests_and_needs_each_verb_of_it() {
    let Some(cluster) =
        KubeCluster::start("weir_serves_with_the_role_of_its_manifests_and_needs_each_verb_of_it")
    else {
        return;
    };
    cluster.apply_crds();
    cluster.apply_kustomization("deploy", &[]);
    cluster.apply_folder("deploy/examples/canary");
    let account = cluster.kubeconfig_for_service_account("weir-system", "weir");
    let may_list = ["--kubeconfig", account.to_str().expect("UTF-8"), "get", "pods", "-A"];
    until("the role takes effect", async || cluster.kubectl(&may_list).status.success()).await;

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
