//! Tests only: producers of the system in memory.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use task_api::system::{
    ProducerRecord, RefusedRecord, SystemError, SystemProducer, TopicHandle, TopicPartition,
    TransactionalProducer,
};
use task_api::{OwnedHeaders, murmur2_partition};

use super::{Entry, FakeSystem, Fate, Logs, MOST_BYTES, at};

/// One producer, plain or transactional.
pub(super) struct FakeProducer {
    system: FakeSystem,
    /// With its epoch, once it is initialised.
    id: Option<(String, u32)>,
    topics: Vec<String>,
    /// Of a system that is slow: what waits to be flushed.
    waiting: Vec<(TopicPartition, Entry)>,
    refused: VecDeque<RefusedRecord>,
    /// A message of the transaction was refused.
    is_spoilt: bool,
    /// The open transaction holds nothing: librdkafka begins and completes such a one by itself, without a look at
    /// whether the id is still this producer's.
    is_empty: bool,
}

impl FakeProducer {
    pub(super) fn new(system: &FakeSystem, id: Option<String>) -> FakeProducer {
        FakeProducer {
            system: system.clone(),
            id: id.map(|id| (id, 0)),
            topics: Vec::new(),
            waiting: Vec::new(),
            refused: VecDeque::new(),
            is_spoilt: false,
            is_empty: true,
        }
    }
    fn transactional<R>(&self, effect: impl FnOnce(&mut Logs, &str) -> R) -> Result<R, SystemError> {
        let (id, epoch) = self.id.as_ref().expect("a transactional producer");
        self.system.call(|logs| {
            if logs.epochs.get(id) != Some(epoch) {
                return Err(SystemError::Fenced(format!("{id} has been fenced")));
            }
            Ok(effect(logs, id))
        })
    }
    fn decide(&mut self, fate: Fate) -> Result<(), SystemError> {
        if std::mem::replace(&mut self.is_empty, true) {
            return self.system.call(|_| Ok(()));
        }
        self.transactional(|logs, id| logs.decide(id, fate))
    }
}

impl SystemProducer for FakeProducer {
    fn topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError> {
        if let Some(n) = self.topics.iter().position(|t| t == topic) {
            return Ok(TopicHandle(n as u32));
        }
        self.topics.push(topic.to_owned());
        Ok(TopicHandle(self.topics.len() as u32 - 1))
    }
    fn partitions(&mut self, topic: TopicHandle) -> Result<i32, SystemError> {
        let topic = &self.topics[topic.0 as usize];
        match self.system.call(|logs| Ok(logs.partitions_of(topic)))? {
            0 => Err(SystemError::Retriable(format!("no topic {topic}"))),
            partitions => Ok(partitions),
        }
    }
    fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), SystemError> {
        let ProducerRecord { topic, partition, key, value, timestamp_ms, headers, tag } = *record;
        if value.is_some_and(|value| value.len() > MOST_BYTES) {
            return Err(SystemError::Refused(format!("more than {MOST_BYTES} bytes")));
        }
        let name = &self.topics[topic.0 as usize];
        let most = self.system.broker.logs().refused_above.get(name).copied();
        if let Some(most) = most.filter(|most| value.is_some_and(|value| value.len() > *most)) {
            let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
            let (headers, why) = (OwnedHeaders::of(headers), format!("{name} takes {most} bytes"));
            self.is_spoilt = self.id.is_some();
            self.refused.push_back(RefusedRecord { topic, key, value, timestamp_ms, headers, tag, why });
            return Ok(());
        }
        let entry = |id: Option<&str>, fate| {
            let (headers, id) = (OwnedHeaders::of(headers), id.map(str::to_owned));
            Entry { timestamp_ms, headers, id, fate, ..Entry::plain(key, value) }
        };
        let place = |logs: &mut Logs| {
            let chosen = || murmur2_partition(key.unwrap_or_default(), logs.partitions_of(name));
            at(name, partition.unwrap_or_else(chosen))
        };
        let push = |logs: &mut Logs, entry: Entry| {
            let place = place(logs);
            logs.log(&place).map(|log| log.push(entry))
        };
        match &self.id {
            Some(_) => {
                self.transactional(|logs, id| push(logs, entry(Some(id), Fate::Open)))??;
                self.is_empty = false;
                Ok(())
            }
            None if self.system.life.is_slow.load(Ordering::SeqCst) => {
                let place = self.system.call(|logs| Ok(place(logs)))?;
                self.waiting.push((place, entry(None, Fate::Plain)));
                Ok(())
            }
            None => self.system.call(|logs| push(logs, entry(None, Fate::Plain))),
        }
    }
    fn flush(&mut self, _: Duration) -> Result<(), SystemError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.system.call(|logs| {
            waiting.into_iter().try_for_each(|(at, entry)| logs.log(&at).map(|log| log.push(entry)))
        })
    }
    fn refused(&mut self) -> Option<RefusedRecord> {
        self.refused.pop_front().filter(|_| self.id.is_none())
    }
}

impl TransactionalProducer for FakeProducer {
    fn init(&mut self, _: Duration) -> Result<(), SystemError> {
        let id = self.id.as_ref().expect("a transactional producer").0.clone();
        let epoch = self.system.call(|logs| Ok(logs.bump(&id)))?;
        self.id = Some((id, epoch));
        Ok(())
    }
    fn begin(&mut self) -> Result<(), SystemError> {
        self.is_empty = true;
        self.system.call(|_| Ok(()))
    }
    fn commit(&mut self, _: Duration) -> Result<(), SystemError> {
        if self.is_spoilt {
            return Err(SystemError::Refused("a message of the transaction was refused".into()));
        }
        self.decide(Fate::Committed)
    }
    fn abort(&mut self, _: Duration) -> Result<(), SystemError> {
        self.decide(Fate::Aborted)
    }
}
