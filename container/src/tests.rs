//! A whole container thread on a system in memory: exact under a crash at any call, and under rivals.
//!
//! The task counts by key, deletes a key on an empty value, and sends each new count.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use task_api::metrics::MetricsRegistry;
use task_api::{
    I64Serde, IncomingMessageEnvelope, KeyValueStore, MessageCollector, OutgoingMessage, StreamTask,
    StringSerde, TaskContext, TaskCoordinator, TaskResult,
};
use task_core::record::{self, Checkpoint, Record};
use types::{
    ContainerModel, Delivery, Epoch, Incarnation, JobSpec, JobTopics, StoreSpec, SystemStream,
    SystemStreamPartition, TaskModel,
};

use crate::board::{Board, Told};
use crate::budget::Budget;
use crate::clock::Clock;
use crate::container::run_threads;
use crate::end::End;
use crate::fake::{Broker, FakeSystem};
use crate::stores::disk::{DiskMemory, TaskDisk};
use crate::systems::{System, Systems};
use crate::task_thread::Shared;

/// In memory where the system has such a place: RocksDB syncs each flush.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

#[derive(Default)]
pub(crate) struct Count {
    counts: Option<KeyValueStore<String, i64>>,
    commit_on: Option<String>,
}

impl StreamTask for Count {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.counts = Some(context.store("counts", StringSerde, I64Serde)?);
        self.commit_on = context.config.get("commit-on").cloned();
        Ok(())
    }
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let key = String::from_utf8(envelope.key.unwrap_or_default().to_vec())?;
        let counts = self.counts.as_mut().expect("init has run");
        let count = counts.get(&key)?.unwrap_or(0) + 1;
        if envelope.value.is_none_or(<[u8]>::is_empty) {
            counts.delete(&key)?;
        } else {
            counts.put(&key, &count)?;
        }
        if self.commit_on.as_deref() == Some(&key) {
            coordinator.commit();
        }
        let text = count.to_string();
        collector.send(OutgoingMessage {
            partition: Some(envelope.source.partition),
            ..OutgoingMessage::new("kafka.out", envelope.key, Some(text.as_bytes()))
        })
    }
}

pub(crate) const PARTITIONS: i32 = 2;

pub(crate) fn job(delivery: Delivery, changelog: bool) -> JobSpec {
    let changelog = if changelog { "\"changelog\"" } else { "false" };
    let delivery = match delivery {
        Delivery::AtLeastOnce => "at-least-once",
        Delivery::ExactlyOnce => "exactly-once",
    };
    let text = format!(
        r#"
        job = {{ name = "count" }}
        package = {{ path = "count" }}
        containers = {{ memory = "64MiB" }}
        task = {{ inputs = ["kafka.in"], commit = "1ms", delivery = "{delivery}" }}
        systems.kafka = {{ type = "kafka", bootstrap = "127.0.0.1:1" }}
        stores.counts = {{ changelog = {changelog}, cache-rows = 1_000 }}
        "#
    );
    let mut job = job_file::parse(&text, "job.toml").expect("a job file").spec;
    // Commit after every batch.
    job.task.commit_ms = 0;
    job
}

pub(crate) fn model() -> ContainerModel {
    let task = |n| TaskModel {
        name: format!("Partition {n}").as_str().into(),
        inputs: vec![SystemStreamPartition {
            stream: SystemStream { system: "kafka".into(), stream: "in".into() },
            partition: n,
        }],
        changelog_partition: n,
        added: Vec::new(),
    };
    ContainerModel { tasks: (0..PARTITIONS).map(task).collect() }
}

/// Input with repeated keys and deletions.
pub(crate) fn broker(messages: usize) -> Broker {
    let broker = Broker::default();
    for topic in ["in", "out", "changelog"] {
        broker.topic(topic, PARTITIONS);
    }
    broker.topic(&JobTopics::of(&job(Delivery::ExactlyOnce, true).job).checkpoint, PARTITIONS);
    broker.configure("changelog", "cleanup.policy", "compact");
    for n in 0..messages {
        let key = format!("k{}", (n * n + n / 3) % 7);
        let value: &[u8] = if n % 5 == 4 { b"" } else { b"x" };
        broker.append("in", n as i32 % PARTITIONS, key.as_bytes(), Some(value));
    }
    broker
}

/// The checkpoints that the task of `partition` has committed, in their order.
pub(crate) fn checkpoints(broker: &Broker, job: &JobSpec, partition: i32) -> Vec<Checkpoint> {
    let records = broker.committed(&JobTopics::of(&job.job).checkpoint, partition).into_iter();
    records
        .filter_map(|(_, key, value)| match record::decode(Some(&key), value.as_deref()) {
            Some(Record::Checkpoint(_, checkpoint)) => Some(checkpoint),
            Some(Record::Owner(_) | Record::OwnerGone(_)) | None => None,
        })
        .collect()
}

fn incarnation(seq: u64) -> Incarnation {
    Incarnation { epoch: Epoch(1), seq }
}

/// One container's life.
pub(crate) struct Life {
    pub(crate) ended: Result<(), End>,
    pub(crate) crashed: bool,
    calls: i64,
    pub(crate) board: Arc<Board>,
}

pub(crate) fn live(
    broker: &Broker,
    job: &JobSpec,
    seq: u64,
    state: &Path,
    crash: Option<(u64, PathBuf)>,
) -> Life {
    let board = Arc::new(Board::default());
    let from = state.to_owned();
    let crash_at = crash.as_ref().map(|(at, _)| *at);
    let on_crash = crash.map(|(_, to)| Box::new(move || copy(&from, &to)) as Box<dyn Fn() + Send + Sync>);
    let system = FakeSystem::new(broker, crash_at, on_crash, Some(Arc::clone(&board)));
    let shared = shared(job, seq, state, &system, &board);
    let ended = run_threads(&shared, &model(), &Count::default).map(drop);
    Life { ended, crashed: system.has_crashed(), calls: system.calls(), board }
}

pub(crate) fn shared(
    job: &JobSpec,
    seq: u64,
    state: &Path,
    system: &FakeSystem,
    board: &Arc<Board>,
) -> Shared {
    let system: Arc<dyn System> = Arc::new(system.clone());
    Shared {
        job: Arc::new(job.clone()),
        incarnation: incarnation(seq),
        slot: 0,
        state: state.to_owned(),
        systems: Systems::from([("kafka".to_owned(), system)]),
        budget: Budget::new(64 << 20, 1, true),
        memory: Some(DiskMemory::new(1 << 20, 1 << 20)),
        board: Arc::clone(board),
        flush_ms: 0,
        clock: Clock::start(),
        metrics: MetricsRegistry::default(),
    }
}

/// What is on disk at this moment, as a crash would leave it: without what is only in memtables.
///
/// A crash stops all threads at once, but the database's own threads work on while this copies. So it copies until
/// nothing has changed meanwhile.
fn copy(from: &Path, to: &Path) {
    loop {
        let before = files_in(from);
        let all_copied = before.keys().all(|file| {
            let target = to.join(file);
            std::fs::create_dir_all(target.parent().expect("a task's folder")).expect("a folder");
            std::fs::copy(from.join(file), target).is_ok()
        });
        if all_copied && files_in(from) == before {
            return;
        }
        std::fs::remove_dir_all(to).expect("the copy");
        std::fs::create_dir_all(to).expect("a folder");
    }
}

/// The tasks' files with their lengths.
fn files_in(state: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for task in std::fs::read_dir(state).expect("the state folder").flatten() {
        for file in std::fs::read_dir(task.path()).expect("a task's folder").flatten() {
            let path = Path::new(&task.file_name()).join(file.file_name());
            if file.file_name() != "LOCK"
                && let Ok(meta) = file.metadata()
            {
                files.insert(path, meta.len());
            }
        }
    }
    files
}

type Counts = BTreeMap<String, i64>;

/// The fold of the inputs: each task's counts, and each output in its order.
fn expected(broker: &Broker, partition: i32) -> (Counts, Vec<(String, i64)>) {
    let (mut counts, mut outputs) = (Counts::new(), Vec::new());
    for (_, key, value) in broker.committed("in", partition) {
        let key = String::from_utf8(key).expect("text");
        let count = counts.get(&key).unwrap_or(&0) + 1;
        if value.is_none_or(|v| v.is_empty()) {
            counts.remove(&key);
        } else {
            counts.insert(key.clone(), count);
        }
        outputs.push((key, count));
    }
    (counts, outputs)
}

fn outputs(broker: &Broker, partition: i32) -> Vec<(String, i64)> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let row = |(_, key, value): (u64, Vec<u8>, Option<Vec<u8>>)| {
        (text(key), text(value.expect("a count")).parse().expect("a number"))
    };
    broker.committed("out", partition).into_iter().map(row).collect()
}

fn decode(value: &[u8]) -> i64 {
    i64::from_be_bytes(value.try_into().expect("eight bytes"))
}

fn folded_changelog(broker: &Broker, partition: i32) -> Counts {
    let mut counts = Counts::new();
    for (_, key, value) in broker.committed("changelog", partition) {
        let key = String::from_utf8(key).expect("text");
        match value {
            Some(value) => counts.insert(key, decode(&value)),
            None => counts.remove(&key),
        };
    }
    counts
}

pub(crate) fn on_disk(state: &Path, partition: i32) -> Counts {
    let memory = DiskMemory::new(1 << 20, 1 << 20);
    let spec = StoreSpec::with_changelog(None, "kafka");
    let entry = format!("Partition-{partition}");
    let disk = TaskDisk::open(state, &entry, "0-0", &[("counts", &spec)], &memory).expect("opens");
    let mut rows = disk.iterate("counts", None, None).expect("iterates");
    let mut counts = Counts::new();
    while let Some((key, value)) = rows.item() {
        counts.insert(String::from_utf8(key.to_vec()).expect("text"), decode(value));
        rows.next();
    }
    counts
}

pub(crate) fn assert_exact(broker: &Broker, job: &JobSpec, state: &Path, what: &str) {
    for partition in 0..PARTITIONS {
        let (counts, sent) = expected(broker, partition);
        if job.stores["counts"].changelog.is_some() {
            assert_eq!(folded_changelog(broker, partition), counts, "changelog of {partition}, {what}");
        }
        assert_eq!(on_disk(state, partition), counts, "store of {partition}, {what}");
        let outputs = outputs(broker, partition);
        match job.task.delivery {
            Delivery::ExactlyOnce => assert_eq!(outputs, sent, "outputs of {partition}, {what}"),
            Delivery::AtLeastOnce => {
                let missing: Vec<_> = sent.iter().filter(|row| !outputs.contains(row)).collect();
                assert!(missing.is_empty(), "lost outputs of {partition}, {what}: {missing:?}");
                assert!(outputs.len() >= sent.len(), "outputs of {partition}, {what}");
            }
        }
    }
}

/// No committed record of an incarnation lies at or beyond the watermarks that a higher one restored to.
fn assert_no_late_commits(broker: &Broker) {
    let checkpoint = JobTopics::of(&job(Delivery::ExactlyOnce, true).job).checkpoint;
    for partition in 0..PARTITIONS {
        let records = broker.committed_by(&checkpoint, partition);
        for (_, (_, key, value)) in &records {
            let Some(Record::Checkpoint(_, newer)) = record::decode(Some(key), value.as_deref()) else {
                continue;
            };
            let Some(restored) = newer.restored else { continue };
            let ends =
                [(checkpoint.as_str(), restored.checkpoint), ("changelog", restored.changelogs["counts"])];
            for (topic, end) in ends {
                for (id, (offset, ..)) in broker.committed_by(topic, partition) {
                    let Some(id) = id.filter(|_| offset >= end) else { continue };
                    let of: Incarnation = id
                        .rsplitn(3, '-')
                        .take(2)
                        .collect::<Vec<_>>()
                        .into_iter()
                        .rev()
                        .collect::<Vec<_>>()
                        .join("-")
                        .parse()
                        .expect("an incarnation");
                    assert!(of >= newer.incarnation, "{id} committed {topic} {offset} beyond {end}");
                }
            }
        }
    }
}

/// Crashes at every half call of a whole life, restarts on what the disk had, and compares.
fn crash_everywhere(delivery: Delivery, keep_disk: bool, every: u64) {
    let job = job(delivery, true);
    let mut at = 0;
    let mut crashes = 0;
    loop {
        let broker = broker(24);
        let (state, left) = (folder(), folder());
        let first = live(&broker, &job, 1, state.path(), Some((at, left.path().to_owned())));
        assert_eq!(first.ended.is_err(), first.crashed, "crash at {at}: {:?}", first.ended);
        let fresh = folder();
        let state = if !first.crashed {
            state
        } else if keep_disk {
            left
        } else {
            fresh
        };
        let second = live(&broker, &job, 2, state.path(), None);
        assert!(second.ended.is_ok(), "after a crash at {at}: {:?}", second.ended);
        assert_exact(&broker, &job, state.path(), &format!("crash at {at}"));
        assert_no_late_commits(&broker);
        if !first.crashed {
            assert!(
                crashes as i64 >= first.calls / every as i64,
                "{crashes} crashes in {} half calls",
                first.calls
            );
            assert!(crashes > 20, "{crashes} crashes");
            return;
        }
        crashes += 1;
        at += every;
    }
}

#[test]
fn exactly_once_is_exact_after_a_crash_at_any_call_on_the_same_disk() {
    crash_everywhere(Delivery::ExactlyOnce, true, 3);
}

#[test]
fn exactly_once_is_exact_after_a_crash_at_any_call_on_another_disk() {
    crash_everywhere(Delivery::ExactlyOnce, false, 5);
}

#[test]
fn at_least_once_keeps_state_exact_and_loses_no_output_after_a_crash_at_any_call() {
    crash_everywhere(Delivery::AtLeastOnce, true, 3);
}

#[test]
fn a_restart_after_an_orderly_end_reads_nothing_again() {
    let (broker, job) = (broker(100), job(Delivery::ExactlyOnce, true));
    let state = folder();
    assert!(live(&broker, &job, 1, state.path(), None).ended.is_ok());
    let second = live(&broker, &job, 2, state.path(), None);
    assert!(second.ended.is_ok());
    let status = second.board.status();
    assert_eq!((status.processed, status.commits), (0, 0));
    for task in &status.tasks {
        let restore = task.restore.as_ref().expect("it has a store");
        assert!(restore.from_local, "{restore:?}");
        assert_eq!(restore.rows, 0, "{restore:?}");
    }
    assert_exact(&broker, &job, state.path(), "after a clean restart");
    let elsewhere = folder();
    let third = live(&broker, &job, 3, elsewhere.path(), None);
    let restore = third.board.status().tasks[0].restore.clone().expect("it has a store");
    assert!(!restore.from_local && restore.rows > 0 && restore.done == restore.total, "{restore:?}");
    assert_exact(&broker, &job, elsewhere.path(), "after a full restore");
}

#[test]
fn two_threads_have_a_producer_each_and_are_exact() {
    let (broker, mut job) = (broker(60), job(Delivery::ExactlyOnce, true));
    job.containers.threads = 2;
    let state = folder();
    let board = Arc::new(Board::default());
    let system = FakeSystem::new(&broker, None, None, None);
    let shared = shared(&job, 1, state.path(), &system, &board);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run_threads(&shared, &model(), &Count::default));
        while !running.is_finished() && board.status().processed < 60 {
            std::thread::yield_now();
        }
        board.stop(Told::Signal(15));
        assert!(running.join().expect("no panic").is_ok());
    });
    assert_exact(&broker, &job, state.path(), "two threads");
    let writer = |partition| broker.committed_by("changelog", partition)[0].0.clone();
    assert_eq!(
        (writer(0).as_deref(), writer(1).as_deref()),
        (Some("count-1-0-0-1-1"), Some("count-1-0-1-1-1"))
    );
}

#[test]
fn brokers_that_answer_later_do_not_end_a_container() {
    let (broker, job) = (broker(40), job(Delivery::AtLeastOnce, true));
    let state = folder();
    for seq in 1..3 {
        let board = Arc::new(Board::default());
        let system = FakeSystem::new(&broker, None, None, Some(Arc::clone(&board)));
        system.be_flaky();
        let ended = run_threads(&shared(&job, seq, state.path(), &system, &board), &model(), &Count::default);
        assert!(ended.is_ok(), "{ended:?}");
    }
    let third = live(&broker, &job, 3, state.path(), None);
    assert!(third.ended.is_ok());
    assert_exact(&broker, &job, state.path(), "after flaky lives");
}

#[test]
fn a_full_cache_and_a_task_that_asks_force_commits() {
    let (broker, mut job) = (broker(60), job(Delivery::ExactlyOnce, true));
    job.task.commit_ms = 3_600_000;
    let state = folder();
    let calm = live(&broker, &job, 1, state.path(), None);
    assert_eq!(calm.board.status().commits, 2, "where reading begins, and the last one");
    let mut asking = job.clone();
    asking.task.config.insert("commit-on".into(), "k1".into());
    let mut tight = job.clone();
    tight.stores.get_mut("counts").expect("a store").cache_rows = 2;
    for job in [asking, tight] {
        let broker = self::broker(60);
        let state = folder();
        let life = live(&broker, &job, 1, state.path(), None);
        assert!(life.board.status().commits > 3, "{:?}", life.board.status());
        assert_eq!(life.board.status().processed, 60);
        assert_exact(&broker, &job, state.path(), "forced commits");
    }
}

#[test]
fn a_store_without_changelog_survives_a_restart_and_is_dropped_after_another_was_owner() {
    let (broker, job) = (broker(40), job(Delivery::ExactlyOnce, false));
    let (here, there) = (folder(), folder());
    assert!(live(&broker, &job, 1, here.path(), None).ended.is_ok());
    assert_exact(&broker, &job, here.path(), "first life");
    broker.append("in", 0, b"k1", Some(b"x"));
    assert!(live(&broker, &job, 2, here.path(), None).ended.is_ok());
    assert_exact(&broker, &job, here.path(), "second life");
    broker.append("in", 0, b"k1", Some(b"x"));
    assert!(live(&broker, &job, 3, there.path(), None).ended.is_ok());
    broker.append("in", 0, b"k2", Some(b"x"));
    assert!(live(&broker, &job, 4, here.path(), None).ended.is_ok());
    assert_eq!(on_disk(here.path(), 0), Counts::from([("k2".to_owned(), 1)]));
}

#[test]
fn an_old_container_is_fenced_by_a_new_one_and_an_even_older_one_does_not_start() {
    let (broker, job) = (broker(30), job(Delivery::ExactlyOnce, true));
    let (old_state, new_state) = (folder(), folder());
    let board = Arc::new(Board::default());
    // It never stops by itself.
    let system = FakeSystem::new(&broker, None, None, None);
    let shared = shared(&job, 5, old_state.path(), &system, &board);
    let ended = std::thread::scope(|scope| {
        let old = scope.spawn(|| run_threads(&shared, &model(), &Count::default));
        while board.status().commits == 0 {
            std::thread::yield_now();
        }
        let new = live(&broker, &job, 6, new_state.path(), None);
        assert!(new.ended.is_ok(), "{:?}", new.ended);
        broker.append("in", 0, b"late", Some(b"x"));
        old.join().expect("no panic")
    });
    assert!(matches!(ended, Err(End::Fenced(_))), "{ended:?}");
    let older = live(&broker, &job, 4, old_state.path(), None);
    assert!(matches!(older.ended, Err(End::Fenced(_))), "{:?}", older.ended);
    assert!(live(&broker, &job, 7, new_state.path(), None).ended.is_ok());
    assert_exact(&broker, &job, new_state.path(), "after the rivals");
    assert_no_late_commits(&broker);
}

#[test]
fn a_failing_task_ends_the_container_with_its_reason_and_commits_nothing_of_it() {
    struct Fails;
    impl StreamTask for Fails {
        fn process(
            &mut self,
            envelope: &IncomingMessageEnvelope<'_>,
            _: &mut dyn MessageCollector,
            _: &mut TaskCoordinator,
        ) -> TaskResult {
            if envelope.offset == 7 { Err("seven is too much".into()) } else { Ok(()) }
        }
    }
    let (broker, job) = (broker(40), job(Delivery::ExactlyOnce, true));
    let state = folder();
    let board = Arc::new(Board::default());
    let system = FakeSystem::new(&broker, None, None, Some(Arc::clone(&board)));
    let ended = run_threads(&shared(&job, 1, state.path(), &system, &board), &model(), &|| Fails);
    let Err(End::Failed(why)) = ended else { panic!("{ended:?}") };
    assert!(why.contains("seven is too much") && why.contains("message 7 of kafka.in"), "{why}");
    let checkpoint = JobTopics::of(&job.job).checkpoint;
    let farthest = (0..PARTITIONS)
        .flat_map(|partition| broker.committed(&checkpoint, partition))
        .filter_map(|(_, key, value)| match record::decode(Some(&key), value.as_deref()) {
            Some(Record::Checkpoint(task, of)) => {
                let partition = task.0.trim_start_matches("Partition ").parse().expect("a number");
                of.offset("kafka.in", partition).map(|o| o.parse::<u64>().expect("a number"))
            }
            _ => None,
        })
        .max();
    assert!(farthest.is_some_and(|offset| offset <= 7), "{farthest:?}");
}

#[test]
fn an_output_to_an_unknown_system_ends_the_container_and_names_what_there_is() {
    struct Lost;
    impl StreamTask for Lost {
        fn process(
            &mut self,
            _: &IncomingMessageEnvelope<'_>,
            collector: &mut dyn MessageCollector,
            _: &mut TaskCoordinator,
        ) -> TaskResult {
            // Even a task that does not care ends its container at the next commit.
            let _ = collector.send(OutgoingMessage::new("kinesis.x", None, None));
            Ok(())
        }
    }
    let (broker, job) = (broker(4), job(Delivery::AtLeastOnce, true));
    let state = folder();
    let board = Arc::new(Board::default());
    let system = FakeSystem::new(&broker, None, None, Some(Arc::clone(&board)));
    let ended = run_threads(&shared(&job, 1, state.path(), &system, &board), &model(), &|| Lost);
    let Err(End::Failed(why)) = ended else { panic!("{ended:?}") };
    assert!(why.contains("no system `kinesis`") && why.contains("it has: kafka"), "{why}");
}
