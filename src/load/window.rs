//! The load reports of one proxy that are still of interest, and which state of the mesh it had meanwhile. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::revision::MeshRevision;

/// How long after an ACK requests may still follow the weights before: those that wait for a connection, and those on
/// threads of Envoy that have not taken the new weights over yet.
const MARGIN: Duration = Duration::from_millis(250);

/// As long as a window has fewer reports, those before and after a change of weights are kept apart.
const ROOMY: usize = 64;

/// The requests of one proxy to one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Attempts that began.
    pub issued: u32,
    /// Those that ended well.
    pub succeeded: u32,
    /// Those that ended with an error.
    pub failed: u32,
    /// Those that had not ended at the end of the report.
    pub in_progress: u32,
}

impl Counts {
    /// Adds those of a later report.
    fn continue_with(&mut self, later: Self) {
        self.issued = self.issued.saturating_add(later.issued);
        self.succeeded = self.succeeded.saturating_add(later.succeeded);
        self.failed = self.failed.saturating_add(later.failed);
        self.in_progress = later.in_progress;
    }
}

/// What a proxy reported for a period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Nothing before this time is in it.
    pub began: Instant,
    /// When it arrived.
    pub ended: Instant,
    /// The version of the list of clusters that the proxy had when the period began.
    pub list: u64,
    /// By cluster in order, those that had requests.
    pub clusters: Vec<(u32, Counts)>,
}

impl Report {
    /// The requests to a cluster.
    pub(crate) fn of(&self, cluster: u32) -> Counts {
        let found = self.clusters.binary_search_by_key(&cluster, |(id, _)| *id).ok();
        found.and_then(|at| self.clusters.get(at)).map_or_else(Counts::default, |(_, all)| *all)
    }

    /// Takes in the one that follows.
    fn continue_with(&mut self, later: Self) {
        self.ended = later.ended;
        for (_, counts) in &mut self.clusters {
            counts.in_progress = 0;
        }
        for (id, counts) in later.clusters {
            match self.clusters.binary_search_by_key(&id, |(id, _)| *id) {
                Ok(at) => {
                    if let Some((_, known)) = self.clusters.get_mut(at) {
                        known.continue_with(counts);
                    }
                }
                Err(at) => self.clusters.insert(at, (id, counts)),
            }
        }
    }
}

/// The reports of a proxy that arrived within the last time. Reports that follow each other quickly share a slot, so
/// that their number is bounded.
#[derive(Debug, Default)]
pub(crate) struct Window {
    reports: VecDeque<Report>,
}

impl Window {
    /// Adds the newest one. A slot does not reach over `apart`, a time at which the weights may have changed, as long as
    /// there are few.
    pub(crate) fn push(&mut self, report: Report, slot: Duration, apart: Option<Instant>) {
        let is_roomy = self.reports.len() < ROOMY;
        match self.reports.back_mut() {
            Some(last)
                if last.list == report.list
                    && report.ended.saturating_duration_since(last.began) <= slot
                    && !apart
                        .is_some_and(|at| is_roomy && last.began < at && at <= report.began) =>
            {
                last.continue_with(report);
            }
            _ => self.reports.push_back(report),
        }
    }

    /// Forgets the reports that arrived before this time.
    pub(crate) fn forget_before(&mut self, oldest: Instant) {
        while self.reports.front().is_some_and(|first| first.ended < oldest) {
            self.reports.pop_front();
        }
    }

    /// How many counts it holds.
    pub(crate) fn len(&self) -> usize {
        self.reports.iter().map(|report| report.clusters.len()).sum()
    }

    /// Whether it holds no report.
    pub(crate) fn is_empty(&self) -> bool {
        self.reports.is_empty()
    }

    /// When the last report arrived.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.reports.back().map(|last| last.ended)
    }

    /// The reports of periods that began at this time or later, of proxies that had at least this version of the list.
    pub(crate) fn since(&self, from: Instant, list: u64) -> impl Iterator<Item = &Report> {
        self.reports.iter().filter(move |report| report.began >= from && report.list >= list)
    }
}

/// When a proxy first had which state of the mesh.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    /// In order of both.
    known: VecDeque<(Instant, MeshRevision)>,
}

impl Acks {
    /// The proxy has this state. What happens within a slot is recorded as if it happened at the end.
    pub(crate) fn push(&mut self, at: Instant, revision: MeshRevision, slot: Duration) {
        if self.known.back().is_some_and(|(_, last)| *last >= revision) {
            return;
        }
        let before = self.known.iter().rev().nth(1).copied();
        if before.is_some_and(|(before, _)| at.saturating_duration_since(before) < slot) {
            self.known.pop_back();
        }
        self.known.push_back((at, revision));
    }

    /// Forgets what happened before this time, except for the state that it had then.
    pub(crate) fn forget_before(&mut self, oldest: Instant) {
        while self.known.get(1).is_some_and(|(at, _)| *at < oldest) {
            self.known.pop_front();
        }
    }

    /// From when on all requests of the proxy follow the last state.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.known.back().map(|(at, _)| *at + MARGIN)
    }

    /// From when on all requests of the proxy follow this state or a later one; `None` if it does not have it.
    pub(crate) fn since(&self, revision: MeshRevision) -> Option<Instant> {
        let first = self.known.iter().find(|(_, known)| *known >= revision);
        first.map(|(at, _)| *at + MARGIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(base: Instant, second: u64) -> Instant {
        base + Duration::from_secs(second)
    }

    fn report(base: Instant, began: u64, ended: u64, issued: u32) -> Report {
        let counts = Counts { issued, in_progress: 1, ..Counts::default() };
        let clusters = vec![(7, counts)];
        Report { began: second(base, began), ended: second(base, ended), list: 1, clusters }
    }

    fn sum(window: &Window, from: Instant) -> u32 {
        window.since(from, 1).map(|report| report.of(7).issued).sum()
    }

    #[test]
    fn a_report_counts_from_its_arrival_until_it_leaves_the_window() {
        let base = Instant::now();
        let mut window = Window::default();
        for at in 1..=6 {
            window.push(report(base, 10 * (at - 1), 10 * at, 1), Duration::ZERO, None);
        }
        assert_eq!(sum(&window, base), 6);
        window.forget_before(second(base, 10));
        assert_eq!(sum(&window, base), 6, "it arrived at the edge");
        window.forget_before(second(base, 11));
        assert_eq!((sum(&window, base), window.len()), (5, 5));
        // Only whole periods: one that began before is not divided.
        assert_eq!(sum(&window, second(base, 20)), 4);
        assert_eq!(sum(&window, second(base, 21)), 3);
        assert_eq!(window.since(base, 2).count(), 0, "the list was another one");
        window.forget_before(second(base, 61));
        assert!(window.is_empty());
    }

    #[test]
    fn quick_reports_share_a_slot_and_none_is_counted_twice() {
        let base = Instant::now();
        let mut window = Window::default();
        for at in 0..100 {
            window.push(report(base, at, at + 1, 3), Duration::from_secs(10), None);
        }
        assert_eq!((window.len(), sum(&window, base)), (10, 300));
        assert_eq!(window.since(base, 1).last().map(|last| last.of(7).in_progress), Some(1));
        // A slot counts from its beginning.
        assert_eq!(sum(&window, second(base, 81)), 30);
    }

    #[test]
    fn reports_before_and_after_a_change_do_not_share_a_slot() {
        let base = Instant::now();
        let mut window = Window::default();
        for at in 0..10 {
            let apart = Some(second(base, 4));
            window.push(report(base, at, at + 1, 1), Duration::from_secs(10), apart);
        }
        assert_eq!((window.len(), sum(&window, second(base, 4))), (2, 6));
        // But there is an end to it.
        let mut window = Window::default();
        for at in 0..1000 {
            let apart = Some(second(base, at));
            window.push(report(base, at, at + 1, 1), Duration::from_secs(1000), apart);
        }
        assert_eq!((window.len(), sum(&window, base)), (ROOMY, 1000));
    }

    #[test]
    fn clusters_of_reports_that_share_a_slot_stay_in_order() {
        let base = Instant::now();
        let mut window = Window::default();
        let one = Counts { issued: 1, failed: 1, in_progress: 2, ..Counts::default() };
        for clusters in [vec![(5, one), (9, one)], vec![(2, one), (9, one)]] {
            let report = Report { clusters, ..report(base, 0, 1, 0) };
            window.push(report, Duration::from_secs(10), None);
        }
        let all = window.since(base, 1).next().unwrap();
        assert_eq!(all.clusters.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 5, 9]);
        assert_eq!((all.of(9).issued, all.of(9).failed), (2, 2));
        assert_eq!((all.of(5).in_progress, all.of(9).in_progress), (0, 2));
        assert_eq!(all.of(3), Counts::default());
    }

    #[test]
    fn a_state_counts_from_the_first_ack_of_it_or_of_a_later_one() {
        let (base, slot) = (Instant::now(), Duration::from_secs(1));
        let mut acks = Acks::default();
        for (at, revision) in [(0, 3), (10, 5), (20, 5), (30, 9)] {
            acks.push(second(base, at), MeshRevision::from(revision), slot);
        }
        for (revision, at) in [(3, 0), (4, 10), (5, 10), (6, 30), (9, 30)] {
            let found = acks.since(MeshRevision::from(revision));
            assert_eq!(found, Some(second(base, at) + MARGIN), "{revision}");
        }
        assert_eq!(acks.since(MeshRevision::from(10)), None);
        acks.forget_before(second(base, 40));
        assert_eq!(acks.since(MeshRevision::from(3)), Some(second(base, 30) + MARGIN));
    }

    #[test]
    fn acks_in_quick_succession_take_little_and_are_never_earlier_than_they_were() {
        let (base, slot) = (Instant::now(), Duration::from_secs(1));
        let mut acks = Acks::default();
        for n in 0..1000_u32 {
            acks.push(base + slot / 10 * n, MeshRevision::from(u64::from(n)), slot);
        }
        assert!(acks.known.len() < 250, "{}", acks.known.len());
        for n in 0..1000_u32 {
            let found = acks.since(MeshRevision::from(u64::from(n))).unwrap();
            let true_one = base + slot / 10 * n + MARGIN;
            assert!(found >= true_one && found <= true_one + slot, "{n}");
        }
    }
}
