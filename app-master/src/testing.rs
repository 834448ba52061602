//! For tests: a job, and the Kafka in memory that it runs on.

use std::collections::BTreeMap;
use std::sync::Arc;

use task_api::system::{SystemAdmin, SystemError, TransactionalProducer};
use types::{
    ContainersSpec, Delivery, ErrorsSpec, Grouper, JobId, JobSpec, OnExhausted, OnLeaseLoss, PackageSpec,
    PlacementSpec, Resource, RestartSpec, Spread, StateLost, StoreSpec, SystemKind, SystemSpec, TaskSpec,
};

pub use self::memory::Memory;
use self::producer::MemoryProducer;
use crate::systems::Systems;

mod conforming;
mod memory;
mod producer;

/// A job with one input `in`, one store and two containers.
pub fn spec() -> JobSpec {
    let kafka = SystemSpec {
        kind: SystemKind::Kafka,
        bootstrap: "127.0.0.1:9092".into(),
        consumer: BTreeMap::new(),
        producer: BTreeMap::new(),
        replication: None,
        path: None,
        security: None,
    };
    let store = StoreSpec {
        cache_rows: 1000,
        ..StoreSpec::with_changelog(Some("j-1-seen-changelog".into()), "kafka")
    };
    JobSpec {
        job: JobId { name: "j".into(), id: "1".into() },
        queue: "default".into(),
        priority: 0,
        app_master: Resource { memory_bytes: 64 << 20, cpu_millis: 100 },
        package: PackageSpec {
            source: "j".into(),
            artefact: None,
            command: vec![],
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
        },
        containers: ContainersSpec {
            count: 2,
            resource: Resource::default(),
            threads: 1,
            cpu_limit_millis: None,
        },
        task: TaskSpec {
            inputs: vec!["kafka.in".into()],
            former_inputs: Vec::new(),
            on_input_growth: types::OnInputGrowth::Fail,
            window_ms: None,
            commit_ms: 1000,
            delivery: Delivery::ExactlyOnce,
            grouper: Grouper::Partition,
            timers: false,
            concurrency: 16,
            state_lost: StateLost::Fail,
            stuck_after_ms: Some(types::STUCK_AFTER_MS),
            config: BTreeMap::new(),
        },
        systems: BTreeMap::from([("kafka".to_owned(), kafka)]),
        streams: BTreeMap::new(),
        stores: BTreeMap::from([("seen".to_owned(), store)]),
        placement: PlacementSpec {
            wait_ms: 1000,
            rack_wait_ms: 1000,
            host_affinity: true,
            on_lease_loss: OnLeaseLoss::Keep,
            labels: BTreeMap::new(),
            spread: Spread::None,
        },
        errors: ErrorsSpec::default(),
        restart: RestartSpec {
            retries: 3,
            window_ms: 300_000,
            backoff_min_ms: 1000,
            backoff_max_ms: 4000,
            on_exhausted: OnExhausted::Fail,
        },
        metadata: types::MetadataSpec::default(),
    }
}

impl Systems for Memory {
    fn admin(&mut self, _system: &str) -> Result<Arc<dyn SystemAdmin>, SystemError> {
        Ok(Arc::new(self.clone()))
    }
    fn producer(&mut self, _system: &str, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        Ok(Box::new(MemoryProducer::new(self, id)))
    }
}

/// Several of them, by their names in job.toml.
#[derive(Debug, Clone)]
pub struct Clusters(pub BTreeMap<String, Memory>);

impl Systems for Clusters {
    fn admin(&mut self, system: &str) -> Result<Arc<dyn SystemAdmin>, SystemError> {
        self.0[system].clone().admin(system)
    }
    fn producer(&mut self, system: &str, id: &str) -> Result<Box<dyn TransactionalProducer>, SystemError> {
        self.0[system].clone().producer(system, id)
    }
}
