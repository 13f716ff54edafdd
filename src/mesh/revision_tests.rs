//! A value derived from several objects keeps its revision as long as its inputs are the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Mesh, MeshBuilder, MeshConfig, RegisteredService, VirtualService};
use crate::api::{self, Identity, Kind, Labels, ObjectKey};
use crate::revision::Revision;
use crate::source::{Origin, SourceEvent};
use crate::store::Store;

struct World {
    store: Store,
    builder: MeshBuilder,
}

impl World {
    fn new() -> Self {
        Self { store: Store::default(), builder: MeshBuilder::new(MeshConfig::default()) }
    }

    fn apply(&mut self, kind: &str, name: &str, created: u32, spec: Value) -> Mesh {
        let document = json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "spec": spec,
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z")}});
        let Ok(Identity::Known(key)) = api::identify(&document) else { panic!("{document}") };
        let object = Arc::new(api::parse(&key, document, 0).unwrap().object);
        self.change(SourceEvent::Apply { object, origin: Origin::Cluster, warnings: vec![] })
    }

    fn delete(&mut self, kind: Kind, name: &str) -> Mesh {
        self.change(SourceEvent::Delete(ObjectKey::new(kind, "shop", name)))
    }

    fn change(&mut self, change: SourceEvent) -> Mesh {
        let mut dirty = BTreeSet::new();
        self.store.apply(change, &mut dirty);
        self.builder.update(&self.store, &dirty)
    }
}

/// A DestinationRule for all clients.
fn rule(subset: &str) -> Value {
    json!({"host": "web", "subsets": [{"name": subset, "labels": {"version": subset}}]})
}

/// A DestinationRule for some clients.
fn selecting_rule(subset: &str) -> Value {
    let mut spec = rule(subset);
    spec["workloadSelector"] = json!({"matchLabels": {"app": "client"}});
    spec
}

/// The revisions of the rule for all clients, and of the one for some.
fn rule_revisions(mesh: &Mesh) -> [Revision; 2] {
    let client = Labels::from([("app".to_owned(), "client".to_owned())]);
    [Labels::new(), client].map(|labels| {
        let (rules, host) = (&mesh.destination_rules, "web.shop.svc.cluster.local");
        rules.find(host, "shop", "istio-system", "shop", &labels).unwrap().revision
    })
}

#[test]
fn merged_destination_rules() {
    let mut world = World::new();
    world.apply("DestinationRule", "a", 0, rule("v1"));
    world.apply("DestinationRule", "b", 1, rule("v2"));
    world.apply("DestinationRule", "c", 2, selecting_rule("v1"));
    let before = rule_revisions(&world.apply("DestinationRule", "d", 3, selecting_rule("v2")));
    assert_ne!(before[0], before[1]);

    let after = rule_revisions(&world.apply("DestinationRule", "d", 3, selecting_rule("v3")));
    assert_eq!(after[0], before[0], "those for all clients are made from the same");
    assert_ne!(after[1], before[1]);
    let again =
        rule_revisions(&world.apply("DestinationRule", "elsewhere", 4, json!({"host": "other"})));
    assert_eq!(again, after);
    let fewer = rule_revisions(&world.delete(Kind::DestinationRule, "b"));
    assert_ne!(fewer[0], after[0]);
    assert_eq!(fewer[1], after[1]);
}

/// The VirtualService `root` with its delegates merged in.
fn root(mesh: &Mesh) -> Arc<VirtualService> {
    let key = ObjectKey::new(Kind::VirtualService, "shop", "root");
    mesh.virtual_services.get(&key).unwrap().clone()
}

fn routes_to(host: &str) -> Value {
    json!({"http": [{"route": [{"destination": {"host": host}}]}]})
}

#[test]
fn virtual_services_with_delegates() {
    let mut world = World::new();
    world.apply("VirtualService", "first", 0, routes_to("one"));
    let spec = json!({"hosts": ["web"], "http": [
        {"match": [{"uri": {"prefix": "/a"}}], "delegate": {"name": "first"}}, {"delegate": {"name": "second"}}]});
    let alone = root(&world.apply("VirtualService", "root", 1, spec));
    assert_eq!((alone.http().count(), alone.dropped().len()), (1, 1));
    let both = root(&world.apply("VirtualService", "second", 2, routes_to("two")));
    assert_eq!((both.http().count(), both.dropped().len()), (2, 0));
    assert_ne!(both.revision, alone.revision);
    let same = root(&world.apply(
        "VirtualService",
        "another",
        3,
        json!({"hosts": ["other"], "http": routes_to("x")["http"]}),
    ));
    assert_eq!(same.revision, both.revision);
    let changed = root(&world.apply("VirtualService", "second", 2, routes_to("three")));
    assert_ne!(changed.revision, both.revision);
    // A delegate that must not be used differs from a missing one.
    let gone = root(&world.delete(Kind::VirtualService, "second"));
    let mut hidden = routes_to("two");
    hidden["exportTo"] = json!(["elsewhere"]);
    let hidden = root(&world.apply("VirtualService", "second", 2, hidden));
    assert_ne!((hidden.revision, hidden.dropped()), (gone.revision, gone.dropped()));
}

fn partner_entry(port: u16, address: &str) -> Value {
    json!({"hosts": ["partner.example"], "resolution": "STATIC", "endpoints": [{"address": address}],
        "ports": [{"number": port, "name": format!("http-{port}"), "protocol": "HTTP"}]})
}

fn partner(mesh: &Mesh) -> RegisteredService {
    mesh.services["partner.example"][0].clone()
}

#[test]
fn merged_service_entries() {
    let mut world = World::new();
    world.apply("ServiceEntry", "a", 0, partner_entry(80, "192.0.2.1"));
    let both = partner(&world.apply("ServiceEntry", "b", 1, partner_entry(90, "192.0.2.2")));
    assert_eq!(both.service.ports.len(), 2);
    let moved = partner(&world.apply("ServiceEntry", "b", 1, partner_entry(90, "192.0.2.3")));
    assert_eq!(moved.service_revision, both.service_revision, "endpoints alone have changed");
    assert_ne!(moved.endpoints_revision, both.endpoints_revision);
    let alone = partner(&world.delete(Kind::ServiceEntry, "b"));
    let revisions =
        [&both, &moved, &alone].map(|known| (known.service_revision, known.endpoints_revision));
    assert!(revisions[2].0 != revisions[1].0 && revisions[2].1 != revisions[1].1, "{revisions:?}");
}
