//! What people get to read.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{Explanation, Outcome, Question, Request, explain};
use crate::mesh::{Builder, Locality, MeshConfig, NodeMetadata, Proxy, View};
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

fn ask(question: Question) -> Explanation {
    ask_of(OBJECTS, question)
}

fn ask_of(objects: &str, question: Question) -> Explanation {
    let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
    let objects = objects.replace("x-canary: yes", "x-canary: 'yes'");
    for change in Loader::new().update([(PathBuf::from("a.yaml"), Content::Bytes(objects.into_bytes()))]) {
        store.apply(change, &mut dirty);
    }
    let refused: Vec<_> = store.refused().collect();
    assert!(refused.is_empty(), "{refused:?}");
    let mesh = Builder::new(MeshConfig::default()).update(&store, &dirty);
    let id = "sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local";
    let proxy = Proxy::new(id, NodeMetadata::default(), Locality::parse("/z-a")).unwrap();
    let scope = mesh.scope(&proxy);
    let snapshot = SnapshotBuilder::default().snapshot(&mesh, &scope);
    explain(&View::new(&mesh, &scope), &snapshot, &question)
}

fn request(text: &str) -> Explanation {
    ask(Question::Http(Request::parse(text, &[]).unwrap()))
}

fn connection(port: u16, sni: Option<&str>) -> Explanation {
    ask(Question::Tcp { host: "web".into(), port, sni: sni.map(str::to_owned) })
}

fn said_by(answer: &Explanation) -> Vec<&str> {
    answer.considered.iter().map(|one| one.field.as_str()).collect()
}

#[test]
fn policies_of_route_and_destination_are_told() {
    let answer = request("GET http://web/");
    let Outcome::Forward { destinations, policies, .. } = answer.outcome else { panic!("{answer:?}") };
    let retries = "3 on 5xx,retriable-status-codes (503), 1s each";
    assert!(policies.contains(&("retries", retries.to_owned())), "{policies:?}");
    let own: Vec<String> = destinations[1].policies.iter().map(|(name, text)| format!("{name}: {text}")).collect();
    let wanted = [
        "load balancer: LEAST_REQUEST",
        "connect timeout: 2s",
        "proxy protocol: v2",
        "TLS: yes, asking for web.example.com",
        "outlier detection: after 3 gateway errors in a row",
        "response headers: +x-canary",
    ];
    assert_eq!(own, wanted);
    assert_eq!(destinations[1].percent, 75.0);
    // Those that are nearest stand first, as they are asked first.
    let places: Vec<_> = destinations[0].endpoints.iter().map(|one| (one.priority, one.locality.as_str())).collect();
    assert_eq!(places, [(0, "/z-a"), (1, "/z-b")]);
}

#[test]
fn the_route_of_a_connection_is_named() {
    let answer = connection(9000, None);
    assert_eq!(said_by(&answer), ["spec.tcp[1]"]);
    assert_eq!(answer.considered[0].object.as_deref(), Some("VirtualService shop/web"));
    assert_eq!(said_by(&connection(443, Some("web"))), ["spec.tls[0].match[0]"]);
    // The service itself takes what no route does, or nothing does.
    assert!(said_by(&connection(443, Some("other"))).is_empty());
}

#[test]
fn a_request_within_tls_goes_by_the_name_that_its_client_asks_for() {
    let answer = request("GET https://web/");
    assert_eq!(said_by(&answer), ["spec.tls[0].match[0]"]);
    assert!(matches!(&answer.outcome, Outcome::Forward { destinations, .. } if destinations.len() == 1));
    // At a port of plain HTTP nobody looks into it.
    let answer = request("GET https://web:80/");
    assert!(answer.route_configuration.is_none() && said_by(&answer).is_empty(), "{answer:?}");
}

#[test]
fn what_a_delegate_does_not_give_and_who_is_overruled_is_told() {
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
    let answer = ask_of(objects, Question::Http(Request::parse("GET http://web/a", &[]).unwrap()));
    let told: Vec<_> =
        answer.considered.iter().map(|one| format!("{}: {}", one.field, one.not.as_deref().unwrap_or("yes"))).collect();
    let wanted = [
        "spec.http[0].delegate: its delegate shop/nope is not there",
        "spec.http[1].delegate: spec.http[1] of its delegate shop/leaf has a match that goes beyond its own",
        "spec.http[0].match[0]: the path is `/a`, wanted one that begins with `/b/c`",
    ];
    assert_eq!(told, wanted);
    assert_eq!(answer.overruled, ["VirtualService shop/second", "VirtualService shop/all"]);
    assert_eq!(answer.outcome, Outcome::NoRoute);
}
