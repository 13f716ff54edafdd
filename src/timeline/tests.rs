//! Tests of each kind of entry, on a small mesh.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::api::Kind;
use crate::mesh::Mesh;
use crate::revision::MeshRevision;
use crate::rollout_guard::{HeldChange, HeldValue};
use crate::source::sync::{KindSync, LastAnswer, OLD, SyncState, Verb};
use crate::source::{LocatedProblem, Origin, SourceEvent};
use crate::status::tests::{World, event, proxy, rejecting, route, web};
use crate::xds::connections::{ProxyStatus, StreamInfo};
use crate::xds::stream::{HeldResource, Variant};

fn at(milliseconds: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_millis(milliseconds)
}

/// The entry for a document that is read.
fn told(world: &World, document: Value) -> Option<String> {
    change(&world.store, &event(document)).map(|note| format!("{:?} {}", note.kind, note.text))
}

#[test]
fn versions_are_told_by_what_they_change() {
    let mut world = World::new();
    assert_eq!(told(&world, route(1, 100, json!(0))), None, "it is known");
    assert_eq!(
        told(&world, route(2, 90, json!(10))).unwrap(),
        "Accepted spec.http[0]: v1 100 -> 90 %, v2 0 -> 10 %"
    );
    let wrong = told(&world, route(2, 90, json!(-10))).unwrap();
    assert!(
        wrong.starts_with("Rejected not valid: spec.http[0].route[1].weight: is -10"),
        "{wrong}"
    );
    assert!(wrong.ends_with("; generation 1 stays in force"), "{wrong}");
    world.apply(route(2, 90, json!(-10)));
    assert_eq!(
        told(&world, route(3, 100, json!(0))).unwrap(),
        "Accepted changes nothing that weir reads"
    );
    assert_eq!(
        told(&world, route(1, 100, json!(0))).unwrap(),
        "Accepted valid again, as it was before"
    );
    let gone = change(&world.store, &SourceEvent::Delete(web())).unwrap();
    assert_eq!((gone.kind, gone.object), (EntryKind::Deleted, Some(web())));
    assert_eq!(
        change(&world.store, &SourceEvent::Delete(ObjectKey::new(Kind::Pod, "shop", "a"))),
        None
    );
}

#[test]
fn of_other_kinds_only_what_is_wrong_is_told() {
    let mut world = World::new();
    let service = |port: i64| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "shop"},
               "spec": {"ports": [{"name": "http", "port": port}]}})
    };
    assert_eq!(told(&world, service(80)), None);
    let wrong = service(-1);
    assert!(told(&world, wrong.clone()).unwrap().starts_with("Rejected not valid: "));
    world.apply(wrong);
    assert!(told(&world, service(80)).unwrap().starts_with("Accepted "));
}

#[test]
fn the_first_version_says_when_the_object_was_created() {
    let world = World::new();
    let mut first = route(1, 100, json!(0));
    first["metadata"]["name"] = json!("new");
    first["metadata"]["creationTimestamp"] = json!("2026-01-10T03:12:00Z");
    let note = change(&world.store, &event(first)).unwrap();
    assert_eq!(note.text, "read for the first time: spec.http[0]: v1 100 %, v2 0 %");
    assert_eq!(note.written.unwrap().to_string(), "2026-01-10T03:12:00Z");
}

#[test]
fn a_file_that_cannot_be_read_is_told_and_that_it_can_again() {
    let mut world = World::new();
    let problem = LocatedProblem {
        origin: Origin::File { path: std::path::PathBuf::from("a.yaml").into(), line: 3 },
        problem: crate::api::Problem::new("", "is no YAML", ""),
    };
    let broken =
        SourceEvent::SourceProblems { subject: "a.yaml".to_owned(), problems: vec![problem] };
    let note = change(&world.store, &broken).unwrap();
    assert_eq!((note.kind, &*note.text), (EntryKind::FileUnreadable, "a.yaml:3: is no YAML"));
    world.store.apply(broken, &mut Default::default());
    let mended = SourceEvent::SourceProblems { subject: "a.yaml".to_owned(), problems: vec![] };
    assert_eq!(change(&world.store, &mended).unwrap().kind, EntryKind::FileReadable);
}

#[test]
fn what_is_held_back_is_told_of_the_object_and_of_those_that_delegate_to_it() {
    let world = World::new();
    let root = ObjectKey::new(Kind::VirtualService, "shop", "root");
    let change = HeldChange {
        object: web(),
        roots: vec![root.clone()],
        field: "spec.http[0].route[1]".to_owned(),
        host: "web.shop.svc.cluster.local".into(),
        subset: "v2".to_owned(),
        value: HeldValue::Weight { wanted: 10, effective: 0 },
    };
    let affected = || change.affected().into_iter().map(|object| (object, &change));
    let notes = held(affected(), &world.store);
    let texts: BTreeMap<_, _> =
        notes.iter().map(|note| (note.object.clone().unwrap(), &*note.text)).collect();
    let reason = "weight 10 for subset `v2` of web.shop.svc.cluster.local is held at 0 until one of its endpoints is ready";
    assert_eq!(texts[&web()], format!("spec.http[0].route[1]: {reason}"));
    assert!(texts[&root].starts_with("VirtualService shop/web: spec.http[0].route[1]: "));
    assert_eq!((notes[0].shares[0].before, notes[0].shares[0].after), (Some(0.0), Some(10.0)));
    let released = released(affected(), &world.store);
    assert!(released[0].kind == EntryKind::Released && released[0].text.starts_with("no longer: "));
}

/// A world in which `web` was published at 1 s, and what follows it.
struct Followed {
    world: World,
    observer: Observer,
    publications: BTreeMap<ObjectKey, Publication>,
}

impl Followed {
    fn new() -> Self {
        let world = World::new();
        let publication = Publication { revision: world.revision, at: at(1000) };
        let publications = [(web(), publication)].into();
        Self { world, observer: Observer::default(), publications }
    }

    /// The entries other than of connections.
    fn observe(&mut self, connected: &[ProxyStatus], now: u64) -> Vec<Note> {
        let mut notes = self.all(connected, now);
        notes.retain(|note| !matches!(note.kind, EntryKind::Connected | EntryKind::Disconnected));
        notes
    }

    fn all(&mut self, connected: &[ProxyStatus], now: u64) -> Vec<Note> {
        let publications = std::mem::take(&mut self.publications);
        let state = self.world.published.state();
        self.observer.observe(&state, connected, publications, at(now))
    }
}

/// A proxy that ACKed this mesh at this time.
fn acked(pod: &str, revision: u64, milliseconds: u64) -> ProxyStatus {
    ProxyStatus { acked_at: Some(at(milliseconds)), ..proxy("shop", pod, revision) }
}

/// A proxy that is being sent the first mesh and does not answer.
fn lagging(pod: &str, reason: Option<&str>) -> ProxyStatus {
    ProxyStatus {
        acked: None,
        reached: None,
        wanted: Some(MeshRevision::from(1)),
        lagging: reason.map(str::to_owned),
        ..proxy("shop", pod, 0)
    }
}

fn texts(notes: &[Note]) -> Vec<String> {
    notes.iter().map(|note| format!("{:?} {}", note.kind, note.text)).collect()
}

#[test]
fn the_acks_of_an_object_are_told_once_each_time_they_mean_something() {
    let mut followed = Followed::new();
    let silent = lagging("b", None);
    let both = [lagging("a", None), silent.clone()];
    assert_eq!(
        texts(&followed.observe(&both, 1100)),
        ["Sent being sent to 2 of 2 proxies, none has answered"]
    );
    assert_eq!(followed.observe(&both, 1200), []);
    let one = [acked("a", 1, 1250), silent];
    let first = followed.observe(&one, 1300);
    assert_eq!(texts(&first), ["FirstAck 1 of 2 proxies ACKed revision 1, the first after 250 ms"]);
    assert_eq!((first[0].at, first[0].live, first[0].in_scope), (Some(at(1250)), 1, 2));
    assert_eq!(followed.observe(&one, 1350), []);
    let all = followed.observe(&[acked("a", 1, 1250), acked("b", 1, 13_000)], 13_100);
    assert_eq!(
        texts(&all),
        [
            "Acked 2 of 2 proxies ACKed revision 1, the first after 250 ms, the last, shop/b, after 12 s"
        ]
    );
    assert_eq!((all[0].at, all[0].generation), (Some(at(13_000)), 1));
    assert_eq!((first[0].first_ack, all[0].first_ack), (None, Some(at(1250))));
    assert!(!followed.observer.waits());
}

#[test]
fn a_proxy_that_lags_is_named_with_the_reason_and_when_it_caught_up() {
    let mut followed = Followed::new();
    let lags = [acked("a", 1, 1001), lagging("b", Some("no answer to rds for 10 s"))];
    assert_eq!(
        texts(&followed.observe(&lags, 11_000)),
        [
            "FirstAck 1 of 2 proxies ACKed revision 1, the first after 1 ms",
            "Lagging 1 of 2 proxies have it; 1 proxy lags: shop/b (no answer to rds for 10 s)"
        ]
    );
    assert_eq!(followed.observe(&lags, 12_000), [], "once");
    let caught_up = followed.observe(&[acked("a", 1, 1001), acked("b", 1, 20_000)], 20_100);
    assert_eq!(
        texts(&caught_up),
        [
            "Acked 2 of 2 proxies ACKed revision 1, the first after 1 ms, the last, shop/b, after 19 s",
            "CaughtUp 1 proxy answered again: shop/b"
        ]
    );
    // Where no object is waited for, it is told of all.
    let again = ProxyStatus { lagging: Some("no answer".to_owned()), ..acked("b", 1, 20_000) };
    let told = followed.observe(&[acked("a", 1, 1001), again], 40_000);
    assert_eq!(texts(&told), ["Lagging 1 proxy lags: shop/b (no answer)"]);
    assert_eq!(told[0].object, None);
}

#[test]
fn a_rejection_is_told_of_the_objects_behind_it_with_a_bounded_number_of_names() {
    let mut followed = Followed::new();
    let connected: Vec<_> = (0..20).map(|n| rejecting(&format!("client-{n}"), 1)).collect();
    let notes = followed.observe(&connected, 1100);
    let nacked: Vec<_> = notes.iter().filter(|note| note.kind == EntryKind::Nacked).collect();
    assert_eq!((nacked.len(), nacked[0].proxy_count, nacked[0].proxies.len()), (1, 20, 5));
    assert_eq!(nacked[0].object, Some(web()));
    let text = &nacked[0].text;
    assert!(
        text.starts_with(
            "20 proxies rejected it and kept the version before: shop/client-0 (rds 80: no)"
        ),
        "{text}"
    );
    assert!(text.ends_with(" and 15 more"), "{text}");
    assert_eq!(followed.observe(&connected, 1200), [], "once");
    // When it is rejected again after it was not, that is news.
    assert_eq!(followed.observe(&[acked("client-0", 1, 1300)], 1300).len(), 1);
    assert_eq!(followed.observe(&[rejecting("client-0", 1)], 1400).len(), 1);
}

#[test]
fn a_missing_cluster_is_told() {
    let mut followed = Followed::new();
    let held = HeldResource {
        kind: "rds",
        name: "80".into(),
        virtual_host: None,
        missing_cluster: "outbound|80|v3|web.shop.svc.cluster.local".into(),
        objects: [web()].into(),
    };
    let keeps = ProxyStatus { held: vec![held], ..rejecting("a", 1) };
    let keeps = ProxyStatus { rejected: Vec::new(), ..keeps };
    let told = texts(&followed.observe(&[keeps], 1100));
    assert!(
        told.contains(
            &"MissingCluster 1 proxy did not get it and kept the version before: shop/a (there is no cluster \
              outbound|80|v3|web.shop.svc.cluster.local)"
                .to_owned()
        ),
        "{told:?}"
    );
}

#[test]
fn an_object_that_no_proxy_sees_is_told_after_a_while() {
    let mut followed = Followed::new();
    assert_eq!(followed.observe(&[], 30_000), []);
    assert_eq!(texts(&followed.observe(&[], 31_000)), ["Unseen no connected proxy sees it"]);
    assert!(!followed.observer.waits());
}

#[test]
fn a_state_that_is_not_there_yet_is_waited_for() {
    let mut followed = Followed::new();
    let later = Publication { revision: followed.world.revision.next(), at: at(2000) };
    followed.publications = [(web(), later)].into();
    let connected = [acked("a", 1, 1001)];
    assert_eq!(followed.observe(&connected, 2000), []);
    followed.world.apply(route(2, 90, json!(10)));
    followed.world.publish();
    assert_eq!(followed.observe(&connected, 2010), []);
    let told = followed.observe(&[acked("a", 2, 2020)], 2030);
    assert_eq!(texts(&told), ["Acked 1 of 1 proxy ACKed revision 2: shop/a after 20 ms"]);
}

#[test]
fn connections_are_counted() {
    let mut followed = Followed::new();
    let since = |pod: &str, milliseconds: u64| {
        let stream = StreamInfo { since: at(milliseconds), variant: Variant::Delta, only: None };
        ProxyStatus { streams: vec![stream], ..proxy("shop", pod, 1) }
    };
    let many: Vec<_> = (0..7).map(|n| since(&format!("client-{n}"), 10)).collect();
    let notes = followed.all(&many, 1100);
    assert_eq!(notes[0].kind, EntryKind::Connected);
    assert_eq!(
        notes[0].text,
        "7 proxies connected: shop/client-0, shop/client-1, shop/client-2, shop/client-3, shop/client-4 and 2 more; \
         connected now: 7"
    );
    let notes = followed.all(&[since("client-0", 10), since("client-1", 1150)], 1200);
    let told: Vec<_> = notes.iter().map(|note| (note.kind, note.proxy_count)).collect();
    assert_eq!(told, [(EntryKind::Disconnected, 6), (EntryKind::Connected, 1)]);
}

fn kind(kind: Kind, state: SyncState) -> KindSync {
    KindSync { kind, state, complete: true, answered: LastAnswer::none_yet() }
}

#[test]
fn watches_of_several_kinds_that_fail_together_are_one_entry() {
    let mut watches = Watches::default();
    let kinds = [Kind::Pod, Kind::Service, Kind::VirtualService, Kind::DestinationRule];
    let all = |state: &SyncState| kinds.map(|one| kind(one, state.clone()));
    assert_eq!(watches.observe(&all(&SyncState::Waiting), at(0)), []);
    assert_eq!(watches.observe(&all(&SyncState::Synced), at(0)), []);
    let failing = SyncState::Failing("connection refused".to_owned());
    assert_eq!(
        texts(&watches.observe(&all(&failing), at(0))),
        [
            "ApiFailing pods, services, virtualservices and 1 more kinds: cannot be read, so newer changes are not known: \
             connection refused"
        ]
    );
    assert_eq!(watches.observe(&all(&failing), at(0)), [], "once");
    assert_eq!(watches.observe(&all(&SyncState::Synced), at(0))[0].kind, EntryKind::ApiAnswers);
    let mut one = all(&SyncState::Synced);
    one[2].state = SyncState::Forbidden(Verb::Watch, "no role".to_owned());
    assert_eq!(
        texts(&watches.observe(&one, at(0))),
        [
            "ApiForbidden virtualservices: weir may not watch this, so newer changes are not known: no role"
        ]
    );
    one[2].state = SyncState::Absent;
    assert_eq!(watches.observe(&one, at(0))[0].kind, EntryKind::ApiAbsent);
}

#[test]
fn a_watch_that_the_api_does_not_answer_is_told_with_the_time_since_when() {
    let mut watches = Watches::default();
    let mut silent = kind(Kind::VirtualService, SyncState::Synced);
    silent.answered = LastAnswer::before(OLD);
    let told = texts(&watches.observe(&[silent], at(100_000)));
    let since = "ApiSilent virtualservices: the API has not answered since 1970-01-01T00:00:";
    assert!(told.len() == 1 && told[0].starts_with(since), "{told:?}");
    let answered = kind(Kind::VirtualService, SyncState::Synced);
    assert_eq!(watches.observe(&[answered], at(101_000))[0].kind, EntryKind::ApiAnswers);
}

#[test]
fn a_destination_that_loses_its_last_ready_endpoint_is_told() {
    let mut world = World::new();
    let before = world.published.state().mesh.unwrap();
    let slice = |ready: bool| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1",
               "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
               "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": ready},
                              "targetRef": {"kind": "Pod", "name": "web-v1"}}],
               "ports": [{"name": "http", "port": 8080}]})
    };
    world.apply(slice(false));
    world.publish();
    let during = world.published.state().mesh.unwrap();
    let store = world.store.clone();
    let told = |before: &Mesh, after: &Mesh| -> Vec<String> {
        let notes = endpoints(before, after, MeshRevision::NONE, &store).into_iter();
        notes.map(|note| format!("{:?} {:?} {}", note.kind, note.object, note.text)).collect()
    };
    // v2 has no weight, so it is not told of.
    let object = Some(web());
    let expected = |kind: &str, what: &str| {
        vec![format!("{kind} {object:?} spec.http[0]: subset `v1` of web {what}")]
    };
    assert_eq!(told(&before, &during), expected("NoEndpoints", "has no ready endpoint any more"));
    assert_eq!(told(&during, &before), expected("Endpoints", "has a ready endpoint again"));
    assert_eq!(told(&during, &during), [""; 0]);
    // A service that is gone, or that is new and has none yet, neither lost nor got one.
    world.delete(&ObjectKey::new(Kind::Service, "shop", "web"));
    world.publish();
    let gone = world.published.state().mesh.unwrap();
    for (before, after) in [(&during, &gone), (&gone, &during), (&before, &gone), (&gone, &before)]
    {
        assert_eq!(told(before, after), [""; 0]);
    }
}
