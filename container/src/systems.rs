//! The systems of a job: one handle each, from which every thread gets its own consumers and producers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka::{Access, KafkaAdmin, KafkaConsumer, KafkaProducer, SecretOf};
use task_api::metrics::MetricsRegistry;
use task_api::system::{SystemAdmin, SystemConsumer, SystemError, SystemProducer, TransactionalProducer};
use types::{Delivery, JobSpec, SystemKind, is_same_setting};

use crate::budget::Budget;
use crate::clients::{self, Clients, Kind};
use crate::restore::SIDE_BY_SIDE;

/// One system.
pub(crate) trait System: Send + Sync {
    /// Questions and orders, shared by all threads.
    fn admin(&self) -> Arc<dyn SystemAdmin>;
    /// A reader named `client_id` whose positions are shown as those of `group`.
    ///
    /// # Errors
    /// A setting in job.toml is wrong.
    fn consumer(&self, client_id: &str, group: &str) -> Result<Box<dyn SystemConsumer>, SystemError>;
    /// A writer outside transactions.
    ///
    /// # Errors
    /// A setting in job.toml is wrong.
    fn producer(&self, client_id: &str) -> Result<Box<dyn SystemProducer>, SystemError>;
    /// A writer of transactions.
    ///
    /// # Errors
    /// A setting in job.toml is wrong.
    fn transactional(&self, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError>;
}

/// By name in job.toml.
pub(crate) type Systems = BTreeMap<String, Arc<dyn System>>;

/// The system that holds the job's checkpoints: its first input's.
pub(crate) fn home(job: &JobSpec) -> Option<&str> {
    job.task.inputs.first().and_then(|input| input.split_once('.')).map(|(system, _)| system)
}

/// librdkafka's default of `message.max.bytes`, and the most that it can be.
const MESSAGE_BYTES: u64 = 1_000_000;
const MOST_MESSAGE_BYTES: u64 = 1_000_000_000;
/// What a message in a batch has besides key, value and headers, at most.
const MESSAGE_OVERHEAD: u64 = 36;
/// What a row of the largest size may have besides its key and its value: the stamp of a ttl, and what a message and its
/// batch add.
const ROW_ROOM: u64 = 64 << 10;

/// The largest row of a store whose key and value together may be sent at all.
pub(crate) const LARGEST_ROW: u64 = MOST_MESSAGE_BYTES - ROW_ROOM;

fn message_bytes(producer: &BTreeMap<String, String>) -> u64 {
    producer.get("message.max.bytes").and_then(|text| text.parse().ok()).unwrap_or(MESSAGE_BYTES)
}

/// The largest output that may join the transaction: key, value and headers. Rows of stores may be larger, see
/// [`System::transactional`].
pub(crate) fn largest_output(job: &JobSpec) -> usize {
    let system = home(job).and_then(|home| job.systems.get(home)).filter(|s| s.kind == SystemKind::Kafka);
    let bytes =
        system.map_or(u64::MAX, |system| message_bytes(&system.producer).saturating_sub(MESSAGE_OVERHEAD));
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Lets a transactional producer take every row that a store of the job takes: a row that was put must not be what no
/// commit can send.
fn make_room_for_rows(producer: &mut BTreeMap<String, String>, job: &JobSpec) {
    let logged = job.stores.values().filter(|store| store.changelog.is_some());
    let Some(largest) = logged.map(|store| store.max_value_bytes.min(LARGEST_ROW)).max() else { return };
    let bytes = message_bytes(producer).max(largest + ROW_ROOM);
    producer.insert("message.max.bytes".into(), bytes.to_string());
    let kbytes = bytes.div_ceil(1024);
    let queue = producer.get("queue.buffering.max.kbytes").and_then(|text| text.parse::<u64>().ok());
    if queue.is_some_and(|queue| queue < kbytes) {
        producer.insert("queue.buffering.max.kbytes".into(), kbytes.to_string());
    }
}

/// Opens every system of Kafka, with the job's secrets; those of files are for local runs, which open them
/// ([`crate::local`]).
///
/// # Errors
/// A setting is wrong, or a secret is not there.
pub(crate) fn open(
    job: &JobSpec,
    budget: &Budget,
    rack: &str,
    secret: &SecretOf<'_>,
    metrics: &MetricsRegistry,
) -> Result<Systems, SystemError> {
    let consumers = consumers(job);
    // Outputs that do not join the transaction have a producer of their own beside the transactional one.
    let plain_at_home = u32::from(job.task.delivery == Delivery::AtLeastOnce);
    let producers = consumers.saturating_add(job.containers.threads.saturating_mul(plain_at_home));
    let transaction = transaction_timeout(job, budget);
    let mut systems = Systems::new();
    for (name, spec) in &job.systems {
        if spec.kind != SystemKind::Kafka {
            continue;
        }
        let mut access = Access::of(name, spec, secret)?;
        let unless_set = |of: &mut BTreeMap<String, String>, settings: Vec<(&str, String)>| {
            for (key, value) in settings {
                // Nor under another name.
                if !of.keys().any(|set| is_same_setting(set, key)) {
                    of.insert(key.to_owned(), value);
                }
            }
        };
        let mut reader = access.consumer.clone();
        let (every, often) = clients::EVERY;
        unless_set(&mut access.consumer, vec![(every, often.to_owned())]);
        unless_set(&mut access.producer, vec![(every, often.to_owned())]);
        unless_set(&mut reader, budget.reader(consumers, SIDE_BY_SIDE as u64));
        unless_set(&mut access.consumer, budget.consumer(consumers));
        unless_set(&mut access.producer, budget.producer(producers));
        if !rack.is_empty() {
            unless_set(&mut reader, vec![("client.rack", rack.to_owned())]);
            unless_set(&mut access.consumer, vec![("client.rack", rack.to_owned())]);
        }
        let admin = Arc::new(KafkaAdmin::new(&access.bootstrap, &reader)?);
        let mut transactional = access.producer.clone();
        make_room_for_rows(&mut transactional, job);
        let clients = Clients::of(name, metrics);
        systems.insert(name.clone(), Arc::new(Kafka { access, admin, transactional, transaction, clients }));
    }
    Ok(systems)
}

/// Consumers in a container: each thread has its own on each system.
pub(crate) fn consumers(job: &JobSpec) -> u32 {
    let kafka = job.systems.values().filter(|spec| spec.kind == SystemKind::Kafka).count().max(1);
    job.containers.threads.saturating_mul(u32::try_from(kafka).unwrap_or(u32::MAX))
}

/// For how long a transaction may be open. Exactly-once outputs keep one open from commit to commit, and then all dirty
/// rows of a thread's caches go into it, under a quota perhaps. A successor does not wait for it: it aborts what its
/// predecessor left. Brokers allow 15 minutes unless they are told otherwise.
fn transaction_timeout(job: &JobSpec, budget: &Budget) -> Duration {
    const LEAST_MS: u64 = 60_000;
    const SLOW_BYTES_PER_MS: u64 = 1_000;
    let stateful = u64::from(!job.stores.is_empty());
    let rows_ms = stateful * budget.caches / u64::from(job.containers.threads.max(1)) / SLOW_BYTES_PER_MS;
    let ms = job.task.commit_ms.saturating_mul(3).saturating_add(rows_ms);
    Duration::from_millis(ms.clamp(LEAST_MS, types::MOST_TRANSACTION_MS))
}

struct Kafka {
    access: Access,
    admin: Arc<KafkaAdmin>,
    /// Settings of transactional producers.
    transactional: BTreeMap<String, String>,
    /// How long a transaction may stay open before the broker aborts it, unless the job says so.
    transaction: Duration,
    clients: Clients,
}

impl System for Kafka {
    fn admin(&self) -> Arc<dyn SystemAdmin> {
        Arc::clone(&self.admin) as Arc<dyn SystemAdmin>
    }
    fn consumer(&self, client_id: &str, group: &str) -> Result<Box<dyn SystemConsumer>, SystemError> {
        let consumer = KafkaConsumer::new(&self.access.bootstrap, client_id, group, &self.access.consumer)?;
        self.clients.add(Kind::Consumer, consumer.statistics());
        Ok(Box::new(consumer))
    }
    fn producer(&self, client_id: &str) -> Result<Box<dyn SystemProducer>, SystemError> {
        let producer = KafkaProducer::idempotent(&self.access.bootstrap, client_id, &self.access.producer)?;
        self.clients.add(Kind::Producer, producer.statistics());
        Ok(Box::new(producer))
    }
    fn transactional(&self, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        let (bootstrap, config) = (&self.access.bootstrap, &self.transactional);
        let producer = KafkaProducer::transactional_for(bootstrap, id, config, self.transaction)?;
        self.clients.add(Kind::Producer, producer.statistics());
        Ok(Box::new(producer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(more: &str) -> JobSpec {
        let text = format!(
            "job.name = \"j\"\npackage.path = \"x\"\ntask.inputs = [\"kafka.in\"]\n\
             systems.kafka = {{ type = \"kafka\", bootstrap = \"h:1\" }}\n{more}"
        );
        job_file::parse(&text, "job.toml").unwrap_or_else(|problems| panic!("{problems}")).spec
    }

    fn room(job: &JobSpec, set: &[(&str, &str)]) -> (u64, Option<String>) {
        let mut producer = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        make_room_for_rows(&mut producer, job);
        (message_bytes(&producer), producer.get("queue.buffering.max.kbytes").cloned())
    }

    #[test]
    fn a_commit_can_send_every_row_that_a_store_takes() {
        assert_eq!(room(&job(""), &[]), (1_000_000, None), "no stores, no rows");
        let store = |more: &str| job(&format!("stores.s = {{ {more} }}"));
        for (stored, largest) in [("", 1_000_000), ("max-value = \"5MB\"", 5_000_000)] {
            let (bytes, _) = room(&store(stored), &[]);
            // Key and value, the stamp of a ttl, and what a message and a batch add.
            assert!(bytes >= largest + 8 + 36 + 61, "{stored}: {bytes}");
        }
        let (bytes, _) = room(&store(""), &[("message.max.bytes", "9000000")]);
        assert_eq!(bytes, 9_000_000, "what the job says may be more");
        let (bytes, _) = room(&store("max-value = \"1GiB\""), &[]);
        assert_eq!(bytes, MOST_MESSAGE_BYTES, "librdkafka takes no more");
        let (_, queue) = room(&store("max-value = \"5MB\""), &[("queue.buffering.max.kbytes", "1024")]);
        assert_eq!(queue.as_deref(), Some("4947"), "a queue has room for one");
        assert_eq!(room(&store("changelog = false, max-value = \"5MB\""), &[]).0, 1_000_000);
    }

    #[test]
    fn outputs_in_the_transaction_are_as_large_as_the_job_says_whatever_rows_need() {
        assert_eq!(largest_output(&job("stores.s.max-value = \"5MB\"")), 999_964);
    }
}
