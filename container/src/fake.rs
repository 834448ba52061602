//! Tests only: a system in memory with Kafka's rules for transactions, and processes on it that can be made to
//! crash at any of their calls, before or after it took effect.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use task_api::OwnedHeaders;
use task_api::system::{
    Configs, Isolation, LogEnd, Lost, Message, NewTopic, Offset, PartitionMetadata, PlainMessage,
    SystemAdmin, SystemConsumer, SystemError, SystemProducer, TopicMetadata, TopicPartition,
    TransactionalProducer, Watermarks, configs_of,
};

use self::consumer::FakeConsumer;
use self::producer::FakeProducer;
use crate::board::Board;
use crate::clock::unix_ms;
use crate::systems::System;

mod conforming;
mod consumer;
mod harm;
mod producer;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Plain,
    Open,
    Committed,
    Aborted,
    Control,
}

#[derive(Debug, Clone)]
struct Entry {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp_ms: Option<u64>,
    headers: OwnedHeaders,
    /// Of a transaction: the producer's id.
    id: Option<String>,
    fate: Fate,
}

#[derive(Debug, Default)]
struct Logs {
    partitions: BTreeMap<TopicPartition, Vec<Entry>>,
    /// By topic: the settings that it was given.
    configs: BTreeMap<String, BTreeMap<String, String>>,
    /// By transactional id: how often it was initialised.
    epochs: BTreeMap<String, u32>,
    /// By topic: longer values are refused after they were sent.
    refused_above: BTreeMap<String, usize>,
    /// By topic: how often it was made.
    made: BTreeMap<String, u32>,
    /// How often a consumer's partition was paused.
    pauses: usize,
    /// How often consumers were polled, and asked where they are.
    polls: usize,
    questions: usize,
    /// Where partitions begin that were cut at their begin.
    lows: BTreeMap<TopicPartition, u64>,
    /// By partition: where each leader epoch after the first begins.
    leaders: BTreeMap<TopicPartition, Vec<(i32, u64)>>,
}

impl Entry {
    fn plain(key: Option<&[u8]>, value: Option<&[u8]>) -> Entry {
        Entry {
            key: key.map(<[u8]>::to_vec),
            value: value.map(<[u8]>::to_vec),
            timestamp_ms: None,
            headers: OwnedHeaders::default(),
            id: None,
            fate: Fate::Plain,
        }
    }
}

impl Logs {
    /// Decides what the id has open.
    fn decide(&mut self, id: &str, fate: Fate) {
        for log in self.partitions.values_mut() {
            let mut any = false;
            for entry in log.iter_mut().filter(|e| e.fate == Fate::Open && e.id.as_deref() == Some(id)) {
                entry.fate = fate;
                any = true;
            }
            if any {
                log.push(Entry { id: Some(id.to_owned()), fate: Fate::Control, ..Entry::plain(None, None) });
            }
        }
    }
    fn bump(&mut self, id: &str) -> u32 {
        self.decide(id, Fate::Aborted);
        let epoch = self.epochs.entry(id.to_owned()).or_default();
        *epoch += 1;
        *epoch
    }
    /// A broker may not have heard of it yet.
    fn log(&mut self, at: &TopicPartition) -> Result<&mut Vec<Entry>, SystemError> {
        self.partitions.get_mut(at).ok_or_else(|| SystemError::Retriable(format!("no partition {at:?}")))
    }
    fn low(&self, at: &TopicPartition) -> u64 {
        self.lows.get(at).copied().unwrap_or(0)
    }
    /// Makes a topic, empty.
    fn make(&mut self, topic: &str, partitions: i32) {
        self.remove(topic);
        *self.made.entry(topic.to_owned()).or_default() += 1;
        self.partitions.extend((0..partitions).map(|n| (at(topic, n), Vec::new())));
    }
    fn remove(&mut self, topic: &str) {
        self.partitions.retain(|at, _| at.topic != topic);
        self.lows.retain(|at, _| at.topic != topic);
        self.leaders.retain(|at, _| at.topic != topic);
    }
    /// The longest value that a topic takes, if it has a limit.
    fn most(&self, topic: &str) -> Option<usize> {
        let set = self.configs.get(topic).and_then(|set| set.get("max.message.bytes")?.parse().ok());
        set.into_iter().chain(self.refused_above.get(topic).copied()).min()
    }
    fn configure(&mut self, topic: &str, set: &BTreeMap<String, String>) -> Result<(), SystemError> {
        types::check_topic_settings(set).map_err(SystemError::Fatal)?;
        self.configs.entry(topic.to_owned()).or_default().extend(set.clone());
        Ok(())
    }
    /// Where a reader of committed messages ends.
    fn stable(log: &[Entry]) -> u64 {
        log.iter().position(|e| e.fate == Fate::Open).unwrap_or(log.len()) as u64
    }
    fn partitions_of(&self, topic: &str) -> i32 {
        self.partitions.keys().filter(|p| p.topic == topic).count() as i32
    }
}

/// The brokers: outlive every process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Broker(Arc<Mutex<Logs>>);

/// A message with all its parts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Whole {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) timestamp_ms: Option<u64>,
    pub(crate) headers: OwnedHeaders,
}

/// A row of a committed read: offset, key, value.
pub(crate) type Committed = (u64, Vec<u8>, Option<Vec<u8>>);

impl Broker {
    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.0.lock().expect("the fake does not panic")
    }
    /// Makes a topic, anew if there is one.
    pub(crate) fn topic(&self, topic: &str, partitions: i32) {
        self.logs().make(topic, partitions);
    }
    /// From now on the topic refuses longer values, after they were sent.
    pub(crate) fn refuse_above(&self, topic: &str, bytes: usize) {
        self.logs().refused_above.insert(topic.to_owned(), bytes);
    }
    pub(crate) fn pauses(&self) -> usize {
        self.logs().pauses
    }
    /// What a consumer was asked for each poll, on average.
    pub(crate) fn questions_per_poll(&self) -> usize {
        let logs = self.logs();
        logs.questions / logs.polls.max(1)
    }
    pub(crate) fn delete(&self, topic: &str) {
        self.logs().remove(topic);
    }
    pub(crate) fn append(&self, topic: &str, partition: i32, key: &[u8], value: Option<&[u8]>) {
        let entry = Entry::plain(Some(key), value);
        self.logs().log(&at(topic, partition)).expect("a topic of the test").push(entry);
    }
    /// Appends a message as it is.
    pub(crate) fn append_whole(&self, topic: &str, partition: i32, message: &Whole) {
        let (timestamp_ms, headers) = (message.timestamp_ms, message.headers.clone());
        let entry =
            Entry { timestamp_ms, headers, ..Entry::plain(message.key.as_deref(), message.value.as_deref()) };
        self.logs().log(&at(topic, partition)).expect("a topic of the test").push(entry);
    }
    /// What a reader of committed messages sees, whole.
    pub(crate) fn committed_whole(&self, topic: &str, partition: i32) -> Vec<Whole> {
        let logs = self.logs();
        let log = logs.partitions[&at(topic, partition)].iter();
        let seen = log.filter(|e| matches!(e.fate, Fate::Plain | Fate::Committed));
        seen.map(|e| Whole {
            key: e.key.clone(),
            value: e.value.clone(),
            timestamp_ms: e.timestamp_ms,
            headers: e.headers.clone(),
        })
        .collect()
    }
    /// Appends to a transaction of `id`, which stays open until it is decided.
    pub(crate) fn append_open(&self, id: &str, topic: &str, partition: i32, value: &[u8]) {
        let entry =
            Entry { id: Some(id.to_owned()), fate: Fate::Open, ..Entry::plain(Some(b"k"), Some(value)) };
        self.logs().log(&at(topic, partition)).expect("a topic of the test").push(entry);
    }
    /// Commits or aborts the open transaction of `id`.
    pub(crate) fn decide(&self, id: &str, commits: bool) {
        self.logs().decide(id, if commits { Fate::Committed } else { Fate::Aborted });
    }
    /// What a reader of committed messages sees.
    pub(crate) fn committed(&self, topic: &str, partition: i32) -> Vec<Committed> {
        self.committed_by(topic, partition).into_iter().map(|(_, row)| row).collect()
    }
    /// With the transactional ids.
    pub(crate) fn committed_by(&self, topic: &str, partition: i32) -> Vec<(Option<String>, Committed)> {
        let logs = self.logs();
        let seen = |e: &&Entry| matches!(e.fate, Fate::Plain | Fate::Committed);
        let log = logs.partitions[&at(topic, partition)].iter().enumerate();
        log.filter(|(_, e)| seen(e))
            .map(|(n, e)| (e.id.clone(), (n as u64, e.key.clone().unwrap_or_default(), e.value.clone())))
            .collect()
    }
}

/// Larger values are refused.
const MOST_BYTES: usize = 1_000;

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition { topic: topic.to_owned(), partition }
}

type OnCrash = Box<dyn Fn() + Send + Sync>;

/// Told what to do next when everything is read.
type OnIdle = Box<dyn Fn() -> Idle + Send + Sync>;

thread_local! {
    /// Whether the thread holds messages that it was handed, or would: then it is not idle.
    pub(crate) static HOLDS: Cell<bool> = const { Cell::new(false) };
}

/// What happens when everything is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Idle {
    /// The process goes on, for there may be something new.
    GoesOn,
    /// It crashes.
    Crashes,
    /// Every stream ends here.
    Ends,
}

/// One process's way to the brokers.
#[derive(Clone)]
pub(crate) struct FakeSystem {
    broker: Broker,
    life: Arc<Life>,
}

struct Life {
    /// Calls until the crash, each counted before and after its effect; below zero: none planned.
    left: AtomicI64,
    crashed: AtomicBool,
    on_crash: Option<OnCrash>,
    /// Told to stop when all inputs are read.
    board: Option<Arc<Board>>,
    on_idle: Option<OnIdle>,
    /// Streams end where they are.
    ended: AtomicBool,
    calls: AtomicI64,
    /// Every third call of the admin is answered with "later".
    flaky: AtomicBool,
    /// What plain producers send is there when they are flushed, and gone with a producer that was not.
    is_slow: AtomicBool,
    asked: AtomicI64,
    /// Messages that ranges may still give; below zero: any number.
    range: AtomicI64,
}

impl FakeSystem {
    /// A process that crashes at its call number `crash_at` (in half calls) and then runs `on_crash`, or, with none,
    /// lives; it stops `board` when it has read everything.
    pub(crate) fn new(
        broker: &Broker,
        crash_at: Option<u64>,
        on_crash: Option<OnCrash>,
        board: Option<Arc<Board>>,
    ) -> FakeSystem {
        FakeSystem::with(broker, crash_at, on_crash, board, None)
    }
    /// A process that asks what to do when it has read everything.
    pub(crate) fn asking(broker: &Broker, on_idle: OnIdle) -> FakeSystem {
        FakeSystem::with(broker, None, None, None, Some(on_idle))
    }
    fn with(
        broker: &Broker,
        crash_at: Option<u64>,
        on_crash: Option<OnCrash>,
        board: Option<Arc<Board>>,
        on_idle: Option<OnIdle>,
    ) -> FakeSystem {
        let life = Life {
            left: AtomicI64::new(crash_at.map_or(-1, |n| n as i64)),
            crashed: AtomicBool::new(false),
            on_crash,
            board,
            on_idle,
            ended: AtomicBool::new(false),
            calls: AtomicI64::new(0),
            flaky: AtomicBool::new(false),
            is_slow: AtomicBool::new(false),
            asked: AtomicI64::new(0),
            range: AtomicI64::new(-1),
        };
        FakeSystem { broker: broker.clone(), life: Arc::new(life) }
    }
    pub(crate) fn has_crashed(&self) -> bool {
        self.life.crashed.load(Ordering::SeqCst)
    }
    /// From now on messages outside transactions leave their producer only when it is flushed.
    pub(crate) fn be_slow(&self) {
        self.life.is_slow.store(true, Ordering::SeqCst);
    }
    /// Reading a range fails for good after so many messages.
    pub(crate) fn break_ranges_after(&self, messages: i64) {
        self.life.range.store(messages, Ordering::SeqCst);
    }
    /// From now on every third question or order is answered with "later".
    pub(crate) fn be_flaky(&self) {
        self.life.flaky.store(true, Ordering::SeqCst);
    }
    fn ask<R>(&self, effect: impl FnOnce(&mut Logs) -> Result<R, SystemError>) -> Result<R, SystemError> {
        if self.life.flaky.load(Ordering::SeqCst) && self.life.asked.fetch_add(1, Ordering::SeqCst) % 3 == 0 {
            return Err(SystemError::Retriable("later".into()));
        }
        self.call(effect)
    }
    /// Half calls made.
    pub(crate) fn calls(&self) -> i64 {
        self.life.calls.load(Ordering::SeqCst)
    }

    fn tick(&self) -> Result<(), SystemError> {
        let dead = || Err(SystemError::Fatal("crashed".into()));
        if self.has_crashed() {
            return dead();
        }
        self.life.calls.fetch_add(1, Ordering::SeqCst);
        if self.life.left.load(Ordering::SeqCst) < 0 {
            return Ok(());
        }
        if self.life.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            if !self.life.crashed.swap(true, Ordering::SeqCst)
                && let Some(run) = &self.life.on_crash
            {
                run();
            }
            return dead();
        }
        Ok(())
    }

    /// A call: may crash before or after it takes effect.
    fn call<R>(&self, effect: impl FnOnce(&mut Logs) -> Result<R, SystemError>) -> Result<R, SystemError> {
        self.tick()?;
        let result = effect(&mut self.broker.logs())?;
        self.tick()?;
        Ok(result)
    }
}

impl System for FakeSystem {
    fn admin(&self) -> Arc<dyn SystemAdmin> {
        Arc::new(self.clone())
    }
    fn consumer(&self, _: &str, _: &str) -> Result<Box<dyn SystemConsumer>, SystemError> {
        Ok(Box::new(FakeConsumer::new(self)))
    }
    fn producer(&self, _: &str) -> Result<Box<dyn SystemProducer>, SystemError> {
        Ok(Box::new(FakeProducer::new(self, None)))
    }
    fn transactional(&self, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        Ok(Box::new(FakeProducer::new(self, Some(id.to_owned()))))
    }
}

impl SystemAdmin for FakeSystem {
    fn describe(&self, topics: &[String]) -> Result<Vec<TopicMetadata>, SystemError> {
        self.ask(|logs| {
            let of = |topic: &String| TopicMetadata {
                topic: topic.clone(),
                topic_id: match logs.made.get(topic) {
                    Some(made) if *made > 1 => format!("id no. {made} of {topic}"),
                    Some(_) | None => format!("id of {topic}"),
                },
                partitions: (0..logs.partitions_of(topic))
                    .map(|partition| PartitionMetadata { partition, ..PartitionMetadata::default() })
                    .collect(),
                brokers: Vec::new(),
            };
            Ok(topics.iter().map(of).filter(|t| !t.partitions.is_empty()).collect())
        })
    }
    fn live_brokers(&self) -> Result<usize, SystemError> {
        Ok(0)
    }
    fn describe_configs(&self, topics: &[String]) -> Result<BTreeMap<String, Configs>, SystemError> {
        self.ask(|logs| {
            let there = topics.iter().filter(|topic| logs.partitions_of(topic) > 0);
            let none = BTreeMap::new();
            let of = |topic: &String| configs_of(logs.configs.get(topic).unwrap_or(&none));
            Ok(there.map(|topic| (topic.clone(), of(topic))).collect())
        })
    }
    fn alter_configs(&self, topic: &str, set: &BTreeMap<String, String>) -> Result<(), SystemError> {
        self.ask(|logs| {
            if logs.partitions_of(topic) == 0 {
                return Err(SystemError::Retriable(format!("no topic {topic}")));
            }
            logs.configure(topic, set)
        })
    }
    fn create(&self, topics: &[NewTopic]) -> Result<(), SystemError> {
        self.ask(|logs| {
            for NewTopic { topic, partitions, config, .. } in topics {
                match logs.partitions_of(topic) {
                    0 => {
                        logs.configure(topic, config)?;
                        logs.make(topic, *partitions);
                    }
                    has if has < *partitions => {
                        let why =
                            format!("topic {topic} exists with {has} partitions, {partitions} are needed");
                        return Err(SystemError::Fatal(why));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
    }
    fn topics(&self) -> Result<Vec<String>, SystemError> {
        self.ask(|logs| {
            let mut names: Vec<String> = logs.partitions.keys().map(|at| at.topic.clone()).collect();
            names.dedup();
            Ok(names)
        })
    }
    fn extend(&self, topic: &str, partitions: i32) -> Result<(), SystemError> {
        self.ask(|logs| {
            let has = logs.partitions_of(topic);
            if has == 0 {
                return Err(SystemError::Fatal(format!("there is no topic {topic}")));
            }
            logs.partitions.extend((has..partitions).map(|n| (at(topic, n), Vec::new())));
            Ok(())
        })
    }
    fn watermarks(&self, partitions: &[TopicPartition]) -> Result<Vec<Watermarks>, SystemError> {
        self.ask(|logs| {
            let of = |at: &TopicPartition| {
                let low = logs.low(at);
                let log = logs.log(at)?;
                let (high, stable) = (log.len() as u64, Logs::stable(log));
                Ok(Watermarks { low, high, stable, leader_epoch: Some(logs.leader_epoch(at, high)) })
            };
            partitions.iter().map(of).collect()
        })
    }
    fn read_range(
        &self,
        partition: &TopicPartition,
        from: u64,
        until: u64,
        isolation: Isolation,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        let (log, low) = self.ask(|logs| Ok((logs.log(partition)?.clone(), logs.low(partition))))?;
        let from = from.max(low);
        for (n, entry) in log.iter().enumerate().take(until as usize).skip(from as usize) {
            let seen = match isolation {
                Isolation::ReadUncommitted => entry.fate != Fate::Control,
                Isolation::ReadCommitted => matches!(entry.fate, Fate::Plain | Fate::Committed),
            };
            if seen
                && self.life.range.load(Ordering::SeqCst) >= 0
                && self.life.range.fetch_sub(1, Ordering::SeqCst) == 0
            {
                return Err(SystemError::Fatal("the range is broken".into()));
            }
            if seen {
                take(&[message(0, n as u64, entry)])?;
            }
        }
        Ok(())
    }
    fn append(&self, messages: &[PlainMessage]) -> Result<(), SystemError> {
        for message in messages {
            self.ask(|logs| {
                let entry = Entry::plain(Some(&message.key), message.value.as_deref());
                logs.log(&message.to)?.push(Entry { timestamp_ms: Some(unix_ms()), ..entry });
                Ok(())
            })?;
        }
        Ok(())
    }
    fn lost(&self, starts: &[(TopicPartition, Offset)]) -> Result<Vec<Option<Lost>>, SystemError> {
        self.ask(|logs| {
            let of = |(at, offset): &(TopicPartition, Offset)| {
                let (low, high, offset) = (logs.low(at), logs.log(at)?.len() as u64, parse(offset)?);
                let truncated = (offset < low).then_some(Lost::Truncated { low });
                Ok(truncated.or((offset > high).then_some(Lost::Recreated { high })))
            };
            starts.iter().map(of).collect()
        })
    }
    fn cut(&self, seen: &[(TopicPartition, LogEnd)]) -> Result<Vec<bool>, SystemError> {
        self.ask(|logs| {
            let was_cut = |(at, end): &(TopicPartition, LogEnd)| {
                end.leader_epoch.is_some_and(|epoch| logs.end_of_epoch(at, epoch) < end.offset)
            };
            Ok(seen.iter().map(was_cut).collect())
        })
    }
    fn fence(&self, transactional_id: &str) -> Result<(), SystemError> {
        self.ask(|logs| {
            logs.bump(transactional_id);
            Ok(())
        })
    }
}

fn parse(offset: &Offset) -> Result<u64, SystemError> {
    offset.0.parse().map_err(|_| SystemError::Fatal(format!("`{offset}` is no offset")))
}

fn message(source: usize, offset: u64, entry: &Entry) -> Message<'_> {
    let (key, value) = (entry.key.as_deref(), entry.value.as_deref());
    Message { source, offset, key, value, timestamp_ms: entry.timestamp_ms, headers: entry.headers.get() }
}
