//! A Kafka in memory: partitions with transactions, markers, fencing and watermarks, and topics that may be missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use task_api::Headers;
use task_api::system::{
    BrokerMetadata, Configs, Isolation, Lost, Message, NewTopic, Offset, PartitionMetadata, PlainMessage,
    SystemAdmin, SystemError, TopicMetadata, TopicPartition, Watermarks, configs_of,
};

/// librdkafka's default of `message.max.bytes`.
pub(super) const MAX_MESSAGE_BYTES: usize = 1_000_000;

/// A transaction: its id, the id's epoch, and its number.
pub(super) type Transaction = (String, u32, u32);

#[derive(Debug, Clone)]
pub(super) struct Row {
    /// None is a plain row.
    pub(super) transaction: Option<Transaction>,
    /// It says that its transaction is decided.
    pub(super) is_marker: bool,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct Topic {
    made: NewTopic,
    id: String,
    partitions: Vec<Partition>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Partition {
    /// What is below was deleted.
    low: u64,
    pub(super) rows: Vec<Row>,
}

impl Topic {
    /// What a message may have at most.
    fn most(&self) -> usize {
        let set = self.made.config.get("max.message.bytes").and_then(|most| most.parse().ok());
        set.unwrap_or(MAX_MESSAGE_BYTES)
    }
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    topics: BTreeMap<String, Topic>,
    /// Topics that were made.
    made: u32,
    /// By transactional id: its epoch.
    pub(super) epochs: BTreeMap<String, u32>,
    /// Decided transactions: committed or not.
    decided: BTreeMap<Transaction, bool>,
    down: bool,
    /// Brokers of the three that are down.
    brokers_down: usize,
    /// Orders to create and to alter, by topic: each needs a right.
    orders: Vec<(&'static str, String)>,
    /// Whether the rights to create and to alter are missing.
    locked: bool,
}

/// The Kafka. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Inner>>);

impl Memory {
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, Inner>, SystemError> {
        let inner = self.0.lock().expect("no test panics with it");
        if inner.down {
            Err(SystemError::Retriable("no broker of 127.0.0.1:9092 answers".into()))
        } else {
            Ok(inner)
        }
    }
    /// Makes it unreachable, or reachable again.
    pub fn set_down(&self, down: bool) {
        self.0.lock().expect("no test panics with it").down = down;
    }
    /// Stops so many of its three brokers.
    pub fn set_brokers_down(&self, count: usize) {
        self.0.lock().expect("no test panics with it").brokers_down = count;
    }
    /// Takes the rights to create topics and to alter them, or gives them.
    pub fn set_locked(&self, locked: bool) {
        self.0.lock().expect("no test panics with it").locked = locked;
    }
    /// Which topics were ordered to be created ("create") or altered ("alter"), in order.
    pub fn orders(&self) -> Vec<(&'static str, String)> {
        self.0.lock().expect("no test panics with it").orders.clone()
    }
    /// The length of the largest value in a topic.
    pub fn largest_value(&self, topic: &str) -> usize {
        let inner = self.0.lock().expect("no test panics with it");
        let rows = inner.topics[topic].partitions.iter().flat_map(|of| &of.rows);
        rows.filter_map(|row| row.value.as_ref()).map(Vec::len).max().unwrap_or(0)
    }
    /// Deletes a topic.
    pub fn remove(&self, topic: &str) {
        self.0.lock().expect("no test panics with it").topics.remove(topic);
    }
    /// Deletes what a partition has below an offset.
    pub fn delete_below(&self, at: &TopicPartition, low: u64) {
        let mut inner = self.0.lock().expect("no test panics with it");
        inner.partition(at).expect("a partition of the test").low = low;
    }
    /// How a topic is now.
    pub fn topic(&self, name: &str) -> Option<NewTopic> {
        self.0.lock().expect("no test panics with it").topics.get(name).map(|t| t.made.clone())
    }
    /// An id's epoch: it grows each time somebody registers it.
    pub fn epoch(&self, id: &str) -> u32 {
        self.0.lock().expect("no test panics with it").epochs.get(id).copied().unwrap_or(0)
    }
}

impl Inner {
    fn make(&mut self, topic: &NewTopic, count: usize) -> Result<(), SystemError> {
        let NewTopic { topic: name, replication, config, .. } = topic;
        self.orders.push(("create", name.clone()));
        if self.locked {
            return Err(SystemError::Fatal(format!("no right Create on topic {name}")));
        }
        types::check_topic_settings(config).map_err(SystemError::Fatal)?;
        if usize::from(*replication) > 3 - self.brokers_down {
            return Err(SystemError::Retriable(format!(
                "too few brokers for {replication} copies of {name}"
            )));
        }
        self.made += 1;
        let id = format!("{name} no. {}", self.made);
        let partitions = vec![Partition::default(); count];
        self.topics.insert(name.clone(), Topic { made: topic.clone(), id, partitions });
        Ok(())
    }
    pub(super) fn register(&mut self, id: &str) -> u32 {
        let rows = self.topics.values().flat_map(|topic| topic.partitions.iter().flat_map(|of| &of.rows));
        let of = rows.filter_map(|row| row.transaction.clone()).filter(|of| of.0 == id);
        let open: BTreeSet<_> = of.filter(|of| !self.decided.contains_key(of)).collect();
        open.into_iter().for_each(|transaction| self.decide(transaction, false));
        let epoch = self.epochs.entry(id.to_owned()).or_insert(0);
        *epoch += 1;
        *epoch
    }
    /// Decides a transaction and writes its markers.
    pub(super) fn decide(&mut self, transaction: Transaction, commits: bool) {
        for of in self.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
            if of.rows.iter().any(|row| row.transaction.as_ref() == Some(&transaction)) {
                let transaction = Some(transaction.clone());
                of.rows.push(Row { transaction, is_marker: true, key: None, value: None });
            }
        }
        self.decided.insert(transaction, commits);
    }
    /// How many partitions a topic has, and how long a message of it may be.
    pub(super) fn shape(&self, topic: &str) -> Option<(i32, usize)> {
        let topic = self.topics.get(topic)?;
        Some((i32::try_from(topic.partitions.len()).expect("few"), topic.most()))
    }
    /// A broker may not have heard of it yet.
    pub(super) fn partition(&mut self, at: &TopicPartition) -> Result<&mut Partition, SystemError> {
        let unknown = || SystemError::Retriable(format!("{at:?} is unknown"));
        let topic = self.topics.get_mut(&at.topic).ok_or_else(unknown)?;
        let place = usize::try_from(at.partition).map_err(|_| unknown())?;
        topic.partitions.get_mut(place).ok_or_else(unknown)
    }
    fn ends(&mut self, at: &TopicPartition) -> Result<Watermarks, SystemError> {
        let Partition { low, rows } = self.partition(at)?.clone();
        let is_open = |row: &Row| row.transaction.as_ref().is_some_and(|of| !self.decided.contains_key(of));
        let high = rows.len() as u64;
        let stable = rows.iter().position(is_open).map_or(high, |first| first as u64);
        Ok(Watermarks { low, high, stable, leader_epoch: None })
    }
}

impl SystemAdmin for Memory {
    fn live_brokers(&self) -> Result<usize, SystemError> {
        self.lock().map(|inner| 3 - inner.brokers_down)
    }
    /// Some topic has replicas on all of them.
    fn cluster_size(&self) -> Result<usize, SystemError> {
        self.lock().map(|_| 3)
    }
    fn describe_configs(&self, topics: &[String]) -> Result<BTreeMap<String, Configs>, SystemError> {
        let inner = self.lock()?;
        let of = |name: &String| Some((name.clone(), configs_of(&inner.topics.get(name)?.made.config)));
        Ok(topics.iter().filter_map(of).collect())
    }
    fn alter_configs(&self, topic: &str, set: &BTreeMap<String, String>) -> Result<(), SystemError> {
        types::check_topic_settings(set).map_err(SystemError::Fatal)?;
        let mut inner = self.lock()?;
        inner.orders.push(("alter", topic.to_owned()));
        if inner.locked {
            return Err(SystemError::Fatal(format!("no right AlterConfigs on topic {topic}")));
        }
        let unknown = || SystemError::Retriable(format!("no topic {topic}"));
        let known = inner.topics.get_mut(topic).ok_or_else(unknown)?;
        known.made.config.extend(set.clone());
        Ok(())
    }
    fn describe(&self, topics: &[String]) -> Result<Vec<TopicMetadata>, SystemError> {
        let inner = self.lock()?;
        let live = 3 - i32::try_from(inner.brokers_down).expect("at most three");
        let described = |name: &String| {
            let Topic { made, id, partitions } = inner.topics.get(name)?;
            let replicas = |n: i32| (0..i32::from(made.replication)).map(|k| (n + k) % 3 + 1).collect();
            let partition = |(n, _): (i32, &Partition)| PartitionMetadata {
                partition: n,
                leader: Some(n % 3 + 1),
                replicas: replicas(n),
            };
            let partitions: Vec<_> = (0..).zip(partitions).map(partition).collect();
            let ids: BTreeSet<i32> = partitions.iter().flat_map(|of| of.replicas.clone()).collect();
            let broker = |id: i32| BrokerMetadata {
                id,
                host: format!("127.0.0.{id}"),
                port: 9092,
                rack: format!("r{id}"),
            };
            let brokers = ids.into_iter().filter(|id| *id <= live).map(broker).collect();
            Some(TopicMetadata { topic: name.clone(), topic_id: id.clone(), partitions, brokers })
        };
        Ok(topics.iter().filter_map(described).collect())
    }
    fn create(&self, topics: &[NewTopic]) -> Result<(), SystemError> {
        let mut inner = self.lock()?;
        for topic in topics {
            let count = usize::try_from(topic.partitions).expect("a count");
            let Some(there) = inner.topics.get(&topic.topic).map(|there| there.partitions.len()) else {
                inner.make(topic, count)?;
                continue;
            };
            if there < count {
                let why = format!("{} has {there} partitions, {count} are needed", topic.topic);
                return Err(SystemError::Fatal(why));
            }
        }
        Ok(())
    }
    fn topics(&self) -> Result<Vec<String>, SystemError> {
        Ok(self.lock()?.topics.keys().cloned().collect())
    }
    fn extend(&self, topic: &str, partitions: i32) -> Result<(), SystemError> {
        let mut inner = self.lock()?;
        if inner.locked {
            return Err(SystemError::Fatal(format!("topic {topic} cannot be extended: not authorized")));
        }
        let unknown = || SystemError::Fatal(format!("there is no topic {topic}"));
        let of = inner.topics.get_mut(topic).ok_or_else(unknown)?;
        let count = usize::try_from(partitions).expect("a count").max(of.partitions.len());
        of.partitions.resize(count, Partition::default());
        of.made.partitions = i32::try_from(count).expect("few");
        Ok(())
    }
    fn watermarks(&self, partitions: &[TopicPartition]) -> Result<Vec<Watermarks>, SystemError> {
        let mut inner = self.lock()?;
        partitions.iter().map(|at| inner.ends(at)).collect()
    }
    fn read_range(
        &self,
        partition: &TopicPartition,
        from: u64,
        until: u64,
        isolation: Isolation,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        let (Partition { low, rows }, decided) = {
            let mut inner = self.lock()?;
            (inner.partition(partition)?.clone(), inner.decided.clone())
        };
        let from = usize::try_from(from.max(low)).expect("an offset");
        for (offset, row) in (0..until).zip(&rows).skip(from).filter(|(_, row)| !row.is_marker) {
            let committed = row.transaction.as_ref().is_none_or(|t| decided.get(t) == Some(&true));
            if isolation == Isolation::ReadUncommitted || committed {
                let (key, value, headers) = (row.key.as_deref(), row.value.as_deref(), Headers::NONE);
                take(&[Message { source: 0, offset, key, value, timestamp_ms: None, headers }])?;
            }
        }
        Ok(())
    }
    fn append(&self, messages: &[PlainMessage]) -> Result<(), SystemError> {
        let mut inner = self.lock()?;
        for m in messages {
            let (key, value) = (Some(m.key.clone()), m.value.clone());
            inner.partition(&m.to)?.rows.push(Row { transaction: None, is_marker: false, key, value });
        }
        Ok(())
    }
    fn lost(&self, starts: &[(TopicPartition, Offset)]) -> Result<Vec<Option<Lost>>, SystemError> {
        let mut inner = self.lock()?;
        let of = |(at, offset): &(TopicPartition, Offset)| {
            let Watermarks { low, high, .. } = inner.ends(at)?;
            let no_offset = |_| SystemError::Fatal(format!("`{offset}` is no offset"));
            let offset: u64 = offset.0.parse().map_err(no_offset)?;
            let truncated = (offset < low).then_some(Lost::Truncated { low });
            Ok(truncated.or((offset > high).then_some(Lost::Recreated { high })))
        };
        starts.iter().map(of).collect()
    }
    fn fence(&self, transactional_id: &str) -> Result<(), SystemError> {
        self.lock()?.register(transactional_id);
        Ok(())
    }
}
