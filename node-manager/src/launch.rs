//! Starting a container: its folders, its files, its cgroup, its shim.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nm_core::Master;
use nm_shim::files::Sandbox;
use nm_shim::{Order, ProcessFile, Reply, User};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, Uid, chown};
use types::{OnLeaseLoss, Role, Secrets, StartContainer};

use crate::cgroup::{Cgroups, Limits};
use crate::points;
use crate::root::{Root, make_dir};
use crate::unpack::{packed, unpack};

/// How long a shim may take to start a process.
const SHIM_PATIENCE_S: i64 = 10;
/// How long a container runs without any node manager, ms.
const ABANDON_MS: u64 = 600_000;
/// A container's own `/tmp`, below its folder.
const TMP: &str = "tmp";
/// The folder of a container's secrets, below its work folder.
const SECRETS: &str = "secrets";
/// The file that tells a container where its master is.
pub(crate) const AM_ADDRESS: &str = "am-address";

/// One thing that containers may not see or do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wall {
    /// No program they run gives them more rights than they have
    NoNewPrivileges,
    /// None of root's capabilities, even as root
    NoCapabilities,
    /// A /tmp of their own, which goes with the container
    PrivateTmp,
    /// Nothing but their work, their job's state, /dev and a private /tmp can be written to; needs Linux 5.12
    ReadOnlyRoot,
}

/// What is the same for every container of this node.
pub(crate) struct Launcher {
    pub(crate) shim: PathBuf,
    pub(crate) user: Option<User>,
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
    /// Makes work, log and state folders and the files in them. The artefacts are in the cache.
    pub(crate) fn prepare(&self, root: &Root, start: &StartContainer) -> Result<()> {
        let dir = root.container(start.id);
        make_dir(&dir, 0o711).context("container directory")?;
        let work = root.work(start.id);
        make_dir(&work, 0o755).context("work directory")?;
        points::at("work-made");
        for artefact in &start.artefacts {
            let cached = root.cache().join(&artefact.digest.0);
            let target = work.join(file_name(&artefact.name)?);
            let given = match packed(&artefact.name) {
                Some(packed) => unpack(&cached, packed, &work).and_then(|()| Ok(self.own_all(&work)?)),
                None => give(&cached, &target).map_err(anyhow::Error::from),
            };
            given.with_context(|| format!("artefact `{}`", artefact.name))?;
        }
        write_private(&work.join("job.json"), &serde_json::to_vec(&*start.spec)?)?;
        write_private(&work.join("token"), start.token.as_bytes())?;
        if !start.secrets.0.is_empty() {
            self.write_secrets(&work.join(SECRETS), &start.secrets).context("secrets")?;
        }
        if self.walls.contains(&Wall::PrivateTmp) {
            make_dir(&dir.join(TMP), 0o700).context("private /tmp")?;
            self.own(&dir.join(TMP))?;
        }
        let logs = root.logs(&start.app, start.id);
        fs::create_dir_all(&logs).context("log directory")?;
        let state = root.state(&start.job);
        fs::create_dir_all(&state).context("state directory")?;
        if !state.join(".job").exists() {
            fs::write(state.join(".job"), serde_json::to_vec(&start.job)?)?;
        }
        for path in [&work, &work.join("job.json"), &work.join("token"), &logs, &state] {
            self.own(path)?;
        }
        Ok(())
    }

    fn write_secrets(&self, dir: &Path, secrets: &Secrets) -> io::Result<()> {
        make_dir(dir, 0o700)?;
        self.own(dir)?;
        for (name, text) in &secrets.0 {
            write_private(&dir.join(name), text.as_bytes())?;
            self.own(&dir.join(name))?;
        }
        Ok(())
    }

    /// Replaces the file that tells a container where its master is.
    pub(crate) fn write_master(&self, work: &Path, master: &Master) -> io::Result<()> {
        let draft = work.join(".am-address.draft");
        fs::write(&draft, format!("{} {}\n", master.attempt, master.address))?;
        self.own(&draft)?;
        fs::rename(&draft, work.join(AM_ADDRESS))
    }

    /// Makes the cgroup and runs shim and process. An error means that nothing of it is left.
    pub(crate) fn launch(
        &self,
        root: &Root,
        cgroups: &dyn Cgroups,
        start: &StartContainer,
        master: Option<&Master>,
    ) -> Result<Started> {
        if let Some(master) = master {
            self.write_master(&root.work(start.id), master).context(AM_ADDRESS)?;
        }
        let name = start.id.to_string();
        let begun = Instant::now();
        let result = cgroups.create(&name, &Limits::of(start, self.pids)).and_then(|()| {
            let limited = begun.elapsed();
            points::at("limited");
            let started = self.run_shim(root, cgroups, start)?;
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

    fn run_shim(&self, root: &Root, cgroups: &dyn Cgroups, start: &StartContainer) -> Result<Started> {
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
            user: self.user,
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
                shim.wait()?;
                Err(error)
            }
        }
    }

    /// The environment every container gets, and what its job adds; ours wins.
    fn environment(&self, root: &Root, start: &StartContainer) -> BTreeMap<String, String> {
        let work = root.work(start.id);
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
        let mut env = BTreeMap::from([("PATH".to_owned(), path), ("HOME".to_owned(), text(work.clone()))]);
        env.extend(start.env.clone());
        let (role, attempt) = match start.role {
            Role::AppMaster { attempt } => ("app-master", attempt),
            Role::Worker { request } => {
                env.insert("SAMZA_SLOT".into(), request.slot.to_string());
                env.insert("SAMZA_REQUEST".into(), request.to_string());
                env.insert("SAMZA_AM_ADDRESS_FILE".into(), text(work.join(AM_ADDRESS)));
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
            ("SAMZA_LOG_DIR", text(root.logs(&start.app, start.id))),
            ("SAMZA_STATE_DIR", text(root.state(&start.job))),
            ("SAMZA_MEMORY_BYTES", start.resource.memory_bytes.to_string()),
            ("SAMZA_CPU_MILLIS", start.resource.cpu_millis.to_string()),
            ("SAMZA_RM", self.rm.clone()),
            ("SAMZA_JOB_FILE", text(work.join("job.json"))),
            ("SAMZA_TOKEN_FILE", text(work.join("token"))),
            ("SAMZA_SECRETS_DIR", text(work.join(SECRETS))),
        ];
        env.extend(own.map(|(name, value)| (name.to_owned(), value)));
        env
    }

    fn sandbox(&self, root: &Root, start: &StartContainer) -> Sandbox {
        let has = |wall| self.walls.contains(&wall);
        Sandbox {
            no_new_privileges: has(Wall::NoNewPrivileges),
            no_capabilities: has(Wall::NoCapabilities),
            private_tmp: has(Wall::PrivateTmp).then(|| root.container(start.id).join(TMP)),
            writable: has(Wall::ReadOnlyRoot).then(|| vec![root.work(start.id), root.state(&start.job)]),
        }
    }

    /// Of what was unpacked.
    fn own_all(&self, folder: &Path) -> io::Result<()> {
        if self.user.is_none() {
            return Ok(());
        }
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.own_all(&entry.path())?;
            }
            if !kind.is_symlink() {
                self.own(&entry.path())?;
            }
        }
        Ok(())
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        if let Some(user) = self.user {
            chown(path, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
        }
        Ok(())
    }
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

/// An artefact's name must be a plain file name: it comes from another machine.
fn file_name(name: &str) -> Result<&str> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        bail!("`{name}` is no file name");
    }
    Ok(name)
}

/// Puts a cached file into a work directory: by link, which costs nothing, else by copy.
fn give(cached: &Path, target: &Path) -> io::Result<()> {
    match fs::hard_link(cached, target) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::XDEV.raw_os_error()) => {
            fs::copy(cached, target).map(|_| ())
        }
        other => other,
    }
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(content)
}
