//! A resource manager for tests that answers to one node, and the real `nm` on a folder and a cgroup of its own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::{Incoming, Tx, pb};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use types::{
    AppId, Artefact, CommandStamp, ContainerId, ContainerReport, ContainerState, ContainerUsage, Digest,
    Epoch, ExitCause, FromNode, Incarnation, JobId, NodeHello, NodeWelcome, OnLeaseLoss, RequestId, Resource,
    Role, StartContainer, StateEntry, ToNode,
};

pub type NodeIncoming = Incoming<NodeHello, NodeWelcome, (CommandStamp, ToNode), FromNode>;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const EPOCH: u64 = 1_763_800_000_000;
/// A user without rights.
pub const NOBODY: u32 = 65_534;

/// A resource manager that does what the test says.
pub struct FakeRm {
    pub addr: String,
    pub files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    pub fetches: Arc<AtomicU32>,
    /// How many of the next fetches never come to an end.
    pub hangs: Arc<AtomicU32>,
    /// While it is held no artefact is sent.
    pub gate: Arc<tokio::sync::Mutex<()>>,
    /// How often nodes are to beat: more often than in earnest, so that tests wait less.
    pub beat_ms: u64,
    incoming: mpsc::Receiver<NodeIncoming>,
    sessions: u64,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for FakeRm {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FakeRm {
    pub async fn start() -> FakeRm {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (to, incoming) = mpsc::channel(4);
        let files = Arc::new(Mutex::new(BTreeMap::new()));
        let fetches = Arc::new(AtomicU32::new(0));
        let hangs = Arc::new(AtomicU32::new(0));
        let gate = Arc::new(tokio::sync::Mutex::new(()));
        let store = Store {
            files: files.clone(),
            fetches: fetches.clone(),
            hangs: hangs.clone(),
            gate: gate.clone(),
        };
        let server = tonic::transport::Server::builder()
            .add_service(proto::node_service(to))
            .add_service(proto::artefact_service(store))
            .serve_with_incoming(
                TcpListenerStream::new(listener)
                    .map(|stream| stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream))),
            );
        let server = tokio::spawn(async move { server.await.unwrap() });
        FakeRm { addr, files, fetches, hangs, gate, beat_ms: 100, incoming, sessions: 0, server }
    }

    /// Puts a file into the store.
    pub fn upload(&self, name: &str, content: &[u8]) -> Artefact {
        let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        self.files.lock().unwrap().insert(digest.clone(), content.to_vec());
        Artefact { name: name.into(), digest: Digest(digest), bytes: content.len() as u64, from: None }
    }

    /// Waits for the node's next Hello and accepts it, with a lease that outlasts what an emulated machine may be busy.
    pub async fn join(&mut self) -> Session {
        self.join_with_lease(60_000).await
    }

    pub async fn join_with_lease(&mut self, lease_ms: u64) -> Session {
        let incoming =
            tokio::time::timeout(PATIENCE, self.incoming.recv()).await.expect("no Hello came").unwrap();
        self.sessions += 1;
        let hello = incoming.hello.clone();
        let stamp = CommandStamp {
            epoch: Epoch(EPOCH),
            session: self.sessions,
            incarnation: hello.incarnation.clone(),
        };
        let welcome =
            NodeWelcome { epoch: Epoch(EPOCH), session: self.sessions, lease_ms, beat_ms: self.beat_ms };
        let (tx, mut rx) = incoming.accept(welcome);
        let (reports, received) = mpsc::unbounded_channel();
        let seen = Arc::new(Mutex::new(Seen { state: hello.state.clone(), ..Seen::default() }));
        let (acks, acking, noting) = (tx.clone(), stamp.clone(), seen.clone());
        tokio::spawn(async move {
            while let Some(item) = rx.recv().await {
                match item {
                    FromNode::Beat(beat) if !noting.lock().unwrap().deaf => {
                        let ack = ToNode::BeatAck { sent_at_ms: beat.sent_at_ms };
                        let _ = acks.send((acking.clone(), ack));
                    }
                    FromNode::Beat(_) => {}
                    FromNode::Container(report) => drop(reports.send(report)),
                    FromNode::State(state) => noting.lock().unwrap().state = state,
                    FromNode::Usage(usage) => noting.lock().unwrap().usage = usage,
                }
            }
        });
        let last = hello.containers.iter().map(|report| (report.id, report.clone())).collect();
        Session { hello, stamp, tx, reports: received, seen, last }
    }
}

#[derive(Default)]
pub struct Seen {
    pub state: Vec<StateEntry>,
    pub usage: Vec<ContainerUsage>,
    /// Beats are not acknowledged any more.
    pub deaf: bool,
}

/// One session with the node.
pub struct Session {
    pub hello: NodeHello,
    pub stamp: CommandStamp,
    tx: Tx<(CommandStamp, ToNode)>,
    reports: mpsc::UnboundedReceiver<ContainerReport>,
    pub seen: Arc<Mutex<Seen>>,
    /// The newest report of each, in the Hello or since.
    last: BTreeMap<ContainerId, ContainerReport>,
}

impl Session {
    pub fn send(&self, item: ToNode) {
        assert!(self.offer(item), "the node is gone");
    }

    /// Whether the node was still there to be told.
    pub fn offer(&self, item: ToNode) -> bool {
        self.tx.send((self.stamp.clone(), item)).is_ok()
    }

    pub fn start(&self, start: &StartContainer) {
        self.send(ToNode::Start(Box::new(start.clone())));
    }

    /// A start under another stamp than this session's.
    pub fn start_as(&self, stamp: &CommandStamp, start: &StartContainer) {
        self.tx.send((stamp.clone(), ToNode::Start(Box::new(start.clone())))).unwrap();
    }

    pub fn stop(&self, container: ContainerId, grace_ms: u64) {
        self.send(ToNode::Stop { container, grace_ms, cause: ExitCause::KilledByAm });
    }

    /// The next report about `id`.
    pub async fn report(&mut self, id: ContainerId) -> ContainerReport {
        loop {
            let report = tokio::time::timeout(PATIENCE, self.reports.recv())
                .await
                .unwrap_or_else(|_| panic!("no report of {id} came; last {:?}", self.last.get(&id)))
                .expect("the session ended");
            self.last.insert(report.id, report.clone());
            if report.id == id {
                return report;
            }
        }
    }

    /// The newest state of `id` that was told so far, in this session or its Hello.
    pub fn state(&mut self, id: ContainerId) -> Option<ContainerState> {
        while let Ok(report) = self.reports.try_recv() {
            self.last.insert(report.id, report);
        }
        self.last.get(&id).map(|report| report.state.clone())
    }

    /// The newest report about `id` that came, else the next. Reports about others are kept.
    async fn newest(&mut self, id: ContainerId, before: &mut bool) -> ContainerReport {
        match self.last.get(&id).filter(|_| !std::mem::replace(before, true)) {
            Some(report) => report.clone(),
            None => self.report(id).await,
        }
    }

    pub async fn running(&mut self, id: ContainerId) -> ContainerReport {
        let mut looked = false;
        loop {
            let report = self.newest(id, &mut looked).await;
            match &report.state {
                ContainerState::Running => return report,
                ContainerState::Exited { exit } => panic!("{id} does not run: {exit}"),
                _ => {}
            }
        }
    }

    pub async fn exit(&mut self, id: ContainerId) -> ExitCause {
        let mut looked = false;
        loop {
            if let ContainerState::Exited { exit } = self.newest(id, &mut looked).await.state {
                return exit;
            }
        }
    }

    /// The exit of one that may be over in the Hello already.
    pub async fn exit_told(&mut self, id: ContainerId) -> ExitCause {
        match self.state(id) {
            Some(ContainerState::Exited { exit }) => exit,
            _ => self.exit(id).await,
        }
    }

    /// Waits for something that arrives aside: state or usage.
    pub async fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.seen.lock().unwrap()) {
            assert!(Instant::now() < deadline, "{what} did not come");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Store {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    fetches: Arc<AtomicU32>,
    hangs: Arc<AtomicU32>,
    gate: Arc<tokio::sync::Mutex<()>>,
}

#[tonic::async_trait]
impl pb::artefact_service_server::ArtefactService for Store {
    type FetchStream = ReceiverStream<Result<pb::ArtefactChunk, Status>>;

    async fn has(&self, _: Request<pb::HasRequest>) -> Result<Response<pb::HasResponse>, Status> {
        Err(Status::unimplemented("not for nodes"))
    }
    async fn upload(
        &self,
        _: Request<Streaming<pb::UploadChunk>>,
    ) -> Result<Response<pb::UploadResponse>, Status> {
        Err(Status::unimplemented("not for nodes"))
    }
    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let digest = request.into_inner().digest;
        let content = self.files.lock().unwrap().get(&digest).cloned();
        let content = content.ok_or_else(|| Status::not_found(format!("no artefact {digest}")))?;
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let (tx, rx) = mpsc::channel(4);
        let one_less = |left: u32| left.checked_sub(1);
        let hangs = self.hangs.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok();
        let gate = self.gate.clone();
        tokio::spawn(async move {
            if hangs {
                return tx.closed().await;
            }
            drop(gate.lock().await);
            for chunk in content.chunks(64 << 10) {
                let _ = tx.send(Ok(pb::ArtefactChunk { chunk: chunk.to_vec().into() })).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

/// An `nm` with a folder and a cgroup of its own; the folder and cgroup outlive restarts.
pub struct Node {
    pub root: tempfile::TempDir,
    pub parent: String,
    args: Vec<String>,
    program: PathBuf,
    /// Whom nm runs as, if not as the test.
    uid: Option<u32>,
    /// What nm's environment has besides the test's own.
    pub env: Vec<(&'static str, String)>,
    /// At which point of its work nm kills itself, if at any.
    pub crash_at: Option<String>,
    nm: Option<Child>,
}

/// Where groups are: by controller on v1, in one place on v2.
const CONTROLLERS: [&str; 7] = ["cpu", "cpuacct", "freezer", "memory", "pids", "blkio", ""];

/// Whether this machine has cgroup v2 alone.
pub fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

static NODES: AtomicU64 = AtomicU64::new(0);

impl Node {
    pub fn start(rm: &FakeRm, extra: &[&str]) -> Node {
        let mut node = Node::new(rm, extra);
        node.run();
        node
    }

    /// One whose nm kills itself at a point of its work.
    pub fn armed(rm: &FakeRm, point: &str) -> Node {
        let mut node = Node::new(rm, &[]);
        node.crash_at = Some(point.to_owned());
        node.run();
        node
    }

    fn new(rm: &FakeRm, extra: &[&str]) -> Node {
        Node::below("/var/tmp".as_ref(), rm, extra)
    }

    /// One whose folder is below `base`, and that does not run yet.
    pub fn below(base: &Path, rm: &FakeRm, extra: &[&str]) -> Node {
        install_shim();
        // Not in /tmp, which a sandbox hides.
        let root = tempfile::Builder::new().prefix("samza-nm-").tempdir_in(base).unwrap();
        // Others must get through to what is theirs, as in /var/lib.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let parent = format!("samza-test-{}-{}", std::process::id(), NODES.fetch_add(1, Ordering::SeqCst));
        let mut args: Vec<String> = ["--rm", &rm.addr, "--root", root.path().to_str().unwrap()]
            .into_iter()
            .chain(["--cgroup-parent", &parent, "--host", "127.0.0.1", "--rack", "r1"])
            .chain(extra.iter().copied())
            .map(str::to_owned)
            .collect();
        for (option, value) in [("--memory", "1GiB"), ("--cpu", "2")] {
            if !extra.contains(&option) {
                args.extend([option.to_owned(), value.to_owned()]);
            }
        }
        let program = env!("CARGO_BIN_EXE_nm").into();
        Node { root, parent, args, program, uid: None, env: Vec::new(), crash_at: None, nm: None }
    }

    /// One of an nm that is not root, with programs that it may run.
    pub fn without_root(rm: &FakeRm, uid: u32) -> Node {
        let mut node = Node::new(rm, &["--unlimited"]);
        let root = node.root.path();
        std::os::unix::fs::chown(root, Some(uid), Some(uid)).unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_nm"));
        for name in ["nm", "nm-shim"] {
            let (from, to) = (programs.with_file_name(name), root.join(name));
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).unwrap();
        }
        (node.program, node.uid) = (root.join("nm"), Some(uid));
        node.run();
        node
    }

    /// The next nm is started without these.
    pub fn without(&mut self, args: &[&str]) {
        self.args.retain(|arg| !args.contains(&arg.as_str()));
    }

    /// Starts `nm` (again).
    pub fn run(&mut self) {
        self.run_inside(&[]);
    }

    /// Starts `nm` by a command that runs its arguments.
    pub fn run_inside(&mut self, command: &[&str]) {
        assert!(self.nm.is_none());
        let words = [command, &[self.program.to_str().unwrap()]].concat();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(&self.args)
            .envs(self.env.iter().cloned())
            .stdout(Stdio::null())
            .process_group(0);
        if let Some(point) = &self.crash_at {
            command.env("SAMZA_NM_TEST_CRASH_AT", point);
        }
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        self.nm = Some(command.spawn().unwrap());
    }

    pub fn pid(&self) -> u32 {
        self.nm.as_ref().unwrap().id()
    }

    /// Whether nm has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.nm.as_mut().is_some_and(|nm| nm.try_wait().unwrap().is_some())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut nm = self.nm.take().unwrap();
        nm.kill().unwrap();
        nm.wait().unwrap();
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self) {
        let mut nm = self.nm.take().unwrap();
        signal(nm.id(), rustix::process::Signal::TERM);
        assert!(nm.wait().unwrap().success());
    }

    pub fn work(&self, id: ContainerId) -> PathBuf {
        self.root.path().join("containers").join(id.to_string()).join("work")
    }

    /// What a container was told.
    pub fn given(&self, id: ContainerId) -> PathBuf {
        self.root.path().join("containers").join(id.to_string()).join("given")
    }

    /// What a container wrote into its job's folder of state.
    pub fn in_state(&self, name: &str) -> String {
        fs::read_to_string(self.root.path().join("state/job-1").join(name)).unwrap_or_default()
    }

    /// The process of a container's shim.
    pub fn shim(&self, id: ContainerId) -> u32 {
        let claim = fs::read(self.work(id).parent().unwrap().join("shim.json")).unwrap();
        let claim: serde_json::Value = serde_json::from_slice(&claim).unwrap();
        claim["shim"]["pid"].as_u64().unwrap() as u32
    }

    /// A file of a container's group: by controller and name on v1, by name on v2.
    pub fn cgroup_file(&self, id: ContainerId, v1: (&str, &str), v2: &str) -> PathBuf {
        let (controller, file) = if is_v2() { ("", v2) } else { v1 };
        let group = Path::new("/sys/fs/cgroup").join(controller).join(&self.parent).join("127.0.0.1");
        group.join(id.to_string()).join(file)
    }

    /// CPU time of a container so far.
    pub fn cpu(&self, id: ContainerId) -> Duration {
        let file = self.cgroup_file(id, ("cpuacct", "cpuacct.usage"), "cpu.stat");
        let text = fs::read_to_string(file).unwrap();
        match text.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
            Some(usec) => Duration::from_micros(usec.parse().unwrap()),
            None => Duration::from_nanos(text.trim().parse().unwrap()),
        }
    }

    /// Every cgroup folder of this node's containers.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        Node::groups_below(&format!("{}/127.0.0.1", self.parent))
    }

    /// The cgroups below a path, of every controller.
    pub fn groups_below(path: &str) -> Vec<PathBuf> {
        let groups = CONTROLLERS.map(|controller| Path::new("/sys/fs/cgroup").join(controller).join(path));
        let entries = groups.iter().filter_map(|group| fs::read_dir(group).ok()).flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.nm.is_some() {
            self.kill();
        }
        for cgroup in self.cgroups() {
            for _ in 0..200 {
                let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
                for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                    signal(pid, rustix::process::Signal::KILL);
                }
                if fs::remove_dir(&cgroup).is_ok() || !cgroup.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        for controller in CONTROLLERS {
            let parent = Path::new("/sys/fs/cgroup").join(controller).join(&self.parent);
            let _ = fs::remove_dir(parent.join("127.0.0.1"));
            let _ = fs::remove_dir(parent);
        }
    }
}

/// nm looks for nm-shim beside itself; cargo builds the binaries of other packages only when asked.
pub fn install_shim() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if is_fresh(&Path::new(env!("CARGO_BIN_EXE_nm")).with_file_name("nm-shim")) {
            return;
        }
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "-p", "nm-shim"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success(), "nm-shim cannot be built");
    });
}

/// Whether the binary is younger than the shim's sources: asking cargo waits for every other build.
fn is_fresh(shim: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    // In the virtual machine there are no sources.
    let Ok(sources) = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/src")) else {
        return true;
    };
    let newest = sources.flatten().filter_map(|source| changed(&source.path())).max();
    changed(shim) > newest
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Whether the process exists and is no zombie.
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn id(seq: u64) -> ContainerId {
    ContainerId(Incarnation { epoch: Epoch(EPOCH), seq })
}

/// A container of slot `slot` that runs a shell script.
pub fn shell(seq: u64, slot: u32, script: &str) -> StartContainer {
    StartContainer {
        id: id(seq),
        app: AppId("application_1_1".into()),
        job: JobId { name: "job".into(), id: "1".into() },
        role: Role::Worker { request: RequestId { attempt: 1, slot, try_no: 1 } },
        resource: Resource { memory_bytes: 64 << 20, cpu_millis: 500 },
        artefacts: Vec::new(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        spec: serde_json::from_str(SPEC).unwrap(),
        token: "secret".into(),
        secrets: Default::default(),
        am_address: None,
        on_lease_loss: OnLeaseLoss::Keep,
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
