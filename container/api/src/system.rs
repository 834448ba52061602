//! What a system of streams must offer: Samza's SystemConsumer, SystemProducer and SystemAdmin, in batches.
//!
//! Calls block; each consumer and producer belongs to one task thread. [`Offset`] is an opaque text to everyone
//! but its system; inside a batch offsets are `u64`s, ordered within a partition, that only the system may turn
//! into text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::headers::{Headers, OwnedHeaders};

mod cluster;

pub use cluster::{
    BrokerMetadata, ConfigEntry, ConfigSource, Configs, NewTopic, PartitionMetadata, TopicMetadata,
    configs_of,
};

/// A place in a partition, as its system writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub String);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A system's errors, by what the caller must do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SystemError {
    /// A newer owner fenced this producer: exit as fenced, write nothing.
    #[error("fenced: {0}")]
    Fenced(String),
    /// It may go well later.
    #[error("{0}")]
    Retriable(String),
    /// It will not go well.
    #[error("{0}")]
    Fatal(String),
    /// This one message cannot be sent; it was not, and nothing else is harmed.
    #[error("{0}")]
    Refused(String),
}

impl SystemError {
    /// Says where it happened.
    #[must_use]
    pub fn during(self, what: &str) -> SystemError {
        let told = |why: String| format!("{what}: {why}");
        match self {
            SystemError::Fenced(why) => SystemError::Fenced(told(why)),
            SystemError::Retriable(why) => SystemError::Retriable(told(why)),
            SystemError::Fatal(why) => SystemError::Fatal(told(why)),
            SystemError::Refused(why) => SystemError::Refused(told(why)),
        }
    }
}

/// One partition of one physical topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The physical topic.
    pub topic: String,
    /// The partition, from 0.
    pub partition: i32,
}

/// One message of a batch, borrowed from the consumer's buffers.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Which of the assigned partitions: its place in the list given to [`SystemConsumer::assign`].
    pub source: usize,
    /// Its offset.
    pub offset: u64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Unix ms, none if unknown.
    pub timestamp_ms: Option<u64>,
    /// Its headers, which its system need not have read yet.
    pub headers: Headers<'a>,
}

/// Something in a partition that is no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Of which of the assigned partitions.
    pub source: usize,
    /// Its offset.
    pub offset: u64,
    /// It as it is, or as much of it as is worth keeping.
    pub bytes: Vec<u8>,
    /// For people: where it is and what is wrong with it.
    pub why: String,
}

/// Where reading a partition begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAt {
    /// The oldest message there is.
    Oldest,
    /// The next to arrive.
    Newest,
    /// This one: the next message to read.
    At(Offset),
    /// The first message of this time (unix ms) or later.
    Timestamp(u64),
}

/// Reads messages that are committed (`read_committed`).
pub trait SystemConsumer {
    /// Starts reading these partitions and no others.
    ///
    /// # Errors
    /// A partition is unknown or its offset no longer exists.
    fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), SystemError>;

    /// Waits up to `timeout` for messages and hands them over in batches: `take` is called with slices whose
    /// messages are in order within each source. Returns how many there were.
    ///
    /// # Errors
    /// The system failed, or `take` did (its error is returned as it is, and the rest of the batch is lost: the
    /// caller must end).
    fn poll(
        &mut self,
        timeout: Duration,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<usize, SystemError>;

    /// Where reading the source began, as it was found out when it was assigned: nothing below it is handed over. None
    /// for as long as only the first message will tell.
    fn start(&self, source: usize) -> Option<u64>;

    /// The text of a place that is between messages: a start, one past a message's offset, or where the source was read
    /// to its end. Assigned with it, the source goes on there.
    fn offset(&self, source: usize, position: u64) -> Offset {
        let _ = source;
        Offset(position.to_string())
    }

    /// Messages between `position` and the end of the source as last heard; none if nothing was heard yet. What cannot
    /// be read yet counts, because its transaction is open.
    fn lag(&self, source: usize, position: u64) -> Option<u64>;

    /// Stops fetching these sources. What of them was fetched and not handed over comes after [`Self::resume`], but is
    /// fetched again then.
    ///
    /// # Errors
    /// The system failed.
    fn pause(&mut self, sources: &[usize]) -> Result<(), SystemError>;

    /// Fetches these sources again.
    ///
    /// # Errors
    /// The system failed.
    fn resume(&mut self, sources: &[usize]) -> Result<(), SystemError>;

    /// Where reading must go on for the message at `offset` to be the next: at its offset, but for systems whose offsets
    /// tell where a message ends, such as files, which know it of the message before alone (none).
    fn position_of(&self, offset: u64) -> Option<u64> {
        Some(offset)
    }

    /// The offset up to which the source was last read to its end (what cannot be seen counts as read); none if it
    /// never was. Where a transaction is open, its first message is the end. A source to which something is written all
    /// the time may never be told to be at its end.
    fn caught_up_at(&self, source: usize) -> Option<u64>;

    /// One past the last message of the source that was handed over, with the leader epoch that the message was written
    /// in. None before the first one, and for systems whose logs are never cut.
    fn read_to(&self, source: usize) -> Option<LogEnd> {
        let _ = source;
        None
    }

    /// From now on calls `wake`, from any thread, when there may be something to poll again after a poll has handed over
    /// nothing, so that several consumers can be waited for at once. Returns whether it can: else only
    /// [`Self::poll`] waits.
    fn wake_with(&mut self, wake: Arc<dyn Fn() + Send + Sync>) -> bool {
        let _ = wake;
        false
    }

    /// Tells tools that show lag how far reading has come: by source, the position that is committed. Waits for
    /// at most `patience` until the system knows. Nothing rests on it, so an error is not told.
    fn tell_positions(&mut self, positions: &[(usize, u64)], patience: Duration) {
        let _ = (positions, patience);
    }

    /// What the last poll met that is no message, once everything before it was handed over; to be asked until there is
    /// none. What follows is up to job.toml's `[errors] decode`. Only systems that read what people write have any.
    fn take_unreadable(&mut self) -> Option<Unreadable> {
        None
    }

    /// Whether the source has ended and everything of it was handed over. Only bounded systems, such as files, know.
    fn has_ended(&self, source: usize) -> bool {
        let _ = source;
        false
    }
}

/// Writes messages. Sends are asynchronous; errors of earlier sends come back from later calls.
pub trait SystemProducer {
    /// A handle on `topic` for [`Self::send`]; the same text gives the same handle.
    ///
    /// # Errors
    /// The system failed.
    fn topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError>;

    /// How many partitions `topic` has, as heard some seconds ago at most.
    ///
    /// # Errors
    /// There is no such topic, or nobody answers.
    fn partitions(&mut self, topic: TopicHandle) -> Result<i32, SystemError>;

    /// Tells that `topic` takes no batch of more than so many bytes (Kafka's `max.message.bytes`), so that a producer that
    /// makes batches makes none that is refused as a whole.
    fn takes_at_most(&mut self, topic: TopicHandle, bytes: usize) {
        let _ = (topic, bytes);
    }

    /// Queues one message; blocks while the queue is full. Its bytes are copied.
    ///
    /// # Errors
    /// [`SystemError::Refused`]: this message cannot be sent. Else this or an earlier send failed; nothing more can be
    /// sent.
    fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), SystemError>;

    /// Waits until everything sent is acknowledged by all in-sync replicas, or refused ([`Self::refused`]).
    ///
    /// # Errors
    /// Some message was neither, or not in time.
    fn flush(&mut self, timeout: Duration) -> Result<(), SystemError>;

    /// Called about once a second by the thread that it belongs to, whether or not anything is sent: what its client has to
    /// say meanwhile is taken. Its errors come back from other calls.
    fn look_after(&mut self) {}

    /// Takes the next message that the system has refused after [`Self::send`] had queued it. Whoever sends plain
    /// messages asks after each send and after each flush; in a transaction such a refusal ends the transaction, so
    /// there is none to take.
    fn refused(&mut self) -> Option<RefusedRecord> {
        None
    }
}

/// A message that its system has refused; every other is unharmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRecord {
    /// Where it was sent.
    pub topic: TopicHandle,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Unix ms.
    pub timestamp_ms: Option<u64>,
    /// Its headers.
    pub headers: OwnedHeaders,
    /// As it was sent.
    pub tag: u8,
    /// The system's word.
    pub why: String,
}

/// A topic known to one producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TopicHandle(pub u32);

/// One message for [`SystemProducer::send`].
#[derive(Debug, Clone, Copy)]
pub struct ProducerRecord<'a> {
    /// Where to.
    pub topic: TopicHandle,
    /// The partition; none: the key's murmur2 chooses, and without a key the producer.
    pub partition: Option<i32>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Unix ms; none is now.
    pub timestamp_ms: Option<u64>,
    /// Its headers.
    pub headers: Headers<'a>,
    /// The sender's; comes back in [`RefusedRecord::tag`].
    pub tag: u8,
}

impl<'a> ProducerRecord<'a> {
    /// A message of now without headers, whose key chooses the partition.
    #[must_use]
    pub fn new(topic: TopicHandle, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> ProducerRecord<'a> {
        ProducerRecord {
            topic,
            partition: None,
            key,
            value,
            timestamp_ms: None,
            headers: Headers::NONE,
            tag: 0,
        }
    }

    /// The same message for this partition.
    #[must_use]
    pub fn to(self, partition: i32) -> ProducerRecord<'a> {
        ProducerRecord { partition: Some(partition), ..self }
    }
}

/// A producer whose sends between `begin` and `commit` become visible together or not at all.
pub trait TransactionalProducer: SystemProducer {
    /// For how long a transaction may be open before the system aborts it.
    fn timeout(&self) -> Duration {
        Duration::from_secs(60)
    }
    /// Registers its transactional id, once: aborts what an earlier owner of the id had open and fences it.
    ///
    /// # Errors
    /// The system failed.
    fn init(&mut self, timeout: Duration) -> Result<(), SystemError>;
    /// Opens a transaction.
    ///
    /// # Errors
    /// One is open, or the producer is fenced.
    fn begin(&mut self) -> Result<(), SystemError>;
    /// Flushes and commits.
    ///
    /// # Errors
    /// [`SystemError::Fenced`], which is also what a system says that has aborted the transaction by itself, or it is unknown whether it was committed: the caller must end.
    fn commit(&mut self, timeout: Duration) -> Result<(), SystemError>;
    /// Drops what was sent since `begin`.
    ///
    /// # Errors
    /// The system failed.
    fn abort(&mut self, timeout: Duration) -> Result<(), SystemError>;
}

/// How far a log had come when it was looked at, and under which leader. With both it can be told later whether what was
/// there still is ([`SystemAdmin::cut`]), also when the log has grown past that place again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// One past the last offset that was seen.
    pub offset: u64,
    /// The leader epoch that it was in (Kafka's KIP-320); none where the system has no such thing, or does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_epoch: Option<i32>,
}

impl LogEnd {
    /// A place of which no leader epoch is known.
    #[must_use]
    pub fn at(offset: u64) -> LogEnd {
        LogEnd { offset, leader_epoch: None }
    }
}

/// Which messages a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// All.
    ReadUncommitted,
    /// Those of committed transactions and plain ones.
    ReadCommitted,
}

/// The ends of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// The first offset there is.
    pub low: u64,
    /// One past the last offset (control records count).
    pub high: u64,
    /// The last stable offset: below it every transaction is decided.
    pub stable: u64,
    /// The leader epoch that `high` was read in; none where the system has no such thing.
    pub leader_epoch: Option<i32>,
}

impl Watermarks {
    /// Its end.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        LogEnd { offset: self.high, leader_epoch: self.leader_epoch }
    }
}

/// Questions and orders about a system. Every call blocks, at most for its timeout (30 s where none is given).
pub trait SystemAdmin: Send + Sync {
    /// The topics that exist among `topics`.
    ///
    /// # Errors
    /// No broker answered; the text names the bootstrap servers.
    fn describe(&self, topics: &[String]) -> Result<Vec<TopicMetadata>, SystemError>;
    /// How many brokers are up.
    ///
    /// # Errors
    /// No broker answered; the text names the bootstrap servers.
    fn live_brokers(&self) -> Result<usize, SystemError>;
    /// How many brokers the cluster has, as far as one can tell: those that are down now count where a topic has
    /// replicas on them, or where the brokers' own settings could not be met without them.
    ///
    /// # Errors
    /// No broker answered.
    fn cluster_size(&self) -> Result<usize, SystemError> {
        self.live_brokers()
    }
    /// The configurations of the topics that exist among `topics`.
    ///
    /// # Errors
    /// No broker answered, or the right to read them is missing.
    fn describe_configs(&self, topics: &[String]) -> Result<BTreeMap<String, Configs>, SystemError>;
    /// Sets these settings of a topic that exists and leaves its others as they are.
    ///
    /// # Errors
    /// The topic or a setting is unknown, a value is refused, or the right to change them is missing.
    fn alter_configs(&self, topic: &str, set: &BTreeMap<String, String>) -> Result<(), SystemError>;
    /// Creates what does not exist; one that exists with fewer partitions is an error, all else is left as it is.
    /// Only for what is missing the right to create is needed.
    ///
    /// # Errors
    /// A topic could not be created.
    fn create(&self, topics: &[NewTopic]) -> Result<(), SystemError>;
    /// The names of all topics that can be seen, in no order.
    ///
    /// # Errors
    /// No broker answered, or the system cannot list them.
    fn topics(&self) -> Result<Vec<String>, SystemError>;
    /// Gives `topic` more partitions, until it has `partitions` of them and all have leaders. One that has as many or
    /// more is left as it is.
    ///
    /// # Errors
    /// It does not exist, may not be extended, or no broker answered.
    fn extend(&self, topic: &str, partitions: i32) -> Result<(), SystemError>;
    /// The ends of each partition, in the order given.
    ///
    /// # Errors
    /// A partition is unknown or no broker answered.
    fn watermarks(&self, partitions: &[TopicPartition]) -> Result<Vec<Watermarks>, SystemError>;
    /// One past the last offset of each partition, in the order given: the one end that is asked for while messages
    /// wait, so for `patience` at most.
    ///
    /// # Errors
    /// As [`Self::watermarks`].
    fn high_watermarks(
        &self,
        partitions: &[TopicPartition],
        patience: Duration,
    ) -> Result<Vec<LogEnd>, SystemError> {
        let _ = patience;
        Ok(self.watermarks(partitions)?.into_iter().map(|ends| ends.end()).collect())
    }
    /// Reads `partition` from offset `from` (or its low watermark, if that is higher) up to but without `until`,
    /// and hands over what `isolation` lets see, in order (`source` is 0). Ends by position, so control records
    /// and aborted ones at the end do not hold it back.
    ///
    /// # Errors
    /// The system failed or `take` did.
    fn read_range(
        &self,
        partition: &TopicPartition,
        from: u64,
        until: u64,
        isolation: Isolation,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<(), SystemError>;
    /// Appends plain (not transactional) messages, acknowledged by all in-sync replicas when it returns.
    ///
    /// # Errors
    /// A message was not acknowledged.
    fn append(&self, messages: &[PlainMessage]) -> Result<(), SystemError>;
    /// For each partition and the next offset to read there: none if it can be read from, else what happened.
    ///
    /// # Errors
    /// A partition is unknown, a text is no offset, or no broker answered.
    fn lost(&self, starts: &[(TopicPartition, Offset)]) -> Result<Vec<Option<Lost>>, SystemError>;
    /// For each place that a log had come to: whether the log was cut before it since, as happens when a broker becomes
    /// leader that did not have everything (an unclean election). What stands there now is something else. A place
    /// without a leader epoch, or one that retention has passed, is never cut.
    ///
    /// # Errors
    /// A partition is unknown or no broker answered.
    fn cut(&self, seen: &[(TopicPartition, LogEnd)]) -> Result<Vec<bool>, SystemError> {
        Ok(vec![false; seen.len()])
    }
    /// The start of a container is over: what only it needed may go.
    fn started(&self) {}
    /// Runs init_transactions on `transactional_id`: aborts what it had open, waits for what it was committing,
    /// and fences it for ever.
    ///
    /// # Errors
    /// The system failed.
    fn fence(&self, transactional_id: &str) -> Result<(), SystemError>;
}

/// What happened to messages that were still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// The partition begins at `low` now: what was between is gone.
    Truncated {
        /// The first offset there is.
        low: u64,
    },
    /// The partition ends at `high`, before the offset: it is not the one that the offset is of.
    Recreated {
        /// One past its last offset.
        high: u64,
    },
}

/// One message for [`SystemAdmin::append`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainMessage {
    /// Where.
    pub to: TopicPartition,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value; none is a tombstone.
    pub value: Option<Vec<u8>>,
}
