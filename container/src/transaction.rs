//! The commit of one task thread: rows, positions and (exactly-once) outputs in one transaction, then rows to disk.

use std::time::{Duration, Instant};

use task_api::StreamTask;
use task_api::system::{SystemError, TopicHandle, TopicPartition};
use task_core::commit::{CommitStep, Due, Ends, Flush, Pending, Positions, steps};
use task_core::record::{self, Checkpoint};
use tracing::{debug, warn};
use types::{Incarnation, TaskName, Timestamp};

use crate::clock::unix_ms;
use crate::collector::Outputs;
use crate::end::End;
use crate::engine::{Engine, Task};
use crate::inputs::Moved;
use crate::points;
use crate::restore::memory_of;

/// How long a commit waits to hear where the changelogs end.
const ENDS_PATIENCE: Duration = Duration::from_secs(1);
/// The same for the last one: what it does not hear costs the next start a whole changelog, and what brokers lose of it
/// meanwhile is not noticed.
const LAST_ENDS_PATIENCE: Duration = Duration::from_secs(5);
/// Before they are asked again.
const ENDS_PAUSE: Duration = Duration::from_millis(100);

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
    let start = engine.clock.nanos();
    let mut at = start;
    let (mut ends, mut proof, mut without_positions) = (None, None, false);
    for step in steps(flush) {
        points::before(step);
        match step {
            CommitStep::FlushOutputs => engine.outputs.flush_plain()?,
            CommitStep::Begin => engine.outputs.begin()?,
            CommitStep::DrainCaches => drain(engine)?,
            CommitStep::ChangelogEnds => {
                let last = due == Due::Stopping;
                ends = changelog_ends(engine, if last { LAST_ENDS_PATIENCE } else { ENDS_PATIENCE })?;
                without_positions = ends.is_none();
            }
            CommitStep::Checkpoints => {
                checkpoints(engine)?;
                if engine.schedule.must_prove(due, flush, pending) && engine.outputs.is_empty() {
                    prove(engine)?;
                }
            }
            CommitStep::Commit => {
                proof = engine.outputs.commit()?;
                committed(engine);
            }
            CommitStep::FlushStores => {
                // Without a proof there is no position: a newer owner's rows may be below the ends.
                let positions = ends.take().zip(proof.as_ref()).map(|(ends, proof)| ends.proven(proof));
                flush_stores(engine, positions.as_ref(), flush == Flush::Durable, due == Due::Stopping)?;
            }
        }
        points::after(step);
        let before = std::mem::replace(&mut at, engine.clock.nanos());
        engine.meters.step(step, at - before);
    }
    flush_unlogged(engine)?;
    // A flush that could not be is tried again when the next is due.
    engine.schedule.committed(engine.clock.now(), flush, proof.as_ref());
    if without_positions {
        engine.schedule.without_positions();
    }
    let took_ns = engine.clock.nanos() - start;
    engine.meters.commits.inc();
    engine.meters.commit.observe(took_ns, 1);
    let took_us = took_ns / 1_000;
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
            outputs.send_state(changelog.handle, changelog.log.at.partition, key, value)
        })?;
    }
    engine.meters.changelog_rows.add(rows);
    Ok(())
}

/// Sends the checkpoint of each task that has moved.
fn checkpoints<T: StreamTask>(engine: &mut Engine<T>) -> Result<(), SystemError> {
    for (at, task) in engine.tasks.iter_mut().enumerate() {
        let mut moved = is_dirty(task) || task.has_grown;
        let checkpoint = &mut task.checkpoint;
        engine.inputs.commit_positions(at, |source, Moved { to, is_decided, read_to }| {
            moved = true;
            let partition = source.partition.partition;
            if is_decided {
                checkpoint.set_offset(&source.stream, partition, to.0.clone());
            }
            checkpoint.advance(&source.stream, partition, to.0, read_to);
            if let Some(id) = &source.topic_id {
                checkpoint.topics.insert(source.stream.clone(), id.clone());
            }
        });
        if moved {
            task.checkpoint.restored = task.restored.take();
            task.has_grown = false;
            let to = Address { topic: engine.checkpoints, task: &task.name, partition: task.partition };
            send_checkpoint(&mut engine.outputs, &to, engine.incarnation, &mut task.checkpoint)?;
        }
    }
    Ok(())
}

/// Has the transaction hold something, so that it proves that the thread still owns its tasks. They all have the one
/// transactional id, so one of their checkpoints is enough, as it is: it is of the same commit.
fn prove<T: StreamTask>(engine: &mut Engine<T>) -> Result<(), SystemError> {
    let has_committed = |task: &&Task<T>| task.checkpoint.number() != Checkpoint::default().number();
    let Some(task) = engine.tasks.iter().find(has_committed).or(engine.tasks.first()) else { return Ok(()) };
    let (key, value) = (record::checkpoint_key(&task.name), record::checkpoint_value(&task.checkpoint));
    engine.outputs.send_state(engine.checkpoints, task.partition, &key, Some(&value))
}

/// Where a task's checkpoint goes.
pub(crate) struct Address<'a> {
    pub(crate) topic: TopicHandle,
    pub(crate) task: &'a TaskName,
    pub(crate) partition: i32,
}

/// Sends a checkpoint of a commit of its own into the open transaction.
pub(crate) fn send_checkpoint(
    outputs: &mut Outputs,
    to: &Address<'_>,
    incarnation: Incarnation,
    checkpoint: &mut Checkpoint,
) -> Result<(), SystemError> {
    checkpoint.incarnation = incarnation;
    checkpoint.commit += 1;
    let (key, value) = (record::checkpoint_key(to.task), record::checkpoint_value(checkpoint));
    outputs.send_state(to.topic, to.partition, &key, Some(&value))
}

fn is_dirty<T>(task: &Task<T>) -> bool {
    task.stores.iter().any(|store| store.store.borrow_mut().cache().dirty_rows() > 0)
}

/// The high watermarks of all changelog partitions of the thread, in the order of tasks and stores. None if nobody
/// answers within `patience`: then rows go to disk without a position.
fn changelog_ends<T: StreamTask>(
    engine: &mut Engine<T>,
    patience: Duration,
) -> Result<Option<Ends>, SystemError> {
    let logs: Vec<TopicPartition> = engine
        .tasks
        .iter()
        .flat_map(|task| &task.stores)
        .filter_map(|store| store.changelog.as_ref().map(|log| log.log.at.clone()))
        .collect();
    if logs.is_empty() {
        return Ok(Some(Ends::new(Vec::new(), unix_ms())));
    }
    engine.outputs.flush_transaction()?;
    let begun = Instant::now();
    loop {
        let read_at = unix_ms();
        let left = patience.saturating_sub(begun.elapsed());
        match engine.admin.high_watermarks(&logs, left) {
            Ok(ends) if ends.len() == logs.len() => {
                let ends = Ends::new(ends, read_at);
                told_in_checkpoints(engine, &ends);
                return Ok(Some(ends));
            }
            // An election under way, mostly.
            Ok(_) | Err(SystemError::Retriable(_)) if begun.elapsed() + ENDS_PAUSE < patience => {
                std::thread::sleep(ENDS_PAUSE);
            }
            Ok(_) | Err(SystemError::Retriable(_)) => {
                warn!("cannot read the ends of the changelogs: a restart will read more of them");
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The next checkpoints tell how far the changelogs have come at least: a start that finds less knows that rows are lost.
fn told_in_checkpoints<T>(engine: &mut Engine<T>, ends: &Ends) {
    let mut ends = ends.at_least().iter();
    for task in &mut engine.tasks {
        for store in task.stores.iter().filter(|store| store.changelog.is_some()) {
            let (store, Some(end)) = (store.store.borrow(), ends.next()) else { return };
            if let Some(memory) = task.checkpoint.changelogs.get_mut(store.name())
                && end.offset > memory.end
            {
                task.has_grown = true;
                (memory.end, memory.leader_epoch) = (end.offset, end.leader_epoch);
            }
        }
    }
}

/// The transaction is committed: what was dirty is clean.
fn committed<T: StreamTask>(engine: &mut Engine<T>) {
    for store in engine.tasks.iter().flat_map(|task| &task.stores) {
        store.store.borrow_mut().committed();
    }
    engine.work.pulse.set_full(false);
    engine.work.commit_requested = false;
    engine.work.processed = 0;
    engine.work.commits += 1;
    engine.work.untold = true;
}

/// Writes clean rows of stores with changelogs, and offsets rows if their positions are known.
fn flush_stores<T: StreamTask>(
    engine: &mut Engine<T>,
    positions: Option<&Positions>,
    durable: bool,
    wait: bool,
) -> Result<(), End> {
    let mut ends_of = positions.map(|of| (of.offsets(), of.read_at_unix_ms()));
    for task in &engine.tasks {
        let Some(disk) = &task.disk else { continue };
        let logged = || task.stores.iter().filter(|store| store.changelog.is_some() || store.is_index);
        if logged().any(|store| store.store.borrow_mut().cache().rows_not_on_disk() > 0) {
            // Until all rows are there nothing vouches for any.
            let mut batch = disk.batch();
            batch.memory(None)?;
            batch.write()?;
        }
        let mut batch = disk.batch();
        for store in logged() {
            let mut of = store.store.borrow_mut();
            of.write_below()?;
            let (Some(out), Some((ends, read_at))) = (&store.changelog, &mut ends_of) else { continue };
            let offset = ends.next().expect("one end was read for each changelog");
            batch.offsets_row(of.name(), &out.log.row(offset, *read_at).encode())?;
        }
        points::at("rows-written");
        // After the rows: rows without their offsets row are only read once more.
        if logged().next().is_some() {
            // A task without a commit of its own has nothing that could be lost.
            if task.checkpoint.number() != Checkpoint::default().number() {
                batch.memory(Some(&memory_of(&engine.job, &task.name, &task.checkpoint)))?;
            }
            batch.write()?;
            if positions.is_some() {
                points::at("offsets-written");
            }
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
        for store in task.stores.iter().filter(|store| store.changelog.is_none() && !store.is_index) {
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
