//! The table of names that Istio's agent answers DNS from: what is in it, and when it is sent.

use std::collections::BTreeMap;

use prost::Message as _;
use serde_json::json;

use crate::support::ads::{Ask, CDS, Got, NDS, RDS, Variant, Weir, ask};
use crate::support::mesh::{route_yaml, until};

/// The table, with the field numbers of Istio's proto.
#[derive(Clone, PartialEq, prost::Message)]
struct NameTable {
    #[prost(map = "string, message", tag = "1")]
    table: std::collections::HashMap<String, NameInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NameInfo {
    #[prost(string, repeated, tag = "1")]
    ips: Vec<String>,
    #[prost(string, tag = "2")]
    registry: String,
    #[prost(string, tag = "3")]
    short_name: String,
    #[prost(string, tag = "4")]
    namespace: String,
}

/// The names in a response: addresses, registry, short name and namespace of each.
fn table(got: &Got) -> BTreeMap<String, String> {
    assert_eq!(got.resources.len(), 1, "exactly one resource: {got:?}");
    let (_, bytes) = got.resources.values().next().unwrap();
    let table = NameTable::decode(bytes.as_slice()).unwrap().table.into_iter();
    table
        .map(|(name, NameInfo { ips, registry, short_name, namespace })| {
            (name, format!("{} {registry} {short_name} {namespace}", ips.join(",")))
        })
        .collect()
}

const SERVICES: &str = r#"
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: pay}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: both, namespace: pay}, spec: {clusterIP: 10.96.0.8, clusterIPs: [10.96.0.8,
  "fd00::8"], ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: six, namespace: pay}, spec: {clusterIP: "fd00::9", ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: dns, namespace: pay}, spec: {clusterIP: 10.96.0.10, ports: [{port: 53,
  protocol: UDP}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: elsewhere, namespace: pay}, spec: {type: ExternalName, externalName:
  example.org}}
---
{apiVersion: v1, kind: Service, metadata: {name: hidden, namespace: pay, annotations: {networking.istio.io/exportTo: "."}},
  spec: {clusterIP: 10.96.0.11, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: pay}, spec: {clusterIP: None, ports: [{name: tcp, port: 5432},
  {name: admin, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: pay}, spec: {clusterIP: None, ports: [{port: 80}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: api, namespace: pay}, spec: {hosts: [api.example.org],
  addresses: [240.1.2.3, "fd00::1:3"], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: wild, namespace: pay}, spec: {hosts: ["*.example.net"],
  addresses: [240.1.2.4, 240.9.0.0/16], ports: [{number: 443, name: tls, protocol: TLS}], resolution: NONE}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: bare, namespace: pay}, spec: {hosts: [bare.example.org],
  ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}}
"#;

fn pods(ready: bool) -> String {
    let pods = [("db-0", "10.1.0.10", true), ("db-1", "10.1.0.11", ready)];
    let endpoints = pods.map(|(name, address, ready)| {
        json!({"addresses": [address], "conditions": {"ready": ready}, "hostname": name})
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "db-x", "namespace": "pay", "labels": {"kubernetes.io/service-name": "db"}},
        "ports": [{"name": "tcp", "port": 5432}, {"name": "admin", "port": 8080}],
        "endpoints": endpoints,
    });
    slice.to_string()
}

#[tokio::test]
async fn the_table_has_what_istiod_puts_into_it() {
    let weir = Weir::start(&[]).await;
    weir.edit("services.yaml", SERVICES).await;
    weir.edit("pods.yaml", &pods(false)).await;
    let mut client = weir.ads(Variant::Delta).await;
    let found = table(&client.fetch(NDS, &[]).await);
    let domain = "pay.svc.cluster.local";
    for (name, wanted) in [
        (format!("cart.{domain}"), Some("10.96.0.7 Kubernetes cart pay")),
        // The proxy has an IPv4 address only.
        (format!("both.{domain}"), Some("10.96.0.8 Kubernetes both pay")),
        (format!("six.{domain}"), None),
        (format!("dns.{domain}"), Some("10.96.0.10 Kubernetes dns pay")),
        (format!("elsewhere.{domain}"), None),
        (format!("hidden.{domain}"), None),
        (format!("db.{domain}"), Some("10.1.0.10 Kubernetes db pay")),
        (format!("db-0.db.{domain}"), Some("10.1.0.10 Kubernetes db-0.db pay")),
        (format!("db-1.db.{domain}"), None),
        (format!("nobody.{domain}"), None),
        ("api.example.org".to_owned(), Some("240.1.2.3,fd00::1:3 External  ")),
        ("*.example.net".to_owned(), Some("240.1.2.4 External  ")),
        ("bare.example.org".to_owned(), None),
    ] {
        assert_eq!(found.get(&name).map(String::as_str), wanted, "{name}: {found:?}");
    }
    let mut six = weir.ads(Variant::Delta).await;
    let node = Some("sidecar~fd00::1~client-1.shop~shop.svc.cluster.local".to_owned());
    six.send(Ask { node, ..ask(NDS, &[]) }).await;
    let found = table(&six.got(NDS).await);
    assert_eq!(found[&format!("both.{domain}")], "fd00::8 Kubernetes both pay");
    assert_eq!(found[&format!("six.{domain}")], "fd00::9 Kubernetes six pay");
    assert_eq!(found.get(&format!("cart.{domain}")), None);
}

async fn is_pushed(variant: Variant) {
    let weir = Weir::start(&[]).await;
    weir.edit("services.yaml", SERVICES).await;
    weir.edit("pods.yaml", &pods(false)).await;
    let mut other = weir.ads(variant).await;
    other.fetch(CDS, &[]).await;
    let mut client = weir.ads(variant).await;
    let first = client.fetch(NDS, &[]).await;

    weir.edit("pods.yaml", &pods(true)).await;
    let second = client.got(NDS).await;
    assert_eq!(table(&second).len(), table(&first).len() + 1);
    client.answer(&second, Some("not now")).await;
    let rejects = "pilot_total_xds_rejects_total{type=\"nds\"} ";
    until("the rejection is counted", async || weir.serve.metric(rejects).await == Some(1)).await;
    // A weight changes no name, and what was rejected is not sent again.
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    weir.edit("pods.yaml", &pods(false)).await;
    let third = client.got(NDS).await;
    assert_eq!(table(&third), table(&first));
    client.ack(&third).await;
    let pushes = "pilot_xds_pushes_total{type=\"nds\"} ";
    assert_eq!(weir.serve.metric(pushes).await, Some(3), "nobody else has asked");
}

#[tokio::test]
async fn sotw_a_changed_table_is_pushed_to_those_who_asked() {
    is_pushed(Variant::Sotw).await;
}

#[tokio::test]
async fn delta_a_changed_table_is_pushed_to_those_who_asked() {
    is_pushed(Variant::Delta).await;
}

async fn concerns_nothing_else(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    client.send(ask(NDS, &[])).await;
    let first = client.got(NDS).await;
    let mut same = weir.ads(variant).await;
    assert_eq!(same.fetch(NDS, &[]).await.resources, first.resources, "they share a scope");
    // The table is not answered; weights and clusters go on.
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    let routes = client.got(RDS).await;
    client.ack(&routes).await;
    // No proxy of another namespace has asked yet, and nothing is in the table for it.
    weir.edit("service.yaml", "# Nothing.\n").await;
    let mut empty = weir.ads(variant).await;
    let node = Some("sidecar~127.0.0.1~client-0.pay~pay.svc.cluster.local".to_owned());
    empty.send(Ask { node, ..ask(NDS, &[]) }).await;
    assert_eq!(table(&empty.got(NDS).await), BTreeMap::new());
}

#[tokio::test]
async fn sotw_the_table_concerns_nothing_else() {
    concerns_nothing_else(Variant::Sotw).await;
}

#[tokio::test]
async fn delta_the_table_concerns_nothing_else() {
    concerns_nothing_else(Variant::Delta).await;
}
