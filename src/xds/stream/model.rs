//! A random history of a mesh against a simulated Envoy: whatever is written in whatever order, and however the client
//! dawdles, refuses and comes back, no route of it leads to a cluster that it lacks or that still warms.

use super::*;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route};
use crate::snapshot::{ClusterRefs, EncodedVirtualHost, RouteTable};
use bytes::Bytes;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::route::v3 as route;
use prost::Message;

/// Resources as text: type, name, body. A listener's body may end in `>cluster,cluster`; a route configuration's is
/// a list of virtual hosts `name>cluster,cluster*anything`.
pub(super) type Parts<'a> = &'a [(ResourceType, &'a str, &'a str)];

pub(super) fn snapshot(revision: u64, parts: Parts<'_>) -> Arc<Snapshot> {
    let of = |kind: ResourceType| -> Resources {
        let wanted = parts.iter().filter(|(one, ..)| *one == kind);
        wanted.map(|(_, name, body)| resource(kind, name, body)).collect()
    };
    Arc::new(Snapshot::new(revision, ResourceType::ALL.map(of)))
}

fn resource(kind: ResourceType, name: &str, body: &str) -> Arc<Resource> {
    if kind == Route {
        let head = route::RouteConfiguration { name: name.to_owned(), ..Default::default() };
        let mut table = RouteTable::new(head.encode_to_vec().into());
        for host in body.split_whitespace().map(host) {
            let host = Arc::new(EncodedVirtualHost::new(host, Arc::default()));
            table.set(&host.name.clone(), Some(host));
        }
        return Resource::routes(name, table);
    }
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    Resource::leading_to(name, bytes, ClusterRefs::new(led_to(body)), Arc::default())
}

fn led_to(text: &str) -> impl Iterator<Item = &str> {
    let list = text.split_once('>').map_or("", |(_, list)| list);
    list.split('*').next().unwrap_or_default().split(',')
}

fn host(text: &str) -> route::VirtualHost {
    let to = |cluster: &str| route::Route {
        name: text.to_owned(),
        action: Some(route::route::Action::Route(route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    };
    let name = text.split('>').next().unwrap_or_default().to_owned();
    route::VirtualHost {
        domains: vec![name.clone()],
        name,
        routes: led_to(text).map(to).collect(),
        ..Default::default()
    }
}

/// The text that an encoded resource was made of.
pub(super) fn show(kind: ResourceType, bytes: &[u8]) -> String {
    if kind == Endpoints
        && let Ok(none) = endpoint::ClusterLoadAssignment::decode(bytes)
    {
        return format!("{} none", none.cluster_name);
    }
    if kind != Route {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let message = route::RouteConfiguration::decode(bytes).unwrap();
    let hosts: Vec<_> = message.virtual_hosts.into_iter().map(|host| host.routes[0].name.clone()).collect();
    hosts.join(" ")
}

/// How many steps one run takes unless `WEIR_MODEL_STEPS` says otherwise.
const STEPS: u64 = 120_000;

/// Steps after which a history starts over with a new mesh and a new client.
const HISTORY: u64 = 1500;

#[test]
fn no_route_ever_leads_to_a_cluster_that_its_client_lacks() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ());
    let seed = number("WEIR_MODEL_SEED").unwrap_or(random);
    println!("WEIR_MODEL_SEED={seed}");
    let steps = number("WEIR_MODEL_STEPS").unwrap_or(STEPS);
    let mut seen = Seen::default();
    for history in 0..steps.div_ceil(HISTORY) {
        let variant = if history % 2 == 0 { Variant::Delta } else { Variant::Sotw };
        let mut world = World::new(variant, seed.wrapping_add(history));
        for _ in 0..HISTORY {
            world.step();
        }
        world.calm();
        seen.add(&world.seen);
    }
    println!("{seen:?}");
    // A history in which nothing of the kind happens would prove nothing.
    assert!(seen.held > 0 && seen.kept > 0 && seen.refusals > 0 && seen.moves > 0 && seen.returns > 0, "{seen:?}");
}

/// What came up in the histories.
#[derive(Debug, Default)]
struct Seen {
    held: u64,
    kept: u64,
    refusals: u64,
    moves: u64,
    returns: u64,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.held += other.held;
        self.kept += other.kept;
        self.refusals += other.refusals;
        self.moves += other.moves;
        self.returns += other.returns;
    }
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// What is written: services with subsets, virtual hosts that lead to some of them, TCP listeners.
struct Mesh {
    /// Service and subset (0 is the service as a whole) to the policy of its cluster.
    clusters: BTreeMap<(u64, u64), u64>,
    endpoints: BTreeMap<u64, u64>,
    /// Route configuration and host to what it leads to.
    hosts: BTreeMap<(u64, u64), String>,
    tcp: BTreeMap<u64, String>,
    /// Names of resources that the client refuses.
    bad: BTreeSet<(ResourceType, String)>,
}

fn cluster_name(service: u64, subset: u64) -> String {
    format!("outbound|80|v{subset}|service-{service}")
}

impl Mesh {
    fn new() -> Self {
        let clusters = BTreeMap::from([((0, 0), 0), ((0, 1), 0)]);
        let hosts = BTreeMap::from([((80, 0), cluster_name(0, 0))]);
        let (endpoints, tcp, bad) = Default::default();
        Self { clusters, endpoints, hosts, tcp, bad }
    }

    fn write(&mut self, dice: &mut Dice) {
        let any = |dice: &mut Dice| (dice.roll(3), dice.roll(4));
        match dice.roll(20) {
            0..=3 => {
                self.clusters.entry(any(dice)).or_insert(0);
            }
            4..=6 => {
                self.clusters.remove(&any(dice));
            }
            7 => {
                if let Some(policy) = self.clusters.get_mut(&any(dice)) {
                    *policy += 1;
                }
            }
            8..=9 => *self.endpoints.entry(dice.roll(3)).or_default() += 1,
            10..=14 => {
                let mut to: Vec<_> = (0..=dice.roll(2)).map(|_| any(dice)).collect();
                to.dedup();
                let to: Vec<_> = to.into_iter().map(|(service, subset)| cluster_name(service, subset)).collect();
                let weight = dice.roll(100);
                self.hosts.insert((80 + dice.roll(2), dice.roll(4)), format!("{}*{weight}", to.join(",")));
            }
            15 => {
                self.hosts.remove(&(80 + dice.roll(2), dice.roll(4)));
            }
            16 => {
                let (service, subset) = any(dice);
                self.tcp.insert(dice.roll(2), cluster_name(service, subset));
            }
            17 => {
                self.tcp.remove(&dice.roll(2));
            }
            18 if dice.one_in(2) => {
                let (service, subset) = any(dice);
                self.bad.insert(match dice.roll(5) {
                    0 | 1 => (Cluster, cluster_name(service, subset)),
                    2 => (Endpoints, cluster_name(service, subset)),
                    3 => (Route, (80 + dice.roll(2)).to_string()),
                    _ => (Listener, format!("tcp-{}", dice.roll(2))),
                });
            }
            _ => {
                self.bad.pop_first();
            }
        }
    }

    fn snapshot(&self, revision: u64) -> Arc<Snapshot> {
        let mut parts = vec![(Cluster, "fixed".to_owned(), "fixed".to_owned())];
        for ((service, subset), policy) in &self.clusters {
            let name = cluster_name(*service, *subset);
            let generation = self.endpoints.get(service).unwrap_or(&0);
            parts.push((Cluster, name.clone(), format!("{name} p{policy}")));
            parts.push((Endpoints, name.clone(), format!("{name} e{generation}")));
        }
        let mut tables: BTreeMap<String, String> = BTreeMap::new();
        for ((table, host), to) in &self.hosts {
            *tables.entry(table.to_string()).or_default() += &format!("host-{host}>{to} ");
        }
        for (table, hosts) in tables {
            parts.push((Listener, format!("http-{table}"), format!("http {table}>fixed")));
            parts.push((Route, table, hosts));
        }
        parts.extend(self.tcp.iter().map(|(n, to)| (Listener, format!("tcp-{n}"), format!("tcp-{n} tcp>{to}"))));
        for (kind, name, body) in &mut parts {
            if self.bad.contains(&(*kind, name.clone())) {
                *body = if *kind == Route { format!("{body} bad>fixed") } else { format!("bad {body}") };
            }
        }
        let parts: Vec<_> = parts.iter().map(|(kind, name, body)| (*kind, &**name, &**body)).collect();
        snapshot(revision, &parts)
    }
}

/// One resource of a response, as the client reads it.
struct Got {
    name: String,
    body: String,
    version: String,
}

/// An Envoy as far as clusters, endpoints, listeners and routes go.
struct Envoy {
    variant: Variant,
    active: BTreeMap<String, String>,
    warming: BTreeMap<String, String>,
    listeners: BTreeMap<String, String>,
    routes: BTreeMap<String, String>,
    names: [BTreeSet<String>; 4],
    versions: [BTreeMap<String, String>; 4],
    nonces: [String; 4],
    subscribed: [bool; 4],
    /// Listeners and hosts whose first form led to what was not there, and to what.
    excused: BTreeMap<(String, String), BTreeSet<String>>,
    /// Listeners and route configurations of which it is unknown how far they are since a stream ended.
    forgotten: BTreeSet<String>,
    out: std::collections::VecDeque<Request>,
    /// Clusters that it took from a response which it refused as a whole, so that they may go again.
    doubtful: BTreeSet<String>,
    /// Answers to clusters, which do not go out before all of these have warmed.
    paused: Vec<Request>,
}

fn is_eds(cluster: &str) -> bool {
    cluster.starts_with("outbound|")
}

/// The parts of a listener or a route configuration that lead somewhere: name and clusters.
fn forms(kind: ResourceType, body: &str) -> BTreeMap<String, BTreeSet<String>> {
    let to = |text: &str| led_to(text).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if kind != Route {
        return BTreeMap::from([(String::new(), to(body))]);
    }
    body.split_whitespace().map(|host| (host.split('>').next().unwrap().to_owned(), to(host))).collect()
}

impl Envoy {
    fn new(variant: Variant) -> Self {
        let mut envoy = Self {
            variant,
            active: BTreeMap::new(),
            warming: BTreeMap::new(),
            listeners: BTreeMap::new(),
            routes: BTreeMap::new(),
            names: Default::default(),
            versions: Default::default(),
            nonces: Default::default(),
            subscribed: [true, false, true, false],
            excused: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            out: std::collections::VecDeque::new(),
            doubtful: BTreeSet::new(),
            paused: Vec::new(),
        };
        envoy.connect();
        envoy
    }

    fn connect(&mut self) {
        self.out.clear();
        self.paused.clear();
        self.nonces = Default::default();
        for kind in ResourceType::ALL.into_iter().filter(|kind| self.subscribed[kind.index()]) {
            let i = kind.index();
            let mut request = Request { type_url: kind.type_url().into(), ..Default::default() };
            request.names = self.names[i].iter().cloned().collect();
            if self.variant == Variant::Delta {
                request.initial_versions = self.versions[i].clone();
            } else {
                request.version = self.versions[i].get("").cloned().unwrap_or_default();
            }
            self.out.push_back(request);
        }
    }

    fn ask(&mut self, kind: ResourceType, now: BTreeSet<String>, even_if_same: bool) {
        let i = kind.index();
        let before = std::mem::replace(&mut self.names[i], now);
        let now = &self.names[i];
        if before == *now && !(even_if_same && self.variant == Variant::Sotw && self.subscribed[i]) {
            return;
        }
        self.subscribed[i] = true;
        let mut request = Request { type_url: kind.type_url().into(), ..Default::default() };
        match self.variant {
            Variant::Sotw => {
                request.names = now.iter().cloned().collect();
                request.nonce.clone_from(&self.nonces[i]);
            }
            Variant::Delta => {
                request.names = now.difference(&before).cloned().collect();
                request.unsubscribe = before.difference(now).cloned().collect();
                self.versions[i].retain(|name, _| now.contains(name));
            }
        }
        self.out.push_back(request);
    }

    /// Takes a response in, and answers it.
    fn take(&mut self, kind: ResourceType, frame: Bytes, dice: &mut Dice) -> bool {
        let i = kind.index();
        let (mut got, mut gone, nonce, version) = read(self.variant, kind, frame);
        self.nonces[i].clone_from(&nonce);
        let (bad, good): (Vec<_>, Vec<_>) =
            std::mem::take(&mut got).into_iter().partition(|one| one.body.contains("bad"));
        let mut error = None;
        if !bad.is_empty() {
            let list: Vec<_> = bad.iter().map(|one| format!("{}: is bad", one.name)).collect();
            error = Some(if dice.one_in(2) { list.join(", ") } else { "something in it is bad".to_owned() });
        }
        // Envoy takes the good clusters and listeners of a response that it refuses for a bad one, unless it could
        // not even read that.
        let reads = bad.is_empty() || (kind.has_wildcard() && dice.one_in(2));
        if reads {
            if self.variant == Variant::Sotw && kind.has_wildcard() {
                let keep: BTreeSet<&String> = good.iter().chain(&bad).map(|one| &one.name).collect();
                let had: Vec<&String> = match kind {
                    Cluster => self.active.keys().chain(self.warming.keys()).collect(),
                    _ => self.listeners.keys().collect(),
                };
                gone = had.into_iter().filter(|name| !keep.contains(name)).cloned().collect();
            }
            if kind == Cluster {
                for one in &good {
                    if error.is_none() {
                        self.doubtful.remove(&one.name);
                    } else if !self.active.contains_key(&one.name) {
                        self.doubtful.insert(one.name.clone());
                    }
                }
            }
            self.apply(kind, &good, &gone);
            if error.is_none() {
                if self.variant == Variant::Delta {
                    // Envoy leaves alone what it did not ask for.
                    let names = &self.names[i];
                    let wanted = good.into_iter().filter(|one| kind.has_wildcard() || names.contains(&one.name));
                    self.versions[i].extend(wanted.map(|one| (one.name, one.version)));
                    gone.iter().for_each(|name| {
                        self.versions[i].remove(name);
                    });
                } else {
                    self.versions[i].insert(String::new(), version);
                }
            }
        }
        let refused = error.is_some();
        let mut request = Request { type_url: kind.type_url().into(), nonce, error, ..Default::default() };
        if self.variant == Variant::Sotw {
            request.names = self.names[i].iter().cloned().collect();
            request.version = self.versions[i].get("").cloned().unwrap_or_default();
        }
        if kind == Cluster {
            self.paused.push(request);
            self.resume();
        } else {
            self.out.push_back(request);
        }
        refused
    }

    fn resume(&mut self) {
        if self.warming.is_empty() {
            self.out.extend(self.paused.drain(..));
        }
    }

    fn apply(&mut self, kind: ResourceType, good: &[Got], gone: &[String]) {
        match kind {
            Cluster => {
                let mut changed = false;
                for one in good {
                    let had = self.warming.get(&one.name).or_else(|| self.active.get(&one.name));
                    if had == Some(&one.body) {
                        continue;
                    }
                    changed = true;
                    let into = if is_eds(&one.name) { &mut self.warming } else { &mut self.active };
                    into.insert(one.name.clone(), one.body.clone());
                }
                for name in gone {
                    self.active.remove(name);
                    self.warming.remove(name);
                }
                let all = self.active.keys().chain(self.warming.keys());
                let names = all.filter(|name| is_eds(name)).cloned().collect();
                // SotW asks once more for a cluster that changed; delta is subscribed already and does not.
                self.ask(Endpoints, names, changed);
            }
            Endpoints => {
                for one in good {
                    if let Some(body) = self.warming.remove(&one.name) {
                        self.active.insert(one.name.clone(), body);
                    }
                }
                self.resume();
            }
            Listener => {
                for one in good {
                    self.excuse(kind, &one.name, &one.body);
                    self.listeners.insert(one.name.clone(), one.body.clone());
                }
                gone.iter().for_each(|name| {
                    self.listeners.remove(name);
                });
                let tables = self.listeners.values().filter_map(|body| body.strip_prefix("http "));
                let names: BTreeSet<String> = tables.map(|text| text.split('>').next().unwrap().to_owned()).collect();
                self.routes.retain(|name, _| names.contains(name));
                self.ask(Route, names, false);
            }
            Route => {
                for one in good.iter().filter(|one| self.names[kind.index()].contains(&one.name)).collect::<Vec<_>>() {
                    self.excuse(kind, &one.name, &one.body);
                    self.routes.insert(one.name.clone(), one.body.clone());
                }
            }
        }
        let there = |name: &String| self.active.contains_key(name) && !self.doubtful.contains(name);
        self.excused.values_mut().for_each(|clusters| clusters.retain(|name| !there(name)));
    }

    /// What comes up for the first time may lead to what is not there: there was nothing to hold on to.
    fn excuse(&mut self, kind: ResourceType, name: &str, body: &str) {
        let before = match kind {
            Route => self.routes.get(name),
            _ => self.listeners.get(name),
        };
        let before =
            before.map(|body| forms(kind, body)).filter(|_| !self.forgotten.contains(name)).unwrap_or_default();
        self.forgotten.remove(name);
        for (host, clusters) in forms(kind, body) {
            let lacks = clusters.into_iter().filter(|cluster| !self.active.contains_key(cluster));
            let key = (name.to_owned(), host.clone());
            if before.contains_key(&host) {
                let lacks: BTreeSet<_> = lacks.collect();
                self.excused.entry(key).or_default().retain(|cluster| lacks.contains(cluster));
            } else {
                self.excused.insert(key, lacks.collect());
            }
        }
    }

    /// Every listener and host that leads to a cluster which takes no requests.
    fn broken(&self) -> Vec<String> {
        let listeners = self.listeners.iter().map(|(name, body)| (Listener, name, body));
        let routes = self.routes.iter().map(|(name, body)| (Route, name, body));
        let mut broken = Vec::new();
        for (kind, name, body) in listeners.chain(routes).filter(|(_, name, _)| !self.forgotten.contains(*name)) {
            for (host, clusters) in forms(kind, body) {
                let excused = self.excused.get(&(name.clone(), host.clone()));
                let lacks = clusters.iter().filter(|cluster| {
                    !self.active.contains_key(*cluster) && !excused.is_some_and(|excused| excused.contains(*cluster))
                });
                broken.extend(lacks.map(|cluster| format!("{} {name} {host} leads to {cluster}", kind.short_name())));
            }
        }
        broken
    }
}

fn read(variant: Variant, kind: ResourceType, frame: Bytes) -> (Vec<Got>, Vec<String>, String, String) {
    use envoy_types::pb::envoy::service::discovery::v3 as pb;
    match variant {
        Variant::Delta => {
            let message = pb::DeltaDiscoveryResponse::decode(frame).unwrap();
            let got = message.resources.into_iter().map(|one| {
                let body = show(kind, &one.resource.unwrap().value);
                Got { name: one.name, body, version: one.version }
            });
            (got.collect(), message.removed_resources, message.nonce, String::new())
        }
        Variant::Sotw => {
            let message = pb::DiscoveryResponse::decode(frame).unwrap();
            let got = message.resources.into_iter().map(|any| {
                let body = show(kind, &any.value);
                let name = match kind {
                    Route => route::RouteConfiguration::decode(&*any.value).unwrap().name,
                    _ => {
                        let text = body.strip_prefix("bad ").unwrap_or(&body);
                        let word = text.split(' ').next().unwrap();
                        let table = text.strip_prefix("http ").map(|rest| rest.split('>').next().unwrap());
                        table.map_or_else(|| word.to_owned(), |table| format!("http-{table}"))
                    }
                };
                Got { name, body, version: String::new() }
            });
            (got.collect(), Vec::new(), message.nonce, message.version_info)
        }
    }
}

/// The mesh, the stream and the client, and what is on its way between them.
struct World {
    dice: Dice,
    mesh: Mesh,
    revision: u64,
    stream: Stream,
    envoy: Envoy,
    wire: std::collections::VecDeque<(ResourceType, Bytes)>,
    /// Hosts that this stream has given a form.
    given: BTreeSet<(String, String)>,
    now: Instant,
    seen: Seen,
    log: Vec<String>,
}

impl World {
    fn new(variant: Variant, seed: u64) -> Self {
        let mut world = Self {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            mesh: Mesh::new(),
            revision: 0,
            stream: Stream::new(variant, Settings::default()),
            envoy: Envoy::new(variant),
            wire: Default::default(),
            given: BTreeSet::new(),
            now: Instant::now(),
            seen: Seen::default(),
            log: Vec::new(),
        };
        world.publish();
        world
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.log.len() > 80 {
            self.log.drain(..40);
        }
        let line = line();
        self.log.push(line);
    }

    fn publish(&mut self) {
        self.revision += 1;
        let snapshot = self.mesh.snapshot(self.revision);
        let revision = self.revision;
        let text: Vec<String> = ResourceType::ALL
            .iter()
            .flat_map(|kind| snapshot.get(*kind).values().map(|one| show(*kind, &one.bytes())))
            .collect();
        self.note(|| format!("state {revision}: {text:?}"));
        self.stream.on_snapshot(snapshot);
        self.pump();
    }

    fn pump(&mut self) {
        for response in self.stream.responses(self.now) {
            let frame = Bytes::from(response.frame.bytes());
            let (got, gone, ..) = read(self.envoy.variant, response.kind, frame.clone());
            let text: Vec<_> = got.iter().map(|one| one.body.clone()).collect();
            self.note(|| format!("  sent {} {text:?} gone {gone:?}", response.kind.short_name()));
            if response.kind == Route {
                self.seen.moves += 1;
                got.iter().for_each(|one| self.check_first(one));
            }
            self.wire.push_back((response.kind, frame));
        }
        self.seen.held += u64::from(!self.stream.held().is_empty());
        self.seen.kept += u64::from(!self.stream.kept().is_empty());
    }

    /// What never had a form may lead only to what is there, or to what nothing will bring.
    fn check_first(&mut self, table: &Got) {
        let refused: BTreeSet<String> = self.stream.refused().iter().map(|one| one.name.to_string()).collect();
        let has = self.envoy.routes.get(&table.name).map(|body| forms(Route, body)).unwrap_or_default();
        for (host, clusters) in forms(Route, &table.body) {
            if !self.given.insert((table.name.clone(), host.clone())) {
                continue;
            }
            // A client that came back may have a form that this stream did not give it.
            let had = |name: &String| has.get(&host).is_some_and(|had| had.contains(name));
            let target = self.stream.target.as_ref().unwrap();
            let early = |name: &&String| {
                !self.envoy.active.contains_key(*name)
                    && !had(name)
                    && target.get(Cluster).contains_key(name.as_str())
                    && !refused.contains(*name)
            };
            let early: Vec<_> = clusters.iter().filter(early).collect();
            assert!(early.is_empty(), "{host} of {} came before {early:?}\n{}", table.name, self.log.join("\n"));
        }
    }

    fn serve_one(&mut self) {
        if let Some(request) = self.envoy.out.pop_front() {
            self.note(|| format!("  asked {request:?}"));
            self.stream.on_request(request).unwrap();
            self.pump();
        }
    }

    fn receive_one(&mut self) {
        if let Some((kind, frame)) = self.wire.pop_front() {
            let refused = self.envoy.take(kind, frame, &mut self.dice);
            self.seen.refusals += u64::from(refused);
            self.note(|| format!("  client took {}, refused {refused}", kind.short_name()));
        }
    }

    fn come_back(&mut self) {
        self.seen.returns += 1;
        let variant = self.envoy.variant;
        self.wire.clear();
        self.given.clear();
        self.envoy.connect();
        // What a route led to is not known to a new stream; in SotW nor is what clusters there were.
        let all = self.envoy.routes.keys().chain(self.envoy.listeners.keys()).cloned();
        self.envoy.forgotten = all.collect();
        self.stream = Stream::new(variant, Settings::default());
        self.note(|| "client comes back".to_owned());
        self.publish();
    }

    fn step(&mut self) {
        match self.dice.roll(1000) {
            0..=99 => {
                self.mesh.write(&mut self.dice);
                self.publish();
            }
            100..=499 => self.serve_one(),
            500..=899 => self.receive_one(),
            900..=959 => {
                let passed = if self.dice.one_in(4) { self.stream.wake_at() } else { None };
                self.now = passed.unwrap_or(self.now + Duration::from_millis(self.dice.roll(400))).max(self.now);
                self.pump();
            }
            960..=989 => {
                let kind = ResourceType::ALL[self.dice.roll(4) as usize];
                let nonce = self.dice.roll(50).to_string();
                // A late copy of an answer, as a client that is out of order would send it.
                if self.stream.asked_for(kind) && nonce != self.envoy.nonces[kind.index()] {
                    let in_flight =
                        self.stream.get(kind).pending.as_ref().is_some_and(|pending| pending.nonce == nonce);
                    if !in_flight {
                        let names =
                            if self.envoy.variant == Variant::Sotw { vec!["stale".to_owned()] } else { Vec::new() };
                        let type_url = kind.type_url().to_owned();
                        self.stream.on_request(Request { type_url, nonce, names, ..Default::default() }).unwrap();
                        self.pump();
                    }
                }
            }
            990..=993 => self.come_back(),
            _ => self.calm(),
        }
        self.check();
    }

    fn check(&self) {
        let broken = self.envoy.broken();
        assert!(broken.is_empty(), "{broken:?}\n{}", self.log.join("\n"));
    }

    /// Lets everything come to rest, and looks whether the client has what it is to have.
    fn calm(&mut self) {
        for turn in 0.. {
            assert!(turn < 3000, "it never comes to rest\n{}", self.log.join("\n"));
            self.serve_one();
            self.check();
            self.receive_one();
            self.check();
            if self.wire.is_empty() && self.envoy.out.is_empty() {
                let Some(at) = self.stream.wake_at() else { break };
                self.now = at.max(self.now);
                self.pump();
            }
        }
        let log = || {
            format!(
                "{:?} {:?} {:?}\n{}",
                self.stream.kept,
                self.stream.held(),
                self.stream.refused(),
                self.log.join("\n")
            )
        };
        assert_eq!(self.stream.reached(), Some(self.revision), "{}", log());
        let target = self.stream.target.clone().unwrap();
        let text = |kind: ResourceType, name: &str| target.get(kind).get(name).map(|one| show(kind, &one.bytes()));
        for refused in self.stream.refused() {
            let kind = ResourceType::ALL.into_iter().find(|kind| kind.short_name() == refused.kind).unwrap();
            let bad = text(kind, &refused.name).is_some_and(|body| body.contains("bad"));
            // Endpoints of a cluster that is dropped may have had no good form.
            assert!(bad || self.stream.kept.contains_key(&refused.name), "{refused:?}\n{}", log());
        }
        let envoy = &self.envoy;
        // A stream that ends at the wrong moment leaves behind one that warms beside the very same that is active (it
        // changed and changed back), or beside one of which the new stream knows only that it is to go. Neither harms.
        let odd = |name: &str, body: &String| {
            let kept = self.stream.kept.get(name).filter(|kept| kept.endpoints.is_none());
            let stranger = kept.is_some_and(|kept| kept.cluster.is_none());
            // What stands in for one that it has warms for as long as it is kept.
            self.stream.stand_ins.contains_key(name)
                || envoy.active.get(name).is_some_and(|active| stranger || active == body)
        };
        for (name, _) in envoy.warming.iter().filter(|(name, body)| !odd(name, body)) {
            let endpoints = self.stream.endpoints(name).map(|one| show(Endpoints, &one.bytes()));
            assert!(endpoints.is_some_and(|body| body.contains("bad")), "{name} warms\n{}", log());
        }
        for name in target.get(Cluster).keys() {
            let body = text(Cluster, name).unwrap();
            let has = envoy.warming.get(&**name).or_else(|| envoy.active.get(&**name));
            assert!(has == Some(&body) || body.contains("bad"), "{name} is {has:?}, not {body}\n{}", log());
        }
        let used: BTreeSet<String> = envoy
            .routes
            .values()
            .flat_map(|body| forms(Route, body))
            .chain(envoy.listeners.values().flat_map(|body| forms(Listener, body)))
            .flat_map(|(_, clusters)| clusters)
            .collect();
        // A client that came back and refuses the new form of its routes keeps all that the old one may lead to.
        for name in envoy.active.keys().chain(envoy.warming.keys()).filter(|_| self.stream.routes_known) {
            assert!(
                target.get(Cluster).contains_key(name.as_str()) || used.contains(name),
                "{name} is left\n{}",
                log()
            );
        }
        for (name, body) in &envoy.routes {
            let wanted = text(Route, name).unwrap_or_default();
            if wanted.contains("bad") {
                continue;
            }
            let held = self.stream.held();
            let held =
                |host: &str| held.iter().any(|one| *one.name == **name && one.virtual_host.as_deref() == Some(host));
            let plain = |text: &str| -> Vec<String> {
                let hosts = text.split_whitespace().map(str::to_owned);
                hosts.filter(|host| !held(host.split('>').next().unwrap())).collect()
            };
            assert_eq!(plain(body), plain(&wanted), "{}", log());
        }
        for name in envoy.listeners.keys() {
            assert!(target.get(Listener).contains_key(name.as_str()), "{name} is left\n{}", log());
        }
        // What was refused may be put together anew from what is left; all else is not to be sent a second time.
        let all_taken = self.stream.refused().is_empty();
        self.publish();
        assert!(self.wire.is_empty() || !all_taken, "nothing changed\n{}", self.log.join("\n"));
    }
}
