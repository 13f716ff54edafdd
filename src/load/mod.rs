//! What proxies report of their requests: how many each sent to which cluster, and how they ended.
//!
//! A proxy that has load reports in its bootstrap opens a stream for them (`src/xds/load.rs` serves it), is told the
//! clusters of all weighted routes ([`named`]), and reports them once in each interval. [`Loads`] keeps the reports of the
//! last time by proxy ([`window`]), and when each proxy had which state of the mesh, so that requests under old weights are
//! not taken for those under new ones. [`interval`] says how much the counts tell.
//!
//! Everything is bounded: the clusters of the list, the counts that are kept, the proxies that have gone.

pub(crate) mod interval;
mod message;
mod named;
mod window;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::mesh::Proxy;
use crate::metrics::LoadMetrics;
use crate::revision::MeshRevision;

pub(crate) use message::LoadStatsRequest;
pub(crate) use named::{Cluster, Named};
pub(crate) use window::{Counts, Report};

use message::ClusterStats;
use window::{Acks, Window};

/// The maximum number of counts that are kept, each of 20 bytes: of a cluster in a slot of the window of a proxy.
const MOST_COUNTS: usize = 1 << 20;

/// The maximum number of proxies whose reports are kept after they have gone.
const MOST_GONE: usize = 4096;

/// Into how many slots the window is divided at most.
const SLOTS: u32 = 16;

/// The memory of a count in bytes.
const COUNT: usize = size_of::<(u32, Counts)>();

/// How load is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSettings {
    /// How often proxies report.
    pub interval: Duration,
    /// How long a report counts after it has arrived.
    pub window: Duration,
}

impl Default for LoadSettings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), window: Duration::from_secs(60) }
    }
}

impl LoadSettings {
    fn slot(&self) -> Duration {
        self.window / SLOTS
    }
}

/// The reports of all proxies of this replica.
#[derive(Debug)]
pub(crate) struct Loads {
    settings: LoadSettings,
    named: watch::Sender<Arc<Named>>,
    /// By node id.
    proxies: DashMap<Arc<str>, Arc<ProxyLoads>>,
    /// How many of the proxies have gone.
    gone: AtomicUsize,
    /// How many counts are kept.
    counts: AtomicUsize,
    /// Counts the proxies that connected.
    arrivals: watch::Sender<u64>,
    metrics: LoadMetrics,
}

/// The reports of a proxy.
#[derive(Debug)]
pub(crate) struct ProxyLoads {
    /// Its node id.
    pub id: Arc<str>,
    /// The proxy.
    pub proxy: Arc<Proxy>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// How many streams serve its configuration.
    served: usize,
    /// How many streams bring its reports.
    streams: usize,
    acks: Acks,
    window: Window,
    /// Until when something is missing in the window, because there was no room.
    cut_until: Option<Instant>,
}

impl ProxyLoads {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }

    /// From when on its requests follow this state of the mesh; `None` if it does not have it.
    pub(crate) fn follows_since(&self, revision: MeshRevision) -> Option<Instant> {
        self.lock().acks.since(revision)
    }

    /// Hands the reports of periods that began at `from` or later to `take`, of a proxy that knew this version of the
    /// list. Returns whether a report is missing because there was no room for it.
    pub(crate) fn reports(&self, from: Instant, list: u64, take: impl FnMut(&Report)) -> bool {
        let kept = self.lock();
        kept.window.since(from, list).for_each(take);
        kept.cut_until.is_some_and(|until| until >= from)
    }

    /// When the last report arrived.
    pub(crate) fn last_report(&self) -> Option<Instant> {
        self.lock().window.last()
    }
}

/// Why a stream of reports cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The configuration of the proxy does not come from here.
    #[error(
        "the configuration of this proxy does not come from this replica; open the stream where the ADS stream is"
    )]
    Elsewhere,
    /// There are more streams of reports than of configuration.
    #[error("this proxy reports on another stream already")]
    TooMany,
    /// A report is malformed.
    #[error("a cluster of the report cannot be decoded")]
    Malformed,
}

/// A stream that serves the configuration of a proxy.
#[derive(Debug)]
pub(crate) struct Presence {
    loads: Arc<Loads>,
    proxy: Arc<ProxyLoads>,
    acked: MeshRevision,
}

impl Presence {
    /// The proxy has all of this state of the mesh.
    pub(crate) fn acked(&mut self, revision: MeshRevision) {
        if revision > self.acked {
            self.acked = revision;
            let slot = self.loads.settings.slot();
            self.proxy.lock().acks.push(Instant::now(), revision, slot);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.loads.disconnected(&self.proxy.id);
    }
}

/// A stream that brings the reports of a proxy.
#[derive(Debug)]
pub(crate) struct Reporter {
    loads: Arc<Loads>,
    proxy: Arc<ProxyLoads>,
    /// The version of the list that the proxy was told last.
    told: u64,
    /// When the last report arrived.
    last: Option<Instant>,
    /// Whether there is nothing to report.
    is_waiting: bool,
}

impl Loads {
    /// Without any report.
    pub(crate) fn new(settings: LoadSettings, metrics: LoadMetrics) -> Self {
        Self {
            settings,
            named: watch::Sender::new(Arc::new(Named::first(settings.interval))),
            proxies: DashMap::new(),
            gone: AtomicUsize::new(0),
            counts: AtomicUsize::new(0),
            arrivals: watch::Sender::default(),
            metrics,
        }
    }

    /// How load is reported.
    pub(crate) fn settings(&self) -> LoadSettings {
        self.settings
    }

    /// From now on proxies report these clusters.
    pub(crate) fn name(&self, clusters: &BTreeSet<String>) {
        let next = self.named.borrow().next(clusters, self.settings.interval, &self.metrics);
        if let Some(next) = next {
            self.named.send_replace(Arc::new(next));
        }
    }

    /// The clusters that proxies report.
    pub(crate) fn named(&self) -> Arc<Named> {
        self.named.borrow().clone()
    }

    /// A stream serves the configuration of a proxy until what this returns is dropped.
    pub(crate) fn connected(self: &Arc<Self>, id: &Arc<str>, proxy: &Arc<Proxy>) -> Presence {
        let entry = self.proxies.entry(id.clone()).or_insert_with(|| {
            let (id, proxy, kept) = (id.clone(), proxy.clone(), Mutex::default());
            Arc::new(ProxyLoads { id, proxy, kept })
        });
        let mut kept = entry.lock();
        if kept.served == 0 && !kept.window.is_empty() {
            self.gone.fetch_sub(1, Ordering::Relaxed);
        }
        kept.served += 1;
        drop(kept);
        let proxy = entry.value().clone();
        drop(entry);
        self.arrivals.send_modify(|count| *count += 1);
        Presence { loads: self.clone(), proxy, acked: MeshRevision::NONE }
    }

    /// A stream no longer serves the configuration of a proxy. What it reported counts until it leaves the window.
    fn disconnected(&self, id: &str) {
        self.proxies.remove_if(id, |_, entry| {
            let mut kept = entry.lock();
            kept.served = kept.served.saturating_sub(1);
            if kept.served > 0 {
                return false;
            }
            let remove = kept.window.is_empty() || self.gone.load(Ordering::Relaxed) >= MOST_GONE;
            if remove {
                self.counts.fetch_sub(kept.window.len(), Ordering::Relaxed);
                kept.window = Window::default();
            } else {
                self.gone.fetch_add(1, Ordering::Relaxed);
            }
            remove
        });
    }

    /// Waits until a stream serves the configuration of this proxy. Cancel safe.
    pub(crate) async fn served(&self, id: &str) {
        let mut arrivals = self.arrivals.subscribe();
        while !self.serves(id) {
            if arrivals.changed().await.is_err() {
                return;
            }
        }
    }

    fn serves(&self, id: &str) -> bool {
        self.proxies.get(id).is_some_and(|entry| entry.lock().served > 0)
    }

    /// A stream brings the reports of a proxy.
    ///
    /// # Errors
    /// The configuration of the proxy does not come from here.
    pub(crate) fn open(self: &Arc<Self>, id: &str) -> Result<Reporter, Refused> {
        let proxy = self.proxies.get(id).map(|entry| entry.value().clone());
        let proxy = proxy.ok_or(Refused::Elsewhere)?;
        let mut kept = proxy.lock();
        // One more than there should be, for a proxy that connects again before its old stream has ended.
        match (kept.served, kept.streams) {
            (0, _) => return Err(Refused::Elsewhere),
            (served, streams) if streams > served => return Err(Refused::TooMany),
            _ => kept.streams += 1,
        }
        drop(kept);
        self.metrics.streams.inc();
        Ok(Reporter { loads: self.clone(), proxy, told: 0, last: None, is_waiting: false })
    }

    /// All proxies that are connected, or have reported within the window.
    pub(crate) fn proxies(&self) -> Vec<Arc<ProxyLoads>> {
        self.forget();
        self.proxies.iter().map(|entry| entry.value().clone()).collect()
    }

    /// Forgets what has left the window.
    pub(crate) fn forget(&self) {
        let Some(oldest) = Instant::now().checked_sub(self.settings.window) else {
            return;
        };
        self.proxies.retain(|_, entry| {
            let mut kept = entry.lock();
            let had_reports = !kept.window.is_empty();
            self.forget_of(&mut kept, oldest);
            let stays = kept.served > 0 || !kept.window.is_empty();
            if !stays && had_reports {
                self.gone.fetch_sub(1, Ordering::Relaxed);
            }
            stays
        });
    }

    fn forget_of(&self, kept: &mut Kept, oldest: Instant) {
        let before = kept.window.len();
        kept.window.forget_before(oldest);
        kept.acks.forget_before(oldest);
        kept.cut_until = kept.cut_until.filter(|until| *until >= oldest);
        self.counts.fetch_sub(before - kept.window.len(), Ordering::Relaxed);
    }

    fn keep(&self, kept: &mut Kept, report: Report) {
        let before = kept.window.len();
        let is_full = self.counts.load(Ordering::Relaxed) + report.clusters.len() > MOST_COUNTS;
        if is_full {
            self.metrics.left_out.inc();
            kept.cut_until = Some(report.ended);
            return;
        }
        let apart = kept.acks.last();
        kept.window.push(report, self.settings.slot(), apart);
        self.counts.fetch_add(kept.window.len() - before, Ordering::Relaxed);
    }
}

impl Reporter {
    /// The answer that is due: the list of clusters, if it has changed since the last one. To be sent only right after a
    /// request or after [`Reporter::waited`], because Envoy begins a new period with each answer.
    pub(crate) fn answer(&mut self) -> Option<Bytes> {
        let named = self.loads.named();
        let is_same = self.told == named.version();
        // Envoy does not report without clusters, nor before the first answer.
        self.is_waiting = named.is_empty();
        if is_same || (self.is_waiting && self.told == 0) {
            return None;
        }
        self.told = named.version();
        Some(named.response())
    }

    /// Waits until there is something to report, if there is nothing. Cancel safe.
    pub(crate) async fn waited(&self) {
        if !self.is_waiting {
            return std::future::pending().await;
        }
        let mut named = self.loads.named.subscribe();
        // The sender lives as long as the stream.
        let _ = named.wait_for(|named| !named.is_empty()).await;
    }

    /// Takes in a request, which arrived now. The first one of a stream may have a report as well: of what happened
    /// since the last stream of the same proxy.
    ///
    /// # Errors
    /// A cluster is malformed, or the configuration of the proxy no longer comes from here.
    pub(crate) fn take(&mut self, request: &LoadStatsRequest) -> Result<(), Refused> {
        let (now, named) = (Instant::now(), self.loads.named());
        let mut longest = Duration::ZERO;
        let mut clusters = Vec::new();
        for bytes in &request.cluster_stats {
            let stats = ClusterStats::read(bytes).map_err(|_| Refused::Malformed)?;
            longest = longest.max(stats.interval());
            let Some(counts) = stats.counts() else { continue };
            let name = std::str::from_utf8(stats.name).ok();
            if let Some(cluster) = name.and_then(|name| named.get(name)) {
                cluster.count(counts);
                clusters.push((cluster.id, counts));
            }
        }
        let is_report = self.last.is_some() || !request.cluster_stats.is_empty();
        let began = now.checked_sub(longest).unwrap_or(now).min(self.last.unwrap_or(now));
        self.last = Some(now);
        let mut kept = self.proxy.lock();
        if kept.served == 0 {
            return Err(Refused::Elsewhere);
        }
        if !is_report {
            return Ok(());
        }
        self.loads.metrics.reports.inc();
        clusters.sort_unstable_by_key(|(id, _)| *id);
        clusters.dedup_by_key(|(id, _)| *id);
        if let Some(oldest) = now.checked_sub(self.loads.settings.window) {
            self.loads.forget_of(&mut kept, oldest);
        }
        self.loads.keep(&mut kept, Report { began, ended: now, list: self.told, clusters });
        Ok(())
    }

    /// The bytes that are kept of the proxy.
    pub(crate) fn held_bytes(&self) -> usize {
        self.proxy.lock().window.len() * COUNT
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let mut kept = self.proxy.lock();
        kept.streams = kept.streams.saturating_sub(1);
        self.loads.metrics.streams.dec();
    }
}

#[cfg(test)]
mod tests;
