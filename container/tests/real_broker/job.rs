//! A job with one input, one output, one store with a changelog, and its topics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::KafkaAdmin;
use task_api::system::{Isolation, Message, NewTopic, SystemAdmin, SystemError, TopicPartition};
use task_core::record::{self, Checkpoint, Record};
use types::{ContainerModel, Delivery, JobSpec, JobTopics, SystemStream, SystemStreamPartition, TaskModel};

use crate::PATIENCE;
use crate::brokers::Brokers;

pub const PARTITIONS: i32 = 2;

/// A job, its topics, and a folder for its containers.
pub struct Job {
    pub spec: JobSpec,
    /// Its binary.
    pub example: &'static str,
    pub brokers: Arc<Brokers>,
    pub admin: KafkaAdmin,
    pub folder: tempfile::TempDir,
}

/// Of one partition: offset, key, value.
pub type Rows = Vec<(u64, Vec<u8>, Option<Vec<u8>>)>;

impl Job {
    /// A job of the example `example` on these brokers.
    pub fn new(
        example: &'static str,
        name: &str,
        delivery: Delivery,
        brokers: Arc<Brokers>,
        replication: u16,
    ) -> Job {
        let admin = KafkaAdmin::new(&brokers.bootstrap, &BTreeMap::new()).expect("an admin");
        let folder = tempfile::tempdir().expect("a folder");
        // Names of topics must not meet those of an earlier run on the same brokers.
        let name = format!("{name}-{}", std::process::id());
        let job = Job { spec: spec(&name, &brokers.bootstrap, delivery), example, brokers, admin, folder };
        let compacted = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
        let topic = |topic: String, config: &BTreeMap<String, String>| NewTopic {
            topic,
            partitions: PARTITIONS,
            replication,
            config: config.clone(),
        };
        let none = BTreeMap::new();
        job.admin
            .create(&[
                topic(job.topic("in"), &none),
                topic(job.topic("out"), &none),
                topic(job.topic("changelog"), &compacted),
                topic(job.checkpoints(), &compacted),
            ])
            .expect("topics are made");
        job
    }

    pub fn topic(&self, what: &str) -> String {
        format!("{}-{what}", self.spec.job.name)
    }
    pub fn checkpoints(&self) -> String {
        JobTopics::of(&self.spec.job).checkpoint
    }

    /// The first offset that `partition` has not.
    pub fn end(&self, topic: &str, partition: i32) -> u64 {
        end_of(&self.admin, topic, partition)
    }

    /// What is committed of a partition.
    pub fn rows(&self, topic: &str, partition: i32) -> Rows {
        rows_of(&self.admin, topic, partition)
    }

    /// By offset, in their order.
    pub fn committed_checkpoints(&self, partition: i32) -> Vec<(u64, Checkpoint)> {
        let rows = self.rows(&self.checkpoints(), partition).into_iter();
        rows.filter_map(|(offset, key, value)| match record::decode(Some(&key), value.as_deref()) {
            Some(Record::Checkpoint(_, checkpoint)) => Some((offset, checkpoint)),
            Some(Record::Owner(_) | Record::OwnerGone(_)) | None => None,
        })
        .collect()
    }

    /// No committed checkpoint of an incarnation at or beyond the watermarks that a higher one restored to.
    pub fn assert_no_late_commits(&self) {
        for partition in 0..PARTITIONS {
            let checkpoints = self.committed_checkpoints(partition);
            for (_, newer) in &checkpoints {
                let Some(restored) = &newer.restored else { continue };
                for (offset, older) in checkpoints.iter().filter(|(_, c)| c.incarnation < newer.incarnation) {
                    assert!(*offset < restored.checkpoint, "{older:?} at {offset} is beyond {restored:?}");
                }
            }
        }
    }
}

fn end_of(admin: &KafkaAdmin, topic: &str, partition: i32) -> u64 {
    let at = TopicPartition { topic: topic.to_owned(), partition };
    patiently(|| admin.watermarks(std::slice::from_ref(&at)))[0].high
}

/// What is committed of a partition.
pub fn rows_of(admin: &KafkaAdmin, topic: &str, partition: i32) -> Rows {
    let at = TopicPartition { topic: topic.to_owned(), partition };
    let end = end_of(admin, topic, partition);
    patiently(|| {
        let mut rows = Rows::new();
        let mut take = |messages: &[Message<'_>]| {
            for m in messages {
                rows.push((m.offset, m.key.unwrap_or_default().to_vec(), m.value.map(<[u8]>::to_vec)));
            }
            Ok(())
        };
        admin.read_range(&at, 0, end, Isolation::ReadCommitted, &mut take).map(|()| rows)
    })
}

/// Asks again what brokers that have just come back may refuse.
pub fn patiently<R>(mut ask: impl FnMut() -> Result<R, SystemError>) -> R {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(SystemError::Retriable(_)) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn spec(name: &str, bootstrap: &str, delivery: Delivery) -> JobSpec {
    let delivery = match delivery {
        Delivery::AtLeastOnce => "at-least-once",
        Delivery::ExactlyOnce => "exactly-once",
    };
    let text = format!(
        r#"
        job = {{ name = "{name}" }}
        package = {{ path = "played by the test" }}
        containers = {{ memory = "256MiB" }}
        systems.kafka = {{ type = "kafka", bootstrap = "{bootstrap}" }}
        streams."kafka.in" = {{ topic = "{name}-in" }}
        streams."kafka.out" = {{ topic = "{name}-out" }}
        stores.counts = {{ changelog = "{name}-changelog", cache-rows = 100_000 }}
        [task]
        inputs = ["kafka.in"]
        commit = "100ms"
        delivery = "{delivery}"
        config = {{ output = "kafka.out" }}
        "#
    );
    job_file::parse(&text, "job.toml").unwrap_or_else(|problems| panic!("{problems}")).spec
}

/// So many partitions of these inputs in one container, a task for each number.
pub fn model(inputs: &[String], tasks: i32) -> ContainerModel {
    let stream = |input: &String| SystemStream::parse(input).expect("a stream");
    let task = |n| TaskModel {
        name: format!("Partition {n}").as_str().into(),
        inputs: inputs
            .iter()
            .map(|input| SystemStreamPartition { stream: stream(input), partition: n })
            .collect(),
        changelog_partition: n,
        added: Vec::new(),
    };
    ContainerModel { tasks: (0..tasks).map(task).collect() }
}
