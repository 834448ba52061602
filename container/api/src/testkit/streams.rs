//! Streams in memory, by the rules that Kafka has for readers of committed messages.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use types::{OffsetDefault, OnError, SystemStream};

use crate::dead_letter::after_refusal;
use crate::headers::{Header, OwnedHeaders};
use crate::murmur2_partition;
use crate::serde::{DecodeError, Serde};
use crate::system::SystemError;
use crate::task::{MessageCollector, OutgoingMessage, TaskError, TaskResult};

/// A message of a stream. It equals `("key", "value")` if it has these texts, `"value"` if it has no key and this text,
/// and `(Some("key"), None)` if it is a tombstone of this key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Its partition.
    pub partition: i32,
    /// Its place in the partition. In a system with transactions offsets have gaps, as in Kafka: of what was aborted, and of the
    /// marker at the end of each transaction.
    pub offset: u64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; none is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: OwnedHeaders,
    /// Unix ms.
    pub timestamp_ms: u64,
}

impl Output {
    /// Its key and value as a pair of serdes reads them; what is absent is read as no bytes.
    ///
    /// # Errors
    /// A serde refuses them.
    pub fn decode<K, V>(&self, key: &dyn Serde<K>, value: &dyn Serde<V>) -> Result<(K, V), DecodeError> {
        let bytes = |part: &Option<Vec<u8>>| part.clone().unwrap_or_default();
        Ok((key.decode(&bytes(&self.key))?, value.decode(&bytes(&self.value))?))
    }
    /// The value of the last header `name`, as text; none if there is none, or if it is null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        let value = self.headers.get().last(name)?.value?;
        Some(String::from_utf8_lossy(value).into_owned())
    }
    fn is(&self, key: Option<&str>, value: Option<&str>) -> bool {
        self.key.as_deref() == key.map(str::as_bytes) && self.value.as_deref() == value.map(str::as_bytes)
    }
}

impl PartialEq<(&str, &str)> for Output {
    fn eq(&self, (key, value): &(&str, &str)) -> bool {
        self.is(Some(key), Some(value))
    }
}
impl PartialEq<&str> for Output {
    fn eq(&self, value: &&str) -> bool {
        self.is(None, Some(value))
    }
}
impl PartialEq<(Option<&str>, Option<&str>)> for Output {
    fn eq(&self, (key, value): &(Option<&str>, Option<&str>)) -> bool {
        self.is(*key, *value)
    }
}

/// As a test's author reads it: `("key", "value")`.
impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |part: &Option<Vec<u8>>| match part {
            Some(bytes) => format!("\"{}\"", bytes.escape_ascii()),
            None => "None".to_owned(),
        };
        match &self.key {
            Some(_) => write!(f, "({}, {})", text(&self.key), text(&self.value)),
            None => f.write_str(&text(&self.value)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Readers see it.
    Visible,
    /// Of a transaction that is open: readers stop before it.
    Open,
    /// Of one that was given up: readers pass over it.
    Aborted,
    /// No message: a transaction was decided here.
    Marker,
}

struct Entry {
    message: Rc<Output>,
    /// Its place among all messages of all streams.
    sent: u64,
    fate: Fate,
}

#[derive(Default)]
struct Stream {
    partitions: Vec<Vec<Entry>>,
    /// Has as many partitions as it has; others get those that are asked for.
    is_declared: bool,
    /// The partition of the next message without a key.
    turn: i32,
    /// By partition: the offset after what [`Streams::take`] has given.
    taken: BTreeMap<i32, u64>,
}

/// A message that is to be read: its place in the order of all messages, and itself.
pub(super) type Unread = (u64, Rc<Output>);

/// Every stream; as a collector it takes what tasks send.
pub(super) struct Streams {
    streams: BTreeMap<String, Stream>,
    /// Those that messages can be sent to.
    pub(super) systems: BTreeSet<String>,
    sent: u64,
    /// The system whose streams take part in transactions.
    pub(super) transactional: Option<String>,
    pub(super) max_message_bytes: usize,
    pub(super) now: u64,
    /// Messages sent by tasks since the last commit.
    pub(super) uncommitted: u64,
    /// The first error of a send: what swallows it does not get past its next commit.
    pub(super) failed: Option<SystemError>,
    /// Messages of the transaction that is open: stream, partition, offset.
    open: Vec<(String, i32, u64)>,
    /// What follows a refused output, and where dead letters go.
    pub(super) on_refused: OnError,
    pub(super) dead_letters: Option<String>,
    /// Outputs that were refused and left out.
    pub(super) refused: u64,
}

/// As librdkafka's `message.max.bytes`.
const MAX_MESSAGE_BYTES: usize = 1_000_000;

impl Streams {
    pub(super) fn new() -> Streams {
        Streams {
            streams: BTreeMap::new(),
            systems: BTreeSet::new(),
            sent: 0,
            transactional: None,
            max_message_bytes: MAX_MESSAGE_BYTES,
            now: 0,
            uncommitted: 0,
            failed: None,
            open: Vec::new(),
            on_refused: OnError::Fail,
            dead_letters: None,
            refused: 0,
        }
    }

    /// Adds stream `name` with so many partitions.
    ///
    /// # Panics
    /// The name is not `<system>.<stream>`.
    #[track_caller]
    pub(super) fn declare(&mut self, name: &str, partitions: i32) {
        let parsed = SystemStream::parse(name);
        let system = parsed.unwrap_or_else(|| panic!("`{name}` is not <system>.<stream>")).system;
        assert!(partitions > 0, "stream {name} needs a partition");
        self.systems.insert(system);
        let stream = self.streams.entry(name.to_owned()).or_default();
        stream.is_declared = true;
        stream.partitions.resize_with(usize::try_from(partitions).unwrap_or(1), Vec::new);
    }

    /// Appends a message.
    pub(super) fn append(&mut self, message: &OutgoingMessage<'_>, is_open: bool) -> Result<(), SystemError> {
        let headers = OwnedHeaders::of(message.headers);
        let of_header = |header: Header<'_>| header.name.len() + header.value.map_or(0, <[u8]>::len);
        let parts = [message.key, message.value].into_iter().flatten().map(<[u8]>::len);
        let bytes = parts.chain(headers.get().iter().map(of_header)).sum::<usize>();
        if bytes > self.max_message_bytes {
            return Err(SystemError::Refused(format!("more than {} bytes", self.max_message_bytes)));
        }
        self.sent += 1;
        let stream = self.streams.entry(message.stream.to_owned()).or_default();
        let partition = stream.choose(message)?;
        let log = &mut stream.partitions[usize::try_from(partition).unwrap_or(0)];
        let output = Output {
            partition,
            offset: log.len() as u64,
            key: message.key.map(<[u8]>::to_vec),
            value: message.value.map(<[u8]>::to_vec),
            headers,
            timestamp_ms: message.timestamp_ms.unwrap_or(self.now),
        };
        let fate = if is_open { Fate::Open } else { Fate::Visible };
        if is_open {
            self.open.push((message.stream.to_owned(), partition, output.offset));
        }
        log.push(Entry { message: Rc::new(output), sent: self.sent, fate });
        Ok(())
    }

    pub(super) fn send_output(&mut self, message: &OutgoingMessage<'_>) -> Result<(), SystemError> {
        let system = self.system_of(message.stream)?;
        let is_open = self.transactional.as_ref() == Some(&system);
        self.append(message, is_open)?;
        self.uncommitted += 1;
        Ok(())
    }

    /// The system of stream `name`, one of job.toml's.
    fn system_of(&self, name: &str) -> Result<String, SystemError> {
        let Some(SystemStream { system, .. }) = SystemStream::parse(name) else {
            return Err(SystemError::Fatal(format!("`{name}` is not <system>.<stream>")));
        };
        if !self.systems.contains(&system) {
            let known: Vec<_> = self.systems.iter().map(String::as_str).collect();
            return Err(SystemError::Fatal(format!(
                "no system `{system}` in job.toml for stream `{name}`; it has: {}",
                known.join(", ")
            )));
        }
        Ok(system)
    }

    /// The names of a system's streams, without the system's.
    pub(super) fn names_of(&self, system: &str) -> Vec<String> {
        let names = self.streams.keys().filter_map(|name| name.strip_prefix(system)?.strip_prefix('.'));
        names.map(str::to_owned).collect()
    }

    /// How many partitions stream `name` has.
    pub(super) fn partitions(&self, name: &str) -> usize {
        self.streams.get(name).map_or(0, |stream| stream.partitions.len())
    }

    fn log(&self, name: &str, partition: i32) -> &[Entry] {
        let stream = self.streams.get(name);
        let log = stream.and_then(|stream| stream.partitions.get(usize::try_from(partition).ok()?));
        log.map_or(&[], Vec::as_slice)
    }

    /// One past the last offset of a partition.
    pub(super) fn end(&self, name: &str, partition: i32) -> u64 {
        self.log(name, partition).len() as u64
    }

    /// Where reading a partition begins.
    pub(super) fn start(&self, name: &str, partition: i32, at: OffsetDefault) -> u64 {
        let end = self.end(name, partition);
        match at {
            OffsetDefault::Oldest => 0,
            OffsetDefault::Newest => end,
            OffsetDefault::Offset(offset) => offset,
            OffsetDefault::Timestamp(from) => {
                let log = self.log(name, partition);
                let first = log.iter().find(|e| e.message.timestamp_ms >= from);
                first.map_or(end, |entry| entry.message.offset)
            }
        }
    }

    /// What a reader of committed messages sees from offset `from` on.
    pub(super) fn unread(&self, name: &str, partition: i32, from: u64) -> impl Iterator<Item = Unread> {
        let log = self.log(name, partition);
        let rest = log.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or(&[]);
        rest.iter()
            .take_while(|entry| entry.fate != Fate::Open)
            .filter(|entry| entry.fate == Fate::Visible)
            .map(|entry| (entry.sent, Rc::clone(&entry.message)))
    }

    /// All that a reader of committed messages sees of stream `name`, in the order in which it was sent.
    pub(super) fn all(&self, name: &str) -> Vec<Output> {
        self.from(name, |_| 0)
    }

    /// As [`Self::all`], but each message only once.
    pub(super) fn take(&mut self, name: &str) -> Vec<Output> {
        let taken = self.streams.get(name).map(|stream| stream.taken.clone()).unwrap_or_default();
        let new = self.from(name, |partition| taken.get(&partition).copied().unwrap_or(0));
        if let Some(stream) = self.streams.get_mut(name) {
            new.iter().for_each(|output| {
                stream.taken.insert(output.partition, output.offset + 1);
            });
        }
        new
    }

    fn from(&self, name: &str, from: impl Fn(i32) -> u64) -> Vec<Output> {
        let partitions = i32::try_from(self.partitions(name)).unwrap_or(i32::MAX);
        let mut all: Vec<Unread> =
            (0..partitions).flat_map(|partition| self.unread(name, partition, from(partition))).collect();
        all.sort_by_key(|(sent, _)| *sent);
        all.into_iter().map(|(_, message)| (*message).clone()).collect()
    }

    /// Ends the transaction: readers see what it sent, or never will. As in Kafka a marker says so, which takes an offset
    /// in each partition.
    pub(super) fn decide(&mut self, is_committed: bool) {
        let fate = if is_committed { Fate::Visible } else { Fate::Aborted };
        let mut ends = BTreeSet::new();
        for (name, partition, offset) in std::mem::take(&mut self.open) {
            if let Some(entry) = self.log_mut(&name, partition).and_then(|log| log.get_mut(offset as usize)) {
                entry.fate = fate;
            }
            ends.insert((name, partition));
        }
        for (name, partition) in ends {
            let sent = self.sent;
            if let Some(log) = self.log_mut(&name, partition) {
                let marker = Output { partition, offset: log.len() as u64, ..Output::default() };
                log.push(Entry { message: Rc::new(marker), sent, fate: Fate::Marker });
            }
        }
        self.uncommitted = 0;
    }

    fn log_mut(&mut self, name: &str, partition: i32) -> Option<&mut Vec<Entry>> {
        self.streams.get_mut(name)?.partitions.get_mut(usize::try_from(partition).ok()?)
    }
}

impl Stream {
    fn choose(&mut self, message: &OutgoingMessage<'_>) -> Result<i32, SystemError> {
        if self.partitions.is_empty() {
            self.partitions.push(Vec::new());
        }
        let count = i32::try_from(self.partitions.len()).unwrap_or(i32::MAX);
        match (message.partition, message.partition_key.or(message.key)) {
            (Some(partition), _) if (0..count).contains(&partition) => Ok(partition),
            (Some(partition), _) if partition >= 0 && !self.is_declared => {
                self.partitions.resize_with(partition as usize + 1, Vec::new);
                Ok(partition)
            }
            (Some(partition), _) => Err(SystemError::Refused(format!(
                "{} has no partition {partition}: it has {count}",
                message.stream
            ))),
            (None, Some(key)) => Ok(murmur2_partition(key, count)),
            (None, None) => {
                self.turn = (self.turn + 1) % count;
                Ok((self.turn + count - 1) % count)
            }
        }
    }
}

impl Streams {
    /// A stream refused this one message.
    fn refused(&mut self, message: &OutgoingMessage<'_>, why: &str) -> Result<(), SystemError> {
        let (policy, dead_letters) = (self.on_refused, self.dead_letters.clone());
        let mut send = |letter: &OutgoingMessage<'_>, _| self.send_output(letter);
        after_refusal(message, why, policy, dead_letters.as_deref(), &mut send)?;
        self.refused += 1;
        Ok(())
    }
}

impl MessageCollector for Streams {
    fn send(&mut self, message: OutgoingMessage<'_>) -> TaskResult {
        let sent = match self.send_output(&message) {
            Err(SystemError::Refused(why)) => self.refused(&message, &why),
            sent => sent,
        };
        sent.map_err(|error| {
            self.failed.get_or_insert_with(|| error.clone());
            error.into()
        })
    }

    fn partitions(&mut self, stream: &str) -> Result<i32, TaskError> {
        self.system_of(stream)?;
        // A stream that nobody has declared is made with its first message.
        let known = Streams::partitions(self, stream).max(1);
        Ok(i32::try_from(known).unwrap_or(i32::MAX))
    }
}
