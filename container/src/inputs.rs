//! What a task thread reads: one consumer per system, its partitions, and which of them must wait.

use std::collections::BTreeMap;
use std::time::Duration;

use task_api::system::{Lost, Offset, StartAt, SystemAdmin, SystemConsumer, SystemError, TopicPartition};
use task_core::chooser::{self, Input, Progress};
use task_core::record::Checkpoint;
use tracing::{info, warn};
use types::{JobSpec, OffsetDefault, OffsetLost, StreamSpec, SystemStreamPartition, TaskModel, TaskName};

use crate::end::End;
use crate::held::Held;
use crate::restore::patiently;
use crate::systems::{System, Systems};

/// One partition as one task reads it.
pub(crate) struct Source {
    /// Its task's place.
    pub(crate) task: usize,
    pub(crate) partition: SystemStreamPartition,
    /// Its place among the consumer's partitions.
    pub(crate) place: usize,
    /// The id of its topic.
    pub(crate) topic_id: Option<String>,
    /// The last offset taken.
    pub(crate) last: Option<u64>,
    /// The last offset in a checkpoint.
    pub(crate) committed: Option<u64>,
    /// What was fetched and not taken.
    pub(crate) held: Held,
    /// Of a bounded stream: where it ends.
    ends_at: Option<u64>,
    /// Nothing more of it will be processed.
    ended: bool,
    input: Input,
}

/// A system's consumer and what it reads.
pub(crate) struct Reader {
    pub(crate) consumer: Box<dyn SystemConsumer>,
    pub(crate) sources: Vec<Source>,
    /// By partition of the consumer: the sources that its messages are for, one but for broadcast streams.
    pub(crate) readers_of: Vec<Vec<usize>>,
    /// By partition of the consumer.
    paused: Vec<bool>,
}

impl Source {
    /// How much of a run of messages is before the end of a bounded stream.
    pub(crate) fn before_end(&self, messages: &[task_api::system::Message<'_>]) -> usize {
        self.ends_at.map_or(messages.len(), |end| messages.partition_point(|m| m.offset < end))
    }

    /// Everything below this was handed over.
    fn position(&self, consumer: &dyn SystemConsumer) -> u64 {
        // What is held was fetched, and what a paused partition was caught up with is behind it.
        let taken = self.last.map_or(0, |last| last + 1);
        if self.held.is_empty() { taken.max(consumer.caught_up_at(self.place).unwrap_or(0)) } else { taken }
    }
}

impl Reader {
    /// Takes note of sources that are over.
    fn look_for_ends(&mut self) {
        for source in self.sources.iter_mut().filter(|source| !source.ended && source.held.is_empty()) {
            let reached = |end| source.position(&*self.consumer) >= end;
            source.ended = source.ends_at.is_some_and(reached) || self.consumer.has_ended(source.place);
        }
    }

    fn progress(&self, source: &Source) -> Progress {
        Progress {
            position: source.position(&*self.consumer),
            lag: if source.held.is_empty() { self.consumer.lag(source.place, source.last) } else { Some(1) },
            ended: source.ended,
        }
    }

    /// Pauses the partitions that must wait, because a task has not taken what it got or because of `waits` (by
    /// source), and resumes the others.
    fn arrange(&mut self, waits: &[bool]) -> Result<(), SystemError> {
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        for (place, of) in self.readers_of.iter().enumerate() {
            let must_wait = |at: &usize| waits.get(*at) == Some(&true) || !self.sources[*at].held.is_empty();
            let wanted = of.iter().any(must_wait) || of.iter().all(|at| self.sources[*at].ended);
            if wanted != self.paused[place] {
                self.paused[place] = wanted;
                if wanted { pause.push(place) } else { resume.push(place) }
            }
        }
        if !pause.is_empty() {
            self.consumer.pause(&pause)?;
        }
        if !resume.is_empty() {
            self.consumer.resume(&resume)?;
        }
        Ok(())
    }
}

/// Everything that a thread reads.
pub(crate) struct Inputs {
    pub(crate) readers: Vec<Reader>,
    /// Whether priorities or bootstrap streams make some inputs wait for others.
    choosing: bool,
}

impl Inputs {
    pub(crate) fn new(readers: Vec<Reader>) -> Inputs {
        let inputs: Vec<Input> = readers.iter().flat_map(|r| r.sources.iter().map(|s| s.input)).collect();
        Inputs { choosing: chooser::matters(&inputs), readers }
    }

    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        self.readers.iter().flat_map(|reader| &reader.sources)
    }

    /// Takes note of sources that are over.
    pub(crate) fn look_for_ends(&mut self) {
        self.readers.iter_mut().for_each(Reader::look_for_ends);
    }

    /// Whether every source of the task is over.
    pub(crate) fn task_ended(&self, task: usize) -> bool {
        self.sources().filter(|source| source.task == task).all(|source| source.ended)
    }

    /// Decides which partitions are fetched from until the next call.
    pub(crate) fn arrange(&mut self) -> Result<(), SystemError> {
        let waits = if self.choosing {
            let of = |reader: &Reader| reader.sources.iter().map(|s| reader.progress(s)).collect::<Vec<_>>();
            let progress: Vec<Progress> = self.readers.iter().flat_map(of).collect();
            let inputs: Vec<Input> = self.sources().map(|source| source.input).collect();
            chooser::waits(&inputs, &progress)
        } else {
            Vec::new()
        };
        let mut from = 0;
        for reader in &mut self.readers {
            let to = (from + reader.sources.len()).min(waits.len());
            reader.arrange(&waits[from.min(to)..to])?;
            from = to;
        }
        Ok(())
    }

    /// Tells systems what is committed, waiting for at most `patience` until each knows.
    pub(crate) fn tell_committed(&mut self, patience: Duration) {
        for Reader { consumer, sources, readers_of, .. } in &mut self.readers {
            // Of the tasks that read a broadcast partition the one furthest behind counts.
            let committed = |of: &Vec<usize>| of.iter().map(|at| sources[*at].committed).min().flatten();
            let positions: Vec<(usize, u64)> = readers_of
                .iter()
                .enumerate()
                .filter_map(|(place, of)| Some((place, committed(of)? + 1)))
                .collect();
            if !positions.is_empty() {
                consumer.tell_positions(&positions, patience);
            }
        }
    }

    /// Messages between a task and the ends of its inputs; none if not all are known.
    pub(crate) fn lag(&self, task: usize) -> Option<u64> {
        let of_reader = |reader: &Reader| -> Option<u64> {
            let mine = reader.sources.iter().filter(|source| source.task == task);
            mine.map(|s| if s.ended { Some(0) } else { reader.consumer.lag(s.place, s.last) }).sum()
        };
        self.readers.iter().map(of_reader).sum()
    }
}

/// One input of one task on its way to being read.
struct Opening<'a> {
    task: usize,
    partition: &'a SystemStreamPartition,
    spec: StreamSpec,
    at: TopicPartition,
    start: StartAt,
    topic_id: Option<String>,
    ends_at: Option<u64>,
}

/// One consumer per system (more where tasks read one partition from different places), assigned where the
/// checkpoints say.
pub(crate) fn open(
    job: &JobSpec,
    systems: &Systems,
    client_id: &str,
    models: &[TaskModel],
    checkpoints: &[&Checkpoint],
) -> Result<Inputs, End> {
    let mut by_system: BTreeMap<&str, Vec<Opening<'_>>> = BTreeMap::new();
    for (task, model) in models.iter().enumerate() {
        for partition in &model.inputs {
            let spec = job.stream(&partition.stream);
            let at = TopicPartition { topic: spec.topic.clone(), partition: partition.partition };
            let stream = partition.stream.to_string();
            let known = checkpoints[task].offset(&stream, partition.partition);
            let start = match (known.filter(|_| !spec.reset_offset), spec.offset_default) {
                (Some(offset), _) => StartAt::At(Offset(offset.to_owned())),
                // Whatever is in it arrived while the job was there to read it.
                (None, OffsetDefault::Newest | OffsetDefault::Offset(_))
                    if model.added.contains(partition) =>
                {
                    StartAt::Oldest
                }
                (None, OffsetDefault::Oldest) => StartAt::Oldest,
                (None, OffsetDefault::Newest) => StartAt::Newest,
                (None, OffsetDefault::Timestamp(unix_ms)) => StartAt::Timestamp(unix_ms),
                (None, OffsetDefault::Offset(offset)) => StartAt::At(Offset(offset.to_string())),
            };
            let of_system = by_system.entry(&partition.stream.system).or_default();
            of_system.push(Opening { task, partition, spec, at, start, topic_id: None, ends_at: None });
        }
    }
    let mut readers = Vec::new();
    for (name, mut inputs) in by_system {
        let system =
            systems.get(name).ok_or_else(|| End::Failed(format!("no system `{name}` in job.toml")))?;
        look_at_topics(&*system.admin(), &mut inputs, models, checkpoints)?;
        readers.extend(assign(&**system, (client_id, &job.job.to_string()), inputs, models)?);
    }
    Ok(Inputs::new(readers))
}

/// Finds out where bounded and bootstrap streams end, and whether what is to be read next is still there.
fn look_at_topics(
    admin: &dyn SystemAdmin,
    inputs: &mut [Opening<'_>],
    models: &[TaskModel],
    checkpoints: &[&Checkpoint],
) -> Result<(), End> {
    let mut topics: Vec<String> = inputs.iter().map(|input| input.at.topic.clone()).collect();
    topics.sort();
    topics.dedup();
    let ids: BTreeMap<String, String> =
        patiently(|| admin.describe(&topics))?.into_iter().map(|t| (t.topic, t.topic_id)).collect();
    let ending = |input: &&mut Opening<'_>| input.spec.bounded || input.spec.bootstrap;
    let mut bounded: Vec<_> = inputs.iter_mut().filter(ending).collect();
    let at: Vec<TopicPartition> = bounded.iter().map(|input| input.at.clone()).collect();
    for (input, ends) in bounded.iter_mut().zip(patiently(|| admin.watermarks(&at))?) {
        input.ends_at = Some(ends.stable);
    }
    let is_resumed = |input: &&mut Opening<'_>| matches!(input.start, StartAt::At(_));
    let mut resumed: Vec<_> = inputs.iter_mut().filter(is_resumed).collect();
    let starts: Vec<(TopicPartition, Offset)> = resumed
        .iter()
        .filter_map(|input| match &input.start {
            StartAt::At(offset) => Some((input.at.clone(), offset.clone())),
            StartAt::Oldest | StartAt::Newest | StartAt::Timestamp(_) => None,
        })
        .collect();
    for ((input, lost), (_, offset)) in
        resumed.iter_mut().zip(patiently(|| admin.lost(&starts))?).zip(&starts)
    {
        let known = checkpoints[input.task].topics.get(&input.partition.stream.to_string());
        let recreated = known.zip(ids.get(&input.at.topic)).is_some_and(|(known, is)| known != is);
        let what = match lost {
            _ if recreated => "the topic was deleted and made again since".to_owned(),
            Some(Lost::Truncated { low }) => format!("it begins at {low} now: what was before is gone"),
            Some(Lost::Recreated { high }) => format!("it ends at {high}: was the topic made again?"),
            None => continue,
        };
        input.start = after_loss(&models[input.task].name, input, offset, &what)?;
    }
    for input in inputs {
        input.topic_id = ids.get(&input.at.topic).cloned();
    }
    Ok(())
}

/// Where to go on when messages are gone, if the job says so.
fn after_loss(task: &TaskName, input: &Opening<'_>, offset: &Offset, what: &str) -> Result<StartAt, End> {
    let (topic, partition) = (&input.at.topic, input.at.partition);
    let stream = &input.partition.stream;
    let told = format!("{task} was to go on with {topic}-{partition} at {offset}, but {what}");
    let (start, word) = match input.spec.offset_lost {
        OffsetLost::Oldest => (StartAt::Oldest, "oldest"),
        OffsetLost::Newest => (StartAt::Newest, "newest"),
        OffsetLost::Fail => {
            return Err(End::Failed(format!(
                "{told}. Choose where to go on: `samza checkpoint job.toml --set {stream}=oldest`, or \
                 `offset-lost = \"oldest\"` in [streams.\"{stream}\"]"
            )));
        }
    };
    warn!("{told}: going on with the {word} message, as offset-lost says");
    Ok(start)
}

fn assign(
    system: &dyn System,
    (client_id, group): (&str, &str),
    inputs: Vec<Opening<'_>>,
    models: &[TaskModel],
) -> Result<Vec<Reader>, End> {
    struct Assigning {
        partitions: Vec<(TopicPartition, StartAt)>,
        sources: Vec<Source>,
        readers_of: Vec<Vec<usize>>,
    }
    let mut all: Vec<Assigning> = Vec::new();
    for input in inputs {
        let stream = input.partition.stream.to_string();
        info!(task = %models[input.task].name, input = %stream, partition = input.partition.partition, start = ?input.start, "reads");
        // Tasks that read one partition from one place share what is fetched.
        let fits =
            |a: &Assigning| a.partitions.iter().all(|(at, start)| *at != input.at || *start == input.start);
        let index = all.iter().position(fits).unwrap_or_else(|| {
            all.push(Assigning { partitions: Vec::new(), sources: Vec::new(), readers_of: Vec::new() });
            all.len() - 1
        });
        let of = &mut all[index];
        let place = of.partitions.iter().position(|(at, _)| *at == input.at).unwrap_or_else(|| {
            of.partitions.push((input.at.clone(), input.start.clone()));
            of.readers_of.push(Vec::new());
            of.partitions.len() - 1
        });
        of.readers_of[place].push(of.sources.len());
        let bootstrap_until = input.ends_at.filter(|_| input.spec.bootstrap);
        of.sources.push(Source {
            task: input.task,
            partition: input.partition.clone(),
            place,
            topic_id: input.topic_id,
            last: None,
            committed: None,
            held: Held::default(),
            ends_at: input.ends_at.filter(|_| input.spec.bounded),
            ended: false,
            input: Input { priority: input.spec.priority, bootstrap_until },
        });
    }
    all.into_iter()
        .map(|Assigning { partitions, sources, readers_of }| {
            let mut consumer = system.consumer(client_id, group)?;
            consumer.assign(&partitions)?;
            let paused = vec![false; partitions.len()];
            Ok(Reader { consumer, sources, readers_of, paused })
        })
        .collect()
}
