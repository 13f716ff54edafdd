//! VirtualServices for the same host: whose routes which clients get.
//!
//! Of those that clients of a namespace see, the ones that it keeps to itself come before those that others export to it
//! by name, and these before those that all see; among each the oldest first (as in `mesh::VirtualServices`). The first
//! that has a route of a kind at a port has that port alone. Routes for TLS are told apart by their server names: only those
//! for the same names are in each other's way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::conflicts::comes_first;
use super::index::{Index, VirtualService};
use super::{Findings, all_of, code};
use crate::api::{Age, Labels};
use crate::mesh::Visibility;

/// Stands for any namespace that no object names.
const ELSEWHERE: &str = "\0elsewhere";

pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    let mut by_host: HashMap<&str, Vec<(&VirtualService<'_>, usize)>> = HashMap::new();
    for one in index.virtual_services.iter().filter(|one| one.is_for_mesh()) {
        for (n, host) in one.hosts.iter().enumerate().filter(|(n, host)| !one.hosts.iter().take(*n).any(|h| h == *host))
        {
            by_host.entry(host).or_default().push((one, n));
        }
    }
    for (host, all) in by_host.into_iter().filter(|(_, all)| all.len() > 1) {
        let rivals: Vec<&VirtualService<'_>> = all.iter().map(|(one, _)| *one).collect();
        let namespaces = namespaces(&rivals);
        for (one, n) in all {
            let clients = Clients::new(one, &rivals, &namespaces);
            if let Some((code, message)) = clients.told(host) {
                let advice = "merge the two, or keep them apart by exportTo";
                found.add(code, one.entry, format!("spec.hosts[{n}]"), message, advice);
            }
        }
    }
}

/// The namespaces between which clients may see something else.
fn namespaces(rivals: &[&VirtualService<'_>]) -> BTreeSet<Arc<str>> {
    let mut found = BTreeSet::from([Arc::from(ELSEWHERE)]);
    for one in rivals {
        found.insert(one.namespace().clone());
        if let Visibility::Namespaces(names) = &one.visibility {
            found.extend(names.iter().cloned());
        }
    }
    found
}

/// What comes first counts.
type Rank<'a> = (u8, Age, &'a Arc<str>, &'a Arc<str>);

fn rank<'a>(one: &VirtualService<'a>, namespace: &str) -> Rank<'a> {
    let class = match &one.visibility {
        Visibility::Namespaces(_) if **one.namespace() == *namespace => 0,
        Visibility::Namespaces(_) => 1,
        Visibility::Public => 2,
    };
    let meta = &one.entry.object.meta;
    (class, meta.age, &meta.name, &meta.namespace)
}

/// What becomes of one VirtualService among all for one host.
struct Clients<'a, 'b> {
    /// The namespaces whose clients get others' routes, by whose, and whether age alone decides that.
    lost: BTreeMap<usize, (Vec<Arc<str>>, bool)>,
    /// Those whose clients get its own.
    kept: Vec<Arc<str>>,
    rivals: &'b [&'b VirtualService<'a>],
}

impl<'a, 'b> Clients<'a, 'b> {
    fn new(one: &'b VirtualService<'a>, rivals: &'b [&'b VirtualService<'a>], namespaces: &BTreeSet<Arc<str>>) -> Self {
        let mut this = Self { lost: BTreeMap::new(), kept: Vec::new(), rivals };
        for namespace in namespaces.iter().filter(|namespace| one.visibility.includes(namespace)) {
            let own = rank(one, namespace);
            let mut before: Vec<_> = rivals
                .iter()
                .enumerate()
                .filter(|(_, other)| other.visibility.includes(namespace) && rank(other, namespace) < own)
                .collect();
            before.sort_by_key(|(_, other)| rank(other, namespace));
            match before.into_iter().find(|(_, other)| takes_from(other, one, namespace)) {
                Some((winner, other)) => {
                    let by_age = rank(other, namespace).0 == own.0;
                    let (list, age) = this.lost.entry(winner).or_insert((Vec::new(), false));
                    list.push(namespace.clone());
                    *age |= by_age;
                }
                None => this.kept.push(namespace.clone()),
            }
        }
        this
    }

    /// The finding, where some clients get others' routes.
    fn told(&self, host: &str) -> Option<(&'static code::Code, String)> {
        let by_age = self.lost.values().any(|(_, by_age)| *by_age);
        let (first, _) = self.lost.first_key_value()?;
        let key = |winner: usize| {
            self.rivals.get(winner).map(|winner| winner.entry.object.key().to_string()).unwrap_or_default()
        };
        if self.kept.is_empty() && self.lost.len() == 1 {
            let winner = self.rivals.get(*first)?;
            let message = match by_age {
                true => format!("{} {} and speaks for `{host}` too", key(*first), comes_first(winner.entry)),
                false => format!("{} speaks for `{host}` too, and its exportTo names these clients", key(*first)),
            };
            let message = format!("{message}: its routes are in force, and none of these");
            return Some((&code::HOST_CONFLICT, message));
        }
        let parts = self.lost.iter().map(|(winner, (namespaces, by_age))| {
            let why = match self.rivals.get(*winner) {
                Some(winner) if *by_age => format!("which {}", comes_first(winner.entry)),
                _ => "whose exportTo names them".to_owned(),
            };
            format!("clients in {} get the routes of {}, {why}", names(namespaces), key(*winner))
        });
        let mut parts: Vec<_> = parts.collect();
        if !self.kept.is_empty() {
            parts.push(format!("clients in {} get these", names(&self.kept)));
        }
        let code = if by_age || self.kept.is_empty() { &code::HOST_CONFLICT } else { &code::OVERRIDDEN };
        Some((code, format!("for `{host}` {}", parts.join("; "))))
    }
}

fn names(namespaces: &[Arc<str>]) -> String {
    if namespaces.iter().any(|name| **name == *ELSEWHERE) {
        return "all other namespaces".to_owned();
    }
    all_of(&namespaces.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// Whether, for clients of a namespace, `first` keeps some route of `second` out of force.
fn takes_from(first: &VirtualService<'_>, second: &VirtualService<'_>, namespace: &str) -> bool {
    let (a, b) = (first.spec, second.spec);
    let http = |spec: &crate::api::VirtualService, all: bool| {
        let routes = spec.http.iter().map(|route| {
            let matches = route.matches.iter().map(|one| Condition {
                port: one.port,
                gateways: &one.gateways,
                labels: &one.source_labels,
                namespace: &one.source_namespace,
                partial: false,
            });
            Ports::of(matches, namespace, all)
        });
        routes.collect::<Ports>()
    };
    let tcp = |spec: &crate::api::VirtualService, all: bool| {
        let routes = spec.tcp.iter().map(|route| {
            let matches = route.matches.iter().map(|one| Condition {
                port: one.port,
                gateways: &one.gateways,
                labels: &one.source_labels,
                namespace: &one.source_namespace,
                partial: !one.destination_subnets.is_empty(),
            });
            Ports::of(matches, namespace, all)
        });
        routes.collect::<Ports>()
    };
    let same_names = || {
        let names = |spec: &crate::api::VirtualService| -> BTreeSet<(Vec<String>, Vec<String>)> {
            let matches = spec.tls.iter().flat_map(|route| &route.matches);
            matches.map(|one| (one.sni_hosts.clone(), one.destination_subnets.clone())).collect()
        };
        !names(a).is_disjoint(&names(b))
    };
    http(a, false).meets(&http(b, true)) || tcp(a, false).meets(&tcp(b, true)) || same_names()
}

/// What of a match says for which connections it is.
struct Condition<'a> {
    port: Option<u32>,
    gateways: &'a [String],
    labels: &'a Labels,
    namespace: &'a str,
    /// Whether it is for some addresses alone.
    partial: bool,
}

/// Ports that routes are for.
#[derive(Default)]
struct Ports {
    all: bool,
    some: BTreeSet<u32>,
}

impl Ports {
    /// The ports of a route's matches for clients of a namespace: for any of them with `any`, else for each of them.
    fn of<'a>(matches: impl ExactSizeIterator<Item = Condition<'a>>, namespace: &str, any: bool) -> Self {
        let mut ports = Self { all: matches.len() == 0, some: BTreeSet::new() };
        for one in matches {
            let counts = (one.gateways.is_empty() || one.gateways.iter().any(|gateway| gateway == "mesh"))
                && (one.namespace.is_empty() || one.namespace == namespace)
                && (any || (one.labels.is_empty() && !one.partial));
            match one.port.filter(|port| *port != 0) {
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

    #[test]
    fn of_two_for_one_host_the_older_wins() {
        let two = |a: &str, b: &str| found(&(base() + &service("b", a) + &service("a", b)));
        let second = [("IST0109", "spec.hosts[0]".to_owned())];
        assert_eq!(two("hosts: ['*.a.b']", "hosts: ['*.A.b']"), second);
        assert_eq!(two("hosts: [many]", "hosts: [many.shop.svc.cluster.local]"), second);
        assert_eq!(two("hosts: ['*.a.b']", "hosts: ['*.c.b']"), []);
        assert_eq!(two("hosts: ['*.a.b'], exportTo: [p]", "hosts: ['*.a.b'], exportTo: [q]"), []);
        let gateway = two("hosts: ['*.a.b'], gateways: [gw]", "hosts: ['*.a.b']");
        assert_eq!(gateway, [("WEIR0201", "spec.gateways".to_owned())]);
    }

    /// What is said of the hosts: object, code and message.
    fn told(objects: &[String]) -> Vec<(String, &'static str, String)> {
        let findings = analyze(&store(&(base() + &objects.concat())), &MeshConfig::default());
        let of_hosts = findings.into_iter().filter(|one| one.path.starts_with("spec.hosts"));
        of_hosts.map(|one| (one.object.unwrap().name.to_string(), one.code.id, one.message)).collect()
    }

    /// A VirtualService for `*.a.b`, of which the name is also the order of age.
    fn rival(namespace: &str, name: &str, export_to: &str) -> String {
        let route = "route: [{destination: {host: web.shop.svc.cluster.local}}]";
        of(namespace, name, &format!("hosts: ['*.a.b'], exportTo: [{export_to}], http: [{{{route}}}]"))
    }

    #[test]
    fn who_gets_whose_routes_is_told() {
        let host = |who: &str| format!("for `*.a.b` {who}");
        let info = |name: &str, who: &str| (name.to_owned(), "WEIR0114", host(who));
        let error = |name: &str, message: String| (name.to_owned(), "IST0109", message);
        // What a namespace keeps to itself overrides what all see, whatever its age.
        for (public, private) in [("a", "b"), ("b", "a")] {
            let objects = [rival("other", public, "'*'"), rival("shop", private, ".")];
            let who = format!(
                "clients in shop get the routes of VirtualService shop/{private}, whose exportTo names them; clients in \
                 all other namespaces get these"
            );
            assert_eq!(told(&objects), [info(public, &who)]);
        }
        let by_name = [rival("other", "a", "shop"), rival("shop", "b", ".")];
        let all = "VirtualService shop/b speaks for `*.a.b` too, and its exportTo names these clients: its routes are in \
                   force, and none of these";
        assert_eq!(told(&by_name), [error("a", all.to_owned())]);
        let older = [rival("other", "a", "shop, pay"), rival("third", "b", "shop, bank")];
        let who =
            "clients in shop get the routes of VirtualService other/a, which comes first; clients in bank get these";
        assert_eq!(told(&older), [error("b", host(who))]);
        let three = [rival("other", "a", "shop"), rival("other", "b", "pay"), rival("third", "c", "shop, pay")];
        let who = "clients in shop get the routes of VirtualService other/a, which comes first; clients in pay get the \
                   routes of VirtualService other/b, which comes first";
        assert_eq!(told(&three), [error("c", host(who))]);
    }

    #[test]
    fn only_routes_for_the_same_connections_are_in_each_others_way() {
        let to = "route: [{destination: {host: web}}]";
        let two = |a: &str, b: &str| {
            let conflicts = told(&[
                of("shop", "a", &format!("hosts: ['*.a.b'], {a}")),
                of("shop", "b", &format!("hosts: ['*.a.b'], {b}")),
            ]);
            conflicts.len()
        };
        let http = |matches: &str| format!("http: [{{match: [{matches}], {to}}}]");
        let tcp = |matches: &str| format!("tcp: [{{match: [{matches}], {to}}}]");
        let tls = |name: &str| format!("tls: [{{match: [{{sniHosts: [{name}]}}], {to}}}]");
        let any = format!("http: [{{{to}}}]");
        for (a, b, conflicts) in [
            (any.clone(), any.clone(), 1),
            (any.clone(), http("{port: 81}"), 1),
            (http("{port: 80}"), any.clone(), 1),
            (http("{port: 80}"), http("{port: 81}"), 0),
            (http("{uri: {prefix: /a}}"), http("{uri: {prefix: /b}}"), 1),
            // Only clients with the labels get these; all others get the second.
            (http("{sourceLabels: {app: x}}"), any.clone(), 0),
            (any.clone(), http("{sourceLabels: {app: x}}"), 1),
            (http("{gateways: [gw]}"), any.clone(), 0),
            (any.clone(), format!("tcp: [{{{to}}}]"), 0),
            (tcp("{port: 80}"), tcp("{port: 80}"), 1),
            (tcp("{port: 80}"), tcp("{port: 81}"), 0),
            (tcp("{destinationSubnets: [10.0.0.0/8]}"), format!("tcp: [{{{to}}}]"), 0),
            (tls("x.a.b"), tls("y.a.b"), 0),
            (tls("x.a.b"), tls("x.a.b"), 1),
        ] {
            assert_eq!(two(&a, &b), conflicts, "{a} / {b}");
        }
        let in_pay = format!("exportTo: [pay, shop], {}", http("{sourceNamespace: pay}"));
        assert_eq!(two(&in_pay, &format!("exportTo: [shop], {any}")), 0);
        assert_eq!(two(&in_pay, &format!("exportTo: [pay, shop], {any}")), 1);
    }
}
