//! `match` of an HTTP route.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use super::bool_value;
use crate::api::{HttpMatchRequest, StringMatch, selects};
use crate::mesh::Scope;

/// Whether a match can hold for proxies of `scope` and requests to `port` at all.
pub fn applies(one: &HttpMatchRequest, scope: &Scope, port: u16) -> bool {
    why_not(one, scope, port).is_none()
}

/// Why a match can not hold for proxies of `scope` and requests to `port`; `None` where it can.
pub fn why_not(one: &HttpMatchRequest, scope: &Scope, port: u16) -> Option<String> {
    if let Some(wanted) = one.port.filter(|wanted| *wanted != 0 && *wanted != u32::from(port)) {
        return Some(format!("the port is {port}, wanted {wanted}"));
    }
    if !one.gateways.is_empty() {
        let for_mesh = one.gateways.iter().any(|gateway| gateway == "mesh");
        return (!for_mesh).then(|| format!("it is for the gateways {} alone", one.gateways.join(", ")));
    }
    if !selects(&one.source_labels, &scope.labels) {
        let wanted: Vec<String> = one.source_labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        return Some(format!("the client lacks a label of {}", wanted.join(",")));
    }
    if !one.source_namespace.is_empty() && *one.source_namespace != *scope.namespace {
        return Some(format!("the client's namespace is {}, wanted {}", scope.namespace, one.source_namespace));
    }
    None
}

/// A match in Envoy's form; `None` matches every request.
pub fn translate(one: Option<&HttpMatchRequest>) -> pb::RouteMatch {
    use pb::route_match::PathSpecifier;
    let Some(one) = one else {
        return pb::RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() };
    };
    let path = match &one.uri {
        Some(StringMatch { exact: Some(exact), .. }) => PathSpecifier::Path(exact.clone()),
        Some(StringMatch { prefix: Some(prefix), .. }) => PathSpecifier::Prefix(prefix.clone()),
        Some(StringMatch { regex: Some(regex), .. }) if regex != "*" => PathSpecifier::SafeRegex(safe_regex(regex)),
        _ => PathSpecifier::Prefix("/".to_owned()),
    };
    let mut headers: Vec<_> = one.headers.iter().map(|(name, value)| header(name, value)).collect();
    headers.extend(one.without_headers.iter().map(|(name, value)| {
        let mut without = header(name, value);
        without.invert_match = true;
        // Without this a header that is missing would count as not matching whatever the matcher says.
        without.treat_missing_header_as_empty = !is_present(value);
        without
    }));
    headers.sort_by(|a, b| a.name.cmp(&b.name));
    for (name, value) in [(":method", &one.method), (":authority", &one.authority), (":scheme", &one.scheme)] {
        headers.extend(value.as_ref().map(|value| header(name, value)));
    }
    let query = one.query_params.iter().map(|(name, value)| pb::QueryParameterMatcher {
        name: name.clone(),
        query_parameter_match_specifier: Some(if is_present(value) {
            pb::query_parameter_matcher::QueryParameterMatchSpecifier::PresentMatch(true)
        } else {
            pb::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(string_matcher(value))
        }),
    });
    pb::RouteMatch {
        path_specifier: Some(path),
        case_sensitive: bool_value(!one.ignore_uri_case),
        headers,
        query_parameters: query.collect(),
        ..Default::default()
    }
}

/// Whether a translated match holds for every request, so that no later route can ever be reached.
pub fn is_catch_all(one: &pb::RouteMatch) -> bool {
    matches!(&one.path_specifier, Some(pb::route_match::PathSpecifier::Prefix(prefix)) if prefix == "/")
        && one.headers.is_empty()
        && one.query_parameters.is_empty()
}

/// An empty matcher, and the expression `*`, mean that there is a value.
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

/// A text matcher in Envoy's form.
pub fn string_matcher(value: &StringMatch) -> matcher::StringMatcher {
    use matcher::string_matcher::MatchPattern;
    let pattern = match value {
        StringMatch { exact: Some(exact), .. } => MatchPattern::Exact(exact.clone()),
        StringMatch { prefix: Some(prefix), .. } => MatchPattern::Prefix(prefix.clone()),
        StringMatch { regex, .. } => MatchPattern::SafeRegex(safe_regex(regex.as_deref().unwrap_or(".*"))),
    };
    matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

/// An RE2 expression in Envoy's form.
pub fn safe_regex(regex: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: regex.to_owned(), ..Default::default() }
}
