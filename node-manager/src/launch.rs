//! Starting a container: its folders, its files, its cgroup, its shim.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nm_core::Master;
use nm_shim::files::Sandbox;
use nm_shim::folder::{Folder, Replace};
use nm_shim::{Order, ProcessFile, Reply, User};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use types::{ContainerId, JobId, OnLeaseLoss, Role, StartContainer};

use crate::cgroup::{Cgroups, Limits};
use crate::localize::{copy, open};
use crate::logs::Known;
use crate::points;
use crate::root::{GIVEN, Root, WORK, safe};
use crate::unpack::{Bounds, packed, unpack};
use crate::users::Users;

/// How long a shim may take to start a process.
const SHIM_PATIENCE_S: i64 = 10;
/// How long a container runs without any node manager, ms.
const ABANDON_MS: u64 = 600_000;
/// A container's own `/tmp`, below its folder.
const TMP: &str = "tmp";
/// What a container is told, below the folder of that.
const SECRETS: &str = "secrets";
const JOB: &str = "job.json";
const TOKEN: &str = "token";
/// The file that tells a container where its master is.
const AM_ADDRESS: &str = "am-address";
/// How long a shim that was killed may take to be gone.
const SHIM_DIES: Duration = Duration::from_secs(5);

/// One thing that containers may not see or do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wall {
    /// Nothing is taken away
    None,
    /// No program they run gives them more rights than they have
    NoNewPrivileges,
    /// None of root's capabilities, even as root
    NoCapabilities,
    /// None of the system calls that change the machine or look into it
    Seccomp,
    /// A /tmp and a /dev/shm of their own, which go with the container
    PrivateTmp,
    /// Nothing but their work, their job's state, /dev and a private /tmp can be written to; needs Linux 5.12
    ReadOnlyRoot,
}

impl Wall {
    /// Those that the command line says, or the usual ones.
    pub(crate) fn chosen(told: &[Wall], root: &Path, users: &Users) -> Result<Vec<Wall>> {
        if told.is_empty() {
            return Ok(Wall::usual(root, users));
        }
        ensure!(
            !told.contains(&Wall::None) || told.len() == 1,
            "--sandbox none takes nothing away: it goes with nothing else"
        );
        ensure!(
            !(told.contains(&Wall::PrivateTmp) && root.starts_with("/tmp")),
            "--sandbox private-tmp hides what is in /tmp from containers: put --root {} elsewhere",
            root.display()
        );
        Ok(told.to_vec())
    }

    /// What is taken away unless told: all that a job that keeps to its own does not miss.
    fn usual(root: &Path, users: &Users) -> Vec<Wall> {
        if !rustix::process::geteuid().is_root() {
            return vec![Wall::NoNewPrivileges, Wall::Seccomp];
        }
        if !users.are_others() {
            // Who lets containers be root wants them to be able to do something with it.
            return Vec::new();
        }
        let mut walls = vec![Wall::NoNewPrivileges, Wall::NoCapabilities, Wall::Seccomp];
        if root.starts_with("/tmp") {
            tracing::warn!("--root is in /tmp, so containers share /tmp and /dev/shm with each other");
        } else {
            walls.push(Wall::PrivateTmp);
        }
        walls
    }
}

/// What is the same for every container of this node.
pub(crate) struct Launcher {
    pub(crate) shim: PathBuf,
    pub(crate) users: Users,
    pub(crate) known: Arc<Known>,
    /// What an archive may hold, and for how long it may be unpacked.
    pub(crate) bounds: Bounds,
    /// What containers may not see or do.
    pub(crate) walls: Vec<Wall>,
    /// Processes and threads that a container may have.
    pub(crate) pids: u64,
    /// How much of each of its streams is kept, bytes.
    pub(crate) log_bytes: u64,
    pub(crate) rm: String,
    pub(crate) node_id: String,
    pub(crate) node_host: String,
    pub(crate) rack: String,
}

/// A container that was started.
pub(crate) struct Started {
    pub(crate) shim: Child,
    pub(crate) process: ProcessFile,
}

impl Launcher {
    /// Makes work, log and state folders and the files in them. The artefacts are in the cache. Nobody but nm can enter
    /// the work folder before all is in it.
    pub(crate) fn prepare(&self, root: &Root, start: &StartContainer) -> Result<()> {
        let dir =
            root.containers.make(start.id.to_string().as_str(), 0o711).context("container directory")?;
        let user = self.use_state(root, &start.job).context("state directory")?;
        let work = dir.make(WORK, 0o700).context("work directory")?;
        points::at("work-made");
        for artefact in &start.artefacts {
            let name = artefact.name.as_str();
            // A container that runs as nm could have changed the file since it was looked at.
            let check = !self.users.are_others();
            let given = match packed(name) {
                Some(packed) => open(root, &artefact.digest, check)
                    .and_then(|file| unpack(file, packed, &work, user, self.bounds)),
                None if check => copy(root, &artefact.digest, &work, name),
                None => give(root, &artefact.digest.0, &work, name),
            };
            given.with_context(|| format!("artefact `{name}`"))?;
        }
        self.tell(&dir, start, user)?;
        if self.walls.contains(&Wall::PrivateTmp) {
            own(&dir.make(TMP, 0o700).context("private /tmp")?, user)?;
        }
        // Its shim writes there, for it.
        let logs = root.logs.make(safe(&start.app.0).as_str(), 0o755).context("log directory")?;
        logs.make(start.id.to_string().as_str(), 0o750).context("log directory")?;
        Ok(own(&work, user)?)
    }

    /// Makes the folder of a job's state, and notes its use.
    fn use_state(&self, root: &Root, job: &JobId) -> Result<Option<User>> {
        let alone = root.jobs.alone();
        let user = root.jobs.take(&alone, job, &self.users, || root.owners())?;
        let name = safe(&job.to_string());
        let mut state = root.state.make(name.as_str(), 0o700)?;
        if let Some(user) = user
            && state.own_stat()?.st_uid != user.uid
        {
            ensure!(
                !self.known.is_running(job),
                "containers of the job that a former nm started run here as another user: they must end first"
            );
            if state.entries()?.next().is_some() {
                tracing::warn!(%job, "its state here is of another user's and goes; it is restored from its changelogs");
                root.put_away_state(job)?;
                state = root.state.make(name.as_str(), 0o700)?;
            }
            state.set_mode(0o700)?;
            state.give(user)?;
        }
        Ok(user)
    }

    /// Writes what the container is told, where it can read it and change nothing.
    fn tell(&self, dir: &Folder, start: &StartContainer, user: Option<User>) -> Result<()> {
        let given = dir.make(GIVEN, 0o711)?;
        let private = Replace { mode: 0o400, user, durable: false };
        given.replace(JOB, &serde_json::to_vec(&*start.spec)?, private).context(JOB)?;
        given.replace(TOKEN, start.token.as_bytes(), private).context(TOKEN)?;
        if !start.secrets.0.is_empty() {
            let secrets = given.make(SECRETS, 0o700).context(SECRETS)?;
            for (name, text) in &start.secrets.0 {
                secrets
                    .replace(name, text.as_bytes(), private)
                    .with_context(|| format!("secret `{name}`"))?;
            }
            secrets.set_mode(0o500)?;
            own(&secrets, user)?;
        }
        Ok(())
    }

    /// Replaces the file that tells a container where its master is.
    pub(crate) fn write_master(&self, root: &Root, id: ContainerId, master: &Master) -> io::Result<()> {
        let dir = root.containers.folder(id.to_string().as_str())?;
        // One that a former version started looks for it in its own folder.
        let told = dir.folder(GIVEN).or_else(|_| dir.folder(WORK))?;
        let text = format!("{} {}\n", master.attempt, master.address);
        told.replace(AM_ADDRESS, text.as_bytes(), Replace { mode: 0o444, user: None, durable: false })
    }

    /// Makes the cgroup and runs shim and process. An error means that nothing of it is left.
    pub(crate) fn launch(
        &self,
        root: &Root,
        cgroups: &dyn Cgroups,
        start: &StartContainer,
        master: Option<&Master>,
    ) -> Result<Started> {
        let user = root.jobs.user_of(&start.job, &self.users)?;
        if let Some(master) = master {
            self.write_master(root, start.id, master).context(AM_ADDRESS)?;
        }
        let name = start.id.to_string();
        let begun = Instant::now();
        let result = cgroups.create(&name, &Limits::of(start, self.pids)).and_then(|()| {
            let limited = begun.elapsed();
            points::at("limited");
            let started = self.run_shim(root, cgroups, start, user)?;
            points::at("launched");
            tracing::debug!(container = name, ?limited, running = ?begun.elapsed(), "launched");
            Ok(started)
        });
        if result.is_err() {
            let plan = cgroups.kill_plan(&name);
            plan.kill_all(None, Duration::from_secs(5)).context("cleaning up a failed launch")?;
            crate::cgroup::remove_patiently(cgroups, &name, Duration::from_secs(5))
                .context("cleaning up a failed launch")?;
        }
        result
    }

    fn run_shim(
        &self,
        root: &Root,
        cgroups: &dyn Cgroups,
        start: &StartContainer,
        user: Option<User>,
    ) -> Result<Started> {
        let name = start.id.to_string();
        let logs = root.logs(&start.app, start.id);
        let work = root.work(start.id);
        let order = Order {
            dir: root.container(start.id),
            logs,
            log_bytes: self.log_bytes,
            argv: argv(start, &work)?,
            env: self.environment(root, start),
            join: cgroups.join_files(&name),
            kill: cgroups.kill_plan(&name),
            user,
            groups: self.users.groups(),
            sandbox: self.sandbox(root, start),
            lease: (start.on_lease_loss == OnLeaseLoss::Stop).then(|| root.lease_file()),
            nm_lock: root.lock_file(),
            abandon_ms: ABANDON_MS,
            work,
        };
        let mut shim = Command::new(&self.shim)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", self.shim.display()))?;
        points::at("shim-started");
        match converse(&mut shim, &order) {
            Ok(process) => Ok(Started { shim, process }),
            Err(error) => {
                // Without its shim nobody would keep its exit.
                let _ = shim.kill();
                if !is_gone(&mut shim, SHIM_DIES)? {
                    return Err(error.context("its shim cannot be killed"));
                }
                Err(error)
            }
        }
    }

    /// The environment every container gets, and what its job adds; ours wins.
    fn environment(&self, root: &Root, start: &StartContainer) -> BTreeMap<String, String> {
        let (work, given) = (root.work(start.id), root.given(start.id));
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
        let mut env = BTreeMap::from([("PATH".to_owned(), path), ("HOME".to_owned(), text(work.clone()))]);
        env.extend(start.env.clone());
        let (role, attempt) = match start.role {
            Role::AppMaster { attempt } => ("app-master", attempt),
            Role::Worker { request } => {
                env.insert("SAMZA_SLOT".into(), request.slot.to_string());
                env.insert("SAMZA_REQUEST".into(), request.to_string());
                env.insert("SAMZA_AM_ADDRESS_FILE".into(), text(given.join(AM_ADDRESS)));
                ("worker", request.attempt)
            }
        };
        let own = [
            ("SAMZA_APP_ID", start.app.0.clone()),
            ("SAMZA_JOB_NAME", start.job.name.clone()),
            ("SAMZA_JOB_ID", start.job.id.clone()),
            ("SAMZA_CONTAINER_ID", start.id.to_string()),
            ("SAMZA_ROLE", role.to_owned()),
            ("SAMZA_ATTEMPT", attempt.to_string()),
            ("SAMZA_NODE_ID", self.node_id.clone()),
            ("SAMZA_NODE_HOST", self.node_host.clone()),
            ("SAMZA_RACK", self.rack.clone()),
            ("SAMZA_WORK_DIR", text(work.clone())),
            ("SAMZA_STATE_DIR", text(root.state(&start.job))),
            ("SAMZA_MEMORY_BYTES", start.resource.memory_bytes.to_string()),
            ("SAMZA_CPU_MILLIS", start.resource.cpu_millis.to_string()),
            ("SAMZA_RM", self.rm.clone()),
            ("SAMZA_JOB_FILE", text(given.join(JOB))),
            ("SAMZA_TOKEN_FILE", text(given.join(TOKEN))),
            ("SAMZA_SECRETS_DIR", text(given.join(SECRETS))),
        ];
        env.extend(own.map(|(name, value)| (name.to_owned(), value)));
        env
    }

    fn sandbox(&self, root: &Root, start: &StartContainer) -> Sandbox {
        let has = |wall| self.walls.contains(&wall);
        Sandbox {
            // Who gets a user that was another's gains nothing by what that one left elsewhere.
            no_new_privileges: has(Wall::NoNewPrivileges) || matches!(self.users, Users::PerJob(_)),
            no_capabilities: has(Wall::NoCapabilities),
            seccomp: has(Wall::Seccomp),
            shm_bytes: start.resource.memory_bytes,
            private_tmp: has(Wall::PrivateTmp).then(|| root.container(start.id).join(TMP)),
            writable: has(Wall::ReadOnlyRoot).then(|| vec![root.work(start.id), root.state(&start.job)]),
        }
    }
}

/// Gives a folder to the user of a container, if that is not nm's own.
fn own(folder: &Folder, user: Option<User>) -> io::Result<()> {
    user.map_or(Ok(()), |user| folder.give(user))
}

/// Waits until a shim that was killed is gone, but not for ever: what hangs in the kernel cannot be killed.
fn is_gone(shim: &mut Child, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    while shim.try_wait()?.is_none() {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

/// Tells the shim its order and hears what came of it.
fn converse(shim: &mut Child, order: &Order) -> Result<ProcessFile> {
    let mut stdin = shim.stdin.take().expect("it was piped");
    stdin.write_all(&serde_json::to_vec(order)?).context("the shim did not take its order")?;
    drop(stdin);
    let stdout = shim.stdout.take().expect("it was piped");
    let patience = Timespec { tv_sec: SHIM_PATIENCE_S, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&patience))? == 0 {
        bail!("the shim was silent for {SHIM_PATIENCE_S} s");
    }
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    match serde_json::from_str(&line) {
        Ok(Reply::Running(process)) => Ok(process),
        Ok(Reply::Failed(reason)) => bail!("{reason}"),
        Err(_) => bail!("the shim ended without a word"),
    }
}

/// The command line; a first word that names an artefact is that file in the work directory.
fn argv(start: &StartContainer, work: &Path) -> Result<Vec<String>> {
    let in_work = |name: &str| work.join(name).to_string_lossy().into_owned();
    let mut argv = start.command.clone();
    match argv.first_mut() {
        None => {
            let first = start.artefacts.first().context("neither a command nor an artefact to run")?;
            argv.push(in_work(&first.name));
        }
        Some(program) => {
            let named = program.strip_prefix("./").unwrap_or(program);
            if start.artefacts.iter().any(|artefact| artefact.name == named) {
                *program = in_work(named);
            }
        }
    }
    Ok(argv)
}

/// Puts a cached file into a work directory: by link, which costs nothing, else by copy. It is nm's, and containers
/// that run as others cannot change it.
fn give(root: &Root, digest: &str, work: &Folder, name: &str) -> Result<()> {
    match work.link(name, &root.cache, digest) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::XDEV.raw_os_error()) => {
            let mut copy = work.create(name, 0o555)?;
            io::copy(&mut root.cache.file(digest)?, &mut copy)?;
            Ok(())
        }
        other => Ok(other?),
    }
}
