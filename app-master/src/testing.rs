//! A Kafka in memory, for tests: partitions with transactions, fencing and watermarks, and topics that may be missing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use task_api::Headers;
use task_api::system::{
    BrokerMetadata, Configs, Isolation, Lost, Message, NewTopic, Offset, PartitionMetadata, PlainMessage,
    ProducerRecord, SystemAdmin, SystemError, SystemProducer, TopicHandle, TopicMetadata, TopicPartition,
    TransactionalProducer, Watermarks, configs_of,
};
use types::{
    ContainersSpec, Delivery, ErrorsSpec, Grouper, JobId, JobSpec, OnExhausted, OnLeaseLoss, PackageSpec,
    PlacementSpec, Resource, RestartSpec, Spread, StateLost, StoreSpec, SystemKind, SystemSpec, TaskSpec,
};

use crate::systems::Systems;

/// A job with one input `in`, one store and two containers.
pub fn spec() -> JobSpec {
    let kafka = SystemSpec {
        kind: SystemKind::Kafka,
        bootstrap: "127.0.0.1:9092".into(),
        consumer: BTreeMap::new(),
        producer: BTreeMap::new(),
        replication: None,
        path: None,
        security: None,
    };
    let store = StoreSpec {
        cache_rows: 1000,
        ..StoreSpec::with_changelog(Some("j-1-seen-changelog".into()), "kafka")
    };
    JobSpec {
        job: JobId { name: "j".into(), id: "1".into() },
        queue: "default".into(),
        priority: 0,
        app_master: Resource { memory_bytes: 64 << 20, cpu_millis: 100 },
        package: PackageSpec {
            source: "j".into(),
            artefact: None,
            command: vec![],
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
        },
        containers: ContainersSpec {
            count: 2,
            resource: Resource::default(),
            threads: 1,
            cpu_limit_millis: None,
        },
        task: TaskSpec {
            inputs: vec!["kafka.in".into()],
            former_inputs: Vec::new(),
            on_input_growth: types::OnInputGrowth::Fail,
            window_ms: None,
            commit_ms: 1000,
            delivery: Delivery::ExactlyOnce,
            grouper: Grouper::Partition,
            timers: false,
            concurrency: 16,
            state_lost: StateLost::Fail,
            stuck_after_ms: Some(types::STUCK_AFTER_MS),
            config: BTreeMap::new(),
        },
        systems: BTreeMap::from([("kafka".to_owned(), kafka)]),
        streams: BTreeMap::new(),
        stores: BTreeMap::from([("seen".to_owned(), store)]),
        placement: PlacementSpec {
            wait_ms: 1000,
            rack_wait_ms: 1000,
            host_affinity: true,
            on_lease_loss: OnLeaseLoss::Keep,
            labels: BTreeMap::new(),
            spread: Spread::None,
        },
        errors: ErrorsSpec::default(),
        restart: RestartSpec {
            retries: 3,
            window_ms: 300_000,
            backoff_min_ms: 1000,
            backoff_max_ms: 4000,
            on_exhausted: OnExhausted::Fail,
        },
        metadata: types::MetadataSpec::default(),
    }
}

#[derive(Debug, Clone)]
struct Row {
    /// None is a plain row; else its transaction, by (id, epoch, number).
    transaction: Option<(String, u32, u32)>,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Inner {
    topics: BTreeMap<String, (NewTopic, Vec<Vec<Row>>)>,
    /// By transactional id: its epoch.
    epochs: BTreeMap<String, u32>,
    /// Decided transactions: committed or not.
    decided: BTreeMap<(String, u32, u32), bool>,
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
    fn lock(&self) -> Result<MutexGuard<'_, Inner>, SystemError> {
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
        let rows = inner.topics[topic].1.iter().flatten();
        rows.filter_map(|row| row.value.as_ref()).map(Vec::len).max().unwrap_or(0)
    }
    /// Deletes a topic.
    pub fn remove(&self, topic: &str) {
        self.0.lock().expect("no test panics with it").topics.remove(topic);
    }
    /// How a topic is now.
    pub fn topic(&self, name: &str) -> Option<NewTopic> {
        self.0.lock().expect("no test panics with it").topics.get(name).map(|(t, _)| t.clone())
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
        self.topics.insert(name.clone(), (topic.clone(), vec![Vec::new(); count]));
        Ok(())
    }
    fn register(&mut self, id: &str) -> u32 {
        let epoch = self.epochs.entry(id.to_owned()).or_insert(0);
        *epoch += 1;
        let epoch = *epoch;
        let rows = self.topics.values().flat_map(|(_, ps)| ps.iter().flatten());
        let open: Vec<_> = rows.filter_map(|r| r.transaction.clone()).filter(|t| t.0 == id).collect();
        for transaction in open {
            self.decided.entry(transaction).or_insert(false);
        }
        epoch
    }
    fn rows(&mut self, at: &TopicPartition) -> Result<&mut Vec<Row>, SystemError> {
        let unknown = || SystemError::Fatal(format!("{at:?} is unknown"));
        let (_, partitions) = self.topics.get_mut(&at.topic).ok_or_else(unknown)?;
        partitions.get_mut(usize::try_from(at.partition).map_err(|_| unknown())?).ok_or_else(unknown)
    }
}

impl SystemAdmin for Memory {
    fn brokers(&self) -> Result<Vec<BrokerMetadata>, SystemError> {
        drop(self.lock()?);
        let broker = |id: i32| BrokerMetadata {
            id,
            host: format!("127.0.0.{id}"),
            port: 9092,
            rack: format!("r{id}"),
        };
        let live = 3 - i32::try_from(self.lock()?.brokers_down).expect("at most three");
        Ok((1..=live).map(broker).collect())
    }
    /// Some topic has replicas on all of them.
    fn cluster_size(&self) -> Result<usize, SystemError> {
        self.lock().map(|_| 3)
    }
    fn describe_configs(&self, topics: &[String]) -> Result<BTreeMap<String, Configs>, SystemError> {
        let inner = self.lock()?;
        let of = |name: &String| Some((name.clone(), configs_of(&inner.topics.get(name)?.0.config)));
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
        let (known, _) = inner.topics.get_mut(topic).ok_or_else(unknown)?;
        known.config.extend(set.clone());
        Ok(())
    }
    fn describe(&self, topics: &[String]) -> Result<Vec<TopicMetadata>, SystemError> {
        let inner = self.lock()?;
        let described = |name: &String| {
            let (made, partitions) = inner.topics.get(name)?;
            let replicas = |n: i32| (0..i32::from(made.replication)).map(|k| (n + k) % 3 + 1).collect();
            let partition = |(n, _): (i32, &Vec<Row>)| PartitionMetadata {
                partition: n,
                leader: Some(n % 3 + 1),
                replicas: replicas(n),
            };
            let partitions = (0..).zip(partitions).map(partition).collect();
            Some(TopicMetadata { topic: name.clone(), topic_id: name.clone(), partitions })
        };
        Ok(topics.iter().filter_map(described).collect())
    }
    fn create(&self, topics: &[NewTopic]) -> Result<(), SystemError> {
        let mut inner = self.lock()?;
        for topic in topics {
            let count = usize::try_from(topic.partitions).expect("a count");
            let Some((_, there)) = inner.topics.get(&topic.topic) else {
                inner.make(topic, count)?;
                continue;
            };
            if there.len() < count {
                let why = format!("{} has {} partitions, {count} are needed", topic.topic, there.len());
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
        let (of, rows) = inner.topics.get_mut(topic).ok_or_else(unknown)?;
        let count = usize::try_from(partitions).expect("a count").max(rows.len());
        rows.resize(count, Vec::new());
        of.partitions = i32::try_from(count).expect("few");
        Ok(())
    }
    fn watermarks(&self, partitions: &[TopicPartition]) -> Result<Vec<Watermarks>, SystemError> {
        let mut inner = self.lock()?;
        partitions
            .iter()
            .map(|at| {
                let rows = inner.rows(at)?.clone();
                let open = rows
                    .iter()
                    .position(|r| r.transaction.as_ref().is_some_and(|t| !inner.decided.contains_key(t)));
                let high = rows.len() as u64;
                Ok(Watermarks { low: 0, high, stable: open.map_or(high, |n| n as u64) })
            })
            .collect()
    }
    fn read_range(
        &self,
        partition: &TopicPartition,
        from: u64,
        until: u64,
        isolation: Isolation,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        let (rows, decided) = {
            let mut inner = self.lock()?;
            (inner.rows(partition)?.clone(), inner.decided.clone())
        };
        for (offset, row) in (0..until).zip(&rows).skip(usize::try_from(from).expect("an offset")) {
            let committed = row.transaction.as_ref().is_none_or(|t| decided.get(t) == Some(&true));
            if isolation == Isolation::ReadUncommitted || committed {
                let value = row.value.as_deref();
                let (key, headers) = (Some(row.key.as_slice()), Headers::NONE);
                take(&[Message { source: 0, offset, key, value, timestamp_ms: None, headers }])?;
            }
        }
        Ok(())
    }
    fn append(&self, messages: &[PlainMessage]) -> Result<(), SystemError> {
        let mut inner = self.lock()?;
        for m in messages {
            let row = Row { transaction: None, key: m.key.clone(), value: m.value.clone() };
            inner.rows(&m.to)?.push(row);
        }
        Ok(())
    }
    fn lost(&self, starts: &[(TopicPartition, Offset)]) -> Result<Vec<Option<Lost>>, SystemError> {
        drop(self.lock()?);
        Ok(vec![None; starts.len()])
    }
    fn fence(&self, transactional_id: &str) -> Result<(), SystemError> {
        self.lock()?.register(transactional_id);
        Ok(())
    }
}

/// A transactional producer on it.
pub struct MemoryProducer {
    memory: Memory,
    id: String,
    epoch: u32,
    number: u32,
    topics: Vec<String>,
}

impl MemoryProducer {
    fn checked(&self) -> Result<MutexGuard<'_, Inner>, SystemError> {
        let inner = self.memory.lock()?;
        if inner.epochs.get(&self.id) == Some(&self.epoch) {
            Ok(inner)
        } else {
            Err(SystemError::Fenced(format!("{} was registered again", self.id)))
        }
    }
    fn decide(&self, committed: bool) -> Result<(), SystemError> {
        self.checked()?.decided.insert((self.id.clone(), self.epoch, self.number), committed);
        Ok(())
    }
}

impl SystemProducer for MemoryProducer {
    fn topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError> {
        self.topics.push(topic.to_owned());
        Ok(TopicHandle(u32::try_from(self.topics.len() - 1).expect("few topics")))
    }
    fn partitions(&mut self, topic: TopicHandle) -> Result<i32, SystemError> {
        let inner = self.memory.lock()?;
        let topic = inner.topics.get(&self.topics[topic.0 as usize]);
        Ok(topic.map_or(0, |(_, partitions)| i32::try_from(partitions.len()).expect("few")))
    }
    fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), SystemError> {
        let ProducerRecord { topic, partition, key, value, .. } = *record;
        let to = TopicPartition {
            topic: self.topics[topic.0 as usize].clone(),
            partition: partition.expect("given"),
        };
        let transaction = Some((self.id.clone(), self.epoch, self.number));
        let row = Row { transaction, key: key.expect("given").to_vec(), value: value.map(<[u8]>::to_vec) };
        self.checked()?.rows(&to)?.push(row);
        Ok(())
    }
    fn flush(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        Ok(())
    }
}

impl TransactionalProducer for MemoryProducer {
    fn init(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        self.epoch = self.memory.lock()?.register(&self.id);
        Ok(())
    }
    fn begin(&mut self) -> Result<(), SystemError> {
        self.number += 1;
        Ok(())
    }
    fn commit(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        self.decide(true)
    }
    fn abort(&mut self, _timeout: Duration) -> Result<(), SystemError> {
        self.decide(false)
    }
}

impl Systems for Memory {
    fn admin(&mut self, _system: &str) -> Result<Arc<dyn SystemAdmin>, SystemError> {
        Ok(Arc::new(self.clone()))
    }
    fn producer(&mut self, _system: &str, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        let memory = self.clone();
        Ok(Box::new(MemoryProducer { memory, id: id.to_owned(), epoch: 0, number: 0, topics: Vec::new() }))
    }
}

/// Several of them, by their names in job.toml.
#[derive(Debug, Clone)]
pub struct Clusters(pub BTreeMap<String, Memory>);

impl Systems for Clusters {
    fn admin(&mut self, system: &str) -> Result<Arc<dyn SystemAdmin>, SystemError> {
        self.0[system].clone().admin(system)
    }
    fn producer(&mut self, system: &str, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        self.0[system].clone().producer(system, id)
    }
}
