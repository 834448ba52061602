//! How a job ends: its containers are stopped; when none is left a fresh incarnation fences every task, so that
//! nothing of the job that still sleeps somewhere can ever commit; then the resource manager is told.
//!
//! | Step | Goes on when |
//! |---|---|
//! | Stopping | no container is live |
//! | Minting | the resource manager answered |
//! | Fencing | Kafka is done; after some time of failures it is left |

use types::{ExitCause, Incarnation, JobOutcome, Timestamp};

use crate::core::{AmCore, Phase};
use crate::event::Command;
use crate::slot::SlotState;

/// How long a container has to commit, ms.
pub const STOP_GRACE_MS: u64 = 30_000;
/// The wait before a fencing that failed is tried again, ms.
const FENCE_RETRY_MS: u64 = 1_000;
/// How long fencing is tried, ms; without grace a third of it.
const FENCE_LIMIT_MS: u64 = 30_000;

/// A job that is coming to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// As what.
    pub outcome: JobOutcome,
    /// How far it has come.
    pub step: EndingStep,
}

/// The steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndingStep {
    /// Containers are being stopped.
    Stopping,
    /// A fresh incarnation was asked for.
    Minting {
        /// The question.
        nonce: u64,
    },
    /// Tasks are being fenced.
    Fencing {
        /// Under this incarnation.
        incarnation: Incarnation,
        /// Since then.
        since: Timestamp,
        /// Tried again then, if it failed.
        again: Option<Timestamp>,
    },
}

impl Ending {
    /// Grace in ms, and what the exits are to be called.
    pub(crate) fn how_to_stop(&self) -> (u64, ExitCause) {
        match self.outcome {
            JobOutcome::Finished => (STOP_GRACE_MS, ExitCause::KilledByUser),
            JobOutcome::Killed => (0, ExitCause::KilledByUser),
            JobOutcome::Failed { .. } => (STOP_GRACE_MS, ExitCause::KilledByAm),
        }
    }
}

impl AmCore {
    /// The job fails.
    pub(crate) fn fail(&mut self, now: Timestamp, reason: String, out: &mut Vec<Command>) {
        self.end(now, JobOutcome::Failed { reason }, out);
    }

    /// Every container ended well (or was given up, and the rest did).
    pub(crate) fn end_if_all_done(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if self.slots.values().all(|s| s.state.is_over()) {
            self.end(now, JobOutcome::Finished, out);
        }
    }

    /// Begins the end. One that has begun only becomes harder: a stop becomes a kill.
    pub(crate) fn end(&mut self, now: Timestamp, outcome: JobOutcome, out: &mut Vec<Command>) {
        match &mut self.phase {
            Phase::Over(_) => return,
            Phase::Ending(ending) => {
                if outcome != JobOutcome::Killed || ending.outcome == JobOutcome::Killed {
                    return;
                }
                ending.outcome = outcome;
            }
            Phase::Reading | Phase::Preparing | Phase::Running => {
                self.phase = Phase::Ending(Ending { outcome, step: EndingStep::Stopping });
                self.retry_at = None;
                self.withdraw_asks(out);
            }
        }
        self.note.clear();
        let Phase::Ending(ending) = &self.phase else { return };
        let (grace_ms, cause) = ending.how_to_stop();
        let ids: Vec<_> = self.containers.keys().copied().collect();
        for id in ids {
            self.stop_container(id, grace_ms, cause.clone(), out);
        }
        // Good ends are acknowledged with the job's own end only: a later attempt must see that those slots are done.
        for id in self.exited_ids().into_iter().filter(|id| !self.held_exits.contains(id)).collect::<Vec<_>>()
        {
            self.forget(id, out);
        }
        self.progress_ending(now, out);
    }

    fn withdraw_asks(&mut self, out: &mut Vec<Command>) {
        for slot in self.slots.values_mut() {
            slot.waiting.clear();
            if let SlotState::Asked { request } = slot.state {
                slot.state = SlotState::Waiting;
                out.push(Command::CancelAsk(request));
            }
        }
    }

    pub(crate) fn progress_ending(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let live = self.containers.values().any(|t| t.is_live());
        let Phase::Ending(ending) = &mut self.phase else { return };
        // Without a session it is not known what lives.
        if live || ending.step != EndingStep::Stopping || self.session_since.is_none() {
            return;
        }
        if self.model.is_none() {
            return self.over(out);
        }
        self.nonce = self.nonce.max(now.0) + 1;
        ending.step = EndingStep::Minting { nonce: self.nonce };
        out.push(Command::Mint { nonce: self.nonce });
    }

    /// The fresh incarnation has come.
    pub fn minted(&mut self, now: Timestamp, nonce: u64, incarnation: Incarnation, out: &mut Vec<Command>) {
        let Phase::Ending(ending) = &mut self.phase else { return };
        if ending.step != (EndingStep::Minting { nonce }) {
            return;
        }
        ending.step = EndingStep::Fencing { incarnation, since: now, again: None };
        out.push(self.fence(incarnation));
    }

    fn fence(&self, incarnation: Incarnation) -> Command {
        let slots: Vec<u32> = self.slots.keys().copied().collect();
        Command::Fence {
            incarnation,
            partitions: slots.into_iter().flat_map(|s| self.partitions_of(s)).collect(),
        }
    }

    /// Every task is fenced, or some could not be.
    pub fn tasks_fenced(&mut self, now: Timestamp, done: Result<(), String>, out: &mut Vec<Command>) {
        let Phase::Ending(ending) = &mut self.phase else { return };
        let EndingStep::Fencing { since, again, .. } = &mut ending.step else { return };
        let limit = if ending.outcome == JobOutcome::Killed { FENCE_LIMIT_MS / 3 } else { FENCE_LIMIT_MS };
        match done {
            Ok(()) => self.over(out),
            Err(_) if now.since(*since) >= limit => self.over(out),
            Err(why) => {
                *again = Some(now.plus(FENCE_RETRY_MS));
                self.note = format!("fencing the job's tasks: {why}");
            }
        }
    }

    pub(crate) fn ending_deadline(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Ending(Ending { step: EndingStep::Fencing { again, .. }, .. }) => *again,
            Phase::Ending(Ending { step: EndingStep::Stopping, .. }) => self.unlisted_deadline(),
            Phase::Ending(Ending { step: EndingStep::Minting { .. }, .. })
            | Phase::Reading
            | Phase::Preparing
            | Phase::Running
            | Phase::Over(_) => None,
        }
    }

    pub(crate) fn ending_due(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let Phase::Ending(ending) = &mut self.phase else { return };
        let EndingStep::Fencing { incarnation, again, .. } = &mut ending.step else { return };
        if again.is_some_and(|at| at <= now) {
            *again = None;
            let incarnation = *incarnation;
            out.push(self.fence(incarnation));
        }
    }

    /// What a new session must hear of the end.
    pub(crate) fn repeat_ending(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        match &self.phase {
            Phase::Over(outcome) => out.push(Command::Finish(outcome.clone())),
            Phase::Ending(Ending { step: EndingStep::Minting { nonce }, .. }) => {
                out.push(Command::Mint { nonce: *nonce });
            }
            Phase::Ending(Ending { step: EndingStep::Stopping, .. }) => self.progress_ending(now, out),
            Phase::Ending(Ending { step: EndingStep::Fencing { .. }, .. })
            | Phase::Reading
            | Phase::Preparing
            | Phase::Running => {}
        }
    }

    fn over(&mut self, out: &mut Vec<Command>) {
        let Phase::Ending(ending) = &self.phase else { return };
        let outcome = ending.outcome.clone();
        self.phase = Phase::Over(outcome.clone());
        out.push(Command::Finish(outcome));
        for id in self.exited_ids() {
            self.forget(id, out);
        }
    }
}
