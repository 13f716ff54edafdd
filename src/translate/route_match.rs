//! `match` of an HTTP route.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use super::bool_value;
use crate::api::{HttpMatchRequest, StringMatch, selects};
use crate::mesh::Scope;

/// Whether a match is possible for proxies of `scope` and requests to `port`.
pub(crate) fn applies(request_match: &HttpMatchRequest, scope: &Scope, port: u16) -> bool {
    why_not(request_match, scope, port).is_none()
}

/// Why a match is impossible for proxies of `scope` and requests to `port`; `None` if it is possible.
pub(crate) fn why_not(
    request_match: &HttpMatchRequest,
    scope: &Scope,
    port: u16,
) -> Option<String> {
    if let Some(wanted) =
        request_match.port.filter(|wanted| *wanted != 0 && *wanted != u32::from(port))
    {
        return Some(format!("the port is {port}, expected {wanted}"));
    }
    if !request_match.gateways.is_empty() {
        let for_mesh = request_match.gateways.iter().any(|gateway| gateway == "mesh");
        return (!for_mesh).then(|| {
            format!("it applies only to the gateways {}", request_match.gateways.join(", "))
        });
    }
    if !selects(&request_match.source_labels, &scope.labels) {
        let wanted: Vec<String> = request_match
            .source_labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        return Some(format!("the client does not have the labels {}", wanted.join(",")));
    }
    if !request_match.source_namespace.is_empty()
        && *request_match.source_namespace != *scope.namespace
    {
        let wanted = &request_match.source_namespace;
        return Some(match &*scope.namespace {
            Scope::OTHER_NAMESPACE => format!("the client is not in the namespace {wanted}"),
            found => format!("the client's namespace is {found}, expected {wanted}"),
        });
    }
    None
}

/// Translates a match; `None` matches every request.
pub(crate) fn translate(request_match: Option<&HttpMatchRequest>) -> pb::RouteMatch {
    use pb::route_match::PathSpecifier;
    let Some(request_match) = request_match else {
        return pb::RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        };
    };
    let path = match &request_match.uri {
        Some(StringMatch { exact: Some(exact), .. }) => PathSpecifier::Path(exact.clone()),
        Some(StringMatch { prefix: Some(prefix), .. }) => PathSpecifier::Prefix(prefix.clone()),
        Some(StringMatch { regex: Some(regex), .. }) if regex != "*" => {
            PathSpecifier::SafeRegex(safe_regex(regex))
        }
        _ => PathSpecifier::Prefix("/".to_owned()),
    };
    let mut headers: Vec<_> =
        request_match.headers.iter().map(|(name, value)| header(name, value)).collect();
    headers.extend(request_match.without_headers.iter().map(|(name, value)| {
        let mut without = header(name, value);
        without.invert_match = true;
        // Without this a missing header would never match.
        without.treat_missing_header_as_empty = !is_present(value);
        without
    }));
    headers.sort_by(|a, b| a.name.cmp(&b.name));
    for (name, value) in [
        (":method", &request_match.method),
        (":authority", &request_match.authority),
        (":scheme", &request_match.scheme),
    ] {
        headers.extend(value.as_ref().map(|value| header(name, value)));
    }
    let query = request_match.query_params.iter().map(|(name, value)| pb::QueryParameterMatcher {
        name: name.clone(),
        query_parameter_match_specifier: Some(if is_present(value) {
            pb::query_parameter_matcher::QueryParameterMatchSpecifier::PresentMatch(true)
        } else {
            pb::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(string_matcher(
                value,
            ))
        }),
    });
    pb::RouteMatch {
        path_specifier: Some(path),
        case_sensitive: bool_value(!request_match.ignore_uri_case),
        headers,
        query_parameters: query.collect(),
        ..Default::default()
    }
}

/// Whether a translated match matches every request, so no later route is reachable.
pub(crate) fn is_catch_all(route_match: &pb::RouteMatch) -> bool {
    matches!(&route_match.path_specifier, Some(pb::route_match::PathSpecifier::Prefix(prefix)) if prefix == "/")
        && route_match.headers.is_empty()
        && route_match.query_parameters.is_empty()
}

/// An empty matcher and the expression `*` require only that the value is present.
fn is_present(value: &StringMatch) -> bool {
    match value {
        StringMatch { exact: None, prefix: None, regex: None } => true,
        StringMatch { exact: None, prefix: None, regex: Some(regex) } => regex == "*",
        _ => false,
    }
}

fn header(name: &str, value: &StringMatch) -> pb::HeaderMatcher {
    use pb::header_matcher::HeaderMatchSpecifier;
    pb::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(if is_present(value) {
            HeaderMatchSpecifier::PresentMatch(true)
        } else {
            HeaderMatchSpecifier::StringMatch(string_matcher(value))
        }),
        ..Default::default()
    }
}

/// Translates a string matcher.
pub(crate) fn string_matcher(value: &StringMatch) -> matcher::StringMatcher {
    use matcher::string_matcher::MatchPattern;
    let pattern = match value {
        StringMatch { exact: Some(exact), .. } => MatchPattern::Exact(exact.clone()),
        StringMatch { prefix: Some(prefix), .. } => MatchPattern::Prefix(prefix.clone()),
        StringMatch { regex, .. } => {
            MatchPattern::SafeRegex(safe_regex(regex.as_deref().unwrap_or(".*")))
        }
    };
    matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

/// Translates an RE2 expression.
pub(crate) fn safe_regex(regex: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: regex.to_owned(), ..Default::default() }
}
