//! [`KafkaConsumer`]: committed messages in borrowed batches.

use std::collections::BTreeMap;
use std::time::Duration;

use task_api::system::{Message, Offset, StartAt, SystemConsumer, SystemError, TopicPartition};

use crate::native::Consumer;
use crate::settings;

/// A reader of assigned partitions; belongs to one thread, may be moved there.
#[derive(Debug)]
pub struct KafkaConsumer {
    native: Consumer,
    /// The partitions and the offsets that reading began at.
    sources: Vec<(TopicPartition, u64)>,
}

/// How long the ends of a partition may take to be told.
const ENDS_TIMEOUT: Duration = Duration::from_secs(30);

impl KafkaConsumer {
    /// A consumer named `client_id` at the broker; `config` are extra librdkafka settings.
    ///
    /// # Errors
    /// A setting is unknown or wrong; an unreachable broker shows in `assign`.
    pub fn new(
        bootstrap: &str,
        client_id: &str,
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
            // The client insists on a group, although nothing here joins one.
            ("group.id", client_id),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            // An offset that no longer exists is an error to be told, not to be jumped over.
            ("auto.offset.reset", "error"),
        ];
        Ok(KafkaConsumer { native: Consumer::new(&settings(&ours, config, &fixed))?, sources: Vec::new() })
    }

    fn resolve(&self, partition: &TopicPartition, start: &StartAt) -> Result<u64, SystemError> {
        let end = |ends: (i64, i64), newest| if newest { ends.1 } else { ends.0 };
        match start {
            StartAt::At(Offset(text)) => text.parse().map_err(|_| {
                SystemError::Fatal(format!(
                    "`{text}` is no offset of {}-{}",
                    partition.topic, partition.partition
                ))
            }),
            StartAt::Oldest | StartAt::Newest => {
                let ends = self.native.query_ends(partition, ENDS_TIMEOUT)?;
                Ok(u64::try_from(end(ends, *start == StartAt::Newest)).unwrap_or(0))
            }
        }
    }
}

impl SystemConsumer for KafkaConsumer {
    fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), SystemError> {
        self.sources = partitions
            .iter()
            .map(|(partition, start)| Ok((partition.clone(), self.resolve(partition, start)?)))
            .collect::<Result<_, SystemError>>()?;
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
        self.native.poll(timeout, take, &mut |_| {})
    }

    fn position_after(&self, source: usize, last_taken: Option<u64>) -> Offset {
        let start = self.sources.get(source).map_or(0, |(_, start)| *start);
        Offset(last_taken.map_or(start, |last| last + 1).to_string())
    }

    fn lag(&self, source: usize, last_taken: Option<u64>) -> Option<u64> {
        let (partition, start) = self.sources.get(source)?;
        let end = self.native.known_end(partition)?;
        Some(end.saturating_sub(last_taken.map_or(*start, |last| last + 1)))
    }
}
