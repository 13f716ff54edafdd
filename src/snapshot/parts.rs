//! A cache of encoded parts, keyed by all of their inputs, so that a part shared by many scopes is built once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use prost::Message;

use super::provenance::{Provenance, provenance};
use super::validator::{OmittedResources, OutputValidator};
use super::{ClusterRefs, EncodedVirtualHost, Resource};
use crate::api::{Kind, ObjectKey};
use crate::mesh::{
    Account, Certificates, DestinationRule, Families, Host, InboundPort, Interception, PeerPolicy,
    Port, Registry, Scope, ScopeView, Service, VirtualService, VisibleService, name_and_namespace,
};
use crate::revision::Revision;
use crate::translate::listener_plan::{self, ListenerPlan};
use crate::translate::route::Context;
use crate::translate::{
    cluster, context, default_cluster, endpoint, inbound, listener, virtual_host,
};

/// Deterministic counters of the work done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkCounts {
    /// Translated virtual hosts, cluster sets, endpoint sets and listeners.
    pub translated: u64,
    /// Resources, or virtual hosts, that were encoded.
    pub encoded: u64,
    /// Hosts examined over all scopes.
    pub scope_hosts: u64,
    /// Ports whose listeners were examined, over all scopes.
    pub scope_ports: u64,
    /// Scopes built from scratch.
    pub scopes_built: u64,
    /// Scopes whose snapshot changed.
    pub scopes_changed: u64,
    /// Hosts whose names for DNS were looked at, over the scopes that have a table of names.
    pub hosts_named: u64,
}

impl WorkCounts {
    /// The counts by name, as metrics report them.
    pub(crate) fn named(self) -> [(&'static str, u64); 7] {
        let Self {
            translated,
            encoded,
            scope_hosts,
            scope_ports,
            scopes_built,
            scopes_changed,
            hosts_named,
        } = self;
        [
            ("parts_translated", translated),
            ("resources_encoded", encoded),
            ("scope_hosts", scope_hosts),
            ("scope_ports", scope_ports),
            ("scopes_built", scopes_built),
            ("scopes_changed", scopes_changed),
            ("hosts_named", hosts_named),
        ]
    }

    /// The work done since `before`.
    #[cfg(test)]
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            translated: self.translated - before.translated,
            encoded: self.encoded - before.encoded,
            scope_hosts: self.scope_hosts - before.scope_hosts,
            scope_ports: self.scope_ports - before.scope_ports,
            scopes_built: self.scopes_built - before.scopes_built,
            scopes_changed: self.scopes_changed - before.scopes_changed,
            hosts_named: self.hosts_named - before.hosts_named,
        }
    }
}

/// Encoded resources, and what was omitted from them.
#[derive(Clone, Debug, Default)]
pub(super) struct Encoded {
    pub resources: Vec<Arc<Resource>>,
    pub left: OmittedResources,
    /// The route configuration that a listener asks for.
    pub asks_for: Option<Arc<str>>,
}

/// The revisions of a service and of the rule for it.
type FoundRevisions = (Revision, Option<Revision>);

/// An encoded virtual host; `None` if no route is left.
#[derive(Debug)]
pub(super) struct CachedVirtualHost {
    /// The services that were looked up, with the results.
    lookups: Vec<(Host, Option<FoundRevisions>)>,
    pub encoded: Option<Arc<EncodedVirtualHost>>,
    pub left: OmittedResources,
}

/// The inputs of a service's clusters or endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ServiceKey {
    service: Revision,
    /// Set if the cluster embeds them.
    endpoints: Option<Revision>,
    rule: Option<Revision>,
    only: Option<BTreeSet<u16>>,
    families: Families,
    /// Set if the cluster embeds them.
    accounts: Option<Arc<[Account]>>,
    /// Where the clients get their certificates, if the cluster uses them.
    certificates: Certificates,
    /// What depends on the client's locality.
    place: endpoint::Place,
}

impl ServiceKey {
    /// `place` is `None` if the result has no endpoints.
    fn new(
        seen: &VisibleService<'_>,
        rule: Option<&DestinationRule>,
        families: Families,
        place: Option<endpoint::Place>,
    ) -> Self {
        Self {
            service: seen.known.service_revision,
            endpoints: place.as_ref().map(|_| seen.known.endpoints_revision),
            rule: rule.map(|rule| rule.revision),
            only: seen.only().cloned(),
            families,
            accounts: None,
            certificates: Certificates::None,
            place: place.unwrap_or_default(),
        }
    }

    /// That of the clusters of a service, which may depend on its endpoints.
    fn of_clusters(
        seen: &VisibleService<'_>,
        rule: Option<&DestinationRule>,
        scope: &Scope,
        place: &endpoint::Place,
    ) -> Self {
        let (service, endpoints) = (&seen.known.service, &seen.known.endpoints);
        let embeds = cluster::embeds_endpoints(service, rule, scope);
        let names = cluster::names_accounts(service, rule, scope);
        Self {
            accounts: names.then(|| endpoints.accounts.clone()),
            certificates: if names { scope.certificates } else { Certificates::None },
            ..Self::new(seen, rule, scope.families, embeds.then(|| place.clone()))
        }
    }
}

/// The inputs of a virtual host, apart from the services its routes reference (see [`CachedVirtualHost::lookups`]).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct VirtualHostKey {
    port: u16,
    any_name: bool,
    service: Option<Revision>,
    aliases: Vec<Revision>,
    rules: Option<Revision>,
    /// The proxies' namespace, if they may omit it in any of its names.
    own_namespace: Option<Arc<str>>,
    /// Set if the rules depend on the source proxy.
    source: Option<(Arc<str>, BTreeMap<String, String>)>,
}

/// The inputs of an inbound cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InboundKey {
    port: InboundPort,
    families: Families,
    rule: Option<Revision>,
    /// Set if the Sidecar sets limits.
    sidecar: Option<Revision>,
}

/// The inputs of the listener for redirected inbound connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InboundListenerKey {
    ports: Vec<InboundPort>,
    families: Families,
    certificates: Certificates,
    peers: PeerPolicy,
}

impl InboundListenerKey {
    fn new(scope: &Scope) -> Self {
        Self {
            ports: scope.inbound.clone(),
            families: scope.families,
            certificates: scope.certificates,
            peers: scope.peers.clone(),
        }
    }
}

/// The parts of one host.
#[derive(Debug, Default)]
struct OfHost {
    clusters: HashMap<ServiceKey, Arc<Encoded>>,
    endpoints: HashMap<ServiceKey, Arc<Encoded>>,
    virtual_hosts: HashMap<VirtualHostKey, Arc<CachedVirtualHost>>,
}

impl OfHost {
    /// Drops what no snapshot uses.
    fn sweep(&mut self) {
        self.clusters.retain(|_, part| Arc::strong_count(part) > 1);
        self.endpoints.retain(|_, part| Arc::strong_count(part) > 1);
        self.virtual_hosts.retain(|_, part| Arc::strong_count(part) > 1);
    }

    fn len(&self) -> usize {
        let resources =
            self.clusters.values().chain(self.endpoints.values()).map(|part| part.resources.len());
        resources.sum::<usize>() + self.virtual_hosts.len()
    }
}

/// The proxy view, port and VirtualService that a virtual host is built for.
pub(super) struct VirtualHostInput<'a> {
    pub view: &'a ScopeView<'a>,
    pub port: u16,
    pub rule: Option<&'a VirtualService>,
}

/// All parts.
#[derive(Debug, Default)]
pub(super) struct Parts {
    hosts: HashMap<Host, OfHost>,
    /// The sum of [`OfHost::len`], kept because metrics read it after each change.
    in_hosts: usize,
    inbound_clusters: HashMap<InboundKey, Arc<Encoded>>,
    inbound_listeners: HashMap<InboundListenerKey, Arc<Encoded>>,
    listeners: HashMap<ListenerPlan, Arc<Encoded>>,
    pub counts: WorkCounts,
}

impl Parts {
    /// How many encoded resources and virtual hosts there are.
    pub(crate) fn len(&self) -> usize {
        self.in_hosts
            + self.inbound_clusters.len()
            + self.inbound_listeners.len()
            + self.listeners.len()
    }

    /// Drops the parts of these hosts that no snapshot uses.
    pub(crate) fn sweep<'a>(&mut self, hosts: impl IntoIterator<Item = &'a Host>) {
        for host in hosts {
            if let Some(parts) = self.hosts.get_mut(host) {
                let before = parts.len();
                parts.sweep();
                self.in_hosts -= before - parts.len();
                if parts.len() == 0 {
                    self.hosts.remove(host);
                }
            }
        }
    }

    /// Drops the listeners and the parts of proxies' own ports that no snapshot uses.
    pub(crate) fn sweep_listeners(&mut self) {
        self.listeners.retain(|_, part| Arc::strong_count(part) > 1);
        self.inbound_clusters.retain(|_, part| Arc::strong_count(part) > 1);
        self.inbound_listeners.retain(|_, part| Arc::strong_count(part) > 1);
    }

    /// Drops every part that no snapshot uses.
    pub(crate) fn sweep_all(&mut self) {
        self.hosts.values_mut().for_each(OfHost::sweep);
        self.hosts.retain(|_, parts| parts.len() > 0);
        self.in_hosts = self.hosts.values().map(OfHost::len).sum();
        self.sweep_listeners();
    }

    fn encode(
        counts: &mut WorkCounts,
        make: impl FnOnce(&mut OutputValidator) -> Vec<Arc<Resource>>,
    ) -> Encoded {
        let mut validator = OutputValidator::default();
        let resources = make(&mut validator);
        counts.translated += 1;
        counts.encoded += resources.len() as u64;
        Encoded { resources, left: validator.finish(), asks_for: None }
    }

    /// The clusters that every proxy has.
    pub(crate) fn fixed_clusters(&mut self, families: Families) -> Arc<Encoded> {
        Arc::new(Self::encode(&mut self.counts, |validator| {
            cluster::builtin(families)
                .iter()
                .filter_map(|fixed| encode_cluster(validator, fixed, &Provenance::default()))
                .collect()
        }))
    }

    /// The clusters and the endpoints of a service.
    pub(crate) fn service(
        &mut self,
        view: &ScopeView<'_>,
        seen: &VisibleService<'_>,
    ) -> (Arc<Encoded>, Arc<Encoded>) {
        let (known, scope) = (seen.known, view.scope);
        let rule = view.destination_rule(known).map(|rule| &**rule);
        let context = context::Context { config: &view.mesh.config, scope, known, rule };
        let place = endpoint::Place::new(&known.service, rule, scope);
        let clusters_key = ServiceKey::of_clusters(seen, rule, scope, &place);
        let endpoints_key = ServiceKey::new(seen, rule, scope.families, Some(place));
        let Self { hosts, in_hosts, counts, .. } = self;
        let parts = hosts.entry(known.service.host.clone()).or_default();
        let before = parts.len();
        let clusters = parts.clusters.entry(clusters_key).or_insert_with(|| {
            Arc::new(Self::encode(counts, |validator| {
                let objects = objects_of(&known.service, rule);
                let all = seen.ports().flat_map(|port| cluster::outbound(port, context));
                all.filter_map(|cluster| encode_cluster(validator, &cluster, &objects)).collect()
            }))
        });
        let endpoints = parts.endpoints.entry(endpoints_key).or_insert_with(|| {
            Arc::new(Self::encode(counts, |validator| {
                let objects = objects_of(&known.service, rule);
                let all = seen.ports().flat_map(|port| endpoint::outbound(port, context));
                let encoded = all.map(|assignment| {
                    // Clusters and their endpoints share names, which takes less memory and time to compare.
                    let name = &assignment.cluster_name;
                    let cluster = clusters.resources.iter().find(|cluster| *cluster.name == **name);
                    let name = cluster
                        .map_or_else(|| name.as_str().into(), |cluster| cluster.name.clone());
                    Resource::new(
                        name,
                        validator.checked_assignment(assignment, objects.first()),
                        objects.clone(),
                    )
                });
                encoded.collect()
            }))
        });
        let made = (clusters.clone(), endpoints.clone());
        *in_hosts += parts.len() - before;
        made
    }

    /// The clusters of the ports that the proxies serve themselves.
    pub(crate) fn inbound_clusters(&mut self, view: &ScopeView<'_>) -> Vec<Arc<Encoded>> {
        let scope = view.scope;
        let each = scope.inbound.iter().map(|port| {
            let rule = view.inbound_rule(&port.host).map(|rule| &**rule);
            let pool = view.inbound_pool();
            let sidecar = scope.sidecar.as_ref().filter(|_| pool.is_some());
            let key = InboundKey {
                port: port.clone(),
                families: scope.families,
                rule: rule.map(|rule| rule.revision),
                sidecar: sidecar.map(|(_, revision)| *revision),
            };
            let Self { inbound_clusters, counts, .. } = self;
            let made = inbound_clusters.entry(key).or_insert_with(|| {
                let objects = rule.iter().flat_map(|rule| rule.keys.iter().cloned());
                let objects = provenance(objects.chain(sidecar.map(|(key, _)| key.clone())));
                let cluster = cluster::inbound(port, rule, pool, scope.families);
                Arc::new(Self::encode(counts, |validator| {
                    encode_cluster(validator, &cluster, &objects).into_iter().collect()
                }))
            });
            made.clone()
        });
        each.collect()
    }

    /// The outbound listeners at one port.
    pub(crate) fn listeners_at(&mut self, view: &ScopeView<'_>, port: u16) -> Vec<Arc<Encoded>> {
        let Self { listeners, counts, .. } = self;
        let each = listener_plan::listeners_at(view, port).into_iter().map(|wanted| {
            let made = listeners.entry(wanted).or_insert_with_key(|wanted| {
                let defined_by = wanted.chains.iter().filter_map(|chain| chain.defined_by.as_ref());
                let objects = provenance(defined_by.map(|(key, _)| key.clone()));
                let encoded = Self::encode(counts, |validator| {
                    encode_listener(validator, listener::outbound(wanted), objects)
                        .into_iter()
                        .collect()
                });
                Arc::new(Encoded { asks_for: wanted.http.as_deref().map(Arc::from), ..encoded })
            });
            made.clone()
        });
        each.collect()
    }

    /// The listeners for redirected traffic; empty if no traffic is redirected.
    pub(crate) fn redirected_listeners(&mut self, view: &ScopeView<'_>) -> Vec<Arc<Encoded>> {
        let scope = view.scope;
        if scope.interception != Interception::Redirect {
            return Vec::new();
        }
        let Self { inbound_listeners, counts, .. } = self;
        let outbound = listener::virtual_outbound(&default_cluster(view), scope.families);
        let outbound = Self::encode_redirected(counts, outbound, Provenance::default());
        let inbound =
            inbound_listeners.entry(InboundListenerKey::new(scope)).or_insert_with(|| {
                let inbound = inbound::virtual_inbound(scope, &view.mesh.config.trust_domain);
                let objects = provenance(scope.peers.objects.iter().cloned());
                Self::encode_redirected(counts, inbound, objects)
            });
        vec![outbound, inbound.clone()]
    }

    /// A listener for redirected traffic.
    fn encode_redirected(
        counts: &mut WorkCounts,
        listener: Listener,
        objects: Provenance,
    ) -> Arc<Encoded> {
        Arc::new(Self::encode(counts, |validator| {
            encode_listener(validator, listener, objects).into_iter().collect()
        }))
    }

    /// The virtual host of a service's port.
    pub(crate) fn service_host(
        &mut self,
        wanted: &VirtualHostInput<'_>,
        seen: &VisibleService<'_>,
        port: &Port,
        any_name: bool,
        aliases: &[VisibleService<'_>],
    ) -> Arc<CachedVirtualHost> {
        let service = &seen.known.service;
        let own = &wanted.view.scope.namespace;
        let key = VirtualHostKey {
            port: port.number,
            any_name,
            service: Some(seen.known.service_revision),
            aliases: aliases.iter().map(|alias| alias.known.service_revision).collect(),
            own_namespace: std::iter::once(&service.host)
                .chain(aliases.iter().map(|alias| &alias.known.service.host))
                .filter_map(|host| name_and_namespace(host, &wanted.view.mesh.config.domain))
                .any(|(_, namespace)| *namespace == **own)
                .then(|| own.clone()),
            ..wanted.key()
        };
        let aliases: Vec<_> = aliases.iter().map(|alias| alias.known.service.clone()).collect();
        let object = key_of(service);
        self.host(wanted, &service.host, key, Some(object), |context| {
            if any_name {
                virtual_host::of_any_name(service, port, wanted.rule, context)
            } else {
                virtual_host::of_service(service, port, &aliases, wanted.rule, context)
            }
        })
    }

    /// The virtual host for a VirtualService's host that is not a service.
    pub(crate) fn other_host(
        &mut self,
        wanted: &VirtualHostInput<'_>,
        host: &Host,
        rule: &VirtualService,
    ) -> Arc<CachedVirtualHost> {
        self.host(wanted, host, wanted.key(), None, |context| {
            virtual_host::of_host(host, rule, context)
        })
    }

    fn host(
        &mut self,
        wanted: &VirtualHostInput<'_>,
        host: &Host,
        key: VirtualHostKey,
        service: Option<ObjectKey>,
        make: impl FnOnce(&Context<'_>) -> Option<virtual_host::TranslatedVirtualHost>,
    ) -> Arc<CachedVirtualHost> {
        let view = wanted.view;
        let parts = self.hosts.entry(host.clone()).or_default();
        if let Some(part) = parts.virtual_hosts.get(&key)
            && part.lookups.iter().all(|(host, seen)| find_revisions(view, host) == *seen)
        {
            return part.clone();
        }
        // Recording every lookup of the translation ensures that a change to any of them invalidates the result.
        let lookups = Mutex::new(Vec::new());
        let context = Context {
            config: &view.mesh.config,
            scope: view.scope,
            port: wanted.port,
            service: &|host| {
                if let Ok(mut lookups) = lookups.lock() {
                    lookups.push((Host::from(host), find_revisions(view, host)));
                }
                let known = view.service(host)?.known;
                Some((known.service.clone(), view.destination_rule(known).cloned()))
            },
        };
        let mut validator = OutputValidator::default();
        let encoded = make(&context).and_then(|made| {
            let defined_by = made.defined_by.iter().flatten().cloned();
            let objects = provenance(
                defined_by.chain(wanted.rule.map(|rule| rule.key.clone())).chain(service),
            );
            validator.checked_virtual_host(&head("any"), made, &objects)
        });
        self.counts.translated += 1;
        self.counts.encoded += u64::from(encoded.is_some());
        let lookups = lookups.into_inner().unwrap_or_default();
        let part = Arc::new(CachedVirtualHost {
            lookups,
            encoded: encoded.map(Arc::new),
            left: validator.finish(),
        });
        let before = parts.len();
        parts.virtual_hosts.insert(key, part.clone());
        self.in_hosts += parts.len() - before;
        part
    }
}

impl VirtualHostInput<'_> {
    fn key(&self) -> VirtualHostKey {
        let tells_apart = self.rule.is_some_and(|rule| {
            let mut matches = rule.http().flat_map(|http| &http.route.matches);
            matches.any(|item| !item.source_labels.is_empty() || !item.source_namespace.is_empty())
        });
        VirtualHostKey {
            port: self.port,
            any_name: false,
            service: None,
            aliases: Vec::new(),
            rules: self.rule.map(|rule| rule.revision),
            own_namespace: None,
            source: tells_apart
                .then(|| (self.view.scope.namespace.clone(), self.view.scope.labels.clone())),
        }
    }
}

fn find_revisions(view: &ScopeView<'_>, host: &str) -> Option<FoundRevisions> {
    let known = view.service(host)?.known;
    Some((known.service_revision, view.destination_rule(known).map(|rule| rule.revision)))
}

/// The objects that a service's clusters and endpoints are made from.
fn objects_of(service: &Service, rule: Option<&DestinationRule>) -> Provenance {
    let rules = rule.iter().flat_map(|rule| rule.keys.iter().cloned());
    provenance(rules.chain([key_of(service)]))
}

/// The object that defines a service.
fn key_of(service: &Service) -> ObjectKey {
    let kind = match service.registry {
        Registry::Kubernetes => Kind::Service,
        Registry::ServiceEntry => Kind::ServiceEntry,
    };
    ObjectKey { kind, namespace: service.namespace.clone(), name: service.name.clone() }
}

fn encode_cluster(
    validator: &mut OutputValidator,
    cluster: &Cluster,
    objects: &Provenance,
) -> Option<Arc<Resource>> {
    let bytes = validator.pass("cds", &cluster.name, cluster, objects.first())?;
    Some(Resource::new(cluster.name.as_str(), bytes, objects.clone()))
}

fn encode_listener(
    validator: &mut OutputValidator,
    listener: Listener,
    objects: Provenance,
) -> Option<Arc<Resource>> {
    let (listener, bytes) = validator.checked_listener(listener)?;
    Some(Resource::with_cluster_refs(
        listener.name.as_str(),
        bytes,
        ClusterRefs::of_listener(&listener),
        objects,
    ))
}

/// The encoded route configuration without virtual hosts.
pub(super) fn head(name: &str) -> Bytes {
    let frame = route::RouteConfiguration {
        name: name.to_owned(),
        ignore_port_in_host_matching: true,
        validate_clusters: Some(BoolValue { value: false }),
        max_direct_response_body_size_bytes: Some(UInt32Value { value: 1 << 20 }),
        ..Default::default()
    };
    frame.encode_to_vec().into()
}
