//! cgroup v2: one folder per container, controllers handed down level by level.
//!
//! A group with processes cannot hand controllers down. Where the node manager itself is in one that must, it moves
//! into a leaf of its own, `nm`; others' processes it leaves where they are. systemd marks the groups that it delegates:
//! such a group is ours, what is above it is systemd's and stays as it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::hierarchies::{UNIFIED_MOUNTPOINT, V2 as Mount, is_cgroup2_unified_mode};
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, MaxValue};
use nm_shim::KillPlan;
use nm_shim::groups::remove_below;
use types::Pressure;

use super::{Cgroups, Held, Limits, MemoryEvidence, held};

const NAMES: [&str; 3] = ["cpu", "memory", "pids"];
/// How systemd marks a group that it delegates: only root sees the first, 251 and later set both. On a user's
/// own units 252 set no mark that the user can see.
const MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];
/// Where the weight of disk access is, by scheduler.
const IO_WEIGHTS: [&str; 2] = ["io.bfq.weight", "io.weight"];

/// Groups that a container may make below its own, if it has the rights to make any.
const GROUPS: &str = "64";
/// Levels of them.
const GROUP_LEVELS: &str = "8";

/// Whether the machine has cgroup v2 alone.
pub(super) fn is_unified() -> bool {
    is_cgroup2_unified_mode()
}

pub(super) struct V2 {
    /// Below the mount.
    path: PathBuf,
    /// With the mount.
    dir: PathBuf,
}

impl V2 {
    pub(super) fn new(path: &Path, cpu_millis: u32) -> Result<V2> {
        let dir = Path::new(UNIFIED_MOUNTPOINT).join(path);
        let above = path.ancestors().find(|group| is_delegated(group)).and_then(Path::parent);
        let mut levels: Vec<&Path> = path.ancestors().collect();
        levels.reverse();
        for group in levels {
            if above.is_some_and(|above| above.starts_with(group)) {
                continue;
            }
            let level = Path::new(UNIFIED_MOUNTPOINT).join(group);
            make_group(&level)?;
            // The root of all groups may have processes and groups.
            if group.parent().is_some() && own_group().is_some_and(|own| own == group) {
                move_into_leaf(&level)?;
            }
            hand_down(&level)?;
        }
        fs::write(dir.join("cpu.weight"), weight(cpu_millis).to_string())
            .context("cpu.weight of the node")?;
        if let Some(most) = super::all_pids() {
            fs::write(dir.join("pids.max"), most.to_string()).context("pids.max of the node")?;
        }
        Ok(V2 { path: path.to_owned(), dir })
    }

    fn cgroup(&self, container: &str) -> Cgroup {
        Cgroup::load_with_specified_controllers(
            Box::new(Mount::new()),
            self.path.join(container),
            NAMES.map(str::to_owned).to_vec(),
        )
    }
}

/// The group that is this process's to divide, below the mount: its own, or the one above where systemd put it into a
/// leaf of a group that it delegates (`DelegateSubgroup`). Who is not root may divide nothing but what someone gave it,
/// and so takes its own without a mark.
pub(super) fn delegated_group() -> Option<PathBuf> {
    let own = own_group()?;
    if is_delegated(&own) {
        return Some(own);
    }
    // A group that is named as units are is a unit, and the delegated one above it another service manager's.
    let above = own.parent().filter(|above| own.extension().is_none() && is_delegated(above));
    above.map(Path::to_path_buf).or_else(|| (!rustix::process::geteuid().is_root()).then_some(own))
}

fn is_delegated(group: &Path) -> bool {
    let dir = Path::new(UNIFIED_MOUNTPOINT).join(group);
    MARKS.iter().any(|mark| {
        let mut value = [0; 1];
        rustix::fs::getxattr(&dir, *mark, &mut value).is_ok_and(|bytes| bytes == 1 && value == *b"1")
    })
}

/// The group that this process is in, below the mount.
fn own_group() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().find_map(|line| Some(PathBuf::from(line.strip_prefix("0::/")?)))
}

/// Makes a group unless it is there.
fn make_group(dir: &Path) -> Result<()> {
    crate::root::make_dir(dir, 0o755).with_context(|| format!("cannot make {}", dir.display()))
}

fn move_into_leaf(level: &Path) -> Result<()> {
    let leaf = level.join("nm");
    make_group(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), "0").with_context(|| format!("cannot move into {}", leaf.display()))
}

/// Hands our controllers down to the groups below `level`. What is handed down already is left as it is: above a group
/// that someone gave us nothing may be written.
fn hand_down(level: &Path) -> Result<()> {
    let read = |file: &str| {
        fs::read_to_string(level.join(file)).with_context(|| format!("{} is no cgroup", level.display()))
    };
    let (has, down) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let is_in = |list: &str, name: &str| list.split_ascii_whitespace().any(|have| have == name);
    for name in NAMES {
        ensure!(is_in(&has, name), "{} has no controller {name}", level.display());
    }
    let hand = |name: &str| fs::write(level.join("cgroup.subtree_control"), format!("+{name}"));
    for name in NAMES.iter().filter(|name| !is_in(&down, name)) {
        hand(name)
            .with_context(|| format!("{} cannot hand {name} down; processes in it?", level.display()))?;
    }
    if is_in(&has, "io") && !is_in(&down, "io") {
        // Without it disks are shared without weights; `holds` says so.
        let _ = hand("io");
    }
    Ok(())
}

/// A weight of 100 is one core; the kernel takes 1 to 10,000.
fn weight(cpu_millis: u32) -> u64 {
    (u64::from(cpu_millis) / 10).clamp(1, 10_000)
}

impl Cgroups for V2 {
    fn describe(&self) -> String {
        format!("cgroup v2, {}", self.dir.display())
    }

    fn create(&self, container: &str, limits: &Limits) -> Result<()> {
        let dir = self.dir.join(container);
        make_group(&dir)?;
        let cgroup = self.cgroup(container);
        let memory: &MemController = cgroup.controller_of().context("no memory controller")?;
        memory.set_limit(i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX)).context("memory.max")?;
        let read = super::read_u64(&dir.join("memory.max")).context("memory.max cannot be read back")?;
        ensure!(
            super::same_memory(limits.memory_bytes, read),
            "memory.max was set to {} and is {read}",
            limits.memory_bytes
        );
        if dir.join("memory.swap.max").exists() {
            memory.set_memswap_limit(0).context("memory.swap.max")?;
        }
        // One process out of memory is all of it out of memory.
        fs::write(dir.join("memory.oom.group"), "1").context("memory.oom.group")?;
        let cpu: &CpuController = cgroup.controller_of().context("no cpu controller")?;
        let share = weight(limits.cpu_millis);
        cpu.set_shares(share).context("cpu.weight")?;
        let read = cpu.shares().context("cpu.weight cannot be read back")?;
        ensure!(read == share, "cpu.weight was set to {share} and is {read}");
        if let Some(limit) = limits.cpu_limit_millis {
            let quota = super::cpu_quota_us(limit);
            cpu.set_cfs_quota_and_period(Some(quota), Some(super::CPU_PERIOD_US)).context("cpu.max")?;
            let read = fs::read_to_string(dir.join("cpu.max")).context("cpu.max")?;
            ensure!(read.trim() == format!("{quota} {}", super::CPU_PERIOD_US), "cpu.max is {read}");
        }
        let pids: &PidController = cgroup.controller_of().context("no pids controller")?;
        let most = MaxValue::Value(i64::try_from(limits.pids).unwrap_or(i64::MAX));
        pids.set_pid_max(most).context("pids.max")?;
        ensure!(pids.get_pid_max().context("pids.max")? == most, "pids.max does not hold");
        // It dies with all groups that it makes, but each of them is memory of the kernel's.
        for (file, most) in [("cgroup.max.descendants", GROUPS), ("cgroup.max.depth", GROUP_LEVELS)] {
            fs::write(dir.join(file), most).context(file)?;
        }
        // Only where the kernel shares a disk by weights: without the controller or a scheduler that does there is
        // no such file.
        if let Some(file) = IO_WEIGHTS.iter().map(|name| dir.join(name)).find(|file| file.exists()) {
            fs::write(&file, format!("default {share}"))
                .with_context(|| format!("{} of {container}", file.display()))?;
        }
        Ok(())
    }

    fn join_files(&self, container: &str) -> Vec<PathBuf> {
        vec![self.dir.join(container).join("cgroup.procs")]
    }

    fn kill_plan(&self, container: &str) -> KillPlan {
        let dir = self.dir.join(container);
        KillPlan::V2 { procs: dir.join("cgroup.procs"), kill: dir.join("cgroup.kill") }
    }

    fn cpu_ns(&self, container: &str) -> Option<u64> {
        let used = super::read_keyed(&self.dir.join(container).join("cpu.stat"), "usage_usec")?;
        Some(used.saturating_mul(1000))
    }

    fn memory_bytes(&self, container: &str) -> Option<u64> {
        let dir = self.dir.join(container);
        let all = super::read_u64(&dir.join("memory.current"))?;
        let droppable = super::read_keyed(&dir.join("memory.stat"), "inactive_file").unwrap_or(0);
        Some(all.saturating_sub(droppable))
    }

    fn memory(&self, container: &str) -> Option<MemoryEvidence> {
        let dir = self.dir.join(container);
        let limit_bytes = super::read_u64(&dir.join("memory.max"))?;
        Some(MemoryEvidence {
            oom_kills: super::read_keyed(&dir.join("memory.events"), "oom_kill")?,
            // memory.peak came with Linux 5.19; who was killed at the limit had reached it.
            peak_bytes: super::read_u64(&dir.join("memory.peak")).unwrap_or(limit_bytes),
            limit_bytes,
        })
    }

    fn pressure(&self, container: &str) -> Option<Pressure> {
        let dir = self.dir.join(container);
        let percent = |file: &str| {
            let text = fs::read_to_string(dir.join(file)).ok()?;
            Some(crate::health::waited(&text, "some", "avg10")?.round() as u8)
        };
        Some(Pressure {
            cpu: percent("cpu.pressure")?,
            memory: percent("memory.pressure")?,
            io: percent("io.pressure")?,
        })
    }

    fn remove(&self, container: &str) -> io::Result<()> {
        remove_below(&self.dir.join(container))
    }

    fn dissolve(&self) -> io::Result<()> {
        super::remove_dir(&self.dir)
    }

    fn holds(&self, container: &str) -> Vec<Held> {
        let dir = self.dir.join(container);
        vec![
            held("memory limit", &dir, &["memory.max"]),
            held("swap off", &dir, &["memory.swap.max"]),
            held("cpu weight", &dir, &["cpu.weight"]),
            held("cpu limit", &dir, &["cpu.max"]),
            held("pids", &dir, &["pids.max"]),
            held("io weight", &dir, &IO_WEIGHTS),
            held("groups of its own", &dir, &["cgroup.max.descendants"]),
            held("kill of all at once", &dir, &["cgroup.kill"]),
        ]
    }

    fn list(&self) -> io::Result<Vec<String>> {
        super::list_dirs(&self.dir)
    }
}
