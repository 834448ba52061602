//! A cluster of fakes around one real core: nodes that run what they are told, masters that say what the test
//! has them say, a store that survives the core. Everything happens in order and at once; time moves when told.
#![allow(dead_code, unreachable_pub, missing_docs)] // Each test file uses its own part.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rm_core::{
    Command, Config, Denied, Event, Outcome, Record, RmCore, Stored, StoredApp, StoredNode, Submit,
};
use types::{
    AmHello, AmWelcome, AppId, AppReport, Artefact, Ask, CommandStamp, ContainerId, ContainerReport,
    ContainerState, ContainersSpec, Delivery, Digest, Epoch, ErrorsSpec, ExitCause, FromAm, FromNode,
    Grouper, JobId, JobSpec, NodeBeat, NodeHello, NodeId, NodeIncarnation, NodeReport, OnExhausted,
    OnLeaseLoss, PackageSpec, PlacementSpec, Preference, RequestId, Resource, RestartSpec, Role, Spread,
    StartContainer, StateLost, TaskSpec, Timestamp, ToAm, ToNode,
};

pub const MIB: u64 = 1 << 20;

/// A node manager that obeys.
#[derive(Debug, Clone)]
pub struct FakeNode {
    pub hello: NodeHello,
    pub session: Option<CommandStamp>,
    pub containers: BTreeMap<ContainerId, ContainerReport>,
    pub starts: BTreeMap<ContainerId, u32>,
    pub forgotten: Vec<ContainerId>,
    pub addresses: Vec<(AppId, u32, String)>,
    /// Whether Stop is heard and never followed by an exit.
    pub stubborn: bool,
    /// Whom Stop was heard for.
    pub stops: BTreeSet<ContainerId>,
    /// What Start does: runs, or fails with this reason.
    pub launch_failure: Option<String>,
}

/// What was said to one application's master.
#[derive(Debug, Clone, Default)]
pub struct FakeMaster {
    pub session: Option<u64>,
    pub container: ContainerId,
    pub attempt: u32,
    pub heard: Vec<ToAm>,
    pub welcome: Option<AmWelcome>,
}

pub struct World {
    pub core: RmCore,
    pub config: Config,
    pub epoch: u64,
    pub now: Timestamp,
    pub store: BTreeMap<AppId, StoredApp>,
    pub node_store: BTreeMap<NodeId, StoredNode>,
    pub nodes: BTreeMap<NodeId, FakeNode>,
    pub masters: BTreeMap<AppId, FakeMaster>,
    pub submissions: u32,
    /// The last try of each slot, which a master knows by heart.
    pub tries: BTreeMap<(AppId, u32, u32), u32>,
}

pub fn spec(name: &str, containers: u32) -> JobSpec {
    JobSpec {
        job: JobId { name: name.into(), id: "1".into() },
        queue: "default".into(),
        priority: 0,
        app_master: Resource { memory_bytes: 64 * MIB, cpu_millis: 100 },
        package: PackageSpec {
            source: "job".into(),
            artefact: Some(Artefact {
                name: "job".into(),
                digest: Digest("ab".into()),
                bytes: 3,
                from: None,
            }),
            command: vec![],
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
        },
        containers: ContainersSpec {
            count: containers,
            resource: small(),
            threads: 1,
            cpu_limit_millis: None,
        },
        task: TaskSpec {
            inputs: vec![],
            former_inputs: Vec::new(),
            on_input_growth: types::OnInputGrowth::Fail,
            window_ms: None,
            commit_ms: 1000,
            delivery: Delivery::ExactlyOnce,
            grouper: Grouper::Partition,
            timers: false,
            concurrency: 16,
            state_lost: StateLost::Fail,
            stuck_after_ms: Some(types::STUCK_AFTER_MS),
            config: BTreeMap::new(),
        },
        systems: BTreeMap::new(),
        streams: BTreeMap::new(),
        stores: BTreeMap::new(),
        placement: PlacementSpec {
            wait_ms: 1000,
            rack_wait_ms: 500,
            host_affinity: true,
            on_lease_loss: OnLeaseLoss::Keep,
            labels: BTreeMap::new(),
            spread: Spread::None,
        },
        errors: ErrorsSpec::default(),
        restart: RestartSpec {
            retries: 8,
            window_ms: 300_000,
            backoff_min_ms: 1000,
            backoff_max_ms: 60_000,
            on_exhausted: OnExhausted::Fail,
        },
        metadata: types::MetadataSpec::default(),
    }
}

pub fn small() -> Resource {
    Resource { memory_bytes: 256 * MIB, cpu_millis: 250 }
}

pub fn request(attempt: u32, slot: u32, try_no: u32) -> RequestId {
    RequestId { attempt, slot, try_no }
}

pub fn ask(request: RequestId) -> Ask {
    Ask {
        request,
        resource: small(),
        preferences: vec![],
        wait_ms: 1000,
        rack_wait_ms: 500,
        avoid: vec![],
        spread: Spread::None,
        labels: BTreeMap::new(),
    }
}

pub fn prefer(host: &str, rack: &str, weight: u64) -> Preference {
    Preference { host: host.into(), aliases: vec![], rack: rack.into(), weight, reason: "leader".into() }
}

impl World {
    pub fn new() -> World {
        Self::with(Config::default())
    }

    pub fn with(config: Config) -> World {
        let now = Timestamp(1_000_000);
        World {
            core: RmCore::new(config.clone(), Epoch(1), now, Stored::default()),
            config,
            epoch: 1,
            now,
            store: BTreeMap::new(),
            node_store: BTreeMap::new(),
            nodes: BTreeMap::new(),
            masters: BTreeMap::new(),
            submissions: 0,
            tries: BTreeMap::new(),
        }
    }

    /// A machine of 2 GiB and two cores, named like its id, in rack `rack`, with a node manager that has joined.
    pub fn join(&mut self, node: &str, rack: &str) {
        self.join_with(node, rack, Resource { memory_bytes: 2048 * MIB, cpu_millis: 2000 });
    }

    pub fn join_with(&mut self, node: &str, rack: &str, total: Resource) {
        let hello = NodeHello {
            node: node.into(),
            incarnation: NodeIncarnation {
                boot_id: format!("boot of {node}"),
                state_id: format!("state of {node}"),
            },
            total,
            hosts: vec![node.to_owned()],
            rack: rack.into(),
            labels: BTreeMap::new(),
            address: format!("{node}:1"),
            containers: vec![],
            state: vec![],
            lease_lapsed: false,
            version: "test".into(),
        };
        let fake = FakeNode {
            hello,
            session: None,
            containers: BTreeMap::new(),
            starts: BTreeMap::new(),
            forgotten: vec![],
            addresses: vec![],
            stubborn: false,
            stops: BTreeSet::new(),
            launch_failure: None,
        };
        self.nodes.insert(node.into(), fake);
        self.connect(node);
    }

    /// The node says Hello with all it has.
    pub fn connect(&mut self, node: &str) {
        self.try_connect(node).expect("the node is welcome");
        self.settle();
    }

    pub fn try_connect(&mut self, node: &str) -> Result<(), Denied> {
        let id = NodeId::from(node);
        let fake = self.nodes.get_mut(&id).expect("the test joined it");
        fake.hello.containers = fake.containers.values().cloned().collect();
        let hello = fake.hello.clone();
        let mut out = vec![];
        let outcome = self.core.apply(self.now, Event::NodeHello(Box::new(hello)), &mut out)?;
        let Outcome::NodeWelcome(welcome) = outcome else { panic!("a Hello is answered with a Welcome") };
        let fake = self.nodes.get_mut(&id).expect("still there");
        fake.session = Some(CommandStamp {
            epoch: welcome.epoch,
            session: welcome.session,
            incarnation: fake.hello.incarnation.clone(),
        });
        self.run(out);
        Ok(())
    }

    /// The session breaks and the core notices.
    pub fn cut(&mut self, node: &str) {
        let id = NodeId::from(node);
        if let Some(stamp) = self.nodes.get_mut(&id).and_then(|fake| fake.session.take()) {
            self.apply(Event::NodeGone { node: id, session: stamp.session });
        }
    }

    /// The machine vanishes with all that ran on it; when it is back, it is another boot.
    pub fn power_off(&mut self, node: &str) {
        let fake = self.nodes.get_mut(&NodeId::from(node)).expect("the test joined it");
        fake.containers.clear();
        fake.hello.incarnation.boot_id.push('+');
        self.cut(node);
    }

    pub fn apply(&mut self, event: Event) -> Outcome {
        let outcome = self.try_apply(event).expect("the test expects it to be admitted");
        self.settle();
        outcome
    }

    pub fn try_apply(&mut self, event: Event) -> Result<Outcome, Denied> {
        let mut out = vec![];
        let outcome = self.core.apply(self.now, event, &mut out);
        self.run(out);
        outcome
    }

    /// Does what is due now, until nothing is.
    pub fn settle(&mut self) {
        while self.core.next_deadline().is_some_and(|at| at <= self.now) {
            let mut out = vec![];
            self.core.handle_deadline(self.now, &mut out);
            self.run(out);
        }
    }

    /// Runs commands, and what nodes answer to them.
    pub fn run(&mut self, commands: Vec<Command>) {
        self.core.check().expect("invariants hold");
        let mut queue = VecDeque::from(commands);
        while let Some(command) = queue.pop_front() {
            match command {
                Command::Persist(Record::App(app)) => {
                    self.store.insert(app.app.clone(), *app);
                }
                Command::Persist(Record::Node(node)) => {
                    self.node_store.insert(node.node.clone(), *node);
                }
                Command::Persist(Record::DropApp(app)) => {
                    self.store.remove(&app);
                }
                Command::ToNode { node, stamp, item } => {
                    for report in self.node_hears(&node, &stamp, item) {
                        let (session, item) = (stamp.session, FromNode::Container(report));
                        let mut out = vec![];
                        let event = Event::NodeItem { node: node.clone(), session, item };
                        self.core.apply(self.now, event, &mut out).expect("its session is current");
                        self.core.check().expect("invariants hold");
                        queue.extend(out);
                    }
                }
                Command::ToAm { app, session, item } => {
                    let master = self.masters.entry(app).or_default();
                    if master.session == Some(session) {
                        master.heard.push(item);
                    }
                }
                Command::CloseNodeSession { node, session, .. } => {
                    let fake = self.nodes.get_mut(&node).expect("it has a session");
                    if fake.session.as_ref().is_some_and(|stamp| stamp.session == session) {
                        fake.session = None;
                    }
                }
                Command::CloseAmSession { app, session, .. } => {
                    let master = self.masters.entry(app).or_default();
                    if master.session == Some(session) {
                        master.session = None;
                    }
                }
            }
        }
    }

    fn node_hears(&mut self, node: &NodeId, stamp: &CommandStamp, item: ToNode) -> Vec<ContainerReport> {
        let unix = self.now.0;
        let fake = self.nodes.get_mut(node).expect("commands go to nodes that joined");
        if fake.session.as_ref() != Some(stamp) {
            return vec![];
        }
        match item {
            ToNode::Start(start) => fake.start(*start, unix),
            ToNode::Stop { container, cause, .. } => {
                fake.stops.insert(container);
                if fake.stubborn { vec![] } else { fake.end(container, cause) }
            }
            ToNode::Forget { container } => {
                let gone = fake.containers.remove(&container);
                assert!(
                    gone.is_none_or(|report| report.state.is_exited()),
                    "{container} is forgotten while it runs"
                );
                fake.forgotten.push(container);
                vec![]
            }
            ToNode::AmAddress { app, attempt, address } => {
                fake.addresses.push((app, attempt, address));
                vec![]
            }
            ToNode::BeatAck { .. } | ToNode::Purge { .. } => vec![],
        }
    }

    /// A container ends on its node, and the node says so if it can.
    pub fn exit(&mut self, id: ContainerId, cause: ExitCause) {
        let holder = self.nodes.iter().find(|(_, fake)| fake.containers.contains_key(&id));
        let node = holder.map(|(node, _)| node.clone()).expect("some node runs it");
        let fake = self.nodes.get_mut(&node).expect("just found");
        let reports = fake.end(id, cause);
        let session = fake.session.as_ref().map(|stamp| stamp.session);
        if let Some(session) = session {
            for report in reports {
                self.apply(Event::NodeItem {
                    node: node.clone(),
                    session,
                    item: FromNode::Container(report),
                });
            }
        }
    }

    /// Time passes in beats; connected nodes and the masters named beat.
    pub fn pass(&mut self, ms: u64, beating_masters: &[&AppId]) {
        let end = self.now.plus(ms);
        while self.now < end {
            self.now = self.now.plus(100.min(end.since(self.now)));
            if self.now.0.is_multiple_of(500) {
                let nodes: Vec<(NodeId, u64)> = self
                    .nodes
                    .iter()
                    .filter_map(|(id, fake)| Some((id.clone(), fake.session.as_ref()?.session)))
                    .collect();
                for (node, session) in nodes {
                    let item = FromNode::Beat(NodeBeat { sent_at_ms: self.now.0, unhealthy: None });
                    self.apply(Event::NodeItem { node, session, item });
                }
                for app in beating_masters {
                    self.say(app, FromAm::Beat { sent_at_ms: 0 });
                }
            }
            self.settle();
        }
    }

    pub fn submit(&mut self, spec: JobSpec) -> Result<AppId, Denied> {
        self.submit_as(spec, false)
    }

    pub fn submit_as(&mut self, spec: JobSpec, replace: bool) -> Result<AppId, Denied> {
        self.submissions += 1;
        let submit = Submit {
            client_id: format!("client {}", self.submissions),
            spec,
            replace,
            app_master: Artefact { name: "am".into(), digest: Digest("cd".into()), bytes: 4, from: None },
            token: "secret".into(),
            secrets: Default::default(),
        };
        let outcome = self.try_apply(Event::Submit(Box::new(submit)))?;
        self.settle();
        match outcome {
            Outcome::App(app) => Ok(app),
            other => panic!("a submission is answered with an application, not {other:?}"),
        }
    }

    /// The application's current master container, where it runs.
    pub fn master_container(&self, app: &AppId) -> Option<(NodeId, ContainerReport)> {
        let master = self.store.get(app)?.master.clone()?;
        let report = self.nodes.get(&master.node)?.containers.get(&master.container)?;
        Some((master.node, report.clone()))
    }

    /// Its current master says Hello.
    pub fn register(&mut self, app: &AppId, asks: Vec<Ask>) -> AmWelcome {
        self.try_register(app, asks).expect("the current master is welcome")
    }

    pub fn try_register(&mut self, app: &AppId, asks: Vec<Ask>) -> Result<AmWelcome, Denied> {
        let (_, report) = self.master_container(app).expect("its container runs");
        let Role::AppMaster { attempt } = report.role else { panic!("masters have that role") };
        let address = format!("am:{attempt}");
        let hello = AmHello { app: app.clone(), attempt, container: report.id, address, asks };
        let mut out = vec![];
        let outcome = self.core.apply(self.now, Event::AmHello(Box::new(hello)), &mut out)?;
        let Outcome::AmWelcome { session, welcome } = outcome else {
            panic!("a Hello is answered with a Welcome")
        };
        let master = self.masters.entry(app.clone()).or_default();
        *master = FakeMaster {
            session: Some(session),
            container: report.id,
            attempt,
            heard: vec![],
            welcome: Some((*welcome).clone()),
        };
        self.run(out);
        self.settle();
        Ok(*welcome)
    }

    pub fn say(&mut self, app: &AppId, item: FromAm) {
        if let Some(session) = self.masters.get(app).and_then(|master| master.session) {
            self.apply(Event::AmItem { app: app.clone(), session, item });
        }
    }

    /// Submits a job of so many containers, registers its master, asks, and returns the containers by slot.
    pub fn running_job(&mut self, name: &str, containers: u32) -> (AppId, Vec<ContainerId>) {
        let app = self.submit(spec(name, containers)).expect("no such job is live");
        self.register(&app, vec![]);
        for slot in 0..containers {
            self.say(&app, FromAm::Ask(ask(request(1, slot, 1))));
        }
        let ids =
            (0..containers).map(|slot| self.container_of(&app, slot).expect("it is placed").0).collect();
        (app, ids)
    }

    /// The newest container of a slot that runs, and its node, by the nodes' word.
    pub fn container_of(&self, app: &AppId, slot: u32) -> Option<(ContainerId, NodeId)> {
        let mut found = None;
        for (node, fake) in &self.nodes {
            for report in fake.containers.values().filter(|it| it.app == *app && !it.state.is_exited()) {
                if matches!(report.role, Role::Worker { request } if request.slot == slot) {
                    found = found.max(Some((report.id, node.clone())));
                }
            }
        }
        found
    }

    /// The resource manager dies and a new one starts over the store; every session is gone.
    pub fn restart(&mut self) {
        self.epoch += 1;
        let stored = Stored {
            apps: self.store.values().cloned().collect(),
            nodes: self.node_store.values().cloned().collect(),
        };
        self.core = RmCore::new(self.config.clone(), Epoch(self.epoch), self.now, stored);
        for fake in self.nodes.values_mut() {
            fake.session = None;
        }
        for master in self.masters.values_mut() {
            master.session = None;
        }
        self.core.check().expect("invariants hold after recovery");
        self.settle();
    }

    pub fn report(&self, app: &AppId) -> AppReport {
        let view = self.core.view(self.now);
        view.apps.into_iter().find(|it| it.app == *app).expect("it is remembered")
    }

    pub fn node_report(&self, node: &str) -> NodeReport {
        let view = self.core.view(self.now);
        view.cluster.nodes.into_iter().find(|it| it.node.0 == node).expect("it joined")
    }

    pub fn heard(&self, app: &AppId) -> &[ToAm] {
        self.masters.get(app).map_or(&[], |master| &master.heard)
    }

    pub fn starts(&self) -> BTreeMap<ContainerId, u32> {
        self.nodes.values().flat_map(|fake| fake.starts.clone()).collect()
    }
}

impl FakeNode {
    fn start(&mut self, start: StartContainer, unix: u64) -> Vec<ContainerReport> {
        if let Some(known) = self.containers.get(&start.id) {
            return vec![known.clone()];
        }
        *self.starts.entry(start.id).or_default() += 1;
        let state = match self.launch_failure.clone() {
            Some(reason) => ContainerState::Exited { exit: ExitCause::LaunchFailed { reason } },
            None => ContainerState::Running,
        };
        let report = ContainerReport {
            id: start.id,
            app: start.app,
            job: start.job,
            role: start.role,
            resource: start.resource,
            state,
            pid: Some(100),
            started_unix_ms: Some(unix),
            ended_unix_ms: None,
        };
        self.containers.insert(start.id, report.clone());
        vec![report]
    }

    fn end(&mut self, id: ContainerId, cause: ExitCause) -> Vec<ContainerReport> {
        let Some(report) = self.containers.get_mut(&id) else { return vec![] };
        if !report.state.is_exited() {
            report.state = ContainerState::Exited { exit: cause };
        }
        vec![report.clone()]
    }
}
