//! Reports made of a state and of what the proxies acked. Pure.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::ledger::State;
use crate::api::{Destination, HttpRouteDestination, Kind, ObjectKey, RouteDestination};
use crate::mesh::{Mesh, Scope, View, VirtualService, covers, resolve};
use crate::translate::virtual_host::host_and_port;
use crate::xds::board::ProxyStatus;

/// A proxy and the scope it is in.
#[derive(Clone, Debug)]
pub struct ProxyReport {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod.
    pub pod: Arc<str>,
    /// Proxies with the same scope get the same resources.
    pub scope: String,
    /// What is known of it.
    pub status: ProxyStatus,
}

/// Where one object is live.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectReport {
    /// The object.
    pub object: ObjectKey,
    /// `metadata.generation`; 0 where there is none.
    pub generation: i64,
    /// The state of the mesh that its present form came into force with.
    pub revision: u64,
    /// Whether all proxies in scope have it and nothing of it is held back or refused.
    pub live: bool,
    /// The proxies in scope.
    pub proxies: Vec<ProxyVerdict>,
    /// Why its newest form is not in force at all.
    pub invalid: Vec<String>,
    /// What of it is held back.
    pub held: Vec<String>,
}

/// Whether one proxy has an object.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyVerdict {
    /// The proxy.
    pub id: Arc<str>,
    /// Whether it has it.
    pub state: Verdict,
    /// Why not.
    pub reason: String,
}

/// Whether a proxy has an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It acked it.
    Live,
    /// It has not acked it yet.
    Lagging,
    /// It is not sent, because it leads to a cluster that nothing defines.
    Held,
    /// It refused it.
    Refused,
}

/// A route that shares requests among several destinations.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitReport {
    /// The VirtualService whose hosts it is for.
    pub object: ObjectKey,
    /// The VirtualService that holds the route: the same, or a delegate of it.
    pub defined_in: ObjectKey,
    /// Where in that one, like `spec.http[0]`.
    pub field: String,
    /// The route's name.
    pub name: String,
    /// Its destinations.
    pub shares: Vec<DestinationShare>,
    /// Proxies that have it in force.
    pub live: usize,
    /// Proxies that see it.
    pub in_scope: usize,
    /// Why the object's newest form is not in force; the shares are those of the last accepted one.
    pub invalid: Vec<String>,
}

/// A destination's share.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationShare {
    /// The host.
    pub host: String,
    /// The subset; empty for all.
    pub subset: String,
    /// The port; 0 where the object gives none.
    pub port: u32,
    /// What the object says, in percent.
    pub wanted: f64,
    /// What is in force, in percent.
    pub effective: f64,
}

/// All proxies, with their scopes.
pub fn proxies(state: &State, connected: &[ProxyStatus]) -> Vec<ProxyReport> {
    let report = |status: &ProxyStatus| ProxyReport {
        namespace: status.proxy.namespace.clone(),
        pod: status.proxy.name.clone(),
        scope: state.mesh.as_ref().map(|mesh| scope_name(&mesh.scope(&status.proxy))).unwrap_or_default(),
        status: status.clone(),
    };
    connected.iter().map(report).collect()
}

/// A short name for a scope: its namespace, and a hash of all of it.
fn scope_name(scope: &Scope) -> String {
    struct Fixed(xxhash_rust::xxh3::Xxh3);
    impl Hasher for Fixed {
        fn finish(&self) -> u64 {
            self.0.digest()
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut hasher = Fixed(xxhash_rust::xxh3::Xxh3::new());
    scope.hash(&mut hasher);
    format!("{}-{:04x}", scope.namespace, hasher.finish() & 0xffff)
}

/// Where an object is live; `None` where there is no such object.
pub fn object(state: &State, connected: &[ProxyStatus], key: &ObjectKey) -> Option<ObjectReport> {
    let invalid = state.invalid.get(key).cloned().unwrap_or_default();
    let in_force = state.in_force.get(key).copied();
    let since = in_force.map(|one| one.since);
    if since.is_none() && invalid.is_empty() {
        return None;
    }
    let name = key.to_string();
    let held: Vec<String> = state.held.iter().filter(|held| held.object == name).map(ToString::to_string).collect();
    let mut seen = Scopes::default();
    let proxies: Vec<ProxyVerdict> = match (&state.mesh, since) {
        (Some(mesh), Some(since)) => connected
            .iter()
            .filter(|status| seen.sees(mesh, status, key))
            .map(|status| verdict(mesh, status, key, since))
            .collect(),
        _ => Vec::new(),
    };
    let all = proxies.iter().all(|proxy| proxy.state == Verdict::Live);
    Some(ObjectReport {
        object: key.clone(),
        generation: in_force.map_or(0, |one| one.generation),
        revision: since.unwrap_or(0),
        live: all && held.is_empty() && invalid.is_empty(),
        proxies,
        invalid,
        held,
    })
}

/// Which scopes see which objects, each worked out once.
#[derive(Default)]
struct Scopes(BTreeMap<(Scope, ObjectKey), bool>);

impl Scopes {
    fn sees(&mut self, mesh: &Mesh, status: &ProxyStatus, key: &ObjectKey) -> bool {
        let scope = mesh.scope(&status.proxy);
        *self.0.entry((scope.clone(), key.clone())).or_insert_with(|| {
            let view = View::new(mesh, &scope);
            match key.kind {
                Kind::VirtualService => {
                    view.rules.iter().any(|rule| rule.key == *key || rule.http().any(|http| *http.key == *key))
                }
                _ => view
                    .services()
                    .any(|seen| view.destination_rule(seen.known).is_some_and(|rule| rule.keys.contains(key))),
            }
        })
    }
}

fn verdict(mesh: &Mesh, status: &ProxyStatus, key: &ObjectKey, since: u64) -> ProxyVerdict {
    let id = status.id.clone();
    let live = ProxyVerdict { id: id.clone(), state: Verdict::Live, reason: String::new() };
    if status.acked.is_some_and(|acked| acked >= since) {
        return live;
    }
    let hosts = hosts(mesh, key);
    let concerns = |name: &str| hosts.iter().any(|host| is_about(name, host));
    if status.resting && status.reached.is_some_and(|reached| reached >= since) {
        // A listener or route table of many hosts that was refused may be for the sake of this one.
        let whole = |kind: &str| kind == "rds" || kind == "lds";
        if let Some(refused) = status.refused.iter().find(|one| concerns(&one.name) || whole(one.kind)) {
            let reason = format!("{} {}: {}", refused.kind, refused.name, refused.message);
            return ProxyVerdict { id, state: Verdict::Refused, reason };
        }
        let held = status.held.iter().find(|one| one.virtual_host.as_deref().is_none_or(concerns));
        return match held {
            Some(held) => {
                let reason = format!("there is no cluster {}", held.missing_cluster);
                ProxyVerdict { id, state: Verdict::Held, reason }
            }
            None => live,
        };
    }
    let reason = status.lagging.clone().unwrap_or_else(|| match (status.acked, status.wanted) {
        (Some(acked), Some(wanted)) => format!("has state {acked} and is to have {wanted}"),
        _ => "has nothing yet".to_owned(),
    });
    ProxyVerdict { id, state: Verdict::Lagging, reason }
}

fn hosts(mesh: &Mesh, key: &ObjectKey) -> Vec<Arc<str>> {
    match key.kind {
        Kind::VirtualService => {
            let of = |rule: &Arc<VirtualService>| rule.key == *key || rule.http().any(|http| *http.key == *key);
            mesh.virtual_services.iter().filter(|rule| of(rule)).flat_map(|rule| rule.hosts.clone()).collect()
        }
        _ => {
            let rules = mesh.destination_rules.iter().filter(|rule| rule.keys.contains(key));
            rules.map(|rule| rule.host.clone()).collect()
        }
    }
}

/// Whether a resource's name (`HOST:PORT`, or a cluster's) is about a host.
fn is_about(name: &str, host: &str) -> bool {
    let own = match name.rsplit_once('|') {
        Some((_, own)) => own,
        None => host_and_port(name).map_or(name, |(own, _)| own),
    };
    covers(host, own)
}

/// Every route that shares requests among several destinations, or of which something is held back.
pub fn splits(state: &State, connected: &[ProxyStatus], namespace: &str) -> Vec<SplitReport> {
    let Some(mesh) = &state.mesh else { return Vec::new() };
    let mut seen = Scopes::default();
    let mut found = Vec::new();
    let in_force: BTreeMap<&ObjectKey, &Arc<VirtualService>> =
        mesh.virtual_services.iter().map(|one| (&one.key, one)).collect();
    for wanted in state.wanted.iter().filter(|one| one.is_for_mesh() && !one.hosts.is_empty()) {
        if !namespace.is_empty() && *wanted.key.namespace != *namespace {
            continue;
        }
        let routes = of(wanted, &in_force, &mesh.config.domain);
        if routes.is_empty() {
            continue;
        }
        let since = state.in_force.get(&wanted.key).map_or(0, |one| one.since);
        let verdicts: Vec<ProxyVerdict> = connected
            .iter()
            .filter(|status| seen.sees(mesh, status, &wanted.key))
            .map(|status| verdict(mesh, status, &wanted.key, since))
            .collect();
        let live = verdicts.iter().filter(|one| one.state == Verdict::Live).count();
        found.extend(routes.into_iter().map(|route| SplitReport {
            object: wanted.key.clone(),
            defined_in: route.key,
            field: route.field,
            name: route.name,
            shares: route.shares,
            live,
            in_scope: verdicts.len(),
            invalid: state.invalid.get(&wanted.key).cloned().unwrap_or_default(),
        }));
    }
    found
}

/// A route of a VirtualService, and who gets how much of it.
struct Route {
    key: ObjectKey,
    field: String,
    name: String,
    shares: Vec<DestinationShare>,
}

fn of(wanted: &VirtualService, in_force: &BTreeMap<&ObjectKey, &Arc<VirtualService>>, domain: &str) -> Vec<Route> {
    let Some(effective) = in_force.get(&wanted.key) else { return Vec::new() };
    let mut found = Vec::new();
    for (want, have) in wanted.http().zip(effective.http()) {
        let namespace = &want.key.namespace;
        if let Some(shares) = shares(&want.route.route, &have.route.route, namespace, domain) {
            let (key, name) = (want.key.clone(), want.route.name.clone());
            found.push(Route { key, field: format!("spec.http[{}]", want.index), name, shares });
        }
    }
    let plain = |list: &[RouteDestination]| -> Vec<HttpRouteDestination> {
        let one = |one: &RouteDestination| HttpRouteDestination {
            destination: one.destination.clone(),
            weight: one.weight,
            headers: None,
        };
        list.iter().map(one).collect()
    };
    let own = &wanted.key;
    let stream = |want: &[RouteDestination], have: &[RouteDestination], field: String| {
        let shares = shares(&plain(want), &plain(have), &own.namespace, domain)?;
        Some(Route { key: own.clone(), field, name: String::new(), shares })
    };
    for (n, (want, have)) in wanted.tcp().iter().zip(effective.tcp()).enumerate() {
        found.extend(stream(&want.route, &have.route, format!("spec.tcp[{n}]")));
    }
    for (n, (want, have)) in wanted.tls().iter().zip(effective.tls()).enumerate() {
        found.extend(stream(&want.route, &have.route, format!("spec.tls[{n}]")));
    }
    found
}

/// `None` for a route with one destination of which nothing is held back.
fn shares(
    wanted: &[HttpRouteDestination],
    effective: &[HttpRouteDestination],
    namespace: &str,
    domain: &str,
) -> Option<Vec<DestinationShare>> {
    if wanted.len() < 2 && wanted == effective {
        return None;
    }
    let mut all: Vec<&Destination> = Vec::new();
    for to in wanted.iter().chain(effective).filter_map(|one| one.destination.as_ref()) {
        if !all.contains(&to) {
            all.push(to);
        }
    }
    let share = |list: &[HttpRouteDestination], to: &Destination| {
        let weight = |one: &&HttpRouteDestination| if list.len() == 1 { 1.0 } else { f64::from(one.weight.max(0)) };
        let total: f64 = list.iter().map(|one| weight(&one)).sum();
        let own: f64 = list.iter().filter(|one| one.destination.as_ref() == Some(to)).map(|one| weight(&one)).sum();
        if total > 0.0 { (own / total * 10_000.0).round() / 100.0 } else { 0.0 }
    };
    let one = |to: &&Destination| DestinationShare {
        host: resolve(&to.host, namespace, domain).to_string(),
        subset: to.subset.clone(),
        port: to.port.map_or(0, |port| port.number),
        wanted: share(wanted, to),
        effective: share(effective, to),
    };
    Some(all.iter().map(one).collect())
}
