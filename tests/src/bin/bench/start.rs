//! Submit → first message processed, and ask → process running.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use ::tests::feed::{self, Counts};
use ::tests::wait::check;
use ::tests::{Brokers, Cluster, Job, Topics};
use anyhow::{Context, Result, ensure};

use crate::figures::{Figure, Figures, percentile};
use crate::recovery::Arrivals;

const SUBMITS: usize = 5;
const ASKS: usize = 200;
const LIMIT: Duration = Duration::from_secs(60);

/// From the start of `samza-submit` to the first message of the output, two nodes; the job has a store.
pub fn submit(brokers: &'static Brokers, figures: &mut Figures) -> Result<()> {
    println!("start: submit to first message, two nodes, at-least-once with a store");
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(2);
    let mut times = Vec::new();
    for _ in 0..SUBMITS {
        let mut job = Job::counter("first", brokers);
        (job.delivery, job.commit) = ("at-least-once".into(), "1s".into());
        topics.create(&job.inputs[0], 4);
        topics.create(&job.output, 1);
        feed::send(&topics, &job.inputs[0], 100, 1_000, &mut Counts::new());
        let arrivals = Arrivals::watch(brokers, &job.output, 1)?;
        let begun = Instant::now();
        cluster.submit(&job);
        let first = cluster.wait("a first message", LIMIT, |_| {
            arrivals.first_since(begun).ok_or_else(|| "nothing came out yet".into())
        });
        times.push((first - begun).as_secs_f64() * 1_000.0);
        cluster.stop(&job);
    }
    let cold = times.remove(0);
    figures.note(format!("the first submit, which uploads the artefact: {cold:.0} ms"));
    figures.add(Figure::new("submit-to-first-message", percentile(&mut times, 0.5), "ms").at_most(2_000.0))
}

/// From the application master's ask to its hearing that the process runs. The job's process ends at once, so that it
/// asks again and again, for one container at a time; both moments are in the application master's log.
pub fn asks(brokers: &'static Brokers, figures: &mut Figures) -> Result<()> {
    println!("start: ask to running, one node, artefact cached, limits set, records durable");
    let topics = Topics::on(brokers);
    let cluster = Cluster::start(1);
    let script = cluster.folder().join("end-soon");
    std::fs::write(&script, "#!/bin/sh\nsleep 0.05\nexit 1\n").context("the job's script")?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).context("the job's script")?;
    let mut job = Job::counter("asks", brokers);
    job.binary = script;
    job.stores.clear();
    job.restart = "retries = 100000\nwindow = \"1s\"\nbackoff = { min = \"1ms\", max = \"1ms\" }".into();
    topics.create(&job.inputs[0], 1);
    cluster.submit(&job);
    let mut times = cluster.wait("enough asks", LIMIT, |cluster| {
        let times = times(cluster.node_root(0));
        check(times.len() > ASKS, || format!("{} asks", times.len())).map(|()| times)
    });
    cluster.stop(&job);
    times.remove(0); // the artefact was not there yet
    ensure!(!times.is_empty(), "no asks");
    figures.note(format!("{} asks, one at a time", times.len()));
    figures.add(Figure::new("ask-to-running-p50", percentile(&mut times, 0.5), "ms").at_most(5.0))?;
    figures.add(Figure::new("ask-to-running-p99", percentile(&mut times, 0.99), "ms").at_most(25.0))
}

/// What the logs below `folder` say of asks: ms from each ask to its process running, in order.
fn times(folder: &Path) -> Vec<f64> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(times(&entry.path()));
        } else if entry.file_name().to_string_lossy().starts_with("stderr") {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            found.extend(pairs(&text));
        }
    }
    found
}

/// The text after `name=` in a log line.
fn field<'t>(line: &'t str, name: &str) -> Option<&'t str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Seconds into its day of a log line that begins with its time, such as `2026-01-01T10:00:00.000001Z`.
fn second(line: &str) -> Option<f64> {
    let clock = line.split_whitespace().next()?.split_once('T')?.1.trim_end_matches('Z');
    let mut parts = clock.split(':').map(str::parse::<f64>);
    let mut next = || parts.next()?.ok();
    Some(next()? * 3_600.0 + next()? * 60.0 + next()?)
}

fn pairs(log: &str) -> Vec<f64> {
    let mut asked: Option<(&str, f64)> = None;
    let mut found = Vec::new();
    for line in log.lines() {
        let (Some(request), Some(at)) = (field(line, "request"), second(line)) else { continue };
        if line.contains(" asked ") {
            asked = Some((request, at));
        } else if line.contains(" running ")
            && let Some((_, from)) = asked.take_if(|(asked, _)| *asked == request)
        {
            found.push((at - from).rem_euclid(86_400.0) * 1_000.0);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ask_and_its_running_make_a_time() {
        let log = "\
2026-01-01T23:59:59.999000Z  INFO app_master::driver: asked request=1.0.1
2026-01-02T00:00:00.002000Z  INFO app_master::driver: running request=1.0.1 node=n1
2026-01-02T00:00:01.000000Z  INFO app_master::driver: asked request=1.0.2
2026-01-02T00:00:02.000000Z  INFO app_master::driver: running request=1.0.1 node=n1
not a line of a log
";
        let times = pairs(log);
        assert_eq!(times.len(), 1);
        assert!((times[0] - 3.0).abs() < 0.001, "{times:?}");
    }
}
