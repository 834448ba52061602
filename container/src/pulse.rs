//! A task thread's pulse: the bell that tells the thread to leave what it is at, and by which call others can tell
//! whether it gets on. Rung from other threads, so that the thread itself looks at no clock between messages.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use types::Timestamp;

/// One thread's.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Looked at before each message.
    rung: AtomicBool,
    /// A cache is full: a commit must come before anything else of the task's.
    full: AtomicBool,
    /// When the bell is to ring, ms of [`crate::clock::Clock::now`].
    due: AtomicU64,
    /// What the thread is in: how many calls there were, then the task's place, then the [`Stage`].
    call: AtomicU64,
}

/// What a thread is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing that is watched: it starts, or is over.
    Unwatched,
    Init,
    Process,
    Window,
    Timer,
    /// Waiting for what an asynchronous task has in flight, or applying it.
    Completion,
    EndOfStream,
    Commit,
    Reading,
    Close,
}

impl Stage {
    const ALL: [Stage; 10] = [
        Stage::Unwatched,
        Stage::Init,
        Stage::Process,
        Stage::Window,
        Stage::Timer,
        Stage::Completion,
        Stage::EndOfStream,
        Stage::Commit,
        Stage::Reading,
        Stage::Close,
    ];

    /// For people: `process of Partition 3`. None for what is not a task's.
    pub(crate) fn of_task(self) -> Option<&'static str> {
        match self {
            Stage::Init => Some("init"),
            Stage::Process => Some("process"),
            Stage::Window => Some("window"),
            Stage::Timer => Some("timer"),
            Stage::Completion => Some("calls in flight"),
            Stage::EndOfStream => Some("end_of_stream"),
            Stage::Close => Some("close"),
            Stage::Unwatched | Stage::Commit | Stage::Reading => None,
        }
    }
}

/// What a thread is in, and its number: another number is another call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) number: u64,
    /// The place of its task among the thread's.
    pub(crate) task: usize,
    pub(crate) stage: Stage,
}

const STAGE_BITS: u32 = 4;
const TASK_BITS: u32 = 20;

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse {
            rung: AtomicBool::new(false),
            full: AtomicBool::new(false),
            due: AtomicU64::new(u64::MAX),
            call: AtomicU64::new(0),
        }
    }
}

impl Pulse {
    /// The bell, for those who look at it before each message.
    pub(crate) fn bell(&self) -> &AtomicBool {
        &self.rung
    }
    pub(crate) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }
    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
    }

    /// A cache is full, or there is room again.
    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
        if full {
            self.ring();
        }
    }
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// From now on the bell is still until `at`, unless a cache is full. Who stops the thread rings after it has said
    /// so: the caller must look whether it was stopped after this, not before.
    pub(crate) fn arm(&self, at: Timestamp) {
        self.due.store(at.0, Ordering::SeqCst);
        self.rung.store(self.is_full(), Ordering::SeqCst);
    }
    /// Rings if it is time.
    pub(crate) fn tick(&self, now: Timestamp) {
        if now.0 >= self.due.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// The thread enters a call of its task number `task`.
    #[inline]
    pub(crate) fn enter(&self, stage: Stage, task: usize) {
        let number = (self.call.load(Ordering::Relaxed) >> (STAGE_BITS + TASK_BITS)).wrapping_add(1);
        let task = (task as u64) & ((1 << TASK_BITS) - 1);
        let call = number << (STAGE_BITS + TASK_BITS) | task << STAGE_BITS | stage as u64;
        self.call.store(call, Ordering::Relaxed);
    }

    /// What the thread is in.
    pub(crate) fn call(&self) -> Call {
        let call = self.call.load(Ordering::Relaxed);
        let stage = (call & ((1 << STAGE_BITS) - 1)) as usize;
        Call {
            number: call >> (STAGE_BITS + TASK_BITS),
            task: (call >> STAGE_BITS & ((1 << TASK_BITS) - 1)) as usize,
            stage: Stage::ALL.get(stage).copied().unwrap_or(Stage::Unwatched),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_rings_at_its_time_and_not_before() {
        let pulse = Pulse::default();
        pulse.arm(Timestamp(10));
        pulse.tick(Timestamp(9));
        assert!(!pulse.is_rung());
        pulse.tick(Timestamp(10));
        assert!(pulse.is_rung());
        pulse.arm(Timestamp(20));
        assert!(!pulse.is_rung());
        pulse.set_full(true);
        pulse.arm(Timestamp(30));
        assert!(pulse.is_rung(), "a full cache waits for nothing");
    }

    #[test]
    fn each_call_has_a_number_its_task_and_its_stage() {
        let pulse = Pulse::default();
        assert_eq!(pulse.call(), Call { number: 0, task: 0, stage: Stage::Unwatched });
        for (number, stage) in (1..).zip(Stage::ALL) {
            pulse.enter(stage, 9_999);
            assert_eq!(pulse.call(), Call { number, task: 9_999, stage });
        }
    }
}
