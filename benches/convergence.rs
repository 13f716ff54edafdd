//! Measures the time and cost of a weight change from file write to every proxy, and the impact of a stuck proxy.
//!
//! `cargo bench --bench convergence` starts `weir serve` on a folder of 1000 Services (4 endpoints, a VirtualService
//! 90/10 and a DestinationRule each) and connects 100 plain ADS clients that ACK everything at once, over SotW and over
//! delta. Then it changes one weight after another. In every second round an additional client is connected that reads
//! nothing; the rounds alternate so that both kinds run under the same conditions. `WEIR_SERVICES`, `WEIR_CLIENTS` and
//! `WEIR_ROUNDS` change these numbers, `WEIR_NAMESPACES` spreads services and clients over several namespaces, and
//! `WEIR_BINARY` sets the binary.

use std::error::Error;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const SOTW_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// A response whose resources are not decoded.
#[derive(Clone, PartialEq, prost::Message)]
struct Sotw {
    #[prost(string, tag = "1")]
    version_info: String,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

/// The same for the delta variant.
#[derive(Clone, PartialEq, prost::Message)]
struct Delta {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

struct Weir {
    child: Child,
    xds: u16,
    admin: u16,
}

impl Drop for Weir {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Weir {
    fn start(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let (xds, admin) = (free_port()?, free_port()?);
        let binary =
            std::env::var_os("WEIR_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_weir").into());
        let child = Command::new(binary)
            .args(["serve", "--log", "error", "--config-dir"])
            .arg(folder)
            .args([
                "--xds-listen",
                &format!("127.0.0.1:{xds}"),
                "--admin-listen",
                &format!("127.0.0.1:{admin}"),
            ])
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self { child, xds, admin })
    }

    async fn ready(&self) {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.admin));
        while weir::envoy::Admin::new(address).get("/ready").await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Resident memory in MB and CPU time in seconds.
    fn cost(&self) -> Result<(f64, f64), Box<dyn Error>> {
        let folder = format!("/proc/{}", self.child.id());
        let status = std::fs::read_to_string(format!("{folder}/status"))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        let stat = std::fs::read_to_string(format!("{folder}/stat"))?;
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let times = [11, 12].map(|at| fields.get(at).and_then(|text| text.parse::<f64>().ok()));
        let ticks: f64 = times.into_iter().flatten().sum();
        Ok((resident.unwrap_or(0.0) / 1024.0, ticks / 100.0))
    }

    async fn channel(&self) -> Result<Channel, Box<dyn Error>> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", self.xds))?;
        Ok(endpoint
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 20)
            .connect()
            .await?)
    }
}

/// The namespace of a client or a service.
fn namespace(n: usize) -> String {
    match n % number("WEIR_NAMESPACES", 1) {
        0 => "bench".to_owned(),
        other => format!("bench-{other}"),
    }
}

fn node(n: usize) -> core::Node {
    core::Node {
        id: format!(
            "sidecar~10.9.{}.{}~client-{n}.{}~svc.cluster.local",
            n / 250,
            n % 250 + 1,
            namespace(n)
        ),
        ..Default::default()
    }
}

/// When a client received route tables.
type Arrivals = mpsc::UnboundedReceiver<Instant>;

fn cluster_names(resources: &[Bytes], delta: bool) -> Vec<String> {
    let clusters = resources.iter().filter_map(|bytes| {
        let any = if delta {
            pb::Resource::decode(bytes.clone()).ok()?.resource?
        } else {
            envoy_types::pb::google::protobuf::Any::decode(bytes.clone()).ok()?
        };
        cluster::Cluster::decode(any.value.as_slice()).ok()
    });
    clusters
        .filter(|cluster| cluster.eds_cluster_config.is_some())
        .map(|cluster| cluster.name)
        .collect()
}

/// The types that a client subscribes to at first, each with the names.
fn subscriptions() -> [(&'static str, Vec<String>); 3] {
    [(CDS, Vec::new()), (LDS, Vec::new()), (RDS, vec!["80".to_owned()])]
}

/// Opens an ADS stream whose requests come from `requests`.
async fn open<Req, Res>(
    channel: Channel,
    path: &'static str,
    requests: mpsc::Receiver<Req>,
) -> Result<tonic::Streaming<Res>, Box<dyn Error>>
where
    Req: prost::Message + 'static,
    Res: prost::Message + Default + 'static,
{
    let path = http::uri::PathAndQuery::from_static(path);
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
    grpc.ready().await?;
    let codec = tonic_prost::ProstCodec::<Req, Res>::default();
    let requests = Request::new(ReceiverStream::new(requests));
    Ok(grpc.streaming(requests, path, codec).await?.into_inner())
}

async fn client(weir: &Weir, index: usize, delta: bool) -> Result<Arrivals, Box<dyn Error>> {
    let (arrived, arrivals) = mpsc::unbounded_channel();
    if delta {
        delta_client(weir, index, arrived).await?;
    } else {
        sotw_client(weir, index, arrived).await?;
    }
    Ok(arrivals)
}

async fn delta_client(
    weir: &Weir,
    index: usize,
    arrived: mpsc::UnboundedSender<Instant>,
) -> Result<(), Box<dyn Error>> {
    let (send, requests) = mpsc::channel::<pb::DeltaDiscoveryRequest>(64);
    for (type_url, names) in subscriptions() {
        let request = pb::DeltaDiscoveryRequest {
            node: Some(node(index)),
            type_url: type_url.to_owned(),
            resource_names_subscribe: names,
            ..Default::default()
        };
        send.send(request).await?;
    }
    let mut responses = open::<_, Delta>(weir.channel().await?, DELTA_PATH, requests).await?;
    tokio::spawn(async move {
        while let Ok(Some(response)) = responses.message().await {
            if response.type_url == RDS && arrived.send(Instant::now()).is_err() {
                return;
            }
            if response.type_url == CDS {
                let request = pb::DeltaDiscoveryRequest {
                    type_url: EDS.to_owned(),
                    resource_names_subscribe: cluster_names(&response.resources, true),
                    ..Default::default()
                };
                let _ = send.send(request).await;
            }
            let ack = pb::DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..Default::default()
            };
            if send.send(ack).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

async fn sotw_client(
    weir: &Weir,
    index: usize,
    arrived: mpsc::UnboundedSender<Instant>,
) -> Result<(), Box<dyn Error>> {
    let (send, requests) = mpsc::channel::<pb::DiscoveryRequest>(64);
    for (type_url, names) in subscriptions() {
        let request = pb::DiscoveryRequest {
            node: Some(node(index)),
            type_url: type_url.to_owned(),
            resource_names: names,
            ..Default::default()
        };
        send.send(request).await?;
    }
    let mut responses = open::<_, Sotw>(weir.channel().await?, SOTW_PATH, requests).await?;
    tokio::spawn(async move {
        let mut names = Vec::new();
        while let Ok(Some(response)) = responses.message().await {
            if response.type_url == RDS && arrived.send(Instant::now()).is_err() {
                return;
            }
            if response.type_url == CDS && names.is_empty() {
                names = cluster_names(&response.resources, false);
                let request = pb::DiscoveryRequest {
                    type_url: EDS.to_owned(),
                    resource_names: names.clone(),
                    ..Default::default()
                };
                let _ = send.send(request).await;
            }
            let subscribed = match response.type_url.as_str() {
                EDS => names.clone(),
                RDS => vec!["80".to_owned()],
                _ => Vec::new(),
            };
            let ack = pb::DiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                version_info: response.version_info,
                resource_names: subscribed,
                ..Default::default()
            };
            if send.send(ack).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// A client that subscribes to everything and never reads.
async fn stuck(weir: &Weir) -> Result<Box<dyn std::any::Any>, Box<dyn Error>> {
    let (send, requests) = mpsc::channel::<pb::DeltaDiscoveryRequest>(4);
    for type_url in [CDS, LDS] {
        let node = Some(node(60_000));
        send.send(pb::DeltaDiscoveryRequest {
            node,
            type_url: type_url.to_owned(),
            ..Default::default()
        })
        .await?;
    }
    let path = http::uri::PathAndQuery::from_static(DELTA_PATH);
    let mut grpc = tonic::client::Grpc::new(weir.channel().await?);
    grpc.ready().await?;
    let codec = tonic_prost::ProstCodec::<pb::DeltaDiscoveryRequest, Delta>::default();
    let responses =
        grpc.streaming(Request::new(ReceiverStream::new(requests)), path, codec).await?;
    Ok(Box::new((responses, send, grpc)))
}

fn objects(n: usize, weight: u32) -> String {
    let namespace = namespace(n);
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s{n}, namespace: {namespace}}}\nspec:\n  \
         hosts: [s{n}]\n  http:\n  - route:\n    - {{destination: {{host: s{n}, subset: v1}}, weight: {}}}\n    - \
         {{destination: {{host: s{n}, subset: v2}}, weight: {weight}}}\n",
        100 - weight
    )
}

fn rest(n: usize) -> String {
    let (a, b) = (n / 250, n % 250);
    let namespace = namespace(n);
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: {namespace}}}\nspec:\n  clusterIP: 10.96.{a}.{b}\n  \
         ports: [{{name: http, port: 80, targetPort: 8080}}]\n---\napiVersion: networking.istio.io/v1\nkind: \
         DestinationRule\nmetadata: {{name: s{n}, namespace: {namespace}}}\nspec:\n  host: s{n}\n  subsets: [{{name: v1, \
         labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: \
         EndpointSlice\nmetadata: {{name: s{n}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: s{n}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
    );
    for pod in 0..4 {
        text += &format!(
            "- {{addresses: [10.{}.{a}.{b}], targetRef: {{kind: Pod, name: s{n}-{pod}}}}}\n",
            pod + 1
        );
    }
    for pod in 0..4 {
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: s{n}-{pod}, namespace: {namespace}, labels: {{app: s{n}, \
             version: v{}}}}}\n",
            pod % 2 + 1
        );
    }
    text
}

fn write(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let temporary = folder.join(format!(".{name}"));
    std::fs::write(&temporary, text)?;
    std::fs::rename(temporary, folder.join(name))
}

/// What the rounds of one kind took.
#[derive(Default)]
struct Rounds {
    p50: Vec<Duration>,
    last: Vec<Duration>,
    /// CPU time in seconds.
    processor: f64,
}

fn median(list: &mut [Duration]) -> f64 {
    list.sort_unstable();
    list.get(list.len() / 2).map_or(0.0, |middle| middle.as_secs_f64() * 1000.0)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (services, clients, rounds) =
        (number("WEIR_SERVICES", 1000), number("WEIR_CLIENTS", 100), number("WEIR_ROUNDS", 20));
    println!(
        "{services} services, {} endpoints, {clients} clients, {rounds} weights of each kind",
        services * 4
    );
    let folder = tempfile::tempdir()?;
    for n in 0..services {
        write(folder.path(), &format!("s{n}.yaml"), &rest(n))?;
        write(folder.path(), &format!("v{n}.yaml"), &objects(n, 10))?;
    }
    println!(
        "{:<6} {:<12} {:>8} {:>8} {:>12} {:>12}",
        "", "", "p50 ms", "last ms", "CPU ms/step", "resident MB"
    );
    for delta in [false, true] {
        let variant = Variant { delta, services, clients, rounds };
        variant.run(folder.path()).await?;
    }
    Ok(())
}

/// The measurements of one variant of the protocol.
struct Variant {
    delta: bool,
    services: usize,
    clients: usize,
    rounds: usize,
}

impl Variant {
    fn name(&self) -> &'static str {
        if self.delta { "delta" } else { "sotw" }
    }

    async fn run(&self, folder: &Path) -> Result<(), Box<dyn Error>> {
        let (weir, mut clients) = self.start(folder).await?;
        let mut alone = Rounds::default();
        let mut one_stuck = Rounds::default();
        for round in 0..self.rounds * 2 {
            if round % 2 == 0 {
                self.round(round, folder, &weir, &mut clients, &mut alone).await?;
            } else {
                let _stuck = stuck(&weir).await?;
                self.round(round, folder, &weir, &mut clients, &mut one_stuck).await?;
            }
        }
        let (resident, _) = weir.cost()?;
        for (label, mut measured) in [("alone", alone), ("one stuck", one_stuck)] {
            println!(
                "{:<6} {label:<12} {:>8.1} {:>8.1} {:>12.0} {resident:>12.0}",
                self.name(),
                median(&mut measured.p50),
                median(&mut measured.last),
                measured.processor / self.rounds as f64 * 1000.0
            );
        }
        Ok(())
    }

    /// Starts weir and connects the clients until each has its routes.
    async fn start(&self, folder: &Path) -> Result<(Weir, Vec<Arrivals>), Box<dyn Error>> {
        let begun = Instant::now();
        let weir = Weir::start(folder)?;
        weir.ready().await;
        let ready = begun.elapsed();
        let (alone, _) = weir.cost()?;
        let begun = Instant::now();
        let mut clients = Vec::new();
        for index in 0..self.clients {
            clients.push(client(&weir, index, self.delta).await?);
        }
        for arrivals in &mut clients {
            arrivals.recv().await;
        }
        let (resident, processor) = weir.cost()?;
        println!(
            "{:<6} start: ready in {} ms with {alone:.0} MB; all clients served in {} ms, {processor:.2} s CPU, \
             {resident:.0} MB",
            self.name(),
            ready.as_millis(),
            begun.elapsed().as_millis()
        );
        Ok((weir, clients))
    }

    /// Changes a weight and waits until every client has it.
    async fn round(
        &self,
        round: usize,
        folder: &Path,
        weir: &Weir,
        clients: &mut [Arrivals],
        measured: &mut Rounds,
    ) -> Result<(), Box<dyn Error>> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (_, before) = weir.cost()?;
        let begun = Instant::now();
        let service = round % self.services;
        // Differs from the weight that the previous variant left in the file.
        let weight = 11 + u32::try_from(round)? % 40 + if self.delta { 40 } else { 0 };
        write(folder, &format!("v{service}.yaml"), &objects(service, weight))?;
        let mut took = Vec::new();
        for arrivals in clients {
            let arrived = arrivals.recv().await.ok_or("a client lost its stream")?;
            took.push(arrived.saturating_duration_since(begun));
        }
        let (_, after) = weir.cost()?;
        took.sort_unstable();
        measured.processor += after - before;
        measured.p50.push(took[took.len() / 2]);
        measured.last.push(took[took.len() - 1]);
        Ok(())
    }
}
