//! What people and tests see of the core.

use types::{Ask, ContainerId, JobOutcome, JobStatus, SlotStatus, Timestamp};

use crate::core::{AmCore, Phase, Slot};
use crate::ending::EndingStep;
use crate::exits::seconds;
use crate::place::same_host;
use crate::slot::SlotState;

/// The core as plain data.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// "reading", "preparing", "running", "ending", "over".
    pub phase: &'static str,
    /// How the job ended, if it has.
    pub outcome: Option<JobOutcome>,
    /// The report on the job.
    pub status: JobStatus,
    /// Open asks.
    pub asks: Vec<Ask>,
    /// Live containers with their slots, superseded ones too.
    pub live: Vec<(ContainerId, u32)>,
    /// By slot, where it stands.
    pub slots: Vec<(u32, SlotState)>,
}

impl AmCore {
    /// The core as plain data.
    #[must_use]
    pub fn view(&self, now: Timestamp) -> View {
        View {
            phase: match &self.phase {
                Phase::Reading => "reading",
                Phase::Preparing => "preparing",
                Phase::Running => "running",
                Phase::Ending(_) => "ending",
                Phase::Over(_) => "over",
            },
            outcome: if let Phase::Over(outcome) = &self.phase { Some(outcome.clone()) } else { None },
            status: self.job_status(now),
            asks: self.open_asks(now),
            live: self.containers.iter().filter(|(_, t)| t.is_live()).map(|(id, t)| (*id, t.slot)).collect(),
            slots: self.slots.iter().map(|(n, s)| (*n, s.state.clone())).collect(),
        }
    }

    /// The phase.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The report for the UI.
    #[must_use]
    pub fn job_status(&self, now: Timestamp) -> JobStatus {
        JobStatus {
            attempt: self.identity.attempt,
            slots: self.slots.iter().map(|(n, s)| self.slot_status(now, *n, s)).collect(),
            message: self.message(),
            topics: self.topics.clone(),
            at_least_once: self.identity.spec.at_least_once_systems(),
            warnings: self.warnings.iter().chain(&self.not_grown).cloned().collect(),
        }
    }

    fn slot_status(&self, now: Timestamp, number: u32, slot: &Slot) -> SlotStatus {
        let container = slot.state.container();
        let placed = container.and_then(|c| self.containers.get(&c)).map(|t| &t.placed);
        let names = |p: &types::Preference| {
            let mut names = vec![p.host.clone()];
            names.extend(p.aliases.iter().cloned());
            names
        };
        let on = |hosts: &[String]| {
            slot.preferences
                .iter()
                .any(|p| same_host(names(p).iter().map(String::as_str), hosts.iter().map(String::as_str)))
        };
        let mut waiting = slot.waiting.clone();
        if let SlotState::Backoff { until } = slot.state {
            let why = slot.last_exit.as_ref().map_or_else(String::new, |(e, _)| format!(" after: {e}"));
            waiting = vec![format!("next try in {}{why}", seconds(until.since(now).div_ceil(1000) * 1000))];
        }
        SlotStatus {
            slot: number,
            container,
            node: placed.map(|p| p.node.clone()),
            tasks: self
                .tasks_of(number)
                .map(|m| m.tasks.iter().map(|t| t.name.clone()).collect())
                .unwrap_or_default(),
            status: slot.status.clone(),
            restarts: slot.restarts,
            last_exit: slot.last_exit.as_ref().map(|(e, _)| e.clone()),
            last_exit_unix_ms: slot.last_exit.as_ref().map(|(_, at)| *at),
            waiting,
            preferred: slot
                .preferences
                .iter()
                .map(
                    |p| {
                        if p.reason.is_empty() {
                            p.host.clone()
                        } else {
                            format!("{} ({})", p.host, p.reason)
                        }
                    },
                )
                .collect(),
            unmatched: Vec::new(),
            on_preferred: placed.filter(|_| !slot.preferences.is_empty()).map(|p| on(&p.hosts)),
        }
    }

    fn message(&self) -> String {
        if !self.note.is_empty() {
            return self.note.clone();
        }
        match &self.phase {
            Phase::Reading | Phase::Preparing => "starting".into(),
            Phase::Running => self.running_message(),
            Phase::Ending(ending) => {
                let what = match &ending.outcome {
                    JobOutcome::Finished => "stopping".to_owned(),
                    JobOutcome::Killed => "being killed".to_owned(),
                    JobOutcome::Failed { reason } => format!("failing: {reason}"),
                };
                match ending.step {
                    EndingStep::Stopping => what,
                    EndingStep::Minting { .. } | EndingStep::Fencing { .. } => {
                        format!("{what}; fencing its tasks")
                    }
                }
            }
            Phase::Over(JobOutcome::Finished) => "finished".into(),
            Phase::Over(JobOutcome::Killed) => "killed".into(),
            Phase::Over(JobOutcome::Failed { reason }) => format!("failed: {reason}"),
        }
    }

    fn running_message(&self) -> String {
        if self.deaf_since.is_some() {
            return "most containers are silent: the network between them and this master is suspected"
                .into();
        }
        let running = self.slots.values().filter(|s| matches!(s.state, SlotState::Running { .. })).count();
        let given_up = self.slots.values().filter(|s| s.state == SlotState::GaveUp).count();
        let done = self.slots.values().filter(|s| s.state == SlotState::Done).count();
        let mut text = match running {
            n if n + done + given_up == self.slots.len() => "running".to_owned(),
            n => format!("{n} of {} containers run", self.slots.len()),
        };
        let stale = self.stale_count();
        if stale > 0 {
            text.push_str(&format!("; {stale} to start again with what was added to their inputs"));
        }
        if given_up > 0 {
            text.push_str(&format!("; {given_up} given up"));
        }
        if done > 0 {
            text.push_str(&format!("; {done} done"));
        }
        text
    }
}
