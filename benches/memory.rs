//! Measures the memory that `weir serve` takes for each object that it reads from the Kubernetes API, by kind.
//!
//! `cargo bench --bench memory` starts a real API server, writes 10 000 pods and 1000 objects of each other kind, each kind
//! into a namespace of its own, and starts weir with a discovery selector for one namespace after another. What it takes
//! more than with a selector that matches no namespace is what the objects take. `WEIR_PODS` and `WEIR_OBJECTS` say
//! otherwise, and `WEIR_BINARY` says which weir.

#[path = "../tests/support/mod.rs"]
mod support;

use std::error::Error;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use kube::{Client, core::GroupVersionKind};
use serde_json::{Value, json};
use support::kube::KubeCluster;
use support::mesh::Serve;
use support::process::free_port;

type Failure = Box<dyn Error + Send + Sync>;

/// Requests at a time.
const CONCURRENT: usize = 32;

/// How long weir has to give memory back after it has read everything.
const SETTLE: Duration = Duration::from_secs(10);

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn binary() -> String {
    std::env::var("WEIR_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_weir").to_owned())
}

/// An object of a kind, as applications have them.
fn object(kind: &str, n: usize) -> (&'static str, Value) {
    let name = format!("object-{n}");
    let host = format!("service-{n}");
    let labels = json!({
        "app.kubernetes.io/name": host, "app.kubernetes.io/instance": "shop", "version": "v1",
        "pod-template-hash": "5d8f7c9b64",
    });
    let (version, mut object) = content(kind, n, &host);
    let mut metadata = json!({"name": name, "labels": labels});
    if kind == "EndpointSlice" {
        metadata["labels"]["kubernetes.io/service-name"] = json!(host);
    }
    object["metadata"] = metadata;
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind);
    (version, object)
}

/// The API version of a kind, and all of an object but its metadata.
fn content(kind: &str, n: usize, host: &str) -> (&'static str, Value) {
    let istio = "networking.istio.io/v1";
    match kind {
        "Pod" => (
            "v1",
            json!({"spec": {
                "containers": [{"name": "app", "image": "registry.example/shop/app:1.2.3",
                    "env": [{"name": "A", "value": "some value"}, {"name": "B", "value": "some value"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                    "ports": [{"containerPort": 8080}]}],
            }}),
        ),
        "Service" => (
            "v1",
            json!({"spec": {"clusterIP": "None", "selector": {"app": host},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        ),
        "EndpointSlice" => (
            "discovery.k8s.io/v1",
            json!({
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
                "endpoints": (1..5).map(|m| json!({
                    "addresses": [format!("10.{}.{}.{m}", n / 250, n % 250)], "conditions": {"ready": true},
                    "nodeName": "node-1", "zone": "eu-a",
                    "targetRef": {"kind": "Pod", "name": format!("{host}-{m}"), "namespace": "shop"},
                })).collect::<Vec<_>>(),
            }),
        ),
        "VirtualService" => (
            istio,
            json!({"spec": {"hosts": [host], "http": [{"route": [
                {"destination": {"host": host, "subset": "v1"}, "weight": 90},
                {"destination": {"host": host, "subset": "v2"}, "weight": 10},
            ]}]}}),
        ),
        "DestinationRule" => (
            istio,
            json!({"spec": {"host": host, "subsets": [
                {"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}},
            ]}}),
        ),
        "ServiceEntry" => (
            istio,
            json!({"spec": {"hosts": [format!("{host}.example.com")],
            "resolution": "DNS", "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]}}),
        ),
        "WorkloadEntry" => {
            (istio, json!({"spec": {"address": "10.0.0.1", "labels": {"app": host}}}))
        }
        "Node" => ("v1", json!({})),
        other => panic!("{other}"),
    }
}

async fn create(client: &Client, kind: &str, namespace: &str, count: usize) -> Result<(), Failure> {
    let (version, _) = object(kind, 0);
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = match kind {
        "Node" => Api::all_with(client.clone(), &resource),
        _ => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    let writes = futures::stream::iter((0..count).map(|n| {
        let api = api.clone();
        let object = serde_json::from_value::<DynamicObject>(object(kind, n).1);
        async move { Ok::<_, Failure>(api.create(&PostParams::default(), &object?).await?) }
    }));
    writes.buffer_unordered(CONCURRENT).try_for_each(async |_| Ok(())).await
}

/// weir's resident memory in bytes when it has read the namespaces that a selector matches.
async fn resident(kubeconfig: &str, selector: &str) -> Result<u64, Failure> {
    let admin = free_port();
    let xds = free_port();
    let child = Command::new(binary())
        .args(["serve", "--kubeconfig", kubeconfig, "--discovery-selector", selector])
        .args(["--xds-listen", &format!("127.0.0.1:{xds}")])
        .args(["--admin-listen", &format!("127.0.0.1:{admin}")])
        .args(["--log", "error"])
        .stdin(Stdio::null())
        .spawn()?;
    let mut serve = Serve::of(child, xds, admin);
    serve.ready().await;
    tokio::time::sleep(SETTLE).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", serve.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no VmRSS")?;
    serve.kill();
    Ok(kilobytes.trim().parse::<u64>()? * 1024)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let Some(cluster) = KubeCluster::start("memory") else {
        return Ok(());
    };
    let (pods, others) = (number("WEIR_PODS", 10_000), number("WEIR_OBJECTS", 1000));
    cluster.apply_crds();
    let kubeconfig = cluster.kubeconfig_path().to_owned();
    let client = weir::source::kubernetes::client(Some(&kubeconfig)).await?;
    let kubeconfig = kubeconfig.to_str().ok_or("the kubeconfig's path is not UTF-8")?;
    let kinds = [
        "Pod",
        "Service",
        "EndpointSlice",
        "VirtualService",
        "DestinationRule",
        "ServiceEntry",
        "WorkloadEntry",
    ];
    let empty = resident(kubeconfig, "none").await?;
    println!("{:<42}{:>6.1} MB", "nothing", empty as f64 / 1e6);
    for kind in kinds {
        let namespace = kind.to_lowercase();
        cluster.kubectl_ok(&["create", "namespace", &namespace]);
        let count = if kind == "Pod" { pods } else { others };
        create(&client, kind, &namespace, count).await?;
    }
    let base = resident(kubeconfig, "none").await?;
    println!("{:<42}{:>6.1} MB", "all of it in namespaces not selected", base as f64 / 1e6);
    for kind in kinds {
        let count = if kind == "Pod" { pods } else { others };
        let selector = format!("kubernetes.io/metadata.name={}", kind.to_lowercase());
        report(kind, count, resident(kubeconfig, &selector).await?, base);
    }
    create(&client, "Node", "", others).await?;
    report("Node", others, resident(kubeconfig, "none").await?, base);
    Ok(())
}

fn report(kind: &str, count: usize, resident: u64, base: u64) {
    let each = resident.saturating_sub(base) as f64 / count as f64 / 1000.0;
    let what = format!("{count} of kind {kind}");
    println!("{what:<42}{:>6.1} MB, {each:.2} kB each", resident as f64 / 1e6);
}
