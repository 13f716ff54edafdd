//! The last published state: the active mesh, the desired VirtualServices, and the revision of every object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::api::{Kind, ObjectKey};
use crate::mesh::{Mesh, VirtualServices};
use crate::revision::MeshRevision;
use crate::rollout_guard::HeldChange;
use crate::source::LocatedProblem;
use crate::store::Store;

/// One published state.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
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
    pub invalid: Arc<BTreeMap<ObjectKey, RejectedObject>>,
}

impl State {
    /// Why the newest version of an object was rejected, with where; empty if it was accepted.
    pub(crate) fn rejections(&self, key: &ObjectKey) -> Vec<String> {
        let problems = self.invalid.get(key).map(|rejected| rejected.problems.iter());
        problems.into_iter().flatten().map(ToString::to_string).collect()
    }
}

/// The active version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ActiveObject {
    /// The mesh revision in which it became active.
    pub since: MeshRevision,
    /// Which version it is.
    pub version: ObjectVersion,
    /// Its harmless problems.
    pub warnings: Arc<[LocatedProblem]>,
}

/// A version of an object, which is the same at every replica: an object that was deleted and created again counts its
/// generations from 1 again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectVersion {
    /// When the object was created, as in [`crate::api::Age::created`].
    pub created: i64,
    /// Its `metadata.generation`; 0 if absent.
    pub generation: i64,
}

/// The rejected newest version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RejectedObject {
    /// Its `metadata.generation`; 0 if absent.
    pub generation: i64,
    /// Why; at least one reason.
    pub problems: Arc<[LocatedProblem]>,
}

/// Shares the latest state with its readers.
#[derive(Debug, Default)]
pub(crate) struct Published {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    barrier_reached: watch::Sender<u64>,
}

impl Published {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Publishes a new state of the mesh in which the `dirty` objects changed.
    pub(crate) fn publish(
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
                    let meta = &entry.object.meta;
                    let version =
                        ObjectVersion { created: meta.age.created, generation: meta.generation };
                    let warnings = store.warnings_of(key).into();
                    all.insert(key.clone(), ActiveObject { since: revision, version, warnings })
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
    pub(crate) fn rejected(&self, store: &Store) {
        let invalid: BTreeMap<ObjectKey, RejectedObject> = store
            .rejected()
            .map(|(key, problems)| {
                let generation = store.rejected_generation(key).unwrap_or_default();
                (key.clone(), RejectedObject { generation, problems: problems.into() })
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
    pub(crate) fn reach_barrier(&self, barrier: u64) {
        self.barrier_reached.send_modify(|newest| *newest = barrier.max(*newest));
    }

    /// Waits until everything up to this barrier has been applied.
    pub(crate) async fn barrier_reached(&self, barrier: u64) {
        // The sender cannot be dropped while `self` is borrowed.
        let _ = self.barrier_reached.subscribe().wait_for(|newest| *newest >= barrier).await;
    }

    /// The latest state.
    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    /// Notifies of each new state.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
