//! Test kit and runtime are one in what they mean: the same scenarios, as data, run on both, and what can be seen from
//! outside is compared after every step.
//!
//! On the runtime's side its own thread plays the scenario: whenever it has read everything, the system in memory takes
//! the next step. Time moves in ticks there, so that windows and timers that lie between go off one by one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proptest::prelude::*;
use task_api::testkit::{START_UNIX_MS, TestKit};
use task_api::{
    BytesSerde, DecodeError, I64Serde, IncomingMessageEnvelope, KeyValueStore, MessageCollector,
    OutgoingMessage, StreamTask, StringSerde, TaskClock, TaskContext, TaskCoordinator, TaskResult, Timers,
};
use task_core::record::{self, Record};
use types::{JobSpec, JobTopics};

use crate::board::Board;
use crate::clock::{Clock, SetTime};
use crate::container::run_threads;
use crate::end::End;
use crate::fake::{Broker, FakeSystem, Idle};
use crate::tests::{PARTITIONS, folder, model, shared};

/// Every time in a scenario is a multiple of it.
const TICK_MS: u64 = 500;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A message arrives: partition, key, value.
    Send(i32, &'static str, &'static str),
    /// What is there is processed.
    Run,
    /// So many ticks pass.
    Advance(u64),
    /// The container crashes and starts again.
    Crash,
    /// Every input ends.
    End,
}
use Step::{Advance, Crash, End as Over, Run, Send};

/// A task that does what messages tell it to.
#[derive(Default)]
struct Obeys {
    counts: Option<KeyValueStore<String, i64>>,
    timers: Option<Timers>,
    clock: TaskClock,
}

impl Obeys {
    fn count(&mut self, key: &str, collector: &mut dyn MessageCollector) -> TaskResult {
        let counts = self.counts.as_mut().expect("init has run");
        let count = counts.get(&key.to_owned())?.unwrap_or(0) + 1;
        counts.put(&key.to_owned(), &count)?;
        let text = count.to_string();
        collector.send(OutgoingMessage::new("kafka.out", Some(key.as_bytes()), Some(text.as_bytes())))
    }
}

impl StreamTask for Obeys {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.counts = Some(context.store("counts", StringSerde, I64Serde)?);
        self.timers = Some(context.timers()?);
        self.clock = context.clock.clone();
        Ok(())
    }
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let key = std::str::from_utf8(envelope.key.unwrap_or_default())?;
        let value = std::str::from_utf8(envelope.value.unwrap_or_default())?;
        match value {
            "delete" => return Ok(self.counts.as_mut().expect("init has run").delete(&key.to_owned())?),
            "commit" => coordinator.commit(),
            "shutdown" => coordinator.shutdown(),
            "fail" => return Err("as told".into()),
            "unreadable" => return Err(DecodeError("as told".into()).into()),
            "large" => {
                let large = "x".repeat(2_000);
                collector.send(OutgoingMessage::new("kafka.out", Some(b"large"), Some(large.as_bytes())))?;
            }
            "unknown" => collector.send(OutgoingMessage::new("nowhere.x", None, None))?,
            "timer" => {
                let due = self.clock.now_unix_ms() + 3 * TICK_MS;
                self.timers.as_ref().expect("init has run").set(key.as_bytes(), due)?;
            }
            _ => {}
        }
        self.count(key, collector)
    }
    fn window(&mut self, collector: &mut dyn MessageCollector, _: &mut TaskCoordinator) -> TaskResult {
        let rows = self.counts.as_mut().expect("init has run").all()?.count().to_string();
        collector.send(OutgoingMessage::new("kafka.events", Some(b"window"), Some(rows.as_bytes())))
    }
    fn timer(
        &mut self,
        key: &[u8],
        due_unix_ms: u64,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        if key == b"bad" {
            return Err("a bad timer".into());
        }
        let text = (due_unix_ms - START_UNIX_MS).to_string();
        collector.send(OutgoingMessage::new("kafka.events", Some(key), Some(text.as_bytes())))
    }
    fn end_of_stream(&mut self, collector: &mut dyn MessageCollector, _: &mut TaskCoordinator) -> TaskResult {
        collector.send(OutgoingMessage::new("kafka.events", Some(b"end"), Some(b"of stream")))
    }
}

/// The job: `task` are further lines of `[task]`, `rest` further sections.
fn job(task: &str, rest: &str) -> JobSpec {
    let text = format!(
        r#"
        job = {{ name = "obeys" }}
        package = {{ path = "obeys" }}
        containers = {{ memory = "64MiB" }}
        systems.kafka = {{ type = "kafka", bootstrap = "127.0.0.1:1" }}
        task = {{ inputs = ["kafka.in"], timers = true, {task} }}
        {rest}
        "#
    );
    job_file::parse(&text, "job.toml").expect("a job file").spec
}

const OUTPUTS: [(&str, i32); 3] = [("out", PARTITIONS), ("events", 1), ("failed", 1)];

/// Key and value; none is a tombstone.
type Row = (Vec<u8>, Option<Vec<u8>>);

/// What can be seen from outside after a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Seen {
    step: usize,
    /// By stream and partition, in their order.
    outputs: Vec<Vec<Row>>,
    /// By task: the next offset in its checkpoint.
    positions: Vec<Option<u64>>,
    /// Why the container has failed in this step.
    failed: Option<String>,
}

type Stores = Vec<Vec<(Vec<u8>, Vec<u8>)>>;

fn on_kit(job: &JobSpec, steps: &[Step]) -> (Vec<Seen>, Stores) {
    let mut kit = TestKit::of_job(job.clone(), PARTITIONS, Obeys::default).max_message(1_000);
    for (stream, partitions) in OUTPUTS {
        kit = kit.output(&format!("kafka.{stream}"), partitions);
    }
    let mut seen = Vec::new();
    kit.crash();
    for (at, step) in steps.iter().enumerate() {
        let was_running = kit.is_running();
        let done = match *step {
            Send(partition, key, value) => {
                kit.send_to("kafka.in", partition, Some(key), value);
                continue;
            }
            Advance(ticks) => kit.try_advance(Duration::from_millis(ticks * TICK_MS)),
            Crash => {
                kit.crash();
                kit.try_run()
            }
            Run if was_running => kit.try_run(),
            Over if was_running => kit.try_end(),
            Run | Over => Ok(()),
        };
        let failed = done.err().filter(|_| was_running || *step == Crash).map(|failure| failure.to_string());
        let outputs = OUTPUTS.iter().flat_map(|(stream, partitions)| {
            let all = kit.outputs(&format!("kafka.{stream}"));
            (0..*partitions).map(move |partition| {
                let mine = all.iter().filter(|output| output.partition == partition);
                mine.map(|output| (output.key.clone().unwrap_or_default(), output.value.clone())).collect()
            })
        });
        let outputs = outputs.collect();
        let positions = (0..PARTITIONS).map(|n| kit.task(n as usize).committed("kafka.in", n)).collect();
        seen.push(Seen { step: at, outputs, positions, failed });
    }
    let rows = |n| {
        let all = kit.task(n).store("counts", BytesSerde, BytesSerde).all().expect("rows");
        all.map(|row| row.expect("a row")).collect()
    };
    (seen, (0..PARTITIONS as usize).map(rows).collect())
}

/// The runtime's side.
struct Script {
    broker: Broker,
    checkpoints: String,
    clock: Arc<SetTime>,
    steps: VecDeque<(usize, Step)>,
    /// The step that is under way and the ticks that are left of it.
    under_way: Option<(usize, u64)>,
    seen: Vec<Seen>,
}

impl Script {
    /// The runtime has read everything.
    fn next(&mut self) -> Idle {
        if let Some((_, ticks @ 1..)) = &mut self.under_way {
            *ticks -= 1;
            self.tick();
            return Idle::GoesOn;
        }
        self.done(None);
        while let Some((at, step)) = self.steps.pop_front() {
            self.under_way = Some((at, 0));
            match step {
                Send(partition, key, value) => self.send(partition, key, value),
                Run => return Idle::GoesOn,
                Advance(ticks) => {
                    self.under_way = Some((at, ticks));
                    return Idle::GoesOn;
                }
                Crash => return Idle::Crashes,
                Over => return Idle::Ends,
            }
        }
        self.under_way = None;
        Idle::Crashes
    }

    /// No container runs: everything up to the next crash. False if there is none.
    fn alone(&mut self, failed: Option<String>) -> bool {
        self.ticks_left();
        self.done(failed);
        while let Some((at, step)) = self.steps.pop_front() {
            self.under_way = Some((at, 0));
            match step {
                Send(partition, key, value) => self.send(partition, key, value),
                Advance(ticks) => {
                    self.under_way = Some((at, ticks));
                    self.ticks_left();
                    self.done(None);
                }
                Crash => return true,
                Run | Over => self.done(None),
            }
        }
        false
    }

    fn ticks_left(&mut self) {
        if let Some((_, ticks)) = &mut self.under_way {
            let left = std::mem::take(ticks);
            (0..left).for_each(|_| self.tick());
        }
    }

    fn tick(&mut self) {
        self.clock.advance(TICK_MS);
    }

    fn send(&mut self, partition: i32, key: &str, value: &str) {
        self.broker.append("in", partition, key.as_bytes(), Some(value.as_bytes()));
        self.under_way = None;
    }

    /// Takes note of what can be seen after the step that is under way.
    fn done(&mut self, failed: Option<String>) {
        let Some((step, _)) = self.under_way.take() else { return };
        let rows = |(stream, partitions): &(&str, i32)| -> Vec<Vec<Row>> {
            let of = |partition| self.broker.committed(stream, partition);
            (0..*partitions)
                .map(|p| of(p).into_iter().map(|(_, key, value)| (key, value)).collect())
                .collect()
        };
        let outputs = OUTPUTS.iter().flat_map(rows).collect();
        let position = |partition| {
            let records = self.broker.committed(&self.checkpoints, partition);
            let last = records.iter().rev().find_map(|(_, key, value)| {
                match record::decode(Some(key), value.as_deref()) {
                    Some(Record::Checkpoint(_, checkpoint)) => Some(checkpoint),
                    _ => None,
                }
            });
            last.and_then(|checkpoint| checkpoint.offset("kafka.in", partition)?.parse().ok())
        };
        let positions = (0..PARTITIONS).map(position).collect();
        self.seen.push(Seen { step, outputs, positions, failed });
    }
}

fn lock(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().expect("no panic")
}

fn on_runtime(job: &JobSpec, steps: &[Step]) -> (Vec<Seen>, Stores) {
    let broker = Broker::default();
    let checkpoints = JobTopics::of(&job.job).checkpoint;
    broker.topic("in", PARTITIONS);
    broker.topic(&checkpoints, PARTITIONS);
    OUTPUTS.iter().for_each(|(stream, partitions)| broker.topic(stream, *partitions));
    let changelogs = job.stores.values().filter_map(|store| store.changelog.as_deref());
    changelogs.for_each(|topic| broker.topic(topic, PARTITIONS));
    let clock = SetTime::at(START_UNIX_MS);
    let script = Arc::new(Mutex::new(Script {
        broker: broker.clone(),
        checkpoints,
        clock: Arc::clone(&clock),
        steps: steps.iter().copied().enumerate().collect(),
        under_way: None,
        seen: Vec::new(),
    }));
    let state = folder();
    for seq in 1.. {
        if !one_life(job, &broker, &script, seq, state.path(), &clock) {
            break;
        }
    }
    let log = job.stores["counts"].changelog.clone().expect("it has one");
    let fold = |partition| {
        let mut rows = BTreeMap::new();
        for (_, key, value) in broker.committed(&log, partition) {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        rows.into_iter().collect()
    };
    let stores = (0..PARTITIONS).map(fold).collect();
    let seen = std::mem::take(&mut lock(&script).seen);
    (seen, stores)
}

/// Runs a container until it ends; returns whether there is another.
fn one_life(
    job: &JobSpec,
    broker: &Broker,
    script: &Arc<Mutex<Script>>,
    seq: u64,
    state: &Path,
    clock: &Arc<SetTime>,
) -> bool {
    let asked = Arc::clone(script);
    let system = FakeSystem::asking(broker, Box::new(move || lock(&asked).next()));
    let mut shared = shared(job, seq, state, &system, &Arc::new(Board::default()));
    shared.clock = Clock::Set(Arc::clone(clock));
    let ended = run_threads(&shared, &model(), &Obeys::default);
    let mut script = lock(script);
    if system.has_crashed() {
        return script.under_way.is_some();
    }
    script.alone(match ended {
        Ok(_) => None,
        Err(End::Failed(why)) => Some(why),
        Err(end) => panic!("it cannot end so: {end}"),
    })
}

fn assert_same(job: &JobSpec, steps: &[Step]) {
    let (kit, kit_stores) = on_kit(job, steps);
    let (runtime, runtime_stores) = on_runtime(job, steps);
    let last = steps.iter().rposition(|step| !matches!(step, Send(..)));
    assert_eq!(runtime.last().map(|seen| seen.step), last, "every step was seen");
    for (kit, runtime) in kit.iter().zip(&runtime) {
        assert_eq!(kit, runtime, "test kit (left) and runtime (right) after step {} of {steps:?}", kit.step);
    }
    assert_eq!(kit.len(), runtime.len());
    assert_eq!(kit_stores, runtime_stores, "stores of test kit (left) and runtime (right) after {steps:?}");
}

const BOTH: [&str; 2] = ["at-least-once", "exactly-once"];

#[test]
fn windows_timers_and_commits_come_in_the_same_order_and_a_crash_takes_the_same_back() {
    for delivery in BOTH {
        let job = job(
            &format!("window = \"2s\", commit = \"1500ms\", delivery = \"{delivery}\""),
            "stores.counts = {}",
        );
        assert_same(
            &job,
            &[
                Send(0, "a", "x"),
                Send(0, "b", "timer"),
                Run,
                Advance(2),
                Send(1, "c", "timer"),
                Run,
                Advance(3),
                Send(0, "a", "delete"),
                Run,
                Crash,
                Advance(9),
                Send(1, "c", "commit"),
                Send(1, "c", "x"),
                Run,
                Crash,
                Crash,
                Advance(1),
                Over,
            ],
        );
    }
}

#[test]
fn a_shutdown_ends_the_container_after_its_message_and_the_next_one_goes_on() {
    for delivery in BOTH {
        let job = job(&format!("commit = \"10s\", delivery = \"{delivery}\""), "stores.counts = {}");
        let steps =
            [Send(0, "a", "x"), Send(0, "a", "shutdown"), Send(0, "a", "x"), Run, Advance(3), Crash, Over];
        assert_same(&job, &steps);
    }
}

#[test]
fn errors_end_the_container_with_the_same_words_or_are_left_out_alike() {
    let policies = [
        "",
        "errors = { decode = \"skip\", process = \"skip\", send = \"skip\" }",
        "errors = { decode = \"dead-letter\", process = \"dead-letter\", send = \"dead-letter\", dead-letter = \"kafka.failed\" }",
    ];
    for (delivery, policy) in BOTH.iter().flat_map(|delivery| policies.map(|policy| (delivery, policy))) {
        let job = job(
            &format!("commit = \"1s\", delivery = \"{delivery}\""),
            &format!("stores.counts = {{}}\n{policy}"),
        );
        for value in ["fail", "unreadable", "large", "unknown"] {
            let steps = [
                Send(0, "a", "commit"),
                Run,
                Send(0, "a", "x"),
                Send(0, "a", value),
                Run,
                Advance(2),
                Crash,
                Over,
            ];
            assert_same(&job, &steps);
        }
        assert_same(&job, &[Send(0, "bad", "timer"), Run, Advance(4), Crash, Over]);
    }
}

#[test]
fn rows_end_and_caches_fill_alike() {
    let stores = "stores.counts = { ttl = \"2s\", cache-rows = 2 }";
    let job = job("commit = \"1h\", window = \"1s\"", stores);
    let steps = [
        Send(0, "a", "x"),
        Run,
        Advance(2),
        Send(0, "b", "x"),
        Send(0, "c", "x"),
        Run,
        Advance(2),
        Send(0, "a", "x"),
        Run,
        Crash,
        Advance(3),
        Over,
    ];
    let (kit, _) = on_kit(&job, &steps);
    let (runtime, _) = on_runtime(&job, &steps);
    assert_eq!(kit, runtime);
}

/// Steps whose messages are of `partitions` and have one of `values`.
fn step(partitions: std::ops::Range<i32>, values: Vec<&'static str>) -> impl Strategy<Value = Vec<Step>> {
    let key = prop::sample::select(vec!["a", "b", "c", "bad"]);
    let messages = prop::collection::vec((key, prop::sample::select(values)), 1..=3);
    let burst = (partitions, messages).prop_map(|(partition, messages)| {
        let mut steps: Vec<_> =
            messages.into_iter().map(|(key, value)| Send(partition, key, value)).collect();
        steps.push(Run);
        steps
    });
    prop_oneof![
        6 => burst,
        3 => (1..6u64).prop_map(|ticks| vec![Advance(ticks)]),
        2 => Just(vec![Crash]),
    ]
}

fn random_job(delivery: &str, policy: &str) -> JobSpec {
    let letters = if policy == "dead-letter" { ", dead-letter = \"kafka.failed\"" } else { "" };
    job(
        &format!("commit = \"1s\", window = \"1500ms\", delivery = \"{delivery}\""),
        &format!(
            "stores.counts = {{ cache-rows = 3 }}\nerrors = {{ decode = \"{policy}\", process = \"{policy}\", \
             send = \"{policy}\"{letters} }}"
        ),
    )
}

/// Outputs by key, each in its order.
type ByKey = BTreeMap<Vec<u8>, Vec<Option<Vec<u8>>>>;

/// The counts that were sent, as they are after the last step.
fn by_key(seen: &[Seen]) -> ByKey {
    let mut outputs = ByKey::new();
    let last = seen.last().expect("a scenario has steps");
    for (key, value) in last.outputs[..PARTITIONS as usize].iter().flatten().cloned() {
        outputs.entry(key).or_default().push(value);
    }
    outputs
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Of one partition, so that there is one order only.
    #[test]
    fn random_scenarios_look_the_same_after_every_step(
        steps in prop::collection::vec(
            step(0..1, vec![
                "x", "x", "x", "delete", "commit", "timer", "timer", "fail", "unreadable", "large", "shutdown",
            ]),
            1..14,
        ),
        delivery in prop::sample::select(BOTH.to_vec()),
        policy in prop::sample::select(vec!["fail", "skip", "dead-letter"]),
    ) {
        let mut steps = steps.concat();
        steps.extend([Crash, Over]);
        assert_same(&random_job(delivery, policy), &steps);
    }

    /// Of several partitions, which are read in any order after a crash.
    #[test]
    fn random_scenarios_of_several_partitions_come_to_the_same(
        steps in prop::collection::vec(
            step(0..PARTITIONS, vec!["x", "x", "x", "delete", "commit", "fail", "unreadable"]), 1..14,
        ),
        delivery in prop::sample::select(BOTH.to_vec()),
    ) {
        // A key is of one partition, as it is wherever keys choose partitions.
        let of_key = |step| match step {
            Send(0, "a", value) => Send(0, "d", value),
            Send(0, "b", value) => Send(0, "e", value),
            Send(0, _, value) => Send(0, "f", value),
            step => step,
        };
        let mut steps: Vec<Step> = steps.concat().into_iter().map(of_key).collect();
        steps.extend([Crash, Over]);
        let job = random_job(delivery, "skip");
        let ((kit, kit_stores), (runtime, runtime_stores)) = (on_kit(&job, &steps), on_runtime(&job, &steps));
        prop_assert_eq!(kit_stores, runtime_stores);
        let (kit, runtime) = (by_key(&kit), by_key(&runtime));
        if delivery == "exactly-once" {
            prop_assert_eq!(kit, runtime);
        } else {
            let kinds = |outputs: ByKey| {
                let each = |(key, values): (Vec<u8>, Vec<_>)| values.into_iter().map(move |v| (key.clone(), v));
                outputs.into_iter().flat_map(each).collect::<BTreeSet<_>>()
            };
            prop_assert_eq!(kinds(kit), kinds(runtime));
        }
    }
}
