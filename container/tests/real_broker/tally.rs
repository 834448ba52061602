//! The job of the example `tally` beside its model: what was fed says what the store, the changelog and the outputs
//! must be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::KafkaProducer;
use rustix::process::Signal;
use task_api::system::{ProducerRecord, SystemProducer};
use types::Delivery;

use crate::PATIENCE;
use crate::books::Counts;
use crate::brokers::Brokers;
use crate::container::{Container, is_running};
use crate::job::{Job, PARTITIONS};
use crate::master::Master;

/// More than a restore puts into one batch, so that it makes files.
const KEYS: u64 = 12_000;

/// By key, what is sent: offset and count.
type Sent = BTreeMap<String, Vec<(u64, i64)>>;

/// A job of tallies.
pub struct Tally {
    pub job: Job,
    pub master: Master,
    pub seq: u64,
    random: Random,
    /// What each partition was fed: key, whether it is dropped.
    fed: Vec<Vec<(String, bool)>>,
}

impl Tally {
    pub fn new(name: &str, delivery: Delivery, brokers: Arc<Brokers>, replication: u16) -> Tally {
        let mut job = Job::new("tally", name, delivery, brokers, replication);
        job.spec.task.config.insert("dump".into(), "true".into());
        let fed = vec![Vec::new(); PARTITIONS as usize];
        Tally { job, master: Master::start(), seq: 0, random: Random(7), fed }
    }

    /// The next incarnation.
    pub fn start(&mut self, state: &str, more: &[(&str, &str)]) -> Container {
        self.seq += 1;
        Container::start(&self.job, &self.master, self.seq, state, more)
    }

    /// A random number below `end`.
    pub fn random(&mut self, end: u64) -> u64 {
        self.random.below(end)
    }

    /// Feeds each key once.
    pub fn feed_every_key(&mut self) {
        self.append((0..KEYS).map(|key| (key, false)).collect());
    }

    /// Feeds so many messages, a tenth of them drops.
    pub fn feed(&mut self, count: usize) {
        let messages = (0..count).map(|_| (self.random.below(KEYS), self.random.below(10) == 0)).collect();
        self.append(messages);
    }

    fn append(&mut self, messages: Vec<(u64, bool)>) {
        let bootstrap = &self.job.brokers.bootstrap;
        let mut producer =
            KafkaProducer::idempotent(bootstrap, "feed", &BTreeMap::new()).expect("a producer");
        let topic = producer.topic(&self.job.topic("in")).expect("a topic");
        for (key, drop) in messages {
            let (partition, key) = (key % PARTITIONS as u64, format!("k{key:05}"));
            let value: &[u8] = if drop { b"drop" } else { b"add" };
            producer
                .send(&ProducerRecord::new(topic, Some(key.as_bytes()), Some(value)).to(partition as i32))
                .expect("sends");
            self.fed[partition as usize].push((key, drop));
        }
        producer.flush(PATIENCE).expect("flushes");
    }

    /// Waits until all that was fed is in committed checkpoints.
    pub fn await_checkpoints(&self, container: &mut Container) {
        let start = Instant::now();
        while !self.is_at_end() {
            let over = container.is_over();
            assert!(
                !over && start.elapsed() < PATIENCE,
                "not at the end (over: {over}):\n{}",
                container.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn is_at_end(&self) -> bool {
        (0..PARTITIONS).all(|partition| {
            let checkpoints = self.job.committed_checkpoints(partition);
            position(checkpoints.last().map(|(_, checkpoint)| checkpoint), partition)
                == self.fed[partition as usize].len()
        })
    }

    /// Lets a container without faults come to the end and stop; two more then show what is in its folder, and what
    /// a restore into an empty one brings.
    pub fn finish(&mut self, state: &str) {
        let mut last = self.start(state, &[]);
        // All may be committed already: before it runs, a signal would end it as it ends any program.
        self.master.wait(&last, "running", is_running);
        self.await_checkpoints(&mut last);
        last.signal(Signal::TERM);
        assert_eq!(last.exit_code(), 143);
        for folder in [state, "empty"] {
            let shown = self.start(folder, &[]);
            let status = self.master.wait(&shown, "running", is_running);
            for task in &status.tasks {
                let restore = task.restore.as_ref().expect("it has a store");
                assert_eq!(restore.from_local, folder == state, "{folder}: {restore:?}");
            }
            shown.signal(Signal::TERM);
            assert_eq!(shown.exit_code(), 143);
            for partition in 0..PARTITIONS {
                let dump = dump(&self.job, self.seq, partition).expect("it was running");
                assert_eq!(dump, self.counts(partition, usize::MAX), "{folder}, partition {partition}");
            }
        }
        self.assert_exact();
    }

    /// Asserts that everything is as the model says.
    fn assert_exact(&self) {
        self.assert_changelog();
        self.assert_outputs();
        self.assert_every_restore();
        self.job.assert_no_late_commits();
    }

    fn assert_changelog(&self) {
        for partition in 0..PARTITIONS {
            let mut folded = Counts::new();
            for (_, key, value) in self.job.rows(&self.job.topic("changelog"), partition) {
                match value {
                    Some(value) => {
                        let count = i64::from_be_bytes(value.try_into().expect("eight bytes"));
                        folded.insert(text(key), count);
                    }
                    None => drop(folded.remove(&text(key))),
                }
            }
            assert_eq!(folded, self.counts(partition, usize::MAX), "changelog of partition {partition}");
        }
    }

    fn assert_outputs(&self) {
        let mut sent = Sent::new();
        for (_, key, value) in (0..PARTITIONS).flat_map(|p| self.job.rows(&self.job.topic("out"), p)) {
            let value = text(value.expect("a value"));
            let (offset, count) = value.split_once(' ').expect("two words");
            let pair = (offset.parse().expect("an offset"), count.parse().expect("a count"));
            sent.entry(text(key)).or_default().push(pair);
        }
        if self.job.spec.task.delivery == Delivery::AtLeastOnce {
            for pairs in sent.values_mut() {
                let mut seen = BTreeSet::new();
                pairs.retain(|pair| seen.insert(*pair));
            }
        }
        let expected = self.outputs();
        for (key, pairs) in &expected {
            assert_eq!(sent.get(key), Some(pairs), "outputs of {key}");
        }
        assert_eq!(sent.len(), expected.len());
    }

    /// Every container that came to run began with the fold of the input up to the checkpoint before it.
    fn assert_every_restore(&self) {
        for partition in 0..PARTITIONS {
            let checkpoints = self.job.committed_checkpoints(partition);
            for seq in 1..=self.seq {
                let Some(dump) = dump(&self.job, seq, partition) else { continue };
                let before = checkpoints.iter().rev().find(|(_, of)| of.incarnation.seq < seq);
                let fed = position(before.map(|(_, checkpoint)| checkpoint), partition);
                assert_eq!(dump, self.counts(partition, fed), "restore of {seq}, partition {partition}");
            }
        }
    }

    /// The model's store after the first `fed` messages of `partition`.
    fn counts(&self, partition: i32, fed: usize) -> Counts {
        let mut counts = Counts::new();
        for (key, drop) in self.fed[partition as usize].iter().take(fed) {
            if *drop {
                counts.remove(key);
            } else {
                *counts.entry(key.clone()).or_default() += 1;
            }
        }
        counts
    }

    fn outputs(&self) -> Sent {
        let mut sent = Sent::new();
        for messages in &self.fed {
            let mut counts = Counts::new();
            for (offset, (key, drop)) in messages.iter().enumerate() {
                let count = counts.entry(key.clone()).or_default();
                *count = if *drop { 0 } else { *count + 1 };
                sent.entry(key.clone()).or_default().push((offset as u64, *count));
            }
        }
        sent
    }
}

/// What the task of `partition` found in its store when incarnation `seq` started; none if it never did.
pub fn dump(job: &Job, seq: u64, partition: i32) -> Option<Counts> {
    let folder = job.folder.path().join(format!("container_1_{seq:06}"));
    let dump = std::fs::read_to_string(folder.join(format!("Partition {partition}.dump"))).ok()?;
    let row = |line: &str| {
        let (key, count) = line.split_once(' ').expect("two words");
        (key.to_owned(), count.parse().expect("a count"))
    };
    Some(dump.lines().map(row).collect())
}

/// Removes a folder with state.
pub fn wipe(state: &Path) {
    match std::fs::remove_dir_all(state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", state.display()),
        _ => {}
    }
}

/// The first offset of `partition` that is not processed.
fn position(checkpoint: Option<&task_core::record::Checkpoint>, partition: i32) -> usize {
    let offset = checkpoint.and_then(|checkpoint| checkpoint.offset("kafka.in", partition));
    offset.map_or(0, |offset| offset.parse().expect("Kafka's are numbers"))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

/// Numbers that are the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}
