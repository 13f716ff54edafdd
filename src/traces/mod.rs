//! OpenTelemetry traces: each change of a VirtualService or DestinationRule is one trace, from the moment weir received it
//! until the last proxy has ACKed it.
//!
//! The time line says what happened ([`crate::timeline`]). What becomes of its entries is decided by pure functions
//! ([`follow::Traces`]); one task reads them ([`Follower`]), and another sends what is finished to the collector
//! ([`Exporter`]), through a bounded queue. What does not fit is dropped and counted.

mod change;
mod export;
mod follow;
mod options;
mod span;
#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::export::Exporter;
use self::follow::{Trace, Traces};
use self::span::Ids;
use crate::metrics::TraceMetrics;
use crate::timeline::{Of, SharedTimeline};

pub use options::TraceOptions;

/// The most traces that wait to be sent. One has four spans, and with what proxies reject a few kilobytes.
const WAITING: usize = 2048;

/// The shortest time between two looks at the time line.
const PACE: Duration = Duration::from_millis(250);

/// The two tasks: one follows `timeline` as soon as weir is `ready`, the other sends.
pub(crate) fn start(
    options: TraceOptions,
    timeline: SharedTimeline,
    ready: watch::Receiver<bool>,
    metrics: TraceMetrics,
    closing: CancellationToken,
) -> (Follower, Exporter) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let exporter = Exporter::new(options, receiver, metrics.clone(), closing.clone());
    (Follower { timeline, ready, sender, metrics, closing }, exporter)
}

/// Makes traces of the entries of the time line.
pub(crate) struct Follower {
    timeline: SharedTimeline,
    ready: watch::Receiver<bool>,
    sender: mpsc::Sender<Trace>,
    metrics: TraceMetrics,
    closing: CancellationToken,
}

impl Follower {
    /// Follows until weir shuts down.
    ///
    /// # Errors
    /// None; tasks of the control plane have them.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut changes = self.timeline.changes();
        tokio::select! {
            ready = self.ready.wait_for(|ready| *ready) => if ready.is_err() { return Ok(()) },
            () = self.closing.cancelled() => return Ok(()),
        }
        let mut traces = Traces::new(self.timeline.start(), Ids::random());
        let mut read = 0;
        loop {
            changes.mark_unchanged();
            self.read(&mut traces, &mut read);
            self.send(traces.expire(Timestamp::now()));
            self.metrics.dropped(traces.take_left_out());
            tokio::select! {
                () = tokio::time::sleep(PACE) => {}
                () = self.closing.cancelled() => break,
            }
            let deadline = traces.deadline();
            tokio::select! {
                // The sender lives as long as this task.
                _ = changes.changed() => {}
                () = until(deadline) => {}
                () = self.closing.cancelled() => break,
            }
        }
        self.read(&mut traces, &mut read);
        self.send(traces.stop(Timestamp::now()));
        Ok(())
    }

    /// Takes in the entries with a greater number than `read`.
    fn read(&self, traces: &mut Traces, read: &mut u64) {
        let reading = self.timeline.read(&Of::All, *read);
        // Old entries give way when many come at once.
        let is_whole = reading.entries.len() as u64 == reading.newest.saturating_sub(*read);
        if !is_whole {
            traces.lose();
        }
        *read = reading.newest;
        self.send(traces.read(&reading.entries));
    }

    /// Queues traces, and drops those for which there is no room.
    fn send(&self, traces: Vec<Trace>) {
        for trace in traces {
            let spans = trace.len() as u64;
            if self.sender.try_send(trace).is_err() {
                self.metrics.dropped(spans);
            }
        }
    }
}

/// Waits until this time, or forever if there is none.
async fn until(time: Option<Timestamp>) {
    match time {
        Some(time) => {
            let left = time.duration_since(Timestamp::now());
            tokio::time::sleep(left.try_into().unwrap_or_default()).await;
        }
        None => std::future::pending().await,
    }
}
