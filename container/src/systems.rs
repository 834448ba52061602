//! The systems of a job: one handle each, from which every thread gets its own consumers and producers.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka::{KafkaAdmin, KafkaConsumer, KafkaProducer};
use task_api::system::{SystemAdmin, SystemConsumer, SystemError, SystemProducer, TransactionalProducer};
use types::{JobSpec, SystemKind, SystemSpec};

use crate::budget::Budget;
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

/// Opens every system of Kafka; those of files are for local runs, which open them ([`crate::local`]).
///
/// # Errors
/// A setting is wrong.
pub(crate) fn open(job: &JobSpec, budget: &Budget, rack: &str) -> Result<Systems, SystemError> {
    let threads = job.containers.threads;
    // Exactly-once outputs keep one open from commit to commit; brokers allow at most 15 minutes.
    let transaction_ms = job.task.commit_ms.saturating_mul(3).clamp(60_000, 900_000);
    let mut systems = Systems::new();
    for (name, spec) in &job.systems {
        if spec.kind != SystemKind::Kafka {
            continue;
        }
        let mut spec = spec.clone();
        let unless_set = |of: &mut BTreeMap<String, String>, settings: Vec<(&str, String)>| {
            for (key, value) in settings {
                of.entry(key.to_owned()).or_insert(value);
            }
        };
        let mut reader = spec.consumer.clone();
        unless_set(&mut reader, budget.reader(threads, SIDE_BY_SIDE as u64));
        unless_set(&mut spec.consumer, budget.consumer(threads));
        unless_set(&mut spec.producer, budget.producer(threads));
        if !rack.is_empty() {
            unless_set(&mut reader, vec![("client.rack", rack.to_owned())]);
            unless_set(&mut spec.consumer, vec![("client.rack", rack.to_owned())]);
        }
        let admin = KafkaAdmin::new(&spec.bootstrap, &reader)?;
        systems.insert(name.clone(), Arc::new(Kafka { spec, admin: Arc::new(admin), transaction_ms }));
    }
    Ok(systems)
}

struct Kafka {
    spec: SystemSpec,
    admin: Arc<KafkaAdmin>,
    /// How long a transaction may stay open before the broker aborts it.
    transaction_ms: u64,
}

impl System for Kafka {
    fn admin(&self) -> Arc<dyn SystemAdmin> {
        Arc::clone(&self.admin) as Arc<dyn SystemAdmin>
    }
    fn consumer(&self, client_id: &str, group: &str) -> Result<Box<dyn SystemConsumer>, SystemError> {
        Ok(Box::new(KafkaConsumer::new(&self.spec.bootstrap, client_id, group, &self.spec.consumer)?))
    }
    fn producer(&self, client_id: &str) -> Result<Box<dyn SystemProducer>, SystemError> {
        Ok(Box::new(KafkaProducer::idempotent(&self.spec.bootstrap, client_id, &self.spec.producer)?))
    }
    fn transactional(&self, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        let mut config = self.spec.producer.clone();
        config.entry("transaction.timeout.ms".into()).or_insert_with(|| self.transaction_ms.to_string());
        Ok(Box::new(KafkaProducer::transactional(&self.spec.bootstrap, id, &config)?))
    }
}
