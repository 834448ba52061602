//! One task thread from its start to its end: claim, restore, init, work.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use task_api::metrics::MetricsRegistry;
use task_api::store::RawStore;
use task_api::system::SystemAdmin;
use task_api::{StreamTask, TaskClock, TaskContext, TaskMetrics, Timers};
use task_core::commit::Schedule;
use task_core::ownership::OwnerRecord;
use task_core::record::Checkpoint;
use tracing::info;
use types::{
    ContainerPhase, Incarnation, JobSpec, JobTopics, StoreKind, StoreSpec, TIMERS_STORE, TaskModel, TaskName,
};

use crate::board::Board;
use crate::budget::{Budget, LEAST_CACHE};
use crate::clock::Clock;
use crate::collector::Outputs;
use crate::end::{End, Over};
use crate::engine::{ChangelogOut, Engine, Task, TaskStore, Work};
use crate::failures::Failures;
use crate::meters::{TaskMeters, ThreadMeters};
use crate::pulse::{Pulse, Stage};
use crate::restore::{Restore, RestoredTask, index_of_timers, mend};
use crate::stores::disk::{DiskMemory, TaskDisk};
use crate::stores::link::Link;
use crate::stores::{Below, Limits, Store};
use crate::systems::{System, Systems, consumers, home};
use crate::{claim, inputs, points};

/// How often clean rows go to disk, ms; after a crash so much of the changelog is read again.
pub(crate) const FLUSH_MS: u64 = 5_000;
/// So many databases are flushed that often. Each of their stores makes a file then, which is forced to the disk and
/// merged with others later, so more of them are flushed less often.
const FLUSHED_TOGETHER: u64 = 8;

/// What all threads of a container share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) job: Arc<JobSpec>,
    pub(crate) incarnation: Incarnation,
    pub(crate) slot: u32,
    pub(crate) state: std::path::PathBuf,
    pub(crate) systems: Systems,
    pub(crate) budget: Budget,
    pub(crate) memory: Option<DiskMemory>,
    pub(crate) board: Arc<Board>,
    /// [`FLUSH_MS`], but in tests.
    pub(crate) flush_ms: u64,
    pub(crate) clock: Clock,
    pub(crate) metrics: MetricsRegistry,
}

/// Runs `tasks` on this thread until the container is told to stop.
///
/// # Errors
/// Why it ended otherwise.
pub(crate) fn run<T: StreamTask>(
    shared: &Shared,
    thread: usize,
    tasks: &[TaskModel],
    factory: &dyn Fn() -> T,
) -> Result<Over, End> {
    let started = start(shared, thread, tasks, factory);
    if shared.board.is_stopping() && !matches!(started, Err(End::Fenced(_))) && started.is_err() {
        info!(thread, "told to stop before it ran");
        return Ok(Over::Told);
    }
    let mut engine = started?;
    if shared.board.phase(thread, ContainerPhase::Running) {
        info!("running");
    }
    points::at("run");
    engine.run()
}

fn start<T: StreamTask>(
    shared: &Shared,
    thread: usize,
    models: &[TaskModel],
    factory: &dyn Fn() -> T,
) -> Result<Engine<T>, End> {
    let Shared { job, board, systems, .. } = shared;
    let system = home_system(job, systems)?;
    let admin = system.admin();
    let number = u32::try_from(thread).unwrap_or(u32::MAX);
    let me = OwnerRecord::of_thread(&job.job, shared.slot, number, shared.incarnation);
    let client_id = me.id.clone();
    board.phase(thread, ContainerPhase::Claiming);
    let transactional = system.transactional(&me.id)?;
    let mut outputs =
        Outputs::new(Arc::clone(job), systems.clone(), client_id.clone(), transactional, &shared.metrics);
    let starts = claim::claim(me.clone(), job, models, &*admin, &mut outputs, board)
        .map_err(|end| end.during("start order"))?;

    board.phase(thread, ContainerPhase::Restoring);
    points::at("restore");
    let restored = restore(shared, &*admin, models, &starts, &mut outputs)?;

    let pulse = board.pulse(thread);
    shared.clock.rings(&pulse);
    let link = Rc::new(Link::new(Arc::clone(&pulse), overdraft(shared)));
    let desk = Desk {
        job,
        limits: cache_limits(shared, models.len()),
        link: Rc::clone(&link),
        clock: TaskClock::default(),
        metrics: &shared.metrics,
    };
    desk.clock.set(shared.clock.unix_ms());
    let keeps_ms =
        restored.iter().flat_map(|task| task.changelogs.values()).map(|log| log.keeps_tombstones_ms).min();
    let mut tasks = Vec::with_capacity(models.len());
    for (model, restored) in models.iter().zip(restored) {
        tasks.push(desk.task(model, restored, &mut outputs, factory())?);
    }
    let checkpoints: Vec<&Checkpoint> = tasks.iter().map(|task| &task.checkpoint).collect();
    let hold = shared.budget.held(consumers(job));
    let mut inputs = inputs::open(job, systems, &client_id, models, &checkpoints, hold)?;
    inputs.show(models, &shared.metrics);
    let schedule = schedule(shared, models.len(), keeps_ms.unwrap_or(u64::MAX));
    let topic = JobTopics::of(&job.job).checkpoint;
    let mut engine = Engine {
        job: job.job.clone(),
        incarnation: shared.incarnation,
        owner: me,
        checkpoint_topic: topic.clone(),
        thread,
        board: Arc::clone(board),
        admin,
        inputs,
        tasks,
        checkpoints: outputs.state_topic(&topic)?,
        outputs,
        clock: shared.clock.clone(),
        task_clock: desk.clock.clone(),
        schedule,
        window_ms: job.task.window_ms,
        failures: Failures::new(job, models, &shared.metrics),
        meters: ThreadMeters::new(&shared.metrics, thread),
        work: Work::new(link),
    };
    desk.init_all(&mut engine.tasks, models, &pulse)?;
    systems.values().for_each(|system| system.admin().started());
    Ok(engine)
}

/// The commits and flushes of a thread of so many tasks.
fn schedule(shared: &Shared, tasks: usize, keeps_ms: u64) -> Schedule {
    let databases = tasks as u64 * u64::from(shared.job.containers.threads.max(1));
    let flush_ms = shared.flush_ms * databases.div_ceil(FLUSHED_TOGETHER);
    Schedule::new(shared.job.task.commit_ms, flush_ms, keeps_ms, shared.clock.now())
}

/// How much more than their shares the caches of a thread may hold until a call of a task is over: what one call writes
/// must all be held, and a commit comes right after it. It is taken from the quarter of the memory that is left free.
fn overdraft(shared: &Shared) -> usize {
    let threads = u64::from(shared.job.containers.threads.max(1));
    usize::try_from(shared.budget.caches / 2 / threads).unwrap_or(usize::MAX)
}

/// Brings the stores and positions of `models` to their watermarks, and writes changelogs anew that must be.
fn restore(
    shared: &Shared,
    admin: &dyn SystemAdmin,
    models: &[TaskModel],
    starts: &[claim::Start],
    outputs: &mut Outputs,
) -> Result<Vec<RestoredTask>, End> {
    let no_memory = DiskMemory::new(1 << 20, 1 << 20);
    let restore = Restore {
        job: &shared.job,
        incarnation: shared.incarnation,
        admin,
        state: shared.state.clone(),
        memory: shared.memory.as_ref().unwrap_or(&no_memory),
        chunk_bytes: shared.budget.restore / u64::from(shared.job.containers.threads.max(1)),
        board: &shared.board,
        clock: &shared.clock,
        metrics: &shared.metrics,
    };
    let mut restored = restore.all(models, starts)?;
    for (model, task) in models.iter().zip(&mut restored) {
        mend::mend(outputs, admin, (&shared.job, shared.incarnation), model, task)
            .map_err(|end| end.during(&format!("changelogs of {}", model.name)))?;
    }
    Ok(restored)
}

/// The system of checkpoints; changelogs must be there too, for one transaction to hold both.
fn home_system<'a>(job: &JobSpec, systems: &'a Systems) -> Result<&'a Arc<dyn System>, End> {
    let home = home(job).ok_or_else(|| End::Failed("the job has no inputs".into()))?;
    let system = systems.get(home).ok_or_else(|| End::Failed(format!("no system `{home}` in job.toml")))?;
    let elsewhere = |(_, s): &(&String, &StoreSpec)| s.changelog.is_some() && s.changelog_system != home;
    if let Some((name, store)) = job.stores.iter().find(elsewhere) {
        return Err(End::Failed(format!(
            "the changelog of store {name} is on `{}`: it must be where the checkpoints are, on `{home}`, the first input's system",
            store.changelog_system
        )));
    }
    Ok(system)
}

/// By store: its rows and its share of the bytes that caches may take.
fn cache_limits(shared: &Shared, tasks_here: usize) -> BTreeMap<String, Limits> {
    let job = &shared.job;
    let threads = u64::from(job.containers.threads.max(1));
    let stores = || job.stores.iter().map(|(name, spec)| (name.as_str(), spec)).chain(index_of_timers(job));
    let caches = threads * (tasks_here * stores().count()).max(1) as u64;
    let bytes =
        usize::try_from(shared.budget.caches / caches).unwrap_or(usize::MAX).max(LEAST_CACHE as usize);
    let rows = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX / 2).max(1);
    stores().map(|(name, s)| (name.to_owned(), Limits { rows: rows(s.cache_rows), bytes })).collect()
}

/// What tasks are made with.
struct Desk<'a> {
    job: &'a JobSpec,
    limits: BTreeMap<String, Limits>,
    link: Rc<Link>,
    clock: TaskClock,
    metrics: &'a MetricsRegistry,
}

impl Desk<'_> {
    fn metrics_of(&self, task: &TaskName) -> TaskMetrics {
        self.metrics.with_labels(&[("task", &task.0)])
    }

    /// A store's rows and its cache in front of `below`.
    fn store(&self, model: &TaskModel, name: &str, spec: &StoreSpec, below: Below) -> Store {
        let metrics = self.metrics.with_labels(&[("task", &model.name.0), ("store", name)]);
        let (link, clock) = (Rc::clone(&self.link), self.clock.clone());
        Store::new(name, spec, self.limits[name], below, link, clock, &metrics)
    }

    /// The task's timers, if it has some: their index joins its stores, after those of the job.
    fn timers(
        &self,
        model: &TaskModel,
        disk: Option<&Arc<TaskDisk>>,
        stores: &mut Vec<TaskStore>,
    ) -> Result<Option<Timers>, End> {
        let Some(((name, spec), disk)) = index_of_timers(self.job).zip(disk) else { return Ok(None) };
        let of_timers = self.job.stores.keys().position(|store| store == TIMERS_STORE);
        let Some(rows) = of_timers.and_then(|at| stores.get(at)).map(|of| Rc::clone(&of.store)) else {
            return Ok(None);
        };
        let index = self.store(model, name, spec, Below::Disk(Arc::clone(disk)));
        let index = Rc::new(RefCell::new(index));
        stores.push(TaskStore { store: Rc::clone(&index), changelog: None, is_index: true });
        Ok(Some(Timers::load(rows, index)?))
    }

    fn task<T>(
        &self,
        model: &TaskModel,
        mut restored: RestoredTask,
        outputs: &mut Outputs,
        code: T,
    ) -> Result<Task<T>, End> {
        let mut stores = Vec::new();
        if let Some(disk) = &restored.disk {
            for (name, spec) in &self.job.stores {
                let below = match spec.kind {
                    StoreKind::RocksDb => Below::Disk(Arc::clone(disk)),
                    StoreKind::Memory => Below::Memory(restored.memory.remove(name).unwrap_or_default()),
                };
                let store = self.store(model, name, spec, below);
                let changelog = match restored.changelogs.get(name) {
                    Some(log) => {
                        Some(ChangelogOut { handle: outputs.state_topic(&log.at.topic)?, log: log.clone() })
                    }
                    None => None,
                };
                stores.push(TaskStore { store: Rc::new(RefCell::new(store)), changelog, is_index: false });
            }
        }
        let timers = self.timers(model, restored.disk.as_ref(), &mut stores)?;
        Ok(Task {
            name: model.name.clone(),
            code,
            stores,
            disk: restored.disk,
            partition: model.changelog_partition,
            checkpoint: restored.checkpoint,
            restored: Some(restored.restored),
            has_grown: false,
            processed: 0,
            timers,
            ended: false,
            meters: TaskMeters::new(
                &self.metrics_of(&model.name),
                self.job.task.window_ms.is_some(),
                self.job.task.timers,
            ),
        })
    }

    fn init_all<T: StreamTask>(
        &self,
        tasks: &mut [Task<T>],
        models: &[TaskModel],
        pulse: &Pulse,
    ) -> Result<(), End> {
        for (at, (task, model)) in tasks.iter_mut().zip(models).enumerate() {
            pulse.enter(Stage::Init, at);
            self.init(task, model)?;
        }
        pulse.enter(Stage::Unwatched, 0);
        Ok(())
    }

    fn init<T: StreamTask>(&self, task: &mut Task<T>, model: &TaskModel) -> Result<(), End> {
        let mut context = TaskContext {
            task: task.name.clone(),
            job: self.job.job.clone(),
            inputs: model.inputs.clone(),
            config: self.job.task.config.clone(),
            stores: BTreeMap::new(),
            concurrency: self.job.task.concurrency,
            clock: self.clock.clone(),
            metrics: self.metrics_of(&task.name),
            timer_queue: task.timers.clone(),
        };
        for (name, store) in self.job.stores.keys().zip(&task.stores) {
            let raw: Rc<RefCell<dyn RawStore>> = store.store.clone();
            context.stores.insert(name.clone(), raw);
        }
        task.code.init(&mut context).map_err(|error| End::Failed(format!("init of {}: {error}", task.name)))
    }
}
