//! Passthrough and count as a plain loop on rust-rdkafka, measured over a window of messages: what a careful program
//! without a framework costs. A peer of the benches.
//!
//! `peer_rdkafka BOOTSTRAP passthrough|count INPUT OUTPUT WARM-UP WINDOW` reads INPUT from its beginning, lets
//! WARM-UP messages pass, measures the CPU of the whole process over the next WINDOW, prints
//! `{"name","messages","cpu_ns_per_message","msgs_per_s"}` and ends. `passthrough` sends each message to OUTPUT;
//! `count` counts keys in a hash map and sends the counts that changed to OUTPUT every second, as a changelog.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rustix::time::{ClockId, clock_gettime};

/// Between two writes of changed counts.
const CHANGELOG_EVERY: Duration = Duration::from_secs(1);
/// For the brokers to answer, or to take what is left.
const PATIENCE: Duration = Duration::from_secs(30);

/// CPU that this process has used.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Sends, and waits for room when the queue is full.
fn send(producer: &BaseProducer, topic: &str, key: &[u8], value: &[u8]) -> Result<()> {
    let mut record = BaseRecord::to(topic).key(key).payload(value);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                producer.poll(Duration::from_millis(10));
            }
            Err((error, _)) => return Err(error).context("send"),
        }
    }
}

fn consumer(bootstrap: &str, input: &str) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "peer-rdkafka")
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(input), PATIENCE)?;
    let mut partitions = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        partitions.add_partition_offset(input, partition.id(), Offset::Beginning)?;
    }
    ensure!(partitions.count() > 0, "{input} has no partitions");
    consumer.assign(&partitions)?;
    Ok(consumer)
}

struct Count {
    count: u64,
    dirty: bool,
}

fn count_one(key: &[u8], counts: &mut HashMap<Vec<u8>, Count>, dirty: &mut Vec<Vec<u8>>) {
    if let Some(count) = counts.get_mut(key) {
        count.count += 1;
        if std::mem::replace(&mut count.dirty, true) {
            return;
        }
    } else {
        counts.insert(key.to_vec(), Count { count: 1, dirty: true });
    }
    dirty.push(key.to_vec());
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, mode, input, output, warm_up, window] = arguments.as_slice() else {
        bail!("usage: peer_rdkafka BOOTSTRAP passthrough|count INPUT OUTPUT WARM-UP WINDOW");
    };
    let (warm_up, window): (u64, u64) = (warm_up.parse()?, window.parse()?);
    let counting = match mode.as_str() {
        "passthrough" => false,
        "count" => true,
        other => bail!("unknown mode {other}"),
    };
    let consumer = consumer(bootstrap, input)?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .create()?;

    let mut counts: HashMap<Vec<u8>, Count> = HashMap::new();
    let mut dirty: Vec<Vec<u8>> = Vec::new();
    let mut written = Instant::now();
    let mut at_start = (cpu(), Instant::now());
    let mut seen = 0;
    while seen < warm_up + window {
        let message = match consumer.poll(Duration::from_millis(100)) {
            Some(message) => message.context("poll")?,
            None => continue,
        };
        let (key, value) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
        if counting {
            count_one(key, &mut counts, &mut dirty);
        } else {
            send(&producer, output, key, value)?;
        }
        seen += 1;
        if seen % 256 == 0 {
            producer.poll(Duration::ZERO);
            if counting && written.elapsed() >= CHANGELOG_EVERY {
                for key in dirty.drain(..) {
                    let count = counts.get_mut(&key).expect("what is dirty is there");
                    count.dirty = false;
                    send(&producer, output, &key, &count.count.to_be_bytes())?;
                }
                producer.flush(PATIENCE)?;
                written = Instant::now();
            }
        }
        if seen == warm_up {
            at_start = (cpu(), Instant::now());
        }
    }
    let (cpu, time) = (cpu() - at_start.0, at_start.1.elapsed());
    #[expect(clippy::cast_precision_loss)] // some millions
    let each = window as f64;
    println!(
        "{{\"name\":\"rust-rdkafka-{mode}\",\"messages\":{window},\"cpu_ns_per_message\":{:.1},\"msgs_per_s\":{:.0}}}",
        cpu.as_secs_f64() * 1e9 / each,
        each / time.as_secs_f64()
    );
    producer.flush(PATIENCE)?;
    Ok(())
}
