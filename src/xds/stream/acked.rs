//! What a client has of one type: the resources of a shared map, and its differences from it.
//!
//! Most clients are up to date most of the time. To cost no memory and time for those, only the differences are stored;
//! they are also what is examined for the next response.

use std::collections::{BTreeMap, btree_map};
use std::iter::{self, Peekable};
use std::slice;
use std::sync::Arc;

use super::change::Change;
use crate::snapshot::{Cursor, Resource, Resources};

/// What a client has under a name that differs from the shared map.
#[derive(Clone, Debug)]
enum AckedState {
    Known(Arc<Resource>),
    /// It has a version from an earlier stream, with unknown content.
    Unknown,
    Absent,
}

impl AckedState {
    /// The state after the client ACKed a change.
    fn after(change: &Change) -> Self {
        change.resource.clone().map_or(Self::Absent, Self::Known)
    }
}

/// What a client has of a type. Names without a subscription are not tracked; callers must skip them.
#[derive(Debug, Default)]
pub(super) struct Acked {
    /// `None` until the client has had a first response; until then `other` lists everything that it has.
    shared: Option<Resources>,
    other: BTreeMap<Arc<str>, AckedState>,
}

impl Acked {
    /// The version under a name: `None` if the client has none, `Some(None)` if it is unknown.
    pub(crate) fn get(&self, name: &str) -> Option<Option<&Arc<Resource>>> {
        self.look_up(name, |shared| shared.get(name))
    }

    /// Like [`Acked::get`], with a cursor of [`Acked::cursor`].
    pub(crate) fn get_at<'a>(
        &'a self,
        cursor: &mut Option<Cursor<'a>>,
        name: &str,
    ) -> Option<Option<&'a Arc<Resource>>> {
        self.look_up(name, |_| cursor.as_mut()?.get(name))
    }

    /// Looks names of the shared map up.
    pub(crate) fn cursor(&self) -> Option<Cursor<'_>> {
        self.shared.as_ref().map(Resources::cursor)
    }

    fn look_up<'a>(
        &'a self,
        name: &str,
        shared: impl FnOnce(&'a Resources) -> Option<&'a Arc<Resource>>,
    ) -> Option<Option<&'a Arc<Resource>>> {
        match self.other.get(name) {
            Some(AckedState::Known(resource)) => Some(Some(resource)),
            Some(AckedState::Unknown) => Some(None),
            Some(AckedState::Absent) => None,
            None => shared(self.shared.as_ref()?).map(Some),
        }
    }

    /// Whether the client is known to have nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.shared.is_none() && self.other.is_empty()
    }

    /// Whether only the names of [`Acked::differing`] can differ from the target.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether the client has all of `resources` and nothing else, a cheap check; `false` if unknown.
    pub(crate) fn is_exactly(&self, resources: &Resources) -> bool {
        self.other.is_empty() && self.shared.as_ref().is_some_and(|shared| shared.ptr_eq(resources))
    }

    /// The names whose version at the client differs from the shared map, or is missing.
    pub(crate) fn differing(&self) -> impl Iterator<Item = &Arc<str>> {
        self.other.keys()
    }

    /// The names of [`Acked::differing`] under which the client has a version, known or unknown.
    pub(crate) fn own(&self) -> impl Iterator<Item = &Arc<str>> {
        self.other
            .iter()
            .filter(|(_, state)| !matches!(state, AckedState::Absent))
            .map(|(name, _)| name)
    }

    /// The names whose version at the client is unknown.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = &Arc<str>> {
        self.other
            .iter()
            .filter(|(_, state)| matches!(state, AckedState::Unknown))
            .map(|(name, _)| name)
    }

    /// Every version that is known.
    pub(crate) fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let shared = self.shared.iter().flat_map(|shared| shared.iter());
        let shared =
            shared.filter(|(name, _)| self.other.is_empty() || !self.other.contains_key(*name));
        let other = self.other.values().filter_map(|state| {
            if let AckedState::Known(resource) = state { Some(resource) } else { None }
        });
        shared.map(|(_, resource)| resource).chain(other)
    }

    /// Records that the client has this version; `None` stands for an unknown one.
    pub(crate) fn set(&mut self, name: &Arc<str>, resource: Option<Arc<Resource>>) {
        self.put(name, resource.map_or(AckedState::Unknown, AckedState::Known));
    }

    /// Records that the client no longer has the resource.
    pub(crate) fn remove(&mut self, name: &Arc<str>) {
        self.put(name, AckedState::Absent);
    }

    /// Forgets a name that the client no longer asks for.
    pub(crate) fn forget(&mut self, name: &str) {
        self.other.remove(name);
    }

    /// Forgets the names for which `wants` is false: the client no longer asks for them.
    pub(crate) fn retain(&mut self, wants: impl Fn(&str) -> bool) {
        self.other.retain(|name, _| wants(name));
    }

    fn put(&mut self, name: &Arc<str>, state: AckedState) {
        let shared = self.shared.as_ref().and_then(|shared| shared.get(name)).cloned();
        self.put_over(shared.as_ref(), name, state);
    }

    /// Like [`Acked::put`]; `shared` is what the shared map has under the name.
    fn put_over(&mut self, shared: Option<&Arc<Resource>>, name: &Arc<str>, state: AckedState) {
        let same = match (&state, shared) {
            (AckedState::Known(own), Some(shared)) => own.version == shared.version,
            (AckedState::Absent, None) => true,
            _ => false,
        };
        if same {
            self.other.remove(name);
        } else {
            self.other.insert(name.clone(), state);
        }
    }

    /// Describes the same state by its differences from another map.
    pub(crate) fn follow(&mut self, to: &Resources, wants: impl Fn(&str) -> bool) {
        let Some(from) = self.shared.as_ref().filter(|from| !from.ptr_eq(to)).cloned() else {
            return;
        };
        self.shared = Some(to.clone());
        let previous = std::mem::take(&mut self.other);
        compare(&from, to, |name, old, _| {
            if !previous.contains_key(name) && wants(name) {
                self.other.insert(
                    name.clone(),
                    old.map_or(AckedState::Absent, |old| AckedState::Known(old.clone())),
                );
            }
        });
        for (name, state) in previous {
            self.put(&name, state);
        }
    }

    /// Makes `to` the shared map if there is none yet, after the client ACKed `changes` (sorted by name). `names` are
    /// those it asks for, sorted; `None` for all.
    pub(crate) fn share<'a>(
        &mut self,
        to: &Resources,
        changes: &[Change],
        names: Option<impl Iterator<Item = &'a Arc<str>>>,
    ) {
        let mut states = StatesAfter {
            before: std::mem::take(&mut self.other).into_iter().peekable(),
            changes: changes.iter().peekable(),
            passed: Vec::new(),
        };
        self.shared = Some(to.clone());
        match names {
            Some(names) => {
                let mut shared = to.cursor();
                for name in names {
                    let own = shared.get(name);
                    if !own.is_some_and(|own| states.passes(own)) {
                        self.put_over(own, name, states.get(name));
                    }
                }
            }
            None => {
                for (name, own) in to.iter() {
                    if !states.passes(own) {
                        self.put_over(Some(own), name, states.get(name));
                    }
                }
                states.rest().for_each(|(name, state)| self.put_over(None, &name, state));
            }
        }
    }

    /// Describes the state without the shared map again, before the client asks for more than `wants` says it did.
    pub(crate) fn unshare(&mut self, wants: impl Fn(&str) -> bool) {
        let known: Vec<_> =
            self.resources().filter(|resource| wants(&resource.name)).cloned().collect();
        self.shared = None;
        self.other.retain(|_, state| !matches!(state, AckedState::Absent));
        self.other.extend(
            known.into_iter().map(|resource| (resource.name.clone(), AckedState::Known(resource))),
        );
    }
}

/// What a client has after it ACKed changes. Names are looked up in their order, in which the earlier states and the
/// changes are sorted as well, so each is walked once: this runs for every client's first response.
struct StatesAfter<'a> {
    before: Peekable<btree_map::IntoIter<Arc<str>, AckedState>>,
    changes: Peekable<slice::Iter<'a, Change>>,
    /// The states under names before the last one that were not looked up.
    passed: Vec<(Arc<str>, AckedState)>,
}

impl StatesAfter<'_> {
    /// Whether the next change is to this resource of the shared map, as nearly all are. Passes over it then.
    fn passes(&mut self, own: &Arc<Resource>) -> bool {
        let Self { before, changes, .. } = self;
        before.peek().is_none()
            && changes
                .next_if(|change| change.resource.as_ref().is_some_and(|new| Arc::ptr_eq(new, own)))
                .is_some()
    }

    fn get(&mut self, name: &Arc<str>) -> AckedState {
        let Self { before, changes, passed } = self;
        passed.extend(iter::from_fn(|| before.next_if(|(other, _)| other < name)));
        let had = before.next_if(|(other, _)| other == name).map(|(_, state)| state);
        // Most names are shared, so that their text need not be read.
        if let Some(change) = changes.next_if(|change| Arc::ptr_eq(&change.name, name)) {
            return AckedState::after(change);
        }
        while let Some(change) = changes.next_if(|change| change.name < *name) {
            passed.push((change.name.clone(), AckedState::after(change)));
        }
        let change = changes.next_if(|change| change.name == *name).map(AckedState::after);
        change.or(had).unwrap_or(AckedState::Absent)
    }

    /// The states under all names that were not looked up.
    fn rest(self) -> impl Iterator<Item = (Arc<str>, AckedState)> {
        let changes = self.changes.map(|change| (change.name.clone(), AckedState::after(change)));
        self.passed.into_iter().chain(self.before).chain(changes)
    }
}

/// Calls `found` with each name under which two maps hold different versions, or only one holds any, and both.
pub(super) fn compare<'a>(
    old: &'a Resources,
    new: &'a Resources,
    found: impl FnMut(&'a Arc<str>, Option<&'a Arc<Resource>>, Option<&'a Arc<Resource>>),
) {
    old.diff(new, found);
}
