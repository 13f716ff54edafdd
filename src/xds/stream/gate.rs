//! Chooses the version of each listener and virtual host for a client: the wanted one once every cluster that it
//! references is ready, and until then the one that the client has.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::runtime::{RuntimeHost, RuntimeLayers};
use super::trials::{HostVerdict, Trials};
use crate::snapshot::{
    ClusterRefs, EncodedVirtualHost, Provenance, Resource, ResourceType, Resources, RouteTable,
    RuntimeWeights, provenance,
};

/// Whether a cluster is ready for a client's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClusterReadiness {
    /// The client has it, and it takes requests.
    Ready,
    /// It is on its way.
    Making,
    /// The client will not get it before the mesh changes: the mesh does not define it, or the client rejected it.
    Missing,
}

/// A resource that waits for a cluster that is not defined yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldResource {
    /// `lds` or `rds`.
    pub kind: &'static str,
    /// The listener or route configuration.
    pub name: Arc<str>,
    /// The virtual host in it.
    pub virtual_host: Option<Arc<str>>,
    /// The objects that its new version is made from.
    pub objects: Provenance,
    /// A missing cluster that its new version references.
    pub missing_cluster: Arc<str>,
}

/// The result of [`choose`].
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// The versions for the client; `None` if they are those of the target.
    pub resources: Option<Resources>,
    /// Versions that wait for a cluster that is not on its way.
    pub held: Vec<HeldResource>,
    /// Whether a version waits for a cluster that is on its way.
    pub waiting: bool,
    /// Clusters that a waiting version no longer references.
    pub leaving: BTreeSet<Arc<str>>,
    /// Virtual hosts whose weights the client gets as runtime values.
    pub by_runtime: Vec<RuntimeHost>,
}

/// What decides about virtual hosts in addition to their clusters.
#[derive(Clone, Copy)]
pub(super) struct HostGate<'a> {
    pub trials: &'a Trials,
    /// Whether the client takes weights as runtime values.
    pub takes_runtime_weights: bool,
    /// Whether routes get the weights that the client has as runtime values.
    pub routes_follow: bool,
    /// The weights that the client has as runtime values.
    pub layer: &'a RuntimeLayers,
    /// Whether no cluster is known to be on its way.
    pub makes_no_clusters: bool,
}

/// How the new version of a virtual host reaches the client.
enum Delivered<'a> {
    InRoute,
    /// Its weights as runtime values, instead of those in the route; all else in it is the same.
    ByRuntime(&'a RuntimeWeights, &'a RuntimeWeights),
    NotNow,
}

enum Verdict {
    Go,
    Wait,
    Hold(Arc<str>),
}

/// A version is sent when every cluster that it references is ready or was referenced by the previous version. A first
/// version waits only for clusters that are on their way, not for undefined ones: it replaces nothing that works.
/// `unused` are clusters that get no requests although the previous version references them.
fn judge(
    new: &ClusterRefs,
    old: Option<&ClusterRefs>,
    unused: &BTreeSet<&str>,
    readiness: &impl Fn(&str) -> ClusterReadiness,
) -> Verdict {
    let mut missing = None;
    let mut making = false;
    for cluster in new {
        // Looked at first, because readiness is looked up among all clusters.
        if old.is_some_and(|old| old.contains(cluster)) && !unused.contains(&**cluster) {
            continue;
        }
        match readiness(cluster) {
            ClusterReadiness::Ready => {}
            ClusterReadiness::Making => making = true,
            ClusterReadiness::Missing => missing = missing.or(Some(cluster)),
        }
    }
    match missing {
        _ if making => Verdict::Wait,
        Some(cluster) if old.is_some() => Verdict::Hold(cluster.clone()),
        _ => Verdict::Go,
    }
}

/// Whether a listener or a virtual host references a cluster in its old version and not in its new one.
pub(super) fn leaves(old: &Resource, new: &Resource, cluster: &str) -> bool {
    if old.version == new.version || !old.routes_to(cluster) {
        return false;
    }
    if !new.routes_to(cluster) {
        return true;
    }
    let (Some(old), Some(new)) = (old.table(), new.table()) else {
        return false;
    };
    let mut leaves = false;
    old.diff(new, |_, old, new| {
        leaves |= old.is_some_and(|old| old.receiving.contains(cluster))
            && new.is_none_or(|new| !new.receiving.contains(cluster));
    });
    leaves
}

/// Chooses the versions of `target` that the client may have, and those that it keeps for now. `has` returns the
/// version of a name that the client has or is about to have.
pub(super) fn choose<'a>(
    kind: ResourceType,
    target: &Resources,
    has: impl Fn(&str) -> Option<&'a Arc<Resource>>,
    hosts: HostGate<'_>,
    readiness: impl Fn(&str) -> ClusterReadiness,
) -> Chosen {
    let mut chosen = Chosen::default();
    let mut resources: Option<Resources> = None;
    for (name, new) in target.iter() {
        let old = has(name);
        let allowed = match old {
            Some(old) if old.version == new.version => Some(new.clone()),
            _ if new.table().is_none() => chosen.whole(kind, old, new, &readiness),
            Some(old) => Some(chosen.hosts(kind, Some(old), new, hosts, &readiness)),
            None if hosts.trials.concern(name) => {
                Some(chosen.hosts(kind, None, new, hosts, &readiness))
            }
            None if hosts.makes_no_clusters => Some(new.clone()),
            None => chosen.first(new, &readiness),
        };
        match allowed {
            Some(allowed) if allowed.version == new.version => {}
            Some(allowed) => resources.get_or_insert_with(|| target.clone()).insert(allowed),
            None => drop(resources.get_or_insert_with(|| target.clone()).remove(name)),
        }
    }
    chosen.resources = resources;
    chosen
}

impl Chosen {
    fn wait(&mut self, to: &ClusterRefs, from: Option<&ClusterRefs>) {
        self.waiting = true;
        let left = from.into_iter().flat_map(ClusterRefs::iter);
        self.leaving.extend(left.filter(|cluster| !to.contains(cluster)).cloned());
    }

    fn whole(
        &mut self,
        kind: ResourceType,
        old: Option<&Arc<Resource>>,
        new: &Arc<Resource>,
        readiness: &impl Fn(&str) -> ClusterReadiness,
    ) -> Option<Arc<Resource>> {
        let (to, from) = (new.cluster_refs(), old.map(|old| old.cluster_refs()));
        match judge(&to, from.as_ref(), &BTreeSet::new(), readiness) {
            Verdict::Go => Some(new.clone()),
            Verdict::Wait => {
                self.wait(&to, from.as_ref());
                old.cloned()
            }
            Verdict::Hold(missing_cluster) => {
                let (kind, name) = (kind.short_name(), new.name.clone());
                self.held.push(HeldResource {
                    kind,
                    name,
                    virtual_host: None,
                    objects: provenance(new.objects().cloned()),
                    missing_cluster,
                });
                old.cloned()
            }
        }
    }

    /// The first version of a route configuration is sent whole: a listener that waits for it takes no connections
    /// until then.
    fn first(
        &mut self,
        new: &Arc<Resource>,
        readiness: &impl Fn(&str) -> ClusterReadiness,
    ) -> Option<Arc<Resource>> {
        if new.clusters().any(|cluster| readiness(cluster) == ClusterReadiness::Making) {
            self.waiting = true;
            return None;
        }
        Some(new.clone())
    }

    /// Decides about each virtual host that differs. `old` is the version that the client has.
    fn hosts(
        &mut self,
        kind: ResourceType,
        old: Option<&Arc<Resource>>,
        new: &Arc<Resource>,
        gate: HostGate<'_>,
        readiness: &impl Fn(&str) -> ClusterReadiness,
    ) -> Arc<Resource> {
        let Some(table) = new.table() else {
            return new.clone();
        };
        let empty = RouteTable::new(table.head().clone());
        let had = old.and_then(|old| old.table()).unwrap_or(&empty);
        let mut kept: Vec<KeptHost<'_>> = Vec::new();
        let mut by_runtime = Vec::new();
        let mut changed = old.is_none();
        had.diff(table, |name, before, after| {
            let Some(after) = after else {
                changed = true;
                return;
            };
            match self.delivered(kind, new, (before, after), gate, readiness) {
                Delivered::InRoute => changed = true,
                Delivered::NotNow => kept.push(KeptHost { before, after }),
                Delivered::ByRuntime(weights, in_route) => {
                    by_runtime.push(KeptHost { before, after });
                    let (table, host) = (new.name.clone(), name.clone());
                    let (weights, in_route) = (weights.clone(), in_route.clone());
                    self.by_runtime.push(RuntimeHost { table, host, weights, in_route });
                }
            }
        });
        // A route configuration that is sent for another change carries the weights as well.
        let keeps_all = !changed && (by_runtime.is_empty() || !gate.routes_follow);
        if keeps_all {
            kept.extend(by_runtime);
        }
        if kept.is_empty() {
            return new.clone();
        }
        if let Some(old) = old
            && keeps_all
            && had.head() == table.head()
            && !kept.iter().any(KeptHost::has_other_domains)
        {
            return old.clone();
        }
        let mixed = Resource::routes(new.name.clone(), with_kept(table, &kept));
        old.filter(|old| old.version == mixed.version).cloned().unwrap_or(mixed)
    }

    /// How the new version of a virtual host reaches the client now.
    fn delivered<'a>(
        &mut self,
        kind: ResourceType,
        table: &Resource,
        (before, after): (Option<&'a Arc<EncodedVirtualHost>>, &'a Arc<EncodedVirtualHost>),
        gate: HostGate<'_>,
        readiness: &impl Fn(&str) -> ClusterReadiness,
    ) -> Delivered<'a> {
        let from = before.map(|before| &before.receiving);
        let weights = after.weights.as_ref().zip(before.and_then(|before| before.weights.as_ref()));
        let weights =
            weights.filter(|(new, old)| gate.takes_runtime_weights && new.can_replace(old));
        let verdict = match gate.trials.verdict(&table.name, after) {
            HostVerdict::Rejected => return Delivered::NotNow,
            HostVerdict::Untried => {
                self.wait(&after.receiving, from);
                return Delivered::NotNow;
            }
            HostVerdict::Allowed => {
                let unused = before.map(|before| gate.layer.unused_by(&table.name, before));
                judge(&after.receiving, from, &unused.unwrap_or_default(), readiness)
            }
        };
        match verdict {
            Verdict::Go => {
                return weights
                    .map_or(Delivered::InRoute, |(new, old)| Delivered::ByRuntime(new, old));
            }
            Verdict::Wait => self.wait(&after.receiving, from),
            Verdict::Hold(missing_cluster) => self.held.push(HeldResource {
                kind: kind.short_name(),
                name: table.name.clone(),
                virtual_host: Some(after.name.clone()),
                objects: after.objects.clone(),
                missing_cluster,
            }),
        }
        Delivered::NotNow
    }
}

/// A virtual host that the client keeps in its previous version.
struct KeptHost<'a> {
    before: Option<&'a Arc<EncodedVirtualHost>>,
    after: &'a EncodedVirtualHost,
}

impl KeptHost<'_> {
    /// Whether its previous version has other domains than the new one.
    fn has_other_domains(&self) -> bool {
        self.before.is_some_and(|before| before.domains != self.after.domains)
    }

    /// Whether it is the catch-all virtual host of `table`, which has its new version.
    fn is_catch_all(&self, table: &RouteTable) -> bool {
        table.catch_all().is_some_and(|host| host.name == self.after.name)
    }
}

/// The table with these virtual hosts in their previous version.
fn with_kept(table: &RouteTable, kept: &[KeptHost<'_>]) -> RouteTable {
    let mut mixed = table.clone();
    for host in kept {
        if host.is_catch_all(table) {
            mixed.set_catch_all(host.before.cloned());
        } else {
            mixed.set(&host.after.name, host.before.cloned());
        }
    }
    let changed: Vec<&Arc<EncodedVirtualHost>> = kept
        .iter()
        .filter(|kept| !kept.is_catch_all(table))
        .filter(|kept| kept.has_other_domains())
        .filter_map(|kept| kept.before)
        .collect();
    if !changed.is_empty() {
        yield_domains(&mut mixed, &changed);
    }
    mixed
}

/// Takes those domains from virtual hosts kept in their old version that another one has in its new version.
fn yield_domains(table: &mut RouteTable, kept: &[&Arc<EncodedVirtualHost>]) {
    let kept_names: BTreeSet<&str> = kept.iter().map(|host| &*host.name).collect();
    let others = table.iter().filter(|host| !kept_names.contains(&*host.name));
    let taken: BTreeSet<String> = others
        .flat_map(|host| host.domains.iter())
        .map(|domain| domain.to_ascii_lowercase())
        .collect();
    for host in kept {
        if host.domains.iter().any(|domain| taken.contains(&domain.to_ascii_lowercase())) {
            table.set(&host.name, host.without(&taken).map(Arc::new));
        }
    }
}
