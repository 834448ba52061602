//! Inputs with priorities, end to end on a real broker.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka::KafkaProducer;
use rustix::process::Signal;
use task_api::system::{ProducerRecord, SystemAdmin, SystemProducer};
use types::{Delivery, StreamSpec};

use crate::PATIENCE;
use crate::brokers::Brokers;
use crate::container::{Container, is_running};
use crate::job::Job;
use crate::master::Master;
use crate::weather::plain_topic;

/// A job that reads `in` and, before it, `urgent`; all in one partition, and of one key, so that outputs are in order.
struct Stage {
    job: Job,
    master: Master,
    producer: KafkaProducer,
}

impl Stage {
    fn new(name: &str) -> Stage {
        let mut job = Job::new("tally", name, Delivery::ExactlyOnce, Brokers::shared(), 1);
        let topic = job.topic("urgent");
        job.admin.create(&[plain_topic(&topic)]).expect("made");
        let urgent = StreamSpec { priority: 1, ..StreamSpec::default_for(&topic) };
        job.spec.streams.insert("kafka.urgent".into(), urgent);
        job.spec.task.inputs.push("kafka.urgent".into());
        let producer = KafkaProducer::idempotent(&job.brokers.bootstrap, "feed", &BTreeMap::new());
        Stage { master: Master::of(&job.spec.task.inputs), job, producer: producer.expect("a producer") }
    }

    /// Appends messages whose ids begin with the stream's first letter.
    fn feed(&mut self, stream: &str, ids: std::ops::Range<u32>) {
        let topic = self.producer.topic(&self.job.topic(stream)).expect("a topic");
        for id in ids {
            let value = format!("add {}{id}", &stream[..1]);
            let record = ProducerRecord::new(topic, Some(b"k"), Some(value.as_bytes()));
            self.producer.send(&record.to(0)).expect("sends");
        }
        self.producer.flush(PATIENCE).expect("flushes");
    }

    /// The ids of what was processed, in their order, once there are so many.
    fn processed(&self, count: usize) -> Vec<String> {
        let start = Instant::now();
        loop {
            let rows = self.job.texts(&self.job.topic("out"));
            if rows.len() >= count {
                let counts = rows.iter().map(|(_, value)| value.split_once(' ').expect("two words"));
                let expected: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
                assert_eq!(counts.clone().map(|(_, count)| count).collect::<Vec<_>>(), expected);
                return counts.map(|(id, _)| id.to_owned()).collect();
            }
            assert!(start.elapsed() < PATIENCE, "{} of {count}", rows.len());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn stop(container: Container) {
        container.signal(Signal::TERM);
        assert_eq!(container.exit_code(), 143);
    }
}

#[test]
fn what_is_urgent_is_processed_before_a_backlog_of_what_is_not() {
    let mut stage = Stage::new("priorities");
    stage.feed("in", 0..8_000);
    stage.feed("urgent", 0..400);
    let container = Container::start(&stage.job, &stage.master, 1, "state", &[]);
    let processed = stage.processed(8_400);
    let last = processed.iter().rposition(|id| id.starts_with('u')).expect("they are there");
    // Nothing of the other input but what may have come before it was known that there is something urgent.
    assert!(last < 400 + 1_000, "the last urgent message was number {last}");
    let of = |letter| processed.iter().filter(|id| id.starts_with(letter)).cloned().collect::<Vec<_>>();
    assert_eq!(of('u'), (0..400).map(|n| format!("u{n}")).collect::<Vec<_>>());
    assert_eq!(of('i'), (0..8_000).map(|n| format!("i{n}")).collect::<Vec<_>>());
    Stage::stop(container);
}

#[test]
fn what_comes_to_an_input_that_waits_for_another_is_not_passed_over() {
    let mut stage = Stage::new("waiting");
    let container = Container::start(&stage.job, &stage.master, 1, "state", &[]);
    stage.master.wait(&container, "running", is_running);
    let mut fed = 0;
    for round in 0..5 {
        // Both are read to their ends; then one of them is full, and the other gets one message after the other.
        stage.feed("urgent", round * 3_000..(round + 1) * 3_000);
        stage.feed("in", round * 2..round * 2 + 1);
        stage.feed("urgent", 100_000 + round * 10..100_000 + (round + 1) * 10);
        stage.feed("in", round * 2 + 1..round * 2 + 2);
        fed += 3_012;
        stage.processed(fed);
    }
    let processed = stage.processed(fed);
    let waited: Vec<&String> = processed.iter().filter(|id| id.starts_with('i')).collect();
    assert_eq!(waited, ["i0", "i1", "i2", "i3", "i4", "i5", "i6", "i7", "i8", "i9"]);
    Stage::stop(container);
}
