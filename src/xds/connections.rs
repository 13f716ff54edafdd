//! Tracks the connected proxies and the mesh revision that each has ACKed.

use std::collections::HashMap;
use std::sync::Arc;

use dashmap::DashMap;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::stream::{HeldResource, Progress, RejectedResource, SentResource, Variant};
use crate::mesh::Proxy;
use crate::revision::MeshRevision;
use crate::snapshot::ResourceType;

/// The status of a connected proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyStatus {
    /// The node id.
    pub id: Arc<str>,
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// The streams that serve it.
    pub streams: Vec<StreamInfo>,
    /// Its progress with each type, in the order of [`ResourceType::ALL`].
    pub types: [Progress; 5],
    /// The newest mesh that it has ACKed completely; `None` before the first.
    pub acked: Option<MeshRevision>,
    /// When `acked` last changed. The stream leaves it out, and [`Connections`] fills it in.
    pub acked_at: Option<Timestamp>,
    /// The newest mesh that it has ACKed except for held-back and rejected resources.
    pub reached: Option<MeshRevision>,
    /// Whether nothing is in flight: everything missing is held back or rejected.
    pub resting: bool,
    /// The mesh that it should have.
    pub wanted: Option<MeshRevision>,
    /// Why it is lagging; `None` if it is not.
    pub lagging: Option<String>,
    /// The resources it rejected; it keeps their last accepted versions.
    pub rejected: Vec<RejectedResource>,
    /// Virtual hosts and listeners that keep their previous version because the new one references an undefined
    /// cluster.
    pub held: Vec<HeldResource>,
    /// Clusters that are no longer defined but kept because they are still referenced.
    pub kept: Vec<Arc<str>>,
}

/// A stream that serves a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamInfo {
    /// When it was opened.
    pub since: Timestamp,
    /// The variant of the protocol.
    pub variant: Variant,
    /// The one type that it is for; `None` for ADS.
    pub only: Option<ResourceType>,
}

impl ProxyStatus {
    /// The newest mesh that it has, except for what is held back from it or what it rejected; `None` before the first.
    pub(crate) fn has(&self) -> Option<MeshRevision> {
        self.acked.max(self.reached.filter(|_| self.resting))
    }

    /// Whether `other` belongs to another stream of the same proxy: a stream for a single type beside others. Two
    /// aggregated streams belong to two proxies with one node id, or to a proxy that reconnected before its old
    /// connection ended.
    fn is_joined_by(&self, other: &Self) -> bool {
        let mut streams = self.streams.iter().chain(&other.streams);
        self.id == other.id && streams.any(|stream| stream.only.is_some())
    }

    /// Merges the status of another stream of the same proxy.
    fn join(&mut self, other: &Self) {
        for (own, other) in self.types.iter_mut().zip(other.types) {
            if *own == Progress::None {
                *own = other;
            }
        }
        self.acked = self.acked.zip(other.acked).map(|(own, other)| own.min(other));
        self.acked_at = self.acked_at.max(other.acked_at);
        self.reached = self.reached.zip(other.reached).map(|(own, other)| own.min(other));
        self.wanted = self.wanted.max(other.wanted);
        self.resting &= other.resting;
        self.streams.extend(&other.streams);
        self.lagging = self.lagging.take().or_else(|| other.lagging.clone());
        self.rejected.extend(other.rejected.iter().cloned());
        self.held.extend(other.held.iter().cloned());
        self.kept.extend(other.kept.iter().cloned());
    }
}

/// A request to a stream for the resources that were sent to its client.
pub(crate) type InventoryRequest = oneshot::Sender<Vec<SentResource>>;

/// The stream of a connected proxy.
#[derive(Debug)]
struct Connection {
    status: ProxyStatus,
    acked_at: Option<Timestamp>,
    inventory_requests: mpsc::Sender<InventoryRequest>,
}

/// All connected proxies. Each stream writes its own entry.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    streams: DashMap<u64, Connection>,
    changed: watch::Sender<u64>,
}

impl Connections {
    /// Adds the proxy on `stream`. Returns the requests for its inventory.
    pub(crate) fn register(
        &self,
        stream: u64,
        status: &ProxyStatus,
    ) -> mpsc::Receiver<InventoryRequest> {
        let (inventory_requests, receiver) = mpsc::channel(4);
        let connection = Connection { status: status.clone(), acked_at: None, inventory_requests };
        self.streams.insert(stream, connection);
        self.changed.send_modify(|n| *n += 1);
        receiver
    }

    /// Updates the status of the proxy on `stream`.
    pub(crate) fn set(&self, stream: u64, status: &ProxyStatus) {
        let changed = self.streams.get_mut(&stream).is_some_and(|mut connection| {
            let changed = connection.status != *status;
            if changed {
                if connection.status.acked != status.acked {
                    connection.acked_at = Some(Timestamp::now());
                }
                connection.status = status.clone();
            }
            changed
        });
        if changed {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// The resources sent to the proxy on `stream`; `None` if it has disconnected.
    pub(crate) async fn inventory(&self, stream: u64) -> Option<Vec<SentResource>> {
        let requests = self.streams.get(&stream)?.inventory_requests.clone();
        let (sender, receiver) = oneshot::channel();
        requests.send(sender).await.ok()?;
        receiver.await.ok()
    }

    /// Notifies of each change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// All connected proxies with their streams, in order of connection. A proxy that opens a stream for each type is
    /// one proxy.
    pub(crate) fn proxies(&self) -> Vec<(Vec<u64>, ProxyStatus)> {
        let mut streams: Vec<(u64, ProxyStatus)> = self
            .streams
            .iter()
            .map(|connection| {
                let acked_at = connection.acked_at;
                (*connection.key(), ProxyStatus { acked_at, ..connection.status.clone() })
            })
            .collect();
        streams.sort_unstable_by_key(|(stream, _)| *stream);
        let mut found: Vec<(Vec<u64>, ProxyStatus)> = Vec::new();
        let mut by_id: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        for (stream, status) in streams {
            let same_id = by_id.entry(status.id.clone()).or_default();
            let joined = same_id
                .iter()
                .copied()
                .find(|n| found.get(*n).is_some_and(|(_, known)| known.is_joined_by(&status)));
            match joined.and_then(|n| found.get_mut(n)) {
                Some((streams, known)) => {
                    streams.push(stream);
                    known.join(&status);
                }
                None => {
                    same_id.push(found.len());
                    found.push((vec![stream], status));
                }
            }
        }
        found
    }

    /// Removes the proxy on `stream`.
    pub(crate) fn remove(&self, stream: u64) {
        // A stream that ended before its proxy was known has no entry.
        if self.streams.remove(&stream).is_some() {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// All connected proxies, in order of connection.
    pub(crate) fn list(&self) -> Vec<ProxyStatus> {
        self.proxies().into_iter().map(|(_, status)| status).collect()
    }

    /// Waits until the proxy with this node id has ACKed everything of `revision` or a later one on each of its
    /// streams.
    pub(crate) async fn acked(&self, id: &str, revision: MeshRevision) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if self.has_acked(id, revision) || changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn has_acked(&self, id: &str, revision: MeshRevision) -> bool {
        let mut found = false;
        for connection in self.streams.iter().filter(|connection| *connection.status.id == *id) {
            if connection.status.acked.is_none_or(|acked| acked < revision) {
                return false;
            }
            found = true;
        }
        found
    }
}
