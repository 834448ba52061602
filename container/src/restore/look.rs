//! What a task's state rests on, as it is found; and the words for what is lost of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use task_core::lost::{self, Decision, Found, From, LocalMemory, Refusal, Store};
use task_core::record::Checkpoint;
use task_core::restore::OffsetsRow;
use tracing::warn;
use types::{JobTopics, StoreKind, TaskModel};

use super::{LogNow, Restore};
use crate::end::End;
use crate::stores::disk::TaskDisk;

/// A task, before anything of it is changed.
pub(super) struct Look<'a> {
    task: &'a TaskModel,
    pub(super) logs: &'a [LogNow<'a>],
    checkpoint: Option<Checkpoint>,
    /// The commit that the rows on this disk are of, if they are whole.
    copy: Option<Checkpoint>,
    /// Stores with rows on this disk.
    copies: Vec<&'a str>,
    /// There are rows of these very changelogs.
    has_rows: bool,
    folder: String,
}

impl<'a> Look<'a> {
    pub(super) fn at(
        restore: &Restore<'_>,
        task: &'a TaskModel,
        disk: &TaskDisk,
        checkpoint: Option<Checkpoint>,
        logs: &'a [LogNow<'a>],
    ) -> Result<Look<'a>, End> {
        let memory = disk.memory()?.and_then(|bytes| LocalMemory::decode(&bytes));
        // A folder that came from elsewhere says nothing of this job.
        let is_mine =
            |memory: &LocalMemory| memory.job == restore.job.job.to_string() && memory.task == task.name;
        let copy = memory.filter(is_mine).map(|memory| memory.checkpoint);
        let (mut copies, mut has_rows) = (Vec::new(), false);
        for log in logs.iter().filter(|log| log.spec.kind == StoreKind::RocksDb) {
            let Some(row) = disk.offsets_row(log.store)?.and_then(|row| OffsetsRow::decode(&row)) else {
                continue;
            };
            copies.push(log.store);
            has_rows |= row.topic_id == log.now.topic_id && !disk.is_empty(log.store)?;
        }
        let folder = disk.folder().display().to_string();
        Ok(Look { task, logs, checkpoint, copy, copies, has_rows, folder })
    }

    /// Whether the task has no checkpoint.
    pub(super) fn is_first(&self) -> bool {
        self.checkpoint.is_none()
    }

    /// What must be mended, and the checkpoint to go on from; `has_rows`: a changelog has rows.
    pub(super) fn decide(
        &self,
        restore: &Restore<'_>,
        has_rows: bool,
    ) -> Result<(BTreeMap<String, From>, Checkpoint), End> {
        let memories = self.checkpoint.as_ref().map(|checkpoint| &checkpoint.changelogs);
        let store = |log: &LogNow<'a>| Store {
            name: log.store,
            loss: lost::lost(
                memories.and_then(|memories| memories.get(log.store)),
                &log.log.at.topic,
                &log.now,
                log.ages,
            ),
            policy: log.spec.state_lost,
            has_copy: self.copies.contains(&log.store),
        };
        let found = Found {
            stores: self.logs.iter().map(store).collect(),
            checkpoint: self.checkpoint.as_ref(),
            copy: self.copy.as_ref(),
            has_rows: has_rows || self.has_rows,
            delivery: restore.job.task.delivery,
        };
        let checkpoint = self.checkpoint.clone().unwrap_or_default();
        match lost::decide(&found) {
            Decision::Whole => Ok((BTreeMap::new(), checkpoint)),
            Decision::Mend { stores, back } => {
                warn!(
                    task = %self.task.name, ?stores, back, folder = self.folder,
                    "state was lost: its changelogs are written anew, as `state-lost` says"
                );
                let copy = self.copy.clone().filter(|_| back);
                Ok((stores, copy.unwrap_or(checkpoint)))
            }
            Decision::Refuse(refusal) => Err(End::Failed(self.words(restore, &refusal))),
        }
    }

    /// What is lost, and the ways out.
    fn words(&self, restore: &Restore<'_>, refusal: &Refusal) -> String {
        let partition = self.task.changelog_partition;
        let topic = JobTopics::of(&restore.job.job).checkpoint;
        let mut lost = Vec::new();
        if refusal.checkpoint {
            let copy = |copy: &Checkpoint| {
                format!("the rows in {} are of commit {} of {}", self.folder, copy.commit, copy.incarnation)
            };
            let evidence = self.copy.as_ref().map_or("there are rows of it".to_owned(), copy);
            lost.push(match &self.checkpoint {
                None => format!("topic {topic}, partition {partition}, has no checkpoint of it, but {evidence}"),
                Some(last) => format!(
                    "its last checkpoint in topic {topic}, partition {partition}, is of commit {} of {}, but {evidence}",
                    last.commit, last.incarnation
                ),
            });
        }
        for (store, loss) in &refusal.stores {
            let topic = self.logs.iter().find(|log| log.store == store).map(|log| &*log.log.at.topic);
            let topic = topic.unwrap_or_default();
            lost.push(format!("changelog topic {topic}, partition {partition}, of store {store} {loss}"));
        }
        let mut words = format!(
            "state of {} is lost, and nothing was changed: {}. Either bring back what is missing, or set `state-lost` in \
             [task] or [stores.<name>]: \"local\" fills changelogs from the rows of this node, \"empty\" begins without \
             rows",
            self.task.name,
            lost.join("; ")
        );
        if let Some(why) = refusal.no_copy {
            let _ = write!(words, " (\"local\" is not possible here: {why})");
        }
        let accept = if refusal.checkpoint && self.checkpoint.is_none() {
            let input = restore.job.task.inputs.first().map_or("<input>", String::as_str);
            format!(
                "--set {input}=oldest` (or another place) says where the inputs go on, with the rows that are there"
            )
        } else {
            "--accept-state` goes on with what is there now".to_owned()
        };
        let _ = write!(words, ", or `samza checkpoint <job file> {accept}");
        words
    }
}
