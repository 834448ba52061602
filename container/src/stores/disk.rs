//! One RocksDB per task: a column family per store, one for offsets rows; no log of its own (the changelog is the
//! log), so that what is flushed together is all or nothing after a crash.
//!
//! An error that says that files are damaged leaves a mark, so that the next start sets them aside (see
//! [`super::database`]) instead of failing again.
//!
//! Timers have an index, ordered by their times, that is on disk only: a column family that is written as a store's, and
//! made from rows as these are restored. Its offsets row says that it has an entry of every row.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rocksdb::{
    BoundColumnFamily, DBRawIteratorWithThreadMode, FlushOptions, IngestExternalFileOptions, ReadOptions,
    SstFileWriter, WriteBatch, WriteOptions,
};
use self_cell::self_cell;
use task_api::store::StoreError;
use task_api::timers::index_entry;
use tracing::warn;
use types::{StoreKind, StoreSpec, TIMERS_STORE};

pub(crate) use super::database::DiskMemory;
use super::database::{self, Db, Layout, MEMORY, OFFSETS, RESTORE_FILE, engine, family, family_options};

/// So many files of one store that are not merged are not added to.
const MOST_UNMERGED: u64 = 24;
/// How long a merge is waited for: after that memory is the smaller risk.
const MERGE_PATIENCE: Duration = Duration::from_secs(60);

/// The index of timers, as a store; no store of a job has such a name.
pub(crate) const TIMERS_INDEX: &str = "@timers";

/// A task's database, locked.
pub(crate) struct TaskDisk {
    // Dropped in this order: the lock goes last.
    db: Db,
    memory: DiskMemory,
    stores: BTreeMap<String, StoreSpec>,
    folder: PathBuf,
    /// Whether damaged state was set aside when it was opened.
    set_aside: bool,
    /// The task's time as of its last flush, for compactions: rows that were over by then may go.
    now_unix_ms: Arc<AtomicU64>,
    _lock: File,
}

impl TaskDisk {
    /// Opens `<state>/<entry>`, or, if another process has held that for two seconds, `<state>/<entry>@<suffix>`,
    /// with those of `stores` that are on disk. A damaged database is set aside and made anew: its changelog has
    /// everything.
    ///
    /// # Errors
    /// The folder cannot be made, the disk is full, or not even an empty database opens there.
    pub(crate) fn open(
        state: &Path,
        entry: &str,
        suffix: &str,
        stores: &[(&str, &StoreSpec)],
        memory: &DiskMemory,
    ) -> Result<TaskDisk, StoreError> {
        let usual = state.join(entry);
        let (folder, lock) = match database::lock(&usual, database::LOCK_WAIT)? {
            Some(lock) => {
                database::remove_spares(state, entry);
                (usual, lock)
            }
            None => {
                let spare = state.join(format!("{entry}@{suffix}"));
                warn!(folder = %usual.display(), "state folder is held by another process: restoring beside it");
                let lock = database::lock(&spare, Duration::ZERO)?
                    .ok_or_else(|| StoreError::Engine(format!("{} is held too", spare.display())))?;
                (spare, lock)
            }
        };
        let on_disk = |(_, spec): &&(&str, &StoreSpec)| spec.kind == StoreKind::RocksDb;
        let stores: Vec<(&str, &StoreSpec)> = stores.iter().filter(on_disk).copied().collect();
        let now_unix_ms = Arc::new(AtomicU64::new(0));
        let layout = Layout { stores: &stores, memory, now_unix_ms: &now_unix_ms };
        let (db, set_aside) = database::open_or_set_aside(&folder, &database::aside(state, entry), &layout)?;
        let stores = stores.iter().map(|(name, spec)| ((*name).to_owned(), (*spec).clone())).collect();
        memory.databases.fetch_add(1, Ordering::Relaxed);
        let disk =
            TaskDisk { db, memory: memory.clone(), stores, folder, set_aside, now_unix_ms, _lock: lock };
        disk.complete_index()?;
        Ok(disk)
    }

    /// The index of a store, if it has one.
    pub(super) fn index_of(&self, store: &str) -> Option<&'static str> {
        (store == TIMERS_STORE && self.stores.contains_key(TIMERS_INDEX)).then_some(TIMERS_INDEX)
    }

    /// Makes the index of rows that were written without one.
    fn complete_index(&self) -> Result<(), StoreError> {
        let Some(index) = self.index_of(TIMERS_STORE) else { return Ok(()) };
        if self.offsets_row(index)?.is_some() {
            return Ok(());
        }
        let mut rows = self.iterate(TIMERS_STORE, None, None)?;
        let mut batch = self.batch();
        while let Some(row) = rows.item() {
            batch.index(index, row)?;
            if batch.batch.size_in_bytes() >= self.memory.batch_bytes() {
                std::mem::replace(&mut batch, self.batch()).write()?;
            }
            rows.next();
        }
        rows.status().map_err(|e| self.failed(e))?;
        batch.offsets_row(index, b"whole")?;
        batch.write()?;
        self.flush(true)
    }

    /// Whether damaged state was set aside when this was opened.
    pub(crate) fn was_set_aside(&self) -> bool {
        self.set_aside
    }
    /// Tells compactions the time.
    pub(crate) fn set_now(&self, unix_ms: u64) {
        self.now_unix_ms.fetch_max(unix_ms, Ordering::Relaxed);
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// An error of the engine; damage leaves a mark for the next start.
    fn failed(&self, error: rocksdb::Error) -> StoreError {
        // An argument that is not valid is a fault of ours at run time, not of the files.
        if database::is_damage(&error) && error.kind() != rocksdb::ErrorKind::InvalidArgument {
            database::mark(&self.folder, error.as_ref());
        }
        engine(error)
    }

    fn cf(&self, name: &str) -> Result<Arc<BoundColumnFamily<'_>>, StoreError> {
        self.db.cf_handle(name).ok_or_else(|| StoreError::Engine(format!("no column family {name}")))
    }

    /// Appends the value of `key` to `value`; false if there is none.
    pub(crate) fn get(&self, store: &str, key: &[u8], value: &mut Vec<u8>) -> Result<bool, StoreError> {
        let cf = self.cf(&family(store))?;
        match self.db.get_pinned_cf(&cf, key).map_err(|e| self.failed(e))? {
            Some(found) => {
                value.extend_from_slice(&found);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// The rows of a store as they are now, from the first one of the range on.
    pub(crate) fn iterate(
        &self,
        store: &str,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
    ) -> Result<RawIterator<'_>, StoreError> {
        let cf = self.cf(&family(store))?;
        let mut options = ReadOptions::default();
        match to {
            Some(to) => options.set_iterate_upper_bound(to),
            // A look at everything shall not push out of the cache what single reads need.
            None => options.fill_cache(from.is_some()),
        }
        let mut rows = self.db.raw_iterator_cf_opt(&cf, options);
        match from {
            Some(from) => rows.seek(from),
            None => rows.seek_to_first(),
        }
        rows.status().map_err(|e| self.failed(e))?;
        Ok(rows)
    }

    /// [`Self::iterate`] for as long as the caller likes.
    pub(crate) fn snapshot(
        self: &Arc<Self>,
        store: &str,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
    ) -> Result<DiskSnapshot, StoreError> {
        let rows = Held::try_new(Arc::clone(self), |disk| disk.iterate(store, from, to))?;
        Ok(DiskSnapshot(rows))
    }

    /// The offsets row of a store.
    pub(crate) fn offsets_row(&self, store: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(&self.cf(OFFSETS)?, store).map_err(|e| self.failed(e))
    }

    /// What [`Batch::memory`] set.
    pub(crate) fn memory(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(&self.cf(OFFSETS)?, MEMORY).map_err(|e| self.failed(e))
    }

    /// Whether a store has no rows.
    pub(crate) fn is_empty(&self, store: &str) -> Result<bool, StoreError> {
        Ok(!self.iterate(store, None, None)?.valid())
    }

    /// Removes every row of a store and its offsets row, so that no crash can leave one without the other.
    pub(crate) fn clear(&self, store: &str) -> Result<(), StoreError> {
        let offsets = self.cf(OFFSETS)?;
        if self.db.get_cf(&offsets, store).map_err(|e| self.failed(e))?.is_some() {
            let mut batch = WriteBatch::default();
            batch.delete_cf(&offsets, store);
            self.db.write_without_wal(batch).map_err(|e| self.failed(e))?;
            // Dropping a column family is durable at once, so the deletion must be durable before.
            self.flush(true)?;
        }
        self.drop_rows(store)?;
        // After the rows: entries without rows do no harm.
        self.index_of(store).map_or(Ok(()), |index| self.drop_rows(index))
    }

    fn drop_rows(&self, store: &str) -> Result<(), StoreError> {
        let name = family(store);
        if self.is_empty(store)? {
            return Ok(());
        }
        self.db.drop_cf(&name).map_err(|e| self.failed(e))?;
        let options = family_options(&self.memory, self.stores.get(store), &self.now_unix_ms);
        self.db.create_cf(&name, &options).map_err(|e| self.failed(e))
    }

    /// A batch of writes.
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch { disk: self, batch: WriteBatch::default() }
    }

    /// Writes the committed rows that a cache has and the disk has not, in the order of keys.
    pub(crate) fn write_cache(&self, store: &str, cache: &mut super::Cache) -> Result<(), StoreError> {
        let batch_bytes = self.memory.batch_bytes();
        let cf = self.cf(&family(store))?;
        let mut batch = WriteBatch::default();
        let mut written = Ok(());
        cache.visit_unflushed(|(key, value)| {
            match value {
                Some(value) => batch.put_cf(&cf, key, value),
                None => batch.delete_cf(&cf, key),
            }
            if batch.size_in_bytes() >= batch_bytes && written.is_ok() {
                written = Batch { disk: self, batch: std::mem::take(&mut batch) }.write();
            }
        });
        written?;
        Batch { disk: self, batch }.write()?;
        cache.flushed(true);
        Ok(())
    }

    /// Makes what was written durable; without `wait` it is begun.
    pub(crate) fn flush(&self, wait: bool) -> Result<(), StoreError> {
        let mut options = FlushOptions::default();
        options.set_wait(wait);
        // Every column family must be named: a flush asked for by hand is atomic over those only, and an offsets
        // row on disk before its rows would lose them.
        let mut families = vec![self.cf(OFFSETS)?];
        for store in self.stores.keys() {
            families.push(self.cf(&family(store))?);
        }
        self.db.flush_cfs_opt(&families.iter().collect::<Vec<_>>(), &options).map_err(|e| self.failed(e))
    }

    fn memtable_bytes(&self) -> u64 {
        let families = self.stores.keys().map(|store| family(store)).chain([OFFSETS.to_owned()]);
        let of = |name: String| {
            let cf = self.db.cf_handle(&name)?;
            self.db.property_int_value_cf(&cf, "rocksdb.cur-size-all-mem-tables").ok()?
        };
        families.filter_map(of).sum()
    }

    /// Has files of a store merged later than usual while it is filled: many at once is cheaper than a few each time.
    pub(crate) fn merge_later(&self, store: &str, later: bool) -> Result<(), StoreError> {
        // RocksDB's own is 4; it slows writers down at 20.
        let setting = [("level0_file_num_compaction_trigger", if later { "16" } else { "4" })];
        for store in [store].into_iter().chain(self.index_of(store)) {
            self.db.set_options_cf(&self.cf(&family(store))?, &setting).map_err(|e| self.failed(e))?;
        }
        Ok(())
    }

    /// Files that are added wait for no merge by themselves. Each costs memory, its filter at once and its share of a
    /// merge later, so a restore waits where there are many.
    fn wait_for_merges(&self, store: &str) -> Result<(), StoreError> {
        let cf = self.cf(&family(store))?;
        let start = Instant::now();
        loop {
            let files = self.db.property_int_value_cf(&cf, "rocksdb.num-files-at-level0").map_err(engine)?;
            if files.unwrap_or(0) < MOST_UNMERGED || start.elapsed() > MERGE_PATIENCE {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Adds rows, ascending and unique, as one file below the memtable: the cheapest way for many.
    pub(crate) fn ingest<'a>(
        &self,
        store: &str,
        number: u32,
        rows: impl Iterator<Item = super::cache::Row<'a>>,
    ) -> Result<(), StoreError> {
        self.wait_for_merges(store)?;
        let path = self.folder.join(format!("{RESTORE_FILE}{store}-{number}.sst"));
        let options = family_options(&self.memory, self.stores.get(store), &self.now_unix_ms);
        let mut writer = SstFileWriter::create(&options);
        writer.open(&path).map_err(|e| self.failed(e))?;
        for (key, value) in rows {
            match value {
                Some(value) => writer.put(key, value),
                None => writer.delete(key),
            }
            .map_err(|e| self.failed(e))?;
        }
        writer.finish().map_err(|e| self.failed(e))?;
        drop(writer);
        let mut how = IngestExternalFileOptions::default();
        how.set_move_files(true);
        let cf = self.cf(&family(store))?;
        self.db.ingest_external_file_cf_opts(&cf, &how, vec![path]).map_err(|e| self.failed(e))
    }

    /// Bytes of a store's files and about how many rows are in them.
    pub(crate) fn size(&self, store: &str) -> Result<(u64, u64), StoreError> {
        let cf = self.cf(&family(store))?;
        let ask = |name: &str| Ok(self.db.property_int_value_cf(&cf, name).map_err(engine)?.unwrap_or(0));
        Ok((ask("rocksdb.total-sst-files-size")?, ask("rocksdb.estimate-num-keys")?))
    }

    /// Waits until RocksDB has merged what it wants to merge.
    #[cfg(test)]
    pub(crate) fn wait_for_compactions(&self) {
        self.db.wait_for_compact(&rocksdb::WaitForCompactOptions::default()).expect("compacts");
    }

    /// Compacts a store, as RocksDB would some time.
    #[cfg(test)]
    pub(crate) fn compact(&self, store: &str) {
        self.flush(true).expect("flushes");
        let cf = self.cf(&family(store)).expect("a store");
        let mut how = rocksdb::CompactOptions::default();
        how.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
        self.db.compact_range_cf_opt(&cf, None::<&[u8]>, None::<&[u8]>, &how);
    }
}

impl Drop for TaskDisk {
    fn drop(&mut self) {
        self.memory.databases.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Rows that reach the disk together.
pub(crate) struct Batch<'a> {
    disk: &'a TaskDisk,
    batch: WriteBatch,
}

impl Batch<'_> {
    /// Adds rows of a store, and what its index has of them.
    pub(crate) fn rows<'r>(
        &mut self,
        store: &str,
        rows: impl Iterator<Item = super::cache::Row<'r>>,
    ) -> Result<(), StoreError> {
        let cf = self.disk.cf(&family(store))?;
        for (key, value) in rows {
            match value {
                Some(value) => self.batch.put_cf(&cf, key, value),
                None => self.batch.delete_cf(&cf, key),
            }
            if let Some((index, value)) = self.disk.index_of(store).zip(value) {
                self.index(index, (key, value))?;
            }
        }
        Ok(())
    }

    fn index(&mut self, index: &str, (key, value): (&[u8], &[u8])) -> Result<(), StoreError> {
        let mut entry = Vec::with_capacity(key.len() + value.len());
        index_entry(key, value, &mut entry)?;
        self.batch.put_cf(&self.disk.cf(&family(index))?, entry, []);
        Ok(())
    }

    /// Sets a store's offsets row. A store that is not on this disk, one in memory, has none: it would say that rows
    /// are here.
    pub(crate) fn offsets_row(&mut self, store: &str, row: &[u8]) -> Result<(), StoreError> {
        if self.disk.stores.contains_key(store) {
            let cf = self.disk.cf(OFFSETS)?;
            self.batch.put_cf(&cf, store, row);
        }
        Ok(())
    }

    /// Sets, or removes, what vouches for the rows of all stores: the commit that they are of.
    pub(crate) fn memory(&mut self, memory: Option<&[u8]>) -> Result<(), StoreError> {
        let cf = self.disk.cf(OFFSETS)?;
        match memory {
            Some(memory) => self.batch.put_cf(&cf, MEMORY, memory),
            None => self.batch.delete_cf(&cf, MEMORY),
        }
        Ok(())
    }

    /// Writes it to memory; [`TaskDisk::flush`] makes it durable. Waits for the disk where RocksDB is behind, so that
    /// memtables stay within their share. Everything that is written is committed, so a flush is right at any time.
    pub(crate) fn write(self) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.disk.db.write_opt(self.batch, &options).map_err(|e| self.disk.failed(e))?;
        if self.disk.memory.is_behind(|| self.disk.memtable_bytes()) { self.disk.flush(true) } else { Ok(()) }
    }
}

/// An iterator of RocksDB.
pub(crate) type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, Db>;

self_cell!(
    struct Held {
        owner: Arc<TaskDisk>,
        #[covariant]
        dependent: RawIterator,
    }
);

/// Rows at one moment, one at hand; RocksDB keeps what they need for as long.
pub(crate) struct DiskSnapshot(Held);

impl DiskSnapshot {
    pub(crate) fn item(&self) -> Option<(&[u8], &[u8])> {
        self.0.borrow_dependent().item()
    }
    pub(crate) fn advance(&mut self) -> Result<(), StoreError> {
        self.0.with_dependent_mut(|disk, rows| {
            rows.next();
            rows.status().map_err(|e| disk.failed(e))
        })
    }
}
