//! Asks a source whether it has delivered everything that exists.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kube::Client;
use tokio::sync::mpsc;

use super::freshness::Freshness;
use super::kubernetes;
use crate::api::ObjectKey;

/// How many scan requests may be queued.
const WAITING: usize = 64;

/// Asks a source how fresh an object is.
#[derive(Clone)]
pub(crate) struct FreshnessProbe(Backend);

#[derive(Clone)]
enum Backend {
    Directory { scan_requests: mpsc::Sender<u64>, asked: Arc<AtomicU64> },
    Kubernetes(Client),
    None,
}

impl fmt::Debug for FreshnessProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Backend::Directory { .. } => "FreshnessProbe(Directory)",
            Backend::Kubernetes(_) => "FreshnessProbe(Kubernetes)",
            Backend::None => "FreshnessProbe(None)",
        })
    }
}

impl FreshnessProbe {
    /// A probe for a folder, and the receiver to pass to [`super::directory::watch`].
    pub(crate) fn directory() -> (Self, mpsc::Receiver<u64>) {
        let (scan_requests, asked) = mpsc::channel(WAITING);
        (Self(Backend::Directory { scan_requests, asked: Arc::default() }), asked)
    }

    /// A probe for the Kubernetes API.
    pub(crate) fn kubernetes(client: Client) -> Self {
        Self(Backend::Kubernetes(client))
    }

    /// A probe for a source that cannot tell.
    pub(crate) fn none() -> Self {
        Self(Backend::None)
    }

    /// The freshness of an object.
    ///
    /// # Errors
    /// Why the source does not know.
    pub(crate) async fn freshness(&self, key: &ObjectKey) -> Result<Freshness, String> {
        match &self.0 {
            Backend::Directory { scan_requests, asked } => {
                let barrier = asked.fetch_add(1, Ordering::Relaxed) + 1;
                scan_requests
                    .send(barrier)
                    .await
                    .map_err(|_| "the folder is no longer read".to_owned())?;
                Ok(Freshness::Barrier(barrier))
            }
            Backend::Kubernetes(client) => kubernetes::freshness(client, key).await,
            Backend::None => {
                Err("its source does not tell whether it was read completely".to_owned())
            }
        }
    }
}
