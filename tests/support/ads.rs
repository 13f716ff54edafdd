//! A scripted client of weir's discovery services, in either variant of the protocol.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient;
use envoy_types::pb::envoy::service::listener::v3::listener_discovery_service_client::ListenerDiscoveryServiceClient;
use envoy_types::pb::envoy::service::route::v3::route_discovery_service_client::RouteDiscoveryServiceClient;
use envoy_types::pb::google::protobuf::{Any, Struct, Value, value::Kind};
use envoy_types::pb::google::rpc;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use weir::admin::api::v1;

use super::mesh::{DEADLINE, Objects, Serve, until};
use super::process::free_port;

pub(crate) const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(crate) const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// The table of names that Istio's agent asks for.
pub(crate) const NDS: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
pub(crate) const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    Sotw,
    Delta,
}

/// `weir serve` with its own folder.
pub(crate) struct Weir {
    pub objects: Objects,
    pub serve: Serve,
    // Dropped last, so that weir does not see it disappear.
    _folder: tempfile::TempDir,
}

impl Weir {
    pub(crate) async fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects =
            Objects { folder: folder.path().to_owned(), service: free_port(), backend: 8080 };
        objects.write_all(100, 0);
        let args = [&["--config-dir", folder.path().to_str().unwrap()], more].concat();
        let serve = Serve::start(&args, free_port(), free_port());
        serve.ready().await;
        Self { _folder: folder, objects, serve }
    }

    /// The cluster name of a subset; of the whole service if empty.
    pub(crate) fn cluster(&self, subset: &str) -> String {
        format!("outbound|{}|{subset}|my-app.shop.svc.cluster.local", self.objects.service)
    }

    /// The name of the route configuration.
    pub(crate) fn routes(&self) -> String {
        self.objects.service.to_string()
    }

    /// Writes a file and waits until weir has applied it.
    pub(crate) async fn edit(&self, file: &str, text: &str) {
        let before = self.serve.revision().await;
        self.objects.write(file, text);
        until("the change is applied", async || self.serve.revision().await > before).await;
    }

    /// Makes all endpoints not ready.
    pub(crate) async fn fail_endpoints(&self) {
        let failing = self.objects.endpoints_yaml().replace("ready: true", "ready: false");
        self.edit("endpoints.yaml", &failing).await;
    }

    /// What weir reports of the only proxy.
    pub(crate) async fn status(&self) -> v1::Proxy {
        self.serve.proxies().await.unwrap().pop().unwrap_or_default()
    }

    pub(crate) async fn ads(&self, variant: Variant) -> Client {
        self.connect(variant, None).await
    }

    /// A stream of a per-type service, or of the aggregated service.
    pub(crate) async fn connect(&self, variant: Variant, kind: Option<&str>) -> Client {
        connect(self.serve.xds, variant, kind).await
    }
}

/// A stream of a per-type service, or of the aggregated service, of the weir at this port.
pub(crate) async fn connect(xds: u16, variant: Variant, kind: Option<&str>) -> Client {
    let channel = Channel::from_shared(format!("http://127.0.0.1:{xds}")).unwrap();
    Client::open(channel.connect().await.unwrap(), variant, kind).await
}

/// A request; unset fields are empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    pub type_url: String,
    pub names: Vec<String>,
    pub unsubscribe: Vec<String>,
    pub nonce: String,
    pub version: String,
    pub error: Option<String>,
    pub initial: BTreeMap<String, String>,
    pub node: Option<String>,
}

pub(crate) fn ask(type_url: &str, names: &[&str]) -> Ask {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Ask { type_url: type_url.to_owned(), names, ..Default::default() }
}

/// A response: its resources by name, with their own version (delta) or the common one (SotW), and their bytes.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub type_url: String,
    pub nonce: String,
    pub version: String,
    pub resources: BTreeMap<String, (String, Vec<u8>)>,
    pub removed: Vec<String>,
}

impl Got {
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.resources.keys().map(String::as_str).collect()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.resources.contains_key(name)
    }
}

enum Half {
    Sotw(mpsc::Sender<pb::DiscoveryRequest>, Streaming<pb::DiscoveryResponse>),
    Delta(mpsc::Sender<pb::DeltaDiscoveryRequest>, Streaming<pb::DeltaDiscoveryResponse>),
}

/// One stream.
pub(crate) struct Client {
    half: Half,
    greeted: bool,
    /// The subscribed names of each type (SotW only).
    names: BTreeMap<String, Vec<String>>,
    pub channel: Channel,
}

impl Client {
    pub(crate) async fn open(channel: Channel, variant: Variant, kind: Option<&str>) -> Self {
        Self::try_open(channel, variant, kind).await.unwrap()
    }

    pub(crate) async fn try_open(
        channel: Channel,
        variant: Variant,
        kind: Option<&str>,
    ) -> Result<Self, Status> {
        let half = match variant {
            Variant::Sotw => {
                let (sender, requests) = mpsc::channel(64);
                let (requests, to) = (ReceiverStream::new(requests), channel.clone());
                let stream = match kind {
                    Some(CDS) => {
                        ClusterDiscoveryServiceClient::new(to).stream_clusters(requests).await
                    }
                    Some(EDS) => {
                        EndpointDiscoveryServiceClient::new(to).stream_endpoints(requests).await
                    }
                    Some(LDS) => {
                        ListenerDiscoveryServiceClient::new(to).stream_listeners(requests).await
                    }
                    Some(RDS) => RouteDiscoveryServiceClient::new(to).stream_routes(requests).await,
                    _ => {
                        AggregatedDiscoveryServiceClient::new(to)
                            .stream_aggregated_resources(requests)
                            .await
                    }
                };
                Half::Sotw(sender, stream?.into_inner())
            }
            Variant::Delta => {
                let (sender, requests) = mpsc::channel(64);
                let (requests, to) = (ReceiverStream::new(requests), channel.clone());
                let stream = match kind {
                    Some(CDS) => {
                        ClusterDiscoveryServiceClient::new(to).delta_clusters(requests).await
                    }
                    Some(EDS) => {
                        EndpointDiscoveryServiceClient::new(to).delta_endpoints(requests).await
                    }
                    Some(LDS) => {
                        ListenerDiscoveryServiceClient::new(to).delta_listeners(requests).await
                    }
                    Some(RDS) => RouteDiscoveryServiceClient::new(to).delta_routes(requests).await,
                    _ => {
                        AggregatedDiscoveryServiceClient::new(to)
                            .delta_aggregated_resources(requests)
                            .await
                    }
                };
                Half::Delta(sender, stream?.into_inner())
            }
        };
        Ok(Self { half, greeted: false, names: BTreeMap::new(), channel })
    }

    pub(crate) fn variant(&self) -> Variant {
        if matches!(self.half, Half::Sotw(..)) { Variant::Sotw } else { Variant::Delta }
    }

    /// Sends a request; the first one of a stream carries a node.
    pub(crate) async fn send(&mut self, mut ask: Ask) {
        if !std::mem::replace(&mut self.greeted, true) && ask.node.is_none() {
            ask.node = Some("sidecar~127.0.0.1~client-0.shop~shop.svc.cluster.local".to_owned());
        }
        self.send_as_it_is(ask).await;
    }

    pub(crate) async fn send_as_it_is(&mut self, ask: Ask) {
        let node =
            ask.node.map(|id| core::Node { id, metadata: Some(metadata()), ..Default::default() });
        let error_detail =
            ask.error.map(|message| rpc::Status { code: 13, message, ..Default::default() });
        match &self.half {
            Half::Sotw(sender, _) => {
                self.names.insert(ask.type_url.clone(), ask.names.clone());
                let request = pb::DiscoveryRequest {
                    version_info: ask.version,
                    node,
                    resource_names: ask.names,
                    type_url: ask.type_url,
                    response_nonce: ask.nonce,
                    error_detail,
                    ..Default::default()
                };
                let _ = sender.send(request).await;
            }
            Half::Delta(sender, _) => {
                let request = pb::DeltaDiscoveryRequest {
                    node,
                    type_url: ask.type_url,
                    resource_names_subscribe: ask.names,
                    resource_names_unsubscribe: ask.unsubscribe,
                    initial_resource_versions: ask.initial.into_iter().collect(),
                    response_nonce: ask.nonce,
                    error_detail,
                    ..Default::default()
                };
                let _ = sender.send(request).await;
            }
        }
    }

    /// The next response, or why there is none.
    pub(crate) async fn next(&mut self) -> Result<Got, Status> {
        tokio::time::timeout(DEADLINE, self.message()).await.expect("no response in time")
    }

    /// The same, however long it takes.
    pub(crate) async fn message(&mut self) -> Result<Got, Status> {
        let gone = || Status::unknown("the stream ended without a status");
        match &mut self.half {
            Half::Sotw(_, stream) => stream.message().await?.map(got_sotw).ok_or_else(gone),
            Half::Delta(_, stream) => stream.message().await?.map(got_delta).ok_or_else(gone),
        }
    }

    /// The next response, which must be of this type.
    pub(crate) async fn got(&mut self, type_url: &str) -> Got {
        let got = self.next().await.unwrap();
        assert_eq!(got.type_url, type_url, "{got:?}");
        got
    }

    pub(crate) async fn ack(&mut self, got: &Got) {
        self.answer(got, None).await;
    }

    pub(crate) async fn answer(&mut self, got: &Got, error: Option<&str>) {
        let names = match self.half {
            Half::Sotw(..) => self.names.get(&got.type_url).cloned().unwrap_or_default(),
            Half::Delta(..) => Vec::new(),
        };
        let error = error.map(str::to_owned);
        let version = if error.is_none() { got.version.clone() } else { String::new() };
        let (type_url, nonce) = (got.type_url.clone(), got.nonce.clone());
        self.send(Ask { type_url, names, nonce, version, error, ..Default::default() }).await;
    }

    /// Requests a type and ACKs the response.
    pub(crate) async fn fetch(&mut self, type_url: &str, names: &[&str]) -> Got {
        self.send(ask(type_url, names)).await;
        let got = self.got(type_url).await;
        self.ack(&got).await;
        got
    }

    /// Fails if an unexpected response is sent: requests a route configuration under a new name, whose response must
    /// come next. In SotW, which does not answer for missing resources, requests the clusters as if for the first time
    /// instead; they must have been ACKed.
    pub(crate) async fn nothing_more(&mut self, probe: &str) {
        match self.variant() {
            Variant::Delta => {
                self.send(ask(EDS, &[probe])).await;
                let got = self.got(EDS).await;
                assert_eq!(
                    (got.removed.as_slice(), got.resources.len()),
                    (&[probe.to_owned()][..], 0),
                    "{got:?}"
                );
                self.ack(&got).await;
            }
            Variant::Sotw => {
                let names = self.names.get(CDS).cloned().unwrap_or_default();
                self.send(Ask { type_url: CDS.to_owned(), names, ..Default::default() }).await;
                let got = self.got(CDS).await;
                self.ack(&got).await;
            }
        }
    }

    /// Fetches everything in the order in which Envoy requests it.
    pub(crate) async fn start(&mut self, weir: &Weir) -> Got {
        let names = ["", "v1", "v2"].map(|subset| weir.cluster(subset));
        let clusters = self.fetch(CDS, &[]).await;
        let wanted: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| clusters.has(name)).collect();
        self.fetch(EDS, &wanted).await;
        self.fetch(LDS, &[]).await;
        self.fetch(RDS, &[&weir.routes()]).await
    }
}

fn metadata() -> Struct {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = [("NAMESPACE", "shop"), ("INTERCEPTION_MODE", "NONE")];
    Struct {
        fields: fields.into_iter().map(|(name, value)| (name.to_owned(), text(value))).collect(),
    }
}

fn got_sotw(message: pb::DiscoveryResponse) -> Got {
    let version = message.version_info.clone();
    let named = |any: Any| {
        assert_eq!(any.type_url, message.type_url);
        (name_of(&any), (version.clone(), any.value))
    };
    let count = message.resources.len();
    let resources: BTreeMap<_, _> = message.resources.clone().into_iter().map(named).collect();
    assert_eq!(resources.len(), count, "a name appears twice in one response");
    Got {
        type_url: message.type_url,
        nonce: message.nonce,
        version: message.version_info,
        resources,
        removed: Vec::new(),
    }
}

fn got_delta(message: pb::DeltaDiscoveryResponse) -> Got {
    let named = |resource: pb::Resource| {
        let any = resource.resource.unwrap();
        assert_eq!((&any.type_url, &name_of(&any)), (&message.type_url, &resource.name));
        (resource.name, (resource.version, any.value))
    };
    let resources = message.resources.clone().into_iter().map(named).collect();
    Got {
        type_url: message.type_url,
        nonce: message.nonce,
        version: message.system_version_info,
        resources,
        removed: message.removed_resources,
    }
}

fn name_of(any: &Any) -> String {
    use envoy_types::pb::envoy::config as api;
    let bytes = any.value.as_slice();
    match any.type_url.as_str() {
        CDS => api::cluster::v3::Cluster::decode(bytes).unwrap().name,
        EDS => api::endpoint::v3::ClusterLoadAssignment::decode(bytes).unwrap().cluster_name,
        LDS => api::listener::v3::Listener::decode(bytes).unwrap().name,
        RDS => api::route::v3::RouteConfiguration::decode(bytes).unwrap().name,
        NDS => String::new(),
        other => panic!("resource of type {other}"),
    }
}
