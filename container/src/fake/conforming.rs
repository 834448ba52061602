//! The fake is no kinder than Kafka.

use std::sync::Arc;

use conformance::{Can, Stage};
use task_api::system::{SystemAdmin, SystemConsumer, SystemProducer, TopicPartition, TransactionalProducer};

use super::{Broker, FakeSystem};
use crate::systems::System;

struct Fake(Broker);

impl Fake {
    fn system(&self) -> FakeSystem {
        FakeSystem::new(&self.0, None, None, None)
    }
}

impl Stage for Fake {
    fn lacks(&self) -> &'static [(Can, &'static str)] {
        &[]
    }
    fn admin(&self) -> Arc<dyn SystemAdmin> {
        self.system().admin()
    }
    fn consumer(&self) -> Box<dyn SystemConsumer> {
        self.system().consumer("reader", "reader").expect("a consumer")
    }
    fn producer(&self) -> Box<dyn SystemProducer> {
        self.system().producer("sender").expect("a producer")
    }
    fn slow_producer(&self) -> Box<dyn SystemProducer> {
        let system = self.system();
        system.be_slow();
        system.producer("sender").expect("a producer")
    }
    fn transactional(&self, id: &str) -> Box<dyn TransactionalProducer> {
        self.system().transactional(id).expect("a producer")
    }
    fn remake(&self, topic: &str) {
        self.0.remake(topic, 1);
    }
    fn delete_below(&self, at: &TopicPartition, low: u64) {
        self.0.cut_begin(&at.topic, at.partition, low);
    }
    fn away(&self) -> Arc<dyn SystemAdmin> {
        let system = self.system();
        system.be_flaky();
        system.admin()
    }
}

conformance::tests!(Fake(Broker::default()));
