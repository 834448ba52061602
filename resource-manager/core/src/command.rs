//! What the core wants done: records to store, items to send, sessions to close. Values, so that a test can
//! compare them and a simulator can lose them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use types::{
    AppId, AppState, Artefact, CommandStamp, ContainerId, JobSpec, NodeId, NodeIncarnation, Resource,
    Secrets, ToAm, ToNode,
};

/// One effect. Every [`Command::Persist`] of a batch must be durable before anything else of that batch, replies
/// included, leaves the process.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Store this durably.
    Persist(Record),
    /// Send to a node on the session that the stamp names; drop it if that session is gone.
    ToNode {
        /// The node.
        node: NodeId,
        /// What proves it current.
        stamp: CommandStamp,
        /// The item.
        item: ToNode,
    },
    /// Send to an application's master on this session; drop it if that session is gone.
    ToAm {
        /// The application.
        app: AppId,
        /// The session, as returned by `am_hello`.
        session: u64,
        /// The item.
        item: ToAm,
    },
    /// End a node's session: its lease is over or a newer one took its place.
    CloseNodeSession {
        /// The node.
        node: NodeId,
        /// The session.
        session: u64,
        /// Why, for the log.
        reason: &'static str,
    },
    /// End an application master's session.
    CloseAmSession {
        /// The application.
        app: AppId,
        /// The session.
        session: u64,
        /// Why, for the log.
        reason: &'static str,
    },
}

/// One change of what the resource manager must not forget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// Replaces what is stored of this application.
    App(Box<StoredApp>),
    /// Replaces what is stored of this node.
    Node(Box<StoredNode>),
    /// Drops an application that ended long ago.
    DropApp(AppId),
}

/// What is stored of an application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredApp {
    /// Its id.
    pub app: AppId,
    /// The client's name of the submission, for idempotence.
    pub client_id: String,
    /// The job.
    pub spec: Arc<JobSpec>,
    /// The application master's binary, pinned at submit.
    pub app_master: Artefact,
    /// Its own token.
    pub token: String,
    /// The job's secrets.
    #[serde(default)]
    pub secrets: Secrets,
    /// When it was submitted, unix ms.
    pub submitted_unix_ms: u64,
    /// Its state.
    pub state: AppState,
    /// Whether a user wants it gone without grace.
    pub kill: bool,
    /// Why it ended or waits.
    pub diagnostics: String,
    /// When it ended, unix ms.
    pub ended_unix_ms: Option<u64>,
    /// Its attempt, from 1.
    pub attempt: u32,
    /// Where this attempt's master was put, once it was.
    pub master: Option<StoredMaster>,
    /// Whether any attempt ever registered: only then can containers of it exist.
    pub registered: bool,
    /// The application that must be over before this one starts (`--replace`).
    pub waits_for: Option<AppId>,
}

/// Where an application master was put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMaster {
    /// Its container.
    pub container: ContainerId,
    /// Its node.
    pub node: NodeId,
}

/// What is stored of a node: enough to hold its place while a new resource manager waits for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredNode {
    /// The node.
    pub node: NodeId,
    /// Its boot and state folder.
    pub incarnation: NodeIncarnation,
    /// What it offers.
    pub total: Resource,
    /// Its names.
    pub hosts: Vec<String>,
    /// Its rack.
    pub rack: String,
    /// Whether its lease had ended.
    pub lost: bool,
    /// Whether it is being emptied, and how long containers have from TERM to KILL, ms.
    #[serde(default)]
    pub draining: Option<u64>,
}

/// All that was stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stored {
    /// Applications.
    pub apps: Vec<StoredApp>,
    /// Nodes.
    pub nodes: Vec<StoredNode>,
}

/// Why a verb was refused. The text is for the one who asked and says the way out where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not yet: nodes of the stored cluster have not reported. The same words will be welcome soon.
    #[error("the resource manager has just started and waits for its nodes to report")]
    Recovering,
    /// No such application or job.
    #[error("no application or job `{0}`; `samza list` shows what there is")]
    UnknownApp(String),
    /// No such node.
    #[error("no node `{0}`; `samza nodes` shows what there is")]
    UnknownNode(NodeId),
    /// A live application has this (name, id).
    #[error(
        "job {job} is already running as {app}; stop it first (`samza stop {app}`), or submit with --replace to roll it"
    )]
    LiveJob {
        /// The job.
        job: String,
        /// Its live application.
        app: AppId,
    },
    /// It is over; nothing can be done to it.
    #[error("{0} is already over")]
    Over(AppId),
    /// Its application master is not connected now.
    #[error("the application master of {0} is not connected now; try again in a moment")]
    NoMaster(AppId),
    /// The job cannot be run as it is.
    #[error("{0}")]
    BadJob(String),
    /// An application master that is not the current attempt's.
    #[error("attempt {attempt} in {container} is not the current attempt of {app}: {why}")]
    NotCurrentAttempt {
        /// The application.
        app: AppId,
        /// The attempt that spoke.
        attempt: u32,
        /// The container that spoke.
        container: ContainerId,
        /// What is current instead.
        why: String,
    },
    /// Another machine with this node id is connected.
    #[error("node id `{0}` is in use by another machine; start this node manager with a different --node-id")]
    NodeIdTaken(NodeId),
    /// Words on a session that is not the current one.
    #[error("this session is over")]
    StaleSession,
}

/// An invariant that does not hold: a bug of the core.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invariant broken: {0}")]
pub struct Violation(pub String);
