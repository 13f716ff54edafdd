//! The protocol of one stream as a pure state machine: (state, event) → (state, responses). No I/O; the caller passes
//! the time. Its transitions are traced, in the span of the caller.
//!
//! Sources: Envoy's "xDS REST and gRPC protocol" document for versions, nonces, subscriptions and the order in which
//! types must change.
//!
//! A change of the mesh is delivered in three steps, each gated on this client's own ACKs: *make* (send new clusters
//! and their endpoints, keep the old ones), *switch* (send each listener and virtual host as soon as every cluster it
//! references is made), *break* (remove what is no longer referenced, one grace period after the client ACKed that). A
//! cluster is made when the client has ACKed it and the answer to its own request for its endpoints, because that
//! answer ends the cluster's warming. Envoy requests the endpoints of a new cluster; for a changed cluster it may not,
//! because it is already subscribed, and waits all the same. While any cluster is warming, Envoy ACKs no further
//! clusters. So the endpoints of a changed cluster follow the change immediately, even if they would otherwise wait.
//!
//! A client that reconnects, perhaps because weir was restarted, has clusters and routes that are unknown here. Over
//! delta it reports its clusters; over SotW they are inferred from its endpoint request. Clusters that no longer exist
//! are kept until the client's routes are known; over SotW, where a client has only what a response contains, the
//! cluster of the whole service substitutes for a subset.
//!
//! While a cluster warms, Envoy does not ask for clusters, on a new stream either: it asks for endpoints first. Every
//! request is answered so that the warming ends, with an empty assignment if the cluster no longer exists. The client's
//! routes stay as they are until it has asked for clusters.
//!
//! A resource that references an undefined cluster keeps the version that the client has until the cluster is defined,
//! and a cluster that is removed too early stays as long as it is referenced, so objects may be written in any order.

mod acked;
mod change;
mod clusters;
mod delivery;
mod endpoints;
mod gate;
mod in_order;
mod make;
mod names;
mod progress;
mod rejection;
mod removal;
mod request;
mod runtime;
mod session;
mod subscription;
mod switch;
mod trials;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clusters::{ClusterStates, Phase};
use delivery::{Immediately, Turn, View};
use endpoints::{EndpointDelivery, version_for};
use runtime::RuntimeLayers;
use session::Session;
use subscription::{Room, Subscription, Taken};
use switch::Switch;

pub(crate) use gate::HeldResource;
pub(crate) use progress::{Progress, RejectedResource, SentResource};
pub(crate) use request::{Answer, Request, RequestError, Variant};
pub(crate) use runtime::runtime_layers;

use super::wire::Frame;
use crate::revision::MeshRevision;
use crate::snapshot::{Resource, ResourceType, Snapshot};
use crate::translate::is_inbound;

/// Settings of a stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamSettings {
    /// How long a client keeps clusters that are no longer referenced.
    pub grace: Duration,
    /// How long Envoy drains the filter chains that a new listener no longer has: its `--drain-time-s`. They use their
    /// inbound clusters until then.
    pub drain: Duration,
    /// How long a client may take to answer before it counts as lagging.
    pub ack_timeout: Duration,
    /// The maximum number of names that one stream may subscribe to.
    pub max_names: usize,
    /// How long routes wait after a change of weights that the client got as runtime values.
    pub routes_follow: Duration,
    /// Whether updates wait for ACKs. Disabled only in a test that shows why waiting is needed.
    pub gated: bool,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(1),
            // Envoy's default.
            drain: Duration::from_secs(600),
            ack_timeout: Duration::from_secs(10),
            max_names: 100_000,
            routes_follow: Duration::from_secs(30),
            gated: true,
        }
    }
}

impl StreamSettings {
    /// How long a client keeps a cluster that nothing references any more.
    fn grace_of(&self, cluster: &str) -> Duration {
        if is_inbound(cluster) { self.grace + self.drain } else { self.grace }
    }
}

/// The average size limit of the names of one stream in bytes. The longest names that weir creates have about 300.
const BYTES_PER_NAME: usize = 256;

/// A response to send.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    /// The type.
    pub kind: ResourceType,
    /// The message.
    pub frame: Frame,
}

/// The state of one stream.
#[derive(Debug)]
pub(crate) struct Stream {
    variant: Variant,
    settings: StreamSettings,
    /// The number of responses sent; the nonce of the last one.
    nonce: u64,
    /// In the order of [`ResourceType::ALL`].
    types: [Subscription; 5],
    /// What the client gets in the end.
    target: Option<Arc<Snapshot>>,
    session: Session,
    clusters: ClusterStates,
    switch: Switch,
    runtime: RuntimeLayers,
    /// Since when the client waits for endpoints of a cluster.
    warming_since: Option<Instant>,
    /// When something was first ready to be sent.
    serving_since: Option<Instant>,
    now: Option<Instant>,
    /// The revision that the client reached; `None` while anything is in flight.
    at_rest: Option<MeshRevision>,
}

impl Stream {
    /// A stream without any event so far.
    pub(crate) fn new(variant: Variant, settings: StreamSettings) -> Self {
        Self {
            variant,
            settings,
            nonce: 0,
            types: Default::default(),
            target: None,
            session: Session::default(),
            clusters: ClusterStates::default(),
            switch: Switch::default(),
            runtime: RuntimeLayers::default(),
            warming_since: None,
            serving_since: None,
            now: None,
            at_rest: None,
        }
    }

    /// Handles a request. `None` if it is stale, of an unknown type, or only a new subscription.
    ///
    /// # Errors
    /// The client subscribes to more than a stream may hold. The stream must be closed.
    pub(crate) fn on_request(&mut self, request: Request) -> Result<Option<Answer>, RequestError> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            return Ok(None);
        };
        self.at_rest = None;
        let room = self.room(kind);
        let first = !self.get(kind).subscribed;
        let variant = self.variant;
        let mut earlier = Reported {
            names: if first { names(&request) } else { Vec::new() },
            version: !request.version.is_empty(),
        };
        let resumes = first && (earlier.is_any() || self.asks_before_clusters(kind, &request));
        let known = match kind {
            ResourceType::Runtime => Some(self.runtime.resources().clone()),
            _ => self.target.as_ref().map(|target| target.get(kind).clone()),
        };
        let mut taken = self.state(kind).take(kind, variant, request, room, known.as_ref())?;
        if resumes {
            self.session.resume();
        }
        if taken.rejected.is_some() {
            self.switch.choose_again();
            self.keep_accepted();
        }
        let acked = taken.acked.take();
        let answer = match (taken.rejected.take(), &acked) {
            (Some(message), _) => Some(Answer::Rejected(kind, message)),
            (None, Some(_)) => Some(Answer::Acked(kind)),
            (None, None) => None,
        };
        match kind {
            ResourceType::Cluster => {
                self.clusters_acked(acked.unwrap_or_default());
                self.clusters_reported(std::mem::take(&mut earlier.names));
                if first {
                    self.clusters_requested();
                }
            }
            ResourceType::Endpoints => {
                self.endpoints_acked(acked.unwrap_or_default());
                self.endpoints_requested(first, earlier, taken);
            }
            ResourceType::Runtime => self.layers_requested(),
            ResourceType::Listener | ResourceType::Route => {}
        }
        Ok(answer)
    }

    /// Whether a client asks for listeners before it asked for clusters. Envoy asks for its first clusters before
    /// anything else. A client that asks for listeners first has clusters from an earlier stream, one of which warms.
    /// That stream may have ended before the client got its first listeners.
    fn asks_before_clusters(&self, kind: ResourceType, request: &Request) -> bool {
        kind == ResourceType::Listener
            && request.names.iter().all(|name| name == "*")
            && !self.asked_for(ResourceType::Cluster)
    }

    /// The client asked for clusters for the first time.
    fn clusters_requested(&mut self) {
        // It may ask late because one of its clusters was warming, and ask for everything else only now.
        self.serving_since = None;
        self.switch.restart();
    }

    /// The client asked for endpoints. `first` says whether it did so for the first time.
    fn endpoints_requested(&mut self, first: bool, earlier: Reported, taken: Taken) {
        for name in &earlier.names {
            // The client has had endpoints: its clusters do not warm for the first time.
            self.clusters.warmed(name);
        }
        let resumes = first && self.session.is_returning();
        if resumes && self.variant == Variant::Sotw {
            // The client sent the request before it got any cluster of this stream: it names only the clusters of the
            // earlier one.
            if let Some(session) = self.session.earlier_mut() {
                let had_endpoints = taken.news.into_iter().filter(|_| earlier.version);
                session.report(had_endpoints.collect());
            }
        } else {
            if resumes && let Some(session) = self.session.earlier_mut() {
                session.report(earlier.names.into_iter().collect());
            }
            // Over delta a resuming client has a cluster for each name that it asks for, and waits for the endpoints of
            // some, even if it does not report those clusters.
            let clusters = self.state(ResourceType::Cluster);
            for name in &taken.news {
                if let Some(change) = clusters.in_flight_mut(name) {
                    change.taken = true;
                }
            }
            if self.variant == Variant::Sotw && taken.repeated {
                // Over SotW Envoy asks for all endpoints again when one of its clusters changes.
                self.clusters_taken();
            }
        }
        if resumes {
            // Clusters may have changed before its first request for endpoints.
            self.follow_changes();
        }
    }

    /// Handles a new snapshot.
    pub(crate) fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.at_rest = None;
        let new = snapshot.get(ResourceType::Cluster).clone();
        if let Some(old) = self.target.replace(snapshot.clone())
            && self.settings.gated
        {
            acked::compare(old.get(ResourceType::Cluster), &new, |name, cluster, now| {
                if let (Some(cluster), None) = (cluster, now) {
                    self.keep(name, cluster, old.get(ResourceType::Endpoints).get(name));
                }
            });
        }
        self.clusters.retain_draining(|name, _| !new.contains_key(name));
        if let Some(earlier) = self.session.earlier_mut() {
            earlier.next = OnceLock::new();
            let endpoints = snapshot.get(ResourceType::Endpoints);
            earlier.fallback.retain(|name, _| {
                endpoints.get(name).is_some_and(|endpoints| !endpoints.has_endpoints())
            });
        }
        // A substitute may equal what the mesh defines, except for the endpoints.
        let confirmed = self.clusters.confirm_substitutes(|name, version| {
            new.get(name).is_some_and(|cluster| cluster.version == version)
        });
        for name in confirmed {
            self.state(ResourceType::Endpoints).send_again(&name);
        }
    }

    /// Returns everything that can be sent now. Call it after each event, and again at [`Stream::wake_at`].
    pub(crate) fn responses(&mut self, now: Instant) -> Vec<Response> {
        self.now = Some(now);
        let mut out = Vec::new();
        if self.target.is_none() {
            return out;
        }
        self.serving_since.get_or_insert(now);
        self.keep_earlier_clusters();
        self.forget_earlier();
        if self.session.is_returning() && self.variant == Variant::Sotw && !self.is_early() {
            // A client that was already warming clusters when its last stream ended would wait forever, and ask for
            // nothing else.
            self.clusters_taken();
        }
        self.cover_unknown_routes();
        self.settle_runtime();
        self.compare(ResourceType::Cluster);
        self.compare(ResourceType::Endpoints);
        self.switch(now);
        if self.switch.has_started() {
            self.compare(ResourceType::Listener);
            self.compare(ResourceType::Route);
        }
        // What the layer should have is known only with the routes.
        self.compare(ResourceType::Runtime);
        self.remove_unused(now);
        // Weights are sent first: they are only a few bytes.
        for kind in [ResourceType::Runtime].into_iter().chain(ResourceType::OF_SNAPSHOT) {
            out.extend(self.respond(kind, now));
        }
        let quiet = self.types.iter().all(|state| state.pending.is_none());
        if quiet {
            // Once both are ACKed, nothing is warming: Envoy does not ACK clusters before that.
            let [clusters, endpoints, ..] = &self.types;
            self.clusters.settle(|name| clusters.has(name) && endpoints.has(name));
        }
        if self.is_warming() {
            self.warming_since.get_or_insert(now);
        } else {
            self.warming_since = None;
        }
        let later = self.awaits_routes()
            && (self.asked_for(ResourceType::Runtime)
                || self.get(ResourceType::Endpoints).differs());
        let done = quiet
            && !self.switch.is_waiting()
            && self.warming_since.is_none()
            && !later
            && !self.layer_waits()
            && !self.may_have_more();
        self.at_rest = self.target.as_ref().filter(|_| done).map(|target| target.revision);
        out
    }

    /// When to call [`Stream::responses`] again without an event.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let due = self.clusters.draining().iter().filter_map(|(name, kept)| match kept.phase {
            Phase::UnusedSince(since) => Some(since + self.settings.grace_of(name)),
            Phase::InUse | Phase::Removing => None,
        });
        let lag = self.waits().map(|(since, _)| since + self.settings.ack_timeout);
        let later = lag.chain(self.resume_deadlines()).chain(self.runtime.follow_at());
        due.chain(later.filter(|at| self.now.is_none_or(|now| *at > now))).min()
    }

    /// Whether the client subscribed to this type.
    pub(crate) fn asked_for(&self, kind: ResourceType) -> bool {
        self.get(kind).subscribed
    }

    fn asks_for_routes(&self) -> bool {
        self.asked_for(ResourceType::Listener) || self.asked_for(ResourceType::Route)
    }

    fn get(&self, kind: ResourceType) -> &Subscription {
        let [clusters, endpoints, listeners, routes, runtime] = &self.types;
        match kind {
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Listener => listeners,
            ResourceType::Route => routes,
            ResourceType::Runtime => runtime,
        }
    }

    fn state(&mut self, kind: ResourceType) -> &mut Subscription {
        let [clusters, endpoints, listeners, routes, runtime] = &mut self.types;
        match kind {
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Listener => listeners,
            ResourceType::Route => routes,
            ResourceType::Runtime => runtime,
        }
    }

    fn room(&self, kind: ResourceType) -> Room {
        let others = ResourceType::ALL
            .into_iter()
            .filter(|other| *other != kind)
            .map(|other| self.get(other).size());
        let (names, bytes) =
            others.fold((0, 0), |(names, bytes), other| (names + other.0, bytes + other.1));
        let limit = self.settings.max_names;
        Room {
            names: limit.saturating_sub(names),
            bytes: (limit * BYTES_PER_NAME).saturating_sub(bytes),
        }
    }

    /// The memory that the client made this stream hold and that no other stream shares, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        let types = self.types.iter().map(Subscription::held_bytes).sum::<usize>();
        self.clusters.held_bytes() + types
    }

    /// What the client gets of a type at this step.
    fn view(&self, kind: ResourceType) -> Option<View> {
        let target = self.target.as_ref()?.get(kind).clone();
        let draining = self.clusters.draining().iter();
        Some(match kind {
            ResourceType::Cluster => {
                let staying = draining.filter(|(_, cluster)| cluster.phase != Phase::Removing);
                let kept = staying.map(|(name, kept)| (name.clone(), kept.cluster.clone()));
                View { base: target.clone(), target, kept: kept.collect() }
            }
            ResourceType::Endpoints => {
                let earlier = self.session.earlier().into_iter();
                let fallback = earlier.flat_map(|earlier| &earlier.fallback);
                let fallback =
                    fallback.map(|(name, endpoints)| (name.clone(), Some(endpoints.clone())));
                // A client that waits for endpoints that do not exist gets an empty assignment.
                let kept = draining.filter(|(name, kept)| {
                    kept.endpoints.is_some() || self.get(kind).has_or_claims(name)
                });
                let kept = kept.map(|(name, kept)| (name.clone(), kept.endpoints.clone()));
                View { base: target.clone(), target, kept: kept.chain(fallback).collect() }
            }
            ResourceType::Listener | ResourceType::Route if !self.switch.has_started() => {
                return None;
            }
            ResourceType::Listener | ResourceType::Route => self.switch.view(kind, &target),
            // A resuming client keeps the values that it has while its routes are unknown: each response replaces the
            // whole layer, and would remove those that its old routes need.
            ResourceType::Runtime if self.awaits_routes() && !self.runtime.covers_all() => {
                return None;
            }
            ResourceType::Runtime => self.runtime.view(),
        })
    }

    fn compare(&mut self, kind: ResourceType) {
        if !self.get(kind).is_unchecked() {
            return;
        }
        let Some(view) = self.view(kind) else { return };
        if kind != ResourceType::Endpoints {
            return self.state(kind).compare(kind, &view, Some(&mut plain));
        }
        let variant = self.variant;
        let [clusters, endpoints, ..] = &mut self.types;
        // It is unknown which clusters wait for endpoints at a client that does not ask for clusters, and over SotW at one
        // that got any since it resumed.
        let known = clusters.subscribed && (variant == Variant::Delta || clusters.resumed);
        let mut clusters = clusters.reader();
        let version_of: &mut dyn FnMut(&Resource) -> u64 =
            &mut |resource| version_for(&mut clusters, resource);
        endpoints.compare(kind, &view, known.then_some(version_of));
    }

    fn respond(&mut self, kind: ResourceType, now: Instant) -> Option<Response> {
        let waits = match kind {
            ResourceType::Cluster => self.may_have_more(),
            ResourceType::Runtime => self.layer_waits(),
            _ => false,
        };
        if waits || !self.get(kind).is_open() {
            return None;
        }
        let view = self.view(kind)?;
        let nonce = (self.nonce + 1).to_string();
        let turn =
            Turn { variant: self.variant, view: &view, nonce: &nonce, now, delivery: &Immediately };
        let frame = match kind {
            ResourceType::Endpoints => self.respond_with_endpoints(turn)?,
            _ => self.state(kind).respond(kind, &turn)?,
        };
        self.nonce += 1;
        match kind {
            ResourceType::Endpoints => self.mark_warming(),
            ResourceType::Cluster => {
                self.mark_removed();
                self.follow_changes();
            }
            ResourceType::Route => self.runtime.routes_sent(now),
            ResourceType::Listener | ResourceType::Runtime => {}
        }
        Some(Response { kind, frame })
    }

    fn respond_with_endpoints(&mut self, turn: Turn<'_>) -> Option<Frame> {
        let early = self.is_early();
        let next_references = self.next_references();
        let [clusters, endpoints, listeners, routes, _] = &mut self.types;
        let leaving = self.switch.leaving().iter();
        let keep_last =
            leaving.filter(|name| endpoints.has_good(name) && !self.clusters.is_warming(name));
        let delivery = EndpointDelivery {
            variant: self.variant,
            gated: self.settings.gated,
            early,
            target: self.target.as_deref()?,
            keep_last: keep_last.cloned().collect(),
            clusters,
            listeners,
            routes,
            states: &self.clusters,
            switch: &self.switch,
            earlier: self.session.earlier(),
            next_references,
            emptied: self.runtime.emptied(),
        };
        endpoints.respond(ResourceType::Endpoints, &Turn { delivery: &delivery, ..turn })
    }
}

/// What the first request for a type says about an earlier stream.
struct Reported {
    /// The names of the resources that the client has (delta).
    names: Vec<Arc<str>>,
    /// Whether it has accepted a version (SotW).
    version: bool,
}

impl Reported {
    fn is_any(&self) -> bool {
        self.version || !self.names.is_empty()
    }
}

fn plain(resource: &Resource) -> u64 {
    resource.version
}

fn names(request: &Request) -> Vec<Arc<str>> {
    request.initial_versions.keys().map(|name| name.as_str().into()).collect()
}

#[cfg(test)]
mod tests;
