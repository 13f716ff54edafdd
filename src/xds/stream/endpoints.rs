//! When the client gets the endpoints of a cluster. Those of a new cluster are sent after the client accepted it, those
//! of a changed cluster at once. An update that removes the last endpoints waits until the client's routes no longer
//! reference the cluster.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::clusters::ClusterStates;
use super::delivery::Delivery;
use super::gate;
use super::request::Variant;
use super::session::{Earlier, References};
use super::subscription::{Reader, Subscription};
use super::switch::Switch;
use crate::snapshot::{Resource, ResourceType, Snapshot};

/// What decides about endpoints at this moment.
pub(super) struct EndpointDelivery<'a> {
    pub variant: Variant,
    /// Whether updates wait for ACKs.
    pub gated: bool,
    /// Whether a resuming client may not yet have asked for all it wants.
    pub early: bool,
    pub target: &'a Snapshot,
    pub clusters: &'a Subscription,
    pub listeners: &'a Subscription,
    pub routes: &'a Subscription,
    pub states: &'a ClusterStates,
    pub switch: &'a Switch,
    pub earlier: Option<&'a Earlier>,
    /// The clusters that the next routes of a resuming client reference, while its current ones are unknown.
    pub next_references: Option<References>,
    /// Clusters that keep their last endpoints, because the routes that no longer reference them wait. They get newer
    /// endpoints at once, because the wait may be long.
    pub keep_last: BTreeSet<Arc<str>>,
    /// Clusters whose weight becomes 0 with a runtime layer that the client has not ACKed.
    pub emptied: &'a BTreeSet<String>,
}

impl EndpointDelivery<'_> {
    /// Whether the client does not ask for clusters yet, because one that it has warms.
    fn is_paused(&self) -> bool {
        !self.clusters.subscribed
    }

    /// Whether the client has not accepted the new cluster yet: endpoints sent before that would have no effect.
    fn is_untaken(&self, cluster: &str) -> bool {
        self.clusters.in_flight(cluster).is_some_and(|change| {
            change.resource.is_some() && change.is_new_cluster(self.states) && !change.taken
        })
    }

    /// Whether the next routes no longer reference a cluster that the current ones do. Its endpoints are due when the
    /// client has the next routes: the change that moves the traffic away may remove the pods as well, and removing
    /// them first would fail requests for a moment.
    fn is_being_left(&self, cluster: &str) -> bool {
        [(ResourceType::Listener, self.listeners), (ResourceType::Route, self.routes)]
            .into_iter()
            .any(|(kind, subscription)| {
                let given = self.switch.given(kind);
                let present = subscription.in_use().filter(|old| subscription.wants(&old.name));
                present.filter(|old| old.routes_to(cluster)).any(|old| {
                    let next = given.get(&old.name).filter(|new| !subscription.rejects(new));
                    next.is_some_and(|new| gate::leaves(old, new, cluster))
                })
            })
    }

    /// Whether the unknown routes of a resuming client may reference a cluster that would lose its endpoints.
    fn may_be_referenced(&self, cluster: &str, endpoints: &Resource, has: bool) -> bool {
        let Some(next_references) = &self.next_references else { return false };
        let none = !endpoints.has_endpoints();
        let loses = if next_references.contains(cluster) {
            // Over SotW the next routes wait for the endpoints of all clusters that they reference.
            self.early && none && self.variant == Variant::Delta
        } else {
            // Pods come and go: endpoints that take requests are not held back for long.
            self.early || none
        };
        loses && self.has_served(cluster, has, none)
    }

    /// A cluster that never had endpoints serves no request.
    fn has_served(&self, cluster: &str, has: bool, none: bool) -> bool {
        match self.variant {
            // Endpoints sent on this stream count only when they would be removed: the old routes may have waited for
            // them.
            Variant::Sotw => {
                self.earlier.is_some_and(|earlier| earlier.served(cluster)) || (has && none)
            }
            Variant::Delta => has,
        }
    }
}

impl Delivery for EndpointDelivery<'_> {
    fn defers(&self, name: &str, endpoints: Option<&Resource>, has: bool) -> bool {
        let Some(endpoints) = endpoints else {
            return self.gated
                && self.is_paused()
                && has
                && self.early
                && self.next_references.is_some();
        };
        if self.is_paused() {
            // A client that waits for endpoints gets those that take requests at once.
            return self.gated
                && self.early
                && !endpoints.has_endpoints()
                && self.may_be_referenced(name, endpoints, has);
        }
        // Whether there are endpoints is read from the message, so names are looked up first.
        self.is_untaken(name)
            || (self.gated
                && (self.may_be_referenced(name, endpoints, has)
                    || self.is_being_left(name)
                    || ((self.keep_last.contains(name) || self.emptied.contains(name))
                        && !endpoints.takes_requests())))
    }

    fn is_awaited(&self, cluster: &str) -> bool {
        self.clusters.in_flight(cluster).is_some_and(|change| {
            change.resource.is_some() && (!change.is_new_cluster(self.states) || change.taken)
        })
    }

    fn meanwhile(&self, cluster: &str) -> Option<Arc<Resource>> {
        let (_, endpoints) = self.target.fallback(cluster)?;
        (self.gated && endpoints.has_endpoints()).then_some(endpoints)
    }

    fn versions_of(&self, endpoints: &[&Arc<Resource>]) -> Vec<u64> {
        let mut clusters = self.clusters.reader();
        endpoints.iter().map(|endpoints| version_for(&mut clusters, endpoints)).collect()
    }

    fn answers_missing(&self) -> bool {
        self.gated && self.is_paused()
    }
}

/// The version to report for endpoints: a combination of their own and that of the cluster they were sent for. A client
/// whose stream ends after it accepted a changed cluster and before it got the endpoints again would otherwise resume
/// with the current version, get nothing, and warm forever.
pub(super) fn version_for(clusters: &mut Reader<'_>, endpoints: &Resource) -> u64 {
    let cluster = clusters.last_sent(&endpoints.name).map_or(0, |cluster| cluster.version);
    endpoints.version ^ cluster.rotate_left(32)
}
