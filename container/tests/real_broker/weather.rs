//! What befalls a job in a storm: each fault strikes while it works, and counts only if it was really hit.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use task_api::system::{NewTopic, SystemAdmin, TransactionalProducer};
use types::{EXIT_FENCED, EXIT_TRANSACTION_TIMEOUT, OffsetLost, StateLost};

use crate::PATIENCE;
use crate::container::{Container, is_running};
use crate::job::PARTITIONS;
use crate::operator::Operator;
use crate::storm::{STREAMS, Storm, assert_end};
use crate::tally::Random;

pub type Fault = fn(&mut Storm, &'static str);

/// By the name that is printed and counted.
pub const FAULTS: [(&str, Fault); 14] = [
    ("SIGKILL", kill),
    ("SIGKILL in a commit", kill_in_a_commit),
    ("SIGTERM from outside", terminate),
    ("stopped for longer than a transaction", stop_for_long),
    ("stopped and replaced", stop_and_replace),
    ("asynchronous tasks", wait_for_calls),
    ("aborted transaction in an input", abort_upstream),
    ("open transaction in an input", leave_open),
    ("hanging transaction in an input", leave_hanging),
    ("records of an input deleted", delete_records),
    ("records of a changelog deleted", delete_changelog_records),
    ("changelog made again", make_changelog_again),
    ("input made again", make_input_again),
    ("settings of topics changed", change_settings),
];

/// Why a container may end although nobody did anything to it: nothing.
pub const UNRELATED: &[&str] = &[];

/// How long a transaction is open that is to be given up by its broker, which looks every ten seconds.
const SHORT_MS: &str = "2000";
const LONG_MS: &str = "600000";

pub fn is_soak() -> bool {
    std::env::var_os("SAMZA_SOAK_MINUTES").is_some()
}

pub fn plain_topic(topic: &str) -> NewTopic {
    NewTopic { topic: topic.to_owned(), partitions: PARTITIONS, replication: 1, config: BTreeMap::new() }
}

fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

// ---------------------------------------------------------------- signals

fn kill(storm: &mut Storm, name: &'static str) {
    std::thread::sleep(Duration::from_millis(storm.random.below(300)));
    let mut container = storm.take();
    assert!(!container.is_over(), "{}", container.log());
    container.kill();
    storm.hit(name);
    storm.go_on();
}

fn kill_in_a_commit(storm: &mut Storm, name: &'static str) {
    const POINTS: [&str; 7] =
        ["outputs-flushed", "begun", "drained", "checkpointed", "commit", "committed", "process"];
    storm.stop();
    let point = POINTS[storm.random.below(POINTS.len() as u64) as usize];
    let visit = 1 + storm.random.below(3);
    let mut container = storm.start(&[("SAMZA_TEST_CRASH_AT", &format!("{point}:{visit}"))]);
    let start = Instant::now();
    while !container.is_over() {
        assert!(start.elapsed() < PATIENCE, "it does not come to {point}:\n{}", container.log());
        storm.feed(20);
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = container.ended();
    let killed = status.signal() == Some(Signal::KILL.as_raw());
    assert!(killed, "armed with {point}, it ended otherwise: {status}\n{}", container.log());
    storm.hit(name);
    storm.go_on();
}

fn terminate(storm: &mut Storm, name: &'static str) {
    storm.stop();
    storm.hit(name);
    storm.go_on();
}

fn wait_for_calls(storm: &mut Storm, name: &'static str) {
    storm.stop();
    let container = storm.start(&[("TALLY_WAITS", "yes")]);
    storm.feed(300);
    storm.master.wait(&container, "processing", |status| status.processed > 0);
    storm.container = Some(container);
    storm.hit(name);
}

/// A container that stands still in its last commit, whose transaction is open; it is told to stop, so that it commits
/// what it has.
fn stopped_in_a_transaction(storm: &mut Storm) -> Container {
    let changelog = storm.job.topic("changelog");
    // Whether the last commit has something is chance.
    for _ in 0..30 {
        let container = storm.start(&[("SAMZA_TEST_PAUSE_AT", "ends-read")]);
        storm.master.wait(&container, "running", is_running);
        storm.feed(300);
        storm.master.wait(&container, "processing", |status| status.processed > 0);
        container.signal(Signal::TERM);
        container.wait_until_stopped();
        if (0..PARTITIONS).any(|partition| storm.operators[0].is_open(&changelog, partition)) {
            return container;
        }
        // It had nothing to commit.
        container.signal(Signal::CONT);
        assert_eq!(container.exit_code(), 143);
    }
    panic!("no transaction was open in thirty containers that were stopped");
}

fn stop_for_long(storm: &mut Storm, name: &'static str) {
    storm.stop();
    let timeout = "transaction.timeout.ms";
    let set = |storm: &mut Storm, timeout_ms: Option<&str>| {
        let producer = &mut storm.job.spec.systems.get_mut("kafka").expect("there").producer;
        match timeout_ms {
            Some(ms) => drop(producer.insert(timeout.into(), ms.into())),
            None => drop(producer.remove(timeout)),
        }
    };
    set(storm, Some(SHORT_MS));
    let container = stopped_in_a_transaction(storm);
    set(storm, None);
    let changelog = storm.job.topic("changelog");
    wait("the broker to abort the transaction", || {
        (0..PARTITIONS).all(|partition| !storm.operators[0].is_open(&changelog, partition))
    });
    container.signal(Signal::CONT);
    let log = container.log.clone();
    let code = container.exit_code();
    let log = std::fs::read_to_string(log).expect("a log");
    assert_eq!(code, EXIT_TRANSACTION_TIMEOUT, "{log}");
    assert!(log.contains("transaction timeout: "), "{log}");
    storm.hit(name);
    storm.go_on();
}

fn stop_and_replace(storm: &mut Storm, name: &'static str) {
    storm.stop();
    let old = stopped_in_a_transaction(storm);
    // It holds its folder.
    storm.state = format!("state-{}", storm.seq);
    storm.go_on();
    storm.feed(50);
    old.signal(Signal::CONT);
    let log = old.log.clone();
    let code = old.exit_code();
    assert_eq!(code, EXIT_FENCED, "{}", std::fs::read_to_string(log).expect("a log"));
    storm.hit(name);
}

// ---------------------------------------------------------------- producers of inputs

/// Sends in a transaction. Only partition 0 is behind it, so that the job has something to do.
fn send_in_a_transaction(storm: &mut Storm, timeout_ms: &str) -> kafka::KafkaProducer {
    let input = storm.random.below(2) as usize;
    let mut producer = storm.transactional(input, timeout_ms);
    producer.init(PATIENCE).expect("a new id");
    producer.begin().expect("begins");
    let count = 1 + storm.random.below(50);
    storm.send(&mut producer, input, Some(0), count);
    assert!(storm.operators[input].is_open(&storm.accounts[input].topic, 0), "it was flushed");
    producer
}

fn abort_upstream(storm: &mut Storm, name: &'static str) {
    let mut producer = send_in_a_transaction(storm, LONG_MS);
    producer.abort(PATIENCE).expect("aborts");
    storm.hit(name);
}

fn leave_open(storm: &mut Storm, name: &'static str) {
    let producer = send_in_a_transaction(storm, LONG_MS);
    storm.open.push(producer);
    storm.hit(name);
}

/// Commits the oldest open transaction of an input; false if there is none.
pub fn decide_one(storm: &mut Storm) -> bool {
    if storm.open.is_empty() {
        return false;
    }
    storm.open.remove(0).commit(PATIENCE).expect("commits");
    true
}

fn leave_hanging(storm: &mut Storm, name: &'static str) {
    // A producer that is gone: nobody but the broker ends its transaction.
    drop(send_in_a_transaction(storm, SHORT_MS));
    storm.hit(name);
}

/// Waits until brokers have given up transactions that nobody ends.
pub fn await_hanging(storm: &Storm) {
    wait("the brokers to give up hanging transactions", || {
        let topics = || storm.operators.iter().zip(&storm.accounts);
        topics().all(|(operator, account)| (0..PARTITIONS).all(|p| !operator.is_open(&account.topic, p)))
    });
}

// ---------------------------------------------------------------- operators

fn delete_records(storm: &mut Storm, name: &'static str) {
    storm.settle(UNRELATED);
    let mut any = false;
    for partition in 0..PARTITIONS {
        let last = storm.checkpoints(partition).last().cloned();
        for (operator, account) in storm.operators.iter().zip(&storm.accounts) {
            let Some((_, at)) = account.position(last.as_ref(), partition) else { continue };
            operator.delete_records(&account.topic, partition, Some(at));
            let (low, ..) = operator.ends(&account.topic, partition);
            assert_eq!(low, at, "{}-{partition}", account.topic);
            any |= low > 0;
        }
    }
    assert!(any);
    storm.hit(name);
}

/// The next start must say that state is lost, and with what words; the one after it fills the changelog from this disk.
fn lost_and_mended(storm: &mut Storm, words: &str) {
    storm.refused(words);
    storm.job.spec.stores.get_mut("counts").expect("there").state_lost = StateLost::Local;
    storm.go_on();
    storm.job.spec.stores.get_mut("counts").expect("there").state_lost = StateLost::Fail;
}

fn delete_changelog_records(storm: &mut Storm, name: &'static str) {
    storm.settle(UNRELATED);
    storm.stop();
    let (changelog, operator) = (storm.job.topic("changelog"), &storm.operators[0]);
    // Brokers delete nothing of a topic that is only compacted.
    operator.set(&changelog, "cleanup.policy", "compact,delete");
    for partition in 0..PARTITIONS {
        let (low, _, high) = operator.ends(&changelog, partition);
        operator.delete_records(&changelog, partition, Some(low + (high - low).div_ceil(2)));
    }
    operator.set(&changelog, "cleanup.policy", "compact");
    lost_and_mended(storm, "begins at");
    storm.hit(name);
}

fn make_changelog_again(storm: &mut Storm, name: &'static str) {
    storm.settle(UNRELATED);
    storm.stop();
    let mut topic = plain_topic(&storm.job.topic("changelog"));
    topic.config.insert("cleanup.policy".into(), "compact".into());
    storm.operators[0].make_again(&topic);
    lost_and_mended(storm, "was made again");
    storm.hit(name);
}

fn make_input_again(storm: &mut Storm, name: &'static str) {
    while decide_one(storm) {}
    await_hanging(storm);
    storm.settle(UNRELATED);
    let input = storm.random.below(2) as usize;
    let topic = plain_topic(&storm.accounts[input].topic);
    let while_it_runs = storm.random.below(2) == 0;
    if !while_it_runs {
        storm.stop();
    }
    let id = storm.operators[input].make_again(&topic);
    storm.begin_again(input, id);
    if while_it_runs {
        assert_end(&mut storm.take(), &["was deleted and made again"]);
    }
    storm.feed(100);
    storm.refused("was deleted and made again");
    let stream = |storm: &mut Storm, lost| {
        let spec = storm.job.spec.stream(&types::SystemStream::parse(STREAMS[input]).expect("a stream"));
        let spec = types::StreamSpec { offset_lost: lost, ..spec };
        storm.job.spec.streams.insert(STREAMS[input].into(), spec);
    };
    stream(storm, OffsetLost::Oldest);
    storm.go_on();
    stream(storm, OffsetLost::Fail);
    // Only now is it over: a checkpoint has the new id.
    storm.settle(UNRELATED);
    storm.hit(name);
}

/// What somebody changes, again and again.
fn settings(job: &crate::job::Job) -> Vec<(String, &'static str, [&'static str; 2])> {
    vec![
        (job.topic("in"), "retention.ms", ["3600000", "604800000"]),
        (job.topic("in"), "cleanup.policy", ["compact", "delete"]),
        (job.topic("out"), "cleanup.policy", ["compact", "delete"]),
        (job.topic("out"), "max.message.bytes", ["3000", "1048588"]),
        (job.topic("changelog"), "retention.ms", ["3600000", "604800000"]),
        (job.topic("changelog"), "cleanup.policy", ["compact,delete", "compact"]),
        (job.topic("changelog"), "max.message.bytes", ["3000", "1048588"]),
    ]
}

fn change_settings(storm: &mut Storm, name: &'static str) {
    let settings = settings(&storm.job);
    let (over, changes) = (AtomicBool::new(false), AtomicU32::new(0));
    let (bootstrap, seed) = (storm.job.brokers.bootstrap.clone(), storm.random.below(1 << 31));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (operator, mut random) = (Operator::of(&bootstrap), Random(seed));
            while !over.load(Ordering::Relaxed) {
                let (topic, key, values) = &settings[random.below(settings.len() as u64) as usize];
                let value = values[random.below(2) as usize].to_owned();
                let set = BTreeMap::from([((*key).to_owned(), value)]);
                operator.admin.alter_configs(topic, &set).expect("altered");
                changes.fetch_add(1, Ordering::Relaxed);
            }
            for (topic, key, values) in &settings {
                operator.set(topic, key, values[1]);
            }
        });
        for _ in 0..8 {
            storm.feed(150);
            std::thread::sleep(Duration::from_millis(100));
        }
        over.store(true, Ordering::Relaxed);
    });
    // What the topic no longer takes is refused by name, and a container that knows better sends smaller batches.
    storm.settle(&["size too large"]);
    *storm.hits.entry(name).or_default() += changes.into_inner();
}
