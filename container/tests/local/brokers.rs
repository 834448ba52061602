//! Local runs against a real Kafka, on its own and with files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use kafka::{KafkaAdmin, KafkaProducer};
use task_api::system::{Isolation, NewTopic, ProducerRecord, SystemAdmin, SystemProducer, TopicPartition};

use crate::{Job, PATIENCE, counted, key};

/// The brokers of SAMZA_TEST_KAFKA, or one that is started for this test.
struct Brokers {
    bootstrap: String,
    data: Option<tempfile::TempDir>,
}

impl Brokers {
    fn script() -> Command {
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kafka/kafka.sh"))
    }
    fn new() -> Brokers {
        if let Ok(bootstrap) = std::env::var("SAMZA_TEST_KAFKA") {
            return Brokers { bootstrap, data: None };
        }
        let data = tempfile::tempdir().expect("a folder");
        let mut start = Brokers::script();
        start.args(["start", "--port", "0", "--data"]).arg(data.path()).stdout(Stdio::null());
        assert!(start.status().expect("kafka.sh runs").success());
        let bootstrap = fs::read_to_string(data.path().join("bootstrap")).expect("started");
        Brokers { bootstrap: bootstrap.trim().to_owned(), data: Some(data) }
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        if let Some(data) = &self.data {
            let stopped = Brokers::script().args(["stop", "--data"]).arg(data.path()).status();
            assert!(stopped.is_ok_and(|status| status.success()), "cannot stop the broker");
        }
    }
}

fn produce(bootstrap: &str, topic: &str, numbers: std::ops::Range<usize>) {
    let mut producer = KafkaProducer::idempotent(bootstrap, "feed", &BTreeMap::new()).expect("a producer");
    let to = producer.topic(topic).expect("a topic");
    for n in numbers {
        producer
            .send(&ProducerRecord::new(to, Some(key(n).as_bytes()), Some(b"x")).to(n as i32 % 2))
            .expect("sent");
    }
    producer.flush(PATIENCE).expect("flushed");
}

fn consumed(admin: &KafkaAdmin, topic: &str) -> Vec<(String, u64)> {
    let mut rows = Vec::new();
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("text");
    for partition in 0..2 {
        let at = TopicPartition { topic: topic.to_owned(), partition };
        let ends = admin.watermarks(std::slice::from_ref(&at)).expect("ends");
        let mut take = |messages: &[task_api::system::Message<'_>]| {
            rows.extend(messages.iter().map(|m| (text(m.key), text(m.value).parse().expect("a count"))));
            Ok(())
        };
        admin.read_range(&at, 0, ends[0].high, Isolation::ReadCommitted, &mut take).expect("read");
    }
    rows.sort();
    rows
}

#[test]
fn lines_become_messages_of_kafka_in_both_modes() {
    let brokers = Brokers::new();
    let admin = KafkaAdmin::new(&brokers.bootstrap, &BTreeMap::new()).expect("an admin");
    for delivery in ["at-least-once", "exactly-once"] {
        let topic = format!("lines-{delivery}-{}", std::process::id());
        let new = NewTopic { topic: topic.clone(), partitions: 2, replication: 1, config: BTreeMap::new() };
        admin.create(&[new]).expect("created");
        let kafka = format!(
            "[systems.kafka]\ntype = \"kafka\"\nbootstrap = \"{}\"\n[streams.\"kafka.out\"]\ntopic = \"{topic}\"\n",
            brokers.bootstrap
        );
        let job = Job::new(delivery, &kafka);
        let text = fs::read_to_string(job.path("job.toml")).expect("read").replace("files.out", "kafka.out");
        fs::write(job.path("job.toml"), text).expect("written");
        job.feed("in.jsonl", 0..3_000);
        job.run(&[]);
        let mut wanted = counted(0..3_000);
        wanted.sort();
        let sent = consumed(&admin, &topic);
        assert!(sent == wanted, "{delivery}: {} messages of {}", sent.len(), wanted.len());
    }
}

#[test]
fn a_job_runs_standalone_against_kafka_and_ends_with_its_bounded_input() {
    let brokers = Brokers::new();
    let admin = KafkaAdmin::new(&brokers.bootstrap, &BTreeMap::new()).expect("an admin");
    let name = format!("standalone-{}", std::process::id());
    let job = Job::new("exactly-once", "");
    let text = format!(
        r#"
[job]
name = "{name}"
[package]
path = "counter"
[containers]
threads = 2
[task]
inputs = ["kafka.in"]
commit = "100ms"
delivery = "exactly-once"
config = {{ output = "kafka.out" }}
[systems.kafka]
type = "kafka"
bootstrap = "{}"
[streams."kafka.in"]
topic = "{name}-in"
bounded = true
[streams."kafka.out"]
topic = "{name}-out"
[stores.counts]
changelog = true
"#,
        brokers.bootstrap
    );
    fs::write(job.path("job.toml"), text).expect("written");
    let topic = |what: &str| NewTopic {
        topic: format!("{name}-{what}"),
        partitions: 2,
        replication: 1,
        config: BTreeMap::new(),
    };
    admin.create(&[topic("in"), topic("out")]).expect("made");
    let expected = |count: usize| {
        let of_partition = |partition: usize| counted((0..count).filter(move |n| n % 2 == partition));
        let mut rows: Vec<_> = (0..2).flat_map(of_partition).collect();
        rows.sort();
        rows
    };
    produce(&brokers.bootstrap, &format!("{name}-in"), 0..2_000);
    job.run(&[]);
    assert_eq!(consumed(&admin, &format!("{name}-out")), expected(2_000));
    // Later, on another machine: the state comes from the changelog.
    fs::remove_dir_all(job.path(".samza")).expect("there");
    produce(&brokers.bootstrap, &format!("{name}-in"), 2_000..3_000);
    job.run(&[]);
    assert_eq!(consumed(&admin, &format!("{name}-out")), expected(3_000));
}
#[test]
fn messages_of_kafka_become_lines_in_both_modes() {
    let brokers = Brokers::new();
    let admin = KafkaAdmin::new(&brokers.bootstrap, &BTreeMap::new()).expect("an admin");
    let name = format!("lines-{}", std::process::id());
    let topic = NewTopic { topic: name.clone(), partitions: 2, replication: 1, config: BTreeMap::new() };
    admin.create(&[topic]).expect("made");
    produce(&brokers.bootstrap, &name, 0..5_000);
    for (id, delivery) in ["exactly-once", "at-least-once"].into_iter().enumerate() {
        let job = Job::new(delivery, "");
        let text = format!(
            r#"
[job]
name = "{name}"
id = "{id}"
[package]
path = "counter"
[task]
inputs = ["kafka.in"]
delivery = "{delivery}"
config = {{ output = "files.out" }}
[systems.kafka]
type = "kafka"
bootstrap = "{}"
[systems.files]
type = "jsonl"
[streams."kafka.in"]
topic = "{name}"
bounded = true
[stores.counts]
changelog = true
"#,
            brokers.bootstrap
        );
        fs::write(job.path("job.toml"), text).expect("written");
        let fresh = job.command(&["--fresh"]).output().expect("it runs").stderr;
        let told = String::from_utf8_lossy(&fresh);
        assert!(told.contains("samza checkpoint job.toml --set kafka.in=oldest"), "{told}");
        job.run(&[]);
        assert_eq!(job.outputs().len(), 5_000, "{delivery}");
    }
}
