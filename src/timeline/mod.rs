//! What happened to each object, and when: written, accepted, held back, published, ACKed by how many proxies, rejected by
//! which; and what concerns all objects, such as an API server that does not answer.
//!
//! The engine records what it does ([`Timeline`]), and one task ([`Follower`]) what becomes of it on the proxies, from
//! the status that the streams report anyway, at a bounded rate. What an entry says is decided by pure functions
//! ([`changes`], [`Observer`], [`Watches`]). The entries are kept in a ring of bounded memory ([`Ring`]).

mod changes;
mod endpoints;
mod engine;
mod entry;
mod follow;
mod observer;
mod ring;
#[cfg(test)]
mod tests;
mod watches;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::observer::{Observer, Publication};
use self::ring::Ring;
use self::watches::Watches;
use crate::api::ObjectKey;

pub(crate) use changes::between;
pub(crate) use endpoints::endpoints;
pub(crate) use engine::{change, held, published, released};
pub(crate) use entry::{Entry, EntryKind, Note, ShareChange};
pub(crate) use follow::Follower;
pub(crate) use ring::{Of, Reading};

/// The memory of the ring where no flag says otherwise, in bytes.
pub(crate) const MEMORY: usize = 8 << 20;

/// The time line of every object. Whoever knows of an event records it; anyone may read.
#[derive(Debug)]
pub(crate) struct Timeline {
    ring: Mutex<Ring>,
    changed: watch::Sender<u64>,
    /// What was published and not yet looked at by the [`Follower`]; one per object.
    publications: Mutex<BTreeMap<ObjectKey, Publication>>,
    /// The number of the last entry about what was there when weir started.
    start: OnceLock<u64>,
}

impl Timeline {
    /// An empty one that takes at most `memory` bytes, and begins with the start of weir.
    pub(crate) fn new(memory: usize) -> Self {
        let now = Timestamp::now();
        let timeline = Self {
            ring: Mutex::new(Ring::new(memory, now)),
            changed: watch::Sender::default(),
            publications: Mutex::default(),
            start: OnceLock::new(),
        };
        let version = env!("CARGO_PKG_VERSION");
        timeline.record([Note::new(EntryKind::Started, format!("weir {version} started"))]);
        timeline
    }

    /// Adds entries. Those without a time are of now.
    pub(crate) fn record(&self, notes: impl IntoIterator<Item = Note>) {
        let mut notes = notes.into_iter().peekable();
        if notes.peek().is_none() {
            return;
        }
        let now = Timestamp::now();
        {
            let mut ring = self.ring.lock();
            notes.for_each(|note| ring.push(note, now));
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// The entries with a greater number than `after`, by time.
    pub(crate) fn read(&self, of: &Of, after: u64) -> Reading {
        self.ring.lock().read(of, after)
    }

    /// Notifies of new entries.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Records that these objects are about to be published, and has it followed which proxies ACK them.
    pub(crate) fn publish(&self, notes: Vec<Note>) {
        let at = Timestamp::now();
        {
            let mut publications = self.publications.lock();
            for note in &notes {
                if let Some(object) = &note.object {
                    let publication = Publication { revision: note.revision, at };
                    publications.insert(object.clone(), publication);
                }
            }
        }
        self.record(notes);
    }

    /// Everything that was there when weir started is recorded; what comes now are changes. Later calls do nothing.
    pub(crate) fn started(&self) {
        let newest = self.ring.lock().newest();
        self.start.get_or_init(|| newest);
    }

    /// The number of the last entry about what was there when weir started; 0 while not all of it is recorded.
    pub(crate) fn start(&self) -> u64 {
        self.start.get().copied().unwrap_or_default()
    }

    /// What was published since the last call.
    fn take_publications(&self) -> BTreeMap<ObjectKey, Publication> {
        std::mem::take(&mut self.publications.lock())
    }
}

/// Shared by those who record and those who read.
pub(crate) type SharedTimeline = Arc<Timeline>;
