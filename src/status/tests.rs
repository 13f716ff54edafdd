//! Tests of the summaries and conditions of a small mesh.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::api::{self, Identity, Kind, ObjectKey};
use crate::mesh::{Locality, MeshBuilder, MeshConfig, NodeMetadata, Proxy};
use crate::revision::MeshRevision;
use crate::rollout_guard::RolloutGuard;
use crate::source::{Origin, SourceEvent, event_from};
use crate::store::Store;
use crate::xds::connections::ProxyStatus;
use crate::xds::stream::{Progress, RejectedResource};

pub(crate) struct World {
    pub(crate) store: Store,
    dirty: BTreeSet<ObjectKey>,
    builder: MeshBuilder,
    guard: RolloutGuard,
    pub(crate) published: Published,
    pub(crate) revision: MeshRevision,
}

impl World {
    /// The Service `web` with a ready pod of v1, a rule with two subsets, and a route of generation 1.
    pub(crate) fn new() -> Self {
        let mut world = Self {
            store: Store::default(),
            dirty: BTreeSet::new(),
            builder: MeshBuilder::new(MeshConfig::default()),
            guard: RolloutGuard::default(),
            published: Published::default(),
            revision: MeshRevision::NONE,
        };
        world.apply(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
                   "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]}}),
        );
        world.apply(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-v1", "namespace": "shop",
                   "labels": {"version": "v1"}}}),
        );
        world.apply(
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1",
                   "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                   "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": true},
                                  "targetRef": {"kind": "Pod", "name": "web-v1"}}],
                   "ports": [{"name": "http", "port": 8080}]}),
        );
        world.apply(
            json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
                   "metadata": {"name": "web", "namespace": "shop", "generation": 1},
                   "spec": {"host": "web", "subsets": [{"name": "v1", "labels": {"version": "v1"}},
                                                       {"name": "v2", "labels": {"version": "v2"}}]}}),
        );
        world.route(1, 100, json!(0));
        world.publish();
        world
    }

    pub(crate) fn apply(&mut self, document: Value) {
        self.store.apply(event(document), &mut self.dirty);
    }

    pub(crate) fn delete(&mut self, key: &ObjectKey) {
        self.store.apply(SourceEvent::Delete(key.clone()), &mut self.dirty);
    }

    fn route(&mut self, generation: i64, v1: i64, v2: Value) {
        self.apply(route(generation, v1, v2));
    }

    /// Publishes what was applied.
    pub(crate) fn publish(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        if !dirty.is_empty() {
            self.revision = self.revision.next();
            let wanted = self.builder.update(&self.store, &dirty);
            let services = wanted.virtual_services.clone();
            let (mesh, held) = self.guard.apply(wanted);
            self.published.publish(&mesh, self.revision, services, held, &dirty, &self.store);
        }
        self.published.rejected(&self.store);
    }

    fn summary(&self, connected: &[ProxyStatus]) -> ObjectSummary {
        let all = Summarizer::default().summaries(&self.published.state(), connected);
        ObjectSummary::clone(&all[&web()])
    }
}

/// The event of a source that reads this document.
pub(crate) fn event(document: Value) -> SourceEvent {
    let Ok(Identity::Known(key)) = api::identify(&document) else { panic!("{document}") };
    let parsed = api::parse(&key, document, 0);
    event_from(key, parsed, Origin::Cluster, |_| Origin::Cluster)
}

/// The VirtualService `web` with these weights.
pub(crate) fn route(generation: i64, v1: i64, v2: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
           "metadata": {"name": "web", "namespace": "shop", "generation": generation},
           "spec": {"hosts": ["web"], "http": [{"route": [
               {"destination": {"host": "web", "subset": "v1"}, "weight": v1},
               {"destination": {"host": "web", "subset": "v2"}, "weight": v2}]}]}})
}

pub(crate) fn web() -> ObjectKey {
    ObjectKey::new(Kind::VirtualService, "shop", "web")
}

/// A proxy that has ACKed all of a mesh.
pub(crate) fn proxy(namespace: &str, pod: &str, acked: u64) -> ProxyStatus {
    let id = format!("sidecar~10.9.0.1~{pod}.{namespace}~{namespace}.svc.cluster.local");
    let proxy = Proxy::new(&id, NodeMetadata::from_json(&json!({})), Locality::default()).unwrap();
    let acked = Some(MeshRevision::from(acked));
    ProxyStatus {
        id: id.into(),
        proxy: Arc::new(proxy),
        streams: Vec::new(),
        types: [Progress::Synced; 5],
        acked,
        acked_at: None,
        reached: acked,
        resting: false,
        wanted: acked,
        lagging: None,
        rejected: Vec::new(),
        held: Vec::new(),
        kept: Vec::new(),
    }
}

pub(crate) fn rejecting(pod: &str, reached: u64) -> ProxyStatus {
    let rejected = RejectedResource {
        kind: "rds",
        name: "80".into(),
        virtual_host: None,
        version: "1".to_owned(),
        objects: [web()].into(),
        message: "no".into(),
    };
    ProxyStatus {
        acked: Some(MeshRevision::NONE),
        reached: Some(MeshRevision::from(reached)),
        resting: true,
        rejected: vec![rejected],
        ..proxy("shop", pod, 0)
    }
}

/// Type, status and reason of each condition, and its message.
fn texts(conditions: &Conditions) -> Vec<String> {
    let texts = conditions.list.iter().map(|item| {
        format!("{}={} {}: {}", item.kind, item.status.as_str(), item.reason, item.message)
    });
    texts.collect()
}

fn decide(
    world: &World,
    own: &ObjectSummary,
    other: Result<Option<&ObjectSummary>, &str>,
) -> Vec<String> {
    let answers = [
        ReplicaAnswer { replica: "weir-0", summary: Ok(Some(own)) },
        ReplicaAnswer { replica: "weir-1", summary: other },
    ];
    texts(&conditions(&world.published.state(), &web(), &answers).unwrap())
}

fn count(report: &ObjectReport, state: ObjectState) -> usize {
    report.proxies.iter().filter(|proxy| proxy.state == state).count()
}

#[test]
fn summaries_say_what_the_report_of_one_object_says() {
    let mut world = World::new();
    world.apply(
        json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "default",
               "namespace": "closed"}, "spec": {"egress": [{"hosts": ["./*"]}]}}),
    );
    world.publish();
    let connected = [
        proxy("shop", "a", 2),
        proxy("shop", "b", 0),
        rejecting("c", 2),
        proxy("closed", "d", 0),
        proxy("far", "e", 1),
    ];
    let state = world.published.state();
    let mut summarizer = Summarizer::default();
    for _ in 0..2 {
        let all = summarizer.summaries(&state, &connected);
        assert_eq!(all.len(), 2);
        for (key, summary) in all {
            let report = object(&state, &connected, &key).unwrap();
            assert_eq!(summary.in_scope, report.proxies.len(), "{key}");
            assert_eq!(summary.live, count(&report, ObjectState::Live), "{key}");
            assert_eq!(summary.rejected, count(&report, ObjectState::Rejected), "{key}");
            assert_eq!(summary.version.generation, report.generation, "{key}");
            assert_eq!(super::summary(&state, &connected, &key).as_ref(), Some(&*summary));
        }
    }
}

#[test]
fn a_summary_names_a_few_proxies_and_those_that_rejected_the_object_first() {
    let world = World::new();
    let mut connected: Vec<_> = (0..20).map(|n| proxy("shop", &format!("client-{n}"), 0)).collect();
    connected.push(rejecting("client-20", 1));
    let summary = world.summary(&connected);
    assert_eq!((summary.in_scope, summary.live, summary.rejected), (21, 0, 1));
    assert_eq!(summary.missing.len(), NAMED);
    assert_eq!(summary.missing[0].proxy, "shop/client-20");
    assert_eq!(
        decide(&world, &summary, Ok(Some(&world.summary(&[]))))[1],
        "Programmed=False Rejected: 0/21 proxies; rejected by shop/client-20 (rds 80: no); \
         waiting for shop/client-0, shop/client-1, shop/client-2, shop/client-3 and 16 more"
    );
}

#[test]
fn an_object_is_programmed_when_every_proxy_at_every_replica_has_it() {
    let mut world = World::new();
    let [none, all] = [&[][..], &[proxy("shop", "a", 1), proxy("shop", "b", 1)]];
    let [none, all] = [none, all].map(|connected| world.summary(connected));
    let lagging = world.summary(&[proxy("shop", "c", 1), proxy("shop", "d", 0)]);
    for (own, other, shown) in [
        (&all, Ok(Some(&all)), "True Programmed: 4/4 proxies"),
        (&all, Ok(Some(&none)), "True Programmed: 2/2 proxies"),
        (&none, Ok(Some(&none)), "True NoProxies: 0/0 proxies; no connected proxy sees it"),
        (&all, Ok(Some(&lagging)), "False Pending: 3/4 proxies; waiting for shop/d"),
        (&lagging, Ok(Some(&all)), "False Pending: 3/4 proxies; waiting for shop/d"),
        (&all, Ok(None), "False Pending: 2/2 proxies; replica weir-1 does not have the object yet"),
        (
            &all,
            Err("no route"),
            "Unknown ReplicaUnreachable: 2/2 proxies; replica weir-1 cannot be asked: no route",
        ),
        // What one replica knows to be missing is missing, whatever the other would say.
        (
            &lagging,
            Err("no route"),
            "False Pending: 1/2 proxies; waiting for shop/d; replica weir-1 cannot be asked: no route",
        ),
    ] {
        assert_eq!(decide(&world, own, other)[1], format!("Programmed={shown}"));
    }
    let shown = decide(&world, &all, Ok(Some(&all)));
    assert_eq!(
        (shown[0].as_str(), shown[2].as_str()),
        ("Accepted=True Accepted: ", "Held=False NothingHeld: ")
    );

    // A replica with an older version has it on none of its proxies.
    world.route(2, 50, json!(50));
    world.publish();
    let new = world.summary(&[proxy("shop", "a", 2)]);
    assert_eq!(
        decide(&world, &new, Ok(Some(&all)))[1],
        "Programmed=False Held: 1/3 proxies; a change is held back; replica weir-1 still has generation 1"
    );
    let mut deleted = all.clone();
    deleted.version.created -= 1;
    deleted.version.generation = 7;
    assert!(
        decide(&world, &new, Ok(Some(&deleted)))[1]
            .ends_with("replica weir-1 has an object of this name that was deleted")
    );
}

#[test]
fn a_change_that_is_held_back_is_named_by_its_field() {
    let mut world = World::new();
    world.route(2, 90, json!(10));
    world.publish();
    let summary = world.summary(&[proxy("shop", "a", 2)]);
    let shown = decide(&world, &summary, Ok(Some(&summary)));
    assert_eq!(shown[1], "Programmed=False Held: 2/2 proxies; a change is held back");
    assert!(
        shown[2].starts_with("Held=True NoReadyEndpoint: VirtualService shop/web: spec.http[0].route[1]: weight 10 for subset `v2`"),
        "{shown:?}"
    );
}

#[test]
fn a_rejected_object_says_which_field_and_which_generation() {
    let mut world = World::new();
    let summary = world.summary(&[proxy("shop", "a", 1)]);
    world.route(2, 50, json!("fifty"));
    world.publish();
    let answers = [ReplicaAnswer { replica: "weir-0", summary: Ok(Some(&summary)) }];
    let found = conditions(&world.published.state(), &web(), &answers).unwrap();
    assert_eq!(found.generation, 2);
    let shown = texts(&found);
    assert!(
        shown[0]
            .starts_with("Accepted=False Invalid: spec.http[0].route[1].weight: is the wrong type"),
        "{shown:?}"
    );
    assert_eq!(
        shown[1],
        "Programmed=False Invalid: generation 2 is not valid; generation 1 stays in force: 1/1 proxy"
    );

    // One that never was valid.
    let key = ObjectKey::new(Kind::VirtualService, "shop", "other");
    world.apply(
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
               "metadata": {"name": "other", "namespace": "shop", "generation": 1}, "spec": {"hosts": "web"}}),
    );
    world.publish();
    let found = conditions(&world.published.state(), &key, &[]).unwrap();
    assert_eq!((found.generation, found.created), (1, None));
    assert_eq!(texts(&found)[1], "Programmed=False Invalid: generation 1 is not valid");

    // Mended.
    world.route(3, 100, json!(0));
    world.publish();
    let found = conditions(&world.published.state(), &web(), &answers).unwrap();
    assert_eq!(found.generation, 3);
    assert!(texts(&found)[0].starts_with("Accepted=True"), "{found:?}");
    assert_eq!(
        conditions(
            &world.published.state(),
            &ObjectKey::new(Kind::VirtualService, "shop", "none"),
            &[]
        ),
        None
    );
}

#[test]
fn warnings_about_an_accepted_object_are_shown() {
    let mut world = World::new();
    world.apply(
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
               "metadata": {"name": "web", "namespace": "shop", "generation": 2},
               "spec": {"hosts": ["web"], "htp": [], "http": [{"route": [{"destination": {"host": "web"}}]}]}}),
    );
    world.publish();
    let found = conditions(&world.published.state(), &web(), &[]).unwrap();
    assert!(texts(&found)[0].starts_with("Accepted=True Accepted: spec.htp: "), "{found:?}");
}

fn shown(
    world: &World,
    own: &ObjectSummary,
    other: Result<Option<&ObjectSummary>, &str>,
) -> Liveness {
    let answers = [
        ReplicaAnswer { replica: "weir-0", summary: Ok(Some(own)) },
        ReplicaAnswer { replica: "weir-1", summary: other },
    ];
    liveness(&world.published.state(), &web(), &answers).unwrap()
}

#[test]
fn an_object_is_live_where_it_is_programmed_and_otherwise_it_is_said_what_is_missing() {
    let mut world = World::new();
    let [all, lagging] = [1, 0].map(|acked| world.summary(&[proxy("shop", "a", acked)]));
    let found = shown(&world, &all, Ok(Some(&all)));
    assert!(found.live && found.missing.is_empty() && found.missing_replicas.is_empty());
    assert_eq!((found.proxies, found.live_proxies, found.generation), (2, 2, 1));

    let found = shown(&world, &lagging, Err("no route"));
    assert!(!found.live);
    assert_eq!((found.proxies, found.live_proxies), (1, 0));
    assert_eq!(found.missing[0].proxy, "shop/a");
    assert_eq!(found.missing_replicas, ["replica weir-1 cannot be asked: no route"]);
    // A replica that cannot be asked may have any number of proxies.
    assert!(!shown(&world, &all, Err("no route")).live);
    assert!(!shown(&world, &all, Ok(None)).live);

    // Held back: every proxy has what is in force, which is not what was asked for.
    world.route(2, 90, json!(10));
    world.publish();
    let own = world.summary(&[proxy("shop", "a", 2)]);
    let found = shown(&world, &own, Ok(Some(&own)));
    assert!(!found.live && found.message.contains("spec.http[0].route[1]: weight 10"), "{found:?}");

    // Invalid: the last valid version stays in force.
    world.route(3, 50, json!("fifty"));
    world.publish();
    let found = shown(&world, &own, Ok(Some(&own)));
    assert!(!found.live && found.generation == 3, "{found:?}");
    assert!(found.message.contains("spec.http[0].route[1].weight: is the wrong type"), "{found:?}");
}

#[test]
fn a_selection_has_what_it_names_and_others_as_long_as_there_is_room() {
    let mut world = World::new();
    world.route(1, 90, json!(10));
    for name in ["a", "b"] {
        let mut document = route(1, 50, json!(50));
        document["metadata"]["name"] = name.into();
        document["spec"]["hosts"] = json!([format!("{name}.example")]);
        if name == "b" {
            // Two routes.
            let only = document["spec"]["http"][0].clone();
            document["spec"]["http"][0]["match"] = json!([{"uri": {"prefix": "/x"}}]);
            document["spec"]["http"].as_array_mut().unwrap().push(only);
        }
        world.apply(document);
    }
    world.publish();
    let state = world.published.state();
    for (named, room, expected) in [
        (&[][..], 0, &[][..]),
        (&["web"], 0, &["web"]),
        (&["b"], 0, &["b", "b"]),
        (&[], 2, &["a", "web"]),
        (&["web"], 2, &["a", "web"]),
        (&["web"], 3, &["a", "b", "b", "web"]),
    ] {
        let keys = named.iter().map(|name| ObjectKey::new(Kind::VirtualService, "shop", name));
        let selection =
            SplitSelection { namespace: String::new(), only: Some((keys.collect(), room)) };
        let found = splits(&state, &[], selection, None);
        let mut found: Vec<&str> = found.iter().map(|split| &*split.object.name).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{named:?} {room}");
    }
    let all = splits(&state, &[], SplitSelection::of_namespace("shop"), None);
    let none = splits(&state, &[], SplitSelection::of_namespace("far"), None);
    assert_eq!((all.len(), none.len()), (4, 0));
}
