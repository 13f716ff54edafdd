//! Finds unreachable routes and matches, which earlier ones cover completely.
//!
//! A match is split into its path and its other conditions. One match covers another if its path covers the other's
//! path and its other conditions are equal or empty. This uses lookups instead of pairwise comparison.

use std::collections::{HashMap, HashSet};

use super::index::IndexedVirtualService;
use super::{Findings, code};
use crate::api::HttpMatchRequest;

/// The paths that a match accepts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Paths {
    /// All paths with this prefix; empty for all paths.
    Prefix(String),
    Exact(String),
    Regex(String),
}

impl Paths {
    fn of(request_match: &HttpMatchRequest) -> Self {
        let Some(uri) = &request_match.uri else {
            return Paths::Prefix(String::new());
        };
        let mut paths = match (&uri.exact, &uri.prefix, &uri.regex) {
            (Some(exact), ..) => Paths::Exact(exact.clone()),
            // Every path starts with `/`.
            (_, Some(prefix), _) if prefix == "/" => Paths::Prefix(String::new()),
            (_, Some(prefix), _) => Paths::Prefix(prefix.clone()),
            (_, _, Some(regex)) if matches!(regex.as_str(), ".*" | "/.*" | "*") => {
                Paths::Prefix(String::new())
            }
            (_, _, Some(regex)) => Paths::Regex(regex.clone()),
            _ => Paths::Prefix(String::new()),
        };
        if let Paths::Exact(text) | Paths::Prefix(text) = &mut paths
            && request_match.ignore_uri_case
        {
            text.make_ascii_lowercase();
        }
        paths
    }
}

/// A canonical string of all conditions except the path; empty if there are none.
fn conditions(request_match: &HttpMatchRequest) -> String {
    let mut rest = request_match.clone();
    rest.name.clear();
    rest.stat_prefix.clear();
    rest.uri = None;
    rest.ignore_uri_case = false;
    if rest.gateways.iter().any(|name| name == "mesh") {
        rest.gateways.clear();
    }
    let case = request_match.ignore_uri_case
        && request_match.uri.as_ref().is_some_and(|uri| uri.regex.is_none());
    if rest == HttpMatchRequest::default() && !case {
        String::new()
    } else {
        format!("{case} {rest:?}")
    }
}

/// Earlier matches with the same conditions, by path.
type EarlierMatches = HashMap<Paths, String>;

/// The earlier match that covers all of these paths.
fn covering_match<'a>(seen: &'a EarlierMatches, paths: &Paths) -> Option<&'a String> {
    if let Some(found) = seen.get(paths).or_else(|| seen.get(&Paths::Prefix(String::new()))) {
        return Some(found);
    }
    let (Paths::Prefix(text) | Paths::Exact(text)) = paths else {
        return None;
    };
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    ends.filter_map(|end| text.get(..end))
        .find_map(|start| seen.get(&Paths::Prefix(start.to_owned())))
}

pub(super) fn check(virtual_service: &IndexedVirtualService<'_>, found: &mut Findings) {
    http(virtual_service, found);
    let tls: Vec<Vec<String>> = virtual_service
        .spec
        .tls
        .iter()
        .map(|route| {
            route.matches.iter().map(|request_match| format!("{request_match:?}")).collect()
        })
        .collect();
    connections(virtual_service, "tls", &tls, found);
    let tcp = virtual_service.spec.tcp.iter().map(|route| {
        let empty = format!("{:?}", crate::api::L4MatchAttributes::default());
        let texts = route.matches.iter().map(|request_match| format!("{request_match:?}"));
        if route.matches.is_empty() {
            vec![String::new()]
        } else {
            texts.map(|text| text.replace(&empty, "")).collect()
        }
    });
    let tcp: Vec<_> = tcp.collect();
    connections(virtual_service, "tcp", &tcp, found);
}

fn http(virtual_service: &IndexedVirtualService<'_>, found: &mut Findings) {
    let mut seen: HashMap<String, EarlierMatches> = HashMap::new();
    let all = [HttpMatchRequest::default()];
    for (n, route) in virtual_service.spec.http.iter().enumerate() {
        let path = format!("spec.http[{n}]");
        let matches = if route.matches.is_empty() { &all[..] } else { &route.matches };
        let mut covered = Vec::new();
        for (m, matched) in matches.iter().enumerate() {
            let (paths, conditions) = (Paths::of(matched), conditions(matched));
            let own = seen.get(&conditions).and_then(|seen| covering_match(seen, &paths));
            // A case-insensitive path is covered by a case-sensitive match only if that accepts all paths.
            let any =
                if matched.ignore_uri_case { Paths::Prefix(String::new()) } else { paths.clone() };
            if let Some(by) =
                own.or_else(|| seen.get("").and_then(|seen| covering_match(seen, &any)))
            {
                covered.push((m, by.clone()));
                continue;
            }
            // Requests that match no route of a delegate continue with the next route.
            if route.delegate.is_none() {
                let place = if route.matches.is_empty() {
                    path.clone()
                } else {
                    format!("{path}.match[{m}]")
                };
                seen.entry(conditions).or_default().insert(paths, place);
            }
        }
        report(virtual_service, &path, matches.len(), &covered, found);
    }
}

/// The same for TLS and TCP, where matches are only compared for equality; an empty string covers everything.
fn connections(
    virtual_service: &IndexedVirtualService<'_>,
    field: &str,
    routes: &[Vec<String>],
    found: &mut Findings,
) {
    let mut seen: HashMap<&str, String> = HashMap::new();
    for (n, matches) in routes.iter().enumerate() {
        let path = format!("spec.{field}[{n}]");
        let mut covered = Vec::new();
        for (m, text) in matches.iter().enumerate() {
            match seen.get("").or_else(|| seen.get(text.as_str())) {
                Some(by) => covered.push((m, by.clone())),
                None => {
                    let place =
                        if text.is_empty() { path.clone() } else { format!("{path}.match[{m}]") };
                    seen.insert(text, place);
                }
            }
        }
        report(virtual_service, &path, matches.len(), &covered, found);
    }
}

fn report(
    virtual_service: &IndexedVirtualService<'_>,
    path: &str,
    matches: usize,
    covered: &[(usize, String)],
    found: &mut Findings,
) {
    let advice = "move the more specific one up, or remove it";
    if covered.len() == matches {
        let mut by: Vec<&str> = covered.iter().map(|(_, by)| &**by).collect();
        let mut once = HashSet::new();
        by.retain(|by| once.insert(*by));
        let message = format!(
            "this route is unreachable: {} before it matches all of its requests",
            by.join(" and ")
        );
        found.add(&code::UNREACHABLE, virtual_service.entry, path, message, advice);
        return;
    }
    for (m, by) in covered {
        let message =
            format!("this match is unreachable: {by} before it matches all of its requests");
        found.add(
            &code::INEFFECTIVE_MATCH,
            virtual_service.entry,
            format!("{path}.match[{m}]"),
            message,
            advice,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::found_in_virtual_service as spec;

    fn http(routes: &[&str]) -> Vec<(&'static str, String)> {
        let to = "route: [{destination: {host: web}}]";
        let routes: Vec<_> = routes
            .iter()
            .map(|route| format!("{{match: [{route}], {to}}}").replace("match: [], ", ""))
            .collect();
        spec(&format!("hosts: ['*.a.b'], http: [{}]", routes.join(", ")))
    }

    #[test]
    fn matches_after_a_catch_all_are_unreachable() {
        for all in
            ["", "{uri: {prefix: /}}", "{uri: {regex: '.*'}}", "{name: x}", "{gateways: [mesh]}"]
        {
            assert_eq!(http(&["{uri: {prefix: /a}}", all]), [], "{all}");
            assert_eq!(
                http(&[all, "{uri: {prefix: /a}}"]),
                [("IST0130", "spec.http[1]".into())],
                "{all}"
            );
        }
        assert_eq!(http(&["", ""]), [("IST0130", "spec.http[1]".into())]);
        assert_eq!(http(&["{uri: {prefix: /}, method: {exact: GET}}", "{uri: {prefix: /a}}"]), []);
        assert_eq!(http(&["{sourceLabels: {app: x}}", "{uri: {prefix: /a}}"]), []);
    }

    #[test]
    fn a_prefix_covers_longer_paths() {
        for (first, second, is_covered) in [
            ("{uri: {prefix: /a}}", "{uri: {prefix: /a}}", true),
            ("{uri: {prefix: /a}}", "{uri: {prefix: /ab}}", true),
            ("{uri: {prefix: /a}}", "{uri: {exact: /a/b}, method: {exact: GET}}", true),
            ("{uri: {prefix: /ab}}", "{uri: {prefix: /a}}", false),
            ("{uri: {exact: /a}}", "{uri: {prefix: /a}}", false),
            ("{uri: {exact: /a}}", "{uri: {exact: /a}, headers: {x: {exact: z}}}", true),
            (
                "{uri: {prefix: /a}, method: {exact: GET}}",
                "{uri: {prefix: /ab}, method: {exact: GET}}",
                true,
            ),
            (
                "{uri: {prefix: /a}, method: {exact: GET}}",
                "{uri: {prefix: /ab}, method: {exact: PUT}}",
                false,
            ),
            ("{uri: {prefix: /a}, method: {exact: GET}}", "{uri: {prefix: /ab}}", false),
            (
                "{uri: {prefix: /a}, ignoreUriCase: true}",
                "{uri: {prefix: /AB}, ignoreUriCase: true}",
                true,
            ),
            ("{uri: {prefix: /a}}", "{uri: {prefix: /A}, ignoreUriCase: true}", false),
            ("{uri: {regex: /a.*}}", "{uri: {regex: /a.*}}", true),
            ("{uri: {prefix: /a}}", "{uri: {regex: /a.*}}", false),
            ("{headers: {x: {exact: z}}}", "{uri: {prefix: /a}, headers: {x: {exact: z}}}", true),
        ] {
            let expected =
                if is_covered { vec![("IST0130", "spec.http[1]".to_owned())] } else { Vec::new() };
            assert_eq!(http(&[first, second]), expected, "{first} {second}");
        }
        let some = http(&["{uri: {prefix: /a}}", "{uri: {prefix: /ab}}, {uri: {prefix: /c}}"]);
        assert_eq!(some, [("IST0131", "spec.http[1].match[0]".into())]);
    }

    #[test]
    fn requests_that_a_delegate_does_not_match_continue() {
        let routes = "{delegate: {name: nobody}}, {route: [{destination: {host: web}}]}";
        let found = spec(&format!("hosts: ['*.a.b'], http: [{routes}]"));
        assert_eq!(found, [("IST0101", "spec.http[0].delegate".into())]);
    }

    const TO: &str = "route: [{destination: {host: web}}]";

    fn tcp(first: &str, second: &str) -> Vec<(&'static str, String)> {
        spec(&format!("hosts: ['*.a.b'], tcp: [{{{first}{TO}}}, {{{second}{TO}}}]"))
    }

    fn tls(first: &str, second: &str) -> Vec<(&'static str, String)> {
        let routes = [first, second]
            .map(|host| format!("{{match: [{{sniHosts: [{host}]}}], {TO}}}"))
            .join(", ");
        spec(&format!("hosts: ['*.a.b'], tls: [{routes}]"))
    }

    #[test]
    fn connections() {
        assert_eq!(tcp("match: [{port: 80}], ", ""), []);
        assert_eq!(tcp("", "match: [{port: 80}], "), [("IST0130", "spec.tcp[1]".into())]);
        assert_eq!(
            tcp("match: [{port: 80}], ", "match: [{port: 80}], "),
            [("IST0130", "spec.tcp[1]".into())]
        );
        assert_eq!(tls("x.a.b", "y.a.b"), []);
        assert_eq!(tls("x.a.b", "x.a.b"), [("IST0130", "spec.tls[1]".into())]);
    }
}
