//! Limits of containers, on real cgroups.

use std::thread::sleep;
use std::time::Duration;

use tests::cluster::{SOON, pid_of, slot_of, slot_with};
use tests::feed::{self, Counts, Feed};
use tests::wait::check;
use tests::{Brokers, Cluster, Job, Topics, process};
use types::ExitCause;

const MIB: u64 = 1 << 20;

#[test]
fn memory_hog_is_killed_as_out_of_memory_and_others_are_not() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(1);
    let mut job = Job { containers: 2, memory: "192MiB".into(), ..Job::counter("hog", brokers) };
    let hog_now = cluster.shared().join("hog-now");
    let settings =
        [("fault", "hog"), ("fault-task", "Partition 0"), ("fault-when", hog_now.to_str().unwrap())];
    job.config.extend(settings.map(|(key, value)| (key.to_owned(), value.to_owned())));
    topics.create(&job.inputs[0], 2);
    topics.create(&job.output, 1);
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    let hog = slot_with(&before, "Partition 0");
    let other = 1 - hog;
    let feed = Feed::start(brokers, &job.inputs[0], 100, 400);
    std::fs::write(&hog_now, "").unwrap();
    let after = cluster.wait("the hog killed and back", SOON, |cluster| {
        let app = cluster.all_running(&job)?;
        check(pid_of(&app, hog) != pid_of(&before, hog), || "the same process".into()).map(|()| app)
    });
    match slot_of(&after, hog).last_exit {
        Some(ExitCause::OutOfMemory { peak_bytes, limit_bytes }) => {
            assert_eq!(limit_bytes, 192 * MIB, "the limit is named");
            assert!((150 * MIB..=193 * MIB).contains(&peak_bytes), "the peak is at the limit: {peak_bytes}");
        }
        ref other => panic!("not out of memory: {other:?}"),
    }
    assert_eq!(pid_of(&after, other), pid_of(&before, other), "the other container is not killed");
    assert_eq!(slot_of(&after, other).restarts, 0);
    let mut sent = Counts::new();
    sleep(Duration::from_secs(1));
    feed.finish(&mut sent);
    cluster.wait("all of it", SOON, |_| feed::is_whole(&topics, &job.output, &sent));
    feed::assert_exact(&topics, &job.output, &sent);
}

#[test]
fn cpu_shares_hold_under_contention() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(1);
    // Two jobs that never rest, one with three times the CPU of the other, on one processor.
    let jobs = [0.9, 0.3].map(|cpu| {
        let mut job = Job { cpu, ..Job::counter("spin", brokers) };
        job.config.insert("spin".into(), "true".into());
        topics.create(&job.inputs[0], 1);
        topics.create(&job.output, 1);
        cluster.submit(&job);
        job
    });
    let pids = jobs.map(|job| pid_of(&cluster.wait_running(&job), 0));
    for pid in pids {
        process::pin(pid, 0).unwrap();
    }
    let used = || pids.map(|pid| process::cpu_ticks(pid).expect("it runs"));
    let before = used();
    sleep(Duration::from_secs(10));
    let after = used();
    let [large, small] = [after[0] - before[0], after[1] - before[1]];
    assert!(small > 20, "both run: {large} and {small} ticks in 10 s");
    #[expect(clippy::cast_precision_loss)] // some thousand ticks
    let ratio = large as f64 / small as f64;
    assert!((2.7..=3.3).contains(&ratio), "weights 3:1 gave {ratio:.2} ({large} and {small} ticks in 10 s)");
}
