//! The job model: which container has which tasks, which task has which partitions (Samza's JobModel).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{JobId, TaskName};

/// A stream of a system: `kafka.flights`. Streams are logical; [`crate::StreamSpec::topic`] is the physical name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SystemStream {
    /// The system's name in job.toml.
    pub system: String,
    /// The stream's name in job.toml.
    pub stream: String,
}

impl SystemStream {
    /// Splits `kafka.flights`; the stream may contain further dots.
    #[must_use]
    pub fn parse(text: &str) -> Option<SystemStream> {
        let (system, stream) = text.split_once('.')?;
        if system.is_empty() || stream.is_empty() {
            return None;
        }
        Some(SystemStream { system: system.into(), stream: stream.into() })
    }
}

impl std::fmt::Display for SystemStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.system, self.stream)
    }
}

/// One partition of one stream (Samza's SystemStreamPartition).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SystemStreamPartition {
    /// The stream.
    pub stream: SystemStream,
    /// The partition, from 0.
    pub partition: i32,
}

/// Which tasks each container has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JobModel {
    /// By slot, the container's logical number.
    pub containers: BTreeMap<u32, ContainerModel>,
}

/// One container's tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerModel {
    /// In the order of their names.
    pub tasks: Vec<TaskModel>,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskModel {
    /// `Partition <n>`.
    pub name: TaskName,
    /// What it reads.
    pub inputs: Vec<SystemStreamPartition>,
    /// Its partition of the checkpoint topic and of every changelog; its own for ever.
    pub changelog_partition: i32,
    /// Those of its inputs that there were not when the job first read the stream: without a position they are read
    /// from their oldest message, since whatever is in them arrived while the job was there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<SystemStreamPartition>,
}

impl TaskModel {
    /// The folder of its state below the job's: the name without characters that shells dislike.
    #[must_use]
    pub fn state_entry(&self) -> String {
        state_entry(&self.name)
    }
}

/// The state folder's name of task `name`: `Partition 3` → `Partition-3`.
#[must_use]
pub fn state_entry(name: &TaskName) -> String {
    name.0.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect()
}

/// The topics of a job that only the system writes. Names are Samza's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobTopics {
    /// Checkpoints and owner records; one partition per task, numbered as the changelogs'.
    pub checkpoint: String,
    /// Job metadata; one partition.
    pub coordinator: String,
}

impl JobTopics {
    /// The topics of job `job` (`_` in names becomes `-`, as Samza does).
    #[must_use]
    pub fn of(job: &JobId) -> JobTopics {
        let (name, id) = (job.name.replace('_', "-"), job.id.replace('_', "-"));
        JobTopics {
            checkpoint: format!("__samza_checkpoint_ver_1_for_{name}_{id}"),
            coordinator: format!("__samza_coordinator_{name}_{id}"),
        }
    }
}
