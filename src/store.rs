//! The last accepted version of every object, by key, and why newer versions were rejected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use crate::api::{Kind, Object, ObjectKey, References};
use crate::revision::Revision;
use crate::source::{LocatedProblem, Origin, SourceEvent};

/// An accepted object and its origin.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The object.
    pub object: Arc<Object>,
    /// Where it was read from.
    pub origin: Origin,
    /// Fresh for each content.
    pub revision: Revision,
}

type ByName = OrdMap<(Arc<str>, Arc<str>), Entry>;

type Problems = Arc<[LocatedProblem]>;

/// Why the newest version of an object was rejected, and what it references.
#[derive(Debug, PartialEq)]
struct Rejection {
    generation: i64,
    problems: Vec<LocatedProblem>,
    references: References,
}

/// All objects by key. A single task owns the store. Everything else reads a [`crate::mesh::Mesh`], except for the
/// webhook, which analyzes a clone: a clone shares its contents with the original, so it costs little.
#[derive(Clone, Debug, Default)]
pub struct Store {
    objects: BTreeMap<Kind, ByName>,
    rejected: OrdMap<ObjectKey, Arc<Rejection>>,
    warnings: OrdMap<ObjectKey, Problems>,
    source_problems: OrdMap<String, Problems>,
    synced: bool,
}

impl Store {
    /// Applies one event and adds the key of the object to `dirty` if it changed. Returns whether anything changed,
    /// including problems.
    pub fn apply(&mut self, change: SourceEvent, dirty: &mut BTreeSet<ObjectKey>) -> bool {
        match change {
            SourceEvent::Apply { object, origin, warnings } => {
                let key = object.key();
                let mut news = self.rejected.remove(&key).is_some();
                news |= set_or_clear(&mut self.warnings, key.clone(), warnings);
                let slot = self.objects.entry(key.kind).or_default();
                let name = (key.namespace.clone(), key.name.clone());
                if let Some(old) = slot.get_mut(&name).filter(|old| old.object == object) {
                    // It may have moved to another line.
                    old.origin = origin;
                    return news;
                }
                slot.insert(name, Entry { object, origin, revision: Revision::fresh() });
                dirty.insert(key);
                true
            }
            SourceEvent::Reject { key, generation, problems, references } => {
                let rejection = Arc::new(Rejection { generation, problems, references });
                let news = self.rejected.get(&key) != Some(&rejection);
                self.rejected.insert(key, rejection);
                news
            }
            SourceEvent::Delete(key) => {
                let mut news = self.rejected.remove(&key).is_some();
                news |= self.warnings.remove(&key).is_some();
                let removed = self.objects.get_mut(&key.kind).is_some_and(|slot| {
                    slot.remove(&(key.namespace.clone(), key.name.clone())).is_some()
                });
                if removed {
                    dirty.insert(key);
                }
                news || removed
            }
            SourceEvent::SourceProblems { subject, problems } => {
                set_or_clear(&mut self.source_problems, subject, problems)
            }
            SourceEvent::Synced => !std::mem::replace(&mut self.synced, true),
            SourceEvent::Resyncing => {
                self.synced = false;
                false
            }
            SourceEvent::Barrier(_) => false,
        }
    }

    /// Whether the source has delivered everything that existed when it started, and what it missed since.
    pub(crate) fn synced(&self) -> bool {
        self.synced
    }

    /// All objects of a kind, by namespace and name.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Entry> {
        self.objects.get(&kind).into_iter().flat_map(OrdMap::values)
    }

    /// One object.
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.objects.get(&key.kind)?.get(&(key.namespace.clone(), key.name.clone()))
    }

    /// How many objects of a kind there are.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.objects.get(&kind).map_or(0, OrdMap::len)
    }

    /// The objects whose newest version was rejected, with the reasons.
    pub fn rejected(&self) -> impl Iterator<Item = (&ObjectKey, &[LocatedProblem])> {
        self.rejected.iter().map(|(key, rejection)| (key, &*rejection.problems))
    }

    /// The `metadata.generation` of an object's rejected version; `None` if its newest version was accepted.
    pub(crate) fn rejected_generation(&self, key: &ObjectKey) -> Option<i64> {
        self.rejected.get(key).map(|rejection| rejection.generation)
    }

    /// The references of the objects whose newest version was rejected.
    pub(crate) fn rejected_references(&self) -> impl Iterator<Item = (&ObjectKey, &References)> {
        self.rejected.iter().map(|(key, rejection)| (key, &rejection.references))
    }

    /// The warnings about one accepted object.
    pub(crate) fn warnings_of(&self, key: &ObjectKey) -> &[LocatedProblem] {
        self.warnings.get(key).map_or(&[], |problems| problems)
    }

    /// The warnings about accepted objects.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = (&ObjectKey, &[LocatedProblem])> {
        self.warnings.iter().map(|(key, problems)| (key, &**problems))
    }

    /// Problems that cannot be attributed to one object, by file or watched kind.
    pub fn source_problems(&self) -> impl Iterator<Item = (&str, &[LocatedProblem])> {
        self.source_problems.iter().map(|(subject, problems)| (subject.as_str(), &**problems))
    }

    /// The problems of one file or watched kind.
    pub(crate) fn source_problems_of(&self, subject: &str) -> &[LocatedProblem] {
        self.source_problems.get(subject).map_or(&[], |problems| problems)
    }
}

fn set_or_clear<K: Ord + Clone>(
    map: &mut OrdMap<K, Problems>,
    key: K,
    problems: Vec<LocatedProblem>,
) -> bool {
    if problems.is_empty() {
        map.remove(&key).is_some()
    } else if map.get(&key).is_some_and(|known| **known == *problems) {
        false
    } else {
        map.insert(key, problems.into());
        true
    }
}
