//! A plain loop on rust-rdkafka, measured over a window of messages: what a careful program without a framework costs.
//! A peer of the benches.
//!
//! `peer_rdkafka BOOTSTRAP MODE INPUT OUTPUT WARM-UP WINDOW CHANGELOG-MS` reads INPUT from its beginning, lets WARM-UP
//! messages pass, measures the CPU of the whole process over the next WINDOW, prints
//! `{"messages","cpu_ns_per_message","msgs_per_s"}` and ends. MODE is `consume`, `passthrough` (each message goes to
//! OUTPUT), `filter` (those whose key ends with 0 do) or `count` (keys are counted in a hash map, and every
//! CHANGELOG-MS, unless that is 0, the counts that changed are sent to OUTPUT, as a changelog).

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

/// Counts in memory, and which of them changed since they were last sent.
#[derive(Default)]
struct Counts {
    counts: HashMap<Vec<u8>, Count>,
    dirty: Vec<Vec<u8>>,
}

impl Counts {
    fn count(&mut self, key: &[u8]) {
        if let Some(count) = self.counts.get_mut(key) {
            count.count += 1;
            if std::mem::replace(&mut count.dirty, true) {
                return;
            }
        } else {
            self.counts.insert(key.to_vec(), Count { count: 1, dirty: true });
        }
        self.dirty.push(key.to_vec());
    }

    fn send_changed(&mut self, producer: &BaseProducer, topic: &str) -> Result<()> {
        for key in self.dirty.drain(..) {
            let count = self.counts.get_mut(&key).expect("what is dirty is there");
            count.dirty = false;
            send(producer, topic, &key, &count.count.to_be_bytes())?;
        }
        Ok(producer.flush(PATIENCE)?)
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, mode, input, output, warm_up, window, changelog_ms] = arguments.as_slice() else {
        bail!("usage: peer_rdkafka BOOTSTRAP MODE INPUT OUTPUT WARM-UP WINDOW CHANGELOG-MS");
    };
    let (warm_up, window): (u64, u64) = (warm_up.parse()?, window.parse()?);
    let changelog_every = Duration::from_millis(changelog_ms.parse()?);
    let (passes, filters, counting) = match mode.as_str() {
        "consume" => (false, false, false),
        "passthrough" => (true, false, false),
        "filter" => (true, true, false),
        "count" => (false, false, true),
        other => bail!("unknown mode {other}"),
    };
    let changelogs = counting && !changelog_every.is_zero();
    let consumer = consumer(bootstrap, input)?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .create()?;

    let mut counts = Counts::default();
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
            counts.count(key);
        } else if passes && (!filters || key.ends_with(b"0")) {
            send(&producer, output, key, value)?;
        }
        seen += 1;
        if seen % 256 == 0 {
            producer.poll(Duration::ZERO);
            if changelogs && written.elapsed() >= changelog_every {
                counts.send_changed(&producer, output)?;
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
        "{{\"messages\":{window},\"cpu_ns_per_message\":{:.1},\"msgs_per_s\":{:.0}}}",
        cpu.as_secs_f64() * 1e9 / each,
        each / time.as_secs_f64()
    );
    producer.flush(PATIENCE)?;
    Ok(())
}
