//! The truth: which proxy is connected, and which state of the mesh it has acked.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::stream::{Held, Item, Progress, Refused, Variant};
use crate::mesh::Proxy;
use crate::revision::MeshRevision;
use crate::snapshot::ResourceType;

/// What is known of one connected proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyStatus {
    /// The node id.
    pub id: Arc<str>,
    /// What it says of itself.
    pub proxy: Arc<Proxy>,
    /// The streams that serve it.
    pub streams: Vec<StreamInfo>,
    /// How far it is with clusters, endpoints, listeners and routes.
    pub types: [Progress; 4],
    /// The newest mesh of which it has ACKed everything; `None` before the first.
    pub acked: Option<MeshRevision>,
    /// The newest mesh of which it has ACKed all but what is held back and what it refused.
    pub reached: Option<MeshRevision>,
    /// Whether nothing is under way: all that is missing is held back or was refused.
    pub resting: bool,
    /// The mesh it is to have.
    pub wanted: Option<MeshRevision>,
    /// Why it counts as lagging; `None` where it does not.
    pub lagging: Option<String>,
    /// What it refused and keeps in the last form it took.
    pub refused: Vec<Refused>,
    /// Virtual hosts and listeners that keep their last form because the new one leads to a cluster that nothing
    /// defines.
    pub held: Vec<Held>,
    /// Clusters that nothing defines any more and that it keeps because something leads to them.
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
        let both =
            |own: Option<MeshRevision>, other: Option<MeshRevision>| own.zip(other).map(|(own, other)| own.min(other));
        self.acked = both(self.acked, other.acked);
        self.reached = both(self.reached, other.reached);
        self.wanted = self.wanted.max(other.wanted);
        self.resting &= other.resting;
        self.streams.extend(&other.streams);
        self.lagging = self.lagging.take().or_else(|| other.lagging.clone());
        self.refused.extend(other.refused.iter().cloned());
        self.held.extend(other.held.iter().cloned());
        self.kept.extend(other.kept.iter().cloned());
    }
}

/// A question to a stream: what was its client sent?
pub type Question = oneshot::Sender<Vec<Item>>;

/// All connected proxies.
#[derive(Debug, Default)]
pub struct Board {
    proxies: Mutex<BTreeMap<u64, ProxyStatus>>,
    /// By which each stream can be asked.
    questions: Mutex<BTreeMap<u64, mpsc::Sender<Question>>>,
    changed: watch::Sender<u64>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, ProxyStatus>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is known of the proxy on `stream`.
    pub fn set(&self, stream: u64, status: &ProxyStatus) {
        let mut proxies = self.lock();
        if proxies.get(&stream) != Some(status) {
            proxies.insert(stream, status.clone());
            drop(proxies);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Takes questions to `stream` from now on.
    pub fn answers(&self, stream: u64) -> mpsc::Receiver<Question> {
        let (sender, receiver) = mpsc::channel(4);
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, sender);
        receiver
    }

    /// What the proxy on `stream` was sent; `None` where it is gone.
    pub async fn inventory(&self, stream: u64) -> Option<Vec<Item>> {
        let questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner).get(&stream).cloned()?;
        let (sender, receiver) = oneshot::channel();
        questions.send(sender).await.ok()?;
        receiver.await.ok()
    }

    /// Tells of each change.
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
            let joined = |n: &&usize| found.get(**n).is_some_and(|(_, known)| known.is_joined_by(status));
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

    /// Forgets the proxy on `stream`.
    pub fn remove(&self, stream: u64) {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream);
        // Of a stream that never had a proxy there is nothing to tell.
        if self.lock().remove(&stream).is_some() {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// All connected proxies, in the order in which they came.
    pub fn list(&self) -> Vec<ProxyStatus> {
        self.proxies().into_iter().map(|(_, status)| status).collect()
    }

    /// Waits until the proxy with this node id has acked everything of state `revision` or a later one, on each of its
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
        let mut streams = proxies.values().filter(|one| *one.id == *id).peekable();
        streams.peek().is_some() && streams.all(|one| one.acked.is_some_and(|acked| acked >= revision))
    }
}
