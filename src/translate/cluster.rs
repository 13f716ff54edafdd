//! CDS: the clusters of a service's ports and subsets, of the workload's own ports, and the fixed ones.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{Any, Duration};

use super::{
    BLACK_HOLE, INBOUND_PASSTHROUGH, PASSTHROUGH, ads, any, cluster_name, inbound_cluster_name, seconds,
    socket_address, u32_value,
};
use crate::mesh::{DestinationRule, InboundPort, Port, Protocol, Resolution, Service};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The clusters of one port: one for all endpoints, and one for each subset of `rule`.
pub fn outbound(service: &Service, port: &Port, rule: Option<&DestinationRule>) -> Vec<pb::Cluster> {
    let subsets = rule.into_iter().flat_map(|rule| &rule.subsets).map(|subset| subset.name.as_str());
    std::iter::once("").chain(subsets).map(|subset| one(service, port, subset)).collect()
}

fn one(service: &Service, port: &Port, subset: &str) -> pb::Cluster {
    let name = cluster_name(port.number, subset, &service.host);
    let mut cluster = pb::Cluster {
        alt_stat_name: format!("{name};"),
        // 0 means that Envoy never sends to endpoints it knows to be unhealthy.
        common_lb_config: Some(pb::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..Default::default()
        }),
        connect_timeout: seconds(10),
        circuit_breakers: no_limits(),
        typed_extension_protocol_options: upstream_protocol(port.protocol),
        ..Default::default()
    };
    match service.resolution {
        Resolution::Endpoints => {
            cluster.cluster_discovery_type =
                Some(pb::cluster::ClusterDiscoveryType::Type(pb::cluster::DiscoveryType::Eds as i32));
            cluster.eds_cluster_config =
                Some(pb::cluster::EdsClusterConfig { eds_config: ads(), service_name: name.clone() });
            cluster.lb_policy = pb::cluster::LbPolicy::LeastRequest as i32;
        }
        Resolution::Passthrough => original_destination(&mut cluster),
    }
    cluster.name = name;
    cluster
}

/// The clusters that every proxy has.
pub fn fixed() -> Vec<pb::Cluster> {
    let black_hole = pb::Cluster {
        name: BLACK_HOLE.to_owned(),
        alt_stat_name: format!("{BLACK_HOLE};"),
        connect_timeout: seconds(10),
        cluster_discovery_type: Some(pb::cluster::ClusterDiscoveryType::Type(
            pb::cluster::DiscoveryType::Static as i32,
        )),
        ..Default::default()
    };
    let mut pass = pb::Cluster {
        name: PASSTHROUGH.to_owned(),
        alt_stat_name: format!("{PASSTHROUGH};"),
        connect_timeout: seconds(10),
        circuit_breakers: no_limits(),
        typed_extension_protocol_options: HashMap::from([(
            HTTP_OPTIONS.to_owned(),
            any(&http::HttpProtocolOptions {
                common_http_protocol_options: Some(core::HttpProtocolOptions {
                    idle_timeout: seconds(300),
                    ..Default::default()
                }),
                upstream_protocol_options: Some(as_downstream()),
                ..Default::default()
            }),
        )]),
        ..Default::default()
    };
    original_destination(&mut pass);
    let inbound =
        pb::Cluster { name: INBOUND_PASSTHROUGH.to_owned(), upstream_bind_config: loopback_source(), ..pass.clone() };
    vec![black_hole, pass, inbound]
}

/// The cluster of a port of the workload itself.
pub fn inbound(port: &InboundPort) -> pb::Cluster {
    let name = inbound_cluster_name(port.target);
    let mut cluster = pb::Cluster {
        alt_stat_name: format!("{name};"),
        name,
        connect_timeout: seconds(10),
        circuit_breakers: no_limits(),
        upstream_bind_config: loopback_source(),
        typed_extension_protocol_options: upstream_protocol(port.protocol),
        // Never (the longest that Envoy takes): the one address behind it does not go away.
        cleanup_interval: Some(Duration { seconds: 9_223_372_035, nanos: 0 }),
        ..Default::default()
    };
    original_destination(&mut cluster);
    cluster
}

fn original_destination(cluster: &mut pb::Cluster) {
    cluster.cluster_discovery_type =
        Some(pb::cluster::ClusterDiscoveryType::Type(pb::cluster::DiscoveryType::OriginalDst as i32));
    cluster.lb_policy = pb::cluster::LbPolicy::ClusterProvided as i32;
}

/// The address that redirection lets pass, so that what the proxy sends to its own workload does not come back.
fn loopback_source() -> Option<core::BindConfig> {
    let address = socket_address("127.0.0.6", 0).address;
    let source_address = match address {
        Some(core::address::Address::SocketAddress(address)) => Some(address),
        _ => None,
    };
    Some(core::BindConfig { source_address, ..Default::default() })
}

/// Envoy's defaults (1024 of each) would be limits that nobody asked for.
fn no_limits() -> Option<pb::CircuitBreakers> {
    let thresholds = pb::circuit_breakers::Thresholds {
        max_connections: u32_value(u32::MAX),
        max_pending_requests: u32_value(u32::MAX),
        max_requests: u32_value(u32::MAX),
        max_retries: u32_value(u32::MAX),
        track_remaining: true,
        ..Default::default()
    };
    Some(pb::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() })
}

fn upstream_protocol(protocol: Protocol) -> HashMap<String, Any> {
    let options = match protocol {
        protocol if protocol.is_http2() => http::http_protocol_options::UpstreamProtocolOptions::ExplicitHttpConfig(
            http::http_protocol_options::ExplicitHttpConfig {
                protocol_config: Some(
                    http::http_protocol_options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
                        core::Http2ProtocolOptions::default(),
                    ),
                ),
            },
        ),
        Protocol::Unknown => as_downstream(),
        _ => return HashMap::new(),
    };
    let options = http::HttpProtocolOptions { upstream_protocol_options: Some(options), ..Default::default() };
    HashMap::from([(HTTP_OPTIONS.to_owned(), any(&options))])
}

fn as_downstream() -> http::http_protocol_options::UpstreamProtocolOptions {
    http::http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(
        http::http_protocol_options::UseDownstreamHttpConfig {
            http_protocol_options: Some(core::Http1ProtocolOptions::default()),
            http2_protocol_options: Some(core::Http2ProtocolOptions::default()),
            ..Default::default()
        },
    )
}
