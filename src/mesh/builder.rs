//! Updates the model from the store, object by object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::captured::CapturedPorts;
use super::endpoint::{self, SERVICE_ACCOUNT, SelectedPod};
use super::{
    Endpoint, EndpointSet, Host, Mesh, MeshConfig, NETWORK, Name, PeerAuthentications, PortClass,
    RegisteredService, Registry, Service, Sidecars, VirtualService, Workload, relevance, resolve,
    rules, same_host,
};

use crate::api::{Age, Kind, Labels, Meta, Object, ObjectKey, Spec, selects};
use crate::store::Store;

/// Updates the model incrementally.
#[derive(Debug)]
pub struct MeshBuilder {
    mesh: Mesh,
    workloads: endpoint::Workloads,
    /// The services that have each pod as an endpoint.
    services_of_pod: BTreeMap<Name, BTreeSet<Name>>,
    pods_of_service: BTreeMap<Name, Vec<Name>>,
    /// The slices of each service, and the last known service of each slice, to detect slices that move.
    slices: BTreeMap<Name, BTreeSet<Arc<str>>>,
    service_of_slice: BTreeMap<Name, Arc<str>>,
    /// The last known hosts of each ServiceEntry.
    hosts_of_entry: BTreeMap<Name, Vec<Host>>,
    declared: same_host::Declared,
    /// The VirtualServices as written, without delegates.
    virtual_services: BTreeMap<ObjectKey, Arc<VirtualService>>,
    /// The VirtualServices that delegate to each delegate, by its namespace and name.
    roots_of: BTreeMap<Name, BTreeSet<ObjectKey>>,
    /// The DestinationRules of each namespace and host, and the last known host of each, to detect changed hosts.
    rules_of_host: BTreeMap<(Arc<str>, Host), BTreeSet<ObjectKey>>,
    host_of_rule: BTreeMap<ObjectKey, Host>,
    scope_attributes: relevance::Counts,
}

/// What has to be rebuilt.
#[derive(Default)]
struct Stale {
    services: BTreeSet<Name>,
    entries: BTreeSet<Name>,
    virtual_services: BTreeSet<ObjectKey>,
    destination_rules: BTreeSet<(Arc<str>, Host)>,
    sidecars: bool,
    peer_authentications: bool,
    /// Whether a node's location changed, and thus that of its pods.
    nodes: bool,
    pods: BTreeSet<Name>,
}

impl MeshBuilder {
    /// A builder with an empty mesh.
    pub fn new(config: MeshConfig) -> Self {
        let mesh = Mesh::empty(config);
        Self {
            workloads: endpoint::Workloads::new(&mesh.config),
            mesh,
            services_of_pod: BTreeMap::new(),
            pods_of_service: BTreeMap::new(),
            slices: BTreeMap::new(),
            service_of_slice: BTreeMap::new(),
            hosts_of_entry: BTreeMap::new(),
            declared: same_host::Declared::default(),
            virtual_services: BTreeMap::new(),
            roots_of: BTreeMap::new(),
            rules_of_host: BTreeMap::new(),
            host_of_rule: BTreeMap::new(),
            scope_attributes: relevance::Counts::default(),
        }
    }

    /// Applies the changed objects of `store` and returns the new state.
    pub fn update(&mut self, store: &Store, dirty: &BTreeSet<ObjectKey>) -> Mesh {
        let before = self.mesh.clone();
        let mut stale = Stale::default();
        for key in dirty {
            self.mark_stale(store, key, &mut stale);
        }
        if stale.peer_authentications {
            self.read_peer_authentications(store);
        }
        for name in &stale.services {
            self.update_service(store, name);
        }
        for name in &stale.entries {
            self.update_entry(store, name);
        }
        if self.declared.take_aliases_changed() {
            self.follow_aliases();
        }
        for key in &stale.virtual_services {
            self.merge_virtual_service(key);
        }
        for (namespace, host) in &stale.destination_rules {
            self.merge_destination_rules(store, namespace, host);
        }
        if stale.sidecars {
            let objects = store.all(Kind::Sidecar).map(|entry| (entry.revision, &entry.object));
            self.mesh.sidecars = Arc::new(Sidecars::new(objects));
        }
        if stale.nodes {
            stale.pods.extend(self.workloads.pods.keys().cloned());
        }
        for name in &stale.pods {
            self.place_pod(name);
        }
        self.mesh.nodes = self.workloads.nodes.clone();
        if self.scope_attributes.follow(&before, &self.mesh) {
            self.mesh.scope_attributes = Arc::new(self.scope_attributes.all());
        }
        self.mesh.clone()
    }

    fn mark_stale(&mut self, store: &Store, key: &ObjectKey, stale: &mut Stale) {
        let name = (key.namespace.clone(), key.name.clone());
        let object = store.get(key).map(|entry| &entry.object);
        match key.kind {
            Kind::Namespace => self.note_namespace(store, key, object, stale),
            Kind::Node => {
                if self.workloads.set_node(&key.name, object.map(|node| &*node.meta.labels)) {
                    stale.nodes = true;
                    stale.services.extend(self.slices.keys().cloned());
                    stale
                        .services
                        .extend(store.all(Kind::Endpoints).map(|entry| name_of(&entry.object)));
                    stale
                        .entries
                        .extend(store.all(Kind::ServiceEntry).map(|entry| name_of(&entry.object)));
                }
            }
            Kind::Pod => {
                if self.update_pod(&name, object) {
                    stale.pods.insert(name.clone());
                }
                stale
                    .services
                    .extend(self.services_of_pod.get(&name).into_iter().flatten().cloned());
                stale.entries.extend(selecting_entries(store, &key.namespace));
            }
            Kind::Service | Kind::Endpoints => {
                stale.services.insert(name);
            }
            Kind::EndpointSlice => {
                stale.services.extend(self.update_slice(name, object));
                stale.entries.extend(selecting_entries(store, &key.namespace));
            }
            Kind::ServiceEntry => drop(stale.entries.insert(name)),
            Kind::WorkloadEntry => {
                // The services that selected it before are unknown, but there are only few candidates.
                stale.entries.extend(selecting_entries(store, &key.namespace));
                let selecting = store.all(Kind::Service).filter(|entry| match &entry.object.spec {
                    Spec::Service(spec) => {
                        entry.object.meta.namespace == key.namespace && !spec.selector.is_empty()
                    }
                    _ => false,
                });
                stale.services.extend(selecting.map(|entry| name_of(&entry.object)));
            }
            Kind::VirtualService => {
                self.update_virtual_service(store, key);
                stale.virtual_services.insert(key.clone());
                stale
                    .virtual_services
                    .extend(self.roots_of.get(&name).into_iter().flatten().cloned());
            }
            Kind::DestinationRule => {
                stale.destination_rules.extend(self.update_destination_rule(key, object));
            }
            Kind::Sidecar => stale.sidecars = true,
            Kind::PeerAuthentication => self.note_peer_authentication(store, &key.namespace, stale),
        }
    }

    /// A PeerAuthentication is for the workloads of its namespace, or for all in the root namespace.
    fn note_peer_authentication(&self, store: &Store, namespace: &Arc<str>, stale: &mut Stale) {
        stale.peer_authentications = true;
        let all = *namespace == self.mesh.config.root_namespace;
        mark_services(store, |other| all || other == namespace, stale);
        // Endpoints may name pods of another namespace than that of their service.
        let of_pods = self.services_of_pod.range((namespace.clone(), "".into())..);
        let of_pods = of_pods.take_while(|((other, _), _)| other == namespace);
        stale.services.extend(of_pods.flat_map(|(_, services)| services).cloned());
    }

    fn read_peer_authentications(&mut self, store: &Store) {
        let objects = store.all(Kind::PeerAuthentication).map(|entry| &entry.object);
        let all = Arc::new(PeerAuthentications::new(objects));
        self.workloads.peer_authentications = all.clone();
        self.mesh.peer_authentications = all;
    }

    /// A namespace's annotation applies to its services, and the root namespace's label to all workloads.
    fn note_namespace(
        &mut self,
        store: &Store,
        key: &ObjectKey,
        object: Option<&Arc<Object>>,
        stale: &mut Stale,
    ) {
        let mut all = false;
        if key.name == self.mesh.config.root_namespace {
            let network = object.and_then(|object| object.meta.labels.get(NETWORK));
            self.mesh.network = network.map(|network| network.as_str().into()).unwrap_or_default();
            all = self.workloads.set_network(&self.mesh.network);
            stale.nodes |= all;
        }
        mark_services(store, |namespace| all || *namespace == key.name, stale);
    }

    /// Returns whether the pod's node is, or was, known.
    fn update_pod(&mut self, name: &Name, object: Option<&Arc<Object>>) -> bool {
        let Some(pod) = object else {
            return self.workloads.pods.remove(name).is_some_and(|old| !old.node.is_empty());
        };
        let (node, service_account, ips) = match &pod.spec {
            Spec::Pod(spec) => {
                let ips = spec.ips.iter().map(|ip| ip.as_str().into()).collect();
                (spec.node_name.clone(), spec.service_account.clone(), ips)
            }
            _ => Default::default(),
        };
        let (labels, namespace) = (pod.meta.labels.clone(), pod.meta.namespace.clone());
        // Of pods in a cluster only the metadata is read, where injection repeats it.
        let service_account = Some(service_account)
            .filter(|account: &String| !account.is_empty())
            .or_else(|| pod.meta.annotations.get(SERVICE_ACCOUNT).cloned())
            .unwrap_or_default();
        let placed = !node.is_empty();
        let captured = CapturedPorts::of(&pod.meta.annotations);
        let workload = Workload { labels, namespace, node, service_account, ips, captured };
        let old = self.workloads.pods.insert(name.clone(), Arc::new(workload));
        placed || old.is_some_and(|old| !old.node.is_empty())
    }

    /// Returns the services that the slice belonged to and belongs to now.
    fn update_slice(
        &mut self,
        name: Name,
        object: Option<&Arc<Object>>,
    ) -> impl Iterator<Item = Name> + use<> {
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
        let new = store.get(key).map(|entry| {
            Arc::new(VirtualService::new(entry.revision, &entry.object, &self.mesh.config.domain))
        });
        let old = match &new {
            Some(new) => self.virtual_services.insert(key.clone(), new.clone()),
            None => self.virtual_services.remove(key),
        };
        for delegate in old.iter().flat_map(|old| old.delegates()) {
            if let Some(roots) = self.roots_of.get_mut(&delegate) {
                roots.remove(key);
                if roots.is_empty() {
                    self.roots_of.remove(&delegate);
                }
            }
        }
        for delegate in new.iter().flat_map(|new| new.delegates()) {
            self.roots_of.entry(delegate).or_default().insert(key.clone());
        }
    }

    /// Adds a VirtualService with its delegates merged in to the mesh.
    fn merge_virtual_service(&mut self, key: &ObjectKey) {
        let domain = &self.mesh.config.domain;
        let own = self.virtual_services.get(key);
        let before = self.mesh.virtual_services.get(key);
        let merged = own.map(|own| {
            own.with_delegates(before, domain, |namespace, name| {
                let key = ObjectKey::new(Kind::VirtualService, namespace, name);
                self.virtual_services.get(&key).filter(|delegate| delegate.hosts.is_empty())
            })
        });
        Arc::make_mut(&mut self.mesh.virtual_services).set(key, merged, domain);
    }

    /// The namespace and hosts of the rules that the object was part of and is part of now.
    fn update_destination_rule(
        &mut self,
        key: &ObjectKey,
        object: Option<&Arc<Object>>,
    ) -> Vec<(Arc<str>, Host)> {
        let new = object.and_then(|object| match &object.spec {
            Spec::DestinationRule(spec) => {
                Some(resolve(&spec.host, &key.namespace, &self.mesh.config.domain))
            }
            _ => None,
        });
        let old = match &new {
            Some(host) => self.host_of_rule.insert(key.clone(), host.clone()),
            None => self.host_of_rule.remove(key),
        };
        let mut touched = Vec::new();
        if let Some(host) = old {
            let place = (key.namespace.clone(), host);
            if let Some(keys) = self.rules_of_host.get_mut(&place) {
                keys.remove(key);
                if keys.is_empty() {
                    self.rules_of_host.remove(&place);
                }
            }
            touched.push(place);
        }
        if let Some(host) = new {
            let place = (key.namespace.clone(), host);
            self.rules_of_host.entry(place.clone()).or_default().insert(key.clone());
            touched.push(place);
        }
        touched
    }

    fn merge_destination_rules(&mut self, store: &Store, namespace: &Arc<str>, host: &Host) {
        let keys = self.rules_of_host.get(&(namespace.clone(), host.clone()));
        let objects = keys.into_iter().flatten().filter_map(|key| store.get(key));
        let objects = objects.map(|entry| (entry.revision, &entry.object));
        let before = self.mesh.destination_rules.of_host(namespace, host);
        let merged = rules::merge(objects, before, &self.mesh.config.domain);
        Arc::make_mut(&mut self.mesh.destination_rules).set(namespace, host, merged);
    }

    /// Records the location of a pod, as far as its node is known.
    fn place_pod(&mut self, name: &Name) {
        match self.workloads.pods.get(name).filter(|pod| !pod.node.is_empty()) {
            Some(pod) => {
                let topology = self.workloads.topology(pod, None, None);
                self.mesh.pod_topologies.insert(name.clone(), topology);
            }
            None => drop(self.mesh.pod_topologies.remove(name)),
        }
    }

    fn update_service(&mut self, store: &Store, name: &Name) {
        let domain = self.mesh.config.domain.clone();
        let host: Host = format!("{}.{}.svc.{domain}", name.1, name.0).to_ascii_lowercase().into();
        self.forget_pods(name);
        let namespace = namespace_of(store, &name.0);
        let new =
            store.get(&key_of(Kind::Service, name)).and_then(|entry| match &entry.object.spec {
                Spec::Service(spec) => {
                    Some(Service::from_kubernetes(&entry.object.meta, spec, namespace, &domain))
                }
                _ => None,
            });
        let Some(service) = new else {
            self.put(&host, Registry::Kubernetes, name, None);
            return;
        };
        let slices = self.slices.get(name).into_iter().flatten().filter_map(|slice| {
            let key = ObjectKey {
                kind: Kind::EndpointSlice,
                namespace: name.0.clone(),
                name: slice.clone(),
            };
            store.get(&key).map(|entry| &*entry.object)
        });
        let slices: Vec<_> = slices.collect();
        let endpoints = store.get(&key_of(Kind::Endpoints, name)).map(|entry| &*entry.object);
        let entries = selected_entries(store, &name.0, &service.selector);
        let set = endpoint::collect(
            &service,
            slices.iter().copied(),
            endpoints,
            entries,
            &self.workloads,
        );
        let pods = pods_of(&slices, endpoints);
        for pod in &pods {
            self.services_of_pod.entry(pod.clone()).or_default().insert(name.clone());
        }
        self.pods_of_service.insert(name.clone(), pods);
        self.put(&host, Registry::Kubernetes, name, Some((service, set)));
    }

    fn update_entry(&mut self, store: &Store, name: &Name) {
        let key = key_of(Kind::ServiceEntry, name);
        let old = self.hosts_of_entry.remove(name).unwrap_or_default();
        let Some((entry, Spec::ServiceEntry(spec))) =
            store.get(&key).map(|entry| (entry, &entry.object.spec))
        else {
            for host in old {
                self.put(&host, Registry::ServiceEntry, name, None);
            }
            return;
        };
        let mut hosts: Vec<Host> = Vec::new();
        for host in &spec.hosts {
            let service = Service::from_service_entry(
                &entry.object.meta,
                spec,
                namespace_of(store, &name.0),
                host,
            );
            let selector = spec.workload_selector.as_ref().map(|selector| &selector.labels);
            let entries =
                selector.into_iter().flat_map(|labels| selected_entries(store, &name.0, labels));
            let pods =
                selector.into_iter().flat_map(|labels| self.selected_pods(store, &name.0, labels));
            let set = endpoint::collect_entry(&service, spec, entries, pods, &self.workloads);
            let host = service.host.clone();
            self.put(&host, Registry::ServiceEntry, name, Some((service, set)));
            hosts.push(host);
        }
        for host in old.iter().filter(|host| !hosts.contains(host)) {
            self.put(host, Registry::ServiceEntry, name, None);
        }
        self.hosts_of_entry.insert(name.clone(), hosts);
    }

    /// The pods of a namespace with these labels, each with its addresses: from its status if known, else from slices.
    fn selected_pods<'a>(
        &'a self,
        store: &'a Store,
        namespace: &'a Arc<str>,
        labels: &Labels,
    ) -> Vec<SelectedPod<'a>> {
        let mut found: BTreeMap<&str, SelectedPod<'_>> = BTreeMap::new();
        let of_namespace = (namespace.clone(), Arc::from(""))..;
        for ((_, name), workload) in
            self.workloads.pods.range(of_namespace).take_while(|((ns, _), _)| ns == namespace)
        {
            if selects(labels, &workload.labels) {
                found.insert(
                    name,
                    SelectedPod { name, addresses: workload.ips.clone(), node: None, workload },
                );
            }
        }
        for entry in
            store.all(Kind::EndpointSlice).filter(|entry| entry.object.meta.namespace == *namespace)
        {
            let Spec::EndpointSlice(slice) = &entry.object.spec else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let Some((address, target)) =
                    endpoint.addresses.first().zip(endpoint.target_ref.as_ref())
                else {
                    continue;
                };
                let Some(pod) =
                    found.get_mut(target.name.as_str()).filter(|_| target.kind == "Pod")
                else {
                    continue;
                };
                pod.node = pod.node.or(endpoint.node_name.as_deref());
                if pod.workload.ips.is_empty()
                    && !pod
                        .addresses
                        .iter()
                        .any(|known| endpoint::is_v6(known) == endpoint::is_v6(address))
                {
                    pod.addresses.push(address.as_str().into());
                }
            }
        }
        found.into_values().collect()
    }

    /// Replaces the service that the object of this registry and name declares for `host`, or removes it.
    fn put(
        &mut self,
        host: &Host,
        registry: Registry,
        name: &Name,
        new: Option<(Service, EndpointSet)>,
    ) {
        self.declared.put(host, registry, name, new);
        self.publish(host);
    }

    /// Updates the services of a host in the mesh to what is declared.
    fn publish(&mut self, host: &Host) {
        let old = self.mesh.services.get(host).cloned().unwrap_or_default();
        let list = self.declared.services(host, &old);
        let before = addresses(&old);
        let after = addresses(&list);
        if before != after {
            let by_address = &mut self.mesh.by_address;
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
        self.index_host(host, &old, &list);
        if list.is_empty() {
            self.mesh.services.remove(host);
        } else {
            self.mesh.services.insert(host.clone(), Arc::new(list));
        }
    }

    /// Updates the indexes by port and by alias when the services of a host change.
    fn index_host(&mut self, host: &Host, old: &[RegisteredService], new: &[RegisteredService]) {
        let (before, after) = (ports(old), ports(new));
        for (number, class, age) in before.difference(&after) {
            if let Some(hosts) = self.mesh.by_port.get_mut(&(*number, *class)) {
                hosts.remove(&(*age, host.clone()));
                if hosts.is_empty() {
                    self.mesh.by_port.remove(&(*number, *class));
                }
            }
        }
        for (number, class, age) in after.difference(&before) {
            self.mesh.by_port.entry((*number, *class)).or_default().insert((*age, host.clone()));
        }
        let (before, after) = (targets(old), targets(new));
        for target in before.difference(&after) {
            if let Some(aliases) = self.mesh.aliases.get_mut(target) {
                aliases.remove(host);
                if aliases.is_empty() {
                    self.mesh.aliases.remove(target);
                }
            }
        }
        for target in after.difference(&before) {
            self.mesh.aliases.entry(target.clone()).or_default().insert(host.clone());
        }
    }

    /// Updates the ExternalName services whose chain now ends at another host.
    fn follow_aliases(&mut self) {
        let moved = self.declared.aliases().filter(|(alias, end)| {
            let known = self.mesh.services.get(*alias).and_then(|list| list.first());
            known.and_then(|known| known.service.alias_of.as_ref()) != Some(*end)
        });
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

/// Marks the services and ServiceEntries of these namespaces.
fn mark_services(store: &Store, is_affected: impl Fn(&Arc<str>) -> bool, stale: &mut Stale) {
    for (kind, names) in
        [(Kind::Service, &mut stale.services), (Kind::ServiceEntry, &mut stale.entries)]
    {
        let objects = store.all(kind).map(|entry| &entry.object);
        let affected = objects.filter(|object| is_affected(&object.meta.namespace));
        names.extend(affected.map(|object| name_of(object)));
    }
}

fn addresses(list: &[RegisteredService]) -> BTreeSet<Arc<str>> {
    let endpoints = list.iter().flat_map(|known| &known.endpoints.list);
    endpoints.flat_map(Endpoint::addresses).cloned().collect()
}

fn ports(list: &[RegisteredService]) -> BTreeSet<(u16, PortClass, Age)> {
    let services = list.iter().map(|known| &known.service);
    let ports = services.flat_map(|service| {
        service.ports.iter().map(|port| (port.number, PortClass::of(port.protocol), service.age))
    });
    ports.collect()
}

/// The targets of ExternalName services.
fn targets(list: &[RegisteredService]) -> BTreeSet<Host> {
    list.iter().filter_map(|known| known.service.alias_of.clone()).collect()
}

/// The ServiceEntries of a namespace that select their endpoints by labels.
fn selecting_entries<'a>(
    store: &'a Store,
    namespace: &'a Arc<str>,
) -> impl Iterator<Item = Name> + 'a {
    let entries = store.all(Kind::ServiceEntry).map(|entry| &entry.object);
    entries
        .filter(move |object| {
            object.meta.namespace == *namespace
                && matches!(&object.spec, Spec::ServiceEntry(spec) if spec.workload_selector.is_some())
        })
        .map(|object| name_of(object))
}

/// The WorkloadEntries of a namespace that match these labels; none for an empty selector.
fn selected_entries<'a>(
    store: &'a Store,
    namespace: &'a Arc<str>,
    labels: &'a Labels,
) -> impl Iterator<Item = &'a Object> {
    let entries =
        store.all(Kind::WorkloadEntry).filter(|_| !labels.is_empty()).map(|entry| &*entry.object);
    entries.filter(move |object| match &object.spec {
        Spec::WorkloadEntry(spec) => {
            object.meta.namespace == *namespace
                && labels.iter().all(|(name, value)| {
                    object.meta.labels.get(name).or_else(|| spec.labels.get(name)) == Some(value)
                })
        }
        _ => false,
    })
}

fn namespace_of<'a>(store: &'a Store, name: &str) -> Option<&'a Meta> {
    store.get(&ObjectKey::new(Kind::Namespace, "", name)).map(|entry| &entry.object.meta)
}

fn key_of(kind: Kind, name: &Name) -> ObjectKey {
    ObjectKey { kind, namespace: name.0.clone(), name: name.1.clone() }
}

fn name_of(object: &Object) -> Name {
    (object.meta.namespace.clone(), object.meta.name.clone())
}

/// The pods that endpoints reference, known or not, because a pod may arrive after its endpoint.
fn pods_of(slices: &[&Object], endpoints: Option<&Object>) -> Vec<Name> {
    let mut pods = Vec::new();
    for object in slices.iter().copied().chain(endpoints) {
        let targets: Vec<_> = match &object.spec {
            Spec::EndpointSlice(spec) => {
                spec.endpoints.iter().filter_map(|endpoint| endpoint.target_ref.as_ref()).collect()
            }
            Spec::Endpoints(spec) => spec
                .subsets
                .iter()
                .flat_map(|subset| subset.addresses.iter().chain(&subset.not_ready_addresses))
                .filter_map(|address| address.target_ref.as_ref())
                .collect(),
            _ => Vec::new(),
        };
        for target in targets.into_iter().filter(|target| target.kind == "Pod") {
            let own = object.meta.namespace.clone();
            let namespace =
                if target.namespace.is_empty() { own } else { target.namespace.as_str().into() };
            pods.push((namespace, target.name.as_str().into()));
        }
    }
    pods
}
