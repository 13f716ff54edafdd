//! `weir serve` with a real API server: changes made with kubectl reach a real Envoy.

use std::process::Command;

use crate::support::ads::{CDS, Client, Variant, ask};
use crate::support::kube::KubeCluster;
use crate::support::mesh::{Serve, start_envoy, until};
use crate::support::process::free_port;
use serde_json::{Value, json};
use weir::envoy::EnvoyProcess;

const NAMESPACE: &str = "your-namespace";

/// The example canary in an API server, served by weir to Envoy.
struct Example {
    envoy: EnvoyProcess,
    weir: Serve,
    cluster: KubeCluster,
    _folder: tempfile::TempDir,
}

impl Example {
    /// Starts all of it and waits until Envoy has the route and the endpoints; `None` if this machine cannot.
    async fn start(test: &str) -> Option<Self> {
        let cluster = KubeCluster::start(test)?;
        let kubeconfig = cluster.kubeconfig_path().to_str().unwrap();
        // Without the CRDs weir still becomes ready, and uses them once they are installed.
        let weir = Serve::start(&["--kubeconfig", kubeconfig], free_port(), free_port());
        weir.ready().await;
        cluster.apply_crds();
        cluster.apply_folder("deploy/examples/canary");
        // Envoy binds the service's port on loopback, and 80 may be taken.
        let port = free_port();
        let patch = json!([{"op": "replace", "path": "/spec/ports/0/port", "value": port}]);
        let service = ["-n", NAMESPACE, "patch", "service", "my-app", "--type=json"];
        cluster.kubectl_ok(&[&service[..], &["-p", &patch.to_string()]].concat());
        let folder = tempfile::tempdir().unwrap();
        // The numbers in the routes are looked at.
        let envoy = start_envoy(folder.path(), weir.xds, &["--weights", "routes"]).await;
        let this = Self { envoy, weir, cluster, _folder: folder };
        this.until_weights("the route of the example", 90, 10).await;
        this.until_hosts("three endpoints each", 3, 3).await;
        Some(this)
    }

    fn patch_virtual_service(&self, patch: &str) {
        let object = ["-n", NAMESPACE, "patch", "virtualservice", "my-app", "--type=merge"];
        self.cluster.kubectl_ok(&[&object[..], &["-p", patch]].concat());
    }

    fn patch_weights(&self, v1: u32, v2: u32) {
        let route = json!({"spec": {"http": [{"route": [
            {"destination": {"host": "my-app", "subset": "v1"}, "weight": v1},
            {"destination": {"host": "my-app", "subset": "v2"}, "weight": v2},
        ]}]}});
        self.patch_virtual_service(&route.to_string());
    }

    /// Subset and weight of each destination of the first weighted route in Envoy.
    async fn weights(&self) -> Vec<(String, u64)> {
        let dump = self.envoy.config_dump().await.unwrap();
        let Some(clusters) =
            find(&dump, "weighted_clusters").and_then(|found| found["clusters"].as_array())
        else {
            return Vec::new();
        };
        let subset = |item: &Value| item["name"].as_str()?.split('|').nth(2).map(str::to_owned);
        clusters
            .iter()
            .filter_map(|cluster| Some((subset(cluster)?, cluster["weight"].as_u64()?)))
            .collect()
    }

    async fn assert_weights(&self, v1: u64, v2: u64) {
        assert_eq!(self.weights().await, [("v1".to_owned(), v1), ("v2".to_owned(), v2)]);
    }

    async fn until_weights(&self, what: &str, v1: u64, v2: u64) {
        let expected = [("v1".to_owned(), v1), ("v2".to_owned(), v2)];
        until(what, async || self.weights().await == expected).await;
    }

    /// The number of endpoints that Envoy has for a subset.
    async fn hosts(&self, subset: &str) -> usize {
        let text = self.envoy.admin_get("/clusters").await.unwrap();
        let subset = format!("|{subset}|my-app");
        String::from_utf8_lossy(&text)
            .lines()
            .filter(|line| line.contains(&subset) && line.contains("::cx_total::"))
            .count()
    }

    async fn until_hosts(&self, what: &str, v1: usize, v2: usize) {
        until(what, async || self.hosts("v1").await == v1 && self.hosts("v2").await == v2).await;
    }

    async fn until_problems(&self, what: &str, count: u64) {
        until(what, async || self.weir.metric("weir_config_problems ").await == Some(count)).await;
    }

    async fn assert_nothing_rejected(&self) {
        let rejected = self.envoy.stats("update_rejected").await.unwrap();
        assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
    }
}

#[tokio::test]
async fn changes_by_kubectl_reach_a_real_envoy() {
    let Some(example) = Example::start("changes_by_kubectl_reach_a_real_envoy").await else {
        return;
    };
    example.patch_weights(70, 30);
    example.until_weights("a patched weight", 70, 30).await;

    let pod = ["-n", NAMESPACE, "label", "pod", "my-app-v1-0", "version=v2", "--overwrite"];
    example.cluster.kubectl_ok(&pod);
    example.until_hosts("a relabelled pod", 2, 4).await;

    let slices = ["-n", NAMESPACE, "get", "endpointslices", "-o", "json"];
    let mut slices: Value = serde_json::from_str(&example.cluster.kubectl_ok(&slices)).unwrap();
    let slice = &mut slices["items"][0];
    slice["endpoints"]
        .as_array_mut()
        .unwrap()
        .retain(|item| item["targetRef"]["name"] != "my-app-v1-1");
    example.cluster.apply(&slice.to_string());
    example.until_hosts("a replaced slice", 1, 4).await;
    example.assert_weights(70, 30).await;
    example.assert_nothing_rejected().await;
}

#[tokio::test]
async fn wait_waits_for_the_version_in_the_api() {
    let Some(example) = Example::start("wait_waits_for_the_version_in_the_api").await else {
        return;
    };
    let admin = format!("127.0.0.1:{}", example.weir.admin);
    let wait = |object: &str, more: &[&str]| {
        let args = ["wait", object, "-n", NAMESPACE, "--admin", &admin];
        Command::new(env!("CARGO_BIN_EXE_weir")).args(args).args(more).output().unwrap()
    };
    // weir may not have received the version yet.
    for n in [31, 32, 33] {
        example.patch_weights(100 - n, n);
        let waited = wait("vs/my-app", &[]);
        assert!(waited.status.success(), "{waited:?}");
        let n = u64::from(n);
        example.assert_weights(100 - n, n).await;
    }
    assert!(wait("dr/my-app", &["--generation", "1"]).status.success());
    let waited = wait("vs/nothing", &[]);
    assert!(
        String::from_utf8_lossy(&waited.stderr).contains("/nothing does not exist"),
        "{waited:?}"
    );
    example.assert_nothing_rejected().await;
}

#[tokio::test]
async fn an_invalid_object_and_an_outage_of_the_api_change_nothing() {
    let test = "an_invalid_object_and_an_outage_of_the_api_change_nothing";
    let Some(mut example) = Example::start(test).await else { return };
    let wrong = r#"{"spec":{"http":[{"route":[{"destination":{"host":"my-app"},"weight":-5}]}]}}"#;
    example.patch_virtual_service(wrong);
    example.until_problems("the problem is counted", 1).await;
    example.assert_weights(90, 10).await;
    example.patch_weights(60, 40);
    example.until_weights("the mended object", 60, 40).await;

    example.cluster.stop_apiserver();
    example.assert_weights(60, 40).await;
    example.cluster.start_apiserver();
    example.patch_weights(10, 90);
    example.until_weights("a weight after an outage", 10, 90).await;
    // Kinds without changes also report their recovery.
    example.until_problems("there are no problems any more", 0).await;
    example.assert_nothing_rejected().await;
}

#[tokio::test]
async fn no_proxy_is_answered_until_every_kind_is_listed() {
    let users: [(&str, &[&str]); 1] = [("weir", &[])];
    let Some(cluster) =
        KubeCluster::start_with_users("no_proxy_is_answered_until_every_kind_is_listed", &users)
    else {
        return;
    };
    cluster.apply_crds();
    cluster.apply_folder("deploy/examples/canary");
    // Everything except the rules that define subsets, without which weir would serve an incomplete state.
    let kinds = "services,endpoints,pods,nodes,namespaces,endpointslices.discovery.k8s.io,\
                 virtualservices.networking.istio.io,serviceentries.networking.istio.io,\
                 workloadentries.networking.istio.io,sidecars.networking.istio.io,\
                 peerauthentications.security.istio.io";
    cluster.allow("weir", "most", "get,list,watch", kinds);
    let kubeconfig = cluster.kubeconfig_for("weir");
    let weir =
        Serve::start(&["--kubeconfig", kubeconfig.to_str().unwrap()], free_port(), free_port());
    // The role takes effect shortly after it is written; then all kinds but one recover.
    until("one kind still cannot be listed", async || {
        weir.metric("weir_config_problems ").await == Some(1) && weir.events().await > 0
    })
    .await;
    let error = weir.admin().get("/ready").await.unwrap_err().to_string();
    assert!(error.contains("503"), "{error}");
    assert_eq!(weir.revision().await, 0);
    let admin = format!("127.0.0.1:{}", weir.admin);
    for command in ["ps", "splits"] {
        let output = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args([command, "--admin", &admin])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("not ready"), "{command}: {said}");
    }

    // A proxy that connects in the meantime waits, and its first configuration includes what had been missing.
    let to = format!("http://127.0.0.1:{}", weir.xds);
    let asking = tokio::spawn(async move {
        let channel = tonic::transport::Channel::from_shared(to).unwrap().connect().await.unwrap();
        let mut client = Client::open(channel, Variant::Delta, None).await;
        client.send(ask(CDS, &[])).await;
        client.got(CDS).await
    });
    cluster.allow("weir", "rest", "get,list,watch", "destinationrules.networking.istio.io");
    weir.ready().await;
    let first = asking.await.unwrap();
    for subset in ["v1", "v2"] {
        assert!(
            first.has(&format!("outbound|80|{subset}|my-app.{NAMESPACE}.svc.cluster.local")),
            "{first:?}"
        );
    }
    assert_eq!(weir.metric("weir_config_problems ").await, Some(0));
}

/// Nodes, and services with an endpoint on each of them, on these ports.
fn placed(ports: [u16; 2]) -> String {
    let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    for (node, zone) in [("n1", "eu-a"), ("n2", "eu-b")] {
        let labels =
            format!("topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: {zone}");
        text += &format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {node}, labels: {{{labels}}}}}\n"
        );
    }
    for (name, port, policy) in [("web", ports[0], "Cluster"), ("agent", ports[1], "Local")] {
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{internalTrafficPolicy: {policy}, ports: [{{name: http, port: {port}}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
             endpoints: [{{addresses: [10.1.1.1], nodeName: n1}}, {{addresses: [10.1.1.2], nodeName: n2}}]\n"
        );
    }
    text + "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
            spec: {host: web, subsets: [{name: b, labels: {topology.kubernetes.io/zone: eu-b}}]}\n"
}

#[tokio::test]
async fn nodes_and_namespaces_of_the_api_decide_where_requests_go() {
    let Some(cluster) =
        KubeCluster::start("nodes_and_namespaces_of_the_api_decide_where_requests_go")
    else {
        return;
    };
    cluster.apply_crds();
    let ports = [free_port(), free_port()];
    cluster.apply(&placed(ports));
    let kubeconfig = cluster.kubeconfig_path().to_str().unwrap().to_owned();
    let weir = Serve::start(&["--kubeconfig", &kubeconfig], free_port(), free_port());
    weir.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let envoy = start_envoy(folder.path(), weir.xds, &["--node-name", "n1"]).await;

    let web = |subset: &str| format!("outbound|{}|{subset}|web.shop.svc.cluster.local", ports[0]);
    let agent = format!("outbound|{}||agent.shop.svc.cluster.local", ports[1]);
    let is = async |cluster: &str, expected: &[(&str, u64)]| {
        let found = priorities(&envoy, cluster).await;
        found
            .iter()
            .map(|(address, priority)| (address.as_str(), *priority))
            .eq(expected.iter().copied())
    };
    until("all endpoints", async || is(&web(""), &[("10.1.1.1", 0), ("10.1.1.2", 0)]).await).await;
    until("those of a zone", async || is(&web("b"), &[("10.1.1.2", 0)]).await).await;
    until("those on the client's node", async || is(&agent, &[("10.1.1.1", 0)]).await).await;

    let annotation = "networking.istio.io/traffic-distribution";
    cluster.kubectl_ok(&["annotate", "namespace", "shop", &format!("{annotation}=PreferClose")]);
    until("the client's zone first", async || {
        is(&web(""), &[("10.1.1.1", 0), ("10.1.1.2", 1)]).await
    })
    .await;
    cluster.kubectl_ok(&["annotate", "namespace", "shop", &format!("{annotation}-")]);
    until("no zone first", async || is(&web(""), &[("10.1.1.1", 0), ("10.1.1.2", 0)]).await).await;

    cluster.kubectl_ok(&["label", "node", "n1", "topology.kubernetes.io/zone=eu-b", "--overwrite"]);
    until("a node in another zone", async || {
        is(&web("b"), &[("10.1.1.1", 0), ("10.1.1.2", 0)]).await
    })
    .await;
}

/// The endpoints that Envoy has for a cluster, with their priorities, sorted.
async fn priorities(envoy: &EnvoyProcess, cluster: &str) -> Vec<(String, u64)> {
    let body = envoy.admin_get("/clusters?format=json").await.unwrap();
    let all: Value = serde_json::from_slice(&body).unwrap();
    let found = all["cluster_statuses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|item| item["name"] == cluster);
    let hosts = found.and_then(|found| found["host_statuses"].as_array()).into_iter().flatten();
    let host = |item: &Value| {
        let address = item["address"]["socket_address"]["address"].as_str()?;
        Some((address.to_owned(), item["priority"].as_u64().unwrap_or(0)))
    };
    let mut all: Vec<_> = hosts.filter_map(host).collect();
    all.sort();
    all
}

fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => {
            map.get(key).or_else(|| map.values().find_map(|member| find(member, key)))
        }
        Value::Array(items) => items.iter().find_map(|item| find(item, key)),
        _ => None,
    }
}
