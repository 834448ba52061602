//! Invariants: what must hold after every verb.

use std::collections::{BTreeMap, BTreeSet};

use types::{Resource, Role};

use crate::app::{App, Attempt};
use crate::command::Violation;
use crate::{RmCore, node::Liveness};

impl RmCore {
    /// Checks the invariants.
    ///
    /// # Errors
    /// The first one that does not hold.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_nodes()?;
        self.check_containers()?;
        for app in self.apps.values() {
            self.check_app(app)?;
        }
        self.check_live()?;
        self.check_queue()
    }

    fn check_nodes(&self) -> Result<(), Violation> {
        for (ix, node) in self.nodes.iter() {
            let sum = node.holding.values().fold(Resource::default(), |sum, it| sum.plus(it));
            ensure(sum == node.used, || format!("{} counts {} as used and holds {sum}", node.id, node.used))?;
            let within = node.total.fits(&node.used) || node.overfull || node.liveness == Liveness::Suspect;
            ensure(within, || format!("{} holds {} of {}", node.id, node.used, node.total))?;
            let lost = node.liveness == Liveness::Lost;
            ensure(!lost || node.session.is_none(), || format!("{} is lost and has a session", node.id))?;
            ensure(!lost || node.holding.is_empty(), || format!("{} is lost and holds containers", node.id))?;
            for id in node.holding.keys() {
                let elsewhere = self.containers.get(id).is_some_and(|it| it.node != ix);
                ensure(!elsewhere, || format!("{} holds {id}, which is elsewhere", node.id))?;
            }
        }
        Ok(())
    }

    fn check_containers(&self) -> Result<(), Violation> {
        for (id, it) in &self.containers {
            let ours = id.0.epoch == self.epoch;
            ensure(!ours || id.0.seq < self.next_seq, || format!("{id} was never minted"))?;
            ensure(id.0.epoch <= self.epoch, || format!("{id} is of a later epoch"))?;
            let app = self.apps.get(&it.app);
            let listed = app.is_some_and(|app| app.containers.contains(id));
            ensure(listed, || format!("{id} is not on the list of {}", it.app))?;
            let held = self.nodes.get(it.node).holding.contains_key(id);
            ensure(!it.is_live() || held, || format!("{id} is live and its node does not hold it"))?;
        }
        Ok(())
    }

    fn check_app(&self, app: &App) -> Result<(), Violation> {
        let id = &app.id;
        let mut masters = 0;
        let mut requests = BTreeSet::new();
        for container in app.containers.iter().filter_map(|id| self.containers.get(id)) {
            match container.role {
                Role::AppMaster { .. } if container.is_live() => {
                    masters += 1;
                    let current = app.master == Some(container.id);
                    ensure(current, || {
                        format!("{} is a live master of {id} and not its current one", container.id)
                    })?;
                }
                Role::AppMaster { .. } => {}
                Role::Worker { request } => {
                    ensure(requests.insert(request), || {
                        format!("{id} has two containers for request {request}")
                    })?;
                    ensure(app.is_answered(request), || format!("{id} forgot that {request} was answered"))?;
                }
            }
        }
        ensure(masters <= 1, || format!("{id} has {masters} live masters"))?;
        let placed = matches!(app.attempt, Attempt::Launching | Attempt::Running) && !app.state.is_over();
        ensure(!placed || masters == 1, || format!("{id} is {:?} without a live master", app.attempt))?;
        ensure(app.session.is_none() || app.master.is_some(), || {
            format!("{id} has a session and no master")
        })?;
        ensure(!app.state.is_over() || app.asks.is_empty(), || format!("{id} is over and asks"))?;
        for request in app.asks.keys() {
            ensure(!app.is_answered(*request), || format!("{id} asks {request} again"))?;
            ensure(request.attempt == app.attempt_no, || {
                format!("{id} has an ask of attempt {}", request.attempt)
            })?;
        }
        Ok(())
    }

    fn check_live(&self) -> Result<(), Violation> {
        let mut live = BTreeMap::new();
        for app in self.apps.values().filter(|app| !app.state.is_over() && app.waits_for.is_none()) {
            let other = live.insert(app.job().clone(), app.id.clone());
            ensure(other.is_none(), || format!("job {} is live twice", app.job()))?;
        }
        ensure(live == self.live, || "the list of live jobs is not what the applications say".to_owned())
    }

    fn check_queue(&self) -> Result<(), Violation> {
        let mut asks = 0;
        for demand in &self.queue.waiting {
            let app = self.orders.get(&demand.order).and_then(|id| self.apps.get(id));
            let real = app.is_some_and(|app| match demand.request {
                None => app.attempt == Attempt::Scheduling && !app.state.is_over(),
                Some(request) => app.asks.contains_key(&request),
            });
            ensure(real, || format!("{demand:?} is queued and nobody wants it"))?;
            asks += usize::from(demand.request.is_some());
        }
        let wanted: usize = self.apps.values().map(|app| app.asks.len()).sum();
        ensure(asks == wanted, || format!("{wanted} asks are open and {asks} are queued"))
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(what())) }
}
