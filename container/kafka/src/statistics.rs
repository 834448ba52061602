//! What librdkafka tells of its connections and queues each `statistics.interval.ms`. A text is kept as it came, and read
//! only when somebody asks: nobody pays for what nobody looks at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

/// What one client told last; a handle, cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Statistics(Arc<Mutex<Option<String>>>);

impl Statistics {
    pub(crate) fn told(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// What it told; none if it has told nothing yet.
    #[must_use]
    pub fn read(&self) -> Option<Figures> {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        match serde_json::from_str::<Told>(&text) {
            Ok(told) => Some(told.into()),
            Err(error) => {
                tracing::debug!(%error, "librdkafka's statistics cannot be read");
                None
            }
        }
    }
}

/// How a client is, or several of a kind together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// By id. Brokers that were never connected to are left out.
    pub brokers: BTreeMap<i32, BrokerFigures>,
    /// Messages that no broker has acknowledged yet.
    pub unsent_messages: u64,
    /// Their bytes.
    pub unsent_bytes: u64,
    /// Messages that were fetched and not yet polled.
    pub fetched_messages: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
}

/// How the connections to one broker are. Times are of the last interval, s; the rest is since the client was made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)]
pub struct BrokerFigures {
    /// From a request to its answer, on average. A fetch that waits for messages counts as it is.
    pub rtt_avg_s: f64,
    pub rtt_p99_s: f64,
    /// For how long the broker held answers back, because of a quota.
    pub throttle_s: f64,
    pub connects: u64,
    pub disconnects: u64,
    pub request_timeouts: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

impl Figures {
    /// Adds another client's: the worst of times, the sum of everything else.
    pub fn add(&mut self, other: &Figures) {
        for (id, of) in &other.brokers {
            let broker = self.brokers.entry(*id).or_default();
            broker.rtt_avg_s = broker.rtt_avg_s.max(of.rtt_avg_s);
            broker.rtt_p99_s = broker.rtt_p99_s.max(of.rtt_p99_s);
            broker.throttle_s = broker.throttle_s.max(of.throttle_s);
            broker.connects += of.connects;
            broker.disconnects += of.disconnects;
            broker.request_timeouts += of.request_timeouts;
            broker.sent_bytes += of.sent_bytes;
            broker.received_bytes += of.received_bytes;
        }
        self.unsent_messages += other.unsent_messages;
        self.unsent_bytes += other.unsent_bytes;
        self.fetched_messages += other.fetched_messages;
        self.fetched_bytes += other.fetched_bytes;
    }
}

/// The text; what it does not say is 0.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Told {
    msg_cnt: u64,
    msg_size: u64,
    brokers: BTreeMap<String, ToldBroker>,
    topics: BTreeMap<String, ToldTopic>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToldBroker {
    nodeid: i32,
    txbytes: u64,
    rxbytes: u64,
    req_timeouts: u64,
    connects: u64,
    disconnects: u64,
    /// Microseconds.
    rtt: Window,
    /// Milliseconds.
    throttle: Window,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Window {
    avg: i64,
    p99: i64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToldTopic {
    partitions: BTreeMap<String, ToldPartition>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToldPartition {
    fetchq_cnt: i64,
    fetchq_size: i64,
}

impl From<Told> for Figures {
    fn from(told: Told) -> Figures {
        let seconds = |value: i64, of_one: f64| u32::try_from(value).map_or(0.0, f64::from) / of_one;
        let mut figures =
            Figures { unsent_messages: told.msg_cnt, unsent_bytes: told.msg_size, ..Figures::default() };
        // The addresses to begin with are no brokers, and what leads to a group's coordinator is named like its broker.
        for broker in told.brokers.into_values().filter(|of| of.nodeid >= 0 && of.connects > 0) {
            let of = BrokerFigures {
                rtt_avg_s: seconds(broker.rtt.avg, 1e6),
                rtt_p99_s: seconds(broker.rtt.p99, 1e6),
                throttle_s: seconds(broker.throttle.avg, 1e3),
                connects: broker.connects,
                disconnects: broker.disconnects,
                request_timeouts: broker.req_timeouts,
                sent_bytes: broker.txbytes,
                received_bytes: broker.rxbytes,
            };
            figures.add(&Figures { brokers: [(broker.nodeid, of)].into(), ..Figures::default() });
        }
        for partition in told.topics.into_values().flat_map(|topic| topic.partitions.into_values()) {
            figures.fetched_messages += u64::try_from(partition.fetchq_cnt).unwrap_or(0);
            figures.fetched_bytes += u64::try_from(partition.fetchq_size).unwrap_or(0);
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As librdkafka writes it, with some of what is not read.
    const TEXT: &str = r#"{"name": "a#consumer-1", "type": "consumer", "msg_cnt": 3, "msg_size": 700,
        "brokers": {
            "h:9092/bootstrap": {"name": "h:9092/bootstrap", "nodeid": -1, "connects": 1, "rxbytes": 9,
                "rtt": {"avg": 7000, "p99": 9000}, "throttle": {"avg": 0}},
            "h:9092/1": {"nodeid": 1, "state": "UP", "txbytes": 10, "rxbytes": 20, "req_timeouts": 1,
                "connects": 2, "disconnects": 1, "rtt": {"min": 1, "avg": 2000, "p99": 5000, "cnt": 4},
                "throttle": {"avg": 250, "p99": 300}, "req": {"Fetch": 3}},
            "GroupCoordinator/1": {"nodeid": 1, "txbytes": 1, "connects": 1, "rtt": {"avg": 3000, "p99": 3000}},
            "h:9093/2": {"nodeid": 2, "state": "INIT", "connects": 0}},
        "topics": {"in": {"age": 1, "partitions": {
            "0": {"partition": 0, "fetchq_cnt": 2, "fetchq_size": 100, "hi_offset": -1001},
            "-1": {"fetchq_cnt": 0, "fetchq_size": 0}}}}}"#;

    #[test]
    fn what_is_told_is_read_by_broker_and_queue() {
        let statistics = Statistics::default();
        assert_eq!(statistics.read(), None);
        statistics.told(TEXT.to_owned());
        let figures = statistics.read().expect("it is told");
        let broker = BrokerFigures {
            rtt_avg_s: 0.003,
            rtt_p99_s: 0.005,
            throttle_s: 0.25,
            connects: 3,
            disconnects: 1,
            request_timeouts: 1,
            sent_bytes: 11,
            received_bytes: 20,
        };
        let expected = Figures {
            brokers: [(1, broker)].into(),
            unsent_messages: 3,
            unsent_bytes: 700,
            fetched_messages: 2,
            fetched_bytes: 100,
        };
        assert_eq!(figures, expected);
    }

    #[test]
    fn of_several_clients_the_worst_times_and_the_sums_are_told() {
        let statistics = Statistics::default();
        statistics.told(TEXT.to_owned());
        let one = statistics.read().expect("it is told");
        let mut both = one.clone();
        both.add(&one);
        let broker = both.brokers[&1];
        assert_eq!((broker.rtt_p99_s, broker.connects, broker.sent_bytes), (0.005, 6, 22));
        assert_eq!((both.unsent_bytes, both.fetched_messages), (1_400, 4));
    }

    #[test]
    fn what_cannot_be_read_tells_nothing() {
        let statistics = Statistics::default();
        statistics.told("{".to_owned());
        assert_eq!(statistics.read(), None);
    }
}
