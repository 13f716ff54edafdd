//! Weights as runtime values: a client that subscribes to the runtime layer gets a weights-only change as a few runtime
//! keys at once, and in its routes later.
//!
//! The layer holds the weights of each virtual host whose weights at the client differ from those of the mesh. The keys
//! of a virtual host stay until the client has ACKed the same weights in its route, or a version that has other keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::runtime::v3 as pb;
use envoy_types::pb::google::protobuf::{Value, value::Kind};
use prost::{Message, encoding};

use super::Stream;
use super::delivery::View;
use super::subscription::Subscription;
use crate::snapshot::{
    EncodedVirtualHost, Resource, ResourceType, Resources, RouteTable, RuntimeWeights,
};

/// The name of the layer, to which [`crate::bootstrap`] subscribes.
pub(crate) const RUNTIME_LAYER: &str = "weir-weights";

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

/// The runtime layer of one client.
#[derive(Debug)]
pub(super) struct RuntimeLayer {
    hosts: BTreeMap<HostKey, RuntimeWeights>,
    /// For a resuming client whose routes stay unknown: the routes of the mesh, all of whose weights are in the layer.
    all_of: Option<Resources>,
    /// The layer as a resource.
    resources: Resources,
    /// When the routes follow.
    follow_at: Option<Instant>,
    /// Clusters whose weight becomes 0 with a layer that the client has not ACKed.
    emptied: BTreeSet<String>,
    /// Clusters that get weight because such a layer no longer has values of theirs.
    regained: BTreeSet<String>,
}

/// The layer without values, which most clients have most of the time.
static EMPTY: LazyLock<Resources> =
    LazyLock::new(|| Resources::from_iter([encode(BTreeMap::new())]));

impl Default for RuntimeLayer {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            all_of: None,
            resources: EMPTY.clone(),
            follow_at: None,
            emptied: BTreeSet::new(),
            regained: BTreeSet::new(),
        }
    }
}

impl RuntimeLayer {
    /// The layer as the only resource of its type.
    pub(crate) fn resources(&self) -> &Resources {
        &self.resources
    }

    /// The layer as a view.
    pub(crate) fn view(&self) -> View {
        let resources = self.resources.clone();
        View { base: resources.clone(), target: resources, kept: BTreeMap::new() }
    }

    /// When the routes follow if nothing else changes.
    pub(crate) fn follow_at(&self) -> Option<Instant> {
        self.follow_at
    }

    /// Whether the layer has all weights of the mesh.
    pub(crate) fn covers_all(&self) -> bool {
        self.all_of.is_some()
    }

    /// Clusters whose weight becomes 0 with a layer that the client has not ACKed.
    pub(crate) fn emptied(&self) -> &BTreeSet<String> {
        &self.emptied
    }

    /// Clusters that get weight because a layer that the client has not ACKed no longer has values of theirs.
    pub(crate) fn regained(&self) -> &BTreeSet<String> {
        &self.regained
    }

    /// The clusters that get requests by a virtual host as the client has it, and none by its runtime values.
    pub(crate) fn unused_by(&self, table: &Arc<str>, host: &EncodedVirtualHost) -> BTreeSet<&str> {
        let values = self.hosts.get(&(table.clone(), host.name.clone()));
        let both = values.zip(host.weights.as_ref());
        let both = both.filter(|(values, in_route)| values.same_keys(in_route));
        both.map(|(values, in_route)| values.emptied_since(in_route)).unwrap_or_default()
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
        let mut changed = false;
        let Self { hosts, emptied, regained, .. } = self;
        hosts.retain(|key, values| {
            let stays = chosen.contains_key(key) || stays(key, values);
            if !stays && let Some(next) = in_route(key).filter(|next| next.same_keys(values)) {
                emptied.extend(next.emptied_since(values).into_iter().map(str::to_owned));
                regained.extend(values.emptied_since(&next).into_iter().map(str::to_owned));
            }
            changed |= !stays;
            stays
        });
        for (key, RuntimeHost { weights, in_route, .. }) in chosen {
            let old = self.hosts.get(&key).unwrap_or(&in_route);
            if self.hosts.get(&key) != Some(&weights) {
                self.emptied.extend(weights.emptied_since(old).into_iter().map(str::to_owned));
                self.hosts.insert(key, weights);
                changed = true;
            }
        }
        if changed {
            self.encode();
        }
    }

    /// Puts all weights of `routes` into the layer; `None` takes them out.
    fn set_all(&mut self, routes: Option<&Resources>) {
        let same = match (&self.all_of, routes) {
            (Some(held), Some(routes)) => held.ptr_eq(routes),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.all_of = routes.cloned();
            self.encode();
        }
    }

    fn encode(&mut self) {
        let all = self.all_of.iter().flat_map(|routes| routes.values());
        let all = all.filter_map(|resource| resource.table()).flat_map(RouteTable::iter);
        let all = all.filter_map(|host| host.weights.as_ref());
        // Virtual hosts of several route configurations may share keys; each key is in the layer once.
        let values = all.chain(self.hosts.values()).flat_map(RuntimeWeights::values);
        let layer = encode(values.map(|(key, weight)| (key.to_string(), number(weight))).collect());
        if self.resources.get(RUNTIME_LAYER).is_none_or(|old| old.version != layer.version) {
            self.resources = Resources::from_iter([layer]);
        }
    }
}

fn number(weight: u32) -> Value {
    Value { kind: Some(Kind::NumberValue(weight.into())) }
}

/// The layer with these values. The same values always have the same bytes: prost takes the order of a map's entries from
/// the hash map.
fn encode(values: BTreeMap<String, Value>) -> Arc<Resource> {
    /// `google.protobuf.Struct.fields`.
    const FIELDS: u32 = 1;
    /// `envoy.service.runtime.v3.Runtime.layer`.
    const LAYER: u32 = 2;
    let mut fields = Vec::new();
    encoding::btree_map::encode(
        encoding::string::encode,
        encoding::string::encoded_len,
        encoding::message::encode,
        encoding::message::encoded_len,
        FIELDS,
        &values,
        &mut fields,
    );
    let mut bytes =
        pb::Runtime { name: RUNTIME_LAYER.to_owned(), ..Default::default() }.encode_to_vec();
    encoding::bytes::encode(LAYER, &fields, &mut bytes);
    Resource::new(RUNTIME_LAYER, bytes.into(), Arc::default())
}

impl Stream {
    /// Whether the client takes weights as runtime values.
    pub(super) fn takes_runtime_weights(&self) -> bool {
        let runtime = self.get(ResourceType::Runtime);
        runtime.wants(RUNTIME_LAYER) && !runtime.has_rejections()
    }

    /// Whether the routes get the weights that the client has as runtime values.
    pub(super) fn routes_follow(&self) -> bool {
        self.runtime.follow_at.zip(self.now).is_some_and(|(at, now)| at <= now)
    }

    /// Updates the layer. `chosen` are the virtual hosts whose weights are runtime values.
    pub(super) fn update_runtime(&mut self, chosen: Vec<RuntimeHost>, now: Instant) {
        if !self.asked_for(ResourceType::Runtime) {
            return;
        }
        let Some(target) = self.target.clone() else { return };
        let wanted = target.get(ResourceType::Route);
        let [_, _, _, routes, _] = &self.types;
        let after = self.settings.routes_follow;
        let in_route =
            |(table, host): &HostKey| routes.form(table)?.table()?.find(host)?.weights.clone();
        let stays = |key: &HostKey, values: &_| is_in_use(routes, wanted, key, values);
        self.runtime.set(chosen, stays, in_route, now, after);
    }

    /// Whether the layer waits for the first endpoint of a cluster that gets weight with it.
    pub(super) fn layer_waits(&self) -> bool {
        self.settings.gated
            && self.runtime.regained().iter().any(|cluster| self.awaits_first_endpoint(cluster))
    }

    /// A resuming client may have any numbers in its routes. If they stay unknown, the layer has all weights.
    pub(super) fn cover_unknown_routes(&mut self) {
        let Some(target) = self.target.clone() else { return };
        let takes = self.get(ResourceType::Runtime).wants(RUNTIME_LAYER);
        let covers = self.runtime.covers_all() || !self.awaits_routes();
        let unknown = takes && !self.knows_routes() && covers;
        self.runtime.set_all(Some(target.get(ResourceType::Route)).filter(|_| unknown));
    }

    /// Forgets which clusters lost their weight once the client has ACKed the layer.
    pub(super) fn settle_runtime(&mut self) {
        let subscription = self.get(ResourceType::Runtime);
        let layer = self.runtime.resources().get(RUNTIME_LAYER).map(|layer| layer.version);
        let has = subscription.form(RUNTIME_LAYER).map(|form| form.version);
        if subscription.pending.is_none() && (has == layer || subscription.has_rejections()) {
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
    let find = |resource: Option<&Arc<Resource>>| {
        resource.and_then(|resource| resource.table()?.find(host).cloned())
    };
    let Some(has) = find(routes.form(table)) else {
        return false;
    };
    // Other sums come with the route, and so replace the values.
    let takes_values = has.weights.as_ref().is_some_and(|own| weights.can_replace(own));
    takes_values && find(wanted.get(table)).is_none_or(|wanted| wanted.version() != has.version())
}
