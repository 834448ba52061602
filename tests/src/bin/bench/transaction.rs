//! What a commit is made of: a transaction over the partitions of a task thread, and the taking over of a transactional
//! id whose last owner has left a transaction open. Beside both, the same through rust-rdkafka's producer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ::tests::{Brokers, Topics};
use anyhow::Result;
use kafka::KafkaProducer;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use task_api::system::{ProducerRecord, SystemProducer, TransactionalProducer};

use crate::figures::{Figure, Figures, percentile};
use crate::ours::PREFIX;
use crate::peers::{self, RDKAFKA};

const PARTITIONS: i32 = 12;
const COMMITS: usize = 100;
/// A broker that has just started takes three times as long for the first few hundred.
const COLD: usize = 700;
const TAKEOVERS: usize = 10;
/// Between two commits: one that follows at once waits for the markers of the one before.
const BETWEEN: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(30);

/// A transactional producer, ours or the peer's.
trait Transactions: Sized {
    /// Registers the id.
    fn take_over(brokers: &Brokers, id: &str) -> Result<Self>;
    /// Begins a transaction and sends a message to each partition.
    fn open(&mut self, topic: &str) -> Result<()>;
    /// Waits until the messages are there.
    fn deliver(&mut self) -> Result<()>;
    fn commit(&mut self) -> Result<()>;
}

impl Transactions for KafkaProducer {
    fn take_over(brokers: &Brokers, id: &str) -> Result<Self> {
        let mut producer = KafkaProducer::transactional(&brokers.bootstrap, id, &BTreeMap::new())?;
        producer.init(PATIENCE)?;
        Ok(producer)
    }

    fn open(&mut self, topic: &str) -> Result<()> {
        let topic = self.topic(topic)?;
        self.begin()?;
        for partition in 0..PARTITIONS {
            self.send(&ProducerRecord::new(topic, Some(b"key"), Some(b"value")).to(partition))?;
        }
        Ok(())
    }

    fn deliver(&mut self) -> Result<()> {
        Ok(SystemProducer::flush(self, PATIENCE)?)
    }

    fn commit(&mut self) -> Result<()> {
        Ok(TransactionalProducer::commit(self, PATIENCE)?)
    }
}

impl Transactions for BaseProducer {
    fn take_over(brokers: &Brokers, id: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &brokers.bootstrap).set("transactional.id", id);
        let producer: BaseProducer = config.create()?;
        producer.init_transactions(PATIENCE)?;
        Ok(producer)
    }

    fn open(&mut self, topic: &str) -> Result<()> {
        self.begin_transaction()?;
        for partition in 0..PARTITIONS {
            let record = BaseRecord::to(topic).partition(partition).key("key").payload("value");
            self.send(record).map_err(|(error, _)| error)?;
        }
        Ok(())
    }

    fn deliver(&mut self) -> Result<()> {
        Ok(Producer::flush(self, PATIENCE)?)
    }

    fn commit(&mut self) -> Result<()> {
        Ok(self.commit_transaction(PATIENCE)?)
    }
}

/// Measures both.
pub fn measure(brokers: &'static Brokers, figures: &mut Figures) -> Result<()> {
    println!("transaction: over {PARTITIONS} partitions, begin to committed; taking over an open one");
    let topic = format!("{PREFIX}transaction");
    Topics::on(brokers).create(&topic, PARTITIONS);
    let mut ours = commits::<KafkaProducer>(brokers, &topic, COLD)?;
    let mut theirs = commits::<BaseProducer>(brokers, &topic, 1)?;
    let figure = Figure::new("commit-12-p50", percentile(&mut ours, 0.5), "ms");
    figures.add(figure.beside(RDKAFKA, percentile(&mut theirs, 0.5)).at_most(15.0))?;
    let mut ours = takeovers::<KafkaProducer>(brokers, &topic)?;
    let mut theirs = takeovers::<BaseProducer>(brokers, &topic)?;
    let figure = Figure::new("init-over-open-p50", percentile(&mut ours, 0.5), "ms");
    figures.add(figure.beside(RDKAFKA, percentile(&mut theirs, 0.5)).at_most(600.0))?;
    peers::delete_topics(brokers, &format!("{PREFIX}.*"))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

/// How long commits took, after as many that are not counted.
fn commits<P: Transactions>(brokers: &Brokers, topic: &str, uncounted: usize) -> Result<Vec<f64>> {
    let mut producer = P::take_over(brokers, &format!("{}-commits", std::any::type_name::<P>()))?;
    let mut times = Vec::with_capacity(uncounted + COMMITS);
    for _ in 0..uncounted + COMMITS {
        std::thread::sleep(BETWEEN);
        let begun = Instant::now();
        producer.open(topic)?;
        producer.commit()?;
        times.push(ms(begun));
    }
    Ok(times.split_off(uncounted))
}

fn takeovers<P: Transactions>(brokers: &Brokers, topic: &str) -> Result<Vec<f64>> {
    let id = format!("{}-takeovers", std::any::type_name::<P>());
    let mut producer = P::take_over(brokers, &id)?;
    let mut times = Vec::with_capacity(TAKEOVERS);
    for _ in 0..TAKEOVERS {
        producer.open(topic)?;
        producer.deliver()?;
        let begun = Instant::now();
        let next = P::take_over(brokers, &id)?;
        times.push(ms(begun));
        producer = next;
    }
    Ok(times)
}
