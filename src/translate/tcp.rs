//! TCP and TLS routing: `tcp` and `tls` routes of VirtualServices, and the default of a service without one.

use std::time::Duration;

use super::cluster_name;
use super::policy::Policy;
use crate::api::{
    self, L4MatchAttributes, ObjectKey, RouteDestination, TlsMatchAttributes, selects,
};
use crate::mesh::{
    DestinationRule, Port, Scope, ScopeView, VirtualService, VisibleService, resolve,
};

/// A group of connections and their target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Chain {
    /// The TLS server names; empty matches any connection, including non-TLS.
    pub sni: Vec<String>,
    /// The destination subnets; empty means any.
    pub subnets: Vec<String>,
    /// Their target.
    pub target: Target,
    /// The VirtualService and field that define it; `None` for the default of a service.
    pub defined_by: Option<(ObjectKey, String)>,
}

/// Where connections go.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Target {
    /// Clusters with their weights; the weight of a single cluster is ignored.
    pub clusters: Vec<(String, u32)>,
    /// The idle timeout; `None` uses Envoy's default.
    pub idle_timeout: Option<Duration>,
    /// The maximum connection duration.
    pub max_duration: Option<Duration>,
    /// Whether the endpoint is picked by a hash of the client's address.
    pub hash_source: bool,
    /// The tunnel's target `HOST:PORT`, and whether it uses POST.
    pub tunnel: Option<(String, bool)>,
}

impl Target {
    /// Everything goes to one cluster, without further settings.
    pub(crate) fn plain(cluster: &str) -> Self {
        Self { clusters: vec![(cluster.to_owned(), 1)], ..Self::default() }
    }

    fn new(clusters: Vec<(String, u32)>, rule: Option<&DestinationRule>, subset: &str) -> Self {
        let mut this = Self { clusters, ..Self::default() };
        let Some(rule) = rule else { return this };
        // These settings apply to the listener, so they come from the rule itself and not from subsets.
        let whole = rule.traffic_policy.as_deref();
        let tcp = whole
            .and_then(|policy| policy.connection_pool.as_ref())
            .and_then(|pool| pool.tcp.as_ref());
        this.idle_timeout = tcp.and_then(|tcp| tcp.idle_timeout).map(|timeout| timeout.0);
        this.max_duration =
            tcp.and_then(|tcp| tcp.max_connection_duration).map(|longest| longest.0);
        let policy = Policy::new(Some(rule), subset, 0);
        let hash = policy.load_balancer.and_then(|balancer| balancer.consistent_hash.as_ref());
        this.hash_source = hash.is_some_and(|hash| hash.use_source_ip == Some(true));
        // A subset does not inherit the rule's tunnel.
        let tunnel = match subset {
            "" => whole.and_then(|policy| policy.tunnel.as_ref()),
            name => rule
                .subset(name)
                .and_then(|subset| subset.traffic_policy.as_deref()?.tunnel.as_ref()),
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

/// The chains for connections to a service port. `subnets` are the service's own if its listener is shared; `by_name`
/// is set if only the server name distinguishes services.
pub(crate) fn chains(
    seen: &VisibleService<'_>,
    port: &Port,
    subnets: &[String],
    by_name: bool,
    view: &ScopeView<'_>,
) -> Vec<Chain> {
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
        let sni = if is_tls && (by_name || !subnets.is_empty()) {
            vec![host.to_string()]
        } else {
            Vec::new()
        };
        let target = Target::new(vec![(cluster, 1)], rule, "");
        found.push(Chain { sni, subnets: subnets.to_vec(), target, defined_by: None });
    }
    found
}

fn tls_chains(
    rule: &VirtualService,
    port: &Port,
    subnets: &[String],
    view: &ScopeView<'_>,
    out: &mut Vec<Chain>,
) {
    for (n, route) in rule.tls().enumerate() {
        let applying = route
            .matches
            .iter()
            .enumerate()
            .filter(|(_, request_match)| tls_applies(request_match, view.scope, port.number));
        for (m, tls_match) in applying {
            let subnets = if tls_match.destination_subnets.is_empty() {
                subnets
            } else {
                tls_match.destination_subnets.as_slice()
            };
            // Of two equal matches the first one wins.
            if out
                .iter()
                .any(|chain| chain.sni == tls_match.sni_hosts && *chain.subnets == *subnets)
            {
                continue;
            }
            if let Some(target) = target(route.destinations, rule, port, view) {
                let defined_by = Some((rule.key.clone(), format!("spec.tls[{n}].match[{m}]")));
                out.push(Chain {
                    sni: tls_match.sni_hosts.clone(),
                    subnets: subnets.to_vec(),
                    target,
                    defined_by,
                });
            }
        }
    }
}

/// Returns whether every connection is handled.
fn tcp_chains(
    rule: &VirtualService,
    port: &Port,
    subnets: &[String],
    view: &ScopeView<'_>,
    out: &mut Vec<Chain>,
) -> bool {
    for (n, route) in rule.tcp().enumerate() {
        let defined_by = Some((rule.key.clone(), format!("spec.tcp[{n}]")));
        let Some(target) = target(route.destinations, rule, port, view) else {
            continue;
        };
        let applying: Vec<_> = route
            .matches
            .iter()
            .filter(|request_match| tcp_applies(request_match, view.scope, port.number))
            .collect();
        if route.matches.is_empty()
            || applying.iter().any(|tcp_match| tcp_match.destination_subnets.is_empty())
        {
            out.push(Chain { sni: Vec::new(), subnets: subnets.to_vec(), target, defined_by });
            return true;
        }
        let given: Vec<String> = applying
            .iter()
            .flat_map(|tcp_match| tcp_match.destination_subnets.iter().cloned())
            .collect();
        if !given.is_empty() && !out.iter().any(|chain| chain.subnets == given) {
            out.push(Chain { sni: Vec::new(), subnets: given, target, defined_by });
        }
    }
    false
}

fn tcp_applies(tcp_match: &L4MatchAttributes, scope: &Scope, port: u16) -> bool {
    applies(
        &tcp_match.gateways,
        &tcp_match.source_labels,
        &tcp_match.source_namespace,
        tcp_match.port,
        scope,
        port,
    )
}

fn tls_applies(tls_match: &TlsMatchAttributes, scope: &Scope, port: u16) -> bool {
    applies(
        &tls_match.gateways,
        &tls_match.source_labels,
        &tls_match.source_namespace,
        tls_match.port,
        scope,
        port,
    )
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

/// `None` if no destination has any weight.
fn target(
    routes: &[RouteDestination],
    rule: &VirtualService,
    port: &Port,
    view: &ScopeView<'_>,
) -> Option<Target> {
    let (namespace, domain) = (rule.namespace(), &view.mesh.config.domain);
    let first = routes.first().and_then(|route| route.destination.as_ref())?;
    let first_service = view.service(&resolve(&first.host, namespace, domain));
    let first_rule =
        first_service.and_then(|seen| view.destination_rule(seen.known)).map(|rule| &**rule);
    if let [_] = routes {
        let cluster = destination_cluster(first, namespace, port, view);
        return Some(Target::new(vec![(cluster, 1)], first_rule, &first.subset));
    }
    let weighted: Vec<(String, u32)> = routes
        .iter()
        .filter_map(|route| {
            let cluster = destination_cluster(route.destination.as_ref()?, namespace, port, view);
            Some((cluster, u32::try_from(route.weight).ok()?))
        })
        .filter(|(_, weight)| *weight > 0)
        .collect();
    (!weighted.is_empty()).then(|| Target::new(weighted, first_rule, ""))
}

/// The name of a destination's cluster. `namespace` is that of the VirtualService.
fn destination_cluster(
    to: &api::Destination,
    namespace: &str,
    port: &Port,
    view: &ScopeView<'_>,
) -> String {
    let host = resolve(&to.host, namespace, &view.mesh.config.domain);
    let service = view.service(&host).map(|seen| &*seen.known.service);
    let number = super::destination_port(to, service, port.number);
    cluster_name(number, &to.subset, super::canonical_host(&host, service))
}
