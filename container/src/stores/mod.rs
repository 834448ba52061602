//! Stores: a write-back cache ([`cache`]) over a task's RocksDB ([`disk`]), and what a restore writes ([`fill`]).

pub(crate) mod cache;
pub(crate) mod disk;
pub(crate) mod fill;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use task_api::store::{RawStore, StoreError, Visit, Visitor};

pub(crate) use cache::{Cache, Limits};
use disk::TaskDisk;

/// One store of one task.
pub(crate) struct Store {
    name: String,
    cache: Cache,
    disk: Arc<TaskDisk>,
    /// Set when the cache is full of dirty rows: the task's thread commits before the next message.
    full: Rc<Cell<bool>>,
    /// Reused for reads from disk.
    found: Vec<u8>,
}

impl Store {
    pub(crate) fn new(name: String, limits: Limits, disk: Arc<TaskDisk>, full: Rc<Cell<bool>>) -> Store {
        Store { name, cache: Cache::new(limits), disk, full, found: Vec::new() }
    }
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
    pub(crate) fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.cache.write(key, value);
        if self.cache.is_full() {
            self.full.set(true);
        }
    }
}

impl RawStore for Store {
    fn get(&mut self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let at = match self.cache.lookup(key) {
            Some(at) => at,
            None => {
                self.found.clear();
                let there = self.disk.get(&self.name, key, &mut self.found)?;
                self.cache.learn(key, there.then_some(self.found.as_slice()))
            }
        };
        Ok(self.cache.value(at))
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.write(key, Some(value));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.write(key, None);
        Ok(())
    }

    fn scan(
        &mut self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        visit: &mut Visitor<'_>,
    ) -> Result<(), StoreError> {
        let mut mine = self.cache.range_not_on_disk(from, to).into_iter().peekable();
        let mut stopped = false;
        self.disk.scan(&self.name, from, to, &mut |key, value| {
            // What the cache has comes first, and stands for the disk's row of the same key.
            while let Some((before, value)) = mine.next_if(|(mine, _)| *mine < key) {
                stopped = visit_present(visit, before, value)? == Visit::Stop;
                if stopped {
                    return Ok(Visit::Stop);
                }
            }
            let (key, value) = match mine.next_if(|(mine, _)| *mine == key) {
                Some((key, value)) => (key, value),
                None => (key, Some(value)),
            };
            let next = visit_present(visit, key, value)?;
            stopped = next == Visit::Stop;
            Ok(next)
        })?;
        for (key, value) in mine {
            if stopped || visit_present(visit, key, value)? == Visit::Stop {
                break;
            }
        }
        Ok(())
    }
}

/// Visits a row unless it is deleted.
fn visit_present(visit: &mut Visitor<'_>, key: &[u8], value: Option<&[u8]>) -> Result<Visit, StoreError> {
    match value {
        Some(value) => visit(key, value),
        None => Ok(Visit::Continue),
    }
}

#[cfg(test)]
mod tests;
