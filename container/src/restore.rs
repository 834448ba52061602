//! Brings a task's stores and input positions to where its last committed transaction left them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use task_api::system::{Isolation, Message, SystemAdmin, SystemError, TopicMetadata, TopicPartition};
use task_core::record::{self, Checkpoint, Record, Restored};
use task_core::restore::{Changelog, OffsetsRow, Plan, Why, plan};
use tracing::{debug, info, warn};
use types::{Incarnation, JobSpec, JobTopics, RestoreStatus, StoreKind, StoreSpec, TaskModel, TaskName};

use crate::board::Board;
use crate::clock::{Clock, unix_ms};
use crate::end::End;
use crate::stores::disk::{DiskMemory, TaskDisk};
use crate::stores::fill::Fill;
use crate::stores::memory::MemoryRows;

/// Tasks of a thread that restore at the same time.
pub(crate) const SIDE_BY_SIDE: usize = 4;
/// How often progress is told.
const TELL_MS: u64 = 100;

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
}

/// A store's changelog.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) at: TopicPartition,
    pub(crate) topic_id: String,
    /// For how long the topic keeps tombstones, ms, by its own word.
    pub(crate) keeps_tombstones_ms: u64,
}

/// What is known of a changelog topic.
struct Topic {
    id: String,
    keeps_tombstones_ms: u64,
}

/// The offsets row of a store without changelog: it is good as long as no other folder was used since.
#[derive(Serialize, Deserialize)]
struct Holder {
    incarnation: Incarnation,
}

impl Restore<'_> {
    /// Restores every task; `highs` are their watermarks, the checkpoints' first.
    pub(crate) fn all(&self, tasks: &[TaskModel], highs: &[Vec<u64>]) -> Result<Vec<RestoredTask>, End> {
        let topics: Vec<String> = self.job.stores.values().filter_map(|s| s.changelog.clone()).collect();
        let topics = self.describe(&topics)?;
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let workers = SIDE_BY_SIDE.min(tasks.len());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let at = tasks.iter().position(|t| t.name == task.name).unwrap_or_default();
                        let restored = self
                            .task(task, &highs[at], &topics, workers)
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
                Ok((topic.clone(), Topic { id: topic_id.clone(), keeps_tombstones_ms }))
            };
            found.iter().map(of).collect()
        })?)
    }

    fn task(
        &self,
        task: &TaskModel,
        highs: &[u64],
        topics: &BTreeMap<String, Topic>,
        workers: usize,
    ) -> Result<RestoredTask, End> {
        let start = Instant::now();
        let checkpoint = self.checkpoint(task, highs[0])?;
        let took_ms = || start.elapsed().as_millis() as u64;
        debug!(task = %task.name, high = highs[0], took_ms = took_ms(), "checkpoint read");
        let mut restored = Restored { checkpoint: highs[0], changelogs: BTreeMap::new() };
        let mut changelogs = BTreeMap::new();
        if self.job.stores.is_empty() {
            let memory = BTreeMap::new();
            return Ok(RestoredTask { disk: None, checkpoint, restored, changelogs, memory });
        }
        let stores: Vec<_> = self.job.stores.iter().map(|(name, spec)| (name.as_str(), spec)).collect();
        let suffix = self.incarnation.to_string();
        let disk = TaskDisk::open(&self.state, &task.state_entry(), &suffix, &stores, self.memory)?;
        debug!(task = %task.name, took_ms = took_ms(), "database open");
        let mut logged = highs[1..].iter();
        let mut plans = Vec::new();
        for (name, store) in &self.job.stores {
            let Some(topic) = &store.changelog else {
                if store.kind == StoreKind::RocksDb {
                    self.keep_or_clear(&disk, name, &checkpoint)?;
                }
                continue;
            };
            let high = *logged.next().expect("the start order gave a watermark for each changelog");
            let Some(known) = topics.get(topic) else {
                return Err(End::Failed(format!("changelog topic {topic} of store {name} does not exist")));
            };
            let log = Log {
                at: TopicPartition { topic: topic.clone(), partition: task.changelog_partition },
                topic_id: known.id.clone(),
                keeps_tombstones_ms: known.keeps_tombstones_ms,
            };
            restored.changelogs.insert(name.clone(), high);
            plans.push(self.plan_store(&disk, name, store, &log, high)?);
            changelogs.insert(name.clone(), log);
        }
        let chunk_bytes = usize::try_from(self.chunk_bytes / workers as u64).unwrap_or(usize::MAX);
        let mut progress = Progress::new(self.board, &task.name, &plans, start);
        let mut memory = BTreeMap::new();
        for plan in &plans {
            if let Some(rows) = self.fill(&disk, plan, &changelogs[plan.store], chunk_bytes, &mut progress)? {
                memory.insert(plan.store.to_owned(), rows);
            }
        }
        progress.finish(&plans);
        Ok(RestoredTask { disk: Some(Arc::new(disk)), checkpoint, restored, changelogs, memory })
    }

    /// The task's last committed checkpoint below `high`.
    fn checkpoint(&self, task: &TaskModel, high: u64) -> Result<Checkpoint, End> {
        let at = TopicPartition {
            topic: JobTopics::of(&self.job.job).checkpoint,
            partition: task.changelog_partition,
        };
        let mut last = None;
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
        patiently(|| self.admin.read_range(&at, 0, high, Isolation::ReadCommitted, &mut take))?;
        Ok(last.unwrap_or_default())
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

    fn plan_store<'n>(
        &self,
        disk: &TaskDisk,
        name: &'n str,
        store: &'n StoreSpec,
        log: &Log,
        high: u64,
    ) -> Result<StorePlan<'n>, End> {
        let ends = patiently(|| self.admin.watermarks(std::slice::from_ref(&log.at)))?;
        let low = ends.first().map_or(0, |w| w.low).min(high);
        if store.kind == StoreKind::Memory {
            return Ok(StorePlan {
                store: name,
                spec: store,
                plan: Plan::Full(Why::InMemory),
                from: low,
                high,
            });
        }
        let local = disk.offsets_row(name)?.and_then(|row| OffsetsRow::decode(&row));
        let changelog = Changelog {
            topic_id: log.topic_id.clone(),
            low,
            high,
            keeps_tombstones_ms: log.keeps_tombstones_ms,
        };
        let plan = match plan(local.as_ref(), &changelog, unix_ms()) {
            Plan::Full(Why::NoLocalState) if disk.was_set_aside() => Plan::Full(Why::Corrupt),
            plan => plan,
        };
        let from = match plan {
            Plan::FromLocal { from } => from,
            Plan::Full(why) => {
                if why != Why::NoLocalState {
                    warn!(store = name, %why, "local state is of no use: restoring all of the changelog");
                }
                disk.clear(name)?;
                low
            }
        };
        Ok(StorePlan { store: name, spec: store, plan, from, high })
    }

    /// Reads a store's changelog into it. Returns the rows of a store in memory.
    fn fill(
        &self,
        disk: &TaskDisk,
        of: &StorePlan<'_>,
        log: &Log,
        chunk_bytes: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Option<MemoryRows>, End> {
        let read_at = unix_ms();
        let ttl = of.spec.ttl_ms.map(|ttl_ms| (ttl_ms, self.clock.unix_ms()));
        let mut memory = (of.spec.kind == StoreKind::Memory).then(MemoryRows::default);
        let is_empty = matches!(of.plan, Plan::Full(_));
        let mut fill = Fill::new(disk, of.store, is_empty, ttl, chunk_bytes);
        let mut failed = None;
        let next = Cell::new(of.from);
        let mut take = |messages: &[Message<'_>]| {
            for message in messages {
                // A row without a key is not ours: compacted topics refuse them.
                let Some(key) = message.key else { continue };
                let row = (key, message.value);
                match &mut memory {
                    Some(rows) => rows.take(row, ttl),
                    None => {
                        if let Err(error) = fill.take(row) {
                            failed = Some(error);
                            return Err(SystemError::Fatal("restore".into()));
                        }
                    }
                }
            }
            if self.board.is_stopping() {
                return Err(SystemError::Fatal("told to stop".into()));
            }
            if let Some(last) = messages.last() {
                next.set(last.offset + 1);
                progress.at(next.get() - of.from);
            }
            Ok(())
        };
        let read = patiently(|| {
            // After an error it goes on where it was.
            if next.get() >= of.high {
                return Ok(());
            }
            self.admin.read_range(&log.at, next.get(), of.high, Isolation::ReadCommitted, &mut take)
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        read?;
        let rows = match &memory {
            Some(rows) => rows.taken(),
            None => {
                let offset = of.high;
                let row = OffsetsRow { topic_id: log.topic_id.clone(), offset, flushed_unix_ms: read_at };
                fill.finish(&row.encode())?
            }
        };
        progress.store_done(of.high - of.from, rows);
        Ok(memory)
    }
}

struct StorePlan<'n> {
    store: &'n str,
    spec: &'n StoreSpec,
    plan: Plan,
    from: u64,
    high: u64,
}

/// One task's restore, told to the board.
struct Progress<'a> {
    board: &'a Board,
    task: &'a TaskName,
    start: Instant,
    before: u64,
    status: RestoreStatus,
    next_tell_ms: u64,
}

impl<'a> Progress<'a> {
    fn new(board: &'a Board, task: &'a TaskName, plans: &[StorePlan<'_>], start: Instant) -> Progress<'a> {
        let why = |p: &StorePlan<'_>| match p.plan {
            Plan::FromLocal { .. } => None,
            Plan::Full(why) => Some(format!("{}: {why}", p.store)),
        };
        let status = RestoreStatus {
            total: plans.iter().map(|p| p.high - p.from).sum(),
            from_local: !plans.is_empty() && plans.iter().all(|p| matches!(p.plan, Plan::FromLocal { .. })),
            reason: plans.iter().filter_map(why).collect::<Vec<_>>().join("; "),
            ..RestoreStatus::default()
        };
        let progress = Progress { board, task, start, before: 0, status, next_tell_ms: 0 };
        progress.tell();
        progress
    }
    fn tell(&self) {
        self.board.task(self.task, |task| task.restore = Some(self.status.clone()));
    }
    /// So many offsets of the store at hand are read.
    fn at(&mut self, offsets: u64) {
        let took_ms = self.start.elapsed().as_millis() as u64;
        if took_ms < self.next_tell_ms {
            return;
        }
        self.next_tell_ms = took_ms + TELL_MS;
        self.status.done = self.before + offsets;
        self.status.took_ms = took_ms;
        self.status.eta_ms = eta_ms(self.status.done, self.status.total, took_ms);
        self.tell();
    }
    fn store_done(&mut self, offsets: u64, rows: u64) {
        self.before += offsets;
        self.status.rows += rows;
        self.next_tell_ms = 0;
        self.at(0);
    }
    fn finish(mut self, plans: &[StorePlan<'_>]) {
        self.status.done = self.status.total;
        self.status.took_ms = self.start.elapsed().as_millis() as u64;
        self.status.eta_ms = None;
        self.tell();
        let RestoreStatus { rows, total, from_local, took_ms, .. } = self.status;
        let why: Vec<String> = plans
            .iter()
            .map(|p| match &p.plan {
                Plan::FromLocal { from } => {
                    format!("{}: local state, changelog from {from} to {}", p.store, p.high)
                }
                Plan::Full(why) => format!("{}: all of the changelog to {} ({why})", p.store, p.high),
            })
            .collect();
        info!(task = %self.task, rows, offsets = total, from_local, took_ms, "restored: {}", why.join("; "));
    }
}

/// How long the rest takes at the pace so far.
fn eta_ms(done: u64, total: u64, took_ms: u64) -> Option<u64> {
    let left = u128::from(total.saturating_sub(done));
    if left == 0 {
        return None;
    }
    let eta = (u128::from(took_ms) * left).checked_div(u128::from(done))?;
    Some(u64::try_from(eta).unwrap_or(u64::MAX))
}

/// Tries again for a while what may go well later.
pub(crate) fn patiently<R>(mut ask: impl FnMut() -> Result<R, SystemError>) -> Result<R, SystemError> {
    let start = Instant::now();
    loop {
        match ask() {
            Err(SystemError::Retriable(_)) if start.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(100));
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests;
