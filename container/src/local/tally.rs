//! What a local run has read and written, counted for its last words and for who waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that many threads add to.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was read and written.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Files and pipes that are read.
    pub(crate) inputs: Count,
    /// Bytes of files, as they are on disk, at the start.
    pub(crate) bytes_there: Count,
    /// How many of them were read or, in an earlier run, had been.
    pub(crate) bytes_read: Arc<AtomicU64>,
    /// Lines that were read, all of them.
    pub(crate) lines: Count,
    /// Those that are blank.
    pub(crate) blank: Count,
    /// Those that are before the time that `offset-default` names, or have none.
    pub(crate) passed_over: Count,
    /// Those that are no messages.
    pub(crate) malformed: Count,
    /// Bytes that an earlier run had read.
    pub(crate) known_before: Count,
    /// Inputs that `offset-default = "newest"` began at their ends.
    pub(crate) began_at_end: Count,
    /// Lines that were written.
    pub(crate) written: Count,
}
