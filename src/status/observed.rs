//! What the destinations of weighted routes got, from the load reports of this replica's proxies.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::published::{ObjectVersion, Published, State};
use super::report::{DestinationShare, SplitReport, Verdict, weighted_routes};
use super::visibility::ProxiesByViewpoint;
use crate::api::{Destination, HttpRouteDestination, ObjectKey};
use crate::load::{Cluster, Loads, Named, ProxyLoads};
use crate::mesh::{Mesh, Scope, VirtualService, resolve};
use crate::revision::MeshRevision;
use crate::translate::{canonical_host, cluster_name};
use crate::xds::connections::ProxyStatus;

/// The time between two looks at which routes are weighted. What happens meanwhile is looked at together.
const PACE: Duration = Duration::from_secs(1);

/// The time between two moments in which old reports are forgotten.
const FORGET: Duration = Duration::from_secs(30);

/// What was observed of a weighted route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObservedRoute {
    /// The versions of the VirtualService that has the hosts, and of the one that holds the route.
    pub versions: [ObjectVersion; 2],
    /// How many connected proxies see it.
    pub in_scope: usize,
    /// How many of them have reported a period in which they followed the effective weights.
    pub reporting: usize,
    /// The requests to each destination, in the order of the route.
    pub counts: Vec<Requests>,
    /// Whether reports are missing for lack of room.
    pub left_out: bool,
    /// The other routes to the same clusters, whose requests are in the counts.
    pub shared_with: Vec<OtherRoute>,
}

/// Requests; a retry is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// Those that began.
    pub issued: u64,
    /// Those that ended well.
    pub succeeded: u64,
    /// Those that ended with an error.
    pub failed: u64,
    /// Those that had not ended at the end of the last report.
    pub in_progress: u64,
}

impl Requests {
    /// Adds others.
    pub(crate) fn add(&mut self, more: Self) {
        self.issued = self.issued.saturating_add(more.issued);
        self.succeeded = self.succeeded.saturating_add(more.succeeded);
        self.failed = self.failed.saturating_add(more.failed);
        self.in_progress = self.in_progress.saturating_add(more.in_progress);
    }
}

/// A route to one of the clusters of another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OtherRoute {
    /// The VirtualService that holds it.
    pub object: ObjectKey,
    /// Where in that one, like `spec.http[0]`.
    pub field: String,
}

/// Adds to each split what was observed of it.
pub(super) fn observe(
    state: &State,
    connected: &[ProxyStatus],
    proxies: &mut ProxiesByViewpoint<'_, '_>,
    loads: &Loads,
    splits: &mut [SplitReport],
) {
    let Some(mesh) = &state.mesh else {
        return;
    };
    let named = loads.named();
    let reporters = Reporters::of(mesh, connected, loads.proxies());
    let mut viewers: Option<(ObjectKey, Viewers<'_>)> = None;
    for split in splits {
        if viewers.as_ref().is_none_or(|(of, _)| *of != split.object) {
            let found = reporters.viewers(state, proxies, &split.object);
            viewers = Some((split.object.clone(), found));
        }
        if let Some((_, viewers)) = &viewers {
            split.observed = Some(viewers.observe(state, mesh, &named, split));
        }
    }
}

/// The reports by who sent them.
struct Reporters {
    connected: HashMap<Arc<str>, Arc<ProxyLoads>>,
    /// Those that have gone, with their scopes.
    gone: Vec<(Arc<ProxyLoads>, Scope)>,
    /// Node ids of more than one proxy.
    shared: HashSet<Arc<str>>,
}

impl Reporters {
    fn of(mesh: &Mesh, connected: &[ProxyStatus], loads: Vec<Arc<ProxyLoads>>) -> Self {
        let (mut ids, mut shared) = (HashSet::new(), HashSet::new());
        for status in connected {
            if !ids.insert(&*status.id) {
                shared.insert(status.id.clone());
            }
        }
        let (here, gone): (Vec<_>, Vec<_>) =
            loads.into_iter().partition(|loads| ids.contains(&*loads.id));
        let gone = gone.into_iter().filter(|loads| loads.last_report().is_some());
        let gone = gone.map(|loads| {
            let scope = mesh.scope(&loads.proxy);
            (loads, scope)
        });
        let gone = gone.collect();
        let connected = here.into_iter().map(|loads| (loads.id.clone(), loads)).collect();
        Self { connected, gone, shared }
    }

    /// The proxies that see a VirtualService.
    fn viewers(
        &self,
        state: &State,
        proxies: &mut ProxiesByViewpoint<'_, '_>,
        key: &ObjectKey,
    ) -> Viewers<'_> {
        let since = state.active.get(key).map(|item| item.since).unwrap_or_default();
        let (mut in_scope, mut having) = (0, Vec::new());
        // Two proxies of one name report as one, so both must have it.
        let mut shared: BTreeMap<&str, bool> = BTreeMap::new();
        for status in proxies.proxies(key) {
            in_scope += 1;
            let is_live = matches!(Verdict::of(status, key, since), Verdict::Live);
            if self.shared.contains(&status.id) {
                *shared.entry(&status.id).or_insert(true) &= is_live;
            } else if is_live {
                having.extend(self.connected.get(&status.id).map(|loads| (loads, true)));
            }
        }
        let live = shared.into_iter().filter(|(_, is_live)| *is_live);
        having.extend(live.filter_map(|(id, _)| Some((self.connected.get(id)?, true))));
        let gone = self.gone.iter().filter(|(_, scope)| proxies.sees(scope, key));
        having.extend(gone.map(|(loads, _)| (loads, false)));
        Viewers { in_scope, having }
    }
}

/// The proxies that see a VirtualService.
struct Viewers<'a> {
    in_scope: usize,
    /// Those that have it, with their reports, and whether they are connected.
    having: Vec<(&'a Arc<ProxyLoads>, bool)>,
}

impl Viewers<'_> {
    fn observe(
        &self,
        state: &State,
        mesh: &Mesh,
        named: &Named,
        split: &SplitReport,
    ) -> ObservedRoute {
        let active = [&split.object, &split.defined_in].map(|key| state.active.get(key));
        let versions = active.map(|item| item.map(|item| item.version).unwrap_or_default());
        let since = active.into_iter().flatten().map(|item| item.since).max().unwrap_or_default();
        let names: Vec<Vec<String>> =
            split.shares.iter().map(|share| clusters_of(mesh, share)).collect();
        let clusters: Vec<Vec<Option<&Cluster>>> =
            names.iter().map(|names| names.iter().map(|name| named.get(name)).collect()).collect();
        let mut found = ObservedRoute {
            versions,
            in_scope: self.in_scope,
            counts: vec![Requests::default(); clusters.len()],
            shared_with: sharing(mesh, split, &names.into_iter().flatten().collect()),
            ..ObservedRoute::default()
        };
        let all: Vec<&Cluster> = clusters.iter().flatten().flatten().copied().collect();
        let list = all.iter().map(|cluster| cluster.since).max();
        let is_listed = clusters.iter().flatten().all(Option::is_some);
        let (Some(list), true) = (list, is_listed) else {
            // Proxies are not asked about it yet, or there are too many clusters.
            found.left_out = !is_listed && named.is_cut();
            return found;
        };
        for (proxy, is_connected) in &self.having {
            let reported = found.add(proxy, since, list, &clusters);
            found.reporting += usize::from(reported && *is_connected);
        }
        found
    }
}

impl ObservedRoute {
    /// Adds the reports of a proxy. Returns whether there was one.
    fn add(
        &mut self,
        proxy: &ProxyLoads,
        since: MeshRevision,
        list: u64,
        clusters: &[Vec<Option<&Cluster>>],
    ) -> bool {
        let Some(from) = proxy.follows_since(since) else {
            return false;
        };
        let mut last: Option<Instant> = None;
        let mut current: Vec<u64> = vec![0; self.counts.len()];
        let counts = &mut self.counts;
        let is_cut = proxy.reports(from, list, |report| {
            last = Some(report.ended);
            for ((sum, clusters), now) in counts.iter_mut().zip(clusters).zip(&mut current) {
                *now = 0;
                for cluster in clusters.iter().flatten() {
                    let more = report.of(cluster.id);
                    *now += u64::from(more.in_progress);
                    sum.add(Requests {
                        issued: more.issued.into(),
                        succeeded: more.succeeded.into(),
                        failed: more.failed.into(),
                        in_progress: 0,
                    });
                }
            }
        });
        for (sum, now) in self.counts.iter_mut().zip(current) {
            sum.in_progress = sum.in_progress.saturating_add(now);
        }
        self.left_out |= is_cut;
        last.is_some()
    }
}

/// The host and the ports by which the clusters of a destination are named: the port that it names, or all of its
/// service's.
pub(crate) fn host_and_ports<'a>(
    mesh: &'a Mesh,
    share: &'a DestinationShare,
) -> (&'a str, Vec<u16>) {
    let service = mesh.any_service(&share.host).map(|known| &*known.service);
    let host = canonical_host(&share.host, service);
    let given = u16::try_from(share.port).ok().filter(|port| *port > 0);
    let ports = match (given, service) {
        (Some(port), _) => vec![port],
        (None, Some(service)) => service.ports.iter().map(|port| port.number).collect(),
        (None, None) => Vec::new(),
    };
    (host, ports)
}

/// The names of the clusters of a destination.
fn clusters_of(mesh: &Mesh, share: &DestinationShare) -> Vec<String> {
    let (host, ports) = host_and_ports(mesh, share);
    ports.into_iter().map(|port| cluster_name(port, &share.subset, host)).collect()
}

/// The clusters of all weighted routes.
fn weighted_clusters(state: &State) -> BTreeSet<String> {
    let Some(mesh) = &state.mesh else {
        return BTreeSet::new();
    };
    let active: BTreeMap<&ObjectKey, &Arc<VirtualService>> =
        mesh.virtual_services.by_key().iter().collect();
    let wanted = state.wanted.iter().filter(|item| item.is_for_mesh() && !item.hosts.is_empty());
    let routes = wanted.flat_map(|item| weighted_routes(item, &active, &mesh.config.domain));
    let shares = routes.flat_map(|route| route.shares);
    shares.flat_map(|share| clusters_of(mesh, &share)).collect()
}

/// Whether other routes send requests to the clusters of this one as well.
pub(crate) fn is_shared(mesh: &Mesh, split: &SplitReport) -> bool {
    let clusters = split.shares.iter().flat_map(|share| clusters_of(mesh, share));
    !sharing(mesh, split, &clusters.collect()).is_empty()
}

/// The other routes that send requests to some of these clusters.
fn sharing(mesh: &Mesh, split: &SplitReport, clusters: &BTreeSet<String>) -> Vec<OtherRoute> {
    let mut found = BTreeSet::new();
    let hosts: BTreeSet<&str> = split.shares.iter().map(|share| share.host.as_str()).collect();
    for other in hosts.into_iter().flat_map(|host| mesh.virtual_services.routing_to(host)) {
        if !other.is_for_mesh() || other.hosts.is_empty() {
            continue;
        }
        for (object, field, destinations) in routes_of(other) {
            if other.key == split.object && object == split.defined_in && field == split.field {
                continue;
            }
            let shares = destinations.into_iter().map(|to| DestinationShare {
                host: resolve(&to.host, &object.namespace, &mesh.config.domain).to_string(),
                subset: to.subset.clone(),
                port: to.port.map_or(0, |port| port.number),
                wanted: 0.0,
                effective: 0.0,
            });
            if shares.flat_map(|share| clusters_of(mesh, &share)).any(|it| clusters.contains(&it)) {
                found.insert(OtherRoute { object, field });
            }
        }
    }
    found.into_iter().collect()
}

/// The routes of a VirtualService: which holds it, where, and where its requests go.
fn routes_of(of: &VirtualService) -> Vec<(ObjectKey, String, Vec<&Destination>)> {
    let mut found = Vec::new();
    for http in of.http() {
        let field = format!("spec.http[{}]", http.index);
        let mirrors = http.route.mirrors.iter().filter_map(|to| to.destination.as_ref());
        let mirrors: Vec<&Destination> = mirrors.chain(&http.route.mirror).collect();
        if !mirrors.is_empty() {
            found.push((http.key.clone(), format!("{field}.mirror"), mirrors));
        }
        found.push((http.key.clone(), field, with_weight(http.destinations)));
    }
    let streams = of.tcp().map(|rule| rule.destinations).enumerate();
    let streams = streams.map(|(n, to)| (format!("spec.tcp[{n}]"), to));
    let tls = of.tls().map(|rule| rule.destinations).enumerate();
    let tls = tls.map(|(n, to)| (format!("spec.tls[{n}]"), to));
    for (field, destinations) in streams.chain(tls) {
        let to = destinations.iter().filter_map(|to| to.destination.as_ref());
        found.push((of.key.clone(), field, to.collect()));
    }
    found
}

/// The destinations that get requests: a single one gets all, whatever its weight.
fn with_weight(destinations: &[HttpRouteDestination]) -> Vec<&Destination> {
    let is_only = destinations.len() == 1;
    let some = destinations.iter().filter(|to| is_only || to.weight > 0);
    some.filter_map(|to| to.destination.as_ref()).collect()
}

/// Keeps the list of the clusters that proxies report, and forgets old reports.
///
/// # Errors
/// A computation panicked.
pub(crate) async fn follow_weighted_routes(
    loads: &Arc<Loads>,
    published: &Arc<Published>,
) -> anyhow::Result<()> {
    let mut states = published.changes();
    states.mark_changed();
    loop {
        match tokio::time::timeout(FORGET, states.changed()).await {
            Ok(Ok(())) => {
                let (state, begun) = (published.state(), Instant::now());
                let clusters = tokio::task::spawn_blocking(move || weighted_clusters(&state));
                loads.name(&clusters.await?);
                // At most a twentieth of the time.
                tokio::time::sleep(PACE.max(begun.elapsed() * 20)).await;
            }
            Ok(Err(_)) => return Ok(()),
            Err(_) => loads.forget(),
        }
    }
}
