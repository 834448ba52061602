//! What operators and elections do to topics.

use super::{Broker, at};

impl Broker {
    /// Sets something on a topic.
    pub(crate) fn configure(&self, topic: &str, key: &str, value: &str) {
        let set = [(key.to_owned(), value.to_owned())].into();
        self.logs().configure(topic, &set).expect("a setting of Kafka's");
    }
    /// Deletes a topic and makes it again.
    pub(crate) fn remake(&self, topic: &str, partitions: i32) {
        self.topic(topic, partitions);
    }
    /// Loses what a partition has from offset `end` on.
    pub(crate) fn cut_end(&self, topic: &str, partition: i32, end: usize) {
        self.logs().log(&at(topic, partition)).expect("a topic of the test").truncate(end);
    }
    /// Loses what a partition has below offset `low`.
    pub(crate) fn cut_begin(&self, topic: &str, partition: i32, low: u64) {
        self.logs().lows.insert(at(topic, partition), low);
    }
}
