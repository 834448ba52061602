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
use crate::clock::unix_ms;

/// One producer, plain or transactional.
pub(super) struct FakeProducer {
    system: FakeSystem,
    /// With its epoch, once it is initialised.
    id: Option<(String, u32)>,
    /// With what they take at most, if that was told.
    topics: Vec<(String, Option<usize>)>,
    /// Of a system that is slow: what waits to be flushed.
    waiting: Vec<(TopicPartition, Entry)>,
    refused: VecDeque<RefusedRecord>,
    /// A message of the transaction was refused.
    is_spoilt: bool,
    in_transaction: bool,
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
            in_transaction: false,
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
        self.must_be_in_transaction()?;
        if std::mem::replace(&mut self.is_empty, true) {
            self.system.call(|_| Ok(()))?;
        } else {
            self.transactional(|logs, id| logs.decide(id, fate))?;
        }
        self.in_transaction = false;
        Ok(())
    }
    fn must_be_in_transaction(&self) -> Result<(), SystemError> {
        if self.in_transaction {
            return Ok(());
        }
        Err(SystemError::Fatal("no transaction is open".into()))
    }
    /// A broker refuses the message after it was sent.
    fn refuse(&mut self, record: &ProducerRecord<'_>, why: String) {
        let ProducerRecord { topic, key, value, timestamp_ms, headers, tag, .. } = *record;
        let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
        let headers = OwnedHeaders::of(headers);
        self.is_spoilt = self.id.is_some();
        self.refused.push_back(RefusedRecord { topic, key, value, timestamp_ms, headers, tag, why });
    }
}

impl SystemProducer for FakeProducer {
    fn topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError> {
        if let Some(n) = self.topics.iter().position(|(known, _)| known == topic) {
            return Ok(TopicHandle(n as u32));
        }
        self.topics.push((topic.to_owned(), None));
        Ok(TopicHandle(self.topics.len() as u32 - 1))
    }
    fn partitions(&mut self, topic: TopicHandle) -> Result<i32, SystemError> {
        let (topic, _) = &self.topics[topic.0 as usize];
        match self.system.call(|logs| Ok(logs.partitions_of(topic)))? {
            0 => Err(SystemError::Retriable(format!("no topic {topic}"))),
            partitions => Ok(partitions),
        }
    }
    fn takes_at_most(&mut self, topic: TopicHandle, bytes: usize) {
        self.topics[topic.0 as usize].1 = Some(bytes);
    }
    fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), SystemError> {
        let ProducerRecord { topic, partition, key, value, timestamp_ms, headers, .. } = *record;
        if self.id.is_some() {
            self.must_be_in_transaction()?;
        }
        let is_above = |most: &usize| value.is_some_and(|value| value.len() > *most);
        if is_above(&MOST_BYTES) {
            return Err(SystemError::Refused(format!("more than {MOST_BYTES} bytes")));
        }
        let (name, told) = self.topics[topic.0 as usize].clone();
        if let Some(most) = told.filter(is_above).filter(|_| self.id.is_some()) {
            return Err(SystemError::Refused(format!("{name} takes {most} bytes (its max.message.bytes)")));
        }
        let (most, partitions) = {
            let logs = self.system.broker.logs();
            (logs.most(&name), logs.partitions_of(&name))
        };
        if let Some(most) = most.filter(is_above) {
            self.refuse(record, format!("{name} takes {most} bytes"));
            return Ok(());
        }
        if partitions == 0 {
            self.refuse(record, format!("there is no topic {name}"));
            return Ok(());
        }
        let partition = partition.unwrap_or_else(|| murmur2_partition(key.unwrap_or_default(), partitions));
        if !(0..partitions).contains(&partition) {
            return Err(SystemError::Refused(format!("{name} has no partition {partition}")));
        }
        let place = at(&name, partition);
        let entry = |id: Option<&str>, fate| {
            let (headers, id) = (OwnedHeaders::of(headers), id.map(str::to_owned));
            let timestamp_ms = timestamp_ms.or_else(|| Some(unix_ms()));
            Entry { timestamp_ms, headers, id, fate, ..Entry::plain(key, value) }
        };
        let push = |logs: &mut Logs, entry: Entry| logs.log(&place).map(|log| log.push(entry));
        match &self.id {
            Some(_) => {
                self.transactional(|logs, id| push(logs, entry(Some(id), Fate::Open)))??;
                self.is_empty = false;
                Ok(())
            }
            None if self.system.life.is_slow.load(Ordering::SeqCst) => {
                self.waiting.push((place, entry(None, Fate::Plain)));
                self.system.call(|_| Ok(()))
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
        let is_registered = self.id.as_ref().is_some_and(|(_, epoch)| *epoch > 0);
        if self.in_transaction || !is_registered {
            return Err(SystemError::Fatal("a transaction is open, or the id is not registered".into()));
        }
        (self.in_transaction, self.is_empty) = (true, true);
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
