//! Where reading begins, and how far it has come.

use std::time::Duration;

use task_api::system::{
    Isolation, Lost, Offset, ProducerRecord, StartAt, SystemConsumer, SystemError, TopicPartition,
};

use crate::Stage;
use crate::script::{
    SOON, Seen, append, append_aborted, append_committed, at, committed, ends, high, numbers, opened,
    partition, range, reader, take, take_to, texts, wait_until,
};

/// The text of a place in the only source of a consumer.
fn place(consumer: &dyn SystemConsumer, position: u64) -> StartAt {
    StartAt::At(consumer.offset(0, position))
}

pub fn reading_goes_on_behind_the_last_message(stage: &dyn Stage) {
    let to = partition(stage, "goes-on");
    append(stage, &to, &numbers(0, 10));
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    let seen = take_to(&mut *consumer, &[high(stage, &to)]);
    for (n, message) in seen.iter().enumerate() {
        let behind = place(&*consumer, message.offset + 1);
        let rest = take_to(&mut *reader(stage, &[(&to, behind)]), &[high(stage, &to)]);
        assert_eq!(rest, seen[n + 1..], "behind message {n}");
    }
}

pub fn reading_goes_on_where_the_source_was_read_to_its_end(stage: &dyn Stage) {
    let to = partition(stage, "caught-up");
    append(stage, &to, &numbers(0, 3));
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    take_to(&mut *consumer, &[high(stage, &to)]);
    let end = consumer.caught_up_at(0).expect("it is at its end");
    assert_eq!(end, high(stage, &to));
    let behind = place(&*consumer, end);
    append(stage, &to, &["new"]);
    assert_eq!(texts(&take(&mut *reader(stage, &[(&to, behind)]), 1)), ["new"]);
}

/// A task may hold messages back: the place that is committed is that of the first it holds.
pub fn a_message_that_is_held_is_the_next_from_its_place(stage: &dyn Stage) {
    let to = partition(stage, "held");
    append(stage, &to, &["0", "11", "222", "3333"]);
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    let seen = take_to(&mut *consumer, &[high(stage, &to)]);
    for held in 0..seen.len() {
        // Where its system cannot tell, it is the end of the message before, or where reading began.
        let before = held.checked_sub(1).map(|last| seen[last].offset + 1).or(consumer.start(0));
        let position = consumer.position_of(seen[held].offset).or(before).expect("reading began somewhere");
        let from = place(&*consumer, position);
        let again = take_to(&mut *reader(stage, &[(&to, from)]), &[high(stage, &to)]);
        assert_eq!(again, seen[held..], "message {held} is held");
    }
}

pub fn the_oldest_start_is_the_first_message(stage: &dyn Stage) {
    let to = partition(stage, "oldest");
    append(stage, &to, &["x"]);
    let consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    assert_eq!(consumer.start(0), Some(ends(stage, &to).low));
    assert_eq!(consumer.caught_up_at(0), None, "nothing was read");
}

pub fn the_newest_start_is_behind_what_is_there(stage: &dyn Stage) {
    let to = partition(stage, "newest");
    append(stage, &to, &numbers(0, 3));
    let mut consumer = reader(stage, &[(&to, StartAt::Newest)]);
    assert_eq!(consumer.start(0), Some(high(stage, &to)));
    assert_eq!(take_to(&mut *consumer, &[high(stage, &to)]), []);
}

pub fn the_newest_start_sees_what_comes_then(stage: &dyn Stage) {
    let to = partition(stage, "newest-then");
    append(stage, &to, &["old"]);
    let mut consumer = reader(stage, &[(&to, StartAt::Newest)]);
    append(stage, &to, &["new"]);
    assert_eq!(texts(&take_to(&mut *consumer, &[2])), ["new"]);
}

/// What is open is not yet there: when it is committed it is new.
pub fn the_newest_start_is_before_what_is_open(stage: &dyn Stage) {
    let to = partition(stage, "newest-open");
    append(stage, &to, &["old"]);
    let mut open = opened(stage, &to, &["open"]);
    let mut consumer = reader(stage, &[(&to, StartAt::Newest)]);
    assert_eq!(consumer.start(0), Some(1));
    open.commit(SOON).expect("committed");
    assert_eq!(texts(&take(&mut *consumer, 1)), ["open"]);
}

pub fn a_time_starts_at_the_first_message_of_it_or_later(stage: &dyn Stage) {
    let to = partition(stage, "time");
    let mut producer = stage.producer();
    let topic = producer.topic(&to.topic).expect("topic");
    let time = |n: u64| 1_700_000_000_000 + n * 1_000;
    for n in 0..4_u64 {
        let value = n.to_string();
        let record = ProducerRecord::new(topic, Some(b"k"), Some(value.as_bytes())).to(0);
        producer.send(&ProducerRecord { timestamp_ms: Some(time(n)), ..record }).expect("queued");
    }
    producer.flush(SOON).expect("flushed");
    let from = |unix_ms| {
        let mut consumer = reader(stage, &[(&to, StartAt::Timestamp(unix_ms))]);
        texts(&take_to(&mut *consumer, &[high(stage, &to)]))
    };
    assert_eq!(from(0), numbers(0, 4));
    assert_eq!(from(time(2)), numbers(2, 4), "of this time");
    assert_eq!(from(time(1) + 1), numbers(2, 4), "or later");
    assert_eq!(from(time(3) + 1), [""; 0], "after all of them is the end");
}

/// The error of reading a partition from a place, at once or with the first polls.
fn refusal(stage: &dyn Stage, at: &TopicPartition, start: StartAt) -> SystemError {
    let mut consumer = stage.consumer();
    let mut refused = consumer.assign(&[(at.clone(), start)]).err();
    wait_until("it is refused", || {
        refused = refused.take().or_else(|| {
            consumer
                .poll(Duration::from_millis(50), &mut |messages| panic!("there is {messages:?} to be read"))
                .err()
        });
        refused.is_some()
    });
    refused.expect("it was waited for")
}

pub fn a_place_behind_the_end_is_refused(stage: &dyn Stage) {
    let to = partition(stage, "behind");
    append(stage, &to, &numbers(0, 3));
    let refused = refusal(stage, &to, StartAt::At(Offset((high(stage, &to) + 1).to_string())));
    assert!(matches!(refused, SystemError::Fatal(_)), "{refused:?}");
    let exactly = StartAt::At(Offset(high(stage, &to).to_string()));
    assert_eq!(take_to(&mut *reader(stage, &[(&to, exactly)]), &[high(stage, &to)]), []);
}

pub fn a_text_that_is_no_offset_is_refused(stage: &dyn Stage) {
    let to = partition(stage, "no-offset");
    let refused = stage.consumer().assign(&[(to, StartAt::At(Offset("x".into())))]);
    assert!(matches!(refused, Err(SystemError::Fatal(_))), "{refused:?}");
}

pub fn a_partition_that_is_not_there_cannot_be_read(stage: &dyn Stage) {
    let to = partition(stage, "not-there");
    for start in [StartAt::Oldest, StartAt::Newest] {
        let refused = stage.consumer().assign(&[(at(&to.topic, 7), start.clone())]);
        assert!(refused.is_err(), "{start:?}: {refused:?}");
    }
}

pub fn what_is_deleted_is_not_read_and_a_place_in_it_is_lost(stage: &dyn Stage) {
    let to = partition(stage, "deleted");
    append(stage, &to, &numbers(0, 6));
    stage.delete_below(&to, 4);
    assert_eq!((ends(stage, &to).low, high(stage, &to)), (4, 6));
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    assert_eq!(consumer.start(0), Some(4));
    assert_eq!(texts(&take_to(&mut *consumer, &[6])), ["4", "5"]);
    assert_eq!(texts(&range(stage, &to, 1, 6, Isolation::ReadCommitted)), ["4", "5"], "a range begins later");
    let refused = refusal(stage, &to, StartAt::At(Offset("3".into())));
    assert!(matches!(refused, SystemError::Fatal(_)), "{refused:?}");
}

pub fn what_became_of_a_place_is_told(stage: &dyn Stage) {
    let to = partition(stage, "lost");
    append(stage, &to, &numbers(0, 6));
    stage.delete_below(&to, 4);
    let lost = |offset: &str| stage.admin().lost(&[(to.clone(), Offset(offset.into()))]);
    assert_eq!(lost("3"), Ok(vec![Some(Lost::Truncated { low: 4 })]));
    for there in ["4", "6"] {
        assert_eq!(lost(there), Ok(vec![None]), "{there}");
    }
    assert_eq!(lost("7"), Ok(vec![Some(Lost::Recreated { high: 6 })]));
    assert!(matches!(lost("x"), Err(SystemError::Fatal(_))), "a text that is no offset");
    assert!(stage.admin().lost(&[(at(&to.topic, 7), Offset("0".into()))]).is_err(), "no such partition");
}

pub fn lag_counts_what_is_open_and_nothing_that_is_never_seen(stage: &dyn Stage) {
    let to = partition(stage, "lag");
    append_committed(stage, &to, &["a", "b"]);
    append_aborted(stage, &to, &["never"]);
    let mut open = opened(stage, &to, &["open", "open"]);
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    assert_eq!(texts(&take_to(&mut *consumer, &[5])), ["a", "b"]);
    assert_eq!(consumer.caught_up_at(0), Some(5), "what is open is the end");
    assert_eq!(consumer.lag(0, 5), Some(2));
    assert_eq!(consumer.lag(0, 100), Some(0));
    open.abort(SOON).expect("aborted");
    assert_eq!(take_to(&mut *consumer, &[8]), []);
    assert_eq!(consumer.lag(0, 8), Some(0), "the end is known behind what is never seen");
}

pub fn offsets_are_counted_from_zero_and_one_by_one(stage: &dyn Stage) {
    let to = partition(stage, "count");
    append(stage, &to, &numbers(0, 3));
    let offsets: Vec<u64> = committed(stage, &to).iter().map(|seen: &Seen| seen.offset).collect();
    assert_eq!(offsets, [0, 1, 2]);
    let ends = ends(stage, &to);
    assert_eq!((ends.low, ends.high, ends.stable), (0, 3, 3));
}
