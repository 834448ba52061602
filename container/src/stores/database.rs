//! Where a task's database is and how it is opened: the folder and its lock, damaged state set aside, RocksDB's
//! options.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::CStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DBCompressionType,
    DBWithThreadMode, ErrorKind, FlushOptions, LogLevel, MultiThreaded, Options, WriteBufferManager,
    WriteOptions,
};
use rustix::fs::{FlockOperation, flock};
use task_api::store::StoreError;
use tracing::{info, warn};
use types::{Compression, StoreSpec};

use super::ttl;

/// The column family of offsets rows.
pub(super) const OFFSETS: &str = "offsets";
/// Among the offsets rows, the one of the whole task; no store has such a name.
pub(super) const MEMORY: &str = "@task";
/// How long a state folder that another process holds is waited for.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(2);
/// A file in the folder of a database that was found to be damaged while it was read.
const MARK: &str = "CORRUPT";
/// Of one database.
const MOST_OPEN_FILES: i32 = 256;
/// Begins the names of files that a restore writes and RocksDB takes.
pub(super) const RESTORE_FILE: &str = "restore-";

/// A database whose column families come and go.
pub(super) type Db = DBWithThreadMode<MultiThreaded>;

/// What all databases of a container share.
#[derive(Clone)]
pub(crate) struct DiskMemory {
    block_cache: Cache,
    write_buffers: WriteBufferManager,
    write_buffer_bytes: usize,
    /// Files that each database may keep open.
    open_files: i32,
    /// Databases that are open.
    pub(super) databases: Arc<AtomicUsize>,
}

impl DiskMemory {
    /// One block cache of `cache_bytes`, and memtables of `write_buffer_bytes` in all, which count in it.
    pub(crate) fn new(cache_bytes: u64, write_buffer_bytes: u64) -> DiskMemory {
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let block_cache = Cache::new_lru_cache(bytes(cache_bytes + write_buffer_bytes));
        // RocksDB's own stall is no option: a task that holds rows of a scan would wait for itself.
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            bytes(write_buffer_bytes),
            false,
            block_cache.clone(),
        );
        DiskMemory {
            block_cache,
            write_buffers,
            write_buffer_bytes: bytes(write_buffer_bytes),
            open_files: MOST_OPEN_FILES,
            databases: Arc::default(),
        }
    }

    /// Each database keeps so many tables open.
    pub(crate) fn keeping_open(self, tables: u64) -> DiskMemory {
        // RocksDB takes ten of them for other files.
        let open_files = i32::try_from(tables).unwrap_or(MOST_OPEN_FILES).saturating_add(10);
        DiskMemory { open_files, ..self }
    }

    /// Whether memtables take more than they may, and those of one database, of `own` bytes, are to blame: RocksDB flushes
    /// behind the writer, and to wait for a flush of what is small makes nothing smaller.
    pub(super) fn is_behind(&self, own: impl FnOnce() -> u64) -> bool {
        let share = self.write_buffer_bytes / self.databases.load(Ordering::Relaxed).max(1);
        self.write_buffers.get_usage() > self.write_buffer_bytes && own() >= share as u64 / 2
    }
    /// Every memtable that has rows has a block of its own, and there may be hundreds.
    fn arena_block_bytes(&self) -> usize {
        (self.write_buffer_bytes >> 10).clamp(8 << 10, 1 << 20)
    }
    /// The bytes of one write.
    pub(super) fn batch_bytes(&self) -> usize {
        (self.write_buffer_bytes / 8).clamp(64 << 10, 4 << 20)
    }
}

/// The stores of a task that are on disk, and the time for those whose rows end.
pub(super) struct Layout<'a> {
    pub(super) stores: &'a [(&'a str, &'a StoreSpec)],
    pub(super) memory: &'a DiskMemory,
    pub(super) now_unix_ms: &'a Arc<AtomicU64>,
}

pub(super) fn engine(error: rocksdb::Error) -> StoreError {
    StoreError::Engine(error.into_string())
}
pub(super) fn io(what: &str, path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Engine(format!("{what} {}: {error}", path.display()))
}
pub(super) fn family(store: &str) -> String {
    format!("store.{store}")
}

/// Whether an error says that files are damaged or gone, rather than that the disk is full or the like.
pub(super) fn is_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        ErrorKind::Corruption | ErrorKind::InvalidArgument | ErrorKind::NotFound => true,
        ErrorKind::IOError => error.as_ref().contains("No such file"),
        _ => false,
    }
}

/// Notes that the database in `folder` is damaged, for the next start.
pub(super) fn mark(folder: &Path, why: &str) {
    warn!(folder = %folder.display(), why, "local state is damaged: the next start sets it aside and restores all");
    if let Err(error) = fs::write(folder.join(MARK), why) {
        warn!(folder = %folder.display(), %error, "cannot mark damaged state");
    }
}

/// Opens the database in a locked folder. One that is marked as damaged, or does not open because it is, is set aside
/// as `<entry>@corrupt`, and an empty one is made. Returns whether that was so.
pub(super) fn open_or_set_aside(
    folder: &Path,
    aside: &Path,
    layout: &Layout<'_>,
) -> Result<(Db, bool), StoreError> {
    let why = match fs::read_to_string(folder.join(MARK)) {
        Ok(why) => why,
        Err(_) => match open(folder, layout) {
            Ok(db) => return Ok((db, false)),
            Err(error) if is_damage(&error) => error.into_string(),
            Err(error) => return Err(engine(error)),
        },
    };
    warn!(
        folder = %folder.display(), aside = %aside.display(), why,
        "local state is damaged: setting it aside, restoring all from the changelog"
    );
    set_aside(folder, aside)?;
    Ok((open(folder, layout).map_err(engine)?, true))
}

/// Moves what is in `folder`, which stays locked, to `aside`, the mark last, so that a crash on the way is made up
/// for at the next start.
fn set_aside(folder: &Path, aside: &Path) -> Result<(), StoreError> {
    let failed = |e: std::io::Error| io("cannot set aside", folder, &e);
    if !folder.join(MARK).exists() {
        fs::write(folder.join(MARK), "it does not open").map_err(failed)?;
    }
    if aside.exists() {
        fs::remove_dir_all(aside).map_err(failed)?;
    }
    fs::create_dir(aside).map_err(failed)?;
    for file in fs::read_dir(folder).map_err(failed)? {
        let file = file.map_err(failed)?;
        if file.file_name() != MARK {
            fs::rename(file.path(), aside.join(file.file_name())).map_err(failed)?;
        }
    }
    fs::rename(folder.join(MARK), aside.join(MARK)).map_err(failed)
}

fn open(folder: &Path, layout: &Layout<'_>) -> Result<Db, rocksdb::Error> {
    remove_unfinished(folder);
    let memory = layout.memory;
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_write_buffer_manager(&memory.write_buffers);
    options.set_max_background_jobs(2);
    options.set_max_open_files(memory.open_files);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    // What compactions and flushes hold counts too, per file that they read and write.
    options.set_compaction_readahead_size((memory.write_buffer_bytes / 64).clamp(32 << 10, 2 << 20));
    options
        .set_writable_file_max_buffer_size((memory.write_buffer_bytes as u64 / 32).clamp(64 << 10, 1 << 20));
    let mut names: BTreeMap<String, Option<&StoreSpec>> =
        BTreeMap::from([("default".to_owned(), None), (OFFSETS.to_owned(), None)]);
    names.extend(layout.stores.iter().map(|(store, spec)| (family(store), Some(*spec))));
    // All that exist must be opened, also those of stores that the job no longer has.
    let mut gone = Vec::new();
    if folder.join("CURRENT").exists() {
        for name in Db::list_cf(&options, folder)? {
            if let Entry::Vacant(vacant) = names.entry(name) {
                gone.push(vacant.key().clone());
                vacant.insert(None);
            }
        }
    }
    let families = names.iter().map(|(name, spec)| {
        ColumnFamilyDescriptor::new(name, family_options(memory, *spec, layout.now_unix_ms))
    });
    let db = Db::open_cf_descriptors(&options, folder, families)?;
    for name in &gone {
        info!(family = %name, folder = %folder.display(), "removing the rows of a store that is no longer on disk");
        forget_store(&db, name)?;
    }
    Ok(db)
}

/// Drops a store's rows, after its offsets row: that alone would say that the rows are there.
fn forget_store(db: &Db, family: &str) -> Result<(), rocksdb::Error> {
    if let (Some(offsets), Some(store)) = (db.cf_handle(OFFSETS), family.strip_prefix("store.")) {
        let mut without_log = WriteOptions::default();
        without_log.disable_wal(true);
        db.delete_cf_opt(&offsets, store, &without_log)?;
        db.flush_cf_opt(&offsets, &FlushOptions::default())?;
    }
    db.drop_cf(family)
}

/// The options of a store's column family, or of one of our own.
pub(super) fn family_options(
    memory: &DiskMemory,
    spec: Option<&StoreSpec>,
    now_unix_ms: &Arc<AtomicU64>,
) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&memory.block_cache);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size((memory.write_buffer_bytes / 2).clamp(1 << 20, 64 << 20));
    options.set_arena_block_size(memory.arena_block_bytes());
    options.set_max_write_buffer_number(4);
    // Whoever writes a file holds eight bytes for each of its keys until its filter is made of them: of small rows a file
    // of the usual 64 MiB has millions.
    options.set_target_file_size_base((memory.write_buffer_bytes as u64 / 2).clamp(4 << 20, 64 << 20));
    if let Some(spec) = spec {
        table.set_block_size(usize::try_from(spec.block_bytes).unwrap_or(usize::MAX).clamp(1 << 10, 1 << 20));
        options.set_compression_type(match spec.compression {
            Compression::None => DBCompressionType::None,
            Compression::Lz4 => DBCompressionType::Lz4,
            Compression::Zstd => DBCompressionType::Zstd,
        });
        if let Some(ttl_ms) = spec.ttl_ms {
            options.set_compaction_filter_factory(Expiry { ttl_ms, now_unix_ms: Arc::clone(now_unix_ms) });
            // Files that nothing else would touch are looked through too: hourly at most, monthly at least.
            options.set_periodic_compaction_seconds((ttl_ms / 1000).clamp(3600, 30 * 86_400));
        }
    }
    options.set_block_based_table_factory(&table);
    options
}

/// Makes filters that drop rows that are over. The time is the task's, as of its last flush: never later than what
/// the task sees, so no row goes that it may still read.
struct Expiry {
    ttl_ms: u64,
    now_unix_ms: Arc<AtomicU64>,
}

impl CompactionFilterFactory for Expiry {
    type Filter = ExpiryAt;
    fn create(&mut self, _context: CompactionFilterContext) -> ExpiryAt {
        ExpiryAt { ttl_ms: self.ttl_ms, now_unix_ms: self.now_unix_ms.load(Ordering::Relaxed) }
    }
    fn name(&self) -> &CStr {
        c"ttl"
    }
}

struct ExpiryAt {
    ttl_ms: u64,
    now_unix_ms: u64,
}

impl CompactionFilter for ExpiryAt {
    fn filter(&mut self, _level: u32, _key: &[u8], stored: &[u8]) -> CompactionDecision {
        if ttl::is_over(stored, self.ttl_ms, self.now_unix_ms) {
            CompactionDecision::Remove
        } else {
            CompactionDecision::Keep
        }
    }
    fn name(&self) -> &CStr {
        c"ttl"
    }
}

/// Locks a folder, made if it is missing; none if another process has held it all of `wait`.
pub(super) fn lock(folder: &Path, wait: Duration) -> Result<Option<File>, StoreError> {
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

/// Removes folders that were restored beside a held one, once nobody holds them, and damaged state that an earlier
/// start set aside.
pub(super) fn remove_spares(state: &Path, entry: &str) {
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

/// Removes files that a restore had written, and RocksDB not yet taken, when it was killed.
fn remove_unfinished(folder: &Path) {
    let Ok(files) = fs::read_dir(folder) else { return };
    let of_restore = |file: &fs::DirEntry| file.file_name().to_string_lossy().starts_with(RESTORE_FILE);
    for path in files.flatten().filter(of_restore).map(|file| file.path()) {
        if let Err(error) = fs::remove_file(&path) {
            warn!(file = %path.display(), %error, "cannot remove an unfinished file");
        }
    }
}

/// Where state is set aside, beside the folder of `entry`.
pub(super) fn aside(state: &Path, entry: &str) -> PathBuf {
    state.join(format!("{entry}@corrupt"))
}
