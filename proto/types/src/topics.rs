//! The topics that a job needs beside its inputs and outputs, and how they are configured.

use std::collections::BTreeMap;

use crate::{JobSpec, JobTopics, StoreSpec, SystemSpec, SystemStream};

/// A topic that must exist before containers start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPlan {
    /// On which system.
    pub system: String,
    /// Its physical name.
    pub topic: String,
    /// How many partitions.
    pub partitions: i32,
    /// Copies of each.
    pub replication: u16,
    /// Its configuration.
    pub config: BTreeMap<String, String>,
}

/// How long changelogs keep tombstones unless the store's `changelog_config` says otherwise, ms: local state
/// older than that cannot be brought up to date from its changelog.
pub const DELETE_RETENTION_MS: u64 = 86_400_000;

/// The system that carries the checkpoint and coordinator topics: the first input's.
#[must_use]
pub fn metadata_system(spec: &JobSpec) -> Option<String> {
    let first = spec.task.inputs.first()?;
    Some(SystemStream::parse(first)?.system)
}

/// The coordinator topic of `spec` on a system with `brokers` brokers; none if the job has no input.
#[must_use]
pub fn coordinator_topic(spec: &JobSpec, brokers: usize) -> Option<TopicPlan> {
    let system = metadata_system(spec)?;
    let replication = replication(spec.systems.get(&system), brokers);
    let topic = JobTopics::of(&spec.job).coordinator;
    Some(TopicPlan { system, topic, partitions: 1, replication, config: metadata_config(replication) })
}

/// Checkpoint and changelog topics of `spec`: `partitions` of each, one for each number a task owns; `brokers` tells
/// how many brokers a system has.
#[must_use]
pub fn job_topics(spec: &JobSpec, partitions: i32, brokers: &dyn Fn(&str) -> usize) -> Vec<TopicPlan> {
    let mut topics = Vec::new();
    if let Some(system) = metadata_system(spec) {
        let replication = replication(spec.systems.get(&system), brokers(&system));
        let topic = JobTopics::of(&spec.job).checkpoint;
        let config = metadata_config(replication);
        topics.push(TopicPlan { system, topic, partitions, replication, config });
    }
    for store in spec.stores.values() {
        let Some(topic) = &store.changelog else { continue };
        let system = store.changelog_system.clone();
        let replication = replication(spec.systems.get(&system), brokers(&system));
        let mut config = changelog_config(replication, store);
        config.extend(store.changelog_config.clone());
        topics.push(TopicPlan { system, topic: topic.clone(), partitions, replication, config });
    }
    topics
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

fn replication(system: Option<&SystemSpec>, brokers: usize) -> u16 {
    let most = u16::try_from(brokers.clamp(1, 3)).expect("at most 3");
    system.and_then(|s| s.replication).unwrap_or(most)
}

/// Small segments that are compacted soon, so that the topic is read in a moment.
fn metadata_config(replication: u16) -> BTreeMap<String, String> {
    let mut config = settings(&[
        ("cleanup.policy", "compact"),
        ("segment.bytes", "1048576"),
        ("segment.ms", "600000"),
        ("min.cleanable.dirty.ratio", "0.1"),
    ]);
    in_sync(&mut config, replication);
    config
}

/// Compacted soon enough that a restore follows keys, not updates: a segment closes after 64 MiB or ten minutes
/// and its rows are compacted at the latest half an hour after they were written, sooner once they are three tenths
/// of the log. Of a store with a `ttl` the topic also forgets rows that are older, each at the earliest when all of
/// its segment is; no broker's default of `retention.bytes` takes part in that.
fn changelog_config(replication: u16, store: &StoreSpec) -> BTreeMap<String, String> {
    let mut config = settings(&[
        ("cleanup.policy", "compact"),
        ("segment.bytes", "67108864"),
        ("segment.ms", "600000"),
        ("min.cleanable.dirty.ratio", "0.3"),
        ("min.compaction.lag.ms", "0"),
        ("max.compaction.lag.ms", "1800000"),
    ]);
    config.insert("delete.retention.ms".into(), DELETE_RETENTION_MS.to_string());
    if let Some(ttl) = store.ttl_ms {
        config.insert("cleanup.policy".into(), "compact,delete".into());
        config.insert("retention.ms".into(), ttl.to_string());
        config.insert("retention.bytes".into(), "-1".into());
    }
    if store.max_value_bytes > LARGEST_BY_DEFAULT {
        config.insert("max.message.bytes".into(), (store.max_value_bytes + BATCH_OVERHEAD).to_string());
    }
    in_sync(&mut config, replication);
    config
}

/// Rows up to this size fit a broker's default of `max.message.bytes` (1,048,588) with what a batch adds to them.
const LARGEST_BY_DEFAULT: u64 = 1_000_000;
/// What a batch may add to a row: its own header, the row's, and what does not compress.
const BATCH_OVERHEAD: u64 = 65_536;

fn in_sync(config: &mut BTreeMap<String, String>, replication: u16) {
    let least = if replication >= 3 { "2" } else { "1" };
    config.insert("min.insync.replicas".into(), least.into());
}

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
