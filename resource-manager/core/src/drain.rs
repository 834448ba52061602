//! Draining a node: it gets nothing new, and what it has ends as Preempted, with time to commit, and is replaced
//! elsewhere.
//!
//! Application masters are asked to move their containers first: they know what else they are doing. Who is not
//! asked, since its master has no session, and who has not been told to end at half of the time, is told by us.
//! Masters themselves go last: while one moves, nobody asks for the successors of its containers.

use types::{ContainerId, ExitCause, NodeId, Timestamp, ToAm};

use crate::RmCore;
use crate::command::{Command, Denied, Record};
use crate::container::{Container, StopOrder};
use crate::node::NodeIx;
use crate::timers::TimerKey;

impl RmCore {
    /// Drains a node: all its containers are to be gone from it in `grace_ms`. None takes it back: what has left stays
    /// away. Remembered until then, also over restarts of the node and of the resource manager.
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
        let node = self.nodes.get_mut(ix);
        (node.draining, node.gone_by) = (grace_ms, None);
        out.push(Command::Persist(Record::Node(Box::new(self.nodes.get(ix).stored()))));
        self.move_away(now, ix, out);
        self.queue.all_due();
        self.want_placement(now);
        Ok(())
    }

    /// Has everything leave a node that is draining: containers first, then the application masters.
    pub(crate) fn move_away(&mut self, now: Timestamp, ix: NodeIx, out: &mut Vec<Command>) {
        let node = self.nodes.get(ix);
        let Some(grace_ms) = node.draining else { return };
        let here = node.holding.keys().filter_map(|id| self.containers.get(id)).filter(|it| it.is_live());
        let (workers, masters): (Vec<&Container>, Vec<&Container>) = here.partition(|it| it.slot().is_some());
        let ids = |of: Vec<&Container>| of.into_iter().map(|it| it.id).collect::<Vec<ContainerId>>();
        if workers.is_empty() {
            for id in ids(masters) {
                self.order_stop(id, StopOrder { grace_ms, cause: ExitCause::Preempted }, out);
            }
            return;
        }
        let waiting = ids(workers.into_iter().filter(|it| it.stop.is_none()).collect());
        let gone_by = *self.nodes.get_mut(ix).gone_by.get_or_insert(now.plus(grace_ms));
        let (left_ms, half_ms) = (gone_by.since(now), grace_ms / 2);
        for id in waiting {
            let app = self.containers[&id].app.clone();
            if left_ms > half_ms && self.known(&app).session.is_some() {
                self.timers.arm(TimerKey::Drain(ix), now.plus(left_ms - half_ms));
                self.to_am(&app, ToAm::Leave { container: id, within_ms: left_ms }, out);
            } else {
                // On a node that comes back late, they get no less than half anew.
                let order = StopOrder { grace_ms: left_ms.max(half_ms), cause: ExitCause::Preempted };
                self.order_stop(id, order, out);
            }
        }
    }
}
