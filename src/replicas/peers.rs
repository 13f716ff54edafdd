//! The other replicas: who they are, from the EndpointSlices of their headless Service, and what they know of objects,
//! from their admin port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use tokio_stream::StreamMap;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::admin::api::v1;
use crate::admin::api::v1::admin_client::AdminClient;
use crate::source::kubernetes::with_causes;
use crate::status::Summaries;

/// The name of the admin port in the Service.
const ADMIN_PORT: &str = "http-monitoring";

/// How long a replica may fail to answer before it counts as unreachable. Until then its last answer counts.
const GRACE: Duration = Duration::from_secs(3);

/// The connect timeout; within [`GRACE`].
const CONNECT: Duration = Duration::from_secs(2);

/// The longest message of a replica, enough for some 100 000 objects.
const MESSAGE: usize = 64 << 20;

/// The interval of HTTP/2 pings, and how long their answer may take.
const PING: Duration = Duration::from_secs(2);

/// The delay before a replica is asked again after a first failure; it doubles with each further failure.
const RETRY: Duration = Duration::from_millis(250);

/// The maximum delay.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Another replica.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    /// Whether it serves proxies, as its readiness says.
    serving: bool,
    /// When it was first asked at this address.
    asked: Instant,
    /// Its last answer.
    summaries: Option<Arc<Summaries>>,
    /// Since when it has not answered, and why.
    failing: Option<(Instant, String)>,
}

impl Peer {
    /// Since when it has not answered, and why; `None` if its last answer counts. One that has never answered is given
    /// no more time than one that fails, whatever became of the connection.
    fn silent(&self) -> Option<(Instant, &str)> {
        let why = self.failing.as_ref().map(|(_, why)| why.as_str());
        match &self.summaries {
            Some(_) => self.failing.as_ref().map(|(since, why)| (*since, why.as_str())),
            None => Some((self.asked, why.unwrap_or("it does not answer"))),
        }
    }
}

/// What a replica answered, or why it did not.
#[derive(Debug)]
enum PeerEvent {
    /// The first answer after a connection, with all objects.
    All(v1::SummariesUpdate),
    /// What changed since.
    Changed(v1::SummariesUpdate),
    Failed(String),
}

/// The last answer of another replica, or why it cannot be asked.
#[derive(Clone, Debug)]
pub(crate) struct PeerAnswer {
    /// The name of its pod.
    pub name: String,
    /// Its admin port, if it is known.
    pub address: Option<SocketAddr>,
    /// Its summaries.
    pub summaries: Result<Arc<Summaries>, String>,
}

/// Which replica this is, and how to find the others.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// The namespace of the Service: that of this pod.
    pub namespace: String,
    /// The name of this pod.
    pub pod: String,
    /// The headless Service of the replicas; without it there is only this one.
    pub service: Option<String>,
}

/// Whether it is known who the other replicas are.
#[derive(Debug)]
enum Listing {
    /// Nobody has asked yet.
    Idle,
    /// They have been waited for since then, and why they are not known.
    Since(Instant, String),
    /// They are known.
    Done,
}

/// What is known of the other replicas. Pure.
#[derive(Debug)]
pub(super) struct PeerTable {
    peers: BTreeMap<String, Peer>,
    listing: Listing,
}

impl PeerTable {
    /// A table of the replicas behind a Service, or of none without one.
    pub(super) fn new(service: Option<&str>) -> Self {
        let listing = if service.is_some() { Listing::Idle } else { Listing::Done };
        Self { peers: BTreeMap::new(), listing }
    }

    /// They are listed from now on.
    fn begin(&mut self, now: Instant) {
        if matches!(self.listing, Listing::Idle) {
            let why = "the API server does not answer the list of their EndpointSlices".to_owned();
            self.listing = Listing::Since(now, why);
        }
    }

    /// Records why the list failed.
    fn list_failed(&mut self, why: String) {
        // Once it is known who they are, the watch goes on by itself.
        if let Listing::Since(_, known) = &mut self.listing {
            *known = why;
        }
    }

    /// Takes in who the replicas are. Returns those that have to be asked anew, and forgets those that left.
    fn list(
        &mut self,
        found: BTreeMap<String, (SocketAddr, bool)>,
        now: Instant,
    ) -> Vec<(String, SocketAddr)> {
        self.listing = Listing::Done;
        self.peers.retain(|name, _| found.contains_key(name));
        let mut fresh = Vec::new();
        for (name, (address, serving)) in found {
            match self.peers.get_mut(&name) {
                Some(peer) if peer.address == address => peer.serving = serving,
                _ => {
                    fresh.push((name.clone(), address));
                    let peer =
                        Peer { address, serving, asked: now, summaries: None, failing: None };
                    self.peers.insert(name, peer);
                }
            }
        }
        fresh
    }

    fn record(&mut self, name: &str, event: PeerEvent, now: Instant) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let (mut all, update) = match event {
            PeerEvent::Failed(why) => {
                let since = peer.failing.as_ref().map_or(now, |(since, _)| *since);
                peer.failing = Some((since, why));
                return;
            }
            PeerEvent::All(update) => (Summaries::new(), update),
            PeerEvent::Changed(update) => {
                let old = peer.summaries.take().unwrap_or_default();
                (Arc::unwrap_or_clone(old), update)
            }
        };
        for key in update.deleted.iter().filter_map(v1::ObjectRef::key) {
            all.remove(&key);
        }
        for summary in update.objects {
            if let Some(key) = summary.object.as_ref().and_then(v1::ObjectRef::key) {
                all.insert(key, Arc::new(summary.into()));
            }
        }
        peer.summaries = Some(Arc::new(all));
        peer.failing = None;
    }

    /// The answers of all others. Fails with a time while one may still answer: to be asked again then, or as soon as
    /// something changes.
    ///
    /// # Errors
    /// When to ask again, unless something changes before.
    pub(crate) fn answers(&self, now: Instant) -> Result<Vec<PeerAnswer>, Instant> {
        let mut answers = Vec::new();
        match &self.listing {
            Listing::Since(since, why) if now >= *since + GRACE => {
                let name = "of an unknown name".to_owned();
                let summaries = Err(why.clone());
                answers.push(PeerAnswer { name, address: None, summaries });
            }
            Listing::Since(since, _) => return Err(*since + GRACE),
            Listing::Idle => return Err(now + GRACE),
            Listing::Done => {}
        }
        for (name, peer) in &self.peers {
            let summaries = match (peer.silent(), &peer.summaries) {
                (Some((since, why)), _) if now >= since + GRACE => {
                    // Its readiness also says that it no longer serves. Its proxies go to the others.
                    if !peer.serving {
                        continue;
                    }
                    Err(format!("{}: {why}", peer.address))
                }
                (_, Some(summaries)) => Ok(summaries.clone()),
                (_, None) => return Err(peer.asked + GRACE),
            };
            let (name, address) = (name.clone(), Some(peer.address));
            answers.push(PeerAnswer { name, address, summaries });
        }
        Ok(answers)
    }

    /// When a replica that fails now will count as unreachable.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Instant> {
        let peers = self.peers.values().filter_map(|peer| Some(peer.silent()?.0));
        let listed = match &self.listing {
            Listing::Since(since, _) => Some(*since),
            Listing::Idle | Listing::Done => None,
        };
        let ends = peers.chain(listed).map(|at| at + GRACE);
        ends.filter(|end| *end > now).min()
    }
}

type SliceEvent = Result<watcher::Event<EndpointSlice>, watcher::Error>;

/// Asks the other replicas. Everything happens in [`Peers::changed`]: there are no tasks.
pub(crate) struct Peers {
    /// The pod of this replica.
    own: String,
    slices: BoxStream<'static, SliceEvent>,
    known: BTreeMap<String, EndpointSlice>,
    /// What they answered.
    table: Arc<Mutex<PeerTable>>,
    streams: StreamMap<String, BoxStream<'static, PeerEvent>>,
}

impl Peers {
    /// Those behind a headless Service, or none without one. What they answer goes to `table`.
    pub(crate) fn new(
        client: &Client,
        options: &PeerOptions,
        table: Arc<Mutex<PeerTable>>,
    ) -> Self {
        let slices = match &options.service {
            Some(service) => {
                let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &options.namespace);
                let label = format!("kubernetes.io/service-name={service}");
                let config = watcher::Config::default().labels(&label);
                watcher(api, config).default_backoff().boxed()
            }
            None => futures::stream::pending().boxed(),
        };
        table.lock().begin(Instant::now());
        Self {
            own: options.pod.clone(),
            slices,
            known: BTreeMap::new(),
            table,
            streams: StreamMap::new(),
        }
    }

    /// Waits until something is new. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        tokio::select! {
            Some(event) = self.slices.next() => self.slice(event),
            Some((name, event)) = self.streams.next(), if !self.streams.is_empty() => {
                self.table.lock().record(&name, event, Instant::now());
            }
            // Neither ends.
            else => std::future::pending().await,
        }
    }

    fn slice(&mut self, event: SliceEvent) {
        match event {
            Ok(watcher::Event::Init) => self.known.clear(),
            Ok(watcher::Event::InitApply(slice)) => {
                self.known.insert(slice.name_any(), slice);
            }
            Ok(watcher::Event::InitDone) => self.relist(),
            Ok(watcher::Event::Apply(slice)) => {
                self.known.insert(slice.name_any(), slice);
                self.relist();
            }
            Ok(watcher::Event::Delete(slice)) => {
                self.known.remove(&slice.name_any());
                self.relist();
            }
            Err(error) => self.table.lock().list_failed(with_causes(&error)),
        }
    }

    fn relist(&mut self) {
        let found = replicas(self.known.values(), &self.own);
        let left: Vec<String> =
            self.streams.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        for name in left {
            self.streams.remove(&name);
        }
        let fresh = self.table.lock().list(found, Instant::now());
        for (name, address) in fresh {
            self.streams.insert(name, ask(address));
        }
    }
}

/// The other replicas of these slices: address of the admin port, and whether they serve.
fn replicas<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    own: &str,
) -> BTreeMap<String, (SocketAddr, bool)> {
    let mut found = BTreeMap::new();
    for slice in slices {
        let ports: Vec<_> = slice.ports.iter().flatten().collect();
        let named = ports.iter().find(|port| port.name.as_deref() == Some(ADMIN_PORT));
        let port = named.or(ports.first().filter(|_| ports.len() == 1));
        let port = port.and_then(|port| u16::try_from(port.port?).ok());
        for endpoint in slice.endpoints.iter().flatten() {
            let address = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
            let Some(address) = address.zip(port).map(SocketAddr::from) else { continue };
            let pod = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
            let name = pod.unwrap_or_else(|| address.to_string());
            let conditions = endpoint.conditions.as_ref();
            let serving = conditions.and_then(|all| all.serving.or(all.ready)).unwrap_or(true);
            if name != own {
                // A pod with addresses of both families is in two slices.
                found.entry(name).or_insert((address, serving));
            }
        }
    }
    found
}

/// The connection to a replica.
enum Link {
    Closed,
    /// Whether it has answered for all objects yet.
    Open(Box<Streaming<v1::SummariesUpdate>>, bool),
}

/// Everything that a replica tells, for ever.
fn ask(address: SocketAddr) -> BoxStream<'static, PeerEvent> {
    let start = (Link::Closed, 0u32);
    futures::stream::unfold(start, move |(link, failures)| async move {
        let (mut stream, is_known) = match link {
            Link::Open(stream, is_known) => (stream, is_known),
            Link::Closed => {
                if failures > 0 {
                    let delay = RETRY.saturating_mul(1 << (failures - 1).min(16));
                    tokio::time::sleep(delay.min(LONGEST_RETRY)).await;
                }
                match connect(address).await {
                    Ok(stream) => (Box::new(stream), false),
                    Err(why) => {
                        let next = (Link::Closed, failures.saturating_add(1));
                        return Some((PeerEvent::Failed(why), next));
                    }
                }
            }
        };
        let why = match stream.message().await {
            Ok(Some(update)) => {
                let event = match is_known {
                    true => PeerEvent::Changed(update),
                    false => PeerEvent::All(update),
                };
                return Some((event, (Link::Open(stream, true), 0)));
            }
            Ok(None) => "it closed the stream".to_owned(),
            Err(status) => said(&status),
        };
        Some((PeerEvent::Failed(why), (Link::Closed, failures.saturating_add(1))))
    })
    .boxed()
}

async fn connect(address: SocketAddr) -> Result<Streaming<v1::SummariesUpdate>, String> {
    let mut client = client(address).await?;
    let asked = client.watch_summaries(v1::WatchSummariesRequest {});
    match tokio::time::timeout(CONNECT, asked).await {
        Ok(answer) => Ok(answer.map_err(|status| said(&status))?.into_inner()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

/// What the proxies of a replica reported of their requests. It has [`GRACE`] to answer.
///
/// # Errors
/// It cannot be asked, or does not answer.
pub(crate) async fn observed_at(
    address: SocketAddr,
    request: v1::ListObservedRequest,
) -> Result<v1::ListObservedResponse, String> {
    let asked = async {
        let answer = client(address).await?.list_observed(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| said(&status))
    };
    let answer = tokio::time::timeout(GRACE, asked).await;
    answer.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

async fn client(address: SocketAddr) -> Result<AdminClient<Channel>, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| with_causes(&error))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|error| with_causes(&error))?;
    Ok(AdminClient::new(channel).max_decoding_message_size(MESSAGE))
}

fn said(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => with_causes(cause),
        None => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice(name: &str, endpoints: &serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": name}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "grpc-xds", "port": 15010}, {"name": "http-monitoring", "port": 15014}],
        }))
        .unwrap()
    }

    fn table(peers: &[(&str, bool)], now: Instant) -> PeerTable {
        let mut table = PeerTable::new(Some("weir-replicas"));
        table.begin(now);
        let found = peers.iter().map(|(name, serving)| {
            ((*name).to_owned(), (SocketAddr::from(([10, 0, 0, 1], 15014)), *serving))
        });
        table.list(found.collect(), now);
        table
    }

    fn of(name: &str, live: u32) -> v1::ObjectSummary {
        let object = v1::ObjectRef {
            kind: "VirtualService".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        v1::ObjectSummary { object: Some(object), live, in_scope: live, ..Default::default() }
    }

    /// Names and counts of a replica's answer, or why it has none.
    fn answer(table: &PeerTable, now: Instant) -> Result<Vec<String>, Instant> {
        let answers = table.answers(now)?.into_iter().map(|answer| match answer.summaries {
            Ok(all) => {
                let all = all.iter().map(|(key, summary)| format!("{}={}", key.name, summary.live));
                format!("{}: {}", answer.name, all.collect::<Vec<_>>().join(" "))
            }
            Err(why) => format!("{}: {why}", answer.name),
        });
        Ok(answers.collect())
    }

    #[test]
    fn replicas_are_found_by_pod_with_their_admin_port() {
        let first = slice(
            "a",
            &json!([
                {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "weir-0"}},
                {"addresses": ["10.0.0.2"], "targetRef": {"kind": "Pod", "name": "weir-1"},
                 "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"], "targetRef": {"kind": "Pod", "name": "weir-2"},
                 "conditions": {"ready": false, "serving": false}},
                {"addresses": ["nonsense"]}, {"addresses": []},
            ]),
        );
        let again = slice(
            "b",
            &json!([{"addresses": ["fd00::2"], "targetRef": {"kind": "Pod", "name": "weir-1"}}]),
        );
        let found = replicas([&first, &again].into_iter(), "weir-0");
        let found: Vec<_> = found
            .iter()
            .map(|(name, (address, serving))| format!("{name} {address} {serving}"))
            .collect();
        assert_eq!(found, ["weir-1 10.0.0.2:15014 true", "weir-2 10.0.0.3:15014 false"]);
    }

    #[test]
    fn a_replica_tells_all_and_then_what_changes() {
        let now = Instant::now();
        let mut table = table(&[("weir-1", true)], now);
        // Until it has answered or failed for a while, nothing can be said.
        assert_eq!(answer(&table, now), Err(now + GRACE));
        let all = v1::SummariesUpdate { objects: vec![of("a", 1), of("b", 1)], deleted: vec![] };
        table.record("weir-1", PeerEvent::All(all), now);
        assert_eq!(answer(&table, now), Ok(vec!["weir-1: a=1 b=1".to_owned()]));
        let deleted = of("a", 1).object.into_iter().collect();
        let update = v1::SummariesUpdate { objects: vec![of("b", 2)], deleted };
        table.record("weir-1", PeerEvent::Changed(update), now);
        assert_eq!(answer(&table, now), Ok(vec!["weir-1: b=2".to_owned()]));
        // After a new connection only what it tells then counts.
        table.record("weir-1", PeerEvent::All(v1::SummariesUpdate::default()), now);
        assert_eq!(answer(&table, now), Ok(vec!["weir-1: ".to_owned()]));
    }

    #[test]
    fn a_replica_that_fails_for_a_while_is_unreachable_unless_it_does_not_serve() {
        let now = Instant::now();
        let late = now + GRACE;
        for (serving, expected) in
            [(true, vec!["weir-1: 10.0.0.1:15014: refused".to_owned()]), (false, vec![])]
        {
            let mut table = table(&[("weir-1", serving)], now);
            table.record("weir-1", PeerEvent::Failed("refused".to_owned()), now);
            assert_eq!(answer(&table, now), Err(late));
            assert_eq!(table.next_change(now), Some(late));
            table.record("weir-1", PeerEvent::Failed("refused".to_owned()), late);
            assert_eq!(answer(&table, late), Ok(expected));
            table.record("weir-1", PeerEvent::All(v1::SummariesUpdate::default()), late);
            assert_eq!(answer(&table, late), Ok(vec!["weir-1: ".to_owned()]));
        }
    }

    #[test]
    fn a_replica_that_never_sends_its_first_answer_is_unreachable_after_the_same_time() {
        let begun = Instant::now();
        let (half, end) = (begun + GRACE / 2, begun + GRACE);
        for (serving, expected) in
            [(true, vec!["weir-1: 10.0.0.1:15014: it does not answer".to_owned()]), (false, vec![])]
        {
            let mut table = table(&[("weir-1", serving)], begun);
            // However often it is looked at, or listed again, the time counts from the first question.
            assert_eq!(answer(&table, begun), Err(end));
            assert_eq!(answer(&table, half), Err(end));
            let address = SocketAddr::from(([10, 0, 0, 1], 15014));
            let found = BTreeMap::from([("weir-1".to_owned(), (address, serving))]);
            assert_eq!(table.list(found, half), []);
            assert_eq!((answer(&table, half), table.next_change(half)), (Err(end), Some(end)));
            assert_eq!(answer(&table, end), Ok(expected));
            assert_eq!(table.next_change(end), None);
            table.record("weir-1", PeerEvent::All(v1::SummariesUpdate::default()), end);
            assert_eq!(answer(&table, end), Ok(vec!["weir-1: ".to_owned()]));
        }
    }

    #[test]
    fn until_the_replicas_are_listed_nothing_is_said_and_if_they_cannot_be_that_is_said() {
        let begun = Instant::now();
        let end = begun + GRACE;
        // A list that fails and one that has no answer at all get the same time.
        for failure in [Some("forbidden"), None] {
            let mut table = PeerTable::new(Some("weir-replicas"));
            assert_eq!(answer(&table, begun), Err(end));
            table.begin(begun);
            assert_eq!(answer(&table, begun), Err(end));
            if let Some(why) = failure {
                table.list_failed(why.to_owned());
            }
            let half = begun + GRACE / 2;
            assert_eq!((answer(&table, half), table.next_change(half)), (Err(end), Some(end)));
            let why = failure
                .unwrap_or("the API server does not answer the list of their EndpointSlices");
            assert_eq!(answer(&table, end).unwrap(), [format!("of an unknown name: {why}")]);
            table.list(BTreeMap::new(), end);
            // A watch that fails later says nothing about who they are.
            table.list_failed("gone".to_owned());
            assert_eq!(answer(&table, end + GRACE), Ok(vec![]));
        }
        assert_eq!(answer(&PeerTable::new(None), begun), Ok(vec![]));
    }
}
