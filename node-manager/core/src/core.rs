//! The core itself: its session with the resource manager, the lease, beats, and the dispatch of commands.

use std::collections::BTreeMap;

use types::{
    AppId, CommandStamp, ContainerId, ContainerReport, ContainerState, Epoch, ExitCause, FromNode, JobId,
    NodeBeat, NodeIncarnation, NodeWelcome, Resource, Role, StartContainer, Timestamp, ToNode,
};

use crate::all::Containers;
use crate::containers::Container;
use crate::{Command, ContainerView, Denied, Event, HelloFacts, Lease, Master, Phase, View};

/// An open session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) epoch: Epoch,
    pub(crate) number: u64,
    pub(crate) lease_ms: u64,
    pub(crate) beat_ms: u64,
    pub(crate) next_beat: Timestamp,
}

/// The node manager's core. See the crate's documentation.
#[derive(Debug, Clone)]
pub struct Core {
    pub(crate) incarnation: NodeIncarnation,
    pub(crate) top_epoch: Epoch,
    pub(crate) session: Option<Session>,
    pub(crate) lease: Lease,
    pub(crate) unhealthy: Option<String>,
    pub(crate) containers: Containers,
    pub(crate) masters: BTreeMap<AppId, Master>,
}

impl Core {
    /// A node without containers. `top_epoch` is the highest epoch seen in earlier lives, 0 if none.
    #[must_use]
    pub fn new(incarnation: NodeIncarnation, top_epoch: Epoch) -> Core {
        Core {
            incarnation,
            top_epoch,
            session: None,
            lease: Lease::None,
            unhealthy: None,
            containers: Containers::default(),
            masters: BTreeMap::new(),
        }
    }

    /// What to say in a Hello that is sent now. Every state in it counts as told.
    pub fn hello(&mut self, now: Timestamp) -> HelloFacts {
        let mut containers = Vec::new();
        for id in self.containers.ids() {
            let Some(mut container) = self.containers.edit(id) else { continue };
            let report = container.report();
            container.told = Some(report.state.clone());
            containers.push(report);
        }
        HelloFacts { containers, lease_lapsed: !self.lease.holds(now) }
    }

    /// The resource manager accepted the Hello that was sent at `hello_sent_at`. It stands for the first
    /// acknowledged beat. A resource manager of a lower epoch than one seen before is refused: close the session.
    pub fn welcome(
        &mut self,
        now: Timestamp,
        welcome: &NodeWelcome,
        hello_sent_at: Timestamp,
        out: &mut Vec<Command>,
    ) -> Result<(), Denied> {
        self.expire(now, out);
        if welcome.epoch < self.top_epoch {
            return Err(Denied::StaleEpoch { got: welcome.epoch, seen: self.top_epoch });
        }
        if welcome.epoch > self.top_epoch {
            self.top_epoch = welcome.epoch;
            out.push(Command::PersistEpoch(welcome.epoch));
        }
        self.session = Some(Session {
            epoch: welcome.epoch,
            number: welcome.session,
            lease_ms: welcome.lease_ms,
            beat_ms: welcome.beat_ms.max(1),
            next_beat: now.plus(welcome.beat_ms),
        });
        self.renew(now, hello_sent_at, welcome.lease_ms, out);
        self.expire(now, out);
        self.tell_all(out);
        Ok(())
    }

    /// The session is over. The lease runs on.
    pub fn session_lost(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        self.session = None;
        self.expire(now, out);
    }

    /// A command of the resource manager.
    pub fn command(
        &mut self,
        now: Timestamp,
        stamp: &CommandStamp,
        item: ToNode,
        out: &mut Vec<Command>,
    ) -> Result<(), Denied> {
        self.expire(now, out);
        let session = self.current(stamp)?;
        match item {
            ToNode::BeatAck { sent_at_ms } => {
                let sent_at = Timestamp(sent_at_ms);
                if sent_at > now {
                    return Err(Denied::FutureBeat);
                }
                self.renew(now, sent_at, session.lease_ms, out);
            }
            ToNode::Start(start) => self.start(now, *start, out),
            ToNode::Stop { container, grace_ms, cause } => self.stop(now, container, grace_ms, cause, out),
            ToNode::Forget { container } => self.forget(container, out)?,
            ToNode::AmAddress { app, attempt, address } => {
                self.learn_master(&app, Master { attempt, address }, out);
            }
            ToNode::Purge { job } => self.purge(job, out)?,
        }
        Ok(())
    }

    /// Whether the stamp is of this session, this epoch and this life of the node.
    fn current(&self, stamp: &CommandStamp) -> Result<Session, Denied> {
        if stamp.epoch < self.top_epoch {
            return Err(Denied::StaleEpoch { got: stamp.epoch, seen: self.top_epoch });
        }
        let session = self.session.ok_or(Denied::NoSession)?;
        if stamp.session != session.number || stamp.epoch != session.epoch {
            return Err(Denied::OtherSession { got: stamp.session, now: session.number });
        }
        if stamp.incarnation != self.incarnation {
            return Err(Denied::OtherIncarnation);
        }
        Ok(session)
    }

    /// The node's health changed; told with a beat at once.
    pub fn health(&mut self, now: Timestamp, unhealthy: Option<String>, out: &mut Vec<Command>) {
        self.expire(now, out);
        if self.unhealthy != unhealthy {
            self.unhealthy = unhealthy;
            self.beat(now, out);
        }
    }

    fn beat(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if let Some(session) = &mut self.session {
            session.next_beat = now.plus(session.beat_ms);
            let unhealthy = self.unhealthy.clone();
            out.push(Command::Send(FromNode::Beat(NodeBeat { sent_at_ms: now.0, unhealthy })));
        }
    }

    fn renew(&mut self, now: Timestamp, sent_at: Timestamp, lease_ms: u64, out: &mut Vec<Command>) {
        let renewed = self.lease.acknowledged(now, sent_at, lease_ms);
        if renewed != self.lease {
            self.lease = renewed;
            if self.containers.values().any(Container::stops_with_the_lease) {
                self.write_lease(out);
            }
        }
    }

    pub(crate) fn write_lease(&self, out: &mut Vec<Command>) {
        if let Lease::Until(end) = self.lease {
            out.push(Command::WriteLease(end));
        }
    }

    /// Acts on a lease that has ended by `now`. Every verb calls it first, so that a node manager that slept
    /// through its lease end never starts what it should have given up.
    pub(crate) fn expire(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let Lease::Until(end) = self.lease else { return };
        if now < end {
            return;
        }
        self.lease = Lease::Lapsed;
        if self.session.take().is_some() {
            out.push(Command::CloseSession);
        }
        self.give_up_after_lease(now, out);
    }

    /// When [`Core::handle_deadline`] wants to be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let lease = match self.lease {
            Lease::Until(end) => Some(end),
            Lease::None | Lease::Lapsed => None,
        };
        let beat = self.session.map(|session| session.next_beat);
        lease.into_iter().chain(beat).chain(self.containers.next_due()).min()
    }

    /// Lease end, beats, kills after grace, predecessors that do not die.
    pub fn handle_deadline(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        self.expire(now, out);
        if self.session.is_some_and(|session| session.next_beat <= now) {
            self.beat(now, out);
        }
        self.container_deadlines_passed(now, out);
    }

    /// Tells the resource manager what it has not been told in this session.
    pub(crate) fn tell_all(&mut self, out: &mut Vec<Command>) {
        for id in self.containers.ids() {
            self.tell(id, out);
        }
    }

    /// Tells a container's state if it is durable and not yet told in this session.
    pub(crate) fn tell(&mut self, id: ContainerId, out: &mut Vec<Command>) {
        if self.session.is_none() {
            return;
        }
        if let Some(mut container) = self.containers.edit(id)
            && container.durable > 0
        {
            let report = container.report();
            if container.told.as_ref() != Some(&report.state) {
                container.told = Some(report.state.clone());
                out.push(Command::Send(FromNode::Container(report)));
            }
        }
    }

    /// A stop of what is not here: it is over, and here is the cause that was asked for.
    pub(crate) fn tell_unknown(id: ContainerId, cause: ExitCause, out: &mut Vec<Command>) {
        out.push(Command::Send(FromNode::Container(ContainerReport {
            id,
            app: AppId::default(),
            job: JobId::default(),
            role: Role::AppMaster { attempt: 0 },
            resource: Resource::default(),
            state: ContainerState::Exited { exit: cause },
            pid: None,
            started_unix_ms: None,
            ended_unix_ms: None,
        })));
    }

    /// What was ordered about a container that is known.
    #[must_use]
    pub fn order(&self, id: ContainerId) -> Option<&StartContainer> {
        self.containers.get(id).map(|container| &container.start)
    }

    /// Of which job a container is, and where in its life; none if it is not known.
    #[must_use]
    pub fn where_is(&self, id: ContainerId) -> Option<(&JobId, Phase)> {
        self.containers.get(id).map(|container| (&container.start.job, container.phase))
    }

    /// Those that may have processes.
    pub fn with_processes(&self) -> impl Iterator<Item = ContainerId> {
        let with = self.containers.values().filter(|container| container.phase.may_have_process());
        with.map(|container| container.start.id)
    }

    /// The core as plain data.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            session: self.session.map(|session| (session.epoch, session.number)),
            lease: self.lease,
            containers: self
                .containers
                .iter()
                .map(|(id, container)| ContainerView {
                    id: *id,
                    app: container.start.app.clone(),
                    job: container.start.job.clone(),
                    phase: container.phase,
                    process: container.process,
                    exit: container.exit.as_ref().map(|exit| exit.cause.clone()),
                })
                .collect(),
        }
    }

    /// One event, for simulation and replay: a flat match onto the verbs.
    pub fn apply(&mut self, now: Timestamp, event: Event, out: &mut Vec<Command>) -> Result<(), Denied> {
        match event {
            Event::Welcome { welcome, hello_sent_at } => {
                return self.welcome(now, &welcome, hello_sent_at, out);
            }
            Event::SessionLost => self.session_lost(now, out),
            Event::Command { stamp, item } => return self.command(now, &stamp, item, out),
            Event::Persisted { id, version } => self.persisted(now, id, version, out),
            Event::PersistFailed { id, version, reason } => {
                self.persist_failed(now, id, version, reason, out)
            }
            Event::Localized { id, result } => self.localized(now, id, result, out),
            Event::Launched { id, process } => self.launched(now, id, process, out),
            Event::LaunchFailed { id, reason } => self.launch_failed(now, id, reason, out),
            Event::Ended { id, outcome, evidence, ended_unix_ms } => {
                self.ended(now, id, outcome, &evidence, ended_unix_ms, out);
            }
            Event::MemoryExhausted { id } => self.memory_exhausted(now, id, out),
            Event::Health { unhealthy } => self.health(now, unhealthy, out),
            Event::Deadline => self.handle_deadline(now, out),
        }
        Ok(())
    }
}
