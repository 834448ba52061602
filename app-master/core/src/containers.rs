//! Containers: adopted when they are reported, given their tasks when they say Hello, stopped when they are silent.

use types::{
    ContainerHello, ContainerId, ContainerState, ContainerStatus, ExitCause, PlacedContainer, Role, Timestamp,
};

use crate::core::{AmCore, Denied, HelloAnswer, Phase, Tracked};
use crate::event::Command;
use crate::place::SlotPlace;
use crate::slot::{SlotInput, SlotState};

/// A container that says nothing for so long, while the resource manager can be reached, is stopped, ms.
pub const SILENCE_MS: u64 = 10_000;
/// A silent container that the resource manager has not mentioned for so long since the session began is lost
/// with its node, ms: longer than a new resource manager waits for its nodes.
pub const UNLISTED_MS: u64 = 20_000;
/// So long may most containers be silent before this master asks to be moved, ms.
pub const DEAF_MS: u64 = 60_000;
/// A deadline seen so late is this process's own pause, ms: the silence is ours.
const OWN_PAUSE_MS: u64 = 2_000;

impl AmCore {
    /// A container changed, or was in an inventory.
    pub fn container(&mut self, now: Timestamp, placed: PlacedContainer, out: &mut Vec<Command>) {
        let Role::Worker { request } = placed.report.role else { return };
        let id = placed.report.id;
        let fresh = Tracked {
            slot: request.slot,
            heard: now,
            connected: false,
            ever_connected: false,
            listed: true,
            stop: None,
            stale: false,
            placed: placed.clone(),
        };
        let runs = |s: &ContainerState| s.rank() >= ContainerState::Running.rank();
        let tracked = self.containers.entry(id).or_insert(fresh);
        tracked.listed = true;
        if tracked.placed.report.state.rank() > placed.report.state.rank() {
            return;
        }
        if runs(&placed.report.state) && !runs(&tracked.placed.report.state) {
            tracked.heard = now;
        }
        tracked.placed = placed;
        self.react_to(now, id, out);
    }

    /// Reacts to everything that was reported before the model was known, the newest first.
    pub(crate) fn adopt_all(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let ids: Vec<ContainerId> = self.containers.keys().rev().copied().collect();
        self.in_inventory = true;
        for id in ids {
            self.react_to(now, id, out);
        }
        self.in_inventory = false;
    }

    fn react_to(&mut self, now: Timestamp, id: ContainerId, out: &mut Vec<Command>) {
        let tracked = &self.containers[&id];
        if let ContainerState::Exited { exit } = &tracked.placed.report.state {
            let exit = exit.clone();
            return self.exited(now, id, exit, out);
        }
        self.lost.remove(&tracked.placed.node);
        match &self.phase {
            Phase::Reading | Phase::Preparing => {}
            Phase::Running => self.adopt(now, id, out),
            Phase::Ending(ending) => {
                let (grace_ms, cause) = ending.how_to_stop();
                self.stop_container(id, grace_ms, cause, out);
            }
            Phase::Over(_) => self.stop_container(id, 0, ExitCause::KilledByAm, out),
        }
    }

    /// A live container: the newest of its slot has it, any other is stopped.
    fn adopt(&mut self, now: Timestamp, id: ContainerId, out: &mut Vec<Command>) {
        let tracked = &self.containers[&id];
        let (number, running) =
            (tracked.slot, tracked.placed.report.state.rank() >= ContainerState::Running.rank());
        let stopping = tracked.stop.is_some();
        let place = tracked.placed.clone();
        let Some(slot) = self.slots.get_mut(&number) else {
            return self.stop_container(id, 0, ExitCause::KilledByAm, out);
        };
        let current = slot.state.container();
        let older = slot.newest.is_some_and(|n| id < n) || slot.last_ended >= Some(id);
        if older || slot.state.is_over() {
            return self.stop_container(id, 0, ExitCause::KilledByAm, out);
        }
        if let Some(request) =
            slot.state.request().filter(|r| Role::Worker { request: *r } != place.report.role)
        {
            out.push(Command::CancelAsk(request));
        }
        let became_running = running && !matches!(slot.state, SlotState::Running { .. });
        if !stopping {
            slot.step(&if running { SlotInput::Running(id) } else { SlotInput::Placed(id) });
        }
        slot.newest = Some(id);
        slot.node = Some(place.node.clone());
        slot.waiting.clear();
        if current != Some(id) {
            slot.status = ContainerStatus::default();
        }
        if slot.preferences.is_empty() {
            let preferences = self.preferences_of(now, number);
            self.slots.get_mut(&number).expect("seen above").preferences = preferences;
        }
        if became_running && !stopping {
            let host = place.hosts.first().cloned().unwrap_or_default();
            out.push(Command::Remember {
                slot: number,
                place: SlotPlace { container: id, node: place.node, host },
            });
        }
        if let Some(old) = current.filter(|c| *c != id) {
            self.stop_container(old, 0, ExitCause::KilledByAm, out);
        }
    }

    /// Stops a container, or stops it harder than before.
    pub(crate) fn stop_container(
        &mut self,
        id: ContainerId,
        grace_ms: u64,
        cause: ExitCause,
        out: &mut Vec<Command>,
    ) {
        let Some(tracked) = self.containers.get_mut(&id).filter(|t| t.is_live()) else { return };
        if tracked.stop.as_ref().is_some_and(|(before, _)| *before <= grace_ms) {
            return;
        }
        tracked.stop = Some((grace_ms, cause.clone()));
        out.push(Command::Stop { container: id, grace_ms, cause });
    }

    /// A container's session begins.
    ///
    /// # Errors
    /// It is not one of ours, is over, or a newer one has its slot: it must end.
    pub fn container_hello(&mut self, now: Timestamp, hello: &ContainerHello) -> Result<HelloAnswer, Denied> {
        let (ours, theirs) = (&self.identity.app, &hello.app);
        if ours != theirs {
            return Err(Denied::WrongApplication { ours: ours.clone(), theirs: theirs.clone() });
        }
        let id = hello.container;
        let known = self.containers.get(&id);
        if known.is_some_and(|t| !t.is_live()) {
            return Err(Denied::NotWanted(id, "its node says that it is over"));
        }
        match &self.phase {
            // One that is being stopped commits by itself at its TERM; it must not be sent away before.
            Phase::Reading | Phase::Preparing | Phase::Ending(_) => return Ok(HelloAnswer::Wait),
            Phase::Running => {}
            Phase::Over(_) => return Err(Denied::NotWanted(id, "the job is over")),
        }
        let Some(slot) = self.slots.get(&hello.slot) else {
            return Err(Denied::NotWanted(id, "the job has no such slot"));
        };
        if slot.newest.is_some_and(|n| id < n) || slot.state.is_over() || slot.last_ended >= Some(id) {
            return Err(Denied::NotWanted(id, "its slot has a newer container, or none any more"));
        }
        if slot.state.container() != Some(id) || known.is_none() {
            return Ok(HelloAnswer::Wait);
        }
        let model = self.tasks_of(hello.slot).cloned().unwrap_or_default();
        if let Some(tracked) = self.containers.get_mut(&id) {
            tracked.connected = true;
            tracked.ever_connected = true;
            tracked.stale = hello.model.as_ref().is_some_and(|has| *has != model);
        }
        self.container_status(now, id, hello.status.clone());
        Ok(HelloAnswer::Model(model))
    }

    /// A container spoke.
    pub fn container_status(&mut self, now: Timestamp, id: ContainerId, status: ContainerStatus) {
        let Some(tracked) = self.containers.get_mut(&id) else { return };
        tracked.heard = now;
        if let Some(slot) = self.slots.get_mut(&tracked.slot).filter(|s| s.state.container() == Some(id)) {
            slot.status = status;
        }
    }

    /// A container's session is over; it may come again.
    pub fn container_gone(&mut self, id: ContainerId) {
        if let Some(tracked) = self.containers.get_mut(&id) {
            tracked.connected = false;
        }
    }

    /// Containers that should be talking to us: (id, since when they have not).
    fn talkers(&self) -> Vec<(ContainerId, Timestamp)> {
        let Some(session) = self.session_since else { return Vec::new() };
        let runs = |t: &Tracked| {
            t.is_live() && t.placed.report.state.rank() >= ContainerState::Running.rank() && t.stop.is_none()
        };
        let talkers = self.containers.iter().filter(|(_, t)| runs(t));
        talkers.map(|(id, t)| (*id, t.heard.max(session))).collect()
    }

    pub(crate) fn silence_deadline(&self) -> Option<Timestamp> {
        if !self.may_ask() {
            return None;
        }
        let deaf = self.deaf_since.map(|s| s.plus(DEAF_MS));
        let silent = if deaf.is_some() {
            self.deaf_check
        } else {
            self.talkers().into_iter().map(|(_, since)| since.plus(SILENCE_MS)).min()
        };
        [deaf, silent, self.unlisted_deadline()].into_iter().flatten().min()
    }

    pub(crate) fn unlisted_deadline(&self) -> Option<Timestamp> {
        self.unlisted().into_iter().map(|(_, at)| at).min()
    }

    /// Containers in a slot that the resource manager no longer mentions, with the time at which they count as lost.
    fn unlisted(&self) -> Vec<(ContainerId, Timestamp)> {
        let Some(session) = self.session_since else { return Vec::new() };
        let of = |(id, t): (&ContainerId, &Tracked)| {
            (t.is_live() && !t.listed).then(|| (*id, session.plus(UNLISTED_MS).max(t.heard.plus(SILENCE_MS))))
        };
        self.containers.iter().filter_map(of).collect()
    }

    pub(crate) fn judge_silence(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if !matches!(self.phase, Phase::Running | Phase::Ending(_)) || self.session_since.is_none() {
            return;
        }
        for (id, at) in self.unlisted() {
            if at <= now {
                self.exited(now, id, ExitCause::NodeLost, out);
            }
        }
        if self.phase != Phase::Running {
            return;
        }
        let talkers = self.talkers();
        let silent: Vec<(ContainerId, Timestamp)> =
            talkers.iter().copied().filter(|(_, since)| now.since(*since) >= SILENCE_MS).collect();
        let late = silent.iter().map(|(_, since)| now.since(*since) - SILENCE_MS).max().unwrap_or(0);
        if late > OWN_PAUSE_MS && self.deaf_since.is_none() {
            self.session_since = Some(now);
            return;
        }
        if talkers.len() >= 2 && silent.len() * 2 > talkers.len() {
            return self.deaf(now, &silent, out);
        }
        self.deaf_since = None;
        for (id, _) in silent {
            self.stop_silent(id, out);
        }
    }

    fn stop_silent(&mut self, id: ContainerId, out: &mut Vec<Command>) {
        self.end_in_slot(id, "silent for 10 s; being stopped");
        self.stop_container(id, 0, ExitCause::KilledByAm, out);
    }

    /// The node of a container is being emptied. It gets all the time there is to commit; its slot is asked for
    /// elsewhere when it has ended, since two containers of one slot would only fence each other.
    pub fn leave(&mut self, id: ContainerId, within_ms: u64, out: &mut Vec<Command>) {
        let known = self.containers.get(&id).is_some_and(Tracked::is_live);
        // In other phases containers are ending anyway, or not yet known for what they are.
        if known && self.phase == Phase::Running {
            self.end_in_slot(id, "its node is being drained; it moves");
            self.stop_container(id, within_ms, ExitCause::Preempted, out);
        }
    }

    /// Notes that a container is told to end, and why.
    pub(crate) fn end_in_slot(&mut self, id: ContainerId, why: &str) {
        let number = self.containers[&id].slot;
        if let Some(slot) = self.slots.get_mut(&number).filter(|s| s.state.container() == Some(id)) {
            slot.step(&SlotInput::StopSent);
            slot.waiting = vec![why.into()];
        }
    }

    /// More than half are silent at once: the fault is rather here than there. None is stopped; after a minute
    /// this master asks to be moved. One that was moved already, and to whom none of them ever spoke, stops them.
    fn deaf(&mut self, now: Timestamp, silent: &[(ContainerId, Timestamp)], out: &mut Vec<Command>) {
        self.deaf_check = Some(now.plus(1_000));
        let since = *self.deaf_since.get_or_insert(now);
        if now.since(since) < DEAF_MS {
            return;
        }
        self.deaf_since = None;
        self.session_since = Some(now);
        let never = silent.iter().all(|(id, _)| !self.containers[id].ever_connected);
        if self.identity.attempt > 1 && never {
            for (id, _) in silent {
                self.stop_silent(*id, out);
            }
        } else {
            out.push(Command::MoveMe(format!("{} containers are silent at once", silent.len())));
        }
    }
}
