//! The last published state: the active mesh, the desired VirtualServices, and the revision of every object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::api::{Kind, ObjectKey};
use crate::mesh::{Mesh, VirtualServices};
use crate::revision::MeshRevision;
use crate::rollout_guard::HeldChange;
use crate::store::Store;

/// One published state.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The active mesh; `None` before the first.
    pub mesh: Option<Mesh>,
    /// Its revision.
    pub revision: MeshRevision,
    /// The VirtualServices as written.
    pub wanted: Arc<VirtualServices>,
    /// The changes that are held back.
    pub held: Arc<[HeldChange]>,
    /// The active VirtualServices and DestinationRules.
    pub active: Arc<BTreeMap<ObjectKey, ActiveObject>>,
    /// Objects whose newest version was rejected, with the reasons.
    pub invalid: Arc<BTreeMap<ObjectKey, Vec<String>>>,
}

/// The active version of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveObject {
    /// The mesh revision in which it became active.
    pub since: MeshRevision,
    /// Its `metadata.generation`; 0 if absent.
    pub generation: i64,
}

/// Shares the latest state with its readers.
#[derive(Debug, Default)]
pub struct Published {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    barrier_reached: watch::Sender<u64>,
}

impl Published {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a new state of the mesh in which the `dirty` objects changed.
    pub fn publish(
        &self,
        mesh: &Mesh,
        revision: MeshRevision,
        wanted: Arc<VirtualServices>,
        held: Vec<HeldChange>,
        dirty: &BTreeSet<ObjectKey>,
        store: &Store,
    ) {
        let mut state = self.lock();
        // Taken out of the state so that it is changed in place unless a reader still holds it.
        let mut active = std::mem::take(&mut state.active);
        let ours =
            |key: &&ObjectKey| matches!(key.kind, Kind::VirtualService | Kind::DestinationRule);
        for key in dirty.iter().filter(ours) {
            let all = Arc::make_mut(&mut active);
            match store.get(key) {
                Some(entry) => {
                    let generation = entry.object.meta.generation;
                    all.insert(key.clone(), ActiveObject { since: revision, generation })
                }
                None => all.remove(key),
            };
        }
        // Holding back or releasing a change alters the active state just as an edit does.
        let moved = |a: &[HeldChange], b: &[HeldChange]| -> BTreeSet<ObjectKey> {
            let only_here = a.iter().filter(|change| !b.contains(change));
            only_here
                .flat_map(|change| change.roots.iter().chain([&change.object]))
                .cloned()
                .collect()
        };
        let objects = &moved(&state.held, &held) | &moved(&held, &state.held);
        if !objects.is_empty() {
            let all = Arc::make_mut(&mut active).iter_mut();
            all.filter(|(key, _)| objects.contains(*key))
                .for_each(|(_, item)| item.since = revision);
        }
        state.active = active;
        state.held = held.into();
        state.mesh = Some(mesh.clone());
        state.wanted = wanted;
        state.revision = revision;
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Updates the set of rejected objects.
    pub fn rejected(&self, store: &Store) {
        let invalid: BTreeMap<ObjectKey, Vec<String>> = store
            .rejected()
            .map(|(key, list)| {
                (
                    key.clone(),
                    list.iter().map(|item| format!("{}: {}", item.origin, item.problem)).collect(),
                )
            })
            .collect();
        let mut state = self.lock();
        if *state.invalid != invalid {
            state.invalid = Arc::new(invalid);
            drop(state);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Records that everything up to this [`crate::source::SourceEvent::Barrier`] has been applied.
    pub fn reach_barrier(&self, barrier: u64) {
        self.barrier_reached.send_modify(|newest| *newest = barrier.max(*newest));
    }

    /// Waits until everything up to this barrier has been applied.
    pub async fn barrier_reached(&self, barrier: u64) {
        // The sender cannot be dropped while `self` is borrowed.
        let _ = self.barrier_reached.subscribe().wait_for(|newest| *newest >= barrier).await;
    }

    /// The latest state.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Notifies of each new state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
