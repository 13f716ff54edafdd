//! Weights as runtime values, in a real Envoy: which requests go where, what the proxy has, and what weir says of it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::canary::Canary;
use crate::support::mesh::{only_yaml, route_yaml, rule_yaml, until};

const ROUTE: &str = "virtual-service.yaml";
const RULE: &str = "destination-rule.yaml";

/// How often the weights flip; `WEIR_FLIPS` overrides it.
fn flips() -> u32 {
    std::env::var("WEIR_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

/// The weights in Envoy's runtime, by cluster.
async fn layer(canary: &Canary) -> BTreeMap<String, String> {
    let body = canary.envoy.admin_get("/runtime").await.unwrap();
    let all: Value = serde_json::from_slice(&body).unwrap();
    let entries = all["entries"].as_object().unwrap().iter();
    let weights = entries.filter_map(|(key, entry)| {
        let (_, cluster) = key.strip_prefix("weir.")?.split_once(".outbound|")?;
        Some((cluster.to_owned(), entry["final_value"].as_str()?.to_owned()))
    });
    weights.collect()
}

/// The number of responses of a type.
async fn sent(canary: &Canary, kind: &str) -> u64 {
    let metric = format!("pilot_xds_pushes_total{{type=\"{kind}\"}} ");
    canary.weir.metric(&metric).await.unwrap_or(0)
}

/// The weights of v1 and v2 in the route that `weir dump` prints.
async fn dumped(canary: &Canary) -> Vec<u64> {
    let body = canary.weir.admin().get("/api/v1/dump?proxy=client-0&type=RDS").await.unwrap();
    let dump: Value = serde_json::from_slice(&body).unwrap();
    let mut found = Vec::new();
    weights(&dump, &mut found);
    found
}

fn weights(value: &Value, found: &mut Vec<u64>) {
    match value {
        Value::Object(fields) => {
            if let Some(clusters) = fields.get("weightedClusters") {
                let clusters = clusters["clusters"].as_array().unwrap().iter();
                found.extend(clusters.map(|cluster| cluster["weight"].as_u64().unwrap_or(0)));
            }
            fields.values().for_each(|value| weights(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| weights(value, found)),
        _ => {}
    }
}

async fn flip_under_load(more: &[&str]) {
    let canary = Canary::start(more).await;
    let routes = sent(&canary, "rds").await;
    let load = canary.load();
    for _ in 0..flips() {
        for percent in [100, 0] {
            canary.edit(ROUTE, &route_yaml(100 - percent, percent)).await;
            // The ACK came before these requests began.
            let tally = canary.send(50).await;
            tally.assert_split(percent);
        }
    }
    assert_eq!(load.end().failed(), 0);
    assert_eq!(sent(&canary, "rds").await, routes, "no route configuration was sent for weights");
    assert!(sent(&canary, "rtds").await >= u64::from(flips()) * 2);
}

#[tokio::test]
async fn no_request_fails_or_goes_to_the_wrong_side_over_delta() {
    flip_under_load(&[]).await;
}

#[tokio::test]
async fn no_request_fails_or_goes_to_the_wrong_side_over_sotw() {
    flip_under_load(&["--sotw"]).await;
}

#[tokio::test]
async fn weir_tells_the_weight_in_force_and_the_route_follows() {
    let canary = Canary::with(&[], &["--routes-follow", "0.5"]).await;
    let before = sent(&canary, "rds").await;
    canary.edit(ROUTE, &route_yaml(70, 30)).await;
    assert_eq!(dumped(&canary).await, [70, 30]);
    canary.send(1000).await.assert_split(30);
    until("the route has followed", async || sent(&canary, "rds").await == before + 1).await;
    until("the layer is empty", async || layer(&canary).await.is_empty()).await;
    canary.send(1000).await.assert_split(30);
    assert_eq!(dumped(&canary).await, [70, 30]);
}

#[tokio::test]
async fn a_route_that_changes_otherwise_takes_its_own_numbers() {
    let canary = Canary::start(&[]).await;
    canary.edit(ROUTE, &route_yaml(50, 50)).await;
    assert_eq!(layer(&canary).await.len(), 2);
    let timeout = |text: String| text.replace("  - route:", "  - timeout: 7s\n    route:");
    let load = canary.load();
    canary.edit(ROUTE, &timeout(route_yaml(0, 100))).await;
    canary.send(200).await.assert_split(100);
    assert_eq!(layer(&canary).await.len(), 0, "the keys of the old route are gone");
    canary.edit(ROUTE, &timeout(route_yaml(100, 0))).await;
    canary.send(200).await.assert_split(0);
    assert_eq!(load.end().failed(), 0);
}

#[tokio::test]
async fn another_sum_of_weights_comes_with_the_route() {
    let canary = Canary::start(&[]).await;
    canary.edit(ROUTE, &route_yaml(60, 40)).await;
    let routes = sent(&canary, "rds").await;
    canary.edit(ROUTE, &route_yaml(1, 3)).await;
    assert_eq!(sent(&canary, "rds").await, routes + 1);
    assert_eq!(layer(&canary).await.len(), 0);
    canary.send(1000).await.assert_split(75);
}

#[tokio::test]
async fn weights_that_are_all_zero_never_reach_the_runtime() {
    let canary = Canary::start(&[]).await;
    canary.edit(ROUTE, &route_yaml(60, 40)).await;
    canary.edit(ROUTE, &route_yaml(0, 0)).await;
    assert_eq!(layer(&canary).await.len(), 0);
    let tally = canary.send(50).await;
    assert_eq!(tally.answers.keys().map(String::as_str).collect::<Vec<_>>(), ["503"]);
    canary.edit(ROUTE, &route_yaml(0, 100)).await;
    canary.send(50).await.assert_split(100);
}

/// Envoy keeps its runtime values while weir is away, and its routes have other numbers.
async fn weir_is_away(change: bool) {
    let mut canary = Canary::start(&[]).await;
    canary.edit(ROUTE, &route_yaml(0, 100)).await;
    assert_eq!(layer(&canary).await.len(), 2);
    let load = canary.load();
    canary.kill_weir();
    let percent = if change { 0 } else { 100 };
    if change {
        canary.objects.write(ROUTE, &route_yaml(100, 0));
    }
    canary.revive().await;
    canary.weir.acked_after(0).await;
    canary.send(200).await.assert_split(percent);
    until("the layer is empty", async || layer(&canary).await.is_empty()).await;
    canary.send(200).await.assert_split(percent);
    let tally = load.end();
    assert_eq!(tally.failed(), 0);
    // While nothing changes, no request takes the numbers that the route had before.
    assert!(change || tally.of("v1") == 0, "{tally:?}");
}

#[tokio::test]
async fn a_restart_of_weir_changes_no_weight() {
    weir_is_away(false).await;
}

#[tokio::test]
async fn a_weight_that_changes_while_weir_is_away_arrives() {
    weir_is_away(true).await;
}

#[tokio::test]
async fn a_proxy_whose_weir_stops_using_the_runtime_gets_its_weights_by_routes() {
    let mut canary = Canary::start(&[]).await;
    canary.edit(ROUTE, &route_yaml(0, 100)).await;
    let load = canary.load();
    canary.kill_weir();
    canary.revive_with(&["--weights", "routes"]).await;
    canary.weir.acked_after(0).await;
    assert_eq!(layer(&canary).await.len(), 0);
    canary.send(200).await.assert_split(100);
    canary.edit(ROUTE, &route_yaml(100, 0)).await;
    canary.send(200).await.assert_split(0);
    assert_eq!((layer(&canary).await.len(), load.end().failed()), (0, 0));
}

#[tokio::test]
async fn a_proxy_without_the_layer_gets_its_weights_by_routes() {
    let canary = Canary::start(&["--weights", "routes"]).await;
    let routes = sent(&canary, "rds").await;
    canary.edit(ROUTE, &route_yaml(0, 100)).await;
    assert_eq!((sent(&canary, "rds").await, sent(&canary, "rtds").await), (routes + 1, 0));
    canary.send(200).await.assert_split(100);
}

#[tokio::test]
async fn a_subset_of_weight_zero_may_be_undefined() {
    let canary = Canary::start(&[]).await;
    let load = canary.load();
    canary.edit(RULE, &rule_yaml(&["v1"])).await;
    canary.send(200).await.assert_split(0);
    canary.edit(RULE, &rule_yaml(&["v1", "v2"])).await;
    canary.edit(ROUTE, &route_yaml(0, 100)).await;
    canary.send(200).await.assert_split(100);
    canary.edit(ROUTE, &only_yaml("v1")).await;
    assert_eq!(load.end().failed(), 0);
}
