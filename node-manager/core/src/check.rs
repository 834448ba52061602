//! What must hold after every verb; called in simulation, in property tests and in debug builds.

use std::collections::BTreeMap;

use types::ContainerId;

use crate::{Core, Lease, Phase};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An id was launched twice.
    #[error("{0} was launched {1} times")]
    LaunchedAgain(ContainerId, u32),
    /// A process without a durable record.
    #[error("{0} has a process but no durable record")]
    NotRecorded(ContainerId),
    /// Two containers of one slot may have processes.
    #[error("{older} and {newer} of one slot run together")]
    TwoInOneSlot {
        /// The lower incarnation.
        older: ContainerId,
        /// The higher one.
        newer: ContainerId,
    },
    /// An exit was published before it was durable.
    #[error("{0} is exited but its exit is not durable")]
    ExitNotRecorded(ContainerId),
    /// The phase and what belongs to it disagree.
    #[error("{id} is {phase:?} with {what}")]
    Inconsistent {
        /// Which.
        id: ContainerId,
        /// Where it is.
        phase: Phase,
        /// What is wrong.
        what: &'static str,
    },
    /// Something waits to run although the lease ended.
    #[error("{0} waits to run although the lease ended")]
    WaitsWithoutLease(ContainerId),
    /// What finds containers disagrees with them.
    #[error("what finds containers by slot, application or deadline is not what they are")]
    Lost,
    /// A session without a lease.
    #[error("a session is open although the lease ended")]
    SessionWithoutLease,
}

impl Core {
    /// Checks every invariant from scratch.
    pub fn check(&self) -> Result<(), Violation> {
        if self.session.is_some() && !matches!(self.lease, Lease::Until(_)) {
            return Err(Violation::SessionWithoutLease);
        }
        if !self.containers.is_sound() {
            return Err(Violation::Lost);
        }
        let mut in_slot: BTreeMap<String, ContainerId> = BTreeMap::new();
        for (id, container) in self.containers.iter() {
            let inconsistent = |what| Err(Violation::Inconsistent { id: *id, phase: container.phase, what });
            if container.launches > 1 {
                return Err(Violation::LaunchedAgain(*id, container.launches));
            }
            if container.phase.is_over() != container.exit.is_some() {
                return inconsistent("the wrong idea of its exit");
            }
            match container.phase {
                Phase::Localizing if self.lease == Lease::Lapsed => {
                    return Err(Violation::WaitsWithoutLease(*id));
                }
                Phase::Localizing if container.process.is_some() => return inconsistent("a process"),
                Phase::Starting if container.process.is_some() => return inconsistent("a process"),
                Phase::Running if container.process.is_none() => return inconsistent("no process"),
                Phase::Running if container.stop.is_some() => return inconsistent("a stop in force"),
                Phase::Stopping => {
                    if container.stop.as_ref().is_none_or(|stop| stop.kill_at.is_none()) {
                        return inconsistent("no kill in sight");
                    }
                }
                Phase::Exited if container.durable < container.version => {
                    return Err(Violation::ExitNotRecorded(*id));
                }
                Phase::Localizing | Phase::Starting | Phase::Running | Phase::Ending | Phase::Exited => {}
            }
            if container.phase.may_have_process() {
                if container.durable == 0 {
                    return Err(Violation::NotRecorded(*id));
                }
                let slot = match container.start.role {
                    types::Role::AppMaster { .. } => format!("{}/master", container.start.job),
                    types::Role::Worker { request } => format!("{}/{}", container.start.job, request.slot),
                };
                if let Some(older) = in_slot.insert(slot, *id) {
                    return Err(Violation::TwoInOneSlot { older, newer: *id });
                }
            }
        }
        Ok(())
    }
}
