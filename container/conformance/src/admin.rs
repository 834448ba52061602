//! Topics: what there is, and orders about them.

use task_api::system::{ConfigSource, NewTopic, PlainMessage, SystemError};

use crate::script::{append, at, committed, ends, high, partition, texts, wait_until};
use crate::{Stage, settings, unique};

fn new(topic: &str, partitions: i32, config: &[(&str, &str)]) -> NewTopic {
    NewTopic { topic: topic.to_owned(), partitions, replication: 1, config: settings(config) }
}

fn value(stage: &dyn Stage, topic: &str, setting: &str) -> (String, ConfigSource) {
    let told = stage.admin().describe_configs(&[topic.to_owned()]).expect("told");
    let entry = &told[topic][setting];
    (entry.value.clone(), entry.source)
}

pub fn topics_are_described_and_those_that_are_not_there_are_left_out(stage: &dyn Stage) {
    let topics = [stage.topic("described", 3, &[]), stage.topic("described", 1, &[])];
    let asked = [topics[0].clone(), unique("nobody-made-this"), topics[1].clone()];
    let mut told = stage.admin().describe(&asked).expect("described");
    told.sort_by_key(|topic| topic.partitions.len());
    let shape = |n: usize| {
        (told[n].topic.clone(), told[n].partitions.iter().map(|p| p.partition).collect::<Vec<_>>())
    };
    assert_eq!(told.len(), 2);
    assert_eq!((shape(0), shape(1)), ((topics[1].clone(), vec![0]), (topics[0].clone(), vec![0, 1, 2])));
    assert!(!told[0].topic_id.is_empty() && told[0].topic_id != told[1].topic_id, "{told:?}");
    assert_eq!(stage.admin().describe(&[]), Ok(Vec::new()));
    assert_eq!(stage.admin().describe(&asked[1..2]), Ok(Vec::new()));
}

pub fn a_topic_that_is_made_again_is_another(stage: &dyn Stage) {
    let to = partition(stage, "remade");
    append(stage, &to, &["old"]);
    let id = || {
        let told = stage.admin().describe(std::slice::from_ref(&to.topic)).expect("described");
        told.first().map(|topic| topic.topic_id.clone())
    };
    let old = id().expect("it is there");
    stage.remake(&to.topic);
    wait_until("it has another id", || id().is_some_and(|new| new != old));
    wait_until("it is empty", || {
        stage.admin().watermarks(std::slice::from_ref(&to)).is_ok_and(|ends| ends[0].high == 0)
    });
    append(stage, &to, &["new"]);
    assert_eq!(texts(&committed(stage, &to)), ["new"]);
}

pub fn what_is_there_is_created_again_without_a_change(stage: &dyn Stage) {
    let topic = stage.topic("again", 2, &[("retention.ms", "1000000")]);
    append(stage, &at(&topic, 1), &["a"]);
    for partitions in [1, 2] {
        let again = stage.admin().create(&[new(&topic, partitions, &[("retention.ms", "2000000")])]);
        assert_eq!(again, Ok(()), "{partitions}");
    }
    let told = stage.admin().describe(std::slice::from_ref(&topic)).expect("described");
    assert_eq!(told[0].partitions.len(), 2);
    assert_eq!(high(stage, &at(&topic, 1)), 1);
    assert_eq!(value(stage, &topic, "retention.ms"), ("1000000".to_owned(), ConfigSource::Topic));
}

pub fn a_topic_with_fewer_partitions_than_are_created_is_an_error(stage: &dyn Stage) {
    let topic = stage.topic("fewer", 1, &[]);
    let refused = stage.admin().create(&[new(&topic, 3, &[])]);
    assert!(matches!(refused, Err(SystemError::Fatal(_))), "{refused:?}");
}

pub fn a_topic_with_settings_that_are_none_is_not_created(stage: &dyn Stage) {
    for (setting, value) in [("retention.ms", "soon"), ("cleanup.policy", "burn"), ("colour", "blue")] {
        let topic = unique("invalid");
        let refused = stage.admin().create(&[new(&topic, 1, &[(setting, value)])]);
        assert!(matches!(refused, Err(SystemError::Fatal(_))), "{setting}: {refused:?}");
        assert_eq!(stage.admin().describe(&[topic]), Ok(Vec::new()), "{setting}");
    }
}

pub fn settings_are_told_with_who_has_decided_on_them(stage: &dyn Stage) {
    let topic = stage.topic("settings", 1, &[("retention.ms", "1000000")]);
    assert_eq!(value(stage, &topic, "retention.ms"), ("1000000".to_owned(), ConfigSource::Topic));
    assert_eq!(value(stage, &topic, "cleanup.policy"), ("delete".to_owned(), ConfigSource::Default));
    let missing = unique("nobody-made-this");
    let told = stage.admin().describe_configs(&[missing, topic.clone()]).expect("told");
    assert_eq!(told.keys().collect::<Vec<_>>(), [&topic]);
}

pub fn a_setting_is_changed_and_the_others_stay(stage: &dyn Stage) {
    let topic = stage.topic("changed", 1, &[("retention.ms", "1000000"), ("cleanup.policy", "compact")]);
    stage.admin().alter_configs(&topic, &settings(&[("retention.ms", "2000000")])).expect("changed");
    wait_until("it is changed", || value(stage, &topic, "retention.ms").0 == "2000000");
    assert_eq!(value(stage, &topic, "cleanup.policy"), ("compact".to_owned(), ConfigSource::Topic));
}

pub fn a_change_to_what_is_no_setting_is_refused(stage: &dyn Stage) {
    let topic = stage.topic("unchanged", 1, &[("retention.ms", "1000000")]);
    for change in [("retention.ms", "soon"), ("colour", "blue")] {
        let refused = stage.admin().alter_configs(&topic, &settings(&[change]));
        assert!(matches!(refused, Err(SystemError::Fatal(_))), "{change:?}: {refused:?}");
    }
    assert_eq!(value(stage, &topic, "retention.ms").0, "1000000");
}

/// A broker may not have heard of it yet.
pub fn a_topic_that_is_not_there_cannot_be_changed_now(stage: &dyn Stage) {
    let refused =
        stage.admin().alter_configs(&unique("nobody-made-this"), &settings(&[("retention.ms", "1000")]));
    assert!(matches!(refused, Err(SystemError::Retriable(_))), "{refused:?}");
}

pub fn a_topic_gets_more_partitions_and_keeps_what_it_has(stage: &dyn Stage) {
    let topic = stage.topic("extended", 1, &[]);
    append(stage, &at(&topic, 0), &["a"]);
    for (order, has) in [(3, 3), (2, 3), (3, 3)] {
        stage.admin().extend(&topic, order).expect("extended");
        let told = stage.admin().describe(std::slice::from_ref(&topic)).expect("described");
        assert_eq!(told[0].partitions.len(), has, "{order}");
    }
    assert_eq!(texts(&committed(stage, &at(&topic, 0))), ["a"]);
    assert_eq!(high(stage, &at(&topic, 2)), 0);
}

pub fn a_topic_that_is_not_there_gets_no_partitions(stage: &dyn Stage) {
    let topic = unique("nobody-made-this");
    let refused = stage.admin().extend(&topic, 3);
    assert!(matches!(refused, Err(SystemError::Fatal(_))), "{refused:?}");
    assert_eq!(stage.admin().describe(&[topic]), Ok(Vec::new()));
}

pub fn topics_are_listed_by_name(stage: &dyn Stage) {
    let topic = stage.topic("listed", 2, &[]);
    let all = stage.admin().topics().expect("listed");
    assert_eq!(all.iter().filter(|name| **name == topic).count(), 1);
}

pub fn plain_messages_are_there_when_they_are_appended(stage: &dyn Stage) {
    let topic = stage.topic("appended", 2, &[]);
    let message = |partition, key: &str, value: Option<&str>| PlainMessage {
        to: at(&topic, partition),
        key: key.into(),
        value: value.map(Into::into),
    };
    let all = [message(0, "a", Some("1")), message(1, "b", Some("")), message(0, "", None)];
    stage.admin().append(&all).expect("appended");
    assert_eq!((ends(stage, &at(&topic, 0)).stable, ends(stage, &at(&topic, 1)).stable), (2, 1));
    let seen = |n| committed(stage, &at(&topic, n)).into_iter().map(|m| (m.key, m.value)).collect::<Vec<_>>();
    assert_eq!(seen(0), [(Some(b"a".to_vec()), Some(b"1".to_vec())), (Some(Vec::new()), None)]);
    assert_eq!(seen(1), [(Some(b"b".to_vec()), Some(Vec::new()))]);
}

pub fn nothing_is_appended_to_a_partition_that_is_not_there(stage: &dyn Stage) {
    let to = partition(stage, "appended-beyond");
    let message = PlainMessage { to: at(&to.topic, 7), key: b"k".to_vec(), value: None };
    let refused = stage.admin().append(&[message]);
    assert!(refused.is_err(), "{refused:?}");
    // Others still are.
    stage
        .admin()
        .append(&[PlainMessage { to: to.clone(), key: b"k".to_vec(), value: None }])
        .expect("appended");
    assert_eq!(high(stage, &to), 1);
}

pub fn questions_that_nobody_answers_may_be_asked_again(stage: &dyn Stage) {
    let told = stage.away().describe(&["any".to_owned()]);
    assert!(matches!(told, Err(SystemError::Retriable(_))), "{told:?}");
}
