//! What brokers refuse: it comes back message by message, and nothing else is harmed by it.

use std::collections::BTreeMap;

use kafka::{KafkaAdmin, KafkaProducer};
use task_api::system::{
    Isolation, NewTopic, ProducerRecord, SystemAdmin, SystemError, SystemProducer, TopicPartition,
    TransactionalProducer,
};

use super::{SOON, admin, bootstrap, high, read, send, topic, transactional};

/// Everything that the system has refused so far: value and cause.
fn refused(producer: &mut KafkaProducer) -> Vec<(Vec<u8>, String)> {
    std::iter::from_fn(|| producer.refused()).map(|r| (r.value.unwrap_or_default(), r.why)).collect()
}

/// A commit's marker comes a moment after the commit is told.
fn await_high(admin: &KafkaAdmin, at: &TopicPartition, with_marker: u64) {
    let start = std::time::Instant::now();
    while high(admin, at) < with_marker {
        assert!(start.elapsed() < SOON, "{at:?} ends at {}", high(admin, at));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(high(admin, at), with_marker, "and the marker");
}

/// A topic that takes less at once than librdkafka's batches may have.
fn narrow(admin: &KafkaAdmin, name: &str, set: (&str, &str)) -> TopicPartition {
    let at = topic(admin, name);
    let topic = at.topic + "-narrow";
    let config = BTreeMap::from([(set.0.to_owned(), set.1.to_owned())]);
    admin
        .create(&[NewTopic { topic: topic.clone(), partitions: 1, replication: 1, config }])
        .expect("created");
    TopicPartition { topic, partition: 0 }
}

/// What cannot be compressed: the broker looks at what it gets.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn a_message_that_a_broker_refuses_comes_back_alone_and_the_others_arrive() {
    let admin = admin();
    let at = narrow(&admin, "too-large", ("max.message.bytes", "100000"));
    for told in [false, true] {
        let mut producer =
            KafkaProducer::idempotent(&bootstrap(), "narrow", &BTreeMap::new()).expect("settings are right");
        let to = producer.topic(&at.topic).expect("topic");
        if told {
            producer.takes_at_most(to, 100_000);
        }
        let before = high(&admin, &at);
        let large = noise(200_000, 7);
        for n in 0..200 {
            let value = if n == 50 { large.clone() } else { noise(5_000, n) };
            let record = ProducerRecord::new(to, Some(b"k"), Some(&value)).to(0);
            producer.send(&ProducerRecord { tag: 3, ..record }).expect("queued");
        }
        producer.flush(SOON).expect("what is refused is no failure");
        let tags = producer.refused().map(|r| (r.tag, r.value == Some(large.clone()), r.why));
        assert!(matches!(&tags, Some((3, true, why)) if why.contains("too large")), "{told}: {tags:?}");
        assert_eq!(producer.refused(), None);
        assert_eq!(high(&admin, &at) - before, 199, "{told}");
    }
}

#[test]
fn messages_that_shared_a_batch_with_an_invalid_one_are_sent_again() {
    let admin = admin();
    let at = narrow(&admin, "times", ("message.timestamp.before.max.ms", "3600000"));
    let config = BTreeMap::from([("linger.ms".to_owned(), "300".to_owned())]);
    let mut producer = KafkaProducer::idempotent(&bootstrap(), "times", &config).expect("settings are right");
    let to = producer.topic(&at.topic).expect("topic");
    for n in 0..10 {
        let value = n.to_string();
        let record = ProducerRecord::new(to, None, Some(value.as_bytes())).to(0);
        let timestamp_ms = (n == 4).then_some(1_000);
        producer.send(&ProducerRecord { timestamp_ms, ..record }).expect("queued");
    }
    producer.flush(SOON).expect("what is refused is no failure");
    let refused = refused(&mut producer);
    assert_eq!(refused.iter().map(|(value, _)| value.as_slice()).collect::<Vec<_>>(), [b"4"], "{refused:?}");
    let mut there = read(&admin, &at, high(&admin, &at), Isolation::ReadCommitted);
    there.sort();
    assert_eq!(there, ["0", "1", "2", "3", "5", "6", "7", "8", "9"]);
}

#[test]
fn a_topic_that_is_not_there_or_is_deleted_refuses_each_message_by_name() {
    let admin = admin();
    let config = BTreeMap::from([("topic.metadata.propagation.max.ms".to_owned(), "200".to_owned())]);
    let mut producer = KafkaProducer::idempotent(&bootstrap(), "gone", &config).expect("settings are right");
    let there = topic(&admin, "still-there");
    let to = producer.topic("kafka-nobody-made-this").expect("it may come");
    let first = producer.send(&ProducerRecord::new(to, None, Some(b"1")));
    assert!(matches!(first, Ok(()) | Err(SystemError::Refused(_))), "{first:?}");
    send(&mut producer, &there, "2");
    producer.flush(SOON).expect("what is refused is no failure");
    let later = refused(&mut producer);
    assert!(first.is_err() != (later.len() == 1), "{first:?} {later:?}");
    assert_eq!(read(&admin, &there, high(&admin, &there), Isolation::ReadCommitted), ["2"]);
}

#[test]
fn a_transaction_takes_no_message_that_its_topic_would_refuse() {
    let admin = admin();
    let at = narrow(&admin, "in-transaction", ("max.message.bytes", "100000"));
    let mut producer = transactional(&at.topic);
    let to = producer.topic(&at.topic).expect("topic");
    producer.takes_at_most(to, 100_000);
    producer.begin().expect("begin");
    let large = producer.send(&ProducerRecord::new(to, None, Some(&[7; 200_000])).to(0));
    assert!(
        matches!(&large, Err(SystemError::Refused(why)) if why.contains("max.message.bytes")),
        "{large:?}"
    );
    // Together they are too much for one batch.
    for n in 0..60_u8 {
        let value: Vec<u8> =
            (0..5_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ n).collect();
        producer.send(&ProducerRecord::new(to, None, Some(&value)).to(0)).expect("queued");
    }
    producer.commit(SOON).expect("committed");
    await_high(&admin, &at, 61);
}

#[test]
fn a_transaction_that_has_lost_a_message_says_which_topic_did_not_take_it() {
    let admin = admin();
    let at = narrow(&admin, "narrowed", ("max.message.bytes", "3000"));
    let other = topic(&admin, "beside-narrowed");
    let mut producer = transactional(&at.topic);
    let to = producer.topic(&at.topic).expect("topic");
    producer.begin().expect("begin");
    // The topic takes less than the producer was told: somebody has changed it since.
    producer.send(&ProducerRecord::new(to, None, Some(&noise(5_000, 7))).to(0)).expect("queued");
    // What else is sent is dropped with the transaction, and must not be what is told.
    let to = producer.topic(&other.topic).expect("topic");
    let mut told = Ok(());
    for _ in 0..5_000 {
        told = told.and(producer.send(&ProducerRecord::new(to, None, Some(b"beside")).to(0)));
    }
    for told in [told.and_then(|()| producer.commit(SOON)), producer.commit(SOON)] {
        let why = told.expect_err("the transaction is lost").to_string();
        assert!(why.contains(&at.topic) && why.contains("too large"), "{why}");
    }
}

#[test]
fn a_transaction_takes_rows_that_are_larger_than_the_default_if_it_is_told_to() {
    let admin = admin();
    let at = narrow(&admin, "large-rows", ("max.message.bytes", "5100000"));
    let config = BTreeMap::from([("message.max.bytes".to_owned(), "5065536".to_owned())]);
    let mut producer =
        KafkaProducer::transactional(&bootstrap(), &at.topic, &config).expect("settings are right");
    producer.init(SOON).expect("init");
    let to = producer.topic(&at.topic).expect("topic");
    producer.takes_at_most(to, 5_100_000);
    producer.begin().expect("begin");
    for bytes in [999_980, 1_000_000, 4_999_990] {
        producer.send(&ProducerRecord::new(to, Some(b"k"), Some(&vec![7; bytes])).to(0)).expect("queued");
    }
    producer.commit(SOON).expect("committed");
    await_high(&admin, &at, 4);
}
