//! Tests of the spans that histories of the time line come to.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};

use super::follow::{Trace, Traces};
use super::span::{Ids, nanoseconds};
use crate::api::{Kind, ObjectKey};
use crate::revision::MeshRevision;
use crate::status::{MissingProxy, ObjectState};
use crate::timeline::{Entry, EntryKind, Note};

fn at(milliseconds: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(1_000_000) + Duration::from_millis(milliseconds)
}

fn web() -> ObjectKey {
    ObjectKey::new(Kind::VirtualService, "shop", "web")
}

/// A time line, and the traces of it.
struct History {
    traces: Traces,
    number: u64,
    ended: Vec<Trace>,
}

impl History {
    fn new() -> Self {
        Self { traces: Traces::new(0, Ids::random()), number: 0, ended: Vec::new() }
    }

    /// An entry of the object at this time, in milliseconds, with this revision.
    fn tell(
        &mut self,
        kind: EntryKind,
        milliseconds: u64,
        revision: u64,
        change: impl Fn(&mut Note),
    ) {
        self.number += 1;
        let mut note = Note::of(&web(), kind, format!("{kind:?}"));
        note.revision = MeshRevision::from(revision);
        note.publishes = matches!(kind, EntryKind::Accepted | EntryKind::Deleted);
        change(&mut note);
        let entry = Entry { number: self.number, at: at(milliseconds), note };
        self.ended.extend(self.traces.read(&[Arc::new(entry)]));
    }

    fn written(&mut self, milliseconds: u64, generation: i64) {
        self.tell(EntryKind::Accepted, milliseconds, 0, |note| note.generation = generation);
    }

    fn published(&mut self, milliseconds: u64, revision: u64) {
        self.tell(EntryKind::Published, milliseconds, revision, |_| {});
    }

    fn acked(&mut self, kind: EntryKind, milliseconds: u64, revision: u64, live: usize) {
        self.tell(kind, milliseconds, revision, |note| (note.live, note.in_scope) = (live, 3));
    }

    fn hold(&mut self, kind: EntryKind, milliseconds: u64) {
        self.tell(kind, milliseconds, 0, |note| note.place = "spec.http[0].route[1]".to_owned());
    }

    /// The only trace that has ended since the last call.
    fn trace(&mut self) -> Trace {
        let trace = self.ended.pop().expect("no trace has ended");
        assert!(self.ended.is_empty(), "{:?}", self.ended);
        assert_whole(&trace);
        trace
    }

    fn none_ended(&self) {
        assert!(self.ended.is_empty(), "{:?}", self.ended);
    }
}

/// One trace, whose children have the root as parent and lie within it.
fn assert_whole(trace: &Trace) {
    let (root, children) = trace.split_first().unwrap();
    assert_eq!((root.trace_id.len(), root.span_id.len(), root.parent_span_id.len()), (16, 8, 0));
    for child in children {
        assert_eq!((&child.trace_id, &child.parent_span_id), (&root.trace_id, &root.span_id));
        assert!(root.start_time_unix_nano <= child.start_time_unix_nano, "{child:?}");
        assert!(child.start_time_unix_nano <= child.end_time_unix_nano, "{child:?}");
        assert!(child.end_time_unix_nano <= root.end_time_unix_nano, "{child:?} {root:?}");
    }
}

/// The names and times of spans, in milliseconds.
fn times(trace: &Trace) -> Vec<(&str, u64, u64)> {
    let since = |nanos: u64| (nanos - nanoseconds(at(0))) / 1_000_000;
    let of = |span: &Span| (since(span.start_time_unix_nano), since(span.end_time_unix_nano));
    trace
        .iter()
        .map(|span| {
            let (start, end) = of(span);
            (span.name.as_str(), start, end)
        })
        .collect()
}

fn value(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn outcome(trace: &Trace) -> String {
    value(&trace[0].attributes, "weir.outcome")
}

fn status(trace: &Trace) -> (StatusCode, &str) {
    trace[0].status.as_ref().map_or((StatusCode::Unset, ""), |status| {
        (StatusCode::try_from(status.code).unwrap(), status.message.as_str())
    })
}

fn events(trace: &Trace) -> Vec<&str> {
    trace[0].events.iter().map(|event| event.name.as_str()).collect()
}

#[test]
fn a_change_lasts_until_the_last_ack() {
    let mut history = History::new();
    history.written(0, 7);
    history.published(2, 21);
    history.acked(EntryKind::FirstAck, 5, 21, 1);
    history.none_ended();
    history.acked(EntryKind::Acked, 30, 21, 3);
    let trace = history.trace();
    assert_eq!(
        times(&trace),
        [
            ("change VirtualService", 0, 30),
            ("publish", 0, 2),
            ("first ACK", 2, 5),
            ("last ACK", 2, 30)
        ]
    );
    assert_eq!((outcome(&trace).as_str(), status(&trace)), ("live", (StatusCode::Ok, "")));
    for (key, expected) in [
        ("weir.object.kind", "VirtualService"),
        ("weir.object.namespace", "shop"),
        ("weir.object.name", "web"),
        ("weir.object.generation", "7"),
        ("weir.mesh.revision", "21"),
        ("weir.proxies.in_scope", "3"),
        ("weir.proxies.live", "3"),
        ("weir.change", "Accepted"),
        ("error.type", ""),
    ] {
        assert_eq!(value(&trace[0].attributes, key), expected, "{key}");
    }
    assert_eq!(history.traces.deadline(), None);
}

#[test]
fn the_time_of_an_ack_that_was_before_the_change_does_not_make_it_end_before_it_began() {
    let mut history = History::new();
    history.written(100, 7);
    history.published(102, 21);
    // Nothing was to be sent: the last ACK of each proxy is an old one.
    history.tell(EntryKind::Acked, 40, 21, |note| {
        (note.live, note.in_scope, note.first_ack) = (2, 2, Some(at(30)));
    });
    let trace = history.trace();
    assert_eq!(times(&trace)[0], ("change VirtualService", 100, 100));
    assert_eq!(outcome(&trace), "live");
}

#[test]
fn the_first_ack_is_known_where_all_are_told_at_once() {
    let mut history = History::new();
    history.written(0, 7);
    history.published(2, 21);
    history.tell(EntryKind::Acked, 9, 21, |note| {
        (note.live, note.in_scope, note.first_ack) = (3, 3, Some(at(4)));
    });
    let trace = history.trace();
    assert_eq!(times(&trace)[2..], [("first ACK", 2, 4), ("last ACK", 2, 9)]);
}

#[test]
fn a_newer_version_ends_the_trace_of_the_older_one_and_acks_of_that_do_not_count() {
    let mut history = History::new();
    history.written(0, 7);
    history.published(2, 21);
    history.written(10, 8);
    let old = history.trace();
    assert_eq!(times(&old), [("change VirtualService", 0, 10), ("publish", 0, 2)]);
    assert_eq!((outcome(&old).as_str(), status(&old)), ("superseded", (StatusCode::Unset, "")));
    history.acked(EntryKind::Acked, 11, 21, 3);
    history.published(12, 22);
    history.acked(EntryKind::Acked, 13, 21, 3);
    history.none_ended();
    history.acked(EntryKind::Acked, 20, 22, 3);
    assert_eq!(value(&history.trace()[0].attributes, "weir.object.generation"), "8");
}

#[test]
fn what_is_held_back_is_not_live_before_it_is_released() {
    let mut history = History::new();
    history.written(0, 7);
    history.hold(EntryKind::Held, 1);
    history.published(2, 21);
    history.acked(EntryKind::Acked, 5, 21, 3);
    history.none_ended();
    history.hold(EntryKind::Released, 1000);
    history.published(1001, 22);
    history.acked(EntryKind::FirstAck, 1003, 22, 1);
    history.acked(EntryKind::Acked, 1005, 22, 3);
    let trace = history.trace();
    assert_eq!(
        times(&trace),
        [
            ("change VirtualService", 0, 1005),
            ("publish", 0, 1001),
            ("hold back", 1, 1000),
            ("first ACK", 1001, 1003),
            ("last ACK", 1001, 1005)
        ]
    );
    assert_eq!(value(&trace[1].attributes, "weir.held"), "Held");
    assert_eq!(value(&trace[2].attributes, "weir.reason"), "Held");
    assert_eq!(events(&trace), ["held back", "ACKed without what is held back", "released"]);
    assert_eq!(outcome(&trace), "live");
}

#[test]
fn a_hold_goes_on_in_the_next_version_unless_that_withdraws_it() {
    let mut history = History::new();
    history.written(0, 7);
    history.hold(EntryKind::Held, 1);
    history.published(2, 21);
    // It changes something else, and the hold is not told again.
    history.written(10, 8);
    history.published(11, 22);
    assert_eq!(times(&history.trace())[2], ("hold back", 1, 10));
    history.acked(EntryKind::Acked, 12, 22, 3);
    history.none_ended();
    history.written(20, 9);
    history.hold(EntryKind::Released, 21);
    history.published(22, 23);
    assert_eq!(outcome(&history.trace()), "superseded");
    history.acked(EntryKind::Acked, 25, 23, 3);
    let trace = history.trace();
    assert_eq!(
        times(&trace),
        [("change VirtualService", 20, 25), ("publish", 20, 22), ("last ACK", 22, 25)]
    );
}

#[test]
fn a_hold_that_outlasts_its_trace_has_one_for_its_release() {
    let mut history = History::new();
    history.written(0, 7);
    history.hold(EntryKind::Held, 1);
    history.published(2, 21);
    let ended = history.traces.expire(at(600_000));
    assert_eq!((ended.len(), outcome(&ended[0]).as_str()), (1, "timeout"));
    assert_whole(&ended[0]);
    assert_eq!(times(&ended[0])[1..], [("publish", 0, 600_000), ("hold back", 1, 600_000)]);
    assert_eq!(status(&ended[0]), (StatusCode::Error, "held back: Held"));
    history.hold(EntryKind::Released, 700_000);
    history.published(700_001, 22);
    history.acked(EntryKind::Acked, 700_005, 22, 3);
    assert_eq!(times(&history.trace())[0], ("release VirtualService", 700_000, 700_005));
}

#[test]
fn a_version_that_is_not_valid_has_a_trace_of_its_own_and_the_valid_one_goes_on() {
    let mut history = History::new();
    history.written(0, 7);
    history.published(2, 21);
    history.tell(EntryKind::Rejected, 4, 0, |note| note.text = "not valid: weight".to_owned());
    let wrong = history.trace();
    assert_eq!(times(&wrong), [("change VirtualService", 4, 4)]);
    assert_eq!(status(&wrong), (StatusCode::Error, "not valid: weight"));
    assert_eq!(value(&wrong[0].attributes, "error.type"), "rejected");
    // Valid again as it is in force: nothing follows.
    history.tell(EntryKind::Accepted, 6, 0, |note| note.publishes = false);
    history.acked(EntryKind::Acked, 9, 21, 3);
    assert_eq!(times(&history.trace())[0], ("change VirtualService", 0, 9));
}

#[test]
fn a_rejecting_proxy_is_named_and_ends_the_trace_if_nothing_follows() {
    let mut history = History::new();
    history.written(0, 7);
    history.published(2, 21);
    let proxies = |note: &mut Note| {
        let reason = "no such filter".to_owned();
        let state = ObjectState::Rejected;
        note.proxies = vec![MissingProxy { proxy: "shop/a".to_owned(), state, reason }];
        note.proxy_count = 7;
    };
    history.tell(EntryKind::Nacked, 5, 21, proxies);
    history.acked(EntryKind::FirstAck, 50, 21, 1);
    assert_eq!(history.traces.deadline(), Some(at(10_050)));
    assert!(history.traces.expire(at(10_049)).is_empty());
    let trace = history.traces.expire(at(10_050)).pop().unwrap();
    assert_whole(&trace);
    assert_eq!(times(&trace)[0], ("change VirtualService", 0, 50));
    assert_eq!(
        (outcome(&trace).as_str(), status(&trace)),
        ("nacked", (StatusCode::Error, "Nacked"))
    );
    let event = &trace[0].events[0].attributes;
    assert_eq!(events(&trace), ["NACKed"]);
    let expected = ["shop/a", "no such filter", "7"];
    assert_eq!(
        ["weir.proxy", "weir.reason", "weir.proxies.count"].map(|key| value(event, key)),
        expected
    );

    // If all ACK it after all, it is live.
    history.written(0, 8);
    history.published(2, 22);
    history.tell(EntryKind::Nacked, 5, 22, proxies);
    history.acked(EntryKind::Acked, 60, 22, 3);
    let trace = history.trace();
    assert_eq!((outcome(&trace).as_str(), events(&trace)), ("live", vec!["NACKed"]));
}

#[test]
fn a_proxy_that_never_answers_ends_the_trace_after_a_bounded_time() {
    let mut history = History::new();
    history.written(0, 7);
    history.published(2, 21);
    history.tell(EntryKind::Lagging, 10_000, 21, |note| {
        (note.live, note.in_scope, note.text) = (2, 3, "1 proxy lags".to_owned());
    });
    assert_eq!(history.traces.deadline(), Some(at(600_000)));
    let trace = history.traces.expire(at(600_000)).pop().unwrap();
    assert_whole(&trace);
    assert_eq!(status(&trace), (StatusCode::Error, "live on 2 of 3 proxies: 1 proxy lags"));
    assert_eq!(history.traces.deadline(), None);
}

#[test]
fn an_object_that_nobody_sees_is_done_with_its_publication_and_one_that_is_deleted_too() {
    let mut history = History::new();
    history.written(0, 7);
    history.published(2, 21);
    history.tell(EntryKind::Unseen, 30_002, 21, |_| {});
    let trace = history.trace();
    assert_eq!((times(&trace)[0].2, outcome(&trace).as_str()), (2, "unseen"));

    history.written(40_000, 8);
    history.tell(EntryKind::Deleted, 40_005, 0, |_| {});
    assert_eq!(outcome(&history.trace()), "deleted");
    history.published(40_007, 22);
    let trace = history.trace();
    assert_eq!(times(&trace)[0], ("delete VirtualService", 40_005, 40_007));
    // One of which no version was ever valid changes nothing.
    history.tell(EntryKind::Deleted, 50_000, 0, |note| note.publishes = false);
    assert_eq!(history.traces.deadline(), None);
}

#[test]
fn what_was_there_when_weir_started_is_no_change_but_what_it_held_back_is_known() {
    let mut history = History::new();
    history.traces = Traces::new(3, Ids::random());
    history.written(0, 7);
    history.hold(EntryKind::Held, 1);
    history.published(2, 21);
    history.acked(EntryKind::Acked, 3, 21, 3);
    assert_eq!(history.traces.deadline(), None);
    history.written(10, 8);
    history.published(12, 22);
    history.acked(EntryKind::Acked, 15, 22, 3);
    history.none_ended();
    let trace = history.traces.stop(at(20)).pop().unwrap();
    assert_whole(&trace);
    assert_eq!((outcome(&trace).as_str(), times(&trace)[2]), ("stopped", ("hold back", 10, 20)));
}

#[test]
fn other_kinds_have_no_traces_and_changes_and_events_are_bounded() {
    let mut history = History::new();
    let key = |kind, n: usize| ObjectKey::new(kind, "shop", &format!("web-{n}"));
    history.tell(EntryKind::Accepted, 0, 0, |note| note.object = Some(key(Kind::ServiceEntry, 0)));
    assert_eq!(history.traces.deadline(), None);
    for n in 0..5000 {
        let object = key(Kind::DestinationRule, n);
        history.tell(EntryKind::Accepted, 0, 0, |note| note.object = Some(object.clone()));
    }
    assert_eq!((history.traces.take_left_out(), history.traces.take_left_out()), (5000 - 4096, 0));
    assert_eq!(history.traces.stop(at(1)).len(), 4096);

    history.written(0, 1);
    history.published(1, 21);
    (0..40).for_each(|n| history.tell(EntryKind::Sent, 2 + n, 21, |_| {}));
    let trace = history.traces.stop(at(100)).pop().unwrap();
    assert_eq!((trace[0].events.len(), trace[0].dropped_events_count), (32, 8));
}
