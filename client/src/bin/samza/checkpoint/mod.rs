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
use types::{JobSpec, Secrets, SystemKind, SystemStreamPartition};

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

    /// Go on with what the changelogs of a stopped job hold now, where a container refuses to start because some of it
    /// is lost; alone, or with --set
    #[arg(long)]
    accept_state: bool,

    /// With --set or --accept-state: only show what would be moved
    #[arg(long)]
    dry_run: bool,

    /// With --set: do it while the job is live. The containers of the tasks concerned commit and stop, their start points
    /// are moved, and they start again; the others run on
    #[arg(long, requires = "moves", conflicts_with_all = ["dry_run", "offline", "accept_state"])]
    live: bool,

    /// With --set or --accept-state: do not ask the resource manager whether the job is live
    #[arg(long)]
    offline: bool,
}

/// Runs it.
pub(crate) async fn checkpoint(common: &Common, args: CheckpointArgs, headers: bool) -> Result<(), Failure> {
    let file = package::read_job_file(&args.job_file)?;
    only_on_brokers(&file)?;
    let writes = args.accept_state || !args.moves.is_empty();
    if !writes && (args.dry_run || args.offline) {
        let told =
            "--dry-run and --offline go with --set or --accept-state; without them nothing is moved anyway";
        return Err(Failure::new(Code::Usage, told.to_owned()));
    }
    let live = if args.live { live::of(common, &file).await? } else { None };
    if args.offline {
        say(
            "warning: the resource manager is not asked; if the job is live, its containers are fenced and start again",
        );
    } else if writes && !args.dry_run && live.is_none() {
        refuse_if_live(common, &file, &args.job_file).await?;
    }
    let secrets = package::secrets(&file, &args.job_file)?;
    brokers::check(&file, &secrets).await?;
    if let Some(live) = live {
        let rows = live.move_points(file.spec, secrets, args.moves).await?;
        return show(common, &rows, true, headers)
            .map(|()| say("moved; the containers concerned have started again"));
    }
    let (spec, dry_run) = (file.spec, args.dry_run);
    let moving = !args.moves.is_empty();
    let wanted = Wanted { moves: args.moves, accept_state: args.accept_state };
    // Calls of Kafka block.
    let done = tokio::task::spawn_blocking(move || run(&spec, &secrets, &wanted, dry_run)).await;
    let rows = done.map_err(|error| Failure::other(error.to_string()))??;
    show(common, &rows, moving, headers)?;
    if args.accept_state {
        say(if dry_run {
            "nothing was accepted (--dry-run)"
        } else {
            "accepted; the job goes on with what its changelogs hold now"
        });
    }
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

/// What is to be written.
struct Wanted {
    moves: Vec<Move>,
    accept_state: bool,
}

fn run(spec: &JobSpec, secrets: &Secrets, wanted: &Wanted, dry_run: bool) -> Result<Vec<Row>, Failure> {
    let topics = Topics::open(spec, secrets)?;
    let found = topics.look()?;
    if wanted.moves.is_empty() && !wanted.accept_state {
        return Ok(rows(&found, &found.tasks, &BTreeMap::new()));
    }
    let targets = topics.targets(&found, &wanted.moves)?;
    if dry_run {
        return Ok(rows(&found, &found.tasks, &targets));
    }
    let before = topics.write(&found, &targets, wanted.accept_state, crate::now())?;
    Ok(rows(&found, &before, &targets))
}

/// Moves start points, claiming the tasks that are concerned alone: the others may run.
fn move_some(spec: &JobSpec, secrets: &Secrets, moves: &[Move]) -> Result<Vec<Row>, Failure> {
    let topics = Topics::open(spec, secrets)?;
    let mut found = topics.look()?;
    let targets = topics.targets(&found, moves)?;
    found.keep_concerned(&targets);
    let before = topics.write(&found, &targets, false, crate::now())?;
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
