use super::*;
use crate::api::{self, Identity, Kind};
use crate::mesh::{MeshBuilder, MeshConfig};
use crate::source::{Origin, SourceEvent};
use crate::store::Store;
use serde_json::{Value, json};

struct World {
    store: Store,
    builder: MeshBuilder,
    guard: RolloutGuard,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            store: Store::default(),
            builder: MeshBuilder::new(MeshConfig::default()),
            guard: RolloutGuard::default(),
        };
        world
                .apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]}}));
        world.rule(&[("v1", "v1"), ("v2", "v2")]);
        world.pods(&[("v1", true)]);
        world
    }

    fn apply(&mut self, document: Value) -> Vec<HeldChange> {
        let Ok(Identity::Known(key)) = api::identify(&document) else { panic!("{document}") };
        let object = Arc::new(api::parse(&key, document, 0).unwrap().object);
        let mut dirty = BTreeSet::new();
        self.store.apply(
            SourceEvent::Apply { object, origin: Origin::Cluster, warnings: vec![] },
            &mut dirty,
        );
        let mesh = self.builder.update(&self.store, &dirty);
        self.guard.apply(mesh).1
    }

    /// One pod for each version.
    fn pods(&mut self, versions: &[(&str, bool)]) -> Vec<HeldChange> {
        for (version, _) in versions {
            self.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("web-{version}"),
                    "namespace": "shop", "labels": {"version": version}}}));
        }
        let endpoints: Vec<_> = versions
            .iter()
            .enumerate()
            .map(|(n, (version, ready))| {
                json!({"addresses": [format!("10.1.0.{}", n + 1)],
                        "conditions": {"ready": ready, "terminating": false},
                        "targetRef": {"kind": "Pod", "name": format!("web-{version}")}})
            })
            .collect();
        self.apply(
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1",
                "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]}),
            )
    }

    fn rule(&mut self, subsets: &[(&str, &str)]) -> Vec<HeldChange> {
        let subsets: Vec<_> = subsets
            .iter()
            .map(|(name, version)| json!({"name": name, "labels": {"version": version}}))
            .collect();
        self.apply(json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
                "metadata": {"name": "web", "namespace": "shop"}, "spec": {"host": "web", "subsets": subsets}}))
    }

    fn route(&mut self, weights: &[(&str, i32)], annotation: &str) -> Vec<HeldChange> {
        let route: Vec<_> = weights
                .iter()
                .map(|(subset, weight)| json!({"destination": {"host": "web", "subset": subset}, "weight": weight}))
                .collect();
        self.apply(json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
                "metadata": {"name": "web", "namespace": "shop", "annotations": {ANNOTATION: annotation}},
                "spec": {"hosts": ["web"], "http": [{"route": route}]}}))
    }

    /// The effective destinations of the only route.
    fn effective(&mut self) -> Vec<HttpRouteDestination> {
        let mesh = self.builder.update(&self.store, &BTreeSet::new());
        let (mesh, _) = self.guard.apply(mesh);
        let entry = mesh.virtual_services.iter().next().unwrap().clone();
        entry.http().next().unwrap().destinations.to_vec()
    }

    /// Subsets and their effective shares in percent.
    fn split(&mut self) -> Vec<(String, i32)> {
        let to = self.effective();
        to.iter()
            .map(|item| {
                let share = whole_percent(share_of(&to, item.destination.as_ref()));
                (item.destination.clone().unwrap().subset, share)
            })
            .collect()
    }

    /// The effective weights.
    fn weights(&mut self) -> Vec<i32> {
        self.effective().iter().map(|to| to.weight).collect()
    }

    /// The revisions of the only VirtualService and of the only DestinationRule, and how many changes are held back.
    fn revisions(&mut self) -> (Revision, Revision, usize) {
        let mesh = self.builder.update(&self.store, &BTreeSet::new());
        let (mesh, held) = self.guard.apply(mesh);
        let rules = mesh.destination_rules.iter().next().unwrap().revision;
        (mesh.virtual_services.iter().next().unwrap().revision, rules, held.len())
    }
}

fn shares(list: &[(&str, i32)]) -> Vec<(String, i32)> {
    list.iter().map(|(subset, weight)| ((*subset).to_owned(), *weight)).collect()
}

#[test]
fn more_weight_for_an_empty_subset_waits_for_an_endpoint() {
    let mut world = World::new();
    assert!(world.route(&[("v1", 100), ("v2", 0)], "").is_empty());
    let held = world.route(&[("v1", 90), ("v2", 10)], "");
    assert_eq!(held[0].value, HeldValue::Weight { wanted: 10, effective: 0 });
    assert_eq!(
        (held[0].field.as_str(), &*held[0].object.to_string()),
        ("spec.http[0].route[1]", "VirtualService shop/web")
    );
    assert_eq!(world.split(), shares(&[("v1", 100), ("v2", 0)]));
    assert!(!world.pods(&[("v1", true), ("v2", false)]).is_empty(), "not ready is not enough");
    assert!(world.pods(&[("v1", true), ("v2", true)]).is_empty());
    assert_eq!(world.split(), shares(&[("v1", 90), ("v2", 10)]));
}

/// The effective weights after a change from `old` to `new` while `v2` has no pod.
fn held_weights(old: &[(&str, i32)], new: &[(&str, i32)]) -> Vec<i32> {
    let mut world = World::new();
    world.rule(&[("v1", "v1"), ("v2", "v2"), ("v3", "v3"), ("v4", "v4")]);
    world.pods(&[("v1", true), ("v3", true), ("v4", true)]);
    world.route(old, "allow");
    assert!(!world.route(new, "").is_empty());
    world.weights()
}

#[test]
fn held_weights_keep_the_sum_of_the_route_if_it_can_express_them() {
    let from = [("v1", 100), ("v2", 0)];
    assert_eq!(held_weights(&from, &[("v1", 90), ("v2", 10)]), [100, 0]);
    assert_eq!(held_weights(&[("v1", 95), ("v2", 5)], &[("v1", 700), ("v2", 300)]), [950, 50]);
    let thirds = [("v1", 30), ("v2", 10), ("v3", 30), ("v4", 30)];
    assert_eq!(
        held_weights(&from, &thirds),
        [34, 0, 33, 33],
        "what rounding leaves goes to the first"
    );
    // A sum too small for the shares, and a held share that is no whole number of the sum.
    assert_eq!(held_weights(&from, &[("v1", 1), ("v2", 1), ("v3", 1)]), [5000, 0, 5000]);
    assert_eq!(held_weights(&[("v1", 199), ("v2", 1)], &[("v1", 90), ("v2", 10)]), [9950, 50]);
    assert_eq!(held_weights(&from, &[("v1", i32::MAX), ("v2", i32::MAX)]), [10_000, 0]);
}

#[test]
fn an_empty_subset_keeps_its_weight_and_reductions_apply_at_once() {
    let mut world = World::new();
    world.pods(&[("v1", true), ("v2", true)]);
    world.route(&[("v1", 90), ("v2", 10)], "");
    world.pods(&[("v1", true), ("v2", false)]);
    assert_eq!(
        world.split(),
        shares(&[("v1", 90), ("v2", 10)]),
        "the active split does not change"
    );
    assert_eq!(world.route(&[("v1", 50), ("v2", 50)], "").len(), 1);
    assert_eq!(world.split(), shares(&[("v1", 90), ("v2", 10)]));
    assert!(world.route(&[("v1", 95), ("v2", 5)], "").is_empty());
    assert_eq!(world.split(), shares(&[("v1", 95), ("v2", 5)]));
}

#[test]
fn a_full_switch_to_an_empty_subset_waits() {
    let mut world = World::new();
    world.route(&[("v1", 100)], "");
    assert_eq!(world.route(&[("v2", 100)], "").len(), 1);
    assert_eq!(world.split(), shares(&[("v1", 100)]));
    world.pods(&[("v1", true), ("v2", true)]);
    assert_eq!(world.split(), shares(&[("v2", 100)]));
}

#[test]
fn a_new_empty_subset_gets_no_weight_and_a_single_destination_is_unaffected() {
    let mut world = World::new();
    assert_eq!(world.route(&[("v1", 50), ("v2", 50)], "").len(), 1);
    assert_eq!(world.split(), shares(&[("v1", 100), ("v2", 0)]));
    let mut world = World::new();
    assert!(world.route(&[("v2", 100)], "").is_empty());
    assert_eq!(world.split(), shares(&[("v2", 100)]));
}

#[test]
fn the_annotation_lets_weight_through() {
    let mut world = World::new();
    world.route(&[("v1", 100), ("v2", 0)], "allow");
    assert!(world.route(&[("v1", 90), ("v2", 10)], "allow").is_empty());
    assert_eq!(world.split(), shares(&[("v1", 90), ("v2", 10)]));
}

#[test]
fn entries_for_one_destination_are_held_back_together() {
    let mut world = World::new();
    world.pods(&[("v1", true), ("v2", false)]);
    world.route(&[("v1", 80), ("v2", 20)], "allow");
    let held = world.route(&[("v1", 30), ("v2", 40), ("v1", 10), ("v2", 20)], "");
    assert_eq!(held.len(), 2);
    assert!(
        held.iter().all(|change| change.value == HeldValue::Weight { wanted: 60, effective: 20 }),
        "{held:?}"
    );
    assert_eq!(world.split(), shares(&[("v1", 80), ("v2", 20), ("v1", 80), ("v2", 20)]));
}

fn virtual_service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "spec": spec,
            "metadata": {"name": name, "namespace": "shop"}})
}

fn route_with_weights(v1: i32, v2: i32) -> Value {
    json!({"http": [{"route": [
        {"destination": {"host": "web", "subset": "v1"}, "weight": v1},
        {"destination": {"host": "web", "subset": "v2"}, "weight": v2}]}]})
}

#[test]
fn weight_in_a_delegate_is_held_back_in_its_root() {
    let mut world = World::new();
    world.apply(virtual_service("leaf", route_with_weights(100, 0)));
    for (name, host) in [("root", "web"), ("other", "other")] {
        let spec = json!({"hosts": [host], "http": [{"delegate": {"name": "leaf"}}]});
        world.apply(virtual_service(name, spec));
    }
    let held = world.apply(virtual_service("leaf", route_with_weights(90, 10)));
    let [leaf, other, root] =
        ["leaf", "other", "root"].map(|name| ObjectKey::new(Kind::VirtualService, "shop", name));
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!((&held[0].object, &*held[0].field), (&leaf, "spec.http[0].route[1]"));
    assert_eq!(held[0].roots, [other, root]);
}

#[test]
fn an_overlay_keeps_its_revision_until_it_changes() {
    let mut world = World::new();
    world.route(&[("v1", 100), ("v2", 0)], "");
    world.route(&[("v1", 90), ("v2", 10)], "");
    world.rule(&[("v1", "v3"), ("v2", "v2")]);
    let held = world.revisions();
    assert_eq!(held.2, 2);
    // A pod that does not affect what is held back.
    world.pods(&[("v1", true), ("v2", false)]);
    assert_eq!(world.revisions(), held);
    world.route(&[("v1", 80), ("v2", 20)], "");
    world.rule(&[("v1", "v4"), ("v2", "v2")]);
    let changed = world.revisions();
    assert!(changed.0 != held.0 && changed.1 != held.1 && changed.2 == 2, "{changed:?}");
    world.pods(&[("v2", true), ("v4", true)]);
    let free = world.revisions();
    assert!(free.0 != changed.0 && free.1 != changed.1 && free.2 == 0, "{free:?}");
}

#[test]
fn rules_for_different_proxies_hold_back_labels_separately() {
    let mut world = World::new();
    world.pods(&[("v1", true), ("v2", true)]);
    world.route(&[("v1", 100)], "");
    // The same subset, for some clients with other labels.
    let held =
        world.apply(json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "some", "namespace": "shop"}, "spec": {"host": "web",
                "workloadSelector": {"matchLabels": {"app": "client"}},
                "subsets": [{"name": "v1", "labels": {"version": "v2"}}]}}));
    assert!(held.is_empty(), "{held:?}");
    world.pods(&[("v1", true)]);
    assert!(world.rule(&[("v1", "v1"), ("v2", "v2"), ("v3", "v3")]).is_empty());
}

#[test]
fn weight_for_a_region_waits_for_a_node_in_it() {
    let mut world = World::new();
    world.apply(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-2", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.1.0.9"], "nodeName": "n1"}]}));
    world.apply(json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "web", "namespace": "shop"}, "spec": {"host": "web", "subsets": [
                {"name": "v1", "labels": {"version": "v1"}},
                {"name": "eu", "labels": {"topology.kubernetes.io/region": "eu"}}]}}));
    world.route(&[("v1", 100), ("eu", 0)], "");
    assert_eq!(world.route(&[("v1", 90), ("eu", 10)], "").len(), 1);
    let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/region": "eu"}}});
    assert!(world.apply(node).is_empty());
    assert_eq!(world.split(), shares(&[("v1", 90), ("eu", 10)]));
}

#[test]
fn a_subset_keeps_its_endpoints_until_its_new_labels_have_one() {
    let mut world = World::new();
    world.route(&[("v1", 100)], "");
    let held = world.rule(&[("v1", "v3"), ("v2", "v2")]);
    assert!(
        matches!(&held[0].value, HeldValue::Labels { wanted, .. } if wanted["version"] == "v3"),
        "{held:?}"
    );
    assert!(world.pods(&[("v1", true), ("v3", true)]).is_empty());
    // Labels without endpoints are not kept.
    assert!(!world.rule(&[("v1", "v4")]).is_empty());
    assert!(world.pods(&[]).is_empty());
}
