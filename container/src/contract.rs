//! Tests only: what job.toml and `StreamTask` promise, on a whole container thread and a system in memory.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use task_api::metrics::MetricsRegistry;
use task_api::{
    AsyncStreamTask, DecodeError, InOrder, IncomingMessageEnvelope, MessageBatch, MessageCollector,
    OutgoingMessage, OwnedMessage, Reply, StreamTask, TaskContext, TaskCoordinator, TaskResult, Timers,
};
use types::{ContainerModel, JobSpec, JobTopics, SystemStream, SystemStreamPartition, TaskModel};

use crate::asynchronous::OnRuntime;
use crate::board::Board;
use crate::clock::{Clock, SetTime};
use crate::container::run_threads;
use crate::end::End;
use crate::fake::{Broker, FakeSystem};
use crate::tests::{checkpoints, folder, shared};

#[path = "contract/meters.rs"]
mod meters;
#[path = "contract/time.rs"]
mod time;

/// What happened, in order; shared by all tasks of a test.
pub(crate) type Story = Arc<Mutex<Vec<String>>>;

pub(crate) fn job(extra: &str) -> JobSpec {
    let text = format!(
        "job = {{ name = \"contract\" }}\npackage = {{ path = \"x\" }}\ncontainers = {{ memory = \"64MiB\" }}\n\
         systems.kafka = {{ type = \"kafka\", bootstrap = \"127.0.0.1:1\" }}\n{extra}"
    );
    job_file::parse(&text, "job.toml").unwrap_or_else(|problems| panic!("{problems}")).spec
}

/// Tasks `Partition 0..n`, each with partition n of `own` and every partition 0 of `broadcast`.
pub(crate) fn model(tasks: i32, own: &[&str], broadcast: &[&str]) -> ContainerModel {
    let input = |stream: &str, partition| SystemStreamPartition {
        stream: SystemStream { system: "kafka".into(), stream: stream.into() },
        partition,
    };
    let task = |n| TaskModel {
        name: format!("Partition {n}").as_str().into(),
        inputs: own.iter().map(|s| input(s, n)).chain(broadcast.iter().map(|s| input(s, 0))).collect(),
        changelog_partition: n,
        added: Vec::new(),
    };
    ContainerModel { tasks: (0..tasks).map(task).collect() }
}

pub(crate) fn broker(job: &JobSpec, topics: &[&str], partitions: i32) -> Broker {
    let broker = Broker::default();
    broker.topic(&JobTopics::of(&job.job).checkpoint, partitions);
    topics.iter().for_each(|topic| broker.topic(topic, partitions));
    job.stores.values().filter_map(|s| s.changelog.as_deref()).for_each(|log| broker.topic(log, partitions));
    broker
}

fn values(broker: &Broker, topic: &str) -> Vec<String> {
    let text = |value: Option<Vec<u8>>| String::from_utf8(value.unwrap_or_default()).expect("text");
    broker.committed(topic, 0).into_iter().map(|(_, _, value)| text(value)).collect()
}

/// One life of a container; it ends when everything is read, or, with `until_over`, by itself.
pub(crate) struct Life<'a> {
    pub(crate) broker: &'a Broker,
    pub(crate) job: &'a JobSpec,
    pub(crate) model: ContainerModel,
    pub(crate) state: &'a Path,
    pub(crate) seq: u64,
    pub(crate) until_over: bool,
    pub(crate) clock: Clock,
    pub(crate) metrics: MetricsRegistry,
}

impl<'a> Life<'a> {
    pub(crate) fn new(
        broker: &'a Broker,
        job: &'a JobSpec,
        model: ContainerModel,
        state: &'a Path,
    ) -> Life<'a> {
        let (clock, metrics) = (Clock::start(), MetricsRegistry::default());
        Life { broker, job, model, state, seq: 1, until_over: false, clock, metrics }
    }
    pub(crate) fn live<T: StreamTask>(self, factory: impl Fn() -> T + Send + Sync) -> Result<(), End> {
        let board = Arc::new(Board::default());
        let stop = (!self.until_over).then(|| Arc::clone(&board));
        let system = FakeSystem::new(self.broker, None, None, stop);
        let mut shared = shared(self.job, self.seq, self.state, &system, &board);
        (shared.clock, shared.metrics) = (self.clock, self.metrics);
        run_threads(&shared, &self.model, &factory).map(drop)
    }
}

pub(crate) fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

/// Tells the story of its messages; fails on the values "bad" and "undecodable".
pub(crate) struct Teller {
    story: Story,
    task: String,
    output: Option<String>,
}

impl Teller {
    pub(crate) fn of(story: &Story) -> impl Fn() -> Teller + Send + Sync + use<> {
        let story = Arc::clone(story);
        move || Teller { story: Arc::clone(&story), task: String::new(), output: None }
    }
    pub(crate) fn tell(&self, what: String) {
        self.story.lock().expect("no teller panics").push(what);
    }
}

impl StreamTask for Teller {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.task = context.task.0.replace("Partition ", "");
        self.output = context.config.get("output").cloned();
        context.metrics.counter("told").inc();
        Ok(())
    }
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        let value = text(envelope.value);
        match value.as_str() {
            "bad" => return Err("it is bad".into()),
            "undecodable" => return Err(DecodeError("no text".into()).into()),
            _ => self.tell(format!("{}:{}:{value}", self.task, envelope.source.stream.stream)),
        }
        match &self.output {
            Some(stream) => collector.send(OutgoingMessage::new(stream, envelope.key, envelope.value)),
            None => Ok(()),
        }
    }
    fn end_of_stream(&mut self, collector: &mut dyn MessageCollector, _: &mut TaskCoordinator) -> TaskResult {
        self.tell(format!("{}:end", self.task));
        match &self.output {
            Some(stream) => collector.send(OutgoingMessage::new(stream, None, Some(b"end"))),
            None => Ok(()),
        }
    }
}

pub(crate) fn told(story: &Story) -> Vec<String> {
    std::mem::take(&mut *story.lock().expect("no teller panics"))
}

pub(crate) fn fill(broker: &Broker, topic: &str, partition: i32, messages: &[&str]) {
    messages.iter().for_each(|text| broker.append(topic, partition, b"k", Some(text.as_bytes())));
}

pub(crate) const TEN: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

#[test]
fn a_bootstrap_stream_is_read_to_its_end_before_anything_else() {
    let job = job(
        "task = { inputs = [\"kafka.in\", \"kafka.boot\"] }\nstreams.\"kafka.boot\" = { bootstrap = true }",
    );
    let broker = broker(&job, &["in", "boot"], 2);
    for partition in 0..2 {
        fill(&broker, "in", partition, &TEN);
        fill(&broker, "boot", partition, &TEN);
    }
    let (story, state) = (Story::default(), folder());
    let life = Life::new(&broker, &job, model(2, &["in", "boot"], &[]), state.path());
    life.live(Teller::of(&story)).expect("it ends in order");
    let told = told(&story);
    let first_other =
        told.iter().position(|line| line.contains(":in:")).expect("the other stream is read too");
    assert_eq!((told.len(), first_other), (40, 20), "{told:?}");
}

#[test]
fn a_stream_of_higher_priority_goes_first() {
    let job = job(
        "task = { inputs = [\"kafka.in\", \"kafka.urgent\"] }\nstreams.\"kafka.urgent\" = { priority = 1 }",
    );
    let broker = broker(&job, &["in", "urgent"], 1);
    fill(&broker, "in", 0, &TEN);
    fill(&broker, "urgent", 0, &TEN);
    let (story, state) = (Story::default(), folder());
    let life = Life::new(&broker, &job, model(1, &["in", "urgent"], &[]), state.path());
    life.live(Teller::of(&story)).expect("it ends in order");
    let told = told(&story);
    assert_eq!(told.len(), 20);
    assert!(told[..10].iter().all(|line| line.contains(":urgent:")), "{told:?}");
}

#[test]
fn a_broadcast_stream_goes_to_every_task_once_also_after_a_restart() {
    let job = job(
        "task = { inputs = [\"kafka.in\", \"kafka.all\"] }\nstreams.\"kafka.all\" = { broadcast = true }",
    );
    let broker = broker(&job, &["in", "all"], 3);
    let (story, state) = (Story::default(), folder());
    for (seq, words) in [(1, ["a", "b"]), (2, ["c", "d"])] {
        fill(&broker, "all", 0, &words);
        let life = Life { seq, ..Life::new(&broker, &job, model(3, &["in"], &["all"]), state.path()) };
        life.live(Teller::of(&story)).expect("it ends in order");
        let told = told(&story);
        for task in 0..3 {
            let of_task: Vec<_> = told.iter().filter(|line| line.starts_with(&format!("{task}:"))).collect();
            assert_eq!(of_task, [&format!("{task}:all:{}", words[0]), &format!("{task}:all:{}", words[1])]);
        }
    }
}

#[test]
fn a_bounded_input_ends_and_with_the_last_one_the_container() {
    let job = job(
        "task = { inputs = [\"kafka.in\"], config = { output = \"kafka.out\" } }\nstreams.\"kafka.in\" = { bounded = true }",
    );
    let broker = broker(&job, &["in", "out"], 2);
    fill(&broker, "in", 0, &["a", "b"]);
    let (story, state) = (Story::default(), folder());
    let life = Life { until_over: true, ..Life::new(&broker, &job, model(2, &["in"], &[]), state.path()) };
    life.live(Teller::of(&story)).expect("it ends by itself");
    let mut told = told(&story);
    told.sort();
    assert_eq!(told, ["0:end", "0:in:a", "0:in:b", "1:end"]);
    let sent = (0..2).flat_map(|partition| broker.committed("out", partition));
    assert_eq!(sent.filter(|(_, _, value)| value.as_deref() == Some(b"end")).count(), 2);
    let again =
        Life { until_over: true, seq: 2, ..Life::new(&broker, &job, model(2, &["in"], &[]), state.path()) };
    again.live(Teller::of(&story)).expect("it ends by itself again");
}

fn errors(policy: &str) -> JobSpec {
    job(&format!(
        "task = {{ inputs = [\"kafka.in\"], delivery = \"exactly-once\", config = {{ output = \"kafka.out\" }} }}\n\
         errors = {{ {policy}, dead-letter = \"kafka.dead\" }}"
    ))
}

#[test]
fn errors_are_skipped_or_sent_away_by_their_stage() {
    let job = errors("process = \"skip\", decode = \"dead-letter\", send = \"skip\"");
    let broker = broker(&job, &["in", "out", "dead"], 1);
    let large = "x".repeat(2_000);
    fill(&broker, "in", 0, &["a", "bad", "undecodable", &large, "b"]);
    let (story, state, metrics) = (Story::default(), folder(), MetricsRegistry::default());
    let life =
        Life { metrics: metrics.clone(), ..Life::new(&broker, &job, model(1, &["in"], &[]), state.path()) };
    life.live(Teller::of(&story)).expect("nothing of it ends the container");
    assert_eq!(values(&broker, "out"), ["a", "b"]);
    assert_eq!(values(&broker, "dead"), ["undecodable"]);
    let text = metrics.render();
    for line in [
        "samza_errors_total{stream=\"kafka.in\",stage=\"process\",outcome=\"skipped\"} 1",
        "samza_errors_total{stream=\"kafka.in\",stage=\"process\",outcome=\"failed\"} 0",
        "samza_errors_total{stream=\"kafka.in\",stage=\"decode\",outcome=\"dead-lettered\"} 1",
        "samza_errors_total{stream=\"kafka.in\",stage=\"decode\",outcome=\"skipped\"} 0",
        "samza_errors_total{stream=\"kafka.out\",stage=\"send\",outcome=\"skipped\"} 1",
        "told{task=\"Partition 0\"} 1",
        "samza_task_messages_processed_total{task=\"Partition 0\"} 5",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_refused_output_is_an_error_unless_the_job_says_otherwise() {
    let large = "x".repeat(2_000);
    for (policy, dead) in [("send = \"dead-letter\"", Some("")), ("process = \"dead-letter\"", None)] {
        let job = errors(policy);
        let broker = broker(&job, &["in", "out", "dead"], 1);
        fill(&broker, "in", 0, &["a", &large]);
        let (story, state) = (Story::default(), folder());
        let ended = Life::new(&broker, &job, model(1, &["in"], &[]), state.path()).live(Teller::of(&story));
        match dead {
            Some(value) => {
                ended.expect("it goes on");
                assert_eq!(values(&broker, "dead"), [value], "what does not fit goes without its value");
            }
            None => assert!(matches!(ended, Err(End::Failed(_))), "{ended:?}"),
        }
    }
}

#[test]
fn messages_that_are_gone_fail_the_container_with_the_way_out_or_are_passed_over() {
    let inputs = "task = { inputs = [\"kafka.in\"] }";
    let job = job(inputs);
    let before = broker(&job, &["in"], 1);
    fill(&before, "in", 0, &TEN);
    let (story, state) = (Story::default(), folder());
    Life::new(&before, &job, model(1, &["in"], &[]), state.path()).live(Teller::of(&story)).expect("ends");
    told(&story);
    before.topic("in", 1);
    fill(&before, "in", 0, &["new"]);
    let second = Life { seq: 2, ..Life::new(&before, &job, model(1, &["in"], &[]), state.path()) };
    let Err(End::Failed(why)) = second.live(Teller::of(&story)) else { panic!("it must not guess") };
    assert!(
        why.contains("in-0 at 10") && why.contains("samza checkpoint job.toml --set kafka.in=oldest"),
        "{why}"
    );
    let job = self::job(&format!("{inputs}\nstreams.\"kafka.in\" = {{ offset-lost = \"oldest\" }}"));
    let third = Life { seq: 3, ..Life::new(&before, &job, model(1, &["in"], &[]), state.path()) };
    third.live(Teller::of(&story)).expect("it goes on");
    assert_eq!(told(&story), ["0:in:new"]);
}

/// Sets a timer for each message, a second later, and tells when it goes off.
struct Alarm {
    teller: Teller,
    timers: Option<Timers>,
    now: Option<task_api::TaskClock>,
}

impl StreamTask for Alarm {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        (self.timers, self.now) = (Some(context.timers()?), Some(context.clock.clone()));
        Ok(())
    }
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        let now = self.now.as_ref().map_or(0, task_api::TaskClock::now_unix_ms);
        self.timers.as_ref().expect("init ran").set(envelope.value.unwrap_or_default(), now + 1_000)?;
        Ok(())
    }
    fn timer(
        &mut self,
        key: &[u8],
        due_unix_ms: u64,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        self.teller.tell(format!("{} at {due_unix_ms}", text(Some(key))));
        Ok(())
    }
}

#[test]
fn timers_survive_a_restart_and_go_off_once() {
    let job = job("task = { inputs = [\"kafka.in\"], timers = true }");
    let broker = broker(&job, &["in"], 1);
    fill(&broker, "in", 0, &["a"]);
    let (story, time) = (Story::default(), SetTime::at(5_000));
    let live = |seq| {
        // A disk of its own each time: the timers come from the changelog.
        let state = folder();
        let clock = Clock::Set(Arc::clone(&time));
        let life = Life { seq, clock, ..Life::new(&broker, &job, model(1, &["in"], &[]), state.path()) };
        let alarm = Teller::of(&story);
        life.live(move || Alarm { teller: alarm(), timers: None, now: None }).expect("it ends in order");
        told(&story)
    };
    assert_eq!(live(1), Vec::<String>::new());
    time.set(5_999);
    fill(&broker, "in", 0, &["b"]);
    assert_eq!(live(2), Vec::<String>::new());
    time.set(7_000);
    assert_eq!(live(3), ["a at 6000", "b at 6999"]);
    assert_eq!(live(4), Vec::<String>::new());
}

/// Takes two messages at a time.
struct Pairs(Teller);

impl StreamTask for Pairs {
    fn process(
        &mut self,
        _: &IncomingMessageEnvelope<'_>,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        Err("it takes slices".into())
    }
    fn process_batch(
        &mut self,
        batch: &mut MessageBatch<'_>,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        let pair = batch.take_slice(2);
        self.0.tell(pair.iter().map(|message| text(message.value)).collect::<Vec<_>>().join("+"));
        Ok(())
    }
}

#[test]
fn a_task_that_takes_part_of_a_batch_gets_the_rest_in_order() {
    let job = job("task = { inputs = [\"kafka.in\"] }");
    let broker = broker(&job, &["in"], 1);
    fill(&broker, "in", 0, &TEN);
    let (story, state) = (Story::default(), folder());
    let pairs = Teller::of(&story);
    Life::new(&broker, &job, model(1, &["in"], &[]), state.path())
        .live(move || Pairs(pairs()))
        .expect("ends");
    // The system hands over three at a time.
    assert_eq!(told(&story), ["0+1", "2", "3+4", "5", "6+7", "8", "9"]);
}

/// Answers each message after a while that is shorter for later ones; fails on "bad".
struct Slow {
    teller: Teller,
    most: Arc<AtomicU64>,
    now: Arc<AtomicU64>,
}

impl AsyncStreamTask for Slow {
    type Reply = String;

    fn call(&mut self, message: &OwnedMessage) -> Reply<String> {
        let (value, most, now) =
            (text(message.value.as_deref()), Arc::clone(&self.most), Arc::clone(&self.now));
        let wait = 20_u64.saturating_sub(2 * message.offset);
        Box::pin(async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            if value == "bad" { Err("it is bad".into()) } else { Ok(value) }
        })
    }
    fn process(
        &mut self,
        message: &OwnedMessage,
        reply: String,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        self.teller.tell(reply.clone());
        collector.send(OutgoingMessage::new("kafka.out", message.key.as_deref(), Some(reply.as_bytes())))
    }
}

#[test]
fn calls_wait_side_by_side_and_their_replies_are_taken_in_order() {
    let job = job("task = { inputs = [\"kafka.in\"], concurrency = 4, delivery = \"exactly-once\" }\n\
         errors = { process = \"dead-letter\", dead-letter = \"kafka.dead\" }");
    let broker = broker(&job, &["in", "out", "dead"], 1);
    fill(&broker, "in", 0, &["0", "1", "bad", "3", "4", "5", "6", "7"]);
    let (story, state, most) = (Story::default(), folder(), Arc::new(AtomicU64::new(0)));
    let runtime = tokio::runtime::Runtime::new().expect("tokio starts");
    let (handle, seen, teller) = (runtime.handle().clone(), Arc::clone(&most), Teller::of(&story));
    let now = Arc::new(AtomicU64::new(0));
    let factory = move || {
        let task = Slow { teller: teller(), most: Arc::clone(&seen), now: Arc::clone(&now) };
        InOrder::new(task, OnRuntime::new(handle.clone()))
    };
    Life::new(&broker, &job, model(1, &["in"], &[]), state.path()).live(factory).expect("it ends in order");
    assert_eq!(told(&story), ["0", "1", "3", "4", "5", "6", "7"]);
    assert_eq!(values(&broker, "out"), ["0", "1", "3", "4", "5", "6", "7"]);
    assert_eq!(values(&broker, "dead"), ["bad"]);
    let most = most.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most} at once");
}

#[test]
fn an_input_that_is_kept_in_memory_is_read_anew_at_each_start_and_before_all_else() {
    let job = job("task = { inputs = [\"kafka.in\", \"kafka.rules\"] }\n\
         streams.\"kafka.rules\" = { bootstrap = true, reset-offset = true }");
    let broker = broker(&job, &["in", "rules"], 1);
    fill(&broker, "rules", 0, &["r1", "r2"]);
    fill(&broker, "in", 0, &["a"]);
    let story = Story::default();
    for (seq, expected) in [(1, "0:in:a"), (2, "0:in:b")] {
        let state = folder();
        let life = Life::new(&broker, &job, model(1, &["in", "rules"], &[]), state.path());
        Life { seq, ..life }.live(Teller::of(&story)).expect("it ends in order");
        assert_eq!(told(&story), ["0:rules:r1", "0:rules:r2", expected]);
        fill(&broker, "in", 0, &["b"]);
    }
}

#[test]
fn a_partition_that_was_added_is_read_from_its_beginning_where_the_default_is_newest() {
    let job =
        job("task = { inputs = [\"kafka.in\"] }\nstreams.\"kafka.in\" = { offset-default = \"newest\" }");
    let broker = broker(&job, &["in"], 1);
    fill(&broker, "in", 0, &["came", "meanwhile"]);
    let (story, state) = (Story::default(), folder());
    let mut grown = model(1, &["in"], &[]);
    grown.tasks[0].added = grown.tasks[0].inputs.clone();
    for seq in [1, 2] {
        let life = Life::new(&broker, &job, grown.clone(), state.path());
        Life { seq, ..life }.live(Teller::of(&story)).expect("it ends in order");
    }
    assert_eq!(told(&story), ["0:in:came", "0:in:meanwhile"], "once");
}

#[test]
fn nothing_is_sent_to_a_stream_that_a_pattern_of_the_inputs_matches() {
    let job = job("task = { inputs = [\"kafka./in.*/\"], config = { output = \"kafka.in-again\" } }");
    let broker = broker(&job, &["in", "in-again"], 1);
    fill(&broker, "in", 0, &["a"]);
    let (story, state) = (Story::default(), folder());
    let ended = Life::new(&broker, &job, model(1, &["in"], &[]), state.path()).live(Teller::of(&story));
    let Err(End::Failed(why)) = ended else { panic!("it would come round: {ended:?}") };
    assert!(why.contains("the input kafka./in.*/ matches stream `kafka.in-again`"), "{why}");
}
