//! VirtualServices and DestinationRules by host: which of several counts for whom.

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
    pub(super) fn with_delegates<'a>(
        &self,
        delegate_of: impl Fn(&str, &str) -> Option<&'a Arc<VirtualService>>,
        domain: &str,
    ) -> Option<Self> {
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
            let Some(delegate) = delegate_of(namespace, &to.name) else {
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

    /// The VirtualServices that its routes delegate to, by namespace and name, known or not.
    pub(super) fn delegates(&self) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
        let named = self.spec().http.iter().filter_map(|route| route.delegate.as_ref());
        named.map(|to| {
            let namespace =
                if to.namespace.is_empty() { self.namespace().clone() } else { to.namespace.as_str().into() };
            (namespace, to.name.as_str().into())
        })
    }

    /// The hosts that its routes send requests, copies of requests or connections to, with the port where they name
    /// one, as full names.
    pub fn destinations<'a>(&'a self, domain: &'a str) -> impl Iterator<Item = (Host, Option<u16>)> + 'a {
        let http = self.http().flat_map(|http| {
            let routes = http.route.route.iter().filter_map(|to| to.destination.as_ref());
            let mirrors = http.route.mirrors.iter().filter_map(|to| to.destination.as_ref());
            let all = routes.chain(mirrors).chain(&http.route.mirror);
            all.map(move |to| (to, &http.key.namespace))
        });
        let streams = self.tcp().iter().map(|route| &route.route).chain(self.tls().iter().map(|route| &route.route));
        let streams = streams.flatten().filter_map(|to| to.destination.as_ref());
        http.chain(streams.map(|to| (to, self.namespace()))).map(|(to, namespace)| {
            let port = to.port.and_then(|port| u16::try_from(port.number).ok());
            (host::resolve(&to.host, namespace, domain), port)
        })
    }

    /// Whether any match of its HTTP, TCP or TLS routes looks at who asks.
    pub fn tells_sources_apart(&self) -> bool {
        let http =
            self.http().flat_map(|http| http.route.matches.iter().map(|of| (&of.source_labels, &of.source_namespace)));
        let tcp = self
            .tcp()
            .iter()
            .flat_map(|route| route.matches.iter().map(|of| (&of.source_labels, &of.source_namespace)));
        let tls = self
            .tls()
            .iter()
            .flat_map(|route| route.matches.iter().map(|of| (&of.source_labels, &of.source_namespace)));
        http.chain(tcp).chain(tls).any(|(labels, namespace)| !labels.is_empty() || !namespace.is_empty())
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

/// The rules that objects for one host in one namespace make, each object with its revision. Rules for the same proxies
/// in the same namespaces merge, the oldest first.
pub(super) fn merge<'a>(
    objects: impl Iterator<Item = (u64, &'a Arc<Object>)>,
    domain: &str,
) -> Vec<Arc<DestinationRule>> {
    let mut sorted: Vec<_> = objects.collect();
    sorted.sort_by(|(_, a), (_, b)| (a.meta.age, &a.meta.name).cmp(&(b.meta.age, &b.meta.name)));
    let mut merged: Vec<(DestinationRule, Vec<u64>)> = Vec::new();
    for (revision, object) in sorted {
        let Some(rule) = DestinationRule::new(revision, object, domain) else { continue };
        let same = |older: &DestinationRule| older.selector == rule.selector && older.visibility == rule.visibility;
        match merged.iter_mut().find(|(older, _)| same(older)) {
            Some((older, revisions)) => {
                older.absorb(rule);
                revisions.push(revision);
            }
            None => merged.push((rule, vec![revision])),
        }
    }
    let rules = merged.into_iter().map(|(mut rule, revisions)| {
        if revisions.len() > 1 {
            let bytes: Vec<u8> = revisions.iter().flat_map(|revision| revision.to_le_bytes()).collect();
            rule.revision = xxhash_rust::xxh3::xxh3_64(&bytes);
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

impl DestinationRule {
    /// What one object says; `None` for an object of another kind.
    fn new(revision: u64, object: &Arc<Object>, domain: &str) -> Option<Self> {
        let Spec::DestinationRule(spec) = &object.spec else { return None };
        Some(Self {
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
        })
    }

    /// Whether only its own namespace sees it.
    pub(super) fn is_private(&self) -> bool {
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
