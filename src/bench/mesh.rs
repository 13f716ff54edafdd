//! A mesh that is made: services with pods, each with a VirtualService that splits it between two subsets and a
//! DestinationRule that defines them, over as many namespaces.

use std::net::Ipv4Addr;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{Struct, Value as ProtoValue, value::Kind};
use prost::Message as _;
use serde_json::{Value, json};

use super::expectation::{Expectation, Split};
use crate::bootstrap::NodeId;

/// The label of everything that is made, to find it again.
pub(crate) const LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "weir-bench");

/// The ports of each service and of its pods.
const PORT: u16 = 80;
const TARGET: u16 = 8080;

/// The cluster's DNS domain.
const DOMAIN: &str = "cluster.local";

/// Weights of the canary are between these.
const LEAST: u32 = 10;
const MOST: u32 = 60;

/// The first addresses of services, pods and proxies.
const SERVICES: u32 = u32::from_be_bytes([10, 64, 0, 1]);
const PODS: u32 = u32::from_be_bytes([10, 128, 0, 1]);
const PROXIES: u32 = u32::from_be_bytes([172, 16, 0, 1]);

/// How large a mesh is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Size {
    /// The number of services.
    pub services: usize,
    /// Pods of each service.
    pub pods_per_service: usize,
    /// Namespaces over which services and proxies are spread.
    pub namespaces: usize,
    /// The number of proxies.
    pub streams: usize,
}

/// A change to the objects, in the form that suits each place they may be in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Edit {
    /// The file with the objects that belong together.
    pub file: String,
    /// All objects of the file after the change.
    pub whole: Vec<Value>,
    /// Those that were added or changed, in the order in which they should be written.
    pub changed: Vec<Value>,
    /// Those that are gone.
    pub deleted: Vec<Value>,
}

#[derive(Debug, Clone, Copy)]
struct Pod {
    address: u32,
    restarts: u32,
}

#[derive(Debug)]
struct Service {
    percent: u32,
    pods: Vec<Pod>,
}

/// The mesh as it was last written.
#[derive(Debug)]
pub(crate) struct Mesh {
    size: Size,
    /// The prefix of the namespaces.
    prefix: String,
    services: Vec<Service>,
    addresses: u32,
    /// Whether an API server allocates the addresses of services.
    allocates: bool,
}

impl Mesh {
    /// A mesh of this size in namespaces that begin with `prefix`. `allocates` leaves the addresses of services to the
    /// API server.
    pub(crate) fn new(size: Size, prefix: &str, allocates: bool) -> Self {
        let mut mesh =
            Self { size, prefix: prefix.to_owned(), services: Vec::new(), addresses: 0, allocates };
        for _ in 0..size.services {
            mesh.add_service();
        }
        mesh
    }

    fn add_service(&mut self) -> usize {
        let pods = (0..self.size.pods_per_service)
            .map(|_| Pod { address: next(&mut self.addresses), restarts: 0 })
            .collect();
        self.services.push(Service { percent: LEAST, pods });
        self.services.len() - 1
    }

    /// How many services there are now.
    pub(crate) fn services(&self) -> usize {
        self.services.len()
    }

    /// The namespaces.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = String> {
        (0..self.size.namespaces).map(|n| self.namespace(n))
    }

    fn namespace(&self, n: usize) -> String {
        format!("{}-{}", self.prefix, n % self.size.namespaces.max(1))
    }

    /// The host of a service.
    fn host(&self, n: usize) -> String {
        format!("s{n}.{}.svc.{DOMAIN}", self.namespace(n))
    }

    fn cluster(&self, n: usize, subset: &str) -> String {
        format!("outbound|{PORT}|{subset}|{}", self.host(n))
    }

    /// Everything that exists, service by service.
    pub(crate) fn all(&self) -> impl Iterator<Item = Edit> {
        (0..self.services.len()).flat_map(|n| self.of_service(n))
    }

    /// All of one service; the VirtualService comes last.
    fn of_service(&self, n: usize) -> [Edit; 3] {
        [
            edit(format!("s{n}"), self.base(n)),
            edit(format!("endpoints-s{n}"), self.endpoints(n)),
            self.route(n),
        ]
    }

    fn meta(&self, n: usize, name: &str) -> Value {
        json!({"name": name, "namespace": self.namespace(n), "labels": {LABEL.0: LABEL.1}})
    }

    fn base(&self, n: usize) -> Vec<Value> {
        let name = format!("s{n}");
        let ports = json!([{"name": "http", "port": PORT, "targetPort": TARGET}]);
        let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": self.meta(n, &name), "spec": {"ports": ports}});
        if !self.allocates
            && let Some(spec) = service.get_mut("spec")
        {
            let address =
                Ipv4Addr::from(SERVICES.wrapping_add(u32::try_from(n).unwrap_or(u32::MAX)));
            spec["clusterIP"] = json!(address.to_string());
        }
        let subsets = ["v1", "v2"].map(|name| json!({"name": name, "labels": {"version": name}}));
        let rule = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": self.meta(n, &name),
            "spec": {"host": name, "subsets": subsets},
        });
        vec![service, rule]
    }

    /// The pods of a service, then its EndpointSlice.
    fn endpoints(&self, n: usize) -> Vec<Value> {
        let pods = self.pods(n);
        let mut all: Vec<Value> = pods.clone().map(|(at, pod)| self.pod(n, at, pod)).collect();
        all.push(self.slice(n, pods));
        all
    }

    fn pods(&self, n: usize) -> impl Iterator<Item = (usize, Pod)> + Clone {
        self.services
            .get(n)
            .into_iter()
            .flat_map(|service| service.pods.iter().copied().enumerate())
    }

    fn pod(&self, n: usize, at: usize, pod: Pod) -> Value {
        let name = pod_name(n, at, pod);
        let mut meta = self.meta(n, &name);
        meta["labels"]["app"] = json!(format!("s{n}"));
        meta["labels"]["version"] = json!(version(at));
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta,
            "spec": {
                // In a cluster with nodes, nothing may run it.
                "schedulerName": LABEL.1, "automountServiceAccountToken": false,
                "containers": [{"name": "app", "image": "none.invalid/none"}],
            },
        })
    }

    fn slice(&self, n: usize, pods: impl Iterator<Item = (usize, Pod)>) -> Value {
        let mut meta = self.meta(n, &format!("s{n}-1"));
        meta["labels"]["kubernetes.io/service-name"] = json!(format!("s{n}"));
        meta["labels"]["endpointslice.kubernetes.io/managed-by"] = json!(LABEL.1);
        let endpoints = pods.map(|(at, pod)| {
            json!({
                "addresses": [Ipv4Addr::from(pod.address).to_string()],
                "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": pod_name(n, at, pod), "namespace": self.namespace(n)},
            })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
            "endpoints": endpoints.collect::<Vec<_>>(), "ports": [{"name": "http", "port": TARGET, "protocol": "TCP"}],
        })
    }

    fn route(&self, n: usize) -> Edit {
        let (name, percent) =
            (format!("s{n}"), self.services.get(n).map_or(0, |service| service.percent));
        let route = [("v1", 100 - percent), ("v2", percent)].map(|(subset, weight)| {
            json!({"destination": {"host": name, "subset": subset}, "weight": weight})
        });
        let object = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": self.meta(n, &name),
            "spec": {"hosts": [name], "http": [{"route": route}]},
        });
        edit(format!("route-s{n}"), vec![object])
    }

    fn split(&self, n: usize) -> Split {
        Split {
            virtual_host: format!("{}:{PORT}", self.host(n)),
            stable: self.cluster(n, "v1"),
            canary: self.cluster(n, "v2"),
            percent: self.services.get(n).map_or(0, |service| service.percent),
        }
    }

    /// What a proxy has of a service, if it has all of it.
    pub(crate) fn whole(&self, n: usize) -> Expectation {
        let expected = Expectation::default().split(self.split(n));
        self.pods(n).last().map_or(expected.clone(), |(_, pod)| {
            expected.endpoint(&self.cluster(n, ""), &Ipv4Addr::from(pod.address).to_string())
        })
    }

    /// What a proxy has if it has everything.
    pub(crate) fn everything(&self) -> Expectation {
        let all = (0..self.services.len()).flat_map(|n| self.pods(n).map(move |(_, pod)| (n, pod)));
        let splits = (0..self.services.len()).map(|n| self.split(n));
        let expected = splits.fold(Expectation::default(), Expectation::split);
        all.fold(expected, |expected, (n, pod)| {
            expected.endpoint(&self.cluster(n, ""), &Ipv4Addr::from(pod.address).to_string())
        })
    }

    /// Another weight for one service.
    pub(crate) fn weight(&mut self, n: usize) -> (Edit, Expectation) {
        self.step(n);
        (self.route(n), Expectation::default().split(self.split(n)))
    }

    fn step(&mut self, n: usize) {
        if let Some(service) = self.services.get_mut(n) {
            service.percent = if service.percent >= MOST { LEAST } else { service.percent + 1 };
        }
    }

    /// Another weight for every service.
    pub(crate) fn storm(&mut self) -> (Vec<Edit>, Expectation) {
        let mut expected = Expectation::default();
        let mut edits = Vec::new();
        for n in 0..self.services.len() {
            let (edit, _) = self.weight(n);
            edits.push(edit);
            expected = expected.split(self.split(n));
        }
        (edits, expected)
    }

    /// One endpoint of a service gets another address.
    pub(crate) fn endpoint(&mut self, n: usize) -> (Edit, Expectation) {
        let address = next(&mut self.addresses);
        if let Some(pod) = self.services.get_mut(n).and_then(|service| service.pods.first_mut()) {
            pod.address = address;
        }
        let whole = self.endpoints(n);
        let changed = whole.last().cloned().into_iter().collect();
        let edit = Edit { file: format!("endpoints-s{n}"), whole, changed, deleted: Vec::new() };
        let address = Ipv4Addr::from(address).to_string();
        (edit, Expectation::default().endpoint(&self.cluster(n, ""), &address))
    }

    /// One more service, with everything that belongs to it.
    pub(crate) fn new_service(&mut self) -> (Vec<Edit>, Expectation) {
        let n = self.add_service();
        (self.of_service(n).into(), self.whole(n))
    }

    /// A restart of every tenth pod: for each service that has some, first its endpoint goes, then its successor comes.
    pub(crate) fn rolling_restart(&mut self) -> (Vec<Vec<Edit>>, Expectation) {
        let mut services = Vec::new();
        let mut expected = Expectation::default();
        let mut count = 0;
        for n in 0..self.services.len() {
            let mut edits = Vec::new();
            for at in 0..self.pods(n).count() {
                if count % 10 == 0 {
                    let (both, address) = self.restart(n, at);
                    edits.extend(both);
                    expected = expected.endpoint(&self.cluster(n, ""), &address);
                }
                count += 1;
            }
            if !edits.is_empty() {
                services.push(edits);
            }
        }
        (services, expected)
    }

    /// The two edits by which a pod is replaced, and its successor's address.
    fn restart(&mut self, n: usize, at: usize) -> ([Edit; 2], String) {
        let file = format!("endpoints-s{n}");
        let without: Vec<(usize, Pod)> = self.pods(n).filter(|(other, _)| *other != at).collect();
        let gone = self.pods(n).nth(at).map(|(_, pod)| self.pod(n, at, pod));
        let slice = self.slice(n, without.iter().copied());
        let mut whole: Vec<Value> =
            without.iter().map(|(at, pod)| self.pod(n, *at, *pod)).collect();
        whole.push(slice.clone());
        let leaves = Edit {
            file: file.clone(),
            whole,
            changed: vec![slice],
            deleted: gone.into_iter().collect(),
        };
        let address = next(&mut self.addresses);
        if let Some(pod) = self.services.get_mut(n).and_then(|service| service.pods.get_mut(at)) {
            *pod = Pod { address, restarts: pod.restarts + 1 };
        }
        let whole = self.endpoints(n);
        let new = self.pods(n).nth(at).map(|(_, pod)| self.pod(n, at, pod));
        let changed = new.into_iter().chain(whole.last().cloned()).collect();
        let comes = Edit { file, whole, changed, deleted: Vec::new() };
        ([leaves, comes], Ipv4Addr::from(address).to_string())
    }

    /// The encoded `Node` of a proxy.
    pub(crate) fn node(&self, n: usize) -> Bytes {
        let namespace = self.namespace(n);
        let metadata = [("NAMESPACE", namespace.as_str()), ("CLUSTER_ID", "Kubernetes")];
        let fields = metadata
            .map(|(key, value)| {
                let kind = Some(Kind::StringValue(value.to_owned()));
                (key.to_owned(), ProtoValue { kind })
            })
            .into();
        let ip = Ipv4Addr::from(PROXIES.wrapping_add(u32::try_from(n).unwrap_or(u32::MAX)));
        let id = NodeId {
            ip: ip.into(),
            pod: format!("client-{n}"),
            dns_domain: format!("{namespace}.svc.{DOMAIN}"),
            namespace,
        };
        let node = core::Node {
            id: id.to_string(),
            metadata: Some(Struct { fields }),
            ..Default::default()
        };
        node.encode_to_vec().into()
    }
}

/// An edit that creates these objects.
fn edit(file: String, whole: Vec<Value>) -> Edit {
    Edit { file, changed: whole.clone(), whole, deleted: Vec::new() }
}

fn next(addresses: &mut u32) -> u32 {
    let address = PODS.wrapping_add(*addresses);
    *addresses = addresses.wrapping_add(1);
    address
}

/// Every second pod is of the canary's version.
fn version(at: usize) -> &'static str {
    if at.is_multiple_of(2) { "v1" } else { "v2" }
}

fn pod_name(n: usize, at: usize, pod: Pod) -> String {
    format!("s{n}-{at}-{}", pod.restarts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> Size {
        Size { services: 10, pods_per_service: 4, namespaces: 3, streams: 4 }
    }

    #[test]
    fn every_object_is_one_that_weir_accepts() {
        let mesh = Mesh::new(size(), "bench", false);
        let mut objects = 0;
        for document in mesh.all().flat_map(|edit| edit.whole) {
            let Ok(crate::api::Identity::Known(key)) = crate::api::identify(&document) else {
                panic!("{document}");
            };
            let parsed = crate::api::parse(&key, document, 0).unwrap();
            assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
            objects += 1;
        }
        assert_eq!(objects, 10 * (4 + 4));
    }

    #[test]
    fn a_tenth_of_the_pods_restarts() {
        let mut mesh = Mesh::new(size(), "bench", false);
        let before: Vec<u32> =
            mesh.services.iter().flat_map(|service| &service.pods).map(|pod| pod.address).collect();
        let (services, _) = mesh.rolling_restart();
        assert_eq!(services.iter().map(Vec::len).sum::<usize>(), 2 * 4);
        let after = mesh.services.iter().flat_map(|service| &service.pods);
        assert_eq!(after.zip(before).filter(|(pod, before)| pod.address != *before).count(), 4);
        for edits in services {
            assert_eq!((edits[0].whole.len(), edits[1].whole.len()), (4, 5));
            assert_eq!((edits[0].deleted.len(), edits[1].changed.len()), (1, 2));
        }
    }

    #[test]
    fn a_weight_always_changes() {
        let mut mesh = Mesh::new(size(), "bench", false);
        for _ in 0..200 {
            let before = mesh.split(3).percent;
            mesh.weight(3);
            let now = mesh.split(3).percent;
            assert!(now != before && (LEAST..=MOST).contains(&now));
        }
    }
}
