//! Names that must not meet: two jobs, or two parts of one, that would share a topic, an owner or a folder.

use std::collections::BTreeSet;

use crate::{JobId, JobSpec, SystemKind, SystemStream, coordinator_topic, job_topics};

impl JobId {
    /// The job's printed form without what the names made of it may not tell apart: case (file systems), `_` and `-`
    /// (Samza's topics), `.` and `_` (Kafka's metrics).
    #[must_use]
    pub fn alike(&self) -> String {
        self.to_string().to_ascii_lowercase().replace(['_', '.'], "-")
    }
}

/// A topic's name without what Kafka does not tell apart: of two topics that differ in `.` and `_` only, it refuses the
/// second.
#[must_use]
pub fn topic_alike(topic: &str) -> String {
    topic.replace('.', "_")
}

/// A topic that only one may write to: a job's own, or its stream of dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnTopic {
    /// On which system.
    pub system: String,
    /// Its name.
    pub topic: String,
    /// What it is, for people: "the changelog of store `seen`".
    pub what: String,
    /// The key of job.toml that names it; none if the job's name does.
    pub key: Option<String>,
}

/// Every topic that `spec` has for itself.
#[must_use]
pub fn own_topics(spec: &JobSpec) -> Vec<OwnTopic> {
    use crate::TopicRole::{Changelog, Checkpoint, Coordinator};
    coordinator_topic(spec)
        .into_iter()
        .chain(job_topics(spec, 1))
        .map(|plan| {
            let (what, key) = match &plan.role {
                Coordinator => ("the coordinator topic".to_owned(), None),
                Checkpoint => ("the checkpoint topic".to_owned(), None),
                Changelog(store) => {
                    (format!("the changelog of store `{store}`"), Some(format!("stores.{store}.changelog")))
                }
            };
            OwnTopic { system: plan.system, topic: plan.topic, what, key }
        })
        .collect()
}

/// Why two jobs cannot be alive together; none if they can, or are one job.
#[must_use]
pub fn collision(ours: &JobSpec, theirs: &JobSpec) -> Option<String> {
    if ours.job == theirs.job {
        return None;
    }
    if ours.job.alike() == theirs.job.alike() {
        return Some(format!(
            "its name and id are too much like those of job `{}`, which is alive: topics, owners and folders of jobs \
             whose names differ only in case, `.`, `_` or `-` are not told apart; give it another `[job] name` or `id`",
            theirs.job
        ));
    }
    let taken = own_topics(theirs);
    own_topics(ours).into_iter().find_map(|own| {
        let other = taken.iter().find(|other| {
            topic_alike(&other.topic) == topic_alike(&own.topic)
                && share_a_broker(ours, &own.system, theirs, &other.system)
        })?;
        let way_out = match &own.key {
            Some(key) => {
                format!("name another topic with `{key}`, or give the job another `[job] name` or `id`")
            }
            None => "give it another `[job] name` or `id`".to_owned(),
        };
        Some(format!(
            "topic {} would be {} and is {} of job `{}`, which is alive; {way_out}",
            own.topic, own.what, other.what, theirs.job
        ))
    })
}

/// Whether two systems are one cluster, as far as their addresses tell.
fn share_a_broker(ours: &JobSpec, our_system: &str, theirs: &JobSpec, their_system: &str) -> bool {
    let brokers = |spec: &JobSpec, system: &str| -> BTreeSet<String> {
        let of = spec.systems.get(system).filter(|system| system.kind == SystemKind::Kafka);
        let list = of.map_or("", |system| system.bootstrap.as_str());
        list.split(',').map(|address| address.trim().to_ascii_lowercase()).filter(|a| !a.is_empty()).collect()
    };
    !brokers(ours, our_system).is_disjoint(&brokers(theirs, their_system))
}

/// A topic of a job's own that is another topic of it as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meeting {
    /// The one.
    pub own: OwnTopic,
    /// The name of the other: the same, or one that Kafka takes for the same.
    pub topic: String,
    /// What that is, for people.
    pub what: String,
}

/// Topics of one job that meet.
#[must_use]
pub fn meetings(spec: &JobSpec) -> Vec<Meeting> {
    let own = own_topics(spec);
    let mut met = Vec::new();
    for (n, topic) in own.iter().enumerate() {
        let is_same = |system: &str, other: &str| {
            system == topic.system && topic_alike(other) == topic_alike(&topic.topic)
        };
        let mut meets = |other: &str, what: String| {
            met.push(Meeting { own: topic.clone(), topic: other.to_owned(), what });
        };
        if let Some(other) = own[..n].iter().find(|other| is_same(&other.system, &other.topic)) {
            meets(&other.topic, other.what.clone());
        }
        let streams = spec.task.inputs.iter().chain(&spec.errors.dead_letter);
        for stream in streams.filter_map(|stream| SystemStream::parse(stream)) {
            let other = spec.stream(&stream).topic;
            if is_same(&stream.system, &other) {
                meets(&other, format!("the topic of stream `{stream}`"));
            }
        }
    }
    met
}
