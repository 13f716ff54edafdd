//! Indexes objects by the names that others reference, so that each check visits an object once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::spec_of;
use crate::api::{self, Kind, Labels, ObjectKey, Spec, selects};
use crate::mesh::{
    self, HOSTNAME, Host, Mesh, MeshBuilder, MeshConfig, Protocol, REGION, SUBZONE, Topology,
    Visibility, ZONE, is_wildcard,
};
use crate::rollout_guard::{self, HeldChange, RolloutGuard};
use crate::store::{Entry, Store};

/// Stands for every namespace that no object names. It is no valid name of a namespace.
pub(super) const ELSEWHERE: &str = "\0elsewhere";

/// A VirtualService with its names resolved.
pub(super) struct IndexedVirtualService<'a> {
    pub entry: &'a Entry,
    pub spec: &'a api::VirtualService,
    /// In the order of `spec.hosts`.
    pub hosts: Vec<Host>,
    pub visibility: Visibility,
}

impl IndexedVirtualService<'_> {
    pub(crate) fn namespace(&self) -> &Arc<str> {
        &self.entry.object.meta.namespace
    }

    /// Whether it applies to sidecars.
    pub(crate) fn is_for_mesh(&self) -> bool {
        self.spec.gateways.is_empty() || self.spec.gateways.iter().any(|name| name == "mesh")
    }

    /// The common part of all matches, each with its path.
    pub(crate) fn matches(&self) -> impl Iterator<Item = (String, Match<'_>)> {
        let http = self.spec.http.iter().enumerate().flat_map(|(n, route)| {
            matches("http", n, &route.matches, |conditions| {
                Match::new(conditions.port, &conditions.source_namespace, &conditions.gateways)
            })
        });
        let tls = self.spec.tls.iter().enumerate().flat_map(|(n, route)| {
            matches("tls", n, &route.matches, |conditions| {
                Match::new(conditions.port, &conditions.source_namespace, &conditions.gateways)
            })
        });
        let tcp = self.spec.tcp.iter().enumerate().flat_map(|(n, route)| {
            matches("tcp", n, &route.matches, |conditions| {
                Match::new(conditions.port, &conditions.source_namespace, &conditions.gateways)
            })
        });
        http.chain(tls).chain(tcp)
    }

    /// The destinations of its routes, each with its path.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = (String, &api::Destination)> {
        let http = self.spec.http.iter().enumerate().flat_map(|(n, route)| {
            let routes = route.route.iter().enumerate();
            let routes = routes.map(move |(m, to)| {
                (format!("spec.http[{n}].route[{m}].destination"), to.destination.as_ref())
            });
            let mirror = (format!("spec.http[{n}].mirror"), route.mirror.as_ref());
            let mirrors = route.mirrors.iter().enumerate();
            let mirrors = mirrors.map(move |(m, to)| {
                (format!("spec.http[{n}].mirrors[{m}].destination"), to.destination.as_ref())
            });
            routes.chain([mirror]).chain(mirrors)
        });
        let tls = self
            .spec
            .tls
            .iter()
            .enumerate()
            .flat_map(move |(n, route)| connections("tls", n, &route.route));
        let tcp = self
            .spec
            .tcp
            .iter()
            .enumerate()
            .flat_map(move |(n, route)| connections("tcp", n, &route.route));
        http.chain(tls).chain(tcp).filter_map(|(path, to)| Some((path, to?)))
    }
}

/// The common part of the matches of a route, each with its path.
fn matches<'a, M>(
    kind: &'static str,
    n: usize,
    matches: &'a [M],
    common: impl Fn(&'a M) -> Match<'a>,
) -> impl Iterator<Item = (String, Match<'a>)> {
    let all = matches.iter().enumerate();
    all.map(move |(m, conditions)| (format!("spec.{kind}[{n}].match[{m}]"), common(conditions)))
}

/// The destinations of TLS or TCP routes, each with its path.
fn connections<'a>(
    kind: &'static str,
    n: usize,
    routes: &'a [api::RouteDestination],
) -> impl Iterator<Item = (String, Option<&'a api::Destination>)> {
    routes.iter().enumerate().map(move |(m, to)| {
        (format!("spec.{kind}[{n}].route[{m}].destination"), to.destination.as_ref())
    })
}

/// The fields that HTTP, TLS and TCP matches share.
pub(super) struct Match<'a> {
    /// 0 means any.
    pub port: u32,
    pub source_namespace: &'a str,
    pub gateways: &'a [String],
}

impl<'a> Match<'a> {
    fn new(port: Option<u32>, source_namespace: &'a str, gateways: &'a [String]) -> Self {
        Self { port: port.unwrap_or_default(), source_namespace, gateways }
    }
}

/// A DestinationRule with its host resolved.
pub(super) struct IndexedDestinationRule<'a> {
    pub entry: &'a Entry,
    pub spec: &'a api::DestinationRule,
    pub host: Host,
    pub visibility: Visibility,
}

impl IndexedDestinationRule<'_> {
    pub(crate) fn namespace(&self) -> &Arc<str> {
        &self.entry.object.meta.namespace
    }

    pub(crate) fn has_subset(&self, name: &str) -> bool {
        self.spec.subsets.iter().any(|subset| subset.name == name)
    }
}

/// A service as seen by destinations.
pub(super) struct IndexedService {
    pub namespace: Arc<str>,
    /// The ports that it is known to have, with their protocols; empty if they are unknown.
    pub ports: Vec<(u16, Protocol)>,
    /// The host that it is an alias of (`ExternalName`).
    pub alias_of: Option<Host>,
    pub visibility: Visibility,
    /// The labels of each endpoint; `None` if unknown.
    pub endpoints: Option<Vec<WorkloadLabels>>,
}

/// The labels of a workload, including those of its locality, as far as they are known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WorkloadLabels {
    labels: Labels,
    /// Whether its node is known. If not, its locality may be any.
    placed: bool,
}

impl WorkloadLabels {
    fn new(topology: &Topology, own: &Labels, store: &Store) -> Self {
        let node = ObjectKey::new(Kind::Node, "", &topology.node);
        let placed = !topology.locality.region.is_empty() || store.get(&node).is_some();
        Self { labels: topology.labels(own), placed }
    }

    /// Whether `selector` selects the workload, or may do so.
    pub(crate) fn may_have(&self, selector: &Labels) -> bool {
        selector.iter().all(|(name, value)| match self.labels.get(name) {
            Some(own) => own == value,
            None => !self.placed && matches!(name.as_str(), REGION | ZONE | SUBZONE | HOSTNAME),
        })
    }
}

impl IndexedService {
    /// Whether it has a port of this number; true if its ports are unknown.
    pub(crate) fn may_have_port(&self, number: u32) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|(known, _)| u32::from(*known) == number)
    }

    /// The numbers of its ports, for messages.
    pub(crate) fn port_numbers(&self) -> Vec<String> {
        self.ports.iter().map(|(number, _)| number.to_string()).collect()
    }
}

/// All indexes.
pub(super) struct Index<'a> {
    pub store: &'a Store,
    pub config: &'a MeshConfig,
    /// The effective mesh of a weir started with these objects.
    pub mesh: Mesh,
    /// The changes that are held back.
    pub held: Vec<HeldChange>,
    /// The subsets that get weight anyway.
    pub weighted_subsets: BTreeSet<(Host, String)>,
    pub virtual_services: Vec<IndexedVirtualService<'a>>,
    pub destination_rules: Vec<IndexedDestinationRule<'a>>,
    pub services: HashMap<Host, IndexedService>,
    /// The services of hosts that several objects declare, in order of precedence.
    pub same_host: Vec<(Host, Vec<Arc<mesh::Service>>)>,
    /// The hosts of services by namespace.
    pub hosts: HashMap<Arc<str>, Vec<Host>>,
    /// Indices into `destination_rules` by host.
    pub rules_by_host: HashMap<Host, Vec<usize>>,
    /// The distinct label sets of pods by namespace.
    pub pods: HashMap<Arc<str>, BTreeSet<&'a Labels>>,
    /// The same as Istio's selectors see them.
    pub workloads: HashMap<Arc<str>, BTreeSet<WorkloadLabels>>,
    /// The rejected objects and what they reference.
    rejected: RejectedObjects<'a>,
    /// The reversed hosts of services, for suffix lookup.
    reversed_hosts: BTreeSet<String>,
    /// The full hosts of services by their first DNS label.
    by_short_name: HashMap<String, Vec<Host>>,
    /// The existing namespaces; `None` if unknown.
    namespaces: Option<HashSet<&'a str>>,
}

impl<'a> Index<'a> {
    pub(crate) fn new(store: &'a Store, config: &'a MeshConfig) -> Self {
        let all = objects(store).map(|entry| entry.object.key()).collect();
        let (mesh, held) =
            RolloutGuard::default().apply(MeshBuilder::new(config.clone()).update(store, &all));
        let pods = pods(store);
        let services = services(store, &mesh, &pods);
        let mut hosts: HashMap<Arc<str>, Vec<Host>> = HashMap::new();
        for known in mesh.services.values().flat_map(|list| list.iter()) {
            let service = &known.service;
            hosts.entry(service.namespace.clone()).or_default().push(service.host.clone());
        }
        let mut by_short_name: HashMap<String, Vec<Host>> = HashMap::new();
        for host in services.keys() {
            let short = host.split('.').next().unwrap_or_default();
            by_short_name.entry(short.to_owned()).or_default().push(host.clone());
        }
        by_short_name.values_mut().for_each(|hosts| hosts.sort_unstable());
        let destination_rules = destination_rules(store, config);
        let mut rules_by_host: HashMap<Host, Vec<usize>> = HashMap::new();
        for (n, rule) in destination_rules.iter().enumerate() {
            rules_by_host.entry(rule.host.clone()).or_default().push(n);
        }
        Self {
            virtual_services: virtual_services(store, config),
            reversed_hosts: services.keys().map(|host| host.chars().rev().collect()).collect(),
            rejected: RejectedObjects::new(store, config),
            same_host: same_host(&mesh),
            weighted_subsets: rollout_guard::weighted_subsets(&mesh),
            workloads: workloads(store, &mesh),
            namespaces: namespaces(store),
            mesh,
            held,
            store,
            config,
            destination_rules,
            services,
            hosts,
            rules_by_host,
            pods,
            by_short_name,
        }
    }

    /// The service of an exact host, or one whose wildcard covers it.
    pub(crate) fn service(&self, host: &str) -> Option<&IndexedService> {
        self.services
            .get(host)
            .or_else(|| wildcards(host).find_map(|wildcard| self.services.get(&*wildcard)))
    }

    /// The service that has the clusters of an exact host: its own, or the target of an ExternalName.
    pub(crate) fn real_service(&self, host: &str) -> Option<(&Host, &IndexedService)> {
        let (host, service) = self.services.get_key_value(host)?;
        let Some(target) = &service.alias_of else {
            return Some((host, service));
        };
        self.services.get_key_value(target).filter(|(_, real)| real.alias_of.is_none())
    }

    /// Whether clients in a namespace see a service of an exact host.
    pub(crate) fn is_seen(&self, host: &str, client: &str) -> bool {
        let known = self.mesh.services.get(host).into_iter().flat_map(|list| list.iter());
        known.into_iter().any(|known| known.service.visibility.includes(client))
    }

    /// Whether a host or wildcard matches any service.
    pub(crate) fn is_known(&self, host: &str) -> bool {
        let Some(ending) = host.strip_prefix('*') else {
            return self.service(host).is_some();
        };
        let backwards: String = ending.chars().rev().collect();
        let mut after = self.reversed_hosts.range(backwards.clone()..);
        after.next().is_some_and(|host| host.starts_with(&backwards))
            || self.service(host).is_some()
    }

    /// Whether an object was rejected.
    pub(crate) fn is_rejected(&self, key: &ObjectKey) -> bool {
        self.rejected.objects.contains(key)
    }

    /// Whether `host` belongs to a rejected Service or ServiceEntry.
    pub(crate) fn is_rejected_host(&self, host: &str) -> bool {
        self.rejected.hosts.contains(host)
            || wildcards(host).any(|wildcard| self.rejected.hosts.contains(&*wildcard))
    }

    /// Whether a rejected DestinationRule for `host` has this subset.
    pub(crate) fn is_rejected_subset(&self, host: &str, name: &str) -> bool {
        let mut hosts = std::iter::once(host.to_owned()).chain(wildcards(host));
        hosts
            .any(|host| self.rejected.subsets.get(&*host).is_some_and(|names| names.contains(name)))
    }

    /// The VirtualServices to which rejected objects delegate.
    pub(crate) fn rejected_delegates(&self) -> impl Iterator<Item = &ObjectKey> {
        self.rejected.delegates.iter()
    }

    /// Services that `host` may have meant: those with the same first label, else those in its namespace whose first
    /// label differs by one typo.
    pub(crate) fn similar(&self, host: &str) -> Vec<String> {
        let mut labels = host.split('.');
        let short = labels.next().unwrap_or_default();
        let same = self.by_short_name.get(short).into_iter().flatten();
        let mut found: Vec<_> = same.filter(|known| ***known != *host).collect();
        if found.is_empty() {
            let neighbours = labels.next().and_then(|namespace| self.hosts.get(namespace));
            found.extend(
                neighbours
                    .into_iter()
                    .flatten()
                    .filter(|known| is_typo(known.split('.').next().unwrap_or_default(), short)),
            );
        }
        found.into_iter().take(3).map(|host| format!("`{host}`")).collect()
    }

    /// Whether a namespace is known not to exist.
    pub(crate) fn is_unknown_namespace(&self, name: &str) -> bool {
        self.namespaces.as_ref().is_some_and(|known| !known.contains(name))
    }

    /// The DestinationRules of one namespace that apply to a host for clients in `client`: exact ones, else those with
    /// the most specific wildcard.
    fn rules_in(&self, place: &str, host: &str, client: &str) -> Vec<&IndexedDestinationRule<'a>> {
        let mut hosts = std::iter::once(host.to_owned()).chain(wildcards(host));
        hosts
            .find_map(|host| {
                let places = self.rules_by_host.get(&*host).into_iter().flatten();
                let rules: Vec<_> = places
                    .filter_map(|n| self.destination_rules.get(*n))
                    .filter(|rule| **rule.namespace() == *place && rule.visibility.includes(client))
                    .collect();
                (!rules.is_empty()).then_some(rules)
            })
            .unwrap_or_default()
    }

    /// The DestinationRules that may apply to `host` for clients in `client`. For clients that a `workloadSelector`
    /// does not match, the next namespace is searched.
    pub(crate) fn rules(&self, host: &str, client: &str) -> Vec<&IndexedDestinationRule<'a>> {
        let service = self.service(host).map(|service| &*service.namespace);
        let mut all: Vec<&IndexedDestinationRule<'a>> = Vec::new();
        let mut places: Vec<&str> = Vec::with_capacity(3);
        for place in
            [Some(client), service, Some(&*self.config.root_namespace)].into_iter().flatten()
        {
            if places.contains(&place) {
                continue;
            }
            places.push(place);
            let rules = self.rules_in(place, host, client);
            let for_all = rules.iter().any(|rule| rule.spec.workload_selector.is_none());
            all.extend(rules);
            if for_all {
                break;
            }
        }
        all
    }
}

/// Rejected objects. References to them are not reported.
struct RejectedObjects<'a> {
    objects: HashSet<&'a ObjectKey>,
    hosts: HashSet<Host>,
    /// The names of subsets by host.
    subsets: HashMap<Host, HashSet<&'a str>>,
    delegates: Vec<ObjectKey>,
}

impl<'a> RejectedObjects<'a> {
    fn new(store: &'a Store, config: &MeshConfig) -> Self {
        let mut all = Self {
            objects: HashSet::new(),
            hosts: HashSet::new(),
            subsets: HashMap::new(),
            delegates: Vec::new(),
        };
        for (key, references) in store.rejected_references() {
            all.objects.insert(key);
            match key.kind {
                Kind::Service => {
                    all.hosts.extend([mesh::resolve(&key.name, &key.namespace, &config.domain)]);
                }
                Kind::ServiceEntry => all
                    .hosts
                    .extend(references.hosts.iter().map(|host| Host::from(host.to_lowercase()))),
                Kind::DestinationRule => {
                    for host in &references.hosts {
                        all.subsets
                            .entry(mesh::resolve(host, &key.namespace, &config.domain))
                            .or_default()
                            .extend(references.subsets.iter().map(String::as_str));
                    }
                }
                Kind::VirtualService => {
                    all.delegates.extend(references.delegates.iter().map(|(namespace, name)| {
                        let namespace =
                            if namespace.is_empty() { &key.namespace } else { namespace.as_str() };
                        ObjectKey::new(Kind::VirtualService, namespace, name)
                    }));
                }
                _ => {}
            }
        }
        all
    }
}

/// The wildcards that cover `host`, most specific first. A wildcard covers itself.
pub(super) fn wildcards(host: &str) -> impl Iterator<Item = String> {
    let (whole, rest) = match host.strip_prefix('*') {
        Some(rest) => (true, rest),
        None => (false, host),
    };
    let starts = rest.char_indices().filter(|(_, c)| matches!(c, '.' | '-')).map(|(at, _)| at);
    let starts = starts.filter(move |at| whole || *at > 0).chain([rest.len()]);
    starts
        .map(|at| format!("*{}", rest.get(at..).unwrap_or_default()))
        .collect::<Vec<_>>()
        .into_iter()
}

fn objects(store: &Store) -> impl Iterator<Item = &Entry> {
    Kind::ALL.into_iter().flat_map(|kind| store.all(kind))
}

fn pods(store: &Store) -> HashMap<Arc<str>, BTreeSet<&Labels>> {
    let mut pods: HashMap<Arc<str>, BTreeSet<&Labels>> = HashMap::new();
    for entry in store.all(Kind::Pod) {
        let meta = &entry.object.meta;
        pods.entry(meta.namespace.clone()).or_default().insert(&meta.labels);
    }
    pods
}

fn workloads(store: &Store, mesh: &Mesh) -> HashMap<Arc<str>, BTreeSet<WorkloadLabels>> {
    let mut workloads: HashMap<Arc<str>, BTreeSet<WorkloadLabels>> = HashMap::new();
    for entry in store.all(Kind::Pod) {
        let meta = &entry.object.meta;
        let topology = mesh.pod_topology(&meta.namespace, &meta.name);
        let labels = WorkloadLabels::new(&topology, &meta.labels, store);
        workloads.entry(meta.namespace.clone()).or_default().insert(labels);
    }
    workloads
}

/// The namespaces that exist. Without any Namespace object, they are unknown.
fn namespaces(store: &Store) -> Option<HashSet<&str>> {
    (store.count(Kind::Namespace) > 0).then(|| {
        let used = objects(store).map(|entry| &*entry.object.meta.namespace);
        used.chain(store.all(Kind::Namespace).map(|entry| &*entry.object.meta.name)).collect()
    })
}

fn virtual_services<'a>(store: &'a Store, config: &MeshConfig) -> Vec<IndexedVirtualService<'a>> {
    let indexed = store.all(Kind::VirtualService).filter_map(|entry| {
        let spec =
            spec_of(
                entry,
                |spec| {
                    if let Spec::VirtualService(spec) = spec { Some(spec) } else { None }
                },
            )?;
        let namespace = &entry.object.meta.namespace;
        let hosts =
            spec.hosts.iter().map(|host| mesh::resolve(host, namespace, &config.domain)).collect();
        let visibility = Visibility::new(spec.export_to.iter().map(String::as_str), namespace);
        Some(IndexedVirtualService { entry, spec, hosts, visibility })
    });
    indexed.collect()
}

fn destination_rules<'a>(store: &'a Store, config: &MeshConfig) -> Vec<IndexedDestinationRule<'a>> {
    let indexed = store.all(Kind::DestinationRule).filter_map(|entry| {
        let spec = spec_of(entry, |spec| {
            if let Spec::DestinationRule(spec) = spec { Some(&**spec) } else { None }
        })?;
        let namespace = &entry.object.meta.namespace;
        let host = mesh::resolve(&spec.host, namespace, &config.domain);
        let visibility = Visibility::new(spec.export_to.iter().map(String::as_str), namespace);
        Some(IndexedDestinationRule { entry, spec, host, visibility })
    });
    indexed.collect()
}

/// The services of each host that several objects declare.
fn same_host(mesh: &Mesh) -> Vec<(Host, Vec<Arc<mesh::Service>>)> {
    let hosts = mesh.services.iter().filter(|(_, list)| {
        list.len() > 1 || list.iter().any(|known| !known.service.merged_from.is_empty())
    });
    let sorted = hosts.map(|(host, list)| {
        let mut services: Vec<_> = list.iter().map(|known| known.service.clone()).collect();
        services
            .sort_by_key(|service| (service.registry, service.visibility == Visibility::Public));
        (host.clone(), services)
    });
    sorted.collect()
}

/// The services as weir serves them, with their known endpoints.
fn services(
    store: &Store,
    mesh: &Mesh,
    pods: &HashMap<Arc<str>, BTreeSet<&Labels>>,
) -> HashMap<Host, IndexedService> {
    let by_pod_label = PodsByLabel::new(pods);
    let (none, anywhere) = (Labels::new(), mesh.own_topology());
    let mut services = HashMap::new();
    let first = mesh.services.iter().filter_map(|(host, list)| Some((host, list.first()?)));
    for (host, known) in first {
        let service = &known.service;
        let all = known.endpoints.list.iter();
        let labels = all.map(|endpoint| {
            WorkloadLabels::new(&endpoint.topology, &endpoint.workload.labels, store)
        });
        let labels: Vec<_> = labels.collect();
        let key = ObjectKey::new(Kind::Service, &service.namespace, &service.name);
        let selector =
            store.get(&key).and_then(|entry| {
                spec_of(entry, |spec| {
                    if let Spec::Service(spec) = spec { Some(&spec.selector) } else { None }
                })
            });
        let endpoints = if labels.is_empty() {
            let pods = by_pod_label.find(&service.namespace, selector.unwrap_or(&none));
            let pods = pods.map(|own| WorkloadLabels::new(&anywhere, own, store));
            Some(pods.collect::<Vec<_>>()).filter(|pods| !pods.is_empty())
        } else {
            // The labels of an endpoint without labels are unknown.
            known
                .endpoints
                .list
                .iter()
                .all(|endpoint| !endpoint.workload.labels.is_empty())
                .then_some(labels)
        };
        let ports = service.ports.iter().map(|port| (port.number, port.protocol)).collect();
        let (namespace, visibility) = (service.namespace.clone(), service.visibility.clone());
        let alias_of = service.alias_of.clone();
        let service = IndexedService { namespace, ports, alias_of, visibility, endpoints };
        services.insert(host.clone(), service);
    }
    services
}

/// Pods by label, so that a selector examines only a few.
pub(super) struct PodsByLabel<'a> {
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Labels>>,
}

impl<'a> PodsByLabel<'a> {
    pub(crate) fn new(pods: &'a HashMap<Arc<str>, BTreeSet<&'a Labels>>) -> Self {
        let mut by_label: HashMap<_, Vec<&Labels>> = HashMap::new();
        for (namespace, labels) in pods
            .iter()
            .flat_map(|(namespace, all)| all.iter().map(move |labels| (namespace, labels)))
        {
            for (name, value) in *labels {
                by_label.entry((&**namespace, &**name, &**value)).or_default().push(labels);
            }
        }
        Self { by_label }
    }

    /// The label sets of the pods that match a service's selector; none for an empty selector.
    pub(crate) fn find<'b>(
        &'b self,
        namespace: &'b str,
        selector: &'b Labels,
    ) -> impl Iterator<Item = &'a Labels> + 'b {
        let candidates = selector.iter().map(|(name, value)| {
            self.by_label
                .get(&(namespace, name.as_str(), value.as_str()))
                .map(Vec::as_slice)
                .unwrap_or_default()
        });
        let fewest = candidates.min_by_key(|list| list.len()).unwrap_or_default();
        fewest.iter().copied().filter(move |labels| selects(selector, labels))
    }
}

/// Whether two names differ by one inserted, deleted or replaced character, or by two swapped ones.
fn is_typo(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (a.get(start..).unwrap_or_default(), b.get(start..).unwrap_or_default());
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    match (a.get(..a.len() - end).unwrap_or_default(), b.get(..b.len() - end).unwrap_or_default()) {
        ([], [_]) | ([_], []) | ([_], [_]) => true,
        ([a, b], [c, d]) => a == d && b == c,
        _ => false,
    }
}

/// Whether some namespace sees both.
pub(super) fn overlap(a: &Visibility, b: &Visibility) -> bool {
    match (a, b) {
        (Visibility::Public, Visibility::Public) => true,
        (Visibility::Public, Visibility::Namespaces(some))
        | (Visibility::Namespaces(some), Visibility::Public) => !some.is_empty(),
        (Visibility::Namespaces(a), Visibility::Namespaces(b)) => !a.is_disjoint(b),
    }
}

/// A host for messages, shortened if unambiguous.
pub(super) fn shown(host: &str, config: &MeshConfig) -> String {
    host.strip_suffix(&*config.domain)
        .and_then(|rest| rest.strip_suffix(".svc."))
        .unwrap_or(host)
        .to_owned()
}

/// Whether `host` is a name, not a wildcard or address.
pub(super) fn is_name(host: &str) -> bool {
    !is_wildcard(host) && host.parse::<std::net::IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_go_from_the_most_specific_to_the_least() {
        assert_eq!(wildcards("a-b.c.d").collect::<Vec<_>>(), ["*-b.c.d", "*.c.d", "*.d", "*"]);
        assert_eq!(wildcards("*.c.d").collect::<Vec<_>>(), ["*.c.d", "*.d", "*"]);
        for host in ["a-b.c.d", "*.c.d"] {
            assert!(wildcards(host).all(|wildcard| mesh::covers(&wildcard, host)), "{host}");
        }
    }

    #[test]
    fn a_typo_is_one_character_or_two_swapped() {
        for (wrong, is_near) in [
            ("cart", false),
            ("crat", true),
            ("cat", true),
            ("carts", true),
            ("kart", true),
            ("trac", false),
            ("", false),
        ] {
            assert_eq!(is_typo("cart", wrong), is_near, "{wrong}");
        }
    }

    fn namespaces(names: &[&str]) -> Visibility {
        Visibility::Namespaces(names.iter().map(|name| Arc::from(*name)).collect())
    }

    #[test]
    fn visibilities_overlap_where_one_namespace_sees_both() {
        assert!(
            overlap(&Visibility::Public, &namespaces(&["a"]))
                && overlap(&namespaces(&["a", "b"]), &namespaces(&["b"]))
        );
        assert!(
            !overlap(&namespaces(&["a"]), &namespaces(&["b"]))
                && !overlap(&Visibility::Public, &namespaces(&[]))
        );
    }
}
