//! One task thread from its start to its end: claim, restore, init, work.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use task_api::store::RawStore;
use task_api::system::{Offset, StartAt, TopicPartition};
use task_api::{StreamTask, TaskContext};
use task_core::commit::Schedule;
use task_core::ownership::OwnerRecord;
use tracing::info;
use types::{
    ContainerPhase, Incarnation, JobSpec, JobTopics, OffsetDefault, StoreSpec, StreamSpec,
    SystemStreamPartition, TaskModel,
};

use crate::board::Board;
use crate::budget::Budget;
use crate::claim;
use crate::collector::Outputs;
use crate::end::End;
use crate::engine::{ChangelogOut, Clock, Engine, Reader, Source, Task, TaskStore, Work};
use crate::points;
use crate::restore::{Restore, RestoredTask, keeps_tombstones_ms};
use crate::stores::disk::DiskMemory;
use crate::stores::{Limits, Store};
use crate::systems::{System, Systems, home};

/// How often clean rows go to disk, ms; after a crash so much of the changelog is read again.
pub(crate) const FLUSH_MS: u64 = 5_000;

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
) -> Result<(), End> {
    let started = start(shared, thread, tasks, factory);
    if shared.board.is_stopping() && !matches!(started, Err(End::Fenced(_))) && started.is_err() {
        info!(thread, "told to stop before it ran");
        return Ok(());
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
    let mut outputs = Outputs::new(Arc::clone(job), systems.clone(), client_id.clone(), transactional);
    let highs = claim::claim(me, job, models, &*admin, &mut outputs, board)
        .map_err(|end| end.during("start order"))?;

    board.phase(thread, ContainerPhase::Restoring);
    points::at("restore");
    let no_memory = DiskMemory::new(1 << 20, 1 << 20);
    let restore = Restore {
        job,
        incarnation: shared.incarnation,
        admin: &*admin,
        state: shared.state.clone(),
        memory: shared.memory.as_ref().unwrap_or(&no_memory),
        chunk_bytes: shared.budget.restore / u64::from(job.containers.threads.max(1)),
        board,
    };
    let restored = restore.all(models, &highs)?;

    let full = Rc::new(Cell::new(false));
    let limits = cache_limits(shared, models.len());
    let mut tasks = Vec::with_capacity(models.len());
    for (model, restored) in models.iter().zip(restored) {
        tasks.push(make_task(job, model, restored, &limits, &full, &mut outputs, factory())?);
    }
    let readers = open_readers(job, systems, &client_id, models, &tasks)?;
    let keeps_ms = job.stores.values().filter(|s| s.changelog.is_some()).map(keeps_tombstones_ms).min();
    let clock = Clock::start();
    let schedule =
        Schedule::new(job.task.commit_ms, shared.flush_ms, keeps_ms.unwrap_or(u64::MAX), clock.now());
    let mut engine = Engine {
        incarnation: shared.incarnation,
        delivery: job.task.delivery,
        thread,
        board: Arc::clone(board),
        admin,
        readers,
        tasks,
        checkpoints: outputs.state_topic(&JobTopics::of(&job.job).checkpoint)?,
        outputs,
        clock,
        schedule,
        window_ms: job.task.window_ms,
        full,
        work: Work::default(),
    };
    for (task, model) in engine.tasks.iter_mut().zip(models) {
        init_task(job, task, model)?;
    }
    Ok(engine)
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
    let caches = threads * tasks_here.max(1) as u64 * job.stores.len().max(1) as u64;
    let bytes = usize::try_from(shared.budget.caches / caches).unwrap_or(usize::MAX).max(64 << 10);
    let rows = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX / 2).max(1);
    job.stores.iter().map(|(name, s)| (name.clone(), Limits { rows: rows(s.cache_rows), bytes })).collect()
}

fn make_task<T>(
    job: &JobSpec,
    model: &TaskModel,
    restored: RestoredTask,
    limits: &BTreeMap<String, Limits>,
    full: &Rc<Cell<bool>>,
    outputs: &mut Outputs,
    code: T,
) -> Result<Task<T>, End> {
    let mut stores = Vec::new();
    if let Some(disk) = &restored.disk {
        for name in job.stores.keys() {
            let store = Store::new(name.clone(), limits[name], Arc::clone(disk), Rc::clone(full));
            let changelog = match restored.changelogs.get(name) {
                Some(log) => Some(ChangelogOut {
                    handle: outputs.state_topic(&log.at.topic)?,
                    at: log.at.clone(),
                    topic_id: log.topic_id.clone(),
                }),
                None => None,
            };
            stores.push(TaskStore { store: Rc::new(RefCell::new(store)), changelog });
        }
    }
    Ok(Task {
        name: model.name.clone(),
        code,
        stores,
        disk: restored.disk,
        partition: model.changelog_partition,
        checkpoint: restored.checkpoint,
        restored: Some(restored.restored),
        processed: 0,
    })
}

/// One consumer per system, assigned where the checkpoints say.
fn open_readers<T>(
    job: &JobSpec,
    systems: &Systems,
    client_id: &str,
    models: &[TaskModel],
    tasks: &[Task<T>],
) -> Result<Vec<Reader>, End> {
    let mut by_system: BTreeMap<&str, Vec<(usize, &SystemStreamPartition)>> = BTreeMap::new();
    for (at, model) in models.iter().enumerate() {
        for input in &model.inputs {
            by_system.entry(&input.stream.system).or_default().push((at, input));
        }
    }
    let mut readers = Vec::new();
    for (name, inputs) in by_system {
        let system =
            systems.get(name).ok_or_else(|| End::Failed(format!("no system `{name}` in job.toml")))?;
        let mut consumer = system.consumer(client_id)?;
        let mut assignment = Vec::with_capacity(inputs.len());
        let mut sources = Vec::with_capacity(inputs.len());
        for (task, input) in inputs {
            let stream = input.stream.to_string();
            let default = StreamSpec::default_for(&input.stream.stream);
            let spec = job.streams.get(&stream).unwrap_or(&default);
            let start = match (tasks[task].checkpoint.offset(&stream, input.partition), spec.offset_default) {
                (Some(offset), _) => StartAt::At(Offset(offset.to_owned())),
                (None, OffsetDefault::Oldest) => StartAt::Oldest,
                (None, OffsetDefault::Newest) => StartAt::Newest,
            };
            info!(task = %tasks[task].name, input = %stream, partition = input.partition, start = ?start, "reads");
            assignment
                .push((TopicPartition { topic: spec.topic.clone(), partition: input.partition }, start));
            sources.push(Source { task, partition: input.clone(), last: None, committed: None });
        }
        consumer.assign(&assignment)?;
        readers.push(Reader { consumer, sources });
    }
    Ok(readers)
}

fn init_task<T: StreamTask>(job: &JobSpec, task: &mut Task<T>, model: &TaskModel) -> Result<(), End> {
    let mut context = TaskContext {
        task: task.name.clone(),
        job: job.job.clone(),
        inputs: model.inputs.clone(),
        config: job.task.config.clone(),
        stores: BTreeMap::new(),
    };
    for (name, store) in job.stores.keys().zip(&task.stores) {
        let raw: Rc<RefCell<dyn RawStore>> = store.store.clone();
        context.stores.insert(name.clone(), raw);
    }
    task.code.init(&mut context).map_err(|error| End::Failed(format!("init of {}: {error}", task.name)))
}
