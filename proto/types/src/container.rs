//! What the session between a container and its application master carries; see `session.rs`.

use serde::{Deserialize, Serialize};

use crate::{AppId, ContainerId, ContainerModel, SystemStreamPartition, TaskName};

/// A container's first words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerHello {
    /// Its application.
    pub app: AppId,
    /// Its id.
    pub container: ContainerId,
    /// Its slot, from its request.
    pub slot: u32,
    /// What it is doing; the tasks it already has if it is connecting again.
    pub status: ContainerStatus,
    /// What it works on, if it is connecting again.
    #[serde(default)]
    pub model: Option<ContainerModel>,
    /// Whether it answers [`ToContainer::AskMetrics`]; programs of earlier versions do not.
    #[serde(default)]
    pub tells_metrics: bool,
}

/// The application master's answer to [`ContainerHello`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerWelcome {
    /// The master's attempt; a container refuses one lower than it has seen.
    pub attempt: u32,
    /// Its tasks. Never change while it runs.
    pub model: ContainerModel,
    /// How often to report, ms.
    pub beat_ms: u64,
}

/// A container's items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromContainer {
    /// It lives, and this is what it does.
    Status(ContainerStatus),
    /// A part of the answer to [`ToContainer::AskMetrics`]: whole lines of Prometheus' text.
    Metrics {
        /// The question's.
        nonce: u64,
        /// The lines.
        text: String,
        /// Nothing follows.
        last: bool,
    },
}

/// The application master's items to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToContainer {
    /// Its report arrived.
    StatusAck,
    /// Commit, then exit, with 143 as after a SIGTERM.
    Shutdown,
    /// Tell all metrics.
    AskMetrics {
        /// Returned with the answer.
        nonce: u64,
    },
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its phase.
    pub phase: ContainerPhase,
    /// By task.
    pub tasks: Vec<TaskStatus>,
    /// Messages processed since its start.
    pub processed: u64,
    /// Transactions committed since its start.
    pub commits: u64,
}

/// A container's phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerPhase {
    /// Waits for its model.
    #[default]
    Starting,
    /// Takes ownership of its tasks in Kafka (the start order).
    Claiming,
    /// Restores stores.
    Restoring,
    /// Processes.
    Running,
    /// Commits for the last time.
    Stopping,
}

/// What a task does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Which.
    pub task: TaskName,
    /// Messages between its position and its inputs' ends; none before it is known.
    pub lag: Option<u64>,
    /// How old the last message is that was processed of the input furthest behind in time, ms; 0 if there is nothing more
    /// to process, none if nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// Messages processed since the container's start.
    pub processed: u64,
    /// How its restore went or goes; none if it has no store.
    pub restore: Option<RestoreStatus>,
    /// The call of its code that has not returned for a while, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallStatus>,
    /// The inputs that nothing can be read of before a transaction of their producers is decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<OpenTransaction>,
}

/// A transaction that is open where a task reads: what is behind it cannot be read yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTransaction {
    /// The input.
    pub input: SystemStreamPartition,
    /// For how long nothing of it could be read, ms.
    pub age_ms: u64,
}

/// A call of a task's code.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CallStatus {
    /// Which: `process`, `window`, `timer`, `init`, …
    pub what: String,
    /// For how long it has not returned, ms.
    pub age_ms: u64,
}

/// A restore.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestoreStatus {
    /// Changelog offsets read so far.
    pub done: u64,
    /// Changelog offsets to read.
    pub total: u64,
    /// Rows applied to stores.
    pub rows: u64,
    /// Whether valid local state was used, so that only the changelog's tail was read.
    pub from_local: bool,
    /// How long it took, or has taken, ms.
    pub took_ms: u64,
    /// How long it will take yet, ms, at its pace so far; none before there is one, and when it is over.
    #[serde(default)]
    pub eta_ms: Option<u64>,
    /// Why local state was not used, by store; empty if it was.
    #[serde(default)]
    pub reason: String,
}
