//! Where each input begins: what checkpoints and the job file say, against what is there.

use std::collections::BTreeMap;

use task_api::system::{LogEnd, Lost, Offset, StartAt, SystemAdmin, TopicPartition};
use task_core::chooser::Input;
use task_core::record::Checkpoint;
use tracing::{info, warn};
use types::{JobSpec, OffsetDefault, OffsetLost, StreamSpec, SystemStreamPartition, TaskModel, TaskName};

use super::{Inputs, Reader, Source};
use crate::end::End;
use crate::held::Held;
use crate::meters::InputMeters;
use crate::restore::patiently;
use crate::systems::{System, Systems};
use crate::watch::{self, Topics, Watch};

/// One input of one task on its way to being read.
struct Opening<'a> {
    task: usize,
    partition: &'a SystemStreamPartition,
    spec: StreamSpec,
    at: TopicPartition,
    start: StartAt,
    /// The start is the position in the checkpoint.
    is_resumed: bool,
    topic_id: Option<String>,
    ends_at: Option<u64>,
    bootstrap_until: Option<u64>,
}

impl Opening<'_> {
    /// What is read of it, at this place among the consumer's partitions.
    fn source(&self, place: usize) -> Source {
        Source {
            task: self.task,
            partition: self.partition.clone(),
            stream: self.partition.stream.to_string(),
            place,
            topic_id: self.topic_id.clone(),
            next: None,
            has_begun: false,
            committed: None,
            held: Held::default(),
            ends_at: self.ends_at,
            is_past_end: false,
            ended: false,
            waits: false,
            heard: None,
            stands: None,
            last_unix_ms: None,
            meters: InputMeters::default(),
            input: Input { priority: self.spec.priority, bootstrap_until: self.bootstrap_until },
        }
    }
}

/// One consumer per system (more where tasks read one partition from different places), assigned where the
/// checkpoints say. For each system messages of `hold` bytes may wait.
pub(crate) fn open(
    job: &JobSpec,
    systems: &Systems,
    client_id: &str,
    models: &[TaskModel],
    checkpoints: &[&Checkpoint],
    hold: u64,
) -> Result<Inputs, End> {
    let mut by_system: BTreeMap<&str, Vec<Opening<'_>>> = BTreeMap::new();
    for (task, model) in models.iter().enumerate() {
        for partition in &model.inputs {
            let spec = job.stream(&partition.stream);
            let at = TopicPartition { topic: spec.topic.clone(), partition: partition.partition };
            let stream = partition.stream.to_string();
            let known = checkpoints[task].offset(&stream, partition.partition);
            let checkpointed = known.filter(|_| !spec.reset_offset);
            let start = match (checkpointed, spec.offset_default) {
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
            of_system.push(Opening {
                task,
                partition,
                spec,
                at,
                start,
                is_resumed: checkpointed.is_some(),
                topic_id: None,
                ends_at: None,
                bootstrap_until: None,
            });
        }
    }
    let (mut readers, mut topics) = (Vec::new(), Vec::new());
    let hold = hold * by_system.len() as u64;
    for (name, mut inputs) in by_system {
        let system =
            systems.get(name).ok_or_else(|| End::Failed(format!("no system `{name}` in job.toml")))?;
        look_at_topics(&*system.admin(), &mut inputs, models, checkpoints)?;
        let id = |input: &Opening<'_>| Some((input.at.topic.clone(), input.topic_id.clone()?));
        topics.push(Topics { admin: system.admin(), ids: inputs.iter().filter_map(id).collect() });
        readers.extend(assign(&**system, (client_id, &job.job.to_string()), inputs, models)?);
    }
    let each = hold / readers.len().max(1) as u64;
    readers.iter_mut().for_each(|reader: &mut Reader| reader.hold = each);
    Ok(Inputs::new(readers, models.len(), Watch::start(topics, watch::EVERY)))
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
        // A bounded stream is over when everything that was there is decided; others need not wait for that.
        input.ends_at = input.spec.bounded.then_some(ends.high);
        input.bootstrap_until = input.spec.bootstrap.then_some(ends.stable);
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
    let cut = cut_at(admin, &resumed, checkpoints)?;
    for ((input, lost), (_, offset)) in
        resumed.iter_mut().zip(patiently(|| admin.lost(&starts))?).zip(&starts)
    {
        let known = checkpoints[input.task].topics.get(&input.partition.stream.to_string());
        let recreated = known.zip(ids.get(&input.at.topic)).is_some_and(|(known, is)| known != is);
        let what = match lost {
            _ if recreated => "the topic was deleted and made again since".to_owned(),
            None if let Some(end) = cut.get(&input.at) => format!(
                "what was read up to {end} is no longer what is there: a broker became its leader that did not have \
                 everything (an unclean election), and messages that nobody has read may be below {offset}"
            ),
            Some(Lost::Truncated { low }) => format!("it begins at {low} now: what was before is gone"),
            // Nothing was ever read there: the offset is the job file's.
            Some(Lost::Recreated { high }) if known.is_none() => {
                format!(
                    "it ends at {high}: `offset-default` names an offset that not every partition has; a time is one"
                )
            }
            Some(Lost::Recreated { high }) => format!("it ends at {high}: was the topic made again?"),
            None => continue,
        };
        input.start = after_loss(&models[input.task].name, input, offset, &what)?;
        input.is_resumed = false;
    }
    for input in inputs {
        input.topic_id = ids.get(&input.at.topic).cloned();
    }
    Ok(())
}

/// The partitions that were cut since they were read, with how far that was.
fn cut_at(
    admin: &dyn SystemAdmin,
    resumed: &[&mut Opening<'_>],
    checkpoints: &[&Checkpoint],
) -> Result<BTreeMap<TopicPartition, u64>, End> {
    let read_to = |input: &&mut Opening<'_>| {
        let (stream, partition) = (input.partition.stream.to_string(), input.partition.partition);
        let read_to = checkpoints[input.task].read_to(&stream, partition)?;
        input.is_resumed.then(|| (input.at.clone(), read_to))
    };
    let seen: Vec<(TopicPartition, LogEnd)> = resumed.iter().filter_map(read_to).collect();
    if seen.is_empty() {
        return Ok(BTreeMap::new());
    }
    let cut = patiently(|| admin.cut(&seen))?;
    Ok(seen.into_iter().zip(cut).filter(|(_, cut)| *cut).map(|((at, end), _)| (at, end.offset)).collect())
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
        /// With whether each goes on where its checkpoint says.
        sources: Vec<(Source, bool)>,
        readers_of: Vec<Vec<usize>>,
    }
    let mut all: Vec<Assigning> = Vec::new();
    for input in inputs {
        info!(task = %models[input.task].name, input = %input.partition.stream, partition = input.partition.partition, start = ?input.start, "reads");
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
        of.sources.push((input.source(place), input.is_resumed));
    }
    all.into_iter()
        .map(|Assigning { partitions, mut sources, readers_of }| {
            let mut consumer = system.consumer(client_id, group)?;
            consumer.assign(&partitions)?;
            for (source, is_resumed) in &mut sources {
                source.next = consumer.start(source.place);
                source.committed = source.next.filter(|_| *is_resumed);
            }
            Ok(Reader::new(consumer, sources.into_iter().map(|(source, _)| source).collect(), readers_of))
        })
        .collect()
}
