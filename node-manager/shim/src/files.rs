//! The words on the pipe to a shim and in the files of a container's folder, and how they are written.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::KillPlan;
use crate::folder::{Folder, Replace};

/// The most that a file is read of that we wrote, bytes: a record holds a job and its secrets, far less than this.
const MOST: u64 = 16 << 20;

/// The shim's claim, below the container's folder.
pub const CLAIM: &str = "shim.json";
/// The process, below the container's folder.
pub const PROCESS: &str = "process.json";
/// Its standard output and error, below the folder of its logs: what begins at offset 0 is in files of these names,
/// what begins at offset N in files named `<stream>.<N>`.
pub const STREAMS: [&str; 2] = ["stdout", "stderr"];
/// The exit, below the container's folder.
pub const EXIT: &str = "exit.json";

/// What a shim is told, as JSON on its standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The container's folder.
    pub dir: PathBuf,
    /// The process's working directory.
    pub work: PathBuf,
    /// The folder that its standard output and standard error are written into.
    pub logs: PathBuf,
    /// How much of each is kept, bytes.
    pub log_bytes: u64,
    /// Command line; the first word is a path or looked up in the environment's `PATH`.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Files into which the child writes itself between fork and exec.
    pub join: Vec<PathBuf>,
    /// How all of it is killed.
    pub kill: KillPlan,
    /// Whom it runs as, if not as the shim.
    pub user: Option<User>,
    /// The other groups that this user is in.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// What it may not see or do.
    pub sandbox: Sandbox,
    /// For `on-lease-loss = "stop"`: the file with the lease's end, CLOCK_BOOTTIME ms.
    pub lease: Option<PathBuf>,
    /// The file that a living node manager holds a lock on.
    pub nm_lock: PathBuf,
    /// How long there may be no node manager, ms.
    pub abandon_ms: u64,
}

/// What a container may not see or do beyond its limits; nothing by default. All but the first need root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// No program that it runs gives it more rights than it has.
    pub no_new_privileges: bool,
    /// None of root's capabilities, even as root.
    pub no_capabilities: bool,
    /// The folder that it sees as `/tmp`. It then has a `/dev/shm` of its own too, and no part in others' queues,
    /// semaphores and shared memory.
    pub private_tmp: Option<PathBuf>,
    /// How much that `/dev/shm` holds, bytes: memory, which counts as the container's.
    pub shm_bytes: u64,
    /// None of the system calls that change or look into the machine.
    pub seccomp: bool,
    /// The only folders that it may write to, that in which it works first, besides `/dev` and a private `/tmp`; none: whatever its user may.
    pub writable: Option<Vec<PathBuf>>,
}

/// A user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A shim's one answer, a line of JSON on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The process runs.
    Running(ProcessFile),
    /// Nothing runs, and why.
    Failed(String),
}

/// Content of `shim.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The shim, or none: a node manager claimed it so that it never runs.
    pub shim: Option<Pid>,
}

/// A process id that cannot be mistaken for a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pid {
    /// The id.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot.
    pub start_ticks: u64,
}

impl Pid {
    /// The process `pid` as it is now.
    pub fn of(pid: u32) -> io::Result<Pid> {
        Ok(Pid { pid, start_ticks: start_ticks(pid)? })
    }

    /// Whether this very process still exists (a zombie counts).
    #[must_use]
    pub fn exists(self) -> bool {
        start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks)
    }
}

/// Content of `process.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFile {
    /// Which.
    pub process: Pid,
    /// When it started, unix ms.
    pub started_unix_ms: u64,
}

/// Content of `exit.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitFile {
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that ended it, else.
    pub signal: Option<i32>,
    /// Whether the shim itself killed it, and why.
    pub by_shim: Option<ByShim>,
    /// When, unix ms.
    pub ended_unix_ms: u64,
}

/// Why a shim killed its container by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ByShim {
    /// The lease ended.
    LeaseEnded,
    /// There was no node manager for too long.
    Abandoned,
}

/// The name of the file that holds a stream from offset `start`.
#[must_use]
pub fn segment_name(stream: &str, start: u64) -> String {
    if start == 0 { stream.to_owned() } else { format!("{stream}.{start}") }
}

/// When process `pid` started: field 22 of its stat, counted after the command, which may contain anything.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    fields.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time"))
    })
}

/// Creates the claim in `dir` with `content`, complete or not at all. `Ok(false)` if there is one already.
pub fn claim(dir: &Path, content: &Claim) -> io::Result<bool> {
    let dir = Folder::open(dir)?;
    // Looked at first: on a full disk nothing can be made, and there is nothing to be made.
    if dir.stat(CLAIM).is_ok() {
        return Ok(false);
    }
    let draft = format!("{CLAIM}.{}", std::process::id());
    dir.remove_file(draft.as_str())?;
    dir.create(draft.as_str(), 0o600)?.write_all(&serde_json::to_vec(content)?)?;
    let linked = dir.link(CLAIM, &dir, draft.as_str());
    dir.remove_file(draft.as_str())?;
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Replaces `name` in `dir`: a reader sees the old content or the new. `durable` survives a crash of the machine.
pub fn replace(dir: &Path, name: &str, content: &impl Serialize, durable: bool) -> io::Result<()> {
    let how = Replace { mode: 0o600, user: None, durable };
    Folder::open(dir)?.replace(name, &serde_json::to_vec(content)?, how)
}

/// Reads `name` in `dir`; none if it is not there.
pub fn read<T: for<'de> Deserialize<'de>>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    let content = match Folder::open(dir).and_then(|dir| dir.read(name, MOST)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    Ok(content.map(|content| serde_json::from_slice(&content)).transpose()?)
}
