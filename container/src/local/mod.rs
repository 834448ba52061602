//! `--local`: the whole job in this process, without a cluster. On files it needs no Kafka either; on Kafka it runs
//! standalone: it makes the job's topics as an application master would, and goes through the same start order, so
//! that it fences, and is fenced by, any other container of the job.
//!
//! [`arguments`] change the job; [`jsonl`] is the system of files, with [`reader`] and [`writer`]; a state folder is a
//! [`home`] with its [`log`].

mod arguments;
mod files;
mod frame;
mod headers;
mod home;
mod jsonl;
mod line;
mod log;
mod reader;
mod writer;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Parser;
use task_api::metrics::MetricsRegistry;
use task_api::system::SystemError;
use task_core::topics::{self, Unready};
use tracing::{info, warn};
use types::{ContainerModel, Epoch, Incarnation, JobSpec, SystemKind, SystemStream, TaskModel, TopicPlan};

use crate::StreamTask;
use crate::board::Board;
use crate::budget::Budget;
use crate::clock::{Clock, unix_ms};
use crate::container::run_threads;
use crate::end::End;
use crate::stores::disk::DiskMemory;
use crate::systems::{self, System, Systems};
use crate::task_thread::{self, Shared};

use arguments::{Arguments, Setup};
use files::Files;
use home::Home;
use jsonl::Jsonl;
use reader::Tally;

/// How long a local run waits for input topics that are not there yet.
const INPUTS_PATIENCE: Duration = Duration::from_secs(30);

/// Whether the command line is one of a local run.
pub(crate) fn is_wanted() -> bool {
    std::env::args_os().skip(1).any(|argument| argument == "--local")
}

/// Runs the job as the command line says, to its end.
///
/// # Errors
/// Why it ended otherwise.
pub(crate) fn run<T: StreamTask, F: Fn() -> T + Send + Sync>(factory: &F) -> Result<(), End> {
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    // Clap itself answers --help and what it cannot read.
    let arguments = Arguments::parse_from(given);
    let here = std::env::current_dir().map_err(|e| failed(format!("no current folder: {e}")))?;
    let job_file = here.join(&arguments.job);
    let folder = job_file.parent().unwrap_or(Path::new("/")).to_owned();
    let text = std::fs::read_to_string(&job_file)
        .map_err(|e| failed(format!("cannot read {}: {e}", arguments.job.display())))?;
    let parsed =
        job_file::parse(&text, &arguments.job.to_string_lossy()).map_err(|e| failed(e.to_string()))?;
    let setup = arguments.apply(parsed.spec, &folder, &here).map_err(failed)?;
    let state = match &arguments.state {
        Some(state) => here.join(state),
        None => folder.join(".samza").join(setup.job.job.to_string()),
    };
    if arguments.fresh {
        Home::forget(&state)?;
    }
    Local::open(setup, state, arguments.memory)?.run(factory)
}

fn failed(why: String) -> End {
    End::Failed(why)
}

/// A job about to run in this process.
struct Local {
    job: Arc<JobSpec>,
    state: PathBuf,
    tally: Arc<Tally>,
    budget: Budget,
    systems: Systems,
}

impl Local {
    fn open(setup: Setup, state: PathBuf, memory: Option<u64>) -> Result<Local, End> {
        let Setup { job, only } = setup;
        let limit = memory.unwrap_or(job.containers.resource.memory_bytes);
        let budget = Budget::new(limit, job.containers.threads.max(1), !job.stores.is_empty());
        let home = Arc::new(Home::open(&state)?);
        let tally = Arc::new(Tally::default());
        let mut systems = systems::open(&job, &budget, "")?;
        for (name, spec) in &job.systems {
            if spec.kind == SystemKind::Jsonl {
                let files = Files::of(&job, name, only.get(name));
                systems.insert(name.clone(), Arc::new(Jsonl::new(&home, files, &tally)));
            }
        }
        Ok(Local { job: Arc::new(job), state, tally, budget, systems })
    }

    fn run<T: StreamTask, F: Fn() -> T + Send + Sync>(self, factory: &F) -> Result<(), End> {
        let Local { job, budget, .. } = &self;
        let model = self.model()?;
        info!(
            job = %job.job, tasks = model.tasks.len(), threads = job.containers.threads,
            state = %self.state.display(), "runs locally; memory budget: {budget}"
        );
        let board = Arc::new(Board::default());
        stop_on_signals(&board).map_err(|e| failed(format!("cannot listen to signals: {e}")))?;
        let stateful = !job.stores.is_empty();
        let shared = Shared {
            job: Arc::clone(job),
            incarnation: Incarnation { epoch: Epoch(unix_ms()), seq: 0 },
            slot: 0,
            state: self.state.join("stores"),
            systems: self.systems.clone(),
            budget: *budget,
            memory: stateful.then(|| DiskMemory::new(budget.blocks, budget.memtables)),
            board: Arc::clone(&board),
            flush_ms: task_thread::FLUSH_MS,
            clock: Clock::start(),
            metrics: MetricsRegistry::default(),
        };
        let began = Instant::now();
        let ended = run_threads(&shared, &model, factory);
        self.sum_up(&board, began.elapsed());
        ended
    }

    /// All tasks, and their topics made.
    fn model(&self) -> Result<ContainerModel, End> {
        let partitions = self.input_partitions()?;
        let tasks = types::tasks(&self.job, &|stream| partitions.get(stream).copied().unwrap_or(0))
            .map_err(|e| failed(e.to_string()))?;
        let count = i32::try_from(tasks.len()).unwrap_or(i32::MAX);
        self.make_topics(&types::job_topics(&self.job, count))?;
        let tasks = tasks.into_iter().zip(0..);
        let model = |((name, inputs), changelog_partition)| TaskModel { name, inputs, changelog_partition };
        Ok(ContainerModel { tasks: tasks.map(model).collect() })
    }

    /// Makes the job's own topics ready.
    fn make_topics(&self, plans: &[TopicPlan]) -> Result<(), End> {
        for (name, plans) in topics::by_system(plans) {
            let admin = self.system(name)?.admin();
            let ready = match topics::ensure(admin.as_ref(), &self.job.systems[name].bootstrap, &plans) {
                Ok(ready) => ready,
                Err(Unready::TooFewBrokers(why)) => return Err(failed(why)),
                Err(Unready::System(error)) => return Err(error.into()),
            };
            ready.iter().flat_map(|topic| &topic.notes).for_each(|note| warn!("{note}"));
        }
        Ok(())
    }

    /// How many partitions each input has; topics that are not there yet are waited for.
    fn input_partitions(&self) -> Result<BTreeMap<SystemStream, usize>, End> {
        let mut counts = BTreeMap::new();
        let since = Instant::now();
        for stream in types::inputs(&self.job).map_err(|e| failed(e.to_string()))? {
            let topic = self.job.stream(&stream).topic;
            let is_kafka = self.job.systems.get(&stream.system).is_some_and(|s| s.kind == SystemKind::Kafka);
            let admin = self.system(&stream.system)?.admin();
            loop {
                let why = match admin.describe(std::slice::from_ref(&topic)) {
                    Ok(found) => match found.first().filter(|topic| !topic.partitions.is_empty()) {
                        Some(found) => {
                            counts.insert(stream.clone(), found.partitions.len());
                            break;
                        }
                        None => {
                            let folder = self.job.systems[&stream.system].path.as_deref().unwrap_or_default();
                            format!(
                                "input {stream} is not there: {}",
                                Path::new(folder).join(&topic).display()
                            )
                        }
                    },
                    Err(SystemError::Retriable(why)) => why,
                    Err(error) => return Err(error.into()),
                };
                if !is_kafka || since.elapsed() > INPUTS_PATIENCE {
                    return Err(failed(why));
                }
                warn!("{why}; waiting for it");
                std::thread::sleep(Duration::from_millis(500));
            }
        }
        Ok(counts)
    }

    fn system(&self, name: &str) -> Result<&Arc<dyn System>, End> {
        self.systems.get(name).ok_or_else(|| failed(format!("no system `{name}` in the job file")))
    }

    /// The last words, on stderr.
    fn sum_up(&self, board: &Board, took: Duration) {
        let status = board.status();
        let seconds = took.as_secs_f64();
        let rate = status.processed as f64 / seconds.max(0.001);
        eprintln!(
            "{}: {} messages in {seconds:.1} s, {rate:.0} messages/s, {} commits",
            self.job.job, status.processed, status.commits
        );
        let skipped = self.tally.skipped.load(Ordering::Relaxed);
        if skipped > 0 {
            eprintln!("{}: {skipped} lines left out that are no messages", self.job.job);
        }
    }
}

/// SIGINT and SIGTERM let every thread commit and end; the second one ends the process at once.
fn stop_on_signals(board: &Arc<Board>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let board = Arc::clone(board);
    let listen = move || {
        runtime.block_on(async {
            daemon::Shutdown::on_signals().wait().await;
            board.stop();
            // For the second signal.
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map(drop)
}
