//! The figures of `weir bench` as tables within 100 columns.

use crate::bench::mesh::Size;
use crate::bench::report::{LoadFigures, Phase, Report, Run};
use crate::bench::stream::Type;
use crate::cli::table::table;

/// Everything that was measured.
pub(crate) fn report(report: &Report) -> String {
    let rtds = if report.rtds { ", weights by RTDS" } else { "" };
    let mut text =
        format!("{} over {}{rtds}, objects from {}\n\n", report.server, report.mode, report.source);
    let runs: Vec<String> = report.runs.iter().map(run).collect();
    text += &runs.join("\n\n");
    text
}

fn run(run: &Run) -> String {
    let Size { services, pods_per_service, namespaces, streams } = run.size;
    let mut text = format!(
        "{services} services, {} pods, {namespaces} namespaces, {streams} proxies\n",
        services * pods_per_service
    );
    if let Some(ready) = run.ready_ms {
        text += &format!(
            "ready after {} ms, {} s of CPU time, {} MB\n",
            number(ready),
            run.ready_cpu_s.map_or_else(|| "?".to_owned(), |cpu| format!("{cpu:.2}")),
            megabytes(run.ready_resident_bytes)
        );
    }
    let rows = run.phases.iter().map(|phase| {
        let median = &phase.median;
        let proxies = if median.is_complete() {
            median.streams.to_string()
        } else {
            format!("{} of {}", median.arrived, median.streams)
        };
        let [p50, p99, last] = match median.loads {
            Some(_) => ["-"; 3].map(ToOwned::to_owned),
            None => [median.p50_ms, median.p99_ms, median.last_ms].map(number),
        };
        [
            phase.name.to_owned(),
            proxies,
            p50,
            p99,
            last,
            median.cpu_s.map_or_else(|| "-".to_owned(), |cpu| number(cpu * 1000.0)),
            megabytes(median.resident_bytes),
            megabytes(median.peak_bytes),
        ]
    });
    let head = [
        "PHASE",
        " PROXIES",
        " P50 ms",
        " P99 ms",
        " LAST ms",
        " CPU ms",
        " RESIDENT MB",
        " PEAK MB",
    ];
    text += "\n";
    text += &table(head, rows);
    let rows = run.phases.iter().map(|phase| {
        let bytes = &phase.median.bytes;
        let sum = size(bytes.values().sum());
        let [runtime, clusters, endpoints, listeners, routes] =
            Type::ALL.map(|of| size(bytes.get(of.short()).copied().unwrap_or(0)));
        [phase.name.to_owned(), sum, clusters, endpoints, listeners, routes, runtime]
    });
    text += "\n";
    text += &table(["SENT", " ALL", " CDS", " EDS", " LDS", " RDS", " RTDS"], rows);
    text += &loads(&run.phases);
    if let Some(percent) = run.client_cpu_percent {
        text += &format!("\nThe bench itself took {percent:.0} % of the CPU time of both.\n");
    }
    text
}

/// What load reports cost, for each phase with some.
fn loads(phases: &[Phase]) -> String {
    let phases = phases.iter().map(|phase| &phase.median);
    let rows: Vec<_> = phases
        .filter_map(|round| Some((round.loads.as_ref()?, round.resident_bytes)))
        .map(|(loads, resident)| {
            let LoadFigures { sent, received, left_out, bytes, .. } = loads;
            let [all, idle] = [loads.cpu_percent, loads.idle_cpu_percent]
                .map(|percent| percent.map_or_else(|| "-".to_owned(), number));
            let more = resident.zip(loads.resident_before_bytes);
            let more = more.map(|(after, before)| after.saturating_sub(before));
            [
                sent.to_string(),
                counted(*received),
                counted(*left_out),
                loads.clusters.to_string(),
                size(bytes.checked_div(*sent).unwrap_or(0)),
                all,
                idle,
                megabytes(more),
            ]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let head = [
        "LOAD REPORTS",
        " RECEIVED",
        " LEFT OUT",
        " CLUSTERS",
        " SIZE",
        " CPU %",
        " IDLE CPU %",
        " MORE MB",
    ];
    format!("\n{}", table(head, rows.into_iter()))
}

fn counted(count: Option<u64>) -> String {
    count.map_or_else(|| "-".to_owned(), |count| count.to_string())
}

/// A number with as many decimals as it deserves.
fn number(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{}", bytes / 1_000_000))
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        1..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{} kB", number(bytes as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{} MB", number(bytes as f64 / 1e6)),
        _ => format!("{} GB", number(bytes as f64 / 1e9)),
    }
}

#[cfg(test)]
mod tests {
    use crate::bench::report::{Phase, Round};

    use super::*;

    #[test]
    fn tables_fit_100_columns() {
        let bytes = Type::ALL.map(|of| (of.short(), 123_456_789_000)).into();
        let round = Round {
            arrived: 19_999,
            streams: 20_000,
            p50_ms: 123_456.0,
            writing_ms: 0.0,
            p99_ms: 123_456.0,
            last_ms: 123_456.0,
            cpu_s: Some(123.0),
            client_cpu_s: Some(123.0),
            bytes,
            resident_bytes: Some(12_345_678_901),
            peak_bytes: Some(12_345_678_901),
            loads: Some(LoadFigures {
                sent: 123_456_789,
                received: Some(123_456_788),
                left_out: Some(123_456_789),
                clusters: 4096,
                bytes: 123_456_789_000_000,
                seconds: 60.0,
                cpu_percent: Some(150.0),
                idle_cpu_percent: Some(10.0),
                resident_before_bytes: Some(1),
            }),
        };
        let phases = vec![Phase::new("restart", vec![round])];
        let run = Run {
            size: Size { services: 10_000, pods_per_service: 4, namespaces: 100, streams: 20_000 },
            ready_ms: Some(1.0),
            ready_cpu_s: Some(1.0),
            ready_resident_bytes: Some(1),
            client_cpu_percent: Run::client_share(&phases),
            phases,
        };
        let report = Report {
            server: "weir".into(),
            mode: "delta",
            rtds: true,
            source: "kubernetes",
            runs: vec![run],
        };
        let text = super::report(&report);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(
            text.contains("19999 of 20000") && text.contains("50 %") && !report.is_complete(),
            "{text}"
        );
    }
}
