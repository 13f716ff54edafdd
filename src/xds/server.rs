//! The aggregated discovery service over gRPC: carries requests to a [`Stream`] and its responses back.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use envoy_types::pb::google::protobuf::{Struct, Value as PbValue, value::Kind};
use futures::Stream as FuturesStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::board::{Board, ProxyStatus};
use super::stream::{self, Answer, Settings, Stream, Variant};
use super::wire::{Frame, FrameCodec};
use crate::mesh::{Locality, NodeMetadata, Proxy};
use crate::metrics::Metrics;
use crate::snapshot::{Hub, ResourceType};

/// The largest request that is read, in bytes: names of some 100 000 clusters.
const MAX_REQUEST: usize = 16 << 20;

/// Responses that may wait for a client to read them. More would be memory that a slow client holds.
const WAITING: usize = 4;

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ads {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hub: Arc<Hub>,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    grace: Duration,
    next: AtomicU64,
    closing: tokio_util::sync::CancellationToken,
}

impl Ads {
    /// A service that hands out what `hub` has, until `closing` is cancelled. `grace` is how long a proxy keeps what it
    /// no longer uses.
    pub fn new(
        hub: Arc<Hub>,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
        grace: Duration,
        closing: tokio_util::sync::CancellationToken,
    ) -> Self {
        Self { shared: Arc::new(Shared { hub, board, metrics, grace, next: AtomicU64::new(1), closing }) }
    }
}

impl NamedService for Ads {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<B> tower_service::Service<http::Request<B>> for Ads
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
        let shared = self.shared.clone();
        Box::pin(async move {
            let response = match request.uri().path().rsplit('/').next() {
                Some("StreamAggregatedResources") => {
                    let method = Method::<pb::DiscoveryRequest>::new(shared, Variant::Sotw);
                    Grpc::new(FrameCodec::default())
                        .max_decoding_message_size(MAX_REQUEST)
                        .max_encoding_message_size(usize::MAX)
                        .streaming(method, request)
                        .await
                }
                Some("DeltaAggregatedResources") => {
                    let method = Method::<pb::DeltaDiscoveryRequest>::new(shared, Variant::Delta);
                    Grpc::new(FrameCodec::default())
                        .max_decoding_message_size(MAX_REQUEST)
                        .max_encoding_message_size(usize::MAX)
                        .streaming(method, request)
                        .await
                }
                _ => Status::unimplemented("no such method of the aggregated discovery service").into_http(),
            };
            Ok(response)
        })
    }
}

/// A request message of either variant.
trait DiscoveryRequest: Into<stream::Request> + Send + 'static {
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

struct Method<M> {
    shared: Arc<Shared>,
    variant: Variant,
    message: std::marker::PhantomData<fn(M)>,
}

impl<M> Method<M> {
    fn new(shared: Arc<Shared>, variant: Variant) -> Self {
        Self { shared, variant, message: std::marker::PhantomData }
    }
}

impl<M: DiscoveryRequest> StreamingService<M> for Method<M> {
    type Response = Frame;
    type ResponseStream = Pin<Box<dyn FuturesStream<Item = Result<Frame, Status>> + Send>>;
    type Future = BoxFuture<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<M>>) -> Self::Future {
        let (shared, variant) = (self.shared.clone(), self.variant);
        Box::pin(async move {
            let (sender, receiver) = mpsc::channel(WAITING);
            // The task ends when the client does: both halves of the connection are in its hands.
            tokio::spawn(async move {
                let id = shared.next.fetch_add(1, Ordering::Relaxed);
                if let Err(status) = serve(&shared, id, variant, request.into_inner(), &sender).await {
                    tracing::debug!(stream = id, %status, "stream closed");
                    let _ = sender.send(Err(status)).await;
                }
                shared.board.remove(id);
            });
            let stream: Self::ResponseStream = Box::pin(ReceiverStream::new(receiver));
            Ok(Response::new(stream))
        })
    }
}

async fn serve<M: DiscoveryRequest>(
    shared: &Shared,
    id: u64,
    variant: Variant,
    mut requests: Streaming<M>,
    sender: &mpsc::Sender<Result<Frame, Status>>,
) -> Result<(), Status> {
    let Some(first) = requests.message().await? else { return Ok(()) };
    let proxy = first
        .node()
        .ok_or_else(|| Status::invalid_argument("the first request of a stream must carry `node`"))
        .and_then(|node| read_node(node).map_err(|error| Status::invalid_argument(error.to_string())))?;
    tracing::info!(proxy = %proxy.id, ?variant, "proxy connected");
    let mut subscription = shared.hub.subscribe(proxy.clone());
    let mut machine = Stream::new(variant, Settings { grace: shared.grace, ..Default::default() });
    let mut status = ProxyStatus {
        id: proxy.id.clone(),
        variant: match variant {
            Variant::Sotw => "sotw",
            Variant::Delta => "delta",
        },
        acked: None,
        wanted: None,
        refused: None,
    };
    let mut request = Some(first);
    loop {
        if let Some(message) = request.take() {
            match machine.on_request(message.into()).map_err(|error| Status::resource_exhausted(error.to_string()))? {
                Some(Answer::Refused(kind, reason)) => {
                    shared.metrics.refused(kind);
                    tracing::warn!(proxy = %proxy.id, kind = kind.short_name(), reason, "proxy refused resources");
                    status.refused = Some(format!("{}: {reason}", kind.short_name()));
                }
                Some(Answer::Acked(_)) | None => {}
            }
        }
        let latest = subscription.snapshots.borrow_and_update().clone();
        if let Some(snapshot) = latest
            && status.wanted != Some(snapshot.revision)
        {
            status.wanted = Some(snapshot.revision);
            machine.on_snapshot(snapshot);
        }
        for response in machine.responses(Instant::now()) {
            shared.metrics.pushed(response.kind, response.frame.len());
            if sender.send(Ok(response.frame)).await.is_err() {
                return Ok(());
            }
        }
        if let Some(revision) = machine.settled() {
            status.acked = Some(revision);
            status.refused = None;
        }
        shared.board.set(id, status.clone());
        let wake = async {
            match machine.wake_at() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = requests.message() => match message? {
                Some(message) => request = Some(message),
                None => return Ok(()),
            },
            changed = subscription.snapshots.changed() => {
                if changed.is_err() {
                    return Err(Status::unavailable("weir is going away"));
                }
            }
            () = wake => {}
            () = shared.closing.cancelled() => return Err(Status::unavailable("weir is going away")),
        }
    }
}

fn read_node(node: &core::Node) -> Result<Proxy, crate::mesh::ProxyError> {
    let metadata = node.metadata.as_ref().map_or(serde_json::Value::Null, struct_to_json);
    let locality = node.locality.clone().unwrap_or_default();
    let locality = Locality { region: locality.region, zone: locality.zone, sub_zone: locality.sub_zone };
    Proxy::new(&node.id, NodeMetadata::from_json(&metadata), locality)
}

fn struct_to_json(value: &Struct) -> serde_json::Value {
    value.fields.iter().map(|(name, value)| (name.clone(), value_to_json(value))).collect()
}

fn value_to_json(value: &PbValue) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::NumberValue(number)) => (*number).into(),
        Some(Kind::StringValue(text)) => text.clone().into(),
        Some(Kind::BoolValue(truth)) => (*truth).into(),
        Some(Kind::StructValue(fields)) => struct_to_json(fields),
        Some(Kind::ListValue(list)) => list.values.iter().map(value_to_json).collect(),
    }
}

/// The types a metric may be about.
pub const TYPES: [ResourceType; 4] = ResourceType::ALL;
