//! The local state that outlives containers: what there is, how big, how fresh; and its end.

use std::io;
use std::time::SystemTime;

use rustix::fs::FileType;
use types::{JobId, StateEntry};

use crate::age::Ages;
use crate::root::Root;

/// Entries of all jobs that are told of, of each a fair share: there is one per task. They are told in one message.
const ENTRIES: usize = 40_000;
/// The longest name of an entry that a task makes, bytes.
const NAME: usize = 128;
/// Files and folders of one entry that are looked at; a store has some hundreds.
const FILES: u64 = 100_000;
/// Files and folders of one job that are looked at.
const FILES_OF_JOB: u64 = 1_000_000;
/// Levels below an entry that are looked at; a store has two.
const LEVELS: usize = 16;

/// All jobs' state, in order of job and entry. What cannot be looked at of one takes nothing from the others.
pub(crate) fn scan(root: &Root) -> Vec<StateEntry> {
    let mut found = Vec::new();
    let jobs = root.jobs.all();
    let share = ENTRIES / jobs.len().max(1);
    for (name, job) in jobs {
        let (entries, cut) = entries(root, &name, &job, share.max(1));
        root.jobs.say_cut(&job, cut);
        found.extend(entries);
    }
    found.sort_by(|a, b| (&a.job, &a.entry).cmp(&(&b.job, &b.entry)));
    found
}

/// The entries of one job, and whether there were more than are looked at.
fn entries(root: &Root, name: &str, job: &JobId, most: usize) -> (Vec<StateEntry>, bool) {
    let mut found = Vec::new();
    let (mut left, mut cut) = (FILES_OF_JOB, false);
    let Ok(folder) = root.state.folder(name) else { return (found, false) };
    let Ok(entries) = folder.entries() else { return (found, false) };
    for entry in entries.flatten() {
        if left == 0 || found.len() == most {
            return (found, true);
        }
        left -= 1;
        let is_entry = |name: &&str| {
            entry.kind == FileType::Directory && name.len() <= NAME && !name.chars().any(char::is_control)
        };
        let Some(text) = entry.text().filter(is_entry) else { continue };
        let Ok(inside) = folder.folder(text) else { continue };
        let size = inside.measure(FILES.min(left), LEVELS);
        left -= size.entries;
        cut |= size.cut;
        found.push(StateEntry {
            job: job.clone(),
            entry: text.to_owned(),
            bytes: size.bytes,
            flushed_unix_ms: size.newest.map_or(0, unix_ms),
        });
    }
    (found, cut)
}

/// Removes a job's state. It takes as long as that takes; nobody sees it from the beginning on.
pub(crate) fn purge(root: &Root, job: &JobId) -> io::Result<()> {
    purge_if(root, job, || true)
}

/// Removes the state of jobs that were last used a day ago; `in_use` jobs have a container here. What cannot be removed
/// of one keeps nothing of another.
pub(crate) fn sweep(root: &Root, in_use: &[JobId], ages: &Ages) {
    // A job may run for days without a change of its state: that is use.
    root.jobs.used(in_use);
    for (_, job) in root.jobs.all() {
        let is_old = || root.jobs.last_used(&job).is_some_and(|used| ages.is_old(used));
        if !in_use.contains(&job) && is_old() {
            tracing::info!(%job, "its local state has not been used for a day and goes");
            if let Err(error) = purge_if(root, &job, is_old) {
                tracing::warn!(%job, %error, "its state cannot be removed");
            }
        }
    }
}

/// Asked again when nobody can begin to use it.
fn purge_if(root: &Root, job: &JobId, still: impl FnOnce() -> bool) -> io::Result<()> {
    let alone = root.jobs.alone();
    if !still() {
        return Ok(());
    }
    let gone = root.put_away_state(job)?;
    root.jobs.forget(&alone, job)?;
    drop(alone);
    gone.map_or(Ok(()), |gone| root.remove_gone_state(&gone))
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
