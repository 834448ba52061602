//! `samza checkpoint job.toml`: how far a job's tasks are, and moving where they start.

mod kafka_side;
mod live;
mod moves;
mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use client::args::{Common, Format};
use client::failure::{Code, Failure};
use client::output::{print, print_json, say};
use client::resource_manager::ResourceManager;
use client::{brokers, package, tables};
use job_file::JobFile;
use types::{JobSpec, SystemKind, SystemStreamPartition};

use kafka_side::{Found, Topics};
use moves::Move;
use rows::{Row, TaskAt, table};

/// Its arguments.
#[derive(Debug, Args)]
pub(crate) struct CheckpointArgs {
    /// The job file: it names the brokers
    #[arg(value_name = "JOB.TOML")]
    job_file: PathBuf,

    /// Move where a stopped job starts: STREAM[:PARTITION]=oldest|newest|offset:N|timestamp:T; repeatable, the last
    /// that names a partition counts. The state of its stores stays as it is
    #[arg(long = "set", value_name = "STREAM[:PARTITION]=START")]
    moves: Vec<Move>,

    /// With --set: only show what would be moved
    #[arg(long, requires = "moves")]
    dry_run: bool,

    /// With --set: do it while the job is live. The containers of the tasks concerned commit and stop, their start points
    /// are moved, and they start again; the others run on
    #[arg(long, requires = "moves", conflicts_with_all = ["dry_run", "offline"])]
    live: bool,

    /// With --set: do not ask the resource manager whether the job is live
    #[arg(long, requires = "moves")]
    offline: bool,
}

/// Runs it.
pub(crate) async fn checkpoint(common: &Common, args: CheckpointArgs, headers: bool) -> Result<(), Failure> {
    let file = package::read_job_file(&args.job_file)?;
    only_on_brokers(&file)?;
    let live = if args.live { live::of(common, &file).await? } else { None };
    if args.offline {
        say(
            "warning: the resource manager is not asked; if the job is live, its containers are fenced and start again",
        );
    } else if !args.moves.is_empty() && !args.dry_run && live.is_none() {
        refuse_if_live(common, &file, &args.job_file).await?;
    }
    brokers::check(&file).await?;
    if let Some(live) = live {
        let rows = live.move_points(file.spec, args.moves).await?;
        return show(common, &rows, true, headers)
            .map(|()| say("moved; the containers concerned have started again"));
    }
    let (spec, moves, dry_run) = (file.spec, args.moves, args.dry_run);
    let moving = !moves.is_empty();
    // Calls of Kafka block.
    let done = tokio::task::spawn_blocking(move || run(&spec, &moves, dry_run)).await;
    let rows = done.map_err(|error| Failure::other(error.to_string()))??;
    show(common, &rows, moving, headers)?;
    if moving {
        say(if dry_run { "nothing was moved (--dry-run)" } else { "moved; the job starts there" });
    }
    Ok(())
}

fn show(common: &Common, rows: &[Row], moving: bool, headers: bool) -> Result<(), Failure> {
    match common.output {
        Format::Json => print_json(&rows),
        Format::Table => print(&table(rows, moving, headers)),
    }
}

fn run(spec: &JobSpec, moves: &[Move], dry_run: bool) -> Result<Vec<Row>, Failure> {
    let topics = Topics::open(spec)?;
    let found = topics.look()?;
    if moves.is_empty() {
        return Ok(rows(&found, &found.tasks, &BTreeMap::new()));
    }
    let targets = topics.targets(&found, moves)?;
    if dry_run {
        return Ok(rows(&found, &found.tasks, &targets));
    }
    let before = topics.write(&found, &targets, crate::now())?;
    Ok(rows(&found, &before, &targets))
}

/// Moves start points, claiming the tasks that are concerned alone: the others may run.
fn move_some(spec: &JobSpec, moves: &[Move]) -> Result<Vec<Row>, Failure> {
    let topics = Topics::open(spec)?;
    let mut found = topics.look()?;
    let targets = topics.targets(&found, moves)?;
    found.keep_concerned(&targets);
    let before = topics.write(&found, &targets, crate::now())?;
    Ok(rows(&found, &before, &targets))
}

/// All inputs of all tasks; if some are moved, those alone.
fn rows(found: &Found, tasks: &[TaskAt], targets: &BTreeMap<SystemStreamPartition, u64>) -> Vec<Row> {
    let shown = |input: &&SystemStreamPartition| targets.is_empty() || targets.contains_key(input);
    let of = |task: &TaskAt| {
        let inputs = task.inputs.iter().filter(shown);
        let row = |input| Some(Row::of(task, input, *found.ends.get(input)?, targets.get(input).copied()));
        inputs.filter_map(row).collect::<Vec<_>>()
    };
    tasks.iter().flat_map(of).collect()
}

fn only_on_brokers(file: &JobFile) -> Result<(), Failure> {
    let files = file.spec.systems.iter().find(|(_, system)| system.kind == SystemKind::Jsonl);
    let Some((name, _)) = files else { return Ok(()) };
    let told = "checkpoints of local runs over files are in the job's folder; remove that to start anew";
    Err(Failure::new(Code::BadJobFile, file.at(&format!("systems.{name}.type"), told).to_string()))
}

async fn refuse_if_live(common: &Common, file: &JobFile, path: &Path) -> Result<(), Failure> {
    let mut rm = ResourceManager::connect(common).await.map_err(|failure| {
        let told = format!("{failure}; --offline moves start points without asking whether the job is live");
        Failure::new(failure.code, told)
    })?;
    let job = &file.spec.job;
    let apps = rm.list().await?;
    let Some(live) = apps.iter().find(|app| app.job == *job && !app.state.is_over()) else { return Ok(()) };
    let told = format!(
        "{job} is live: {}, {}; move them with --live, which restarts the containers concerned, or end it with `samza stop {job} --wait`, \
         move its start points, and submit {} again",
        live.app,
        tables::word(&live.state),
        path.display()
    );
    Err(Failure::new(Code::Refused, told))
}
