//! Application masters' sessions: register, asks, stops, acknowledgements.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::{
    AmHello, AmWelcome, AppId, AppState, Ask, ContainerId, FromAm, JobOutcome, NodeState, PlacedContainer,
    RequestId, StopJob, Timestamp, ToAm, ToNode,
};

use crate::RmCore;
use crate::app::{AppEvent, AttemptEvent, OpenAsk, app_after};
use crate::command::{Command, Denied};
use crate::container::StopOrder;
use crate::node::{Liveness, NodeIx};
use crate::timers::TimerKey;

impl RmCore {
    /// Registers an application master, or takes it back after a lost session. Returns the session's number.
    ///
    /// # Errors
    /// [`Denied::Recovering`] until all stored nodes have reported or are lost: its list of containers would have
    /// holes. [`Denied::NotCurrentAttempt`], [`Denied::Over`], [`Denied::UnknownApp`]: it must exit.
    pub fn am_hello(
        &mut self,
        now: Timestamp,
        hello: AmHello,
        out: &mut Vec<Command>,
    ) -> Result<(u64, AmWelcome), Denied> {
        let id = hello.app.clone();
        self.may_register(&hello)?;
        let session = self.new_session();
        let app = self.known_mut(&id);
        let former = app.session.replace(session);
        app.attempt = app.attempt.after(AttemptEvent::Registered).expect("a current master is placed");
        app.running_since.get_or_insert(now);
        app.heard = now;
        app.registered = true;
        let state = app_after(app.state, &AppEvent::Registered);
        let changed = state != app.state;
        app.state = state;
        let moved = app.address.as_ref() != Some(&hello.address);
        app.address = Some(hello.address.clone());
        if changed {
            app.diagnostics.clear();
            self.persist(&id, out);
        }
        if let Some(session) = former {
            let reason = "a newer session took its place";
            out.push(Command::CloseAmSession { app: id.clone(), session, reason });
        }
        if moved {
            self.spread_address(&id, hello.address, out);
        }
        self.timers.arm(TimerKey::App(id.clone()), now.plus(self.config.am_silence_ms));
        self.replace_asks(now, &id, hello.asks, out);
        Ok((session, self.am_welcome(&id)))
    }

    fn may_register(&self, hello: &AmHello) -> Result<(), Denied> {
        let app = self.apps.get(&hello.app).ok_or_else(|| Denied::UnknownApp(hello.app.0.clone()))?;
        if app.state.is_over() {
            return Err(Denied::Over(app.id.clone()));
        }
        let refuse = |why: String| {
            let (app, attempt, container) = (hello.app.clone(), hello.attempt, hello.container);
            Err(Denied::NotCurrentAttempt { app, attempt, container, why })
        };
        if hello.attempt != app.attempt_no || app.master != Some(hello.container) {
            return refuse(format!("attempt {} is", app.attempt_no));
        }
        let container = &self.containers[&hello.container];
        if !container.is_live() || container.stop.is_some() {
            return refuse("it is being stopped".to_owned());
        }
        if app.recovered && self.recovering() {
            return Err(Denied::Recovering);
        }
        Ok(())
    }

    fn am_welcome(&self, id: &AppId) -> AmWelcome {
        let app = self.known(id);
        let containers: Vec<PlacedContainer> = app
            .containers
            .iter()
            .filter_map(|id| self.containers.get(id))
            .filter(|it| it.slot().is_some() && !it.acked)
            .map(|it| self.placed(it))
            .collect();
        let job = app.job();
        let state: Vec<NodeState> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.liveness != Liveness::Lost && node.state.contains_key(job))
            .map(|(_, node)| node.state_of(job))
            .collect();
        let stop = (app.state == AppState::Stopping).then_some(StopJob { kill: app.kill });
        AmWelcome {
            epoch: self.epoch,
            spec: Box::new(app.spec.as_ref().clone()),
            containers,
            state,
            beat_ms: self.config.beat_ms,
            stop,
        }
    }

    /// Tells every node that holds containers of an application where its master is now.
    fn spread_address(&self, id: &AppId, address: String, out: &mut Vec<Command>) {
        let app = self.known(id);
        let nodes: BTreeSet<NodeIx> = app
            .containers
            .iter()
            .filter_map(|id| self.containers.get(id))
            .filter(|it| it.is_live() && it.slot().is_some())
            .map(|it| it.node)
            .collect();
        for ix in nodes {
            let item =
                ToNode::AmAddress { app: id.clone(), attempt: app.attempt_no, address: address.clone() };
            self.to_node(ix, item, out);
        }
    }

    /// What a Hello asks for is all that is wanted.
    fn replace_asks(&mut self, now: Timestamp, id: &AppId, asks: Vec<Ask>, out: &mut Vec<Command>) {
        let wanted: BTreeSet<RequestId> = asks.iter().map(|ask| ask.request).collect();
        let open: Vec<RequestId> = self.known(id).asks.keys().copied().collect();
        for request in open.into_iter().filter(|request| !wanted.contains(request)) {
            self.drop_ask(id, request);
        }
        for open in self.known_mut(id).asks.values_mut() {
            open.told.clear();
        }
        for ask in asks {
            self.set_ask(now, id, ask, out);
        }
    }

    /// An item of an application master's session.
    ///
    /// # Errors
    /// [`Denied::StaleSession`] for words of a session that is not the current one; they change nothing.
    pub fn am_item(
        &mut self,
        now: Timestamp,
        id: &AppId,
        session: u64,
        item: FromAm,
        out: &mut Vec<Command>,
    ) -> Result<(), Denied> {
        let app =
            self.apps.get_mut(id).filter(|app| app.session == Some(session)).ok_or(Denied::StaleSession)?;
        app.heard = now;
        if app.state.is_over() {
            return Ok(());
        }
        match item {
            FromAm::Beat { sent_at_ms } => self.to_am(id, ToAm::BeatAck { sent_at_ms }, out),
            FromAm::Ask(ask) => self.set_ask(now, id, ask, out),
            FromAm::CancelAsk(request) => self.drop_ask(id, request),
            FromAm::Stop { container, grace_ms, cause } => {
                if self.is_worker_of(id, container) {
                    self.order_stop(container, StopOrder { grace_ms, cause }, out);
                }
            }
            FromAm::AckExit(container) => self.ack_exit(id, container, out),
            FromAm::Mint { nonce } => {
                let incarnation = self.mint();
                self.to_am(id, ToAm::Minted { nonce, incarnation }, out);
            }
            FromAm::Status(status) => self.known_mut(id).status = Some((Arc::new(*status), now)),
            FromAm::Finish(outcome) => self.finish(now, id, &outcome, out),
        }
        Ok(())
    }

    /// An application master's session is over; it is silent from now on.
    pub fn am_gone(&mut self, app: &AppId, session: u64) {
        if let Some(app) = self.apps.get_mut(app)
            && app.session == Some(session)
        {
            app.session = None;
        }
    }

    fn finish(&mut self, now: Timestamp, id: &AppId, outcome: &JobOutcome, out: &mut Vec<Command>) {
        let app = self.known(id);
        let why = match outcome {
            JobOutcome::Failed { reason } => reason.clone(),
            JobOutcome::Finished | JobOutcome::Killed if app.state == AppState::Stopping => {
                app.diagnostics.clone()
            }
            JobOutcome::Finished => "it ended by itself".to_owned(),
            JobOutcome::Killed => "killed".to_owned(),
        };
        self.end_app(now, id, outcome, &why, out);
        // The end of its session tells the master that its last word is durable and that it may exit.
        if let Some(session) = self.known_mut(id).session.take() {
            out.push(Command::CloseAmSession { app: id.clone(), session, reason: "the application is over" });
        }
    }

    fn is_worker_of(&self, app: &AppId, container: ContainerId) -> bool {
        self.containers.get(&container).is_some_and(|it| it.app == *app && it.slot().is_some())
    }

    fn ack_exit(&mut self, app: &AppId, id: ContainerId, out: &mut Vec<Command>) {
        if !self.is_worker_of(app, id) {
            return;
        }
        if let Some(container) = self.containers.get_mut(&id)
            && !container.is_live()
        {
            container.acked = true;
            self.try_forget(id, out);
        }
    }

    fn set_ask(&mut self, now: Timestamp, id: &AppId, ask: Ask, out: &mut Vec<Command>) {
        let request = ask.request;
        let app = self.known(id);
        if request.attempt != app.attempt_no {
            return;
        }
        if app.is_answered(request) {
            // It crossed with its answer.
            let answer = app.containers.iter().find(|container| {
                let role = types::Role::Worker { request };
                self.containers.get(*container).is_some_and(|it| it.role == role && !it.acked)
            });
            if let Some(container) = answer {
                self.tell_am(*container, out);
            }
            return;
        }
        let unmatched = self.unmatched(&ask);
        let app = self.known_mut(id);
        app.unmatched.insert(request.slot, unmatched.clone());
        let former = app.asks.get(&request);
        let (since, told) = former.map_or((now, Vec::new()), |open| (open.since, open.told.clone()));
        app.asks.insert(request, OpenAsk { ask, since, unmatched, told });
        self.queue_ask(now, id, request);
    }

    /// The ask's preferences that name no node, one line each.
    fn unmatched(&self, ask: &Ask) -> Vec<String> {
        let mut lines: BTreeMap<String, String> = BTreeMap::new();
        for preference in &ask.preferences {
            let mut names =
                std::iter::once(&preference.host).chain(&preference.aliases).filter(|it| !it.is_empty());
            let matches = names.any(|name| self.nodes.named(name).next().is_some());
            if !matches && !preference.host.is_empty() {
                let line = format!("no node is named {} ({})", preference.host, preference.reason);
                lines.insert(preference.host.clone(), line);
            }
        }
        lines.into_values().collect()
    }
}
