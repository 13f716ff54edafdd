//! Rules that fields of several kinds share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Findings;
use crate::api::{Destination, Duration, Labels, Percent, PortSelector, ProblemKind, StringMatch};
use crate::proto_rules::{re2, with_literal_percents};

/// The most that Istio lets an expression be; Envoy counts the size of the compiled program instead.
const LONGEST_EXPRESSION: usize = 1024;
/// The most that Envoy takes of a header's name or value. Source: `HeaderValue` in Envoy's protos.
const LONGEST_HEADER: usize = 16_384;

/// A name as DNS knows its parts: letters, digits and `-`, at most 63, a letter or digit at both ends.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let ends = |end: Option<u8>| end.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.bytes().next())
        && ends(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A name that can stand in a cluster's name and in a virtual host's domains: a DNS name, of which the first part may be
/// `*` or begin with it, or an IP address. Underscores are taken, which DNS servers take as well.
pub(super) fn host_name(host: &str, path: &str, found: &mut Findings) {
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
    let rest = host.strip_prefix('*').map_or(host, |rest| rest.strip_prefix(['.', '-']).unwrap_or(rest));
    let parts = rest.strip_suffix('.').unwrap_or(rest);
    // What ends in a number is meant as an address, and is none.
    let numeric = parts.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    let plain = |part: &str| {
        (1..=63).contains(&part.len())
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    host.len() <= 253 && !(numeric && parts.contains('.')) && parts.split('.').all(plain)
}

/// Whether the host or wildcard `pattern`, in lower case, covers `host`.
pub(super) fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern == host,
        Some(end) => host.strip_prefix('*').unwrap_or(host).ends_with(end) && host.len() >= pattern.len(),
    }
}

/// An IP address; IPv6 also in brackets.
pub(super) fn is_address(text: &str) -> bool {
    let plain = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    text.parse::<IpAddr>().is_ok() || plain.is_some_and(|plain| plain.parse::<std::net::Ipv6Addr>().is_ok())
}

/// An IP address, with or without a prefix length.
pub(super) fn subnet(text: &str, path: &str, found: &mut Findings) {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let fits = match address.parse::<IpAddr>() {
        Ok(ip) => {
            length.is_empty() && !text.ends_with('/')
                || length.parse().is_ok_and(|n: u8| n <= if ip.is_ipv4() { 32 } else { 128 })
        }
        Err(_) => false,
    };
    if !fits {
        found.add(path, format!("`{text}` is not an address"), "expected one like 10.0.0.1 or 10.0.0.0/16");
    }
}

/// A port that can be used.
pub(super) fn port(number: u32, path: &str, found: &mut Findings) {
    if !(1..=65535).contains(&number) {
        found.add(path, format!("is {number}"), "expected 1 to 65535");
    }
}

/// The port of a match or of an endpoint; 0 means none.
pub(super) fn port_or_none(number: Option<u32>, path: &str, found: &mut Findings) {
    if let Some(number) = number.filter(|number| *number != 0) {
        port(number, path, found);
    }
}

/// Where a route leads.
pub(super) fn destination(to: Option<&Destination>, path: &str, found: &mut Findings) {
    let Some(to) = to else {
        found.add(path, "is missing", "expected a map with host");
        return;
    };
    if to.host.is_empty() {
        found.add(format!("{path}.host"), "is missing", "expected the host of a service");
    } else if to.host == "*" {
        found.add(format!("{path}.host"), "is `*`", "expected the host of one service, or of a ServiceEntry");
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

/// A subset's name, which stands in names of clusters.
pub(super) fn subset_name(name: &str, path: &str, found: &mut Findings) {
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        found.add(path, format!("`{name}` is not a name"), "expected letters, digits, `-`, `_` and `.`");
    }
}

/// The shares of several destinations. Envoy takes no sum of 0; that one route is out then, and not the object.
pub(super) fn weights(all: impl ExactSizeIterator<Item = i32>, path: &str, found: &mut Findings) {
    let (mut total, count) = (0_u64, all.len());
    let mut is_zero = count > 1;
    for (n, weight) in all.enumerate() {
        is_zero &= weight == 0;
        match u64::try_from(weight) {
            Ok(weight) => total += weight,
            Err(_) => {
                found.add(format!("{path}[{n}].weight"), format!("is {weight}"), "expected a weight of 0 or more");
            }
        }
    }
    if total > u64::from(u32::MAX) {
        found.add(path, format!("has weights that sum to {total}"), format!("expected at most {}", u32::MAX));
    }
    if is_zero {
        let message = format!("has {count} destinations, all of weight 0: no request reaches any of them");
        found.warn(ProblemKind::DeadRoute, path, message, "expected a weight above 0 for at least one");
    }
}

/// A share in percent.
pub(super) fn percent(percent: Option<Percent>, path: &str, found: &mut Findings) {
    if let Some(Percent { value }) = percent {
        let path = format!("{path}.value");
        percentage(value, &path, found);
        // Shares are counted in millionths.
        if value > 0.0 && value < 0.0001 {
            found.odd(path, format!("is {value}, which is less than can be counted"), "expected 0, or 0.0001 and more");
        }
    }
}

/// A share in percent, as a plain number.
pub(super) fn percentage(value: f64, path: &str, found: &mut Findings) {
    if !(0.0..=100.0).contains(&value) {
        found.add(path, format!("is {value}"), "expected 0 to 100");
    }
}

/// A share in whole percent.
pub(super) fn whole_percent(value: i32, path: &str, found: &mut Findings) {
    if !(0..=100).contains(&value) {
        found.add(path, format!("is {value}"), "expected 0 to 100");
    }
}

/// A number that must not be negative; 0 means that nothing is said.
pub(super) fn not_negative(value: i32, path: &str, found: &mut Findings) {
    if value < 0 {
        found.add(path, format!("is {value}"), "expected 0 or more");
    }
}

/// A time that Envoy counts in milliseconds and does not take as 0.
pub(super) fn at_least_one_ms(duration: Option<Duration>, path: &str, found: &mut Findings) {
    if let Some(duration) = duration
        && duration.0.as_millis() == 0
    {
        found.add(path, format!("is {duration}"), "expected 1ms or more");
    }
}

/// At most one of the members of a oneof.
pub(super) fn only_one(members: &[(&str, bool)], path: &str, found: &mut Findings) {
    let given: Vec<&str> = members.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if given.len() > 1 {
        found.add(path, format!("has {}", given.join(" and ")), "expected only one of them");
    }
}

/// How a text is compared. An empty prefix or expression is refused unless `or_empty_prefix`; `*` as an expression means
/// that there is a value.
pub(super) fn string_match(one: &StringMatch, or_empty_prefix: bool, path: &str, found: &mut Findings) {
    let members = [("exact", one.exact.is_some()), ("prefix", one.prefix.is_some()), ("regex", one.regex.is_some())];
    only_one(&members, path, found);
    if one.prefix.as_ref().is_some_and(String::is_empty) && !or_empty_prefix {
        found.add(format!("{path}.prefix"), "is empty", "expected the beginning of a text");
    }
    for (name, text) in [("exact", &one.exact), ("prefix", &one.prefix)] {
        if let Some(text) = text {
            one_line(text, &format!("{path}.{name}"), found);
        }
    }
    if let Some(regex) = one.regex.as_ref().filter(|regex| *regex != "*") {
        expression(regex, &format!("{path}.regex"), found);
    }
}

/// A regular expression.
pub(super) fn expression(text: &str, path: &str, found: &mut Findings) {
    if text.is_empty() {
        found.expression(path, "is empty", "expected an RE2 expression");
    } else if text.len() > LONGEST_EXPRESSION {
        let advice =
            format!("expected an expression of at most {LONGEST_EXPRESSION}; several matches can share a route");
        found.expression(path, format!("has {} bytes", text.len()), advice);
    } else if let Err(reason) = re2::check(text) {
        let advice = if text == "*" {
            "write .* for any text"
        } else {
            "Envoy takes RE2, not Perl's syntax: see github.com/google/re2/wiki/Syntax"
        };
        found.expression(path, format!("`{text}` is no RE2 expression: {reason}"), advice);
    }
}

/// A text that goes into HTTP as it is.
pub(super) fn one_line(text: &str, path: &str, found: &mut Findings) {
    if text.contains(['\0', '\r', '\n']) {
        found.add(path, "has a line break or a zero byte", "expected a text of one line");
    }
}

/// The name of a header.
pub(super) fn header_name(name: &str, path: &str, found: &mut Findings) {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() {
        found.add(path, "has an empty name", "expected the name of a header");
    } else if name.len() > LONGEST_HEADER || !name.strip_prefix(':').unwrap_or(name).bytes().all(is_token) {
        found.add(path, format!("`{name}` is not the name of a header"), "expected letters, digits and `-`");
    }
}

/// The value of a header. A `%` may stand for itself: it is written as Envoy needs it.
pub(super) fn header_value(value: &str, path: &str, found: &mut Findings) {
    if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
        found.add(path, "has a control character", "expected a text of one line");
        return;
    }
    let written = with_literal_percents(value);
    if written.len() > LONGEST_HEADER {
        found.add(path, format!("has {} bytes", written.len()), format!("expected at most {LONGEST_HEADER}"));
    } else if written != value {
        found.odd(
            path,
            format!("`{value}` has a % that begins no command of Envoy's"),
            "write %% if a % is meant; it is sent as such",
        );
    }
}

/// Labels that something can have.
pub(super) fn labels(all: &Labels, path: &str, found: &mut Findings) {
    for (name, value) in all {
        let (prefix, plain) =
            name.rsplit_once('/').map_or((None, name.as_str()), |(prefix, name)| (Some(prefix), name));
        let good_prefix = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_dns_label));
        if !good_prefix || plain.len() > 63 || !is_qualified(plain) {
            found.add(path, format!("`{name}` is not the name of a label"), "expected one like app or example.com/app");
        } else if !value.is_empty() && !is_qualified(value) {
            found.add(
                format!("{path}.{name}"),
                format!("`{value}` is not the value of a label"),
                "expected letters, digits, `-`, `_` and `.`",
            );
        }
    }
}

fn is_qualified(text: &str) -> bool {
    let ends = |end: Option<u8>| end.is_some_and(|b| b.is_ascii_alphanumeric());
    ends(text.bytes().next())
        && ends(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A selector of workloads, whose labels know no wildcards.
pub(super) fn selector(labels: &Labels, path: &str, found: &mut Findings) {
    if labels.is_empty() {
        found.odd(
            path,
            "is empty, so it selects every workload of the namespace",
            "add labels, or remove the selector",
        );
    }
    for (name, value) in labels {
        if name.is_empty() || name.contains('*') || value.contains('*') {
            found.add(path, format!("`{name}: {value}` is no label"), "expected a name and a value without wildcards");
        }
    }
}

/// The namespaces that see an object.
pub(super) fn export_to(names: &[String], own: &str, is_service: bool, path: &str, found: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (n, name) in names.iter().enumerate() {
        let path = format!("{path}[{n}]");
        let known = matches!(name.as_str(), "*" | ".") || (is_service && name == "~") || is_dns_label(name);
        let meant = if name == "." { own } else { name };
        if !known {
            let also = if is_service { ", `~`" } else { "" };
            found.add(path, format!("is `{name}`"), format!("expected `*`, `.`{also} or the name of a namespace"));
        } else if !seen.insert(meant) {
            found.add(path, format!("`{name}` stands twice"), "expected each namespace once");
        } else if matches!(name.as_str(), "*" | "~") && names.len() > 1 {
            found.add(path, format!("`{name}` stands beside others"), "expected it alone");
        }
    }
}

/// Gateways by name: `mesh`, `NAMESPACE/NAME`, or a host in the old form.
pub(super) fn gateways(names: &[String], path: &str, found: &mut Findings) {
    for (n, name) in names.iter().enumerate() {
        let fits = match name.split_once('/') {
            Some((namespace, name)) => is_dns_label(namespace) && is_dns_label(name),
            None => name.split('.').all(is_dns_label),
        };
        if !fits {
            found.add(format!("{path}[{n}]"), format!("is `{name}`"), "expected `mesh`, NAME or NAMESPACE/NAME");
        }
    }
}

/// The name of a port.
pub(super) fn port_name(name: &str, path: &str, found: &mut Findings) {
    if name.is_empty() {
        found.add(path, "is missing", "expected a name");
    } else if !is_dns_label(name) {
        found.add(path, format!("`{name}` is not the name of a port"), "expected letters, digits and `-`");
    }
}

/// What is spoken over a port; nothing means that it is found out.
pub(super) fn protocol(name: &str, path: &str, found: &mut Findings) {
    const KNOWN: [&str; 12] =
        ["tcp", "udp", "grpc", "grpc-web", "http", "http_proxy", "http2", "https", "tls", "mongo", "redis", "mysql"];
    if !name.is_empty() && !KNOWN.contains(&name.to_ascii_lowercase().as_str()) {
        found.add(
            path,
            format!("is `{name}`"),
            "expected HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO or REDIS",
        );
    }
}

/// Ports of an endpoint, by name.
pub(super) fn named_ports(ports: &BTreeMap<String, u32>, path: &str, found: &mut Findings) {
    for (name, number) in ports {
        port_name(name, path, found);
        port(*number, &format!("{path}.{name}"), found);
    }
}
