//! Timers on a task's disk: whatever is committed, flushed, lost in a crash or restored elsewhere, they go off in the
//! order of their times, and only the next of them are in memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use task_api::metrics::MetricsRegistry;
use task_api::{TaskClock, Timers};
use types::{StoreSpec, TIMERS_STORE};

use super::cache::Limits;
use super::disk::{DiskMemory, TIMERS_INDEX, TaskDisk};
use super::fill::Fill;
use super::link::Link;
use super::{Below, Store};

type Log = Vec<(Vec<u8>, Option<Vec<u8>>)>;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

fn open(state: &Path, memory: &DiskMemory, with_index: bool) -> Arc<TaskDisk> {
    let spec = StoreSpec::with_changelog(None, "kafka");
    let stores = [(TIMERS_STORE, &spec), (TIMERS_INDEX, &spec)];
    let stores = if with_index { &stores[..] } else { &stores[..1] };
    Arc::new(TaskDisk::open(state, "Partition-0", "1-1", stores, memory).expect("opens"))
}

/// A task's timers with what is around them.
struct Rig {
    disk: Arc<TaskDisk>,
    rows: Rc<RefCell<Store>>,
    index: Rc<RefCell<Store>>,
    timers: Timers,
}

impl Rig {
    fn on(disk: Arc<TaskDisk>, bytes: usize) -> Rig {
        let store = |name: &str| {
            let spec = StoreSpec::with_changelog(None, "kafka");
            let (below, link) = (Below::Disk(Arc::clone(&disk)), Rc::new(Link::new(Arc::default(), 1 << 20)));
            let metrics = MetricsRegistry::default().with_labels(&[("store", name)]);
            let limits = Limits { rows: 500_000, bytes };
            let store = Store::new(name, &spec, limits, below, link, TaskClock::default(), &metrics);
            Rc::new(RefCell::new(store))
        };
        let (rows, index) = (store(TIMERS_STORE), store(TIMERS_INDEX));
        let timers = Timers::load(rows.clone(), index.clone()).expect("loads");
        Rig { disk, rows, index, timers }
    }

    fn open(state: &Path) -> Rig {
        Rig::on(open(state, &DiskMemory::new(1 << 20, 1 << 20), true), 1 << 20)
    }

    fn commit(&self, log: &mut Log) {
        let taken = self.rows.borrow_mut().cache().visit_dirty(|(key, value)| {
            log.push((key.to_vec(), value.map(<[u8]>::to_vec)));
            Ok::<(), ()>(())
        });
        taken.expect("no visit fails");
        self.rows.borrow_mut().committed();
        self.index.borrow_mut().committed();
    }

    fn is_full(&self) -> bool {
        self.rows.borrow_mut().cache().is_full() || self.index.borrow_mut().cache().is_full()
    }

    /// A commit whose changelog nobody keeps, and what it makes room with.
    fn settle(&self) {
        for store in [&self.rows, &self.index] {
            store.borrow_mut().committed();
            store.borrow_mut().write_below().expect("writes");
        }
    }

    fn flush(&self) {
        self.rows.borrow_mut().write_below().expect("writes");
        self.index.borrow_mut().write_below().expect("writes");
        self.disk.flush(true).expect("flushes");
    }

    /// Takes what is due, as a model says.
    fn take_due(&self, model: &mut BTreeMap<Vec<u8>, u64>, now: u64) -> Result<(), TestCaseError> {
        let mut due: Vec<_> = model.iter().filter(|(_, due)| **due <= now).collect();
        due.sort_by_key(|(key, due)| (**due, (*key).clone()));
        let due: Vec<_> = due.into_iter().map(|(key, due)| (key.clone(), *due)).collect();
        prop_assert!(self.timers.next_due() <= due.first().map(|(_, due)| *due).or(self.timers.next_due()));
        let take = || self.timers.take_due(now).expect("takes");
        prop_assert_eq!(std::iter::from_fn(take).collect::<Vec<_>>(), due);
        model.retain(|_, due| *due > now);
        Ok(())
    }
}

fn fill(disk: &TaskDisk, rows: &[(Vec<u8>, Option<Vec<u8>>)], is_empty: bool) {
    let mut fill = Fill::new(disk, TIMERS_STORE, is_empty, None, 1_000);
    for (key, value) in rows {
        fill.take((key, value.as_deref())).expect("takes");
    }
    fill.finish(b"here").expect("finishes");
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, u64),
    Cancel(u8),
    Due(u64),
    Commit,
    Flush,
    Crash,
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<u8>(), 0..50u64).prop_map(|(key, due)| Step::Set(key, due)),
        2 => any::<u8>().prop_map(Step::Cancel),
        1 => (0..50u64).prop_map(Step::Due),
        2 => Just(Step::Commit),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
        1 => Just(Step::Move),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn timers_are_as_the_last_commit_left_them_after_crashes_and_moves(
        steps in proptest::collection::vec(step(), 1..200)
    ) {
        let mut state = folder();
        let mut rig = Some(Rig::open(state.path()));
        let (mut log, mut flushed) = (Log::new(), 0);
        let (mut model, mut committed) = (BTreeMap::new(), BTreeMap::new());
        for step in steps {
            let at = rig.take().expect("there is one");
            rig = Some(match step {
                Step::Set(key, due) => {
                    at.timers.set(&[key], due).expect("sets");
                    model.insert(vec![key], due);
                    at
                }
                Step::Cancel(key) => {
                    let was = at.timers.cancel(&[key]).expect("cancels");
                    prop_assert_eq!(was, model.remove([key].as_slice()));
                    at
                }
                Step::Due(now) => {
                    at.take_due(&mut model, now)?;
                    at
                }
                Step::Commit | Step::Flush => {
                    at.commit(&mut log);
                    committed.clone_from(&model);
                    if matches!(step, Step::Flush) {
                        at.flush();
                        flushed = log.len();
                    }
                    at
                }
                Step::Crash | Step::Move => {
                    drop(at);
                    let moves = matches!(step, Step::Move);
                    if moves {
                        (state, flushed) = (folder(), 0);
                    }
                    let disk = open(state.path(), &DiskMemory::new(1 << 20, 1 << 20), true);
                    fill(&disk, &log[flushed..], moves);
                    flushed = log.len();
                    model.clone_from(&committed);
                    Rig::on(disk, 1 << 20)
                }
            });
        }
        rig.expect("there is one").take_due(&mut model, u64::MAX)?;
    }
}

#[test]
fn rows_that_were_written_without_an_index_get_one_when_they_are_opened() {
    let state = folder();
    let memory = DiskMemory::new(1 << 20, 1 << 20);
    let rows: Log =
        (0..100u64).map(|n| (n.to_be_bytes().to_vec(), Some((100 - n).to_be_bytes().to_vec()))).collect();
    fill(&open(state.path(), &memory, false), &rows, true);
    for round in 0..2 {
        let rig = Rig::open(state.path());
        assert_eq!(
            rig.timers.due(3, 9).into_iter().map(|(_, due)| due).collect::<Vec<_>>(),
            [1, 2, 3],
            "{round}"
        );
        drop(rig);
        // The version before forgets the index, and that there was one.
        drop(open(state.path(), &memory, false));
    }
}

#[test]
fn a_store_that_is_cleared_has_no_timers_and_no_index() {
    let state = folder();
    let rig = Rig::open(state.path());
    rig.timers.set(b"a", 1).expect("sets");
    rig.commit(&mut Log::new());
    rig.flush();
    rig.disk.clear(TIMERS_STORE).expect("clears");
    assert!(rig.disk.is_empty(TIMERS_INDEX).expect("looks"));
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("it has one");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

/// As many as `SAMZA_TIMERS` says are set, restored on another node, and go off there.
#[test]
#[ignore = "a measurement; make soak runs it"]
fn ten_million_timers_fit_a_small_container() {
    let count: u64 = std::env::var("SAMZA_TIMERS").map_or(10_000_000, |n| n.parse().expect("a number"));
    let memory = DiskMemory::new(16 << 20, 16 << 20);
    let spread = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let key = |n: u64| format!("session-{:016x}", spread(n)).into_bytes();
    let before = resident_mib();
    let mut most = 0;
    let mut watch = |what: &str, n: u64, took: std::time::Duration| {
        let now = resident_mib().saturating_sub(before);
        most = most.max(now);
        println!(
            "{what}: {n} timers, {} ns each, {now} MiB more than before",
            took.as_nanos() / u128::from(n.max(1))
        );
        assert!(most <= 192, "{what}: {most} MiB");
    };
    let state = tempfile::tempdir().expect("a folder");
    let start = std::time::Instant::now();
    let rig = Rig::on(open(state.path(), &memory, true), 8 << 20);
    for n in 0..count {
        rig.timers.set(&key(n), spread(n) % count).expect("sets");
        if rig.is_full() {
            rig.settle();
        }
    }
    watch("set", count, start.elapsed());
    drop(rig);
    let state = tempfile::tempdir().expect("a folder");
    let start = std::time::Instant::now();
    let disk = open(state.path(), &memory, true);
    let mut fill = Fill::new(&disk, TIMERS_STORE, true, None, 16 << 20);
    for n in 0..count {
        fill.take((&key(n), Some(&(spread(n) % count).to_be_bytes()))).expect("takes");
    }
    fill.finish(b"here").expect("finishes");
    watch("restored", count, start.elapsed());
    let start = std::time::Instant::now();
    let rig = Rig::on(disk, 8 << 20);
    assert!(rig.timers.next_due().is_some());
    watch("loaded", 1, start.elapsed());
    let start = std::time::Instant::now();
    let (mut last, mut went_off) = (0, 0);
    while let Some((_, due)) = rig.timers.take_due(count / 10).expect("takes") {
        assert!(due >= last);
        (last, went_off) = (due, went_off + 1);
        if rig.is_full() {
            rig.settle();
        }
    }
    watch("went off", went_off, start.elapsed());
    assert!(went_off > count / 11, "{went_off}");
}
