//! Topics that somebody deletes while a job writes to them.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use types::Delivery;

use crate::PATIENCE;
use crate::brokers::Brokers;
use crate::container::{Container, is_running};
use crate::job::{Job, PARTITIONS};
use crate::master::Master;
use crate::operator::Operator;
use crate::weather::plain_topic;

const DELIVERIES: [Delivery; 2] = [Delivery::ExactlyOnce, Delivery::AtLeastOnce];

fn job(name: &str, delivery: Delivery) -> Job {
    let name = format!("{name}-{delivery:?}");
    let mut job = Job::new("counter", &name, delivery, Brokers::shared(), 1);
    // A topic may be one that is only just made: for half a minute, unless told otherwise.
    let producer = &mut job.spec.systems.get_mut("kafka").expect("it has one").producer;
    producer.insert("topic.metadata.propagation.max.ms".into(), "500".into());
    job
}

/// Deletes the topic while a container writes to it, and returns the container's last words.
fn last_words(job: &Job, master: &Master, topic: &str) -> String {
    job.feed(0, 1_000);
    let mut container = Container::start(job, master, 1, "state", &[]);
    job.wait_for_outputs(1_000);
    Operator::of(&job.brokers.bootstrap).delete_topic(topic);
    let (start, mut fed) = (Instant::now(), 1_000);
    while !container.is_over() {
        assert!(start.elapsed() < PATIENCE, "it goes on without {topic}:\n{}", container.log());
        job.feed(fed, 20);
        fed += 20;
        std::thread::sleep(Duration::from_millis(100));
    }
    let (code, log) = (container.ended().code(), container.log());
    assert_eq!(code, Some(1), "{log}");
    let words = log.lines().rev().find(|line| line.contains("failed: ")).expect("it says why");
    assert!(words.contains(topic), "{topic} is not named: {words}");
    words.to_owned()
}

#[test]
fn an_output_that_is_deleted_while_it_is_written_to_ends_the_container_by_name_and_loses_no_state() {
    for delivery in DELIVERIES {
        let (job, master) = (job("output-gone", delivery), Master::start());
        last_words(&job, &master, &job.topic("out"));
        // Somebody makes it again: what was in it is gone, and nothing else.
        let operator = Operator::of(&job.brokers.bootstrap);
        operator.make(&plain_topic(&job.topic("out")));
        let fed: usize = (0..PARTITIONS).map(|partition| job.rows(&job.topic("in"), partition).len()).sum();
        let next = Container::start(&job, &master, 2, "empty", &[]);
        master.wait(&next, "running", is_running);
        // The last commit before the end may have been the whole of the input, but for what ended it.
        let position = |partition| {
            let last = job.committed_checkpoints(partition).pop().expect("there were commits").1;
            last.offset("kafka.in", partition).map_or(0, |offset| offset.parse::<usize>().expect("a number"))
        };
        let start = Instant::now();
        while (0..PARTITIONS).map(position).sum::<usize>() < fed {
            assert!(start.elapsed() < PATIENCE, "{}", next.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        next.signal(Signal::TERM);
        assert_eq!(next.exit_code(), 143);
        job.assert_changelog();
    }
}

#[test]
fn a_changelog_that_is_deleted_while_it_is_written_to_ends_the_container_by_name_and_is_missed_at_the_next_start()
 {
    for delivery in DELIVERIES {
        let (job, master) = (job("changelog-gone", delivery), Master::start());
        let changelog = job.topic("changelog");
        last_words(&job, &master, &changelog);
        let next = Container::start(&job, &master, 2, "state", &[]);
        let start = Instant::now();
        while !next.log().lines().any(|line| line.contains("trying again") && line.contains(&changelog)) {
            assert!(start.elapsed() < PATIENCE, "it does not miss its changelog:\n{}", next.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whoever makes it again does not bring back what was in it.
        let mut topic = plain_topic(&changelog);
        topic.config.insert("cleanup.policy".into(), "compact".into());
        Operator::of(&job.brokers.bootstrap).make(&topic);
        let log = next.log.clone();
        assert_eq!(next.exit_code(), 1);
        let log = std::fs::read_to_string(log).expect("a log");
        let words = log.lines().rev().find(|line| line.contains("failed: ")).expect("it says why");
        assert!(words.contains(&changelog) && words.contains("was made again"), "{words}");
    }
}
