//! [`KafkaAdmin`]: questions and orders about a Kafka cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use task_api::system::{
    Configs, Isolation, LogEnd, Lost, Message, NewTopic, Offset, PlainMessage, ProducerRecord, SystemAdmin,
    SystemError, TopicHandle, TopicMetadata, TopicPartition, Watermarks,
};
use types::ClientSetting;

use crate::native::admin::Which;
use crate::native::consume::Source;
use crate::native::{Client, Consumer, Producer};
use crate::{CONSUMERS, consumer_settings, settings};

/// An administrator of one Kafka cluster; shared freely between threads.
pub struct KafkaAdmin {
    bootstrap: String,
    /// It may hold secrets.
    config: BTreeMap<String, String>,
    client: Client,
    /// Readers that are not in use, by what they see: a new one costs connections.
    readers: Mutex<Vec<(Isolation, Consumer)>>,
    /// For plain appends, once there was one.
    appender: Mutex<Option<Producer>>,
}

/// How long any question or order may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long new leaders are asked for.
const LEARN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long writing and fencing may take: the coordinator may have to finish what it was committing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// So many clients at most try to fence one id, each so long after the one before: what an abort takes on a
/// broker that is not busy, with a connection's making.
const FENCE_CLIENTS: u32 = 4;
const FENCE_AGAIN: Duration = Duration::from_millis(75);
/// Nobody asks for more copies of a topic unless told to.
const ENOUGH_BROKERS: usize = 3;
/// A broker's setting: copies of the log of transactions, 3 unless set.
const LOG_OF_TRANSACTIONS: &str = "transaction.state.log.replication.factor";
/// How long a read may stand still before it is given up.
const STALLED: Duration = Duration::from_secs(60);

impl KafkaAdmin {
    /// Connects lazily to `bootstrap` (host:port, comma separated); `config` are extra librdkafka settings of a
    /// consumer (security, addresses).
    ///
    /// # Errors
    /// A setting is unknown or wrong; an unreachable broker shows in later calls.
    pub fn new(bootstrap: &str, config: &BTreeMap<String, String>) -> Result<Self, SystemError> {
        let mut config = config.clone();
        // Nobody polls these clients, so what they told of themselves would pile up.
        config.remove("statistics.interval.ms");
        let shared = shared_settings(&config);
        let client = Client::admin(&settings(&[], &shared, &[("bootstrap.servers", bootstrap)]))?;
        Ok(KafkaAdmin {
            bootstrap: bootstrap.to_owned(),
            config,
            client,
            readers: Mutex::default(),
            appender: Mutex::default(),
        })
    }

    /// Talks to the brokers once, as the job's clients will: at most for `patience`.
    ///
    /// # Errors
    /// None of them answers, or not as `security` has it.
    pub fn first_contact(&self, patience: Duration) -> Result<(), NoContact> {
        let Err(error) = self.client.live_brokers(patience) else { return Ok(()) };
        Err(self.client.cause().map_or_else(
            || NoContact {
                key: "bootstrap",
                why: format!("somebody listens there but no broker answers: {error}"),
            },
            |cause| NoContact { key: cause.key, why: cause.text },
        ))
    }

    fn named(&self, error: SystemError) -> SystemError {
        match error {
            SystemError::Retriable(why) => {
                SystemError::Retriable(format!("brokers {}: {why}", self.bootstrap))
            }
            SystemError::Fatal(why) => SystemError::Fatal(format!("brokers {}: {why}", self.bootstrap)),
            other @ (SystemError::Fenced(_) | SystemError::Refused(_)) => other,
        }
    }

    fn ends(
        &self,
        partitions: &[TopicPartition],
        which: Which,
        isolation: Isolation,
        patience: Duration,
    ) -> Result<Vec<LogEnd>, SystemError> {
        let found = self.client.ends(partitions, which, isolation, patience);
        if matches!(found, Err(SystemError::Retriable(_))) {
            // Where a leader has changed, librdkafka would go by what it knew until its next look around, up to
            // five minutes later.
            let patience = patience.min(LEARN_TIMEOUT);
            let topics: BTreeSet<&str> = partitions.iter().map(|of| of.topic.as_str()).collect();
            topics.into_iter().try_for_each(|topic| self.client.learn(topic, patience).map(drop))?;
        }
        found.map_err(|e| self.named(e))
    }

    fn reader(&self, isolation: Isolation) -> Result<Consumer, SystemError> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = readers.iter().position(|(of, _)| *of == isolation) {
            return Ok(readers.swap_remove(at).1);
        }
        drop(readers);
        let level = match isolation {
            Isolation::ReadUncommitted => "read_uncommitted",
            Isolation::ReadCommitted => "read_committed",
        };
        let ours = [
            CONSUMERS,
            ("queued.max.messages.kbytes", "16384"),
            // A small container's queue lasts no longer, and whoever waits for state does nothing else.
            ("fetch.queue.backoff.ms", "1"),
            ("fetch.wait.max.ms", "5"),
        ];
        let fixed = [
            ("bootstrap.servers", self.bootstrap.as_str()),
            ("group.id", "samza-reader"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", level),
            // What was below the log's start is gone; a range is read from where it still is.
            ("auto.offset.reset", "earliest"),
            // The end is known by position: aborted and control records hand over no message.
            ("enable.partition.eof", "true"),
        ];
        Consumer::new(&consumer_settings(&ours, &self.config, &fixed))
    }

    /// Finds out what became of places in logs.
    fn new_prober(&self) -> Result<Consumer, SystemError> {
        let ours = [CONSUMERS, ("fetch.wait.max.ms", "5"), ("fetch.message.max.bytes", "1024")];
        let fixed = [
            ("bootstrap.servers", self.bootstrap.as_str()),
            ("group.id", "samza-reader"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_uncommitted"),
            // A cut is to be told, not to be gone back for.
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
        ];
        Consumer::new(&consumer_settings(&ours, &self.config, &fixed))
    }

    fn new_appender(&self) -> Result<Producer, SystemError> {
        let shared = shared_settings(&self.config);
        let fixed = [
            ("bootstrap.servers", self.bootstrap.as_str()),
            // Not idempotent: that would wait half a second for a producer id, and a record that is there twice says
            // nothing new.
            ("acks", "all"),
            ("delivery.report.only.error", "true"),
        ];
        Producer::new(&settings(&[("linger.ms", "0")], &shared, &fixed))
    }

    fn new_fencer(&self, transactional_id: &str) -> Result<Producer, SystemError> {
        let mut shared = shared_settings(&self.config);
        // A consumer's may be longer than a transaction, which no producer bears.
        shared.remove("socket.timeout.ms");
        let fixed = [("bootstrap.servers", self.bootstrap.as_str()), ("transactional.id", transactional_id)];
        // It has no transaction, and brokers may allow less than the default of a minute.
        Producer::new(&settings(&[("transaction.timeout.ms", "10000")], &shared, &fixed))
    }

    /// Makes each kind of client that it ever uses.
    #[cfg(test)]
    pub(crate) fn open_all(&self) -> Result<(), SystemError> {
        self.reader(Isolation::ReadCommitted)?;
        self.new_appender()?;
        self.new_fencer("id")?;
        Ok(())
    }

    /// Those that do not exist. Nothing is asked of the others, so no right to create them is needed.
    fn missing(&self, topics: &[NewTopic]) -> Result<Vec<NewTopic>, SystemError> {
        let names: Vec<String> = topics.iter().map(|topic| topic.topic.clone()).collect();
        let found = self.client.describe(&names, TIMEOUT)?;
        let mut missing = Vec::new();
        for wanted in topics {
            let Some(there) = found.iter().find(|there| there.topic == wanted.topic) else {
                missing.push(wanted.clone());
                continue;
            };
            let has = i32::try_from(there.partitions.len()).unwrap_or(i32::MAX);
            if has < wanted.partitions {
                return Err(SystemError::Fatal(format!(
                    "topic {} exists with {has} partitions and the job needs {}: delete it, or add partitions",
                    there.topic, wanted.partitions
                )));
            }
        }
        Ok(missing)
    }

    /// A topic that was just created is not known to every broker at once.
    fn await_topics(&self, topics: &[NewTopic]) -> Result<(), SystemError> {
        let names: Vec<String> = topics.iter().map(|topic| topic.topic.clone()).collect();
        let since = Instant::now();
        loop {
            let found = self.client.describe(&names, TIMEOUT)?;
            let led =
                |topic: &TopicMetadata| topic.partitions.iter().all(|partition| partition.leader.is_some());
            if found.len() == names.len() && found.iter().all(led) {
                return Ok(());
            }
            if since.elapsed() > TIMEOUT {
                return Err(SystemError::Retriable(format!(
                    "topics {} have no leaders yet",
                    names.join(", ")
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Settings that only consumers know are not those of a client that asks and orders.
fn shared_settings(config: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let shared = |name: &str| ClientSetting::find(name).is_none_or(|setting| setting.producer);
    let shared = config.iter().filter(|(name, _)| shared(name));
    shared.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Why brokers cannot be talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoContact {
    /// The key of the system in the job file that it is about, such as `security.password`.
    pub key: &'static str,
    /// What is wrong.
    pub why: String,
}

impl std::fmt::Debug for KafkaAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaAdmin").field("bootstrap", &self.bootstrap).finish_non_exhaustive()
    }
}

impl SystemAdmin for KafkaAdmin {
    fn live_brokers(&self) -> Result<usize, SystemError> {
        self.client.live_brokers(TIMEOUT).map_err(|e| self.named(e))
    }

    fn describe(&self, topics: &[String]) -> Result<Vec<TopicMetadata>, SystemError> {
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        self.client.describe(topics, TIMEOUT).map_err(|e| self.named(e))
    }

    /// In KRaft a broker that is down is in no answer to a client. What tells of it is a topic with a replica on it;
    /// and where no topic is yet, the replication of the brokers' log of transactions: without as many brokers there
    /// would be no transaction, so a cluster for which it is larger than the brokers that answer has others. That of a
    /// single broker for development is 1.
    fn cluster_size(&self) -> Result<usize, SystemError> {
        let named = self.client.brokers_named(TIMEOUT).map_err(|e| self.named(e))?;
        if named.len() >= ENOUGH_BROKERS {
            return Ok(named.len());
        }
        let Some(broker) = named.first() else { return Ok(0) };
        let told = match self.client.broker_configs(*broker, TIMEOUT) {
            Ok(configs) => configs.get(LOG_OF_TRANSACTIONS).and_then(|entry| entry.value.parse().ok()),
            // Few principals may read the brokers' settings; topics tell nearly always.
            Err(_) => None,
        };
        Ok(named.len().max(told.unwrap_or(0)))
    }

    fn describe_configs(&self, topics: &[String]) -> Result<BTreeMap<String, Configs>, SystemError> {
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.client.describe_configs(topics, TIMEOUT).map_err(|e| self.named(e))
    }

    fn alter_configs(&self, topic: &str, set: &BTreeMap<String, String>) -> Result<(), SystemError> {
        if set.is_empty() {
            return Ok(());
        }
        self.client.alter_configs(topic, set, TIMEOUT).map_err(|e| self.named(e))
    }

    fn create(&self, topics: &[NewTopic]) -> Result<(), SystemError> {
        if topics.is_empty() {
            return Ok(());
        }
        let missing = self.missing(topics).map_err(|e| self.named(e))?;
        if !missing.is_empty() {
            self.client.create(&missing, TIMEOUT).map_err(|e| self.named(e))?;
        }
        self.await_topics(topics).map_err(|e| self.named(e))
    }

    fn topics(&self) -> Result<Vec<String>, SystemError> {
        self.client.topics(TIMEOUT).map_err(|e| self.named(e))
    }

    fn extend(&self, topic: &str, partitions: i32) -> Result<(), SystemError> {
        let since = Instant::now();
        loop {
            let found = self.describe(&[topic.to_owned()])?;
            let of = found.first().ok_or_else(|| SystemError::Fatal(format!("there is no topic {topic}")))?;
            let has = i32::try_from(of.partitions.len()).unwrap_or(i32::MAX);
            if has >= partitions && of.partitions.iter().all(|partition| partition.leader.is_some()) {
                return Ok(());
            }
            if since.elapsed() > TIMEOUT {
                let why =
                    format!("topic {topic} has {has} of {partitions} partitions, or no leaders for them");
                return Err(self.named(SystemError::Retriable(why)));
            }
            if has < partitions {
                self.client.extend(topic, partitions, TIMEOUT).map_err(|e| self.named(e))?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn watermarks(&self, partitions: &[TopicPartition]) -> Result<Vec<Watermarks>, SystemError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let ends = |which, isolation| self.ends(partitions, which, isolation, TIMEOUT);
        // The stable offset is asked for after the high watermark: it may then be the higher one, never too low.
        let low = ends(Which::Earliest, Isolation::ReadUncommitted)?;
        let high = ends(Which::Latest, Isolation::ReadUncommitted)?;
        let stable = ends(Which::Latest, Isolation::ReadCommitted)?;
        Ok(low
            .into_iter()
            .zip(high)
            .zip(stable)
            .map(|((low, high), stable)| Watermarks {
                low: low.offset,
                high: high.offset,
                stable: stable.offset.min(high.offset),
                leader_epoch: high.leader_epoch,
            })
            .collect())
    }

    fn high_watermarks(
        &self,
        partitions: &[TopicPartition],
        patience: Duration,
    ) -> Result<Vec<LogEnd>, SystemError> {
        self.ends(partitions, Which::Latest, Isolation::ReadUncommitted, patience)
    }

    fn lost(&self, starts: &[(TopicPartition, Offset)]) -> Result<Vec<Option<Lost>>, SystemError> {
        let partitions: Vec<TopicPartition> = starts.iter().map(|(of, _)| of.clone()).collect();
        let ends = self.watermarks(&partitions)?;
        starts
            .iter()
            .zip(ends)
            .map(|((partition, offset), ends)| {
                let offset = crate::consumer::parse(partition, offset)?;
                Ok(if offset < ends.low {
                    Some(Lost::Truncated { low: ends.low })
                } else if offset > ends.high {
                    Some(Lost::Recreated { high: ends.high })
                } else {
                    None
                })
            })
            .collect()
    }

    /// Most logs have the leader that they had, and need no second question.
    fn cut(&self, seen: &[(TopicPartition, LogEnd)]) -> Result<Vec<bool>, SystemError> {
        let partitions: Vec<TopicPartition> = seen.iter().map(|(at, _)| at.clone()).collect();
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let ends = |which| self.ends(&partitions, which, Isolation::ReadUncommitted, TIMEOUT);
        let (low, high) = (ends(Which::Earliest)?, ends(Which::Latest)?);
        let has_epoch = |at: usize| seen[at].1.leader_epoch.is_some();
        let is_above = |at: usize| has_epoch(at) && seen[at].1.offset > high[at].offset;
        let of_another_leader = |at: &usize| {
            let (had, has) = (seen[*at].1, high[*at].leader_epoch);
            has_epoch(*at) && has.is_some() && has != had.leader_epoch
                // What retention has taken says nothing of what follows.
                && had.offset > low[*at].offset && !is_above(*at)
        };
        let mut cut: Vec<bool> = (0..seen.len()).map(is_above).collect();
        // Tasks that read the same partition may have come to different places, and a consumer can be at one.
        let mut rounds: Vec<Vec<usize>> = Vec::new();
        for at in (0..seen.len()).filter(of_another_leader) {
            let is_free = |round: &&mut Vec<usize>| round.iter().all(|other| seen[*other].0 != seen[at].0);
            match rounds.iter_mut().find(is_free) {
                Some(round) => round.push(at),
                None => rounds.push(vec![at]),
            }
        }
        for round in rounds {
            let of: Vec<_> = round.iter().map(|at| seen[*at].clone()).collect();
            let mut prober = self.new_prober().map_err(|e| self.named(e))?;
            let found = prober.were_cut(&of, TIMEOUT).map_err(|e| self.named(e))?;
            round.iter().zip(found).for_each(|(at, was_cut)| cut[*at] = was_cut);
        }
        Ok(cut)
    }

    fn read_range(
        &self,
        partition: &TopicPartition,
        from: u64,
        until: u64,
        isolation: Isolation,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        if from >= until {
            return Ok(());
        }
        let mut reader = self.reader(isolation).map_err(|e| self.named(e))?;
        reader.assign(&[(partition.clone(), from)]).map_err(|e| self.named(e))?;
        let mut reached = from;
        let mut moved = Instant::now();
        while reached < until {
            reader.poll(Duration::from_millis(100), &mut |messages| {
                let within = messages.partition_point(|message| message.offset < until);
                if within > 0 { take(&messages[..within]) } else { Ok(()) }
            })?;
            let now_at = reader.sources.first().map_or(until, Source::position);
            if now_at > reached {
                (reached, moved) = (now_at, Instant::now());
            } else if moved.elapsed() > STALLED {
                let what = format!("{}-{} at {reached} of {until}", partition.topic, partition.partition);
                return Err(self.named(SystemError::Retriable(format!("reading {what} stands still"))));
            }
        }
        reader.assign(&[])?;
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push((isolation, reader));
        Ok(())
    }

    fn append(&self, messages: &[PlainMessage]) -> Result<(), SystemError> {
        let mut appender = self.appender.lock().unwrap_or_else(PoisonError::into_inner);
        let producer = match &mut *appender {
            Some(producer) => producer,
            none => none.insert(self.new_appender()?),
        };
        let mut write = || {
            for message in messages {
                let topic = producer.topic(&message.to.topic)?;
                let (key, value) = (Some(message.key.as_slice()), message.value.as_deref());
                producer.send(
                    &ProducerRecord::new(TopicHandle(topic), key, value).to(message.to.partition),
                    false,
                )?;
            }
            producer.flush(WRITE_TIMEOUT)
        };
        let written = write();
        if written.is_err() {
            // A producer that failed once stays failed.
            *appender = None;
        }
        written.map_err(|e| self.named(e))
    }

    fn started(&self) {
        let readers = std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        // It takes a moment until a client's threads are over, which nobody need wait for.
        let _ = std::thread::Builder::new().name("readers-end".into()).spawn(move || drop(readers));
    }

    /// Where the id has an open transaction, the broker aborts it and asks the client to come again, which
    /// librdkafka does half a second later. A second client that comes sooner is served as soon as the abort is
    /// complete; so one is sent after the other until one is through.
    fn fence(&self, transactional_id: &str) -> Result<(), SystemError> {
        let (done, first_done) = mpsc::channel();
        for _ in 0..FENCE_CLIENTS {
            let producer = self.new_fencer(transactional_id).map_err(|e| self.named(e))?;
            let done = done.clone();
            // One that comes too late only fences the id once more, which nobody will ever use again.
            std::thread::spawn(move || done.send(producer.init_transactions(WRITE_TIMEOUT)));
            match first_done.recv_timeout(FENCE_AGAIN) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(SystemError::Fenced(_))) | Err(_) => {}
                Ok(Err(error)) => return Err(self.named(error)),
            }
        }
        loop {
            match first_done.recv_timeout(WRITE_TIMEOUT + TIMEOUT) {
                Ok(Ok(())) => return Ok(()),
                // A later client of ours was through before this one.
                Ok(Err(SystemError::Fenced(_))) => {}
                Ok(Err(error)) => return Err(self.named(error)),
                Err(_) => {
                    return Err(
                        self.named(SystemError::Retriable(format!("{transactional_id} is not fenced")))
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_that_a_start_reads_with_are_used_again_and_none_is_left_after_it() {
        let admin = KafkaAdmin::new("127.0.0.1:1", &BTreeMap::new()).expect("an admin");
        let left = || admin.readers.lock().expect("no panic").len();
        let reader = |isolation| admin.reader(isolation).expect("a consumer");
        let give_back = |isolation, reader| admin.readers.lock().expect("no panic").push((isolation, reader));
        for _ in 0..3 {
            give_back(Isolation::ReadCommitted, reader(Isolation::ReadCommitted));
        }
        give_back(Isolation::ReadUncommitted, reader(Isolation::ReadUncommitted));
        assert_eq!(left(), 2, "one for each isolation was enough");
        admin.started();
        assert_eq!(left(), 0);
    }
}
