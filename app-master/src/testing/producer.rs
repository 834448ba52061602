//! Transactional producers of the Kafka in memory.

use std::sync::MutexGuard;
use std::time::Duration;

use task_api::murmur2_partition;
use task_api::system::{
    ProducerRecord, SystemError, SystemProducer, TopicHandle, TopicPartition, TransactionalProducer,
};

use super::memory::{Inner, MAX_MESSAGE_BYTES, Memory, Row, Transaction};

/// A transactional producer.
pub struct MemoryProducer {
    memory: Memory,
    id: String,
    epoch: u32,
    number: u32,
    in_transaction: bool,
    /// The open transaction holds nothing: whether the id is still this producer's is not looked at then.
    is_empty: bool,
    /// A message of the transaction was refused: it can only be aborted.
    refused: Option<String>,
    /// With what they take at most, if that was told.
    topics: Vec<(String, usize)>,
}

impl MemoryProducer {
    pub(super) fn new(memory: &Memory, id: &str) -> MemoryProducer {
        MemoryProducer {
            memory: memory.clone(),
            id: id.to_owned(),
            epoch: 0,
            number: 0,
            in_transaction: false,
            is_empty: true,
            refused: None,
            topics: Vec::new(),
        }
    }
    fn checked(&self) -> Result<MutexGuard<'_, Inner>, SystemError> {
        let inner = self.memory.lock()?;
        if inner.epochs.get(&self.id) == Some(&self.epoch) {
            Ok(inner)
        } else {
            Err(SystemError::Fenced(format!("{} was registered again", self.id)))
        }
    }
    fn transaction(&self) -> Transaction {
        (self.id.clone(), self.epoch, self.number)
    }
    fn must_be_in_transaction(&self) -> Result<(), SystemError> {
        if self.in_transaction {
            return Ok(());
        }
        Err(SystemError::Fatal("no transaction is open".into()))
    }
    fn decide(&mut self, commits: bool) -> Result<(), SystemError> {
        self.must_be_in_transaction()?;
        if !self.is_empty {
            self.checked()?.decide(self.transaction(), commits);
        }
        self.in_transaction = false;
        Ok(())
    }
}

impl SystemProducer for MemoryProducer {
    fn topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError> {
        let known = self.topics.iter().position(|(known, _)| known == topic);
        let place = known.unwrap_or_else(|| {
            self.topics.push((topic.to_owned(), MAX_MESSAGE_BYTES));
            self.topics.len() - 1
        });
        Ok(TopicHandle(u32::try_from(place).expect("few topics")))
    }
    fn partitions(&mut self, topic: TopicHandle) -> Result<i32, SystemError> {
        let (topic, _) = &self.topics[topic.0 as usize];
        let shape = self.memory.lock()?.shape(topic);
        let (partitions, _) = shape.ok_or_else(|| SystemError::Retriable(format!("no topic {topic}")))?;
        Ok(partitions)
    }
    fn takes_at_most(&mut self, topic: TopicHandle, bytes: usize) {
        self.topics[topic.0 as usize].1 = bytes.min(MAX_MESSAGE_BYTES);
    }
    fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), SystemError> {
        self.must_be_in_transaction()?;
        let ProducerRecord { topic, partition, key, value, .. } = *record;
        let (topic, told) = self.topics[topic.0 as usize].clone();
        let bytes = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        if bytes > told {
            let what = "the client's message.max.bytes or the topic's max.message.bytes";
            return Err(SystemError::Refused(format!("{topic}: {bytes} bytes are more than {what}")));
        }
        let Some((partitions, most)) = self.memory.lock()?.shape(&topic) else {
            self.refused = Some(format!("there is no topic {topic}"));
            return Ok(());
        };
        let chosen = || murmur2_partition(key.unwrap_or_default(), partitions);
        let to = TopicPartition { topic, partition: partition.unwrap_or_else(chosen) };
        if !(0..partitions).contains(&to.partition) {
            return Err(SystemError::Refused(format!("there is no {to:?}")));
        }
        if bytes > most {
            self.refused = Some(format!("{bytes} bytes are more than {} takes", to.topic));
            return Ok(());
        }
        let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
        let row = Row { transaction: Some(self.transaction()), is_marker: false, key, value };
        self.checked()?.partition(&to)?.rows.push(row);
        self.is_empty = false;
        Ok(())
    }
    fn flush(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        Ok(())
    }
}

impl TransactionalProducer for MemoryProducer {
    fn init(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        self.epoch = self.memory.lock()?.register(&self.id);
        Ok(())
    }
    fn begin(&mut self) -> Result<(), SystemError> {
        if self.in_transaction || self.epoch == 0 {
            return Err(SystemError::Fatal("a transaction is open, or the id is not registered".into()));
        }
        self.number += 1;
        (self.in_transaction, self.is_empty) = (true, true);
        Ok(())
    }
    fn commit(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        match &self.refused {
            Some(why) => Err(SystemError::Refused(why.clone())),
            None => self.decide(true),
        }
    }
    fn abort(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        self.decide(false)
    }
}
