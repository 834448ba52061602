//! The node's folder: what is where, who owns it, and the records that survive a restart.
//!
//! ```text
//! nm.lock      held by the node manager that lives      node.json   state id, highest epoch
//! lease        when the lease ends, for shims           cache/      artefacts by digest
//! containers/<id>/   record.json shim.json process.json exit.json
//!     given/         what the container is told: job, token, secrets, where its master is
//!     work/ tmp/     the container's own
//! logs/<app>/<id>/   stdout stderr, kept after the container; written by its shim
//! state/<job>/       the job's own: one folder per entry, kept after the containers
//! jobs/<job>.json    whom the job runs as, and by its time when its state was last used
//! ```
//!
//! Containers own `work`, `tmp` and `state/<job>`, and can write nowhere else: what is in those is hostile ground, which
//! nothing of ours enters by path (see [`Folder`]). What begins with `.gone-` is on its way out.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nm_core::Record;
use nm_shim::folder::{Folder, Replace, modified};
use nm_shim::{User, files};
use rustix::fs::{FileType, FlockOperation, fcntl_lock};
use serde::{Deserialize, Serialize};
use types::{AppId, ContainerId, Epoch, JobId, NodeIncarnation, Timestamp};

use crate::age::Ages;
use crate::jobs::Jobs;
use crate::points;

const NODE: &str = "node.json";
const LEASE: &str = "lease";
const LOCK: &str = "nm.lock";
const RECORD: &str = "record.json";
/// The folder of what a container is told, below its own.
pub(crate) const GIVEN: &str = "given";
/// A container's own folder, below that of nm's about it.
pub(crate) const WORK: &str = "work";
/// How what is to be removed is called.
const GONE: &str = ".gone-";
/// How a container's folder is called whose record cannot be read.
const DAMAGED: &str = ".damaged";
/// The most that a record is read of, bytes.
const RECORD_MOST: u64 = 16 << 20;

/// The node's folder.
pub(crate) struct Root {
    path: PathBuf,
    folder: Folder,
    pub(crate) containers: Folder,
    pub(crate) logs: Folder,
    pub(crate) state: Folder,
    pub(crate) cache: Folder,
    pub(crate) jobs: Jobs,
    /// Locks are the process's: they go when any descriptor of the file is closed, so this one stays open.
    _lock: File,
    node: Mutex<NodeFile>,
    /// Per container, the version of the newest record written.
    versions: Mutex<HashMap<ContainerId, Turn>>,
}

/// The version of the newest record of one container.
pub(crate) type Turn = Arc<Mutex<u64>>;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct NodeFile {
    state_id: String,
    top_epoch: u64,
}

impl Root {
    /// Opens or makes the folder, for this process alone.
    pub(crate) fn open(path: &Path) -> Result<Root> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(path)
            .with_context(|| format!("--root {}", path.display()))?;
        let path = path.canonicalize()?;
        let folder = Folder::open(&path)?;
        let lock = lock(&path, &folder)?;
        let node = match files::read::<NodeFile>(&path, NODE) {
            Ok(Some(node)) => node,
            Ok(None) => {
                let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
                let node = NodeFile { state_id: uuid.trim().to_owned(), top_epoch: 0 };
                files::replace(&path, NODE, &node, true)?;
                node
            }
            Err(error) => bail!("{} is damaged: {error}", path.join(NODE).display()),
        };
        let part = |name: &str, mode: u32| -> Result<Folder> {
            // A link of the operator's, to another disk, is followed.
            let at = path.join(name);
            let made = make_dir(&at, mode).and_then(|()| Folder::open(&at));
            let part = made.with_context(|| at.display().to_string())?;
            // One of a former version, or that a former umask made, may let in more or fewer.
            part.set_mode(mode)?;
            Ok(part)
        };
        // Containers go through the first two to what is theirs, and list none.
        let (containers, state, cache) =
            (part("containers", 0o711)?, part("state", 0o711)?, part("cache", 0o700)?);
        let logs = part("logs", 0o755)?;
        let jobs = Jobs::open(&folder, &state)?;
        let (node, versions) = (Mutex::new(node), Mutex::default());
        Ok(Root { path, folder, containers, logs, state, cache, jobs, _lock: lock, node, versions })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.path.join(LOCK)
    }
    pub(crate) fn lease_file(&self) -> PathBuf {
        self.path.join(LEASE)
    }
    pub(crate) fn container(&self, id: ContainerId) -> PathBuf {
        self.path.join("containers").join(id.to_string())
    }
    pub(crate) fn work(&self, id: ContainerId) -> PathBuf {
        self.container(id).join(WORK)
    }
    /// What a container is told, in files.
    pub(crate) fn given(&self, id: ContainerId) -> PathBuf {
        self.container(id).join(GIVEN)
    }
    pub(crate) fn logs(&self, app: &AppId, id: ContainerId) -> PathBuf {
        self.path.join("logs").join(safe(&app.0)).join(id.to_string())
    }
    pub(crate) fn state(&self, job: &JobId) -> PathBuf {
        self.path.join("state").join(safe(&job.to_string()))
    }

    /// Who this node is in this boot.
    pub(crate) fn incarnation(&self) -> Result<NodeIncarnation> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("boot id")?;
        let state_id = self.node().state_id.clone();
        Ok(NodeIncarnation { boot_id: boot_id.trim().to_owned(), state_id })
    }

    pub(crate) fn top_epoch(&self) -> Epoch {
        Epoch(self.node().top_epoch)
    }

    pub(crate) fn set_top_epoch(&self, epoch: Epoch) -> io::Result<()> {
        let mut node = self.node();
        node.top_epoch = node.top_epoch.max(epoch.0);
        files::replace(&self.path, NODE, &*node, true)
    }

    fn node(&self) -> std::sync::MutexGuard<'_, NodeFile> {
        self.node.lock().expect("no one panics while holding it")
    }

    /// Overwritten in place: the width is fixed, so a reader sees the old number or the new.
    pub(crate) fn write_lease(&self, end: Timestamp) -> io::Result<()> {
        let file = self.folder.open_to_write(LEASE, 0o600)?;
        std::os::unix::fs::FileExt::write_all_at(&file, format!("{:020}\n", end.0).as_bytes(), 0)
    }

    /// The turn of a container's records: taken in the order of commands, used in any.
    pub(crate) fn turn(&self, id: ContainerId) -> Turn {
        self.versions.lock().expect("no one panics while holding it").entry(id).or_default().clone()
    }

    /// Ends a container's records: those still under way write nothing.
    pub(crate) fn last_turn(&self, id: ContainerId) -> Turn {
        self.versions.lock().expect("no one panics while holding it").remove(&id).unwrap_or_default()
    }

    /// Writes a record, the first one durably, unless a newer one was written before or the container was removed.
    pub(crate) fn persist(
        &self,
        slot: &Turn,
        id: ContainerId,
        version: u64,
        record: &Record,
    ) -> io::Result<()> {
        let mut newest = slot.lock().expect("no one panics while holding it");
        if *newest >= version {
            return Ok(());
        }
        // The record holds the application's token, and the folder is not the container's yet.
        let dir = self.containers.make(id.to_string().as_str(), 0o711)?;
        let content = serde_json::to_vec(record)?;
        if version == 1 {
            // In place: a rename would cost a second commit of the file system's journal. A torn record was never
            // acknowledged.
            let mut file = dir.create(RECORD, 0o600)?;
            file.write_all(&content)?;
            file.sync_all()?;
            dir.sync()?;
            self.containers.sync()?;
        } else {
            // Not synced: it survives the end of every process, and a machine that crashes comes back as another
            // boot, in which the container is lost whatever its record says.
            dir.replace(RECORD, &content, Replace { mode: 0o600, user: None, durable: false })?;
        }
        *newest = version;
        Ok(())
    }

    /// The containers of earlier lives. One without a readable record never was acknowledged: its folder goes. What is
    /// no container's stays.
    pub(crate) fn records(&self) -> io::Result<Vec<(ContainerId, Record)>> {
        let mut records = Vec::new();
        for entry in self.containers.entries()? {
            let entry = entry?;
            let id = entry.text().and_then(|name| name.parse::<ContainerId>().ok());
            let Some(id) = id.filter(|_| entry.kind == FileType::Directory) else { continue };
            let name = id.to_string();
            match self.record(&name) {
                Ok(Some(record)) => records.push((id, record)),
                Ok(None) => self.containers.rename(name.as_str(), gone(&name).as_str())?,
                // Torn: only a first record is written in place.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.containers.rename(name.as_str(), gone(&name).as_str())?;
                }
                Err(error) => {
                    tracing::warn!(container = %id, %error, "its record is damaged and it is given up");
                    self.containers.rename(name.as_str(), format!("{name}{DAMAGED}").as_str())?;
                }
            }
        }
        records.sort_by_key(|(id, _)| *id);
        for (id, _) in &records {
            let versions = self.versions.lock();
            versions.expect("no one panics while holding it").insert(*id, Arc::new(Mutex::new(1)));
        }
        Ok(records)
    }

    fn record(&self, name: &str) -> io::Result<Option<Record>> {
        let content = self.containers.folder(name)?.read(RECORD, RECORD_MOST)?;
        Ok(content.map(|content| serde_json::from_slice(&content)).transpose()?)
    }

    /// Removes record and work directory; the record first, so that half a removal is no container. It takes as long as
    /// what the container left takes.
    pub(crate) fn remove_container(&self, last: &Turn, id: ContainerId) -> io::Result<()> {
        *last.lock().expect("no one panics while holding it") = u64::MAX;
        let name = id.to_string();
        let dir = match self.containers.folder(name.as_str()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        // Who gets its user's number next finds nothing.
        dir.set_mode(0o700)?;
        dir.remove_file(RECORD)?;
        points::at("unrecorded");
        self.containers.rename(name.as_str(), gone(&name).as_str())?;
        self.containers.remove_all(gone(&name).as_str())
    }

    /// Takes a job's state out of the way of who comes next, and out of everybody's reach: under which name, if there is
    /// any. It is removed by [`Root::remove_gone_state`].
    pub(crate) fn put_away_state(&self, job: &JobId) -> io::Result<Option<String>> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (name, number) = (safe(&job.to_string()), NEXT.fetch_add(1, Ordering::Relaxed));
        let gone = gone(&format!("{}-{number}", daemon::boottime_ms()));
        let folder = match self.state.folder(name.as_str()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if rustix::process::geteuid().is_root() {
            folder.give(User { uid: 0, gid: 0 })?;
        }
        folder.set_mode(0o700)?;
        self.state.rename(name.as_str(), gone.as_str())?;
        Ok(Some(gone))
    }

    /// Removes what was put away. It takes as long as that takes.
    pub(crate) fn remove_gone_state(&self, gone: &str) -> io::Result<()> {
        self.state.remove_all(gone).map_err(|error| self.at(&format!("state/{gone}"), &error))
    }

    /// Removes what is on its way out, also of earlier lives. It takes as long as that takes, and what cannot be removed
    /// keeps nothing else.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let mut last = Ok(());
        for (part, folder) in [("containers", &self.containers), ("state", &self.state)] {
            for entry in folder.entries()? {
                let entry = entry?;
                let Some(name) = entry.text().filter(|name| name.starts_with(GONE)) else { continue };
                let removed = folder.remove_all(name);
                last = removed.map_err(|error| self.at(&format!("{part}/{name}"), &error)).and(last);
            }
        }
        last
    }

    fn at(&self, path: &str, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.join(path).display()))
    }

    /// The users that own something that containers left: none of them may become another job's.
    pub(crate) fn owners(&self) -> io::Result<BTreeSet<u32>> {
        let mut owners = BTreeSet::new();
        for entry in self.state.entries()? {
            owners.extend(self.state.stat(entry?.name.as_c_str()).map(|stat| stat.st_uid));
        }
        for entry in self.containers.entries()? {
            let work = self.containers.folder(entry?.name.as_c_str()).and_then(|dir| dir.stat(WORK));
            owners.extend(work.map(|stat| stat.st_uid));
        }
        Ok(owners)
    }

    /// Removes the folders of containers whose records could not be read, after a day.
    pub(crate) fn sweep_damaged(&self, ages: &Ages) -> io::Result<()> {
        for entry in self.containers.entries()? {
            let entry = entry?;
            let is_damaged = entry.text().is_some_and(|name| name.ends_with(DAMAGED));
            let is_old = || self.containers.stat(entry.name.as_c_str()).ok().and_then(|stat| modified(&stat));
            if is_damaged && is_old().is_some_and(|touched| ages.is_old(touched)) {
                self.containers.remove_all(entry.name.as_c_str())?;
            }
        }
        Ok(())
    }
}

fn gone(name: &str) -> String {
    format!("{GONE}{name}")
}

/// Takes the node's lock, waiting a moment for an old node manager to be gone.
fn lock(path: &Path, folder: &Folder) -> Result<File> {
    // A container that could open it could lock it, and keep every later nm from starting.
    let file = folder.open_to_write(LOCK, 0o600).with_context(|| path.join(LOCK).display().to_string())?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    for _ in 0..20 {
        if fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(file);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("another nm runs on {}; give this one its own --root", path.display())
}

/// Makes a folder with exactly this mode, whatever the umask; one that is there stays as it is.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A name as one part of a path.
pub(crate) fn safe(name: &str) -> String {
    let safe: String = name.chars().map(|c| if c == '/' || c == '\0' { '-' } else { c }).collect();
    if safe.is_empty() || safe.starts_with('.') { format!("_{safe}") } else { safe }
}
