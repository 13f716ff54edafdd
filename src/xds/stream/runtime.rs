//! Weights as runtime values: a client that subscribes to runtime layers gets a weights-only change as a few runtime keys
//! at once, and in its routes later.
//!
//! The layers hold the weights of each virtual host whose weights at the client differ from those of the mesh. The keys
//! of a virtual host stay until the client has ACKed the same weights in its route, or a version that has other keys.
//!
//! A layer is sent whole, so its size is what a change of one weight costs. The values are spread over several layers;
//! which layer has those of a virtual host depends only on its keys and on the layers that the client asks for, so it is
//! the same on every stream of the client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use envoy_types::pb::google::protobuf::{Value, value::Kind};
use prost::Message;

use super::Stream;
use super::delivery::View;
use super::request::Variant;
use super::subscription::Subscription;
use crate::snapshot::{
    EncodedVirtualHost, Resource, ResourceType, Resources, RouteTable, RuntimeWeights,
};
use crate::xds::wire::{length_len, put_length, put_text, text_len};

/// The first layer, which every [`crate::bootstrap`] subscribes to.
pub(crate) const RUNTIME_LAYER: &str = "weir-weights";

/// How many layers there are. More make a change of one weight cheaper while many weights have changed, and a change of
/// all weights more expensive: Envoy merges all layers after each one that changes.
const LAYERS: usize = 16;

/// The names of the layers.
static NAMES: LazyLock<[Arc<str>; LAYERS]> = LazyLock::new(|| {
    std::array::from_fn(|n| match n {
        0 => RUNTIME_LAYER.into(),
        n => format!("{RUNTIME_LAYER}-{n}").into(),
    })
});

/// The layers to which a client subscribes: over SotW only one, because every response has all of them.
pub(crate) fn runtime_layers(variant: Variant) -> &'static [Arc<str>] {
    match variant {
        Variant::Sotw => NAMES.get(..1).unwrap_or_default(),
        Variant::Delta => &*NAMES,
    }
}

/// A virtual host: the name of its route configuration, and its own.
type HostKey = (Arc<str>, Arc<str>);

/// A virtual host whose weights the client gets as runtime values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RuntimeHost {
    pub table: Arc<str>,
    pub host: Arc<str>,
    pub weights: RuntimeWeights,
    /// The weights in its route at the client.
    pub in_route: RuntimeWeights,
}

/// The runtime layers of one client.
#[derive(Debug)]
pub(super) struct RuntimeLayers {
    hosts: BTreeMap<HostKey, RuntimeWeights>,
    /// For a resuming client whose routes stay unknown: the routes of the mesh, all of whose weights are in the layers.
    all_of: Option<Resources>,
    /// The layers that the client asks for and that have values.
    used: Vec<Arc<str>>,
    /// All layers as resources.
    resources: Resources,
    /// When the routes follow.
    follow_at: Option<Instant>,
    /// Clusters whose weight becomes 0 with layers that the client has not ACKed.
    emptied: BTreeSet<String>,
    /// Clusters that get weight because such a layer no longer has values of theirs.
    regained: BTreeSet<String>,
}

/// The layers without values, which most clients have most of the time.
static EMPTY: LazyLock<Resources> =
    LazyLock::new(|| NAMES.iter().map(|name| encode(name, Vec::new())).collect());

impl Default for RuntimeLayers {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            all_of: None,
            used: Vec::new(),
            resources: EMPTY.clone(),
            follow_at: None,
            emptied: BTreeSet::new(),
            regained: BTreeSet::new(),
        }
    }
}

impl RuntimeLayers {
    /// All layers as resources.
    pub(crate) fn resources(&self) -> &Resources {
        &self.resources
    }

    /// The layers as a view.
    pub(crate) fn view(&self) -> View {
        let resources = self.resources.clone();
        View { base: resources.clone(), target: resources, kept: BTreeMap::new() }
    }

    /// When the routes follow if nothing else changes.
    pub(crate) fn follow_at(&self) -> Option<Instant> {
        self.follow_at
    }

    /// Whether the layers have all weights of the mesh.
    pub(crate) fn covers_all(&self) -> bool {
        self.all_of.is_some()
    }

    /// Clusters whose weight becomes 0 with layers that the client has not ACKed.
    pub(crate) fn emptied(&self) -> &BTreeSet<String> {
        &self.emptied
    }

    /// Clusters that get weight because a layer that the client has not ACKed no longer has values of theirs.
    pub(crate) fn regained(&self) -> &BTreeSet<String> {
        &self.regained
    }

    /// The clusters that get requests by a virtual host as the client has it, and none by its runtime values.
    pub(crate) fn unused_by(&self, table: &Arc<str>, host: &EncodedVirtualHost) -> BTreeSet<&str> {
        let Some(in_route) = &host.weights else { return BTreeSet::new() };
        let values = self.hosts.get(&(table.clone(), host.name.clone()));
        let both = values.map(|values| (values, in_route));
        let both = both.filter(|(values, in_route)| values.same_keys(in_route));
        both.map(|(values, in_route)| values.emptied_since(in_route)).unwrap_or_default()
    }

    /// Whether the client asks for any layer.
    fn is_asked_for(&self) -> bool {
        !self.used.is_empty()
    }

    /// Spreads the values over these layers.
    fn use_layers(&mut self, used: Vec<Arc<str>>) {
        if self.used != used {
            self.used = used;
            self.resources = EMPTY.clone();
            self.encode_all();
        }
    }

    /// Routes were sent, with the weights that were due to follow.
    pub(crate) fn routes_sent(&mut self, now: Instant) {
        self.follow_at = self.follow_at.filter(|at| *at > now);
    }

    /// Takes in the virtual hosts whose weights are runtime values from now on. The others stay as long as `stays`;
    /// those that go get their weights from the client's routes again, which `in_route` tells. Routes follow `after` the
    /// first change.
    fn set(
        &mut self,
        chosen: Vec<RuntimeHost>,
        stays: impl Fn(&HostKey, &RuntimeWeights) -> bool,
        in_route: impl Fn(&HostKey) -> Option<RuntimeWeights>,
        now: Instant,
        after: Duration,
    ) {
        let follow_at = self.follow_at.unwrap_or(now + after);
        self.follow_at = (!chosen.is_empty()).then_some(follow_at);
        let chosen: BTreeMap<HostKey, RuntimeHost> = chosen
            .into_iter()
            .map(|host| ((host.table.clone(), host.host.clone()), host))
            .collect();
        let mut changed: BTreeSet<usize> = BTreeSet::new();
        let Self { hosts, used, emptied, regained, .. } = self;
        hosts.retain(|key, values| {
            if chosen.contains_key(key) || stays(key, values) {
                return true;
            }
            changed.insert(place(values, used.len()));
            if let Some(next) = in_route(key).filter(|next| next.same_keys(values)) {
                emptied.extend(next.emptied_since(values).into_iter().map(str::to_owned));
                regained.extend(values.emptied_since(&next).into_iter().map(str::to_owned));
            }
            false
        });
        for (key, RuntimeHost { weights, in_route, .. }) in chosen {
            let old = self.hosts.get(&key);
            if old != Some(&weights) {
                // Another version of the virtual host may have its values in another layer.
                changed.extend(old.map(|old| place(old, self.used.len())));
                changed.insert(place(&weights, self.used.len()));
                let emptied = weights.emptied_since(old.unwrap_or(&in_route));
                self.emptied.extend(emptied.into_iter().map(str::to_owned));
                self.hosts.insert(key, weights);
            }
        }
        if !changed.is_empty() {
            self.encode(&changed);
        }
    }

    /// Puts all weights of `routes` into the layers; `None` takes them out.
    fn set_all(&mut self, routes: Option<&Resources>) {
        let same = match (&self.all_of, routes) {
            (Some(held), Some(routes)) => held.ptr_eq(routes),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.all_of = routes.cloned();
            self.encode_all();
        }
    }

    fn encode_all(&mut self) {
        self.encode(&(0..self.used.len()).collect());
    }

    /// Encodes these layers anew.
    fn encode(&mut self, changed: &BTreeSet<usize>) {
        let all = self.all_of.iter().flat_map(|routes| routes.values());
        let all = all.filter_map(|resource| resource.table()).flat_map(RouteTable::iter);
        let all = all.filter_map(|host| host.weights.as_ref()).chain(self.hosts.values());
        let mut values: BTreeMap<usize, Vec<(&str, u32)>> =
            changed.iter().map(|at| (*at, Vec::new())).collect();
        for weights in all {
            if let Some(values) = values.get_mut(&place(weights, self.used.len())) {
                values.extend(weights.values().map(|(key, weight)| (&**key, weight)));
            }
        }
        for (at, values) in values {
            if let Some(name) = self.used.get(at) {
                self.resources.insert(encode(name, values));
            }
        }
    }
}

/// Which of `count` layers has the weights of a virtual host. Virtual hosts of several route configurations may share
/// keys, and then share the layer.
fn place(weights: &RuntimeWeights, count: usize) -> usize {
    let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
    usize::try_from(weights.shape() % count).unwrap_or_default()
}

/// A layer with these values. Of a key that is there several times the last value counts. The same values always have the
/// same bytes: prost takes the order of a map's entries from the hash map.
fn encode(name: &Arc<str>, mut values: Vec<(&str, u32)>) -> Arc<Resource> {
    /// `envoy.service.runtime.v3.Runtime`.
    const NAME: u32 = 1;
    const LAYER: u32 = 2;
    /// `google.protobuf.Struct.fields`, and the fields of its entries.
    const FIELDS: u32 = 1;
    const KEY: u32 = 1;
    const VALUE: u32 = 2;
    values.sort_by_key(|(key, _)| *key);
    values.reverse();
    values.dedup_by_key(|(key, _)| *key);
    let mut fields = BytesMut::new();
    for (key, weight) in values.into_iter().rev() {
        let value = Value { kind: Some(Kind::NumberValue(weight.into())) };
        let len = value.encoded_len();
        put_length(&mut fields, FIELDS, text_len(KEY, key) + length_len(VALUE, len) + len);
        put_text(&mut fields, KEY, key);
        put_length(&mut fields, VALUE, len);
        // Writing to a buffer that grows cannot fail.
        value.encode_raw(&mut fields);
    }
    let mut bytes = BytesMut::new();
    put_text(&mut bytes, NAME, name);
    put_length(&mut bytes, LAYER, fields.len());
    bytes.extend_from_slice(&fields);
    Resource::new(name.clone(), bytes.freeze(), Arc::default())
}

impl Stream {
    /// Whether the client takes weights as runtime values.
    pub(super) fn takes_runtime_weights(&self) -> bool {
        self.runtime.is_asked_for() && !self.get(ResourceType::Runtime).has_rejections()
    }

    /// The client asked for layers.
    pub(super) fn layers_requested(&mut self) {
        let subscription = self.get(ResourceType::Runtime);
        let used = NAMES.iter().filter(|name| subscription.wants(name)).cloned();
        let most = runtime_layers(self.variant).len();
        self.runtime.use_layers(used.take(most).collect());
    }

    /// Whether the routes get the weights that the client has as runtime values.
    pub(super) fn routes_follow(&self) -> bool {
        self.runtime.follow_at.zip(self.now).is_some_and(|(at, now)| at <= now)
    }

    /// Updates the layers. `chosen` are the virtual hosts whose weights are runtime values.
    pub(super) fn update_runtime(&mut self, chosen: Vec<RuntimeHost>, now: Instant) {
        if !self.asked_for(ResourceType::Runtime) {
            return;
        }
        let Some(target) = self.target.clone() else { return };
        let wanted = target.get(ResourceType::Route);
        let [_, _, _, routes, _] = &self.types;
        let after = self.settings.routes_follow;
        self.runtime.set(
            chosen,
            |key, values| is_in_use(routes, wanted, key, values),
            |(table, host)| routes.last_sent(table)?.table()?.find(host)?.weights.clone(),
            now,
            after,
        );
    }

    /// Whether the layer waits for the first endpoint of a cluster that gets weight with it.
    pub(super) fn layer_waits(&self) -> bool {
        self.settings.gated
            && self.runtime.regained().iter().any(|cluster| self.awaits_first_endpoint(cluster))
    }

    /// A resuming client may have any numbers in its routes. If they stay unknown, the layers have all weights.
    pub(super) fn cover_unknown_routes(&mut self) {
        let Some(target) = self.target.clone() else { return };
        let takes = self.runtime.is_asked_for();
        let covers = self.runtime.covers_all() || !self.awaits_routes();
        let unknown = takes && !self.knows_routes() && covers;
        self.runtime.set_all(Some(target.get(ResourceType::Route)).filter(|_| unknown));
    }

    /// Forgets which clusters lost their weight once the client has ACKed the layers.
    pub(super) fn settle_runtime(&mut self) {
        let subscription = self.get(ResourceType::Runtime);
        let has_all = self.runtime.used.iter().all(|layer| {
            let wanted = self.runtime.resources().get(layer).map(|layer| layer.version);
            subscription.last_sent(layer).map(|layer| layer.version) == wanted
        });
        if subscription.pending.is_none() && (has_all || subscription.has_rejections()) {
            self.runtime.emptied.clear();
            self.runtime.regained.clear();
        }
    }

    /// A route configuration with the weights that are in force at the client.
    pub(super) fn with_runtime_weights(&self, resource: &Arc<Resource>) -> Arc<Resource> {
        let wanted = self.target.as_ref().map(|target| target.get(ResourceType::Route));
        let wanted = wanted.and_then(|routes| routes.get(&resource.name)).and_then(|to| to.table());
        let (Some(table), Some(wanted)) = (resource.table(), wanted) else {
            return resource.clone();
        };
        let mut effective: Option<RouteTable> = None;
        let hosts = self.runtime.hosts.iter().filter(|((table, _), _)| *table == resource.name);
        for ((_, host), weights) in hosts {
            let had = table.find(host).and_then(|host| host.weights.as_ref());
            let new = wanted.find(host).filter(|host| host.weights.as_ref() == Some(weights));
            if had.is_some_and(|had| had.same_keys(weights))
                && let Some(new) = new
            {
                effective.get_or_insert_with(|| table.clone()).set(host, Some(new.clone()));
            }
        }
        effective.map_or_else(
            || resource.clone(),
            |effective| Resource::routes(resource.name.clone(), effective),
        )
    }
}

/// Whether the client may have a virtual host that takes these runtime values, and not yet the same numbers in it.
fn is_in_use(
    routes: &Subscription,
    wanted: &Resources,
    (table, host): &HostKey,
    weights: &RuntimeWeights,
) -> bool {
    if routes.in_flight(table).is_some() {
        return true;
    }
    let Some(has) = routes.last_sent(table).and_then(|has| has.table()?.find(host)) else {
        return false;
    };
    // Other sums come with the route, and so replace the values.
    let takes_values = has.weights.as_ref().is_some_and(|own| weights.can_replace(own));
    takes_values
        && wanted
            .get(table)
            .and_then(|wanted| wanted.table()?.find(host))
            .is_none_or(|wanted| wanted.version() != has.version())
}
