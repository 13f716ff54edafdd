//! The phase `loads`: what the load reports of all proxies cost. Each proxy opens a stream for them beside its ADS stream,
//! is told which clusters to report and how often, and reports all of them once in each interval, as Envoy does. Their
//! counts are made up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::config::core::v3::Locality;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsResponse;
use envoy_types::pb::google::protobuf::Duration as PbDuration;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;

use super::phases::Bench;
use super::process::reset_peak;
use super::proto::Request;
use super::proxies::{Arrivals, Event};
use super::report::{Before, LoadFigures, Round, cpu_between};
use super::transport::{Connection, Memory};
use crate::envoy::Admin;
use crate::timer::at;

/// Requests to each cluster that gets some, in each interval.
const REQUESTS: u64 = 100;

/// How many of them fail.
const ERRORS: u64 = 1;

/// How often the server is asked how many reports it has received.
const POLL: Duration = Duration::from_millis(10);

/// What proxies report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoadSettings {
    /// How often weir asks for reports. Streams are opened over this time, so that reports are spread.
    pub interval: Duration,
    /// How many reports of each proxy are measured.
    pub reports: usize,
    /// To how many services each proxy sends requests.
    pub services: usize,
}

/// A run of the phase, which all proxies share.
#[derive(Debug)]
pub(crate) struct Run {
    settings: LoadSettings,
    proxies: usize,
    /// Whether reports are measured yet.
    measuring: AtomicBool,
    reports: AtomicU64,
    bytes: AtomicU64,
    /// The last list of clusters that the server asked for, which is the same for all proxies.
    asked: Mutex<Option<(Bytes, Arc<Asked>)>>,
}

/// A proxy that reports.
pub(super) struct Reporter<'a> {
    /// Its connection.
    pub connection: &'a Connection,
    /// Its encoded `Node`.
    pub node: &'a Bytes,
    /// Its number among all.
    pub number: usize,
    /// Is told when the proxy knows what to report, and when it has sent all that is measured.
    pub events: &'a mpsc::Sender<Event>,
}

impl Run {
    /// A run with as many proxies.
    pub(super) fn new(settings: LoadSettings, proxies: usize) -> Self {
        Self {
            settings,
            proxies,
            measuring: AtomicBool::new(false),
            reports: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            asked: Mutex::default(),
        }
    }

    fn asked(&self, message: &[u8]) -> anyhow::Result<Arc<Asked>> {
        let mut last = self.asked.lock();
        if let Some((known, asked)) = &*last
            && known == message
        {
            return Ok(asked.clone());
        }
        let asked = Arc::new(Asked::read(message)?);
        *last = Some((Bytes::copy_from_slice(message), asked.clone()));
        Ok(asked)
    }

    /// Reports until the stream ends.
    ///
    /// # Errors
    /// The stream ended.
    pub(super) async fn report(&self, proxy: &Reporter<'_>) -> anyhow::Result<()> {
        let LoadSettings { interval, reports, services } = self.settings;
        let turn = proxy.number as f64 / self.proxies.max(1) as f64;
        tokio::time::sleep(interval.mul_f64(turn.min(1.0))).await;
        let node = Request::default().field(1, proxy.node).done();
        let memory = Memory::default();
        let mut stream = proxy.connection.load_reports(vec![node.clone()], memory).await?;
        let (mut asked, mut due, mut measured): (Option<Arc<Asked>>, _, _) = (None, None, 0);
        loop {
            tokio::select! {
                answer = stream.next() => {
                    let (message, _permit) = answer?;
                    let now = self.asked(&message)?;
                    due = Some(tokio::time::Instant::now() + now.interval);
                    if asked.replace(now).is_none() {
                        proxy.events.send(Event::Told(Instant::now())).await?;
                    }
                }
                () = at(due) => {
                    let Some(asked) = &asked else { continue };
                    let report = asked.report(&node, proxy.number, services);
                    self.bytes.fetch_add(report.len() as u64, Ordering::Relaxed);
                    self.reports.fetch_add(1, Ordering::Relaxed);
                    stream.send(vec![report]).await?;
                    measured += usize::from(self.measuring.load(Ordering::SeqCst));
                    due = Some(tokio::time::Instant::now() + asked.interval);
                    if measured == reports {
                        due = None;
                        proxy.events.send(Event::Reported(Instant::now())).await?;
                    }
                }
            }
        }
    }
}

/// What a server asked for.
#[derive(Debug)]
struct Asked {
    interval: Duration,
    clusters: Vec<Reported>,
    /// The number of services that the clusters belong to.
    services: usize,
}

/// A cluster as an encoded field of a report.
#[derive(Debug)]
struct Reported {
    /// The number of its service.
    service: usize,
    /// Without requests.
    idle: Bytes,
    /// With requests.
    busy: Bytes,
}

impl Asked {
    fn read(message: &[u8]) -> anyhow::Result<Self> {
        let response = LoadStatsResponse::decode(message)?;
        let interval = response.load_reporting_interval.unwrap_or_default();
        let (seconds, nanos) = (u64::try_from(interval.seconds), u32::try_from(interval.nanos));
        let given = seconds.ok().zip(nanos.ok()).filter(|(_, nanos)| *nanos < 1_000_000_000);
        let given = given.map(|(seconds, nanos)| Duration::new(seconds, nanos));
        let given = given.filter(|interval| !interval.is_zero());
        let Some(given) = given else {
            bail!("the server asks for load reports every {interval:?}; expected more than 0");
        };
        let mut services: BTreeMap<String, usize> = BTreeMap::new();
        let mut clusters = Vec::new();
        for name in response.clusters {
            let host = name.rsplit('|').next().unwrap_or_default().to_owned();
            let next = services.len();
            let service = *services.entry(host).or_insert(next);
            let [idle, busy] = [false, true].map(|is_busy| encoded(&name, interval, is_busy));
            clusters.push(Reported { service, idle, busy });
        }
        Ok(Self { interval: given, clusters, services: services.len() })
    }

    /// A report of the proxy with this number, which sends requests to as many services: other ones than its neighbors.
    fn report(&self, node: &Bytes, number: usize, services: usize) -> Bytes {
        let first = number.wrapping_mul(services) % self.services.max(1);
        let mut report = BytesMut::new();
        report.put_slice(node);
        for cluster in &self.clusters {
            let after = (cluster.service + self.services - first) % self.services.max(1);
            report.put_slice(if after < services { &cluster.busy } else { &cluster.idle });
        }
        report.freeze()
    }
}

/// The field `cluster_stats` for a cluster. Envoy reports clusters without requests as well, and names the one of EDS.
fn encoded(name: &str, interval: PbDuration, is_busy: bool) -> Bytes {
    let requests = UpstreamLocalityStats {
        locality: Some(Locality::default()),
        total_successful_requests: REQUESTS - ERRORS,
        total_error_requests: ERRORS,
        total_issued_requests: REQUESTS,
        ..Default::default()
    };
    let stats = ClusterStats {
        cluster_name: name.to_owned(),
        cluster_service_name: name.to_owned(),
        upstream_locality_stats: if is_busy { vec![requests] } else { Vec::new() },
        load_report_interval: Some(interval),
        ..Default::default()
    };
    let mut field = Request::default();
    field.repeated(2, &stats.encode_to_vec());
    field.done()
}

/// What the server says of the reports.
#[derive(Debug, Clone, Copy)]
struct Received {
    reports: u64,
    left_out: u64,
}

async fn received(admin: &Admin) -> anyhow::Result<Received> {
    let text = admin.get("/metrics").await.context("weir does not tell its metrics")?;
    let text = String::from_utf8_lossy(&text);
    let [reports, left_out] = ["weir_load_reports_total", "weir_load_reports_left_out_total"]
        .map(|name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()));
    let (Some(reports), Some(left_out)) = (reports, left_out) else {
        bail!("the metrics of weir lack weir_load_reports_total: it is too old for load reports");
    };
    Ok(Received { reports, left_out })
}

/// The CPU time of the server, in percent of a core.
fn cpu_percent(before: &Before, after: &Before, took: Duration) -> Option<f64> {
    let seconds = cpu_between(before.server, after.server)?;
    Some(100.0 * seconds / took.as_secs_f64().max(f64::MIN_POSITIVE))
}

impl Bench<'_> {
    /// Runs the phase: the proxies are idle for a while, then report for as long.
    ///
    /// # Errors
    /// A stream ends, or the server does not ask for reports.
    pub(super) async fn loads(&mut self) -> anyhow::Result<Round> {
        let settings = self.settings.loads;
        let within = self.settings.timeout;
        let period = settings.interval * u32::try_from(settings.reports).unwrap_or(u32::MAX);
        self.proxies.quiet(self.settings.settle).await;
        if let Some(pid) = self.pid {
            reset_peak(pid);
        }
        let known = match &self.admin {
            Some(admin) => Some(received(admin).await?),
            None => None,
        };
        (self.progress)(&format!("loads, {} s without reports", period.as_secs_f64()));
        let (idle, begun) = (self.now(), Instant::now());
        tokio::time::sleep(period).await;
        let idle_cpu_percent = cpu_percent(&idle, &self.now(), begun.elapsed());

        (self.progress)("loads, the proxies open streams for reports");
        let run = self.proxies.report_loads(settings);
        let told = self.proxies.told(settings.interval + within).await;
        self.check(&told)?;
        if told.at.len() < self.proxies.count() {
            bail!(
                "{} of {} proxies were asked for load reports; the server must take them and have weighted routes",
                told.at.len(),
                self.proxies.count()
            );
        }
        (self.progress)(&format!("loads, {} reports of each proxy", settings.reports));
        let (before, begun) = (self.now(), Instant::now());
        run.measuring.store(true, Ordering::SeqCst);
        let reported = self.proxies.reported(period + settings.interval + within).await;
        let (after, took) = (self.now(), begun.elapsed());
        self.check(&reported)?;
        let sent = run.reports.load(Ordering::Relaxed);
        let received = match (&self.admin, known) {
            (Some(admin), Some(known)) => Some(received_since(admin, known, sent, within).await?),
            _ => None,
        };
        self.proxies.end_reports();
        let mut round = Round::new(self.proxies.count(), &reported.at, begun, &before, &after);
        // The times of reports are those that the server asks for.
        (round.p50_ms, round.p99_ms, round.last_ms) = (0.0, 0.0, 0.0);
        round.loads = Some(LoadFigures {
            sent,
            received: received.map(|received| received.reports),
            left_out: received.map(|received| received.left_out),
            clusters: run.asked.lock().as_ref().map_or(0, |(_, asked)| asked.clusters.len()),
            bytes: run.bytes.load(Ordering::Relaxed),
            seconds: took.as_secs_f64(),
            cpu_percent: cpu_percent(&before, &after, took),
            idle_cpu_percent,
            resident_before_bytes: idle.server.map(|usage| usage.resident),
        });
        Ok(round)
    }

    fn check(&self, arrivals: &Arrivals) -> anyhow::Result<()> {
        match arrivals.lost.first() {
            Some(why) => bail!(
                "{} of {} streams ended; the first: {why}",
                arrivals.lost.len(),
                self.proxies.count()
            ),
            None => Ok(()),
        }
    }
}

/// Waits until the server has received as many reports since `known`, and says how many it has.
async fn received_since(
    admin: &Admin,
    known: Received,
    sent: u64,
    within: Duration,
) -> anyhow::Result<Received> {
    let deadline = Instant::now() + within;
    loop {
        let now = received(admin).await?;
        let reports = now.reports.saturating_sub(known.reports);
        if reports >= sent || Instant::now() > deadline {
            return Ok(Received { reports, left_out: now.left_out.saturating_sub(known.left_out) });
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;

    use super::*;

    #[test]
    fn a_report_has_all_clusters_and_requests_to_those_of_some_services() {
        let names = ["v1", "v2"].map(|subset| {
            ["a", "b", "c"].map(|host| format!("outbound|80|{subset}|{host}.ns.svc.cluster.local"))
        });
        let asked = LoadStatsResponse {
            clusters: names.concat(),
            load_reporting_interval: Some(PbDuration { seconds: 0, nanos: 500_000_000 }),
            ..Default::default()
        };
        let asked = Asked::read(&asked.encode_to_vec()).unwrap();
        assert_eq!((asked.interval, asked.services), (Duration::from_millis(500), 3));
        // The second proxy sends requests to c and a.
        let report = LoadStatsRequest::decode(asked.report(&Bytes::new(), 1, 2)).unwrap();
        let found = report.cluster_stats.iter().map(|stats| {
            let issued = stats.upstream_locality_stats.iter().map(|it| it.total_issued_requests);
            (stats.cluster_name.as_str(), issued.sum::<u64>())
        });
        let all = names.concat();
        let wanted = all.iter().map(String::as_str).zip([100, 0, 100, 100, 0, 100]);
        assert_eq!(found.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
        assert!(Asked::read(&[]).is_err());
    }
}
