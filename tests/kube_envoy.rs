//! `weir serve` with a real API server: changes made with kubectl reach a real Envoy.

use std::process::Command;

use crate::support::ads::{CDS, Client, Variant, ask};
use crate::support::kube::KubeCluster;
use crate::support::mesh::{Serve, start_envoy, until};
use crate::support::process::free_port;
use serde_json::{Value, json};
use weir::envoy::EnvoyProcess;

const NAMESPACE: &str = "your-namespace";

#[tokio::test]
async fn changes_by_kubectl_reach_a_real_envoy() {
    let Some(mut cluster) = KubeCluster::start("changes_by_kubectl_reach_a_real_envoy") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = cluster.kubeconfig_path().to_str().unwrap().to_owned();

    // Without the CRDs weir still becomes ready, and uses them once they are installed.
    let weir = Serve::start(&["--kubeconfig", &kubeconfig], free_port(), free_port());
    weir.ready().await;
    cluster.apply_crds();
    cluster.apply_folder("deploy/examples/canary");
    // Envoy binds the service's port on loopback, and 80 may be taken.
    let port = free_port();
    let patch = json!([{"op": "replace", "path": "/spec/ports/0/port", "value": port}]).to_string();
    cluster.kubectl_ok(&[
        "-n",
        NAMESPACE,
        "patch",
        "service",
        "my-app",
        "--type=json",
        "-p",
        &patch,
    ]);

    // The numbers in the routes are looked at.
    let envoy = start_envoy(folder.path(), weir.xds, &["--weights", "routes"]).await;
    until("the route of the example", async || {
        weights(&envoy).await == [("v1".to_owned(), 90), ("v2".to_owned(), 10)]
    })
    .await;
    until("three endpoints each", async || {
        hosts(&envoy, "v1").await == 3 && hosts(&envoy, "v2").await == 3
    })
    .await;

    patch_weights(&cluster, 70, 30);
    until("a patched weight", async || {
        weights(&envoy).await == [("v1".to_owned(), 70), ("v2".to_owned(), 30)]
    })
    .await;

    // It waits for the version in the API, not for the one that weir has received.
    let admin = format!("127.0.0.1:{}", weir.admin);
    let wait = |object: &str, more: &[&str]| {
        let args = ["wait", object, "-n", NAMESPACE, "--admin", &admin];
        Command::new(env!("CARGO_BIN_EXE_weir")).args(args).args(more).output().unwrap()
    };
    for n in [31, 32, 33] {
        patch_weights(&cluster, 100 - n, n);
        let waited = wait("vs/my-app", &[]);
        assert!(waited.status.success(), "{waited:?}");
        let n = u64::from(n);
        assert_eq!(weights(&envoy).await, [("v1".to_owned(), 100 - n), ("v2".to_owned(), n)]);
    }
    assert!(wait("dr/my-app", &["--generation", "1"]).status.success());
    let waited = wait("vs/nothing", &[]);
    assert!(
        String::from_utf8_lossy(&waited.stderr).contains("/nothing does not exist"),
        "{waited:?}"
    );
    patch_weights(&cluster, 70, 30);

    cluster.kubectl_ok(&[
        "-n",
        NAMESPACE,
        "label",
        "pod",
        "my-app-v1-0",
        "version=v2",
        "--overwrite",
    ]);
    until("a relabelled pod", async || {
        hosts(&envoy, "v1").await == 2 && hosts(&envoy, "v2").await == 4
    })
    .await;

    let slices = cluster.kubectl_ok(&["-n", NAMESPACE, "get", "endpointslices", "-o", "json"]);
    let mut slices: Value = serde_json::from_str(&slices).unwrap();
    let slice = &mut slices["items"][0];
    slice["endpoints"]
        .as_array_mut()
        .unwrap()
        .retain(|item| item["targetRef"]["name"] != "my-app-v1-1");
    cluster.apply(&slice.to_string());
    until("a replaced slice", async || {
        hosts(&envoy, "v1").await == 1 && hosts(&envoy, "v2").await == 4
    })
    .await;

    // An invalid object changes nothing and is reported.
    let wrong = r#"{"spec":{"http":[{"route":[{"destination":{"host":"my-app"},"weight":-5}]}]}}"#;
    patch_virtual_service(&cluster, wrong);
    until("the problem is counted", async || weir.metric("weir_config_problems ").await == Some(1))
        .await;
    assert_eq!(weights(&envoy).await, [("v1".to_owned(), 70), ("v2".to_owned(), 30)]);
    patch_weights(&cluster, 60, 40);
    until("the mended object", async || {
        weights(&envoy).await == [("v1".to_owned(), 60), ("v2".to_owned(), 40)]
    })
    .await;

    cluster.stop_apiserver();
    assert_eq!(weights(&envoy).await, [("v1".to_owned(), 60), ("v2".to_owned(), 40)]);
    cluster.start_apiserver();
    patch_weights(&cluster, 10, 90);
    until("a weight after an outage", async || {
        weights(&envoy).await == [("v1".to_owned(), 10), ("v2".to_owned(), 90)]
    })
    .await;
    // Kinds without changes also report their recovery.
    until("there are no problems any more", async || {
        weir.metric("weir_config_problems ").await == Some(0)
    })
    .await;
    let rejected = envoy.stats("update_rejected").await.unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
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
                 workloadentries.networking.istio.io,sidecars.networking.istio.io";
    let allow = |name: &str, kinds: &str| {
        let kinds = format!("--resource={kinds}");
        cluster.kubectl_ok(&["create", "clusterrole", name, "--verb=get,list,watch", &kinds]);
        let role = format!("--clusterrole={name}");
        cluster.kubectl_ok(&["create", "clusterrolebinding", name, &role, "--user=weir"]);
    };
    allow("most", kinds);
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
    allow("rest", "destinationrules.networking.istio.io");
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

fn patch_virtual_service(cluster: &KubeCluster, patch: &str) {
    cluster.kubectl_ok(&[
        "-n",
        NAMESPACE,
        "patch",
        "virtualservice",
        "my-app",
        "--type=merge",
        "-p",
        patch,
    ]);
}

fn patch_weights(cluster: &KubeCluster, v1: u32, v2: u32) {
    let route = json!({"spec": {"http": [{"route": [
        {"destination": {"host": "my-app", "subset": "v1"}, "weight": v1},
        {"destination": {"host": "my-app", "subset": "v2"}, "weight": v2},
    ]}]}});
    patch_virtual_service(cluster, &route.to_string());
}

/// Subset and weight of each destination of the first weighted route in Envoy.
async fn weights(envoy: &EnvoyProcess) -> Vec<(String, u64)> {
    let dump = envoy.config_dump().await.unwrap();
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

fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => {
            map.get(key).or_else(|| map.values().find_map(|member| find(member, key)))
        }
        Value::Array(items) => items.iter().find_map(|item| find(item, key)),
        _ => None,
    }
}

/// The number of endpoints that Envoy has for a subset.
async fn hosts(envoy: &EnvoyProcess, subset: &str) -> usize {
    let text = envoy.admin_get("/clusters").await.unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines()
        .filter(|line| line.contains(&format!("|{subset}|my-app")) && line.contains("::cx_total::"))
        .count()
}
