//! Local state is used when it is a prefix of the changelog; else the reason is told and everything is read.

use std::path::Path;
use std::sync::Arc;

use task_api::metrics::MetricsRegistry;
use task_core::record::Checkpoint;
use task_core::restore::OffsetsRow;
use types::{
    ContainerModel, Delivery, Epoch, Incarnation, JobSpec, JobTopics, RestoreStatus, StoreKind, TaskModel,
};

use super::progress::eta_ms;
use super::{Restore, RestoredTask, unix_ms};
use crate::board::Board;
use crate::claim::Start;
use crate::clock::Clock;
use crate::end::End;
use crate::fake::{Broker, FakeSystem};
use crate::stores::disk::{DiskMemory, TaskDisk};
use crate::systems::System;

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// The changelog: some keys, one overwritten, one deleted.
fn broker(job: &JobSpec) -> Broker {
    let broker = Broker::default();
    broker.topic("changelog", 1);
    broker.topic(&JobTopics::of(&job.job).checkpoint, 1);
    let rows: [(&[u8], Option<&[u8]>); 5] =
        [(b"a", Some(b"1")), (b"b", Some(b"2")), (b"c", Some(b"3")), (b"b", Some(b"4")), (b"a", None)];
    for (key, value) in rows {
        broker.append("changelog", 0, key, value);
    }
    broker
}

fn folded() -> Rows {
    vec![(b"b".to_vec(), b"4".to_vec()), (b"c".to_vec(), b"3".to_vec())]
}

fn restore(job: &JobSpec, state: &Path) -> (RestoredTask, RestoreStatus) {
    let system = FakeSystem::new(&broker(job), None, None, None);
    let (restored, status) = restore_from(job, state, &system, 5, 1 << 20);
    (restored.expect("restores"), status)
}

fn restore_from(
    job: &JobSpec,
    state: &Path,
    system: &FakeSystem,
    high: u64,
    chunk_bytes: u64,
) -> (Result<RestoredTask, End>, RestoreStatus) {
    let task = TaskModel {
        name: "Partition 0".into(),
        inputs: Vec::new(),
        changelog_partition: 0,
        added: Vec::new(),
    };
    let board = Arc::new(Board::default());
    board.begin(&ContainerModel { tasks: vec![task.clone()] }, 1);
    let memory = DiskMemory::new(1 << 20, 1 << 20);
    let (admin, clock) = (system.admin(), Clock::start());
    let start = Start { highs: vec![0, high], checkpoint: Some(Checkpoint::default()), read_to: 0 };
    let restore = Restore {
        job,
        incarnation: Incarnation { epoch: Epoch(1), seq: 1 },
        admin: &*admin,
        state: state.to_owned(),
        memory: &memory,
        chunk_bytes,
        board: &board,
        clock: &clock,
        metrics: &MetricsRegistry::default(),
    };
    let restored = restore.all(&[task], &[start]).map(|mut all| all.remove(0));
    let status = board.status().tasks.remove(0).restore.expect("it has a store");
    (restored, status)
}

fn on_disk(disk: &TaskDisk) -> Rows {
    let mut found = disk.iterate("counts", None, None).expect("iterates");
    let mut rows = Rows::new();
    while let Some((key, value)) = found.item() {
        rows.push((key.to_vec(), value.to_vec()));
        found.next();
    }
    rows
}

/// Leaves a row that no changelog has, with this offsets row.
fn leave(job: &JobSpec, state: &Path, row: &OffsetsRow) {
    let memory = DiskMemory::new(1 << 20, 1 << 20);
    let stores: Vec<_> = job.stores.iter().map(|(name, spec)| (name.as_str(), spec)).collect();
    let disk = TaskDisk::open(state, "Partition-0", "0-0", &stores, &memory).expect("opens");
    let mut batch = disk.batch();
    batch.rows("counts", [(b"local".as_slice(), Some(b"row".as_slice()))].into_iter()).expect("a store");
    batch.offsets_row("counts", &row.encode()).expect("a store");
    batch.write().expect("writes");
    disk.flush(true).expect("flushes");
}

#[test]
fn why_local_state_is_of_no_use_is_told_and_everything_is_restored() {
    let job = crate::tests::job(Delivery::ExactlyOnce, true);
    let valid = OffsetsRow {
        topic_id: "id of changelog".into(),
        offset: 2,
        flushed_unix_ms: unix_ms(),
        keeps_tombstones_ms: None,
    };
    let cases = [
        (OffsetsRow { topic_id: "another".into(), ..valid.clone() }, "the changelog topic was recreated"),
        (OffsetsRow { offset: 6, ..valid.clone() }, "the changelog ends before the local state"),
        (OffsetsRow { flushed_unix_ms: 0, ..valid.clone() }, "local state is older than"),
    ];
    for (left, why) in cases {
        let state = tempfile::tempdir().expect("a folder");
        leave(&job, state.path(), &left);
        let (restored, status) = restore(&job, state.path());
        assert!(status.reason.starts_with(&format!("counts: {why}")), "{}", status.reason);
        assert!(!status.from_local && (status.rows, status.done) == (5, 5), "{status:?}");
        assert_eq!(on_disk(restored.disk.as_ref().expect("it has a store")), folded(), "{why}");
    }
    let state = tempfile::tempdir().expect("a folder");
    leave(&job, state.path(), &valid);
    let (restored, status) = restore(&job, state.path());
    assert_eq!((status.reason.as_str(), status.from_local, status.rows), ("", true, 3));
    let found = on_disk(restored.disk.as_ref().expect("it has a store"));
    assert!(found.contains(&(b"local".to_vec(), b"row".to_vec())), "local rows are kept: {found:?}");
    drop(restored);
    std::fs::write(state.path().join("Partition-0/CURRENT"), "nonsense").expect("writable");
    let (restored, status) = restore(&job, state.path());
    assert_eq!(status.reason, "counts: local state was damaged and is set aside");
    assert_eq!(on_disk(restored.disk.as_ref().expect("it has a store")), folded());
}

#[test]
fn a_restore_that_was_cut_short_goes_on_where_it_was_and_what_is_deleted_later_is_deleted() {
    let job = crate::tests::job(Delivery::ExactlyOnce, true);
    let rows: u32 = 120;
    let broker = broker(&job);
    let mut all =
        std::collections::BTreeMap::from([(b"b".to_vec(), b"4".to_vec()), (b"c".to_vec(), b"3".to_vec())]);
    for n in 0..rows {
        let key = format!("k{:02}", n * 7 % 50).into_bytes();
        // The second half deletes much of what the first half has.
        let value = (n < rows / 2 || n % 3 > 0).then(|| n.to_be_bytes().to_vec());
        broker.append("changelog", 0, &key, value.as_deref());
        match value {
            Some(value) => all.insert(key, value),
            None => all.remove(&key),
        };
    }
    let (high, all): (u64, Rows) = (5 + u64::from(rows), all.into_iter().collect());
    for (cut, chunk_bytes) in [(0, 400), (30, 400), (65, 400), (90, 400), (124, 400), (70, 3_000), (70, 100)]
    {
        let state = tempfile::tempdir().expect("a folder");
        let system = FakeSystem::new(&broker, None, None, None);
        system.break_ranges_after(cut);
        let (broken, _) = restore_from(&job, state.path(), &system, high, chunk_bytes);
        assert!(broken.is_err(), "it was cut at {cut}");
        drop(broken);
        system.break_ranges_after(-1);
        let (restored, status) = restore_from(&job, state.path(), &system, high, chunk_bytes);
        let restored = restored.unwrap_or_else(|end| panic!("{end}"));
        assert_eq!(on_disk(restored.disk.as_ref().expect("it has a store")), all, "cut at {cut}");
        assert_eq!(status.from_local, cut >= 30 && chunk_bytes < 3_000, "{cut} {chunk_bytes}: {status:?}");
        if status.from_local {
            // At most a chunk is read twice.
            let again = status.rows + u64::try_from(cut).expect("positive") - high;
            assert!(again <= 20, "{again} of {cut} rows are read again");
        }
    }
}

#[test]
fn a_store_in_memory_is_restored_from_the_changelog_at_each_start() {
    let mut job = crate::tests::job(Delivery::ExactlyOnce, true);
    job.stores.get_mut("counts").expect("its store").kind = StoreKind::Memory;
    let state = tempfile::tempdir().expect("a folder");
    for _ in 0..2 {
        let (restored, status) = restore(&job, state.path());
        assert_eq!((status.reason.as_str(), status.rows), ("counts: a store in memory", 5));
        let rows = &restored.memory["counts"];
        let found = [b"a", b"b", b"c"].map(|key| rows.get(key).map(<[u8]>::to_vec));
        assert_eq!(found, [None, Some(b"4".to_vec()), Some(b"3".to_vec())]);
    }
}

#[test]
fn what_is_left_takes_as_long_as_what_is_done_did() {
    assert_eq!(eta_ms(250, 1_000, 2_000), Some(6_000));
    assert_eq!(eta_ms(0, 1_000, 2_000), None, "there is no pace yet");
    assert_eq!(eta_ms(1_000, 1_000, 2_000), None, "nothing is left");
}
