//! VirtualServices by themselves: values that are not allowed or contradict each other, deprecated fields, and fields
//! that do nothing. Source of what is not allowed: istio/istio, `pkg/config/validation`.

use std::collections::{BTreeMap, HashSet};

use super::index::{VirtualService, wildcards};
use super::{Findings, any_of, code, export_to, is_label};
use crate::api::{
    CorsPolicy, HeaderOperations, Headers, HttpFaultInjection, HttpMatchRequest, HttpRedirect, HttpRetry, HttpRewrite,
    HttpRoute, Percent, StringMatch,
};
use crate::mesh::{covers, is_wildcard};
use crate::proto_rules::re2;
use crate::store::Entry;

/// Expressions longer than this are refused by Istio.
const MAX_REGEX: usize = 1024;

/// What `retryOn` may name. Source: Envoy's documentation of `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// gRPC's status codes. Source: gRPC's documentation of status codes.
const GRPC_STATUS: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

const METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

/// Where findings about one VirtualService go.
struct Sink<'a, 'b> {
    entry: &'a Entry,
    found: &'b mut Findings,
}

impl Sink<'_, '_> {
    fn wrong(&mut self, path: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.found.add(&code::SCHEMA, self.entry, path, message, advice);
    }

    fn odd(&mut self, path: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.found.add(&code::SCHEMA_WARNING, self.entry, path, message, advice);
    }

    fn idle(&mut self, path: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.found.add(&code::NO_EFFECT, self.entry, path, message, advice);
    }

    fn old(&mut self, path: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.found.add(&code::DEPRECATED, self.entry, path, message, advice);
    }
}

pub(super) fn check(one: &VirtualService<'_>, found: &mut Findings) {
    export_to(one.entry, &one.spec.export_to, found);
    let mut sink = Sink { entry: one.entry, found };
    hosts(one, &mut sink);
    gateways(one, &mut sink);
    for (n, route) in one.spec.http.iter().enumerate() {
        http_route(one, route, &format!("spec.http[{n}]"), &mut sink);
    }
    for (n, route) in one.spec.tls.iter().enumerate() {
        let path = format!("spec.tls[{n}]");
        weights(route.route.iter().map(|to| to.weight), &path, &mut sink);
        for (m, matched) in route.matches.iter().enumerate() {
            let path = format!("{path}.match[{m}]");
            for (k, name) in matched.sni_hosts.iter().enumerate() {
                sni_host(one, name, &format!("{path}.sniHosts[{k}]"), &mut sink);
            }
            subnets(&matched.destination_subnets, &path, &mut sink);
            who_and_where(one, matched.port, &matched.source_namespace, &matched.gateways, &path, &mut sink);
        }
    }
    for (n, route) in one.spec.tcp.iter().enumerate() {
        let path = format!("spec.tcp[{n}]");
        weights(route.route.iter().map(|to| to.weight), &path, &mut sink);
        for (m, matched) in route.matches.iter().enumerate() {
            let path = format!("{path}.match[{m}]");
            subnets(&matched.destination_subnets, &path, &mut sink);
            who_and_where(one, matched.port, &matched.source_namespace, &matched.gateways, &path, &mut sink);
            if !matched.source_subnet.is_empty() {
                let advice = "use sourceLabels or sourceNamespace";
                sink.idle(format!("{path}.sourceSubnet"), "is not used, by Istio neither", advice);
            }
        }
    }
}

fn hosts(one: &VirtualService<'_>, sink: &mut Sink<'_, '_>) {
    let spec = one.spec;
    if spec.hosts.is_empty() {
        let delegate = "a VirtualService without hosts is a delegate";
        for (given, field, why) in [
            (!spec.gateways.is_empty(), "gateways", "takes its gateways from the one that delegates to it"),
            (!spec.tls.is_empty(), "tls", "has http routes alone"),
            (!spec.tcp.is_empty(), "tcp", "has http routes alone"),
        ] {
            if given {
                let message = format!("{delegate}, which {why}");
                sink.wrong(format!("spec.{field}"), message, format!("remove {field}, or give it hosts"));
            }
        }
    }
    let mut seen: HashSet<&str> = HashSet::new();
    for (n, host) in one.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{n}]");
        if &**host == "*" && one.is_for_mesh() {
            sink.wrong(path, "`*` is only for gateways", "name the hosts, or a wildcard like *.example.com");
        } else if !seen.insert(host) {
            sink.wrong(path, format!("`{host}` stands twice"), "remove one of the two");
        }
    }
    for (n, host) in one.hosts.iter().enumerate() {
        let wider = wildcards(host).find(|wildcard| **wildcard != **host && seen.contains(&**wildcard));
        if let Some(wider) = wider {
            let message = format!("`{host}` is covered by `{wider}` of the same object");
            sink.wrong(format!("spec.hosts[{n}]"), message, "remove one of the two");
        }
    }
}

fn gateways(one: &VirtualService<'_>, sink: &mut Sink<'_, '_>) {
    let others: Vec<_> = one.spec.gateways.iter().enumerate().filter(|(_, name)| *name != "mesh").collect();
    if !one.is_for_mesh() {
        let message = "counts at gateways alone: no sidecar uses this VirtualService";
        let advice = "add `mesh` to spec.gateways if sidecars are to use it";
        sink.found.add(&code::NOT_FOR_SIDECARS, sink.entry, "spec.gateways", message, advice);
        return;
    }
    for (n, name) in others {
        let message =
            format!("`{name}` is a gateway, which weir does not serve; sidecars use the VirtualService all the same");
        let path = format!("spec.gateways[{n}]");
        sink.found.add(
            &code::NOT_FOR_SIDECARS,
            sink.entry,
            path,
            message,
            "nothing, if another control plane serves it",
        );
    }
}

/// What matches of all kinds have: the port, the namespace of the client, and the gateways.
fn who_and_where(
    one: &VirtualService<'_>,
    number: Option<u32>,
    namespace: &str,
    gateways: &[String],
    path: &str,
    sink: &mut Sink<'_, '_>,
) {
    port(number, path, sink);
    if !namespace.is_empty() && !is_label(namespace) {
        let message = format!("`{namespace}` is not the name of a namespace");
        sink.wrong(format!("{path}.sourceNamespace"), message, "write the name of a namespace");
    }
    if one.is_for_mesh() && !gateways.is_empty() && !gateways.iter().any(|name| name == "mesh") {
        let message = "counts at gateways alone: no sidecar uses this match";
        let advice = "add `mesh` to its gateways if sidecars are to use it";
        sink.found.add(&code::NOT_FOR_SIDECARS, sink.entry, format!("{path}.gateways"), message, advice);
    }
}

fn http_route(one: &VirtualService<'_>, route: &HttpRoute, path: &str, sink: &mut Sink<'_, '_>) {
    weights(route.route.iter().map(|to| to.weight), path, sink);
    for (m, matched) in route.matches.iter().enumerate() {
        http_match(one, matched, &format!("{path}.match[{m}]"), sink);
    }
    let answer = match (&route.redirect, &route.direct_response) {
        (Some(_), _) => Some("redirect"),
        (None, Some(_)) => Some("directResponse"),
        (None, None) => None,
    };
    if let Some(answer) = answer {
        for (given, field) in [(route.fault.is_some(), "fault"), (route.rewrite.is_some(), "rewrite")] {
            if given {
                let message = format!("stands beside {answer}, after which nothing is forwarded");
                sink.wrong(format!("{path}.{field}"), message, format!("remove {field} or {answer}"));
            }
        }
        for (given, field) in [
            (route.timeout.is_some(), "timeout"),
            (route.retries.is_some(), "retries"),
            (route.mirror.is_some() || !route.mirrors.is_empty(), "mirror"),
        ] {
            if given {
                let message = format!("does nothing beside {answer}, after which nothing is forwarded");
                sink.idle(format!("{path}.{field}"), message, format!("remove {field}"));
            }
        }
    }
    if let Some(redirect) = &route.redirect {
        self::redirect(redirect, &route.matches, &format!("{path}.redirect"), sink);
    }
    if let Some(rewrite) = &route.rewrite {
        self::rewrite(rewrite, &format!("{path}.rewrite"), sink);
    }
    mirrors(route, path, sink);
    if let Some(retries) = &route.retries {
        self::retries(retries, &format!("{path}.retries"), sink);
        let limit = route.timeout.filter(|timeout| !timeout.0.is_zero());
        if let (Some(limit), Some(each)) = (limit, retries.per_try_timeout)
            && retries.attempts > 0
            && limit < each
        {
            let message = format!("ends a request after {limit}, before one try of {each} (perTryTimeout) can end");
            let advice = "make timeout at least perTryTimeout times the tries";
            sink.found.add(&code::TIMEOUT, sink.entry, format!("{path}.timeout"), message, advice);
        }
    }
    if let Some(fault) = &route.fault {
        self::fault(fault, &format!("{path}.fault"), sink);
    }
    if let Some(cors) = &route.cors_policy {
        self::cors(cors, &format!("{path}.corsPolicy"), sink);
    }
    let mut authorities = u32::from(route.rewrite.as_ref().is_some_and(|rewrite| !rewrite.authority.is_empty()));
    if let Some(headers) = &route.headers {
        authorities += self::headers(headers, &format!("{path}.headers"), sink);
    }
    if authorities > 1 {
        let message = "sets the authority (or Host header) more than once";
        sink.wrong(path, message, "set it in rewrite.authority alone");
    }
    for (n, to) in route.route.iter().enumerate() {
        if let Some(headers) = &to.headers {
            self::headers(headers, &format!("{path}.route[{n}].headers"), sink);
        }
    }
}

fn weights(weights: impl Iterator<Item = i32>, path: &str, sink: &mut Sink<'_, '_>) {
    let (mut count, mut sum) = (0_u32, 0_i64);
    for weight in weights {
        count += 1;
        sum += i64::from(weight);
    }
    let path = format!("{path}.route");
    if count < 2 {
        return;
    }
    if sum == 0 {
        let message = format!("all {count} destinations have weight 0, so no request could be sent to any of them");
        sink.wrong(path, message, "give at least one destination a weight above 0");
    } else if sum > i64::from(u32::MAX) {
        sink.wrong(path, format!("the weights sum to {sum}"), "make them sum to 100");
    } else if sum != 100 {
        let message = format!("the weights sum to {sum}, so a weight of {sum} would be all requests");
        let advice = "make them sum to 100 if they are meant in percent";
        sink.found.add(&code::WEIGHT_SUM, sink.entry, path, message, advice);
    }
}

fn port(number: Option<u32>, path: &str, sink: &mut Sink<'_, '_>) {
    if let Some(number) = number.filter(|number| *number > 65535) {
        sink.wrong(format!("{path}.port"), format!("is {number}"), "write a port from 1 to 65535");
    }
}

fn subnets(subnets: &[String], path: &str, sink: &mut Sink<'_, '_>) {
    for (n, subnet) in subnets.iter().enumerate() {
        let (address, length) = subnet.split_once('/').map_or((&**subnet, None), |(a, b)| (a, Some(b)));
        let most = match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => Some(32),
            Ok(std::net::IpAddr::V6(_)) => Some(128),
            Err(_) => None,
        };
        let fits = length.is_none_or(|length| length.parse::<u8>().is_ok_and(|n| most.is_some_and(|most| n <= most)));
        if most.is_none() || !fits {
            let message = format!("`{subnet}` is no subnet");
            sink.wrong(format!("{path}.destinationSubnets[{n}]"), message, "write one like 10.0.0.0/8 or 10.0.0.1");
        }
    }
}

fn sni_host(one: &VirtualService<'_>, name: &str, path: &str, sink: &mut Sink<'_, '_>) {
    let name = name.to_ascii_lowercase();
    if name.parse::<std::net::IpAddr>().is_ok() {
        sink.odd(path, format!("`{name}` is an address, which no client sends as SNI"), "write a name");
        return;
    }
    // SNI is compared as it is written, so hosts are too.
    let written = one.spec.hosts.iter().map(|host| host.to_ascii_lowercase());
    if !written.chain(one.hosts.iter().map(|host| host.to_string())).any(|host| covers(&host, &name)) {
        let hosts: Vec<_> = one.spec.hosts.iter().map(|host| format!("`{host}`")).collect();
        let message = format!("`{name}` is covered by none of the hosts of the VirtualService ({})", hosts.join(", "));
        sink.wrong(path, message, "add it to spec.hosts, or write a name that is covered");
    }
}

fn http_match(one: &VirtualService<'_>, matched: &HttpMatchRequest, path: &str, sink: &mut Sink<'_, '_>) {
    who_and_where(one, matched.port, &matched.source_namespace, &matched.gateways, path, sink);
    let single = [
        ("uri", &matched.uri),
        ("scheme", &matched.scheme),
        ("method", &matched.method),
        ("authority", &matched.authority),
    ];
    for (field, value) in single {
        if let Some(value) = value {
            // An empty prefix of a path is every path; elsewhere Envoy refuses it.
            string_match(value, &format!("{path}.{field}"), field == "uri", false, sink);
        }
    }
    if matched.ignore_uri_case && matched.uri.as_ref().is_none_or(|uri| uri.regex.is_some()) {
        let message = "counts for an exact or prefix uri alone";
        sink.idle(format!("{path}.ignoreUriCase"), message, "begin the expression with (?i), or remove the field");
    }
    for (field, values) in [
        ("headers", &matched.headers),
        ("withoutHeaders", &matched.without_headers),
        ("queryParams", &matched.query_params),
    ] {
        for (name, value) in values {
            string_match(value, &format!("{path}.{field}.{name}"), false, true, sink);
        }
    }
    for (field, values) in [("headers", &matched.headers), ("withoutHeaders", &matched.without_headers)] {
        for name in values.keys() {
            header_match_name(one, name, &format!("{path}.{field}.{name}"), sink);
        }
    }
}

fn header_match_name(one: &VirtualService<'_>, name: &str, path: &str, sink: &mut Sink<'_, '_>) {
    if matches!(name, "uri" | "scheme" | "method" | "authority") {
        let message = format!("`{name}` as the name of a header is not looked at, as Istio documents it");
        sink.idle(path, message, format!("use match.{name}"));
    } else if name.starts_with("@request.auth.claims") && one.is_for_mesh() {
        sink.wrong(
            path,
            "routing by a token's claims works at gateways alone",
            "remove it, or bind to a gateway alone",
        );
    } else if !name.starts_with("@request.") && !is_header_name(name.strip_prefix(':').unwrap_or(name)) {
        sink.wrong(path, format!("`{name}` is not the name of a header"), "write a name like x-user");
    }
}

fn string_match(value: &StringMatch, path: &str, may_be_empty: bool, star: bool, sink: &mut Sink<'_, '_>) {
    let given: Vec<String> = [("exact", &value.exact), ("prefix", &value.prefix), ("regex", &value.regex)]
        .into_iter()
        .filter(|(_, value)| value.is_some())
        .map(|(name, _)| name.to_owned())
        .collect();
    if given.len() > 1 {
        sink.wrong(path, format!("has {}", given.join(" and ")), "keep one of exact, prefix and regex");
    }
    if value.prefix.as_deref() == Some("") && !may_be_empty {
        let advice = "write a text, or `{}` to ask for any value";
        sink.wrong(format!("{path}.prefix"), "is empty", advice);
    }
    if let Some(expression) = &value.regex
        // A star alone asks for any value; it is no expression.
        && !(star && expression == "*")
    {
        regex(expression, &format!("{path}.regex"), sink);
    }
}

fn regex(expression: &str, path: &str, sink: &mut Sink<'_, '_>) {
    let advice = "Envoy takes RE2, which is not Perl's syntax; see https://github.com/google/re2/wiki/Syntax";
    if expression.len() > MAX_REGEX {
        let message = format!("the expression is {} bytes long; at most {MAX_REGEX} are taken", expression.len());
        sink.wrong(path, message, "make it shorter, or write several matches");
    } else if expression.is_empty() {
        sink.wrong(path, "the expression is empty", "write one, or leave the matcher out");
    } else if let Err(why) = re2::check(expression) {
        let advice = if expression == "*" { "write `.*` for any text" } else { advice };
        sink.wrong(path, format!("the expression `{expression}` is none that Envoy takes: {why}"), advice);
    }
}

fn redirect(redirect: &HttpRedirect, matches: &[HttpMatchRequest], path: &str, sink: &mut Sink<'_, '_>) {
    if !redirect.uri.is_empty() && !redirect.prefix_rewrite.is_empty() {
        sink.wrong(path, "has uri and prefixRewrite", "keep one of the two");
    }
    if *redirect == (HttpRedirect { redirect_code: redirect.redirect_code, ..HttpRedirect::default() }) {
        let advice = "give it a uri, prefixRewrite, authority, scheme, port or derivePort";
        sink.wrong(path, "leads back to where the request came from", advice);
    }
    if !redirect.prefix_rewrite.is_empty() {
        let other = matches.iter().position(|one| one.uri.as_ref().is_some_and(|uri| uri.prefix.is_none()));
        if let Some(n) = other {
            let message = format!("replaces the matched prefix, and match[{n}].uri is none");
            sink.wrong(format!("{path}.prefixRewrite"), message, "match by prefix, or use uri");
        }
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        sink.wrong(format!("{path}.scheme"), format!("is `{}`", redirect.scheme), "write http or https");
    }
    port(redirect.port, path, sink);
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        sink.wrong(path, "has port and derivePort", "keep one of the two");
    }
}

fn rewrite(rewrite: &HttpRewrite, path: &str, sink: &mut Sink<'_, '_>) {
    match &rewrite.uri_regex_rewrite {
        Some(by_regex) => {
            if !rewrite.uri.is_empty() {
                sink.wrong(path, "has uri and uriRegexRewrite", "keep one of the two");
            }
            regex(&by_regex.pattern, &format!("{path}.uriRegexRewrite.match"), sink);
        }
        None if rewrite.uri.is_empty() && rewrite.authority.is_empty() => {
            sink.wrong(path, "changes nothing", "give it a uri, uriRegexRewrite or authority");
        }
        None => {}
    }
}

fn mirrors(route: &HttpRoute, path: &str, sink: &mut Sink<'_, '_>) {
    if let Some(percent) = route.mirror_percent {
        let path = format!("{path}.mirrorPercent");
        if percent > 100 {
            sink.wrong(&path, format!("is {percent}"), "write 0 to 100");
        }
        sink.old(path, "is deprecated", "use mirrorPercentage: {value: ...}");
    }
    if route.mirror.is_some() && !route.mirrors.is_empty() {
        sink.wrong(format!("{path}.mirrors"), "stands beside mirror", "move the mirror into mirrors");
    }
    if route.mirror.is_none() && (route.mirror_percentage.is_some() || route.mirror_percent.is_some()) {
        let field = if route.mirror_percentage.is_some() { "mirrorPercentage" } else { "mirrorPercent" };
        let advice = "add mirror, or use mirrors[].percentage";
        sink.idle(format!("{path}.{field}"), "is the share of a mirror that is not given", advice);
    }
}

fn retries(retries: &HttpRetry, path: &str, sink: &mut Sink<'_, '_>) {
    let more = retries.per_try_timeout.is_some() || !retries.retry_on.is_empty();
    if retries.attempts == 0 && (more || retries.retry_remote_localities.is_some()) {
        let message = "attempts is 0 or missing, so nothing is tried again and the other fields do nothing";
        sink.wrong(path, message, "give it attempts, or remove the other fields");
    }
    for word in retries.retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let is_status = word.len() == 3 && word.parse::<u16>().is_ok_and(|code| (100..600).contains(&code));
        if !is_status && !RETRY_ON.contains(&word) {
            let message = format!("`{word}` is no condition that Envoy knows");
            let near = RETRY_ON.iter().filter(|known| known.replace('-', "") == word.replace(['-', '_'], ""));
            let near: Vec<String> = near.map(|known| format!("`{known}`")).collect();
            let advice = if near.is_empty() {
                format!("write a status code or one of {}", RETRY_ON.join(", "))
            } else {
                format!("write {}", any_of(&near))
            };
            sink.wrong(format!("{path}.retryOn"), message, advice);
        }
    }
}

fn share(percent: Option<Percent>, path: &str, sink: &mut Sink<'_, '_>) {
    if let Some(Percent { value }) = percent
        && value > 0.0
        && value < 0.0001
    {
        sink.wrong(format!("{path}.percentage.value"), format!("is {value}"), "write 0, or 0.0001 to 100");
    }
}

fn fault(fault: &HttpFaultInjection, path: &str, sink: &mut Sink<'_, '_>) {
    if fault.abort.is_none() && fault.delay.is_none() {
        sink.wrong(path, "has neither delay nor abort", "add one of them, or remove fault");
    }
    if let Some(abort) = &fault.abort {
        let path = format!("{path}.abort");
        share(abort.percentage, &path, sink);
        let given = [abort.http_status.is_some(), abort.grpc_status.is_some(), abort.http2_error.is_some()];
        match given.iter().filter(|given| **given).count() {
            0 => sink.odd(&path, "has no status, so no request is aborted", "add httpStatus or grpcStatus"),
            1 => {}
            _ => sink.wrong(&path, "has more than one status", "keep one of httpStatus and grpcStatus"),
        }
        if abort.http2_error.is_some() {
            let message = "is not supported, by Istio neither";
            sink.wrong(format!("{path}.http2Error"), message, "use httpStatus or grpcStatus");
        }
        if let Some(status) = &abort.grpc_status
            && !GRPC_STATUS.contains(&status.as_str())
            && !status.parse::<u8>().is_ok_and(|code| code <= 16)
        {
            let message = format!("`{status}` is no gRPC status");
            sink.wrong(format!("{path}.grpcStatus"), message, "write a name like UNAVAILABLE");
        }
    }
    if let Some(delay) = &fault.delay {
        let path = format!("{path}.delay");
        share(delay.percentage, &path, sink);
        if delay.percent != 0 {
            sink.old(format!("{path}.percent"), "is deprecated", "use percentage: {value: ...}");
        }
        if delay.exponential_delay.is_some() {
            let message = "is not supported, by Istio neither";
            sink.wrong(format!("{path}.exponentialDelay"), message, "use fixedDelay");
        } else if delay.fixed_delay.is_none() {
            sink.odd(&path, "has no fixedDelay, so no request is held", "add fixedDelay");
        }
    }
}

fn cors(cors: &CorsPolicy, path: &str, sink: &mut Sink<'_, '_>) {
    if !cors.allow_origin.is_empty() {
        sink.old(format!("{path}.allowOrigin"), "is deprecated", "use allowOrigins: [{exact: ...}]");
    }
    if cors.allow_origin.is_empty() && cors.allow_origins.is_empty() {
        sink.odd(path, "allows no origin, so no header is added", "add allowOrigins");
    }
    for (n, origin) in cors.allow_origins.iter().enumerate() {
        let path = format!("{path}.allowOrigins[{n}]");
        let texts = [&origin.exact, &origin.prefix, &origin.regex];
        if texts.iter().all(|text| text.as_deref().is_none_or(str::is_empty)) {
            sink.wrong(path, "is empty", "give it an exact, a prefix or a regex");
            continue;
        }
        string_match(origin, &path, true, false, sink);
    }
    for (n, method) in cors.allow_methods.iter().enumerate() {
        if !METHODS.contains(&method.as_str()) {
            let message = format!("`{method}` is no HTTP method");
            sink.wrong(format!("{path}.allowMethods[{n}]"), message, format!("write one of {}", METHODS.join(", ")));
        }
    }
    for (field, names) in [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)] {
        for (n, name) in names.iter().enumerate() {
            if name != "*" && !is_header_name(name) {
                let message = format!("`{name}` is not the name of a header");
                sink.wrong(format!("{path}.{field}[{n}]"), message, "write one name like x-user for each item");
            }
        }
    }
    if let Some(age) = cors.max_age
        && age.0.subsec_nanos() != 0
    {
        sink.wrong(format!("{path}.maxAge"), format!("is {age}; browsers count whole seconds"), "write whole seconds");
    }
}

/// Checks header operations; returns how often they set the authority.
fn headers(headers: &Headers, path: &str, sink: &mut Sink<'_, '_>) -> u32 {
    let mut authorities = 0;
    if let Some(request) = &headers.request {
        let path = format!("{path}.request");
        for (field, map) in [("set", &request.set), ("add", &request.add)] {
            authorities += map.keys().filter(|name| is_authority(name)).count();
            names(map, &format!("{path}.{field}"), true, sink);
        }
        removed(request, &path, sink);
    }
    if let Some(response) = &headers.response {
        let path = format!("{path}.response");
        names(&response.set, &format!("{path}.set"), false, sink);
        names(&response.add, &format!("{path}.add"), false, sink);
        removed(response, &path, sink);
    }
    u32::try_from(authorities).unwrap_or(u32::MAX)
}

fn names(map: &BTreeMap<String, String>, path: &str, may_set_authority: bool, sink: &mut Sink<'_, '_>) {
    for name in map.keys() {
        header_operation(name, &format!("{path}.{name}"), may_set_authority, sink);
    }
}

fn removed(operations: &HeaderOperations, path: &str, sink: &mut Sink<'_, '_>) {
    for (n, name) in operations.remove.iter().enumerate() {
        header_operation(name, &format!("{path}.remove[{n}]"), false, sink);
    }
}

fn header_operation(name: &str, path: &str, may_set_authority: bool, sink: &mut Sink<'_, '_>) {
    if is_authority(name) && may_set_authority {
        return;
    }
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        sink.wrong(path, format!("`{name}` can not be changed here"), "remove it; rewrite.authority changes the host");
    } else if !is_header_name(name) {
        sink.wrong(path, format!("`{name}` is not the name of a header"), "write a name like x-user");
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

/// A token, as RFC 9110 says of field names.
fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// The hosts of a VirtualService that are exact names.
pub(super) fn exact_hosts<'a>(one: &'a VirtualService<'_>) -> impl Iterator<Item = (usize, &'a str)> {
    one.hosts.iter().enumerate().map(|(n, host)| (n, &**host)).filter(|(_, host)| !is_wildcard(host))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{base, found_in_route as route, found_in_virtual_service as spec, ids};

    const TO: &str = "route: [{destination: {host: web}}]";

    #[test]
    fn fine_is_fine() {
        assert_eq!(ids(&base()), [""; 0]);
        for fine in [
            "match: [{uri: {prefix: ''}}], route: [{destination: {host: web}}]",
            "match: [{headers: {x-user: {}, cookie: {regex: '*'}}, withoutHeaders: {a: {regex: '*'}}}], route: [{destination: {host: web}}]",
            "route: [{destination: {host: web, subset: v1}, weight: 1}]",
            "route: [{destination: {host: web, subset: v1}, weight: 90}, {destination: {host: web, subset: v2}, weight: 10}]",
            "route: [{destination: {host: web}}], timeout: 3s, retries: {attempts: 2, perTryTimeout: 1s, retryOn: '5xx, reset,503'}",
            "route: [{destination: {host: web}}], fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}, abort: {httpStatus: 503}}",
            "route: [{destination: {host: web}}], headers: {request: {set: {':authority': x}, remove: [x-y]}}",
            "route: [{destination: {host: web}}], mirror: {host: web}, mirrorPercentage: {value: 5}",
            "redirect: {uri: /x}",
            "route: [{destination: {host: web}}], corsPolicy: {allowOrigins: [{exact: '*'}, {regex: '.*'}], allowMethods: [GET]}",
        ] {
            assert_eq!(route(fine), [], "{fine}");
        }
    }

    #[test]
    fn weights() {
        let two = |a: i32, b: i32| {
            route(&format!(
                "route: [{{destination: {{host: web, subset: v1}}, weight: {a}}}, {{destination: {{host: web, subset: v2}}, weight: {b}}}]"
            ))
        };
        assert_eq!(two(0, 0), [("IST0106", "spec.http[0].route".into())]);
        assert_eq!(two(1, 2), [("WEIR0101", "spec.http[0].route".into())]);
        assert_eq!(two(-1, 101), [("IST0106", "spec.http[0].route[0].weight".into())]);
        assert_eq!(two(100, 0), []);
    }

    #[test]
    fn a_field_is_found_where_it_is_wrong() {
        for (fields, code, path) in [
            ("match: [{uri: {regex: 'a(?=b)'}}]", "IST0106", "match[0].uri.regex"),
            ("match: [{uri: {regex: ''}}]", "IST0106", "match[0].uri.regex"),
            ("match: [{method: {prefix: ''}}]", "IST0106", "match[0].method.prefix"),
            ("match: [{uri: {exact: /a, prefix: /b}}]", "IST0106", "match[0].uri"),
            ("match: [{headers: {a.b: {regex: '['}}}]", "IST0106", "match[0].headers.a.b.regex"),
            ("match: [{headers: {uri: {exact: x}}}]", "WEIR0203", "match[0].headers.uri"),
            ("match: [{headers: {'a b': {exact: x}}}]", "IST0106", "match[0].headers.a b"),
            (
                "match: [{headers: {'@request.auth.claims.a': {exact: x}}}]",
                "IST0106",
                "match[0].headers.@request.auth.claims.a",
            ),
            ("match: [{queryParams: {q: {regex: 'a**'}}}]", "IST0106", "match[0].queryParams.q.regex"),
            ("match: [{uri: {regex: a}, ignoreUriCase: true}]", "WEIR0203", "match[0].ignoreUriCase"),
            ("match: [{port: 70000}]", "IST0106", "match[0].port"),
            ("match: [{gateways: [ns/gw]}]", "WEIR0201", "match[0].gateways"),
            ("match: [{sourceNamespace: A}]", "IST0106", "match[0].sourceNamespace"),
            ("timeout: 1s, retries: {attempts: 2, perTryTimeout: 2s}", "WEIR0107", "timeout"),
            ("retries: {attempts: 2, retryOn: 'connect_failure'}", "IST0106", "retries.retryOn"),
            ("retries: {attempts: 0, retryOn: 5xx}", "IST0106", "retries"),
            ("fault: {}", "IST0106", "fault"),
            ("fault: {abort: {percentage: {value: 5}}}", "IST0133", "fault.abort"),
            ("fault: {abort: {http2Error: X}}", "IST0106", "fault.abort.http2Error"),
            ("fault: {abort: {httpStatus: 500, grpcStatus: UNAVAILABLE}}", "IST0106", "fault.abort"),
            ("fault: {abort: {grpcStatus: NOPE}}", "IST0106", "fault.abort.grpcStatus"),
            ("fault: {delay: {exponentialDelay: 1s}}", "IST0106", "fault.delay.exponentialDelay"),
            ("fault: {delay: {percent: 5, fixedDelay: 1s}}", "IST0002", "fault.delay.percent"),
            ("fault: {delay: {percentage: {value: 5}}}", "IST0133", "fault.delay"),
            (
                "fault: {abort: {httpStatus: 500, percentage: {value: 0.00001}}}",
                "IST0106",
                "fault.abort.percentage.value",
            ),
            ("corsPolicy: {allowOrigins: [{regex: '*'}]}", "IST0106", "corsPolicy.allowOrigins[0].regex"),
            ("corsPolicy: {allowOrigin: ['*']}", "IST0002", "corsPolicy.allowOrigin"),
            ("corsPolicy: {allowMethods: [GET]}", "IST0133", "corsPolicy"),
            (
                "corsPolicy: {allowOrigins: [{exact: '*'}], allowMethods: [get]}",
                "IST0106",
                "corsPolicy.allowMethods[0]",
            ),
            (
                "corsPolicy: {allowOrigins: [{exact: '*'}], allowHeaders: ['a, b']}",
                "IST0106",
                "corsPolicy.allowHeaders[0]",
            ),
            ("corsPolicy: {allowOrigins: [{}]}", "IST0106", "corsPolicy.allowOrigins[0]"),
            ("corsPolicy: {allowOrigins: [{exact: '*'}], maxAge: 1500ms}", "IST0106", "corsPolicy.maxAge"),
            ("mirrorPercent: 5, mirror: {host: web}", "IST0002", "mirrorPercent"),
            ("mirrorPercentage: {value: 5}", "WEIR0203", "mirrorPercentage"),
            ("mirror: {host: web}, mirrors: [{destination: {host: web}}]", "IST0106", "mirrors"),
            ("rewrite: {}", "IST0106", "rewrite"),
            ("rewrite: {uri: /, uriRegexRewrite: {match: a, rewrite: b}}", "IST0106", "rewrite"),
            ("rewrite: {uriRegexRewrite: {match: '(', rewrite: b}}", "IST0106", "rewrite.uriRegexRewrite.match"),
            ("headers: {response: {set: {host: x}}}", "IST0106", "headers.response.set.host"),
            ("headers: {request: {remove: [':path']}}", "IST0106", "headers.request.remove[0]"),
            ("headers: {request: {set: {'a b': c}}}", "IST0106", "headers.request.set.a b"),
            ("rewrite: {authority: a}, headers: {request: {set: {host: x}}}", "IST0106", ""),
        ] {
            let path = format!("spec.http[0].{path}");
            let path = path.trim_end_matches('.');
            assert_eq!(route(&format!("{TO}, {fields}")), [(code, path.to_owned())], "{fields}");
        }
        let long = format!("{TO}, match: [{{uri: {{regex: '{}'}}}}]", "a".repeat(1025));
        assert_eq!(route(&long), [("IST0106", "spec.http[0].match[0].uri.regex".into())]);
    }

    #[test]
    fn what_answers_forwards_nothing() {
        for (fields, code, path) in [
            ("redirect: {uri: /x}, fault: {abort: {httpStatus: 500}}", "IST0106", "fault"),
            ("directResponse: {status: 200}, rewrite: {uri: /x}", "IST0106", "rewrite"),
            ("redirect: {uri: /x}, timeout: 1s", "WEIR0203", "timeout"),
            ("redirect: {}", "IST0106", "redirect"),
            ("redirect: {uri: /x, prefixRewrite: /y}", "IST0106", "redirect"),
            ("match: [{uri: {exact: /a}}], redirect: {prefixRewrite: /y}", "IST0106", "redirect.prefixRewrite"),
            ("redirect: {scheme: ftp}", "IST0106", "redirect.scheme"),
        ] {
            assert_eq!(route(fields), [(code, format!("spec.http[0].{path}"))], "{fields}");
        }
    }

    #[test]
    fn hosts_gateways_and_namespaces() {
        let http = format!("http: [{{{TO}}}]");
        for (fields, expected) in [
            (
                "hosts: ['*.example.com', a.example.com]",
                vec![("IST0106", "spec.hosts[1]"), ("WEIR0110", "spec.hosts[1]")],
            ),
            ("hosts: ['*']", vec![("IST0106", "spec.hosts[0]")]),
            ("hosts: ['*'], gateways: [ns/gw]", vec![("WEIR0201", "spec.gateways")]),
            (
                "hosts: [a.b], gateways: [mesh, ns/gw]",
                vec![("WEIR0201", "spec.gateways[1]"), ("WEIR0110", "spec.hosts[0]")],
            ),
            ("hosts: ['*.a.b'], exportTo: ['*', '.']", vec![("IST0106", "spec.exportTo[0]")]),
            ("hosts: ['*.a.b'], exportTo: ['.', shop]", vec![("IST0106", "spec.exportTo[1]")]),
            ("hosts: ['*.a.b'], exportTo: ['~']", vec![("IST0106", "spec.exportTo[0]")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(code, path)| (code, path.to_owned())).collect();
            let mut got = spec(&format!("{fields}, {http}"));
            got.sort_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0)));
            assert_eq!(got, expected, "{fields}");
        }
    }

    #[test]
    fn connections() {
        for (fields, code, path) in [
            (
                "tls: [{match: [{sniHosts: [c.d]}], route: [{destination: {host: web}}]}]",
                "IST0106",
                "tls[0].match[0].sniHosts[0]",
            ),
            (
                "tls: [{match: [{sniHosts: [10.0.0.1]}], route: [{destination: {host: web}}]}]",
                "IST0133",
                "tls[0].match[0].sniHosts[0]",
            ),
            (
                "tcp: [{match: [{sourceSubnet: 10.0.0.0/8}], route: [{destination: {host: web}}]}]",
                "WEIR0203",
                "tcp[0].match[0].sourceSubnet",
            ),
            (
                "tcp: [{match: [{gateways: [ns/gw]}], route: [{destination: {host: web}}]}]",
                "WEIR0201",
                "tcp[0].match[0].gateways",
            ),
            (
                "tcp: [{match: [{destinationSubnets: [10.0.0.0/33]}], route: [{destination: {host: web}}]}]",
                "IST0106",
                "tcp[0].match[0].destinationSubnets[0]",
            ),
            (
                "tcp: [{route: [{destination: {host: web, subset: v1}}, {destination: {host: web, subset: v2}}]}]",
                "IST0106",
                "tcp[0].route",
            ),
        ] {
            assert_eq!(spec(&format!("hosts: ['*.a.b'], {fields}")), [(code, format!("spec.{path}"))], "{fields}");
        }
        assert_eq!(
            spec("hosts: ['*.a.b'], tls: [{match: [{sniHosts: [x.a.b]}], route: [{destination: {host: web}}]}]"),
            []
        );
    }

    #[test]
    fn a_delegate_has_http_routes_alone() {
        let got = spec(&format!("gateways: [mesh], http: [{{{TO}}}], tcp: [{{{TO}}}]"));
        let expected = [("IST0106", "spec.gateways"), ("IST0106", "spec.tcp"), ("WEIR0108", "")];
        assert_eq!(got, expected.map(|(code, path)| (code, path.to_owned())));
    }
}
