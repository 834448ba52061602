//! The time of a task thread: the machine's, or in tests one that is set.

use std::time::Instant;

use types::Timestamp;

#[cfg(test)]
pub(crate) use set::SetTime;

/// Where time comes from.
#[derive(Clone)]
pub(crate) enum Clock {
    /// The machine.
    Machine(Instant),
    /// A test: one number, ms, is both clocks.
    #[cfg(test)]
    Set(std::sync::Arc<SetTime>),
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
            Clock::Set(time) => Timestamp(time.now()),
        }
    }

    /// As [`Self::now`], ns.
    pub(crate) fn nanos(&self) -> u64 {
        match self {
            Clock::Machine(start) => start.elapsed().as_nanos() as u64,
            #[cfg(test)]
            Clock::Set(time) => time.now() * 1_000_000,
        }
    }

    /// In tests: `pulse` is rung by this clock. The machine's is looked at by [`crate::lookout`].
    pub(crate) fn rings(&self, pulse: &std::sync::Arc<crate::pulse::Pulse>) {
        match self {
            Clock::Machine(_) => {}
            #[cfg(test)]
            Clock::Set(time) => time.watch(pulse),
        }
        let _ = pulse;
    }

    /// The wall clock, unix ms.
    pub(crate) fn unix_ms(&self) -> u64 {
        match self {
            Clock::Machine(_) => unix_ms(),
            #[cfg(test)]
            Clock::Set(time) => time.now(),
        }
    }
}

/// The machine's wall clock, unix ms.
pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod set {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use types::Timestamp;

    use crate::pulse::Pulse;

    /// A time that tests set. Bells ring before a change of it returns: as if a clock were looked at at every moment.
    #[derive(Debug, Default)]
    pub(crate) struct SetTime {
        ms: AtomicU64,
        pulses: Mutex<Vec<Arc<Pulse>>>,
    }

    impl SetTime {
        pub(crate) fn at(ms: u64) -> Arc<SetTime> {
            Arc::new(SetTime { ms: AtomicU64::new(ms), pulses: Mutex::default() })
        }
        pub(crate) fn now(&self) -> u64 {
            self.ms.load(Ordering::SeqCst)
        }
        pub(crate) fn set(&self, ms: u64) {
            self.ms.store(ms, Ordering::SeqCst);
            self.tick();
        }
        pub(crate) fn advance(&self, ms: u64) {
            self.ms.fetch_add(ms, Ordering::SeqCst);
            self.tick();
        }
        pub(crate) fn watch(&self, pulse: &Arc<Pulse>) {
            self.pulses.lock().expect("no holder panics").push(Arc::clone(pulse));
        }
        fn tick(&self) {
            let now = Timestamp(self.now());
            self.pulses.lock().expect("no holder panics").iter().for_each(|pulse| pulse.tick(now));
        }
    }
}
