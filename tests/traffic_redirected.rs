//! Traffic redirected to Envoy as in a pod: outbound traffic is routed by its original destination, and inbound traffic
//! passes through Envoy.

use std::net::Ipv4Addr;

use crate::support::network::is_inside;
use crate::support::sidecar::Options;
use crate::support::traffic::{Mesh, Request, connect, greeting};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The address of the workload, which is the sixth backend.
const WORKLOAD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 6);
/// The address of its caller.
const CALLER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 7);

async fn mesh(objects: &[&str], policy: &str) -> Mesh {
    let objects: Vec<_> = objects.iter().map(|text| (*text).to_owned()).collect();
    // Unreferenced clusters are removed at once, so that nothing lives by chance.
    let (serve, bootstrap) = (
        ["--outbound-policy", policy, "--grace", "0"],
        ["--intercept", "redirect", "--ip", "10.1.0.6"],
    );
    Mesh::start_in(
        [10, 1, 0],
        &objects,
        Options { serve: &serve, bootstrap: &bootstrap, ..Options::default() },
    )
    .await
}

/// A request of the workload to an address.
fn get(mesh: &Mesh, to: [u8; 4], port: u16, host: &str) -> Request {
    mesh.request("GET", "HTTP", host, "/").from(WORKLOAD).to((to, port).into())
}

/// The backend that a new connection reaches, if any.
async fn backend(from: Ipv4Addr, to: [u8; 4], port: u16) -> Option<u8> {
    let stream = connect(from, (to, port).into()).await.ok()?;
    greeting(stream).await.map(|(backend, _)| backend)
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: $HTTP}, {name: tcp, port: 5432, targetPort: $TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1], conditions: {ready: true}}]
ports: [{name: http, port: $HTTP}, {name: tcp, port: $TCP}]
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80, targetPort: $HTTP}, {name: tcp, port: 5432, targetPort: $TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: other-1, namespace: shop, labels: {kubernetes.io/service-name: other}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.2], conditions: {ready: true}}]
ports: [{name: http, port: $HTTP}, {name: tcp, port: $TCP}]
";

#[tokio::test]
async fn services_are_called_by_name_in_http_and_by_address_otherwise() {
    if !is_inside() {
        return;
    }
    let mesh = mesh(&[SERVICES], "allow-any").await;
    // HTTP is routed by host, regardless of the destination address.
    for (host, to, backend) in
        [("web", 1, 1), ("other", 2, 2), ("10.96.0.2", 2, 2), ("other", 1, 2)]
    {
        let answer = get(&mesh, [10, 96, 0, to], 80, host).send().await;
        assert_eq!(answer.backend(), backend, "{host}");
        // Envoy's own source address, which is not redirected.
        assert_ne!(answer.only().peer.ip(), WORKLOAD);
    }
    assert_eq!(backend(WORKLOAD, [10, 96, 0, 1], 5432).await, Some(1));
    assert_eq!(backend(WORKLOAD, [10, 96, 0, 2], 5432).await, Some(2));
}

#[tokio::test]
async fn unknown_hosts_pass_through() {
    if !is_inside() {
        return;
    }
    let mesh = mesh(&[SERVICES], "allow-any").await;
    let answer = get(&mesh, [10, 1, 0, 4], mesh.backends.http, "nobody.test").send().await;
    assert_eq!(answer.backend(), 4);
    assert_eq!(backend(WORKLOAD, [10, 1, 0, 5], mesh.backends.tcp).await, Some(5));
    assert_eq!(mesh.sidecar.stat("cluster.PassthroughCluster;.upstream_cx_total").await, 2);
}

#[tokio::test]
async fn unknown_hosts_are_blocked_in_registry_only_mode() {
    if !is_inside() {
        return;
    }
    let mesh = mesh(&[SERVICES], "registry-only").await;
    assert_eq!(backend(WORKLOAD, [10, 1, 0, 5], mesh.backends.tcp).await, None);
    assert_eq!(get(&mesh, [10, 96, 0, 1], 80, "web").send().await.backend(), 1);
    assert_eq!(get(&mesh, [10, 96, 0, 1], 80, "nobody.test").send().await.status, 502);
}

const HEADLESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: pods, namespace: shop}
spec:
  clusterIP: None
  ports: [{name: http, port: $HTTP, targetPort: $HTTP}, {name: tcp, port: $TCP, targetPort: $TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pods-1, namespace: shop, labels: {kubernetes.io/service-name: pods}}
addressType: IPv4
endpoints:
- {addresses: [10.1.0.1], conditions: {ready: true}}
- {addresses: [10.1.0.2], conditions: {ready: true}}
ports: [{name: http, port: $HTTP}, {name: tcp, port: $TCP}]
";

#[tokio::test]
async fn pods_of_headless_services_are_called_by_their_addresses() {
    if !is_inside() {
        return;
    }
    let mesh = mesh(&[HEADLESS], "registry-only").await;
    for pod in [1, 2] {
        for host in ["pods".to_owned(), format!("pod-{pod}.pods.shop.svc.cluster.local")] {
            let answer = get(&mesh, [10, 1, 0, pod], mesh.backends.http, &host).send().await;
            assert_eq!(answer.backend(), pod, "{host}");
        }
        assert_eq!(backend(WORKLOAD, [10, 1, 0, pod], mesh.backends.tcp).await, Some(pod));
    }
    assert_eq!(
        backend(WORKLOAD, [10, 1, 0, 3], mesh.backends.tcp).await,
        None,
        "this one is not one of its pods"
    );
    assert!(
        mesh.cluster_stat("HTTP", "", "pods.shop.svc.cluster.local", "upstream_rq_total").await
            == 4
    );
    assert!(
        mesh.cluster_stat("TCP", "", "pods.shop.svc.cluster.local", "upstream_cx_total").await == 2
    );
}

const ORIGINAL: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec:
  hosts: ['*.wild.test']
  resolution: NONE
  ports: [{number: $HTTP, name: web, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: through, namespace: shop}
spec:
  hosts: [through.test]
  resolution: STATIC
  ports: [{number: $HTTP, name: web, protocol: HTTP}]
  endpoints: [{address: 10.1.0.1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: through, namespace: shop}
spec: {host: through.test, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: subnets, namespace: shop}
spec:
  hosts: [subnets.test]
  addresses: [10.97.0.0/16]
  resolution: STATIC
  ports: [{number: 6000, name: tcp, protocol: TCP, targetPort: $TCP}]
  endpoints: [{address: 10.1.0.1, labels: {version: v1}}, {address: 10.1.0.2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: subnets, namespace: shop}
spec:
  host: subnets.test
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: subnets, namespace: shop}
spec:
  hosts: [subnets.test]
  tcp:
  - match: [{destinationSubnets: [10.97.2.0/24, 10.97.3.3]}]
    route: [{destination: {host: subnets.test, subset: v2}}]
  - route: [{destination: {host: subnets.test, subset: v1}}]
";

#[tokio::test]
async fn the_original_destination_is_used_on_request_of_a_service_or_rule() {
    if !is_inside() {
        return;
    }
    let mesh = mesh(&[ORIGINAL], "registry-only").await;
    for (host, backend) in [("a.wild.test", 3), ("b.wild.test", 4), ("through.test", 5)] {
        let answer = get(&mesh, [10, 1, 0, backend], mesh.backends.http, host).send().await;
        assert_eq!(answer.backend(), backend, "{host}");
    }
    for (to, wanted) in
        [([10, 97, 0, 1], 1), ([10, 97, 2, 1], 2), ([10, 97, 3, 3], 2), ([10, 97, 3, 4], 1)]
    {
        assert_eq!(backend(WORKLOAD, to, 6000).await, Some(wanted), "{to:?}");
    }
}

const UNKNOWN: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partner, namespace: shop, creationTimestamp: '2020-01-01T00:00:00Z'}
spec:
  hosts: [partner.test]
  resolution: STATIC
  ports: [{number: $HTTP, name: web}, {number: $TCP, name: bytes}]
  endpoints: [{address: 10.1.0.3}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop, creationTimestamp: '2021-01-01T00:00:00Z'}
spec:
  hosts: ['*.wild.test']
  resolution: NONE
  ports: [{number: $HTTP, name: web}]
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: $HTTP, targetPort: $HTTP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1], conditions: {ready: true}}]
ports: [{name: http, port: $HTTP}]
";

#[tokio::test]
async fn an_entry_that_does_not_say_its_protocol_leaves_others_their_requests() {
    if !is_inside() {
        return;
    }
    let mesh = mesh(&[UNKNOWN], "allow-any").await;
    let http = mesh.backends.http;
    for (to, host, backend) in [
        ([10, 96, 0, 9], "api", 1),
        ([10, 1, 0, 5], "partner.test", 3),
        ([10, 1, 0, 4], "a.wild.test", 4),
        ([10, 1, 0, 5], "nobody.test", 5),
    ] {
        assert_eq!(get(&mesh, to, http, host).send().await.backend(), backend, "{host}");
        assert_eq!(get(&mesh, to, http, host).http2().send().await.backend(), backend, "{host}");
    }
    // What is no HTTP is the entry's.
    let mut stream = connect(WORKLOAD, ([10, 1, 0, 5], mesh.backends.tcp).into()).await.unwrap();
    stream.write_all(b"\x01\x02").await.unwrap();
    assert_eq!(greeting(stream).await.map(|(backend, _)| backend), Some(3));
}

const OWN: &str = "
apiVersion: v1
kind: Service
metadata: {name: own, namespace: shop}
spec:
  clusterIP: 10.96.0.6
  ports: [{name: http, port: 80, targetPort: $HTTP}, {name: tcp, port: 5432, targetPort: $TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: own-1, namespace: shop, labels: {kubernetes.io/service-name: own}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.6], conditions: {ready: true}}]
ports: [{name: http, port: $HTTP}, {name: tcp, port: $TCP}]
";

#[tokio::test]
async fn inbound_traffic_passes_through_the_proxy() {
    if !is_inside() {
        return;
    }
    let mesh = mesh(&[OWN], "registry-only").await;
    let (http, tcp, https) = (mesh.backends.http, mesh.backends.tcp, mesh.backends.https);
    let own = WORKLOAD.octets();
    for request in [get(&mesh, own, http, "own"), get(&mesh, own, http, "any.name").http2()] {
        let answer = request.from(CALLER).send().await;
        assert_eq!(
            (answer.backend(), answer.only().peer.ip()),
            (6, Ipv4Addr::new(127, 0, 0, 6).into())
        );
        assert_eq!(answer.header("server"), "istio-envoy");
    }
    assert_eq!(backend(CALLER, own, tcp).await, Some(6));
    let stat = async |name: String| mesh.sidecar.stat(&name).await;
    assert_eq!(stat(format!("cluster.inbound|{http}||;.upstream_rq_total")).await, 2);
    assert_eq!(stat(format!("cluster.inbound|{tcp}||;.upstream_cx_total")).await, 1);

    // Traffic to a port without a service is passed through too, here TLS.
    let stream = connect(CALLER, (WORKLOAD, https).into()).await.unwrap();
    let name = "own.secure.test".try_into().unwrap();
    mesh.certificates.connector().connect(name, stream).await.unwrap();
    assert_eq!(stat("cluster.InboundPassthroughCluster;.upstream_cx_total".to_owned()).await, 1);
}

#[tokio::test]
async fn open_connections_go_on_when_their_pod_leaves_every_service() {
    if !is_inside() {
        return;
    }
    let mut mesh = mesh(&[OWN], "registry-only").await;
    let stream = connect(CALLER, (WORKLOAD, mesh.backends.http).into()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = hyper::Request::get("/").header("host", "own").body(Full::default()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        answer.into_body().collect().await.unwrap();
        status
    };
    assert_eq!(ask().await, 200);
    let bytes = connect(CALLER, (WORKLOAD, mesh.backends.tcp).into()).await.unwrap();
    let (_, mut bytes) = greeting(bytes).await.unwrap();
    let held = get(&mesh, WORKLOAD.octets(), mesh.backends.http, "own").from(CALLER).hold(1);
    let id = held.id.clone();
    let held = held.http2().spawn();
    mesh.backends.wait(&id, 1).await;
    let cluster = format!("cluster.inbound|{}||;.upstream_rq_total", mesh.backends.http);
    // No slice has the pod any more: its filter chains go, and drain.
    let (services, _) = OWN.split_once("---").unwrap();
    mesh.write("0.yaml", services);
    mesh.sidecar.stat_reaches("listener_manager.listener_modified", 1).await;
    // What comes later is taken after whatever went with the pod.
    let added = mesh.sidecar.stat("cluster_manager.cluster_added").await;
    mesh.write("later.yaml", SERVICES);
    mesh.sidecar.stat_reaches("cluster_manager.cluster_added", added + 1).await;
    for _ in 0..20 {
        assert_eq!(ask().await, 200);
    }
    assert_eq!(mesh.sidecar.stat(&cluster).await, 22);
    bytes.write_all(b"more").await.unwrap();
    let mut echoed = [0; 4];
    bytes.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"more");
    mesh.backends.release(&id);
    assert_eq!(held.await.unwrap().backend(), 6);
    // New connections reach the workload as well, as a port that no service has.
    assert_eq!(
        get(&mesh, WORKLOAD.octets(), mesh.backends.http, "own")
            .from(CALLER)
            .send()
            .await
            .backend(),
        6
    );
}
