//! A container's life, as its node tells it and as others wish it.

use types::{
    ContainerId, ContainerReport, ContainerState, ExitCause, PlacedContainer, Role, Timestamp, ToAm, ToNode,
};

use crate::RmCore;
use crate::command::Command;
use crate::container::{Container, StopOrder};
use crate::node::NodeIx;
use crate::timers::TimerKey;

impl RmCore {
    /// Orders a container's end. An order stands until it is over: it is sent again at each Hello.
    pub(crate) fn order_stop(&mut self, id: ContainerId, order: StopOrder, out: &mut Vec<Command>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        if !container.is_live() {
            return;
        }
        // The harsher order stands.
        let stands = match container.stop.take() {
            Some(former) if former.grace_ms <= order.grace_ms => former,
            Some(_) | None => order,
        };
        container.stop = Some(stands.clone());
        let node = container.node;
        let item = ToNode::Stop { container: id, grace_ms: stands.grace_ms, cause: stands.cause };
        self.to_node(node, item, out);
    }

    /// A node's word about a container.
    pub(crate) fn container_report(
        &mut self,
        now: Timestamp,
        ix: NodeIx,
        report: ContainerReport,
        out: &mut Vec<Command>,
    ) {
        let Some(container) = self.containers.get_mut(&report.id) else {
            return self.adopt(ix, report, out);
        };
        if container.node != ix {
            return;
        }
        if !container.is_live() {
            return self.word_about_the_dead(ix, report, out);
        }
        if report.state.rank() < container.state.rank() {
            return;
        }
        if let ContainerState::Exited { exit } = report.state.clone() {
            container.settled = true;
            container.pid = None;
            container.started_unix_ms = report.started_unix_ms.or(container.started_unix_ms);
            container.ended_unix_ms = report.ended_unix_ms;
            return self.container_exited(now, report.id, exit, out);
        }
        let changed = container.state != report.state || container.pid != report.pid;
        container.state = report.state;
        container.pid = report.pid;
        container.started_unix_ms = report.started_unix_ms.or(container.started_unix_ms);
        if changed {
            self.container_changed(now, report.id, out);
        }
    }

    /// A report about a container that is over here: one that was given up with its node must go; one that has
    /// told its exit may be forgotten once nobody needs it.
    fn word_about_the_dead(&mut self, ix: NodeIx, report: ContainerReport, out: &mut Vec<Command>) {
        if report.state.is_exited() {
            self.nodes.get_mut(ix).release(report.id);
            if let Some(container) = self.containers.get_mut(&report.id) {
                container.settled = true;
            }
            return self.try_forget(report.id, out);
        }
        let node = self.nodes.get_mut(ix);
        let known = node.holding.contains_key(&report.id);
        node.hold(report.id, report.resource);
        node.overfull = !node.total.fits(&node.used);
        if !known || report.state.rank() < ContainerState::Stopping.rank() {
            let cause = ExitCause::NodeLost;
            self.to_node(ix, ToNode::Stop { container: report.id, grace_ms: 0, cause }, out);
        }
    }

    /// A live container changed.
    fn container_changed(&mut self, now: Timestamp, id: ContainerId, out: &mut Vec<Command>) {
        let container = &self.containers[&id];
        let app = container.app.clone();
        match container.role {
            Role::AppMaster { .. } => {
                if self.is_current_master(&app, id) {
                    self.known_mut(&app).heard = now;
                    self.timers.arm(TimerKey::App(app), now.plus(self.config.am_silence_ms));
                }
            }
            Role::Worker { .. } => self.tell_am(id, out),
        }
    }

    /// A container is over, by its node's word or because its node is.
    pub(crate) fn container_exited(
        &mut self,
        now: Timestamp,
        id: ContainerId,
        exit: ExitCause,
        out: &mut Vec<Command>,
    ) {
        let unix_ms = self.unix_ms(now);
        let container = self.containers.get_mut(&id).expect("callers hold it");
        container.state = ContainerState::Exited { exit: exit.clone() };
        container.ended_unix_ms.get_or_insert(unix_ms);
        container.pid = None;
        let (app, ix, role) = (container.app.clone(), container.node, container.role);
        if self.nodes.get_mut(ix).release(id) {
            self.queue.all_due();
            self.want_placement(now);
        }
        match role {
            Role::AppMaster { .. } if self.is_current_master(&app, id) => {
                if self.known(&app).state.is_over() {
                    self.master_of_ended_exited(&app, exit, out);
                } else {
                    let node = self.nodes.get(ix).id.clone();
                    self.master_exited(now, &app, exit, node, out);
                }
            }
            Role::AppMaster { .. } => {}
            Role::Worker { .. } => self.tell_am(id, out),
        }
        self.move_away(now, ix, out);
        self.try_forget(id, out);
    }

    /// Takes over a container that this resource manager did not start: it was started by a former one.
    fn adopt(&mut self, ix: NodeIx, report: ContainerReport, out: &mut Vec<Command>) {
        let app = self.apps.get(&report.app);
        let node = self.nodes.get(ix);
        // On a node that was lost it was given up, whether this resource manager or a former one knew it; what a
        // node holds that we do not know was dismissed before.
        let was_given_up = node.returns || node.holding.contains_key(&report.id);
        let wanted = match (app, report.role) {
            (Some(app), Role::Worker { .. }) => !app.state.is_over() && !was_given_up,
            // The current attempt's master is known from the store.
            (Some(_), Role::AppMaster { .. }) | (None, _) => false,
        };
        if !wanted {
            return self.dismiss(ix, &report, out);
        }
        let live = !report.state.is_exited();
        let container = Container {
            id: report.id,
            app: report.app.clone(),
            role: report.role,
            node: ix,
            resource: report.resource,
            state: report.state,
            pid: report.pid,
            started_unix_ms: report.started_unix_ms,
            ended_unix_ms: report.ended_unix_ms,
            usage: None,
            stop: None,
            acked: false,
            settled: !live,
        };
        self.containers.insert(report.id, container);
        if live {
            let node = self.nodes.get_mut(ix);
            node.hold(report.id, report.resource);
            node.overfull = !node.total.fits(&node.used);
        }
        let app = self.known_mut(&report.app);
        app.containers.insert(report.id);
        if let Role::Worker { request } = report.role {
            app.set_answered(request);
            if app.asks.contains_key(&request) {
                self.drop_ask(&report.app, request);
            }
        }
        self.tell_am(report.id, out);
    }

    /// A container that nobody wants: of an application that is over or unknown, a former attempt's master, or
    /// one that was given up with its node.
    fn dismiss(&mut self, ix: NodeIx, report: &ContainerReport, out: &mut Vec<Command>) {
        if report.state.is_exited() {
            self.nodes.get_mut(ix).release(report.id);
            return self.to_node(ix, ToNode::Forget { container: report.id }, out);
        }
        let node = self.nodes.get_mut(ix);
        let node_returns = node.returns;
        let known = node.holding.contains_key(&report.id);
        node.hold(report.id, report.resource);
        node.overfull = !node.total.fits(&node.used);
        if !known || report.state.rank() < ContainerState::Stopping.rank() {
            let cause = if node_returns { ExitCause::NodeLost } else { ExitCause::KilledByUser };
            self.to_node(ix, ToNode::Stop { container: report.id, grace_ms: 0, cause }, out);
        }
    }

    /// Tells an application's master about one of its containers.
    pub(crate) fn tell_am(&self, id: ContainerId, out: &mut Vec<Command>) {
        let container = &self.containers[&id];
        if self.known(&container.app).state.is_over() {
            return;
        }
        self.to_am(&container.app, ToAm::Container(self.placed(container)), out);
    }

    pub(crate) fn placed(&self, container: &Container) -> PlacedContainer {
        let node = self.nodes.get(container.node);
        PlacedContainer {
            report: ContainerReport {
                id: container.id,
                app: container.app.clone(),
                job: self.known(&container.app).job().clone(),
                role: container.role,
                resource: container.resource,
                state: container.state.clone(),
                pid: container.pid,
                started_unix_ms: container.started_unix_ms,
                ended_unix_ms: container.ended_unix_ms,
            },
            node: node.id.clone(),
            hosts: node.hosts.clone(),
            rack: node.rack.clone(),
        }
    }
}
