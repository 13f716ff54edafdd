//! Several services that declare the same host.

use std::sync::Arc;

use super::index::{Index, overlap};
use super::service::word;
use super::{Findings, code};
use crate::api::{self, Kind, ObjectKey, Spec};
use crate::mesh::{Port, Registry, Service, Visibility};
use crate::store::Entry;

pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    for (host, services) in &index.same_host {
        for (place, service) in services.iter().enumerate() {
            merged(index, service, found);
            let mut before = services.iter().take(place);
            let Some(winner) =
                before.find(|winner| overlap(&winner.visibility, &service.visibility))
            else {
                continue;
            };
            let alone = std::slice::from_ref(service);
            let declared =
                if service.merged_from.is_empty() { alone } else { &service.merged_from };
            for loser in declared {
                unmerged(index, host, winner, loser, found);
            }
        }
    }
}

/// The object that a service comes from.
fn key(service: &Service) -> ObjectKey {
    let kind = match service.registry {
        Registry::Kubernetes => Kind::Service,
        Registry::ServiceEntry => Kind::ServiceEntry,
    };
    ObjectKey::new(kind, &service.namespace, &service.name)
}

/// Ports of merged ServiceEntries whose protocol an older entry overrides.
fn merged(index: &Index<'_>, service: &Service, found: &mut Findings) {
    for younger in service.merged_from.iter().skip(1) {
        let Some(entry) = index.store.get(&key(younger)) else {
            continue;
        };
        for port in &younger.ports {
            let Some(first) = service.declaring(port.number).next() else {
                continue;
            };
            let Some(used) = first.port(port.number).filter(|used| used.protocol != port.protocol)
            else {
                continue;
            };
            let Some(n) = position(entry, port) else {
                continue;
            };
            let message = format!(
                "port {} of `{}` is {} here and {} in {}, which comes first: this protocol has no effect",
                port.number,
                service.host,
                word(port.protocol),
                word(used.protocol),
                key(first)
            );
            let path = format!("spec.ports[{n}].protocol");
            found.add(&code::SERVICE_CONFLICT, entry, path, message, "give both the same protocol");
        }
    }
}

/// The index of a port in its ServiceEntry.
fn position(entry: &Entry, port: &Port) -> Option<usize> {
    let Spec::ServiceEntry(spec) = &entry.object.spec else {
        return None;
    };
    spec.ports.iter().position(|declared| declared.number == u32::from(port.number))
}

/// A service that loses its host to another one. Its endpoints may still be used.
fn unmerged(
    index: &Index<'_>,
    host: &str,
    winner: &Service,
    loser: &Arc<Service>,
    found: &mut Findings,
) {
    let Some(entry) = index.store.get(&key(loser)) else {
        return;
    };
    let neighbours = winner.namespace == loser.namespace;
    let spec = match &entry.object.spec {
        Spec::ServiceEntry(spec) => Some(spec),
        _ => None,
    };
    let (counting, lost): (Vec<&Port>, Vec<&Port>) = loser.ports.iter().partition(|port| {
        neighbours && spec.is_some_and(|spec| gives_endpoints(spec, winner, port))
    });
    if !counting.is_empty() && lost.is_empty() {
        return;
    }
    let who = match neighbours {
        true if !counting.is_empty() => {
            format!("its endpoints are used only for port {}", numbers(&counting))
        }
        true if is_within(&loser.visibility, &winner.visibility) => {
            "no client uses this one".to_owned()
        }
        true => "clients that see both do not use this one".to_owned(),
        false => format!("clients outside {} do not use this one", loser.namespace),
    };
    let differ = if neighbours { differences(winner, loser) } else { Vec::new() };
    let (why, advice) = if differ.is_empty() {
        (String::new(), "remove one of them, or separate them with exportTo")
    } else {
        (
            format!(" and differs in {}", differ.join(", ")),
            "remove one of them, or make them agree so that they are merged",
        )
    };
    let place =
        spec.and_then(|spec| spec.hosts.iter().position(|name| name.eq_ignore_ascii_case(host)));
    let path = place.map(|n| format!("spec.hosts[{n}]")).unwrap_or_default();
    let message =
        format!("`{host}` is also the host of {}, which takes precedence{why}: {who}", key(winner));
    found.add(&code::SERVICE_CONFLICT, entry, path, message, advice);
}

fn numbers(ports: &[&Port]) -> String {
    ports.iter().map(|port| port.number.to_string()).collect::<Vec<_>>().join(", ")
}

/// Whether an entry that is not merged with `winner` has endpoints for a port of it.
fn gives_endpoints(spec: &api::ServiceEntry, winner: &Service, port: &Port) -> bool {
    let mut ports = winner.ports.iter();
    let (known, is_address) = match winner.registry {
        Registry::Kubernetes => (ports.any(|known| known.name == port.name), true),
        Registry::ServiceEntry => (ports.any(|known| known.number == port.number), false),
    };
    let has_usable = spec
        .endpoints
        .iter()
        .any(|endpoint| !is_address || endpoint.address.parse::<std::net::IpAddr>().is_ok());
    known && (spec.workload_selector.is_some() || has_usable)
}

/// The fields that keep two ServiceEntries of one namespace from being merged.
fn differences(a: &Service, b: &Service) -> Vec<&'static str> {
    if a.registry != b.registry {
        return Vec::new();
    }
    let all = [
        ("resolution", a.resolution != b.resolution),
        ("labels", a.labels != b.labels),
        ("workloadSelector", a.selector != b.selector),
        ("exportTo", a.visibility != b.visibility),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// Whether every namespace that sees `a` sees `b` as well.
fn is_within(a: &Visibility, b: &Visibility) -> bool {
    match (a, b) {
        (_, Visibility::Public) => true,
        (Visibility::Public, Visibility::Namespaces(_)) => false,
        (Visibility::Namespaces(a), Visibility::Namespaces(b)) => a.is_subset(b),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{base, found};

    fn entry(name: &str, namespace: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    }

    const HTTP: &str = "resolution: DNS, ports: [{name: http, number: 80, protocol: HTTP}]";
    const HOST: [(&str, &str); 1] = [("WEIR0111", "spec.hosts[0]")];

    #[track_caller]
    fn assert_found(objects: &str, wanted: &[(&str, &str)]) {
        let wanted: Vec<_> =
            wanted.iter().map(|(code, path)| (*code, (*path).to_owned())).collect();
        assert_eq!(found(objects), wanted);
    }

    /// Two entries for one host, the second in this namespace and with this spec.
    fn with_second(namespace: &str, spec: &str) -> String {
        let first = entry("a", "shop", &format!("hosts: [api.example.com], {HTTP}"));
        first + &entry("b", namespace, &format!("hosts: [api.example.com], {spec}"))
    }

    #[test]
    fn compatible_entries_are_merged() {
        assert_found(&with_second("shop", HTTP), &[]);
        assert_found(
            &with_second(
                "shop",
                "resolution: DNS, ports: [{name: tls, number: 443, protocol: TLS}]",
            ),
            &[],
        );
        assert_found(&with_second("shop", &format!("exportTo: ['*'], {HTTP}")), &[]);
        let other = "resolution: DNS, ports: [{name: tls, number: 443, protocol: TLS}, {name: x, number: 80, protocol: GRPC}]";
        assert_found(&with_second("shop", other), &[("WEIR0111", "spec.ports[1].protocol")]);
    }

    fn with_static_endpoint(more_ports: &str) -> String {
        let ports = format!("{{name: http, number: 80, protocol: HTTP}}{more_ports}");
        format!("resolution: STATIC, endpoints: [{{address: 10.1.2.3}}], ports: [{ports}]")
    }

    #[test]
    fn incompatible_entries_are_reported() {
        assert_found(
            &with_second(
                "shop",
                "resolution: NONE, ports: [{name: http, number: 80, protocol: HTTP}]",
            ),
            &HOST,
        );
        assert_found(&with_second("pay", HTTP), &HOST);
        assert_found(&with_second("pay", &format!("exportTo: ['~'], {HTTP}")), &[]);
        // The private one is used in its own namespace, and the other one everywhere else.
        let private = with_second("shop", &format!("exportTo: [.], {HTTP}"));
        assert_found(&private, &HOST);
        // The endpoints of both are used.
        assert_found(&with_second("shop", &with_static_endpoint("")), &[]);
        assert_found(
            &with_second(
                "shop",
                &with_static_endpoint(", {name: more, number: 81, protocol: HTTP}"),
            ),
            &HOST,
        );
    }

    fn beside_service(namespace: &str, spec: &str) -> String {
        base() + &entry("b", namespace, &format!("hosts: [many.shop.svc.cluster.local], {spec}"))
    }

    fn static_endpoint_at(name: &str) -> String {
        let port = format!("{{name: {name}, number: 80, protocol: HTTP}}");
        format!("resolution: STATIC, endpoints: [{{address: 10.1.2.3}}], ports: [{port}]")
    }

    #[test]
    fn an_entry_for_a_services_host_adds_endpoints() {
        assert_found(&beside_service("shop", &static_endpoint_at("http")), &[]);
        assert_found(&beside_service("shop", &static_endpoint_at("other")), &HOST);
        assert_found(&beside_service("pay", &static_endpoint_at("http")), &HOST);
        assert_found(&beside_service("shop", HTTP), &HOST);
    }
}
