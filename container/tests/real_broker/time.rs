//! Slow and hung tasks, and transactions that brokers give up, on a real broker.

use std::time::Duration;

use kafka::KafkaProducer;
use rustix::process::Signal;
use task_api::system::{ProducerRecord, SystemAdmin, SystemProducer};
use task_core::ownership::OwnerRecord;
use types::{Delivery, EXIT_STUCK, EXIT_TRANSACTION_TIMEOUT};

use crate::PATIENCE;
use crate::brokers::Brokers;
use crate::container::Container;
use crate::job::Job;
use crate::master::Master;

fn job(name: &str, delivery: Delivery, config: &[(&str, &str)]) -> Job {
    let mut job = Job::new("counter", name, delivery, Brokers::shared(), 1);
    let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    job.spec.task.config.extend(config);
    job
}

/// Appends `count` messages to partition 0.
pub fn feed(job: &Job, count: usize) {
    let none = std::collections::BTreeMap::new();
    let mut producer = KafkaProducer::idempotent(&job.brokers.bootstrap, "feed", &none).expect("a producer");
    let topic = producer.topic(&job.topic("in")).expect("a topic");
    for _ in 0..count {
        producer.send(&ProducerRecord::new(topic, Some(b"k"), Some(b"x")).to(0)).expect("sends");
    }
    producer.flush(PATIENCE).expect("flushes");
}

#[test]
fn a_slow_task_commits_in_time_and_ends_in_time_in_the_middle_of_a_batch() {
    for (name, delivery) in
        [("slow-exactly", Delivery::ExactlyOnce), ("slow-at-least", Delivery::AtLeastOnce)]
    {
        let (job, master) = (job(name, delivery, &[("fault", "slow"), ("fault-ms", "50")]), Master::start());
        // All of them come in one batch; they would take 50 s.
        feed(&job, 1_000);
        let container = Container::start(&job, &master, 1, "state", &[]);
        let status = master.wait(&container, "committing", |status| status.commits >= 3);
        assert!(status.processed < 500, "{status:?}");
        container.signal(Signal::TERM);
        assert_eq!(container.exit_code(), 143);
        let outputs = job.rows(&job.topic("out"), 0).len() + job.rows(&job.topic("out"), 1).len();
        assert!((1..500).contains(&outputs), "{outputs} outputs");
        let at = job.committed_checkpoints(0).pop().expect("it committed").1;
        assert_eq!(
            at.offset("kafka.in", 0),
            Some(outputs.to_string().as_str()),
            "every output has its position"
        );
    }
}

#[test]
fn a_task_that_hangs_ends_its_container_by_name_and_with_its_stack() {
    let (mut job, master) = (job("hangs", Delivery::ExactlyOnce, &[("fault", "hang")]), Master::start());
    job.spec.task.stuck_after_ms = Some(4_000);
    feed(&job, 1);
    let container = Container::start(&job, &master, 1, "state", &[]);
    let hangs = |task: &types::TaskStatus| task.call.as_ref().is_some_and(|call| call.what == "process");
    master.wait(&container, "hanging", |status| status.tasks.iter().any(hangs));
    let log = container.log.clone();
    assert_eq!(container.exit_code(), EXIT_STUCK);
    let log = std::fs::read_to_string(log).expect("a log");
    for word in
        ["Partition 0: `process` has not returned for 4 s, longer than [task] stuck-after", "tasks-0", "hang"]
    {
        assert!(log.contains(word), "{word} is not in\n{log}");
    }
}

#[test]
fn a_producer_that_the_broker_no_longer_takes_is_fenced_only_if_somebody_else_owns_its_tasks() {
    let (job, master) = (job("nobody", Delivery::ExactlyOnce, &[]), Master::start());
    let container = Container::start(&job, &master, 1, "state", &[]);
    master.wait(&container, "running", crate::is_running);
    let incarnation = types::Incarnation { epoch: types::Epoch(1), seq: 1 };
    let owner = OwnerRecord::of_thread(&job.spec.job, 0, 0, incarnation);
    // As the broker does with one whose transaction is open for too long.
    job.admin.fence(&owner.id).expect("registered");
    feed(&job, 10);
    let log = container.log.clone();
    assert_eq!(container.exit_code(), 1);
    let log = std::fs::read_to_string(log).expect("a log");
    assert!(log.contains("nobody else owns the tasks"), "{log}");
}

#[test]
#[ignore = "a broker looks for transactions that are open for too long every ten seconds: make soak runs it"]
fn a_transaction_that_was_open_for_too_long_is_told_by_name() {
    let slow = [("fault", "slow"), ("fault-ms", "30000")];
    for (name, config, stopped) in [("open-call", &slow[..], false), ("open-stop", &slow[..0], true)] {
        let (mut job, master) = (job(name, Delivery::ExactlyOnce, config), Master::start());
        let system = job.spec.systems.get_mut("kafka").expect("it has one");
        system.producer.insert("transaction.timeout.ms".into(), "2000".into());
        job.spec.task.commit_ms = 1_900;
        if !config.is_empty() {
            // The first opens the transaction, the second takes too long.
            job.spec.task.config.insert("fault-at".into(), "2".into());
        }
        let container = Container::start(&job, &master, 1, "state", &[]);
        master.wait(&container, "running", crate::is_running);
        feed(&job, 2);
        if stopped {
            master.wait(&container, "processing", |status| status.processed > 0);
            container.signal(Signal::STOP);
            std::thread::sleep(Duration::from_secs(20));
            container.signal(Signal::CONT);
        }
        let log = container.log.clone();
        assert_eq!(container.exit_code(), EXIT_TRANSACTION_TIMEOUT);
        let log = std::fs::read_to_string(log).expect("a log");
        assert!(log.contains("longer than transaction.timeout.ms = 2000"), "{log}");
    }
}
