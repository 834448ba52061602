//! Writes each message to every store and sets a timer for it, so that tests can have many stores, rows and timers.
//!
//! `[task] config`: `stores` has the names of the job's stores, with commas between them; each gets the message's key and
//! value. `due`, unix ms: each message sets the timer of its key to then.

use samza::{
    BytesSerde, IncomingMessageEnvelope, KeyValueStore, MessageCollector, StreamTask, TaskContext,
    TaskCoordinator, TaskResult, Timers,
};

/// One task.
#[derive(Default)]
struct Crowd {
    stores: Vec<KeyValueStore<Vec<u8>, Vec<u8>>>,
    timers: Option<(Timers, u64)>,
}

impl StreamTask for Crowd {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        let stores = context.config.get("stores").cloned().unwrap_or_default();
        for name in stores.split(',').filter(|name| !name.is_empty()) {
            self.stores.push(context.store(name, BytesSerde, BytesSerde)?);
        }
        if let Some(due) = context.config.get("due") {
            self.timers = Some((context.timers()?, due.parse()?));
        }
        Ok(())
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        _collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let key = envelope.key.ok_or("a message without a key")?.to_vec();
        let value = envelope.value.unwrap_or_default().to_vec();
        for store in &mut self.stores {
            store.put(&key, &value)?;
        }
        if let Some((timers, due)) = &self.timers {
            timers.set(&key, *due)?;
        }
        Ok(())
    }
}

fn main() {
    samza::run(Crowd::default);
}
