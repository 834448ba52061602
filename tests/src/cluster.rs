//! A cluster of real processes on one machine: a resource manager and nodes that are told apart by their hosts.
//! Everything it started is gone when it is dropped: processes, containers' children, cgroups, files.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use types::{
    AppContainer, AppReport, ClusterReport, ContainerPhase, ContainerState, NodeStateName, SlotStatus,
};

use crate::brokers::repository;
use crate::job::Job;
use crate::network::Network;
use crate::wait::{Pending, check, wait_until};
use crate::{built, process};

/// For what should take a second or a few; generous, for machines that do other things too.
pub const SOON: Duration = Duration::from_secs(45);
/// The folder that every container can write into, below a cluster's.
const SHARED: &str = "shared";

/// A program of this build.
///
/// # Panics
/// It was not built, or something that it is built of was changed since.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("this process has a path");
    let found = exe.ancestors().skip(1).take(3).map(|folder| folder.join(name)).find(|path| path.is_file());
    built::fresh(found.unwrap_or_else(|| name.into()))
}

/// One node's flags.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// `--host`, and the node's id.
    pub host: String,
    /// `--rack`.
    pub rack: String,
    /// `--memory`.
    pub memory: String,
    /// `--cpu`.
    pub cpu: String,
}

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The nodes.
    pub nodes: Vec<NodeSettings>,
    /// Further flags of the resource manager.
    pub rm_flags: Vec<String>,
    /// RUST_LOG of every process.
    pub log: String,
    /// Each node is in a namespace of its own, and this process in the hub; else all are where this process is.
    pub network: Option<Arc<Network>>,
}

impl Settings {
    /// `count` nodes on 127.0.0.1, .2, … in racks r1, r2, …, each with 2 GiB and 2 CPUs.
    #[must_use]
    pub fn nodes(count: usize) -> Settings {
        let node = |n: usize| NodeSettings {
            host: format!("127.0.0.{n}"),
            rack: format!("r{n}"),
            memory: "2GiB".into(),
            cpu: "2".into(),
        };
        Settings {
            nodes: (1..=count).map(node).collect(),
            rm_flags: Vec::new(),
            log: "info".into(),
            network: None,
        }
    }

    /// A node of `memory` for each place of `network`, for a test that is inside its hub.
    #[must_use]
    pub fn nodes_on(network: &Arc<Network>, memory: &str) -> Settings {
        let mut settings = Settings::nodes(network.places());
        for (place, node) in settings.nodes.iter_mut().enumerate() {
            node.host = Network::node_host(place);
            node.memory = memory.into();
            // Not the rack of a broker: no node is nearer to one than another.
            node.rack = format!("n{}", place + 1);
        }
        settings.network = Some(Arc::clone(network));
        settings
    }
}

struct Node {
    settings: NodeSettings,
    root: PathBuf,
    process: Option<Child>,
}

/// The cluster.
pub struct Cluster {
    folder: PathBuf,
    /// Waits for the end of this process, or of the cluster before, and cleans up.
    sweeper: Child,
    cgroup: String,
    settings: Settings,
    rm: Option<Child>,
    grpc: String,
    web: String,
    /// Needed where listeners are not on loopback.
    token: Option<PathBuf>,
    nodes: Vec<Node>,
}

impl Cluster {
    /// `count` nodes with the defaults of [`Settings::nodes`], all of them active.
    #[must_use]
    pub fn start(count: usize) -> Cluster {
        Cluster::with(Settings::nodes(count))
    }

    /// Starts what `settings` say and waits until every node is active.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    pub fn with(settings: Settings) -> Cluster {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let cgroup = format!("samza-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder =
            tempfile::Builder::new().prefix("samza-cluster.").tempdir().expect("a temporary folder").keep();
        // Containers may run as another user than the test.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&folder, readable).expect("our own folder");
        let shared = folder.join(SHARED);
        std::fs::create_dir(&shared).expect("our own folder");
        // Whatever the umask.
        let writable = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(shared, writable).expect("our own folder");
        let mut sweeper = Command::new("setsid")
            .arg(repository().join("tests/sweep.sh"))
            .stdin(Stdio::piped())
            .spawn()
            .expect("tests/sweep.sh runs");
        let orders = sweeper.stdin.as_mut().expect("piped");
        writeln!(orders, "{}\n{cgroup}", folder.display()).expect("the sweeper reads");
        let rm_host = settings.network.as_ref().map_or("127.0.0.1".into(), |_| Network::rm_host());
        let token = settings.network.as_ref().map(|_| folder.join("token"));
        if let Some(token) = &token {
            std::fs::write(token, format!("{cgroup}\n")).expect("our own folder");
        }
        let mut cluster = Cluster {
            cgroup,
            sweeper,
            rm: None,
            grpc: format!("{rm_host}:0"),
            token,
            web: "127.0.0.1:0".into(),
            nodes: Vec::new(),
            settings,
            folder,
        };
        cluster.start_rm();
        for node in cluster.settings.nodes.clone() {
            cluster.launch_node(node);
        }
        cluster.wait_active();
        cluster
    }

    fn launch_node(&mut self, settings: NodeSettings) {
        let place = self.nodes.len();
        let root = self.folder.join(format!("node{}", place + 1));
        self.nodes.push(Node { settings, root, process: None });
        self.start_nm(place);
    }

    fn wait_active(&self) {
        let all = self.nodes.len();
        self.wait("every node active", SOON, |cluster| {
            let active = cluster.nodes()?.nodes.iter().filter(|n| n.state == NodeStateName::Active).count();
            check(active == all, || format!("{active} of {all} active"))
        });
    }

    /// Adds a node and waits until it is active.
    ///
    /// # Panics
    /// It does not come up.
    pub fn add_node(&mut self, settings: NodeSettings) {
        let host = settings.host.clone();
        self.launch_node(settings);
        self.wait("the new node active", SOON, |cluster| {
            let nodes = cluster.nodes()?.nodes;
            let active = nodes.iter().any(|n| n.node.0 == host && n.state == NodeStateName::Active);
            check(active, || format!("{nodes:?}"))
        });
    }

    fn log(&self, name: &str) -> File {
        let path = self.folder.join(format!("{name}.log"));
        OpenOptions::new().create(true).append(true).open(path).expect("a log file")
    }

    fn spawn(&self, name: &str, command: &mut Command) -> Child {
        if let Some(token) = &self.token {
            command.arg("--token-file").arg(token);
        }
        command
            .env("RUST_LOG", &self.settings.log)
            .stdin(Stdio::null())
            .stdout(self.log(name))
            .stderr(self.log(name))
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Starts the resource manager, on the addresses it had if it ran before.
    ///
    /// # Panics
    /// It does not say where it listens.
    pub fn start_rm(&mut self) {
        let data = self.folder.join("rm");
        let addresses = data.join("addresses.json");
        let _ = std::fs::remove_file(&addresses);
        let mut command = Command::new(program("resource-manager"));
        command.args(["--listen", &self.grpc, "--http", &self.web, "--data"]).arg(&data);
        command.args(&self.settings.rm_flags);
        self.rm = Some(self.spawn("rm", &mut command));
        let text = wait_until(
            "the resource manager's addresses",
            SOON,
            || Ok(std::fs::read_to_string(&addresses)?),
            || self.diagnosis(),
        );
        let found: serde_json::Value = serde_json::from_str(&text).expect("addresses.json is JSON");
        let address = |key: &str| found[key].as_str().expect("addresses.json names both").to_owned();
        (self.grpc, self.web) = (address("grpc"), address("http"));
    }

    /// A folder that every container can write into.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.folder.join(SHARED)
    }

    /// SIGKILLs the resource manager.
    pub fn kill_rm(&mut self) {
        if let Some(mut rm) = self.rm.take() {
            let _ = rm.kill();
            let _ = rm.wait();
        }
    }

    /// Starts the node manager of node `place` (from 0), in the root folder that it had.
    pub fn start_nm(&mut self, place: usize) {
        let Node { settings, root, .. } = &self.nodes[place];
        let mut command = Command::new(program("nm"));
        command.args(["--rm", &self.grpc, "--host", &settings.host, "--node-id", &settings.host]);
        command.args(["--rack", &settings.rack, "--memory", &settings.memory, "--cpu", &settings.cpu]);
        command.args(["--cgroup-parent", &format!("{}/node{}", self.cgroup, place + 1), "--root"]).arg(root);
        let name = format!("nm{}", place + 1);
        let child = match &self.settings.network {
            Some(network) => network.node(place).inside(|| self.spawn(&name, &mut command)),
            None => self.spawn(&name, &mut command),
        };
        self.nodes[place].process = Some(child);
    }

    /// SIGKILLs the node manager of node `place`; its shims and containers live on.
    pub fn kill_nm(&mut self, place: usize) {
        if let Some(mut nm) = self.nodes[place].process.take() {
            let _ = nm.kill();
            let _ = nm.wait();
        }
    }

    /// The node manager's process of node `place`.
    ///
    /// # Panics
    /// It is not running.
    #[must_use]
    pub fn nm_pid(&self, place: usize) -> u32 {
        self.nodes[place].process.as_ref().expect("the nm runs").id()
    }

    /// Makes node `place` vanish as a machine that lost its power: its manager, shims and containers at once.
    pub fn kill_node(&mut self, place: usize) {
        self.kill_nm(place);
        process::kill_all_naming(&self.nodes[place].root.to_string_lossy());
    }

    /// Everything that works for node `place` except its manager: shims and containers.
    #[must_use]
    pub fn node_processes(&self, place: usize) -> Vec<process::Seen> {
        let manager = self.nodes[place].process.as_ref().map(Child::id);
        let mut found = process::naming(&self.nodes[place].root.to_string_lossy());
        found.retain(|seen| Some(seen.pid) != manager);
        found
    }

    /// The place of the node whose id is `node`.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn place_of(&self, node: &types::NodeId) -> usize {
        self.nodes.iter().position(|n| n.settings.host == node.0).expect("a node of this cluster")
    }

    /// The root folder of node `place`.
    #[must_use]
    pub fn node_root(&self, place: usize) -> &Path {
        &self.nodes[place].root
    }

    /// A folder for a test's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the resource manager's web UI is (host:port).
    #[must_use]
    pub fn web(&self) -> &str {
        &self.web
    }

    /// Runs one of the client's programs against this cluster.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn client(&self, name: &str, arguments: &[&str]) -> Output {
        self.client_command(name, arguments).output().unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Starts a client that goes on, with what it prints in a file of this name.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn client_into(&self, file: &str, name: &str, arguments: &[&str]) -> Child {
        let output = File::create(self.folder.join(file)).expect("our own folder");
        let mut command = self.client_command(name, arguments);
        command.stdout(output).spawn().unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn client_command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program(name));
        command.args(arguments).env("SAMZA_RM", &self.grpc).env_remove("RUST_LOG").stdin(Stdio::null());
        if let Some(token) = &self.token {
            command.env("SAMZA_TOKEN_FILE", token);
        }
        command
    }

    fn json<T: serde::de::DeserializeOwned>(&self, arguments: &[&str]) -> Result<T, Pending> {
        let output = self.client("samza", &[arguments, &["-o", "json"]].concat());
        if !output.status.success() {
            return Err(Pending(format!("samza {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text)
            .map_err(|e| Pending(format!("samza {arguments:?} printed no such JSON: {e}: {text}")))
    }

    /// The nodes as the resource manager sees them.
    ///
    /// # Errors
    /// It does not answer.
    pub fn nodes(&self) -> Result<ClusterReport, Pending> {
        self.json(&["nodes"])
    }

    /// The newest application of `job` as the resource manager sees it.
    ///
    /// # Errors
    /// It does not answer, or knows none.
    pub fn app(&self, job: &Job) -> Result<AppReport, Pending> {
        self.json(&["status", &job.name])
    }

    /// Submits `job`.
    ///
    /// # Panics
    /// It is refused.
    pub fn submit(&self, job: &Job) {
        let output = self.try_submit(job, &[]);
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.diagnosis());
    }

    /// Submits `job` with further flags, whatever comes of it.
    #[must_use]
    pub fn try_submit(&self, job: &Job, flags: &[&str]) -> Output {
        let path = job.write(&self.folder);
        self.client("samza-submit", &[&[path.to_str().expect("a path in UTF-8")], flags].concat())
    }

    /// Stops `job` in order and waits until it is over.
    ///
    /// # Panics
    /// It does not end.
    pub fn stop(&self, job: &Job) {
        let output = self.client("samza", &["stop", &job.name]);
        assert!(output.status.success(), "samza stop: {}", String::from_utf8_lossy(&output.stderr));
        self.wait("the job over", SOON, |cluster| {
            let app = cluster.app(job)?;
            check(app.state.is_over(), || format!("{:?}: {}", app.state, app.diagnostics))
        });
    }

    /// Waits for `condition` on this cluster; a test that gives up shows the cluster's state and logs.
    #[track_caller]
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Cluster) -> Result<T, Pending>,
    ) -> T {
        wait_until(what, limit, || condition(self), || self.diagnosis())
    }

    /// Waits until every container of `job` processes, and returns its report.
    #[track_caller]
    pub fn wait_running(&self, job: &Job) -> AppReport {
        self.wait(&format!("{} running", job.name), SOON, |cluster| cluster.all_running(job))
    }

    /// The report of `job` once every slot of it is in phase `running`.
    ///
    /// # Errors
    /// Some slot is not.
    pub fn all_running(&self, job: &Job) -> Result<AppReport, Pending> {
        let app = self.app(job)?;
        let status = app.status.clone().ok_or("no status yet")?;
        // The master's report may be older than the manager's list: both must name the same container.
        let running = |slot: &&SlotStatus| {
            let same = worker(&app, slot.slot).is_ok_and(|worker| Some(worker.container) == slot.container);
            same && slot.status.phase == ContainerPhase::Running
        };
        let count = status.slots.iter().filter(running).count();
        let all = job.containers as usize;
        check(count == all, || {
            let slots = serde_json::to_string(&status.slots).unwrap_or_default();
            format!("{count} of {all} running, {:?} {}: {slots}", app.state, app.diagnostics)
        })?;
        Ok(app)
    }

    /// The cgroup folders that belong to this cluster, in every hierarchy; the parents that the managers keep too.
    #[must_use]
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mounts =
            std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for mount in mounts.chain([PathBuf::from("/sys/fs/cgroup")]) {
            collect_folders(&mount.join(&self.cgroup), &mut found);
        }
        found
    }

    /// The resource manager's view and the ends of all logs, for the message of a test that gives up.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        for arguments in [["nodes"], ["list"]] {
            let output = self.client("samza", &arguments);
            let _ = writeln!(
                text,
                "--- samza {arguments:?}\n{}",
                String::from_utf8_lossy(&output.stdout).trim_end()
            );
            let _ = writeln!(text, "{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        let mut logs = Vec::new();
        collect_logs(&self.folder, &mut logs);
        logs.sort();
        for log in logs {
            let bytes = std::fs::read(&log).unwrap_or_default();
            let content = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = content.lines().collect();
            if !lines.is_empty() {
                let name = log.strip_prefix(&self.folder).unwrap_or(&log).display();
                let tail = lines[lines.len().saturating_sub(25)..].join("\n");
                let _ = writeln!(text, "--- {name} ({} lines)\n{tail}", lines.len());
            }
        }
        text
    }
}

/// The running container of slot `slot`.
///
/// # Errors
/// It has none.
pub fn worker(app: &AppReport, slot: u32) -> Result<&AppContainer, Pending> {
    let running =
        |c: &&AppContainer| c.slot == Some(slot) && c.state == ContainerState::Running && c.pid.is_some();
    app.containers
        .iter()
        .find(running)
        .ok_or_else(|| Pending(format!("slot {slot} has no running container")))
}

/// The running application master.
///
/// # Errors
/// There is none.
pub fn master(app: &AppReport) -> Result<&AppContainer, Pending> {
    let running =
        |c: &&AppContainer| c.slot.is_none() && c.state == ContainerState::Running && c.pid.is_some();
    app.containers.iter().find(running).ok_or_else(|| Pending("no running application master".into()))
}

/// The process of the running container of slot `slot`.
///
/// # Panics
/// It has none.
#[must_use]
pub fn pid_of(app: &AppReport, slot: u32) -> u32 {
    worker(app, slot).ok().and_then(|container| container.pid).expect("a running container has a process")
}

/// The status of slot `slot`.
///
/// # Panics
/// The application master told none.
#[must_use]
pub fn slot_of(app: &AppReport, slot: u32) -> &SlotStatus {
    let slots = &app.status.as_ref().expect("a status").slots;
    slots.iter().find(|status| status.slot == slot).expect("a slot of the job")
}

/// The slot of task `name`.
///
/// # Panics
/// No slot has it.
#[must_use]
pub fn slot_with(app: &AppReport, name: &str) -> u32 {
    let slots = &app.status.as_ref().expect("a status").slots;
    let found = slots.iter().find(|slot| slot.tasks.iter().any(|task| task.0 == name));
    found.unwrap_or_else(|| panic!("no slot has {name}")).slot
}

fn collect_folders(folder: &Path, found: &mut Vec<PathBuf>) {
    if folder.is_dir() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                collect_folders(&entry.path(), found);
            }
        }
        found.push(folder.to_path_buf());
    }
}

fn collect_logs(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_logs(&path, found);
        } else if name == "stdout" || name == "stderr" || name.to_string_lossy().ends_with(".log") {
            found.push(path);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Reaped here; everything else is the sweeper's.
        self.kill_rm();
        for place in 0..self.nodes.len() {
            self.kill_nm(place);
        }
        drop(self.sweeper.stdin.take());
        let _ = self.sweeper.wait();
    }
}
