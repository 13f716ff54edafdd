//! The mesh as clients see it: services with their endpoints, and the rules about them, by host.
//!
//! [`Builder`] keeps the model up to date from the [`Store`], touching what a change touches; a [`Mesh`] is one state
//! of it, shared and never changed.

mod delegate;
mod endpoint;
mod host;
mod proxy;
mod rules;
mod same_host;
mod service;
mod sidecar;
mod view;
mod visibility;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use endpoint::{Endpoint, EndpointSet, Health, Locality, Workload};
pub use host::{Host, covers, is_wildcard, resolve, without_brackets};
pub use proxy::{Families, InboundPort, Interception, NodeMetadata, Proxy, ProxyError, Scope};
pub use rules::{
    DestinationRule, DestinationRules, HttpRule, LostRoute, VirtualService, VirtualServices, VirtualServicesByHost,
};
pub use service::{Port, Preference, Protocol, Registry, Resolution, Service, one_form};
pub use sidecar::{Sidecar, Sidecars};
pub use view::{Seen, View};
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
    /// What happens to weight for a subset that has no ready endpoint, where the VirtualService does not say.
    pub empty_subset: EmptySubset,
}

/// What happens to weight for a subset that has no ready endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EmptySubset {
    /// It is held back until one is ready.
    #[default]
    Hold,
    /// It is given; requests that go there fail.
    Allow,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            outbound: OutboundPolicy::AllowAny,
            empty_subset: EmptySubset::Hold,
        }
    }
}

/// What happens to traffic for hosts that nobody knows. Source: Istio's `meshConfig.outboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum OutboundPolicy {
    /// It passes.
    AllowAny,
    /// It is refused.
    RegistryOnly,
}

/// A service with its endpoints.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The service.
    pub service: Arc<Service>,
    /// Changes whenever `service` does.
    pub service_revision: u64,
    /// Its endpoints.
    pub endpoints: Arc<EndpointSet>,
    /// Changes whenever `endpoints` do.
    pub endpoints_revision: u64,
}

/// The services that have one host, the one that counts first where all are seen.
pub type SameHost = Arc<Vec<Registered>>;

/// One state of the mesh.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// What holds for all of it.
    pub config: Arc<MeshConfig>,
    /// All services by host.
    pub services: Arc<BTreeMap<Host, SameHost>>,
    /// All VirtualServices.
    pub virtual_services: Arc<VirtualServices>,
    /// All DestinationRules.
    pub destination_rules: Arc<DestinationRules>,
    /// All Sidecars.
    pub sidecars: Arc<Sidecars>,
    /// Which services have an endpoint at an address.
    by_address: Arc<BTreeMap<Arc<str>, BTreeSet<Host>>>,
    /// Where pods are, as far as they were read with their node.
    pod_localities: Arc<BTreeMap<Name, Arc<Locality>>>,
    /// What of proxies some rule looks at.
    looked_at: Arc<LookedAt>,
}

/// What of proxies some rule looks at; the rest can not change an answer.
#[derive(Clone, Debug, Default)]
struct LookedAt {
    labels: BTreeSet<String>,
    locality: bool,
    node: bool,
}

impl Mesh {
    /// What of `proxy` can change its answer in this state of the mesh.
    pub fn scope(&self, proxy: &Proxy) -> Scope {
        let labels = proxy.labels.iter().filter(|(name, _)| self.looked_at.labels.contains(*name));
        let sidecar = self.sidecars.find(&proxy.namespace, &proxy.labels, &self.config.root_namespace);
        Scope {
            namespace: proxy.namespace.clone(),
            labels: labels.map(|(name, value)| (name.clone(), value.clone())).collect(),
            interception: proxy.interception,
            inbound: match proxy.interception {
                Interception::None => Vec::new(),
                Interception::Redirect => self.inbound(proxy),
            },
            locality: if self.looked_at.locality { self.locality(proxy) } else { Locality::default() },
            node: if self.looked_at.node { proxy.node.clone() } else { Arc::default() },
            families: Families::of(&proxy.addresses),
            headless: {
                let headless = |(service, _): &(&Service, _)| service.resolution == Resolution::Passthrough;
                let own = self.endpoints_of(proxy).filter(headless).map(|(_, endpoint)| endpoint.address.clone());
                own.collect::<BTreeSet<_>>().into_iter().collect()
            },
            sidecar: sidecar.map(|sidecar| (sidecar.key.clone(), sidecar.revision)),
        }
    }

    /// Where a proxy is: as it says itself, else as its label says, else where its pod's node is, else as the endpoints
    /// at its address are.
    fn locality(&self, proxy: &Proxy) -> Locality {
        if proxy.locality != Locality::default() {
            return proxy.locality.clone();
        }
        if let Some(own) = endpoint::label_locality(&proxy.labels) {
            return own;
        }
        if let Some(own) = self.pod_localities.get(&(proxy.namespace.clone(), proxy.name.clone())) {
            return (**own).clone();
        }
        let own = self.endpoints_of(proxy).find(|(_, endpoint)| *endpoint.locality != Locality::default());
        own.map(|(_, endpoint)| (*endpoint.locality).clone()).unwrap_or_default()
    }

    /// The endpoints that a proxy's own workload is, each with its service.
    fn endpoints_of<'a>(&'a self, proxy: &'a Proxy) -> impl Iterator<Item = (&'a Service, &'a Endpoint)> {
        let hosts = proxy.addresses.iter().filter_map(|address| self.by_address.get(address)).flatten();
        let known = hosts.filter_map(|host| self.services.get(host)).flat_map(|list| list.iter());
        known.flat_map(|known| {
            let own = known.endpoints.list.iter().filter(|endpoint| proxy.addresses.contains(&endpoint.address));
            own.map(|endpoint| (&*known.service, endpoint))
        })
    }

    /// The ports at which services reach `proxy`, each number once; the oldest service wins it.
    fn inbound(&self, proxy: &Proxy) -> Vec<InboundPort> {
        let mut by_target: BTreeMap<u16, (crate::api::Age, InboundPort)> = BTreeMap::new();
        for (service, endpoint) in self.endpoints_of(proxy) {
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
        by_target.into_values().map(|(_, port)| port).collect()
    }

    /// The service of a host that counts in `namespace`: its own before others, a Kubernetes Service before a
    /// ServiceEntry, one that is exported to it by name before one that all see, and the oldest of these.
    fn pick<'a>(
        &self,
        list: &'a SameHost,
        namespace: &str,
        also: impl Fn(&Registered) -> bool,
    ) -> Option<&'a Registered> {
        let seen = list.iter().filter(|known| known.service.visibility.includes(namespace) && also(known));
        seen.min_by_key(|known| {
            let service = &known.service;
            (*service.namespace != *namespace, service.registry, service.visibility == Visibility::Public)
        })
    }

    /// The first service of a host, whoever sees it.
    pub fn any_service(&self, host: &str) -> Option<&Registered> {
        self.services.get(host)?.first()
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
    /// The hosts of each ServiceEntry as last seen.
    hosts_of_entry: BTreeMap<Name, Vec<Host>>,
    declared: same_host::Declared,
    virtual_services: BTreeMap<ObjectKey, Arc<VirtualService>>,
    revision: u64,
}

/// What has to be made anew.
#[derive(Default)]
struct Stale {
    services: BTreeSet<Name>,
    entries: BTreeSet<Name>,
    virtual_services: bool,
    destination_rules: bool,
    sidecars: bool,
    pods: bool,
}

impl Builder {
    /// An empty mesh.
    pub fn new(config: MeshConfig) -> Self {
        let mesh = Mesh {
            config: Arc::new(config),
            services: Arc::default(),
            virtual_services: Arc::default(),
            destination_rules: Arc::default(),
            sidecars: Arc::default(),
            by_address: Arc::default(),
            pod_localities: Arc::default(),
            looked_at: Arc::default(),
        };
        Self {
            mesh,
            workloads: endpoint::Workloads::default(),
            services_of_pod: BTreeMap::new(),
            pods_of_service: BTreeMap::new(),
            slices: BTreeMap::new(),
            service_of_slice: BTreeMap::new(),
            hosts_of_entry: BTreeMap::new(),
            declared: same_host::Declared::default(),
            virtual_services: BTreeMap::new(),
            revision: 0,
        }
    }

    /// Takes in what changed in `store`, and gives the new state.
    pub fn update(&mut self, store: &Store, dirty: &BTreeSet<ObjectKey>) -> Mesh {
        let mut stale = Stale::default();
        for key in dirty {
            self.note(store, key, &mut stale);
        }
        for name in &stale.services {
            self.update_service(store, name);
        }
        for name in &stale.entries {
            self.update_entry(store, name);
        }
        if !stale.services.is_empty() {
            self.follow_aliases();
        }
        if stale.virtual_services {
            let list = self.virtual_services.values().cloned().collect();
            self.mesh.virtual_services = Arc::new(VirtualServices::new(list, &self.mesh.config.domain));
        }
        if stale.destination_rules {
            let objects = store.all(Kind::DestinationRule).map(|entry| (entry.revision, &entry.object));
            self.mesh.destination_rules = Arc::new(DestinationRules::new(objects, &self.mesh.config.domain));
        }
        if stale.sidecars {
            let objects = store.all(Kind::Sidecar).map(|entry| (entry.revision, &entry.object));
            self.mesh.sidecars = Arc::new(Sidecars::new(objects));
        }
        if stale.pods {
            let place = |(name, pod): (&Name, &Arc<Workload>)| {
                Some((name.clone(), self.workloads.nodes.get(pod.node.as_str())?.clone()))
            };
            self.mesh.pod_localities = Arc::new(self.workloads.pods.iter().filter_map(place).collect());
        }
        let services = !stale.services.is_empty() || !stale.entries.is_empty();
        if stale.virtual_services || stale.destination_rules || services {
            self.mesh.looked_at = Arc::new(looked_at(&self.mesh));
        }
        self.mesh.clone()
    }

    fn note(&mut self, store: &Store, key: &ObjectKey, stale: &mut Stale) {
        let name = (key.namespace.clone(), key.name.clone());
        let object = store.get(key).map(|entry| &entry.object);
        match key.kind {
            Kind::Namespace => {}
            Kind::Node => {
                if self.update_node(key, object) {
                    stale.pods = true;
                    stale.services.extend(self.slices.keys().cloned());
                    stale.services.extend(store.all(Kind::Endpoints).map(|entry| name_of(&entry.object)));
                    stale.entries.extend(store.all(Kind::ServiceEntry).map(|entry| name_of(&entry.object)));
                }
            }
            Kind::Pod => {
                stale.pods |= self.update_pod(&name, object);
                stale.services.extend(self.services_of_pod.get(&name).into_iter().flatten().cloned());
                stale.entries.extend(selecting_entries(store, &key.namespace));
            }
            Kind::Service | Kind::Endpoints => {
                stale.services.insert(name);
            }
            Kind::EndpointSlice => {
                stale.services.extend(self.update_slice(name, object));
                stale.entries.extend(selecting_entries(store, &key.namespace));
            }
            Kind::ServiceEntry => {
                stale.entries.insert(name);
            }
            Kind::WorkloadEntry => {
                // Whom it was selected by before is not known, and these are few.
                stale.entries.extend(selecting_entries(store, &key.namespace));
                let selecting = store.all(Kind::Service).filter(|entry| match &entry.object.spec {
                    Spec::Service(spec) => entry.object.meta.namespace == key.namespace && !spec.selector.is_empty(),
                    _ => false,
                });
                stale.services.extend(selecting.map(|entry| name_of(&entry.object)));
            }
            Kind::VirtualService => {
                stale.virtual_services = true;
                self.update_virtual_service(store, key);
            }
            Kind::DestinationRule => stale.destination_rules = true,
            Kind::Sidecar => stale.sidecars = true,
        }
    }

    fn update_node(&mut self, key: &ObjectKey, object: Option<&Arc<Object>>) -> bool {
        let new = object.map(|node| Arc::new(endpoint::node_locality(&node.meta.labels)));
        let old = match &new {
            Some(locality) => self.workloads.nodes.insert(key.name.clone(), locality.clone()),
            None => self.workloads.nodes.remove(&key.name),
        };
        old != new
    }

    /// Returns whether it is, or was, known where the pod runs.
    fn update_pod(&mut self, name: &Name, object: Option<&Arc<Object>>) -> bool {
        let Some(pod) = object else {
            return self.workloads.pods.remove(name).is_some_and(|old| !old.node.is_empty());
        };
        let (node, service_account, ip) = match &pod.spec {
            Spec::Pod(spec) => (spec.node_name.clone(), spec.service_account.clone(), spec.ip.clone()),
            _ => Default::default(),
        };
        let (labels, namespace) = (pod.meta.labels.clone(), pod.meta.namespace.clone());
        let placed = !node.is_empty();
        let workload = Workload { labels, namespace, node, service_account, ip };
        let old = self.workloads.pods.insert(name.clone(), Arc::new(workload));
        placed || old.is_some_and(|old| !old.node.is_empty())
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
        self.forget_pods(name);
        let new = store.get(&key(Kind::Service)).and_then(|entry| match &entry.object.spec {
            Spec::Service(spec) => Some((entry.revision, Service::from_kubernetes(&entry.object.meta, spec, &domain))),
            _ => None,
        });
        let Some((revision, service)) = new else {
            self.put(&host, Registry::Kubernetes, name, None);
            return;
        };
        let slices = self.slices.get(name).into_iter().flatten().filter_map(|slice| {
            let key = ObjectKey { kind: Kind::EndpointSlice, namespace: name.0.clone(), name: slice.clone() };
            store.get(&key).map(|entry| &*entry.object)
        });
        let slices: Vec<_> = slices.collect();
        let endpoints = store.get(&key(Kind::Endpoints)).map(|entry| &*entry.object);
        let entries = selected_entries(store, &name.0, &service.selector);
        let set = endpoint::collect(&service, slices.iter().copied(), endpoints, entries, &self.workloads);
        let pods = pods_of(&slices, endpoints);
        for pod in &pods {
            self.services_of_pod.entry(pod.clone()).or_default().insert(name.clone());
        }
        self.pods_of_service.insert(name.clone(), pods);
        self.put(&host, Registry::Kubernetes, name, Some((revision, service, set)));
    }

    fn update_entry(&mut self, store: &Store, name: &Name) {
        let key = ObjectKey { kind: Kind::ServiceEntry, namespace: name.0.clone(), name: name.1.clone() };
        let old = self.hosts_of_entry.remove(name).unwrap_or_default();
        let Some((entry, Spec::ServiceEntry(spec))) = store.get(&key).map(|entry| (entry, &entry.object.spec)) else {
            for host in old {
                self.put(&host, Registry::ServiceEntry, name, None);
            }
            return;
        };
        let mut hosts: Vec<Host> = Vec::new();
        for host in &spec.hosts {
            let service = Service::from_service_entry(&entry.object.meta, spec, host);
            let selector = spec.workload_selector.as_ref().map(|selector| &selector.labels);
            let entries = selector.into_iter().flat_map(|labels| selected_entries(store, &name.0, labels));
            let pods = selector.into_iter().flat_map(|labels| self.selected_pods(store, &name.0, labels));
            let set = endpoint::collect_entry(&service, spec, entries, pods, &self.workloads);
            let host = service.host.clone();
            self.put(&host, Registry::ServiceEntry, name, Some((entry.revision, service, set)));
            hosts.push(host);
        }
        for host in old.iter().filter(|host| !hosts.contains(host)) {
            self.put(host, Registry::ServiceEntry, name, None);
        }
        self.hosts_of_entry.insert(name.clone(), hosts);
    }

    /// The pods of a namespace with these labels, each with its address: its own where it was read, else the one that
    /// a slice gives it.
    fn selected_pods(&self, store: &Store, namespace: &Arc<str>, labels: &Labels) -> Vec<(Arc<str>, &Arc<Workload>)> {
        let mut found: BTreeMap<Arc<str>, (Arc<str>, &Arc<Workload>)> = BTreeMap::new();
        let of_namespace = (namespace.clone(), Arc::from(""))..;
        for ((_, pod), workload) in self.workloads.pods.range(of_namespace).take_while(|((ns, _), _)| ns == namespace) {
            if !workload.ip.is_empty() && selects(labels, &workload.labels) {
                found.insert(pod.clone(), (workload.ip.as_str().into(), workload));
            }
        }
        for entry in store.all(Kind::EndpointSlice).filter(|entry| entry.object.meta.namespace == *namespace) {
            let Spec::EndpointSlice(slice) = &entry.object.spec else { continue };
            for one in &slice.endpoints {
                let Some((address, target)) = one.addresses.first().zip(one.target_ref.as_ref()) else { continue };
                let pod: Arc<str> = target.name.as_str().into();
                if target.kind != "Pod" || found.contains_key(&pod) {
                    continue;
                }
                let known = self.workloads.pods.get(&(namespace.clone(), pod.clone()));
                if let Some(workload) = known.filter(|workload| selects(labels, &workload.labels)) {
                    found.insert(pod, (address.as_str().into(), workload));
                }
            }
        }
        found.into_values().collect()
    }

    /// Replaces the service that the object of this registry and name declares for `host`, or removes it.
    fn put(&mut self, host: &Host, registry: Registry, name: &Name, new: Option<(u64, Service, EndpointSet)>) {
        self.declared.put(host, registry, name, new, &mut self.revision);
        self.publish(host);
    }

    /// Brings the services of a host in the mesh up to date with what is declared.
    fn publish(&mut self, host: &Host) {
        let list = self.declared.services(host);
        let addresses = |list: &[Registered]| -> BTreeSet<Arc<str>> {
            list.iter().flat_map(|known| &known.endpoints.list).map(|endpoint| endpoint.address.clone()).collect()
        };
        let before = self.mesh.services.get(host).map(|list| addresses(list)).unwrap_or_default();
        let after = addresses(&list);
        if before != after {
            let by_address = Arc::make_mut(&mut self.mesh.by_address);
            for address in before.difference(&after) {
                if let Some(hosts) = by_address.get_mut(address) {
                    hosts.remove(host);
                    if hosts.is_empty() {
                        by_address.remove(address);
                    }
                }
            }
            for address in after.difference(&before) {
                by_address.entry(address.clone()).or_default().insert(host.clone());
            }
        }
        let services = Arc::make_mut(&mut self.mesh.services);
        if list.is_empty() {
            services.remove(host);
        } else {
            services.insert(host.clone(), Arc::new(list));
        }
    }

    /// Brings ExternalName services up to date whose chain has another end now.
    fn follow_aliases(&mut self) {
        let leads_to = |host: &Host, end: &Host| {
            let known = self.mesh.services.get(host).and_then(|list| list.first());
            known.is_some_and(|known| known.service.alias_of.as_ref() == Some(end))
        };
        let moved = self.declared.aliases().filter(|(alias, end)| !leads_to(alias, end));
        let moved: Vec<Host> = moved.map(|(alias, _)| alias.clone()).collect();
        for alias in &moved {
            self.publish(alias);
        }
    }

    fn forget_pods(&mut self, name: &Name) {
        for pod in self.pods_of_service.remove(name).unwrap_or_default() {
            if let Some(services) = self.services_of_pod.get_mut(&pod) {
                services.remove(name);
                if services.is_empty() {
                    self.services_of_pod.remove(&pod);
                }
            }
        }
    }
}

/// The ServiceEntries of a namespace that choose their endpoints by labels.
fn selecting_entries<'a>(store: &'a Store, namespace: &'a Arc<str>) -> impl Iterator<Item = Name> + 'a {
    let selects = |object: &Object| match &object.spec {
        Spec::ServiceEntry(spec) => spec.workload_selector.is_some(),
        _ => false,
    };
    let entries = store.all(Kind::ServiceEntry).map(|entry| &entry.object);
    entries.filter(move |object| object.meta.namespace == *namespace && selects(object)).map(|object| name_of(object))
}

/// The WorkloadEntries of a namespace with these labels; none for no labels.
fn selected_entries<'a>(
    store: &'a Store,
    namespace: &'a Arc<str>,
    labels: &'a Labels,
) -> impl Iterator<Item = &'a Object> {
    let entries = store.all(Kind::WorkloadEntry).filter(|_| !labels.is_empty()).map(|entry| &*entry.object);
    entries.filter(move |object| match &object.spec {
        Spec::WorkloadEntry(spec) => {
            let has = |(name, value): (&String, &String)| {
                object.meta.labels.get(name).or_else(|| spec.labels.get(name)) == Some(value)
            };
            object.meta.namespace == *namespace && labels.iter().all(has)
        }
        _ => false,
    })
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

/// What of proxies the rules of `mesh` look at.
fn looked_at(mesh: &Mesh) -> LookedAt {
    let mut found = LookedAt::default();
    for one in mesh.virtual_services.iter() {
        let spec = one.spec();
        let http = spec.http.iter().flat_map(|route| route.matches.iter().map(|one| &one.source_labels));
        let tls = spec.tls.iter().flat_map(|route| route.matches.iter().map(|one| &one.source_labels));
        let tcp = spec.tcp.iter().flat_map(|route| route.matches.iter().map(|one| &one.source_labels));
        found.labels.extend(http.chain(tls).chain(tcp).flat_map(|labels| labels.keys().cloned()));
    }
    for rule in mesh.destination_rules.iter() {
        found.labels.extend(rule.selector.iter().flat_map(|labels| labels.keys().cloned()));
        for place in rule.places() {
            found.locality |= place.locality;
            found.node |= place.failover_priority.iter().any(|label| label.starts_with("kubernetes.io/hostname"));
            let names = place.failover_priority.iter().filter_map(|label| label.split('=').next());
            found.labels.extend(names.map(str::to_owned));
        }
    }
    for known in mesh.services.values().flat_map(|list| list.iter()) {
        found.locality |= known.service.preference.is_some();
        found.node |= known.service.preference == Some(Preference::Node);
    }
    found
}
