//! A machine: its node manager, its disk, its processes.

use std::collections::BTreeMap;

use nm_core::{Command, Core, Event, Evidence, Found, Outcome, Process, Record, Recovered};
use types::{
    AppId, ContainerId, Epoch, NodeHello, NodeId, NodeIncarnation, Resource, Role, StartContainer, Timestamp,
};

use crate::app_master::{MasterProcess, WorkerProcess};
use crate::network::{Dialler, End, LinkId, Listener, Message};
use crate::world::{Happening, World};

/// What a node manager waits for.
#[derive(Debug, Clone)]
pub enum Work {
    Persist { id: ContainerId, version: u64, record: Box<Record> },
    Localize(ContainerId),
    Launch { id: ContainerId, master: Option<nm_core::Master> },
    Event(Box<Event>),
}

/// A process under a shim.
pub struct Running {
    pub start: StartContainer,
    pub process: Process,
    /// Where its application's master is, as its file says.
    pub master: Option<nm_core::Master>,
    pub ending: bool,
    pub what: What,
}

/// What runs in it.
pub enum What {
    Master(Box<MasterProcess>),
    Worker(WorkerProcess),
}

/// One machine.
pub struct Machine {
    pub id: NodeId,
    host: String,
    /// The node's clock minus the world's.
    clock: u64,
    boots: u64,
    pub total: Resource,
    pub core: Option<Core>,
    /// Counts the node manager's starts: what an earlier one had asked for is void.
    pub life: u64,
    timer: u64,
    link: Option<LinkId>,
    hello_sent: u64,
    /// When its lease ends, on the world's clock; outlives the node manager.
    pub lease_until: u64,
    dialling: bool,
    // its disk
    epoch: Epoch,
    pub records: BTreeMap<ContainerId, (u64, Record)>,
    exits: BTreeMap<ContainerId, (Process, Outcome)>,
    pub running: BTreeMap<ContainerId, Running>,
}

impl Machine {
    pub fn new(place: usize, clock: u64) -> Machine {
        Machine {
            id: NodeId(format!("n{place}")),
            host: format!("127.0.0.{}", place + 1),
            clock,
            boots: 1,
            total: Resource { memory_bytes: 1 << 30, cpu_millis: 4_000 },
            core: None,
            life: 0,
            timer: 0,
            link: None,
            hello_sent: 0,
            lease_until: 0,
            dialling: false,
            epoch: Epoch(0),
            records: BTreeMap::new(),
            exits: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    fn incarnation(&self) -> NodeIncarnation {
        NodeIncarnation { boot_id: format!("boot{}", self.boots), state_id: self.id.0.clone() }
    }

    /// The machine comes up again: a new boot without processes.
    pub fn reboot(&mut self) {
        self.boots += 1;
    }

    pub fn local(&self, now: u64) -> Timestamp {
        Timestamp(now + self.clock)
    }
}

impl World {
    /// The node manager starts and takes over what its disk holds.
    pub fn start_node(&mut self, node: usize) {
        let now = self.now;
        let machine = &mut self.machines[node];
        if machine.core.is_some() {
            return;
        }
        machine.life += 1;
        // Records are numbered anew in each life.
        machine.records.values_mut().for_each(|(version, _)| *version = 1);
        let mut core = Core::new(machine.incarnation(), machine.epoch);
        let left = machine
            .records
            .iter()
            .map(|(id, (_, record))| {
                let found = match (machine.running.get(id), machine.exits.get(id)) {
                    (Some(running), _) => Found::Running(running.process),
                    (None, Some((process, outcome))) => Found::Ended {
                        process: Some(*process),
                        outcome: *outcome,
                        evidence: Evidence::default(),
                        ended_unix_ms: Some(now),
                    },
                    (None, None) => Found::NeverStarted,
                };
                Recovered { record: record.clone(), found }
            })
            .collect();
        let mut out = Vec::new();
        core.recover(machine.local(now), left, &mut out);
        machine.core = Some(core);
        self.node_does(node, out);
        self.later(1, Happening::Dial(Dialler::Node(node)));
        self.machines[node].dialling = true;
    }

    /// SIGKILL of the node manager; its containers run on.
    pub fn crash_node(&mut self, node: usize) {
        self.machines[node].core = None;
        self.machines[node].dialling = false;
        if let Some(link) = self.machines[node].link.take() {
            self.close(link, End::Dialler);
        }
    }

    /// The machine is gone, with everything on it.
    pub fn crash_machine(&mut self, node: usize) {
        self.crash_node(node);
        let ids: Vec<ContainerId> = self.machines[node].running.keys().copied().collect();
        for id in ids {
            self.drop_process(node, id);
        }
    }

    fn node_apply(&mut self, node: usize, event: Event) {
        let machine = &mut self.machines[node];
        let now = machine.local(self.now);
        let Some(core) = machine.core.as_mut() else { return };
        let mut out = Vec::new();
        let denied = core.apply(now, event, &mut out).err();
        if let Some(denied) = denied {
            self.note(|| format!("n{node} refuses: {denied}"));
        }
        self.node_does(node, out);
    }

    fn node_does(&mut self, node: usize, out: Vec<Command>) {
        for command in out {
            self.node_does_one(node, command);
        }
        let machine = &mut self.machines[node];
        if let Some(nm_core::Lease::Until(end)) = machine.core.as_ref().map(|core| core.view().lease) {
            machine.lease_until = end.0.saturating_sub(machine.clock);
        }
        if let Some(due) = machine.core.as_ref().and_then(Core::next_deadline) {
            machine.timer += 1;
            let (generation, at) = (machine.timer, due.0.saturating_sub(machine.clock).max(self.now + 1));
            self.at(at, Happening::NodeTimer { node, generation });
        }
    }

    fn node_does_one(&mut self, node: usize, command: Command) {
        let life = self.machines[node].life;
        let work = |work| Happening::NodeWork { node, life, work };
        match command {
            Command::Persist { id, version, record } => {
                let delay = self.random(0..6);
                self.later(delay, work(Work::Persist { id, version, record }));
            }
            Command::PersistEpoch(epoch) => self.machines[node].epoch = epoch,
            Command::Localize { id } => {
                let delay = self.random(1..200);
                self.later(delay, work(Work::Localize(id)));
            }
            Command::Launch { id, master } => {
                let delay = self.random(1..30);
                self.later(delay, work(Work::Launch { id, master }));
            }
            Command::Terminate { id } => {
                let ignores = self.random(0..20) == 0;
                let delay = self.random(1..2_000);
                if !ignores {
                    self.end_process(node, id, delay, Outcome::Code(0));
                }
            }
            Command::Kill { id } => {
                let delay = self.random(1..20);
                if let Some(running) = self.machines[node].running.get_mut(&id) {
                    running.ending = false;
                }
                self.end_process(node, id, delay, Outcome::Signal(9));
            }
            Command::Remove { id } => {
                self.machines[node].records.remove(&id);
                self.machines[node].exits.remove(&id);
            }
            Command::WriteMaster { id, master } => {
                if let Some(running) = self.machines[node].running.get_mut(&id) {
                    running.master = Some(master);
                }
            }
            Command::WriteLease(_) | Command::PurgeState(_) => {}
            Command::Send(item) => {
                if let Some(link) = self.machines[node].link {
                    self.send(link, End::Listener, Message::FromNode(item));
                }
            }
            Command::CloseSession => self.node_redials(node),
        }
    }

    /// A process will end.
    pub fn end_process(&mut self, node: usize, container: ContainerId, delay: u64, outcome: Outcome) {
        if let Some(running) = self.machines[node].running.get_mut(&container)
            && !running.ending
        {
            running.ending = true;
            self.later(delay, Happening::ProcessEnds { node, container, outcome });
        }
    }

    pub fn node_timer(&mut self, node: usize, generation: u64) {
        if self.machines[node].timer == generation {
            self.node_apply(node, Event::Deadline);
        }
    }

    pub fn node_work(&mut self, node: usize, life: u64, work: Work) {
        if self.machines[node].life != life || self.machines[node].core.is_none() {
            return;
        }
        match work {
            Work::Persist { id, version, record } => {
                let newer = self.machines[node].records.get(&id).is_none_or(|(old, _)| *old < version);
                if newer {
                    self.machines[node].records.insert(id, (version, *record));
                }
                self.node_apply(node, Event::Persisted { id, version });
            }
            Work::Localize(id) => {
                let fails = self.random(0..40) == 0;
                let result = if fails { Err("no such artefact".to_owned()) } else { Ok(()) };
                self.node_apply(node, Event::Localized { id, result });
            }
            Work::Launch { id, master } => self.launch(node, id, master),
            Work::Event(event) => self.node_apply(node, *event),
        }
    }

    fn launch(&mut self, node: usize, id: ContainerId, master: Option<nm_core::Master>) {
        *self.launches.entry(id).or_insert(0) += 1;
        let Some((_, record)) = self.machines[node].records.get(&id) else {
            panic!("{id} is launched without a durable record");
        };
        let start = record.start.clone();
        let process = Process { pid: u32::try_from(id.0.seq).unwrap_or(u32::MAX), started_unix_ms: self.now };
        let what = match start.role {
            Role::AppMaster { attempt } => {
                What::Master(Box::new(MasterProcess::new(&start, attempt, self.now)))
            }
            Role::Worker { request } => What::Worker(WorkerProcess::new(request.slot)),
        };
        self.machines[node].running.insert(id, Running { start, process, master, ending: false, what });
        self.node_apply(node, Event::Launched { id, process });
        match self.machines[node].running.get(&id).map(|running| &running.what) {
            Some(What::Master(_)) => self.master_starts(id),
            Some(What::Worker(_)) => {
                let delay = self.random(5..300);
                self.later(delay, Happening::WorkerActs { node, container: id });
                self.later(5, Happening::Dial(Dialler::Worker(id)));
            }
            None => {}
        }
    }

    pub fn process_ends(&mut self, node: usize, container: ContainerId, outcome: Outcome) {
        let Some(process) = self.machines[node].running.get(&container).map(|running| running.process) else {
            return;
        };
        self.drop_process(node, container);
        let machine = &mut self.machines[node];
        machine.exits.insert(container, (process, outcome));
        let (life, delay) = (machine.life, self.random(1..10));
        let event = Event::Ended {
            id: container,
            outcome,
            evidence: Evidence::default(),
            ended_unix_ms: Some(self.now),
        };
        self.later(delay, Happening::NodeWork { node, life, work: Work::Event(Box::new(event)) });
    }

    fn drop_process(&mut self, node: usize, container: ContainerId) {
        if self.machines[node].running.remove(&container).is_some() {
            let mine: Vec<(LinkId, End)> = self
                .network
                .links
                .iter()
                .filter_map(|(id, link)| match (link.dialler, link.listener) {
                    (Dialler::Master(it) | Dialler::Worker(it), _) if it == container => {
                        Some((*id, End::Dialler))
                    }
                    (_, Listener::Master(it)) if it == container => Some((*id, End::Listener)),
                    _ => None,
                })
                .collect();
            for (link, end) in mine {
                self.close(link, end);
            }
        }
    }

    // -------------------------------------------------------------- the session

    fn node_redials(&mut self, node: usize) {
        if let Some(link) = self.machines[node].link.take() {
            self.close(link, End::Dialler);
        }
        self.node_apply(node, Event::SessionLost);
        if !std::mem::replace(&mut self.machines[node].dialling, true) {
            let delay = self.random(50..300);
            self.later(delay, Happening::Dial(Dialler::Node(node)));
        }
    }

    pub fn node_lost_rm(&mut self, node: usize, link: LinkId) {
        if self.machines[node].link == Some(link) {
            self.machines[node].link = None;
            self.node_redials(node);
        }
    }

    pub fn node_dials(&mut self, node: usize) {
        let now = self.now;
        if self.machines[node].core.is_none() || self.machines[node].link.is_some() {
            self.machines[node].dialling = false;
            return;
        }
        if self.rm.core.is_none() || !self.reaches(None, Some(node)) {
            let delay = self.random(50..1_000);
            return self.later(delay, Happening::Dial(Dialler::Node(node)));
        }
        let link = self.network.open(now, Dialler::Node(node), Listener::ResourceManager, (Some(node), None));
        let machine = &mut self.machines[node];
        machine.dialling = false;
        machine.link = Some(link);
        machine.hello_sent = now;
        let local = machine.local(now);
        let incarnation = machine.incarnation();
        let facts = machine.core.as_mut().expect("checked above").hello(local);
        let hello = NodeHello {
            node: machine.id.clone(),
            incarnation,
            total: machine.total,
            hosts: vec![machine.host.clone()],
            rack: String::new(),
            labels: BTreeMap::new(),
            address: format!("{}:1", machine.host),
            containers: facts.containers,
            state: Vec::new(),
            lease_lapsed: facts.lease_lapsed,
            version: String::new(),
        };
        self.send(link, End::Listener, Message::NodeHello(Box::new(hello)));
    }

    pub fn node_hears(&mut self, link: LinkId, node: usize, message: Message) {
        if self.machines[node].link != Some(link) {
            return;
        }
        match message {
            Message::NodeWelcome(welcome) => {
                let hello_sent_at = self.machines[node].local(self.machines[node].hello_sent);
                self.node_apply(node, Event::Welcome { welcome, hello_sent_at });
            }
            Message::ToNode(stamp, item) => self.node_apply(node, Event::Command { stamp, item: *item }),
            Message::Refused(_) => self.node_redials(node),
            other => unreachable!("nobody sends {other:?} to a node"),
        }
    }

    /// The machine that a container's process is on.
    pub fn machine_of(&self, container: ContainerId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.running.contains_key(&container))
    }

    /// The application of a container that runs.
    pub fn app_of(&self, container: ContainerId) -> Option<AppId> {
        self.machines
            .iter()
            .find_map(|machine| machine.running.get(&container))
            .map(|running| running.start.app.clone())
    }
}
