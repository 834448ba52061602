//! The coordinator topic: what a job remembers, as compacted JSON records. Only the master that owns the topic, by
//! the same start order as tasks, writes it, each change in one transaction; a newer master fences an older one.
//!
//! | Key | Value |
//! |---|---|
//! | `{"type":"changelog-partition","task":"Partition 0"}` | `{"partition":0}` |
//! | `{"type":"job"}` | `{"name":…,"id":…}`: whose topic it is |
//! | `{"type":"job-model"}` | `{"app":…,"attempt":…,"incarnation":…,"generation":…,"model":…}` |
//! | `{"type":"container","slot":0}` | `{"container":…,"node":…,"host":…}` |
//!
//! Owner records stand beside them, as on the checkpoint topic.

use std::sync::Arc;
use std::time::Duration;

use am_core::place::{Remembered, RememberedModel, SlotPlace};
use serde::{Deserialize, Serialize};
use task_api::system::{
    Isolation, Message, ProducerRecord, SystemAdmin, SystemError, TopicPartition, TransactionalProducer,
};
use task_core::ownership::{Claim, Claimant, Claimed, OwnerRecord, Partitions, Purpose, drive};
use task_core::record::{self, Record};
use types::{AppId, ContainerId, Incarnation, JobId, JobModel, NodeId, TaskName};

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Key {
    ChangelogPartition { task: TaskName },
    Job,
    JobModel,
    Container { slot: u32 },
}

#[derive(Debug, Serialize, Deserialize)]
struct Partition {
    partition: i32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Model {
    app: AppId,
    attempt: u32,
    incarnation: Incarnation,
    generation: u64,
    model: JobModel,
}

#[derive(Debug, Serialize, Deserialize)]
struct Place {
    container: ContainerId,
    node: NodeId,
    host: String,
}

/// Who writes: stands in what is written.
#[derive(Debug, Clone)]
pub struct Writer {
    /// The job.
    pub job: JobId,
    /// The master's attempt.
    pub attempt: u32,
    /// The master's owner record.
    pub owner: OwnerRecord,
}

/// The topic, owned.
pub struct Coordinator {
    writer: Writer,
    topic: String,
    producer: Box<dyn TransactionalProducer>,
}

/// How long a transaction of a few records may take.
const COMMIT: Duration = Duration::from_secs(20);
/// How long one registration of the transactional id may take.
const INIT: Duration = Duration::from_secs(20);

impl Coordinator {
    /// Takes ownership of `topic`'s only partition and reads what the job remembers. A topic of another job is left
    /// as it is.
    ///
    /// # Errors
    /// [`SystemError::Fenced`]: a newer master owns it. Else the topic is another job's, or the system failed.
    pub fn claim(
        writer: Writer,
        topic: &str,
        admin: &Arc<dyn SystemAdmin>,
        producer: Box<dyn TransactionalProducer>,
    ) -> Result<(Coordinator, Remembered), SystemError> {
        let partition = TopicPartition { topic: topic.to_owned(), partition: 0 };
        let is_marked = is_marked(admin.as_ref(), &partition, &writer.job)?;
        let whole = Partitions { owners: partition.clone(), follow: Vec::new() };
        let claim = Claim::new(writer.owner.clone(), Purpose::Run, vec![whole]);
        let mut coordinator = Coordinator { writer, topic: topic.to_owned(), producer };
        let high = match drive(claim, admin.as_ref(), &mut Owner { producer: &mut *coordinator.producer })? {
            Claimed::Owned(high) => high,
            Claimed::Fenced { by } => {
                return Err(SystemError::Fenced(format!(
                    "a newer application master owns {topic}: {}",
                    by.id
                )));
            }
        };
        let until = high.first().and_then(|h| h.first()).copied().unwrap_or(0);
        let mut remembered = Remembered::default();
        let mut take = |messages: &[Message<'_>]| {
            for message in messages {
                learn(&mut remembered, message.key, message.value);
            }
            Ok(())
        };
        admin.read_range(&partition, 0, until, Isolation::ReadCommitted, &mut take)?;
        if !is_marked {
            let job = json(&coordinator.writer.job);
            coordinator.write(&[(Key::Job, job)])?;
        }
        Ok((coordinator, remembered))
    }

    /// Remembers a model with its changelog mapping.
    ///
    /// # Errors
    /// As [`Coordinator::claim`]; the caller must end.
    pub fn remember_model(&mut self, made: &RememberedModel) -> Result<(), SystemError> {
        let mut records: Vec<(Key, String)> = am_core::job_model::changelog_mapping(&made.model)
            .into_iter()
            .map(|(task, partition)| (Key::ChangelogPartition { task }, json(&Partition { partition })))
            .collect();
        let value = Model {
            app: made.app.clone(),
            attempt: self.writer.attempt,
            incarnation: self.writer.owner.incarnation,
            generation: made.generation,
            model: made.model.clone(),
        };
        records.push((Key::JobModel, json(&value)));
        self.write(&records)
    }

    /// Remembers where slots run.
    ///
    /// # Errors
    /// As [`Coordinator::remember_model`].
    pub fn remember_places(&mut self, places: &[(u32, SlotPlace)]) -> Result<(), SystemError> {
        let record = |(slot, place): &(u32, SlotPlace)| {
            let SlotPlace { container, node, host } = place.clone();
            (Key::Container { slot: *slot }, json(&Place { container, node, host }))
        };
        self.write(&places.iter().map(record).collect::<Vec<_>>())
    }

    fn write(&mut self, records: &[(Key, String)]) -> Result<(), SystemError> {
        let topic = self.producer.topic(&self.topic)?;
        self.producer.begin()?;
        for (key, value) in records {
            self.producer.send(
                &ProducerRecord::new(topic, Some(json(key).as_bytes()), Some(value.as_bytes())).to(0),
            )?;
        }
        self.producer.commit(COMMIT)
    }
}

/// Whether the topic says that it is this job's. Topic names have `-` for each `_`, so those of two jobs may be one;
/// of a topic that does not say, its owners' ids tell.
///
/// # Errors
/// It is another job's, or the system failed.
fn is_marked(admin: &dyn SystemAdmin, at: &TopicPartition, job: &JobId) -> Result<bool, SystemError> {
    let ends = admin.watermarks(std::slice::from_ref(at))?;
    let Some(ends) = ends.first() else { return Ok(false) };
    let (mut marked, mut other) = (None, None);
    let mut take = |messages: &[Message<'_>]| {
        for message in messages {
            if let Some(Record::Owner(owner)) = record::decode(message.key, message.value) {
                if !owner.id.starts_with(&format!("{job}-")) {
                    other = Some(owner.id);
                }
            } else if message.key.and_then(parse::<Key>) == Some(Key::Job) {
                marked = message.value.and_then(parse::<JobId>);
            }
        }
        Ok(())
    };
    admin.read_range(at, ends.low, ends.high, Isolation::ReadUncommitted, &mut take)?;
    let whose = match (&marked, other) {
        (Some(mark), _) if mark == job => return Ok(true),
        (Some(mark), _) => format!("job `{mark}`"),
        (None, Some(owner)) => format!("the job of its owner {owner}"),
        (None, None) => return Ok(false),
    };
    Err(SystemError::Fatal(format!(
        "topic {} belongs to {whose}; the names of job `{job}` and of that one are too much alike (`_` and `-` are one \
         in names of topics), so that they would share state and fence each other: give one of them another `[job] \
         name` or `id`",
        at.topic
    )))
}

struct Owner<'a> {
    producer: &'a mut dyn TransactionalProducer,
}

impl Claimant for Owner<'_> {
    fn init(&mut self) -> Result<(), SystemError> {
        self.producer.init(INIT)
    }
    fn wait(&mut self, again: u32, error: Option<&SystemError>) -> Result<(), SystemError> {
        wait_a_little(again, error, 100)
    }
}

/// 10 ms doubling to 200 ms; an error is borne `most` times.
///
/// # Errors
/// The last error, or that the wait was in vain.
pub fn wait_a_little(again: u32, error: Option<&SystemError>, most: u32) -> Result<(), SystemError> {
    if again >= most {
        let why = SystemError::Retriable("transactions of an earlier owner are not decided yet".into());
        return Err(error.cloned().unwrap_or(why));
    }
    std::thread::sleep(Duration::from_millis((10 << again.min(5)).min(200)));
    Ok(())
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and maps with text keys always serialise")
}

/// Takes one record; owner records and foreign ones are skipped.
fn learn(remembered: &mut Remembered, key: Option<&[u8]>, value: Option<&[u8]>) {
    let Some(key) = key.and_then(|k| serde_json::from_slice::<Key>(k).ok()) else { return };
    match key {
        Key::ChangelogPartition { task } => match value.and_then(parse::<Partition>) {
            Some(at) => drop(remembered.changelog.insert(task, at.partition)),
            None => drop(remembered.changelog.remove(&task)),
        },
        Key::Job => {}
        Key::JobModel => {
            remembered.model = value.and_then(parse::<Model>).map(|m| RememberedModel {
                app: m.app,
                generation: m.generation,
                model: m.model,
            });
        }
        Key::Container { slot } => match value.and_then(parse::<Place>) {
            Some(Place { container, node, host }) => {
                remembered.places.insert(slot, SlotPlace { container, node, host });
            }
            None => drop(remembered.places.remove(&slot)),
        },
    }
}

fn parse<T: for<'de> Deserialize<'de>>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}
