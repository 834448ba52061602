//! How many placements a second one core makes: `cargo run -p rm-core --example placements`.
//!
//! 5,000 nodes of 64 cores in 100 racks; containers asked for in waves of 1,000, with and without a preferred
//! host, and ended again. Prints placements per second of the core alone.

use std::collections::BTreeMap;
use std::time::Instant;

use rm_core::{Command, Config, RmCore, Stored, Submit};
use types::{
    AmHello, AppId, Artefact, Ask, ContainerId, ContainerReport, ContainerState, Digest, Epoch, ExitCause,
    FromAm, FromNode, NodeHello, NodeId, NodeIncarnation, Preference, RequestId, Resource, Role, Spread,
    Timestamp, ToNode,
};

const NODES: u32 = 5_000;
const WAVE: u32 = 1_000;
const WAVES: u32 = 20;

fn main() {
    for preferred in [false, true] {
        let (placed, seconds) = run(preferred);
        let what = if preferred { "with a preferred host" } else { "anywhere" };
        println!("{what}: {:.0} placements/s over {NODES} nodes", f64::from(placed) / seconds);
    }
}

struct Bench {
    core: RmCore,
    out: Vec<Command>,
    sessions: BTreeMap<NodeId, u64>,
    now: Timestamp,
}

fn run(preferred: bool) -> (u32, f64) {
    let now = Timestamp(1_000);
    let core = RmCore::new(Config::default(), Epoch(1), now, Stored::default());
    let mut bench = Bench { core, out: Vec::new(), sessions: BTreeMap::new(), now };
    for n in 0..NODES {
        bench.join(n);
    }
    let (app, session) = bench.start_job();
    let mut seconds = 0.0;
    for wave in 0..WAVES {
        let begin = Instant::now();
        for slot in 0..WAVE {
            let item = FromAm::Ask(ask(slot, wave + 1, preferred));
            bench.core.am_item(now, &app, session, item, &mut bench.out).expect("its session is current");
        }
        bench.core.handle_deadline(now, &mut bench.out);
        seconds += begin.elapsed().as_secs_f64();
        bench.end_all(&app, session);
    }
    (WAVE * WAVES, seconds)
}

impl Bench {
    fn join(&mut self, n: u32) {
        let node = NodeId(format!("node-{n}"));
        let hello = NodeHello {
            node: node.clone(),
            incarnation: NodeIncarnation { boot_id: n.to_string(), state_id: n.to_string() },
            total: Resource { memory_bytes: 256 << 30, cpu_millis: 64_000 },
            hosts: vec![format!("host-{n}")],
            rack: format!("rack-{}", n % 100),
            labels: BTreeMap::new(),
            address: String::new(),
            containers: vec![],
            state: vec![],
            lease_lapsed: false,
            version: String::new(),
        };
        let welcome = self.core.node_hello(self.now, hello, &mut self.out).expect("it is new");
        self.sessions.insert(node, welcome.session);
        self.out.clear();
    }

    fn start_job(&mut self) -> (AppId, u64) {
        let spec = serde_json::from_str(include_str!("job.json")).expect("the example's job is valid");
        let submit = Submit {
            client_id: "bench".into(),
            spec,
            replace: false,
            app_master: Artefact { name: "am".into(), digest: Digest(String::new()), bytes: 0, from: None },
            token: String::new(),
            secrets: Default::default(),
        };
        let app = self.core.submit(self.now, submit, &mut self.out).expect("it is the first");
        self.core.handle_deadline(self.now, &mut self.out);
        let master = self.starts().pop().expect("the master is placed").1;
        let hello = AmHello {
            app: app.clone(),
            attempt: 1,
            container: master.id,
            address: String::new(),
            asks: vec![],
        };
        let (session, _) = self.core.am_hello(self.now, hello, &mut self.out).expect("it is current");
        (app, session)
    }

    /// Takes the Starts out of what was commanded.
    fn starts(&mut self) -> Vec<(NodeId, types::StartContainer)> {
        let commands = std::mem::take(&mut self.out).into_iter();
        commands
            .filter_map(|command| match command {
                Command::ToNode { node, item: ToNode::Start(start), .. } => Some((node, *start)),
                _ => None,
            })
            .collect()
    }

    fn end_all(&mut self, app: &AppId, session: u64) {
        let starts = self.starts();
        assert_eq!(starts.len(), WAVE as usize, "every ask is answered");
        for (node, start) in starts {
            let id: ContainerId = start.id;
            let report = ContainerReport {
                id,
                app: start.app,
                job: start.job,
                role: start.role,
                resource: start.resource,
                state: ContainerState::Exited { exit: ExitCause::Success },
                pid: None,
                started_unix_ms: None,
                ended_unix_ms: None,
            };
            assert!(matches!(start.role, Role::Worker { .. }));
            let at = self.sessions[&node];
            let item = FromNode::Container(report);
            self.core.node_item(self.now, &node, at, item, &mut self.out).expect("its session is current");
            self.core.am_item(self.now, app, session, FromAm::AckExit(id), &mut self.out).expect("current");
        }
        self.core.handle_deadline(self.now, &mut self.out);
        self.out.clear();
    }
}

fn ask(slot: u32, try_no: u32, preferred: bool) -> Ask {
    let host = format!("host-{}", (slot * 7 + try_no * 13) % NODES);
    let preference =
        Preference { host, aliases: vec![], rack: String::new(), weight: 1, reason: "local state".into() };
    Ask {
        request: RequestId { attempt: 1, slot, try_no },
        resource: Resource { memory_bytes: 1 << 30, cpu_millis: 500 },
        preferences: if preferred { vec![preference] } else { vec![] },
        wait_ms: 1_000,
        rack_wait_ms: 1_000,
        avoid: vec![],
        spread: Spread::None,
        labels: BTreeMap::new(),
    }
}
