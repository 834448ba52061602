//! `samza`: the command line of those who write jobs and of those who run them.

mod checkpoint;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand};
use client::args::{Common, Format};
use client::failure::{CODES, Code, Failure, exit};
use client::find::application;
use client::logs::{What, Whose, show};
use client::metrics;
use client::new::{Request, new};
use client::output::{print, print_json, say};
use client::resource_manager::ResourceManager;
use client::tables;
use client::wait::{Goal, wait};
use types::{AppReport, ContainerId, NodeStateName};

use checkpoint::{CheckpointArgs, checkpoint};

/// Write jobs, and look at and steer those of a samza cluster
///
/// JOB is an application's id, a job's name, or <name>-<id>. Data goes to stdout, everything else to stderr.
/// Jobs are submitted with samza-submit.
#[derive(Debug, Parser)]
#[command(name = "samza", version, after_help = format!("{EXAMPLES}\n\n{CODES}"))]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    common: Common,

    /// Tables without their first line
    #[arg(long, global = true)]
    no_headers: bool,
}

const EXAMPLES: &str = "\
Examples:
  samza new my-job
  samza run job.toml --local
  samza list
  samza status flight-delays
  samza logs flight-delays -f --slot 0 --stderr
  samza metrics flight-delays samza_task
  samza stop flight-delays --wait
  samza checkpoint job.toml --set kafka.flights=oldest
  samza nodes -o json
  samza node drain worker-2 --deadline 5m --wait";

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    OnCluster(OnCluster),
    /// Show how far a job's tasks have read, or move where a stopped job starts
    Checkpoint(CheckpointArgs),
    /// Run a job in one process on this machine: executes its binary with --local
    Run(RunArgs),
    /// Make a crate with a small stateful job, its tests and data to try it on
    New(NewArgs),
}

/// What the resource manager answers or does.
#[derive(Debug, Subcommand)]
enum OnCluster {
    /// List applications, newest first
    List {
        /// Only those that are not over
        #[arg(long)]
        live: bool,
    },
    /// Show one job and its containers
    Status {
        /// The job
        job: String,
    },
    /// Stop a job: its containers commit and exit
    Stop {
        /// The job
        job: String,
        /// Without grace: what was not committed is processed again when it is submitted anew
        #[arg(long)]
        kill: bool,
        #[command(flatten)]
        until: Until,
    },
    /// Stop a job without grace
    Kill {
        /// The job
        job: String,
        #[command(flatten)]
        until: Until,
    },
    /// Print what a job's containers wrote
    Logs(LogArgs),
    /// Show the metrics of a job's containers, as its application master collects them: twice, for the rates
    Metrics {
        /// The job
        job: String,
        /// Only metrics whose names begin like this
        #[arg(default_value = "")]
        prefix: String,
        /// As Prometheus reads them, whole
        #[arg(long, conflicts_with = "prefix")]
        raw: bool,
    },
    /// List the nodes and what is free on them
    Nodes,
    /// Empty a node, for its maintenance, or take that back
    #[command(subcommand)]
    Node(NodeVerb),
    /// Remove the local state that nodes keep of a job that is over (its topics stay)
    Purge {
        /// The job
        job: String,
    },
}

/// Rates are those of so long.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// Give the node no new containers and move away those it has: each commits, exits and is replaced elsewhere
    Drain {
        /// The node, as `samza nodes` names it
        node: String,
        /// How long each container may take to end by itself before it is killed, such as 5m
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
        deadline: Duration,
        /// Wait until the node is empty
        #[arg(long)]
        wait: bool,
    },
    /// Let a drained node take containers again
    Undrain {
        /// The node
        node: String,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The job file
    #[arg(value_name = "JOB.TOML")]
    job_file: PathBuf,
    /// Without a cluster; the only way yet
    #[arg(long)]
    local: bool,
    /// For the job's binary, such as --fresh; `--local --help` tells them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<String>,
}

#[derive(Debug, Args)]
struct NewArgs {
    /// The crate's and the job's name
    name: String,
    /// Its folder; by default the name
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// The checkout of samza to depend on; by default the one this program was built from
    #[arg(long, value_name = "DIR")]
    samza: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Until {
    /// Wait until it is over
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this long, such as 90s
    #[arg(long, requires = "wait", value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Args)]
struct LogArgs {
    /// The job
    job: String,
    /// Go on as lines come
    #[arg(short, long)]
    follow: bool,
    /// Of one container, by its id
    #[arg(long, value_name = "ID", conflicts_with_all = ["slot", "app_master", "previous"])]
    container: Option<ContainerId>,
    /// Of one slot; without it, of all slots
    #[arg(long, value_name = "N", conflicts_with = "app_master")]
    slot: Option<u32>,
    /// Of the application master
    #[arg(long)]
    app_master: bool,
    /// stderr instead of stdout
    #[arg(long)]
    stderr: bool,
    /// Of the run before the newest one
    #[arg(long)]
    previous: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
}

/// Between two looks at a node that is being emptied: there is no stream of nodes to wait on.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    exit("samza", run(Cli::parse()).await)
}

async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Checkpoint(args) => checkpoint(&cli.common, args, !cli.no_headers).await,
        Command::Run(args) => {
            client::run::run(&args.job_file, args.local, &args.args).map(|never| match never {})
        }
        Command::New(args) => {
            let (path, samza) = (args.path.as_deref(), args.samza.as_deref());
            print(&new(&Request { name: &args.name, path, samza })?)
        }
        Command::OnCluster(command) => ask(cli.common, command, !cli.no_headers).await,
    }
}

/// A job's metrics, from two looks unless they are wanted as they are.
async fn show_metrics(
    rm: &mut ResourceManager,
    job: &str,
    prefix: &str,
    raw: bool,
    (json, headers): (bool, bool),
) -> Result<(), Failure> {
    let app = found(rm, job).await?;
    let Some(address) = &app.master_address else {
        let why = format!("{} has no application master that listens now", app.job);
        return Err(Failure::new(Code::NotFound, format!("{why}; `samza status {job}` says why")));
    };
    let page = rm.metrics(address).await?;
    if raw {
        return print(&page);
    }
    let since = std::time::Instant::now();
    tokio::time::sleep(BETWEEN_LOOKS).await;
    let later = rm.metrics(address).await?;
    let shown = metrics::read_with_rates(&page, &later, since.elapsed().as_secs_f64(), prefix);
    if json { print_json(&shown) } else { print(&metrics::table(&shown, headers)) }
}

/// What the resource manager answers.
async fn ask(common: Common, command: OnCluster, headers: bool) -> Result<(), Failure> {
    let mut rm = ResourceManager::connect(&common).await?;
    let json = common.output == Format::Json;
    match command {
        OnCluster::List { live } => {
            let mut apps = rm.list().await?;
            apps.retain(|app| !live || !app.state.is_over());
            apps.sort_by_key(|app| std::cmp::Reverse((app.submitted_unix_ms, app.app.clone())));
            if json { print_json(&apps) } else { print(&tables::applications(&apps, now(), headers)) }
        }
        OnCluster::Status { job } => {
            let app = found(&mut rm, &job).await?;
            if json { print_json(&app) } else { print(&tables::status(&app, now(), headers)) }
        }
        OnCluster::Stop { job, kill, until } => end(&mut rm, &job, kill, &until).await,
        OnCluster::Kill { job, until } => end(&mut rm, &job, true, &until).await,
        OnCluster::Logs(args) => {
            let app = found(&mut rm, &args.job).await?;
            let whose = match (args.container, args.slot, args.app_master) {
                (Some(id), _, _) => Whose::Container(id),
                (None, Some(slot), _) => Whose::Slot(slot),
                (None, None, true) => Whose::AppMaster,
                (None, None, false) => Whose::Everyone,
            };
            let what =
                What { stderr: args.stderr, follow: args.follow, previous: args.previous, tail: args.tail };
            show(&mut rm, &app, whose, what).await
        }
        OnCluster::Metrics { job, prefix, raw } => {
            show_metrics(&mut rm, &job, &prefix, raw, (json, headers)).await
        }
        OnCluster::Nodes => {
            let cluster = rm.nodes().await?;
            if json {
                return print_json(&cluster);
            }
            say(&tables::cluster_line(&cluster));
            print(&tables::nodes(&cluster.nodes, headers))
        }
        OnCluster::Node(NodeVerb::Drain { node, deadline, wait }) => {
            rm.drain(&node, Some(deadline)).await?;
            if wait {
                return drained(&mut rm, &node).await;
            }
            say(&format!("{node} is being emptied; `samza nodes` shows how far it is"));
            Ok(())
        }
        OnCluster::Node(NodeVerb::Undrain { node }) => {
            rm.drain(&node, None).await?;
            say(&format!("{node} takes containers again"));
            Ok(())
        }
        OnCluster::Purge { job } => {
            let job = application(&rm.list().await?, &job).map_or(job, |app| app.job.to_string());
            rm.purge(&job).await?;
            say(&format!("the nodes remove what they keep of {job}"));
            Ok(())
        }
    }
}

/// Waits until the node is empty, telling how much is left.
async fn drained(rm: &mut ResourceManager, name: &str) -> Result<(), Failure> {
    let mut told = None;
    loop {
        let cluster = rm.nodes().await?;
        let node = cluster.nodes.iter().find(|node| node.node.0 == name);
        match node {
            Some(node) if node.state == NodeStateName::Drained => {
                say(&format!("{name} is empty"));
                return Ok(());
            }
            Some(node) if matches!(node.state, NodeStateName::Draining | NodeStateName::Suspect) => {
                if told.replace(node.containers) != Some(node.containers) {
                    say(&format!("{name}: {} containers are left", node.containers));
                }
            }
            Some(node) => return Err(Failure::other(format!("{name} is {:?}, not draining", node.state))),
            None => return Err(Failure::other(format!("{name} is gone"))),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn found(rm: &mut ResourceManager, job: &str) -> Result<AppReport, Failure> {
    application(&rm.list().await?, job).cloned()
}

async fn end(rm: &mut ResourceManager, job: &str, kill: bool, until: &Until) -> Result<(), Failure> {
    let app = found(rm, job).await?;
    rm.stop(&app.app, kill).await?;
    if until.wait {
        wait(rm, &app.app, Goal::Over, until.timeout).await?;
    } else {
        say(&format!(
            "{} ({}) is told to end; `samza status {}` shows how far it is",
            app.job, app.app, app.app
        ));
    }
    Ok(())
}

/// Unix ms.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
