//! What producers do with messages, in transactions and outside.

use std::collections::BTreeMap;

use task_api::system::{Isolation, ProducerRecord, RefusedRecord, SystemError};
use task_api::{Header, Headers, OwnedHeaders};

use crate::Stage;
use crate::script::{
    SOON, Seen, append, at, committed, high, numbers, owner, partition, range, refusals, sees, send,
    send_all, texts,
};

/// A text of so many bytes that no compression makes much smaller: a broker looks at what it gets.
pub(crate) fn noise(bytes: usize) -> String {
    let mut state = bytes as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + ((state >> 56) % 93) as u8)
    };
    (0..bytes).map(|_| next()).collect()
}

pub fn what_is_sent_is_there_once_it_is_flushed(stage: &dyn Stage) {
    let to = partition(stage, "flushed");
    let mut producer = stage.slow_producer();
    send(&mut *producer, &to, "a").expect("queued");
    assert_eq!(committed(stage, &to), [], "it has the time until then");
    producer.flush(SOON).expect("flushed");
    sees(stage, &to, &["a"]);
}

pub fn what_a_dropped_producer_has_not_flushed_is_gone(stage: &dyn Stage) {
    let to = partition(stage, "gone");
    let mut producer = stage.slow_producer();
    send_all(&mut *producer, &to, &["a"]);
    send(&mut *producer, &to, "never").expect("queued");
    drop(producer);
    append(stage, &to, &["b"]);
    sees(stage, &to, &["a", "b"]);
}

pub fn a_topic_has_one_handle(stage: &dyn Stage) {
    let topics = [partition(stage, "one").topic, partition(stage, "another").topic];
    let mut producer = owner(stage, &topics[0]);
    let handles = topics.clone().map(|topic| producer.topic(&topic).expect("topic"));
    assert_ne!(handles[0], handles[1]);
    assert_eq!(topics.map(|topic| producer.topic(&topic).expect("topic")), handles);
}

pub fn a_producer_knows_how_many_partitions_a_topic_has(stage: &dyn Stage) {
    let topic = stage.topic("counted", 3, &[]);
    let mut producer = owner(stage, &topic);
    let handle = producer.topic(&topic).expect("topic");
    assert_eq!(producer.partitions(handle), Ok(3));
}

pub fn of_a_topic_that_is_not_there_the_partitions_may_be_known_later(stage: &dyn Stage) {
    let mut producer = owner(stage, &unique_topic());
    let handle = producer.topic(&unique_topic()).expect("it may come");
    let told = producer.partitions(handle);
    assert!(matches!(told, Err(SystemError::Retriable(_))), "{told:?}");
}

fn unique_topic() -> String {
    crate::unique("conformance-nobody-made-this")
}

/// As Java's clients have it: `toPositive(murmur2(key)) % partitions`.
pub fn keys_choose_the_partition_that_kafkas_clients_choose(stage: &dyn Stage) {
    let topic = stage.topic("keys", 6, &[]);
    let mut producer = owner(stage, &topic);
    let handle = producer.topic(&topic).expect("topic");
    producer.begin().expect("begun");
    for n in 0..60 {
        let key = format!("UA{n}");
        producer.send(&ProducerRecord::new(handle, Some(key.as_bytes()), Some(b"x"))).expect("queued");
    }
    // Known from Kafka's own tests: murmur2 of "21" is -973932308, and that of "foobar" -790332482.
    for key in ["21", "foobar"] {
        producer.send(&ProducerRecord::new(handle, Some(key.as_bytes()), Some(b"y"))).expect("queued");
    }
    producer.commit(SOON).expect("committed");
    let mut places = BTreeMap::new();
    crate::script::wait_until("all are seen", || {
        places = (0..6)
            .flat_map(|n| {
                committed(stage, &at(&topic, n)).into_iter().map(move |m| (m.key.unwrap_or_default(), n))
            })
            .collect();
        places.len() == 62
    });
    for (key, partition) in &places {
        assert_eq!(task_api::murmur2_partition(key, 6), *partition);
    }
    let positive = |murmur: i32| (murmur & 0x7fff_ffff) % 6;
    assert_eq!(places[&b"21"[..]], positive(-973_932_308));
    assert_eq!(places[&b"foobar"[..]], positive(-790_332_482));
}

pub fn a_partition_that_is_not_there_refuses_its_message_alone(stage: &dyn Stage) {
    let to = partition(stage, "beyond");
    let mut producer = stage.producer();
    for partition in [-3, 7] {
        let sent = send(&mut *producer, &at(&to.topic, partition), "never");
        assert!(matches!(sent, Err(SystemError::Refused(_))), "{partition}: {sent:?}");
    }
    send_all(&mut *producer, &to, &["a"]);
    sees(stage, &to, &["a"]);
}

pub fn a_topic_that_is_not_there_refuses_its_messages_alone(stage: &dyn Stage) {
    let to = partition(stage, "there");
    let mut producer = stage.producer();
    let first = send(&mut *producer, &at(&unique_topic(), 0), "never");
    assert!(matches!(first, Ok(()) | Err(SystemError::Refused(_))), "{first:?}");
    send_all(&mut *producer, &to, &["a"]);
    assert_eq!(refusals(&mut *producer).len(), usize::from(first.is_ok()), "{first:?}");
    sees(stage, &to, &["a"]);
}

pub fn a_message_that_is_larger_than_the_client_sends_is_refused_alone(stage: &dyn Stage) {
    let to = partition(stage, "large");
    let mut producer = stage.producer();
    send(&mut *producer, &to, "a").expect("queued");
    let refused = send(&mut *producer, &to, &"x".repeat(2_000_000));
    assert!(matches!(refused, Err(SystemError::Refused(_))), "{refused:?}");
    send_all(&mut *producer, &to, &["b"]);
    assert_eq!(producer.refused(), None, "it was not queued");
    sees(stage, &to, &["a", "b"]);
}

pub fn a_message_that_its_topic_refuses_comes_back_whole_and_the_others_arrive(stage: &dyn Stage) {
    let to = at(&stage.topic("narrow", 1, &[("max.message.bytes", "500")]), 0);
    let mut producer = stage.producer();
    let topic = producer.topic(&to.topic).expect("topic");
    let (headers, large) = ([Header::new("h", b"1")], noise(800));
    for (n, value) in (0..).zip(["a", &large, "b"]) {
        let record = ProducerRecord {
            headers: Headers::from(&headers),
            timestamp_ms: Some(1_700_000_000_000 + u64::from(n)),
            tag: 7 + n,
            ..ProducerRecord::new(topic, Some(b"key"), Some(value.as_bytes())).to(0)
        };
        producer.send(&record).expect("queued");
    }
    producer.flush(SOON).expect("flushed");
    let refused = refusals(&mut *producer);
    let expected = RefusedRecord {
        topic,
        key: Some(b"key".to_vec()),
        value: Some(large.into_bytes()),
        timestamp_ms: Some(1_700_000_000_001),
        headers: OwnedHeaders::of(Headers::from(&headers)),
        tag: 8,
        why: refused.first().map(|refused| refused.why.clone()).unwrap_or_default(),
    };
    assert!(!expected.why.is_empty(), "{refused:?}");
    assert_eq!(refused, [expected]);
    // They may have shared a batch with it, and were sent again then.
    let mut there = range(stage, &to, 0, high(stage, &to), Isolation::ReadCommitted);
    there.sort_by_key(Seen::text);
    assert_eq!(texts(&there), ["a", "b"]);
    assert!(there.iter().all(|seen| seen.headers == OwnedHeaders::of(Headers::from(&headers))), "{there:?}");
    let times: Vec<_> = there.iter().map(|seen| seen.timestamp_ms).collect();
    assert_eq!(times, [Some(1_700_000_000_000), Some(1_700_000_000_002)]);
}

pub fn more_than_a_topic_takes_at_once_arrives_in_parts(stage: &dyn Stage) {
    let to = at(&stage.topic("parts", 1, &[("max.message.bytes", "500")]), 0);
    let mut producer = stage.producer();
    let topic = producer.topic(&to.topic).expect("topic");
    producer.takes_at_most(topic, 500);
    let values: Vec<String> = numbers(0, 20).iter().map(|n| noise(100) + n).collect();
    send_all(&mut *producer, &to, &values);
    assert_eq!(refusals(&mut *producer), []);
    sees(stage, &to, &values);
}
