//! What every system of streams must do, on Kafka itself: whatever runs these tests too is measured by it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use conformance::{Can, Stage};
use kafka::{KafkaAdmin, KafkaConsumer, KafkaProducer};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use task_api::system::{
    NewTopic, SystemAdmin, SystemConsumer, SystemProducer, TopicPartition, TransactionalProducer,
};

use super::{SOON, admin, bootstrap};

struct Brokers;

impl Stage for Brokers {
    fn lacks(&self) -> &'static [(Can, &'static str)] {
        &[]
    }
    fn admin(&self) -> Arc<dyn SystemAdmin> {
        Arc::new(admin())
    }
    fn consumer(&self) -> Box<dyn SystemConsumer> {
        let none = BTreeMap::new();
        Box::new(KafkaConsumer::new(&bootstrap(), "reader", "reader", &none).expect("settings are right"))
    }
    fn producer(&self) -> Box<dyn SystemProducer> {
        // A topic that is not there is known to be missing after this time.
        plain(("topic.metadata.propagation.max.ms", "1000"))
    }
    fn slow_producer(&self) -> Box<dyn SystemProducer> {
        plain(("linger.ms", "60000"))
    }
    fn transactional(&self, id: &str) -> Box<dyn TransactionalProducer> {
        let none = BTreeMap::new();
        Box::new(KafkaProducer::transactional(&bootstrap(), id, &none).expect("settings are right"))
    }
    fn remake(&self, topic: &str) {
        let options = AdminOptions::new().operation_timeout(Some(SOON));
        let deleted = block_on(orders().delete_topics(&[topic], &options)).expect("answered");
        assert_eq!(deleted, [Ok(topic.to_owned())]);
        let new =
            NewTopic { topic: topic.to_owned(), partitions: 1, replication: 1, config: BTreeMap::new() };
        let (admin, since) = (admin(), Instant::now());
        // It takes a moment until every broker knows that it is gone.
        while !admin.describe(std::slice::from_ref(&new.topic)).expect("described").is_empty() {
            assert!(since.elapsed() < SOON, "{topic} is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
        admin.create(&[new]).expect("made again");
    }
    fn delete_below(&self, at: &TopicPartition, low: u64) {
        let mut below = TopicPartitionList::new();
        let low = i64::try_from(low).expect("small");
        below.add_partition_offset(&at.topic, at.partition, Offset::Offset(low)).expect("an offset");
        block_on(orders().delete_records(&below, &AdminOptions::new())).expect("deleted");
    }
    fn away(&self) -> Arc<dyn SystemAdmin> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let nobody = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let settings = BTreeMap::from([("socket.connection.setup.timeout.ms".to_owned(), "1000".to_owned())]);
        Arc::new(KafkaAdmin::new(&nobody, &settings).expect("settings are right"))
    }
}

fn plain((setting, value): (&str, &str)) -> Box<dyn SystemProducer> {
    let config = BTreeMap::from([(setting.to_owned(), value.to_owned())]);
    Box::new(KafkaProducer::idempotent(&bootstrap(), "sender", &config).expect("settings are right"))
}

/// What jobs never order.
fn orders() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", bootstrap()).create().expect("settings are right")
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => return done,
            Poll::Pending => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

conformance::tests!(Brokers);
