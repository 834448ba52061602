//! [`KafkaProducer`]: writes, plainly or in transactions.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use task_api::Header;
use task_api::system::{
    ProducerRecord, RefusedRecord, SystemError, SystemProducer, TopicHandle, TransactionalProducer,
};

use crate::native::Producer;
use crate::{Statistics, settings};

/// A producer; belongs to one thread, may be moved there.
#[derive(Debug)]
pub struct KafkaProducer {
    native: Producer,
    /// Sends and their bytes since callbacks last ran.
    unserved: (u32, usize),
    is_transactional: bool,
    /// A batch of several messages is not larger, and neither is a message.
    batch_bytes: usize,
    message_bytes: usize,
    /// By topic handle, of those that take less at once.
    limits: Vec<Option<Limit>>,
    /// What brokers have refused, to be taken.
    refused: VecDeque<RefusedRecord>,
    /// For how long a transaction may be open.
    timeout: Duration,
    /// What a transactional client is made of again if brokers do not let transactions be open for so long; none if the
    /// job has set the time itself.
    again: Option<Vec<(String, String)>>,
    statistics: Statistics,
}

const TRANSACTION_TIMEOUT: &str = "transaction.timeout.ms";
/// librdkafka's default.
const TRANSACTION_TIMEOUT_MS: u64 = 60_000;
/// Shorter ones are no brokers' limit.
const LEAST_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(1);

/// What a topic takes at once, and how much of it may be on its way.
#[derive(Debug, Clone, Copy)]
struct Limit {
    bytes: usize,
    unflushed: usize,
}

/// So much is queued between two looks at what became of earlier messages.
const SERVE_EVERY: u32 = 4_096;
const SERVE_EVERY_BYTES: usize = 8 << 20;

/// What a batch has besides its messages, a message besides key, value and headers, and a header besides name and value,
/// at most.
const BATCH_OVERHEAD: usize = 61;
const MESSAGE_OVERHEAD: usize = 36;
const HEADER_OVERHEAD: usize = 10;

/// How long what is on its way is waited for before more is sent.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

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
/// librdkafka's default of `batch.size` and of `message.max.bytes`.
const DEFAULT_BYTES: usize = 1_000_000;

impl KafkaProducer {
    /// A plain idempotent producer (acks=all), for outputs that are no part of a transaction.
    ///
    /// # Errors
    /// A setting is unknown or wrong.
    pub fn idempotent(
        bootstrap: &str,
        client_id: &str,
        config: &BTreeMap<String, String>,
    ) -> Result<Self, SystemError> {
        let producer = Self::with(&[("bootstrap.servers", bootstrap), ("client.id", client_id)], config)?;
        producer.native.keep_refusals();
        Ok(producer)
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
        let default = Duration::from_millis(TRANSACTION_TIMEOUT_MS);
        Self::transactional_for(bootstrap, transactional_id, config, default)
    }

    /// As [`Self::transactional`], with transactions that may be open for `timeout`, or for as long as brokers let them
    /// be if that is shorter (`transaction.max.timeout.ms`), unless `config` sets a time.
    ///
    /// # Errors
    /// A setting is unknown or wrong.
    pub fn transactional_for(
        bootstrap: &str,
        transactional_id: &str,
        config: &BTreeMap<String, String>,
        timeout: Duration,
    ) -> Result<Self, SystemError> {
        let given = config.get(TRANSACTION_TIMEOUT).and_then(|text| text.parse().ok());
        let timeout = given.map_or(timeout, Duration::from_millis);
        let who = [
            ("bootstrap.servers", bootstrap),
            ("client.id", transactional_id),
            ("transactional.id", transactional_id),
        ];
        let fixed: Vec<(&str, &str)> = FIXED.iter().chain(&who).copied().collect();
        let mut again: Vec<(String, String)> = settings(&OURS, config, &fixed)
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        again.retain(|(key, _)| key != TRANSACTION_TIMEOUT);
        let native = with_timeout(&again, timeout)?;
        let again = given.is_none().then_some(again);
        Ok(KafkaProducer { timeout, again, ..Self::of(native, config, true) })
    }

    /// What its client tells of itself, if `statistics.interval.ms` is set.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
    }

    fn with(who: &[(&str, &str)], config: &BTreeMap<String, String>) -> Result<Self, SystemError> {
        let fixed: Vec<(&str, &str)> = FIXED.iter().chain(who).copied().collect();
        let native = Producer::new(&settings(&OURS, config, &fixed))?;
        Ok(Self::of(native, config, false))
    }

    fn of(native: Producer, config: &BTreeMap<String, String>, is_transactional: bool) -> Self {
        let bytes = |key: &str| config.get(key).and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_BYTES);
        let statistics = Statistics::default();
        native.tell(statistics.clone());
        KafkaProducer {
            native,
            statistics,
            unserved: (0, 0),
            is_transactional,
            batch_bytes: bytes("batch.size"),
            message_bytes: bytes("message.max.bytes"),
            limits: Vec::new(),
            refused: VecDeque::new(),
            timeout: Duration::MAX,
            again: None,
        }
    }

    fn queue(&mut self, record: &ProducerRecord<'_>) -> Result<(), SystemError> {
        match self.limits.get(record.topic.0 as usize).copied().flatten() {
            None => self.native.send(record, false),
            Some(limit) => self.queue_within(record, limit),
        }
    }

    /// Queues a message for a topic that takes less at once than this producer may send: no more of it is on its way than
    /// it takes, and a message that may be too large travels alone, so that no other is refused with it.
    fn queue_within(&mut self, record: &ProducerRecord<'_>, limit: Limit) -> Result<(), SystemError> {
        let bytes = bytes_of(record);
        let is_alone = bytes > limit.bytes;
        if is_alone && self.is_transactional {
            // The broker might take it compressed. If it did not, the transaction would be lost, and the next one would
            // meet the same message.
            return Err(SystemError::Refused(format!(
                "send to {}: a message of {bytes} bytes, where the topic takes {} (its max.message.bytes)",
                self.native.name(record.topic.0),
                limit.bytes
            )));
        }
        // Batches that are not larger than the topic's limit are made by librdkafka itself.
        let is_bounded = limit.bytes < self.batch_bytes;
        if is_bounded && limit.unflushed > 0 && limit.unflushed + bytes > limit.bytes {
            self.drain(DRAIN_PATIENCE)?;
        }
        self.native.send(record, is_alone)?;
        if is_bounded && is_alone {
            self.drain(DRAIN_PATIENCE)?;
        } else if let Some(Some(limit)) = self.limits.get_mut(record.topic.0 as usize) {
            limit.unflushed += bytes;
        }
        Ok(())
    }

    /// Waits until nothing is on its way.
    fn drain(&mut self, timeout: Duration) -> Result<(), SystemError> {
        self.native.flush(timeout)?;
        self.unserved = (0, 0);
        self.limits.iter_mut().flatten().for_each(|limit| limit.unflushed = 0);
        Ok(())
    }

    /// Sorts out what was refused. Messages that only shared a batch with one that is at fault are sent again, behind what
    /// was sent since. Returns whether there were any.
    fn sort_out(&mut self) -> Result<bool, SystemError> {
        let (again, refused): (Vec<_>, Vec<_>) =
            self.native.refusals().into_iter().partition(|(_, refusal)| refusal.is_innocent());
        self.refused.extend(refused.into_iter().map(|(topic, refusal)| refusal.into_record(topic)));
        let mut too_large: Vec<u32> =
            again.iter().filter(|(_, refusal)| refusal.is_of_size()).map(|(topic, _)| *topic).collect();
        too_large.dedup();
        for topic in too_large {
            // What the topic takes is not known, or was changed: it is found out.
            let known = self.limits.get(topic as usize).copied().flatten();
            let tried = known.map_or(self.batch_bytes, |limit| limit.bytes);
            self.set_limit(topic, tried / 2);
        }
        for (topic, refusal) in &again {
            self.queue(&refusal.record(*topic))?;
        }
        Ok(!again.is_empty())
    }

    fn set_limit(&mut self, topic: u32, bytes: usize) {
        let at = topic as usize;
        self.limits.resize(self.limits.len().max(at + 1), None);
        self.limits[at] = Some(Limit { bytes, unflushed: 0 });
    }
}

/// How large a message is in a batch, at most.
fn bytes_of(record: &ProducerRecord<'_>) -> usize {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let of_header = |header: Header<'_>| HEADER_OVERHEAD + header.name.len() + length(header.value);
    let headers: usize = record.headers.iter().map(of_header).sum();
    MESSAGE_OVERHEAD + length(record.key) + length(record.value) + headers
}

impl SystemProducer for KafkaProducer {
    fn topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError> {
        self.native.topic(topic).map(TopicHandle)
    }

    fn partitions(&mut self, topic: TopicHandle) -> Result<i32, SystemError> {
        self.native.partitions(topic.0)
    }

    fn takes_at_most(&mut self, topic: TopicHandle, bytes: usize) {
        let bytes = bytes.saturating_sub(BATCH_OVERHEAD);
        if bytes < self.batch_bytes.max(self.message_bytes) {
            self.set_limit(topic.0, bytes);
        }
    }

    fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), SystemError> {
        let (messages, bytes) = &mut self.unserved;
        *messages += 1;
        *bytes += record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        if *messages >= SERVE_EVERY || *bytes >= SERVE_EVERY_BYTES {
            self.unserved = (0, 0);
            self.native.serve(0)?;
            self.sort_out()?;
        }
        self.queue(record)
    }

    fn flush(&mut self, timeout: Duration) -> Result<(), SystemError> {
        loop {
            self.drain(timeout)?;
            if !self.sort_out()? {
                return Ok(());
            }
        }
    }

    fn look_after(&mut self) {
        // What failed fails the next call too.
        let _ = self.native.serve(0);
    }

    fn refused(&mut self) -> Option<RefusedRecord> {
        self.refused.pop_front()
    }
}

fn with_timeout(settings: &[(String, String)], timeout: Duration) -> Result<Producer, SystemError> {
    let ms = timeout.as_millis().to_string();
    let mut all: Vec<(&str, &str)> =
        settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    all.push((TRANSACTION_TIMEOUT, &ms));
    Producer::new(&all)
}

impl TransactionalProducer for KafkaProducer {
    fn timeout(&self) -> Duration {
        self.timeout
    }
    fn init(&mut self, timeout: Duration) -> Result<(), SystemError> {
        loop {
            let refused = match self.native.init_transactions(timeout) {
                Err(SystemError::Refused(why)) => why,
                done => return done,
            };
            let shorter = self.timeout / 2;
            match &self.again {
                // A client that was refused is of no use any more. It has no topics yet.
                Some(again) if shorter >= LEAST_TRANSACTION_TIMEOUT => {
                    self.native = with_timeout(again, shorter)?;
                    self.native.tell(self.statistics.clone());
                    self.timeout = shorter;
                }
                _ => {
                    let ms = self.timeout.as_millis();
                    return Err(SystemError::Fatal(format!(
                        "{TRANSACTION_TIMEOUT} = {ms} is longer than the brokers' transaction.max.timeout.ms: set \
                         less in job.toml, in `producer` of the system ({refused})"
                    )));
                }
            }
        }
    }
    fn begin(&mut self) -> Result<(), SystemError> {
        self.native.begin_transaction()
    }
    fn commit(&mut self, timeout: Duration) -> Result<(), SystemError> {
        self.native.commit_transaction(timeout)?;
        self.limits.iter_mut().flatten().for_each(|limit| limit.unflushed = 0);
        Ok(())
    }
    fn abort(&mut self, timeout: Duration) -> Result<(), SystemError> {
        self.native.abort_transaction(timeout)
    }
}
