//! All changes that are on their way: from entries of the time line to finished traces. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use opentelemetry_proto::tonic::trace::v1::Span;

use super::change::{Cause, Change, Outcome};
use super::span::Ids;
use crate::api::{Kind, ObjectKey};
use crate::timeline::{Entry, EntryKind};

/// The most changes that are followed at once. More have no trace.
const OPEN: usize = 4096;

/// The spans of a change, the root first.
pub(super) type Trace = Vec<Span>;

/// The changes that are on their way.
#[derive(Debug)]
pub(super) struct Traces {
    /// The number of the last entry about what was there when weir started, which is no change.
    start: u64,
    ids: Ids,
    open: BTreeMap<ObjectKey, Change>,
    /// What is held back of each object: the reason by place. It outlives the change that it was part of.
    holds: BTreeMap<ObjectKey, BTreeMap<String, String>>,
    /// How many changes had no place.
    left_out: u64,
}

impl Traces {
    /// None yet. Entries up to number `start` are about what was there when weir started.
    pub(super) fn new(start: u64, ids: Ids) -> Self {
        Self { start, ids, open: BTreeMap::new(), holds: BTreeMap::new(), left_out: 0 }
    }

    /// Takes in new entries. Returns the traces of the changes that ended.
    pub(super) fn read(&mut self, entries: &[Arc<Entry>]) -> Vec<Trace> {
        let mut entries: Vec<&Entry> = entries.iter().map(|entry| &**entry).collect();
        // In the order in which they were recorded, which is that of cause and effect. ACKs are recorded late.
        entries.sort_by_key(|entry| entry.number);
        let mut ended = Vec::new();
        for entry in entries {
            let object = entry.note.object.as_ref();
            let is_traced = |kind| matches!(kind, Kind::VirtualService | Kind::DestinationRule);
            if let Some(object) = object.filter(|object| is_traced(object.kind)) {
                self.entry(object, entry, &mut ended);
            }
        }
        ended
    }

    fn entry(&mut self, object: &ObjectKey, entry: &Entry, ended: &mut Vec<Trace>) {
        self.hold(object, entry);
        if entry.number <= self.start {
            return;
        }
        match entry.note.kind {
            EntryKind::Rejected => {
                let change = Change::new(object, Cause::Written, entry);
                ended.push(change.spans(Outcome::Rejected, entry.at, &mut self.ids));
                return;
            }
            EntryKind::Accepted if entry.note.publishes => {
                self.end(object, (Outcome::Superseded, entry.at), ended);
                self.begin(object, Cause::Written, entry);
                return;
            }
            EntryKind::Deleted if entry.note.publishes => {
                self.end(object, (Outcome::Deleted, entry.at), ended);
                self.begin(object, Cause::Deleted, entry);
                return;
            }
            EntryKind::Released if !self.open.contains_key(object) => {
                self.begin(object, Cause::Released, entry);
            }
            _ => {}
        }
        let is_held = self.holds.contains_key(object);
        if let Some(end) = self.open.get_mut(object).and_then(|open| open.news(entry, is_held)) {
            self.end(object, end, ended);
        }
    }

    /// Keeps account of what is held back.
    fn hold(&mut self, object: &ObjectKey, entry: &Entry) {
        let note = &entry.note;
        match note.kind {
            EntryKind::Held if self.holds.len() < OPEN || self.holds.contains_key(object) => {
                let places = self.holds.entry(object.clone()).or_default();
                places.insert(note.place.clone(), note.text.clone());
            }
            EntryKind::Released => {
                if let Some(places) = self.holds.get_mut(object) {
                    places.remove(&note.place);
                    if places.is_empty() {
                        self.holds.remove(object);
                    }
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, object: &ObjectKey, cause: Cause, entry: &Entry) {
        if self.open.len() >= OPEN {
            self.left_out += 1;
            return;
        }
        let mut change = Change::new(object, cause, entry);
        if let Some(reason) = self.holds.get(object).and_then(|places| places.values().next()) {
            change.held(reason);
        }
        self.open.insert(object.clone(), change);
    }

    fn end(
        &mut self,
        object: &ObjectKey,
        (outcome, at): (Outcome, Timestamp),
        ended: &mut Vec<Trace>,
    ) {
        if let Some(change) = self.open.remove(object) {
            ended.push(change.spans(outcome, at, &mut self.ids));
        }
    }

    /// When the next change ends if there is no news.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.open.values().map(Change::deadline).min()
    }

    /// The traces of the changes that ended because there was no news.
    pub(super) fn expire(&mut self, now: Timestamp) -> Vec<Trace> {
        let due = self.open.iter().filter(|(_, change)| change.deadline() <= now);
        let due: Vec<_> =
            due.map(|(object, change)| (object.clone(), change.unanswered())).collect();
        let mut ended = Vec::new();
        due.into_iter().for_each(|(object, end)| self.end(&object, end, &mut ended));
        ended
    }

    /// The traces of the changes that are on their way when weir stops.
    pub(super) fn stop(&mut self, now: Timestamp) -> Vec<Trace> {
        let open = std::mem::take(&mut self.open).into_values();
        open.map(|change| change.spans(Outcome::Stopped, now, &mut self.ids)).collect()
    }

    /// Entries were lost: it is not known how the changes that are on their way ended, nor what is held back.
    pub(super) fn lose(&mut self) {
        self.left_out += std::mem::take(&mut self.open).len() as u64;
        self.holds.clear();
    }

    /// How many changes have had no place, or were lost, since the last call.
    pub(super) fn take_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }
}
