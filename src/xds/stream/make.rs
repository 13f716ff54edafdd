//! *Make*: tracks through the client's answers which clusters it has, and sends the endpoints that follow them.

use std::sync::Arc;

use super::Stream;
use super::change::Change;
use crate::snapshot::ResourceType;

impl Stream {
    /// The client ACKed clusters: new ones warm until their endpoints arrive.
    pub(super) fn clusters_acked(&mut self, changes: Vec<Change>) {
        let target = self.target.clone();
        let mut endpoints =
            target.as_ref().map(|target| target.get(ResourceType::Endpoints).cursor());
        let mut warm = Vec::new();
        for change in changes {
            let name = &change.name;
            let Some(resource) = &change.resource else {
                self.clusters.removed(name);
                continue;
            };
            let replaced = self.clusters.replaced(name, resource.version);
            if ((change.new && !change.warms) || replaced)
                && (endpoints.as_mut().is_some_and(|endpoints| endpoints.get(name).is_some())
                    || self.needs_endpoints(name))
            {
                warm.push(name.clone());
            }
            if replaced || (change.new && !change.taken) {
                self.state(ResourceType::Endpoints).send_again(name);
            }
        }
        self.clusters.warm_all(warm);
    }

    /// The client accepted the clusters that are in flight, and waits for the endpoints of some.
    pub(super) fn clusters_taken(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in clusters.pending.iter_mut().flat_map(|pending| &mut pending.changes) {
            if !std::mem::replace(&mut change.taken, true) {
                endpoints.send_again(&change.name);
            }
        }
    }

    /// The client ACKed endpoints: the clusters that waited for them take requests.
    pub(super) fn endpoints_acked(&mut self, changes: Vec<Change>) {
        let [clusters, endpoints, ..] = &self.types;
        let (mut asked, mut acked) = (endpoints.reader(), clusters.reader());
        let (mut warmed, mut in_flight) = (Vec::new(), Vec::new());
        for change in changes.iter().filter(|change| change.warms && change.resource.is_some()) {
            // The client dropped the cluster before these endpoints arrived: they do not belong to a later one of that
            // name.
            if !asked.wants(&change.name) {
                continue;
            }
            if acked.has(&change.name) {
                warmed.push(&change.name);
            } else {
                in_flight.push(&change.name);
            }
        }
        self.clusters.all_warmed(&warmed);
        for name in in_flight {
            if let Some(cluster) = self.state(ResourceType::Cluster).in_flight_mut(name) {
                cluster.warms = true;
            }
        }
    }

    /// A client that resumed over delta reported these clusters: those that never had endpoints warm.
    pub(super) fn clusters_reported(&mut self, names: Vec<Arc<str>>) {
        let [_, endpoints, ..] = &self.types;
        for name in names {
            let has_endpoints =
                endpoints.subscribed && (!endpoints.wants(&name) || endpoints.has_or_claims(&name));
            if !has_endpoints {
                self.clusters.warm(name);
            }
        }
    }

    /// Endpoints were just sent: marks those whose cluster the client has, because they end its warming.
    pub(super) fn mark_warming(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        let mut acked = clusters.reader();
        for change in endpoints.pending.iter_mut().flat_map(|pending| &mut pending.changes) {
            let in_flight = clusters.in_flight(&change.name);
            let (taken, removed) = in_flight
                .map_or((false, false), |cluster| (cluster.taken, cluster.resource.is_none()));
            // A client that does not ask for clusters has the clusters for which it asks for endpoints.
            change.warms = (acked.has(&change.name) && !removed) || taken || !clusters.subscribed;
        }
    }

    /// Clusters that the client has were just changed: their endpoints are due again.
    pub(super) fn follow_changes(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in clusters.pending.iter().flat_map(|pending| &pending.changes) {
            if change.resource.is_some() && !change.is_new_cluster(&self.clusters) {
                endpoints.send_again(&change.name);
            }
        }
    }

    /// Clusters were just removed: endpoints in flight do not belong to a later cluster of the same name.
    pub(super) fn mark_removed(&mut self) {
        let [clusters, endpoints, ..] = &mut self.types;
        for change in endpoints.pending.iter_mut().flat_map(|pending| &mut pending.changes) {
            if clusters.in_flight(&change.name).is_some_and(|cluster| cluster.resource.is_none()) {
                change.warms = false;
            }
        }
    }
}
