//! The discovery services over gRPC, aggregated and per type: connects clients to a [`Stream`].

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tracing::field::{Empty, display};

use super::beside::{Beside, Taken};
use super::client::{Access, Caller, Client, Gate, not_served, random_fraction, shutting_down};
use super::connections::{Connections, ProxyStatus, StreamInfo};
use super::credentials::Credentials;
use super::grpc::Requests;
use super::load::LoadReporting;
use super::node::read_node;
use super::stream::{self, Answer, Stream, StreamSettings, Variant};
use crate::admission::{self, Admission, Exchange, Limits, Protocol, Starts, Turns};
use crate::ca::{CertificateAuthority, CertificateService};
use crate::identity::TokenReviewer;
use crate::load::Loads;
use crate::mesh::{Certificates, Proxy};
use crate::metrics::Metrics;
use crate::revision::MeshRevision;
use crate::snapshot::{ResourceType, SnapshotCache, SnapshotSubscription};
use crate::timer::at;

/// The maximum ratio between the memory of a decoded node and its encoded size.
const NODE: usize = 2;

/// The services. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ads {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    snapshots: SnapshotCache,
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
    settings: StreamSettings,
    /// Where load reports go; `None` if they are not wanted.
    loads: Option<Arc<Loads>>,
    gate: Arc<Gate>,
    starts: Starts,
    last_id: AtomicU64,
}

impl Ads {
    /// Services that serve the snapshots of `snapshots` until `closing` is cancelled.
    pub(crate) fn new(
        snapshots: SnapshotCache,
        connections: Arc<Connections>,
        metrics: Arc<Metrics>,
        settings: StreamSettings,
        loads: Option<Arc<Loads>>,
        limits: Limits,
        closing: CancellationToken,
    ) -> Self {
        let gate = Arc::new(Gate {
            admission: Arc::new(Admission::new(limits, "xds", &metrics)),
            turns: Turns::new(limits.streams_per_second),
            closing,
            tasks: TaskTracker::new(),
            read_timeout: settings.ack_timeout,
        });
        let last_id = AtomicU64::new(0);
        let shared = Shared {
            snapshots,
            connections,
            metrics,
            settings,
            loads,
            gate,
            starts: Starts::default(),
            last_id,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves all services on both ports until `closing` is cancelled and every stream has ended.
    pub(crate) async fn serve(self, plain: Option<TcpListener>, secure: Option<SecurePort>) {
        let gate = &self.shared.gate;
        let plain = async {
            if let Some(listener) = plain {
                let routes = self.routes(None).into_axum_router();
                let (admission, closing) = (gate.admission.clone(), gate.closing.clone());
                admission::serve(listener, routes, admission, Protocol::Grpc, closing).await;
            }
        };
        let secure = async {
            if let Some(SecurePort { listener, tls, tokens, authority }) = secure {
                let certificates = CertificateService::new(authority.clone(), tokens.clone());
                let access = Access { tokens, authority };
                let routes = self.routes(Some(&access)).add_service(certificates);
                let (routes, protocol) = (routes.into_axum_router(), Protocol::Grpc);
                let (admission, closing) = (gate.admission.clone(), gate.closing.clone());
                admission::serve_tls(listener, routes, admission, protocol, tls, closing).await;
            }
        };
        tokio::select! {
            _ = async { tokio::join!(plain, secure) } => {}
            () = gate.turns.run() => {}
        }
        gate.tasks.close();
        gate.tasks.wait().await;
    }

    /// The services. Their clients identify themselves if `access` asks for it.
    fn routes(&self, access: Option<&Access>) -> Routes {
        let routes = Routes::new(self.service::<Aggregated>(access))
            .add_service(self.service::<Clusters>(access))
            .add_service(self.service::<Endpoints>(access))
            .add_service(self.service::<Listeners>(access))
            .add_service(self.service::<RouteTables>(access));
        let Shared { loads: Some(loads), gate, .. } = &*self.shared else {
            return routes;
        };
        let (loads, gate, access) = (loads.clone(), gate.clone(), access.cloned());
        routes.add_service(LoadReporting { loads, gate, access })
    }

    fn service<P>(&self, access: Option<&Access>) -> Service<P> {
        Service { shared: self.shared.clone(), access: access.cloned(), path: PhantomData }
    }
}

/// The port on which clients use TLS and identify themselves by tokens.
#[derive(Debug)]
pub(crate) struct SecurePort {
    /// The listener.
    pub listener: TcpListener,
    /// The TLS of its connections.
    pub tls: Arc<ServerConfig>,
    /// Checks the tokens.
    pub tokens: Arc<TokenReviewer>,
    /// Signs certificates for clients.
    pub authority: CertificateAuthority,
}

/// A discovery service of the xDS protocol. Source: Envoy's protocol document, "RPC Services and Methods for Each
/// Variant".
trait Path: Clone + Send + Sync + 'static {
    const NAME: &'static str;
    const SOTW: &'static str;
    const DELTA: &'static str;
    /// The single type it serves; `None` for all types.
    const KIND: Option<ResourceType>;
}

macro_rules! path {
    ($type:ident, $name:literal, $sotw:literal, $delta:literal, $kind:expr) => {
        #[derive(Clone, Debug)]
        struct $type;

        impl Path for $type {
            const NAME: &'static str = $name;
            const SOTW: &'static str = $sotw;
            const DELTA: &'static str = $delta;
            const KIND: Option<ResourceType> = $kind;
        }
    };
}

path!(
    Aggregated,
    "envoy.service.discovery.v3.AggregatedDiscoveryService",
    "StreamAggregatedResources",
    "DeltaAggregatedResources",
    None
);
path!(
    Clusters,
    "envoy.service.cluster.v3.ClusterDiscoveryService",
    "StreamClusters",
    "DeltaClusters",
    Some(ResourceType::Cluster)
);
path!(
    Endpoints,
    "envoy.service.endpoint.v3.EndpointDiscoveryService",
    "StreamEndpoints",
    "DeltaEndpoints",
    Some(ResourceType::Endpoints)
);
path!(
    Listeners,
    "envoy.service.listener.v3.ListenerDiscoveryService",
    "StreamListeners",
    "DeltaListeners",
    Some(ResourceType::Listener)
);
path!(
    RouteTables,
    "envoy.service.route.v3.RouteDiscoveryService",
    "StreamRoutes",
    "DeltaRoutes",
    Some(ResourceType::Route)
);

#[derive(Clone, Debug)]
struct Service<P> {
    shared: Arc<Shared>,
    access: Option<Access>,
    path: PhantomData<fn() -> P>,
}

impl<P: Path> NamedService for Service<P> {
    const NAME: &'static str = P::NAME;
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<P: Path, B> tower_service::Service<http::Request<B>> for Service<P>
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let response = match request.uri().path().rsplit('/').next() {
                Some(name) if name == P::SOTW => {
                    service.open::<pb::DiscoveryRequest>(Variant::Sotw, request.map(Body::new))
                }
                Some(name) if name == P::DELTA => service
                    .open::<pb::DeltaDiscoveryRequest>(Variant::Delta, request.map(Body::new)),
                _ => Status::unimplemented(format!(
                    "{} has the methods {} and {}",
                    P::NAME,
                    P::SOTW,
                    P::DELTA
                ))
                .into_http(),
            };
            Ok(response)
        })
    }
}

/// A request message of either variant.
trait DiscoveryRequest: prost::Message + Default + Into<stream::Request> + 'static {
    fn node(&self) -> Option<&core::Node>;
}

impl DiscoveryRequest for pb::DiscoveryRequest {
    fn node(&self) -> Option<&core::Node> {
        self.node.as_ref()
    }
}

impl DiscoveryRequest for pb::DeltaDiscoveryRequest {
    fn node(&self) -> Option<&core::Node> {
        self.node.as_ref()
    }
}

impl<P: Path> Service<P> {
    /// Starts a stream for a bidirectional streaming call.
    fn open<M: DiscoveryRequest>(
        self,
        variant: Variant,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let (shared, kind) = (self.shared, P::KIND);
        let (mut head, body) = request.into_parts();
        let Some(exchange) = head.extensions.remove::<Arc<Exchange>>() else {
            return Status::internal("the request came past admission").into_http();
        };
        let id = shared.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let caller = Caller::new(self.access, head.headers);
        let span =
            tracing::info_span!("stream", stream = id, variant = variant.name(), proxy = Empty);
        let (connections, gate, own) =
            (shared.connections.clone(), shared.gate.clone(), exchange.clone());
        gate.open(
            exchange,
            span,
            |sender| async move {
                let gate = &shared.gate;
                let client = Client { gate, exchange: &own, caller, sender: &sender };
                let served = StreamTask { shared: &shared, client, id, variant, kind };
                served.run(Requests::<M>::new(body, own.clone())).await
            },
            move || connections.remove(id),
        )
    }
}

/// A stream and the state needed to serve it.
struct StreamTask<'a> {
    shared: &'a Shared,
    client: Client<'a>,
    id: u64,
    variant: Variant,
    kind: Option<ResourceType>,
}

/// What a stream serves to its proxy.
struct Served {
    machine: Stream,
    subscription: SnapshotSubscription,
    status: ProxyStatus,
    /// When the change in flight was published.
    changed_at: Option<Instant>,
    /// The memory for the proxy's node, in bytes.
    node_bytes: usize,
    /// When the token of the client expires, if it has one.
    token_expires: Option<SystemTime>,
    /// Its secrets and its table of names.
    beside: Beside,
    /// Whether the snapshots were asked to contain the table of names.
    has_names: bool,
}

impl StreamTask<'_> {
    async fn run<M: DiscoveryRequest>(&self, mut requests: Requests<M>) -> Result<(), Status> {
        let shared = self.shared;
        let starts = shared.starts.place(self.client.exchange.peer());
        let Some((first, mut start)) = self.client.first(&mut requests, starts).await? else {
            return Ok(());
        };
        let mut served = start.during(self.serve(&first)).await?;
        let mut inventory_requests = shared.connections.register(self.id, &served.status);
        // One that asks for each type on a stream of its own never says that it has all of a state.
        let loads = shared.loads.as_ref().filter(|_| self.kind.is_none());
        let mut presence =
            loads.map(|loads| loads.connected(&served.status.id, &served.status.proxy));
        let mut request = Some(first);
        let mut leave_at: Option<tokio::time::Instant> = None;
        let mut token_lost = pin!(self.client.token_lost(served.token_expires));
        loop {
            if let Some(message) = request.take() {
                self.handle_request(&mut served, message)?;
                start.progressed(tokio::time::Instant::now());
            }
            if !start.during(self.respond(&mut served)).await? {
                return Ok(());
            }
            requests.settle(served.held_bytes())?;
            if served.status.resting {
                start.end();
            }
            shared.connections.set(self.id, &served.status);
            if let Some((presence, has)) = presence.as_mut().zip(served.status.has()) {
                presence.acked(has);
            }
            let wake = at(served.machine.wake_at().map(Into::into));
            tokio::select! {
                message = requests.next() => match message? {
                    Some(message) => request = Some(message),
                    None => return Ok(()),
                },
                changed = served.subscription.snapshots.changed() => {
                    changed.map_err(|_| shutting_down())?;
                }
                Some(requester) = inventory_requests.recv() => {
                    // The requester may have gone away.
                    let _ = requester.send(served.machine.inventory());
                }
                () = served.beside.changed() => {}
                () = wake => {}
                () = at(start.due()) => start.end(),
                () = self.client.exchange.over() => return Err(self.client.revoked()),
                () = self.client.gate.closing.cancelled(), if leave_at.is_none() => {
                    leave_at = Some(self.client.leave_at());
                }
                () = at(leave_at) => return Err(shutting_down()),
                status = &mut token_lost => return Err(status),
            }
        }
    }

    /// Begins to serve the proxy that sent this first request.
    async fn serve<M: DiscoveryRequest>(&self, first: &M) -> Result<Served, Status> {
        let node = first.node().ok_or_else(|| {
            Status::invalid_argument("the first request of a stream must carry `node`")
        })?;
        let mut proxy = read_node(node).map_err(|error| not_served(&error))?;
        let (identity, access) = self.client.identify(&proxy).await?.unzip();
        let token_expires = identity.as_ref().and_then(|identity| identity.expires);
        let credentials = identity.zip(access).filter(|_| self.kind.is_none());
        let credentials = credentials.map(|(identity, access)| {
            Credentials::new(self.variant, identity, access.authority, random_fraction())
        });
        if credentials.is_some() && proxy.certificates == Certificates::None {
            proxy.certificates = Certificates::Ads;
        }
        self.client.exchange.makes_sense();
        tracing::Span::current().record("proxy", display(&proxy));
        tracing::info!(node_id = %proxy.id, "proxy connected");
        if let Some(kind) = self.kind {
            tracing::warn!(
                resource_type = kind.short_name(),
                "proxy opened a stream for one type: changes of several types are not ordered across its streams, and \
                 requests may be lost; use ADS"
            );
        }
        let snapshots = &self.shared.snapshots;
        let subscription = snapshots.subscribe(proxy.clone()).await.map_err(|_| shutting_down())?;
        Ok(Served {
            machine: Stream::new(self.variant, self.settings()),
            subscription,
            status: self.first_status(proxy),
            changed_at: None,
            node_bytes: node.encoded_len().saturating_mul(NODE),
            token_expires,
            beside: Beside::new(self.variant, credentials),
            has_names: false,
        })
    }

    /// The settings of this stream. The delay until routes follow runtime weights differs between streams, because a
    /// route configuration is large.
    fn settings(&self) -> StreamSettings {
        let settings = self.shared.settings;
        let routes_follow = settings.routes_follow.mul_f64(1.0 + random_fraction() / 2.0);
        StreamSettings { routes_follow, ..settings }
    }

    /// Takes in the newest snapshot and sends what can be sent now. Returns whether the client is still connected.
    async fn respond(&self, served: &mut Served) -> Result<bool, Status> {
        let metrics = &self.shared.metrics;
        // A change that does not affect the client converges immediately and must not count.
        let is_new = served.take_snapshot();
        let now = Instant::now();
        let responses = served.machine.responses(now);
        if is_new {
            tracing::debug!(revision = served.wanted(), "new revision for the proxy");
        }
        if served.machine.reached().is_some()
            && let Some(begun) = served.changed_at.take()
            && !is_new
        {
            metrics.converged(now.saturating_duration_since(begun));
        }
        for response in responses {
            let (resource_type, bytes) = (response.kind.short_name(), response.frame.len());
            tracing::debug!(resource_type, bytes, "sending a response");
            metrics.pushed(resource_type, bytes);
            if !self.client.send(response.frame).await? {
                return Ok(false);
            }
        }
        if served.beside.wants_names() && !std::mem::replace(&mut served.has_names, true) {
            served.subscription.add_names().await.map_err(|_| shutting_down())?;
        }
        let latest = served.subscription.snapshots.borrow().clone();
        for (resource_type, frame) in served.beside.responses(latest.as_deref()) {
            metrics.pushed(resource_type, frame.len());
            if !self.client.send(frame).await? {
                return Ok(false);
            }
        }
        update_status(&mut served.status, &served.machine, now);
        Ok(true)
    }

    fn first_status(&self, proxy: Proxy) -> ProxyStatus {
        ProxyStatus {
            id: proxy.id.clone(),
            proxy: Arc::new(proxy),
            streams: vec![StreamInfo {
                since: k8s_openapi::jiff::Timestamp::now(),
                variant: self.variant,
                only: self.kind,
            }],
            types: [stream::Progress::None; 5],
            acked: None,
            acked_at: None,
            reached: None,
            resting: false,
            wanted: None,
            lagging: None,
            rejected: Vec::new(),
            held: Vec::new(),
            kept: Vec::new(),
        }
    }

    fn handle_request<M: DiscoveryRequest>(
        &self,
        served: &mut Served,
        message: M,
    ) -> Result<(), Status> {
        let mut request: stream::Request = message.into();
        request.alone = self.kind.is_some();
        match self.kind {
            Some(kind) if request.type_url.is_empty() => {
                kind.type_url().clone_into(&mut request.type_url);
            }
            Some(kind) if request.type_url != kind.type_url() => {
                return Err(Status::invalid_argument(format!(
                    "type_url is {:?}; this service serves only {}",
                    request.type_url,
                    kind.type_url()
                )));
            }
            None if request.type_url.is_empty() => {
                return Err(Status::invalid_argument(
                    "type_url is empty; it is required on an aggregated stream",
                ));
            }
            _ => {}
        }
        let taken = served.beside.on_request(request);
        let taken = taken.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let request = match taken {
            Taken::Other(request) => request,
            Taken::Accepted => return Ok(()),
            Taken::Rejected(resource_type, reason) => {
                self.shared.metrics.rejected(resource_type);
                tracing::warn!(resource_type, reason, "proxy rejected resources");
                return Ok(());
            }
        };
        if ResourceType::from_type_url(&request.type_url).is_none() {
            tracing::debug!(type_url = request.type_url, "proxy requested an unsupported type");
        }
        let answer = served
            .machine
            .on_request(request)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        match answer {
            Some(Answer::Rejected(kind, reason)) => {
                let resource_type = kind.short_name();
                self.shared.metrics.rejected(resource_type);
                tracing::warn!(resource_type, reason, "proxy rejected resources");
            }
            Some(Answer::Acked(kind)) => {
                tracing::debug!(resource_type = kind.short_name(), "proxy acknowledged a response");
            }
            None => {}
        }
        Ok(())
    }
}

impl Served {
    /// Hands the newest snapshot to the stream. Returns whether there was a new one.
    fn take_snapshot(&mut self) -> bool {
        let latest = self.subscription.snapshots.borrow_and_update().clone();
        let Some(snapshot) = latest.filter(|latest| self.status.wanted != Some(latest.revision))
        else {
            return false;
        };
        // Only for a client that had the previous state, not for a new one.
        if self.status.reached.is_some() && self.machine.reached().is_some() {
            self.changed_at = snapshot.published;
        }
        self.status.wanted = Some(snapshot.revision);
        self.machine.on_snapshot(snapshot);
        true
    }

    /// The bytes that the stream holds for this client alone.
    fn held_bytes(&self) -> usize {
        let beside = self.beside.held_bytes();
        self.node_bytes.saturating_add(self.machine.held_bytes()).saturating_add(beside)
    }

    /// The revision that the client gets in the end, for the log.
    fn wanted(&self) -> Option<u64> {
        self.status.wanted.map(MeshRevision::get)
    }
}

fn update_status(status: &mut ProxyStatus, machine: &Stream, now: Instant) {
    if let Some(reached) = machine.reached().filter(|reached| status.reached != Some(*reached)) {
        tracing::debug!(revision = reached.get(), "proxy has all of the revision");
    }
    status.acked = machine.settled().or(status.acked);
    status.resting = machine.reached().is_some();
    status.reached = machine.reached().or(status.reached);
    let lagging = machine.lag(now);
    if status.lagging.is_none()
        && let Some(reason) = &lagging
    {
        tracing::warn!(reason, "proxy is lagging; it keeps its last complete configuration");
    } else if status.lagging.is_some() && lagging.is_none() {
        tracing::info!("proxy is no longer lagging");
    }
    status.lagging = lagging;
    status.types = machine.progress();
    status.rejected = machine.rejected();
    status.held = machine.held();
    status.kept = machine.kept();
}
