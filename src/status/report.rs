//! Builds reports from a published state and the proxies' ACKs. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::observed::{ObservedRoute, observe};
use super::published::State;
use super::visibility::VisibleObjects;
use crate::api::{Destination, HttpRouteDestination, ObjectKey, RouteDestination, share_of};
use crate::load::Loads;
use crate::mesh::{Scope, VirtualService, resolve};
use crate::revision::MeshRevision;
use crate::xds::connections::ProxyStatus;
use crate::xds::stream::{HeldResource, RejectedResource};

/// A proxy and its scope.
#[derive(Clone, Debug)]
pub(crate) struct ProxyReport {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod.
    pub pod: Arc<str>,
    /// Proxies with the same scope get the same resources.
    pub scope: String,
    /// Its connection status.
    pub status: ProxyStatus,
}

/// On which proxies an object is live.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ObjectReport {
    /// The object.
    pub object: ObjectKey,
    /// `metadata.generation`; 0 if absent.
    pub generation: i64,
    /// The mesh that its present form came into force with.
    pub revision: MeshRevision,
    /// Whether all proxies in scope have it and no part of it is held back or rejected.
    pub live: bool,
    /// The proxies in scope.
    pub proxies: Vec<ProxyObjectState>,
    /// Why its newest version was rejected.
    pub invalid: Vec<String>,
    /// Its changes that are held back.
    pub held: Vec<String>,
}

/// The state of an object on one proxy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProxyObjectState {
    /// The proxy.
    pub id: Arc<str>,
    /// The state.
    pub state: ObjectState,
    /// Why it is not live.
    pub reason: String,
}

/// The state of an object on a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectState {
    /// The proxy ACKed it.
    Live,
    /// The proxy has not ACKed it yet.
    Lagging,
    /// It is not sent because it references an undefined cluster.
    Held,
    /// The proxy rejected it.
    Rejected,
}

/// A route with weighted destinations.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SplitReport {
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
    /// The number of proxies on which it is live.
    pub live: usize,
    /// The number of proxies that see it.
    pub in_scope: usize,
    /// Why the object's newest version was rejected; the shares are those of the last accepted version.
    pub invalid: Vec<String>,
    /// What its destinations got, if proxies report that.
    pub observed: Option<ObservedRoute>,
}

/// A destination's share.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DestinationShare {
    /// The host.
    pub host: String,
    /// The subset; empty for the whole service.
    pub subset: String,
    /// The port; 0 if the object names none.
    pub port: u32,
    /// The desired share in percent.
    pub wanted: f64,
    /// The effective share in percent.
    pub effective: f64,
}

/// All proxies, with their scopes.
pub(crate) fn proxies(state: &State, connected: &[ProxyStatus]) -> Vec<ProxyReport> {
    let reports = connected.iter().map(|status| ProxyReport {
        namespace: status.proxy.namespace.clone(),
        pod: status.proxy.name.clone(),
        scope: state
            .mesh
            .as_ref()
            .map(|mesh| scope_name(&mesh.scope(&status.proxy)))
            .unwrap_or_default(),
        status: status.clone(),
    });
    reports.collect()
}

/// A short name for a scope: its namespace, or `*` for one that no object names, and a hash.
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
    let namespace = match &*scope.namespace {
        Scope::OTHER_NAMESPACE => "*",
        namespace => namespace,
    };
    format!("{namespace}-{:04x}", hasher.finish() & 0xffff)
}

/// On which proxies an object is live; `None` if it does not exist.
pub(crate) fn object(
    state: &State,
    connected: &[ProxyStatus],
    key: &ObjectKey,
) -> Option<ObjectReport> {
    let invalid = state.rejections(key);
    let active = state.active.get(key);
    let since = active.map(|item| item.since);
    if since.is_none() && invalid.is_empty() {
        return None;
    }
    let held = state.held.iter().filter(|held| held.object == *key || held.roots.contains(key));
    let held: Vec<String> = held.map(ToString::to_string).collect();
    let mut visible = VisibleObjects::default();
    let proxies: Vec<ProxyObjectState> = match (&state.mesh, since) {
        (Some(mesh), Some(since)) => visible
            .by_viewpoint(mesh, connected)
            .proxies(key)
            .map(|status| {
                let verdict = Verdict::of(status, key, since);
                let (id, state, reason) = (status.id.clone(), verdict.state(), verdict.reason());
                ProxyObjectState { id, state, reason }
            })
            .collect(),
        _ => Vec::new(),
    };
    let all = proxies.iter().all(|proxy| proxy.state == ObjectState::Live);
    Some(ObjectReport {
        object: key.clone(),
        generation: active.map_or(0, |item| item.version.generation),
        revision: since.unwrap_or_default(),
        live: all && held.is_empty() && invalid.is_empty(),
        proxies,
        invalid,
        held,
    })
}

/// What a proxy has of an object that it sees.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict<'a> {
    /// It ACKed it.
    Live,
    /// It has not ACKed it yet.
    Lagging(&'a ProxyStatus),
    /// This resource is not sent to it, because it references an undefined cluster.
    Held(&'a HeldResource),
    /// It rejected this resource.
    Rejected(&'a RejectedResource),
}

impl<'a> Verdict<'a> {
    /// What a proxy has of an object that it sees and that came into its present form with mesh `since`.
    pub(crate) fn of(status: &'a ProxyStatus, key: &ObjectKey, since: MeshRevision) -> Self {
        if status.acked.is_some_and(|acked| acked >= since) {
            return Self::Live;
        }
        if !status.resting || status.reached.is_none_or(|reached| reached < since) {
            return Self::Lagging(status);
        }
        if let Some(rejected) = status.rejected.iter().find(|item| item.objects.contains(key)) {
            return Self::Rejected(rejected);
        }
        let held = status.held.iter().find(|item| item.objects.contains(key));
        held.map_or(Self::Live, Self::Held)
    }

    /// The state.
    pub(crate) fn state(self) -> ObjectState {
        match self {
            Self::Live => ObjectState::Live,
            Self::Lagging(_) => ObjectState::Lagging,
            Self::Held(_) => ObjectState::Held,
            Self::Rejected(_) => ObjectState::Rejected,
        }
    }

    /// Why it is not live; empty if it is.
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Live => String::new(),
            Self::Lagging(status) => {
                status.lagging.clone().unwrap_or_else(|| match (status.acked, status.wanted) {
                    (Some(acked), Some(wanted)) => {
                        format!("has revision {acked}, expected {wanted}")
                    }
                    _ => "has no configuration yet".to_owned(),
                })
            }
            Self::Held(held) => format!("cluster {} does not exist", held.missing_cluster),
            Self::Rejected(rejected) => {
                format!("{} {}: {}", rejected.kind, rejected.name, rejected.message)
            }
        }
    }
}

/// Which VirtualServices are asked about.
#[derive(Clone, Debug, Default)]
pub(crate) struct SplitSelection {
    /// Those of this namespace; of all if it is empty.
    pub namespace: String,
    /// Of those, only these, and others as long as they have no more than so many routes in all; `None` for all.
    pub only: Option<(BTreeSet<ObjectKey>, usize)>,
}

impl SplitSelection {
    /// All of a namespace, or all if it is empty.
    pub(crate) fn of_namespace(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), only: None }
    }

    fn includes(&self, key: &ObjectKey) -> bool {
        self.namespace.is_empty() || *key.namespace == *self.namespace
    }

    /// Whether a VirtualService with so many routes is one of those. Takes the room for them.
    fn takes(&mut self, key: &ObjectKey, routes: usize) -> bool {
        let Some((keys, room)) = &mut self.only else { return true };
        if keys.contains(key) {
            return true;
        }
        let left = room.checked_sub(routes);
        *room = left.unwrap_or(*room);
        left.is_some()
    }
}

/// The routes with weighted destinations or with a change that is held back, and what `loads` say of them.
pub(crate) fn splits(
    state: &State,
    connected: &[ProxyStatus],
    mut selection: SplitSelection,
    loads: Option<&Loads>,
) -> Vec<SplitReport> {
    let Some(mesh) = &state.mesh else {
        return Vec::new();
    };
    let mut visible = VisibleObjects::default();
    let mut proxies = visible.by_viewpoint(mesh, connected);
    let mut found = Vec::new();
    let active: BTreeMap<&ObjectKey, &Arc<VirtualService>> = mesh
        .virtual_services
        .iter()
        .map(|virtual_service| (&virtual_service.key, virtual_service))
        .collect();
    for wanted in state.wanted.iter().filter(|item| item.is_for_mesh() && !item.hosts.is_empty()) {
        if !selection.includes(&wanted.key) {
            continue;
        }
        let routes = weighted_routes(wanted, &active, &mesh.config.domain);
        if routes.is_empty() || !selection.takes(&wanted.key, routes.len()) {
            continue;
        }
        let since = state.active.get(&wanted.key).map(|item| item.since).unwrap_or_default();
        let (mut live, mut in_scope) = (0, 0);
        for group in proxies.groups(&wanted.key) {
            live += group.live(&wanted.key, since);
            in_scope += group.proxies.len();
        }
        found.extend(routes.into_iter().map(|route| SplitReport {
            object: wanted.key.clone(),
            defined_in: route.defined_in,
            field: route.field,
            name: route.name,
            shares: route.shares,
            live,
            in_scope,
            invalid: state.rejections(&wanted.key),
            observed: None,
        }));
    }
    if let Some(loads) = loads {
        observe(state, connected, &mut proxies, loads, &mut found);
    }
    found
}

/// A route of a VirtualService, and who gets how much of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WeightedRoute {
    /// The VirtualService that holds it, which may be a delegate.
    pub defined_in: ObjectKey,
    /// Where in that one, like `spec.http[0]`.
    pub field: String,
    /// The route's name.
    pub name: String,
    /// Its destinations.
    pub shares: Vec<DestinationShare>,
}

/// The weighted routes of a VirtualService and of its delegates; for a delegate, those that it holds.
pub(crate) fn weighted(state: &State, key: &ObjectKey) -> Vec<WeightedRoute> {
    let Some(mesh) = &state.mesh else {
        return Vec::new();
    };
    let parts = mesh
        .virtual_services
        .iter()
        .filter(|item| item.key == *key || item.http().any(|http| *http.key == *key));
    let active: BTreeMap<&ObjectKey, &Arc<VirtualService>> =
        parts.map(|item| (&item.key, item)).collect();
    let wanted = state.wanted.iter().filter(|item| active.contains_key(&item.key));
    let routes = wanted.flat_map(|item| {
        let routes = weighted_routes(item, &active, &mesh.config.domain);
        routes.into_iter().filter(|route| item.key == *key || route.defined_in == *key)
    });
    routes.collect()
}

pub(crate) fn weighted_routes(
    wanted: &VirtualService,
    active: &BTreeMap<&ObjectKey, &Arc<VirtualService>>,
    domain: &str,
) -> Vec<WeightedRoute> {
    let Some(effective) = active.get(&wanted.key) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (want, have) in wanted.http().zip(effective.http()) {
        let namespace = &want.key.namespace;
        if let Some(shares) = shares(want.destinations, have.destinations, namespace, domain) {
            let (defined_in, name) = (want.key.clone(), want.route.name.clone());
            let field = format!("spec.http[{}]", want.index);
            found.push(WeightedRoute { defined_in, field, name, shares });
        }
    }
    let tcp = wanted.tcp().zip(effective.tcp()).enumerate();
    let tcp = tcp
        .map(|(n, (want, have))| (format!("spec.tcp[{n}]"), want.destinations, have.destinations));
    let tls = wanted.tls().zip(effective.tls()).enumerate();
    let tls = tls
        .map(|(n, (want, have))| (format!("spec.tls[{n}]"), want.destinations, have.destinations));
    let (defined_in, name) = (&wanted.key, String::new());
    for (field, want, have) in tcp.chain(tls) {
        let (want, have) = (without_headers(want), without_headers(have));
        if let Some(shares) = shares(&want, &have, &defined_in.namespace, domain) {
            let (defined_in, name) = (defined_in.clone(), name.clone());
            found.push(WeightedRoute { defined_in, field, name, shares });
        }
    }
    found
}

/// Destinations of connections in the form of those of requests.
fn without_headers(destinations: &[RouteDestination]) -> Vec<HttpRouteDestination> {
    let destinations = destinations.iter().map(|item| HttpRouteDestination {
        destination: item.destination.clone(),
        weight: item.weight,
        headers: None,
    });
    destinations.collect()
}

/// `None` for a route with a single destination and nothing held back.
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
    for to in wanted.iter().chain(effective).filter_map(|item| item.destination.as_ref()) {
        if !all.contains(&to) {
            all.push(to);
        }
    }
    let shares = all.into_iter().map(|to| DestinationShare {
        host: resolve(&to.host, namespace, domain).to_string(),
        subset: to.subset.clone(),
        port: to.port.map_or(0, |port| port.number),
        wanted: percent(wanted, to),
        effective: percent(effective, to),
    });
    Some(shares.collect())
}

/// The share of a destination in percent, rounded to hundredths.
fn percent(list: &[HttpRouteDestination], to: &Destination) -> f64 {
    (share_of(list, Some(to)) * 10_000.0).round() / 100.0
}
