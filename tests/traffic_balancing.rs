//! Load balancing: consistent hashing, round robin and localities.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::support::mesh::{Tally, until};
use crate::support::sidecar::Options;
use crate::support::traffic::{Mesh, Request, entry, tally};
use tokio::sync::OnceCell;

/// One mesh for all tests; each test has its own hosts.
async fn mesh() -> &'static Mesh {
    static MESH: OnceCell<Mesh> = OnceCell::const_new();
    MESH.get_or_init(async || {
        let hosts = ["header", "cookie", "source", "query", "maglev", "ring", "subset", "turns"];
        let mut objects =
            hosts.map(|host| entry(&format!("{host}.test"), "web", "HTTP", &[1, 2, 3])).to_vec();
        objects.extend(HASHES.map(|(name, hash)| hashed(name, hash)));
        objects.extend([BY_SUBSET, LOCALITIES].map(str::to_owned));
        Mesh::start(&objects, Options::default()).await
    })
    .await
}

/// A DestinationRule that hashes what is sent to `NAME.test`.
fn hashed(name: &str, hash: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{host: {name}.test, trafficPolicy: {{loadBalancer: {{consistentHash: {hash}}}}}}}}}"
    )
}

/// By name, what is hashed.
const HASHES: [(&str, &str); 6] = [
    ("header", "{httpHeaderName: x-user}"),
    ("cookie", "{httpCookie: {name: session, path: /here, ttl: 60s}}"),
    ("source", "{useSourceIp: true}"),
    ("query", "{httpQueryParameterName: user}"),
    ("maglev", "{httpHeaderName: x-user, maglev: {tableSize: 1021}}"),
    ("ring", "{httpHeaderName: x-user, ringHash: {minimumRingSize: 2048}}"),
];

const BY_SUBSET: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: subset, namespace: shop}
spec:
  host: subset.test
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets:
  - {name: sticky, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: subset, namespace: shop}
spec:
  hosts: [subset.test]
  http:
  - match: [{uri: {prefix: /sticky}}]
    route: [{destination: {host: subset.test, subset: sticky}}]
  - route: [{destination: {host: subset.test}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: turns, namespace: shop}
spec: {host: turns.test, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
";

/// Sends the requests of 40 clients and checks that each client always reaches the same backend and that not all reach
/// the same one.
async fn sticks(request: impl Fn(u8) -> Request) -> Vec<u8> {
    let mut found = Vec::new();
    for client in 1..=40 {
        let first = request(client).send().await.backend();
        for _ in 0..3 {
            assert_eq!(request(client).send().await.backend(), first, "client {client}");
        }
        found.push(first);
    }
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 3, "{found:?}");
    found
}

fn user(request: Request, client: u8) -> Request {
    request.header("x-user", &format!("user-{client}"))
}

#[tokio::test]
async fn a_header_decides_about_the_endpoint() {
    let mesh = mesh().await;
    sticks(|client| user(mesh.get("header.test", "/"), client)).await;
    sticks(|client| user(mesh.get("subset.test", "/sticky"), client)).await;
}

#[tokio::test]
async fn a_cookie_decides_about_the_endpoint() {
    let mesh = mesh().await;
    sticks(|client| {
        mesh.get("cookie.test", "/").header("cookie", &format!("a=b; session=s{client}"))
    })
    .await;
    // A client without the cookie receives one.
    let answer = mesh.get("cookie.test", "/").send().await;
    let given = answer.header("set-cookie");
    assert!(given.starts_with("session="), "{answer:?}");
    assert!(given.contains("Max-Age=60") && given.contains("Path=/here"), "{given}");
    let cookie = given.split(';').next().unwrap().replace('"', "");
    let (backend, request) =
        (answer.backend(), mesh.get("cookie.test", "/").header("cookie", &cookie));
    for _ in 0..5 {
        let answer = request.clone().send().await;
        assert_eq!((answer.backend(), answer.header("set-cookie")), (backend, String::new()));
    }
}

#[tokio::test]
async fn the_source_address_decides_about_the_endpoint() {
    let mesh = mesh().await;
    sticks(|client| mesh.get("source.test", "/").from(Ipv4Addr::new(127, 0, 2, client))).await;
}

#[tokio::test]
async fn a_query_parameter_decides_about_the_endpoint() {
    let mesh = mesh().await;
    sticks(|client| mesh.get("query.test", &format!("/{client}?other={client}&user=u{client}")))
        .await;
    let first = mesh.get("query.test", "/a?user=x").send().await.backend();
    assert_eq!(mesh.get("query.test", "/b?page=2&user=x").send().await.backend(), first);
}

#[tokio::test]
async fn maglev_and_ring_hash_are_two_ways_to_stick() {
    let mesh = mesh().await;
    let maglev = sticks(|client| user(mesh.get("maglev.test", "/"), client)).await;
    let ring = sticks(|client| user(mesh.get("ring.test", "/"), client)).await;
    assert_ne!(maglev, ring, "one table is the other");
    let stat = async |host, name| mesh.cluster_stat("web", "", host, name).await;
    assert!(stat("maglev.test", "maglev_lb.min_entries_per_host").await > 300);
    assert!(stat("ring.test", "ring_hash_lb.size").await >= 2048);
}

#[tokio::test]
async fn round_robin_takes_turns() {
    let mesh = mesh().await;
    for host in ["turns.test", "subset.test"] {
        let found = tally(30, || mesh.get(host, "/")).await;
        assert_eq!([found.of("v1"), found.of("v2"), found.of("v3")], [10, 10, 10], "{host}");
    }
}

const LOCALITIES: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: near, namespace: shop}
spec:
  hosts: [near.test, shares.test, labelled.test, regions.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints:
  - {address: 127.0.1.1, locality: eu/eu-a, labels: {app: other}}
  - {address: 127.0.1.2, locality: eu/eu-b, labels: {app: client}}
  - {address: 127.0.1.3, locality: us/us-a, labels: {app: other}}
  - {address: 127.0.1.4, locality: as/as-a, labels: {app: other}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: near, namespace: shop}
spec:
  host: near.test
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3600s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: regions, namespace: shop}
spec:
  host: regions.test
  trafficPolicy:
    loadBalancer: {localityLbSetting: {failover: [{from: eu, to: as}]}}
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3600s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: labelled, namespace: shop}
spec:
  host: labelled.test
  trafficPolicy:
    loadBalancer: {localityLbSetting: {failoverPriority: [app]}}
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3600s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shares, namespace: shop}
spec:
  host: shares.test
  trafficPolicy:
    loadBalancer:
      localityLbSetting: {distribute: [{from: 'eu/eu-a/*', to: {'eu/*': 75, 'us/*': 25}}]}
";

/// Checks at each step that exactly these backends respond, then makes them fail.
async fn one_after_the_other(mesh: &Mesh, host: &str, steps: &[&[u8]]) {
    let mut gone: Option<&[u8]> = None;
    for step in steps {
        let wanted: BTreeSet<u8> = step.iter().copied().collect();
        // Envoy's workers may learn of an ejection up to a second late if another one just happened.
        until("the ejected backends do not respond", async || {
            let backend = mesh.get(host, "/").send().await.backend();
            !gone.is_some_and(|gone| gone.contains(&backend))
        })
        .await;
        let mut found = BTreeSet::new();
        until("all backends have responded", async || {
            found.insert(mesh.get(host, "/").send().await.backend());
            found.len() >= wanted.len()
        })
        .await;
        for _ in 0..20 {
            found.insert(mesh.get(host, "/").send().await.backend());
        }
        assert_eq!(found, wanted, "{host} after {gone:?} are gone");
        if step != steps.last().unwrap() {
            mesh.eject(host, step).await;
        }
        gone = Some(step);
    }
}

#[tokio::test]
async fn the_nearest_locality_that_works_gets_the_requests() {
    one_after_the_other(mesh().await, "near.test", &[&[1], &[2], &[3, 4]]).await;
}

#[tokio::test]
async fn a_region_fails_over_to_its_target() {
    one_after_the_other(mesh().await, "regions.test", &[&[1], &[2], &[4], &[3]]).await;
}

#[tokio::test]
async fn labels_make_priorities() {
    one_after_the_other(mesh().await, "labelled.test", &[&[2], &[1, 3, 4]]).await;
}

#[tokio::test]
async fn localities_get_their_shares() {
    let mesh = mesh().await;
    let found = tally(400, || mesh.get("shares.test", "/")).await;
    let near = found.of("v1") + found.of("v2");
    Tally { answers: [("v1".to_owned(), near), ("v2".to_owned(), found.of("v3"))].into() }
        .assert_split(25);
    assert_eq!((near + found.of("v3"), found.of("v4")), (400, 0), "{found:?}");
    assert!(found.of("v1") > 0 && found.of("v2") > 0, "{found:?}");
}
