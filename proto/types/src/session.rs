//! What the three sessions carry: node ↔ resource manager, application master ↔ resource manager,
//! container ↔ application master.
//!
//! On each, the dialler speaks first with a Hello that holds everything the other must know (its full
//! inventory); the listener answers with a Welcome; then both send items. Every item can be derived from its
//! sender's state, so after a reconnect nothing is replayed: both sides drop what was queued and say Hello anew
//! from the state of that moment. "Sent" never means "delivered": what must not be lost (an exit) is kept by its
//! sender until an item acknowledges it by name (`Forget`, `AckExit`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    AppId, Artefact, ContainerId, Epoch, ExitCause, Incarnation, JobId, JobSpec, JobStatus, NodeId,
    NodeIncarnation, OnLeaseLoss, RequestId, Resource, Secrets, Spread,
};

// ---------------------------------------------------------------- node manager → resource manager

/// A node manager's first words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeHello {
    /// The node.
    pub node: NodeId,
    /// Its boot and state folder.
    pub incarnation: NodeIncarnation,
    /// What it offers.
    pub total: Resource,
    /// Every name it is known by: `--host`, else hostname, FQDN and addresses.
    pub hosts: Vec<String>,
    /// Its rack, empty if unknown.
    pub rack: String,
    /// `--label key=value`.
    pub labels: BTreeMap<String, String>,
    /// Where its log service listens, `host:port`.
    pub address: String,
    /// Every container it has not been told to forget, exited ones too.
    pub containers: Vec<ContainerReport>,
    /// Local state it keeps.
    pub state: Vec<StateEntry>,
    /// Whether its lease ended since its last session: what was queued or localizing has been ended durably.
    pub lease_lapsed: bool,
    /// Version of the node manager.
    pub version: String,
}

/// The resource manager's answer to [`NodeHello`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeWelcome {
    /// The resource manager's epoch; commands of a lower one are refused from now on.
    pub epoch: Epoch,
    /// This session's number, unique within the epoch.
    pub session: u64,
    /// The lease's length, ms.
    pub lease_ms: u64,
    /// How often to beat, ms.
    pub beat_ms: u64,
}

/// A node manager's items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromNode {
    /// Renews the lease.
    Beat(NodeBeat),
    /// A container changed its state. Later states of one id are never followed by earlier ones.
    Container(ContainerReport),
    /// The whole list of local state, after it changed.
    State(Vec<StateEntry>),
    /// Containers' usage, with the beats.
    Usage(Vec<ContainerUsage>),
}

/// One beat.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NodeBeat {
    /// The node's CLOCK_BOOTTIME in ms, returned in the ack; opaque to the resource manager.
    pub sent_at_ms: u64,
    /// Why the node should get no new containers; none if it is well.
    pub unhealthy: Option<String>,
}

/// What a container's cgroup says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    /// Whose.
    pub container: ContainerId,
    /// Bytes now.
    pub memory_bytes: u64,
    /// CPU used over the last interval, thousandths of a core.
    pub cpu_millis: u32,
    /// What it waits for; none where the kernel does not tell (cgroup v1).
    pub pressure: Option<Pressure>,
}

/// How much of the last 10 s some of a container's work waited for each, percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pressure {
    /// For a processor.
    pub cpu: u8,
    /// For memory.
    pub memory: u8,
    /// For disks.
    pub io: u8,
}

/// A node's word about one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// Which.
    pub id: ContainerId,
    /// Of which application.
    pub app: AppId,
    /// Of which job.
    pub job: JobId,
    /// What it is.
    pub role: Role,
    /// What it holds.
    pub resource: Resource,
    /// What it is doing.
    pub state: ContainerState,
    /// Its process, once it runs.
    pub pid: Option<u32>,
    /// When its process started, unix ms.
    pub started_unix_ms: Option<u64>,
    /// When it ended, unix ms.
    pub ended_unix_ms: Option<u64>,
}

/// What a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The application master of this attempt.
    AppMaster {
        /// The attempt, from 1.
        attempt: u32,
    },
    /// A container that answers an ask.
    Worker {
        /// The ask.
        request: RequestId,
    },
}

/// A container's life as its node and the resource manager see it; ordered, never backwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum ContainerState {
    /// The resource manager picked a node; the node does not know yet.
    Allocated,
    /// Artefacts are being fetched.
    Localizing,
    /// The shim is being started.
    Starting,
    /// Its process runs.
    Running,
    /// It was told to end.
    Stopping,
    /// It is over.
    Exited {
        /// Why.
        exit: ExitCause,
    },
}

impl ContainerState {
    /// Its place in the order of a life; a report of a lower rank than one already seen is stale.
    #[must_use]
    pub fn rank(&self) -> u8 {
        match self {
            ContainerState::Allocated => 0,
            ContainerState::Localizing => 1,
            ContainerState::Starting => 2,
            ContainerState::Running => 3,
            ContainerState::Stopping => 4,
            ContainerState::Exited { .. } => 5,
        }
    }
    /// Whether it is over.
    #[must_use]
    pub fn is_exited(&self) -> bool {
        matches!(self, ContainerState::Exited { .. })
    }
}

/// Local state a node keeps: an opaque fact to everyone but the job's application master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateEntry {
    /// Whose.
    pub job: JobId,
    /// The folder's name below the job's, see [`crate::state_entry`].
    pub entry: String,
    /// Its size.
    pub bytes: u64,
    /// Its last change, unix ms.
    pub flushed_unix_ms: u64,
}

// ---------------------------------------------------------------- resource manager → node manager

/// The resource manager's items to a node; each travels with [`CommandStamp`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToNode {
    /// Acknowledges a beat: the lease now ends at its `sent_at_ms` + the lease's length.
    BeatAck {
        /// The beat's.
        sent_at_ms: u64,
    },
    /// Start a container. A known id reports its state and runs nothing.
    Start(Box<StartContainer>),
    /// TERM, wait, then kill the whole cgroup. An unknown id is reported as exited with `cause`.
    Stop {
        /// Which.
        container: ContainerId,
        /// How long after TERM, ms; 0 kills at once.
        grace_ms: u64,
        /// What its exit is to be called, unless it ends by itself first.
        cause: ExitCause,
    },
    /// The exit has been seen by all who must; its record and work directory may go (logs stay for a time).
    Forget {
        /// Which.
        container: ContainerId,
    },
    /// Where the application's master is now: written to the file of each of its containers.
    AmAddress {
        /// Of which application.
        app: AppId,
        /// The master's attempt.
        attempt: u32,
        /// `host:port`.
        address: String,
    },
    /// Remove a job's local state.
    Purge {
        /// Whose.
        job: JobId,
    },
}

/// What proves a command current; a node refuses others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CommandStamp {
    /// The sender's epoch.
    pub epoch: Epoch,
    /// The session it is for.
    pub session: u64,
    /// The node's life it is for.
    pub incarnation: NodeIncarnation,
}

/// All a node needs to run a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartContainer {
    /// Its id; the incarnation is in it.
    pub id: ContainerId,
    /// Of which application.
    pub app: AppId,
    /// Of which job: names its state folder.
    pub job: JobId,
    /// What it is.
    pub role: Role,
    /// Its limits.
    pub resource: Resource,
    /// Files it is given, from the resource manager's artefact store.
    pub artefacts: Vec<Artefact>,
    /// The command line; a first word that names an artefact is run from the work directory.
    pub command: Vec<String>,
    /// Extra environment.
    pub env: BTreeMap<String, String>,
    /// The job, written as `job.json` into the work directory.
    pub spec: Box<JobSpec>,
    /// The application's token, written 0600 into the work directory.
    pub token: String,
    /// The job's secrets, written 0600 into a folder of their own.
    #[serde(default)]
    pub secrets: Secrets,
    /// Where the application's master is, if known; kept up to date by [`ToNode::AmAddress`].
    pub am_address: Option<String>,
    /// What it does at lease end.
    pub on_lease_loss: OnLeaseLoss,
}

// ---------------------------------------------------------------- application master ↔ resource manager

/// An application master's first words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AmHello {
    /// Its application.
    pub app: AppId,
    /// Its attempt.
    pub attempt: u32,
    /// Its own container.
    pub container: ContainerId,
    /// Where its containers find it, `host:port`.
    pub address: String,
    /// Everything it wants now; empty on an attempt's first Hello.
    pub asks: Vec<Ask>,
}

/// The resource manager's answer to [`AmHello`] (YARN's RegisterApplicationMasterResponse).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AmWelcome {
    /// The resource manager's epoch.
    pub epoch: Epoch,
    /// The job.
    pub spec: Box<JobSpec>,
    /// The job's containers: live ones and exits not yet acknowledged, of every attempt.
    pub containers: Vec<PlacedContainer>,
    /// Local state of the job on nodes that are not lost.
    pub state: Vec<NodeState>,
    /// How often to beat, ms.
    pub beat_ms: u64,
    /// Set if the job is being stopped.
    pub stop: Option<StopJob>,
}

/// A container and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacedContainer {
    /// What its node says of it.
    pub report: ContainerReport,
    /// Its node.
    pub node: NodeId,
    /// The node's names.
    pub hosts: Vec<String>,
    /// The node's rack.
    pub rack: String,
}

/// The local state of one job on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// The node.
    pub node: NodeId,
    /// Its names.
    pub hosts: Vec<String>,
    /// What it keeps of the job.
    pub entries: Vec<StateEntry>,
}

/// A user wants the job gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopJob {
    /// Without grace.
    pub kill: bool,
}

/// One wish for one container: desired state, repeated until answered or cancelled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Its one-shot name.
    pub request: RequestId,
    /// How much.
    pub resource: Resource,
    /// Where rather, best first.
    pub preferences: Vec<Preference>,
    /// How long to hold out for preferred hosts, ms from the ask's arrival.
    pub wait_ms: u64,
    /// How much longer to hold out for their racks, ms.
    pub rack_wait_ms: u64,
    /// Nodes to avoid when another will do: where this slot failed before.
    pub avoid: Vec<NodeId>,
    /// Keep away from the job's other containers.
    pub spread: Spread,
    /// Labels the node must have.
    pub labels: BTreeMap<String, String>,
}

/// A place an ask would rather have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preference {
    /// Any name of the host, compared without case; empty if only the rack is known.
    pub host: String,
    /// Other names and addresses of the same host.
    pub aliases: Vec<String>,
    /// Its rack, empty if unknown.
    pub rack: String,
    /// Higher is better; equal ones are equally good.
    pub weight: u64,
    /// Why, for people: "local state", "leader of 2 partitions", "replica".
    pub reason: String,
}

/// An application master's items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromAm {
    /// It lives.
    Beat {
        /// Returned in the ack.
        sent_at_ms: u64,
    },
    /// One wish, new or changed.
    Ask(Ask),
    /// A wish no more.
    CancelAsk(RequestId),
    /// Stop one of its containers.
    Stop {
        /// Which.
        container: ContainerId,
        /// As in [`ToNode::Stop`].
        grace_ms: u64,
        /// As in [`ToNode::Stop`].
        cause: ExitCause,
    },
    /// It has acted on this exit; the node may forget it.
    AckExit(ContainerId),
    /// It wants a fresh incarnation that no container has: to stop the job, or to promote a standby.
    Mint {
        /// Returned with the answer.
        nonce: u64,
    },
    /// For the UI; opaque to the scheduler.
    Status(Box<JobStatus>),
    /// The job is over; no container of it is left or wanted.
    Finish(JobOutcome),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum JobOutcome {
    /// It ended by itself, or a user stopped it.
    Finished,
    /// It failed.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// A user killed it.
    Killed,
}

/// The resource manager's items to an application master.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToAm {
    /// Answers a beat.
    BeatAck {
        /// The beat's.
        sent_at_ms: u64,
    },
    /// One of its containers changed: allocated, running, exited.
    Container(PlacedContainer),
    /// Why a wish waits, when the reason changed.
    Waiting {
        /// Which.
        request: RequestId,
        /// One line each, with counts: "2 nodes lack memory".
        reasons: Vec<String>,
    },
    /// Answers [`FromAm::Mint`].
    Minted {
        /// The question's.
        nonce: u64,
        /// Higher than any minted before it.
        incarnation: Incarnation,
    },
    /// Local state changed on a node: replaces what was known of it.
    State(NodeState),
    /// The node of one of its containers is being emptied: the container is to commit, end as Preempted and run
    /// elsewhere. Whoever is not told to end by its master is told by the resource manager.
    Leave {
        /// Which.
        container: ContainerId,
        /// When it must be gone, ms from now.
        within_ms: u64,
    },
    /// Containers of these slots are to commit and stop, and none started in them for so long, or until this is said
    /// again with 0: a user is about to move where their tasks go on.
    Hold {
        /// Which.
        slots: Vec<u32>,
        /// How long, ms.
        for_ms: u64,
    },
    /// A user wants the job gone.
    Stop(StopJob),
}
