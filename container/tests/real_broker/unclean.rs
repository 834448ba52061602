//! A changelog that loses acknowledged rows because a replica that lacks them was made its leader: what Kafka lost is
//! told, and the rows on the disk fill it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use task_api::system::{NewTopic, SystemAdmin};
use types::{Delivery, StateLost};

use crate::PATIENCE;
use crate::brokers::Brokers;
use crate::container::is_running;
use crate::job::{PARTITIONS, patiently};
use crate::operator::Operator;
use crate::storm::assert_end;
use crate::tally::Tally;

/// Partition 0 of a topic: its leader, and the other replica.
fn replicas(operator: &Operator, topic: &str) -> (Option<i32>, Vec<i32>) {
    let found = patiently(|| operator.admin.describe(&[topic.to_owned()]));
    let partition = &found[0].partitions[0];
    (partition.leader, partition.replicas.clone())
}

fn loses_rows(delivery: Delivery) {
    let brokers = Brokers::own(&["--brokers", "3"]);
    let mut tally = Tally::new(&format!("unclean-{delivery:?}"), delivery, Arc::clone(&brokers), 3);
    let (operator, changelog) = (Operator::of(&brokers.bootstrap), tally.job.topic("changelog"));
    let config = [
        ("cleanup.policy", "compact"),
        ("min.insync.replicas", "1"),
        ("unclean.leader.election.enable", "true"),
    ];
    operator.make_again(&NewTopic {
        topic: changelog.clone(),
        partitions: PARTITIONS,
        replication: 2,
        config: config
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
    });
    tally.feed_every_key();
    let mut first = tally.start("state", &[]);
    tally.await_checkpoints(&mut first);
    let (leader, of) = replicas(&operator, &changelog);
    let leader = leader.expect("it has one");
    let follower = *of.iter().find(|id| **id != leader).expect("two replicas");

    // What comes now is acknowledged by the leader alone, and dies with it.
    brokers.kill(follower);
    tally.feed(2_000);
    tally.await_checkpoints(&mut first);
    first.signal(Signal::TERM);
    assert_eq!(first.exit_code(), 143);
    let had = operator.ends(&changelog, 0).2;
    brokers.kill(leader);
    brokers.restart_one(follower);
    let start = Instant::now();
    while replicas(&operator, &changelog).0 != Some(follower) {
        assert!(start.elapsed() < PATIENCE, "{follower} does not become the leader of {changelog}-0");
        std::thread::sleep(Duration::from_millis(200));
    }
    let has = operator.ends(&changelog, 0).2;
    assert!(has < had, "the election was a clean one: {had}, and {has} now");

    let mut refused = tally.start("state", &[]);
    assert_end(&mut refused, &[&format!("ends at {has} now")]);
    brokers.restart();
    let policy = |tally: &mut Tally, policy| {
        tally.job.spec.stores.get_mut("counts").expect("the store").state_lost = policy;
    };
    policy(&mut tally, StateLost::Local);
    let mended = tally.start("state", &[]);
    tally.master.wait(&mended, "running", is_running);
    policy(&mut tally, StateLost::Fail);
    mended.signal(Signal::TERM);
    assert_eq!(mended.exit_code(), 143);
    tally.feed(1_000);
    tally.finish("state");
}

#[test]
#[ignore = "takes a minute and brokers of its own; make soak runs it"]
fn rows_that_an_unclean_election_lost_are_missed_and_filled_from_the_disk() {
    [Delivery::ExactlyOnce, Delivery::AtLeastOnce].into_iter().for_each(loses_rows);
}
