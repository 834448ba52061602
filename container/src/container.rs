//! The process: environment, session, task threads, exit code.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use task_api::metrics::MetricsRegistry;
use tracing::{info, warn};
use types::{ContainerModel, JobSpec, SystemKind, TaskModel};

use crate::board::{Board, Told};
use crate::budget::Budget;
use crate::clock::Clock;
use crate::end::{End, Over};
use crate::environment::Environment;
use crate::lookout::Lookout;
use crate::stacks;
use crate::stores::disk::DiskMemory;
use crate::task_thread::{self, Shared};
use crate::{StreamTask, files, local, master, systems};

/// How long the other threads may commit and close when one has failed.
const LAST_COMMITS: Duration = Duration::from_secs(10);

/// Runs the container; returns the exit code.
pub(crate) fn run<T: StreamTask, F: Fn() -> T + Send + Sync>(factory: &F) -> i32 {
    let _ = daemon::raise_open_files();
    let ended = if local::is_wanted() { local::run(factory) } else { in_cluster(factory) };
    match ended {
        Ok(0) => {
            info!("over");
            0
        }
        Ok(code) => {
            info!(code, "over before its inputs are: it was told to stop");
            code
        }
        Err(end) => {
            end.say();
            end.exit_code()
        }
    }
}

fn in_cluster<T: StreamTask, F: Fn() -> T + Send + Sync>(factory: &F) -> Result<i32, End> {
    let environment = Environment::read().map_err(|e| End::Failed(format!("cannot start: {e:#}")))?;
    with_environment(&environment, factory)
}

fn with_environment<T: StreamTask, F: Fn() -> T + Send + Sync>(
    environment: &Environment,
    factory: &F,
) -> Result<i32, End> {
    let job = &environment.job;
    if let Some((name, system)) = job.systems.iter().find(|(_, system)| system.kind != SystemKind::Kafka) {
        return Err(End::Failed(format!(
            "system `{name}` is of type {}: run the job with --local",
            system.kind
        )));
    }
    let threads = job.containers.threads.max(1);
    let stateful = !job.stores.is_empty();
    let budget = Budget::new(environment.memory_bytes, threads, stateful);
    info!(
        job = %job.job, container = %environment.container, slot = environment.slot, threads,
        "memory budget: {budget}"
    );
    let board = Arc::new(Board::default());
    let metrics = MetricsRegistry::default();
    let session = master::start(environment.clone(), Arc::clone(&board), metrics.clone())
        .map_err(|e| End::Failed(format!("cannot start the session's thread: {e}")))?;
    // Connecting to the systems needs no model, so it is begun while the model is asked for.
    let systems = systems::open(job, &budget, &environment.rack, &kafka::environments_secret, &metrics)?;
    let model = match session.model() {
        Ok(Some(model)) => model,
        Ok(None) => return Ok(Over::Told.exit_code(board.told())),
        Err(reason) => return Err(End::Failed(reason)),
    };
    let memory = disk_memory(job, &budget, model.tasks.len())?;
    let shared = Shared {
        job: Arc::clone(job),
        incarnation: environment.incarnation(),
        slot: environment.slot,
        state: environment.state.clone(),
        systems,
        budget,
        memory,
        board: Arc::clone(&board),
        flush_ms: task_thread::FLUSH_MS,
        clock: Clock::start(),
        metrics,
    };
    let ended = run_threads(&shared, &model, factory);
    session.finish();
    ended.map(|over| over.exit_code(board.told()))
}

/// What the databases of so many tasks share, if the job has stores and they fit in here.
pub(crate) fn disk_memory(job: &JobSpec, budget: &Budget, tasks: usize) -> Result<Option<DiskMemory>, End> {
    if job.stores.is_empty() {
        return Ok(None);
    }
    budget.has_room_for(tasks, job.stores.len()).map_err(End::Failed)?;
    let tables = files::tables_of_each(tasks, daemon::raise_open_files()).map_err(End::Failed)?;
    Ok(Some(DiskMemory::new(budget.blocks, budget.memtables).keeping_open(tables)))
}

/// What [`run_threads`] hears.
pub(crate) enum Heard {
    /// A task thread is over.
    Over(Result<Over, End>),
    /// One never will be.
    Stuck(End),
}

/// Shares the tasks out to threads, in turn, and runs them to their end.
pub(crate) fn run_threads<T: StreamTask, F: Fn() -> T + Send + Sync>(
    shared: &Shared,
    model: &ContainerModel,
    factory: &F,
) -> Result<Over, End> {
    let threads = (shared.job.containers.threads.max(1) as usize).min(model.tasks.len().max(1));
    shared.board.begin(model, threads);
    if model.tasks.is_empty() {
        // More containers than tasks: this one has nothing to do but to be there.
        info!("no tasks");
        while !shared.board.is_stopping() {
            std::thread::sleep(Duration::from_millis(50));
        }
        return Ok(Over::Told);
    }
    let of_thread = |thread: usize| -> Vec<TaskModel> {
        model.tasks.iter().skip(thread).step_by(threads).cloned().collect()
    };
    std::thread::scope(|scope| {
        let (tell, heard) = mpsc::channel();
        // The watch ends when this is dropped.
        let (_work, work_ends) = mpsc::channel::<()>();
        let watch = Lookout::new(shared, (0..threads).map(of_thread).collect());
        let of_watch = tell.clone();
        let spawn = Spawn { scope, board: &shared.board };
        spawn.thread("watch".into(), move || watch.run(&work_ends, &of_watch))?;
        for thread in 0..threads {
            let (tell, tasks) = (tell.clone(), of_thread(thread));
            spawn.thread(format!("tasks-{thread}"), move || {
                stacks::register();
                let work = || task_thread::run(shared, thread, &tasks, factory);
                let ended =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                        Err(End::Failed(format!("a task panicked: {}", text_of(&*panic))))
                    });
                // Nobody listens only when the process is about to exit.
                let _ = tell.send(Heard::Over(ended));
            })?;
        }
        drop(tell);
        wait_for(threads, &heard, &shared.board)
    })
}

struct Spawn<'scope, 'env> {
    scope: &'scope std::thread::Scope<'scope, 'env>,
    board: &'env Board,
}

impl<'scope> Spawn<'scope, '_> {
    fn thread(&self, name: String, run: impl FnOnce() + Send + 'scope) -> Result<(), End> {
        let spawned = std::thread::Builder::new().name(name.clone()).spawn_scoped(self.scope, run);
        spawned.map(drop).map_err(|error| {
            // Those that run already are waited for.
            self.board.stop(Told::Failure);
            End::Failed(format!("cannot start the thread {name}: {error}"))
        })
    }
}

/// Waits for all task threads. When one has failed, the others commit and close, but not for ever.
fn wait_for(threads: usize, heard: &mpsc::Receiver<Heard>, board: &Board) -> Result<Over, End> {
    let (mut ended, mut left) = (Ok(Over::Inputs), threads);
    let mut until: Option<Instant> = None;
    while left > 0 {
        let next = match until {
            None => heard.recv().ok(),
            Some(until) => heard.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
        };
        let end = match next {
            None => break,
            Some(Heard::Stuck(end)) => end,
            Some(Heard::Over(over)) => {
                left -= 1;
                match over {
                    Ok(over) => {
                        ended = ended.map(|others: Over| others.and(over));
                        continue;
                    }
                    Err(end) => end,
                }
            }
        };
        board.stop(Told::Failure);
        if ended.is_ok() {
            ended = Err(end);
            until = Some(Instant::now() + LAST_COMMITS);
        }
    }
    if left > 0 {
        warn!(threads = left, "task threads do not end: exiting without them");
        exit_at_once(ended);
    }
    ended
}

/// A thread that hangs cannot be waited for.
fn exit_at_once(ended: Result<Over, End>) -> ! {
    let end = ended.err().unwrap_or_else(|| End::Failed("task threads are gone without a word".into()));
    end.say();
    std::process::exit(end.exit_code())
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|t| (*t).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
