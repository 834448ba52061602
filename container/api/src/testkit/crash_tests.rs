//! Whatever happens and wherever it crashes, a job comes to what it comes to without a crash.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    BytesSerde, I64Serde, IncomingMessageEnvelope, KeyValueStore, MessageCollector, StringSerde, TaskContext,
    TaskCoordinator, TaskResult, Timers,
};

/// Counts by key, deletes at a zero, sets timers whose going off is counted too, and sends every new count. What it
/// does for a key depends only on that key's messages and timers, and these on nothing but their own times.
#[derive(Default)]
struct Tally {
    counts: Option<KeyValueStore<String, i64>>,
    timers: Option<Timers>,
}

impl Tally {
    fn add(&mut self, key: &str, collector: &mut dyn MessageCollector) -> TaskResult {
        let counts = self.counts.as_mut().expect("init has run");
        let count = counts.get(&key.to_owned())?.unwrap_or(0) + 1;
        counts.put(&key.to_owned(), &count)?;
        let text = count.to_string();
        collector.send(OutgoingMessage::new("kafka.out", Some(key.as_bytes()), Some(text.as_bytes())))
    }
}

impl StreamTask for Tally {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.counts = Some(context.store("counts", StringSerde, I64Serde)?);
        self.timers = Some(context.timers()?);
        Ok(())
    }
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let key = std::str::from_utf8(envelope.key.unwrap_or_default())?;
        match envelope.value.unwrap_or_default() {
            b"delete" => self.counts.as_mut().expect("init has run").delete(&key.to_owned())?,
            b"timer" => {
                let due = envelope.timestamp_ms.unwrap_or(0) + 1_000;
                let name = format!("{key} at {}", envelope.offset);
                self.timers.as_ref().expect("init has run").set(name.as_bytes(), due)?;
            }
            b"commit" => coordinator.commit(),
            _ => self.add(key, collector)?,
        }
        Ok(())
    }
    fn timer(
        &mut self,
        key: &[u8],
        _: u64,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        let key = format!("timer {}", std::str::from_utf8(key)?);
        self.add(&key, collector)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Send { key: u8, value: &'static str },
    Once,
    Run,
    Advance(u64),
    Commit,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![6 => Just("x"), 1 => Just("delete"), 2 => Just("timer"), 1 => Just("commit")];
    prop_oneof![
        8 => (0..6u8, value).prop_map(|(key, value)| Step::Send { key, value }),
        6 => Just(Step::Once),
        2 => Just(Step::Run),
        2 => (0..2_500u64).prop_map(Step::Advance),
        2 => Just(Step::Commit),
        4 => Just(Step::Crash),
    ]
}

/// The stores' bytes and the outputs by key, each in its order.
type Outcome = (Vec<BTreeMap<Vec<u8>, Vec<u8>>>, BTreeMap<String, Vec<String>>);

fn outcome(steps: &[Step], delivery: Delivery, shuffle: Option<u64>, crashes: bool) -> Outcome {
    let mut kit = TestKit::new(Tally::default)
        .input("kafka.in", 3)
        .output("kafka.out", 2)
        .store_with("counts", |store| store.cache_rows = 4)
        .timers()
        .delivery(delivery);
    if let Some(seed) = shuffle {
        kit = kit.shuffle(seed);
    }
    for step in steps {
        match step {
            Step::Send { key, value } => kit.send("kafka.in", Some(&format!("k{key}")), value),
            Step::Once => {
                kit.step();
            }
            Step::Run => kit.run(),
            Step::Advance(ms) => kit.advance(Duration::from_millis(*ms)),
            Step::Commit => kit.commit(),
            Step::Crash if crashes => kit.crash(),
            Step::Crash => {}
        }
    }
    kit.advance(Duration::from_secs(5));
    kit.end();
    let rows = |n: usize, kit: &mut TestKit<Tally>| {
        let all = kit.task(n).store("counts", BytesSerde, BytesSerde).all();
        all.expect("rows").map(|row| row.expect("a row")).collect()
    };
    let stores = (0..kit.tasks()).map(|n| rows(n, &mut kit)).collect();
    let mut outputs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in kit.outputs_as("kafka.out", StringSerde, StringSerde) {
        outputs.entry(key).or_default().push(value);
    }
    (stores, outputs)
}

proptest! {
    #[test]
    fn crashes_at_any_step_change_neither_stores_nor_exactly_once_outputs(
        steps in proptest::collection::vec(step(), 1..60),
        shuffle in proptest::option::of(any::<u64>()),
    ) {
        let calm = outcome(&steps, Delivery::ExactlyOnce, None, false);
        prop_assert_eq!(&outcome(&steps, Delivery::ExactlyOnce, shuffle, true), &calm);
        let (stores, outputs) = outcome(&steps, Delivery::AtLeastOnce, shuffle, true);
        prop_assert_eq!(&stores, &calm.0);
        for (key, sent) in &calm.1 {
            let again = outputs.get(key).map_or(&[][..], Vec::as_slice);
            prop_assert!(sent.iter().all(|value| again.contains(value)), "{} {:?} {:?}", key, sent, again);
        }
    }
}
