//! Transactions, and who may have one.

use task_api::system::{StartAt, SystemError, TransactionalProducer};

use crate::script::{
    SOON, append, append_committed, at, begin, committed, ends, high, opened, owner, partition, reader, sees,
    send, send_all, take, texts, wait_until,
};
use crate::{Can, Stage, can, unique};

pub fn a_transaction_is_seen_as_a_whole_once_it_is_committed(stage: &dyn Stage) {
    let to = partition(stage, "whole");
    let mut producer = opened(stage, &to, &["a", "b"]);
    assert_eq!(committed(stage, &to), []);
    producer.commit(SOON).expect("committed");
    sees(stage, &to, &["a", "b"]);
    // The next one is a new one.
    begin(&mut *producer, &to, &["c"]);
    producer.commit(SOON).expect("committed");
    sees(stage, &to, &["a", "b", "c"]);
}

pub fn a_commit_takes_what_was_not_flushed(stage: &dyn Stage) {
    let to = partition(stage, "unflushed");
    let mut producer = owner(stage, &to.topic);
    producer.begin().expect("begun");
    send(&mut *producer, &to, "a").expect("queued");
    producer.commit(SOON).expect("committed");
    sees(stage, &to, &["a"]);
}

pub fn what_is_aborted_is_never_seen_and_the_next_transaction_is_whole(stage: &dyn Stage) {
    let to = partition(stage, "aborted");
    let mut producer = opened(stage, &to, &["never"]);
    producer.abort(SOON).expect("aborted");
    // Not even flushed.
    producer.begin().expect("begun");
    send(&mut *producer, &to, "never").expect("queued");
    producer.abort(SOON).expect("aborted");
    begin(&mut *producer, &to, &["a"]);
    producer.commit(SOON).expect("committed");
    sees(stage, &to, &["a"]);
}

pub fn a_dropped_producers_transaction_is_not_committed(stage: &dyn Stage) {
    let to = partition(stage, "dropped");
    let id = unique("dropped");
    let mut producer = owner(stage, &id);
    begin(&mut *producer, &to, &["never"]);
    drop(producer);
    // Its successor has it aborted.
    let mut producer = owner(stage, &id);
    begin(&mut *producer, &to, &["a"]);
    producer.commit(SOON).expect("committed");
    sees(stage, &to, &["a"]);
}

pub fn an_empty_transaction_is_committed_and_leaves_nothing(stage: &dyn Stage) {
    let to = partition(stage, "nothing");
    let mut producer = owner(stage, &to.topic);
    for _ in 0..2 {
        producer.begin().expect("begun");
        producer.commit(SOON).expect("committed");
        producer.begin().expect("begun");
        producer.abort(SOON).expect("aborted");
    }
    append_committed_by(&mut *producer, &to);
    wait_until("the one message is there", || ends(stage, &to).stable >= 1);
    assert_eq!(committed(stage, &to)[0].offset, 0);
}

fn append_committed_by(producer: &mut dyn TransactionalProducer, to: &task_api::system::TopicPartition) {
    begin(producer, to, &["a"]);
    producer.commit(SOON).expect("committed");
}

/// A caller may not rely on its commit to find out that it was fenced: one that has sent nothing is not asked about.
pub fn an_empty_transaction_of_a_fenced_producer_is_committed(stage: &dyn Stage) {
    let id = unique("empty-fenced");
    let mut old = owner(stage, &id);
    old.begin().expect("begun");
    stage.admin().fence(&id).expect("fenced");
    assert_eq!(old.commit(SOON), Ok(()));
}

pub fn a_second_begin_is_refused(stage: &dyn Stage) {
    let mut producer = owner(stage, &unique("twice"));
    producer.begin().expect("begun");
    let second = producer.begin();
    assert!(matches!(second, Err(SystemError::Fatal(_))), "{second:?}");
}

pub fn without_a_transaction_nothing_is_sent_committed_or_aborted(stage: &dyn Stage) {
    let to = partition(stage, "outside");
    let mut producer = owner(stage, &to.topic);
    let is_refused = |done: Result<(), SystemError>| matches!(done, Err(SystemError::Fatal(_)));
    assert!(is_refused(send(&mut *producer, &to, "never")), "a message");
    assert!(is_refused(producer.commit(SOON)), "a commit");
    let mut producer = owner(stage, &to.topic);
    assert!(is_refused(producer.abort(SOON)), "an abort");
    assert_eq!(high(stage, &to), 0);
}

pub fn who_has_not_registered_begins_no_transaction(stage: &dyn Stage) {
    let begun = stage.transactional(&unique("unregistered")).begin();
    assert!(matches!(begun, Err(SystemError::Fatal(_))), "{begun:?}");
}

/// Sends and commits; what came of it.
fn try_to_commit(
    producer: &mut dyn TransactionalProducer,
    to: &task_api::system::TopicPartition,
) -> SystemError {
    let done = send(producer, to, "never").and_then(|()| producer.commit(SOON));
    done.expect_err("it owns the id no more")
}

pub fn a_newer_owner_fences_the_older_for_ever(stage: &dyn Stage) {
    let to = partition(stage, "fenced");
    let id = unique("fenced");
    let mut old = owner(stage, &id);
    begin(&mut *old, &to, &["never"]);
    let mut new = owner(stage, &id);
    let ends = ends(stage, &to);
    assert_eq!((ends.stable, ends.high), (2, 2), "what was open is aborted before the id is registered");
    begin(&mut *new, &to, &["a"]);
    for _ in 0..2 {
        let fenced = try_to_commit(&mut *old, &to);
        assert!(matches!(fenced, SystemError::Fenced(_)), "{fenced:?}");
    }
    new.commit(SOON).expect("the new owner commits");
    sees(stage, &to, &["a"]);
}

pub fn an_administrator_fences_an_owner(stage: &dyn Stage) {
    let to = partition(stage, "by-admin");
    let id = unique("by-admin");
    let mut old = owner(stage, &id);
    begin(&mut *old, &to, &["never"]);
    stage.admin().fence(&id).expect("fenced");
    let there = ends(stage, &to);
    assert_eq!(there.stable, there.high, "what was open is aborted before it returns");
    let fenced = old.commit(SOON);
    assert!(matches!(fenced, Err(SystemError::Fenced(_))), "{fenced:?}");
    assert_eq!(committed(stage, &to), []);
    stage.admin().fence(&unique("nobody-had-it")).expect("an id that nobody had");
}

pub fn a_fenced_producer_that_has_sent_nothing_yet_is_fenced_when_it_does(stage: &dyn Stage) {
    let to = partition(stage, "fenced-idle");
    let mut old = owner(stage, &to.topic);
    stage.admin().fence(&to.topic).expect("fenced");
    // To begin asks nobody.
    old.begin().expect("begun");
    let fenced = try_to_commit(&mut *old, &to);
    assert!(matches!(fenced, SystemError::Fenced(_)), "{fenced:?}");
    assert_eq!(committed(stage, &to), []);
}

pub fn owners_of_different_ids_do_not_disturb_each_other(stage: &dyn Stage) {
    let to = partition(stage, "two");
    let (mut a, mut b) = (opened(stage, &to, &["a"]), opened(stage, &to, &["b"]));
    send_all(&mut *a, &to, &["aa"]);
    b.abort(SOON).expect("aborted");
    a.commit(SOON).expect("committed");
    sees(stage, &to, &["a", "aa"]);
}

pub fn a_transaction_reaches_several_topics(stage: &dyn Stage) {
    let (to, other) = (at(&stage.topic("several", 2, &[]), 1), partition(stage, "other"));
    let mut producer = opened(stage, &to, &["a"]);
    send_all(&mut *producer, &other, &["b"]);
    producer.commit(SOON).expect("committed");
    sees(stage, &to, &["a"]);
    sees(stage, &other, &["b"]);
}

pub fn a_consumer_sees_a_transaction_when_it_is_committed(stage: &dyn Stage) {
    let to = partition(stage, "consumed");
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    append_committed(stage, &to, &["a", "b"]);
    append(stage, &to, &["c"]);
    assert_eq!(texts(&take(&mut *consumer, 3)), ["a", "b", "c"]);
}

pub fn a_message_that_the_client_refuses_leaves_the_transaction_whole(stage: &dyn Stage) {
    let to = partition(stage, "too-large-alone");
    let mut producer = opened(stage, &to, &["a"]);
    let refused = send(&mut *producer, &to, &"x".repeat(2_000_000));
    assert!(matches!(refused, Err(SystemError::Refused(_))), "{refused:?}");
    send_all(&mut *producer, &to, &["b"]);
    producer.commit(SOON).expect("committed");
    sees(stage, &to, &["a", "b"]);
}

pub fn a_transaction_takes_no_message_that_its_topic_is_known_to_refuse(stage: &dyn Stage) {
    let to = at(&stage.topic("known-limit", 1, &[("max.message.bytes", "500")]), 0);
    let mut producer = owner(stage, &to.topic);
    let topic = producer.topic(&to.topic).expect("topic");
    producer.takes_at_most(topic, 500);
    producer.begin().expect("begun");
    let refused = send(&mut *producer, &to, &crate::sending::noise(800));
    assert!(
        matches!(&refused, Err(SystemError::Refused(why)) if why.contains("max.message.bytes")),
        "{refused:?}"
    );
    send_all(&mut *producer, &to, &["a"]);
    producer.commit(SOON).expect("committed");
    sees(stage, &to, &["a"]);
}

pub fn a_message_that_a_broker_refuses_ends_the_transaction(stage: &dyn Stage) {
    let to = at(&stage.topic("limit", 1, &[("max.message.bytes", "500")]), 0);
    let mut producer = opened(stage, &to, &["never"]);
    let done = send(&mut *producer, &to, &crate::sending::noise(800)).and_then(|()| producer.commit(SOON));
    assert!(matches!(done, Err(SystemError::Fatal(_) | SystemError::Refused(_))), "{done:?}");
    assert_eq!(producer.refused(), None, "in a transaction there is none to take");
    if can(stage, Can::Fence) {
        stage.admin().fence(&unique("another")).expect("others are unharmed");
    }
    drop(producer);
    assert_eq!(committed(stage, &to), []);
}
