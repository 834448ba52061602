//! Which tasks a job has: its inputs' partitions, grouped (the first half of Samza's JobModelCalculator).

use std::collections::BTreeMap;

use crate::{Grouper, JobSpec, SystemStream, SystemStreamPartition, TaskName};

/// Why a job has no tasks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TasksError {
    /// An input is not `<system>.<stream>`.
    #[error("input `{0}` is not of the form system.stream")]
    BadInput(String),
    /// No input has a partition.
    #[error("the inputs have no partitions")]
    NoTasks,
}

/// The job's inputs, parsed.
///
/// # Errors
/// One is not `<system>.<stream>`.
pub fn inputs(spec: &JobSpec) -> Result<Vec<SystemStream>, TasksError> {
    spec.task
        .inputs
        .iter()
        .map(|i| SystemStream::parse(i).ok_or_else(|| TasksError::BadInput(i.clone())))
        .collect()
}

/// Tasks in the order of their partitions (2 before 10), each with what it reads; `partitions` tells how many
/// partitions an input has.
///
/// # Errors
/// There are none.
pub fn tasks(
    spec: &JobSpec,
    partitions: &dyn Fn(&SystemStream) -> usize,
) -> Result<Vec<(TaskName, Vec<SystemStreamPartition>)>, TasksError> {
    let mut by_partition: BTreeMap<i32, Vec<SystemStreamPartition>> = BTreeMap::new();
    let mut broadcast = Vec::new();
    for stream in inputs(spec)? {
        let to_all = spec.streams.get(&stream.to_string()).is_some_and(|s| s.broadcast);
        for partition in 0..i32::try_from(partitions(&stream)).unwrap_or(i32::MAX) {
            let part = SystemStreamPartition { stream: stream.clone(), partition };
            match (to_all, spec.task.grouper) {
                (true, _) => broadcast.push(part),
                (false, Grouper::Partition) => by_partition.entry(partition).or_default().push(part),
                (false, Grouper::Single) => by_partition.entry(0).or_default().push(part),
            }
        }
    }
    if by_partition.is_empty() && !broadcast.is_empty() {
        by_partition.insert(0, Vec::new());
    }
    if by_partition.is_empty() {
        return Err(TasksError::NoTasks);
    }
    Ok(by_partition
        .into_iter()
        .map(|(n, mut inputs)| {
            inputs.extend(broadcast.iter().cloned());
            (TaskName(format!("Partition {n}")), inputs)
        })
        .collect())
}
