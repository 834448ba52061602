//! What tests are written with: sends, polls, and waits for conditions.

use std::time::{Duration, Instant};

use task_api::OwnedHeaders;
use task_api::system::{
    Isolation, Message, PlainMessage, ProducerRecord, RefusedRecord, StartAt, SystemConsumer, SystemError,
    SystemProducer, TopicPartition, TransactionalProducer, Watermarks,
};

use crate::{Can, Stage, can};

/// What takes longer never comes.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How long a poll waits.
const POLL: Duration = Duration::from_millis(50);

/// A message that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) source: usize,
    pub(crate) offset: u64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) timestamp_ms: Option<u64>,
    pub(crate) headers: OwnedHeaders,
}

impl Seen {
    fn of(message: &Message<'_>) -> Seen {
        Seen {
            source: message.source,
            offset: message.offset,
            key: message.key.map(<[u8]>::to_vec),
            value: message.value.map(<[u8]>::to_vec),
            timestamp_ms: message.timestamp_ms,
            headers: OwnedHeaders::of(message.headers),
        }
    }
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }
}

pub(crate) fn texts(seen: &[Seen]) -> Vec<String> {
    seen.iter().map(Seen::text).collect()
}

/// The numbers from `from` to below `until` as texts.
pub(crate) fn numbers(from: usize, until: usize) -> Vec<String> {
    (from..until).map(|n| n.to_string()).collect()
}

pub(crate) fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition { topic: topic.to_owned(), partition }
}

/// A new topic of one partition.
pub(crate) fn partition(stage: &dyn Stage, name: &str) -> TopicPartition {
    at(&stage.topic(name, 1, &[]), 0)
}

#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < SOON, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn send(
    producer: &mut dyn SystemProducer,
    to: &TopicPartition,
    value: &str,
) -> Result<(), SystemError> {
    let topic = producer.topic(&to.topic)?;
    producer.send(&ProducerRecord::new(topic, Some(b"k"), Some(value.as_bytes())).to(to.partition))
}

/// Sends these and flushes.
#[track_caller]
pub(crate) fn send_all(producer: &mut dyn SystemProducer, to: &TopicPartition, values: &[impl AsRef<str>]) {
    values.iter().for_each(|value| send(producer, to, value.as_ref()).expect("queued"));
    producer.flush(SOON).expect("flushed");
}

/// Appends plain messages.
#[track_caller]
pub(crate) fn append(stage: &dyn Stage, to: &TopicPartition, values: &[impl AsRef<str>]) {
    if can(stage, Can::SendPlain) {
        return send_all(&mut *stage.producer(), to, values);
    }
    let message =
        |value: &str| PlainMessage { to: to.clone(), key: b"k".to_vec(), value: Some(value.into()) };
    let messages: Vec<_> = values.iter().map(|value| message(value.as_ref())).collect();
    stage.admin().append(&messages).expect("appended");
}

/// The owner of a transactional id.
#[track_caller]
pub(crate) fn owner(stage: &dyn Stage, id: &str) -> Box<dyn TransactionalProducer> {
    let mut producer = stage.transactional(id);
    producer.init(SOON).expect("it owns the id");
    producer
}

/// The owner of an id of its own, with a transaction open that has sent these.
#[track_caller]
pub(crate) fn opened(
    stage: &dyn Stage,
    to: &TopicPartition,
    values: &[&str],
) -> Box<dyn TransactionalProducer> {
    let mut producer = owner(stage, &crate::unique(&to.topic));
    begin(&mut *producer, to, values);
    producer
}

#[track_caller]
pub(crate) fn begin(producer: &mut dyn TransactionalProducer, to: &TopicPartition, values: &[&str]) {
    producer.begin().expect("begun");
    send_all(producer, to, values);
}

/// Appends a transaction that is committed, with its marker.
#[track_caller]
pub(crate) fn append_committed(stage: &dyn Stage, to: &TopicPartition, values: &[&str]) {
    decide(stage, to, values, true);
}

/// Appends a transaction that is aborted, with its marker.
#[track_caller]
pub(crate) fn append_aborted(stage: &dyn Stage, to: &TopicPartition, values: &[&str]) {
    decide(stage, to, values, false);
}

fn decide(stage: &dyn Stage, to: &TopicPartition, values: &[&str], commits: bool) {
    let before = high(stage, to);
    let mut producer = opened(stage, to, values);
    let decided = if commits { producer.commit(SOON) } else { producer.abort(SOON) };
    decided.expect("decided");
    // A producer is told before the marker is there.
    let marker = before + values.len() as u64 + 1;
    wait_until("the marker is there", || ends(stage, to).stable == marker);
}

/// A consumer of these.
#[track_caller]
pub(crate) fn reader(
    stage: &dyn Stage,
    partitions: &[(&TopicPartition, StartAt)],
) -> Box<dyn SystemConsumer> {
    let mut consumer = stage.consumer();
    let list: Vec<_> = partitions.iter().map(|(at, start)| ((*at).clone(), start.clone())).collect();
    consumer.assign(&list).expect("assigned");
    consumer
}

#[track_caller]
pub(crate) fn poll(consumer: &mut dyn SystemConsumer, seen: &mut Vec<Seen>) {
    let before = seen.len();
    let polled = consumer.poll(POLL, &mut |messages| {
        seen.extend(messages.iter().map(Seen::of));
        Ok(())
    });
    assert_eq!(polled.expect("polled"), seen.len() - before, "it tells how many it has handed over");
}

/// Polls until so many messages came.
#[track_caller]
pub(crate) fn take(consumer: &mut dyn SystemConsumer, count: usize) -> Vec<Seen> {
    let (mut seen, since) = (Vec::new(), Instant::now());
    while seen.len() < count {
        assert!(since.elapsed() < SOON, "only these came of {count}: {seen:?}");
        poll(consumer, &mut seen);
    }
    seen
}

/// Polls until each source was read to this end; what came.
#[track_caller]
pub(crate) fn take_to(consumer: &mut dyn SystemConsumer, ends: &[u64]) -> Vec<Seen> {
    let (mut seen, since) = (Vec::new(), Instant::now());
    let is_before = |consumer: &dyn SystemConsumer| {
        ends.iter().enumerate().any(|(source, end)| consumer.caught_up_at(source).is_none_or(|at| at < *end))
    };
    while is_before(consumer) {
        assert!(since.elapsed() < SOON, "not at {ends:?}, but at {:?}", consumer.caught_up_at(0));
        poll(consumer, &mut seen);
    }
    seen
}

#[track_caller]
pub(crate) fn ends(stage: &dyn Stage, of: &TopicPartition) -> Watermarks {
    let admin = stage.admin();
    let since = Instant::now();
    loop {
        match admin.watermarks(std::slice::from_ref(of)) {
            Ok(ends) => return ends[0],
            // Not every broker has heard of a topic as soon as it is made.
            Err(SystemError::Retriable(_)) if since.elapsed() < SOON => {}
            Err(error) => panic!("{of:?}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
pub(crate) fn high(stage: &dyn Stage, of: &TopicPartition) -> u64 {
    ends(stage, of).high
}

#[track_caller]
pub(crate) fn range(
    stage: &dyn Stage,
    of: &TopicPartition,
    from: u64,
    until: u64,
    isolation: Isolation,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    let read = stage.admin().read_range(of, from, until, isolation, &mut |messages| {
        seen.extend(messages.iter().map(Seen::of));
        Ok(())
    });
    read.expect("read");
    seen
}

/// What a reader of committed messages sees now.
#[track_caller]
pub(crate) fn committed(stage: &dyn Stage, of: &TopicPartition) -> Vec<Seen> {
    let end = ends(stage, of).stable;
    if can(stage, Can::Administer) {
        return range(stage, of, 0, end, Isolation::ReadCommitted);
    }
    take_to(&mut *reader(stage, &[(of, StartAt::Oldest)]), &[end])
}

/// Waits until a reader of committed messages sees as many as these; they are these.
#[track_caller]
pub(crate) fn sees(stage: &dyn Stage, of: &TopicPartition, values: &[impl AsRef<str>]) {
    let mut seen = Vec::new();
    wait_until("committed messages are seen", || {
        seen = committed(stage, of);
        seen.len() >= values.len()
    });
    assert_eq!(texts(&seen), values.iter().map(|value| value.as_ref().to_owned()).collect::<Vec<_>>());
}

/// What the system has refused so far.
pub(crate) fn refusals(producer: &mut dyn SystemProducer) -> Vec<RefusedRecord> {
    std::iter::from_fn(|| producer.refused()).collect()
}
