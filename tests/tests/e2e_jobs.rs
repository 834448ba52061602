//! Whole jobs: submitted, run, stopped, refused.

use std::time::Duration;

use tests::cluster::{SOON, master, pid_of, slot_of};
use tests::feed::{self, Counts, Feed};
use tests::wait::check;
use tests::{Brokers, Cluster, Job, Settings, Topics, process};
use types::{AppState, ExitCause};

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn job_runs_and_output_is_exact() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(2);
    for delivery in ["at-least-once", "exactly-once"] {
        let job = Job { containers: 2, delivery: delivery.into(), ..Job::counter("exact", brokers) };
        topics.create(&job.inputs[0], 4);
        topics.create(&job.output, 2);
        let mut sent = Counts::new();
        feed::send(&topics, &job.inputs[0], 500, 10_000, &mut sent);
        cluster.submit(&job);
        let app = cluster.wait_running(&job);
        assert_eq!(
            slot_of(&app, 0).tasks.len() + slot_of(&app, 1).tasks.len(),
            4,
            "four partitions make four tasks"
        );
        feed::send(&topics, &job.inputs[0], 700, 10_000, &mut sent);
        cluster.wait(delivery, SOON, |_| feed::is_whole(&topics, &job.output, &sent));
        feed::assert_exact(&topics, &job.output, &sent);
        cluster.stop(&job);
        feed::assert_exact(&topics, &job.output, &sent);
        let group = format!("{}-1", job.name);
        let ends = topics.ends(&job.inputs[0]);
        cluster.wait("no lag for tools", SOON, |_| {
            let told = topics.committed(&group, &job.inputs[0]);
            check(told == ends, || format!("{told:?} of {ends:?}"))
        });
    }
}

#[test]
fn sigterm_commits() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(1);
    // Nothing but the end commits.
    let job = Job { commit: "14m".into(), ..Job::counter("sigterm", brokers) };
    topics.create(&job.inputs[0], 2);
    topics.create(&job.output, 1);
    let mut sent = Counts::new();
    feed::send(&topics, &job.inputs[0], 100, 3_000, &mut sent);
    cluster.submit(&job);
    let processed = |cluster: &Cluster, wanted: u64| {
        let app = cluster.all_running(&job)?;
        let count = slot_of(&app, 0).status.processed;
        check(count >= wanted, || format!("{count} of {wanted} processed")).map(|()| count)
    };
    cluster.wait("all processed", SOON, |cluster| processed(cluster, 3_000));
    assert_eq!(topics.read(&job.output).len(), 0, "nothing is committed before the end");
    cluster.stop(&job);
    feed::assert_exact(&topics, &job.output, &sent);

    cluster.submit(&job);
    feed::send(&topics, &job.inputs[0], 100, 200, &mut sent);
    let count = cluster.wait("the new messages processed", SOON, |cluster| processed(cluster, 200));
    assert_eq!(count, 200, "the restart reprocesses nothing");
    cluster.stop(&job);
    feed::assert_exact(&topics, &job.output, &sent);
}

#[test]
fn a_container_that_is_terminated_from_outside_is_started_again_and_everything_comes() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(1);
    let job = Job { containers: 2, ..Job::counter("outside", brokers) };
    topics.create(&job.inputs[0], 2);
    topics.create(&job.output, 1);
    let mut sent = Counts::new();
    cluster.submit(&job);
    let app = cluster.wait_running(&job);
    feed::send(&topics, &job.inputs[0], 100, 1_000, &mut sent);
    for slot in 0..2 {
        process::send(pid_of(&app, slot), rustix::process::Signal::TERM);
    }
    let again = cluster.wait("both started again", SOON, |cluster| {
        let again = cluster.all_running(&job)?;
        let same = (0..2).any(|slot| pid_of(&again, slot) == pid_of(&app, slot));
        check(!same, || "still the same processes".to_owned()).map(|()| again)
    });
    for slot in 0..2 {
        assert_eq!(slot_of(&again, slot).last_exit, Some(ExitCause::Failed { code: 143 }));
    }
    feed::send(&topics, &job.inputs[0], 100, 1_000, &mut sent);
    cluster.wait("all outputs", SOON, |_| feed::is_whole(&topics, &job.output, &sent));
    cluster.stop(&job);
    feed::assert_exact(&topics, &job.output, &sent);
}

#[test]
fn bad_job_file_is_refused_with_line_and_key() {
    let brokers = Brokers::shared();
    let cluster = Cluster::start(1);
    let good = Job::counter("bad", brokers).toml();
    let binary = Job::counter("bad", brokers).binary.to_string_lossy().into_owned();
    let line_of = |text: &str, part: &str| 1 + text.lines().position(|line| line.contains(part)).unwrap();
    let unknown = good.replace("delivery =", "delivrey =");
    let unknown_line = format!("bad.toml:{}:", line_of(&unknown, "delivrey"));
    let kind = good.replace("count = 1", "count = \"one\"");
    let kind_line = format!("bad.toml:{}:", line_of(&kind, "count ="));
    let no_file = good.replace(&binary, "/no/such/binary");
    let no_broker = good.replace(&brokers.bootstrap, "127.0.0.1:1");
    let cases: [(&str, &str, i32, &[&str]); 4] = [
        ("an unknown key", &unknown, 65, &["delivrey", &unknown_line, "delivery"]),
        ("a wrong type", &kind, 65, &["count", &kind_line]),
        ("a missing file", &no_file, 65, &["/no/such/binary"]),
        ("an unreachable broker", &no_broker, 5, &["127.0.0.1:1"]),
    ];
    for (what, text, code, words) in cases {
        let path = cluster.folder().join("bad.toml");
        std::fs::write(&path, text).unwrap();
        let output = cluster.client("samza-submit", &[path.to_str().unwrap()]);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{what}: {told}");
        for word in words {
            assert!(told.contains(word), "{what}: `{word}` is not in: {told}");
        }
    }
    let path = cluster.folder().join("good.toml");
    std::fs::write(&path, &good).unwrap();
    let output = cluster.client("samza-submit", &[path.to_str().unwrap(), "--rm", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(5), "an unreachable resource manager: {}", stderr(&output));
    assert!(stderr(&output).contains("127.0.0.1:1"), "{}", stderr(&output));
    let checked = cluster.client("samza-submit", &[path.to_str().unwrap(), "--check"]);
    assert!(checked.status.success(), "the unspoilt file is good: {}", stderr(&checked));
    let list = cluster.client("samza", &["list", "-o", "json"]);
    assert_eq!(String::from_utf8_lossy(&list.stdout).trim(), "[]", "nothing was changed");
}

#[test]
fn second_submit_of_a_live_job_is_refused() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(1);
    let job = Job::counter("second", brokers);
    topics.create(&job.inputs[0], 1);
    topics.create(&job.output, 1);
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    let refused = cluster.try_submit(&job, &[]);
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
    assert!(stderr(&refused).contains(&job.name), "it names the job: {}", stderr(&refused));
    assert!(stderr(&refused).contains("--replace"), "it says the way out: {}", stderr(&refused));
    let after = cluster.wait_running(&job);
    assert_eq!(
        (before.app.clone(), pid_of(&before, 0)),
        (after.app.clone(), pid_of(&after, 0)),
        "undisturbed"
    );
    cluster.stop(&job);
    cluster.submit(&job);
    let again = cluster.wait_running(&job);
    assert_ne!(before.app, again.app, "after its end it may be submitted again");
}

#[test]
fn failing_task_exhausts_retries_and_job_fails_with_the_reason() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(1);
    let mut job = Job::counter("failing", brokers);
    job.config.insert("fault".into(), "fail".into());
    job.restart = "retries = 2\nwindow = \"5m\"\nbackoff = { min = \"100ms\", max = \"200ms\" }".into();
    topics.create(&job.inputs[0], 1);
    topics.create(&job.output, 1);
    feed::send(&topics, &job.inputs[0], 1, 1, &mut Counts::new());
    cluster.submit(&job);
    let app = cluster.wait("the job failed", SOON, |cluster| {
        let app = cluster.app(&job)?;
        check(app.state == AppState::Failed, || format!("{:?}", app.state)).map(|()| app)
    });
    assert!(app.diagnostics.contains("exit code 1"), "the reason names the exit: {}", app.diagnostics);
    assert!(app.diagnostics.contains('2'), "the reason names the retries: {}", app.diagnostics);
    let runs = app.containers.iter().filter(|container| container.slot == Some(0)).count();
    assert_eq!(runs, 3, "one start and two retries");
    let logs = cluster.client("samza", &["logs", &job.name, "--stderr"]);
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(logs.contains("told to fail at message 1"), "logs of the exited containers say why: {logs}");
    assert_eq!(topics.read(&job.output).len(), 0);
}

#[test]
fn containers_prefer_hosts_of_their_brokers() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(3);
    for host in 1..=3 {
        let job = Job { containers: 2, ..Job::counter("prefer", brokers) };
        // Every partition lives on one broker alone; the three nodes have the same room.
        topics.create_on(&job.inputs[0], &[&[host], &[host], &[host], &[host]]);
        topics.create(&job.output, 1);
        cluster.submit(&job);
        let app = cluster.wait_running(&job);
        for slot in [slot_of(&app, 0), slot_of(&app, 1)] {
            assert_eq!(slot.node.as_ref().unwrap().0, format!("127.0.0.{host}"), "{slot:?}");
            assert_eq!(slot.on_preferred, Some(true), "{slot:?}");
        }
        cluster.stop(&job);
    }
    // A cluster without a node beside broker 3: the preference is shown, and the job runs all the same.
    let elsewhere = Cluster::with(Settings::nodes(2));
    let job = Job {
        placement: "wait = \"300ms\"\nrack-wait = \"300ms\"".into(),
        ..Job::counter("prefer", brokers)
    };
    topics.create_on(&job.inputs[0], &[&[3]]);
    topics.create(&job.output, 1);
    elsewhere.submit(&job);
    let app = elsewhere.wait_running(&job);
    let slot = slot_of(&app, 0);
    assert!(slot.unmatched.len() == 1 && slot.unmatched[0].contains("127.0.0.3"), "{slot:?}");
    assert_eq!(slot.on_preferred, Some(false), "{slot:?}");
    let shown = elsewhere.client("samza", &["status", &job.name]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("127.0.0.3"), "people are shown it too: {shown}");
}

#[test]
fn stop_leaves_no_process_and_no_cgroup() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(1);
    let before = cluster.cgroups();
    let mut job = Job { containers: 2, ..Job::counter("stop", brokers) };
    job.config.insert("fault".into(), "fork".into());
    topics.create(&job.inputs[0], 2);
    topics.create(&job.output, 1);
    cluster.submit(&job);
    let app = cluster.wait_running(&job);
    let feed = Feed::start(brokers, &job.inputs[0], 100, 200);
    // A sleeper per task that left its parent; only its cgroup still knows where it belongs.
    let sleepers = cluster.wait("the double-forked children", SOON, |cluster| {
        let mut found = cluster.node_processes(0);
        found.retain(|seen| seen.command == "sleep 1000");
        check(found.len() == 2, || format!("{found:?}")).map(|()| found)
    });
    assert!(cluster.cgroups().len() > before.len(), "containers have cgroups");
    feed.finish(&mut Counts::new());
    let workers = [pid_of(&app, 0), pid_of(&app, 1), master(&app).ok().unwrap().pid.unwrap()];
    cluster.stop(&job);
    cluster.wait("no process and no cgroup left", Duration::from_secs(10), |cluster| {
        let left = cluster.node_processes(0);
        check(left.is_empty(), || format!("{left:?}"))?;
        let groups = cluster.cgroups();
        check(groups == before, || format!("{groups:?}"))
    });
    for pid in sleepers.iter().map(|seen| seen.pid).chain(workers) {
        assert!(!process::is_alive(pid), "{pid} lives");
    }
    let app = cluster.app(&job).ok().unwrap();
    assert!(matches!(app.state, AppState::Finished | AppState::Killed), "{:?}", app.state);
    let exits: Vec<_> = app.containers.iter().map(|container| &container.state).collect();
    assert!(
        !exits.is_empty() && !format!("{exits:?}").contains(&format!("{:?}", ExitCause::NodeLost)),
        "{exits:?}"
    );
}

/// The numbers that `topic` has for the keys that begin with `prefix`, sorted.
fn counted(topics: &Topics, topic: &str, prefix: &str) -> Vec<(String, Vec<i64>)> {
    let mut rows: Vec<(String, Vec<i64>)> =
        topics.numbers(topic).into_iter().filter(|(key, _)| key.starts_with(prefix)).collect();
    rows.iter_mut().for_each(|(_, counts)| counts.sort_unstable());
    rows
}

#[test]
fn added_partitions_and_topics_are_taken_up_and_nothing_that_ran_is_lost() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(2);
    // One with state that says extend, one that only passes on, one with state that says nothing.
    let extends = Job { containers: 2, ..Job::counter("grows", brokers) };
    let mut passes = Job { stores: Vec::new(), ..Job::counter("passes", brokers) };
    let stays = Job::counter("stays", brokers);
    passes.binary = tests::cluster::program("examples/measured");
    passes.config.extend(
        [("mode", "passthrough"), ("window", "0"), ("warm-up", "1")]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    let pattern = format!("/{}-in.*/", passes.name);
    let first = std::mem::replace(&mut passes.inputs[0], pattern);
    let newest = format!("\n[streams.\"kafka.{}\"]\noffset-default = \"newest\"\n", passes.inputs[0]);
    let submit = |job: &Job, text: String, flags: &[&str]| {
        let path = cluster.folder().join(format!("{}.toml", job.name));
        std::fs::write(&path, text).unwrap();
        cluster.client("samza-submit", &[&[path.to_str().unwrap()], flags].concat())
    };
    for (job, input) in [(&extends, &extends.inputs[0]), (&passes, &first), (&stays, &stays.inputs[0])] {
        topics.create(input, 2);
        topics.create(&job.output, 1);
    }
    let says = |job: &Job, growth: &str| {
        job.toml().replace("[task]\n", &format!("[task]\non-input-growth = \"{growth}\"\n"))
    };
    for (job, text) in
        [(&extends, says(&extends, "extend")), (&passes, passes.toml() + &newest), (&stays, stays.toml())]
    {
        let output = submit(job, text, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        cluster.wait_running(job);
    }
    let mut sent = Counts::new();
    feed::send(&topics, &extends.inputs[0], 100, 2_000, &mut sent);
    cluster.wait("the first messages", SOON, |_| feed::is_whole(&topics, &extends.output, &sent));

    let late = first.replace("-in", "-in-late");
    for input in [&extends.inputs[0], &stays.inputs[0]] {
        topics.extend(input, 5);
    }
    topics.create(&late, 3);
    // They are there before anybody reads the added partitions.
    let new = |n: usize| (0..n).map(|n| (format!("new-{}", n % 50), n.to_string())).collect::<Vec<_>>();
    topics.produce(&extends.inputs[0], new(500));
    topics.produce(&late, new(300));
    let ten: Vec<(String, Vec<i64>)> = {
        let mut keys: Vec<_> = (0..50).map(|n| (format!("new-{n}"), (1..=10).collect())).collect();
        keys.sort();
        keys
    };
    cluster.wait("all new keys counted, each once, by tasks old and new", SOON, |_| {
        let found = counted(&topics, &extends.output, "new-");
        check(found == ten, || format!("{found:?}"))
    });
    cluster.wait("all messages of the new topic, though it says newest", SOON, |_| {
        let found = topics.read(&passes.output).len();
        check(found == 300, || format!("{found} of 300"))
    });
    let app = cluster.wait_running(&extends);
    assert_eq!(slot_of(&app, 0).tasks.len() + slot_of(&app, 1).tasks.len(), 5, "five tasks");
    assert_eq!(topics.partitions(&extends.checkpoints()), 5);
    assert_eq!(topics.partitions(&extends.changelog("counts")), 5);
    let old: Vec<_> = counted(&topics, &extends.output, "key-");
    assert!(old.iter().all(|(_, counts)| counts == &(1..=20).collect::<Vec<i64>>()), "none again: {old:?}");

    cluster.wait("the job that says nothing tells", SOON, |cluster| {
        let shown = cluster.client("samza", &["status", &stays.name]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let told = shown.contains("warning") && shown.contains("has 5 partitions and had 2");
        check(told, || shown.clone())
    });
    assert_eq!(slot_of(&cluster.wait_running(&stays), 0).tasks.len(), 2, "it runs on");
    cluster.stop(&stays);
    cluster.submit(&stays);
    let app = cluster.wait("it is refused", SOON, |cluster| {
        let app = cluster.app(&stays)?;
        check(app.state == AppState::Failed, || format!("{:?}", app.state)).map(|()| app)
    });
    assert!(app.diagnostics.contains("on-input-growth = \"extend\""), "the way out: {}", app.diagnostics);
}

#[test]
fn start_points_of_a_running_job_are_moved_and_the_others_run_on() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(2);
    let job = Job { containers: 2, ..Job::counter("moved", brokers) };
    topics.create(&job.inputs[0], 2);
    topics.create(&job.output, 1);
    let mut sent = Counts::new();
    feed::send(&topics, &job.inputs[0], 100, 1_000, &mut sent);
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    cluster.wait("all counted", SOON, |_| feed::is_whole(&topics, &job.output, &sent));
    let path = job.write(cluster.folder());
    let set = format!("kafka.{}:1=oldest", job.inputs[0]);
    let moved = ["checkpoint", path.to_str().unwrap(), "--set", &set];
    let refused = cluster.client("samza", &moved);
    assert!(stderr(&refused).contains("--live"), "without it: {}", stderr(&refused));
    let done = cluster.client("samza", &[&moved[..], &["--live"]].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    let of_one: i64 = {
        let messages = topics.read(&job.inputs[0]);
        i64::try_from(messages.iter().filter(|row| row.partition == 1).count()).unwrap()
    };
    cluster.wait("partition 1 is counted twice", SOON, |_| {
        let total = i64::try_from(topics.read(&job.output).len()).unwrap();
        check(total == 1_000 + of_one, || format!("{total} of {}", 1_000 + of_one))
    });
    let after = cluster.wait_running(&job);
    let slot = tests::cluster::slot_with(&after, "Partition 1");
    assert_ne!(pid_of(&before, slot), pid_of(&after, slot));
    assert_eq!(pid_of(&before, 1 - slot), pid_of(&after, 1 - slot), "the other one is undisturbed");
}
