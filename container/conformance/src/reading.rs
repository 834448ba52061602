//! What consumers hand over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use task_api::system::{Isolation, ProducerRecord, StartAt, SystemError};
use task_api::{Header, Headers, OwnedHeaders};

use crate::script::{
    SOON, append, at, high, numbers, partition, poll, range, reader, send, send_all, take, take_to, texts,
    wait_until,
};
use crate::{Can, Stage, can};

pub fn messages_of_a_partition_come_in_the_order_in_which_they_were_sent(stage: &dyn Stage) {
    let to = partition(stage, "order");
    append(stage, &to, &numbers(0, 500));
    let seen = take(&mut *reader(stage, &[(&to, StartAt::Oldest)]), 500);
    assert_eq!(texts(&seen), numbers(0, 500));
    assert!(seen.windows(2).all(|two| two[0].offset < two[1].offset), "offsets grow");
    assert!(seen.iter().all(|message| message.source == 0));
}

pub fn a_key_or_value_that_is_not_there_is_not_an_empty_one(stage: &dyn Stage) {
    let to = partition(stage, "none");
    let mut producer = stage.producer();
    let topic = producer.topic(&to.topic).expect("topic");
    let parts = [None, Some(&b""[..]), Some(b"x")];
    let all: Vec<_> = parts.iter().flat_map(|key| parts.iter().map(move |value| (*key, *value))).collect();
    for (key, value) in &all {
        producer.send(&ProducerRecord::new(topic, *key, *value).to(0)).expect("queued");
    }
    producer.flush(SOON).expect("flushed");
    let seen = take(&mut *reader(stage, &[(&to, StartAt::Oldest)]), all.len());
    let seen: Vec<_> = seen.iter().map(|m| (m.key.as_deref(), m.value.as_deref())).collect();
    assert_eq!(seen, all);
}

pub fn headers_and_times_come_as_they_were_sent(stage: &dyn Stage) {
    let to = partition(stage, "headers");
    let mut producer = stage.producer();
    let topic = producer.topic(&to.topic).expect("topic");
    let headers = [
        Header::new("a", b"1"),
        Header { name: b"b", value: None },
        Header::new("a", b""),
        Header::new("c", &[0, 255]),
    ];
    let record = ProducerRecord::new(topic, Some(b"k"), Some(b"v")).to(0);
    let with =
        ProducerRecord { headers: Headers::from(&headers), timestamp_ms: Some(1_700_000_000_123), ..record };
    producer.send(&with).expect("queued");
    producer.send(&record).expect("queued");
    producer.flush(SOON).expect("flushed");
    let seen = take(&mut *reader(stage, &[(&to, StartAt::Oldest)]), 2);
    assert_eq!(seen[0].headers, OwnedHeaders::of(Headers::from(&headers)));
    assert_eq!(seen[0].timestamp_ms, Some(1_700_000_000_123));
    assert_eq!(seen[1].headers, OwnedHeaders::default());
    if can(stage, Can::Administer) {
        let ranged = range(stage, &to, 0, high(stage, &to), Isolation::ReadCommitted);
        assert_eq!(ranged, seen, "a range hands over the same");
    }
}

pub fn a_message_without_a_time_is_of_now(stage: &dyn Stage) {
    let to = partition(stage, "now");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let before = now();
    append(stage, &to, &["x"]);
    let time = take(&mut *reader(stage, &[(&to, StartAt::Oldest)]), 1)[0].timestamp_ms;
    assert!(time.is_some_and(|time| (before..=now()).contains(&time)), "{time:?}, {before}");
}

pub fn sources_are_numbered_as_they_were_assigned_and_only_they_are_read(stage: &dyn Stage) {
    let (a, b, c) = (partition(stage, "a"), partition(stage, "b"), partition(stage, "c"));
    for (to, value) in [(&a, "of a"), (&b, "of b"), (&c, "of c")] {
        append(stage, to, &[value]);
    }
    let mut consumer = reader(stage, &[(&b, StartAt::Oldest), (&a, StartAt::Oldest)]);
    let mut seen = take(&mut *consumer, 2);
    seen.sort_by_key(|message| message.source);
    assert_eq!(
        seen.iter().map(|m| (m.source, m.text())).collect::<Vec<_>>(),
        [(0, "of b".to_owned()), (1, "of a".to_owned())]
    );
    // A new assignment takes the place of the old one.
    consumer.assign(&[(c.clone(), StartAt::Oldest)]).expect("assigned");
    assert_eq!(texts(&take_to(&mut *consumer, &[high(stage, &c)])), ["of c"]);
}

pub fn partitions_of_a_topic_are_read_each_for_itself(stage: &dyn Stage) {
    let topic = stage.topic("partitions", 3, &[]);
    for n in 0..3 {
        append(stage, &at(&topic, n), &[format!("{n}a"), format!("{n}b")]);
    }
    let (two, none) = (at(&topic, 2), at(&topic, 0));
    let mut consumer = reader(stage, &[(&two, StartAt::Oldest), (&none, StartAt::Oldest)]);
    let seen = take_to(&mut *consumer, &[2, 2]);
    for (source, n) in [(0, 2), (1, 0)] {
        let of: Vec<_> = seen.iter().filter(|m| m.source == source).cloned().collect();
        assert_eq!(texts(&of), [format!("{n}a"), format!("{n}b")]);
    }
}

pub fn the_error_of_who_takes_messages_is_returned_as_it_is(stage: &dyn Stage) {
    let to = partition(stage, "taker");
    append(stage, &to, &["x"]);
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    let mut error = None;
    wait_until("a message is handed over", || {
        let polled = consumer
            .poll(Duration::from_millis(50), &mut |_| Err(SystemError::Fatal("by the one who takes".into())));
        error = polled.err();
        error.is_some()
    });
    assert_eq!(error, Some(SystemError::Fatal("by the one who takes".into())));
}

pub fn a_paused_source_hands_over_nothing_and_then_goes_on_where_it_was(stage: &dyn Stage) {
    let (a, b) = (partition(stage, "paused"), partition(stage, "flowing"));
    append(stage, &a, &numbers(0, 3_000));
    append(stage, &b, &["first"]);
    let mut consumer = reader(stage, &[(&a, StartAt::Oldest), (&b, StartAt::Oldest)]);
    // Before its first message.
    consumer.pause(&[0]).expect("paused");
    let first = take_to_of(&mut *consumer, 1, high(stage, &b));
    assert_eq!(first, [(1, "first".to_owned())]);
    assert_eq!(consumer.caught_up_at(0), None, "nothing of it was read");
    consumer.resume(&[0]).expect("resumed");
    let mut seen = take(&mut *consumer, 1);
    // In the middle of what was fetched.
    consumer.pause(&[0]).expect("paused");
    let mut meanwhile = Vec::new();
    (0..5).for_each(|_| poll(&mut *consumer, &mut meanwhile));
    assert_eq!(meanwhile, []);
    consumer.resume(&[0]).expect("resumed");
    seen.extend(take_to(&mut *consumer, &[high(stage, &a)]));
    assert_eq!(texts(&seen), numbers(0, 3_000));
}

fn take_to_of(
    consumer: &mut dyn task_api::system::SystemConsumer,
    source: usize,
    end: u64,
) -> Vec<(usize, String)> {
    let mut seen = Vec::new();
    wait_until("the source is read to its end", || {
        poll(consumer, &mut seen);
        consumer.caught_up_at(source) == Some(end)
    });
    seen.iter().map(|m| (m.source, m.text())).collect()
}

pub fn a_source_that_was_read_to_its_end_and_paused_loses_nothing_that_comes_then(stage: &dyn Stage) {
    let (a, b) = (partition(stage, "end-a"), partition(stage, "end-b"));
    append(stage, &a, &numbers(0, 17));
    let mut consumer = reader(stage, &[(&a, StartAt::Oldest), (&b, StartAt::Oldest)]);
    // The ends of both come together, and behind messages.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(take_to(&mut *consumer, &[17, 0]).len(), 17);
    for n in 17..20 {
        consumer.pause(&[0, 1]).expect("paused");
        append(stage, &a, &[n.to_string()]);
        append(stage, &b, &[n.to_string()]);
        consumer.resume(&[0, 1]).expect("resumed");
        let mut seen = take_to(&mut *consumer, &[n + 1, n - 16]);
        seen.sort_by_key(|message| message.source);
        assert_eq!(
            seen.iter().map(|m| (m.source, m.text())).collect::<Vec<_>>(),
            [(0, n.to_string()), (1, n.to_string())]
        );
    }
    // Paused and resumed with nothing new, it is still at its end.
    consumer.pause(&[0]).expect("paused");
    consumer.resume(&[0]).expect("resumed");
    let mut nothing = Vec::new();
    (0..3).for_each(|_| poll(&mut *consumer, &mut nothing));
    append(stage, &a, &["last"]);
    assert_eq!(texts(&take_to(&mut *consumer, &[21, 0])), ["last"]);
    assert_eq!(nothing, []);
}

pub fn pauses_at_any_moment_lose_and_double_nothing(stage: &dyn Stage) {
    let of = [partition(stage, "any-a"), partition(stage, "any-b")];
    let mut consumer = reader(stage, &[(&of[0], StartAt::Oldest), (&of[1], StartAt::Oldest)]);
    let mut producer = stage.producer();
    let (mut sent, mut seen) = ([0, 0], Vec::new());
    for round in 0..30_usize {
        let source = round % 2;
        let until = sent[source] + (round * 37) % 50;
        for n in sent[source]..until {
            send(&mut *producer, &of[source], &n.to_string()).expect("queued");
        }
        sent[source] = until;
        if round % 3 > 0 {
            producer.flush(SOON).expect("flushed");
        }
        let paused: &[usize] = [&[0][..], &[1], &[0, 1]][round % 3];
        consumer.pause(paused).expect("paused");
        let before = seen.len();
        poll(&mut *consumer, &mut seen);
        assert!(seen[before..].iter().all(|m| !paused.contains(&m.source)), "a paused source came");
        consumer.resume(paused).expect("resumed");
        poll(&mut *consumer, &mut seen);
    }
    send_all(&mut *producer, &of[0], &[sent[0].to_string()]);
    sent[0] += 1;
    seen.extend(take_to(&mut *consumer, &[high(stage, &of[0]), high(stage, &of[1])]));
    for (source, sent) in sent.into_iter().enumerate() {
        let of: Vec<_> = seen.iter().filter(|m| m.source == source).cloned().collect();
        assert_eq!(texts(&of), numbers(0, sent), "source {source}");
    }
}
