//! Tests only: what holds of reading, on a whole container thread and a system in memory: nothing that a task did not get
//! is ever passed over, and nothing waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use task_api::{
    AsyncStreamTask, InOrder, IncomingMessageEnvelope, MessageBatch, MessageCollector, OwnedMessage, Reply,
    StreamTask, TaskCoordinator, TaskResult,
};
use types::JobSpec;

use crate::asynchronous::OnRuntime;
use crate::contract::{Life, Story, TEN, Teller, broker, fill, job, model, text, told};
use crate::fake::Broker;
use crate::tests::{checkpoints, folder};

fn position(broker: &Broker, job: &JobSpec, stream: &str, partition: i32) -> Option<String> {
    checkpoints(broker, job, partition).last()?.offset(stream, 0).map(str::to_owned)
}

/// Runs the job until it has read everything; what its tasks tell.
fn live(broker: &Broker, job: &JobSpec, seq: u64, own: &[&str]) -> Vec<String> {
    let (story, state) = (Story::default(), folder());
    let life = Life { seq, ..Life::new(broker, job, model(1, own, &[]), state.path()) };
    life.live(Teller::of(&story)).expect("it ends in order");
    told(&story)
}

fn lines(stream: &str, values: &[&str]) -> Vec<String> {
    values.iter().map(|value| format!("0:{stream}:{value}")).collect()
}

const PRIORITIES: &str =
    "task = { inputs = [\"kafka.in\", \"kafka.urgent\"] }\nstreams.\"kafka.urgent\" = { priority = 1 }";

#[test]
fn an_open_transaction_in_a_stream_of_higher_priority_holds_up_nobody() {
    let job = job(PRIORITIES);
    let broker = broker(&job, &["in", "urgent"], 1);
    fill(&broker, "urgent", 0, &TEN);
    broker.append_open("upstream", "urgent", 0, b"undecided");
    fill(&broker, "urgent", 0, &["behind it"]);
    fill(&broker, "in", 0, &TEN);
    let told = live(&broker, &job, 1, &["in", "urgent"]);
    assert_eq!(told, [lines("urgent", &TEN), lines("in", &TEN)].concat());
    broker.decide("upstream", true);
    assert_eq!(live(&broker, &job, 2, &["in", "urgent"]), lines("urgent", &["undecided", "behind it"]));
}

#[test]
fn an_open_transaction_in_a_bootstrap_stream_holds_up_nobody() {
    let job = job("task = { inputs = [\"kafka.in\", \"kafka.boot\"] }\n\
                   streams.\"kafka.boot\" = { bootstrap = true }");
    let broker = broker(&job, &["in", "boot"], 1);
    fill(&broker, "boot", 0, &TEN);
    broker.append_open("upstream", "boot", 0, b"undecided");
    fill(&broker, "in", 0, &TEN);
    let told = live(&broker, &job, 1, &["in", "boot"]);
    assert_eq!(told, [lines("boot", &TEN), lines("in", &TEN)].concat());
}

const BOUNDED: &str = "task = { inputs = [\"kafka.in\"] }\nstreams.\"kafka.in\" = { bounded = true }";

#[test]
fn a_bounded_input_is_over_when_everything_before_its_end_is_decided() {
    for commits in [true, false] {
        let job = job(BOUNDED);
        let broker = broker(&job, &["in"], 1);
        fill(&broker, "in", 0, &["a"]);
        broker.append_open("upstream", "in", 0, b"b");
        fill(&broker, "in", 0, &["c"]);
        let later = broker.clone();
        let decide = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            fill(&later, "in", 0, &["behind the end"]);
            later.decide("upstream", commits);
        });
        let (story, state) = (Story::default(), folder());
        let life =
            Life { until_over: true, ..Life::new(&broker, &job, model(1, &["in"], &[]), state.path()) };
        life.live(Teller::of(&story)).expect("it ends by itself");
        decide.join().expect("no panic");
        let expected: &[&str] = if commits { &["a", "b", "c"] } else { &["a", "c"] };
        assert_eq!(told(&story), [lines("in", expected), vec!["0:end".to_owned()]].concat());
    }
}

/// Appends a message to its own input whenever it gets one, up to so many.
struct Feeds {
    teller: Teller,
    broker: Broker,
    left: Arc<AtomicU64>,
}

impl StreamTask for Feeds {
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        self.teller.tell(text(envelope.value));
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if let Ok(left) = left {
            self.broker.append_open("writer", "in", 0, format!("more {left}").as_bytes());
            self.broker.decide("writer", true);
        }
        Ok(())
    }
}

#[test]
fn a_bounded_input_ends_also_if_it_is_written_to_all_the_time_and_what_comes_behind_is_of_the_next_run() {
    let job = job(BOUNDED);
    let broker = broker(&job, &["in"], 1);
    fill(&broker, "in", 0, &TEN);
    // The last thing before the end is one that cannot be seen.
    broker.append_open("writer", "in", 0, b"aborted");
    broker.decide("writer", false);
    let (left, mut all) = (Arc::new(AtomicU64::new(1_000)), Vec::new());
    for seq in 1..=3 {
        let (story, state) = (Story::default(), folder());
        let teller = Teller::of(&story);
        let (of, left) = (broker.clone(), Arc::clone(&left));
        let factory = move || Feeds { teller: teller(), broker: of.clone(), left: Arc::clone(&left) };
        let life =
            Life { seq, until_over: true, ..Life::new(&broker, &job, model(1, &["in"], &[]), state.path()) };
        life.live(factory).expect("it ends by itself");
        all.push(told(&story));
    }
    assert_eq!(all[0], TEN);
    let more = |from: u64| (0..10).map(|n| format!("more {}", from - n)).collect::<Vec<_>>();
    assert_eq!(all[1..], [more(1_000), more(990)]);
}

#[test]
fn the_newest_message_is_looked_for_once_however_idle_the_job_is() {
    let job =
        job("task = { inputs = [\"kafka.in\"] }\nstreams.\"kafka.in\" = { offset-default = \"newest\" }");
    let broker = broker(&job, &["in"], 1);
    fill(&broker, "in", 0, &["before"]);
    assert_eq!(live(&broker, &job, 1, &["in"]), [""; 0]);
    fill(&broker, "in", 0, &["meanwhile"]);
    assert_eq!(live(&broker, &job, 2, &["in"]), lines("in", &["meanwhile"]));
    assert_eq!(live(&broker, &job, 3, &["in"]), [""; 0]);
}

#[test]
fn an_input_that_is_added_to_a_job_begins_where_it_first_began() {
    let newest = "streams.\"kafka.more\" = { offset-default = \"newest\" }";
    let one = job("task = { inputs = [\"kafka.in\"] }");
    let two = job(&format!("task = {{ inputs = [\"kafka.in\", \"kafka.more\"] }}\n{newest}"));
    let broker = broker(&two, &["in", "more"], 1);
    fill(&broker, "in", 0, &["a"]);
    fill(&broker, "more", 0, &["before"]);
    assert_eq!(live(&broker, &one, 1, &["in"]), lines("in", &["a"]));
    assert_eq!(live(&broker, &two, 2, &["in", "more"]), [""; 0]);
    fill(&broker, "more", 0, &["meanwhile"]);
    assert_eq!(live(&broker, &two, 3, &["in", "more"]), lines("more", &["meanwhile"]));
}

#[test]
fn where_to_go_on_after_a_loss_is_decided_once() {
    let job = job("task = { inputs = [\"kafka.in\"] }\nstreams.\"kafka.in\" = { offset-lost = \"newest\" }");
    let broker = broker(&job, &["in"], 1);
    fill(&broker, "in", 0, &TEN);
    assert_eq!(live(&broker, &job, 1, &["in"]), lines("in", &TEN));
    broker.topic("in", 1);
    fill(&broker, "in", 0, &["gone by"]);
    assert_eq!(live(&broker, &job, 2, &["in"]), [""; 0]);
    fill(&broker, "in", 0, &["meanwhile"]);
    assert_eq!(live(&broker, &job, 3, &["in"]), lines("in", &["meanwhile"]));
}

#[test]
fn positions_are_behind_what_cannot_be_seen_at_the_end() {
    let job = job("task = { inputs = [\"kafka.in\"] }");
    let broker = broker(&job, &["in"], 1);
    broker.append_open("upstream", "in", 0, b"aborted");
    broker.decide("upstream", false);
    assert_eq!(live(&broker, &job, 1, &["in"]), [""; 0]);
    assert_eq!(
        position(&broker, &job, "kafka.in", 0).as_deref(),
        Some("2"),
        "behind a start without messages"
    );
    broker.append_open("upstream", "in", 0, b"seen");
    broker.decide("upstream", true);
    assert_eq!(live(&broker, &job, 2, &["in"]), lines("in", &["seen"]));
    assert_eq!(position(&broker, &job, "kafka.in", 0).as_deref(), Some("4"), "behind a commit marker");
    broker.append_open("upstream", "in", 0, b"undecided");
    assert_eq!(live(&broker, &job, 3, &["in"]), [""; 0]);
    assert_eq!(position(&broker, &job, "kafka.in", 0).as_deref(), Some("4"), "not behind what is undecided");
}

/// Takes a message only at every third offer; the last ones never.
struct Reluctant {
    teller: Teller,
    offers: u64,
}

impl StreamTask for Reluctant {
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
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.offers += 1;
        if !self.offers.is_multiple_of(3) {
            return Ok(());
        }
        let taken: Vec<String> = batch.take_slice(1).iter().map(|message| text(message.value)).collect();
        taken.iter().for_each(|value| self.teller.tell(value.clone()));
        if taken == ["6"] {
            coordinator.shutdown();
        }
        Ok(())
    }
}

#[test]
fn what_a_task_did_not_take_comes_again_after_a_restart() {
    let job = job("task = { inputs = [\"kafka.in\"] }");
    let broker = broker(&job, &["in"], 1);
    for value in TEN {
        // Each with a marker behind it, which is no message.
        broker.append_open("upstream", "in", 0, value.as_bytes());
        broker.decide("upstream", true);
    }
    let (story, state) = (Story::default(), folder());
    let teller = Teller::of(&story);
    let factory = move || Reluctant { teller: teller(), offers: 0 };
    let life = Life { until_over: true, ..Life::new(&broker, &job, model(1, &["in"], &[]), state.path()) };
    life.live(factory).expect("it stops itself");
    assert_eq!(told(&story), TEN[..=6]);
    assert_eq!(
        position(&broker, &job, "kafka.in", 0).as_deref(),
        Some("14"),
        "at the first that it has not taken"
    );
    assert_eq!(live(&broker, &job, 2, &["in"]), lines("in", &TEN[7..]));
}

/// Answers at once, or panics.
struct Quick(Teller);

impl AsyncStreamTask for Quick {
    type Reply = String;

    fn call(&mut self, message: &OwnedMessage) -> Reply<String> {
        let value = text(message.value.as_deref());
        Box::pin(async move {
            tokio::task::yield_now().await;
            assert_ne!(value, "bad", "it is bad");
            Ok(value)
        })
    }
    fn process(
        &mut self,
        _: &OwnedMessage,
        reply: String,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        self.0.tell(reply);
        Ok(())
    }
}

#[test]
fn every_message_of_several_inputs_of_an_asynchronous_task_is_called_once() {
    let job = job("task = { inputs = [\"kafka.in\", \"kafka.urgent\"], concurrency = 3 }\n\
         streams.\"kafka.urgent\" = { priority = 1 }\nerrors = { process = \"skip\" }");
    let broker = broker(&job, &["in", "urgent"], 1);
    let many: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    fill(&broker, "in", 0, &many);
    fill(&broker, "in", 0, &["bad"]);
    fill(&broker, "urgent", 0, &many);
    let (story, state) = (Story::default(), folder());
    let runtime = tokio::runtime::Runtime::new().expect("tokio starts");
    let (handle, teller) = (runtime.handle().clone(), Teller::of(&story));
    let factory = move || InOrder::new(Quick(teller()), OnRuntime::new(handle.clone()));
    let life = Life::new(&broker, &job, model(1, &["in", "urgent"], &[]), state.path());
    life.live(factory).expect("it ends in order");
    let mut told: Vec<usize> = told(&story).iter().map(|value| value.parse().expect("a number")).collect();
    told.sort_unstable();
    let twice: Vec<usize> = (0..500).flat_map(|n| [n, n]).collect();
    assert_eq!(told, twice);
    assert_eq!(position(&broker, &job, "kafka.in", 0).as_deref(), Some("501"));
    assert_eq!(broker.pauses(), 0, "what is held is little: no reason to throw away what is fetched ahead");
}

#[test]
fn what_waits_is_held_up_to_a_bound_and_fetched_again_behind_it() {
    let job = job("task = { inputs = [\"kafka.in\", \"kafka.boot\"] }\n\
                   streams.\"kafka.boot\" = { bootstrap = true }");
    let broker = broker(&job, &["in", "boot"], 1);
    let large: Vec<String> = (0..30).map(|n| format!("{n}{}", "x".repeat(200_000))).collect();
    let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let of = |values: &[String]| values.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    large.iter().for_each(|value| fill(&broker, "in", 0, &[value.as_str()]));
    many.iter().for_each(|value| fill(&broker, "boot", 0, &[value.as_str()]));
    let told = live(&broker, &job, 1, &["in", "boot"]);
    let values: Vec<String> =
        told.iter().filter_map(|line| line.rsplit(':').next()).map(str::to_owned).collect();
    assert!(of(&values) == of(&[many, large].concat()), "{} came", values.len());
    assert!(broker.pauses() > 0, "not everything is held");
}

#[test]
fn each_turn_looks_at_each_input_some_times_however_many_tasks_there_are() {
    const TASKS: i32 = 64;
    for bounded in [false, true] {
        let job = job(&format!("task.inputs = [\"kafka.in\"]\nstreams.\"kafka.in\".bounded = {bounded}"));
        let broker = broker(&job, &["in"], TASKS);
        let values: Vec<String> = (0..9).map(|n| n.to_string()).collect();
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        (0..TASKS).for_each(|partition| fill(&broker, "in", partition, &values));
        let (story, state) = (Story::default(), folder());
        let life = Life::new(&broker, &job, model(TASKS, &["in"], &[]), state.path());
        life.live(Teller::of(&story)).expect("it ends in order");
        let per_poll = broker.questions_per_poll();
        // All inputs for each task would be 64 * 64.
        assert!((1..=64 * 8).contains(&per_poll), "bounded: {bounded}: {per_poll} questions for each poll");
    }
}
