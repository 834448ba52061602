//! What must be there before containers may be asked for: topics, and a model that the coordinator topic remembers.

use types::{JobModel, JobSpec};

pub use types::{TopicPlan, coordinator_topic, metadata_system, tombstone_retention_ms};

use crate::place::RememberedModel;

/// What a driver must do, in this order, before containers may be asked for: make the topics ready, then write the
/// model (with its changelog mapping) to the coordinator topic in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Created where they do not exist, and looked at where they do.
    pub topics: Vec<TopicPlan>,
    /// Whether those that exist with fewer partitions are extended: tasks are to be added to a job that has run.
    pub extend: bool,
    /// To be remembered; not written again if it is remembered already.
    pub model: RememberedModel,
}

/// Checkpoint and changelog topics of a model: one partition for each number a task owns.
#[must_use]
pub fn job_topics(spec: &JobSpec, model: &JobModel) -> Vec<TopicPlan> {
    let tasks = model.containers.values().flat_map(|c| &c.tasks);
    let partitions = tasks.map(|t| t.changelog_partition).max().map_or(0, |n| n + 1);
    types::job_topics(spec, partitions)
}

/// The systems that must be asked for brokers: of the inputs and of the changelogs.
#[must_use]
pub fn systems(spec: &JobSpec) -> Vec<String> {
    let inputs = spec.task.inputs.iter().filter_map(|i| types::SystemStream::parse(i)).map(|s| s.system);
    let stores = spec.stores.values().filter(|s| s.changelog.is_some()).map(|s| s.changelog_system.clone());
    let mut all: Vec<String> = inputs.chain(stores).collect();
    all.sort();
    all.dedup();
    all
}
