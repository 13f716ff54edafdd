//! Delivers to each proxy the snapshot of its scope whenever it changes. A single thread owns and builds the snapshots;
//! everything else sends it requests.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::parts::WorkCounts;
use super::{Snapshot, SnapshotBuilder};
use crate::mesh::{Mesh, MeshChange, Proxy, Scope};
use crate::revision::MeshRevision;

/// How many requests may be queued for the snapshot thread; further senders wait.
const WAITING_REQUESTS: usize = 1024;

/// A handle to the snapshot thread. A slow proxy sees only the latest snapshot.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotCache {
    requests: mpsc::Sender<Request>,
    stats: watch::Receiver<CacheStats>,
    proxies: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum Request {
    Publish {
        mesh: Box<Mesh>,
        revision: MeshRevision,
        done: oneshot::Sender<()>,
    },
    Subscribe {
        proxy: Box<Proxy>,
        reply: oneshot::Sender<SnapshotSubscription>,
    },
    /// The proxy of a subscription wants its table of names.
    AddNames(u64),
    /// Some subscriptions were dropped: those in [`Dropped::ids`].
    Unsubscribe,
}

/// Values for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheStats {
    /// Connected proxies.
    pub proxies: usize,
    /// Distinct scopes among them.
    pub scopes: usize,
    /// Encoded parts that snapshots are built from.
    pub parts: usize,
    /// Resources or parts of them that are omitted because Envoy would reject them.
    pub omitted: usize,
    /// The work done so far.
    pub work: WorkCounts,
}

/// A subscription to the snapshots of a proxy's scope; dropping it unsubscribes.
#[derive(Debug)]
pub(crate) struct SnapshotSubscription {
    /// The latest snapshot; `None` before the first state of the mesh.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    id: u64,
    dropped: Arc<Dropped>,
}

impl SnapshotSubscription {
    /// Has the snapshots contain the table of names from now on.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) async fn add_names(&self) -> Result<(), Ended> {
        let requests = self.dropped.requests.upgrade().ok_or(Ended)?;
        requests.send(Request::AddNames(self.id)).await.map_err(|_| Ended)
    }
}

/// The subscriptions that were dropped and that the thread has yet to forget.
#[derive(Debug)]
struct Dropped {
    ids: Mutex<Vec<u64>>,
    requests: mpsc::WeakSender<Request>,
    proxies: Arc<AtomicUsize>,
}

impl Dropped {
    /// Has the thread forget the subscription; only the first of several asks it to.
    fn add(&self, id: u64) {
        self.proxies.fetch_sub(1, Ordering::Relaxed);
        let mut ids = self.ids.lock();
        ids.push(id);
        if ids.len() == 1
            && let Some(requests) = self.requests.upgrade()
        {
            // The thread reads the list after each request, so it needs no request if its queue is full.
            let _ = requests.try_send(Request::Unsubscribe);
        }
    }

    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut self.ids.lock())
    }
}

impl Drop for SnapshotSubscription {
    fn drop(&mut self) {
        self.dropped.add(self.id);
    }
}

/// The snapshot thread has ended, which does not normally happen.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the snapshot thread has ended")]
pub(crate) struct Ended;

impl SnapshotCache {
    /// Starts the thread. It ends when the last handle is dropped. The receiver resolves when it has ended.
    ///
    /// # Errors
    /// The system cannot create another thread.
    pub(crate) fn start() -> std::io::Result<(Self, oneshot::Receiver<()>)> {
        let (requests, receiver) = mpsc::channel(WAITING_REQUESTS);
        let (sender, stats) = watch::channel(CacheStats::default());
        let (alive, ended) = oneshot::channel();
        let proxies = Arc::<AtomicUsize>::default();
        let dropped = Dropped {
            ids: Mutex::default(),
            requests: requests.downgrade(),
            proxies: proxies.clone(),
        };
        let owner = Owner {
            builder: SnapshotBuilder::default(),
            proxies: HashMap::new(),
            dropped: Arc::new(dropped),
            last_id: 0,
            stats: sender,
        };
        std::thread::Builder::new().name("snapshots".to_owned()).spawn(move || {
            owner.run(receiver);
            drop(alive);
        })?;
        Ok((Self { requests, stats, proxies }, ended))
    }

    /// Publishes a new state of the mesh and returns when every affected proxy has its new snapshot.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) async fn publish(&self, mesh: Mesh, revision: MeshRevision) -> Result<(), Ended> {
        let (done, published) = oneshot::channel();
        let request = Request::Publish { mesh: Box::new(mesh), revision, done };
        self.requests.send(request).await.map_err(|_| Ended)?;
        published.await.map_err(|_| Ended)
    }

    /// Subscribes `proxy`.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) async fn subscribe(&self, proxy: Proxy) -> Result<SnapshotSubscription, Ended> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Subscribe { proxy: Box::new(proxy), reply };
        self.requests.send(request).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    /// Values for metrics.
    pub(crate) fn stats(&self) -> CacheStats {
        CacheStats { proxies: self.proxies.load(Ordering::Relaxed), ..*self.stats.borrow() }
    }
}

/// The state owned by the thread.
struct Owner {
    builder: SnapshotBuilder,
    proxies: HashMap<u64, Connected>,
    dropped: Arc<Dropped>,
    last_id: u64,
    stats: watch::Sender<CacheStats>,
}

struct Connected {
    proxy: Proxy,
    /// `None` before the first state of the mesh.
    scope: Option<Scope>,
    /// Whether its snapshots contain the table of names.
    has_names: bool,
    sender: watch::Sender<Option<Arc<Snapshot>>>,
}

impl Owner {
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        // The requester may have gone away.
        while let Some(request) = requests.blocking_recv() {
            self.forget_dropped();
            match request {
                Request::Publish { mesh, revision, done } => {
                    self.publish(*mesh, revision);
                    self.update_stats();
                    let _ = done.send(());
                }
                Request::Subscribe { proxy, reply } => {
                    let subscription = self.subscribe(*proxy);
                    self.update_stats();
                    let _ = reply.send(subscription);
                }
                Request::AddNames(id) => {
                    self.add_names(id);
                    self.update_stats();
                }
                Request::Unsubscribe => self.update_stats(),
            }
        }
    }

    fn update_stats(&self) {
        let omitted = self.builder.omitted().len();
        let (scopes, parts, work) =
            (self.builder.scopes(), self.builder.parts(), self.builder.counts());
        self.stats.send_replace(CacheStats { proxies: 0, scopes, parts, omitted, work });
    }

    fn subscribe(&mut self, proxy: Proxy) -> SnapshotSubscription {
        let scope = self.builder.mesh().map(|mesh| mesh.scope(&proxy));
        let first = scope.as_ref().and_then(|scope| self.builder.acquire(scope));
        let (sender, snapshots) = watch::channel(first);
        self.last_id += 1;
        self.proxies.insert(self.last_id, Connected { proxy, scope, has_names: false, sender });
        self.dropped.proxies.fetch_add(1, Ordering::Relaxed);
        SnapshotSubscription { snapshots, id: self.last_id, dropped: self.dropped.clone() }
    }

    fn add_names(&mut self, id: u64) {
        let Some(connected) = self.proxies.get_mut(&id) else {
            return;
        };
        connected.has_names = true;
        if let Some(scope) = &connected.scope {
            self.builder.add_names(scope);
            connected.sender.send_replace(self.builder.snapshot_of(scope));
        }
    }

    fn forget_dropped(&mut self) {
        for id in self.dropped.take() {
            if let Some(scope) = self.proxies.remove(&id).and_then(|gone| gone.scope) {
                self.builder.release(&scope);
            }
        }
    }

    fn publish(&mut self, mesh: Mesh, revision: MeshRevision) {
        let _span = tracing::debug_span!("publish", revision = revision.get()).entered();
        let begun = Instant::now();
        let change = self.builder.publish(mesh, revision, Some(begun));
        let Some(mesh) = self.builder.mesh().cloned() else {
            return;
        };
        for connected in self.proxies.values_mut() {
            if connected.scope.is_none()
                || change.as_ref().is_none_or(|change| connected.may_move(change))
            {
                connected.move_to(mesh.scope(&connected.proxy), &mut self.builder);
            }
            let snapshot =
                connected.scope.as_ref().and_then(|scope| self.builder.snapshot_of(scope));
            connected.sender.send_replace(snapshot);
        }
        tracing::debug!(
            proxies = self.proxies.len(),
            scopes = self.builder.scopes(),
            parts = self.builder.parts(),
            seconds = begun.elapsed().as_secs_f64(),
            "published the snapshots"
        );
    }
}

impl Connected {
    /// Moves the proxy to `scope` if it has another one.
    fn move_to(&mut self, scope: Scope, builder: &mut SnapshotBuilder) {
        if self.scope.as_ref() == Some(&scope) {
            return;
        }
        builder.acquire(&scope);
        if self.has_names {
            builder.add_names(&scope);
        }
        if let Some(old) = self.scope.replace(scope) {
            builder.release(&old);
        }
    }

    /// Whether a change may give the proxy another scope.
    fn may_move(&self, change: &MeshChange) -> bool {
        change.scopes
            || self.proxy.addresses.iter().any(|address| change.addresses.contains(address))
    }
}
