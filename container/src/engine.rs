//! One task thread at work: batches to tasks, windows, timers, commits.
//!
//! Per message there is no allocation, lock, system call or look at the clock of ours: a batch is cut into runs of one
//! partition, each run goes to its task in one call, and two flags are looked at after each message. One of them is the
//! thread's bell ([`crate::pulse`]): it rings when a commit, a window or a timer is due or the thread is to stop, and
//! whatever is not done by then waits until that is.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use task_api::system::{Message, SystemAdmin, SystemError, TopicHandle};
use task_api::{FailedMessage, MessageBatch, StreamTask, TaskClock, TaskCoordinator, Timers};
use task_core::commit::{Due, Pending, Schedule};
use task_core::ownership::OwnerRecord;
use task_core::record::{Checkpoint, Restored};
use tracing::warn;
use types::{Incarnation, JobId, TaskName, Timestamp};

use crate::board::{Board, Told};
use crate::clock::Clock;
use crate::collector::Outputs;
use crate::due::unforgiven;
use crate::end::{End, Over};
use crate::failures::{Failed, Failures};
use crate::inputs::{Inputs, Source, Standing};
use crate::meters::{Spent, TaskMeters, ThreadMeters};
use crate::pace::Pace;
use crate::points;
use crate::pulse::{Pulse, Stage};
use crate::restore::Log;
use crate::stores::Store;
use crate::stores::disk::TaskDisk;
use crate::stores::link::Link;

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
/// Of a hand-over so many runs are timed whatever their length; of those that follow, only such as are worth a look at the
/// clock.
const RUNS_TIMED: usize = 8;
const WORTH_TIMING: usize = 8;
/// How long the end waits until they know.
const LAST_TELL: Duration = Duration::from_secs(1);
/// One store of a task.
pub(crate) struct TaskStore {
    pub(crate) store: Rc<RefCell<Store>>,
    /// None for a store without changelog.
    pub(crate) changelog: Option<ChangelogOut>,
    /// It is made from the rows of another store, whose changelog restores it too.
    pub(crate) is_index: bool,
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
    /// Its changelogs have come further than its last checkpoint tells.
    pub(crate) has_grown: bool,
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
    /// Its own owner record, and where those of its tasks are.
    pub(crate) owner: OwnerRecord,
    pub(crate) checkpoint_topic: String,
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
    /// With the thread's stores; and its pulse.
    pub(crate) link: Rc<Link>,
    pub(crate) pulse: Arc<Pulse>,
    pace: Pace,
    /// Runs of this hand-over.
    runs: usize,
    pub(crate) coordinator: TaskCoordinator,
    pub(crate) commit_requested: bool,
    /// Why a task's method made the thread end; told to systems as an error of theirs.
    pub(crate) failed: Option<End>,
    /// Messages processed since the last commit.
    pub(crate) processed: u64,
    /// Messages processed and transactions committed since the last report.
    unreported: u64,
    pub(crate) commits: u64,
    pub(crate) next_window: Timestamp,
    /// The first task whose window of this round is still to come.
    pub(crate) window_of: usize,
    /// The task whose timers go off first.
    pub(crate) timers_of: usize,
    /// The source whose held messages come first.
    held_from: usize,
    next_report: Timestamp,
    /// Something was committed since systems were told.
    pub(crate) untold: bool,
    next_tell: Timestamp,
    pub(crate) next_warning: Timestamp,
    next_look: Timestamp,
    /// Every input of every task is over; none if nobody has looked yet.
    pub(crate) over: Option<bool>,
    /// What comes is held, because the thread is to stop.
    pub(crate) holding: bool,
}

impl Work {
    pub(crate) fn new(link: Rc<Link>) -> Work {
        Work { pulse: Arc::clone(&link.pulse), link, ..Work::default() }
    }

    /// Whether something must come before the next message.
    pub(crate) fn must_return(&self) -> bool {
        self.pulse.is_rung() || self.coordinator.is_set()
    }

    /// Whether what comes may go to its task.
    fn may_give(&self) -> bool {
        !self.holding && !self.must_return() && self.pace.left() > 0
    }

    /// Whether a commit must come before the next call of any kind.
    pub(crate) fn must_commit(&self) -> bool {
        self.pulse.is_full() || self.coordinator.is_set()
    }
}

impl<T: StreamTask> Engine<T> {
    /// Works until the container is told to stop, every input is over, or something fails.
    ///
    /// # Errors
    /// What failed; nothing since the last commit is committed.
    pub(crate) fn run(&mut self) -> Result<Over, End> {
        let mut ended = self.work().and_then(|over| self.close().map(|()| over));
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
        if let Err(End::Fenced(why)) = ended {
            ended = Err(crate::claim::who_fenced(self, why));
        }
        if ended.is_ok() && std::mem::take(&mut self.work.untold) {
            // What is told last is what tools show until the job runs again.
            self.inputs.tell_committed(LAST_TELL);
        }
        self.report(self.clock.now(), true);
        ended
    }

    fn work(&mut self) -> Result<Over, End> {
        self.work.next_window = self.clock.now().plus(self.window_ms.unwrap_or(0));
        self.inputs.wake_this_thread();
        // A start that was decided, such as the newest message, is decided once.
        self.work.commit_requested |= self.inputs.have_moved();
        self.work.window_of = self.tasks.len();
        loop {
            self.task_clock.set(self.clock.unix_ms());
            if let Some(what) = self.inputs.topic_made_again() {
                return Err(End::Failed(format!("reading: {what}")));
            }
            self.windows()?;
            self.timers()?;
            self.complete(false)?;
            let over = self.end_streams()?;
            let now = self.clock.now();
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
                return Ok(if over { Over::Inputs } else { Over::Told });
            }
            self.report(now, false);
            self.arm(true);
            self.inputs.arrange(now).map_err(|error| End::from(error).during("reading"))?;
            let took = self.take_held(now)?;
            if !self.work.must_return() {
                let patience = if took { Duration::ZERO } else { self.patience(now, pending) };
                self.poll(now, patience)?;
            }
        }
    }

    fn close(&mut self) -> Result<(), End> {
        let mut ended = Ok(());
        for (at, task) in self.tasks.iter_mut().enumerate() {
            self.work.pulse.enter(Stage::Close, at);
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

    /// Gives tasks what was fetched for them before; returns whether one took anything. Whoever did not get a turn
    /// because something was due is the first to get one next time.
    fn take_held(&mut self, now: Timestamp) -> Result<bool, End> {
        let mut any = false;
        let mut sources = self.inputs.readers.iter().flat_map(|reader| &reader.sources);
        if sources.all(|source| source.held.is_empty()) {
            return Ok(false);
        }
        let choosing = self.inputs.are_chosen();
        let lengths: Vec<usize> = self.inputs.readers.iter().map(|reader| reader.sources.len()).collect();
        let places: Vec<(usize, usize)> = lengths
            .iter()
            .enumerate()
            .flat_map(|(reader, len)| (0..*len).map(move |at| (reader, at)))
            .collect();
        for n in 0..places.len() {
            let number = (self.work.held_from + n) % places.len();
            let (reader, at) = places[number];
            let source = &mut self.inputs.readers[reader].sources[at];
            if source.waits || source.held.is_empty() {
                continue;
            }
            for slice in 0..HELD_SLICES {
                if self.work.must_return() {
                    self.work.held_from = number + usize::from(slice > 0);
                    return Ok(true);
                }
                let mut hands = Hands {
                    tasks: &mut self.tasks,
                    outputs: &mut self.outputs,
                    work: &mut self.work,
                    failures: &self.failures,
                    meters: &self.meters,
                    choosing,
                    now,
                    clock: &self.clock,
                };
                let held = std::mem::take(&mut source.held);
                let messages = held.messages();
                let taken = hands.paced(|hands| hands.give(source, &messages));
                let shown = messages.len();
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
        Ok(any)
    }

    /// Whether every store is sound: an error of one is never the message's, whatever a task makes of it.
    pub(crate) fn sound(&self) -> Result<(), End> {
        self.work.link.failure().map_or(Ok(()), |why| Err(End::Failed(why)))
    }

    /// What has happened since the last commit; the thread stops if its inputs are `over`, if it was told to, or if a
    /// task wished for it: then no further message is processed.
    fn pending(&mut self, over: bool, now: Timestamp) -> Pending {
        let (commit, shutdown) = self.work.coordinator.take();
        self.work.commit_requested |= commit;
        if shutdown {
            self.board.stop(Told::Task);
        }
        let stopping = over || self.board.is_stopping();
        let mut pending = Pending {
            anything: self.work.processed > 0 || self.outputs.sent > 0,
            cache_full: self.work.pulse.is_full(),
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
            self.inputs.look_at_standing(now);
            self.outputs.look_after();
        }
        self.meters.report(self.clock.nanos());
        if self.meters.turn(now) {
            self.tasks.iter().for_each(|task| task.meters.turn());
        }
        self.board.add(std::mem::take(&mut self.work.unreported), std::mem::take(&mut self.work.commits));
        let unix_ms = self.clock.unix_ms();
        for (at, task) in self.tasks.iter().enumerate() {
            let Standing { lag, lag_ms, waits } = self.inputs.standing(at, now, unix_ms);
            let processed = task.processed;
            task.meters.report(processed, lag);
            self.board.task(&task.name, |status| {
                (status.lag, status.lag_ms, status.waits) = (lag, lag_ms, waits);
                status.processed = processed;
            });
        }
    }

    /// The commit of one thread; see `task_core::commit` for the order.
    fn commit(&mut self, due: Due, pending: Pending, now: Timestamp) -> Result<(), End> {
        // Every position that is committed has had its effects.
        self.complete(true)?;
        self.sound()?;
        self.work.pulse.enter(Stage::Commit, 0);
        let began = self.clock.nanos();
        let committed = crate::transaction::commit(self, due, pending, now);
        self.meters.spent(Spent::Commit, self.clock.nanos() - began);
        committed.map_err(|end| end.during("commit"))
    }
}

/// What is needed to give messages to tasks.
pub(crate) struct Hands<'e, T> {
    pub(crate) tasks: &'e mut [Task<T>],
    pub(crate) outputs: &'e mut Outputs,
    pub(crate) work: &'e mut Work,
    pub(crate) failures: &'e Failures,
    pub(crate) meters: &'e ThreadMeters,
    /// Some inputs go before others.
    pub(crate) choosing: bool,
    pub(crate) now: Timestamp,
    pub(crate) clock: &'e Clock,
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
        self.paced(|hands| {
            let mut all = 0;
            for run in runs() {
                for at in &readers_of[run[0].source] {
                    let source = &mut sources[*at];
                    let run = &run[..source.before_end(run, hands.now)];
                    let is_behind =
                        source.waits || highest.is_some_and(|highest| source.priority() < highest);
                    let may = source.held.is_empty() && !is_behind && hands.work.may_give();
                    let taken = if may { hands.give(source, run)? } else { 0 };
                    all += taken;
                    source.held.add(&run[taken..]);
                }
            }
            Ok(all)
        })
        .map(drop)
    }

    /// Learns from `give` how fast tasks are.
    fn paced(
        &mut self,
        give: impl FnOnce(&mut Self) -> Result<usize, SystemError>,
    ) -> Result<usize, SystemError> {
        let start = self.clock.nanos();
        self.work.pace.begin();
        self.work.runs = 0;
        let taken = give(self)?;
        let took_ns = self.clock.nanos() - start;
        self.meters.spent(Spent::Process, took_ns);
        self.work.pace.learn(taken, took_ns / 1_000_000);
        Ok(taken)
    }

    /// Gives a run to its task; returns how much it took.
    fn give(&mut self, source: &mut Source, run: &[Message<'_>]) -> Result<usize, SystemError> {
        let task = &mut self.tasks[source.task];
        let run = &run[..run.len().min(self.work.pace.left())];
        let pulse = Arc::clone(&self.work.pulse);
        self.work.runs += 1;
        let is_timed = self.work.runs <= RUNS_TIMED || run.len() >= WORTH_TIMING;
        let began = is_timed.then(|| self.clock.nanos());
        pulse.enter(Stage::Process, source.task);
        let mut batch = MessageBatch::new(&source.partition, run, pulse.bell());
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
            let judged = if let Some(why) = self.work.link.failure() {
                Err(End::Failed(why))
            } else if message.is_some() || is_named && came_further {
                self.failures.judge(&task.name, &failed, error, self.outputs)
            } else {
                Err(unforgiven(self.outputs, &task.name, "process_batch", &error))
            };
            if let Err(end) = judged {
                self.work.failed = Some(end);
                return Err(SystemError::Fatal("the task failed".into()));
            }
            if batch.rest().is_empty() || self.work.must_return() {
                break;
            }
        }
        let taken = batch.taken();
        if let Some(began) = began {
            task.meters.process.observe(self.clock.nanos() - began, taken as u64);
        }
        self.work.pace.took(taken);
        pulse.enter(Stage::Reading, 0);
        if let Some(last) = run[..taken].last() {
            source.took(last.offset, last.timestamp_ms);
            task.processed += taken as u64;
            self.work.processed += taken as u64;
            self.work.unreported += taken as u64;
            points::each("process", taken);
        }
        Ok(taken)
    }
}
