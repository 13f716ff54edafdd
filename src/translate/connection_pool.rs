//! `trafficPolicy.connectionPool` and `retryBudget`: limits on connections, requests and retries, and the upstream HTTP
//! version.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt32Value;
use http::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
    explicit_http_config::ProtocolConfig,
};

use super::{duration, seconds, u32_value};
use crate::api::{
    ConnectionPoolSettings, H2UpgradePolicy, HttpSettings, RetryBudget, TcpKeepalive,
};
use crate::mesh::Protocol;

/// The HTTP options of a cluster under construction; not every cluster needs them.
pub(crate) type HttpOptions = Option<http::HttpProtocolOptions>;

/// The HTTP version for a port's protocol.
pub(crate) fn http_version(protocol: Protocol) -> HttpOptions {
    let options = match protocol {
        protocol if protocol.is_http2() => http2(core::Http2ProtocolOptions::default()),
        Protocol::Unknown => as_downstream(),
        _ => return None,
    };
    Some(http::HttpProtocolOptions {
        upstream_protocol_options: Some(options),
        ..Default::default()
    })
}

/// Uses the client's HTTP version upstream.
fn as_downstream() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(core::Http1ProtocolOptions::default()),
        http2_protocol_options: Some(core::Http2ProtocolOptions::default()),
        ..Default::default()
    })
}

fn http2(options: core::Http2ProtocolOptions) -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(options)),
    })
}

/// Whether only HTTP/2 is used upstream.
pub(crate) fn is_http2(options: &HttpOptions) -> bool {
    matches!(
        options.as_ref().and_then(|options| options.upstream_protocol_options.as_ref()),
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(_))
        }))
    )
}

/// Envoy rejects HTTP options without a version; HTTP/1.1 is the default of a cluster without options.
pub(crate) fn finish(options: HttpOptions) -> HttpOptions {
    options.map(|mut options| {
        options.upstream_protocol_options.get_or_insert_with(|| {
            UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::HttpProtocolOptions(
                    core::Http1ProtocolOptions::default(),
                )),
            })
        });
        options
    })
}

/// Sets the HTTP version from the client's settings. Later steps may depend on it.
pub(crate) fn upgrade(options: &mut HttpOptions, pool: Option<&ConnectionPoolSettings>) {
    let http = pool.and_then(|pool| pool.http.as_ref());
    if http.is_some_and(|http| {
        !http.use_client_protocol && http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade)
    }) {
        options.get_or_insert_default().upstream_protocol_options =
            Some(http2(core::Http2ProtocolOptions::default()));
    }
}

/// Sets limits, timeouts and keepalive. 0 or absent means no limit: Envoy's defaults (1024 each) would be limits that
/// nobody configured.
pub(crate) fn apply(
    cluster: &mut pb::Cluster,
    options: &mut HttpOptions,
    pool: Option<&ConnectionPoolSettings>,
    budget: Option<&RetryBudget>,
) {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    if let Some(timeout) = tcp.and_then(|tcp| tcp.connect_timeout) {
        cluster.connect_timeout = duration(timeout.0);
    }
    cluster.circuit_breakers = Some(limits(pool, budget));
    cluster.upstream_connection_options =
        tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref()).map(keepalive);
    let idle =
        http.and_then(|http| http.idle_timeout).or_else(|| tcp.and_then(|tcp| tcp.idle_timeout));
    let longest = tcp.and_then(|tcp| tcp.max_connection_duration);
    let per_connection = http.and_then(|http| positive(http.max_requests_per_connection));
    if idle.is_some() || longest.is_some() || per_connection.is_some() {
        let common =
            options.get_or_insert_default().common_http_protocol_options.get_or_insert_default();
        common.idle_timeout = idle.and_then(|idle| duration(idle.0));
        common.max_connection_duration = longest.and_then(|longest| duration(longest.0));
        common.max_requests_per_connection = per_connection;
    }
    if let Some(http) = http {
        apply_http(options, http);
    }
}

fn apply_http(options: &mut HttpOptions, http: &HttpSettings) {
    if let Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)),
    })) = options.as_mut().and_then(|options| options.upstream_protocol_options.as_mut())
    {
        http2.max_concurrent_streams = positive(http.max_concurrent_streams);
        http2.connection_keepalive =
            http.http2_keep_alive.as_ref().map(|probes| core::KeepaliveSettings {
                interval: probes.interval.and_then(|interval| duration(interval.0)),
                timeout: probes.timeout.and_then(|timeout| duration(timeout.0)),
                ..Default::default()
            });
    }
    if http.use_client_protocol {
        options.get_or_insert_default().upstream_protocol_options = Some(as_downstream());
    }
}

fn positive(value: i32) -> Option<UInt32Value> {
    u32::try_from(value).ok().filter(|value| *value > 0).and_then(u32_value)
}

/// Without a positive value there is no limit.
fn limit(value: Option<i32>) -> Option<UInt32Value> {
    value.and_then(positive).or_else(|| u32_value(u32::MAX))
}

fn limits(
    pool: Option<&ConnectionPoolSettings>,
    budget: Option<&RetryBudget>,
) -> pb::CircuitBreakers {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    let thresholds = pb::circuit_breakers::Thresholds {
        max_connections: limit(tcp.map(|tcp| tcp.max_connections)),
        max_pending_requests: limit(http.map(|http| http.http1_max_pending_requests)),
        max_requests: limit(http.map(|http| http.http2_max_requests)),
        max_retries: limit(http.map(|http| http.max_retries)),
        track_remaining: true,
        retry_budget: budget.map(|budget| pb::circuit_breakers::thresholds::RetryBudget {
            budget_percent: Some(Percent { value: budget.percent.unwrap_or(20.0) }),
            min_retry_concurrency: u32_value(if budget.min_retry_concurrency > 0 {
                budget.min_retry_concurrency
            } else {
                3
            }),
            budget_interval: budget
                .budget_interval
                .filter(|interval| !interval.is_zero())
                .and_then(|interval| duration(interval.0)),
        }),
        ..Default::default()
    };
    pb::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() }
}

/// The limits of a cluster without a rule.
pub(crate) fn no_limits() -> Option<pb::CircuitBreakers> {
    Some(limits(None, None))
}

fn keepalive(from: &TcpKeepalive) -> pb::UpstreamConnectionOptions {
    let [time, interval] = [from.time, from.interval].map(|value| {
        let seconds = value.and_then(|value| u32::try_from(value.0.as_secs()).ok());
        seconds.filter(|seconds| *seconds > 0).and_then(u32_value)
    });
    pb::UpstreamConnectionOptions {
        tcp_keepalive: Some(core::TcpKeepalive {
            keepalive_probes: (from.probes > 0).then(|| u32_value(from.probes)).flatten(),
            keepalive_time: time,
            keepalive_interval: interval,
        }),
        ..Default::default()
    }
}

/// The options of the pass-through cluster: the client's HTTP version, and idle connections are closed after 5 minutes.
pub(crate) fn passthrough() -> http::HttpProtocolOptions {
    http::HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: seconds(300),
            ..Default::default()
        }),
        upstream_protocol_options: Some(as_downstream()),
        ..Default::default()
    }
}
