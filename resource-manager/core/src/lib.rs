//! The resource manager's decisions, without clock, randomness or I/O.
//!
//! [`RmCore`] admits applications, runs their attempts, places containers on nodes and remembers what became of
//! them. Every verb takes the time, changes state and pushes [`Command`]s; refusals are [`Denied`]. Who calls it
//! must, for each batch of verbs, make every [`Command::Persist`] durable before any other command or reply of
//! the batch leaves the process, and call [`RmCore::handle_deadline`] whenever [`RmCore::next_deadline`] has
//! passed and no verb is waiting: placement happens there, once for all that came together.
//!
//! Who holds the truth: the store about applications, attempts and which nodes there are; nodes about containers
//! (their Hello replaces what was believed); application masters about what they want (their Hello replaces their
//! asks). After a restart the core is rebuilt from all three and disturbs nothing.
//!
//! | file | decides |
//! |---|---|
//! | `client.rs` | submit, stop, kill, replace, purge |
//! | `attempts.rs` | when an application master starts, is silent, has failed too often |
//! | `ending.rs` | what follows when an application is over |
//! | `node_session.rs` | Hello resync, leases, what a lost node's containers become |
//! | `am_session.rs` | register, asks, stops, acknowledgements |
//! | `containers.rs` | a container's life as told by its node |
//! | `drain.rs` | what leaves a node that is to be emptied |
//! | `placing.rs` | the queue; `scheduler/` where each goes |
//! | `app.rs`, `node.rs`, `container.rs` | the state machines and their tables |

mod am_session;
mod app;
mod attempts;
mod check;
mod client;
mod command;
mod container;
mod containers;
mod drain;
mod ending;
mod event;
mod node;
mod node_session;
mod placing;
mod recovery;
mod scheduler;
mod start;
mod timers;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use types::{AppId, ClusterReport, ContainerId, Epoch, Incarnation, JobId, NodeId, Timestamp, ToAm, ToNode};

pub use client::Submit;
pub use command::{Command, Denied, Record, Stored, StoredApp, StoredMaster, StoredNode, Violation};
pub use event::{Event, Outcome};

use app::App;
use container::Container;
use node::{NodeIx, Nodes};
use placing::Queue;
use timers::{TimerKey, Timers};

/// What the core must be told about its world. Times in ms.
#[derive(Debug, Clone)]
pub struct Config {
    /// Shown to users.
    pub version: String,
    /// Unix time at [`Timestamp`] 0: what turns moments into dates for people.
    pub unix_at_zero_ms: u64,
    /// A node's lease.
    pub lease_ms: u64,
    /// How often nodes and application masters beat.
    pub beat_ms: u64,
    /// An application master this silent is stopped and replaced.
    pub am_silence_ms: u64,
    /// An application master that runs but has not registered for this long is stopped and replaced.
    pub am_launch_ms: u64,
    /// So many failed attempts within the window fail the application.
    pub am_failures: u32,
    /// The window.
    pub am_window_ms: u64,
    /// An attempt that was registered for this long did not fail, whatever ended it.
    pub am_stable_ms: u64,
    /// How long an application master may take to obey a kill before the resource manager acts by itself.
    pub kill_wait_ms: u64,
    /// How long an application master may take to exit after it said that its job is over.
    pub linger_ms: u64,
    /// Applications that are over and still remembered.
    pub keep_apps: usize,
    /// Containers per application that are over and still remembered.
    pub keep_containers: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            unix_at_zero_ms: 0,
            lease_ms: 5_000,
            beat_ms: 500,
            am_silence_ms: 10_000,
            am_launch_ms: 30_000,
            am_failures: 8,
            am_window_ms: 300_000,
            am_stable_ms: 10_000,
            kill_wait_ms: 15_000,
            linger_ms: 5_000,
            keep_apps: 100,
            keep_containers: 50,
        }
    }
}

impl Config {
    /// After so long without a beat a node is suspect: three were missed, and half a beat for the road.
    fn suspect_ms(&self) -> u64 {
        self.beat_ms * 3 + self.beat_ms / 2
    }
    /// After so long without a beat a node's lease is over on every clock: 1 % for drift, 500 ms for the road.
    fn lost_ms(&self) -> u64 {
        self.lease_ms + self.lease_ms / 100 + 500
    }
}

/// What users may see of the cluster at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    /// The nodes.
    pub cluster: ClusterReport,
    /// Every application remembered, newest first.
    pub apps: Vec<types::AppReport>,
    /// Whether stored nodes have yet to report.
    pub recovering: bool,
}

/// The core: see the crate's documentation.
#[derive(Debug)]
pub struct RmCore {
    config: Config,
    epoch: Epoch,
    started_unix_ms: u64,
    next_seq: u64,
    next_app: u64,
    next_order: u64,
    next_session: u64,
    nodes: Nodes,
    apps: BTreeMap<AppId, App>,
    orders: BTreeMap<u64, AppId>,
    /// The application of each (name, id) that is not over and does not wait for another.
    live: BTreeMap<JobId, AppId>,
    clients: BTreeMap<String, AppId>,
    containers: BTreeMap<ContainerId, Container>,
    queue: Queue,
    timers: Timers,
    /// Stored nodes that have not reported: while there are any, existing applications' masters wait.
    awaited: BTreeSet<NodeIx>,
    /// After a pause of our own, silence is not judged before this.
    judge_from: Timestamp,
    /// When placement was first wanted.
    place_due: Option<Timestamp>,
}

impl RmCore {
    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether stored nodes have yet to report; until then `am_hello` of existing applications is
    /// [`Denied::Recovering`].
    #[must_use]
    pub fn recovering(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// When [`RmCore::handle_deadline`] wants to be called; may be in the past.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        match (self.place_due, self.timers.next()) {
            (Some(place), Some(timer)) => Some(place.min(timer)),
            (place, timer) => place.or(timer),
        }
    }

    /// Does what is due: leases, silences, backoffs, placement.
    pub fn handle_deadline(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if self.timers.next().is_some_and(|due| now.since(due) > 500) {
            // We were paused: what others said meanwhile is still on its way to us.
            self.judge_from = now.plus(2 * self.config.beat_ms);
        }
        while let Some(key) = self.timers.pop(now) {
            match key {
                TimerKey::Node(ix) => self.node_deadline(now, ix, out),
                TimerKey::Drain(ix) => self.move_away(now, ix, out),
                TimerKey::App(app) => self.app_deadline(now, &app, out),
                TimerKey::Ask(app, request) => self.ask_deadline(now, &app, request),
            }
        }
        if self.place_due.take().is_some() {
            self.place(now, out);
        }
    }

    fn unix_ms(&self, now: Timestamp) -> u64 {
        self.config.unix_at_zero_ms + now.0
    }

    fn mint(&mut self) -> Incarnation {
        let seq = self.next_seq;
        self.next_seq += 1;
        Incarnation { epoch: self.epoch, seq }
    }

    fn new_session(&mut self) -> u64 {
        let session = self.next_session;
        self.next_session += 1;
        session
    }

    fn want_placement(&mut self, now: Timestamp) {
        self.place_due.get_or_insert(now);
    }

    /// Sends to a node if its session is up. Nothing is lost if it is not: its next Hello says what it lacks.
    fn to_node(&self, ix: NodeIx, item: ToNode, out: &mut Vec<Command>) {
        let node = self.nodes.get(ix);
        if let Some(session) = node.session {
            out.push(Command::ToNode { node: node.id.clone(), stamp: node.stamp(self.epoch, session), item });
        }
    }

    /// Sends to an application's master if its session is up; its next Hello is answered with everything.
    fn to_am(&self, app: &AppId, item: ToAm, out: &mut Vec<Command>) {
        if let Some(session) = self.apps.get(app).and_then(|app| app.session) {
            out.push(Command::ToAm { app: app.clone(), session, item });
        }
    }

    fn persist(&self, app: &AppId, out: &mut Vec<Command>) {
        let Some(app) = self.apps.get(app) else { return };
        out.push(Command::Persist(Record::App(Box::new(app.stored(self.master_node(app))))));
    }

    fn master_node(&self, app: &App) -> Option<NodeId> {
        let container = self.containers.get(&app.master?)?;
        Some(self.nodes.get(container.node).id.clone())
    }

    fn known(&self, app: &AppId) -> &App {
        self.apps.get(app).expect("an application is removed only together with all that names it")
    }

    fn known_mut(&mut self, app: &AppId) -> &mut App {
        self.apps.get_mut(app).expect("an application is removed only together with all that names it")
    }
}
