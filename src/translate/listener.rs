//! LDS: a listener per HTTP port, per TCP service, and the one that receives redirected outbound traffic.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::{
    cors::v3::Cors, fault::v3::HttpFault, grpc_stats::v3::FilterConfig as GrpcStats,
    grpc_web::v3::GrpcWeb, router::v3::Router,
};
use envoy_types::pb::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, tls_inspector::v3::TlsInspector,
};
use envoy_types::pb::envoy::extensions::filters::network::{
    http_connection_manager::v3 as hcm, tcp_proxy::v3 as tcp_proxy,
};
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use envoy_types::pb::envoy::r#type::v3::{HashPolicy, hash_policy};

use super::listener_plan::{ListenerPlan, any_address};
use super::tcp::{Chain, Target};
use super::{
    BLACK_HOLE, OUTBOUND_PORT, ads, any, bool_value, duration, seconds, socket_address, u32_value,
};
use crate::mesh::{Families, Protocol};

/// An outbound listener.
pub(crate) fn outbound(listener: &ListenerPlan) -> pb::Listener {
    let name = listener.name();
    let stat_prefix = format!("outbound_{name};");
    let only_http = listener.only_http && listener.bind;
    let mut filter_chains: Vec<pb::FilterChain> = listener.chains.iter().map(chain).collect();
    // Inspection finds out what is HTTP.
    let inspects = listener.http.is_some() && !only_http;
    if let Some(routes) = &listener.http {
        filter_chains.push(pb::FilterChain {
            filter_chain_match: inspects.then(|| looks_like_http(None)),
            filters: vec![filter(
                HTTP,
                &http_manager(stat_prefix, rds(routes), None, listener.grpc_web),
            )],
            transport_socket_connect_timeout: seconds(15),
            ..Default::default()
        });
    }
    let default_filter_chain = default_chain(&mut filter_chains, listener);
    let mut inspectors = Vec::new();
    if listener.chains.iter().any(|chain| !chain.sni.is_empty()) {
        let inspector =
            TlsInspector { initial_read_buffer_size: u32_value(512), ..Default::default() };
        inspectors.push(listener_filter("envoy.filters.listener.tls_inspector", &inspector, None));
    }
    if inspects {
        inspectors.push(listener_filter(
            "envoy.filters.listener.http_inspector",
            &HttpInspector::default(),
            None,
        ));
    }
    pb::Listener {
        name,
        address: Some(socket_address(&listener.address, listener.port)),
        additional_addresses: additional_addresses(listener.both_families, listener.port),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        filter_chains,
        default_filter_chain,
        listener_filters: inspectors,
        // Inspection has no timeout, which would cut off server-first protocols.
        listener_filters_timeout: seconds(0),
        continue_on_listener_filters_timeout: true,
        bind_to_port: if listener.bind { None } else { bool_value(false) },
        // Keeps one busy worker from accepting all waiting connections.
        max_connections_to_accept_per_socket_event: if listener.bind { u32_value(1) } else { None },
        ..Default::default()
    }
}

/// The filter chain for connections that match no other. Envoy matches one property after the other and never backtracks:
/// a chain without a match would miss connections that match another chain in part, so it becomes the default.
fn default_chain(
    chains: &mut Vec<pb::FilterChain>,
    listener: &ListenerPlan,
) -> Option<pb::FilterChain> {
    match chains.iter().position(|chain| chain.filter_chain_match.is_none()) {
        Some(_) if chains.len() == 1 => None,
        Some(at) => Some(chains.remove(at)),
        // Without redirection the original destination is not known.
        None if listener.bind => None,
        None => Some(pb::FilterChain {
            name: "PassthroughFilterChain".to_owned(),
            filters: vec![tcp(&listener.default_cluster)],
            ..Default::default()
        }),
    }
}

/// A filter chain for connections that are not, or are not detected as, HTTP.
pub(crate) fn chain(from: &Chain) -> pb::FilterChain {
    let matches = pb::FilterChainMatch {
        server_names: from.sni.clone(),
        prefix_ranges: from.subnets.iter().filter_map(|subnet| cidr(subnet)).collect(),
        ..Default::default()
    };
    pb::FilterChain {
        filter_chain_match: (matches != pb::FilterChainMatch::default()).then_some(matches),
        filters: vec![tcp_target(&from.target)],
        transport_socket_connect_timeout: seconds(15),
        ..Default::default()
    }
}

/// `ADDRESS/LENGTH`, or an address alone.
fn cidr(text: &str) -> Option<core::CidrRange> {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let address: std::net::IpAddr = address.parse().ok()?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let length = if length.is_empty() {
        whole
    } else {
        length.parse().ok().filter(|length| *length <= whole)?
    };
    Some(core::CidrRange { address_prefix: address.to_string(), prefix_len: u32_value(length) })
}

/// The listener for redirected outbound connections. It hands each connection to the listener for its destination;
/// connections without one go to the cluster `default_cluster`.
pub(crate) fn virtual_outbound(default_cluster: &str, families: Families) -> pb::Listener {
    let name = "virtualOutbound-catchall-tcp";
    pb::Listener {
        name: "virtualOutbound".to_owned(),
        address: Some(socket_address(any_address(families), OUTBOUND_PORT)),
        additional_addresses: additional_addresses(families == Families::Both, OUTBOUND_PORT),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        use_original_dst: bool_value(true),
        filter_chains: vec![
            black_hole("virtualOutbound-blackhole", OUTBOUND_PORT),
            pb::FilterChain {
                name: name.to_owned(),
                filters: vec![tcp(default_cluster)],
                ..Default::default()
            },
        ],
        max_connections_to_accept_per_socket_event: u32_value(1),
        ..Default::default()
    }
}

/// The wildcard address of the second family, for proxies that have both.
pub(super) fn additional_addresses(both: bool, port: u16) -> Vec<pb::AdditionalAddress> {
    let second = both.then(|| pb::AdditionalAddress {
        address: Some(socket_address("::", port)),
        ..Default::default()
    });
    second.into_iter().collect()
}

pub(super) const HTTP: &str = "envoy.filters.network.http_connection_manager";

pub(super) fn filter<M: prost::Name>(name: &str, config: &M) -> pb::Filter {
    pb::Filter {
        name: name.to_owned(),
        config_type: Some(pb::filter::ConfigType::TypedConfig(any(config))),
    }
}

pub(super) fn tcp(cluster: &str) -> pb::Filter {
    tcp_target(&Target::plain(cluster))
}

fn tcp_target(target: &Target) -> pb::Filter {
    use tcp_proxy::tcp_proxy::{
        ClusterSpecifier, TunnelingConfig, WeightedCluster, weighted_cluster::ClusterWeight,
    };
    let specifier = match target.clusters.as_slice() {
        [(only, _)] => ClusterSpecifier::Cluster(only.clone()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|(name, weight)| ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    ..Default::default()
                })
                .collect(),
        }),
    };
    let by_source = hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {});
    let proxy = tcp_proxy::TcpProxy {
        stat_prefix: target.clusters.first().map(|(name, _)| name.clone()).unwrap_or_default(),
        cluster_specifier: Some(specifier),
        idle_timeout: target.idle_timeout.and_then(duration),
        max_downstream_connection_duration: target.max_duration.and_then(duration),
        hash_policy: if target.hash_source {
            vec![HashPolicy { policy_specifier: Some(by_source) }]
        } else {
            Vec::new()
        },
        tunneling_config: target.tunnel.as_ref().map(|(hostname, post)| TunnelingConfig {
            hostname: hostname.clone(),
            use_post: *post,
            ..Default::default()
        }),
        ..Default::default()
    };
    filter("envoy.filters.network.tcp_proxy", &proxy)
}

/// Traffic to the proxy's own port would loop forever.
pub(super) fn black_hole(name: &str, port: u16) -> pb::FilterChain {
    pb::FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(pb::FilterChainMatch {
            destination_port: u32_value(u32::from(port)),
            ..Default::default()
        }),
        filters: vec![tcp(BLACK_HOLE)],
        ..Default::default()
    }
}

fn looks_like_http(port: Option<u16>) -> pb::FilterChainMatch {
    pb::FilterChainMatch {
        application_protocols: vec!["http/1.1".to_owned(), "h2c".to_owned()],
        ..transport("raw_buffer", port)
    }
}

fn transport(protocol: &str, port: Option<u16>) -> pb::FilterChainMatch {
    pb::FilterChainMatch {
        transport_protocol: protocol.to_owned(),
        destination_port: port.and_then(|port| u32_value(u32::from(port))),
        ..Default::default()
    }
}

fn rds(name: &str) -> hcm::http_connection_manager::RouteSpecifier {
    hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
        config_source: ads(),
        route_config_name: name.to_owned(),
    })
}

pub(super) fn http_manager(
    stat_prefix: String,
    routes: hcm::http_connection_manager::RouteSpecifier,
    inbound: Option<Protocol>,
    grpc_web: bool,
) -> hcm::HttpConnectionManager {
    use hcm::http_connection_manager as inner;
    let mut manager = hcm::HttpConnectionManager {
        stat_prefix,
        route_specifier: Some(routes),
        http_filters: vec![
            http_filter(
                "envoy.filters.http.grpc_stats",
                &GrpcStats {
                    emit_filter_state: true,
                    per_method_stat_specifier: Some(
                        envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3::filter_config::PerMethodStatSpecifier::StatsForAllMethods(
                            envoy_types::pb::google::protobuf::BoolValue { value: false },
                        ),
                    ),
                    ..Default::default()
                },
            ),
            http_filter("envoy.filters.http.fault", &HttpFault::default()),
            http_filter("envoy.filters.http.cors", &Cors::default()),
            http_filter("envoy.filters.http.router", &Router::default()),
        ],
        use_remote_address: bool_value(false),
        normalize_path: bool_value(true),
        path_with_escaped_slashes_action: inner::PathWithEscapedSlashesAction::KeepUnchanged as i32,
        proxy_100_continue: true,
        // Streams may be idle indefinitely.
        stream_idle_timeout: seconds(0),
        upgrade_configs: vec![inner::UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() }],
        request_id_extension: Some(hcm::RequestIdExtension {
            typed_config: Some(any(&UuidRequestIdConfig {
                use_request_id_for_trace_sampling: bool_value(true),
                ..Default::default()
            })),
        }),
        ..Default::default()
    };
    if grpc_web {
        // It ignores requests that are not gRPC-Web.
        manager.http_filters.insert(0, http_filter("envoy.filters.http.grpc_web", &GrpcWeb {}));
    }
    if let Some(protocol) = inbound {
        manager.server_name = "istio-envoy".to_owned();
        manager.forward_client_cert_details = inner::ForwardClientCertDetails::AppendForward as i32;
        manager.set_current_client_cert_details = Some(inner::SetCurrentClientCertDetails {
            subject: bool_value(true),
            dns: true,
            uri: true,
            ..Default::default()
        });
        manager.http2_protocol_options =
            protocol.is_http2().then(core::Http2ProtocolOptions::default);
    }
    manager
}

fn http_filter<M: prost::Name>(name: &str, config: &M) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}

pub(super) fn listener_filter<M: prost::Name>(
    name: &str,
    config: &M,
    filter_disabled: Option<pb::ListenerFilterChainMatchPredicate>,
) -> pb::ListenerFilter {
    pb::ListenerFilter {
        name: name.to_owned(),
        filter_disabled,
        config_type: Some(pb::listener_filter::ConfigType::TypedConfig(any(config))),
    }
}
