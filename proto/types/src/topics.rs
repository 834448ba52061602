//! The topics that a job needs beside its inputs and outputs, and how they are configured.

use std::collections::BTreeMap;

use crate::{JobSpec, JobTopics, StoreSpec, SystemStream};

/// A topic that must exist before containers start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPlan {
    /// On which system.
    pub system: String,
    /// Its physical name.
    pub topic: String,
    /// What it is for.
    pub role: TopicRole,
    /// How many partitions.
    pub partitions: i32,
    /// Copies of each, where `[systems.<name>] replication` says so; else as many as the system has brokers, at most
    /// [`MOST_COPIES`].
    pub replication: Option<u16>,
    /// The configuration with which it is created; `min.insync.replicas` follows the copies unless it is there.
    pub config: BTreeMap<String, String>,
    /// Of that, what a key of job.toml asks for by itself: a topic that exists is altered to it.
    pub asked: BTreeMap<String, String>,
    /// Whether job.toml names the topic. What is wrong with such a topic, and nobody asked for, is for its owner to
    /// change.
    pub named: bool,
    /// How long its store keeps rows, ms; none: for ever.
    pub ttl_ms: Option<u64>,
    /// It must take batches of this size.
    pub batch_bytes: u64,
}

impl TopicPlan {
    /// Whether job.toml asks for this setting of it by another key: `ttl`, `max-value`, or settings of the producer.
    #[must_use]
    pub fn implies(&self, key: &str) -> bool {
        match key {
            "retention.ms" => self.ttl_ms.is_some(),
            "max.message.bytes" => self.batch_bytes > MAX_MESSAGE_BYTES,
            _ => false,
        }
    }
}

/// What a topic of a job is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicRole {
    /// The job model, and where containers run.
    Coordinator,
    /// Positions and owners of tasks.
    Checkpoint,
    /// Rows of this store.
    Changelog(String),
}

impl TopicPlan {
    /// The key of job.toml that holds settings of the topic.
    #[must_use]
    pub fn config_key(&self) -> String {
        match &self.role {
            TopicRole::Coordinator => "job.coordinator-config".to_owned(),
            TopicRole::Checkpoint => "task.checkpoint-config".to_owned(),
            TopicRole::Changelog(store) => format!("stores.{store}.changelog-config"),
        }
    }
}

/// So many copies a topic of a job has unless job.toml says otherwise.
pub const MOST_COPIES: u16 = 3;

/// How long changelogs keep tombstones unless the store's `changelog_config` says otherwise, ms: local state
/// older than that cannot be brought up to date from its changelog.
pub const DELETE_RETENTION_MS: u64 = 86_400_000;

/// The system that carries the checkpoint and coordinator topics: the first input's.
#[must_use]
pub fn metadata_system(spec: &JobSpec) -> Option<String> {
    let first = spec.task.inputs.first()?;
    Some(SystemStream::parse(first)?.system)
}

/// The coordinator topic of `spec`; none if the job has no input.
#[must_use]
pub fn coordinator_topic(spec: &JobSpec) -> Option<TopicPlan> {
    let topic = JobTopics::of(&spec.job).coordinator;
    metadata_topic(spec, TopicRole::Coordinator, topic, 1, &spec.metadata.coordinator_config)
}

/// Checkpoint and changelog topics of `spec`: `partitions` of each, one for each number a task owns.
#[must_use]
pub fn job_topics(spec: &JobSpec, partitions: i32) -> Vec<TopicPlan> {
    let topic = JobTopics::of(&spec.job).checkpoint;
    let asked = &spec.metadata.checkpoint_config;
    let mut topics: Vec<TopicPlan> =
        metadata_topic(spec, TopicRole::Checkpoint, topic, partitions, asked).into_iter().collect();
    topics.extend(spec.stores.iter().filter_map(|(name, store)| changelog(spec, name, store, partitions)));
    topics
}

/// The name of a store's changelog topic unless job.toml gives another.
#[must_use]
pub fn changelog_topic(job: &crate::JobId, store: &str) -> String {
    format!("{job}-{store}-changelog")
}

/// The shortest time for which any of the job's changelogs keeps tombstones, ms.
#[must_use]
pub fn tombstone_retention_ms(spec: &JobSpec) -> u64 {
    let of = |s: &StoreSpec| {
        s.changelog_config
            .get("delete.retention.ms")
            .and_then(|t| t.parse().ok())
            .unwrap_or(DELETE_RETENTION_MS)
    };
    spec.stores.values().map(of).min().unwrap_or(DELETE_RETENTION_MS)
}

fn metadata_topic(
    spec: &JobSpec,
    role: TopicRole,
    topic: String,
    partitions: i32,
    asked: &BTreeMap<String, String>,
) -> Option<TopicPlan> {
    let system = metadata_system(spec)?;
    let mut config = metadata_config();
    config.extend(asked.clone());
    Some(TopicPlan {
        replication: spec.systems.get(&system).and_then(|s| s.replication),
        batch_bytes: batch_bytes(spec, &system, 0),
        system,
        topic,
        role,
        partitions,
        config,
        asked: asked.clone(),
        named: false,
        ttl_ms: None,
    })
}

fn changelog(spec: &JobSpec, name: &str, store: &StoreSpec, partitions: i32) -> Option<TopicPlan> {
    let topic = store.changelog.clone()?;
    let system = store.changelog_system.clone();
    let named = topic != changelog_topic(&spec.job, name);
    let batch_bytes = batch_bytes(spec, &system, store.max_value_bytes);
    let mut asked = store.changelog_config.clone();
    if store.ttl_ms.is_some() && !named {
        asked.entry("cleanup.policy".into()).or_insert_with(|| "compact,delete".into());
    }
    let mut config = changelog_config(store, batch_bytes);
    config.extend(asked.clone());
    Some(TopicPlan {
        replication: spec.systems.get(&system).and_then(|s| s.replication),
        system,
        topic,
        role: TopicRole::Changelog(name.to_owned()),
        partitions,
        config,
        asked,
        named,
        ttl_ms: store.ttl_ms,
        batch_bytes,
    })
}

/// What a topic must take so that no batch is refused: librdkafka never splits one, so that a topic with a smaller
/// limit refuses small rows as well.
fn batch_bytes(spec: &JobSpec, system: &str, row_bytes: u64) -> u64 {
    let set = |key: &str| spec.systems.get(system)?.producer.get(key)?.parse::<u64>().ok();
    let row = row_bytes + if row_bytes > LARGEST_BY_DEFAULT { LARGE_BATCH_OVERHEAD } else { BATCH_OVERHEAD };
    let most = set("message.max.bytes").unwrap_or(LARGEST_BY_DEFAULT).max(row);
    let batch = set("batch.size").unwrap_or(LARGEST_BY_DEFAULT);
    row.max(batch.min(most))
}

/// Small segments that are compacted soon, so that the topic is read in a moment. Each commit leaves a marker in the
/// log, which Kafka keeps for `delete.retention.ms` after it was first compacted: with its default of a day a topic
/// would hold 86,400 of them. What else that time is for are tombstones of owners; who misses one fences an id once
/// more that nobody uses.
fn metadata_config() -> BTreeMap<String, String> {
    settings(&[
        ("cleanup.policy", "compact"),
        ("segment.bytes", "1048576"),
        ("segment.ms", "600000"),
        ("min.cleanable.dirty.ratio", "0.1"),
        ("delete.retention.ms", "60000"),
    ])
}

/// Compacted soon enough that a restore follows keys, not updates: a segment closes after 64 MiB or ten minutes, and a
/// log is compacted once three tenths of it are new, so that it never is much longer than one and a half times its
/// rows. How much the brokers rewrite so follows how much is written. A limit of time (`max.compaction.lag.ms`) would
/// have them rewrite a log of any size for a few new rows.
/// Of a store with a `ttl` the topic also forgets rows that are older, each at the earliest when all of its segment is;
/// no broker's default of `retention.bytes` takes part in that.
fn changelog_config(store: &StoreSpec, batch_bytes: u64) -> BTreeMap<String, String> {
    let mut config = settings(&[
        ("cleanup.policy", "compact"),
        ("segment.bytes", "67108864"),
        ("segment.ms", "600000"),
        ("min.cleanable.dirty.ratio", "0.3"),
        ("min.compaction.lag.ms", "0"),
    ]);
    config.insert("delete.retention.ms".into(), DELETE_RETENTION_MS.to_string());
    if let Some(ttl) = store.ttl_ms {
        config.insert("cleanup.policy".into(), "compact,delete".into());
        config.insert("retention.ms".into(), ttl.to_string());
        config.insert("retention.bytes".into(), "-1".into());
    }
    if batch_bytes > MAX_MESSAGE_BYTES {
        config.insert("max.message.bytes".into(), batch_bytes.to_string());
    }
    config
}

/// The largest rows and the largest batches that librdkafka sends unless it is told otherwise. Kafka's default takes
/// them with what is added to them.
const LARGEST_BY_DEFAULT: u64 = 1_000_000;
/// Kafka's default of `max.message.bytes`.
const MAX_MESSAGE_BYTES: u64 = 1_048_588;
/// What a batch adds to a row: its own header, the row's, and a time of writing.
const BATCH_OVERHEAD: u64 = 1_024;
/// Of a larger row, also what does not compress.
const LARGE_BATCH_OVERHEAD: u64 = 65_536;

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
