//! *Make*: when a cluster that was sent is ready at the client. It warms until its endpoints come, so these follow it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Stream;
use super::gate::ClusterReadiness;
use super::removal::Phase;
use super::returning::DEFINED_WITHIN;
use super::subscription::Change;
use crate::snapshot::{Resource, ResourceType};

impl Stream {
    /// Clusters were taken: from here on they warm until their endpoints come.
    pub(super) fn clusters_acked(&mut self, changes: Vec<Change>) {
        for change in changes {
            let name = &change.name;
            let Some(resource) = &change.resource else {
                self.warming.remove(name);
                self.substitutes.remove(name);
                continue;
            };
            let stood_in =
                self.substitutes.get(name).is_some_and(|version| *version != resource.version);
            if stood_in {
                self.substitutes.remove(name);
            }
            if ((change.new && !change.warms) || stood_in) && self.needs_endpoints(name) {
                self.warming.insert(name.clone());
            }
            if stood_in || (change.new && !change.taken) {
                self.state(ResourceType::Endpoints).send_again(name);
            }
        }
    }

    /// The client has taken the clusters that are in flight, and waits for endpoints of some.
    pub(super) fn clusters_taken(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in clusters.pending.iter_mut().flat_map(|pending| &mut pending.changes) {
            if !std::mem::replace(&mut change.taken, true) {
                endpoints.send_again(&change.name);
            }
        }
    }

    pub(super) fn endpoints_acked(&mut self, changes: Vec<Change>) {
        for change in changes.iter().filter(|change| change.warms && change.resource.is_some()) {
            // It left the cluster before these endpoints came: they are not for one of the same name that came later.
            if !self.get(ResourceType::Endpoints).wants(&change.name) {
                continue;
            }
            if self.get(ResourceType::Cluster).has(&change.name) {
                self.warming.remove(&change.name);
            } else if let Some(cluster) =
                self.state(ResourceType::Cluster).in_flight_mut(&change.name)
            {
                cluster.warms = true;
            }
        }
    }

    /// The endpoints that the client is to have for a cluster.
    pub(super) fn endpoints(&self, cluster: &str) -> Option<&Arc<Resource>> {
        let wanted = self
            .target
            .as_ref()
            .and_then(|target| target.get(ResourceType::Endpoints).get(cluster));
        wanted.or_else(|| self.kept.get(cluster)?.endpoints.as_ref())
    }

    pub(super) fn needs_endpoints(&self, cluster: &str) -> bool {
        self.endpoints(cluster).is_some()
    }

    /// Whether the client refused the endpoints of a cluster and has no others.
    pub(super) fn has_none(&self, cluster: &str) -> bool {
        let endpoints = self.get(ResourceType::Endpoints);
        self.endpoints(cluster)
            .is_some_and(|one| endpoints.refuses(one) && !endpoints.has_good(cluster))
    }

    pub(super) fn is_warming(&self) -> bool {
        self.warming.iter().any(|name| self.readiness(name) == ClusterReadiness::Making)
    }

    /// What a cluster is for this client now.
    pub(super) fn readiness(&self, cluster: &str) -> ClusterReadiness {
        match self.readiness_now(cluster) {
            // Nothing is known of the routes that such a client has, and whoever writes a route before its subset may be
            // about to write that.
            ClusterReadiness::Missing
                if self.returning && !self.knows_routes() && self.is_within(DEFINED_WITHIN) =>
            {
                ClusterReadiness::Making
            }
            fit => fit,
        }
    }

    pub(super) fn readiness_now(&self, cluster: &str) -> ClusterReadiness {
        let clusters = self.get(ResourceType::Cluster);
        // A client that names its clusters, or has other ways of getting them, takes what its routes lead to by itself.
        let by_itself = if clusters.subscribed {
            !clusters.wildcard
        } else {
            !self.asked_for(ResourceType::Endpoints)
        };
        if by_itself || !self.settings.gated {
            return ClusterReadiness::Ready;
        }
        let wanted =
            self.target.as_ref().and_then(|target| target.get(ResourceType::Cluster).get(cluster));
        let leaves = clusters.in_flight(cluster).is_some_and(|change| change.resource.is_none());
        // Whether one that another stands in for takes requests is not known.
        if !clusters.has(cluster) || leaves || self.substitutes.contains_key(cluster) {
            return match wanted {
                Some(wanted) if !clusters.refuses(wanted) => ClusterReadiness::Making,
                _ => ClusterReadiness::Missing,
            };
        }
        let stays = self.kept.get(cluster).is_some_and(|kept| kept.phase != Phase::Leaving);
        if wanted.is_none() && !stays {
            return ClusterReadiness::Missing;
        }
        if self.has_none(cluster) {
            return ClusterReadiness::Missing;
        }
        let [_, endpoints, ..] = &self.types;
        let asks =
            endpoints.subscribed || self.clusters_alone || (self.returning && self.is_early());
        let warms = self.warming.contains(cluster) && asks && self.needs_endpoints(cluster);
        if warms { ClusterReadiness::Making } else { ClusterReadiness::Ready }
    }

    /// Of endpoints just sent: whether the client has the cluster, so that they end its warming.
    pub(super) fn mark_warming(&mut self) {
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
    pub(super) fn follow_changes(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in clusters.pending.iter().flat_map(|pending| &pending.changes) {
            if change.resource.is_some() && !is_new(change, &self.substitutes) {
                endpoints.send_again(&change.name);
            }
        }
    }

    /// Of clusters just dropped: endpoints that are under way are not for one of the same name that may come later.
    pub(super) fn mark_leaving(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in endpoints.pending.iter_mut().flat_map(|pending| &mut pending.changes) {
            if clusters.in_flight(&change.name).is_some_and(|cluster| cluster.resource.is_none()) {
                change.warms = false;
            }
        }
    }
}

/// Whether the client has no cluster of this name. It has one where another stands in for it.
pub(super) fn is_new(change: &Change, substitutes: &BTreeMap<Arc<str>, u64>) -> bool {
    change.new && !substitutes.contains_key(&change.name)
}
