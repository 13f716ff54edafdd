//! The protocol of one proxy, without I/O: which requests Envoy sends on an ADS stream, by what it receives.
//!
//! It subscribes to all clusters, to the endpoints of those that ask for them, then to all listeners, then to the routes
//! that they name, and ACKs every response. A proxy with runtime layers asks for those first. When a stream begins again
//! it tells what it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as http;
use prost::Message as _;

use super::expectation::{Expectation, Progress};
use super::names::{Names, Numbers};
use super::proto::{self, Head, Malformed, Request, Value, fields};
use crate::bootstrap::AdsVariant;

/// A type of resources, in the order in which Envoy subscribes to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Type {
    /// Runtime layers (RTDS).
    Runtime,
    /// Clusters (CDS).
    Clusters,
    /// Endpoints (EDS).
    Endpoints,
    /// Listeners (LDS).
    Listeners,
    /// Routes (RDS).
    Routes,
}

impl Type {
    /// All.
    pub(crate) const ALL: [Self; 5] =
        [Self::Runtime, Self::Clusters, Self::Endpoints, Self::Listeners, Self::Routes];

    /// Its type URL.
    pub(crate) fn url(self) -> &'static str {
        match self {
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Self::Clusters => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listeners => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// Its usual abbreviation.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Runtime => "rtds",
            Self::Clusters => "cds",
            Self::Endpoints => "eds",
            Self::Listeners => "lds",
            Self::Routes => "rds",
        }
    }
}

/// What all proxies share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The variant of the protocol.
    pub variant: AdsVariant,
    /// The runtime layers to subscribe to.
    pub runtime: Vec<String>,
    names: [Names; 5],
    versions: Names,
}

impl Shared {
    /// For proxies of this kind.
    pub(crate) fn new(variant: AdsVariant, runtime: Vec<String>) -> Self {
        Self { variant, runtime, names: Default::default(), versions: Names::default() }
    }

    fn delta(&self) -> bool {
        self.variant == AdsVariant::Delta
    }

    fn names(&self, of: Type) -> &Names {
        let [runtime, clusters, endpoints, listeners, routes] = &self.names;
        match of {
            Type::Runtime => runtime,
            Type::Clusters => clusters,
            Type::Endpoints => endpoints,
            Type::Listeners => listeners,
            Type::Routes => routes,
        }
    }
}

/// What a proxy knows of one type.
#[derive(Debug, Default)]
struct Subscription {
    subscribed: bool,
    /// The names it asks for; none for a wildcard.
    wanted: Numbers,
    received: Numbers,
    answered: bool,
    /// By name, one more than the number of the version; 0 for a resource that it does not have (delta).
    versions: Vec<u32>,
    version: Bytes,
    nonce: Bytes,
}

impl Subscription {
    fn is_complete(&self) -> bool {
        self.answered && self.wanted.is_within(&self.received)
    }

    fn set_version(&mut self, number: u32, version: u32) {
        let at = number as usize;
        if at >= self.versions.len() {
            self.versions.resize(at + 1, 0);
        }
        if let Some(entry) = self.versions.get_mut(at) {
            *entry = version;
        }
    }
}

/// A request in pieces that are sent one after the other.
pub(crate) type Pieces = Vec<Bytes>;

/// What follows from a response.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The requests to send, in order.
    pub requests: Vec<Pieces>,
    /// The type of the response, if it is a known one.
    pub of: Option<Type>,
    /// The proxy now has its whole configuration for the first time on this stream.
    pub served: bool,
    /// It now has all that was expected.
    pub satisfied: bool,
}

/// A proxy's side of an ADS stream.
#[derive(Debug)]
pub(crate) struct Stream {
    shared: Arc<Shared>,
    node: Bytes,
    types: [Subscription; 5],
    /// The route names of each listener.
    routes_of: BTreeMap<Vec<u8>, Vec<u32>>,
    node_is_sent: bool,
    served: bool,
    expected: Option<(Arc<Expectation>, Progress)>,
}

impl Stream {
    /// A proxy with this encoded `Node`.
    pub(crate) fn new(shared: Arc<Shared>, node: Bytes) -> Self {
        Self {
            shared,
            node,
            types: Default::default(),
            routes_of: BTreeMap::new(),
            node_is_sent: false,
            served: false,
            expected: None,
        }
    }

    /// Forgets everything that it received.
    pub(crate) fn forget(&mut self) {
        *self = Self::new(self.shared.clone(), self.node.clone());
    }

    /// From now on, looks for this in responses.
    pub(crate) fn expect(&mut self, expected: Option<Arc<Expectation>>) {
        self.expected = expected.map(|expected| {
            let progress = Progress::new(&expected);
            (expected, progress)
        });
    }

    /// The stream begins: the requests to send.
    pub(crate) fn begin(&mut self) -> Vec<Pieces> {
        self.node_is_sent = false;
        self.served = false;
        for of in Type::ALL {
            let state = self.state(of);
            state.nonce = Bytes::new();
            state.answered = false;
        }
        if Type::ALL.into_iter().any(|of| self.state(of).subscribed) {
            return Type::ALL.into_iter().filter_map(|of| self.again(of)).collect();
        }
        let mut requests = Vec::new();
        let names = self.shared.names(Type::Runtime);
        let layers: Vec<u32> =
            self.shared.runtime.iter().map(|layer| names.number(layer.as_bytes())).collect();
        if !layers.is_empty() {
            requests.extend(self.want(Type::Runtime, layers, &[]));
        }
        requests.extend(self.subscribe(Type::Clusters));
        requests
    }

    fn state(&mut self, of: Type) -> &mut Subscription {
        let [runtime, clusters, endpoints, listeners, routes] = &mut self.types;
        match of {
            Type::Runtime => runtime,
            Type::Clusters => clusters,
            Type::Endpoints => endpoints,
            Type::Listeners => listeners,
            Type::Routes => routes,
        }
    }

    /// A response arrived.
    pub(crate) fn response(&mut self, message: &[u8]) -> Result<Outcome, Malformed> {
        let delta = self.shared.delta();
        let head = proto::head(message, delta)?;
        let Some(of) = Type::ALL.into_iter().find(|of| of.url().as_bytes() == head.type_url) else {
            return Ok(Outcome::default());
        };
        let before = self.is_satisfied();
        let state = self.state(of);
        state.nonce = Bytes::copy_from_slice(head.nonce);
        state.version = Bytes::copy_from_slice(head.version);
        state.answered = true;
        let mut outcome = Outcome { of: Some(of), ..Default::default() };
        let (added, removed) = self.resources(of, message)?;
        outcome.requests.push(self.acknowledgement(of, &head));
        match of {
            Type::Clusters => outcome.requests.extend(self.want(Type::Endpoints, added, &removed)),
            Type::Listeners => outcome.requests.extend(self.want(Type::Routes, added, &removed)),
            _ => {}
        }
        if !self.state(Type::Listeners).subscribed
            && self.state(Type::Clusters).answered
            && (self.state(Type::Endpoints).is_complete()
                || self.state(Type::Endpoints).wanted.is_empty())
        {
            outcome.requests.extend(self.subscribe(Type::Listeners));
        }
        outcome.served = !self.served && self.has_everything();
        self.served |= outcome.served;
        outcome.satisfied = !before && self.is_satisfied();
        Ok(outcome)
    }

    fn is_satisfied(&self) -> bool {
        self.expected.as_ref().is_some_and(|(_, progress)| progress.is_complete())
    }

    fn has_everything(&mut self) -> bool {
        let all = [Type::Clusters, Type::Listeners].into_iter().all(|of| self.state(of).answered);
        all && [Type::Endpoints, Type::Routes].into_iter().all(|of| {
            let state = self.state(of);
            state.wanted.is_empty() || state.is_complete()
        })
    }

    /// Reads the resources of a response. Returns the names that these ask for (all of them in SotW), and those that are
    /// not asked for any more (delta).
    fn resources(&mut self, of: Type, message: &[u8]) -> Result<(Vec<u32>, Vec<u32>), Malformed> {
        let delta = self.shared.delta();
        let shared = self.shared.clone();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        if of == Type::Listeners && !delta {
            self.routes_of.clear();
        }
        for resource in proto::resources(message, delta) {
            let resource = resource?;
            let name = if delta { resource.name } else { fields(resource.body).first(1)? };
            match of {
                Type::Clusters => {
                    if let Some(name) = proto::endpoints_name(resource.body)? {
                        added.push(shared.names(Type::Endpoints).number(name));
                    }
                }
                Type::Listeners => {
                    let names = route_names(resource.body)?;
                    let names =
                        names.iter().map(|name| shared.names(Type::Routes).number(name.as_bytes()));
                    let names: Vec<u32> = names.collect();
                    added.extend(&names);
                    removed.extend(self.routes_of.insert(name.to_vec(), names).unwrap_or_default());
                }
                Type::Endpoints | Type::Routes | Type::Runtime => {
                    self.progress(of, resource.body)?
                }
            }
            self.received(of, name, resource.version);
        }
        if delta {
            for name in fields(message).all(6) {
                removed.extend(self.removed(of, name?));
            }
            // A route that another listener names as well is still needed.
            let still: Vec<u32> = self.routes_of.values().flatten().copied().collect();
            removed.retain(|number| of != Type::Listeners || !still.contains(number));
        }
        Ok((added, removed))
    }

    fn progress(&mut self, of: Type, body: &[u8]) -> Result<(), Malformed> {
        match (&mut self.expected, of) {
            (Some((expected, progress)), Type::Endpoints) => progress.endpoints(expected, body),
            (Some((expected, progress)), Type::Routes) => progress.routes(expected, body),
            (Some((expected, progress)), Type::Runtime) => progress.runtime(expected, body),
            _ => Ok(()),
        }
    }

    fn received(&mut self, of: Type, name: &[u8], version: &[u8]) {
        let shared = self.shared.clone();
        let wildcard = matches!(of, Type::Clusters | Type::Listeners);
        if wildcard && !shared.delta() {
            return;
        }
        let number = shared.names(of).number(name);
        let version = if shared.delta() { shared.versions.number(version) + 1 } else { 0 };
        let state = self.state(of);
        if !wildcard {
            state.received.insert(number);
        }
        if version > 0 {
            state.set_version(number, version);
        }
    }

    /// A resource is gone (delta). Returns the names that it asked for.
    fn removed(&mut self, of: Type, name: &[u8]) -> Vec<u32> {
        let shared = self.shared.clone();
        let number = shared.names(of).number(name);
        self.state(of).set_version(number, 0);
        match of {
            // Its endpoints have its name.
            Type::Clusters => vec![shared.names(Type::Endpoints).number(name)],
            Type::Listeners => self.routes_of.remove(name).unwrap_or_default(),
            Type::Endpoints | Type::Routes | Type::Runtime => {
                // That there is no such resource is an answer.
                self.state(of).received.insert(number);
                Vec::new()
            }
        }
    }

    /// Subscribes to all resources of a type.
    fn subscribe(&mut self, of: Type) -> Option<Pieces> {
        self.state(of).subscribed = true;
        let request = self.request(of);
        Some(vec![request.done()])
    }

    /// Asks for names and no longer for others; in SotW, for these alone. `None` if that changes nothing.
    fn want(&mut self, of: Type, names: Vec<u32>, not: &[u32]) -> Option<Pieces> {
        let shared = self.shared.clone();
        let state = self.state(of);
        let added: Vec<u32>;
        let mut dropped = Vec::new();
        if shared.delta() {
            dropped.extend(
                not.iter()
                    .copied()
                    .filter(|name| !names.contains(name) && state.wanted.remove(*name)),
            );
            added = names.into_iter().filter(|name| state.wanted.insert(*name)).collect();
            for name in &dropped {
                state.received.remove(*name);
                state.set_version(*name, 0);
            }
            if added.is_empty() && dropped.is_empty() {
                return None;
            }
        } else {
            let mut wanted = Numbers::default();
            names.iter().for_each(|name| _ = wanted.insert(*name));
            if wanted == state.wanted || (wanted.is_empty() && !state.subscribed) {
                return None;
            }
            state.wanted = wanted;
            added = Vec::new();
        }
        state.subscribed = true;
        let mut request = self.request(of);
        if !shared.delta() {
            return Some(self.with_names(of, request));
        }
        added.iter().for_each(|name| request.repeated(3, &shared.names(of).text(*name)));
        dropped.iter().for_each(|name| request.repeated(4, &shared.names(of).text(*name)));
        Some(vec![request.done()])
    }

    /// A request of a type that has all but its names.
    fn request(&mut self, of: Type) -> Request {
        let node = if std::mem::replace(&mut self.node_is_sent, true) {
            Bytes::new()
        } else {
            self.node.clone()
        };
        let delta = self.shared.delta();
        let state = self.state(of);
        let url = of.url().as_bytes();
        if delta {
            return Request::default().field(1, &node).field(2, url);
        }
        // Nonces belong to a stream, versions do not.
        Request::default()
            .field(1, &state.version)
            .field(2, &node)
            .field(4, url)
            .field(5, &state.nonce)
    }

    /// Adds the names of a SotW request.
    fn with_names(&mut self, of: Type, request: Request) -> Pieces {
        let shared = self.shared.clone();
        let wanted = &self.state(of).wanted;
        if wanted.is_empty() {
            vec![request.done()]
        } else {
            vec![request.done(), shared.names(of).list(wanted)]
        }
    }

    fn acknowledgement(&mut self, of: Type, head: &Head<'_>) -> Pieces {
        if self.shared.delta() {
            let request = Request::default().field(2, of.url().as_bytes()).field(6, head.nonce);
            return vec![request.done()];
        }
        let request = self.request(of);
        self.with_names(of, request)
    }

    /// Subscribes again to what an earlier stream had; `None` if it had nothing of this type.
    fn again(&mut self, of: Type) -> Option<Pieces> {
        if !self.state(of).subscribed {
            return None;
        }
        let mut request = self.request(of);
        let shared = self.shared.clone();
        if !shared.delta() {
            return Some(self.with_names(of, request));
        }
        let state = self.state(of);
        for number in state.wanted.iter() {
            request.repeated(3, &shared.names(of).text(number));
        }
        for (number, version) in (0u32..).zip(&state.versions) {
            if *version > 0 {
                let entry = Request::default()
                    .field(1, &shared.names(of).text(number))
                    .field(2, &shared.versions.text(version - 1));
                request.repeated(5, &entry.done());
            }
        }
        Some(vec![request.done()])
    }
}

/// The names of the route configurations that a listener asks for.
fn route_names(body: &[u8]) -> Result<Vec<String>, Malformed> {
    let decoded = listener::Listener::decode(body)?;
    let chains = decoded.filter_chains.iter().chain(&decoded.default_filter_chain);
    let mut names = Vec::new();
    for filter in chains.flat_map(|chain| &chain.filters) {
        let Some(listener::filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
            continue;
        };
        if !config.type_url.ends_with(".HttpConnectionManager") {
            continue;
        }
        // Only the field of the routes: the rest of it is large.
        for field in fields(&config.value) {
            if let (3, Value::Bytes(bytes)) = field? {
                let rds = http::Rds::decode(bytes)?;
                names.push(rds.route_config_name);
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3 as cluster;
    use envoy_types::pb::envoy::config::core::v3::Node;
    use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
    use envoy_types::pb::envoy::service::discovery::v3 as pb;
    use envoy_types::pb::google::protobuf::Any;

    use super::*;

    fn stream(variant: AdsVariant, runtime: &[&str]) -> Stream {
        let runtime = runtime.iter().map(|layer| (*layer).to_owned()).collect();
        let shared = Arc::new(Shared::new(variant, runtime));
        let node = Node { id: "node".into(), ..Default::default() };
        Stream::new(shared, node.encode_to_vec().into())
    }

    fn any(of: Type, body: Vec<u8>) -> Any {
        Any { type_url: of.url().to_owned(), value: body }
    }

    fn eds_cluster(name: &str) -> Vec<u8> {
        let eds = Some(cluster::cluster::EdsClusterConfig::default());
        cluster::Cluster { name: name.into(), eds_cluster_config: eds, ..Default::default() }
            .encode_to_vec()
    }

    fn endpoints(name: &str) -> Vec<u8> {
        ClusterLoadAssignment { cluster_name: name.into(), ..Default::default() }.encode_to_vec()
    }

    fn listener(routes: &str) -> Vec<u8> {
        let rds = http::Rds { route_config_name: routes.into(), ..Default::default() };
        let specifier = http::http_connection_manager::RouteSpecifier::Rds(rds);
        let manager =
            http::HttpConnectionManager { route_specifier: Some(specifier), ..Default::default() };
        let config = Any {
            type_url: "type.googleapis.com/x.HttpConnectionManager".into(),
            value: manager.encode_to_vec(),
        };
        let filter = listener::Filter {
            config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
            ..Default::default()
        };
        let chain = listener::FilterChain { filters: vec![filter], ..Default::default() };
        listener::Listener {
            name: "0.0.0.0_80".into(),
            filter_chains: vec![chain],
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn routes(name: &str) -> Vec<u8> {
        RouteConfiguration { name: name.into(), ..Default::default() }.encode_to_vec()
    }

    fn sotw(of: Type, nonce: &str, bodies: Vec<Vec<u8>>) -> Vec<u8> {
        pb::DiscoveryResponse {
            version_info: format!("version-{nonce}"),
            type_url: of.url().into(),
            nonce: nonce.into(),
            resources: bodies.into_iter().map(|body| any(of, body)).collect(),
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn delta(of: Type, nonce: &str, added: &[(&str, Vec<u8>)], removed: &[&str]) -> Vec<u8> {
        let resources = added.iter().map(|(name, body)| pb::Resource {
            name: (*name).to_owned(),
            version: format!("version-{nonce}"),
            resource: Some(any(of, body.clone())),
            ..Default::default()
        });
        pb::DeltaDiscoveryResponse {
            type_url: of.url().into(),
            nonce: nonce.into(),
            resources: resources.collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        }
        .encode_to_vec()
    }

    /// The type, names, version and nonce of a request, and whether it carries a node.
    type SotwRequest = (Type, Vec<String>, String, String, bool);

    fn sotw_requests(all: Vec<Pieces>) -> Vec<SotwRequest> {
        let requests = all.into_iter().map(|pieces| {
            let request = pb::DiscoveryRequest::decode(pieces.concat().as_slice()).unwrap();
            let of = Type::ALL.into_iter().find(|of| of.url() == request.type_url).unwrap();
            let node = request.node.is_some();
            (of, request.resource_names, request.version_info, request.response_nonce, node)
        });
        requests.collect()
    }

    fn delta_requests(all: Vec<Pieces>) -> Vec<(Type, pb::DeltaDiscoveryRequest)> {
        let requests = all.into_iter().map(|pieces| {
            let request = pb::DeltaDiscoveryRequest::decode(pieces.concat().as_slice()).unwrap();
            (Type::ALL.into_iter().find(|of| of.url() == request.type_url).unwrap(), request)
        });
        requests.collect()
    }

    fn text(text: &str) -> String {
        text.to_owned()
    }

    /// What a response leads to: requests, and whether the proxy has been served by it.
    fn answer_sotw(
        stream: &mut Stream,
        of: Type,
        nonce: &str,
        bodies: Vec<Vec<u8>>,
    ) -> (Vec<SotwRequest>, bool) {
        let outcome = stream.response(&sotw(of, nonce, bodies)).unwrap();
        (sotw_requests(outcome.requests), outcome.served)
    }

    fn answer_delta(
        stream: &mut Stream,
        response: &[u8],
    ) -> Vec<(Type, pb::DeltaDiscoveryRequest)> {
        delta_requests(stream.response(response).unwrap().requests)
    }

    #[test]
    fn sotw_subscribes_in_envoys_order() {
        let mut stream = stream(AdsVariant::Sotw, &[]);
        let none = Vec::new;
        let first = sotw_requests(stream.begin());
        assert_eq!(first, [(Type::Clusters, none(), text(""), text(""), true)]);
        let names = vec![text("a"), text("b")];
        let (requests, _) =
            answer_sotw(&mut stream, Type::Clusters, "1", vec![eds_cluster("a"), eds_cluster("b")]);
        assert_eq!(
            requests,
            [
                (Type::Clusters, none(), text("version-1"), text("1"), false),
                (Type::Endpoints, names.clone(), text(""), text(""), false),
            ]
        );
        // Listeners wait for the endpoints of all clusters.
        let (requests, _) = answer_sotw(&mut stream, Type::Endpoints, "2", vec![endpoints("a")]);
        assert_eq!(
            requests,
            [(Type::Endpoints, names.clone(), text("version-2"), text("2"), false)]
        );
        let (requests, _) = answer_sotw(&mut stream, Type::Endpoints, "3", vec![endpoints("b")]);
        assert_eq!(requests[1..], [(Type::Listeners, none(), text(""), text(""), false)]);
        let (requests, served) =
            answer_sotw(&mut stream, Type::Listeners, "4", vec![listener("80")]);
        assert_eq!(requests[1..], [(Type::Routes, vec![text("80")], text(""), text(""), false)]);
        assert!(!served);
        assert!(answer_sotw(&mut stream, Type::Routes, "5", vec![routes("80")]).1);
        assert!(
            !answer_sotw(&mut stream, Type::Routes, "6", vec![routes("80")]).1,
            "it is served once"
        );

        let again = sotw_requests(stream.begin());
        assert_eq!(
            again,
            [
                (Type::Clusters, none(), text("version-1"), text(""), true),
                (Type::Endpoints, names, text("version-3"), text(""), false),
                (Type::Listeners, none(), text("version-4"), text(""), false),
                (Type::Routes, vec![text("80")], text("version-6"), text(""), false),
            ]
        );
    }

    #[test]
    fn delta_asks_for_what_is_new_and_tells_what_it_has() {
        let mut stream = stream(AdsVariant::Delta, &["weir-weights", "weir-weights-1"]);
        let first = delta_requests(stream.begin());
        assert_eq!(
            first.iter().map(|(of, _)| *of).collect::<Vec<_>>(),
            [Type::Runtime, Type::Clusters]
        );
        assert_eq!(first[0].1.resource_names_subscribe, ["weir-weights", "weir-weights-1"]);
        assert!(first[0].1.node.is_some() && first[1].1.node.is_none());
        let both = [("a", eds_cluster("a")), ("b", eds_cluster("b"))];
        let requests = answer_delta(&mut stream, &delta(Type::Clusters, "1", &both, &[]));
        assert_eq!(requests[0].1.response_nonce, "1");
        assert_eq!(requests[1].1.resource_names_subscribe, ["a", "b"]);
        answer_delta(
            &mut stream,
            &delta(Type::Endpoints, "2", &[("a", endpoints("a")), ("b", endpoints("b"))], &[]),
        );
        let requests =
            answer_delta(&mut stream, &delta(Type::Listeners, "3", &[("l", listener("80"))], &[]));
        assert_eq!(requests[1].1.resource_names_subscribe, ["80"]);
        // A listener that names other routes, and a cluster that goes.
        let requests =
            answer_delta(&mut stream, &delta(Type::Listeners, "4", &[("l", listener("81"))], &[]));
        assert_eq!(requests[1].1.resource_names_subscribe, ["81"]);
        assert_eq!(requests[1].1.resource_names_unsubscribe, ["80"]);
        let requests = answer_delta(&mut stream, &delta(Type::Clusters, "5", &[], &["a"]));
        assert_eq!(requests[1].1.resource_names_unsubscribe, ["a"]);

        let again = delta_requests(stream.begin());
        let clusters = &again[1].1.initial_resource_versions;
        assert_eq!(clusters.iter().collect::<Vec<_>>(), [(&text("b"), &text("version-1"))]);
        let endpoints = &again[2].1;
        assert_eq!(endpoints.resource_names_subscribe, ["b"]);
        assert_eq!(endpoints.initial_resource_versions.len(), 1);
    }

    #[test]
    fn what_is_unknown_or_broken_is_no_panic() {
        let mut stream = stream(AdsVariant::Delta, &[]);
        stream.begin();
        let unknown = pb::DeltaDiscoveryResponse { type_url: "x".into(), ..Default::default() };
        assert!(stream.response(&unknown.encode_to_vec()).unwrap().requests.is_empty());
        let whole = delta(Type::Clusters, "1", &[("a", eds_cluster("a"))], &[]);
        for end in 0..whole.len() {
            // Some beginnings are whole messages.
            let _ = stream.response(&whole[..end]);
        }
    }
}
