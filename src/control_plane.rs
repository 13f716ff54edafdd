//! Wires the source, store, mesh, snapshots, ADS server and admin API together and runs them.

mod secure;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt as _;
use kube::Client;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::admission::{self, Admission, Limits, Protocol};
use crate::api::ObjectKey;
use crate::ca::Keeper;
use crate::load::{LoadSettings, Loads};
use crate::mesh::{MeshBuilder, MeshConfig};
use crate::metrics::Metrics;
use crate::replicas::{PeerAnswers, PeerOptions, PeerTask, Replicas, StatusOptions};
use crate::revision::MeshRevision;
use crate::rollout_guard::{HeldChange, RolloutGuard};
use crate::snapshot::SnapshotCache;
use crate::source::kubernetes::selection::{Namespaces, Selection};
use crate::source::probe::FreshnessProbe;
use crate::source::sync::KindSync;
use crate::source::{self, LocatedProblem, SourceEvent};
use crate::status::{self, Published};
use crate::store::Store;
use crate::timeline::{self, Follower, SharedTimeline, Timeline};
use crate::tls::follow_folder;
use crate::traces::{self, TraceOptions};
use crate::webhook::{
    self, CertificateSource, Injector, Issuer, Reviewer, SecretState, Webhook, WebhookOptions,
};
use crate::xds::connections::Connections;
use crate::xds::server::{Ads, SecurePort};
use crate::xds::stream::StreamSettings;

pub use secure::SecureOptions;

/// How many batches of events may be queued; a faster source waits.
const WAITING_BATCHES: usize = 64;

/// How long streams and listeners may take to shut down.
const SHUTDOWN: Duration = Duration::from_secs(8);

/// How many objects a log line names.
const NAMED: usize = 4;

/// Where the objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder of YAML files.
    Directory(PathBuf),
    /// Standard input, which must be a pipe.
    Stdin,
    /// The Kubernetes API.
    Kubernetes {
        /// The kubeconfig file; `None` uses the cluster that weir runs in.
        kubeconfig: Option<PathBuf>,
        /// The namespaces whose objects are read.
        namespaces: Namespaces,
    },
}

/// Options of the control plane.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the objects come from.
    pub source: Source,
    /// How the status of objects is written; `None` if it is not. Objects in files have no status.
    pub status: Option<StatusOptions>,
    /// Which replica this is, and how to find the others; `None` if there are none.
    pub peers: Option<PeerOptions>,
    /// The address of the ADS listener in plain text, where clients need no identity; port 0 picks a free port; `None` if
    /// there is none.
    pub xds_listen: Option<SocketAddr>,
    /// The ADS listener with TLS, where clients identify themselves, and the certificate authority; `None` if there is none.
    pub secure: Option<SecureOptions>,
    /// The address of the admin listener; port 0 picks a free port.
    pub admin_listen: SocketAddr,
    /// The webhooks; `None` if all of them are off.
    pub webhook: Option<WebhookOptions>,
    /// The address of the listener for the gates of rollout tools; `None` if only the admin listener serves them.
    pub gates_listen: Option<SocketAddr>,
    /// Mesh-wide settings.
    pub mesh: MeshConfig,
    /// Settings of the xDS streams.
    pub streams: StreamSettings,
    /// How proxies report their requests; `None` if they do not.
    pub load: Option<LoadSettings>,
    /// The limits of the ADS port.
    pub limits: Limits,
    /// The limits of the admin port.
    pub admin_limits: Limits,
    /// The memory of the time lines, in bytes.
    pub timeline_memory: usize,
    /// Where traces of changes are exported; `None` if nowhere.
    pub traces: Option<TraceOptions>,
}

/// A running control plane. Dropping it stops its tasks.
#[derive(Debug)]
pub struct ControlPlane {
    addresses: Addresses,
    ready: watch::Receiver<bool>,
    revision: watch::Receiver<MeshRevision>,
    connections: Arc<Connections>,
    closing: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl ControlPlane {
    /// Starts the control plane and returns as soon as its listeners are bound.
    ///
    /// # Errors
    /// Fails if an address cannot be bound or the source cannot be opened.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let listeners = Listeners::bind(&options)?;
        let addresses = listeners.addresses()?;
        let (snapshots, snapshots_ended) = SnapshotCache::start().context("the snapshot thread")?;
        let metrics = Arc::<Metrics>::default();
        let timeline = Arc::new(Timeline::new(options.timeline_memory));
        let ((ready_sender, ready), (revision_sender, revision)) =
            (watch::channel(false), watch::channel(MeshRevision::NONE));
        let (changes_sender, changes) = mpsc::channel(WAITING_BATCHES);
        let (states_sender, sync) = watch::channel(Vec::new());
        let (stores_sender, stores) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let selection = selection(&options.source, &options.mesh);
        let (freshness_probe, client) =
            read(options.source, &selection, states_sender, changes_sender, &mut tasks).await?;
        let webhook = Webhook::new(metrics.webhook());
        let (authority_sender, authority) = watch::channel(None);
        let load = options.load.map(|settings| Arc::new(Loads::new(settings, metrics.load())));
        let admin = Admin {
            ready: ready.clone(),
            sync,
            webhook: options.webhook.as_ref().map(|_| webhook.health()),
            authority: options.secure.as_ref().map(|_| authority),
            metrics,
            snapshots,
            connections: Arc::default(),
            published: Arc::default(),
            freshness_probe,
            stores: stores.clone(),
            peers: PeerAnswers::new(options.peers.as_ref()),
            timeline,
            load,
            history: Arc::default(),
            closing: CancellationToken::new(),
        };
        let (mesh, outputs) = (&options.mesh, (stores_sender, revision_sender, ready_sender));
        tasks.spawn(Engine::new(&admin, mesh, outputs).run(changes));
        // Its sender is never used and is dropped with the thread.
        tasks.spawn(snapshots_ended.map(|_| Err(anyhow::anyhow!("the snapshot thread ended"))));
        let mut services = Services { admin, client, tasks };
        services.follow();
        services.trace(options.traces);
        services.ask_replicas(options.peers);
        let reviews = Reviews { selection, mesh: options.mesh, stores };
        let served = listeners.webhook.zip(options.webhook);
        let issuer = services.serve_webhook(served, webhook, reviews)?;
        let served = listeners.secure.zip(options.secure);
        let (secure, keeper) = services.secure(served, authority_sender)?.unzip();
        services.take_part(options.status, issuer, keeper);
        services.serve_pages(listeners.pages, listeners.gates, options.admin_limits);
        services.serve_proxies(listeners.xds, secure, options.streams, options.limits);
        let Services { admin: Admin { connections, closing, .. }, tasks, .. } = services;
        Ok(Self { addresses, ready, revision, connections, closing, tasks })
    }

    /// The address of the ADS listener in plain text, if there is one.
    pub fn xds_addr(&self) -> Option<SocketAddr> {
        self.addresses.xds
    }

    /// The address of the ADS listener with TLS, if there is one.
    pub(crate) fn secure_addr(&self) -> Option<SocketAddr> {
        self.addresses.secure
    }

    /// The address of the admin listener.
    pub fn admin_addr(&self) -> SocketAddr {
        self.addresses.admin
    }

    /// The address of the webhook's listener; `None` if it is off.
    pub(crate) fn webhook_addr(&self) -> Option<SocketAddr> {
        self.addresses.webhook
    }

    /// The address of the listener for the gates, if there is one.
    pub(crate) fn gates_addr(&self) -> Option<SocketAddr> {
        self.addresses.gates
    }

    /// Waits until the first complete state is published.
    pub async fn ready(&self) {
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    /// Watches whether the first complete state is published.
    pub(crate) fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// The newest published mesh.
    pub(crate) fn revision(&self) -> MeshRevision {
        *self.revision.borrow()
    }

    /// Waits until the published mesh is newer than `revision`, and says which it is.
    pub(crate) async fn revision_after(&self, revision: MeshRevision) -> MeshRevision {
        let mut current = self.revision.clone();
        current.wait_for(|now| *now > revision).await.map_or(revision, |now| *now)
    }

    /// Waits until the proxy with this node id has acked everything of mesh `revision` or a later one.
    pub(crate) async fn live(&self, node_id: &str, revision: MeshRevision) {
        self.connections.acked(node_id, revision).await;
    }

    /// Waits until one of the tasks ends, which happens only on failure.
    ///
    /// # Errors
    /// Returns why the task ended.
    pub(crate) async fn failed(&mut self) -> anyhow::Result<()> {
        match self.tasks.join_next().await {
            None => Ok(()),
            Some(ended) => ended.context("a task panicked")?,
        }
    }

    /// Closes every stream and listener and waits for them.
    pub(crate) async fn shutdown(mut self) {
        self.closing.cancel();
        // Connections that do not close in time are dropped.
        let _ = tokio::time::timeout(SHUTDOWN, async {
            // The first three tasks, the source, the engine and the monitor of the snapshot thread, end only when
            // dropped.
            while self.tasks.len() > 3 {
                self.tasks.join_next().await;
            }
        })
        .await;
        self.tasks.shutdown().await;
    }
}

/// The bound listeners.
struct Listeners {
    xds: Option<TcpListener>,
    secure: Option<TcpListener>,
    pages: TcpListener,
    webhook: Option<TcpListener>,
    gates: Option<TcpListener>,
}

/// The addresses of the listeners.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    xds: Option<SocketAddr>,
    secure: Option<SocketAddr>,
    admin: SocketAddr,
    webhook: Option<SocketAddr>,
    gates: Option<SocketAddr>,
}

impl Listeners {
    fn bind(options: &Options) -> anyhow::Result<Self> {
        let secure = options.secure.as_ref().map(|secure| secure.listen);
        let webhook = options.webhook.as_ref().map(|webhook| webhook.listen);
        Ok(Self {
            xds: bind_any(options.xds_listen, "--xds-listen")?,
            secure: bind_any(secure, "--tls-listen")?,
            pages: bind(options.admin_listen, "--admin-listen")?,
            webhook: bind_any(webhook, "--webhook-listen")?,
            gates: bind_any(options.gates_listen, "--gates-listen")?,
        })
    }

    fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            xds: address_of(&self.xds)?,
            secure: address_of(&self.secure)?,
            admin: self.pages.local_addr()?,
            webhook: address_of(&self.webhook)?,
            gates: address_of(&self.gates)?,
        })
    }
}

fn address_of(listener: &Option<TcpListener>) -> std::io::Result<Option<SocketAddr>> {
    listener.as_ref().map(TcpListener::local_addr).transpose()
}

/// What the webhook judges objects by.
struct Reviews {
    selection: Selection,
    mesh: MeshConfig,
    stores: watch::Receiver<Option<Store>>,
}

/// The tasks beside the engine, and what they share.
struct Services {
    admin: Admin,
    /// The Kubernetes API, if objects come from there.
    client: Option<Client>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Services {
    /// Records what becomes of objects on the proxies, and of the weights of routes.
    fn follow(&mut self) {
        let Admin { timeline, published, connections, sync, closing, .. } = self.admin.clone();
        let follower = Follower { timeline, published, connections, sync, closing };
        self.tasks.spawn(follower.run());
        let (sampled, stop) = (admin::sample(self.admin.clone()), self.admin.closing.clone());
        self.tasks.spawn(async move {
            stop.run_until_cancelled(sampled).await;
            Ok(())
        });
    }

    /// Exports traces of changes.
    fn trace(&mut self, options: Option<TraceOptions>) {
        let Some(options) = options else { return };
        let Admin { timeline, ready, metrics, closing, .. } = self.admin.clone();
        let (follower, exporter) =
            traces::start(options, timeline, ready, metrics.traces(), closing);
        self.tasks.spawn(follower.run());
        self.tasks.spawn(exporter.run());
    }

    /// Asks the other replicas about their proxies while somebody needs to know.
    fn ask_replicas(&mut self, options: Option<PeerOptions>) {
        if let Some((client, options)) = self.client.clone().zip(options) {
            let (answers, closing) = (self.admin.peers.clone(), self.admin.closing.clone());
            self.tasks.spawn(PeerTask { client, options, answers, closing }.run());
        }
    }

    /// Serves the webhooks that are on. Returns what keeps its certificate while this replica is elected.
    fn serve_webhook(
        &mut self,
        served: Option<(TcpListener, WebhookOptions)>,
        webhook: Webhook,
        reviews: Reviews,
    ) -> anyhow::Result<Option<Issuer>> {
        let Some((listener, options)) = served else {
            return Ok(None);
        };
        let Admin { metrics, closing, .. } = &self.admin;
        let Reviews { selection, mesh, stores } = reviews;
        let domain = mesh.domain.clone();
        let reviewer =
            options.validation.then(|| Reviewer::new(selection, mesh, stores, metrics.webhook()));
        let injector =
            options.injection.clone().map(|options| Injector::new(options, metrics.injection()));
        let router = webhook::router(reviewer, injector);
        let admission = Arc::new(Admission::new(options.limits, "webhook", metrics));
        let (tls, stop) = (webhook.tls()?, closing.clone());
        self.tasks.spawn(async move {
            let protocol = Protocol::Pages;
            admission::serve_tls(listener, router, admission, protocol, tls, stop).await;
            Ok(())
        });
        Ok(self.follow_certificate(options, webhook.into(), &domain))
    }

    /// Serves the webhook's certificate as its source changes. Returns what keeps it while this replica is elected.
    fn follow_certificate(
        &mut self,
        options: WebhookOptions,
        webhook: Arc<Webhook>,
        domain: &str,
    ) -> Option<Issuer> {
        let stop = self.admin.closing.clone();
        let configurations = options.configurations();
        match options.certificate {
            CertificateSource::Folder(folder) => {
                self.tasks.spawn(async move {
                    let follow = follow_folder(&folder, |read| webhook.read(read));
                    stop.run_until_cancelled(follow).await;
                    Ok(())
                });
                None
            }
            CertificateSource::Secret { namespace, lifetime } => {
                let client = self.client.clone()?;
                let (sender, secret) = watch::channel(SecretState::default());
                let (api, kept) = (client.clone(), webhook.clone());
                let place = (&*namespace, domain);
                let issuer = Issuer::new(api, place, lifetime, configurations, kept, secret);
                self.tasks.spawn(async move {
                    let follow = webhook::follow_secret(client, &namespace, &webhook, sender);
                    stop.run_until_cancelled(follow).await;
                    Ok(())
                });
                Some(issuer)
            }
        }
    }

    /// Takes part in the election of the replica that writes the status of objects and keeps certificates.
    fn take_part(
        &mut self,
        options: Option<StatusOptions>,
        issuer: Option<Issuer>,
        keeper: Option<Keeper>,
    ) {
        if let Some((client, options)) = self.client.clone().zip(options) {
            self.tasks.spawn(Replicas::new(client, options, issuer, keeper, &self.admin).run());
        }
    }

    /// Serves the admin pages, and the gates alone on a listener of their own. One limit holds for both.
    fn serve_pages(&mut self, pages: TcpListener, gates: Option<TcpListener>, limits: Limits) {
        let admission = Arc::new(Admission::new(limits, "admin", &self.admin.metrics));
        let gates = gates.map(|gates| (gates, admin::gates_router(self.admin.clone())));
        for (listener, router) in
            [(pages, admin::router(self.admin.clone()))].into_iter().chain(gates)
        {
            let (admission, stop) = (admission.clone(), self.admin.closing.clone());
            self.tasks.spawn(async move {
                admission::serve(listener, router, admission, Protocol::Pages, stop).await;
                Ok(())
            });
        }
    }

    /// Serves proxies as soon as there is a first complete state.
    fn serve_proxies(
        &mut self,
        plain: Option<TcpListener>,
        secure: Option<SecurePort>,
        streams: StreamSettings,
        limits: Limits,
    ) {
        let Admin { snapshots, connections, metrics, ready, load, published, closing, .. } =
            self.admin.clone();
        if let Some(load) = load.clone() {
            self.tasks.spawn(follow_weighted_routes(load, published, closing.clone()));
        }
        let stop = closing.clone();
        let ads = Ads::new(snapshots, connections, metrics, streams, load, limits, stop);
        self.tasks.spawn(serve_when_ready(ads, plain, secure, ready, closing));
    }
}

/// Keeps the list of clusters that proxies report, and forgets old reports, until weir shuts down.
async fn follow_weighted_routes(
    load: Arc<Loads>,
    published: Arc<Published>,
    closing: CancellationToken,
) -> anyhow::Result<()> {
    let follow = status::follow_weighted_routes(&load, &published);
    closing.run_until_cancelled(follow).await.unwrap_or(Ok(()))
}

/// Serves proxies as soon as there is a first complete state. Clients that connect earlier wait in the listen queue.
async fn serve_when_ready(
    ads: Ads,
    plain: Option<TcpListener>,
    secure: Option<SecurePort>,
    mut ready: watch::Receiver<bool>,
    closing: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        opened = ready.wait_for(|ready| *ready) => {
            opened.context("the source ended before it was read completely")?;
        }
        () = closing.cancelled() => return Ok(()),
    }
    ads.serve(plain, secure).await;
    Ok(())
}

/// The objects that are read.
fn selection(source: &Source, mesh: &MeshConfig) -> Selection {
    let namespaces = match source {
        Source::Kubernetes { namespaces, .. } => namespaces.clone(),
        Source::Directory(_) | Source::Stdin => Namespaces::All,
    };
    Selection { revision: mesh.revision.clone(), namespaces }
}

/// Begins to read a source, and says who knows whether all of it was read, and how to reach the Kubernetes API.
async fn read(
    source: Source,
    selection: &Selection,
    states: watch::Sender<Vec<KindSync>>,
    changes: mpsc::Sender<Vec<SourceEvent>>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<(FreshnessProbe, Option<Client>)> {
    Ok(match source {
        Source::Directory(folder) => {
            let (freshness_probe, scan_requests) = FreshnessProbe::directory();
            let revision = selection.revision.clone();
            tasks.spawn(async move {
                Ok(source::directory::watch(folder, revision, changes, scan_requests).await?)
            });
            (freshness_probe, None)
        }
        Source::Stdin => {
            let input = source::stdin::open().context("cannot read objects from standard input")?;
            tasks.spawn(async move { Ok(source::stdin::watch(input, changes).await?) });
            (FreshnessProbe::none(), None)
        }
        Source::Kubernetes { kubeconfig, .. } => {
            let client = source::kubernetes::client(kubeconfig.as_deref()).await?;
            let freshness_probe = FreshnessProbe::kubernetes(client.clone());
            let (selection, watched) = (selection.clone(), client.clone());
            tasks.spawn(async move {
                Ok(source::kubernetes::watch(watched, selection, states, changes).await?)
            });
            (freshness_probe, Some(client))
        }
    })
}

/// The listen backlog: as large as the system allows, so that bursts of connections need no retries.
const BACKLOG: u32 = 4096;

fn bind_any(address: Option<SocketAddr>, flag: &str) -> anyhow::Result<Option<TcpListener>> {
    address.map(|address| bind(address, flag)).transpose()
}

fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let bound = listen(address);
    if bound.is_err() && address.ip() == Ipv6Addr::UNSPECIFIED {
        // The wildcard address on a machine without IPv6.
        let plain = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        return listen(plain).with_context(|| format!("{flag}: cannot listen on {plain}"));
    }
    bound.with_context(|| format!("{flag}: cannot listen on {address}"))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Allow a recently used port to be bound.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The single task that applies source events and publishes snapshots.
struct Engine {
    snapshots: SnapshotCache,
    metrics: Arc<Metrics>,
    builder: MeshBuilder,
    rollout_guard: RolloutGuard,
    published: Arc<Published>,
    /// The held-back changes that were already reported.
    reported: BTreeMap<ReportedHold, HeldChange>,
    /// Where what happens is recorded.
    timeline: SharedTimeline,
    store: Store,
    /// Where the webhook and the admin API find the store.
    stores: watch::Sender<Option<Store>>,
    dirty: BTreeSet<ObjectKey>,
    revision: watch::Sender<MeshRevision>,
    ready: watch::Sender<bool>,
}

/// Where the engine tells the newest objects, the newest mesh, and that there is one.
type EngineOutputs =
    (watch::Sender<Option<Store>>, watch::Sender<MeshRevision>, watch::Sender<bool>);

impl Engine {
    fn new(admin: &Admin, mesh: &MeshConfig, (stores, revision, ready): EngineOutputs) -> Self {
        Self {
            snapshots: admin.snapshots.clone(),
            metrics: admin.metrics.clone(),
            builder: MeshBuilder::new(mesh.clone()),
            rollout_guard: RolloutGuard::default(),
            published: admin.published.clone(),
            reported: BTreeMap::new(),
            timeline: admin.timeline.clone(),
            store: Store::default(),
            stores,
            dirty: BTreeSet::new(),
            revision,
            ready,
        }
    }

    async fn run(mut self, mut changes: mpsc::Receiver<Vec<SourceEvent>>) -> anyhow::Result<()> {
        while let Some(mut batch) = changes.recv().await {
            // Everything in the queue is applied in one step.
            while let Ok(more) = changes.try_recv() {
                batch.extend(more);
            }
            self.apply(batch).await?;
        }
        Ok(())
    }

    async fn apply(&mut self, batch: Vec<SourceEvent>) -> anyhow::Result<()> {
        let (mut events, mut barriers, mut news) = (0, Vec::new(), false);
        for change in batch {
            if let SourceEvent::Barrier(barrier) = change {
                barriers.push(barrier);
                continue;
            }
            events += 1;
            // An object whose status was written comes again, and is no news.
            let note = timeline::change(&self.store, &change);
            if self.store.apply(change.clone(), &mut self.dirty) {
                news = true;
                log(&change);
                self.timeline.record(note);
            }
        }
        let problems = self.store.rejected().count() + self.store.source_problems().count();
        if self.store.synced() && (!self.dirty.is_empty() || !*self.ready.borrow()) {
            let dirty = std::mem::take(&mut self.dirty);
            let wanted = self.builder.update(&self.store, &dirty);
            let virtual_services = wanted.virtual_services.clone();
            let (mesh, held) = self.rollout_guard.apply(wanted);
            let affected = self.report_held(&held);
            let revision = self.revision.borrow().next();
            log_revision(revision, &dirty);
            let ours = dirty.iter().filter(|key| key.kind.is_of_istio()).chain(&affected);
            self.timeline.publish(timeline::published(ours, revision, &self.store));
            let before = self.published.state().mesh;
            self.published.publish(&mesh, revision, virtual_services, held, &dirty, &self.store);
            self.snapshots.publish(mesh.clone(), revision).await?;
            self.revision.send_replace(revision);
            if let Some(before) = before {
                let notes = timeline::endpoints(&before, &mesh, revision, &self.store);
                self.timeline.record(notes);
            }
            self.timeline.started();
            self.ready.send_replace(true);
        }
        // Nobody receives it if the webhook is off.
        if news && self.store.synced() && !self.stores.is_closed() {
            self.stores.send_replace(Some(self.store.clone()));
        }
        self.published.rejected(&self.store);
        barriers.into_iter().for_each(|barrier| self.published.reach_barrier(barrier));
        self.metrics.changed(events, *self.revision.borrow(), problems);
        Ok(())
    }

    /// Logs and records changes that are newly held back and those that were released. Returns the objects that they affect.
    fn report_held(&mut self, held: &[HeldChange]) -> BTreeSet<ObjectKey> {
        let now: BTreeMap<ReportedHold, HeldChange> =
            held.iter().map(|held| (held.into(), held.clone())).collect();
        let before = std::mem::replace(&mut self.reported, now);
        let held: Vec<_> =
            self.reported.iter().filter(|(hold, _)| !before.contains_key(hold)).collect();
        let released: Vec<_> =
            before.iter().filter(|(hold, _)| !self.reported.contains_key(hold)).collect();
        for (ReportedHold { object, path, reason }, _) in &held {
            tracing::warn!(%object, path, reason, "holding back a change");
        }
        for (ReportedHold { object, path, reason }, _) in &released {
            tracing::info!(%object, path, reason, "no longer holding back a change");
        }
        let changes = held.iter().chain(&released).flat_map(|(_, change)| change.affected());
        let objects = changes.cloned().collect();
        // Which roots delegate to the object of a change may differ as well.
        let (is, was) = (affected(&self.reported), affected(&before));
        let places: BTreeSet<_> = is.keys().map(|(object, hold)| (object, hold.place())).collect();
        // One that is held back in another form is not released.
        let released = was.iter().filter(|((object, hold), _)| {
            !is.contains_key(&(*object, *hold)) && !places.contains(&(object, hold.place()))
        });
        let released = timeline::released(
            released.map(|((object, _), change)| (*object, *change)),
            &self.store,
        );
        let held = is.iter().filter(|(at, _)| !was.contains_key(*at));
        let held =
            timeline::held(held.map(|((object, _), change)| (*object, *change)), &self.store);
        self.timeline.record(released.into_iter().chain(held));
        self.metrics.held(self.reported.len());
        objects
    }
}

/// A change that is held back, as the log shows it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ReportedHold {
    object: ObjectKey,
    path: String,
    reason: String,
}

impl ReportedHold {
    fn place(&self) -> (&ObjectKey, &str) {
        (&self.object, &self.path)
    }
}

/// The changes that are held back by each object that they affect.
fn affected(
    held: &BTreeMap<ReportedHold, HeldChange>,
) -> BTreeMap<(&ObjectKey, &ReportedHold), &HeldChange> {
    let all = held.iter().flat_map(|(hold, change)| {
        change.affected().into_iter().map(move |object| ((object, hold), change))
    });
    all.collect()
}

impl From<&HeldChange> for ReportedHold {
    fn from(held: &HeldChange) -> Self {
        Self { object: held.object.clone(), path: held.field.clone(), reason: held.reason() }
    }
}

/// Logs the objects behind a revision: Istio objects at level info, all others at level debug.
fn log_revision(revision: MeshRevision, dirty: &BTreeSet<ObjectKey>) {
    let (ours, others): (Vec<_>, Vec<_>) = dirty.iter().partition(|key| key.kind.is_of_istio());
    let revision = revision.get();
    if !ours.is_empty() {
        tracing::info!(revision, objects = named(&ours), "publishing changed objects");
    }
    if !others.is_empty() {
        tracing::debug!(revision, objects = named(&others), "publishing changed objects");
    }
}

/// The first of these objects by name, and the number of the others.
fn named(keys: &[&ObjectKey]) -> String {
    let named = keys.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if keys.len() > NAMED { format!("{named} and {} more", keys.len() - NAMED) } else { named }
}

/// A text as a field of the log, unless it is empty.
fn non_empty(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn log(change: &SourceEvent) {
    match change {
        SourceEvent::Reject { key, problems, .. } => {
            for LocatedProblem { origin, problem } in problems {
                tracing::error!(
                    object = %key,
                    file = origin.file(),
                    path = non_empty(&problem.path),
                    reason = problem.message,
                    advice = non_empty(&problem.advice),
                    "rejected an object; its last accepted version stays active"
                );
            }
        }
        SourceEvent::SourceProblems { subject, problems } if problems.is_empty() => {
            tracing::info!(subject, "objects can be read again");
        }
        SourceEvent::SourceProblems { subject, problems } => {
            for LocatedProblem { origin, problem } in problems {
                tracing::error!(
                    subject,
                    file = origin.file(),
                    path = non_empty(&problem.path).filter(|path| path != subject),
                    reason = problem.message,
                    advice = non_empty(&problem.advice),
                    "cannot read objects"
                );
            }
        }
        SourceEvent::Apply { object, warnings, .. } => {
            for LocatedProblem { origin, problem } in warnings {
                tracing::warn!(
                    object = %object.key(),
                    file = origin.file(),
                    path = non_empty(&problem.path),
                    reason = problem.message,
                    advice = non_empty(&problem.advice),
                    "accepted an object that has a problem"
                );
            }
        }
        SourceEvent::Delete(_)
        | SourceEvent::Synced
        | SourceEvent::Resyncing
        | SourceEvent::Barrier(_) => {}
    }
}
