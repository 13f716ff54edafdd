//! What was published last: the mesh in force, what the objects want instead, and since when each object is as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::api::{Kind, ObjectKey};
use crate::mesh::{Mesh, VirtualServices};
use crate::revision::MeshRevision;
use crate::rollout_guard::HeldChange;
use crate::store::Store;

/// One state.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The mesh in force; `None` before the first.
    pub mesh: Option<Mesh>,
    /// Its revision.
    pub revision: MeshRevision,
    /// The VirtualServices as their objects say.
    pub wanted: Arc<VirtualServices>,
    /// What is held back of them.
    pub held: Arc<[HeldChange]>,
    /// The VirtualServices and DestinationRules in force.
    pub in_force: Arc<BTreeMap<ObjectKey, InForce>>,
    /// Objects whose newest form is not in force, and why.
    pub invalid: Arc<BTreeMap<ObjectKey, Vec<String>>>,
}

/// The accepted form of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The revision since which it is in force as it is.
    pub since: MeshRevision,
    /// Its `metadata.generation`; 0 where there is none.
    pub generation: i64,
}

/// The newest state, for everyone who asks.
#[derive(Debug, Default)]
pub struct Ledger {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    marked: watch::Sender<u64>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new state of the mesh, of which `dirty` objects changed.
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
        let mut in_force = state.in_force.clone();
        let ours = |key: &&ObjectKey| matches!(key.kind, Kind::VirtualService | Kind::DestinationRule);
        for key in dirty.iter().filter(ours) {
            let all = Arc::make_mut(&mut in_force);
            match store.get(key) {
                Some(entry) => {
                    let generation = entry.object.meta.generation;
                    all.insert(key.clone(), InForce { since: revision, generation })
                }
                None => all.remove(key),
            };
        }
        // What is held, or let go, changes what is in force as much as an edit does.
        let moved = |a: &[HeldChange], b: &[HeldChange]| -> BTreeSet<ObjectKey> {
            let only_here = a.iter().filter(|change| !b.contains(change));
            only_here.flat_map(|change| change.roots.iter().chain([&change.object])).cloned().collect()
        };
        let objects = &moved(&state.held, &held) | &moved(&held, &state.held);
        if !objects.is_empty() {
            let all = Arc::make_mut(&mut in_force).iter_mut();
            all.filter(|(key, _)| objects.contains(*key)).for_each(|(_, one)| one.since = revision);
        }
        state.in_force = in_force;
        state.held = held.into();
        state.mesh = Some(mesh.clone());
        state.wanted = wanted;
        state.revision = revision;
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Notes which objects are refused at present.
    pub fn refused(&self, store: &Store) {
        let invalid: BTreeMap<ObjectKey, Vec<String>> = store
            .refused()
            .map(|(key, list)| {
                (key.clone(), list.iter().map(|one| format!("{}: {}", one.origin, one.problem)).collect())
            })
            .collect();
        let mut state = self.lock();
        if *state.invalid != invalid {
            state.invalid = Arc::new(invalid);
            drop(state);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Notes that everything up to this [`crate::source::Change::Mark`] is taken in.
    pub fn mark(&self, mark: u64) {
        self.marked.send_modify(|newest| *newest = mark.max(*newest));
    }

    /// Waits until everything up to this mark is taken in.
    pub async fn marked(&self, mark: u64) {
        // The sender lives as long as this.
        let _ = self.marked.subscribe().wait_for(|newest| *newest >= mark).await;
    }

    /// The newest state.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Tells of each new state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
