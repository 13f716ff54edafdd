//! Envoy's matching rules, applied to the same resources that Envoy gets.
//!
//! Source: Envoy's API documentation of `VirtualHost.domains`, `RouteMatch`, `HeaderMatcher`, `QueryParameterMatcher`
//! and `FilterChainMatch`.

use std::borrow::Cow;

use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use super::request::Request;

/// The virtual host for an authority and the matching domain: an exact domain, else the longest matching suffix
/// wildcard, else the longest matching prefix wildcard, else `*`.
pub(super) fn virtual_host<'a>(
    routes: &'a pb::RouteConfiguration,
    authority: &str,
) -> Option<(&'a pb::VirtualHost, &'a str)> {
    let authority = authority.to_ascii_lowercase();
    let host_name =
        if routes.ignore_port_in_host_matching { without_port(&authority) } else { &authority };
    let all = routes
        .virtual_hosts
        .iter()
        .flat_map(|host| host.domains.iter().map(move |domain| (host, domain)));
    let ranked = all.filter_map(|(host, domain)| {
        Some((domain_rank(domain, host_name)?, host, domain.as_str()))
    });
    ranked.max_by_key(|(rank, ..)| *rank).map(|(_, host, domain)| (host, domain))
}

/// How specific a domain is that matches the lower-case `host`; `None` if it does not match. Copies nothing, because it is
/// asked of all domains of a mesh for each request.
fn domain_rank(domain: &str, host: &str) -> Option<(u8, usize)> {
    if domain.eq_ignore_ascii_case(host) {
        return Some((3, domain.len()));
    }
    if domain == "*" {
        return Some((0, 0));
    }
    let (rank, part, rest) = match domain.strip_prefix('*') {
        Some(ending) => (2, ending, host.get(host.len().checked_sub(ending.len())?..)?),
        None => {
            let beginning = domain.strip_suffix('*')?;
            (1, beginning, host.get(..beginning.len())?)
        }
    };
    (host.len() > part.len() && rest.eq_ignore_ascii_case(part)).then_some((rank, domain.len()))
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => {
            host
        }
        _ => authority,
    }
}

/// Checks a request against a match.
///
/// # Errors
/// The first condition that fails, with the actual and expected value.
pub(super) fn route(route_match: &pb::RouteMatch, request: &Request) -> Result<(), String> {
    path(route_match, &request.path)?;
    for header in &route_match.headers {
        self::header(header, request)?;
    }
    for query in &route_match.query_parameters {
        parameter(query, request)?;
    }
    Ok(())
}

fn path(route_match: &pb::RouteMatch, path: &str) -> Result<(), String> {
    use pb::route_match::PathSpecifier;
    let exact_case = route_match.case_sensitive.is_none_or(|case| case.value);
    let (holds, wanted) = match &route_match.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => (
            fold(path, !exact_case).starts_with(&*fold(prefix, !exact_case)),
            format!("a path that starts with `{prefix}`"),
        ),
        Some(PathSpecifier::Path(exact)) => {
            (fold(path, !exact_case) == fold(exact, !exact_case), format!("`{exact}`"))
        }
        Some(PathSpecifier::SafeRegex(regex)) => {
            (whole(&regex.regex, path)?, format!("a path that matches `{}`", regex.regex))
        }
        _ => (false, "an unsupported kind of match".to_owned()),
    };
    if holds { Ok(()) } else { Err(format!("the path is `{path}`, expected {wanted}")) }
}

fn header(header_match: &pb::HeaderMatcher, request: &Request) -> Result<(), String> {
    use pb::header_matcher::HeaderMatchSpecifier;
    let name = header_match.name.to_ascii_lowercase();
    let found = match request.header(&name) {
        None if header_match.treat_missing_header_as_empty => Some("".into()),
        found => found,
    };
    let found = found.as_deref();
    let (matches, wanted) = match &header_match.header_match_specifier {
        Some(HeaderMatchSpecifier::PresentMatch(present)) => (
            found.is_some() == *present,
            if *present { "any value".to_owned() } else { "none".to_owned() },
        ),
        Some(HeaderMatchSpecifier::StringMatch(text)) => match found {
            // A missing header matches neither a string matcher nor its inversion.
            None => {
                return Err(format!("header {name} is missing, expected {}", describe(text)));
            }
            Some(value) => (string(text, value)?, describe(text)),
        },
        None => (found.is_some(), "any value".to_owned()),
        Some(_) => (false, "an unsupported kind of match".to_owned()),
    };
    if matches != header_match.invert_match {
        return Ok(());
    }
    let is = found.map_or_else(|| "missing".to_owned(), |value| format!("`{value}`"));
    let not = if header_match.invert_match { "anything but " } else { "" };
    Err(format!("header {name} is {is}, expected {not}{wanted}"))
}

fn parameter(parameter_match: &pb::QueryParameterMatcher, request: &Request) -> Result<(), String> {
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier;
    let found = request.parameter(&parameter_match.name);
    let (holds, wanted) = match &parameter_match.query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(text)) => {
            (found.map_or(Ok(false), |value| string(text, value))?, describe(text))
        }
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => {
            (found.is_some() == *present, "any value".into())
        }
        None => (found.is_some(), "any value".into()),
    };
    let is = found.map_or_else(|| "missing".to_owned(), |value| format!("`{value}`"));
    if holds {
        Ok(())
    } else {
        Err(format!("query parameter {} is {is}, expected {wanted}", parameter_match.name))
    }
}

/// `text` in lower case if `ignore_case`.
fn fold(text: &str, ignore_case: bool) -> Cow<'_, str> {
    if ignore_case { text.to_ascii_lowercase().into() } else { text.into() }
}

fn string(string_matcher: &matcher::StringMatcher, value: &str) -> Result<bool, String> {
    use matcher::string_matcher::MatchPattern;
    let ignore_case = string_matcher.ignore_case;
    let folded = fold(value, ignore_case);
    Ok(match &string_matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => folded == fold(text, ignore_case),
        Some(MatchPattern::Prefix(text)) => folded.starts_with(&*fold(text, ignore_case)),
        Some(MatchPattern::Suffix(text)) => folded.ends_with(&*fold(text, ignore_case)),
        Some(MatchPattern::Contains(text)) => folded.contains(&*fold(text, ignore_case)),
        Some(MatchPattern::SafeRegex(regex)) => whole(&regex.regex, value)?,
        _ => false,
    })
}

fn describe(string_matcher: &matcher::StringMatcher) -> String {
    use matcher::string_matcher::MatchPattern;
    match &string_matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => format!("`{text}`"),
        Some(MatchPattern::Prefix(text)) => format!("a value that starts with `{text}`"),
        Some(MatchPattern::Suffix(text)) => format!("a value that ends with `{text}`"),
        Some(MatchPattern::Contains(text)) => format!("a value that contains `{text}`"),
        Some(MatchPattern::SafeRegex(regex)) => format!("a value that matches `{}`", regex.regex),
        _ => "an unsupported kind of match".to_owned(),
    }
}

/// Whether all of `text` matches, as with Envoy's RE2. Both dialects agree on everything that RE2 accepts.
fn whole(pattern: &str, text: &str) -> Result<bool, String> {
    let regex = regex::Regex::new(&format!("^(?:{pattern})$"))
        .map_err(|_| format!("`{pattern}` is not a valid RE2 expression"))?;
    Ok(regex.is_match(text))
}

/// The filter chain for a connection to `address` with this server name; `http` says whether it is detected as HTTP.
pub(super) fn filter_chain<'a>(
    listener: &'a listener::Listener,
    address: Option<std::net::IpAddr>,
    sni: Option<&str>,
    http: bool,
) -> Option<&'a listener::FilterChain> {
    let ranked = listener.filter_chains.iter().filter_map(|chain| {
        Some((chain_rank(chain.filter_chain_match.as_ref(), address, sni, http)?, chain))
    });
    ranked
        .max_by_key(|(rank, _)| *rank)
        .map(|(_, chain)| chain)
        .or(listener.default_filter_chain.as_ref())
}

/// How specific a match is that holds for a connection; `None` if it does not hold.
fn chain_rank(
    chain_match: Option<&listener::FilterChainMatch>,
    address: Option<std::net::IpAddr>,
    sni: Option<&str>,
    http: bool,
) -> Option<(u32, usize, u8)> {
    let Some(wanted) = chain_match else {
        return Some((0, 0, 0));
    };
    let by_address = if wanted.prefix_ranges.is_empty() {
        0
    } else {
        wanted.prefix_ranges.iter().filter_map(|range| prefix(range, address?)).max()? + 1
    };
    let by_name = if wanted.server_names.is_empty() {
        0
    } else {
        wanted.server_names.iter().filter_map(|name| server_name(name, sni?)).max()? + 1
    };
    let by_protocol = match wanted.application_protocols.is_empty() {
        true => 0,
        false if http && wanted.application_protocols.iter().any(|name| name == "http/1.1") => 1,
        false => return None,
    };
    Some((by_address, by_name, by_protocol))
}

fn prefix(
    range: &envoy_types::pb::envoy::config::core::v3::CidrRange,
    address: std::net::IpAddr,
) -> Option<u32> {
    let length = range.prefix_len.as_ref().map_or(0, |length| length.value);
    let same = match (range.address_prefix.parse().ok()?, address) {
        (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) => {
            let shift = 32u32.checked_sub(length)?;
            u32::from(a).checked_shr(shift).unwrap_or(0)
                == u32::from(b).checked_shr(shift).unwrap_or(0)
        }
        (std::net::IpAddr::V6(a), std::net::IpAddr::V6(b)) => {
            let shift = 128u32.checked_sub(length)?;
            u128::from(a).checked_shr(shift).unwrap_or(0)
                == u128::from(b).checked_shr(shift).unwrap_or(0)
        }
        _ => false,
    };
    same.then_some(length)
}

fn server_name(pattern: &str, name: &str) -> Option<usize> {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    match pattern.strip_prefix('*') {
        Some(ending) => {
            (name.len() > ending.len() && name.ends_with(ending)).then_some(pattern.len())
        }
        None => (pattern == name).then_some(usize::MAX - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(domains: &[&str]) -> pb::RouteConfiguration {
        pb::RouteConfiguration {
            ignore_port_in_host_matching: true,
            virtual_hosts: domains
                .iter()
                .map(|domain| pb::VirtualHost {
                    name: (*domain).to_owned(),
                    domains: vec![(*domain).to_owned()],
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn domains_are_searched_as_envoy_does() {
        let routes = config(&[
            "*",
            "web.*",
            "*.example.com",
            "*.a.example.com",
            "web.example.com",
            "[fd00::1]",
        ]);
        for (authority, domain) in [
            ("web.example.com", "web.example.com"),
            ("WEB.example.com:8080", "web.example.com"),
            ("x.a.example.com", "*.a.example.com"),
            ("x.example.com", "*.example.com"),
            ("web.shop", "web.*"),
            ("other", "*"),
            ("[fd00::1]:80", "[fd00::1]"),
        ] {
            assert_eq!(
                virtual_host(&routes, authority).map(|(_, domain)| domain),
                Some(domain),
                "{authority}"
            );
        }
    }
}
