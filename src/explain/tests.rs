//! Tests of the explanations.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{
    Destination, Explanation, Outcome, Request, ServersWithoutCertificates, TrafficQuery,
    explain_with, succeeds,
};
use crate::mesh::{
    Certificates, EmptySubset, Locality, MeshBuilder, MeshConfig, NodeMetadata, Proxy, ScopeView,
};
use crate::rollout_guard::{HeldValue, RolloutGuard};
use crate::snapshot::SnapshotBuilder;
use crate::source::loader::{Content, Loader};
use crate::store::Store;

const OBJECTS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}, {name: tcp, port: 9000}, {name: tls, port: 443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-0, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: tcp, port: 9000}, {name: tls, port: 443}]
endpoints: [{addresses: [10.1.0.1], zone: z-b}, {addresses: [10.1.0.2], zone: z-a}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy:
    connectionPool: {tcp: {connectTimeout: 2s}}
    outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3}
    tls: {mode: SIMPLE, sni: web.example.com}
    proxyProtocol: {version: V2}
  subsets: [{name: v1}, {name: v2}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - retries: {attempts: 3, retryOn: '5xx,503', perTryTimeout: 1s}
    route:
    - {destination: {host: web, subset: v1}, weight: 1}
    - {destination: {host: web, subset: v2}, weight: 3, headers: {response: {add: {x-canary: yes}}}}
  tcp:
  - match: [{port: 1}]
    route: [{destination: {host: web}}]
  - match: [{port: 9000}]
    route: [{destination: {host: web, subset: v1}, weight: 1}, {destination: {host: web, subset: v2}, weight: 3}]
  tls:
  - match: [{port: 443, sniHosts: [web]}]
    route: [{destination: {host: web, subset: v2}}]
";

fn ask(traffic: TrafficQuery) -> Explanation {
    ask_of(OBJECTS, traffic)
}

fn ask_of(objects: &str, traffic: TrafficQuery) -> Explanation {
    ask_with(&MeshConfig::default(), objects, traffic)
}

fn ask_with(config: &MeshConfig, objects: &str, traffic: TrafficQuery) -> Explanation {
    ask_as(Certificates::None, config, objects, traffic)
}

fn ask_as(
    certificates: Certificates,
    config: &MeshConfig,
    objects: &str,
    traffic: TrafficQuery,
) -> Explanation {
    ask_about(certificates, config, objects, traffic, &ServersWithoutCertificates::new())
}

fn ask_about(
    certificates: Certificates,
    config: &MeshConfig,
    objects: &str,
    traffic: TrafficQuery,
    servers: &ServersWithoutCertificates,
) -> Explanation {
    let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
    let objects = objects.replace("x-canary: yes", "x-canary: 'yes'");
    for change in
        Loader::new().update([(PathBuf::from("a.yaml"), Content::Bytes(objects.into_bytes()))])
    {
        store.apply(change, &mut dirty);
    }
    let rejected: Vec<_> = store.rejected().collect();
    assert!(rejected.is_empty(), "{rejected:?}");
    let (mesh, held) =
        RolloutGuard::default().apply(MeshBuilder::new(config.clone()).update(&store, &dirty));
    let id = "sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local";
    let proxy = Proxy::new(id, NodeMetadata::default(), Locality::parse("/z-a")).unwrap();
    let proxy = Proxy { certificates, ..proxy };
    let scope = mesh.scope(&proxy);
    let snapshot = SnapshotBuilder::default().snapshot(&mesh, &scope);
    let view = ScopeView::new(&mesh, &scope);
    let mut answer = explain_with(&view, &snapshot, &traffic, servers);
    answer.add_held(&held);
    answer
}

fn request(text: &str) -> Explanation {
    ask(TrafficQuery::Http(Request::parse(text, &[]).unwrap()))
}

fn connection(port: u16, sni: Option<&str>) -> Explanation {
    ask(TrafficQuery::Tcp { host: "web".into(), port, sni: sni.map(str::to_owned) })
}

fn defined_by(answer: &Explanation) -> Vec<&str> {
    answer.considered.iter().map(|item| item.field.as_str()).collect()
}

#[test]
fn policies_of_route_and_destination_are_explained() {
    let answer = request("GET http://web/");
    let Outcome::Forward { destinations, policies, .. } = answer.outcome else {
        panic!("{answer:?}")
    };
    let retries = "3 on 5xx,retriable-status-codes (503), 1s each";
    assert!(policies.contains(&("retries", retries.to_owned())), "{policies:?}");
    let own: Vec<String> =
        destinations[1].policies.iter().map(|(name, text)| format!("{name}: {text}")).collect();
    let wanted = [
        "load balancer: LEAST_REQUEST",
        "connect timeout: 2s",
        "proxy protocol: v2",
        "TLS: yes, SNI web.example.com",
        "outlier detection: after 3 gateway errors in a row",
        "response headers: +x-canary",
    ];
    assert_eq!(own, wanted);
    assert_eq!(destinations[1].percent, 75.0);
    // The nearest endpoints come first because they are used first.
    let places: Vec<_> = destinations[0]
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.priority, endpoint.locality.as_str()))
        .collect();
    assert_eq!(places, [(0, "/z-a"), (1, "/z-b")]);
}

#[test]
fn the_route_of_a_connection_is_named() {
    let answer = connection(9000, None);
    assert_eq!(defined_by(&answer), ["spec.tcp[1]"]);
    assert_eq!(answer.considered[0].object.as_deref(), Some("VirtualService shop/web"));
    assert_eq!(defined_by(&connection(443, Some("web"))), ["spec.tls[0].match[0]"]);
    // Connections that match no route use the service's default, if there is one.
    assert!(defined_by(&connection(443, Some("other"))).is_empty());
}

#[test]
fn a_request_within_tls_is_routed_by_sni() {
    let answer = request("GET https://web/");
    assert_eq!(defined_by(&answer), ["spec.tls[0].match[0]"]);
    assert!(
        matches!(&answer.outcome, Outcome::Forward { destinations, .. } if destinations.len() == 1)
    );
    // TLS on a plain HTTP port is not inspected.
    let answer = request("GET https://web:80/");
    assert!(answer.route_configuration.is_none() && defined_by(&answer).is_empty(), "{answer:?}");
}

#[test]
fn missing_delegate_routes_and_overridden_objects_are_explained() {
    let objects = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, namespace: shop}
spec:
  hosts: [web]
  http:
  - {match: [{uri: {prefix: /a}}], delegate: {name: nope}}
  - {match: [{uri: {prefix: /b}}], delegate: {name: leaf}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: leaf, namespace: shop}
spec:
  http:
  - {match: [{uri: {prefix: /b/c}}], route: [{destination: {host: web}}]}
  - {match: [{uri: {prefix: /x}}], route: [{destination: {host: web}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second, namespace: shop}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all, namespace: shop}
spec: {hosts: ['*.shop.svc.cluster.local'], http: [{route: [{destination: {host: web}}]}]}
";
    let answer =
        ask_of(objects, TrafficQuery::Http(Request::parse("GET http://web/a", &[]).unwrap()));
    let shown: Vec<_> = answer
        .considered
        .iter()
        .map(|item| format!("{}: {}", item.field, item.not.as_deref().unwrap_or("yes")))
        .collect();
    let wanted = [
        "spec.http[0].delegate: its delegate shop/nope does not exist",
        "spec.http[1].delegate: spec.http[1] of its delegate shop/leaf has a match wider than the match of its root",
        "spec.http[0].match[0]: the path is `/a`, expected a path that starts with `/b/c`",
    ];
    assert_eq!(shown, wanted);
    assert_eq!(answer.overruled, ["VirtualService shop/second", "VirtualService shop/all"]);
    assert_eq!(answer.outcome, Outcome::NoRoute);
}

#[test]
fn a_missing_delegate_is_named_although_routes_after_the_taken_one_do_not_apply() {
    let objects = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - {match: [{uri: {prefix: /a}}], delegate: {name: nope}}
  - {match: [{uri: {prefix: /b}}], route: [{destination: {host: web}}]}
  - {match: [{sourceNamespace: other}], route: [{destination: {host: web}}]}
";
    let answer =
        ask_of(objects, TrafficQuery::Http(Request::parse("GET http://web/b", &[]).unwrap()));
    assert_eq!(defined_by(&answer), ["spec.http[0].delegate", "spec.http[1].match[0]"]);
}

const HELD_BACK: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}, {name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {version: v1}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-0, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]
endpoints: [{addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-0}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v3, labels: {version: v3}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, namespace: shop}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /a}}]
    delegate: {name: leaf}
  - route: [{destination: {host: web, subset: v1}, weight: 50}, {destination: {host: web, subset: v3}, weight: 50}]
  tcp:
  - route: [{destination: {host: web, subset: v1}, weight: 50}, {destination: {host: web, subset: v3}, weight: 50}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: leaf, namespace: shop}
spec:
  http:
  - route: [{destination: {host: web, subset: v3}, weight: 10}, {destination: {host: web, subset: v1}, weight: 90}]
";

fn shares(answer: &Explanation) -> Vec<(&str, f64)> {
    let Outcome::Forward { destinations, .. } = &answer.outcome else { panic!("{answer:?}") };
    destinations.iter().map(|to| (to.cluster.split('|').nth(2).unwrap(), to.percent)).collect()
}

fn get(path: &str) -> TrafficQuery {
    TrafficQuery::Http(Request::parse(&format!("GET http://web{path}"), &[]).unwrap())
}

#[test]
fn weight_that_is_held_back_is_shown_with_the_route() {
    let tcp = TrafficQuery::Tcp { host: "web".into(), port: 9000, sni: None };
    let hold = MeshConfig::default();
    let allow = MeshConfig { empty_subset: EmptySubset::Allow, ..MeshConfig::default() };
    for (traffic, object, field, wanted) in [
        (get("/"), "VirtualService shop/root", "spec.http[1].route[1]", 50),
        (get("/a"), "VirtualService shop/leaf", "spec.http[0].route[0]", 10),
        (tcp, "VirtualService shop/root", "spec.tcp[0].route[1]", 50),
    ] {
        let answer = ask_with(&hold, HELD_BACK, traffic.clone());
        assert_eq!(shares(&answer), [("v1", 100.0)], "{answer:?}");
        let [held] = answer.held.as_slice() else { panic!("{answer:?}") };
        assert_eq!((&*held.object.to_string(), held.field.as_str()), (object, field));
        assert_eq!(held.value, HeldValue::Weight { wanted, effective: 0 });
        let answer = ask_with(&allow, HELD_BACK, traffic);
        assert_eq!((shares(&answer).len(), answer.held.len()), (2, 0), "{answer:?}");
    }
}

#[test]
fn a_pod_of_a_headless_service_is_found_by_its_name() {
    let objects = r"
apiVersion: v1
kind: Service
metadata: {name: hl, namespace: shop}
spec: {clusterIP: None, ports: [{name: tcp, port: 7000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hl-1, namespace: shop, labels: {kubernetes.io/service-name: hl}}
addressType: IPv4
ports: [{name: tcp, port: 7000}]
endpoints: [{addresses: [10.1.0.5], hostname: hl-0}, {addresses: [10.1.0.6], hostname: hl-1}]
---
apiVersion: v1
kind: Service
metadata: {name: old, namespace: shop}
spec: {clusterIP: None, ports: [{name: tcp, port: 7001}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: old, namespace: shop}
subsets: [{addresses: [{ip: 10.1.0.7, hostname: old-0}], ports: [{name: tcp, port: 7001}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: tcp, port: 7000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 7000}]
endpoints: [{addresses: [10.1.0.8], hostname: web-0}]
";
    for (host, port, listener) in [
        ("hl-0.hl", 7000, "10.1.0.5_7000"),
        ("hl-1.hl", 7000, "10.1.0.6_7000"),
        ("hl-1.hl.shop", 7000, "10.1.0.6_7000"),
        ("hl-1.hl.shop.svc", 7000, "10.1.0.6_7000"),
        ("hl-1.hl.shop.svc.cluster.local.", 7000, "10.1.0.6_7000"),
        ("old-0.old", 7001, "10.1.0.7_7001"),
        ("hl", 7000, "10.1.0.5_7000"),
        ("hl-2.hl", 7000, "virtualOutbound"),
        ("hl-0.hl.other", 7000, "virtualOutbound"),
        // Only headless services have names for their pods.
        ("web-0.web", 7000, "virtualOutbound"),
    ] {
        let answer = ask_of(objects, TrafficQuery::Tcp { host: host.into(), port, sni: None });
        assert_eq!(answer.listener, listener, "{host}");
    }
}

fn status(text: &str, headers: &[&str]) -> Option<u32> {
    let headers: Vec<_> = headers.iter().map(|header| (*header).to_owned()).collect();
    match ask(TrafficQuery::Http(Request::parse(text, &headers).unwrap())).outcome {
        Outcome::Respond { status, .. } => Some(status),
        _ => None,
    }
}

#[test]
fn a_request_that_envoy_rejects_is_answered_by_envoy() {
    assert_eq!(status("GET http://web/%00", &[]), Some(400));
    assert_eq!(status("GET http://web/", &["connection: upgrade", "upgrade: other"]), Some(403));
    assert_eq!(status("GET http://web/%01", &["connection: upgrade", "upgrade: websocket"]), None);
}

/// A service with an endpoint that takes mutual TLS and one without a sidecar.
const HALF: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-0, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-0, namespace: shop}}
- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-1, namespace: shop}}
";

fn peers(spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{{spec}}}\n"
    )
}

/// The destination of a request to `web` by a client with certificates from there.
fn destination(client: Certificates, config: &MeshConfig, objects: &str) -> Destination {
    let asked = TrafficQuery::Http(Request::parse("GET http://web/", &[]).unwrap());
    let answer = ask_as(client, config, objects, asked);
    let Outcome::Forward { destinations, .. } = answer.outcome else { panic!("{answer:?}") };
    destinations.into_iter().next().unwrap()
}

/// What is said of its encryption.
fn said(to: &Destination) -> Vec<String> {
    let said = to.policies.iter();
    let said = said.filter(|(name, _)| matches!(*name, "encryption" | "plain text" | "refused"));
    said.map(|(name, text)| format!("{name}: {text}")).collect()
}

fn encryption(client: Certificates, objects: &str) -> Vec<String> {
    said(&destination(client, &MeshConfig::default(), objects))
}

const OFF: &str =
    "encryption: none: the client has no certificates, because weir gives none with --identity off";
const REFUSED: &str =
    "refused: 10.1.0.1:8080 takes only mutual TLS, by PeerAuthentication shop/p: it refuses";
const RULE: &str = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                    metadata: {name: web, namespace: shop}\nspec: {host: web, trafficPolicy: {tls: {mode: MODE}}}\n";

#[test]
fn explain_says_what_is_encrypted_and_why_not() {
    let without = "plain text: 10.1.0.2:8080 has no certificates: it lacks the label security.istio.io/tlsMode";
    let half = "encryption: mutual TLS to 1 of 2 endpoints";
    assert_eq!(encryption(Certificates::Ads, HALF), [half, without]);
    assert_eq!(encryption(Certificates::None, HALF), [OFF]);
    let strict = HALF.to_owned() + &peers("mtls: {mode: STRICT}");
    let refused = format!("{REFUSED} a client without certificates");
    assert_eq!(encryption(Certificates::None, &strict), [OFF, &refused]);
    assert_eq!(encryption(Certificates::Ads, &strict), [half, without]);

    let disabled = HALF.to_owned() + &peers("mtls: {mode: DISABLE}");
    let by = "plain text: 10.1.0.1:8080 takes only plain text, by PeerAuthentication shop/p";
    assert_eq!(encryption(Certificates::Ads, &disabled), ["encryption: none", by, without]);
}

#[test]
fn explain_says_what_a_strict_server_refuses_by_a_rule() {
    let strict = HALF.to_owned() + &peers("mtls: {mode: STRICT}");
    let outside =
        "encryption: TLS without the certificates of the mesh, by DestinationRule shop/web";
    for (mode, summary, what) in [
        ("DISABLE", "encryption: none, by DestinationRule shop/web", "plain text"),
        ("SIMPLE", outside, "a client that presents no certificate"),
        (
            "MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem",
            outside,
            "a certificate that the authority of the mesh has not signed",
        ),
    ] {
        let by_rule = strict.clone() + &RULE.replace("MODE", mode);
        let expected = [summary.to_owned(), format!("{REFUSED} {what}")];
        assert_eq!(encryption(Certificates::Ads, &by_rule), expected, "{mode}");
    }
    let by_rule = strict + &RULE.replace("MODE", "ISTIO_MUTUAL");
    let mutual = "encryption: mutual TLS, by DestinationRule shop/web";
    let refused = "refused: 10.1.0.2:8080 takes no mutual TLS";
    assert_eq!(encryption(Certificates::Ads, &by_rule), [mutual, refused]);
    let agent = format!("{mutual}, with certificates of Istio's agent: weir gives the client none");
    assert_eq!(encryption(Certificates::None, &by_rule), [&*agent, refused]);
}

/// `web`, both of whose pods have certificates.
fn both() -> String {
    HALF.replace("labels: {app: web}}", "labels: {app: web, security.istio.io/tlsMode: istio}}")
}

#[test]
fn a_request_that_every_server_refuses_fails() {
    let identities = MeshConfig { identities: true, ..MeshConfig::default() };
    let strict = both() + &peers("mtls: {mode: STRICT}");
    for (client, objects, refused) in [
        (Certificates::None, &strict, true),
        (Certificates::Ads, &strict, false),
        (Certificates::None, &both(), false),
        (Certificates::Ads, &(strict.clone() + &RULE.replace("MODE", "SIMPLE")), true),
        // One of two takes plain text.
        (Certificates::None, &(HALF.to_owned() + &peers("mtls: {mode: STRICT}")), false),
    ] {
        let to = destination(client, &identities, objects);
        assert_eq!(to.refused, refused, "{to:?}");
        let outcome =
            Outcome::Forward { destinations: vec![to], copies: Vec::new(), policies: Vec::new() };
        assert_eq!(succeeds(&outcome), !refused);
    }
    let plain =
        "encryption: none: the client has no certificates, because its stream is not on port 15012";
    assert_eq!(said(&destination(Certificates::None, &identities, &strict))[0], plain);
}

#[test]
fn a_strict_server_without_certificates_refuses_everybody() {
    let identities = MeshConfig { identities: true, ..MeshConfig::default() };
    let label = "security.istio.io/tlsMode: istio";
    let disabled = both().replace(label, "security.istio.io/tlsMode: disabled");
    let disabled = disabled + &peers("mtls: {mode: STRICT}");
    let by_label = "takes only mutual TLS, by PeerAuthentication shop/p, but its label security.istio.io/tlsMode is \
                    `disabled`, so clients send plain text: its sidecar refuses that";
    let found = said(&destination(Certificates::Ads, &identities, &disabled));
    let expected = ["1", "2"].map(|n| format!("refused: 10.1.0.{n}:8080 {by_label}")).to_vec();
    assert_eq!(found[3..], expected, "{found:?}");

    let strict = both() + &peers("mtls: {mode: STRICT}");
    let asked = TrafficQuery::Http(Request::parse("GET http://web/", &[]).unwrap());
    let servers = ["10.1.0.1".into(), "10.1.0.2".into()].into();
    let answer = ask_about(Certificates::Ads, &identities, &strict, asked, &servers);
    let Outcome::Forward { destinations, .. } = answer.outcome else { panic!("{answer:?}") };
    let by_stream = "takes only mutual TLS, by PeerAuthentication shop/p, but its sidecar has no certificates, because \
                     its stream is not on port 15012: it refuses every connection";
    assert_eq!(said(&destinations[0])[1], format!("refused: 10.1.0.1:8080 {by_stream}"));
    assert!(destinations[0].refused);
}

#[test]
fn nothing_is_said_of_encryption_where_nobody_has_certificates() {
    let plain = HALF.replace("istio.io/tlsMode: istio", "istio.io/tlsMode: disabled");
    assert_eq!(encryption(Certificates::None, &plain), [""; 0]);
}
