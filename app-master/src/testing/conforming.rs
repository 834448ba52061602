//! The Kafka in memory is no kinder than Kafka.

use std::sync::Arc;

use conformance::{Can, Stage};
use task_api::system::{NewTopic, SystemAdmin, TopicPartition, TransactionalProducer};

use super::memory::Memory;
use super::producer::MemoryProducer;

impl Stage for Memory {
    fn lacks(&self) -> &'static [(Can, &'static str)] {
        &[
            (Can::Consume, "the application master reads ranges"),
            (Can::SendPlain, "the application master writes in transactions, or through its administrator"),
        ]
    }
    fn admin(&self) -> Arc<dyn SystemAdmin> {
        Arc::new(self.clone())
    }
    fn transactional(&self, id: &str) -> Box<dyn TransactionalProducer> {
        Box::new(MemoryProducer::new(self, id))
    }
    fn remake(&self, topic: &str) {
        let made = self.topic(topic).expect("a topic of the test");
        self.remove(topic);
        self.create(&[NewTopic { partitions: 1, ..made }]).expect("made again");
    }
    fn delete_below(&self, at: &TopicPartition, low: u64) {
        Memory::delete_below(self, at, low);
    }
    fn away(&self) -> Arc<dyn SystemAdmin> {
        self.set_down(true);
        Stage::admin(self)
    }
}

conformance::tests!(Memory::default());
