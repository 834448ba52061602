//! [`KafkaConsumer`]: committed messages in borrowed batches.

use std::collections::BTreeMap;
use std::time::Duration;

use task_api::system::{Message, Offset, StartAt, SystemConsumer, SystemError, TopicPartition};

use crate::native::Consumer;
use crate::native::consume::Event;
use crate::settings;

/// A reader of assigned partitions; belongs to one thread, may be moved there.
#[derive(Debug)]
pub struct KafkaConsumer {
    native: Consumer,
    /// The partitions and the offsets that reading began at.
    sources: Vec<(TopicPartition, u64)>,
    /// By source: where it was last read to its end.
    caught_up: Vec<Option<u64>>,
}

/// How long the ends of a partition may take to be told.
const ENDS_TIMEOUT: Duration = Duration::from_secs(30);

impl KafkaConsumer {
    /// A consumer named `client_id` at the broker, which tells its positions as those of the consumer group `group`
    /// (it never joins it); `config` are extra librdkafka settings.
    ///
    /// # Errors
    /// A setting is unknown or wrong; an unreachable broker shows in `assign`.
    pub fn new(
        bootstrap: &str,
        client_id: &str,
        group: &str,
        config: &BTreeMap<String, String>,
    ) -> Result<Self, SystemError> {
        let ours = [
            // A full queue makes a partition sleep this long; the default of a second starves the task.
            ("fetch.queue.backoff.ms", "5"),
            ("queued.max.messages.kbytes", "16384"),
            ("fetch.wait.max.ms", "100"),
        ];
        let fixed = [
            ("bootstrap.servers", bootstrap),
            ("client.id", client_id),
            ("group.id", group),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            // An offset that no longer exists is an error to be told, not to be jumped over.
            ("auto.offset.reset", "error"),
            // Where a partition ends is known by position: what cannot be seen hands over no message.
            ("enable.partition.eof", "true"),
        ];
        let native = Consumer::new(&settings(&ours, config, &fixed))?;
        Ok(KafkaConsumer { native, sources: Vec::new(), caught_up: Vec::new() })
    }

    fn resolve(&self, partition: &TopicPartition, start: &StartAt) -> Result<u64, SystemError> {
        let ends = || self.native.query_ends(partition, ENDS_TIMEOUT);
        let offset = |signed| u64::try_from(signed).unwrap_or(0);
        Ok(match start {
            StartAt::At(text) => parse(partition, text)?,
            StartAt::Oldest => offset(ends()?.0),
            StartAt::Newest => offset(ends()?.1),
            StartAt::Timestamp(unix_ms) => match self.native.offset_at(partition, *unix_ms, ENDS_TIMEOUT)? {
                Some(first) => first,
                None => offset(ends()?.1),
            },
        })
    }

    /// Where the source is read up to, given the last offset taken.
    fn position(&self, source: usize, last_taken: Option<u64>) -> u64 {
        let start = self.sources.get(source).map_or(0, |(_, start)| *start);
        last_taken.map_or(start, |last| last + 1)
    }
}

/// The offset that `text` is.
pub(crate) fn parse(partition: &TopicPartition, text: &Offset) -> Result<u64, SystemError> {
    text.0.parse().map_err(|_| {
        SystemError::Fatal(format!("`{text}` is no offset of {}-{}", partition.topic, partition.partition))
    })
}

impl SystemConsumer for KafkaConsumer {
    fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), SystemError> {
        self.sources = partitions
            .iter()
            .map(|(partition, start)| Ok((partition.clone(), self.resolve(partition, start)?)))
            .collect::<Result<_, SystemError>>()?;
        self.caught_up = vec![None; self.sources.len()];
        let at = |offset: u64| i64::try_from(offset).unwrap_or(i64::MAX);
        let list: Vec<(TopicPartition, i64)> =
            self.sources.iter().map(|(partition, offset)| (partition.clone(), at(*offset))).collect();
        self.native.assign(&list)
    }

    fn poll(
        &mut self,
        timeout: Duration,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<usize, SystemError> {
        let caught_up = &mut self.caught_up;
        self.native.poll(timeout, take, &mut |Event::End { source, offset }| {
            if let Some(at) = caught_up.get_mut(source) {
                *at = Some(offset);
            }
        })
    }

    fn position_after(&self, source: usize, last_taken: Option<u64>) -> Offset {
        Offset(self.position(source, last_taken).to_string())
    }

    fn lag(&self, source: usize, last_taken: Option<u64>) -> Option<u64> {
        let end = self.native.known_end(&self.sources.get(source)?.0)?;
        let read = self.position(source, last_taken).max(self.caught_up_at(source).unwrap_or(0));
        Some(end.saturating_sub(read))
    }

    fn pause(&mut self, sources: &[usize]) -> Result<(), SystemError> {
        self.native.pause(sources, false)
    }

    fn resume(&mut self, sources: &[usize]) -> Result<(), SystemError> {
        self.native.pause(sources, true)
    }

    fn tell_positions(&mut self, positions: &[(usize, u64)], patience: Duration) {
        self.native.commit_offsets(positions, patience);
    }

    fn caught_up_at(&self, source: usize) -> Option<u64> {
        self.caught_up.get(source).copied().flatten()
    }
}
