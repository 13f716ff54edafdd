//! The charts of a series.

use super::Dimension;
use crate::bench::mesh::Size;
use crate::bench::report::{Report, Round, Run};
use crate::bench::svg::{Chart, Line, picture};

/// Latency, CPU time and memory against what grows.
pub(super) fn of(report: &Report, dimension: Dimension) -> String {
    let (unit, size): (_, fn(&Size) -> usize) = match dimension {
        Dimension::Services => ("services", |size| size.services),
        Dimension::Namespaces => ("namespaces", |size| size.namespaces),
        Dimension::Streams => ("proxies", |size| size.streams),
    };
    let points = |value: &dyn Fn(&Run) -> Option<f64>| {
        let all = report.runs.iter();
        all.filter_map(|run| Some((size(&run.size) as f64, value(run)?))).collect::<Vec<_>>()
    };
    let by_phase = |title: &str, value: fn(&Round) -> Option<f64>| {
        let names =
            report.runs.first().into_iter().flat_map(|run| &run.phases).map(|phase| phase.name);
        let lines = names.map(|name| {
            let of = |run: &Run| {
                let phase = run.phases.iter().find(|phase| phase.name == name);
                phase.and_then(|phase| value(&phase.median))
            };
            Line { name: name.to_owned(), points: points(&of) }
        });
        Chart { title: title.to_owned(), lines: lines.collect() }
    };
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let ready = |run: &Run| run.ready_resident_bytes.map(megabytes);
    let connected =
        |run: &Run| run.phases.last().and_then(|phase| phase.median.resident_bytes).map(megabytes);
    let memory = [("no proxies", points(&ready)), ("all proxies", points(&connected))];
    let memory = memory.map(|(name, points)| Line { name: name.to_owned(), points });
    picture(
        unit,
        &[
            by_phase("From the write to the last proxy, in milliseconds", |round| {
                Some(round.last_ms)
            }),
            by_phase("CPU time of the server, in seconds", |round| round.cpu_s),
            Chart {
                title: "Resident memory of the server, in MB".to_owned(),
                lines: memory.into(),
            },
        ],
    )
}
