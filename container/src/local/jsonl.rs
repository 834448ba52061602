//! The system of `type = "jsonl"`: streams are files of JSON lines; the job's own topics are in the log of its state
//! folder ([`super::home`]), so that claim, restore and commit run on it as they run on Kafka.
//!
//! Ownership is the lock on the folder, which the operating system gives to one process and takes away with it. So
//! there is nobody left to fence, and a transaction is open only in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use task_api::system::{
    BrokerMetadata, Configs, Isolation, Lost, Message, NewTopic, Offset, PartitionMetadata, PlainMessage,
    SystemAdmin, SystemConsumer, SystemError, SystemProducer, TopicMetadata, TopicPartition,
    TransactionalProducer, Watermarks,
};

use super::files::{Files, Place};
use super::frame::Frame;
use super::home::Home;
use super::reader::{FileConsumer, Tally, place_of};
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
        Ok(Box::new(FileProducer::new(&self.home, &self.files, false)))
    }
    fn transactional(&self, _: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        Ok(Box::new(FileProducer::new(&self.home, &self.files, true)))
    }
}

/// Questions and orders about files and the log.
struct FileAdmin {
    home: Arc<Home>,
    files: Arc<Files>,
}

impl FileAdmin {
    fn place(&self, at: &TopicPartition) -> Result<Place, SystemError> {
        let places = self.files.partitions(&at.topic)?;
        let place = usize::try_from(at.partition).ok().and_then(|n| places.into_iter().nth(n));
        place.ok_or_else(|| SystemError::Fatal(format!("{} has no partition {}", at.topic, at.partition)))
    }

    fn of_topic(&self, topic: &str) -> Result<Option<TopicMetadata>, SystemError> {
        let logged = self.home.log(|log| {
            let known = log.topics.iter().find(|t| t.name == topic)?;
            Some((known.id.clone(), known.partitions.len()))
        });
        let (topic_id, count) = match logged {
            Some(known) => known,
            // A file has no id that would tell it from one with the same beginning.
            None => (String::new(), self.files.partitions(topic)?.len()),
        };
        let of = |partition| PartitionMetadata { partition, ..PartitionMetadata::default() };
        let partitions: Vec<_> = (0..i32::try_from(count).unwrap_or(i32::MAX)).map(of).collect();
        let metadata = TopicMetadata { topic: topic.to_owned(), topic_id, partitions };
        Ok((count > 0).then_some(metadata))
    }

    fn ends(&self, at: &TopicPartition) -> Result<Watermarks, SystemError> {
        let logged = self.home.log(|log| {
            let (topic, partition) = log.find(&at.topic, at.partition)?;
            let of = &log.topics[topic as usize].partitions[partition as usize];
            Some(Watermarks { low: 0, high: of.reserved, stable: of.next })
        });
        match logged {
            Some(ends) => Ok(ends),
            None => {
                let high = file_of(&self.place(at)?)?.map_or(0, |(_, length)| length);
                Ok(Watermarks { low: 0, high, stable: high })
            }
        }
    }
}

/// The file and its length; none if it is a stream that cannot be read again.
fn file_of(place: &Place) -> Result<Option<(File, u64)>, SystemError> {
    let Place::At(path) = place else { return Ok(None) };
    let fail = |e: std::io::Error| SystemError::Fatal(format!("{place}: {e}"));
    let metadata = std::fs::metadata(path).map_err(fail)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some((File::open(path).map_err(fail)?, metadata.len())))
}

impl SystemAdmin for FileAdmin {
    fn brokers(&self) -> Result<Vec<BrokerMetadata>, SystemError> {
        Ok(Vec::new())
    }

    fn describe(&self, topics: &[String]) -> Result<Vec<TopicMetadata>, SystemError> {
        topics.iter().filter_map(|topic| self.of_topic(topic).transpose()).collect()
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
        let of = |(at, offset): &(TopicPartition, Offset)| {
            let place = self.place(at)?;
            let Some((file, length)) = file_of(&place)? else { return Ok(None) };
            let next = place_of(offset)?;
            if next > length {
                return Ok(Some(Lost::Recreated { high: length }));
            }
            if !begins_a_line(&file, next, length) {
                return Err(SystemError::Fatal(format!(
                    "{place}: byte {next}, where the job is to go on, is in the middle of a line: this is not the \
                     file that the job has read; start over with --fresh"
                )));
            }
            Ok(None)
        };
        starts.iter().map(of).collect()
    }

    fn fence(&self, _: &str) -> Result<(), SystemError> {
        Ok(())
    }
}

/// Whether a line may begin at `at`: at the file's end too, and at the newline of a line that had none when it was read.
fn begins_a_line(file: &File, at: u64, length: u64) -> bool {
    let is_newline = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).is_ok_and(|()| matches!(byte[0], b'\n' | b'\r'))
    };
    at == 0 || at == length || is_newline(at - 1) || is_newline(at)
}

#[cfg(test)]
mod tests;
