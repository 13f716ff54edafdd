//! A simulated Envoy: its clusters, endpoints, listeners and routes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use envoy_types::pb::envoy::service::runtime::v3 as runtime;
use prost::Message;

use super::super::resources::{next_references, show};
use super::Dice;
use crate::snapshot::ResourceType;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route, Runtime};
use crate::xds::stream::{Request, Variant, runtime_layers};

/// How an Envoy is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub variant: Variant,
    /// Whether it has a separate stream for clusters in addition to the aggregated one. It does not pause the separate
    /// one.
    pub separate: bool,
    /// The number of runtime layers from which it takes weights.
    pub layers: usize,
}

/// One resource of a response, as the client reads it.
pub(crate) struct Got {
    pub name: String,
    pub body: String,
    version: String,
}

/// A cluster that takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Active {
    pub body: String,
    /// Whether it has endpoints.
    pub serves: bool,
}

pub(crate) struct Envoy {
    pub setup: Setup,
    pub active: BTreeMap<String, Active>,
    pub warming: BTreeMap<String, String>,
    pub listeners: BTreeMap<String, String>,
    pub routes: BTreeMap<String, String>,
    names: [BTreeSet<String>; 5],
    versions: [BTreeMap<String, String>; 5],
    pub nonces: [String; 5],
    /// The runtime layers.
    layers: BTreeMap<String, BTreeMap<String, u32>>,
    /// The types that it asks for, in the order of the first requests.
    order: Vec<ResourceType>,
    /// The types that it has asked for on this stream.
    asked: BTreeSet<ResourceType>,
    /// Listeners and hosts whose first version referenced missing clusters, with those clusters.
    excused: BTreeMap<(String, String), BTreeSet<String>>,
    /// Listeners and route configurations that it has had since before this stream.
    pub from_before: BTreeSet<String>,
    /// Clusters that took requests when this stream began, and must be kept for the routes from before.
    pub served_before: BTreeSet<String>,
    /// Clusters that were not reported when this stream began: Envoy does not report what it accepted from a response
    /// that it rejected for something else, and does not request the endpoints of an external host.
    pub untold: BTreeSet<String>,
    /// Its requests that were not delivered yet; the second queue is that of the separate stream for clusters.
    pub out: [VecDeque<Request>; 2],
    /// Clusters that it accepted from a response that it rejected, so that they may be removed again.
    doubtful: BTreeSet<String>,
    /// Answers to responses with clusters; they are not sent until all of these have warmed.
    paused: Vec<Request>,
    /// Whether it has ever accepted clusters.
    has_clusters: bool,
}

/// An error message that names no resource.
pub(crate) const BLIND: &str = "something in it is bad";

pub(crate) fn is_eds(cluster: &str) -> bool {
    cluster.starts_with("outbound|")
}

fn is_external(cluster: &str) -> bool {
    cluster.starts_with("external-")
}

/// Whether the text of a resource makes the client reject it.
pub(crate) fn is_bad(text: &str) -> bool {
    text.contains("bad ") || text.contains("bad>")
}

/// The parts of a listener or a route configuration that reference clusters: name and clusters.
pub(crate) fn references(kind: ResourceType, body: &str) -> BTreeMap<String, BTreeSet<String>> {
    if kind != Route {
        return BTreeMap::from([(String::new(), cluster_names(body))]);
    }
    body.split_whitespace()
        .map(|host| (host.split('>').next().unwrap().to_owned(), cluster_names(host)))
        .collect()
}

/// The clusters that the text of a listener or virtual host references.
fn cluster_names(text: &str) -> BTreeSet<String> {
    next_references(text).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

impl Envoy {
    pub(crate) fn new(setup: Setup) -> Self {
        let mut envoy = Self {
            setup,
            active: BTreeMap::new(),
            warming: BTreeMap::new(),
            listeners: BTreeMap::new(),
            routes: BTreeMap::new(),
            names: Default::default(),
            versions: Default::default(),
            nonces: Default::default(),
            layers: BTreeMap::new(),
            order: vec![Cluster],
            asked: BTreeSet::new(),
            excused: BTreeMap::new(),
            from_before: BTreeSet::new(),
            served_before: BTreeSet::new(),
            untold: BTreeSet::new(),
            out: Default::default(),
            doubtful: BTreeSet::new(),
            paused: Vec::new(),
            has_clusters: false,
        };
        let layers = runtime_layers(Variant::Delta).iter().take(setup.layers);
        envoy.names[Runtime.index()].extend(layers.map(ToString::to_string));
        if setup.layers > 0 {
            envoy.order.insert(0, Runtime);
        }
        envoy.connect();
        envoy
    }

    /// The runtime values in force.
    pub(crate) fn runtime(&self) -> BTreeMap<String, u32> {
        let mut all = BTreeMap::new();
        for (key, weight) in self.layers.values().flatten() {
            assert!(all.insert(key.clone(), *weight).is_none(), "{key} is in two layers");
        }
        all
    }

    /// Opens a new stream. Envoy requests everything that it requested before, but no clusters while one warms.
    pub(crate) fn connect(&mut self) {
        self.out = Default::default();
        self.paused.clear();
        self.asked.clear();
        self.nonces = Default::default();
        self.from_before = self.routes.keys().chain(self.listeners.keys()).cloned().collect();
        self.served_before = self
            .active
            .iter()
            .filter(|(_, cluster)| cluster.serves)
            .map(|(name, _)| name.clone())
            .collect();
        self.untold = self
            .active
            .keys()
            .chain(self.warming.keys())
            .filter(|name| !is_eds(name) && !self.versions[Cluster.index()].contains_key(*name))
            .cloned()
            .collect();
        for kind in self.order.clone() {
            if !(kind == Cluster && self.pauses()) {
                self.begin(kind);
            }
        }
    }

    fn pauses(&self) -> bool {
        !self.setup.separate && !self.warming.is_empty()
    }

    /// The first request for a type on this stream.
    fn begin(&mut self, kind: ResourceType) {
        let i = kind.index();
        let mut request = Request { type_url: kind.type_url().into(), ..Default::default() };
        request.names = self.names[i].iter().cloned().collect();
        if self.setup.variant == Variant::Delta {
            request.initial_versions = self.versions[i].clone();
        } else {
            request.version = self.versions[i].get("").cloned().unwrap_or_default();
        }
        self.asked.insert(kind);
        self.say(kind, request);
    }

    fn say(&mut self, kind: ResourceType, request: Request) {
        let alone = self.setup.separate && kind == Cluster;
        self.out[usize::from(alone)].push_back(Request { alone, ..request });
    }

    fn ask(&mut self, kind: ResourceType, now: BTreeSet<String>, even_if_same: bool) {
        let i = kind.index();
        let before = std::mem::replace(&mut self.names[i], now);
        let now = &self.names[i];
        if !self.asked.contains(&kind) {
            if !now.is_empty() {
                self.order.push(kind);
                self.begin(kind);
            }
            return;
        }
        if before == *now && !(even_if_same && self.setup.variant == Variant::Sotw) {
            return;
        }
        let mut request = Request { type_url: kind.type_url().into(), ..Default::default() };
        match self.setup.variant {
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
        self.say(kind, request);
    }

    /// Handles and answers a response. Returns why it was rejected, if it was.
    pub(crate) fn take(
        &mut self,
        kind: ResourceType,
        frame: Bytes,
        dice: &mut Dice,
    ) -> Option<String> {
        let i = kind.index();
        let (got, mut gone, nonce, version) = read(self.setup.variant, kind, frame);
        self.nonces[i].clone_from(&nonce);
        let (bad, good): (Vec<_>, Vec<_>) = got.into_iter().partition(|got| is_bad(&got.body));
        let mut error = None;
        if !bad.is_empty() {
            let list: Vec<_> = bad.iter().map(|got| format!("{}: is bad", got.name)).collect();
            error = Some(if dice.in_few(2) { list.join(", ") } else { BLIND.to_owned() });
        }
        // Envoy accepts the valid clusters and listeners of a response that it rejects for an invalid one, unless it
        // could not parse that one.
        if bad.is_empty() || (kind.has_wildcard() && dice.in_few(2)) {
            if self.setup.variant == Variant::Sotw && kind.has_wildcard() {
                gone = self.left_out(kind, good.iter().chain(&bad));
            }
            if kind == Cluster {
                self.doubt(&good, error.is_some());
            }
            self.apply(kind, &good, &gone);
            if error.is_none() {
                self.remember(kind, good, &gone, version);
            }
        }
        let mut request = Request {
            type_url: kind.type_url().into(),
            nonce,
            error: error.clone(),
            ..Default::default()
        };
        if self.setup.variant == Variant::Sotw {
            request.names = self.names[i].iter().cloned().collect();
            request.version = self.versions[i].get("").cloned().unwrap_or_default();
        }
        self.has_clusters |= kind == Cluster && error.is_none();
        if kind == Cluster && !self.setup.separate {
            self.paused.push(request);
            self.resume();
        } else {
            self.say(kind, request);
            self.start();
        }
        error
    }

    /// What a response with all resources of a type removes.
    fn left_out<'a>(
        &self,
        kind: ResourceType,
        holds: impl Iterator<Item = &'a Got>,
    ) -> Vec<String> {
        let keep: BTreeSet<&String> = holds.map(|got| &got.name).collect();
        let had: BTreeSet<&String> = match kind {
            Cluster => self.active.keys().chain(self.warming.keys()).collect(),
            _ => self.listeners.keys().collect(),
        };
        had.into_iter().filter(|name| !keep.contains(name)).cloned().collect()
    }

    fn doubt(&mut self, good: &[Got], rejected: bool) {
        for got in good {
            if !rejected {
                self.doubtful.remove(&got.name);
            } else if !self.active.contains_key(&got.name) {
                self.doubtful.insert(got.name.clone());
            }
        }
    }

    fn remember(&mut self, kind: ResourceType, good: Vec<Got>, gone: &[String], version: String) {
        if kind == Cluster {
            good.iter().for_each(|got| {
                self.untold.remove(&got.name);
            });
        }
        let versions = &mut self.versions[kind.index()];
        if self.setup.variant == Variant::Sotw {
            versions.insert(String::new(), version);
            return;
        }
        // Envoy ignores what it did not ask for.
        let names = &self.names[kind.index()];
        let wanted =
            good.into_iter().filter(|got| kind.has_wildcard() || names.contains(&got.name));
        versions.extend(wanted.map(|got| (got.name, got.version)));
        gone.iter().for_each(|name| {
            versions.remove(name);
        });
    }

    fn resume(&mut self) {
        if self.pauses() {
            return;
        }
        if !self.asked.contains(&Cluster) {
            self.begin(Cluster);
        }
        let answers = std::mem::take(&mut self.paused);
        answers.into_iter().for_each(|request| self.say(Cluster, request));
        self.start();
    }

    /// Envoy asks for its first listeners when its first clusters are warm.
    fn start(&mut self) {
        if self.warming.is_empty() && self.has_clusters && !self.order.contains(&Listener) {
            self.order.push(Listener);
            self.begin(Listener);
        }
    }

    /// Resolves the address of an external host. Returns whether there was one to resolve.
    pub(crate) fn resolve(&mut self) -> bool {
        let Some(name) = self.warming.keys().find(|name| is_external(name)).cloned() else {
            return false;
        };
        self.warmed(&name, true);
        self.resume();
        true
    }

    fn warmed(&mut self, name: &str, serves: bool) {
        if let Some(body) = self.warming.remove(name) {
            self.active.insert(name.to_owned(), Active { body, serves });
        }
    }

    fn apply(&mut self, kind: ResourceType, good: &[Got], gone: &[String]) {
        match kind {
            Cluster => self.apply_clusters(good, gone),
            Endpoints => self.apply_endpoints(good, gone),
            Listener => {
                for got in good {
                    self.excuse(kind, &got.name, &got.body);
                    self.listeners.insert(got.name.clone(), got.body.clone());
                }
                gone.iter().for_each(|name| {
                    self.listeners.remove(name);
                });
                let tables = self.listeners.values().filter_map(|body| body.strip_prefix("http "));
                let names: BTreeSet<String> =
                    tables.map(|text| text.split('>').next().unwrap().to_owned()).collect();
                self.routes.retain(|name, _| names.contains(name));
                self.ask(Route, names, false);
            }
            Route => {
                for got in good
                    .iter()
                    .filter(|got| self.names[kind.index()].contains(&got.name))
                    .collect::<Vec<_>>()
                {
                    self.excuse(kind, &got.name, &got.body);
                    self.routes.insert(got.name.clone(), got.body.clone());
                }
            }
            Runtime => {
                assert!(gone.is_empty(), "no layer is ever removed");
                // Envoy may take a layer that a SotW response lacks for one that is removed.
                if self.setup.variant == Variant::Sotw {
                    assert_eq!(good.len(), self.setup.layers);
                }
                for got in good {
                    let values = got.body.split_whitespace().map(|value| {
                        let (key, weight) = value.rsplit_once('=').unwrap();
                        (key.to_owned(), weight.parse().unwrap())
                    });
                    self.layers.insert(got.name.clone(), values.collect());
                }
            }
        }
        for clusters in self.excused.values_mut() {
            clusters.retain(|name| !self.active.contains_key(name) || self.doubtful.contains(name));
        }
    }

    fn apply_endpoints(&mut self, good: &[Got], gone: &[String]) {
        for got in good
            .iter()
            .filter(|got| self.names[Endpoints.index()].contains(&got.name))
            .collect::<Vec<_>>()
        {
            let serves = !got.body.ends_with(" none");
            if !serves {
                // Without endpoints it takes no requests, whether it stays or is removed.
                self.served_before.remove(&got.name);
            }
            self.warmed(&got.name, serves);
            if let Some(cluster) = self.active.get_mut(&got.name) {
                cluster.serves = serves;
            }
        }
        // Removed endpoints end the warming of a cluster, and do not change a warm one.
        gone.iter().for_each(|name| self.warmed(name, false));
        self.resume();
    }

    fn apply_clusters(&mut self, good: &[Got], gone: &[String]) {
        let mut changed = false;
        for got in good {
            let had =
                self.warming.get(&got.name).or_else(|| Some(&self.active.get(&got.name)?.body));
            if had == Some(&got.body) {
                continue;
            }
            changed = true;
            if is_eds(&got.name) || is_external(&got.name) {
                self.warming.insert(got.name.clone(), got.body.clone());
            } else {
                self.active
                    .insert(got.name.clone(), Active { body: got.body.clone(), serves: true });
            }
        }
        for name in gone {
            self.active.remove(name);
            self.warming.remove(name);
        }
        let all = self.active.keys().chain(self.warming.keys());
        let names = all.filter(|name| is_eds(name)).cloned().collect();
        // Over SotW it asks again for the endpoints of a changed cluster; over delta it is already subscribed and does
        // not.
        self.ask(Endpoints, names, changed);
    }

    /// The first version of a listener or host may reference missing clusters: there is no previous version to keep.
    fn excuse(&mut self, kind: ResourceType, name: &str, body: &str) {
        let before = match kind {
            Route => self.routes.get(name),
            _ => self.listeners.get(name),
        };
        let before = before
            .map(|body| references(kind, body))
            .filter(|_| !self.from_before.contains(name))
            .unwrap_or_default();
        self.from_before.remove(name);
        for (host, clusters) in references(kind, body) {
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

    /// Every listener and virtual host, by name and host, and the clusters that it references.
    pub(crate) fn leads(&self) -> Vec<(ResourceType, &str, String, BTreeSet<String>)> {
        let listeners = self.listeners.iter().map(|(name, body)| (Listener, name, body));
        let routes = self.routes.iter().map(|(name, body)| (Route, name, body));
        let all = listeners.chain(routes).flat_map(|(kind, name, body)| {
            references(kind, body)
                .into_iter()
                .map(move |(host, clusters)| (kind, name.as_str(), host, clusters))
        });
        all.collect()
    }

    /// Whether a listener or host may reference a missing cluster.
    pub(crate) fn is_excused(&self, name: &str, host: &str, cluster: &str) -> bool {
        let excused = self.excused.get(&(name.to_owned(), host.to_owned()));
        excused.is_some_and(|excused| excused.contains(cluster))
    }
}

/// Reads a response: its resources, what it removes, its nonce and its version.
pub(crate) fn read(
    variant: Variant,
    kind: ResourceType,
    frame: Bytes,
) -> (Vec<Got>, Vec<String>, String, String) {
    match variant {
        Variant::Delta => {
            let message = pb::DeltaDiscoveryResponse::decode(frame).unwrap();
            let got = message.resources.into_iter().map(|resource| {
                let body = show(kind, &resource.resource.unwrap().value);
                Got { name: resource.name, body, version: resource.version }
            });
            (got.collect(), message.removed_resources, message.nonce, String::new())
        }
        Variant::Sotw => {
            let message = pb::DiscoveryResponse::decode(frame).unwrap();
            let got = message.resources.into_iter().map(|any| Got {
                name: name_of(kind, &any.value),
                body: show(kind, &any.value),
                version: String::new(),
            });
            (got.collect(), Vec::new(), message.nonce, message.version_info)
        }
    }
}

fn name_of(kind: ResourceType, bytes: &[u8]) -> String {
    match kind {
        Cluster => {
            cluster::Cluster::decode(bytes).map_or_else(|_| text_of(bytes), |message| message.name)
        }
        Endpoints => endpoint::ClusterLoadAssignment::decode(bytes).unwrap().cluster_name,
        Route => route::RouteConfiguration::decode(bytes).unwrap().name,
        Runtime => runtime::Runtime::decode(bytes).unwrap().name,
        Listener => {
            let text = text_of(bytes);
            let plain = text.strip_prefix("bad ").unwrap_or(&text);
            match plain.strip_prefix("http ") {
                Some(rest) => format!("http-{}", rest.split('>').next().unwrap()),
                None => plain.split(' ').next().unwrap().to_owned(),
            }
        }
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
