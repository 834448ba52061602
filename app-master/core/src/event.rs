//! What happens to the core, and what it wants done.

use types::{
    AmWelcome, Ask, ContainerHello, ContainerId, ContainerModel, ContainerStatus, ExitCause, Incarnation,
    JobOutcome, NodeState, PlacedContainer, RequestId, StopJob, TopicStatus,
};

use crate::place::{Facts, SlotPlace, Topology};
use crate::plan::Plan;

/// Why something about Kafka did not go well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It is tried again; the text says what is waited for.
    Waiting(String),
    /// It does not look as if it would go well, but what a system says while its leaders move may be wrong: it is
    /// tried a few times more before the job fails with the text.
    Doubtful(String),
    /// It will not go well; the job fails with the text.
    Fatal(String),
}

/// Everything that can happen; [`crate::AmCore::apply`] maps each onto one verb.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The process has started.
    Started,
    /// A session with the resource manager is up.
    Welcome(Box<AmWelcome>),
    /// It is down.
    SessionLost,
    /// A container changed.
    Container(Box<PlacedContainer>),
    /// Why an ask waits.
    Waiting {
        /// Which.
        request: RequestId,
        /// One line each.
        reasons: Vec<String>,
    },
    /// Answers [`Command::Mint`].
    Minted {
        /// The question's.
        nonce: u64,
        /// The fresh incarnation.
        incarnation: Incarnation,
    },
    /// Local state on a node.
    State(NodeState),
    /// The node of a container is being emptied.
    Leave {
        /// Which.
        container: ContainerId,
        /// When it must be gone, ms from now.
        within_ms: u64,
    },
    /// A user has slots held: their containers commit and stop, and none starts in them.
    Hold {
        /// Which.
        slots: Vec<u32>,
        /// How long, ms; 0 ends it.
        for_ms: u64,
    },
    /// A user wants the job gone.
    Stop(StopJob),
    /// A container's session begins.
    ContainerHello(Box<ContainerHello>),
    /// A container spoke.
    ContainerStatus {
        /// Which.
        container: ContainerId,
        /// What it does.
        status: ContainerStatus,
    },
    /// A container's session is over.
    ContainerGone(ContainerId),
    /// Answers [`Command::ReadFacts`].
    FactsRead(Box<Result<Facts, Failure>>),
    /// Answers [`Command::Prepare`], with the job's topics.
    Prepared(Result<Vec<TopicStatus>, Failure>),
    /// Answers [`Command::ReadTopology`]; also comes unasked.
    TopologyRead(Box<Topology>),
    /// Answers [`Command::ReadOwners`]: the newest incarnation with an owner record on the slot's tasks.
    OwnersRead {
        /// The slot.
        slot: u32,
        /// The container that was fenced.
        container: ContainerId,
        /// None if there is no record; an error if it could not be found out.
        newest: Result<Option<Incarnation>, String>,
    },
    /// Answers [`Command::Fence`].
    TasksFenced(Result<(), String>),
    /// [`crate::AmCore::next_deadline`] has come.
    Deadline,
}

/// What the core wants done. Commands to a resource manager whose session is down may be dropped: the next
/// welcome repeats those that still hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Make, or change, a wish for a container.
    Ask(Box<Ask>),
    /// Withdraw it.
    CancelAsk(RequestId),
    /// Stop a container.
    Stop {
        /// Which.
        container: ContainerId,
        /// From TERM to KILL, ms; 0 kills at once.
        grace_ms: u64,
        /// What its exit is to be called.
        cause: ExitCause,
    },
    /// The exit has been acted on.
    AckExit(ContainerId),
    /// Fetch a fresh incarnation.
    Mint {
        /// Returned with it.
        nonce: u64,
    },
    /// The job is over.
    Finish(JobOutcome),
    /// Read the inputs' places, and, after taking ownership of it, the coordinator topic.
    ReadFacts,
    /// Make the topics ready and remember the model.
    Prepare(Box<Plan>),
    /// Read the inputs' places again.
    ReadTopology,
    /// Look up who owns these partitions of the checkpoint topic.
    ReadOwners {
        /// For this slot.
        slot: u32,
        /// Whose container was fenced.
        container: ContainerId,
        /// Its tasks' partitions.
        partitions: Vec<i32>,
    },
    /// Do steps 2 to 4 of the start order on these partitions of the checkpoint topic.
    Fence {
        /// Under this incarnation.
        incarnation: Incarnation,
        /// Every task's partition.
        partitions: Vec<i32>,
    },
    /// Write to the coordinator topic where a slot runs.
    Remember {
        /// The slot.
        slot: u32,
        /// Its place.
        place: SlotPlace,
    },
    /// Only from [`crate::AmCore::apply`]: answers a container's Hello.
    AnswerContainer {
        /// Which.
        container: ContainerId,
        /// Its tasks; an error says why it is refused, `None` in it that the answer must wait.
        answer: Result<Box<ContainerModel>, Option<String>>,
    },
    /// Most containers are silent towards this master: end it, so that another attempt runs elsewhere.
    MoveMe(String),
}
