//! Whether connections to a destination are encrypted with the certificates of the mesh, and why not.

use envoy_types::pb::envoy::config::cluster::v3 as cluster;

use super::{Endpoint, ServersWithoutCertificates, socket_text};
use crate::api::{ObjectKey, TlsMode};
use crate::mesh::{self, Accepts, Certificates, Health, RegisteredService, ScopeView, TLS_MODE};
use crate::translate::policy::Policy;
use crate::translate::{self, tls};

/// How many endpoints are named with a reason of their own.
const NAMED: usize = 3;

/// What is known of the encryption towards a destination.
#[derive(Default)]
pub(super) struct Encryption {
    /// What is to be said of it, as name and text; nothing if nothing in the mesh has certificates.
    pub said: Vec<(&'static str, String)>,
    /// Whether every healthy endpoint refuses the connection.
    pub refused: bool,
}

/// The encryption towards a destination.
pub(super) fn describe(
    view: &ScopeView<'_>,
    to: &cluster::Cluster,
    endpoints: &[Endpoint],
    servers: &ServersWithoutCertificates,
) -> Encryption {
    let Some((port, subset, host)) = translate::destination_of(&to.name) else {
        return Encryption::default();
    };
    let Some(seen) = view.service(host).filter(|seen| !seen.known.service.is_external) else {
        return Encryption::default();
    };
    let connection = Connection::new(view, seen.known, to, (port, subset), servers);
    let members = members(seen.known, port, endpoints);
    let has_certificates = view.mesh.config.identities
        || view.scope.certificates != Certificates::None
        || members.iter().any(|member| member.takes_mutual_tls);
    if !has_certificates {
        return Encryption::default();
    }
    let mut said = vec![("encryption", connection.summary(&members))];
    let plain = members.iter().filter_map(|member| connection.why_plain(member));
    said.extend(named("plain text", plain.collect()));
    let refusals: Vec<_> =
        members.iter().map(|member| (member.health, connection.why_refused(member))).collect();
    let mut healthy = refusals.iter().filter(|(health, _)| *health == Health::Healthy).peekable();
    let refused = healthy.peek().is_some()
        && healthy.all(|(_, refusal)| refusal.as_ref().is_some_and(|refusal| refusal.is_certain));
    let texts = refusals.into_iter().filter_map(|(_, refusal)| Some(refusal?.text));
    said.extend(named("refused", texts.collect()));
    Encryption { said, refused }
}

/// That an endpoint refuses a connection.
struct Refusal {
    /// The endpoint and the reason.
    text: String,
    /// Whether it follows from what weir knows.
    is_certain: bool,
}

/// The first of these sentences, and how many more there are.
fn named(name: &'static str, sentences: Vec<String>) -> Vec<(&'static str, String)> {
    let more = sentences.len().saturating_sub(NAMED);
    let mut found: Vec<_> =
        sentences.into_iter().take(NAMED).map(|sentence| (name, sentence)).collect();
    found.extend((more > 0).then(|| (name, format!("{more} more"))));
    found
}

/// The endpoints of the model that a destination has; all of the port if Envoy connects to the original destination.
fn members<'a>(
    known: &'a RegisteredService,
    port: u16,
    endpoints: &[Endpoint],
) -> Vec<&'a mesh::Endpoint> {
    let name = known.service.port(port).map(|port| &port.name);
    let of_port = known.endpoints.list.iter().filter(|member| Some(&member.port_name) == name);
    let is_listed = |member: &&mesh::Endpoint| {
        endpoints.is_empty()
            || endpoints.iter().any(|endpoint| {
                member
                    .addresses()
                    .any(|address| endpoint.address == socket_text(address, member.port))
            })
    };
    of_port.filter(is_listed).collect()
}

/// What decides about the encryption of connections to one cluster.
struct Connection<'a> {
    view: &'a ScopeView<'a>,
    /// The DestinationRule and the mode that it sets.
    by_rule: Option<(String, TlsMode)>,
    /// Whether the cluster chooses by endpoint.
    by_endpoint: bool,
    /// Whether the cluster has one transport socket for all endpoints.
    has_socket: bool,
    servers: &'a ServersWithoutCertificates,
}

impl<'a> Connection<'a> {
    fn new(
        view: &'a ScopeView<'a>,
        known: &RegisteredService,
        to: &cluster::Cluster,
        (port, subset): (u16, &str),
        servers: &'a ServersWithoutCertificates,
    ) -> Self {
        let rule = view.destination_rule(known);
        let policy = Policy::new(rule.map(|rule| &**rule), subset, port);
        let names = rule.map(|rule| objects(&rule.keys));
        Self {
            view,
            by_rule: names.zip(policy.tls.map(|tls| tls.mode)),
            by_endpoint: !to.transport_socket_matches.is_empty(),
            has_socket: to.transport_socket.as_ref().is_some_and(tls::is_tls),
            servers,
        }
    }

    /// Whether connections to an endpoint use the certificates of the mesh.
    fn encrypts(&self, member: &mesh::Endpoint) -> bool {
        match &self.by_rule {
            Some((_, mode)) => *mode == TlsMode::IstioMutual,
            None => self.has_socket || (self.by_endpoint && member.takes_mutual_tls),
        }
    }

    fn summary(&self, members: &[&mesh::Endpoint]) -> String {
        let client = self.view.scope.certificates;
        match &self.by_rule {
            Some((rule, TlsMode::IstioMutual)) if client == Certificates::None => {
                return format!(
                    "mutual TLS, by {rule}, with certificates of Istio's agent: weir gives the client none"
                );
            }
            Some((rule, TlsMode::IstioMutual)) => return format!("mutual TLS, by {rule}"),
            Some((rule, TlsMode::Disable)) => return format!("none, by {rule}"),
            Some((rule, _)) => {
                return format!("TLS without the certificates of the mesh, by {rule}");
            }
            None => {}
        }
        if client == Certificates::None {
            return format!("none: {}", self.client_without());
        }
        match members.iter().filter(|member| self.encrypts(member)).count() {
            0 => "none".to_owned(),
            count if count == members.len() => "mutual TLS".to_owned(),
            count => format!("mutual TLS to {count} of {} endpoints", members.len()),
        }
    }

    /// Why connections to an endpoint are not encrypted although the client could.
    fn why_plain(&self, member: &mesh::Endpoint) -> Option<String> {
        let by_choice =
            self.by_rule.is_some() || self.view.scope.certificates == Certificates::None;
        if by_choice || self.encrypts(member) {
            return None;
        }
        let (at, policy) = (socket_text(&member.address, member.port), self.policy(member));
        Some(match member.workload.labels.get(TLS_MODE) {
            _ if member.takes_mutual_tls => {
                format!(
                    "{at} takes mutual TLS, but not every endpoint of this headless service does"
                )
            }
            Some(mode) if mode == mesh::TLS_MODE_ISTIO => {
                format!("{at} takes only plain text, by {}", objects(&policy.objects))
            }
            Some(mode) => format!("{at} has no certificates: its label {TLS_MODE} is `{mode}`"),
            None => format!("{at} has no certificates: it lacks the label {TLS_MODE}"),
        })
    }

    /// Why the client has no certificates.
    fn client_without(&self) -> String {
        let why = if self.view.mesh.config.identities {
            "its stream is not on port 15012"
        } else {
            "weir gives none with --identity off"
        };
        format!("the client has no certificates, because {why}")
    }

    /// Why an endpoint refuses the connection.
    fn why_refused(&self, member: &mesh::Endpoint) -> Option<Refusal> {
        let at = socket_text(&member.address, member.port);
        let policy = self.policy(member);
        let is_strict = member.workload.captured.include(member.port)
            && policy.at(member.port) == Accepts::MutualTls;
        let strict = format!("{at} takes only mutual TLS, by {}", objects(&policy.objects));
        if is_strict && member.addresses().any(|address| self.servers.contains(address)) {
            let text = format!(
                "{strict}, but its sidecar has no certificates, because its stream is not on port 15012: it refuses \
                 every connection"
            );
            return Some(Refusal { text, is_certain: true });
        }
        if self.encrypts(member) {
            let text = format!("{at} takes no mutual TLS");
            return (!member.takes_mutual_tls).then_some(Refusal { text, is_certain: false });
        }
        if !is_strict {
            return None;
        }
        let label = member.workload.labels.get(TLS_MODE);
        let identities = self.view.mesh.config.identities;
        if member.takes_mutual_tls || (identities && self.by_rule.is_some() && label.is_some()) {
            let (sent, is_certain) = self.refused_kind();
            let text = format!("{strict}: it refuses {sent}");
            return Some(Refusal { text, is_certain: is_certain && member.takes_mutual_tls });
        }
        let text = format!(
            "{strict}, but its label {TLS_MODE} is `{}`, so clients send plain text: its sidecar refuses that",
            label?
        );
        identities.then_some(Refusal { text, is_certain: false })
    }

    /// What a server that takes only mutual TLS refuses of what the client sends, and whether it certainly does.
    fn refused_kind(&self) -> (&'static str, bool) {
        match &self.by_rule {
            Some((_, TlsMode::Simple)) => ("a client that presents no certificate", true),
            Some((_, TlsMode::Mutual)) => {
                ("a certificate that the authority of the mesh has not signed", false)
            }
            Some(_) => ("plain text", true),
            None if self.view.scope.certificates == Certificates::None => {
                ("a client without certificates", true)
            }
            None => ("plain text", true),
        }
    }

    fn policy(&self, member: &mesh::Endpoint) -> mesh::PeerPolicy {
        self.view.mesh.peer_policy_of(&member.workload)
    }
}

fn objects(keys: &[ObjectKey]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
