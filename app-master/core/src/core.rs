//! [`AmCore`]: the state, its deadlines, and the verbs about the job as a whole. Verbs about containers are in
//! `containers.rs` and `exits.rs`, about the job's end in `ending.rs`.

use std::collections::{BTreeMap, BTreeSet};

use types::{
    AmWelcome, AppId, Ask, ContainerHello, ContainerId, ContainerModel, ContainerStatus, ExitCause,
    JobOutcome, JobSpec, NodeId, NodeState, PlacedContainer, Preference, RequestId, StopJob, TaskName,
    Timestamp, TopicStatus,
};

use crate::ending::Ending;
use crate::event::{Command, Event, Failure};
use crate::job_model;
use crate::place::{Facts, RememberedModel, Topology};
use crate::plan::{self, Plan};
use crate::preference::{Known, preferences};
use crate::restart::RestartRecord;
use crate::slot::{SlotInput, SlotState};

/// Who this master is.
#[derive(Debug, Clone, PartialEq)]
pub struct AmIdentity {
    /// Its application.
    pub app: AppId,
    /// Its attempt, from 1.
    pub attempt: u32,
    /// The job.
    pub spec: JobSpec,
    /// Unix ms minus the driver's [`Timestamp`], as of its start: turns one into the other for people, and tells
    /// how old local state is.
    pub unix_offset_ms: u64,
}

/// The life of the job under this master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The job's facts are being read: inputs, brokers, what the job remembered.
    Reading,
    /// Topics are being created and the model written.
    Preparing,
    /// Containers are kept running.
    Running,
    /// The job is coming to its end.
    Ending(Ending),
    /// It is over; the resource manager is told until it knows.
    Over(JobOutcome),
}

/// Why a verb was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A container of another application.
    #[error("this is the application master of {ours}, not of {theirs}")]
    WrongApplication {
        /// Ours.
        ours: AppId,
        /// The container's.
        theirs: AppId,
    },
    /// A container that is over, or not wanted.
    #[error("{0} is not wanted: {1}")]
    NotWanted(ContainerId, &'static str),
}

/// The answer to a container's Hello that was not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloAnswer {
    /// These are its tasks.
    Model(ContainerModel),
    /// Nothing is known of it yet; ask again when something has changed.
    Wait,
}

/// A container of the job, live or with an exit that is not acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Tracked {
    pub placed: PlacedContainer,
    pub slot: u32,
    /// When it last spoke, or when it was first known to run.
    pub heard: Timestamp,
    pub connected: bool,
    pub ever_connected: bool,
    /// Whether the last inventory, or a report since, had it.
    pub listed: bool,
    pub stop: Option<(u64, ExitCause)>,
    /// Whether it works on an older model of its slot.
    pub stale: bool,
}

impl Tracked {
    pub(crate) fn is_live(&self) -> bool {
        !self.placed.report.state.is_exited()
    }
}

/// A slot and its history.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub state: SlotState,
    pub tries: u32,
    pub restarts: u32,
    pub record: RestartRecord,
    /// The newest container ever seen in it; an older one is never adopted.
    pub newest: Option<ContainerId>,
    /// The newest whose exit was dealt with; neither it nor an older one comes back.
    pub last_ended: Option<ContainerId>,
    pub last_exit: Option<(ExitCause, u64)>,
    pub status: ContainerStatus,
    pub node: Option<NodeId>,
    pub preferences: Vec<Preference>,
    pub waiting: Vec<String>,
    /// Its container was stopped for a newer model, and the next one does not process yet.
    pub rolled: bool,
    /// A user keeps it empty until then.
    pub held_until: Option<Timestamp>,
}

impl Slot {
    fn new(newest: Option<ContainerId>) -> Slot {
        Slot {
            state: SlotState::Waiting,
            tries: 0,
            restarts: 0,
            record: RestartRecord::default(),
            newest,
            last_ended: None,
            last_exit: None,
            status: ContainerStatus::default(),
            node: None,
            preferences: Vec::new(),
            waiting: Vec::new(),
            rolled: false,
            held_until: None,
        }
    }

    /// Takes a step of the slot's table. A step that the table lacks changes nothing and is a bug of ours.
    pub(crate) fn step(&mut self, input: &SlotInput) {
        let next = self.state.after(input);
        debug_assert!(next.is_some(), "{:?} has no step {input:?}", self.state);
        if let Some(next) = next {
            self.state = next;
        }
    }
}

/// The master's mind. See the crate's documentation.
#[derive(Debug, Clone)]
pub struct AmCore {
    pub(crate) identity: AmIdentity,
    pub(crate) phase: Phase,
    /// When the session with the resource manager came up, if it is.
    pub(crate) session_since: Option<Timestamp>,
    pub(crate) topology: Topology,
    pub(crate) model: Option<RememberedModel>,
    pub(crate) plan: Option<Box<Plan>>,
    pub(crate) facts: Option<Box<Facts>>,
    pub(crate) slots: BTreeMap<u32, Slot>,
    pub(crate) containers: BTreeMap<ContainerId, Tracked>,
    /// Successful exits, acknowledged when the job is over: they say that a slot is done.
    pub(crate) held_exits: BTreeSet<ContainerId>,
    pub(crate) node_state: BTreeMap<NodeId, NodeState>,
    /// Names of nodes that were lost; not preferred until something is heard of them.
    pub(crate) lost: BTreeMap<NodeId, Vec<String>>,
    pub(crate) retry_at: Option<Timestamp>,
    pub(crate) retries: u32,
    /// How often in a row a system has said that something will never go well.
    pub(crate) doubts: u32,
    pub(crate) note: String,
    /// The job's topics, once they are ready.
    pub(crate) topics: Vec<TopicStatus>,
    pub(crate) nonce: u64,
    /// While an inventory is being gone through: what is free is known only at its end, so nothing is asked for.
    pub(crate) in_inventory: bool,
    /// Since when more than half of the containers have been silent.
    pub(crate) deaf_since: Option<Timestamp>,
    /// While that lasts: when to look again.
    pub(crate) deaf_check: Option<Timestamp>,
    /// Every changelog partition that a task of the job ever had.
    pub(crate) changelog: BTreeMap<TaskName, i32>,
    /// A model that takes up what was added to the inputs, while it is being written.
    pub(crate) growing: Option<RememberedModel>,
    /// Why the last such model could not be written.
    pub(crate) not_grown: Option<String>,
    /// What the inputs have become that the job does not take up, for people.
    pub(crate) warnings: Vec<String>,
}

/// The first wait before Kafka is asked again, ms; it doubles.
const RETRY_MIN_MS: u64 = 200;
/// So often in a row may a system say that something will never go well before that is believed: with the waits
/// between, some ten seconds, in which any election is over.
const DOUBTS: u32 = 6;
/// The longest, ms.
const RETRY_MAX_MS: u64 = 5_000;

impl AmCore {
    /// A master that has just started. Call [`AmCore::start`] next.
    #[must_use]
    pub fn new(identity: AmIdentity) -> AmCore {
        AmCore {
            identity,
            phase: Phase::Reading,
            session_since: None,
            topology: Topology::default(),
            model: None,
            plan: None,
            facts: None,
            slots: BTreeMap::new(),
            containers: BTreeMap::new(),
            held_exits: BTreeSet::new(),
            node_state: BTreeMap::new(),
            lost: BTreeMap::new(),
            retry_at: None,
            retries: 0,
            doubts: 0,
            note: "connecting to the brokers".into(),
            topics: Vec::new(),
            nonce: 0,
            changelog: BTreeMap::new(),
            growing: None,
            not_grown: None,
            warnings: Vec::new(),
            in_inventory: false,
            deaf_since: None,
            deaf_check: None,
        }
    }

    /// Begins: reads what must be known of Kafka, while the session with the resource manager is being made.
    pub fn start(&mut self, out: &mut Vec<Command>) {
        out.push(Command::ReadFacts);
    }

    /// The facts were read, or not.
    pub fn facts_read(&mut self, now: Timestamp, read: Result<Facts, Failure>, out: &mut Vec<Command>) {
        if self.phase != Phase::Reading {
            return;
        }
        let facts = match read {
            Ok(facts) => facts,
            Err(failure) => return self.not_yet(now, failure, out),
        };
        match job_model::build(&self.identity.spec, &self.identity.app, &facts) {
            Ok(model) => {
                let topics = plan::job_topics(&self.identity.spec, &model.model);
                let mapping = job_model::changelog_mapping(&model.model);
                let known = &facts.remembered.changelog;
                let extend = !known.is_empty() && mapping.keys().any(|task| !known.contains_key(task));
                self.changelog = known.clone();
                self.changelog.extend(mapping);
                let plan = Box::new(Plan { topics, extend, model });
                self.topology = facts.topology.clone();
                self.facts = Some(Box::new(facts));
                self.phase = Phase::Preparing;
                self.note = "making the job's topics ready".into();
                (self.retries, self.doubts, self.retry_at) = (0, 0, None);
                out.push(Command::Prepare(plan.clone()));
                self.plan = Some(plan);
            }
            Err(error) => self.fail(now, error.to_string(), out),
        }
    }

    /// The plan was carried out, or not. From here on containers are asked for.
    pub fn prepared(
        &mut self,
        now: Timestamp,
        done: Result<Vec<TopicStatus>, Failure>,
        out: &mut Vec<Command>,
    ) {
        if self.phase == Phase::Running {
            return self.grown(done, out);
        }
        if self.phase != Phase::Preparing {
            return;
        }
        match done {
            Ok(topics) => self.topics = topics,
            Err(failure) => return self.not_yet(now, failure, out),
        }
        let plan = self.plan.take().expect("preparing has a plan");
        let places = self.facts.take().map(|f| f.remembered.places).unwrap_or_default();
        for slot in plan.model.model.containers.keys() {
            self.slots.insert(*slot, Slot::new(places.get(slot).map(|p| p.container)));
        }
        self.model = Some(plan.model);
        self.phase = Phase::Running;
        (self.retries, self.doubts, self.retry_at) = (0, 0, None);
        self.note.clear();
        self.adopt_all(now, out);
        self.ask_where_needed(now, out);
        self.look_at_inputs(out);
    }

    fn not_yet(&mut self, now: Timestamp, failure: Failure, out: &mut Vec<Command>) {
        let is_doubtful = matches!(failure, Failure::Doubtful(_));
        match failure {
            Failure::Doubtful(reason) if self.doubts >= DOUBTS => self.fail(now, reason, out),
            Failure::Doubtful(what) | Failure::Waiting(what) => {
                self.doubts = if is_doubtful { self.doubts + 1 } else { 0 };
                self.note = what;
                let wait = RETRY_MIN_MS.saturating_mul(1 << self.retries.min(16)).min(RETRY_MAX_MS);
                self.retries += 1;
                self.retry_at = Some(now.plus(wait));
            }
            Failure::Fatal(reason) => self.fail(now, reason, out),
        }
    }

    /// The inputs' places, read again: open asks follow them; running containers do not move. What was added to the
    /// inputs is taken up or told.
    pub fn topology_read(&mut self, now: Timestamp, topology: Topology, out: &mut Vec<Command>) {
        if self.model.is_none() {
            return;
        }
        if self.topology != topology {
            self.topology = topology;
            self.refresh_asks(now, out);
        }
        self.look_at_inputs(out);
    }

    /// Local state on a node replaces what was known of it.
    pub fn node_state(&mut self, now: Timestamp, state: NodeState, out: &mut Vec<Command>) {
        if state.entries.is_empty() {
            self.node_state.remove(&state.node);
        } else {
            self.lost.remove(&state.node);
            self.node_state.insert(state.node.clone(), state);
        }
        self.refresh_asks(now, out);
    }

    /// A session is up: its inventory replaces what was known of containers, and everything that is wanted of the
    /// resource manager is said again.
    pub fn welcome(&mut self, now: Timestamp, welcome: AmWelcome, out: &mut Vec<Command>) {
        self.session_since = Some(now);
        self.deaf_since = None;
        self.node_state = welcome.state.into_iter().map(|s| (s.node.clone(), s)).collect();
        for tracked in self.containers.values_mut() {
            tracked.listed = false;
        }
        let stopping: Vec<ContainerId> =
            self.containers.iter().filter(|(_, t)| t.stop.is_some()).map(|(id, _)| *id).collect();
        // The newest first: an older one of its slot must not have it even for a moment.
        let mut placed = welcome.containers;
        placed.sort_by_key(|p| std::cmp::Reverse(p.report.id));
        self.in_inventory = true;
        for container in placed {
            self.container(now, container, out);
        }
        self.in_inventory = false;
        for id in stopping {
            let Some(tracked) = self.containers.get(&id).filter(|t| t.is_live()) else { continue };
            if let Some((grace_ms, cause)) = tracked.stop.clone() {
                out.push(Command::Stop { container: id, grace_ms, cause });
            }
        }
        if let Some(stop) = welcome.stop {
            self.stop(now, stop, out);
        }
        self.repeat_ending(now, out);
        out.extend(self.open_asks(now).into_iter().map(|a| Command::Ask(Box::new(a))));
        self.ask_where_needed(now, out);
    }

    /// The session is down. Nothing is decided about containers until it is up again.
    pub fn session_lost(&mut self) {
        self.session_since = None;
        self.deaf_since = None;
    }

    /// Why an ask waits, for people.
    pub fn waiting(&mut self, request: RequestId, reasons: Vec<String>) {
        if let Some(slot) = self.slots.get_mut(&request.slot).filter(|s| s.state.request() == Some(request)) {
            slot.waiting = reasons;
        }
    }

    /// Every open ask, as an AmHello carries them.
    #[must_use]
    pub fn open_asks(&self, now: Timestamp) -> Vec<Ask> {
        let open = |(number, slot): (&u32, &Slot)| Some(self.ask(now, *number, slot.state.request()?));
        self.slots.iter().filter_map(open).collect()
    }

    /// Whether containers may be asked for: what there is must be known first.
    pub(crate) fn may_ask(&self) -> bool {
        self.session_since.is_some() && self.phase == Phase::Running && !self.in_inventory
    }

    pub(crate) fn ask_where_needed(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if !self.may_ask() {
            return;
        }
        let needing: Vec<u32> = self.slots.iter().filter(|(_, s)| s.is_needing()).map(|(n, _)| *n).collect();
        for number in needing {
            let preferences = self.preferences_of(now, number);
            let attempt = self.identity.attempt;
            let slot = self.slots.get_mut(&number).expect("just listed");
            slot.tries += 1;
            slot.preferences = preferences;
            slot.waiting = vec!["waiting for a node".into()];
            let request = RequestId { attempt, slot: number, try_no: slot.tries };
            slot.step(&SlotInput::Ask(request));
            out.push(Command::Ask(Box::new(self.ask(now, number, request))));
        }
    }

    fn ask(&self, _now: Timestamp, number: u32, request: RequestId) -> Ask {
        let (spec, slot) = (&self.identity.spec, &self.slots[&number]);
        let wishes = !slot.preferences.is_empty();
        Ask {
            request,
            resource: spec.containers.resource,
            preferences: slot.preferences.clone(),
            wait_ms: if wishes { spec.placement.wait_ms } else { 0 },
            rack_wait_ms: if wishes { spec.placement.rack_wait_ms } else { 0 },
            avoid: slot.record.avoid(),
            spread: spec.placement.spread,
            labels: spec.placement.labels.clone(),
        }
    }

    fn refresh_asks(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let asked: Vec<(u32, RequestId)> =
            self.slots.iter().filter_map(|(n, s)| Some((*n, s.state.request()?))).collect();
        for (number, request) in asked {
            let preferences = self.preferences_of(now, number);
            let slot = self.slots.get_mut(&number).expect("just listed");
            if slot.preferences != preferences {
                slot.preferences = preferences;
                out.push(Command::Ask(Box::new(self.ask(now, number, request))));
            }
        }
    }

    pub(crate) fn preferences_of(&self, now: Timestamp, number: u32) -> Vec<Preference> {
        let spec = &self.identity.spec;
        let Some(tasks) = self.tasks_of(number).filter(|_| spec.placement.host_affinity) else {
            return Vec::new();
        };
        let avoided = self.slots[&number].record.avoid();
        let mut avoid: Vec<Vec<String>> = self.lost.values().cloned().collect();
        avoid.extend(avoided.iter().filter_map(|n| self.names_of(n)));
        let unix_ms = self.unix_ms(now);
        let valid_since_unix_ms = unix_ms.saturating_sub(plan::tombstone_retention_ms(spec));
        let known =
            Known { topology: &self.topology, state: &self.node_state, avoid: &avoid, valid_since_unix_ms };
        preferences(tasks, &known)
    }

    fn names_of(&self, node: &NodeId) -> Option<Vec<String>> {
        let placed =
            self.containers.values().find(|t| t.placed.node == *node).map(|t| t.placed.hosts.clone());
        placed.or_else(|| self.node_state.get(node).map(|s| s.hosts.clone()))
    }

    pub(crate) fn tasks_of(&self, number: u32) -> Option<&ContainerModel> {
        self.model.as_ref()?.model.containers.get(&number)
    }

    pub(crate) fn unix_ms(&self, now: Timestamp) -> u64 {
        now.0.saturating_add(self.identity.unix_offset_ms)
    }

    /// When [`AmCore::handle_deadline`] must be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let backoffs = self.slots.values().filter_map(|s| match s.state {
            SlotState::Backoff { until } if self.may_ask() => Some(until),
            SlotState::Backoff { .. }
            | SlotState::Waiting
            | SlotState::Asked { .. }
            | SlotState::Placed { .. }
            | SlotState::Running { .. }
            | SlotState::Stopping { .. }
            | SlotState::Checking { .. }
            | SlotState::Done
            | SlotState::GaveUp => None,
        });
        let roll = self.next_to_roll().map(|_| Timestamp(0));
        let held = self.slots.values().filter_map(|s| s.held_until);
        backoffs
            .chain(roll)
            .chain(held)
            .chain(self.retry_at)
            .chain(self.silence_deadline())
            .chain(self.ending_deadline())
            .min()
    }

    /// Does what is due.
    pub fn handle_deadline(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            match &self.phase {
                Phase::Reading => out.push(Command::ReadFacts),
                Phase::Preparing => out.extend(self.plan.clone().map(Command::Prepare)),
                Phase::Running | Phase::Ending(_) | Phase::Over(_) => {}
            }
        }
        self.end_holds(now);
        if self.may_ask() {
            for slot in self.slots.values_mut() {
                if matches!(slot.state, SlotState::Backoff { until } if until <= now) {
                    slot.step(&SlotInput::Retry);
                }
            }
        }
        self.judge_silence(now, out);
        self.roll_on(out);
        self.ending_due(now, out);
        self.ask_where_needed(now, out);
    }

    /// Maps an event onto its verb.
    pub fn apply(&mut self, now: Timestamp, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Started => self.start(out),
            Event::Welcome(welcome) => self.welcome(now, *welcome, out),
            Event::SessionLost => self.session_lost(),
            Event::Container(placed) => self.container(now, *placed, out),
            Event::Waiting { request, reasons } => self.waiting(request, reasons),
            Event::Minted { nonce, incarnation } => self.minted(now, nonce, incarnation, out),
            Event::State(state) => self.node_state(now, state, out),
            Event::Leave { container, within_ms } => self.leave(container, within_ms, out),
            Event::Hold { slots, for_ms } => self.hold(now, &slots, for_ms, out),
            Event::Stop(stop) => self.stop(now, stop, out),
            Event::ContainerHello(hello) => self.apply_hello(now, &hello, out),
            Event::ContainerStatus { container, status } => self.container_status(now, container, status),
            Event::ContainerGone(container) => self.container_gone(container),
            Event::FactsRead(read) => self.facts_read(now, *read, out),
            Event::Prepared(done) => self.prepared(now, done, out),
            Event::TopologyRead(topology) => self.topology_read(now, *topology, out),
            Event::OwnersRead { slot, container, newest } => {
                self.owners_read(now, slot, container, newest, out)
            }
            Event::TasksFenced(done) => self.tasks_fenced(now, done, out),
            Event::Deadline => self.handle_deadline(now, out),
        }
    }

    fn apply_hello(&mut self, now: Timestamp, hello: &ContainerHello, out: &mut Vec<Command>) {
        let answer = match self.container_hello(now, hello) {
            Ok(HelloAnswer::Model(model)) => Ok(Box::new(model)),
            Ok(HelloAnswer::Wait) => Err(None),
            Err(denied) => Err(Some(denied.to_string())),
        };
        out.push(Command::AnswerContainer { container: hello.container, answer });
    }

    /// A user wants the job gone: with a commit first, or without grace.
    pub fn stop(&mut self, now: Timestamp, stop: StopJob, out: &mut Vec<Command>) {
        let outcome = if stop.kill { JobOutcome::Killed } else { JobOutcome::Finished };
        self.end(now, outcome, out);
    }
}
