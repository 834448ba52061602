//! A seeded storm: exits, lost sessions, late reports, new attempts, in any order; the invariants hold after each
//! step, and when the storm is over every slot runs again.

mod stage;

use std::collections::{BTreeMap, BTreeSet};

use am_core::Command;
use am_core::slot::SlotState;
use proptest::prelude::*;
use stage::*;
use types::*;

#[derive(Debug, Clone)]
enum Gust {
    Answer(u8),
    Run(u8),
    Exit(u8, u8),
    LoseSession,
    Return,
    NewAttempt,
    Pass(u16),
    StaleReport(u8),
    Topology(u8),
    /// A node goes out of sight, with its containers; or all come back.
    Hide(u8),
    Show,
    /// What was told to stop does.
    ObeyStops,
}

fn gust() -> impl Strategy<Value = Gust> {
    prop_oneof![
        4 => any::<u8>().prop_map(Gust::Answer),
        4 => any::<u8>().prop_map(Gust::Run),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Gust::Exit(a, b)),
        1 => Just(Gust::LoseSession),
        2 => Just(Gust::Return),
        1 => Just(Gust::NewAttempt),
        2 => any::<u16>().prop_map(Gust::Pass),
        1 => any::<u8>().prop_map(Gust::StaleReport),
        1 => any::<u8>().prop_map(Gust::Topology),
        1 => any::<u8>().prop_map(Gust::Hide),
        1 => Just(Gust::Show),
        3 => Just(Gust::ObeyStops),
    ]
}

/// A resource manager: what was asked, what there is, what was acknowledged.
struct World {
    stage: Stage,
    attempt: u32,
    connected: bool,
    asks: BTreeMap<RequestId, Ask>,
    answered: BTreeMap<u32, (u32, u32)>,
    there: BTreeMap<ContainerId, PlacedContainer>,
    remembered: BTreeMap<u32, am_core::place::SlotPlace>,
    hidden: BTreeSet<ContainerId>,
    stops: BTreeMap<ContainerId, ExitCause>,
}

fn job() -> JobSpec {
    let mut spec = spec(3);
    spec.restart.retries = 1_000_000;
    spec
}

impl World {
    fn new() -> World {
        let mut world = World {
            stage: Stage::of(job(), 1),
            attempt: 1,
            connected: true,
            asks: BTreeMap::new(),
            answered: BTreeMap::new(),
            there: BTreeMap::new(),
            remembered: BTreeMap::new(),
            hidden: BTreeSet::new(),
            stops: BTreeMap::new(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let mut known = facts(&[1, 2, 3]);
        known.remembered.places = self.remembered.clone();
        let inventory = self.inventory();
        let out = self.stage.begin(known, inventory);
        self.take(out);
    }

    fn take(&mut self, out: Vec<Command>) {
        for command in out {
            match command {
                Command::Remember { slot, place } => {
                    self.remembered.insert(slot, place);
                }
                Command::ReadOwners { slot, container, .. } => {
                    // Nobody that can be found: any other answer is for its own test.
                    let newest = Ok(None);
                    let out = self.stage.run(|c, now, out| c.owners_read(now, slot, container, newest, out));
                    self.take(out);
                }
                _ if !self.connected => {}
                Command::Ask(ask) => {
                    let done = self.answered.get(&ask.request.slot);
                    if done.is_none_or(|d| (ask.request.attempt, ask.request.try_no) > *d) {
                        self.asks.insert(ask.request, *ask);
                    }
                }
                Command::CancelAsk(request) => {
                    self.asks.remove(&request);
                }
                Command::Stop { container, cause, .. } => {
                    self.stops.insert(container, cause);
                }
                Command::AckExit(container) => {
                    if self.there.get(&container).is_some_and(|p| p.report.state.is_exited()) {
                        self.there.remove(&container);
                    }
                }
                Command::Finish(outcome) => panic!("the storm ends no job: {outcome:?}"),
                Command::Mint { .. }
                | Command::ReadFacts
                | Command::Prepare(_)
                | Command::ReadTopology
                | Command::Fence { .. }
                | Command::AnswerContainer { .. }
                | Command::MoveMe(_) => {}
            }
        }
    }

    fn change(&mut self, container: ContainerId, state: ContainerState) {
        let placed = self.there.get_mut(&container).expect("the caller has seen it");
        if placed.report.state.rank() >= state.rank() {
            return;
        }
        placed.report.state = state;
        if self.connected && !self.hidden.contains(&container) {
            let placed = placed.clone();
            let out = self.stage.report(placed);
            self.take(out);
        }
    }

    fn inventory(&self) -> Vec<PlacedContainer> {
        self.there.iter().filter(|(id, _)| !self.hidden.contains(id)).map(|(_, p)| p.clone()).collect()
    }

    fn obey_stops(&mut self) {
        let visible: Vec<ContainerId> =
            self.stops.keys().copied().filter(|id| !self.hidden.contains(id)).collect();
        for container in visible {
            let cause = self.stops.remove(&container).expect("just listed");
            if self.there.contains_key(&container) {
                self.change(container, exit(cause));
            }
        }
    }

    fn show(&mut self) {
        for container in std::mem::take(&mut self.hidden) {
            if self.connected
                && let Some(placed) = self.there.get(&container).cloned()
            {
                let out = self.stage.report(placed);
                self.take(out);
            }
        }
    }

    fn pick(&self, n: u8) -> Option<ContainerId> {
        self.there.keys().nth(n as usize % self.there.len().max(1)).copied()
    }

    fn answer(&mut self, n: u8) {
        if !self.connected || self.asks.is_empty() {
            return;
        }
        let request = *self.asks.keys().nth(n as usize % self.asks.len()).expect("in range");
        self.asks.remove(&request);
        self.answered.insert(request.slot, (request.attempt, request.try_no));
        self.stage.seq += 1;
        let container = id(self.stage.seq);
        let placed = placed(request, container, &format!("n{}", n % 4), ContainerState::Allocated);
        self.there.insert(container, placed.clone());
        let out = self.stage.report(placed);
        self.take(out);
    }

    fn come_back(&mut self) {
        if self.connected {
            return;
        }
        self.connected = true;
        self.asks.clear();
        for ask in self.stage.core.open_asks(self.stage.now) {
            self.take(vec![Command::Ask(Box::new(ask))]);
        }
        let inventory = self.inventory();
        let out = self.stage.welcome(inventory);
        self.take(out);
    }

    fn gust(&mut self, gust: &Gust) {
        match gust {
            Gust::Answer(n) => self.answer(*n),
            Gust::Run(n) => {
                if let Some(container) = self.pick(*n) {
                    self.change(container, ContainerState::Running);
                }
            }
            Gust::Exit(n, why) => {
                let causes = [
                    ExitCause::Failed { code: 1 },
                    ExitCause::Signal { signal: 9 },
                    ExitCause::NodeLost,
                    ExitCause::Fenced,
                    ExitCause::LaunchFailed { reason: "x".into() },
                    ExitCause::LeaseExpired,
                ];
                if let Some(container) = self.pick(*n) {
                    self.change(container, exit(causes[*why as usize % causes.len()].clone()));
                }
            }
            Gust::LoseSession => {
                self.connected = false;
                self.stage.core.session_lost();
            }
            Gust::Return => self.come_back(),
            Gust::NewAttempt => {
                self.attempt += 1;
                let (now, seq) = (self.stage.now, self.stage.seq);
                self.stage = Stage { now, seq, ..Stage::of(job(), self.attempt) };
                self.asks.clear();
                self.connected = true;
                self.begin();
            }
            Gust::Pass(ms) => {
                let talking: Vec<ContainerId> =
                    self.there.keys().copied().filter(|c| !self.hidden.contains(c)).collect();
                let out = self.stage.pass(u64::from(*ms), &talking);
                self.take(out);
            }
            Gust::StaleReport(n) => {
                if let Some(container) = self.pick(*n).filter(|c| self.connected && !self.hidden.contains(c))
                {
                    let placed = self.there[&container].clone();
                    let out = self.stage.report(placed);
                    self.take(out);
                }
            }
            Gust::Hide(n) => self.hidden.extend(self.pick(*n)),
            Gust::Show => self.show(),
            Gust::ObeyStops => self.obey_stops(),
            Gust::Topology(n) => {
                let leader = i32::from(n % 3) + 1;
                let out = self.stage.run(|c, now, out| c.topology_read(now, topology(3, &[leader; 3]), out));
                self.take(out);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn after_any_storm_every_slot_runs_once(gusts in proptest::collection::vec(gust(), 1..80)) {
        let mut world = World::new();
        for gust in &gusts {
            world.gust(gust);
        }
        world.show();
        world.come_back();
        for n in 0..40 {
            world.gust(&Gust::Pass(4_000));
            world.gust(&Gust::Answer(n));
            world.obey_stops();
            let there: Vec<ContainerId> = world.there.keys().copied().collect();
            for container in there {
                if world.there.contains_key(&container) {
                    world.change(container, ContainerState::Running);
                }
            }
        }
        let view = world.stage.core.view(world.stage.now);
        let all_run = view.slots.iter().all(|(_, s)| matches!(s, SlotState::Running { .. }));
        prop_assert!(all_run, "{:?}", view.slots);
        prop_assert!(world.there.values().all(|p| !p.report.state.is_exited()), "unacknowledged: {:?}", world.there);
        prop_assert_eq!(world.there.len(), 3);
    }
}
