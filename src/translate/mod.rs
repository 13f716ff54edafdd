//! Translates the mesh into Envoy resources with pure functions, one file per feature. No clock, no I/O, no locks.

pub(crate) mod cluster;
pub(crate) mod connection_pool;
pub(crate) mod context;
pub(crate) mod endpoint;
pub(crate) mod header;
pub(crate) mod inbound;
pub(crate) mod listener;
pub(crate) mod listener_plan;
pub(crate) mod load_balancer;
pub(crate) mod locality;
pub(crate) mod names;
pub(crate) mod outlier;
#[cfg(test)]
mod placement_tests;
pub(crate) mod policy;
pub(crate) mod route;
pub(crate) mod route_match;
pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod virtual_host;

use std::time;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};

use crate::api::Destination;
use crate::mesh::{OutboundPolicy, ScopeView, Service};
use crate::ports;

/// The port for redirected outbound traffic.
pub(crate) const OUTBOUND_PORT: u16 = ports::OUTBOUND;
/// The port for redirected inbound traffic.
pub(crate) const INBOUND_PORT: u16 = ports::INBOUND;

/// The cluster that drops traffic.
pub(crate) const BLACK_HOLE: &str = "BlackHoleCluster";
/// The cluster that forwards to the original destination.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";
/// The same for inbound traffic.
pub(crate) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// The cluster name of a port and subset (empty for the whole service) of a host.
pub(crate) fn cluster_name(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// The port, subset and host in the name of an outbound cluster.
pub(crate) fn destination_of(cluster: &str) -> Option<(u16, &str, &str)> {
    let (port, subset, host) = parts(cluster)?;
    Some((port.parse().ok()?, subset, host))
}

/// The parts of the name of an outbound cluster: port, subset and host.
fn parts(cluster: &str) -> Option<(&str, &str, &str)> {
    let (port, rest) = cluster.strip_prefix("outbound|")?.split_once('|')?;
    let (subset, host) = rest.split_once('|')?;
    Some((port, subset, host))
}

/// The name of an inbound cluster.
pub(crate) fn inbound_cluster_name(port: u16) -> String {
    format!("inbound|{port}||")
}

/// Whether a cluster is for a port of the workload itself.
pub(crate) fn is_inbound(cluster: &str) -> bool {
    cluster.starts_with("inbound|")
}

/// The port of a destination: the explicit one, else the service's only port, else the listener's.
pub(crate) fn destination_port(to: &Destination, service: Option<&Service>, listener: u16) -> u16 {
    let given = to.port.and_then(|port| u16::try_from(port.number).ok()).filter(|port| *port > 0);
    given
        .or_else(|| match service?.ports.as_slice() {
            [only] => Some(only.number),
            _ => None,
        })
        .unwrap_or(listener)
}

/// The cluster for traffic to unknown hosts. If the egress proxy does not exist, traffic is dropped: a listener that
/// references a missing cluster would never go live.
pub(crate) fn default_cluster(view: &ScopeView<'_>) -> String {
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
        let has_subset = through.subset.is_empty()
            || rule.is_some_and(|rule| rule.subset(&through.subset).is_some());
        let has_port = seen.ports().any(|port| port.number == number);
        (has_subset && has_port).then(|| cluster_name(number, &through.subset, &host))
    });
    cluster.unwrap_or_else(|| BLACK_HOLE.to_owned())
}

/// The host that a destination's clusters are named after; for an ExternalName service its target.
pub(crate) fn canonical_host<'a>(host: &'a str, service: Option<&'a Service>) -> &'a str {
    service.and_then(|service| service.alias_of.as_deref()).unwrap_or(host)
}

pub(crate) fn any<M: prost::Name>(message: &M) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", M::full_name()),
        value: message.encode_to_vec(),
    }
}

pub(crate) fn duration(duration: time::Duration) -> Option<Duration> {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    // Less than 10⁹, so it fits.
    Some(Duration { seconds, nanos: duration.subsec_nanos() as i32 })
}

/// The cluster name of the whole service, given the name of a subset's cluster.
pub(crate) fn service_cluster_name(cluster: &str) -> Option<String> {
    let (port, subset, host) = parts(cluster)?;
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

/// Fetch over the ADS stream. Without a timeout, so that a slow control plane never makes a proxy continue without
/// configuration.
pub(crate) fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource {
        initial_fetch_timeout: seconds(0),
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    })
}
