//! Against a real broker: `make test` starts one and names it in `SAMZA_TEST_KAFKA`. What every system of streams does is in
//! `broker/conformance.rs`; here is what is Kafka's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kafka::{KafkaAdmin, KafkaConsumer, KafkaProducer};
use task_api::Header;
use task_api::system::{
    Isolation, Message, NewTopic, ProducerRecord, StartAt, SystemAdmin, SystemConsumer, SystemError,
    SystemProducer, TopicPartition, TransactionalProducer,
};

#[path = "broker/conformance.rs"]
mod conforming;
#[path = "broker/nameless.rs"]
mod nameless;
#[path = "broker/reading.rs"]
mod reading;
#[path = "broker/refusals.rs"]
mod refusals;
#[path = "broker/tls.rs"]
mod tls;

const SOON: Duration = Duration::from_secs(30);

fn bootstrap() -> String {
    std::env::var("SAMZA_TEST_KAFKA").expect("SAMZA_TEST_KAFKA names the brokers; `make test` starts them")
}

fn admin() -> KafkaAdmin {
    KafkaAdmin::new(&bootstrap(), &BTreeMap::new()).expect("settings are right")
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    now.as_millis() as u64
}

/// A fresh topic of one partition.
fn topic(admin: &KafkaAdmin, name: &str) -> TopicPartition {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let topic = format!("kafka-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let new = NewTopic { topic: topic.clone(), partitions: 1, replication: 1, config: BTreeMap::new() };
    admin.create(&[new]).expect("created");
    TopicPartition { topic, partition: 0 }
}

fn transactional(id: &str) -> KafkaProducer {
    let mut producer =
        KafkaProducer::transactional(&bootstrap(), id, &BTreeMap::new()).expect("settings are right");
    producer.init(SOON).expect("init");
    producer
}

fn send(producer: &mut KafkaProducer, to: &TopicPartition, value: &str) {
    let topic = producer.topic(&to.topic).expect("topic");
    producer
        .send(&ProducerRecord::new(topic, Some(b"k"), Some(value.as_bytes())).to(to.partition))
        .expect("queued");
}

fn read(admin: &KafkaAdmin, from: &TopicPartition, until: u64, isolation: Isolation) -> Vec<String> {
    let mut values = Vec::new();
    admin
        .read_range(from, 0, until, isolation, &mut |messages| {
            values.extend(
                messages.iter().map(|m| String::from_utf8_lossy(m.value.unwrap_or_default()).into_owned()),
            );
            Ok(())
        })
        .expect("read");
    values
}

fn high(admin: &KafkaAdmin, of: &TopicPartition) -> u64 {
    let since = Instant::now();
    loop {
        match admin.watermarks(std::slice::from_ref(of)) {
            Ok(ends) => return ends[0].high,
            // Not every broker has heard of a topic as soon as it is made.
            Err(SystemError::Retriable(_)) if since.elapsed() < SOON => {}
            Err(error) => panic!("{of:?}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_topics_brokers_are_told_with_their_racks() {
    let admin = admin();
    let of = topic(&admin, "racks");
    // Each look may go to another broker, which has not heard of it yet.
    let start = Instant::now();
    let found = loop {
        match admin.describe(std::slice::from_ref(&of.topic)).expect("told").pop() {
            Some(found) if found.partitions[0].leader.is_some() => break found,
            _ => assert!(start.elapsed() < SOON, "no broker knows it"),
        }
    };
    let brokers = found.brokers;
    let ids: BTreeSet<i32> = brokers.iter().map(|broker| broker.id).collect();
    assert_eq!(ids, found.partitions[0].replicas.iter().copied().collect(), "all of them are up");
    assert!(admin.live_brokers().expect("told") >= ids.len());
    assert!(
        brokers.iter().all(|broker| broker.host.starts_with("127.") && !broker.rack.is_empty()),
        "{brokers:?}"
    );
}

#[test]
fn an_unreachable_broker_is_retriable_and_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let settings = BTreeMap::from([("socket.connection.setup.timeout.ms".to_owned(), "1000".to_owned())]);
    let admin = KafkaAdmin::new(&addr, &settings).expect("settings are right");
    match admin.describe(&["x".into()]) {
        Err(SystemError::Retriable(why)) => assert!(why.contains(&addr), "{why}"),
        other => panic!("not retriable: {other:?}"),
    }
}

/// A consumer of `partitions` from `start` on.
fn consumer(partitions: &[(&TopicPartition, StartAt)]) -> KafkaConsumer {
    let mut consumer =
        KafkaConsumer::new(&bootstrap(), "reader", "reader", &BTreeMap::new()).expect("settings are right");
    let list: Vec<_> = partitions.iter().map(|(at, start)| ((*at).clone(), start.clone())).collect();
    consumer.assign(&list).expect("assigned");
    consumer
}

/// Polls until `count` messages came; their sources and values.
fn take(consumer: &mut KafkaConsumer, count: usize) -> Vec<(usize, String)> {
    let (mut seen, since) = (Vec::new(), Instant::now());
    while seen.len() < count {
        assert!(since.elapsed() < SOON, "only {seen:?}");
        consumer
            .poll(Duration::from_millis(100), &mut |messages| {
                let text =
                    |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
                seen.extend(messages.iter().map(|m| (m.source, text(m.value))));
                Ok(())
            })
            .expect("poll");
    }
    seen
}

/// A message as it was sent, or as it came.
type Whole = (Option<Vec<u8>>, Option<Vec<u8>>, Option<u64>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

fn whole(message: &Message<'_>) -> Whole {
    let header = |h: Header<'_>| (h.name.to_vec(), h.value.map(<[u8]>::to_vec));
    let owned = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
    let headers = message.headers.iter().map(header).collect();
    (owned(message.key), owned(message.value), message.timestamp_ms, headers)
}

/// The first `count` messages of a partition, each handed to `take` while it is borrowed.
fn each(of: &TopicPartition, count: usize, take: &mut dyn FnMut(&Message<'_>)) {
    let mut consumer =
        KafkaConsumer::new(&bootstrap(), "each", "each", &BTreeMap::new()).expect("settings are right");
    consumer.assign(&[(of.clone(), StartAt::Oldest)]).expect("assigned");
    let (mut seen, started) = (0, Instant::now());
    while seen < count && started.elapsed() < SOON {
        let mut messages = |messages: &[Message<'_>]| {
            messages.iter().for_each(&mut *take);
            Ok(())
        };
        seen += consumer.poll(Duration::from_millis(100), &mut messages).expect("polled");
    }
    assert_eq!(seen, count);
}

#[test]
fn headers_and_timestamps_come_back_as_they_were_sent_and_can_be_sent_on() {
    let admin = admin();
    let (first, second) = (topic(&admin, "headers-in"), topic(&admin, "headers-on"));
    let mut producer =
        KafkaProducer::idempotent(&bootstrap(), "headers", &BTreeMap::new()).expect("settings are right");
    let to = producer.topic(&first.topic).expect("topic");
    let names: Vec<String> = (0..100).map(|n| format!("header-{n}")).collect();
    let hundred: Vec<Header<'_>> = names.iter().map(|name| Header::new(name, name.as_bytes())).collect();
    let odd = [
        Header::new("same", b"1"),
        Header { name: b"same", value: None },
        Header::new("same", b""),
        Header { name: b"\xff\xfe", value: Some(b"\x00\x01") },
        Header::new("", b"no name"),
    ];
    let record = ProducerRecord::new(to, Some(b"k"), Some(b"v")).to(0);
    let sent = [
        ProducerRecord { headers: (&hundred).into(), timestamp_ms: Some(1_700_000_000_123), ..record },
        ProducerRecord { headers: (&odd).into(), ..record },
        ProducerRecord { timestamp_ms: Some(1), key: None, value: None, ..record },
        ProducerRecord { key: Some(b""), value: Some(b""), ..record },
    ];
    let before = unix_ms();
    sent.iter().for_each(|record| producer.send(record).expect("queued"));
    producer.flush(SOON).expect("flushed");

    // On: each message is sent while its headers still are where they came.
    let to = producer.topic(&second.topic).expect("topic");
    let mut came = Vec::new();
    each(&first, sent.len(), &mut |message| {
        came.push(whole(message));
        let Message { key, value, timestamp_ms, headers, .. } = *message;
        let on = ProducerRecord::new(to, key, value).to(0);
        producer.send(&ProducerRecord { timestamp_ms, headers, ..on }).expect("queued");
    });
    producer.flush(SOON).expect("flushed");
    let mut on = Vec::new();
    each(&second, sent.len(), &mut |message| on.push(whole(message)));
    assert_eq!(on, came);

    let of = |headers: &[Header<'_>]| -> Vec<_> {
        headers.iter().map(|h| (h.name.to_vec(), h.value.map(<[u8]>::to_vec))).collect()
    };
    let (text, now) = (|text: &str| Some(text.as_bytes().to_vec()), came[1].2);
    assert!(now.is_some_and(|now| (before..before + 60_000).contains(&now)), "{now:?}");
    assert_eq!(came[0], (text("k"), text("v"), Some(1_700_000_000_123), of(&hundred)));
    assert_eq!(came[1], (text("k"), text("v"), now, of(&odd)));
    assert_eq!(came[2], (None, None, Some(1), Vec::new()));
    assert_eq!((&came[3].0, &came[3].1, &came[3].3), (&text(""), &text(""), &Vec::new()));
}

#[test]
fn a_commit_that_fails_for_a_topic_that_is_not_there_names_it() {
    // How long a new topic's absence is put up with.
    let config = BTreeMap::from([("topic.metadata.propagation.max.ms".to_owned(), "200".to_owned())]);
    let mut producer =
        KafkaProducer::transactional(&bootstrap(), "no-topic", &config).expect("settings are right");
    producer.init(SOON).expect("init");
    producer.begin().expect("begin");
    let nowhere = TopicPartition { topic: "kafka-that-was-never-made".into(), partition: -1 };
    let topic = producer.topic(&nowhere.topic).expect("what is not there may come");
    let sent = producer.send(&ProducerRecord::new(topic, Some(b"k"), Some(b"v")));
    let told = sent.and_then(|()| producer.commit(SOON)).expect_err("there is no such topic").to_string();
    assert!(told.contains("kafka-that-was-never-made") && told.contains("nknown topic"), "{told}");
    producer.abort(SOON).expect("abort");
}
