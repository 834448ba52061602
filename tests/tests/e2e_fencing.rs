//! The proof of fencing, on a real Kafka with real processes: a container that was paused anywhere, on a machine that
//! was taken for dead, wakes after its successor runs, and nothing of it is ever committed where the successor's
//! restore has been.

use std::collections::BTreeSet;

use rustix::process::Signal;
use tests::cluster::{NodeSettings, SOON, pid_of, slot_of};
use tests::feed::{self, Counts};
use tests::fencing;
use tests::process::{self, Seen};
use tests::wait::check;
use tests::{Brokers, Cluster, Job, Settings, Topics};
use types::NodeStateName;

/// Where an older container is paused: before each step of the start order and of restore (`watermarks` is before they
/// are taken, `restore` after), and on both sides of a commit.
const PHASES: [&str; 11] = [
    "init",
    "read",
    "append",
    "read-back",
    "fence",
    "tombstone",
    "watermarks",
    "restore",
    "run",
    "commit",
    "committed",
];

/// A node with room for all jobs of this test.
fn large(host: &str, rack: &str) -> NodeSettings {
    NodeSettings { host: host.into(), rack: rack.into(), memory: "32GiB".into(), cpu: "32".into() }
}

/// A job whose second container (and only that) stops itself at `phase`.
fn paused_at(phase: &str, cluster: &Cluster, topics: &Topics, brokers: &Brokers) -> Job {
    let mut job = job(phase, 1, topics, brokers);
    let runs = cluster.shared().join(&job.name);
    std::fs::create_dir(&runs).unwrap();
    // The job is another user on each node.
    std::fs::set_permissions(&runs, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let script = format!(
        "n=1; while ! /bin/mkdir {}/$n 2>/dev/null; do n=$((n+1)); done; \
         if [ $n = 2 ]; then export SAMZA_TEST_PAUSE_AT={phase}; fi; exec ./counter",
        runs.display()
    );
    job.command = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
    job
}

fn job(name: &str, containers: u32, topics: &Topics, brokers: &Brokers) -> Job {
    let mut job = Job { containers, memory: "128MiB".into(), cpu: 0.1, ..Job::counter(name, brokers) };
    job.placement = "wait = \"0s\"\nrack-wait = \"0s\"".into();
    topics.create(&job.inputs[0], 4);
    topics.create(&job.output, 1);
    job
}

/// The workers' own processes (not their shims) on node `place`.
fn workers(cluster: &Cluster, place: usize) -> Vec<Seen> {
    let mut found = cluster.node_processes(place);
    found.retain(|seen| seen.env("SAMZA_ROLE") == Some("worker") && seen.command.ends_with("counter"));
    found
}

struct World {
    cluster: Cluster,
    topics: Topics,
    jobs: Vec<(Job, Counts)>,
}

impl World {
    /// Feeds every job `count` messages.
    fn feed(&mut self, count: usize) {
        for (job, sent) in &mut self.jobs {
            feed::send(&self.topics, &job.inputs[0], 50, count, sent);
        }
    }

    /// Waits until every job has counted all that it was fed, and checks the counts.
    fn wait_exact(&self, what: &str) {
        for (job, sent) in &self.jobs {
            let what = format!("{}: {what}", job.name);
            self.cluster.wait(&what, SOON, |_| feed::is_whole(&self.topics, &job.output, sent));
            feed::assert_exact(&self.topics, &job.output, sent);
        }
    }
}

#[test]
fn no_commit_of_an_older_incarnation_beyond_a_newer_ones_restore() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::with(Settings { nodes: vec![large("127.0.0.1", "r1")], ..Settings::nodes(0) });
    let mut jobs: Vec<Job> =
        PHASES.iter().map(|phase| paused_at(phase, &cluster, &topics, brokers)).collect();
    jobs.push(job("moved", 2, &topics, brokers));
    let mut world =
        World { cluster, topics, jobs: jobs.into_iter().map(|job| (job, Counts::new())).collect() };
    let moved = PHASES.len();
    for (job, _) in &world.jobs {
        world.cluster.submit(job);
    }
    world.feed(200);
    world.wait_exact("the first container");

    // The second container of each job stops itself on its way. Its node manager stands still from the moment it has
    // started them, so that nobody ends them for their silence.
    let first: Vec<u32> = workers(&world.cluster, 0).iter().map(|seen| seen.pid).collect();
    for (job, _) in &world.jobs[..moved] {
        process::send(pid_of(&world.cluster.wait_running(job), 0), Signal::KILL);
    }
    world.cluster.wait("every second container started", SOON, |cluster| {
        let found = workers(cluster, 0);
        let new = found.iter().filter(|seen| !first.contains(&seen.pid));
        let jobs: BTreeSet<_> = new.filter_map(|seen| seen.env("SAMZA_JOB_NAME")).collect();
        check(jobs.len() == PHASES.len(), || format!("only of {jobs:?}"))
    });
    process::send(world.cluster.nm_pid(0), Signal::STOP);
    world.feed(100);
    world.cluster.wait("every second container paused", SOON, |cluster| {
        let found = workers(cluster, 0);
        let paused = found.iter().filter(|seen| process::state(seen.pid) == Some('T'));
        let names: Vec<_> = paused.filter_map(|seen| seen.env("SAMZA_JOB_NAME")).collect();
        check(names.len() == PHASES.len(), || format!("paused: {names:?}"))
    });

    // The machine is cut off: manager, shims, masters and containers all stand still. Successors start elsewhere.
    let still = world.cluster.node_processes(0);
    let old_workers = workers(&world.cluster, 0);
    assert_eq!(old_workers.len(), PHASES.len() + 2, "{old_workers:?}");
    for seen in &still {
        process::send(seen.pid, Signal::STOP);
    }
    world.cluster.add_node(large("127.0.0.2", "r2"));
    world.feed(100);
    world.wait_exact("the successor");
    // One job's tasks change slots as well: its two containers become three.
    world.jobs[moved].0.containers = 3;
    let replaced = world.cluster.try_submit(&world.jobs[moved].0, &["--replace"]);
    assert!(replaced.status.success(), "{}", String::from_utf8_lossy(&replaced.stderr));
    world.feed(100);
    world.wait_exact("the successor, or the job of other slots");
    let successors: Vec<u32> =
        world.jobs.iter().map(|(job, _)| pid_of(&world.cluster.wait_running(job), 0)).collect();

    // The old containers wake alone first: nobody but Kafka can tell them that they are over.
    for seen in &old_workers {
        process::send(seen.pid, Signal::CONT);
    }
    world.feed(100);
    for seen in &old_workers {
        let (job, attempt) = (seen.env("SAMZA_JOB_NAME").unwrap_or("?"), seen.pid);
        let code = world.cluster.wait(&format!("{job}: the old container {attempt} ends"), SOON, |_| {
            process::exit_code(seen.pid).ok_or_else(|| "it runs".into())
        });
        assert_eq!(code, types::EXIT_FENCED, "{job}: it ends as fenced\n{}", world.cluster.diagnosis());
    }
    for seen in &still {
        process::send(seen.pid, Signal::CONT);
    }
    process::send(world.cluster.nm_pid(0), Signal::CONT);
    world.cluster.wait("the old node back and clean", SOON, |cluster| {
        let nodes = cluster.nodes()?.nodes;
        check(nodes.iter().all(|node| node.state == NodeStateName::Active), || format!("{nodes:?}"))?;
        let left = workers(cluster, 0);
        check(left.is_empty(), || format!("{left:?}"))
    });
    world.feed(100);
    world.wait_exact("after the return");
    for ((job, _), pid) in world.jobs.iter().zip(successors) {
        let app = world.cluster.wait_running(job);
        assert_eq!(pid_of(&app, 0), pid, "{}: the successor was not disturbed", job.name);
        assert_eq!(slot_of(&app, 0).node.as_ref().unwrap().0, "127.0.0.2");
    }
    for (job, _) in &world.jobs {
        let judged = fencing::assert_fenced(job, &world.topics, brokers);
        assert!(judged.incarnations >= 2 && judged.batches > 0, "{}: {judged:?}", job.name);
    }
}
