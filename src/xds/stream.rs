//! One stream's protocol: (state, event) → (state, responses). No clock and no I/O; the caller says what time it is.
//!
//! Sources: Envoy's "xDS REST and gRPC protocol" document for versions, nonces, subscriptions and the order in which
//! types must change.
//!
//! A change of the mesh goes out in three steps, each gated on this client's own ACKs: *make* (new clusters and their
//! endpoints, the old ones kept), *switch* (listeners and routes, once everything made is acked, the answer to the
//! client's own request for each new cluster's endpoints included, because that answer is what ends the cluster's
//! warming), *break* (what nothing uses any more is dropped, a grace after the switch is acked).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3 as pb;

use super::wire::{self, Frame};
use crate::snapshot::{Resource, ResourceType, Resources, Snapshot};

/// The variant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// State of the world: each response holds all that was asked for.
    Sotw,
    /// Incremental: each response holds what changed.
    Delta,
}

/// A request of either variant, in one shape.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The type URL.
    pub type_url: String,
    /// The nonce of the response it answers; empty where it answers none.
    pub nonce: String,
    /// Why the response was refused.
    pub error: Option<String>,
    /// Names: all that are wanted (SotW), or those newly wanted (delta).
    pub names: Vec<String>,
    /// Names no longer wanted (delta).
    pub unsubscribe: Vec<String>,
    /// What the client has from an earlier stream: name to version (delta).
    pub initial_versions: BTreeMap<String, String>,
}

impl From<pb::DiscoveryRequest> for Request {
    fn from(request: pb::DiscoveryRequest) -> Self {
        Self {
            type_url: request.type_url,
            nonce: request.response_nonce,
            error: request.error_detail.map(|error| error.message),
            names: request.resource_names,
            ..Default::default()
        }
    }
}

impl From<pb::DeltaDiscoveryRequest> for Request {
    fn from(request: pb::DeltaDiscoveryRequest) -> Self {
        Self {
            type_url: request.type_url,
            nonce: request.response_nonce,
            error: request.error_detail.map(|error| error.message),
            names: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            initial_versions: request.initial_resource_versions.into_iter().collect(),
        }
    }
}

/// What a client did with a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It took it.
    Acked(ResourceType),
    /// It refused it, and said why.
    Refused(ResourceType, String),
}

/// A response to send.
#[derive(Clone, Debug)]
pub struct Response {
    /// The type.
    pub kind: ResourceType,
    /// The message.
    pub frame: Frame,
    /// How many resources it holds.
    pub resources: usize,
}

/// A version that no resource has: "the client was told that there is none".
const ABSENT: u64 = 0;

#[derive(Debug, Default)]
struct TypeState {
    subscribed: bool,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client has, as far as was sent: name to version.
    known: BTreeMap<Arc<str>, u64>,
    /// A response must follow even if nothing differs: the client asked for something.
    owed: bool,
    pending: Option<String>,
    /// Versions sent in the response that is pending, and those refused before; refused bytes are not sent again.
    in_flight: Vec<(Arc<str>, u64)>,
    refused: BTreeMap<Arc<str>, u64>,
}

/// The state of one stream.
#[derive(Debug)]
pub struct Stream {
    variant: Variant,
    grace: Duration,
    nonce: u64,
    types: [TypeState; 4],
    /// What the client is to have in the end.
    target: Option<Arc<Snapshot>>,
    /// Whose listeners and routes the client is given.
    live: Option<Arc<Snapshot>>,
    /// Clusters and endpoints that are no longer wanted but may still be in use.
    leaving: [Resources; 2],
    break_at: Option<Instant>,
}

impl Stream {
    /// A stream on which nothing happened yet. `grace` is how long what is no longer used is kept.
    pub fn new(variant: Variant, grace: Duration) -> Self {
        Self {
            variant,
            grace,
            nonce: 0,
            types: Default::default(),
            target: None,
            live: None,
            leaving: Default::default(),
            break_at: None,
        }
    }

    /// Takes in a request. `None` where it is stale, of an unknown type, or asks for something new only.
    pub fn on_request(&mut self, request: Request) -> Option<Answer> {
        let kind = ResourceType::from_type_url(&request.type_url)?;
        let variant = self.variant;
        let state = self.state(kind);
        let first = !state.subscribed;
        // Section "ACK/NACK and resource type instance version": a nonce that is not the last one sent is stale.
        // In SotW the whole request is then stale; in delta its subscriptions still count.
        let answers = !request.nonce.is_empty() && state.pending.as_deref() == Some(&request.nonce);
        if variant == Variant::Sotw && !request.nonce.is_empty() && !first && state.pending.is_some() && !answers {
            return None;
        }
        let answer = answers.then(|| state.answered(kind, request.error.clone()));
        state.subscribed = true;
        match variant {
            Variant::Sotw => state.ask_sotw(kind, first, &request),
            Variant::Delta => state.ask_delta(kind, first, request),
        }
        answer
    }

    /// Takes in a new state of the mesh.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        if let Some(old) = self.target.replace(snapshot.clone()) {
            for (leaving, kind) in self.leaving.iter_mut().zip([ResourceType::Cluster, ResourceType::Endpoints]) {
                let new = snapshot.get(kind);
                let gone = old.get(kind).iter().filter(|(name, _)| !new.contains_key(*name));
                leaving.extend(gone.map(|(name, resource)| (name.clone(), resource.clone())));
                leaving.retain(|name, _| !new.contains_key(name));
            }
        }
        self.break_at = None;
    }

    /// Everything that can be sent now. Call it after each event, and again when [`Stream::wake_at`] is over.
    pub fn responses(&mut self, now: Instant) -> Vec<Response> {
        let mut out = Vec::new();
        self.make(&mut out);
        if self.is_made() {
            self.live = self.target.clone();
        }
        out.extend(self.respond(ResourceType::Listener));
        out.extend(self.respond(ResourceType::Route));
        if self.leaving.iter().all(BTreeMap::is_empty) {
            self.break_at = None;
        } else if self.is_switched() {
            let at = *self.break_at.get_or_insert(now + self.grace);
            if at <= now {
                self.leaving = Default::default();
                self.break_at = None;
                self.make(&mut out);
            }
        }
        out
    }

    /// When to call [`Stream::responses`] again without an event.
    pub fn wake_at(&self) -> Option<Instant> {
        self.break_at
    }

    /// The state of the mesh that the client has acked all of, as far as it asked for it; `None` while something is
    /// under way or was refused.
    pub fn settled(&self) -> Option<u64> {
        let target = self.target.as_ref()?;
        let live = self.live.as_ref()?;
        let all = ResourceType::ALL.into_iter().all(|kind| self.is_settled(kind));
        (live.revision == target.revision && all).then_some(target.revision)
    }

    /// Whether the client asked for this type.
    pub fn asked_for(&self, kind: ResourceType) -> bool {
        self.types.get(kind.index()).is_some_and(|state| state.subscribed)
    }

    fn make(&mut self, out: &mut Vec<Response>) {
        out.extend(self.respond(ResourceType::Cluster));
        out.extend(self.respond(ResourceType::Endpoints));
    }

    /// Whether the client has acked every new cluster and the endpoints it asked for them.
    fn is_made(&self) -> bool {
        let Some(target) = &self.target else { return false };
        if !self.is_settled(ResourceType::Cluster) || !self.is_settled(ResourceType::Endpoints) {
            return false;
        }
        let endpoints = self.get(ResourceType::Endpoints);
        let clusters = self.get(ResourceType::Cluster);
        // A client that takes no clusters from this stream has its own ways of getting them.
        if !clusters.subscribed || !endpoints.subscribed {
            return true;
        }
        target
            .get(ResourceType::Endpoints)
            .keys()
            .all(|name| !clusters.known.contains_key(name) || endpoints.wants(name))
    }

    fn is_switched(&self) -> bool {
        let same = match (&self.live, &self.target) {
            (Some(live), Some(target)) => Arc::ptr_eq(live, target),
            _ => false,
        };
        same && self.is_settled(ResourceType::Listener) && self.is_settled(ResourceType::Route)
    }

    fn is_settled(&self, kind: ResourceType) -> bool {
        let state = self.get(kind);
        if !state.subscribed {
            return true;
        }
        if state.pending.is_some() || state.owed {
            return false;
        }
        let view = self.view(kind);
        view.is_some_and(|view| {
            state.changed(&view).next().is_none() && state.removed(&view).next().is_none() && !state.refuses(&view)
        })
    }

    fn get(&self, kind: ResourceType) -> &TypeState {
        let [clusters, endpoints, listeners, routes] = &self.types;
        match kind {
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Listener => listeners,
            ResourceType::Route => routes,
        }
    }

    fn state(&mut self, kind: ResourceType) -> &mut TypeState {
        let [clusters, endpoints, listeners, routes] = &mut self.types;
        match kind {
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Listener => listeners,
            ResourceType::Route => routes,
        }
    }

    /// What the client is to have of a type at this step.
    fn view(&self, kind: ResourceType) -> Option<View> {
        let [clusters, endpoints] = &self.leaving;
        Some(match kind {
            ResourceType::Cluster => View(self.target.as_ref()?.get(kind).clone(), clusters.clone()),
            ResourceType::Endpoints => View(self.target.as_ref()?.get(kind).clone(), endpoints.clone()),
            // A client's first listeners and routes come only when it has its first clusters.
            ResourceType::Listener | ResourceType::Route => {
                View(self.live.as_ref()?.get(kind).clone(), Resources::new())
            }
        })
    }

    fn respond(&mut self, kind: ResourceType) -> Option<Response> {
        let view = self.view(kind)?;
        let variant = self.variant;
        let nonce = (self.nonce + 1).to_string();
        let response = self.state(kind).respond(kind, variant, &view, &nonce)?;
        self.nonce += 1;
        Some(response)
    }
}

/// Resources of a type: those of a snapshot, and those kept for a while.
struct View(Arc<Resources>, Resources);

impl View {
    fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.0.get(name).or_else(|| self.1.get(name))
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.values().chain(self.1.values())
    }
}

impl TypeState {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn answered(&mut self, kind: ResourceType, error: Option<String>) -> Answer {
        self.pending = None;
        let sent = std::mem::take(&mut self.in_flight);
        match error {
            None => {
                sent.iter().for_each(|(name, _)| {
                    self.refused.remove(name);
                });
                Answer::Acked(kind)
            }
            Some(reason) => {
                self.refused.extend(sent);
                Answer::Refused(kind, reason)
            }
        }
    }

    fn ask_sotw(&mut self, kind: ResourceType, first: bool, request: &Request) {
        let names: BTreeSet<Arc<str>> =
            request.names.iter().filter(|name| *name != "*").map(|name| name.as_str().into()).collect();
        let star = names.len() < request.names.len();
        let legacy = request.names.is_empty() && kind.has_wildcard() && (first || self.wildcard);
        self.wildcard = star || legacy;
        let news: Vec<_> = names.difference(&self.names).cloned().collect();
        self.known.retain(|name, _| self.wildcard || names.contains(name));
        // A name asked for anew is answered even if its version was sent before (section "Subscribing to resources").
        news.iter().for_each(|name| {
            self.known.remove(name);
        });
        self.owed |= first || !news.is_empty() || request.nonce.is_empty();
        self.names = names;
    }

    fn ask_delta(&mut self, kind: ResourceType, first: bool, request: Request) {
        if first {
            self.wildcard = request.names.is_empty() && kind.has_wildcard();
            self.owed = true;
            for (name, version) in request.initial_versions {
                // A version that is not ours differs from every one of ours.
                let version = u64::from_str_radix(&version, 16).unwrap_or(u64::MAX);
                self.known.insert(name.into(), version);
            }
        }
        for name in &request.names {
            if name == "*" {
                self.wildcard = true;
            } else {
                let name: Arc<str> = name.as_str().into();
                if !first {
                    self.known.remove(&name);
                }
                self.names.insert(name);
            }
            self.owed = true;
        }
        for name in &request.unsubscribe {
            if name == "*" {
                self.wildcard = false;
                let names = &self.names;
                self.known.retain(|name, _| names.contains(name));
            } else {
                self.names.remove(name.as_str());
                if !self.wildcard {
                    self.known.remove(name.as_str());
                }
            }
        }
    }

    /// The resources of `view` that are wanted and that the client lacks or has in another version.
    fn changed<'a>(&'a self, view: &'a View) -> Box<dyn Iterator<Item = &'a Arc<Resource>> + 'a> {
        let differs = |resource: &&'a Arc<Resource>| {
            self.known.get(&resource.name) != Some(&resource.version)
                && self.refused.get(&resource.name) != Some(&resource.version)
        };
        if self.wildcard {
            Box::new(view.all().filter(differs))
        } else {
            Box::new(self.names.iter().filter_map(|name| view.get(name)).filter(differs))
        }
    }

    /// The names that the client has, or asked for, and that are not there.
    fn removed<'a>(&'a self, view: &'a View) -> impl Iterator<Item = Arc<str>> + 'a {
        let gone = self.known.iter().filter(|(name, version)| **version != ABSENT && view.get(name).is_none());
        let never = self.names.iter().filter(|name| !self.known.contains_key(*name) && view.get(name).is_none());
        gone.map(|(name, _)| name.clone()).chain(never.cloned())
    }

    fn refuses(&self, view: &View) -> bool {
        self.refused.iter().any(|(name, version)| view.get(name).is_some_and(|one| one.version == *version))
    }

    fn respond(&mut self, kind: ResourceType, variant: Variant, view: &View, nonce: &str) -> Option<Response> {
        // One response at a time for a type: what comes up meanwhile goes out together after the answer.
        if !self.subscribed || self.pending.is_some() {
            return None;
        }
        let changed: Vec<Arc<Resource>> = self.changed(view).cloned().collect();
        let removed: Vec<Arc<str>> = self.removed(view).collect();
        if changed.is_empty() && removed.is_empty() && !self.owed {
            return None;
        }
        self.owed = false;
        let (frame, resources) = match variant {
            Variant::Delta => (wire::delta_response(kind, nonce, &changed, &removed), changed.len()),
            Variant::Sotw => {
                let all: Vec<Arc<Resource>> = if self.wildcard {
                    view.all().cloned().collect()
                } else if kind.has_wildcard() {
                    self.names.iter().filter_map(|name| view.get(name)).cloned().collect()
                } else {
                    // Endpoints and routes may come one by one (section "Grouping resources into responses").
                    changed.clone()
                };
                let version = all.iter().fold(0u64, |sum, one| sum.rotate_left(1) ^ one.version);
                if all.is_empty() && !kind.has_wildcard() {
                    // Nothing to say about names that do not exist: SotW tells that by silence.
                    removed.iter().for_each(|name| {
                        self.known.insert(name.clone(), ABSENT);
                    });
                    return None;
                }
                let count = all.len();
                (wire::sotw_response(kind, version, nonce, &all), count)
            }
        };
        for resource in &changed {
            self.known.insert(resource.name.clone(), resource.version);
        }
        for name in &removed {
            if self.names.contains(name) {
                self.known.insert(name.clone(), ABSENT);
            } else {
                self.known.remove(name);
            }
            self.refused.remove(name);
        }
        self.in_flight = changed.iter().map(|one| (one.name.clone(), one.version)).collect();
        self.pending = Some(nonce.to_owned());
        Some(Response { kind, frame, resources })
    }
}

#[cfg(test)]
mod tests;
