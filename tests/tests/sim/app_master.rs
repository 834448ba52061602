//! Processes under shims: application masters (am-core, its sessions, its coordinator topic) and workers, which
//! own their tasks by claims as Kafka would order them.

use std::collections::BTreeMap;

use am_core::place::{Broker, Facts, PartitionPlace, Remembered, Topology};
use am_core::{AmCore, AmIdentity, Command, Event};
use nm_core::Outcome;
use types::{
    AmHello, ContainerHello, ContainerId, ContainerPhase, ContainerStatus, EXIT_FENCED, FromAm, JobId,
    StartContainer, SystemStream, Timestamp, ToAm,
};

use crate::network::{Dialler, End, LinkId, Listener, Message};
use crate::node::What;
use crate::world::{Happening, World};

/// A job's coordinator topic: its newest owner and what it remembers.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    owner: Option<ContainerId>,
    pub remembered: Remembered,
}

/// An application master's process.
pub struct MasterProcess {
    pub core: AmCore,
    job: JobId,
    attempt: u32,
    born: u64,
    link: Option<LinkId>,
    welcomed: bool,
    timer: u64,
    /// Workers' links, and those whose Hello waits for an answer.
    workers: BTreeMap<ContainerId, LinkId>,
    unanswered: BTreeMap<ContainerId, ContainerHello>,
}

impl MasterProcess {
    pub fn new(start: &StartContainer, attempt: u32, now: u64) -> MasterProcess {
        let identity =
            AmIdentity { app: start.app.clone(), attempt, spec: (*start.spec).clone(), unix_offset_ms: 0 };
        MasterProcess {
            core: AmCore::new(identity),
            job: start.job.clone(),
            attempt,
            born: now,
            link: None,
            welcomed: false,
            timer: 0,
            workers: BTreeMap::new(),
            unanswered: BTreeMap::new(),
        }
    }

    fn local(&self, now: u64) -> Timestamp {
        Timestamp(now - self.born)
    }
}

/// A worker's process.
pub struct WorkerProcess {
    pub slot: u32,
    pub claimed: bool,
    /// What it works on; never changes.
    pub model: Option<types::ContainerModel>,
    link: Option<LinkId>,
}

impl WorkerProcess {
    pub fn new(slot: u32) -> WorkerProcess {
        WorkerProcess { slot, claimed: false, model: None, link: None }
    }
}

/// How often masters and workers beat, ms.
const BEAT_MS: u64 = 500;

impl World {
    fn master(&mut self, id: ContainerId) -> Option<(usize, &mut MasterProcess)> {
        let node = self.machine_of(id)?;
        match &mut self.machines[node].running.get_mut(&id)?.what {
            What::Master(master) => Some((node, master)),
            What::Worker(_) => None,
        }
    }

    fn worker(&mut self, id: ContainerId) -> Option<(usize, &mut WorkerProcess)> {
        let node = self.machine_of(id)?;
        match &mut self.machines[node].running.get_mut(&id)?.what {
            What::Worker(worker) => Some((node, worker)),
            What::Master(_) => None,
        }
    }

    fn exit(&mut self, id: ContainerId, code: i32) {
        if let Some(node) = self.machine_of(id) {
            self.end_process(node, id, 1, Outcome::Code(code));
        }
    }

    // -------------------------------------------------------------- the master and the resource manager

    pub fn master_starts(&mut self, id: ContainerId) {
        self.later(3, Happening::Dial(Dialler::Master(id)));
        self.later(BEAT_MS, Happening::MasterBeats(id));
        self.master_apply(id, Event::Started);
    }

    pub fn master_dials(&mut self, id: ContainerId) {
        let now = self.now;
        let rm_is_up = self.rm.core.is_some();
        let Some(node) = self.machine_of(id) else { return };
        let reaches = self.reaches(None, Some(node));
        let Some((_, master)) = self.master(id) else { return };
        if master.link.is_some() {
            return;
        }
        if !rm_is_up || !reaches {
            let delay = self.random(50..1_000);
            return self.later(delay, Happening::Dial(Dialler::Master(id)));
        }
        let hello = AmHello {
            app: self.app_of(id).expect("it runs"),
            attempt: self.master(id).expect("it runs").1.attempt,
            container: id,
            address: id.to_string(),
            asks: {
                let (_, master) = self.master(id).expect("it runs");
                master.core.open_asks(master.local(now))
            },
        };
        let link = self.network.open(now, Dialler::Master(id), Listener::ResourceManager, (Some(node), None));
        let (_, master) = self.master(id).expect("it runs");
        (master.link, master.welcomed) = (Some(link), false);
        self.send(link, End::Listener, Message::AmHello(Box::new(hello)));
    }

    pub fn master_lost_rm(&mut self, id: ContainerId, link: LinkId) {
        let Some((_, master)) = self.master(id) else { return };
        if master.link != Some(link) {
            return;
        }
        master.link = None;
        if std::mem::replace(&mut master.welcomed, false) {
            master.core.session_lost();
        }
        let delay = self.random(50..300);
        self.later(delay, Happening::Dial(Dialler::Master(id)));
    }

    pub fn master_hears_rm(&mut self, link: LinkId, id: ContainerId, message: Message) {
        let Some((_, master)) = self.master(id) else { return };
        if master.link != Some(link) {
            return;
        }
        match message {
            Message::AmWelcome(welcome) => {
                master.welcomed = true;
                self.master_apply(id, Event::Welcome(welcome));
            }
            Message::ToAm(item) => {
                let event = match *item {
                    ToAm::BeatAck { .. } => return,
                    ToAm::Container(placed) => Event::Container(Box::new(placed)),
                    ToAm::Waiting { request, reasons } => Event::Waiting { request, reasons },
                    ToAm::Minted { nonce, incarnation } => Event::Minted { nonce, incarnation },
                    ToAm::State(state) => Event::State(state),
                    ToAm::Leave { container, within_ms } => Event::Leave { container, within_ms },
                    ToAm::Hold { slots, for_ms } => Event::Hold { slots, for_ms },
                    ToAm::Stop(stop) => Event::Stop(stop),
                };
                self.master_apply(id, event);
            }
            Message::Refused(true) => self.exit(id, 1),
            Message::Refused(false) => {}
            other => unreachable!("nobody sends {other:?} to a master"),
        }
    }

    pub fn master_beats(&mut self, id: ContainerId) {
        let now = self.now;
        let Some((_, master)) = self.master(id) else { return };
        if let Some(link) = master.link.filter(|_| master.welcomed) {
            self.send(link, End::Listener, Message::FromAm(Box::new(FromAm::Beat { sent_at_ms: now })));
        }
        if self.random(0..8) == 0 {
            // It looks at the inputs now and then.
            let topology = topology(self.partitions);
            self.kafka_answers(id, Event::TopologyRead(Box::new(topology)));
        }
        self.later(BEAT_MS, Happening::MasterBeats(id));
    }

    pub fn master_timer(&mut self, id: ContainerId, generation: u64) {
        if self.master(id).is_some_and(|(_, master)| master.timer == generation) {
            self.master_apply(id, Event::Deadline);
        }
    }

    /// Kafka answers.
    pub fn master_hears(&mut self, id: ContainerId, event: Event) {
        self.master_apply(id, event);
    }

    fn master_apply(&mut self, id: ContainerId, event: Event) {
        let now = self.now;
        let Some((_, master)) = self.master(id) else { return };
        let mut out = Vec::new();
        let local = master.local(now);
        master.core.apply(local, event, &mut out);
        for command in out {
            self.master_does(id, command);
        }
        self.answer_workers(id);
        let Some((_, master)) = self.master(id) else { return };
        if let Some(due) = master.core.next_deadline() {
            master.timer += 1;
            let (generation, at) = (master.timer, (due.0 + master.born).max(now + 1));
            self.at(at, Happening::MasterTimer { master: id, generation });
        }
    }

    fn master_does(&mut self, id: ContainerId, command: Command) {
        let Some((_, master)) = self.master(id) else { return };
        let (job, link) = (master.job.clone(), master.link.filter(|_| master.welcomed));
        let mut say = |item| {
            if let Some(link) = link {
                self.send(link, End::Listener, Message::FromAm(Box::new(item)));
            }
        };
        match command {
            Command::Ask(ask) => say(FromAm::Ask(*ask)),
            Command::CancelAsk(request) => say(FromAm::CancelAsk(request)),
            Command::Stop { container, grace_ms, cause } => say(FromAm::Stop { container, grace_ms, cause }),
            Command::AckExit(container) => say(FromAm::AckExit(container)),
            Command::Mint { nonce } => say(FromAm::Mint { nonce }),
            Command::Finish(outcome) => say(FromAm::Finish(outcome)),
            Command::ReadFacts => self.claim_memory(id, &job),
            Command::Prepare(plan) => {
                if self.owns_memory(id, &job) {
                    self.memory.entry(job).or_default().remembered.model = Some(plan.model);
                    self.kafka_answers(id, Event::Prepared(Ok(Vec::new())));
                }
            }
            Command::ReadTopology => {
                let topology = topology(self.partitions);
                self.kafka_answers(id, Event::TopologyRead(Box::new(topology)));
            }
            Command::ReadOwners { slot, container, .. } => {
                let newest = self.claims.get(&(job, slot)).copied();
                self.kafka_answers(id, Event::OwnersRead { slot, container, newest: Ok(newest) });
            }
            Command::Fence { incarnation, .. } => {
                let mine = |(of, _): &(JobId, u32)| *of == job;
                for (_, claim) in self.claims.iter_mut().filter(|(key, _)| mine(key)) {
                    *claim = (*claim).max(incarnation);
                }
                self.kafka_answers(id, Event::TasksFenced(Ok(())));
            }
            Command::Remember { slot, place } => {
                if self.owns_memory(id, &job) {
                    self.memory.entry(job).or_default().remembered.places.insert(slot, place);
                }
            }
            Command::AnswerContainer { container, answer } => self.answer_worker(id, container, answer),
            Command::MoveMe(_) => self.exit(id, 1),
        }
    }

    fn kafka_answers(&mut self, master: ContainerId, event: Event) {
        let delay = self.random(2..80);
        self.later(delay, Happening::MasterHears { master, event: Box::new(event) });
    }

    fn claim_memory(&mut self, id: ContainerId, job: &JobId) {
        let memory = self.memory.entry(job.clone()).or_default();
        if memory.owner > Some(id) {
            return self.exit(id, EXIT_FENCED);
        }
        memory.owner = Some(id);
        let remembered = memory.remembered.clone();
        let topology = topology(self.partitions);
        self.kafka_answers(id, Event::FactsRead(Box::new(Ok(Facts { topology, remembered }))));
    }

    /// The job's input gets a partition or two; masters look now and then.
    pub fn grow_inputs(&mut self) {
        self.partitions += i32::try_from(self.random(1..3)).expect("a small number");
        let masters = self.machines.iter().flat_map(|machine| &machine.running);
        let masters: Vec<ContainerId> = masters
            .filter(|(_, running)| matches!(running.what, What::Master(_)))
            .map(|(id, _)| *id)
            .collect();
        for id in masters {
            let topology = topology(self.partitions);
            self.kafka_answers(id, Event::TopologyRead(Box::new(topology)));
        }
    }

    /// Whether the master still owns its coordinator topic; one that does not is fenced and exits.
    fn owns_memory(&mut self, id: ContainerId, job: &JobId) -> bool {
        let owns = self.memory.get(job).is_some_and(|memory| memory.owner == Some(id));
        if !owns {
            self.exit(id, EXIT_FENCED);
        }
        owns
    }

    // -------------------------------------------------------------- the master and its workers

    pub fn worker_dials(&mut self, id: ContainerId) {
        let now = self.now;
        let Some(node) = self.machine_of(id) else { return };
        let running = &self.machines[node].running[&id];
        let (app, address) =
            (running.start.app.clone(), running.master.as_ref().map(|master| master.address.clone()));
        let What::Worker(worker) = &running.what else { return };
        let (slot, model) = (worker.slot, worker.model.clone());
        let listener = address.and_then(|address| address.parse::<ContainerId>().ok());
        let Some((listener, at)) = listener.and_then(|id| Some((id, self.machine_of(id)?))) else {
            return self.later(100, Happening::Dial(Dialler::Worker(id)));
        };
        if !self.reaches(Some(node), Some(at)) {
            return self.later(300, Happening::Dial(Dialler::Worker(id)));
        }
        let link =
            self.network.open(now, Dialler::Worker(id), Listener::Master(listener), (Some(node), Some(at)));
        let phase = if model.is_some() { ContainerPhase::Running } else { ContainerPhase::Starting };
        let status = ContainerStatus { phase, ..ContainerStatus::default() };
        if let Some((_, worker)) = self.worker(id) {
            worker.link = Some(link);
        }
        let hello = ContainerHello { app, container: id, slot, status, model, tells_metrics: false };
        self.send(link, End::Listener, Message::WorkerHello(Box::new(hello)));
    }

    pub fn master_hears_worker(&mut self, link: LinkId, id: ContainerId, message: Message) {
        let Some((_, master)) = self.master(id) else { return };
        match message {
            Message::WorkerHello(hello) => {
                master.workers.insert(hello.container, link);
                master.unanswered.insert(hello.container, (*hello).clone());
                self.master_apply(id, Event::ContainerHello(hello));
            }
            Message::FromWorker(status) => {
                let container =
                    master.workers.iter().find(|(_, of)| **of == link).map(|(container, _)| *container);
                if let Some(container) = container {
                    self.master_apply(id, Event::ContainerStatus { container, status: *status });
                }
            }
            other => unreachable!("no worker sends {other:?}"),
        }
    }

    pub fn master_lost_worker(&mut self, id: ContainerId, worker: ContainerId) {
        let Some((_, master)) = self.master(id) else { return };
        if master.workers.remove(&worker).is_some() {
            master.unanswered.remove(&worker);
            self.master_apply(id, Event::ContainerGone(worker));
        }
    }

    /// Asks again for the workers whose answer had to wait.
    fn answer_workers(&mut self, id: ContainerId) {
        let now = self.now;
        let Some((_, master)) = self.master(id) else { return };
        let local = master.local(now);
        let waiting: Vec<ContainerHello> = master.unanswered.values().cloned().collect();
        for hello in waiting {
            let Some((_, master)) = self.master(id) else { return };
            let answer = match master.core.container_hello(local, &hello) {
                Ok(am_core::HelloAnswer::Model(model)) => Ok(Box::new(model)),
                Ok(am_core::HelloAnswer::Wait) => continue,
                Err(denied) => Err(Some(denied.to_string())),
            };
            self.answer_worker(id, hello.container, answer);
        }
    }

    fn answer_worker(
        &mut self,
        id: ContainerId,
        worker: ContainerId,
        answer: Result<Box<types::ContainerModel>, Option<String>>,
    ) {
        let Some((_, master)) = self.master(id) else { return };
        let Some(link) = master.workers.get(&worker).copied() else { return };
        match answer {
            Ok(model) => {
                master.unanswered.remove(&worker);
                self.send(link, End::Dialler, Message::WorkerWelcome(model));
            }
            Err(Some(_)) => {
                master.unanswered.remove(&worker);
                master.workers.remove(&worker);
                self.send(link, End::Dialler, Message::Refused(true));
            }
            Err(None) => {}
        }
    }

    pub fn worker_hears(&mut self, link: LinkId, id: ContainerId, message: Message) {
        let Some((_, worker)) = self.worker(id) else { return };
        if worker.link != Some(link) {
            return;
        }
        match message {
            Message::WorkerWelcome(model) => drop(worker.model.get_or_insert(*model)),
            Message::Refused(_) => self.exit(id, 1),
            other => unreachable!("nobody sends {other:?} to a worker"),
        }
    }

    /// A worker with a model claims its tasks, then works; one whose claim was overtaken is fenced at its next
    /// commit.
    pub fn worker_acts(&mut self, node: usize, id: ContainerId) {
        let Some((_, worker)) = self.worker(id) else { return };
        let (slot, has_model, claimed, link) =
            (worker.slot, worker.model.is_some(), worker.claimed, worker.link);
        self.later(BEAT_MS, Happening::WorkerActs { node, container: id });
        let status = ContainerStatus {
            phase: if claimed { ContainerPhase::Running } else { ContainerPhase::Starting },
            ..ContainerStatus::default()
        };
        if let Some(link) = link {
            self.send(link, End::Listener, Message::FromWorker(Box::new(status)));
        }
        if !has_model {
            return;
        }
        let job = self.machines[node].running[&id].start.job.clone();
        let claim = self.claims.entry((job, slot)).or_default();
        if *claim > id.0 {
            return self.exit(id, EXIT_FENCED);
        }
        *claim = id.0;
        if let Some((_, worker)) = self.worker(id) {
            worker.claimed = true;
        }
    }
}

/// Three brokers, so many partitions, leaders in turn.
fn topology(partitions: i32) -> Topology {
    let brokers = (1..=3)
        .map(|id| (id, Broker { host: format!("127.0.0.{id}"), aliases: Vec::new(), rack: String::new() }))
        .collect();
    let partitions = (0..partitions)
        .map(|p| PartitionPlace { leader: Some(p % 3 + 1), replicas: vec![p % 3 + 1, (p + 1) % 3 + 1] })
        .collect();
    let stream = SystemStream { system: "kafka".into(), stream: "flights".into() };
    Topology {
        brokers: BTreeMap::from([("kafka".to_owned(), brokers)]),
        streams: BTreeMap::from([(stream, partitions)]),
    }
}
