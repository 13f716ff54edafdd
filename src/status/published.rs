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

    /// Publishes a new state of the mesh in which the `dirty` objects changed, with the objects that are rejected in the
    /// same moment: a version that is accepted now must not count as rejected for another moment.
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
        let with_status = dirty
            .iter()
            .filter(|key| matches!(key.kind, Kind::VirtualService | Kind::DestinationRule));
        for key in with_status {
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
        let released = state.held.iter().filter(|change| !held.contains(change));
        let added = held.iter().filter(|change| !state.held.contains(change));
        let objects: BTreeSet<ObjectKey> =
            released.chain(added).flat_map(HeldChange::affected).cloned().collect();
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
        let invalid = rejected(store);
        if *state.invalid != invalid {
            state.invalid = Arc::new(invalid);
        }
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Updates the set of rejected objects where the mesh did not change.
    pub(crate) fn rejected(&self, store: &Store) {
        let invalid = rejected(store);
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

/// The objects whose newest version is rejected.
fn rejected(store: &Store) -> BTreeMap<ObjectKey, RejectedObject> {
    let all = store.rejected().map(|(key, problems)| {
        let generation = store.rejected_generation(key).unwrap_or_default();
        (key.clone(), RejectedObject { generation, problems: problems.into() })
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api;
    use crate::mesh::{MeshBuilder, MeshConfig};
    use crate::source::{Origin, SourceEvent, event_from};

    /// A version of a VirtualService, with this timeout.
    fn version(generation: i64, timeout: &str) -> SourceEvent {
        let key = ObjectKey::new(Kind::VirtualService, "shop", "web");
        let document = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "web", "namespace": "shop", "generation": generation},
            "spec": {"hosts": ["web"], "http": [
                {"timeout": timeout, "route": [{"destination": {"host": "web"}}]}]}});
        let parsed = api::parse(&key, document, 0);
        event_from(key, parsed, Origin::Cluster, |_| Origin::Cluster)
    }

    #[test]
    fn a_version_that_comes_into_force_is_no_longer_rejected_in_the_same_state() {
        let key = ObjectKey::new(Kind::VirtualService, "shop", "web");
        let (published, mut store) = (Published::default(), Store::default());
        let mut builder = MeshBuilder::new(MeshConfig::default());
        let mut revision = MeshRevision::NONE;
        let mut publish = |store: &mut Store, event| {
            let mut dirty = BTreeSet::new();
            store.apply(event, &mut dirty);
            let mesh = builder.update(store, &dirty);
            let wanted = mesh.virtual_services.clone();
            revision = revision.next();
            published.publish(&mesh, revision, wanted, Vec::new(), &dirty, store);
            published.state()
        };
        publish(&mut store, version(1, "1s"));
        let state = publish(&mut store, version(2, "soon"));
        assert_eq!(state.invalid[&key].generation, 2);
        let state = publish(&mut store, version(3, "2s"));
        assert_eq!((state.invalid.len(), state.active[&key].version.generation), (0, 3));
    }
}
