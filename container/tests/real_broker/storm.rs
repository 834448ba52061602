//! Storms: one job with two systems, priorities, and tasks that are asynchronous at one start and not at the next, while
//! everything that befalls clusters befalls it, in an order that a seed chooses ([`crate::weather`]). At the end the exact
//! fold of the committed inputs is compared with the state, the changelog and the outputs.
//!
//! The seed is printed; `SAMZA_STORM_SEED` gives it again. What a seed does not choose is when things happen. A fault that
//! was not really hit fails the test. In `make soak` the second system is a broker of its own, and there are more seeds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::KafkaProducer;
use rustix::process::Signal;
use task_api::system::{Isolation, Message, ProducerRecord, SystemAdmin, SystemProducer, TopicPartition};
use task_core::record::{self, Checkpoint, Record};
use types::{Delivery, StreamSpec};

use crate::PATIENCE;
use crate::books::{self, Account};
use crate::brokers::Brokers;
use crate::container::{Container, is_running};
use crate::job::{Job, PARTITIONS, patiently};
use crate::master::Master;
use crate::operator::Operator;
use crate::tally::Random;
use crate::weather::{self, Fault};

/// Keys of each input.
const KEYS: u64 = 1_500;
/// The stream of lower priority, and that of higher.
pub const STREAMS: [&str; 2] = ["kafka.in", "second.urgent"];

/// A job in a storm.
pub struct Storm {
    pub job: Job,
    pub master: Master,
    pub random: Random,
    seed: u64,
    /// Of the systems, by input.
    pub operators: [Operator; 2],
    bootstraps: [String; 2],
    pub accounts: [Account; 2],
    /// Idempotent producers of the inputs.
    feeders: [Option<KafkaProducer>; 2],
    /// The last message's.
    id: u64,
    /// The last container's.
    pub seq: u64,
    pub container: Option<Container>,
    /// The folder of its state.
    pub state: String,
    /// By partition: offset, and what was read of the checkpoint topic up to now.
    checkpoints: Vec<(u64, Vec<Checkpoint>)>,
    /// Transactions that producers of inputs have open, to be committed.
    pub open: Vec<KafkaProducer>,
    faults: Vec<&'static str>,
    pub hits: BTreeMap<&'static str, u32>,
    _second: Arc<Brokers>,
}

impl Storm {
    fn new(name: &str, delivery: Delivery, seed: u64) -> Storm {
        let brokers = Brokers::shared();
        let second = if weather::is_soak() { Brokers::own(&[]) } else { Arc::clone(&brokers) };
        let mut job = Job::new("tally", &format!("{name}-{seed}"), delivery, Arc::clone(&brokers), 1);
        let bootstraps = [brokers.bootstrap.clone(), second.bootstrap.clone()];
        let operators = [Operator::of(&bootstraps[0]), Operator::of(&bootstraps[1])];
        let topics = [job.topic("in"), job.topic("urgent")];
        for topic in [&topics[1], &job.topic("copy")] {
            operators[1].admin.create(&[weather::plain_topic(topic)]).expect("made");
        }
        let kafka = job.spec.systems["kafka"].clone();
        job.spec
            .systems
            .insert("second".into(), types::SystemSpec { bootstrap: bootstraps[1].clone(), ..kafka });
        let urgent = StreamSpec { priority: 1, ..StreamSpec::default_for(&topics[1]) };
        job.spec.streams.insert(STREAMS[1].into(), urgent);
        job.spec.streams.insert("second.copy".into(), StreamSpec::default_for(&job.topic("copy")));
        job.spec.task.inputs = STREAMS.map(str::to_owned).to_vec();
        job.spec.task.config.extend([("copy".into(), "second.copy".into()), ("dump".into(), "yes".into())]);
        let account = |n: usize| {
            let id = operators[n].id(&topics[n]).expect("it was made");
            Account::new(STREAMS[n], topics[n].clone(), id)
        };
        let accounts = [account(0), account(1)];
        Storm {
            master: Master::of(&job.spec.task.inputs),
            job,
            random: Random(seed),
            seed,
            operators,
            bootstraps,
            accounts,
            feeders: [None, None],
            id: 0,
            seq: 0,
            container: None,
            state: "state".into(),
            checkpoints: vec![(0, Vec::new()); PARTITIONS as usize],
            open: Vec::new(),
            faults: Vec::new(),
            hits: BTreeMap::new(),
            _second: second,
        }
    }

    pub fn hit(&mut self, fault: &'static str) {
        *self.hits.entry(fault).or_default() += 1;
    }

    // ------------------------------------------------------------ inputs

    /// A transactional producer of an input, with a name that was not used before.
    pub fn transactional(&mut self, input: usize, timeout_ms: &str) -> KafkaProducer {
        self.id += 1;
        let id = format!("{}-upstream-{}", self.job.spec.job.name, self.id);
        let settings = BTreeMap::from([("transaction.timeout.ms".to_owned(), timeout_ms.to_owned())]);
        KafkaProducer::transactional(&self.bootstraps[input], &id, &settings).expect("a producer")
    }

    /// Appends `count` messages, a tenth of them drops, to this partition of this input; any if none is given.
    pub fn send(&mut self, producer: &mut KafkaProducer, input: usize, to: Option<i32>, count: u64) {
        let topic = producer.topic(&self.accounts[input].topic).expect("a topic");
        for _ in 0..count {
            self.id += 1;
            let partition = to.unwrap_or_else(|| self.random.below(PARTITIONS as u64) as i32);
            // A key belongs to one partition of one input.
            let number = self.random.below(KEYS / 2) * 2 + partition as u64;
            let key = format!("{}{number:04}", ["k", "u"][input]);
            let word = if self.random.below(10) == 0 { "drop" } else { "add" };
            let value = format!("{word} {}", self.id);
            let record = ProducerRecord::new(topic, Some(key.as_bytes()), Some(value.as_bytes()));
            producer.send(&record.to(partition)).expect("sends");
        }
        producer.flush(PATIENCE).expect("flushes");
    }

    /// Appends so many messages to each input.
    pub fn feed(&mut self, count: u64) {
        for input in 0..2 {
            let bootstrap = &self.bootstraps[input];
            let new = || KafkaProducer::idempotent(bootstrap, "feed", &BTreeMap::new()).expect("a producer");
            let mut producer = self.feeders[input].take().unwrap_or_else(new);
            self.send(&mut producer, input, None, count);
            self.feeders[input] = Some(producer);
        }
    }

    /// The topic of an input is another one now.
    pub fn begin_again(&mut self, input: usize, id: String) {
        self.accounts[input].begin(id);
        self.feeders[input] = None;
    }

    // ------------------------------------------------------------ containers

    /// The next incarnation.
    pub fn start(&mut self, more: &[(&str, &str)]) -> Container {
        self.seq += 1;
        let mut environment = more.to_vec();
        environment.extend((self.random.below(2) == 0).then_some(("TALLY_WAITS", "yes")));
        Container::start(&self.job, &self.master, self.seq, &self.state, &environment)
    }

    /// The next incarnation becomes the one that works.
    pub fn go_on(&mut self) {
        let container = self.start(&[]);
        self.master.wait(&container, "running", is_running);
        self.container = Some(container);
    }

    pub fn take(&mut self) -> Container {
        self.container.take().expect("one works")
    }

    /// Stops the one that works, as somebody outside the cluster does.
    pub fn stop(&mut self) {
        let container = self.take();
        container.signal(Signal::TERM);
        assert_eq!(container.exit_code(), 143);
    }

    /// A start that ends with a cause in which these words are.
    pub fn refused(&mut self, words: &str) {
        let mut container = self.start(&[]);
        assert_end(&mut container, &[words]);
    }

    // ------------------------------------------------------------ progress

    /// The checkpoints of a partition's task up to now.
    pub fn checkpoints(&mut self, partition: i32) -> &[Checkpoint] {
        let at = TopicPartition { topic: self.job.checkpoints(), partition };
        let (_, stable, _) = self.operators[0].ends(&at.topic, partition);
        let (read_to, checkpoints) = &mut self.checkpoints[partition as usize];
        let (admin, known) = (&self.operators[0].admin, checkpoints.len());
        patiently(|| {
            checkpoints.truncate(known);
            let mut take = |messages: &[Message<'_>]| {
                let records = messages.iter().filter_map(|m| record::decode(m.key, m.value));
                checkpoints.extend(records.filter_map(|record| match record {
                    Record::Checkpoint(_, checkpoint) => Some(checkpoint),
                    Record::Owner(_) | Record::OwnerGone(_) => None,
                }));
                Ok(())
            };
            admin.read_range(&at, *read_to, stable, Isolation::ReadCommitted, &mut take)
        });
        *read_to = stable;
        &self.checkpoints[partition as usize].1
    }

    /// Enters in the books what was committed to inputs.
    pub fn read_inputs(&mut self) {
        self.accounts.iter_mut().zip(&self.operators).for_each(|(account, operator)| account.read(operator));
    }

    fn is_at_end(&mut self) -> bool {
        (0..PARTITIONS).all(|partition| {
            let last = self.checkpoints(partition).last().cloned();
            self.accounts.iter().all(|account| account.is_done(last.as_ref(), partition))
        })
    }

    /// Waits until all that can be read is processed and committed; one that ends meanwhile for one of these causes is
    /// followed by another.
    pub fn settle(&mut self, causes: &[&str]) {
        self.read_inputs();
        let start = Instant::now();
        while !self.is_at_end() {
            let container = self.container.as_mut().expect("one works");
            if container.is_over() {
                assert_end(container, causes);
                self.go_on();
            }
            let log = || self.container.as_ref().map(Container::log);
            assert!(
                start.elapsed() < 2 * PATIENCE,
                "it does not come to the end:\n{}",
                log().unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn weather(&mut self, mut faults: Vec<(&'static str, Fault)>) {
        self.feed(500);
        self.go_on();
        while !faults.is_empty() {
            let (name, fault) = faults.swap_remove(self.random.below(faults.len() as u64) as usize);
            println!("storm {}: {name}", self.job.spec.job.name);
            self.faults.push(name);
            self.feed(150);
            fault(self, name);
            self.feed(150);
            self.settle(weather::UNRELATED);
            if self.random.below(2) == 0 {
                weather::decide_one(self);
            }
        }
    }

    // ------------------------------------------------------------ the end

    fn finish(&mut self) {
        while weather::decide_one(self) {}
        weather::await_hanging(self);
        self.settle(weather::UNRELATED);
        self.stop();
        let state = self.state.clone();
        for folder in [&state, "empty"] {
            self.state = folder.to_owned();
            self.go_on();
            self.stop();
            for partition in 0..PARTITIONS {
                let found = self.dump(self.seq, partition).expect("it was running");
                let expected = books::counts(&self.accounts, partition, None);
                books::assert_same(
                    &found,
                    &expected,
                    &format!("{folder}: the store of partition {partition}"),
                );
            }
        }
        self.assert_starts();
        self.assert_changelog();
        self.assert_outputs();
    }

    /// Every container began with the fold of the inputs up to the checkpoint before it.
    fn assert_starts(&mut self) {
        for partition in 0..PARTITIONS {
            let checkpoints = self.checkpoints(partition).to_vec();
            for seq in 1..=self.seq {
                let Some(found) = self.dump(seq, partition) else { continue };
                let none = Checkpoint::default();
                let before = checkpoints.iter().rev().find(|of| of.incarnation.seq < seq).unwrap_or(&none);
                let expected = books::counts(&self.accounts, partition, Some(before));
                books::assert_same(
                    &found,
                    &expected,
                    &format!("the start of {seq} in partition {partition}"),
                );
            }
        }
    }

    fn dump(&self, seq: u64, partition: i32) -> Option<books::Counts> {
        crate::tally::dump(&self.job, seq, partition)
    }

    fn assert_changelog(&self) {
        for partition in 0..PARTITIONS {
            let mut folded = books::Counts::new();
            for (_, key, value) in self.job.rows(&self.job.topic("changelog"), partition) {
                let key = String::from_utf8(key).expect("text");
                match value {
                    Some(value) => {
                        folded.insert(key, i64::from_be_bytes(value.try_into().expect("eight bytes")));
                    }
                    None => drop(folded.remove(&key)),
                }
            }
            let expected = books::counts(&self.accounts, partition, None);
            books::assert_same(&folded, &expected, &format!("the changelog of partition {partition}"));
        }
    }

    fn assert_outputs(&self) {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let rows = |operator: &Operator, topic: &str| -> Vec<(String, String)> {
            let of = (0..PARTITIONS).flat_map(|p| crate::job::rows_of(&operator.admin, topic, p));
            of.map(|(_, key, value)| (text(key), text(value.unwrap_or_default()))).collect()
        };
        let expected = books::outputs(&self.accounts);
        let repeats = self.job.spec.task.delivery == Delivery::AtLeastOnce;
        let outputs = rows(&self.operators[0], &self.job.topic("out"));
        let mut outputs = books::sent(outputs.into_iter(), repeats);
        if repeats {
            // What shared a batch with what a changed `max.message.bytes` refuses is sent again, behind what came meanwhile.
            outputs.values_mut().for_each(|pairs| pairs.sort_unstable());
        }
        books::assert_same(&outputs, &expected, "what was sent");
        // On the second system in both modes.
        let copies = rows(&self.operators[1], &self.job.topic("copy"));
        let copies = books::sent(copies.into_iter(), true);
        books::assert_same(&copies, &expected, "what was sent to the second system");
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "storm {} failed with SAMZA_STORM_SEED={} after: {}",
                self.job.spec.job.name,
                self.seed,
                self.faults.join(", ")
            );
        }
    }
}

/// A container has ended, or does so now, because something failed, and says one of these causes.
pub fn assert_end(container: &mut Container, causes: &[&str]) {
    let code = container.ended().code();
    let log = container.log();
    let line = log.lines().rev().find(|line| {
        ["failed: ", "fenced: ", "transaction timeout: "].iter().any(|word| line.contains(word))
    });
    let is_known = line.is_some_and(|line| causes.iter().any(|cause| line.contains(cause)));
    assert!(is_known, "{code:?} for none of {causes:?}:\n{log}");
}

fn storm(name: &str, delivery: Delivery) {
    let given = std::env::var("SAMZA_STORM_SEED").ok().map(|text| text.parse().expect("a number"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let seed: u64 = given.unwrap_or(u64::from(now.subsec_micros()));
    let storms = if given.is_none() && weather::is_soak() { 4 } else { 1 };
    for seed in seed..seed + storms {
        println!("storm {name}: SAMZA_STORM_SEED={seed}");
        let start = Instant::now();
        let mut storm = Storm::new(name, delivery, seed);
        storm.weather(weather::FAULTS.to_vec());
        storm.finish();
        println!("storm {name}, seed {seed}, {} s:", start.elapsed().as_secs());
        for (fault, hits) in &storm.hits {
            println!("  {fault:<44} {hits:>4}");
        }
        let missed = |fault: &&str| !storm.hits.contains_key(fault);
        let faults = weather::FAULTS.iter().map(|(name, _)| *name);
        let missed: Vec<&str> = faults.filter(missed).collect();
        assert!(missed.is_empty(), "never hit: {missed:?}");
    }
}

#[test]
fn exactly_once_is_exact_in_a_storm() {
    storm("storm-exactly-once", Delivery::ExactlyOnce);
}

#[test]
fn at_least_once_keeps_exact_state_and_loses_nothing_in_a_storm() {
    storm("storm-at-least-once", Delivery::AtLeastOnce);
}
