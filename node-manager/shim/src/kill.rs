//! Killing all of a container, whatever it forked and however it tried to get away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::groups::{is_gone, processes_below};

/// How the processes of a container are found and killed. Groups that it made below its own are of it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillPlan {
    /// cgroup v1: freeze, so that nothing forks meanwhile; SIGKILL to all; thaw, so that they die.
    V1 {
        /// `cgroup.procs` of the container, of the freezer.
        procs: PathBuf,
        /// `freezer.state` beside it.
        freezer: PathBuf,
    },
    /// cgroup v2: one write; kernels before 5.14 take SIGKILL to all, again and again.
    V2 {
        /// `cgroup.procs` of the container.
        procs: PathBuf,
        /// `cgroup.kill` beside it; older kernels have none.
        kill: PathBuf,
    },
    /// Without a cgroup: every descendant of the shim, to which orphans come back.
    Descendants,
}

impl KillPlan {
    /// Whether nothing is left of it: in its group and those below, or, without one, or should somebody have removed
    /// it, of what descends from `shim`.
    pub fn is_over(&self, shim: Option<u32>) -> io::Result<bool> {
        if let KillPlan::V2 { procs, .. } = self {
            match fs::read_to_string(procs.with_file_name("cgroup.events")) {
                Ok(events) => return Ok(events.lines().any(|line| line == "populated 0")),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.processes(shim)?.is_empty())
    }

    /// The processes that are left.
    pub fn processes(&self, shim: Option<u32>) -> io::Result<Vec<u32>> {
        let in_group = match self {
            KillPlan::V1 { procs, .. } | KillPlan::V2 { procs, .. } => {
                procs.parent().map_or(Ok(None), processes_below)?
            }
            KillPlan::Descendants => None,
        };
        Ok(in_group.unwrap_or_else(|| {
            let mut found = Vec::new();
            if let Some(shim) = shim {
                descendants(shim, &mut found);
            }
            found
        }))
    }

    /// One round of killing. Those killed may take a moment to be gone.
    pub fn kill_once(&self, shim: Option<u32>) -> io::Result<()> {
        match self {
            KillPlan::V2 { kill, .. } if kill.exists() => ignore_gone(fs::write(kill, "1")),
            KillPlan::V1 { freezer, .. } => {
                // Written again for each round: a thawed group may have forked since.
                ignore_gone(fs::write(freezer, "FROZEN"))?;
                await_frozen(freezer);
                let killed = self.processes(shim).map(|pids| pids.into_iter().for_each(kill_pid));
                ignore_gone(fs::write(freezer, "THAWED"))?;
                killed
            }
            KillPlan::V2 { .. } | KillPlan::Descendants => {
                self.processes(shim)?.into_iter().for_each(kill_pid);
                Ok(())
            }
        }
    }

    /// Kills until nothing is left, for at most `patience`. Whether nothing is left.
    pub fn kill_all(&self, shim: Option<u32>, patience: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            if self.is_over(shim)? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.kill_once(shim)?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// Waits up to 20 ms until the group is frozen; the kernel completes a freeze when the state is read. A process
/// in an uninterruptible sleep may never freeze, so this is an attempt: rounds are repeated until none is left.
fn await_frozen(freezer: &Path) {
    for _ in 0..20 {
        match fs::read_to_string(freezer) {
            Ok(state) if state.trim() == "FREEZING" => std::thread::sleep(Duration::from_millis(1)),
            Ok(_) | Err(_) => return,
        }
    }
}

fn kill_pid(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Gone already is what we want.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Appends every descendant of `pid` that is not a zombie. There may be very long lines of them.
fn descendants(pid: u32, found: &mut Vec<u32>) {
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) else { continue };
        for child in text.split_ascii_whitespace().filter_map(|word| word.parse().ok()) {
            if !is_zombie(child) {
                found.push(child);
            }
            left.push(child);
        }
    }
}

fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with('Z')))
        .unwrap_or(true)
}

fn ignore_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}
