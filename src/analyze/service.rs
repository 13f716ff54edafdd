//! Services: ports that say their protocol, and services that contradict each other.

use std::collections::HashMap;
use std::net::IpAddr;

use super::index::{Index, PodsByLabel};
use super::{Findings, code};
use crate::api::{self, IntOrString, Kind, Labels, Spec};
use crate::mesh::Protocol;
use crate::store::Entry;

/// Kubernetes' own, which no user of a mesh can change.
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
    workloads(&services, index, found);
}

fn ports(entry: &Entry, spec: &api::Service, found: &mut Findings) {
    let external = spec.type_ == "ExternalName";
    for (n, port) in spec.ports.iter().enumerate() {
        let unnamed = Protocol::of(port) == Some(Protocol::Unknown);
        let path = format!("spec.ports[{n}]");
        let number = port.port;
        if external && (unnamed || port.name == "tcp") {
            let message = format!("port {number} of an ExternalName service is named `{}`", port.name);
            let advice = "name it after its protocol, like http-web or tcp-db";
            found.add(&code::EXTERNAL_NAME_PORT, entry, path, message, advice);
        } else if unnamed {
            let message = format!("port {number} is named `{}`, which says no protocol", port.name);
            let advice = "set appProtocol, or begin the name with http, http2, grpc, https, tls or tcp";
            found.add(&code::PORT_NAME, entry, path, message, advice);
        }
    }
}

/// The protocol that a port says; none where it leaves that to inspection.
fn said(port: &api::ServicePort) -> Option<Protocol> {
    Protocol::of(port).filter(|protocol| *protocol != Protocol::Unknown)
}

fn word(protocol: Protocol) -> String {
    format!("{protocol:?}").to_ascii_uppercase()
}

/// Two services with one address and port can not be told apart by what a client asks for.
fn addresses(services: &[(&Entry, &api::Service)], found: &mut Findings) {
    let mut taken: HashMap<(IpAddr, u16), (&Entry, Protocol)> = HashMap::new();
    for (entry, spec) in services {
        let mut addresses: Vec<IpAddr> =
            std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips).filter_map(|text| text.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        for (n, port) in spec.ports.iter().enumerate() {
            let Some(protocol) = said(port) else { continue };
            for address in &addresses {
                let (first, other) = *taken.entry((*address, port.port)).or_insert((entry, protocol));
                if other == protocol {
                    continue;
                }
                let message = format!(
                    "{address}:{} speaks {} here and {} in {}, which goes first",
                    port.port,
                    word(protocol),
                    word(other),
                    first.object.key()
                );
                let advice = "give the two one protocol, or different addresses or ports";
                found.add(&code::PROTOCOL_CONFLICT, entry, format!("spec.ports[{n}]"), message, advice);
                break;
            }
        }
    }
}

/// A port of a pod has one protocol, whichever service leads there.
fn workloads(services: &[(&Entry, &api::Service)], index: &Index<'_>, found: &mut Findings) {
    type Target<'a> = (&'a str, *const Labels, String);
    let pods = PodsByLabel::new(&index.pods);
    let mut taken: HashMap<Target<'_>, (&Entry, Protocol)> = HashMap::new();
    for (entry, spec) in services {
        let namespace = &*entry.object.meta.namespace;
        let selected: Vec<&Labels> = pods.find(namespace, &spec.selector).collect();
        for (n, port) in spec.ports.iter().enumerate() {
            let Some(protocol) = said(port) else { continue };
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
                    "leads to port {target} of the same pods as {}, and says {}, where that one says {}",
                    first.object.key(),
                    word(protocol),
                    word(other)
                );
                let advice = "name both ports after the protocol that the pods speak";
                found.add(&code::WORKLOAD_CONFLICT, entry, format!("spec.ports[{n}]"), message, advice);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{found, ids};

    fn service(name: &str, spec: &str) -> String {
        format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    }

    #[test]
    fn a_port_says_its_protocol() {
        assert_eq!(ids(&service("a", "clusterIP: 10.0.0.1, ports: [{name: http, port: 80}, {port: 3306}]")), [""; 0]);
        assert_eq!(
            found(&service(
                "a",
                "clusterIP: 10.0.0.1, ports: [{name: web, port: 80}, {name: x, appProtocol: http, port: 81}]"
            )),
            [("IST0118", "spec.ports[0]".to_owned())]
        );
        assert_eq!(
            found(&service("a", "type: ExternalName, externalName: example.com, ports: [{name: tcp, port: 80}]")),
            [("IST0150", "spec.ports[0]".to_owned())]
        );
    }

    #[test]
    fn one_address_and_port_has_one_protocol() {
        let two = |ip: &str, name: &str| {
            service("a", "clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]")
                + &service("b", &format!("clusterIP: {ip}, ports: [{{name: {name}, port: 80}}]"))
        };
        assert_eq!(ids(&two("10.0.0.2", "tcp")), [""; 0]);
        assert_eq!(ids(&two("10.0.0.1", "http-b")), [""; 0]);
        assert_eq!(found(&two("10.0.0.1", "tcp")), [("WEIR0204", "spec.ports[0]".to_owned())]);
    }

    #[test]
    fn one_port_of_a_pod_has_one_protocol() {
        let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-0, labels: {app: web, version: v1}}\n";
        let two = |selector: &str, target: u16| {
            service("a", "clusterIP: 10.0.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]")
                + &service(
                    "b",
                    &format!(
                        "clusterIP: 10.0.0.2, selector: {{{selector}}}, ports: [{{name: tcp, port: 9, targetPort: {target}}}]"
                    ),
                )
                + pod
        };
        assert_eq!(ids(&two("app: other", 8080)), [""; 0]);
        assert_eq!(ids(&two("version: v1", 8081)), [""; 0]);
        assert_eq!(found(&two("version: v1", 8080)), [("IST0116", "spec.ports[0]".to_owned())]);
    }
}
