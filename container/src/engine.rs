//! One task thread at work: batches to tasks, windows, commits.
//!
//! Per message there is no allocation, lock, system call or look at the clock of ours: a batch's source numbers
//! index a table, `process` is called directly, and two flags are looked at.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use task_api::system::{Message, SystemAdmin, SystemConsumer, SystemError, TopicHandle, TopicPartition};
use task_api::{IncomingMessageEnvelope, StreamTask, TaskCoordinator, TaskError};
use task_core::commit::{Due, Pending, Schedule};
use task_core::record::{Checkpoint, Restored};
use tracing::warn;
use types::{Delivery, Incarnation, SystemStreamPartition, TaskName, Timestamp};

use crate::board::Board;
use crate::carry::Carry;
use crate::collector::Outputs;
use crate::end::End;
use crate::points;
use crate::stores::Store;
use crate::stores::disk::TaskDisk;

/// The longest wait for messages: a stop is seen within it.
const LONGEST_POLL: Duration = Duration::from_millis(100);
/// How often the board is written.
const REPORT_MS: u64 = 200;

/// One assigned partition.
pub(crate) struct Source {
    /// Its task's place.
    pub(crate) task: usize,
    pub(crate) partition: SystemStreamPartition,
    /// The last offset processed.
    pub(crate) last: Option<u64>,
    /// The last offset in a checkpoint.
    pub(crate) committed: Option<u64>,
}

/// A system's consumer and what it reads.
pub(crate) struct Reader {
    pub(crate) consumer: Box<dyn SystemConsumer>,
    pub(crate) sources: Vec<Source>,
}

/// One store of a task.
pub(crate) struct TaskStore {
    pub(crate) store: Rc<RefCell<Store>>,
    /// None for a store without changelog.
    pub(crate) changelog: Option<ChangelogOut>,
}

/// Where a store's rows are logged.
pub(crate) struct ChangelogOut {
    pub(crate) handle: TopicHandle,
    pub(crate) at: TopicPartition,
    pub(crate) topic_id: String,
}

/// One task.
pub(crate) struct Task<T> {
    pub(crate) name: TaskName,
    pub(crate) code: T,
    pub(crate) stores: Vec<TaskStore>,
    pub(crate) disk: Option<Arc<TaskDisk>>,
    /// Its partition of the checkpoint topic and of the changelogs.
    pub(crate) partition: i32,
    /// As last committed.
    pub(crate) checkpoint: Checkpoint,
    /// Where its restore ended, until a checkpoint has told it.
    pub(crate) restored: Option<Restored>,
    pub(crate) processed: u64,
}

/// Times of a thread.
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.0.elapsed().as_millis() as u64)
    }
}

/// One task thread.
pub(crate) struct Engine<T> {
    pub(crate) incarnation: Incarnation,
    pub(crate) delivery: Delivery,
    pub(crate) thread: usize,
    pub(crate) board: Arc<Board>,
    /// The home system's.
    pub(crate) admin: Arc<dyn SystemAdmin>,
    pub(crate) readers: Vec<Reader>,
    pub(crate) tasks: Vec<Task<T>>,
    pub(crate) outputs: Outputs,
    pub(crate) checkpoints: TopicHandle,
    pub(crate) clock: Clock,
    pub(crate) schedule: Schedule,
    /// `task.window`.
    pub(crate) window_ms: Option<u64>,
    /// Set by a store whose cache is full.
    pub(crate) full: Rc<Cell<bool>>,
    pub(crate) work: Work,
}

/// What a thread has at hand.
#[derive(Default)]
pub(crate) struct Work {
    coordinator: TaskCoordinator,
    /// Messages behind one after which a commit is due.
    carry: Carry,
    pub(crate) commit_requested: bool,
    task_error: Option<(TaskName, TaskError)>,
    /// Messages processed since the last commit.
    pub(crate) processed: u64,
    /// Messages processed and transactions committed since the last report.
    unreported: u64,
    pub(crate) commits: u64,
    next_window: Timestamp,
    next_report: Timestamp,
    next_warning: Timestamp,
}

impl<T: StreamTask> Engine<T> {
    /// Works until the container is told to stop, or something fails.
    ///
    /// # Errors
    /// What failed; nothing since the last commit is committed.
    pub(crate) fn run(&mut self) -> Result<(), End> {
        let mut ended = self.work().and_then(|()| self.close());
        if let Err(End::Failed(why)) = &ended {
            match self.outputs.abort() {
                Ok(()) => {}
                // An error that a newer owner caused may come as any other; this one tells them apart.
                Err(SystemError::Fenced(fenced)) => {
                    ended = Err(End::Fenced(format!("{fenced} (first: {why})")))
                }
                Err(error) => warn!(%error, "cannot abort the transaction: the next owner will"),
            }
        }
        self.report(self.clock.now(), true);
        ended
    }

    fn work(&mut self) -> Result<(), End> {
        self.work.next_window = self.clock.now().plus(self.window_ms.unwrap_or(0));
        loop {
            let now = self.clock.now();
            self.windows(now)?;
            let stopping = self.board.is_stopping();
            if stopping {
                self.board.phase(self.thread, types::ContainerPhase::Stopping);
            }
            let pending = self.pending(stopping);
            if let Some(due) = self.schedule.due(now, pending) {
                self.commit(due, pending, now)?;
            }
            if stopping {
                return Ok(());
            }
            self.report(now, false);
            if self.work.carry.is_empty() { self.poll(now, pending)? } else { self.take_carried()? }
        }
    }

    fn close(&mut self) -> Result<(), End> {
        let mut ended = Ok(());
        for task in &mut self.tasks {
            if let Err(error) = task.code.close() {
                ended = Err(End::Failed(format!("close of {}: {error}", task.name)));
            }
        }
        ended
    }

    /// Fetches and processes for as long as nothing else is due.
    fn poll(&mut self, now: Timestamp, pending: Pending) -> Result<(), End> {
        let mut until = now.0 + LONGEST_POLL.as_millis() as u64;
        if pending.anything {
            until = until.min(self.schedule.next().0);
        }
        if self.window_ms.is_some() {
            until = until.min(self.work.next_window.0);
        }
        let timeout = Duration::from_millis(until.saturating_sub(now.0)) / self.readers.len().max(1) as u32;
        for at in 0..self.readers.len() {
            let Reader { consumer, sources } = &mut self.readers[at];
            let (tasks, outputs, work, full) =
                (&mut self.tasks, &mut self.outputs, &mut self.work, &*self.full);
            let polled = consumer.poll(timeout, &mut |messages| {
                let done = if work.carry.is_empty() && !work.coordinator.is_set() && !full.get() {
                    process(messages, sources, tasks, outputs, work, full)?
                } else {
                    0
                };
                work.carry.add(at, &messages[done..]);
                Ok(())
            });
            match polled {
                Ok(_) => {}
                Err(error) if work.task_error.is_some() => return Err(self.task_failure(error)),
                Err(SystemError::Retriable(error)) => {
                    if now >= work.next_warning {
                        warn!(%error, "cannot read now: trying again");
                        work.next_warning = now.plus(10_000);
                    }
                    std::thread::sleep(LONGEST_POLL);
                }
                Err(error) => return Err(End::from(error).during("reading")),
            }
        }
        Ok(())
    }

    /// Processes carried messages, until one makes a commit due.
    fn take_carried(&mut self) -> Result<(), End> {
        let mut carry = std::mem::take(&mut self.work.carry);
        let mut failed = None;
        while let Some((reader, message)) = carry.pop() {
            let sources = &mut self.readers[reader].sources;
            let one = std::slice::from_ref(&message);
            if let Err(error) =
                process(one, sources, &mut self.tasks, &mut self.outputs, &mut self.work, &self.full)
            {
                failed = Some(error);
                break;
            }
            if self.work.coordinator.is_set() || self.full.get() {
                break;
            }
        }
        self.work.carry = carry;
        failed.map_or(Ok(()), |error| Err(self.task_failure(error)))
    }

    /// Why a task's method failed: its own error, unless it was given one by a system.
    fn task_failure(&mut self, error: SystemError) -> End {
        match (self.outputs.failure(), self.work.task_error.take()) {
            (Some(system), _) => End::from(system).during("sending"),
            (None, Some((task, error))) => End::Failed(format!("{task} failed: {error}")),
            (None, None) => End::from(error),
        }
    }

    fn windows(&mut self, now: Timestamp) -> Result<(), End> {
        let Some(every) = self.window_ms.filter(|_| now >= self.work.next_window) else { return Ok(()) };
        // What a pause has missed is not made up for.
        let missed = now.since(self.work.next_window) / every.max(1);
        self.work.next_window = self.work.next_window.plus((missed + 1) * every.max(1));
        for at in 0..self.tasks.len() {
            let task = &mut self.tasks[at];
            if let Err(error) = task.code.window(&mut self.outputs, &mut self.work.coordinator) {
                self.work.task_error = Some((task.name.clone(), error));
                return Err(self.task_failure(SystemError::Fatal("window".into())));
            }
        }
        Ok(())
    }

    /// What has happened since the last commit.
    fn pending(&mut self, stopping: bool) -> Pending {
        let (commit, shutdown) = self.work.coordinator.take();
        self.work.commit_requested |= commit;
        if shutdown {
            self.board.stop();
        }
        let mut pending = Pending {
            anything: self.work.processed > 0 || self.outputs.sent > 0,
            cache_full: self.full.get(),
            requested: self.work.commit_requested,
            stopping,
            ..Pending::default()
        };
        for store in self.tasks.iter().flat_map(|task| &task.stores) {
            let mut store = store.store.borrow_mut();
            let cache = store.cache();
            pending.anything |= cache.dirty_rows() > 0;
            pending.clean_rows_full |= cache.wants_flush();
            pending.unflushed |= cache.rows_not_on_disk() > 0;
        }
        pending
    }

    /// Tells the board, now and then.
    fn report(&mut self, now: Timestamp, at_once: bool) {
        if now < self.work.next_report && !at_once {
            return;
        }
        self.work.next_report = now.plus(REPORT_MS);
        self.board.add(std::mem::take(&mut self.work.unreported), std::mem::take(&mut self.work.commits));
        for (at, task) in self.tasks.iter().enumerate() {
            let mut lag = Some(0);
            for reader in &self.readers {
                for (n, source) in reader.sources.iter().enumerate().filter(|(_, s)| s.task == at) {
                    lag = lag.zip(reader.consumer.lag(n, source.last)).map(|(sum, one)| sum + one);
                }
            }
            let processed = task.processed;
            self.board.task(&task.name, |status| {
                status.lag = lag;
                status.processed = processed;
            });
        }
    }
}

/// Processes messages until a commit is wished for; returns how many.
fn process<T: StreamTask>(
    messages: &[Message<'_>],
    sources: &mut [Source],
    tasks: &mut [Task<T>],
    outputs: &mut Outputs,
    work: &mut Work,
    full: &Cell<bool>,
) -> Result<usize, SystemError> {
    let mut done = 0;
    let watched = points::is_armed("process");
    for message in messages {
        let source = &mut sources[message.source];
        let task = &mut tasks[source.task];
        let envelope = IncomingMessageEnvelope {
            source: &source.partition,
            offset: message.offset,
            key: message.key,
            value: message.value,
            timestamp_ms: message.timestamp_ms,
        };
        if let Err(error) = task.code.process(&envelope, outputs, &mut work.coordinator) {
            let text = format!(
                "message {} of {}.{}: {error}",
                message.offset, source.partition.stream, source.partition.partition
            );
            work.task_error = Some((task.name.clone(), text.into()));
            return Err(SystemError::Fatal("process".into()));
        }
        source.last = Some(message.offset);
        task.processed += 1;
        done += 1;
        if watched {
            points::at("process");
        }
        if work.coordinator.is_set() || full.get() {
            break;
        }
    }
    work.processed += done as u64;
    work.unreported += done as u64;
    Ok(done)
}

/// The commit of one thread; see `task_core::commit` for the order.
impl<T: StreamTask> Engine<T> {
    fn commit(&mut self, due: Due, pending: Pending, now: Timestamp) -> Result<(), End> {
        crate::transaction::commit(self, due, pending, now).map_err(|end| end.during("commit"))
    }
}
