//! All watched kinds together, and with discovery selectors the namespaces whose objects are held.
//!
//! Every kind is watched in the whole cluster; an object is dropped before it is parsed unless its namespace is selected.
//! When a namespace is selected later, because a label changed or it is new, its objects of all kinds are listed and
//! arrive in one batch: a service without its endpoints would answer requests with errors for a moment. Meanwhile its
//! watch events wait. The list's resource version tells which events it already includes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::super::SourceEvent;
use super::super::sync::{KindSync, LastAnswer};
use super::kinds::KindState;
use super::selection::{DiscoverySelector, Namespaces, Selection};
use super::{Event, NamespaceListing, NamespaceRequest};
use crate::api::{self, Identity, Kind, Labels, ObjectKey};

/// The state of all watched kinds.
pub(super) struct Watches {
    kinds: Vec<KindState>,
    membership: Option<Membership>,
}

/// The selected namespaces.
struct Membership {
    selectors: Arc<[DiscoverySelector]>,
    selected: BTreeMap<Arc<str>, Member>,
    /// Whether the first list of namespaces is complete. The other kinds are watched from then on, so the namespaces
    /// that are selected before need no list of their own.
    begun: bool,
    /// The last ticket given to a listing.
    tickets: u64,
}

/// A selected namespace.
enum Member {
    /// Its objects are not in use until they have been listed.
    Joining {
        /// The listing under way.
        ticket: Option<u64>,
        /// The newest watch event of each object in the meantime, with its resource version.
        waiting: BTreeMap<Kind, BTreeMap<ObjectKey, (u64, Waiting)>>,
    },
    /// Its objects are in use.
    Joined {
        /// The resource version of its list, for each kind; older watch events are included in it.
        listed: BTreeMap<Kind, u64>,
    },
}

impl Member {
    fn joining() -> Self {
        Self::Joining { ticket: None, waiting: BTreeMap::new() }
    }
}

/// What a watch event said of an object.
enum Waiting {
    Applied(Value),
    Deleted,
}

/// What becomes of a document.
enum Fate {
    /// It goes on to its kind.
    Pass,
    /// It waits, is outdated, or belongs to no selected namespace.
    Drop,
}

impl Watches {
    pub(crate) fn new(selection: &Selection) -> Self {
        let kinds = selection.kinds().map(|kind| KindState::new(kind, selection.revision.clone()));
        let membership = match &selection.namespaces {
            Namespaces::Matching(selectors) => Some(Membership {
                selectors: selectors.clone(),
                selected: BTreeMap::new(),
                begun: false,
                tickets: 0,
            }),
            Namespaces::All | Namespaces::One(_) => None,
        };
        Self { kinds: kinds.collect(), membership }
    }

    /// Whether the first list of every kind is complete.
    pub(crate) fn complete(&self) -> bool {
        self.kinds.iter().all(|state| state.complete)
    }

    /// What there is to tell about every kind.
    pub(crate) fn sync(&self) -> Vec<KindSync> {
        self.kinds.iter().map(KindState::sync).collect()
    }

    /// Whether changes of a kind may be missing that were written before those of other kinds.
    pub(crate) fn are_behind(&mut self, now: Instant) -> bool {
        // Each one is asked, because that also notices what has arrived.
        self.kinds.iter_mut().filter_map(|state| state.is_behind(now).then_some(())).count() > 0
    }

    /// The kinds that may be watched now, with where to record that the API answered: with discovery selectors,
    /// Namespaces come first.
    pub(crate) fn startable(&self) -> Vec<(Kind, LastAnswer)> {
        let namespaces_first = self.membership.as_ref().is_some_and(|all| !all.begun);
        let kinds = self.kinds.iter().map(|state| (state.kind, state.answered.clone()));
        kinds.filter(|(kind, _)| !namespaces_first || *kind == Kind::Namespace).collect()
    }

    pub(crate) fn handle(&mut self, kind: Kind, event: Event, out: &mut Vec<SourceEvent>) {
        let Some(state) = self.kinds.iter_mut().find(|state| state.kind == kind) else {
            return;
        };
        if let Some(membership) = &mut self.membership {
            if kind == Kind::Namespace {
                let done = matches!(event, Event::InitDone);
                let from = out.len();
                let left = membership.update(&event);
                state.handle(event, out);
                let gone: Vec<Arc<str>> = membership.deleted(out.get(from..).unwrap_or_default());
                membership.begun |= done;
                for namespace in left.into_iter().chain(gone) {
                    self.kinds.iter_mut().for_each(|state| state.leave(&namespace, out));
                }
                return;
            }
            if let Fate::Drop = membership.sort(kind, &event, state.lists()) {
                return;
            }
        }
        state.handle(event, out);
    }

    /// What has to be listed now.
    pub(crate) fn take_requests(&mut self) -> Vec<NamespaceRequest> {
        let Some(membership) = &mut self.membership else {
            return Vec::new();
        };
        // The list of a kind in progress may or may not include the new namespace.
        if !membership.begun || self.kinds.iter().any(KindState::lists) {
            return Vec::new();
        }
        let served: BTreeSet<Kind> =
            self.kinds.iter().filter(|state| !state.is_absent()).map(|state| state.kind).collect();
        let mut lists = Vec::new();
        for (namespace, member) in &mut membership.selected {
            if let Member::Joining { ticket: ticket @ None, .. } = member {
                membership.tickets += 1;
                *ticket = Some(membership.tickets);
                lists.push(NamespaceRequest {
                    namespace: namespace.clone(),
                    ticket: membership.tickets,
                    served: served.clone(),
                });
            }
        }
        lists
    }

    /// Takes the objects of a namespace, unless the namespace has left or a kind was listed in the meantime.
    pub(crate) fn listed(&mut self, listing: NamespaceListing, out: &mut Vec<SourceEvent>) {
        let member =
            self.membership.as_mut().and_then(|all| all.selected.get_mut(&listing.namespace));
        let Some(member) = member else {
            return;
        };
        let Member::Joining { ticket, waiting } = member else {
            return;
        };
        if *ticket != Some(listing.ticket) {
            return;
        }
        let Ok(kinds) = listing.kinds else {
            // It is listed again.
            *ticket = None;
            return;
        };
        let mut waiting = std::mem::take(waiting);
        let mut listed = BTreeMap::new();
        for (kind, objects) in kinds {
            listed.insert(kind, objects.version);
            let Some(state) = self.kinds.iter_mut().find(|state| state.kind == kind) else {
                continue;
            };
            let mut newer = waiting.remove(&kind).unwrap_or_default();
            newer.retain(|_, (version, _)| *version > objects.version);
            for document in objects.documents {
                let changed = match api::identify(&document) {
                    Ok(Identity::Known(key)) => newer.contains_key(&key),
                    _ => false,
                };
                if !changed {
                    state.apply(document, out);
                }
            }
            for (_, change) in newer.into_values() {
                if let Waiting::Applied(document) = change {
                    state.apply(document, out);
                }
            }
        }
        *member = Member::Joined { listed };
    }
}

impl Membership {
    fn selects(&self, labels: &Labels) -> bool {
        self.selectors.iter().any(|selector| selector.matches(labels))
    }

    /// Takes an event of Namespaces; returns the namespace that is no longer selected.
    fn update(&mut self, event: &Event) -> Option<Arc<str>> {
        let Event::Apply(document) = event else {
            return None;
        };
        let Ok(Identity::Known(key)) = api::identify(document) else {
            return None;
        };
        let labels = document.pointer("/metadata/labels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten();
        let labels: Labels = labels
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        if !self.selects(&labels) {
            return self.selected.remove(&key.name).map(|_| key.name);
        }
        self.selected.entry(key.name).or_insert_with(|| {
            if self.begun { Member::joining() } else { Member::Joined { listed: BTreeMap::new() } }
        });
        None
    }

    /// The selected namespaces among the deleted ones.
    fn deleted(&mut self, events: &[SourceEvent]) -> Vec<Arc<str>> {
        let deleted = events.iter().filter_map(|event| match event {
            SourceEvent::Delete(key) if key.kind == Kind::Namespace => Some(key.name.clone()),
            _ => None,
        });
        deleted.filter(|name| self.selected.remove(name).is_some()).collect()
    }

    /// Sorts out an event of another kind than Namespace.
    fn sort(&mut self, kind: Kind, event: &Event, lists: bool) -> Fate {
        let (document, deleted) = match event {
            Event::Apply(document) => (document, false),
            Event::Delete(document) => (document, true),
            Event::Init => {
                self.relists(kind);
                return Fate::Pass;
            }
            _ => return Fate::Pass,
        };
        if !kind.namespaced() {
            return Fate::Pass;
        }
        let Ok(Identity::Known(key)) = api::identify(document) else {
            return Fate::Drop;
        };
        match self.selected.get_mut(&key.namespace) {
            None => Fate::Drop,
            Some(Member::Joining { waiting, .. }) => {
                let change =
                    if deleted { Waiting::Deleted } else { Waiting::Applied(document.clone()) };
                waiting.entry(kind).or_default().insert(key, (version(event), change));
                Fate::Drop
            }
            Some(Member::Joined { listed }) => {
                let included = listed.get(&kind).is_some_and(|listed| version(event) <= *listed);
                if included && !lists { Fate::Drop } else { Fate::Pass }
            }
        }
    }

    /// A kind is listed anew: that list is newer than those of the namespaces, and those under way may be older.
    fn relists(&mut self, kind: Kind) {
        for member in self.selected.values_mut() {
            match member {
                Member::Joining { ticket, .. } => *ticket = None,
                Member::Joined { listed } => {
                    listed.remove(&kind);
                }
            }
        }
    }
}

/// The resource version of an event's object. One that is not a number counts as newest.
fn version(event: &Event) -> u64 {
    match event {
        Event::Apply(document) | Event::Delete(document) => {
            let version = document.pointer("/metadata/resourceVersion").and_then(Value::as_str);
            version.and_then(|version| version.parse().ok()).unwrap_or(u64::MAX)
        }
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests;
