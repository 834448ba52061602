//! The demo: three brokers, a resource manager, three nodes, one stateful job over a year of flights; a container and
//! then a whole node are killed on the way, and what comes out is compared with the truth.
//!
//! `make demo` runs it. It exits with 0 if the result is right and every claim held.

mod feeder;
mod flights;
mod story;
mod watcher;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tests::{Brokers, Cluster, Job, Settings, Topics};

use crate::feeder::Feeder;
use crate::story::Story;
use crate::watcher::Watcher;

/// The job's input topic.
const INPUT: &str = "flights";
/// The job's output topic.
const OUTPUT: &str = "carrier-delays";

struct Options {
    flights: PathBuf,
    seconds: u64,
    stay: bool,
}

fn options() -> Result<Options> {
    let mut options = Options { flights: PathBuf::new(), seconds: 60, stay: std::io::stdout().is_terminal() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--flights" => options.flights = value()?.into(),
            "--seconds" => options.seconds = value()?.parse().context("--seconds")?,
            "--exit" => options.stay = false,
            other => bail!(
                "unknown option {other}\nusage: demo --flights flights.csv [--seconds 60] [--exit]\n\
                 `make demo` fetches the file (deploy/flights.sh)"
            ),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let options = options()?;
    let flights = flights::read(&options.flights)?;
    println!("{} flights; starting three brokers, a resource manager and three nodes", flights.len());
    let (brokers, _guard) = Brokers::start(3);
    let topics = Topics::on(&brokers);
    topics.create(INPUT, 6);
    topics.create(OUTPUT, 3);
    let mut cluster = Cluster::with(Settings::nodes(3));
    println!("web UI: http://{}/", cluster.web());

    let job = job(&brokers);
    cluster.submit(&job);
    let app = cluster.wait_running(&job);
    println!("{} runs in {} containers: http://{}/apps/{}", job.name, job.containers, cluster.web(), app.app);

    let truth = flights::totals(&flights);
    let total = flights.len() as u64;
    let watcher = Watcher::start(&brokers.bootstrap, OUTPUT)?;
    let feeder = Feeder::start(&brokers.bootstrap, INPUT, flights, Duration::from_secs(options.seconds));
    let mut story = Story { cluster: &mut cluster, job: &job, watcher: &watcher, feeder: &feeder, total };
    story.near_brokers()?;
    story.wait_share(0.20)?;
    story.kill_container()?;
    story.wait_share(0.50)?;
    story.kill_node()?;
    story.wait_share(1.0)?;
    story.near_brokers()?;
    let right = flights::compare(&truth, &watcher.totals());

    if options.stay {
        println!("\nIt stays up for you to look at: http://{}/   Ctrl-C ends it.", cluster.web());
        loop {
            std::thread::park();
        }
    }
    println!("stopping the job and cleaning up");
    cluster.stop(&job);
    Ok(right)
}

/// `flight-delays` as a user would submit it.
fn job(brokers: &Brokers) -> Job {
    let mut job = Job::counter("flight-delays", brokers);
    job.name = "flight-delays".into();
    job.binary = tests::cluster::program("examples/flight-delays");
    job.inputs = vec![INPUT.into()];
    job.output = OUTPUT.into();
    job.containers = 3;
    job.memory = "384MiB".into();
    job.cpu = 0.3;
    job.commit = "500ms".into();
    job.window = Some("500ms".into());
    job.config.clear();
    job.stores = vec!["flights".into(), "carriers".into()];
    // One container on each machine, so that a machine can be lost.
    job.placement = "spread = \"host\"\nwait = \"1s\"\nrack-wait = \"1s\"".into();
    job
}
