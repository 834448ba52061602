//! What operators do to topics with tools of their own while jobs run: they delete records and topics, make them again and
//! change their settings.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka::KafkaAdmin;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use task_api::system::{NewTopic, SystemAdmin, TopicPartition};

use crate::PATIENCE;
use crate::job::patiently;

/// Of one cluster.
pub struct Operator {
    pub admin: KafkaAdmin,
    client: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

/// So often in a row must brokers, any of them, have heard of a change before all of them have.
const HEARD: u32 = 10;

impl Operator {
    pub fn of(bootstrap: &str) -> Operator {
        let client = ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let admin = KafkaAdmin::new(bootstrap, &BTreeMap::new()).expect("an admin");
        Operator { admin, client, runtime }
    }

    /// Deletes what is below `offset`; all there is if none is given.
    pub fn delete_records(&self, topic: &str, partition: i32, offset: Option<u64>) {
        let offset = offset.map_or(Offset::End, |offset| Offset::Offset(offset as i64));
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, offset).expect("an offset");
        let start = Instant::now();
        loop {
            let order = self.client.delete_records(&list, &AdminOptions::new());
            let told = self.runtime.block_on(order).expect("a broker answers");
            match told.elements()[0].error() {
                Ok(()) => return,
                // Its leader may not have heard yet that it may.
                Err(error) => assert!(start.elapsed() < PATIENCE, "{topic}-{partition}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn delete_topic(&self, topic: &str) {
        let order = self.client.delete_topics(&[topic], &AdminOptions::new());
        let told = self.runtime.block_on(order).expect("a broker answers");
        assert!(told[0].is_ok(), "{told:?}");
    }

    /// Deletes a topic and makes it again; returns its new id.
    pub fn make_again(&self, new: &NewTopic) -> String {
        self.delete_topic(&new.topic);
        // Whoever is asked by a broker that has not heard would leave the old one as it is.
        self.wait(&format!("{} to be gone", new.topic), || self.id(&new.topic).is_none());
        self.make(new);
        self.id(&new.topic).expect("it is there")
    }

    /// Makes a topic, and waits until all brokers know it.
    pub fn make(&self, new: &NewTopic) {
        self.admin.create(std::slice::from_ref(new)).expect("made");
        self.wait(&format!("{} to be there", new.topic), || self.id(&new.topic).is_some());
    }

    pub fn id(&self, topic: &str) -> Option<String> {
        let found = patiently(|| self.admin.describe(&[topic.to_owned()]));
        found.first().map(|topic| topic.topic_id.clone())
    }

    /// Changes a setting, and waits until all brokers know.
    pub fn set(&self, topic: &str, key: &str, value: &str) {
        let set = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        patiently(|| self.admin.alter_configs(topic, &set));
        let topics = [topic.to_owned()];
        self.wait(&format!("{topic} to have {key}={value}"), || {
            let all = patiently(|| self.admin.describe_configs(&topics));
            all.get(topic).is_some_and(|of| of[key].value == value)
        });
    }

    /// Low, stable and high.
    pub fn ends(&self, topic: &str, partition: i32) -> (u64, u64, u64) {
        let at = TopicPartition { topic: topic.to_owned(), partition };
        let ends = patiently(|| self.admin.watermarks(std::slice::from_ref(&at)))[0];
        (ends.low, ends.stable, ends.high)
    }

    /// Whether a transaction of somebody is open in it.
    pub fn is_open(&self, topic: &str, partition: i32) -> bool {
        let (_, stable, high) = self.ends(topic, partition);
        stable < high
    }

    fn wait(&self, what: &str, is: impl Fn() -> bool) {
        let (start, mut heard) = (Instant::now(), 0);
        while heard < HEARD {
            heard = if is() { heard + 1 } else { 0 };
            assert!(start.elapsed() < PATIENCE, "waited for {what}");
            std::thread::sleep(Duration::from_millis(if heard == 0 { 50 } else { 5 }));
        }
    }
}
