//! A task's store in memory: what was written since the last commit can be taken back.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use types::{OnLargeValue, StoreKind, StoreSpec};

use crate::metrics::Counter;
use crate::store::{MemoryStore, RawRows, RawStore, StoreError};
use crate::task::TaskClock;

/// A value and when it was written.
type Row = (Vec<u8>, u64);

pub(super) struct KitStore {
    name: String,
    spec: StoreSpec,
    clock: TaskClock,
    rows: BTreeMap<Vec<u8>, Row>,
    /// What the rows written since the last commit were before.
    before: BTreeMap<Vec<u8>, Option<Row>>,
    /// Set when a commit must come before the next message.
    full: Rc<AtomicBool>,
    /// Values that were too large and were left out.
    pub(super) dropped: Counter,
}

impl KitStore {
    pub(super) fn new(name: &str, spec: &StoreSpec, clock: &TaskClock, full: &Rc<AtomicBool>) -> KitStore {
        KitStore {
            name: name.to_owned(),
            spec: spec.clone(),
            clock: clock.clone(),
            rows: BTreeMap::new(),
            before: BTreeMap::new(),
            full: Rc::clone(full),
            dropped: Counter::default(),
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.before.is_empty()
    }

    pub(super) fn commit(&mut self) {
        self.before.clear();
    }

    /// Back to the last commit.
    pub(super) fn roll_back(&mut self) {
        for (key, before) in std::mem::take(&mut self.before) {
            match before {
                Some(row) => self.rows.insert(key, row),
                None => self.rows.remove(&key),
            };
        }
    }

    /// What a new process finds: rows in memory that no changelog has are gone, and on another node so are all rows
    /// that no changelog has.
    pub(super) fn reopen(&mut self, on_another_node: bool) {
        if self.spec.changelog.is_none() && (on_another_node || self.spec.kind == StoreKind::Memory) {
            self.rows.clear();
        }
    }

    fn is_live(&self, (_, written): &Row) -> bool {
        self.spec.ttl_ms.is_none_or(|ttl| self.clock.now_unix_ms().saturating_sub(*written) < ttl)
    }

    fn set(&mut self, key: &[u8], row: Option<Row>) {
        let before = match row {
            Some(row) => self.rows.insert(key.to_vec(), row),
            None => self.rows.remove(key),
        };
        self.before.entry(key.to_vec()).or_insert(before);
        if self.before.len() as u64 >= self.spec.cache_rows {
            self.full.store(true, Ordering::Relaxed);
        }
    }
}

impl RawStore for KitStore {
    fn get(&mut self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        Ok(self.rows.get(key).filter(|row| self.is_live(row)).map(|(value, _)| value.as_slice()))
    }
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let bytes = key.len() + value.len();
        if bytes as u64 > self.spec.max_value_bytes {
            if self.spec.on_large_value == OnLargeValue::Drop {
                self.dropped.inc();
                return Ok(());
            }
            let limit = usize::try_from(self.spec.max_value_bytes).unwrap_or(usize::MAX);
            return Err(StoreError::TooLarge { store: self.name.clone(), bytes, limit });
        }
        self.set(key, Some((value.to_vec(), self.clock.now_unix_ms())));
        Ok(())
    }
    fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.set(key, None);
        Ok(())
    }
    fn rows(&mut self, from: Option<&[u8]>, to: Option<&[u8]>) -> Result<Box<dyn RawRows>, StoreError> {
        let live = self.rows.iter().filter(|(_, row)| self.is_live(row));
        MemoryStore(live.map(|(key, (value, _))| (key.clone(), value.clone())).collect()).rows(from, to)
    }
}
