//! Local state is used when it is a prefix of the changelog; else the reason is told and everything is read.

use std::path::Path;
use std::sync::Arc;

use task_core::restore::OffsetsRow;
use types::{
    ContainerModel, Delivery, Epoch, Incarnation, JobSpec, JobTopics, RestoreStatus, StoreKind, TaskModel,
};

use super::{Restore, RestoredTask, eta_ms, unix_ms};
use crate::board::Board;
use crate::clock::Clock;
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
    let task = TaskModel {
        name: "Partition 0".into(),
        inputs: Vec::new(),
        changelog_partition: 0,
        added: Vec::new(),
    };
    let board = Arc::new(Board::default());
    board.begin(&ContainerModel { tasks: vec![task.clone()] }, 1);
    let system = FakeSystem::new(&broker(job), None, None, None);
    let memory = DiskMemory::new(1 << 20, 1 << 20);
    let (admin, clock) = (system.admin(), Clock::start());
    let restore = Restore {
        job,
        incarnation: Incarnation { epoch: Epoch(1), seq: 1 },
        admin: &*admin,
        state: state.to_owned(),
        memory: &memory,
        chunk_bytes: 1 << 20,
        board: &board,
        clock: &clock,
    };
    let restored = restore.all(&[task], &[vec![0, 5]]).expect("restores").remove(0);
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
    let valid = OffsetsRow { topic_id: "id of changelog".into(), offset: 2, flushed_unix_ms: unix_ms() };
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
