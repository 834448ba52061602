//! What follows when an application is over: no container, ask or session of it is left, whoever waited for it
//! starts, and in time it is forgotten.

use types::{AppId, ContainerId, ExitCause, JobOutcome, Timestamp, ToNode};

use crate::RmCore;
use crate::app::{AppEvent, Attempt, app_after};
use crate::command::{Command, Record};
use crate::container::StopOrder;
use crate::timers::TimerKey;

impl RmCore {
    /// Ends an application. Containers that are left are stopped without grace; its master has a moment to exit
    /// by itself.
    pub(crate) fn end_app(
        &mut self,
        now: Timestamp,
        id: &AppId,
        outcome: &JobOutcome,
        why: &str,
        out: &mut Vec<Command>,
    ) {
        let unix_ms = self.unix_ms(now);
        let app = self.known_mut(id);
        if app.state.is_over() {
            return;
        }
        app.state = app_after(app.state, &AppEvent::Over(outcome));
        app.diagnostics = why.to_owned();
        app.ended_unix_ms = Some(unix_ms);
        app.ended_at = Some(now);
        app.kill_since = None;
        let asks: Vec<_> = std::mem::take(&mut app.asks).into_keys().collect();
        let master_is_there = app.session.is_some();
        let containers: Vec<ContainerId> = app.containers.iter().copied().collect();
        let job = app.job().clone();
        for request in asks {
            self.timers.disarm(&TimerKey::Ask(id.clone(), request));
        }
        let order = self.known(id).order;
        self.queue.remove_app(order);
        if self.live.get(&job) == Some(id) {
            self.live.remove(&job);
        }
        self.persist(id, out);
        let cause = match outcome {
            JobOutcome::Finished | JobOutcome::Failed { .. } => ExitCause::KilledByAm,
            JobOutcome::Killed => ExitCause::KilledByUser,
        };
        for container in containers {
            if self.is_current_master(id, container) && master_is_there {
                continue;
            }
            self.order_stop(container, StopOrder { grace_ms: 0, cause: cause.clone() }, out);
            self.try_forget(container, out);
        }
        self.timers.arm(TimerKey::App(id.clone()), now.plus(self.config.linger_ms));
        self.start_successor(now, id, out);
        self.drop_oldest(out);
    }

    /// The master's moment is over.
    pub(crate) fn end_deadline(&mut self, now: Timestamp, id: &AppId, out: &mut Vec<Command>) {
        let app = self.known(id);
        let Some(ended) = app.ended_at else { return };
        let due = ended.plus(self.config.linger_ms);
        if now < due {
            return self.timers.arm(TimerKey::App(id.clone()), due);
        }
        let master = app.master;
        if let Some(session) = self.known_mut(id).session.take() {
            out.push(Command::CloseAmSession { app: id.clone(), session, reason: "the application is over" });
        }
        if let Some(container) = master {
            self.order_stop(container, StopOrder { grace_ms: 1_000, cause: ExitCause::KilledByUser }, out);
        }
    }

    fn start_successor(&mut self, now: Timestamp, over: &AppId, out: &mut Vec<Command>) {
        let waiting = self
            .apps
            .values()
            .find(|app| app.waits_for.as_ref() == Some(over) && !app.state.is_over())
            .map(|app| app.id.clone());
        let Some(next) = waiting else { return };
        let app = self.known_mut(&next);
        app.waits_for = None;
        app.diagnostics.clear();
        let job = app.job().clone();
        self.live.insert(job, next.clone());
        self.persist(&next, out);
        self.queue_master(now, &next);
    }

    /// Lets a node forget a container when nobody needs its exit any more.
    pub(crate) fn try_forget(&mut self, id: ContainerId, out: &mut Vec<Command>) {
        let Some(container) = self.containers.get(&id) else { return };
        let over = self.known(&container.app).state.is_over();
        let is_worker = container.slot().is_some();
        if container.is_live() || is_worker && !container.acked && !over {
            return;
        }
        let (app, node, settled) = (container.app.clone(), container.node, container.settled);
        if let Some(container) = self.containers.get_mut(&id) {
            container.acked = true;
        }
        if settled {
            self.to_node(node, ToNode::Forget { container: id }, out);
        }
        self.trim_containers(&app);
    }

    /// Keeps only the newest containers that are over.
    fn trim_containers(&mut self, app: &AppId) {
        let keep = self.config.keep_containers;
        let containers = &self.containers;
        let app = self.apps.get_mut(app).expect("the caller holds a container of it");
        if app.containers.len() <= keep {
            return;
        }
        let done: Vec<ContainerId> = app
            .containers
            .iter()
            .copied()
            .filter(|id| containers.get(id).is_some_and(|it| !it.is_live() && it.acked))
            .collect();
        for id in done.iter().take(done.len().saturating_sub(keep)) {
            app.containers.remove(id);
            self.containers.remove(id);
        }
    }

    /// Forgets applications that ended long ago.
    fn drop_oldest(&mut self, out: &mut Vec<Command>) {
        let over: Vec<AppId> = self
            .orders
            .values()
            .filter(|id| self.apps.get(*id).is_some_and(|app| app.state.is_over()))
            .cloned()
            .collect();
        for id in over.iter().take(over.len().saturating_sub(self.config.keep_apps)) {
            let live = |id: &ContainerId| self.containers.get(id).is_some_and(|it| it.is_live());
            if self.known(id).containers.iter().any(live) {
                continue;
            }
            let Some(app) = self.apps.remove(id) else { continue };
            for container in &app.containers {
                self.containers.remove(container);
            }
            self.orders.remove(&app.order);
            self.clients.remove(&app.client_id);
            self.timers.disarm(&TimerKey::App(id.clone()));
            out.push(Command::Persist(Record::DropApp(id.clone())));
        }
    }

    /// The current master of an application that is over has exited.
    pub(crate) fn master_of_ended_exited(&mut self, id: &AppId, cause: ExitCause, out: &mut Vec<Command>) {
        let app = self.known_mut(id);
        app.attempt = Attempt::Ended(cause);
        if let Some(session) = app.session.take() {
            out.push(Command::CloseAmSession { app: id.clone(), session, reason: "its container is over" });
        }
    }
}
