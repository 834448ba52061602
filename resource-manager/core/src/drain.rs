//! Draining a node: it gets nothing new, and what it has ends as Preempted, with time to commit, and is replaced
//! elsewhere. Application masters go last: while one moves, nobody asks for the successors of its containers.

use types::{ContainerId, ExitCause, NodeId, Timestamp};

use crate::RmCore;
use crate::command::{Command, Denied, Record};
use crate::container::{Container, StopOrder};
use crate::node::NodeIx;

impl RmCore {
    /// Drains a node: each container gets `grace_ms` from TERM to KILL. None takes it back: what has left stays away.
    /// Remembered until then, also over restarts of the node and of the resource manager.
    ///
    /// # Errors
    /// [`Denied::UnknownNode`].
    pub fn drain(
        &mut self,
        now: Timestamp,
        node: &NodeId,
        grace_ms: Option<u64>,
        out: &mut Vec<Command>,
    ) -> Result<(), Denied> {
        let ix = self.nodes.ix(node).ok_or_else(|| Denied::UnknownNode(node.clone()))?;
        self.nodes.get_mut(ix).draining = grace_ms;
        out.push(Command::Persist(Record::Node(Box::new(self.nodes.get(ix).stored()))));
        self.move_away(ix, out);
        self.queue.all_due();
        self.want_placement(now);
        Ok(())
    }

    /// Has everything leave a node that is draining: containers first, then the application masters.
    pub(crate) fn move_away(&mut self, ix: NodeIx, out: &mut Vec<Command>) {
        let node = self.nodes.get(ix);
        let Some(grace_ms) = node.draining else { return };
        let here = node.holding.keys().filter_map(|id| self.containers.get(id)).filter(|it| it.is_live());
        let (workers, masters): (Vec<&Container>, Vec<&Container>) = here.partition(|it| it.slot().is_some());
        let next = if workers.is_empty() { masters } else { workers };
        let leave: Vec<ContainerId> = next.into_iter().map(|it| it.id).collect();
        for id in leave {
            self.order_stop(id, StopOrder { grace_ms, cause: ExitCause::Preempted }, out);
        }
    }
}
