//! What operators and elections do to topics.

use task_api::system::TopicPartition;

use super::{Broker, Logs, at};

impl Logs {
    /// The leader epoch in which what is before `offset` was written.
    pub(super) fn leader_epoch(&self, at: &TopicPartition, offset: u64) -> i32 {
        let leaders = self.leaders.get(at).map_or(&[][..], Vec::as_slice);
        leaders.iter().rfind(|(_, begins)| *begins < offset).map_or(0, |(epoch, _)| *epoch)
    }
    /// Where that leader epoch ends.
    pub(super) fn end_of_epoch(&self, at: &TopicPartition, epoch: i32) -> u64 {
        let high = self.partitions.get(at).map_or(0, |log| log.len() as u64);
        let mut leaders = self.leaders.get(at).into_iter().flatten();
        leaders.find(|(later, _)| *later > epoch).map_or(high, |(_, begins)| *begins)
    }
}

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
    /// A broker becomes leader that has nothing from offset `end` on.
    pub(crate) fn elect_unclean(&self, topic: &str, partition: i32, end: usize) {
        self.cut_end(topic, partition, end);
        let mut logs = self.logs();
        let leaders = logs.leaders.entry(at(topic, partition)).or_default();
        let epoch = leaders.last().map_or(0, |(epoch, _)| *epoch) + 1;
        leaders.retain(|(_, begins)| *begins < end as u64);
        leaders.push((epoch, end as u64));
    }
    /// Loses what a partition has below offset `low`.
    pub(crate) fn cut_begin(&self, topic: &str, partition: i32, low: u64) {
        self.logs().lows.insert(at(topic, partition), low);
    }
}
