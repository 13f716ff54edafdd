//! The answers of the other replicas, for everybody who needs them: one task asks, as long as somebody reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::peers::{PeerAnswer, PeerOptions, PeerTable, Peers};

/// How long the other replicas are asked after the last reader has left. A rollout tool reads again every few seconds.
const LINGER: Duration = Duration::from_secs(120);

/// The answers of the other replicas.
#[derive(Clone, Debug)]
pub(crate) struct PeerAnswers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pod: String,
    table: Arc<Mutex<PeerTable>>,
    /// Counts what was new.
    news: watch::Sender<u64>,
    readers: watch::Sender<Readers>,
}

/// Who reads the answers.
#[derive(Clone, Copy, Debug, Default)]
struct Readers {
    /// How many read now.
    now: usize,
    /// How many have read so far: one that left before the task has seen it will ask again.
    ever: u64,
}

impl PeerAnswers {
    /// Those of the replicas that a [`PeerTask`] asks; without options there is only this one.
    pub(crate) fn new(options: Option<&PeerOptions>) -> Self {
        let service = options.and_then(|options| options.service.as_deref());
        Self(Arc::new(Shared {
            pod: options.map_or_else(|| "weir".to_owned(), |options| options.pod.clone()),
            table: Arc::new(Mutex::new(PeerTable::new(service))),
            news: watch::Sender::default(),
            readers: watch::Sender::default(),
        }))
    }

    /// The name of this replica's pod.
    pub(crate) fn pod(&self) -> &str {
        &self.0.pod
    }

    /// Reads them. The other replicas are asked at least until the reader is dropped.
    pub(crate) fn read(&self) -> PeerReader {
        self.0.readers.send_modify(|readers| {
            readers.now += 1;
            readers.ever += 1;
        });
        PeerReader { news: self.0.news.subscribe(), shared: self.0.clone() }
    }
}

/// Somebody who reads the answers.
#[derive(Debug)]
pub(crate) struct PeerReader {
    shared: Arc<Shared>,
    news: watch::Receiver<u64>,
}

impl PeerReader {
    /// The name of this replica's pod.
    pub(crate) fn pod(&self) -> &str {
        &self.shared.pod
    }

    /// Waits until something is new. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        // The sender cannot be dropped while `self` is borrowed.
        let _ = self.news.changed().await;
    }

    /// The answers of all other replicas. Fails with a time while one may still answer.
    ///
    /// # Errors
    /// When to ask again, unless something changes before.
    pub(crate) fn answers(&self, now: Instant) -> Result<Vec<PeerAnswer>, Instant> {
        self.shared.table.lock().answers(now)
    }

    /// When the answers change even if nothing happens.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Instant> {
        self.shared.table.lock().next_change(now)
    }
}

impl Drop for PeerReader {
    fn drop(&mut self) {
        self.shared.readers.send_modify(|readers| readers.now = readers.now.saturating_sub(1));
    }
}

/// Asks the other replicas while somebody reads their answers.
pub(crate) struct PeerTask {
    /// The Kubernetes API.
    pub client: Client,
    /// How to find them.
    pub options: PeerOptions,
    /// Where their answers go.
    pub answers: PeerAnswers,
    /// Ends it.
    pub closing: CancellationToken,
}

impl PeerTask {
    /// Asks until weir shuts down.
    ///
    /// # Errors
    /// Never.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let shared = &self.answers.0;
        let mut readers = shared.readers.subscribe();
        let mut seen = 0;
        loop {
            tokio::select! {
                () = next_reader(&mut readers, &mut seen) => {}
                () = self.closing.cancelled() => return Ok(()),
            }
            let mut peers = Peers::new(&self.client, &self.options, shared.table.clone());
            let mut unread = std::pin::pin!(unread(&mut readers, &mut seen, LINGER));
            loop {
                tokio::select! {
                    () = peers.changed() => shared.news.send_modify(|n| *n += 1),
                    () = &mut unread => break,
                    () = self.closing.cancelled() => return Ok(()),
                }
            }
            // What they answered once is not what they would answer now.
            *shared.table.lock() = PeerTable::new(self.options.service.as_deref());
            shared.news.send_modify(|n| *n += 1);
        }
    }
}

/// Waits until somebody reads, or has read since `seen`.
async fn next_reader(readers: &mut watch::Receiver<Readers>, seen: &mut u64) {
    // The sender lives as long as the task.
    if let Ok(found) = readers.wait_for(|readers| readers.now > 0 || readers.ever > *seen).await {
        *seen = found.ever;
    }
}

/// Waits until nobody has read for some time.
async fn unread(readers: &mut watch::Receiver<Readers>, seen: &mut u64, time: Duration) {
    loop {
        let _ = readers.wait_for(|readers| readers.now == 0).await;
        if tokio::time::timeout(time, next_reader(readers, seen)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_others_are_asked_as_long_as_somebody_reads() {
        let answers = PeerAnswers::new(None);
        let (mut readers, mut seen) = (answers.0.readers.subscribe(), 0);
        let (first, second) = (answers.read(), answers.read());
        drop(first);
        let time = Duration::from_millis(1);
        let ended = tokio::time::timeout(time * 20, unread(&mut readers, &mut seen, time)).await;
        assert!(ended.is_err());
        drop(second);
        unread(&mut readers, &mut seen, time).await;
    }

    #[tokio::test]
    async fn a_reader_that_has_left_already_counts() {
        let answers = PeerAnswers::new(None);
        let (mut readers, mut seen) = (answers.0.readers.subscribe(), 0);
        for n in 1..=2 {
            drop(answers.read());
            next_reader(&mut readers, &mut seen).await;
            assert_eq!(seen, n);
        }
    }

    #[test]
    fn without_a_service_of_replicas_there_are_no_others() {
        let reader = PeerAnswers::new(None).read();
        assert!(reader.answers(Instant::now()).is_ok_and(|answers| answers.is_empty()));
        assert_eq!((reader.pod(), reader.next_change(Instant::now())), ("weir", None));
    }
}
