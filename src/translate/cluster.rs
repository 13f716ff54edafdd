//! CDS: outbound clusters of service ports and subsets, inbound clusters, and the built-in ones.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{Any, Duration};

use super::connection_pool::{self, HttpOptions, no_limits};
use super::context::Context;
use super::policy::Policy;
use super::tls::Automatic;
use super::{
    BLACK_HOLE, INBOUND_PASSTHROUGH, PASSTHROUGH, ads, any, cluster_name, endpoint,
    inbound_cluster_name, load_balancer, outlier, seconds, socket_address, tls,
};
use crate::api::{ConnectionPoolSettings, Labels, TlsMode, TrafficPolicy};
use crate::mesh::{
    Certificates, DestinationRule, Families, InboundPort, Port, Resolution, Scope, Service,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The clusters of a port: one for all endpoints and one per subset.
pub(crate) fn outbound(port: &Port, context: Context<'_>) -> Vec<pb::Cluster> {
    let subsets =
        context.rule.into_iter().flat_map(|rule| &rule.subsets).map(|subset| subset.name.as_str());
    std::iter::once("").chain(subsets).map(|subset| cluster(port, subset, context)).collect()
}

/// Whether the clusters of a service depend on its endpoints: those with addresses that are resolved by DNS, and those that
/// go to the original destination, encrypted if all endpoints take that.
pub(crate) fn embeds_endpoints(
    service: &Service,
    rule: Option<&DestinationRule>,
    scope: &Scope,
) -> bool {
    match service.resolution {
        Resolution::Dns | Resolution::DnsRoundRobin => true,
        Resolution::Passthrough => encrypts(service, scope),
        Resolution::Endpoints => encrypts(service, scope) && rule.is_some_and(passes_through),
    }
}

/// Whether the clusters of a service have the service accounts of its workloads, which their certificates must name.
pub(crate) fn names_accounts(
    service: &Service,
    rule: Option<&DestinationRule>,
    scope: &Scope,
) -> bool {
    encrypts(service, scope) || rule.is_some_and(uses_istio_mutual)
}

/// Whether the proxies of a scope use mutual TLS with a service where no rule says otherwise.
fn encrypts(service: &Service, scope: &Scope) -> bool {
    scope.certificates != Certificates::None && !service.is_external
}

/// Whether any policy of a rule uses TLS with the certificates of the mesh.
fn uses_istio_mutual(rule: &DestinationRule) -> bool {
    policies(rule).any(|policy| {
        let ports = policy.port_level_settings.iter().map(|port| &port.tls);
        let mut tls = ports.chain(std::iter::once(&policy.tls)).flatten();
        tls.any(|tls| tls.mode == TlsMode::IstioMutual)
    })
}

/// Whether any policy of a rule sends connections to their original destination.
fn passes_through(rule: &DestinationRule) -> bool {
    policies(rule).any(|policy| {
        let ports = policy.port_level_settings.iter().map(|port| port.load_balancer.as_ref());
        let mut all = ports.chain(std::iter::once(policy.load_balancer.as_ref()));
        all.any(load_balancer::is_passthrough)
    })
}

/// The policies of a rule and of its subsets.
fn policies(rule: &DestinationRule) -> impl Iterator<Item = &TrafficPolicy> {
    let own = rule.traffic_policy.as_deref().into_iter();
    own.chain(rule.subsets.iter().filter_map(|subset| subset.traffic_policy.as_deref()))
}

fn cluster(port: &Port, subset: &str, context: Context<'_>) -> pb::Cluster {
    let service = &context.known.service;
    let policy = Policy::new(context.rule, subset, port.number);
    let name = cluster_name(port.number, subset, &service.host);
    let mut cluster = pb::Cluster {
        name: name.clone(),
        alt_stat_name: format!("{name};"),
        // 0 disables panic mode, so Envoy never sends to unhealthy endpoints.
        common_lb_config: Some(pb::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..Default::default()
        }),
        connect_timeout: seconds(10),
        ..Default::default()
    };
    let mut options = connection_pool::http_version(port.protocol);
    connection_pool::upgrade(&mut options, policy.connection_pool);
    connection_pool::apply(&mut cluster, &mut options, policy.connection_pool, policy.retry_budget);
    outlier::apply(&mut cluster, &mut options, policy.outlier_detection);
    load_balancer::apply(
        &mut cluster,
        service,
        policy.load_balancer,
        policy.outlier_detection.is_some(),
    );
    match service.resolution {
        _ if load_balancer::is_passthrough(policy.load_balancer) => {
            original_destination(&mut cluster);
        }
        Resolution::Endpoints => {
            cluster.cluster_discovery_type = Some(discovery(pb::cluster::DiscoveryType::Eds));
            cluster.eds_cluster_config =
                Some(pb::cluster::EdsClusterConfig { eds_config: ads(), service_name: name });
        }
        Resolution::Passthrough => {
            original_destination(&mut cluster);
            if service.registry == crate::mesh::Registry::ServiceEntry && port.target != port.number
            {
                cluster.lb_config = Some(pb::cluster::LbConfig::OriginalDstLbConfig(
                    pb::cluster::OriginalDstLbConfig {
                        upstream_port_override: super::u32_value(u32::from(port.target)),
                        ..Default::default()
                    },
                ));
            }
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            dns(&mut cluster, port, subset, &policy, context);
        }
    }
    encrypt(&mut cluster, &mut options, port, subset, &policy, context);
    cluster.typed_extension_protocol_options = typed(connection_pool::finish(options));
    cluster
}

/// Sets the transport sockets.
fn encrypt(
    cluster: &mut pb::Cluster,
    options: &mut HttpOptions,
    port: &Port,
    subset: &str,
    policy: &Policy<'_>,
    context: Context<'_>,
) {
    let service = &context.known.service;
    let trust_domain = &context.config.trust_domain;
    let servers = tls::Servers {
        mesh_sni: &format!("outbound_.{}_.{subset}_.{}", port.number, service.host),
        accounts: &tls::identities(service, &context.known.endpoints.accounts, context.config),
        any_account: &format!("spiffe://{trust_domain}/ns/{}/sa/", service.namespace),
        subject_alt_names: &service.subject_alt_names,
        automatic: automatic(port, subset, policy, context, cluster),
    };
    let certificates = context.scope.certificates;
    tls::apply(cluster, options, policy.tls, policy.proxy_protocol, servers, certificates);
}

/// Which endpoints of a cluster get mutual TLS without a rule. For a connection to its original destination, Envoy knows
/// nothing of the endpoint.
fn automatic(
    port: &Port,
    subset: &str,
    policy: &Policy<'_>,
    context: Context<'_>,
    cluster: &pb::Cluster,
) -> Automatic {
    // Behind a PROXY header the server would not find that TLS begins.
    if !encrypts(&context.known.service, context.scope) || policy.proxy_protocol.is_some() {
        return Automatic::Never;
    }
    if cluster.cluster_discovery_type != Some(discovery(pb::cluster::DiscoveryType::OriginalDst)) {
        return Automatic::ByEndpoint;
    }
    let everything = Labels::new();
    let labels = context.rule.and_then(|rule| rule.labels(subset)).unwrap_or(&everything);
    let list = context.known.endpoints.list.iter();
    let members =
        list.filter(|endpoint| endpoint.port_name == port.name && endpoint.is_in_subset(labels));
    let mut members = members.peekable();
    if members.peek().is_some() && members.all(|endpoint| endpoint.takes_mutual_tls) {
        Automatic::Always
    } else {
        Automatic::Never
    }
}

#[allow(deprecated)] // The cluster extension that replaces these fields is younger than some Envoys in service.
fn dns(
    cluster: &mut pb::Cluster,
    port: &Port,
    subset: &str,
    policy: &Policy<'_>,
    context: Context<'_>,
) {
    let mut assignment = endpoint::assignment(port, subset, policy, context);
    let none = assignment.endpoints.iter().all(|group| group.lb_endpoints.is_empty());
    // LOGICAL_DNS requires exactly one address; without any, both types behave the same.
    let kind = match context.known.service.resolution {
        Resolution::DnsRoundRobin if !none => pb::cluster::DiscoveryType::LogicalDns,
        _ => pb::cluster::DiscoveryType::StrictDns,
    };
    cluster.cluster_discovery_type = Some(discovery(kind));
    cluster.dns_lookup_family = match context.scope.families {
        Families::V4 => pb::cluster::DnsLookupFamily::V4Only,
        Families::V6 => pb::cluster::DnsLookupFamily::V6Only,
        Families::Both => pb::cluster::DnsLookupFamily::All,
    } as i32;
    cluster.dns_refresh_rate = seconds(60);
    cluster.respect_dns_ttl = true;
    if kind == pb::cluster::DiscoveryType::LogicalDns {
        // Envoy accepts exactly one address for these types and rejects the cluster otherwise.
        let first = assignment.endpoints.iter().position(|group| !group.lb_endpoints.is_empty());
        if let Some(at) = first {
            assignment.endpoints.swap(0, at);
            assignment.endpoints.truncate(1);
            assignment.endpoints.iter_mut().for_each(|group| {
                group.lb_endpoints.truncate(1);
                group.priority = 0;
            });
        }
    }
    cluster.load_assignment = Some(assignment);
}

fn discovery(kind: pb::cluster::DiscoveryType) -> pb::cluster::ClusterDiscoveryType {
    pb::cluster::ClusterDiscoveryType::Type(kind as i32)
}

fn typed(options: HttpOptions) -> HashMap<String, Any> {
    options.map(|options| (HTTP_OPTIONS.to_owned(), any(&options))).into_iter().collect()
}

/// The clusters that every proxy gets.
pub(crate) fn builtin(families: Families) -> Vec<pb::Cluster> {
    let black_hole = pb::Cluster {
        name: BLACK_HOLE.to_owned(),
        alt_stat_name: format!("{BLACK_HOLE};"),
        connect_timeout: seconds(10),
        cluster_discovery_type: Some(discovery(pb::cluster::DiscoveryType::Static)),
        ..Default::default()
    };
    let mut pass = pb::Cluster {
        name: PASSTHROUGH.to_owned(),
        alt_stat_name: format!("{PASSTHROUGH};"),
        connect_timeout: seconds(10),
        circuit_breakers: no_limits(),
        typed_extension_protocol_options: typed(Some(connection_pool::passthrough())),
        ..Default::default()
    };
    original_destination(&mut pass);
    let inbound = pb::Cluster {
        name: INBOUND_PASSTHROUGH.to_owned(),
        alt_stat_name: format!("{INBOUND_PASSTHROUGH};"),
        upstream_bind_config: loopback_source(families),
        ..pass.clone()
    };
    vec![black_hole, pass, inbound]
}

/// The cluster of an inbound port. Servers apply the same limits as their clients, those of the service's rule, unless
/// their Sidecar overrides them.
pub(crate) fn inbound(
    port: &InboundPort,
    rule: Option<&DestinationRule>,
    own: Option<&ConnectionPoolSettings>,
    families: Families,
) -> pb::Cluster {
    let name = inbound_cluster_name(port.target);
    let mut cluster = pb::Cluster {
        alt_stat_name: format!("{name};"),
        name,
        connect_timeout: seconds(10),
        upstream_bind_config: loopback_source(families),
        // Never (Envoy's maximum), because its single address does not disappear.
        cleanup_interval: Some(Duration { seconds: 9_223_372_035, nanos: 0 }),
        ..Default::default()
    };
    let policy = Policy::new(rule, "", port.port);
    let mut options = connection_pool::http_version(port.protocol);
    connection_pool::apply(
        &mut cluster,
        &mut options,
        own.or(policy.connection_pool),
        policy.retry_budget,
    );
    cluster.typed_extension_protocol_options = typed(connection_pool::finish(options));
    original_destination(&mut cluster);
    cluster
}

fn original_destination(cluster: &mut pb::Cluster) {
    cluster.cluster_discovery_type = Some(discovery(pb::cluster::DiscoveryType::OriginalDst));
    cluster.lb_policy = pb::cluster::LbPolicy::ClusterProvided as i32;
    cluster.lb_config = None;
}

/// The source addresses that redirection excludes, so that traffic to the proxy's own workload does not loop back: one of
/// each family.
fn loopback_source(families: Families) -> Option<core::BindConfig> {
    let own: &[&str] = match families {
        Families::V4 => &["127.0.0.6"],
        Families::V6 => &["::6"],
        Families::Both => &["127.0.0.6", "::6"],
    };
    let mut addresses = own.iter().filter_map(|address| match socket_address(address, 0).address {
        Some(core::address::Address::SocketAddress(address)) => Some(address),
        _ => None,
    });
    let source_address = addresses.next();
    let extra = addresses
        .map(|address| core::ExtraSourceAddress { address: Some(address), ..Default::default() });
    let extra_source_addresses = extra.collect();
    Some(core::BindConfig { source_address, extra_source_addresses, ..Default::default() })
}
