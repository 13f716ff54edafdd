//! The demo's table and its pass criteria.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::canary::load::Tally;

/// The allowed deviation in standard deviations: one correct split in 100 000 would fail.
const Z: f64 = 4.4;

/// Prints a line. A closed pipe does not abort a step.
pub(crate) fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The weights that were written.
    pub step: String,
    /// The desired share of v2, in percent.
    pub wanted_v2: u32,
    /// The responses.
    pub tally: Tally,
    /// The time from the write to Envoy's ACK; `None` for the initial state.
    pub took: Option<Duration>,
}

impl Row {
    /// The observed share of v2, in percent.
    pub(crate) fn observed(&self) -> f64 {
        let answered = self.tally.v1 + self.tally.v2;
        if answered == 0 { 0.0 } else { 100.0 * self.tally.v2 as f64 / answered as f64 }
    }

    /// The allowed deviation in percent: [`Z`] standard deviations of a binomial distribution. 0 for 0 and 100 percent.
    pub(crate) fn bound(&self) -> f64 {
        let p = f64::from(self.wanted_v2) / 100.0;
        let answered = (self.tally.v1 + self.tally.v2).max(1) as f64;
        100.0 * Z * (p * (1.0 - p) / answered).sqrt()
    }

    /// Whether the share is within its bound and nothing failed.
    pub(crate) fn is_fine(&self) -> bool {
        self.tally.failed == 0
            && (self.observed() - f64::from(self.wanted_v2)).abs() <= self.bound()
    }

    fn text(&self) -> String {
        let took = self.took.map_or_else(
            || "-".to_owned(),
            |took| format!("{:.1} ms", took.as_secs_f64() * 1000.0),
        );
        let share = format!("{:.2} % ± {:.2}", self.observed(), self.bound());
        format!(
            "{:<12} {:>9} {:>18} {:>10} {:>8} {:>16}",
            self.step,
            format!("{} %", self.wanted_v2),
            share,
            self.tally.total(),
            self.tally.failed,
            took
        )
    }
}

/// Prints rows; on a terminal also the row in progress.
#[derive(Debug)]
pub(crate) struct Table {
    live: bool,
}

impl Table {
    /// A table on standard output.
    pub(crate) fn new() -> Self {
        Self { live: std::io::stdout().is_terminal() }
    }

    /// Prints the header.
    pub(crate) fn head(&self) {
        print_line(&format!(
            "{:<12} {:>9} {:>18} {:>10} {:>8} {:>16}",
            "v1/v2", "desired v2", "observed v2", "requests", "failed", "write to ack"
        ));
    }

    /// Shows a row in progress.
    pub(crate) fn progress(&self, row: &Row) {
        if self.live {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "\r{}", row.text());
            let _ = out.flush();
        }
    }

    /// Prints a finished row.
    pub(crate) fn done(&self, row: &Row) {
        let mark = if row.is_fine() { "" } else { "  !" };
        print_line(&format!("{}{}{mark}", if self.live { "\r" } else { "" }, row.text()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(wanted_v2: u32, v1: u64, v2: u64, failed: u64) -> Row {
        Row { step: "90/10".into(), wanted_v2, tally: Tally { v1, v2, failed }, took: None }
    }

    #[test]
    fn shares_pass_within_their_bound_only() {
        assert!(row(10, 1800, 200, 0).is_fine());
        assert!(row(10, 1750, 250, 0).is_fine());
        assert!(!row(10, 1700, 300, 0).is_fine());
        assert!(!row(10, 2000, 0, 0).is_fine());
        assert!(!row(10, 1800, 200, 1).is_fine(), "a failed request is never fine");
    }

    #[test]
    fn all_or_nothing_is_exact() {
        assert!(row(0, 2000, 0, 0).is_fine() && row(100, 0, 2000, 0).is_fine());
        assert!(!row(0, 1999, 1, 0).is_fine() && !row(100, 1, 1999, 0).is_fine());
    }

    #[test]
    fn rows_fit_a_terminal() {
        assert!(row(10, 100_000, 100_000, 100_000).text().chars().count() <= 97);
    }
}
