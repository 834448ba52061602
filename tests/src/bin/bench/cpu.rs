//! CPU per message: ours, Kafka Streams, a plain rust-rdkafka loop, one process at a time, over the same input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ::tests::brokers::repository;
use ::tests::cluster::program;
use ::tests::wait::Pending;
use ::tests::{Brokers, Cluster, Job, Settings, Topics};
use anyhow::{Context, Result, ensure};
use kafka::KafkaProducer;
use serde::Deserialize;
use task_api::system::SystemProducer;

use crate::figures::Figures;

/// Partitions of every topic here.
const PARTITIONS: i32 = 4;
const KEYS: u64 = 200_000;
/// Bytes of a value.
const VALUE: usize = 100;
/// What programs without a JVM need to reach their pace; all keys are known by then. They are measured over all that
/// is left of the input, which takes ours some seconds: long enough for flushes to disk to be among it.
const WARM_UP: u64 = 2_000_000;
/// What the JVM is measured over, after its own warm-up.
const JVM_WINDOW: u64 = 2_000_000;
/// For one program to come to its end.
const LIMIT: Duration = Duration::from_secs(240);

/// What each side prints.
#[derive(Debug, Deserialize)]
struct Measured {
    messages: u64,
    cpu_ns_per_message: f64,
    msgs_per_s: f64,
}

struct Bench<'a> {
    brokers: &'static Brokers,
    topics: Topics,
    input: String,
    java: PathBuf,
    /// In the input.
    messages: u64,
    figures: &'a mut Figures,
}

/// Measures both modes.
pub fn measure(brokers: &'static Brokers, figures: &mut Figures, jvm_warm_up: u64) -> Result<()> {
    let java = compile_java()?;
    let topics = Topics::on(brokers);
    let input = "bench-cpu".to_owned();
    topics.create(&input, PARTITIONS);
    let messages = jvm_warm_up.max(WARM_UP) + JVM_WINDOW;
    println!("cpu: filling a topic with {messages} messages over {KEYS} keys, {VALUE}-byte values");
    fill(brokers, &input, messages)?;
    let mut bench = Bench { brokers, topics, input, java, messages, figures };
    bench.mode("passthrough", "passthrough-cpu")?;
    bench.mode("count", "count-200k-cpu")?;
    bench.delete(&bench.input.clone())
}

/// Sends `count` messages whose keys are spread evenly and in no order.
fn fill(brokers: &Brokers, topic: &str, count: u64) -> Result<()> {
    let settings = BTreeMap::from([("linger.ms".to_owned(), "20".to_owned())]);
    let mut producer = KafkaProducer::idempotent(&brokers.bootstrap, "bench", &settings)?;
    let handle = producer.topic(topic)?;
    let value = [b'v'; VALUE];
    let mut state: u64 = 1;
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = format!("k{:06}", (state >> 33) % KEYS);
        producer.send(handle, None, Some(key.as_bytes()), Some(&value))?;
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}

/// Compiles the peer on the JVM with Maven; returns the folder of its classes.
fn compile_java() -> Result<PathBuf> {
    run(Command::new(repository().join("deploy/install-packages.sh")).arg("peers"))?;
    let target = program("bench").with_file_name("peers").join("kafka-streams");
    let pom = repository().join("tests/peers/kafka-streams/pom.xml");
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B", "-f"]).arg(pom);
    maven.arg(format!("-Dpeer.target={}", target.display())).arg("compile");
    run(&mut maven)?;
    Ok(target.join("classes"))
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn last_line(text: &str) -> Result<Measured> {
    let line =
        text.lines().rev().find(|line| line.contains("cpu_ns_per_message")).context("no measurement")?;
    serde_json::from_str(line).with_context(|| line.to_owned())
}

impl Bench<'_> {
    fn mode(&mut self, mode: &str, name: &str) -> Result<()> {
        println!("cpu: {mode}");
        let ours = self.ours(mode, "at-least-once")?;
        let exactly_once = self.ours(mode, "exactly-once")?;
        let rdkafka = self.rdkafka(mode)?;
        let streams = self.streams(mode)?;
        let value = ours.cpu_ns_per_message;
        let peers = [("Kafka Streams 4.1.1", &streams), ("rust-rdkafka loop", &rdkafka)];
        for (peer, theirs) in peers {
            self.figures.add(name, value, "ns/message", Some((peer, theirs.cpu_ns_per_message)))?;
        }
        for (who, Measured { messages, cpu_ns_per_message, msgs_per_s }) in [
            ("ours, at-least-once", &ours),
            ("ours, exactly-once", &exactly_once),
            ("rust-rdkafka loop", &rdkafka),
            ("Kafka Streams", &streams),
        ] {
            self.figures.note(format!(
                "{mode}, {who}: {cpu_ns_per_message:.0} ns, {msgs_per_s:.0} messages/s, over {messages}"
            ));
        }
        Ok(())
    }

    fn output(&self, mode: &str, who: &str) -> String {
        let topic = format!("bench-{mode}-{who}");
        self.topics.create(&topic, PARTITIONS);
        topic
    }

    fn delete(&self, topic: &str) -> Result<()> {
        let mut tool = Command::new(repository().join("deploy/kafka/kafka.sh"));
        tool.args(["tool", "org.apache.kafka.tools.TopicCommand", "--bootstrap-server"]);
        run(tool.arg(&self.brokers.bootstrap).args(["--delete", "--topic", topic])).map(|_| ())
    }

    /// Our job in a container of a cluster of one node; the process measures itself.
    fn ours(&self, mode: &str, delivery: &str) -> Result<Measured> {
        let output = self.output(mode, delivery);
        let mut settings = Settings::nodes(1);
        settings.nodes[0].memory = "4GiB".into();
        let cluster = Cluster::with(settings);
        let mut job = Job::counter("measured", self.brokers);
        job.binary = program("examples/measured");
        job.inputs = vec![self.input.clone()];
        job.config = BTreeMap::from([
            ("mode".into(), mode.into()),
            ("output".into(), format!("kafka.{output}")),
            ("warm-up".into(), WARM_UP.to_string()),
            ("window".into(), (self.messages - WARM_UP).to_string()),
        ]);
        (job.memory, job.cpu) = ("1GiB".into(), 1.0);
        (job.delivery, job.commit) = (delivery.into(), "1s".into());
        if mode == "passthrough" {
            job.stores.clear();
        }
        cluster.submit(&job);
        let text = cluster.wait("the measurement", LIMIT, |cluster| {
            printed(cluster.node_root(0)).ok_or_else(|| Pending("nothing printed yet".into()))
        });
        cluster.stop(&job);
        self.delete(&output)?;
        last_line(&text)
    }

    fn rdkafka(&self, mode: &str) -> Result<Measured> {
        let mut peer = Command::new(program("peer_rdkafka"));
        self.peer(mode, "rdkafka", &mut peer, WARM_UP)
    }

    fn streams(&self, mode: &str) -> Result<Measured> {
        let jars =
            run(Command::new("bash")
                .args(["-c", "echo \"${SAMZA_CACHE:-$HOME/.cache/samza-rs}\"/kafka/*/lib"]))?;
        let jars = String::from_utf8(jars.stdout)?;
        let mut peer = Command::new("java");
        peer.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn").arg("-cp");
        peer.arg(format!("{}:{}/*", self.java.display(), jars.trim())).arg("Peer");
        self.peer(mode, "streams", &mut peer, self.messages - JVM_WINDOW)
    }

    fn peer(&self, mode: &str, who: &str, command: &mut Command, warm_up: u64) -> Result<Measured> {
        let output = self.output(mode, who);
        let begun = Instant::now();
        command.args([&self.brokers.bootstrap, mode, &self.input, &output]);
        let printed = run(command.args([warm_up.to_string(), (self.messages - warm_up).to_string()]))?;
        println!("  {who} took {:.0} s", begun.elapsed().as_secs_f32());
        self.delete(&output)?;
        last_line(&String::from_utf8(printed.stdout)?)
    }
}

/// What some container on the node printed, if it has measured.
fn printed(folder: &Path) -> Option<String> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let found = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            printed(&entry.path())
        } else if entry.file_name().to_string_lossy().starts_with("stdout") {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            text.contains("msgs_per_s").then_some(text)
        } else {
            None
        };
        if found.is_some() {
            return found;
        }
    }
    None
}
