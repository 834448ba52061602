//! How far a task's restore is, told to the board.

use std::time::Instant;

use task_core::restore::Plan;
use tracing::info;
use types::{RestoreStatus, TaskName};

use super::StorePlan;
use crate::board::Board;

/// How often progress is told.
const TELL_MS: u64 = 100;

/// One task's restore, told to the board.
pub(super) struct Progress<'a> {
    board: &'a Board,
    task: &'a TaskName,
    start: Instant,
    before: u64,
    status: RestoreStatus,
    next_tell_ms: u64,
}

impl<'a> Progress<'a> {
    pub(super) fn new(
        board: &'a Board,
        task: &'a TaskName,
        plans: &[StorePlan<'_>],
        start: Instant,
    ) -> Progress<'a> {
        let why = |p: &StorePlan<'_>| match p.plan {
            Plan::FromLocal { .. } => None,
            Plan::Full(why) => Some(format!("{}: {why}", p.store())),
        };
        let status = RestoreStatus {
            total: plans.iter().map(|p| p.high() - p.from).sum(),
            from_local: !plans.is_empty() && plans.iter().all(|p| matches!(p.plan, Plan::FromLocal { .. })),
            reason: plans.iter().filter_map(why).collect::<Vec<_>>().join("; "),
            ..RestoreStatus::default()
        };
        let progress = Progress { board, task, start, before: 0, status, next_tell_ms: 0 };
        progress.tell();
        progress
    }
    pub(super) fn task(&self) -> &TaskName {
        self.task
    }
    fn tell(&self) {
        self.board.task(self.task, |task| task.restore = Some(self.status.clone()));
    }
    /// So many offsets of the store at hand are read.
    pub(super) fn at(&mut self, offsets: u64) {
        let took_ms = self.start.elapsed().as_millis() as u64;
        if took_ms < self.next_tell_ms {
            return;
        }
        self.next_tell_ms = took_ms + TELL_MS;
        self.status.done = self.before + offsets;
        self.status.took_ms = took_ms;
        self.status.eta_ms = eta_ms(self.status.done, self.status.total, took_ms);
        self.tell();
    }
    pub(super) fn store_done(&mut self, offsets: u64, rows: u64) {
        self.before += offsets;
        self.status.rows += rows;
        self.next_tell_ms = 0;
        self.at(0);
    }
    pub(super) fn finish(mut self, plans: &[StorePlan<'_>]) {
        self.status.done = self.status.total;
        self.status.took_ms = self.start.elapsed().as_millis() as u64;
        self.status.eta_ms = None;
        self.tell();
        let RestoreStatus { rows, total, from_local, took_ms, .. } = self.status;
        let why: Vec<String> = plans
            .iter()
            .map(|p| match &p.plan {
                Plan::FromLocal { from } => {
                    format!("{}: local state, changelog from {from} to {}", p.store(), p.high())
                }
                Plan::Full(why) => format!("{}: all of the changelog to {} ({why})", p.store(), p.high()),
            })
            .collect();
        info!(task = %self.task, rows, offsets = total, from_local, took_ms, "restored: {}", why.join("; "));
    }
}

/// How long the rest takes at the pace so far.
pub(super) fn eta_ms(done: u64, total: u64, took_ms: u64) -> Option<u64> {
    let left = u128::from(total.saturating_sub(done));
    if left == 0 {
        return None;
    }
    let eta = (u128::from(took_ms) * left).checked_div(u128::from(done))?;
    Some(u64::try_from(eta).unwrap_or(u64::MAX))
}
