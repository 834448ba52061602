//! A container's control group and those that it made below it: what is in all of them, and their removal. A container
//! may make many, and deep ones: they are walked by handle, one at a time, and never recursively.

use std::ffi::{CStr, CString};
use std::io;
use std::path::Path;

use rustix::fs::FileType;

use crate::folder::Folder;

/// More than a list of processes ever has, bytes.
const LIST: u64 = 64 << 20;

/// The processes in a group and in those below it; none if the group is gone.
///
/// # Errors
/// It cannot be read.
pub fn processes_below(group: &Path) -> io::Result<Option<Vec<u32>>> {
    let mut found = Vec::new();
    let mut look = |folder: &Folder| {
        let text = match folder.read("cgroup.procs", LIST) {
            // It went meanwhile; or it is one of threads, whose processes are in the list of the one above.
            Err(error) if is_gone(&error) || is_of_threads(&error) => None,
            other => other?,
        };
        let text = String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
        found.extend(text.lines().filter_map(|line| line.trim().parse::<u32>().ok()));
        Ok(())
    };
    match walk(group, &mut look, &mut |_, _| Ok(())) {
        Err(error) if is_gone(&error) => Ok(None),
        walked => walked.map(|()| Some(found)),
    }
}

/// Removes a group and those below it, which must be empty. One that is not there is removed.
///
/// # Errors
/// A process is in one of them.
pub fn remove_below(group: &Path) -> io::Result<()> {
    match walk(group, &mut |_| Ok(()), &mut |above, name| above.remove_empty(name)) {
        Err(error) if is_gone(&error) => {}
        walked => walked?,
    }
    match std::fs::remove_dir(group) {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

/// Calls `look` for a group and each below it, and `leave` for each below it with the one above, when those below that
/// were left.
fn walk(
    group: &Path,
    look: &mut dyn FnMut(&Folder) -> io::Result<()>,
    leave: &mut dyn FnMut(&Folder, &CStr) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = Folder::open(group)?;
    look(&at)?;
    // The way down to where it is, and of each level those that are still to be walked.
    let mut way: Vec<CString> = Vec::new();
    let mut left = vec![groups(&at)?];
    while let Some(names) = left.last_mut() {
        let Some(name) = names.pop() else {
            left.pop();
            if let Some(name) = way.pop() {
                at = at.above()?;
                leave(&at, &name)?;
            }
            continue;
        };
        let below = match at.folder(name.as_c_str()) {
            Err(error) if is_gone(&error) => continue,
            other => other?,
        };
        look(&below)?;
        left.push(groups(&below)?);
        way.push(name);
        at = below;
    }
    Ok(())
}

fn groups(folder: &Folder) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in folder.entries()? {
        let entry = entry?;
        if entry.kind == FileType::Directory {
            names.push(entry.name);
        }
    }
    Ok(names)
}

/// ENOENT, or ENODEV: a cgroup file that was open when its group was removed.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn is_of_threads(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Folders and files stand for groups: what is walked is the same.
    #[test]
    fn groups_below_are_walked_and_removed_however_deep_they_are() {
        let dir = tempfile::tempdir().expect("a folder");
        let group = dir.path().join("group");
        fs::create_dir(&group).expect("a group");
        let mut at = Folder::open(&group).expect("it is there");
        // Far beyond what a path may have, and what may be open at once.
        for _ in 0..3_000 {
            at = at.make("deeper", 0o700).expect("a group");
        }
        std::io::Write::write_all(&mut at.create("cgroup.procs", 0o600).expect("a file"), b"7\n8\n")
            .expect("room");
        fs::create_dir(group.join("beside")).expect("a group");
        fs::write(group.join("beside/cgroup.procs"), "9\n").expect("a file");
        let mut found = processes_below(&group).expect("readable").expect("it is there");
        found.sort_unstable();
        assert_eq!(found, [7, 8, 9]);
        at.remove_file("cgroup.procs").expect("it is there");
        fs::remove_file(group.join("beside/cgroup.procs")).expect("it is there");
        remove_below(&group).expect("removed");
        assert!(!group.exists());
        remove_below(&group).expect("it is removed");
        assert_eq!(processes_below(&group).expect("no error"), None);
    }
}
