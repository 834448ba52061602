//! The resource manager's process in the world: rm-core, its store, its sessions.

use std::collections::BTreeMap;

use rm_core::{
    Command, Config, Denied, Event, Outcome, Record, RmCore, Stored, StoredApp, StoredNode, Submit,
};
use types::{
    AppId, Artefact, ContainersSpec, Delivery, Digest, Epoch, ErrorsSpec, Grouper, JobId, JobSpec, NodeId,
    NodeStateName, OnExhausted, OnLeaseLoss, PackageSpec, PlacementSpec, Resource, RestartSpec, Spread,
    StateLost, SystemKind, SystemSpec, TaskSpec, ToNode,
};

use crate::network::{Dialler, End, Link, LinkId, Message};
use crate::world::{Happening, Plant, World};

/// The process and its disk.
pub struct ResourceManager {
    pub core: Option<RmCore>,
    epoch: u64,
    apps: BTreeMap<AppId, StoredApp>,
    nodes: BTreeMap<NodeId, StoredNode>,
    timer: u64,
    plant: Plant,
}

/// The lease that nodes are promised, ms.
const LEASE_MS: u64 = 5_000;

impl ResourceManager {
    pub fn new(plant: Plant) -> ResourceManager {
        ResourceManager {
            core: None,
            epoch: 0,
            apps: BTreeMap::new(),
            nodes: BTreeMap::new(),
            timer: 0,
            plant,
        }
    }
}

/// A job of three containers over six partitions.
pub fn spec(name: &str) -> JobSpec {
    let small = Resource { memory_bytes: 64 << 20, cpu_millis: 100 };
    JobSpec {
        job: JobId { name: name.into(), id: "1".into() },
        queue: "default".into(),
        priority: 0,
        app_master: small,
        package: PackageSpec {
            source: "job".into(),
            artefact: Some(Artefact {
                name: "job".into(),
                digest: Digest("ab".into()),
                bytes: 1,
                from: None,
            }),
            command: Vec::new(),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
        },
        containers: ContainersSpec {
            count: 3,
            resource: Resource { memory_bytes: 256 << 20, cpu_millis: 500 },
            threads: 1,
            cpu_limit_millis: None,
        },
        task: TaskSpec {
            inputs: vec!["kafka.flights".into()],
            former_inputs: Vec::new(),
            on_input_growth: types::OnInputGrowth::Fail,
            window_ms: None,
            commit_ms: 1_000,
            delivery: Delivery::ExactlyOnce,
            grouper: Grouper::Partition,
            timers: false,
            concurrency: 16,
            state_lost: StateLost::Fail,
            stuck_after_ms: Some(types::STUCK_AFTER_MS),
            config: BTreeMap::new(),
        },
        systems: BTreeMap::from([(
            "kafka".into(),
            SystemSpec {
                kind: SystemKind::Kafka,
                bootstrap: "127.0.0.1:9092".into(),
                consumer: BTreeMap::new(),
                producer: BTreeMap::new(),
                replication: None,
                path: None,
                security: None,
            },
        )]),
        streams: BTreeMap::new(),
        stores: BTreeMap::new(),
        placement: PlacementSpec {
            wait_ms: 1_000,
            rack_wait_ms: 500,
            host_affinity: true,
            on_lease_loss: OnLeaseLoss::Keep,
            labels: BTreeMap::new(),
            spread: Spread::None,
        },
        errors: ErrorsSpec::default(),
        restart: RestartSpec {
            retries: 10_000,
            window_ms: 300_000,
            backoff_min_ms: 500,
            backoff_max_ms: 4_000,
            on_exhausted: OnExhausted::Fail,
        },
        metadata: types::MetadataSpec::default(),
    }
}

impl World {
    /// Starts the process over what its disk holds.
    pub fn start_rm(&mut self) {
        let now = self.time();
        let rm = &mut self.rm;
        if rm.core.is_some() {
            return;
        }
        rm.epoch = (rm.epoch + 1).max(1_000_000 + self.now);
        let lease_ms = match rm.plant {
            Plant::Nothing => LEASE_MS,
            Plant::IgnoreLeases => LEASE_MS / 10,
        };
        let config = Config { lease_ms, am_failures: 10_000, ..Config::default() };
        let stored =
            Stored { apps: rm.apps.values().cloned().collect(), nodes: rm.nodes.values().cloned().collect() };
        rm.core = Some(RmCore::new(config, Epoch(rm.epoch), now, stored));
        self.rearm_rm();
    }

    /// An operator drains a node, or takes that back. Whether the resource manager was there and knew the node.
    pub fn drain(&mut self, node: usize, grace_ms: Option<u64>) -> bool {
        let node = self.machines[node].id.clone();
        let knows = self.rm.core.is_some() && self.rm.nodes.contains_key(&node);
        if knows {
            self.rm_apply(Event::Drain { node, grace_ms }, None);
        }
        knows
    }

    /// SIGKILL.
    pub fn crash_rm(&mut self) {
        self.rm.core = None;
        let mine: Vec<LinkId> = self
            .network
            .links
            .iter()
            .filter(|(_, link)| {
                link.listener == crate::network::Listener::ResourceManager && link.listener_up
            })
            .map(|(id, _)| *id)
            .collect();
        for link in mine {
            self.close(link, End::Listener);
        }
    }

    /// Applies one event and carries out what follows. `reply_on` is the link that a welcome goes to.
    fn rm_apply(&mut self, event: Event, reply_on: Option<LinkId>) {
        let now = self.time();
        let Some(core) = self.rm.core.as_mut() else { return };
        let may_lose = matches!(event, Event::Deadline);
        let mut out = Vec::new();
        let outcome = core.apply(now, event, &mut out);
        if may_lose {
            let nodes = core.view(now).cluster.nodes;
            nodes
                .iter()
                .filter(|node| node.state == NodeStateName::Lost)
                .for_each(|it| self.judge_lost(&it.node));
        }
        for command in &out {
            self.persist(command);
        }
        if let Some(link) = reply_on {
            self.answer(link, outcome);
        }
        for command in out {
            self.rm_does(command);
        }
        self.rearm_rm();
    }

    fn answer(&mut self, link: LinkId, outcome: Result<Outcome, Denied>) {
        let mut welcome = |session, message| {
            if let Some(link) = self.network.links.get_mut(&link) {
                link.session = Some(session);
            }
            self.send(link, End::Dialler, message);
        };
        match outcome {
            Ok(Outcome::NodeWelcome(mut to_node)) => {
                to_node.lease_ms = LEASE_MS;
                welcome(to_node.session, Message::NodeWelcome(to_node));
            }
            Ok(Outcome::AmWelcome { session, welcome: to_am }) => welcome(session, Message::AmWelcome(to_am)),
            Ok(Outcome::Done | Outcome::App(_)) => {}
            Err(denied) => {
                let for_good = matches!(
                    denied,
                    Denied::NotCurrentAttempt { .. } | Denied::Over(_) | Denied::UnknownApp(_)
                );
                self.send(link, End::Dialler, Message::Refused(for_good));
                self.close(link, End::Listener);
            }
        }
    }

    fn persist(&mut self, command: &Command) {
        let Command::Persist(record) = command else { return };
        match record {
            Record::App(app) => {
                self.rm.apps.insert(app.app.clone(), (**app).clone());
            }
            Record::Node(node) => {
                self.rm.nodes.insert(node.node.clone(), (**node).clone());
            }
            Record::DropApp(app) => {
                self.rm.apps.remove(app);
            }
        }
    }

    fn rm_does(&mut self, command: Command) {
        match command {
            Command::Persist(_) => {}
            Command::ToNode { stamp, item, .. } => {
                if let ToNode::Start(start) = &item {
                    self.judge_start(start);
                }
                if let Some(link) = self.network.of_session(stamp.session) {
                    self.send(link, End::Dialler, Message::ToNode(stamp, Box::new(item)));
                }
            }
            Command::ToAm { session, item, .. } => {
                if let Some(link) = self.network.of_session(session) {
                    self.send(link, End::Dialler, Message::ToAm(Box::new(item)));
                }
            }
            Command::CloseNodeSession { session, .. } | Command::CloseAmSession { session, .. } => {
                if let Some(link) = self.network.of_session(session) {
                    self.close(link, End::Listener);
                }
            }
        }
    }

    fn rearm_rm(&mut self) {
        let Some(due) = self.rm.core.as_ref().and_then(RmCore::next_deadline) else { return };
        self.rm.timer += 1;
        let generation = self.rm.timer;
        self.at(due.0.max(self.now + 1), Happening::RmTimer(generation));
    }

    pub fn rm_timer(&mut self, generation: u64) {
        if generation == self.rm.timer {
            self.rm_apply(Event::Deadline, None);
        }
    }

    pub fn rm_hears(&mut self, id: LinkId, link: &Link, message: Message) {
        let session = link.session.unwrap_or(0);
        match message {
            Message::NodeHello(hello) => self.rm_apply(Event::NodeHello(hello), Some(id)),
            Message::AmHello(hello) => self.rm_apply(Event::AmHello(hello), Some(id)),
            Message::FromNode(item) => {
                let Dialler::Node(node) = link.dialler else { return };
                let node = self.machines[node].id.clone();
                self.rm_apply(Event::NodeItem { node, session, item }, None);
            }
            Message::FromAm(item) => {
                let Dialler::Master(master) = link.dialler else { return };
                let Some(app) = self.app_of(master) else { return };
                self.rm_apply(Event::AmItem { app, session, item: *item }, None);
            }
            other => unreachable!("nobody sends {other:?} to the resource manager"),
        }
    }

    pub fn rm_lost(&mut self, dialler: Dialler, session: Option<u64>) {
        let Some(session) = session else { return };
        match dialler {
            Dialler::Node(node) => {
                let node = self.machines[node].id.clone();
                self.rm_apply(Event::NodeGone { node, session }, None);
            }
            Dialler::Master(master) => {
                if let Some(app) = self.app_of(master) {
                    self.rm_apply(Event::AmGone { app, session }, None);
                }
            }
            Dialler::Worker(_) => {}
        }
    }

    /// A user submits job `name`.
    pub fn submit(&mut self, name: &str) {
        let submit = Submit {
            client_id: name.into(),
            spec: spec(name),
            replace: false,
            app_master: Artefact {
                name: "app-master".into(),
                digest: Digest("cd".into()),
                bytes: 1,
                from: None,
            },
            token: "secret".into(),
            secrets: Default::default(),
        };
        self.rm_apply(Event::Submit(Box::new(submit)), None);
    }

    /// A user stops every job that is not over.
    pub fn stop_all(&mut self) {
        let Some(core) = self.rm.core.as_ref() else { return };
        let live: Vec<AppId> = core
            .view(self.time())
            .apps
            .into_iter()
            .filter(|app| !app.state.is_over())
            .map(|app| app.app)
            .collect();
        for app in live {
            self.rm_apply(Event::Stop { name: app.0, kill: false }, None);
        }
    }
}
