//! Nodes that are cut off from the resource manager: a container that must not outlive its node's lease is dead, by its
//! own machine's clock, before another one takes its place, whoever sleeps meanwhile.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use tests::cluster::{SOON, pid_of};
use tests::feed::{self, Counts};
use tests::wait::check;
use tests::{Brokers, Cluster, Job, Settings, Topics, process};
use types::NodeStateName;

/// Nodes, and jobs of one container each.
const NODES: usize = 5;
/// A cut that is shorter than a lease less the time between two beats disturbs nothing.
const HARMLESS: Duration = Duration::from_millis(3_500);
const CUT_MS: std::ops::Range<u64> = 100..15_000;

/// A job whose container writes down, every few ms, that it lives: by CLOCK_BOOTTIME, which all nodes here share.
fn stamping(n: usize, stamps: &Path, topics: &Topics, brokers: &Brokers) -> Job {
    let mut job = Job::counter(&format!("lease{n}"), brokers);
    (job.memory, job.cpu) = ("128MiB".into(), 0.1);
    job.placement = "on-lease-loss = \"stop\"\nwait = \"0s\"\nrack-wait = \"0s\"".into();
    let folder = stamps.join(&job.name);
    std::fs::create_dir_all(&folder).unwrap();
    let script = format!(
        "(while :; do read up idle < /proc/uptime; echo $up; sleep 0.01; done) >> {}/$SAMZA_CONTAINER_ID & \
         exec ./counter",
        folder.display()
    );
    job.command = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
    topics.create(&job.inputs[0], 2);
    topics.create(&job.output, 1);
    job
}

/// By container of a job, in the order of their incarnations: the first and the last moment at which it lived.
fn lives(folder: &Path) -> Vec<(types::ContainerId, f64, f64)> {
    let mut lives = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok()).expect("a container's id");
        let text = std::fs::read_to_string(entry.path()).unwrap();
        // The last line of one that was killed may be torn.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let stamps: Vec<f64> = whole.lines().map(|line| line.parse().expect("a time")).collect();
        if let (Some(first), Some(last)) = (stamps.first(), stamps.last()) {
            lives.push((id, *first, *last));
        }
    }
    lives.sort_by_key(|(id, ..)| *id);
    lives
}

/// One cut of each node, of random lengths; with some of them nm sleeps as long as the link is down.
fn cut_all(cluster: &Cluster, rng: &mut rand::rngs::StdRng) -> Vec<Duration> {
    let cuts: Vec<Duration> = (0..NODES).map(|_| Duration::from_millis(rng.random_range(CUT_MS))).collect();
    let begun = Instant::now();
    for place in 0..NODES {
        cluster.cut(place, true);
        if place % 2 == 1 {
            process::send(cluster.nm_pid(place), Signal::STOP);
        }
    }
    let mut order: Vec<usize> = (0..NODES).collect();
    order.sort_by_key(|place| cuts[*place]);
    for place in order {
        sleep(cuts[place].saturating_sub(begun.elapsed()));
        process::send(cluster.nm_pid(place), Signal::CONT);
        cluster.cut(place, false);
    }
    cuts
}

#[test]
fn a_container_that_stops_with_its_lease_is_dead_before_another_takes_its_place() {
    let cuts: usize = std::env::var("SAMZA_LEASE_CUTS").map_or(NODES, |cuts| cuts.parse().unwrap());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let seed = std::env::var("SAMZA_LEASE_SEED").map_or(now, |seed| seed.parse().unwrap());
    println!("SAMZA_LEASE_SEED={seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let cluster = Cluster::with(Settings { links: true, ..Settings::nodes(NODES) });
    let stamps = cluster.folder().join("stamps");
    let jobs: Vec<Job> = (0..NODES).map(|n| stamping(n, &stamps, &topics, brokers)).collect();
    let mut sent: BTreeMap<&str, Counts> = BTreeMap::new();
    for job in &jobs {
        cluster.submit(job);
        feed::send(&topics, &job.inputs[0], 100, 1_000, sent.entry(&job.name).or_default());
    }
    let (mut moved, mut stayed) = (0, 0);
    for _ in 0..cuts.div_ceil(NODES) {
        let before: Vec<_> = jobs.iter().map(|job| cluster.wait_running(job)).collect();
        let cuts = cut_all(&cluster, &mut rng);
        println!("cut for {cuts:?}");
        cluster.wait("every node back", SOON, |cluster| {
            let nodes = cluster.nodes()?.nodes;
            check(nodes.iter().all(|n| n.state == NodeStateName::Active), || format!("{nodes:?}"))
        });
        for (job, before) in jobs.iter().zip(&before) {
            let after = cluster.wait_running(job);
            let place = cluster.place_of(before.status.as_ref().unwrap().slots[0].node.as_ref().unwrap());
            let same = pid_of(&after, 0) == pid_of(before, 0);
            assert!(same || cuts[place] > HARMLESS, "a cut of {:?} disturbed {}", cuts[place], job.name);
            if same { stayed += 1 } else { moved += 1 }
        }
    }
    println!("{stayed} containers stayed, {moved} were replaced");
    for job in &jobs {
        let lives = lives(&stamps.join(&job.name));
        for pair in lives.windows(2) {
            let (old, _, ended) = pair[0];
            let (new, began, _) = pair[1];
            assert!(ended < began, "{}: {old} lived at {ended}, {new} began at {began}", job.name);
        }
        feed::send(&topics, &job.inputs[0], 100, 1_000, sent.get_mut(job.name.as_str()).unwrap());
        cluster.wait("all of it", SOON, |_| feed::is_whole(&topics, &job.output, &sent[job.name.as_str()]));
        feed::assert_exact(&topics, &job.output, &sent[job.name.as_str()]);
    }
}
