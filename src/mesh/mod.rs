//! The mesh model: services with their endpoints, and the rules that apply to them, by host.
//!
//! [`MeshBuilder`] updates the model incrementally from the [`Store`]; a [`Mesh`] is one immutable, shared state of it.

mod builder;
mod captured;
mod change;
mod delegate;
mod destination_rules;
mod endpoint;
mod host;
mod peer_authentications;
mod pod;
mod proxy;
mod relevance;
#[cfg(test)]
mod revision_tests;
mod rules;
mod same_host;
mod scope;
mod service;
mod sidecar;
mod topology;
mod view;
mod virtual_services;
mod visibility;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use builder::MeshBuilder;
pub(crate) use change::MeshChange;
pub(crate) use destination_rules::DestinationRules;
pub(crate) use endpoint::{
    Account, Endpoint, EndpointSet, Health, SERVICE_ACCOUNT, TLS_MODE, TLS_MODE_ISTIO, Workload,
};
pub use host::resolve;
pub(crate) use host::{Host, covers, is_wildcard, name_and_namespace, without_brackets};
pub(crate) use peer_authentications::{Accepts, PeerAuthentications, PeerPolicy};
pub(crate) use pod::{pod_name, proxy_of_pod};
pub use proxy::Certificates;
pub(crate) use proxy::{Families, InboundPort, Interception, ProxyError};
pub use proxy::{NodeMetadata, Proxy, Scope};
pub(crate) use rules::{DestinationRule, HttpRule, Overlay, VirtualService};
pub(crate) use service::{Port, Protocol, Registry, Resolution, Service, canonical_address};
pub(crate) use sidecar::Sidecars;
pub use topology::Locality;
pub(crate) use topology::{HOSTNAME, NETWORK, REGION, SUBZONE, Topology, ZONE};
pub use view::ScopeView;
pub(crate) use view::VisibleService;
pub(crate) use virtual_services::{Precedence, VirtualServices, VisibleVirtualServices};
pub(crate) use visibility::Visibility;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};

use crate::api::Age;
use crate::revision::Revision;
use relevance::ScopeAttributes;

/// Mesh-wide settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// The cluster's DNS domain.
    pub domain: Arc<str>,
    /// The cluster's id.
    pub cluster: Arc<str>,
    /// The namespace whose rules apply to all namespaces.
    pub root_namespace: Arc<str>,
    /// What happens to traffic for unknown hosts.
    pub outbound: OutboundPolicy,
    /// What happens to weight for a subset without a ready endpoint, unless the VirtualService overrides it.
    pub empty_subset: EmptySubset,
    /// The revision whose Istio objects are read besides those without a revision; `None` reads all.
    pub revision: Option<Arc<str>>,
    /// How a change of weights reaches proxies.
    pub weights: WeightDelivery,
    /// The trust domain of the identities in certificates.
    pub trust_domain: Arc<str>,
    /// Whether proxies identify themselves and get certificates from weir. Then a PeerAuthentication applies to those
    /// without certificates as well.
    pub identities: bool,
}

/// How a change of weights reaches proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightDelivery {
    /// As runtime values to proxies that subscribe to the runtime layer, to others in their routes.
    Runtime,
    /// In the routes of all proxies.
    #[default]
    Routes,
}

/// What happens to weight for a subset without a ready endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EmptySubset {
    /// It is held back until an endpoint is ready.
    #[default]
    Hold,
    /// It takes effect at once; requests to the subset fail.
    Allow,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            domain: "cluster.local".into(),
            cluster: "Kubernetes".into(),
            root_namespace: "istio-system".into(),
            outbound: OutboundPolicy::AllowAny,
            empty_subset: EmptySubset::Hold,
            revision: None,
            weights: WeightDelivery::Routes,
            trust_domain: "cluster.local".into(),
            identities: false,
        }
    }
}

/// What happens to traffic for unknown hosts. Source: Istio's `meshConfig.outboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum OutboundPolicy {
    /// It passes through.
    AllowAny,
    /// It is blocked.
    RegistryOnly,
}

/// A service with its endpoints.
#[derive(Clone, Debug)]
pub struct RegisteredService {
    /// The service.
    pub service: Arc<Service>,
    /// Identifies the content of `service`.
    pub service_revision: Revision,
    /// Its endpoints.
    pub endpoints: Arc<EndpointSet>,
    /// Identifies the content of `endpoints`.
    pub endpoints_revision: Revision,
}

impl PartialEq for RegisteredService {
    fn eq(&self, other: &Self) -> bool {
        (self.service_revision, self.endpoints_revision)
            == (other.service_revision, other.endpoints_revision)
    }
}

// With it, comparing two `Arc`s looks at their addresses first.
impl Eq for RegisteredService {}

/// The services that share one host, in order of precedence.
pub(crate) type HostServices = Arc<Vec<RegisteredService>>;

/// One state of the mesh.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// The mesh-wide settings.
    pub config: Arc<MeshConfig>,
    /// All services by host.
    pub services: OrdMap<Host, HostServices>,
    /// All VirtualServices.
    pub virtual_services: Arc<VirtualServices>,
    /// All DestinationRules.
    pub destination_rules: Arc<DestinationRules>,
    /// All Sidecars.
    pub sidecars: Arc<Sidecars>,
    /// All PeerAuthentications.
    pub peer_authentications: Arc<PeerAuthentications>,
    /// The services that have an endpoint at each address.
    by_address: OrdMap<Arc<str>, OrdSet<Host>>,
    /// The services that have a port with this number, by protocol class, oldest first.
    by_port: OrdMap<(u16, PortClass), OrdSet<(Age, Host)>>,
    /// The hosts of the ExternalName services that point to a host.
    aliases: OrdMap<Host, OrdSet<Host>>,
    /// The locality of each pod whose node is known.
    pod_topologies: OrdMap<Name, Arc<Topology>>,
    nodes: Arc<endpoint::Nodes>,
    /// The cluster's network from the root namespace's label; empty if unset.
    network: Arc<str>,
    /// The proxy attributes that some rule reads.
    scope_attributes: Arc<ScopeAttributes>,
}

/// The protocol class of a port, which a listener shared by several ports distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PortClass {
    /// HTTP other than gRPC-Web: all such ports contribute the same to a shared listener.
    Http,
    /// gRPC-Web: the same, with one filter more.
    GrpcWeb,
    /// Everything else: each adds something of its own.
    Other,
}

impl PortClass {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Http, Self::GrpcWeb, Self::Other];

    /// That of a protocol.
    pub(crate) fn of(protocol: Protocol) -> Self {
        match protocol {
            Protocol::GrpcWeb => Self::GrpcWeb,
            protocol if protocol.is_http() => Self::Http,
            _ => Self::Other,
        }
    }
}

impl Mesh {
    /// A mesh without any object.
    pub(crate) fn empty(config: MeshConfig) -> Self {
        Self {
            config: Arc::new(config),
            services: OrdMap::new(),
            virtual_services: Arc::default(),
            destination_rules: Arc::default(),
            sidecars: Arc::default(),
            peer_authentications: Arc::default(),
            by_address: OrdMap::new(),
            by_port: OrdMap::new(),
            aliases: OrdMap::new(),
            pod_topologies: OrdMap::new(),
            nodes: Arc::default(),
            network: Arc::default(),
            scope_attributes: Arc::default(),
        }
    }

    /// The ports on which services reach `proxy`. If several services use the same port, the oldest wins.
    fn inbound(&self, proxy: &Proxy) -> Vec<InboundPort> {
        let mut by_target: BTreeMap<u16, (crate::api::Age, InboundPort)> = BTreeMap::new();
        for (service, endpoint) in self.endpoints_of(proxy) {
            let Some(port) = service.ports.iter().find(|port| port.name == endpoint.port_name)
            else {
                continue;
            };
            let inbound = InboundPort {
                target: endpoint.port,
                host: service.host.clone(),
                port: port.number,
                protocol: port.protocol,
            };
            match by_target.get(&endpoint.port) {
                Some((age, known)) if (*age, known) <= (service.age, &inbound) => {}
                _ => {
                    by_target.insert(endpoint.port, (service.age, inbound));
                }
            }
        }
        by_target.into_values().map(|(_, port)| port).collect()
    }

    /// The service of a host that clients in `namespace` use. In order of precedence: one of that namespace, a
    /// Kubernetes Service before a ServiceEntry, one exported to it by name before a public one, and the oldest.
    pub(crate) fn pick<'a>(
        &self,
        list: &'a HostServices,
        namespace: &str,
        also: impl Fn(&RegisteredService) -> bool,
    ) -> Option<&'a RegisteredService> {
        let seen =
            list.iter().filter(|known| known.service.visibility.includes(namespace) && also(known));
        seen.min_by_key(|known| {
            let service = &known.service;
            (
                *service.namespace != *namespace,
                service.registry,
                service.visibility == Visibility::Public,
            )
        })
    }

    /// The hosts of services that have a port of this number and class, the oldest first.
    pub(crate) fn hosts_at(&self, port: u16, class: PortClass) -> impl Iterator<Item = &Host> {
        self.by_port.get(&(port, class)).into_iter().flatten().map(|(_, host)| host)
    }

    /// The hosts of the ExternalName services whose target is a host, regardless of visibility.
    pub(crate) fn aliases_of(&self, host: &str) -> impl Iterator<Item = &Host> {
        self.aliases.get(host).into_iter().flatten()
    }

    /// The hosts that a rule for `name` applies to: the name itself, and every known host that it covers if it is a
    /// wildcard.
    pub(crate) fn hosts_covered_by(&self, name: &Host) -> BTreeSet<Host> {
        let mut found = BTreeSet::from([name.clone()]);
        if is_wildcard(name) {
            let known = self.services.keys().chain(self.virtual_services.hosts());
            found.extend(known.filter(|known| covers(name, known)).cloned());
        }
        found
    }

    /// The services with an endpoint at an address.
    pub(crate) fn services_at(&self, address: &str) -> impl Iterator<Item = &RegisteredService> {
        let hosts = self.by_address.get(address).into_iter().flatten();
        hosts.filter_map(|host| self.services.get(host)).flat_map(|list| list.iter())
    }

    /// The numbers of all ports that any service has.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.by_port.keys().map(|(port, _)| *port).collect()
    }

    /// The first service of a host, regardless of visibility.
    pub(crate) fn any_service(&self, host: &str) -> Option<&RegisteredService> {
        self.services.get(host)?.first()
    }
}

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

/// Calls `found` with each key at which two maps differ, and both values. Takes time proportional to the differences if
/// one map was derived from the other.
pub(crate) fn diff<'a, K: Ord + Clone, V: PartialEq + Clone>(
    old: &'a OrdMap<K, V>,
    new: &'a OrdMap<K, V>,
    mut found: impl FnMut(&'a K, Option<&'a V>, Option<&'a V>),
) {
    for item in old.diff(new) {
        match item {
            DiffItem::Add(key, new) => found(key, None, Some(new)),
            DiffItem::Update { old, new } => found(new.0, Some(old.1), Some(new.1)),
            DiffItem::Remove(key, old) => found(key, Some(old), None),
        }
    }
}
