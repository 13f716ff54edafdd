//! Makes a [`Snapshot`] of a mesh for a scope, and keeps the parts that can serve again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use prost::Message;

use super::net::{Left, Net};
use super::{LeftOut, Part, Refers, Resource, Resources, Snapshot};
use crate::api::{Kind, ObjectKey};
use crate::mesh::{
    Families, Host, InboundPort, Interception, Locality, Mesh, Port, Registry, Scope, Seen, Service, View,
    VirtualService, VirtualServicesByHost, covers, is_wildcard,
};
use crate::translate::outbound::{self, Outbound, own_routes, shared_routes};
use crate::translate::route::{Context, Known, has_routes, rules_at};
use crate::translate::{cluster, endpoint, listener, rest, virtual_host};

/// Parts made before, by everything they were made from. Parts that no snapshot of a round used are dropped at its end.
#[derive(Debug, Default)]
pub struct Memo {
    clusters: Cache<ServiceKey, Made>,
    endpoints: Cache<ServiceKey, Made>,
    inbound_clusters: Cache<InboundKey, Made>,
    listeners: Cache<Outbound, Made>,
    inbound_listeners: Cache<(Vec<InboundPort>, Families), Made>,
    hosts: Cache<HostKey, Arc<HostPart>>,
}

/// Encoded resources, and what had to be left out of them.
#[derive(Clone, Debug, Default)]
struct Made {
    resources: Vec<Arc<Resource>>,
    left: Left,
}

impl Made {
    fn new(make: impl FnOnce(&mut Net) -> Vec<Arc<Resource>>) -> Self {
        let mut net = Net::default();
        let resources = make(&mut net);
        Self { resources, left: net.finish() }
    }
}

/// What a snapshot is put together in.
#[derive(Default)]
struct Filling {
    left: BTreeSet<LeftOut>,
    clusters: Resources,
    endpoints: Resources,
    listeners: Resources,
}

impl Filling {
    fn take(&mut self, made: Made, into: fn(&mut Self) -> &mut Resources) {
        self.left.extend(made.left.iter().cloned());
        into(self).extend(made.resources.into_iter().map(|resource| (resource.name.clone(), resource)));
    }
}

/// What the clusters or endpoints of a service are made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ServiceKey {
    host: Host,
    service: u64,
    /// Set where they are a part of it.
    endpoints: Option<u64>,
    rule: u64,
    only: Option<BTreeSet<u16>>,
    families: Families,
    /// Set where clients in different places get different ones.
    place: Option<(Locality, Arc<str>, BTreeMap<String, String>)>,
}

/// What the cluster of a proxy's own port is made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InboundKey {
    port: InboundPort,
    rule: u64,
    /// Set where its Sidecar sets limits.
    sidecar: u64,
}

/// What a virtual host is made from, apart from the services its routes lead to (see [`HostPart::looked_at`]).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct HostKey {
    host: Host,
    port: u16,
    any_name: bool,
    service: u64,
    aliases: Vec<u64>,
    rules: u64,
    own_namespace: bool,
    /// Set where the rules tell proxies apart.
    source: Option<(Arc<str>, BTreeMap<String, String>)>,
}

/// An encoded virtual host, as a field of its route configuration; nothing where no route is left.
#[derive(Debug)]
struct HostPart {
    /// The services that were looked up, and the revisions of service and rule that were found.
    looked_at: Vec<(Host, Option<(u64, u64)>)>,
    encoded: Option<Part>,
    left: Left,
}

#[derive(Debug)]
struct Cache<K, V> {
    entries: HashMap<K, (bool, V)>,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    fn get(&mut self, key: K, still_good: impl Fn(&V) -> bool, make: impl FnOnce() -> V) -> V {
        if let Some((used, value)) = self.entries.get_mut(&key)
            && still_good(value)
        {
            *used = true;
            return value.clone();
        }
        let value = make();
        self.entries.insert(key, (true, value.clone()));
        value
    }

    fn sweep(&mut self) {
        self.entries.retain(|_, (used, _)| std::mem::replace(used, false));
    }
}

impl Memo {
    /// Ends a round: what was not used since the last call is dropped.
    pub fn sweep(&mut self) {
        self.clusters.sweep();
        self.endpoints.sweep();
        self.inbound_clusters.sweep();
        self.listeners.sweep();
        self.inbound_listeners.sweep();
        self.hosts.sweep();
    }

    /// How many encoded parts there are.
    pub fn len(&self) -> usize {
        self.clusters.entries.values().map(|(_, made)| made.resources.len()).sum::<usize>()
            + self.endpoints.entries.values().map(|(_, made)| made.resources.len()).sum::<usize>()
            + self.inbound_clusters.entries.len()
            + self.listeners.entries.len()
            + self.inbound_listeners.entries.len()
            + self.hosts.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything that proxies of `scope` get in this state of the mesh.
    pub fn snapshot(&mut self, mesh: &Mesh, scope: &Scope, revision: u64) -> Snapshot {
        let view = View::new(mesh, scope);
        let mut filling = Filling::default();
        let make =
            |net: &mut Net| cluster::fixed().iter().filter_map(|fixed| encode_cluster(net, fixed, None)).collect();
        filling.take(Made::new(make), |filling| &mut filling.clusters);
        for port in &scope.inbound {
            let rule = view.inbound_rule(&port.host).map(|rule| &**rule);
            let pool = view.inbound_pool();
            let sidecar = scope.sidecar.as_ref().filter(|_| pool.is_some());
            let key = InboundKey {
                port: port.clone(),
                rule: rule.map_or(0, |rule| rule.revision),
                sidecar: sidecar.map_or(0, |(_, revision)| *revision),
            };
            let object = rule.and_then(|rule| rule.keys.first());
            let make = || {
                let cluster = cluster::inbound(port, rule, pool);
                Made::new(|net| encode_cluster(net, &cluster, object).into_iter().collect())
            };
            let made = self.inbound_clusters.get(key, |_| true, make);
            filling.take(made, |filling| &mut filling.clusters);
        }
        for seen in view.services().filter(|seen| seen.known.service.alias_of.is_none()) {
            self.service(&view, seen, &mut filling);
        }
        let outbound = outbound::listeners(&view);
        self.listeners(&view, &outbound, &mut filling);
        let routes = self.routes(&view, &outbound, &mut filling);
        let Filling { left, clusters, endpoints, listeners } = filling;
        let mut snapshot = Snapshot::new(revision, [clusters, endpoints, listeners, routes]);
        snapshot.left_out = left.into_iter().collect();
        snapshot
    }

    fn service(&mut self, view: &View<'_>, seen: &Seen<'_>, filling: &mut Filling) {
        let (known, scope) = (seen.known, view.scope);
        let rule = view.destination_rule(known).map(|rule| &**rule);
        let context = cluster::Context { config: &view.mesh.config, scope, known, rule };
        let placed = endpoint::depends_on_place(&known.service, rule);
        let key = |with_endpoints: bool| ServiceKey {
            host: known.service.host.clone(),
            service: known.service_revision,
            endpoints: with_endpoints.then_some(known.endpoints_revision),
            rule: rule.map_or(0, |rule| rule.revision),
            only: seen.only().cloned(),
            families: scope.families,
            place: (placed && with_endpoints)
                .then(|| (scope.locality.clone(), scope.node.clone(), scope.labels.clone())),
        };
        let with_endpoints = cluster::holds_endpoints(&known.service, rule);
        let object = rule.and_then(|rule| rule.keys.first().cloned()).unwrap_or_else(|| key_of(&known.service));
        let make = || {
            Made::new(|net| {
                let all = seen.ports().flat_map(|port| cluster::outbound(port, context));
                all.filter_map(|cluster| encode_cluster(net, &cluster, Some(&object))).collect()
            })
        };
        let made = self.clusters.get(key(with_endpoints), |_| true, make);
        filling.take(made, |filling| &mut filling.clusters);
        let make = || {
            Made::new(|net| {
                let all = seen.ports().flat_map(|port| endpoint::outbound(port, context));
                let encode = |assignment: ClusterLoadAssignment| {
                    let name = assignment.cluster_name.clone();
                    Resource::new(&name, vec![net.pass_assignment(assignment, Some(&object))])
                };
                all.map(encode).collect()
            })
        };
        let made = self.endpoints.get(key(true), |_| true, make);
        filling.take(made, |filling| &mut filling.endpoints);
    }

    fn listeners(&mut self, view: &View<'_>, outbound: &[Outbound], filling: &mut Filling) {
        let scope = view.scope;
        let encode = |listener: Listener| Made::new(|net| encode_listener(net, listener).into_iter().collect());
        for wanted in outbound {
            let made = self.listeners.get(wanted.clone(), |_| true, || encode(listener::outbound(wanted)));
            filling.take(made, |filling| &mut filling.listeners);
        }
        if scope.interception == Interception::Redirect {
            let virtual_outbound = listener::virtual_outbound(&rest(view), scope.families);
            filling.take(encode(virtual_outbound), |filling| &mut filling.listeners);
            let make = || encode(listener::virtual_inbound(&scope.inbound, scope.families));
            let made = self.inbound_listeners.get((scope.inbound.clone(), scope.families), |_| true, make);
            filling.take(made, |filling| &mut filling.listeners);
        }
    }

    /// The route configurations that the listeners refer to.
    fn routes(&mut self, view: &View<'_>, outbound: &[Outbound], filling: &mut Filling) -> Resources {
        let mut aliases: BTreeMap<&Host, Vec<&Seen<'_>>> = BTreeMap::new();
        for seen in view.callable() {
            if let Some(target) = &seen.known.service.alias_of {
                aliases.entry(target).or_default().push(seen);
            }
        }
        let names = outbound.iter().filter_map(|listener| listener.http.clone());
        let mut configurations: BTreeMap<String, Vec<(Place, Part)>> = names.map(|name| (name, Vec::new())).collect();
        // The services that have a virtual host among those of a port.
        let mut served: BTreeMap<u16, BTreeSet<&Host>> = BTreeMap::new();
        for seen in view.callable() {
            let service = &seen.known.service;
            let is_alias = service.alias_of.is_some();
            let others = aliases.get(&service.host).filter(|_| !is_alias).map_or(&[][..], Vec::as_slice);
            for port in seen.ports().filter(|port| port.protocol.may_be_http()) {
                let rule = rules_at(view, &service.host, port.number).map(|rule| &**rule);
                let wanted = Wanted { view, port: port.number, rule };
                for (name, any_name) in [(shared_routes(port.number), false), (own_routes(service, port.number), true)]
                {
                    let Some(configuration) = configurations.get_mut(&name) else { continue };
                    if !any_name {
                        served.entry(port.number).or_default().insert(&service.host);
                    }
                    // Without a VirtualService of its own an alias is a domain of its target's virtual host.
                    if is_alias && rule.is_none() {
                        continue;
                    }
                    let part = self.service_host(&wanted, seen, port, any_name, others);
                    let place = Place::new(view.rules_at(port.number), rule, true);
                    configuration.extend(part.encoded.clone().map(|part| (place, part)));
                    filling.left.extend(part.left.iter().cloned());
                }
            }
        }
        for (port, hosts) in &served {
            self.other_hosts(view, *port, hosts, configurations.entry(shared_routes(*port)).or_default(), filling);
        }
        let mut resources = Resources::new();
        let rest = rest(view);
        for (name, mut hosts) in configurations {
            hosts.sort_by_key(|(place, _)| *place);
            let hosts = hosts.into_iter().map(|(_, part)| part).collect();
            let catch_all = name.parse::<u16>().is_ok().then(|| virtual_host::catch_all(view.outbound, &rest));
            let resource = configuration(&name, hosts, catch_all);
            resources.insert(resource.name.clone(), resource);
        }
        resources
    }

    /// The hosts of VirtualServices that no service has at a port: known on the port of plain HTTP all the same, and on
    /// another where the VirtualService names a service that is there as well.
    fn other_hosts(
        &mut self,
        view: &View<'_>,
        port: u16,
        served: &BTreeSet<&Host>,
        configuration: &mut Vec<(Place, Part)>,
        filling: &mut Filling,
    ) {
        let is_served = |host: &Host| {
            if is_wildcard(host) { served.iter().any(|known| covers(host, known)) } else { served.contains(host) }
        };
        for (host, rule) in view.rules_at(port).hosts().filter(|(host, _)| !is_served(host)) {
            let belongs = port == 80 || rule.hosts.iter().any(is_served);
            if belongs && has_routes(rule, view.scope, port) {
                let wanted = Wanted { view, port, rule: Some(rule) };
                let part = self.other_host(&wanted, host, rule);
                let place = Place::new(view.rules_at(port), Some(rule), false);
                configuration.extend(part.encoded.clone().map(|part| (place, part)));
                filling.left.extend(part.left.iter().cloned());
            }
        }
    }

    fn service_host(
        &mut self,
        wanted: &Wanted<'_>,
        seen: &Seen<'_>,
        port: &Port,
        any_name: bool,
        aliases: &[&Seen<'_>],
    ) -> Arc<HostPart> {
        let service = &seen.known.service;
        let own = &wanted.view.scope.namespace;
        let key = HostKey {
            host: service.host.clone(),
            port: port.number,
            any_name,
            service: seen.known.service_revision,
            aliases: aliases.iter().map(|alias| alias.known.service_revision).collect(),
            own_namespace: service.namespace == *own
                || aliases.iter().any(|alias| alias.known.service.namespace == *own),
            ..wanted.key(&service.host)
        };
        let aliases: Vec<_> = aliases.iter().map(|alias| alias.known.service.clone()).collect();
        self.host(wanted, key, |context| {
            if any_name {
                virtual_host::of_any_name(service, port, wanted.rule, context)
            } else {
                virtual_host::of_service(service, port, &aliases, wanted.rule, context)
            }
        })
    }

    fn other_host(&mut self, wanted: &Wanted<'_>, host: &Host, rule: &VirtualService) -> Arc<HostPart> {
        self.host(wanted, wanted.key(host), |context| virtual_host::of_host(host, rule, context))
    }

    fn host(
        &mut self,
        wanted: &Wanted<'_>,
        key: HostKey,
        make: impl FnOnce(&Context<'_>) -> Option<virtual_host::Made>,
    ) -> Arc<HostPart> {
        let view = wanted.view;
        let revisions = |host: &str| {
            let known = view.service(host)?.known;
            Some((known.service_revision, view.destination_rule(known).map_or(0, |rule| rule.revision)))
        };
        let unchanged = |part: &Arc<HostPart>| part.looked_at.iter().all(|(host, seen)| revisions(host) == *seen);
        self.hosts.get(key, unchanged, || {
            // Noting what a translation looks at is what makes it sure that a change of it is seen.
            let looked_at = Mutex::new(Vec::new());
            let service = |host: &str| -> Option<Known> {
                if let Ok(mut looked_at) = looked_at.lock() {
                    looked_at.push((Host::from(host), revisions(host)));
                }
                let known = view.service(host)?.known;
                Some((known.service.clone(), view.destination_rule(known).cloned()))
            };
            let context =
                Context { config: &view.mesh.config, scope: view.scope, port: wanted.port, service: &service };
            let mut net = Net::default();
            let encoded = make(&context).and_then(|made| net.pass_host(&head("any"), made));
            let looked_at = looked_at.into_inner().unwrap_or_default();
            Arc::new(HostPart { looked_at, encoded, left: net.finish() })
        })
    }
}

/// Which of several virtual hosts that want one domain gets it: those of VirtualServices in their order, of each first
/// the hosts that no service has, and last the services without any.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place(usize, bool);

impl Place {
    fn new(rules: &VirtualServicesByHost, rule: Option<&VirtualService>, is_service: bool) -> Self {
        Self(rule.and_then(|rule| rules.place(&rule.key)).unwrap_or(usize::MAX), is_service)
    }
}

/// For whom, on which port and by which rules a virtual host is wanted.
struct Wanted<'a> {
    view: &'a View<'a>,
    port: u16,
    rule: Option<&'a VirtualService>,
}

impl Wanted<'_> {
    fn key(&self, host: &Host) -> HostKey {
        let tells_apart = self.rule.is_some_and(|rule| {
            let mut matches = rule.http().flat_map(|http| &http.route.matches);
            matches.any(|one| !one.source_labels.is_empty() || !one.source_namespace.is_empty())
        });
        HostKey {
            host: host.clone(),
            port: self.port,
            any_name: false,
            service: 0,
            aliases: Vec::new(),
            rules: self.rule.map_or(0, |rule| rule.revision),
            own_namespace: false,
            source: tells_apart.then(|| (self.view.scope.namespace.clone(), self.view.scope.labels.clone())),
        }
    }
}

/// The object that a service comes from.
fn key_of(service: &Service) -> ObjectKey {
    let kind = match service.registry {
        Registry::Kubernetes => Kind::Service,
        Registry::ServiceEntry => Kind::ServiceEntry,
    };
    ObjectKey { kind, namespace: service.namespace.clone(), name: service.name.clone() }
}

fn encode_cluster(net: &mut Net, cluster: &Cluster, object: Option<&ObjectKey>) -> Option<Arc<Resource>> {
    Some(Resource::new(&cluster.name, vec![net.pass("cds", &cluster.name, cluster, object)?]))
}

fn encode_listener(net: &mut Net, listener: Listener) -> Option<Arc<Resource>> {
    let (listener, bytes) = net.pass_listener(listener)?;
    Some(Resource::leading_to(&listener.name, vec![bytes], Refers::of_listener(&listener)))
}

/// A route configuration but for its virtual hosts.
fn head(name: &str) -> Bytes {
    let frame = route::RouteConfiguration {
        name: name.to_owned(),
        ignore_port_in_host_matching: true,
        validate_clusters: Some(BoolValue { value: false }),
        max_direct_response_body_size_bytes: Some(UInt32Value { value: 1 << 20 }),
        ..Default::default()
    };
    frame.encode_to_vec().into()
}

/// Puts a route configuration together.
fn configuration(name: &str, hosts: Vec<Part>, catch_all: Option<route::VirtualHost>) -> Arc<Resource> {
    let parts = hosts.into_iter().chain(catch_all.map(Part::new)).collect();
    Resource::of_hosts(name.into(), head(name), parts)
}
