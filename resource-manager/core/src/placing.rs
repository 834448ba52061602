//! The queue of what has no node yet, and putting it somewhere.
//!
//! One queue, by priority, then by order of submission. What is in it is looked at when something happened that
//! could change the answer: it was asked, a wait of its own passed, capacity appeared. So idle applications cost
//! nothing, and a full cluster is looked at once per event, not once per ask and tick.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use types::{
    AppId, AppState, ContainerId, ContainerState, RequestId, Resource, Role, Spread, Timestamp, ToAm, ToNode,
};

use crate::RmCore;
use crate::app::{App, Attempt, AttemptEvent};
use crate::command::Command;
use crate::container::Container;
use crate::node::NodeIx;
use crate::scheduler::Want;
use crate::scheduler::plan::{Choice, choose};
use crate::timers::TimerKey;

/// One thing that needs a node; ordered as it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Demand {
    priority: Reverse<i32>,
    pub(crate) order: u64,
    /// The application master, before any of its containers, else a container.
    pub(crate) request: Option<RequestId>,
}

impl Demand {
    fn of(app: &App, request: Option<RequestId>) -> Demand {
        Demand { priority: Reverse(app.spec.priority), order: app.order, request }
    }
}

/// What has no node.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) waiting: BTreeSet<Demand>,
    /// Those to look at in the next round.
    due: BTreeSet<Demand>,
}

impl Queue {
    fn add(&mut self, demand: Demand) {
        self.waiting.insert(demand);
        self.due.insert(demand);
    }

    fn remove(&mut self, demand: Demand) {
        self.waiting.remove(&demand);
        self.due.remove(&demand);
    }

    /// Removes all of the application that was submitted as number `order`.
    pub(crate) fn remove_app(&mut self, order: u64) {
        self.waiting.retain(|demand| demand.order != order);
        self.due.retain(|demand| demand.order != order);
    }

    /// Capacity appeared: everything may have another answer.
    pub(crate) fn all_due(&mut self) {
        self.due.clone_from(&self.waiting);
    }
}

/// Sizes that no node can take in this round, with the reasons.
type Nowhere = Vec<(Resource, BTreeMap<String, String>, Vec<String>)>;

impl RmCore {
    /// Queues an application's next master, if it is to start now.
    pub(crate) fn queue_master(&mut self, now: Timestamp, id: &AppId) {
        let app = self.known(id);
        let starts = app.attempt == Attempt::Scheduling && !app.state.is_over() && app.waits_for.is_none();
        if !starts {
            return;
        }
        if app.not_before > now {
            let at = app.not_before;
            return self.timers.arm(TimerKey::App(id.clone()), at);
        }
        let demand = Demand::of(app, None);
        self.queue.add(demand);
        self.want_placement(now);
    }

    pub(crate) fn queue_ask(&mut self, now: Timestamp, id: &AppId, request: RequestId) {
        let demand = Demand::of(self.known(id), Some(request));
        self.queue.add(demand);
        self.want_placement(now);
    }

    pub(crate) fn drop_ask(&mut self, id: &AppId, request: RequestId) {
        let demand = Demand::of(self.known(id), Some(request));
        self.queue.remove(demand);
        self.timers.disarm(&TimerKey::Ask(id.clone(), request));
        self.known_mut(id).asks.remove(&request);
    }

    /// An ask has held out long enough for one kind of place.
    pub(crate) fn ask_deadline(&mut self, now: Timestamp, id: &AppId, request: RequestId) {
        if self.apps.get(id).is_some_and(|app| app.asks.contains_key(&request)) {
            self.queue_ask(now, id, request);
        }
    }

    /// One round over what is due.
    pub(crate) fn place(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let due = std::mem::take(&mut self.queue.due);
        let mut nowhere: Nowhere = Vec::new();
        for demand in due {
            let Some(id) = self.orders.get(&demand.order).cloned() else { continue };
            match demand.request {
                None => self.place_master(now, &id, demand, &mut nowhere, out),
                Some(request) => self.place_ask(now, &id, request, demand, &mut nowhere, out),
            }
        }
    }

    fn place_master(
        &mut self,
        now: Timestamp,
        id: &AppId,
        demand: Demand,
        nowhere: &mut Nowhere,
        out: &mut Vec<Command>,
    ) {
        let app = self.known(id);
        let avoid: Vec<NodeIx> = app.failed_on.iter().filter_map(|node| self.nodes.ix(node)).collect();
        let want = Want {
            resource: app.spec.app_master,
            labels: &app.spec.placement.labels,
            avoid: &avoid,
            preferences: &[],
            since: now,
            wait_ms: 0,
            rack_wait_ms: 0,
            spread: Spread::None,
            siblings: &BTreeMap::new(),
        };
        match self.choose(&want, now, nowhere) {
            Choice::Place(ix) => {
                let (resource, attempt) = (want.resource, app.attempt_no);
                self.queue.remove(demand);
                let container = self.allocate(id, ix, Role::AppMaster { attempt }, resource);
                let app = self.known_mut(id);
                app.attempt =
                    app.attempt.after(AttemptEvent::Placed).expect("only what is Scheduling is queued");
                app.master = Some(container);
                app.address = None;
                app.heard = now;
                app.master_waits.clear();
                self.persist(id, out);
                self.send_start(container, out);
                self.timers.arm(TimerKey::App(id.clone()), now.plus(self.config.am_launch_ms));
            }
            Choice::Wait { reasons, .. } => self.known_mut(id).master_waits = reasons,
        }
    }

    fn place_ask(
        &mut self,
        now: Timestamp,
        id: &AppId,
        request: RequestId,
        demand: Demand,
        nowhere: &mut Nowhere,
        out: &mut Vec<Command>,
    ) {
        let app = self.known(id);
        let Some(open) = app.asks.get(&request) else { return self.queue.remove(demand) };
        if app.state == AppState::Stopping {
            return;
        }
        let ask = &open.ask;
        let avoid: Vec<NodeIx> = ask.avoid.iter().filter_map(|node| self.nodes.ix(node)).collect();
        let siblings = self.siblings(app);
        let want = Want {
            resource: ask.resource,
            labels: &ask.labels,
            avoid: &avoid,
            preferences: &ask.preferences,
            since: open.since,
            wait_ms: ask.wait_ms,
            rack_wait_ms: ask.rack_wait_ms,
            spread: ask.spread,
            siblings: &siblings,
        };
        match self.choose(&want, now, nowhere) {
            Choice::Place(ix) => {
                let resource = ask.resource;
                self.drop_ask(id, request);
                let container = self.allocate(id, ix, Role::Worker { request }, resource);
                self.known_mut(id).set_answered(request);
                self.send_start(container, out);
                self.tell_am(container, out);
            }
            Choice::Wait { until, reasons, .. } => {
                if let Some(until) = until {
                    self.timers.arm(TimerKey::Ask(id.clone(), request), until.max(now.plus(1)));
                }
                self.tell_waiting(id, request, reasons, out);
            }
        }
    }

    fn choose(&self, want: &Want<'_>, now: Timestamp, nowhere: &mut Nowhere) -> Choice {
        let same = |(resource, labels, _): &&(Resource, BTreeMap<String, String>, Vec<String>)| {
            *resource == want.resource && labels == want.labels
        };
        if let Some((_, _, reasons)) = nowhere.iter().find(same) {
            return Choice::Wait { until: None, reasons: reasons.clone(), nowhere: true };
        }
        let choice = choose(&self.nodes, want, now);
        if let Choice::Wait { nowhere: true, reasons, .. } = &choice {
            nowhere.push((want.resource, want.labels.clone(), reasons.clone()));
        }
        choice
    }

    /// How many live containers of an application each node has, its master aside.
    fn siblings(&self, app: &App) -> BTreeMap<NodeIx, u32> {
        let mut count = BTreeMap::new();
        for container in app.containers.iter().filter_map(|id| self.containers.get(id)) {
            if container.is_live() && container.slot().is_some() {
                *count.entry(container.node).or_default() += 1;
            }
        }
        count
    }

    fn tell_waiting(
        &mut self,
        id: &AppId,
        request: RequestId,
        mut reasons: Vec<String>,
        out: &mut Vec<Command>,
    ) {
        let Some(open) = self.known_mut(id).asks.get_mut(&request) else { return };
        reasons.extend(open.unmatched.iter().cloned());
        if open.told != reasons {
            open.told.clone_from(&reasons);
            self.to_am(id, ToAm::Waiting { request, reasons }, out);
        }
    }

    fn allocate(&mut self, app: &AppId, ix: NodeIx, role: Role, resource: Resource) -> ContainerId {
        let id = ContainerId(self.mint());
        let container = Container {
            id,
            app: app.clone(),
            role,
            node: ix,
            resource,
            state: ContainerState::Allocated,
            pid: None,
            started_unix_ms: None,
            ended_unix_ms: None,
            usage: None,
            stop: None,
            acked: false,
            settled: false,
        };
        self.nodes.get_mut(ix).hold(id, resource);
        self.containers.insert(id, container);
        self.known_mut(app).containers.insert(id);
        id
    }

    fn send_start(&self, id: ContainerId, out: &mut Vec<Command>) {
        let start = self.start_of(id);
        self.to_node(self.containers[&id].node, ToNode::Start(Box::new(start)), out);
    }
}
