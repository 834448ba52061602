//! Node sessions: Hello resync, beats, leases.

use std::collections::{BTreeMap, BTreeSet};

use types::{
    AppId, ContainerId, ContainerReport, ContainerState, ExitCause, FromNode, JobId, NodeBeat, NodeHello,
    NodeId, NodeState, NodeWelcome, Timestamp, ToAm, ToNode,
};

use crate::RmCore;
use crate::command::{Command, Denied, Record};
use crate::node::{Liveness, NodeIx};
use crate::timers::TimerKey;

impl RmCore {
    /// A node's Hello: its inventory replaces what was believed of it. The commands pushed belong on the session
    /// that the answer names.
    ///
    /// # Errors
    /// [`Denied::NodeIdTaken`] while another machine of that id is connected and beats.
    pub fn node_hello(
        &mut self,
        now: Timestamp,
        hello: NodeHello,
        out: &mut Vec<Command>,
    ) -> Result<NodeWelcome, Denied> {
        let former = self.nodes.ix(&hello.node).map(|ix| self.nodes.get(ix));
        let mut persist = former.is_none();
        let mut is_other_life = false;
        let mut old_session = None;
        if let Some(node) = former {
            is_other_life = node.incarnation != hello.incarnation;
            let beats = node.session.is_some() && now.since(node.heard) < self.config.suspect_ms();
            if beats && node.incarnation.state_id != hello.incarnation.state_id {
                return Err(Denied::NodeIdTaken(hello.node));
            }
            old_session = node.session;
            persist |= is_other_life
                || node.liveness == Liveness::Lost
                || (node.total, &node.rack) != (hello.total, &hello.rack)
                || node.hosts != hello.hosts;
        }
        let session = self.new_session();
        let NodeHello { containers, state, .. } = &hello;
        let (inventory, state) = (containers.clone(), state.clone());
        if let (Some(session), Some(ix)) = (old_session, self.nodes.ix(&hello.node)) {
            self.nodes.get_mut(ix).session = None;
            let reason = "a newer session took its place";
            out.push(Command::CloseNodeSession { node: hello.node.clone(), session, reason });
        }
        if is_other_life && let Some(ix) = self.nodes.ix(&hello.node) {
            self.lose_containers(now, ix, out);
        }
        let ix = self.nodes.greet(&hello, session, now);
        self.timers.arm(TimerKey::Node(ix), now.plus(self.config.suspect_ms()));
        if persist {
            out.push(Command::Persist(Record::Node(Box::new(self.nodes.get(ix).stored()))));
        }
        self.awaited.remove(&ix);
        self.resync(now, ix, inventory, out);
        self.move_away(now, ix, out);
        self.tell_addresses(ix, out);
        self.node_state(ix, state, out);
        self.queue.all_due();
        self.want_placement(now);
        Ok(NodeWelcome {
            epoch: self.epoch,
            session,
            lease_ms: self.config.lease_ms,
            beat_ms: self.config.beat_ms,
        })
    }

    fn resync(
        &mut self,
        now: Timestamp,
        ix: NodeIx,
        inventory: Vec<ContainerReport>,
        out: &mut Vec<Command>,
    ) {
        let listed: BTreeSet<ContainerId> = inventory.iter().map(|report| report.id).collect();
        // What occupied it but is neither listed nor ours to start again has no process any more.
        let held: Vec<ContainerId> = self.nodes.get(ix).holding.keys().copied().collect();
        for id in held.into_iter().filter(|id| !listed.contains(id)) {
            self.missing(now, ix, id, out);
        }
        for report in inventory {
            let id = report.id;
            self.container_report(now, ix, report, out);
            if let Some(container) = self.containers.get(&id)
                && container.is_live()
                && let Some(order) = container.stop.clone()
            {
                let item = ToNode::Stop { container: id, grace_ms: order.grace_ms, cause: order.cause };
                self.to_node(ix, item, out);
            }
        }
        let node = self.nodes.get_mut(ix);
        node.overfull = !node.total.fits(&node.used);
        node.returns = false;
    }

    /// A container that should be on the node and that the node does not know.
    fn missing(&mut self, now: Timestamp, ix: NodeIx, id: ContainerId, out: &mut Vec<Command>) {
        let Some(container) = self.containers.get_mut(&id).filter(|container| container.is_live()) else {
            self.nodes.get_mut(ix).release(id);
            return;
        };
        if container.state != ContainerState::Allocated {
            container.settled = true;
            return self.container_exited(now, id, ExitCause::NodeLost, out);
        }
        match container.stop.clone() {
            Some(order) => {
                container.settled = true;
                self.container_exited(now, id, order.cause, out);
            }
            None => {
                let start = self.start_of(id);
                self.to_node(ix, ToNode::Start(Box::new(start)), out);
            }
        }
    }

    /// Tells a node where the masters of its containers are.
    fn tell_addresses(&mut self, ix: NodeIx, out: &mut Vec<Command>) {
        let held = self.nodes.get(ix).holding.keys();
        let apps: BTreeSet<AppId> =
            held.filter_map(|id| self.containers.get(id)).map(|container| container.app.clone()).collect();
        for id in apps {
            let app = self.known(&id);
            if let Some(address) = app.address.clone() {
                let attempt = app.attempt_no;
                self.to_node(ix, ToNode::AmAddress { app: id, attempt, address }, out);
            }
        }
    }

    /// An item of a node's session.
    ///
    /// # Errors
    /// [`Denied::StaleSession`] for words of a session that is not the current one; they change nothing.
    pub fn node_item(
        &mut self,
        now: Timestamp,
        node: &NodeId,
        session: u64,
        item: FromNode,
        out: &mut Vec<Command>,
    ) -> Result<(), Denied> {
        let ix = self.nodes.ix(node).filter(|ix| self.nodes.get(*ix).session == Some(session));
        let ix = ix.ok_or(Denied::StaleSession)?;
        match item {
            FromNode::Beat(beat) => self.beat(now, ix, beat, out),
            FromNode::Container(report) => self.container_report(now, ix, report, out),
            FromNode::State(entries) => self.node_state(ix, entries, out),
            FromNode::Usage(usages) => {
                for usage in usages {
                    if let Some(container) = self.containers.get_mut(&usage.container) {
                        container.usage = Some(usage);
                    }
                }
            }
        }
        Ok(())
    }

    /// A node's session is over; its lease runs on.
    pub fn node_gone(&mut self, node: &NodeId, session: u64) {
        if let Some(ix) = self.nodes.ix(node) {
            let node = self.nodes.get_mut(ix);
            if node.session == Some(session) {
                node.session = None;
            }
        }
    }

    fn beat(&mut self, now: Timestamp, ix: NodeIx, beat: NodeBeat, out: &mut Vec<Command>) {
        let node = self.nodes.get_mut(ix);
        let was_open = node.takes_containers();
        node.heard = now;
        node.liveness = Liveness::Active;
        node.unhealthy = beat.unhealthy;
        if node.takes_containers() && !was_open {
            self.queue.all_due();
            self.want_placement(now);
        }
        self.to_node(ix, ToNode::BeatAck { sent_at_ms: beat.sent_at_ms }, out);
    }

    /// Tells the masters of those jobs whose local state on a node changed.
    fn node_state(&mut self, ix: NodeIx, entries: Vec<types::StateEntry>, out: &mut Vec<Command>) {
        for job in self.nodes.get_mut(ix).set_state(entries) {
            let state = self.nodes.get(ix).state_of(&job);
            self.tell_state(&job, state, out);
        }
    }

    fn tell_state(&self, job: &JobId, state: NodeState, out: &mut Vec<Command>) {
        if let Some(app) = self.live.get(job) {
            self.to_am(app, ToAm::State(state), out);
        }
    }

    /// Looks at a node's lease.
    pub(crate) fn node_deadline(&mut self, now: Timestamp, ix: NodeIx, out: &mut Vec<Command>) {
        let (suspect_ms, lost_ms) = (self.config.suspect_ms(), self.config.lost_ms());
        let judge_from = self.judge_from;
        let node = self.nodes.get_mut(ix);
        let next = match node.liveness {
            Liveness::Lost => return,
            Liveness::Active => {
                let due = node.heard.plus(suspect_ms).max(judge_from);
                if now >= due {
                    node.liveness = Liveness::Suspect;
                    node.heard.plus(lost_ms)
                } else {
                    due
                }
            }
            Liveness::Suspect => {
                let due = node.heard.plus(lost_ms).max(judge_from);
                if now >= due {
                    return self.lose_node(now, ix, out);
                }
                due
            }
        };
        self.timers.arm(TimerKey::Node(ix), next.max(now.plus(1)));
    }

    /// A node's lease is over on every clock: its containers are replaced. What is left of them there is fenced,
    /// and stopped when the node is back.
    fn lose_node(&mut self, now: Timestamp, ix: NodeIx, out: &mut Vec<Command>) {
        let node = self.nodes.get_mut(ix);
        node.liveness = Liveness::Lost;
        let (id, session) = (node.id.clone(), node.session.take());
        out.push(Command::Persist(Record::Node(Box::new(node.stored()))));
        if let Some(session) = session {
            out.push(Command::CloseNodeSession { node: id, session, reason: "its lease is over" });
        }
        self.node_state(ix, Vec::new(), out);
        self.lose_containers(now, ix, out);
        self.awaited.remove(&ix);
        self.queue.all_due();
        self.want_placement(now);
    }

    /// Every container of a node is NodeLost.
    fn lose_containers(&mut self, now: Timestamp, ix: NodeIx, out: &mut Vec<Command>) {
        let holding: BTreeMap<ContainerId, _> = self.nodes.get(ix).holding.clone();
        for id in holding.into_keys() {
            let live = self.containers.get(&id).is_some_and(|container| container.is_live());
            if live {
                self.container_exited(now, id, ExitCause::NodeLost, out);
            } else {
                self.nodes.get_mut(ix).release(id);
            }
        }
    }
}
