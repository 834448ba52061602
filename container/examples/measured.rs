//! Passthrough and count as `make bench` runs them: a job that measures the CPU of its own container.
//!
//! `[task] config`: `mode` is `passthrough` (each message goes to stream `output`) or `count` (keys are counted in
//! store `counts`, nothing is sent). After `warm-up` messages of all tasks of its one thread it measures the process
//! over the next `window` and prints `{"name","messages","cpu_ns_per_message","msgs_per_s"}` to stdout.

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
    end: u64,
    start: Option<(Duration, Instant)>,
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
}

/// One task.
#[derive(Default)]
struct Measured {
    counts: Option<KeyValueStore<Vec<u8>, i64>>,
    key: Vec<u8>,
    output: String,
}

impl StreamTask for Measured {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        let config = |key: &str| -> Result<String, TaskError> {
            Ok(context.config.get(key).ok_or_else(|| format!("config lacks `{key}`"))?.clone())
        };
        match config("mode")?.as_str() {
            "passthrough" => self.output = config("output")?,
            "count" => self.counts = Some(context.store("counts", BytesSerde, I64Serde)?),
            other => return Err(format!("unknown mode `{other}`").into()),
        }
        let (warm_up, window): (u64, u64) = (config("warm-up")?.parse()?, config("window")?.parse()?);
        MEASURE.with_borrow_mut(|measure| {
            measure.name = context.job.name.clone();
            (measure.warm_up, measure.end) = (warm_up, warm_up + window);
        });
        Ok(())
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        match &mut self.counts {
            Some(counts) => {
                self.key.clear();
                self.key.extend_from_slice(envelope.key.ok_or("a message without a key")?);
                let count = counts.get(&self.key)?.unwrap_or(0) + 1;
                counts.put(&self.key, &count)?;
            }
            None => collector.send(OutgoingMessage::new(&self.output, envelope.key, envelope.value))?,
        }
        MEASURE.with_borrow_mut(Measure::count);
        Ok(())
    }
}

fn main() {
    samza::run(Measured::default);
}
