//! VirtualServices and DestinationRules indexed by host, with Istio's precedence rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::host::{self, Host};
use super::visibility::Visibility;
use crate::api::{self, Age, Labels, Object, ObjectKey, Spec};
use crate::revision::Revision;

/// A VirtualService with its hosts resolved.
#[derive(Clone, Debug)]
pub(crate) struct VirtualService {
    /// Identifies its content, delegates and overlay included.
    pub revision: Revision,
    /// Its key.
    pub key: ObjectKey,
    /// Its hosts as full names or wildcards.
    pub hosts: Vec<Host>,
    /// Who sees it.
    pub visibility: Visibility,
    object: Arc<Object>,
    empty: api::VirtualService,
    /// The HTTP routes with delegates merged in; `None` if the object does not delegate.
    merged: Option<Arc<[MergedRoute]>>,
    /// The revisions of the object and of its delegates; empty if it does not delegate.
    merged_from: Arc<[Revision]>,
    /// Its routes whose delegate is missing or cannot be used completely.
    dropped: Arc<[DroppedRoute]>,
    overlay: Option<Arc<Overlay>>,
}

/// Effective destinations that differ from those in the object: one entry per route of each kind, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Overlay {
    /// Of [`VirtualService::http`].
    pub http: Vec<Option<Vec<api::HttpRouteDestination>>>,
    /// Of [`VirtualService::tcp`].
    pub tcp: Vec<Option<Vec<api::RouteDestination>>>,
    /// Of [`VirtualService::tls`].
    pub tls: Vec<Option<Vec<api::RouteDestination>>>,
}

impl Overlay {
    /// Whether no route has other destinations than in the object.
    pub(crate) fn is_empty(&self) -> bool {
        self.http.iter().all(Option::is_none)
            && self.tcp.iter().chain(&self.tls).all(Option::is_none)
    }
}

/// A delegate's route merged with its root route.
#[derive(Clone, Debug)]
struct MergedRoute {
    key: ObjectKey,
    index: usize,
    route: api::HttpRoute,
}

/// A route whose delegate is missing or cannot be used completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DroppedRoute {
    /// Its index in `http`.
    pub index: usize,
    /// The reason.
    pub reason: String,
}

/// An HTTP route and its origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HttpRule<'a> {
    /// The route, with its delegate merged in.
    pub route: &'a api::HttpRoute,
    /// Its effective destinations.
    pub destinations: &'a [api::HttpRouteDestination],
    /// The VirtualService that defines it, whose namespace resolves short hosts.
    pub key: &'a ObjectKey,
    /// Its index in that VirtualService's `http`.
    pub index: usize,
}

/// A TCP or TLS route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamRule<'a, M> {
    /// The connections it is for.
    pub matches: &'a [M],
    /// Its effective destinations.
    pub destinations: &'a [api::RouteDestination],
}

impl VirtualService {
    pub(super) fn new(revision: Revision, object: &Arc<Object>, domain: &str) -> Self {
        let mut this = Self {
            revision,
            key: object.key(),
            hosts: Vec::new(),
            visibility: Visibility::Public,
            object: object.clone(),
            empty: api::VirtualService::default(),
            merged: None,
            merged_from: Arc::default(),
            dropped: Arc::default(),
            overlay: None,
        };
        let namespace = &object.meta.namespace;
        this.hosts =
            this.spec().hosts.iter().map(|name| host::resolve(name, namespace, domain)).collect();
        this.visibility =
            Visibility::new(this.spec().export_to.iter().map(String::as_str), namespace);
        this
    }

    /// Its spec.
    pub(crate) fn spec(&self) -> &api::VirtualService {
        match &self.object.spec {
            Spec::VirtualService(spec) => spec,
            _ => &self.empty,
        }
    }

    /// Its HTTP routes in order, with delegates merged in.
    pub(crate) fn http(&self) -> impl Iterator<Item = HttpRule<'_>> {
        let own = match &self.merged {
            None => self.spec().http.as_slice(),
            Some(_) => &[],
        };
        let own = own.iter().enumerate().map(|(index, route)| (route, &self.key, index));
        let merged = self
            .merged
            .iter()
            .flat_map(|merged| merged.iter().map(|item| (&item.route, &item.key, item.index)));
        own.chain(merged).enumerate().map(|(n, (route, key, index))| {
            let instead =
                self.overlay.as_deref().and_then(|overlay| overlay.http.get(n)?.as_deref());
            HttpRule { route, destinations: instead.unwrap_or(&route.route), key, index }
        })
    }

    /// The same with the routes of its delegates merged in. A delegate that is missing or not visible here, or that
    /// delegates further, contributes no routes; the other routes stay. `before` is the previous result, which is
    /// returned again if it was made from the same revisions.
    pub(super) fn with_delegates<'a>(
        self: &Arc<Self>,
        before: Option<&Arc<Self>>,
        domain: &str,
        delegate_of: impl Fn(&str, &str) -> Option<&'a Arc<VirtualService>>,
    ) -> Arc<Self> {
        let routes = &self.spec().http;
        if routes.iter().all(|route| route.delegate.is_none()) {
            return self.clone();
        }
        let delegates =
            self.delegates().filter_map(|(namespace, name)| delegate_of(&namespace, &name));
        let from: Arc<[Revision]> = std::iter::once(self.revision)
            .chain(delegates.map(|delegate| delegate.revision))
            .collect();
        if let Some(same) = before.filter(|before| before.merged_from == from) {
            return same.clone();
        }
        let mut merged = Vec::new();
        let mut dropped = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let Some(to) = &route.delegate else {
                merged.push(MergedRoute { key: self.key.clone(), index, route: route.clone() });
                continue;
            };
            let namespace =
                if to.namespace.is_empty() { &**self.namespace() } else { to.namespace.as_str() };
            let delegate = delegate_of(namespace, &to.name);
            let name = format!("its delegate {namespace}/{}", to.name);
            let (routes, reasons) = self.delegated(route, delegate, &name, domain);
            merged.extend(routes);
            dropped.extend(reasons.into_iter().map(|reason| DroppedRoute { index, reason }));
        }
        Arc::new(Self {
            revision: Revision::fresh(),
            merged: Some(merged.into()),
            merged_from: from,
            dropped: dropped.into(),
            ..(**self).clone()
        })
    }

    /// The routes of a delegate, merged with the route that delegates to it, and why others are dropped. `name` describes
    /// the delegate.
    fn delegated(
        &self,
        route: &api::HttpRoute,
        delegate: Option<&Arc<VirtualService>>,
        name: &str,
        domain: &str,
    ) -> (Vec<MergedRoute>, Vec<String>) {
        let Some(delegate) = delegate else {
            return (Vec::new(), vec![format!("{name} does not exist")]);
        };
        if !delegate.visibility.includes(self.namespace()) {
            return (Vec::new(), vec![format!("{name} is not exported to {}", self.namespace())]);
        }
        let (mut merged, mut reasons) = (Vec::new(), Vec::new());
        let root = self.with_full_mirrors(route, domain);
        let leaves = delegate.spec().http.iter().enumerate();
        for (index, leaf) in leaves.filter(|(_, leaf)| leaf.delegate.is_none()) {
            match super::delegate::merge(&root, leaf) {
                Some(route) => {
                    merged.push(MergedRoute { key: delegate.key.clone(), index, route });
                }
                None => reasons.push(format!(
                    "spec.http[{index}] of {name} has a match wider than the match of its root"
                )),
            }
        }
        (merged, reasons)
    }

    /// The route with full host names in its mirrors, so that routes of a delegate in another namespace can inherit
    /// them.
    fn with_full_mirrors(&self, route: &api::HttpRoute, domain: &str) -> api::HttpRoute {
        let mut full = route.clone();
        let listed = full.mirrors.iter_mut().filter_map(|mirror| mirror.destination.as_mut());
        for to in listed.chain(&mut full.mirror) {
            to.host = host::resolve(&to.host, self.namespace(), domain).to_string();
        }
        full
    }

    /// The same with other effective destinations.
    pub(crate) fn with_overlay(&self, overlay: Overlay) -> Self {
        Self { revision: Revision::fresh(), overlay: Some(Arc::new(overlay)), ..self.clone() }
    }

    /// The effective destinations that differ from those in the object.
    pub(crate) fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_deref()
    }

    /// Its routes whose delegate is missing or cannot be used completely.
    pub(crate) fn dropped(&self) -> &[DroppedRoute] {
        &self.dropped
    }

    /// Its TCP routes in order.
    pub(crate) fn tcp(&self) -> impl Iterator<Item = StreamRule<'_, api::L4MatchAttributes>> {
        self.spec().tcp.iter().enumerate().map(|(n, route)| {
            let instead =
                self.overlay.as_deref().and_then(|overlay| overlay.tcp.get(n)?.as_deref());
            StreamRule { matches: &route.matches, destinations: instead.unwrap_or(&route.route) }
        })
    }

    /// Its TLS routes in order.
    pub(crate) fn tls(&self) -> impl Iterator<Item = StreamRule<'_, api::TlsMatchAttributes>> {
        self.spec().tls.iter().enumerate().map(|(n, route)| {
            let instead =
                self.overlay.as_deref().and_then(|overlay| overlay.tls.get(n)?.as_deref());
            StreamRule { matches: &route.matches, destinations: instead.unwrap_or(&route.route) }
        })
    }

    /// The VirtualServices that its routes delegate to, by namespace and name, known or not.
    pub(super) fn delegates(&self) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
        let named = self.spec().http.iter().filter_map(|route| route.delegate.as_ref());
        named.map(|to| {
            let namespace = if to.namespace.is_empty() {
                self.namespace().clone()
            } else {
                to.namespace.as_str().into()
            };
            (namespace, to.name.as_str().into())
        })
    }

    /// The full names of the hosts to which its routes send or mirror requests and connections, each with the port if
    /// specified.
    pub(crate) fn destinations<'a>(
        &'a self,
        domain: &'a str,
    ) -> impl Iterator<Item = (Host, Option<u16>)> + 'a {
        let http = self.http().flat_map(|http| {
            let routes = http.destinations.iter().filter_map(|to| to.destination.as_ref());
            let mirrors = http.route.mirrors.iter().filter_map(|to| to.destination.as_ref());
            let all = routes.chain(mirrors).chain(&http.route.mirror);
            all.map(move |to| (to, &http.key.namespace))
        });
        let streams = self
            .tcp()
            .map(|rule| rule.destinations)
            .chain(self.tls().map(|rule| rule.destinations));
        let streams = streams.flatten().filter_map(|to| to.destination.as_ref());
        http.chain(streams.map(|to| (to, self.namespace()))).map(|(to, namespace)| {
            let port = to.port.and_then(|port| u16::try_from(port.number).ok());
            (host::resolve(&to.host, namespace, domain), port)
        })
    }

    /// Whether any match depends on the source proxy.
    pub(crate) fn tells_sources_apart(&self) -> bool {
        let http = self.http().flat_map(|http| {
            http.route.matches.iter().map(|of| (&of.source_labels, &of.source_namespace))
        });
        let tcp = self.tcp().flat_map(|rule| {
            rule.matches.iter().map(|of| (&of.source_labels, &of.source_namespace))
        });
        let tls = self.tls().flat_map(|rule| {
            rule.matches.iter().map(|of| (&of.source_labels, &of.source_namespace))
        });
        http.chain(tcp)
            .chain(tls)
            .any(|(labels, namespace)| !labels.is_empty() || !namespace.is_empty())
    }

    /// Its annotations.
    pub(crate) fn annotations(&self) -> &Labels {
        &self.object.meta.annotations
    }

    /// Its namespace, which resolves short hosts.
    pub(crate) fn namespace(&self) -> &Arc<str> {
        &self.object.meta.namespace
    }

    /// Its age.
    pub(crate) fn age(&self) -> Age {
        self.object.meta.age
    }

    /// Whether any part of it applies to sidecars.
    pub(crate) fn is_for_mesh(&self) -> bool {
        let gateways = &self.spec().gateways;
        gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh")
    }
}

/// The merged DestinationRules of one namespace for one host.
#[derive(Clone, Debug)]
pub(crate) struct DestinationRule {
    /// Identifies its content, overlay included.
    pub revision: Revision,
    /// The DestinationRules it was merged from, oldest first.
    pub keys: Vec<ObjectKey>,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The host as a full name or wildcard.
    pub host: Host,
    /// Who sees it.
    pub visibility: Visibility,
    /// Selects the client proxies by labels; `None` means all.
    pub selector: Option<Labels>,
    /// The policy of the oldest rule that has one.
    pub traffic_policy: Option<Arc<api::TrafficPolicy>>,
    /// The subsets of all of them; if a name is used twice, the older one wins.
    pub subsets: Vec<Arc<api::Subset>>,
    /// The revisions of the objects it was merged from; empty if it comes from a single object.
    merged_from: Vec<Revision>,
    /// The effective labels of subsets that differ from those in the object.
    overlay: BTreeMap<String, Labels>,
}

/// The client location attributes that a load balancer setting depends on.
pub(super) struct LocalityInputs<'a> {
    /// Whether it depends on the locality.
    pub locality: bool,
    /// The labels that it depends on, as names or `name=value`.
    pub failover_priority: &'a [String],
}

/// The rules that result from the objects for one host in one namespace, each object with its revision. Rules for the
/// same proxies in the same namespaces are merged, the oldest first. `before` are the previous results: each is returned
/// again if it was merged from the same revisions.
pub(super) fn merge<'a>(
    objects: impl Iterator<Item = (Revision, &'a Arc<Object>)>,
    before: &[Arc<DestinationRule>],
    domain: &str,
) -> Vec<Arc<DestinationRule>> {
    let mut sorted: Vec<_> = objects.collect();
    sorted.sort_by(|(_, a), (_, b)| (a.meta.age, &a.meta.name).cmp(&(b.meta.age, &b.meta.name)));
    let mut merged: Vec<DestinationRule> = Vec::new();
    for (revision, object) in sorted {
        let Some(rule) = DestinationRule::new(revision, object, domain) else {
            continue;
        };
        let same = merged
            .iter_mut()
            .find(|older| older.selector == rule.selector && older.visibility == rule.visibility);
        match same {
            Some(older) => older.merge(rule),
            None => merged.push(rule),
        }
    }
    let rules = merged.into_iter().map(|mut rule| {
        if !rule.merged_from.is_empty() {
            if let Some(same) = before.iter().find(|before| before.merged_from == rule.merged_from)
            {
                return same.clone();
            }
            rule.revision = Revision::fresh();
        }
        Arc::new(rule)
    });
    rules.collect()
}

impl PartialEq for DestinationRule {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision
    }
}

impl PartialEq for VirtualService {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision
    }
}

// With it, comparing two `Arc`s looks at their addresses first.
impl Eq for DestinationRule {}
impl Eq for VirtualService {}

impl DestinationRule {
    /// The rule of one object; `None` for an object of another kind.
    fn new(revision: Revision, object: &Arc<Object>, domain: &str) -> Option<Self> {
        let Spec::DestinationRule(spec) = &object.spec else {
            return None;
        };
        Some(Self {
            revision,
            keys: vec![object.key()],
            namespace: object.meta.namespace.clone(),
            host: host::resolve(&spec.host, &object.meta.namespace, domain),
            visibility: match spec.workload_selector {
                // A selector applies only to workloads of the rule's own namespace.
                Some(_) => Visibility::private(&object.meta.namespace),
                None => Visibility::new(
                    spec.export_to.iter().map(String::as_str),
                    &object.meta.namespace,
                ),
            },
            selector: spec.workload_selector.as_ref().map(|selector| selector.match_labels.clone()),
            traffic_policy: spec.traffic_policy.clone().map(Arc::from),
            subsets: spec.subsets.clone(),
            merged_from: Vec::new(),
            overlay: BTreeMap::new(),
        })
    }

    /// Whether only its own namespace sees it.
    pub(super) fn is_private(&self) -> bool {
        self.visibility == Visibility::private(&self.namespace)
    }

    /// Merges a newer rule for the same host into this one.
    fn merge(&mut self, younger: DestinationRule) {
        if self.merged_from.is_empty() {
            self.merged_from.push(self.revision);
        }
        self.merged_from.push(younger.revision);
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

    /// Whether the endpoints depend on the client's location.
    pub(crate) fn looks_at_locality(&self) -> bool {
        self.locality_inputs().any(|place| place.locality)
    }

    /// The client location attributes that its load balancing depends on.
    pub(super) fn locality_inputs(&self) -> impl Iterator<Item = LocalityInputs<'_>> {
        let own = self.traffic_policy.as_deref().into_iter();
        let policies =
            own.chain(self.subsets.iter().filter_map(|subset| subset.traffic_policy.as_deref()));
        policies.flat_map(|policy| {
            let ports = policy
                .port_level_settings
                .iter()
                .map(|port| (&port.load_balancer, &port.outlier_detection));
            let all =
                std::iter::once((&policy.load_balancer, &policy.outlier_detection)).chain(ports);
            all.map(|(balancer, outlier)| {
                let locality =
                    balancer.as_ref().and_then(|balancer| balancer.locality_lb_setting.as_ref());
                let zone =
                    balancer.as_ref().and_then(|balancer| balancer.zone_aware_lb_setting.as_ref());
                LocalityInputs {
                    // Outlier detection enables locality failover by default.
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
    pub(crate) fn subset(&self, name: &str) -> Option<&Arc<api::Subset>> {
        self.subsets.iter().find(|subset| subset.name == name)
    }

    /// The effective labels of a subset.
    pub(crate) fn labels(&self, subset: &str) -> Option<&Labels> {
        self.overlay.get(subset).or_else(|| Some(&*self.subset(subset)?.labels))
    }

    /// The same with other effective labels for these subsets.
    pub(crate) fn with_overlay(&self, labels: BTreeMap<String, Labels>) -> Self {
        Self { revision: Revision::fresh(), overlay: labels, ..self.clone() }
    }

    /// The effective labels that differ from those in the object.
    pub(crate) fn overlay(&self) -> &BTreeMap<String, Labels> {
        &self.overlay
    }
}
