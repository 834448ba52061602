//! Writes changelogs that were lost anew: from the rows on this disk, or without any.
//!
//! The thread owns its tasks by now, so nobody else writes there. What the changelog still has and the store has not is
//! deleted, then every row is written, in transactions of bounded size. The last one holds the task's checkpoint, which
//! remembers the changelogs as they are then: whatever ends the process before finds them lost once more, and the copy
//! as it was.

use std::collections::BTreeMap;

use task_api::StoreError;
use task_api::system::{Isolation, LogEnd, Message, SystemAdmin, SystemError, TopicHandle, TopicPartition};
use task_core::commit::Ends;
use task_core::lost::From;
use tracing::info;
use types::{Incarnation, JobSpec, JobTopics, TaskModel};

use super::{RestoredTask, memory_of, patiently};
use crate::clock::unix_ms;
use crate::collector::Outputs;
use crate::end::End;
use crate::stores::disk::TaskDisk;
use crate::transaction::{Address, send_checkpoint};

/// Bytes of rows in one transaction.
const AT_ONCE: usize = 4 << 20;

/// Rows of one changelog on their way.
struct Writer<'a> {
    outputs: &'a mut Outputs,
    topic: TopicHandle,
    partition: i32,
    /// Of the open transaction.
    bytes: usize,
    rows: u64,
}

impl Writer<'_> {
    fn write(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), SystemError> {
        if self.bytes >= AT_ONCE {
            self.outputs.commit()?;
            self.bytes = 0;
        }
        self.outputs.begin()?;
        self.outputs.send_state(self.topic, self.partition, key, value)?;
        self.bytes += key.len() + value.map_or(0, <[u8]>::len) + 64;
        self.rows += 1;
        Ok(())
    }
}

/// Mends what a restore found to be lost of a task.
///
/// # Errors
/// Something failed: the next start begins again.
pub(crate) fn mend(
    outputs: &mut Outputs,
    admin: &dyn SystemAdmin,
    (job, incarnation): (&JobSpec, Incarnation),
    task: &TaskModel,
    restored: &mut RestoredTask,
) -> Result<(), End> {
    let mends = std::mem::take(&mut restored.mends);
    let Some(disk) = restored.disk.clone().filter(|_| !mends.is_empty()) else { return Ok(()) };
    for (store, from) in &mends {
        let copy = (*from == From::Copy).then_some((&*disk, store.as_str()));
        let rows = one(outputs, admin, restored, store, copy)?;
        info!(task = %task.name, store, rows, ?from, "its changelog is written anew");
    }
    outputs.begin()?;
    outputs.flush_transaction()?;
    let logs: Vec<(&String, TopicPartition)> =
        restored.changelogs.iter().map(|(store, log)| (store, log.at.clone())).collect();
    let partitions: Vec<TopicPartition> = logs.iter().map(|(_, at)| at.clone()).collect();
    let read_at = unix_ms();
    let found = patiently(|| admin.watermarks(&partitions))?;
    for ((store, _), ends) in logs.iter().zip(&found) {
        if let Some(memory) = restored.checkpoint.changelogs.get_mut(*store) {
            (memory.start, memory.end, memory.leader_epoch) = (ends.low, ends.high, None);
        }
    }
    let topic = outputs.state_topic(&JobTopics::of(&job.job).checkpoint)?;
    let address = Address { topic, task: &task.name, partition: task.changelog_partition };
    send_checkpoint(outputs, &address, incarnation, &mut restored.checkpoint)?;
    let proof = outputs.commit()?.ok_or_else(|| End::Failed("a checkpoint was not committed".into()))?;
    let positions =
        Ends::new(found.iter().map(|ends| LogEnd::at(ends.high)).collect(), read_at).proven(&proof);
    let mut batch = disk.batch();
    let offsets: BTreeMap<&str, u64> =
        logs.iter().zip(positions.offsets()).map(|((store, _), end)| (store.as_str(), end)).collect();
    for store in mends.keys() {
        let log = &restored.changelogs[store];
        let row = log.row(offsets[store.as_str()], read_at);
        batch.offsets_row(store, &row.encode())?;
    }
    batch.memory(Some(&memory_of(&job.job, &task.name, &restored.checkpoint)))?;
    batch.write()?;
    Ok(disk.flush(true)?)
}

/// Writes one changelog from the rows of `copy`, or as one without rows. Returns how many rows that took.
fn one(
    outputs: &mut Outputs,
    admin: &dyn SystemAdmin,
    restored: &RestoredTask,
    store: &str,
    copy: Option<(&TaskDisk, &str)>,
) -> Result<u64, End> {
    let at = restored.changelogs[store].at.clone();
    let topic = outputs.state_topic(&at.topic)?;
    let mut writer = Writer { outputs, topic, partition: at.partition, bytes: 0, rows: 0 };
    let engine = |error: StoreError| SystemError::Fatal(error.to_string());
    let mut value = Vec::new();
    let mut take = |messages: &[Message<'_>]| {
        for message in messages.iter().filter(|message| message.value.is_some()) {
            let Some(key) = message.key else { continue };
            value.clear();
            let stays =
                copy.map_or(Ok(false), |(disk, store)| disk.get(store, key, &mut value)).map_err(engine)?;
            if !stays {
                writer.write(key, None)?;
            }
        }
        Ok(())
    };
    let high = restored.restored.changelogs.get(store).copied().unwrap_or(0);
    patiently(|| admin.read_range(&at, 0, high, Isolation::ReadCommitted, &mut take))?;
    if let Some((disk, store)) = copy {
        let mut rows = disk.iterate(store, None, None)?;
        while let Some((key, value)) = rows.item() {
            writer.write(key, Some(value))?;
            rows.next();
        }
        rows.status().map_err(|error| End::Failed(error.to_string()))?;
    }
    Ok(writer.rows)
}
