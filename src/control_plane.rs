//! The whole, running: a source, the store, the mesh, the snapshots, ADS and the admin pages.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::admission::{self, Admission, Limits, Protocol};
use crate::api::ObjectKey;
use crate::mesh::{Builder, MeshConfig};
use crate::metrics::Metrics;
use crate::revision::MeshRevision;
use crate::rollout_guard::{HeldChange, RolloutGuard};
use crate::snapshot::SnapshotCache;
use crate::source::newest::Asker;
use crate::source::{self, Change};
use crate::status::Ledger;
use crate::store::Store;
use crate::xds::board::Board;
use crate::xds::server::Ads;
use crate::xds::stream::Settings;

/// Batches of changes that may wait to be taken in; a source that is faster waits.
const WAITING_BATCHES: usize = 64;

/// How long streams and listeners may take to end.
const SHUTDOWN: Duration = Duration::from_secs(8);

/// The group of the objects that people write.
const ISTIO: &str = "networking.istio.io";

/// Objects that a line of the log names.
const NAMED: usize = 4;

/// Where the objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder of YAML files.
    Directory(PathBuf),
    /// The Kubernetes API: of this kubeconfig, or of the cluster weir runs in.
    Kubernetes {
        /// The kubeconfig file, where given.
        kubeconfig: Option<PathBuf>,
    },
}

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the objects come from.
    pub source: Source,
    /// Where ADS listens; port 0 takes a free one.
    pub xds_listen: SocketAddr,
    /// Where the admin pages listen; port 0 takes a free one.
    pub admin_listen: SocketAddr,
    /// What holds for the whole mesh.
    pub mesh: MeshConfig,
    /// How streams are served.
    pub streams: Settings,
    /// How much the clients of ADS may take.
    pub limits: Limits,
    /// How much the clients of the admin pages may take.
    pub admin_limits: Limits,
}

/// A running control plane. Dropping it ends its tasks.
#[derive(Debug)]
pub struct ControlPlane {
    xds_addr: SocketAddr,
    admin_addr: SocketAddr,
    ready: watch::Receiver<bool>,
    revision: watch::Receiver<MeshRevision>,
    board: Arc<Board>,
    closing: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl ControlPlane {
    /// Starts, and returns as soon as both listeners are bound.
    ///
    /// # Errors
    /// An address can not be bound, or the source can not be opened.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let xds = bind(options.xds_listen, "--xds-listen")?;
        let pages = bind(options.admin_listen, "--admin-listen")?;
        let (xds_addr, admin_addr) = (xds.local_addr()?, pages.local_addr()?);
        let closing = CancellationToken::new();
        let (board, metrics) = (Arc::<Board>::default(), Arc::<Metrics>::default());
        let (snapshots, snapshots_ended) = SnapshotCache::start().context("the snapshot thread")?;
        let ledger = Arc::<Ledger>::default();
        let (ready_sender, ready) = watch::channel(false);
        let (revision_sender, revision) = watch::channel(MeshRevision::NONE);
        let (changes_sender, changes) = mpsc::channel(WAITING_BATCHES);
        let mut tasks = JoinSet::new();
        let asker = read(options.source, changes_sender, &mut tasks).await?;
        let engine = Engine {
            snapshots: snapshots.clone(),
            metrics: metrics.clone(),
            builder: Builder::new(options.mesh),
            guard: RolloutGuard::default(),
            ledger: ledger.clone(),
            told: BTreeSet::new(),
            store: Store::default(),
            dirty: BTreeSet::new(),
            revision: revision_sender,
            ready: ready_sender,
        };
        tasks.spawn(engine.run(changes));
        tasks.spawn(async move {
            // Its sender is never used: it goes with the thread.
            let _ = snapshots_ended.await;
            anyhow::bail!("the snapshot thread has ended")
        });
        let admin = Admin {
            ready: ready.clone(),
            metrics: metrics.clone(),
            snapshots: snapshots.clone(),
            board: board.clone(),
            ledger,
            asker,
            closing: closing.clone(),
        };
        let let_in = Arc::new(Admission::new(options.admin_limits, "admin", &metrics));
        let stop = closing.clone();
        tasks.spawn(async move {
            admission::serve(pages, admin::router(admin), let_in, Protocol::Pages, stop).await;
            Ok(())
        });
        let ads = Ads::new(snapshots, board.clone(), metrics, options.streams, options.limits, closing.clone());
        let stop = closing.clone();
        let mut open = ready.clone();
        tasks.spawn(async move {
            // Until then there is nothing true to say. A client that connects meanwhile waits in the socket's queue.
            tokio::select! {
                opened = open.wait_for(|ready| *ready) => { opened.context("the source ended before it was read")?; }
                () = stop.cancelled() => return Ok(()),
            }
            ads.serve(xds).await;
            Ok(())
        });
        Ok(Self { xds_addr, admin_addr, ready, revision, board, closing, tasks })
    }

    /// Where ADS listens.
    pub fn xds_addr(&self) -> SocketAddr {
        self.xds_addr
    }

    /// Where the admin pages listen.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Waits until the first full state has been taken in.
    pub async fn ready(&self) {
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    /// Whether the first full state has been taken in, and when it is.
    pub fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// The newest published mesh.
    pub fn revision(&self) -> MeshRevision {
        *self.revision.borrow()
    }

    /// Waits until the published mesh is newer than `revision`, and says which it is.
    pub async fn revision_after(&self, revision: MeshRevision) -> MeshRevision {
        let mut current = self.revision.clone();
        current.wait_for(|now| *now > revision).await.map_or(revision, |now| *now)
    }

    /// Waits until the proxy with this node id has acked everything of mesh `revision` or a later one.
    pub async fn live(&self, node_id: &str, revision: MeshRevision) {
        self.board.acked(node_id, revision).await;
    }

    /// Waits until a part of it ends, which none does by itself unless something is wrong.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn failed(&mut self) -> anyhow::Result<()> {
        match self.tasks.join_next().await {
            None => Ok(()),
            Some(ended) => ended.context("a task died")?,
        }
    }

    /// Ends every stream and listener, and waits for them.
    pub async fn shutdown(mut self) {
        self.closing.cancel();
        // Connections that do not want to end are not waited for.
        let _ = tokio::time::timeout(SHUTDOWN, async {
            // The first three tasks, the source, the engine and the watch over the snapshot thread, end when they are
            // dropped.
            while self.tasks.len() > 3 {
                self.tasks.join_next().await;
            }
        })
        .await;
        self.tasks.shutdown().await;
    }
}

/// Begins to read a source, and says who knows whether all of it was read.
async fn read(
    source: Source,
    changes: mpsc::Sender<Vec<Change>>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<Asker> {
    Ok(match source {
        Source::Directory(folder) => {
            let (asker, looks) = Asker::directory();
            tasks.spawn(async move { Ok(source::directory::watch(folder, changes, looks).await?) });
            asker
        }
        Source::Kubernetes { kubeconfig } => {
            let client = source::kubernetes::client(kubeconfig.as_deref()).await?;
            let asker = Asker::kubernetes(client.clone());
            tasks.spawn(async move { Ok(source::kubernetes::watch(client, changes).await?) });
            asker
        }
    })
}

/// Connections that wait to be accepted: as many as the system allows, so that none has to be tried again while very
/// many come at once.
const BACKLOG: u32 = 4096;

fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let bound = listen(address);
    if bound.is_err() && address.ip() == Ipv6Addr::UNSPECIFIED {
        // All addresses, on a machine that has no IPv6.
        let plain = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        return listen(plain).with_context(|| format!("{flag}: can not listen on {plain}"));
    }
    bound.with_context(|| format!("{flag}: can not listen on {address}"))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port that was in use a moment ago is free.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The one task that takes changes in and gives snapshots out.
struct Engine {
    snapshots: SnapshotCache,
    metrics: Arc<Metrics>,
    builder: Builder,
    guard: RolloutGuard,
    ledger: Arc<Ledger>,
    /// What was said to be held back.
    told: BTreeSet<String>,
    store: Store,
    dirty: BTreeSet<ObjectKey>,
    revision: watch::Sender<MeshRevision>,
    ready: watch::Sender<bool>,
}

impl Engine {
    async fn run(mut self, mut changes: mpsc::Receiver<Vec<Change>>) -> anyhow::Result<()> {
        while let Some(mut batch) = changes.recv().await {
            // All that has queued up goes in one step.
            while let Ok(more) = changes.try_recv() {
                batch.extend(more);
            }
            self.take(batch).await?;
        }
        Ok(())
    }

    async fn take(&mut self, batch: Vec<Change>) -> anyhow::Result<()> {
        let (mut events, mut marks) = (0, Vec::new());
        for change in batch {
            if let Change::Mark(mark) = change {
                marks.push(mark);
                continue;
            }
            events += 1;
            log(&change);
            self.store.apply(change, &mut self.dirty);
        }
        let problems = self.store.refused().count() + self.store.trouble().count();
        if self.store.synced() && (!self.dirty.is_empty() || !*self.ready.borrow()) {
            let dirty = std::mem::take(&mut self.dirty);
            let wanted = self.builder.update(&self.store, &dirty);
            let virtual_services = wanted.virtual_services.clone();
            let (mesh, held) = self.guard.apply(wanted);
            self.tell(&held);
            let revision = self.revision.borrow().next();
            say(revision, &dirty);
            self.ledger.publish(&mesh, revision, virtual_services, held, &dirty, &self.store);
            self.snapshots.publish(mesh, revision).await?;
            self.revision.send_replace(revision);
            self.ready.send_replace(true);
        }
        self.ledger.refused(&self.store);
        marks.into_iter().for_each(|mark| self.ledger.mark(mark));
        self.metrics.changed(events, *self.revision.borrow(), problems);
        Ok(())
    }

    /// Logs what is held back from now on, and what no longer is.
    fn tell(&mut self, held: &[HeldChange]) {
        let now: BTreeSet<String> = held.iter().map(ToString::to_string).collect();
        now.difference(&self.told).for_each(|one| tracing::warn!("{one}"));
        self.told.difference(&now).for_each(|one| tracing::info!("no longer: {one}"));
        self.metrics.held(now.len());
        self.told = now;
    }
}

/// Logs which objects a state came from: those that people write at level info, all others at level debug.
fn say(revision: MeshRevision, dirty: &BTreeSet<ObjectKey>) {
    let (ours, others): (Vec<_>, Vec<_>) = dirty.iter().partition(|key| key.kind.group() == ISTIO);
    let list = |keys: &[&ObjectKey]| {
        let named = keys.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if keys.len() > NAMED { format!("{named} and {} more", keys.len() - NAMED) } else { named }
    };
    if !ours.is_empty() {
        tracing::info!("state {revision}: {}", list(&ours));
    }
    if !others.is_empty() {
        tracing::debug!("state {revision}: {}", list(&others));
    }
}

fn log(change: &Change) {
    match change {
        Change::Refuse { key, problems, .. } => {
            for one in problems {
                tracing::error!("{}: {key}: {}; what was accepted before stays in force", one.origin, one.problem);
            }
        }
        Change::Trouble { subject, problems } if problems.is_empty() => tracing::info!("{subject}: all is well again"),
        Change::Trouble { problems, .. } => problems.iter().for_each(|one| tracing::error!("{one}")),
        Change::Apply { object, warnings, .. } => {
            for one in warnings {
                tracing::warn!("{}: {}: {}", one.origin, object.key(), one.problem);
            }
        }
        Change::Delete(_) | Change::Synced | Change::Mark(_) => {}
    }
}
