//! The benches: what a message costs beside Kafka Streams and a plain rust-rdkafka loop, and how long it takes until
//! a job runs, runs again, has its state again.
//!
//! `make bench` runs all; `bench --only cpu|recovery|start` a part. Everything is on one machine with one broker, and one thing
//! is measured at a time. Prints as it goes and a table at the end, and appends each figure to `target/bench.jsonl` as
//! `{"name","value","unit","peer","peer_value"}`.

mod cpu;
mod figures;
mod recovery;
mod start;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use ::tests::Brokers;
use ::tests::brokers::repository;
use anyhow::{Context, Result, bail};

use crate::figures::Figures;

const USAGE: &str = "usage: bench [--only cpu|recovery|start] [--messages MILLIONS]
  cpu        passthrough-cpu, count-200k-cpu
  recovery   kill-to-output-same-host, kill-to-output-other-host, restore-100k
  start      submit-to-first-message, ask-to-running-p50, ask-to-running-p99
  --messages that the peer on the JVM works on before it is measured, in millions; the default is 8, for fewer it
             costs more than it does when warm";

struct Options {
    only: Option<String>,
    millions: u64,
}

fn options() -> Result<Options> {
    let mut options = Options { only: None, millions: 8 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--only" => options.only = Some(value()?),
            "--messages" => options.millions = value()?.parse().context("--messages")?,
            other => bail!("unknown option {other}\n{USAGE}"),
        }
    }
    let valid = |part: &str| ["cpu", "recovery", "start"].contains(&part);
    if let Some(part) = options.only.as_deref().filter(|part| !valid(part)) {
        bail!("--only {part}?\n{USAGE}");
    }
    Ok(options)
}

/// Runs this program again, with a broker of its own that is tuned for throughput.
fn with_broker() -> Result<()> {
    let error = Command::new(repository().join("deploy/kafka/kafka.sh"))
        .args(["run", "--port", "0", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env("KAFKA_JVM", "-XX:+UseG1GC")
        .env("KAFKA_HEAP", "1g")
        .exec();
    Err(error).context("deploy/kafka/kafka.sh")
}

fn main() -> Result<()> {
    let options = options()?;
    if std::env::var_os("SAMZA_TEST_KAFKA").is_none() {
        return with_broker();
    }
    let brokers = Brokers::shared();
    let wanted = |part: &str| options.only.as_deref().is_none_or(|only| only == part);
    let mut figures = Figures::default();
    if wanted("start") {
        start::submit(brokers, &mut figures)?;
        start::asks(brokers, &mut figures)?;
    }
    if wanted("recovery") {
        recovery::measure(brokers, &mut figures)?;
    }
    if wanted("cpu") {
        cpu::measure(brokers, &mut figures, options.millions * 1_000_000)?;
    }
    figures.print();
    Ok(())
}
