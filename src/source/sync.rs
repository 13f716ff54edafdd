//! How far a source is with each kind: what `/ready?verbose` and `weir doctor` tell.

use std::fmt;

use crate::api::Kind;

/// How far the source is with one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KindSync {
    /// The kind.
    pub kind: Kind,
    /// How far.
    pub state: SyncState,
    /// Whether the objects of the kind were once listed completely, so that weir serves them.
    pub complete: bool,
}

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
            SyncState::Synced => write!(f, "{resource}: synced"),
            SyncState::Waiting => write!(f, "{resource}: waiting"),
            SyncState::Absent => write!(f, "{resource}: absent: {}", self.reason()),
            SyncState::Forbidden(verb, reason) => {
                write!(f, "{resource}: forbidden: missing verb {verb}: {reason}")
            }
            SyncState::Failing(reason) => write!(f, "{resource}: failing: {reason}"),
        }
    }
}
