//! Watches a single object of the Kubernetes API by its name, which permissions can be limited to.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::Resource;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::time::{Instant, timeout_at};

use crate::source::kubernetes::reason;

/// How long a watch that has failed must last until it counts as working.
const SETTLED: Duration = Duration::from_secs(3);

/// What a watch of a single object says.
pub(crate) enum Seen<K> {
    /// The object as it is now.
    Object(K),
    /// There is none.
    Absent,
    /// The watch fails, and why. It is tried again.
    Failed(String),
    /// The watch works after it has failed.
    Works,
}

/// A watch of a single object.
pub(crate) struct ObjectWatch<K> {
    events: BoxStream<'static, Result<watcher::Event<K>, watcher::Error>>,
    /// Whether the object is in the list in progress.
    listed: bool,
    /// Whether the watch has failed. A complete list does not mend that: the watch may fail again at once.
    failed: bool,
    /// When the watch counts as working if it does not fail.
    settled_at: Option<Instant>,
}

impl<K> ObjectWatch<K>
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    /// A watch of the object with this name.
    pub(crate) fn new(api: Api<K>, name: &str) -> Self {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let events = watcher(api, config).default_backoff().boxed();
        Self { events, listed: false, failed: false, settled_at: None }
    }

    /// What is seen next. Cancel safe.
    pub(crate) async fn next(&mut self) -> Seen<K> {
        loop {
            let Some(event) = self.event().await else {
                (self.failed, self.settled_at) = (false, None);
                return Seen::Works;
            };
            if event.is_ok() && self.failed {
                self.settled_at = Some(Instant::now() + SETTLED);
            }
            match event {
                Ok(watcher::Event::Init) => self.listed = false,
                Ok(watcher::Event::InitApply(object)) => {
                    self.listed = true;
                    return Seen::Object(object);
                }
                Ok(watcher::Event::Apply(object)) => return Seen::Object(object),
                Ok(watcher::Event::InitDone) if self.listed => {}
                Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => return Seen::Absent,
                Err(error) => {
                    if let Some(why) = failure(error) {
                        (self.failed, self.settled_at) = (true, None);
                        return Seen::Failed(why);
                    }
                }
            }
        }
    }

    /// The next event; `None` when the watch has settled.
    async fn event(&mut self) -> Option<Result<watcher::Event<K>, watcher::Error>> {
        let next = async {
            match self.events.next().await {
                Some(event) => event,
                // A watcher never ends.
                None => std::future::pending().await,
            }
        };
        match self.settled_at {
            Some(at) => timeout_at(at, next).await.ok(),
            None => Some(next.await),
        }
    }
}

/// Why a watch fails; `None` if it resumes or lists again by itself.
fn failure(error: watcher::Error) -> Option<String> {
    match error {
        watcher::Error::WatchFailed(_) => None,
        watcher::Error::WatchError(status) if status.code == 410 => None,
        watcher::Error::WatchError(status) => Some(status.message.clone()),
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            Some(reason(&error))
        }
        error @ watcher::Error::NoResourceVersion => Some(error.to_string()),
    }
}
