//! Application masters: when one starts, is silent, has failed too often. Containers of the job run on between
//! attempts.

use types::{AppId, AppState, ContainerId, ContainerState, ExitCause, JobOutcome, NodeId, Timestamp};

use crate::RmCore;
use crate::app::{Attempt, AttemptEvent};
use crate::command::Command;
use crate::container::StopOrder;
use crate::timers::TimerKey;

/// The longest wait between failed attempts, ms.
const BACKOFF_MAX_MS: u64 = 10_000;

impl RmCore {
    /// Looks at everything about an application that depends on time, and arms the next look.
    pub(crate) fn app_deadline(&mut self, now: Timestamp, id: &AppId, out: &mut Vec<Command>) {
        let Some(app) = self.apps.get(id) else { return };
        if app.state.is_over() {
            return self.end_deadline(now, id, out);
        }
        if let Some(since) = app.kill_since {
            let due = since.plus(self.config.kill_wait_ms);
            if now >= due {
                let why = "killed by a user; its application master did not do it in time";
                return self.end_app(now, id, &JobOutcome::Killed, why, out);
            }
            self.timers.arm(TimerKey::App(id.clone()), due);
        }
        match &self.known(id).attempt {
            Attempt::Scheduling => self.queue_master(now, id),
            Attempt::Launching | Attempt::Running => self.judge_silence(now, id, out),
            Attempt::Ended(_) => {}
        }
    }

    fn judge_silence(&mut self, now: Timestamp, id: &AppId, out: &mut Vec<Command>) {
        let app = self.known(id);
        let Some(master) = app.master.and_then(|master| self.containers.get(&master)) else { return };
        let running = matches!(app.attempt, Attempt::Running);
        let spoke_before = running || app.recovered && app.registered;
        let limit = if spoke_before { self.config.am_silence_ms } else { self.config.am_launch_ms };
        let due = app.heard.plus(limit).max(self.judge_from);
        if now < due {
            return self.timers.arm(TimerKey::App(id.clone()), due);
        }
        let container = master.id;
        // One whose process does not run yet is its node's to report on, not silent.
        let is_not_judged = master.state.rank() < ContainerState::Running.rank()
            || master.stop.is_some()
            || self.recovering() && app.recovered;
        let what = if running { "was silent" } else { "did not register" };
        let diagnostics = format!("attempt {} {what} for {} s and was stopped", app.attempt_no, limit / 1000);
        self.timers.arm(TimerKey::App(id.clone()), now.plus(limit));
        if is_not_judged {
            return;
        }
        self.known_mut(id).diagnostics = diagnostics;
        self.order_stop(container, StopOrder { grace_ms: 0, cause: ExitCause::KilledByAm }, out);
    }

    /// The current attempt's container is over: the next attempt, at once unless it keeps failing.
    pub(crate) fn master_exited(
        &mut self,
        now: Timestamp,
        id: &AppId,
        cause: ExitCause,
        node: NodeId,
        out: &mut Vec<Command>,
    ) {
        let stable_ms = self.config.am_stable_ms;
        let (window_ms, limit) = (self.config.am_window_ms, self.config.am_failures as usize);
        let app = self.known_mut(id);
        let Some(ended) = app.attempt.after(AttemptEvent::Exited(cause.clone())) else { return };
        app.attempt = ended;
        let stable = app.running_since.is_some_and(|since| now.since(since) >= stable_ms);
        // Nobody but us stops a master as KilledByAm, and only for its silence.
        let failed = (cause.counts_as_failure() || cause == ExitCause::KilledByAm) && !stable;
        let said = format!("attempt {} ended: {cause}", app.attempt_no);
        if app.state != AppState::Stopping {
            app.diagnostics = if app.diagnostics.starts_with(&format!("attempt {} ", app.attempt_no)) {
                format!("{}; {said}", app.diagnostics)
            } else {
                said.clone()
            };
        }
        if failed {
            app.failures.push_back(now);
            app.failed_on = Some(node);
        }
        while app.failures.front().is_some_and(|at| now.since(*at) > window_ms) {
            app.failures.pop_front();
        }
        let failures = app.failures.len();
        if failed && failures >= limit {
            let reason =
                format!("its application master failed {failures} times in {} s; {said}", window_ms / 1000);
            return self.end_app(now, id, &JobOutcome::Failed { reason: reason.clone() }, &reason, out);
        }
        if app.kill {
            return self.end_app(now, id, &JobOutcome::Killed, "killed by a user", out);
        }
        app.not_before = if failed { now.plus(backoff_ms(failures)) } else { now };
        self.next_attempt(now, id, out);
    }

    fn next_attempt(&mut self, now: Timestamp, id: &AppId, out: &mut Vec<Command>) {
        // What it asked for, the next one asks for anew once it knows what is left.
        let open: Vec<_> = self.known(id).asks.keys().copied().collect();
        for request in open {
            self.drop_ask(id, request);
        }
        let app = self.known_mut(id);
        app.attempt_no += 1;
        app.attempt = Attempt::Scheduling;
        app.master = None;
        app.running_since = None;
        let session = app.session.take();
        let not_before = app.not_before;
        if let Some(session) = session {
            let reason = "its container is over";
            out.push(Command::CloseAmSession { app: id.clone(), session, reason });
        }
        self.persist(id, out);
        self.timers.arm(TimerKey::App(id.clone()), not_before);
        self.queue_master(now, id);
    }

    /// Whether `container` is the current attempt's master of its application.
    pub(crate) fn is_current_master(&self, app: &AppId, container: ContainerId) -> bool {
        self.apps.get(app).is_some_and(|app| app.master == Some(container))
    }
}

/// The wait before the next attempt after so many failures in the window: none after the first.
fn backoff_ms(failures: usize) -> u64 {
    match failures {
        0 | 1 => 0,
        n => (100u64 << (n - 2).min(16)).min(BACKOFF_MAX_MS),
    }
}
