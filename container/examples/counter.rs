//! Counts messages by key in a store and sends each new count; goes wrong on request, so that tests can see what
//! follows.
//!
//! `[task] config`: `output` (a stream) gets `key → count` for each message. `fault` is `exit` (code 3), `fail`
//! (the task's error), `hog` (memory without end), `fork` (a child that leaves the process tree), `slow` (10 ms a
//! message, or `fault-ms`) or `hang` (for ever). It strikes from the task's message `fault-at` on (from 1, the default), in task `fault-task` (default:
//! any); if `fault-when` names a file, then once, at the message at which it could remove that file.
//! `spin = "true"` keeps one CPU busy. `pad = "<bytes>"` makes state large: each key has, in store `pads`, a value of
//! so many bytes that do not compress, and it is checked whenever the key is seen again.

use std::process::Command;
use std::time::Duration;

use samza::{
    BytesSerde, I64Serde, IncomingMessageEnvelope, KeyValueStore, MessageCollector, OutgoingMessage,
    StreamTask, StringSerde, TaskContext, TaskCoordinator, TaskResult,
};

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Exit,
    Fail,
    Hog,
    Fork,
    Slow(Duration),
    Hang,
}

/// One task.
#[derive(Default)]
struct Counter {
    counts: Option<KeyValueStore<String, i64>>,
    pads: Option<KeyValueStore<String, Vec<u8>>>,
    pad_bytes: usize,
    output: Option<String>,
    fault: Option<Fault>,
    fault_at: u64,
    fault_when: Option<String>,
    seen: u64,
}

impl StreamTask for Counter {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        let config = |key: &str| context.config.get(key).cloned();
        self.counts = Some(context.store("counts", StringSerde, I64Serde)?);
        if let Some(bytes) = config("pad") {
            self.pad_bytes = bytes.parse()?;
            self.pads = Some(context.store("pads", StringSerde, BytesSerde)?);
        }
        self.output = config("output");
        self.fault_at = config("fault-at").map_or(Ok(1), |text| text.parse())?;
        self.fault = match config("fault").as_deref() {
            None => None,
            Some("exit") => Some(Fault::Exit),
            Some("fail") => Some(Fault::Fail),
            Some("hog") => Some(Fault::Hog),
            Some("fork") => Some(Fault::Fork),
            Some("slow") => {
                let ms = config("fault-ms").map_or(Ok(10), |text| text.parse())?;
                Some(Fault::Slow(Duration::from_millis(ms)))
            }
            Some("hang") => Some(Fault::Hang),
            Some(other) => return Err(format!("unknown fault `{other}`").into()),
        };
        let elsewhere = config("fault-task").is_some_and(|task| task != context.task.0);
        if elsewhere {
            self.fault = None;
        }
        self.fault_when = config("fault-when");
        if config("spin").is_some() {
            std::thread::spawn(|| {
                loop {
                    std::hint::black_box(0);
                }
            });
        }
        Ok(())
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.seen += 1;
        let file = self.fault_when.as_ref();
        if self.fault.is_some()
            && self.seen >= self.fault_at
            && file.is_none_or(|f| std::fs::remove_file(f).is_ok())
        {
            self.go_wrong()?;
        }
        let key = std::str::from_utf8(envelope.key.ok_or("a message without a key")?)?.to_owned();
        let counts = self.counts.as_mut().ok_or("process before init")?;
        let count = counts.get(&key)?.unwrap_or(0) + 1;
        counts.put(&key, &count)?;
        if let Some(pads) = &mut self.pads {
            let pad = noise(&key, self.pad_bytes);
            match pads.get(&key)? {
                None if count == 1 => pads.put(&key, &pad)?,
                Some(found) if found == pad => {}
                found => {
                    return Err(format!("pad of {key} at {count}: {:?} bytes", found.map(|f| f.len())).into());
                }
            }
        }
        if let Some(stream) = &self.output {
            let (key, value) = (Some(key.as_bytes()), count.to_string());
            collector.send(OutgoingMessage::new(stream, key, Some(value.as_bytes())))?;
        }
        Ok(())
    }
}

/// Bytes that only the key tells.
fn noise(key: &str, bytes: usize) -> Vec<u8> {
    let mut state = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

impl Counter {
    /// Has a name that a stack can show.
    #[inline(never)]
    fn hang(&self) {
        while self.fault.is_some() {
            std::thread::park();
        }
    }

    fn go_wrong(&mut self) -> TaskResult {
        match self.fault {
            None => {}
            Some(Fault::Slow(time)) => std::thread::sleep(time),
            Some(Fault::Hang) => self.hang(),
            Some(Fault::Exit) => std::process::exit(3),
            Some(Fault::Fail) => return Err(format!("told to fail at message {}", self.seen).into()),
            Some(Fault::Fork) => {
                // The shell that forks the sleeper ends at once, so the sleeper's parent is init.
                Command::new("setsid").args(["sh", "-c", "sleep 1000 & exit 0"]).status()?;
                self.fault = None;
            }
            Some(Fault::Hog) => {
                let mut held: Vec<Vec<u8>> = Vec::new();
                loop {
                    held.push(vec![1; 1 << 20]);
                    std::hint::black_box(&held);
                }
            }
        }
        Ok(())
    }
}

fn main() {
    samza::run(Counter::default);
}
