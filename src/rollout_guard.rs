//! Keeps traffic away from subsets without a ready endpoint: weight that a change adds to such a subset is held back
//! until an endpoint is ready, and a subset whose labels change keeps its old endpoints until an endpoint with the new
//! labels is ready.
//!
//! Takes the desired [`Mesh`] and returns the effective one: the same objects, with an overlay of weights or labels where
//! something is held back. Only changes are held back, never the effective state, so endpoints that are really gone are
//! removed. DestinationRules are resolved as the VirtualService's own namespace sees them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::api::{
    Destination, HttpRouteDestination, Labels, ObjectKey, RouteDestination, share_of, shares,
};
use crate::mesh::{
    DestinationRule, DestinationRules, EmptySubset, Health, Host, Mesh, Overlay, RegisteredService,
    Resolution, VirtualService, VirtualServices, Visibility, diff, resolve,
};
use crate::revision::Revision;

/// The annotation on a VirtualService that overrides the mesh's setting: `hold` or `allow`.
const ANNOTATION: &str = "weir.dev/empty-subset";

/// A change that is held back.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldChange {
    /// The object that contains the change.
    #[serde(serialize_with = "as_text")]
    pub object: ObjectKey,
    /// The objects that the change affects: the object itself, or the VirtualServices that delegate to it.
    #[serde(skip)]
    pub roots: Vec<ObjectKey>,
    /// The field in `object`.
    pub field: String,
    /// The host.
    pub host: Host,
    /// The subset; empty for the whole service.
    pub subset: String,
    /// The value that is held back.
    pub value: HeldValue,
}

/// The value that is held back.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HeldValue {
    /// A weight, because no endpoint of the subset is ready.
    Weight {
        /// The desired weight, in percent.
        wanted: i32,
        /// The effective weight, in percent.
        effective: i32,
    },
    /// New labels, because no endpoint that has them is ready.
    Labels {
        /// The desired labels.
        wanted: Labels,
        /// The effective labels.
        effective: Labels,
    },
}

fn as_text<S: serde::Serializer>(key: &ObjectKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(key)
}

impl fmt::Display for HeldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.reason())
    }
}

impl HeldChange {
    /// The objects that it concerns: the one that contains it, and those that delegate to that.
    pub(crate) fn affected(&self) -> BTreeSet<&ObjectKey> {
        self.roots.iter().chain([&self.object]).collect()
    }

    /// What is held back and until when.
    pub(crate) fn reason(&self) -> String {
        let Self { host, subset, value, .. } = self;
        match value {
            HeldValue::Weight { wanted, effective } => {
                let whom = if subset.is_empty() {
                    host.to_string()
                } else {
                    format!("subset `{subset}` of {host}")
                };
                format!(
                    "weight {wanted} for {whom} is held at {effective} until one of its endpoints is ready"
                )
            }
            HeldValue::Labels { wanted, effective } => format!(
                "subset `{subset}` of {host} keeps the endpoints with {} until one with {} is ready",
                label_list(effective),
                label_list(wanted)
            ),
        }
    }
}

fn label_list(labels: &Labels) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Identifies a route of a VirtualService independently of its position: kind, name, matches, and an index among equal
/// routes.
type RouteId = (&'static str, String, u64, usize);

/// Identifies the rules for one host in one namespace.
type RuleHost = (Arc<str>, Host);

/// Identifies a rule among those for one host in one namespace, and a subset in it.
type SubsetId = (Option<Labels>, Visibility, String);

/// A map that is written once. Most have one or two entries, for which a `BTreeMap` would take many times the memory.
#[derive(Debug)]
struct Sorted<K, V>(Box<[(K, V)]>);

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<K: Ord, V> Sorted<K, V> {
    /// Of entries with the same key the first one counts.
    fn new(mut entries: Vec<(K, V)>) -> Self {
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(a, _), (b, _)| a == b);
        Self(entries.into())
    }

    fn get(&self, key: &K) -> Option<&V> {
        let at = self.0.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }
}

/// Rules for one host in one namespace with held changes.
#[derive(Debug, Default)]
struct HeldRules {
    /// The rules with an overlay, by the revision of the desired rule.
    overlaid: BTreeMap<Revision, Arc<DestinationRule>>,
    changes: Vec<HeldChange>,
}

/// A VirtualService with held changes.
#[derive(Debug)]
struct HeldRoutes {
    /// The revision of the desired VirtualService.
    of: Revision,
    overlaid: Arc<VirtualService>,
    changes: Vec<HeldChange>,
}

/// Remembers the effective state.
#[derive(Debug, Default)]
pub(crate) struct RolloutGuard {
    /// The effective destinations of each route of each VirtualService.
    routes: BTreeMap<ObjectKey, Sorted<RouteId, Vec<HttpRouteDestination>>>,
    held_routes: BTreeMap<ObjectKey, HeldRoutes>,
    /// The effective labels of each subset.
    labels: BTreeMap<RuleHost, Sorted<SubsetId, Arc<Labels>>>,
    held_rules: BTreeMap<RuleHost, HeldRules>,
    /// The desired rules and VirtualServices of the last call, to find what changed.
    last_rules: Arc<DestinationRules>,
    last_services: Arc<VirtualServices>,
}

impl RolloutGuard {
    /// Returns the effective mesh for `wanted` and the changes that are held back.
    pub(crate) fn apply(&mut self, wanted: Mesh) -> (Mesh, Vec<HeldChange>) {
        let mut mesh = wanted;
        self.hold_labels(&mut mesh);
        self.hold_weights(&mut mesh);
        let labels = self.held_rules.values().flat_map(|held| &held.changes);
        let weights = self.held_routes.values().flat_map(|held| &held.changes);
        (mesh, merge(labels.chain(weights)))
    }

    fn hold_labels(&mut self, mesh: &mut Mesh) {
        let last = std::mem::replace(&mut self.last_rules, mesh.destination_rules.clone());
        let mut stale: BTreeSet<RuleHost> = self.held_rules.keys().cloned().collect();
        last.diff(&mesh.destination_rules, |old, new| {
            let rules = old.into_iter().chain(new).filter_map(|rules| rules.first());
            stale.extend(rules.map(|rule| (rule.namespace.clone(), rule.host.clone())));
        });
        let mut weighted = None;
        for (namespace, host) in stale {
            let rules = mesh.destination_rules.of_host(&namespace, &host);
            self.hold_labels_of((namespace, host), rules, mesh, &mut weighted);
        }
        if !self.held_rules.is_empty() {
            let overlaid = self.held_rules.values().flat_map(|held| &held.overlaid);
            mesh.destination_rules = Arc::new(mesh.destination_rules.with(overlaid));
        }
    }

    /// Decides on the labels of the rules for one host in one namespace. `weighted` caches the [`weighted_subsets`].
    fn hold_labels_of(
        &mut self,
        place: RuleHost,
        rules: &[Arc<DestinationRule>],
        mesh: &Mesh,
        weighted: &mut Option<BTreeSet<(Host, String)>>,
    ) {
        let old_labels = self.labels.remove(&place).unwrap_or_default();
        let old = self.held_rules.remove(&place).unwrap_or_default();
        let (mut labels, mut held) = (Vec::new(), HeldRules::default());
        for rule in rules {
            let mut overlay = BTreeMap::new();
            for (n, subset) in rule.subsets.iter().enumerate() {
                let id: SubsetId =
                    (rule.selector.clone(), rule.visibility.clone(), subset.name.clone());
                let kept = old_labels.get(&id).filter(|old| {
                    let Some(known) =
                        mesh.any_service(&rule.host).filter(|_| **old != subset.labels)
                    else {
                        return false;
                    };
                    let weighted = weighted.get_or_insert_with(|| weighted_subsets(mesh));
                    weighted.contains(&(rule.host.clone(), subset.name.clone()))
                        && !has_ready(known, &subset.labels, None)
                        && has_ready(known, old, None)
                });
                labels.push((id, kept.unwrap_or(&subset.labels).clone()));
                let (Some(kept), Some(object)) = (kept, rule.keys.first()) else {
                    continue;
                };
                held.changes.push(HeldChange {
                    object: object.clone(),
                    roots: vec![object.clone()],
                    field: format!("spec.subsets[{n}].labels"),
                    host: rule.host.clone(),
                    subset: subset.name.clone(),
                    value: HeldValue::Labels {
                        wanted: (*subset.labels).clone(),
                        effective: (**kept).clone(),
                    },
                });
                overlay.insert(subset.name.clone(), (**kept).clone());
            }
            if !overlay.is_empty() {
                let same = old.overlaid.get(&rule.revision).filter(|old| *old.overlay() == overlay);
                let overlaid =
                    same.cloned().unwrap_or_else(|| Arc::new(rule.with_overlay(overlay)));
                held.overlaid.insert(rule.revision, overlaid);
            }
        }
        if !labels.is_empty() {
            self.labels.insert(place.clone(), Sorted::new(labels));
        }
        if !held.changes.is_empty() {
            self.held_rules.insert(place, held);
        }
    }

    fn hold_weights(&mut self, mesh: &mut Mesh) {
        let last = std::mem::replace(&mut self.last_services, mesh.virtual_services.clone());
        // If nothing is held back, a change of endpoints does not matter: only changes of objects are held back.
        let mut stale: BTreeSet<ObjectKey> = self.held_routes.keys().cloned().collect();
        diff(last.by_key(), mesh.virtual_services.by_key(), |key, _, _| {
            _ = stale.insert(key.clone())
        });
        for key in stale {
            // The routes of a delegate take effect in those that delegate to it.
            match mesh.virtual_services.get(&key).filter(|wanted| !wanted.hosts.is_empty()) {
                Some(wanted) => self.hold_weights_of(wanted, mesh),
                None => {
                    self.routes.remove(&key);
                    self.held_routes.remove(&key);
                }
            }
        }
        if !self.held_routes.is_empty() {
            let overlaid = self.held_routes.iter().map(|(key, held)| (key, &held.overlaid));
            mesh.virtual_services =
                Arc::new(mesh.virtual_services.with(overlaid, &mesh.config.domain));
        }
    }

    fn hold_weights_of(&mut self, wanted: &VirtualService, mesh: &Mesh) {
        let setting = match wanted.annotations().get(ANNOTATION).map(String::as_str) {
            Some("allow") => EmptySubset::Allow,
            Some("hold") => EmptySubset::Hold,
            _ => mesh.config.empty_subset,
        };
        let before = self.routes.remove(&wanted.key).unwrap_or_default();
        let mut routes = Routes {
            wanted,
            mesh,
            setting,
            before,
            after: Vec::new(),
            seen: BTreeMap::new(),
            held: Vec::new(),
        };
        let overlay = Overlay {
            http: wanted
                .http()
                .map(|rule| {
                    let (id, field) =
                        (("http", &*rule.route.name, hash(&rule.route.matches)), rule.index);
                    routes.hold(
                        id,
                        rule.key,
                        &format!("spec.http[{field}]"),
                        rule.destinations.to_vec(),
                    )
                })
                .collect(),
            tcp: (wanted.tcp().enumerate())
                .map(|(n, rule)| {
                    routes.hold_stream("tcp", n, hash(&rule.matches), rule.destinations)
                })
                .collect(),
            tls: (wanted.tls().enumerate())
                .map(|(n, rule)| {
                    routes.hold_stream("tls", n, hash(&rule.matches), rule.destinations)
                })
                .collect(),
        };
        let Routes { after, held: changes, .. } = routes;
        self.routes.insert(wanted.key.clone(), Sorted::new(after));
        let old = self.held_routes.remove(&wanted.key).filter(|old| old.of == wanted.revision);
        if !overlay.is_empty() {
            let same = old.map(|old| old.overlaid).filter(|old| old.overlay() == Some(&overlay));
            let overlaid = same.unwrap_or_else(|| Arc::new(wanted.with_overlay(overlay)));
            self.held_routes
                .insert(wanted.key.clone(), HeldRoutes { of: wanted.revision, overlaid, changes });
        }
    }
}

/// The changes, each once: several VirtualServices may delegate to the one that contains a change.
fn merge<'a>(changes: impl Iterator<Item = &'a HeldChange>) -> Vec<HeldChange> {
    let mut merged: Vec<HeldChange> = Vec::new();
    let mut by_place: HashMap<(&ObjectKey, &str), usize> = HashMap::new();
    for change in changes {
        let place = (&change.object, &*change.field);
        let known = by_place.get(&place).and_then(|n| merged.get_mut(*n));
        match known.filter(|known| known.value == change.value) {
            Some(known) => known.roots.extend(change.roots.iter().cloned()),
            None => {
                by_place.insert(place, merged.len());
                merged.push(change.clone());
            }
        }
    }
    merged
}

/// The routes of one VirtualService while they are decided on.
struct Routes<'a> {
    wanted: &'a VirtualService,
    mesh: &'a Mesh,
    setting: EmptySubset,
    before: Sorted<RouteId, Vec<HttpRouteDestination>>,
    after: Vec<(RouteId, Vec<HttpRouteDestination>)>,
    /// How many equal routes there were so far.
    seen: BTreeMap<(&'static str, String, u64), usize>,
    held: Vec<HeldChange>,
}

impl Routes<'_> {
    /// Decides on the route at index `n` of the `tcp` or `tls` routes, as [`Routes::hold`] does.
    fn hold_stream(
        &mut self,
        kind: &'static str,
        n: usize,
        matches: u64,
        destinations: &[RouteDestination],
    ) -> Option<Vec<RouteDestination>> {
        let wanted = self.wanted;
        let to = destinations.iter().map(http_destination).collect();
        self.hold((kind, "", matches), &wanted.key, &format!("spec.{kind}[{n}]"), to)
            .map(stream_destinations)
    }

    /// Decides on one route, which `object` contains at `field`. Returns its effective destinations if they are not `to`.
    fn hold(
        &mut self,
        (kind, name, matches): (&'static str, &str, u64),
        object: &ObjectKey,
        field: &str,
        to: Vec<HttpRouteDestination>,
    ) -> Option<Vec<HttpRouteDestination>> {
        let ordinal = self.seen.entry((kind, name.to_owned(), matches)).or_insert(0);
        let id: RouteId = (kind, name.to_owned(), matches, *ordinal);
        *ordinal += 1;
        let old = self.before.get(&id).map(Vec::as_slice).unwrap_or_default();
        let client = &self.wanted.key.namespace;
        let split = match self.setting {
            EmptySubset::Allow => None,
            EmptySubset::Hold => {
                split(old, &to, |to| is_ready(to, &object.namespace, client, self.mesh))
            }
        };
        let Some(split) = split else {
            self.after.push((id, to));
            return None;
        };
        for (n, (wanted, effective)) in split.held {
            let Some(destination) = to.get(n).and_then(|entry| entry.destination.as_ref()) else {
                continue;
            };
            self.held.push(HeldChange {
                object: object.clone(),
                roots: vec![self.wanted.key.clone()],
                field: format!("{field}.route[{n}]"),
                host: resolve(&destination.host, &object.namespace, &self.mesh.config.domain),
                subset: destination.subset.clone(),
                value: HeldValue::Weight { wanted, effective },
            });
        }
        self.after.push((id, split.effective.clone()));
        Some(split.effective)
    }
}

fn hash(matches: &impl fmt::Debug) -> u64 {
    xxhash_rust::xxh3::xxh3_64(format!("{matches:?}").as_bytes())
}

fn http_destination(route: &RouteDestination) -> HttpRouteDestination {
    HttpRouteDestination {
        destination: route.destination.clone(),
        weight: route.weight,
        headers: None,
    }
}

fn stream_destinations(list: Vec<HttpRouteDestination>) -> Vec<RouteDestination> {
    list.into_iter()
        .map(|route| RouteDestination { destination: route.destination, weight: route.weight })
        .collect()
}

struct Split {
    effective: Vec<HttpRouteDestination>,
    /// By position among the desired destinations: the desired and the effective weight, in percent.
    held: BTreeMap<usize, (i32, i32)>,
}

/// The effective destinations while some of `wanted` must not get more weight than they had in `old`; `None` if all of
/// `wanted` can take effect.
fn split(
    old: &[HttpRouteDestination],
    wanted: &[HttpRouteDestination],
    ready: impl Fn(&Destination) -> bool,
) -> Option<Split> {
    let parts = shares(wanted.iter().map(|entry| u32::try_from(entry.weight).unwrap_or_default()));
    let entries: Vec<Entry> = wanted
        .iter()
        .zip(parts)
        .map(|(wanted_entry, part)| {
            let destination = wanted_entry.destination.as_ref();
            let had = share_of(old, destination);
            let wants = share_of(wanted, destination);
            let is_held = wants > had + 1e-9 && !destination.is_some_and(&ready);
            Entry { part, had, wants, is_held }
        })
        .collect();
    let held = entries.iter().enumerate().filter(|(_, entry)| entry.is_held);
    let held: BTreeMap<usize, (i32, i32)> = held
        .map(|(n, entry)| (n, (whole_percent(entry.wants), whole_percent(entry.had))))
        .collect();
    if held.is_empty() {
        return None;
    }
    let free: f64 = entries.iter().filter(|entry| !entry.is_held).map(|entry| entry.part).sum();
    if free <= 0.0 {
        // No other destination can take the held weight, so the previous destinations stay, if there were any.
        return (!old.is_empty()).then(|| Split { effective: old.to_vec(), held });
    }
    let kept: f64 = entries.iter().filter(|entry| entry.is_held).map(Entry::kept_part).sum();
    let parts: Vec<Part> = entries
        .iter()
        .map(|entry| {
            let share =
                if entry.is_held { entry.kept_part() } else { entry.part / free * (1.0 - kept) };
            Part { share, is_held: entry.is_held }
        })
        .collect();
    let weights = whole_weights(&parts, wanted.iter().map(|entry| entry.weight));
    let effective = wanted.iter().zip(weights);
    let effective =
        effective.map(|(wanted, weight)| HttpRouteDestination { weight, ..wanted.clone() });
    Some(Split { effective: effective.collect(), held })
}

/// The effective share of a desired destination.
struct Part {
    share: f64,
    is_held: bool,
}

impl Part {
    /// The weight among weights of this sum, before it is rounded.
    fn exact_weight(&self, sum: i32) -> f64 {
        self.share * f64::from(sum) + INEXACT_WEIGHT
    }
}

/// The sum of effective weights if that of the desired ones is too small to express the shares.
const FINE_SUM: i32 = 10_000;

/// How far a share may be rounded: whole percents are what people write. What is held keeps its share.
const ROUNDING: f64 = 0.01;

/// Makes up for the inexact arithmetic of shares.
const INEXACT: f64 = 1e-9;

/// The same for weights.
const INEXACT_WEIGHT: f64 = 1e-6;

/// Weights that express these shares. Their sum is that of the desired weights if it is large enough: proxies then take
/// the weights as runtime values, both when they are held back and when they are released.
fn whole_weights(parts: &[Part], wanted: impl Iterator<Item = i32>) -> Vec<i32> {
    let sum: u64 = wanted.map(|weight| u64::try_from(weight).unwrap_or_default()).sum();
    if let Ok(sum) = i32::try_from(sum) {
        let weights = rounded(parts, sum);
        let shares = weights.iter().map(|weight| f64::from(*weight) / f64::from(sum));
        let is_precise = shares.zip(parts).all(|(share, part)| {
            (share - part.share).abs() < if part.is_held { INEXACT } else { ROUNDING }
        });
        if is_precise {
            return weights;
        }
    }
    rounded(parts, FINE_SUM)
}

/// These shares of `sum` as whole numbers with exactly that sum. A held destination never gets more than its share; what
/// rounding leaves goes to the others, the largest remainders first.
fn rounded(parts: &[Part], sum: i32) -> Vec<i32> {
    let mut weights: Vec<i32> =
        parts.iter().map(|part| part.exact_weight(sum).floor() as i32).collect();
    let mut takers: Vec<(usize, f64)> = parts
        .iter()
        .enumerate()
        .filter(|(_, part)| !part.is_held && part.share > 0.0)
        .map(|(n, part)| (n, part.exact_weight(sum).fract()))
        .collect();
    takers.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let left = sum.saturating_sub(weights.iter().sum());
    for (n, _) in takers.iter().cycle().take(usize::try_from(left).unwrap_or_default()) {
        if let Some(weight) = weights.get_mut(*n) {
            *weight += 1;
        }
    }
    weights
}

/// A desired destination. A route may list a destination several times, each with a part of its share.
struct Entry {
    /// Its own part of the destination's share.
    part: f64,
    /// The share that the destination had.
    had: f64,
    /// The share that the destination is supposed to get.
    wants: f64,
    is_held: bool,
}

impl Entry {
    /// Its part of the share that the destination keeps while it is held.
    fn kept_part(&self) -> f64 {
        self.had * self.part / self.wants
    }
}

fn whole_percent(share: f64) -> i32 {
    (share * 100.0).round() as i32
}

/// Whether a destination has a ready endpoint, as far as that is known.
fn is_ready(to: &Destination, namespace: &str, client: &str, mesh: &Mesh) -> bool {
    readiness(to, namespace, client, mesh).unwrap_or(true)
}

/// Whether a destination has a ready endpoint; `None` if there is no such service or subset, or if the service's
/// endpoints are not known here. `namespace` is that of the object that names it, `client` that of the proxies.
pub(crate) fn readiness(
    to: &Destination,
    namespace: &str,
    client: &str,
    mesh: &Mesh,
) -> Option<bool> {
    let host = resolve(&to.host, namespace, &mesh.config.domain);
    let known = mesh.any_service(&host)?;
    if known.service.resolution != Resolution::Endpoints || known.service.alias_of.is_some() {
        return None;
    }
    let number = crate::translate::destination_port(to, Some(&known.service), 0);
    let port = known.service.port(number).map(|port| &*port.name);
    if to.subset.is_empty() {
        return Some(has_ready(known, &Labels::new(), port));
    }
    let (config, service) = (&mesh.config, &known.service);
    let rules = &mesh.destination_rules;
    let rule =
        rules.find(&host, &service.namespace, &config.root_namespace, client, &Labels::new());
    // No proxy has a cluster for an undefined subset: the stream holds back its routes.
    let labels = rule.and_then(|rule| rule.labels(&to.subset))?;
    Some(has_ready(known, labels, port))
}

fn has_ready(known: &RegisteredService, labels: &Labels, port: Option<&str>) -> bool {
    known.endpoints.list.iter().any(|endpoint| {
        endpoint.health == Health::Healthy
            && port.is_none_or(|port| *endpoint.port_name == *port)
            && endpoint.is_in_subset(labels)
    })
}

/// The subsets to which some route assigns weight.
pub(crate) fn weighted_subsets(mesh: &Mesh) -> BTreeSet<(Host, String)> {
    let mut found = BTreeSet::new();
    let domain = &mesh.config.domain;
    for virtual_service in mesh.virtual_services.iter() {
        for rule in virtual_service.http() {
            let single = rule.destinations.len() == 1;
            let weighted = rule.destinations.iter().filter(|to| to.weight > 0 || single);
            let destinations = weighted.filter_map(|to| to.destination.as_ref());
            found.extend(subsets(destinations, &rule.key.namespace, domain));
        }
        let streams = virtual_service
            .tcp()
            .map(|rule| rule.destinations)
            .chain(virtual_service.tls().map(|rule| rule.destinations));
        for routes in streams {
            let weighted = routes.iter().filter(|to| to.weight > 0 || routes.len() == 1);
            let destinations = weighted.filter_map(|to| to.destination.as_ref());
            found.extend(subsets(destinations, &virtual_service.key.namespace, domain));
        }
    }
    found
}

/// The subsets among destinations.
fn subsets<'a>(
    destinations: impl Iterator<Item = &'a Destination>,
    namespace: &str,
    domain: &str,
) -> impl Iterator<Item = (Host, String)> {
    destinations
        .filter(|to| !to.subset.is_empty())
        .map(move |to| (resolve(&to.host, namespace, domain), to.subset.clone()))
}

#[cfg(test)]
mod tests;
