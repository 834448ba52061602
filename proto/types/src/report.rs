//! What users see: the JSON of the CLI's `-o json` and of the web UI's API, and the application master's
//! report on its job.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    AppId, ContainerId, ContainerState, ContainerStatus, ExitCause, JobId, NodeId, Pressure, Resource,
    TaskName,
};

/// The application master's report on its job.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct JobStatus {
    /// The attempt that speaks.
    pub attempt: u32,
    /// By slot.
    pub slots: Vec<SlotStatus>,
    /// One line for people: "running", "stopping", "waiting for brokers: …".
    pub message: String,
    /// The job's own topics, once they are ready.
    #[serde(default)]
    pub topics: Vec<TopicStatus>,
    /// What is not as it should be although the job runs, one line each: inputs that have grown or are gone.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Of an exactly-once job: the systems to which its outputs are at-least-once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at_least_once: Vec<String>,
}

impl JobStatus {
    /// What is open where its tasks read, one line for each input partition, by slot.
    #[must_use]
    pub fn open_transactions(&self) -> Vec<(u32, String)> {
        let mut told = Vec::new();
        for slot in &self.slots {
            for wait in slot.status.tasks.iter().flat_map(|task| &task.waits) {
                let (stream, partition, s) = (&wait.input.stream, wait.input.partition, wait.age_ms / 1_000);
                told.push((
                    slot.slot,
                    format!("{stream}.{partition} waits for an open transaction of its producers, for {s} s"),
                ));
            }
        }
        told
    }
}

/// A topic of the job's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TopicStatus {
    /// Its name.
    pub topic: String,
    /// How many partitions it has.
    pub partitions: u32,
    /// Copies of each; 0 on a system without brokers.
    pub replication: u32,
    /// What a person should know of it, with the command that mends it.
    pub notes: Vec<String>,
}

/// One slot: the logical container and the real one in it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Its number.
    pub slot: u32,
    /// The container in it now, if any.
    pub container: Option<ContainerId>,
    /// Where it is.
    pub node: Option<NodeId>,
    /// Its tasks.
    pub tasks: Vec<TaskName>,
    /// What the container says of itself.
    pub status: ContainerStatus,
    /// How often it was started again.
    pub restarts: u32,
    /// Why its last container ended.
    pub last_exit: Option<ExitCause>,
    /// When that was, unix ms.
    pub last_exit_unix_ms: Option<u64>,
    /// Why it waits: for a node, or for its backoff. Empty if it does not.
    pub waiting: Vec<String>,
    /// Where it would rather be, best first, with the reason.
    pub preferred: Vec<String>,
    /// Preferred hosts that are no node of the cluster.
    pub unmatched: Vec<String>,
    /// Whether it is on one of its preferred hosts; none if it has none.
    pub on_preferred: Option<bool>,
}

/// The cluster.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ClusterReport {
    /// The resource manager's epoch.
    pub epoch: u64,
    /// Its version.
    pub version: String,
    /// When it started, unix ms.
    pub started_unix_ms: u64,
    /// The nodes.
    pub nodes: Vec<NodeReport>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its id.
    pub node: NodeId,
    /// Its state.
    pub state: NodeStateName,
    /// Why it gets no new containers, if so.
    pub unhealthy: Option<String>,
    /// Its names.
    pub hosts: Vec<String>,
    /// Its rack.
    pub rack: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it offers.
    pub total: Resource,
    /// What is allocated.
    pub used: Resource,
    /// Since its last beat, ms.
    pub lease_age_ms: u64,
    /// Containers on it that are not over.
    pub containers: u32,
    /// Where its log service listens.
    pub address: String,
}

/// A node's states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeStateName {
    /// Takes containers.
    Active,
    /// Takes none: it said it is not well.
    Unhealthy,
    /// Beats are missing.
    Suspect,
    /// Its lease is over and its containers are replaced.
    Lost,
    /// Gives its containers away.
    Draining,
    /// Has given them away.
    Drained,
}

/// One application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppReport {
    /// Its id.
    pub app: AppId,
    /// Its job.
    pub job: JobId,
    /// Its state.
    pub state: AppState,
    /// Why it ended or waits, for people.
    pub diagnostics: String,
    /// Its queue.
    pub queue: String,
    /// When it was submitted, unix ms.
    pub submitted_unix_ms: u64,
    /// When it ended, unix ms.
    pub ended_unix_ms: Option<u64>,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Where its master listens, `host:port`, once it has registered; the job's metrics are at `/metrics` there.
    #[serde(default)]
    pub master_address: Option<String>,
    /// Containers wanted.
    pub containers_wanted: u32,
    /// Containers running.
    pub containers_running: u32,
    /// Every container the resource manager remembers, newest first.
    pub containers: Vec<AppContainer>,
    /// Asks that wait, with reasons.
    pub waiting: Vec<WaitingAsk>,
    /// The master's own report, if one has come.
    pub status: Option<JobStatus>,
    /// How old that is, ms.
    pub status_age_ms: Option<u64>,
}

/// An application's states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppState {
    /// Stored; its master is not running yet.
    Accepted,
    /// Its master has registered.
    Running,
    /// A user wants it gone.
    Stopping,
    /// Over, well.
    Finished,
    /// Over, not well.
    Failed,
    /// Over, by a user.
    Killed,
}

impl AppState {
    /// Whether it is over.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, AppState::Finished | AppState::Failed | AppState::Killed)
    }
}

/// One container as the resource manager sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppContainer {
    /// Its id.
    pub container: ContainerId,
    /// "app-master" or "slot <n>".
    pub role: String,
    /// The slot, if it is not the master.
    pub slot: Option<u32>,
    /// Its node.
    pub node: NodeId,
    /// Its state.
    pub state: ContainerState,
    /// What it holds.
    pub resource: Resource,
    /// Its process.
    pub pid: Option<u32>,
    /// When its process started, unix ms.
    pub started_unix_ms: Option<u64>,
    /// When it ended, unix ms.
    pub ended_unix_ms: Option<u64>,
    /// Bytes in use, as last heard.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core in use, as last heard.
    pub cpu_millis: Option<u32>,
    /// What it waits for, as last heard.
    pub pressure: Option<Pressure>,
}

/// An ask that no node has answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingAsk {
    /// For which slot.
    pub slot: u32,
    /// Since, ms.
    pub waited_ms: u64,
    /// Why, one line each.
    pub reasons: Vec<String>,
}
