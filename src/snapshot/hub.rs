//! Hands each proxy the snapshot of its scope, now and whenever it changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::{Memo, Snapshot};
use crate::mesh::{Mesh, Proxy, Scope};

/// The place where states of the mesh come in and snapshots go out. A proxy that is slow sees the latest snapshot and
/// none of those between.
#[derive(Debug, Default)]
pub struct Hub {
    inner: Mutex<Inner>,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    mesh: Option<Mesh>,
    revision: u64,
    memo: Memo,
    scopes: BTreeMap<Scope, Arc<Snapshot>>,
    proxies: HashMap<u64, Connected>,
}

#[derive(Debug)]
struct Connected {
    proxy: Proxy,
    scope: Option<Scope>,
    sender: watch::Sender<Option<Arc<Snapshot>>>,
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubStats {
    /// Proxies connected.
    pub proxies: usize,
    /// Distinct scopes among them.
    pub scopes: usize,
    /// Encoded parts that snapshots are made of.
    pub parts: usize,
    /// Resources, or parts of them, that are not sent because Envoy would refuse them.
    pub left_out: usize,
}

/// A proxy's place at the hub; dropping it gives it up.
#[derive(Debug)]
pub struct Subscription {
    /// The latest snapshot; `None` until there is a first state of the mesh.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    hub: Arc<Hub>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        if let Some(left) = inner.proxies.remove(&self.id)
            && let Some(scope) = left.scope
            && !inner.proxies.values().any(|other| other.scope.as_ref() == Some(&scope))
        {
            inner.scopes.remove(&scope);
        }
    }
}

impl Hub {
    /// Every change under the lock is done in one go and can not leave it half done, so that a poisoned lock is as
    /// good as any.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a new state of the mesh, and gives every proxy whose answer it changes a new snapshot.
    pub fn publish(&self, mesh: Mesh, revision: u64) {
        let begun = Instant::now();
        let mut inner = self.lock();
        let Inner { memo, scopes, proxies, .. } = &mut *inner;
        let before = std::mem::take(scopes);
        for connected in proxies.values_mut() {
            let scope = mesh.scope(&connected.proxy);
            let snapshot = snapshot_of(memo, scopes, before.get(&scope), &mesh, &scope, (revision, Some(begun)));
            connected.scope = Some(scope);
            connected.sender.send_replace(Some(snapshot));
        }
        memo.sweep();
        inner.mesh = Some(mesh);
        inner.revision = revision;
    }

    /// A place for `proxy`.
    pub fn subscribe(self: &Arc<Self>, proxy: Proxy) -> Subscription {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        let Inner { mesh, revision, memo, scopes, proxies } = &mut *inner;
        let scope = mesh.as_ref().map(|mesh| mesh.scope(&proxy));
        let first = match (mesh.as_ref(), &scope) {
            (Some(mesh), Some(scope)) => Some(snapshot_of(memo, scopes, None, mesh, scope, (*revision, None))),
            _ => None,
        };
        let (sender, snapshots) = watch::channel(first);
        proxies.insert(id, Connected { proxy, scope, sender });
        Subscription { snapshots, hub: self.clone(), id }
    }

    /// The snapshot that `proxy` would get now; `None` until there is a first state of the mesh.
    pub fn preview(&self, proxy: &Proxy) -> Option<Arc<Snapshot>> {
        let mut inner = self.lock();
        let Inner { mesh, revision, memo, .. } = &mut *inner;
        let mesh = mesh.as_ref()?;
        Some(Arc::new(memo.snapshot(mesh, &mesh.scope(proxy), *revision)))
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> HubStats {
        let inner = self.lock();
        let left_out: BTreeSet<_> = inner.scopes.values().flat_map(|snapshot| snapshot.left_out.iter()).collect();
        HubStats {
            proxies: inner.proxies.len(),
            scopes: inner.scopes.len(),
            parts: inner.memo.len(),
            left_out: left_out.len(),
        }
    }
}

fn snapshot_of(
    memo: &mut Memo,
    scopes: &mut BTreeMap<Scope, Arc<Snapshot>>,
    before: Option<&Arc<Snapshot>>,
    mesh: &Mesh,
    scope: &Scope,
    (revision, published): (u64, Option<Instant>),
) -> Arc<Snapshot> {
    if let Some(made) = scopes.get(scope) {
        return made.clone();
    }
    let mut snapshot = memo.snapshot(mesh, scope, revision);
    snapshot.published = published;
    if let Some(before) = before {
        snapshot.share_with(before);
    }
    let snapshot = Arc::new(snapshot);
    scopes.insert(scope.clone(), snapshot.clone());
    snapshot
}
