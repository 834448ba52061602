//! The sole owner of the core. One loop: take what has come → verbs → make records durable → replies and
//! commands, in their order → publish the view.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use daemon::Shutdown;
use proto::{Incoming, Tx};
use rm_core::{Command, Denied, RmCore, Submit, View};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};
use types::{
    AmHello, AmWelcome, AppId, CommandStamp, FromAm, FromNode, JobId, NodeHello, NodeId, NodeWelcome,
    Timestamp, ToAm, ToNode,
};

use crate::store::Store;

/// A node that wants a session.
pub(crate) type IncomingNode = Incoming<NodeHello, NodeWelcome, (CommandStamp, ToNode), FromNode>;
/// An application master that wants a session.
pub(crate) type IncomingAm = Incoming<AmHello, AmWelcome, ToAm, FromAm>;
/// Where a verb's answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Denied>>;

/// Messages taken into one batch at most.
const BATCH: usize = 1024;
/// How long changes are gathered before readers see them; client verbs are seen at once.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// How often ages are brought up to date though nothing changed.
const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// What the loop is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// A client submits.
    Submit(Box<Submit>, Reply<AppId>),
    /// A client stops or kills.
    Stop(String, bool, Reply<AppId>),
    /// A client purges.
    Purge(JobId, Reply<()>),
    /// A client empties a node, or takes that back.
    Drain(NodeId, Option<u64>, Reply<()>),
    /// A client has slots of an application held.
    Hold { app: String, slots: Vec<u32>, for_ms: u64, reply: Reply<()> },
    /// A node said something.
    NodeItem(NodeId, u64, FromNode),
    /// A node's session is over.
    NodeGone(NodeId, u64, String),
    /// An application master said something.
    AmItem(AppId, u64, FromAm),
    /// An application master's session is over.
    AmGone(AppId, u64, String),
}

/// What the loop reads from.
pub(crate) struct Inbox {
    pub(crate) messages: mpsc::Receiver<Message>,
    pub(crate) nodes: mpsc::Receiver<IncomingNode>,
    pub(crate) masters: mpsc::Receiver<IncomingAm>,
}

/// Something to do once the batch is durable; in the order of the verbs that caused it.
enum Effect {
    Command(Command),
    AcceptNode(IncomingNode, NodeWelcome),
    AcceptAm(IncomingAm, u64, Box<AmWelcome>),
    RefuseNode(IncomingNode, Denied),
    RefuseAm(IncomingAm, Denied),
    App(Reply<AppId>, Result<AppId, Denied>),
    Answer(Reply<()>, Result<(), Denied>),
}

/// The loop's state.
pub(crate) struct Driver {
    core: RmCore,
    store: Arc<Store>,
    /// For the tasks that read sessions.
    to_self: mpsc::Sender<Message>,
    nodes: BTreeMap<NodeId, (u64, Tx<(CommandStamp, ToNode)>)>,
    masters: BTreeMap<AppId, (u64, Tx<ToAm>)>,
    /// Masters that wait for the cluster to report; at most one per application.
    held: BTreeMap<AppId, IncomingAm>,
    view: watch::Sender<Arc<View>>,
    published: Instant,
    changed: bool,
}

fn now() -> Timestamp {
    Timestamp(daemon::boottime_ms())
}

impl Driver {
    pub(crate) fn new(
        core: RmCore,
        store: Store,
        to_self: mpsc::Sender<Message>,
        view: watch::Sender<Arc<View>>,
    ) -> Driver {
        Driver {
            core,
            store: Arc::new(store),
            to_self,
            nodes: BTreeMap::new(),
            masters: BTreeMap::new(),
            held: BTreeMap::new(),
            view,
            published: Instant::now(),
            changed: true,
        }
    }

    /// Runs until shutdown.
    ///
    /// # Errors
    /// If the store fails: nothing can be acknowledged any more.
    pub(crate) async fn run(mut self, mut inbox: Inbox, shutdown: Shutdown) -> anyhow::Result<()> {
        self.publish();
        let token = shutdown.token();
        loop {
            let mut effects = Vec::new();
            let deadline = self.next_wake();
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                Some(message) = inbox.messages.recv() => self.take(message, &mut effects),
                Some(incoming) = inbox.nodes.recv() => self.greet_node(incoming, &mut effects),
                Some(incoming) = inbox.masters.recv() => self.greet_am(incoming, &mut effects),
                () = tokio::time::sleep_until(deadline) => {}
            }
            self.drain(&mut inbox, &mut effects);
            if self.core.next_deadline().is_some_and(|at| at <= now()) {
                let mut out = Vec::new();
                self.core.handle_deadline(now(), &mut out);
                self.changed = true;
                effects.extend(out.into_iter().map(Effect::Command));
            }
            self.retry_held(&mut effects);
            self.finish_batch(effects).await?;
        }
    }

    fn next_wake(&self) -> Instant {
        let mut wake = self.published + if self.changed { PUBLISH_EVERY } else { REFRESH_EVERY };
        if let Some(at) = self.core.next_deadline() {
            wake = wake.min(Instant::now() + Duration::from_millis(at.since(now())));
        }
        wake
    }

    /// Takes what else has come: what happened before a deadline is heard before it is judged.
    fn drain(&mut self, inbox: &mut Inbox, effects: &mut Vec<Effect>) {
        for _ in 0..BATCH {
            if let Ok(message) = inbox.messages.try_recv() {
                self.take(message, effects);
            } else if let Ok(incoming) = inbox.nodes.try_recv() {
                self.greet_node(incoming, effects);
            } else if let Ok(incoming) = inbox.masters.try_recv() {
                self.greet_am(incoming, effects);
            } else {
                return;
            }
        }
    }

    fn take(&mut self, message: Message, effects: &mut Vec<Effect>) {
        let mut out = Vec::new();
        self.changed = true;
        let stale = match message {
            Message::Submit(submit, reply) => {
                let answer = self.core.submit(now(), *submit, &mut out);
                effects.push(Effect::App(reply, answer));
                None
            }
            Message::Stop(name, kill, reply) => {
                let answer = self.core.stop(now(), &name, kill, &mut out);
                effects.push(Effect::App(reply, answer));
                None
            }
            Message::Purge(job, reply) => {
                let answer = self.core.purge(now(), &job, &mut out);
                effects.push(Effect::Answer(reply, answer));
                None
            }
            Message::Drain(node, grace_ms, reply) => {
                let answer = self.core.drain(now(), &node, grace_ms, &mut out);
                effects.push(Effect::Answer(reply, answer));
                None
            }
            Message::Hold { app, slots, for_ms, reply } => {
                let answer = self.core.hold(&app, slots, for_ms, &mut out).map(drop);
                effects.push(Effect::Answer(reply, answer));
                None
            }
            Message::NodeItem(node, session, item) => {
                self.core.node_item(now(), &node, session, item, &mut out).err().map(|why| (node.0, why))
            }
            Message::AmItem(app, session, item) => {
                self.core.am_item(now(), &app, session, item, &mut out).err().map(|why| (app.0, why))
            }
            Message::NodeGone(node, session, reason) => {
                info!(%node, session, reason, "node session over");
                self.core.node_gone(&node, session);
                self.nodes.retain(|id, (number, _)| *id != node || *number != session);
                None
            }
            Message::AmGone(app, session, reason) => {
                info!(%app, session, reason, "application master's session over");
                self.core.am_gone(&app, session);
                self.masters.retain(|id, (number, _)| *id != app || *number != session);
                None
            }
        };
        if let Some((who, why)) = stale {
            debug!(who, %why, "ignored");
        }
        effects.extend(out.into_iter().map(Effect::Command));
    }

    fn greet_node(&mut self, incoming: IncomingNode, effects: &mut Vec<Effect>) {
        let mut out = Vec::new();
        self.changed = true;
        match self.core.node_hello(now(), incoming.hello.clone(), &mut out) {
            Ok(welcome) => effects.push(Effect::AcceptNode(incoming, welcome)),
            Err(why) => effects.push(Effect::RefuseNode(incoming, why)),
        }
        effects.extend(out.into_iter().map(Effect::Command));
    }

    fn greet_am(&mut self, incoming: IncomingAm, effects: &mut Vec<Effect>) {
        let mut out = Vec::new();
        self.changed = true;
        match self.core.am_hello(now(), incoming.hello.clone(), &mut out) {
            Ok((session, welcome)) => effects.push(Effect::AcceptAm(incoming, session, Box::new(welcome))),
            Err(Denied::Recovering) => {
                self.held.insert(incoming.hello.app.clone(), incoming);
            }
            Err(why) => effects.push(Effect::RefuseAm(incoming, why)),
        }
        effects.extend(out.into_iter().map(Effect::Command));
    }

    fn retry_held(&mut self, effects: &mut Vec<Effect>) {
        if !self.core.recovering() {
            for (_, incoming) in std::mem::take(&mut self.held) {
                self.greet_am(incoming, effects);
            }
        }
    }

    /// Durable first; then readers see it, then those who asked are answered and others are told.
    async fn finish_batch(&mut self, effects: Vec<Effect>) -> anyhow::Result<()> {
        #[cfg(debug_assertions)]
        self.core.check().expect("the core keeps its invariants");
        let mut records = Vec::new();
        let mut is_awaited = false;
        for effect in &effects {
            match effect {
                Effect::Command(Command::Persist(record)) => records.push(record.clone()),
                Effect::App(..) | Effect::Answer(..) => is_awaited = true,
                _ => {}
            }
        }
        if !records.is_empty() {
            let store = self.store.clone();
            let commit = tokio::task::spawn_blocking(move || store.commit(&records));
            commit.await.context("the store's thread")?.context("the store cannot be written")?;
        }
        let due = if self.changed { PUBLISH_EVERY } else { REFRESH_EVERY };
        if is_awaited || self.published.elapsed() >= due {
            self.publish();
        }
        for effect in effects {
            self.perform(effect);
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.view.send_replace(Arc::new(self.core.view(now())));
        self.published = Instant::now();
        self.changed = false;
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Command(command) => self.command(command),
            Effect::AcceptNode(incoming, welcome) => self.accept_node(incoming, welcome),
            Effect::AcceptAm(incoming, session, welcome) => self.accept_am(incoming, session, *welcome),
            Effect::RefuseNode(incoming, why) => {
                warn!(node = %incoming.hello.node, peer = incoming.peer, %why, "node refused");
                incoming.refuse(why.to_string());
            }
            Effect::RefuseAm(incoming, why) => {
                warn!(app = %incoming.hello.app, attempt = incoming.hello.attempt, %why, "application master refused");
                incoming.refuse(why.to_string());
            }
            // A client that left does not need its answer.
            Effect::App(reply, answer) => drop(reply.send(answer)),
            Effect::Answer(reply, answer) => drop(reply.send(answer)),
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Persist(_) => {}
            Command::ToNode { node, stamp, item } => {
                if let Some((session, tx)) = self.nodes.get(&node)
                    && *session == stamp.session
                    && let Err(error) = tx.send((stamp, item))
                {
                    debug!(%node, ?error, "not sent; its next Hello will say what it lacks");
                }
            }
            Command::ToAm { app, session, item } => {
                if let Some((current, tx)) = self.masters.get(&app)
                    && *current == session
                    && let Err(error) = tx.send(item)
                {
                    debug!(%app, ?error, "not sent; its next Hello is answered with everything");
                }
            }
            Command::CloseNodeSession { node, session, reason } => {
                if self.nodes.get(&node).is_some_and(|(current, _)| *current == session) {
                    info!(%node, session, reason, "closing node session");
                    if let Some((_, tx)) = self.nodes.remove(&node) {
                        tx.close();
                    }
                }
            }
            Command::CloseAmSession { app, session, reason } => {
                if self.masters.get(&app).is_some_and(|(current, _)| *current == session) {
                    info!(%app, session, reason, "closing application master's session");
                    if let Some((_, tx)) = self.masters.remove(&app) {
                        tx.close();
                    }
                }
            }
        }
    }

    fn accept_node(&mut self, incoming: IncomingNode, welcome: NodeWelcome) {
        let (node, session) = (incoming.hello.node.clone(), welcome.session);
        info!(%node, session, peer = incoming.peer, containers = incoming.hello.containers.len(), "node joined");
        let (tx, mut rx) = incoming.accept(welcome);
        if let Some((_, former)) = self.nodes.insert(node.clone(), (session, tx)) {
            former.close();
        }
        let inbox = self.to_self.clone();
        tokio::spawn(async move {
            while let Some(item) = rx.recv().await {
                if inbox.send(Message::NodeItem(node.clone(), session, item)).await.is_err() {
                    return;
                }
            }
            // Nobody is left to tell when the loop itself is over.
            let _ = inbox.send(Message::NodeGone(node, session, rx.reason())).await;
        });
    }

    fn accept_am(&mut self, incoming: IncomingAm, session: u64, welcome: AmWelcome) {
        let (app, attempt) = (incoming.hello.app.clone(), incoming.hello.attempt);
        info!(%app, attempt, session, address = incoming.hello.address, "application master registered");
        let (tx, mut rx) = incoming.accept(welcome);
        if let Some((_, former)) = self.masters.insert(app.clone(), (session, tx)) {
            former.close();
        }
        let inbox = self.to_self.clone();
        tokio::spawn(async move {
            while let Some(item) = rx.recv().await {
                if inbox.send(Message::AmItem(app.clone(), session, item)).await.is_err() {
                    return;
                }
            }
            let _ = inbox.send(Message::AmGone(app, session, rx.reason())).await;
        });
    }
}
