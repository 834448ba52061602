//! The world: one clock, one queue of what will happen, the machines and the resource manager.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use types::{ContainerId, Incarnation, JobId, Timestamp};

use crate::app_master::Memory;
use crate::faults::Fault;
use crate::network::{Dialler, End, LinkId, Listener, Message, Network};
use crate::node::Machine;
use crate::resource_manager::ResourceManager;

/// A bug put in on purpose, to see that it is caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    /// The resource manager replaces nodes after a tenth of the lease that it promised.
    IgnoreLeases,
}

/// Something that will happen.
#[derive(Debug, Clone)]
pub enum Happening {
    /// A message arrives.
    Arrive { link: LinkId, to: End, message: Message },
    /// An end notices that its link is gone.
    Lost { link: LinkId, end: End },
    /// Someone tries to connect.
    Dial(Dialler),
    /// The resource manager's timer, if still of this generation.
    RmTimer(u64),
    /// A node manager's timer.
    NodeTimer { node: usize, generation: u64 },
    /// Work that a node manager had asked for is done; void if it crashed since.
    NodeWork { node: usize, life: u64, work: crate::node::Work },
    /// A process of a machine ends.
    ProcessEnds { node: usize, container: ContainerId, outcome: nm_core::Outcome },
    /// A worker claims its tasks, then commits now and then.
    WorkerActs { node: usize, container: ContainerId },
    /// An application master's timer.
    MasterTimer { master: ContainerId, generation: u64 },
    /// An application master beats.
    MasterBeats(ContainerId),
    /// Kafka answers an application master.
    MasterHears { master: ContainerId, event: Box<am_core::Event> },
    /// A fault begins.
    Fault(Fault),
    /// A node that is being drained is taken back.
    Undrained { node: usize },
    /// The resource manager is started again.
    RmStarts,
    /// A node manager is started again.
    NodeStarts { node: usize, new_boot: bool },
}

/// When faults stop, ms.
pub const FAULTS_END: u64 = 60_000;
/// When all must be at rest.
pub const REST: u64 = FAULTS_END + 60_000;
/// When all must be gone after the stop at [`REST`].
pub const END: u64 = REST + 60_000;

/// Everything.
pub struct World {
    pub now: u64,
    pub rng: StdRng,
    queue: BTreeMap<(u64, u64), Happening>,
    next: u64,
    pub network: Network,
    pub rm: ResourceManager,
    pub machines: Vec<Machine>,
    /// What Kafka holds: the newest claim of each (job, slot), and each job's coordinator topic.
    pub claims: BTreeMap<(JobId, u32), Incarnation>,
    pub memory: BTreeMap<JobId, Memory>,
    /// Of the jobs' input.
    pub partitions: i32,
    /// How often each container id was launched.
    pub launches: BTreeMap<ContainerId, u32>,
    /// The newest container whose start was ordered for each purpose.
    pub ordered: BTreeMap<crate::judge::Place, ContainerId>,
    /// Containers that the resource manager called lost with their node.
    pub given_up: BTreeSet<ContainerId>,
    /// The first rule broken by an order.
    pub broken: Option<String>,
    pub faults_done: BTreeMap<&'static str, u32>,
    trace: VecDeque<String>,
    hash: DefaultHasher,
}

impl World {
    /// A world of three to five machines, before its first moment.
    pub fn new(seed: u64, plant: Plant) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let machines =
            (0..rng.random_range(3..=5)).map(|n| Machine::new(n, rng.random_range(0..1_000_000))).collect();
        World {
            now: 0,
            rng,
            queue: BTreeMap::new(),
            next: 0,
            network: Network::default(),
            rm: ResourceManager::new(plant),
            machines,
            claims: BTreeMap::new(),
            memory: BTreeMap::new(),
            partitions: 6,
            launches: BTreeMap::new(),
            ordered: BTreeMap::new(),
            given_up: BTreeSet::new(),
            broken: None,
            faults_done: BTreeMap::new(),
            trace: VecDeque::new(),
            hash: DefaultHasher::new(),
        }
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Result<(), String> {
        self.start_rm();
        for node in 0..self.machines.len() {
            self.start_node(node);
        }
        self.plan_faults();
        self.run_until(1_000)?;
        self.submit("stateful");
        self.run_until(FAULTS_END)?;
        self.heal();
        self.run_until(REST)?;
        self.judge_rest()?;
        self.stop_all();
        self.run_until(END)?;
        self.judge_end()
    }

    fn run_until(&mut self, end: u64) -> Result<(), String> {
        while let Some((&(at, n), _)) = self.queue.first_key_value() {
            if at > end {
                break;
            }
            let happening = self.queue.remove(&(at, n)).expect("just seen");
            self.now = at;
            self.note(|| format!("{happening:?}"));
            self.happen(happening);
            self.judge()?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive { link, to, message } => self.arrive(link, to, message),
            Happening::Lost { link, end } => self.lose(link, end),
            Happening::Dial(dialler) => self.dial(dialler),
            Happening::RmTimer(generation) => self.rm_timer(generation),
            Happening::NodeTimer { node, generation } => self.node_timer(node, generation),
            Happening::NodeWork { node, life, work } => self.node_work(node, life, work),
            Happening::ProcessEnds { node, container, outcome } => {
                self.process_ends(node, container, outcome)
            }
            Happening::WorkerActs { node, container } => self.worker_acts(node, container),
            Happening::MasterTimer { master, generation } => self.master_timer(master, generation),
            Happening::MasterBeats(master) => self.master_beats(master),
            Happening::MasterHears { master, event } => self.master_hears(master, *event),
            Happening::Fault(fault) => self.fault(fault),
            Happening::Undrained { node } => drop(self.drain(node, None)),
            Happening::RmStarts => self.start_rm(),
            Happening::NodeStarts { node, new_boot } => {
                if new_boot && self.machines[node].core.is_none() {
                    self.machines[node].reboot();
                }
                self.start_node(node);
            }
        }
    }

    /// Lets it happen `delay` ms from now.
    pub fn later(&mut self, delay: u64, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    pub fn at(&mut self, at: u64, happening: Happening) {
        self.next += 1;
        self.queue.insert((at.max(self.now), self.next), happening);
    }

    pub fn random(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.rng.random_range(range)
    }

    /// The resource manager's clock.
    pub fn time(&self) -> Timestamp {
        Timestamp(self.now)
    }

    // -------------------------------------------------------------- links

    /// Sends on a link, if that end still has it.
    pub fn send(&mut self, link: LinkId, to: End, message: Message) {
        let delay = self.random(1..15);
        if let Some(at) = self.network.arrival(self.now, link, to, delay) {
            self.at(at, Happening::Arrive { link, to, message });
        }
    }

    fn arrive(&mut self, id: LinkId, to: End, message: Message) {
        let Some(link) = self.network.links.get(&id).cloned() else { return };
        let up = match to {
            End::Dialler => link.dialler_up,
            End::Listener => link.listener_up,
        };
        if !up {
            return;
        }
        match (to, link.dialler, link.listener) {
            (End::Listener, _, Listener::ResourceManager) => self.rm_hears(id, &link, message),
            (End::Listener, _, Listener::Master(master)) => self.master_hears_worker(id, master, message),
            (End::Dialler, Dialler::Node(node), _) => self.node_hears(id, node, message),
            (End::Dialler, Dialler::Master(master), _) => self.master_hears_rm(id, master, message),
            (End::Dialler, Dialler::Worker(worker), _) => self.worker_hears(id, worker, message),
        }
    }

    fn lose(&mut self, id: LinkId, end: End) {
        let Some(link) = self.network.links.get_mut(&id) else { return };
        let up = match end {
            End::Dialler => &mut link.dialler_up,
            End::Listener => &mut link.listener_up,
        };
        if !std::mem::replace(up, false) {
            return;
        }
        let link = link.clone();
        self.network.sweep();
        match (end, link.dialler, link.listener) {
            (End::Listener, dialler, Listener::ResourceManager) => self.rm_lost(dialler, link.session),
            (End::Listener, Dialler::Worker(worker), Listener::Master(master)) => {
                self.master_lost_worker(master, worker)
            }
            (End::Listener, Dialler::Node(_) | Dialler::Master(_), Listener::Master(_)) => {}
            (End::Dialler, Dialler::Node(node), _) => self.node_lost_rm(node, id),
            (End::Dialler, Dialler::Master(master), _) => self.master_lost_rm(master, id),
            (End::Dialler, Dialler::Worker(worker), _) => {
                self.later(50, Happening::Dial(Dialler::Worker(worker)));
            }
        }
    }

    /// One end closes a link: it forgets it now, the other end hears of it soon, or after its own timeout if the
    /// two are cut off.
    pub fn close(&mut self, id: LinkId, by: End) {
        let Some(link) = self.network.links.get_mut(&id) else { return };
        let other = match by {
            End::Dialler => {
                link.dialler_up = false;
                End::Listener
            }
            End::Listener => {
                link.listener_up = false;
                End::Dialler
            }
        };
        let machines = link.machines;
        let delay = self.random(1..15);
        let at = match self.network.cut_until(machines).filter(|until| *until > self.now) {
            Some(until) => until.min(self.now + 5_000) + delay,
            None => self.now + delay,
        };
        self.at(at, Happening::Lost { link: id, end: other });
    }

    fn dial(&mut self, dialler: Dialler) {
        match dialler {
            Dialler::Node(node) => self.node_dials(node),
            Dialler::Master(master) => self.master_dials(master),
            Dialler::Worker(worker) => self.worker_dials(worker),
        }
    }

    /// Whether the two machines can speak now.
    pub fn reaches(&self, a: Option<usize>, b: Option<usize>) -> bool {
        self.network.cut_until((a, b)).is_none_or(|until| until <= self.now)
    }

    // -------------------------------------------------------------- the story

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>7} {}", self.now, what());
        line.hash(&mut self.hash);
        if std::env::var_os("SIM_TRACE").is_some() {
            println!("{line}");
        }
        self.trace.push_back(line);
        if self.trace.len() > 150 {
            self.trace.pop_front();
        }
    }

    /// The last things that happened.
    pub fn trace_end(&self) -> String {
        let lines: Vec<String> = self.trace.iter().map(|line| line.chars().take(400).collect()).collect();
        lines.join("\n")
    }

    /// A number that stands for the whole story.
    pub fn digest(&self) -> u64 {
        self.hash.finish()
    }
}
