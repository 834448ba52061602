//! Brings a task's stores and input positions to where its last committed transaction left them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use task_api::system::{Isolation, Message, SystemAdmin, SystemError, TopicPartition};
use task_core::record::{self, Checkpoint, Record, Restored};
use task_core::restore::{Changelog, OffsetsRow, Plan, plan};
use tracing::{debug, info};
use types::{Incarnation, JobSpec, JobTopics, RestoreStatus, StoreSpec, TaskModel, TaskName};

use crate::board::Board;
use crate::end::End;
use crate::stores::disk::{DiskMemory, TaskDisk};
use crate::stores::fill::Fill;

/// Kafka's default of `delete.retention.ms`.
const KEEPS_TOMBSTONES_MS: u64 = 86_400_000;
/// Tasks of a thread that restore at the same time.
const SIDE_BY_SIDE: usize = 4;

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
}

/// A store's changelog.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) at: TopicPartition,
    pub(crate) topic_id: String,
}

/// For how long a store's changelog keeps tombstones, ms.
pub(crate) fn keeps_tombstones_ms(store: &StoreSpec) -> u64 {
    let set = store.changelog_config.get("delete.retention.ms");
    set.and_then(|text| text.parse().ok()).unwrap_or(KEEPS_TOMBSTONES_MS)
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
        let mut topic_ids = BTreeMap::new();
        if !topics.is_empty() {
            for found in patiently(|| self.admin.describe(&topics))? {
                topic_ids.insert(found.topic, found.topic_id);
            }
        }
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let workers = SIDE_BY_SIDE.min(tasks.len());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let at = tasks.iter().position(|t| t.name == task.name).unwrap_or_default();
                        let restored = self
                            .task(task, &highs[at], &topic_ids, workers)
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

    fn task(
        &self,
        task: &TaskModel,
        highs: &[u64],
        topic_ids: &BTreeMap<String, String>,
        workers: usize,
    ) -> Result<RestoredTask, End> {
        let start = Instant::now();
        let checkpoint = self.checkpoint(task, highs[0])?;
        let took_ms = || start.elapsed().as_millis() as u64;
        debug!(task = %task.name, high = highs[0], took_ms = took_ms(), "checkpoint read");
        let mut restored = Restored { checkpoint: highs[0], changelogs: BTreeMap::new() };
        let mut changelogs = BTreeMap::new();
        if self.job.stores.is_empty() {
            return Ok(RestoredTask { disk: None, checkpoint, restored, changelogs });
        }
        let names: Vec<&str> = self.job.stores.keys().map(String::as_str).collect();
        let suffix = self.incarnation.to_string();
        let disk = TaskDisk::open(&self.state, &task.state_entry(), &suffix, &names, self.memory)?;
        debug!(task = %task.name, took_ms = took_ms(), "database open");
        let mut logged = highs[1..].iter();
        let mut plans = Vec::new();
        for (name, store) in &self.job.stores {
            let Some(topic) = &store.changelog else {
                self.keep_or_clear(&disk, name, &checkpoint)?;
                continue;
            };
            let high = *logged.next().expect("the start order gave a watermark for each changelog");
            let Some(topic_id) = topic_ids.get(topic) else {
                return Err(End::Failed(format!("changelog topic {topic} of store {name} does not exist")));
            };
            let log = Log {
                at: TopicPartition { topic: topic.clone(), partition: task.changelog_partition },
                topic_id: topic_id.clone(),
            };
            restored.changelogs.insert(name.clone(), high);
            plans.push(self.plan_store(&disk, name, store, &log, high)?);
            changelogs.insert(name.clone(), log);
        }
        let chunk_bytes = usize::try_from(self.chunk_bytes / workers as u64 / 2).unwrap_or(usize::MAX);
        let mut progress = Progress::new(self.board, &task.name, &plans, start);
        for plan in &plans {
            self.fill(&disk, plan, &changelogs[plan.store], chunk_bytes, &mut progress)?;
        }
        progress.finish(&plans);
        Ok(RestoredTask { disk: Some(Arc::new(disk)), checkpoint, restored, changelogs })
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
        store: &StoreSpec,
        log: &Log,
        high: u64,
    ) -> Result<StorePlan<'n>, End> {
        let ends = patiently(|| self.admin.watermarks(std::slice::from_ref(&log.at)))?;
        let low = ends.first().map_or(0, |w| w.low).min(high);
        let local = disk.offsets_row(name)?.and_then(|row| OffsetsRow::decode(&row));
        let changelog = Changelog {
            topic_id: log.topic_id.clone(),
            low,
            high,
            keeps_tombstones_ms: keeps_tombstones_ms(store),
        };
        let plan = plan(local.as_ref(), &changelog, unix_ms());
        let from = match plan {
            Plan::FromLocal { from } => from,
            Plan::Full(_) => {
                disk.clear(name)?;
                low
            }
        };
        Ok(StorePlan { store: name, plan, from, high })
    }

    fn fill(
        &self,
        disk: &TaskDisk,
        of: &StorePlan<'_>,
        log: &Log,
        chunk_bytes: usize,
        progress: &mut Progress<'_>,
    ) -> Result<(), End> {
        let read_at = unix_ms();
        let mut fill = Fill::new(disk, of.store, matches!(of.plan, Plan::Full(_)), chunk_bytes);
        let mut failed = None;
        let mut take = |messages: &[Message<'_>]| {
            for message in messages {
                // A row without a key is not ours: compacted topics refuse them.
                let Some(key) = message.key else { continue };
                if let Err(error) = fill.take((key, message.value)) {
                    failed = Some(error);
                    return Err(SystemError::Fatal("restore".into()));
                }
            }
            if self.board.is_stopping() {
                return Err(SystemError::Fatal("told to stop".into()));
            }
            if let Some(last) = messages.last() {
                progress.at(last.offset + 1 - of.from);
            }
            Ok(())
        };
        if of.from < of.high {
            // Read once only: what was taken before an error may be taken again, rows are set, not added.
            let read = patiently(|| {
                self.admin.read_range(&log.at, of.from, of.high, Isolation::ReadCommitted, &mut take)
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
            read?;
        }
        let row = OffsetsRow { topic_id: log.topic_id.clone(), offset: of.high, flushed_unix_ms: read_at };
        let rows = fill.finish(&row.encode())?;
        progress.store_done(of.high - of.from, rows);
        Ok(())
    }
}

struct StorePlan<'n> {
    store: &'n str,
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
}

impl<'a> Progress<'a> {
    fn new(board: &'a Board, task: &'a TaskName, plans: &[StorePlan<'_>], start: Instant) -> Progress<'a> {
        let status = RestoreStatus {
            total: plans.iter().map(|p| p.high - p.from).sum(),
            from_local: !plans.is_empty() && plans.iter().all(|p| matches!(p.plan, Plan::FromLocal { .. })),
            ..RestoreStatus::default()
        };
        let progress = Progress { board, task, start, before: 0, status };
        progress.tell();
        progress
    }
    fn tell(&self) {
        self.board.task(self.task, |task| task.restore = Some(self.status.clone()));
    }
    /// So many offsets of the store at hand are read.
    fn at(&mut self, offsets: u64) {
        self.status.done = self.before + offsets;
        self.status.took_ms = self.start.elapsed().as_millis() as u64;
        self.tell();
    }
    fn store_done(&mut self, offsets: u64, rows: u64) {
        self.before += offsets;
        self.status.rows += rows;
        self.at(0);
    }
    fn finish(mut self, plans: &[StorePlan<'_>]) {
        self.status.done = self.status.total;
        self.status.took_ms = self.start.elapsed().as_millis() as u64;
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

/// The wall clock, unix ms.
pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
