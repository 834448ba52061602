//! `--local`: the whole job in this process, without a cluster. On files it needs no Kafka either; on Kafka it runs
//! standalone: it makes the job's topics as an application master would, and goes through the same start order, so
//! that it fences, and is fenced by, any other container of the job.
//!
//! [`arguments`] change the job; [`jsonl`] is the system of files, with [`reader`] (of [`source`]s of [`line`]s from
//! [`input`]s) and [`writer`]; a state folder is a [`home`] with its [`log`]; [`summary`] has the last words.

mod arguments;
mod files;
mod folder;
mod frame;
mod headers;
mod home;
mod input;
mod jsonl;
mod line;
mod log;
mod origin;
mod output;
mod position;
mod reader;
mod source;
mod summary;
mod tally;
mod writer;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use task_api::metrics::MetricsRegistry;
use task_api::system::{Isolation, SystemAdmin, SystemError, TopicPartition};
use task_core::record::{self, OwnerRecord, Record};
use task_core::topics::{self, Unready};
use tracing::{info, warn};
use types::{
    ContainerModel, Epoch, Incarnation, JobSpec, JobTopics, SystemKind, SystemStream, TaskModel, TopicPlan,
};

use crate::StreamTask;
use crate::board::{Board, Told};
use crate::budget::Budget;
use crate::clock::{Clock, unix_ms};
use crate::container::{disk_memory, run_threads};
use crate::end::{End, Over, TERM};
use crate::restore::patiently;
use crate::systems::{self, System, Systems};
use crate::task_thread::{self, Shared};

use arguments::{Arguments, Format, Setup};
use files::Files;
use home::Home;
use jsonl::Jsonl;
use summary::{Progress, Summary, tell};
use tally::Tally;

/// How long a local run waits for input topics that are not there yet.
const INPUTS_PATIENCE: Duration = Duration::from_secs(30);
/// How long it tries to make the job's own topics ready.
const TOPICS_PATIENCE: Duration = Duration::from_secs(30);
/// The exit code of a run whose output nobody reads any more: what a shell says of a process that SIGPIPE has ended.
const EXIT_READER_GONE: i32 = 141;
/// How many partitions are read for owners at once.
const READ_AT_ONCE: usize = 8;

/// Whether the command line is one of a local run.
pub(crate) fn is_wanted() -> bool {
    std::env::args_os().skip(1).any(|argument| argument == "--local")
}

/// Runs the job as the command line says, to its end; returns the exit code.
///
/// # Errors
/// Why it ended otherwise.
pub(crate) fn run<T: StreamTask, F: Fn() -> T + Send + Sync>(factory: &F) -> Result<i32, End> {
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
        on_files(&setup.job, &arguments.job)?;
        Home::forget(&state, &folder)?;
    }
    Local::open(setup, state, &folder, &arguments)?.run(factory)
}

/// Only what is on files can start over: checkpoints and changelogs on Kafka outlive any state folder.
fn on_files(job: &JobSpec, job_file: &Path) -> Result<(), End> {
    let home = systems::home(job).unwrap_or_default();
    if job.systems.get(home).is_none_or(|system| system.kind == SystemKind::Jsonl) {
        return Ok(());
    }
    let input = job.task.inputs.first().map(String::as_str).unwrap_or_default();
    Err(failed(format!(
        "--fresh starts over what runs on files, and the checkpoints and changelogs of this job are on `{home}`, which is \
         Kafka: `samza checkpoint {} --set {input}=oldest` reads its input again, another [job] id has a state of its own",
        job_file.display()
    )))
}

/// The content of the job's secret, read where the job file says.
fn secret(job: &JobSpec, name: &str) -> Result<String, String> {
    let file = job.package.secrets.get(name).ok_or_else(|| format!("there is no secret {name}"))?;
    std::fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))
}

fn failed(why: String) -> End {
    End::Failed(why)
}

/// A job about to run in this process.
struct Local {
    job: Arc<JobSpec>,
    state: PathBuf,
    home: Arc<Home>,
    tally: Arc<Tally>,
    format: Format,
    /// Whether the summary may go to stdout: it is no output.
    stdout_is_free: bool,
    budget: Budget,
    systems: Systems,
    metrics: MetricsRegistry,
}

impl Local {
    fn open(setup: Setup, state: PathBuf, project: &Path, arguments: &Arguments) -> Result<Local, End> {
        let Setup { job, only } = setup;
        let limit = arguments.memory.unwrap_or(job.containers.resource.memory_bytes);
        let budget = Budget::new(limit, job.containers.threads.max(1), !job.stores.is_empty());
        let home = Arc::new(Home::open(&state, project)?);
        let (tally, metrics) = (Arc::new(Tally::default()), MetricsRegistry::default());
        let mut systems = systems::open(&job, &budget, "", &|name| secret(&job, name), &metrics)?;
        for (name, spec) in &job.systems {
            if spec.kind == SystemKind::Jsonl {
                let mut files = Files::of(&job, name, only.get(name));
                files.longest_line = usize::try_from(limit / 4).unwrap_or(usize::MAX);
                systems.insert(name.clone(), Arc::new(Jsonl::new(&home, files, &tally)));
            }
        }
        let job = matched(&job, &systems)?;
        let (format, stdout_is_free) = (arguments.format, !arguments.writes_to_stdout(&job));
        Ok(Local { job: Arc::new(job), state, home, tally, format, stdout_is_free, budget, systems, metrics })
    }

    fn run<T: StreamTask, F: Fn() -> T + Send + Sync>(self, factory: &F) -> Result<i32, End> {
        let Local { job, budget, .. } = &self;
        let model = self.model()?;
        info!(
            job = %job.job, tasks = model.tasks.len(), threads = job.containers.threads,
            state = %self.state.display(), "runs locally; memory budget: {budget}"
        );
        let board = Arc::new(Board::default());
        stop_on_signals(&board).map_err(|e| failed(format!("cannot listen to signals: {e}")))?;
        let memory = disk_memory(job, budget, model.tasks.len())?;
        let shared = Shared {
            job: Arc::clone(job),
            incarnation: self.incarnation(&model)?,
            slot: 0,
            state: self.state.join("stores"),
            systems: self.systems.clone(),
            budget: *budget,
            memory,
            board: Arc::clone(&board),
            flush_ms: task_thread::FLUSH_MS,
            clock: Clock::start(),
            metrics: self.metrics.clone(),
        };
        let began = Instant::now();
        let progress = Progress::start(job.job.to_string(), Arc::clone(&board), Arc::clone(&self.tally));
        let ended = run_threads(&shared, &model, factory);
        drop(progress);
        self.end(ended, &board, &shared.metrics, began.elapsed())
    }

    /// Writes down that all is committed if it is, and has the last words.
    fn end(
        &self,
        ended: Result<Over, End>,
        board: &Board,
        metrics: &MetricsRegistry,
        took: Duration,
    ) -> Result<i32, End> {
        let closed = self.home.end(ended.is_ok()).map_err(End::from);
        let ended = ended.and_then(|over| closed.map(|()| over));
        let summary = Summary::of(&self.job, board, metrics, &self.tally, took);
        let job = &self.job.job;
        match self.format {
            Format::Text => tell(&summary.to_text(), false),
            Format::Json => tell(&summary.to_json(), self.stdout_is_free),
        }
        if let Some(reader) = self.home.reader_gone() {
            let told = "what was committed before is kept, and the next run sends the rest";
            tell(&format!("{job}: whoever read {reader} has gone: {told}"), false);
            std::process::exit(EXIT_READER_GONE);
        }
        if ended.is_ok()
            && !board.is_stopping()
            && let Some(told) = summary.nothing_read()
        {
            tell(&format!("{job}: {told}"), false);
        }
        ended.map(|over| over.exit_code(board.told()))
    }

    /// Above that of every owner there was, whatever the clock says.
    fn incarnation(&self, model: &ContainerModel) -> Result<Incarnation, End> {
        let home = systems::home(&self.job).unwrap_or_default();
        let (admin, topic) = (self.system(home)?.admin(), JobTopics::of(&self.job.job).checkpoint);
        let partitions: Vec<TopicPartition> = model
            .tasks
            .iter()
            .map(|task| TopicPartition { topic: topic.clone(), partition: task.changelog_partition })
            .collect();
        let share = partitions.len().div_ceil(READ_AT_ONCE).max(1);
        let admin = &*admin;
        let newest: Result<Vec<Option<OwnerRecord>>, SystemError> = std::thread::scope(|scope| {
            let read = |some| scope.spawn(move || newest_owner(admin, some));
            let reading: Vec<_> = partitions.chunks(share).map(read).collect();
            let gone = || Err(SystemError::Fatal("a thread panicked".into()));
            reading.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
        });
        let newest = newest?.into_iter().flatten().max_by_key(|owner| owner.incarnation);
        if let Some(owner) = newest.as_ref().filter(|owner| owner.incarnation.seq > 0) {
            warn!(
                "a cluster's container owned the job's tasks last ({}): this run takes them from it. If the cluster still \
                 runs the job, stop it there first, or give this run another [job] id",
                owner.id
            );
        }
        Ok(above(newest.map(|owner| owner.incarnation), unix_ms()))
    }

    /// All tasks, and their topics made.
    fn model(&self) -> Result<ContainerModel, End> {
        let partitions = self.input_partitions()?;
        let tasks = types::tasks(&self.job, &|stream| partitions.get(stream).copied().unwrap_or(0))
            .map_err(|e| failed(e.to_string()))?;
        let count = i32::try_from(tasks.len()).unwrap_or(i32::MAX);
        self.make_topics(&types::job_topics(&self.job, count))?;
        let tasks = tasks.into_iter().zip(0..);
        let model = |((name, inputs), changelog_partition)| TaskModel {
            name,
            inputs,
            changelog_partition,
            added: Vec::new(),
        };
        Ok(ContainerModel { tasks: tasks.map(model).collect() })
    }

    /// Makes the job's own topics ready.
    fn make_topics(&self, plans: &[TopicPlan]) -> Result<(), End> {
        for (name, plans) in topics::by_system(plans) {
            let admin = self.system(name)?.admin();
            let since = Instant::now();
            let ready = loop {
                match topics::ensure(admin.as_ref(), &self.job.systems[name].bootstrap, &plans) {
                    Ok(ready) => break ready,
                    // Not every broker knows a topic at once.
                    Err(Unready::System(SystemError::Retriable(_))) if since.elapsed() < TOPICS_PATIENCE => {
                        std::thread::sleep(Duration::from_millis(200));
                    }
                    Err(Unready::TooFewBrokers(why)) => return Err(failed(why)),
                    Err(Unready::System(error)) => return Err(error.into()),
                }
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
                        None => format!("input {stream} is not there: no topic {topic}"),
                    },
                    Err(SystemError::Retriable(why)) => why,
                    Err(error) if is_kafka => return Err(failed(format!("input {stream}: {error}"))),
                    Err(error) => {
                        return Err(failed(format!(
                            "input {stream}: {error} (--input {stream}=FILE reads another file)"
                        )));
                    }
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
}

/// The incarnation of a run at `unix_ms`; the clock may have gone back since the `newest` owner there was.
fn above(newest: Option<Incarnation>, unix_ms: u64) -> Incarnation {
    let after = newest.map_or(0, |newest| newest.epoch.0 + 1);
    Incarnation { epoch: Epoch(unix_ms.max(after)), seq: 0 }
}

/// The newest of the owners that `partitions` know.
fn newest_owner(
    admin: &dyn SystemAdmin,
    partitions: &[TopicPartition],
) -> Result<Option<OwnerRecord>, SystemError> {
    let mut newest: Option<OwnerRecord> = None;
    for at in partitions {
        let ends = patiently(|| admin.watermarks(std::slice::from_ref(at)))?;
        let until = ends.first().map_or(0, |ends| ends.high);
        patiently(|| {
            admin.read_range(at, 0, until, Isolation::ReadUncommitted, &mut |messages| {
                for message in messages {
                    if let Some(Record::Owner(owner)) = record::decode(message.key, message.value)
                        && newest.as_ref().is_none_or(|newest| newest.incarnation < owner.incarnation)
                    {
                        newest = Some(owner);
                    }
                }
                Ok(())
            })
        })?;
    }
    Ok(newest)
}

/// The job with its patterns replaced by the topics that match them now.
fn matched(job: &JobSpec, systems: &Systems) -> Result<JobSpec, End> {
    let mut topics: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    if job.has_patterns() {
        for (name, _) in job.systems.iter().filter(|(_, spec)| spec.kind == SystemKind::Kafka) {
            let system =
                systems.get(name).ok_or_else(|| failed(format!("no system `{name}` in the job file")))?;
            topics.insert(name, patiently(|| system.admin().topics())?);
        }
    }
    let matched = types::expand(job, &|system| topics.get(system).cloned().unwrap_or_default());
    if matched.task.inputs.is_empty() {
        return Err(failed(format!("no topic matches [task] inputs: {}", job.task.inputs.join(", "))));
    }
    Ok(matched)
}

/// SIGINT and SIGTERM let every thread commit and end; the second one ends the process at once.
fn stop_on_signals(board: &Arc<Board>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let board = Arc::clone(board);
    let listen = move || {
        runtime.block_on(async {
            let shutdown = daemon::Shutdown::on_signals();
            shutdown.wait().await;
            board.stop(Told::Signal(shutdown.signal().unwrap_or(TERM)));
            // For the second signal.
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map(drop)
}
