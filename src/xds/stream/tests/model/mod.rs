//! Random histories of a mesh against a simulated Envoy. Objects are written in any order, and the client delays
//! answers, rejects resources and reconnects. None of its routes may ever reference a cluster that it lacks or that
//! still warms.

mod cuts;
mod envoy;
mod mesh;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::resources::{effective, show};
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route, Runtime};
use crate::snapshot::{ResourceType, Snapshot};
use crate::translate::service_cluster_name;
use crate::xds::stream::{Request, Response, Stream, StreamSettings, Variant};
use envoy::{BLIND, Envoy, Got, Setup, is_bad, is_eds, read, references};
use mesh::Mesh;

/// How many steps one run takes unless `WEIR_MODEL_STEPS` says otherwise.
const STEPS: u64 = 120_000;

/// The number of steps after which a history starts over with a new mesh and a new client.
const HISTORY: u64 = 1500;

const SETUPS: [Setup; 8] = [
    Setup { variant: Variant::Delta, separate: false, layers: 0 },
    Setup { variant: Variant::Sotw, separate: false, layers: 0 },
    Setup { variant: Variant::Delta, separate: true, layers: 0 },
    Setup { variant: Variant::Sotw, separate: true, layers: 0 },
    Setup { variant: Variant::Delta, separate: false, layers: 1 },
    Setup { variant: Variant::Sotw, separate: false, layers: 1 },
    Setup { variant: Variant::Delta, separate: true, layers: 1 },
    Setup { variant: Variant::Sotw, separate: true, layers: 1 },
];

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn no_route_ever_references_a_cluster_that_its_client_lacks() {
    let seed = number_from_env("WEIR_MODEL_SEED").unwrap_or(1);
    let steps = number_from_env("WEIR_MODEL_STEPS").unwrap_or(STEPS);
    let mut seen = Seen::default();
    let mut transcript = Xxh3::new();
    for (history, setup) in (0..steps.div_ceil(HISTORY)).zip(SETUPS.into_iter().cycle()) {
        // Without any service Envoy asks for listeners before it ever asks for endpoints.
        let mesh = if history / 8 % 2 == 0 { Mesh::new() } else { Mesh::default() };
        let mut world = World::new(setup, mesh, seed.wrapping_add(history));
        for _ in 0..HISTORY {
            world.step();
        }
        world.calm();
        seen.add(&world.seen);
        transcript.update(&world.transcript.digest().to_le_bytes());
    }
    println!("{seen:?}");
    // Two builds that speak the same protocol print the same digest for the same seed.
    println!("transcript {:016x}", transcript.digest());
    // The test proves nothing unless each of these happens.
    let Seen { held, kept, refusals, moves, returns, warm_returns, weights } = seen;
    assert!(
        [held, kept, refusals, moves, returns, warm_returns, weights]
            .iter()
            .all(|count| *count > 0),
        "{seen:?}"
    );
}

/// What happened in the histories.
#[derive(Debug, Default)]
struct Seen {
    held: u64,
    kept: u64,
    refusals: u64,
    moves: u64,
    returns: u64,
    /// Reconnections of a client while one of its clusters was warming.
    warm_returns: u64,
    /// Runtime layers that were sent.
    weights: u64,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.held += other.held;
        self.kept += other.kept;
        self.refusals += other.refusals;
        self.moves += other.moves;
        self.returns += other.returns;
        self.warm_returns += other.warm_returns;
        self.weights += other.weights;
    }
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    /// True once in `sides` times on average.
    fn in_few(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// The mesh, the stream, the client, and the messages in flight between them.
struct World {
    dice: Dice,
    mesh: Mesh,
    revision: u64,
    stream: Stream,
    envoy: Envoy,
    wire: VecDeque<(ResourceType, Bytes)>,
    /// Hosts for which this stream has sent a version.
    given: BTreeSet<(String, String)>,
    /// Whether the client rejected clusters on this stream without naming them.
    blind: bool,
    begun: Instant,
    now: Instant,
    seen: Seen,
    /// The weight in force of each virtual host with each set of clusters.
    in_force: BTreeMap<(String, String), u32>,
    log: Vec<String>,
    /// A hash of everything that was sent, and when.
    transcript: Xxh3,
}

impl World {
    fn new(setup: Setup, mesh: Mesh, seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            dice: Dice::new(seed),
            mesh,
            revision: 0,
            stream: Stream::new(setup.variant, StreamSettings::default()),
            envoy: Envoy::new(setup),
            wire: VecDeque::new(),
            given: BTreeSet::new(),
            blind: false,
            begun: now,
            now,
            seen: Seen::default(),
            in_force: BTreeMap::new(),
            log: Vec::new(),
            transcript: Xxh3::new(),
        };
        world.publish();
        world
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.log.len() > 120 {
            self.log.drain(..60);
        }
        let at = self.now.duration_since(self.begun).as_millis();
        self.log.push(format!("{at} ms {}", line()));
    }

    fn log(&self) -> String {
        self.log.join("\n")
    }

    fn target(&self) -> &Arc<Snapshot> {
        self.stream.target.as_ref().expect("a state was published")
    }

    fn publish(&mut self) {
        self.revision += 1;
        let snapshot = self.mesh.snapshot(self.revision);
        let revision = self.revision;
        let text: Vec<String> = ResourceType::OF_SNAPSHOT
            .iter()
            .flat_map(|kind| {
                snapshot.get(*kind).values().map(|resource| show(*kind, &resource.bytes()))
            })
            .collect();
        self.note(|| format!("state {revision}: {text:?}"));
        self.stream.on_snapshot(snapshot);
        self.pump();
    }

    fn pump(&mut self) {
        for response in self.stream.responses(self.now) {
            self.send(&response);
        }
        self.seen.held += u64::from(!self.stream.held().is_empty());
        self.seen.kept += u64::from(!self.stream.kept().is_empty());
    }

    fn send(&mut self, response: &Response) {
        let frame = Bytes::from(response.frame.bytes());
        let at = self.now.duration_since(self.begun).as_millis();
        self.transcript.update(&at.to_le_bytes());
        self.transcript.update(&frame);
        let (got, gone, ..) = read(self.envoy.setup.variant, response.kind, frame.clone());
        let text: Vec<_> = got.iter().map(|resource| resource.body.clone()).collect();
        self.note(|| format!("  sent {} {text:?} gone {gone:?}", response.kind.short_name()));
        match response.kind {
            Route => {
                self.seen.moves += 1;
                got.iter().for_each(|table| self.check_first(table));
            }
            Endpoints => got.iter().for_each(|assignment| self.check_drained(assignment)),
            Cluster => self.give_up(&got),
            Runtime => self.seen.weights += 1,
            Listener => {}
        }
        self.wire.push_back((response.kind, frame));
    }

    /// The first version of a host may reference only clusters that are ready or that will never arrive.
    fn check_first(&mut self, table: &Got) {
        let rejected: BTreeSet<String> =
            self.stream.rejected().iter().map(|rejected| rejected.name.to_string()).collect();
        let has = self
            .envoy
            .routes
            .get(&table.name)
            .map(|body| references(Route, body))
            .unwrap_or_default();
        // A client that has neither listeners nor routes and asks for them before clusters, on a separate stream, does
        // not reveal which clusters it is about to ask for. It serves no requests before it has them.
        let initializes = self.envoy.setup.separate
            && self.envoy.from_before.is_empty()
            && !self.stream.asked_for(Cluster);
        for (host, clusters) in references(Route, &table.body) {
            if !self.given.insert((table.name.clone(), host.clone())) {
                continue;
            }
            // A client that resumed may have a version that this stream did not send.
            let had = has.get(&host);
            let early: Vec<_> = clusters
                .iter()
                .filter(|name| {
                    !initializes
                        && !self.envoy.active.contains_key(*name)
                        && had.is_none_or(|had| !had.contains(*name))
                        && !self.may_come_early(name)
                        && self.target().get(Cluster).contains_key(name.as_str())
                        && !rejected.contains(*name)
                })
                .collect();
            assert!(
                early.is_empty(),
                "{host} of {} came before {early:?}\n{}",
                table.name,
                self.log()
            );
        }
    }

    /// Whether weir cannot know that a cluster still warms: on a separate stream Envoy ACKs clusters at once, and it
    /// does not request the endpoints of an external host.
    fn may_come_early(&self, cluster: &str) -> bool {
        self.envoy.setup.separate && !is_eds(cluster)
    }

    /// A cluster that the client's routes reference loses its last endpoints only if the target routes reference it
    /// too. Otherwise the routes must move first.
    fn check_drained(&mut self, assignment: &Got) {
        let name = &assignment.name;
        let serves = self.envoy.active.get(name).is_some_and(|cluster| cluster.serves);
        if !serves || !assignment.body.ends_with(" none") || self.nothing_serves_for(name) {
            return;
        }
        let rejected = self.stream.rejected();
        for (kind, table, host, clusters) in self.envoy.leads() {
            let wanted =
                self.target().get(kind).get(table).map(|wanted| show(kind, &wanted.bytes()));
            let wanted = wanted.map(|body| references(kind, &body)).unwrap_or_default();
            let stays = wanted.get(&host).is_some_and(|to| to.contains(name));
            let held = self.stream.held().iter().any(|held| *held.name == *table)
                || rejected.iter().any(|rejected| *rejected.name == *table);
            // If the old routes are unknown, every cluster that a new route references counts.
            let others = self.envoy.from_before.contains(table) && self.routes_to(name);
            let moves_first =
                clusters.contains(name) && !stays && !held && !others && wanted.contains_key(&host);
            assert!(
                !moves_first,
                "{table} {host} has not left {name}, which loses its endpoints\n{}",
                self.log()
            );
        }
    }

    /// Whether the target listeners and routes reference a cluster.
    fn routes_to(&self, cluster: &str) -> bool {
        let mut all =
            [Listener, Route].into_iter().flat_map(|kind| self.target().get(kind).values());
        all.any(|resource| resource.routes_to(cluster))
    }

    /// Whether there are no endpoints that could substitute for those of a cluster.
    fn nothing_serves_for(&self, cluster: &str) -> bool {
        let whole = service_cluster_name(cluster).unwrap_or_default();
        let endpoints = self.target().get(Endpoints).get(&whole);
        let text =
            endpoints.map(|endpoints| show(Endpoints, &endpoints.bytes())).unwrap_or_default();
        text.is_empty() || text.ends_with(" none") || is_bad(&text)
    }

    fn serve_next(&mut self) -> bool {
        let first = usize::from(self.dice.in_few(2));
        let request =
            self.envoy.out[first].pop_front().or_else(|| self.envoy.out[1 - first].pop_front());
        let Some(request) = request else { return false };
        self.note(|| format!("  asked {request:?}"));
        self.stream.on_request(request).unwrap();
        self.pump();
        true
    }

    fn receive_next(&mut self) -> bool {
        let Some((kind, frame)) = self.wire.pop_front() else {
            return false;
        };
        let rejected = self.envoy.take(kind, frame, &mut self.dice);
        self.seen.refusals += u64::from(rejected.is_some());
        self.blind |= kind == Cluster && rejected.as_deref() == Some(BLIND);
        self.note(|| format!("  client got {}, rejected {rejected:?}", kind.short_name()));
        true
    }

    /// The stream breaks: messages in flight are lost, and the client reconnects.
    fn reconnect(&mut self) {
        self.seen.returns += 1;
        self.seen.warm_returns += u64::from(!self.envoy.warming.is_empty());
        self.wire.clear();
        self.given.clear();
        self.blind = false;
        self.envoy.connect();
        self.stream = Stream::new(self.envoy.setup.variant, StreamSettings::default());
        self.note(|| "client reconnects".to_owned());
        self.publish();
    }

    /// Whether the stream has received the client's first requests.
    fn has_begun(&self) -> bool {
        self.envoy.out.iter().all(VecDeque::is_empty)
    }

    fn step(&mut self) {
        match self.dice.roll(1000) {
            0..=99 => {
                self.mesh.write(&mut self.dice);
                self.publish();
            }
            100..=489 => {
                self.serve_next();
            }
            490..=879 => {
                self.receive_next();
            }
            880..=899 => {
                self.envoy.resolve();
            }
            900..=959 if self.has_begun() => {
                let passed = if self.dice.in_few(4) { self.stream.wake_at() } else { None };
                self.now = passed
                    .unwrap_or(self.now + Duration::from_millis(self.dice.roll(400)))
                    .max(self.now);
                self.pump();
            }
            960..=982 => self.send_stale(),
            983..=993 => self.reconnect(),
            994..=999 => self.calm(),
            _ => {}
        }
        self.check();
    }

    /// Sends a late copy of an answer, as a faulty client might.
    fn send_stale(&mut self) {
        let kind = ResourceType::OF_SNAPSHOT[self.dice.roll(4) as usize];
        let nonce = self.dice.roll(50).to_string();
        let in_flight =
            self.stream.get(kind).pending.as_ref().is_some_and(|pending| pending.nonce == nonce);
        if !self.stream.asked_for(kind) || nonce == self.envoy.nonces[kind.index()] || in_flight {
            return;
        }
        let names = if self.envoy.setup.variant == Variant::Sotw {
            vec!["stale".to_owned()]
        } else {
            Vec::new()
        };
        let type_url = kind.type_url().to_owned();
        self.stream.on_request(Request { type_url, nonce, names, ..Default::default() }).unwrap();
        self.pump();
    }

    /// Weights only ever grow in this mesh, so no weight in force may be smaller than it was before.
    fn check_weights(&mut self) {
        let runtime = self.envoy.runtime();
        for (table, body) in &self.envoy.routes {
            for host in body.split_whitespace().filter(|host| host.contains('@')) {
                let prefix = host.split_once('@').unwrap().1;
                let keys = runtime.iter().filter(|(key, _)| key.starts_with(prefix));
                let sum: u32 = keys.map(|(_, weight)| weight).sum();
                assert!(
                    sum == 0 || sum == 1_000_000,
                    "{host} has weights of {sum}\n{}",
                    self.log()
                );
                let now = effective(host, &runtime);
                let (to, weight) = now.split_once('*').unwrap();
                let weight: u32 = weight.parse().unwrap();
                let before =
                    self.in_force.insert((table.clone(), to.to_owned()), weight).unwrap_or(0);
                assert!(weight >= before, "{table} {to} was {before}, is {weight}\n{}", self.log());
            }
        }
    }

    /// Checks that no listener or host references a cluster that takes no requests.
    fn check(&mut self) {
        self.check_weights();
        let mut broken = Vec::new();
        for (kind, name, host, clusters) in self.envoy.leads() {
            let lacks = clusters.iter().filter(|cluster| {
                !self.envoy.active.contains_key(*cluster)
                    && !self.envoy.is_excused(name, &host, cluster)
                    && !self.may_come_early(cluster)
                    && (!self.envoy.from_before.contains(name)
                        || self.envoy.served_before.contains(*cluster))
            });
            broken.extend(
                lacks.map(|cluster| {
                    format!("{} {name} {host} leads to {cluster}", kind.short_name())
                }),
            );
        }
        assert!(broken.is_empty(), "{broken:?}\n{}", self.log());
    }

    /// Over SotW only known resources can be sent. The client also removes clusters that are left out to find the
    /// rejected one. These clusters cannot be kept for the routes from before this stream.
    fn give_up(&mut self, sent: &[Got]) {
        if self.envoy.setup.variant == Variant::Delta {
            return;
        }
        let lost: Vec<String> = self
            .envoy
            .served_before
            .iter()
            .filter(|name| !sent.iter().any(|got| got.name == **name))
            .filter(|name| {
                let known = service_cluster_name(name)
                    .is_some_and(|whole| self.target().get(Cluster).contains_key(&whole));
                let bad = self.wanted(Cluster, name).is_some_and(|body| is_bad(&body));
                !known || self.blind || bad
            })
            .cloned()
            .collect();
        for name in lost {
            self.envoy.served_before.remove(&name);
        }
    }

    /// Lets everything come to rest, and checks that the client has its target.
    fn calm(&mut self) {
        for turn in 0.. {
            assert!(turn < 3000, "it never comes to rest\n{}", self.log());
            self.serve_next();
            self.check();
            self.receive_next();
            self.check();
            if self.wire.is_empty() && self.has_begun() && !self.envoy.resolve() {
                let Some(at) = self.stream.wake_at() else {
                    break;
                };
                self.now = at.max(self.now);
                self.pump();
            }
        }
        assert_eq!(self.stream.reached(), Some(self.revision.into()), "{}", self.state());
        self.check_rejected();
        self.check_clusters();
        self.check_routes();
        // A rejected resource may be sent again with its accepted parts. Nothing else may be sent twice.
        let all_taken = self.stream.rejected().is_empty();
        self.publish();
        assert!(self.wire.is_empty() || !all_taken, "nothing changed\n{}", self.log());
    }

    fn state(&self) -> String {
        let stream = &self.stream;
        format!("{:?} {:?} {:?}\n{}", stream.clusters, stream.held(), stream.rejected(), self.log())
    }

    fn wanted(&self, kind: ResourceType, name: &str) -> Option<String> {
        self.target().get(kind).get(name).map(|wanted| show(kind, &wanted.bytes()))
    }

    fn check_rejected(&self) {
        for rejected in self.stream.rejected() {
            let kind = ResourceType::ALL
                .into_iter()
                .find(|kind| kind.short_name() == rejected.kind)
                .unwrap();
            let bad = self.wanted(kind, &rejected.name).is_some_and(|body| is_bad(&body));
            // Endpoints of a removed cluster may never have had a valid version.
            assert!(
                bad || self.stream.clusters.draining().contains_key(&rejected.name),
                "{rejected:?}\n{}",
                self.state()
            );
        }
    }

    fn check_clusters(&self) {
        let (envoy, stream) = (&self.envoy, &self.stream);
        for (name, body) in &envoy.warming {
            // A stream that ends at the wrong moment may leave a warming cluster next to an active one that is equal
            // (it changed and changed back), or next to one that the new stream only knows to be removed. Neither does
            // harm.
            let active = envoy.active.get(name);
            let draining = stream.clusters.draining().get(&**name);
            let stranger =
                draining.is_some_and(|kept| kept.endpoints.is_none() && kept.cluster.is_none());
            // A substitute for a cluster that the client has warms for as long as it is kept.
            if stream.clusters.is_substituted(name)
                || active.is_some_and(|active| stranger || active.body == *body)
            {
                continue;
            }
            let endpoints = stream.endpoints(name).map(|wanted| show(Endpoints, &wanted.bytes()));
            assert!(endpoints.is_some_and(|body| is_bad(&body)), "{name} warms\n{}", self.state());
        }
        for name in self.target().get(Cluster).keys() {
            let body = self.wanted(Cluster, name).unwrap();
            let active = envoy.active.get(&**name).map(|active| &active.body);
            let has = envoy.warming.get(&**name).or(active);
            assert!(
                has == Some(&body) || is_bad(&body),
                "{name} is {has:?}, not {body}\n{}",
                self.state()
            );
            let endpoints = self.wanted(Endpoints, name).filter(|endpoints| !is_bad(endpoints));
            if let (Some(active), Some(endpoints)) = (envoy.active.get(&**name), endpoints) {
                let serves = !endpoints.ends_with(" none");
                assert!(
                    active.serves == serves || is_bad(&body),
                    "{name}: {endpoints}\n{}",
                    self.state()
                );
            }
        }
        let used: BTreeSet<String> =
            envoy.leads().into_iter().flat_map(|(.., clusters)| clusters).collect();
        // A client that resumed and rejects the new version of its routes keeps every cluster that the old one may
        // reference.
        let known = stream.session.earlier().is_none();
        for name in envoy.active.keys().chain(envoy.warming.keys()).filter(|_| known) {
            // Over delta a cluster that the client does not report cannot be removed. It stays and does no harm.
            let untold = envoy.setup.variant == Variant::Delta && envoy.untold.contains(name);
            assert!(
                untold
                    || self.target().get(Cluster).contains_key(name.as_str())
                    || used.contains(name),
                "{name} is left\n{}",
                self.state()
            );
        }
    }

    fn check_routes(&self) {
        let held = self.stream.held();
        for (name, body) in &self.envoy.routes {
            let wanted = self.wanted(Route, name).unwrap_or_default();
            // A resuming client that rejects a table keeps its own, of which nothing is known.
            let whole = self.stream.rejected().into_iter().any(|rejected| {
                rejected.kind == "rds"
                    && *rejected.name == **name
                    && rejected.virtual_host.is_none()
            });
            if whole {
                continue;
            }
            let held = held.iter().filter(|held| *held.name == **name);
            let held: Vec<&str> = held.filter_map(|held| held.virtual_host.as_deref()).collect();
            assert_eq!(
                hosts_in_force(body, &self.envoy.runtime(), &held),
                hosts_in_force(&wanted, &BTreeMap::new(), &held),
                "{}",
                self.state()
            );
        }
        for name in self.envoy.listeners.keys() {
            assert!(
                self.target().get(Listener).contains_key(name.as_str()),
                "{name} is left\n{}",
                self.state()
            );
        }
    }
}

/// The virtual hosts of a route configuration with the weights that are in force under this runtime layer, without those
/// that are held back.
fn hosts_in_force(body: &str, layer: &BTreeMap<String, u32>, held: &[&str]) -> Vec<String> {
    let hosts = body.split_whitespace().map(|host| effective(host, layer));
    // A virtual host that the client rejects does not hold back the others.
    hosts
        .filter(|host| {
            let name = host.split('>').next().unwrap();
            name != "bad" && !held.contains(&name)
        })
        .collect()
}
