//! Checks which DestinationRules have clients send something else than mutual TLS of the mesh to workloads that take
//! nothing else.

use std::collections::BTreeSet;
use std::fmt;

use super::index::{Index, IndexedDestinationRule, shown, wildcards};
use super::{Findings, all_of, code};
use crate::api::{ClientTlsSettings, Labels, TlsMode, TrafficPolicy};
use crate::explain::socket_text;
use crate::mesh::{Accepts, RegisteredService, is_wildcard};
use crate::text::first_of;

/// How many endpoints, and how many ports, are named.
const NAMED: usize = 3;

pub(super) fn check(rule: &IndexedDestinationRule<'_>, index: &Index<'_>, found: &mut Findings) {
    for setting in settings(rule) {
        let Some(sent) = Sent::by(setting.tls) else {
            continue;
        };
        let mut refusing = Refusing::default();
        for host in hosts(rule, index) {
            for known in index.mesh.services.get(&*host).into_iter().flat_map(|list| list.iter()) {
                refusing.add(known, &setting, index);
            }
        }
        if refusing.ports.is_empty() {
            continue;
        }
        let message = format!("is {}, but {refusing}{}", sent.what(), sent.consequence());
        found.add(sent.code(), rule.entry, setting.path, message, sent.advice());
    }
}

/// The hosts whose clients follow the rule: of those that a wildcard covers, the ones without a rule for fewer hosts.
fn hosts(rule: &IndexedDestinationRule<'_>, index: &Index<'_>) -> Vec<String> {
    let host = &*rule.host;
    if !is_wildcard(host) {
        return vec![host.to_owned()];
    }
    let covered = index.mesh.hosts_covered_by(&rule.host).into_iter().filter(|name| {
        let narrower = std::iter::once(name.to_string()).chain(wildcards(name));
        !narrower
            .take_while(|name| name != host)
            .any(|name| index.rules_by_host.contains_key(&*name))
    });
    covered.map(|name| name.to_string()).collect()
}

/// A place in a rule that sets TLS, and the connections that it is for.
struct Setting<'a> {
    path: String,
    tls: &'a ClientTlsSettings,
    /// The port; `None` for all but `other_ports`.
    port: Option<u32>,
    other_ports: Vec<u32>,
    /// The labels of the subset; empty for all endpoints.
    labels: &'a Labels,
}

impl Setting<'_> {
    fn is_for(&self, port: u16) -> bool {
        let port = u32::from(port);
        self.port.map_or_else(|| !self.other_ports.contains(&port), |own| own == port)
    }
}

/// Every place in a rule that sets TLS.
fn settings<'a>(rule: &'a IndexedDestinationRule<'_>) -> Vec<Setting<'a>> {
    static ALL: Labels = Labels::new();
    let mut found = Vec::new();
    if let Some(policy) = &rule.spec.traffic_policy {
        of_policy(policy, "spec.trafficPolicy", &ALL, &mut found);
    }
    for (n, subset) in rule.spec.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            let path = format!("spec.subsets[{n}].trafficPolicy");
            of_policy(policy, &path, &subset.labels, &mut found);
        }
    }
    found
}

/// An entry for a port replaces TLS as a whole; of several for one port the first counts.
fn of_policy<'a>(
    policy: &'a TrafficPolicy,
    path: &str,
    labels: &'a Labels,
    found: &mut Vec<Setting<'a>>,
) {
    let mut ports: Vec<u32> = Vec::new();
    for (n, entry) in policy.port_level_settings.iter().enumerate() {
        let Some(number) = entry.port.map(|port| port.number).filter(|port| !ports.contains(port))
        else {
            continue;
        };
        ports.push(number);
        if let Some(tls) = &entry.tls {
            let path = format!("{path}.portLevelSettings[{n}].tls.mode");
            found.push(Setting { path, tls, port: Some(number), other_ports: Vec::new(), labels });
        }
    }
    if let Some(tls) = &policy.tls {
        let path = format!("{path}.tls.mode");
        found.push(Setting { path, tls, port: None, other_ports: ports, labels });
    }
}

/// What a client sends that is not mutual TLS of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    PlainText,
    /// TLS without a certificate of the client.
    NoCertificate,
    /// TLS with a certificate from a file.
    OwnCertificate,
}

impl Sent {
    /// `None` for mutual TLS of the mesh, and for a credential, which is reported when the rule is parsed.
    fn by(tls: &ClientTlsSettings) -> Option<Self> {
        match tls.mode {
            TlsMode::Disable => Some(Self::PlainText),
            TlsMode::IstioMutual => None,
            TlsMode::Simple | TlsMode::Mutual if !tls.credential_name.is_empty() => None,
            TlsMode::Simple => Some(Self::NoCertificate),
            TlsMode::Mutual => Some(Self::OwnCertificate),
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::PlainText => "DISABLE",
            Self::NoCertificate => "SIMPLE, which presents no certificate",
            Self::OwnCertificate => "MUTUAL, which presents the certificate in clientCertificate",
        }
    }

    fn consequence(self) -> &'static str {
        match self {
            Self::PlainText | Self::NoCertificate => ": they refuse the connection",
            Self::OwnCertificate => {
                ": they refuse a certificate that the authority of the mesh has not signed"
            }
        }
    }

    fn code(self) -> &'static code::Code {
        match self {
            Self::PlainText | Self::NoCertificate => &code::PLAIN_TEXT_REFUSED,
            Self::OwnCertificate => &code::OTHER_CERTIFICATE,
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::PlainText | Self::NoCertificate => {
                "remove tls here or set ISTIO_MUTUAL, or let the policy be PERMISSIVE or DISABLE for the port"
            }
            Self::OwnCertificate => {
                "use ISTIO_MUTUAL, which presents the certificate of the sidecar"
            }
        }
    }
}

/// The endpoints that take only mutual TLS of the mesh, and why.
#[derive(Default)]
struct Refusing {
    ports: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    policies: BTreeSet<String>,
}

impl Refusing {
    fn add(&mut self, known: &RegisteredService, setting: &Setting<'_>, index: &Index<'_>) {
        for port in known.service.ports.iter().filter(|port| setting.is_for(port.number)) {
            let members = known.endpoints.list.iter().filter(|endpoint| {
                endpoint.port_name == port.name
                    && endpoint.takes_mutual_tls
                    && endpoint.is_in_subset(setting.labels)
            });
            for endpoint in members {
                let peers = index.mesh.peer_policy_of(&endpoint.workload);
                if peers.at(endpoint.port) != Accepts::MutualTls {
                    continue;
                }
                let host = shown(&known.service.host, index.config);
                self.ports.insert(format!("port {} of {host}", port.number));
                self.endpoints.insert(socket_text(&endpoint.address, endpoint.port));
                self.policies.extend(peers.objects.iter().map(ToString::to_string));
            }
        }
    }
}

impl fmt::Display for Refusing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ports, endpoints, policies] = [&self.ports, &self.endpoints, &self.policies]
            .map(|names| names.iter().cloned().collect::<Vec<_>>());
        write!(
            f,
            "{} has endpoints that take only mutual TLS of the mesh ({}), by {}",
            first_of(&ports, NAMED),
            first_of(&endpoints, NAMED),
            all_of(&policies)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::analyze;
    use super::super::tests::{base, store};
    use crate::mesh::MeshConfig;

    /// `web` with the ports http (80, to 8080) and tcp (81, to 9090), and a sidecar with certificates in its v1 alone, with the
    /// policy `p` and the rule `r`.
    fn objects(policy: &str, rule: &str) -> String {
        let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {name: many-1, namespace: shop, labels: {kubernetes.io/service-name: many}}\n\
                     addressType: IPv4\nports: [{name: http, port: 8080}, {name: tcp, port: 9090}]\n\
                     endpoints: [{addresses: [10.1.0.1], targetRef: {kind: Pod, name: many-v1, namespace: shop}}, \
                     {addresses: [10.1.0.2], targetRef: {kind: Pod, name: many-v2, namespace: shop}}]\n";
        let pods = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: many-v1, namespace: shop, labels: {app: many, \
                    version: v1, security.istio.io/tlsMode: istio}}\n\
                    ---\napiVersion: v1\nkind: Pod\nmetadata: {name: many-v2, namespace: shop, labels: {app: many, \
                    version: v2}}\n";
        format!(
            "{}{slice}{pods}---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: p, namespace: shop}}\nspec: {{{policy}}}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: r, namespace: shop}}\nspec: {{{rule}}}\n",
            base()
        )
    }

    fn found(policy: &str, rule: &str) -> Vec<(&'static str, String, String)> {
        let found = analyze(&store(&objects(policy, rule)), &MeshConfig::default()).into_iter();
        let found = found.filter(|finding| finding.code.id.starts_with("WEIR020"));
        found.map(|finding| (finding.code.id, finding.path, finding.message)).collect()
    }

    fn paths(policy: &str, rule: &str) -> Vec<String> {
        found(policy, rule).into_iter().map(|(_, path, _)| path).collect()
    }

    const STRICT: &str = "mtls: {mode: STRICT}";
    const DISABLE: &str = "tls: {mode: DISABLE}";

    fn subset(policy: &str) -> String {
        format!(
            "host: many, subsets: [{{name: v1, labels: {{version: v1}}, trafficPolicy: {{{policy}}}}}]"
        )
    }

    #[test]
    fn plain_text_to_a_strict_workload_is_found_at_every_level() {
        let at_81 = format!(
            "portLevelSettings: [{{port: {{number: 80}}, loadBalancer: {{simple: RANDOM}}}}, {{port: {{number: 81}}, {DISABLE}}}]"
        );
        let at_81_alone = format!("portLevelSettings: [{{port: {{number: 81}}, {DISABLE}}}]");
        for (rule, path) in [
            (format!("host: many, trafficPolicy: {{{DISABLE}}}"), "trafficPolicy.tls.mode"),
            (
                format!("host: many, trafficPolicy: {{{at_81_alone}}}"),
                "trafficPolicy.portLevelSettings[0].tls.mode",
            ),
            (subset(DISABLE), "subsets[0].trafficPolicy.tls.mode"),
            (subset(&at_81), "subsets[0].trafficPolicy.portLevelSettings[1].tls.mode"),
            (
                format!("host: '*.shop.svc.cluster.local', trafficPolicy: {{{DISABLE}}}"),
                "trafficPolicy.tls.mode",
            ),
        ] {
            assert_eq!(paths(STRICT, &rule), [format!("spec.{path}")], "{rule}");
            assert_eq!(paths("mtls: {mode: PERMISSIVE}", &rule), [""; 0], "{rule}");
            let mutual = rule.replace("DISABLE", "ISTIO_MUTUAL");
            assert_eq!(paths(STRICT, &mutual), [""; 0], "{mutual}");
        }
    }

    #[test]
    fn the_message_names_port_endpoint_and_policy() {
        let by_port = "selector: {matchLabels: {app: many}}, portLevelMtls: {9090: {mode: STRICT}}";
        let refused = "port 81 of many.shop has endpoints that take only mutual TLS of the mesh (10.1.0.1:9090), by \
                       PeerAuthentication shop/p";
        let path = "spec.trafficPolicy.tls.mode".to_owned();
        for (tls, code, before, after) in [
            ("mode: DISABLE", "WEIR0206", "is DISABLE, but", "they refuse the connection"),
            (
                "mode: SIMPLE",
                "WEIR0206",
                "is SIMPLE, which presents no certificate, but",
                "they refuse the connection",
            ),
            (
                "mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem",
                "WEIR0207",
                "is MUTUAL, which presents the certificate in clientCertificate, but",
                "they refuse a certificate that the authority of the mesh has not signed",
            ),
        ] {
            let rule = format!("host: many, trafficPolicy: {{tls: {{{tls}}}}}");
            let message = format!("{before} {refused}: {after}");
            assert_eq!(found(by_port, &rule), [(code, path.clone(), message)]);
        }
    }

    #[test]
    fn what_another_part_of_a_rule_replaces_is_not_reported() {
        // The strict port has settings of its own.
        let by_port = "selector: {matchLabels: {app: many}}, portLevelMtls: {9090: {mode: STRICT}}";
        let own = "host: many, trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: [{port: {number: 81}, \
                   loadBalancer: {simple: RANDOM}}]}";
        assert_eq!(paths(by_port, own), [""; 0]);
        // Nobody in the subset requires mutual TLS.
        let v2 = "host: many, subsets: [{name: v2, labels: {version: v2}, trafficPolicy: {tls: {mode: DISABLE}}}]";
        assert_eq!(paths(STRICT, v2), [""; 0]);
        // A rule for the host comes before one for more hosts.
        let wide = "host: '*.shop.svc.cluster.local', trafficPolicy: {tls: {mode: DISABLE}}";
        let narrow = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                      metadata: {name: narrow, namespace: shop}\nspec: {host: many, trafficPolicy: {}}\n";
        let narrow = narrow.replace("{}", "{loadBalancer: {simple: RANDOM}}");
        let text = objects(STRICT, wide) + &narrow;
        let found = analyze(&store(&text), &MeshConfig::default());
        assert!(found.iter().all(|finding| finding.code.id != "WEIR0206"), "{found:?}");
    }
}
