//! The time of a task thread: the machine's, or in tests one that is set.

use std::time::Instant;

use types::Timestamp;

/// Where time comes from.
#[derive(Clone)]
pub(crate) enum Clock {
    /// The machine.
    Machine(Instant),
    /// A test: one number, ms, is both clocks.
    #[cfg(test)]
    Set(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock::Machine(Instant::now())
    }

    /// Time that only goes on.
    pub(crate) fn now(&self) -> Timestamp {
        match self {
            Clock::Machine(start) => Timestamp(start.elapsed().as_millis() as u64),
            #[cfg(test)]
            Clock::Set(ms) => Timestamp(ms.load(std::sync::atomic::Ordering::Relaxed)),
        }
    }

    /// The wall clock, unix ms.
    pub(crate) fn unix_ms(&self) -> u64 {
        match self {
            Clock::Machine(_) => unix_ms(),
            #[cfg(test)]
            Clock::Set(ms) => ms.load(std::sync::atomic::Ordering::Relaxed),
        }
    }
}

/// The machine's wall clock, unix ms.
pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
