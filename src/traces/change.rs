//! One change of an object on its way to the proxies, from its entries in the time line to its spans. Pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span, status::StatusCode};

use super::span::{Ids, between, event, number, text};
use crate::api::ObjectKey;
use crate::revision::MeshRevision;
use crate::timeline::{Entry, EntryKind};

/// How long a change is followed.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// How long after the last news a change ends that a proxy has rejected: that proxy does not ACK it any more, but others may.
const SETTLES: Duration = Duration::from_secs(10);

/// The most events of a trace.
const EVENTS: usize = 32;

/// What the change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A new version.
    Written,
    /// The object was deleted.
    Deleted,
    /// Something that was held back, in a change that is not followed any more, comes into force.
    Released,
}

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All proxies in scope have ACKed it.
    Live,
    /// weir rejected it.
    Rejected,
    /// A newer version came first.
    Superseded,
    /// The object is gone.
    Deleted,
    /// No connected proxy sees the object.
    Unseen,
    /// A proxy rejected it.
    Nacked,
    /// Not all proxies had it in time.
    TimedOut,
    /// weir stopped first.
    Stopped,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Rejected => "rejected",
            Self::Superseded => "superseded",
            Self::Deleted => "deleted",
            Self::Unseen => "unseen",
            Self::Nacked => "nacked",
            Self::TimedOut => "timeout",
            Self::Stopped => "stopped",
        }
    }

    fn is_error(self) -> bool {
        matches!(self, Self::Rejected | Self::Nacked | Self::TimedOut)
    }
}

/// A time in which something of the change was held back.
#[derive(Debug)]
struct Hold {
    from: Timestamp,
    until: Option<Timestamp>,
    reason: String,
}

/// A change that is on its way.
#[derive(Debug)]
pub(super) struct Change {
    object: ObjectKey,
    cause: Cause,
    generation: i64,
    received: Timestamp,
    what: String,
    revision: MeshRevision,
    published: Option<Timestamp>,
    first_ack: Option<Timestamp>,
    hold: Option<Hold>,
    live: usize,
    in_scope: usize,
    /// What proxies have against it.
    problem: String,
    nacked: bool,
    newest: Timestamp,
    events: Vec<span::Event>,
    left_out: u32,
}

impl Change {
    /// One that begins with this entry.
    pub(super) fn new(object: &ObjectKey, cause: Cause, entry: &Entry) -> Self {
        Self {
            object: object.clone(),
            cause,
            generation: entry.note.generation,
            received: entry.at,
            what: entry.note.text.clone(),
            revision: MeshRevision::NONE,
            published: None,
            first_ack: None,
            hold: None,
            live: 0,
            in_scope: 0,
            problem: String::new(),
            nacked: false,
            newest: entry.at,
            events: Vec::new(),
            left_out: 0,
        }
    }

    /// Something of the object is held back since before the change.
    pub(super) fn held(&mut self, reason: &str) {
        let (from, reason) = (self.received, reason.to_owned());
        self.hold.get_or_insert(Hold { from, until: None, reason });
    }

    /// Takes in an entry of the object. `held` says whether something of the object is held back after it. Returns how and
    /// when the change ended, if it did.
    pub(super) fn news(&mut self, entry: &Entry, held: bool) -> Option<(Outcome, Timestamp)> {
        let (at, note) = (entry.at, &entry.note);
        match note.kind {
            EntryKind::Held => {
                let reason = note.text.clone();
                self.hold = Some(match self.hold.take() {
                    Some(hold) => Hold { from: hold.from, until: None, reason },
                    None => Hold { from: at, until: None, reason },
                });
                self.event("held back", entry, vec![text("weir.reason", note.text.clone())]);
            }
            EntryKind::Released => {
                match self.hold.as_mut().filter(|_| !held) {
                    // A version that withdraws what an older one wanted was never held back itself.
                    Some(_) if self.published.is_none() => self.hold = None,
                    Some(hold) => hold.until = Some(at),
                    None => {}
                }
                self.event("released", entry, vec![text("weir.reason", note.text.clone())]);
            }
            EntryKind::Published => {
                (self.revision, self.published, self.first_ack) = (note.revision, Some(at), None);
                if self.cause == Cause::Deleted {
                    return Some((Outcome::Deleted, at));
                }
            }
            _ => return self.progress(entry, held),
        }
        self.newest = at;
        None
    }

    /// Takes in an entry that says how far the change is on the proxies.
    fn progress(&mut self, entry: &Entry, held: bool) -> Option<(Outcome, Timestamp)> {
        let (at, note) = (entry.at, &entry.note);
        let published = self.published?;
        if note.revision < self.revision {
            // It is about what was published before.
            return None;
        }
        if note.in_scope > 0 {
            (self.live, self.in_scope) = (note.live, note.in_scope);
        }
        match note.kind {
            EntryKind::FirstAck => self.first_ack = Some(at),
            EntryKind::Acked if held => {
                self.event("ACKed without what is held back", entry, vec![])
            }
            EntryKind::Acked => {
                self.first_ack = self.first_ack.or(note.first_ack);
                return Some((Outcome::Live, at));
            }
            EntryKind::Unseen => return Some((Outcome::Unseen, published)),
            EntryKind::Nacked => {
                self.nacked = true;
                self.problem.clone_from(&note.text);
                self.proxies("NACKed", entry);
            }
            EntryKind::MissingCluster => {
                self.problem.clone_from(&note.text);
                self.proxies("no cluster", entry);
            }
            EntryKind::Lagging => {
                self.problem.clone_from(&note.text);
                self.proxies("lagging", entry);
            }
            EntryKind::Sent => self.event("sent", entry, vec![]),
            _ => return None,
        }
        self.newest = self.newest.max(at);
        None
    }

    /// An event for each proxy that an entry names, and how many they are in all.
    fn proxies(&mut self, name: &str, entry: &Entry) {
        let count = entry.note.proxy_count;
        for proxy in &entry.note.proxies {
            let attributes = vec![
                text("weir.proxy", proxy.proxy.clone()),
                text("weir.reason", proxy.reason.clone()),
                number("weir.proxies.count", count),
            ];
            self.event(name, entry, attributes);
        }
    }

    fn event(&mut self, name: &str, entry: &Entry, attributes: Vec<KeyValue>) {
        if self.events.len() < EVENTS {
            self.events.push(event(name, entry.at.max(self.received), attributes));
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    /// When it ends without further news.
    pub(super) fn deadline(&self) -> Timestamp {
        let longest = self.received + LONGEST;
        if self.nacked { longest.min(self.newest + SETTLES) } else { longest }
    }

    /// How and when it ended if there was no news until its deadline.
    pub(super) fn unanswered(&self) -> (Outcome, Timestamp) {
        match self.cause {
            Cause::Deleted => (Outcome::Deleted, self.newest),
            _ if self.nacked => (Outcome::Nacked, self.newest),
            _ => (Outcome::TimedOut, self.deadline()),
        }
    }

    /// The spans of the change, the root first.
    pub(super) fn spans(self, outcome: Outcome, end: Timestamp, ids: &mut Ids) -> Vec<Span> {
        let end = end.max(self.received);
        let trace = ids.trace();
        let verb = match self.cause {
            Cause::Written => "change",
            Cause::Deleted => "delete",
            Cause::Released => "release",
        };
        let root_id = ids.span();
        let children = self.children(outcome, end);
        let root = Span {
            span_id: root_id.to_vec(),
            attributes: self.attributes(outcome),
            status: self.status(outcome),
            events: self.events,
            dropped_events_count: self.left_out,
            ..between(&format!("{verb} {}", self.object.kind), self.received, end)
        };
        let parent_span_id = root_id.to_vec();
        let mut spans = vec![root];
        spans.extend(children.into_iter().map(|child| Span {
            span_id: ids.span().to_vec(),
            parent_span_id: parent_span_id.clone(),
            ..child
        }));
        spans.into_iter().map(|span| Span { trace_id: trace.to_vec(), ..span }).collect()
    }

    fn children(&self, outcome: Outcome, end: Timestamp) -> Vec<Span> {
        let mut spans = Vec::new();
        let revision = number("weir.mesh.revision", self.revision.get());
        let published = self.published.map(|at| at.clamp(self.received, end));
        let is_held = self.hold.as_ref().is_some_and(|hold| hold.until.is_none());
        if let Some(at) = published {
            let mut attributes = vec![revision.clone()];
            attributes.extend(self.hold.iter().map(|hold| text("weir.held", hold.reason.clone())));
            let until = if is_held { end } else { at };
            spans.push(Span { attributes, ..between("publish", self.received, until) });
        }
        if let Some(hold) = &self.hold {
            let (from, until) = (hold.from.clamp(self.received, end), hold.until.unwrap_or(end));
            let attributes = vec![text("weir.reason", hold.reason.clone())];
            spans.push(Span { attributes, ..between("hold back", from, until.min(end)) });
        }
        if let Some(published) = published {
            let last = Some(end).filter(|_| outcome == Outcome::Live);
            let first = self.first_ack.map(|at| at.clamp(published, end));
            for (name, at) in [("first ACK", first), ("last ACK", last)] {
                let attributes = vec![revision.clone()];
                spans.extend(at.map(|at| Span { attributes, ..between(name, published, at) }));
            }
        }
        spans
    }

    fn attributes(&self, outcome: Outcome) -> Vec<KeyValue> {
        let ObjectKey { kind, namespace, name } = &self.object;
        let mut attributes = vec![
            text("weir.object.kind", kind.to_string()),
            text("weir.object.namespace", &**namespace),
            text("weir.object.name", &**name),
            text("weir.change", self.what.clone()),
            text("weir.outcome", outcome.name()),
        ];
        if self.generation != 0 {
            attributes.push(number("weir.object.generation", self.generation));
        }
        if self.published.is_some() {
            attributes.push(number("weir.mesh.revision", self.revision.get()));
            attributes.push(number("weir.proxies.in_scope", self.in_scope));
            attributes.push(number("weir.proxies.live", self.live));
        }
        if outcome.is_error() {
            attributes.push(text("error.type", outcome.name()));
        }
        attributes
    }

    fn status(&self, outcome: Outcome) -> Option<Status> {
        let Self { live, in_scope, problem, .. } = self;
        let holds = self.hold.as_ref().filter(|hold| hold.until.is_none());
        let message = match outcome {
            Outcome::Live => String::new(),
            Outcome::Rejected => self.what.clone(),
            Outcome::Nacked => problem.clone(),
            Outcome::TimedOut => match holds {
                Some(hold) => format!("held back: {}", hold.reason),
                None if problem.is_empty() => format!("live on {live} of {in_scope} proxies"),
                None => format!("live on {live} of {in_scope} proxies: {problem}"),
            },
            _ => return None,
        };
        let code = if outcome.is_error() { StatusCode::Error } else { StatusCode::Ok };
        Some(Status { message, code: code.into() })
    }
}
