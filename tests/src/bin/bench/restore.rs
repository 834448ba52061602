//! Restore of a store from its changelog: ours and Kafka Streams, from the same topic.

use std::collections::BTreeMap;
use std::time::Duration;

use ::tests::Brokers;
use ::tests::cluster::slot_of;
use ::tests::wait::check;
use anyhow::{Context, Result, ensure};
use kafka::{KafkaAdmin, KafkaProducer};
use serde::Deserialize;
use task_api::system::{NewTopic, PlainMessage, ProducerRecord, SystemAdmin, SystemProducer, TopicPartition};
use task_core::record::{self, Checkpoint};

use crate::cases::Selection;
use crate::cpu::PARTITIONS;
use crate::figures::{Figure, Figures};
use crate::ours::{Ours, PREFIX};
use crate::peers::{self, Measured, STREAMS, Span, Streams, StreamsRun};

/// Of ours to Kafka Streams' CPU per row.
const SHARE: f64 = 1.0 / 3.0;
/// Of each ten keys three are written again, one of these deleted.
const AGAIN: u64 = 3;

/// By name, the numbers of keys.
pub const CASES: [(&str, u64); 2] = [("restore-1m", 1_000_000), ("restore-10m", 10_000_000)];

/// What our job prints.
#[derive(Deserialize)]
struct Used {
    cpu_ms: f64,
}

/// Measures what is selected, with so many times fewer keys.
pub fn measure(
    brokers: &'static Brokers,
    figures: &mut Figures,
    selection: &Selection,
    divisor: u64,
) -> Result<()> {
    let names = CASES.map(|(name, _)| name.to_owned());
    let selected = selection.of(&names, &CASES.map(|(name, _)| name));
    let cases = CASES.iter().filter(|(name, _)| selected.iter().any(|selected| selected == name));
    let ours = Ours::start(brokers);
    let mut jvm = Streams::start(brokers)?;
    let mut warm = false;
    for (name, keys) in cases {
        one(brokers, figures, &ours, &mut jvm, (name, keys / divisor, warm))?;
        warm = true;
    }
    Ok(())
}

fn one(
    brokers: &Brokers,
    figures: &mut Figures,
    ours: &Ours,
    jvm: &mut Streams,
    (name, keys, warm): (&str, u64, bool),
) -> Result<()> {
    let input = format!("{PREFIX}{name}-in");
    let span = Span { warm_up: 0, window: 0 };
    let mut job = ours.job("restore", &input, None, span);
    (job.delivery, job.commit) = ("at-least-once".into(), "1s".into());
    create(brokers, &input, &[])?;
    let changelog = job.changelog("counts");
    // Its only segments are being written to: none is compacted.
    create(brokers, &changelog, &[("cleanup.policy", "compact")])?;
    let rows = fill(brokers, &changelog, keys)?;
    let checkpoints = job.checkpoints();
    create(brokers, &checkpoints, &[("cleanup.policy", "compact")])?;
    begin(brokers, &checkpoints)?;
    println!("restore: {rows} rows of 22 bytes over {keys} keys in {changelog}");

    let application = changelog.strip_suffix("-counts-changelog").context("a changelog's name")?;
    let run = StreamsRun {
        mode: "restore",
        application,
        input: &input,
        output: None,
        exactly_once: false,
        commit_ms: 1_000,
        changelog: true,
        span: Span { warm_up: 0, window: rows },
    };
    if !warm {
        jvm.begin(&run)?;
        let cold = jvm.measured()?;
        figures.note(format!(
            "{name}, {STREAMS} on a cold JVM, not counted: {:.0} ns/row",
            cold.cpu_ns_per_message
        ));
    }
    jvm.begin(&run)?;
    let theirs = jvm.measured()?;
    ensure!(theirs.messages == rows, "{STREAMS} restored {} of {rows} rows", theirs.messages);

    ours.cluster.submit(&job);
    let Used { cpu_ms } = ours.printed(&job);
    let restores = ours.cluster.wait("the restore told", Duration::from_secs(30), |cluster| {
        let app = cluster.all_running(&job)?;
        let told: Vec<_> =
            slot_of(&app, 0).status.tasks.iter().filter_map(|task| task.restore.clone()).collect();
        check(told.len() == PARTITIONS as usize, || format!("{told:?}")).map(|()| told)
    });
    ours.cluster.stop(&job);
    let restored: u64 = restores.iter().map(|restore| restore.rows).sum();
    ensure!(restored == rows, "ours restored {restored} of {rows} rows");
    let took_ms = restores.iter().map(|restore| restore.took_ms).max().unwrap_or(0).max(1);
    report(figures, name, rows, cpu_ms, took_ms, &theirs)?;
    peers::delete_topics(brokers, &format!("{PREFIX}.*"))
}

#[expect(clippy::cast_precision_loss)] // some millions
fn report(
    figures: &mut Figures,
    name: &str,
    rows: u64,
    cpu_ms: f64,
    took_ms: u64,
    theirs: &Measured,
) -> Result<()> {
    let (rows, took_ms) = (rows as f64, took_ms as f64);
    let cpu = Figure::new(format!("{name}-cpu"), cpu_ms * 1e6 / rows, "ns/row");
    figures.add(cpu.beside(STREAMS, theirs.cpu_ns_per_message).at_most_share(Some(SHARE)))?;
    let rate = Figure::new(format!("{name}-rate"), rows * 1e3 / took_ms, "rows/s");
    figures.add(rate.beside(STREAMS, theirs.msgs_per_s))?;
    let wall = Figure::new(format!("{name}-wall"), took_ms, "ms");
    figures.add(wall.beside(STREAMS, rows * 1e3 / theirs.msgs_per_s))
}

fn create(brokers: &Brokers, topic: &str, config: &[(&str, &str)]) -> Result<()> {
    let admin = KafkaAdmin::new(&brokers.bootstrap, &BTreeMap::new())?;
    let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let topic = NewTopic { topic: topic.to_owned(), partitions: PARTITIONS, replication: 1, config };
    Ok(admin.create(&[topic])?)
}

/// Gives every task a checkpoint that says nothing: rows without one would be taken for a loss.
fn begin(brokers: &Brokers, topic: &str) -> Result<()> {
    let admin = KafkaAdmin::new(&brokers.bootstrap, &BTreeMap::new())?;
    let message = |partition: i32| PlainMessage {
        to: TopicPartition { topic: topic.to_owned(), partition },
        key: record::checkpoint_key(&format!("Partition {partition}").as_str().into()),
        value: Some(record::checkpoint_value(&Checkpoint::default())),
    };
    Ok(admin.append(&(0..PARTITIONS).map(message).collect::<Vec<_>>())?)
}

/// Writes every key once, in no order, then three of ten again, one of them as a tombstone. Returns the number of rows.
fn fill(brokers: &Brokers, topic: &str, keys: u64) -> Result<u64> {
    let settings = BTreeMap::from([("compression.type".to_owned(), "none".to_owned())]);
    let mut producer = KafkaProducer::idempotent(&brokers.bootstrap, "bench", &settings)?;
    let handle = producer.topic(topic)?;
    let mut send = |n: u64, value: Option<u64>| -> Result<()> {
        // A prime that divides no number of keys here: every key comes once.
        let key = format!("k{:013}", n.wrapping_mul(7_919) % keys);
        let value = value.map(u64::to_be_bytes);
        let value = value.as_ref().map(|bytes| &bytes[..]);
        Ok(producer.send(&ProducerRecord::new(handle, Some(key.as_bytes()), value))?)
    };
    for n in 0..keys {
        send(n, Some(n))?;
    }
    let again = keys * AGAIN / 10;
    for n in 0..again {
        send(n * 10 / AGAIN, (n % AGAIN != 0).then_some(keys + n))?;
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(keys + again)
}
