//! The state of each cluster at one client, and every transition between those states.
//!
//! A client may have very many clusters, and most are at rest. Only the others have an entry here; whether the client
//! has a cluster at all is known from what it ACKed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::Stream;
use super::change::Change;
use super::gate::ClusterReadiness;
use super::in_order::in_order;
use super::names::name_bytes;
use crate::snapshot::{Resource, ResourceType};

/// The state of a cluster at this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClusterState {
    /// The client gets the cluster on a path that this stream does not control.
    Unmanaged,
    /// The client does not have it, or the version it has is not the one that takes requests.
    Absent,
    /// The client has it and waits for its endpoints.
    Warming,
    /// The client has it, but rejected its only endpoints.
    WithoutEndpoints,
    /// The client has it and routes requests to it.
    Ready,
    /// The mesh no longer defines it. The client keeps it while its routes may reference it.
    Draining,
    /// Its removal was sent to the client, or is about to be sent.
    Removing,
}

/// A cluster that the client has and that does not take requests yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsettled {
    /// The client ACKed its first version and waits for its endpoints.
    Warming,
    /// The client resumed with a cluster of this name. The version sent here replaced it, and whether it takes requests
    /// is unknown.
    Substituted { version: u64 },
}

/// A cluster that the mesh no longer defines but that may still be in use.
#[derive(Clone, Debug)]
pub(super) struct Draining {
    /// The version that the client has; `None` if it is from an earlier stream.
    pub cluster: Option<Arc<Resource>>,
    /// The endpoints of that version.
    pub endpoints: Option<Arc<Resource>>,
    /// How far its removal is.
    pub phase: Phase,
}

impl Draining {
    /// A cluster that routes may still reference.
    pub(crate) fn new(cluster: Option<Arc<Resource>>, endpoints: Option<Arc<Resource>>) -> Self {
        Self { cluster, endpoints, phase: Phase::InUse }
    }

    /// The removal of the cluster with this name advances, or is called off.
    pub(crate) fn enter(&mut self, name: &str, phase: Phase) {
        if phase != self.phase {
            let (from, to) = (self.phase.name(), phase.name());
            tracing::debug!(step = "break", resource = %name, from, to, "a cluster entered a phase");
            self.phase = phase;
        }
    }
}

/// How far the removal of a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Something at the client may reference it.
    InUse,
    /// Nothing has referenced it since then; its grace period runs.
    UnusedSince(Instant),
    /// Its removal is sent to the client; its endpoints go with it.
    Removing,
}

impl Phase {
    /// The name, for the log.
    fn name(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::UnusedSince(_) => "unused",
            Self::Removing => "removing",
        }
    }
}

/// The clusters of one client that are not at rest.
#[derive(Debug, Default)]
pub(super) struct ClusterStates {
    unsettled: BTreeMap<Arc<str>, Unsettled>,
    draining: BTreeMap<Arc<str>, Draining>,
}

impl ClusterStates {
    /// Names of which at least one in so many has an entry here are looked up by walking over all entries.
    const MANY: usize = 8;

    /// The client waits for the endpoints of a cluster. A substitute remains a substitute until another version
    /// replaces it.
    pub(crate) fn warm(&mut self, name: Arc<str>) {
        self.unsettled.entry(name).or_insert_with_key(|name| {
            tracing::trace!(step = "make", resource = %name, "a cluster waits for its endpoints");
            Unsettled::Warming
        });
    }

    /// Like [`ClusterStates::warm`], for clusters in about the order of their names.
    pub(crate) fn warm_all(&mut self, names: Vec<Arc<str>>) {
        if self.unsettled.is_empty() {
            tracing::trace!(
                step = "make",
                count = names.len(),
                "clusters wait for their endpoints"
            );
            // Made at once, a map needs hardly any comparison.
            self.unsettled = names.into_iter().map(|name| (name, Unsettled::Warming)).collect();
        } else {
            names.into_iter().for_each(|name| self.warm(name));
        }
    }

    /// The endpoints arrived, or were there before.
    pub(crate) fn warmed(&mut self, name: &str) {
        if self.is_warming(name) {
            tracing::trace!(step = "make", resource = %name, "a cluster has its endpoints");
            self.unsettled.remove(name);
        }
    }

    /// Like [`ClusterStates::warmed`], for clusters in about the order of their names.
    pub(crate) fn all_warmed(&mut self, names: &[&Arc<str>]) {
        if names.len() * Self::MANY < self.unsettled.len() {
            names.iter().for_each(|name| self.warmed(name));
            return;
        }
        tracing::trace!(step = "make", count = names.len(), "clusters have their endpoints");
        let mut unsettled = in_order(std::mem::take(&mut self.unsettled));
        let mut others = Vec::new();
        for name in names {
            let state = unsettled.take(name).filter(|state| *state != Unsettled::Warming);
            others.extend(state.map(|state| ((*name).clone(), state)));
        }
        self.unsettled = unsettled.rest().chain(others).collect();
    }

    /// Settles the warming clusters for which `has_all` holds: the client ACKed the cluster and its endpoints.
    pub(crate) fn settle(&mut self, has_all: impl Fn(&str) -> bool) {
        self.unsettled.retain(|name, state| {
            let settles = *state == Unsettled::Warming && has_all(name);
            if settles {
                tracing::trace!(step = "make", resource = %name, "a cluster has its endpoints");
            }
            !settles
        });
    }

    /// The version sent under this name replaces one of an earlier stream.
    pub(crate) fn substitute(&mut self, name: Arc<str>, version: u64) {
        tracing::debug!(step = "make", resource = %name, "a cluster substitutes for an unknown one");
        self.unsettled.insert(name, Unsettled::Substituted { version });
    }

    /// The client ACKed `version`. Returns whether that ended the use of a substitute.
    pub(crate) fn replaced(&mut self, name: &str, version: u64) -> bool {
        let replaced = matches!(
            self.unsettled.get(name),
            Some(Unsettled::Substituted { version: substitute }) if *substitute != version
        );
        if replaced {
            tracing::debug!(step = "make", resource = %name, "a cluster replaced its substitute");
            self.unsettled.remove(name);
        }
        replaced
    }

    /// The mesh defines `clusters`. Substitutes that are equal to what it defines warm from now on; returns their names.
    pub(crate) fn confirm_substitutes(
        &mut self,
        is_defined: impl Fn(&str, u64) -> bool,
    ) -> Vec<Arc<str>> {
        let mut confirmed = Vec::new();
        for (name, state) in &mut self.unsettled {
            if let Unsettled::Substituted { version } = *state
                && is_defined(name, version)
            {
                tracing::debug!(step = "make", resource = %name, "a substitute is defined again");
                *state = Unsettled::Warming;
                confirmed.push(name.clone());
            }
        }
        confirmed
    }

    /// The client ACKed that the cluster is gone.
    pub(crate) fn removed(&mut self, name: &str) {
        tracing::debug!(step = "break", resource = %name, "a cluster is gone");
        self.unsettled.remove(name);
    }

    /// The mesh no longer defines a cluster that the client may use.
    pub(crate) fn drain(&mut self, name: Arc<str>, cluster: Draining) {
        tracing::debug!(step = "break", resource = %name, "a cluster is no longer defined");
        self.draining.insert(name, cluster);
    }

    /// Like [`ClusterStates::drain`], unless the cluster drains already.
    pub(crate) fn drain_once(&mut self, name: Arc<str>, cluster: Draining) {
        self.draining.entry(name).or_insert_with_key(|name| {
            tracing::debug!(step = "break", resource = %name, "a cluster is not defined");
            cluster
        });
    }

    /// Stops draining the clusters for which `stays` is false: they are defined again, or the client dropped them.
    pub(crate) fn retain_draining(&mut self, stays: impl Fn(&str, &Draining) -> bool) {
        self.draining.retain(|name, cluster| {
            let stays = stays(name, cluster);
            if !stays {
                tracing::debug!(step = "break", resource = %name, "a cluster no longer drains");
            }
            stays
        });
    }

    pub(crate) fn is_warming(&self, name: &str) -> bool {
        self.unsettled.get(name) == Some(&Unsettled::Warming)
    }

    pub(crate) fn is_substituted(&self, name: &str) -> bool {
        matches!(self.unsettled.get(name), Some(Unsettled::Substituted { .. }))
    }

    /// The clusters that wait for endpoints.
    pub(crate) fn warming(&self) -> impl Iterator<Item = &Arc<str>> {
        let warming = self.unsettled.iter().filter(|(_, state)| **state == Unsettled::Warming);
        warming.map(|(name, _)| name)
    }

    pub(crate) fn substituted_count(&self) -> usize {
        self.unsettled.len() - self.warming().count()
    }

    /// Whether all clusters are at rest.
    pub(crate) fn are_settled(&self) -> bool {
        self.unsettled.is_empty() && self.draining.is_empty()
    }

    /// Whether all clusters are at rest, or wait for endpoints.
    pub(crate) fn are_settled_or_warm(&self) -> bool {
        self.draining.is_empty()
            && self.unsettled.values().all(|state| *state == Unsettled::Warming)
    }

    pub(crate) fn draining(&self) -> &BTreeMap<Arc<str>, Draining> {
        &self.draining
    }

    pub(crate) fn draining_mut(&mut self) -> impl Iterator<Item = (&Arc<str>, &mut Draining)> {
        self.draining.iter_mut()
    }

    /// The memory that no other stream shares, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.unsettled.keys().chain(self.draining.keys()).map(name_bytes).sum()
    }
}

impl Change {
    /// Whether the client has no cluster of this name. A client with a substitute has one.
    pub(super) fn is_new_cluster(&self, clusters: &ClusterStates) -> bool {
        self.new && !clusters.is_substituted(&self.name)
    }
}

impl Stream {
    /// The state of a cluster at this client now.
    pub(super) fn cluster_state(&self, cluster: &str) -> ClusterState {
        let clusters = self.get(ResourceType::Cluster);
        // A client that subscribes to clusters by name, or gets them elsewhere, fetches what its routes reference by
        // itself.
        let unmanaged = if clusters.subscribed {
            !clusters.wildcard
        } else {
            !self.asked_for(ResourceType::Endpoints)
        };
        if unmanaged || !self.settings.gated {
            return ClusterState::Unmanaged;
        }
        if clusters.in_flight(cluster).is_some_and(|change| change.resource.is_none()) {
            return ClusterState::Removing;
        }
        if !clusters.has(cluster) || self.clusters.is_substituted(cluster) {
            return ClusterState::Absent;
        }
        let draining = self.clusters.draining().get(cluster);
        if self.wanted_cluster(cluster).is_none()
            && draining.is_none_or(|draining| draining.phase == Phase::Removing)
        {
            return ClusterState::Removing;
        }
        if self.rejected_all_endpoints(cluster) {
            return ClusterState::WithoutEndpoints;
        }
        if self.asks_for_endpoints()
            && self.clusters.is_warming(cluster)
            && self.needs_endpoints(cluster)
        {
            return ClusterState::Warming;
        }
        if draining.is_some() { ClusterState::Draining } else { ClusterState::Ready }
    }

    /// Whether the client asks for endpoints, or is about to.
    fn asks_for_endpoints(&self) -> bool {
        self.asked_for(ResourceType::Endpoints)
            || self.get(ResourceType::Cluster).alone
            || (self.session.is_returning() && self.is_early())
    }

    /// Whether the client has every cluster of the target and asks for no endpoints, so that it waits for none: a cheap
    /// check, `false` if that is unknown.
    pub(super) fn waits_for_no_endpoints(&self) -> bool {
        let [clusters, endpoints, ..] = &self.types;
        let target = self.target.as_ref().map(|target| target.get(ResourceType::Cluster));
        !self.session.is_returning()
            && !self.asks_for_endpoints()
            && clusters.wildcard
            && target.is_some_and(|target| clusters.has_exactly(target))
            && self.clusters.are_settled_or_warm()
            && !endpoints.has_rejections()
    }

    /// Whether every cluster of the target takes requests at the client: a cheap check, `false` if that is unknown.
    pub(super) fn has_all_clusters(&self) -> bool {
        let [clusters, endpoints, ..] = &self.types;
        let target = self.target.as_ref().map(|target| target.get(ResourceType::Cluster));
        clusters.wildcard
            && target.is_some_and(|target| clusters.has_exactly(target))
            && self.clusters.are_settled()
            && !endpoints.has_rejections()
    }

    /// Whether no cluster is [`ClusterReadiness::Making`]: a cheap check, `false` if that is unknown.
    pub(super) fn makes_no_clusters(&self) -> bool {
        let [_, endpoints, ..] = &self.types;
        let target = self.target.as_ref().map(|target| target.get(ResourceType::Endpoints));
        self.has_all_clusters()
            && target.is_some_and(|target| endpoints.has_exactly(target))
            && !self.may_be_defined_soon()
    }

    /// Whether a route may reference a cluster now, soon, or not before the mesh changes.
    pub(super) fn readiness(&self, cluster: &str) -> ClusterReadiness {
        if self.has_all_clusters() && self.wanted_cluster(cluster).is_some() {
            return match self.awaits_first_endpoint(cluster) {
                true => ClusterReadiness::Making,
                false => ClusterReadiness::Ready,
            };
        }
        match self.cluster_state(cluster) {
            ClusterState::Ready | ClusterState::Draining if self.awaits_first_endpoint(cluster) => {
                ClusterReadiness::Making
            }
            ClusterState::Unmanaged | ClusterState::Ready | ClusterState::Draining => {
                ClusterReadiness::Ready
            }
            ClusterState::Warming => ClusterReadiness::Making,
            ClusterState::Absent | ClusterState::Removing if self.will_be_sent(cluster) => {
                ClusterReadiness::Making
            }
            // The routes of such a client are unknown, and a user who writes a route before its subset may be about to
            // write the subset.
            _ if self.may_be_defined_soon() => ClusterReadiness::Making,
            ClusterState::Absent | ClusterState::Removing | ClusterState::WithoutEndpoints => {
                ClusterReadiness::Missing
            }
        }
    }

    /// Whether the client has no endpoint of a cluster that takes requests, and is about to get one: what gives weight to
    /// a cluster often comes with its first endpoint, and must not arrive before it.
    pub(super) fn awaits_first_endpoint(&self, cluster: &str) -> bool {
        let subscription = self.get(ResourceType::Endpoints);
        let target = self.target.as_ref().map(|target| target.get(ResourceType::Endpoints));
        if self.clusters.draining().is_empty()
            && target.is_some_and(|target| subscription.has_exactly(target))
        {
            return false;
        }
        let Some(next) = self.endpoints(cluster) else {
            return false;
        };
        // The client may still answer that it takes those in flight.
        let in_flight = subscription.in_flight(cluster).map(|change| change.resource.as_ref());
        let acked = subscription.acked_resource(cluster).map(Some);
        let lacks_one = in_flight
            .into_iter()
            .chain(acked)
            .any(|has| has.is_none_or(|has| has.version != next.version && !has.takes_requests()));
        lacks_one && !subscription.rejects(next) && next.takes_requests()
    }

    fn wanted_cluster(&self, cluster: &str) -> Option<&Arc<Resource>> {
        self.target.as_ref()?.get(ResourceType::Cluster).get(cluster)
    }

    /// Whether the mesh defines a version of the cluster that the client did not reject.
    fn will_be_sent(&self, cluster: &str) -> bool {
        let clusters = self.get(ResourceType::Cluster);
        self.wanted_cluster(cluster).is_some_and(|wanted| !clusters.rejects(wanted))
    }

    /// The endpoints that the client gets for a cluster.
    pub(super) fn endpoints(&self, cluster: &str) -> Option<&Arc<Resource>> {
        let wanted = self
            .target
            .as_ref()
            .and_then(|target| target.get(ResourceType::Endpoints).get(cluster));
        wanted.or_else(|| self.clusters.draining().get(cluster)?.endpoints.as_ref())
    }

    pub(super) fn needs_endpoints(&self, cluster: &str) -> bool {
        self.endpoints(cluster).is_some()
    }

    /// Whether the client rejected the endpoints of a cluster and has no others.
    fn rejected_all_endpoints(&self, cluster: &str) -> bool {
        let subscription = self.get(ResourceType::Endpoints);
        subscription.has_rejections()
            && self.endpoints(cluster).is_some_and(|endpoints| {
                subscription.rejects(endpoints) && !subscription.has_good(cluster)
            })
    }

    /// Whether the client waits for the endpoints of any cluster that will get some.
    pub(super) fn is_warming(&self) -> bool {
        !self.waits_for_no_endpoints()
            && self.clusters.warming().any(|name| self.readiness(name) == ClusterReadiness::Making)
    }
}
