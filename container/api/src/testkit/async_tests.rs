//! Asynchronous tasks in the test kit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, pending, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use super::*;
use crate::{
    AsyncStreamTask, DecodeError, MessageCollector, OwnedMessage, Reply, StringSerde, TaskCoordinator,
    TaskResult,
};

/// Is ready when it has been polled so often.
struct After(u32, String);

impl Future for After {
    type Output = Result<String, crate::TaskError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.0 == 0 {
            return Poll::Ready(Ok(std::mem::take(&mut self.1)));
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Answers that the test gives when it likes.
type Answers = Arc<Mutex<BTreeMap<String, String>>>;

struct Asked(Answers, String);

impl Future for Asked {
    type Output = Result<String, crate::TaskError>;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.lock().expect("no panic").remove(&self.1) {
            Some(answer) => Poll::Ready(Ok(answer)),
            None => Poll::Pending,
        }
    }
}

/// Looks each message up and sends what comes of it.
#[derive(Default)]
struct LookUp {
    answers: Answers,
    in_flight: Rc<RefCell<Vec<u64>>>,
}

impl AsyncStreamTask for LookUp {
    type Reply = String;

    fn call(&mut self, message: &OwnedMessage) -> Reply<String> {
        let text = String::from_utf8(message.value.clone().unwrap_or_default()).expect("text");
        self.in_flight.borrow_mut().push(message.offset);
        match text.split_once(' ') {
            Some(("after", polls)) => Box::pin(After(polls.parse().expect("a number"), text.clone())),
            Some(("ask", what)) => Box::pin(Asked(Arc::clone(&self.answers), what.to_owned())),
            Some(("never", _)) => Box::pin(pending()),
            Some(("refuse", why)) => Box::pin(ready(Err(why.into()))),
            _ => Box::pin(ready(Ok(text))),
        }
    }

    fn process(
        &mut self,
        message: &OwnedMessage,
        reply: String,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.in_flight.borrow_mut().retain(|offset| *offset != message.offset);
        match reply.as_str() {
            "commit" => coordinator.commit(),
            "unreadable" => return Err(DecodeError("unreadable".into()).into()),
            _ => {}
        }
        collector.send(OutgoingMessage::new("kafka.out", None, Some(reply.as_bytes())))
    }
}

fn kit(messages: &[&str]) -> TestKit<InPlaceTask<LookUp>> {
    let mut kit =
        TestKit::new_async(LookUp::default).input("kafka.in", 1).commit_every(Duration::MAX).concurrency(3);
    messages.iter().for_each(|message| kit.send("kafka.in", None, message));
    kit
}

#[test]
fn replies_are_processed_in_the_order_of_the_messages_whichever_is_ready_first() {
    let mut kit = kit(&["after 9", "at once", "after 2", "after 1", "x"]);
    kit.run();
    assert_eq!(kit.outputs("kafka.out"), ["after 9", "at once", "after 2", "after 1", "x"]);
}

#[test]
fn only_so_many_messages_are_in_flight_and_the_test_may_answer_them() {
    let (answers, in_flight) = (Answers::default(), Rc::new(RefCell::new(Vec::new())));
    let shared = (Arc::clone(&answers), Rc::clone(&in_flight));
    let factory = move || LookUp { answers: Arc::clone(&shared.0), in_flight: Rc::clone(&shared.1) };
    let mut kit = TestKit::new_async(factory).input("kafka.in", 1).concurrency(2);
    ["ask a", "ask b", "ask c"].iter().for_each(|message| kit.send("kafka.in", None, message));
    assert!(kit.step() && kit.step());
    assert_eq!((in_flight.borrow().clone(), kit.outputs("kafka.out").len()), (vec![0, 1], 0));
    answers.lock().expect("no panic").extend([("b".into(), "2".into()), ("a".into(), "1".into())]);
    kit.step();
    answers.lock().expect("no panic").insert("c".into(), "3".into());
    kit.run();
    assert_eq!(kit.outputs("kafka.out"), ["1", "2", "3"]);
}

#[test]
fn a_commit_waits_for_what_is_in_flight_and_a_crash_brings_it_back() {
    let mut kit = kit(&["after 50", "after 5"]).delivery(Delivery::ExactlyOnce);
    kit.step();
    kit.crash();
    kit.step();
    kit.step();
    assert_eq!(kit.task(0).committed("kafka.in", 0), Some(0));
    kit.commit();
    assert_eq!(kit.task(0).committed("kafka.in", 0), Some(2));
    assert_eq!(kit.outputs("kafka.out"), ["after 50", "after 5"]);
}

#[test]
fn a_reply_that_needs_a_runtime_is_an_error_that_says_so() {
    let why = kit(&["x", "never ever"]).try_run().expect_err("it would wait for ever").to_string();
    assert!(why.contains("message 1 of kafka.in") && why.contains("no runtime"), "{why}");
    let why = kit(&["after 4000000000"]).try_run().expect_err("it only wakes itself").to_string();
    assert!(why.contains("never becomes ready"), "{why}");
}

#[test]
fn errors_of_calls_and_of_their_processing_name_their_message_and_can_be_left_out() {
    let messages = ["after 3", "refuse it", "unreadable", "x", "commit"];
    let why = kit(&messages).try_run().expect_err("the call failed").to_string();
    assert_eq!(why, "Partition 0 failed: message 1 of kafka.in.0: it");
    let mut kit = kit(&messages).errors(|errors| {
        (errors.decode, errors.process) = (OnError::Skip, OnError::DeadLetter);
        errors.dead_letter = Some("kafka.failed".into());
    });
    kit.run();
    assert_eq!(kit.outputs("kafka.out"), ["after 3", "x", "commit"]);
    assert_eq!((kit.left_out(), kit.commits()), (2, 1));
    let failed = kit.outputs_as("kafka.failed", StringSerde, StringSerde);
    assert_eq!(failed, [(String::new(), "refuse it".to_owned())]);
}
