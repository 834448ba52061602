//! What is shown: one row for each input partition of each task.

use std::collections::BTreeMap;

use client::output::Rows;
use serde::Serialize;
use task_api::system::Watermarks;
use task_core::record::Checkpoint;
use types::{SystemStreamPartition, TaskName};

/// A task with what it reads and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskAt {
    pub(crate) name: TaskName,
    /// Its partition of the checkpoint topic.
    pub(crate) partition: i32,
    pub(crate) inputs: Vec<SystemStreamPartition>,
    /// None: it has not committed yet.
    pub(crate) checkpoint: Option<Checkpoint>,
}

/// One input partition of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    pub(crate) task: TaskName,
    pub(crate) stream: String,
    pub(crate) partition: i32,
    /// The next offset to read; none if the task has not committed one.
    pub(crate) checkpoint: Option<u64>,
    /// Where it is moved to, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) moved_to: Option<u64>,
    /// The first offset there is.
    pub(crate) first: u64,
    /// The last offset there is; none if there is none.
    pub(crate) last: Option<u64>,
    /// Offsets between where it starts and the end; none if that is not known.
    pub(crate) left: Option<u64>,
}

impl Row {
    pub(crate) fn of(
        task: &TaskAt,
        input: &SystemStreamPartition,
        ends: Watermarks,
        moved_to: Option<u64>,
    ) -> Row {
        let stream = input.stream.to_string();
        let found = task.checkpoint.as_ref().and_then(|c| c.offset(&stream, input.partition));
        let checkpoint = found.and_then(|offset| offset.parse().ok());
        let start = moved_to.or(checkpoint);
        Row {
            task: task.name.clone(),
            stream,
            partition: input.partition,
            checkpoint,
            moved_to,
            first: ends.low,
            last: (ends.high > ends.low).then(|| ends.high - 1),
            left: start.map(|start| ends.high.saturating_sub(start.max(ends.low))),
        }
    }

    /// What is out of order.
    fn note(&self) -> String {
        let end = self.last.map_or(self.first, |last| last + 1);
        match self.moved_to.or(self.checkpoint) {
            None => "no checkpoint yet; starts at `offset-default`".to_owned(),
            Some(start) if start < self.first => format!("{} offsets are gone", self.first - start),
            Some(start) if start > end => "beyond the end: the topic was made again".to_owned(),
            Some(_) => String::new(),
        }
    }
}

/// The table for people; with a column of where it is moved to if `moving`.
pub(crate) fn table(rows: &[Row], moving: bool, headers: bool) -> String {
    let mut columns = vec!["TASK", "STREAM", ">PARTITION", ">CHECKPOINT"];
    columns.extend(moving.then_some(">MOVED-TO"));
    columns.extend([">FIRST", ">LAST", ">LEFT", "NOTE"]);
    let mut table = Rows::new(&columns, headers);
    let shown = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
    for row in rows {
        let mut cells =
            vec![row.task.to_string(), row.stream.clone(), row.partition.to_string(), shown(row.checkpoint)];
        cells.extend(moving.then(|| shown(row.moved_to)));
        cells.extend([row.first.to_string(), shown(row.last), shown(row.left), row.note()]);
        table.add(cells);
    }
    table.text()
}

/// Brings what the inputs make and what the checkpoint topic holds together: a task that the topic knows keeps its
/// partition there, one that it does not know has the one of its number.
pub(crate) fn tasks_at(
    made: Vec<(TaskName, Vec<SystemStreamPartition>)>,
    mut found: BTreeMap<TaskName, (i32, Checkpoint)>,
) -> Vec<TaskAt> {
    let task = |((name, inputs), number): ((TaskName, Vec<SystemStreamPartition>), i32)| {
        let known = found.remove(&name);
        let partition = known.as_ref().map_or(number, |(partition, _)| *partition);
        TaskAt { name, partition, inputs, checkpoint: known.map(|(_, checkpoint)| checkpoint) }
    };
    made.into_iter().zip(0..).map(task).collect()
}

#[cfg(test)]
mod tests {
    use types::SystemStream;

    use super::*;

    fn input(partition: i32) -> SystemStreamPartition {
        let stream = SystemStream { system: "kafka".into(), stream: "in".into() };
        SystemStreamPartition { stream, partition }
    }

    fn task(number: i32, offset: Option<&str>) -> TaskAt {
        let checkpoint = offset.map(|offset| {
            let mut checkpoint = Checkpoint::default();
            checkpoint.set_offset("kafka.in", number, offset.to_owned());
            checkpoint
        });
        let name = TaskName(format!("Partition {number}"));
        TaskAt { name, partition: number, inputs: vec![input(number)], checkpoint }
    }

    fn ends(low: u64, high: u64) -> Watermarks {
        Watermarks { low, high, stable: high, leader_epoch: None }
    }

    #[test]
    fn a_row_says_how_much_is_left_and_what_is_out_of_order() {
        let row = |offset, low, high| {
            let task = task(0, offset);
            let row = Row::of(&task, &task.inputs[0], ends(low, high), None);
            (row.last, row.left, row.note())
        };
        assert_eq!(row(Some("40"), 10, 100), (Some(99), Some(60), String::new()));
        assert_eq!(row(Some("4"), 10, 100), (Some(99), Some(90), "6 offsets are gone".into()));
        assert_eq!(
            row(Some("140"), 10, 100),
            (Some(99), Some(0), "beyond the end: the topic was made again".into())
        );
        assert_eq!(row(Some("7"), 7, 7), (None, Some(0), String::new()));
        assert_eq!(row(None, 0, 5).1, None);
    }

    #[test]
    fn the_table_counts_from_where_the_task_will_start() {
        let (two, ten) = (task(2, Some("5")), task(10, None));
        let rows = [
            Row::of(&two, &two.inputs[0], ends(0, 100), Some(90)),
            Row::of(&ten, &ten.inputs[0], ends(0, 0), None),
        ];
        assert_eq!(
            table(&rows, true, true),
            "TASK          STREAM    PARTITION  CHECKPOINT  MOVED-TO  FIRST  LAST  LEFT  NOTE\n\
             Partition 2   kafka.in          2           5        90      0    99    10  -\n\
             Partition 10  kafka.in         10           -         -      0     -     -  no checkpoint yet; starts at \
             `offset-default`\n"
        );
    }

    #[test]
    fn a_known_task_keeps_its_partition_of_the_checkpoint_topic() {
        let made = (0..2).map(|n| (TaskName(format!("Partition {n}")), vec![input(n)])).collect();
        let found = BTreeMap::from([(TaskName("Partition 1".into()), (7, Checkpoint::default()))]);
        let tasks = tasks_at(made, found);
        assert_eq!((tasks[0].partition, tasks[0].checkpoint.is_none()), (0, true));
        assert_eq!((tasks[1].partition, tasks[1].checkpoint.is_none()), (7, false));
    }
}
