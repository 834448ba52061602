//! The system of `type = "jsonl"`: streams are files of JSON lines; the job's own topics are in the log of its state
//! folder ([`super::home`]), so that claim, restore and commit run on it as they run on Kafka.
//!
//! Ownership is the lock on the folder, which the operating system gives to one process and takes away with it. So
//! there is nobody left to fence, and a transaction is open only in memory.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use task_api::system::{
    Configs, Isolation, Lost, Message, NewTopic, Offset, PartitionMetadata, PlainMessage, SystemAdmin,
    SystemConsumer, SystemError, SystemProducer, TopicMetadata, TopicPartition, TransactionalProducer,
    Watermarks,
};

use super::files::Files;
use super::frame::Frame;
use super::home::Home;
use super::input::Input;
use super::position::{Position, Trace};
use super::reader::FileConsumer;
use super::tally::Tally;
use super::writer::FileProducer;
use crate::systems::System;

/// One system of files.
pub(crate) struct Jsonl {
    home: Arc<Home>,
    files: Arc<Files>,
    tally: Arc<Tally>,
}

impl Jsonl {
    pub(crate) fn new(home: &Arc<Home>, files: Files, tally: &Arc<Tally>) -> Jsonl {
        Jsonl { home: Arc::clone(home), files: Arc::new(files), tally: Arc::clone(tally) }
    }
}

impl System for Jsonl {
    fn admin(&self) -> Arc<dyn SystemAdmin> {
        Arc::new(FileAdmin { home: Arc::clone(&self.home), files: Arc::clone(&self.files) })
    }
    fn consumer(&self, _: &str, _: &str) -> Result<Box<dyn SystemConsumer>, SystemError> {
        Ok(Box::new(FileConsumer::new(&self.files, &self.tally)))
    }
    fn producer(&self, _: &str) -> Result<Box<dyn SystemProducer>, SystemError> {
        Ok(Box::new(FileProducer::new(&self.home, &self.files, &self.tally, false)))
    }
    fn transactional(&self, _: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        Ok(Box::new(FileProducer::new(&self.home, &self.files, &self.tally, true)))
    }
}

/// Questions and orders about files and the log.
struct FileAdmin {
    home: Arc<Home>,
    files: Arc<Files>,
}

impl FileAdmin {
    fn of_topic(&self, topic: &str) -> Result<Option<TopicMetadata>, SystemError> {
        let logged = self.home.log(|log| {
            let known = log.topics.iter().find(|t| t.name == topic)?;
            Some((known.id.clone(), known.partitions.len()))
        });
        let (topic_id, count) = match logged {
            Some(known) => known,
            // A file has no id that would tell it from one with the same beginning.
            None => {
                let found = match self.files.partitions(topic) {
                    Err(_) if !self.files.inputs.contains_key(topic) => return Ok(None),
                    found => found?,
                };
                self.home.reads(&found)?;
                (String::new(), found.places.len())
            }
        };
        let of = |partition| PartitionMetadata { partition, ..PartitionMetadata::default() };
        let partitions: Vec<_> = (0..i32::try_from(count).unwrap_or(i32::MAX)).map(of).collect();
        let metadata = TopicMetadata { topic: topic.to_owned(), topic_id, partitions, brokers: Vec::new() };
        Ok((count > 0).then_some(metadata))
    }

    fn ends(&self, at: &TopicPartition) -> Result<Watermarks, SystemError> {
        let logged = self.home.log(|log| {
            let (topic, partition) = log.find(&at.topic, at.partition)?;
            let of = &log.topics[topic as usize].partitions[partition as usize];
            Some(Watermarks { low: 0, high: of.reserved, stable: of.next, leader_epoch: None })
        });
        match logged {
            Some(ends) => Ok(ends),
            None => {
                let place = self.files.partition(&at.topic, at.partition)?;
                let length = Input::open(&place, &Arc::default())?.length();
                // What comes once ends when it does, wherever that is.
                let high =
                    length.map_err(|e| SystemError::Fatal(format!("{place}: {e}")))?.unwrap_or(u64::MAX);
                Ok(Watermarks { low: 0, high, stable: high, leader_epoch: None })
            }
        }
    }

    /// What has become of the file of which `offset` is a place.
    fn lost_in_file(&self, at: &TopicPartition, offset: &Offset) -> Result<Option<Lost>, SystemError> {
        let Position { next, trace } = Position::parse(offset)?;
        let place = self.files.partition(&at.topic, at.partition)?;
        let mut input = Input::open(&place, &Arc::default())?;
        if input.file().is_none() {
            return Ok(None);
        }
        let fail = |e: std::io::Error| SystemError::Fatal(format!("{place}: {e}"));
        let (reached, before) = input.go_to(next).map_err(fail)?;
        let what = if reached < next {
            format!("it ends at byte {reached}")
        } else if trace.is_some_and(|trace| trace != Trace::of(&before)) {
            format!("what is before byte {next} is not what was there")
        } else if !begins_a_line(&input, next, &before).map_err(fail)? {
            format!("byte {next} is in the middle of a line")
        } else {
            return Ok(None);
        };
        let input = self.files.input(&at.topic);
        if input.must_be_the_same {
            return Err(SystemError::Fatal(format!(
                "{place} is not the file that the job has read up to byte {next}: {what}. Put that file back, start over \
                 with --fresh, or say `offset-lost = \"oldest\"` in [streams.\"{}\"] to read any new file from its \
                 beginning",
                input.stream
            )));
        }
        Ok(Some(Lost::Recreated { high: reached }))
    }
}

impl SystemAdmin for FileAdmin {
    fn describe(&self, topics: &[String]) -> Result<Vec<TopicMetadata>, SystemError> {
        topics.iter().filter_map(|topic| self.of_topic(topic).transpose()).collect()
    }

    fn live_brokers(&self) -> Result<usize, SystemError> {
        Ok(0)
    }

    fn describe_configs(&self, topics: &[String]) -> Result<BTreeMap<String, Configs>, SystemError> {
        Ok(self.home.log(|log| {
            let there = log.topics.iter().filter(|topic| topics.contains(&topic.name));
            there.map(|topic| (topic.name.clone(), topic.configs())).collect()
        }))
    }

    fn alter_configs(&self, topic: &str, set: &BTreeMap<String, String>) -> Result<(), SystemError> {
        self.home.log(|log| {
            let mut frame = Frame::default();
            log.alter(topic, set, &mut frame)?;
            log.append(frame)
        })
    }

    fn create(&self, topics: &[NewTopic]) -> Result<(), SystemError> {
        self.home.log(|log| {
            let mut frame = Frame::default();
            for NewTopic { topic, partitions, config, .. } in topics {
                log.topic(topic, u32::try_from(*partitions).unwrap_or(0), config, &mut frame)?;
            }
            log.append(frame)
        })
    }

    fn topics(&self) -> Result<Vec<String>, SystemError> {
        Err(SystemError::Fatal("a folder of files has no topics to list".into()))
    }

    fn extend(&self, topic: &str, _: i32) -> Result<(), SystemError> {
        Err(SystemError::Fatal(format!("{topic}: files have no partitions to add")))
    }

    fn watermarks(&self, partitions: &[TopicPartition]) -> Result<Vec<Watermarks>, SystemError> {
        partitions.iter().map(|at| self.ends(at)).collect()
    }

    fn read_range(
        &self,
        partition: &TopicPartition,
        from: u64,
        until: u64,
        _: Isolation,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        // Nothing is in the log that is not committed.
        let rows = self.home.log(|log| {
            let (topic, number) = log.find(&partition.topic, partition.partition)?;
            Some(log.snapshot(topic, number, from, until))
        });
        let none = || SystemError::Fatal(format!("no topic {} in the state folder", partition.topic));
        rows.ok_or_else(none)?.rows(from, until, take)
    }

    fn append(&self, messages: &[PlainMessage]) -> Result<(), SystemError> {
        self.home.append(messages)
    }

    fn lost(&self, starts: &[(TopicPartition, Offset)]) -> Result<Vec<Option<Lost>>, SystemError> {
        starts.iter().map(|(at, offset)| self.lost_in_file(at, offset)).collect()
    }

    fn fence(&self, _: &str) -> Result<(), SystemError> {
        Ok(())
    }
}

/// Whether a line may begin at `next`, after `before`: at the file's end too, and at the newline of a line that had none
/// when it was read.
fn begins_a_line(input: &Input, next: u64, before: &[u8]) -> std::io::Result<bool> {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    if before.last().is_none_or(is_end) {
        return Ok(true);
    }
    let Some(file) = input.file().filter(|_| input.is_plain()) else { return Ok(true) };
    let mut byte = [0];
    Ok(file.read_at(&mut byte, next)? == 0 || is_end(&byte[0]))
}

#[cfg(test)]
mod tests;
