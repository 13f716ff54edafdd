//! Tracks the connected proxies and the mesh revision that each has ACKed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::stream::{HeldResource, Progress, RejectedResource, SentResource, Variant};
use crate::mesh::Proxy;
use crate::revision::MeshRevision;
use crate::snapshot::ResourceType;

/// The status of a connected proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyStatus {
    /// The node id.
    pub id: Arc<str>,
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// The streams that serve it.
    pub streams: Vec<StreamInfo>,
    /// Its progress with clusters, endpoints, listeners and routes.
    pub types: [Progress; 4],
    /// The newest mesh of which it has ACKed everything; `None` before the first.
    pub acked: Option<MeshRevision>,
    /// The newest mesh of which it has ACKed all but what is held back and what it refused.
    pub reached: Option<MeshRevision>,
    /// Whether nothing is in flight: everything missing is held back or rejected.
    pub resting: bool,
    /// The mesh it is to have.
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
pub struct StreamInfo {
    /// When it was opened.
    pub since: Timestamp,
    /// The variant of the protocol.
    pub variant: Variant,
    /// The one type that it is for; `None` for ADS.
    pub only: Option<ResourceType>,
}

impl ProxyStatus {
    /// Whether `other` is of another stream of the same proxy: one for a single type beside others. Two streams for all
    /// types are two proxies with one node id, or one that came back before its old connection ended.
    fn is_joined_by(&self, other: &Self) -> bool {
        let mut streams = self.streams.iter().chain(&other.streams);
        self.id == other.id && streams.any(|stream| stream.only.is_some())
    }

    /// Takes in what another stream of the same proxy says. The proxy has what all of its streams have.
    fn join(&mut self, other: &Self) {
        for (own, other) in self.types.iter_mut().zip(other.types) {
            if *own == Progress::None {
                *own = other;
            }
        }
        let both = |own: Option<MeshRevision>, other: Option<MeshRevision>| {
            own.zip(other).map(|(own, other)| own.min(other))
        };
        self.acked = both(self.acked, other.acked);
        self.reached = both(self.reached, other.reached);
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
pub type InventoryRequest = oneshot::Sender<Vec<SentResource>>;

/// All connected proxies.
#[derive(Debug, Default)]
pub struct Connections {
    proxies: Mutex<BTreeMap<u64, ProxyStatus>>,
    /// The request channel of each stream.
    inventory_requests: Mutex<BTreeMap<u64, mpsc::Sender<InventoryRequest>>>,
    changed: watch::Sender<u64>,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, ProxyStatus>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the status of the proxy on `stream`.
    pub fn set(&self, stream: u64, status: &ProxyStatus) {
        let mut proxies = self.lock();
        if proxies.get(&stream) != Some(status) {
            proxies.insert(stream, status.clone());
            drop(proxies);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Registers `stream` to answer inventory requests.
    pub fn register_inventory(&self, stream: u64) -> mpsc::Receiver<InventoryRequest> {
        let (sender, receiver) = mpsc::channel(4);
        self.inventory_requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(stream, sender);
        receiver
    }

    /// The resources sent to the proxy on `stream`; `None` if it has disconnected.
    pub async fn inventory(&self, stream: u64) -> Option<Vec<SentResource>> {
        let inventory_requests = self
            .inventory_requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&stream)
            .cloned()?;
        let (sender, receiver) = oneshot::channel();
        inventory_requests.send(sender).await.ok()?;
        receiver.await.ok()
    }

    /// Notifies of each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// All connected proxies with their streams, in the order in which they came. A proxy that opens a stream for each
    /// type is one proxy.
    pub fn proxies(&self) -> Vec<(Vec<u64>, ProxyStatus)> {
        let mut found: Vec<(Vec<u64>, ProxyStatus)> = Vec::new();
        let mut by_id: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        for (stream, status) in self.lock().iter() {
            let same_id = by_id.entry(status.id.clone()).or_default();
            let joined =
                |n: &&usize| found.get(**n).is_some_and(|(_, known)| known.is_joined_by(status));
            match same_id.iter().find(joined).copied().and_then(|n| found.get_mut(n)) {
                Some((streams, known)) => {
                    streams.push(*stream);
                    known.join(status);
                }
                None => {
                    same_id.push(found.len());
                    found.push((vec![*stream], status.clone()));
                }
            }
        }
        found
    }

    /// Removes the proxy on `stream`.
    pub fn remove(&self, stream: u64) {
        self.inventory_requests.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream);
        // Of a stream that never had a proxy there is nothing to tell.
        if self.lock().remove(&stream).is_some() {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// All connected proxies, in order of connection.
    pub fn list(&self) -> Vec<ProxyStatus> {
        self.proxies().into_iter().map(|(_, status)| status).collect()
    }

    /// Waits until the proxy with this node id has ACKed everything of `revision` or a later one on each of its
    /// streams.
    pub async fn acked(&self, id: &str, revision: MeshRevision) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if self.has_acked(id, revision) || changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn has_acked(&self, id: &str, revision: MeshRevision) -> bool {
        let proxies = self.lock();
        let mut streams = proxies.values().filter(|proxy| *proxy.id == *id).peekable();
        streams.peek().is_some()
            && streams.all(|item| item.acked.is_some_and(|acked| acked >= revision))
    }
}
