//! What a cluster is made of: brokers, topics and their settings.

use std::collections::BTreeMap;

/// One partition's place in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionMetadata {
    /// Its number.
    pub partition: i32,
    /// Its leader's broker id, none if it has none now.
    pub leader: Option<i32>,
    /// Its replicas' broker ids.
    pub replicas: Vec<i32>,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicMetadata {
    /// Its name.
    pub topic: String,
    /// The id that a recreated topic does not share.
    pub topic_id: String,
    /// By partition.
    pub partitions: Vec<PartitionMetadata>,
    /// Those brokers of its replicas that are up.
    pub brokers: Vec<BrokerMetadata>,
}

impl TopicMetadata {
    /// Copies of the partition that has the fewest.
    #[must_use]
    pub fn replication(&self) -> usize {
        self.partitions.iter().map(|partition| partition.replicas.len()).min().unwrap_or(0)
    }
}

/// A topic's configuration: every setting there is, by its name.
pub type Configs = BTreeMap<String, ConfigEntry>;

/// One setting of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigEntry {
    /// What is in force.
    pub value: String,
    /// Who said so.
    pub source: ConfigSource,
}

/// Who decided on a setting of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigSource {
    /// It is set on the topic itself.
    Topic,
    /// It is the cluster's or the broker's own default.
    Broker,
    /// Nobody: it is Kafka's default.
    Default,
}

/// The whole configuration of a topic that was given these settings, in a system that has Kafka's defaults.
#[must_use]
pub fn configs_of(set: &BTreeMap<String, String>) -> Configs {
    let defaults = types::TOPIC_SETTINGS.iter().filter_map(|setting| Some((setting.name, setting.default?)));
    let mut all: Configs = defaults
        .map(|(name, value)| {
            (name.to_owned(), ConfigEntry { value: value.to_owned(), source: ConfigSource::Default })
        })
        .collect();
    all.extend(set.iter().map(|(name, value)| {
        (name.clone(), ConfigEntry { value: value.clone(), source: ConfigSource::Topic })
    }));
    all
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BrokerMetadata {
    /// Its id.
    pub id: i32,
    /// Its advertised host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its rack, empty if it has none.
    pub rack: String,
}

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub topic: String,
    /// How many partitions.
    pub partitions: i32,
    /// Copies of each.
    pub replication: u16,
    /// Its configuration.
    pub config: BTreeMap<String, String>,
}
