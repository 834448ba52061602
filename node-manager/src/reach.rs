//! Whether containers can get to their folders and run programs there. If not every launch would fail, with words of
//! the kernel that name nothing; so it is tried at start, as one of them, and what is wrong is told.

use std::fs::Metadata;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nm_shim::User;
use nm_shim::folder::Folder;

use crate::users::Users;

/// The folder that it is tried in, below that of containers.
const TRIAL: &str = ".trial";

/// How long a script that does nothing may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tries it out below `root`, as one whom containers run as.
///
/// # Errors
/// What keeps containers from running, with the folder and the way out.
pub(crate) fn check(root: &Path, users: &Users) -> Result<()> {
    let containers = Folder::open(&root.join("containers"))?;
    // One that an earlier life left.
    containers.remove_all(TRIAL)?;
    let tried = run(&containers, root, users.example());
    containers.remove_all(TRIAL)?;
    let Err(error) = tried else { return Ok(()) };
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        // What runs goes on, and who fills the disk may be among it.
        tracing::warn!(root = %root.display(), %error, "whether containers can run there cannot be tried");
        return Ok(());
    }
    if !users.groups().is_empty() {
        // It is tried without the user's other groups, which may be what lets it through.
        tracing::warn!(root = %root.display(), %error, "containers may not be able to run there");
        return Ok(());
    }
    if let Some((folder, user)) = users.example().and_then(|user| Some((closed(root, user)?, user))) {
        bail!(
            "containers cannot get to --root {}: {} lets user {} not through; `chmod o+x {}`, or give nm a --root \
             elsewhere",
            root.display(),
            folder.display(),
            user.uid,
            folder.display()
        );
    }
    if is_noexec(root) {
        bail!(
            "no program can be run below --root {}: it is mounted noexec; mount it exec, or give nm a --root elsewhere",
            root.display()
        );
    }
    bail!("containers cannot run below --root {}: {error}", root.display());
}

/// Runs a script there that does nothing. Folder and script are nm's: whoever else is that user changes neither.
fn run(containers: &Folder, root: &Path, user: Option<User>) -> io::Result<()> {
    let trial = containers.make(TRIAL, 0o711)?;
    trial.create("run", 0o555)?.write_all(b"#!/bin/sh\nexit 0\n")?;
    let folder = root.join("containers").join(TRIAL);
    let mut command = Command::new(folder.join("run"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir(&folder);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let mut script = command.spawn()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match script.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(io::Error::other(format!("a script that does nothing ended with {status}")));
            }
            None if Instant::now() > deadline => {
                script.kill()?;
                let seconds = PATIENCE.as_secs();
                return Err(io::Error::other(format!("a script that does nothing ran for {seconds} s")));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The first folder on the way that does not let `user` through.
fn closed(root: &Path, user: User) -> Option<PathBuf> {
    let mut way: Vec<&Path> = root.ancestors().collect();
    way.reverse();
    let is_closed = |meta: &Metadata| {
        let shift = if meta.uid() == user.uid {
            6
        } else if meta.gid() == user.gid {
            3
        } else {
            0
        };
        meta.mode() >> shift & 1 == 0
    };
    way.into_iter().find(|folder| folder.metadata().is_ok_and(|meta| is_closed(&meta))).map(Path::to_path_buf)
}

fn is_noexec(root: &Path) -> bool {
    rustix::fs::statvfs(root).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}
