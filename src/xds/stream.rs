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
mod hold;
mod names;
mod request;
mod subscription;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hold::{Chosen, Fit};
use subscription::{Change, Room, Subscription, Turn, View};

pub use hold::HeldResource;
pub use request::{Answer, Request, RequestError, Variant};

use super::wire::Frame;
use crate::revision::MeshRevision;
use crate::snapshot::{Provenance, Resource, ResourceType, Resources, Snapshot};
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

/// How long a reconnecting client may take to request everything that it had. Envoy requests one type after the other
/// without waiting for responses; this allows for a client with very little CPU time.
const ASKS_WITHIN: Duration = Duration::from_secs(2);

/// How long the routes of a client that comes back wait for clusters that nothing defines: whoever writes a route before
/// its subset writes that soon. Less than [`ASKS_WITHIN`], so that it has the routes before its old endpoints go.
const DEFINED_WITHIN: Duration = Duration::from_secs(1);

/// The maximum number of clusters that a client keeps of which only the name is known; more than are ever removed while
/// weir is down.
const MAX_STAND_INS: usize = 1000;

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

/// A resource that was sent to a client.
#[derive(Clone, Debug)]
pub struct SentResource {
    /// The type.
    pub kind: ResourceType,
    /// The newest version that was sent and not rejected.
    pub resource: Arc<Resource>,
    /// Whether the client acked it.
    pub acked: bool,
}

/// The progress of a client with one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The client did not subscribe to it.
    None,
    /// The client has everything.
    Synced,
    /// An update is in flight.
    Stale,
    /// The client has everything except what it rejected.
    Rejected,
}

/// A resource that the client rejected; it keeps the last accepted version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedResource {
    /// `cds`, `eds`, `lds` or `rds`.
    pub kind: &'static str,
    /// The name.
    pub name: Arc<str>,
    /// The rejected version.
    pub version: String,
    /// The objects behind what that version changed.
    pub objects: Provenance,
    /// The client's error message.
    pub message: Arc<str>,
}

/// A cluster that is no longer wanted but may still be in use.
#[derive(Clone, Debug)]
struct Kept {
    /// The form that the client has; `None` where it is one of an earlier stream.
    cluster: Option<Arc<Resource>>,
    endpoints: Option<Arc<Resource>>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    InUse,
    UnusedSince(Instant),
    /// The client is told that it is gone; its endpoints go with it.
    Leaving,
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
    refused_one: bool,
    kept: BTreeMap<Arc<str>, Kept>,
    /// Clusters whose first form the client has and that warm until it has their endpoints.
    cold: BTreeSet<Arc<str>>,
    cold_since: Option<Instant>,
    /// The client was here before, on a stream that ended: it has clusters and routes of which nothing is known.
    returning: bool,
    /// It asks for clusters on a stream of their own. Envoy takes such clusters before they are warm.
    clusters_alone: bool,
    /// Clusters that the client may have had endpoints for before this stream, as far as it asks for them.
    served_before: BTreeSet<Arc<str>>,
    /// Whether these are yet to be looked at.
    came_with: bool,
    /// Endpoints of whole services, for subsets that lost theirs while the client was away: its old routes may lead
    /// there.
    fallback: BTreeMap<Arc<str>, Arc<Resource>>,
    /// Clusters of which the client has a form that stands in for one it came with, and that form's version.
    stand_ins: BTreeMap<Arc<str>, u64>,
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
            refused_one: false,
            kept: BTreeMap::new(),
            cold: BTreeSet::new(),
            cold_since: None,
            returning: false,
            clusters_alone: false,
            served_before: BTreeSet::new(),
            came_with: false,
            fallback: BTreeMap::new(),
            stand_ins: BTreeMap::new(),
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
            self.refused_one = true;
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
                    self.cold.remove(name);
                }
                if first && self.returning && variant == Variant::Sotw {
                    // It left before the client saw any cluster of this stream, and tells only which it had.
                    self.came_with = true;
                    self.served_before = taken.news.into_iter().filter(|_| had_some).collect();
                } else {
                    if first && self.returning {
                        self.came_with = true;
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
            self.stand_ins.iter().filter(same).map(|(name, _)| name.clone()).collect();
        for name in same {
            self.stand_ins.remove(&name);
            self.state(ResourceType::Endpoints).send_again(&name);
            self.cold.insert(name);
        }
    }

    /// Keeps a cluster that is no longer to be, in the form that the client has; where that is unknown, in the form that
    /// was to be.
    fn keep(&mut self, name: &Arc<str>, last: &Arc<Resource>, endpoints: Option<&Arc<Resource>>) {
        let [clusters, assignments, ..] = &self.types;
        let endpoints = assignments.form(name).or(endpoints).cloned();
        let cluster = if clusters.wildcard {
            let Some(cluster) = clusters.form(name).cloned() else {
                return;
            };
            Some(cluster)
        } else if !clusters.subscribed && assignments.wants(name) {
            // It has a cluster of that name, and will ask for clusters. Over SotW, what it is not sent is gone then.
            (self.variant == Variant::Sotw).then(|| last.clone())
        } else {
            return;
        };
        if let Some(cluster) = cluster.as_ref().filter(|_| !clusters.subscribed) {
            self.stand_ins.insert(name.clone(), cluster.version);
        }
        self.kept.insert(name.clone(), Kept { cluster, endpoints, phase: Phase::InUse });
    }

    /// Clusters that a client of the delta variant came back with: those that never had endpoints warm.
    fn cluster_names_came(&mut self, names: Vec<Arc<str>>) {
        let [_, endpoints, ..] = &self.types;
        let cold = |name: &Arc<str>| {
            !endpoints.subscribed || (endpoints.wants(name) && !endpoints.has_or_claims(name))
        };
        self.cold.extend(names.into_iter().filter(cold));
    }

    /// Returns everything that can be sent now. Call it after each event, and again at [`Stream::wake_at`].
    pub fn responses(&mut self, now: Instant) -> Vec<Response> {
        self.now = Some(now);
        let mut out = Vec::new();
        if self.target.is_none() {
            return out;
        }
        self.since.get_or_insert(now);
        self.keep_what_it_came_with();
        if self.asked_for(ResourceType::Cluster) && self.led_to().is_none() {
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
        self.let_go(now);
        for kind in ResourceType::ALL {
            out.extend(self.respond(kind, now));
        }
        let quiet = self.types.iter().all(|state| state.pending.is_none());
        if quiet {
            // With both acked nothing warms: Envoy acks no clusters before that.
            let [clusters, endpoints, ..] = &self.types;
            self.cold.retain(|name| !(clusters.has(name) && endpoints.has(name)));
        }
        if self.is_warming() {
            self.cold_since.get_or_insert(now);
        } else {
            self.cold_since = None;
        }
        let later = self.led_to().is_some() && self.get(ResourceType::Endpoints).differs();
        let done =
            quiet && !self.waiting && self.cold_since.is_none() && !later && !self.may_have_more();
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

    /// The mesh revision that the client has ACKed completely, as far as it subscribed; `None` while anything is in
    /// flight, held back or rejected.
    pub fn settled(&self) -> Option<MeshRevision> {
        let all = self.held.iter().all(Vec::is_empty)
            && self.types.iter().all(|state| state.rejected().is_empty());
        self.reached().filter(|_| all)
    }

    /// The mesh revision that the client has ACKed except for held-back and rejected resources; `None` while anything
    /// is in flight.
    pub fn reached(&self) -> Option<MeshRevision> {
        self.at_rest
    }

    /// The resources that are held back because they reference an undefined cluster.
    pub fn held(&self) -> Vec<HeldResource> {
        self.held.concat()
    }

    /// Clusters that are kept because they are still referenced although they are no longer defined.
    pub fn kept(&self) -> Vec<Arc<str>> {
        let used = self
            .kept
            .iter()
            .filter(|(_, kept)| kept.phase == Phase::InUse && kept.cluster.is_some());
        used.map(|(name, _)| name.clone()).collect()
    }

    /// The resources that the client rejected and has not received in another version since.
    pub fn rejected(&self) -> Vec<RejectedResource> {
        let all = ResourceType::ALL.into_iter().flat_map(|kind| {
            self.get(kind).rejected().iter().map(move |(name, rejection)| RejectedResource {
                kind: kind.short_name(),
                name: name.clone(),
                version: super::wire::version_text(rejection.version),
                objects: rejection.objects.clone(),
                message: rejection.message.clone(),
            })
        });
        all.collect()
    }

    /// The resources that were sent to the client and that it has or is about to have.
    pub fn inventory(&self) -> Vec<SentResource> {
        let all = ResourceType::ALL.into_iter().flat_map(|kind| {
            self.get(kind).forms().map(move |(resource, acked)| SentResource {
                kind,
                resource: resource.clone(),
                acked,
            })
        });
        all.collect()
    }

    /// The progress of the client with each type, in the order of [`ResourceType::ALL`].
    pub fn progress(&self) -> [Progress; 4] {
        ResourceType::ALL.map(|kind| {
            let state = self.get(kind);
            let behind =
                matches!(kind, ResourceType::Listener | ResourceType::Route) && self.waiting;
            if kind == ResourceType::Cluster && self.awaits_clusters() && self.asks_for_routes() {
                Progress::Stale
            } else if !state.subscribed {
                Progress::None
            } else if state.pending.is_some() || behind || self.target.is_none() {
                Progress::Stale
            } else if state.rejected().is_empty() {
                Progress::Synced
            } else {
                Progress::Rejected
            }
        })
    }

    /// Why the client is lagging at this time; `None` if it is not.
    pub fn lag(&self, now: Instant) -> Option<String> {
        let late = self.waits().filter(|(since, _)| *since + self.settings.ack_timeout <= now);
        late.min_by_key(|(since, _)| *since).map(|(_, reason)| reason)
    }

    /// Whether the client subscribed to this type.
    pub fn asked_for(&self, kind: ResourceType) -> bool {
        self.get(kind).subscribed
    }

    /// What the client is waited for, and since when.
    fn waits(&self) -> impl Iterator<Item = (Instant, String)> {
        let answers = ResourceType::ALL.into_iter().filter_map(|kind| {
            let pending = self.get(kind).pending.as_ref()?;
            Some((
                pending.since,
                format!(
                    "no answer to the {} response with nonce {}",
                    kind.short_name(),
                    pending.nonce
                ),
            ))
        });
        let endpoints = self.cold_since.and_then(|since| {
            let asked = |name: &&Arc<str>| self.get(ResourceType::Endpoints).wants(name);
            let name =
                self.cold.iter().find(|name| !asked(name) && self.fit(name) == Fit::Making)?;
            Some((since, format!("no request for the endpoints of cluster {name}")))
        });
        let clusters = self.since.filter(|_| self.awaits_clusters() && self.asks_for_routes());
        let clusters = clusters.map(|since| {
            (since, "no request for clusters: one that the client has warms".to_owned())
        });
        answers.chain(endpoints).chain(clusters)
    }

    fn asks_for_routes(&self) -> bool {
        self.asked_for(ResourceType::Listener) || self.asked_for(ResourceType::Route)
    }

    /// Whether a client that came back is about to tell which clusters it has: it asks for one type after the other.
    fn may_have_more(&self) -> bool {
        self.settings.gated
            && self.returning
            && self.variant == Variant::Sotw
            && self.get(ResourceType::Cluster).wildcard
            && !self.asked_for(ResourceType::Endpoints)
            && self.is_early()
    }

    /// Whether the client may not yet have asked for all it wants.
    fn is_early(&self) -> bool {
        self.is_within(ASKS_WITHIN)
    }

    /// Whether no more time has passed since the client was here.
    fn is_within(&self, time: Duration) -> bool {
        self.since.zip(self.now).is_none_or(|(since, now)| now < since + time)
    }

    /// Keeps the clusters that a client came back with and that are not to be, with endpoints: its old routes may lead
    /// there. The same for those that lost all their endpoints meanwhile, where it waits for some.
    fn keep_what_it_came_with(&mut self) {
        let Some(target) = self.target.clone() else {
            return;
        };
        if !std::mem::take(&mut self.came_with) || !self.settings.gated {
            return;
        }
        let [clusters, ..] = &self.types;
        let paused = !clusters.subscribed;
        if !clusters.wildcard && !paused {
            return;
        }
        let led_to: BTreeSet<Arc<str>> =
            self.led_to().unwrap_or_default().into_iter().map(Arc::from).collect();
        let mut names = std::mem::take(&mut self.served_before);
        for name in &names {
            let known = target.get(ResourceType::Cluster).contains_key(name);
            let endpoints = target.get(ResourceType::Endpoints).get(name);
            if known
                && (led_to.contains(name)
                    || endpoints.is_none_or(|endpoints| endpoints.has_endpoints()))
            {
                continue;
            }
            if !known && self.stand_ins.len() >= MAX_STAND_INS {
                continue;
            }
            let Some((cluster, endpoints)) = target.fallback(name) else {
                continue;
            };
            if known {
                if endpoints.has_endpoints() {
                    self.fallback.insert(name.clone(), endpoints);
                }
            } else if self.variant == Variant::Sotw {
                // What is not sent is gone.
                self.stand_ins.insert(name.clone(), cluster.version);
                let kept = Kept {
                    cluster: Some(cluster),
                    endpoints: Some(endpoints),
                    phase: Phase::InUse,
                };
                self.kept.entry(name.clone()).or_insert(kept);
            } else if paused {
                let kept = Kept { cluster: None, endpoints: Some(endpoints), phase: Phase::InUse };
                self.kept.entry(name.clone()).or_insert(kept);
            }
        }
        // What nothing knows takes no room. What another stands in for may come again before the routes are known.
        names.retain(|name| {
            target.get(ResourceType::Endpoints).contains_key(name)
                || self.stand_ins.contains_key(name)
        });
        self.served_before = names;
    }

    /// Whether the client is to ask for clusters before it gets routes. One that asks for endpoints has clusters, and one
    /// that comes back may be about to ask for either.
    fn awaits_clusters(&self) -> bool {
        let [clusters, endpoints, ..] = &self.types;
        let asks = endpoints.subscribed || (self.returning && self.is_early());
        self.settings.gated && !clusters.subscribed && asks
    }

    /// Whether every listener and route that may be in use at the client is known.
    fn knows_routes(&self) -> bool {
        let [.., listeners, routes] = &self.types;
        let users = [listeners, routes];
        // It may be about to ask for the other.
        let asked = users.iter().all(|state| state.subscribed) || !self.is_early();
        let known = || users.iter().all(|state| !state.subscribed || state.knows_all());
        self.routes_known || !self.returning || (self.started && asked && known())
    }

    /// What the new listeners and routes of a client lead to that came back with others, of which nothing is known yet;
    /// `None` where all are known, or will not be. The old ones may lead to anything else: its endpoints are left as
    /// they are until then, because pods that went in the change that moves the traffic away would be missed for a
    /// moment.
    fn led_to(&self) -> Option<BTreeSet<&str>> {
        let target = self.target.as_ref()?;
        let [clusters, _, listeners, routes] = &self.types;
        let comes = |state: &Subscription, kind| {
            if state.subscribed { state.expects(target.get(kind)) } else { self.is_early() }
        };
        let will_be_known = self.waiting
            || comes(listeners, ResourceType::Listener)
            || comes(routes, ResourceType::Route);
        let takes_all = clusters.wildcard || self.awaits_clusters();
        if !self.settings.gated || !takes_all || self.knows_routes() || !will_be_known {
            return None;
        }
        let all = [ResourceType::Listener, ResourceType::Route]
            .into_iter()
            .flat_map(|kind| target.get(kind).values());
        Some(all.flat_map(|one| one.clusters()).map(|name| &**name).collect())
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
        let names = self.cold.iter().chain(self.stand_ins.keys()).chain(self.kept.keys());
        let own: usize = names.map(|name| subscription::name_bytes(name)).sum();
        own + self.types.iter().map(Subscription::held_bytes).sum::<usize>()
    }

    /// Clusters were taken: from here on they warm until their endpoints come.
    fn clusters_acked(&mut self, changes: Vec<Change>) {
        for change in changes {
            let name = &change.name;
            let Some(resource) = &change.resource else {
                self.cold.remove(name);
                self.stand_ins.remove(name);
                continue;
            };
            let stood_in =
                self.stand_ins.get(name).is_some_and(|version| *version != resource.version);
            if stood_in {
                self.stand_ins.remove(name);
            }
            if ((change.new && !change.warms) || stood_in) && self.needs_endpoints(name) {
                self.cold.insert(name.clone());
            }
            if stood_in || (change.new && !change.taken) {
                self.state(ResourceType::Endpoints).send_again(name);
            }
        }
    }

    /// The client has taken the clusters that are in flight, and waits for endpoints of some.
    fn clusters_taken(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in clusters.pending.iter_mut().flat_map(|pending| &mut pending.changes) {
            if !std::mem::replace(&mut change.taken, true) {
                endpoints.send_again(&change.name);
            }
        }
    }

    /// What is kept was about to come in a form that the client refused: the one that it has is kept instead.
    fn keep_accepted(&mut self) {
        let [clusters, endpoints, ..] = &self.types;
        for (name, kept) in &mut self.kept {
            kept.cluster = clusters.form(name).or(kept.cluster.as_ref()).cloned();
            kept.endpoints = endpoints.form(name).or(kept.endpoints.as_ref()).cloned();
        }
    }

    fn endpoints_acked(&mut self, changes: Vec<Change>) {
        for change in changes.iter().filter(|change| change.warms && change.resource.is_some()) {
            // It left the cluster before these endpoints came: they are not for one of the same name that came later.
            if !self.get(ResourceType::Endpoints).wants(&change.name) {
                continue;
            }
            if self.get(ResourceType::Cluster).has(&change.name) {
                self.cold.remove(&change.name);
            } else if let Some(cluster) =
                self.state(ResourceType::Cluster).in_flight_mut(&change.name)
            {
                cluster.warms = true;
            }
        }
    }

    /// The endpoints that the client is to have for a cluster.
    fn endpoints(&self, cluster: &str) -> Option<&Arc<Resource>> {
        let wanted = self
            .target
            .as_ref()
            .and_then(|target| target.get(ResourceType::Endpoints).get(cluster));
        wanted.or_else(|| self.kept.get(cluster)?.endpoints.as_ref())
    }

    fn needs_endpoints(&self, cluster: &str) -> bool {
        self.endpoints(cluster).is_some()
    }

    /// Whether the client refused the endpoints of a cluster and has no others.
    fn has_none(&self, cluster: &str) -> bool {
        let endpoints = self.get(ResourceType::Endpoints);
        self.endpoints(cluster)
            .is_some_and(|one| endpoints.refuses(one) && !endpoints.has_good(cluster))
    }

    fn is_warming(&self) -> bool {
        self.cold.iter().any(|name| self.fit(name) == Fit::Making)
    }

    /// What a cluster is for this client now.
    fn fit(&self, cluster: &str) -> Fit {
        match self.fit_now(cluster) {
            // Nothing is known of the routes that such a client has, and whoever writes a route before its subset may be
            // about to write that.
            Fit::Missing
                if self.returning && !self.knows_routes() && self.is_within(DEFINED_WITHIN) =>
            {
                Fit::Making
            }
            fit => fit,
        }
    }

    fn fit_now(&self, cluster: &str) -> Fit {
        let clusters = self.get(ResourceType::Cluster);
        // A client that names its clusters, or has other ways of getting them, takes what its routes lead to by itself.
        let by_itself = if clusters.subscribed {
            !clusters.wildcard
        } else {
            !self.asked_for(ResourceType::Endpoints)
        };
        if by_itself || !self.settings.gated {
            return Fit::Ready;
        }
        let wanted =
            self.target.as_ref().and_then(|target| target.get(ResourceType::Cluster).get(cluster));
        let leaves = clusters.in_flight(cluster).is_some_and(|change| change.resource.is_none());
        // Whether one that another stands in for takes requests is not known.
        if !clusters.has(cluster) || leaves || self.stand_ins.contains_key(cluster) {
            return match wanted {
                Some(wanted) if !clusters.refuses(wanted) => Fit::Making,
                _ => Fit::Missing,
            };
        }
        let stays = self.kept.get(cluster).is_some_and(|kept| kept.phase != Phase::Leaving);
        if wanted.is_none() && !stays {
            return Fit::Missing;
        }
        if self.has_none(cluster) {
            return Fit::Missing;
        }
        let [_, endpoints, ..] = &self.types;
        let asks =
            endpoints.subscribed || self.clusters_alone || (self.returning && self.is_early());
        let warms = self.cold.contains(cluster) && asks && self.needs_endpoints(cluster);
        if warms { Fit::Making } else { Fit::Ready }
    }

    /// Gives the client those listeners and virtual hosts of which all clusters are made.
    fn switch(&mut self) {
        self.leaving.clear();
        let Some(target) = self.target.clone() else {
            return;
        };
        // A client's first listeners and routes come only when it has its first clusters.
        if !self.started && self.awaits_clusters() {
            self.waiting = self.asks_for_routes();
            return;
        }
        if !self.started {
            let led_to = self.led_to();
            let needed = |name: &str| led_to.as_ref().is_none_or(|led_to| led_to.contains(name));
            let mut clusters = target.get(ResourceType::Cluster).keys().filter(|name| needed(name));
            self.waiting = clusters.any(|name| self.fit(name) == Fit::Making);
            self.started = self.asks_for_routes() && !self.waiting;
        }
        if !self.started {
            return;
        }
        self.waiting = false;
        let again = std::mem::take(&mut self.refused_one);
        for kind in [ResourceType::Listener, ResourceType::Route] {
            let wanted = target.get(kind);
            let live = match &self.live {
                [listeners, _] if kind == ResourceType::Listener => listeners,
                [_, routes] => routes,
            };
            let chosen = if live.ptr_eq(wanted) && !again {
                Chosen::default()
            } else {
                let has = |name: &str| self.get(kind).form(name);
                hold::choose(kind, wanted, has, |cluster| self.fit(cluster))
            };
            self.waiting |= chosen.waiting && self.get(kind).subscribed;
            self.leaving.extend(chosen.leaving);
            let live = chosen.resources.unwrap_or_else(|| wanted.clone());
            let ([listeners, routes], [held_listeners, held_routes]) =
                (&mut self.live, &mut self.held);
            match kind {
                ResourceType::Listener => (*listeners, *held_listeners) = (live, chosen.held),
                _ => (*routes, *held_routes) = (live, chosen.held),
            }
        }
    }

    /// Lets clusters go that nothing leads to any more and whose grace is over.
    fn let_go(&mut self, now: Instant) {
        let strangers: Vec<_> = self.get(ResourceType::Cluster).strangers().cloned().collect();
        if let Some(target) = &self.target {
            for name in strangers
                .into_iter()
                .filter(|name| !target.get(ResourceType::Cluster).contains_key(name))
            {
                self.kept.entry(name).or_insert(Kept {
                    cluster: None,
                    endpoints: None,
                    phase: Phase::InUse,
                });
            }
        }
        if self.kept.is_empty() {
            return;
        }
        let [clusters, _, listeners, routes] = &self.types;
        let users = [listeners, routes];
        // Not for good before both were asked for: a client that comes back asks for one after the other.
        let known = self.knows_routes();
        self.routes_known =
            known && (!self.returning || users.iter().all(|state| state.subscribed));
        let mut used: BTreeSet<&str> = BTreeSet::new();
        for (state, live) in users.into_iter().zip(&self.live).filter(|(state, _)| state.subscribed)
        {
            let coming = live.values().filter(|one| state.wants(&one.name) && !state.refuses(one));
            for resource in state.in_use().chain(coming) {
                used.extend(
                    self.kept.keys().map(|name| &**name).filter(|name| resource.leads_to(name)),
                );
            }
        }
        let mut over = Vec::new();
        for (name, kept) in &self.kept {
            let told = !clusters.has(name)
                || clusters.in_flight(name).is_some_and(|change| change.resource.is_none());
            let phase = match kept.phase {
                Phase::Leaving if told => Phase::Leaving,
                _ if !known || used.contains(&**name) => Phase::InUse,
                Phase::InUse => Phase::UnusedSince(now),
                phase => phase,
            };
            let due = matches!(phase, Phase::UnusedSince(since) if since + self.settings.grace_of(name) <= now);
            over.push(if due { Phase::Leaving } else { phase });
        }
        for (kept, phase) in self.kept.values_mut().zip(over) {
            kept.phase = phase;
        }
        self.kept.retain(|name, kept| {
            kept.phase != Phase::Leaving || clusters.has(name) || clusters.in_flight(name).is_some()
        });
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
        let led_to: Option<BTreeSet<Arc<str>>> = match kind {
            ResourceType::Endpoints => {
                self.led_to().map(|names| names.into_iter().map(Arc::from).collect())
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
                .filter(|name| endpoints.has_good(name) && !self.cold.contains(*name))
                .collect(),
            _ => BTreeSet::new(),
        };
        // Whether there are endpoints is read from the message, so the name is looked up first.
        let loses_last = |name: &str, form: &Resource| last.contains(name) && !form.has_endpoints();
        // Endpoints of a new cluster are due when the client has taken it: before, they are for nothing.
        let stand_ins = &self.stand_ins;
        let coming =
            |name: &str| clusters.in_flight(name).filter(|change| change.resource.is_some());
        let changes = |change: &Change| !is_new(change, stand_ins);
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
                    new.is_some_and(|new| hold::leaves(old, new, name))
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
            let Some(led_to) = &led_to else { return false };
            let none = !form.has_endpoints();
            let goes = if led_to.contains(name) {
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
            None => gated && paused && has && early && led_to.is_some(),
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

    /// Of endpoints just sent: whether the client has the cluster, so that they end its warming.
    fn mark_warming(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in endpoints.pending.iter_mut().flat_map(|pending| &mut pending.changes) {
            let coming = clusters.in_flight(&change.name);
            let (taken, leaves) = coming
                .map_or((false, false), |cluster| (cluster.taken, cluster.resource.is_none()));
            // One that asks for no clusters has those that it asks for the endpoints of.
            change.warms = (clusters.has(&change.name) && !leaves) || taken || !clusters.subscribed;
        }
    }

    /// Of clusters just changed: their endpoints are due again.
    fn follow_changes(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in clusters.pending.iter().flat_map(|pending| &pending.changes) {
            if change.resource.is_some() && !is_new(change, &self.stand_ins) {
                endpoints.send_again(&change.name);
            }
        }
    }

    /// Of clusters just dropped: endpoints that are under way are not for one of the same name that may come later.
    fn mark_leaving(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in endpoints.pending.iter_mut().flat_map(|pending| &mut pending.changes) {
            if clusters.in_flight(&change.name).is_some_and(|cluster| cluster.resource.is_none()) {
                change.warms = false;
            }
        }
    }
}

/// Whether the client has no cluster of this name. It has one where another stands in for it.
fn is_new(change: &Change, stand_ins: &BTreeMap<Arc<str>, u64>) -> bool {
    change.new && !stand_ins.contains_key(&change.name)
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

/// The forms of `live`. What is to be there but waits is not to be told as missing.
fn given(live: &Resources, target: &Resources) -> View {
    let mut kept = BTreeMap::new();
    if !live.ptr_eq(target) {
        let waits = target.keys().filter(|name| !live.contains_key(name));
        kept.extend(waits.map(|name| (name.clone(), None)));
    }
    View { base: live.clone(), target: target.clone(), kept }
}

fn names(request: &Request) -> Vec<Arc<str>> {
    request.initial_versions.keys().map(|name| name.as_str().into()).collect()
}

#[cfg(test)]
mod tests;
