//! The crash harness: containers that kill themselves at every named point of start, restore, process and commit, or
//! are killed at random, again and again; whatever each found when it started, and all that is there at the end, must
//! be what the model says.
//!
//! Each point is hit SAMZA_CRASH_ROUNDS times in each delivery mode (2, and 10 in `make soak`); a table tells.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use kafka::KafkaProducer;
use rustix::process::Signal;
use task_api::system::{ProducerRecord, SystemProducer, TransactionalProducer};
use types::Delivery;

use crate::PATIENCE;
use crate::brokers::Brokers;
use crate::container::Container;
use crate::tally::{Tally, wipe};

/// Before the first message: of the start order, and of the restore.
const OF_START: [&str; 11] = [
    "init",
    "read",
    "append",
    "read-back",
    "fence",
    "tombstone",
    "watermarks",
    "wait-stable",
    "restore",
    "restore-chunk",
    "run",
];
/// Of a commit.
const OF_COMMIT: [&str; 10] = [
    "outputs-flushed",
    "begun",
    "drained",
    "checkpointed",
    "ends-read",
    "commit",
    "committed",
    "rows-written",
    "offsets-written",
    "flushed",
];

struct Harness {
    tally: Tally,
    hits: BTreeMap<&'static str, u32>,
}

impl Harness {
    /// The folder of the next container's state: most often the last one's; sometimes that, emptied, or one that was
    /// left some containers ago.
    fn state(&mut self) -> &'static str {
        match self.tally.random(10) {
            0 => wipe(&self.tally.job.folder.path().join("state")),
            1 => return "older-state",
            _ => {}
        }
        "state"
    }

    /// With few rows in the cache commits are many, and each is followed by a flush of the store; with many rows and
    /// a long interval there is one commit, when the container is told to stop.
    fn commit_often(&mut self, often: bool) {
        let spec = &mut self.tally.job.spec;
        (spec.task.commit_ms, spec.stores.get_mut("counts").expect("the store").cache_rows) =
            if often { (20, 50) } else { (60_000, 100_000) };
    }

    fn start(&mut self, state: &str, point: &str, visit: u64) -> Container {
        self.tally.start(state, &[("SAMZA_TEST_CRASH_AT", &format!("{point}:{visit}"))])
    }

    /// Waits until the container has killed itself where it was told to.
    fn count(&mut self, mut container: Container, point: &'static str) {
        let status = container.ended();
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        assert!(killed, "armed with {point}, it ended otherwise: {status}\n{}", container.log());
        *self.hits.entry(point).or_default() += 1;
    }

    fn crash_at_start(&mut self, point: &'static str) {
        self.tally.feed(100);
        self.commit_often(true);
        let state = self.state();
        let mut foreign = None;
        match point {
            // Something to wait for: a transaction of somebody else that is open below the watermarks.
            "wait-stable" => foreign = Some(self.open_a_transaction()),
            // Something to read: there is no state, and then there is half of it.
            "restore-chunk" => {
                wipe(&self.tally.job.folder.path().join(state));
                let empty = self.start(state, point, 1);
                self.count(empty, point);
            }
            _ => {}
        }
        let container = self.start(state, point, 1);
        self.count(container, point);
        if let Some(mut foreign) = foreign {
            foreign.abort(PATIENCE).expect("aborts");
        }
    }

    fn open_a_transaction(&self) -> KafkaProducer {
        let (job, id) =
            (&self.tally.job, format!("{}-foreign-{}", self.tally.job.spec.job.name, self.tally.seq));
        let mut producer =
            KafkaProducer::transactional(&job.brokers.bootstrap, &id, &BTreeMap::new()).expect("a producer");
        producer.init(PATIENCE).expect("a new id");
        producer.begin().expect("begins");
        let topic = producer.topic(&job.topic("changelog")).expect("a topic");
        producer.send(&ProducerRecord::new(topic, Some(b"foreign"), Some(b"foreign!")).to(0)).expect("sends");
        producer.flush(PATIENCE).expect("flushes");
        producer
    }

    fn crash_in_process(&mut self) {
        self.tally.feed(600);
        self.commit_often(true);
        let (state, visit) = (self.state(), 1 + self.tally.random(600));
        let container = self.start(state, "process", visit);
        self.count(container, "process");
    }

    fn crash_in_a_commit_of_many(&mut self, point: &'static str) {
        self.tally.feed(600);
        self.commit_often(true);
        // Positions are only written with what is made durable: every few seconds, and at the end.
        let is_rare = ["ends-read", "offsets-written"].contains(&point);
        let visit = if is_rare { 1 } else { 1 + self.tally.random(3) };
        let state = self.state();
        let container = self.start(state, point, visit);
        if is_rare {
            self.tally.master.wait(&container, "processing", |status| status.processed > 0);
            container.signal(Signal::TERM);
        }
        self.count(container, point);
    }

    fn crash_in_the_last_commit(&mut self, point: &'static str) {
        self.tally.feed(600);
        self.commit_often(false);
        let state = self.state();
        let container = self.start(state, point, 1);
        self.tally.master.wait(&container, "processing", |status| status.processed > 0);
        container.signal(Signal::TERM);
        self.count(container, point);
    }

    fn kill_at_random(&mut self) {
        self.tally.feed(1_000);
        let often = self.tally.random(2) == 0;
        self.commit_often(often);
        let state = self.state();
        let container = self.tally.start(state, &[]);
        std::thread::sleep(Duration::from_millis(self.tally.random(1_200)));
        container.kill();
        *self.hits.entry("at random").or_default() += 1;
    }

    fn print(&self, mode: &str) {
        println!("crashes, {mode}:");
        for (point, hits) in &self.hits {
            println!("  {point:<16} {hits:>4}");
        }
    }
}

fn rounds() -> u32 {
    let set = std::env::var("SAMZA_CRASH_ROUNDS").ok().map(|text| text.parse().expect("a number"));
    set.unwrap_or(if std::env::var_os("SAMZA_SOAK_MINUTES").is_some() { 10 } else { 2 })
}

fn crash_everywhere(name: &str, delivery: Delivery) {
    let tally = Tally::new(name, delivery, Brokers::shared(), 1);
    let mut harness = Harness { tally, hits: BTreeMap::new() };
    harness.tally.feed_every_key();
    // The first has nobody to fence and nothing to restore.
    let mut first = harness.tally.start("state", &[]);
    harness.tally.await_checkpoints(&mut first);
    first.kill();
    let of_commit = OF_COMMIT;
    for round in 0..rounds() {
        OF_START.into_iter().for_each(|point| harness.crash_at_start(point));
        harness.crash_in_process();
        for (at, point) in of_commit.iter().enumerate() {
            if (at as u32 + round).is_multiple_of(2) {
                harness.crash_in_a_commit_of_many(point);
            } else {
                harness.crash_in_the_last_commit(point);
            }
            if at % 4 == 0 {
                harness.kill_at_random();
            }
        }
    }
    harness.print(name);
    harness.commit_often(true);
    harness.tally.finish("state");
}

#[test]
fn exactly_once_is_exact_after_a_crash_at_every_point() {
    crash_everywhere("crash-exactly-once", Delivery::ExactlyOnce);
}

#[test]
fn at_least_once_keeps_exact_state_and_loses_no_output_after_a_crash_at_every_point() {
    crash_everywhere("crash-at-least-once", Delivery::AtLeastOnce);
}
