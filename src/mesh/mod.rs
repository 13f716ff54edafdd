//! The mesh as clients see it: services with their endpoints, and the rules about them, by host.
//!
//! [`Builder`] keeps the model up to date from the [`Store`], touching what a change touches; a [`Mesh`] is one state
//! of it, shared and never changed.

mod endpoint;
mod host;
mod proxy;
mod rules;
mod service;
mod visibility;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use endpoint::{Endpoint, EndpointSet, Health, Locality};
pub use host::{Host, covers, is_wildcard, resolve};
pub use proxy::{InboundPort, Interception, NodeMetadata, Proxy, ProxyError, Scope};
pub use rules::{DestinationRule, DestinationRules, VirtualService, VirtualServices, VirtualServicesByHost};
pub use service::{Port, Protocol, Resolution, Service};
pub use visibility::Visibility;

use crate::api::{Kind, Labels, Object, ObjectKey, Spec, selects};
use crate::store::Store;

/// What holds for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// The cluster's domain.
    pub domain: Arc<str>,
    /// The namespace whose rules hold for all others.
    pub root_namespace: Arc<str>,
    /// What happens to requests for hosts that nobody knows.
    pub outbound: OutboundPolicy,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            outbound: OutboundPolicy::AllowAny,
        }
    }
}

/// What happens to traffic for hosts that nobody knows. Source: Istio's `meshConfig.outboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OutboundPolicy {
    /// It passes.
    AllowAny,
    /// It is refused.
    RegistryOnly,
}

/// A service with its endpoints.
#[derive(Clone, Debug)]
pub struct ServiceEntry {
    /// The service.
    pub service: Arc<Service>,
    /// Changes whenever `service` does.
    pub service_revision: u64,
    /// Its endpoints.
    pub endpoints: Arc<EndpointSet>,
    /// Changes whenever `endpoints` do.
    pub endpoints_revision: u64,
}

/// One state of the mesh.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// What holds for all of it.
    pub config: Arc<MeshConfig>,
    /// All services by host.
    pub services: Arc<BTreeMap<Host, ServiceEntry>>,
    /// All VirtualServices.
    pub virtual_services: Arc<VirtualServices>,
    /// All DestinationRules.
    pub destination_rules: Arc<DestinationRules>,
    /// Which services have an endpoint at an address.
    by_address: Arc<BTreeMap<Arc<str>, BTreeSet<Host>>>,
    /// The labels that some rule looks at.
    labels_in_use: Arc<BTreeSet<String>>,
}

impl Mesh {
    /// What of `proxy` can change its answer in this state of the mesh.
    pub fn scope(&self, proxy: &Proxy) -> Scope {
        let labels = proxy.labels.iter().filter(|(name, _)| self.labels_in_use.contains(*name));
        Scope {
            namespace: proxy.namespace.clone(),
            labels: labels.map(|(name, value)| (name.clone(), value.clone())).collect(),
            interception: proxy.interception,
            inbound: match proxy.interception {
                Interception::None => Vec::new(),
                Interception::Redirect => self.inbound(proxy),
            },
        }
    }

    /// The ports at which services reach `proxy`, each number once; the oldest service wins it.
    fn inbound(&self, proxy: &Proxy) -> Vec<InboundPort> {
        let mut by_target: BTreeMap<u16, (crate::api::Age, InboundPort)> = BTreeMap::new();
        let hosts = proxy.addresses.iter().filter_map(|address| self.by_address.get(address)).flatten();
        for entry in hosts.filter_map(|host| self.services.get(host)) {
            let service = &entry.service;
            for endpoint in entry.endpoints.list.iter().filter(|endpoint| proxy.addresses.contains(&endpoint.address)) {
                let Some(port) = service.ports.iter().find(|port| port.name == endpoint.port_name) else { continue };
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
        }
        by_target.into_values().map(|(_, port)| port).collect()
    }

    /// The services that `namespace` sees, by host.
    pub fn visible_services<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a ServiceEntry> {
        self.services.values().filter(move |entry| entry.service.visibility.includes(namespace))
    }

    /// The rule for a service as a client in `scope` sees it.
    pub fn destination_rule(&self, service: &Service, scope: &Scope) -> Option<&Arc<DestinationRule>> {
        self.destination_rules.find(
            &service.host,
            &service.namespace,
            &self.config.root_namespace,
            &scope.namespace,
            &scope.labels,
        )
    }
}

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

/// Keeps the model up to date.
#[derive(Debug)]
pub struct Builder {
    mesh: Mesh,
    workloads: endpoint::Workloads,
    /// Which services have an endpoint that is this pod.
    services_of_pod: BTreeMap<Name, BTreeSet<Name>>,
    pods_of_service: BTreeMap<Name, Vec<Name>>,
    /// The slices of each service, and the service of each slice as last seen, to find those that moved.
    slices: BTreeMap<Name, BTreeSet<Arc<str>>>,
    service_of_slice: BTreeMap<Name, Arc<str>>,
    virtual_services: BTreeMap<ObjectKey, Arc<VirtualService>>,
    revision: u64,
}

impl Builder {
    /// An empty mesh.
    pub fn new(config: MeshConfig) -> Self {
        let mesh = Mesh {
            config: Arc::new(config),
            services: Arc::default(),
            virtual_services: Arc::default(),
            destination_rules: Arc::default(),
            by_address: Arc::default(),
            labels_in_use: Arc::default(),
        };
        Self {
            mesh,
            workloads: endpoint::Workloads::default(),
            services_of_pod: BTreeMap::new(),
            pods_of_service: BTreeMap::new(),
            slices: BTreeMap::new(),
            service_of_slice: BTreeMap::new(),
            virtual_services: BTreeMap::new(),
            revision: 0,
        }
    }

    /// Takes in what changed in `store`, and gives the new state.
    pub fn update(&mut self, store: &Store, dirty: &BTreeSet<ObjectKey>) -> Mesh {
        let mut services: BTreeSet<Name> = BTreeSet::new();
        let (mut virtual_services, mut destination_rules) = (false, false);
        for key in dirty {
            let name = (key.namespace.clone(), key.name.clone());
            let object = store.get(key).map(|entry| &entry.object);
            match key.kind {
                Kind::Namespace => {}
                Kind::Node => {
                    if self.update_node(key, object) {
                        services.extend(self.slices.keys().cloned());
                        services.extend(store.all(Kind::Endpoints).map(|entry| name_of(&entry.object)));
                    }
                }
                Kind::Pod => {
                    self.update_pod(&name, object);
                    services.extend(self.services_of_pod.get(&name).into_iter().flatten().cloned());
                }
                Kind::Service | Kind::Endpoints => {
                    services.insert(name);
                }
                Kind::EndpointSlice => services.extend(self.update_slice(name, object)),
                Kind::VirtualService => {
                    virtual_services = true;
                    self.update_virtual_service(store, key);
                }
                Kind::DestinationRule => destination_rules = true,
            }
        }
        for name in &services {
            self.update_service(store, name);
        }
        if virtual_services {
            let list = self.virtual_services.values().cloned().collect();
            self.mesh.virtual_services = Arc::new(VirtualServices::new(list));
        }
        if destination_rules {
            let objects = store.all(Kind::DestinationRule).map(|entry| (entry.revision, &entry.object));
            self.mesh.destination_rules = Arc::new(DestinationRules::new(objects, &self.mesh.config.domain));
        }
        if virtual_services || destination_rules {
            self.mesh.labels_in_use = Arc::new(labels_in_use(&self.mesh));
        }
        self.mesh.clone()
    }

    fn update_node(&mut self, key: &ObjectKey, object: Option<&Arc<Object>>) -> bool {
        let new = object.map(|node| Arc::new(endpoint::node_locality(&node.meta.labels)));
        let old = match &new {
            Some(locality) => self.workloads.nodes.insert(key.name.clone(), locality.clone()),
            None => self.workloads.nodes.remove(&key.name),
        };
        old != new
    }

    fn update_pod(&mut self, name: &Name, object: Option<&Arc<Object>>) {
        match object {
            Some(pod) => self.workloads.pods.insert(name.clone(), Arc::new(pod.meta.labels.clone())),
            None => self.workloads.pods.remove(name),
        };
    }

    /// The services it belonged to and belongs to now.
    fn update_slice(&mut self, name: Name, object: Option<&Arc<Object>>) -> impl Iterator<Item = Name> + use<> {
        let label = object.and_then(|slice| slice.meta.labels.get("kubernetes.io/service-name"));
        let new: Option<Arc<str>> = label.map(|label| label.as_str().into());
        let old = match &new {
            Some(service) => self.service_of_slice.insert(name.clone(), service.clone()),
            None => self.service_of_slice.remove(&name),
        };
        if let Some(old) = old.as_ref().filter(|old| Some(*old) != new.as_ref()) {
            let service = (name.0.clone(), old.clone());
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.remove(&name.1);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
        }
        if let Some(new) = &new {
            self.slices.entry((name.0.clone(), new.clone())).or_default().insert(name.1.clone());
        }
        let namespace = name.0;
        [old, new].into_iter().flatten().map(move |service| (namespace.clone(), service))
    }

    fn update_virtual_service(&mut self, store: &Store, key: &ObjectKey) {
        match store.get(key) {
            Some(entry) => {
                let one = VirtualService::new(entry.revision, &entry.object, &self.mesh.config.domain);
                self.virtual_services.insert(key.clone(), Arc::new(one));
            }
            None => {
                self.virtual_services.remove(key);
            }
        }
    }

    fn update_service(&mut self, store: &Store, name: &Name) {
        let key = |kind: Kind| ObjectKey { kind, namespace: name.0.clone(), name: name.1.clone() };
        let domain = self.mesh.config.domain.clone();
        let host: Host = format!("{}.{}.svc.{domain}", name.1, name.0).to_ascii_lowercase().into();
        let old = self.mesh.services.get(&host).cloned();
        let new = store.get(&key(Kind::Service)).and_then(|entry| match &entry.object.spec {
            Spec::Service(spec) => Some((entry.revision, Service::from_kubernetes(&entry.object.meta, spec, &domain))),
            _ => None,
        });
        let Some((revision, service)) = new else {
            if let Some(old) = old {
                self.forget_endpoints(name, &old);
                Arc::make_mut(&mut self.mesh.services).remove(&host);
            }
            return;
        };
        let slices = self.slices.get(name).into_iter().flatten().filter_map(|slice| {
            let key = ObjectKey { kind: Kind::EndpointSlice, namespace: name.0.clone(), name: slice.clone() };
            store.get(&key).map(|entry| &*entry.object)
        });
        let slices: Vec<_> = slices.collect();
        let endpoints = store.get(&key(Kind::Endpoints)).map(|entry| &*entry.object);
        let set = endpoint::collect(&service, slices.iter().copied(), endpoints, &self.workloads);
        let (endpoints_revision, set) = match &old {
            Some(old) if *old.endpoints == set => (old.endpoints_revision, old.endpoints.clone()),
            _ => {
                self.revision += 1;
                (self.revision, Arc::new(set))
            }
        };
        let (service_revision, service) = match &old {
            Some(old) if *old.service == service => (old.service_revision, old.service.clone()),
            _ => (revision, Arc::new(service)),
        };
        if let Some(old) = &old {
            self.forget_endpoints(name, old);
        }
        let pods = pods_of(&slices, endpoints);
        for pod in &pods {
            self.services_of_pod.entry(pod.clone()).or_default().insert(name.clone());
        }
        self.pods_of_service.insert(name.clone(), pods);
        let by_address = Arc::make_mut(&mut self.mesh.by_address);
        for endpoint in &set.list {
            by_address.entry(endpoint.address.clone()).or_default().insert(host.clone());
        }
        let entry = ServiceEntry { service, service_revision, endpoints: set, endpoints_revision };
        Arc::make_mut(&mut self.mesh.services).insert(host, entry);
    }

    fn forget_endpoints(&mut self, name: &Name, old: &ServiceEntry) {
        for pod in self.pods_of_service.remove(name).unwrap_or_default() {
            if let Some(services) = self.services_of_pod.get_mut(&pod) {
                services.remove(name);
                if services.is_empty() {
                    self.services_of_pod.remove(&pod);
                }
            }
        }
        let by_address = Arc::make_mut(&mut self.mesh.by_address);
        for endpoint in &old.endpoints.list {
            if let Some(hosts) = by_address.get_mut(&endpoint.address) {
                hosts.remove(&old.service.host);
                if hosts.is_empty() {
                    by_address.remove(&endpoint.address);
                }
            }
        }
    }
}

fn name_of(object: &Object) -> Name {
    (object.meta.namespace.clone(), object.meta.name.clone())
}

/// The pods that endpoints refer to, known or not: a pod's labels may come after the endpoint.
fn pods_of(slices: &[&Object], endpoints: Option<&Object>) -> Vec<Name> {
    let mut pods = Vec::new();
    for object in slices.iter().copied().chain(endpoints) {
        let targets: Vec<_> = match &object.spec {
            Spec::EndpointSlice(spec) => spec.endpoints.iter().filter_map(|one| one.target_ref.as_ref()).collect(),
            Spec::Endpoints(spec) => spec
                .subsets
                .iter()
                .flat_map(|subset| subset.addresses.iter().chain(&subset.not_ready_addresses))
                .filter_map(|one| one.target_ref.as_ref())
                .collect(),
            _ => Vec::new(),
        };
        for target in targets.into_iter().filter(|target| target.kind == "Pod") {
            let own = object.meta.namespace.clone();
            let namespace = if target.namespace.is_empty() { own } else { target.namespace.as_str().into() };
            pods.push((namespace, target.name.as_str().into()));
        }
    }
    pods
}

/// The names of the labels by which some rule tells proxies apart.
fn labels_in_use(mesh: &Mesh) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for one in mesh.virtual_services.iter() {
        let spec = one.spec();
        let http = spec.http.iter().flat_map(|route| route.matches.iter().map(|one| &one.source_labels));
        let tls = spec.tls.iter().flat_map(|route| route.matches.iter().map(|one| &one.source_labels));
        let tcp = spec.tcp.iter().flat_map(|route| route.matches.iter().map(|one| &one.source_labels));
        names.extend(http.chain(tls).chain(tcp).flat_map(|labels| labels.keys().cloned()));
    }
    for rule in mesh.destination_rules.iter() {
        names.extend(rule.selector.iter().flat_map(|labels| labels.keys().cloned()));
    }
    names
}

/// Whether an endpoint belongs to a subset with these labels.
pub fn in_subset(endpoint: &Endpoint, labels: &Labels) -> bool {
    selects(labels, &endpoint.labels)
}
