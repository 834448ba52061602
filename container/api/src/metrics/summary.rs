//! Quantiles of how long things take: of the turn that runs and the turn before, so that they tell of now. Whoever writes
//! a summary ends its turns ([`Summary::turn`]).
//!
//! One value is kept to within a sixteenth of it. A summary has a lock, since it is written once for
//! many messages.

use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;

/// The quantiles that are shown.
const QUANTILES: [f64; 2] = [0.5, 0.99];
/// The longest time that is told from longer ones: an hour.
const LONGEST_NS: u64 = 3_600_000_000_000;
/// One digit: sixteen steps from a power of two to the next.
const DIGITS: u8 = 1;

/// How long things of one kind take.
#[derive(Debug, Clone, Default)]
pub struct Summary(Arc<Mutex<Turns>>);

#[derive(Debug)]
struct Turns {
    now: Histogram<u32>,
    before: Histogram<u32>,
    count: u64,
    sum_ns: u64,
}

impl Default for Turns {
    fn default() -> Turns {
        let empty = || Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("the bounds are sound");
        Turns { now: empty(), before: empty(), count: 0, sum_ns: 0 }
    }
}

/// What is shown of a summary, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shown {
    /// NaN if there was nothing in either turn.
    pub(super) quantiles: [(f64, f64); QUANTILES.len()],
    pub(super) sum: f64,
    pub(super) count: u64,
}

impl Summary {
    fn lock(&self) -> std::sync::MutexGuard<'_, Turns> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `count` things took `total_ns` together: each counts with their mean.
    pub fn observe(&self, total_ns: u64, count: u64) {
        let Some(each_ns) = total_ns.checked_div(count) else { return };
        let turns = &mut *self.lock();
        turns.now.saturating_record_n(each_ns, u32::try_from(count).unwrap_or(u32::MAX));
        turns.count += count;
        turns.sum_ns = turns.sum_ns.saturating_add(total_ns);
    }

    /// A turn is over: what was seen in the turn before it is forgotten.
    pub fn turn(&self) {
        let Turns { now, before, .. } = &mut *self.lock();
        std::mem::swap(now, before);
        now.reset();
    }

    pub(super) fn show(&self) -> Shown {
        let turns = self.lock();
        let mut both = turns.now.clone();
        // They have the same bounds.
        let _ = both.add(&turns.before);
        let value = |quantile| match both.is_empty() {
            true => f64::NAN,
            false => super::seconds(both.value_at_quantile(quantile)),
        };
        Shown {
            quantiles: QUANTILES.map(|quantile| (quantile, value(quantile))),
            sum: super::seconds(turns.sum_ns),
            count: turns.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The quantiles, in ms.
    fn shown(summary: &Summary) -> [f64; 2] {
        summary.show().quantiles.map(|(_, seconds)| seconds * 1e3)
    }

    fn is_about(found: f64, ms: f64) {
        assert!((found - ms).abs() <= ms / 16.0, "{found} is not about {ms}");
    }

    #[test]
    fn quantiles_are_those_of_what_was_seen() {
        let summary = Summary::default();
        for ms in 1..=100 {
            summary.observe(ms * 1_000_000, 1);
        }
        let [p50, p99] = shown(&summary);
        is_about(p50, 50.0);
        is_about(p99, 99.0);
        let all = summary.show();
        assert_eq!((all.count, all.sum), (100, 5.05));
    }

    #[test]
    fn many_at_once_count_as_many_with_their_mean() {
        let summary = Summary::default();
        summary.observe(980_000_000, 98);
        summary.observe(800_000_000, 2);
        summary.observe(5, 0);
        let [p50, p99] = shown(&summary);
        is_about(p50, 10.0);
        is_about(p99, 400.0);
        assert_eq!(summary.show().count, 100);
    }

    #[test]
    fn what_is_two_turns_old_is_forgotten_but_for_count_and_sum() {
        let summary = Summary::default();
        summary.observe(1_000_000_000, 1);
        summary.turn();
        is_about(shown(&summary)[1], 1_000.0);
        summary.observe(1_000_000, 1);
        summary.turn();
        is_about(shown(&summary)[1], 1.0);
        summary.turn();
        assert!(shown(&summary).iter().all(|quantile| quantile.is_nan()));
        assert_eq!((summary.show().count, summary.show().sum), (2, 1.001));
    }

    #[test]
    fn what_takes_longer_than_an_hour_counts_as_an_hour_and_more() {
        let summary = Summary::default();
        summary.observe(u64::MAX, 1);
        assert!(shown(&summary)[1] >= 3_600_000.0);
    }
}
