//! What becomes of the watches of the API, as entries: one for all kinds that change in the same way. Pure.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::entry::{EntryKind, Note};
use crate::api::Kind;
use crate::source::sync::{KindSync, SyncState, Verb};
use crate::text::prefix;

/// How many kinds are named.
const NAMED: usize = 3;

/// The longest quotation, in bytes.
const LONGEST: usize = 300;

/// How a watch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Well,
    Absent,
    Failing,
    Forbidden(&'static str),
    Silent,
}

/// Remembers how each watch was.
#[derive(Debug, Default)]
pub(super) struct Watches {
    last: BTreeMap<Kind, Condition>,
}

impl Watches {
    /// The entries for what has changed since the last call.
    pub(super) fn observe(&mut self, kinds: &[KindSync], now: Timestamp) -> Vec<Note> {
        let mut changed: BTreeMap<Condition, Vec<&KindSync>> = BTreeMap::new();
        for kind in kinds {
            let Some(condition) = condition(kind) else { continue };
            let last = self.last.insert(kind.kind, condition).unwrap_or(Condition::Well);
            if last != condition {
                changed.entry(condition).or_default().push(kind);
            }
        }
        changed.into_iter().map(|(condition, kinds)| note(condition, &kinds, now)).collect()
    }
}

/// How the watch of a kind is; `None` while its first list is under way.
fn condition(kind: &KindSync) -> Option<Condition> {
    Some(match &kind.state {
        SyncState::Forbidden(Verb::List, _) => Condition::Forbidden("list"),
        SyncState::Forbidden(Verb::Watch, _) => Condition::Forbidden("watch"),
        SyncState::Failing(_) => Condition::Failing,
        _ if kind.is_old() => Condition::Silent,
        SyncState::Absent => Condition::Absent,
        SyncState::Synced => Condition::Well,
        SyncState::Waiting => return None,
    })
}

fn note(condition: Condition, kinds: &[&KindSync], now: Timestamp) -> Note {
    let names = names(kinds);
    let first = kinds.first();
    let reason = first.map(|kind| prefix(kind.reason(), LONGEST)).unwrap_or_default();
    let (kind, text) = match condition {
        Condition::Well => {
            (EntryKind::ApiAnswers, format!("{names}: the API answers; what was missed is read"))
        }
        Condition::Absent => (
            EntryKind::ApiAbsent,
            format!("{names}: the API does not serve this, which counts as empty"),
        ),
        Condition::Failing => (
            EntryKind::ApiFailing,
            format!("{names}: cannot be read, so newer changes are not known: {reason}"),
        ),
        Condition::Forbidden(verb) => (
            EntryKind::ApiForbidden,
            format!("{names}: weir may not {verb} this, so newer changes are not known: {reason}"),
        ),
        Condition::Silent => {
            let age = kinds.iter().map(|kind| kind.answered.age()).max().unwrap_or_default();
            let since = now.checked_sub(age).unwrap_or(now);
            let text = format!(
                "{names}: the API has not answered since {since:.0}, so newer changes are not known"
            );
            (EntryKind::ApiSilent, text)
        }
    };
    Note::new(kind, text)
}

/// The first kinds by name, and how many more there are.
fn names(kinds: &[&KindSync]) -> String {
    let first = kinds.iter().take(NAMED).map(|kind| kind.kind.plural());
    let first = first.collect::<Vec<_>>().join(", ");
    match kinds.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more kinds"),
    }
}
