//! State that was lost: the container fails by name and changes nothing, or does as the job file says; and everything
//! that only looks like a loss is none.

use std::path::Path;

use task_core::record::{self, Checkpoint};
use types::{Delivery, JobSpec, JobTopics, StateLost};

use crate::end::End;
use crate::fake::Broker;
use crate::tests::{PARTITIONS, assert_exact, broker, checkpoints, folder, job, live, on_disk};

fn job_with(delivery: Delivery, policy: StateLost) -> JobSpec {
    let mut job = job(delivery, true);
    job.stores.get_mut("counts").expect("a store").state_lost = policy;
    job
}

fn checkpoint_topic(job: &JobSpec) -> String {
    JobTopics::of(&job.job).checkpoint
}

/// The last committed checkpoint of a partition.
fn checkpoint(broker: &Broker, job: &JobSpec, partition: i32) -> Checkpoint {
    checkpoints(broker, job, partition).pop().expect("a checkpoint")
}

/// A job that has run and ended in order.
fn ran(job: &JobSpec, state: &Path) -> Broker {
    let broker = broker(30);
    let first = live(&broker, job, 1, state, None);
    assert!(first.ended.is_ok(), "{:?}", first.ended);
    broker
}

fn refused(broker: &Broker, job: &JobSpec, seq: u64, state: &Path) -> String {
    let before = on_disk(state, 0);
    let Err(End::Failed(why)) = live(broker, job, seq, state, None).ended else {
        panic!("it must not start")
    };
    assert!(why.contains("is lost, and nothing was changed"), "{why}");
    assert_eq!(on_disk(state, 0), before, "{why}");
    why
}

/// Loses something of a changelog.
type Harm = fn(&Broker);

const HARMS: [(&str, Harm); 4] = [
    ("was made again: its id was id of changelog and is id no. 2 of changelog now", |broker| {
        broker.remake("changelog", PARTITIONS);
    }),
    ("ends at 3 now, and was committed up to", |broker| broker.cut_end("changelog", 0, 3)),
    ("has grown again: a broker became its leader that did not have everything", |broker| {
        let had = broker.committed("changelog", 0).last().map_or(0, |(offset, ..)| offset + 3);
        broker.elect_unclean("changelog", 0, 3);
        (3..had).for_each(|_| broker.append("changelog", 0, b"k1", Some(&7_i64.to_be_bytes())));
    }),
    ("begins at 4 now, and began at 0", |broker| broker.cut_begin("changelog", 0, 4)),
];

#[test]
fn a_changelog_that_was_made_again_or_cut_fails_the_container_by_name_wherever_it_starts() {
    for (what, harm) in HARMS {
        let (job, here, there) = (job(Delivery::ExactlyOnce, true), folder(), folder());
        let broker = ran(&job, here.path());
        harm(&broker);
        for (seq, state) in [(2, here.path()), (3, there.path())] {
            let why = refused(&broker, &job, seq, state);
            for part in
                [what, "changelog topic changelog, partition", "store counts", "state-lost", "--accept-state"]
            {
                assert!(why.contains(part), "{part} is not in: {why}");
            }
        }
    }
}

#[test]
fn a_task_that_was_idle_before_the_end_remembers_all_of_its_changelog() {
    let (job, here) = (job(Delivery::ExactlyOnce, true), folder());
    let broker = broker(10);
    // Partition 0 is read to its end long before the other.
    (0..30).for_each(|_| broker.append("in", 1, b"k1", Some(b"x")));
    assert!(live(&broker, &job, 1, here.path(), None).ended.is_ok());
    let end = checkpoint(&broker, &job, 0).changelogs["counts"].end;
    let rows = broker.committed("changelog", 0);
    assert!(rows.iter().all(|(offset, ..)| *offset < end), "{end}");
    // What it remembers includes the marker behind the last row.
    assert_eq!(Some(end), rows.last().map(|(offset, ..)| offset + 2));
}

#[test]
fn an_input_that_was_cut_and_has_grown_again_fails_the_container_by_name() {
    let (job, here) = (job(Delivery::ExactlyOnce, true), folder());
    let broker = ran(&job, here.path());
    let had = broker.committed("in", 0).len();
    // A change of leaders that loses nothing is none.
    broker.elect_unclean("in", 0, had);
    broker.append("in", 0, b"k1", Some(b"x"));
    assert!(live(&broker, &job, 2, here.path(), None).ended.is_ok());
    broker.elect_unclean("in", 0, had - 5);
    (0..20).for_each(|_| broker.append("in", 0, b"k1", Some(b"y")));
    let Err(End::Failed(why)) = live(&broker, &job, 3, here.path(), None).ended else {
        panic!("it takes other messages for those that it has read")
    };
    for part in ["is no longer what is there", "unclean election", "--set kafka.in=oldest", "offset-lost"] {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
}

#[test]
fn checkpoints_that_are_gone_or_older_than_the_rows_fail_the_container_by_name() {
    let (job, here, there) = (job(Delivery::ExactlyOnce, true), folder(), folder());
    let broker = ran(&job, here.path());
    broker.remake(&checkpoint_topic(&job), PARTITIONS);
    let why = refused(&broker, &job, 2, here.path());
    assert!(why.contains("has no checkpoint of it, but the rows in"), "{why}");
    // Elsewhere the changelog shows it.
    let Err(End::Failed(why)) = live(&broker, &job, 3, there.path(), None).ended else {
        panic!("it guesses")
    };
    assert!(why.contains("has no checkpoint of it") && why.contains("--set kafka.in=oldest"), "{why}");

    let here = folder();
    let broker = ran(&job, here.path());
    let all = broker.committed(&checkpoint_topic(&job), 0);
    let cut = all[all.len() - 2].0 as usize + 2;
    broker.cut_end(&checkpoint_topic(&job), 0, cut);
    let why = refused(&broker, &job, 2, here.path());
    assert!(why.contains("its last checkpoint in topic"), "{why}");
}

#[test]
fn a_lost_changelog_is_filled_from_rows_of_the_last_commit_exactly() {
    for (what, harm) in HARMS {
        for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
            let (job, here, there) = (job_with(delivery, StateLost::Local), folder(), folder());
            let broker = ran(&job, here.path());
            harm(&broker);
            let elsewhere = refused(&broker, &job, 2, there.path());
            assert!(elsewhere.contains("not possible here: this disk has no whole copy"), "{elsewhere}");
            let mended = live(&broker, &job, 3, here.path(), None);
            assert!(mended.ended.is_ok(), "{:?}", mended.ended);
            assert_exact(&broker, &job, here.path(), what);
            // What the log says is what the disk had: a start without it shows that, and refuses nothing.
            let fresh = folder();
            broker.append("in", 0, b"k1", Some(b"x"));
            let moved = live(&broker, &job, 4, fresh.path(), None);
            assert!(moved.ended.is_ok(), "{:?}", moved.ended);
            assert_exact(&broker, &job, fresh.path(), what);
        }
    }
}

#[test]
fn a_crash_at_any_call_while_a_changelog_is_filled_costs_nothing() {
    let job = job_with(Delivery::ExactlyOnce, StateLost::Local);
    let mut at = 0;
    loop {
        let (here, left) = (folder(), folder());
        let broker = ran(&job, here.path());
        broker.remake("changelog", PARTITIONS);
        let second = live(&broker, &job, 2, here.path(), Some((at, left.path().to_owned())));
        let state = if second.crashed { &left } else { &here };
        let third = live(&broker, &job, 3, state.path(), None);
        assert!(third.ended.is_ok(), "after a crash at {at}: {:?}", third.ended);
        assert_exact(&broker, &job, state.path(), &format!("crash at {at}"));
        if !second.crashed {
            assert!(at > 20, "{at}");
            return;
        }
        at += 3;
    }
}

#[test]
fn a_store_may_begin_empty_and_nothing_of_its_changelog_comes_back() {
    for (what, harm) in HARMS {
        let (job, here) = (job_with(Delivery::ExactlyOnce, StateLost::Empty), folder());
        let broker = ran(&job, here.path());
        harm(&broker);
        for (seq, state) in [(2, here.path()), (3, folder().path())] {
            let life = live(&broker, &job, seq, state, None);
            assert!(life.ended.is_ok(), "{:?}", life.ended);
            assert!(on_disk(state, 0).is_empty(), "{what}: {:?}", on_disk(state, 0));
        }
        assert_eq!(checkpoint(&broker, &job, 0).offset("kafka.in", 0), Some("15"), "positions stay");
    }
}

#[test]
fn without_checkpoints_a_task_goes_back_to_the_rows_of_its_disk_and_their_positions() {
    let (job, here) = (job_with(Delivery::ExactlyOnce, StateLost::Local), folder());
    let broker = ran(&job, here.path());
    broker.remake(&checkpoint_topic(&job), PARTITIONS);
    broker.append("in", 0, b"k1", Some(b"x"));
    let back = live(&broker, &job, 2, here.path(), None);
    assert!(back.ended.is_ok(), "{:?}", back.ended);
    assert_exact(&broker, &job, here.path(), "from where the disk was");
}

#[test]
fn an_older_copy_takes_the_whole_task_back_unless_outputs_would_be_repeated() {
    for (delivery, goes_back) in [(Delivery::AtLeastOnce, true), (Delivery::ExactlyOnce, false)] {
        let (job, old, new) = (job_with(delivery, StateLost::Local), folder(), folder());
        let broker = ran(&job, old.path());
        for partition in 0..PARTITIONS {
            broker.append("in", partition, b"k1", Some(b"x"));
        }
        assert!(live(&broker, &job, 2, new.path(), None).ended.is_ok());
        broker.remake("changelog", PARTITIONS);
        if goes_back {
            let back = live(&broker, &job, 3, old.path(), None);
            assert!(back.ended.is_ok(), "{:?}", back.ended);
            assert_exact(&broker, &job, old.path(), "the inputs are read again from there");
        } else {
            let why = refused(&broker, &job, 3, old.path());
            assert!(why.contains("older copy: going back to it would repeat outputs"), "{why}");
        }
    }
}

#[test]
fn what_only_looks_like_a_loss_is_none() {
    let run = |broker: &Broker, job: &JobSpec, seq: u64, state: &Path| {
        let life = live(broker, job, seq, state, None);
        assert!(life.ended.is_ok(), "{:?}", life.ended);
    };
    let (job, here) = (job(Delivery::ExactlyOnce, true), folder());
    let broker = ran(&job, here.path());
    // The job file names another changelog, and then has one more store, and then the first one again.
    broker.topic("other", PARTITIONS);
    let mut other = job.clone();
    other.stores.get_mut("counts").expect("a store").changelog = Some("other".into());
    run(&broker, &other, 2, here.path());
    let mut more = job.clone();
    broker.topic("more", PARTITIONS);
    let counts = job.stores["counts"].clone();
    more.stores.insert("more".into(), types::StoreSpec { changelog: Some("more".into()), ..counts });
    run(&broker, &more, 3, here.path());
    run(&broker, &job, 4, here.path());
    // Rows that end may be deleted in the changelog.
    broker.configure("changelog", "cleanup.policy", "compact,delete");
    broker.cut_begin("changelog", 0, 5);
    run(&broker, &job, 5, here.path());
    // A folder of another job says nothing of this one.
    let foreign = folder();
    let mut another = job.clone();
    another.job.name = "another".into();
    let elsewhere = self::broker(10);
    elsewhere.topic(&checkpoint_topic(&another), PARTITIONS);
    run(&elsewhere, &another, 9, foreign.path());
    let first = self::broker(20);
    first.remake("changelog", PARTITIONS);
    run(&first, &job, 1, foreign.path());
    assert_exact(&first, &job, foreign.path(), "a first start on a folder of another job");
}

#[test]
fn checkpoints_of_earlier_versions_are_taken_as_they_are() {
    let (job, here) = (job(Delivery::ExactlyOnce, true), folder());
    let broker = ran(&job, here.path());
    for partition in 0..PARTITIONS {
        let mut old = checkpoint(&broker, &job, partition);
        (old.commit, old.changelogs) = (0, [].into());
        old.incarnation.seq = 2;
        let key = record::checkpoint_key(&format!("Partition {partition}").as_str().into());
        broker.append(&checkpoint_topic(&job), partition, &key, Some(&record::checkpoint_value(&old)));
    }
    let second = live(&broker, &job, 3, here.path(), None);
    assert!(second.ended.is_ok(), "{:?}", second.ended);
    broker.append("in", 0, b"k1", Some(b"x"));
    assert!(live(&broker, &job, 4, here.path(), None).ended.is_ok());
    assert_exact(&broker, &job, here.path(), "after an earlier version");
    assert!(!checkpoint(&broker, &job, 0).changelogs.is_empty(), "it is remembered from now on");
}
