//! Kafka behind `task-api`'s system traits, on librdkafka's C API.
//!
//! [`KafkaAdmin`] asks and orders, [`KafkaConsumer`] reads committed messages in borrowed batches,
//! [`KafkaProducer`] writes, plainly or in transactions. Everything that touches C is in the module `native`; no
//! type of librdkafka leaves this crate. Calls block: give them threads of their own, never a pool's.

mod access;
mod admin;
mod consumer;
mod native;
mod producer;
mod statistics;

use std::collections::BTreeMap;

pub use access::{Access, SecretOf, environments_secret};
pub use admin::{KafkaAdmin, NoContact};
pub use consumer::KafkaConsumer;
pub use producer::KafkaProducer;
pub use statistics::{BrokerFigures, Figures, Statistics};
pub use task_api::murmur2_partition;

/// A client that asks where leaders are when one dies may hear of the dead one, and asks again after this time only:
/// librdkafka's own is five minutes.
const EVERYWHERE: [(&str, &str); 1] = [("topic.metadata.refresh.interval.ms", "10000")];

/// What we set for every consumer unless the job says otherwise: a message that was damaged on its way is not processed.
const CONSUMERS: (&str, &str) = ("check.crcs", "true");

/// Settings in the order in which later ones win. Those of the job that we fix ourselves are not among its own: the job
/// file refuses them, and of a job that is older than that it is told that they do nothing.
pub(crate) fn settings<'a>(
    ours: &[(&'a str, &'a str)],
    theirs: &'a BTreeMap<String, String>,
    fixed: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    #[cfg(test)]
    for (name, _) in fixed {
        assert!(types::not_the_jobs(name).is_some(), "{name} is fixed here and the job file takes it");
    }
    let is_fixed = |key: &str| fixed.iter().any(|(name, _)| types::is_same_setting(name, key));
    let theirs = theirs.iter().map(|(key, value)| (key.as_str(), value.as_str())).filter(|(key, _)| {
        if is_fixed(key) {
            tracing::warn!("the job's setting {key} does nothing: the runtime sets it itself");
        }
        !is_fixed(key)
    });
    EVERYWHERE.iter().chain(ours).copied().chain(theirs).chain(fixed.iter().copied()).collect()
}

/// As [`settings`], of a consumer. librdkafka takes no `fetch.max.bytes` that is below the largest message it may send, so
/// a consumer, which sends none, says that it sends none larger than an answer.
pub(crate) fn consumer_settings<'a>(
    ours: &[(&'a str, &'a str)],
    theirs: &'a BTreeMap<String, String>,
    fixed: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let mut all = settings(ours, theirs, fixed);
    if let Some((_, answer)) = all.iter().rev().find(|(name, _)| *name == "fetch.max.bytes") {
        let is_small = answer.parse::<u64>().is_ok_and(|answer| answer < 1_000_000);
        all.push(("message.max.bytes", if is_small { answer } else { "1000000" }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_fixes_is_refused_by_the_job_file() {
        let (none, broker) = (BTreeMap::new(), "127.0.0.1:1");
        // Each checks its own settings; none connects to anybody.
        KafkaConsumer::new(broker, "c", "g", &none).expect("a consumer");
        KafkaProducer::idempotent(broker, "p", &none).expect("a producer");
        KafkaProducer::transactional(broker, "t", &none).expect("a producer");
        KafkaAdmin::new(broker, &none).expect("an administrator").open_all().expect("its clients");
    }

    #[test]
    fn an_answer_may_be_smaller_than_the_largest_message() {
        let broker = "127.0.0.1:1";
        for (answer, largest) in [("65536", "1000"), ("2000000", "3000000")] {
            let theirs = [("fetch.max.bytes", answer), ("message.max.bytes", largest)];
            let theirs = theirs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            KafkaConsumer::new(broker, "c", "g", &theirs).expect("a consumer");
        }
        let small: BTreeMap<String, String> = [("fetch.max.bytes".to_owned(), "65536".to_owned())].into();
        KafkaAdmin::new(broker, &small).expect("an administrator").open_all().expect("its clients");
    }

    #[test]
    fn a_setting_of_the_job_wins_over_ours_and_not_over_what_is_fixed() {
        let theirs: BTreeMap<String, String> = [("linger.ms", "7"), ("retries", "3"), ("acks", "1")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        let all = settings(&[("linger.ms", "5")], &theirs, &[("request.required.acks", "all")]);
        let last = |name: &str| all.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value);
        assert_eq!((last("linger.ms"), last("retries"), last("acks")), (Some("7"), Some("3"), None));
        assert_eq!(last("request.required.acks"), Some("all"));
    }
}
