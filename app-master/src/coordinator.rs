//! The coordinator topic: what a job remembers, as compacted JSON records. Only the master that owns the topic, by
//! the same start order as tasks, writes it, each change in one transaction; a newer master fences an older one.
//!
//! | Key | Value |
//! |---|---|
//! | `{"type":"changelog-partition","task":"Partition 0"}` | `{"partition":0}` |
//! | `{"type":"job"}` | `{"name":…,"id":…}`: whose topic it is |
//! | `{"type":"job-model"}` | `{"app":…,"attempt":…,"incarnation":…,"generation":…,"grouper":…,"home":…,"model":…}` |
//! | `{"type":"job-model-part","part":0}` | `{"generation":…,"text":…}` |
//! | `{"type":"container","slot":0}` | `{"container":…,"node":…,"host":…}` |
//!
//! A model that is too large for one message is cut: the record of the model then says `"parts":…` and has an empty one,
//! and the texts of the parts of its generation, put together, are the model. Owner records stand beside them, as on the
//! checkpoint topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use am_core::place::{Remembered, RememberedModel, SlotPlace};
use serde::{Deserialize, Serialize};
use task_api::system::{
    Isolation, Message, ProducerRecord, SystemAdmin, SystemError, TopicPartition, TransactionalProducer,
};
use task_core::names::belongs_to_another;
use task_core::ownership::{Claim, Claimant, Claimed, OwnerRecord, Partitions, Purpose, drive};
use types::{AppId, ContainerId, Grouper, Incarnation, JobId, JobModel, NodeId, TaskName};

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Key {
    ChangelogPartition { task: TaskName },
    Job,
    JobModel,
    JobModelPart { part: u32 },
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
    #[serde(default)]
    grouper: Option<Grouper>,
    #[serde(default)]
    home: Option<String>,
    model: JobModel,
    /// How many parts the model is cut into; none if it is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parts: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    generation: u64,
    text: String,
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
/// Models whose JSON is longer are cut into parts of so many bytes: with their quotes escaped they stay well below a
/// broker's default of `max.message.bytes`, 1 MB.
const PART_BYTES: usize = 400_000;
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
        let mut known = Known::default();
        let mut take = |messages: &[Message<'_>]| {
            for message in messages {
                known.learn(message.key, message.value);
            }
            Ok(())
        };
        admin.read_range(&partition, 0, until, Isolation::ReadCommitted, &mut take)?;
        if !is_marked {
            let job = json(&coordinator.writer.job);
            coordinator.write(&[(Key::Job, job)])?;
        }
        Ok((coordinator, known.remembered()?))
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
        let mut value = Model {
            app: made.app.clone(),
            attempt: self.writer.attempt,
            incarnation: self.writer.owner.incarnation,
            generation: made.generation,
            grouper: made.grouper,
            home: made.home.clone(),
            model: JobModel::default(),
            parts: None,
        };
        let text = json(&made.model);
        if text.len() <= PART_BYTES {
            value.model = made.model.clone();
        } else {
            let parts = cut(&text, PART_BYTES);
            value.parts = u32::try_from(parts.len()).ok();
            let of = |(part, text): (u32, &str)| {
                let value = Part { generation: made.generation, text: text.to_owned() };
                (Key::JobModelPart { part }, json(&value))
            };
            records.extend((0..).zip(parts).map(of));
        }
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

/// Whether the topic says that it is this job's. Topic names have `-` for each `_`, so those of two jobs may be one. Of
/// a topic that does not say, the owners' ids tell, which the claim looks at.
///
/// # Errors
/// It is another job's, or the system failed.
fn is_marked(admin: &dyn SystemAdmin, at: &TopicPartition, job: &JobId) -> Result<bool, SystemError> {
    let ends = admin.watermarks(std::slice::from_ref(at))?;
    let Some(ends) = ends.first() else { return Ok(false) };
    let mut mark = None;
    let mut take = |messages: &[Message<'_>]| {
        for message in messages {
            if message.key.and_then(parse::<Key>) == Some(Key::Job) {
                mark = message.value.and_then(parse::<JobId>);
            }
        }
        Ok(())
    };
    admin.read_range(at, ends.low, ends.high, Isolation::ReadUncommitted, &mut take)?;
    match mark {
        Some(mark) if mark != *job => Err(belongs_to_another(&at.topic, &mark.to_string())),
        mark => Ok(mark.is_some()),
    }
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

/// `text` in pieces of at most `bytes` bytes, between characters.
fn cut(mut text: &str, bytes: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    while !text.is_empty() {
        let (part, rest) = text.split_at(text.floor_char_boundary(bytes));
        parts.push(part);
        text = rest;
    }
    parts
}

/// What the topic's records say.
#[derive(Default)]
struct Known {
    changelog: BTreeMap<TaskName, i32>,
    model: Option<Model>,
    parts: BTreeMap<u32, Part>,
    places: BTreeMap<u32, SlotPlace>,
}

impl Known {
    /// Takes one record; owner records and foreign ones are skipped.
    fn learn(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) {
        let Some(key) = key.and_then(|k| serde_json::from_slice::<Key>(k).ok()) else { return };
        match key {
            Key::ChangelogPartition { task } => match value.and_then(parse::<Partition>) {
                Some(at) => drop(self.changelog.insert(task, at.partition)),
                None => drop(self.changelog.remove(&task)),
            },
            Key::Job => {}
            Key::JobModel => self.model = value.and_then(parse::<Model>),
            Key::JobModelPart { part } => match value.and_then(parse::<Part>) {
                Some(text) => drop(self.parts.insert(part, text)),
                None => drop(self.parts.remove(&part)),
            },
            Key::Container { slot } => match value.and_then(parse::<Place>) {
                Some(Place { container, node, host }) => {
                    self.places.insert(slot, SlotPlace { container, node, host });
                }
                None => drop(self.places.remove(&slot)),
            },
        }
    }

    fn remembered(self) -> Result<Remembered, SystemError> {
        let Known { changelog, model, parts, places } = self;
        let model = model.map(|said| whole(said, &parts)).transpose()?;
        Ok(Remembered { changelog, model, places })
    }
}

/// The model, put together if it is in parts.
fn whole(said: Model, parts: &BTreeMap<u32, Part>) -> Result<RememberedModel, SystemError> {
    let Model { app, generation, grouper, home, model, parts: count, .. } = said;
    let model = match count {
        None => model,
        Some(count) => {
            let mine = (0..count).map(|n| parts.get(&n).filter(|part| part.generation == generation));
            let text: Option<String> = mine.map(|part| Some(part?.text.as_str())).collect();
            text.and_then(|text| parse(text.as_bytes())).ok_or_else(|| {
                let why =
                    format!("the coordinator topic lacks parts of job model {generation}: was it truncated?");
                SystemError::Fatal(why)
            })?
        }
    };
    Ok(RememberedModel { app, generation, model, grouper, home })
}

fn parse<T: for<'de> Deserialize<'de>>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}
