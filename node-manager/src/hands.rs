//! The core's commands that take time, each in the background; what came of them goes to the driver.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use nm_core::{Command, Event, Found, Master, Record, Recovered};
use nm_shim::files::{self, Pid};
use nm_shim::{ExitFile, ProcessFile};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use types::{ContainerId, JobId, NodeIncarnation, StartContainer};

use crate::cgroup::{Cgroups, remove_patiently};
use crate::driver::Inbox;
use crate::launch::Launcher;
use crate::localize::Localizer;
use crate::points;
use crate::root::Root;
use crate::watch::{self, Left, Shim};

/// How long a restarted node manager waits, all together, for what its earlier life left to say more or to die. What takes
/// longer is followed while it has joined: one that hangs in the kernel keeps no others waiting.
const RECOVERY: Duration = Duration::from_secs(1);
/// How long a container's folders may take, with all archives that are unpacked into them.
const PREPARE: Duration = Duration::from_secs(600);
/// How long a kill is repeated before it is told that it does not help.
const KILL: Duration = Duration::from_secs(4);
/// The same for what is left after a shim's end.
const CONCLUDE: Duration = Duration::from_secs(5);
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Containers of one job whose folders are made at once: one whose archives take long keeps no other job waiting.
const PREPARED_AT_ONCE: usize = 8;

/// A download or preparation under way.
pub(crate) struct Preparing {
    task: JoinHandle<()>,
    /// Nothing is written into the container's folder any more.
    ended: oneshot::Receiver<()>,
}

/// Whose turn it is to make a container's folders, by job.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<JobId, Arc<Semaphore>>>);

impl Turns {
    fn of(&self, job: &JobId) -> Arc<Semaphore> {
        let mut turns = self.0.lock().expect("no one panics while holding it");
        // Of jobs that have none under way nothing needs to be known.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(job.clone()).or_insert_with(|| Arc::new(Semaphore::new(PREPARED_AT_ONCE))).clone()
    }
}

/// Does what the core commands.
#[derive(Clone)]
pub(crate) struct Hands {
    pub(crate) root: Arc<Root>,
    pub(crate) cgroups: Arc<dyn Cgroups>,
    pub(crate) launcher: Arc<Launcher>,
    pub(crate) localizer: Arc<Localizer>,
    pub(crate) inbox: mpsc::UnboundedSender<Inbox>,
    pub(crate) turns: Arc<Turns>,
}

impl Hands {
    fn tell(&self, message: Inbox) {
        // The driver is gone only at shutdown.
        let _ = self.inbox.send(message);
    }

    pub(crate) fn persist(&self, id: ContainerId, version: u64, record: Box<Record>) {
        let (hands, turn) = (self.clone(), self.root.turn(id));
        tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            if record.exit.is_some() {
                points::at("exit-unrecorded");
            }
            let written = hands.root.persist(&turn, id, version, &record);
            tracing::debug!(container = %id, version, took = ?begun.elapsed(), "recorded");
            points::at(if record.exit.is_some() { "exit-recorded" } else { "recorded" });
            let event = match written {
                Ok(()) => Event::Persisted { id, version },
                Err(error) => {
                    tracing::error!(container = %id, %error, "its record cannot be written");
                    Event::PersistFailed { id, version, reason: error.to_string() }
                }
            };
            hands.tell(Inbox::Core(event));
        });
    }

    pub(crate) fn localize(&self, start: StartContainer) -> Preparing {
        let hands = self.clone();
        let (ending, ended) = oneshot::channel();
        let task = tokio::spawn(async move {
            let id = start.id;
            let result = hands.fetch_and_prepare(start, ending).await.map_err(|error| format!("{error:#}"));
            hands.tell(Inbox::Core(Event::Localized { id, result }));
        });
        Preparing { task, ended }
    }

    async fn fetch_and_prepare(&self, start: StartContainer, ending: oneshot::Sender<()>) -> Result<()> {
        let mut in_use = Vec::new();
        for artefact in &start.artefacts {
            in_use.push(self.localizer.fetch(&self.root, artefact).await?);
        }
        points::at("localized");
        let turn = self.turns.of(&start.job).acquire_owned().await?;
        let hands = self.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            // Dropped at its end, whoever still waits for it.
            let _both = (turn, ending);
            let prepared = hands.launcher.prepare(&hands.root, &start);
            // Given to the container by now.
            drop(in_use);
            prepared
        });
        // A disk that hangs cannot be waited for; what it does later is removed with the container.
        let prepared = tokio::time::timeout(PREPARE, prepared).await;
        prepared.unwrap_or_else(|_| {
            Ok(Err(anyhow::anyhow!(
                "its folders were not there after {} s: does a disk hang?",
                PREPARE.as_secs()
            )))
        })?
    }

    pub(crate) fn launch(&self, start: StartContainer, master: Option<Master>) {
        let hands = self.clone();
        tokio::spawn(async move {
            let id = start.id;
            let doing = hands.clone();
            let launched = tokio::task::spawn_blocking(move || {
                doing.launcher.launch(&doing.root, doing.cgroups.as_ref(), &start, master.as_ref())
            })
            .await;
            let started = match launched.map_err(anyhow::Error::from).and_then(|result| result) {
                Ok(started) => started,
                Err(error) => {
                    let reason = format!("{error:#}");
                    tracing::warn!(container = %id, reason, "it cannot be started");
                    return hands.tell(Inbox::Core(Event::LaunchFailed { id, reason }));
                }
            };
            let pid = started.shim.id();
            let shim = Pid::of(pid).and_then(|pid| {
                hands.tell(Inbox::Shim(id, pid));
                Shim::hold(pid, Some(started.shim))
            });
            let process = watch::process_of(started.process);
            hands.tell(Inbox::Core(Event::Launched { id, process }));
            hands.follow(id, shim).await;
        });
    }

    /// Waits for the shim's end, then cleans up and tells; tells of memory that is exhausted before that.
    async fn follow(&self, id: ContainerId, shim: std::io::Result<Option<Shim>>) {
        match shim {
            Ok(Some(mut shim)) => tokio::select! {
                () = shim.ended() => {}
                () = watch::memory_exhausted(self.cgroups.as_ref(), id) => {
                    self.tell(Inbox::Core(Event::MemoryExhausted { id }));
                    shim.ended().await;
                }
            },
            Ok(None) => {}
            Err(error) => tracing::error!(container = %id, %error, "its shim cannot be watched; ending it"),
        }
        let hands = self.clone();
        let end = tokio::task::spawn_blocking(move || {
            loop {
                let dir = hands.root.container(id);
                if let Some(end) = watch::conclude(hands.cgroups.as_ref(), id, &dir, CONCLUDE) {
                    return end;
                }
                tracing::warn!(container = %id, "processes of it do not die; trying on");
            }
        })
        .await;
        match end {
            Ok(end) => self.tell(Inbox::Ended(id, end)),
            Err(error) => tracing::error!(container = %id, %error, "its end cannot be told"),
        }
    }

    pub(crate) fn terminate(&self, id: ContainerId) {
        let dir = self.root.container(id);
        tokio::task::spawn_blocking(move || {
            points::at("terminate");
            watch::terminate(id, &dir);
            points::at("terminated");
        });
    }

    pub(crate) fn kill(&self, id: ContainerId, shim: Option<Pid>) {
        let hands = self.clone();
        tokio::task::spawn_blocking(move || {
            points::at("kill");
            let shim = shim.or_else(|| watch::claimed(&hands.root.container(id)));
            watch::kill(hands.cgroups.as_ref(), id, shim, KILL);
            points::at("killed");
        });
    }

    pub(crate) fn remove(&self, id: ContainerId, preparing: Option<Preparing>) {
        let (hands, last) = (self.clone(), self.root.last_turn(id));
        tokio::spawn(async move {
            if let Some(preparing) = preparing {
                preparing.task.abort();
                // What writes into its folder cannot be aborted; it says when it has ended, or was never begun.
                let _ = preparing.ended.await;
            }
            let removed = tokio::task::spawn_blocking(move || hands.root.remove_container(&last, id)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(container = %id, %error, "its folder cannot be removed");
            }
        });
    }

    pub(crate) fn write_master(&self, id: ContainerId, master: Master) {
        // In the driver's thread, so that a later address is never overtaken by an earlier one.
        if let Err(error) = self.launcher.write_master(&self.root, id, &master) {
            tracing::warn!(container = %id, %error, "its master's address cannot be written");
        }
    }

    pub(crate) fn purge(&self, job: JobId) {
        let hands = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = crate::state::purge(&hands.root, &job) {
                tracing::warn!(%job, %error, "its state cannot be removed");
            }
            hands.tell(Inbox::State(crate::state::scan(&hands.root)));
        });
    }

    /// What earlier lives of the node manager left. Those that still run are followed from here on.
    pub(crate) fn recover(&self, incarnation: &NodeIncarnation) -> Result<Vec<Recovered>> {
        let mut left = Vec::new();
        let until = Instant::now() + RECOVERY;
        for (id, record) in self.root.records()? {
            let found = if record.exit.is_some() || record.boot_id != incarnation.boot_id {
                Found::NeverStarted
            } else {
                self.find(id, until)?
            };
            left.push(Recovered { record, found });
        }
        self.sweep_cgroups(&left, until)?;
        Ok(left)
    }

    fn find(&self, id: ContainerId, until: Instant) -> Result<Found> {
        let dir = self.root.container(id);
        let left = watch::look(&dir).unwrap_or_else(|error| {
            // Nothing claimed it, or what did cannot be read: then nobody knows of a process, and its group is swept.
            tracing::warn!(container = %id, %error, "what is left of it cannot be looked at; it is given up");
            Left::NeverStarted
        });
        let Left::Shim(pid, mut process) = left else { return Ok(Found::NeverStarted) };
        let shim = Shim::hold(pid, None)?;
        let has_exit = || files::read::<ExitFile>(&dir, files::EXIT).is_ok_and(|exit| exit.is_some());
        while process.is_none() && !has_exit() && pid.exists() && Instant::now() < until {
            std::thread::sleep(BETWEEN_LOOKS);
            process = files::read::<ProcessFile>(&dir, files::PROCESS).ok().flatten();
        }
        if let (Some(process), Some(shim)) = (process, shim) {
            tracing::info!(container = %id, pid = process.process.pid, "taken over");
            return Ok(self.take_over(id, pid, process, Some(shim)));
        }
        let patience = until.saturating_duration_since(Instant::now());
        watch::kill(self.cgroups.as_ref(), id, Some(pid), patience);
        let Some(end) = watch::conclude(self.cgroups.as_ref(), id, &dir, patience) else {
            tracing::warn!(container = %id, "processes of it do not die; it is followed until they do");
            let unknown = ProcessFile { process: pid, started_unix_ms: 0 };
            return Ok(self.take_over(id, pid, process.unwrap_or(unknown), None));
        };
        Ok(Found::Ended {
            process: end.process,
            outcome: end.outcome,
            evidence: end.evidence,
            ended_unix_ms: end.ended_unix_ms,
        })
    }

    fn take_over(&self, id: ContainerId, pid: Pid, process: ProcessFile, shim: Option<Shim>) -> Found {
        self.tell(Inbox::Shim(id, pid));
        let hands = self.clone();
        tokio::spawn(async move { hands.follow(id, Ok(shim)).await });
        Found::Running(watch::process_of(process))
    }

    /// Removes cgroups that belong to no container that runs.
    fn sweep_cgroups(&self, left: &[Recovered], until: Instant) -> Result<()> {
        for name in self.cgroups.list()? {
            let runs = left.iter().any(|recovered| {
                recovered.record.start.id.to_string() == name && matches!(recovered.found, Found::Running(_))
            });
            if runs {
                continue;
            }
            tracing::info!(cgroup = name, "left behind; ending what is in it");
            let patience = until.saturating_duration_since(Instant::now());
            if !self.sweep_cgroup(&name, patience) {
                // No container that comes has its name.
                let hands = self.clone();
                tokio::task::spawn_blocking(
                    move || {
                        while !hands.sweep_cgroup(&name, Duration::from_secs(60)) {}
                    },
                );
            }
        }
        Ok(())
    }

    /// Ends what is in a group and removes it. Whether that is done.
    fn sweep_cgroup(&self, name: &str, patience: Duration) -> bool {
        let ended = self.cgroups.kill_plan(name).kill_all(None, patience);
        let removed = match ended {
            Ok(true) => remove_patiently(self.cgroups.as_ref(), name, Duration::from_secs(1)),
            Ok(false) => {
                tracing::warn!(cgroup = name, "processes in it do not die; trying on");
                return false;
            }
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(cgroup = name, %error, "it cannot be removed");
        }
        true
    }
}

/// Carries out commands before the driver runs: those of recovery, which are records and stops.
pub(crate) fn carry_out_recovery(hands: &Hands, commands: Vec<Command>) {
    for command in commands {
        match command {
            Command::Persist { id, version, record } => hands.persist(id, version, record),
            Command::Terminate { id } => hands.terminate(id),
            Command::Kill { id } => hands.kill(id, None),
            other => unreachable!("recovery commands {other:?}"),
        }
    }
}
