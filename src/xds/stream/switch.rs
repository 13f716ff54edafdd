//! *Switch*: gives the client each listener and virtual host as soon as every cluster that it references is made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::Stream;
use super::delivery::View;
use super::gate::{self, Chosen, ClusterReadiness, HeldResource, HostGate};
use super::runtime::RuntimeHost;
use crate::snapshot::{ResourceType, Resources};

/// How far the client's listeners and routes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The client asks for no listeners and routes, or the mesh is not known yet.
    #[default]
    Idle,
    /// The client gets none until its first clusters are made.
    FirstClusters,
    /// The client gets what it may have; the rest waits for clusters that are on their way.
    Waiting,
    /// The client may have all of it, except what is held back.
    Complete,
}

/// The listeners and routes that the client gets at this step.
#[derive(Debug, Default)]
pub(super) struct Switch {
    stage: Stage,
    given: [Resources; 2],
    held: [Vec<HeldResource>; 2],
    /// Clusters that the client's routes reference until the versions that wait arrive.
    leaving: BTreeSet<Arc<str>>,
    /// The client rejected something that the last choice relied on.
    outdated: bool,
}

impl Switch {
    /// Whether the client gets listeners and routes.
    pub(crate) fn has_started(&self) -> bool {
        matches!(self.stage, Stage::Waiting | Stage::Complete)
    }

    /// Whether something waits for clusters that are on their way.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::FirstClusters | Stage::Waiting)
    }

    /// The client asked for clusters for the first time: what it got before was not checked against them.
    pub(crate) fn restart(&mut self) {
        self.enter(if self.is_waiting() { Stage::FirstClusters } else { Stage::Idle });
    }

    fn enter(&mut self, stage: Stage) {
        if stage != self.stage {
            tracing::debug!(step = "switch", from = ?self.stage, to = ?stage, "entered a stage");
            self.stage = stage;
        }
    }

    /// The client rejected something: the next choice considers all listeners and routes again.
    pub(crate) fn choose_again(&mut self) {
        self.outdated = true;
    }

    /// The listeners or routes that the client may have.
    pub(crate) fn given(&self, kind: ResourceType) -> &Resources {
        let [listeners, routes] = &self.given;
        if kind == ResourceType::Listener { listeners } else { routes }
    }

    pub(crate) fn held(&self) -> impl Iterator<Item = &HeldResource> {
        self.held.iter().flatten()
    }

    pub(crate) fn leaving(&self) -> &BTreeSet<Arc<str>> {
        &self.leaving
    }

    fn store(&mut self, kind: ResourceType, given: Resources, held: Vec<HeldResource>) {
        let ([listeners, routes], [held_listeners, held_routes]) =
            (&mut self.given, &mut self.held);
        match kind {
            ResourceType::Listener => (*listeners, *held_listeners) = (given, held),
            _ => (*routes, *held_routes) = (given, held),
        }
    }

    /// The given versions as a view. What waits is not reported as missing.
    pub(crate) fn view(&self, kind: ResourceType, target: &Resources) -> View {
        let given = self.given(kind);
        let mut kept = BTreeMap::new();
        if !given.ptr_eq(target) {
            let waits = target.keys().filter(|name| !given.contains_key(name));
            kept.extend(waits.map(|name| (name.clone(), None)));
        }
        View { base: given.clone(), target: target.clone(), kept }
    }
}

impl Stream {
    /// Chooses the listeners and virtual hosts that the client may have now.
    pub(super) fn switch(&mut self, now: Instant) {
        self.switch.leaving.clear();
        if self.target.is_none() {
            return;
        }
        if !self.switch.has_started() {
            self.switch.enter(self.first_stage());
        }
        if self.switch.has_started() {
            let waiting = self.choose(now);
            self.switch.enter(if waiting { Stage::Waiting } else { Stage::Complete });
        }
    }

    /// The stage of a client that has no listeners and routes yet: they come when it has its first clusters.
    fn first_stage(&self) -> Stage {
        let asks = self.asks_for_routes();
        if self.awaits_clusters() {
            return if asks { Stage::FirstClusters } else { Stage::Idle };
        }
        if self.has_all_clusters() || self.waits_for_no_endpoints() {
            return if asks { Stage::Complete } else { Stage::Idle };
        }
        let next_references = self.next_references();
        let clusters =
            self.target.iter().flat_map(|target| target.get(ResourceType::Cluster).keys());
        let mut needed = clusters.filter(|name| {
            next_references.as_ref().is_none_or(|references| references.contains(*name))
        });
        if needed.any(|name| self.readiness(name) == ClusterReadiness::Making) {
            Stage::FirstClusters
        } else if asks {
            Stage::Complete
        } else {
            Stage::Idle
        }
    }

    /// Chooses again. Returns whether something waits for clusters that are on their way.
    fn choose(&mut self, now: Instant) -> bool {
        let Some(target) = self.target.clone() else {
            return false;
        };
        let mut waiting = false;
        let mut by_runtime: Vec<RuntimeHost> = Vec::new();
        let again = std::mem::take(&mut self.switch.outdated);
        for kind in [ResourceType::Listener, ResourceType::Route] {
            let wanted = target.get(kind);
            self.state(kind).prune_trials(wanted);
            let chosen = if self.switch.given(kind).ptr_eq(wanted) && !again {
                Chosen::default()
            } else {
                self.choose_of(kind, wanted)
            };
            waiting |= chosen.waiting && self.get(kind).subscribed;
            self.switch.leaving.extend(chosen.leaving);
            by_runtime.extend(chosen.by_runtime);
            let given = chosen.resources.unwrap_or_else(|| wanted.clone());
            self.switch.store(kind, given, chosen.held);
        }
        self.update_runtime(by_runtime, now);
        waiting
    }

    fn choose_of(&mut self, kind: ResourceType, wanted: &Resources) -> Chosen {
        loop {
            let subscription = self.get(kind);
            let hosts = HostGate {
                trials: &subscription.trials,
                takes_runtime_weights: self.takes_runtime_weights(),
                routes_follow: self.routes_follow(),
                layer: &self.runtime,
                makes_no_clusters: self.makes_no_clusters(),
            };
            let chosen = gate::choose(
                kind,
                wanted,
                |name| subscription.last_sent(name),
                hosts,
                |cluster| self.readiness(cluster),
            );
            // A group that changes nothing now, because its virtual hosts wait for clusters, cannot be tried.
            let given = chosen.resources.as_ref().unwrap_or(wanted);
            let untestable: Vec<Arc<str>> = subscription
                .trials
                .pending()
                .filter(|table| {
                    let next = given.get(table);
                    let has = subscription.last_sent(table).map(|has| has.version);
                    let is_sent = next.map(|next| next.version) != has
                        && next.is_none_or(|next| !subscription.rejects(next));
                    !is_sent && subscription.in_flight(table).is_none()
                })
                .cloned()
                .collect();
            if untestable.is_empty() {
                return chosen;
            }
            let trials = &mut self.state(kind).trials;
            untestable.iter().for_each(|table| trials.end_group(table));
        }
    }
}
