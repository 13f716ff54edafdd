//! Conflicts between VirtualServices for the same host: which clients use which routes.
//!
//! Clients of a namespace see several of them in this order: first those private to the namespace, then those exported to
//! it by name, then those exported to all; within each group the oldest first (as in `mesh::VirtualServices`). The first
//! one that has a route of a kind for a port serves that port alone. TLS routes are distinguished by their server names,
//! so only those for the same names conflict.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::conflicts::comes_first;
use super::index::{ELSEWHERE, Index, IndexedVirtualService};
use super::{Findings, all_of, code};
use crate::api::{self, Age, Labels};
use crate::mesh::Visibility;

pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    let mut by_host: HashMap<&str, Vec<(&IndexedVirtualService<'_>, usize)>> = HashMap::new();
    for virtual_service in
        index.virtual_services.iter().filter(|virtual_service| virtual_service.is_for_mesh())
    {
        for (n, host) in virtual_service
            .hosts
            .iter()
            .enumerate()
            .filter(|(n, host)| !virtual_service.hosts.iter().take(*n).any(|h| h == *host))
        {
            by_host.entry(host).or_default().push((virtual_service, n));
        }
    }
    for (host, all) in by_host.into_iter().filter(|(_, all)| all.len() > 1) {
        let same_host: Vec<&IndexedVirtualService<'_>> =
            all.iter().map(|(virtual_service, _)| *virtual_service).collect();
        let namespaces = namespaces(&same_host);
        for (virtual_service, n) in all {
            let clients = Clients::new(virtual_service, &same_host, &namespaces);
            if let Some((code, message)) = clients.problem(host) {
                let advice = match *code == code::OVERRIDDEN {
                    true => "no action is needed if this is intended",
                    false => "merge them, or separate them with exportTo",
                };
                found.add(code, virtual_service.entry, format!("spec.hosts[{n}]"), message, advice);
            }
        }
    }
}

/// The namespaces in which clients may see different objects.
fn namespaces(same_host: &[&IndexedVirtualService<'_>]) -> BTreeSet<Arc<str>> {
    let mut found = BTreeSet::from([Arc::from(ELSEWHERE)]);
    for virtual_service in same_host {
        found.insert(virtual_service.namespace().clone());
        if let Visibility::Namespaces(names) = &virtual_service.visibility {
            found.extend(names.iter().cloned());
        }
    }
    found
}

/// The lowest rank takes precedence.
type Rank<'a> = (u8, Age, &'a Arc<str>, &'a Arc<str>);

fn rank<'a>(virtual_service: &IndexedVirtualService<'a>, namespace: &str) -> Rank<'a> {
    let class = match &virtual_service.visibility {
        Visibility::Namespaces(_) if **virtual_service.namespace() == *namespace => 0,
        Visibility::Namespaces(_) => 1,
        Visibility::Public => 2,
    };
    let meta = &virtual_service.entry.object.meta;
    (class, meta.age, &meta.name, &meta.namespace)
}

/// Which clients use the routes of a VirtualService, among all for the same host.
struct Clients<'a, 'b> {
    /// The namespaces whose clients get only the routes of another VirtualService, by its position.
    lost: BTreeMap<usize, Lost>,
    /// The namespaces whose clients get some routes of another one, by its position and which routes.
    partly: BTreeMap<(usize, Takes), Vec<Arc<str>>>,
    /// Those whose clients get its own.
    kept: Vec<Arc<str>>,
    same_host: &'b [&'b IndexedVirtualService<'a>],
}

#[derive(Default)]
struct Lost {
    namespaces: Vec<Arc<str>>,
    /// Whether age alone decides that.
    by_age: bool,
    /// The kinds of routes.
    kinds: BTreeSet<&'static str>,
}

impl<'a, 'b> Clients<'a, 'b> {
    fn new(
        virtual_service: &'b IndexedVirtualService<'a>,
        same_host: &'b [&'b IndexedVirtualService<'a>],
        namespaces: &BTreeSet<Arc<str>>,
    ) -> Self {
        let mut this =
            Self { lost: BTreeMap::new(), partly: BTreeMap::new(), kept: Vec::new(), same_host };
        for namespace in
            namespaces.iter().filter(|namespace| virtual_service.visibility.includes(namespace))
        {
            this.look_at(virtual_service, namespace);
        }
        this
    }

    fn look_at(&mut self, virtual_service: &IndexedVirtualService<'a>, namespace: &Arc<str>) {
        let own = rank(virtual_service, namespace);
        let before = self.same_host.iter().enumerate();
        let mut before: Vec<_> = before
            .filter(|(_, other)| {
                other.visibility.includes(namespace) && rank(other, namespace) < own
            })
            .collect();
        before.sort_by_key(|(_, other)| rank(other, namespace));
        for (winner, other) in before {
            match takes_from(other, virtual_service, namespace) {
                None => {}
                Some(Takes::All(kinds)) => {
                    let lost = self.lost.entry(winner).or_default();
                    lost.namespaces.push(namespace.clone());
                    lost.by_age |= rank(other, namespace).0 == own.0;
                    lost.kinds.extend(kinds);
                    return;
                }
                Some(how) => self.partly.entry((winner, how)).or_default().push(namespace.clone()),
            }
        }
        self.kept.push(namespace.clone());
    }

    fn key(&self, winner: usize) -> String {
        self.same_host
            .get(winner)
            .map(|winner| winner.entry.object.key().to_string())
            .unwrap_or_default()
    }

    /// The finding, if some clients get routes of other VirtualServices.
    fn problem(&self, host: &str) -> Option<(&'static code::Code, String)> {
        if let (Some((winner, lost)), true, true) = (
            self.lost.first_key_value(),
            self.kept.is_empty() && self.lost.len() == 1,
            self.partly.is_empty(),
        ) {
            return Some((&code::HOST_CONFLICT, self.whole(host, *winner, lost)?));
        }
        let mut parts: Vec<String> =
            self.lost.iter().map(|(winner, lost)| self.part(*winner, lost)).collect();
        parts.extend(self.partly.iter().map(|((winner, how), namespaces)| {
            let within = if is_everywhere(namespaces) {
                String::new()
            } else {
                format!("in {} ", names(namespaces))
            };
            format!("{within}{}", how.text(&self.key(*winner)))
        }));
        if parts.is_empty() {
            return None;
        }
        if !self.kept.is_empty() && !self.lost.is_empty() {
            parts.push(format!("clients in {} get the routes of this one", names(&self.kept)));
        }
        let is_conflict = self.kept.is_empty()
            || self.lost.values().any(|lost| lost.by_age)
            || self.partly.keys().any(|(_, how)| how.is_conflict());
        let code = if is_conflict { &code::HOST_CONFLICT } else { &code::OVERRIDDEN };
        Some((code, format!("for `{host}`, {}", parts.join("; "))))
    }

    /// Where no client gets its routes.
    fn whole(&self, host: &str, winner: usize, lost: &Lost) -> Option<String> {
        let key = self.key(winner);
        let kinds = kinds(&lost.kinds);
        let first = match lost.by_age {
            true => {
                format!(
                    "{key} {} and also has the host `{host}`",
                    comes_first(self.same_host.get(winner)?.entry)
                )
            }
            false => {
                format!("{key} also has the host `{host}`, and its exportTo names these clients")
            }
        };
        Some(format!("{first}: its {kinds} routes are used instead of those of this one"))
    }

    fn part(&self, winner: usize, lost: &Lost) -> String {
        let why = match self.same_host.get(winner) {
            Some(winner) if lost.by_age => format!("which {}", comes_first(winner.entry)),
            _ => "whose exportTo names them".to_owned(),
        };
        let kinds = kinds(&lost.kinds);
        format!(
            "clients in {} get the {kinds} routes of {}, {why}",
            names(&lost.namespaces),
            self.key(winner)
        )
    }
}

fn kinds(kinds: &BTreeSet<&'static str>) -> String {
    all_of(&kinds.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>())
}

fn is_everywhere(namespaces: &[Arc<str>]) -> bool {
    namespaces.iter().any(|name| **name == *ELSEWHERE)
}

fn names(namespaces: &[Arc<str>]) -> String {
    if is_everywhere(namespaces) {
        return "all other namespaces".to_owned();
    }
    all_of(&namespaces.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// Which routes of a VirtualService have no effect because of an older one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Takes {
    /// All of these kinds.
    All(BTreeSet<&'static str>),
    /// Those for these ports; and whether both name these ports.
    At(BTreeSet<u32>, bool),
    /// Those for some server names.
    Names,
    /// Those for clients with some labels.
    Labelled,
}

impl Takes {
    fn text(&self, winner: &str) -> String {
        match self {
            Takes::All(_) => format!("the routes of {winner} are used"),
            Takes::At(ports, _) => {
                let numbers: Vec<_> = ports.iter().map(ToString::to_string).collect();
                let noun = if numbers.len() == 1 { "port" } else { "the ports" };
                format!("only the routes of {winner} are used at {noun} {}", all_of(&numbers))
            }
            Takes::Names => {
                format!("connections for the same server names use the routes of {winner}")
            }
            Takes::Labelled => {
                format!("clients that the sourceLabels of {winner} select get only its routes")
            }
        }
    }

    /// Whether that can hardly be meant.
    fn is_conflict(&self) -> bool {
        matches!(self, Takes::All(_) | Takes::At(_, true) | Takes::Names)
    }
}

/// Which routes of `second` have no effect for clients of a namespace, because `first` takes precedence.
fn takes_from(
    first: &IndexedVirtualService<'_>,
    second: &IndexedVirtualService<'_>,
    namespace: &str,
) -> Option<Takes> {
    let (a, b) = (first.spec, second.spec);
    let surely = [Which::Surely, Which::Labelled];
    let of_http = taken(
        surely.map(|which| http_ports(a, namespace, which)),
        &http_ports(b, namespace, Which::Ever),
        "http",
    );
    let of_tcp = taken(
        surely.map(|which| tcp_ports(a, namespace, which)),
        &tcp_ports(b, namespace, Which::Ever),
        "tcp",
    );
    let of_tls = (!server_names(a).is_disjoint(&server_names(b))).then_some(Takes::Names);
    match (of_http, of_tcp) {
        (Some(Takes::All(mut kinds)), Some(Takes::All(more))) => {
            kinds.extend(more);
            Some(Takes::All(kinds))
        }
        // Only the worst is reported.
        (of_http, of_tcp) => [of_http, of_tcp, of_tls].into_iter().flatten().min(),
    }
}

/// The ports that the HTTP routes are for.
fn http_ports(spec: &api::VirtualService, namespace: &str, which: Which) -> Ports {
    let routes = spec.http.iter().map(|route| {
        let matches: Vec<_> = route.matches.iter().map(Condition::of_http).collect();
        Ports::of(&matches, namespace, which)
    });
    routes.collect()
}

/// The ports that the TCP routes are for.
fn tcp_ports(spec: &api::VirtualService, namespace: &str, which: Which) -> Ports {
    let routes = spec.tcp.iter().map(|route| {
        let matches: Vec<_> = route.matches.iter().map(Condition::of_tcp).collect();
        Ports::of(&matches, namespace, which)
    });
    routes.collect()
}

/// The server names and subnets that the TLS routes are for.
fn server_names(spec: &api::VirtualService) -> BTreeSet<(&[String], &[String])> {
    let matches = spec.tls.iter().flat_map(|route| &route.matches);
    matches.map(|tls_match| (&*tls_match.sni_hosts, &*tls_match.destination_subnets)).collect()
}

/// Which ports of the second VirtualService the first one takes: `surely` has its ports for all clients, `labelled`
/// also those for some clients.
fn taken([surely, labelled]: [Ports; 2], second: &Ports, kind: &'static str) -> Option<Takes> {
    if !surely.meets(second) {
        return labelled.meets(second).then_some(Takes::Labelled);
    }
    if surely.all || (!second.all && second.some.is_subset(&surely.some)) {
        return Some(Takes::All(BTreeSet::from([kind])));
    }
    let both: BTreeSet<u32> = surely.some.intersection(&second.some).copied().collect();
    Some(if second.all { Takes::At(surely.some, !both.is_empty()) } else { Takes::At(both, true) })
}

/// Which matches to consider.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those that hold for every client and address.
    Surely,
    /// Those that hold for every address.
    Labelled,
    /// All that may hold.
    Ever,
}

/// The conditions of a match that decide which connections it applies to.
struct Condition<'a> {
    port: Option<u32>,
    gateways: &'a [String],
    labels: &'a Labels,
    namespace: &'a str,
    subnets: &'a [String],
}

impl<'a> Condition<'a> {
    fn of_http(request_match: &'a api::HttpMatchRequest) -> Self {
        Self {
            port: request_match.port,
            gateways: &request_match.gateways,
            labels: &request_match.source_labels,
            namespace: &request_match.source_namespace,
            subnets: &[],
        }
    }

    fn of_tcp(tcp_match: &'a api::L4MatchAttributes) -> Self {
        Self {
            port: tcp_match.port,
            gateways: &tcp_match.gateways,
            labels: &tcp_match.source_labels,
            namespace: &tcp_match.source_namespace,
            subnets: &tcp_match.destination_subnets,
        }
    }
}

/// Ports that routes are for.
#[derive(Default)]
struct Ports {
    all: bool,
    some: BTreeSet<u32>,
}

impl Ports {
    /// The ports of a route's matches for clients of a namespace.
    fn of(matches: &[Condition<'_>], namespace: &str, which: Which) -> Self {
        let mut ports = Self { all: matches.is_empty(), some: BTreeSet::new() };
        for request_match in matches {
            let for_mesh = request_match.gateways.is_empty()
                || request_match.gateways.iter().any(|gateway| gateway == "mesh");
            let counts = for_mesh
                && (request_match.namespace.is_empty() || request_match.namespace == namespace)
                && (which != Which::Surely || request_match.labels.is_empty())
                && (which == Which::Ever || request_match.subnets.is_empty());
            match request_match.port.filter(|port| *port != 0) {
                _ if !counts => {}
                None => ports.all = true,
                Some(port) => {
                    ports.some.insert(port);
                }
            }
        }
        ports
    }

    fn is_empty(&self) -> bool {
        !self.all && self.some.is_empty()
    }

    fn meets(&self, other: &Self) -> bool {
        if self.all || other.all {
            return !self.is_empty() && !other.is_empty();
        }
        !self.some.is_disjoint(&other.some)
    }
}

impl FromIterator<Ports> for Ports {
    fn from_iter<T: IntoIterator<Item = Ports>>(routes: T) -> Self {
        let mut together = Self::default();
        for ports in routes {
            together.all |= ports.all;
            together.some.extend(ports.some);
        }
        together
    }
}

#[cfg(test)]
mod tests {
    use super::super::analyze;
    use super::super::tests::{base, found, store};
    use crate::mesh::MeshConfig;

    fn service(name: &str, fields: &str) -> String {
        of("shop", name, &format!("http: [{{route: [{{destination: {{host: web}}}}]}}], {fields}"))
    }

    fn of(namespace: &str, name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    }

    fn found_in_two(a: &str, b: &str) -> Vec<(&'static str, String)> {
        found(&(base() + &service("b", a) + &service("a", b)))
    }

    #[test]
    fn the_older_of_two_with_the_same_host_wins() {
        let second = [("IST0109", "spec.hosts[0]".to_owned())];
        assert_eq!(found_in_two("hosts: ['*.a.b']", "hosts: ['*.A.b']"), second);
        assert_eq!(found_in_two("hosts: [many]", "hosts: [many.shop.svc.cluster.local]"), second);
        assert_eq!(found_in_two("hosts: ['*.a.b']", "hosts: ['*.c.b']"), []);
        assert_eq!(
            found_in_two("hosts: ['*.a.b'], exportTo: [p]", "hosts: ['*.a.b'], exportTo: [q]"),
            []
        );
        let gateway = found_in_two("hosts: ['*.a.b'], gateways: [gw]", "hosts: ['*.a.b']");
        assert_eq!(gateway, [("WEIR0201", "spec.gateways".to_owned())]);
    }

    /// The findings about hosts: object, code and message.
    fn problems(objects: &[String]) -> Vec<(String, &'static str, String)> {
        let findings = analyze(&store(&(base() + &objects.concat())), &MeshConfig::default());
        let of_hosts =
            findings.into_iter().filter(|finding| finding.path.starts_with("spec.hosts"));
        of_hosts
            .map(|finding| {
                (finding.object.unwrap().name.to_string(), finding.code.id, finding.message)
            })
            .collect()
    }

    /// A VirtualService for `*.a.b`. The alphabetical order of names is also the order of age.
    fn duplicate(namespace: &str, name: &str, export_to: &str) -> String {
        let route = "route: [{destination: {host: web.shop.svc.cluster.local}}]";
        of(
            namespace,
            name,
            &format!("hosts: ['*.a.b'], exportTo: [{export_to}], http: [{{{route}}}]"),
        )
    }

    fn about(who: &str) -> String {
        format!("for `*.a.b`, {who}")
    }

    fn info(name: &str, who: &str) -> (String, &'static str, String) {
        (name.to_owned(), "WEIR0114", about(who))
    }

    fn error(name: &str, message: String) -> (String, &'static str, String) {
        (name.to_owned(), "IST0109", message)
    }

    #[test]
    fn the_message_names_who_gets_whose_routes() {
        // A private VirtualService takes precedence over a public one, regardless of age.
        for (public, private) in [("a", "b"), ("b", "a")] {
            let objects = [duplicate("other", public, "'*'"), duplicate("shop", private, ".")];
            let who = format!(
                "clients in shop get the http routes of VirtualService shop/{private}, whose exportTo names them; clients in \
                 all other namespaces get the routes of this one"
            );
            assert_eq!(problems(&objects), [info(public, &who)]);
        }
        let by_name = [duplicate("other", "a", "shop"), duplicate("shop", "b", ".")];
        let all = "VirtualService shop/b also has the host `*.a.b`, and its exportTo names these clients: its http routes are \
                   used instead of those of this one";
        assert_eq!(problems(&by_name), [error("a", all.to_owned())]);
        let older = [duplicate("other", "a", "shop, pay"), duplicate("third", "b", "shop, bank")];
        let who = "clients in shop get the http routes of VirtualService other/a, which comes first; clients in bank get the routes of this one";
        assert_eq!(problems(&older), [error("b", about(who))]);
        let three = [
            duplicate("other", "a", "shop"),
            duplicate("other", "b", "pay"),
            duplicate("third", "c", "shop, pay"),
        ];
        let who = "clients in shop get the http routes of VirtualService other/a, which comes first; clients in pay get the \
                   http routes of VirtualService other/b, which comes first";
        assert_eq!(problems(&three), [error("c", about(who))]);
    }

    const TO: &str = "route: [{destination: {host: web}}]";

    fn codes_of_two(a: &str, b: &str) -> Vec<&'static str> {
        let conflicts = problems(&[
            of("shop", "a", &format!("hosts: ['*.a.b'], {a}")),
            of("shop", "b", &format!("hosts: ['*.a.b'], {b}")),
        ]);
        conflicts.into_iter().map(|(_, code, _)| code).collect::<Vec<_>>()
    }

    fn http(matches: &str) -> String {
        format!("http: [{{match: [{matches}], {TO}}}]")
    }

    fn tcp(matches: &str) -> String {
        format!("tcp: [{{match: [{matches}], {TO}}}]")
    }

    fn tls(name: &str) -> String {
        format!("tls: [{{match: [{{sniHosts: [{name}]}}], {TO}}}]")
    }

    #[test]
    fn only_routes_for_the_same_connections_conflict() {
        let any = format!("http: [{{{TO}}}]");
        let (none, whole, partly) = (vec![], vec!["IST0109"], vec!["WEIR0114"]);
        for (a, b, codes) in [
            (any.clone(), any.clone(), &whole),
            (any.clone(), http("{port: 81}"), &whole),
            (http("{port: 80}"), any.clone(), &partly),
            (http("{port: 80}"), http("{port: 81}"), &none),
            (http("{port: 80}"), http("{port: 80}, {port: 81}"), &whole),
            (http("{uri: {prefix: /a}}"), http("{uri: {prefix: /b}}"), &whole),
            // Only clients with the labels get these; all others get the second.
            (http("{sourceLabels: {app: x}}"), any.clone(), &partly),
            (any.clone(), http("{sourceLabels: {app: x}}"), &whole),
            (http("{gateways: [gw]}"), any.clone(), &none),
            (any.clone(), format!("tcp: [{{{TO}}}]"), &none),
            (tcp("{port: 80}"), tcp("{port: 80}"), &whole),
            (tcp("{port: 80}"), tcp("{port: 81}"), &none),
            (tcp("{destinationSubnets: [10.0.0.0/8]}"), format!("tcp: [{{{TO}}}]"), &none),
            (format!("tcp: [{{{TO}}}]"), tcp("{destinationSubnets: [10.0.0.0/8]}"), &whole),
            (tls("x.a.b"), tls("y.a.b"), &none),
            (tls("x.a.b"), tls("x.a.b"), &whole),
        ] {
            assert_eq!(codes_of_two(&a, &b), *codes, "{a} / {b}");
        }
        let in_pay = format!("exportTo: [pay, shop], {}", http("{sourceNamespace: pay}"));
        assert_eq!(codes_of_two(&in_pay, &format!("exportTo: [shop], {any}")), none);
        assert_eq!(codes_of_two(&in_pay, &format!("exportTo: [pay, shop], {any}")), whole);
    }
}
