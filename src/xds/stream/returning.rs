//! Clients that come back: they have clusters and routes of an earlier stream, of which nothing is known until they tell.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Stream;
use super::removal::{Kept, Phase};
use super::request::Variant;
use super::subscription::Subscription;
use crate::snapshot::ResourceType;

/// How long a reconnecting client may take to request everything that it had. Envoy requests one type after the other
/// without waiting for responses; this allows for a client with very little CPU time.
pub(super) const ASKS_WITHIN: Duration = Duration::from_secs(2);

/// How long the routes of a client that comes back wait for clusters that nothing defines: whoever writes a route before
/// its subset writes that soon. Less than [`ASKS_WITHIN`], so that it has the routes before its old endpoints go.
pub(super) const DEFINED_WITHIN: Duration = Duration::from_secs(1);

/// The maximum number of clusters that a client keeps of which only the name is known; more than are ever removed while
/// weir is down.
const MAX_SUBSTITUTES: usize = 1000;

impl Stream {
    /// Clusters that a client of the delta variant came back with: those that never had endpoints warm.
    pub(super) fn cluster_names_came(&mut self, names: Vec<Arc<str>>) {
        let [_, endpoints, ..] = &self.types;
        let warming = |name: &Arc<str>| {
            !endpoints.subscribed || (endpoints.wants(name) && !endpoints.has_or_claims(name))
        };
        self.warming.extend(names.into_iter().filter(warming));
    }

    /// Whether a client that came back is about to tell which clusters it has: it asks for one type after the other.
    pub(super) fn may_have_more(&self) -> bool {
        self.settings.gated
            && self.returning
            && self.variant == Variant::Sotw
            && self.get(ResourceType::Cluster).wildcard
            && !self.asked_for(ResourceType::Endpoints)
            && self.is_early()
    }

    /// Whether the client may not yet have asked for all it wants.
    pub(super) fn is_early(&self) -> bool {
        self.is_within(ASKS_WITHIN)
    }

    /// Whether no more time has passed since the client was here.
    pub(super) fn is_within(&self, time: Duration) -> bool {
        self.since.zip(self.now).is_none_or(|(since, now)| now < since + time)
    }

    /// Keeps the clusters that a client came back with and that are not to be, with endpoints: its old routes may lead
    /// there. The same for those that lost all their endpoints meanwhile, where it waits for some.
    pub(super) fn keep_earlier_clusters(&mut self) {
        let Some(target) = self.target.clone() else {
            return;
        };
        if !std::mem::take(&mut self.earlier_unchecked) || !self.settings.gated {
            return;
        }
        let [clusters, ..] = &self.types;
        let paused = !clusters.subscribed;
        if !clusters.wildcard && !paused {
            return;
        }
        let next_references: BTreeSet<Arc<str>> =
            self.next_references().unwrap_or_default().into_iter().map(Arc::from).collect();
        let mut names = std::mem::take(&mut self.served_before);
        for name in &names {
            let known = target.get(ResourceType::Cluster).contains_key(name);
            let endpoints = target.get(ResourceType::Endpoints).get(name);
            if known
                && (next_references.contains(name)
                    || endpoints.is_none_or(|endpoints| endpoints.has_endpoints()))
            {
                continue;
            }
            if !known && self.substitutes.len() >= MAX_SUBSTITUTES {
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
                self.substitutes.insert(name.clone(), cluster.version);
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
                || self.substitutes.contains_key(name)
        });
        self.served_before = names;
    }

    /// Whether the client is to ask for clusters before it gets routes. One that asks for endpoints has clusters, and one
    /// that comes back may be about to ask for either.
    pub(super) fn awaits_clusters(&self) -> bool {
        let [clusters, endpoints, ..] = &self.types;
        let asks = endpoints.subscribed || (self.returning && self.is_early());
        self.settings.gated && !clusters.subscribed && asks
    }

    /// Whether every listener and route that may be in use at the client is known.
    pub(super) fn knows_routes(&self) -> bool {
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
    pub(super) fn next_references(&self) -> Option<BTreeSet<&str>> {
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
}
