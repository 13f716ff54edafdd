//! How far a source is with each kind: what `/ready?verbose` and `weir doctor` tell.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::api::Kind;

/// From which age on objects count as old. The API server sends a bookmark about every minute where nothing changes.
pub(crate) const OLD: Duration = Duration::from_secs(90);

/// How far the source is with one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KindSync {
    /// The kind.
    pub kind: Kind,
    /// How far.
    pub state: SyncState,
    /// Whether the objects of the kind were once listed completely, so that weir serves them.
    pub complete: bool,
    /// When the API last answered.
    pub answered: LastAnswer,
}

/// When the API last answered the list or the watch of a kind: with an event, a bookmark or a page. It tells a kind that
/// does not change from one of whose changes nothing is heard. Its copies are one.
#[derive(Clone, Debug)]
pub(crate) struct LastAnswer {
    begun: Instant,
    /// In milliseconds since then.
    at: Arc<AtomicU64>,
}

impl LastAnswer {
    /// None yet; the age counts from now on.
    pub(crate) fn none_yet() -> Self {
        Self { begun: Instant::now(), at: Arc::default() }
    }

    /// None for this long.
    #[cfg(test)]
    pub(crate) fn before(age: Duration) -> Self {
        let now = Instant::now();
        Self { begun: now.checked_sub(age).unwrap_or(now), at: Arc::default() }
    }

    /// Records an answer.
    pub(crate) fn arrived(&self) {
        let after = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.fetch_max(after, Ordering::Relaxed);
    }

    /// How long ago the last answer was.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed().saturating_sub(self.at())
    }

    /// When the last answer was, counted from a fixed time.
    pub(crate) fn at(&self) -> Duration {
        Duration::from_millis(self.at.load(Ordering::Relaxed))
    }
}

/// Time alone is no news: this is whether both tell of the same answers.
impl PartialEq for LastAnswer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.at, &other.at)
    }
}

impl Eq for LastAnswer {}

/// The state of a kind's watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SyncState {
    /// The first list is not complete yet.
    Waiting,
    /// All objects are known, and changes arrive.
    Synced,
    /// The API does not serve the kind.
    Absent,
    /// This verb is not permitted.
    Forbidden(Verb, String),
    /// The API or the connection to it fails, for this reason.
    Failing(String),
}

/// What weir does with a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// It lists the objects.
    List,
    /// It watches their changes.
    Watch,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::List => "list",
            Verb::Watch => "watch",
        })
    }
}

impl KindSync {
    /// Whether all objects are known, or the API does not serve the kind, and the API has answered recently.
    pub(crate) fn is_well(&self) -> bool {
        let works = matches!(self.state, SyncState::Synced | SyncState::Absent);
        works && self.complete && !self.is_old()
    }

    /// Whether what is known of the kind is from longer than [`OLD`] ago.
    pub(crate) fn is_old(&self) -> bool {
        self.answered.age() >= OLD
    }

    /// The verb that is not permitted.
    pub(crate) fn missing_verb(&self) -> Option<Verb> {
        match self.state {
            SyncState::Forbidden(verb, _) => Some(verb),
            _ => None,
        }
    }

    /// Why it is not synced; empty if it is.
    pub(crate) fn reason(&self) -> &str {
        match &self.state {
            SyncState::Synced => "",
            SyncState::Waiting => "its first list is not complete yet",
            SyncState::Absent => "the API does not serve it",
            SyncState::Forbidden(_, reason) | SyncState::Failing(reason) => reason,
        }
    }
}

impl fmt::Display for KindSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resource = self.kind.resource();
        match &self.state {
            SyncState::Synced => {
                write!(f, "{resource}: synced, answered {} s ago", self.answered.age().as_secs())
            }
            SyncState::Waiting => write!(f, "{resource}: waiting"),
            SyncState::Absent => write!(f, "{resource}: absent: {}", self.reason()),
            SyncState::Forbidden(verb, reason) => {
                write!(f, "{resource}: forbidden: missing verb {verb}: {reason}")
            }
            SyncState::Failing(reason) => write!(f, "{resource}: failing: {reason}"),
        }
    }
}
