//! A system of files as a container uses it: read to the end, committed, killed and started again.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use task_api::system::{ProducerRecord, StartAt, Unreadable};
use task_core::record::{self, OwnerRecord};
use types::JobId;

use super::*;
use crate::local::files::{InputSpec, Place};
use crate::local::line::Shape;
use crate::local::{above, newest_owner};

const NOW: Duration = Duration::ZERO;

mod conforming;
mod odd;

/// In memory where the system has such a place: every commit waits for the disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

struct Stage {
    folder: tempfile::TempDir,
    system: Jsonl,
}

fn files(folder: &Path) -> Files {
    Files {
        folder: folder.to_owned(),
        malformed_is_fatal: true,
        longest_line: 1 << 20,
        chunk: 256 << 10,
        ..Files::default()
    }
}

fn with_shape(folder: &Path, shape: Shape) -> Files {
    let input = InputSpec { stream: "files.in".into(), shape, must_be_the_same: true };
    Files { inputs: [("in.jsonl".to_owned(), input)].into(), ..files(folder) }
}

impl Stage {
    fn new() -> Stage {
        let folder = folder();
        let files = files(folder.path());
        Stage::with(folder, files)
    }
    fn with(folder: tempfile::TempDir, files: Files) -> Stage {
        let home = Home::open(&folder.path().join("state"), folder.path()).expect("a home");
        let system = Jsonl::new(&Arc::new(home), files, &Arc::default());
        Stage { folder, system }
    }
    fn with_input(input: &str, shape: Shape) -> Stage {
        let folder = folder();
        fs::write(folder.path().join("in.jsonl"), input).expect("written");
        let files = with_shape(folder.path(), shape);
        Stage::with(folder, files)
    }
    /// Another process on the same folder, after this one has gone in the middle of its work.
    fn restart(self) -> Stage {
        let Stage { folder, system } = self;
        drop(system);
        let files = files(folder.path());
        Stage::with(folder, files)
    }
    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(name), text).expect("written");
    }
    fn append(&self, name: &str, text: &str) {
        let file = fs::OpenOptions::new().append(true).open(self.folder.path().join(name));
        file.expect("there").write_all(text.as_bytes()).expect("written");
    }
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).expect("there")
    }
    fn make_topics(&self) {
        let topic = |name: &str| NewTopic {
            topic: name.to_owned(),
            partitions: 2,
            replication: 1,
            config: [("delete.retention.ms".to_owned(), "1000".to_owned())].into(),
        };
        self.system.admin().create(&[topic("checkpoints"), topic("changelog")]).expect("made");
    }
    fn transactional(&self) -> Box<dyn TransactionalProducer> {
        let mut producer = self.system.transactional("me").expect("a producer");
        producer.init(NOW).expect("there is nobody else");
        producer
    }
    fn rows(&self, topic: &str, partition: i32) -> Vec<(u64, String)> {
        let admin = self.system.admin();
        let ends = admin.watermarks(&[at(topic, partition)]).expect("ends");
        let mut rows = Vec::new();
        let mut take = |messages: &[Message<'_>]| {
            rows.extend(messages.iter().map(|m| (m.offset, text(m.value))));
            Ok(())
        };
        let read =
            admin.read_range(&at(topic, partition), 0, ends[0].high, Isolation::ReadCommitted, &mut take);
        read.expect("read");
        rows
    }
}

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition { topic: topic.to_owned(), partition }
}

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or("none".into(), |b| String::from_utf8_lossy(b).into_owned())
}

type Taken = Vec<(u64, String)>;

/// Everything up to the end (of what is no message, what is wrong with it), and where to go on.
fn drain(consumer: &mut dyn SystemConsumer) -> Result<(Taken, Offset), SystemError> {
    let mut taken = Taken::new();
    while !consumer.has_ended(0) {
        consumer.poll(NOW, &mut |messages| {
            taken.extend(messages.iter().map(|m| (m.offset, text(m.value))));
            Ok(())
        })?;
        while let Some(Unreadable { offset, why, .. }) = consumer.take_unreadable() {
            taken.push((offset, why));
        }
    }
    let next = taken.last().map(|(offset, _)| *offset + 1).or(consumer.start(0)).unwrap_or(0);
    Ok((taken, consumer.offset(0, next)))
}

fn values(taken: Taken) -> Vec<String> {
    taken.into_iter().map(|(_, value)| value).collect()
}

/// The byte at which `offset` is.
fn byte(offset: &Offset) -> u64 {
    Position::parse(offset).expect("a place").next
}

fn consume(stage: &Stage, start: StartAt) -> Result<(Taken, Offset), SystemError> {
    let mut consumer = stage.system.consumer("me", "job-1").expect("a consumer");
    consumer.assign(&[(at("in.jsonl", 0), start)])?;
    drain(&mut *consumer)
}

#[test]
fn a_file_is_read_to_its_end_and_later_from_there() {
    let stage = Stage::new();
    stage.write("in.jsonl", "1\n\n22\n333");
    let (taken, next) = consume(&stage, StartAt::Oldest).expect("read");
    assert_eq!(taken, [(1, "1".to_owned()), (5, "22".into()), (8, "333".into())]);
    assert_eq!(byte(&next), 9);
    let again = consume(&stage, StartAt::At(next.clone())).expect("read");
    assert_eq!(again, (vec![], next.clone()));
    // The last line gets its end, and another one comes.
    stage.append("in.jsonl", "\n4\n");
    let (taken, next) = consume(&stage, StartAt::At(next)).expect("read");
    assert_eq!(taken, [(11, "4".to_owned())]);
    assert_eq!(byte(&next), 12);
    assert_eq!(consume(&stage, StartAt::Newest).expect("read").0, []);
    let (taken, _) = consume(&stage, StartAt::At(Offset("3".into()))).expect("read");
    assert_eq!(taken.len(), 3);
}

#[test]
fn reading_may_begin_at_a_time() {
    let stage = Stage::new();
    stage.write(
        "in.jsonl",
        "{\"key\":0,\"value\":1,\"timestamp\":10}\n{\"key\":0,\"value\":2,\"timestamp\":20}\n3\n",
    );
    let (taken, _) = consume(&stage, StartAt::Timestamp(15_000)).expect("read");
    assert_eq!(values(taken), ["2", "3"]);
    assert_eq!(consume(&stage, StartAt::Timestamp(21_000)).expect("read").0, []);
    assert_eq!(stage.system.tally.passed_over.get(), 1 + 3);
}

#[test]
fn a_line_that_is_no_message_is_told_with_its_number_once_those_before_it_are_read() {
    let stage = Stage::new();
    stage.write("in.jsonl", "1\n2\n{\"a\": oops}\n4\n{");
    let mut consumer = stage.system.consumer("me", "job-1").expect("a consumer");
    consumer.assign(&[(at("in.jsonl", 0), StartAt::At(Offset("2".into())))]).expect("assigned");
    let mut taken = 0;
    let mut poll = |consumer: &mut dyn SystemConsumer| {
        consumer.poll(NOW, &mut |messages| {
            taken += messages.len();
            Ok(())
        })
    };
    assert_eq!(poll(&mut *consumer), Ok(1));
    assert_eq!(consumer.take_unreadable(), None, "what was before it may not be processed yet");
    assert_eq!(poll(&mut *consumer), Ok(0));
    let unreadable = consumer.take_unreadable().expect("malformed");
    assert_eq!((unreadable.offset, unreadable.bytes), (15, b"{\"a\": oops}".to_vec()));
    assert!(unreadable.why.contains("in.jsonl line 3, column 7: not JSON"), "{}", unreadable.why);
    assert!(unreadable.why.contains("decode = \"skip\""), "{}", unreadable.why);
    let (taken, next) = consume(&stage, StartAt::At(Offset("16".into()))).expect("read");
    assert_eq!((taken[0].clone(), taken.len()), ((17, "4".to_owned()), 2));
    assert!(taken[1].1.contains("line 5, column 1: not JSON") && taken[1].1.contains("still being written?"));
    assert_eq!(byte(&next), 19);
    assert_eq!(stage.system.tally.malformed.get(), 2);
}

#[test]
fn sources_are_paused_and_resumed_each_for_itself() {
    let stage = Stage::new();
    fs::create_dir(stage.folder.path().join("in.jsonl")).expect("a folder");
    stage.write("in.jsonl/0.jsonl", "1\n2\n");
    stage.write("in.jsonl/1.jsonl", "3\n");
    let found =
        stage.system.admin().describe(&["in.jsonl".to_owned(), "none".to_owned()]).expect("described");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].partitions.len(), 2);
    let mut consumer = stage.system.consumer("me", "job-1").expect("a consumer");
    let both: Vec<_> = (0..2).map(|n| (at("in.jsonl", n), StartAt::Oldest)).collect();
    consumer.assign(&both).expect("assigned");
    consumer.pause(&[0]).expect("paused");
    let mut taken = Vec::new();
    for round in 0..6 {
        if round == 3 {
            assert!(consumer.has_ended(1) && !consumer.has_ended(0));
            assert_eq!(taken, [1]);
            consumer.resume(&[0]).expect("resumed");
        }
        let mut take = |messages: &[Message<'_>]| {
            taken.extend(messages.iter().map(|m| m.source));
            Ok(())
        };
        consumer.poll(NOW, &mut take).expect("read");
    }
    assert!(consumer.has_ended(0));
    assert_eq!(taken, [1, 0, 0]);
    assert_eq!(consumer.caught_up_at(0), Some(4));
    assert_eq!(consumer.lag(0, 2), Some(2));
}

#[test]
fn a_file_that_is_not_the_one_that_was_read_is_told() {
    let stage = Stage::new();
    stage.write("in.jsonl", "10\n20\n");
    let lost = |offset: &str| stage.system.admin().lost(&[(at("in.jsonl", 0), Offset(offset.into()))]);
    for good in ["0", "3", "6"] {
        assert_eq!(lost(good), Ok(vec![None]), "{good}");
    }
    assert!(lost("7").expect_err("too short").to_string().contains("it ends at byte 6"));
    let told = |offset: &str| lost(offset).expect_err("another file").to_string();
    assert!(told("4").contains("in the middle of a line"));
    assert!(lost("x").is_err());
}

#[test]
fn a_transaction_is_there_as_a_whole_or_not_at_all() {
    let stage = Stage::new();
    stage.make_topics();
    stage.write("out.jsonl", "\"before\"\n");
    let mut producer = stage.transactional();
    let send = |producer: &mut dyn TransactionalProducer, n: i32| {
        let changelog = producer.topic("changelog").expect("a topic");
        let out = producer.topic("out.jsonl").expect("a file");
        let value = n.to_string();
        producer
            .send(&ProducerRecord::new(changelog, Some(b"k"), Some(value.as_bytes())).to(1))
            .expect("sent");
        producer.send(&ProducerRecord::new(out, None, Some(value.as_bytes()))).expect("sent");
    };
    producer.begin().expect("begun");
    send(&mut *producer, 1);
    producer.flush(NOW).expect("flushed");
    let ends = stage.system.admin().watermarks(&[at("changelog", 1)]).expect("ends");
    assert_eq!((ends[0].stable, ends[0].high), (0, 1), "what is sent has its place and is not there yet");
    assert_eq!(stage.rows("changelog", 1), []);
    send(&mut *producer, 2);
    producer.commit(NOW).expect("committed");
    assert_eq!(stage.rows("changelog", 1), [(0, "1".to_owned()), (1, "2".into())]);
    assert_eq!(stage.read("out.jsonl"), "\"before\"\n1\n2\n");
    producer.begin().expect("begun");
    send(&mut *producer, 3);
    producer.abort(NOW).expect("aborted");
    producer.begin().expect("begun");
    send(&mut *producer, 4);
    drop(producer);
    // A process that was killed between writing its lines and its frame.
    stage.append("out.jsonl", "3\n4");
    let stage = stage.restart();
    assert_eq!(stage.read("out.jsonl"), "\"before\"\n1\n2\n");
    assert_eq!(stage.rows("changelog", 1), [(0, "1".to_owned()), (1, "2".into())]);
}

#[test]
fn lines_outside_transactions_stay_but_for_a_torn_one() {
    let stage = Stage::new();
    let mut producer = stage.system.producer("me").expect("a producer");
    let out = producer.topic("deep/er/out.jsonl").expect("a file");
    producer.send(&ProducerRecord::new(out, Some(b"k"), Some(b"1"))).expect("sent");
    producer.flush(NOW).expect("flushed");
    producer.send(&ProducerRecord::new(out, Some(b"k"), Some(b"2"))).expect("sent");
    drop(producer);
    stage.append("deep/er/out.jsonl", "{\"key\":\"k\",\"value\":3}\n{\"key\":\"k\",\"va");
    let stage = stage.restart();
    assert_eq!(stage.read("deep/er/out.jsonl"), "{\"key\":\"k\",\"value\":1}\n{\"key\":\"k\",\"value\":3}\n");
}

#[test]
fn owner_records_go_into_the_log_at_once() {
    let stage = Stage::new();
    stage.make_topics();
    let row = |value: &str| PlainMessage {
        to: at("checkpoints", 0),
        key: b"owner".to_vec(),
        value: Some(value.as_bytes().to_vec()),
    };
    stage.system.admin().append(&[row("a"), row("b")]).expect("appended");
    let stage = stage.restart();
    assert_eq!(stage.rows("checkpoints", 0), [(0, "a".to_owned()), (1, "b".into())]);
    assert!(stage.system.admin().append(&[PlainMessage { to: at("none", 0), ..row("c") }]).is_err());
}

#[test]
fn a_run_is_above_every_owner_before_it_though_the_clock_went_back() {
    let stage = Stage::new();
    stage.make_topics();
    let admin = stage.system.admin();
    let owner = |partition: i32, ms: u64| {
        let job = JobId { name: "j".into(), id: "1".into() };
        let me = OwnerRecord::of_thread(&job, 0, 0, above(None, ms));
        let (key, value) = (record::owner_key(&me.id), Some(record::owner_value(&me)));
        admin.append(&[PlainMessage { to: at("checkpoints", partition), key, value }]).expect("appended");
    };
    let newest = || {
        let found = newest_owner(&*admin, &[at("checkpoints", 0), at("checkpoints", 1)]).expect("read");
        found.map(|owner| owner.incarnation)
    };
    assert_eq!(newest(), None);
    [(0, 7_000), (1, 9_000), (0, 8_000)].into_iter().for_each(|(partition, ms)| owner(partition, ms));
    assert!(above(newest(), 6_000) > above(None, 9_000));
    assert_eq!(above(newest(), 10_000), above(None, 10_000));
}

#[test]
fn a_folder_has_one_user_and_can_be_forgotten() {
    let stage = Stage::new();
    let (state, project) = (stage.folder.path().join("state"), stage.folder.path().to_owned());
    stage.make_topics();
    stage.write("out.jsonl", "\"before\"\n");
    let mut producer = stage.transactional();
    producer.begin().expect("begun");
    let out = producer.topic("out.jsonl").expect("a file");
    producer.send(&ProducerRecord::new(out, None, Some(b"1"))).expect("sent");
    producer.commit(NOW).expect("committed");
    drop(producer);
    let error = Home::open(&state, &project).err().expect("in use").to_string();
    assert!(error.contains("in use by another process") && error.contains("process "), "{error}");
    assert!(Home::forget(&state, &project).is_err(), "it is in use");
    let Stage { folder, system } = stage;
    drop(system);
    fs::create_dir_all(state.join("stores/Partition-0")).expect("a folder");
    Home::forget(&state, &project).expect("forgotten");
    assert!(!state.join("stores").exists());
    let files = files(folder.path());
    let stage = Stage::with(folder, files);
    assert_eq!(stage.read("out.jsonl"), "\"before\"\n", "what the job wrote is taken back");
    assert!(stage.system.admin().describe(&["changelog".to_owned()]).expect("described").is_empty());
}

#[test]
fn a_stream_without_a_file_is_told_how_to_get_one() {
    let folder = folder();
    let files = Files { only: Some(["in".to_owned()].into()), ..files(folder.path()) };
    assert_eq!(files.place("-"), Ok(Place::Stdio));
    assert_eq!(files.place("in"), Ok(Place::At(folder.path().join("in"))));
    assert!(files.place("out").expect_err("no file").to_string().contains("--output"));
    assert_eq!(files.written_shape("out"), Shape::default());
}
