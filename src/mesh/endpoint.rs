//! Endpoints from EndpointSlices, or from Endpoints if a service has no slice, with the labels of their pods and the
//! locality of their nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::MeshConfig;
use super::captured::CapturedPorts;
use super::peer_authentications::{Accepts, PeerAuthentications};
use super::service::{Resolution, Service};
use super::topology::{Locality, REGION, SUBZONE, Topology, ZONE};
use crate::api::{self, Labels, Object, Spec, TargetRef};

/// Whether an endpoint accepts traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// It accepts traffic.
    Healthy,
    /// It currently does not. It is still sent to proxies, so that only its health changes when it becomes ready.
    Unhealthy,
}

/// One endpoint of one service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address: an IP address, a host name (with DNS resolution), or `unix://` followed by a path.
    pub address: Arc<str>,
    /// The workload's address of the other family, if it is dual-stack.
    pub other_address: Option<Arc<str>>,
    /// The port at that address.
    pub port: u16,
    /// The name of the service's port.
    pub port_name: Arc<str>,
    /// Its locality.
    pub topology: Arc<Topology>,
    /// Whether it accepts traffic.
    pub health: Health,
    /// Its weight within its locality, 1 by default.
    pub weight: u32,
    /// The workload behind it.
    pub workload: Arc<Workload>,
    /// Its DNS name below the service's; empty if it has none.
    pub hostname: Arc<str>,
    /// Whether its port accepts mutual TLS: its sidecar has certificates, and no PeerAuthentication forbids it.
    pub takes_mutual_tls: bool,
}

impl Endpoint {
    /// All addresses, in the order in which they are tried.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Arc<str>> {
        std::iter::once(&self.address).chain(&self.other_address)
    }

    /// Region, zone and sub-zone.
    pub(crate) fn locality(&self) -> &Locality {
        &self.topology.locality
    }

    /// A label of its workload, including those of its location.
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.topology.label(&self.workload.labels, name)
    }

    /// Whether it matches all labels of a subset.
    pub(crate) fn is_in_subset(&self, subset: &Labels) -> bool {
        self.topology.selects(subset, &self.workload.labels)
    }
}

/// The workload behind an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    /// Its labels, which subsets select by.
    pub labels: Arc<Labels>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its node according to the Pod object; slices may name it as well.
    pub node: String,
    /// Its service account according to the Pod object; empty if unknown.
    pub service_account: String,
    /// Its addresses according to the Pod object.
    pub ips: Vec<Arc<str>>,
    /// The ports whose connections go through its proxy, if it has one.
    pub captured: CapturedPorts,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name; empty if only the namespace is known.
    pub name: String,
}

/// The endpoints of one service, sorted and without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// The endpoints.
    pub list: Vec<Endpoint>,
    /// The service accounts of their workloads, if they are known.
    pub accounts: Arc<[Account]>,
}

/// The annotation in which injection repeats the service account of a pod.
pub(crate) const SERVICE_ACCOUNT: &str = "weir.dev/service-account";

/// The label of a workload that says whether its sidecar has certificates, and its value if it has.
pub(crate) const TLS_MODE: &str = "security.istio.io/tlsMode";
pub(crate) const TLS_MODE_ISTIO: &str = "istio";

/// Where nodes are, by name.
pub(super) type Nodes = BTreeMap<Arc<str>, Arc<Topology>>;

impl EndpointSet {
    /// Sorts endpoints, which must be distinct.
    pub(super) fn new(mut list: Vec<Endpoint>) -> Self {
        // Envoy sums weights in 32 bits: if the sum is too large, all weights are scaled down by the same factor.
        let total: u64 = list.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
        let most = u64::from(u32::MAX).saturating_sub(list.len() as u64).max(1);
        if total > most {
            for endpoint in &mut list {
                let share = u128::from(endpoint.weight) * u128::from(most) / u128::from(total);
                endpoint.weight = u32::try_from(share).unwrap_or(u32::MAX).max(1);
            }
        }
        list.sort_unstable();
        // What takes mutual TLS of the mesh has a service account of its namespace.
        let known = list.iter().filter(|endpoint| {
            endpoint.takes_mutual_tls || !endpoint.workload.service_account.is_empty()
        });
        let accounts = known
            .map(|endpoint| (&endpoint.workload.namespace, &endpoint.workload.service_account))
            .collect::<BTreeSet<_>>();
        let accounts = accounts
            .into_iter()
            .map(|(namespace, name)| Account { namespace: namespace.clone(), name: name.clone() });
        Self { accounts: accounts.collect(), list }
    }
}

/// The pods and nodes that endpoints are built from.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    /// The pods, by namespace and name.
    pub pods: BTreeMap<(Arc<str>, Arc<str>), Arc<Workload>>,
    /// Where the nodes are, by name.
    pub nodes: Arc<Nodes>,
    /// Which connections workloads accept.
    pub peer_authentications: Arc<PeerAuthentications>,
    /// Where everything else is: in this cluster.
    elsewhere: Arc<Topology>,
    root_namespace: Arc<str>,
}

/// Whether an address is an IPv6 address.
pub(super) fn is_v6(address: &str) -> bool {
    address.contains(':')
}

/// The locality from a node's labels. Source: Kubernetes' well-known labels, and Istio's for the sub-zone.
pub(super) fn node_locality(labels: &Labels) -> Locality {
    let [region, zone] = [
        (REGION, "failure-domain.beta.kubernetes.io/region"),
        (ZONE, "failure-domain.beta.kubernetes.io/zone"),
    ]
    .map(|(name, old)| labels.get(name).or_else(|| labels.get(old)).cloned().unwrap_or_default());
    Locality { region, zone, sub_zone: labels.get(SUBZONE).cloned().unwrap_or_default() }
}

impl Workloads {
    pub(crate) fn new(config: &MeshConfig) -> Self {
        let elsewhere = Topology { cluster: config.cluster.clone(), ..Topology::default() };
        let root_namespace = config.root_namespace.clone();
        Self { elsewhere: Arc::new(elsewhere), root_namespace, ..Self::default() }
    }

    /// Whether a port of a workload accepts mutual TLS. The label says whether its sidecar has certificates: injection
    /// sets it. Source: Istio's documentation of `security.istio.io/tlsMode`.
    fn takes_mutual_tls(&self, workload: &Workload, port: u16) -> bool {
        let has_certificates =
            workload.labels.get(TLS_MODE).is_some_and(|mode| mode == TLS_MODE_ISTIO);
        has_certificates && workload.captured.include(port) && {
            let Workload { namespace, labels, .. } = workload;
            let policy =
                self.peer_authentications.of_workload(namespace, labels, &self.root_namespace);
            policy.at(port) != Accepts::PlainText
        }
    }

    /// Updates or removes a node. Returns whether anything changed.
    pub(crate) fn set_node(&mut self, name: &Arc<str>, labels: Option<&Labels>) -> bool {
        let new = labels.map(|labels| {
            let locality = node_locality(labels);
            Arc::new(Topology { locality, node: name.clone(), ..(*self.elsewhere).clone() })
        });
        if self.nodes.get(name) == new.as_ref() {
            return false;
        }
        let nodes = Arc::make_mut(&mut self.nodes);
        match new {
            Some(topology) => nodes.insert(name.clone(), topology),
            None => nodes.remove(name),
        };
        true
    }

    /// Updates the cluster's network. Returns whether anything changed.
    pub(crate) fn set_network(&mut self, network: &Arc<str>) -> bool {
        if self.elsewhere.network == *network {
            return false;
        }
        for topology in Arc::make_mut(&mut self.nodes).values_mut().chain([&mut self.elsewhere]) {
            *topology = Arc::new(Topology { network: network.clone(), ..(**topology).clone() });
        }
        true
    }

    fn pod(&self, target: Option<&TargetRef>, namespace: &Arc<str>) -> Option<&Arc<Workload>> {
        let target = target.filter(|target| target.kind == "Pod")?;
        let namespace = if target.namespace.is_empty() {
            namespace.clone()
        } else {
            Arc::from(target.namespace.as_str())
        };
        self.pods.get(&(namespace, Arc::from(target.name.as_str())))
    }

    /// The location of a workload, whose endpoint may specify `node` and `zone`. The pod's own values take precedence.
    pub(crate) fn topology(
        &self,
        workload: &Workload,
        node: Option<&str>,
        zone: Option<&str>,
    ) -> Arc<Topology> {
        let node = Some(workload.node.as_str())
            .filter(|node| !node.is_empty())
            .or(node)
            .unwrap_or_default();
        let known = self.nodes.get(node);
        let own = label_locality(&workload.labels);
        if let (Some(known), None) = (known, &own) {
            return known.clone();
        }
        let zone = zone.unwrap_or_default();
        if own.is_none() && node.is_empty() && zone.is_empty() {
            return self.elsewhere.clone();
        }
        let locality =
            own.unwrap_or_else(|| Locality { zone: zone.to_owned(), ..Locality::default() });
        let node = known.map_or_else(|| Arc::from(node), |known| known.node.clone());
        Arc::new(Topology { locality, node, ..(*self.elsewhere).clone() })
    }
}

/// The locality from a workload's own label, separated by dots because a label value cannot contain slashes.
pub(super) fn label_locality(labels: &Labels) -> Option<Locality> {
    let own = labels.get("istio-locality").filter(|own| !own.is_empty())?;
    Some(Locality::parse(&own.replace('.', "/")))
}

/// Collects the endpoints of a Kubernetes `service`: from its `slices`, or from the Endpoints object if there are none,
/// and from the WorkloadEntries it selects.
pub(super) fn collect<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Object>,
    endpoints: Option<&'a Object>,
    entries: impl Iterator<Item = &'a Object>,
    workloads: &Workloads,
) -> EndpointSet {
    let mut out = Collector::new(service, workloads);
    let mut had_slice = false;
    for slice in slices {
        let Spec::EndpointSlice(spec) = &slice.spec else {
            continue;
        };
        had_slice = true;
        for endpoint in &spec.endpoints {
            let (Some(health), Some(address)) =
                (health(&endpoint.conditions), endpoint.addresses.first())
            else {
                continue;
            };
            let added_from = out.list.len();
            let place = (endpoint.node_name.as_deref(), endpoint.zone.as_deref());
            out.add_target(
                address,
                health,
                &slice.meta.namespace,
                endpoint.target_ref.as_ref(),
                place,
                &spec.ports,
            );
            out.name_from(added_from, endpoint.hostname.as_deref());
        }
    }
    if let (false, Some(Object { meta, spec: Spec::Endpoints(spec) })) = (had_slice, endpoints) {
        for subset in &spec.subsets {
            let ready = subset.addresses.iter().map(|address| (address, Health::Healthy));
            let not_ready =
                subset.not_ready_addresses.iter().map(|address| (address, Health::Unhealthy));
            for (address, health) in ready.chain(not_ready) {
                let added_from = out.list.len();
                let place = (address.node_name.as_deref(), None);
                let target = address.target_ref.as_ref();
                out.add_target(&address.ip, health, &meta.namespace, target, place, &subset.ports);
                out.name_from(added_from, address.hostname.as_deref());
            }
        }
    }
    for object in entries {
        if let Spec::WorkloadEntry(entry) = &object.spec {
            out.add_entry(entry, Some(&object.meta.labels));
        }
    }
    out.finish()
}

/// A pod that a ServiceEntry selects.
pub(super) struct SelectedPod<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its addresses: one, or one of each family.
    pub addresses: Vec<Arc<str>>,
    /// Its node according to a slice.
    pub node: Option<&'a str>,
    /// The pod.
    pub workload: &'a Arc<Workload>,
}

/// The endpoints of a ServiceEntry's `service`: the ones it lists, the WorkloadEntries and pods it selects (as far as
/// their addresses are known), or its own host if DNS resolves that.
pub(super) fn collect_entry<'a>(
    service: &Service,
    spec: &api::ServiceEntry,
    entries: impl Iterator<Item = &'a Object>,
    pods: impl Iterator<Item = SelectedPod<'a>>,
    workloads: &Workloads,
) -> EndpointSet {
    let mut out = Collector::new(service, workloads);
    for entry in &spec.endpoints {
        out.add_entry(entry, None);
    }
    if spec.workload_selector.is_some() {
        for object in entries {
            if let Spec::WorkloadEntry(entry) = &object.spec {
                out.add_entry(entry, Some(&object.meta.labels));
            }
        }
        for pod in pods {
            let topology = workloads.topology(pod.workload, pod.node, None);
            for address in &pod.addresses {
                let of = Of {
                    workload: pod.workload,
                    topology: &topology,
                    health: Health::Healthy,
                    weight: 1,
                };
                let id = PodId { namespace: &service.namespace, name: pod.name, uid: "" };
                for port in &service.ports {
                    out.add(address, port.target, &port.name, of, Some(id));
                }
            }
        }
    } else if spec.endpoints.is_empty()
        && matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
    {
        let (workload, topology) = (Arc::default(), Arc::default());
        let of =
            Of { workload: &workload, topology: &topology, health: Health::Healthy, weight: 1 };
        for port in &service.ports {
            out.add(&service.host, port.target, &port.name, of, None);
        }
    }
    out.finish()
}

/// Ready or unset means healthy. Not ready and known not to be terminating means unhealthy. Any other endpoint is, or
/// may be, terminating and is omitted (measured on Istiod).
fn health(conditions: &api::EndpointConditions) -> Option<Health> {
    match (conditions.ready, conditions.terminating) {
        (None | Some(true), _) => Some(Health::Healthy),
        (Some(false), Some(false)) => Some(Health::Unhealthy),
        (Some(false), _) => None,
    }
}

/// A pod, distinguished from earlier ones of the same name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PodId<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
}

/// The common properties of a workload's endpoints.
#[derive(Clone, Copy)]
struct Of<'a> {
    workload: &'a Arc<Workload>,
    topology: &'a Arc<Topology>,
    health: Health,
    weight: u32,
}

struct Collector<'a> {
    service: &'a Service,
    workloads: &'a Workloads,
    /// Whether IPv6 comes first for workloads that have both families.
    v6_first: bool,
    seen: BTreeSet<(Arc<str>, Arc<str>, u16)>,
    /// The indices in `list` of the endpoints of pods, by pod, service port name, and port.
    of_pods: BTreeMap<(PodId<'a>, Arc<str>, u16), usize>,
    list: Vec<Endpoint>,
}

impl<'a> Collector<'a> {
    fn new(service: &'a Service, workloads: &'a Workloads) -> Self {
        Self {
            service,
            workloads,
            v6_first: service.addresses.first().is_some_and(|address| address.contains(':')),
            seen: BTreeSet::new(),
            of_pods: BTreeMap::new(),
            list: Vec::new(),
        }
    }

    /// An address of a slice or an Endpoints object in `namespace`, with its node and zone as given there.
    fn add_target(
        &mut self,
        address: &str,
        health: Health,
        namespace: &'a Arc<str>,
        target: Option<&'a TargetRef>,
        (node, zone): (Option<&str>, Option<&str>),
        ports: &[api::EndpointPort],
    ) {
        if address.parse::<IpAddr>().is_err() {
            return;
        }
        let address: Arc<str> = address.into();
        let workload = self.workloads.pod(target, namespace).cloned().unwrap_or_default();
        let topology = self.workloads.topology(&workload, node, zone);
        let id = target.filter(|target| target.kind == "Pod").map(|target| PodId {
            namespace: if target.namespace.is_empty() { namespace } else { &target.namespace },
            name: &target.name,
            uid: &target.uid,
        });
        for port in ports {
            let Some(number) = port.port.filter(|number| *number != 0) else {
                continue;
            };
            let known = self.service.ports.iter().find(|known| *known.name == *port.name);
            let Some(name) = known.map(|port| &port.name) else {
                continue;
            };
            let of = Of { workload: &workload, topology: &topology, health, weight: 1 };
            self.add(&address, number, name, of, id);
        }
    }

    /// The entry's port for a service port: its own port of that name, else the service's target port. Source: Istio's
    /// `WorkloadEntry.ports`.
    fn add_entry(&mut self, entry: &api::WorkloadEntry, metadata: Option<&Labels>) {
        let mut labels = entry.labels.clone();
        labels.extend(
            metadata.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())),
        );
        let locality = match (entry.locality.as_str(), label_locality(&labels)) {
            ("", Some(own)) => own,
            ("", None) => Locality::default(),
            (given, _) => Locality::parse(given),
        };
        let mut topology = Topology { locality, ..(*self.workloads.elsewhere).clone() };
        if !entry.network.is_empty() {
            topology.network = entry.network.as_str().into();
        }
        let (address, topology) = (Arc::from(entry.address.as_str()), Arc::new(topology));
        let workload = Arc::new(Workload {
            labels: labels.into(),
            namespace: self.service.namespace.clone(),
            service_account: entry.service_account.clone(),
            ..Default::default()
        });
        let service = self.service;
        for port in &service.ports {
            let own = entry
                .ports
                .get(&*port.name)
                .and_then(|own| u16::try_from(*own).ok())
                .filter(|own| *own > 0);
            let target = if port.target > 0 { port.target } else { port.number };
            let weight = entry.weight.max(1);
            let of =
                Of { workload: &workload, topology: &topology, health: Health::Healthy, weight };
            self.add(&address, own.unwrap_or(target), &port.name, of, None);
        }
    }

    /// Sets the DNS name of the endpoints from index `place` on.
    fn name_from(&mut self, place: usize, hostname: Option<&str>) {
        if let Some(hostname) = hostname {
            let hostname: Arc<str> = hostname.to_ascii_lowercase().into();
            self.list
                .iter_mut()
                .skip(place)
                .for_each(|endpoint| endpoint.hostname = hostname.clone());
        }
    }

    /// Adds an address. If the pod's address of the other family is already present, the two become one endpoint.
    fn add(
        &mut self,
        address: &Arc<str>,
        port: u16,
        port_name: &Arc<str>,
        of: Of<'_>,
        pod: Option<PodId<'a>>,
    ) {
        if !self.seen.insert((address.clone(), port_name.clone(), port)) {
            return;
        }
        if let Some(pod) = pod {
            let at = self.of_pods.entry((pod, port_name.clone(), port)).or_insert(self.list.len());
            if let Some(known) = self.list.get_mut(*at)
                && known.other_address.is_none()
                && is_v6(&known.address) != is_v6(address)
            {
                // Each family has its own slice, and one of them may be outdated.
                known.health = known.health.max(of.health);
                known.other_address = Some(if is_v6(address) == self.v6_first {
                    std::mem::replace(&mut known.address, address.clone())
                } else {
                    address.clone()
                });
                return;
            }
        }
        self.list.push(Endpoint {
            address: address.clone(),
            other_address: None,
            port,
            port_name: port_name.clone(),
            topology: of.topology.clone(),
            health: of.health,
            weight: of.weight,
            workload: of.workload.clone(),
            hostname: Arc::default(),
            takes_mutual_tls: self.workloads.takes_mutual_tls(of.workload, port),
        });
    }

    fn finish(self) -> EndpointSet {
        EndpointSet::new(self.list)
    }
}
