//! What the engine's steps look like as entries. Pure.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;

use super::changes;
use super::entry::{EntryKind, Note, ShareChange};
use crate::api::{Object, ObjectKey};
use crate::revision::MeshRevision;
use crate::rollout_guard::{HeldChange, HeldValue};
use crate::source::{LocatedProblem, Origin, SourceEvent};
use crate::store::Store;
use crate::text::prefix;

/// How many problems are quoted.
const QUOTED: usize = 4;

/// The longest quotation, in bytes.
const LONGEST: usize = 400;

/// The entry for an event of the source, before the store applies it; `None` if it is no news.
///
/// Versions of Istio's objects are recorded; those of others, of which there are many, only when they are rejected and
/// when they are valid again.
pub(crate) fn change(store: &Store, event: &SourceEvent) -> Option<Note> {
    match event {
        SourceEvent::Apply { object, .. } => accepted(store, object),
        SourceEvent::Reject { key, generation, problems, .. } => {
            let stays = match store.get(key).map(|entry| entry.object.meta.generation) {
                Some(0) => "; the last valid version stays in force".to_owned(),
                Some(last) => format!("; generation {last} stays in force"),
                None => String::new(),
            };
            let text = format!("not valid: {}{stays}", quoted(problems));
            let generation = *generation;
            Some(Note { generation, ..Note::of(key, EntryKind::Rejected, text) })
        }
        SourceEvent::Delete(key) => {
            let was_there = store.get(key).is_some() && key.kind.is_of_istio();
            let is_news = was_there || store.rejected_generation(key).is_some();
            let note = || Note::of(key, EntryKind::Deleted, "deleted".to_owned());
            is_news.then(|| Note { publishes: was_there, ..note() })
        }
        SourceEvent::SourceProblems { subject, problems } => file(store, subject, problems),
        SourceEvent::Synced | SourceEvent::Resyncing | SourceEvent::Barrier(_) => None,
    }
}

fn accepted(store: &Store, object: &Object) -> Option<Note> {
    // Most events are about kinds that are not recorded, and must cost nothing here.
    if !object.kind().is_of_istio() && store.rejected().next().is_none() {
        return None;
    }
    let key = object.key();
    let was_rejected = store.rejected_generation(&key).is_some();
    let old = store.get(&key).map(|entry| &*entry.object);
    let is_same = old == Some(object);
    if !was_rejected && (is_same || !key.kind.is_of_istio()) {
        return None;
    }
    let change = changes::between(old, object);
    let text = match (old, is_same) {
        (_, true) => "valid again, as it was before".to_owned(),
        (None, _) if change.text.is_empty() => "read for the first time".to_owned(),
        (None, _) => format!("read for the first time: {}", change.text),
        (Some(_), _) if change.text.is_empty() => "changes nothing that weir reads".to_owned(),
        (Some(_), _) => change.text,
    };
    let meta = &object.meta;
    // The first version was written when the object was created.
    let created = Some(meta.age.created).filter(|at| meta.generation == 1 && *at != i64::MAX);
    let written = created.and_then(|at| Timestamp::from_microsecond(at).ok());
    let (generation, shares) = (meta.generation, change.shares);
    let publishes = !is_same;
    let note = Note::of(&key, EntryKind::Accepted, text);
    Some(Note { generation, written, shares, publishes, ..note })
}

/// The first problems. Where they were read, the cluster, need not be said.
fn quoted(problems: &[LocatedProblem]) -> String {
    let texts = problems.iter().take(QUOTED).map(|located| {
        let text = match located.origin {
            Origin::Cluster => located.problem.to_string(),
            Origin::File { .. } => located.to_string(),
        };
        prefix(&text, LONGEST).to_owned()
    });
    let first = texts.collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(QUOTED) {
        0 => first,
        more => format!("{first}; and {more} more"),
    }
}

/// The entry for what is wrong with a file, or no longer is; `None` for a kind, of which [`super::Watches`] tells.
fn file(store: &Store, subject: &str, problems: &[LocatedProblem]) -> Option<Note> {
    match (problems, store.source_problems_of(subject)) {
        ([LocatedProblem { origin: Origin::File { .. }, .. }, ..], _) => {
            Some(Note::new(EntryKind::FileUnreadable, quoted(problems)))
        }
        ([], [LocatedProblem { origin: Origin::File { .. }, .. }, ..]) => {
            Some(Note::new(EntryKind::FileReadable, format!("{subject} can be read again")))
        }
        _ => None,
    }
}

/// The entries for changes that are held back from now on, with the object that each concerns.
pub(crate) fn held<'a>(
    changes: impl IntoIterator<Item = (&'a ObjectKey, &'a HeldChange)>,
    store: &Store,
) -> Vec<Note> {
    of_changes(changes, store, EntryKind::Held, "")
}

/// The entries for changes that are no longer held back, with the object that each concerned.
pub(crate) fn released<'a>(
    changes: impl IntoIterator<Item = (&'a ObjectKey, &'a HeldChange)>,
    store: &Store,
) -> Vec<Note> {
    of_changes(changes, store, EntryKind::Released, "no longer: ")
}

fn of_changes<'a>(
    changes: impl IntoIterator<Item = (&'a ObjectKey, &'a HeldChange)>,
    store: &Store,
    kind: EntryKind,
    prefix: &str,
) -> Vec<Note> {
    let notes = changes.into_iter().map(|(object, change)| {
        let place = match object == &change.object {
            true => change.field.clone(),
            false => format!("{}: {}", change.object, change.field),
        };
        let text = format!("{prefix}{place}: {}", change.reason());
        let (generation, shares) = (generation(store, object), share(change));
        Note { generation, shares, place, ..Note::of(object, kind, text) }
    });
    notes.collect()
}

/// What is in force of a weight and what is held back.
fn share(change: &HeldChange) -> Vec<ShareChange> {
    match &change.value {
        HeldValue::Weight { wanted, effective } => vec![ShareChange {
            field: change.field.clone(),
            host: change.host.to_string(),
            subset: change.subset.clone(),
            before: Some(f64::from(*effective)),
            after: Some(f64::from(*wanted)),
        }],
        HeldValue::Labels { .. } => Vec::new(),
    }
}

/// The entries for objects that come into force in their present form with a revision of the mesh.
pub(crate) fn published<'a>(
    objects: impl IntoIterator<Item = &'a ObjectKey>,
    revision: MeshRevision,
    store: &Store,
) -> Vec<Note> {
    let objects: BTreeSet<&ObjectKey> = objects.into_iter().collect();
    let notes = objects.into_iter().map(|object| {
        let what = match store.get(object) {
            Some(_) => "in force with",
            None => "gone with",
        };
        let text = format!("{what} revision {revision} of the mesh");
        let generation = generation(store, object);
        Note { generation, revision, ..Note::of(object, EntryKind::Published, text) }
    });
    notes.collect()
}

fn generation(store: &Store, object: &ObjectKey) -> i64 {
    store.get(object).map_or(0, |entry| entry.object.meta.generation)
}
