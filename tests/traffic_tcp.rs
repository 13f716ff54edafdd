//! Connection handling: TCP and TLS routes, upstream TLS, tunnels, and ports without a protocol.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::support::backend::Seen;
use crate::support::mesh::{Tally, until};
use crate::support::sidecar::Options;
use crate::support::traffic::{Mesh, entry, greeting};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::OnceCell;
use tokio_rustls::rustls::pki_types::ServerName;

/// One mesh for all tests: each has hosts of its own in it.
async fn mesh() -> &'static Mesh {
    static MESH: OnceCell<Mesh> = OnceCell::const_new();
    MESH.get_or_init(async || {
        let mut objects = vec![
            entry("weighted.test", "weighted", "TCP", &[1, 2]),
            entry("plain.test", "plain", "TCP", &[3]),
            entry("labels.test", "labels", "TCP", &[1, 2, 3]),
            entry("sticky.test", "sticky", "TCP", &[1, 2, 3]),
            entry("limited.test", "limited", "TCP", &[1]),
            entry("header.test", "header", "TCP", &[1]),
        ];
        let own = [TCP, STICKY, LIMITED, SNI, ORIGINATION, HEADER, TUNNEL, UNKNOWN, DNS];
        objects.extend(own.map(str::to_owned));
        Mesh::start(&objects, Options::default()).await
    })
    .await
}

/// The backend that a new connection reaches.
async fn backend(mesh: &Mesh, port: &str) -> u8 {
    greeting(mesh.connect(port, Ipv4Addr::LOCALHOST).await).await.expect("a greeting").0
}

const TCP: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: weighted, namespace: shop}
spec:
  host: weighted.test
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: weighted, namespace: shop}
spec:
  hosts: [weighted.test]
  tcp:
  - match: [{port: $plain}]
    route: [{destination: {host: plain.test, port: {number: $plain}}}]
  - match: [{port: $weighted}]
    route:
    - {destination: {host: weighted.test, port: {number: $weighted}, subset: v1}, weight: 75}
    - {destination: {host: weighted.test, port: {number: $weighted}, subset: v2}, weight: 25}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: labels, namespace: shop}
spec:
  host: labels.test
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: labels, namespace: shop}
spec:
  hosts: [labels.test]
  tcp:
  - match: [{sourceLabels: {app: other}}, {sourceNamespace: other}]
    route: [{destination: {host: labels.test, subset: v1}}]
  - match: [{sourceLabels: {app: client}, sourceNamespace: shop}]
    route: [{destination: {host: labels.test, subset: v2}}]
";

#[tokio::test]
async fn connections_are_split_by_weight() {
    let mesh = mesh().await;
    let mut found = Tally::default();
    for _ in 0..400 {
        *found.answers.entry(format!("v{}", backend(mesh, "weighted").await)).or_default() += 1;
    }
    found.assert_split(25);
}

#[tokio::test]
async fn connections_carry_bytes_both_ways() {
    let mesh = mesh().await;
    let (backend, mut stream) =
        greeting(mesh.connect("plain", Ipv4Addr::LOCALHOST).await).await.unwrap();
    assert_eq!(backend, 3);
    for message in ["first", "other"] {
        stream.write_all(message.as_bytes()).await.unwrap();
        let mut echoed = [0; 5];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, message.as_bytes());
    }
    // Half-closes are forwarded in both directions.
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_source_chooses_the_tcp_route() {
    let mesh = mesh().await;
    for _ in 0..10 {
        assert_eq!(backend(mesh, "labels").await, 2);
    }
}

const STICKY: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: sticky, namespace: shop}
spec: {host: sticky.test, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}
";

#[tokio::test]
async fn the_source_address_decides_about_the_connection() {
    let mesh = mesh().await;
    let mut all = BTreeSet::new();
    for client in 1..=40 {
        let mut found = BTreeSet::new();
        for _ in 0..3 {
            let stream = mesh.connect("sticky", Ipv4Addr::new(127, 0, 2, client)).await;
            found.insert(greeting(stream).await.unwrap().0);
        }
        assert_eq!(found.len(), 1, "client {client} came to {found:?}");
        all.extend(found);
    }
    assert_eq!(all.len(), 3, "{all:?}");
}

const LIMITED: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: limited, namespace: shop}
spec: {host: limited.test, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}
";

#[tokio::test]
async fn more_connections_than_allowed_are_closed() {
    let mesh = mesh().await;
    let (_, first) = greeting(mesh.connect("limited", Ipv4Addr::LOCALHOST).await).await.unwrap();
    assert!(greeting(mesh.connect("limited", Ipv4Addr::LOCALHOST).await).await.is_none());
    assert_eq!(mesh.cluster_stat("limited", "", "limited.test", "upstream_cx_overflow").await, 1);
    drop(first);
    until("a connection is available again", async || {
        greeting(mesh.connect("limited", Ipv4Addr::LOCALHOST).await).await.is_some()
    })
    .await;
}

const SNI: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: sni, namespace: shop}
spec:
  hosts: [a.secure.test, b.secure.test, c.secure.test]
  resolution: STATIC
  ports: [{number: $sni, name: tls, protocol: TLS, targetPort: $HTTPS}]
  endpoints:
  - {address: 127.0.1.1, labels: {version: v1}}
  - {address: 127.0.1.2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec:
  hosts: ['*.wild.secure.test']
  resolution: STATIC
  ports: [{number: $sni, name: tls, protocol: TLS, targetPort: $HTTPS}]
  endpoints: [{address: 127.0.1.3}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: sni, namespace: shop}
spec:
  host: a.secure.test
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: sni, namespace: shop}
spec:
  hosts: [a.secure.test, b.secure.test]
  tls:
  - match: [{port: $sni, sniHosts: [a.secure.test]}]
    route: [{destination: {host: a.secure.test, subset: v2}}]
  - match: [{sniHosts: [b.secure.test], sourceLabels: {app: other}}]
    route: [{destination: {host: a.secure.test, subset: v2}}]
  - match: [{sniHosts: [b.secure.test], sourceLabels: {app: client}}]
    route:
    - {destination: {host: a.secure.test, subset: v1}, weight: 75}
    - {destination: {host: a.secure.test, subset: v2}, weight: 25}
";

/// The backend that answers a request inside TLS; `None` if the handshake fails.
async fn through_tls(mesh: &Mesh, port: &str, name: &'static str) -> Option<Seen> {
    let request = mesh.request("GET", port, name, "/");
    let stream = mesh.connect(port, Ipv4Addr::LOCALHOST).await;
    let name = ServerName::try_from(name).unwrap();
    let mut stream = mesh.certificates.connector().connect(name, stream).await.ok()?;
    let text = format!("GET / HTTP/1.1\r\nhost: any\r\nx-id: {}\r\n\r\n", request.id);
    stream.write_all(text.as_bytes()).await.unwrap();
    Some(mesh.backends.wait(&request.id, 1).await.remove(0))
}

#[tokio::test]
async fn the_server_name_chooses_the_route() {
    let mesh = mesh().await;
    for _ in 0..5 {
        let seen = through_tls(mesh, "sni", "a.secure.test").await.unwrap();
        assert_eq!((seen.backend, seen.tls.unwrap().sni.as_deref()), (2, Some("a.secure.test")));
        assert_eq!(through_tls(mesh, "sni", "any.wild.secure.test").await.unwrap().backend, 3);
    }
    let mut found = Tally::default();
    for _ in 0..200 {
        let backend = through_tls(mesh, "sni", "b.secure.test").await.unwrap().backend;
        *found.answers.entry(format!("v{backend}")).or_default() += 1;
    }
    found.assert_split(25);
    assert!(through_tls(mesh, "sni", "c.secure.test").await.is_some());
    assert!(through_tls(mesh, "sni", "d.secure.test").await.is_none(), "no server has that name");
}

const ORIGINATION: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: origination, namespace: shop}
spec:
  hosts:
  - auto.secure.test
  - auto.test
  - named.test
  - misnamed.test
  - distrusted.secure.test
  - unverified.secure.test
  - mutual.secure.test
  - ports.secure.test
  - untouched.secure.test
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTPS}]
  endpoints: [{address: 127.0.1.1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: auto, namespace: shop}
spec: {host: auto.secure.test, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: $CERTS/ca.pem}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: auto-misnamed, namespace: shop}
spec: {host: auto.test, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: $CERTS/ca.pem}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: named, namespace: shop}
spec:
  host: named.test
  trafficPolicy:
    tls: {mode: SIMPLE, caCertificates: $CERTS/ca.pem, sni: said.secure.test, subjectAltNames: [secure.test]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: misnamed, namespace: shop}
spec:
  host: misnamed.test
  trafficPolicy:
    tls: {mode: SIMPLE, caCertificates: $CERTS/ca.pem, sni: said.secure.test, subjectAltNames: [other.test]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: distrusted, namespace: shop}
spec: {host: distrusted.secure.test, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: $CERTS/other-ca.pem}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: unverified, namespace: shop}
spec: {host: unverified.secure.test, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: mutual, namespace: shop}
spec:
  host: mutual.secure.test
  trafficPolicy:
    tls:
      mode: MUTUAL
      caCertificates: $CERTS/ca.pem
      clientCertificate: $CERTS/client.pem
      privateKey: $CERTS/client-key.pem
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ports, namespace: shop}
spec:
  host: ports.secure.test
  trafficPolicy:
    tls: {mode: DISABLE}
    portLevelSettings: [{port: {number: $web}, tls: {mode: SIMPLE, caCertificates: $CERTS/ca.pem}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: untouched, namespace: shop}
spec:
  host: untouched.secure.test
  trafficPolicy:
    portLevelSettings: [{port: {number: 1}, tls: {mode: SIMPLE, caCertificates: $CERTS/ca.pem}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: second, namespace: shop}
spec:
  hosts: [second.secure.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP2, targetPort: $HTTPS}]
  endpoints: [{address: 127.0.1.1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: second, namespace: shop}
spec: {host: second.secure.test, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: $CERTS/ca.pem}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: mesh, namespace: shop}
spec:
  hosts: [workload.test, impostor.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTPS}]
  endpoints: [{address: 127.0.1.1, serviceAccount: server, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: workload, namespace: shop}
spec: {host: workload.test, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: impostor, namespace: shop}
spec:
  host: impostor.test
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/other']}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bytes, namespace: shop}
spec:
  hosts: [bytes.test]
  resolution: STATIC
  ports: [{number: $bytes, name: bytes, protocol: TCP, targetPort: $HTTPS}]
  endpoints: [{address: 127.0.1.2}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: bytes, namespace: shop}
spec:
  host: bytes.test
  trafficPolicy: {tls: {mode: SIMPLE, caCertificates: $CERTS/ca.pem, sni: bytes.secure.test}}
";

#[tokio::test]
async fn tls_towards_backends_is_as_the_rule_says() {
    let mesh = mesh().await;
    let (client, workload) = (
        mesh.certificates.certificate("client.pem"),
        mesh.certificates.certificate("workload.pem"),
    );
    let of_mesh = format!("outbound_.{}_._.workload.test", mesh.port("web"));
    for (host, sni, alpn, certificate) in [
        ("auto.secure.test", "auto.secure.test", "http/1.1", None),
        ("named.test", "said.secure.test", "http/1.1", None),
        ("unverified.secure.test", "unverified.secure.test", "http/1.1", None),
        ("ports.secure.test", "ports.secure.test", "http/1.1", None),
        ("second.secure.test", "second.secure.test", "h2", None),
        ("mutual.secure.test", "mutual.secure.test", "http/1.1", Some(client)),
        ("workload.test", of_mesh.as_str(), "istio", Some(workload)),
    ] {
        let answer = mesh.get(host, "/").send().await;
        assert_eq!(answer.backend(), 1, "{host}");
        let shown = answer.only().tls.clone().unwrap();
        assert_eq!(
            (shown.sni.as_deref(), shown.alpn.as_deref()),
            (Some(sni), Some(alpn)),
            "{host}"
        );
        assert!(shown.certificate == certificate, "{host} was shown another certificate");
    }
}

#[tokio::test]
async fn servers_that_fail_verification_get_nothing() {
    let mesh = mesh().await;
    for (host, why) in [
        ("auto.test", "fail_verify_san"),
        ("misnamed.test", "fail_verify_san"),
        ("distrusted.secure.test", "fail_verify_error"),
        ("impostor.test", "fail_verify_san"),
    ] {
        let answer = mesh.get(host, "/").send().await;
        assert_eq!((answer.status.as_u16(), answer.seen.len()), (503, 0), "{host}");
        // The first try and those after it.
        assert_eq!(mesh.cluster_stat("web", "", host, &format!("ssl.{why}")).await, 3, "{host}");
    }
    // A TLS server does not respond without TLS.
    let answer = mesh.get("untouched.secure.test", "/").send().await;
    assert!(answer.status.is_server_error() && answer.seen.is_empty(), "{answer:?}");
}

#[tokio::test]
async fn tls_is_put_around_bytes() {
    let mesh = mesh().await;
    let request = mesh.request("GET", "bytes", "any", "/");
    let answer = request.send().await;
    assert_eq!(
        (answer.backend(), answer.only().tls.clone().unwrap().sni.as_deref()),
        (2, Some("bytes.secure.test"))
    );
    // Envoy did not parse the requests.
    assert_eq!(answer.only().header("x-request-id"), "");
}

const HEADER: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: header, namespace: shop}
spec: {host: header.test, trafficPolicy: {proxyProtocol: {version: V1}}}
";

#[tokio::test]
async fn a_proxy_protocol_header_goes_before_the_bytes() {
    let mesh = mesh().await;
    let stream = mesh.connect("header", Ipv4Addr::new(127, 0, 2, 7)).await;
    let from = stream.local_addr().unwrap().port();
    let (_, mut stream) = greeting(stream).await.unwrap();
    stream.write_all(b"hello\n").await.unwrap();
    let (mut first, mut second) = (String::new(), String::new());
    stream.read_line(&mut first).await.unwrap();
    stream.read_line(&mut second).await.unwrap();
    let wanted = format!("PROXY TCP4 127.0.2.7 127.0.0.1 {from} {}\r\n", mesh.port("header"));
    assert_eq!((first.as_str(), second.as_str()), (wanted.as_str(), "hello\n"));
}

const TUNNEL: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: tunnel, namespace: shop}
spec:
  hosts: [tunnel.test]
  resolution: STATIC
  ports: [{number: $tunnel, name: tunnel, protocol: TCP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.2}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: tunnel, namespace: shop}
spec:
  host: tunnel.test
  trafficPolicy: {tunnel: {protocol: CONNECT, targetHost: far.test, targetPort: 443}}
";

#[tokio::test]
async fn a_tunnel_is_requested_and_used() {
    let mesh = mesh().await;
    let mut stream = mesh.connect("tunnel", Ipv4Addr::LOCALHOST).await;
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");
    let seen = mesh.backends.seen("");
    let asked: Vec<_> =
        seen.iter().map(|seen| (seen.backend, seen.method.as_str(), seen.host.as_str())).collect();
    assert_eq!(asked, [(2, "CONNECT", "far.test:443")]);
}

const UNKNOWN: &str = "
apiVersion: v1
kind: Service
metadata: {name: unknown, namespace: shop}
spec:
  clusterIP: 10.96.0.20
  ports: [{name: some, port: $some, targetPort: $HTTP}, {name: more, port: $more, targetPort: $TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: unknown-1, namespace: shop, labels: {kubernetes.io/service-name: unknown}}
addressType: IPv4
endpoints: [{addresses: [127.0.1.2], conditions: {ready: true}}]
ports: [{name: some, port: $HTTP}, {name: more, port: $TCP}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: unknown, namespace: shop}
spec:
  hosts: [unknown]
  http:
  - headers: {request: {set: {x-seen: 'yes'}}}
    route: [{destination: {host: unknown, port: {number: $some}}}]
";

#[tokio::test]
async fn a_port_without_protocol_accepts_http_and_everything_else() {
    let mesh = mesh().await;
    for request in [
        mesh.request("GET", "some", "unknown", "/"),
        mesh.request("GET", "some", "any.name", "/").http2(),
    ] {
        let http2 = request.clone().send().await;
        assert_eq!((http2.backend(), http2.only().header("x-seen")), (2, "yes".to_owned()));
    }
    // Traffic that is not detected as HTTP is not inspected further. (A client that waits for the server to speak first
    // would wait forever.)
    let mut stream = mesh.connect("more", Ipv4Addr::LOCALHOST).await;
    stream.write_all(b"\x01\x02").await.unwrap();
    let (backend, mut stream) = greeting(stream).await.unwrap();
    assert_eq!((backend, stream.read_u16().await.unwrap()), (2, 0x0102));
}

const DNS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: shop}
spec:
  hosts: [dns.test]
  resolution: DNS
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.1}, {address: 127.0.1.2}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: turns, namespace: shop}
spec:
  hosts: [turns.test]
  resolution: DNS_ROUND_ROBIN
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.3}]
";

#[tokio::test]
async fn endpoints_of_dns_are_resolved() {
    let mesh = mesh().await;
    let mut found = BTreeSet::new();
    until("both have responded", async || {
        found.insert(mesh.get("dns.test", "/").send().await.backend());
        found.len() == 2
    })
    .await;
    assert_eq!(found, BTreeSet::from([1, 2]));
    assert_eq!(mesh.get("turns.test", "/").send().await.backend(), 3);
}
