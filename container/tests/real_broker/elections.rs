//! Logs whose leader changed: where nothing was lost nothing is told, and where a broker became leader that did not have
//! everything, what was cut is told, also when the log has grown past it again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka::{KafkaAdmin, KafkaConsumer};
use rustix::process::Signal;
use task_api::system::{
    LogEnd, NewTopic, PlainMessage, StartAt, SystemAdmin, SystemConsumer, SystemError, TopicPartition,
};

use crate::PATIENCE;
use crate::brokers::Brokers;

/// Longer than a follower's question waits for messages (`replica.fetch.wait.max.ms`, 500).
const ANSWERED: Duration = Duration::from_secs(1);

struct Stage {
    brokers: std::sync::Arc<Brokers>,
    admin: KafkaAdmin,
    log: TopicPartition,
}

impl Stage {
    /// A log with two copies, either of which may lead alone.
    fn new() -> Stage {
        let brokers = Brokers::own(&["--brokers", "3"]);
        let admin = KafkaAdmin::new(&brokers.bootstrap, &BTreeMap::new()).expect("an admin");
        let config = [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")];
        let config = config.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let log = TopicPartition { topic: "elected".into(), partition: 0 };
        admin
            .create(&[NewTopic { topic: log.topic.clone(), partitions: 1, replication: 2, config }])
            .expect("created");
        Stage { brokers, admin, log }
    }

    /// Asks until it is answered: leaders come and go here.
    fn ask<R>(&self, mut ask: impl FnMut(&KafkaAdmin) -> Result<R, SystemError>) -> R {
        let start = Instant::now();
        loop {
            match ask(&self.admin) {
                Ok(answer) => return answer,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn append(&self, count: usize) {
        let message = PlainMessage { to: self.log.clone(), key: b"k".to_vec(), value: Some(b"v".to_vec()) };
        let messages = vec![message; count];
        self.ask(|admin| admin.append(&messages));
    }

    fn end(&self) -> LogEnd {
        self.ask(|admin| admin.watermarks(std::slice::from_ref(&self.log)))[0].end()
    }

    /// The broker that leads, and the one that has the other copy.
    fn leader_and_other(&self) -> (i32, i32) {
        let topics = self.ask(|admin| admin.describe(std::slice::from_ref(&self.log.topic)));
        let partition = &topics[0].partitions[0];
        let leader = partition.leader.expect("a leader");
        (leader, *partition.replicas.iter().find(|id| **id != leader).expect("a second copy"))
    }

    fn wait_for_leader(&self, id: i32) {
        let start = Instant::now();
        let leads = || {
            let topics = self.ask(|admin| admin.describe(std::slice::from_ref(&self.log.topic)));
            topics.first().is_some_and(|topic| topic.partitions[0].leader == Some(id))
        };
        while !leads() {
            assert!(start.elapsed() < PATIENCE, "broker {id} does not lead");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn was_cut(&self, end: LogEnd) -> bool {
        self.ask(|admin| admin.cut(&[(self.log.clone(), end)]))[0]
    }

    fn consumer(&self) -> KafkaConsumer {
        let mut consumer =
            KafkaConsumer::new(&self.brokers.bootstrap, "elections", "elections", &BTreeMap::new())
                .expect("a consumer");
        consumer.assign(&[(self.log.clone(), StartAt::Oldest)]).expect("assigned");
        consumer
    }
}

fn read_up_to(consumer: &mut KafkaConsumer, offset: u64) -> LogEnd {
    let start = Instant::now();
    loop {
        consumer.poll(Duration::from_millis(100), &mut |_| Ok(())).expect("read");
        match consumer.read_to(0) {
            Some(end) if end.offset >= offset => return end,
            _ => assert!(start.elapsed() < PATIENCE, "not read up to {offset}"),
        }
    }
}

#[test]
fn a_log_that_was_cut_by_an_unclean_election_and_has_grown_again_is_told_from_one_that_was_not() {
    let stage = Stage::new();
    stage.append(10);
    let mut consumer = stage.consumer();
    let mut paused = stage.consumer();
    let on_both = read_up_to(&mut consumer, 10);
    assert!(on_both.leader_epoch.is_some() && !stage.was_cut(on_both));
    let (leader, other) = stage.leader_and_other();

    // The leader goes on alone, and is lost with what only it has.
    stage.brokers.signal(other, Signal::STOP);
    // This one is on its way to the other, which has asked for it; what follows is not. An answer that a leader gives
    // takes with it what came meanwhile, so it is given its time: nothing tells when it was given.
    stage.append(1);
    std::thread::sleep(ANSWERED);
    stage.append(9);
    let on_one = [read_up_to(&mut consumer, 20), stage.end()];
    assert_eq!(on_one.map(|end| end.offset), [20, 20]);
    read_up_to(&mut paused, 20);
    paused.pause(&[0]).expect("paused");
    stage.brokers.kill(leader);
    stage.brokers.signal(other, Signal::CONT);
    stage.wait_for_leader(other);
    assert!((10..=11).contains(&stage.end().offset), "{:?}", stage.end());
    for end in on_one {
        assert!(stage.was_cut(end), "{end:?} is above the end now");
    }
    stage.append(30);
    for end in on_one {
        assert!(stage.was_cut(end), "{end:?} was written anew");
    }
    let both = [on_one[0], on_both].map(|end| (stage.log.clone(), end));
    assert_eq!(stage.ask(|admin| admin.cut(&both)), [true, false], "of two readers of one partition");
    assert!(!stage.was_cut(on_both), "that was on both");
    assert!(!stage.was_cut(LogEnd::at(20)), "nobody knows");

    // Whoever reads on meets it too, also after a pause.
    paused.resume(&[0]).expect("resumed");
    for mut reader in [consumer, paused] {
        let start = Instant::now();
        let error = loop {
            match reader.poll(Duration::from_millis(100), &mut |_| Ok(())) {
                Err(error) => break error,
                Ok(_) => assert!(
                    start.elapsed() < PATIENCE,
                    "the reader takes other messages for those that it has read"
                ),
            }
            assert_eq!(reader.read_to(0).map(|end| end.offset), Some(20));
        };
        assert!(error.to_string().contains("truncation"), "{error}");
    }

    // A change of leaders that loses nothing.
    let now = stage.end();
    stage.brokers.restart();
    stage.brokers.prefer_first_replicas();
    assert!(!stage.was_cut(now) && !stage.was_cut(on_both));
    assert!(stage.was_cut(on_one[0]));
}
