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
    /// The HTTP routes with those of delegates taken in, or with other weights; `None` where they are the object's own.
    merged: Option<Vec<MergedRoute>>,
    /// Routes of its own that lead to no, or not to all of a delegate's routes, and why.
    lost: Vec<LostRoute>,
    /// TCP and TLS routes in place of the object's own.
    streams: Option<Box<(Vec<api::TcpRoute>, Vec<api::TlsRoute>)>>,
}

/// A route of a delegate, with what its root says.
#[derive(Clone, Debug)]
struct MergedRoute {
    key: ObjectKey,
    index: usize,
    route: api::HttpRoute,
}

/// A route that leads to no route of a delegate's, or not to all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRoute {
    /// Its position in `http`.
    pub index: usize,
    /// Why.
    pub reason: String,
}

/// A route of `http` and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct HttpRule<'a> {
    /// The route, delegates taken in.
    pub route: &'a api::HttpRoute,
    /// The VirtualService that says it, in whose namespace short hosts are read.
    pub key: &'a ObjectKey,
    /// Its position in that one's `http`.
    pub index: usize,
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
            merged: None,
            lost: Vec::new(),
            streams: None,
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

    /// Its HTTP routes in order, delegates taken in.
    pub fn http(&self) -> impl Iterator<Item = HttpRule<'_>> {
        let own = match &self.merged {
            None => self.spec().http.as_slice(),
            Some(_) => &[],
        };
        let own = own.iter().enumerate().map(|(index, route)| HttpRule { route, key: &self.key, index });
        let merged = self.merged.iter().flatten();
        own.chain(merged.map(|one| HttpRule { route: &one.route, key: &one.key, index: one.index }))
    }

    /// The same with the routes of its delegates taken in; `None` where it has none. A delegate that is missing, not
    /// visible here or has delegates of its own gives no routes, and the other routes stand.
    fn with_delegates(&self, delegates: &BTreeMap<(&str, &str), &Arc<VirtualService>>, domain: &str) -> Option<Self> {
        let routes = &self.spec().http;
        if routes.iter().all(|route| route.delegate.is_none()) {
            return None;
        }
        let mut revisions = vec![self.revision];
        let mut merged = Vec::new();
        let mut lost = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let Some(to) = &route.delegate else {
                merged.push(MergedRoute { key: self.key.clone(), index, route: route.clone() });
                continue;
            };
            let namespace = if to.namespace.is_empty() { &**self.namespace() } else { to.namespace.as_str() };
            let at = |reason: String| LostRoute { index, reason };
            let name = format!("its delegate {namespace}/{}", to.name);
            let Some(delegate) = delegates.get(&(namespace, to.name.as_str())) else {
                lost.push(at(format!("{name} is not there")));
                continue;
            };
            if !delegate.visibility.includes(self.namespace()) {
                lost.push(at(format!("{name} is not exported to {}", self.namespace())));
                continue;
            }
            revisions.push(delegate.revision);
            let root = self.with_full_mirrors(route, domain);
            let leaves = delegate.spec().http.iter().enumerate().filter(|(_, leaf)| leaf.delegate.is_none());
            for (index, leaf) in leaves {
                match super::delegate::merge(&root, leaf) {
                    Some(route) => merged.push(MergedRoute { key: delegate.key.clone(), index, route }),
                    None => lost.push(at(format!("spec.http[{index}] of {name} has a match that goes beyond its own"))),
                }
            }
        }
        let bytes: Vec<u8> = revisions.iter().flat_map(|revision| revision.to_le_bytes()).collect();
        Some(Self {
            revision: xxhash_rust::xxh3::xxh3_64(&bytes),
            key: self.key.clone(),
            hosts: self.hosts.clone(),
            visibility: self.visibility.clone(),
            object: self.object.clone(),
            empty: api::VirtualService::default(),
            merged: Some(merged),
            lost,
            streams: None,
        })
    }

    /// A route of which a delegate's routes, in whose namespace short hosts are read, can take the mirrors.
    fn with_full_mirrors(&self, route: &api::HttpRoute, domain: &str) -> api::HttpRoute {
        let mut full = route.clone();
        let listed = full.mirrors.iter_mut().filter_map(|mirror| mirror.destination.as_mut());
        for to in listed.chain(&mut full.mirror) {
            to.host = host::resolve(&to.host, self.namespace(), domain).to_string();
        }
        full
    }

    /// The same with other destinations: `http` for each of [`VirtualService::http`] in order, `tcp` and `tls` for each
    /// route of that kind; `None` leaves a route as it is.
    pub fn redirected(
        &self,
        http: &[Option<Vec<api::HttpRouteDestination>>],
        tcp: &[Option<Vec<api::RouteDestination>>],
        tls: &[Option<Vec<api::RouteDestination>>],
        revision: u64,
    ) -> Self {
        let routes = self.http().enumerate().map(|(n, rule)| {
            let mut route = rule.route.clone();
            if let Some(Some(to)) = http.get(n) {
                route.route.clone_from(to);
            }
            MergedRoute { key: rule.key.clone(), index: rule.index, route }
        });
        let replaced = |n: usize, list: &[Option<Vec<api::RouteDestination>>], own: &mut Vec<api::RouteDestination>| {
            if let Some(Some(to)) = list.get(n) {
                own.clone_from(to);
            }
        };
        let (mut new_tcp, mut new_tls) = (self.tcp().to_vec(), self.tls().to_vec());
        new_tcp.iter_mut().enumerate().for_each(|(n, route)| replaced(n, tcp, &mut route.route));
        new_tls.iter_mut().enumerate().for_each(|(n, route)| replaced(n, tls, &mut route.route));
        Self {
            revision,
            key: self.key.clone(),
            hosts: self.hosts.clone(),
            visibility: self.visibility.clone(),
            object: self.object.clone(),
            empty: api::VirtualService::default(),
            merged: Some(routes.collect()),
            lost: self.lost.clone(),
            streams: Some(Box::new((new_tcp, new_tls))),
        }
    }

    /// Its routes that lead to no, or not to all of a delegate's routes.
    pub fn lost(&self) -> &[LostRoute] {
        &self.lost
    }

    /// Its TCP routes.
    pub fn tcp(&self) -> &[api::TcpRoute] {
        self.streams.as_ref().map_or(&self.spec().tcp, |streams| &streams.0)
    }

    /// Its TLS routes.
    pub fn tls(&self) -> &[api::TlsRoute] {
        self.streams.as_ref().map_or(&self.spec().tls, |streams| &streams.1)
    }

    /// Its annotations.
    pub fn annotations(&self) -> &Labels {
        &self.object.meta.annotations
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

/// What load balancing looks at of where clients are.
pub(super) struct Place<'a> {
    /// Whether their locality counts.
    pub locality: bool,
    /// Whether some of their labels do, as names or `name=value`.
    pub failover_priority: &'a [String],
}

/// All VirtualServices, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct VirtualServices {
    list: Vec<Arc<VirtualService>>,
}

impl VirtualServices {
    pub(super) fn new(list: Vec<Arc<VirtualService>>, domain: &str) -> Self {
        let delegates: BTreeMap<_, _> = list
            .iter()
            .filter(|one| one.hosts.is_empty())
            .map(|one| ((&*one.key.namespace, &*one.key.name), one))
            .collect();
        let mut merged: Vec<_> = list
            .iter()
            .map(|one| one.with_delegates(&delegates, domain).map_or_else(|| one.clone(), Arc::new))
            .collect();
        merged.sort_by(|a, b| (a.age(), &a.key.name, &a.key.namespace).cmp(&(b.age(), &b.key.name, &b.key.namespace)));
        Self { list: merged }
    }

    /// The same with others in the place of those with their keys.
    pub fn with(&self, others: &BTreeMap<ObjectKey, Arc<VirtualService>>) -> Self {
        Self { list: self.list.iter().map(|one| others.get(&one.key).unwrap_or(one).clone()).collect() }
    }

    /// All of them, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.list.iter()
    }

    /// The ones that count for sidecars of `namespace` and that `seen` lets through, by host. Those that the namespace
    /// keeps to itself come before those that others export to it by name, and these before those that all see; among
    /// each the oldest first.
    pub fn for_namespace(&self, namespace: &str, seen: impl Fn(&VirtualService) -> bool) -> VirtualServicesByHost {
        let mut by_host = VirtualServicesByHost::default();
        let counts = |one: &&Arc<VirtualService>| one.is_for_mesh() && one.visibility.includes(namespace) && seen(one);
        let mut counting: Vec<_> = self.list.iter().filter(counts).collect();
        counting.sort_by_key(|one| match one.visibility {
            Visibility::Namespaces(_) if **one.namespace() == *namespace => 0,
            Visibility::Namespaces(_) => 1,
            Visibility::Public => 2,
        });
        by_host.order = counting.iter().enumerate().map(|(n, one)| (one.key.clone(), n)).collect();
        for service in counting {
            for name in &service.hosts {
                if host::is_wildcard(name) {
                    by_host.wildcards.push((name.clone(), service.clone()));
                } else {
                    by_host.exact.entry(name.clone()).or_default().push(service.clone());
                }
            }
        }
        // A stable sort, so that of two with the same wildcard the first one stays first.
        by_host.wildcards.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        by_host
    }
}

/// The VirtualServices that count for one namespace. Of two for one host the first wins it whole.
#[derive(Clone, Debug, Default)]
pub struct VirtualServicesByHost {
    /// The place of each in the order in which they count.
    order: BTreeMap<ObjectKey, usize>,
    exact: BTreeMap<Host, Vec<Arc<VirtualService>>>,
    wildcards: Vec<(Host, Arc<VirtualService>)>,
}

impl VirtualServicesByHost {
    /// Those whose HTTP routes may count for a host, in order: the ones that name it; without any the first with the
    /// longest wildcard, and that alone. The first that has a route for a proxy and port counts there.
    pub fn http(&self, name: &str) -> impl Iterator<Item = &Arc<VirtualService>> {
        let wildcards = || self.wildcards.iter();
        let mut found: Vec<&Arc<VirtualService>> = match host::is_wildcard(name) {
            true => wildcards().filter(|(wildcard, _)| **wildcard == *name).map(|(_, service)| service).collect(),
            false => self.exact.get(name).into_iter().flatten().collect(),
        };
        if found.is_empty() {
            found.extend(wildcards().find(|(wildcard, _)| host::covers(wildcard, name)).map(|(_, service)| service));
        }
        found.into_iter().filter(|service| !service.spec().http.is_empty())
    }

    /// The place of one in the order in which they count.
    pub fn place(&self, key: &ObjectKey) -> Option<usize> {
        self.order.get(key).copied()
    }

    /// All that speak for a host, in the order in which they count.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &Arc<VirtualService>> {
        let covering = self.wildcards.iter().filter(move |(wildcard, _)| host::covers(wildcard, name));
        self.exact.get(name).into_iter().flatten().chain(covering.map(|(_, service)| service))
    }

    /// Every host, wildcards included, with its VirtualService.
    pub fn hosts(&self) -> impl Iterator<Item = (&Host, &Arc<VirtualService>)> {
        let exact = self.exact.iter().flat_map(|(name, list)| list.iter().map(move |service| (name, service)));
        exact.chain(self.wildcards.iter().map(|(name, service)| (name, service)))
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
    /// The rules for the most specific host that covers `host` and of which any is seen.
    fn find(&self, host: &str, seen: impl Fn(&DestinationRule) -> bool) -> Option<&[Arc<DestinationRule>]> {
        let exact = self.exact.get(host).into_iter();
        let wildcards = self.wildcards.iter().filter(|(wildcard, _)| host::covers(wildcard, host));
        let mut all = exact.chain(wildcards.map(|(_, rules)| rules));
        all.find(|rules| rules.iter().any(|rule| seen(rule))).map(Vec::as_slice)
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
                visibility: match spec.workload_selector {
                    // It speaks of workloads of its own namespace.
                    Some(_) => Visibility::private(&object.meta.namespace),
                    None => Visibility::new(spec.export_to.iter().map(String::as_str), &object.meta.namespace),
                },
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

    /// The rule for a host as a client sees it: from the client's namespace, else what the service's namespace exports,
    /// else what the root namespace exports; the first of these that has one. In each the most specific host decides
    /// alone. Rules that select other proxies than the client keep those for all from counting as well (measured on
    /// Istiod). Of several for all, which differ in who sees them, the youngest counts. Source: Istio's documentation,
    /// "Global namespace aliases" of `DestinationRule.exportTo`, and its code.
    pub fn find(
        &self,
        host: &str,
        service_namespace: &str,
        root_namespace: &str,
        client_namespace: &str,
        client_labels: &Labels,
    ) -> Option<&Arc<DestinationRule>> {
        let found = self.counting(host, service_namespace, root_namespace, client_namespace);
        // A selector speaks of the workloads of the rule's own namespace. A rule for these very proxies beats one for all.
        let selects = |rule: &&Arc<DestinationRule>| match &rule.selector {
            None => false,
            Some(selector) => *rule.namespace == *client_namespace && api::selects(selector, client_labels),
        };
        found.iter().copied().find(selects).or_else(|| for_all(&found))
    }

    /// The same for what comes in at a workload of the service itself: rules that select clients do not count.
    pub fn find_inbound(
        &self,
        host: &str,
        service_namespace: &str,
        root_namespace: &str,
        namespace: &str,
    ) -> Option<&Arc<DestinationRule>> {
        for_all(&self.counting(host, service_namespace, root_namespace, namespace))
    }

    /// The rules of the place that counts.
    fn counting(
        &self,
        host: &str,
        service_namespace: &str,
        root_namespace: &str,
        client_namespace: &str,
    ) -> Vec<&Arc<DestinationRule>> {
        let seen = |rule: &DestinationRule| rule.visibility.includes(client_namespace);
        // What the root namespace shows to all must not come before a service's own for proxies of the root namespace.
        let own = |rule: &DestinationRule| {
            if client_namespace == root_namespace { rule.is_private() } else { seen(rule) }
        };
        let within = |namespace: &str, which: &dyn Fn(&DestinationRule) -> bool| -> Vec<&Arc<DestinationRule>> {
            let rules = self.by_namespace.get(namespace).and_then(|rules| rules.find(host, which));
            rules.into_iter().flatten().filter(|rule| which(rule) && seen(rule)).collect()
        };
        let mut found = within(client_namespace, &own);
        for namespace in [service_namespace, root_namespace] {
            if found.is_empty() {
                found = within(namespace, &|rule| !rule.is_private());
            }
        }
        found
    }

    /// The same with others in the place of those with their revisions.
    pub fn with(&self, others: &BTreeMap<u64, Arc<DestinationRule>>) -> Self {
        let mut same = self.clone();
        let replace = |rules: &mut Vec<Arc<DestinationRule>>| {
            for rule in rules {
                if let Some(other) = others.get(&rule.revision) {
                    *rule = other.clone();
                }
            }
        };
        for rules in same.by_namespace.values_mut() {
            rules.exact.values_mut().for_each(replace);
            rules.wildcards.iter_mut().for_each(|(_, rules)| replace(rules));
        }
        same
    }

    /// Every rule.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.by_namespace
            .values()
            .flat_map(|rules| rules.exact.values().chain(rules.wildcards.iter().map(|(_, rules)| rules)).flatten())
    }
}

fn for_all<'a>(found: &[&'a Arc<DestinationRule>]) -> Option<&'a Arc<DestinationRule>> {
    found.iter().copied().rfind(|rule| rule.selector.is_none())
}

impl DestinationRule {
    /// Whether only its own namespace sees it.
    fn is_private(&self) -> bool {
        self.visibility == Visibility::private(&self.namespace)
    }

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

    /// Whether clients in different places get different endpoints by it.
    pub fn looks_at_locality(&self) -> bool {
        self.places().any(|place| place.locality)
    }

    /// What its load balancing looks at of where clients are.
    pub(super) fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let own = self.traffic_policy.as_deref().into_iter();
        let policies = own.chain(self.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref()));
        policies.flat_map(|policy| {
            let ports = policy.port_level_settings.iter().map(|port| (&port.load_balancer, &port.outlier_detection));
            let all = std::iter::once((&policy.load_balancer, &policy.outlier_detection)).chain(ports);
            all.map(|(balancer, outlier)| {
                let locality = balancer.as_ref().and_then(|balancer| balancer.locality_lb_setting.as_ref());
                let zone = balancer.as_ref().and_then(|balancer| balancer.zone_aware_lb_setting.as_ref());
                Place {
                    // Outlier detection by itself switches failover by locality on.
                    locality: outlier.is_some() || locality.is_some() || zone.is_some(),
                    failover_priority: zone
                        .map(|zone| zone.failover_priority.as_slice())
                        .or_else(|| locality.map(|locality| locality.failover_priority.as_slice()))
                        .unwrap_or_default(),
                }
            })
        })
    }

    /// The subset with this name.
    pub fn subset(&self, name: &str) -> Option<&Arc<api::Subset>> {
        self.subsets.iter().find(|subset| subset.name == name)
    }
}
