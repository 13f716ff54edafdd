//! *Break*: keeps clusters that are no longer defined until nothing references them and their grace period is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::Stream;
use super::request::Variant;
use crate::snapshot::{Resource, ResourceType};

/// A cluster that is no longer wanted but may still be in use.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// The form that the client has; `None` where it is one of an earlier stream.
    pub cluster: Option<Arc<Resource>>,
    pub endpoints: Option<Arc<Resource>>,
    pub phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    InUse,
    UnusedSince(Instant),
    /// The client is told that it is gone; its endpoints go with it.
    Leaving,
}

impl Stream {
    /// Keeps a cluster that is no longer to be, in the form that the client has; where that is unknown, in the form that
    /// was to be.
    pub(super) fn keep(
        &mut self,
        name: &Arc<str>,
        last: &Arc<Resource>,
        endpoints: Option<&Arc<Resource>>,
    ) {
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
            self.substitutes.insert(name.clone(), cluster.version);
        }
        self.kept.insert(name.clone(), Kept { cluster, endpoints, phase: Phase::InUse });
    }

    /// What is kept was about to come in a form that the client refused: the one that it has is kept instead.
    pub(super) fn keep_accepted(&mut self) {
        let [clusters, endpoints, ..] = &self.types;
        for (name, kept) in &mut self.kept {
            kept.cluster = clusters.form(name).or(kept.cluster.as_ref()).cloned();
            kept.endpoints = endpoints.form(name).or(kept.endpoints.as_ref()).cloned();
        }
    }

    /// Lets clusters go that nothing leads to any more and whose grace is over.
    pub(super) fn remove_unused(&mut self, now: Instant) {
        let unknown_forms: Vec<_> =
            self.get(ResourceType::Cluster).unknown_forms().cloned().collect();
        if let Some(target) = &self.target {
            for name in unknown_forms
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
}
