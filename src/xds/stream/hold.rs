//! Which form of a listener or of a virtual host a client is to have: the wanted one once every cluster it leads to is
//! there, and until then the one it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::snapshot::{Part, Refers, Resource, ResourceType, Resources};

/// What a cluster is for a client at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It is there and takes requests.
    Ready,
    /// It is on its way.
    Making,
    /// Nothing will bring it before the mesh changes: no such cluster is to be, or the client refused it.
    Missing,
}

/// A form that waits for a cluster which nothing defines yet.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Held {
    /// `lds` or `rds`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The listener or route configuration.
    pub name: Arc<str>,
    /// The virtual host in it.
    pub virtual_host: Option<Arc<str>>,
    /// A cluster that its new form leads to and that is not there.
    pub missing_cluster: Arc<str>,
}

/// What came out of [`choose`].
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// The forms to have; `None` where they are those of the target.
    pub resources: Option<Resources>,
    /// Forms that wait for what is not even on its way.
    pub held: Vec<Held>,
    /// Whether a form waits for a cluster that is on its way.
    pub waiting: bool,
}

enum Verdict {
    Go,
    Wait,
    Hold(Arc<str>),
}

/// A form goes when all its clusters are ready, or when it is no worse off than the one before it. What never had a
/// form waits for clusters that are on their way, but not for those that nothing defines: there is nothing to lose.
fn judge(new: &Refers, old: Option<&Refers>, fit: &impl Fn(&str) -> Fit) -> Verdict {
    let mut missing = None;
    let mut making = false;
    for cluster in new {
        match fit(cluster) {
            Fit::Ready => {}
            _ if old.is_some_and(|old| old.contains(cluster)) => {}
            Fit::Making => making = true,
            Fit::Missing => missing = missing.or(Some(cluster)),
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
    if old.version == new.version || !old.refers.contains(cluster) {
        return false;
    }
    if !new.refers.contains(cluster) {
        return true;
    }
    let leads: BTreeSet<&str> =
        new.parts.iter().filter(|part| part.refers.contains(cluster)).map(|part| &*part.name).collect();
    old.parts.iter().any(|part| part.refers.contains(cluster) && !leads.contains(&*part.name))
}

/// The forms of `target` that the client may have, and those that it keeps for now. `has` is the form of a name that the
/// client has or is about to have.
pub(super) fn choose<'a>(
    kind: ResourceType,
    target: &Resources,
    has: impl Fn(&str) -> Option<&'a Arc<Resource>>,
    fit: impl Fn(&str) -> Fit,
) -> Chosen {
    let mut chosen = Chosen::default();
    let mut forms = Resources::new();
    let mut all_new = true;
    for (name, new) in target {
        let old = has(name);
        let form = match old {
            Some(old) if old.version == new.version => Some(new.clone()),
            _ if new.parts.is_empty() => chosen.whole(kind, old, new, &fit),
            Some(old) => Some(chosen.hosts(kind, old, new, &fit)),
            None => chosen.first(new, &fit),
        };
        all_new &= form.as_ref().is_some_and(|form| form.version == new.version);
        if let Some(form) = form {
            forms.insert(name.clone(), form);
        }
    }
    chosen.resources = (!all_new).then_some(forms);
    chosen
}

impl Chosen {
    fn whole(
        &mut self,
        kind: ResourceType,
        old: Option<&Arc<Resource>>,
        new: &Arc<Resource>,
        fit: &impl Fn(&str) -> Fit,
    ) -> Option<Arc<Resource>> {
        match judge(&new.refers, old.map(|old| &old.refers), fit) {
            Verdict::Go => Some(new.clone()),
            Verdict::Wait => {
                self.waiting = true;
                old.cloned()
            }
            Verdict::Hold(missing_cluster) => {
                let (kind, name) = (kind.short_name(), new.name.clone());
                self.held.push(Held { kind, name, virtual_host: None, missing_cluster });
                old.cloned()
            }
        }
    }

    /// A route configuration's first form comes whole: a listener that waits for it takes no connection before.
    fn first(&mut self, new: &Arc<Resource>, fit: &impl Fn(&str) -> Fit) -> Option<Arc<Resource>> {
        if new.refers.iter().any(|cluster| fit(cluster) == Fit::Making) {
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
        fit: &impl Fn(&str) -> Fit,
    ) -> Arc<Resource> {
        // Most hosts stand where they stood; the others are looked for by name.
        let mut by_name: Option<BTreeMap<&str, &Part>> = None;
        let mut all_new = true;
        let mut parts = Vec::with_capacity(new.parts.len());
        for (n, part) in new.parts.iter().enumerate() {
            let had = match old.parts.get(n) {
                Some(same) if same.name == part.name => Some(same),
                _ => {
                    let named = || old.parts.iter().map(|part| (&*part.name, part)).collect();
                    by_name.get_or_insert_with(named).get(&*part.name).copied()
                }
            };
            if had.is_some_and(|had| had.is_same(part)) {
                parts.push(part.clone());
                continue;
            }
            match judge(&part.refers, had.map(|had| &had.refers), fit) {
                Verdict::Go => {
                    parts.push(part.clone());
                    continue;
                }
                Verdict::Wait => self.waiting = true,
                Verdict::Hold(missing_cluster) => self.held.push(Held {
                    kind: kind.short_name(),
                    name: new.name.clone(),
                    virtual_host: Some(part.name.clone()),
                    missing_cluster,
                }),
            }
            all_new = false;
            parts.extend(had.cloned());
        }
        if all_new {
            return new.clone();
        }
        let mixed = new.with_hosts(parts);
        if mixed.version == old.version { old.clone() } else { mixed }
    }
}
