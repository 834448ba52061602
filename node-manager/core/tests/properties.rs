//! The core against a machine and a resource manager that do everything in any order, crashes included: whatever
//! happens, no id runs twice, no slot runs twice at once, and no exit changes after it was told.

use std::collections::{BTreeMap, BTreeSet};

use nm_core::{Command, Core, Event, Evidence, Found, Outcome, Phase, Process, Record, Recovered};
use proptest::prelude::*;
use types::{
    AppId, CommandStamp, ContainerId, ContainerState, Epoch, ExitCause, FromNode, Incarnation, JobId,
    NodeIncarnation, NodeWelcome, OnLeaseLoss, RequestId, Resource, Role, StartContainer, Timestamp, ToNode,
};

const LEASE_MS: u64 = 5_000;

#[derive(Debug, Clone)]
enum Act {
    Wait(u64),
    Start { seq: u64, stop_with_lease: bool },
    Again(u8),
    Stop { pick: u8, grace_ms: u64 },
    StaleStop(u8),
    Forget(u8),
    Ack,
    Finish(u8),
    Reconnect,
    SessionLost,
    Die { pick: u8, code: i32 },
    Crash,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1u64..3_000).prop_map(Act::Wait),
        6 => (1u64..40, any::<bool>()).prop_map(|(seq, stop_with_lease)| Act::Start { seq, stop_with_lease }),
        1 => any::<u8>().prop_map(Act::Again),
        3 => (any::<u8>(), prop_oneof![Just(0u64), Just(500)])
            .prop_map(|(pick, grace_ms)| Act::Stop { pick, grace_ms }),
        1 => any::<u8>().prop_map(Act::StaleStop),
        2 => any::<u8>().prop_map(Act::Forget),
        4 => Just(Act::Ack),
        20 => any::<u8>().prop_map(Act::Finish),
        3 => Just(Act::Reconnect),
        1 => Just(Act::SessionLost),
        4 => (any::<u8>(), 0i32..3).prop_map(|(pick, code)| Act::Die { pick, code }),
        1 => Just(Act::Crash),
    ]
}

/// A machine on which every command takes as long as it likes.
struct World {
    now: Timestamp,
    core: Core,
    session: u64,
    epoch: u64,
    due: Vec<Command>,
    /// Durable records.
    disk: BTreeMap<ContainerId, (u64, Record)>,
    removed: BTreeSet<ContainerId>,
    alive: BTreeSet<ContainerId>,
    launched: BTreeMap<ContainerId, u32>,
    ended: BTreeMap<ContainerId, Outcome>,
    exits: BTreeMap<ContainerId, ContainerState>,
    ids: BTreeSet<ContainerId>,
    rank: BTreeMap<ContainerId, u8>,
    /// The newest moment that the resource manager knows the node lived at.
    beat: Timestamp,
}

fn incarnation() -> NodeIncarnation {
    NodeIncarnation { boot_id: "boot".into(), state_id: "state".into() }
}

fn id(seq: u64) -> ContainerId {
    ContainerId(Incarnation { epoch: Epoch(1), seq })
}

fn slot(id: ContainerId) -> u64 {
    id.0.seq % 3
}

impl World {
    fn new() -> World {
        World {
            now: Timestamp(1_000),
            core: Core::new(incarnation(), Epoch(0)),
            session: 0,
            epoch: 1,
            due: Vec::new(),
            disk: BTreeMap::new(),
            removed: BTreeSet::new(),
            alive: BTreeSet::new(),
            launched: BTreeMap::new(),
            ended: BTreeMap::new(),
            exits: BTreeMap::new(),
            ids: BTreeSet::new(),
            rank: BTreeMap::new(),
            beat: Timestamp(1_000),
        }
    }

    fn apply(&mut self, event: Event) {
        let mut out = Vec::new();
        // Refusals are part of life here.
        let _ = self.core.apply(self.now, event, &mut out);
        self.take(out);
    }

    fn take(&mut self, out: Vec<Command>) {
        for command in out {
            match command {
                Command::Send(FromNode::Container(report)) => self.told(report.id, report.state),
                Command::Send(FromNode::Beat(beat)) => {
                    assert!(beat.sent_at_ms <= self.now.0);
                    self.beat = Timestamp(beat.sent_at_ms);
                }
                Command::Send(FromNode::State(_) | FromNode::Usage(_)) => {}
                other => self.due.push(other),
            }
        }
        self.core.check().unwrap();
    }

    fn told(&mut self, id: ContainerId, state: ContainerState) {
        let rank = self.rank.entry(id).or_default();
        assert!(state.rank() >= *rank, "{id} went back to {state:?}");
        *rank = state.rank();
        if state.is_exited() {
            assert!(!self.alive.contains(&id), "{id} is told as exited and lives");
            if let Some(before) = self.exits.insert(id, state.clone()) {
                assert_eq!(before, state, "the exit of {id} changed");
            }
        }
    }

    fn stamp(&self) -> CommandStamp {
        CommandStamp { epoch: Epoch(self.epoch), session: self.session, incarnation: incarnation() }
    }

    fn command(&mut self, item: ToNode) {
        let stamp = self.stamp();
        self.apply(Event::Command { stamp, item });
    }

    fn pick(&self, pick: u8) -> Option<ContainerId> {
        let known: Vec<ContainerId> = self.ids.iter().copied().collect();
        (!known.is_empty()).then(|| known[usize::from(pick) % known.len()])
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Wait(ms) => self.wait(*ms),
            Act::Start { seq, stop_with_lease } => {
                // A resource manager mints each id once: a start is repeated, but never after Forget.
                if self.ids.insert(id(*seq)) {
                    self.command(ToNode::Start(Box::new(start(*seq, *stop_with_lease))));
                }
            }
            Act::Again(pick) => {
                if let Some(id) = self.pick(*pick).filter(|id| self.core.order(*id).is_some()) {
                    self.command(ToNode::Start(Box::new(start(id.0.seq, false))));
                }
            }
            Act::Stop { pick, grace_ms } => {
                if let Some(container) = self.pick(*pick).filter(|id| self.core.order(*id).is_some()) {
                    let cause = ExitCause::KilledByAm;
                    self.command(ToNode::Stop { container, grace_ms: *grace_ms, cause });
                }
            }
            Act::StaleStop(pick) => self.stale_stop(*pick),
            Act::Forget(pick) => {
                if let Some(container) = self.pick(*pick).filter(|id| self.exits.contains_key(id)) {
                    self.command(ToNode::Forget { container });
                }
            }
            Act::Ack => self.command(ToNode::BeatAck { sent_at_ms: self.beat.0 }),
            Act::Finish(pick) => {
                if !self.due.is_empty() {
                    let at = usize::from(*pick) % self.due.len();
                    let command = self.due.remove(at);
                    self.carry_out(command);
                }
            }
            Act::Reconnect => self.reconnect(),
            Act::SessionLost => self.apply(Event::SessionLost),
            Act::Die { pick, code } => {
                let living: Vec<ContainerId> = self.alive.iter().copied().collect();
                if !living.is_empty() {
                    self.die(living[usize::from(*pick) % living.len()], Outcome::Code(*code));
                }
            }
            Act::Crash => self.crash(),
        }
    }

    /// Time passes, with the deadlines that the core asked for.
    fn wait(&mut self, ms: u64) {
        let end = self.now.plus(ms);
        while let Some(deadline) = self.core.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(deadline);
            self.apply(Event::Deadline);
            let next = self.core.next_deadline();
            assert!(next.is_none_or(|next| next > self.now), "a deadline that stays due: {next:?}");
        }
        self.now = end;
    }

    fn stale_stop(&mut self, pick: u8) {
        let Some(container) = self.pick(pick) else { return };
        let before = self.core.view();
        let current = self.stamp();
        let stale = [
            CommandStamp { epoch: Epoch(0), ..current.clone() },
            CommandStamp { session: current.session + 1, ..current.clone() },
            CommandStamp { incarnation: NodeIncarnation::default(), ..current },
        ];
        for stamp in stale {
            let item = ToNode::Stop { container, grace_ms: 0, cause: ExitCause::KilledByUser };
            let mut out = Vec::new();
            assert!(self.core.command(self.now, &stamp, item, &mut out).is_err());
            self.take(out);
        }
        let after = self.core.view();
        if before.lease == after.lease {
            assert_eq!(before, after, "a stale command changed something");
        }
    }

    fn reconnect(&mut self) {
        self.apply(Event::SessionLost);
        let facts = self.core.hello(self.now);
        self.rank.clear();
        for report in facts.containers {
            self.told(report.id, report.state);
        }
        self.session += 1;
        let welcome =
            NodeWelcome { epoch: Epoch(self.epoch), session: self.session, lease_ms: LEASE_MS, beat_ms: 500 };
        self.beat = self.now;
        self.apply(Event::Welcome { welcome, hello_sent_at: self.now });
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Persist { id, version, record } => {
                let newest = self.disk.get(&id).map_or(0, |(newest, _)| *newest);
                if newest < version && !self.removed.contains(&id) {
                    self.disk.insert(id, (version, *record));
                }
                self.apply(Event::Persisted { id, version });
            }
            Command::Localize { id } => self.apply(Event::Localized { id, result: Ok(()) }),
            Command::Launch { id, .. } => {
                assert!(self.disk.contains_key(&id), "{id} was launched before its record was durable");
                let times = self.launched.entry(id).or_default();
                *times += 1;
                assert_eq!(*times, 1, "{id} was launched again");
                let rival = self.alive.iter().find(|other| slot(**other) == slot(id));
                assert_eq!(rival, None, "{id} was launched beside another of its slot");
                self.alive.insert(id);
                self.apply(Event::Launched { id, process: Process { pid: 7, started_unix_ms: 1 } });
            }
            Command::Terminate { id } => {
                if self.alive.contains(&id) && id.0.seq % 2 == 0 {
                    self.die(id, Outcome::Code(0));
                }
            }
            Command::Kill { id } => {
                if self.alive.contains(&id) {
                    self.die(id, Outcome::Signal(9));
                }
            }
            Command::Remove { id } => {
                self.disk.remove(&id);
                self.removed.insert(id);
            }
            Command::PersistEpoch(_)
            | Command::WriteMaster { .. }
            | Command::WriteLease(_)
            | Command::PurgeState(_)
            | Command::Send(_)
            | Command::CloseSession => {}
        }
    }

    fn die(&mut self, id: ContainerId, outcome: Outcome) {
        self.alive.remove(&id);
        self.ended.insert(id, outcome);
        let ended_unix_ms = Some(2);
        self.apply(Event::Ended { id, outcome, evidence: Evidence::default(), ended_unix_ms });
    }

    /// The node manager dies: what it had not done is never done, what is durable or runs is found again.
    fn crash(&mut self) {
        self.due.clear();
        self.core = Core::new(incarnation(), Epoch(self.epoch));
        let left = self.disk.iter().map(|(id, (_, record))| {
            let found = if self.alive.contains(id) {
                Found::Running(Process { pid: 7, started_unix_ms: 1 })
            } else if let Some(outcome) = self.ended.get(id) {
                Found::Ended {
                    process: None,
                    outcome: *outcome,
                    evidence: Evidence::default(),
                    ended_unix_ms: Some(2),
                }
            } else {
                Found::NeverStarted
            };
            Recovered { record: record.clone(), found }
        });
        let left = left.collect();
        let mut out = Vec::new();
        self.core.recover(self.now, left, &mut out);
        self.take(out);
        self.rank.clear();
    }

    /// Everything is carried out, twice over: what a command leads to is carried out too.
    fn settle(&mut self) {
        while !self.due.is_empty() {
            let command = self.due.remove(0);
            self.carry_out(command);
        }
    }
}

fn start(seq: u64, stop_with_lease: bool) -> StartContainer {
    let id = id(seq);
    let spec = serde_json::from_str(SPEC).unwrap();
    StartContainer {
        id,
        app: AppId("application_1_1".into()),
        job: JobId { name: "job".into(), id: "1".into() },
        role: Role::Worker { request: RequestId { attempt: 1, slot: slot(id) as u32, try_no: 1 } },
        resource: Resource { memory_bytes: 1 << 20, cpu_millis: 100 },
        artefacts: Vec::new(),
        command: vec!["sleep".into(), "1".into()],
        env: BTreeMap::new(),
        spec,
        token: String::new(),
        secrets: Default::default(),
        am_address: None,
        on_lease_loss: if stop_with_lease { OnLeaseLoss::Stop } else { OnLeaseLoss::Keep },
    }
}

const SPEC: &str = r#"{"job":{"name":"job","id":"1"},"queue":"default","priority":0,
"app_master":{"memory_bytes":1,"cpu_millis":1},
"package":{"source":"x","artefact":null,"command":[],"env":{}},
"containers":{"count":1,"resource":{"memory_bytes":1,"cpu_millis":1},"threads":1},
"task":{"inputs":[],"window_ms":null,"commit_ms":1000,"delivery":"at-least-once","grouper":"partition","timers":false,"concurrency":1,"config":{}},
"systems":{},"streams":{},"stores":{},
"errors":{"decode":"fail","process":"fail","send":"fail","dead_letter":null},
"placement":{"wait_ms":0,"rack_wait_ms":0,"host_affinity":true,"on_lease_loss":"keep","labels":{},"spread":"none"},
"restart":{"retries":8,"window_ms":300000,"backoff_min_ms":1000,"backoff_max_ms":60000,"on_exhausted":"fail"}}"#;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_runs_twice_and_no_exit_changes(acts in prop::collection::vec(act(), 1..120)) {
        let mut world = World::new();
        world.reconnect();
        for act in &acts {
            world.act(act);
        }
    }

    #[test]
    fn after_a_quiet_time_nothing_hangs_between_states(acts in prop::collection::vec(act(), 1..80)) {
        let mut world = World::new();
        world.reconnect();
        for act in &acts {
            world.act(act);
        }
        world.reconnect();
        for _ in 0..10 {
            world.settle();
            world.command(ToNode::BeatAck { sent_at_ms: world.beat.0 });
            world.wait(1_000);
        }
        for container in world.core.view().containers {
            let settled = matches!(container.phase, Phase::Running | Phase::Exited);
            prop_assert!(settled, "{} stays {:?}", container.id, container.phase);
            prop_assert_eq!(container.phase == Phase::Running, world.alive.contains(&container.id));
        }
    }
}
