//! A container at its memory limit, on a real cgroup: it slows down, it is not killed.

use std::time::Duration;

use tests::cluster::{SOON, pid_of, slot_of};
use tests::feed::{self, Counts};
use tests::wait::check;
use tests::{Brokers, Cluster, Job, Topics};

const MIB: usize = 1 << 20;
const LIMIT: usize = 96 * MIB;
const PAD: usize = 4096;

#[test]
#[ignore = "a gigabyte of state takes minutes; make soak runs it"]
fn a_job_whose_state_is_ten_times_its_memory_is_slow_but_exact_and_is_not_killed() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(1);
    let mut job =
        Job { memory: format!("{}MiB", LIMIT / MIB), cpu: 1.5, ..Job::counter("ten-times", brokers) };
    job.stores.push("pads".into());
    job.config.insert("pad".into(), PAD.to_string());
    topics.create(&job.inputs[0], 2);
    topics.create(&job.output, 2);
    let keys = 10 * LIMIT / PAD;
    let mut sent = Counts::new();
    feed::send(&topics, &job.inputs[0], keys, keys, &mut sent);
    // Some keys once more, spread over all that is on disk by then.
    let again: Vec<String> = (0..keys).step_by(10).map(|n| format!("key-{n}")).collect();
    topics.produce(&job.inputs[0], again.iter().map(|key| (key, "x")));
    for key in again {
        *sent.entry(key).or_default() += 1;
    }
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    let all = Duration::from_secs(600);
    let messages = u64::try_from(sent.values().sum::<i64>()).expect("counts are positive");
    cluster.wait("all of it processed", all, |cluster| {
        let processed = slot_of(&cluster.all_running(&job)?, 0).status.processed;
        check(processed >= messages, || format!("{processed} of {messages}"))
    });
    cluster.wait("all of it committed", SOON, |_| feed::is_whole(&topics, &job.output, &sent));
    feed::assert_exact(&topics, &job.output, &sent);
    let after = cluster.wait("still running", SOON, |cluster| cluster.all_running(&job));
    assert_eq!(pid_of(&after, 0), pid_of(&before, 0), "the same process: {:?}", slot_of(&after, 0).last_exit);
}
