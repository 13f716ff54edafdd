//! Endpoints: from EndpointSlices, or from Endpoints where a service has no slice, with the labels of the pods behind
//! them and the locality of their nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::service::{Resolution, Service};
use crate::api::{self, Labels, Object, Spec, TargetRef};

/// A place: region, zone and sub-zone, each possibly empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// The region.
    pub region: String,
    /// The zone.
    pub zone: String,
    /// The sub-zone.
    pub sub_zone: String,
}

impl Locality {
    /// Reads `region/zone/subzone`; what is missing is empty.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), sub_zone: next() }
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}/{}/{}", self.region, self.zone, self.sub_zone);
        f.pad(text.trim_end_matches('/'))
    }
}

/// Whether an endpoint takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// It does.
    Healthy,
    /// It does not at present. It is sent all the same, so that it need only change its state when it does.
    Unhealthy,
}

/// One endpoint of one service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address: an IP address, a host name (with DNS resolution), or `unix://` and a path.
    pub address: Arc<str>,
    /// The port at that address.
    pub port: u16,
    /// The name of the service's port.
    pub port_name: Arc<str>,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// Whether it takes traffic.
    pub health: Health,
    /// Its share among the endpoints of its locality, 1 unless said otherwise.
    pub weight: u32,
    /// What is behind it.
    pub workload: Arc<Workload>,
}

/// What is behind an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    /// Its labels, by which subsets choose.
    pub labels: Labels,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The node it runs on, as far as its pod says it.
    pub node: String,
    /// Who it runs as, as far as its pod says it.
    pub service_account: String,
    /// Its address, as far as its pod says it.
    pub ip: String,
}

/// The endpoints of one service, sorted, each address and port once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// The endpoints.
    pub list: Vec<Endpoint>,
}

impl EndpointSet {
    /// Sorts endpoints, which must be distinct.
    pub(super) fn new(mut list: Vec<Endpoint>) -> Self {
        // Envoy sums weights in 32 bits: shares that are too large are made smaller, all by the same factor.
        let total: u64 = list.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
        let most = u64::from(u32::MAX).saturating_sub(list.len() as u64).max(1);
        if total > most {
            for endpoint in &mut list {
                let share = u128::from(endpoint.weight) * u128::from(most) / u128::from(total);
                endpoint.weight = u32::try_from(share).unwrap_or(u32::MAX).max(1);
            }
        }
        list.sort_unstable();
        Self { list }
    }
}

/// What is needed of pods and nodes to make endpoints.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    /// The pods, by namespace and name.
    pub pods: BTreeMap<(Arc<str>, Arc<str>), Arc<Workload>>,
    /// Localities of the nodes, by name.
    pub nodes: BTreeMap<Arc<str>, Arc<Locality>>,
}

/// The locality that a node's labels give. Source: Kubernetes' well-known labels, and Istio's for the sub-zone.
pub(super) fn node_locality(labels: &Labels) -> Locality {
    let label = |name: &str, old: &str| labels.get(name).or_else(|| labels.get(old)).cloned().unwrap_or_default();
    Locality {
        region: label("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
        sub_zone: labels.get("topology.istio.io/subzone").cloned().unwrap_or_default(),
    }
}

impl Workloads {
    fn pod(&self, target: Option<&TargetRef>, namespace: &Arc<str>) -> Option<&Arc<Workload>> {
        let target = target.filter(|target| target.kind == "Pod")?;
        let namespace =
            if target.namespace.is_empty() { namespace.clone() } else { Arc::from(target.namespace.as_str()) };
        self.pods.get(&(namespace, Arc::from(target.name.as_str())))
    }

    fn locality(&self, workload: &Workload, node: Option<&str>, zone: Option<&str>) -> Arc<Locality> {
        if let Some(own) = label_locality(&workload.labels) {
            return Arc::new(own);
        }
        match node.and_then(|node| self.nodes.get(node)) {
            Some(locality) => locality.clone(),
            None => Arc::new(Locality { zone: zone.unwrap_or_default().to_owned(), ..Locality::default() }),
        }
    }
}

/// The locality that a workload's own label gives, with dots because a label's value can not hold slashes.
pub(super) fn label_locality(labels: &Labels) -> Option<Locality> {
    let own = labels.get("istio-locality").filter(|own| !own.is_empty())?;
    Some(Locality::parse(&own.replace('.', "/")))
}

/// The endpoints of a Kubernetes `service`: from its `slices`, or from the Endpoints object where there are none, and
/// from the WorkloadEntries it selects.
pub(super) fn collect<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Object>,
    endpoints: Option<&'a Object>,
    entries: impl Iterator<Item = &'a Object>,
    workloads: &Workloads,
) -> EndpointSet {
    let mut out = Collector { service, seen: BTreeSet::new(), list: Vec::new() };
    let mut had_slice = false;
    for slice in slices {
        let Spec::EndpointSlice(spec) = &slice.spec else { continue };
        had_slice = true;
        for endpoint in &spec.endpoints {
            let (Some(health), Some(address)) = (health(&endpoint.conditions), endpoint.addresses.first()) else {
                continue;
            };
            let workload = workloads.pod(endpoint.target_ref.as_ref(), &slice.meta.namespace);
            let (node, zone) = (endpoint.node_name.as_deref(), endpoint.zone.as_deref());
            out.add_all(address, health, workload, |workload| workloads.locality(workload, node, zone), &spec.ports);
        }
    }
    if let (false, Some(Object { meta, spec: Spec::Endpoints(spec) })) = (had_slice, endpoints) {
        for subset in &spec.subsets {
            let ready = subset.addresses.iter().map(|address| (address, Health::Healthy));
            let not_ready = subset.not_ready_addresses.iter().map(|address| (address, Health::Unhealthy));
            for (address, health) in ready.chain(not_ready) {
                let workload = workloads.pod(address.target_ref.as_ref(), &meta.namespace);
                let node = address.node_name.as_deref();
                let locality = |workload: &Workload| workloads.locality(workload, node, None);
                out.add_all(&address.ip, health, workload, locality, &subset.ports);
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

/// The endpoints of a ServiceEntry's `service`: the ones it lists, the WorkloadEntries and pods it selects (each pod
/// with its address where that is known), or its own host where DNS is to be asked for that.
pub(super) fn collect_entry<'a>(
    service: &Service,
    spec: &api::ServiceEntry,
    entries: impl Iterator<Item = &'a Object>,
    pods: impl Iterator<Item = (Arc<str>, &'a Arc<Workload>)>,
    workloads: &Workloads,
) -> EndpointSet {
    let mut out = Collector { service, seen: BTreeSet::new(), list: Vec::new() };
    for entry in &spec.endpoints {
        out.add_entry(entry, None);
    }
    if spec.workload_selector.is_some() {
        for object in entries {
            if let Spec::WorkloadEntry(entry) = &object.spec {
                out.add_entry(entry, Some(&object.meta.labels));
            }
        }
        for (address, workload) in pods {
            let node = Some(workload.node.as_str()).filter(|node| !node.is_empty());
            let locality = workloads.locality(workload, node, None);
            for port in &service.ports {
                out.add(&address, port.target, port.name.clone(), Health::Healthy, 1, &locality, workload);
            }
        }
    } else if spec.endpoints.is_empty() && matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
        let (workload, locality) = (Arc::default(), Arc::default());
        for port in &service.ports {
            out.add(&service.host, port.target, port.name.clone(), Health::Healthy, 1, &locality, &workload);
        }
    }
    out.finish()
}

/// Ready or not said is healthy. Not ready and known not to be terminating is unhealthy; otherwise it is on its way
/// out, or may be, and is left out (measured on Istiod).
fn health(conditions: &api::EndpointConditions) -> Option<Health> {
    match (conditions.ready, conditions.terminating) {
        (None | Some(true), _) => Some(Health::Healthy),
        (Some(false), Some(false)) => Some(Health::Unhealthy),
        (Some(false), _) => None,
    }
}

struct Collector<'a> {
    service: &'a Service,
    seen: BTreeSet<(Arc<str>, Arc<str>, u16)>,
    list: Vec<Endpoint>,
}

impl Collector<'_> {
    fn add_all(
        &mut self,
        address: &str,
        health: Health,
        workload: Option<&Arc<Workload>>,
        locality: impl Fn(&Workload) -> Arc<Locality>,
        ports: &[api::EndpointPort],
    ) {
        if address.parse::<std::net::IpAddr>().is_err() {
            return;
        }
        let address: Arc<str> = address.into();
        let workload = workload.cloned().unwrap_or_default();
        let locality = locality(&workload);
        for port in ports {
            let Some(number) = port.port.filter(|number| *number != 0) else { continue };
            let known = self.service.ports.iter().find(|known| *known.name == *port.name);
            let Some(name) = known.map(|port| port.name.clone()) else { continue };
            self.add(&address, number, name, health, 1, &locality, &workload);
        }
    }

    /// The entry's port for a service port: its own by name, else the service's target. Source: Istio's
    /// `WorkloadEntry.ports`.
    fn add_entry(&mut self, entry: &api::WorkloadEntry, metadata: Option<&Labels>) {
        let mut labels = entry.labels.clone();
        labels.extend(metadata.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
        let locality = match (entry.locality.as_str(), label_locality(&labels)) {
            ("", Some(own)) => own,
            ("", None) => Locality::default(),
            (given, _) => Locality::parse(given),
        };
        let (address, locality) = (Arc::from(entry.address.as_str()), Arc::new(locality));
        let workload = Arc::new(Workload {
            labels,
            namespace: self.service.namespace.clone(),
            service_account: entry.service_account.clone(),
            ..Default::default()
        });
        let service = self.service;
        for port in &service.ports {
            let own = entry.ports.get(&*port.name).and_then(|own| u16::try_from(*own).ok()).filter(|own| *own > 0);
            let target = if port.target > 0 { port.target } else { port.number };
            let weight = entry.weight.max(1);
            let number = own.unwrap_or(target);
            self.add(&address, number, port.name.clone(), Health::Healthy, weight, &locality, &workload);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        address: &Arc<str>,
        port: u16,
        port_name: Arc<str>,
        health: Health,
        weight: u32,
        locality: &Arc<Locality>,
        workload: &Arc<Workload>,
    ) {
        if self.seen.insert((address.clone(), port_name.clone(), port)) {
            let (address, locality, workload) = (address.clone(), locality.clone(), workload.clone());
            self.list.push(Endpoint { address, port, port_name, locality, health, weight, workload });
        }
    }

    fn finish(self) -> EndpointSet {
        EndpointSet::new(self.list)
    }
}
