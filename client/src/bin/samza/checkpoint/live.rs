//! Start points moved while the job is live: the containers of the tasks concerned are held, so that they commit and
//! stop; their start points are moved under a claim of just those tasks, and the hold is ended. Whatever goes wrong, the
//! hold ends, by itself at the latest, and a container that has started meanwhile makes the move fail and change nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use client::args::Common;
use client::failure::{Code, Failure};
use client::resource_manager::ResourceManager;
use job_file::JobFile;
use tokio::time::{Instant, sleep};
use types::{AppId, AppReport, JobSpec, Secrets, TaskName};

use super::kafka_side::Topics;
use super::moves::Move;
use super::rows::Row;

/// How long slots are held at the longest: what a container's last commit and the move may take.
const HOLD: Duration = Duration::from_secs(120);
/// How long containers may take to stop, and to be there again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(200);

/// A live job.
pub(super) struct Live {
    rm: ResourceManager,
    app: AppReport,
}

/// The job's live application; none if it is not live.
pub(super) async fn of(common: &Common, file: &JobFile) -> Result<Option<Live>, Failure> {
    let mut rm = ResourceManager::connect(common).await?;
    let apps = rm.list().await?;
    let app = apps.into_iter().find(|app| app.job == file.spec.job && !app.state.is_over());
    Ok(app.map(|app| Live { rm, app }))
}

impl Live {
    /// Moves start points and has the tasks go on from there.
    pub(super) async fn move_points(
        mut self,
        spec: JobSpec,
        secrets: Secrets,
        moves: Vec<Move>,
    ) -> Result<Vec<Row>, Failure> {
        let (told, open, named) = (spec.clone(), secrets.clone(), moves.clone());
        let tasks = on_thread(move || {
            let topics = Topics::open(&told, &open)?;
            let found = topics.look()?;
            let targets = topics.targets(&found, &named)?;
            let concerned =
                found.tasks.iter().filter(|task| task.inputs.iter().any(|i| targets.contains_key(i)));
            Ok(concerned.map(|task| task.name.clone()).collect::<BTreeSet<TaskName>>())
        })
        .await?;
        let slots = self.slots_of(&tasks)?;
        let app = self.app.app.clone();
        let done = match self.hold_until_empty(&app, &slots).await {
            Ok(()) => on_thread(move || super::move_some(&spec, &secrets, &moves)).await,
            Err(failure) => Err(failure),
        };
        let ended = self.rm.hold(&app, &slots, Duration::ZERO).await;
        let rows = done?;
        ended?;
        self.wait("the containers concerned have not started again yet; `samza status` shows why", |app| {
            slots.iter().all(|slot| running(app, *slot))
        })
        .await?;
        Ok(rows)
    }

    /// The slots that have `tasks`.
    fn slots_of(&self, tasks: &BTreeSet<TaskName>) -> Result<Vec<u32>, Failure> {
        let known = self.app.status.iter().flat_map(|status| &status.slots);
        let slots: Vec<u32> =
            known.filter(|slot| slot.tasks.iter().any(|t| tasks.contains(t))).map(|slot| slot.slot).collect();
        if slots.is_empty() {
            let told = format!(
                "{} has not told which containers have its tasks; try again in a moment",
                self.app.app
            );
            return Err(Failure::new(Code::Refused, told));
        }
        Ok(slots)
    }

    async fn hold_until_empty(&mut self, app: &AppId, slots: &[u32]) -> Result<(), Failure> {
        let since = Instant::now();
        let mut said: Option<Instant> = None;
        loop {
            // Said again now and then: a container that was on its way when it was said first stops too.
            if said.is_none_or(|at| at.elapsed() > Duration::from_secs(2)) {
                self.rm.hold(app, slots, HOLD).await?;
                said = Some(Instant::now());
            }
            sleep(LOOK).await;
            let report = self.report().await?;
            if slots.iter().all(|slot| !lives(&report, *slot)) {
                return Ok(());
            }
            if since.elapsed() > PATIENCE {
                let told = format!("the containers of {app} do not stop; nothing was moved");
                return Err(Failure::new(Code::Failure, told));
            }
        }
    }

    async fn report(&mut self) -> Result<AppReport, Failure> {
        let gone = || Failure::new(Code::NotFound, format!("{} is not known any more", self.app.app));
        let apps = self.rm.list().await?;
        apps.into_iter().find(|app| app.app == self.app.app).ok_or_else(gone)
    }

    async fn wait(&mut self, told: &str, is_so: impl Fn(&AppReport) -> bool) -> Result<(), Failure> {
        let since = Instant::now();
        while !is_so(&self.report().await?) {
            if since.elapsed() > PATIENCE {
                return Err(Failure::new(Code::Failure, format!("moved, but {told}")));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Whether a container of `slot` is not over.
fn lives(app: &AppReport, slot: u32) -> bool {
    app.containers.iter().any(|container| container.slot == Some(slot) && !container.state.is_exited())
}

fn running(app: &AppReport, slot: u32) -> bool {
    let runs = |state: &types::ContainerState| state.rank() == types::ContainerState::Running.rank();
    app.containers.iter().any(|container| container.slot == Some(slot) && runs(&container.state))
}

/// Calls of Kafka block.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::other(error.to_string()))?
}
