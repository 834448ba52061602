//! Against a real broker: `make test` starts one and names it in `SAMZA_TEST_KAFKA`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kafka::{KafkaAdmin, KafkaConsumer, KafkaProducer, murmur2_partition};
use task_api::system::{
    Isolation, Message, NewTopic, PlainMessage, ProducerRecord, StartAt, SystemAdmin, SystemConsumer,
    SystemError, SystemProducer, TopicPartition, TransactionalProducer,
};
use task_api::{Header, Headers};

#[path = "broker/conformance.rs"]
mod conforming;
#[path = "broker/reading.rs"]
mod reading;
#[path = "broker/refusals.rs"]
mod refusals;

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
    admin.watermarks(std::slice::from_ref(of)).expect("watermarks")[0].high
}

#[test]
fn what_is_sent_is_consumed_in_order_and_lag_is_known() {
    let admin = admin();
    let to = topic(&admin, "round-trip");
    let mut producer =
        KafkaProducer::idempotent(&bootstrap(), "test", &BTreeMap::new()).expect("settings are right");
    for n in 0..5_000 {
        send(&mut producer, &to, &n.to_string());
    }
    producer.flush(SOON).expect("flushed");

    let mut consumer =
        KafkaConsumer::new(&bootstrap(), "test", "test", &BTreeMap::new()).expect("settings are right");
    consumer.assign(&[(to, StartAt::Oldest)]).expect("assigned");
    let (mut next, mut last) = (0, None);
    let started = Instant::now();
    while next < 5_000 && started.elapsed() < SOON {
        consumer
            .poll(Duration::from_millis(100), &mut |messages| {
                for message in messages {
                    assert_eq!(message.value, Some(next.to_string().as_bytes()));
                    assert_eq!(message.source, 0);
                    assert!(message.timestamp_ms.is_some_and(|time| time > 0) && message.headers.is_empty());
                    next += 1;
                    last = Some(message.offset);
                }
                Ok(())
            })
            .expect("polled");
    }
    assert_eq!(next, 5_000);
    assert_eq!(last, Some(4_999));
    assert_eq!(consumer.lag(0, 5_000), Some(0));
    assert_eq!(consumer.lag(0, 4_000), Some(1_000));
    assert_eq!((consumer.start(0), consumer.offset(0, 5_000).0.as_str()), (Some(0), "5000"));
}

#[test]
fn aborted_messages_are_hidden_from_committed_readers_and_ranges_over_them_end() {
    let admin = admin();
    let to = topic(&admin, "aborted");
    let mut producer = transactional(&to.topic);
    for (value, commits) in [("a", true), ("b", false), ("c", true), ("d", false)] {
        producer.begin().expect("begin");
        send(&mut producer, &to, value);
        if commits {
            producer.commit(SOON).expect("commit");
        } else {
            producer.flush(SOON).expect("flushed");
            producer.abort(SOON).expect("abort");
        }
    }
    // The last control record comes a moment after its producer was told.
    let (expected, since) = (8, Instant::now());
    while high(&admin, &to) < expected {
        assert!(since.elapsed() < SOON, "{}: four messages and four control records", high(&admin, &to));
    }
    let high = high(&admin, &to);
    assert_eq!(high, expected);
    assert_eq!(read(&admin, &to, high, Isolation::ReadCommitted), ["a", "c"]);
    assert_eq!(read(&admin, &to, high, Isolation::ReadUncommitted), ["a", "b", "c", "d"]);
    assert_eq!(read(&admin, &to, 4, Isolation::ReadCommitted), ["a"], "a range ends where it is told");
    assert_eq!(read(&admin, &to, 0, Isolation::ReadCommitted), [""; 0], "an empty range is over at once");
}

#[test]
fn an_open_transaction_holds_the_stable_offset_below_the_high_watermark() {
    let admin = admin();
    let to = topic(&admin, "open");
    let mut producer = transactional(&to.topic);
    producer.begin().expect("begin");
    send(&mut producer, &to, "open");
    producer.flush(SOON).expect("flushed");
    let ends = admin.watermarks(std::slice::from_ref(&to)).expect("watermarks")[0];
    assert_eq!((ends.low, ends.high, ends.stable), (0, 1, 0));
    producer.commit(SOON).expect("commit");
    let started = Instant::now();
    while admin.watermarks(std::slice::from_ref(&to)).expect("watermarks")[0].stable < 2 {
        assert!(started.elapsed() < SOON, "the stable offset does not move");
    }
}

#[test]
fn a_newer_owner_of_an_id_fences_the_older_for_ever() {
    let admin = admin();
    let to = topic(&admin, "fenced");
    let mut old = transactional(&to.topic);
    old.begin().expect("begin");
    send(&mut old, &to, "never seen");
    old.flush(SOON).expect("flushed");
    admin.fence(&to.topic).expect("fenced");
    let ends = admin.watermarks(std::slice::from_ref(&to)).expect("watermarks")[0];
    assert_eq!(ends.stable, ends.high, "fencing aborts what was open before it returns");
    match old.commit(SOON) {
        Err(SystemError::Fenced(_)) => {}
        other => panic!("a fenced producer committed: {other:?}"),
    }
    assert_eq!(read(&admin, &to, ends.high, Isolation::ReadCommitted), [""; 0]);
}

#[test]
fn plain_appends_are_there_when_the_call_returns_also_beside_an_open_transaction() {
    let admin = admin();
    let to = topic(&admin, "plain");
    let mut open = transactional(&to.topic);
    open.begin().expect("begin");
    send(&mut open, &to, "open");
    open.flush(SOON).expect("flushed");
    let message = |value: Option<&str>| PlainMessage {
        to: to.clone(),
        key: b"owner".to_vec(),
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    admin.append(&[message(Some("one")), message(None)]).expect("appended");
    assert_eq!(read(&admin, &to, high(&admin, &to), Isolation::ReadUncommitted), ["open", "one", ""]);
    open.abort(SOON).expect("abort");
}

#[test]
fn topics_are_described_with_ids_and_missing_ones_are_left_out() {
    let admin = admin();
    let to = topic(&admin, "described");
    let found = admin.describe(&[to.topic.clone(), "no-such-topic".into()]).expect("described");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].topic, to.topic);
    assert!(found[0].topic_id.len() > 10, "{:?}", found[0].topic_id);
    assert!(found[0].partitions[0].leader.is_some());
    let more = NewTopic { topic: to.topic, partitions: 3, replication: 1, config: BTreeMap::new() };
    let refused = admin.create(&[more]).expect_err("fewer partitions").to_string();
    assert!(refused.contains("1 partitions") && refused.contains('3'), "{refused}");
}

#[test]
fn brokers_are_told_with_their_racks() {
    let brokers = admin().brokers().expect("told");
    assert!(!brokers.is_empty());
    assert!(
        brokers.iter().all(|broker| broker.host.starts_with("127.") && !broker.rack.is_empty()),
        "{brokers:?}"
    );
}

#[test]
fn keys_choose_the_partition_that_java_clients_choose() {
    let admin = admin();
    let name = topic(&admin, "murmur").topic + "-6";
    admin
        .create(&[NewTopic { topic: name.clone(), partitions: 6, replication: 1, config: BTreeMap::new() }])
        .expect("created");
    let mut producer =
        KafkaProducer::idempotent(&bootstrap(), "test", &BTreeMap::new()).expect("settings are right");
    let handle = producer.topic(&name).expect("topic");
    for n in 0..100 {
        producer
            .send(&ProducerRecord::new(handle, Some(format!("UA{n}").as_bytes()), Some(b"x")))
            .expect("queued");
    }
    producer.flush(SOON).expect("flushed");
    for partition in 0..6 {
        let of = TopicPartition { topic: name.clone(), partition };
        admin
            .read_range(&of, 0, high(&admin, &of), Isolation::ReadCommitted, &mut |messages| {
                for message in messages {
                    assert_eq!(murmur2_partition(message.key.expect("a key"), 6), partition);
                }
                Ok(())
            })
            .expect("read");
    }
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

#[test]
fn the_end_of_a_source_is_known_by_position_behind_what_cannot_be_seen() {
    let admin = admin();
    let at = topic(&admin, "end");
    let mut producer = transactional(&format!("ender-{}", at.topic));
    producer.begin().expect("begin");
    send(&mut producer, &at, "seen");
    producer.commit(SOON).expect("commit");
    producer.begin().expect("begin");
    send(&mut producer, &at, "aborted");
    producer.flush(SOON).expect("flush");
    producer.abort(SOON).expect("abort");
    let mut reader = consumer(&[(&at, StartAt::Oldest)]);
    assert_eq!(take(&mut reader, 1), [(0, "seen".to_owned())]);
    let since = Instant::now();
    while reader.caught_up_at(0) != Some(high(&admin, &at)) {
        assert!(since.elapsed() < SOON, "caught up at {:?}", reader.caught_up_at(0));
        reader.poll(Duration::from_millis(50), &mut |_| Ok(())).expect("poll");
    }
    assert_eq!(reader.lag(0, reader.caught_up_at(0).unwrap_or(0)), Some(0), "what cannot be seen is no lag");
}

#[test]
fn reading_starts_at_a_time() {
    let admin = admin();
    let at = topic(&admin, "time");
    let append = |value: &str| {
        let message = PlainMessage { to: at.clone(), key: b"k".to_vec(), value: Some(value.into()) };
        admin.append(&[message]).expect("appended");
    };
    append("before");
    let start = unix_ms() + 1;
    while unix_ms() < start {
        std::thread::yield_now();
    }
    append("after");
    assert_eq!(take(&mut consumer(&[(&at, StartAt::Timestamp(start))]), 1), [(0, "after".to_owned())]);
    let mut late = consumer(&[(&at, StartAt::Timestamp(start + 3_600_000))]);
    append("later");
    assert_eq!(take(&mut late, 1), [(0, "later".to_owned())]);
}

#[test]
fn a_message_that_is_too_large_is_refused_alone_with_headers_and_without() {
    let admin = admin();
    let at = topic(&admin, "headers");
    let mut producer =
        KafkaProducer::idempotent(&bootstrap(), "headers", &BTreeMap::new()).expect("settings are right");
    let handle = producer.topic(&at.topic).expect("topic");
    let headers = [Header::new("samza.stage", b"decode"), Header::new("samza.error", b"no text")];
    let record = |key, value| ProducerRecord::new(handle, key, value).to(0);
    let with = |record| ProducerRecord { headers: Headers::from(&headers), ..record };
    producer.send(&with(record(Some(b"k"), Some(b"dead")))).expect("queued");
    let large = vec![0; 2_000_000];
    for refused in [with(record(None, Some(&large))), record(None, Some(&large)), record(None, None).to(-3)] {
        let refused = producer.send(&refused);
        assert!(matches!(refused, Err(SystemError::Refused(_))), "{refused:?}");
    }
    producer.send(&with(record(None, None))).expect("queued");
    producer.flush(SOON).expect("the others are there");
    assert_eq!(read(&admin, &at, high(&admin, &at), Isolation::ReadCommitted), ["dead", ""]);
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
fn a_producer_knows_how_many_partitions_a_topic_has() {
    let admin = admin();
    let new = |topic: &str, partitions| {
        let (topic, config) = (topic.to_owned(), BTreeMap::new());
        admin.create(&[NewTopic { topic, partitions, replication: 1, config }]).expect("created");
    };
    let name = topic(&admin, "partitions").topic + "-seven";
    new(&name, 7);
    let mut producer =
        KafkaProducer::idempotent(&bootstrap(), "partitions", &BTreeMap::new()).expect("settings are right");
    let handle = producer.topic(&name).expect("topic");
    assert_eq!(producer.partitions(handle), Ok(7));
    let none = producer.topic(&format!("{name}-none")).expect("it may come");
    let told = producer.partitions(none);
    assert!(told.as_ref().is_err_and(|e| e.to_string().contains("-none")), "{told:?}");
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

#[test]
fn messages_that_are_gone_are_told() {
    let admin = admin();
    let at = topic(&admin, "lost");
    admin.append(&[PlainMessage { to: at.clone(), key: b"k".to_vec(), value: None }]).expect("appended");
    let lost = |offset: &str| {
        admin.lost(&[(at.clone(), task_api::Offset(offset.into()))]).map(|found| found[0].clone())
    };
    assert_eq!(lost("0"), Ok(None));
    assert_eq!(lost("1"), Ok(None), "the next message to arrive is not lost");
    assert_eq!(lost("2"), Ok(Some(task_api::system::Lost::Recreated { high: 1 })));
    assert!(lost("soon").is_err());
}
