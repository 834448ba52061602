//! The commit of one task thread: rows, positions and (exactly-once) outputs in one transaction, then rows to disk.

use std::time::{Duration, Instant};

use task_api::StreamTask;
use task_api::system::{SystemError, TopicPartition};
use task_core::commit::{CommitStep, Due, Flush, Pending, steps};
use task_core::record;
use task_core::restore::OffsetsRow;
use tracing::{debug, warn};
use types::Timestamp;

use crate::clock::unix_ms;
use crate::end::End;
use crate::engine::{Engine, Task};
use crate::points;

/// How long a commit waits to hear where the changelogs end.
const ENDS_PATIENCE: Duration = Duration::from_secs(1);

/// Runs a commit.
///
/// # Errors
/// Something failed: whether the transaction was committed may be unknown, so the container must end.
pub(crate) fn commit<T: StreamTask>(
    engine: &mut Engine<T>,
    due: Due,
    pending: Pending,
    now: Timestamp,
) -> Result<(), End> {
    if let Some(error) = engine.outputs.failure() {
        return Err(End::from(error).during("an earlier send"));
    }
    let flush = engine.schedule.flush_stores(now, due, pending);
    let start = Instant::now();
    let mut ends = None;
    for step in steps(flush) {
        points::before(step);
        match step {
            CommitStep::FlushOutputs => engine.outputs.flush_plain()?,
            CommitStep::Begin => engine.outputs.begin()?,
            CommitStep::DrainCaches => drain(engine)?,
            CommitStep::Checkpoints => checkpoints(engine, due)?,
            CommitStep::ChangelogEnds => ends = changelog_ends(engine)?,
            CommitStep::Commit => {
                engine.outputs.commit()?;
                committed(engine);
            }
            CommitStep::FlushStores => {
                flush_stores(engine, ends.as_ref(), flush == Flush::Durable, due == Due::Stopping)?
            }
        }
        points::after(step);
    }
    flush_unlogged(engine)?;
    // A flush that could not be is tried again when the next is due.
    engine.schedule.committed(engine.clock.now(), flush);
    let took_us = start.elapsed().as_micros() as u64;
    engine.meters.commits.inc();
    engine.meters.commit_us.observe(took_us);
    debug!(?due, ?flush, took_us, "committed");
    Ok(())
}

/// Sends every dirty row to its changelog, by store in the order of keys.
fn drain<T: StreamTask>(engine: &mut Engine<T>) -> Result<(), SystemError> {
    let outputs = &mut engine.outputs;
    let mut rows = 0;
    for store in engine.tasks.iter().flat_map(|task| &task.stores) {
        let Some(changelog) = &store.changelog else { continue };
        let mut of = store.store.borrow_mut();
        of.cache().visit_dirty(|(key, value)| {
            rows += 1;
            outputs.send_state(changelog.handle, changelog.at.partition, key, value)
        })?;
    }
    engine.meters.changelog_rows.add(rows);
    Ok(())
}

/// Sends the checkpoint of each task that has moved.
fn checkpoints<T: StreamTask>(engine: &mut Engine<T>, due: Due) -> Result<(), SystemError> {
    let incarnation = engine.incarnation;
    for (at, task) in engine.tasks.iter_mut().enumerate() {
        let mut moved = due == Due::Refresh || is_dirty(task);
        let checkpoint = &mut task.checkpoint;
        engine.inputs.commit_positions(at, |source, position| {
            moved = true;
            checkpoint.set_offset(&source.stream, source.partition.partition, position.0);
            if let Some(id) = &source.topic_id {
                checkpoint.topics.insert(source.stream.clone(), id.clone());
            }
        });
        if !moved {
            continue;
        }
        task.checkpoint.incarnation = incarnation;
        task.checkpoint.restored = task.restored.take();
        let (key, value) = (record::checkpoint_key(&task.name), record::checkpoint_value(&task.checkpoint));
        engine.outputs.send_state(engine.checkpoints, task.partition, &key, Some(&value))?;
    }
    Ok(())
}

fn is_dirty<T>(task: &Task<T>) -> bool {
    task.stores.iter().any(|store| store.store.borrow_mut().cache().dirty_rows() > 0)
}

/// The high watermarks of all changelog partitions of the thread, in the order of tasks and stores, and when they
/// were read, unix ms. None if nobody answers now: then rows go to disk without a position.
fn changelog_ends<T: StreamTask>(engine: &mut Engine<T>) -> Result<Option<(Vec<u64>, u64)>, SystemError> {
    let logs: Vec<TopicPartition> = engine
        .tasks
        .iter()
        .flat_map(|task| &task.stores)
        .filter_map(|store| store.changelog.as_ref().map(|log| log.at.clone()))
        .collect();
    if logs.is_empty() {
        return Ok(Some((Vec::new(), unix_ms())));
    }
    engine.outputs.flush_transaction()?;
    let read_at = unix_ms();
    match engine.admin.high_watermarks(&logs, ENDS_PATIENCE) {
        Ok(ends) if ends.len() == logs.len() => Ok(Some((ends, read_at))),
        Ok(_) | Err(SystemError::Retriable(_)) => {
            warn!("cannot read the ends of the changelogs: a restart will read more of them");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The transaction is committed: what was dirty is clean.
fn committed<T: StreamTask>(engine: &mut Engine<T>) {
    for store in engine.tasks.iter().flat_map(|task| &task.stores) {
        store.store.borrow_mut().committed();
    }
    engine.work.full.set(false);
    engine.work.commit_requested = false;
    engine.work.processed = 0;
    engine.work.commits += 1;
    engine.work.untold = true;
}

/// Writes clean rows of stores with changelogs, and offsets rows if the ends are known.
fn flush_stores<T: StreamTask>(
    engine: &mut Engine<T>,
    ends: Option<&(Vec<u64>, u64)>,
    durable: bool,
    wait: bool,
) -> Result<(), End> {
    let mut ends_of = ends.map(|(ends, read_at)| (ends.iter(), *read_at));
    for task in &engine.tasks {
        let Some(disk) = &task.disk else { continue };
        let mut rows = Vec::new();
        for store in &task.stores {
            let Some(log) = &store.changelog else { continue };
            let mut of = store.store.borrow_mut();
            of.write_below()?;
            let Some((ends, read_at)) = &mut ends_of else { continue };
            let offset = *ends.next().expect("one end was read for each changelog");
            let row = OffsetsRow { topic_id: log.topic_id.clone(), offset, flushed_unix_ms: *read_at };
            rows.push((of.name().to_owned(), row.encode()));
        }
        points::at("rows-written");
        // After the rows: rows without their offsets row are only read once more.
        if !rows.is_empty() {
            let mut batch = disk.batch();
            rows.iter().try_for_each(|(name, row)| batch.offsets_row(name, row))?;
            batch.write()?;
            points::at("offsets-written");
        }
        if durable {
            disk.flush(wait)?;
        }
    }
    Ok(())
}

/// Stores without changelog have only the disk: their rows go there after each commit.
fn flush_unlogged<T: StreamTask>(engine: &mut Engine<T>) -> Result<(), End> {
    for task in &engine.tasks {
        let Some(disk) = &task.disk else { continue };
        let mut any = false;
        for store in task.stores.iter().filter(|store| store.changelog.is_none()) {
            let mut of = store.store.borrow_mut();
            if of.cache().rows_not_on_disk() > 0 {
                of.write_below()?;
                any = true;
            }
        }
        if any {
            disk.flush(true)?;
        }
    }
    Ok(())
}
