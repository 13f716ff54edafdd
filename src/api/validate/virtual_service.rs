//! Validates VirtualServices.

use base64::Engine as _;

use super::common::{
    at_most_one_of, covers, destination, export_to, expression, gateways, header_name,
    header_value, host_name, is_address, is_dns_label, labels, one_line, percent, port_or_none,
    string_match, subnet, weights,
};
use super::{Diagnostics, http_policy};
use crate::api::{
    HeaderOperations, Headers, HttpDirectResponse, HttpMatchRequest, HttpRedirect, HttpRewrite,
    HttpRoute, L4MatchAttributes, Meta, ProblemKind, RouteDestination, StringMatch,
    TlsMatchAttributes, VirtualService,
};

/// The maximum body size of a direct response: every proxy keeps it in memory and receives it with each change.
const LARGEST_BODY: usize = 1 << 20;
/// Envoy's limit for query parameter names. Source: `QueryParameterMatcher` in Envoy's protos.
const LONGEST_PARAMETER: usize = 1024;
/// Pseudo-headers. Source: RFC 9113, 8.3.
const PSEUDO_HEADERS: [&str; 5] = [":method", ":scheme", ":authority", ":path", ":status"];

pub(super) fn check(spec: &VirtualService, meta: &Meta, found: &mut Diagnostics) {
    let is_delegate = spec.hosts.is_empty();
    let for_gateway = spec.gateways.iter().any(|name| name != "mesh");
    let for_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|name| name == "mesh");
    hosts(&spec.hosts, for_mesh, found);
    if is_delegate {
        for (name, given) in [
            ("gateways", !spec.gateways.is_empty()),
            ("tls", !spec.tls.is_empty()),
            ("tcp", !spec.tcp.is_empty()),
        ] {
            if given {
                found.add(
                    format!("spec.{name}"),
                    "is set in a VirtualService without hosts, which is a delegate",
                    format!("remove {name}, or add hosts"),
                );
            }
        }
    }
    gateways(&spec.gateways, "spec.gateways", found);
    export_to(&spec.export_to, &meta.namespace, false, "spec.exportTo", found);
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        found.add("spec", "has no routes", "expected at least one of http, tls or tcp");
    }
    for (n, route) in spec.http.iter().enumerate() {
        http_route(route, is_delegate, for_gateway, &format!("spec.http[{n}]"), found);
    }
    for (n, route) in spec.tls.iter().enumerate() {
        let path = format!("spec.tls[{n}]");
        if route.matches.is_empty() {
            found.add(
                format!("{path}.match"),
                "is missing",
                "expected at least one match with sniHosts",
            );
        }
        for (m, conditions) in route.matches.iter().enumerate() {
            tls_match(conditions, &spec.hosts, for_gateway, &format!("{path}.match[{m}]"), found);
        }
        destinations(&route.route, &path, found);
    }
    for (n, route) in spec.tcp.iter().enumerate() {
        let path = format!("spec.tcp[{n}]");
        for (m, conditions) in route.matches.iter().enumerate() {
            tcp_match(conditions, &format!("{path}.match[{m}]"), found);
        }
        destinations(&route.route, &path, found);
    }
}

/// Hosts must not overlap, neither with each other nor with wildcards of the same object.
fn hosts(hosts: &[String], for_mesh: bool, found: &mut Diagnostics) {
    for (n, host) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{n}]");
        if host == "*" && for_mesh {
            found.add(
                path,
                "is `*`, which is allowed only for gateways",
                "expected a host or a wildcard like \
                *.example.com",
            );
            continue;
        }
        host_name(host, &path, found);
        if let Some(other) = hosts.iter().take(n).find(|other| overlap(host, other)) {
            found.add(
                path,
                format!("`{host}` is already covered by `{other}`"),
                "expected hosts that do not overlap",
            );
        }
    }
}

fn overlap(a: &str, b: &str) -> bool {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    covers(&a, &b) || covers(&b, &a)
}

fn http_route(
    route: &HttpRoute,
    is_delegate: bool,
    for_gateway: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    action(route, is_delegate, path, found);
    fields_beside_answer(route, path, found);
    for (n, request_match) in route.matches.iter().enumerate() {
        http_match(request_match, for_gateway, &format!("{path}.match[{n}]"), found);
    }
    weights(route.route.iter().map(|weighted| weighted.weight), &format!("{path}.route"), found);
    for (n, weighted) in route.route.iter().enumerate() {
        let path = format!("{path}.route[{n}]");
        destination(weighted.destination.as_ref(), &format!("{path}.destination"), found);
        headers(weighted.headers.as_ref(), &format!("{path}.headers"), found);
    }
    mirrors(route, path, found);
    headers(route.headers.as_ref(), &format!("{path}.headers"), found);
    one_authority(route, path, found);
    if let Some(redirect) = &route.redirect {
        self::redirect(redirect, &route.matches, &format!("{path}.redirect"), found);
    }
    if let Some(response) = &route.direct_response {
        direct_response(response, &format!("{path}.directResponse"), found);
    }
    if let Some(rewrite) = &route.rewrite {
        self::rewrite(rewrite, &format!("{path}.rewrite"), found);
    }
    if let Some(retries) = &route.retries {
        http_policy::retries(retries, &format!("{path}.retries"), found);
    }
    if let Some(fault) = &route.fault {
        http_policy::fault(fault, &format!("{path}.fault"), found);
    }
    if let Some(policy) = &route.cors_policy {
        http_policy::cors(policy, &format!("{path}.corsPolicy"), found);
    }
}

/// Fields that a route with a redirect or direct response must not have, or that have no effect there.
fn fields_beside_answer(route: &HttpRoute, path: &str, found: &mut Diagnostics) {
    for (what, other) in [
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
    ] {
        for (name, given) in
            [("fault", route.fault.is_some()), ("rewrite", route.rewrite.is_some())]
        {
            if other && given && route.delegate.is_none() {
                found.add(
                    format!("{path}.{name}"),
                    format!("is set together with {what}"),
                    "only one of them may be \
                    set",
                );
            }
        }
    }
    let answer = route
        .redirect
        .as_ref()
        .map(|_| "redirect")
        .or(route.direct_response.as_ref().map(|_| "directResponse"));
    if let Some(answer) = answer {
        for (name, given) in [
            ("timeout", route.timeout.is_some()),
            ("retries", route.retries.is_some()),
            ("mirror", route.mirror.is_some()),
            ("mirrors", !route.mirrors.is_empty()),
        ] {
            if given {
                let message =
                    format!("has no effect together with {answer}, because nothing is forwarded");
                found.no_effect(format!("{path}.{name}"), message, format!("remove {name}"));
            }
        }
    }
}

/// Exactly one action must be set, except that a delegate may have a direct response as well.
fn action(route: &HttpRoute, is_delegate: bool, path: &str, found: &mut Diagnostics) {
    let actions = [
        (!route.route.is_empty(), "route"),
        (route.redirect.is_some(), "redirect"),
        (route.direct_response.is_some(), "directResponse"),
        (route.delegate.is_some(), "delegate"),
    ];
    let given: Vec<_> = actions.iter().filter(|(given, _)| *given).map(|(_, name)| *name).collect();
    match given.as_slice() {
        [] => found.add(
            path,
            "does nothing",
            "set one of route, redirect, directResponse or delegate",
        ),
        // The delegate's routes inherit what they do not set, including this response.
        [_] | ["directResponse", "delegate"] => {}
        many => {
            found.add(path, format!("has {}", many.join(" and ")), "only one of them may be set")
        }
    }
    if is_delegate && route.delegate.is_some() {
        found.add(
            format!("{path}.delegate"),
            "a VirtualService without hosts is a delegate and cannot delegate further",
            "set route, redirect or directResponse",
        );
    }
    if route.delegate.as_ref().is_some_and(|to| to.name.is_empty()) {
        found.warn(
            ProblemKind::DeadRoute,
            format!("{path}.delegate.name"),
            "is missing, so the route is ignored",
            "expected the name of a VirtualService without hosts",
        );
    }
}

fn http_match(
    request_match: &HttpMatchRequest,
    for_gateway: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    if let Some(uri) = &request_match.uri {
        string_match(uri, true, &format!("{path}.uri"), found);
    }
    if request_match.ignore_uri_case
        && request_match.uri.as_ref().is_none_or(|uri| uri.regex.is_some())
    {
        let message = "has no effect unless uri is exact or prefix";
        found.no_effect(
            format!("{path}.ignoreUriCase"),
            message,
            "start the expression with (?i), or remove the \
            field",
        );
    }
    for (name, value) in [
        ("scheme", &request_match.scheme),
        ("method", &request_match.method),
        ("authority", &request_match.authority),
    ] {
        if let Some(value) = value {
            string_match(value, false, &format!("{path}.{name}"), found);
        }
    }
    for (list, values) in
        [("headers", &request_match.headers), ("withoutHeaders", &request_match.without_headers)]
    {
        let path = format!("{path}.{list}");
        for (name, value) in values {
            header_match(name, value, for_gateway, &path, found);
        }
    }
    for (name, value) in &request_match.query_params {
        let path = format!("{path}.queryParams");
        if name.is_empty() || name.len() > LONGEST_PARAMETER {
            found.add(
                &path,
                format!("has a name of {} bytes", name.len()),
                format!("expected 1 to {LONGEST_PARAMETER}"),
            );
        }
        string_match(value, false, &format!("{path}.{name}"), found);
    }
    port_or_none(request_match.port, &format!("{path}.port"), found);
    labels(&request_match.source_labels, &format!("{path}.sourceLabels"), found);
    gateways(&request_match.gateways, &format!("{path}.gateways"), found);
    source_namespace(&request_match.source_namespace, path, found);
}

/// `path` is that of the list that has the header.
fn header_match(
    name: &str,
    value: &StringMatch,
    for_gateway: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    if matches!(name, "uri" | "scheme" | "method" | "authority") {
        let message = format!("matches a header `{name}`, which clients do not normally send");
        found.suspicious(format!("{path}.{name}"), message, format!("use match.{name}"));
    }
    if name.starts_with("@request.auth.") {
        if !for_gateway {
            found.add(
                path,
                format!("`{name}` is a token claim, which only gateways can match"),
                "remove it, or bind the VirtualService only to gateways",
            );
        }
        return;
    }
    if name.starts_with(':') && !PSEUDO_HEADERS.contains(&name) {
        found.add(
            path,
            format!("`{name}` is not a header"),
            format!("expected one of {}", PSEUDO_HEADERS.join(", ")),
        );
    } else {
        header_name(name, path, found);
    }
    string_match(value, false, &format!("{path}.{name}"), found);
}

fn source_namespace(name: &str, path: &str, found: &mut Diagnostics) {
    if !name.is_empty() && !is_dns_label(name) {
        found.add(
            format!("{path}.sourceNamespace"),
            format!("is `{name}`"),
            "expected the name of a namespace",
        );
    }
}

fn headers(headers: Option<&Headers>, path: &str, found: &mut Diagnostics) {
    let Some(headers) = headers else { return };
    if let Some(request) = &headers.request {
        operations(request, true, &format!("{path}.request"), found);
    }
    if let Some(response) = &headers.response {
        operations(response, false, &format!("{path}.response"), found);
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn operations(from: &HeaderOperations, of_request: bool, path: &str, found: &mut Diagnostics) {
    for (list, values) in [("set", &from.set), ("add", &from.add)] {
        for name in values.keys() {
            changed_header(name, of_request, &format!("{path}.{list}"), found);
        }
    }
    for (n, name) in from.remove.iter().enumerate() {
        changed_header(name, false, &format!("{path}.remove[{n}]"), found);
    }
    for (list, values) in [("set", &from.set), ("add", &from.add)] {
        for (name, value) in values {
            header_value(value, &format!("{path}.{list}.{name}"), found);
        }
    }
}

/// Of the pseudo-headers Envoy can change only the authority, and only through a rewrite.
fn changed_header(name: &str, may_be_authority: bool, path: &str, found: &mut Diagnostics) {
    header_name(name, path, found);
    let is_pseudo = name.starts_with(':') || is_authority(name);
    if is_pseudo && !(may_be_authority && is_authority(name)) {
        found.no_effect(
            path,
            format!("`{name}` is a pseudo-header and cannot be changed"),
            "remove it; use rewrite.authority to change the host of a request",
        );
    }
}

/// The authority may be set only once, or the result would be ambiguous.
fn one_authority(route: &HttpRoute, path: &str, found: &mut Diagnostics) {
    let rewrites = route.rewrite.as_ref().is_some_and(|rewrite| !rewrite.authority.is_empty());
    let request = route.headers.as_ref().and_then(|headers| headers.request.as_ref());
    let names =
        request.into_iter().flat_map(|request| request.set.keys().chain(request.add.keys()));
    let count = names.filter(|name| is_authority(name)).count();
    if count + usize::from(rewrites) > 1 {
        found.add(
            format!("{path}.headers.request"),
            "sets the authority again",
            "set it once, in rewrite.authority or as the header `host`",
        );
    }
}

fn mirrors(route: &HttpRoute, path: &str, found: &mut Diagnostics) {
    if let Some(to) = &route.mirror {
        destination(Some(to), &format!("{path}.mirror"), found);
        if !route.mirrors.is_empty() {
            found.add(
                format!("{path}.mirrors"),
                "is set together with mirror",
                "only one of them may be set",
            );
        }
    }
    if let Some(value) = route.mirror_percent.filter(|value| *value > 100) {
        found.add(format!("{path}.mirrorPercent"), format!("is {value}"), "expected 0 to 100");
    }
    percent(route.mirror_percentage, &format!("{path}.mirrorPercentage"), found);
    if route.mirror.is_some() && route.mirror_percent.is_some() {
        found.deprecated(
            format!("{path}.mirrorPercent"),
            "is deprecated",
            "use mirrorPercentage: {value: ...}",
        );
    }
    for (name, given) in [
        ("mirrorPercentage", route.mirror_percentage.is_some()),
        ("mirrorPercent", route.mirror_percent.is_some()),
    ] {
        if given && route.mirror.is_none() {
            let message = "has no effect without mirror";
            found.no_effect(
                format!("{path}.{name}"),
                message,
                "add mirror, or use mirrors[].percentage",
            );
        }
    }
    for (n, mirror) in route.mirrors.iter().enumerate() {
        destination(
            mirror.destination.as_ref(),
            &format!("{path}.mirrors[{n}].destination"),
            found,
        );
        percent(mirror.percentage, &format!("{path}.mirrors[{n}].percentage"), found);
    }
}

fn redirect(
    redirect: &HttpRedirect,
    matches: &[HttpMatchRequest],
    path: &str,
    found: &mut Diagnostics,
) {
    if !matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
        let code = redirect.redirect_code;
        found.add(
            format!("{path}.redirectCode"),
            format!("is {code}"),
            "expected 301, 302, 303, 307 or 308",
        );
    }
    let members =
        [("uri", !redirect.uri.is_empty()), ("prefixRewrite", !redirect.prefix_rewrite.is_empty())];
    at_most_one_of(&members, path, found);
    at_most_one_of(
        &[("port", redirect.port.is_some()), ("derivePort", redirect.derive_port.is_some())],
        path,
        found,
    );
    let uris = matches.iter().filter_map(|request_match| request_match.uri.as_ref());
    if !redirect.prefix_rewrite.is_empty() && uris.clone().any(|uri| uri.prefix.is_none()) {
        found.add(
            format!("{path}.prefixRewrite"),
            "replaces a prefix",
            "every match must match uri by prefix",
        );
    }
    if redirect.uri.is_empty()
        && redirect.prefix_rewrite.is_empty()
        && redirect.authority.is_empty()
        && redirect.scheme.is_empty()
        && redirect.port.is_none()
        && redirect.derive_port.is_none()
    {
        found.add(
            path,
            "changes nothing",
            "expected uri, prefixRewrite, authority, scheme or port",
        );
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        found.add(
            format!("{path}.scheme"),
            format!("is `{}`", redirect.scheme),
            "expected http or https",
        );
    }
    port_or_none(redirect.port, &format!("{path}.port"), found);
    one_line(&redirect.uri, &format!("{path}.uri"), found);
    one_line(&redirect.prefix_rewrite, &format!("{path}.prefixRewrite"), found);
    one_line(&redirect.authority, &format!("{path}.authority"), found);
}

fn direct_response(response: &HttpDirectResponse, path: &str, found: &mut Diagnostics) {
    if !(200..600).contains(&response.status) {
        found.add(
            format!("{path}.status"),
            format!("is {}", response.status),
            "expected 200 to 599",
        );
    }
    let Some(body) = &response.body else { return };
    at_most_one_of(
        &[("string", body.string.is_some()), ("bytes", body.bytes.is_some())],
        &format!("{path}.body"),
        found,
    );
    let bytes =
        body.bytes.as_ref().map(|text| base64::engine::general_purpose::STANDARD.decode(text));
    let length = match (&body.string, bytes) {
        (_, Some(Err(reason))) => {
            found.add(
                format!("{path}.body.bytes"),
                format!("is not base64: {reason}"),
                "expected base64, or body.string for plain text",
            );
            0
        }
        (_, Some(Ok(bytes))) => bytes.len(),
        (Some(text), None) => text.len(),
        (None, None) => 0,
    };
    if length > LARGEST_BODY {
        found.add(
            format!("{path}.body"),
            format!("has {length} bytes"),
            format!("expected at most {LARGEST_BODY}"),
        );
    }
}

fn rewrite(rewrite: &HttpRewrite, path: &str, found: &mut Diagnostics) {
    let members = [
        ("uri", !rewrite.uri.is_empty()),
        ("uriRegexRewrite", rewrite.uri_regex_rewrite.is_some()),
    ];
    at_most_one_of(&members, path, found);
    if rewrite.uri.is_empty() && rewrite.uri_regex_rewrite.is_none() && rewrite.authority.is_empty()
    {
        found.add(path, "changes nothing", "expected uri, uriRegexRewrite or authority");
    }
    one_line(&rewrite.uri, &format!("{path}.uri"), found);
    one_line(&rewrite.authority, &format!("{path}.authority"), found);
    if let Some(regex) = &rewrite.uri_regex_rewrite {
        expression(&regex.pattern, &format!("{path}.uriRegexRewrite.match"), found);
        one_line(&regex.rewrite, &format!("{path}.uriRegexRewrite.rewrite"), found);
        if regex.rewrite.is_empty() {
            found.add(
                format!("{path}.uriRegexRewrite.rewrite"),
                "is missing",
                "expected the replacement",
            );
        }
    }
}

fn tls_match(
    conditions: &TlsMatchAttributes,
    hosts: &[String],
    for_gateway: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    if conditions.sni_hosts.is_empty() {
        found.add(format!("{path}.sniHosts"), "is empty", "expected at least one name");
    }
    for (n, name) in conditions.sni_hosts.iter().enumerate() {
        let path = format!("{path}.sniHosts[{n}]");
        let partial = name.starts_with('*') && name != "*" && !name.starts_with("*.");
        let lower = name.to_ascii_lowercase();
        if is_address(name) {
            found.suspicious(
                path,
                format!(
                    "`{name}` is an address, which clients do not normally send as server name"
                ),
                "expected a name",
            );
        } else if partial {
            found.add(
                path,
                format!("`{name}` is a partial wildcard, which Envoy rejects"),
                "expected *.example.com",
            );
        } else if for_gateway && name.starts_with("outbound_.") {
            // Mesh mTLS names, which gateways pass through.
        } else if !hosts.iter().any(|host| covers(&host.to_ascii_lowercase(), &lower)) {
            found.add(
                path,
                format!("`{name}` does not match any of the hosts"),
                "expected a name covered by \
                spec.hosts",
            );
        } else {
            host_name(name, &path, found);
        }
    }
    for (k, address) in conditions.destination_subnets.iter().enumerate() {
        subnet(address, &format!("{path}.destinationSubnets[{k}]"), found);
    }
    port_or_none(conditions.port, &format!("{path}.port"), found);
    labels(&conditions.source_labels, &format!("{path}.sourceLabels"), found);
    gateways(&conditions.gateways, &format!("{path}.gateways"), found);
    source_namespace(&conditions.source_namespace, path, found);
}

fn tcp_match(conditions: &L4MatchAttributes, path: &str, found: &mut Diagnostics) {
    for (k, address) in conditions.destination_subnets.iter().enumerate() {
        subnet(address, &format!("{path}.destinationSubnets[{k}]"), found);
    }
    if !conditions.source_subnet.is_empty() {
        found.no_effect(
            format!("{path}.sourceSubnet"),
            "has no effect, as in Istio",
            "use sourceLabels or sourceNamespace",
        );
    }
    port_or_none(conditions.port, &format!("{path}.port"), found);
    labels(&conditions.source_labels, &format!("{path}.sourceLabels"), found);
    gateways(&conditions.gateways, &format!("{path}.gateways"), found);
    source_namespace(&conditions.source_namespace, path, found);
}

fn destinations(routes: &[RouteDestination], path: &str, found: &mut Diagnostics) {
    if routes.is_empty() {
        found.add(format!("{path}.route"), "is missing", "expected at least one destination");
    }
    weights(routes.iter().map(|route| route.weight), &format!("{path}.route"), found);
    for (n, route) in routes.iter().enumerate() {
        destination(route.destination.as_ref(), &format!("{path}.route[{n}].destination"), found);
    }
}
