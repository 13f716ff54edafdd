//! Every VirtualService by key, by the hosts it names and by the hosts it routes to. Cheap to clone; modified copies
//! share unchanged parts, so comparing two states takes time proportional to their difference.

use std::cmp::Reverse;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::host::{self, Host};
use super::rules::VirtualService;
use super::sidecar::Egress;
use super::visibility::Visibility;
use crate::api::{Age, ObjectKey};

/// VirtualServices that name the same host, oldest first.
type HostServices = Arc<[Arc<VirtualService>]>;

/// All VirtualServices, with delegates merged in.
#[derive(Clone, Debug, Default)]
pub struct VirtualServices {
    by_key: OrdMap<ObjectKey, Arc<VirtualService>>,
    exact: OrdMap<Host, HostServices>,
    /// The longest first.
    wildcards: OrdMap<(Reverse<usize>, Host), HostServices>,
    routing_to: OrdMap<Host, OrdSet<ObjectKey>>,
}

/// The precedence of a VirtualService among those of one host: private before exported by name before public; within
/// each group the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Precedence(u8, Age, Arc<str>, Arc<str>);

impl VirtualServices {
    /// Replaces the VirtualService of this key, or removes it. `domain` is the cluster's.
    pub(crate) fn set(&mut self, key: &ObjectKey, new: Option<Arc<VirtualService>>, domain: &str) {
        if let Some(old) = self.by_key.remove(key) {
            for name in &old.hosts {
                self.edit_host(name, |list| list.retain(|known| known.key != *key));
            }
            for (host, _) in old.destinations(domain) {
                if let Some(keys) = self.routing_to.get_mut(&host) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.routing_to.remove(&host);
                    }
                }
            }
        }
        let Some(new) = new else { return };
        for name in &new.hosts {
            self.edit_host(name, |list| {
                if !list.iter().any(|known| known.key == *key) {
                    list.push(new.clone());
                    list.sort_by_key(|known| order(known));
                }
            });
        }
        for (host, _) in new.destinations(domain) {
            self.routing_to.entry(host).or_default().insert(key.clone());
        }
        self.by_key.insert(key.clone(), new);
    }

    fn edit_host(&mut self, name: &Host, edit: impl FnOnce(&mut Vec<Arc<VirtualService>>)) {
        if host::is_wildcard(name) {
            edit_list(&mut self.wildcards, (Reverse(name.len()), name.clone()), edit);
        } else {
            edit_list(&mut self.exact, name.clone(), edit);
        }
    }

    /// The same with some VirtualServices replaced by key.
    pub(crate) fn with<'a>(
        &self,
        others: impl Iterator<Item = (&'a ObjectKey, &'a Arc<VirtualService>)>,
        domain: &str,
    ) -> Self {
        let mut same = self.clone();
        for (key, other) in others {
            same.set(key, Some(other.clone()), domain);
        }
        same
    }

    /// All of them by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.by_key.values()
    }

    /// All of them, by key.
    pub(crate) fn by_key(&self) -> &OrdMap<ObjectKey, Arc<VirtualService>> {
        &self.by_key
    }

    /// One of them.
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Arc<VirtualService>> {
        self.by_key.get(key)
    }

    /// The VirtualServices that route to a host.
    pub(crate) fn routing_to(&self, host: &str) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.routing_to.get(host).into_iter().flatten().filter_map(|key| self.by_key.get(key))
    }

    /// The VirtualServices that name a host, exactly or by wildcard.
    pub(crate) fn naming(&self, name: &str) -> impl Iterator<Item = &Arc<VirtualService>> {
        let covering = self.covering(name).flat_map(|list| list.iter());
        self.exact.get(name).into_iter().flat_map(|list| list.iter()).chain(covering)
    }

    /// Every host that any of them names, wildcards included.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.exact.keys().chain(self.wildcards.keys().map(|(_, host)| host))
    }

    /// The lists of the wildcards that cover a name, longest first.
    fn covering(&self, name: &str) -> impl Iterator<Item = &HostServices> {
        self.wildcards
            .iter()
            .filter(move |((_, wildcard), _)| host::covers(wildcard, name))
            .map(|(_, list)| list)
    }
}

fn order(of: &VirtualService) -> (Age, Arc<str>, Arc<str>) {
    (of.age(), of.key.name.clone(), of.key.namespace.clone())
}

fn edit_list<K: Ord + Clone>(
    map: &mut OrdMap<K, HostServices>,
    key: K,
    edit: impl FnOnce(&mut Vec<Arc<VirtualService>>),
) {
    let mut list: Vec<_> = map.get(&key).map(|list| list.to_vec()).unwrap_or_default();
    edit(&mut list);
    if list.is_empty() {
        map.remove(&key);
    } else {
        map.insert(key, list.into());
    }
}

/// The VirtualServices that apply to the sidecars of one namespace and that their Sidecar object makes visible.
#[derive(Clone, Debug)]
pub struct VisibleVirtualServices<'a> {
    all: &'a VirtualServices,
    namespace: &'a str,
    /// The egress listeners, one of which must include them; `None` admits all.
    egress: Option<Vec<&'a Egress>>,
}

impl<'a> VisibleVirtualServices<'a> {
    pub(super) fn new(
        all: &'a VirtualServices,
        namespace: &'a str,
        egress: Option<Vec<&'a Egress>>,
    ) -> Self {
        Self { all, namespace, egress }
    }

    /// Whether a VirtualService applies.
    pub(crate) fn includes(&self, rules: &VirtualService) -> bool {
        rules.is_for_mesh()
            && rules.visibility.includes(self.namespace)
            && self.egress_includes(rules)
    }

    fn egress_includes(&self, rules: &VirtualService) -> bool {
        let Some(listeners) = &self.egress else {
            return true;
        };
        listeners.iter().any(|listener| listener.has_rule(rules, self.namespace))
    }

    /// The precedence of a VirtualService among those that name the same host.
    pub(crate) fn precedence(&self, rules: &VirtualService) -> Precedence {
        let class = match rules.visibility {
            Visibility::Namespaces(_) if **rules.namespace() == *self.namespace => 0,
            Visibility::Namespaces(_) => 1,
            Visibility::Public => 2,
        };
        let (age, name, namespace) = order(rules);
        Precedence(class, age, name, namespace)
    }

    fn ranked(&self, list: Option<&'a HostServices>) -> Vec<&'a Arc<VirtualService>> {
        let mut counting: Vec<_> = list
            .into_iter()
            .flat_map(|list| list.iter())
            .filter(|item| self.includes(item))
            .collect();
        counting.sort_by_cached_key(|rules| self.precedence(rules));
        counting
    }

    /// The candidates for the HTTP routes of a host, in order: those that name it; without any, the first one with the
    /// longest matching wildcard. The first that has a route for a proxy and port is used there.
    pub(crate) fn http(&self, name: &str) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        let mut found = if host::is_wildcard(name) {
            self.ranked(self.all.wildcards.get(&(Reverse(name.len()), Host::from(name))))
        } else {
            self.ranked(self.all.exact.get(name))
        };
        if found.is_empty() {
            let first =
                self.all.covering(name).find_map(|list| self.ranked(Some(list)).into_iter().next());
            found.extend(first);
        }
        found.into_iter().filter(|rules| !rules.spec().http.is_empty())
    }

    /// Those that name exactly this host, in order of precedence.
    pub(crate) fn naming_exactly(&self, name: &str) -> Vec<&'a Arc<VirtualService>> {
        if host::is_wildcard(name) {
            self.ranked(self.all.wildcards.get(&(Reverse(name.len()), Host::from(name))))
        } else {
            self.ranked(self.all.exact.get(name))
        }
    }

    /// All VirtualServices that apply to a host, in order of precedence.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        let exact = self.ranked(self.all.exact.get(name));
        let covering: Vec<_> =
            self.all.covering(name).flat_map(|list| self.ranked(Some(list))).collect();
        exact.into_iter().chain(covering)
    }
}
