//! Inputs as transactional producers leave them: markers behind the last message, transactions that are open or aborted,
//! ends that are met while some inputs are paused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka::KafkaProducer;
use rustix::process::Signal;
use task_api::system::{
    NewTopic, PlainMessage, ProducerRecord, SystemAdmin, SystemProducer, TopicPartition,
    TransactionalProducer,
};
use types::{Delivery, StreamSpec, SystemStream, SystemStreamPartition};

use crate::PATIENCE;
use crate::brokers::Brokers;
use crate::container::{Container, is_running};
use crate::job::{Job, PARTITIONS, model};
use crate::master::Master;
use crate::operator::Operator;

fn counter(name: &str) -> Job {
    Job::new("counter", name, Delivery::ExactlyOnce, Brokers::shared(), 1)
}

fn producer(job: &Job) -> KafkaProducer {
    let id = format!("{}-upstream", job.spec.job.name);
    let mut producer =
        KafkaProducer::transactional(&job.brokers.bootstrap, &id, &BTreeMap::new()).expect("a producer");
    producer.init(PATIENCE).expect("init");
    producer
}

/// Sends a message to each partition of the input, in the open transaction.
fn send(job: &Job, producer: &mut KafkaProducer, key: &str) {
    let topic = producer.topic(&job.topic("in")).expect("a topic");
    for partition in 0..PARTITIONS {
        let record = ProducerRecord::new(topic, Some(key.as_bytes()), Some(b"x"));
        producer.send(&record.to(partition)).expect("sends");
    }
}

fn position(job: &Job, partition: i32) -> Option<u64> {
    let checkpoints = job.committed_checkpoints(partition);
    checkpoints.last()?.1.offset("kafka.in", partition)?.parse().ok()
}

fn stop(container: Container) {
    container.signal(Signal::TERM);
    container.exit_code();
}

#[test]
fn retention_that_takes_everything_that_was_processed_and_the_marker_behind_it_takes_nothing_from_the_job() {
    let (job, master) = (counter("retention"), Master::start());
    let mut upstream = producer(&job);
    upstream.begin().expect("begin");
    send(&job, &mut upstream, "a");
    upstream.commit(PATIENCE).expect("commit");
    upstream.begin().expect("begin");
    send(&job, &mut upstream, "never seen");
    upstream.flush(PATIENCE).expect("flush");
    upstream.abort(PATIENCE).expect("abort");
    let first = Container::start(&job, &master, 1, "state", &[]);
    master.wait(&first, "done", |status| status.processed == PARTITIONS as u64);
    // At once: the stop itself finds out what is behind the last message.
    stop(first);
    for partition in 0..PARTITIONS {
        let end = job.end(&job.topic("in"), partition);
        assert_eq!(position(&job, partition), Some(end), "partition {partition}");
        Operator::of(&job.brokers.bootstrap).delete_records(&job.topic("in"), partition, None);
    }
    let second = Container::start(&job, &master, 2, "state", &[]);
    master.wait(&second, "running", is_running);
    upstream.begin().expect("begin");
    send(&job, &mut upstream, "b");
    upstream.commit(PATIENCE).expect("commit");
    master.wait(&second, "done", |status| status.processed == PARTITIONS as u64);
    stop(second);
}

#[test]
fn tasks_of_one_thread_that_read_the_same_partition_go_on_after_a_restart() {
    let mut job = counter("shared");
    let rules = job.topic("rules");
    let new = NewTopic { topic: rules.clone(), partitions: 1, replication: 1, config: BTreeMap::new() };
    job.admin.create(&[new]).expect("created");
    let input = StreamSpec { topic: rules.clone(), broadcast: true, ..job.spec.streams["kafka.in"].clone() };
    job.spec.streams.insert("kafka.rules".into(), input);
    job.spec.task.inputs.push("kafka.rules".into());
    let mut model = model(&["kafka.in".to_owned()], PARTITIONS);
    for task in &mut model.tasks {
        let stream = SystemStream { system: "kafka".into(), stream: "rules".into() };
        task.inputs.push(SystemStreamPartition { stream, partition: 0 });
    }
    let master = Master::with(model);
    for seq in 1..=2 {
        let key = format!("rule-{seq}").into_bytes();
        let to = TopicPartition { topic: rules.clone(), partition: 0 };
        job.admin.append(&[PlainMessage { to, key, value: Some(b"x".to_vec()) }]).expect("appended");
        let container = Container::start(&job, &master, seq, "state", &[]);
        master.wait(&container, "done", |status| status.processed == PARTITIONS as u64);
        stop(container);
    }
    for partition in 0..PARTITIONS {
        let rows = job.rows(&job.topic("changelog"), partition);
        let keys: Vec<_> = rows.iter().map(|(_, key, _)| String::from_utf8_lossy(key)).collect();
        assert_eq!(keys, ["rule-1", "rule-2"], "each task has seen each once");
    }
}

#[test]
fn a_bounded_input_waits_for_the_transaction_that_is_open_before_its_end() {
    let (mut job, master) = (counter("bounded"), Master::start());
    job.spec.streams.get_mut("kafka.in").expect("the input").bounded = true;
    let mut upstream = producer(&job);
    upstream.begin().expect("begin");
    send(&job, &mut upstream, "first");
    upstream.commit(PATIENCE).expect("commit");
    upstream.begin().expect("begin");
    send(&job, &mut upstream, "late");
    upstream.flush(PATIENCE).expect("flush");
    let mut container = Container::start(&job, &master, 1, "state", &[]);
    master.wait(&container, "at the transaction", |status| status.processed == PARTITIONS as u64);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(1) {
        assert!(!container.is_over(), "it does not end with less:\n{}", container.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    upstream.commit(PATIENCE).expect("commit");
    assert_eq!(container.exit_code(), 0);
    job.wait_for_outputs(2 * PARTITIONS as usize);
    job.assert_exact();
}
