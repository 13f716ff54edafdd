//! `trafficPolicy.loadBalancer`: how a cluster picks an endpoint, and which part of a request is hashed.

use envoy_types::pb::envoy::config::cluster::v3::{self as pb, cluster};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3::route_action as route;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt64Value;

use super::{duration, locality};
use crate::api::{ConsistentHashLb, LoadBalancerSettings, SimpleLb, WarmupConfiguration};
use crate::mesh::{DestinationRule, Service};

/// Envoy's default minimum ring size, set explicitly.
const RING_SIZE: u64 = 1024;

/// Whether the cluster uses the original destination instead of the service's endpoints.
pub(crate) fn is_passthrough(settings: Option<&LoadBalancerSettings>) -> bool {
    settings.is_some_and(|settings| settings.simple == Some(SimpleLb::Passthrough))
}

/// Sets a cluster's load balancing.
pub(crate) fn apply(
    cluster: &mut pb::Cluster,
    service: &Service,
    settings: Option<&LoadBalancerSettings>,
    has_outlier_detection: bool,
) {
    let common = cluster.common_lb_config.get_or_insert_default();
    common.locality_config_specifier =
        locality::cluster_config(locality::Setting::new(service, settings), has_outlier_detection);
    let warmup = settings.and_then(slow_start);
    let hash = settings.and_then(|settings| settings.consistent_hash.as_ref());
    let (policy, config) = match (hash, settings.and_then(|settings| settings.simple)) {
        (Some(hash), _) => consistent(hash),
        (None, Some(SimpleLb::Random)) => (cluster::LbPolicy::Random, None),
        (None, Some(SimpleLb::RoundRobin)) => (
            cluster::LbPolicy::RoundRobin,
            warmup.map(|warmup| {
                let slow_start_config = Some(warmup);
                let config = cluster::RoundRobinLbConfig { slow_start_config };
                cluster::LbConfig::RoundRobinLbConfig(config)
            }),
        ),
        _ => (
            cluster::LbPolicy::LeastRequest,
            warmup.map(|warmup| {
                let slow_start_config = Some(warmup);
                let config =
                    cluster::LeastRequestLbConfig { slow_start_config, ..Default::default() };
                cluster::LbConfig::LeastRequestLbConfig(config)
            }),
        ),
    };
    cluster.lb_policy = policy as i32;
    cluster.lb_config = config;
}

/// `None` for 0, which means unset.
fn size(value: u64) -> Option<UInt64Value> {
    (value > 0).then_some(UInt64Value { value })
}

fn consistent(hash: &ConsistentHashLb) -> (cluster::LbPolicy, Option<cluster::LbConfig>) {
    if let Some(maglev) = &hash.maglev {
        let config = size(maglev.table_size).map(|size| {
            cluster::LbConfig::MaglevLbConfig(cluster::MaglevLbConfig { table_size: Some(size) })
        });
        return (cluster::LbPolicy::Maglev, config);
    }
    let ring = match &hash.ring_hash {
        Some(ring) => size(ring.minimum_ring_size),
        None => size(hash.minimum_ring_size).or(size(RING_SIZE)),
    };
    let config = ring.map(|size| {
        cluster::LbConfig::RingHashLbConfig(cluster::RingHashLbConfig {
            minimum_ring_size: Some(size),
            ..Default::default()
        })
    });
    (cluster::LbPolicy::RingHash, config)
}

fn slow_start(settings: &LoadBalancerSettings) -> Option<cluster::SlowStartConfig> {
    match (&settings.warmup, settings.warmup_duration_secs) {
        (Some(WarmupConfiguration { duration: window, minimum_percent, aggression }), _) => {
            Some(cluster::SlowStartConfig {
                slow_start_window: window.and_then(|window| duration(window.0)),
                // The runtime key does not exist, so the default value applies.
                aggression: Some(core::RuntimeDouble {
                    default_value: aggression.unwrap_or(1.0),
                    runtime_key: "(".to_owned(),
                }),
                min_weight_percent: Some(Percent { value: minimum_percent.unwrap_or(10.0) }),
            })
        }
        (None, Some(window)) => Some(cluster::SlowStartConfig {
            slow_start_window: duration(window.0),
            ..Default::default()
        }),
        (None, None) => None,
    }
}

/// The consistent hash that applies to a destination: of the subset's port entry, else of the subset, else of the
/// rule's port entry, else of the rule.
pub(crate) fn consistent_hash<'a>(
    rule: &'a DestinationRule,
    subset: &str,
    port: u16,
) -> Option<&'a ConsistentHashLb> {
    let subset = rule.subset(subset).and_then(|subset| subset.traffic_policy.as_deref());
    let policies = subset.into_iter().chain(rule.traffic_policy.as_deref());
    for policy in policies {
        let at_port = policy
            .port_level_settings
            .iter()
            .find(|port_level_setting| {
                port_level_setting.port.is_some_and(|at| at.number == u32::from(port))
            })
            .and_then(|port_level_setting| port_level_setting.load_balancer.as_ref());
        let found = at_port.and_then(|balancer| balancer.consistent_hash.as_ref());
        let found = found.or_else(|| policy.load_balancer.as_ref()?.consistent_hash.as_ref());
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The hash policy for a route; `None` if nothing is hashed.
pub(crate) fn hash_policy(hash: &ConsistentHashLb) -> Option<route::HashPolicy> {
    use route::hash_policy::{
        ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
    };
    let specifier = if let Some(name) = &hash.http_header_name {
        PolicySpecifier::Header(Header { header_name: name.clone(), ..Default::default() })
    } else if let Some(cookie) = &hash.http_cookie {
        let attributes = cookie.attributes.iter();
        PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl: cookie.ttl.and_then(|ttl| duration(ttl.0)),
            attributes: attributes
                .map(|item| CookieAttribute { name: item.name.clone(), value: item.value.clone() })
                .collect(),
        })
    } else if let Some(name) = &hash.http_query_parameter_name {
        PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
    } else if hash.use_source_ip == Some(true) {
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
    } else {
        return None;
    };
    Some(route::HashPolicy { policy_specifier: Some(specifier), ..Default::default() })
}
