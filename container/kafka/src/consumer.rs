//! [`KafkaConsumer`]: committed messages in borrowed batches.

use std::collections::BTreeMap;
use std::time::Duration;

use task_api::system::{Message, Offset, StartAt, SystemConsumer, SystemError, TopicPartition};

/// A reader of assigned partitions; belongs to one thread, may be moved there.
#[derive(Debug)]
pub struct KafkaConsumer {}

impl KafkaConsumer {
    /// A consumer named `client_id` at the broker; `config` are extra librdkafka settings.
    ///
    /// # Errors
    /// A setting is unknown or wrong; an unreachable broker shows in `assign`.
    pub fn new(bootstrap: &str, client_id: &str, config: &BTreeMap<String, String>) -> Result<Self, SystemError> {
        let _ = (bootstrap, client_id, config);
        Err(nyi())
    }
}

fn nyi() -> SystemError {
    SystemError::Fatal("the Kafka client is not there yet".into())
}

impl SystemConsumer for KafkaConsumer {
    fn assign(&mut self, _partitions: &[(TopicPartition, StartAt)]) -> Result<(), SystemError> {
        Err(nyi())
    }
    fn poll(
        &mut self,
        _timeout: Duration,
        _take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<usize, SystemError> {
        Err(nyi())
    }
    fn position_after(&self, _source: usize, _last_taken: Option<u64>) -> Offset {
        Offset("0".into())
    }
    fn lag(&self, _source: usize, _last_taken: Option<u64>) -> Option<u64> {
        None
    }
}
