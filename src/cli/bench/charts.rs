//! The charts of a series.

use super::Dimension;
use crate::bench::mesh::Size;
use crate::bench::report::{Phase, Report, Round, Run};
use crate::bench::svg::{Chart, Line, picture};

/// Latency, CPU time and memory against what grows.
pub(super) fn of(report: &Report, dimension: Dimension) -> String {
    let (unit, size): (_, fn(&Size) -> usize) = match dimension {
        Dimension::Services => ("services", |size| size.services),
        Dimension::Namespaces => ("namespaces", |size| size.namespaces),
        Dimension::Streams => ("proxies", |size| size.streams),
    };
    let plot = Plot { runs: &report.runs, size };
    picture(
        unit,
        &[
            plot.by_phase("From the write to the last proxy, in milliseconds", |round| {
                Some(round.last_ms)
            }),
            plot.by_phase("CPU time of the server, in seconds", |round| round.cpu_s),
            plot.memory("Resident memory of the server, in MB"),
        ],
    )
}

/// Draws values of runs against their sizes.
struct Plot<'a> {
    runs: &'a [Run],
    size: fn(&Size) -> usize,
}

impl Plot<'_> {
    fn line(&self, name: &str, value: impl Fn(&Run) -> Option<f64>) -> Line {
        let points =
            self.runs.iter().filter_map(|run| Some(((self.size)(&run.size) as f64, value(run)?)));
        Line { name: name.to_owned(), points: points.collect() }
    }

    /// A line for each phase.
    fn by_phase(&self, title: &str, value: fn(&Round) -> Option<f64>) -> Chart {
        let phases = self.runs.first().into_iter().flat_map(|run| &run.phases);
        let lines = phases.map(|Phase { name, .. }| {
            self.line(name, |run| {
                let phase = run.phases.iter().find(|phase| phase.name == *name);
                phase.and_then(|phase| value(&phase.median))
            })
        });
        Chart { title: title.to_owned(), lines: lines.collect() }
    }

    fn memory(&self, title: &str) -> Chart {
        let before = self.line("no proxies", |run| run.ready_resident_bytes.map(megabytes));
        let after = self.line("all proxies", |run| {
            run.phases.last().and_then(|phase| phase.median.resident_bytes).map(megabytes)
        });
        Chart { title: title.to_owned(), lines: vec![before, after] }
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
