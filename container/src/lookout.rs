//! The lookout: one thread that looks at the clock for all task threads. It rings a thread's bell when something is due
//! there, and it notices a call of a task that does not return. It waits for nobody, and nobody waits for it.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tracing::error;
use types::{CallStatus, TaskModel, TaskName};

use crate::container::Heard;
use crate::end::End;
use crate::pulse::{Call, Stage};
use crate::stacks;
use crate::task_thread::Shared;

/// How late a bell may ring.
const TICK: Duration = Duration::from_millis(10);
/// A tick that comes later than this was not this process's to see: it was stopped, or had no processor.
const LONGEST_TICK_MS: u64 = 1_000;
/// From this age on a call is told of.
const TOLD_FROM_MS: u64 = 2_000;
/// How often.
const TELL_EVERY_MS: u64 = 1_000;

/// Of one container.
pub(crate) struct Lookout<'a> {
    shared: &'a Shared,
    threads: Vec<Seen>,
}

/// A task thread as it was last seen.
struct Seen {
    tasks: Vec<TaskName>,
    call: Option<Call>,
    /// For how long it is in that call, as far as this process had a processor.
    age_ms: u64,
    /// At which age it was told of last.
    told_ms: u64,
    given_up: bool,
}

/// What follows from a look at a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    Nothing,
    /// Its last call, which was told of, is over.
    Gone(Call),
    /// The call is of an age to be told.
    Told(Call),
    /// It has hung for too long.
    Stuck(Call),
}

impl Seen {
    fn new(tasks: Vec<TaskName>) -> Seen {
        Seen { tasks, call: None, age_ms: 0, told_ms: 0, given_up: false }
    }

    fn look(&mut self, call: Call, since_ms: u64, stuck_after_ms: Option<u64>) -> Finding {
        if self.call != Some(call) {
            let before = self.call.replace(call).filter(|_| self.told_ms > 0);
            (self.age_ms, self.told_ms) = (0, 0);
            return before.map_or(Finding::Nothing, Finding::Gone);
        }
        if call.stage.of_task().is_none() || self.given_up {
            return Finding::Nothing;
        }
        self.age_ms += since_ms.min(LONGEST_TICK_MS);
        if stuck_after_ms.is_some_and(|most| self.age_ms >= most) {
            self.given_up = true;
            return Finding::Stuck(call);
        }
        if self.age_ms >= TOLD_FROM_MS && self.age_ms - self.told_ms >= TELL_EVERY_MS {
            self.told_ms = self.age_ms;
            return Finding::Told(call);
        }
        Finding::Nothing
    }

    fn task(&self, call: Call) -> TaskName {
        self.tasks.get(call.task).cloned().unwrap_or_default()
    }
}

impl Lookout<'_> {
    /// Over the threads with these tasks.
    pub(crate) fn new(shared: &Shared, threads: Vec<Vec<TaskModel>>) -> Lookout<'_> {
        let seen = |tasks: Vec<TaskModel>| Seen::new(tasks.into_iter().map(|task| task.name).collect());
        Lookout { shared, threads: threads.into_iter().map(seen).collect() }
    }

    /// Lookoutes until `over` is dropped.
    pub(crate) fn run(mut self, over: &mpsc::Receiver<()>, tell: &mpsc::Sender<Heard>) {
        let pulses = self.shared.board.pulses();
        let stuck_after_ms = self.shared.job.task.stuck_after_ms;
        let mut last = Instant::now();
        while over.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
            let since_ms = last.elapsed().as_millis() as u64;
            last += Duration::from_millis(since_ms);
            let now = self.shared.clock.now();
            for (seen, pulse) in self.threads.iter_mut().zip(&pulses) {
                pulse.tick(now);
                match seen.look(pulse.call(), since_ms, stuck_after_ms) {
                    Finding::Nothing => {}
                    Finding::Gone(call) => self.shared.board.call(&seen.task(call), None),
                    Finding::Told(call) => {
                        let what = call.stage.of_task().unwrap_or_default().to_owned();
                        let status = CallStatus { what, age_ms: seen.age_ms };
                        self.shared.board.call(&seen.task(call), Some(status));
                    }
                    Finding::Stuck(call) => {
                        // Nobody listens only when the process is about to exit.
                        let _ = tell.send(Heard::Stuck(stuck(&seen.task(call), call.stage, seen.age_ms)));
                    }
                }
            }
        }
    }
}

/// Says what hangs, with the stacks of all threads in the log.
fn stuck(task: &TaskName, stage: Stage, age_ms: u64) -> End {
    let what = match stage {
        Stage::Completion => "waits for a call in flight that does not end".to_owned(),
        stage => format!("`{}` has not returned", stage.of_task().unwrap_or_default()),
    };
    let why = format!("{task}: {what} for {} s, longer than [task] stuck-after", age_ms / 1_000);
    error!("{why}; the threads of this process:\n{}", stacks::of_threads());
    End::Stuck(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: Call = Call { number: 1, task: 0, stage: Stage::Process };

    fn seen() -> Seen {
        let mut seen = Seen::new(vec!["Partition 3".into()]);
        assert_eq!(seen.look(PROCESS, 10, Some(5_000)), Finding::Nothing);
        seen
    }

    #[test]
    fn a_call_that_does_not_return_is_told_of_and_then_stuck_once() {
        let mut seen = seen();
        let found: Vec<Finding> = (0..8).map(|_| seen.look(PROCESS, 1_000, Some(5_000))).collect();
        let told = Finding::Told(PROCESS);
        let expected = [Finding::Nothing, told, told, told, Finding::Stuck(PROCESS)];
        assert_eq!(found[..5], expected);
        assert!(found[5..].iter().all(|finding| *finding == Finding::Nothing), "{found:?}");
    }

    #[test]
    fn another_call_is_young_again_and_the_old_one_is_no_longer_told() {
        let mut seen = seen();
        for _ in 0..3 {
            seen.look(PROCESS, 1_000, Some(5_000));
        }
        let next = Call { number: 2, ..PROCESS };
        assert_eq!(seen.look(next, 1_000, Some(5_000)), Finding::Gone(PROCESS));
        assert_eq!(seen.look(next, 4_000, Some(5_000)), Finding::Nothing, "one tick is a second at most");
    }

    #[test]
    fn a_process_that_was_stopped_for_an_hour_is_not_stuck() {
        let mut seen = seen();
        assert_eq!(seen.look(PROCESS, 3_600_000, Some(5_000)), Finding::Nothing);
    }

    #[test]
    fn nothing_is_stuck_where_tasks_may_hang_and_none_that_waits_for_messages() {
        let mut hangs = seen();
        assert!((0..100_000).all(|_| !matches!(hangs.look(PROCESS, 1_000, None), Finding::Stuck(_))));
        let reading = Call { number: 7, task: 0, stage: Stage::Reading };
        let mut idle = seen();
        assert!((0..100_000).all(|_| idle.look(reading, 1_000, Some(1_000)) == Finding::Nothing));
    }
}
