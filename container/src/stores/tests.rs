//! A store is a map: whatever is cached, evicted, committed, flushed, restored, and whatever it is made of.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use task_api::TaskClock;
use task_api::metrics::MetricsRegistry;
use task_api::store::{RawStore, StoreError};
use types::{Compression, OnLargeValue, StoreKind, StoreSpec};

use super::cache::Limits;
use super::disk::{DiskMemory, TaskDisk};
use super::fill::Fill;
use super::link::Link;
use super::memory::MemoryRows;
use super::{Below, Store, ttl};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;
type Row = (Vec<u8>, Vec<u8>);

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

fn spec() -> StoreSpec {
    StoreSpec::with_changelog(None, "kafka")
}

fn open_as(state: &Path, spec: &StoreSpec) -> TaskDisk {
    let memory = DiskMemory::new(1 << 20, 1 << 20);
    TaskDisk::open(state, "Partition-0", "1-1", &[("rows", spec)], &memory).expect("opens")
}

fn open(state: &Path) -> TaskDisk {
    open_as(state, &spec())
}

fn on_disk(disk: &TaskDisk) -> Model {
    let mut found = disk.iterate("rows", None, None).expect("iterates");
    let mut rows = Model::new();
    while let Some((key, value)) = found.item() {
        rows.insert(key.to_vec(), value.to_vec());
        found.next();
    }
    found.status().expect("iterates");
    rows
}

/// A store with what is around it.
struct Rig {
    store: Store,
    disk: Option<Arc<TaskDisk>>,
    link: Rc<Link>,
    clock: TaskClock,
    registry: MetricsRegistry,
}

impl Rig {
    fn new(spec: &StoreSpec, limits: Limits, state: &Path, restored: MemoryRows) -> Rig {
        let disk = (spec.kind == StoreKind::RocksDb).then(|| Arc::new(open_as(state, spec)));
        let below = disk.clone().map_or(Below::Memory(restored), Below::Disk);
        let link = Rc::new(Link::new(Arc::default(), 1 << 20));
        let (clock, registry) = (TaskClock::default(), MetricsRegistry::default());
        let metrics = registry.with_labels(&[("store", "rows")]);
        let store = Store::new("rows", spec, limits, below, Rc::clone(&link), clock.clone(), &metrics);
        Rig { store, disk, link, clock, registry }
    }

    fn on_disk(spec: &StoreSpec, state: &Path) -> Rig {
        Rig::new(spec, Limits { rows: 1_000, bytes: 1 << 20 }, state, MemoryRows::default())
    }

    fn rows(&mut self, from: Option<&[u8]>, to: Option<&[u8]>) -> Vec<Row> {
        let mut found = self.store.rows(from, to).expect("a snapshot");
        let mut rows = Vec::new();
        while let Some((key, value)) = found.next().expect("a row") {
            rows.push((key.to_vec(), value.to_vec()));
        }
        rows
    }

    /// The dirty rows, as the changelog would get them.
    fn drain(&mut self, log: &mut Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        let mut take = |(key, value): super::cache::Row<'_>| {
            log.push((key.to_vec(), value.map(<[u8]>::to_vec)));
            Ok::<_, StoreError>(())
        };
        self.store.cache().visit_dirty(&mut take).expect("drains");
        self.store.committed();
        self.link.pulse.set_full(false);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Get(u8),
    Put(u8, u8),
    Delete(u8),
    Range(u8, u8),
    /// A snapshot that is read after the writes that follow.
    Snapshot(Vec<(u8, Option<u8>)>),
    Wait(u8),
    Commit,
    Flush,
    Compact,
    /// Everything that is not committed is lost; RocksDB keeps what it was given, the log all.
    Crash,
}

fn key(n: u8) -> Vec<u8> {
    // Some keys are prefixes of others, some share their first eight bytes.
    match n % 3 {
        0 => vec![n],
        1 => vec![n - 1, 0],
        _ => [b"eight___".as_slice(), &[n]].concat(),
    }
}

fn value(v: u8) -> Vec<u8> {
    vec![v; v as usize]
}

fn op() -> impl Strategy<Value = Op> {
    let writes = proptest::collection::vec((any::<u8>(), proptest::option::of(any::<u8>())), 0..20);
    prop_oneof![
        8 => any::<u8>().prop_map(Op::Get),
        12 => any::<(u8, u8)>().prop_map(|(k, v)| Op::Put(k, v)),
        4 => any::<u8>().prop_map(Op::Delete),
        2 => any::<(u8, u8)>().prop_map(|(a, b)| Op::Range(a, b)),
        1 => writes.prop_map(Op::Snapshot),
        2 => any::<u8>().prop_map(Op::Wait),
        2 => Just(Op::Commit),
        3 => Just(Op::Flush),
        1 => Just(Op::Compact),
        1 => Just(Op::Crash),
    ]
}

/// What a store should be: values with the time of their write.
#[derive(Default, Clone)]
struct Expected(BTreeMap<Vec<u8>, (Vec<u8>, u64)>);

impl Expected {
    fn live(&self, ttl_ms: Option<u64>, now: u64) -> Model {
        let live = |written: u64| ttl_ms.is_none_or(|ttl_ms| written + ttl_ms > now);
        let rows = self.0.iter().filter(|(_, (_, written))| live(*written));
        rows.map(|(key, (value, _))| (key.clone(), value.clone())).collect()
    }
}

/// One run of a store against its model.
struct Run {
    spec: StoreSpec,
    limits: Limits,
    state: tempfile::TempDir,
    rig: Rig,
    log: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    model: Expected,
    committed: Expected,
    /// Rows of the log that are on disk.
    flushed: usize,
}

impl Run {
    fn new(spec: StoreSpec, limits: Limits) -> Run {
        let state = folder();
        let rig = Rig::new(&spec, limits, state.path(), MemoryRows::default());
        let (log, model, committed) = (Vec::new(), Expected::default(), Expected::default());
        Run { spec, limits, state, rig, log, model, committed, flushed: 0 }
    }
    fn now(&self) -> u64 {
        self.rig.clock.now_unix_ms()
    }
    fn live(&self) -> Model {
        self.model.live(self.spec.ttl_ms, self.now())
    }
    fn write(&mut self, k: u8, v: Option<u8>) {
        match v {
            Some(v) => {
                self.rig.store.put(&key(k), &value(v)).expect("writes");
                self.model.0.insert(key(k), (value(v), self.now()));
            }
            None => {
                self.rig.store.delete(&key(k)).expect("deletes");
                self.model.0.remove(&key(k));
            }
        }
    }
    fn commit(&mut self) {
        self.rig.drain(&mut self.log);
        self.committed = self.model.clone();
    }
    fn flush(&mut self) {
        self.commit();
        self.rig.store.write_below().expect("writes");
        self.flushed = self.log.len();
    }
    /// Starts again on what was flushed, and what the log has after it.
    fn crash(&mut self) {
        let (now, ttl) = (self.now(), self.spec.ttl_ms.map(|ttl_ms| (ttl_ms, self.now())));
        let mut memory = MemoryRows::default();
        if let Some(disk) = self.rig.disk.take() {
            disk.flush(true).expect("flushes");
        }
        let none = StoreSpec { kind: StoreKind::Memory, ..spec() };
        self.rig = Rig::new(&none, self.limits, Path::new(""), MemoryRows::default());
        if self.spec.kind == StoreKind::Memory {
            for (key, value) in &self.log {
                memory.take((key, value.as_deref()), ttl);
            }
        } else {
            let disk = open_as(self.state.path(), &self.spec);
            let mut fill = Fill::new(&disk, "rows", self.flushed == 0, ttl, 3_000);
            for (key, value) in &self.log[self.flushed..] {
                fill.take((key, value.as_deref())).expect("takes");
            }
            fill.finish(b"here").expect("finishes");
            self.flushed = self.log.len();
        }
        self.rig = Rig::new(&self.spec, self.limits, self.state.path(), memory);
        self.rig.clock.set(now);
        self.model = self.committed.clone();
    }

    fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Get(k) => {
                let found = self.rig.store.get(&key(k)).expect("reads").map(<[u8]>::to_vec);
                prop_assert_eq!(&found, &self.live().get(&key(k)).cloned());
            }
            Op::Put(k, v) => self.write(k, Some(v)),
            Op::Delete(k) => self.write(k, None),
            Op::Range(a, b) => {
                let (from, to) = (key(a), key(b));
                let live = self.live();
                let expected: Vec<Row> =
                    live.into_iter().filter(|(key, _)| (&from..&to).contains(&key)).collect();
                prop_assert_eq!(self.rig.rows(Some(&from), Some(&to)), expected);
            }
            Op::Snapshot(writes) => {
                let before: Vec<Row> = self.live().into_iter().collect();
                let mut rows = self.rig.store.rows(None, None).expect("a snapshot");
                for (k, v) in writes {
                    self.write(k, v);
                }
                self.flush();
                let mut found = Vec::new();
                while let Some((key, value)) = rows.next().expect("a row") {
                    found.push((key.to_vec(), value.to_vec()));
                }
                prop_assert_eq!(found, before, "a snapshot stays as it was");
            }
            Op::Wait(ms) => self.rig.clock.set(self.now() + u64::from(ms)),
            Op::Commit => self.commit(),
            Op::Flush => self.flush(),
            Op::Compact => {
                if let Some(disk) = &self.rig.disk {
                    disk.compact("rows");
                }
            }
            Op::Crash => self.crash(),
        }
        if self.rig.store.cache().dirty_rows() >= self.limits.rows {
            prop_assert!(self.rig.link.pulse.is_full(), "a full cache says so");
        }
        Ok(())
    }
}

fn kind() -> impl Strategy<Value = StoreSpec> {
    let ttl = proptest::option::of(Just(2_000u64));
    (any::<bool>(), ttl, any::<bool>()).prop_map(|(memory, ttl_ms, zstd)| StoreSpec {
        kind: if memory { StoreKind::Memory } else { StoreKind::RocksDb },
        ttl_ms,
        compression: if zstd { Compression::Zstd } else { Compression::None },
        ..spec()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_store_is_a_map_through_commits_flushes_crashes_and_time(
        spec in kind(), ops in proptest::collection::vec(op(), 1..300),
        rows in 1usize..40, bytes in 200usize..20_000,
    ) {
        let mut run = Run::new(spec, Limits { rows, bytes });
        for op in ops {
            run.apply(op)?;
        }
        run.commit();
        run.crash();
        let expected: Vec<Row> = run.live().into_iter().collect();
        prop_assert_eq!(run.rig.rows(None, None), expected);
    }

    #[test]
    fn only_committed_rows_reach_the_disk(
        writes in proptest::collection::vec((any::<u8>(), proptest::option::of(any::<u8>()), 0u8..10), 1..200),
        rows in 1usize..20,
    ) {
        let mut run = Run::new(spec(), Limits { rows, bytes: 2_000 });
        let mut flushed = Model::new();
        for (k, v, next) in writes {
            run.write(k, v);
            if next == 0 {
                run.flush();
                flushed = run.live();
            }
            let disk = run.rig.disk.as_ref().expect("a store on disk");
            prop_assert_eq!(&on_disk(disk), &flushed);
        }
    }

    #[test]
    fn a_restore_equals_the_fold_of_the_changelog(
        log in proptest::collection::vec((0u16..100, proptest::option::weighted(0.8, any::<u8>())), 0..600),
        cut in 0usize..600, chunk in 1usize..6_000,
    ) {
        let state = folder();
        let disk = open(state.path());
        let mut model = Model::new();
        let cut = cut.min(log.len());
        for (part, is_empty, number) in [(&log[..cut], true, 1), (&log[cut..], false, 2)] {
            let mut fill = Fill::new(&disk, "rows", is_empty, None, chunk);
            for (k, v) in part {
                // An empty key and empty values are among them.
                let key = k.to_be_bytes()[usize::from(*k == 0) * 2..].to_vec();
                let value = v.map(|v| vec![v; usize::from(v % 10)]);
                fill.take((&key, value.as_deref())).expect("takes");
                match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
            }
            prop_assert_eq!(fill.finish(&[number]).expect("finishes"), part.len() as u64);
            prop_assert_eq!(&on_disk(&disk), &model);
        }
        disk.compact("rows");
        drop(disk);
        let disk = open(state.path());
        prop_assert_eq!(&on_disk(&disk), &model);
        prop_assert_eq!(disk.offsets_row("rows").expect("reads"), Some(vec![2]));
        disk.clear("rows").expect("clears");
        drop(disk);
        let disk = open(state.path());
        prop_assert_eq!((on_disk(&disk), disk.offsets_row("rows").expect("reads")), (Model::new(), None));
    }
}

/// A changelog of 30 % overwrites and 10 % tombstones, from a fixed seed.
pub(super) fn log_with_overwrites(keys: u64) -> impl Iterator<Item = ([u8; 8], Option<[u8; 14]>)> {
    const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut at = SCATTER;
    let mut random = move || {
        at ^= at << 13;
        at ^= at >> 7;
        at ^= at << 17;
        at
    };
    let mut next = 0;
    std::iter::from_fn(move || {
        if next == keys {
            return None;
        }
        let dice = if next == 0 { 99 } else { random() % 100 };
        let key = if dice < 40 { random() % next } else { next };
        next += u64::from(dice >= 40);
        Some((key.wrapping_mul(SCATTER).to_be_bytes(), (dice >= 10).then_some([dice as u8; 14])))
    })
}

#[test]
fn a_large_restore_in_overlapping_chunks_equals_the_fold() {
    let state = folder();
    let disk = open(state.path());
    let mut model = Model::new();
    let mut fill = Fill::new(&disk, "rows", true, None, 256 << 10);
    for (key, value) in log_with_overwrites(40_000) {
        fill.take((&key, value.as_ref().map(<[u8; 14]>::as_slice))).expect("takes");
        match value {
            Some(value) => model.insert(key.to_vec(), value.to_vec()),
            None => model.remove(key.as_slice()),
        };
    }
    fill.finish(b"here").expect("finishes");
    assert!(on_disk(&disk) == model, "the disk holds the fold");
    disk.compact("rows");
    assert!(on_disk(&disk) == model, "and still does when its files are merged");
}

#[test]
fn a_snapshot_copies_what_only_the_cache_has_and_nothing_of_the_disk() {
    let state = folder();
    let mut rig = Rig::on_disk(&spec(), state.path());
    for n in 0..1_000u32 {
        rig.store.put(&n.to_be_bytes(), &[7; 100]).expect("writes");
    }
    rig.store.committed();
    rig.store.write_below().expect("flushes");
    rig.store.put(&5u32.to_be_bytes(), b"new").expect("writes");
    let copied = super::Copied::of(rig.store.cache().range_not_on_disk(None, None));
    assert_eq!(copied.bytes(), 4 + 3, "one row of the cache");
    assert_eq!(rig.rows(None, None).len(), 1_000);
    assert_eq!(rig.rows(Some(&5u32.to_be_bytes()), Some(&6u32.to_be_bytes()))[0].1, b"new");
}

#[test]
fn rows_that_are_over_are_not_seen_and_leave_the_disk_and_the_memory() {
    for kind in [StoreKind::RocksDb, StoreKind::Memory] {
        let state = folder();
        let mut rig = Rig::on_disk(&StoreSpec { ttl_ms: Some(100), kind, ..spec() }, state.path());
        rig.clock.set(1_000);
        rig.store.put(b"a", b"1").expect("writes");
        rig.clock.set(1_050);
        rig.store.put(b"b", b"2").expect("writes");
        rig.store.committed();
        rig.store.write_below().expect("flushes");
        rig.clock.set(1_100);
        assert_eq!(rig.store.get(b"a").expect("reads"), None);
        assert_eq!(rig.store.get(b"b").expect("reads"), Some(b"2".as_slice()));
        assert_eq!(rig.rows(None, None), [(b"b".to_vec(), b"2".to_vec())]);
        rig.store.write_below().expect("flushes");
        match &rig.store.below {
            Below::Disk(disk) => {
                disk.compact("rows");
                assert_eq!(on_disk(disk).keys().collect::<Vec<_>>(), [b"b"], "compacted away");
            }
            Below::Memory(rows) => assert_eq!(rows.len(), 1, "swept"),
        }
    }
}

#[test]
fn a_value_without_the_time_of_its_write_is_an_error_not_a_wrong_value() {
    assert!(ttl::live(b"short", 10, 0).is_err());
}

#[test]
fn a_row_that_is_too_large_fails_or_is_dropped_and_counted() {
    let state = folder();
    let small = StoreSpec { max_value_bytes: 10, ..spec() };
    let mut rig = Rig::on_disk(&small, state.path());
    rig.store.put(b"12345", b"12345").expect("fits");
    let error = rig.store.put(b"12345", b"123456").expect_err("too large");
    assert!(matches!(error, StoreError::TooLarge { bytes: 11, limit: 10, .. }), "{error}");
    rig.store.delete(b"a key of a time when max-value was larger").expect("can be sent");
    let no_key = vec![0; 2_000_000];
    let error = rig.store.delete(&no_key).expect_err("no commit could send it");
    assert!(matches!(error, StoreError::TooLarge { bytes: 2_000_000, .. }), "{error}");
    drop(rig);
    let mut rig = Rig::on_disk(&StoreSpec { on_large_value: OnLargeValue::Drop, ..small }, state.path());
    rig.store.put(b"key", b"value").expect("fits");
    rig.store.put(b"key", b"a larger value").expect("is dropped");
    assert_eq!(rig.store.get(b"key").expect("reads"), Some(b"value".as_slice()), "as it was");
    let text = rig.registry.render();
    assert!(text.contains("samza_store_large_values_dropped_total{store=\"rows\"} 1"), "{text}");
}

#[test]
fn metrics_are_written_at_commits_and_flushes() {
    let state = folder();
    let mut rig = Rig::on_disk(&spec(), state.path());
    rig.store.put(b"key", b"value").expect("writes");
    rig.store.get(b"other").expect("reads");
    let line = |rig: &Rig, line: &str| assert!(rig.registry.render().contains(line), "{line}");
    line(&rig, "samza_store_cache_rows{store=\"rows\"} 0");
    rig.store.committed();
    line(&rig, "samza_store_cache_rows{store=\"rows\"} 2");
    line(&rig, "samza_store_unflushed_rows{store=\"rows\"} 1");
    line(&rig, "samza_store_disk_reads_total{store=\"rows\"} 1");
    line(&rig, "samza_store_rows_committed_total{store=\"rows\"} 1");
    rig.store.write_below().expect("flushes");
    line(&rig, "samza_store_unflushed_rows{store=\"rows\"} 0");
    line(&rig, "samza_store_rows{store=\"rows\"} 1");
}

#[test]
fn a_folder_that_another_holds_is_left_alone_and_its_spare_is_removed_later() {
    let state = folder();
    let first = open(state.path());
    let spare = open(state.path());
    assert_eq!(first.folder(), state.path().join("Partition-0"));
    assert_eq!(spare.folder(), state.path().join("Partition-0@1-1"));
    drop((first, spare));
    let again = open(state.path());
    assert_eq!(again.folder(), state.path().join("Partition-0"));
    assert!(!state.path().join("Partition-0@1-1").exists());
}

/// A database with a row and its offsets row, on disk.
fn filled(state: &Path, spec: &StoreSpec) {
    let disk = open_as(state, spec);
    let mut fill = Fill::new(&disk, "rows", true, None, 1 << 20);
    for n in 0..100u32 {
        fill.take((&n.to_be_bytes(), Some(b"value"))).expect("takes");
    }
    fill.finish(b"here").expect("finishes");
}

#[test]
fn a_database_that_does_not_open_is_set_aside_once_and_made_anew() {
    let state = folder();
    let aside = state.path().join("Partition-0@corrupt");
    filled(state.path(), &spec());
    assert!(!open(state.path()).was_set_aside());
    std::fs::write(state.path().join("Partition-0/CURRENT"), "nonsense").expect("writable");
    let disk = open(state.path());
    assert_eq!((on_disk(&disk), disk.was_set_aside()), (Model::new(), true));
    assert_eq!(disk.offsets_row("rows").expect("reads"), None, "it does not say that rows are there");
    assert_eq!(std::fs::read(aside.join("CURRENT")).expect("kept"), b"nonsense");
    drop(disk);
    assert!(!open(state.path()).was_set_aside());
    assert!(!aside.exists(), "removed at the next good start");
}

#[test]
fn damage_that_is_found_while_reading_is_set_aside_at_the_next_start() {
    let state = folder();
    filled(state.path(), &spec());
    let files = std::fs::read_dir(state.path().join("Partition-0")).expect("a folder").flatten();
    for file in files.filter(|f| f.file_name().to_string_lossy().ends_with(".sst")) {
        let mut bytes = std::fs::read(file.path()).expect("a file");
        bytes[..40].iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(file.path(), bytes).expect("writable");
    }
    let disk = open(state.path());
    assert!(!disk.was_set_aside(), "it opens");
    let error = disk.get("rows", &5u32.to_be_bytes(), &mut Vec::new()).expect_err("damaged");
    assert!(error.to_string().contains("orruption"), "{error}");
    drop(disk);
    let disk = open(state.path());
    assert_eq!((on_disk(&disk), disk.was_set_aside()), (Model::new(), true));
}

#[test]
fn a_store_that_left_the_disk_and_came_back_is_not_taken_for_restored() {
    let state = folder();
    filled(state.path(), &spec());
    let memory = StoreSpec { kind: StoreKind::Memory, ..spec() };
    let disk = open_as(state.path(), &memory);
    let mut batch = disk.batch();
    batch.offsets_row("rows", b"not on this disk").expect("is ignored");
    batch.write().expect("writes");
    disk.flush(true).expect("flushes");
    drop(disk);
    let disk = open(state.path());
    assert_eq!((on_disk(&disk), disk.offsets_row("rows").expect("reads")), (Model::new(), None));
}

#[test]
fn a_file_that_a_killed_restore_left_is_removed() {
    let state = folder();
    drop(open(state.path()));
    let left = state.path().join("Partition-0/restore-rows-3.sst");
    std::fs::write(&left, "half").expect("writable");
    drop(open(state.path()));
    assert!(!left.exists());
}

#[test]
fn a_hit_makes_no_new_slot_and_a_cache_of_clean_rows_stays_within_its_limits() {
    let state = folder();
    let limits = Limits { rows: 10, bytes: 1 << 20 };
    let mut rig = Rig::new(&spec(), limits, state.path(), MemoryRows::default());
    for n in 0..1_000u32 {
        assert_eq!(rig.store.get(&n.to_be_bytes()).expect("reads"), None);
    }
    assert!(rig.store.cache().rows_known() <= 21, "{}", rig.store.cache().rows_known());
    assert_eq!(rig.store.cache().dirty_rows(), 0);
}
