//! How long to wait before dialling again.

/// Doubling waits between two bounds, ms.
#[derive(Debug, Clone)]
pub struct Backoff {
    min_ms: u64,
    max_ms: u64,
    next_ms: u64,
}

impl Backoff {
    /// Waits from `min_ms`, doubling to `max_ms`.
    #[must_use]
    pub fn new(min_ms: u64, max_ms: u64) -> Backoff {
        Backoff { min_ms, max_ms, next_ms: min_ms }
    }

    /// The wait before the next try, ms.
    pub fn next_wait_ms(&mut self) -> u64 {
        let wait = self.next_ms;
        self.next_ms = self.next_ms.saturating_mul(2).min(self.max_ms);
        wait
    }

    /// After success: the next wait is the shortest again.
    pub fn reset(&mut self) {
        self.next_ms = self.min_ms;
    }
}

impl Default for Backoff {
    /// 50 ms doubling to 1 s: recovery is to be felt as immediate.
    fn default() -> Backoff {
        Backoff::new(50, 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_again_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..7).map(|_| backoff.next_wait_ms()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1_000, 1_000]);
        backoff.reset();
        assert_eq!(backoff.next_wait_ms(), 50);
    }
}
