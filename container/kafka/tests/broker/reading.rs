//! Consumers that pause, resume and wait, against what librdkafka makes of it.

use std::time::{Duration, Instant};

use kafka::{KafkaAdmin, KafkaConsumer};
use task_api::system::{
    Message, Offset, PlainMessage, StartAt, SystemAdmin, SystemConsumer, SystemProducer, TopicPartition,
    TransactionalProducer,
};

use super::{SOON, admin, consumer, high, send, take, topic, transactional};

fn append(admin: &KafkaAdmin, to: &TopicPartition, values: &[&str]) {
    let message =
        |value: &&str| PlainMessage { to: to.clone(), key: b"k".to_vec(), value: Some((*value).into()) };
    admin.append(&values.iter().map(message).collect::<Vec<_>>()).expect("appended");
}

/// Polls until the sources have been read to these ends; what came.
fn take_until(consumer: &mut KafkaConsumer, ends: &[u64]) -> Vec<(usize, String)> {
    let (mut seen, since) = (Vec::new(), Instant::now());
    while ends.iter().enumerate().any(|(source, end)| consumer.caught_up_at(source) != Some(*end)) {
        assert!(since.elapsed() < SOON, "not at {ends:?}");
        consumer
            .poll(Duration::from_millis(100), &mut |messages| {
                let text =
                    |m: &Message<'_>| String::from_utf8_lossy(m.value.unwrap_or_default()).into_owned();
                seen.extend(messages.iter().map(|m| (m.source, text(m))));
                Ok(())
            })
            .expect("poll");
    }
    seen
}

/// Until the consumer's queue has both the messages and the end of partition behind them: they then come together.
const QUEUED: Duration = Duration::from_millis(500);

#[test]
fn after_ends_that_came_together_a_pause_skips_no_message() {
    let admin = admin();
    let (a, b) = (topic(&admin, "ends-a"), topic(&admin, "ends-b"));
    for first_message in [true, false] {
        let ends = [high(&admin, &a), high(&admin, &b)];
        let mut reader = consumer(&[(&a, StartAt::Newest), (&b, StartAt::Newest)]);
        std::thread::sleep(QUEUED);
        assert_eq!(take_until(&mut reader, &ends), []);
        reader.pause(&[0, 1]).expect("paused");
        if first_message {
            append(&admin, &a, &["x"]);
            append(&admin, &b, &["x"]);
        }
        reader.resume(&[0, 1]).expect("resumed");
        if !first_message {
            // A place behind the end would be out of range here.
            for _ in 0..5 {
                reader.poll(Duration::from_millis(50), &mut |_| Ok(())).expect("poll");
            }
            append(&admin, &a, &["x"]);
            append(&admin, &b, &["x"]);
        }
        let mut seen = take(&mut reader, 2);
        seen.sort();
        assert_eq!(seen, [(0, "x".to_owned()), (1, "x".to_owned())]);
    }
}

#[test]
fn after_messages_that_came_together_with_their_end_a_pause_skips_no_message() {
    let admin = admin();
    let at = topic(&admin, "end-behind");
    let values: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    append(&admin, &at, &values.iter().map(String::as_str).collect::<Vec<_>>());
    let mut reader = consumer(&[(&at, StartAt::Oldest)]);
    std::thread::sleep(QUEUED);
    assert_eq!(take_until(&mut reader, &[17]).len(), 17);
    // Again and again: each time the end is met in a batch.
    for n in 17..22 {
        reader.pause(&[0]).expect("paused");
        append(&admin, &at, &[&n.to_string()]);
        reader.resume(&[0]).expect("resumed");
        std::thread::sleep(QUEUED);
        assert_eq!(take_until(&mut reader, &[n + 1]), [(0, n.to_string())]);
    }
}

#[test]
fn pauses_at_any_moment_lose_and_double_nothing() {
    let admin = admin();
    let of = [topic(&admin, "any-a"), topic(&admin, "any-b")];
    let mut reader = consumer(&[(&of[0], StartAt::Oldest), (&of[1], StartAt::Oldest)]);
    let mut producer = transactional(&format!("any-{}", of[0].topic));
    let (mut sent, mut seen) = ([0, 0], Vec::new());
    for round in 0..60_usize {
        let source = round % 2;
        producer.begin().expect("begin");
        for _ in 0..(round * 37) % 50 {
            send(&mut producer, &of[source], &sent[source].to_string());
            sent[source] += 1;
        }
        if round % 7 == 6 {
            send(&mut producer, &of[source], "never seen");
            producer.flush(SOON).expect("flushed");
            producer.abort(SOON).expect("abort");
            sent[source] -= (round * 37) % 50;
        } else {
            producer.commit(SOON).expect("commit");
        }
        let paused: &[usize] = [&[0][..], &[1], &[0, 1]][round % 3];
        reader.pause(paused).expect("paused");
        let poll = |reader: &mut KafkaConsumer, seen: &mut Vec<(usize, String)>| {
            reader
                .poll(Duration::from_millis(round as u64 % 4 * 20), &mut |messages| {
                    let text =
                        |m: &Message<'_>| String::from_utf8_lossy(m.value.expect("a value")).into_owned();
                    seen.extend(messages.iter().map(|m| (m.source, text(m))));
                    Ok(())
                })
                .expect("poll");
        };
        poll(&mut reader, &mut seen);
        reader.resume(paused).expect("resumed");
        poll(&mut reader, &mut seen);
    }
    let ends = [high(&admin, &of[0]), high(&admin, &of[1])];
    seen.extend(take_until(&mut reader, &ends));
    for (source, sent) in sent.into_iter().enumerate() {
        let of: Vec<_> =
            seen.iter().filter(|(from, _)| *from == source).map(|(_, text)| text.clone()).collect();
        assert_eq!(of, (0..sent).map(|n| n.to_string()).collect::<Vec<_>>(), "source {source}");
    }
}

#[test]
fn a_place_that_is_not_there_is_an_error_that_names_it() {
    let admin = admin();
    let at = topic(&admin, "out-of-range");
    append(&admin, &at, &["a"]);
    let mut reader = consumer(&[(&at, StartAt::At(Offset("5".into())))]);
    let since = Instant::now();
    let told = loop {
        match reader.poll(Duration::from_millis(100), &mut |_| panic!("it has none")) {
            Ok(_) => assert!(since.elapsed() < SOON, "it is read from elsewhere"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(told.contains(&format!("{}-0 at 5: ", at.topic)) && told.contains("out of range"), "{told}");
}

#[test]
fn a_consumer_wakes_who_waits_for_several() {
    let admin = admin();
    let (a, b) = (topic(&admin, "wake-a"), topic(&admin, "wake-b"));
    let mut readers = [consumer(&[(&a, StartAt::Oldest)]), consumer(&[(&b, StartAt::Oldest)])];
    let this = std::thread::current();
    let wake: std::sync::Arc<dyn Fn() + Send + Sync> = std::sync::Arc::new(move || this.unpark());
    assert!(readers.iter_mut().all(|reader| reader.wake_with(wake.clone())));
    readers.iter_mut().for_each(|reader| drop(take_until(reader, &[0])));
    for (n, at) in [&a, &b, &b, &a].into_iter().enumerate() {
        append(&admin, at, &[&n.to_string()]);
        let (mut seen, since) = (0, Instant::now());
        while seen == 0 {
            // Far longer than the test may take: only being woken ends it.
            std::thread::park_timeout(SOON * 2);
            for reader in &mut readers {
                seen += reader.poll(Duration::ZERO, &mut |_| Ok(())).expect("poll");
            }
        }
        assert!(since.elapsed() < SOON, "nobody was woken");
    }
}
