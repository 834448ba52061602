//! The local state that outlives containers: what there is, how big, how fresh; and its end.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use types::{JobId, StateEntry};

use crate::age::Ages;
use crate::root::Root;

/// The file that says whose state a folder holds, and by its time when it was last in use.
const JOB: &str = ".job";

/// Everything below `state/`, in order of job and entry.
pub(crate) fn scan(root: &Root) -> io::Result<Vec<StateEntry>> {
    let mut found = Vec::new();
    for dir in fs::read_dir(root.all_state())? {
        let dir = dir?.path();
        let Some(job) = job_of(&dir) else { continue };
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !entry.file_type()?.is_dir() {
                continue;
            }
            let mut size = Size::default();
            measure(&entry.path(), &mut size)?;
            found.push(StateEntry {
                job: job.clone(),
                entry: name,
                bytes: size.bytes,
                flushed_unix_ms: size.newest.map_or(0, unix_ms),
            });
        }
    }
    found.sort_by(|a, b| (&a.job, &a.entry).cmp(&(&b.job, &b.entry)));
    Ok(found)
}

/// Removes a job's state.
pub(crate) fn purge(root: &Root, job: &JobId) -> io::Result<()> {
    match fs::remove_dir_all(root.state(job)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the state of jobs that were last used a day ago; `in_use` jobs have a container here.
pub(crate) fn sweep(root: &Root, in_use: &[JobId], ages: &Ages) -> io::Result<()> {
    for dir in fs::read_dir(root.all_state())? {
        let dir = dir?.path();
        let Some(job) = job_of(&dir) else { continue };
        if in_use.contains(&job) {
            // A job may run for days without a change of its state: that is use.
            fs::File::open(dir.join(JOB))?.set_modified(SystemTime::now())?;
            continue;
        }
        let mut size = Size::default();
        measure(&dir, &mut size)?;
        if size.newest.is_some_and(|newest| ages.is_old(newest)) {
            tracing::info!(%job, "its local state has not been used for a day and goes");
            purge(root, &job)?;
        }
    }
    Ok(())
}

fn job_of(dir: &Path) -> Option<JobId> {
    serde_json::from_slice(&fs::read(dir.join(JOB)).ok()?).ok()
}

#[derive(Default)]
struct Size {
    bytes: u64,
    newest: Option<SystemTime>,
}

/// Adds up a folder. Files that vanish meanwhile (stores compact) are not an error.
fn measure(dir: &Path, size: &mut Size) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            measure(&entry.path(), size)?;
        } else {
            size.bytes += meta.len();
            size.newest = size.newest.max(meta.modified().ok());
        }
    }
    Ok(())
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
