//! What the DNS server of Istio's agent answers: the names of a service and its addresses, as Istio's `NameTable` has them
//! (measured on Istiod; field numbers as in its proto).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use prost::Message as _;

use crate::mesh::{Families, Health, Registry, Resolution, ScopeView, Service, VisibleService};

/// The names of one service, as a part of `NameTable`: such parts one after the other are a table.
#[derive(Clone, PartialEq, prost::Message)]
struct Part {
    /// The entries of the map.
    #[prost(message, repeated, tag = "1")]
    table: Vec<Entry>,
}

/// An entry of the map.
#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    info: Option<NameInfo>,
}

/// The addresses of a name.
#[derive(Clone, PartialEq, prost::Message)]
struct NameInfo {
    /// Its addresses.
    #[prost(string, repeated, tag = "1")]
    ips: Vec<String>,
    /// What kind of object it comes from.
    #[prost(string, tag = "2")]
    registry: String,
    /// The name of the Kubernetes Service, from which the agent makes the shorter names.
    #[prost(string, tag = "3")]
    short_name: String,
    /// The namespace of the Kubernetes Service.
    #[prost(string, tag = "4")]
    namespace: String,
}

/// The names of the service of a host that a scope's proxies may call, encoded as a part of `NameTable`; empty if it has
/// no addresses. The same names always have the same bytes.
pub(crate) fn encoded(view: &ScopeView<'_>, host: &str) -> Vec<u8> {
    let seen = view.callable_service(host);
    seen.map_or_else(Vec::new, |seen| part(view, &seen).encode_to_vec())
}

fn part(view: &ScopeView<'_>, seen: &VisibleService<'_>) -> Part {
    let service = &seen.known.service;
    let mut table = Vec::new();
    let mut ips = cluster_ips(service, view.scope.families);
    if service.addresses.is_empty() && service.resolution == Resolution::Passthrough {
        let (all, pods) = headless(seen);
        ips = texts(&all);
        for (pod, ips) in pods {
            let name = format!("{pod}.{}", service.host);
            let short_name = format!("{pod}.{}", service.name);
            table
                .push(Entry { name, info: Some(NameInfo::new(service, &short_name, texts(&ips))) });
        }
    }
    if !ips.is_empty() {
        let info = Some(NameInfo::new(service, &service.name, ips));
        table.push(Entry { name: service.host.to_string(), info });
    }
    Part { table }
}

impl NameInfo {
    /// Of a name of a service. `short_name` is the name below its namespace.
    fn new(service: &Service, short_name: &str, ips: Vec<String>) -> Self {
        match service.registry {
            Registry::Kubernetes => Self {
                ips,
                registry: "Kubernetes".to_owned(),
                short_name: short_name.to_owned(),
                namespace: service.namespace.to_string(),
            },
            Registry::ServiceEntry => {
                Self { ips, registry: "External".to_owned(), ..Self::default() }
            }
        }
    }
}

/// The addresses of a service, without ranges. Those of a Kubernetes Service are of the families that the proxies have;
/// those of a ServiceEntry need not exist, because the proxy's listeners have them.
fn cluster_ips(service: &Service, families: Families) -> Vec<String> {
    let addresses = service.addresses.iter().filter_map(|address| address.parse().ok());
    let addresses = addresses.filter(|address: &IpAddr| match families {
        _ if service.registry == Registry::ServiceEntry => true,
        Families::V4 => address.is_ipv4(),
        Families::V6 => address.is_ipv6(),
        Families::Both => true,
    });
    addresses.map(|address| address.to_string()).collect()
}

type Addresses<'a> = BTreeSet<&'a str>;

fn texts(addresses: &Addresses<'_>) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// The addresses of the ready endpoints of a headless service: of all, and of those that have a DNS name of their own.
fn headless<'a>(seen: &VisibleService<'a>) -> (Addresses<'a>, BTreeMap<&'a str, Addresses<'a>>) {
    let (mut all, mut pods) = (Addresses::new(), BTreeMap::<&str, Addresses<'_>>::new());
    let ready = seen.known.endpoints.list.iter();
    for endpoint in ready.filter(|endpoint| endpoint.health == Health::Healthy) {
        if endpoint.addresses().any(|address| address.parse::<IpAddr>().is_err()) {
            continue;
        }
        all.extend(endpoint.addresses().map(|address| &**address));
        if !endpoint.hostname.is_empty() {
            let pod = pods.entry(&endpoint.hostname).or_default();
            pod.extend(endpoint.addresses().map(|address| &**address));
        }
    }
    (all, pods)
}
