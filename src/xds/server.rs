//! The discovery services over gRPC, aggregated and per type: connects clients to a [`Stream`].

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use futures::FutureExt;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tracing::Instrument as _;
use tracing::field::{Empty, display};

use super::beside::{Beside, Taken};
use super::connections::{Connections, ProxyStatus, StreamInfo};
use super::credentials::Credentials;
use super::grpc::{self, Outgoing, Requests};
use super::node::read_node;
use super::stream::{self, Answer, Stream, StreamSettings, Variant};
use super::wire::Frame;
use crate::admission::{
    self, Admission, Exchange, LONGEST_START, Limits, Protocol, Start, Starts, Turns,
};
use crate::ca::{CertificateAuthority, CertificateService};
use crate::identity::{Identity, TokenError, TokenReviewer};
use crate::mesh::{Certificates, Proxy, ProxyError};
use crate::metrics::Metrics;
use crate::revision::MeshRevision;
use crate::snapshot::{ResourceType, SnapshotCache, SnapshotSubscription};
use crate::timer::at;

/// How many responses may be queued for a client: one per type, and as many again for a client that answers responses
/// it has not read. More would let slow clients consume memory.
const WAITING: usize = 8;

/// How long to wait for a client that does not read to receive the final status.
const FINAL_STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an answer about the token of an open stream is used, and half as long again for some.
const REVIEW_AGAIN: Duration = Duration::from_secs(120);

/// The time over which closing is spread, per stream and in total.
const LEAVE_EACH: Duration = Duration::from_millis(2);
const LEAVE_ALL: Duration = Duration::from_secs(5);

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
    admission: Arc<Admission>,
    turns: Turns,
    starts: Starts,
    last_id: AtomicU64,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Ads {
    /// Services that serve the snapshots of `snapshots` until `closing` is cancelled.
    pub(crate) fn new(
        snapshots: SnapshotCache,
        connections: Arc<Connections>,
        metrics: Arc<Metrics>,
        settings: StreamSettings,
        limits: Limits,
        closing: CancellationToken,
    ) -> Self {
        let admission = Arc::new(Admission::new(limits, "xds", &metrics));
        let turns = Turns::new(limits.streams_per_second);
        let (last_id, tasks) = (AtomicU64::new(0), TaskTracker::new());
        let shared = Shared {
            snapshots,
            connections,
            metrics,
            settings,
            admission,
            turns,
            starts: Starts::default(),
            last_id,
            closing,
            tasks,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves all services on both ports until `closing` is cancelled and every stream has ended.
    pub(crate) async fn serve(self, plain: Option<TcpListener>, secure: Option<SecurePort>) {
        let shared = &self.shared;
        let plain = async {
            if let Some(listener) = plain {
                let routes = self.routes(None).into_axum_router();
                let (admission, closing) = (shared.admission.clone(), shared.closing.clone());
                admission::serve(listener, routes, admission, Protocol::Grpc, closing).await;
            }
        };
        let secure = async {
            if let Some(SecurePort { listener, tls, tokens, authority }) = secure {
                let certificates = CertificateService::new(authority.clone(), tokens.clone());
                let access = Access { tokens, authority };
                let routes = self.routes(Some(&access)).add_service(certificates);
                let (routes, protocol) = (routes.into_axum_router(), Protocol::Grpc);
                let (admission, closing) = (shared.admission.clone(), shared.closing.clone());
                admission::serve_tls(listener, routes, admission, protocol, tls, closing).await;
            }
        };
        tokio::select! {
            _ = async { tokio::join!(plain, secure) } => {}
            () = shared.turns.run() => {}
        }
        shared.tasks.close();
        shared.tasks.wait().await;
    }

    /// The services. Their clients identify themselves if `access` asks for it.
    fn routes(&self, access: Option<&Access>) -> Routes {
        Routes::new(self.service::<Aggregated>(access))
            .add_service(self.service::<Clusters>(access))
            .add_service(self.service::<Endpoints>(access))
            .add_service(self.service::<Listeners>(access))
            .add_service(self.service::<RouteTables>(access))
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

/// How clients of the TLS port are identified, and get certificates.
#[derive(Clone, Debug)]
struct Access {
    tokens: Arc<TokenReviewer>,
    authority: CertificateAuthority,
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

type Sender = mpsc::Sender<Result<Outgoing, Status>>;

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
        let (sender, frames) = mpsc::channel(WAITING);
        let caller = self.access.map_or(Caller::Anonymous, |access| Caller::Bearer {
            access,
            headers: authorization(head.headers),
        });
        let span =
            tracing::info_span!("stream", stream = id, variant = variant.name(), proxy = Empty);
        // The task owns both halves of the stream, so it ends when the client disconnects.
        let tasks = shared.tasks.clone();
        let task = async move {
            let served = StreamTask {
                shared: &shared,
                exchange: &exchange,
                id,
                variant,
                kind,
                caller,
                sender: &sender,
            };
            let ended = AssertUnwindSafe(served.run(Requests::<M>::new(body, exchange.clone())))
                .catch_unwind()
                .await;
            let status = match ended {
                Ok(Ok(())) => Status::ok(""),
                Ok(Err(status)) => status,
                Err(_) => {
                    tracing::error!("the task of a stream panicked; the proxy will reconnect");
                    Status::internal("internal error of the stream")
                }
            };
            tracing::debug!(code = ?status.code(), reason = status.message(), "stream ended");
            shared.connections.remove(id);
            let farewell = async {
                let _ = sender.send(Err(status)).await;
                sender.closed().await;
            };
            // Responses that the client has not read by then are dropped.
            let _ = tokio::time::timeout(FINAL_STATUS_TIMEOUT, farewell).await;
            exchange.end();
        };
        tasks.spawn(task.instrument(span));
        grpc::response(frames)
    }
}

/// Who has opened a stream.
enum Caller {
    /// Nobody asks.
    Anonymous,
    /// Whom the token in these headers names.
    Bearer { access: Access, headers: http::HeaderMap },
}

/// The header with the token, which is all that is kept of the headers.
fn authorization(mut headers: http::HeaderMap) -> http::HeaderMap {
    let name = http::header::AUTHORIZATION;
    let value = headers.remove(&name).map(|mut value| {
        value.set_sensitive(true);
        (name, value)
    });
    value.into_iter().collect()
}

/// A stream and the state needed to serve it.
struct StreamTask<'a> {
    shared: &'a Shared,
    exchange: &'a Arc<Exchange>,
    id: u64,
    variant: Variant,
    kind: Option<ResourceType>,
    caller: Caller,
    sender: &'a Sender,
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
        let Some((first, start)) = self.first(&mut requests).await? else {
            return Ok(());
        };
        let mut served = self.serve(&first).await?;
        let mut inventory_requests = shared.connections.register(self.id, &served.status);
        let (mut request, mut start) = (Some(first), Some(start));
        let start_ends = tokio::time::Instant::now() + LONGEST_START;
        let mut leave_at: Option<tokio::time::Instant> = None;
        let mut token_lost = pin!(self.token_lost(served.token_expires));
        loop {
            if let Some(message) = request.take() {
                self.handle_request(&mut served, message)?;
            }
            if !self.respond(&mut served).await? {
                return Ok(());
            }
            requests.settle(served.held_bytes())?;
            start = start.filter(|_| !served.status.resting);
            shared.connections.set(self.id, &served.status);
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
                () = at(start.is_some().then_some(start_ends)) => start = None,
                () = self.exchange.over() => return Err(self.revoked()),
                () = shared.closing.cancelled(), if leave_at.is_none() => {
                    let streams = shared.admission.streams().used();
                    leave_at = Some(tokio::time::Instant::now() + leave_after(streams));
                }
                () = at(leave_at) => return Err(shutting_down()),
                status = &mut token_lost => return Err(status),
            }
        }
    }

    /// Waits until the token of the client is no longer valid, and says why. The API server is asked again and again, because
    /// the pod of a token may be deleted.
    async fn token_lost(&self, expires: Option<SystemTime>) -> Status {
        let Caller::Bearer { access, headers } = &self.caller else {
            return std::future::pending().await;
        };
        loop {
            let pause = REVIEW_AGAIN.mul_f64(1.0 + random_fraction() / 2.0);
            let left = expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
            tokio::time::sleep(left.map_or(pause, |left| left.min(pause))).await;
            if expires.is_some_and(|at| at <= SystemTime::now()) {
                return Status::permission_denied(
                    "the token of this stream has expired; connect with a new one",
                );
            }
            match access.tokens.identify(headers, self.exchange.peer()).await {
                Ok(_) | Err(TokenError::Unavailable(_)) => {}
                Err(error) => return error.into(),
            }
        }
    }

    /// Checks that the client may have the configuration of this proxy. Returns its identity, unless it is anonymous.
    async fn identify(&self, proxy: &Proxy) -> Result<Option<(Identity, Access)>, Status> {
        let Caller::Bearer { access, headers } = &self.caller else {
            return Ok(None);
        };
        let identity = tokio::select! {
            identity = access.tokens.identify(headers, self.exchange.peer()) => {
                identity.map_err(Status::from)
            }
            () = self.sender.closed() => Err(Status::cancelled("the client has left")),
            () = self.exchange.over() => Err(self.revoked()),
            () = self.shared.closing.cancelled() => Err(shutting_down()),
        };
        let identity = identity.inspect_err(|status| {
            let reason = format_args!("{}: {}", proxy.id, status.message());
            self.shared.admission.log("refused a client without a valid token", &reason);
        })?;
        identity.permits(proxy).map_err(|reason| {
            let why = format_args!("{}: {reason}", proxy.id);
            self.shared.admission.log("refused a client with another's token", &why);
            Status::permission_denied(reason)
        })?;
        Ok(Some((identity, access.clone())))
    }

    /// Begins to serve the proxy that sent this first request.
    async fn serve<M: DiscoveryRequest>(&self, first: &M) -> Result<Served, Status> {
        let node = first.node().ok_or_else(|| {
            Status::invalid_argument("the first request of a stream must carry `node`")
        })?;
        let mut proxy = read_node(node).map_err(|error| not_served(&error))?;
        let (identity, access) = self.identify(&proxy).await?.unzip();
        let token_expires = identity.as_ref().and_then(|identity| identity.expires);
        let credentials = identity.zip(access).filter(|_| self.kind.is_none());
        let credentials = credentials.map(|(identity, access)| {
            Credentials::new(self.variant, identity, access.authority, random_fraction())
        });
        if credentials.is_some() && proxy.certificates == Certificates::None {
            proxy.certificates = Certificates::Ads;
        }
        self.exchange.makes_sense();
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
            if !self.send(response.frame).await? {
                return Ok(false);
            }
        }
        if served.beside.wants_names() && !std::mem::replace(&mut served.has_names, true) {
            served.subscription.add_names().await.map_err(|_| shutting_down())?;
        }
        let latest = served.subscription.snapshots.borrow().clone();
        for (resource_type, frame) in served.beside.responses(latest.as_deref()) {
            metrics.pushed(resource_type, frame.len());
            if !self.send(frame).await? {
                return Ok(false);
            }
        }
        update_status(&mut served.status, &served.machine, now);
        Ok(true)
    }

    /// The first request, and the place of this stream among those that start; `None` if the client ends the stream without
    /// one. A stream waits for its turn only once its first request begins: a client that only opens streams takes no turn,
    /// and a waiting stream holds almost no memory.
    async fn first<M: DiscoveryRequest>(
        &self,
        requests: &mut Requests<M>,
    ) -> Result<Option<(M, Start)>, Status> {
        let within = self.exchange.limits().first_request;
        let first = async {
            let begun = tokio::time::timeout(within, requests.begun()).await.map_err(|_| {
                let within = within.as_secs_f64();
                Status::deadline_exceeded(format!("no request arrived within {within} s"))
            })??;
            if !begun {
                return Ok(None);
            }
            self.exchange.is_in_use();
            let (shared, peer) = (self.shared, self.exchange.peer());
            shared.turns.turn(peer).await;
            let start = shared.starts.place(peer).await;
            Ok(requests.next().await?.map(|first| (first, start)))
        };
        tokio::select! {
            first = first => first,
            () = self.sender.closed() => Ok(None),
            () = self.exchange.over() => Err(self.revoked()),
            () = self.shared.closing.cancelled() => Err(shutting_down()),
        }
    }

    /// The status of a stream that is ended to free resources for other streams.
    fn revoked(&self) -> Status {
        let why = self.exchange.why_revoked();
        Status::resource_exhausted(
            why.map_or_else(|| "the stream was ended".to_owned(), |why| why.to_string()),
        )
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

    /// Sends a frame. Returns whether the client is still connected.
    async fn send(&self, frame: Frame) -> Result<bool, Status> {
        let limit = self.shared.settings.ack_timeout;
        let outgoing = Outgoing::new(frame, self.exchange)?;
        tokio::select! {
            sent = tokio::time::timeout(limit, self.sender.send(Ok(outgoing))) => match sent {
                Ok(sent) => Ok(sent.is_ok()),
                Err(_) => Err(Status::resource_exhausted("the client does not read its responses")),
            },
            () = self.exchange.over() => Err(self.revoked()),
            () = self.shared.closing.cancelled() => Err(shutting_down()),
        }
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

/// How long a stream waits before it closes when all streams close: a random part of the total time, so that the
/// clients do not all reconnect at once.
fn leave_after(streams: usize) -> Duration {
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    let all = LEAVE_EACH.saturating_mul(streams.saturating_sub(1)).min(LEAVE_ALL);
    all.mul_f64(random_fraction())
}

/// A random number from 0 to 1. The standard library seeds its hash maps from the system's randomness.
fn random_fraction() -> f64 {
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
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

fn shutting_down() -> Status {
    Status::unavailable("weir is shutting down")
}

fn not_served(error: &ProxyError) -> Status {
    tracing::warn!(%error, "refused a client");
    match error {
        ProxyError::Generator { .. } => Status::unimplemented(error.to_string()),
        ProxyError::Id(_)
        | ProxyError::TooLong { .. }
        | ProxyError::Type { .. }
        | ProxyError::Address { .. } => Status::invalid_argument(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_close_within_the_total_time() {
        let times: Vec<_> = (0..100).map(|_| leave_after(101)).collect();
        assert!(times.iter().all(|time| *time <= LEAVE_EACH * 100));
        assert!(times.iter().max() > times.iter().min(), "not all at the same time");
        assert!(leave_after(usize::MAX) <= LEAVE_ALL);
        assert_eq!(leave_after(1), Duration::ZERO);
    }
}
