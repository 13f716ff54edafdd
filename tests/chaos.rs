//! What happens around weir in a cluster, under load: the API server is away for a while, or most of the objects go at
//! once. Nothing is lost, the status is true in the end, and no request fails.
//!
//! `WEIR_OUTAGE` is the length of the outage in seconds.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use kube::api::{DynamicObject, PostParams};
use serde_json::{Value, json};
use tonic::transport::Channel;
use weir::canary::objects::NAMESPACE;
use weir::canary::patterns::Write;

use crate::support::ads::{CDS, Client, LDS, Variant};
use crate::support::kube_canary::KubeCanary;
use crate::support::mesh::{Serve, until};
use crate::support::process::free_port;

/// A replica that writes the status of objects.
fn weir(canary: &KubeCanary) -> Serve {
    let more = ["--pod-namespace", "weir-system", "--pod-name", "weir-0", "--status-lease", "6"];
    canary.weir((free_port(), free_port()), &[&more[..], &["--grace", "0.05"]].concat())
}

/// Waits until the newest version of the route is live on this many proxies, as its status says.
async fn programmed(canary: &KubeCanary, proxies: &str) {
    let api = canary.api("VirtualService");
    until(&format!("the status says: {proxies}"), async || {
        let Ok(object) = api.get("my-app").await else { return false };
        let conditions = object.data["status"]["conditions"].as_array().cloned();
        conditions.into_iter().flatten().any(|condition: Value| {
            condition["type"] == "Programmed"
                && condition["status"] == "True"
                && condition["observedGeneration"].as_i64() == object.metadata.generation
                && condition["message"] == proxies
        })
    })
    .await;
}

/// A proxy that comes, gets what there is, and goes.
async fn come_and_go(weir: &Serve, variant: Variant) {
    let to = Channel::from_shared(format!("http://127.0.0.1:{}", weir.xds)).unwrap();
    let mut client = Client::open(to.connect().await.unwrap(), variant, None).await;
    assert!(!client.fetch(CDS, &[]).await.resources.is_empty());
    assert!(!client.fetch(LDS, &[]).await.resources.is_empty());
}

#[tokio::test]
async fn an_outage_of_the_api_costs_no_request_and_no_write() {
    let name = "an_outage_of_the_api_costs_no_request_and_no_write";
    let Some(mut canary) = KubeCanary::start(name).await else { return };
    let weir = weir(&canary);
    weir.ready().await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = ["--pod", "client-0", "--intercept", "none"];
    let envoy = canary.envoy(folders[0].path(), &[weir.xds], &first).await;
    let load = canary.load();
    canary.route(50).await;
    canary.live(&envoy).await;
    programmed(&canary, "1/1 proxy").await;

    let outage = std::env::var("WEIR_OUTAGE").map_or(5, |text| text.parse().expect("seconds"));
    let end = Instant::now() + Duration::from_secs(outage);
    canary.cluster.stop_apiserver();
    let second = ["--pod", "client-1", "--intercept", "redirect"];
    let other = canary.envoy(folders[1].path(), &[weir.xds], &second).await;
    canary.live(&other).await;
    while Instant::now() < end {
        come_and_go(&weir, Variant::Delta).await;
        come_and_go(&weir, Variant::Sotw).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // A weir that starts meanwhile is not ready, and says so, instead of serving nothing.
    let young = canary.weir((free_port(), free_port()), &[]);
    until("the other weir answers", async || young.admin().get("/healthz").await.is_ok()).await;
    assert!(young.admin().get("/ready").await.is_err());
    canary.cluster.start_apiserver();

    // The writes that waited come at once.
    canary.write(Write::Route(vec![("v2", 100)])).await;
    canary.write(Write::Rule(vec![("v2", "v2")])).await;
    canary.write(Write::Endpoints(vec![2])).await;
    for envoy in [&envoy, &other] {
        canary.live(envoy).await;
    }
    programmed(&canary, "2/2 proxies").await;
    young.ready().await;
    let tally = load.end();
    assert_eq!(tally.failed(), 0, "{tally:?}");
    for envoy in [&envoy, &other] {
        let rejected = envoy.stats("update_rejected").await.unwrap();
        assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
    }
}

/// The objects of each kind that go at once.
const MANY: usize = 1000;

/// An object that goes with the others.
fn one_of_many(kind: &str, n: usize) -> DynamicObject {
    let spec = match kind {
        "VirtualService" => json!({"hosts": [format!("many-{n}.example")],
            "http": [{"route": [{"destination": {"host": "my-app"}}]}]}),
        _ => json!({"host": format!("many-{n}.example")}),
    };
    let object = json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "spec": spec,
        "metadata": {"name": format!("many-{n}"), "namespace": NAMESPACE, "labels": {"many": "yes"}}});
    serde_json::from_value(object).unwrap()
}

const KINDS: [&str; 2] = ["VirtualService", "DestinationRule"];

#[tokio::test]
async fn many_objects_that_go_at_once_cost_no_request() {
    let name = "many_objects_that_go_at_once_cost_no_request";
    let Some(mut canary) = KubeCanary::start(name).await else { return };
    for kind in KINDS {
        let api = canary.api(kind);
        let created = futures::stream::iter(0..MANY).map(|n| {
            let api = api.clone();
            async move { api.create(&PostParams::default(), &one_of_many(kind, n)).await }
        });
        let created: Vec<_> = created.buffer_unordered(16).collect().await;
        assert!(created.iter().all(Result::is_ok));
    }
    let weir = weir(&canary);
    weir.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let first = ["--pod", "client-0", "--intercept", "none"];
    let envoy = canary.envoy(folder.path(), &[weir.xds], &first).await;
    canary.live(&envoy).await;
    let load = canary.load();
    until("it is in the middle of writing the status of them", async || {
        weir.metric("weir_status_writes_total ").await > Some(20)
            && weir.metric("weir_status_pending ").await > Some(0)
    })
    .await;
    let before = weir.events().await;
    let gone = KINDS.map(|kind| canary.delete_all(kind, "many=yes"));
    futures::future::join_all(gone).await;
    canary.route(50).await;
    until("all of it is read", async || weir.events().await >= before + 2 * MANY as u64).await;
    canary.live(&envoy).await;
    programmed(&canary, "1/1 proxy").await;
    until("no status is left to be written", async || {
        weir.metric("weir_status_pending ").await == Some(0)
    })
    .await;
    let tally = load.end();
    assert_eq!(tally.failed(), 0, "{tally:?}");
    // Nothing of them is left, neither here nor there.
    for kind in KINDS {
        let left = canary.api(kind).list(&Default::default()).await.unwrap();
        let names: Vec<_> = left.items.into_iter().filter_map(|item| item.metadata.name).collect();
        assert_eq!(names, ["my-app"]);
    }
    let path = format!("/api/v1/objects/virtualservice/{NAMESPACE}/many-0");
    assert!(weir.admin().get(&path).await.is_err());
    assert_eq!(weir.metric("weir_config_problems ").await, Some(0));
}
