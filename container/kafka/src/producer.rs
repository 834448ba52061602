//! [`KafkaProducer`]: writes, plainly or in transactions.

use std::collections::BTreeMap;
use std::time::Duration;

use task_api::system::{ProducerRecord, SystemError, SystemProducer, TopicHandle, TransactionalProducer};

use crate::native::Producer;
use crate::settings;

/// A producer; belongs to one thread, may be moved there.
#[derive(Debug)]
pub struct KafkaProducer {
    native: Producer,
    /// Sends since callbacks last ran.
    unserved: u32,
}

/// So many sends are queued between two looks at what became of earlier ones.
const SERVE_EVERY: u32 = 4_096;

/// What we set unless the job says otherwise.
const OURS: [(&str, &str); 4] = [
    ("linger.ms", "5"),
    ("compression.type", "lz4"),
    ("queue.buffering.max.kbytes", "65536"),
    ("queue.buffering.max.messages", "500000"),
];
/// What exactness rests on.
const FIXED: [(&str, &str); 4] = [
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("partitioner", "murmur2_random"),
    // Deliveries that went well make no event: nobody waits for them one by one.
    ("delivery.report.only.error", "true"),
];

impl KafkaProducer {
    /// A plain idempotent producer (acks=all), for outputs of at-least-once jobs.
    ///
    /// # Errors
    /// A setting is unknown or wrong.
    pub fn idempotent(
        bootstrap: &str,
        client_id: &str,
        config: &BTreeMap<String, String>,
    ) -> Result<Self, SystemError> {
        Self::with(&[("bootstrap.servers", bootstrap), ("client.id", client_id)], config)
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
        let who = [
            ("bootstrap.servers", bootstrap),
            ("client.id", transactional_id),
            ("transactional.id", transactional_id),
        ];
        Self::with(&who, config)
    }

    fn with(who: &[(&str, &str)], config: &BTreeMap<String, String>) -> Result<Self, SystemError> {
        let fixed: Vec<(&str, &str)> = FIXED.iter().chain(who).copied().collect();
        Ok(KafkaProducer { native: Producer::new(&settings(&OURS, config, &fixed))?, unserved: 0 })
    }
}

impl SystemProducer for KafkaProducer {
    fn topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError> {
        self.native.topic(topic).map(TopicHandle)
    }

    fn partitions(&mut self, topic: TopicHandle) -> Result<i32, SystemError> {
        self.native.partitions(topic.0)
    }

    fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), SystemError> {
        self.unserved += 1;
        if self.unserved == SERVE_EVERY {
            self.unserved = 0;
            self.native.serve(0)?;
        }
        self.native.send(record)
    }

    fn flush(&mut self, timeout: Duration) -> Result<(), SystemError> {
        self.native.flush(timeout)
    }
}

impl TransactionalProducer for KafkaProducer {
    fn init(&mut self, timeout: Duration) -> Result<(), SystemError> {
        self.native.init_transactions(timeout)
    }
    fn begin(&mut self) -> Result<(), SystemError> {
        self.native.begin_transaction()
    }
    fn commit(&mut self, timeout: Duration) -> Result<(), SystemError> {
        self.native.commit_transaction(timeout)
    }
    fn abort(&mut self, timeout: Duration) -> Result<(), SystemError> {
        self.native.abort_transaction(timeout)
    }
}
