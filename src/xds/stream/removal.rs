//! *Break*: keeps clusters that the mesh no longer defines until nothing references them and their grace period is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::Stream;
use super::clusters::{Draining, Phase};
use super::request::Variant;
use crate::snapshot::{Resource, ResourceType};

impl Stream {
    /// Keeps a cluster that the mesh no longer defines, in the version that the client has; where that is unknown, in
    /// the `last` one that the mesh defined.
    pub(super) fn keep(
        &mut self,
        name: &Arc<str>,
        last: &Arc<Resource>,
        endpoints: Option<&Arc<Resource>>,
    ) {
        let [clusters, assignments, ..] = &self.types;
        let endpoints = assignments.last_sent(name).or(endpoints).cloned();
        let cluster = if clusters.wildcard {
            let Some(cluster) = clusters.last_sent(name).cloned() else {
                return;
            };
            Some(cluster)
        } else if !clusters.subscribed && assignments.wants(name) {
            // The client has a cluster of that name and will ask for clusters. A SotW response without it would remove
            // it.
            (self.variant == Variant::Sotw).then(|| last.clone())
        } else {
            return;
        };
        if let Some(cluster) = cluster.as_ref().filter(|_| !clusters.subscribed) {
            self.clusters.substitute(name.clone(), cluster.version);
        }
        self.clusters.drain(name.clone(), Draining::new(cluster, endpoints));
    }

    /// The client rejected a version that was about to be kept: the version that it has is kept instead.
    pub(super) fn keep_accepted(&mut self) {
        let [clusters, endpoints, ..] = &self.types;
        for (name, kept) in self.clusters.draining_mut() {
            kept.cluster = clusters.last_sent(name).or(kept.cluster.as_ref()).cloned();
            kept.endpoints = endpoints.last_sent(name).or(kept.endpoints.as_ref()).cloned();
        }
    }

    /// Advances the removal of draining clusters: unused ones go after their grace period.
    pub(super) fn remove_unused(&mut self, now: Instant) {
        let known = self.knows_routes();
        let [_, _, listeners, routes, _] = &self.types;
        // This is final only once the client has asked for both types: a resuming client asks for one after the other.
        if known && listeners.subscribed && routes.subscribed {
            self.session.finish();
        }
        self.drain_unknown_clusters();
        if self.clusters.draining().is_empty() {
            return;
        }
        let used = self.used_draining_clusters();
        let draining = self.clusters.draining().iter();
        let phases: Vec<Phase> = draining
            .map(|(name, kept)| {
                let used = !known || used.contains(&**name);
                self.next_phase(name, kept.phase, used, now)
            })
            .collect();
        for ((name, kept), phase) in self.clusters.draining_mut().zip(phases) {
            kept.enter(name, phase);
        }
        let [clusters, ..] = &self.types;
        self.clusters.retain_draining(|name, kept| {
            kept.phase != Phase::Removing
                || clusters.has(name)
                || clusters.in_flight(name).is_some()
        });
    }

    /// A cluster that is used again before its removal was sent stays.
    fn next_phase(&self, name: &str, phase: Phase, used: bool, now: Instant) -> Phase {
        let [clusters, ..] = &self.types;
        let is_removal_sent = !clusters.has(name)
            || clusters.in_flight(name).is_some_and(|change| change.resource.is_none());
        let since = match phase {
            Phase::Removing if is_removal_sent || !used => return Phase::Removing,
            _ if used => return Phase::InUse,
            Phase::UnusedSince(since) => since,
            Phase::InUse | Phase::Removing => now,
        };
        if since + self.settings.grace_of(name) <= now {
            Phase::Removing
        } else {
            Phase::UnusedSince(since)
        }
    }

    /// Also drains clusters that the client has from an earlier stream and that the mesh does not define.
    fn drain_unknown_clusters(&mut self) {
        let Some(target) = &self.target else { return };
        let [clusters, ..] = &self.types;
        let defined = target.get(ResourceType::Cluster);
        for name in clusters.unknown_forms().filter(|name| !defined.contains_key(name)) {
            self.clusters.drain_once(name.clone(), Draining::new(None, None));
        }
    }

    /// The draining clusters that a listener or route references which the client has or is about to get.
    fn used_draining_clusters(&self) -> BTreeSet<&str> {
        let mut used = BTreeSet::new();
        for kind in [ResourceType::Listener, ResourceType::Route] {
            let subscription = self.get(kind);
            if !subscription.subscribed {
                continue;
            }
            let next = self.switch.given(kind).values().filter(|resource| {
                subscription.wants(&resource.name) && !subscription.rejects(resource)
            });
            for resource in subscription.in_use().chain(next) {
                let draining = self.clusters.draining().keys().map(|name| &**name);
                used.extend(draining.filter(|name| resource.routes_to(name)));
            }
        }
        used
    }
}
