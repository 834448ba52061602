//! Inputs that change shape: what of them is not as it was when the job's tasks were made, what may be done about it
//! while the job runs, and what a new submit is refused for.
//!
//! | Change | While it runs | At a new submit |
//! |---|---|---|
//! | partitions added, no key moves (no stores, one task for all, broadcast) | taken up | taken up |
//! | partitions added, `on-input-growth = "extend"` | taken up, with new tasks | taken up |
//! | partitions added, else | told | refused |
//! | a topic that a pattern matches appeared | as partitions added | as partitions added |
//! | partitions or the topic gone | told | refused; a pattern's topic: told |
//! | an input no longer named, another grouper | – | refused |

use std::collections::{BTreeMap, BTreeSet};

use types::{
    ContainerModel, Grouper, JobModel, JobSpec, OnInputGrowth, SystemStream, SystemStreamPartition,
    TaskModel, TaskName,
};

use crate::job_model::ModelError;
use crate::place::{RememberedModel, Topology};

/// A stream whose number of partitions is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The stream.
    pub stream: SystemStream,
    /// Partitions that the tasks read; 0 if it is new.
    pub before: usize,
    /// Partitions that there are; 0 if there is no topic.
    pub now: usize,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Change { stream, before, now } = self;
        match (before, now) {
            (0, 1) => write!(f, "{stream} is new with 1 partition"),
            (0, now) => write!(f, "{stream} is new with {now} partitions"),
            (1, now) => write!(f, "{stream} has {now} partitions and had 1"),
            (before, 1) => write!(f, "{stream} has 1 partition and had {before}"),
            (before, now) => write!(f, "{stream} has {now} partitions and had {before}"),
        }
    }
}

/// What is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// More partitions, or a new topic of a pattern; tasks may take them up.
    pub grown: Vec<Change>,
    /// As `grown`, but keys would move between tasks that have stores.
    pub parting: Vec<Change>,
    /// Fewer partitions.
    pub shrunk: Vec<Change>,
    /// No topic any more.
    pub gone: Vec<Change>,
    /// Not named in job.toml any more.
    pub removed: Vec<Change>,
}

/// The job with its patterns replaced by the topics that are there.
#[must_use]
pub fn expanded(spec: &JobSpec, topology: &Topology) -> JobSpec {
    let of = |system: &str| {
        let streams = topology.streams.keys().filter(|stream| stream.system == system);
        streams.map(|stream| stream.stream.clone()).collect()
    };
    types::expand(spec, &of)
}

/// Partitions of each input that the model's tasks read.
#[must_use]
pub fn partition_counts(model: &JobModel) -> BTreeMap<SystemStream, usize> {
    let mut counts: BTreeMap<SystemStream, usize> = BTreeMap::new();
    for input in inputs_of(model) {
        let at_least = usize::try_from(input.partition).unwrap_or(0) + 1;
        match counts.get_mut(&input.stream) {
            Some(count) => *count = at_least.max(*count),
            None => drop(counts.insert(input.stream.clone(), at_least)),
        }
    }
    counts
}

fn inputs_of(model: &JobModel) -> impl Iterator<Item = &SystemStreamPartition> {
    model.containers.values().flat_map(|c| &c.tasks).flat_map(|t| &t.inputs)
}

/// Compares what the tasks of `model` read with what there is.
#[must_use]
pub fn changes(spec: &JobSpec, model: &JobModel, topology: &Topology) -> Changes {
    let before = partition_counts(model);
    let inputs: BTreeSet<SystemStream> =
        types::inputs(&expanded(spec, topology)).unwrap_or_default().into_iter().collect();
    let mut changes = Changes::default();
    for (stream, before) in &before {
        let now = topology.streams.get(stream).map_or(0, Vec::len);
        let change = Change { stream: stream.clone(), before: *before, now };
        if !inputs.contains(stream) && (now > 0 || spec.pattern_of(stream).is_none()) {
            changes.removed.push(change);
        } else if now == 0 {
            changes.gone.push(change);
        } else if now < *before {
            changes.shrunk.push(change);
        } else if now > *before {
            changes.grow(spec, change);
        }
    }
    for stream in inputs.iter().filter(|stream| !before.contains_key(*stream)) {
        let now = topology.streams.get(stream).map_or(0, Vec::len);
        // What job.toml names by itself was added by hand.
        let by_pattern = !spec.task.inputs.contains(&stream.to_string());
        if now > 0 && by_pattern {
            changes.grow(spec, Change { stream: stream.clone(), before: 0, now });
        }
    }
    changes
}

impl Changes {
    fn grow(&mut self, spec: &JobSpec, change: Change) {
        if moves_keys(spec, &change.stream) { self.parting.push(change) } else { self.grown.push(change) }
    }
}

/// Whether new partitions of `stream` take keys away from the stores that know them.
fn moves_keys(spec: &JobSpec, stream: &SystemStream) -> bool {
    let is_shared_out = spec.task.grouper == Grouper::Partition && !spec.stream(stream).broadcast;
    is_shared_out && !spec.stores.is_empty() && spec.task.on_input_growth == OnInputGrowth::Fail
}

/// Refuses a new submit of a job whose inputs lost something, or grew in a way that it does not take up.
///
/// # Errors
/// What changed, and the way out.
pub fn check(spec: &JobSpec, previous: &RememberedModel, topology: &Topology) -> Result<(), ModelError> {
    let changes = changes(spec, &previous.model, topology);
    check_grouper(spec, previous, topology)?;
    let is_former = |change: &Change| spec.task.former_inputs.contains(&change.stream.to_string());
    if let Some(change) = changes.removed.into_iter().find(|change| !is_former(change)) {
        return Err(ModelError::InputRemoved { stream: change.stream });
    }
    if let Some(change) = changes.shrunk.into_iter().next() {
        return Err(ModelError::InputShrank { change });
    }
    match changes.parting.into_iter().next() {
        Some(change) => Err(ModelError::InputGrew { change }),
        None => Ok(()),
    }
}

/// Refuses tasks among which an input that the job still reads is shared out otherwise than before. A task that is gone
/// leaves no position behind in what others have read as well, and go on with.
///
/// # Errors
/// The first position that would be left behind, and the way out.
pub(crate) fn check_positions(
    previous: &JobModel,
    tasks: &[(TaskName, Vec<SystemStreamPartition>)],
) -> Result<(), ModelError> {
    let now: BTreeMap<&TaskName, BTreeSet<&SystemStreamPartition>> =
        tasks.iter().map(|(name, inputs)| (name, inputs.iter().collect())).collect();
    let still: BTreeSet<&SystemStream> = now.values().flatten().map(|input| &input.stream).collect();
    let reads = |name: &TaskName, input: &SystemStreamPartition| {
        now.get(name).is_some_and(|inputs| inputs.contains(input))
    };
    let before = || previous.containers.values().flat_map(|container| &container.tasks);
    let kept: BTreeSet<&SystemStreamPartition> =
        before().flat_map(|task| task.inputs.iter().filter(|input| reads(&task.name, input))).collect();
    for task in before() {
        let is_there = now.contains_key(&task.name);
        let is_left = |input: &&SystemStreamPartition| {
            still.contains(&input.stream) && !reads(&task.name, input) && (is_there || !kept.contains(input))
        };
        if let Some(input) = task.inputs.iter().find(is_left) {
            return Err(ModelError::PositionLeft { task: task.name.clone(), input: input.clone() });
        }
    }
    Ok(())
}

fn check_grouper(spec: &JobSpec, previous: &RememberedModel, topology: &Topology) -> Result<(), ModelError> {
    let now = spec.task.grouper;
    let Some(before) = previous.grouper.or_else(|| likely_grouper(spec, &previous.model)) else {
        return Ok(());
    };
    if before == now {
        return Ok(());
    }
    let expanded = expanded(spec, topology);
    let count = |stream: &SystemStream| topology.streams.get(stream).map_or(0, Vec::len);
    let mut other = expanded.clone();
    other.task.grouper = before;
    // Where every input has one partition there is no difference.
    if types::tasks(&other, &count) == types::tasks(&expanded, &count) {
        return Ok(());
    }
    Err(ModelError::GrouperChanged { before, now })
}

/// The grouper that made a model which does not say so.
fn likely_grouper(spec: &JobSpec, model: &JobModel) -> Option<Grouper> {
    let tasks: Vec<&TaskModel> = model.containers.values().flat_map(|c| &c.tasks).collect();
    match tasks.as_slice() {
        [] => None,
        [only] => {
            let shared_out = |input: &&SystemStreamPartition| !spec.stream(&input.stream).broadcast;
            only.inputs.iter().filter(shared_out).any(|input| input.partition > 0).then_some(Grouper::Single)
        }
        _ => Some(Grouper::Partition),
    }
}

/// Partitions of a task that there were not when the job first read their streams.
pub(crate) fn added(
    spec: &JobSpec,
    inputs: &[SystemStreamPartition],
    before: &BTreeMap<SystemStream, usize>,
    known: &BTreeSet<&SystemStreamPartition>,
) -> Vec<SystemStreamPartition> {
    let is_added = |input: &&SystemStreamPartition| match before.get(&input.stream) {
        Some(count) => usize::try_from(input.partition).is_ok_and(|n| n >= *count) || known.contains(input),
        None => !spec.task.inputs.contains(&input.stream.to_string()),
    };
    inputs.iter().filter(is_added).cloned().collect()
}

/// The partitions of a model that were added to their streams.
pub(crate) fn known_added(model: &JobModel) -> BTreeSet<&SystemStreamPartition> {
    model.containers.values().flat_map(|c| &c.tasks).flat_map(|t| &t.added).collect()
}

/// What a running job does about what its inputs became.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Growth {
    /// What is told, one line each.
    pub warnings: Vec<String>,
    /// The model that takes up what is new, if something is.
    pub model: Option<RememberedModel>,
}

/// A job that runs.
#[derive(Debug)]
pub struct Running<'a> {
    /// The job.
    pub spec: &'a JobSpec,
    /// Its model.
    pub model: &'a RememberedModel,
    /// Every changelog partition that a task ever had.
    pub changelog: &'a BTreeMap<TaskName, i32>,
    /// Where its inputs are.
    pub topology: &'a Topology,
    /// Slots that may get tasks.
    pub open: &'a [u32],
}

/// Looks at a running job. Tasks stay in their slots and keep what they read; new tasks go to the open slots that have
/// fewest.
#[must_use]
pub fn look(running: &Running<'_>) -> Growth {
    let spec = running.spec;
    let mut changes = changes(spec, &running.model.model, running.topology);
    // A bounded input ends where it ended at the start, its partitions included.
    changes.grown.retain(|change| !spec.stream(&change.stream).bounded);
    changes.parting.retain(|change| !spec.stream(&change.stream).bounded);
    let mut growth = Growth { warnings: warnings(&changes), model: None };
    if !changes.grown.is_empty() && !running.open.is_empty() {
        growth.model = extended(running, &changes.grown);
    }
    growth
}

fn warnings(changes: &Changes) -> Vec<String> {
    let parting = changes.parting.iter().map(|change| {
        format!(
            "{change}: the added ones are not read, since keys would part from the state of their tasks; to take \
             them up with new tasks whose stores are empty, set [task] on-input-growth = \"extend\" and submit with \
             --replace"
        )
    });
    let shrunk = changes.shrunk.iter().map(|change| format!("{change}: was its topic made again?"));
    let gone =
        changes.gone.iter().map(|change| format!("{} is gone: it has no topic any more", change.stream));
    parting.chain(shrunk).chain(gone).collect()
}

fn extended(running: &Running<'_>, grown: &[Change]) -> Option<RememberedModel> {
    let Running { spec, model: current, topology, .. } = running;
    let before = partition_counts(&current.model);
    let is_grown = |stream: &SystemStream| grown.iter().any(|change| change.stream == *stream);
    let was_there = |input: &SystemStreamPartition| {
        before
            .get(&input.stream)
            .is_some_and(|count| usize::try_from(input.partition).is_ok_and(|n| n < *count))
    };
    let count = |stream: &SystemStream| topology.streams.get(stream).map_or(0, Vec::len);
    let mut wanted: BTreeMap<TaskName, Vec<SystemStreamPartition>> =
        types::tasks(&expanded(spec, topology), &count).ok()?.into_iter().collect();
    let mut model = current.model.clone();
    for task in model.containers.values_mut().flat_map(|c| &mut c.tasks) {
        for input in wanted.remove(&task.name).unwrap_or_default() {
            if is_grown(&input.stream) && !task.inputs.contains(&input) {
                task.added.push(input.clone());
                task.inputs.push(input);
            }
        }
    }
    let known = known_added(&current.model);
    let mut new: Vec<TaskModel> = Vec::new();
    for (name, mut inputs) in wanted {
        inputs.retain(|input| is_grown(&input.stream) || was_there(input));
        if inputs.iter().any(|input| is_grown(&input.stream) && !was_there(input)) {
            let added = added(spec, &inputs, &before, &known);
            new.push(TaskModel { name, inputs, changelog_partition: 0, added });
        }
    }
    new.sort_by_key(|task| task.inputs.first().map_or(0, |input| input.partition));
    let mut next = running.changelog.values().max().map_or(0, |highest| highest + 1);
    for mut task in new {
        task.changelog_partition = running.changelog.get(&task.name).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        put(&mut model, running.open, task);
    }
    for container in model.containers.values_mut() {
        container.tasks.sort_by(|a, b| a.name.cmp(&b.name));
    }
    let changed = model != current.model;
    changed.then(|| RememberedModel { generation: current.generation + 1, model, ..(*current).clone() })
}

fn put(model: &mut JobModel, open: &[u32], task: TaskModel) {
    let size = |slot: &&u32| model.containers.get(*slot).map_or(0, |c| c.tasks.len());
    let Some(slot) = open.iter().min_by_key(|slot| (size(slot), **slot)).copied() else { return };
    let container: &mut ContainerModel = model.containers.entry(slot).or_default();
    container.tasks.push(task);
}
