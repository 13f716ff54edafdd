//! Which form of a listener or of a virtual host a client is to have: the wanted one once every cluster it leads to is
//! there, and until then the one it has.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::snapshot::{
    ClusterRefs, EncodedVirtualHost, Provenance, Resource, ResourceType, Resources, RouteTable,
    provenance,
};

/// What a cluster is for a client at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClusterReadiness {
    /// It is there and takes requests.
    Ready,
    /// It is on its way.
    Making,
    /// Nothing will bring it before the mesh changes: no such cluster is to be, or the client refused it.
    Missing,
}

/// A resource that waits for a cluster that is not defined yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldResource {
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

/// What came out of [`choose`].
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// The forms to have; `None` where they are those of the target.
    pub resources: Option<Resources>,
    /// Forms that wait for what is not even on its way.
    pub held: Vec<HeldResource>,
    /// Whether a form waits for a cluster that is on its way.
    pub waiting: bool,
    /// Clusters that a form which waits leads to no more.
    pub leaving: BTreeSet<Arc<str>>,
}

enum Verdict {
    Go,
    Wait,
    Hold(Arc<str>),
}

/// A form goes when all its clusters are ready, or when it is no worse off than the one before it. What never had a
/// form waits for clusters that are on their way, but not for those that nothing defines: there is nothing to lose.
fn judge(
    new: &ClusterRefs,
    old: Option<&ClusterRefs>,
    readiness: &impl Fn(&str) -> ClusterReadiness,
) -> Verdict {
    let mut missing = None;
    let mut making = false;
    for cluster in new {
        match readiness(cluster) {
            ClusterReadiness::Ready => {}
            _ if old.is_some_and(|old| old.contains(cluster)) => {}
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

/// Whether a listener or a virtual host leads to a cluster in its old form and not in its new one.
pub(super) fn leaves(old: &Resource, new: &Resource, cluster: &str) -> bool {
    if old.version == new.version || !old.leads_to(cluster) {
        return false;
    }
    if !new.leads_to(cluster) {
        return true;
    }
    let (Some(old), Some(new)) = (old.table(), new.table()) else {
        return false;
    };
    let mut leaves = false;
    old.diff(new, |_, old, new| {
        let leads = |host: Option<&Arc<EncodedVirtualHost>>| {
            host.is_some_and(|host| host.clusters.contains(cluster))
        };
        leaves |= leads(old) && !leads(new);
    });
    leaves
}

/// The forms of `target` that the client may have, and those that it keeps for now. `has` is the form of a name that the
/// client has or is about to have.
pub(super) fn choose<'a>(
    kind: ResourceType,
    target: &Resources,
    has: impl Fn(&str) -> Option<&'a Arc<Resource>>,
    readiness: impl Fn(&str) -> ClusterReadiness,
) -> Chosen {
    let mut chosen = Chosen::default();
    let mut forms: Option<Resources> = None;
    for (name, new) in target.iter() {
        let old = has(name);
        let form = match old {
            Some(old) if old.version == new.version => Some(new.clone()),
            _ if new.table().is_none() => chosen.whole(kind, old, new, &readiness),
            Some(old) => Some(chosen.hosts(kind, old, new, &readiness)),
            None => chosen.first(new, &readiness),
        };
        match form {
            Some(form) if form.version == new.version => {}
            Some(form) => forms.get_or_insert_with(|| target.clone()).insert(form),
            None => drop(forms.get_or_insert_with(|| target.clone()).remove(name)),
        }
    }
    chosen.resources = forms;
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
        match judge(&to, from.as_ref(), readiness) {
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

    /// A route configuration's first form comes whole: a listener that waits for it takes no connection before.
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

    fn hosts(
        &mut self,
        kind: ResourceType,
        old: &Arc<Resource>,
        new: &Arc<Resource>,
        readiness: &impl Fn(&str) -> ClusterReadiness,
    ) -> Arc<Resource> {
        let (Some(had), Some(table)) = (old.table(), new.table()) else {
            return new.clone();
        };
        let mut mixed: Option<RouteTable> = None;
        let mut elsewhere: Vec<Arc<EncodedVirtualHost>> = Vec::new();
        had.diff(table, |name, before, after| {
            let Some(after) = after else { return };
            let from = before.map(|before| &before.clusters);
            match judge(&after.clusters, from, readiness) {
                Verdict::Go => return,
                Verdict::Wait => self.wait(&after.clusters, from),
                Verdict::Hold(missing_cluster) => self.held.push(HeldResource {
                    kind: kind.short_name(),
                    name: new.name.clone(),
                    virtual_host: Some(name.clone()),
                    objects: after.objects.clone(),
                    missing_cluster,
                }),
            }
            let mixed = mixed.get_or_insert_with(|| table.clone());
            if table.catch_all().is_some_and(|host| host.name == *name) {
                mixed.set_catch_all(before.cloned());
            } else {
                mixed.set(name, before.cloned());
                elsewhere.extend(before.filter(|before| before.domains != after.domains).cloned());
            }
        });
        let Some(mut mixed) = mixed else {
            return new.clone();
        };
        elsewhere.iter().for_each(|kept| yield_domains(&mut mixed, kept));
        let mixed = Resource::routes(new.name.clone(), mixed);
        if mixed.version == old.version { old.clone() } else { mixed }
    }
}

/// Takes those domains from a virtual host that stays in its old form which another one has by now.
fn yield_domains(table: &mut RouteTable, kept: &Arc<EncodedVirtualHost>) {
    let others = table.iter().filter(|host| host.name != kept.name);
    let taken: BTreeSet<String> = others
        .flat_map(|host| host.domains.iter())
        .map(|domain| domain.to_ascii_lowercase())
        .collect();
    if kept.domains.iter().any(|domain| taken.contains(&domain.to_ascii_lowercase())) {
        let left = kept.without(&taken).map(Arc::new);
        table.set(&kept.name, left);
    }
}
