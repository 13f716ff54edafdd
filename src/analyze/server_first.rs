//! Checks ports where the server speaks first: a proxy that waits for the first bytes of the client, to detect the
//! protocol or mutual TLS, waits forever, as does the client.

use std::collections::BTreeSet;

use super::index::{Index, shown};
use super::{Findings, all_of, code};
use crate::api::{self, IntOrString, Kind, Spec};
use crate::mesh::{self, Accepts, Protocol, Registry};
use crate::store::Entry;

/// Protocols in which the server speaks first: the words for them in names of ports and in `appProtocol`, and their
/// well-known ports. With TLS from the start, as on 465, 993 and 995, the client speaks first; in SSH both do (RFC 4253,
/// section 4.2).
const PROTOCOLS: [(&str, &[&str], &[u16]); 7] = [
    ("FTP", &["ftp"], &[21]),
    ("SMTP", &["smtp", "submission"], &[25, 587]),
    ("POP3", &["pop3"], &[110]),
    ("IMAP", &["imap"], &[143]),
    ("MySQL", &["mysql", "mariadb"], &[3306]),
    ("NATS", &["nats"], &[4222]),
    ("VNC", &["vnc", "rfb"], &[5900]),
];

pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    for entry in index.store.all(Kind::Service) {
        let Spec::Service(spec) = &entry.object.spec else {
            continue;
        };
        for (n, port) in spec.ports.iter().enumerate() {
            let Some(name) = speaks_first(port) else {
                continue;
            };
            let path = format!("spec.ports[{n}]");
            if Protocol::of(port) == Some(Protocol::Unknown) {
                undeclared(entry, port, name, path, found);
            } else {
                permissive(entry, port, name, path, index, found);
            }
        }
    }
}

/// The protocol of a port whose server speaks first, by what the port is called, or else by its number.
fn speaks_first(port: &api::ServicePort) -> Option<&'static str> {
    if !matches!(Protocol::of(port)?, Protocol::Tcp | Protocol::Unknown) {
        return None;
    }
    let protocol = port.app_protocol.as_deref().unwrap_or_default();
    let called = [protocol, &port.name].map(str::to_ascii_lowercase);
    let words: Vec<&str> = called.iter().flat_map(|text| text.split(['-', '/', '.'])).collect();
    let by_name = PROTOCOLS.iter().find(|(_, own, _)| own.iter().any(|word| words.contains(word)));
    // Where the client speaks first, the number says nothing.
    if by_name.is_none() && words.iter().any(|word| matches!(*word, "redis" | "mongo" | "tls")) {
        return None;
    }
    let target = match &port.target_port {
        Some(IntOrString::Int(number)) => *number,
        _ => port.port,
    };
    let mut all = PROTOCOLS.iter();
    let by_number = all.find(|(.., own)| own.contains(&port.port) || own.contains(&target));
    by_name.or(by_number).map(|(name, ..)| *name)
}

/// A port whose protocol is detected: by the sidecars of clients as well, so mutual TLS does not help.
fn undeclared(
    entry: &Entry,
    port: &api::ServicePort,
    name: &str,
    path: String,
    found: &mut Findings,
) {
    let message = format!(
        "port {} is {name}, where the server speaks first, but its protocol is detected: sidecars wait for the client's \
         first bytes, and connections hang",
        port.port
    );
    let advice = "set appProtocol: tcp, or start the name of the port with tcp-";
    found.add(&code::SERVER_SPEAKS_FIRST, entry, path, message, advice);
}

/// A port that takes mutual TLS and plain text, which a sidecar tells apart by the client's first bytes.
fn permissive(
    entry: &Entry,
    port: &api::ServicePort,
    name: &str,
    path: String,
    index: &Index<'_>,
    found: &mut Findings,
) {
    let meta = &entry.object.meta;
    let host = mesh::resolve(&meta.name, &meta.namespace, &index.config.domain);
    let known = index.mesh.services.get(&host).into_iter().flat_map(|list| list.iter());
    let own = known.filter(|known| {
        known.service.registry == Registry::Kubernetes && known.service.namespace == meta.namespace
    });
    let endpoints = own.flat_map(|known| known.endpoints.list.iter());
    let endpoints = endpoints.filter(|endpoint| *endpoint.port_name == *port.name);
    let (mut numbers, mut by) = (BTreeSet::new(), BTreeSet::new());
    for endpoint in endpoints.filter(|endpoint| endpoint.takes_mutual_tls) {
        let peers = index.mesh.peer_policy_of(&endpoint.workload);
        if peers.at(endpoint.port) == Accepts::Both {
            numbers.insert(endpoint.port);
            by.extend(peers.objects.iter().map(ToString::to_string));
        }
    }
    let Some(number) = numbers.first() else {
        return;
    };
    let by: Vec<String> = by.into_iter().collect();
    let why = match by.as_slice() {
        [] => "because no PeerAuthentication says otherwise".to_owned(),
        by => format!("by {}", all_of(by)),
    };
    let message = format!(
        "port {} of {} is {name}, where the server speaks first, but its pods are PERMISSIVE on it, {why}: the sidecar \
         waits for the client's first bytes, and connections in plain text hang",
        port.port,
        shown(&host, index.config)
    );
    let advice = format!(
        "set portLevelMtls of {number} to STRICT in a PeerAuthentication for the pods if all clients have certificates; \
         else to DISABLE, in the order that docs/mutual-tls.md gives"
    );
    found.add(&code::SERVER_SPEAKS_FIRST, entry, path, message, advice);
}

#[cfg(test)]
mod tests {
    use super::super::analyze;
    use super::super::tests::store;
    use super::*;
    use crate::mesh::MeshConfig;

    /// A database with this port, and a sidecar with certificates.
    fn objects(port: &str, policy: &str) -> String {
        let name = port.split("name: ").nth(1).and_then(|rest| rest.split([',', '}']).next());
        let name = name.unwrap_or("''");
        let policy = match policy {
            "" => String::new(),
            spec => format!(
                "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n"
            ),
        };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: shop}}\n\
             spec: {{clusterIP: 10.0.0.1, selector: {{app: db}}, ports: [{port}]}}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: db-0, namespace: shop, labels: {{app: db, \
             security.istio.io/tlsMode: istio}}}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: db-1, namespace: shop, labels: {{kubernetes.io/service-name: db}}}}\n\
             addressType: IPv4\nports: [{{name: {name}, port: 13306}}]\n\
             endpoints: [{{addresses: [10.1.0.1], targetRef: {{kind: Pod, name: db-0, namespace: shop}}}}]\n{policy}"
        )
    }

    /// The messages of the findings.
    fn found(port: &str, policy: &str) -> Vec<String> {
        let found = analyze(&store(&objects(port, policy)), &MeshConfig::default()).into_iter();
        let own = found.filter(|finding| finding.code == &code::SERVER_SPEAKS_FIRST);
        own.map(|finding| {
            assert_eq!(finding.path, "spec.ports[0]");
            finding.message
        })
        .collect()
    }

    #[test]
    fn a_port_is_known_by_its_name_or_number() {
        for (fields, expected) in [
            (r#"{"name": "mysql", "port": 1}"#, Some("MySQL")),
            (r#"{"name": "tcp-mysql", "port": 1}"#, Some("MySQL")),
            (r#"{"name": "db", "appProtocol": "mysql", "port": 1}"#, Some("MySQL")),
            (r#"{"name": "mysql", "appProtocol": "tcp", "port": 1}"#, Some("MySQL")),
            (r#"{"name": "tcp", "port": 3306}"#, Some("MySQL")),
            (r#"{"name": "tcp", "port": 1, "targetPort": 3306}"#, Some("MySQL")),
            (r#"{"name": "tcp-smtp", "port": 1}"#, Some("SMTP")),
            (r#"{"port": 25}"#, Some("SMTP")),
            (r#"{"name": "nats", "port": 1}"#, Some("NATS")),
            // The client speaks first.
            (r#"{"name": "tcp", "port": 5432}"#, None),
            (r#"{"name": "mongo", "port": 27017}"#, None),
            (r#"{"name": "redis", "port": 25}"#, None),
            // In SSH, both do.
            (r#"{"name": "ssh", "port": 22}"#, None),
            (r#"{"name": "tls-smtp", "port": 25}"#, None),
            (r#"{"name": "http", "port": 25}"#, None),
            (r#"{"name": "mysql", "protocol": "UDP", "port": 3306}"#, None),
        ] {
            let port: api::ServicePort = serde_json::from_str(fields).unwrap();
            assert_eq!(speaks_first(&port), expected, "{fields}");
        }
    }

    #[test]
    fn a_permissive_port_where_the_server_speaks_first_is_found() {
        let mysql = "{name: mysql, port: 3306, targetPort: 13306}";
        let hangs =
            "the sidecar waits for the client's first bytes, and connections in plain text hang";
        let permissive = "port 3306 of db.shop is MySQL, where the server speaks first, but its pods are PERMISSIVE on it, ";
        let default = format!("{permissive}because no PeerAuthentication says otherwise: {hangs}");
        let by_policy = format!("{permissive}by PeerAuthentication shop/p: {hangs}");
        assert_eq!(found(mysql, ""), [default]);
        assert_eq!(found(mysql, "mtls: {mode: PERMISSIVE}"), [by_policy]);
        for fine in [
            "mtls: {mode: STRICT}",
            "mtls: {mode: DISABLE}",
            "selector: {matchLabels: {app: db}}, portLevelMtls: {13306: {mode: DISABLE}}",
            "selector: {matchLabels: {app: db}}, portLevelMtls: {13306: {mode: STRICT}}",
        ] {
            assert_eq!(found(mysql, fine), [""; 0], "{fine}");
        }
        // Without a sidecar with certificates nothing waits for TLS.
        let without = objects(mysql, "").replace("tlsMode: istio", "tlsMode: disabled");
        let without = analyze(&store(&without), &MeshConfig::default());
        assert!(without.iter().all(|finding| finding.code.id != "WEIR0209"), "{without:?}");
    }

    #[test]
    fn a_port_that_does_not_say_its_protocol_hangs_in_every_mode() {
        let expected = "port 587 is SMTP, where the server speaks first, but its protocol is detected: sidecars wait for \
                        the client's first bytes, and connections hang";
        for policy in ["", "mtls: {mode: STRICT}"] {
            assert_eq!(found("{name: submission, port: 587}", policy), [expected], "{policy}");
        }
        assert_eq!(found("{name: tcp-submission, port: 587}", "mtls: {mode: STRICT}"), [""; 0]);
    }
}
