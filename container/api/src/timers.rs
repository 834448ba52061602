//! Timers by key, kept in a store like any other state: they survive restarts and are committed with the rest.
//!
//! ```text
//!   rows    key                 → time, unix ms, big-endian        what is logged and restored
//!   index   time, big-endian ‖ key → nothing                       derived from the rows, ordered by time
//! ```
//!
//! Only the next timers of the index are in memory, so there may be as many as the disk holds. The index has an entry of
//! every timer, and may have entries of timers that are no more, which a restore leaves: those are found out when they
//! would go off.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::store::{MemoryStore, RawStore, StoreError};

/// The next timers that are held in memory; up to twice as many.
const NEXT: usize = 1_024;

/// One task's timers; a handle, cheap to clone.
#[derive(Clone)]
pub struct Timers(Rc<RefCell<Queue>>);

struct Queue {
    rows: Rc<RefCell<dyn RawStore>>,
    index: Rc<RefCell<dyn RawStore>>,
    /// Every entry of the index that is before `from`, in its order; there is one if the index has any.
    next: BTreeSet<Vec<u8>>,
    /// Entries from here on are in the index only; none if there are no others.
    from: Option<Vec<u8>>,
}

impl std::fmt::Debug for Timers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Timers(next at {:?})", self.next_due())
    }
}

/// For runtimes: the entry in the index of a row of timers.
///
/// # Errors
/// The row is none of a timer.
pub fn index_entry(key: &[u8], time: &[u8], entry: &mut Vec<u8>) -> Result<(), StoreError> {
    time_of(time)?;
    entry.extend_from_slice(time);
    entry.extend_from_slice(key);
    Ok(())
}

fn time_of(value: &[u8]) -> Result<u64, StoreError> {
    let time = value.try_into().map_err(|_| StoreError::Decode("a row of timers is no timer".into()))?;
    Ok(u64::from_be_bytes(time))
}

fn entry_of(key: &[u8], due_unix_ms: u64) -> Vec<u8> {
    [&due_unix_ms.to_be_bytes(), key].concat()
}

/// An entry's time and key.
fn parts(entry: &[u8]) -> (u64, &[u8]) {
    entry.split_first_chunk().map_or((0, entry), |(time, key)| (u64::from_be_bytes(*time), key))
}

impl Queue {
    fn get(&self, key: &[u8]) -> Result<Option<u64>, StoreError> {
        self.rows.borrow_mut().get(key)?.map(time_of).transpose()
    }

    fn add(&mut self, entry: Vec<u8>) -> Result<(), StoreError> {
        self.index.borrow_mut().put(&entry, &[])?;
        if self.from.as_ref().is_some_and(|from| entry >= *from) {
            return Ok(());
        }
        self.next.insert(entry);
        if self.next.len() > 2 * NEXT
            && let Some(last) = self.next.iter().nth(NEXT).cloned()
        {
            self.next.split_off(&last);
            self.from = Some(last);
        }
        Ok(())
    }

    fn remove(&mut self, entry: &[u8]) -> Result<(), StoreError> {
        self.index.borrow_mut().delete(entry)?;
        self.next.remove(entry);
        self.look_ahead()
    }

    fn look_ahead(&mut self) -> Result<(), StoreError> {
        let Some(from) = self.from.take_if(|_| self.next.is_empty()) else { return Ok(()) };
        self.next = self.index.borrow_mut().first_keys(&from, NEXT)?.into_iter().collect();
        if let Some(last) = self.next.last().filter(|_| self.next.len() >= NEXT) {
            // The first key after it.
            self.from = Some([last.as_slice(), &[0]].concat());
        }
        Ok(())
    }
}

impl Timers {
    /// For runtimes: the timers in `rows`, in the order of `index`.
    ///
    /// # Errors
    /// A store failed.
    pub fn load(
        rows: Rc<RefCell<dyn RawStore>>,
        index: Rc<RefCell<dyn RawStore>>,
    ) -> Result<Timers, StoreError> {
        let mut queue = Queue { rows, index, next: BTreeSet::new(), from: Some(Vec::new()) };
        queue.look_ahead()?;
        Ok(Timers(Rc::new(RefCell::new(queue))))
    }

    /// For runtimes whose timers are few: the timers in `rows`, their order kept in memory.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub fn in_memory(rows: Rc<RefCell<dyn RawStore>>) -> Result<Timers, StoreError> {
        let mut index = MemoryStore::default();
        let mut stored = rows.borrow_mut().rows(None, None)?;
        while let Some((key, time)) = stored.next()? {
            let mut entry = Vec::new();
            index_entry(key, time, &mut entry)?;
            index.0.insert(entry, Vec::new());
        }
        Timers::load(rows, Rc::new(RefCell::new(index)))
    }

    /// Sets the timer of `key` to go off at `due_unix_ms`, in place of the one it may have had.
    ///
    /// # Errors
    /// The store failed.
    pub fn set(&self, key: &[u8], due_unix_ms: u64) -> Result<(), StoreError> {
        let queue = &mut *self.0.borrow_mut();
        let before = queue.get(key)?;
        if before == Some(due_unix_ms) {
            return Ok(());
        }
        queue.rows.borrow_mut().put(key, &due_unix_ms.to_be_bytes())?;
        queue.add(entry_of(key, due_unix_ms))?;
        before.map_or(Ok(()), |before| queue.remove(&entry_of(key, before)))
    }

    /// Takes the timer of `key` away; returns when it would have gone off, none if there was none.
    ///
    /// # Errors
    /// The store failed.
    pub fn cancel(&self, key: &[u8]) -> Result<Option<u64>, StoreError> {
        let queue = &mut *self.0.borrow_mut();
        let Some(due) = queue.get(key)? else { return Ok(None) };
        queue.rows.borrow_mut().delete(key)?;
        queue.remove(&entry_of(key, due))?;
        Ok(Some(due))
    }

    /// When the timer of `key` goes off.
    ///
    /// # Errors
    /// The store failed.
    pub fn get(&self, key: &[u8]) -> Result<Option<u64>, StoreError> {
        self.0.borrow().get(key)
    }

    /// For runtimes: when the next timer is due, unix ms; never later.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.0.borrow().next.first().map(|entry| parts(entry).0)
    }

    /// For runtimes: the next timers that are due at `now_unix_ms`, at most `most`, in the order of their times. They stay
    /// set, and [`Self::take`] tells which of them are.
    #[must_use]
    pub fn due(&self, now_unix_ms: u64, most: usize) -> Vec<(Vec<u8>, u64)> {
        let queue = self.0.borrow();
        let next = queue.next.iter().map(|entry| parts(entry));
        let due = next.take_while(|(due, _)| *due <= now_unix_ms);
        due.take(most).map(|(due, key)| (key.to_vec(), due)).collect()
    }

    /// For runtimes: takes the timer of `key` if it is still set to `due_unix_ms`; returns whether it was.
    ///
    /// # Errors
    /// The store failed.
    pub fn take(&self, key: &[u8], due_unix_ms: u64) -> Result<bool, StoreError> {
        let queue = &mut *self.0.borrow_mut();
        let is_set = queue.get(key)? == Some(due_unix_ms);
        if is_set {
            queue.rows.borrow_mut().delete(key)?;
        }
        queue.remove(&entry_of(key, due_unix_ms))?;
        Ok(is_set)
    }

    /// For runtimes: takes the first timer that is due at `now_unix_ms`, with its time.
    ///
    /// # Errors
    /// The store failed.
    pub fn take_due(&self, now_unix_ms: u64) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        while let Some((key, due)) = self.due(now_unix_ms, 1).pop() {
            if self.take(&key, due)? {
                return Ok(Some((key, due)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn stores() -> (Rc<RefCell<MemoryStore>>, Rc<RefCell<MemoryStore>>) {
        Default::default()
    }

    #[test]
    fn timers_go_off_in_the_order_of_their_times_and_are_loaded_again() {
        let (rows, index) = stores();
        let timers = Timers::load(rows.clone(), index.clone()).expect("empty");
        timers.set(b"a", 30).expect("set");
        timers.set(b"b", 10).expect("set");
        timers.set(b"c", 20).expect("set");
        timers.set(b"a", 5).expect("moved");
        assert_eq!(timers.cancel(b"c").expect("cancelled"), Some(20));
        assert_eq!(timers.cancel(b"c").expect("nothing to cancel"), None);
        for again in [Timers::load(rows.clone(), index), Timers::in_memory(rows)] {
            let again = again.expect("loaded");
            assert_eq!((again.get(b"a").expect("read"), again.next_due()), (Some(5), Some(5)));
            assert_eq!(again.get(b"c").expect("read"), None);
        }
        assert_eq!(timers.take_due(4).expect("none is due"), None);
        assert_eq!(timers.take_due(10).expect("due"), Some((b"a".to_vec(), 5)));
        assert_eq!(timers.take_due(10).expect("due"), Some((b"b".to_vec(), 10)));
        assert_eq!(timers.take_due(u64::MAX).expect("none is left"), None);
    }

    #[test]
    fn entries_of_timers_that_are_no_more_never_go_off_and_are_forgotten() {
        let (rows, index) = stores();
        for entry in [entry_of(b"moved", 1), entry_of(b"gone", 2), entry_of(b"moved", 3)] {
            index.borrow_mut().put(&entry, &[]).expect("put");
        }
        rows.borrow_mut().put(b"moved", &3u64.to_be_bytes()).expect("put");
        let timers = Timers::load(rows, index.clone()).expect("loaded");
        assert_eq!(timers.take_due(9).expect("due"), Some((b"moved".to_vec(), 3)));
        assert_eq!(timers.take_due(9).expect("none is left"), None);
        assert!(index.borrow().0.is_empty(), "{index:?}");
    }

    #[test]
    fn of_many_timers_only_the_next_are_in_memory_and_all_go_off_in_order() {
        let (rows, index) = stores();
        let timers = Timers::load(rows.clone(), index.clone()).expect("empty");
        let mut model = BTreeMap::new();
        let key = |n: u64| (n * 7_919 % 5_003).to_be_bytes();
        for n in 0..6 * NEXT as u64 {
            // Up, down and up again; some of them twice.
            let due = if n % 3 == 0 { n } else { 1_000_000 - n % 977 };
            timers.set(&key(n), due).expect("set");
            model.insert(key(n).to_vec(), due);
            if n % 5 == 0 {
                timers.cancel(&key(n / 2)).expect("cancelled");
                model.remove(key(n / 2).as_slice());
            }
            let first = model.values().min().copied();
            assert_eq!(timers.next_due(), first);
            assert!(timers.0.borrow().next.len() <= 2 * NEXT);
        }
        let timers = Timers::load(rows, index).expect("loaded");
        assert_eq!(timers.0.borrow().next.len(), NEXT);
        let mut expected: Vec<_> = model.into_iter().map(|(key, due)| (due, key)).collect();
        expected.sort();
        let mut went_off = Vec::new();
        while let Some((key, due)) = timers.take_due(u64::MAX).expect("due") {
            went_off.push((due, key));
        }
        assert_eq!(went_off, expected);
    }
}
