//! Stores: a write-back cache ([`cache`]) over a task's RocksDB ([`disk`]) or over a map in memory ([`memory`]), and
//! what a restore writes ([`fill`]).
//!
//! Both kinds go through the same steps: rows are dirty until a commit has sent them to the changelog, clean until a
//! flush has moved them below the cache. What the cache, the disk and the changelog hold of a value is its *stored*
//! form: the value itself, or, in a store with a ttl, the value led by the time of its write ([`ttl`]).

pub(crate) mod cache;
pub(crate) mod database;
pub(crate) mod disk;
pub(crate) mod fill;
pub(crate) mod link;
pub(crate) mod memory;
mod order;
pub(crate) mod rows;
pub(crate) mod ttl;

use std::rc::Rc;
use std::sync::Arc;

use task_api::TaskClock;
use task_api::metrics::{Counter, Gauge, TaskMetrics};
use task_api::store::{RawRows, RawStore, StoreError};
use types::{OnLargeValue, StoreSpec};

pub(crate) use cache::{Cache, Limits};
use disk::TaskDisk;
use link::Link;
use memory::MemoryRows;
use rows::{BelowRows, Copied, Snapshot};

use crate::systems::LARGEST_ROW;

/// Where rows are that the cache need not have.
pub(crate) enum Below {
    Disk(Arc<TaskDisk>),
    Memory(MemoryRows),
}

/// A key that is longer can be in no store with a smaller `max-value`, nor in one that had the default before: its
/// deletion is no row that a commit must be able to send.
const LARGEST_KEY_DELETED: usize = 900_000;

/// One store of one task.
pub(crate) struct Store {
    name: String,
    cache: Cache,
    below: Below,
    ttl_ms: Option<u64>,
    max_bytes: usize,
    on_large: OnLargeValue,
    clock: TaskClock,
    /// With its thread, which commits before the next message when the cache is full of dirty rows.
    link: Rc<Link>,
    /// Bytes of the cache beyond its share, as the link knows.
    overdrawn: usize,
    /// Reused for reads from disk, and for stored forms.
    scratch: Vec<u8>,
    metrics: StoreMetrics,
    /// Since the last commit.
    disk_reads: u64,
}

impl Store {
    /// A store of a task whose time is `clock`; `metrics` carry the labels of the store.
    pub(crate) fn new(
        name: &str,
        spec: &StoreSpec,
        limits: Limits,
        below: Below,
        link: Rc<Link>,
        clock: TaskClock,
        metrics: &TaskMetrics,
    ) -> Store {
        Store {
            name: name.to_owned(),
            cache: Cache::new(limits),
            below,
            ttl_ms: spec.ttl_ms,
            max_bytes: usize::try_from(spec.max_value_bytes.min(LARGEST_ROW)).unwrap_or(usize::MAX),
            on_large: spec.on_large_value,
            clock,
            link,
            overdrawn: 0,
            scratch: Vec::new(),
            metrics: StoreMetrics::new(metrics),
            disk_reads: 0,
        }
    }
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
    pub(crate) fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }

    /// The dirty rows are committed: they are clean.
    pub(crate) fn committed(&mut self) {
        self.metrics.written.add(self.cache.dirty_rows() as u64);
        self.cache.committed();
        self.settle_overdraft();
        self.metrics.disk_reads.add(std::mem::take(&mut self.disk_reads));
        self.metrics.of_cache(&self.cache);
    }

    /// Moves clean rows below the cache; there must be no dirty ones.
    pub(crate) fn write_below(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now_unix_ms();
        let (bytes, rows) = match &mut self.below {
            Below::Disk(disk) => {
                disk.set_now(now);
                disk.write_cache(&self.name, &mut self.cache)?;
                disk.size(&self.name)?
            }
            Below::Memory(rows) => {
                self.cache.visit_unflushed(|row| rows.apply(row));
                // The map has them as near as the cache had.
                self.cache.flushed(false);
                if let Some(ttl_ms) = self.ttl_ms {
                    rows.sweep(ttl_ms, now);
                }
                (rows.bytes() as u64, rows.len() as u64)
            }
        };
        self.metrics.of_below(bytes, rows);
        self.settle_overdraft();
        Ok(())
    }

    /// A row is not written, because no commit could send it.
    fn too_large(&self, bytes: usize, limit: usize) -> Result<(), StoreError> {
        match self.on_large {
            OnLargeValue::Drop => {
                self.metrics.too_large.inc();
                Ok(())
            }
            OnLargeValue::Fail => Err(StoreError::TooLarge { store: self.name.clone(), bytes, limit }),
        }
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        if self.link.is_overdrawn() {
            let (bytes, limit) = (self.cache.bytes(), self.cache.limits().bytes);
            return self.link.note(Err(StoreError::TooMuchAtOnce { store: self.name.clone(), bytes, limit }));
        }
        self.cache.write(key, value);
        if self.cache.is_full() {
            self.link.pulse.set_full(true);
            // The thread cannot commit before this call of the task is over, and memory is not endless.
            self.settle_overdraft();
        }
        Ok(())
    }

    /// Says how much the cache holds beyond its share.
    fn settle_overdraft(&mut self) {
        let now = self.cache.bytes().saturating_sub(self.cache.limits().bytes);
        let before = std::mem::replace(&mut self.overdrawn, now);
        self.link.overdraw(before, now);
    }

    fn snapshot(&self, mine: Copied, below: BelowRows) -> Snapshot {
        let ttl = self.ttl_ms.map(|ttl_ms| (ttl_ms, self.clock.now_unix_ms()));
        Snapshot::new(mine, below, ttl, Rc::clone(&self.link))
    }

    /// The stored value of `key`.
    fn stored(&mut self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let at = match (self.cache.lookup(key), &self.below) {
            (Some(at), _) => at,
            (None, Below::Memory(rows)) => return Ok(rows.get(key)),
            (None, Below::Disk(disk)) => {
                self.scratch.clear();
                self.disk_reads += 1;
                let there = self.link.note(disk.get(&self.name, key, &mut self.scratch))?;
                self.cache.learn(key, there.then_some(self.scratch.as_slice()))
            }
        };
        Ok(self.cache.value(at))
    }
}

impl RawStore for Store {
    fn get(&mut self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let Some(ttl_ms) = self.ttl_ms else { return self.stored(key) };
        let (now, link) = (self.clock.now_unix_ms(), Rc::clone(&self.link));
        match self.stored(key)? {
            Some(stored) => link.note(ttl::live(stored, ttl_ms, now)),
            None => Ok(None),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let bytes = key.len() + value.len();
        if bytes > self.max_bytes {
            return self.too_large(bytes, self.max_bytes);
        }
        if self.ttl_ms.is_none() {
            return self.write(key, Some(value));
        }
        let mut stored = std::mem::take(&mut self.scratch);
        stored.clear();
        ttl::stamp(value, self.clock.now_unix_ms(), &mut stored);
        let written = self.write(key, Some(&stored));
        self.scratch = stored;
        written
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        let limit = self.max_bytes.max(LARGEST_KEY_DELETED);
        if key.len() > limit {
            return self.too_large(key.len(), limit);
        }
        self.write(key, None)
    }

    fn rows(&mut self, from: Option<&[u8]>, to: Option<&[u8]>) -> Result<Box<dyn RawRows>, StoreError> {
        let is_empty = from.zip(to).is_some_and(|(from, to)| from >= to);
        let below = match &self.below {
            _ if is_empty => BelowRows::Empty,
            Below::Disk(disk) => BelowRows::Disk(self.link.note(disk.snapshot(&self.name, from, to))?),
            Below::Memory(rows) => BelowRows::Memory(rows.snapshot(from, to)),
        };
        let mine = Copied::of(self.cache.range_not_on_disk(from, to));
        Ok(Box::new(self.snapshot(mine, below)))
    }

    fn first_keys(&mut self, from: &[u8], most: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let (mut keys, mut from) = (Vec::new(), from.to_vec());
        loop {
            // Of what the cache has so much at a time.
            let mine = Copied::of(self.cache.range_not_on_disk(Some(&from), None).take(most.max(1)));
            let to = mine.last_key().filter(|_| mine.len() >= most).map(|last| [last, &[0]].concat());
            let below = match &self.below {
                Below::Disk(disk) => {
                    BelowRows::Disk(self.link.note(disk.snapshot(&self.name, Some(&from), to.as_deref()))?)
                }
                Below::Memory(rows) => BelowRows::Memory(rows.snapshot(Some(&from), to.as_deref())),
            };
            let mut rows = self.snapshot(mine, below);
            while let Some((key, _)) = rows.next()? {
                keys.push(key.to_vec());
                if keys.len() >= most {
                    return Ok(keys);
                }
            }
            match to {
                Some(to) => from = to,
                None => return Ok(keys),
            }
        }
    }
}

/// A store's metrics: written at commits and flushes, but for what hardly ever happens.
struct StoreMetrics {
    too_large: Counter,
    written: Counter,
    disk_reads: Counter,
    cache_rows: Gauge,
    cache_bytes: Gauge,
    unflushed_rows: Gauge,
    bytes: Gauge,
    rows: Gauge,
}

#[allow(clippy::cast_precision_loss)] // gauges are of no use beyond 2^52
impl StoreMetrics {
    fn new(metrics: &TaskMetrics) -> StoreMetrics {
        StoreMetrics {
            too_large: metrics.counter("samza_store_large_values_dropped_total"),
            written: metrics.counter("samza_store_rows_committed_total"),
            disk_reads: metrics.counter("samza_store_disk_reads_total"),
            cache_rows: metrics.gauge("samza_store_cache_rows"),
            cache_bytes: metrics.gauge("samza_store_cache_bytes"),
            unflushed_rows: metrics.gauge("samza_store_unflushed_rows"),
            bytes: metrics.gauge("samza_store_bytes"),
            rows: metrics.gauge("samza_store_rows"),
        }
    }
    fn of_cache(&self, cache: &Cache) {
        self.cache_rows.set(cache.rows_known() as f64);
        self.cache_bytes.set(cache.bytes() as f64);
        self.unflushed_rows.set(cache.rows_not_on_disk() as f64);
    }
    fn of_below(&self, bytes: u64, rows: u64) {
        self.bytes.set(bytes as f64);
        self.rows.set(rows as f64);
        self.unflushed_rows.set(0.0);
    }
}

#[cfg(test)]
mod measured;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod timers_tests;
