//! Whether what a source has handed on is all there is. Those ask who wait for what was written a moment ago: a change
//! that weir has not heard of yet must not be taken for one that is live everywhere.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kube::Client;
use tokio::sync::mpsc;

use super::kubernetes;
use crate::api::ObjectKey;

/// Questions that may wait for a folder to be looked at.
const WAITING: usize = 64;

/// How new an object is where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newest {
    /// Its `metadata.generation` in the Kubernetes API.
    Generation(i64),
    /// The Kubernetes API does not have it.
    Absent,
    /// All that the folder held when it was asked for is handed on before [`super::Change::Mark`] with this number.
    Mark(u64),
}

/// Asks a source.
#[derive(Clone)]
pub struct Asker(Way);

#[derive(Clone)]
enum Way {
    Directory { looks: mpsc::Sender<u64>, asked: Arc<AtomicU64> },
    Kubernetes(Client),
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Way::Directory { .. } => "Asker(Directory)",
            Way::Kubernetes(_) => "Asker(Kubernetes)",
        })
    }
}

impl Asker {
    /// For [`super::directory::watch`], and what is to be handed to that.
    pub fn directory() -> (Self, mpsc::Receiver<u64>) {
        let (looks, asked) = mpsc::channel(WAITING);
        (Self(Way::Directory { looks, asked: Arc::default() }), asked)
    }

    /// For the Kubernetes API.
    pub fn kubernetes(client: Client) -> Self {
        Self(Way::Kubernetes(client))
    }

    /// How new the object is.
    ///
    /// # Errors
    /// Why the source can not say.
    pub async fn newest(&self, key: &ObjectKey) -> Result<Newest, String> {
        match &self.0 {
            Way::Directory { looks, asked } => {
                let mark = asked.fetch_add(1, Ordering::Relaxed) + 1;
                looks.send(mark).await.map_err(|_| "the folder is no longer read".to_owned())?;
                Ok(Newest::Mark(mark))
            }
            Way::Kubernetes(client) => kubernetes::newest(client, key).await,
        }
    }
}
