//! The settings of routes and clusters other than destinations, in the terms of Istio's objects.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf::UInt32Value;
use prost::Message;

pub(super) fn route_policies(
    action: &route::RouteAction,
    entry: &route::Route,
) -> Vec<(&'static str, String)> {
    use route::route_action::HostRewriteSpecifier;
    let mut found = Vec::new();
    let timeout = action.timeout.as_ref().filter(|time| time.seconds != 0 || time.nanos != 0);
    found.push(("timeout", timeout.map_or_else(|| "none".to_owned(), seconds)));
    found.push(match &action.retry_policy {
        None => ("retries", "none".to_owned()),
        Some(policy) => {
            let tries = policy.num_retries.as_ref().map_or(1, |tries| tries.value);
            let each =
                policy.per_try_timeout.as_ref().map(|time| format!(", {} each", seconds(time)));
            let codes: Vec<String> =
                policy.retriable_status_codes.iter().map(ToString::to_string).collect();
            let codes =
                if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(",")) };
            (
                "retries",
                format!("{tries} on {}{codes}{}", policy.retry_on, each.unwrap_or_default()),
            )
        }
    });
    let fault = entry.typed_per_filter_config.get("envoy.filters.http.fault");
    if let Some(fault) = fault.and_then(|any| HttpFault::decode(any.value.as_slice()).ok()) {
        found.push(("fault", describe_fault(&fault)));
    }
    if entry.typed_per_filter_config.contains_key("envoy.filters.http.cors") {
        found.push(("cors", "enabled".to_owned()));
    }
    if !action.prefix_rewrite.is_empty() {
        found.push(("rewrite", format!("the matched path becomes {}", action.prefix_rewrite)));
    }
    if let Some(regex) = &action.regex_rewrite {
        let pattern =
            regex.pattern.as_ref().map(|pattern| pattern.regex.as_str()).unwrap_or_default();
        found.push(("rewrite", format!("`{pattern}` becomes `{}`", regex.substitution)));
    }
    if let Some(HostRewriteSpecifier::HostRewriteLiteral(host)) = &action.host_rewrite_specifier {
        found.push(("authority", host.clone()));
    }
    found.extend(headers(
        "request headers",
        &entry.request_headers_to_add,
        &entry.request_headers_to_remove,
    ));
    found.extend(headers(
        "response headers",
        &entry.response_headers_to_add,
        &entry.response_headers_to_remove,
    ));
    if !action.hash_policy.is_empty() {
        found.push(("hash", format!("{} of the request", hashed(action).join(", "))));
    }
    found
}

/// The settings of one weighted destination.
pub(super) fn destination_policies(
    weighted: &route::weighted_cluster::ClusterWeight,
) -> Vec<(&'static str, String)> {
    use route::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let mut found = Vec::new();
    if let Some(HostRewriteSpecifier::HostRewriteLiteral(host)) = &weighted.host_rewrite_specifier {
        found.push(("authority", host.clone()));
    }
    found.extend(headers(
        "request headers",
        &weighted.request_headers_to_add,
        &weighted.request_headers_to_remove,
    ));
    found.extend(headers(
        "response headers",
        &weighted.response_headers_to_add,
        &weighted.response_headers_to_remove,
    ));
    found
}

pub(super) fn headers(
    label: &'static str,
    set: &[core::HeaderValueOption],
    removed: &[String],
) -> Option<(&'static str, String)> {
    let set = set.iter().filter_map(|option| Some(format!("+{}", option.header.as_ref()?.key)));
    let all: Vec<String> = set.chain(removed.iter().map(|name| format!("-{name}"))).collect();
    (!all.is_empty()).then(|| (label, all.join(" ")))
}

fn hashed(action: &route::RouteAction) -> Vec<String> {
    use route::route_action::hash_policy::PolicySpecifier;
    let hashed = action.hash_policy.iter().map(|policy| match &policy.policy_specifier {
        Some(PolicySpecifier::Header(header)) => format!("header {}", header.header_name),
        Some(PolicySpecifier::Cookie(cookie)) => format!("cookie {}", cookie.name),
        Some(PolicySpecifier::QueryParameter(query)) => format!("query parameter {}", query.name),
        _ => "the client's address".to_owned(),
    });
    hashed.collect()
}

fn describe_fault(fault: &HttpFault) -> String {
    use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
    use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
    let mut parts = Vec::new();
    if let Some(delay) = &fault.delay {
        let time = match &delay.fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(time)) => seconds(time),
            _ => String::new(),
        };
        parts.push(format!("{} % delayed {time}", delay.percentage.as_ref().map_or(0.0, percent)));
    }
    if let Some(abort) = &fault.abort {
        let status = match &abort.error_type {
            Some(ErrorType::HttpStatus(status)) => status.to_string(),
            Some(ErrorType::GrpcStatus(status)) => format!("gRPC {status}"),
            _ => String::new(),
        };
        parts.push(format!(
            "{} % answered {status}",
            abort.percentage.as_ref().map_or(0.0, percent)
        ));
    }
    parts.join(", ")
}

pub(super) fn cluster_policies(cluster: &cluster::Cluster) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let balancer = cluster::cluster::LbPolicy::try_from(cluster.lb_policy)
        .map_or("?", |policy| policy.as_str_name());
    found.push(("load balancer", balancer.to_owned()));
    if let Some(time) =
        cluster.connect_timeout.as_ref().filter(|time| time.seconds != 10 || time.nanos != 0)
    {
        found.push(("connect timeout", seconds(time)));
    }
    found.extend(cluster.transport_socket.as_ref().into_iter().flat_map(transport));
    if let Some(outlier) = &cluster.outlier_detection {
        let kinds = [
            (
                "errors",
                consecutive(&outlier.consecutive_5xx, &outlier.enforcing_consecutive_5xx, 5),
            ),
            (
                "gateway errors",
                consecutive(
                    &outlier.consecutive_gateway_failure,
                    &outlier.enforcing_consecutive_gateway_failure,
                    0,
                ),
            ),
        ];
        let kinds: Vec<String> = kinds
            .iter()
            .filter_map(|(kind, count)| Some(format!("{} {kind}", (*count)?)))
            .collect();
        let all =
            if kinds.is_empty() { "no errors counted".to_owned() } else { kinds.join(" or ") };
        found.push(("outlier detection", format!("after {all} in a row")));
    }
    let limits = cluster.circuit_breakers.as_ref().and_then(|limits| limits.thresholds.first());
    if let Some(limits) = limits {
        let all = [
            ("connections", &limits.max_connections),
            ("pending requests", &limits.max_pending_requests),
            ("requests", &limits.max_requests),
            ("retries", &limits.max_retries),
        ];
        let set = all.iter().filter_map(|(name, limit)| {
            let value = limit.as_ref()?.value;
            (value != u32::MAX).then(|| format!("{value} {name}"))
        });
        let set: Vec<String> = set.collect();
        if !set.is_empty() {
            found.push(("limits", set.join(", ")));
        }
    }
    found
}

/// How many errors in a row eject a host; `None` if they are not enforced. `default` is Envoy's count, 0 if it does not
/// enforce them by default.
fn consecutive(
    count: &Option<UInt32Value>,
    enforced: &Option<UInt32Value>,
    default: u32,
) -> Option<u32> {
    let is_enforced = enforced.as_ref().map_or(default > 0, |percent| percent.value > 0);
    is_enforced.then(|| count.as_ref().map_or(default, |count| count.value))
}

/// The transport sockets, layer by layer.
pub(super) fn transport(socket: &core::TransportSocket) -> Vec<(&'static str, String)> {
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Vec::new();
    };
    if config.type_url.ends_with(".ProxyProtocolUpstreamTransport") {
        let header =
            ProxyProtocolUpstreamTransport::decode(config.value.as_slice()).unwrap_or_default();
        let version = header.config.as_ref().map_or(0, |config| config.version) + 1;
        let inner = header.transport_socket.iter().flat_map(transport);
        return std::iter::once(("proxy protocol", format!("v{version}"))).chain(inner).collect();
    }
    if !config.type_url.ends_with(".UpstreamTlsContext") {
        return Vec::new();
    }
    let context = UpstreamTlsContext::decode(config.value.as_slice()).unwrap_or_default();
    let common = context.common_tls_context.unwrap_or_default();
    let own = !common.tls_certificates.is_empty()
        || !common.tls_certificate_sds_secret_configs.is_empty();
    let mut text = if own { "with a client certificate".to_owned() } else { "yes".to_owned() };
    if !context.sni.is_empty() {
        text += &format!(", SNI {}", context.sni);
    }
    vec![("TLS", text)]
}

pub(super) fn percent(fraction: &FractionalPercent) -> f64 {
    let whole = match DenominatorType::try_from(fraction.denominator) {
        Ok(DenominatorType::TenThousand) => 10_000.0,
        Ok(DenominatorType::Million) => 1_000_000.0,
        _ => 100.0,
    };
    f64::from(fraction.numerator) / whole * 100.0
}

pub(super) fn seconds(time: &envoy_types::pb::google::protobuf::Duration) -> String {
    let whole = Duration::new(
        u64::try_from(time.seconds).unwrap_or(0),
        u32::try_from(time.nanos).unwrap_or(0),
    );
    format!("{}s", whole.as_secs_f64())
}
