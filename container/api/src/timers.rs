//! Timers by key, kept in a store like any other state: they survive restarts and are committed with the rest.
//!
//! A row is the timer's key and its time, unix ms, big-endian. The order of times is kept in memory.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::store::{RawStore, StoreError};

/// One task's timers; a handle, cheap to clone.
#[derive(Clone)]
pub struct Timers(Rc<RefCell<Queue>>);

struct Queue {
    rows: Rc<RefCell<dyn RawStore>>,
    by_key: BTreeMap<Vec<u8>, u64>,
    by_time: BTreeSet<(u64, Vec<u8>)>,
}

impl std::fmt::Debug for Timers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Timers({})", self.0.borrow().by_key.len())
    }
}

impl Timers {
    /// For runtimes: the timers in `rows`.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub fn load(rows: Rc<RefCell<dyn RawStore>>) -> Result<Timers, StoreError> {
        let mut queue = Queue { rows: Rc::clone(&rows), by_key: BTreeMap::new(), by_time: BTreeSet::new() };
        let mut stored = rows.borrow_mut().rows(None, None)?;
        while let Some((key, time)) = stored.next()? {
            let time =
                time.try_into().map_err(|_| StoreError::Decode("a row of timers is no timer".into()))?;
            let due = u64::from_be_bytes(time);
            queue.by_key.insert(key.to_vec(), due);
            queue.by_time.insert((due, key.to_vec()));
        }
        Ok(Timers(Rc::new(RefCell::new(queue))))
    }

    /// Sets the timer of `key` to go off at `due_unix_ms`, in place of the one it may have had.
    ///
    /// # Errors
    /// The store failed.
    pub fn set(&self, key: &[u8], due_unix_ms: u64) -> Result<(), StoreError> {
        let queue = &mut *self.0.borrow_mut();
        queue.rows.borrow_mut().put(key, &due_unix_ms.to_be_bytes())?;
        if let Some(before) = queue.by_key.insert(key.to_vec(), due_unix_ms) {
            queue.by_time.remove(&(before, key.to_vec()));
        }
        queue.by_time.insert((due_unix_ms, key.to_vec()));
        Ok(())
    }

    /// Takes the timer of `key` away; returns when it would have gone off, none if there was none.
    ///
    /// # Errors
    /// The store failed.
    pub fn cancel(&self, key: &[u8]) -> Result<Option<u64>, StoreError> {
        let queue = &mut *self.0.borrow_mut();
        let Some(due) = queue.by_key.get(key).copied() else { return Ok(None) };
        queue.rows.borrow_mut().delete(key)?;
        queue.by_key.remove(key);
        queue.by_time.remove(&(due, key.to_vec()));
        Ok(Some(due))
    }

    /// When the timer of `key` goes off.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<u64> {
        self.0.borrow().by_key.get(key).copied()
    }

    /// For runtimes: when the next timer is due, unix ms.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.0.borrow().by_time.first().map(|(due, _)| *due)
    }

    /// For runtimes: the first `most` timers that are due at `now_unix_ms`, in the order of their times. They stay set.
    #[must_use]
    pub fn due(&self, now_unix_ms: u64, most: usize) -> Vec<(Vec<u8>, u64)> {
        let queue = self.0.borrow();
        let due = queue.by_time.iter().take_while(|(due, _)| *due <= now_unix_ms);
        due.take(most).map(|(due, key)| (key.clone(), *due)).collect()
    }

    /// For runtimes: takes the timer of `key` if it is still set to `due_unix_ms`; returns whether it was.
    ///
    /// # Errors
    /// The store failed.
    pub fn take(&self, key: &[u8], due_unix_ms: u64) -> Result<bool, StoreError> {
        if self.get(key) != Some(due_unix_ms) {
            return Ok(false);
        }
        self.cancel(key).map(|_| true)
    }

    /// For runtimes: takes the first timer that is due at `now_unix_ms`, with its time.
    ///
    /// # Errors
    /// The store failed.
    pub fn take_due(&self, now_unix_ms: u64) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        let first = self.0.borrow().by_time.first().filter(|(due, _)| *due <= now_unix_ms).cloned();
        let Some((due, key)) = first else { return Ok(None) };
        self.cancel(&key)?;
        Ok(Some((key, due)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn timers_go_off_in_the_order_of_their_times_and_are_loaded_again() {
        let rows = Rc::new(RefCell::new(MemoryStore::default()));
        let timers = Timers::load(rows.clone()).expect("empty");
        timers.set(b"a", 30).expect("set");
        timers.set(b"b", 10).expect("set");
        timers.set(b"c", 20).expect("set");
        timers.set(b"a", 5).expect("moved");
        assert_eq!(timers.cancel(b"c").expect("cancelled"), Some(20));
        assert_eq!(timers.cancel(b"c").expect("nothing to cancel"), None);
        let again = Timers::load(rows).expect("loaded");
        assert_eq!((again.get(b"a"), again.get(b"c"), again.next_due()), (Some(5), None, Some(5)));
        assert_eq!(again.take_due(4).expect("none is due"), None);
        assert_eq!(again.take_due(10).expect("due"), Some((b"a".to_vec(), 5)));
        assert_eq!(again.take_due(10).expect("due"), Some((b"b".to_vec(), 10)));
        assert_eq!(again.take_due(u64::MAX).expect("none is left"), None);
    }
}
