//! VirtualServices and DestinationRules by host: which of several counts for whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::host::{self, Host};
use super::visibility::Visibility;
use crate::api::{self, Age, Labels, Object, ObjectKey, Spec};

/// A VirtualService with its hosts resolved.
#[derive(Debug)]
pub struct VirtualService {
    /// Changes whenever its content does.
    pub revision: u64,
    /// Its key, to name it.
    pub key: ObjectKey,
    /// Its hosts as full names or wildcards.
    pub hosts: Vec<Host>,
    /// Who sees it.
    pub visibility: Visibility,
    object: Arc<Object>,
    empty: api::VirtualService,
}

impl VirtualService {
    pub(super) fn new(revision: u64, object: &Arc<Object>, domain: &str) -> Self {
        let mut this = Self {
            revision,
            key: object.key(),
            hosts: Vec::new(),
            visibility: Visibility::Public,
            object: object.clone(),
            empty: api::VirtualService::default(),
        };
        let namespace = &object.meta.namespace;
        this.hosts = this.spec().hosts.iter().map(|name| host::resolve(name, namespace, domain)).collect();
        this.visibility = Visibility::new(this.spec().export_to.iter().map(String::as_str), namespace);
        this
    }

    /// Its content.
    pub fn spec(&self) -> &api::VirtualService {
        match &self.object.spec {
            Spec::VirtualService(spec) => spec,
            _ => &self.empty,
        }
    }

    /// Its namespace, in which short hosts are read.
    pub fn namespace(&self) -> &Arc<str> {
        &self.object.meta.namespace
    }

    /// When it came to be.
    pub fn age(&self) -> Age {
        self.object.meta.age
    }

    /// Whether any part of it counts for sidecars.
    pub fn is_for_mesh(&self) -> bool {
        let gateways = &self.spec().gateways;
        gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh")
    }
}

/// What one or several DestinationRules of one namespace say about one host.
#[derive(Clone, Debug)]
pub struct DestinationRule {
    /// Changes whenever its content does.
    pub revision: u64,
    /// The rules it was made from, the oldest first.
    pub keys: Vec<ObjectKey>,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The host as a full name or wildcard.
    pub host: Host,
    /// Who sees it.
    pub visibility: Visibility,
    /// The proxies it is for, by their labels; `None` means all.
    pub selector: Option<Labels>,
    /// The policy of the oldest rule that has one.
    pub traffic_policy: Option<Arc<api::TrafficPolicy>>,
    /// The subsets of all of them; of two with one name the older one's.
    pub subsets: Vec<Arc<api::Subset>>,
}

/// All VirtualServices, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct VirtualServices {
    list: Vec<Arc<VirtualService>>,
}

impl VirtualServices {
    pub(super) fn new(mut list: Vec<Arc<VirtualService>>) -> Self {
        list.sort_by(|a, b| (a.age(), &a.key.name, &a.key.namespace).cmp(&(b.age(), &b.key.name, &b.key.namespace)));
        Self { list }
    }

    /// All of them, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.list.iter()
    }

    /// The ones that count for sidecars of `namespace`, by host.
    pub fn for_namespace(&self, namespace: &str) -> VirtualServicesByHost {
        let mut by_host = VirtualServicesByHost::default();
        for service in self.list.iter().filter(|one| one.is_for_mesh() && one.visibility.includes(namespace)) {
            for name in &service.hosts {
                if host::is_wildcard(name) {
                    by_host.wildcards.push((name.clone(), service.clone()));
                } else {
                    by_host.exact.entry(name.clone()).or_insert_with(|| service.clone());
                }
            }
        }
        // A stable sort, so that of two with the same wildcard the older one stays first.
        by_host.wildcards.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        by_host
    }
}

/// The VirtualServices that count for one namespace. Of two for one host the older wins it whole.
#[derive(Clone, Debug, Default)]
pub struct VirtualServicesByHost {
    exact: BTreeMap<Host, Arc<VirtualService>>,
    wildcards: Vec<(Host, Arc<VirtualService>)>,
}

impl VirtualServicesByHost {
    /// The one for a host: an exact host beats a wildcard, a longer wildcard a shorter.
    pub fn find(&self, name: &str) -> Option<&Arc<VirtualService>> {
        self.exact.get(name).or_else(|| {
            let covering = |(wildcard, _): &&(Host, Arc<VirtualService>)| host::covers(wildcard, name);
            self.wildcards.iter().find(covering).map(|(_, service)| service)
        })
    }

    /// Every host, wildcards included, with its VirtualService.
    pub fn hosts(&self) -> impl Iterator<Item = (&Host, &Arc<VirtualService>)> {
        self.exact.iter().chain(self.wildcards.iter().map(|(name, service)| (name, service)))
    }
}

/// All DestinationRules by namespace.
#[derive(Clone, Debug, Default)]
pub struct DestinationRules {
    by_namespace: BTreeMap<Arc<str>, NamespaceRules>,
}

#[derive(Clone, Debug, Default)]
struct NamespaceRules {
    exact: BTreeMap<Host, Vec<Arc<DestinationRule>>>,
    /// The longest first.
    wildcards: Vec<(Host, Vec<Arc<DestinationRule>>)>,
}

impl NamespaceRules {
    fn find(&self, host: &str, fits: impl Fn(&DestinationRule) -> bool) -> Option<&Arc<DestinationRule>> {
        let choose = |rules: &'_ Vec<Arc<DestinationRule>>| -> Option<usize> {
            // A rule for these very proxies beats one for all.
            let selected = rules.iter().position(|rule| rule.selector.is_some() && fits(rule));
            selected.or_else(|| rules.iter().position(|rule| rule.selector.is_none() && fits(rule)))
        };
        if let Some(rules) = self.exact.get(host)
            && let Some(found) = choose(rules)
        {
            return rules.get(found);
        }
        self.wildcards
            .iter()
            .filter(|(wildcard, _)| host::covers(wildcard, host))
            .find_map(|(_, rules)| choose(rules).and_then(|found| rules.get(found)))
    }
}

impl DestinationRules {
    /// Orders and merges `objects`, each with its revision.
    pub(super) fn new<'a>(objects: impl Iterator<Item = (u64, &'a Arc<Object>)>, domain: &str) -> Self {
        let mut sorted: Vec<_> = objects.collect();
        sorted.sort_by(|(_, a), (_, b)| (a.meta.age, &a.meta.name).cmp(&(b.meta.age, &b.meta.name)));
        /// A rule, and the revisions of the objects it was made from.
        type Merged = (DestinationRule, Vec<u64>);
        let mut merged: BTreeMap<(Arc<str>, Host), Vec<Merged>> = BTreeMap::new();
        for (revision, object) in sorted {
            let Spec::DestinationRule(spec) = &object.spec else { continue };
            let rule = DestinationRule {
                revision,
                keys: vec![object.key()],
                namespace: object.meta.namespace.clone(),
                host: host::resolve(&spec.host, &object.meta.namespace, domain),
                visibility: Visibility::new(spec.export_to.iter().map(String::as_str), &object.meta.namespace),
                selector: spec.workload_selector.as_ref().map(|selector| selector.match_labels.clone()),
                traffic_policy: spec.traffic_policy.clone().map(Arc::new),
                subsets: spec.subsets.iter().cloned().map(Arc::new).collect(),
            };
            let group = merged.entry((rule.namespace.clone(), rule.host.clone())).or_default();
            // Only rules for the same proxies in the same namespaces speak with one voice.
            match group
                .iter_mut()
                .find(|(older, _)| older.selector == rule.selector && older.visibility == rule.visibility)
            {
                Some((older, revisions)) => {
                    older.absorb(rule);
                    revisions.push(revision);
                }
                None => group.push((rule, vec![revision])),
            }
        }
        let mut by_namespace: BTreeMap<Arc<str>, NamespaceRules> = BTreeMap::new();
        for ((namespace, host), group) in merged {
            let rules = group.into_iter().map(|(mut rule, revisions)| {
                if revisions.len() > 1 {
                    let bytes: Vec<u8> = revisions.iter().flat_map(|revision| revision.to_le_bytes()).collect();
                    rule.revision = xxhash_rust::xxh3::xxh3_64(&bytes);
                }
                Arc::new(rule)
            });
            let place = by_namespace.entry(namespace).or_default();
            if host::is_wildcard(&host) {
                place.wildcards.push((host, rules.collect()));
            } else {
                place.exact.insert(host, rules.collect());
            }
        }
        for rules in by_namespace.values_mut() {
            rules.wildcards.sort_by_key(|(host, _)| std::cmp::Reverse(host.len()));
        }
        Self { by_namespace }
    }

    /// The rule for a host as a client sees it: from the client's namespace, else the service's, else the root
    /// namespace; the first of these that has one. Source: Istio's documentation, "Global namespace aliases" of
    /// `DestinationRule.exportTo`.
    pub fn find(
        &self,
        host: &str,
        service_namespace: &str,
        root_namespace: &str,
        client_namespace: &str,
        client_labels: &Labels,
    ) -> Option<&Arc<DestinationRule>> {
        let fits = |rule: &DestinationRule| {
            rule.visibility.includes(client_namespace)
                && match &rule.selector {
                    None => true,
                    // A selector speaks of the workloads of the rule's own namespace.
                    Some(selector) => *rule.namespace == *client_namespace && api::selects(selector, client_labels),
                }
        };
        let mut looked_at: Vec<&str> = Vec::with_capacity(3);
        for namespace in [client_namespace, service_namespace, root_namespace] {
            if looked_at.contains(&namespace) {
                continue;
            }
            looked_at.push(namespace);
            if let Some(rule) = self.by_namespace.get(namespace).and_then(|rules| rules.find(host, fits)) {
                return Some(rule);
            }
        }
        None
    }

    /// Every rule.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.by_namespace
            .values()
            .flat_map(|rules| rules.exact.values().chain(rules.wildcards.iter().map(|(_, rules)| rules)).flatten())
    }
}

impl DestinationRule {
    /// Takes in a younger rule for the same host.
    fn absorb(&mut self, younger: DestinationRule) {
        self.keys.extend(younger.keys);
        if self.traffic_policy.is_none() {
            self.traffic_policy = younger.traffic_policy;
        }
        for subset in younger.subsets {
            if !self.subsets.iter().any(|known| known.name == subset.name) {
                self.subsets.push(subset);
            }
        }
    }

    /// The subset with this name.
    pub fn subset(&self, name: &str) -> Option<&Arc<api::Subset>> {
        self.subsets.iter().find(|subset| subset.name == name)
    }
}
