//! Follows the output topic as a downstream reader would: committed messages only, the newest of each key counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kafka::KafkaConsumer;
use serde::Deserialize;
use task_api::system::{StartAt, SystemConsumer, TopicPartition};
use types::TaskName;

use crate::flights::Totals;

/// A message of the output topic: a carrier's totals in one task.
#[derive(Deserialize)]
struct Message {
    carrier: String,
    task: String,
    #[serde(flatten)]
    totals: Totals,
}

#[derive(Default)]
struct Seen {
    newest: BTreeMap<(String, String), Totals>,
    /// When each task was heard of.
    heard: BTreeMap<String, Vec<Instant>>,
}

/// The thread that reads.
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
}

impl Watcher {
    /// Begins to read `topic` (three partitions) from its beginning.
    pub fn start(bootstrap: &str, topic: &str) -> Result<Watcher> {
        let partitions: Vec<_> = (0..3)
            .map(|partition| (TopicPartition { topic: topic.to_owned(), partition }, StartAt::Oldest))
            .collect();
        let bootstrap = bootstrap.to_owned();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        std::thread::Builder::new()
            .spawn(move || {
                let mut consumer =
                    KafkaConsumer::new(&bootstrap, "demo", "demo", &BTreeMap::new()).expect("a consumer");
                consumer.assign(&partitions).expect("a topic that exists");
                loop {
                    let read = consumer.poll(Duration::from_millis(100), &mut |messages| {
                        let mut seen = shared.lock().expect("no reader panics");
                        for message in messages.iter().filter_map(|message| message.value) {
                            let Message { carrier, task, totals } =
                                serde_json::from_slice(message).expect("the job writes this JSON");
                            seen.heard.entry(task.clone()).or_default().push(Instant::now());
                            seen.newest.insert((carrier, task), totals);
                        }
                        Ok(())
                    });
                    read.expect("brokers that answer");
                }
            })
            .context("a thread")?;
        Ok(Watcher { seen })
    }

    /// By carrier, summed over tasks.
    pub fn totals(&self) -> BTreeMap<String, Totals> {
        let mut totals: BTreeMap<String, Totals> = BTreeMap::new();
        for ((carrier, _), part) in &self.seen.lock().expect("the reader does not panic").newest {
            totals.entry(carrier.clone()).or_default().add(part);
        }
        totals
    }

    /// How many flights the output speaks of.
    pub fn flights(&self) -> u64 {
        self.totals().values().map(|totals| totals.flights.unsigned_abs()).sum()
    }

    /// The longest time since `from` in which none of `tasks` was heard of; none until one was heard of after `until`.
    pub fn silence(&self, tasks: &[TaskName], from: Instant, until: Instant) -> Option<Duration> {
        let seen = self.seen.lock().expect("the reader does not panic");
        let heard = tasks.iter().filter_map(|task| seen.heard.get(&task.0)).flatten();
        let mut moments: Vec<Instant> = heard.filter(|moment| **moment > from).copied().collect();
        moments.sort();
        if *moments.last()? < until {
            return None;
        }
        let mut before = from;
        moments.into_iter().map(|moment| moment - std::mem::replace(&mut before, moment)).max()
    }
}
