//! The benches: what a message costs beside Kafka Streams and a plain rust-rdkafka loop, how long it takes from end to
//! end, what a restore costs, and how long it takes until a job runs, runs again, has its state again.
//!
//! `make bench` runs all parts with a representative set of cases; `bench --help` tells how to choose others. Everything
//! is on one machine with one broker, and one thing is measured at a time. Prints as it goes and a table at the end, and
//! appends each figure to `target/bench.jsonl` as `{"name","value","unit","peer","peer_value","target"}`.

mod cases;
mod cpu;
mod figures;
mod idle;
mod latency;
mod ours;
mod peers;
mod recovery;
mod restore;
mod start;
mod transaction;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use ::tests::Brokers;
use ::tests::brokers::repository;
use anyhow::{Context, Result, bail};

use crate::cases::{Case, Selection};
use crate::cpu::Sizes;
use crate::figures::Figures;

const USAGE: &str = "usage: bench [--only PART] [--case NAME] [--full] [--quick] [--messages MILLIONS] [--list]
  --only     start | recovery | transaction | cpu | idle | restore | latency; default: all
  --case     of cpu, restore and latency only the case of this name, else those whose names contain it
  --full     all cases of cpu: hours
  --list     the names of all cases
  --quick    little of everything, to see that it works: figures mean nothing and are not appended
  --messages that a cold JVM works on before it is measured, in millions; the default is 8, for fewer it costs more
             than it does when warm";

/// The parts, in the order in which they are measured.
const PARTS: [&str; 7] = ["start", "recovery", "transaction", "cpu", "idle", "restore", "latency"];
/// `--quick` divides what is read by this.
const QUICK: u64 = 20;

struct Options {
    only: Option<String>,
    selection: Selection,
    quick: bool,
    list: bool,
    millions: u64,
}

fn options() -> Result<Options> {
    let selection = Selection::default();
    let mut options = Options { only: None, selection, quick: false, list: false, millions: 8 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--only" => options.only = Some(value()?),
            "--case" => options.selection.case = Some(value()?),
            "--full" => options.selection.full = true,
            "--list" => options.list = true,
            "--quick" => options.quick = true,
            "--messages" => options.millions = value()?.parse().context("--messages")?,
            "--help" => bail!("{USAGE}"),
            other => bail!("unknown option {other}\n{USAGE}"),
        }
    }
    if let Some(part) = options.only.as_deref().filter(|part| !PARTS.contains(part)) {
        bail!("--only {part}?\n{USAGE}");
    }
    Ok(options)
}

/// Every case, by part.
fn names() -> [(&'static str, Vec<String>); 3] {
    [
        ("cpu", cases::all().iter().map(Case::name).collect()),
        ("restore", restore::CASES.iter().map(|(name, _)| (*name).to_owned()).collect()),
        ("latency", latency::CASES.iter().map(|(name, ..)| (*name).to_owned()).collect()),
    ]
}

impl Options {
    /// Whether a part is measured.
    fn wants(&self, part: &str) -> bool {
        if self.only.as_deref().is_some_and(|only| only != part) {
            return false;
        }
        let named =
            || names().iter().any(|(of, names)| *of == part && !self.selection.of(names, &[]).is_empty());
        self.selection.case.is_none() || named()
    }
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
    if options.list {
        for (part, names) in names() {
            println!("{part}: {}", names.join(" "));
        }
        return Ok(());
    }
    let parts: Vec<&str> = PARTS.into_iter().filter(|part| options.wants(part)).collect();
    if parts.is_empty() {
        bail!("no such case; --list names them\n{USAGE}");
    }
    if std::env::var_os("SAMZA_TEST_KAFKA").is_none() {
        return with_broker();
    }
    let brokers = Brokers::shared();
    let mut figures = Figures::default();
    figures.forgotten = options.quick;
    let divisor = if options.quick { QUICK } else { 1 };
    for part in parts {
        match part {
            "start" => {
                start::submit(brokers, &mut figures)?;
                start::asks(brokers, &mut figures)?;
            }
            "recovery" => recovery::measure(brokers, &mut figures)?,
            "transaction" => transaction::measure(brokers, &mut figures)?,
            "cpu" => {
                let sizes = Sizes { jvm_warm_up: options.millions * 1_000_000, divisor };
                cpu::measure(brokers, &mut figures, &options.selection.cases(), sizes)?;
            }
            "idle" => idle::measure(brokers, &mut figures, divisor)?,
            "restore" => restore::measure(brokers, &mut figures, &options.selection, divisor)?,
            _ => latency::measure(brokers, &mut figures, &options.selection, options.quick)?,
        }
    }
    figures.print();
    Ok(())
}
