//! Counts messages by key; a message `drop` forgets its key. For each message it sends `<id> <count>`, so that what a job
//! did can be compared with what it should have done, message by message. The id is the second word of the message, or
//! else its offset.
//!
//! `[task] config`: `output` is a stream; so is `copy`, which, if it is set, gets the same. If `dump` is set, each task
//! begins by writing its store, as it was restored, into the working folder: `<task>.dump`, a line `<key> <count>` for each
//! row. With the environment variable `TALLY_WAITS` set, the task is an asynchronous one, which waits a little for most
//! messages.

use std::time::Duration;

use samza::{
    AsyncStreamTask, I64Serde, IncomingMessageEnvelope, KeyValueStore, MessageCollector, OutgoingMessage,
    OwnedMessage, Reply, StreamTask, StringSerde, TaskContext, TaskCoordinator, TaskResult,
};

/// One task.
#[derive(Default)]
struct Tally {
    counts: Option<KeyValueStore<String, i64>>,
    /// `output` and `copy`.
    outputs: Vec<String>,
}

impl Tally {
    fn count(
        &mut self,
        (key, value): (Option<&[u8]>, Option<&[u8]>),
        offset: u64,
        collector: &mut dyn MessageCollector,
    ) -> TaskResult {
        let counts = self.counts.as_mut().ok_or("process before init")?;
        let key = std::str::from_utf8(key.ok_or("a message without a key")?)?.to_owned();
        let mut words = std::str::from_utf8(value.ok_or("a message without a value")?)?.split(' ');
        let count = if words.next() == Some("drop") {
            counts.delete(&key)?;
            0
        } else {
            let count = counts.get(&key)?.unwrap_or(0) + 1;
            counts.put(&key, &count)?;
            count
        };
        let value = format!("{} {count}", words.next().map_or_else(|| offset.to_string(), str::to_owned));
        for output in &self.outputs {
            let message = OutgoingMessage::new(output, Some(key.as_bytes()), Some(value.as_bytes()));
            collector.send(message)?;
        }
        Ok(())
    }
}

impl StreamTask for Tally {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        let output = context.config.get("output").ok_or("no output in [task] config")?;
        self.outputs = std::iter::once(output).chain(context.config.get("copy")).cloned().collect();
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
        self.count((envelope.key, envelope.value), envelope.offset, collector)
    }
}

/// The same, waiting.
#[derive(Default)]
struct Waiting(Tally);

impl AsyncStreamTask for Waiting {
    type Reply = ();

    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.0.init(context)
    }

    fn call(&mut self, message: &OwnedMessage) -> Reply<()> {
        // A later call is often over sooner.
        let wait = Duration::from_millis(message.offset * 7 % 4);
        Box::pin(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            Ok(())
        })
    }

    fn process(
        &mut self,
        message: &OwnedMessage,
        (): (),
        collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.0.count((message.key.as_deref(), message.value.as_deref()), message.offset, collector)
    }
}

fn main() {
    if std::env::var_os("TALLY_WAITS").is_some() {
        samza::run_async(Waiting::default);
    }
    samza::run(Tally::default);
}
