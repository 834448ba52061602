//! The ends of partitions, and ranges of them.

use task_api::system::{Isolation, LogEnd, Lost, Offset, StartAt, SystemError, TopicPartition};

use crate::Stage;
use crate::script::{
    SOON, append, append_aborted, append_committed, at, committed, ends, high, opened, partition, range,
    reader, sees, take_to, texts, wait_until,
};

pub fn an_empty_source_is_read_to_its_end_at_once(stage: &dyn Stage) {
    let to = partition(stage, "empty");
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    assert_eq!(take_to(&mut *consumer, &[0]), []);
    assert_eq!(consumer.caught_up_at(0), Some(0));
}

pub fn a_marker_takes_an_offset_in_each_partition_of_its_transaction(stage: &dyn Stage) {
    let topic = stage.topic("markers", 3, &[]);
    let mut producer = opened(stage, &at(&topic, 0), &["a", "b"]);
    crate::script::send_all(&mut *producer, &at(&topic, 1), &["c"]);
    producer.commit(SOON).expect("committed");
    for (partition, end) in [(0, 3), (1, 2), (2, 0)] {
        wait_until("the markers are there", || high(stage, &at(&topic, partition)) == end);
    }
    append(stage, &at(&topic, 0), &["d"]);
    let offsets: Vec<u64> = committed(stage, &at(&topic, 0)).iter().map(|seen| seen.offset).collect();
    assert_eq!(offsets, [0, 1, 3]);
}

pub fn the_end_is_known_behind_what_is_never_seen(stage: &dyn Stage) {
    let to = partition(stage, "tail");
    append_committed(stage, &to, &["seen"]);
    append_aborted(stage, &to, &["never", "never"]);
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    assert_eq!(texts(&take_to(&mut *consumer, &[5])), ["seen"]);
    assert_eq!(consumer.caught_up_at(0), Some(5));
    // From in between, too.
    let mut consumer = reader(stage, &[(&to, StartAt::At(consumer.offset(0, 3)))]);
    assert_eq!(take_to(&mut *consumer, &[5]), []);
}

pub fn what_is_open_is_the_end_and_holds_back_what_is_behind_it(stage: &dyn Stage) {
    let to = partition(stage, "open");
    append(stage, &to, &["before"]);
    let mut open = opened(stage, &to, &["open"]);
    append(stage, &to, &["behind"]);
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    assert_eq!(texts(&take_to(&mut *consumer, &[1])), ["before"]);
    assert_eq!(consumer.caught_up_at(0), Some(1));
    open.commit(SOON).expect("committed");
    assert_eq!(texts(&take_to(&mut *consumer, &[4])), ["open", "behind"]);
}

pub fn what_is_aborted_is_stepped_over_between_messages(stage: &dyn Stage) {
    let to = partition(stage, "between");
    append(stage, &to, &["a"]);
    let mut open = opened(stage, &to, &["never"]);
    append(stage, &to, &["b"]);
    open.abort(SOON).expect("aborted");
    wait_until("the marker is there", || ends(stage, &to).stable == 4);
    append(stage, &to, &["c"]);
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    let seen = take_to(&mut *consumer, &[5]);
    assert_eq!(
        seen.iter().map(|m| (m.offset, m.text())).collect::<Vec<_>>(),
        [(0, "a".to_owned()), (2, "b".to_owned()), (4, "c".to_owned())]
    );
}

pub fn watermarks_tell_what_is_open(stage: &dyn Stage) {
    let to = partition(stage, "watermarks");
    append(stage, &to, &["a"]);
    let mut open = opened(stage, &to, &["open"]);
    append(stage, &to, &["b"]);
    let there = ends(stage, &to);
    assert_eq!((there.low, there.high, there.stable), (0, 3, 1));
    assert_eq!(highs(stage, std::slice::from_ref(&to)), [3]);
    open.commit(SOON).expect("committed");
    wait_until("the marker is there", || ends(stage, &to).stable == 4);
    assert_eq!(high(stage, &to), 4);
}

pub fn ends_are_told_in_the_order_in_which_they_were_asked_for(stage: &dyn Stage) {
    let topic = stage.topic("asked", 3, &[]);
    append(stage, &at(&topic, 1), &["a"]);
    append(stage, &at(&topic, 2), &["b", "c"]);
    // Tasks that read the same partition ask for it once each.
    let asked = [at(&topic, 2), at(&topic, 0), at(&topic, 1), at(&topic, 2)];
    let told = stage.admin().watermarks(&asked).expect("told");
    assert_eq!(told.iter().map(|ends| ends.high).collect::<Vec<_>>(), [2, 0, 1, 2]);
    assert_eq!(highs(stage, &asked), [2, 0, 1, 2]);
}

pub fn what_became_of_places_is_told_in_the_order_in_which_they_were_asked_for(stage: &dyn Stage) {
    let topic = stage.topic("places", 2, &[]);
    append(stage, &at(&topic, 1), &["a"]);
    let place = |partition, offset: &str| (at(&topic, partition), Offset(offset.into()));
    let told =
        stage.admin().lost(&[place(1, "1"), place(0, "1"), place(1, "0"), place(1, "2")]).expect("told");
    assert_eq!(told, [None, Some(Lost::Recreated { high: 0 }), None, Some(Lost::Recreated { high: 1 })]);
}

fn highs(stage: &dyn Stage, of: &[TopicPartition]) -> Vec<u64> {
    let told = stage.admin().high_watermarks(of, SOON).expect("told");
    told.iter().map(|end| end.offset).collect()
}

pub fn a_log_that_has_only_grown_was_not_cut_where_it_was_read_to(stage: &dyn Stage) {
    let to = partition(stage, "grown");
    append(stage, &to, &["a", "b"]);
    let mut consumer = reader(stage, &[(&to, StartAt::Oldest)]);
    assert_eq!(consumer.read_to(0), None, "nothing was read");
    take_to(&mut *consumer, &[2]);
    let end = ends(stage, &to).end();
    // Only some systems have leader epochs.
    let read_to = consumer.read_to(0).unwrap_or(end);
    assert_eq!((read_to.offset, end.offset), (2, 2));
    append(stage, &to, &["c"]);
    let seen = [read_to, end, LogEnd::at(9)].map(|end| (to.clone(), end));
    assert_eq!(stage.admin().cut(&seen), Ok(vec![false; 3]));
}

/// A broker may not have heard of it yet.
pub fn a_partition_that_is_not_there_has_no_ends_now(stage: &dyn Stage) {
    let to = partition(stage, "no-ends");
    for unknown in [at(&to.topic, 7), at("conformance-nobody-made-this", 0)] {
        let told = stage.admin().watermarks(&[to.clone(), unknown.clone()]);
        assert!(matches!(told, Err(SystemError::Retriable(_))), "{unknown:?}: {told:?}");
        let told = stage.admin().high_watermarks(std::slice::from_ref(&unknown), SOON);
        assert!(matches!(told, Err(SystemError::Retriable(_))), "{unknown:?}: {told:?}");
    }
}

pub fn a_range_is_read_as_its_isolation_says_and_ends_by_position(stage: &dyn Stage) {
    let to = partition(stage, "range");
    append_committed(stage, &to, &["a"]);
    append_aborted(stage, &to, &["b"]);
    append(stage, &to, &["c"]);
    append_aborted(stage, &to, &["d"]);
    let read = |from, until, isolation| {
        let seen = range(stage, &to, from, until, isolation);
        assert!(seen.iter().all(|message| message.source == 0));
        seen.into_iter().map(|message| (message.offset, message.text())).collect::<Vec<_>>()
    };
    let row = |offset, text: &str| (offset, text.to_owned());
    use Isolation::{ReadCommitted, ReadUncommitted};
    assert_eq!(read(0, 7, ReadCommitted), [row(0, "a"), row(4, "c")], "behind the last marker");
    assert_eq!(read(0, 7, ReadUncommitted), [row(0, "a"), row(2, "b"), row(4, "c"), row(5, "d")]);
    assert_eq!(read(0, 4, ReadCommitted), [row(0, "a")], "it ends before `until`");
    assert_eq!(read(1, 6, ReadCommitted), [row(4, "c")], "in the middle of a transaction");
    assert_eq!(read(2, 3, ReadUncommitted), [row(2, "b")]);
    assert_eq!(read(3, 3, ReadCommitted), [], "an empty range is over at once");
}

pub fn a_range_of_what_is_open_is_seen_uncommitted_alone(stage: &dyn Stage) {
    let to = partition(stage, "range-open");
    append(stage, &to, &["a"]);
    let mut open = opened(stage, &to, &["open"]);
    assert_eq!(texts(&range(stage, &to, 0, 2, Isolation::ReadUncommitted)), ["a", "open"]);
    assert_eq!(texts(&range(stage, &to, 0, 1, Isolation::ReadCommitted)), ["a"]);
    open.commit(SOON).expect("committed");
    sees(stage, &to, &["a", "open"]);
}

pub fn the_error_of_who_takes_a_range_is_returned_as_it_is(stage: &dyn Stage) {
    let to = partition(stage, "range-taker");
    append(stage, &to, &["a", "b"]);
    let error = SystemError::Fatal("by the one who takes".into());
    let mut taken = 0;
    let read = stage.admin().read_range(&to, 0, 2, Isolation::ReadCommitted, &mut |_| {
        taken += 1;
        Err(error.clone())
    });
    assert_eq!((read, taken), (Err(error.clone()), 1));
}
