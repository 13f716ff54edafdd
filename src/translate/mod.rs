//! From the mesh to Envoy's resources: pure functions, a file per resource type. No clock, no I/O, no lock.

pub mod cluster;
pub mod connection_pool;
pub mod endpoint;
pub mod header;
pub mod listener;
pub mod load_balancer;
pub mod locality;
pub mod outbound;
pub mod outlier;
#[cfg(test)]
mod placement_tests;
pub mod policy;
pub mod route;
pub mod route_match;
pub mod tcp;
pub mod tls;
pub mod virtual_host;

use std::time;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};

use crate::api::Destination;
use crate::mesh::{OutboundPolicy, Service, View};

/// The cluster that leads nowhere.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// The cluster that leads where the client wanted to go.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// The same for what comes in.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// The name of the cluster for a subset (empty for all) of a host's port.
pub fn cluster_name(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// The name of the cluster for a port of the workload itself.
pub fn inbound_cluster_name(port: u16) -> String {
    format!("inbound|{port}||")
}

/// Whether a cluster leads to a port of the workload itself.
pub fn is_inbound(cluster: &str) -> bool {
    cluster.starts_with("inbound|")
}

/// The port of a destination: the one given, else the service's only one, else the listener's.
pub fn destination_port(to: &Destination, service: Option<&Service>, listener: u16) -> u16 {
    let given = to.port.and_then(|port| u16::try_from(port.number).ok()).filter(|port| *port > 0);
    let only = || match service?.ports.as_slice() {
        [only] => Some(only.number),
        _ => None,
    };
    given.or_else(only).unwrap_or(listener)
}

/// The cluster that traffic for hosts that nobody knows goes to. Of a proxy that is not there nothing is sent: a listener
/// that leads to no cluster would never go live.
pub fn default_cluster(view: &View<'_>) -> String {
    let through = match (view.outbound, view.egress_proxy()) {
        (OutboundPolicy::RegistryOnly, _) => return BLACK_HOLE.to_owned(),
        (OutboundPolicy::AllowAny, None) => return PASSTHROUGH.to_owned(),
        (OutboundPolicy::AllowAny, Some(through)) => through,
    };
    let host = through.host.to_ascii_lowercase();
    let known = view.service(&host).filter(|seen| seen.known.service.alias_of.is_none());
    let cluster = known.and_then(|seen| {
        let number = destination_port(through, Some(&seen.known.service), 0);
        let rule = view.destination_rule(seen.known);
        let has_subset = through.subset.is_empty() || rule.is_some_and(|rule| rule.subset(&through.subset).is_some());
        let has_port = seen.ports().any(|port| port.number == number);
        (has_subset && has_port).then(|| cluster_name(number, &through.subset, &host))
    });
    cluster.unwrap_or_else(|| BLACK_HOLE.to_owned())
}

/// The host that a destination's clusters are named by: of an ExternalName service the one it stands for.
pub fn real_host<'a>(host: &'a str, service: Option<&'a Service>) -> &'a str {
    service.and_then(|service| service.alias_of.as_deref()).unwrap_or(host)
}

pub(crate) fn any<M: prost::Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

pub(crate) fn duration(duration: time::Duration) -> Option<Duration> {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    // Below 10⁹, so that it fits.
    Some(Duration { seconds, nanos: duration.subsec_nanos() as i32 })
}

/// The name of the cluster of a whole service, given that of one of its subsets' clusters.
pub(crate) fn whole_service(cluster: &str) -> Option<String> {
    let (port, rest) = cluster.strip_prefix("outbound|")?.split_once('|')?;
    let (subset, host) = rest.split_once('|')?;
    (!subset.is_empty()).then(|| format!("outbound|{port}||{host}"))
}

pub(crate) fn seconds(seconds: u64) -> Option<Duration> {
    duration(time::Duration::from_secs(seconds))
}

pub(crate) fn u32_value(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(crate) fn bool_value(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub(crate) fn socket_address(address: &str, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
            ..Default::default()
        })),
    }
}

/// "Ask on the ADS stream". No time limit, so that a slow control plane never makes a proxy go on with nothing.
pub(crate) fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource {
        initial_fetch_timeout: seconds(0),
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        ..Default::default()
    })
}
