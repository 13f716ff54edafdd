//! Makes a [`Snapshot`] of a mesh for a scope, and keeps the parts that can serve again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use prost::Message;

use super::{Part, Refers, Resource, Resources, Snapshot};
use crate::mesh::{
    Host, InboundPort, Interception, Mesh, OutboundPolicy, Port, Protocol, Resolution, Scope, Service, ServiceEntry,
    VirtualService, covers, is_wildcard,
};
use crate::translate::listener::{self, Outbound, OutboundKind};
use crate::translate::route::Context;
use crate::translate::{cluster, cluster_name, endpoint, virtual_host};

/// Parts made before, by everything they were made from. Parts that no snapshot of a round used are dropped at its end.
#[derive(Debug, Default)]
pub struct Memo {
    clusters: Cache<(Host, u64, u64), Vec<Arc<Resource>>>,
    endpoints: Cache<(Host, u64, u64, u64), Vec<Arc<Resource>>>,
    inbound_clusters: Cache<InboundPort, Arc<Resource>>,
    listeners: Cache<(String, Interception, bool), Arc<Resource>>,
    inbound_listeners: Cache<Vec<InboundPort>, Arc<Resource>>,
    hosts: Cache<HostKey, Arc<HostPart>>,
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
    /// The services that were looked up, and the revision found.
    looked_at: Vec<(Host, Option<u64>)>,
    encoded: Option<Part>,
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
        self.clusters.entries.values().map(|(_, list)| list.len()).sum::<usize>()
            + self.endpoints.entries.values().map(|(_, list)| list.len()).sum::<usize>()
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
        let visible: Vec<&ServiceEntry> = mesh.visible_services(&scope.namespace).collect();
        let mut clusters = Resources::new();
        let mut endpoints = Resources::new();
        for fixed in cluster::fixed() {
            put(&mut clusters, encode(&fixed.name, &fixed));
        }
        for port in &scope.inbound {
            let make = || {
                let cluster = cluster::inbound(port);
                encode(&cluster.name, &cluster)
            };
            put(&mut clusters, self.inbound_clusters.get(port.clone(), |_| true, make));
        }
        for entry in visible.iter().filter(|entry| entry.service.alias_of.is_none()) {
            let service = &entry.service;
            let rule = mesh.destination_rule(service, scope).map(|rule| &**rule);
            let rule_revision = rule.map_or(0, |rule| rule.revision);
            let key = (service.host.clone(), entry.service_revision, rule_revision);
            let made = self.clusters.get(
                key,
                |_| true,
                || {
                    let all = service.ports.iter().flat_map(|port| cluster::outbound(service, port, rule));
                    all.map(|cluster| encode(&cluster.name, &cluster)).collect()
                },
            );
            made.into_iter().for_each(|resource| put(&mut clusters, resource));
            let key = (service.host.clone(), entry.service_revision, entry.endpoints_revision, rule_revision);
            let made = self.endpoints.get(
                key,
                |_| true,
                || {
                    let ports = service.ports.iter();
                    let all = ports.flat_map(|port| endpoint::outbound(service, port, &entry.endpoints, rule));
                    all.map(|assignment| encode(&assignment.cluster_name, &assignment)).collect()
                },
            );
            made.into_iter().for_each(|resource| put(&mut endpoints, resource));
        }
        let listeners = self.listeners(mesh, scope, &visible);
        let routes = self.routes(mesh, scope, &visible);
        Snapshot::new(revision, [clusters, endpoints, listeners, routes])
    }

    fn listeners(&mut self, mesh: &Mesh, scope: &Scope, visible: &[&ServiceEntry]) -> Resources {
        let mut by_age: Vec<_> = visible.iter().filter(|entry| entry.service.alias_of.is_none()).collect();
        by_age.sort_by(|a, b| (a.service.age, &a.service.host).cmp(&(b.service.age, &b.service.host)));
        let mut listeners = Resources::new();
        let policy = mesh.config.outbound;
        // Of two services that want one listener the older gets it.
        let mut add = |wanted: &Outbound<'_>| {
            let name = listener::outbound_name(wanted, scope.interception);
            if listeners.contains_key(name.as_str()) {
                return;
            }
            let key = (format!("{wanted:?}"), scope.interception, policy == OutboundPolicy::AllowAny);
            let make = || encode_listener(&listener::outbound(wanted, scope.interception, policy));
            let made = self.listeners.get(key, |_| true, make);
            put(&mut listeners, made);
        };
        for entry in by_age {
            let service = &entry.service;
            for port in &service.ports {
                let cluster = cluster_name(port.number, "", &service.host);
                let routes = route_name(service, port);
                let kind = match port.protocol {
                    protocol if protocol.is_http() => {
                        add(&Outbound { address: "0.0.0.0", port: port.number, kind: OutboundKind::Http(&routes) });
                        continue;
                    }
                    Protocol::Unknown => OutboundKind::Inspect(&routes, &cluster),
                    _ => OutboundKind::Tcp(&cluster),
                };
                let addresses: BTreeSet<&str> = match service.resolution {
                    Resolution::Endpoints => service.addresses.iter().map(|address| &**address).collect(),
                    // The addresses of a headless service are those of its pods.
                    Resolution::Passthrough => {
                        let members = entry.endpoints.list.iter().filter(|one| one.port_name == port.name);
                        members.map(|one| &*one.address).collect()
                    }
                };
                for address in addresses {
                    add(&Outbound { address, port: port.number, kind: kind.clone() });
                }
            }
        }
        if scope.interception == Interception::Redirect {
            let virtual_outbound = listener::virtual_outbound(policy);
            put(&mut listeners, encode_listener(&virtual_outbound));
            let make = || encode_listener(&listener::virtual_inbound(&scope.inbound));
            let made = self.inbound_listeners.get(scope.inbound.clone(), |_| true, make);
            put(&mut listeners, made);
        }
        listeners
    }

    fn routes(&mut self, mesh: &Mesh, scope: &Scope, visible: &[&ServiceEntry]) -> Resources {
        let rules = mesh.virtual_services.for_namespace(&scope.namespace);
        let mut aliases: BTreeMap<&Host, Vec<&ServiceEntry>> = BTreeMap::new();
        for entry in visible {
            if let Some(target) = &entry.service.alias_of {
                aliases.entry(target).or_default().push(entry);
            }
        }
        let mut configurations: BTreeMap<String, Vec<Part>> = BTreeMap::new();
        let mut http_ports = BTreeSet::new();
        for entry in visible.iter().filter(|entry| entry.service.alias_of.is_none()) {
            let service = &entry.service;
            let rule = rules.find(&service.host).map(|rule| &**rule);
            let others = aliases.get(&service.host).map_or(&[][..], Vec::as_slice);
            for port in &service.ports {
                let any_name = match port.protocol {
                    Protocol::Unknown => true,
                    protocol if protocol.is_http() => false,
                    _ => continue,
                };
                if !any_name {
                    http_ports.insert(port.number);
                }
                let wanted = Wanted { mesh, scope, port: port.number, rule };
                let part = self.service_host(&wanted, entry, port, any_name, others);
                let configuration = configurations.entry(route_name(service, port)).or_default();
                configuration.extend(part.encoded.clone());
            }
        }
        // A host that no service has is only known on the port of plain HTTP.
        if http_ports.contains(&80) {
            for (host, rule) in rules.hosts() {
                let taken = |entry: &&ServiceEntry| covers(host, &entry.service.host);
                let served = if is_wildcard(host) {
                    visible.iter().any(taken)
                } else {
                    mesh.services.get(host).is_some_and(|entry| entry.service.visibility.includes(&scope.namespace))
                };
                if !served && !rule.spec().http.is_empty() {
                    let wanted = Wanted { mesh, scope, port: 80, rule: Some(rule) };
                    let part = self.other_host(&wanted, host, rule);
                    configurations.entry("80".to_owned()).or_default().extend(part.encoded.clone());
                }
            }
        }
        let mut resources = Resources::new();
        for (name, hosts) in configurations {
            let catch_all = name.parse::<u16>().is_ok().then(|| virtual_host::catch_all(mesh.config.outbound));
            put(&mut resources, configuration(&name, hosts, catch_all));
        }
        resources
    }

    fn service_host(
        &mut self,
        wanted: &Wanted<'_>,
        entry: &ServiceEntry,
        port: &Port,
        any_name: bool,
        aliases: &[&ServiceEntry],
    ) -> Arc<HostPart> {
        let service = &entry.service;
        let key = HostKey {
            host: service.host.clone(),
            port: port.number,
            any_name,
            service: entry.service_revision,
            aliases: aliases.iter().map(|alias| alias.service_revision).collect(),
            own_namespace: service.namespace == wanted.scope.namespace
                || aliases.iter().any(|alias| alias.service.namespace == wanted.scope.namespace),
            ..wanted.key(&service.host)
        };
        let aliases: Vec<_> = aliases.iter().map(|alias| alias.service.clone()).collect();
        self.host(wanted, key, |context| {
            if any_name {
                virtual_host::of_unknown_port(service, port, wanted.rule, context)
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
        make: impl FnOnce(&Context<'_>) -> Option<route::VirtualHost>,
    ) -> Arc<HostPart> {
        let revision = |host: &Host| wanted.mesh.services.get(host).map(|entry| entry.service_revision);
        let unchanged = |part: &Arc<HostPart>| part.looked_at.iter().all(|(host, seen)| revision(host) == *seen);
        self.hosts.get(key, unchanged, || {
            // Noting what a translation looks at is what makes it sure that a change of it is seen.
            let looked_at = Mutex::new(Vec::new());
            let service = |host: &str| -> Option<Arc<Service>> {
                let found = wanted.mesh.services.get(host);
                if let Ok(mut looked_at) = looked_at.lock() {
                    looked_at.push((Host::from(host), found.map(|entry| entry.service_revision)));
                }
                found.map(|entry| entry.service.clone())
            };
            let context =
                Context { config: &wanted.mesh.config, scope: wanted.scope, port: wanted.port, service: &service };
            let encoded = make(&context).map(Part::new);
            Arc::new(HostPart { looked_at: looked_at.into_inner().unwrap_or_default(), encoded })
        })
    }
}

/// For whom, on which port and by which rules a virtual host is wanted.
struct Wanted<'a> {
    mesh: &'a Mesh,
    scope: &'a Scope,
    port: u16,
    rule: Option<&'a VirtualService>,
}

impl Wanted<'_> {
    fn key(&self, host: &Host) -> HostKey {
        let tells_apart = self.rule.is_some_and(|rule| {
            let mut matches = rule.spec().http.iter().flat_map(|http| &http.matches);
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
            source: tells_apart.then(|| (self.scope.namespace.clone(), self.scope.labels.clone())),
        }
    }
}

/// The route configuration's name: the port, or the host and the port where one service has the listener to itself.
fn route_name(service: &Service, port: &Port) -> String {
    if port.protocol == Protocol::Unknown {
        format!("{}:{}", service.host, port.number)
    } else {
        port.number.to_string()
    }
}

fn put(resources: &mut Resources, resource: Arc<Resource>) {
    resources.insert(resource.name.clone(), resource);
}

fn encode<M: Message>(name: &str, message: &M) -> Arc<Resource> {
    Resource::new(name, vec![message.encode_to_vec().into()])
}

fn encode_listener(listener: &Listener) -> Arc<Resource> {
    Resource::leading_to(&listener.name, vec![listener.encode_to_vec().into()], Refers::of_listener(listener))
}

/// Puts a route configuration together.
fn configuration(name: &str, hosts: Vec<Part>, catch_all: Option<route::VirtualHost>) -> Arc<Resource> {
    let frame = route::RouteConfiguration {
        name: name.to_owned(),
        ignore_port_in_host_matching: true,
        validate_clusters: Some(BoolValue { value: false }),
        max_direct_response_body_size_bytes: Some(UInt32Value { value: 1 << 20 }),
        ..Default::default()
    };
    let parts = hosts.into_iter().chain(catch_all.map(Part::new)).collect();
    Resource::of_hosts(name.into(), Bytes::from(frame.encode_to_vec()), parts)
}
