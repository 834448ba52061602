//! Tests only: every output of a committed input is where it belongs, in both delivery modes, on every system, and what a
//! system refuses goes where `[errors] send` says.

use std::path::Path;
use std::sync::Arc;

use task_api::system::SystemError;
use task_api::{
    FailedMessage, IncomingMessageEnvelope, MessageBatch, MessageCollector, OutgoingMessage, OwnedMessage,
    StreamTask, TaskCoordinator, TaskResult,
};
use types::JobSpec;

use crate::board::Board;
use crate::container::run_threads;
use crate::contract::{broker, job, model};
use crate::end::End;
use crate::fake::{Broker, FakeSystem};
use crate::systems::System;
use crate::tests::{checkpoints, folder, shared};

/// Sends each value to the stream `<key>.out`.
struct ByKey;

impl StreamTask for ByKey {
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        if envelope.value == Some(b"bad") {
            return Err("it is bad".into());
        }
        let stream = format!("{}.out", String::from_utf8_lossy(envelope.key.unwrap_or_default()));
        collector.send(OutgoingMessage::new(&stream, envelope.key, envelope.value))
    }
}

/// One life of a container of two systems, `kafka` and `other`, whose producers send nothing until they are flushed.
fn live<T: StreamTask>(
    (home, other): (&Broker, &Broker),
    job: &JobSpec,
    state: &Path,
    task: fn() -> T,
) -> Result<(), End> {
    let board = Arc::new(Board::default());
    let system = FakeSystem::new(home, None, None, Some(Arc::clone(&board)));
    let other = FakeSystem::new(other, None, None, None);
    system.be_slow();
    other.be_slow();
    let mut shared = shared(job, 1, state, &system, &board);
    let other: Arc<dyn System> = Arc::new(other);
    shared.systems.insert("other".into(), other);
    run_threads(&shared, &model(1, &["in"], &[]), &task).map(drop)
}

fn two_systems(delivery: &str, more: &str) -> (JobSpec, Broker, Broker) {
    let job = job(&format!(
        "task = {{ inputs = [\"kafka.in\"], delivery = \"{delivery}\" }}\n\
         systems.other = {{ type = \"kafka\", bootstrap = \"127.0.0.1:2\" }}\n{more}"
    ));
    let home = broker(&job, &["in", "out", "dead"], 1);
    let other = Broker::default();
    other.topic("out", 1);
    other.topic("dead", 1);
    (job, home, other)
}

fn texts(broker: &Broker, topic: &str) -> Vec<String> {
    let rows = broker.committed(topic, 0).into_iter();
    rows.map(|(_, _, value)| value.map_or("none".into(), |v| String::from_utf8_lossy(&v).into_owned()))
        .collect()
}

#[test]
fn outputs_on_every_system_are_there_when_the_position_is_committed() {
    for delivery in ["at-least-once", "exactly-once"] {
        let (job, home, other) = two_systems(delivery, "");
        for (key, value) in [("kafka", "1"), ("other", "2"), ("other", "3"), ("kafka", "4")] {
            home.append("in", 0, key.as_bytes(), Some(value.as_bytes()));
        }
        let state = folder();
        live((&home, &other), &job, state.path(), || ByKey).expect("it ends in order");
        assert_eq!(texts(&home, "out"), ["1", "4"], "{delivery}");
        assert_eq!(texts(&other, "out"), ["2", "3"], "{delivery}");
    }
}

#[test]
fn dead_letters_on_another_system_are_there_when_the_position_is_committed() {
    for delivery in ["at-least-once", "exactly-once"] {
        let errors = "errors = { process = \"dead-letter\", dead-letter = \"other.dead\" }";
        let (job, home, other) = two_systems(delivery, errors);
        home.append("in", 0, b"kafka", Some(b"bad"));
        let state = folder();
        live((&home, &other), &job, state.path(), || ByKey).expect("it ends in order");
        assert_eq!(texts(&other, "dead"), ["bad"], "{delivery}");
    }
}

fn refused(delivery: &str, send: &str, dead_takes: usize) -> (Result<(), End>, Broker, Broker) {
    let errors = match send {
        "dead-letter" => "errors = { send = \"dead-letter\", dead-letter = \"kafka.dead\" }".to_owned(),
        send => format!("errors.send = \"{send}\""),
    };
    let (job, home, other) = two_systems(delivery, &errors);
    for broker in [&home, &other] {
        broker.refuse_above("out", 3);
        broker.refuse_above("dead", dead_takes);
    }
    for value in ["a", "much", "b"] {
        home.append("in", 0, b"other", Some(value.as_bytes()));
    }
    let state = folder();
    let ended = live((&home, &other), &job, state.path(), || ByKey);
    (ended, home, other)
}

#[test]
fn what_is_refused_after_it_was_sent_goes_where_the_job_says_and_harms_nothing_else() {
    for delivery in ["at-least-once", "exactly-once"] {
        let (ended, home, other) = refused(delivery, "skip", 100);
        ended.expect("it goes on");
        assert_eq!((texts(&other, "out"), texts(&home, "dead")), (vec!["a".into(), "b".into()], vec![]));
        let (ended, home, other) = refused(delivery, "dead-letter", 100);
        ended.expect("it goes on");
        assert_eq!(
            (texts(&other, "out"), texts(&home, "dead")),
            (vec!["a".into(), "b".into()], vec!["much".into()])
        );
        let letter = &home.committed_whole("dead", 0)[0];
        let told = |name| letter.headers.get().last(name).and_then(|header| header.value).map(<[u8]>::to_vec);
        assert_eq!(told("samza.stream"), Some(b"other.out".to_vec()));
        assert_eq!(told("samza.error"), Some(b"out takes 3 bytes".to_vec()));
        let (ended, ..) = refused(delivery, "fail", 100);
        let Err(End::Failed(why)) = ended else { panic!("{delivery}: {ended:?}") };
        assert!(why.contains("an output to other.out (topic out): out takes 3 bytes"), "{why}");
    }
}

#[test]
fn a_dead_letter_that_is_refused_goes_without_its_value() {
    let (ended, home, _) = refused("at-least-once", "dead-letter", 3);
    ended.expect("it goes on");
    assert_eq!(texts(&home, "dead"), ["none"]);
}

#[test]
fn a_refusal_inside_a_transaction_ends_the_commit_and_says_so() {
    let (job, home, other) = two_systems("exactly-once", "errors.send = \"skip\"");
    home.refuse_above("out", 3);
    home.append("in", 0, b"kafka", Some(b"much"));
    let state = folder();
    let ended = live((&home, &other), &job, state.path(), || ByKey);
    let Err(End::Failed(why)) = ended else { panic!("{ended:?}") };
    assert!(why.contains("inside a transaction") && why.contains("[errors] send"), "{why}");
    let committed = checkpoints(&home, &job, 0);
    let read_on = committed.iter().any(|checkpoint| checkpoint.offset("kafka.in", 0) != Some("0"));
    assert!(!read_on, "where it began at most: {committed:?}");
}

/// Fails with a bad message before it takes it.
struct FailsFirst;

impl StreamTask for FailsFirst {
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        collector.send(OutgoingMessage::new("kafka.out", envelope.key, envelope.value))
    }
    fn process_batch(
        &mut self,
        batch: &mut MessageBatch<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let is_bad = |value: Option<&[u8]>| matches!(value, Some(b"bad" | b"named"));
        if let Some(first) = batch.rest().first().filter(|first| is_bad(first.value)) {
            let message = OwnedMessage::of(&batch.envelope(first));
            return Err(match first.value {
                Some(b"named") => FailedMessage { message, cause: "named, not taken".into() }.into(),
                _ => "not taken".into(),
            });
        }
        while batch.rest().first().is_some_and(|next| !is_bad(next.value)) {
            let taken = batch.take_slice(1);
            self.process(&batch.envelope(&taken[0]), collector, coordinator)?;
        }
        Ok(())
    }
}

#[test]
fn a_batch_that_fails_before_it_takes_anything_comes_further_all_the_same() {
    let errors = "errors = { process = \"dead-letter\", dead-letter = \"kafka.dead\" }";
    let (job, home, other) = two_systems("at-least-once", errors);
    for value in ["bad", "1", "bad", "bad", "2", "bad"] {
        home.append("in", 0, b"k", Some(value.as_bytes()));
    }
    let state = folder();
    live((&home, &other), &job, state.path(), || FailsFirst).expect("it ends in order");
    assert_eq!(
        (texts(&home, "out"), texts(&home, "dead")),
        (vec!["1".into(), "2".into()], vec!["bad".to_owned(); 4])
    );
}

#[test]
fn a_batch_that_names_a_message_and_does_not_take_it_ends_the_container() {
    let (job, home, other) = two_systems("at-least-once", "errors.process = \"skip\"");
    home.append("in", 0, b"k", Some(b"named"));
    let state = folder();
    let ended = live((&home, &other), &job, state.path(), || FailsFirst);
    assert!(matches!(&ended, Err(End::Failed(why)) if why.contains("named, not taken")), "{ended:?}");
}

#[test]
fn an_error_says_where_it_happened() {
    let error = SystemError::Retriable("later".into()).during("outputs to system `b`");
    assert_eq!(error, SystemError::Retriable("outputs to system `b`: later".into()));
}
