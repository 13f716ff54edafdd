//! LDS: a listener per HTTP port, per TCP service, and the two that receive redirected traffic.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::{
    cors::v3::Cors, fault::v3::HttpFault, grpc_stats::v3::FilterConfig as GrpcStats,
    grpc_web::v3::GrpcWeb, router::v3::Router,
};
use envoy_types::pb::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
    tls_inspector::v3::TlsInspector,
};
use envoy_types::pb::envoy::extensions::filters::network::{
    http_connection_manager::v3 as hcm, tcp_proxy::v3 as tcp_proxy,
};
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use envoy_types::pb::envoy::r#type::v3::{HashPolicy, Int32Range, hash_policy};

use super::listener_plan::{ListenerPlan, any_address};
use super::tcp::{Chain, Target};
use super::{
    BLACK_HOLE, INBOUND_PASSTHROUGH, INBOUND_PORT, OUTBOUND_PORT, ads, any, bool_value, duration,
    inbound_cluster_name, seconds, socket_address, u32_value,
};
use crate::mesh::{Families, InboundPort, Protocol};

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

/// The listener for redirected inbound connections: a chain per inbound port, and pass-through for everything else.
pub(crate) fn virtual_inbound(ports: &[InboundPort], families: Families) -> pb::Listener {
    let pass_http = inbound_http(
        "InboundPassthroughCluster;",
        INBOUND_PASSTHROUGH,
        "inbound|http|0",
        Protocol::Http,
    );
    let mut chains = vec![
        black_hole("virtualInbound-blackhole", INBOUND_PORT),
        named_chain("virtualInbound-catchall-http", looks_like_http(None), pass_http),
        named_chain("virtualInbound", transport("raw_buffer", None), tcp(INBOUND_PASSTHROUGH)),
        named_chain("virtualInbound", transport("tls", None), tcp(INBOUND_PASSTHROUGH)),
    ];
    chains.extend(ports.iter().flat_map(inbound_chains));
    // If the protocol is known, waiting for the client's first bytes would block server-first protocols.
    let known =
        ports.iter().filter(|port| port.protocol != Protocol::Unknown).map(|port| port.target);
    let not_http: Vec<u16> = known.chain([INBOUND_PORT]).collect();
    // TLS detection makes no difference here.
    let bytes = ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.target);
    let not_tls: Vec<u16> = bytes.chain([INBOUND_PORT]).collect();
    pb::Listener {
        name: "virtualInbound".to_owned(),
        address: Some(socket_address(any_address(families), INBOUND_PORT)),
        traffic_direction: core::TrafficDirection::Inbound as i32,
        filter_chains: chains,
        listener_filters: vec![
            listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default(), None),
            listener_filter(
                "envoy.filters.listener.tls_inspector",
                &TlsInspector { initial_read_buffer_size: u32_value(512), ..Default::default() },
                disabled_at(&not_tls),
            ),
            listener_filter(
                "envoy.filters.listener.http_inspector",
                &HttpInspector::default(),
                disabled_at(&not_http),
            ),
        ],
        listener_filters_timeout: seconds(0),
        continue_on_listener_filters_timeout: true,
        max_connections_to_accept_per_socket_event: u32_value(1),
        ..Default::default()
    }
}

/// The filter chains for the connections to one inbound port.
fn inbound_chains(port: &InboundPort) -> Vec<pb::FilterChain> {
    let name = format!("0.0.0.0_{}", port.target);
    let cluster = inbound_cluster_name(port.target);
    let virtual_host = format!("inbound|http|{}", port.port);
    let http = inbound_http(&format!("inbound_{name};"), &cluster, &virtual_host, port.protocol);
    let at = Some(port.target);
    match port.protocol {
        Protocol::Unknown => vec![
            named_chain(&name, looks_like_http(at), http),
            named_chain(&name, transport("raw_buffer", at), tcp(&cluster)),
            named_chain(&name, transport("tls", at), tcp(&cluster)),
        ],
        protocol if protocol.is_http() => {
            vec![named_chain(&name, transport("raw_buffer", at), http)]
        }
        _ => vec![
            named_chain(&name, transport("tls", at), tcp(&cluster)),
            named_chain(&name, transport("raw_buffer", at), tcp(&cluster)),
        ],
    }
}

fn named_chain(name: &str, matches: pb::FilterChainMatch, filter: pb::Filter) -> pb::FilterChain {
    pb::FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(matches),
        filters: vec![filter],
        ..Default::default()
    }
}

const HTTP: &str = "envoy.filters.network.http_connection_manager";

fn filter<M: prost::Name>(name: &str, config: &M) -> pb::Filter {
    pb::Filter {
        name: name.to_owned(),
        config_type: Some(pb::filter::ConfigType::TypedConfig(any(config))),
    }
}

fn tcp(cluster: &str) -> pb::Filter {
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
fn black_hole(name: &str, port: u16) -> pb::FilterChain {
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

fn http_manager(
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

/// Inbound HTTP: every request goes to `cluster`.
fn inbound_http(
    stat_prefix: &str,
    cluster: &str,
    virtual_host: &str,
    protocol: Protocol,
) -> pb::Filter {
    // A request that was reset before it was sent cannot have had an effect; gRPC clients retry by themselves.
    let retry = (!protocol.is_grpc()).then(|| route::RetryPolicy {
        retry_on: "reset-before-request".to_owned(),
        num_retries: u32_value(2),
        ..Default::default()
    });
    let action = route::RouteAction {
        timeout: seconds(0),
        max_stream_duration: Some(route::route_action::MaxStreamDuration {
            max_stream_duration: seconds(0),
            grpc_timeout_header_max: seconds(0),
            ..Default::default()
        }),
        retry_policy: retry,
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    let routes = route::RouteConfiguration {
        name: cluster.to_owned(),
        validate_clusters: bool_value(false),
        virtual_hosts: vec![route::VirtualHost {
            name: virtual_host.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route::Route {
                name: "default".to_owned(),
                r#match: Some(super::route_match::translate(None)),
                action: Some(route::route::Action::Route(action)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let routes = hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes);
    let grpc_web = protocol == Protocol::GrpcWeb;
    filter(HTTP, &http_manager(stat_prefix.to_owned(), routes, Some(protocol), grpc_web))
}

fn listener_filter<M: prost::Name>(
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

fn disabled_at(ports: &[u16]) -> Option<pb::ListenerFilterChainMatchPredicate> {
    use pb::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let mut rules: Vec<_> = ports
        .iter()
        .map(|port| pb::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::DestinationPortRange(Int32Range {
                start: i32::from(*port),
                end: i32::from(*port) + 1,
            })),
        })
        .collect();
    if rules.len() > 1 {
        return Some(pb::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::OrMatch(MatchSet { rules })),
        });
    }
    rules.pop()
}
