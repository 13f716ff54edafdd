//! The truth: which proxy is connected, and which state of the mesh it has acked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// What is known of one connected proxy.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ProxyStatus {
    /// The node id.
    pub id: Arc<str>,
    /// `sotw` or `delta`.
    pub variant: &'static str,
    /// The newest state of the mesh it has acked all of; `None` before the first.
    pub acked: Option<u64>,
    /// The state it is to have.
    pub wanted: Option<u64>,
    /// The last thing it refused since it last acked everything, and why.
    pub refused: Option<String>,
}

/// All connected proxies.
#[derive(Debug, Default)]
pub struct Board {
    proxies: Mutex<BTreeMap<u64, ProxyStatus>>,
    changed: watch::Sender<u64>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, ProxyStatus>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is known of the proxy on `stream`.
    pub fn set(&self, stream: u64, status: ProxyStatus) {
        let mut proxies = self.lock();
        if proxies.get(&stream) != Some(&status) {
            proxies.insert(stream, status);
            drop(proxies);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Forgets the proxy on `stream`.
    pub fn remove(&self, stream: u64) {
        self.lock().remove(&stream);
        self.changed.send_modify(|n| *n += 1);
    }

    /// All connected proxies, in the order in which they came.
    pub fn list(&self) -> Vec<ProxyStatus> {
        self.lock().values().cloned().collect()
    }

    /// Waits until a proxy with this node id has acked everything of state `revision` or a later one.
    pub async fn acked(&self, id: &str, revision: u64) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if self.lock().values().any(|one| *one.id == *id && one.acked.is_some_and(|acked| acked >= revision)) {
                return;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}
