//! One RocksDB per task: a column family per store, one for offsets rows; no log of its own (the changelog is the
//! log), so that what is flushed together is all or nothing after a crash.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBCompressionType, DBWithThreadMode,
    ErrorKind, FlushOptions, IngestExternalFileOptions, LogLevel, MultiThreaded, Options, ReadOptions,
    SstFileWriter, WriteBatch, WriteBufferManager, WriteOptions,
};
use rustix::fs::{FlockOperation, flock};
use task_api::store::{StoreError, Visit};
use tracing::{info, warn};

/// The column family of offsets rows.
const OFFSETS: &str = "offsets";
/// A file beside a database in which damage was found while it was in use: who opens it next makes it anew.
const DAMAGED: &str = "DAMAGED";
/// How long a state folder that another process holds is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// What all databases of a container share.
#[derive(Clone)]
pub(crate) struct DiskMemory {
    block_cache: Cache,
    write_buffers: WriteBufferManager,
    write_buffer_bytes: usize,
}

impl DiskMemory {
    /// One block cache of `cache_bytes`, and memtables of `write_buffer_bytes` in all, which count in it.
    pub(crate) fn new(cache_bytes: u64, write_buffer_bytes: u64) -> DiskMemory {
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let block_cache = Cache::new_lru_cache(bytes(cache_bytes + write_buffer_bytes));
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            bytes(write_buffer_bytes),
            false,
            block_cache.clone(),
        );
        DiskMemory { block_cache, write_buffers, write_buffer_bytes: bytes(write_buffer_bytes) }
    }
}

/// A task's database, locked.
pub(crate) struct TaskDisk {
    // Dropped in this order: the lock goes last.
    db: DBWithThreadMode<MultiThreaded>,
    memory: DiskMemory,
    stores: Vec<String>,
    folder: PathBuf,
    _lock: File,
}

fn engine(error: rocksdb::Error) -> StoreError {
    StoreError::Engine(error.into_string())
}
fn io(what: &str, path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Engine(format!("{what} {}: {error}", path.display()))
}
fn family(store: &str) -> String {
    format!("store.{store}")
}

impl TaskDisk {
    /// Opens `<state>/<entry>`, or, if another process has held that for two seconds, `<state>/<entry>@<suffix>`.
    /// A database that does not open, or was found damaged, is removed and made anew: its changelog has everything.
    ///
    /// # Errors
    /// The folder cannot be made, or not even an empty database opens there.
    pub(crate) fn open(
        state: &Path,
        entry: &str,
        suffix: &str,
        stores: &[&str],
        memory: &DiskMemory,
    ) -> Result<TaskDisk, StoreError> {
        let usual = state.join(entry);
        let (folder, lock) = match lock(&usual, LOCK_WAIT)? {
            Some(lock) => {
                remove_spares(state, entry);
                (usual, lock)
            }
            None => {
                let spare = state.join(format!("{entry}@{suffix}"));
                warn!(folder = %usual.display(), "state folder is held by another process: restoring beside it");
                let lock = lock(&spare, Duration::ZERO)?
                    .ok_or_else(|| StoreError::Engine(format!("{} is held too", spare.display())))?;
                (spare, lock)
            }
        };
        let opened = if folder.join(DAMAGED).exists() {
            Err("damage was found in it".to_owned())
        } else {
            open_database(&folder, stores, memory).map_err(rocksdb::Error::into_string)
        };
        let db = match opened {
            Ok(db) => db,
            Err(error) => {
                warn!(folder = %folder.display(), %error, "local state does not open: removing it");
                empty(&folder)?;
                open_database(&folder, stores, memory).map_err(engine)?
            }
        };
        let stores = stores.iter().map(|store| (*store).to_owned()).collect();
        Ok(TaskDisk { db, memory: memory.clone(), stores, folder, _lock: lock })
    }

    #[cfg(test)]
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// An error of the open database. Of damage the next who opens it must know: opening does not look at rows.
    fn failed(&self, error: rocksdb::Error) -> StoreError {
        if error.kind() == ErrorKind::Corruption
            && let Err(error) = File::create(self.folder.join(DAMAGED))
        {
            warn!(folder = %self.folder.display(), %error, "cannot mark the database as damaged");
        }
        engine(error)
    }

    fn cf(&self, name: &str) -> Result<std::sync::Arc<BoundColumnFamily<'_>>, StoreError> {
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

    /// Visits rows in the order of keys.
    pub(crate) fn scan(
        &self,
        store: &str,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit, StoreError>,
    ) -> Result<(), StoreError> {
        let cf = self.cf(&family(store))?;
        let mut options = ReadOptions::default();
        if let Some(to) = to {
            options.set_iterate_upper_bound(to);
        }
        let mut rows = self.db.raw_iterator_cf_opt(&cf, options);
        match from {
            Some(from) => rows.seek(from),
            None => rows.seek_to_first(),
        }
        while let Some((key, value)) = rows.item() {
            if visit(key, value)? == Visit::Stop {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|e| self.failed(e))
    }

    /// The offsets row of a store.
    pub(crate) fn offsets_row(&self, store: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(&self.cf(OFFSETS)?, store).map_err(|e| self.failed(e))
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
        let name = family(store);
        let is_empty = {
            let cf = self.cf(&name)?;
            let mut rows = self.db.raw_iterator_cf(&cf);
            rows.seek_to_first();
            // A damaged file has no valid first row either, and must go.
            !rows.valid() && rows.status().is_ok()
        };
        if is_empty {
            return Ok(());
        }
        self.db.drop_cf(&name).map_err(|e| self.failed(e))?;
        self.db.create_cf(&name, &family_options(&self.memory)).map_err(|e| self.failed(e))
    }

    /// A batch of writes.
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch { disk: self, batch: WriteBatch::default() }
    }

    /// Writes the committed rows that a cache has and the disk has not, in the order of keys.
    pub(crate) fn write_cache(&self, store: &str, cache: &mut super::Cache) -> Result<(), StoreError> {
        const BATCH_BYTES: usize = 4 << 20;
        let cf = self.cf(&family(store))?;
        let mut batch = WriteBatch::default();
        let mut written = Ok(());
        cache.visit_unflushed(|(key, value)| {
            match value {
                Some(value) => batch.put_cf(&cf, key, value),
                None => batch.delete_cf(&cf, key),
            }
            if batch.size_in_bytes() >= BATCH_BYTES && written.is_ok() {
                written = Batch { disk: self, batch: std::mem::take(&mut batch) }.write();
            }
        });
        written?;
        Batch { disk: self, batch }.write()?;
        cache.flushed();
        Ok(())
    }

    /// Makes what was written durable; without `wait` it is begun.
    pub(crate) fn flush(&self, wait: bool) -> Result<(), StoreError> {
        let mut options = FlushOptions::default();
        options.set_wait(wait);
        // Every column family must be named: a flush asked for by hand is atomic over those only, and an offsets
        // row on disk before its rows would lose them.
        let mut families = vec![self.cf(OFFSETS)?];
        for store in &self.stores {
            families.push(self.cf(&family(store))?);
        }
        self.db.flush_cfs_opt(&families.iter().collect::<Vec<_>>(), &options).map_err(|e| self.failed(e))
    }

    /// Adds rows, ascending and unique, as one file below the memtable: the cheapest way for many.
    pub(crate) fn ingest<'a>(
        &self,
        store: &str,
        number: u32,
        rows: impl Iterator<Item = super::cache::Row<'a>>,
    ) -> Result<(), StoreError> {
        let path = self.folder.join(format!("restore-{store}-{number}.sst"));
        let options = family_options(&self.memory);
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
}

/// Rows that reach the disk together.
pub(crate) struct Batch<'a> {
    disk: &'a TaskDisk,
    batch: WriteBatch,
}

impl Batch<'_> {
    /// Adds rows of a store.
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
        }
        Ok(())
    }

    /// Sets a store's offsets row.
    pub(crate) fn offsets_row(&mut self, store: &str, row: &[u8]) -> Result<(), StoreError> {
        let cf = self.disk.cf(OFFSETS)?;
        self.batch.put_cf(&cf, store, row);
        Ok(())
    }

    /// Writes it to memory; [`TaskDisk::flush`] makes it durable.
    pub(crate) fn write(self) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.disk.db.write_opt(self.batch, &options).map_err(|e| self.disk.failed(e))
    }
}

fn open_database(
    folder: &Path,
    stores: &[&str],
    memory: &DiskMemory,
) -> Result<DBWithThreadMode<MultiThreaded>, rocksdb::Error> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_write_buffer_manager(&memory.write_buffers);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    let mut names: BTreeMap<String, bool> =
        BTreeMap::from([("default".to_owned(), true), (OFFSETS.to_owned(), true)]);
    names.extend(stores.iter().map(|store| (family(store), true)));
    // All that exist must be opened, also those of stores that the job no longer has.
    if folder.join("CURRENT").exists() {
        for name in DBWithThreadMode::<MultiThreaded>::list_cf(&options, folder)? {
            names.entry(name).or_insert(false);
        }
    }
    let families = names.keys().map(|name| ColumnFamilyDescriptor::new(name, family_options(memory)));
    let db = DBWithThreadMode::open_cf_descriptors(&options, folder, families)?;
    for (name, _) in names.iter().filter(|(_, wanted)| !**wanted) {
        info!(family = %name, folder = %folder.display(), "removing the rows of a store that the job no longer has");
        db.drop_cf(name)?;
    }
    Ok(db)
}

fn family_options(memory: &DiskMemory) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&memory.block_cache);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size((memory.write_buffer_bytes / 2).clamp(1 << 20, 64 << 20));
    options.set_max_write_buffer_number(4);
    options
}

/// Locks a folder, made if it is missing; none if another process has held it all of `wait`.
fn lock(folder: &Path, wait: Duration) -> Result<Option<File>, StoreError> {
    let start = Instant::now();
    loop {
        fs::create_dir_all(folder).map_err(|e| io("cannot make", folder, &e))?;
        let file = File::open(folder).map_err(|e| io("cannot open", folder, &e))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // It may have been removed (a purge) between the opening and the locking.
            let mine = file.metadata().map_err(|e| io("cannot look at", folder, &e))?.ino();
            if fs::metadata(folder).is_ok_and(|there| there.ino() == mine) {
                return Ok(Some(file));
            }
            continue;
        }
        if start.elapsed() >= wait {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes folders that were restored beside a held one, once nobody holds them.
fn remove_spares(state: &Path, entry: &str) {
    let Ok(folders) = fs::read_dir(state) else { return };
    for spare in folders.flatten().map(|f| f.path()) {
        let name = spare.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let is_spare = name.strip_prefix(entry).is_some_and(|rest| rest.starts_with('@'));
        if !is_spare {
            continue;
        }
        match lock(&spare, Duration::ZERO) {
            Ok(Some(_lock)) => {
                if let Err(error) = fs::remove_dir_all(&spare) {
                    warn!(folder = %spare.display(), %error, "cannot remove old state");
                }
            }
            Ok(None) => {}
            Err(error) => warn!(folder = %spare.display(), %error, "cannot look at old state"),
        }
    }
}

/// Empties a folder that stays locked.
fn empty(folder: &Path) -> Result<(), StoreError> {
    let failed = |e: std::io::Error| io("cannot empty", folder, &e);
    for file in fs::read_dir(folder).map_err(failed)? {
        let path = file.map_err(failed)?.path();
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(failed)?;
    }
    Ok(())
}
