//! Producers of files and of rows in the log, in transactions and outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use task_api::murmur2_partition;
use task_api::system::{ProducerRecord, SystemError, SystemProducer, TopicHandle, TransactionalProducer};

use tracing::warn;

use super::files::Files;
use super::frame::Rows;
use super::home::{Block, Home};
use super::line::{self, Shape};
use super::log::BLOCK_BYTES;
use super::tally::Tally;

/// Lines outside transactions that wait to be written together.
const LINES_TOGETHER: usize = 1 << 20;

/// A producer of one thread.
pub(crate) struct FileProducer {
    home: Arc<Home>,
    files: Arc<Files>,
    tally: Arc<Tally>,
    /// Whether everything it sends belongs to a transaction.
    transactional: bool,
    in_transaction: bool,
    topics: Vec<(String, Target)>,
    blocks: Vec<Block>,
    /// By output, lines that are not written.
    lines: BTreeMap<usize, Vec<u8>>,
    /// How many lines were made since the last commit or flush.
    made: u64,
}

#[derive(Debug, Clone)]
enum Target {
    /// Rows of this topic of the log, which has so many partitions.
    Rows { topic: u32, partitions: u32 },
    /// Lines.
    Lines { output: usize, shape: Shape },
}

impl FileProducer {
    pub(crate) fn new(
        home: &Arc<Home>,
        files: &Arc<Files>,
        tally: &Arc<Tally>,
        transactional: bool,
    ) -> FileProducer {
        FileProducer {
            home: Arc::clone(home),
            files: Arc::clone(files),
            tally: Arc::clone(tally),
            transactional,
            in_transaction: false,
            topics: Vec::new(),
            blocks: Vec::new(),
            lines: BTreeMap::new(),
            made: 0,
        }
    }

    /// The transaction that is open is over.
    fn end(&mut self) -> Result<(), SystemError> {
        if !std::mem::take(&mut self.in_transaction) {
            return Err(SystemError::Fatal("no transaction is open".into()));
        }
        Ok(())
    }

    /// Adds a row to the last block, if it is one of the same partition and has room: a store's rows come together.
    fn row(&mut self, topic: u32, partition: u32, key: Option<&[u8]>, value: Option<&[u8]>) {
        let fits = |block: &&mut Block| {
            let open = block.first.is_none() && block.rows.bytes.len() < BLOCK_BYTES;
            open && (block.topic, block.partition) == (topic, partition)
        };
        match self.blocks.last_mut().filter(fits) {
            Some(block) => block.rows.push(0, key, value),
            None => {
                let mut rows = Rows::default();
                rows.push(0, key, value);
                self.blocks.push(Block { topic, partition, first: None, rows });
            }
        }
    }
}

impl Drop for FileProducer {
    fn drop(&mut self) {
        let bytes: usize = self.lines.values().map(Vec::len).sum();
        if bytes > 0 && !self.transactional {
            warn!(
                "{bytes} bytes of lines that are not written are dropped: what caused them is not committed"
            );
        }
    }
}

impl SystemProducer for FileProducer {
    fn topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError> {
        let known = self.topics.iter().position(|(name, _)| name == topic);
        let number = match known {
            Some(number) => number,
            None => {
                let target = match self.home.log(|log| log.partitions(topic)) {
                    Some((topic, partitions)) => Target::Rows { topic, partitions },
                    None => {
                        let output = self.home.output(&self.files.place(topic)?, self.transactional)?;
                        Target::Lines { output, shape: self.files.written_shape(topic) }
                    }
                };
                self.topics.push((topic.to_owned(), target));
                self.topics.len() - 1
            }
        };
        Ok(TopicHandle(u32::try_from(number).expect("a job has few topics")))
    }

    /// A file of lines has one partition, whichever a message names.
    fn partitions(&mut self, topic: TopicHandle) -> Result<i32, SystemError> {
        Ok(match &self.topics[topic.0 as usize].1 {
            Target::Lines { .. } => 1,
            Target::Rows { partitions, .. } => i32::try_from(*partitions).unwrap_or(i32::MAX),
        })
    }

    fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), SystemError> {
        if self.transactional != self.in_transaction {
            return Err(SystemError::Fatal("a message outside a transaction".into()));
        }
        match &self.topics[record.topic.0 as usize].1 {
            Target::Lines { output, shape } => {
                let lines = self.lines.entry(*output).or_default();
                line::write(record, shape, lines)
                    .map_err(|line::Unwritable(why)| SystemError::Refused(why))?;
                self.made += 1;
                if !self.transactional && lines.len() >= LINES_TOGETHER {
                    self.home.write(*output, lines, false)?;
                }
                Ok(())
            }
            Target::Rows { topic, partitions } => {
                let (topic, partitions) = (*topic, *partitions);
                let count = i32::try_from(partitions).unwrap_or(i32::MAX);
                let chosen = || murmur2_partition(record.key.unwrap_or_default(), count);
                let partition = record.partition.unwrap_or_else(chosen);
                let partition = u32::try_from(partition).ok().filter(|n| *n < partitions);
                let partition =
                    partition.ok_or_else(|| SystemError::Fatal("a row of no partition".into()))?;
                self.row(topic, partition, record.key, record.value);
                Ok(())
            }
        }
    }

    fn flush(&mut self, _: Duration) -> Result<(), SystemError> {
        if self.transactional {
            return self.home.reserve(&mut self.blocks);
        }
        self.lines.iter_mut().try_for_each(|(output, lines)| self.home.write(*output, lines, true))?;
        self.tally.written.add(std::mem::take(&mut self.made));
        Ok(())
    }
}

/// The lock on the folder is the fence: who writes to it is its only owner.
impl TransactionalProducer for FileProducer {
    fn init(&mut self, _: Duration) -> Result<(), SystemError> {
        Ok(())
    }

    fn begin(&mut self) -> Result<(), SystemError> {
        if self.in_transaction {
            return Err(SystemError::Fatal("a transaction is open".into()));
        }
        self.in_transaction = true;
        Ok(())
    }

    fn commit(&mut self, _: Duration) -> Result<(), SystemError> {
        self.end()?;
        self.home.commit(&mut self.blocks, &mut self.lines)?;
        self.tally.written.add(std::mem::take(&mut self.made));
        Ok(())
    }

    fn abort(&mut self, _: Duration) -> Result<(), SystemError> {
        self.end()?;
        self.blocks.clear();
        self.lines.clear();
        self.made = 0;
        Ok(())
    }
}
