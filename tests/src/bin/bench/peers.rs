//! The other sides: a plain rust-rdkafka loop, and Kafka Streams on a JVM that stays warm from one run to the next.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ::tests::Brokers;
use ::tests::brokers::repository;
use ::tests::cluster::program;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cases::Case;

/// As figures name them.
pub const STREAMS: &str = "Kafka Streams 4.1.1";
pub const RDKAFKA: &str = "rust-rdkafka loop";

/// A JVM that is told to end ends within this.
const JVM_ENDS: Duration = Duration::from_secs(40);

/// What each program prints.
#[derive(Debug, Clone, Deserialize)]
pub struct Measured {
    /// Over so many.
    pub messages: u64,
    /// Of the whole process.
    pub cpu_ns_per_message: f64,
    /// By the clock on the wall.
    pub msgs_per_s: f64,
}

/// Which messages of an input are measured.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// So many come before.
    pub warm_up: u64,
    /// So many are measured.
    pub window: u64,
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// Deletes the topics whose names match.
pub fn delete_topics(brokers: &Brokers, pattern: &str) -> Result<()> {
    let mut tool = Command::new(repository().join("deploy/kafka/kafka.sh"));
    tool.args(["tool", "org.apache.kafka.tools.TopicCommand", "--bootstrap-server"]);
    run(tool.arg(&brokers.bootstrap).args(["--delete", "--if-exists", "--topic", pattern])).map(|_| ())
}

/// Measures the plain loop.
pub fn rdkafka(
    brokers: &Brokers,
    case: &Case,
    input: &str,
    output: Option<&str>,
    span: Span,
) -> Result<Measured> {
    let changelog_ms = if case.changelog { case.commit_ms } else { 0 };
    let mut peer = Command::new(program("peer_rdkafka"));
    peer.args([&brokers.bootstrap, case.work.mode(), input, output.unwrap_or("none")]);
    peer.args([span.warm_up.to_string(), span.window.to_string(), changelog_ms.to_string()]);
    let printed = String::from_utf8(run(&mut peer)?.stdout)?;
    serde_json::from_str(printed.trim()).with_context(|| printed.clone())
}

/// Compiles the peer on the JVM with Maven; returns its class path.
fn compile() -> Result<String> {
    run(Command::new(repository().join("deploy/install-packages.sh")).arg("peers"))?;
    let target = program("bench").with_file_name("peers").join("kafka-streams");
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B", "-f"]).arg(repository().join("tests/peers/kafka-streams/pom.xml"));
    maven.arg(format!("-Dpeer.target={}", target.display())).arg("compile");
    run(&mut maven)?;
    let jars =
        run(Command::new("bash").args(["-c", "echo \"${SAMZA_CACHE:-$HOME/.cache/samza-rs}\"/kafka/*/lib"]))?;
    let jars = PathBuf::from(String::from_utf8(jars.stdout)?.trim());
    Ok(format!("{}:{}/*", target.join("classes").display(), jars.display()))
}

/// Kafka Streams on one JVM: takes runs one after the other, so that only the first has to warm it up.
pub struct Streams {
    process: Child,
    /// None once it is told to end.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// A run of Kafka Streams.
#[derive(Debug, Clone)]
pub struct StreamsRun<'a> {
    /// What is done, as [`crate::cases::Work::mode`] calls it, or `forward` or `restore`.
    pub mode: &'a str,
    /// Also the beginning of its own topics' names.
    pub application: &'a str,
    pub input: &'a str,
    pub output: Option<&'a str>,
    pub exactly_once: bool,
    pub commit_ms: u64,
    pub changelog: bool,
    pub span: Span,
}

impl Streams {
    /// Starts the JVM.
    pub fn start(brokers: &Brokers) -> Result<Streams> {
        let mut java = Command::new("java");
        java.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error").arg("-cp").arg(compile()?);
        java.args(["Peer", &brokers.bootstrap]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = java.spawn().context("java")?;
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("piped")?);
        Ok(Streams { process, orders, answers })
    }

    /// Begins a run.
    pub fn begin(&mut self, run: &StreamsRun<'_>) -> Result<()> {
        let StreamsRun { mode, application, input, output, exactly_once, commit_ms, changelog, span } = run;
        let Span { warm_up, window } = span;
        let output = output.unwrap_or("none");
        self.order(&format!(
            "{mode} {application} {input} {output} {exactly_once} {commit_ms} {changelog} {warm_up} {window}"
        ))
    }

    /// Ends a run that does not end by itself.
    pub fn end(&mut self) -> Result<()> {
        self.order("end")
    }

    fn order(&mut self, line: &str) -> Result<()> {
        writeln!(self.orders.as_mut().context("piped")?, "{line}").context("the peer on the JVM is gone")
    }

    /// What it measured; it is ready for the next run then.
    pub fn measured(&mut self) -> Result<Measured> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the peer on the JVM has ended: {:?}", self.process.try_wait());
        serde_json::from_str(&line).with_context(|| line.clone())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        drop(self.orders.take());
        // It has files to remove.
        let begun = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && begun.elapsed() < JVM_ENDS {
            sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
