//! Whether containers can get to their folders and run programs there. If not every launch would fail, with words of
//! the kernel that name nothing; so it is tried at start, as one of them, and what is wrong is told.

use std::fs::Metadata;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use nm_shim::User;
use nm_shim::folder::Folder;

/// The folder that it is tried in, below that of containers.
const TRIAL: &str = ".trial";

/// Tries it out below `root`, as `user`, if that is not nm itself.
///
/// # Errors
/// What keeps containers from running, with the folder and the way out.
pub(crate) fn check(root: &Path, user: Option<User>) -> Result<()> {
    let containers = Folder::open(&root.join("containers"))?;
    // One that an earlier life left.
    containers.remove_all(TRIAL)?;
    let tried = run(&containers, root, user);
    containers.remove_all(TRIAL)?;
    let Err(error) = tried else { return Ok(()) };
    if let Some(folder) = user.and_then(|user| closed(root, user)) {
        bail!(
            "containers cannot get to --root {}: {} lets user {} not through; `chmod o+x {}`, or give nm a --root \
             elsewhere",
            root.display(),
            folder.display(),
            user.map_or(0, |user| user.uid),
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

fn run(containers: &Folder, root: &Path, user: Option<User>) -> std::io::Result<()> {
    let trial = containers.make(TRIAL, 0o700)?;
    let mut script = trial.create("run", 0o555)?;
    script.write_all(b"#!/bin/sh\n: > written\n")?;
    drop(script);
    if let Some(user) = user {
        trial.give(user)?;
    }
    let folder = root.join("containers").join(TRIAL);
    let mut command = Command::new(folder.join("run"));
    command.current_dir("/").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.current_dir(&folder);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let status = command.status()?;
    if !status.success() {
        return Err(std::io::Error::other(format!("a script that writes a file there ended with {status}")));
    }
    Ok(())
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
