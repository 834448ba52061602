//! How old files are, whatever became of the wall clock. Their times are its times, and it may jump: a machine without
//! a battery boots in the past, a date is mistyped. Nothing is taken for old because of that.
//!
//! The clock that goes on while the machine sleeps tells how far the wall clock should have come since the last look.
//! What it went beyond that is remembered, and does not count for files from before. A clock that jumps back makes
//! files younger than they are, so that they stay longer.

use std::time::{Duration, SystemTime};

use nm_shim::files;
use serde::{Deserialize, Serialize};

use crate::root::Root;

/// How long logs and state are kept after their last use.
pub(crate) const KEPT: Duration = Duration::from_secs(24 * 3600);
/// What the wall clock may go beyond the other before that is a jump, ms.
const JUMP_MS: u64 = 60_000;
/// What is remembered, below the node's folder.
const FILE: &str = "clock.json";

/// The clocks at the last look, and the jumps before it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ages {
    boot_id: String,
    boottime_ms: u64,
    wall_ms: u64,
    jumps: Vec<Jump>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Jump {
    /// What the wall clock would say had it not jumped, when that was seen.
    from_ms: u64,
    by_ms: u64,
}

impl Ages {
    /// Looks at the clocks, and remembers it.
    pub(crate) fn look(root: &Root) -> Ages {
        let mut ages = files::read::<Ages>(root.path(), FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "{FILE} is damaged; a jump of the clock would not be noticed this once");
            None
        });
        let ages = ages.get_or_insert_default();
        let boot_id = root.incarnation().map(|incarnation| incarnation.boot_id).unwrap_or_default();
        ages.observe(&boot_id, daemon::boottime_ms(), daemon::unix_ms());
        if let Err(error) = files::replace(root.path(), FILE, ages, false) {
            tracing::warn!(%error, "{FILE} cannot be written");
        }
        ages.clone()
    }

    /// Whether something that was last touched then was not used for [`KEPT`].
    pub(crate) fn is_old(&self, touched: SystemTime) -> bool {
        let touched = touched.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.age(touched.as_millis().try_into().unwrap_or(u64::MAX)) > KEPT
    }

    fn age(&self, touched_ms: u64) -> Duration {
        let after = self.jumps.iter().filter(|jump| touched_ms <= jump.from_ms);
        let jumped = after.fold(0, |sum: u64, jump| sum.saturating_add(jump.by_ms));
        Duration::from_millis(self.wall_ms.saturating_sub(touched_ms).saturating_sub(jumped))
    }

    fn observe(&mut self, boot_id: &str, boottime_ms: u64, wall_ms: u64) {
        if self.boot_id == boot_id {
            let expected = self.wall_ms + boottime_ms.saturating_sub(self.boottime_ms);
            if wall_ms > expected + JUMP_MS {
                self.jumps.push(Jump { from_ms: expected, by_ms: wall_ms - expected });
            }
            self.take_back(expected.saturating_sub(wall_ms));
        }
        (self.boottime_ms, self.wall_ms) = (boottime_ms, wall_ms);
        boot_id.clone_into(&mut self.boot_id);
        // What is from before a jump that was long ago is old without it.
        let ages = self.clone();
        self.jumps.retain(|jump| ages.age(jump.from_ms + jump.by_ms) <= KEPT);
    }

    /// A jump back undoes jumps, the last ones first.
    fn take_back(&mut self, mut by_ms: u64) {
        if by_ms <= JUMP_MS {
            return;
        }
        while let Some(last) = self.jumps.last_mut() {
            if last.by_ms > by_ms {
                last.by_ms -= by_ms;
                return;
            }
            by_ms -= last.by_ms;
            self.jumps.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const DAY: u64 = 24 * HOUR;
    /// Some time in this century.
    const NOW: u64 = 1_800_000_000_000;

    /// Looks at the clocks at these moments of a boot: (boot's clock, wall clock).
    fn seen(moments: &[(u64, u64)]) -> Ages {
        let mut ages = Ages::default();
        moments.iter().for_each(|(boottime, wall)| ages.observe("boot", *boottime, *wall));
        ages
    }

    fn hours(ages: &Ages, touched_ms: u64) -> u64 {
        ages.age(touched_ms).as_secs() / 3600
    }

    #[test]
    fn a_clock_that_does_not_jump_tells_ages() {
        let ages = seen(&[(0, NOW), (DAY, NOW + DAY + 40_000)]);
        assert_eq!((hours(&ages, NOW), ages.jumps.len()), (24, 0));
        assert_eq!(ages.age(NOW + 5 * DAY), Duration::ZERO, "what is of the future is new");
    }

    #[test]
    fn a_jump_does_not_age_what_is_from_before_it() {
        let ages = seen(&[(0, NOW), (HOUR, NOW + HOUR + 2 * DAY), (3 * HOUR, NOW + 3 * HOUR + 2 * DAY)]);
        assert_eq!(hours(&ages, NOW), 3);
        assert_eq!(hours(&ages, NOW + 2 * DAY + HOUR), 2, "written after it");
        assert_eq!(hours(&ages, NOW - 30 * HOUR), 33);
    }

    #[test]
    fn a_machine_that_boots_in_the_past_takes_nothing_for_old_when_it_learns_the_time() {
        let mut ages = seen(&[(9, NOW)]);
        ages.observe("next", 0, 0);
        let in_the_past = HOUR / 2;
        ages.observe("next", HOUR, NOW + HOUR);
        assert_eq!(hours(&ages, in_the_past), 0);
        assert_eq!(hours(&ages, NOW - 2 * HOUR), 3, "of the boot before");
    }

    #[test]
    fn a_jump_that_is_taken_back_leaves_no_trace() {
        let there = [(0, NOW), (HOUR, NOW + HOUR + 2 * DAY)];
        let ages = seen(&[there[0], there[1], (2 * HOUR, NOW + 2 * HOUR)]);
        assert_eq!((hours(&ages, NOW), ages.jumps.len()), (2, 0));
        let half = seen(&[there[0], there[1], (2 * HOUR, NOW + 2 * HOUR + DAY)]);
        assert_eq!(hours(&half, NOW), 2);
    }

    #[test]
    fn a_jump_back_alone_keeps_things_longer() {
        let ages = seen(&[(0, NOW), (HOUR, NOW - 2 * DAY)]);
        assert_eq!((hours(&ages, NOW), hours(&ages, NOW - 3 * DAY)), (0, 24));
    }

    #[test]
    fn jumps_of_long_ago_are_forgotten() {
        let mut ages = seen(&[(0, NOW), (HOUR, NOW + 10 * DAY)]);
        assert_eq!(ages.jumps.len(), 1);
        ages.observe("boot", HOUR + DAY + 1, NOW + 11 * DAY + 1);
        assert_eq!(ages.jumps, []);
        assert!(ages.is_old(SystemTime::UNIX_EPOCH + Duration::from_millis(NOW)));
    }
}
