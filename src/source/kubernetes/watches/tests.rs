//! Watches that lag, lists that take time, and namespaces that come and go, in random order: what is held at the end is
//! what the API has in the selected namespaces, no batch holds part of a namespace, and no object goes back to a version
//! before one that was held or whose deletion was delivered.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::super::kinds::Failure;
use super::super::{Listed, NamespaceListing};
use super::*;
use crate::source::sync::Verb;

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KINDS: [Kind; 2] = [Kind::Service, Kind::WorkloadEntry];

/// A step of a history. Numbers pick among what is possible.
#[derive(Clone, Debug)]
enum Step {
    /// Labels a namespace, which creates it if there is none, or removes the label.
    Label(usize, bool),
    /// Deletes a namespace with all its objects.
    DeleteNamespace(usize),
    /// Writes the object of a kind in a namespace.
    Write(usize, usize),
    /// Deletes it.
    Delete(usize, usize),
    /// Delivers the next event of a kind: of its list, or else of its watch.
    Deliver(usize),
    /// A kind's watch breaks, and it is listed anew.
    Relist(usize),
    /// The list of a kind in progress fails.
    FailList(usize),
    /// The API answers the listing of a namespace, or refuses it; the answer is on its way then.
    Answer(usize, bool),
    /// The answer arrives.
    Arrive(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3_usize, any::<bool>()).prop_map(|(n, on)| Step::Label(n, on)),
        1 => (0..3_usize).prop_map(Step::DeleteNamespace),
        6 => (0..3_usize, 0..2_usize).prop_map(|(n, kind)| Step::Write(n, kind)),
        2 => (0..3_usize, 0..2_usize).prop_map(|(n, kind)| Step::Delete(n, kind)),
        12 => (0..3_usize).prop_map(Step::Deliver),
        1 => (0..3_usize).prop_map(Step::Relist),
        1 => (0..3_usize).prop_map(Step::FailList),
        4 => (0..4_usize, any::<bool>()).prop_map(|(n, well)| Step::Answer(n, well)),
        4 => (0..4_usize).prop_map(Step::Arrive),
    ];
    proptest::collection::vec(step, 1..120)
}

/// One kind as the API and the watch have it.
struct Stream {
    kind: Kind,
    /// The events after what was delivered.
    events: Vec<Event>,
    /// What is left of the list in progress.
    list: Vec<Event>,
    started: bool,
}

struct World {
    version: u64,
    objects: BTreeMap<ObjectKey, Value>,
    streams: Vec<Stream>,
    requested: Vec<NamespaceRequest>,
    answered: Vec<NamespaceListing>,
    watches: Watches,
    held: BTreeMap<ObjectKey, i64>,
    /// The newest version of each object that was ever held, or at which it is known to be deleted.
    newest: BTreeMap<ObjectKey, i64>,
}

fn key(kind: Kind, namespace: &str) -> ObjectKey {
    if kind == Kind::Namespace {
        ObjectKey::new(kind, "", namespace)
    } else {
        ObjectKey::new(kind, namespace, "x")
    }
}

impl World {
    fn new() -> Self {
        let selectors = ["env=prod", "team=mesh"].map(|text| text.parse().unwrap());
        let selection =
            Selection { revision: None, namespaces: Namespaces::Matching(Arc::new(selectors)) };
        let streams = [Kind::Namespace].into_iter().chain(KINDS).map(|kind| Stream {
            kind,
            events: vec![],
            list: vec![],
            started: false,
        });
        let mut watches = Watches::new(&selection);
        watches.kinds.retain(|state| KINDS.contains(&state.kind) || state.kind == Kind::Namespace);
        let mut world = Self {
            version: 1,
            objects: BTreeMap::new(),
            streams: streams.collect(),
            requested: vec![],
            answered: vec![],
            watches,
            held: BTreeMap::new(),
            newest: BTreeMap::new(),
        };
        world.start();
        world
    }

    fn start(&mut self) {
        for (kind, _) in self.watches.startable() {
            let stream = self.streams.iter().position(|stream| stream.kind == kind).unwrap();
            if !std::mem::replace(&mut self.streams[stream].started, true) {
                self.relist(stream);
            }
        }
        self.requested.extend(self.watches.take_requests());
    }

    fn relist(&mut self, stream: usize) {
        self.streams[stream].list = vec![Event::Init];
    }

    /// The API answers a list, which the watcher requests after it has told that one starts.
    fn list(&mut self, stream: usize) {
        let stream = &mut self.streams[stream];
        stream.events.clear();
        let objects = self.objects.iter().filter(|(key, _)| key.kind == stream.kind);
        let listed = objects.map(|(_, document)| Event::Apply(document.clone()));
        stream.list = listed.chain([Event::InitDone]).collect();
    }

    fn write(&mut self, key: ObjectKey, labels: Value) {
        self.version += 1;
        let api_version = match key.kind.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        };
        let document = json!({
            "apiVersion": api_version, "kind": key.kind.as_str(),
            "metadata": {"name": &*key.name, "namespace": &*key.namespace, "labels": labels,
                         "generation": self.version, "resourceVersion": self.version.to_string()},
            "spec": {"address": "10.0.0.1"},
        });
        self.event(key.kind, Event::Apply(document.clone()));
        self.objects.insert(key, document);
    }

    fn delete(&mut self, key: &ObjectKey) {
        if let Some(mut document) = self.objects.remove(key) {
            self.version += 1;
            document["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.event(key.kind, Event::Delete(document));
        }
    }

    fn event(&mut self, kind: Kind, event: Event) {
        let stream = self.streams.iter_mut().find(|stream| stream.kind == kind).unwrap();
        if stream.started {
            stream.events.push(event);
        }
    }

    fn deliver(&mut self, number: usize) -> bool {
        let stream = &mut self.streams[number];
        let from = if stream.list.is_empty() { &mut stream.events } else { &mut stream.list };
        if from.is_empty() {
            return false;
        }
        let event = from.remove(0);
        let kind = stream.kind;
        if let Event::Delete(document) = &event {
            let key = match api::identify(document) {
                Ok(Identity::Known(key)) => key,
                other => panic!("{other:?}"),
            };
            let at = i64::try_from(version(&event)).unwrap();
            let newest = self.newest.entry(key).or_default();
            *newest = at.max(*newest);
        }
        let starts = matches!(event, Event::Init);
        let mut out = Vec::new();
        self.watches.handle(kind, event, &mut out);
        self.take(out);
        if starts {
            self.list(number);
        }
        true
    }

    fn answer(&mut self, n: usize, well: bool) {
        if n >= self.requested.len() {
            return;
        }
        let NamespaceRequest { namespace, ticket, .. } = self.requested.remove(n);
        let all = KINDS.map(|kind| {
            let document = self.objects.get(&key(kind, &namespace)).cloned();
            (kind, Listed { version: self.version, documents: document.into_iter().collect() })
        });
        let kinds = if well { Ok(all.into()) } else { Err("refused".to_owned()) };
        self.answered.push(NamespaceListing { namespace, ticket, kinds });
    }

    fn arrive(&mut self, n: usize) {
        if n < self.answered.len() {
            let listing = self.answered.remove(n);
            let mut out = Vec::new();
            self.watches.listed(listing, &mut out);
            self.take(out);
        }
    }

    fn take(&mut self, out: Vec<SourceEvent>) {
        for event in out {
            match event {
                SourceEvent::Apply { object, .. } => {
                    let (key, version) = (object.key(), object.meta.generation);
                    let newest = self.newest.entry(key.clone()).or_default();
                    assert!(version >= *newest, "{key} goes back from {newest} to {version}");
                    *newest = version;
                    self.held.insert(key, version);
                }
                SourceEvent::Delete(key) => {
                    self.held.remove(&key);
                }
                SourceEvent::SourceProblems { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        self.start();
        let namespaces = self.watches.membership.as_ref().unwrap();
        for held in self.held.keys().filter(|key| key.kind.namespaced()) {
            let member = namespaces.selected.get(&held.namespace);
            assert!(
                matches!(member, Some(Member::Joined { .. })),
                "{held} of no selected namespace"
            );
        }
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Label(n, on) => {
                let env = if on { "prod" } else { "dev" };
                self.write(key(Kind::Namespace, NAMESPACES[n]), json!({ "env": env }));
            }
            Step::DeleteNamespace(n) => {
                for kind in KINDS.into_iter().chain([Kind::Namespace]) {
                    self.delete(&key(kind, NAMESPACES[n]));
                }
            }
            Step::Write(n, kind) => self.write(key(KINDS[kind], NAMESPACES[n]), json!({})),
            Step::Delete(n, kind) => self.delete(&key(KINDS[kind], NAMESPACES[n])),
            Step::Deliver(stream) => {
                self.deliver(stream);
            }
            Step::Relist(stream) if self.streams[stream].started => self.relist(stream),
            Step::FailList(stream) if !self.streams[stream].list.is_empty() => {
                let failure = Failure {
                    verb: Verb::List,
                    forbidden: false,
                    unreachable: false,
                    reason: "no".into(),
                };
                let kind = self.streams[stream].kind;
                let mut out = Vec::new();
                self.watches.handle(kind, Event::Failed(failure), &mut out);
                self.take(out);
                self.relist(stream);
            }
            Step::Answer(n, well) => self.answer(n, well),
            Step::Arrive(n) => self.arrive(n),
            Step::Relist(_) | Step::FailList(_) => {}
        }
    }

    /// Delivers everything.
    fn settle(&mut self) {
        while (0..3).any(|stream| self.deliver(stream))
            || !self.requested.is_empty()
            || !self.answered.is_empty()
        {
            self.answer(0, true);
            self.arrive(0);
        }
    }

    fn is_selected(&self, namespace: &str) -> bool {
        let namespace = self.objects.get(&key(Kind::Namespace, namespace));
        namespace.is_some_and(|document| document["metadata"]["labels"]["env"] == "prod")
    }

    /// What should be held.
    fn wanted(&self) -> BTreeMap<ObjectKey, i64> {
        let all = self.objects.iter();
        let ours =
            all.filter(|(key, _)| !key.kind.namespaced() || self.is_selected(&key.namespace));
        ours.map(|(key, document)| {
            (key.clone(), document["metadata"]["generation"].as_i64().unwrap())
        })
        .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
    #[test]
    fn what_is_held_is_what_the_selected_namespaces_have(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.play(step);
        }
        world.settle();
        prop_assert_eq!(&world.held, &world.wanted());
    }
}

#[test]
fn a_namespace_joins_with_all_its_kinds_in_one_batch_and_leaves_in_one() {
    let mut world = World::new();
    world.settle();
    for kind in [0, 1] {
        world.play(Step::Write(0, kind));
    }
    world.settle();
    assert!(world.held.is_empty());
    world.play(Step::Label(0, true));
    world.deliver(0);
    // A watch event of one kind alone would make the namespace visible in part.
    world.play(Step::Write(0, 0));
    world.deliver(1);
    assert_eq!(world.held.keys().filter(|key| key.kind.namespaced()).count(), 0);
    world.answer(0, true);
    world.arrive(0);
    assert_eq!(world.held, world.wanted());
    assert_eq!(world.held.len(), 3);
    world.play(Step::Label(0, false));
    world.deliver(0);
    assert_eq!(world.held.len(), 1);
}
