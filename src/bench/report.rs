//! The figures of a bench.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::mesh::Size;
use super::process::Usage;
use super::stream::Type;

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// The server: `weir`, or the address of another one.
    pub server: String,
    /// `sotw` or `delta`.
    pub mode: &'static str,
    /// Whether the proxies subscribe to a runtime layer.
    pub rtds: bool,
    /// Where the objects are.
    pub source: &'static str,
    /// One for each size.
    pub runs: Vec<Run>,
}

/// What was measured at one size.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    /// The size.
    pub size: Size,
    /// From the start of weir until it was ready, in milliseconds.
    pub ready_ms: Option<f64>,
    /// The CPU time in seconds until it was ready.
    pub ready_cpu_s: Option<f64>,
    /// Resident memory in bytes when it was ready, without proxies.
    pub ready_resident_bytes: Option<u64>,
    /// The phases in order.
    pub phases: Vec<Phase>,
    /// The client's share of the CPU time of client and server together, in percent.
    pub client_cpu_percent: Option<f64>,
}

/// A phase.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Phase {
    /// Its name, as for `--phases`.
    pub name: &'static str,
    /// The medians of the rounds.
    pub median: Round,
    /// Each round.
    pub rounds: Vec<Round>,
}

/// The figures of one round.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Round {
    /// How many proxies got what the round is about.
    pub arrived: usize,
    /// How many there are.
    pub streams: usize,
    /// Half of the proxies had it after so many milliseconds.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// All.
    pub last_ms: f64,
    /// How long it took to write the objects, where there is more than one.
    pub writing_ms: f64,
    /// The CPU time of the server in seconds, until nothing more was sent.
    pub cpu_s: Option<f64>,
    /// That of the bench itself.
    pub client_cpu_s: Option<f64>,
    /// Bytes of messages that all proxies together received, by type.
    pub bytes: BTreeMap<&'static str, u64>,
    /// Resident memory of the server in bytes, afterwards.
    pub resident_bytes: Option<u64>,
    /// The most that it was meanwhile.
    pub peak_bytes: Option<u64>,
    /// What load reports cost, in the phase of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loads: Option<LoadFigures>,
}

/// What load reports cost.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LoadFigures {
    /// Reports that all proxies together sent.
    pub sent: u64,
    /// Those that weir counted; `None` for a server that was not started for the bench.
    pub received: Option<u64>,
    /// Those that weir did not keep for lack of room.
    pub left_out: Option<u64>,
    /// The clusters of each report.
    pub clusters: usize,
    /// The bytes of all reports.
    pub bytes: u64,
    /// How long was measured, in seconds.
    pub seconds: f64,
    /// The CPU time of the server in that time, in percent of a core.
    pub cpu_percent: Option<f64>,
    /// The same without reports, before.
    pub idle_cpu_percent: Option<f64>,
    /// Resident memory of the server in bytes before there were reports.
    pub resident_before_bytes: Option<u64>,
}

/// What there was before a round.
#[derive(Debug, Clone)]
pub(crate) struct Before {
    /// Of the server.
    pub server: Option<Usage>,
    /// Of the bench.
    pub client: Option<Usage>,
    /// Received bytes.
    pub received: BTreeMap<Type, u64>,
}

impl Before {
    fn received_of(&self, of: Type) -> u64 {
        self.received.get(&of).copied().unwrap_or(0)
    }
}

/// The CPU time of the server or of the bench between two moments, in seconds.
pub(super) fn cpu_between(before: Option<Usage>, after: Option<Usage>) -> Option<f64> {
    Some(after?.cpu - before?.cpu)
}

impl Round {
    /// The figures of a round. Latencies count from `from`.
    pub(crate) fn new(
        streams: usize,
        arrivals: &[Instant],
        from: Instant,
        before: &Before,
        after: &Before,
    ) -> Self {
        let since: Vec<Duration> =
            arrivals.iter().map(|at| at.saturating_duration_since(from)).collect();
        let bytes = Type::ALL
            .map(|of| (of.short(), after.received_of(of).saturating_sub(before.received_of(of))));
        Self {
            arrived: arrivals.len(),
            streams,
            p50_ms: percentile(&since, 50),
            p99_ms: percentile(&since, 99),
            last_ms: percentile(&since, 100),
            writing_ms: 0.0,
            cpu_s: cpu_between(before.server, after.server),
            client_cpu_s: cpu_between(before.client, after.client),
            bytes: bytes.into(),
            resident_bytes: after.server.map(|usage| usage.resident),
            peak_bytes: after.server.map(|usage| usage.peak),
            loads: None,
        }
    }

    /// Whether every proxy got it, and the server all that was reported.
    pub(crate) fn is_complete(&self) -> bool {
        let loads = self.loads.as_ref();
        let lacks = loads.is_some_and(|loads| loads.received.is_some_and(|it| it != loads.sent));
        self.arrived == self.streams && !lacks
    }
}

/// The percentile by nearest rank of durations in order, in milliseconds; 0 of none.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, |found| found.as_secs_f64() * 1000.0)
}

/// The median; that of an even number of values is the lower one of the middle.
fn median<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len().saturating_sub(1) / 2).copied()
}

impl Phase {
    /// A phase of these rounds.
    pub(crate) fn new(name: &'static str, rounds: Vec<Round>) -> Self {
        let bytes = Type::ALL.map(|of| {
            let values = rounds.iter().filter_map(|round| round.bytes.get(of.short()).copied());
            (of.short(), median(values).unwrap_or(0))
        });
        let median = Round {
            arrived: rounds.iter().map(|round| round.arrived).min().unwrap_or(0),
            streams: rounds.iter().map(|round| round.streams).max().unwrap_or(0),
            p50_ms: median(rounds.iter().map(|round| round.p50_ms)).unwrap_or(0.0),
            p99_ms: median(rounds.iter().map(|round| round.p99_ms)).unwrap_or(0.0),
            last_ms: median(rounds.iter().map(|round| round.last_ms)).unwrap_or(0.0),
            writing_ms: median(rounds.iter().map(|round| round.writing_ms)).unwrap_or(0.0),
            cpu_s: median(rounds.iter().filter_map(|round| round.cpu_s)),
            client_cpu_s: median(rounds.iter().filter_map(|round| round.client_cpu_s)),
            bytes: bytes.into(),
            resident_bytes: median(rounds.iter().filter_map(|round| round.resident_bytes)),
            peak_bytes: median(rounds.iter().filter_map(|round| round.peak_bytes)),
            // There is a single round of these.
            loads: rounds.first().and_then(|round| round.loads.clone()),
        };
        Self { name, median, rounds }
    }
}

impl Run {
    /// The client's share of the CPU time of all phases.
    pub(crate) fn client_share(phases: &[Phase]) -> Option<f64> {
        let rounds = phases.iter().flat_map(|phase| &phase.rounds);
        let server: f64 = rounds.clone().map(|round| round.cpu_s).sum::<Option<f64>>()?;
        let client: f64 = rounds.map(|round| round.client_cpu_s).sum::<Option<f64>>()?;
        (server + client > 0.0).then(|| 100.0 * client / (server + client))
    }
}

impl Report {
    /// Whether every proxy got everything.
    pub(crate) fn is_complete(&self) -> bool {
        let phases = self.runs.iter().flat_map(|run| &run.phases);
        phases.flat_map(|phase| &phase.rounds).all(Round::is_complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(all: &[u64]) -> Vec<Duration> {
        all.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let hundred = milliseconds(&(1..=100).collect::<Vec<_>>());
        assert_eq!([50, 99, 100].map(|percent| percentile(&hundred, percent)), [50.0, 99.0, 100.0]);
        let few = milliseconds(&[1, 2, 3, 4]);
        assert_eq!([50, 99, 100].map(|percent| percentile(&few, percent)), [2.0, 4.0, 4.0]);
        assert_eq!([50, 99, 100].map(|percent| percentile(&milliseconds(&[7]), percent)), [7.0; 3]);
        assert_eq!(percentile(&[], 50), 0.0);
    }

    fn round(last_ms: f64, arrived: usize) -> Round {
        Round { last_ms, arrived, streams: 4, cpu_s: Some(last_ms), ..Default::default() }
    }

    #[test]
    fn a_phase_has_the_medians_of_its_rounds() {
        let phase = Phase::new("weight", vec![round(9.0, 4), round(1.0, 3), round(2.0, 4)]);
        assert_eq!(
            (phase.median.last_ms, phase.median.cpu_s, phase.median.arrived),
            (2.0, Some(2.0), 3)
        );
        assert!(!phase.median.is_complete());
    }
}
