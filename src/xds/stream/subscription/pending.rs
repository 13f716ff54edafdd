//! A response that waits for the client's answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::super::change::Change;
use super::super::names::name_bytes;
use crate::snapshot::Resources;

/// A response to which the client has not answered.
#[derive(Debug)]
pub(in super::super) struct Pending {
    pub nonce: String,
    /// Sorted by name.
    pub changes: Vec<Change>,
    /// The resources when the response was made; it has those that the client lacked.
    pub(super) base: Resources,
    /// The memory for the names of removed resources, in bytes.
    pub(super) gone_bytes: usize,
    /// What [`Subscription::version`] will be after the ACK.
    pub(super) version: Option<u64>,
    pub since: Instant,
    /// Where the last change was found.
    found: AtomicUsize,
}

impl Pending {
    /// A response with these changes, sorted by name, that was made from `base` and sent `now`.
    pub(super) fn new(
        nonce: &str,
        changes: Vec<Change>,
        base: Resources,
        version: Option<u64>,
        now: Instant,
    ) -> Self {
        let gone = changes.iter().filter(|change| change.resource.is_none());
        let gone_bytes = gone.map(|change| name_bytes(&change.name)).sum();
        Self {
            nonce: nonce.to_owned(),
            changes,
            base,
            gone_bytes,
            version,
            since: now,
            found: AtomicUsize::default(),
        }
    }

    /// The index of a change. Names are usually looked for in their order, so the next one is tried first.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let last = self.found.load(Ordering::Relaxed);
        let near = [last.saturating_add(1), last].into_iter().find(|at| {
            self.changes
                .get(*at)
                .is_some_and(|change| std::ptr::eq(&*change.name, name) || *change.name == *name)
        });
        let at = match near {
            Some(at) => at,
            None => self.changes.binary_search_by(|change| (*change.name).cmp(name)).ok()?,
        };
        self.found.store(at, Ordering::Relaxed);
        Some(at)
    }
}
