//! The one loop that owns the core: events in, commands out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nm_core::{Command, Core, Event};
use nm_shim::files::Pid;
use tokio::sync::{Notify, mpsc, oneshot};
use types::{
    CommandStamp, ContainerId, ContainerUsage, FromNode, JobId, NodeHello, NodeWelcome, StateEntry,
    Timestamp, ToNode,
};

use crate::age::Ages;
use crate::cgroup::Cgroups;
use crate::hands::{Hands, Preparing};
use crate::logs::{Bound, Known};
use crate::root::Root;
use crate::usage::Meter;
use crate::watch::End;

/// How often usage is read while something runs.
const USAGE_EVERY: Duration = Duration::from_secs(1);
/// How often local state is looked at while something runs.
const STATE_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at local state, ms: many containers end together.
const STATE_APART_MS: u64 = 500;
/// How often old logs and state are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How soon after a container came or went all logs are held to their bound, ms; many come and go together.
const LOGS_AFTER_MS: u64 = 2_000;

/// The session's sending half.
pub(crate) type ToResourceManager = proto::Tx<FromNode>;

/// What reaches the driver.
pub(crate) enum Inbox {
    /// A result of a command.
    Core(Event),
    /// The session wants to say Hello.
    Hello(oneshot::Sender<(NodeHello, Timestamp)>),
    /// The resource manager answered the Hello sent at that moment.
    Opened { session: Arc<Notify>, welcome: NodeWelcome, sent_at: Timestamp, tx: ToResourceManager },
    /// A command of the resource manager.
    Item(CommandStamp, ToNode),
    /// The session is over; there is at most one.
    Closed,
    /// A shim is being watched.
    Shim(ContainerId, Pid),
    /// A container ended.
    Ended(ContainerId, End),
    /// Local state was looked at.
    State(Vec<StateEntry>),
    /// Usage was read.
    Usage { meter: Box<Meter>, usage: Vec<ContainerUsage> },
}

/// Sole owner of the core.
pub(crate) struct Driver {
    pub(crate) core: Core,
    pub(crate) root: Arc<Root>,
    pub(crate) cgroups: Arc<dyn Cgroups>,
    pub(crate) hands: Hands,
    /// The fixed facts of a Hello.
    pub(crate) hello: NodeHello,
    pub(crate) inbox: mpsc::UnboundedSender<Inbox>,
    pub(crate) known: Arc<Known>,
    pub(crate) session: Option<(Arc<Notify>, ToResourceManager)>,
    pub(crate) shims: HashMap<ContainerId, Pid>,
    /// Downloads and preparations under way: removal waits for them.
    pub(crate) preparing: HashMap<ContainerId, Preparing>,
    /// None while a reading is under way.
    pub(crate) meter: Option<Box<Meter>>,
    /// A session has begun that knows of no usage yet.
    pub(crate) tell_usage: bool,
    pub(crate) state_sent: Vec<StateEntry>,
    pub(crate) state_scan: bool,
    /// When local state is looked at next, if something ended or may have changed.
    pub(crate) state_at: Option<Timestamp>,
    /// When it was looked at last.
    pub(crate) state_looked: Timestamp,
    pub(crate) logs: Arc<Bound>,
    /// When all logs are held to their bound next, if a container came or went.
    pub(crate) logs_at: Option<Timestamp>,
}

impl Driver {
    /// Runs until `shutdown`. Containers stay.
    pub(crate) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Inbox>, shutdown: daemon::Shutdown) {
        let mut usage = tokio::time::interval(USAGE_EVERY);
        let mut state = tokio::time::interval(STATE_EVERY);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        for ticks in [&mut usage, &mut state, &mut sweep] {
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            let mut out = Vec::new();
            let deadline = self.core.next_deadline();
            tokio::select! {
                () = shutdown.wait() => return,
                received = inbox.recv() => match received {
                    Some(message) => self.handle(message, &mut out),
                    None => return,
                },
                () = until(deadline) => self.core.handle_deadline(now(), &mut out),
                _ = usage.tick() => self.tick_usage(),
                _ = state.tick() => self.state_may_change(false),
                _ = sweep.tick() => self.sweep(),
                () = until(self.logs_at) => self.hold_logs(),
                () = until(self.state_at) => self.look_at_state(),
            }
            self.carry_out(out);
            debug_check(&self.core);
        }
    }

    fn handle(&mut self, message: Inbox, out: &mut Vec<Command>) {
        let now = now();
        match message {
            Inbox::Core(event) => {
                if let Event::Localized { id, .. } = &event {
                    self.preparing.remove(id);
                }
                if let Err(denied) = self.core.apply(now, event, out) {
                    tracing::warn!(%denied, "an event was refused");
                }
            }
            Inbox::Hello(reply) => {
                let facts = self.core.hello(now);
                let hello = NodeHello {
                    containers: facts.containers,
                    lease_lapsed: facts.lease_lapsed,
                    state: self.state_sent.clone(),
                    ..self.hello.clone()
                };
                // A session that is gone asks again.
                let _ = reply.send((hello, now));
            }
            Inbox::Opened { session, welcome, sent_at, tx } => {
                self.session = Some((session, tx));
                self.tell_usage = true;
                match self.core.welcome(now, &welcome, sent_at, out) {
                    Ok(()) => {
                        tracing::info!(epoch = welcome.epoch.0, session = welcome.session, "joined");
                    }
                    Err(denied) => {
                        tracing::warn!(%denied, "the resource manager is not the one it was");
                        self.close_session();
                    }
                }
            }
            Inbox::Item(stamp, item) => {
                if let Err(denied) = self.core.command(now, &stamp, item, out) {
                    tracing::warn!(%denied, "a command was refused");
                }
            }
            Inbox::Closed => {
                self.session = None;
                self.core.session_lost(now, out);
            }
            Inbox::Shim(id, pid) => {
                self.shims.insert(id, pid);
            }
            Inbox::Ended(id, end) => {
                self.shims.remove(&id);
                self.core.ended(now, id, end.outcome, &end.evidence, end.ended_unix_ms, out);
                self.state_may_change(true);
            }
            Inbox::State(found) => self.state_found(found),
            Inbox::Usage { meter, usage } => {
                self.meter = Some(meter);
                if !usage.is_empty() {
                    self.send(FromNode::Usage(usage));
                }
            }
        }
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in &commands {
            if let Command::Persist { id, .. } | Command::Launch { id, .. } | Command::Remove { id } = command
            {
                // Before anything is made of it: who finds a container's folder finds it known.
                self.known.set(*id, self.core.where_is(*id));
                self.logs_at.get_or_insert_with(|| now().plus(LOGS_AFTER_MS));
            }
        }
        for command in commands {
            self.carry_out_one(command);
        }
    }

    fn carry_out_one(&mut self, command: Command) {
        match command {
            Command::Persist { id, version, record } => self.hands.persist(id, version, record),
            Command::PersistEpoch(epoch) => {
                if let Err(error) = self.root.set_top_epoch(epoch) {
                    tracing::warn!(%error, "the resource manager's epoch cannot be remembered");
                }
            }
            Command::Localize { id } => {
                if let Some(start) = self.core.order(id).cloned() {
                    self.preparing.insert(id, self.hands.localize(start));
                }
            }
            Command::Launch { id, master } => {
                if let Some(start) = self.core.order(id).cloned() {
                    self.hands.launch(start, master);
                }
            }
            Command::Terminate { id } => self.hands.terminate(id),
            Command::Kill { id } => self.hands.kill(id, self.shims.get(&id).copied()),
            Command::Remove { id } => self.hands.remove(id, self.preparing.remove(&id)),
            Command::WriteMaster { id, master } => self.hands.write_master(id, master),
            Command::WriteLease(end) => {
                if let Err(error) = self.root.write_lease(end) {
                    tracing::error!(%error, "the lease's end cannot be written: shims will end their containers");
                }
            }
            Command::PurgeState(job) => self.hands.purge(job),
            Command::Send(item) => self.send(item),
            Command::CloseSession => {
                tracing::warn!("the lease ended; joining anew");
                self.close_session();
            }
        }
    }

    fn send(&self, item: FromNode) {
        if let Some((_, tx)) = &self.session {
            // A closed session is noticed by its receiver; what was lost is in the next Hello.
            let _ = tx.send(item);
        }
    }

    fn close_session(&mut self) {
        if let Some((session, _)) = self.session.take() {
            session.notify_one();
        }
    }

    pub(crate) fn publish(&self) {
        for container in self.core.view().containers {
            self.known.set(container.id, Some((&container.job, container.phase)));
        }
    }

    fn running(&self) -> Vec<ContainerId> {
        self.core.with_processes().collect()
    }

    fn jobs(&self) -> Vec<JobId> {
        self.core.view().containers.into_iter().map(|container| container.job).collect()
    }

    fn tick_usage(&mut self) {
        let running = self.running();
        if running.is_empty() {
            return;
        }
        let Some(mut meter) = self.meter.take() else { return };
        if std::mem::take(&mut self.tell_usage) {
            meter.tell_all();
        }
        let (cgroups, inbox) = (self.cgroups.clone(), self.inbox.clone());
        tokio::task::spawn_blocking(move || {
            let usage = meter.read(cgroups.as_ref(), &running);
            // The driver is gone only at shutdown.
            let _ = inbox.send(Inbox::Usage { meter, usage });
        });
    }

    /// Local state is looked at soon: while something runs, or because something ended.
    fn state_may_change(&mut self, ended: bool) {
        if ended || self.core.with_processes().next().is_some() {
            let at = self.state_looked.plus(STATE_APART_MS).max(now());
            self.state_at.get_or_insert(at);
        }
    }

    /// Looks at local state in the background.
    fn look_at_state(&mut self) {
        self.state_at = None;
        if self.state_scan {
            // What ended since that one began may not be in it.
            self.state_at = Some(now().plus(STATE_APART_MS));
            return;
        }
        (self.state_scan, self.state_looked) = (true, now());
        let (root, inbox) = (self.root.clone(), self.inbox.clone());
        tokio::task::spawn_blocking(move || {
            // The driver is gone only at shutdown.
            let _ = inbox.send(Inbox::State(crate::state::scan(&root)));
        });
    }

    fn state_found(&mut self, found: Vec<StateEntry>) {
        self.state_scan = false;
        if found != self.state_sent {
            self.state_sent.clone_from(&found);
            self.send(FromNode::State(found));
        }
    }

    fn sweep(&self) {
        let (root, known, jobs) = (self.root.clone(), self.known.clone(), self.jobs());
        let (logs, localizer) = (self.logs.clone(), self.hands.localizer.clone());
        tokio::task::spawn_blocking(move || {
            let ages = Ages::look(&root);
            crate::state::sweep(&root, &jobs, &ages);
            let results = [
                crate::logs::sweep(&root, &known, &ages),
                logs.hold(&root, &known),
                root.clear(),
                root.sweep_damaged(&ages),
            ];
            for error in results.into_iter().filter_map(Result::err) {
                tracing::warn!(%error, "what is old cannot be removed");
            }
            localizer.sweep(&root);
        });
    }

    fn hold_logs(&mut self) {
        self.logs_at = None;
        let (root, known, logs) = (self.root.clone(), self.known.clone(), self.logs.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = logs.hold(&root, &known) {
                tracing::warn!(%error, "logs cannot be held to --logs-total");
            }
        });
    }
}

/// The clock of leases: it goes on while the machine sleeps.
pub(crate) fn now() -> Timestamp {
    Timestamp(daemon::boottime_ms())
}

async fn until(deadline: Option<Timestamp>) {
    match deadline {
        Some(at) => tokio::time::sleep(Duration::from_millis(at.since(now()))).await,
        None => std::future::pending().await,
    }
}

fn debug_check(core: &Core) {
    if cfg!(debug_assertions)
        && let Err(violation) = core.check()
    {
        panic!("{violation}");
    }
}
