//! Checks shared by several kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Diagnostics;
use crate::api::{Destination, Duration, Labels, Percent, PortSelector, ProblemKind, StringMatch};
use crate::envoy_validate::{re2, with_literal_percents};

/// Istio's limit for regular expressions; Envoy limits the size of the compiled program instead.
const LONGEST_EXPRESSION: usize = 1024;
/// Envoy's limit for header names and values. Source: `HeaderValue` in Envoy's protos.
const LONGEST_HEADER: usize = 16_384;

/// A DNS label: up to 63 letters, digits and `-`, starting and ending with a letter or digit.
pub(crate) fn is_dns_label(text: &str) -> bool {
    text.len() <= 63
        && has_alphanumeric_ends(text)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn has_alphanumeric_ends(text: &str) -> bool {
    let ends = [text.bytes().next(), text.bytes().last()];
    ends.into_iter().all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
}

/// A host that is valid in cluster names and virtual host domains: a DNS name whose first label may start with `*`, or
/// an IP address. Underscores are allowed, as by DNS servers.
pub(super) fn host_name(host: &str, path: &str, found: &mut Diagnostics) {
    if host.is_empty() {
        found.add(path, "is empty", "expected a host");
    } else if !is_host(host) {
        found.add(
            path,
            format!("`{host}` is not a host"),
            "expected a DNS name, a wildcard like *.example.com, or an IP address",
        );
    }
}

fn is_host(host: &str) -> bool {
    if host == "*" || is_address(host) {
        return true;
    }
    let rest =
        host.strip_prefix('*').map_or(host, |rest| rest.strip_prefix(['.', '-']).unwrap_or(rest));
    let parts = rest.strip_suffix('.').unwrap_or(rest);
    // A host that ends in a number is a malformed address.
    let numeric =
        parts.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && !(numeric && parts.contains('.')) && parts.split('.').all(is_host_label)
}

fn is_host_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Whether the lower-case host or wildcard `pattern` covers `host`.
pub(super) fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern == host,
        Some(end) => {
            host.strip_prefix('*').unwrap_or(host).ends_with(end) && host.len() >= pattern.len()
        }
    }
}

/// An IP address; IPv6 may be in brackets.
pub(super) fn is_address(text: &str) -> bool {
    let plain = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    text.parse::<IpAddr>().is_ok()
        || plain.is_some_and(|plain| plain.parse::<std::net::Ipv6Addr>().is_ok())
}

/// An IP address with an optional prefix length.
pub(super) fn subnet(text: &str, path: &str, found: &mut Diagnostics) {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let fits = match address.parse::<IpAddr>() {
        Ok(ip) => {
            length.is_empty() && !text.ends_with('/')
                || length.parse().is_ok_and(|n: u8| n <= if ip.is_ipv4() { 32 } else { 128 })
        }
        Err(_) => false,
    };
    if !fits {
        found.add(
            path,
            format!("`{text}` is not an address"),
            "expected one like 10.0.0.1 or 10.0.0.0/16",
        );
    }
}

/// A valid port.
pub(super) fn port(number: u32, path: &str, found: &mut Diagnostics) {
    if !(1..=65535).contains(&number) {
        found.add(path, format!("is {number}"), "expected 1 to 65535");
    }
}

/// The port of a match or endpoint; 0 means unset.
pub(super) fn port_or_none(number: Option<u32>, path: &str, found: &mut Diagnostics) {
    if let Some(number) = number.filter(|number| *number != 0) {
        port(number, path, found);
    }
}

/// The destination of a route.
pub(super) fn destination(to: Option<&Destination>, path: &str, found: &mut Diagnostics) {
    let Some(to) = to else {
        found.add(path, "is missing", "expected a map with host");
        return;
    };
    if to.host.is_empty() {
        found.add(format!("{path}.host"), "is missing", "expected the host of a service");
    } else if to.host == "*" {
        found.add(
            format!("{path}.host"),
            "is `*`",
            "expected the host of one service, or of a ServiceEntry",
        );
    } else {
        host_name(&to.host, &format!("{path}.host"), found);
    }
    if !to.subset.is_empty() {
        subset_name(&to.subset, &format!("{path}.subset"), found);
    }
    if let Some(PortSelector { number }) = to.port {
        port(number, &format!("{path}.port.number"), found);
    }
}

/// A subset name, which becomes part of cluster names.
pub(super) fn subset_name(name: &str, path: &str, found: &mut Diagnostics) {
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        found.add(
            path,
            format!("`{name}` is not a name"),
            "expected letters, digits, `-`, `_` and `.`",
        );
    }
}

/// The weights of several destinations. Envoy rejects a sum of 0; this disables the route but not the object.
pub(super) fn weights(
    all: impl ExactSizeIterator<Item = i32>,
    path: &str,
    found: &mut Diagnostics,
) {
    let (mut total, count) = (0_u64, all.len());
    let mut is_zero = count > 1;
    for (n, weight) in all.enumerate() {
        is_zero &= weight == 0;
        match u64::try_from(weight) {
            Ok(weight) => total += weight,
            Err(_) => {
                found.add(
                    format!("{path}[{n}].weight"),
                    format!("is {weight}"),
                    "expected a weight of 0 or more",
                );
            }
        }
    }
    if total > u64::from(u32::MAX) {
        found.add(
            path,
            format!("has weights that sum to {total}"),
            format!("expected at most {}", u32::MAX),
        );
    }
    if is_zero {
        let message =
            format!("has {count} destinations, all with weight 0: no request reaches any of them");
        found.warn(
            ProblemKind::DeadRoute,
            path,
            message,
            "expected a weight above 0 for at least one",
        );
    }
}

/// A percentage.
pub(super) fn percent(percent: Option<Percent>, path: &str, found: &mut Diagnostics) {
    if let Some(Percent { value }) = percent {
        let path = format!("{path}.value");
        percentage(value, &path, found);
        // Envoy counts in millionths.
        if value > 0.0 && value < 0.0001 {
            found.suspicious(
                path,
                format!("is {value}, below Envoy's resolution"),
                "expected 0, or at least 0.0001",
            );
        }
    }
}

/// A percentage as a plain number.
pub(super) fn percentage(value: f64, path: &str, found: &mut Diagnostics) {
    if !(0.0..=100.0).contains(&value) {
        found.add(path, format!("is {value}"), "expected 0 to 100");
    }
}

/// An integer percentage.
pub(super) fn whole_percent(value: i32, path: &str, found: &mut Diagnostics) {
    if !(0..=100).contains(&value) {
        found.add(path, format!("is {value}"), "expected 0 to 100");
    }
}

/// A number that must not be negative; 0 means unset.
pub(super) fn not_negative(value: i32, path: &str, found: &mut Diagnostics) {
    if value < 0 {
        found.add(path, format!("is {value}"), "expected 0 or more");
    }
}

/// A duration that Envoy counts in milliseconds and that must not be 0.
pub(super) fn at_least_one_ms(duration: Option<Duration>, path: &str, found: &mut Diagnostics) {
    if let Some(duration) = duration
        && duration.0.as_millis() == 0
    {
        found.add(path, format!("is {duration}"), "expected 1ms or more");
    }
}

/// At most one of the members of a oneof.
pub(super) fn at_most_one_of(members: &[(&str, bool)], path: &str, found: &mut Diagnostics) {
    let given: Vec<&str> =
        members.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if given.len() > 1 {
        found.add(path, format!("has {}", given.join(" and ")), "only one of them may be set");
    }
}

/// A string match. An empty prefix or expression is rejected unless `or_empty_prefix`; the expression `*` matches any
/// value.
pub(super) fn string_match(
    matcher: &StringMatch,
    or_empty_prefix: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    let members = [
        ("exact", matcher.exact.is_some()),
        ("prefix", matcher.prefix.is_some()),
        ("regex", matcher.regex.is_some()),
    ];
    at_most_one_of(&members, path, found);
    if matcher.prefix.as_ref().is_some_and(String::is_empty) && !or_empty_prefix {
        found.add(format!("{path}.prefix"), "is empty", "expected a string prefix");
    }
    for (name, text) in [("exact", &matcher.exact), ("prefix", &matcher.prefix)] {
        if let Some(text) = text {
            one_line(text, &format!("{path}.{name}"), found);
        }
    }
    if let Some(regex) = matcher.regex.as_ref().filter(|regex| *regex != "*") {
        expression(regex, &format!("{path}.regex"), found);
    }
}

/// A regular expression.
pub(super) fn expression(text: &str, path: &str, found: &mut Diagnostics) {
    if text.is_empty() {
        found.expression(path, "is empty", "expected an RE2 expression");
    } else if text.len() > LONGEST_EXPRESSION {
        let advice = format!(
            "expected at most {LONGEST_EXPRESSION}; split the expression into several matches of the route"
        );
        found.expression(path, format!("has {} bytes", text.len()), advice);
    } else if let Err(reason) = re2::check(text) {
        let advice = if text == "*" {
            "use .* to match any string"
        } else {
            "Envoy uses RE2 syntax, not Perl's: see github.com/google/re2/wiki/Syntax"
        };
        found.expression(path, format!("`{text}` is not an RE2 expression: {reason}"), advice);
    }
}

/// A string that is copied into HTTP.
pub(super) fn one_line(text: &str, path: &str, found: &mut Diagnostics) {
    if text.contains(['\0', '\r', '\n']) {
        found.add(path, "has a line break or a zero byte", "expected a single line");
    }
}

/// The name of a header.
pub(super) fn header_name(name: &str, path: &str, found: &mut Diagnostics) {
    if name.is_empty() {
        found.add(path, "has an empty name", "expected a header name");
    } else if name.len() > LONGEST_HEADER
        || !name.strip_prefix(':').unwrap_or(name).bytes().all(is_token_character)
    {
        found.add(
            path,
            format!("`{name}` is not a header name"),
            "expected letters, digits and `-`",
        );
    }
}

/// Source: RFC 9110, 5.6.2.
fn is_token_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A header value. A literal `%` is allowed because the translation escapes it.
pub(super) fn header_value(value: &str, path: &str, found: &mut Diagnostics) {
    if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
        found.add(path, "has a control character", "expected a single line");
        return;
    }
    let written = with_literal_percents(value);
    if written.len() > LONGEST_HEADER {
        found.add(
            path,
            format!("has {} bytes", written.len()),
            format!("expected at most {LONGEST_HEADER}"),
        );
    } else if written != value {
        found.suspicious(
            path,
            format!("`{value}` has a % that does not start an Envoy command"),
            "use %% for a literal %",
        );
    }
}

/// Whether this can be the name of a label: a qualified name, optionally after a DNS domain and a slash.
pub(crate) fn is_label_name(text: &str) -> bool {
    let (prefix, name) =
        text.rsplit_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_dns_domain) && name.len() <= 63 && is_qualified(name)
}

fn is_dns_domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Whether this can be the value of a label.
pub(crate) fn is_label_value(text: &str) -> bool {
    text.is_empty() || text.len() <= 63 && is_qualified(text)
}

/// Valid labels.
pub(super) fn labels(all: &Labels, path: &str, found: &mut Diagnostics) {
    for (name, value) in all {
        if !is_label_name(name) {
            found.add(
                path,
                format!("`{name}` is not a label name"),
                "expected one like app or example.com/app",
            );
        } else if !is_label_value(value) {
            found.add(
                format!("{path}.{name}"),
                format!("`{value}` is not a label value"),
                "expected letters, digits, `-`, `_` and `.`",
            );
        }
    }
}

fn is_qualified(text: &str) -> bool {
    has_alphanumeric_ends(text)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A workload selector, which does not support wildcards.
pub(super) fn selector(labels: &Labels, path: &str, found: &mut Diagnostics) {
    if labels.is_empty() {
        found.suspicious(
            path,
            "is empty, so it selects every workload of the namespace",
            "add labels, or remove the selector",
        );
    }
    for (name, value) in labels {
        if name.is_empty() || name.contains('*') || value.contains('*') {
            found.add(
                path,
                format!("`{name}: {value}` is not a label"),
                "expected a name and a value without \
                wildcards",
            );
        }
    }
}

/// `exportTo`.
pub(super) fn export_to(
    names: &[String],
    own: &str,
    is_service: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    let mut seen = BTreeSet::new();
    for (n, name) in names.iter().enumerate() {
        let path = format!("{path}[{n}]");
        let known =
            matches!(name.as_str(), "*" | ".") || (is_service && name == "~") || is_dns_label(name);
        let meant = if name == "." { own } else { name };
        if !known {
            let also = if is_service { ", `~`" } else { "" };
            found.add(
                path,
                format!("is `{name}`"),
                format!("expected `*`, `.`{also} or a namespace"),
            );
        } else if !seen.insert(meant) {
            found.add(path, format!("`{name}` appears twice"), "expected each namespace once");
        } else if matches!(name.as_str(), "*" | "~") && names.len() > 1 {
            found.add(
                path,
                format!("`{name}` is combined with other entries"),
                "expected it as the only entry",
            );
        }
    }
}

/// Gateway names: `mesh`, `NAMESPACE/NAME`, or a legacy host.
pub(super) fn gateways(names: &[String], path: &str, found: &mut Diagnostics) {
    for (n, name) in names.iter().enumerate() {
        let fits = match name.split_once('/') {
            Some((namespace, name)) => is_dns_label(namespace) && is_dns_label(name),
            None => name.split('.').all(is_dns_label),
        };
        if !fits {
            found.add(
                format!("{path}[{n}]"),
                format!("is `{name}`"),
                "expected `mesh`, NAME or NAMESPACE/NAME",
            );
        }
    }
}

/// The name of a port.
pub(super) fn port_name(name: &str, path: &str, found: &mut Diagnostics) {
    if name.is_empty() {
        found.add(path, "is missing", "expected a name");
    } else if !is_dns_label(name) {
        found.add(path, format!("`{name}` is not a port name"), "expected letters, digits and `-`");
    }
}

/// The protocol of a port; empty means automatic detection.
pub(super) fn protocol(name: &str, path: &str, found: &mut Diagnostics) {
    const KNOWN: [&str; 12] = [
        "tcp",
        "udp",
        "grpc",
        "grpc-web",
        "http",
        "http_proxy",
        "http2",
        "https",
        "tls",
        "mongo",
        "redis",
        "mysql",
    ];
    if !name.is_empty() && !KNOWN.contains(&name.to_ascii_lowercase().as_str()) {
        found.add(
            path,
            format!("is `{name}`"),
            "expected HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO or REDIS",
        );
    }
}

/// Endpoint ports by name.
pub(super) fn named_ports(ports: &BTreeMap<String, u32>, path: &str, found: &mut Diagnostics) {
    for (name, number) in ports {
        port_name(name, path, found);
        port(*number, &format!("{path}.{name}"), found);
    }
}
