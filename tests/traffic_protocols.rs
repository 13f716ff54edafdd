//! Which service and which protocol a request has: names of services, versions of HTTP, upgraded connections, and the
//! statistics that count it.

use crate::support::sidecar::Options;
use crate::support::traffic::{Mesh, entry};
use hyper::{StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::OnceCell;

/// One mesh for all tests; each test has its own hosts.
async fn mesh() -> &'static Mesh {
    static MESH: OnceCell<Mesh> = OnceCell::const_new();
    MESH.get_or_init(async || {
        let mut objects = vec![
            entry("one.test", "web", "HTTP", &[1]),
            entry("socket.test", "web", "HTTP", &[1, 2]),
            entry("stats.test", "web", "HTTP", &[1, 2]),
        ];
        objects.extend([VERSIONS, SERVICES, STATS].map(str::to_owned));
        let serve = ["--outbound-policy", "registry-only"];
        Mesh::start(&objects, Options { serve: &serve, ..Options::default() }).await
    })
    .await
}

const VERSIONS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: versions, namespace: shop}
spec:
  hosts: [plain.test, upgraded.test, followed.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: second, namespace: shop}
spec:
  hosts: [second-version.test]
  resolution: STATIC
  ports:
  - {number: $web, name: web, protocol: HTTP2, targetPort: $HTTP}
  - {number: $grpc, name: grpc, protocol: GRPC, targetPort: $HTTP}
  endpoints: [{address: 127.0.1.1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: upgraded, namespace: shop}
spec: {host: upgraded.test, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: followed, namespace: shop}
spec: {host: followed.test, trafficPolicy: {connectionPool: {http: {useClientProtocol: true}}}}
---
apiVersion: v1
kind: Service
metadata: {name: protocols, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ports:
  - {name: http2-a, port: $named, targetPort: $HTTP}
  - {name: b, port: $called, targetPort: $HTTP, appProtocol: kubernetes.io/h2c}
  - {name: http-c, port: $first, targetPort: $HTTP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: protocols-1, namespace: shop, labels: {kubernetes.io/service-name: protocols}}
addressType: IPv4
endpoints: [{addresses: [127.0.1.2], conditions: {ready: true}}]
ports: [{name: http2-a, port: $HTTP}, {name: b, port: $HTTP}, {name: http-c, port: $HTTP}]
";

#[tokio::test]
async fn the_version_of_http_towards_backends() {
    let mesh = mesh().await;
    for (port, host, from_1, from_2) in [
        ("web", "plain.test", 1, 1),
        ("web", "upgraded.test", 2, 2),
        ("web", "followed.test", 1, 2),
        ("web", "second-version.test", 2, 2),
        ("grpc", "second-version.test", 2, 2),
        ("named", "protocols", 2, 2),
        ("called", "protocols", 2, 2),
        ("first", "protocols", 1, 1),
    ] {
        let request = mesh.request("GET", port, host, "/");
        let number = |version: Version| if version == Version::HTTP_2 { 2 } else { 1 };
        assert_eq!(number(request.clone().send().await.only().version), from_1, "{host} on {port}");
        let request = mesh.request("GET", port, host, "/");
        assert_eq!(
            number(request.http2().send().await.only().version),
            from_2,
            "{host} on {port} from HTTP/2"
        );
    }
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: names, namespace: shop}
spec: {clusterIP: 10.96.0.11, ports: [{name: http, port: $web, targetPort: $HTTP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names-1, namespace: shop, labels: {kubernetes.io/service-name: names}}
addressType: IPv4
endpoints:
- {addresses: [127.0.1.3], conditions: {ready: true}}
- {addresses: [127.0.1.4], conditions: {ready: false}}
- {addresses: [127.0.1.5], conditions: {ready: false, serving: true, terminating: true}}
ports: [{name: http, port: $HTTP}]
---
apiVersion: v1
kind: Service
metadata: {name: names, namespace: other}
spec: {clusterIP: 10.96.0.12, ports: [{name: http, port: $web, targetPort: $HTTP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names-1, namespace: other, labels: {kubernetes.io/service-name: names}}
addressType: IPv4
endpoints: [{addresses: [127.0.1.4], conditions: {ready: true}}]
ports: [{name: http, port: $HTTP}]
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: names.other.svc.cluster.local, ports: [{name: http, port: $web}]}
---
apiVersion: v1
kind: Service
metadata: {name: hidden, namespace: other, annotations: {networking.istio.io/exportTo: .}}
spec: {clusterIP: 10.96.0.13, ports: [{name: http, port: $web, targetPort: $HTTP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hidden-1, namespace: other, labels: {kubernetes.io/service-name: hidden}}
addressType: IPv4
endpoints: [{addresses: [127.0.1.4], conditions: {ready: true}}]
ports: [{name: http, port: $HTTP}]
";

#[tokio::test]
async fn services_match_exactly_their_names() {
    let mesh = mesh().await;
    for (host, backend) in [
        ("names", 3),
        ("names.shop", 3),
        ("names.shop.svc", 3),
        ("names.shop.svc.cluster.local", 3),
        ("names.shop.svc.cluster.local.", 3),
        ("NAMES.shop", 3),
        ("10.96.0.11", 3),
        ("names.other", 4),
        ("10.96.0.12", 4),
        ("alias", 4),
        ("alias.shop.svc.cluster.local", 4),
    ] {
        for _ in 0..3 {
            assert_eq!(mesh.get(host, "/").send().await.backend(), backend, "{host}");
        }
    }
    for host in ["nobody.test", "hidden.other", "10.96.0.13"] {
        let answer = mesh.get(host, "/").send().await;
        assert_eq!((answer.status, answer.seen.len()), (StatusCode::BAD_GATEWAY, 0), "{host}");
    }
}

#[tokio::test]
async fn websockets_are_let_through() {
    let mesh = mesh().await;
    let request =
        mesh.get("socket.test", "/").header("connection", "upgrade").header("upgrade", "websocket");
    let response = request.begin().await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    for message in ["first", "other"] {
        socket.write_all(message.as_bytes()).await.unwrap();
        let mut echoed = [0; 5];
        socket.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, message.as_bytes());
    }
}

const STATS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: stats, namespace: shop}
spec:
  hosts: [stats.test]
  http:
  - match: [{uri: {prefix: /counted}, statPrefix: counted}]
    route: [{destination: {host: one.test}}]
  - route: [{destination: {host: one.test}}]
";

#[tokio::test]
async fn a_stat_prefix_counts_one_match() {
    let mesh = mesh().await;
    for path in ["/counted", "/counted", "/"] {
        assert_eq!(mesh.get("stats.test", path).send().await.backend(), 1);
    }
    let stats = mesh.sidecar.envoy().stats(r"\.route\.counted\.upstream_rq_total$").await.unwrap();
    assert_eq!(stats.values().sum::<u64>(), 2, "{stats:?}");
}
