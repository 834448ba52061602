//! What goes into the core and what comes out: events, commands, refusals, and the record that survives a restart.

use serde::{Deserialize, Serialize};
use types::{
    AppId, CommandStamp, ContainerId, ContainerReport, Epoch, ExitCause, FromNode, JobId, NodeWelcome,
    StartContainer, Timestamp, ToNode,
};

use crate::{Evidence, Lease, Outcome, Phase};

/// A process that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it started, unix ms.
    pub started_unix_ms: u64,
}

/// An application's master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Its attempt.
    pub attempt: u32,
    /// `host:port`.
    pub address: String,
}

/// What must be durable about a container. A record exists from before the first acknowledgement until Forget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// As ordered.
    pub start: StartContainer,
    /// The machine's boot in which it was ordered.
    pub boot_id: String,
    /// A stop in force.
    pub stop: Option<RecordedStop>,
    /// Its end.
    pub exit: Option<RecordedExit>,
}

/// A stop in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedStop {
    /// What the exit will be called.
    pub cause: ExitCause,
    /// Between TERM and kill, ms.
    pub grace_ms: u64,
}

/// A container's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedExit {
    /// Why.
    pub cause: ExitCause,
    /// The process it had.
    pub process: Option<Process>,
    /// When, unix ms; none if it never ran.
    pub ended_unix_ms: Option<u64>,
}

/// A container of an earlier life of the node manager.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovered {
    /// Its record.
    pub record: Record,
    /// What the machine shows of it. Not looked at if the record holds an exit or is of another boot.
    pub found: Found,
}

/// What is left of a container after a restart of the node manager.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// No shim was ever started for it, and none will be.
    NeverStarted,
    /// Its process runs, under a shim that the driver watches again.
    Running(Process),
    /// It ended meanwhile.
    Ended {
        /// The process it had, if that is known.
        process: Option<Process>,
        /// How it ended.
        outcome: Outcome,
        /// What the machine shows.
        evidence: Evidence,
        /// When, unix ms.
        ended_unix_ms: Option<u64>,
    },
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Write the record durably, then say [`Event::Persisted`]. A lower version never overwrites a higher one, and
    /// one that comes late never undoes a [`Command::Remove`].
    Persist {
        /// Whose.
        id: ContainerId,
        /// Counts the container's records, from 1.
        version: u64,
        /// What.
        record: Box<Record>,
    },
    /// Remember the highest epoch seen; soon is enough.
    PersistEpoch(Epoch),
    /// Bring the artefacts, then say [`Event::Localized`].
    Localize {
        /// Of which container.
        id: ContainerId,
    },
    /// Make the cgroup, start the shim and the process, then say [`Event::Launched`] or [`Event::LaunchFailed`];
    /// after Launched say [`Event::Ended`] once the process and all it left are gone. At most once per id.
    Launch {
        /// Which.
        id: ContainerId,
        /// Where its application's master is.
        master: Option<Master>,
    },
    /// Send TERM to the container's process group.
    Terminate {
        /// Which.
        id: ContainerId,
    },
    /// Kill the whole cgroup until nothing is left in it.
    Kill {
        /// Which.
        id: ContainerId,
    },
    /// Remove record, work directory and whatever is left. Logs stay.
    Remove {
        /// Which.
        id: ContainerId,
    },
    /// Replace the file that tells a container where its master is.
    WriteMaster {
        /// Whose file.
        id: ContainerId,
        /// What it says.
        master: Master,
    },
    /// Tell the shims of `on-lease-loss = "stop"` containers when the lease ends.
    WriteLease(Timestamp),
    /// Remove a job's state directories.
    PurgeState(JobId),
    /// Send an item to the resource manager.
    Send(FromNode),
    /// End this session and say Hello anew.
    CloseSession,
}

/// Everything that can happen to the core, for simulation and replay. Each is one verb.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// [`crate::Core::welcome`].
    Welcome {
        /// The answer to our Hello.
        welcome: NodeWelcome,
        /// When that Hello was sent.
        hello_sent_at: Timestamp,
    },
    /// [`crate::Core::session_lost`].
    SessionLost,
    /// [`crate::Core::command`].
    Command {
        /// Proves it current.
        stamp: CommandStamp,
        /// What is wanted.
        item: ToNode,
    },
    /// [`crate::Core::persisted`].
    Persisted {
        /// Whose.
        id: ContainerId,
        /// As in the command.
        version: u64,
    },
    /// [`crate::Core::persist_failed`].
    PersistFailed {
        /// Whose.
        id: ContainerId,
        /// As in the command.
        version: u64,
        /// Why, for people.
        reason: String,
    },
    /// [`crate::Core::localized`].
    Localized {
        /// Whose.
        id: ContainerId,
        /// The error is for people.
        result: Result<(), String>,
    },
    /// [`crate::Core::launched`].
    Launched {
        /// Which.
        id: ContainerId,
        /// Its process.
        process: Process,
    },
    /// [`crate::Core::launch_failed`].
    LaunchFailed {
        /// Which.
        id: ContainerId,
        /// Why, for people.
        reason: String,
    },
    /// [`crate::Core::ended`].
    Ended {
        /// Which.
        id: ContainerId,
        /// How.
        outcome: Outcome,
        /// What the machine shows.
        evidence: Evidence,
        /// When, unix ms.
        ended_unix_ms: Option<u64>,
    },
    /// [`crate::Core::memory_exhausted`].
    MemoryExhausted {
        /// Which.
        id: ContainerId,
    },
    /// [`crate::Core::health`].
    Health {
        /// Why the node should get no new containers; none if it is well.
        unhealthy: Option<String>,
    },
    /// [`crate::Core::handle_deadline`].
    Deadline,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no session.
    #[error("there is no session with a resource manager")]
    NoSession,
    /// The sender is an older resource manager.
    #[error("epoch {} is older than {}, which was seen before", got.0, seen.0)]
    StaleEpoch {
        /// The sender's.
        got: Epoch,
        /// The highest seen.
        seen: Epoch,
    },
    /// It is for another session.
    #[error("it is for session {got}, this is session {now}")]
    OtherSession {
        /// Its.
        got: u64,
        /// Ours.
        now: u64,
    },
    /// It is for another life of this node.
    #[error("it is for another boot or state folder of this node")]
    OtherIncarnation,
    /// The container is not over, so it cannot be forgotten.
    #[error("{0} is not over")]
    NotExited(ContainerId),
    /// The job's state is in use.
    #[error("state of job {0} is in use by a container")]
    StateInUse(JobId),
    /// An acknowledgement of a beat that was never sent.
    #[error("acknowledged a beat of the future")]
    FutureBeat,
}

/// What a Hello says, besides the node's fixed facts.
#[derive(Debug, Clone, PartialEq)]
pub struct HelloFacts {
    /// Every container not yet forgotten.
    pub containers: Vec<ContainerReport>,
    /// Whether the lease ended since the last session.
    pub lease_lapsed: bool,
}

/// The core as plain data.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The session's epoch and number.
    pub session: Option<(Epoch, u64)>,
    /// The lease.
    pub lease: Lease,
    /// The containers by id.
    pub containers: Vec<ContainerView>,
}

/// One container as plain data.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerView {
    /// Which.
    pub id: ContainerId,
    /// Of which application.
    pub app: AppId,
    /// Of which job.
    pub job: JobId,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its process.
    pub process: Option<Process>,
    /// Its exit once known.
    pub exit: Option<ExitCause>,
}
