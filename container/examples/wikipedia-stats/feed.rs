//! Sends a file of edit events to the job's three inputs.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kafka::{KafkaAdmin, KafkaProducer};
use samza::system::{NewTopic, ProducerRecord, SystemAdmin, SystemProducer, TopicHandle};
use serde::Deserialize;

/// The job's inputs; an event belongs to the one that its channel, such as `#en.wiktionary`, ends with.
pub const INPUTS: [&str; 3] = ["wikipedia", "wiktionary", "wikinews"];
/// The job's output.
pub const OUTPUT: &str = "wikipedia-stats";

#[derive(Deserialize)]
struct Event {
    channel: String,
}

/// The topic of a line. What has no channel that we know goes to the first: the job counts what is malformed.
pub fn topic_of(line: &str) -> &'static str {
    let channel = serde_json::from_str::<Event>(line).map(|event| event.channel).unwrap_or_default();
    INPUTS.into_iter().find(|input| channel.ends_with(input)).unwrap_or(INPUTS[0])
}

/// Creates the topics that do not exist, sends each line of `file` that is not blank, at most `rate` a second, and
/// tells how many went where.
pub fn feed(file: &Path, bootstrap: &str, rate: Option<u32>) -> Result<(), Box<dyn Error>> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    create_topics(bootstrap)?;
    let mut producer = KafkaProducer::idempotent(bootstrap, "wikipedia-feed", &BTreeMap::new())?;
    let mut sent: BTreeMap<&str, (TopicHandle, u64)> = BTreeMap::new();
    for input in INPUTS {
        sent.insert(input, (producer.topic(input)?, 0));
    }
    let start = Instant::now();
    for (place, line) in (0_u32..).zip(text.lines().filter(|line| !line.trim().is_empty())) {
        if let Some(rate) = rate {
            let due = Duration::from_secs(1) * place / rate.max(1);
            sleep(due.saturating_sub(start.elapsed()));
        }
        let (handle, count) = sent.get_mut(topic_of(line)).expect("every input has its handle");
        producer.send(&ProducerRecord::new(*handle, None, Some(line.as_bytes())))?;
        *count += 1;
    }
    producer.flush(Duration::from_secs(30))?;
    for (topic, (_, count)) in sent {
        println!("{count:>7} lines to {topic}");
    }
    Ok(())
}

fn create_topics(bootstrap: &str) -> Result<(), Box<dyn Error>> {
    let admin = KafkaAdmin::new(bootstrap, &BTreeMap::new())?;
    let replication = u16::try_from(admin.live_brokers()?.clamp(1, 3)).expect("at most 3");
    let named = |topic: &str| topic.to_owned();
    let wanted: Vec<String> = INPUTS.into_iter().chain([OUTPUT]).map(named).collect();
    let there = admin.describe(&wanted)?;
    let missing = wanted.into_iter().filter(|name| !there.iter().any(|topic| topic.topic == *name));
    let new: Vec<NewTopic> = missing
        .map(|topic| NewTopic { topic, partitions: 1, replication, config: BTreeMap::new() })
        .collect();
    if !new.is_empty() {
        admin.create(&new)?;
    }
    Ok(())
}
