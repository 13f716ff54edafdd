//! Makes resources from short texts, and reads the texts back from what was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::service::runtime::v3 as runtime;
use envoy_types::pb::google::protobuf::{UInt32Value, value::Kind};
use prost::Message;

use crate::snapshot::ResourceType::{Cluster, Endpoints, Route};
use crate::snapshot::{
    ClusterRefs, EncodedVirtualHost, Resource, ResourceType, RouteTable, Snapshot,
};

/// Resources as text: type, name, body. A listener's body may end in `>cluster,cluster`; a route configuration's is
/// a list of virtual hosts `name>cluster,cluster*anything`.
pub(crate) type Parts<'a> = &'a [(ResourceType, &'a str, &'a str)];

pub(crate) fn snapshot(revision: u64, parts: Parts<'_>) -> Arc<Snapshot> {
    let resources = ResourceType::OF_SNAPSHOT.map(|kind| {
        let wanted = parts.iter().filter(|(part, ..)| *part == kind);
        wanted.map(|(_, name, body)| resource(kind, name, body)).collect()
    });
    Arc::new(Snapshot::new(revision.into(), resources))
}

pub(crate) fn resource(kind: ResourceType, name: &str, body: &str) -> Arc<Resource> {
    if kind == Route {
        let head = route::RouteConfiguration { name: name.to_owned(), ..Default::default() };
        let mut table = RouteTable::new(head.encode_to_vec().into());
        for host in body.split_whitespace().map(host) {
            let host = Arc::new(EncodedVirtualHost::new(host, Arc::default()));
            table.set(&host.name.clone(), Some(host));
        }
        return Resource::routes(name, table);
    }
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    Resource::with_cluster_refs(
        name,
        bytes,
        ClusterRefs::new(next_references(body)),
        Arc::default(),
    )
}

/// The clusters that the text of a listener or virtual host references.
pub(crate) fn next_references(text: &str) -> impl Iterator<Item = &str> {
    let list = text.split_once('>').map_or("", |(_, list)| list);
    list.split('*').next().unwrap_or_default().split(',')
}

/// The sum of the weights of a route that has several clusters.
const SUM: u32 = 1_000_000;

fn host(text: &str) -> route::VirtualHost {
    let name = text.split('>').next().unwrap_or_default().to_owned();
    let routes = match weights(text) {
        Some(clusters) => {
            let runtime_key_prefix = format!("weir.{name}.0");
            let weighted =
                route::WeightedCluster { clusters, runtime_key_prefix, ..Default::default() };
            let text = text.split('*').next().unwrap_or_default();
            vec![route_to(ClusterSpecifier::WeightedClusters(weighted), text)]
        }
        None => next_references(text)
            .map(|cluster| route_to(ClusterSpecifier::Cluster(cluster.to_owned()), text))
            .collect(),
    };
    route::VirtualHost { domains: vec![name.clone()], name, routes, ..Default::default() }
}

fn route_to(cluster_specifier: ClusterSpecifier, name: &str) -> route::Route {
    route::Route {
        name: name.to_owned(),
        action: Some(route::route::Action::Route(route::RouteAction {
            cluster_specifier: Some(cluster_specifier),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// The weights of a virtual host `name>cluster,cluster*NUMBER`: the number for the first cluster, the rest for the second.
fn weights(text: &str) -> Option<Vec<route::weighted_cluster::ClusterWeight>> {
    let number: u32 = text.split_once('*')?.1.parse().ok()?;
    let names: Vec<&str> = next_references(text).collect();
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    if names.len() < 2 || unique.len() < names.len() {
        return None;
    }
    let weights = [number, SUM - number].into_iter().chain(std::iter::repeat(0));
    let weighted =
        names.iter().zip(weights).map(|(name, value)| route::weighted_cluster::ClusterWeight {
            name: (*name).to_owned(),
            weight: Some(UInt32Value { value }),
            ..Default::default()
        });
    Some(weighted.collect())
}

/// The text of a virtual host; with weights it is `name>cluster,cluster*NUMBER@RUNTIME-KEY-PREFIX`.
fn show_host(host: &route::VirtualHost) -> String {
    let route = &host.routes[0];
    let Some(route::route::Action::Route(action)) = &route.action else {
        return route.name.clone();
    };
    match &action.cluster_specifier {
        Some(route::route_action::ClusterSpecifier::WeightedClusters(weighted)) => {
            let weight = weighted.clusters[0].weight.map_or(0, |weight| weight.value);
            format!("{}*{weight}@{}", route.name, weighted.runtime_key_prefix)
        }
        _ => route.name.clone(),
    }
}

/// The text of a runtime layer: its keys with their values.
fn show_runtime(bytes: &[u8]) -> String {
    let layer = runtime::Runtime::decode(bytes).unwrap().layer.unwrap();
    let values = layer.fields.iter().map(|(key, value)| match value.kind {
        Some(Kind::NumberValue(number)) => format!("{key}={number}"),
        _ => panic!("a weight is a number"),
    });
    let mut all: Vec<String> = values.collect();
    all.sort();
    all.join(" ")
}

/// A virtual host's text with the weight that is in force under this runtime layer, and without its prefix.
pub(crate) fn effective(host: &str, layer: &BTreeMap<String, u32>) -> String {
    let Some((text, prefix)) = host.split_once('@') else {
        return host.to_owned();
    };
    let first = next_references(text).next().unwrap_or_default();
    match (layer.get(&format!("{prefix}.{first}")), text.split_once('*')) {
        (Some(weight), Some((name, _))) => format!("{name}*{weight}"),
        _ => text.to_owned(),
    }
}

/// A text that makes the simulated Envoy reject a resource of any type.
const BAD: &str = "bad";

/// A real cluster whose endpoints come by EDS. Its text is `NAME pPOLICY`, with the prefix `bad ` if the client should
/// reject it.
pub(crate) fn eds_cluster(name: &str, policy: u32, bad: bool) -> Arc<Resource> {
    let message = cluster::Cluster {
        name: name.to_owned(),
        alt_stat_name: if bad { BAD.to_owned() } else { format!("{name};") },
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            service_name: name.to_owned(),
            ..Default::default()
        }),
        per_connection_buffer_limit_bytes: Some(UInt32Value { value: policy }),
        ..Default::default()
    };
    Resource::new(name, message.encode_to_vec().into(), Arc::default())
}

/// A real cluster that finds its endpoints through DNS, and warms until it has them.
pub(crate) fn dns_cluster(name: &str, policy: u32) -> Arc<Resource> {
    let message = cluster::Cluster {
        name: name.to_owned(),
        per_connection_buffer_limit_bytes: Some(UInt32Value { value: policy }),
        ..Default::default()
    };
    Resource::new(name, message.encode_to_vec().into(), Arc::default())
}

/// Real endpoints of a cluster: one endpoint with this number, or none. Their text is `NAME eNUMBER` or `NAME none`.
pub(crate) fn endpoints(name: &str, number: Option<u32>, bad: bool) -> Arc<Resource> {
    let locality = number.or(bad.then_some(1)).map(|port| {
        let address = core::address::Address::SocketAddress(core::SocketAddress {
            address: if bad { BAD.to_owned() } else { "10.0.0.1".to_owned() },
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        });
        let address = Some(core::Address { address: Some(address) });
        endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint::LbEndpoint {
                host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
                    endpoint::Endpoint { address, ..Default::default() },
                )),
                ..Default::default()
            }],
            ..Default::default()
        }
    });
    let message = endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: locality.into_iter().collect(),
        ..Default::default()
    };
    Resource::new(name, message.encode_to_vec().into(), Arc::default())
}

/// The text that an encoded resource was made from.
pub(crate) fn show(kind: ResourceType, bytes: &[u8]) -> String {
    let text = match kind {
        Cluster => show_cluster(bytes),
        Endpoints => show_endpoints(bytes),
        Route => {
            let message = route::RouteConfiguration::decode(bytes).unwrap();
            let hosts: Vec<_> = message.virtual_hosts.iter().map(show_host).collect();
            return hosts.join(" ");
        }
        ResourceType::Runtime => return show_runtime(bytes),
        ResourceType::Listener => None,
    };
    text.unwrap_or_else(|| String::from_utf8_lossy(bytes).into_owned())
}

fn show_cluster(bytes: &[u8]) -> Option<String> {
    let message = cluster::Cluster::decode(bytes).ok()?;
    let policy = message.per_connection_buffer_limit_bytes?.value;
    let rejected = if message.alt_stat_name == BAD { "bad " } else { "" };
    Some(format!("{rejected}{} p{policy}", message.name))
}

fn show_endpoints(bytes: &[u8]) -> Option<String> {
    use endpoint::lb_endpoint::HostIdentifier;
    let message = endpoint::ClusterLoadAssignment::decode(bytes).ok()?;
    let name = message.cluster_name;
    let Some(member) = message.endpoints.into_iter().flat_map(|group| group.lb_endpoints).next()
    else {
        return Some(format!("{name} none"));
    };
    let Some(HostIdentifier::Endpoint(endpoint)) = member.host_identifier else {
        return None;
    };
    let Some(core::address::Address::SocketAddress(address)) = endpoint.address?.address else {
        return None;
    };
    let Some(core::socket_address::PortSpecifier::PortValue(number)) = address.port_specifier
    else {
        return None;
    };
    let rejected = if address.address == BAD { "bad " } else { "" };
    Some(format!("{rejected}{name} e{number}"))
}
