//! Keeps traffic from subsets that have no ready endpoint: weight that a change gives to one is held back until one is
//! ready, and a subset whose labels move keeps its old endpoints until the new labels have one.
//!
//! What is wanted comes in as a [`Mesh`], what is to be in force goes out as another; only changes are ever held, never
//! what is in force, so that endpoints which are really gone are gone. A rule counts as the VirtualService's own namespace
//! sees it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::api::{Destination, HttpRouteDestination, Labels, ObjectKey, RouteDestination};
use crate::mesh::{DestinationRule, EmptySubset, Health, Host, Mesh, Registered, Resolution, VirtualService, resolve};

/// The annotation on a VirtualService that overrides the mesh's setting: `hold` or `allow`.
pub const ANNOTATION: &str = "weir.dev/empty-subset";

/// Something that is held back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The object that wants it; of a delegate's route the delegate.
    pub object: String,
    /// Where in the object.
    pub field: String,
    /// The host.
    pub host: Host,
    /// The subset; empty for the whole service.
    pub subset: String,
    /// What is held, and why.
    pub what: What,
}

/// What is held back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// Weight: no endpoint of the subset is ready.
    Weight {
        /// The weight that the object says.
        wanted: i32,
        /// The weight in force.
        effective: i32,
    },
    /// Other labels: no endpoint with them is ready.
    Labels {
        /// The labels that the object says.
        wanted: Labels,
        /// The labels in force.
        effective: Labels,
    },
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.reason())
    }
}

impl Held {
    /// What is held back, and until when.
    pub fn reason(&self) -> String {
        let Self { host, subset, what, .. } = self;
        let text = |labels: &Labels| labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        match what {
            What::Weight { wanted, effective } => {
                let whom = if subset.is_empty() { host.to_string() } else { format!("subset `{subset}` of {host}") };
                format!("weight {wanted} for {whom} is held at {effective} until one of its endpoints is ready")
            }
            What::Labels { wanted, effective } => format!(
                "subset `{subset}` of {host} keeps the endpoints with {} until one with {} is ready",
                text(effective),
                text(wanted)
            ),
        }
    }
}

/// A route of a VirtualService, known again when its place changes: its kind, its name, its matches, and which of
/// several equal ones it is.
type RouteId = (&'static str, String, u64, usize);

#[derive(Debug, Default)]
struct Known {
    /// The revision of what was wanted.
    revision: u64,
    /// Where the requests of each route go.
    routes: BTreeMap<RouteId, Vec<HttpRouteDestination>>,
    /// What is in force instead of what is wanted.
    instead: Option<Arc<VirtualService>>,
    held: Vec<Held>,
}

/// Remembers what is in force.
#[derive(Debug, Default)]
pub struct Guard {
    known: BTreeMap<ObjectKey, Known>,
    /// The labels in force of each subset, by the rule's namespace, host and the subset's name.
    labels: BTreeMap<(Arc<str>, Host, String), Labels>,
    /// The rules and VirtualServices as they came in last, to see that nothing changed.
    last_rules: Option<Arc<crate::mesh::DestinationRules>>,
    last_services: Option<Arc<crate::mesh::VirtualServices>>,
    moving: Vec<Held>,
    revision: u64,
}

impl Guard {
    /// What is to be in force when `wanted` is wanted, and what of that is held back.
    pub fn apply(&mut self, wanted: Mesh) -> (Mesh, Vec<Held>) {
        let mut mesh = wanted;
        self.hold_labels(&mut mesh);
        self.hold_weights(&mut mesh);
        let held = self.moving.iter().chain(self.known.values().flat_map(|known| &known.held));
        // Of a delegate that several lead to, each holds the same.
        let mut seen = HashSet::new();
        let held = held.filter(|one| seen.insert(*one)).cloned().collect();
        (mesh, held)
    }

    fn hold_labels(&mut self, mesh: &mut Mesh) {
        let same = self.last_rules.as_ref().is_some_and(|last| Arc::ptr_eq(last, &mesh.destination_rules));
        if same && self.moving.is_empty() {
            return;
        }
        self.last_rules = Some(mesh.destination_rules.clone());
        self.moving.clear();
        let mut labels = BTreeMap::new();
        let mut instead: BTreeMap<u64, Arc<DestinationRule>> = BTreeMap::new();
        let mut weighted: Option<BTreeSet<(Host, String)>> = None;
        for rule in mesh.destination_rules.iter() {
            let mut changed: Option<DestinationRule> = None;
            for (n, subset) in rule.subsets.iter().enumerate() {
                let key = (rule.namespace.clone(), rule.host.clone(), subset.name.clone());
                let old = self.labels.get(&key).filter(|old| **old != subset.labels);
                let keep = old.filter(|old| {
                    let Some(known) = mesh.any_service(&rule.host) else { return false };
                    let weighted = weighted.get_or_insert_with(|| weighted_subsets(mesh));
                    weighted.contains(&(rule.host.clone(), subset.name.clone()))
                        && !has_ready(known, &subset.labels, None)
                        && has_ready(known, old, None)
                });
                let Some(old) = keep else {
                    labels.insert(key, subset.labels.clone());
                    continue;
                };
                self.moving.push(Held {
                    object: rule.keys.first().map(ToString::to_string).unwrap_or_default(),
                    field: format!("spec.subsets[{n}].labels"),
                    host: rule.host.clone(),
                    subset: subset.name.clone(),
                    what: What::Labels { wanted: subset.labels.clone(), effective: old.clone() },
                });
                let kept = changed.get_or_insert_with(|| (**rule).clone());
                if let Some(slot) = kept.subsets.get_mut(n) {
                    let mut subset = (**slot).clone();
                    subset.labels.clone_from(old);
                    *slot = Arc::new(subset);
                }
                labels.insert(key, old.clone());
            }
            if let Some(mut kept) = changed {
                kept.revision = self.next_revision();
                instead.insert(rule.revision, Arc::new(kept));
            }
        }
        self.labels = labels;
        if !instead.is_empty() {
            mesh.destination_rules = Arc::new(mesh.destination_rules.with(&instead));
        }
    }

    /// Never that of an object: those are counted up from 0.
    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        u64::MAX - self.revision
    }

    fn hold_weights(&mut self, mesh: &mut Mesh) {
        let same = self.last_services.as_ref().is_some_and(|last| Arc::ptr_eq(last, &mesh.virtual_services));
        self.last_services = Some(mesh.virtual_services.clone());
        if same {
            // Endpoints can only let go of what is held.
            let held: Vec<_> = self.known.iter().filter(|(_, known)| !known.held.is_empty()).collect();
            let held: BTreeSet<ObjectKey> = held.into_iter().map(|(key, _)| key.clone()).collect();
            if !held.is_empty() {
                let again: Vec<_> =
                    mesh.virtual_services.iter().filter(|one| held.contains(&one.key)).cloned().collect();
                again.iter().for_each(|one| self.weigh(one, mesh));
            }
        } else {
            let keys: BTreeSet<&ObjectKey> = mesh.virtual_services.iter().map(|one| &one.key).collect();
            self.known.retain(|key, _| keys.contains(key));
            let all: Vec<_> = mesh.virtual_services.iter().cloned().collect();
            for one in &all {
                let known = self.known.get(&one.key);
                if known.is_none_or(|known| known.revision != one.revision || !known.held.is_empty()) {
                    self.weigh(one, mesh);
                }
            }
        }
        let instead: BTreeMap<ObjectKey, Arc<VirtualService>> =
            self.known.iter().filter_map(|(key, known)| Some((key.clone(), known.instead.clone()?))).collect();
        if !instead.is_empty() {
            mesh.virtual_services = Arc::new(mesh.virtual_services.with(&instead, &mesh.config.domain));
        }
    }

    fn weigh(&mut self, wanted: &VirtualService, mesh: &Mesh) {
        // A delegate's routes are in force as part of those that lead to it.
        if wanted.hosts.is_empty() {
            return;
        }
        let setting = match wanted.annotations().get(ANNOTATION).map(String::as_str) {
            Some("allow") => EmptySubset::Allow,
            Some("hold") => EmptySubset::Hold,
            _ => mesh.config.empty_subset,
        };
        let before = self.known.remove(&wanted.key).unwrap_or_default();
        let first = before.routes.is_empty();
        let mut after = Known { revision: wanted.revision, ..Known::default() };
        let mut seen: BTreeMap<(&'static str, String, u64), usize> = BTreeMap::new();
        let mut weigh = |kind: &'static str,
                         name: &str,
                         matches: u64,
                         field: String,
                         key: &ObjectKey,
                         to: Vec<HttpRouteDestination>| {
            let namespace = &key.namespace;
            let ordinal = seen.entry((kind, name.to_owned(), matches)).or_insert(0);
            let id: RouteId = (kind, name.to_owned(), matches, *ordinal);
            *ordinal += 1;
            let old = before.routes.get(&id).map(Vec::as_slice).unwrap_or_default();
            let split = match setting {
                EmptySubset::Allow => None,
                EmptySubset::Hold => split(old, &to, |to| is_ready(to, namespace, &wanted.key.namespace, mesh)),
            };
            let Some(split) = split else {
                after.routes.insert(id, to);
                return None;
            };
            for (n, (wanted_weight, effective)) in split.held {
                let Some(destination) = to.get(n).and_then(|one| one.destination.as_ref()) else { continue };
                after.held.push(Held {
                    object: key.to_string(),
                    field: format!("{field}.route[{n}]"),
                    host: resolve(&destination.host, namespace, &mesh.config.domain),
                    subset: destination.subset.clone(),
                    what: What::Weight { wanted: wanted_weight, effective },
                });
            }
            after.routes.insert(id, split.effective.clone());
            Some(split.effective)
        };
        let http: Vec<_> = wanted
            .http()
            .map(|rule| {
                let (route, field) = (rule.route, format!("spec.http[{}]", rule.index));
                weigh("http", &route.name, hash(&route.matches), field, rule.key, route.route.clone())
            })
            .collect();
        let own = &wanted.key;
        let tcp: Vec<_> = (wanted.tcp().iter().enumerate())
            .map(|(n, route)| {
                let to = route.route.iter().map(http_form).collect();
                weigh("tcp", "", hash(&route.matches), format!("spec.tcp[{n}]"), own, to).map(stream_form)
            })
            .collect();
        let tls: Vec<_> = (wanted.tls().iter().enumerate())
            .map(|(n, route)| {
                let to = route.route.iter().map(http_form).collect();
                weigh("tls", "", hash(&route.matches), format!("spec.tls[{n}]"), own, to).map(stream_form)
            })
            .collect();
        if http.iter().any(Option::is_some) || tcp.iter().chain(&tls).any(Option::is_some) {
            let unchanged = before.revision == wanted.revision && before.held == after.held && !first;
            after.instead = match before.instead.filter(|_| unchanged) {
                Some(same) => Some(same),
                None => {
                    let revision = self.next_revision();
                    Some(Arc::new(wanted.redirected(&http, &tcp, &tls, revision)))
                }
            };
        }
        self.known.insert(wanted.key.clone(), after);
    }
}

fn hash(matches: &impl fmt::Debug) -> u64 {
    xxhash_rust::xxh3::xxh3_64(format!("{matches:?}").as_bytes())
}

fn http_form(one: &RouteDestination) -> HttpRouteDestination {
    HttpRouteDestination { destination: one.destination.clone(), weight: one.weight, headers: None }
}

fn stream_form(list: Vec<HttpRouteDestination>) -> Vec<RouteDestination> {
    list.into_iter().map(|one| RouteDestination { destination: one.destination, weight: one.weight }).collect()
}

struct Split {
    effective: Vec<HttpRouteDestination>,
    /// Position among the wanted ones; wanted and effective weight.
    held: BTreeMap<usize, (i32, i32)>,
}

/// The share of a destination among `all`, 0 to 1. An only one gets everything whatever its weight.
fn share(all: &[HttpRouteDestination], one: &HttpRouteDestination) -> f64 {
    if all.len() == 1 {
        return if all.first().is_some_and(|only| only.destination == one.destination) { 1.0 } else { 0.0 };
    }
    let total: f64 = all.iter().map(|one| f64::from(one.weight.max(0))).sum();
    let own: f64 =
        all.iter().filter(|other| other.destination == one.destination).map(|one| f64::from(one.weight.max(0))).sum();
    if total > 0.0 { own / total } else { 0.0 }
}

/// What is in force instead of `wanted` while some of its destinations may not get more than they had of `old`; `None`
/// where all of it may be.
fn split(
    old: &[HttpRouteDestination],
    wanted: &[HttpRouteDestination],
    ready: impl Fn(&Destination) -> bool,
) -> Option<Split> {
    let is_held = |one: &HttpRouteDestination| {
        let more = share(wanted, one) > share(old, one) + 1e-9;
        more && !one.destination.as_ref().is_some_and(&ready)
    };
    let held: BTreeSet<usize> = wanted.iter().enumerate().filter(|(_, one)| is_held(one)).map(|(n, _)| n).collect();
    if held.is_empty() {
        return None;
    }
    let free: f64 =
        wanted.iter().enumerate().filter(|(n, _)| !held.contains(n)).map(|(_, one)| share(wanted, one)).sum();
    if free <= 0.0 {
        // Nothing could take what the held ones may not have: everything stays as it was. Where there was nothing,
        // there is nothing to keep either.
        if old.is_empty() {
            return None;
        }
        let had = |one: &HttpRouteDestination| (share(old, one) * 100.0).round() as i32;
        let held = held.into_iter().filter_map(|n| Some((n, (percent(wanted, wanted.get(n)?), had(wanted.get(n)?)))));
        return Some(Split { effective: old.to_vec(), held: held.collect() });
    }
    let kept: f64 = held.iter().filter_map(|n| wanted.get(*n)).map(|one| share(old, one)).sum();
    let mut told = BTreeMap::new();
    let effective = wanted.iter().enumerate().map(|(n, one)| {
        let part = if held.contains(&n) { share(old, one) } else { share(wanted, one) / free * (1.0 - kept) };
        // Fine enough for any split that people write, and far from overflow.
        let weight = (part * 10_000.0).round() as i32;
        if held.contains(&n) {
            told.insert(n, (percent(wanted, one), (part * 100.0).round() as i32));
        }
        HttpRouteDestination { weight, ..one.clone() }
    });
    let effective = effective.collect();
    Some(Split { effective, held: told })
}

fn percent(all: &[HttpRouteDestination], one: &HttpRouteDestination) -> i32 {
    (share(all, one) * 100.0).round() as i32
}

/// Whether requests that go to a destination find a ready endpoint, as far as that can be known.
fn is_ready(to: &Destination, namespace: &str, client: &str, mesh: &Mesh) -> bool {
    let host = resolve(&to.host, namespace, &mesh.config.domain);
    let Some(known) = mesh.any_service(&host) else { return true };
    if known.service.resolution != Resolution::Endpoints || known.service.alias_of.is_some() {
        return true;
    }
    let number = crate::translate::destination_port(to, Some(&known.service), 0);
    let port = known.service.port(number).map(|port| &*port.name);
    if to.subset.is_empty() {
        return has_ready(known, &Labels::new(), port);
    }
    let (config, service) = (&mesh.config, &known.service);
    let rules = &mesh.destination_rules;
    let rule = rules.find(&host, &service.namespace, &config.root_namespace, client, &Labels::new());
    // A subset that no rule has is a cluster that no proxy has: its routes are held elsewhere.
    rule.and_then(|rule| rule.subset(&to.subset)).is_none_or(|subset| has_ready(known, &subset.labels, port))
}

fn has_ready(known: &Registered, labels: &Labels, port: Option<&str>) -> bool {
    known.endpoints.list.iter().any(|endpoint| {
        endpoint.health == Health::Healthy
            && port.is_none_or(|port| *endpoint.port_name == *port)
            && endpoint.is_in_subset(labels)
    })
}

/// The subsets that some route gives weight to.
pub fn weighted_subsets(mesh: &Mesh) -> BTreeSet<(Host, String)> {
    let mut found = BTreeSet::new();
    let mut add = |to: &Destination, namespace: &str| {
        if !to.subset.is_empty() {
            found.insert((resolve(&to.host, namespace, &mesh.config.domain), to.subset.clone()));
        }
    };
    for one in mesh.virtual_services.iter() {
        for rule in one.http() {
            let routes = &rule.route.route;
            for to in routes.iter().filter(|to| to.weight > 0 || routes.len() == 1) {
                to.destination.iter().for_each(|to| add(to, &rule.key.namespace));
            }
        }
        let streams = one.tcp().iter().map(|route| &route.route).chain(one.tls().iter().map(|route| &route.route));
        for routes in streams {
            for to in routes.iter().filter(|to| to.weight > 0 || routes.len() == 1) {
                to.destination.iter().for_each(|to| add(to, &one.key.namespace));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{self, Identity};
    use crate::mesh::{Builder, MeshConfig};
    use crate::source::{Change, Origin};
    use crate::store::Store;
    use serde_json::{Value, json};

    struct World {
        store: Store,
        builder: Builder,
        guard: Guard,
    }

    impl World {
        fn new() -> Self {
            let mut world =
                Self { store: Store::default(), builder: Builder::new(MeshConfig::default()), guard: Guard::default() };
            world
                .apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]}}));
            world.rule(&[("v1", "v1"), ("v2", "v2")]);
            world.pods(&[("v1", true)]);
            world
        }

        fn apply(&mut self, document: Value) -> Vec<Held> {
            let Ok(Identity::Known(key)) = api::identify(&document) else { panic!("{document}") };
            let object = Arc::new(api::parse(&key, document, 0).unwrap().object);
            let mut dirty = BTreeSet::new();
            self.store.apply(Change::Apply { object, origin: Origin::Cluster, warnings: vec![] }, &mut dirty);
            let mesh = self.builder.update(&self.store, &dirty);
            self.guard.apply(mesh).1
        }

        /// One pod for each version.
        fn pods(&mut self, versions: &[(&str, bool)]) -> Vec<Held> {
            for (version, _) in versions {
                self.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("web-{version}"),
                    "namespace": "shop", "labels": {"version": version}}}));
            }
            let endpoints: Vec<_> = versions
                .iter()
                .enumerate()
                .map(|(n, (version, ready))| {
                    json!({"addresses": [format!("10.1.0.{}", n + 1)],
                        "conditions": {"ready": ready, "terminating": false},
                        "targetRef": {"kind": "Pod", "name": format!("web-{version}")}})
                })
                .collect();
            self.apply(
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1",
                "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]}),
            )
        }

        fn rule(&mut self, subsets: &[(&str, &str)]) -> Vec<Held> {
            let subsets: Vec<_> =
                subsets.iter().map(|(name, version)| json!({"name": name, "labels": {"version": version}})).collect();
            self.apply(json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
                "metadata": {"name": "web", "namespace": "shop"}, "spec": {"host": "web", "subsets": subsets}}))
        }

        fn route(&mut self, weights: &[(&str, i32)], annotation: &str) -> Vec<Held> {
            let route: Vec<_> = weights
                .iter()
                .map(|(subset, weight)| json!({"destination": {"host": "web", "subset": subset}, "weight": weight}))
                .collect();
            self.apply(json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
                "metadata": {"name": "web", "namespace": "shop", "annotations": {ANNOTATION: annotation}},
                "spec": {"hosts": ["web"], "http": [{"route": route}]}}))
        }

        /// Subset and share in percent, as in force.
        fn split(&mut self) -> Vec<(String, i32)> {
            let mesh = self.builder.update(&self.store, &BTreeSet::new());
            let (mesh, _) = self.guard.apply(mesh);
            let one = mesh.virtual_services.iter().next().unwrap().clone();
            let to = one.http().next().unwrap().route.route.clone();
            to.iter().map(|one| (one.destination.clone().unwrap().subset, percent(&to, one))).collect()
        }
    }

    fn shares(list: &[(&str, i32)]) -> Vec<(String, i32)> {
        list.iter().map(|(subset, weight)| ((*subset).to_owned(), *weight)).collect()
    }

    #[test]
    fn more_weight_for_an_empty_subset_waits_for_an_endpoint() {
        let mut world = World::new();
        assert!(world.route(&[("v1", 100), ("v2", 0)], "").is_empty());
        let held = world.route(&[("v1", 90), ("v2", 10)], "");
        assert_eq!(held[0].what, What::Weight { wanted: 10, effective: 0 });
        assert_eq!(
            (held[0].field.as_str(), held[0].object.as_str()),
            ("spec.http[0].route[1]", "VirtualService shop/web")
        );
        assert_eq!(world.split(), shares(&[("v1", 100), ("v2", 0)]));
        assert!(!world.pods(&[("v1", true), ("v2", false)]).is_empty(), "not ready is not enough");
        assert!(world.pods(&[("v1", true), ("v2", true)]).is_empty());
        assert_eq!(world.split(), shares(&[("v1", 90), ("v2", 10)]));
    }

    #[test]
    fn what_an_empty_subset_had_it_keeps_and_less_is_never_held() {
        let mut world = World::new();
        world.pods(&[("v1", true), ("v2", true)]);
        world.route(&[("v1", 90), ("v2", 10)], "");
        world.pods(&[("v1", true), ("v2", false)]);
        assert_eq!(world.split(), shares(&[("v1", 90), ("v2", 10)]), "what is in force is not touched");
        assert_eq!(world.route(&[("v1", 50), ("v2", 50)], "").len(), 1);
        assert_eq!(world.split(), shares(&[("v1", 90), ("v2", 10)]));
        assert!(world.route(&[("v1", 95), ("v2", 5)], "").is_empty());
        assert_eq!(world.split(), shares(&[("v1", 95), ("v2", 5)]));
    }

    #[test]
    fn a_whole_switch_to_an_empty_subset_waits() {
        let mut world = World::new();
        world.route(&[("v1", 100)], "");
        assert_eq!(world.route(&[("v2", 100)], "").len(), 1);
        assert_eq!(world.split(), shares(&[("v1", 100)]));
        world.pods(&[("v1", true), ("v2", true)]);
        assert_eq!(world.split(), shares(&[("v2", 100)]));
    }

    #[test]
    fn a_first_appearance_gets_nothing_and_an_only_destination_is_left_alone() {
        let mut world = World::new();
        assert_eq!(world.route(&[("v1", 50), ("v2", 50)], "").len(), 1);
        assert_eq!(world.split(), shares(&[("v1", 100), ("v2", 0)]));
        let mut world = World::new();
        assert!(world.route(&[("v2", 100)], "").is_empty());
        assert_eq!(world.split(), shares(&[("v2", 100)]));
    }

    #[test]
    fn the_annotation_lets_weight_through() {
        let mut world = World::new();
        world.route(&[("v1", 100), ("v2", 0)], "allow");
        assert!(world.route(&[("v1", 90), ("v2", 10)], "allow").is_empty());
        assert_eq!(world.split(), shares(&[("v1", 90), ("v2", 10)]));
    }

    #[test]
    fn weight_for_a_region_waits_for_a_node_in_it() {
        let mut world = World::new();
        world.apply(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-2", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.1.0.9"], "nodeName": "n1"}]}));
        world.apply(json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "web", "namespace": "shop"}, "spec": {"host": "web", "subsets": [
                {"name": "v1", "labels": {"version": "v1"}},
                {"name": "eu", "labels": {"topology.kubernetes.io/region": "eu"}}]}}));
        world.route(&[("v1", 100), ("eu", 0)], "");
        assert_eq!(world.route(&[("v1", 90), ("eu", 10)], "").len(), 1);
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/region": "eu"}}});
        assert!(world.apply(node).is_empty());
        assert_eq!(world.split(), shares(&[("v1", 90), ("eu", 10)]));
    }

    #[test]
    fn a_subset_keeps_its_endpoints_until_its_new_labels_have_one() {
        let mut world = World::new();
        world.route(&[("v1", 100)], "");
        let held = world.rule(&[("v1", "v3"), ("v2", "v2")]);
        assert!(matches!(&held[0].what, What::Labels { wanted, .. } if wanted["version"] == "v3"), "{held:?}");
        assert!(world.pods(&[("v1", true), ("v3", true)]).is_empty());
        // Labels whose endpoints are gone are not kept.
        assert!(!world.rule(&[("v1", "v4")]).is_empty());
        assert!(world.pods(&[]).is_empty());
    }
}
