//! One task thread at work: batches to tasks, windows, timers, commits.
//!
//! Per message there is no allocation, lock, system call or look at the clock of ours: a batch is cut into runs of one
//! partition, each run goes to its task in one call, and two flags are looked at after each message.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use task_api::system::{Message, SystemAdmin, SystemError, TopicHandle};
use task_api::{FailedMessage, MessageBatch, StreamTask, TaskClock, TaskCoordinator, Timers};
use task_core::commit::{Due, Pending, Schedule};
use task_core::record::{Checkpoint, Restored};
use tracing::{info, warn};
use types::{Incarnation, JobId, TaskName, Timestamp};

use crate::board::Board;
use crate::clock::Clock;
use crate::collector::Outputs;
use crate::end::End;
use crate::failures::{Failed, Failures};
use crate::inputs::{Inputs, Source};
use crate::meters::{TaskMeters, ThreadMeters};
use crate::points;
use crate::restore::Log;
use crate::stores::Store;
use crate::stores::disk::TaskDisk;

/// The longest wait for messages: a stop is seen within it.
const LONGEST_POLL_MS: u64 = 100;
/// The longest wait while some inputs wait for what may come of others.
const CHOOSING_MS: u64 = 5;
/// How many slices of held messages a task is given before others have their turn.
const HELD_SLICES: usize = 4;
/// How often the board is written.
const REPORT_MS: u64 = 200;
/// How often systems are told what is committed.
const TELL_MS: u64 = 1_000;
/// How often it is looked whether inputs stand still.
const LOOK_MS: u64 = 1_000;
/// How long the end waits until they know.
const LAST_TELL: Duration = Duration::from_secs(1);

/// One store of a task.
pub(crate) struct TaskStore {
    pub(crate) store: Rc<RefCell<Store>>,
    /// None for a store without changelog.
    pub(crate) changelog: Option<ChangelogOut>,
}

/// Where a store's rows are logged.
pub(crate) struct ChangelogOut {
    pub(crate) handle: TopicHandle,
    pub(crate) log: Log,
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
    pub(crate) timers: Option<Timers>,
    /// All its inputs are over, and it knows.
    pub(crate) ended: bool,
    pub(crate) meters: TaskMeters,
}

/// One task thread.
pub(crate) struct Engine<T> {
    pub(crate) job: JobId,
    pub(crate) incarnation: Incarnation,
    pub(crate) thread: usize,
    pub(crate) board: Arc<Board>,
    /// The home system's.
    pub(crate) admin: Arc<dyn SystemAdmin>,
    pub(crate) inputs: Inputs,
    pub(crate) tasks: Vec<Task<T>>,
    pub(crate) outputs: Outputs,
    pub(crate) checkpoints: TopicHandle,
    pub(crate) clock: Clock,
    /// What tasks read the time from.
    pub(crate) task_clock: TaskClock,
    pub(crate) schedule: Schedule,
    /// `task.window`.
    pub(crate) window_ms: Option<u64>,
    pub(crate) failures: Failures,
    pub(crate) meters: ThreadMeters,
    pub(crate) work: Work,
}

/// What a thread has at hand.
#[derive(Default)]
pub(crate) struct Work {
    /// Set by a store whose cache is full: a commit must come before the next message.
    pub(crate) full: Rc<Cell<bool>>,
    coordinator: TaskCoordinator,
    pub(crate) commit_requested: bool,
    /// Why a task's method made the thread end; told to systems as an error of theirs.
    pub(crate) failed: Option<End>,
    /// Messages processed since the last commit.
    pub(crate) processed: u64,
    /// Messages processed and transactions committed since the last report.
    unreported: u64,
    pub(crate) commits: u64,
    next_window: Timestamp,
    next_report: Timestamp,
    /// Something was committed since systems were told.
    pub(crate) untold: bool,
    next_tell: Timestamp,
    pub(crate) next_warning: Timestamp,
    next_look: Timestamp,
    /// Every input of every task is over; none if nobody has looked yet.
    over: Option<bool>,
    /// What comes is held, because the thread is to stop.
    pub(crate) holding: bool,
}

impl Work {
    pub(crate) fn new(full: Rc<Cell<bool>>) -> Work {
        Work { full, ..Work::default() }
    }

    /// Whether a commit must come before the next message.
    pub(crate) fn must_commit(&self) -> bool {
        self.full.get() || self.coordinator.is_set()
    }
}

impl<T: StreamTask> Engine<T> {
    /// Works until the container is told to stop, every input is over, or something fails.
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
        if ended.is_ok() && std::mem::take(&mut self.work.untold) {
            // What is told last is what tools show until the job runs again.
            self.inputs.tell_committed(LAST_TELL);
        }
        self.report(self.clock.now(), true);
        ended
    }

    fn work(&mut self) -> Result<(), End> {
        self.work.next_window = self.clock.now().plus(self.window_ms.unwrap_or(0));
        self.inputs.wake_this_thread();
        // A start that was decided, such as the newest message, is decided once.
        self.work.commit_requested |= self.inputs.have_moved();
        loop {
            let now = self.clock.now();
            self.task_clock.set(self.clock.unix_ms());
            if let Some(what) = self.inputs.topic_made_again() {
                return Err(End::Failed(format!("reading: {what}")));
            }
            self.windows(now)?;
            self.timers()?;
            self.complete(false)?;
            let over = self.end_streams()?;
            let mut pending = self.pending(over, now);
            let stopping = pending.stopping;
            if stopping && !over {
                self.board.phase(self.thread, types::ContainerPhase::Stopping);
                self.settle(now)?;
                pending.anything |= self.inputs.have_moved();
            }
            if let Some(due) = self.schedule.due(now, pending) {
                self.commit(due, pending, now)?;
            }
            if stopping {
                return Ok(());
            }
            self.report(now, false);
            self.inputs.arrange(now).map_err(|error| End::from(error).during("reading"))?;
            let took = self.take_held(now)?;
            if !self.work.must_commit() {
                let patience = if took { Duration::ZERO } else { self.patience(now, pending) };
                self.poll(now, patience)?;
            }
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

    /// How long to wait for messages if nothing comes.
    fn patience(&self, now: Timestamp, pending: Pending) -> Duration {
        let mut wait = LONGEST_POLL_MS;
        if pending.anything {
            wait = wait.min(self.schedule.next().since(now));
        }
        if self.window_ms.is_some() {
            wait = wait.min(self.work.next_window.since(now));
        }
        let unix_ms = self.clock.unix_ms();
        for due in self.tasks.iter().filter_map(|task| task.timers.as_ref()?.next_due()) {
            wait = wait.min(due.saturating_sub(unix_ms));
        }
        if self.inputs.any_waits() {
            wait = wait.min(CHOOSING_MS);
        }
        Duration::from_millis(wait)
    }

    /// Gives tasks what was fetched for them before; returns whether one took anything.
    fn take_held(&mut self, now: Timestamp) -> Result<bool, End> {
        let mut any = false;
        let choosing = self.inputs.are_chosen();
        for reader in &mut self.inputs.readers {
            for source in reader.sources.iter_mut().filter(|source| !source.waits && !source.held.is_empty())
            {
                for _ in 0..HELD_SLICES {
                    if self.work.must_commit() {
                        return Ok(true);
                    }
                    let mut hands = Hands {
                        tasks: &mut self.tasks,
                        outputs: &mut self.outputs,
                        work: &mut self.work,
                        failures: &self.failures,
                        choosing,
                        now,
                    };
                    let held = std::mem::take(&mut source.held);
                    let messages = held.messages();
                    let (taken, shown) = (hands.give(source, &messages), messages.len());
                    source.held = held;
                    let taken =
                        taken.map_err(|error| self.work.failed.take().unwrap_or_else(|| End::from(error)))?;
                    source.held.took(taken);
                    any |= taken > 0;
                    if taken < shown || source.held.is_empty() {
                        break;
                    }
                }
            }
        }
        Ok(any)
    }

    fn windows(&mut self, now: Timestamp) -> Result<(), End> {
        let Some(every) = self.window_ms.filter(|_| now >= self.work.next_window) else { return Ok(()) };
        // What a pause has missed is not made up for.
        let missed = now.since(self.work.next_window) / every.max(1);
        self.work.next_window = self.work.next_window.plus((missed + 1) * every.max(1));
        for task in self.tasks.iter_mut().filter(|task| !task.ended) {
            if let Err(error) = task.code.window(&mut self.outputs, &mut self.work.coordinator) {
                return Err(unforgiven(&mut self.outputs, &task.name, "window", &error));
            }
        }
        Ok(())
    }

    /// Lets every timer go off that is due, in the order of their times within each task.
    fn timers(&mut self) -> Result<(), End> {
        let unix_ms = self.task_clock.now_unix_ms();
        for task in &mut self.tasks {
            let Some(timers) = &task.timers else { continue };
            // Whatever is set while these go off waits for the next round, so that inputs get their turn.
            while let Some((key, due)) = timers.take_due(unix_ms)? {
                let done = task.code.timer(&key, due, &mut self.outputs, &mut self.work.coordinator);
                if let Err(error) = done {
                    self.failures.judge(&task.name, &Failed::Timer(&key, due), error, &mut self.outputs)?;
                }
                if self.work.full.get() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Lets tasks finish what they have in flight: what is done, or, with `all`, everything.
    fn complete(&mut self, all: bool) -> Result<(), End> {
        for task in &mut self.tasks {
            loop {
                let before = task.code.in_flight();
                if before == 0 {
                    break;
                }
                match task.code.complete(all, &mut self.outputs, &mut self.work.coordinator) {
                    Ok(()) => break,
                    // Leaving out what is not named, or is still there, would come round for ever.
                    Err(error) if !error.is::<FailedMessage>() || task.code.in_flight() >= before => {
                        return Err(unforgiven(&mut self.outputs, &task.name, "complete", &error));
                    }
                    Err(error) => {
                        self.failures.judge(&task.name, &Failed::Named, error, &mut self.outputs)?
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells tasks whose inputs are all over; returns whether every task's are.
    fn end_streams(&mut self) -> Result<bool, End> {
        let any = self.inputs.look_for_ends();
        if let Some(over) = self.work.over.filter(|_| !any) {
            return Ok(over);
        }
        for at in 0..self.tasks.len() {
            if self.tasks[at].ended || !self.inputs.task_ended(at) {
                continue;
            }
            self.complete(true)?;
            let task = &mut self.tasks[at];
            task.ended = true;
            info!(task = %task.name, processed = task.processed, "its inputs are over");
            if let Err(error) = task.code.end_of_stream(&mut self.outputs, &mut self.work.coordinator) {
                return Err(unforgiven(&mut self.outputs, &task.name, "end of stream", &error));
            }
        }
        let over = self.tasks.iter().all(|task| task.ended);
        self.work.over = Some(over);
        Ok(over)
    }

    /// What has happened since the last commit; the thread stops if its inputs are `over`, if it was told to, or if a
    /// task wished for it: then no further message is processed.
    fn pending(&mut self, over: bool, now: Timestamp) -> Pending {
        let (commit, shutdown) = self.work.coordinator.take();
        self.work.commit_requested |= commit;
        if shutdown {
            self.board.stop();
        }
        let stopping = over || self.board.is_stopping();
        let mut pending = Pending {
            anything: self.work.processed > 0 || self.outputs.sent > 0,
            cache_full: self.work.full.get(),
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
        if !pending.anything && (stopping || pending.requested || now >= self.schedule.next()) {
            pending.anything = self.inputs.have_moved();
        }
        pending
    }

    /// Tells the board, now and then.
    fn report(&mut self, now: Timestamp, at_once: bool) {
        if now < self.work.next_report && !at_once {
            return;
        }
        self.work.next_report = now.plus(REPORT_MS);
        if self.work.untold && now >= self.work.next_tell {
            (self.work.untold, self.work.next_tell) = (false, now.plus(TELL_MS));
            self.inputs.tell_committed(Duration::ZERO);
        }
        if now >= self.work.next_look {
            self.work.next_look = now.plus(LOOK_MS);
            self.inputs.tell_standing(now);
        }
        self.board.add(std::mem::take(&mut self.work.unreported), std::mem::take(&mut self.work.commits));
        for (at, task) in self.tasks.iter().enumerate() {
            let lag = self.inputs.lag(at);
            let processed = task.processed;
            task.meters.report(processed, lag);
            self.board.task(&task.name, |status| {
                status.lag = lag;
                status.processed = processed;
            });
        }
    }

    /// The commit of one thread; see `task_core::commit` for the order.
    fn commit(&mut self, due: Due, pending: Pending, now: Timestamp) -> Result<(), End> {
        // Every position that is committed has had its effects.
        self.complete(true)?;
        crate::transaction::commit(self, due, pending, now).map_err(|end| end.during("commit"))
    }
}

/// Why a method failed whose errors no policy forgives.
fn unforgiven(outputs: &mut Outputs, task: &TaskName, what: &str, error: &task_api::TaskError) -> End {
    match outputs.failure() {
        Some(system) => End::from(system).during("sending"),
        None => End::Failed(format!("{task} failed: {what}: {error}")),
    }
}

/// What is needed to give messages to tasks.
pub(crate) struct Hands<'e, T> {
    pub(crate) tasks: &'e mut [Task<T>],
    pub(crate) outputs: &'e mut Outputs,
    pub(crate) work: &'e mut Work,
    pub(crate) failures: &'e Failures,
    /// Some inputs go before others.
    pub(crate) choosing: bool,
    pub(crate) now: Timestamp,
}

impl<T: StreamTask> Hands<'_, T> {
    /// Gives every run of one partition to its tasks; what they do not take, or may not yet, is held.
    pub(crate) fn take(
        &mut self,
        messages: &[Message<'_>],
        sources: &mut [Source],
        readers_of: &[Vec<usize>],
    ) -> Result<(), SystemError> {
        let runs = || messages.chunk_by(|a, b| a.source == b.source);
        // Of what comes together, the highest priority goes first.
        let highest = self.choosing.then(|| {
            let of = runs().flat_map(|run| &readers_of[run[0].source]);
            of.map(|at| sources[*at].priority()).max().unwrap_or(0)
        });
        for run in runs() {
            for at in &readers_of[run[0].source] {
                let source = &mut sources[*at];
                let run = &run[..source.before_end(run, self.now)];
                let is_behind = source.waits || highest.is_some_and(|highest| source.priority() < highest);
                let may =
                    source.held.is_empty() && !is_behind && !self.work.holding && !self.work.must_commit();
                let taken = if may { self.give(source, run)? } else { 0 };
                source.held.add(&run[taken..]);
            }
        }
        Ok(())
    }

    /// Gives a run to its task; returns how much it took.
    fn give(&mut self, source: &mut Source, run: &[Message<'_>]) -> Result<usize, SystemError> {
        let task = &mut self.tasks[source.task];
        let full = Rc::clone(&self.work.full);
        let mut batch = MessageBatch::new(&source.partition, run, &full);
        loop {
            let (before, in_flight) = (batch.taken(), task.code.in_flight());
            let Err(error) = task.code.process_batch(&mut batch, self.outputs, &mut self.work.coordinator)
            else {
                break;
            };
            let came_further = batch.taken() > before || task.code.in_flight() < in_flight;
            let is_named = error.is::<FailedMessage>();
            let message = if is_named { None } else { batch.failed_since(before) };
            let failed = message.as_ref().map_or(Failed::Named, Failed::Message);
            // An error that comes again and again would be forgiven again and again.
            let judged = if message.is_some() || is_named && came_further {
                self.failures.judge(&task.name, &failed, error, self.outputs)
            } else {
                Err(unforgiven(self.outputs, &task.name, "process_batch", &error))
            };
            if let Err(end) = judged {
                self.work.failed = Some(end);
                return Err(SystemError::Fatal("the task failed".into()));
            }
            if batch.rest().is_empty() || self.work.must_commit() {
                break;
            }
        }
        let taken = batch.taken();
        if let Some(last) = run[..taken].last() {
            source.took(last.offset);
            task.processed += taken as u64;
            self.work.processed += taken as u64;
            self.work.unreported += taken as u64;
            points::each("process", taken);
        }
        Ok(taken)
    }
}
