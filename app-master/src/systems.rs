//! The systems of streams a job names, opened on first use. A trait, so that tests run the Kafka side without Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka::{Access, KafkaAdmin, KafkaProducer};
use task_api::system::{SystemAdmin, SystemError, TransactionalProducer};
use types::{JobSpec, SystemKind, SystemSpec, is_same_setting};

/// Opens systems by their name in job.toml.
pub trait Systems: Send {
    /// The system's administrator; the same one each time.
    ///
    /// # Errors
    /// It is not in job.toml, or its settings are wrong.
    fn admin(&mut self, system: &str) -> Result<Arc<dyn SystemAdmin>, SystemError>;
    /// A new transactional producer.
    ///
    /// # Errors
    /// As above.
    fn producer(&mut self, system: &str, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError>;
}

/// What keeps librdkafka small: this process reads and writes a few small topics.
const SMALL: [(&str, &str); 4] = [
    ("queued.max.messages.kbytes", "1024"),
    ("queued.min.messages", "100"),
    ("fetch.message.max.bytes", "262144"),
    ("queue.buffering.max.kbytes", "2048"),
];

/// The job's systems on Kafka.
pub struct KafkaSystems {
    specs: BTreeMap<String, SystemSpec>,
    admins: BTreeMap<String, Arc<dyn SystemAdmin>>,
}

impl KafkaSystems {
    /// Those of `spec`.
    #[must_use]
    pub fn of(spec: &JobSpec) -> KafkaSystems {
        KafkaSystems { specs: spec.systems.clone(), admins: BTreeMap::new() }
    }

    fn access(&self, system: &str) -> Result<Access, SystemError> {
        let unknown = || SystemError::Fatal(format!("system `{system}` is not in [systems]"));
        let spec = self.specs.get(system).ok_or_else(unknown)?;
        if spec.kind != SystemKind::Kafka {
            return Err(SystemError::Fatal(format!(
                "system `{system}` is of type `{}`, not kafka",
                spec.kind
            )));
        }
        Access::of(system, spec, &kafka::environments_secret)
    }
}

impl Systems for KafkaSystems {
    fn admin(&mut self, system: &str) -> Result<Arc<dyn SystemAdmin>, SystemError> {
        if let Some(admin) = self.admins.get(system) {
            return Ok(admin.clone());
        }
        let access = self.access(system)?;
        let config = small(&access.consumer, &SMALL[..3]);
        let admin: Arc<dyn SystemAdmin> = Arc::new(KafkaAdmin::new(&access.bootstrap, &config)?);
        self.admins.insert(system.to_owned(), admin.clone());
        Ok(admin)
    }

    fn producer(&mut self, system: &str, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        let access = self.access(system)?;
        let config = small(&access.producer, &SMALL[3..]);
        Ok(Box::new(KafkaProducer::transactional(&access.bootstrap, id, &config)?))
    }
}

/// The user's settings, with ours over them: those are of containers, which this process is not.
fn small(user: &BTreeMap<String, String>, ours: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut config = user.clone();
    config.retain(|name, _| !ours.iter().any(|(own, _)| is_same_setting(own, name)));
    config.extend(ours.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    config
}
