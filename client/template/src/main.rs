//! Keeps, for each page, how often it was visited and how long that took, and sends every change.
//!
//! Each task owns one partition of `kafka.visits` and has a store of its own, so a page, whose visits all have its name
//! as their key, is always counted by the same task. After a crash the store is as it was at the last commit, and the
//! visits since then are read again: nothing is lost, nothing is counted twice.

use samza::{
    IncomingMessageEnvelope, JsonSerde, KeyValueStore, MessageCollector, OutgoingMessage, Serde, StreamTask,
    StringSerde, TaskContext, TaskCoordinator, TaskResult,
};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// A message of `kafka.visits`; its key is the page.
#[derive(Serialize, Deserialize)]
struct Visit {
    ms: u64,
}

/// What is known of a page: a row of the store `pages`, and a message of `kafka.pages`.
#[derive(Default, Serialize, Deserialize)]
struct Page {
    visits: u64,
    ms: u64,
}

/// One task.
#[derive(Default)]
struct Pages {
    pages: Option<KeyValueStore<String, Page>>,
}

impl StreamTask for Pages {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.pages = Some(context.store("pages", StringSerde, JsonSerde::default())?);
        Ok(())
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let name = StringSerde.decode(envelope.key.unwrap_or_default())?;
        let visit: Visit = JsonSerde::default().decode(envelope.value.unwrap_or_default())?;
        let pages = self.pages.as_mut().ok_or("process before init")?;
        let mut page = pages.get(&name)?.unwrap_or_default();
        page.visits += 1;
        page.ms += visit.ms;
        pages.put(&name, &page)?;
        let mut value = Vec::new();
        JsonSerde::default().encode(&page, &mut value);
        collector.send(OutgoingMessage::new("kafka.pages", envelope.key, Some(&value)))
    }
}

fn main() {
    samza::run(Pages::default)
}
