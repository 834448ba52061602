//! `samza-submit job.toml`: checks a job, uploads its binary and hands it to the resource manager.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use client::args::Common;
use client::failure::{CODES, exit};
use client::submit::{Request, submit};

/// Submit a job to a samza cluster
///
/// Prints the application's id to stdout. Whatever is wrong is told before anything is changed: the job file with
/// key and line, the package, Kafka, the resource manager, a live job of the same name.
#[derive(Debug, Parser)]
#[command(name = "samza-submit", version, after_help = format!("{EXAMPLES}\n\n{CODES}"))]
struct Args {
    /// The job file; docs/job-file.md describes it
    #[arg(value_name = "JOB.TOML")]
    job_file: PathBuf,

    /// Check the job file and its package without a cluster, and say what would be run
    #[arg(long)]
    check: bool,

    /// Wait until all containers run, telling every change; fails if the job ends unwell before
    #[arg(long, conflicts_with = "check")]
    wait: bool,

    /// With --wait: give up after this long, such as 90s; the job goes on
    #[arg(long, requires = "wait", value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,

    /// Roll a live job of the same name and id: it is stopped, and this one resumes from its checkpoints
    #[arg(long, conflicts_with = "check")]
    replace: bool,

    /// Submit without asking Kafka whether it answers (where it can be reached from the nodes only)
    #[arg(long)]
    skip_broker_check: bool,

    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  samza-submit job.toml --check
  samza-submit job.toml --wait --timeout 60s
  samza-submit job.toml --rm rm.example.org:8030 --token-file token --replace";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let request = Request {
        job_file: &args.job_file,
        check: args.check,
        wait: args.wait,
        timeout: args.timeout,
        replace: args.replace,
        skip_broker_check: args.skip_broker_check,
    };
    exit("samza-submit", submit(&args.common, &request).await)
}
