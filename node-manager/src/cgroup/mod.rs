//! Control groups: one trait, three ways. v1 and v2 are told apart at run time; without either a node runs
//! containers unlimited only when told to.

mod unlimited;
mod v1;
mod v2;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nm_shim::KillPlan;

/// Processes and threads that a container may have: far above what a job needs, far below what hurts the machine.
const PIDS_MAX: u64 = 8192;

/// What a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes, hard; swap included.
    pub(crate) memory_bytes: u64,
    /// Thousandths of a core, as a weight.
    pub(crate) cpu_millis: u32,
    /// Processes and threads.
    pub(crate) pids: u64,
}

impl Limits {
    pub(crate) fn of(resource: types::Resource) -> Limits {
        Limits { memory_bytes: resource.memory_bytes, cpu_millis: resource.cpu_millis, pids: PIDS_MAX }
    }
}

/// What a container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Bytes now, without page cache that can be dropped.
    pub(crate) memory_bytes: u64,
    /// CPU time since it began, ns.
    pub(crate) cpu_ns: u64,
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
    /// What it uses now; none if it cannot be known.
    fn usage(&self, container: &str) -> Option<Usage>;
    /// What the kernel says of its memory; none if it cannot be known.
    fn memory(&self, container: &str) -> Option<MemoryEvidence>;
    /// Removes an empty group. One that is not there is removed.
    fn remove(&self, container: &str) -> io::Result<()>;
    /// The containers that have groups.
    fn list(&self) -> io::Result<Vec<String>>;
}

/// Finds what this machine has, makes the node's own group and tests that limits hold.
pub(crate) fn detect(parent: &str, node: &str, cpu_millis: u32, unlimited: bool) -> Result<Box<dyn Cgroups>> {
    if unlimited {
        return Ok(Box::new(unlimited::Unlimited));
    }
    let path = Path::new(parent.trim_matches('/')).join(file_name(node));
    let groups: Box<dyn Cgroups> = if v2::is_unified() {
        Box::new(v2::V2::new(&path, cpu_millis)?)
    } else {
        Box::new(v1::V1::new(&path, cpu_millis)?)
    };
    self_test(groups.as_ref()).with_context(|| {
        format!(
            "limits do not work here ({}); run nm as root with cgroups mounted, or with --unlimited to run \
             containers without limits",
            groups.describe()
        )
    })?;
    Ok(groups)
}

fn self_test(groups: &dyn Cgroups) -> Result<()> {
    let name = format!("self-test-{}", std::process::id());
    let limits = Limits { memory_bytes: 16 << 20, cpu_millis: 500, pids: 16 };
    let made = groups.create(&name, &limits);
    let usable = made.and_then(|()| {
        if groups.usage(&name).is_none() || groups.memory(&name).is_none() {
            bail!("usage cannot be read");
        }
        Ok(())
    });
    remove_patiently(groups, &name, Duration::from_secs(2)).context("the test's group cannot be removed")?;
    usable
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
