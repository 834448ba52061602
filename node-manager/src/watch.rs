//! Following a container to its end: the shim's end, the word it left, the cgroup's evidence, and nothing left
//! behind.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use nm_core::{Evidence, Outcome, Process, ShimReason};
use nm_shim::files::{self, Pid};
use nm_shim::{ByShim, Claim, ExitFile, ProcessFile};
use rustix::process::{PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use types::ContainerId;

use crate::cgroup::{Cgroups, remove_patiently};
use crate::points;

/// Between two attempts to end what does not end.
const RETRY: Duration = Duration::from_secs(1);
/// How long a shim may outlive the last process of its container.
const SHIM_LINGERS: Duration = Duration::from_secs(2);
/// How long after it met a memory limit the kernel may take to kill; it does so in the time of who met it.
const KILL_FOLLOWS: Duration = Duration::from_secs(10);
/// Free space under which a disk counts as full, bytes.
const DISK_FULL: u64 = 64 << 20;

/// A container that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) process: Option<Process>,
    pub(crate) outcome: Outcome,
    pub(crate) evidence: Evidence,
    pub(crate) ended_unix_ms: Option<u64>,
}

/// A shim that lives: started by this node manager, or found again.
pub(crate) struct Shim {
    pub(crate) pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    child: Option<Child>,
}

impl Shim {
    /// Takes hold of a shim. `Ok(None)` if it is gone. Must be called in the runtime.
    pub(crate) fn hold(pid: Pid, child: Option<Child>) -> io::Result<Option<Shim>> {
        let pidfd = match pidfd_open(raw(pid.pid)?, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after the descriptor is open: from here on it cannot become another process.
        if !pid.exists() {
            return Ok(None);
        }
        Ok(Some(Shim { pid, pidfd: watched(pidfd)?, child }))
    }

    /// Returns when the shim has ended.
    pub(crate) async fn ended(&mut self) {
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!(%error, "a shim cannot be watched; looking once a second");
            while self.pid.exists() {
                tokio::time::sleep(RETRY).await;
            }
        }
        if let Some(child) = &mut self.child
            && let Err(error) = child.wait()
        {
            tracing::warn!(%error, "a shim cannot be reaped");
        }
    }
}

fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd is what makes this use sound")]
    AsyncFd::new(descriptor)
}

/// Returns once the kernel has killed a process of the container at its memory limit and left the others alone. Never
/// returns where it kills all of them by itself.
pub(crate) async fn memory_exhausted(cgroups: &dyn Cgroups, id: ContainerId) {
    let name = id.to_string();
    if let Err(error) = killed_alone(cgroups, &name).await {
        tracing::error!(container = %id, %error, "what it leaves when it is out of memory cannot be noticed");
        std::future::pending::<()>().await;
    }
}

async fn killed_alone(cgroups: &dyn Cgroups, name: &str) -> io::Result<()> {
    let Some(alarm) = cgroups.memory_alarm(name)? else { return std::future::pending().await };
    let alarm = watched(alarm)?;
    let has_killed = || cgroups.memory(name).is_some_and(|memory| memory.oom_kills > 0);
    // Asked first: the alarm rings only for what comes after it was set.
    while !has_killed() {
        let mut rings = alarm.readable().await?;
        rustix::io::read(&alarm, &mut [0u8; 8])?;
        rings.clear_ready();
        // It rings just before the kernel kills, and who is killed before that was not killed for its memory.
        let deadline = Instant::now() + KILL_FOLLOWS;
        let mut pause = Duration::from_millis(1);
        while !has_killed() && Instant::now() < deadline {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// What a container's folder says after a restart of the node manager.
pub(crate) enum Left {
    /// No shim ever started it, and from now on none will.
    NeverStarted,
    /// Its shim may live.
    Shim(Pid, Option<ProcessFile>),
}

/// Reads what is left. Claims a container that no shim has claimed, so that a late one starts nothing.
pub(crate) fn look(dir: &Path) -> io::Result<Left> {
    if files::claim(dir, &Claim { shim: None })? {
        return Ok(Left::NeverStarted);
    }
    match files::read::<Claim>(dir, files::CLAIM)? {
        Some(Claim { shim: Some(pid) }) => {
            Ok(Left::Shim(pid, files::read(dir, files::PROCESS).ok().flatten()))
        }
        Some(Claim { shim: None }) | None => Ok(Left::NeverStarted),
    }
}

/// The shim that claimed the container, if one did.
pub(crate) fn claimed(dir: &Path) -> Option<Pid> {
    files::read::<Claim>(dir, files::CLAIM).ok().flatten().and_then(|claim| claim.shim)
}

/// Called when the shim is gone: kills whatever is left, takes the evidence, removes the cgroup. None if something does
/// not die within `patience`.
pub(crate) fn conclude(
    cgroups: &dyn Cgroups,
    id: ContainerId,
    dir: &Path,
    patience: Duration,
) -> Option<End> {
    let name = id.to_string();
    match cgroups.kill_plan(&name).kill_all(None, patience) {
        Ok(true) => {}
        Ok(false) => return None,
        Err(error) => {
            tracing::warn!(container = %id, %error, "it cannot be killed");
            std::thread::sleep(patience.min(RETRY));
            return None;
        }
    }
    points::at("emptied");
    let memory = cgroups.memory(&name).unwrap_or_default();
    let exit = files::read::<ExitFile>(dir, files::EXIT).unwrap_or_else(|error| {
        tracing::warn!(container = %id, %error, "its exit file cannot be read");
        None
    });
    let process = files::read::<ProcessFile>(dir, files::PROCESS).ok().flatten();
    if let Err(error) = remove_patiently(cgroups, &name, Duration::from_secs(5)) {
        tracing::warn!(container = %id, %error, "its cgroup cannot be removed; the next start of nm sweeps it");
    }
    points::at("concluded");
    let outcome = match exit {
        Some(ExitFile { code: Some(code), .. }) => Outcome::Code(code),
        Some(ExitFile { signal: Some(signal), .. }) => Outcome::Signal(signal),
        Some(_) | None => Outcome::Unknown,
    };
    Some(End {
        process: process.map(process_of),
        outcome,
        evidence: Evidence {
            oom_kills: memory.oom_kills,
            peak_bytes: memory.peak_bytes,
            limit_bytes: memory.limit_bytes,
            disk_full: disk_full(dir),
            by_shim: exit.and_then(|exit| exit.by_shim).map(|by| match by {
                ByShim::LeaseEnded => ShimReason::LeaseEnded,
                ByShim::Abandoned => ShimReason::Abandoned,
            }),
        },
        ended_unix_ms: exit.map(|exit| exit.ended_unix_ms).or_else(|| Some(daemon::unix_ms())),
    })
}

/// Kills all of a container now, and then its shim should that not notice. Blocks for `patience` and two seconds at most.
pub(crate) fn kill(cgroups: &dyn Cgroups, id: ContainerId, shim: Option<Pid>, patience: Duration) {
    let plan = cgroups.kill_plan(&id.to_string());
    let pid = shim.filter(|shim| shim.exists()).map(|shim| shim.pid);
    match plan.kill_all(pid, patience) {
        Ok(true) => {}
        Ok(false) => return tracing::warn!(container = %id, "processes of it do not die"),
        Err(error) => return tracing::warn!(container = %id, %error, "it cannot be killed"),
    }
    let Some(shim) = shim else { return };
    let deadline = Instant::now() + SHIM_LINGERS.min(patience);
    while is_running(shim) {
        if Instant::now() > deadline {
            // Stopped or stuck, and nothing is left that it could hold.
            tracing::warn!(container = %id, "its shim does not end by itself");
            if let Ok(pid) = raw(shim.pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// TERM to the container's process group, if its process is still the one it was.
pub(crate) fn terminate(id: ContainerId, dir: &Path) {
    let process = files::read::<ProcessFile>(dir, files::PROCESS).ok().flatten();
    let Some(process) = process.filter(|process| process.process.exists()) else { return };
    match raw(process.process.pid).map(|pid| kill_process_group(pid, Signal::TERM)) {
        Ok(Ok(()) | Err(rustix::io::Errno::SRCH)) => {}
        Ok(Err(error)) => tracing::warn!(container = %id, %error, "TERM did not reach it"),
        Err(error) => tracing::warn!(container = %id, %error, "TERM did not reach it"),
    }
}

pub(crate) fn process_of(file: ProcessFile) -> Process {
    Process { pid: file.process.pid, started_unix_ms: file.started_unix_ms }
}

/// Whether it exists and is not merely waiting to be reaped.
fn is_running(pid: Pid) -> bool {
    pid.exists()
        && std::fs::read_to_string(format!("/proc/{}/stat", pid.pid)).is_ok_and(|stat| {
            stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
        })
}

/// Whether the disk that `path` is on has no room to work with.
fn disk_full(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|stat| {
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        free < DISK_FULL || (stat.f_files > 0 && stat.f_favail == 0)
    })
}

fn raw(pid: u32) -> io::Result<rustix::process::Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is no process id")))
}
