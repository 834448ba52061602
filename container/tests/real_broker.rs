//! Job processes against a real Kafka, with a master that is played by the test: SIGKILL at any moment and at every
//! named point ([`crash`]), brokers and disks that fail ([`faults`]) or lose what they had ([`elections`]), SIGTERM, and old containers that stop at each
//! step of their start and wake up after a successor.

#[path = "real_broker/books.rs"]
mod books;
#[path = "real_broker/brokers.rs"]
mod brokers;
#[path = "../../tests/src/built.rs"]
mod built;
#[path = "real_broker/container.rs"]
mod container;
#[path = "real_broker/crash.rs"]
mod crash;
#[path = "real_broker/elections.rs"]
mod elections;
#[path = "real_broker/faults.rs"]
mod faults;
#[path = "real_broker/gone.rs"]
mod gone;
#[path = "real_broker/job.rs"]
mod job;
#[path = "real_broker/limits.rs"]
mod limits;
#[path = "real_broker/many.rs"]
mod many;
#[path = "real_broker/master.rs"]
mod master;
#[path = "real_broker/metrics.rs"]
mod metrics;
#[path = "real_broker/operator.rs"]
mod operator;
#[path = "real_broker/priorities.rs"]
mod priorities;
#[path = "real_broker/proxy.rs"]
mod proxy;
#[path = "real_broker/reading.rs"]
mod reading;
#[path = "real_broker/storm.rs"]
mod storm;
#[path = "real_broker/tally.rs"]
mod tally;
#[path = "real_broker/time.rs"]
mod time;
#[path = "real_broker/topics.rs"]
mod topics;
#[path = "real_broker/unclean.rs"]
mod unclean;
#[path = "real_broker/weather.rs"]
mod weather;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use brokers::Brokers;
use container::{Container, is_running};
use job::{Job, PARTITIONS};
use kafka::KafkaProducer;
use master::Master;
use rustix::process::Signal;
use task_api::system::{ProducerRecord, SystemProducer};
use task_core::record::{self, Checkpoint};
use types::Delivery;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

// ---------------------------------------------------------------- a job that counts

type Pairs = Vec<(String, String)>;

fn counter(name: &str, delivery: Delivery) -> Job {
    Job::new("counter", name, delivery, Brokers::shared(), 1)
}

impl Job {
    /// Appends `count` messages with a few hundred keys.
    fn feed(&self, from: usize, count: usize) {
        let mut producer =
            KafkaProducer::idempotent(&self.brokers.bootstrap, "feed", &BTreeMap::new()).expect("a producer");
        let topic = producer.topic(&self.topic("in")).expect("a topic");
        for n in from..from + count {
            let key = format!("k{}", (n * n + n / 3) % 307);
            producer
                .send(&ProducerRecord::new(topic, Some(key.as_bytes()), Some(b"x")).to(n as i32 % PARTITIONS))
                .expect("sends");
        }
        producer.flush(PATIENCE).expect("flushes");
    }

    fn texts(&self, topic: &str) -> Pairs {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (0..PARTITIONS)
            .flat_map(|partition| self.rows(topic, partition))
            .map(|(_, key, value)| (text(key), text(value.unwrap_or_default())))
            .collect()
    }

    /// What the job must have sent: per task, each key's counts in order. A key goes to one output partition, but
    /// both tasks may count it, so rows are compared sorted.
    fn expected(&self) -> Pairs {
        let mut rows = Pairs::new();
        for partition in 0..PARTITIONS {
            let mut counts: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            for (_, key, _) in self.rows(&self.topic("in"), partition) {
                let count = counts.entry(key.clone()).or_default();
                *count += 1;
                rows.push((String::from_utf8(key).expect("text"), count.to_string()));
            }
        }
        rows.sort();
        rows
    }

    fn outputs(&self) -> Pairs {
        let mut rows = self.texts(&self.topic("out"));
        rows.sort();
        rows
    }

    fn wait_for_outputs(&self, enough: usize) {
        let start = Instant::now();
        while self.outputs().len() < enough {
            assert!(
                start.elapsed() < PATIENCE,
                "{} of {enough} outputs after a minute",
                self.outputs().len()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn assert_exact(&self) {
        assert_eq!(self.outputs(), self.expected());
        self.assert_changelog();
        self.assert_no_late_commits();
    }

    /// Appends rows to partition 0 of the changelog, as if a job had come so far.
    fn fill_changelog(&self, rows: u64, value: impl Fn(u64) -> Vec<u8>) {
        let mut producer =
            KafkaProducer::idempotent(&self.brokers.bootstrap, "feed", &BTreeMap::new()).expect("a producer");
        let topic = producer.topic(&self.topic("changelog")).expect("a topic");
        for n in 0..rows {
            let key = format!("k{}", n * 7_919 % rows);
            let value = value(n);
            let record = ProducerRecord::new(topic, Some(key.as_bytes()), Some(&value)).to(0);
            producer.send(&record).expect("sends");
        }
        let topic = producer.topic(&self.checkpoints()).expect("a topic");
        for partition in 0..PARTITIONS {
            let key = record::checkpoint_key(&format!("Partition {partition}").as_str().into());
            let value = record::checkpoint_value(&Checkpoint::default());
            producer
                .send(&ProducerRecord::new(topic, Some(&key), Some(&value)).to(partition))
                .expect("sends");
        }
        producer.flush(PATIENCE).expect("flushes");
    }

    fn assert_changelog(&self) {
        for partition in 0..PARTITIONS {
            let mut counts: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
            for (_, key, _) in self.rows(&self.topic("in"), partition) {
                *counts.entry(key).or_default() += 1;
            }
            let mut folded = BTreeMap::new();
            for (_, key, value) in self.rows(&self.topic("changelog"), partition) {
                let value = value.expect("nothing is deleted").try_into().expect("eight bytes");
                folded.insert(key, i64::from_be_bytes(value));
            }
            assert_eq!(folded, counts, "changelog of partition {partition}");
        }
    }
}

// ---------------------------------------------------------------- tests

#[test]
fn a_container_that_slept_while_it_was_replaced_leaves_no_position_of_rows_it_has_not() {
    let (job, master) = (counter("slept", Delivery::ExactlyOnce), Master::start());
    job.feed(0, 1_000);
    let old = Container::start(&job, &master, 1, "old", &[]);
    job.wait_for_outputs(1_000);
    // What it had to do is committed, and most likely not yet on its disk.
    old.signal(Signal::STOP);
    job.feed(1_000, 1_000);
    let new = Container::start(&job, &master, 2, "new", &[]);
    job.wait_for_outputs(2_000);
    new.signal(Signal::TERM);
    assert_eq!(new.exit_code(), 143);
    // It wakes up to be stopped, and has nothing to commit.
    old.signal(Signal::TERM);
    old.signal(Signal::CONT);
    old.exit_code();
    job.feed(2_000, 1_000);
    let back = Container::start(&job, &master, 3, "old", &[]);
    job.wait_for_outputs(3_000);
    back.signal(Signal::TERM);
    assert_eq!(back.exit_code(), 143);
    job.assert_exact();
}

#[test]
fn a_restore_that_is_killed_goes_on_where_it_was() {
    let (job, master) = (counter("restore", Delivery::ExactlyOnce), Master::start());
    // Some 12 MB in chunks of little more than one.
    let rows = 12_000;
    job.fill_changelog(rows, |_| vec![7; 1_000]);
    let memory = ("SAMZA_MEMORY_BYTES", (44u64 << 20).to_string());
    let crash = ("SAMZA_TEST_CRASH_AT", "restore-chunk:5");
    let mut first = Container::start(&job, &master, 1, "state", &[(memory.0, &memory.1), crash]);
    assert!(first.ended().code().is_none(), "it was killed:\n{}", first.log());
    let second = Container::start(&job, &master, 2, "state", &[(memory.0, &memory.1)]);
    let status = master.wait(&second, "running", is_running);
    let restore = status.tasks[0].restore.clone().expect("it has a store");
    assert!(restore.from_local && restore.rows < rows * 2 / 3, "{restore:?}");
    second.signal(Signal::TERM);
    assert_eq!(second.exit_code(), 143);
}

#[test]
fn exactly_once_is_exact_when_the_process_is_killed_again_and_again() {
    let (job, master) = (counter("kills", Delivery::ExactlyOnce), Master::start());
    let mut seq = 0;
    for round in 0..5 {
        job.feed(round * 4_000, 4_000);
        seq += 1;
        let container = Container::start(&job, &master, seq, "state", &[]);
        master.wait(&container, "processing", |status| status.processed > 500);
        // At another point of the commit interval each time.
        std::thread::sleep(Duration::from_millis(37 * round as u64));
        container.kill();
    }
    seq += 1;
    let last = Container::start(&job, &master, seq, "state", &[]);
    job.wait_for_outputs(20_000);
    last.signal(Signal::TERM);
    assert_eq!(last.exit_code(), 143);
    job.assert_exact();
}

#[test]
fn sigterm_commits_and_the_restart_reads_nothing_again() {
    let (job, master) = (counter("term", Delivery::AtLeastOnce), Master::start());
    job.feed(0, 5_000);
    let first = Container::start(&job, &master, 1, "state", &[]);
    master.wait(&first, "done", |status| status.processed == 5_000);
    first.signal(Signal::TERM);
    assert_eq!(first.exit_code(), 143);
    let second = Container::start(&job, &master, 2, "state", &[]);
    let status = master.wait(&second, "running", is_running);
    for task in &status.tasks {
        let restore = task.restore.as_ref().expect("it has a store");
        assert!(restore.from_local && restore.rows == 0, "{restore:?}");
    }
    job.feed(5_000, 100);
    let status = master.wait(&second, "at the end", |status| status.processed >= 100);
    assert_eq!(status.processed, 100);
    second.signal(Signal::TERM);
    assert_eq!(second.exit_code(), 143);
    job.assert_exact();
    // Elsewhere, the whole changelog is read.
    let third = Container::start(&job, &master, 3, "another-state", &[]);
    let status = master.wait(&third, "running", is_running);
    for task in &status.tasks {
        let restore = task.restore.as_ref().expect("it has a store");
        assert!(!restore.from_local && restore.rows > 0 && restore.done == restore.total, "{restore:?}");
    }
    third.signal(Signal::TERM);
    assert_eq!(third.exit_code(), 143);
}

/// Where an old container may fall asleep: before each step of its start order, and on both sides of a commit.
const STEPS: [&str; 11] = [
    "init",
    "read",
    "append",
    "read-back",
    "fence",
    "tombstone",
    "watermarks",
    "restore",
    "run",
    "commit",
    "committed",
];

/// In each round an old container falls asleep at a step, a new one takes over in `new_slot`, and the old one wakes.
fn sleepers_wake_up_fenced(name: &str, new_slot: &str) {
    let (job, master) = (counter(name, Delivery::ExactlyOnce), Master::start());
    let mut fed = 0;
    let mut seq = 0;
    // There is an older owner to be fenced from the first round on.
    let first = Container::start(&job, &master, 1, "state", &[]);
    master.wait(&first, "running", is_running);
    first.kill();
    for phase in STEPS {
        job.feed(fed, 1_000);
        fed += 1_000;
        let pause = [("SAMZA_TEST_PAUSE_AT", phase)];
        let mut old = Container::start(&job, &master, seq + 2, &format!("old-{phase}"), &pause);
        old.wait_until_stopped();
        let new = Container::start(&job, &master, seq + 3, "state", &[("SAMZA_SLOT", new_slot)]);
        master.wait(&new, "running", is_running);
        job.wait_for_outputs(fed);
        old.signal(Signal::CONT);
        // Past its start order it learns of its fate when it has something to commit: what comes after it has read
        // where the new one is.
        let woken = Instant::now();
        while !old.is_over() && woken.elapsed() < PATIENCE {
            job.feed(fed, 20);
            fed += 20;
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = old.log.clone();
        let code = old.exit_code();
        let log = std::fs::read_to_string(log).unwrap_or_default();
        assert_eq!(code, types::EXIT_FENCED, "paused at {phase}:\n{log}");
        job.wait_for_outputs(fed);
        new.signal(Signal::TERM);
        assert_eq!(new.exit_code(), 143);
        seq += 2;
    }
    job.assert_exact();
}

#[test]
fn an_old_container_that_sleeps_at_any_step_wakes_up_fenced_or_leaves_no_trace() {
    sleepers_wake_up_fenced("sleepers", "0");
}

#[test]
fn tasks_that_moved_to_another_slot_are_safe_from_their_old_owner() {
    sleepers_wake_up_fenced("moved", "1");
}
