//! What `samza checkpoint` asks of Kafka and does there: reads checkpoints and ends, and moves start points as the new
//! owner of all the job's tasks, so that nothing of the job that still sleeps can write over them.

use std::collections::BTreeMap;
use std::time::Duration;

use client::brokers;
use client::failure::{Code, Failure};
use kafka::{Access, KafkaAdmin, KafkaConsumer, KafkaProducer};
use task_api::system::{
    Isolation, Message, ProducerRecord, StartAt, SystemAdmin, SystemConsumer, SystemError, SystemProducer,
    TopicMetadata, TopicPartition, TransactionalProducer, Watermarks,
};
use task_core::ownership::{Claim, Claimant, Claimed, OwnerRecord, Partitions, Purpose, drive};
use task_core::record::{self, Checkpoint, Record};
use types::{
    Incarnation, JobSpec, JobTopics, OffsetDefault, Secrets, SystemStream, SystemStreamPartition, TaskName,
};

use super::moves::{Move, target};
use super::rows::{TaskAt, tasks_at};

/// How long a registration or a transaction of a few records may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many partitions are read or fenced at once.
const AT_ONCE: usize = 8;

/// A job's topics on its brokers.
pub(crate) struct Topics {
    /// The job, its patterns replaced by what matches them.
    spec: JobSpec,
    admins: BTreeMap<String, KafkaAdmin>,
    access: BTreeMap<String, Access>,
    /// The system of the checkpoint topic, and the topic.
    home: String,
    checkpoints: String,
}

/// What there is.
pub(crate) struct Found {
    pub(crate) tasks: Vec<TaskAt>,
    pub(crate) ends: BTreeMap<SystemStreamPartition, Watermarks>,
    topic_ids: BTreeMap<SystemStream, String>,
    /// The newest incarnation that ever owned a task, as far as the topic remembers.
    newest: Incarnation,
    /// Of the checkpoint topic.
    partitions: Vec<TopicPartition>,
}

impl Found {
    /// Forgets the tasks that no target is an input of, and their partitions.
    pub(crate) fn keep_concerned(&mut self, targets: &BTreeMap<SystemStreamPartition, u64>) {
        self.tasks.retain(|task| task.inputs.iter().any(|input| targets.contains_key(input)));
        let kept: Vec<i32> = self.tasks.iter().map(|task| task.partition).collect();
        self.partitions.retain(|at| kept.contains(&at.partition));
    }
}

impl Topics {
    /// Opens the systems of the job's inputs.
    pub(crate) fn open(spec: &JobSpec, secrets: &Secrets) -> Result<Topics, Failure> {
        let home = types::metadata_system(spec).ok_or_else(|| Failure::other("the job has no inputs"))?;
        let (mut admins, mut access) = (BTreeMap::new(), BTreeMap::new());
        let mut topics = BTreeMap::new();
        for stream in inputs(spec)? {
            if let Some(system) = spec.systems.get(&stream.system) {
                let to = brokers::access(&stream.system, system, secrets).map_err(failed)?;
                let admin = KafkaAdmin::new(&to.bootstrap, &to.consumer).map_err(failed)?;
                access.insert(stream.system.clone(), to);
                if stream.pattern().is_some() {
                    topics.insert(stream.system.clone(), admin.topics().map_err(failed)?);
                }
                admins.insert(stream.system, admin);
            }
        }
        let spec = types::expand(spec, &|system| topics.get(system).cloned().unwrap_or_default());
        let checkpoints = JobTopics::of(&spec.job).checkpoint;
        Ok(Topics { spec, admins, access, home, checkpoints })
    }

    fn admin(&self, system: &str) -> Result<&KafkaAdmin, Failure> {
        self.admins.get(system).ok_or_else(|| Failure::other(format!("no system `{system}` in the job file")))
    }

    fn describe(&self, system: &str, topic: &str) -> Result<Option<TopicMetadata>, Failure> {
        let found = self.admin(system)?.describe(&[topic.to_owned()]).map_err(failed)?;
        Ok(found.into_iter().find(|found| found.topic == topic))
    }

    /// Reads the inputs' ends and the tasks' checkpoints.
    pub(crate) fn look(&self) -> Result<Found, Failure> {
        let (mut ends, mut topic_ids) = (BTreeMap::new(), BTreeMap::new());
        let mut counts = BTreeMap::new();
        for stream in inputs(&self.spec)? {
            let topic = self.spec.stream(&stream).topic;
            let found = self.describe(&stream.system, &topic)?.ok_or_else(|| {
                Failure::new(Code::NotFound, format!("there is no topic {topic}, the input {stream}"))
            })?;
            let partitions = partitions(&found);
            let marks = self.admin(&stream.system)?.watermarks(&partitions).map_err(failed)?;
            for (at, marks) in partitions.iter().zip(marks) {
                let partition = at.partition;
                ends.insert(SystemStreamPartition { stream: stream.clone(), partition }, marks);
            }
            counts.insert(stream.clone(), partitions.len());
            topic_ids.insert(stream, found.topic_id);
        }
        let made = types::tasks(&self.spec, &|stream| counts.get(stream).copied().unwrap_or(0))
            .map_err(|error| Failure::other(error.to_string()))?;
        let topic = self.describe(&self.home, &self.checkpoints)?.ok_or_else(|| {
            let job = &self.spec.job;
            let told = format!(
                "{job} has never run: there is no topic {}; `offset-default` says where its inputs start",
                self.checkpoints
            );
            Failure::new(Code::NotFound, told)
        })?;
        let partitions = partitions(&topic);
        let marks = self.admin(&self.home)?.watermarks(&partitions).map_err(failed)?;
        let stable: Vec<u64> = marks.iter().map(|ends| ends.stable).collect();
        let checkpoints = self.read_checkpoints(&partitions, &stable)?;
        let high: Vec<u64> = marks.iter().map(|ends| ends.high).collect();
        let owners = self.read_owners(&partitions, &high)?;
        let written = checkpoints.values().map(|(_, checkpoint)| checkpoint.incarnation);
        let newest = owners.into_iter().chain(written).max().unwrap_or_default();
        Ok(Found { tasks: tasks_at(made, checkpoints), ends, topic_ids, newest, partitions })
    }

    fn read_checkpoints(
        &self,
        partitions: &[TopicPartition],
        until: &[u64],
    ) -> Result<BTreeMap<TaskName, (i32, Checkpoint)>, Failure> {
        let mut found = BTreeMap::new();
        for (at, until) in partitions.iter().zip(until) {
            self.read(at, *until, Isolation::ReadCommitted, &mut |record| {
                if let Record::Checkpoint(task, checkpoint) = record {
                    found.insert(task, (at.partition, checkpoint));
                }
            })?;
        }
        Ok(found)
    }

    /// The incarnations of all owners there ever were, as far as compaction left them.
    fn read_owners(&self, partitions: &[TopicPartition], until: &[u64]) -> Result<Vec<Incarnation>, Failure> {
        let mut found = Vec::new();
        for (at, until) in partitions.iter().zip(until) {
            self.read(at, *until, Isolation::ReadUncommitted, &mut |record| {
                if let Record::Owner(owner) = record {
                    found.push(owner.incarnation);
                }
            })?;
        }
        Ok(found)
    }

    fn read(
        &self,
        at: &TopicPartition,
        until: u64,
        isolation: Isolation,
        take: &mut dyn FnMut(Record),
    ) -> Result<(), Failure> {
        let mut batch = |messages: &[Message<'_>]| {
            messages.iter().filter_map(|m| record::decode(m.key, m.value)).for_each(&mut *take);
            Ok(())
        };
        self.admin(&self.home)?.read_range(at, 0, until, isolation, &mut batch).map_err(failed)
    }

    /// Where the partitions that `moves` name are to start, as offsets.
    pub(crate) fn targets(
        &self,
        found: &Found,
        moves: &[Move],
    ) -> Result<BTreeMap<SystemStreamPartition, u64>, Failure> {
        for m in moves {
            let of_stream = |at: &&SystemStreamPartition| at.stream == m.stream;
            let count = found.ends.keys().filter(of_stream).count();
            if count == 0 {
                let inputs = self.spec.task.inputs.join(", ");
                return Err(usage(format!("{} is no input of the job; its inputs: {inputs}", m.stream)));
            }
            if m.partition.is_some_and(|number| usize::try_from(number).map_or(true, |n| n >= count)) {
                return Err(usage(format!("{} has partitions 0 to {} only", m.stream, count - 1)));
            }
        }
        let mut targets = BTreeMap::new();
        for (at, ends) in &found.ends {
            let offset = match target(moves, at) {
                None => continue,
                Some(OffsetDefault::Oldest) => ends.low,
                Some(OffsetDefault::Newest) => ends.stable,
                Some(OffsetDefault::Timestamp(unix_ms)) => self.offset_at(at, unix_ms)?,
                Some(OffsetDefault::Offset(offset)) if (ends.low..=ends.high).contains(&offset) => offset,
                Some(OffsetDefault::Offset(offset)) => {
                    return Err(usage(format!(
                        "partition {} of {} has no offset {offset}; valid: {} to {}",
                        at.partition, at.stream, ends.low, ends.high
                    )));
                }
            };
            targets.insert(at.clone(), offset);
        }
        Ok(targets)
    }

    fn offset_at(&self, at: &SystemStreamPartition, unix_ms: u64) -> Result<u64, Failure> {
        let system = &self.access[&at.stream.system];
        let topic = self.spec.stream(&at.stream).topic;
        let mut consumer =
            KafkaConsumer::new(&system.bootstrap, "samza-checkpoint", "samza-checkpoint", &system.consumer)
                .map_err(failed)?;
        let start = (TopicPartition { topic, partition: at.partition }, StartAt::Timestamp(unix_ms));
        consumer.assign(&[start]).map_err(failed)?;
        consumer.start(0).ok_or_else(|| Failure::other(format!("nobody knows where {} begins", at.stream)))
    }

    /// Fences every owner that the job's tasks have and writes the new start points in one transaction. Returns the
    /// tasks as they were just before.
    pub(crate) fn write(
        &self,
        found: &Found,
        targets: &BTreeMap<SystemStreamPartition, u64>,
        accept_state: bool,
        now_unix_ms: u64,
    ) -> Result<Vec<TaskAt>, Failure> {
        let me = OwnerRecord::of_user(&self.spec.job, found.newest, now_unix_ms);
        let system = &self.access[&self.home];
        let mut producer =
            KafkaProducer::transactional(&system.bootstrap, &me.id, &system.producer).map_err(failed)?;
        let alone = |owners: &TopicPartition| Partitions { owners: owners.clone(), follow: Vec::new() };
        let claim = Claim::new(me, Purpose::Run, found.partitions.iter().map(alone).collect());
        let admin = self.admin(&self.home)?;
        let high = match drive(claim, admin, &mut Mover { producer: &mut producer }).map_err(failed)? {
            Claimed::Owned(high) => high,
            Claimed::Fenced { by } => {
                let told = format!("{} was started meanwhile: {} owns its tasks", self.spec.job, by.id);
                return Err(Failure::new(Code::Refused, told));
            }
        };
        let until: Vec<u64> = high.iter().map(|of| of.first().copied().unwrap_or(0)).collect();
        let mut now = self.read_checkpoints(&found.partitions, &until)?;
        let mut before = found.tasks.clone();
        for task in &mut before {
            task.checkpoint = now.remove(&task.name).map(|(_, checkpoint)| checkpoint);
        }
        let mut records = Vec::new();
        for task in &before {
            if let Some(checkpoint) = moved(task, targets, accept_state, &found.topic_ids, found.newest)? {
                records.push((task, checkpoint));
            }
        }
        let mut commit = || {
            let topic = producer.topic(&self.checkpoints)?;
            producer.begin()?;
            for (task, checkpoint) in &records {
                let (key, value) = (record::checkpoint_key(&task.name), record::checkpoint_value(checkpoint));
                producer.send(&ProducerRecord::new(topic, Some(&key), Some(&value)).to(task.partition))?;
            }
            producer.commit(PATIENCE)
        };
        commit().map_err(failed)?;
        Ok(before)
    }
}

/// The task's checkpoint with its start points moved, and, to accept its state, without what it knows of changelogs;
/// none if nothing of it changes.
pub(crate) fn moved(
    task: &TaskAt,
    targets: &BTreeMap<SystemStreamPartition, u64>,
    accept_state: bool,
    topic_ids: &BTreeMap<SystemStream, String>,
    by: Incarnation,
) -> Result<Option<Checkpoint>, Failure> {
    let accepts = accept_state && task.checkpoint.is_some();
    if !accepts && !task.inputs.iter().any(|input| targets.contains_key(input)) {
        return Ok(None);
    }
    let mut checkpoint = task.checkpoint.clone().unwrap_or_default();
    // Where an earlier writer's restore ended says nothing of this one.
    (checkpoint.incarnation, checkpoint.restored) = (by, None);
    // Rows on a node's disk that are of an earlier commit are older than this.
    checkpoint.commit += 1;
    if accepts {
        checkpoint.changelogs.clear();
    }
    for input in &task.inputs {
        let stream = input.stream.to_string();
        let Some(offset) = targets.get(input) else { continue };
        checkpoint.set_offset(&stream, input.partition, offset.to_string());
        let Some(id) = topic_ids.get(&input.stream) else { continue };
        let of_stream = |other: &&SystemStreamPartition| other.stream == input.stream;
        let all_moved = task.inputs.iter().filter(of_stream).all(|other| targets.contains_key(other));
        match checkpoint.topics.get(&stream) {
            Some(known) if known != id && !all_moved => {
                let told = format!(
                    "the topic of {stream} was made again: move all its partitions, not some of them"
                );
                return Err(usage(told));
            }
            Some(_) | None => drop(checkpoint.topics.insert(stream, id.clone())),
        }
    }
    Ok(Some(checkpoint))
}

struct Mover<'a> {
    producer: &'a mut KafkaProducer,
}

impl Claimant for Mover<'_> {
    fn init(&mut self) -> Result<(), SystemError> {
        self.producer.init(PATIENCE)
    }

    /// 10 ms doubling to 200 ms, some twenty seconds in all.
    fn wait(&mut self, again: u32, error: Option<&SystemError>) -> Result<(), SystemError> {
        if again >= 100 {
            let why = SystemError::Retriable("transactions of an earlier owner are not decided yet".into());
            return Err(error.cloned().unwrap_or(why));
        }
        std::thread::sleep(Duration::from_millis((10 << again.min(5)).min(200)));
        Ok(())
    }

    fn all(&mut self, count: usize, run: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for first in 0..count.min(AT_ONCE) {
                scope.spawn(move || (first..count).step_by(AT_ONCE).for_each(run));
            }
        });
    }
}

fn inputs(spec: &JobSpec) -> Result<Vec<SystemStream>, Failure> {
    types::inputs(spec).map_err(|error| Failure::other(error.to_string()))
}

fn partitions(topic: &TopicMetadata) -> Vec<TopicPartition> {
    let mut all: Vec<TopicPartition> = topic
        .partitions
        .iter()
        .map(|p| TopicPartition { topic: topic.topic.clone(), partition: p.partition })
        .collect();
    all.sort();
    all
}

fn usage(told: String) -> Failure {
    Failure::new(Code::Usage, told)
}

fn failed(error: SystemError) -> Failure {
    let code = match error {
        SystemError::Retriable(_) => Code::Unreachable,
        SystemError::Fenced(_) => Code::Refused,
        SystemError::Fatal(_) | SystemError::Refused(_) => Code::Failure,
    };
    Failure::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use task_core::record::{LogMemory, Restored};
    use types::Epoch;

    use super::*;

    fn at(stream: &str, partition: i32) -> SystemStreamPartition {
        let stream = SystemStream { system: "kafka".into(), stream: stream.into() };
        SystemStreamPartition { stream, partition }
    }

    fn task() -> TaskAt {
        let mut checkpoint = Checkpoint::default();
        checkpoint.set_offset("kafka.in", 0, "5".into());
        checkpoint.set_offset("kafka.rules", 0, "7".into());
        checkpoint.set_offset("kafka.rules", 1, "9".into());
        checkpoint.topics.insert("kafka.rules".into(), "first".into());
        checkpoint.restored = Some(Restored::default());
        TaskAt {
            name: "Partition 0".into(),
            partition: 0,
            inputs: vec![at("in", 0), at("rules", 0), at("rules", 1)],
            checkpoint: Some(checkpoint),
        }
    }

    fn ids(rules: &str) -> BTreeMap<SystemStream, String> {
        [("in", "id"), ("rules", rules)].map(|(name, id)| (at(name, 0).stream, id.to_owned())).into()
    }

    const BY: Incarnation = Incarnation { epoch: Epoch(9), seq: 3 };

    #[test]
    fn what_is_not_moved_stays_as_it_was() {
        let targets = BTreeMap::from([(at("in", 0), 100)]);
        let new = moved(&task(), &targets, false, &ids("first"), BY).expect("fine").expect("it is moved");
        assert_eq!(new.offset("kafka.in", 0), Some("100"));
        assert_eq!((new.offset("kafka.rules", 0), new.offset("kafka.rules", 1)), (Some("7"), Some("9")));
        assert_eq!((new.incarnation, new.restored), (BY, None));
        assert_eq!(new.topics["kafka.in"], "id");
        let other = BTreeMap::from([(at("in", 1), 100)]);
        assert_eq!(moved(&task(), &other, false, &ids("first"), BY), Ok(None), "another task's partition");
    }

    #[test]
    fn state_is_accepted_by_forgetting_what_changelogs_were() {
        let mut task = task();
        let checkpoint = task.checkpoint.as_mut().expect("it has one");
        checkpoint.changelogs.insert("seen".into(), LogMemory { end: 9, ..LogMemory::default() });
        let none = BTreeMap::new();
        let new = moved(&task, &none, true, &ids("first"), BY).expect("fine").expect("it changes");
        assert!(new.changelogs.is_empty() && new.offset("kafka.in", 0) == Some("5"));
        assert!(new.number() > task.checkpoint.as_ref().expect("it has one").number());
        let targets = BTreeMap::from([(at("in", 0), 100)]);
        let new = moved(&task, &targets, false, &ids("first"), BY).expect("fine").expect("it is moved");
        assert_eq!(new.changelogs.len(), 1, "to move is not to accept");
        task.checkpoint = None;
        assert_eq!(moved(&task, &none, true, &ids("first"), BY), Ok(None), "there is nothing to forget");
    }

    #[test]
    fn of_a_topic_that_was_made_again_all_partitions_are_moved_or_none() {
        let some = BTreeMap::from([(at("rules", 0), 0)]);
        let refused = moved(&task(), &some, false, &ids("second"), BY).expect_err("half of it");
        assert!(refused.message.contains("kafka.rules was made again"), "{refused}");
        let all = BTreeMap::from([(at("rules", 0), 0), (at("rules", 1), 0)]);
        let new = moved(&task(), &all, false, &ids("second"), BY).expect("fine").expect("it is moved");
        assert_eq!(new.topics["kafka.rules"], "second");
    }
}
