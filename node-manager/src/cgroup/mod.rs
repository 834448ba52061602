//! Control groups: one trait, three ways. v1 and v2 are told apart at run time; without either a node runs
//! containers unlimited only when told to.

mod unlimited;
mod v1;
mod v2;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nm_shim::KillPlan;
use serde::Serialize;
use types::{Pressure, Role, StartContainer};

/// Where containers' groups are, unless told, or nm has a group of its own to divide.
const PARENT: &str = "samza";

const ADVICE: &str = "limits do not work here; run nm as root with cgroups mounted, or with --unlimited to run \
                      containers without limits";

/// What a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes, hard; swap included.
    pub(crate) memory_bytes: u64,
    /// Thousandths of a core, as a weight.
    pub(crate) cpu_millis: u32,
    /// Thousandths of a core, never more; none: whatever is free.
    pub(crate) cpu_limit_millis: Option<u32>,
    /// Processes and threads.
    pub(crate) pids: u64,
}

impl Limits {
    /// Those of a container that may have `pids` processes and threads.
    pub(crate) fn of(start: &StartContainer, pids: u64) -> Limits {
        let cpu_limit_millis = match start.role {
            Role::Worker { .. } => start.spec.containers.cpu_limit_millis,
            Role::AppMaster { .. } => None,
        };
        let types::Resource { memory_bytes, cpu_millis } = start.resource;
        Limits { memory_bytes, cpu_millis, cpu_limit_millis, pids }
    }
}

/// The period over which a CPU limit holds, as the kernel's default, µs.
const CPU_PERIOD_US: u64 = 100_000;

/// CPU time of a period for a limit, µs. The kernel takes no less than 1 ms.
fn cpu_quota_us(millis: u32) -> i64 {
    i64::from(millis) * 100
}

/// One thing that a container is held to, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Held {
    /// In people's words, such as `memory limit`.
    pub(crate) what: &'static str,
    /// What does it: a file of the kernel's. None if nothing does.
    pub(crate) by: Option<String>,
}

/// `what` is done by the first of `files` that is in `folder`.
fn held(what: &'static str, folder: &Path, files: &[&str]) -> Held {
    let by = files.iter().find(|file| folder.join(file).exists());
    Held { what, by: by.map(|file| (*file).to_owned()) }
}

/// How many processes and threads all containers together may have: some are left for the machine, or nobody could even
/// end them.
fn all_pids() -> Option<u64> {
    let most = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
    let most = most.into_iter().filter_map(|file| read_u64(Path::new(file))).min()?;
    Some(most / 4 * 3)
}

/// Asks the kernel to kill containers before nm and its shims where the machine is out of memory.
pub(crate) fn be_spared() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-900") {
        tracing::debug!(%error, "when the machine is out of memory nm is as likely to be killed as containers");
    }
}

/// What the kernel says of a container's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MemoryEvidence {
    /// Processes killed at the limit.
    pub(crate) oom_kills: u64,
    /// The most it used, bytes.
    pub(crate) peak_bytes: u64,
    /// The limit, bytes.
    pub(crate) limit_bytes: u64,
}

/// The control groups of one node's containers, by the container's id as text.
pub(crate) trait Cgroups: Send + Sync {
    /// One line for the log: which kind, where.
    fn describe(&self) -> String;
    /// Makes the group of a container with its limits set, and read back. Fails if one does not hold.
    fn create(&self, container: &str, limits: &Limits) -> Result<()>;
    /// The files into which a process writes `0` to be in the group.
    fn join_files(&self, container: &str) -> Vec<PathBuf>;
    /// How to kill all that is in it.
    fn kill_plan(&self, container: &str) -> KillPlan;
    /// CPU time since it began, ns; none if it cannot be known.
    fn cpu_ns(&self, container: &str) -> Option<u64>;
    /// Bytes it uses now, without page cache that can be dropped; none if it cannot be known.
    fn memory_bytes(&self, container: &str) -> Option<u64>;
    /// What the kernel says of its memory; none if it cannot be known.
    fn memory(&self, container: &str) -> Option<MemoryEvidence>;
    /// What it waits for; none if it cannot be known.
    fn pressure(&self, _container: &str) -> Option<Pressure> {
        None
    }
    /// A descriptor that can be read each time the container meets its memory limit, where the kernel then kills one
    /// process alone; none where it kills all of them by itself.
    fn memory_alarm(&self, _container: &str) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }
    /// Removes an empty group. One that is not there is removed.
    fn remove(&self, container: &str) -> io::Result<()>;
    /// The containers that have groups.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Removes the node's own group, which must be empty.
    fn dissolve(&self) -> io::Result<()>;
    /// What a container with a group is held to.
    fn holds(&self, container: &str) -> Vec<Held>;
}

/// Control groups and what they hold containers to.
pub(crate) type Detected = (Box<dyn Cgroups>, Vec<Held>);

/// Finds what this machine has, makes the node's own group and tests that limits hold.
///
/// # Errors
/// There are no cgroups, this process may not make any, or a limit does not hold.
pub(crate) fn detect(parent: Option<&str>, node: &str, cpu_millis: u32, unlimited: bool) -> Result<Detected> {
    if unlimited {
        let groups = unlimited::Unlimited;
        let holds = groups.holds("");
        return Ok((Box::new(groups), holds));
    }
    let delegated = || v2::delegated_group().filter(|_| v2::is_unified());
    let parent = parent.map(PathBuf::from).or_else(delegated).unwrap_or_else(|| PathBuf::from(PARENT));
    let path = parent.strip_prefix("/").unwrap_or(&parent).join(file_name(node));
    let made: Result<Box<dyn Cgroups>> = if v2::is_unified() {
        v2::V2::new(&path, cpu_millis).map(|groups| Box::new(groups) as Box<dyn Cgroups>)
    } else {
        v1::V1::new(&path, cpu_millis).map(|groups| Box::new(groups) as Box<dyn Cgroups>)
    };
    let groups = made.context(ADVICE)?;
    let holds = self_test(groups.as_ref()).with_context(|| format!("{}: {ADVICE}", groups.describe()))?;
    Ok((groups, holds))
}

/// Makes a group with every limit, puts a process into it and kills that as a container would be killed.
fn self_test(groups: &dyn Cgroups) -> Result<Vec<Held>> {
    let name = format!("self-test-{}", std::process::id());
    let limits = Limits { memory_bytes: 16 << 20, cpu_millis: 500, cpu_limit_millis: Some(500), pids: 16 };
    let made = groups.create(&name, &limits);
    let usable = made.and_then(|()| {
        let used = groups.cpu_ns(&name).zip(groups.memory_bytes(&name));
        if used.is_none() || groups.memory(&name).is_none() {
            bail!("usage cannot be read");
        }
        kills(groups, &name)?;
        Ok(groups.holds(&name))
    });
    remove_patiently(groups, &name, Duration::from_secs(2)).context("the test's group cannot be removed")?;
    usable
}

/// What containers are held to, and what not, as one line.
pub(crate) fn in_words(holds: &[Held]) -> String {
    let names = |held: bool| {
        let these: Vec<_> = holds.iter().filter(|h| h.by.is_some() == held).map(|h| h.what).collect();
        if these.is_empty() { "nothing".to_owned() } else { these.join(", ") }
    };
    format!("held to {}; not held to {}", names(true), names(false))
}

fn kills(groups: &dyn Cgroups, name: &str) -> Result<()> {
    let mut process = Command::new("sleep").arg("60").spawn().context("`sleep`, to try it with")?;
    let pid = process.id().to_string();
    let plan = groups.kill_plan(name);
    let joins = || groups.join_files(name).iter().try_for_each(|file| std::fs::write(file, &pid));
    let killed = joins().and_then(|()| plan.kill_all(None, Duration::from_secs(5)));
    // Whatever became of it above; a process that is gone already is no error.
    let _ = process.kill();
    let status = process.wait()?;
    match killed.context("a process cannot be put into a group and killed there")? {
        true if status.signal() == Some(9) => Ok(()),
        _ => bail!("a process in a group was not killed with it"),
    }
}

/// rmdir says EBUSY for a moment after the last process is gone.
pub(crate) fn remove_patiently(groups: &dyn Cgroups, container: &str, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(500);
    loop {
        match groups.remove(container) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A node's name as a folder's.
fn file_name(node: &str) -> String {
    node.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.:".contains(c) { c } else { '-' }).collect()
}

fn read_u64(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `key` in a file of `key number` lines.
fn read_keyed(path: &Path, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn list_dirs(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a memory limit as read back is the one set: the kernel rounds down to pages.
fn same_memory(set: u64, read: u64) -> bool {
    read <= set && set - read < 65_536
}
