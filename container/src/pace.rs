//! How many messages a thread hands to its tasks at once. A task that takes slices sees no bell until it is back, so what
//! it is given is as much as it gets through in a moment, as measured on what it was given before.

/// What a hand-over should take at most, ms.
const MOMENT_MS: u64 = 200;
/// The first hand-over: nothing is known yet.
const FIRST: usize = 64;
const MOST: usize = 1 << 24;

/// One thread's.
#[derive(Debug)]
pub(crate) struct Pace {
    most: usize,
    /// Of this hand-over.
    left: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { most: FIRST, left: FIRST }
    }
}

impl Pace {
    /// A hand-over begins.
    pub(crate) fn begin(&mut self) {
        self.left = self.most;
    }
    /// How many more messages may be given.
    pub(crate) fn left(&self) -> usize {
        self.left
    }
    pub(crate) fn took(&mut self, messages: usize) {
        self.left = self.left.saturating_sub(messages);
    }

    /// A hand-over of `messages` took so long.
    pub(crate) fn learn(&mut self, messages: usize, took_ms: u64) {
        if took_ms > MOMENT_MS {
            let fits = messages as u64 * MOMENT_MS / took_ms;
            self.most = usize::try_from(fits).unwrap_or(MOST).clamp(1, MOST);
        } else if self.left == 0 && took_ms * 2 <= MOMENT_MS {
            self.most = (self.most * 2).min(MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands over what may be, at so many ms per message, until it no longer changes.
    fn settled(pace: &mut Pace, ms: u64) -> usize {
        for _ in 0..64 {
            pace.begin();
            let given = pace.left();
            pace.took(given);
            pace.learn(given, given as u64 * ms);
        }
        pace.most
    }

    #[test]
    fn slow_messages_are_given_by_twos_and_fast_ones_as_they_come() {
        let mut pace = Pace::default();
        assert!(settled(&mut pace, 0) >= 1_000);
        let slow = settled(&mut pace, 100);
        assert!((1..=2).contains(&slow), "{slow}");
        assert_eq!(settled(&mut pace, 10_000), 1);
        assert!(settled(&mut pace, 1) >= 100, "it finds back");
    }

    #[test]
    fn a_batch_that_was_not_used_up_says_nothing_about_more() {
        let mut pace = Pace::default();
        pace.begin();
        pace.took(3);
        pace.learn(3, 1);
        assert_eq!(pace.most, FIRST);
    }
}
