//! Our side: a job in a container of a cluster of one node; its process measures itself.

use std::path::Path;
use std::time::Duration;

use ::tests::cluster::program;
use ::tests::wait::Pending;
use ::tests::{Brokers, Cluster, Job, Settings};
use serde::de::DeserializeOwned;

use crate::cases::{Case, Work};
use crate::peers::{Measured, Span};

/// For one job to come to its end.
const LIMIT: Duration = Duration::from_secs(240);

/// A cluster for one job after the other.
pub struct Ours {
    /// Of one node.
    pub cluster: Cluster,
    brokers: &'static Brokers,
}

/// The names of what a run makes on the brokers begin with this.
pub const PREFIX: &str = "bench-";

impl Ours {
    pub fn start(brokers: &'static Brokers) -> Ours {
        let mut settings = Settings::nodes(1);
        settings.nodes[0].memory = "6GiB".into();
        Ours { cluster: Cluster::with(settings), brokers }
    }

    /// The job that is measured: `examples/measured` in `mode`, four tasks on one thread.
    pub fn job(&self, mode: &str, input: &str, output: Option<&str>, span: Span) -> Job {
        let mut job = Job::counter(&format!("{PREFIX}{mode}"), self.brokers);
        job.binary = program("examples/measured");
        job.inputs = vec![input.to_owned()];
        job.config.clear();
        job.config.insert("mode".into(), mode.into());
        job.config.insert("warm-up".into(), span.warm_up.to_string());
        job.config.insert("window".into(), span.window.to_string());
        if let Some(output) = output {
            job.config.insert("output".into(), format!("kafka.{output}"));
        }
        (job.memory, job.cpu) = ("1GiB".into(), 1.0);
        job
    }

    /// Measures a case.
    pub fn measure(&self, case: &Case, input: &str, output: Option<&str>, span: Span) -> Measured {
        let mut job = self.job(case.work.mode(), input, output, span);
        job.delivery = if case.exactly_once { "exactly-once" } else { "at-least-once" }.into();
        job.commit = format!("{}ms", case.commit_ms);
        job.changelogs = case.changelog;
        if case.work != Work::Count {
            job.stores.clear();
        }
        self.cluster.submit(&job);
        let measured = self.printed(&job);
        self.cluster.stop(&job);
        measured
    }

    /// What the container of `job` prints of itself, once it does.
    pub fn printed<T: DeserializeOwned>(&self, job: &Job) -> T {
        self.cluster.wait("the measurement", LIMIT, |cluster| {
            let line = line_with(cluster.node_root(0), &format!("\"name\":{:?}", job.name));
            let line = line.ok_or_else(|| Pending("nothing printed yet".into()))?;
            serde_json::from_str(&line).map_err(|error| Pending(format!("{error}: {line}")))
        })
    }
}

/// The line that has `part` of what some container wrote to its stdout.
fn line_with(folder: &Path, part: &str) -> Option<String> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let found = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            line_with(&entry.path(), part)
        } else if entry.file_name().to_string_lossy().starts_with("stdout") {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            text.lines().find(|line| line.contains(part)).map(str::to_owned)
        } else {
            None
        };
        if found.is_some() {
            return found;
        }
    }
    None
}
