//! What a number of observed events says about the true rate behind it. Pure.
//!
//! Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927), for the interval
//! of a proportion; R. G. Newcombe, "Interval estimation for the difference between independent proportions" (1998),
//! method 10, for that of a difference.

/// The level of all intervals: so many of them contain the true value.
pub(crate) const LEVEL: f64 = 0.99;

/// The quantile of the normal distribution for [`LEVEL`], on both sides.
const Z: f64 = 2.575_829_303_548_901;

/// The largest difference of error rates that counts as no difference.
pub(crate) const TOLERANCE: f64 = 0.02;

/// Two bounds, each from 0 to 1, or from -1 to 1 for a difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    /// The lower one.
    pub lower: f64,
    /// The upper one.
    pub upper: f64,
}

/// A part of a number of events, such as the failed ones. The part is at most all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proportion {
    part: u64,
    all: u64,
}

impl Proportion {
    /// `part` of `all` events; all of them if the part is larger.
    pub(crate) fn new(part: u64, all: u64) -> Self {
        Self { part: part.min(all), all }
    }

    /// From 0 to 1; `None` if there are no events.
    pub(crate) fn value(self) -> Option<f64> {
        (self.all > 0).then(|| self.part as f64 / self.all as f64)
    }

    /// Wilson's interval at [`LEVEL`]; everything from 0 to 1 if there are no events.
    pub(crate) fn interval(self) -> Interval {
        self.wilson(Z)
    }

    fn wilson(self, z: f64) -> Interval {
        let Some(value) = self.value() else {
            return Interval { lower: 0.0, upper: 1.0 };
        };
        let all = self.all as f64;
        let square = z * z;
        let scale = 1.0 + square / all;
        let center = (value + square / (2.0 * all)) / scale;
        let variance = value * (1.0 - value) / all + square / (4.0 * all * all);
        let half = z * variance.sqrt() / scale;
        // At the ends the exact bound is the end itself.
        let lower = if self.part == 0 { 0.0 } else { (center - half).max(0.0) };
        let upper = if self.part == self.all { 1.0 } else { (center + half).min(1.0) };
        Interval { lower, upper }
    }
}

/// Newcombe's interval at [`LEVEL`] of the second proportion minus the first.
pub(crate) fn difference(first: Proportion, second: Proportion) -> Interval {
    difference_at(first, second, Z)
}

fn difference_at(first: Proportion, second: Proportion, z: f64) -> Interval {
    let (Some(from), Some(to)) = (first.value(), second.value()) else {
        return Interval { lower: -1.0, upper: 1.0 };
    };
    let (before, after) = (first.wilson(z), second.wilson(z));
    let below = (to - after.lower).hypot(before.upper - from);
    let above = (after.upper - to).hypot(from - before.lower);
    Interval { lower: (to - from - below).max(-1.0), upper: (to - from + above).min(1.0) }
}

/// Whether one error rate is higher than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is higher.
    Worse,
    /// It is not higher by more than [`TOLERANCE`].
    NoWorse,
    /// There are too few requests to say either.
    TooFew,
}

impl Verdict {
    /// That of an interval of the difference.
    pub(crate) fn of(difference: Interval) -> Self {
        if difference.lower > 0.0 {
            Self::Worse
        } else if difference.upper <= TOLERANCE {
            Self::NoWorse
        } else {
            Self::TooFew
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The quantile for 95 %, at which the literature gives its examples.
    const Z95: f64 = 1.959_963_984_540_054;

    fn close(found: Interval, lower: f64, upper: f64) {
        let near = (found.lower - lower).abs() < 5e-5 && (found.upper - upper).abs() < 5e-5;
        assert!(near, "{found:?}, expected {lower} to {upper}");
    }

    #[test]
    fn wilsons_interval_has_the_published_values() {
        // Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
        for (part, all, lower, upper) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            close(Proportion::new(part, all).wilson(Z95), lower, upper);
        }
        close(Proportion::new(29, 29).wilson(Z95), 0.8830, 1.0);
    }

    #[test]
    fn newcombes_interval_has_the_published_values() {
        // Newcombe (1998), table II, method 10. There the difference is of the first minus the second.
        for (first, second, lower, upper) in [
            ((56, 70), (48, 80), 0.0524, 0.3339),
            ((9, 10), (3, 10), 0.1705, 0.8090),
            ((6, 7), (2, 7), 0.0582, 0.8062),
            ((5, 56), (0, 29), -0.0381, 0.1926),
            ((0, 10), (0, 20), -0.1611, 0.2775),
            ((10, 10), (0, 10), 0.6075, 1.0),
        ] {
            let [first, second] = [first, second].map(|(part, all)| Proportion::new(part, all));
            close(difference_at(second, first, Z95), lower, upper);
        }
    }

    #[test]
    fn without_events_nothing_is_known() {
        let none = Proportion::default();
        assert_eq!(none.value(), None);
        assert_eq!(none.interval(), Interval { lower: 0.0, upper: 1.0 });
        let all = difference(none, Proportion::new(1, 1));
        assert_eq!((all.lower, all.upper), (-1.0, 1.0));
        assert_eq!(Verdict::of(all), Verdict::TooFew);
        // A proxy may tell anything.
        assert_eq!(Proportion::new(3, 2), Proportion::new(2, 2));
    }

    #[test]
    fn a_verdict_needs_enough_requests() {
        for (first, second, verdict) in [
            ((0, 900), (0, 10), Verdict::TooFew),
            ((0, 900), (0, 900), Verdict::NoWorse),
            ((9, 900), (450, 900), Verdict::Worse),
            ((5, 900), (1, 20), Verdict::TooFew),
            ((0, 900), (5, 10), Verdict::Worse),
            ((450, 900), (0, 900), Verdict::NoWorse),
        ] {
            let [before, after] = [first, second].map(|(part, all)| Proportion::new(part, all));
            assert_eq!(Verdict::of(difference(before, after)), verdict, "{first:?} {second:?}");
        }
    }

    /// Bernoulli trials with a fixed seed: the share of intervals that contain the true value is what the level says.
    #[test]
    fn intervals_contain_the_true_value_as_often_as_they_say() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for (percent, requests) in [(20, 50), (20, 400), (1, 400), (50, 100)] {
            let windows = 4000;
            let mut hits = 0;
            for _ in 0..windows {
                let mut part = 0;
                for _ in 0..requests {
                    // xorshift64
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    part += u64::from((state >> 11) % 100 < percent);
                }
                let Interval { lower, upper } = Proportion::new(part, requests).interval();
                let truth = percent as f64 / 100.0;
                hits += u32::from(lower <= truth && truth <= upper);
            }
            let share = f64::from(hits) / f64::from(windows);
            assert!(share > 0.975, "{percent} % of {requests}: {share}");
        }
    }
}
