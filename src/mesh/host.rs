//! Hosts: full names, short names and wildcards.

use std::sync::Arc;

/// A host in lower case: a full name, or a wildcard (`*` or `*.example.com`).
pub(crate) type Host = Arc<str>;

/// Resolves a host as written by an object in `namespace`: a name without a dot is a service of that namespace; a name
/// with a dot, a wildcard or an address is used as is. Hosts compare case-insensitively, so the result is lower-case.
pub fn resolve(host: &str, namespace: &str, domain: &str) -> Host {
    let host = without_brackets(host).to_ascii_lowercase();
    if host.contains('.') || host.contains('*') || host.contains(':') || host.is_empty() {
        host.into()
    } else {
        format!("{host}.{namespace}.svc.{domain}").into()
    }
}

/// The name and the namespace in a host of the form `NAME.NAMESPACE.svc.DOMAIN`, whichever object defines it. Clients in
/// that namespace may omit all but the name.
pub(crate) fn name_and_namespace<'a>(host: &'a str, domain: &str) -> Option<(&'a str, &'a str)> {
    let short = host.strip_suffix(domain)?.strip_suffix(".svc.")?;
    short.split_once('.').filter(|(_, namespace)| !namespace.contains('.'))
}

/// A host without the brackets in which an IPv6 address is written before a port.
pub(crate) fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

/// Whether `host` is a wildcard.
pub(crate) fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

/// Whether `pattern`, exact or a wildcard, covers `host`. A wildcard covers any longer name with the same suffix,
/// including other wildcards.
pub(crate) fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern == host,
        Some(suffix) => {
            host.strip_prefix('*').unwrap_or(host).ends_with(suffix) && host.len() >= pattern.len()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_read_in_their_namespace() {
        assert_eq!(&*resolve("Web", "shop", "cluster.local"), "web.shop.svc.cluster.local");
        assert_eq!(&*resolve("web.shop", "pay", "cluster.local"), "web.shop");
        assert_eq!(&*resolve("*", "pay", "cluster.local"), "*");
        for address in ["2001:DB8::77", "[2001:db8::77]"] {
            assert_eq!(&*resolve(address, "shop", "cluster.local"), "2001:db8::77");
        }
    }

    #[test]
    fn wildcards_cover_longer_names() {
        assert!(covers("*.example.com", "a.example.com"));
        assert!(covers("*.example.com", "*.a.example.com"));
        assert!(covers("*", "anything"));
        assert!(!covers("*.example.com", "example.com"));
        assert!(covers("a.b", "a.b") && !covers("a.b", "*.b"));
    }
}
