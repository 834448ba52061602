//! Exits: each cause by its kind, acknowledged once it was acted on.

use types::{
    ContainerId, ContainerStatus, EXIT_FENCED, ExitCause, Incarnation, NodeId, OnExhausted, Timestamp,
};

use crate::core::{AmCore, Phase};
use crate::event::Command;
use crate::restart::Verdict;
use crate::slot::{SlotInput, SlotState};

impl AmCore {
    /// A container is over.
    pub(crate) fn exited(
        &mut self,
        now: Timestamp,
        id: ContainerId,
        exit: ExitCause,
        out: &mut Vec<Command>,
    ) {
        match &self.phase {
            Phase::Reading | Phase::Preparing => {}
            Phase::Ending(_) => {
                self.exited_while_ending(now, id, exit);
                self.forget(id, out);
                self.progress_ending(now, out);
            }
            Phase::Over(_) => self.forget(id, out),
            Phase::Running => self.exited_while_running(now, id, exit, out),
        }
    }

    fn exited_while_ending(&mut self, now: Timestamp, id: ContainerId, exit: ExitCause) {
        let Some(tracked) = self.containers.get(&id) else { return };
        let at = tracked.placed.report.ended_unix_ms.unwrap_or_else(|| self.unix_ms(now));
        if let Some(slot) = self.slots.get_mut(&tracked.slot).filter(|s| s.state.container() == Some(id)) {
            slot.step(&SlotInput::Retry);
            slot.last_ended = Some(id);
            slot.last_exit = Some((exit, at));
        }
    }

    fn exited_while_running(
        &mut self,
        now: Timestamp,
        id: ContainerId,
        exit: ExitCause,
        out: &mut Vec<Command>,
    ) {
        let Some(tracked) = self.containers.get(&id) else { return };
        let (number, node) = (tracked.slot, tracked.placed.node.clone());
        let (hosts, stop) = (tracked.placed.hosts.clone(), tracked.stop.is_some());
        let ended_unix_ms = tracked.placed.report.ended_unix_ms.unwrap_or_else(|| self.unix_ms(now));
        if matches!(exit, ExitCause::NodeLost) {
            self.node_state.remove(&node);
            self.lost.insert(node.clone(), hosts);
        }
        if self.held_exits.contains(&id) {
            return;
        }
        let Some(slot) = self.slots.get_mut(&number) else { return self.forget(id, out) };
        let current = slot.state.container();
        let checking = matches!(slot.state, SlotState::Checking { container } if container == id);
        let superseded = slot.newest.is_some_and(|n| id < n) || current.is_some_and(|c| c != id);
        if checking {
            return;
        }
        if superseded || slot.last_ended >= Some(id) || slot.state.is_over() {
            return self.forget(id, out);
        }
        if let Some(request) = slot.state.request() {
            // Its answer is over before it was seen; the ask is spent unless it was for another container.
            out.push(Command::CancelAsk(request));
        }
        slot.newest = Some(id);
        slot.last_ended = Some(id);
        slot.last_exit = Some((exit.clone(), ended_unix_ms));
        slot.status = ContainerStatus::default();
        slot.waiting.clear();
        // A container that we stopped and that then ended well was stopped, not done.
        let exit = if stop && exit == ExitCause::Success { ExitCause::KilledByAm } else { exit };
        if exit == ExitCause::Fenced {
            slot.step(&SlotInput::Check(id));
            slot.waiting = vec!["fenced: looking up by whom".into()];
            let partitions = self.partitions_of(number);
            out.push(Command::ReadOwners { slot: number, container: id, partitions });
            return;
        }
        self.judge_exit(now, id, number, &exit, &node, out);
    }

    fn judge_exit(
        &mut self,
        now: Timestamp,
        id: ContainerId,
        number: u32,
        exit: &ExitCause,
        node: &NodeId,
        out: &mut Vec<Command>,
    ) {
        let restart = self.identity.spec.restart.clone();
        let slot = self.slots.get_mut(&number).expect("the caller has found it");
        let verdict = slot.record.exited(now, exit, node, &restart);
        match verdict {
            Verdict::Done => {
                slot.step(&SlotInput::Finish);
                self.held_exits.insert(id);
                return self.end_if_all_done(now, out);
            }
            Verdict::Now => slot.step(&SlotInput::Retry),
            Verdict::At(until) => {
                slot.step(&SlotInput::RetryAt(until));
                slot.waiting = vec![format!("next try in {} after {exit}", seconds(until.since(now)))];
            }
            Verdict::Exhausted { failures } => {
                let reason = format!(
                    "container {number} failed {failures} times within {} ({} retries); the last time on node \
                     {node}: {exit}",
                    seconds(restart.window_ms),
                    restart.retries
                );
                self.exhausted(now, id, number, reason, restart.on_exhausted, out);
                return;
            }
        }
        slot.restarts += 1;
        self.forget(id, out);
        out.push(Command::ReadTopology);
        self.ask_where_needed(now, out);
    }

    fn exhausted(
        &mut self,
        now: Timestamp,
        id: ContainerId,
        number: u32,
        reason: String,
        then: OnExhausted,
        out: &mut Vec<Command>,
    ) {
        let slot = self.slots.get_mut(&number).expect("the caller has found it");
        slot.step(&SlotInput::GiveUp);
        slot.waiting = vec![format!("given up: {reason}")];
        match then {
            OnExhausted::Fail => self.fail(now, reason, out),
            OnExhausted::Degrade => {
                self.forget(id, out);
                if self.slots.values().all(|s| s.state == SlotState::GaveUp) {
                    return self.fail(now, format!("every container was given up; {reason}"), out);
                }
                self.end_if_all_done(now, out);
            }
        }
    }

    /// Who owns the tasks of a slot whose container was fenced. An owner that is newer than every container of this
    /// slot was minted elsewhere: another cluster runs the same job.
    pub fn owners_read(
        &mut self,
        now: Timestamp,
        number: u32,
        container: ContainerId,
        newest: Result<Option<Incarnation>, String>,
        out: &mut Vec<Command>,
    ) {
        let Some(slot) = self.slots.get(&number) else { return };
        if slot.state != (SlotState::Checking { container }) || self.phase != Phase::Running {
            return self.forget(container, out);
        }
        let known = |i: &Incarnation| {
            self.containers.contains_key(&ContainerId(*i)) || Some(ContainerId(*i)) <= slot.newest
        };
        if let Ok(Some(owner)) = newest
            && !known(&owner)
        {
            let reason = format!(
                "container {number} ({container}) was fenced by incarnation {owner}, which this cluster never \
                 started: does another cluster run job {}?",
                self.identity.spec.job
            );
            return self.fail(now, reason, out);
        }
        // Nobody is above it: whatever its broker refused, it failed by itself, and again if it is only restarted.
        let by_itself = newest == Ok(Some(container.0));
        let exit = if by_itself { ExitCause::Failed { code: EXIT_FENCED } } else { ExitCause::Fenced };
        let node = self.containers.get(&container).map(|t| t.placed.node.clone()).unwrap_or_default();
        if let Some(slot) = self.slots.get_mut(&number).filter(|_| by_itself) {
            slot.last_exit = slot.last_exit.take().map(|(_, at)| (exit.clone(), at));
        }
        self.judge_exit(now, container, number, &exit, &node, out);
    }

    pub(crate) fn partitions_of(&self, number: u32) -> Vec<i32> {
        self.tasks_of(number)
            .map(|m| m.tasks.iter().map(|t| t.changelog_partition).collect())
            .unwrap_or_default()
    }

    /// Acknowledges an exit and drops what was known of the container.
    pub(crate) fn forget(&mut self, id: ContainerId, out: &mut Vec<Command>) {
        let listed =
            self.containers.remove(&id).is_some_and(|t| t.placed.report.state.is_exited() || !t.listed);
        self.held_exits.remove(&id);
        if listed {
            out.push(Command::AckExit(id));
        }
    }

    pub(crate) fn exited_ids(&self) -> Vec<ContainerId> {
        let over = |s: &types::ContainerState| s.is_exited();
        self.containers.iter().filter(|(_, t)| over(&t.placed.report.state)).map(|(id, _)| *id).collect()
    }
}

/// A time for people.
pub(crate) fn seconds(ms: u64) -> String {
    match ms {
        0..=999 => format!("{ms} ms"),
        1_000..=119_999 => format!("{} s", ms.div_ceil(1000)),
        _ => format!("{} min", ms / 60_000),
    }
}
