//! The node's folder: what is where, who owns it, and the records that survive a restart.
//!
//! ```text
//! nm.lock      held by the node manager that lives      node.json   state id, highest epoch
//! lease        when the lease ends, for shims           cache/      artefacts by digest
//! containers/<id>/   record.json shim.json process.json exit.json work/
//! logs/<app>/<id>/   stdout stderr, kept after the container
//! state/<job>/       .job and one folder per entry, kept after the containers
//! ```

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nm_core::Record;
use nm_shim::files;
use rustix::fs::{FlockOperation, IFlags, fcntl_lock};
use serde::{Deserialize, Serialize};
use types::{AppId, ContainerId, Epoch, JobId, NodeIncarnation, Timestamp};

use crate::points;

const NODE: &str = "node.json";
const RECORD: &str = "record.json";

/// The node's folder.
pub(crate) struct Root {
    path: PathBuf,
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
        fs::create_dir_all(path).with_context(|| format!("--root {}", path.display()))?;
        let path = path.canonicalize()?;
        for part in ["containers", "logs", "state", "cache"] {
            make_dir(&path.join(part), 0o755)?;
        }
        let lock = lock(&path)?;
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
        Ok(Root { path, _lock: lock, node: Mutex::new(node), versions: Mutex::default() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
    pub(crate) fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.path.join("nm.lock")
    }
    pub(crate) fn lease_file(&self) -> PathBuf {
        self.path.join("lease")
    }
    pub(crate) fn container(&self, id: ContainerId) -> PathBuf {
        self.path.join("containers").join(id.to_string())
    }
    pub(crate) fn work(&self, id: ContainerId) -> PathBuf {
        self.container(id).join("work")
    }
    pub(crate) fn all_logs(&self) -> PathBuf {
        self.path.join("logs")
    }
    pub(crate) fn logs(&self, app: &AppId, id: ContainerId) -> PathBuf {
        self.all_logs().join(safe(&app.0)).join(id.to_string())
    }
    pub(crate) fn all_state(&self) -> PathBuf {
        self.path.join("state")
    }
    pub(crate) fn state(&self, job: &JobId) -> PathBuf {
        self.all_state().join(safe(&job.to_string()))
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
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.lease_file())?;
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
        let dir = self.container(id);
        let content = serde_json::to_vec(record)?;
        // The record holds the application's token.
        let private = |name: &str| {
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(dir.join(name))
        };
        if version == 1 {
            // In place: a rename would cost a second commit of the file system's journal. A torn record was never
            // acknowledged.
            make_dir(&dir, 0o711)?;
            let mut file = private(RECORD)?;
            file.write_all(&content)?;
            file.sync_all()?;
            File::open(&dir)?.sync_all()?;
            File::open(self.path.join("containers"))?.sync_all()?;
        } else {
            // Not synced: it survives the end of every process, and a machine that crashes comes back as another
            // boot, in which the container is lost whatever its record says.
            make_dir(&dir, 0o711)?;
            private("record.draft")?.write_all(&content)?;
            fs::rename(dir.join("record.draft"), dir.join(RECORD))?;
        }
        *newest = version;
        Ok(())
    }

    /// The containers of earlier lives. One without a readable record never was acknowledged: its folder goes.
    pub(crate) fn records(&self) -> io::Result<Vec<(ContainerId, Record)>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.path.join("containers"))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<ContainerId>().ok()) else { continue };
            match files::read::<Record>(&entry.path(), RECORD) {
                Ok(Some(record)) => records.push((id, record)),
                Ok(None) => fs::remove_dir_all(entry.path())?,
                // Torn: only a first record is written in place.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    fs::remove_dir_all(entry.path())?
                }
                Err(error) => {
                    tracing::warn!(container = %id, %error, "its record is damaged and it is given up");
                    fs::rename(entry.path(), entry.path().with_extension("damaged"))?;
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

    /// Removes record and work directory; the record first, so that half a removal is no container.
    pub(crate) fn remove_container(&self, last: &Turn, id: ContainerId) -> io::Result<()> {
        *last.lock().expect("no one panics while holding it") = u64::MAX;
        let dir = self.container(id);
        let unrecorded = fs::remove_file(dir.join(RECORD));
        points::at("unrecorded");
        for result in [unrecorded, remove_all(&dir)] {
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Removes a folder whatever a container made in it: also what may not be entered, or may not be changed.
fn remove_all(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(folder)?;
            fs::remove_dir_all(folder)
        }
        other => other,
    }
}

fn open_up(folder: &Path) -> io::Result<()> {
    let changeable = |path: &Path| -> io::Result<()> {
        let file = File::open(path)?;
        if let Ok(flags) = rustix::fs::ioctl_getflags(&file) {
            let without = flags - IFlags::IMMUTABLE - IFlags::APPEND;
            if without != flags {
                rustix::fs::ioctl_setflags(&file, without)?;
            }
        }
        Ok(())
    };
    // Flags first: the mode of what may not be changed may not be changed either.
    changeable(folder).or_else(|_| fs::set_permissions(folder, Permissions::from_mode(0o700)))?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            open_up(&entry.path())?;
        } else if kind.is_file() {
            // What cannot be opened may be removed nevertheless.
            let _ = changeable(&entry.path());
        }
    }
    Ok(())
}

/// Takes the node's lock, waiting a moment for an old node manager to be gone.
fn lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path.join("nm.lock"))?;
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
fn safe(name: &str) -> String {
    let safe: String = name.chars().map(|c| if c == '/' || c == '\0' { '-' } else { c }).collect();
    if safe.is_empty() || safe.starts_with('.') { format!("_{safe}") } else { safe }
}
