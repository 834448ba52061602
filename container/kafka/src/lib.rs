//! Kafka behind `task-api`'s system traits, on librdkafka's C API.
//!
//! [`KafkaAdmin`] asks and orders, [`KafkaConsumer`] reads committed messages in borrowed batches,
//! [`KafkaProducer`] writes, plainly or in transactions. Everything that touches C is in the module `native`; no
//! type of librdkafka leaves this crate. Calls block: give them threads of their own, never a pool's.

mod admin;
mod consumer;
mod native;
mod producer;

pub use admin::KafkaAdmin;
pub use consumer::KafkaConsumer;
pub use producer::KafkaProducer;
pub use task_api::murmur2_partition;

/// A client that asks where leaders are when one dies may hear of the dead one, and asks again after this time only:
/// librdkafka's own is five minutes.
const EVERYWHERE: [(&str, &str); 1] = [("topic.metadata.refresh.interval.ms", "10000")];

/// Settings in the order in which later ones win.
pub(crate) fn settings<'a>(
    ours: &[(&'a str, &'a str)],
    theirs: &'a std::collections::BTreeMap<String, String>,
    fixed: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let theirs = theirs.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    EVERYWHERE.iter().chain(ours).copied().chain(theirs).chain(fixed.iter().copied()).collect()
}
