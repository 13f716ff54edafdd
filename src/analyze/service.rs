//! Checks Services and ServiceEntries: ports without a protocol, and conflicting services.

use std::collections::HashMap;
use std::net::IpAddr;

use super::index::{Index, PodsByLabel, overlap};
use super::{Findings, code};
use crate::api::{self, IntOrString, Kind, Labels, Spec};
use crate::mesh::{Protocol, Visibility};
use crate::store::Entry;

/// Kubernetes system namespaces, which mesh users cannot change.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    let mut services: Vec<(&Entry, &api::Service)> = Vec::new();
    for entry in index.store.all(Kind::Service) {
        if let Spec::Service(spec) = &entry.object.spec
            && !SYSTEM.contains(&&*entry.object.meta.namespace)
        {
            services.push((entry, spec));
        }
    }
    services.sort_by_key(|(entry, _)| (entry.object.meta.age, entry.object.meta.name.clone()));
    for (entry, spec) in &services {
        ports(entry, spec, found);
    }
    addresses(&services, found);
    entries(index, found);
    workloads(&services, index, found);
}

fn ports(entry: &Entry, spec: &api::Service, found: &mut Findings) {
    let external = spec.type_ == "ExternalName";
    for (n, port) in spec.ports.iter().enumerate() {
        let unnamed = Protocol::of(port) == Some(Protocol::Unknown);
        let path = format!("spec.ports[{n}]");
        let number = port.port;
        if external && (unnamed || port.name == "tcp") {
            let message = format!("port {number} of an ExternalName service {}", named(&port.name));
            let advice = "name it after its protocol, like http-web or tcp-db";
            found.add(&code::EXTERNAL_NAME_PORT, entry, path, message, advice);
        } else if unnamed {
            let message =
                format!("port {number} {}, which specifies no protocol", named(&port.name));
            let advice =
                "set appProtocol, or start the name with http, http2, grpc, https, tls or tcp";
            found.add(&code::PORT_NAME, entry, path, message, advice);
        }
    }
}

fn named(name: &str) -> String {
    if name.is_empty() { "has no name".to_owned() } else { format!("is named `{name}`") }
}

/// The protocol that a port specifies; `None` if it is detected.
fn declared_protocol(port: &api::ServicePort) -> Option<Protocol> {
    Protocol::of(port).filter(|protocol| *protocol != Protocol::Unknown)
}

pub(super) fn word(protocol: Protocol) -> String {
    format!("{protocol:?}").to_ascii_uppercase()
}

/// Two services with the same address and port cannot be distinguished by the client's destination.
fn addresses(services: &[(&Entry, &api::Service)], found: &mut Findings) {
    let mut taken: HashMap<(IpAddr, u16), (&Entry, Protocol)> = HashMap::new();
    for (entry, spec) in services {
        let mut addresses: Vec<IpAddr> = std::iter::once(&spec.cluster_ip)
            .chain(&spec.cluster_ips)
            .filter_map(|text| text.parse().ok())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        for (n, port) in spec.ports.iter().enumerate() {
            let Some(protocol) = declared_protocol(port) else {
                continue;
            };
            let clash = addresses.iter().find_map(|address| {
                let (first, other) =
                    *taken.entry((*address, port.port)).or_insert((entry, protocol));
                (other != protocol).then(|| (format!("{address}:{}", port.port), first, other))
            });
            if let Some((at, first, other)) = clash {
                conflict(entry, n, &at, (&word(protocol), &word(other)), first, found);
            }
        }
    }
}

fn conflict(
    entry: &Entry,
    n: usize,
    at: &str,
    (own, other): (&str, &str),
    first: &Entry,
    found: &mut Findings,
) {
    let message = format!(
        "{at} has protocol {own} here and {other} in {}, which takes \
        precedence",
        first.object.key()
    );
    let advice = "use the same protocol, or different addresses or ports";
    found.add(&code::PROTOCOL_CONFLICT, entry, format!("spec.ports[{n}]"), message, advice);
}

/// A port of a ServiceEntry and its visibility.
struct EntryPort<'a> {
    entry: &'a Entry,
    protocol: &'a str,
    visibility: Visibility,
}

impl EntryPort<'_> {
    /// Whether the two cannot be distinguished. TLS is recognized by its first bytes.
    fn contradicts(&self, other: &Self) -> bool {
        self.is_http() != other.is_http()
            && !self.is_tls()
            && !other.is_tls()
            && overlap(&self.visibility, &other.visibility)
    }

    fn is_http(&self) -> bool {
        self.protocol.starts_with("HTTP") || self.protocol.starts_with("GRPC")
    }

    fn is_tls(&self) -> bool {
        matches!(self.protocol, "HTTPS" | "TLS")
    }
}

/// ServiceEntries without addresses capture everything sent to their ports, which only HTTP and TLS can distinguish.
fn entries(index: &Index<'_>, found: &mut Findings) {
    let mut all: Vec<(&Entry, &api::ServiceEntry, Vec<String>)> = Vec::new();
    for entry in index.store.all(Kind::ServiceEntry) {
        if let Spec::ServiceEntry(spec) = &entry.object.spec {
            let protocols = spec.ports.iter().map(|port| match port.protocol.as_str() {
                "" => "TCP".to_owned(),
                name => name.to_ascii_uppercase(),
            });
            all.push((entry, spec, protocols.collect()));
        }
    }
    all.sort_by_key(|(entry, ..)| (entry.object.meta.age, entry.object.meta.name.clone()));
    let mut taken: HashMap<(&str, u32), Vec<EntryPort<'_>>> = HashMap::new();
    for (entry, spec, protocols) in &all {
        let visibility = Visibility::new(
            spec.export_to.iter().map(String::as_str),
            &entry.object.meta.namespace,
        );
        let addresses: Vec<&str> = if spec.addresses.is_empty() {
            vec!["0.0.0.0"]
        } else {
            spec.addresses.iter().map(String::as_str).collect()
        };
        for (n, (port, protocol)) in spec.ports.iter().zip(protocols).enumerate() {
            if protocol == "TCP" && spec.addresses.is_empty() {
                let message = format!(
                    "captures port {} on every address because it has no addresses",
                    port.number
                );
                let advice =
                    "add addresses, or use a protocol that carries the host: HTTP, HTTPS or TLS";
                found.add(
                    &code::ADDRESS_REQUIRED,
                    entry,
                    format!("spec.ports[{n}]"),
                    message,
                    advice,
                );
            }
            let mut reported = false;
            for address in &addresses {
                let claim = EntryPort { entry, protocol, visibility: visibility.clone() };
                let others = taken.entry((address, port.number)).or_default();
                if let Some(duplicate) =
                    others.iter().find(|other| claim.contradicts(other)).filter(|_| !reported)
                {
                    let at = format!("{address}:{}", port.number);
                    conflict(entry, n, &at, (protocol, duplicate.protocol), duplicate.entry, found);
                    reported = true;
                }
                others.push(claim);
            }
        }
    }
}

/// A pod port has one protocol, whichever service targets it.
fn workloads(services: &[(&Entry, &api::Service)], index: &Index<'_>, found: &mut Findings) {
    type Target<'a> = (&'a str, *const Labels, String);
    let pods = PodsByLabel::new(&index.pods);
    let mut taken: HashMap<Target<'_>, (&Entry, Protocol)> = HashMap::new();
    for (entry, spec) in services {
        let namespace = &*entry.object.meta.namespace;
        let selected: Vec<&Labels> = pods.find(namespace, &spec.selector).collect();
        for (n, port) in spec.ports.iter().enumerate() {
            let Some(protocol) = declared_protocol(port) else {
                continue;
            };
            let target = match &port.target_port {
                None => port.port.to_string(),
                Some(IntOrString::Int(number)) => number.to_string(),
                Some(IntOrString::String(name)) => name.clone(),
            };
            let clash = selected.iter().find_map(|labels| {
                let key = (namespace, std::ptr::from_ref(*labels), target.clone());
                let (first, other) = *taken.entry(key).or_insert((entry, protocol));
                (other != protocol && !std::ptr::eq(first, *entry)).then_some((first, other))
            });
            if let Some((first, other)) = clash {
                let message = format!(
                    "targets port {target} of the same pods as {}, with protocol {} instead of {}",
                    first.object.key(),
                    word(protocol),
                    word(other)
                );
                let advice = "name both ports after the protocol that the pods use";
                found.add(
                    &code::WORKLOAD_CONFLICT,
                    entry,
                    format!("spec.ports[{n}]"),
                    message,
                    advice,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{found, ids};

    fn service(name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        )
    }

    #[test]
    fn a_port_specifies_its_protocol() {
        assert_eq!(
            ids(&service(
                "a",
                "clusterIP: 10.0.0.1, ports: [{name: http, port: 80}, {port: 3306}]"
            )),
            [""; 0]
        );
        assert_eq!(
            found(&service(
                "a",
                "clusterIP: 10.0.0.1, ports: [{name: web, port: 80}, {name: x, appProtocol: http, port: 81}]"
            )),
            [("IST0118", "spec.ports[0]".to_owned())]
        );
        assert_eq!(
            found(&service(
                "a",
                "type: ExternalName, externalName: example.com, ports: [{name: tcp, port: 80}]"
            )),
            [("IST0150", "spec.ports[0]".to_owned())]
        );
    }

    /// A service with an HTTP port at 10.0.0.1, and another one.
    fn at_address(ip: &str, name: &str) -> String {
        service("a", "clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]")
            + &service("b", &format!("clusterIP: {ip}, ports: [{{name: {name}, port: 80}}]"))
    }

    #[test]
    fn one_address_and_port_has_one_protocol() {
        assert_eq!(ids(&at_address("10.0.0.2", "tcp")), [""; 0]);
        assert_eq!(ids(&at_address("10.0.0.1", "http-b")), [""; 0]);
        assert_eq!(
            found(&at_address("10.0.0.1", "tcp")),
            [("WEIR0204", "spec.ports[0]".to_owned())]
        );
    }

    /// A pod that an HTTP service selects, and another service.
    fn with_target(selector: &str, target: u16) -> String {
        let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-0, labels: {app: web, version: v1}}\n";
        service(
            "a",
            "clusterIP: 10.0.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]",
        ) + &service(
            "b",
            &format!(
                "clusterIP: 10.0.0.2, selector: {{{selector}}}, ports: [{{name: tcp, port: 9, targetPort: {target}}}]"
            ),
        ) + pod
    }

    #[test]
    fn one_port_of_a_pod_has_one_protocol() {
        assert_eq!(ids(&with_target("app: other", 8080)), [""; 0]);
        assert_eq!(ids(&with_target("version: v1", 8081)), [""; 0]);
        assert_eq!(
            found(&with_target("version: v1", 8080)),
            [("IST0116", "spec.ports[0]".to_owned())]
        );
    }

    fn entry(name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\n\
             spec: {{hosts: [{name}.example.com], resolution: DNS, {spec}}}\n"
        )
    }

    fn found_in_entry(spec: &str) -> Vec<(&'static str, String)> {
        found(&entry("a", spec))
    }

    #[test]
    fn a_service_entry_needs_addresses_for_tcp() {
        let expected = [("IST0134", "spec.ports[0]".to_owned())];
        assert_eq!(found_in_entry("ports: [{name: tcp, number: 5432, protocol: TCP}]"), expected);
        assert_eq!(found_in_entry("ports: [{name: any, number: 5432}]"), expected);
        assert_eq!(
            found_in_entry(
                "addresses: [240.0.0.1], ports: [{name: tcp, number: 5432, protocol: TCP}]"
            ),
            []
        );
        assert_eq!(
            found_in_entry(
                "ports: [{name: tls, number: 443, protocol: TLS}, {name: http, number: 80, protocol: HTTP}]"
            ),
            []
        );
    }

    fn with_port(name: &str, protocol: &str, more: &str) -> String {
        let port = format!("ports: [{{name: p, number: 99, protocol: {protocol}}}]");
        entry(name, &format!("addresses: [240.0.0.1], {port}, {more}"))
    }

    fn found_in_two(other: &str, more: &str) -> Vec<(&'static str, String)> {
        found(&(with_port("a", "HTTP", "") + &with_port("b", other, more)))
    }

    #[test]
    fn service_entries_with_one_address_and_port_have_one_protocol() {
        assert_eq!(found_in_two("TCP", ""), [("WEIR0204", "spec.ports[0]".to_owned())]);
        assert_eq!(found_in_two("TCP", "exportTo: ['~']"), []);
        assert_eq!(found_in_two("HTTP2", ""), []);
        assert_eq!(found_in_two("TLS", ""), []);
    }
}
