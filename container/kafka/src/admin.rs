//! [`KafkaAdmin`]: questions and orders about a Kafka cluster.

use std::collections::BTreeMap;

use task_api::system::{
    BrokerMetadata, Isolation, Message, NewTopic, PlainMessage, SystemAdmin, SystemError, TopicMetadata,
    TopicPartition, Watermarks,
};

/// An administrator of one Kafka cluster; shared freely between threads.
#[derive(Debug)]
pub struct KafkaAdmin {}

impl KafkaAdmin {
    /// Connects lazily to `bootstrap` (host:port, comma separated); `config` are extra librdkafka settings.
    ///
    /// # Errors
    /// A setting is unknown or wrong; an unreachable broker shows in later calls.
    pub fn new(bootstrap: &str, config: &BTreeMap<String, String>) -> Result<Self, SystemError> {
        let _ = (bootstrap, config);
        Err(nyi())
    }
}

fn nyi() -> SystemError {
    SystemError::Fatal("the Kafka client is not there yet".into())
}

impl SystemAdmin for KafkaAdmin {
    fn brokers(&self) -> Result<Vec<BrokerMetadata>, SystemError> {
        Err(nyi())
    }
    fn describe(&self, _topics: &[String]) -> Result<Vec<TopicMetadata>, SystemError> {
        Err(nyi())
    }
    fn create(&self, _topics: &[NewTopic]) -> Result<(), SystemError> {
        Err(nyi())
    }
    fn watermarks(&self, _partitions: &[TopicPartition]) -> Result<Vec<Watermarks>, SystemError> {
        Err(nyi())
    }
    fn read_range(
        &self,
        _partition: &TopicPartition,
        _from: u64,
        _until: u64,
        _isolation: Isolation,
        _take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        Err(nyi())
    }
    fn append(&self, _messages: &[PlainMessage]) -> Result<(), SystemError> {
        Err(nyi())
    }
    fn fence(&self, _transactional_id: &str) -> Result<(), SystemError> {
        Err(nyi())
    }
}
