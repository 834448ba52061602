//! Counts messages by key; a message `drop` forgets its key. For each message it sends `<offset> <count>`, so that
//! what a job did can be compared with what it should have done, message by message.
//!
//! `[task] config`: `output` is a stream. If `dump` is set, each task begins by writing its store, as it was
//! restored, into the working folder: `<task>.dump`, a line `<key> <count>` for each row.

use samza::{
    I64Serde, IncomingMessageEnvelope, KeyValueStore, MessageCollector, OutgoingMessage, StreamTask,
    StringSerde, TaskContext, TaskCoordinator, TaskResult,
};

/// One task.
#[derive(Default)]
struct Tally {
    counts: Option<KeyValueStore<String, i64>>,
    output: String,
}

impl StreamTask for Tally {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.output = context.config.get("output").cloned().ok_or("no output in [task] config")?;
        let counts = self.counts.insert(context.store("counts", StringSerde, I64Serde)?);
        if context.config.contains_key("dump") {
            let mut lines = String::new();
            for row in counts.all()? {
                let (key, count) = row?;
                lines += &format!("{key} {count}\n");
            }
            // A name that is there is a dump that is whole.
            let name = format!("{}.dump", context.task);
            std::fs::write("dump.part", lines)?;
            std::fs::rename("dump.part", name)?;
        }
        Ok(())
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let counts = self.counts.as_mut().ok_or("process before init")?;
        let key = std::str::from_utf8(envelope.key.ok_or("a message without a key")?)?.to_owned();
        let count = if envelope.value == Some(b"drop") {
            counts.delete(&key)?;
            0
        } else {
            let count = counts.get(&key)?.unwrap_or(0) + 1;
            counts.put(&key, &count)?;
            count
        };
        let value = format!("{} {count}", envelope.offset);
        collector.send(OutgoingMessage::new(&self.output, Some(key.as_bytes()), Some(value.as_bytes())))
    }
}

fn main() {
    samza::run(Tally::default);
}
