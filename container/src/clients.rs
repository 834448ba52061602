//! What Kafka's clients tell of their connections and queues, as metrics: by system, kind of client and broker, all
//! threads of the container together, so that a page can bear it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kafka::{BrokerFigures, Figures, Statistics};
use task_api::metrics::MetricsRegistry;

/// How often clients tell, unless the job says otherwise.
pub(crate) const EVERY: (&str, &str) = ("statistics.interval.ms", "10000");

/// The kinds of clients, as metrics name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Consumer,
    Producer,
}

/// The clients of one system.
#[derive(Clone, Default)]
pub(crate) struct Clients(Arc<Mutex<Vec<(Kind, Statistics)>>>);

impl Clients {
    /// Those of `system`, shown among `metrics` whenever somebody looks.
    pub(crate) fn of(system: &str, metrics: &MetricsRegistry) -> Clients {
        let clients = Clients::default();
        let (shown, system, into) = (clients.clone(), system.to_owned(), metrics.without_sources());
        metrics.before_showing(move || show(&into, &system, &shown.figures()));
        clients
    }

    pub(crate) fn add(&self, kind: Kind, statistics: Statistics) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((kind, statistics));
    }

    fn figures(&self) -> BTreeMap<Kind, Figures> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut figures: BTreeMap<Kind, Figures> = BTreeMap::new();
        for (kind, statistics) in all {
            if let Some(of) = statistics.read() {
                figures.entry(kind).or_default().add(&of);
            }
        }
        figures
    }
}

#[expect(clippy::cast_precision_loss)] // Prometheus' numbers are floats
fn show(metrics: &MetricsRegistry, system: &str, figures: &BTreeMap<Kind, Figures>) {
    for (kind, of) in figures {
        let client = match kind {
            Kind::Consumer => "consumer",
            Kind::Producer => "producer",
        };
        for (id, broker) in &of.brokers {
            show_broker(
                metrics,
                &[("system", system), ("client", client), ("broker", &id.to_string())],
                broker,
            );
        }
        let queue = metrics.with_labels(&[("system", system)]);
        let gauge = |name: &str, value: u64| queue.gauge(name).set(value as f64);
        match kind {
            Kind::Consumer => {
                gauge("samza_kafka_fetched_messages", of.fetched_messages);
                gauge("samza_kafka_fetched_bytes", of.fetched_bytes);
            }
            Kind::Producer => {
                gauge("samza_kafka_unsent_messages", of.unsent_messages);
                gauge("samza_kafka_unsent_bytes", of.unsent_bytes);
            }
        }
    }
}

fn show_broker(metrics: &MetricsRegistry, labels: &[(&str, &str)], broker: &BrokerFigures) {
    let of = metrics.with_labels(labels);
    of.gauge("samza_kafka_broker_rtt_avg_seconds").set(broker.rtt_avg_s);
    of.gauge("samza_kafka_broker_rtt_p99_seconds").set(broker.rtt_p99_s);
    of.gauge("samza_kafka_broker_throttle_seconds").set(broker.throttle_s);
    of.counter("samza_kafka_broker_connects_total").set(broker.connects);
    of.counter("samza_kafka_broker_disconnects_total").set(broker.disconnects);
    of.counter("samza_kafka_broker_request_timeouts_total").set(broker.request_timeouts);
    of.counter("samza_kafka_broker_sent_bytes_total").set(broker.sent_bytes);
    of.counter("samza_kafka_broker_received_bytes_total").set(broker.received_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_by_system_kind_of_client_and_broker() {
        let metrics = MetricsRegistry::default();
        let broker = BrokerFigures { rtt_p99_s: 0.25, connects: 3, ..BrokerFigures::default() };
        let of = Figures {
            brokers: [(2, broker)].into(),
            unsent_bytes: 70,
            fetched_bytes: 9,
            ..Figures::default()
        };
        show(&metrics, "kafka", &[(Kind::Producer, of)].into());
        let text = metrics.render();
        for line in [
            "samza_kafka_broker_rtt_p99_seconds{system=\"kafka\",client=\"producer\",broker=\"2\"} 0.25\n",
            "samza_kafka_broker_connects_total{system=\"kafka\",client=\"producer\",broker=\"2\"} 3\n",
            "samza_kafka_unsent_bytes{system=\"kafka\"} 70\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("samza_kafka_fetched_bytes"), "a producer fetches nothing: {text}");
    }
}
