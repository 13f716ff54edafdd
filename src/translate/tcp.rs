//! Where connections go: `tcp` and `tls` routes of VirtualServices, and what a service without any gets.

use std::time::Duration;

use super::cluster_name;
use super::policy::Policy;
use crate::api::{self, L4MatchAttributes, ObjectKey, RouteDestination, TlsMatchAttributes, selects};
use crate::mesh::{DestinationRule, Port, Registered, Scope, Seen, View, VirtualService, resolve};

/// Connections of one kind, and where they go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    /// The server names that a TLS client asks for; empty means any, and no TLS.
    pub sni: Vec<String>,
    /// The destinations, with a prefix length; empty means any.
    pub subnets: Vec<String>,
    /// Where they go.
    pub target: Target,
    /// The VirtualService and field that say it; `None` for what a service has by itself.
    pub said_by: Option<(ObjectKey, String)>,
}

/// Where connections go.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Clusters with their shares; the share of an only one means nothing.
    pub clusters: Vec<(String, u32)>,
    /// How long a connection may be idle; `None` leaves that to Envoy.
    pub idle_timeout: Option<Duration>,
    /// How long a connection may live.
    pub longest: Option<Duration>,
    /// Whether the client's address decides which endpoint it gets.
    pub hash_source: bool,
    /// Where a tunnel ends, `HOST:PORT`, and whether it is asked for by POST.
    pub tunnel: Option<(String, bool)>,
}

impl Target {
    /// Everything goes to one cluster, and no rule says more.
    pub fn plain(cluster: &str) -> Self {
        Self { clusters: vec![(cluster.to_owned(), 1)], ..Self::default() }
    }

    fn new(clusters: Vec<(String, u32)>, rule: Option<&DestinationRule>, subset: &str) -> Self {
        let mut this = Self { clusters, ..Self::default() };
        let Some(rule) = rule else { return this };
        // A listener is not a cluster: of the pool it is the rule's own that counts here, whatever subsets say.
        let whole = rule.traffic_policy.as_deref();
        let tcp = whole.and_then(|policy| policy.connection_pool.as_ref()).and_then(|pool| pool.tcp.as_ref());
        this.idle_timeout = tcp.and_then(|tcp| tcp.idle_timeout).map(|timeout| timeout.0);
        this.longest = tcp.and_then(|tcp| tcp.max_connection_duration).map(|longest| longest.0);
        let policy = Policy::new(Some(rule), subset, 0);
        let hash = policy.load_balancer.and_then(|balancer| balancer.consistent_hash.as_ref());
        this.hash_source = hash.is_some_and(|hash| hash.use_source_ip == Some(true));
        // A subset's tunnel is its own, or none.
        let tunnel = match subset {
            "" => whole.and_then(|policy| policy.tunnel.as_ref()),
            name => rule.subset(name).and_then(|subset| subset.traffic_policy.as_ref()?.tunnel.as_ref()),
        };
        this.tunnel = tunnel.map(|tunnel| {
            let host = if tunnel.target_host.contains(':') {
                format!("[{}]", tunnel.target_host)
            } else {
                tunnel.target_host.clone()
            };
            (format!("{host}:{}", tunnel.target_port), tunnel.protocol.eq_ignore_ascii_case("POST"))
        });
        this
    }
}

/// The chains for connections to one port of a service. `subnets` are the service's own, where its listener has those
/// of others as well; `by_name` says whether only the server name tells them apart.
pub fn chains(seen: &Seen<'_>, port: &Port, subnets: &[String], by_name: bool, view: &View<'_>) -> Vec<Chain> {
    let host = &seen.known.service.host;
    let rules: Vec<_> = view.rules_at(port.number).all(host).collect();
    let is_tls = matches!(port.protocol, crate::mesh::Protocol::Https | crate::mesh::Protocol::Tls);
    let mut found: Vec<Chain> = Vec::new();
    let mut covered = false;
    if is_tls {
        for rule in &rules {
            tls_chains(rule, port, subnets, view, &mut found);
        }
        covered = !found.is_empty();
    } else {
        for rule in &rules {
            if tcp_chains(rule, port, subnets, view, &mut found) {
                covered = true;
                break;
            }
        }
    }
    if !covered && !found.iter().any(|chain| chain.sni.is_empty() && *chain.subnets == *subnets) {
        let cluster = cluster_name(port.number, "", host);
        let rule = view.destination_rule(seen.known).map(|rule| &**rule);
        let sni = if is_tls && (by_name || !subnets.is_empty()) { vec![host.to_string()] } else { Vec::new() };
        let target = Target::new(vec![(cluster, 1)], rule, "");
        found.push(Chain { sni, subnets: subnets.to_vec(), target, said_by: None });
    }
    found
}

fn tls_chains(rule: &VirtualService, port: &Port, subnets: &[String], view: &View<'_>, out: &mut Vec<Chain>) {
    for (n, route) in rule.tls().enumerate() {
        let applying = route.matches.iter().enumerate().filter(|(_, one)| tls_applies(one, view.scope, port.number));
        for (m, one) in applying {
            let subnets = if one.destination_subnets.is_empty() { subnets } else { one.destination_subnets.as_slice() };
            // The first of two equal matches takes all.
            if out.iter().any(|chain| chain.sni == one.sni_hosts && *chain.subnets == *subnets) {
                continue;
            }
            if let Some(target) = target(route.destinations, rule, port, view) {
                let said_by = Some((rule.key.clone(), format!("spec.tls[{n}].match[{m}]")));
                out.push(Chain { sni: one.sni_hosts.clone(), subnets: subnets.to_vec(), target, said_by });
            }
        }
    }
}

/// Returns whether connections of every kind are taken care of.
fn tcp_chains(rule: &VirtualService, port: &Port, subnets: &[String], view: &View<'_>, out: &mut Vec<Chain>) -> bool {
    for (n, route) in rule.tcp().enumerate() {
        let said_by = Some((rule.key.clone(), format!("spec.tcp[{n}]")));
        let Some(target) = target(route.destinations, rule, port, view) else { continue };
        let applying: Vec<_> = route.matches.iter().filter(|one| tcp_applies(one, view.scope, port.number)).collect();
        if route.matches.is_empty() || applying.iter().any(|one| one.destination_subnets.is_empty()) {
            out.push(Chain { sni: Vec::new(), subnets: subnets.to_vec(), target, said_by });
            return true;
        }
        let given: Vec<String> = applying.iter().flat_map(|one| one.destination_subnets.iter().cloned()).collect();
        if !given.is_empty() && !out.iter().any(|chain| chain.subnets == given) {
            out.push(Chain { sni: Vec::new(), subnets: given, target, said_by });
        }
    }
    false
}

fn tcp_applies(one: &L4MatchAttributes, scope: &Scope, port: u16) -> bool {
    applies(&one.gateways, &one.source_labels, &one.source_namespace, one.port, scope, port)
}

fn tls_applies(one: &TlsMatchAttributes, scope: &Scope, port: u16) -> bool {
    applies(&one.gateways, &one.source_labels, &one.source_namespace, one.port, scope, port)
}

fn applies(
    gateways: &[String],
    labels: &api::Labels,
    namespace: &str,
    wanted: Option<u32>,
    scope: &Scope,
    port: u16,
) -> bool {
    (gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh"))
        && selects(labels, &scope.labels)
        && (namespace.is_empty() || *namespace == *scope.namespace)
        && wanted.is_none_or(|wanted| wanted == 0 || wanted == u32::from(port))
}

/// `None` where no destination gets a share.
fn target(routes: &[RouteDestination], rule: &VirtualService, port: &Port, view: &View<'_>) -> Option<Target> {
    let resolved = |to: &api::Destination| resolve(&to.host, rule.namespace(), &view.mesh.config.domain);
    let cluster = |to: &api::Destination| {
        let host = resolved(to);
        let service = view.service(&host).map(|seen| &*seen.known.service);
        let number = super::destination_port(to, service, port.number);
        cluster_name(number, &to.subset, super::real_host(&host, service))
    };
    let rule_of = |known: &Registered| view.destination_rule(known).map(|rule| &**rule);
    let first = routes.first().and_then(|one| one.destination.as_ref())?;
    let first_rule = view.service(&resolved(first)).and_then(|seen| rule_of(seen.known));
    if let [_] = routes {
        return Some(Target::new(vec![(cluster(first), 1)], first_rule, &first.subset));
    }
    let weighted: Vec<(String, u32)> = routes
        .iter()
        .filter_map(|one| Some((cluster(one.destination.as_ref()?), u32::try_from(one.weight).ok()?)))
        .filter(|(_, weight)| *weight > 0)
        .collect();
    (!weighted.is_empty()).then(|| Target::new(weighted, first_rule, ""))
}
