//! Tests only: what becomes of a message's headers, timestamp and partition on its way through a task.

use task_api::{
    AsyncStreamTask, Header, Headers, InOrder, IncomingMessageEnvelope, MessageBatch, MessageCollector,
    OutgoingMessage, OwnedHeaders, OwnedMessage, Reply, StreamTask, TaskCoordinator, TaskResult,
    murmur2_partition,
};

use crate::asynchronous::OnRuntime;
use crate::clock::unix_ms;
use crate::contract::{Life, broker, job, model};
use crate::fake::Whole;
use crate::tests::folder;

const OUT_PARTITIONS: i32 = 4;

/// Sends on what comes, in slices of two, so that some messages must wait; the partition is chosen by the value.
struct Forwards;

impl StreamTask for Forwards {
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        if envelope.value == Some(b"bad") {
            return Err("it is bad".into());
        }
        assert_eq!(collector.partitions("kafka.out")?, OUT_PARTITIONS);
        let IncomingMessageEnvelope { key, value, timestamp_ms, headers, .. } = *envelope;
        let message = OutgoingMessage::new("kafka.out", key, value);
        collector.send(OutgoingMessage { partition_key: value, timestamp_ms, headers, ..message })
    }
    fn process_batch(
        &mut self,
        batch: &mut MessageBatch<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        for envelope in batch.take(2) {
            self.process(&envelope, collector, coordinator)?;
        }
        Ok(())
    }
}

/// The same, by way of a call.
struct ForwardsLater;

impl AsyncStreamTask for ForwardsLater {
    type Reply = OwnedMessage;
    fn call(&mut self, message: &OwnedMessage) -> Reply<OwnedMessage> {
        let message = message.clone();
        Box::pin(async move { Ok(message) })
    }
    fn process(
        &mut self,
        _: &OwnedMessage,
        message: OwnedMessage,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        if message.value.as_deref() == Some(b"bad") {
            return Err("it is bad".into());
        }
        let (key, value) = (message.key.as_deref(), message.value.as_deref());
        collector.send(OutgoingMessage {
            partition_key: value,
            timestamp_ms: message.timestamp_ms,
            headers: message.headers.get(),
            ..OutgoingMessage::new("kafka.out", key, value)
        })
    }
}

const BAD: u8 = 3;

/// Seven messages, the fourth of them bad, with headers that come twice, are null or are none.
fn sent() -> Vec<Whole> {
    let message = |n: u8| {
        let (name, text) = (format!("h{n}"), [n; 3]);
        let all = [Header::new(&name, &text), Header { name: b"h", value: None }, Header::new("h", b"")];
        Whole {
            key: (!n.is_multiple_of(3)).then(|| vec![n]),
            value: Some(if n == BAD { b"bad".to_vec() } else { n.to_string().into_bytes() }),
            timestamp_ms: (!n.is_multiple_of(2)).then_some(1_000 + u64::from(n)),
            headers: OwnedHeaders::of(Headers::new(&all[..usize::from(n) % 4])),
        }
    };
    (0..7).map(message).collect()
}

fn passes_on(forward: impl FnOnce(Life<'_>)) {
    let job = job("task = { inputs = [\"kafka.in\"], delivery = \"exactly-once\", concurrency = 2 }\n\
         errors = { process = \"dead-letter\", dead-letter = \"kafka.dead\" }");
    let (broker, state) = (broker(&job, &["in", "dead"], 1), folder());
    broker.topic("out", OUT_PARTITIONS);
    let (sent, began) = (sent(), unix_ms());
    sent.iter().for_each(|message| broker.append_whole("in", 0, message));
    forward(Life::new(&broker, &job, model(1, &["in"], &[]), state.path()));
    let chosen = |n: usize| murmur2_partition(n.to_string().as_bytes(), OUT_PARTITIONS);
    for partition in 0..OUT_PARTITIONS {
        let wanted: Vec<Whole> = (0..sent.len())
            .filter(|n| *n != usize::from(BAD) && chosen(*n) == partition)
            .map(|n| sent[n].clone())
            .collect();
        let mut passed = broker.committed_whole("out", partition);
        for message in &mut passed {
            // One without a time has that of its sending.
            message.timestamp_ms = message.timestamp_ms.filter(|time| *time < began);
        }
        assert_eq!(passed, wanted);
    }
    let dead = broker.committed_whole("dead", 0);
    let [dead] = dead.as_slice() else { panic!("{dead:?}") };
    let bad = &sent[usize::from(BAD)];
    assert_eq!((&dead.key, &dead.value, dead.timestamp_ms), (&bad.key, &bad.value, bad.timestamp_ms));
    let its_own = bad.headers.get().iter().count();
    assert!(dead.headers.get().iter().take(its_own).eq(bad.headers.get().iter()), "{dead:?}");
    let ours = dead.headers.get().iter().skip(its_own);
    let names: Vec<_> = ours.map(|h| String::from_utf8_lossy(h.name).into_owned()).collect();
    let told = ["stage", "error", "task", "stream", "partition", "offset", "timestamp"];
    assert_eq!(names, told.map(|name| format!("samza.{name}")));
}

#[test]
fn a_task_passes_on_headers_and_timestamps_and_partitions_by_another_key() {
    passes_on(|life| life.live(|| Forwards).expect("it ends in order"));
}

#[test]
fn an_asynchronous_task_passes_them_on_too() {
    let runtime = tokio::runtime::Runtime::new().expect("tokio starts");
    let factory = || InOrder::new(ForwardsLater, OnRuntime::new(runtime.handle().clone()));
    passes_on(|life| life.live(factory).expect("it ends in order"));
}
