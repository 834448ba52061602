//! [`KafkaProducer`]: writes, plainly or in transactions.

use std::collections::BTreeMap;
use std::time::Duration;

use task_api::system::{SystemError, SystemProducer, TopicHandle, TransactionalProducer};

/// A producer; belongs to one thread, may be moved there.
#[derive(Debug)]
pub struct KafkaProducer {}

impl KafkaProducer {
    /// A plain idempotent producer (acks=all), for outputs of at-least-once jobs.
    ///
    /// # Errors
    /// A setting is unknown or wrong.
    pub fn idempotent(bootstrap: &str, client_id: &str, config: &BTreeMap<String, String>) -> Result<Self, SystemError> {
        let _ = (bootstrap, client_id, config);
        Err(nyi())
    }

    /// A transactional producer; call [`TransactionalProducer::init`] first.
    ///
    /// # Errors
    /// A setting is unknown or wrong.
    pub fn transactional(
        bootstrap: &str,
        transactional_id: &str,
        config: &BTreeMap<String, String>,
    ) -> Result<Self, SystemError> {
        let _ = (bootstrap, transactional_id, config);
        Err(nyi())
    }
}

fn nyi() -> SystemError {
    SystemError::Fatal("the Kafka client is not there yet".into())
}

impl SystemProducer for KafkaProducer {
    fn topic(&mut self, _topic: &str) -> Result<TopicHandle, SystemError> {
        Err(nyi())
    }
    fn send(
        &mut self,
        _topic: TopicHandle,
        _partition: Option<i32>,
        _key: Option<&[u8]>,
        _value: Option<&[u8]>,
    ) -> Result<(), SystemError> {
        Err(nyi())
    }
    fn flush(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        Err(nyi())
    }
}

impl TransactionalProducer for KafkaProducer {
    fn init(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        Err(nyi())
    }
    fn begin(&mut self) -> Result<(), SystemError> {
        Err(nyi())
    }
    fn commit(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        Err(nyi())
    }
    fn abort(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        Err(nyi())
    }
}
