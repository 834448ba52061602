//! What comes by time, and what comes at the end: windows, timers, calls in flight, ends of streams. None of it keeps the
//! thread for longer than one call of a task: a commit, a stop, and messages get their turn in between.

use task_api::metrics::Summary;
use task_api::{FailedMessage, StreamTask, Timers};
use tracing::info;

use crate::collector::Outputs;
use crate::end::End;
use crate::engine::{Engine, Task};
use crate::failures::Failed;
use crate::meters::{Spent, TaskMeters};
use crate::pulse::Stage;
use types::TaskName;

/// What is overdue when tasks get the thread waits so long, or as long as a commit may: they shall get on.
const TURN_MS: u64 = 100;
/// Nothing keeps a task's batch for longer.
const LONGEST_TURN_MS: u64 = 60_000;
/// Windows and timers keep inputs waiting for no longer, but for one call.
const ROUND_MS: u64 = 1_000;
/// Timers of a task that go off before inputs get their turn.
const TIMERS_AT_ONCE: usize = 1_000;

impl<T: StreamTask> Engine<T> {
    /// Has the bell ring when a commit is due, or a window, or, while inputs have the thread, a timer. What is overdue
    /// already, because it was not worth its while or does not get done, gives the tasks a turn first.
    pub(crate) fn arm(&self, for_inputs: bool) {
        let now = self.clock.now();
        let turn = TURN_MS.min(self.schedule.next().since(self.schedule.last())).max(1);
        let mut at = now.plus(LONGEST_TURN_MS).min(self.schedule.next());
        if self.window_ms.is_some() {
            at = at.min(self.work.next_window);
        }
        if !for_inputs {
            at = at.min(now.plus(ROUND_MS));
        } else {
            let unix_ms = self.clock.unix_ms();
            let due = self.tasks.iter().filter_map(|task| task.timers.as_ref()?.next_due()).min();
            at = due.map_or(at, |due| at.min(now.plus(due.saturating_sub(unix_ms))));
        }
        self.work.pulse.arm(at.max(now.plus(turn)));
        if self.board.is_stopping() {
            self.work.pulse.ring();
        }
    }

    /// Calls every task's window, each round of them from its first to its last: a commit may come in between.
    pub(crate) fn windows(&mut self) -> Result<(), End> {
        let Some(every) = self.window_ms.map(|every| every.max(1)) else { return Ok(()) };
        if self.work.window_of >= self.tasks.len() {
            let now = self.clock.now();
            if now < self.work.next_window {
                return Ok(());
            }
            // What a pause has missed is not made up for.
            let missed = now.since(self.work.next_window) / every;
            self.work.next_window = self.work.next_window.plus((missed + 1) * every);
            self.work.window_of = 0;
        }
        if self.work.must_commit() {
            return Ok(());
        }
        self.arm(false);
        while self.work.window_of < self.tasks.len() && !self.work.must_return() {
            let at = self.work.window_of;
            self.work.window_of += 1;
            if self.tasks[at].ended {
                continue;
            }
            self.complete_task(at, true)?;
            self.work.pulse.enter(Stage::Window, at);
            let began = self.clock.nanos();
            let task = &mut self.tasks[at];
            let done = task.code.window(&mut self.outputs, &mut self.work.coordinator);
            self.timed(began, at, |meters| meters.window.as_ref());
            if let Err(error) = done {
                let task = &self.tasks[at];
                return Err(unforgiven(&mut self.outputs, &task.name, "window", &error));
            }
        }
        Ok(())
    }

    /// Lets timers go off that are due, in the order of their times within each task: those that are due now. Whatever
    /// is set while they go off waits for the next round, also what is set to now, so that inputs get their turn.
    pub(crate) fn timers(&mut self) -> Result<(), End> {
        let unix_ms = self.task_clock.now_unix_ms();
        let is_due = |task: &Task<T>| {
            task.timers.as_ref().and_then(Timers::next_due).is_some_and(|due| due <= unix_ms)
        };
        if self.work.must_commit() || !self.tasks.iter().any(is_due) {
            return Ok(());
        }
        self.arm(false);
        // Where the last round was cut short, another task's come first now.
        for n in 0..self.tasks.len() {
            let at = (self.work.timers_of + n) % self.tasks.len();
            if !is_due(&self.tasks[at]) {
                continue;
            }
            self.timers_of(at, unix_ms)?;
            if self.work.must_return() {
                self.work.timers_of = at + 1;
                break;
            }
        }
        Ok(())
    }

    fn timers_of(&mut self, at: usize, unix_ms: u64) -> Result<(), End> {
        let Some(timers) = self.tasks[at].timers.clone() else { return Ok(()) };
        for (key, due) in timers.due(unix_ms, TIMERS_AT_ONCE) {
            // Before it is taken: what is in flight may set it anew, or fail by itself.
            self.complete_task(at, true)?;
            if self.work.must_return() {
                return Ok(());
            }
            if !timers.take(&key, due)? {
                continue;
            }
            self.work.pulse.enter(Stage::Timer, at);
            let began = self.clock.nanos();
            let task = &mut self.tasks[at];
            let done = task.code.timer(&key, due, &mut self.outputs, &mut self.work.coordinator);
            self.timed(began, at, |meters| meters.timer.as_ref());
            if let Err(error) = done {
                self.sound()?;
                let task = &self.tasks[at];
                self.failures.judge(&task.name, &Failed::Timer(&key, due), error, &mut self.outputs)?;
            }
        }
        Ok(())
    }

    /// A window or a timer of the task at this place began at `began` and is over.
    fn timed(&self, began: u64, at: usize, of: impl Fn(&TaskMeters) -> Option<&Summary>) {
        let took_ns = self.clock.nanos() - began;
        self.meters.spent(Spent::Timed, took_ns);
        if let Some(summary) = of(&self.tasks[at].meters) {
            summary.observe(took_ns, 1);
        }
    }

    /// Lets tasks finish what they have in flight: what is done, or, with `all`, everything.
    pub(crate) fn complete(&mut self, all: bool) -> Result<(), End> {
        (0..self.tasks.len()).try_for_each(|at| self.complete_task(at, all))
    }

    fn complete_task(&mut self, at: usize, all: bool) -> Result<(), End> {
        loop {
            let before = self.tasks[at].code.in_flight();
            if before == 0 {
                return Ok(());
            }
            self.work.pulse.enter(Stage::Completion, at);
            let task = &mut self.tasks[at];
            let Err(error) = task.code.complete(all, &mut self.outputs, &mut self.work.coordinator) else {
                return Ok(());
            };
            self.sound()?;
            let task = &self.tasks[at];
            // Leaving out what is not named, or is still there, would come round for ever.
            if !error.is::<FailedMessage>() || task.code.in_flight() >= before {
                return Err(unforgiven(&mut self.outputs, &task.name, "complete", &error));
            }
            self.failures.judge(&task.name, &Failed::Named, error, &mut self.outputs)?;
        }
    }

    /// Tells tasks whose inputs are all over; returns whether every task's are.
    pub(crate) fn end_streams(&mut self) -> Result<bool, End> {
        let any = self.inputs.look_for_ends();
        if let Some(over) = self.work.over.filter(|_| !any) {
            return Ok(over);
        }
        let mut is_first = true;
        for at in 0..self.tasks.len() {
            if self.tasks[at].ended || !self.inputs.task_ended(at) {
                continue;
            }
            // A commit comes between two of them if it must: the others are told in the next round.
            if self.work.must_commit() || !is_first && self.work.must_return() {
                self.work.over = None;
                return Ok(false);
            }
            if std::mem::take(&mut is_first) {
                self.arm(false);
            }
            self.complete_task(at, true)?;
            self.work.pulse.enter(Stage::EndOfStream, at);
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
}

/// Why a method failed whose errors no policy forgives.
pub(crate) fn unforgiven(
    outputs: &mut Outputs,
    task: &TaskName,
    what: &str,
    error: &task_api::TaskError,
) -> End {
    match outputs.failure() {
        Some(system) => End::from(system).during("sending"),
        None => End::Failed(format!("{task} failed: {what}: {error}")),
    }
}
