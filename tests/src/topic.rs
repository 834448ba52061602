//! Topics of a test: made, filled and read back in the test's own process.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kafka::{KafkaAdmin, KafkaProducer};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientConfig, TopicPartitionList};
use task_api::system::{Isolation, NewTopic, ProducerRecord, SystemAdmin, SystemProducer, TopicPartition};

use crate::brokers::{Brokers, repository};

/// Kafka as a test sees it. Every method panics when the brokers fail: there is no test without them.
pub struct Topics {
    bootstrap: String,
    admin: KafkaAdmin,
}

/// One message as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: u64,
    /// Its key, as text.
    pub key: String,
    /// Its value, none for a tombstone.
    pub value: Option<Vec<u8>>,
}

impl Row {
    /// Its value as text, empty for a tombstone.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }
}

impl Topics {
    /// The topics on `brokers`.
    ///
    /// # Panics
    /// The client cannot be made.
    #[must_use]
    pub fn on(brokers: &Brokers) -> Topics {
        let admin = KafkaAdmin::new(&brokers.bootstrap, &BTreeMap::new()).expect("an admin client");
        Topics { bootstrap: brokers.bootstrap.clone(), admin }
    }

    /// Creates `topic` with as many replicas as there are brokers, at most 3.
    pub fn create(&self, topic: &str, partitions: i32) {
        let replication = u16::try_from(self.bootstrap.split(',').count().min(3)).expect("at most 3");
        let new = NewTopic { topic: topic.to_owned(), partitions, replication, config: BTreeMap::new() };
        self.admin.create(&[new]).unwrap_or_else(|e| panic!("create {topic}: {e}"));
    }

    /// Creates `topic` with the given brokers as replicas of each partition, the first of each its leader.
    pub fn create_on(&self, topic: &str, replicas: &[&[i32]]) {
        let text = |brokers: &&[i32]| brokers.iter().map(i32::to_string).collect::<Vec<_>>().join(":");
        let assignment = replicas.iter().map(text).collect::<Vec<_>>().join(",");
        let script = repository().join("deploy/kafka/kafka.sh");
        let output = Command::new(script)
            .args(["tool", "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", &self.bootstrap])
            .args(["--create", "--topic", topic, "--replica-assignment", &assignment])
            .output()
            .expect("kafka.sh runs");
        assert!(output.status.success(), "create {topic}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Gives `topic` more partitions.
    pub fn extend(&self, topic: &str, partitions: i32) {
        self.admin.extend(topic, partitions).unwrap_or_else(|e| panic!("extend {topic}: {e}"));
    }

    /// The number of partitions of `topic`.
    #[must_use]
    pub fn partitions(&self, topic: &str) -> i32 {
        let found =
            self.admin.describe(&[topic.to_owned()]).unwrap_or_else(|e| panic!("describe {topic}: {e}"));
        i32::try_from(found.iter().map(|topic| topic.partitions.len()).sum::<usize>())
            .expect("few partitions")
    }

    /// Sends `messages` (key, value), partitioned by key as Java clients do, and waits until they are stored.
    pub fn produce<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        topic: &str,
        messages: impl IntoIterator<Item = (K, V)>,
    ) {
        let mut producer =
            KafkaProducer::idempotent(&self.bootstrap, "tests", &BTreeMap::new()).expect("a producer");
        let handle = producer.topic(topic).expect("a topic handle");
        for (key, value) in messages {
            let sent = producer.send(&ProducerRecord::new(handle, Some(key.as_ref()), Some(value.as_ref())));
            sent.unwrap_or_else(|e| panic!("send to {topic}: {e}"));
        }
        producer.flush(Duration::from_secs(30)).unwrap_or_else(|e| panic!("flush {topic}: {e}"));
    }

    /// One past the last offset of each partition (control records count); empty if there is no such topic.
    #[must_use]
    pub fn ends(&self, topic: &str) -> Vec<u64> {
        let all: Vec<_> = self.partition_list(topic);
        let watermarks = self.admin.watermarks(&all).unwrap_or_else(|e| panic!("watermarks of {topic}: {e}"));
        watermarks.iter().map(|w| w.high).collect()
    }

    /// The offsets that the consumer group `group` has committed, by partition of `topic`, as tools that show lag read
    /// them; 0 where there is none.
    #[must_use]
    pub fn committed(&self, group: &str, topic: &str) -> Vec<u64> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("group.id", group);
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, self.partitions(topic) - 1);
        let found = consumer.committed_offsets(asked, Duration::from_secs(30));
        let found = found.unwrap_or_else(|e| panic!("committed offsets of {group}: {e}"));
        let offset =
            |of: &TopicPartitionListElem<'_>| of.offset().to_raw().and_then(|raw| raw.try_into().ok());
        found.elements().iter().map(|of| offset(of).unwrap_or(0)).collect()
    }

    fn partition_list(&self, topic: &str) -> Vec<TopicPartition> {
        (0..self.partitions(topic))
            .map(|partition| TopicPartition { topic: topic.to_owned(), partition })
            .collect()
    }

    /// Every committed message of `topic`, by partition and offset.
    #[must_use]
    pub fn read(&self, topic: &str) -> Vec<Row> {
        self.read_with(topic, Isolation::ReadCommitted)
    }

    /// Every message of `topic` that `isolation` lets see, by partition and offset.
    #[must_use]
    pub fn read_with(&self, topic: &str, isolation: Isolation) -> Vec<Row> {
        let mut rows = Vec::new();
        let partitions = self.partition_list(topic);
        let watermarks =
            self.admin.watermarks(&partitions).unwrap_or_else(|e| panic!("watermarks of {topic}: {e}"));
        for (place, ends) in partitions.iter().zip(watermarks) {
            let until = if isolation == Isolation::ReadCommitted { ends.stable } else { ends.high };
            let read = self.admin.read_range(place, ends.low, until, isolation, &mut |batch| {
                rows.extend(batch.iter().map(|message| Row {
                    partition: place.partition,
                    offset: message.offset,
                    key: String::from_utf8_lossy(message.key.unwrap_or_default()).into_owned(),
                    value: message.value.map(<[u8]>::to_vec),
                }));
                Ok(())
            });
            read.unwrap_or_else(|e| panic!("read {topic}: {e}"));
        }
        rows
    }

    /// The committed values of `topic` as numbers, by key, in order.
    #[must_use]
    pub fn numbers(&self, topic: &str) -> BTreeMap<String, Vec<i64>> {
        let mut numbers: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for row in self.read(topic) {
            let number = row.text().parse().unwrap_or_else(|e| panic!("{topic}: {e}: {row:?}"));
            numbers.entry(row.key).or_default().push(number);
        }
        numbers
    }
}

/// The folder of partition `partition` of `topic` in the log folder of broker 1.
#[must_use]
pub fn log_folder(brokers: &Brokers, topic: &str, partition: i32) -> std::path::PathBuf {
    Path::new(&brokers.data).join("k1").join(format!("{topic}-{partition}"))
}
