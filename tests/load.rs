//! What proxies report of their requests, on real Envoys: shares, bounds and error rates of weighted routes.

use std::net::Ipv4Addr;
use std::process::Command;

use serde_json::{Value, json};
use tonic::Streaming;
use weir::admin::api::v1::{self, admin_client::AdminClient};

use crate::support::canary::Canary;
use crate::support::cutter::Cutter;
use crate::support::kube_canary::KubeCanary;
use crate::support::mesh::{DEADLINE, Serve, route_yaml, send, start_envoy, until};
use crate::support::network;
use crate::support::process::free_port;
use crate::support::sidecar::Options;
use crate::support::traffic::{Mesh, entry, tally};

/// Quick reports that count for a long time.
const QUICK: [&str; 4] = ["--load-report-interval", "0.2", "--load-window", "60"];

/// The splits as they change.
struct Updates(Streaming<v1::ListSplitsResponse>);

impl Updates {
    async fn of(weir: &Serve) -> Self {
        Self::at(weir.admin).await
    }

    async fn at(port: u16) -> Self {
        let mut client = AdminClient::connect(format!("http://127.0.0.1:{port}")).await.unwrap();
        let request = v1::ListSplitsRequest::default();
        Self(client.watch_splits(request).await.unwrap().into_inner())
    }

    /// The only split after the next change.
    async fn next(&mut self) -> v1::Split {
        let update = tokio::time::timeout(DEADLINE, self.0.message()).await.expect("an update");
        let mut splits = update.unwrap().expect("the stream goes on").splits;
        assert_eq!(splits.len(), 1, "{splits:?}");
        splits.remove(0)
    }

    /// The next split with which this holds.
    async fn until(&mut self, what: &str, mut holds: impl FnMut(&v1::Split) -> bool) -> v1::Split {
        let mut last = None;
        let found = async {
            loop {
                let split = self.next().await;
                if holds(&split) {
                    return split;
                }
                last = Some(split);
            }
        };
        let found = tokio::time::timeout(DEADLINE, found).await.ok();
        found.unwrap_or_else(|| panic!("waited for: {what}; the last one: {last:#?}"))
    }
}

fn observed(split: &v1::Split, n: usize) -> Option<v1::Observed> {
    split.shares[n].observed
}

fn requests(split: &v1::Split) -> u64 {
    split.shares.iter().filter_map(|share| share.observed).map(|it| u64::from(it.requests)).sum()
}

/// Wilson's interval at 99 %, in percent.
fn wilson(part: u32, all: u64) -> (f64, f64) {
    let (z2, n, p) = (6.634_896_601_021_214, all as f64, f64::from(part) / all as f64);
    let center = p + z2 / (2.0 * n);
    let half = (z2 * (p * (1.0 - p) / n + z2 / (4.0 * n * n))).sqrt();
    let scale = 100.0 / (1.0 + z2 / n);
    ((center - half) * scale, (center + half) * scale)
}

#[tokio::test]
async fn observed_shares_lie_in_the_bounds_that_their_counts_allow() {
    // Each window is one report.
    let flags = ["--load-report-interval", "0.1", "--load-window", "0.1"];
    let canary = Canary::with(&[], &flags).await;
    canary.edit("virtual-service.yaml", &route_yaml(80, 20)).await;
    let load = canary.load();
    let mut updates = Updates::of(&canary.weir).await;
    let (mut windows, mut hits, mut last) = (0, 0, None);
    while windows < 200 {
        let split = updates.until("requests", |split| requests(split) > 0).await;
        let seen = observed(&split, 1).unwrap();
        if last.replace(seen) == Some(seen) {
            continue;
        }
        let all = requests(&split);
        let (lower, upper) = wilson(seen.requests, all);
        assert!(
            seen.lower <= lower.max(0.0) && seen.upper >= upper.min(100.0),
            "{seen:?} of {all}"
        );
        assert!(lower - seen.lower < 0.02 || seen.requests == 0, "{seen:?} of {all}");
        windows += 1;
        hits += u32::from(seen.lower <= 20.0 && 20.0 <= seen.upper);
    }
    let tally = load.end();
    assert_eq!(tally.failed(), 0, "{tally:?}");
    assert!(hits >= 190, "the true share is in the bounds of {hits} of {windows} windows");
}

/// The metric of this result and subset.
async fn metric(weir: &Serve, subset: &str, result: &str) -> u64 {
    let text = weir.admin().get("/metrics").await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let own = text.lines().filter(|line| {
        line.starts_with("weir_observed_requests_total{")
            && line.contains(&format!("subset=\"{subset}\""))
            && line.contains(&format!("result=\"{result}\""))
    });
    own.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// The effective weight of this subset in the metrics.
async fn weight(weir: &Serve, subset: &str) -> Option<f64> {
    let text = weir.admin().get("/metrics").await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let line = text.lines().find(|line| {
        line.starts_with("weir_effective_weight_ratio{")
            && line.contains(&format!("subset=\"{subset}\""))
    });
    line?.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test]
async fn every_request_is_counted_once() {
    let canary = Canary::with(&[], &QUICK).await;
    canary.edit("virtual-service.yaml", &route_yaml(60, 40)).await;
    let mut updates = Updates::of(&canary.weir).await;
    updates.until("a report", |split| observed(split, 0).is_some()).await;
    let mut sent = 0;
    for _ in 0..5 {
        let tally = canary.send(200).await;
        assert_eq!(tally.failed(), 0, "{tally:?}");
        sent += tally.total();
        let split = updates
            .until("all have ended", |split| {
                let all = split.shares.iter().filter_map(|share| share.observed);
                all.map(|it| u64::from(it.ended)).sum::<u64>() >= sent
            })
            .await;
        assert_eq!(requests(&split), sent, "{split:#?}");
        assert!(split.shares.iter().all(|share| share.observed.unwrap().in_progress == 0));
    }
    for result in ["issued", "success"] {
        let sum =
            metric(&canary.weir, "v1", result).await + metric(&canary.weir, "v2", result).await;
        assert_eq!(sum, sent, "{result}");
    }
    assert_eq!(metric(&canary.weir, "v2", "error").await, 0);
    assert_eq!(weight(&canary.weir, "v1").await, Some(0.6));
    assert_eq!(weight(&canary.weir, "v2").await, Some(0.4));
}

async fn weights_move(bootstrap: &[&str]) {
    let canary = Canary::with(bootstrap, &QUICK).await;
    canary.edit("virtual-service.yaml", &route_yaml(0, 100)).await;
    let load = canary.load();
    let mut updates = Updates::of(&canary.weir).await;
    for n in 0..8 {
        let (v1, v2) = if n % 2 == 0 { (100, 0) } else { (0, 100) };
        canary.edit("virtual-service.yaml", &route_yaml(v1, v2)).await;
        let mut enough = 0;
        updates
            .until("several reports with the new weights", |split| {
                let is_new = split.shares[0].effective == f64::from(v1);
                if is_new && requests(split) > 0 {
                    for (share, percent) in split.shares.iter().zip([v1, v2]) {
                        let seen = share.observed.unwrap();
                        assert_eq!(seen.percent, Some(f64::from(percent)), "{split:#?}");
                    }
                    enough += 1;
                }
                enough == 3
            })
            .await;
    }
    let tally = load.end();
    assert_eq!(tally.failed(), 0, "{tally:?}");
}

#[tokio::test]
async fn requests_under_old_weights_are_not_counted_with_those_in_runtime_values() {
    weights_move(&[]).await;
}

#[tokio::test]
async fn requests_under_old_weights_are_not_counted_with_those_in_routes() {
    weights_move(&["--weights", "routes"]).await;
}

#[tokio::test]
async fn a_proxy_that_does_not_report_is_said_to_be_unseen() {
    let canary = Canary::with(&[], &QUICK).await;
    canary.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    let folder = tempfile::tempdir().unwrap();
    let more = ["--pod", "client-1", "--intercept", "redirect", "--load-reports", "off"];
    let _silent = start_envoy(folder.path(), canary.weir.xds, &more).await;
    let mut updates = Updates::of(&canary.weir).await;
    let split = updates
        .until("one of two proxies has reported", |split| {
            let seen = split.observation.as_ref().unwrap();
            (seen.reporting, seen.in_scope) == (1, 2)
        })
        .await;
    assert_eq!((split.live, split.in_scope), (2, 2));
    let admin = format!("127.0.0.1:{}", canary.weir.admin);
    let printed = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["splits", "--admin", &admin])
        .output()
        .unwrap();
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.contains("1 of 2 proxies report"), "{text}");
}

const RULE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web.example
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web.example]
  http:
  - match: [{headers: {x-tester: {exact: 'yes'}}}]
    route: [{destination: {host: web.example, subset: v2}}]
  - route:
    - {destination: {host: web.example, subset: v1}, weight: 50}
    - {destination: {host: web.example, subset: v2}, weight: 50}
";

async fn get(mesh: &Mesh, path: &str) -> Value {
    let body = mesh.sidecar.weir().get(path).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn errors_of_the_new_version_make_it_worse() {
    let objects = [entry("web.example", "web", "HTTP", &[1, 2]), RULE.to_owned()];
    let mesh = Mesh::start(&objects, Options { serve: &QUICK, ..Options::default() }).await;
    let port = mesh.sidecar.weir_port();
    let mut updates = Updates::at(port).await;
    let split = updates.until("a report", |split| observed(split, 1).is_some()).await;
    assert_eq!(observed(&split, 1).unwrap().verdict(), v1::Verdict::TooFewRequests);
    let path = "/api/v1/observed/shop/web?subset=v2";
    assert_eq!(get(&mesh, path).await["verdict"], "TOO_FEW_REQUESTS");

    let tally = tally(300, || mesh.get("web.example", "/").answer_of(2, "500")).await;
    let split = updates.until("all requests", |split| requests(split) >= 300).await;
    let (first, second) = (observed(&split, 0).unwrap(), observed(&split, 1).unwrap());
    assert_eq!((first.requests, second.requests), (tally.of("v1") as u32, tally.of("500") as u32));
    assert_eq!((first.errors, second.errors), (0, second.requests));
    assert_eq!(second.verdict(), v1::Verdict::Worse);
    assert!(second.difference_lower.unwrap() > 90.0, "{second:?}");

    // What a tool reads.
    let answer = get(&mesh, path).await;
    assert_eq!(answer["verdict"], "WORSE");
    let seen = &answer["share"]["observed"];
    assert_eq!((&seen["errorPercent"], &seen["requests"]), (&100.into(), &second.requests.into()));
    assert_eq!(answer["route"]["field"], "spec.http[1]");
    // The other route to v2 is in the counts.
    let others = answer["observation"]["sharedWith"].as_array().unwrap();
    assert_eq!(others.len(), 1, "{answer:#}");
    assert_eq!(others[0]["field"], "spec.http[0]");
    let missing = mesh.sidecar.weir().get("/api/v1/observed/shop/web?subset=v3").await;
    assert!(missing.is_err());
}

const TCP: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: shop}
spec:
  host: db.example
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.example]
  tcp:
  - route:
    - {destination: {host: db.example, subset: v1}, weight: 50}
    - {destination: {host: db.example, subset: v2}, weight: 50}
";

#[tokio::test]
async fn connections_of_a_tcp_route_count_as_requests() {
    let service = entry("db.example", "db", "TCP", &[1, 2])
        .replace("  resolution: STATIC", "  addresses: [127.0.0.1]\n  resolution: STATIC");
    let objects = [service, TCP.to_owned()];
    let mesh = Mesh::start(&objects, Options { serve: &QUICK, ..Options::default() }).await;
    let mut updates = Updates::at(mesh.sidecar.weir_port()).await;
    updates.until("a report", |split| observed(split, 1).is_some()).await;
    let mut to = [0_u32; 2];
    for _ in 0..40 {
        let stream = mesh.connect("db", std::net::Ipv4Addr::LOCALHOST).await;
        let (backend, _) = crate::support::traffic::greeting(stream).await.unwrap();
        to[usize::from(backend) - 1] += 1;
    }
    let split = updates.until("all connections", |split| requests(split) >= 40).await;
    let seen = [0, 1].map(|n| observed(&split, n).unwrap().requests);
    assert_eq!(seen, to, "{split:#?}");
}

/// Two replicas that know of each other, at addresses of the network of [`network::is_inside`].
async fn replicas(canary: &KubeCanary) -> [Serve; 2] {
    let ports = [0, 1].map(|_| (free_port(), free_port()));
    let replicas = [0, 1].map(|n| {
        let kubeconfig = canary.cluster.kubeconfig_path().to_str().unwrap();
        let pod = format!("weir-{n}");
        let who =
            ["--kubeconfig", kubeconfig, "--pod-namespace", "weir-system", "--pod-name", &pod];
        let flags = ["--replicas-service", "weir-replicas", "--status", "off"];
        let load = ["--load-report-interval", "0.2", "--load-window", "600"];
        let args = [&who[..], &flags[..], &load[..]].concat();
        Serve::start_at(Ipv4Addr::UNSPECIFIED, &args, ports[n].0, ports[n].1)
    });
    for (n, replica) in replicas.iter().enumerate() {
        replica.ready().await;
        let pod = format!("weir-{n}");
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": pod, "namespace": "weir-system",
                         "labels": {"kubernetes.io/service-name": "weir-replicas"}},
            "ports": [{"name": "http-monitoring", "port": replica.admin, "protocol": "TCP"}],
            "endpoints": [{"addresses": [format!("10.1.0.{}", n + 1)],
                           "targetRef": {"kind": "Pod", "name": pod, "namespace": "weir-system"},
                           "conditions": {"ready": true, "serving": true, "terminating": false}}]});
        canary.cluster.apply(&slice.to_string());
    }
    replicas
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_add_up_what_a_proxy_reports_that_moves_between_them() {
    if !network::is_inside() {
        return;
    }
    let name = "replicas_add_up_what_a_proxy_reports_that_moves_between_them";
    let Some(mut canary) = KubeCanary::start(name).await else { return };
    canary.route(60).await;
    let replicas = replicas(&canary).await;
    let ways = [Cutter::start(replicas[0].xds).await, Cutter::start(replicas[1].xds).await];
    ways[1].refuse(true);
    let folder = tempfile::tempdir().unwrap();
    let more = ["--pod", "client-0", "--intercept", "none"];
    let known = [ways[0].port, ways[1].port];
    let _envoy = canary.envoy(folder.path(), &known, &more).await;
    let port = canary.ports.service;
    let mut sent = 0;
    for here in 0..2 {
        if here == 1 {
            ways[0].refuse(true);
            ways[1].refuse(false);
            ways[0].cut();
            until("the proxy has moved", async || {
                replicas[0].proxies().await.is_some_and(|all| all.is_empty())
            })
            .await;
        }
        let mut own = Updates::of(&replicas[here]).await;
        own.until("the proxy reports here", |split| {
            let seen = split.observation.as_ref().unwrap();
            (split.in_scope, seen.reporting, seen.missing_replicas.len()) == (1, 1, 0)
        })
        .await;
        let tally = tokio::task::spawn_blocking(move || send(port, 200)).await.unwrap();
        assert_eq!(tally.failed(), 0, "{tally:?}");
        sent += tally.total();
        for replica in &replicas {
            let mut updates = Updates::of(replica).await;
            let split = updates.until("all of them", |split| requests(split) >= sent).await;
            assert_eq!(requests(&split), sent, "{split:#?}");
            let seen = split.observation.unwrap();
            assert_eq!((seen.reporting, seen.in_scope, seen.missing_replicas.len()), (1, 1, 0));
        }
    }
}
