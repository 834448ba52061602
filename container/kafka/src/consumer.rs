//! [`KafkaConsumer`]: committed messages in borrowed batches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use task_api::system::{LogEnd, Message, Offset, StartAt, SystemConsumer, SystemError, TopicPartition};

use crate::native::Consumer;
use crate::{CONSUMERS, Statistics, consumer_settings};

/// A reader of assigned partitions; belongs to one thread, may be moved there.
#[derive(Debug)]
pub struct KafkaConsumer {
    native: Consumer,
    /// By source: the offset that reading began at.
    starts: Vec<u64>,
    statistics: Statistics,
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
            CONSUMERS,
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
            // There is no session. But so long librdkafka keeps positions that it cannot tell, and, turning on one of its
            // threads, a client that is to end.
            ("session.timeout.ms", "1000"),
            // Where a partition ends is known by position: what cannot be seen hands over no message.
            ("enable.partition.eof", "true"),
        ];
        let native = Consumer::new(&consumer_settings(&ours, config, &fixed))?;
        let statistics = Statistics::default();
        native.tell(statistics.clone());
        Ok(KafkaConsumer { native, starts: Vec::new(), statistics })
    }

    /// What its client tells of itself, if `statistics.interval.ms` is set.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
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
}

/// The offset that `text` is.
pub(crate) fn parse(partition: &TopicPartition, text: &Offset) -> Result<u64, SystemError> {
    text.0.parse().map_err(|_| {
        SystemError::Fatal(format!("`{text}` is no offset of {}-{}", partition.topic, partition.partition))
    })
}

impl SystemConsumer for KafkaConsumer {
    fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), SystemError> {
        let at = partitions
            .iter()
            .map(|(partition, start)| Ok((partition.clone(), self.resolve(partition, start)?)))
            .collect::<Result<Vec<_>, SystemError>>()?;
        self.starts = at.iter().map(|(_, offset)| *offset).collect();
        self.native.assign(&at)
    }

    fn poll(
        &mut self,
        timeout: Duration,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<usize, SystemError> {
        self.native.poll(timeout, take)
    }

    fn start(&self, source: usize) -> Option<u64> {
        self.starts.get(source).copied()
    }

    fn lag(&self, source: usize, position: u64) -> Option<u64> {
        let (_, end) = self.native.known_ends(&self.native.sources.get(source)?.at)?;
        Some(end.saturating_sub(position))
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
        self.native.sources.get(source)?.end
    }

    fn read_to(&self, source: usize) -> Option<LogEnd> {
        self.native.sources.get(source)?.read_to
    }

    fn wake_with(&mut self, wake: Arc<dyn Fn() + Send + Sync>) -> bool {
        self.native.wake_with(wake);
        true
    }
}
