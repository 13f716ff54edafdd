//! Resolves the effective traffic policy of a port and subset.
//!
//! A port-level entry replaces load balancer, connection pool, outlier detection and TLS of its policy as a whole; a
//! subset's policy overrides the rule's part by part. Source: Istio's documentation of
//! `TrafficPolicy.portLevelSettings` and of subsets.

use crate::api::{
    ClientTlsSettings, ConnectionPoolSettings, LoadBalancerSettings, OutlierDetection,
    ProxyProtocol, RetryBudget, TrafficPolicy, TunnelSettings,
};
use crate::mesh::DestinationRule;

/// The effective policy of a port and subset.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Policy<'a> {
    /// How an endpoint is picked.
    pub load_balancer: Option<&'a LoadBalancerSettings>,
    /// Limits of connections and requests.
    pub connection_pool: Option<&'a ConnectionPoolSettings>,
    /// When an endpoint is ejected.
    pub outlier_detection: Option<&'a OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<&'a ClientTlsSettings>,
    /// Tunnel TCP through another proxy.
    pub tunnel: Option<&'a TunnelSettings>,
    /// Send a PROXY protocol header.
    pub proxy_protocol: Option<&'a ProxyProtocol>,
    /// The limit on concurrent retries.
    pub retry_budget: Option<&'a RetryBudget>,
}

impl<'a> Policy<'a> {
    /// The policy of `subset` (empty for the whole service) at service port `port`.
    pub(crate) fn new(rule: Option<&'a DestinationRule>, subset: &str, port: u16) -> Self {
        let Some(rule) = rule else {
            return Self::default();
        };
        let (own, _) = at_port(rule.traffic_policy.as_deref(), port);
        let subset = rule.subset(subset).and_then(|subset| subset.traffic_policy.as_deref());
        let Some(subset) = subset else { return own };
        let (over, whole) = at_port(Some(subset), port);
        let mut merged = own;
        if whole || over.load_balancer.is_some() {
            merged.load_balancer = over.load_balancer;
        }
        if whole || over.connection_pool.is_some() {
            merged.connection_pool = over.connection_pool;
        }
        if whole || over.outlier_detection.is_some() {
            merged.outlier_detection = over.outlier_detection;
        }
        if whole || over.tls.is_some() {
            merged.tls = over.tls;
        }
        merged.tunnel = over.tunnel.or(own.tunnel);
        merged.proxy_protocol = over.proxy_protocol.or(own.proxy_protocol);
        merged.retry_budget = over.retry_budget.or(own.retry_budget);
        merged
    }
}

/// The policy for a port, and whether it comes from a port-level entry.
fn at_port(policy: Option<&TrafficPolicy>, port: u16) -> (Policy<'_>, bool) {
    let Some(policy) = policy else {
        return (Policy::default(), false);
    };
    let entry = policy.port_level_settings.iter().find(|port_level_setting| {
        port_level_setting.port.is_some_and(|at| at.number == u32::from(port))
    });
    match entry {
        Some(entry) => (
            Policy {
                load_balancer: entry.load_balancer.as_ref(),
                connection_pool: entry.connection_pool.as_ref(),
                outlier_detection: entry.outlier_detection.as_ref(),
                tls: entry.tls.as_ref(),
                ..Policy::default()
            },
            true,
        ),
        None => (
            Policy {
                load_balancer: policy.load_balancer.as_ref(),
                connection_pool: policy.connection_pool.as_ref(),
                outlier_detection: policy.outlier_detection.as_ref(),
                tls: policy.tls.as_ref(),
                tunnel: policy.tunnel.as_ref(),
                proxy_protocol: policy.proxy_protocol.as_ref(),
                retry_budget: policy.retry_budget.as_ref(),
            },
            false,
        ),
    }
}
