//! The task that records what becomes of objects on the proxies, and of the watches of the API.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Observer, SharedTimeline, Watches};
use crate::source::sync::KindSync;
use crate::status::Published;
use crate::xds::connections::Connections;

/// The shortest time between two looks at the proxies. What happens meanwhile is recorded together.
const PACE: Duration = Duration::from_millis(250);

/// The longest, however long a look takes.
const LONGEST: Duration = Duration::from_secs(30);

/// How often what changes by time alone is looked at: the age of an answer, an object that nobody sees.
const TICK: Duration = Duration::from_secs(5);

/// Watches the proxies, the published state and the watches of the API.
pub(crate) struct Follower {
    /// Where the entries go.
    pub timeline: SharedTimeline,
    /// The published state.
    pub published: Arc<Published>,
    /// The proxies.
    pub connections: Arc<Connections>,
    /// How far the source is with each kind; nothing changes if objects come from a folder.
    pub sync: watch::Receiver<Vec<KindSync>>,
    /// Ends it.
    pub closing: CancellationToken,
}

impl Follower {
    /// Records until weir shuts down.
    ///
    /// # Errors
    /// A computation panicked.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let (mut proxies, mut states) = (self.connections.changes(), self.published.changes());
        let (mut observer, mut watches) = (Observer::default(), Watches::default());
        let (mut news, mut reads_api) = (true, true);
        loop {
            let begun = Instant::now();
            if news || observer.waits() {
                proxies.mark_unchanged();
                states.mark_unchanged();
                observer = self.observe(observer).await?;
            }
            let kinds = self.sync.borrow_and_update().clone();
            self.timeline.record(watches.observe(&kinds, Timestamp::now()));
            // At most a fiftieth of the time: while many proxies connect, each look concerns every object and every proxy.
            // Entries come later then, with the times at which things happened.
            let pause = PACE.max(begun.elapsed() * 49).min(LONGEST);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.closing.cancelled() => return Ok(()),
            }
            news = tokio::select! {
                // The senders live as long as this task.
                _ = proxies.changed() => true,
                _ = states.changed() => true,
                changed = self.sync.changed(), if reads_api => {
                    reads_api = changed.is_ok();
                    false
                }
                () = tokio::time::sleep(TICK) => false,
                () = self.closing.cancelled() => return Ok(()),
            };
        }
    }

    /// Looks at the proxies once.
    async fn observe(&self, mut observer: Observer) -> anyhow::Result<Observer> {
        let publications = self.timeline.take_publications();
        let (state, connected) = (self.published.state(), self.connections.list());
        // With many proxies that keeps a thread busy.
        let work = tokio::task::spawn_blocking(move || {
            let notes = observer.observe(&state, &connected, publications, Timestamp::now());
            (observer, notes)
        });
        let (observer, notes) = work.await?;
        self.timeline.record(notes);
        Ok(observer)
    }
}
