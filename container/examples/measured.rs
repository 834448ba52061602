//! The job of `make bench`: does one simple thing with each message and measures the CPU of its own container.
//!
//! `[task] config`: `mode` is one of
//! - `consume`: nothing is done,
//! - `passthrough`: each message goes to stream `output`,
//! - `filter`: those whose key ends with 0 do,
//! - `count`: keys are counted in store `counts`, nothing is sent,
//! - `forward`: both,
//! - `restore`: none of these; what was used until the stores were restored is printed.
//!
//! After `warm-up` messages of all tasks of its one thread it measures the process over the next `window` and prints
//! `{"name","messages","cpu_ns_per_message","msgs_per_s"}` to stdout; with a window of 0 it never does. `restore` prints
//! `{"name","cpu_ms"}`.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use samza::{
    BytesSerde, I64Serde, IncomingMessageEnvelope, KeyValueStore, MessageCollector, OutgoingMessage,
    StreamTask, TaskContext, TaskCoordinator, TaskError, TaskResult,
};

/// The container's measurement, shared by the tasks of a thread.
#[derive(Default)]
struct Measure {
    name: String,
    seen: u64,
    warm_up: u64,
    /// 0 if nothing is measured.
    end: u64,
    start: Option<(Duration, Instant)>,
    restored: bool,
}

thread_local! {
    static MEASURE: RefCell<Measure> = RefCell::default();
}

/// CPU that this process has used.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

impl Measure {
    fn count(&mut self) {
        self.seen += 1;
        if self.seen == self.warm_up {
            self.start = Some((cpu(), Instant::now()));
        } else if self.seen == self.end
            && let Some((cpu_before, start)) = self.start
        {
            let (cpu, time) = (cpu() - cpu_before, start.elapsed());
            let messages = self.end - self.warm_up;
            #[expect(clippy::cast_precision_loss)] // some millions
            let each = messages as f64;
            println!(
                "{{\"name\":{:?},\"messages\":{messages},\"cpu_ns_per_message\":{:.1},\"msgs_per_s\":{:.0}}}",
                self.name,
                cpu.as_secs_f64() * 1e9 / each,
                each / time.as_secs_f64()
            );
        }
    }

    /// All tasks of a thread are restored before the first of them is told to begin.
    fn restored(&mut self) {
        if !std::mem::replace(&mut self.restored, true) {
            println!("{{\"name\":{:?},\"cpu_ms\":{:.1}}}", self.name, cpu().as_secs_f64() * 1e3);
        }
    }
}

/// One task.
#[derive(Default)]
struct Measured {
    /// If keys are counted.
    counts: Option<KeyValueStore<Vec<u8>, i64>>,
    key: Vec<u8>,
    /// If messages are sent on.
    output: Option<String>,
    /// Only some are.
    filters: bool,
}

impl Measured {
    fn count(&mut self, key: Option<&[u8]>) -> TaskResult {
        let Some(counts) = &mut self.counts else { return Ok(()) };
        self.key.clear();
        self.key.extend_from_slice(key.ok_or("a message without a key")?);
        let count = counts.get(&self.key)?.unwrap_or(0) + 1;
        Ok(counts.put(&self.key, &count)?)
    }

    fn send(
        &self,
        message: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
    ) -> TaskResult {
        let Some(stream) = &self.output else { return Ok(()) };
        if self.filters && message.key.is_none_or(|key| !key.ends_with(b"0")) {
            return Ok(());
        }
        let IncomingMessageEnvelope { key, value, .. } = *message;
        collector.send(OutgoingMessage::new(stream, key, value))
    }
}

impl StreamTask for Measured {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        let config = |key: &str| -> Result<&str, TaskError> {
            Ok(context.config.get(key).ok_or_else(|| format!("config lacks `{key}`"))?)
        };
        let mode = config("mode")?;
        let (counts, sends) = match mode {
            "consume" | "restore" => (false, false),
            "passthrough" | "filter" => (false, true),
            "count" => (true, false),
            "forward" => (true, true),
            other => return Err(format!("unknown mode `{other}`").into()),
        };
        self.filters = mode == "filter";
        if counts {
            self.counts = Some(context.store("counts", BytesSerde, I64Serde)?);
        }
        if sends {
            self.output = Some(config("output")?.to_owned());
        }
        let (warm_up, window): (u64, u64) = (config("warm-up")?.parse()?, config("window")?.parse()?);
        MEASURE.with_borrow_mut(|measure| {
            measure.name.clone_from(&context.job.name);
            (measure.warm_up, measure.end) = (warm_up, if window == 0 { 0 } else { warm_up + window });
            if mode == "restore" {
                measure.restored();
            }
        });
        Ok(())
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.count(envelope.key)?;
        self.send(envelope, collector)?;
        MEASURE.with_borrow_mut(Measure::count);
        Ok(())
    }
}

fn main() {
    samza::run(Measured::default);
}
