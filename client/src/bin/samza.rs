//! `samza`: the operator's command line.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand};
use client::args::{Common, Format};
use client::failure::{CODES, Failure, exit};
use client::find::application;
use client::logs::{What, Whose, show};
use client::output::{print, print_json, say};
use client::resource_manager::ResourceManager;
use client::tables;
use client::wait::{Goal, wait};
use types::AppReport;

/// Look at and steer the jobs of a samza cluster
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
  samza list
  samza status flight-delays
  samza logs flight-delays -f --slot 0 --stderr
  samza stop flight-delays --wait
  samza nodes -o json";

#[derive(Debug, Subcommand)]
enum Command {
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
    /// List the nodes and what is free on them
    Nodes,
    /// Remove the local state that nodes keep of a job that is over (its topics stay)
    Purge {
        /// The job
        job: String,
    },
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
    container: Option<String>,
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    exit("samza", run(Cli::parse()).await)
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let mut rm = ResourceManager::connect(&cli.common).await?;
    let json = cli.common.output == Format::Json;
    match cli.command {
        Command::List { live } => {
            let mut apps = rm.list().await?;
            apps.retain(|app| !live || !app.state.is_over());
            apps.sort_by_key(|app| std::cmp::Reverse((app.submitted_unix_ms, app.app.clone())));
            if json { print_json(&apps) } else { print(&tables::applications(&apps, now(), !cli.no_headers)) }
        }
        Command::Status { job } => {
            let app = found(&mut rm, &job).await?;
            if json { print_json(&app) } else { print(&tables::status(&app, now(), !cli.no_headers)) }
        }
        Command::Stop { job, kill, until } => end(&mut rm, &job, kill, &until).await,
        Command::Kill { job, until } => end(&mut rm, &job, true, &until).await,
        Command::Logs(args) => {
            let app = found(&mut rm, &args.job).await?;
            let whose = match (args.container, args.slot, args.app_master) {
                (Some(id), _, _) => Whose::Container(id),
                (None, Some(slot), _) => Whose::Slot(slot),
                (None, None, true) => Whose::AppMaster,
                (None, None, false) => Whose::Everyone,
            };
            let what =
                What { stderr: args.stderr, follow: args.follow, previous: args.previous, tail: args.tail };
            show(&mut rm, &app, &whose, what).await
        }
        Command::Nodes => {
            let cluster = rm.nodes().await?;
            if json {
                return print_json(&cluster);
            }
            say(&tables::cluster_line(&cluster));
            print(&tables::nodes(&cluster.nodes, !cli.no_headers))
        }
        Command::Purge { job } => {
            let job = application(&rm.list().await?, &job).map_or(job, |app| app.job.to_string());
            rm.purge(&job).await?;
            say(&format!("the nodes remove what they keep of {job}"));
            Ok(())
        }
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

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
