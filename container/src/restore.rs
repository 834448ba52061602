//! Brings a task's stores and input positions to where its last committed transaction left them.
//!
//! What the task's state rests on is looked at first ([`task_core::lost`]); until that is decided nothing is changed.

mod look;
pub(crate) mod mend;
mod progress;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use task_api::metrics::MetricsRegistry;
use task_api::system::{Isolation, Message, SystemAdmin, SystemError, TopicMetadata, TopicPartition};
use task_core::lost::{From, LocalMemory};
use task_core::record::{self, Checkpoint, LogMemory, Record, Restored};
use task_core::restore::{Changelog, OffsetsRow, Plan, Why, plan};
use tracing::{debug, warn};
use types::{
    Incarnation, JobId, JobSpec, JobTopics, StoreKind, StoreSpec, TIMERS_STORE, TaskModel, TaskName,
};

use crate::board::Board;
use crate::claim::Start;
use crate::clock::{Clock, unix_ms};
use crate::end::End;
use crate::meters;
use crate::stores::disk::{DiskMemory, TIMERS_INDEX, TaskDisk};
use crate::stores::fill::Fill;
use crate::stores::memory::MemoryRows;
use look::Look;
use progress::Progress;

/// Tasks of a thread that restore at the same time.
pub(crate) const SIDE_BY_SIDE: usize = 4;
/// How long a question is asked again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a changelog may stand still, as while a broker starts again.
const READ_PATIENCE: Duration = Duration::from_secs(300);

/// What a restore needs to know.
pub(crate) struct Restore<'a> {
    pub(crate) job: &'a JobSpec,
    pub(crate) incarnation: Incarnation,
    /// The home system's.
    pub(crate) admin: &'a dyn SystemAdmin,
    pub(crate) state: PathBuf,
    pub(crate) memory: &'a DiskMemory,
    /// For the chunks of this thread's tasks.
    pub(crate) chunk_bytes: u64,
    pub(crate) board: &'a Board,
    /// For rows that end.
    pub(crate) clock: &'a Clock,
    pub(crate) metrics: &'a MetricsRegistry,
}

/// A task that is as it was.
pub(crate) struct RestoredTask {
    /// None if the job has no stores.
    pub(crate) disk: Option<Arc<TaskDisk>>,
    /// The last committed one; empty at a task's first start.
    pub(crate) checkpoint: Checkpoint,
    /// The watermarks that were restored to: told in the task's next checkpoint.
    pub(crate) restored: Restored,
    /// By store with a changelog.
    pub(crate) changelogs: BTreeMap<String, Log>,
    /// By store in memory.
    pub(crate) memory: BTreeMap<String, MemoryRows>,
    /// By store: changelogs that must be written anew before the task runs ([`mend`]).
    pub(crate) mends: BTreeMap<String, From>,
}

/// A store's changelog.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) at: TopicPartition,
    pub(crate) topic_id: String,
    /// For how long the topic keeps tombstones, ms, by its own word.
    pub(crate) keeps_tombstones_ms: u64,
}

impl Log {
    /// The offsets row of a store that holds all below `offset`, as was read then.
    pub(crate) fn row(&self, offset: u64, read_unix_ms: u64) -> OffsetsRow {
        OffsetsRow {
            topic_id: self.topic_id.clone(),
            offset,
            flushed_unix_ms: read_unix_ms,
            keeps_tombstones_ms: Some(self.keeps_tombstones_ms),
        }
    }
}

/// What is known of a changelog topic.
#[derive(Clone)]
struct Topic {
    id: String,
    keeps_tombstones_ms: u64,
    /// Whether brokers delete what is old.
    ages: bool,
}

/// The offsets row of a store without changelog: it is good as long as no other folder was used since.
#[derive(Serialize, Deserialize)]
struct Holder {
    incarnation: Incarnation,
}

impl Restore<'_> {
    /// Restores every task from its start.
    pub(crate) fn all(&self, tasks: &[TaskModel], starts: &[Start]) -> Result<Vec<RestoredTask>, End> {
        let topics: Vec<String> = self.job.stores.values().filter_map(|s| s.changelog.clone()).collect();
        let topics = self.describe(&topics)?;
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let workers = SIDE_BY_SIDE.min(tasks.len());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(task) = tasks.get(at) else { return };
                        let restored = self
                            .task(task, &starts[at], &topics, workers)
                            .map_err(|end| end.during(&format!("restore of {}", task.name)));
                        let failed = restored.is_err();
                        done.lock().expect("no restore panics while it adds its result").push((at, restored));
                        if failed {
                            next.store(tasks.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let mut done = done.into_inner().expect("no restore panics while it adds its result");
        done.sort_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, restored)| restored).collect()
    }

    fn describe(&self, topics: &[String]) -> Result<BTreeMap<String, Topic>, End> {
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let found = patiently(|| self.admin.describe(topics))?;
        let names: Vec<String> = found.iter().map(|topic| topic.topic.clone()).collect();
        Ok(patiently(|| {
            let configs = self.admin.describe_configs(&names)?;
            let keeps_ms = |topic: &str| configs.get(topic)?.get("delete.retention.ms")?.value.parse().ok();
            let of = |found: &TopicMetadata| {
                let TopicMetadata { topic, topic_id, .. } = found;
                // A broker may not have heard yet of a topic that was just made.
                let unknown = || SystemError::Retriable(format!("no configuration of topic {topic} yet"));
                let keeps_tombstones_ms = keeps_ms(topic).ok_or_else(unknown)?;
                let policy = configs.get(topic).and_then(|of| of.get("cleanup.policy"));
                let ages = policy.is_some_and(|policy| policy.value.contains("delete"));
                Ok((topic.clone(), Topic { id: topic_id.clone(), keeps_tombstones_ms, ages }))
            };
            found.iter().map(of).collect()
        })?)
    }

    fn task(
        &self,
        task: &TaskModel,
        of: &Start,
        topics: &BTreeMap<String, Topic>,
        workers: usize,
    ) -> Result<RestoredTask, End> {
        let start = Instant::now();
        let found = self.checkpoint(task, of)?;
        let took_ms = || start.elapsed().as_millis() as u64;
        debug!(task = %task.name, high = of.highs[0], took_ms = took_ms(), "checkpoint read");
        let restored = Restored { checkpoint: of.highs[0], changelogs: BTreeMap::new() };
        if self.job.stores.is_empty() {
            return Ok(RestoredTask {
                disk: None,
                checkpoint: found.unwrap_or_default(),
                restored,
                changelogs: BTreeMap::new(),
                memory: BTreeMap::new(),
                mends: BTreeMap::new(),
            });
        }
        let mut stores: Vec<_> = self.job.stores.iter().map(|(name, spec)| (name.as_str(), spec)).collect();
        stores.extend(index_of_timers(self.job));
        let suffix = self.incarnation.to_string();
        let disk = TaskDisk::open(&self.state, &task.state_entry(), &suffix, &stores, self.memory)?;
        debug!(task = %task.name, took_ms = took_ms(), "database open");
        let mut logs = self.logs(task, &of.highs[1..], topics)?;
        self.look_for_cuts(&mut logs, found.as_ref())?;
        let look = Look::at(self, task, &disk, found, &logs)?;
        let (mut mends, mut checkpoint) = look.decide(self, false)?;
        for (name, store) in self.job.stores.iter().filter(|(_, store)| store.changelog.is_none()) {
            if store.kind == StoreKind::RocksDb {
                self.keep_or_clear(&disk, name, &checkpoint)?;
            }
        }
        let mut memory = self.fill_stores(task, &disk, &look, &mends, workers, start)?;
        if mends.is_empty() && look.is_first() && self.has_rows(&disk, &logs, &memory)? {
            // Rows without a checkpoint.
            (mends, checkpoint) = look.decide(self, true)?;
        }
        for (name, _) in mends.iter().filter(|(_, from)| **from == From::Nothing) {
            disk.clear(name)?;
            memory.remove(name);
        }
        let mut restored = restored;
        for log in &logs {
            restored.changelogs.insert(log.store.to_owned(), log.now.high);
            checkpoint.changelogs.insert(log.store.to_owned(), log.memory());
        }
        checkpoint.changelogs.retain(|store, _| logs.iter().any(|log| log.store == store));
        if mends.is_empty() {
            self.remember(task, &disk, &checkpoint, look.is_first())?;
        }
        let changelogs = logs.into_iter().map(|log| (log.store.to_owned(), log.log)).collect();
        Ok(RestoredTask { disk: Some(Arc::new(disk)), checkpoint, restored, changelogs, memory, mends })
    }

    /// The task's last committed checkpoint below its watermark; the first part was read by the start order.
    fn checkpoint(&self, task: &TaskModel, of: &Start) -> Result<Option<Checkpoint>, End> {
        let at = TopicPartition {
            topic: JobTopics::of(&self.job.job).checkpoint,
            partition: task.changelog_partition,
        };
        let mut last = of.checkpoint.clone();
        let mut take = |messages: &[Message<'_>]| {
            for message in messages {
                if let Some(Record::Checkpoint(of, checkpoint)) = record::decode(message.key, message.value)
                    && of == task.name
                {
                    last = Some(checkpoint);
                }
            }
            Ok(())
        };
        patiently(|| {
            self.admin.read_range(&at, of.read_to, of.highs[0], Isolation::ReadCommitted, &mut take)
        })?;
        Ok(last)
    }

    /// The task's changelogs as they are, by store.
    fn logs<'n>(
        &'n self,
        task: &TaskModel,
        highs: &[u64],
        topics: &BTreeMap<String, Topic>,
    ) -> Result<Vec<LogNow<'n>>, End> {
        let mut logs = Vec::new();
        let mut highs = highs.iter();
        for (store, spec) in &self.job.stores {
            let Some(topic) = &spec.changelog else { continue };
            let high = *highs.next().expect("the start order gave a watermark for each changelog");
            let Some(known) = topics.get(topic) else {
                return Err(End::Failed(format!("changelog topic {topic} of store {store} does not exist")));
            };
            let at = TopicPartition { topic: topic.clone(), partition: task.changelog_partition };
            let Topic { id, keeps_tombstones_ms, ages } = known.clone();
            let now = Changelog { topic_id: id.clone(), low: 0, high, keeps_tombstones_ms, was_cut: false };
            let log = Log { at, topic_id: id, keeps_tombstones_ms };
            let ages = ages || spec.ttl_ms.is_some();
            logs.push(LogNow { store, spec, log, now, ages, leader_epoch: None });
        }
        let partitions: Vec<TopicPartition> = logs.iter().map(|log| log.log.at.clone()).collect();
        if !partitions.is_empty() {
            let ends = patiently(|| self.admin.watermarks(&partitions))?;
            for (log, ends) in logs.iter_mut().zip(ends) {
                (log.now.low, log.leader_epoch) = (ends.low, ends.leader_epoch);
            }
        }
        Ok(logs)
    }

    /// Notes which changelogs were cut since the checkpoint.
    fn look_for_cuts(&self, logs: &mut [LogNow<'_>], checkpoint: Option<&Checkpoint>) -> Result<(), End> {
        let Some(memories) = checkpoint.map(|checkpoint| &checkpoint.changelogs) else { return Ok(()) };
        let remembered = |log: &LogNow<'_>| {
            let of_this_log = |memory: &&LogMemory| {
                memory.topic == log.log.at.topic
                    && memory.id == log.now.topic_id
                    && memory.end <= log.now.high
            };
            let memory = memories.get(log.store).filter(of_this_log)?;
            // Under the leader of then nothing is cut, so most starts need not ask.
            memory.leader_epoch.filter(|had| Some(*had) != log.leader_epoch)?;
            Some((log.log.at.clone(), memory.reached()))
        };
        let (asked, seen): (Vec<usize>, Vec<_>) =
            logs.iter().enumerate().filter_map(|(at, log)| Some((at, remembered(log)?))).unzip();
        if !seen.is_empty() {
            let cut = patiently(|| self.admin.cut(&seen))?;
            asked.into_iter().zip(cut).for_each(|(at, was_cut)| logs[at].now.was_cut = was_cut);
        }
        Ok(())
    }

    fn keep_or_clear(&self, disk: &TaskDisk, name: &str, checkpoint: &Checkpoint) -> Result<(), End> {
        let holder = disk.offsets_row(name)?.and_then(|row| serde_json::from_slice::<Holder>(&row).ok());
        if holder.is_none_or(|holder| holder.incarnation < checkpoint.incarnation) {
            disk.clear(name)?;
        }
        let row = serde_json::to_vec(&Holder { incarnation: self.incarnation });
        let mut batch = disk.batch();
        batch.offsets_row(name, &row.expect("an incarnation serialises"))?;
        batch.write()?;
        Ok(disk.flush(true)?)
    }

    /// Fills all stores with changelogs but those that are mended. Returns the rows of those in memory.
    fn fill_stores(
        &self,
        task: &TaskModel,
        disk: &TaskDisk,
        look: &Look<'_>,
        mends: &BTreeMap<String, From>,
        workers: usize,
        start: Instant,
    ) -> Result<BTreeMap<String, MemoryRows>, End> {
        let filled = || look.logs.iter().filter(|log| !mends.contains_key(log.store));
        let plans: Vec<StorePlan<'_>> =
            filled().map(|log| self.plan(disk, log)).collect::<Result<_, End>>()?;
        // What a copy is needed for is not yet done.
        let needs_copy = mends.values().any(|from| *from == From::Copy);
        if plans.iter().any(StorePlan::writes) && !needs_copy && disk.memory()?.is_some() {
            let mut batch = disk.batch();
            batch.memory(None)?;
            batch.write()?;
            // Files that a fill adds are durable at once.
            disk.flush(true)?;
        }
        let chunk_bytes = usize::try_from(self.chunk_bytes / workers as u64).unwrap_or(usize::MAX);
        let mut progress = Progress::new(self.board, &task.name, &plans, start);
        let mut memory = BTreeMap::new();
        for plan in &plans {
            if let Some(rows) = self.fill(disk, plan, chunk_bytes, &mut progress)? {
                memory.insert(plan.store().to_owned(), rows);
            }
        }
        progress.finish(&plans);
        Ok(memory)
    }

    fn plan<'n>(&self, disk: &TaskDisk, log: &'n LogNow<'n>) -> Result<StorePlan<'n>, End> {
        let whole = log.now.low.min(log.now.high);
        if log.spec.kind == StoreKind::Memory {
            let plan = Plan::Full(Why::InMemory);
            let keeps_ms = log.now.keeps_tombstones_ms;
            return Ok(StorePlan { log, plan, from: whole, since: unix_ms(), keeps_ms });
        }
        let local = disk.offsets_row(log.store)?.and_then(|row| OffsetsRow::decode(&row));
        let plan = match plan(local.as_ref(), &log.now, unix_ms()) {
            Plan::Full(Why::NoLocalState) if disk.was_set_aside() => Plan::Full(Why::Corrupt),
            plan => plan,
        };
        let (from, since, keeps_ms) = match (&plan, &local) {
            // The rows that are here were read by then, and need the tombstones that were there then.
            (Plan::FromLocal { from }, Some(local)) => {
                (*from, local.flushed_unix_ms, log.now.trusts_ms(local))
            }
            (Plan::FromLocal { .. } | Plan::Full(_), _) => (whole, unix_ms(), log.now.keeps_tombstones_ms),
        };
        Ok(StorePlan { log, plan, from, since, keeps_ms })
    }

    /// Reads a store's changelog into it. Returns the rows of a store in memory.
    fn fill(
        &self,
        disk: &TaskDisk,
        of: &StorePlan<'_>,
        chunk_bytes: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Option<MemoryRows>, End> {
        let (name, high, began) = (of.store(), of.log.now.high, Instant::now());
        of.clear(disk)?;
        let read_at = unix_ms();
        let ttl = of.log.spec.ttl_ms.map(|ttl_ms| (ttl_ms, self.clock.unix_ms()));
        let mut memory = (of.log.spec.kind == StoreKind::Memory).then(MemoryRows::default);
        let is_empty = matches!(of.plan, Plan::Full(_));
        let mut fill = Fill::new(disk, name, is_empty, ttl, chunk_bytes);
        let mark = of.mark();
        fill.mark_with(mark.clone());
        let mut failed = None;
        let (next, bytes) = (Cell::new(of.from), Cell::new(0));
        let mut take = |messages: &[Message<'_>]| {
            for message in messages {
                // A row without a key is not ours: compacted topics refuse them.
                let Some(key) = message.key else { continue };
                let row = (key, message.value);
                bytes.set(bytes.get() + (key.len() + message.value.map_or(0, <[u8]>::len)) as u64);
                match &mut memory {
                    Some(rows) => rows.take(row, ttl),
                    None => {
                        fill.at(message.offset);
                        if let Err(error) = fill.take(row) {
                            failed = Some(error);
                            return Err(SystemError::Fatal("restore".into()));
                        }
                    }
                }
            }
            self.go_on()?;
            if let Some(last) = messages.last() {
                next.set(last.offset + 1);
                progress.at(next.get() - of.from);
            }
            Ok(())
        };
        let read = while_it_gets_on(READ_PATIENCE, &|| next.get(), || {
            // After an error it goes on where it was.
            if next.get() >= high {
                return Ok(());
            }
            self.go_on()?;
            self.admin.read_range(&of.log.log.at, next.get(), high, Isolation::ReadCommitted, &mut take)
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        read?;
        if of.is_too_old(unix_ms()) {
            drop(fill);
            warn!(store = name, "reading took longer than the changelog keeps tombstones: reading all of it");
            let plan = Plan::Full(Why::TooOld);
            let (from, keeps_ms) = (of.log.now.low.min(high), of.log.now.keeps_tombstones_ms);
            let whole = StorePlan { log: of.log, plan, from, since: unix_ms(), keeps_ms };
            return self.fill(disk, &whole, chunk_bytes, progress);
        }
        let rows = match &memory {
            Some(rows) => rows.taken(),
            None => fill.finish(&OffsetsRow { offset: high, flushed_unix_ms: read_at, ..mark }.encode())?,
        };
        meters::restored(self.metrics, (progress.task(), name), began.elapsed(), (rows, bytes.get()));
        progress.store_done(high - of.from, rows);
        Ok(memory)
    }

    /// A restore that is told to stop keeps what it has.
    fn go_on(&self) -> Result<(), SystemError> {
        if self.board.is_stopping() { Err(SystemError::Fatal("told to stop".into())) } else { Ok(()) }
    }

    fn has_rows(
        &self,
        disk: &TaskDisk,
        logs: &[LogNow<'_>],
        memory: &BTreeMap<String, MemoryRows>,
    ) -> Result<bool, End> {
        for log in logs {
            let is_empty = match log.spec.kind {
                StoreKind::RocksDb => disk.is_empty(log.store)?,
                StoreKind::Memory => memory.get(log.store).is_none_or(|rows| rows.len() == 0),
            };
            if !is_empty {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Notes on disk which commit its rows are of.
    fn remember(
        &self,
        task: &TaskModel,
        disk: &TaskDisk,
        checkpoint: &Checkpoint,
        is_first: bool,
    ) -> Result<(), End> {
        let memory = memory_of(&self.job.job, &task.name, checkpoint);
        if is_first || disk.memory()?.as_deref() == Some(&memory) {
            return Ok(());
        }
        let mut batch = disk.batch();
        batch.memory(Some(&memory))?;
        batch.write()?;
        Ok(disk.flush(true)?)
    }
}

/// The index that timers have beside their store.
pub(crate) fn index_of_timers(job: &JobSpec) -> Option<(&'static str, &StoreSpec)> {
    job.stores.get(TIMERS_STORE).filter(|_| job.task.timers).map(|timers| (TIMERS_INDEX, timers))
}

/// What vouches for a task's rows on disk.
pub(crate) fn memory_of(job: &JobId, task: &TaskName, checkpoint: &Checkpoint) -> Vec<u8> {
    let (job, task) = (job.to_string(), task.clone());
    LocalMemory { job, task, checkpoint: checkpoint.clone() }.encode()
}

/// A store's changelog as it is found.
struct LogNow<'n> {
    store: &'n str,
    spec: &'n StoreSpec,
    log: Log,
    now: Changelog,
    /// Brokers may delete rows for their age.
    ages: bool,
    /// The leader epoch now: none of what is below `now.high` is of a later one.
    leader_epoch: Option<i32>,
}

impl LogNow<'_> {
    fn memory(&self) -> LogMemory {
        LogMemory {
            topic: self.log.at.topic.clone(),
            id: self.now.topic_id.clone(),
            start: self.now.low,
            end: self.now.high,
            leader_epoch: self.leader_epoch,
        }
    }
}

struct StorePlan<'n> {
    log: &'n LogNow<'n>,
    plan: Plan,
    from: u64,
    /// When the first of its rows was read, unix ms: no tombstone that was there then may be missed.
    since: u64,
    /// For how long after `since` no tombstone is missed, ms.
    keeps_ms: u64,
}

impl StorePlan<'_> {
    /// Takes rows away that are of no use.
    fn clear(&self, disk: &TaskDisk) -> Result<(), End> {
        let Plan::Full(why) = self.plan else { return Ok(()) };
        if self.log.spec.kind == StoreKind::Memory {
            return Ok(());
        }
        if why != Why::NoLocalState {
            warn!(store = self.store(), %why, "local state is of no use: restoring all of the changelog");
        }
        Ok(disk.clear(self.store())?)
    }
    fn store(&self) -> &str {
        self.log.store
    }
    fn high(&self) -> u64 {
        self.log.now.high
    }
    fn writes(&self) -> bool {
        self.log.spec.kind == StoreKind::RocksDb
            && (self.from < self.high() || matches!(self.plan, Plan::Full(_)))
    }
    /// The offsets row of what is there before anything is read.
    fn mark(&self) -> OffsetsRow {
        OffsetsRow {
            topic_id: self.log.now.topic_id.clone(),
            offset: self.from,
            flushed_unix_ms: self.since,
            keeps_tombstones_ms: Some(self.keeps_ms),
        }
    }
    fn is_too_old(&self, now_unix_ms: u64) -> bool {
        let age = now_unix_ms.saturating_sub(self.since);
        matches!(self.plan, Plan::FromLocal { .. }) && age >= self.keeps_ms
    }
}

/// Tries again for a while what may go well later.
pub(crate) fn patiently<R>(ask: impl FnMut() -> Result<R, SystemError>) -> Result<R, SystemError> {
    while_it_gets_on(PATIENCE, &|| 0, ask)
}

/// Tries again what may go well later, until it has stood still for `patience`.
fn while_it_gets_on<R>(
    patience: Duration,
    progress: &dyn Fn() -> u64,
    mut ask: impl FnMut() -> Result<R, SystemError>,
) -> Result<R, SystemError> {
    let mut since = (Instant::now(), progress());
    loop {
        let answer = ask();
        if progress() != since.1 {
            since = (Instant::now(), progress());
        }
        match answer {
            Err(SystemError::Retriable(_)) if since.0.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(100));
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests;
