//! Builds the job model: input partitions become tasks, tasks become containers (Samza's JobModelCalculator).

use std::collections::BTreeMap;

use types::{
    AppId, ContainerModel, JobModel, JobSpec, SystemStreamPartition, TaskModel, TaskName, TasksError,
};

use crate::grouping::{TaskPlace, group};
use crate::place::{Facts, Remembered, RememberedModel, Topology};

/// Why there is no job model. None of these gets better by waiting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The inputs make no tasks.
    #[error(transparent)]
    Tasks(#[from] TasksError),
    /// More containers than tasks.
    #[error("{containers} containers for {tasks} tasks: set [containers] count to at most {tasks}")]
    TooManyContainers {
        /// `[containers] count`.
        containers: u32,
        /// Tasks there are.
        tasks: usize,
    },
    /// The inputs have grown since the job first ran.
    #[error(
        "the inputs now make {now} tasks, but this job was started with {before}: keys would part from their \
         state; submit it under a new [job] id, or take the new partitions away"
    )]
    InputsGrew {
        /// Tasks that have a changelog partition.
        before: usize,
        /// Tasks there would be.
        now: usize,
    },
}

/// The model for `app`: the remembered one if this application made it, else a new one near the old.
///
/// # Errors
/// There can be no such job; see [`ModelError`].
pub fn build(spec: &JobSpec, app: &AppId, facts: &Facts) -> Result<RememberedModel, ModelError> {
    let previous = facts.remembered.model.as_ref();
    if let Some(made) = previous.filter(|m| m.app == *app) {
        return Ok(made.clone());
    }
    let partitions = |stream: &_| facts.topology.streams.get(stream).map_or(0, Vec::len);
    let tasks = types::tasks(spec, &partitions)?;
    if spec.containers.count as usize > tasks.len() {
        return Err(ModelError::TooManyContainers { containers: spec.containers.count, tasks: tasks.len() });
    }
    let changelog = changelog_partitions(&tasks, &facts.remembered)?;
    let places: Vec<TaskPlace> = tasks
        .iter()
        .map(|(name, inputs)| TaskPlace {
            leaders: leaders(inputs, &facts.topology),
            last: previous.and_then(|m| slot_of(&m.model, name)),
        })
        .collect();
    let slots = group(&places, spec.containers.count);
    let mut model = JobModel::default();
    for (((name, inputs), slot), changelog_partition) in tasks.into_iter().zip(slots).zip(changelog) {
        let container: &mut ContainerModel = model.containers.entry(slot).or_default();
        container.tasks.push(TaskModel { name, inputs, changelog_partition });
    }
    for container in model.containers.values_mut() {
        container.tasks.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(RememberedModel { app: app.clone(), generation: previous.map_or(0, |m| m.generation) + 1, model })
}

/// The slot that has task `name` in `model`.
#[must_use]
pub fn slot_of(model: &JobModel, name: &TaskName) -> Option<u32> {
    model.containers.iter().find(|(_, c)| c.tasks.iter().any(|t| t.name == *name)).map(|(slot, _)| *slot)
}

/// Every task's changelog partition in `model`, for the coordinator topic.
#[must_use]
pub fn changelog_mapping(model: &JobModel) -> BTreeMap<TaskName, i32> {
    let tasks = model.containers.values().flat_map(|c| &c.tasks);
    tasks.map(|t| (t.name.clone(), t.changelog_partition)).collect()
}

/// Known tasks keep theirs; on a first start task n gets partition n. A job that has run before gets no new ones:
/// its checkpoint and changelog topics have as many partitions as they have.
fn changelog_partitions(
    tasks: &[(TaskName, Vec<SystemStreamPartition>)],
    remembered: &Remembered,
) -> Result<Vec<i32>, ModelError> {
    let known = &remembered.changelog;
    if !known.is_empty() && tasks.iter().any(|(name, _)| !known.contains_key(name)) {
        return Err(ModelError::InputsGrew { before: known.len(), now: tasks.len() });
    }
    Ok(tasks.iter().zip(0..).map(|((name, _), n)| known.get(name).copied().unwrap_or(n)).collect())
}

fn leaders(inputs: &[SystemStreamPartition], topology: &Topology) -> BTreeMap<String, u32> {
    let mut hosts = BTreeMap::new();
    for input in inputs {
        let place = topology.partition(&input.stream, input.partition);
        let broker = place.and_then(|p| p.leader).and_then(|id| topology.broker(&input.stream.system, id));
        if let Some(broker) = broker {
            *hosts.entry(broker.host.to_ascii_lowercase()).or_insert(0) += 1;
        }
    }
    hosts
}
