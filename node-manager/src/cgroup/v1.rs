//! cgroup v1 (also the hybrid layout): one hierarchy per controller, a folder for the container in each.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::hierarchies::V1 as Mounts;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, Controllers, MaxValue};
use nm_shim::KillPlan;
use nm_shim::groups::remove_below;
use rustix::event::{EventfdFlags, eventfd};

use super::{Cgroups, Held, Limits, MemoryEvidence, held};

const NAMES: [&str; 5] = ["cpu", "cpuacct", "freezer", "memory", "pids"];
/// Where the weight of disk access is, by scheduler.
const IO_WEIGHTS: [&str; 2] = ["blkio.bfq.weight", "blkio.weight"];

/// The kernel's smallest weight.
const SHARES_MIN: u64 = 2;

pub(super) struct V1 {
    mounts: Mounts,
    /// Below each mount.
    path: PathBuf,
    cpu: PathBuf,
    cpuacct: PathBuf,
    freezer: PathBuf,
    memory: PathBuf,
    pids: PathBuf,
    /// Only where the kernel shares a disk by weights: with the file that takes them.
    io: Option<(PathBuf, &'static str)>,
    /// Whether limits of memory plus swap can be set.
    counts_swap: bool,
}

impl V1 {
    pub(super) fn new(path: &Path, cpu_millis: u32) -> Result<V1> {
        let mounts = Mounts::new();
        let find = |controller: Controllers, name: &str| {
            mounts
                .get_mount_point(controller)
                .map(|(point, _)| point.join(path))
                .ok_or_else(|| anyhow!("controller {name} is not mounted"))
        };
        let io = find(Controllers::BlkIo, "blkio").ok();
        let groups = V1 {
            cpu: find(Controllers::Cpu, "cpu")?,
            cpuacct: find(Controllers::CpuAcct, "cpuacct")?,
            freezer: find(Controllers::Freezer, "freezer")?,
            memory: find(Controllers::Mem, "memory")?,
            pids: find(Controllers::Pids, "pids")?,
            io: None,
            counts_swap: false,
            path: path.to_owned(),
            mounts,
        };
        let node = groups.cgroup("");
        node.create().with_context(|| format!("cannot make {}", groups.memory.display()))?;
        let cpu: &CpuController = node.controller_of().context("no cpu controller")?;
        cpu.set_shares(shares(cpu_millis)).context("cpu.shares of the node")?;
        if let Some(most) = super::all_pids() {
            fs::write(groups.pids.join("pids.max"), most.to_string()).context("pids.max of the node")?;
        }
        let counts_swap = groups.memory.join("memory.memsw.limit_in_bytes").exists();
        let io = io.and_then(|folder| weights(folder, cpu_millis));
        Ok(V1 { counts_swap, io, ..groups })
    }

    /// The folders, each controller once even where two share a mount.
    fn folders(&self) -> Vec<&PathBuf> {
        let mut folders = vec![&self.cpu, &self.cpuacct, &self.freezer, &self.memory, &self.pids];
        folders.extend(self.io.iter().map(|(folder, _)| folder));
        folders
    }

    fn cgroup(&self, container: &str) -> Cgroup {
        Cgroup::load_with_specified_controllers(
            Box::new(self.mounts.clone()),
            if container.is_empty() { self.path.clone() } else { self.path.join(container) },
            NAMES.map(str::to_owned).to_vec(),
        )
    }

    fn limit_memory(&self, cgroup: &Cgroup, container: &str, bytes: u64) -> Result<()> {
        let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
        let memory: &MemController = cgroup.controller_of().context("no memory controller")?;
        memory.set_limit(limit).context("memory.limit_in_bytes")?;
        let dir = self.memory.join(container);
        if self.counts_swap {
            memory.set_memswap_limit(limit).context("memory.memsw.limit_in_bytes")?;
        } else {
            fs::write(dir.join("memory.swappiness"), "0").context("memory.swappiness")?;
        }
        let files: &[&str] = if self.counts_swap {
            &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        } else {
            &["memory.limit_in_bytes"]
        };
        for file in files {
            let read =
                super::read_u64(&dir.join(file)).with_context(|| format!("{file} cannot be read back"))?;
            ensure!(super::same_memory(bytes, read), "{file} was set to {bytes} and is {read}");
        }
        Ok(())
    }
}

/// Makes the node's group of the controller blkio, if that takes weights.
fn weights(folder: PathBuf, cpu_millis: u32) -> Option<(PathBuf, &'static str)> {
    let made = fs::create_dir_all(&folder);
    let file = IO_WEIGHTS.into_iter().find(|file| folder.join(file).exists());
    let set = file.map(|file| fs::write(folder.join(file), io_weight(cpu_millis).to_string()));
    match (file, set, made) {
        (Some(file), Some(Ok(())), Ok(())) => Some((folder, file)),
        _ => {
            // Without weights the group is of no use; if it cannot be removed it does no harm.
            let _ = fs::remove_dir(&folder);
            None
        }
    }
}

/// A weight of 100 is one core; the kernel takes 1 to 1,000.
fn io_weight(cpu_millis: u32) -> u64 {
    (u64::from(cpu_millis) / 10).clamp(1, 1_000)
}

/// A weight of 1024 is one core.
fn shares(cpu_millis: u32) -> u64 {
    (u64::from(cpu_millis) * 1024 / 1000).max(SHARES_MIN)
}

impl Cgroups for V1 {
    fn describe(&self) -> String {
        format!("cgroup v1, {} and its like", self.memory.display())
    }

    fn create(&self, container: &str, limits: &Limits) -> Result<()> {
        let cgroup = self.cgroup(container);
        cgroup.create().with_context(|| format!("cannot make the cgroup of {container}"))?;
        if let Some((folder, file)) = &self.io {
            let folder = folder.join(container);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            fs::write(folder.join(file), io_weight(limits.cpu_millis).to_string())
                .with_context(|| format!("{file} of {container}"))?;
        }
        for folder in self.folders() {
            ensure!(folder.join(container).is_dir(), "{} was not made", folder.join(container).display());
        }
        self.limit_memory(&cgroup, container, limits.memory_bytes)?;
        let cpu: &CpuController = cgroup.controller_of().context("no cpu controller")?;
        let weight = shares(limits.cpu_millis);
        cpu.set_shares(weight).context("cpu.shares")?;
        let read = cpu.shares().context("cpu.shares cannot be read back")?;
        ensure!(read == weight, "cpu.shares was set to {weight} and is {read}");
        if let Some(limit) = limits.cpu_limit_millis {
            let quota = super::cpu_quota_us(limit);
            cpu.set_cfs_quota_and_period(Some(quota), Some(super::CPU_PERIOD_US))
                .context("cpu.cfs_quota_us")?;
            let read = cpu.cfs_quota().context("cpu.cfs_quota_us cannot be read back")?;
            ensure!(read == quota, "cpu.cfs_quota_us was set to {quota} and is {read}");
        }
        let pids: &PidController = cgroup.controller_of().context("no pids controller")?;
        let most = MaxValue::Value(i64::try_from(limits.pids).unwrap_or(i64::MAX));
        pids.set_pid_max(most).context("pids.max")?;
        let read = pids.get_pid_max().context("pids.max cannot be read back")?;
        ensure!(read == most, "pids.max was set to {most:?} and is {read:?}");
        Ok(())
    }

    fn join_files(&self, container: &str) -> Vec<PathBuf> {
        // A thread that moves only itself needs no grace period of the whole machine; `cgroup.procs` takes 10 ms.
        // Between fork and exec there is only that thread.
        let mut files: Vec<PathBuf> =
            self.folders().iter().map(|folder| folder.join(container).join("tasks")).collect();
        files.dedup();
        files
    }

    fn kill_plan(&self, container: &str) -> KillPlan {
        let dir = self.freezer.join(container);
        KillPlan::V1 { procs: dir.join("cgroup.procs"), freezer: dir.join("freezer.state") }
    }

    fn cpu_ns(&self, container: &str) -> Option<u64> {
        super::read_u64(&self.cpuacct.join(container).join("cpuacct.usage"))
    }

    fn memory_bytes(&self, container: &str) -> Option<u64> {
        let dir = self.memory.join(container);
        let all = super::read_u64(&dir.join("memory.usage_in_bytes"))?;
        let droppable = super::read_keyed(&dir.join("memory.stat"), "total_inactive_file").unwrap_or(0);
        Some(all.saturating_sub(droppable))
    }

    fn memory(&self, container: &str) -> Option<MemoryEvidence> {
        let dir = self.memory.join(container);
        Some(MemoryEvidence {
            oom_kills: super::read_keyed(&dir.join("memory.oom_control"), "oom_kill")?,
            peak_bytes: super::read_u64(&dir.join("memory.max_usage_in_bytes"))?,
            limit_bytes: super::read_u64(&dir.join("memory.limit_in_bytes"))?,
        })
    }

    fn memory_alarm(&self, container: &str) -> io::Result<Option<OwnedFd>> {
        let dir = self.memory.join(container);
        let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = File::open(dir.join("memory.oom_control"))?;
        let order = format!("{} {}", alarm.as_raw_fd(), control.as_raw_fd());
        fs::write(dir.join("cgroup.event_control"), order)?;
        Ok(Some(alarm))
    }

    fn remove(&self, container: &str) -> io::Result<()> {
        // All of them, even if one is busy: cgroups-rs stops at the first.
        let folders = self.folders().into_iter();
        let results: Vec<_> = folders.map(|folder| remove_below(&folder.join(container))).collect();
        results.into_iter().collect()
    }

    fn dissolve(&self) -> io::Result<()> {
        self.folders().into_iter().try_for_each(|folder| super::remove_dir(folder))
    }

    fn holds(&self, container: &str) -> Vec<Held> {
        let (memory, cpu) = (self.memory.join(container), self.cpu.join(container));
        let swap: &[&str] =
            if self.counts_swap { &["memory.memsw.limit_in_bytes"] } else { &["memory.swappiness"] };
        let io = self.io.as_ref().map(|(_, file)| (*file).to_owned());
        vec![
            held("memory limit", &memory, &["memory.limit_in_bytes"]),
            held("swap off", &memory, swap),
            held("cpu weight", &cpu, &["cpu.shares"]),
            held("cpu limit", &cpu, &["cpu.cfs_quota_us"]),
            held("pids", &self.pids.join(container), &["pids.max"]),
            Held { what: "io weight", by: io },
            held("kill of all at once", &self.freezer.join(container), &["freezer.state"]),
        ]
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in self.folders() {
            names.extend(super::list_dirs(folder)?);
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}
