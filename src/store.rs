//! What is in force: the last accepted form of every object, by key, and what is wrong with the ones refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::{Kind, Object, ObjectKey, Outline};
use crate::revision::Revision;
use crate::source::{Change, LocatedProblem, Origin};

/// An accepted object and where it came from.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The object.
    pub object: Arc<Object>,
    /// Where it was read.
    pub origin: Origin,
    /// Fresh for each content.
    pub revision: Revision,
}

type ByName = BTreeMap<(Arc<str>, Arc<str>), Entry>;

/// Why the newest form of an object is refused, and what it speaks of.
#[derive(Debug, PartialEq)]
struct Refusal {
    problems: Vec<LocatedProblem>,
    outline: Outline,
}

/// All objects by key. One task owns it; what others need they get as a [`crate::mesh::Mesh`].
#[derive(Debug, Default)]
pub struct Store {
    objects: BTreeMap<Kind, ByName>,
    refused: BTreeMap<ObjectKey, Refusal>,
    warnings: BTreeMap<ObjectKey, Vec<LocatedProblem>>,
    trouble: BTreeMap<String, Vec<LocatedProblem>>,
    synced: bool,
}

impl Store {
    /// Takes in one change, and adds the key of what is now different to `dirty`. Returns whether anything is
    /// different, problems included.
    pub fn apply(&mut self, change: Change, dirty: &mut BTreeSet<ObjectKey>) -> bool {
        match change {
            Change::Apply { object, origin, warnings } => {
                let key = object.key();
                let mut news = self.refused.remove(&key).is_some();
                news |= set_or_clear(&mut self.warnings, key.clone(), warnings);
                let slot = self.objects.entry(key.kind).or_default();
                let name = (key.namespace.clone(), key.name.clone());
                if let Some(old) = slot.get_mut(&name).filter(|old| old.object == object) {
                    // It may stand on another line by now.
                    old.origin = origin;
                    return news;
                }
                slot.insert(name, Entry { object, origin, revision: Revision::fresh() });
                dirty.insert(key);
                true
            }
            Change::Refuse { key, problems, outline } => {
                let refusal = Refusal { problems, outline };
                let news = self.refused.get(&key) != Some(&refusal);
                self.refused.insert(key, refusal);
                news
            }
            Change::Delete(key) => {
                let mut news = self.refused.remove(&key).is_some();
                news |= self.warnings.remove(&key).is_some();
                let removed = self
                    .objects
                    .get_mut(&key.kind)
                    .is_some_and(|slot| slot.remove(&(key.namespace.clone(), key.name.clone())).is_some());
                if removed {
                    dirty.insert(key);
                }
                news || removed
            }
            Change::Trouble { subject, problems } => set_or_clear(&mut self.trouble, subject, problems),
            Change::Synced => !std::mem::replace(&mut self.synced, true),
            Change::Mark(_) => false,
        }
    }

    /// Whether the source has handed on everything there was when it began.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// All objects of a kind, by namespace and name.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Entry> {
        self.objects.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.objects.get(&key.kind)?.get(&(key.namespace.clone(), key.name.clone()))
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.objects.get(&kind).map_or(0, BTreeMap::len)
    }

    /// The objects whose newest form is refused, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&ObjectKey, &[LocatedProblem])> {
        self.refused.iter().map(|(key, refusal)| (key, refusal.problems.as_slice()))
    }

    /// What the objects whose newest form is refused speak of.
    pub fn outlines(&self) -> impl Iterator<Item = (&ObjectKey, &Outline)> {
        self.refused.iter().map(|(key, refusal)| (key, &refusal.outline))
    }

    /// Objects that are in force but odd, and how.
    pub fn warnings(&self) -> impl Iterator<Item = (&ObjectKey, &[LocatedProblem])> {
        self.warnings.iter().map(|(key, problems)| (key, problems.as_slice()))
    }

    /// Problems that belong to no single object, by file or watched kind.
    pub fn trouble(&self) -> impl Iterator<Item = (&str, &[LocatedProblem])> {
        self.trouble.iter().map(|(subject, problems)| (subject.as_str(), problems.as_slice()))
    }
}

fn set_or_clear<K: Ord>(map: &mut BTreeMap<K, Vec<LocatedProblem>>, key: K, problems: Vec<LocatedProblem>) -> bool {
    if problems.is_empty() {
        map.remove(&key).is_some()
    } else if map.get(&key) == Some(&problems) {
        false
    } else {
        map.insert(key, problems);
        true
    }
}
