//! What the stores of one thread share with it: its pulse, the first error that a store met, and how much more than
//! their caches' shares they may hold for as long as one call lasts.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use task_api::store::StoreError;

use crate::pulse::Pulse;

/// One thread's; its stores hold it too.
#[derive(Default)]
pub(crate) struct Link {
    pub(crate) pulse: Arc<Pulse>,
    /// The first failure. It stays: whatever a task made of an error, nothing that rests on it is committed.
    failed: RefCell<Option<String>>,
    /// Bytes that caches hold beyond their shares, all stores together, and the most there may be.
    overdrawn: Cell<usize>,
    most_overdrawn: usize,
}

impl Link {
    pub(crate) fn new(pulse: Arc<Pulse>, most_overdrawn: usize) -> Link {
        Link { pulse, most_overdrawn, ..Link::default() }
    }

    /// What no commit may follow, if it happened.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// Takes note of errors that are the store's and not the row's.
    pub(crate) fn note<R>(&self, result: Result<R, StoreError>) -> Result<R, StoreError> {
        if let Err(error @ (StoreError::Engine(_) | StoreError::TooMuchAtOnce { .. })) = &result {
            self.failed.borrow_mut().get_or_insert_with(|| error.to_string());
        }
        result
    }

    /// A cache that held `before` bytes beyond its share holds `now`.
    pub(crate) fn overdraw(&self, before: usize, now: usize) {
        self.overdrawn.set(self.overdrawn.get().saturating_sub(before) + now);
    }
    /// Whether there is no room for more.
    pub(crate) fn is_overdrawn(&self) -> bool {
        self.overdrawn.get() > self.most_overdrawn
    }
}
