//! What is known about the client: what it has, what it rejected, and which of its requests are overdue.

use std::sync::Arc;
use std::time::Instant;

use super::Stream;
use super::clusters::Phase;
use super::gate::{ClusterReadiness, HeldResource};
use super::subscription::Subscription;
use crate::revision::MeshRevision;
use crate::snapshot::{Provenance, Resource, ResourceType};
use crate::xds::wire::version_text;

/// A resource that was sent to a client.
#[derive(Clone, Debug)]
pub(crate) struct SentResource {
    /// The type.
    pub kind: ResourceType,
    /// The newest version that was sent and not rejected.
    pub resource: Arc<Resource>,
    /// Whether the client ACKed it.
    pub acked: bool,
}

/// The progress of a client with one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
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
pub(crate) struct RejectedResource {
    /// `cds`, `eds`, `lds`, `rds` or `rtds`.
    pub kind: &'static str,
    /// The name.
    pub name: Arc<str>,
    /// The virtual host in it that the client rejected; `None` if it rejected the whole resource.
    pub virtual_host: Option<Arc<str>>,
    /// The rejected version.
    pub version: String,
    /// The objects behind what that version changed.
    pub objects: Provenance,
    /// The client's error message.
    pub message: Arc<str>,
}

impl Stream {
    /// The mesh revision that the client has ACKed completely, as far as it subscribed; `None` while anything is in
    /// flight, held back or rejected.
    pub(crate) fn settled(&self) -> Option<MeshRevision> {
        let all = self.switch.held().next().is_none()
            && !self.types.iter().any(Subscription::has_rejections);
        self.reached().filter(|_| all)
    }

    /// The mesh revision that the client has ACKed except for held-back and rejected resources; `None` while anything
    /// is in flight.
    pub(crate) fn reached(&self) -> Option<MeshRevision> {
        self.at_rest
    }

    /// The resources that are held back because they reference an undefined cluster.
    pub(crate) fn held(&self) -> Vec<HeldResource> {
        self.switch.held().cloned().collect()
    }

    /// Clusters that are kept because they are still referenced although they are no longer defined.
    pub(crate) fn kept(&self) -> Vec<Arc<str>> {
        let used = self
            .clusters
            .draining()
            .iter()
            .filter(|(_, kept)| kept.phase == Phase::InUse && kept.cluster.is_some());
        used.map(|(name, _)| name.clone()).collect()
    }

    /// The resources that the client rejected and has not received in another version since.
    pub(crate) fn rejected(&self) -> Vec<RejectedResource> {
        let all = ResourceType::ALL.into_iter().flat_map(|kind| {
            self.get(kind).rejected().map(move |(name, host, rejection)| RejectedResource {
                kind: kind.short_name(),
                name: name.clone(),
                virtual_host: host.cloned(),
                version: version_text(rejection.version),
                objects: rejection.objects.clone(),
                message: rejection.message.clone(),
            })
        });
        all.collect()
    }

    /// The resources that were sent to the client and that it has or is about to have. Route configurations have the
    /// weights that are in force, whether they came in routes or as runtime values.
    pub(crate) fn inventory(&self) -> Vec<SentResource> {
        let all = ResourceType::ALL.into_iter().flat_map(|kind| {
            self.get(kind).all_last_sent().map(move |(resource, acked)| SentResource {
                kind,
                resource: self.with_runtime_weights(resource),
                acked,
            })
        });
        all.collect()
    }

    /// The progress of the client with each type, in the order of [`ResourceType::ALL`].
    pub(crate) fn progress(&self) -> [Progress; 5] {
        ResourceType::ALL.map(|kind| {
            let state = self.get(kind);
            let behind = matches!(kind, ResourceType::Listener | ResourceType::Route)
                && self.switch.is_waiting();
            if kind == ResourceType::Cluster && self.awaits_clusters() && self.asks_for_routes() {
                Progress::Stale
            } else if !state.subscribed {
                Progress::None
            } else if state.pending.is_some() || behind || self.target.is_none() {
                Progress::Stale
            } else if !state.has_rejections() {
                Progress::Synced
            } else {
                Progress::Rejected
            }
        })
    }

    /// Why the client is lagging at this time; `None` if it is not.
    pub(crate) fn lag(&self, now: Instant) -> Option<String> {
        let late = self.waits().filter(|(since, _)| *since + self.settings.ack_timeout <= now);
        late.min_by_key(|(since, _)| *since).map(|(_, reason)| reason)
    }

    /// The requests that the client has yet to send, and since when.
    pub(super) fn waits(&self) -> impl Iterator<Item = (Instant, String)> {
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
        let endpoints = self.warming_since.and_then(|since| {
            let mut endpoints = self.get(ResourceType::Endpoints).reader();
            let name = self.clusters.warming().find(|name| {
                !endpoints.wants(name) && self.readiness(name) == ClusterReadiness::Making
            })?;
            Some((since, format!("no request for the endpoints of cluster {name}")))
        });
        let clusters =
            self.serving_since.filter(|_| self.awaits_clusters() && self.asks_for_routes());
        let clusters = clusters.map(|since| {
            (since, "no request for clusters: one that the client has warms".to_owned())
        });
        answers.chain(endpoints).chain(clusters)
    }
}
