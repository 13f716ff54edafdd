//! What the tests of the checks share: a small set of objects with which nothing is wrong.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::analyze;
use crate::mesh::MeshConfig;
use crate::source::loader::{Content, Loader};
use crate::store::Store;

/// The file that the objects are said to be in.
pub(super) const BASE_FILE: &str = "mesh.yaml";

/// In `shop`: the service `web` with pods of versions v1 and v2 and the subsets of these, `other` of whose pods nothing
/// is known, `many` with two ports; and `hidden`, which is not exported.
pub(super) fn base() -> String {
    let mut text = String::new();
    for (name, ports, fields) in [
        ("web", "{name: http, port: 80}", "namespace: shop"),
        ("other", "{name: http, port: 80}", "namespace: shop"),
        ("many", "{name: http, port: 80}, {name: tcp, port: 81}", "namespace: shop"),
        ("hidden", "{name: http, port: 80}", "namespace: shop, annotations: {networking.istio.io/exportTo: third}"),
    ] {
        let ip = format!("10.0.1.{}", name.len());
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, {fields}}}\n\
             spec: {{clusterIP: {ip}, selector: {{app: {name}}}, ports: [{ports}]}}\n"
        );
    }
    for version in ["v1", "v2"] {
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: web-{version}, namespace: shop, labels: {{app: web, version: {version}}}}}\n"
        );
    }
    text += "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
             spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}\n";
    text
}

pub(super) fn store(text: &str) -> Store {
    let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
    for change in Loader::new().update([(PathBuf::from(BASE_FILE), Content::Bytes(text.as_bytes().to_vec()))]) {
        store.apply(change, &mut dirty);
    }
    store
}

/// The codes and paths of what is found in a text, in order.
pub(super) fn found(text: &str) -> Vec<(&'static str, String)> {
    let found = analyze(&store(text), &MeshConfig::default());
    found.into_iter().map(|one| (one.code.id, one.path)).collect()
}

pub(super) fn ids(text: &str) -> Vec<&'static str> {
    found(text).into_iter().map(|(id, _)| id).collect()
}

/// What is found in a VirtualService in `shop` beside the base.
pub(super) fn found_in_virtual_service(spec: &str) -> Vec<(&'static str, String)> {
    found(&format!(
        "{}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\n\
         spec: {{{spec}}}\n",
        base()
    ))
}

/// What is found in its only route.
pub(super) fn found_in_route(route: &str) -> Vec<(&'static str, String)> {
    found_in_virtual_service(&format!("hosts: ['*.a.b'], http: [{{{route}}}]"))
}

/// What is found in a DestinationRule in `shop` beside the base.
pub(super) fn found_in_rule(spec: &str) -> Vec<(&'static str, String)> {
    found(&format!(
        "{}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{{spec}}}\n",
        base()
    ))
}

#[test]
fn syntax_schema_and_unknown_fields() {
    assert_eq!(found("kind: VirtualService\n"), [("WEIR0001", "apiVersion".to_owned())]);
    assert_eq!(found_in_virtual_service("hosts: 5"), [("IST0106", "spec.hosts".to_owned())]);
    assert_eq!(
        found_in_route("route: [{destination: {host: web}, wieght: 5}]"),
        [("IST0133", "spec.http[0].route[0].wieght".to_owned())]
    );
    let twice = base() + &base();
    assert!(ids(&twice).iter().all(|id| *id == "WEIR0001"));
}

#[test]
fn what_refers_to_refused_objects_is_not_wrong_for_that() {
    let istio = |kind: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{{spec}}}\n"
        )
    };
    let to = |host: &str, more: &str| {
        let route = format!("route: [{{destination: {{host: {host}{more}}}}}]");
        istio("VirtualService", "v", &format!("hosts: [{host}], http: [{{{route}}}]"))
    };
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\nspec: {ports: 5}\n";
    let rule = istio("DestinationRule", "r", "host: bad, trafficPolicy: {tls: {mode: DISABLE}}");
    for (refused, refers, path) in [
        (service.to_owned(), to("bad", "") + &rule, "spec.ports"),
        (
            istio("ServiceEntry", "e", "hosts: ['*.example.com'], resolution: NOTHING"),
            to("api.example.com", ""),
            "spec.resolution",
        ),
        (
            istio("DestinationRule", "d", "host: other, subsets: [{name: v9}], trafficPolicy: {}"),
            to("other", ", subset: v9"),
            "spec.trafficPolicy",
        ),
        (
            istio("VirtualService", "d", "http: [{}]"),
            istio("VirtualService", "v", "hosts: ['*.a.b'], http: [{delegate: {name: d}}]"),
            "spec.http[0]",
        ),
        (
            istio("VirtualService", "root", "hosts: [5], http: [{delegate: {name: v}}]"),
            istio("VirtualService", "v", "http: [{route: [{destination: {host: web}}]}]"),
            "spec.hosts[0]",
        ),
    ] {
        assert_eq!(found(&(base() + &refused + &refers)), [("IST0106", path.to_owned())], "{refused}");
    }
}

#[test]
fn much_is_looked_at_once() {
    let mut text = base();
    for n in 0..300 {
        text += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v{n}, namespace: shop}}\n\
             spec: {{hosts: [h{n}.example.com], http: [{{route: [{{destination: {{host: nobody{n}}}}}]}}]}}\n"
        );
    }
    let found = ids(&text);
    assert_eq!(found.iter().filter(|id| **id == "IST0101").count(), 300);
    assert_eq!(found.iter().filter(|id| **id == "WEIR0110").count(), 300);
}
