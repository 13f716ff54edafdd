//! Checks for routes that have no effect because their protocol does not match the port.

use super::index::{Index, IndexedVirtualService};
use super::{Findings, all_of, code};
use crate::mesh::{self, Protocol};

/// The kinds of routes that a VirtualService has.
#[derive(Clone, Copy)]
enum Kind {
    Http,
    Tls,
    Tcp,
}

impl Kind {
    fn field(self) -> &'static str {
        match self {
            Kind::Http => "http",
            Kind::Tls => "tls",
            Kind::Tcp => "tcp",
        }
    }

    /// Whether such routes apply to a port of this protocol.
    fn counts_at(self, protocol: Protocol) -> bool {
        match self {
            Kind::Http => protocol.may_be_http(),
            Kind::Tls => matches!(protocol, Protocol::Https | Protocol::Tls),
            Kind::Tcp => matches!(protocol, Protocol::Tcp | Protocol::Unknown),
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Kind::Http => {
                "use tls or tcp routes, or start the port's name with http or grpc if it is HTTP"
            }
            Kind::Tls => {
                "use http or tcp routes, or start the port's name with https or tls if the client uses TLS"
            }
            Kind::Tcp => "use http or tls routes, or start the port's name with tcp",
        }
    }
}

pub(super) fn check(
    virtual_service: &IndexedVirtualService<'_>,
    index: &Index<'_>,
    found: &mut Findings,
) {
    if !virtual_service.is_for_mesh() || virtual_service.hosts.is_empty() {
        return;
    }
    let Some(ports) = ports(virtual_service, index) else {
        return;
    };
    let spec = virtual_service.spec;
    let http = spec
        .http
        .iter()
        .map(|route| matched_ports(route.matches.iter().map(|item| (item.port, &*item.gateways))));
    let tls = spec
        .tls
        .iter()
        .map(|route| matched_ports(route.matches.iter().map(|item| (item.port, &*item.gateways))));
    let tcp = spec
        .tcp
        .iter()
        .map(|route| matched_ports(route.matches.iter().map(|item| (item.port, &*item.gateways))));
    for (kind, routes) in [
        (Kind::Http, http.collect::<Vec<_>>()),
        (Kind::Tls, tls.collect()),
        (Kind::Tcp, tcp.collect()),
    ] {
        routes_of(virtual_service, kind, &routes, &ports, found);
    }
}

/// The ports of a route's matches for sidecars. A route for any port counts as one match without a port.
fn matched_ports<'a>(
    matches: impl ExactSizeIterator<Item = (Option<u32>, &'a [String])>,
) -> Vec<Option<u32>> {
    if matches.len() == 0 {
        return vec![None];
    }
    matches
        .filter(|(_, gateways)| {
            gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh")
        })
        .map(|(port, _)| port)
        .collect()
}

/// The ports of the hosts with their protocols; `None` if a host may have ports that are unknown.
fn ports(
    virtual_service: &IndexedVirtualService<'_>,
    index: &Index<'_>,
) -> Option<Vec<(u16, Protocol)>> {
    let mut found = Vec::new();
    for host in &virtual_service.hosts {
        if !mesh::is_wildcard(host) {
            let service = index.service(host)?;
            let service =
                if service.alias_of.is_some() { index.real_service(host)?.1 } else { service };
            found.extend(&service.ports);
            continue;
        }
        // A wildcard may also cover names without a service, whose routes apply to every HTTP port.
        return None;
    }
    found.sort_unstable();
    found.dedup();
    (!found.is_empty()).then_some(found)
}

/// The ports that a match is for.
fn meant(port: Option<u32>, ports: &[(u16, Protocol)]) -> Vec<(u16, Protocol)> {
    let wanted = port.filter(|port| *port != 0);
    ports
        .iter()
        .copied()
        .filter(|(known, _)| wanted.is_none_or(|wanted| wanted == u32::from(*known)))
        .collect()
}

fn routes_of(
    virtual_service: &IndexedVirtualService<'_>,
    kind: Kind,
    routes: &[Vec<Option<u32>>],
    ports: &[(u16, Protocol)],
    found: &mut Findings,
) {
    let field = kind.field();
    let mut wrong: Vec<(String, Vec<(u16, Protocol)>)> = Vec::new();
    if routes.len() > 1 && routes.iter().all(|matches| none_applies(kind, matches, ports)) {
        wrong.push((format!("spec.{field}"), all_meant(&routes.concat(), ports)));
    } else {
        for (n, matches) in routes.iter().enumerate() {
            if none_applies(kind, matches, ports) {
                wrong.push((format!("spec.{field}[{n}]"), all_meant(matches, ports)));
                continue;
            }
            for (m, port) in matches.iter().enumerate() {
                if never_applies(kind, *port, ports) {
                    let path = format!("spec.{field}[{n}].match[{m}].port");
                    wrong.push((path, meant(*port, ports)));
                }
            }
        }
    }
    for (path, meant) in wrong {
        let message = format!("has no effect: {field} routes do not apply to {}", list(&meant));
        found.add(&code::NO_EFFECT, virtual_service.entry, path, message, kind.advice());
    }
}

/// Whether a route has matches, all of which are only for ports to which routes of its kind do not apply.
fn none_applies(kind: Kind, matches: &[Option<u32>], ports: &[(u16, Protocol)]) -> bool {
    !matches.is_empty() && matches.iter().all(|port| never_applies(kind, *port, ports))
}

/// Whether a match is only for ports to which routes of its kind do not apply. A port that no host has is reported by
/// another check.
fn never_applies(kind: Kind, port: Option<u32>, ports: &[(u16, Protocol)]) -> bool {
    let meant = meant(port, ports);
    !meant.is_empty() && !meant.iter().any(|(_, protocol)| kind.counts_at(*protocol))
}

/// The ports that any of the matches is for.
fn all_meant(matches: &[Option<u32>], ports: &[(u16, Protocol)]) -> Vec<(u16, Protocol)> {
    let mut all: Vec<_> = matches.iter().flat_map(|port| meant(*port, ports)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// `port 80 (HTTP)`, or `the ports 80 (HTTP) and 443 (TLS)`.
pub(super) fn list(ports: &[(u16, Protocol)]) -> String {
    let all: Vec<_> = ports
        .iter()
        .map(|(number, protocol)| format!("{number} ({protocol:?})").to_ascii_uppercase())
        .collect();
    let noun = if all.len() == 1 { "port" } else { "the ports" };
    format!("{noun} {}", all_of(&all))
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;

    /// The findings in a VirtualService for a Service `db` with these ports.
    fn with(ports: &str, fields: &str) -> Vec<(&'static str, String)> {
        found(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: shop}}\n\
             spec: {{clusterIP: 10.0.0.9, ports: [{ports}]}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: alias, namespace: shop}}\n\
             spec: {{type: ExternalName, externalName: db.shop.svc.cluster.local}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\n\
             spec: {{{fields}}}\n"
        ))
    }

    const TCP: &str = "{name: tcp, port: 5432}";
    const HTTP: &str = "{name: http, port: 80}";
    const TLS: &str = "{name: tls, port: 443}";

    fn none(path: &str) -> Vec<(&'static str, String)> {
        vec![("WEIR0203", path.to_owned())]
    }

    fn route(port: u16) -> String {
        format!("route: [{{destination: {{host: db, port: {{number: {port}}}}}}}]")
    }

    fn http(port: u16) -> String {
        format!("hosts: [db], http: [{{{}}}]", route(port))
    }

    fn tcp(port: u16) -> String {
        format!("hosts: [db], tcp: [{{{}}}]", route(port))
    }

    fn tls(port: u16) -> String {
        format!("hosts: [db], tls: [{{match: [{{sniHosts: [db]}}], {}}}]", route(port))
    }

    #[test]
    fn routes_apply_to_ports_of_their_protocol() {
        for (ports, port, [http_is_fine, tls_is_fine, tcp_is_fine]) in [
            (HTTP, 80, [true, false, false]),
            ("{name: grpc-web, port: 80}", 80, [true, false, false]),
            (TLS, 443, [false, true, false]),
            ("{name: https-x, port: 443}", 443, [false, true, false]),
            (TCP, 5432, [false, false, true]),
            ("{name: mysql, port: 5432}", 5432, [false, false, true]),
        ] {
            for (fields, kind, is_fine) in [
                (http(port), "http", http_is_fine),
                (tls(port), "tls", tls_is_fine),
                (tcp(port), "tcp", tcp_is_fine),
            ] {
                let wanted = if is_fine { vec![] } else { none(&format!("spec.{kind}[0]")) };
                assert_eq!(with(ports, &fields), wanted, "{ports} {fields}");
            }
        }
        // The protocol is detected from the first bytes.
        let unknown = "{name: db, port: 5432}";
        for (fields, fine) in [(http(5432), true), (tcp(5432), true), (tls(5432), false)] {
            let effects =
                with(unknown, &fields).into_iter().filter(|(code, _)| *code == "WEIR0203").count();
            assert_eq!(effects == 0, fine, "{fields}");
        }
    }

    fn found_in_http(routes: &str) -> Vec<(&'static str, String)> {
        let both = format!("{HTTP}, {TLS}");
        with(&both, &format!("hosts: [db], http: [{routes}]"))
    }

    #[test]
    fn each_match_is_checked_against_its_own_port() {
        let to = "route: [{destination: {host: db, port: {number: 80}}}]";
        assert_eq!(found_in_http(&format!("{{{to}}}")), []);
        assert_eq!(found_in_http(&format!("{{match: [{{port: 80}}], {to}}}")), []);
        assert_eq!(
            found_in_http(&format!("{{match: [{{port: 443}}], {to}}}")),
            none("spec.http[0]")
        );
        assert_eq!(
            found_in_http(&format!("{{match: [{{port: 443}}, {{port: 80}}], {to}}}")),
            none("spec.http[0].match[0].port")
        );
        let unknown = [("WEIR0106", "spec.http[0].match[0].port".to_owned())];
        assert_eq!(found_in_http(&format!("{{match: [{{port: 99}}], {to}}}")), unknown);
        let several = format!("{{match: [{{uri: {{prefix: /a}}}}], {to}}}, {{{to}}}");
        let to_db = several.replace("number: 80", "number: 5432");
        assert_eq!(with(TCP, &format!("hosts: [db], http: [{to_db}]")), none("spec.http"));
        // An alias has the ports of its service. The ports of wildcards and unknown hosts are unknown.
        let db = "http: [{route: [{destination: {host: db}}]}]";
        assert_eq!(with(TCP, &format!("hosts: [alias], {db}")), none("spec.http[0]"));
        assert_eq!(with(TCP, &format!("hosts: [db, '*.a.b'], {db}")), []);
    }
}
