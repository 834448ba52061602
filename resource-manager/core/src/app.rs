//! An application and its attempts.
//!
//! Attempts (one application master each; `Ended` is left at once for the next attempt's `Scheduling` unless the
//! application is over):
//!
//! | state \ event | Placed | Registered | Exited(cause) |
//! |---|---|---|---|
//! | Scheduling | Launching | illegal | illegal |
//! | Launching | illegal | Running | Ended(cause) |
//! | Running | illegal | Running (it reconnected) | Ended(cause) |
//! | Ended | illegal | illegal | illegal |
//!
//! Applications:
//!
//! | state \ event | Registered | StopAsked | Over(outcome) |
//! |---|---|---|---|
//! | Accepted | Running | Stopping | the outcome's |
//! | Running | Running | Stopping | the outcome's |
//! | Stopping | Stopping | Stopping | the outcome's |
//! | Finished, Failed, Killed | unchanged | unchanged | unchanged |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use types::{
    AppId, AppState, Artefact, Ask, ContainerId, ExitCause, JobId, JobOutcome, JobSpec, JobStatus, NodeId,
    RequestId, Secrets, Timestamp,
};

use crate::command::{StoredApp, StoredMaster};

/// One attempt's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Waits for a node, and for its backoff to pass.
    Scheduling,
    /// Its container was placed; it has not registered.
    Launching,
    /// It registered.
    Running,
    /// Its container is over.
    Ended(ExitCause),
}

/// What happens to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AttemptEvent {
    Placed,
    Registered,
    Exited(ExitCause),
}

impl Attempt {
    /// The state after `event`; none if the event is illegal in this state.
    pub(crate) fn after(&self, event: AttemptEvent) -> Option<Attempt> {
        match (self, event) {
            (Attempt::Scheduling, AttemptEvent::Placed) => Some(Attempt::Launching),
            (Attempt::Scheduling, AttemptEvent::Registered | AttemptEvent::Exited(_)) => None,
            (Attempt::Launching | Attempt::Running, AttemptEvent::Registered) => Some(Attempt::Running),
            (Attempt::Launching | Attempt::Running, AttemptEvent::Exited(cause)) => {
                Some(Attempt::Ended(cause))
            }
            (Attempt::Launching | Attempt::Running, AttemptEvent::Placed) => None,
            (
                Attempt::Ended(_),
                AttemptEvent::Placed | AttemptEvent::Registered | AttemptEvent::Exited(_),
            ) => None,
        }
    }
}

/// What happens to an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AppEvent<'a> {
    Registered,
    StopAsked,
    Over(&'a JobOutcome),
}

/// The state of an application after `event`.
pub(crate) fn app_after(state: AppState, event: &AppEvent<'_>) -> AppState {
    match (state, event) {
        (AppState::Accepted | AppState::Running, AppEvent::Registered) => AppState::Running,
        (AppState::Stopping, AppEvent::Registered) => AppState::Stopping,
        (AppState::Accepted | AppState::Running | AppState::Stopping, AppEvent::StopAsked) => {
            AppState::Stopping
        }
        (AppState::Accepted | AppState::Running | AppState::Stopping, AppEvent::Over(outcome)) => {
            match outcome {
                JobOutcome::Finished => AppState::Finished,
                JobOutcome::Failed { .. } => AppState::Failed,
                JobOutcome::Killed => AppState::Killed,
            }
        }
        (
            AppState::Finished | AppState::Failed | AppState::Killed,
            AppEvent::Registered | AppEvent::StopAsked | AppEvent::Over(_),
        ) => state,
    }
}

/// An ask that has no container yet.
#[derive(Debug, Clone)]
pub(crate) struct OpenAsk {
    pub(crate) ask: Ask,
    /// When it first arrived.
    pub(crate) since: Timestamp,
    /// Preferences that name no node, one line each.
    pub(crate) unmatched: Vec<String>,
    /// What the master was last told.
    pub(crate) told: Vec<String>,
}

/// One application.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) id: AppId,
    /// Its number in the order of submission; earlier goes first within a priority.
    pub(crate) order: u64,
    pub(crate) client_id: String,
    pub(crate) spec: Arc<JobSpec>,
    pub(crate) app_master: Artefact,
    pub(crate) token: String,
    pub(crate) secrets: Secrets,
    pub(crate) submitted_unix_ms: u64,
    pub(crate) state: AppState,
    /// Whether a user wants it gone without grace, and since when.
    pub(crate) kill: bool,
    pub(crate) kill_since: Option<Timestamp>,
    pub(crate) diagnostics: String,
    pub(crate) ended_unix_ms: Option<u64>,
    /// When it ended; its master gets a moment to exit by itself.
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) registered: bool,
    pub(crate) waits_for: Option<AppId>,
    /// Whether it was there before this resource manager started: nodes may know more of it than we do.
    pub(crate) recovered: bool,

    pub(crate) attempt_no: u32,
    pub(crate) attempt: Attempt,
    /// The next attempt starts no earlier.
    pub(crate) not_before: Timestamp,
    pub(crate) master: Option<ContainerId>,
    pub(crate) session: Option<u64>,
    pub(crate) address: Option<String>,
    /// When the master last spoke, or its container last changed.
    pub(crate) heard: Timestamp,
    /// When this attempt registered.
    pub(crate) running_since: Option<Timestamp>,
    /// When attempts failed, within the window.
    pub(crate) failures: VecDeque<Timestamp>,
    /// Where attempts failed; the next one avoids the last of them.
    pub(crate) failed_on: Option<NodeId>,
    /// Why the master has no node.
    pub(crate) master_waits: Vec<String>,

    pub(crate) asks: BTreeMap<RequestId, OpenAsk>,
    /// The highest (attempt, try) that was answered, by slot: a request is answered at most once.
    pub(crate) answered: BTreeMap<u32, (u32, u32)>,
    /// Preferred hosts of the slot's last ask that are no node.
    pub(crate) unmatched: BTreeMap<u32, Vec<String>>,
    /// Every container remembered, live or over.
    pub(crate) containers: BTreeSet<ContainerId>,
    pub(crate) status: Option<(Arc<JobStatus>, Timestamp)>,
}

impl App {
    pub(crate) fn job(&self) -> &JobId {
        &self.spec.job
    }

    pub(crate) fn is_answered(&self, request: RequestId) -> bool {
        self.answered.get(&request.slot).is_some_and(|seen| (request.attempt, request.try_no) <= *seen)
    }

    pub(crate) fn set_answered(&mut self, request: RequestId) {
        let seen = self.answered.entry(request.slot).or_default();
        *seen = (*seen).max((request.attempt, request.try_no));
    }

    /// From what was stored. Its master, if it has one, is the caller's to add to its node.
    pub(crate) fn from_stored(stored: StoredApp, order: u64, now: Timestamp) -> App {
        let master = stored.master.as_ref().map(|master| master.container);
        let attempt = match (stored.state.is_over(), master) {
            (true, _) => Attempt::Ended(ExitCause::Success),
            (false, Some(_)) => Attempt::Launching,
            (false, None) => Attempt::Scheduling,
        };
        App {
            id: stored.app,
            order,
            client_id: stored.client_id,
            spec: stored.spec,
            app_master: stored.app_master,
            token: stored.token,
            secrets: stored.secrets,
            submitted_unix_ms: stored.submitted_unix_ms,
            state: stored.state,
            kill: stored.kill,
            kill_since: stored.kill.then_some(now),
            diagnostics: stored.diagnostics,
            ended_unix_ms: stored.ended_unix_ms,
            ended_at: stored.ended_unix_ms.map(|_| now),
            registered: stored.registered,
            waits_for: stored.waits_for,
            recovered: true,
            attempt_no: stored.attempt,
            attempt,
            not_before: now,
            master,
            session: None,
            address: None,
            heard: now,
            running_since: None,
            failures: VecDeque::new(),
            failed_on: None,
            master_waits: Vec::new(),
            asks: BTreeMap::new(),
            answered: BTreeMap::new(),
            unmatched: BTreeMap::new(),
            containers: BTreeSet::new(),
            status: None,
        }
    }

    /// What the store must hold of it; `master_node` is where its master is.
    pub(crate) fn stored(&self, master_node: Option<NodeId>) -> StoredApp {
        StoredApp {
            app: self.id.clone(),
            client_id: self.client_id.clone(),
            spec: self.spec.clone(),
            app_master: self.app_master.clone(),
            token: self.token.clone(),
            secrets: self.secrets.clone(),
            submitted_unix_ms: self.submitted_unix_ms,
            state: self.state,
            kill: self.kill,
            diagnostics: self.diagnostics.clone(),
            ended_unix_ms: self.ended_unix_ms,
            attempt: self.attempt_no,
            master: self.master.zip(master_node).map(|(container, node)| StoredMaster { container, node }),
            registered: self.registered,
            waits_for: self.waits_for.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_follow_their_table() {
        let cause = ExitCause::Success;
        let exited = || AttemptEvent::Exited(ExitCause::Success);
        let (scheduling, launching, running) = (Attempt::Scheduling, Attempt::Launching, Attempt::Running);
        let ended = Attempt::Ended(cause);
        assert_eq!(scheduling.after(AttemptEvent::Placed), Some(launching.clone()));
        assert_eq!(scheduling.after(AttemptEvent::Registered), None);
        assert_eq!(scheduling.after(exited()), None);
        for placed in [&launching, &running] {
            assert_eq!(placed.after(AttemptEvent::Placed), None);
            assert_eq!(placed.after(AttemptEvent::Registered), Some(running.clone()));
            assert_eq!(placed.after(exited()), Some(ended.clone()));
        }
        for event in [AttemptEvent::Placed, AttemptEvent::Registered, exited()] {
            assert_eq!(ended.after(event), None);
        }
    }

    #[test]
    fn an_application_that_is_over_stays_as_it_is() {
        let failed = JobOutcome::Failed { reason: "x".into() };
        for state in [AppState::Finished, AppState::Failed, AppState::Killed] {
            for event in [AppEvent::Registered, AppEvent::StopAsked, AppEvent::Over(&failed)] {
                assert_eq!(app_after(state, &event), state);
            }
        }
        assert_eq!(app_after(AppState::Stopping, &AppEvent::Registered), AppState::Stopping);
        assert_eq!(app_after(AppState::Accepted, &AppEvent::Registered), AppState::Running);
        assert_eq!(app_after(AppState::Running, &AppEvent::Over(&failed)), AppState::Failed);
    }
}
