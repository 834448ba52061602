//! What a task thread reads: one consumer per system, its partitions, and which of them must wait.

mod open;
mod standing;

use std::sync::Arc;
use std::time::Duration;

use task_api::system::{LogEnd, Message, Offset, SystemConsumer, SystemError};
use task_core::chooser::{Chooser, Input, More, Progress};
use types::{SystemStreamPartition, Timestamp};

pub(crate) use self::open::open;
pub(crate) use self::standing::Standing;
use self::standing::Stands;
use crate::end::End;
use crate::held::Held;
use crate::meters::InputMeters;
use crate::watch::Watch;

/// One partition as one task reads it.
pub(crate) struct Source {
    /// Its task's place.
    pub(crate) task: usize,
    pub(crate) partition: SystemStreamPartition,
    /// Its stream, as checkpoints name it.
    pub(crate) stream: String,
    /// Its place among the consumer's partitions.
    pub(crate) place: usize,
    /// The id of its topic.
    pub(crate) topic_id: Option<String>,
    /// The offset after the last one taken, or where reading began; none if that is not known yet.
    next: Option<u64>,
    /// Whether anything was taken.
    has_begun: bool,
    /// The position in the last checkpoint.
    pub(crate) committed: Option<u64>,
    /// What was fetched and not taken.
    pub(crate) held: Held,
    /// Of a bounded stream: where it ends.
    ends_at: Option<u64>,
    /// A message at the end of a bounded stream or behind it has come.
    is_past_end: bool,
    /// Nothing more of it will be processed.
    ended: bool,
    /// Other inputs go first now.
    pub(crate) waits: bool,
    /// When messages of it came last.
    heard: Option<Timestamp>,
    /// Where it was when it was last looked at, if it was at an end that is not the log's.
    stands: Option<Stands>,
    /// The time of the last message taken that had one, unix ms.
    last_unix_ms: Option<u64>,
    meters: InputMeters,
    input: Input,
}

/// A position that goes into a checkpoint.
pub(crate) struct Moved {
    pub(crate) to: Offset,
    /// The job file decided where the source began, not a checkpoint.
    pub(crate) is_decided: bool,
    /// How far messages were read, if all of them are processed.
    pub(crate) read_to: Option<LogEnd>,
}

/// A system's consumer and what it reads.
pub(crate) struct Reader {
    pub(crate) consumer: Box<dyn SystemConsumer>,
    pub(crate) sources: Vec<Source>,
    /// By partition of the consumer: the sources that its messages are for, one but for broadcast streams.
    pub(crate) readers_of: Vec<Vec<usize>>,
    /// By partition of the consumer.
    paused: Vec<bool>,
    /// Whether the consumer wakes the thread when something comes.
    pub(crate) wakes: bool,
    /// After an error: when it is polled again.
    pub(crate) retry_at: Timestamp,
    /// So much may be held, bytes, before partitions are paused: a pause throws away what was fetched ahead.
    hold: u64,
}

impl Source {
    /// How much of a run of messages, which has just come, is before the end of a bounded stream.
    pub(crate) fn before_end(&mut self, messages: &[Message<'_>], now: Timestamp) -> usize {
        self.heard = Some(now);
        let within = self.ends_at.map_or(messages.len(), |end| messages.partition_point(|m| m.offset < end));
        self.is_past_end |= within < messages.len();
        within
    }

    /// The task has taken everything up to this message.
    pub(crate) fn took(&mut self, last: u64, unix_ms: Option<u64>) {
        (self.next, self.has_begun) = (self.next.max(Some(last + 1)), true);
        self.last_unix_ms = unix_ms.or(self.last_unix_ms);
    }

    pub(crate) fn priority(&self) -> i32 {
        self.input.priority
    }

    /// Everything below this was taken or can never be seen: reading goes on there. None if nobody knows yet.
    pub(crate) fn position(&self, consumer: &dyn SystemConsumer) -> Option<u64> {
        let position = match self.held.first() {
            // What a source was read to its end with may be behind what is held.
            Some(first) => consumer.position_of(first),
            None if self.is_past_end => self.ends_at,
            None => self.next.max(consumer.caught_up_at(self.place)),
        };
        // What comes behind a bounded stream's end is another run's.
        let within = |position: u64| self.ends_at.map_or(position, |end| position.min(end));
        position.map(within).max(self.next)
    }

    /// Whether everything that was there to be seen was taken when the end was last met.
    fn is_caught_up(&self, consumer: &dyn SystemConsumer) -> bool {
        self.held.is_empty() && consumer.caught_up_at(self.place).is_some_and(|at| Some(at) >= self.next)
    }

    /// Whether its position may become a later one without a message.
    fn is_settled(&self, consumer: &dyn SystemConsumer) -> bool {
        !self.has_begun || self.ended || !self.held.is_empty() || self.is_caught_up(consumer)
    }

    fn is_stopped(&self) -> bool {
        self.ended || self.waits || !self.held.is_empty()
    }
}

impl Reader {
    fn new(consumer: Box<dyn SystemConsumer>, sources: Vec<Source>, readers_of: Vec<Vec<usize>>) -> Reader {
        let paused = vec![false; readers_of.len()];
        let retry_at = Timestamp::default();
        Reader { consumer, sources, readers_of, paused, wakes: false, retry_at, hold: 0 }
    }

    /// Takes note of sources that are over; returns whether there is a new one.
    fn look_for_ends(&mut self) -> bool {
        let mut any = false;
        for source in self.sources.iter_mut().filter(|source| !source.ended && source.held.is_empty()) {
            let reached = |end| source.position(&*self.consumer).is_some_and(|position| position >= end);
            source.ended = source.ends_at.is_some_and(reached) || self.consumer.has_ended(source.place);
            any |= source.ended;
        }
        any
    }

    fn progress(&self, source: &Source, now: Timestamp) -> Progress {
        let position = source.position(&*self.consumer).unwrap_or(0);
        let more = if !source.held.is_empty() {
            More::InHand
        } else if source.is_caught_up(&*self.consumer) {
            More::Nothing
        } else {
            match (self.consumer.lag(source.place, position), source.heard) {
                (Some(0), _) => More::Nothing,
                (Some(_), Some(heard)) => More::Expected { quiet_ms: now.since(heard) },
                (None, _) | (_, None) => More::Unknown,
            }
        };
        Progress { position, more, ended: source.ended }
    }

    /// Whether a poll may bring what its tasks can be given.
    pub(crate) fn is_open(&self, now: Timestamp) -> bool {
        now >= self.retry_at && !self.sources.iter().all(Source::is_stopped)
    }

    /// Pauses the partitions that must wait, once as much is held as may be, and resumes the others.
    fn arrange(&mut self) -> Result<(), SystemError> {
        let held: usize = self.sources.iter().map(|source| source.held.size()).sum();
        let is_full = held as u64 >= self.hold.max(1);
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        for (place, of) in self.readers_of.iter().enumerate() {
            let must_wait = |at: &usize| self.sources[*at].waits || !self.sources[*at].held.is_empty();
            let is_over = of.iter().all(|at| self.sources[*at].ended);
            let wanted = is_over || of.iter().any(must_wait) && (is_full || self.paused[place]);
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
    /// By task: its sources, by reader and place there.
    of_task: Vec<Vec<(usize, usize)>>,
    /// If priorities or bootstrap streams make some inputs wait for others.
    chooser: Option<Chooser>,
    watch: Watch,
}

impl Inputs {
    fn new(readers: Vec<Reader>, tasks: usize, watch: Watch) -> Inputs {
        let mut of_task = vec![Vec::new(); tasks];
        for (reader, of) in readers.iter().enumerate() {
            of.sources.iter().enumerate().for_each(|(at, source)| of_task[source.task].push((reader, at)));
        }
        let inputs = readers.iter().flat_map(|r| r.sources.iter().map(|s| s.input)).collect();
        let chooser = Some(Chooser::new(inputs)).filter(Chooser::matters);
        Inputs { readers, of_task, chooser, watch }
    }

    /// What happened to a topic, if one is not the one that reading began with.
    pub(crate) fn topic_made_again(&self) -> Option<&str> {
        self.watch.found()
    }

    /// Why a topic cannot be read, with more than its system's word if it is not the one that reading began with.
    pub(crate) fn cannot_read(&self, error: SystemError) -> End {
        self.watch.look().map_or_else(|| End::from(error), End::Failed).during("reading")
    }

    /// From now on the thread that calls this is unparked when something comes, by those consumers that can.
    pub(crate) fn wake_this_thread(&mut self) {
        let this = std::thread::current();
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || this.unpark());
        for reader in &mut self.readers {
            reader.wakes = reader.consumer.wake_with(Arc::clone(&wake));
        }
    }

    /// Whether some inputs go before others.
    pub(crate) fn are_chosen(&self) -> bool {
        self.chooser.is_some()
    }

    /// Whether some input waits for another.
    pub(crate) fn any_waits(&self) -> bool {
        self.are_chosen() && self.readers.iter().any(|reader| reader.sources.iter().any(|s| s.waits))
    }

    /// Takes note of sources that are over; returns whether there is a new one.
    pub(crate) fn look_for_ends(&mut self) -> bool {
        // Each one is looked at.
        self.readers.iter_mut().filter_map(|reader| reader.look_for_ends().then_some(())).count() > 0
    }

    #[cfg(test)]
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        self.readers.iter().flat_map(|reader| &reader.sources)
    }

    fn of_task(&self, task: usize) -> impl Iterator<Item = (&Reader, &Source)> {
        self.of_task[task]
            .iter()
            .map(|(reader, at)| (&self.readers[*reader], &self.readers[*reader].sources[*at]))
    }

    /// Whether every source of the task is over.
    pub(crate) fn task_ended(&self, task: usize) -> bool {
        self.of_task(task).all(|(_, source)| source.ended)
    }

    /// Whether a position is not the one of the last checkpoint: something was processed, a start was decided, or an end
    /// was met behind what cannot be seen.
    pub(crate) fn have_moved(&self) -> bool {
        let moved = |reader: &Reader| {
            reader.sources.iter().any(|source| {
                let position = source.position(&*reader.consumer);
                position.is_some() && position != source.committed
            })
        };
        self.readers.iter().any(moved)
    }

    /// The sources of the task whose positions are not those of its last checkpoint, with the new ones, which are those
    /// of its last checkpoint from now on.
    pub(crate) fn commit_positions(&mut self, task: usize, mut set: impl FnMut(&Source, Moved)) {
        for (reader, at) in &self.of_task[task] {
            let Reader { consumer, sources, .. } = &mut self.readers[*reader];
            let source = &mut sources[*at];
            let position = source.position(&**consumer);
            if let Some(at) = position.filter(|_| position != source.committed) {
                let is_decided = source.committed.is_none();
                source.committed = position;
                // What is held was read, but is behind the position.
                let read_to = consumer.read_to(source.place).filter(|read_to| read_to.offset <= at);
                set(source, Moved { to: consumer.offset(source.place, at), is_decided, read_to });
            }
        }
    }

    /// Whether each source was read to an end, or something of it is here, since its last message: then its position is
    /// behind what cannot be seen.
    pub(crate) fn are_settled(&self) -> bool {
        let settled = |reader: &Reader| {
            let mut of = reader.sources.iter().zip(reader.sources.iter().map(|s| reader.paused[s.place]));
            of.all(|(source, paused)| paused || source.is_settled(&*reader.consumer))
        };
        self.readers.iter().all(settled)
    }

    /// Decides which inputs wait and which partitions are fetched from until the next call.
    pub(crate) fn arrange(&mut self, now: Timestamp) -> Result<(), SystemError> {
        if let Some(chooser) = &mut self.chooser {
            let of =
                |reader: &Reader| reader.sources.iter().map(|s| reader.progress(s, now)).collect::<Vec<_>>();
            let progress: Vec<Progress> = self.readers.iter().flat_map(of).collect();
            let waits = chooser.waits(now, &progress);
            let sources = self.readers.iter_mut().flat_map(|reader| &mut reader.sources);
            sources.zip(waits).for_each(|(source, waits)| source.waits = waits);
        }
        self.readers.iter_mut().try_for_each(Reader::arrange)
    }

    /// Tells systems what is committed, waiting for at most `patience` until each knows.
    pub(crate) fn tell_committed(&mut self, patience: Duration) {
        for Reader { consumer, sources, readers_of, .. } in &mut self.readers {
            // Of the tasks that read a broadcast partition the one furthest behind counts.
            let committed = |of: &Vec<usize>| of.iter().map(|at| sources[*at].committed).min().flatten();
            let of_places = readers_of.iter().enumerate();
            let positions: Vec<_> =
                of_places.filter_map(|(place, of)| Some((place, committed(of)?))).collect();
            if !positions.is_empty() {
                consumer.tell_positions(&positions, patience);
            }
        }
    }
}
