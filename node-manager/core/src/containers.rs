//! The verbs on containers: start, stop, forget, what came of their commands, and adoption after a restart.

use types::{
    AppId, ContainerId, ContainerReport, ContainerState, ExitCause, JobId, OnLeaseLoss, Role, StartContainer,
    Timestamp,
};

use crate::all::slot;
use crate::{
    Command, Core, Denied, Evidence, Found, Input, Master, Outcome, Phase, Process, Record, RecordedExit,
    RecordedStop, Recovered, cause_of, step,
};

/// How long a predecessor has to die after it was killed, ms.
const PREDECESSOR_MS: u64 = 5_000;
/// How long after a kill the next one follows if the container is still there, ms.
const KILL_AGAIN_MS: u64 = 5_000;

/// A stop in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StopOrder {
    pub(crate) cause: ExitCause,
    pub(crate) grace_ms: u64,
    /// When to kill; none while the process is not known to run yet.
    pub(crate) kill_at: Option<Timestamp>,
}

/// One container.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) start: StartContainer,
    pub(crate) boot_id: String,
    pub(crate) phase: Phase,
    /// Version of the newest record ordered.
    pub(crate) version: u64,
    /// Version of the newest record known durable.
    pub(crate) durable: u64,
    pub(crate) localized: bool,
    /// When a predecessor that still lives makes the launch fail; none once that was looked at.
    pub(crate) wait_until: Option<Timestamp>,
    pub(crate) stop: Option<StopOrder>,
    pub(crate) process: Option<Process>,
    pub(crate) exit: Option<RecordedExit>,
    /// The master that Launch was given.
    pub(crate) launched_with: Option<Master>,
    pub(crate) launches: u32,
    /// What the resource manager was last told in this session.
    pub(crate) told: Option<ContainerState>,
}

impl Container {
    fn new(now: Timestamp, start: StartContainer, boot_id: String) -> Container {
        Container {
            start,
            boot_id,
            phase: Phase::Localizing,
            version: 0,
            durable: 0,
            localized: false,
            wait_until: Some(now.plus(PREDECESSOR_MS)),
            stop: None,
            process: None,
            exit: None,
            launched_with: None,
            launches: 0,
            told: None,
        }
    }

    /// What the resource manager may know: an exit only once it is durable.
    pub(crate) fn report(&self) -> ContainerReport {
        let state = match self.phase {
            Phase::Localizing => ContainerState::Localizing,
            Phase::Starting => ContainerState::Starting,
            Phase::Running => ContainerState::Running,
            Phase::Stopping | Phase::Ending => ContainerState::Stopping,
            Phase::Exited => {
                let exit = self.exit.as_ref().expect("a container is Exited only with an exit");
                ContainerState::Exited { exit: exit.cause.clone() }
            }
        };
        let over = self.exit.as_ref().filter(|_| self.phase == Phase::Exited);
        ContainerReport {
            id: self.start.id,
            app: self.start.app.clone(),
            job: self.start.job.clone(),
            role: self.start.role,
            resource: self.start.resource,
            state,
            pid: self.process.map(|process| process.pid),
            started_unix_ms: self.process.map(|process| process.started_unix_ms),
            ended_unix_ms: over.and_then(|exit| exit.ended_unix_ms),
        }
    }

    pub(crate) fn stops_with_the_lease(&self) -> bool {
        self.start.on_lease_loss == OnLeaseLoss::Stop && !self.phase.is_over()
    }

    /// When something is due: a kill, or an end to the patience with a predecessor.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Stopping => self.stop.as_ref().and_then(|stop| stop.kill_at),
            Phase::Localizing => self.wait_until,
            Phase::Starting | Phase::Running | Phase::Ending | Phase::Exited => None,
        }
    }

    fn persist(&mut self, out: &mut Vec<Command>) {
        self.version += 1;
        let record = Record {
            start: self.start.clone(),
            boot_id: self.boot_id.clone(),
            stop: self
                .stop
                .as_ref()
                .map(|stop| RecordedStop { cause: stop.cause.clone(), grace_ms: stop.grace_ms }),
            exit: self.exit.clone(),
        };
        out.push(Command::Persist { id: self.start.id, version: self.version, record: Box::new(record) });
    }

    /// One step of the table; panics on what cannot happen, since going on would break what the table promises.
    fn step(&mut self, input: Input) {
        match step(self.phase, input) {
            Some(next) => self.phase = next,
            None => panic!("{}: {input:?} cannot happen in {:?}", self.start.id, self.phase),
        }
    }

    /// Ends it: from now on its exit is known, and it is reported once `out`'s record is durable.
    fn finish(&mut self, input: Input, cause: ExitCause, ended_unix_ms: Option<u64>, out: &mut Vec<Command>) {
        self.step(input);
        self.exit = Some(RecordedExit { cause, process: self.process, ended_unix_ms });
        self.persist(out);
    }

    /// Carries out a stop on a process that runs.
    fn carry_out_stop(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        self.step(Input::Stop);
        let id = self.start.id;
        let stop = self.stop.as_mut().expect("called with a stop in force");
        if stop.grace_ms == 0 {
            stop.kill_at = Some(now.plus(KILL_AGAIN_MS));
            out.push(Command::Kill { id });
        } else {
            stop.kill_at = Some(now.plus(stop.grace_ms));
            out.push(Command::Terminate { id });
        }
    }

    /// Wants it to end. The first cause stays; a shorter grace counts.
    fn order_stop(&mut self, now: Timestamp, grace_ms: u64, cause: ExitCause, out: &mut Vec<Command>) {
        match self.phase {
            Phase::Localizing => {
                self.finish(Input::Stop, cause, None, out);
            }
            Phase::Starting => {
                let grace_ms = self.stop.as_ref().map_or(grace_ms, |stop| stop.grace_ms.min(grace_ms));
                let cause = self.stop.take().map_or(cause, |stop| stop.cause);
                self.stop = Some(StopOrder { cause, grace_ms, kill_at: None });
                self.persist(out);
            }
            Phase::Running => {
                self.stop = Some(StopOrder { cause, grace_ms, kill_at: None });
                self.persist(out);
                self.carry_out_stop(now, out);
            }
            Phase::Stopping => {
                let id = self.start.id;
                let stop = self.stop.as_mut().expect("Stopping has a stop in force");
                if grace_ms == 0 && stop.grace_ms > 0 {
                    stop.grace_ms = 0;
                    stop.kill_at = Some(now.plus(KILL_AGAIN_MS));
                    out.push(Command::Kill { id });
                } else if stop.kill_at.is_none_or(|at| now.plus(grace_ms) < at) && stop.grace_ms > 0 {
                    stop.kill_at = Some(now.plus(grace_ms));
                }
            }
            Phase::Ending | Phase::Exited => {}
        }
    }
}

impl Core {
    /// Takes over what an earlier life of the node manager left. Call once, before anything else.
    pub fn recover(&mut self, now: Timestamp, left: Vec<Recovered>, out: &mut Vec<Command>) {
        for Recovered { record, found } in left {
            let same_boot = record.boot_id == self.incarnation.boot_id;
            let mut container = Container::new(now, record.start, record.boot_id);
            (container.version, container.durable) = (1, 1);
            container.stop = record.stop.map(|stop| StopOrder {
                cause: stop.cause,
                grace_ms: stop.grace_ms,
                kill_at: None,
            });
            match (record.exit, found) {
                (Some(exit), _) => {
                    container.process = exit.process;
                    container.phase = Phase::Exited;
                    container.exit = Some(exit);
                }
                (None, _) if !same_boot => container.finish(Input::Failed, ExitCause::NodeLost, None, out),
                // Whether the lease still held is not known; ending it is always safe.
                (None, Found::NeverStarted) => {
                    container.finish(Input::LeaseEnded, ExitCause::LeaseExpired, None, out);
                }
                (None, Found::Running(process)) => {
                    container.phase = Phase::Running;
                    container.process = Some(process);
                    if container.stop.is_some() {
                        container.carry_out_stop(now, out);
                    }
                }
                (None, Found::Ended { process, outcome, evidence, ended_unix_ms }) => {
                    container.phase = Phase::Running;
                    container.process = process;
                    let cause = cause_of(outcome, &evidence, container.stop.as_ref().map(|stop| &stop.cause));
                    container.finish(Input::Gone, cause, ended_unix_ms, out);
                }
            }
            self.containers.insert(container);
        }
    }

    /// Start: a known id only reports; the older ones of its slot are killed; an older one than what is known of
    /// its slot never runs.
    pub(crate) fn start(&mut self, now: Timestamp, start: StartContainer, out: &mut Vec<Command>) {
        let id = start.id;
        if self.containers.edit(id).map(|mut known| known.told = None).is_some() {
            return self.tell(id, out);
        }
        if let (Role::Worker { request }, Some(address)) = (start.role, &start.am_address) {
            let master = Master { attempt: request.attempt, address: address.clone() };
            self.learn_master(&start.app, master, out);
        }
        let known: Vec<ContainerId> = self.containers.of_slot(&slot(&start)).map(|c| c.start.id).collect();
        let superseded = known.last().filter(|newest| **newest > id);
        let superseded = superseded.map(|newest| format!("superseded by {newest}"));
        for older in known.into_iter().filter(|known| *known < id) {
            if let Some(mut older) = self.containers.edit(older) {
                older.order_stop(now, 0, ExitCause::Fenced, out);
            }
            self.tell(older, out);
        }
        let mut container = Container::new(now, start, self.incarnation.boot_id.clone());
        match superseded {
            Some(reason) => container.finish(Input::Failed, ExitCause::LaunchFailed { reason }, None, out),
            None => {
                container.persist(out);
                out.push(Command::Localize { id });
            }
        }
        self.containers.insert(container);
    }

    pub(crate) fn stop(
        &mut self,
        now: Timestamp,
        id: ContainerId,
        grace_ms: u64,
        cause: ExitCause,
        out: &mut Vec<Command>,
    ) {
        let Some(mut container) = self.containers.edit(id) else {
            return Core::tell_unknown(id, cause, out);
        };
        if container.phase.is_over() {
            container.told = None;
        }
        container.order_stop(now, grace_ms, cause, out);
        drop(container);
        self.tell(id, out);
        self.launch_successors(now, id, out);
    }

    pub(crate) fn forget(&mut self, id: ContainerId, out: &mut Vec<Command>) -> Result<(), Denied> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        if container.phase != Phase::Exited {
            return Err(Denied::NotExited(id));
        }
        let app = container.start.app.clone();
        self.containers.remove(id);
        if !self.containers.has_app(&app) {
            self.masters.remove(&app);
        }
        out.push(Command::Remove { id });
        Ok(())
    }

    pub(crate) fn purge(&mut self, job: JobId, out: &mut Vec<Command>) -> Result<(), Denied> {
        if self.containers.values().any(|container| container.start.job == job && !container.phase.is_over())
        {
            return Err(Denied::StateInUse(job));
        }
        out.push(Command::PurgeState(job));
        Ok(())
    }

    /// A master of a lower attempt than one known is a dead one.
    pub(crate) fn learn_master(&mut self, app: &AppId, master: Master, out: &mut Vec<Command>) {
        if self.masters.get(app).is_some_and(|known| known.attempt > master.attempt || *known == master) {
            return;
        }
        self.masters.insert(app.clone(), master.clone());
        for container in self.containers.values() {
            let is_worker = matches!(container.start.role, Role::Worker { .. });
            if container.start.app == *app
                && is_worker
                && matches!(container.phase, Phase::Running | Phase::Stopping)
            {
                out.push(Command::WriteMaster { id: container.start.id, master: master.clone() });
            }
        }
    }

    /// A record is durable.
    pub fn persisted(&mut self, now: Timestamp, id: ContainerId, version: u64, out: &mut Vec<Command>) {
        self.expire(now, out);
        let Some(mut container) = self.containers.edit(id) else { return };
        container.durable = container.durable.max(version);
        if container.phase == Phase::Ending && container.durable >= container.version {
            container.step(Input::ExitRecorded);
        }
        drop(container);
        self.try_launch(now, id, out);
        self.tell(id, out);
    }

    /// A record could not be written. Without its first record a container never runs; an exit that cannot be
    /// recorded is told all the same, since the process is gone and can be found gone again.
    pub fn persist_failed(
        &mut self,
        now: Timestamp,
        id: ContainerId,
        version: u64,
        reason: String,
        out: &mut Vec<Command>,
    ) {
        self.expire(now, out);
        let Some(mut container) = self.containers.edit(id) else { return };
        match container.phase {
            Phase::Localizing if container.durable == 0 => {
                let reason = format!("its record cannot be written: {reason}");
                container.finish(Input::Failed, ExitCause::LaunchFailed { reason }, None, out);
                drop(container);
                self.launch_successors(now, id, out);
            }
            Phase::Ending if version >= container.version => {
                drop(container);
                self.persisted(now, id, version, out);
            }
            Phase::Localizing
            | Phase::Starting
            | Phase::Running
            | Phase::Stopping
            | Phase::Ending
            | Phase::Exited => {}
        }
    }

    /// Its artefacts are there, or cannot be had.
    pub fn localized(
        &mut self,
        now: Timestamp,
        id: ContainerId,
        result: Result<(), String>,
        out: &mut Vec<Command>,
    ) {
        self.expire(now, out);
        let Some(mut container) = self.containers.edit(id) else { return };
        if container.phase != Phase::Localizing {
            return;
        }
        match result {
            Ok(()) => container.localized = true,
            Err(reason) => container.finish(Input::Failed, ExitCause::LaunchFailed { reason }, None, out),
        }
        drop(container);
        self.try_launch(now, id, out);
        self.tell(id, out);
        self.launch_successors(now, id, out);
    }

    /// Its process runs.
    pub fn launched(&mut self, now: Timestamp, id: ContainerId, process: Process, out: &mut Vec<Command>) {
        self.expire(now, out);
        let Some(mut container) = self.containers.edit(id) else { return };
        if container.phase != Phase::Starting {
            return;
        }
        container.process = Some(process);
        container.step(Input::Launched);
        if container.stop.is_some() {
            container.carry_out_stop(now, out);
        }
        let master = self.masters.get(&container.start.app);
        let is_worker = matches!(container.start.role, Role::Worker { .. });
        if let Some(master) = master
            && is_worker
            && container.launched_with.as_ref() != Some(master)
        {
            out.push(Command::WriteMaster { id, master: master.clone() });
        }
        drop(container);
        self.tell(id, out);
    }

    /// It could not be started, and nothing of it is left.
    pub fn launch_failed(&mut self, now: Timestamp, id: ContainerId, reason: String, out: &mut Vec<Command>) {
        self.expire(now, out);
        let Some(mut container) = self.containers.edit(id) else { return };
        if container.phase != Phase::Starting {
            return;
        }
        let cause =
            container.stop.as_ref().map_or(ExitCause::LaunchFailed { reason }, |stop| stop.cause.clone());
        container.finish(Input::Failed, cause, None, out);
        drop(container);
        self.tell(id, out);
        self.launch_successors(now, id, out);
    }

    /// Its process is over and nothing of it is left in its cgroup.
    pub fn ended(
        &mut self,
        now: Timestamp,
        id: ContainerId,
        outcome: Outcome,
        evidence: &Evidence,
        ended_unix_ms: Option<u64>,
        out: &mut Vec<Command>,
    ) {
        self.expire(now, out);
        let Some(mut container) = self.containers.edit(id) else { return };
        if !container.phase.may_have_process() {
            return;
        }
        let cause = cause_of(outcome, evidence, container.stop.as_ref().map(|stop| &stop.cause));
        container.finish(Input::Gone, cause, ended_unix_ms, out);
        drop(container);
        self.tell(id, out);
        self.launch_successors(now, id, out);
    }

    /// The kernel killed a process of it at its memory limit. What is left of it cannot be trusted: kill the rest.
    /// The cgroup's evidence names the exit.
    pub fn memory_exhausted(&mut self, now: Timestamp, id: ContainerId, out: &mut Vec<Command>) {
        self.expire(now, out);
        if self.containers.get(id).is_some_and(|container| container.phase == Phase::Running) {
            out.push(Command::Kill { id });
        }
    }

    pub(crate) fn give_up_after_lease(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        for id in self.containers.ids() {
            let Some(mut container) = self.containers.edit(id) else { continue };
            match container.phase {
                Phase::Localizing => {
                    container.finish(Input::LeaseEnded, ExitCause::LeaseExpired, None, out);
                }
                Phase::Starting | Phase::Running | Phase::Stopping => {
                    container.step(Input::LeaseEnded);
                    if container.stops_with_the_lease() {
                        container.order_stop(now, 0, ExitCause::LeaseExpired, out);
                    }
                }
                Phase::Ending | Phase::Exited => {}
            }
        }
    }

    /// The older one of its slot that may still have a process or get one.
    fn predecessor(&self, container: &Container) -> Option<ContainerId> {
        let older = self.containers.of_slot(&slot(&container.start));
        let mut older = older.take_while(|older| older.start.id < container.start.id);
        older.find(|older| !older.phase.is_over()).map(|older| older.start.id)
    }

    /// Launches the one that waited for `id` alone.
    fn launch_successors(&mut self, now: Timestamp, id: ContainerId, out: &mut Vec<Command>) {
        let Some(container) = self.containers.get(id) else { return };
        let of_slot = self.containers.of_slot(&slot(&container.start));
        let newer: Vec<ContainerId> = of_slot
            .filter(|other| other.start.id > id && other.phase == Phase::Localizing)
            .map(|other| other.start.id)
            .collect();
        for id in newer {
            self.try_launch(now, id, out);
            self.tell(id, out);
        }
    }

    fn try_launch(&mut self, now: Timestamp, id: ContainerId, out: &mut Vec<Command>) {
        let Some(container) = self.containers.get(id) else { return };
        let ready = container.phase == Phase::Localizing && container.durable > 0 && container.localized;
        if !ready || !self.lease.holds(now) || self.predecessor(container).is_some() {
            return;
        }
        if container.stops_with_the_lease() {
            self.write_lease(out);
        }
        let master = match container.start.role {
            Role::AppMaster { .. } => None,
            Role::Worker { .. } => self.masters.get(&container.start.app).cloned(),
        };
        let mut container = self.containers.edit(id).expect("looked up above");
        container.step(Input::Ready);
        container.launches += 1;
        container.launched_with = master.clone();
        out.push(Command::Launch { id, master });
    }

    /// Kills that are due, and predecessors that do not die.
    pub(crate) fn container_deadlines_passed(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        for id in self.containers.due_by(now) {
            let predecessor = self.containers.get(id).and_then(|container| self.predecessor(container));
            let Some(mut container) = self.containers.edit(id) else { continue };
            match container.phase {
                Phase::Localizing => {
                    container.wait_until = None;
                    if let Some(predecessor) = predecessor {
                        let reason = format!("predecessor {predecessor} did not die");
                        container.finish(Input::Failed, ExitCause::LaunchFailed { reason }, None, out);
                        drop(container);
                        self.launch_successors(now, id, out);
                    }
                }
                Phase::Stopping => {
                    if let Some(stop) = &mut container.stop {
                        stop.kill_at = Some(now.plus(KILL_AGAIN_MS));
                        stop.grace_ms = 0;
                        out.push(Command::Kill { id });
                    }
                }
                Phase::Starting | Phase::Running | Phase::Ending | Phase::Exited => {}
            }
        }
    }
}
