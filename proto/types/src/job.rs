//! A job as submitted: job.toml after parsing, checking and filling in of defaults.
//!
//! Durations are milliseconds, memory is bytes. `job-file` makes these from text; everyone else trusts them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, JobId, Resource, SecuritySpec, SystemStream};

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// `[job] name, id`.
    pub job: JobId,
    /// `[job] queue`.
    pub queue: String,
    /// `[job] priority`; higher goes first within a queue.
    pub priority: i32,
    /// `[app-master]`: what the application master's own container gets.
    pub app_master: Resource,
    /// `[package]`.
    pub package: PackageSpec,
    /// `[containers]`.
    pub containers: ContainersSpec,
    /// `[task]`.
    pub task: TaskSpec,
    /// `[systems.<name>]`.
    pub systems: BTreeMap<String, SystemSpec>,
    /// `[streams."<system>.<stream>"]`; [`JobSpec::stream`] gives those without an entry their defaults.
    pub streams: BTreeMap<String, StreamSpec>,
    /// `[stores.<name>]`.
    pub stores: BTreeMap<String, StoreSpec>,
    /// `[placement]`.
    pub placement: PlacementSpec,
    /// `[errors]`.
    pub errors: ErrorsSpec,
    /// `[restart]`.
    pub restart: RestartSpec,
    /// Settings of the topics that hold what the job remembers.
    #[serde(default)]
    pub metadata: MetadataSpec,
}

impl JobSpec {
    /// The settings of a stream: its entry, or that of the pattern that it is an input by, or else the defaults of its
    /// system.
    #[must_use]
    pub fn stream(&self, stream: &SystemStream) -> StreamSpec {
        let known = self.streams.get(&stream.to_string()).cloned();
        let kind = self.systems.get(&stream.system).map_or(SystemKind::Kafka, |system| system.kind);
        known
            .or_else(|| self.stream_of_pattern(stream))
            .unwrap_or_else(|| StreamSpec::default_on(kind, &stream.stream))
    }

    /// Of an exactly-once job: the systems to which outputs are at-least-once, for they are not where its transactions
    /// are, which is on the first input's.
    #[must_use]
    pub fn at_least_once_systems(&self) -> Vec<String> {
        let home = self.task.inputs.first().and_then(|input| input.split_once('.')).map(|(system, _)| system);
        let is_elsewhere = |name: &&String| home.is_some_and(|home| home != **name);
        match self.task.delivery {
            Delivery::ExactlyOnce => self.systems.keys().filter(is_elsewhere).cloned().collect(),
            Delivery::AtLeastOnce => Vec::new(),
        }
    }
}

/// Settings of the topics that hold what a job remembers, over ours; for clusters whose policies ask for them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MetadataSpec {
    /// `[task] checkpoint-config`.
    pub checkpoint_config: BTreeMap<String, String>,
    /// `[job] coordinator-config`.
    pub coordinator_config: BTreeMap<String, String>,
}

/// The store that `[task] timers = true` adds to a job.
pub const TIMERS_STORE: &str = "timers";

/// What is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackageSpec {
    /// Where the client found it: a path, or a URL. For people; nodes use [`PackageSpec::artefact`].
    pub source: String,
    /// The content; filled in by the job file for a URL, else by the client's upload.
    pub artefact: Option<Artefact>,
    /// The command line; empty means the artefact itself without arguments. Its first word may be a path in the
    /// work directory.
    pub command: Vec<String>,
    /// Extra environment.
    pub env: BTreeMap<String, String>,
    /// The secrets' names, and the files that the client reads them from. Their content never is part of the job: see
    /// [`Secrets`](crate::Secrets).
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
}

/// One file that a container is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// Its name in the work directory.
    pub name: String,
    /// Its content.
    pub digest: Digest,
    /// Its size, bytes; 0 if that is not known.
    pub bytes: u64,
    /// The URL that nodes fetch it from (http, https, s3, file); none: the resource manager's artefact store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// `[containers]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainersSpec {
    /// How many, 1 or more.
    pub count: u32,
    /// What each gets.
    pub resource: Resource,
    /// Task threads in each.
    pub threads: u32,
    /// The most CPU each may take, thousandths of a core, even on an idle machine; none: whatever is free.
    #[serde(default)]
    pub cpu_limit_millis: Option<u32>,
}

/// `[task]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Input streams, `<system>.<stream>`; `<system>./<regex>/` stands for every topic whose whole name matches.
    pub inputs: Vec<String>,
    /// Streams that the job read once and no longer does: their positions may be forgotten.
    #[serde(default)]
    pub former_inputs: Vec<String>,
    /// What follows when inputs get more partitions.
    #[serde(default)]
    pub on_input_growth: OnInputGrowth,
    /// How often `window` is called, ms; none if it never is.
    pub window_ms: Option<u64>,
    /// How often a task thread commits, ms.
    pub commit_ms: u64,
    /// What a reader of the outputs may rely on.
    pub delivery: Delivery,
    /// How input partitions become tasks.
    pub grouper: Grouper,
    /// Whether tasks have timers; they are kept in the store [`TIMERS_STORE`].
    pub timers: bool,
    /// How many messages of an asynchronous task may be in flight.
    pub concurrency: u32,
    /// What follows when state is lost, of stores that do not say it themselves.
    #[serde(default)]
    pub state_lost: StateLost,
    /// `stuck-after`: a container ends if a call of a task's code takes longer, ms; none: never.
    #[serde(default = "default_stuck_after")]
    pub stuck_after_ms: Option<u64>,
    /// The job's own settings, handed to `StreamTask::init`.
    pub config: BTreeMap<String, String>,
}

/// For how long brokers let a transaction be open, ms, unless they are told otherwise (`transaction.max.timeout.ms`).
pub const MOST_TRANSACTION_MS: u64 = 900_000;

/// `[task] stuck-after` of jobs that do not say it.
pub const STUCK_AFTER_MS: u64 = 600_000;

fn default_stuck_after() -> Option<u64> {
    Some(STUCK_AFTER_MS)
}

/// What a job with stores does when its inputs get partitions that move keys from one task to another. Jobs without
/// stores, and inputs whose growth moves no key, take new partitions up by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnInputGrowth {
    /// What runs goes on with the partitions that it has and says so; a new submit is refused.
    #[default]
    Fail,
    /// New partitions get new tasks, which begin with empty stores.
    Extend,
}

/// Delivery of outputs. State is exact in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// After a crash some outputs may be repeated.
    AtLeastOnce,
    /// Outputs join the transaction of state and checkpoint.
    ExactlyOnce,
}

/// How input partitions become tasks (Samza's SystemStreamPartitionGrouper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouper {
    /// Task `Partition N` owns partition N of every input.
    Partition,
    /// One task owns every partition of every input (`grouper = "single"`).
    Single,
}

/// `[errors]`: what follows an error, by the stage it happens in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorsSpec {
    /// A message that the task's serde cannot read.
    pub decode: OnError,
    /// Any other error of a task with a message or a timer.
    pub process: OnError,
    /// An output that its system refuses, such as one that is too large.
    pub send: OnError,
    /// The stream of messages that failed; needed if a stage says `dead-letter`.
    pub dead_letter: Option<String>,
}

impl Default for ErrorsSpec {
    /// Every error ends the container.
    fn default() -> ErrorsSpec {
        ErrorsSpec { decode: OnError::Fail, process: OnError::Fail, send: OnError::Fail, dead_letter: None }
    }
}

/// What follows an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The container ends; after its restart it meets the message again.
    Fail,
    /// The message is counted and left out.
    Skip,
    /// As skip; the message also goes to the dead-letter stream, with the cause in its headers.
    DeadLetter,
}

/// A system's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemKind {
    /// Kafka.
    Kafka,
    /// Files of JSON lines; for local runs.
    Jsonl,
}

impl std::fmt::Display for SystemKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SystemKind::Kafka => "kafka",
            SystemKind::Jsonl => "jsonl",
        })
    }
}

/// `[systems.<name>]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemSpec {
    /// `type`.
    pub kind: SystemKind,
    /// `bootstrap`: host:port, comma separated; empty for files.
    pub bootstrap: String,
    /// Extra librdkafka consumer settings.
    pub consumer: BTreeMap<String, String>,
    /// Extra librdkafka producer settings.
    pub producer: BTreeMap<String, String>,
    /// Replication factor of the topics that we create; none means as many as the cluster has brokers, those that are
    /// down now too, at most 3.
    pub replication: Option<u16>,
    /// `path`: of files, the folder that relative topics are in; none means the job file's.
    pub path: Option<String>,
    /// `security`: of Kafka; none means plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<SecuritySpec>,
}

/// `[streams."<system>.<stream>"]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamSpec {
    /// The physical topic; of a stream of files: the path, `-` for stdin or stdout.
    pub topic: String,
    /// `key-serde`, `serde`: checked names, for tools; tasks choose serdes in code.
    pub key_serde: Option<String>,
    /// `serde`.
    pub serde: Option<String>,
    /// Where a task without a checkpoint starts.
    pub offset_default: OffsetDefault,
    /// Whether every start reads it anew from `offset_default`, whatever was read before: for inputs that a task keeps
    /// in memory.
    #[serde(default)]
    pub reset_offset: bool,
    /// What to do when messages that were still to be read are gone.
    pub offset_lost: OffsetLost,
    /// Whether it ends where it ended when the container started.
    pub bounded: bool,
    /// Of a stream of files: the field of each line that is the message's key.
    pub key: Option<String>,
    /// Of a stream of files: the field of each line that is the message's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Of a stream of files: whether each line is an envelope of key and value (true) or a value as it is (false); none
    /// means that objects which have the form of an envelope are envelopes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<bool>,
    /// Whether all of it (as it is at the start) is read before any other input.
    pub bootstrap: bool,
    /// Higher is read first.
    pub priority: i32,
    /// Whether every task gets every partition.
    pub broadcast: bool,
}

impl StreamSpec {
    /// The settings of stream `name` (without its system) when job.toml has no entry for it.
    #[must_use]
    pub fn default_for(name: &str) -> StreamSpec {
        StreamSpec {
            topic: name.to_owned(),
            key_serde: None,
            serde: None,
            offset_default: OffsetDefault::Oldest,
            reset_offset: false,
            offset_lost: OffsetLost::Fail,
            bounded: false,
            key: None,
            timestamp: None,
            envelope: None,
            bootstrap: false,
            priority: 0,
            broadcast: false,
        }
    }

    /// As [`StreamSpec::default_for`], on a system of this kind: the topic of a stream of files is `<name>.jsonl`.
    #[must_use]
    pub fn default_on(kind: SystemKind, name: &str) -> StreamSpec {
        let topic = match kind {
            SystemKind::Kafka => name.to_owned(),
            SystemKind::Jsonl => format!("{name}.jsonl"),
        };
        StreamSpec { topic, ..StreamSpec::default_for(name) }
    }
}

/// Where a task without a checkpoint starts reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OffsetDefault {
    /// At the oldest message that the stream still has.
    Oldest,
    /// At the next message to arrive (Samza's `upcoming`).
    Newest,
    /// At the first message of this time (unix ms) or later.
    Timestamp(u64),
    /// At this offset, in every partition.
    Offset(u64),
}

/// What to do when messages that were still to be read are gone: retention or a deletion took them, or the topic was
/// made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OffsetLost {
    /// The container fails and says so.
    Fail,
    /// It says so and goes on with the oldest message there is.
    Oldest,
    /// It says so and goes on with the next message to arrive.
    Newest,
}

/// `[stores.<name>]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreSpec {
    /// The changelog topic, or none for a store that is lost with its node.
    pub changelog: Option<String>,
    /// The system that the changelog is on.
    pub changelog_system: String,
    /// `key-serde`, for tools.
    pub key_serde: Option<String>,
    /// `serde`, for tools.
    pub serde: Option<String>,
    /// Rows that the write-back cache may hold per task before a commit is forced.
    pub cache_rows: u64,
    /// Extra settings of the changelog topic.
    pub changelog_config: BTreeMap<String, String>,
    /// Where its rows are.
    pub kind: StoreKind,
    /// How long after it was last written a row is there, ms; none: for ever.
    pub ttl_ms: Option<u64>,
    /// The largest key and value together that it takes, bytes.
    pub max_value_bytes: u64,
    /// What happens to larger ones.
    pub on_large_value: OnLargeValue,
    /// Compression of its files.
    pub compression: Compression,
    /// Size of the blocks of its files, bytes.
    pub block_bytes: u64,
    /// What follows when its changelog, or the task's checkpoint, is lost.
    #[serde(default)]
    pub state_lost: StateLost,
}

impl StoreSpec {
    /// The settings of a store for which job.toml gives none, with or without a changelog.
    #[must_use]
    pub fn with_changelog(changelog: Option<String>, system: &str) -> StoreSpec {
        StoreSpec {
            changelog,
            changelog_system: system.to_owned(),
            key_serde: None,
            serde: None,
            cache_rows: 500_000,
            changelog_config: BTreeMap::new(),
            kind: StoreKind::RocksDb,
            ttl_ms: None,
            max_value_bytes: 1_000_000,
            on_large_value: OnLargeValue::Fail,
            compression: Compression::Lz4,
            block_bytes: 4096,
            state_lost: StateLost::Fail,
        }
    }
}

/// Where a store's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// On disk, with a cache before it.
    #[serde(rename = "rocksdb")]
    RocksDb,
    /// In memory only; restored from the changelog at each start.
    Memory,
}

/// What happens to a row that is larger than its store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLargeValue {
    /// The put is an error.
    Fail,
    /// The put is counted and does nothing.
    Drop,
}

/// What follows when a changelog was made again, or is shorter than what was committed, or when the checkpoints are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateLost {
    /// The container fails and says so.
    #[default]
    Fail,
    /// The changelog is filled from the rows on this node's disk, if they are whole.
    Local,
    /// The store begins without rows.
    Empty,
}

/// Compression of a store's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// None.
    None,
    /// Fast.
    Lz4,
    /// Small.
    Zstd,
}

/// `[placement]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacementSpec {
    /// How long an ask waits for its preferred hosts, ms.
    pub wait_ms: u64,
    /// How much longer it waits for their racks, ms.
    pub rack_wait_ms: u64,
    /// Whether preferred hosts are asked for at all.
    pub host_affinity: bool,
    /// What a container does when its node's lease ends.
    pub on_lease_loss: OnLeaseLoss,
    /// Labels that a node must have, all of them.
    pub labels: BTreeMap<String, String>,
    /// Keep the job's containers on different hosts or racks when possible.
    pub spread: Spread,
}

/// What the containers of a node that lost its lease do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLeaseLoss {
    /// They run on; a successor fences them in Kafka.
    Keep,
    /// Their shim kills them at lease end.
    Stop,
}

/// Which of the job's containers should not be together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// No wish.
    None,
    /// Not on one host when another will do.
    Host,
    /// Not in one rack when another will do.
    Rack,
}

/// `[restart]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestartSpec {
    /// Failures of one slot within the window that are forgiven.
    pub retries: u32,
    /// The window, ms.
    pub window_ms: u64,
    /// The wait before the second retry in a window, ms; it doubles from there. The first is immediate.
    pub backoff_min_ms: u64,
    /// The longest wait, ms.
    pub backoff_max_ms: u64,
    /// What follows when retries are spent.
    pub on_exhausted: OnExhausted,
}

/// What follows when a slot's retries are spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExhausted {
    /// The job fails.
    Fail,
    /// The job runs on without the slot.
    Degrade,
}
