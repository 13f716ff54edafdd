//! The protocol of one stream as a pure state machine: (state, event) → (state, responses). No I/O; the caller passes
//! the time.
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
//! are kept until the client's routes are known; over SotW, where a client has only what it is sent, the whole service
//! is substituted for a subset.
//!
//! While a cluster warms, Envoy does not ask for clusters, on a new stream either: it asks for endpoints first. All that
//! it asks for is answered so that the warming ends, with no endpoints where nothing knows the cluster any more, and its
//! routes stay as they are until it has asked for clusters.
//!
//! A resource that references an undefined cluster keeps the version that the client has until the cluster is defined,
//! and a cluster that is removed too early stays as long as it is referenced, so objects may be written in any order.

mod acked;
mod gate;
mod make;
mod names;
mod progress;
mod removal;
mod request;
mod returning;
mod subscription;
mod switch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use make::is_new;
use removal::{Kept, Phase};
use returning::{ASKS_WITHIN, DEFINED_WITHIN};
use subscription::{Change, Room, Subscription, Turn, View};
use switch::given;

pub use gate::HeldResource;
pub use progress::{Progress, RejectedResource, SentResource};
pub use request::{Answer, Request, RequestError, Variant};

use super::wire::Frame;
use crate::revision::MeshRevision;
use crate::snapshot::{Resource, ResourceType, Resources, Snapshot};
use crate::translate::is_inbound;

/// Settings of a stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamSettings {
    /// How long a client keeps clusters that are no longer referenced.
    pub grace: Duration,
    /// How long Envoy drains the filter chains that a new listener no longer has: its `--drain-time-s`. So long they
    /// lead to their inbound clusters, for as long as their connections last.
    pub drain: Duration,
    /// How long a client may take to answer before it counts as lagging.
    pub ack_timeout: Duration,
    /// The maximum number of names that one stream may subscribe to.
    pub max_names: usize,
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
            gated: true,
        }
    }
}

impl StreamSettings {
    /// How long a client keeps a cluster that nothing leads to any more.
    fn grace_of(&self, cluster: &str) -> Duration {
        if is_inbound(cluster) { self.grace + self.drain } else { self.grace }
    }
}

/// The average size limit of the names of one stream in bytes. The longest names that weir creates have about 300.
const BYTES_PER_NAME: usize = 256;

/// A response to send.
#[derive(Clone, Debug)]
pub struct Response {
    /// The type.
    pub kind: ResourceType,
    /// The message.
    pub frame: Frame,
    /// The number of resources.
    pub resources: usize,
}

/// The state of one stream.
#[derive(Debug)]
pub struct Stream {
    variant: Variant,
    settings: StreamSettings,
    nonce: u64,
    types: [Subscription; 4],
    /// What the client is to have in the end.
    target: Option<Arc<Snapshot>>,
    /// The listeners and routes that the client is given; none before its first clusters are made.
    live: [Resources; 2],
    started: bool,
    held: [Vec<HeldResource>; 2],
    waiting: bool,
    /// Clusters that the client's routes lead to until those come that wait.
    leaving: BTreeSet<Arc<str>>,
    /// A form that the client was about to have was refused: what was chosen because of it is to be chosen anew.
    choose_again: bool,
    kept: BTreeMap<Arc<str>, Kept>,
    /// Clusters whose first form the client has and that warm until it has their endpoints.
    warming: BTreeSet<Arc<str>>,
    warming_since: Option<Instant>,
    /// The client was here before, on a stream that ended: it has clusters and routes of which nothing is known.
    returning: bool,
    /// It asks for clusters on a stream of their own. Envoy takes such clusters before they are warm.
    clusters_alone: bool,
    /// Clusters that the client may have had endpoints for before this stream, as far as it asks for them.
    served_before: BTreeSet<Arc<str>>,
    /// Whether these are yet to be looked at.
    earlier_unchecked: bool,
    /// Endpoints of whole services, for subsets that lost theirs while the client was away: its old routes may lead
    /// there.
    fallback: BTreeMap<Arc<str>, Arc<Resource>>,
    /// Clusters of which the client has a form that stands in for one it came with, and that form's version.
    substitutes: BTreeMap<Arc<str>, u64>,
    /// Every listener and route that may be in use at the client is known.
    routes_known: bool,
    /// When there was something to tell for the first time.
    since: Option<Instant>,
    now: Option<Instant>,
    at_rest: Option<MeshRevision>,
}

impl Stream {
    /// A stream on which nothing happened yet.
    pub fn new(variant: Variant, settings: StreamSettings) -> Self {
        Self {
            variant,
            settings,
            nonce: 0,
            types: Default::default(),
            target: None,
            live: Default::default(),
            started: false,
            held: Default::default(),
            waiting: false,
            leaving: BTreeSet::new(),
            choose_again: false,
            kept: BTreeMap::new(),
            warming: BTreeSet::new(),
            warming_since: None,
            returning: false,
            clusters_alone: false,
            served_before: BTreeSet::new(),
            earlier_unchecked: false,
            fallback: BTreeMap::new(),
            substitutes: BTreeMap::new(),
            routes_known: false,
            since: None,
            now: None,
            at_rest: None,
        }
    }

    /// Handles a request. `None` if it is stale, of an unknown type, or only a new subscription.
    ///
    /// # Errors
    /// The client subscribes to more than a stream may hold. The stream must be closed.
    pub fn on_request(&mut self, request: Request) -> Result<Option<Answer>, RequestError> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            return Ok(None);
        };
        self.at_rest = None;
        let room = self.room(kind);
        let first = !self.get(kind).subscribed;
        let variant = self.variant;
        self.clusters_alone |= request.alone && kind == ResourceType::Cluster;
        let initial: Vec<Arc<str>> = if first { names(&request) } else { Vec::new() };
        let had_some = !request.version.is_empty();
        // Envoy asks for its first clusters before all else. One that asks for listeners first has clusters, of which one
        // warms, and may not have got its first listeners before its last stream ended.
        let before_clusters = kind == ResourceType::Listener
            && request.names.iter().all(|name| name == "*")
            && !self.asked_for(ResourceType::Cluster);
        let returns = first && (had_some || !initial.is_empty() || before_clusters);
        let known = self.target.as_ref().map(|target| target.get(kind).clone());
        let taken = self.state(kind).take(kind, variant, request, room, known.as_ref())?;
        self.returning |= returns;
        if taken.rejected.is_some() {
            self.choose_again = true;
            self.keep_accepted();
        }
        let rejected = taken.rejected.map(|message| Answer::Rejected(kind, message));
        let acked = taken.acked.is_some().then_some(Answer::Acked(kind));
        match kind {
            ResourceType::Cluster => {
                self.clusters_acked(taken.acked.unwrap_or_default());
                self.cluster_names_came(initial);
                if first {
                    // It may ask late, because one of its clusters warmed. What it has not asked for it will now.
                    self.since = None;
                    // What it was given before it asked went unchecked.
                    self.started = false;
                }
            }
            ResourceType::Endpoints => {
                self.endpoints_acked(taken.acked.unwrap_or_default());
                for name in &initial {
                    // It has had endpoints: it does not warm for the first time.
                    self.warming.remove(name);
                }
                if first && self.returning && variant == Variant::Sotw {
                    // It left before the client saw any cluster of this stream, and tells only which it had.
                    self.earlier_unchecked = true;
                    self.served_before = taken.news.into_iter().filter(|_| had_some).collect();
                } else {
                    if first && self.returning {
                        self.earlier_unchecked = true;
                        self.served_before = initial.into_iter().collect();
                    }
                    // Over delta a client that comes back has a cluster of each name it asks for, and waits for the
                    // endpoints of some, whatever it says of the clusters.
                    for name in &taken.news {
                        if let Some(change) = self.state(ResourceType::Cluster).in_flight_mut(name)
                        {
                            change.taken = true;
                        }
                    }
                    if variant == Variant::Sotw && taken.repeated {
                        // Over SotW Envoy asks once more for all when one of its clusters changes.
                        self.clusters_taken();
                    }
                }
                if first && self.returning {
                    // Clusters that changed before it asked for endpoints at all.
                    self.follow_changes();
                }
            }
            ResourceType::Listener | ResourceType::Route => {}
        }
        Ok(rejected.or(acked))
    }

    /// Handles a new snapshot.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>) {
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
        self.kept.retain(|name, _| !new.contains_key(name));
        let endpoints = snapshot.get(ResourceType::Endpoints);
        self.fallback.retain(|name, _| {
            endpoints.get(name).is_some_and(|endpoints| !endpoints.has_endpoints())
        });
        // What stands in for one may be just like it, but for the endpoints.
        let same = |(name, version): &(&Arc<str>, &u64)| {
            new.get(name).is_some_and(|one| one.version == **version)
        };
        let same: Vec<_> =
            self.substitutes.iter().filter(same).map(|(name, _)| name.clone()).collect();
        for name in same {
            self.substitutes.remove(&name);
            self.state(ResourceType::Endpoints).send_again(&name);
            self.warming.insert(name);
        }
    }

    /// Returns everything that can be sent now. Call it after each event, and again at [`Stream::wake_at`].
    pub fn responses(&mut self, now: Instant) -> Vec<Response> {
        self.now = Some(now);
        let mut out = Vec::new();
        if self.target.is_none() {
            return out;
        }
        self.since.get_or_insert(now);
        self.keep_earlier_clusters();
        if self.asked_for(ResourceType::Cluster) && self.next_references().is_none() {
            self.fallback.clear();
            self.served_before.clear();
        }
        if self.returning && self.variant == Variant::Sotw && !self.is_early() {
            // One that warmed already when the stream before ended would wait for ever, and asks for nothing more.
            self.clusters_taken();
        }
        self.compare(ResourceType::Cluster);
        self.compare(ResourceType::Endpoints);
        self.switch();
        if self.started {
            self.compare(ResourceType::Listener);
            self.compare(ResourceType::Route);
        }
        self.remove_unused(now);
        for kind in ResourceType::ALL {
            out.extend(self.respond(kind, now));
        }
        let quiet = self.types.iter().all(|state| state.pending.is_none());
        if quiet {
            // With both acked nothing warms: Envoy acks no clusters before that.
            let [clusters, endpoints, ..] = &self.types;
            self.warming.retain(|name| !(clusters.has(name) && endpoints.has(name)));
        }
        if self.is_warming() {
            self.warming_since.get_or_insert(now);
        } else {
            self.warming_since = None;
        }
        let later = self.next_references().is_some() && self.get(ResourceType::Endpoints).differs();
        let done = quiet
            && !self.waiting
            && self.warming_since.is_none()
            && !later
            && !self.may_have_more();
        self.at_rest = self.target.as_ref().filter(|_| done).map(|target| target.revision);
        out
    }

    /// When to call [`Stream::responses`] again without an event.
    pub fn wake_at(&self) -> Option<Instant> {
        let due = self.kept.iter().filter_map(|(name, kept)| match kept.phase {
            Phase::UnusedSince(since) => Some(since + self.settings.grace_of(name)),
            Phase::InUse | Phase::Leaving => None,
        });
        let late = self.waits().map(|(since, _)| since + self.settings.ack_timeout);
        let late = late.filter(|at| self.now.is_none_or(|now| *at > now));
        // Until then a client that comes back is given time to ask for all it wants.
        let begun = self.since.filter(|_| self.returning).into_iter();
        let asks = begun.flat_map(|at| [at + DEFINED_WITHIN, at + ASKS_WITHIN]);
        let asks = asks.filter(|at| self.now.is_none_or(|now| *at > now));
        due.chain(late).chain(asks).min()
    }

    /// Whether the client subscribed to this type.
    pub fn asked_for(&self, kind: ResourceType) -> bool {
        self.get(kind).subscribed
    }

    fn asks_for_routes(&self) -> bool {
        self.asked_for(ResourceType::Listener) || self.asked_for(ResourceType::Route)
    }

    fn get(&self, kind: ResourceType) -> &Subscription {
        let [clusters, endpoints, listeners, routes] = &self.types;
        match kind {
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Listener => listeners,
            ResourceType::Route => routes,
        }
    }

    fn state(&mut self, kind: ResourceType) -> &mut Subscription {
        let [clusters, endpoints, listeners, routes] = &mut self.types;
        match kind {
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Listener => listeners,
            ResourceType::Route => routes,
        }
    }

    fn room(&self, kind: ResourceType) -> Room {
        let others = ResourceType::ALL
            .into_iter()
            .filter(|other| *other != kind)
            .map(|other| self.get(other).size());
        let (names, bytes) =
            others.fold((0, 0), |(names, bytes), one| (names + one.0, bytes + one.1));
        let limit = self.settings.max_names;
        Room {
            names: limit.saturating_sub(names),
            bytes: (limit * BYTES_PER_NAME).saturating_sub(bytes),
        }
    }

    /// What the client made this stream hold that no other shares, in bytes.
    pub fn held_bytes(&self) -> usize {
        let names = self.warming.iter().chain(self.substitutes.keys()).chain(self.kept.keys());
        let own: usize = names.map(subscription::name_bytes).sum();
        own + self.types.iter().map(Subscription::held_bytes).sum::<usize>()
    }

    /// What the client is to have of a type at this step.
    fn view(&self, kind: ResourceType) -> Option<View> {
        let target = self.target.as_ref()?.get(kind).clone();
        let [listeners, routes] = &self.live;
        let kept = self.kept.iter();
        Some(match kind {
            ResourceType::Cluster => {
                let staying = kept.filter(|(_, kept)| kept.phase != Phase::Leaving);
                let kept =
                    staying.map(|(name, kept)| (name.clone(), kept.cluster.clone())).collect();
                View { base: target.clone(), target, kept }
            }
            ResourceType::Endpoints => {
                let fallback = self
                    .fallback
                    .iter()
                    .map(|(name, endpoints)| (name.clone(), Some(endpoints.clone())));
                // One that the client waits with for endpoints that nothing knows is told that there are none.
                let kept = kept.filter(|(name, kept)| {
                    kept.endpoints.is_some() || self.get(kind).has_or_claims(name)
                });
                let kept = kept.map(|(name, kept)| (name.clone(), kept.endpoints.clone()));
                View { base: target.clone(), target, kept: kept.chain(fallback).collect() }
            }
            ResourceType::Listener if self.started => given(listeners, &target),
            ResourceType::Route if self.started => given(routes, &target),
            ResourceType::Listener | ResourceType::Route => return None,
        })
    }

    fn compare(&mut self, kind: ResourceType) {
        let Some(view) = self.view(kind) else { return };
        let [clusters, endpoints, listeners, routes] = &mut self.types;
        match kind {
            ResourceType::Cluster => clusters.compare(&view, Some(&plain)),
            // Of a client that does not ask for clusters it is unknown which of them wait for endpoints.
            ResourceType::Endpoints if !clusters.subscribed => endpoints.compare(&view, None),
            ResourceType::Endpoints => {
                endpoints.compare(&view, Some(&|one| version_for(clusters, one)));
            }
            ResourceType::Listener => listeners.compare(&view, Some(&plain)),
            ResourceType::Route => routes.compare(&view, Some(&plain)),
        }
    }

    fn respond(&mut self, kind: ResourceType, now: Instant) -> Option<Response> {
        if kind == ResourceType::Cluster && self.may_have_more() {
            return None;
        }
        let view = self.view(kind)?;
        let target = self.target.clone()?;
        let nonce = (self.nonce + 1).to_string();
        let (variant, early) = (self.variant, self.is_early());
        let next_references: Option<BTreeSet<Arc<str>>> = match kind {
            ResourceType::Endpoints => {
                self.next_references().map(|names| names.into_iter().map(Arc::from).collect())
            }
            _ => None,
        };
        let [clusters, endpoints, listeners, routes] = &mut self.types;
        // A cluster keeps its last endpoints while the routes that no longer lead to it wait. Newer ones it gets at once:
        // that may take long.
        let last: BTreeSet<&str> = match kind {
            ResourceType::Endpoints => self
                .leaving
                .iter()
                .map(|name| &**name)
                .filter(|name| endpoints.has_good(name) && !self.warming.contains(*name))
                .collect(),
            _ => BTreeSet::new(),
        };
        // Whether there are endpoints is read from the message, so the name is looked up first.
        let loses_last = |name: &str, form: &Resource| last.contains(name) && !form.has_endpoints();
        // Endpoints of a new cluster are due when the client has taken it: before, they are for nothing.
        let substitutes = &self.substitutes;
        let coming =
            |name: &str| clusters.in_flight(name).filter(|change| change.resource.is_some());
        let changes = |change: &Change| !is_new(change, substitutes);
        let untaken: &dyn Fn(&str) -> bool =
            &|name| coming(name).is_some_and(|change| !changes(change) && !change.taken);
        let in_change: &dyn Fn(&str) -> bool =
            &|name| coming(name).is_some_and(|change| changes(change) || change.taken);
        let for_cluster: &dyn Fn(&Resource) -> u64 = &|one| version_for(clusters, one);
        // Endpoints of a cluster that only the client's old routes lead to are due when it has the new ones: pods that go
        // in the very change that moves the traffic away from them would be missed for a moment.
        let [live_listeners, live_routes] = &self.live;
        let users = [(&*listeners, live_listeners), (&*routes, live_routes)];
        let left: &dyn Fn(&str) -> bool = &|name| {
            users.iter().any(|(state, live)| {
                let old = state.in_use().filter(|old| state.wants(&old.name) && old.leads_to(name));
                old.into_iter().any(|old| {
                    let new = live.get(&old.name).filter(|new| !state.refuses(new));
                    new.is_some_and(|new| gate::leaves(old, new, name))
                })
            })
        };
        let gated = self.settings.gated;
        // One that never had endpoints serves nobody.
        let (served_before, paused) = (&self.served_before, !clusters.subscribed);
        let served = |name: &str, has: bool, none: bool| match variant {
            // What it was given on this stream is held back only from going: the old routes may have waited for it.
            Variant::Sotw => served_before.contains(name) || (has && none),
            Variant::Delta => has,
        };
        let unknown = |name: &str, form: &Resource, has: bool| {
            let Some(next_references) = &next_references else { return false };
            let none = !form.has_endpoints();
            let goes = if next_references.contains(name) {
                // Over SotW the new routes wait for the endpoints of all that they lead to.
                early && none && variant == Variant::Delta
            } else {
                // Pods come and go: what takes requests is not held back for long.
                early || none
            };
            goes && served(name, has, none)
        };
        let not_yet: &dyn Fn(&str, Option<&Resource>, bool) -> bool = &|name, form, has| match form
        {
            // A client that waits for endpoints is given those that can take requests at once.
            Some(form) if paused => {
                gated && early && !form.has_endpoints() && unknown(name, form, has)
            }
            Some(form) => {
                untaken(name)
                    || (gated && (unknown(name, form, has) || left(name) || loses_last(name, form)))
            }
            None => gated && paused && has && early && next_references.is_some(),
        };
        let any: &dyn Fn(&str, Option<&Resource>, bool) -> bool = &|_, _, _| false;
        let never: &dyn Fn(&str) -> bool = &|_| false;
        let nothing: &dyn Fn(&str) -> Option<Arc<Resource>> = &|_| None;
        let meanwhile: &dyn Fn(&str) -> Option<Arc<Resource>> = &|name| {
            let (_, endpoints) = target.fallback(name)?;
            (gated && endpoints.has_endpoints()).then_some(endpoints)
        };
        let turn = Turn {
            variant,
            view: &view,
            nonce: &nonce,
            now,
            defer: any,
            in_change: never,
            meanwhile: nothing,
            version_of: &plain,
            tell_missing: false,
        };
        let (frame, resources) = match kind {
            ResourceType::Endpoints => {
                let tell_missing = gated && paused;
                endpoints.respond(
                    kind,
                    &Turn {
                        defer: not_yet,
                        in_change,
                        meanwhile,
                        version_of: for_cluster,
                        tell_missing,
                        ..turn
                    },
                )
            }
            ResourceType::Cluster => clusters.respond(kind, &turn),
            ResourceType::Listener => listeners.respond(kind, &turn),
            ResourceType::Route => routes.respond(kind, &turn),
        }?;
        self.nonce += 1;
        match kind {
            ResourceType::Endpoints => self.mark_warming(),
            ResourceType::Cluster => {
                self.mark_leaving();
                self.follow_changes();
            }
            _ => {}
        }
        Some(Response { kind, frame, resources })
    }
}

fn plain(resource: &Resource) -> u64 {
    resource.version
}

/// The version of endpoints: theirs and that of the cluster they were sent for. A client whose stream ends after it took
/// a changed cluster and before it got the endpoints again would otherwise come back with the version that there is,
/// get nothing, and warm for ever.
fn version_for(clusters: &Subscription, endpoints: &Resource) -> u64 {
    let cluster = clusters.form(&endpoints.name).map_or(0, |cluster| cluster.version);
    endpoints.version ^ cluster.rotate_left(32)
}

fn names(request: &Request) -> Vec<Arc<str>> {
    request.initial_versions.keys().map(|name| name.as_str().into()).collect()
}

#[cfg(test)]
mod tests;
