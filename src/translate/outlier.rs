//! `trafficPolicy.outlierDetection`: when an endpoint is ejected.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::common::matcher::v3::{
    HttpHeadersMatch, MatchPredicate,
    match_predicate::{MatchSet, Rule},
};
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::Percent;

use super::connection_pool::HttpOptions;
use super::{duration, u32_value};
use crate::api::OutlierDetection;

/// Configures ejection. Success-rate ejection, an Envoy default, stays off; a count of 0 disables its detector; below
/// `minHealthPercent` (0 by default) of healthy endpoints, all endpoints are used.
pub(crate) fn apply(
    cluster: &mut pb::Cluster,
    options: &mut HttpOptions,
    from: Option<&OutlierDetection>,
) {
    let Some(from) = from else { return };
    let (errors, gateway) = (from.consecutive_5xx_errors, from.consecutive_gateway_errors);
    let [enforced_errors, enforced_gateway] = [errors, gateway]
        .map(|count| count.and_then(|count| u32_value(if count > 0 { 100 } else { 0 })));
    let own = from
        .consecutive_local_origin_failures
        .filter(|count| from.split_external_local_origin_errors && *count > 0);
    cluster.outlier_detection = Some(pb::OutlierDetection {
        consecutive_5xx: errors.and_then(u32_value),
        enforcing_consecutive_5xx: enforced_errors,
        consecutive_gateway_failure: gateway.and_then(u32_value),
        enforcing_consecutive_gateway_failure: enforced_gateway,
        enforcing_success_rate: u32_value(0),
        interval: from.interval.and_then(|interval| duration(interval.0)),
        base_ejection_time: from.base_ejection_time.and_then(|time| duration(time.0)),
        max_ejection_percent: u32::try_from(from.max_ejection_percent)
            .ok()
            .filter(|percent| *percent > 0)
            .and_then(u32_value),
        split_external_local_origin_errors: from.split_external_local_origin_errors,
        consecutive_local_origin_failure: own.and_then(u32_value),
        enforcing_consecutive_local_origin_failure: own.and_then(|_| u32_value(100)),
        enforcing_local_origin_success_rate: from
            .split_external_local_origin_errors
            .then(|| u32_value(0))
            .flatten(),
        ..Default::default()
    });
    let threshold = f64::from(from.min_health_percent.max(0));
    cluster.common_lb_config.get_or_insert_default().healthy_panic_threshold =
        Some(Percent { value: threshold });
    if !from.outlier_detection_http_error_codes.is_empty() {
        options.get_or_insert_default().outlier_detection =
            Some(http_protocol_options::OutlierDetection {
                error_matcher: Some(any_of(&from.outlier_detection_http_error_codes)),
            });
    }
}

fn any_of(codes: &[u32]) -> MatchPredicate {
    let mut rules: Vec<MatchPredicate> = codes
        .iter()
        .map(|code| {
            let status = route::HeaderMatcher {
                name: ":status".to_owned(),
                header_match_specifier: Some(
                    route::header_matcher::HeaderMatchSpecifier::StringMatch(
                        matcher::StringMatcher {
                            match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(
                                code.to_string(),
                            )),
                            ..Default::default()
                        },
                    ),
                ),
                ..Default::default()
            };
            MatchPredicate {
                rule: Some(Rule::HttpResponseHeadersMatch(HttpHeadersMatch {
                    headers: vec![status],
                })),
            }
        })
        .collect();
    match (rules.pop(), rules.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            rules.extend(last);
            MatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) }
        }
    }
}
