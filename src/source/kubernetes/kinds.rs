//! The state of one watched kind: which of its objects are known, and what is wrong with its watch.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::sync::{KindSync, LastAnswer, SyncState, Verb};
use super::super::{LocatedProblem, Origin, SourceEvent, event_from};
use super::Event;
use super::shared::Shared;
use crate::api::{self, Identity, Kind, ObjectKey, Problem};

/// Why a list or a watch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What was attempted.
    pub verb: Verb,
    /// Whether the API server does not permit it.
    pub forbidden: bool,
    /// Whether there was no answer: the API server is away, or starting.
    pub unreachable: bool,
    /// The API server's message, or the error with its causes.
    pub reason: String,
}

/// What ends the time in which changes of a kind may be missing.
#[derive(Clone, Copy, Debug)]
enum Behind {
    /// A complete list.
    Lists,
    /// An answer to the resumed watch, after this one.
    Watch { answer: Duration },
    /// Nothing: the watch was answered at this time, and what was missed arrives with it.
    Resumed(Instant),
}

/// How long what was missed takes to arrive with a resumed watch.
const ARRIVES: Duration = Duration::from_millis(100);

/// The state of one kind.
pub(super) struct KindState {
    pub kind: Kind,
    /// Whether the first list is complete or the API does not serve the kind.
    pub complete: bool,
    /// The revision whose objects are read.
    revision: Option<Arc<str>>,
    /// The reported objects, to detect deletions between watches.
    known: BTreeSet<ObjectKey>,
    /// The objects of the list in progress.
    listing: Option<BTreeSet<ObjectKey>>,
    /// What the known objects have in common.
    shared: Shared,
    state: SyncState,
    /// Whether changes that were written before those of other kinds may be missing.
    behind: Option<Behind>,
    /// When the API last answered its list or watch.
    pub answered: LastAnswer,
    /// The last reported problem.
    source_problems: Option<String>,
}

impl KindState {
    pub(crate) fn new(kind: Kind, revision: Option<Arc<str>>) -> Self {
        Self {
            kind,
            complete: false,
            revision,
            known: BTreeSet::new(),
            listing: None,
            shared: Shared::default(),
            state: SyncState::Waiting,
            behind: None,
            answered: LastAnswer::none_yet(),
            source_problems: None,
        }
    }

    /// What there is to tell about this kind.
    pub(crate) fn sync(&self) -> KindSync {
        KindSync {
            kind: self.kind,
            state: self.state.clone(),
            complete: self.complete,
            answered: self.answered.clone(),
        }
    }

    /// Whether the API does not serve the kind.
    pub(crate) fn is_absent(&self) -> bool {
        self.state == SyncState::Absent
    }

    /// Whether a list is in progress.
    pub(crate) fn lists(&self) -> bool {
        self.listing.is_some()
    }

    /// Whether changes may be missing that the API had before `now`, because the watch was lost.
    pub(crate) fn is_behind(&mut self, now: Instant) -> bool {
        self.behind = match self.behind {
            Some(Behind::Watch { answer }) if self.answered.at() > answer => {
                Some(Behind::Resumed(now))
            }
            Some(Behind::Resumed(at)) if now.duration_since(at) >= ARRIVES => None,
            behind => behind,
        };
        self.behind.is_some()
    }

    pub(crate) fn handle(&mut self, event: Event, out: &mut Vec<SourceEvent>) {
        match event {
            Event::Init => self.listing = Some(BTreeSet::new()),
            Event::Apply(document) => self.apply(document, out),
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                out.extend(self.known.difference(&listed).cloned().map(SourceEvent::Delete));
                self.known = listed;
                self.complete = true;
                self.behind = None;
                // A list says nothing about a watch that is not permitted.
                if !matches!(self.state, SyncState::Forbidden(Verb::Watch, _)) {
                    self.works(out);
                }
            }
            Event::Settled => self.works(out),
            Event::Delete(document) => {
                if let Ok(Identity::Known(key)) = api::identify(&document) {
                    self.delete(key, out);
                }
            }
            Event::Interrupted { lists: false } if self.complete => {
                self.behind.get_or_insert(Behind::Watch { answer: self.answered.at() });
            }
            Event::Interrupted { .. } if self.complete => self.behind = Some(Behind::Lists),
            Event::Interrupted { .. } => {}
            Event::Failed(failure) => {
                self.listing = None;
                if self.complete && failure.unreachable {
                    self.behind = Some(Behind::Lists);
                }
                self.failed(failure, out);
            }
            Event::Absent => self.absent(out),
        }
    }

    /// Deletes all objects of a namespace.
    pub(crate) fn leave(&mut self, namespace: &str, out: &mut Vec<SourceEvent>) {
        let first = ObjectKey::new(self.kind, namespace, "");
        let inside = self.known.range(first..).take_while(|key| *key.namespace == *namespace);
        let gone: Vec<ObjectKey> = inside.cloned().collect();
        for key in gone {
            if let Some(listing) = &mut self.listing {
                listing.remove(&key);
            }
            self.delete(key, out);
        }
    }

    fn delete(&mut self, key: ObjectKey, out: &mut Vec<SourceEvent>) {
        self.known.remove(&key);
        out.push(SourceEvent::Delete(key));
    }

    fn failed(&mut self, failure: Failure, out: &mut Vec<SourceEvent>) {
        let now = if self.complete {
            "the last known objects stay active"
        } else {
            "weir is not ready until it can be listed"
        };
        let reason = &failure.reason;
        let message = format!("cannot be watched, retrying: {reason}; {now}");
        self.state = if failure.forbidden {
            SyncState::Forbidden(failure.verb, failure.reason)
        } else {
            SyncState::Failing(failure.reason)
        };
        self.source_problems(Some(message), out);
    }

    fn absent(&mut self, out: &mut Vec<SourceEvent>) {
        self.complete = true;
        // An API server that has just started serves its own kinds first.
        if self.known.is_empty() {
            self.behind = None;
        }
        self.state = SyncState::Absent;
        let now = if self.known.is_empty() {
            "it counts as empty"
        } else {
            "the last known objects stay active"
        };
        let message = format!(
            "the API does not serve this kind (is its CustomResourceDefinition installed?); {now}, and weir looks for \
             it every few seconds"
        );
        self.source_problems(Some(message), out);
    }

    fn works(&mut self, out: &mut Vec<SourceEvent>) {
        self.state = SyncState::Synced;
        self.source_problems(None, out);
    }

    pub(crate) fn apply(&mut self, document: Value, out: &mut Vec<SourceEvent>) {
        // Without a name nothing can be rejected; the API server guarantees one.
        let Ok(Identity::Known(mut key)) = api::identify(&document) else {
            return;
        };
        if !api::in_revision(key.kind, &document, self.revision.as_deref()) {
            // It may have been read until its label changed.
            if self.known.contains(&key) {
                self.delete(key, out);
            }
            return;
        }
        key.namespace = self.shared.namespace(key.namespace);
        self.known.insert(key.clone());
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        } else if self.state != SyncState::Synced {
            // The watch delivers.
            self.works(out);
        }
        let mut parsed = api::parse(&key, document, 0);
        if let Ok(parsed) = &mut parsed {
            let meta = &mut parsed.object.meta;
            meta.labels = self.shared.labels(std::mem::take(&mut meta.labels));
        }
        out.push(event_from(key, parsed, Origin::Cluster, |_| Origin::Cluster));
    }

    fn source_problems(&mut self, message: Option<String>, out: &mut Vec<SourceEvent>) {
        if message == self.source_problems {
            return;
        }
        self.source_problems.clone_from(&message);
        let subject = self.kind.plural().to_owned();
        let problems = message.into_iter().map(|message| LocatedProblem {
            origin: Origin::Cluster,
            problem: Problem::new(subject.clone(), message, ""),
        });
        let problems = problems.collect();
        out.push(SourceEvent::SourceProblems { subject, problems });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}})
    }

    fn after(state: &mut KindState, events: Vec<Event>) -> Vec<String> {
        let mut out = Vec::new();
        events.into_iter().for_each(|event| state.handle(event, &mut out));
        let texts = out.iter().map(|change| match change {
            SourceEvent::Apply { object, .. } => format!("+{}", object.meta.name),
            SourceEvent::Delete(key) => format!("-{}", key.name),
            SourceEvent::SourceProblems { problems, .. } => format!("trouble {}", problems.len()),
            other => format!("{other:?}"),
        });
        texts.collect()
    }

    /// A list of one pod.
    fn list() -> Vec<Event> {
        vec![Event::Init, Event::Apply(pod("a")), Event::InitDone]
    }

    fn failed(verb: Verb, forbidden: bool) -> Event {
        let reason = "so it is".to_owned();
        Event::Failed(Failure { verb, forbidden, unreachable: false, reason })
    }

    fn unreachable() -> Event {
        let reason = "refused".to_owned();
        Event::Failed(Failure { verb: Verb::List, forbidden: false, unreachable: true, reason })
    }

    #[test]
    fn a_relist_deletes_objects_that_disappeared() {
        let mut state = KindState::new(Kind::Pod, None);
        let first = vec![Event::Init, Event::Apply(pod("a")), Event::Apply(pod("b"))];
        assert_eq!(after(&mut state, first), ["+a", "+b"]);
        assert!(!state.complete);
        after(&mut state, vec![Event::InitDone]);
        assert!(state.complete);
        let again =
            vec![failed(Verb::Watch, false), Event::Init, Event::Apply(pod("b")), Event::InitDone];
        assert_eq!(after(&mut state, again), ["trouble 1", "+b", "-a", "trouble 0"]);
        assert_eq!(after(&mut state, vec![Event::Delete(pod("b"))]), ["-b"]);
    }

    #[test]
    fn a_kind_is_behind_from_when_its_watch_is_lost_until_what_was_missed_has_arrived() {
        let now = Instant::now();
        let mut state = KindState::new(Kind::Pod, None);
        // Before the first list nothing takes effect anyway.
        after(&mut state, vec![unreachable()]);
        assert!(!state.is_behind(now));
        after(&mut state, list());
        assert!(!state.is_behind(now));
        // What is not permitted may last.
        after(&mut state, vec![failed(Verb::Watch, true)]);
        assert!(!state.is_behind(now));
        after(
            &mut state,
            vec![unreachable(), Event::Absent, failed(Verb::List, true), Event::Init],
        );
        assert!(state.is_behind(now));
        after(&mut state, vec![Event::Apply(pod("a")), Event::InitDone]);
        assert!(!state.is_behind(now));
        after(&mut state, vec![Event::Interrupted { lists: true }, Event::Apply(pod("a"))]);
        assert!(state.is_behind(now));
        after(&mut state, list());
        // The watch goes on with what was missed.
        after(&mut state, vec![Event::Interrupted { lists: false }]);
        assert!(state.is_behind(now) && state.is_behind(now + ARRIVES));
        std::thread::sleep(Duration::from_millis(2));
        state.answered.arrived();
        assert!(state.is_behind(now) && state.is_behind(now + ARRIVES / 2));
        assert!(!state.is_behind(now + ARRIVES));
    }

    #[test]
    fn a_problem_is_reported_once() {
        let mut state = KindState::new(Kind::VirtualService, None);
        assert_eq!(
            after(&mut state, vec![Event::Absent, Event::Absent, Event::Absent]),
            ["trouble 1"]
        );
        let failures = (0..3).map(|_| failed(Verb::List, false)).collect();
        assert_eq!(after(&mut state, failures), ["trouble 1"]);
        assert_eq!(after(&mut state, vec![Event::Init, Event::InitDone]), ["trouble 0"]);
        assert_eq!(after(&mut state, vec![Event::Init, Event::InitDone]), [""; 0]);
    }

    #[test]
    fn a_forbidden_watch_is_one_problem_however_often_the_kind_can_be_listed() {
        let mut state = KindState::new(Kind::Pod, None);
        assert_eq!(after(&mut state, list()), ["+a"]);
        assert_eq!(after(&mut state, vec![failed(Verb::Watch, true)]), ["trouble 1"]);
        assert_eq!(after(&mut state, list()), ["+a"]);
        assert_eq!(state.sync().state, SyncState::Forbidden(Verb::Watch, "so it is".to_owned()));
        assert_eq!(after(&mut state, vec![failed(Verb::Watch, true)]), [""; 0]);
        assert_eq!(after(&mut state, list()), ["+a"]);
        assert_eq!(after(&mut state, vec![Event::Settled]), ["trouble 0"]);
        assert_eq!(state.sync().state, SyncState::Synced);
    }

    fn workload_entry(revision: Option<&str>) -> Event {
        let labels = revision.map(|revision| json!({"istio.io/rev": revision}));
        Event::Apply(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": {"name": "s", "namespace": "shop", "labels": labels},
            "spec": {"address": "10.0.0.1"},
        }))
    }

    #[test]
    fn an_object_is_read_while_its_label_names_the_revision_or_none() {
        let mut state = KindState::new(Kind::WorkloadEntry, Some("weir".into()));
        after(&mut state, vec![Event::Init, workload_entry(Some("stable")), Event::InitDone]);
        for (revision, expected) in [
            (Some("stable"), None),
            (None, Some("+s")),
            (Some("weir"), Some("+s")),
            (Some("stable"), Some("-s")),
            (Some("stable"), None),
        ] {
            let seen = after(&mut state, vec![workload_entry(revision)]);
            assert_eq!(seen, expected.into_iter().collect::<Vec<_>>(), "{revision:?}");
        }
        let mut all = KindState::new(Kind::WorkloadEntry, None);
        assert_eq!(after(&mut all, vec![workload_entry(Some("stable"))]), ["+s"]);
    }
}
