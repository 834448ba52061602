//! Killed → first output again, with 100,000 keys of state: on the same host, where the state is, and on another,
//! where all of it is restored.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::tests::cluster::{master, pid_of, slot_of, worker};
use ::tests::feed::{self, Counts, Feed};
use ::tests::wait::check;
use ::tests::{Brokers, Cluster, Job, Topics, process};
use anyhow::{Context, Result};
use kafka::KafkaConsumer;
use rustix::process::Signal;
use task_api::system::{StartAt, SystemConsumer, TopicPartition};
use types::{AppReport, RestoreStatus};

use crate::figures::{Figure, Figures, percentile};

const KEYS: usize = 100_000;
/// How often each kill is repeated, on the same host and on others; figures are medians.
const TIMES: usize = 3;
/// For a job to be where it should be.
const LIMIT: Duration = Duration::from_secs(90);
/// The feed sends every 50 ms; a longer gap in the output is silence.
const SILENCE: Duration = Duration::from_millis(150);

/// When messages of a topic came in.
pub struct Arrivals(Arc<Mutex<Vec<Instant>>>);

impl Arrivals {
    /// Begins to read what comes to `topic` from now on.
    pub fn watch(brokers: &Brokers, topic: &str, partitions: i32) -> Result<Arrivals> {
        let from = |partition| (TopicPartition { topic: topic.to_owned(), partition }, StartAt::Newest);
        let mut consumer = KafkaConsumer::new(&brokers.bootstrap, "bench", "bench", &BTreeMap::new())?;
        consumer.assign(&(0..partitions).map(from).collect::<Vec<_>>())?;
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::downgrade(&arrivals);
        std::thread::Builder::new().spawn(move || {
            // Ends with the one that watches.
            while let Some(arrivals) = shared.upgrade() {
                let polled = consumer.poll(Duration::from_millis(100), &mut |messages| {
                    if !messages.is_empty() {
                        arrivals.lock().expect("nobody panics with it").push(Instant::now());
                    }
                    Ok(())
                });
                polled.expect("brokers that answer");
            }
        })?;
        Ok(Arrivals(arrivals))
    }

    /// The first since `from`.
    pub fn first_since(&self, from: Instant) -> Option<Instant> {
        self.0.lock().expect("nobody panics with it").iter().copied().find(|at| *at > from)
    }

    /// Whether there was a silence since `from`, and something after it.
    fn spoke_again(&self, from: Instant) -> bool {
        let mut before = from;
        let arrivals = self.0.lock().expect("nobody panics with it");
        arrivals.iter().copied().filter(|at| *at > from).any(|at| {
            let gap = at - std::mem::replace(&mut before, at);
            gap > SILENCE
        })
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

fn restores(app: &AppReport) -> Vec<RestoreStatus> {
    slot_of(app, 0).status.tasks.iter().filter_map(|task| task.restore.clone()).collect()
}

/// What followed a kill.
struct Kill {
    /// Until the next process ran, ms.
    started: f64,
    /// Until its first output, ms.
    silent: f64,
    restores: Vec<RestoreStatus>,
}

/// Has slot 0 of `job` killed by `kill`, and waits for its output.
fn kill(
    cluster: &mut Cluster,
    job: &Job,
    arrivals: &Arrivals,
    kill: impl FnOnce(&mut Cluster, &AppReport),
) -> Kill {
    let before = cluster.wait_running(job);
    sleep(Duration::from_secs(3)); // local state reaches the disk, and the window of restarts passes
    kill(cluster, &before);
    let (killed, killed_unix) = (Instant::now(), SystemTime::now());
    // Nothing that costs anything until it is over: the machine is small, and asking starts programs.
    cluster.wait("output again", LIMIT, |_| check(arrivals.spoke_again(killed), || "silent".into()));
    let pid = pid_of(&before, 0);
    let after = cluster.wait("the container back", LIMIT, |cluster| {
        let app = cluster.all_running(job)?;
        check(pid_of(&app, 0) != pid, || "not yet".into()).map(|()| app)
    });
    let ran = worker(&after, 0).ok().and_then(|container| container.started_unix_ms).unwrap_or_default();
    let ran = UNIX_EPOCH + Duration::from_millis(ran);
    let started = ran.duration_since(killed_unix).unwrap_or_default();
    let first = cluster.wait("output of the new container", LIMIT, |_| {
        arrivals.first_since(killed + started).ok_or_else(|| "silent".into())
    });
    Kill { started: ms(started), silent: ms(first - killed), restores: restores(&after) }
}

/// Measures both, and the restore.
pub fn measure(brokers: &'static Brokers, figures: &mut Figures) -> Result<()> {
    println!("recovery: {KEYS} keys, at-least-once, one container of four tasks");
    let topics = Topics::on(brokers);
    // A host for each kill: one where the job has run before has some of its state.
    let mut cluster = Cluster::start(TIMES + 1);
    let mut job = Job::counter("recovery", brokers);
    (job.delivery, job.commit, job.memory) = ("at-least-once".into(), "1s".into(), "512MiB".into());
    job.restart = "retries = 100\nwindow = \"1s\"".into();
    if let Ok(filter) = std::env::var("RUST_LOG") {
        job.env.insert("RUST_LOG".into(), filter);
    }
    topics.create(&job.inputs[0], 4);
    topics.create(&job.output, 4);
    let mut sent = Counts::new();
    feed::send(&topics, &job.inputs[0], KEYS, KEYS, &mut sent);
    cluster.submit(&job);
    cluster.wait("all keys", LIMIT, |_| {
        let found: u64 = topics.ends(&job.output).iter().sum();
        check(found >= KEYS as u64, || format!("{found} of {KEYS} counted"))
    });
    let feed = Feed::start(brokers, &job.inputs[0], KEYS, 2_000);
    let arrivals = Arrivals::watch(brokers, &job.output, 4)?;

    on_the_same_host(&mut cluster, &job, &arrivals, figures)?;
    on_another_host(&mut cluster, &job, &arrivals, figures)?;
    feed.finish(&mut sent);
    if std::env::var_os("RUST_LOG").is_some() {
        println!("{}", cluster.diagnosis());
    }
    cluster.stop(&job);
    Ok(())
}

/// The process is killed; its node keeps the state.
fn on_the_same_host(
    cluster: &mut Cluster,
    job: &Job,
    arrivals: &Arrivals,
    figures: &mut Figures,
) -> Result<()> {
    let mut same = Vec::new();
    for _ in 0..TIMES {
        let seen = kill(cluster, job, arrivals, |_, app| process::send(pid_of(app, 0), Signal::KILL));
        let local = seen.restores.iter().all(|restore| restore.from_local);
        let rows: u64 = seen.restores.iter().map(|restore| restore.rows).sum();
        figures.note(format!(
            "same host: {:.0} ms of silence, the process ran after {:.0}; {rows} rows from the changelog{}",
            seen.silent,
            seen.started,
            if local { ", the rest was there" } else { ": local state was NOT used" }
        ));
        same.push(seen.silent);
    }
    figures.add(Figure::new("kill-to-output-same-host", percentile(&mut same, 0.5), "ms").at_most(1_500.0))
}

/// The whole node vanishes; the state comes from the changelog.
fn on_another_host(
    cluster: &mut Cluster,
    job: &Job,
    arrivals: &Arrivals,
    figures: &mut Figures,
) -> Result<()> {
    let (mut other, mut restored) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let mut with_master = false;
        let seen = kill(cluster, job, arrivals, |cluster, app| {
            let node = slot_of(app, 0).node.clone().expect("a running container has a node");
            with_master = master(app).is_ok_and(|master| master.node == node);
            cluster.kill_node(cluster.place_of(&node));
        });
        let rows: u64 = seen.restores.iter().map(|restore| restore.rows).sum();
        let took = seen.restores.iter().map(|restore| restore.took_ms).max().context("no restore")?;
        let local = seen.restores.iter().any(|restore| restore.from_local);
        figures.note(format!(
            "other host: {:.0} ms of silence after the whole node vanished{}, the process ran after {:.0}; restore of \
             {rows} rows took {took} ms{}",
            seen.silent,
            if with_master { " (the application master with it)" } else { "" },
            seen.started,
            if local { " (some of it from local state)" } else { "" }
        ));
        other.push(seen.silent);
        if !local {
            #[expect(clippy::cast_precision_loss)] // some hundreds
            restored.push(took as f64);
        }
    }
    figures
        .add(Figure::new("kill-to-output-other-host", percentile(&mut other, 0.5), "ms").at_most(7_000.0))?;
    figures.add(Figure::new("restore-100k", percentile(&mut restored, 0.5), "ms"))
}
