//! Sends the flights, evenly over a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kafka::KafkaProducer;
use task_api::system::{ProducerRecord, SystemProducer};

use crate::flights::Flight;

/// The thread that sends.
pub struct Feeder {
    sent: Arc<AtomicU64>,
}

impl Feeder {
    /// Begins to send `flights` to `topic`, taking `time` for all of them.
    pub fn start(bootstrap: &str, topic: &str, flights: Vec<Flight>, time: Duration) -> Feeder {
        let sent = Arc::new(AtomicU64::new(0));
        let (count, bootstrap, topic) = (Arc::clone(&sent), bootstrap.to_owned(), topic.to_owned());
        std::thread::spawn(move || {
            let mut producer =
                KafkaProducer::idempotent(&bootstrap, "demo", &BTreeMap::new()).expect("a producer");
            let topic = producer.topic(&topic).expect("a topic");
            let start = Instant::now();
            let (total, tick) = (flights.len(), Duration::from_millis(20));
            let batch = (total as u128 * tick.as_millis() / time.as_millis().max(1)).max(1);
            for (place, flights) in flights.chunks(usize::try_from(batch).unwrap_or(total)).enumerate() {
                let due = tick * u32::try_from(place).unwrap_or(u32::MAX);
                sleep(due.saturating_sub(start.elapsed()));
                for flight in flights {
                    let (key, value) = (Some(flight.key.as_bytes()), Some(flight.value.as_bytes()));
                    producer
                        .send(&ProducerRecord::new(topic, key, value))
                        .expect("brokers that take messages");
                }
                count.fetch_add(flights.len() as u64, Ordering::Relaxed);
            }
            producer.flush(Duration::from_secs(30)).expect("brokers that take messages");
        });
        Feeder { sent }
    }

    /// How many have been sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}
