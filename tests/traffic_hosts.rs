//! What happens to requests by the host that they name: hosts that share a port, that several objects name, that stand for
//! others, and that are addresses.

use crate::support::sidecar::Options;
use crate::support::traffic::{Mesh, entry, tally};
use tokio::sync::OnceCell;

/// One mesh for all tests: each has hosts of its own in it.
async fn mesh() -> &'static Mesh {
    static MESH: OnceCell<Mesh> = OnceCell::const_new();
    MESH.get_or_init(async || {
        let mut objects = vec![
            entry("three.test", "shared", "HTTP", &[3]),
            entry("address.test", "web", "HTTP", &[4]),
        ];
        objects.extend([SHARED, MERGED, MORE, ALIAS, ADDRESS].map(str::to_owned));
        Mesh::start(&objects, Options::default()).await
    })
    .await
}

const SHARED: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one, namespace: shop, creationTimestamp: '2020-01-01T00:00:00Z'}
spec:
  hosts: [one.test]
  resolution: STATIC
  ports: [{number: $shared, name: web, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: two, namespace: shop}
spec:
  hosts: ['*.two.test']
  resolution: STATIC
  ports: [{number: $shared, name: web, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.2}]
";

#[tokio::test]
async fn requests_go_by_their_host_at_a_port_of_which_some_do_not_say_the_protocol() {
    let mesh = mesh().await;
    for (host, backend) in
        [("one.test", 1), ("any.two.test", 2), ("three.test", 3), ("ONE.test:80", 1)]
    {
        let answer = mesh.request("GET", "shared", host, "/").send().await;
        assert_eq!(answer.backend(), backend, "{host}");
        assert_eq!(
            mesh.request("GET", "shared", host, "/").http2().send().await.backend(),
            backend,
            "{host}"
        );
    }
}

const MERGED: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: merged-a, namespace: shop}
spec:
  hosts: [merged.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: merged-b, namespace: shop}
spec:
  hosts: [merged.test]
  resolution: STATIC
  ports: [{number: $other, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.2}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: merged-c, namespace: shop}
spec:
  hosts: [merged.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.3}]
";

#[tokio::test]
async fn entries_of_one_host_share_their_ports_and_endpoints() {
    let mesh = mesh().await;
    let found = tally(40, || mesh.get("merged.test", "/")).await;
    assert_eq!(found.answers.keys().collect::<Vec<_>>(), ["v1", "v3"]);
    let found = tally(10, || mesh.request("GET", "other", "merged.test", "/")).await;
    assert_eq!(found.answers.keys().collect::<Vec<_>>(), ["v2"]);
}

const MORE: &str = "
apiVersion: v1
kind: Service
metadata: {name: more, namespace: shop}
spec: {clusterIP: 10.96.0.30, ports: [{name: http, port: $web, targetPort: $HTTP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: more-1, namespace: shop, labels: {kubernetes.io/service-name: more}}
addressType: IPv4
endpoints: [{addresses: [127.0.1.1], conditions: {ready: true}}]
ports: [{name: http, port: $HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: more, namespace: shop}
spec:
  hosts: [more.shop.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.2}]
";

#[tokio::test]
async fn an_entry_adds_endpoints_to_a_service() {
    let mesh = mesh().await;
    let found = tally(40, || mesh.get("more.shop", "/")).await;
    assert_eq!(found.answers.keys().collect::<Vec<_>>(), ["v1", "v2"]);
}

const ALIAS: &str = "
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: chain.shop.svc.cluster.local, ports: [{name: http, port: $web}]}
---
apiVersion: v1
kind: Service
metadata: {name: chain, namespace: shop}
spec: {type: ExternalName, externalName: address.test}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: alias, namespace: shop, creationTimestamp: '2020-01-01T00:00:00Z'}
spec:
  hosts: [alias]
  http:
  - headers: {request: {set: {x-rule: alias}}}
    route: [{destination: {host: alias}}]
";

#[tokio::test]
async fn an_alias_has_rules_of_its_own_by_all_its_names() {
    let mesh = mesh().await;
    for (host, rule) in [
        ("alias", "alias"),
        ("alias.shop", "alias"),
        ("alias.shop.svc", "alias"),
        ("alias.shop.svc.cluster.local", "alias"),
        ("chain.shop", "address"),
        ("address.test", "address"),
    ] {
        let answer = mesh.get(host, "/").send().await;
        assert_eq!(
            (answer.backend(), answer.only().header("x-rule")),
            (4, rule.to_owned()),
            "{host}"
        );
    }
}

const ADDRESS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: address, namespace: shop}
spec:
  hosts: [address.test, '2001:db8::77', 203.0.113.77]
  http:
  - headers: {request: {set: {x-rule: address}}}
    route: [{destination: {host: address.test}}]
";

#[tokio::test]
async fn addresses_are_hosts() {
    let mesh = mesh().await;
    for host in ["[2001:db8::77]", "[2001:DB8::77]:8080", "203.0.113.77", "203.0.113.77:8080"] {
        let answer = mesh.get(host, "/").send().await;
        assert_eq!(
            (answer.backend(), answer.only().header("x-rule")),
            (4, "address".to_owned()),
            "{host}"
        );
    }
}
