//! Endpoints: from EndpointSlices, or from Endpoints where a service has no slice, with the labels of the pods behind
//! them and the locality of their nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::service::Service;
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
    /// The address.
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
    /// The labels of what is behind it, by which subsets choose.
    pub labels: Arc<Labels>,
}

/// The endpoints of one service, sorted, each address and port once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// The endpoints.
    pub list: Vec<Endpoint>,
}

/// What is needed of pods and nodes to make endpoints.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    /// Labels of the pods, by namespace and name.
    pub pods: BTreeMap<(Arc<str>, Arc<str>), Arc<Labels>>,
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
    fn pod(&self, target: Option<&TargetRef>, namespace: &Arc<str>) -> Option<&Arc<Labels>> {
        let target = target.filter(|target| target.kind == "Pod")?;
        let namespace =
            if target.namespace.is_empty() { namespace.clone() } else { Arc::from(target.namespace.as_str()) };
        self.pods.get(&(namespace, Arc::from(target.name.as_str())))
    }

    fn locality(&self, labels: &Labels, node: Option<&str>, zone: Option<&str>) -> Arc<Locality> {
        // A pod's own label wins, with dots because a label's value can not hold slashes.
        if let Some(own) = labels.get("istio-locality").filter(|own| !own.is_empty()) {
            return Arc::new(Locality::parse(&own.replace('.', "/")));
        }
        match node.and_then(|node| self.nodes.get(node)) {
            Some(locality) => locality.clone(),
            None => Arc::new(Locality { zone: zone.unwrap_or_default().to_owned(), ..Locality::default() }),
        }
    }
}

/// The endpoints of `service`: from its `slices`, or from the Endpoints object where there are none.
pub(super) fn collect<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Object>,
    endpoints: Option<&'a Object>,
    workloads: &Workloads,
) -> EndpointSet {
    let mut list = Vec::new();
    let mut seen = BTreeSet::new();
    let mut had_slice = false;
    for slice in slices {
        let Spec::EndpointSlice(spec) = &slice.spec else { continue };
        had_slice = true;
        for endpoint in &spec.endpoints {
            let (Some(health), Some(address)) = (health(&endpoint.conditions), endpoint.addresses.first()) else {
                continue;
            };
            let source = Source {
                address,
                target: endpoint.target_ref.as_ref(),
                node: endpoint.node_name.as_deref(),
                zone: endpoint.zone.as_deref(),
                health,
            };
            source.add(service, &slice.meta.namespace, &spec.ports, workloads, &mut seen, &mut list);
        }
    }
    if let (false, Some(Object { meta, spec: Spec::Endpoints(spec) })) = (had_slice, endpoints) {
        for subset in &spec.subsets {
            let ready = subset.addresses.iter().map(|address| (address, Health::Healthy));
            let not_ready = subset.not_ready_addresses.iter().map(|address| (address, Health::Unhealthy));
            for (address, health) in ready.chain(not_ready) {
                let source = Source {
                    address: &address.ip,
                    target: address.target_ref.as_ref(),
                    node: address.node_name.as_deref(),
                    zone: None,
                    health,
                };
                source.add(service, &meta.namespace, &subset.ports, workloads, &mut seen, &mut list);
            }
        }
    }
    list.sort_unstable();
    EndpointSet { list }
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

struct Source<'a> {
    address: &'a str,
    target: Option<&'a TargetRef>,
    node: Option<&'a str>,
    zone: Option<&'a str>,
    health: Health,
}

impl Source<'_> {
    fn add(
        &self,
        service: &Service,
        namespace: &Arc<str>,
        ports: &[api::EndpointPort],
        workloads: &Workloads,
        seen: &mut BTreeSet<(Arc<str>, Arc<str>, u16)>,
        list: &mut Vec<Endpoint>,
    ) {
        if self.address.parse::<std::net::IpAddr>().is_err() {
            return;
        }
        let address: Arc<str> = self.address.into();
        let labels = workloads.pod(self.target, namespace).cloned().unwrap_or_default();
        let locality = workloads.locality(&labels, self.node, self.zone);
        for port in ports {
            let Some(number) = port.port.filter(|number| *number != 0) else { continue };
            let Some(service_port) = service.ports.iter().find(|known| *known.name == *port.name) else { continue };
            if seen.insert((address.clone(), service_port.name.clone(), number)) {
                list.push(Endpoint {
                    address: address.clone(),
                    port: number,
                    port_name: service_port.name.clone(),
                    locality: locality.clone(),
                    health: self.health,
                    weight: 1,
                    labels: labels.clone(),
                });
            }
        }
    }
}
