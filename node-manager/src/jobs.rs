//! The jobs that have or may have state on this node: whom each runs as, and when its state was last used. Kept in
//! files of nm's own, beside the state: what a container says about itself in a folder of its own is not believed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use nm_shim::User;
use nm_shim::folder::{Folder, Replace, modified};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use types::JobId;

use crate::root::safe;
use crate::users::Users;

/// The folder of them, below the node's.
const FOLDER: &str = "jobs";
/// What their files' names end with.
const ENDING: &str = ".json";
/// More than such a file ever has, bytes.
const MOST: u64 = 64 << 10;
/// Where nodes of before kept whose state a folder holds; read once, for those that have no file here.
const FORMER: &str = ".job";

/// What is known of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fact {
    job: JobId,
    /// The user that it alone has.
    uid: Option<u32>,
}

/// All of them, by the names of their folders of state.
pub(crate) struct Jobs {
    folder: Folder,
    known: Mutex<BTreeMap<String, Fact>>,
    /// Held by who takes or forgets one: two never take one user, and none takes what is on its way out.
    changing: Mutex<()>,
    /// The user that was given last.
    last: AtomicU32,
    /// Those of whose state it was said that there is too much to look at.
    said: Mutex<BTreeSet<JobId>>,
}

/// Who may take or forget a job.
pub(crate) type Alone<'a> = MutexGuard<'a, ()>;

impl Jobs {
    /// Reads what is known; `state` has the folders of state.
    ///
    /// # Errors
    /// The node's folder cannot be read or written.
    pub(crate) fn open(root: &Folder, state: &Folder) -> Result<Jobs> {
        let folder = root.make(FOLDER, 0o700).context(FOLDER)?;
        let mut known = BTreeMap::new();
        for entry in folder.entries()? {
            let entry = entry?;
            let Some(name) = entry.text().and_then(|name| name.strip_suffix(ENDING)) else { continue };
            match read(&folder, &format!("{name}{ENDING}")) {
                Ok(fact) if safe(&fact.job.to_string()) == name => drop(known.insert(name.to_owned(), fact)),
                Ok(_) => set_aside(&folder, name, "it names another job"),
                Err(error) => set_aside(&folder, name, &error.to_string()),
            }
        }
        let last = AtomicU32::new(known.values().filter_map(|fact| fact.uid).max().unwrap_or(0));
        let jobs = Jobs {
            folder,
            known: Mutex::new(known),
            changing: Mutex::default(),
            last,
            said: Mutex::default(),
        };
        jobs.adopt(state)?;
        Ok(jobs)
    }

    /// Takes over folders of state that a former version made. Others are none of ours and stay.
    fn adopt(&self, state: &Folder) -> Result<()> {
        for entry in state.entries()? {
            let entry = entry?;
            let Some(name) = entry.text().filter(|_| entry.kind == FileType::Directory) else { continue };
            if self.lock().contains_key(name) {
                continue;
            }
            let fact = state.folder(name).and_then(|folder| read(&folder, FORMER));
            // It is the container's word, and believed only where it changes nothing.
            if let Ok(fact) = fact
                && safe(&fact.job.to_string()) == name
            {
                self.write(name, &Fact { uid: None, ..fact })?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Fact>> {
        self.known.lock().expect("no one panics while holding it")
    }

    /// Nobody else takes or forgets a job meanwhile.
    pub(crate) fn alone(&self) -> Alone<'_> {
        self.changing.lock().expect("no one panics while holding it")
    }

    fn write(&self, name: &str, fact: &Fact) -> Result<()> {
        let how = Replace { mode: 0o600, user: None, durable: true };
        self.folder.replace(&format!("{name}{ENDING}"), &serde_json::to_vec(fact)?, how)?;
        self.lock().insert(name.to_owned(), fact.clone());
        Ok(())
    }

    /// Notes that a job's state is used from now on, and tells whom the job runs as; none: as nm itself. A new user is
    /// none of `owners`, who have left something.
    ///
    /// # Errors
    /// Another job has the same folder, no user is left, or the disk is full.
    pub(crate) fn take(
        &self,
        _alone: &Alone<'_>,
        job: &JobId,
        users: &Users,
        owners: impl FnOnce() -> io::Result<BTreeSet<u32>>,
    ) -> Result<Option<User>> {
        let name = safe(&job.to_string());
        let fact = self.lock().get(&name).cloned();
        if let Some(other) = fact.as_ref().filter(|fact| fact.job != *job) {
            bail!("its state would be in the folder of job {}, which has state here", other.job);
        }
        let uid = match users {
            Users::Own => None,
            Users::One(user, _) => return self.note(&name, job, fact, None).map(|()| Some(*user)),
            Users::PerJob(range) => match fact.as_ref().and_then(|fact| fact.uid) {
                Some(uid) if range.has(uid) => Some(uid),
                Some(_) | None => {
                    let mut taken = owners().context("whose files there are")?;
                    taken.extend(self.lock().values().filter_map(|fact| fact.uid));
                    // One that was given back is the last to be given again.
                    let after = self.last.load(Ordering::Relaxed);
                    let free = range.free(after, |uid| taken.contains(&uid));
                    let none = || format!("all users of --uids {range} are taken by jobs with state here");
                    let uid = free.with_context(none)?;
                    self.last.store(uid, Ordering::Relaxed);
                    Some(uid)
                }
            },
        };
        self.note(&name, job, fact, uid)?;
        Ok(uid.map(own))
    }

    /// Whom a job runs as that was taken.
    ///
    /// # Errors
    /// It was not.
    pub(crate) fn user_of(&self, job: &JobId, users: &Users) -> Result<Option<User>> {
        match users {
            Users::Own => Ok(None),
            Users::One(user, _) => Ok(Some(*user)),
            Users::PerJob(_) => {
                let uid = self.lock().get(&safe(&job.to_string())).and_then(|fact| fact.uid);
                Ok(Some(own(uid.context("its job has no user on this node")?)))
            }
        }
    }

    fn note(&self, name: &str, job: &JobId, fact: Option<Fact>, uid: Option<u32>) -> Result<()> {
        let now = Fact { job: job.clone(), uid };
        if fact.as_ref() == Some(&now) {
            self.touch(name);
            return Ok(());
        }
        self.write(name, &now)
    }

    /// Notes that the state of these is in use, of those that have any.
    pub(crate) fn used(&self, jobs: &[JobId]) {
        let names = jobs.iter().map(|job| safe(&job.to_string()));
        let known: BTreeSet<String> = names.filter(|name| self.lock().contains_key(name)).collect();
        known.iter().for_each(|name| self.touch(name));
    }

    fn touch(&self, name: &str) {
        let touched = self.folder.file(format!("{name}{ENDING}").as_str());
        if let Err(error) = touched.and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::warn!(job = name, %error, "the use of its state cannot be noted");
        }
    }

    /// The jobs, with the names of their folders.
    pub(crate) fn all(&self) -> Vec<(String, JobId)> {
        self.lock().iter().map(|(name, fact)| (name.clone(), fact.job.clone())).collect()
    }

    /// When a job's state was last used; none if that is not known.
    pub(crate) fn last_used(&self, job: &JobId) -> Option<SystemTime> {
        let file = format!("{}{ENDING}", safe(&job.to_string()));
        self.folder.stat(file.as_str()).ok().and_then(|stat| modified(&stat))
    }

    /// Forgets a job, whose state is gone; its user is free.
    ///
    /// # Errors
    /// Its file cannot be removed.
    pub(crate) fn forget(&self, _alone: &Alone<'_>, job: &JobId) -> io::Result<()> {
        let name = safe(&job.to_string());
        if self.lock().get(&name).is_some_and(|fact| fact.job == *job) {
            self.folder.remove_file(format!("{name}{ENDING}").as_str())?;
            self.lock().remove(&name);
        }
        Ok(())
    }

    /// Says once of a job that its state is more than is looked at.
    pub(crate) fn say_cut(&self, job: &JobId, cut: bool) {
        let mut said = self.said.lock().expect("no one panics while holding it");
        if !cut {
            said.remove(job);
        } else if said.insert(job.clone()) {
            tracing::warn!(%job, "it has more files and folders in its state than are looked at: its size is told short");
        }
    }
}

/// Each has a group of its own too, with the same number.
fn own(uid: u32) -> User {
    User { uid, gid: uid }
}

fn read(folder: &Folder, name: &str) -> io::Result<Fact> {
    let content = folder.read(name, MOST)?.ok_or(io::ErrorKind::NotFound)?;
    // Former files hold the job alone.
    if let Ok(job) = serde_json::from_slice::<JobId>(&content) {
        return Ok(Fact { job, uid: None });
    }
    Ok(serde_json::from_slice(&content)?)
}

fn set_aside(folder: &Folder, name: &str, why: &str) {
    tracing::warn!(job = name, why, "what is known of it is damaged and set aside; its state is left alone");
    if let Err(error) = folder.rename(format!("{name}{ENDING}").as_str(), format!("{name}.damaged").as_str())
    {
        tracing::warn!(job = name, %error, "it cannot be set aside");
    }
}
