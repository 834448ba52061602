//! What a system of streams must do, as tests that every implementation of `task-api`'s system traits runs: the real
//! Kafka, and each one in memory, so that none is kinder than Kafka.
//!
//! A behaviour is a function that is named as a sentence and takes a [`Stage`]. [`tests!`](crate::tests) has the table of
//! them all, with what each needs, and makes one test of each. An implementation that cannot do something says so, and
//! why, in [`Stage::lacks`]; what needs it is passed over.

// Functions whose names say it all.
#[doc(hidden)]
pub mod admin;
#[doc(hidden)]
pub mod ends;
#[doc(hidden)]
pub mod reading;
mod script;
#[doc(hidden)]
pub mod sending;
#[doc(hidden)]
pub mod starts;
#[doc(hidden)]
pub mod transactions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use task_api::system::{
    NewTopic, SystemAdmin, SystemConsumer, SystemProducer, TopicPartition, TransactionalProducer,
};

/// What an implementation may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Can {
    /// Consumers read what was written.
    Consume,
    /// There are producers of messages outside transactions.
    SendPlain,
    /// What a transaction has sent is in the log before the transaction is decided, and markers decide it.
    HoldBack,
    /// Who registers a transactional id fences who had it.
    Fence,
    /// What is written to a partition that is being read is read too.
    Grow,
    /// Topics are made and described, with their settings and their ends, and read by range.
    Administer,
    /// A topic that nobody has made is not there.
    MissTopics,
    /// Topics have several partitions.
    Partition,
    /// Headers and times are kept.
    KeepParts,
    /// A message that was given no time has that of its sending.
    KeepTime,
    /// Messages may be too large.
    Refuse,
    /// Messages are deleted, and topics made again.
    Delete,
    /// Topics are listed and get more partitions.
    Extend,
    /// It may be out of reach.
    BeAway,
}

/// An implementation, with what a test needs besides the traits. What it lacks is not called.
pub trait Stage {
    /// What it cannot do, and why.
    fn lacks(&self) -> &'static [(Can, &'static str)];
    /// Its administrator.
    fn admin(&self) -> Arc<dyn SystemAdmin>;
    /// A new consumer.
    fn consumer(&self) -> Box<dyn SystemConsumer> {
        unreachable!("it has none")
    }
    /// A new plain producer.
    fn producer(&self) -> Box<dyn SystemProducer> {
        unreachable!("it has none")
    }
    /// A new plain producer that sends nothing before it is flushed, however long that takes.
    fn slow_producer(&self) -> Box<dyn SystemProducer> {
        unreachable!("it has none")
    }
    /// A new producer of transactions, which is not initialised.
    fn transactional(&self, id: &str) -> Box<dyn TransactionalProducer>;
    /// Makes a topic with these settings; its name, which begins with `name` and no other topic has.
    fn topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) -> String {
        let topic = unique(name);
        let config = settings(config);
        let new = NewTopic { topic: topic.clone(), partitions, replication: 1, config };
        self.admin().create(&[new]).expect("the topic is made");
        topic
    }
    /// Deletes a topic and makes it again, with one partition.
    fn remake(&self, topic: &str) {
        unreachable!("{topic} stays")
    }
    /// Deletes what a partition has below an offset.
    fn delete_below(&self, at: &TopicPartition, low: u64) {
        unreachable!("{at:?} keeps what is below {low}")
    }
    /// An administrator whose questions nobody answers now.
    fn away(&self) -> Arc<dyn SystemAdmin> {
        unreachable!("somebody is always there")
    }
}

/// A name that begins with this one and is given to nobody else.
#[must_use]
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn settings(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn can(stage: &dyn Stage, what: Can) -> bool {
    stage.lacks().iter().all(|(lacking, _)| *lacking != what)
}

/// Runs one behaviour, unless the implementation lacks what it needs.
pub fn run(stage: &dyn Stage, needs: &[Can], behaviour: fn(&dyn Stage)) {
    if let Some((lacking, why)) = stage.lacks().iter().find(|(lacking, _)| needs.contains(lacking)) {
        println!("passed over, for it cannot {lacking:?}: {why}");
        return;
    }
    behaviour(stage);
}

/// Makes a test of each behaviour that runs on what `$stage` returns: the table of them all, with what they need.
#[macro_export]
macro_rules! tests {
    (@ $stage:expr; $($module:ident $needs:tt: $($behaviour:ident)*;)*) => {
        $($(
            #[test]
            fn $behaviour() {
                #[allow(unused_imports)]
                use $crate::Can::*;
                $crate::run(&$stage, &$needs, $crate::$module::$behaviour);
            }
        )*)*
    };
    ($stage:expr) => {
        $crate::tests! { @ $stage;
            reading [Consume]:
                messages_of_a_partition_come_in_the_order_in_which_they_were_sent
                sources_are_numbered_as_they_were_assigned_and_only_they_are_read
                the_error_of_who_takes_messages_is_returned_as_it_is
                a_paused_source_hands_over_nothing_and_then_goes_on_where_it_was;
            reading [Consume, SendPlain]:
                a_key_or_value_that_is_not_there_is_not_an_empty_one;
            reading [Consume, SendPlain, KeepParts]:
                headers_and_times_come_as_they_were_sent;
            reading [Consume, KeepTime]:
                a_message_without_a_time_is_of_now;
            reading [Consume, Partition]:
                partitions_of_a_topic_are_read_each_for_itself;
            reading [Consume, SendPlain, Grow]:
                a_source_that_was_read_to_its_end_and_paused_loses_nothing_that_comes_then
                pauses_at_any_moment_lose_and_double_nothing;
            starts [Consume]:
                reading_goes_on_behind_the_last_message
                reading_goes_on_where_the_source_was_read_to_its_end
                a_message_that_is_held_is_the_next_from_its_place
                the_oldest_start_is_the_first_message
                the_newest_start_is_behind_what_is_there
                a_place_behind_the_end_is_refused
                a_text_that_is_no_offset_is_refused
                a_partition_that_is_not_there_cannot_be_read;
            starts [Consume, SendPlain, KeepParts]:
                a_time_starts_at_the_first_message_of_it_or_later;
            starts [Consume, Grow]:
                the_newest_start_sees_what_comes_then;
            starts [Consume, HoldBack]:
                the_newest_start_is_before_what_is_open
                lag_counts_what_is_open_and_nothing_that_is_never_seen;
            starts [Consume, Delete]:
                what_is_deleted_is_not_read_and_a_place_in_it_is_lost;
            starts [Delete]:
                what_became_of_a_place_is_told;
            starts [Administer]:
                offsets_are_counted_from_zero_and_one_by_one;
            ends [Consume]:
                an_empty_source_is_read_to_its_end_at_once;
            ends [Consume, Administer]:
                a_log_that_has_only_grown_was_not_cut_where_it_was_read_to
                what_became_of_places_is_told_in_the_order_in_which_they_were_asked_for;
            ends [Consume, HoldBack]:
                the_end_is_known_behind_what_is_never_seen
                what_is_open_is_the_end_and_holds_back_what_is_behind_it
                what_is_aborted_is_stepped_over_between_messages;
            ends [HoldBack]:
                a_marker_takes_an_offset_in_each_partition_of_its_transaction
                watermarks_tell_what_is_open
                a_range_is_read_as_its_isolation_says_and_ends_by_position
                a_range_of_what_is_open_is_seen_uncommitted_alone;
            ends [Administer]:
                ends_are_told_in_the_order_in_which_they_were_asked_for
                the_error_of_who_takes_a_range_is_returned_as_it_is;
            ends [Administer, MissTopics]:
                a_partition_that_is_not_there_has_no_ends_now;
            transactions []:
                a_transaction_is_seen_as_a_whole_once_it_is_committed
                a_commit_takes_what_was_not_flushed
                what_is_aborted_is_never_seen_and_the_next_transaction_is_whole
                a_dropped_producers_transaction_is_not_committed
                a_second_begin_is_refused
                without_a_transaction_nothing_is_sent_committed_or_aborted;
            transactions [Administer]:
                an_empty_transaction_is_committed_and_leaves_nothing
                a_transaction_reaches_several_topics;
            transactions [HoldBack]:
                owners_of_different_ids_do_not_disturb_each_other;
            transactions [Fence]:
                an_empty_transaction_of_a_fenced_producer_is_committed
                who_has_not_registered_begins_no_transaction
                a_newer_owner_fences_the_older_for_ever
                an_administrator_fences_an_owner
                a_fenced_producer_that_has_sent_nothing_yet_is_fenced_when_it_does;
            transactions [Consume, HoldBack]:
                a_consumer_sees_a_transaction_when_it_is_committed;
            transactions [Refuse]:
                a_message_that_the_client_refuses_leaves_the_transaction_whole
                a_transaction_takes_no_message_that_its_topic_is_known_to_refuse
                a_message_that_a_broker_refuses_ends_the_transaction;
            sending [SendPlain]:
                what_is_sent_is_there_once_it_is_flushed
                what_a_dropped_producer_has_not_flushed_is_gone;
            sending []:
                a_topic_has_one_handle;
            sending [Partition]:
                a_producer_knows_how_many_partitions_a_topic_has
                keys_choose_the_partition_that_kafkas_clients_choose;
            sending [MissTopics]:
                of_a_topic_that_is_not_there_the_partitions_may_be_known_later;
            sending [SendPlain, Partition]:
                a_partition_that_is_not_there_refuses_its_message_alone;
            sending [SendPlain, MissTopics]:
                a_topic_that_is_not_there_refuses_its_messages_alone;
            sending [SendPlain, Refuse]:
                a_message_that_is_larger_than_the_client_sends_is_refused_alone
                a_message_that_its_topic_refuses_comes_back_whole_and_the_others_arrive
                more_than_a_topic_takes_at_once_arrives_in_parts;
            admin [Administer]:
                topics_are_described_and_those_that_are_not_there_are_left_out
                what_is_there_is_created_again_without_a_change
                a_topic_with_fewer_partitions_than_are_created_is_an_error
                a_topic_with_settings_that_are_none_is_not_created
                settings_are_told_with_who_has_decided_on_them
                a_setting_is_changed_and_the_others_stay
                a_change_to_what_is_no_setting_is_refused
                plain_messages_are_there_when_they_are_appended
                nothing_is_appended_to_a_partition_that_is_not_there;
            admin [Administer, MissTopics]:
                a_topic_that_is_not_there_cannot_be_changed_now;
            admin [Delete]:
                a_topic_that_is_made_again_is_another;
            admin [Extend]:
                a_topic_gets_more_partitions_and_keeps_what_it_has
                a_topic_that_is_not_there_gets_no_partitions
                topics_are_listed_by_name;
            admin [BeAway]:
                questions_that_nobody_answers_may_be_asked_again;
        }
    };
}
