//! The process: environment, session, task threads, exit code.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use task_api::metrics::MetricsRegistry;
use tracing::{error, info, warn};
use types::{ContainerModel, EXIT_FENCED, SystemKind, TaskModel};

use crate::board::Board;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::end::End;
use crate::environment::Environment;
use crate::stores::disk::DiskMemory;
use crate::task_thread::{self, Shared};
use crate::{StreamTask, files, local, master, systems};

/// How long the other threads may commit and close when one has failed.
const LAST_COMMITS: Duration = Duration::from_secs(10);
const EXIT_FAILED: i32 = 1;

/// Runs the container; returns the exit code.
pub(crate) fn run<T: StreamTask, F: Fn() -> T + Send + Sync>(factory: &F) -> i32 {
    files::raise_limit();
    let ended = if local::is_wanted() { local::run(factory) } else { in_cluster(factory) };
    match ended {
        Ok(()) => {
            info!("over");
            0
        }
        Err(End::Fenced(why)) => {
            error!("fenced: {why}");
            EXIT_FENCED
        }
        Err(End::Failed(why)) => {
            error!("failed: {why}");
            EXIT_FAILED
        }
    }
}

fn in_cluster<T: StreamTask, F: Fn() -> T + Send + Sync>(factory: &F) -> Result<(), End> {
    let environment = Environment::read().map_err(|e| End::Failed(format!("cannot start: {e:#}")))?;
    with_environment(&environment, factory)
}

fn with_environment<T: StreamTask, F: Fn() -> T + Send + Sync>(
    environment: &Environment,
    factory: &F,
) -> Result<(), End> {
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
    let systems = systems::open(job, &budget, &environment.rack, &kafka::environments_secret)?;
    let model = match session.model() {
        Ok(Some(model)) => model,
        Ok(None) => return Ok(()),
        Err(reason) => return Err(End::Failed(reason)),
    };
    let shared = Shared {
        job: Arc::clone(job),
        incarnation: environment.incarnation(),
        slot: environment.slot,
        state: environment.state.clone(),
        systems,
        budget,
        memory: stateful.then(|| {
            let files = files::raise_limit();
            DiskMemory::new(budget.blocks, budget.memtables).sharing_files(model.tasks.len(), files)
        }),
        board: Arc::clone(&board),
        flush_ms: task_thread::FLUSH_MS,
        clock: Clock::start(),
        metrics,
    };
    let ended = run_threads(&shared, &model, factory);
    session.finish();
    ended
}

/// Shares the tasks out to threads, in turn, and runs them to their end.
pub(crate) fn run_threads<T: StreamTask, F: Fn() -> T + Send + Sync>(
    shared: &Shared,
    model: &ContainerModel,
    factory: &F,
) -> Result<(), End> {
    let threads = (shared.job.containers.threads.max(1) as usize).min(model.tasks.len().max(1));
    shared.board.begin(model, threads);
    if model.tasks.is_empty() {
        // More containers than tasks: this one has nothing to do but to be there.
        info!("no tasks");
        while !shared.board.is_stopping() {
            std::thread::sleep(Duration::from_millis(50));
        }
        return Ok(());
    }
    let of_thread = |thread: usize| -> Vec<TaskModel> {
        model.tasks.iter().skip(thread).step_by(threads).cloned().collect()
    };
    std::thread::scope(|scope| {
        let (over, overs) = mpsc::channel();
        for thread in 0..threads {
            let (over, tasks) = (over.clone(), of_thread(thread));
            let named = std::thread::Builder::new().name(format!("tasks-{thread}"));
            let spawned = named.spawn_scoped(scope, move || {
                let work = || task_thread::run(shared, thread, &tasks, factory);
                let ended =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                        Err(End::Failed(format!("a task panicked: {}", text_of(&*panic))))
                    });
                // Nobody listens only when the process is about to exit.
                let _ = over.send(ended);
            });
            if let Err(error) = spawned {
                return Err(End::Failed(format!("cannot start a task thread: {error}")));
            }
        }
        let mut first = Ok(());
        let mut left = threads;
        let mut until: Option<Instant> = None;
        while left > 0 {
            let ended = match until {
                None => overs.recv().ok(),
                Some(until) => overs.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
            };
            let Some(ended) = ended else { break };
            left -= 1;
            if let Err(end) = ended {
                shared.board.stop();
                if first.is_ok() {
                    first = Err(end);
                    until = Some(Instant::now() + LAST_COMMITS);
                }
            }
        }
        if left > 0 {
            warn!(threads = left, "task threads do not end: exiting without them");
            exit_at_once(&first);
        }
        first
    })
}

/// A thread that hangs in a system's call cannot be waited for.
fn exit_at_once(ended: &Result<(), End>) -> ! {
    let code = match ended {
        Err(End::Fenced(why)) => {
            error!("fenced: {why}");
            EXIT_FENCED
        }
        Err(End::Failed(why)) => {
            error!("failed: {why}");
            EXIT_FAILED
        }
        Ok(()) => EXIT_FAILED,
    };
    std::process::exit(code)
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|t| (*t).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
