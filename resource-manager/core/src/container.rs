//! A container as the resource manager sees it.
//!
//! Its node tells the truth about it; the resource manager adds three facts of its own: that it allocated it,
//! that somebody wants it stopped, and that its node is lost.
//!
//! | state \ event | node reports a higher state | node's Hello lacks it | node lost or rebooted | somebody wants it stopped |
//! |---|---|---|---|---|
//! | Allocated | that state | Start is sent again; Exited(cause of the stop) if one is wanted | Exited(NodeLost) | Stop is sent, and again at each Hello |
//! | Localizing, Starting, Running, Stopping | that state | Exited(NodeLost) | Exited(NodeLost) | as above |
//! | Exited(by report) | none is higher | nothing | nothing | nothing |
//! | Exited(NodeLost) | it is stopped: what was replaced must go | nothing | nothing | nothing |
//!
//! An exit is final. It is kept until the application master has acted on it (`AckExit`) and the node has told of
//! it (`settled`); then the node may forget it.

use types::{AppId, ContainerId, ContainerState, ContainerUsage, ExitCause, Resource, Role};

use crate::node::NodeIx;

/// One container.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) app: AppId,
    pub(crate) role: Role,
    pub(crate) node: NodeIx,
    pub(crate) resource: Resource,
    pub(crate) state: ContainerState,
    pub(crate) pid: Option<u32>,
    pub(crate) started_unix_ms: Option<u64>,
    pub(crate) ended_unix_ms: Option<u64>,
    /// As last heard.
    pub(crate) usage: Option<ContainerUsage>,
    /// How it is to end, if somebody wants that.
    pub(crate) stop: Option<StopOrder>,
    /// Whether all who must have acted on its exit.
    pub(crate) acked: bool,
    /// Whether its node itself has told of its exit, so that no process of it is left.
    pub(crate) settled: bool,
}

/// How a container is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StopOrder {
    pub(crate) grace_ms: u64,
    pub(crate) cause: ExitCause,
}

impl Container {
    pub(crate) fn is_live(&self) -> bool {
        !self.state.is_exited()
    }

    pub(crate) fn slot(&self) -> Option<u32> {
        match self.role {
            Role::AppMaster { .. } => None,
            Role::Worker { request } => Some(request.slot),
        }
    }
}
