//! Builds the job model: input partitions become tasks, tasks become containers (Samza's JobModelCalculator).

use std::collections::BTreeMap;

use types::{
    AppId, ContainerModel, Grouper, JobModel, JobSpec, OnInputGrowth, SystemStream, SystemStreamPartition,
    TaskModel, TaskName, TasksError, metadata_system,
};

use crate::grouping::{TaskPlace, group};
use crate::growth::{self, Change};
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
    /// An input has grown since the job first ran.
    #[error(
        "input {change}: keys would part from the state of their tasks. Set [task] on-input-growth = \"extend\" to give \
         the added partitions to new tasks whose stores are empty, or begin anew under another [job] id"
    )]
    InputGrew {
        /// What grew.
        change: Change,
    },
    /// The inputs make tasks that there were not.
    #[error(
        "the inputs now make {now} tasks and this job was started with {before}: keys would part from the state of their \
         tasks. Set [task] on-input-growth = \"extend\" to add tasks whose stores are empty, or begin anew under another \
         [job] id"
    )]
    MoreTasks {
        /// Tasks that have a changelog partition.
        before: usize,
        /// Tasks there would be.
        now: usize,
    },
    /// An input has lost partitions.
    #[error(
        "input {change}: the positions and the state of the others would be left behind. Give its topic at least {} \
         partitions, or begin anew under another [job] id", change.before
    )]
    InputShrank {
        /// What shrank.
        change: Change,
    },
    /// An input is not named any more.
    #[error(
        "input {stream} is not in [task] inputs any more, and the job has positions in it, which would be forgotten. \
         Name it again, or, if that is meant, write `former-inputs = [\"{stream}\"]` in [task]"
    )]
    InputRemoved {
        /// Which.
        stream: SystemStream,
    },
    /// A task would no longer read a partition that it has a position in.
    #[error(
        "task {task} has a position in partition {} of {} and would not read it any more: positions and state would not be \
         those of the tasks that do. Set `broadcast` in [streams.\"{}\"] to what it was when the job first ran, or begin \
         anew under another [job] id", input.partition, input.stream, input.stream
    )]
    PositionLeft {
        /// Whose position it is.
        task: TaskName,
        /// Where it is.
        input: SystemStreamPartition,
    },
    /// Tasks would be made otherwise.
    #[error(
        "[task] grouper is \"{}\" and was \"{}\" when the job first ran: positions and state would not be those of the \
         new tasks. Set it back, or begin anew under another [job] id", word(*now), word(*before)
    )]
    GrouperChanged {
        /// What it was.
        before: Grouper,
        /// What it is.
        now: Grouper,
    },
}

fn word(grouper: Grouper) -> &'static str {
    match grouper {
        Grouper::Partition => "partition",
        Grouper::Single => "single",
    }
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
    if let Some(previous) = previous {
        growth::check(spec, previous, &facts.topology)?;
    }
    let partitions = |stream: &_| facts.topology.streams.get(stream).map_or(0, Vec::len);
    let tasks = types::tasks(&growth::expanded(spec, &facts.topology), &partitions)?;
    if let Some(previous) = previous {
        growth::check_positions(&previous.model, &tasks)?;
    }
    if spec.containers.count as usize > tasks.len() {
        return Err(ModelError::TooManyContainers { containers: spec.containers.count, tasks: tasks.len() });
    }
    let changelog = changelog_partitions(spec, &tasks, &facts.remembered)?;
    let last = previous.map(|m| slots(&m.model)).unwrap_or_default();
    let places: Vec<TaskPlace> = tasks
        .iter()
        .map(|(name, inputs)| TaskPlace {
            leaders: leaders(inputs, &facts.topology),
            last: last.get(name).copied(),
        })
        .collect();
    let slots = group(&places, spec.containers.count);
    let before = previous.map(|m| growth::partition_counts(&m.model));
    let known = previous.map(|m| growth::known_added(&m.model)).unwrap_or_default();
    let mut model = JobModel::default();
    for (((name, inputs), slot), changelog_partition) in tasks.into_iter().zip(slots).zip(changelog) {
        let added =
            before.as_ref().map(|before| growth::added(spec, &inputs, before, &known)).unwrap_or_default();
        let container: &mut ContainerModel = model.containers.entry(slot).or_default();
        container.tasks.push(TaskModel { name, inputs, changelog_partition, added });
    }
    for container in model.containers.values_mut() {
        container.tasks.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(RememberedModel {
        app: app.clone(),
        generation: previous.map_or(0, |m| m.generation) + 1,
        model,
        grouper: Some(spec.task.grouper),
        home: metadata_system(spec),
    })
}

fn slots(model: &JobModel) -> BTreeMap<&TaskName, u32> {
    model.containers.iter().flat_map(|(slot, c)| c.tasks.iter().map(move |t| (&t.name, *slot))).collect()
}

/// Every task's changelog partition in `model`, for the coordinator topic.
#[must_use]
pub fn changelog_mapping(model: &JobModel) -> BTreeMap<TaskName, i32> {
    let tasks = model.containers.values().flat_map(|c| &c.tasks);
    tasks.map(|t| (t.name.clone(), t.changelog_partition)).collect()
}

/// Known tasks keep theirs; new ones get those that follow. A job with stores gets new tasks only if it says so.
fn changelog_partitions(
    spec: &JobSpec,
    tasks: &[(TaskName, Vec<SystemStreamPartition>)],
    remembered: &Remembered,
) -> Result<Vec<i32>, ModelError> {
    let known = &remembered.changelog;
    let has_new = !known.is_empty() && tasks.iter().any(|(name, _)| !known.contains_key(name));
    if has_new && !spec.stores.is_empty() && spec.task.on_input_growth == OnInputGrowth::Fail {
        return Err(ModelError::MoreTasks { before: known.len(), now: tasks.len() });
    }
    let mut next = known.values().max().map_or(0, |highest| highest + 1);
    let of = |(name, _): &(TaskName, Vec<SystemStreamPartition>)| {
        known.get(name).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        })
    };
    Ok(tasks.iter().map(of).collect())
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
