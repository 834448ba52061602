//! What is killed comes back; what is not is not disturbed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use tests::cluster::{SOON, master, pid_of, slot_of, slot_with};
use tests::feed::{self, Counts, Feed};
use tests::wait::check;
use tests::{Brokers, Cluster, Job, Topics, process};
use types::{AppReport, ContainerState, ExitCause, RestoreStatus, state_entry};

/// How a slot's tasks were restored.
fn restores(app: &AppReport, slot: u32) -> Vec<RestoreStatus> {
    let tasks = &slot_of(app, slot).status.tasks;
    tasks.iter().map(|task| task.restore.clone().expect("a task with a store was restored")).collect()
}

/// A job of two containers on four partitions, with its topics.
fn job(name: &str, topics: &Topics, brokers: &Brokers) -> Job {
    let job = Job { containers: 2, ..Job::counter(name, brokers) };
    topics.create(&job.inputs[0], 4);
    topics.create(&job.output, 2);
    job
}

/// Lets task `Partition 0` exit with 3 at its next message once the returned file exists.
fn arm(job: &mut Job, cluster: &Cluster) -> PathBuf {
    let file = cluster.shared().join("exit-now");
    let settings = [("fault", "exit"), ("fault-task", "Partition 0"), ("fault-when", file.to_str().unwrap())];
    job.config.extend(settings.map(|(key, value)| (key.to_owned(), value.to_owned())));
    file
}

/// Whether a flush of the store in `folder` was completed after `then`: its last step is a line in the manifest.
fn flushed_since(folder: &Path, then: SystemTime) -> bool {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut manifests = files.filter(|file| file.file_name().to_string_lossy().starts_with("MANIFEST"));
    manifests.any(|file| file.metadata().and_then(|data| data.modified()).is_ok_and(|at| at > then))
}

/// Waits until slot `slot` is running again in another process than `pid`.
#[track_caller]
fn wait_replaced(cluster: &Cluster, job: &Job, slot: u32, pid: u32) -> AppReport {
    cluster.wait("another container in its place", SOON, |cluster| {
        let app = cluster.all_running(job)?;
        check(pid_of(&app, slot) != pid, || format!("still process {pid}")).map(|()| app)
    })
}

/// Waits until more is committed to the output than `before`, and returns how much.
#[track_caller]
fn wait_progress(cluster: &Cluster, topics: &Topics, job: &Job, before: u64) -> u64 {
    cluster.wait("output advances", SOON, |_| {
        let now = topics.ends(&job.output).iter().sum();
        check(now > before, || format!("still {before}")).map(|()| now)
    })
}

/// Lets `feed` run a second more, ends it, and asserts that all of it and what was `sent` before is counted exactly.
#[track_caller]
fn finish(feed: Feed, mut sent: Counts, topics: &Topics, cluster: &Cluster, job: &Job) {
    sleep(Duration::from_secs(1));
    feed.finish(&mut sent);
    cluster.wait("all of it", SOON, |_| feed::is_whole(topics, &job.output, &sent));
    feed::assert_exact(topics, &job.output, &sent);
}

#[test]
fn killed_container_comes_back_with_its_state() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(2);
    let job = job("killed", &topics, brokers);
    let mut sent = Counts::new();
    feed::send(&topics, &job.inputs[0], 5_000, 20_000, &mut sent);
    cluster.submit(&job);
    cluster.wait("the first part", SOON, |_| feed::is_whole(&topics, &job.output, &sent));
    let before = cluster.wait_running(&job);
    let changelog: u64 = topics.ends(&job.changelog("counts")).iter().sum();
    assert!(changelog > 5_000, "the changelog holds every key: {changelog}");
    let whole = SystemTime::now();
    let feed = Feed::start(brokers, &job.inputs[0], 5_000, 2_000);
    // What is written to disk now and then is what the changelog need not repeat.
    cluster.wait("the first part is on disk", SOON, |cluster| {
        let slot = slot_of(&before, 0);
        let node = cluster.node_root(cluster.place_of(slot.node.as_ref().unwrap()));
        let folder = node.join("state").join(format!("{}-1", job.name));
        let missing: Vec<_> =
            slot.tasks.iter().filter(|task| !flushed_since(&folder.join(state_entry(task)), whole)).collect();
        check(missing.is_empty(), || format!("not yet: {missing:?}"))
    });

    let victim = pid_of(&before, 0);
    process::send(victim, Signal::KILL);
    let after = wait_replaced(&cluster, &job, 0, victim);
    assert_eq!(slot_of(&after, 0).node, slot_of(&before, 0).node, "it comes back where its state is");
    assert_eq!(pid_of(&after, 1), pid_of(&before, 1), "the other container is not disturbed");
    assert_eq!(slot_of(&after, 0).last_exit, Some(ExitCause::Signal { signal: 9 }));
    assert_eq!(slot_of(&after, 0).restarts, 1);
    let restores = restores(&after, 0);
    let replayed: u64 = restores.iter().map(|restore| restore.total).sum();
    assert!(restores.iter().all(|restore| restore.from_local), "local state is used: {restores:?}");
    assert!(
        replayed * 4 < changelog,
        "only the tail is replayed: {replayed} of about {changelog} / 2, {restores:?}"
    );

    finish(feed, sent, &topics, &cluster, &job);
}

#[test]
fn dead_node_moves_its_containers_and_restores_them() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let mut cluster = Cluster::start(3);
    let mut job = job("dead", &topics, brokers);
    job.placement = "spread = \"host\"".into();
    let mut sent = Counts::new();
    feed::send(&topics, &job.inputs[0], 5_000, 20_000, &mut sent);
    cluster.submit(&job);
    cluster.wait("the first part", SOON, |_| feed::is_whole(&topics, &job.output, &sent));
    let before = cluster.wait_running(&job);
    let feed = Feed::start(brokers, &job.inputs[0], 5_000, 1_000);
    let dead = slot_of(&before, 0).node.clone().unwrap();
    cluster.kill_node(cluster.place_of(&dead));

    let after = wait_replaced(&cluster, &job, 0, pid_of(&before, 0));
    assert_ne!(slot_of(&after, 0).node.as_ref(), Some(&dead), "it runs elsewhere");
    let restores = restores(&after, 0);
    let rows: u64 = restores.iter().map(|restore| restore.rows).sum();
    assert!(restores.iter().all(|restore| !restore.from_local), "no local state there: {restores:?}");
    assert!(rows > 1_000, "rows came from the changelog: {restores:?}");
    finish(feed, sent, &topics, &cluster, &job);
}

#[test]
fn rm_restart_disturbs_nothing() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let mut cluster = Cluster::start(2);
    let job = job("rm", &topics, brokers);
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    let (first, second) = (pid_of(&before, 0), pid_of(&before, 1));
    let am = master(&before).ok().unwrap().pid.unwrap();
    let feed = Feed::start(brokers, &job.inputs[0], 500, 400);
    let mut output = wait_progress(&cluster, &topics, &job, 0);

    cluster.kill_rm();
    let down = Instant::now();
    process::send(second, Signal::KILL);
    while down.elapsed() < Duration::from_secs(30) {
        output = wait_progress(&cluster, &topics, &job, output);
        assert!(process::is_alive(first) && process::is_alive(am), "undisturbed while the manager is down");
        sleep(Duration::from_millis(500));
    }
    cluster.start_rm();
    let after = wait_replaced(&cluster, &job, 1, second);
    assert_eq!(pid_of(&after, 0), first, "the same process");
    assert_eq!(master(&after).ok().unwrap().pid, Some(am), "the same application master");
    assert_eq!(after.app, before.app);
    assert_eq!(after.attempt, before.attempt);
    assert_eq!(
        slot_of(&after, 1).last_exit,
        Some(ExitCause::Signal { signal: 9 }),
        "the exit was kept for it"
    );
    finish(feed, Counts::new(), &topics, &cluster, &job);
}

#[test]
fn nm_restart_keeps_containers() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let mut cluster = Cluster::start(1);
    let mut job = job("nm", &topics, brokers);
    let exit_now = arm(&mut job, &cluster);
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    let armed = slot_with(&before, "Partition 0");
    let other = 1 - armed;
    let (first, second) = (pid_of(&before, armed), pid_of(&before, other));
    let am = master(&before).ok().unwrap().pid.unwrap();
    let feed = Feed::start(brokers, &job.inputs[0], 500, 400);
    let output = wait_progress(&cluster, &topics, &job, 0);

    cluster.kill_nm(0);
    let output = wait_progress(&cluster, &topics, &job, output);
    std::fs::write(&exit_now, "").unwrap();
    cluster.wait("the exit without a node manager", SOON, |_| {
        check(!process::is_alive(first), || "alive".into())
    });
    wait_progress(&cluster, &topics, &job, output);
    assert!(process::is_alive(second) && process::is_alive(am), "undisturbed while the node manager is down");
    cluster.start_nm(0);
    let after = wait_replaced(&cluster, &job, armed, first);
    assert_eq!(
        slot_of(&after, armed).last_exit,
        Some(ExitCause::Failed { code: 3 }),
        "the exit is told with its code"
    );
    assert_eq!(pid_of(&after, other), second, "the same process");
    assert_eq!(master(&after).ok().unwrap().pid, Some(am), "the same application master");

    process::send(second, Signal::KILL);
    let last = wait_replaced(&cluster, &job, other, second);
    assert_eq!(
        slot_of(&last, other).last_exit,
        Some(ExitCause::Signal { signal: 9 }),
        "adopted containers are watched"
    );
    finish(feed, Counts::new(), &topics, &cluster, &job);
}

#[test]
fn am_death_keeps_containers() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(2);
    let mut job = job("am", &topics, brokers);
    let exit_now = arm(&mut job, &cluster);
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    let armed = slot_with(&before, "Partition 0");
    let other = 1 - armed;
    let (first, second) = (pid_of(&before, armed), pid_of(&before, other));
    let feed = Feed::start(brokers, &job.inputs[0], 500, 400);
    let mut output = wait_progress(&cluster, &topics, &job, 0);

    for round in 1..=2 {
        let am = master(&cluster.wait_running(&job)).ok().unwrap().pid.unwrap();
        process::send(am, Signal::KILL);
        if round == 2 {
            std::fs::write(&exit_now, "").unwrap();
        }
        output = wait_progress(&cluster, &topics, &job, output);
        cluster.wait("the next attempt", SOON, |cluster| {
            let app = cluster.all_running(&job)?;
            let adopted = master(&app)?.pid != Some(am) && app.attempt == before.attempt + round;
            check(adopted, || format!("attempt {}", app.attempt))
        });
        assert!(process::is_alive(second), "undisturbed");
        assert!(round == 2 || process::is_alive(first), "undisturbed");
    }
    let after = wait_replaced(&cluster, &job, armed, first);
    assert_eq!(
        slot_of(&after, armed).last_exit,
        Some(ExitCause::Failed { code: 3 }),
        "the exit is told with its code"
    );
    assert_eq!(pid_of(&after, other), second, "the same process");

    process::send(second, Signal::KILL);
    wait_replaced(&cluster, &job, other, second);
    finish(feed, Counts::new(), &topics, &cluster, &job);
}

#[test]
fn a_drained_node_gives_its_containers_away_with_their_state() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(2);
    let mut job = job("drained", &topics, brokers);
    // With a long wait for the node that it prefers: one that is being drained is not waited for.
    job.placement = "wait = \"60s\"\nrack-wait = \"60s\"".into();
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    let feed = Feed::start(brokers, &job.inputs[0], 500, 400);
    let output = wait_progress(&cluster, &topics, &job, 0);
    let node = master(&before).ok().unwrap().node.0.clone();
    let drain = cluster.client("samza", &["node", "drain", &node, "--wait"]);
    let told = String::from_utf8_lossy(&drain.stderr).into_owned();
    assert!(drain.status.success() && told.ends_with(&format!("{node} is empty\n")), "{told}");
    let after = cluster.wait("all of it on the other node", SOON, |cluster| {
        let app = cluster.all_running(&job)?;
        let elsewhere =
            app.status.iter().flat_map(|s| &s.slots).all(|s| s.node.as_ref().is_some_and(|n| n.0 != node));
        check(elsewhere && master(&app)?.node.0 != node, || "not yet".into()).map(|()| app)
    });
    for slot in 0..2 {
        let moved = pid_of(&after, slot) != pid_of(&before, slot);
        assert_eq!(moved, slot_of(&before, slot).node.as_ref().is_some_and(|n| n.0 == node));
        // As the resource manager tells it: the master that acted on the exit is not the one that is there now.
        let preempted = ContainerState::Exited { exit: ExitCause::Preempted };
        assert_eq!(moved, after.containers.iter().any(|it| it.slot == Some(slot) && it.state == preempted));
    }
    wait_progress(&cluster, &topics, &job, output);
    assert!(
        cluster.node_processes(cluster.place_of(&node.as_str().into())).is_empty(),
        "nothing is left there"
    );
    finish(feed, Counts::new(), &topics, &cluster, &job);
}

/// By container: the numbers it printed, as `samza logs` told them.
fn printed(file: &Path) -> BTreeMap<String, Vec<u64>> {
    let mut printed: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let Some((name, rest)) = line.split_once(" | line of ") else { continue };
        let [slot, container, number] = rest.split(' ').collect::<Vec<_>>()[..] else { continue };
        assert_eq!(name, format!("slot {slot}"), "{line}");
        printed.entry(container.to_owned()).or_default().push(number.parse().unwrap());
    }
    printed
}

#[test]
fn logs_are_followed_over_restarts_of_containers_and_of_node_managers() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let mut cluster = Cluster::start(2);
    let mut job = job("followed", &topics, brokers);
    let script = "i=0; (while :; do echo line of $SAMZA_SLOT $SAMZA_CONTAINER_ID $i; i=$((i+1)); sleep 0.02; done) & \
                  exec ./counter";
    job.command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    let mut follower = cluster.client_into("followed", "samza", &["logs", &job.name, "-f"]);
    let file = cluster.folder().join("followed");
    let id = |app: &AppReport, slot| slot_of(app, slot).container.unwrap().to_string();
    let heard_more = |cluster: &Cluster, container: &str| {
        let count = || printed(&file).get(container).map_or(0, Vec::len);
        let begun = count();
        cluster
            .wait("its lines", SOON, |_| check(count() > begun + 20, || format!("{begun}, now {}", count())));
    };
    heard_more(&cluster, &id(&before, 0));
    heard_more(&cluster, &id(&before, 1));

    process::send(pid_of(&before, 0), Signal::KILL);
    let after = wait_replaced(&cluster, &job, 0, pid_of(&before, 0));
    heard_more(&cluster, &id(&after, 0));

    let place = cluster.place_of(slot_of(&after, 1).node.as_ref().unwrap());
    cluster.kill_nm(place);
    cluster.start_nm(place);
    heard_more(&cluster, &id(&after, 1));

    cluster.stop(&job);
    assert!(follower.wait().unwrap().success());
    let printed = printed(&file);
    assert_eq!(printed.len(), 3);
    for (container, numbers) in printed {
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{container}: {numbers:?}");
    }
}
