//! One life of a container: from its start to its end or its crash. What outlives it is the [`World`].

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use types::{OnError, SystemStreamPartition, TIMERS_STORE, TaskName};

use super::store::KitStore;
use super::streams::{Streams, Unread};
use super::world::{Place, World};
use crate::dead_letter::{DeadLetter, Outcome, Stage, count_error};
use crate::metrics::MetricsRegistry;
use crate::store::{RawStore, StoreError};
use crate::system::{Message, SystemError};
use crate::task::{
    FailedMessage, IncomingMessageEnvelope, MessageBatch, OutgoingMessage, OwnedMessage, StreamTask,
    TaskContext, TaskCoordinator, TaskError,
};
use crate::timers::Timers;

/// Why a container has ended.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct Failure {
    /// Where: the task, and what of it failed.
    pub what: String,
    /// Why.
    pub cause: TaskError,
}

impl Failure {
    fn of(task: &TaskName, what: &str, cause: TaskError) -> Failure {
        Failure { what: format!("{what} of {task}"), cause }
    }
    fn during(what: &str, error: SystemError) -> Failure {
        Failure { what: what.to_owned(), cause: error.into() }
    }
    fn failed(task: &TaskName, letter: &DeadLetter, cause: TaskError) -> Failure {
        Failure { what: format!("{task} failed: {}", letter.what), cause }
    }
}

struct Task<T> {
    code: T,
    timers: Option<Timers>,
}

/// One partition that a task reads.
struct Source {
    task: usize,
    at: SystemStreamPartition,
    stream: String,
    priority: i32,
    /// Of a bootstrap stream: where it ended when the container started.
    bootstrap_until: Option<u64>,
    /// Where it begins without a checkpoint.
    start: u64,
    /// The next offset.
    next: u64,
}

/// A running container.
pub(super) struct Life<T> {
    tasks: Vec<Task<T>>,
    sources: Vec<Source>,
    coordinator: TaskCoordinator,
    commit_requested: bool,
    /// Messages processed since the last commit.
    processed: u64,
    last_commit: u64,
    next_window: Option<u64>,
    /// The timers, by task and key, that went off in this round. What sets itself again to a time that is over waits for
    /// the next one: the clock stands still, and inputs shall get their turn.
    gone_off: BTreeSet<(usize, Vec<u8>)>,
    /// It has ended in order.
    pub(super) stopped: bool,
}

impl<T: StreamTask> Life<T> {
    pub(super) fn start(w: &mut World, factory: &dyn Fn() -> T) -> Result<Life<T>, Failure> {
        let now = w.now();
        let mut life = Life {
            tasks: Vec::new(),
            sources: sources(w),
            coordinator: TaskCoordinator::default(),
            commit_requested: false,
            processed: 0,
            last_commit: now,
            gone_off: BTreeSet::new(),
            next_window: w.job.task.window_ms.map(|every| now + every.max(1)),
            stopped: false,
        };
        w.metrics = MetricsRegistry::default();
        for place in &mut w.tasks {
            place.metrics = w.metrics.with_labels(&[("task", &place.name.0)]);
            let raw = |store: &Rc<RefCell<KitStore>>| -> Rc<RefCell<dyn RawStore>> { store.clone() };
            for (name, store) in &place.stores {
                let metrics = w.metrics.with_labels(&[("task", &place.name.0), ("store", name)]);
                store.borrow_mut().dropped = metrics.counter("samza_store_large_values_dropped_total");
            }
            let timers = match place.stores.get(TIMERS_STORE).filter(|_| w.job.task.timers) {
                Some(rows) => Some(
                    Timers::in_memory(raw(rows)).map_err(|e| Failure::of(&place.name, "timers", e.into()))?,
                ),
                None => None,
            };
            let mut context = TaskContext {
                task: place.name.clone(),
                job: w.job.job.clone(),
                inputs: place.inputs.clone(),
                config: w.job.task.config.clone(),
                stores: place.stores.iter().map(|(name, store)| (name.clone(), raw(store))).collect(),
                concurrency: w.job.task.concurrency,
                clock: w.clock.clone(),
                metrics: place.metrics.clone(),
                timer_queue: timers.clone(),
            };
            let mut code = factory();
            code.init(&mut context).map_err(|cause| Failure::of(&place.name, "init", cause))?;
            life.tasks.push(Task { code, timers });
        }
        // Where reading begins is decided once.
        for source in &life.sources {
            w.tasks[source.task].positions.entry(source.at.clone()).or_insert(source.next);
        }
        Ok(life)
    }

    /// Does the next thing: a timer that is due, or else one message, or else a timer that has gone off and was set
    /// again. False if there was nothing to do.
    pub(super) fn step(&mut self, w: &mut World) -> Result<bool, Failure> {
        let did = self.step_in_round(w, 1)?;
        Ok(did || !std::mem::take(&mut self.gone_off).is_empty() && self.step_in_round(w, 1)?)
    }

    /// A timer that is due, or else up to `limit` messages. False if there was nothing to do in this round.
    fn step_in_round(&mut self, w: &mut World, limit: usize) -> Result<bool, Failure> {
        if self.stopped {
            return Ok(false);
        }
        let did = match self.due_timer(w) {
            Some((n, key, due)) => {
                self.timer(w, n, &key, due)?;
                true
            }
            None => self.messages(w, limit)?,
        };
        self.complete(w, false)?;
        // Timers that are due at once are committed together.
        if w.full.load(Ordering::Relaxed) || self.due_timer(w).is_none() {
            self.settle(w)?;
        }
        Ok(did)
    }

    /// Works until nothing is left to do at this time but timers that have gone off and were set again.
    pub(super) fn run(&mut self, w: &mut World) -> Result<(), Failure> {
        self.gone_off.clear();
        loop {
            while self.step_in_round(w, usize::MAX)? {}
            if self.stopped || self.tasks.iter().all(|task| task.code.in_flight() == 0) {
                return Ok(());
            }
            self.complete(w, true)?;
            self.settle(w)?;
        }
    }

    /// When the next window, timer or commit is due.
    pub(super) fn next_event(&self, w: &World) -> Option<u64> {
        let timers = self.tasks.iter().filter_map(|task| task.timers.as_ref()?.next_due()).min();
        let commit = self.anything(w).then(|| self.last_commit.saturating_add(w.job.task.commit_ms));
        [timers, commit, self.next_window].into_iter().flatten().min()
    }

    /// Has windows go off that are due.
    pub(super) fn windows(&mut self, w: &mut World) -> Result<(), Failure> {
        let (Some(every), Some(next)) = (w.job.task.window_ms, self.next_window) else { return Ok(()) };
        if self.stopped || w.now() < next {
            return Ok(());
        }
        self.next_window = Some(next + every.max(1));
        self.complete(w, true)?;
        for (task, place) in self.tasks.iter_mut().zip(&w.tasks) {
            let done = task.code.window(&mut w.streams, &mut self.coordinator);
            done.map_err(|cause| unforgiven(&mut w.streams, &place.name, "window", cause))?;
        }
        Ok(())
    }

    /// Every input has ended: tells the tasks, commits and closes.
    pub(super) fn end(&mut self, w: &mut World) -> Result<(), Failure> {
        self.run(w)?;
        if self.stopped {
            return Ok(());
        }
        self.complete(w, true)?;
        for (task, place) in self.tasks.iter_mut().zip(&w.tasks) {
            let done = task.code.end_of_stream(&mut w.streams, &mut self.coordinator);
            done.map_err(|cause| unforgiven(&mut w.streams, &place.name, "end of stream", cause))?;
        }
        self.stop(w)
    }

    /// Commits and closes.
    pub(super) fn stop(&mut self, w: &mut World) -> Result<(), Failure> {
        if self.stopped {
            return Ok(());
        }
        self.commit(w)?;
        self.stopped = true;
        let mut ended = Ok(());
        for (task, place) in self.tasks.iter_mut().zip(&w.tasks) {
            if let Err(cause) = task.code.close() {
                ended = Err(Failure::of(&place.name, "close", cause));
            }
        }
        ended
    }

    /// The first timer that is due and has not gone off in this round, of the first task that has one.
    fn due_timer(&self, w: &World) -> Option<(usize, Vec<u8>, u64)> {
        self.tasks.iter().enumerate().find_map(|(n, task)| {
            let timers = task.timers.as_ref().filter(|timers| timers.next_due().is_some())?;
            let is_new = |(key, _): &(Vec<u8>, u64)| !self.gone_off.contains(&(n, key.clone()));
            // Those that went off and are there again are few.
            let first = |most| timers.due(w.now(), most).into_iter().find(is_new);
            let (key, due) = first(1).or_else(|| first(self.gone_off.len() + 1))?;
            Some((n, key, due))
        })
    }

    fn timer(&mut self, w: &mut World, n: usize, key: &[u8], due: u64) -> Result<(), Failure> {
        // Before the timer is taken: what is in flight may set it anew, or fail by itself.
        self.complete(w, true)?;
        let Task { code, timers } = &mut self.tasks[n];
        let taken = timers.as_ref().map_or(Ok(false), |timers| timers.take(key, due));
        let taken = taken.map_err(|error| Failure::of(&w.tasks[n].name, "timers", error.into()))?;
        if !taken {
            return Ok(());
        }
        self.gone_off.insert((n, key.to_vec()));
        if let Err(cause) = code.timer(key, due, &mut w.streams, &mut self.coordinator) {
            leave_out(w, n, &What::Timer(key.to_vec(), due), cause)?;
        }
        Ok(())
    }

    fn messages(&mut self, w: &mut World, limit: usize) -> Result<bool, Failure> {
        let Some((source, unread)) = self.choose(w, limit) else { return Ok(false) };
        self.gone_off.clear();
        let Source { task: n, at, next, .. } = &mut self.sources[source];
        let messages: Vec<Message<'_>> =
            unread.iter().map(|(_, message)| as_message(source, message)).collect();
        let full = Rc::clone(&w.full);
        let mut batch = MessageBatch::new(at, &messages, &full);
        let code = &mut self.tasks[*n].code;
        loop {
            let (before, in_flight) = (batch.taken(), code.in_flight());
            let done = code.process_batch(&mut batch, &mut w.streams, &mut self.coordinator);
            let Err(cause) = done else { break };
            let came_further = batch.taken() > before || code.in_flight() < in_flight;
            let last = if cause.is::<FailedMessage>() { None } else { batch.failed_since(before) };
            match of_message(cause, last) {
                Ok((message, cause)) if last.is_some() || came_further => {
                    leave_out(w, *n, &What::Message(message), cause)?;
                }
                Ok((_, cause)) | Err(cause) => {
                    return Err(Failure::of(&w.tasks[*n].name, "process_batch", cause));
                }
            }
            if batch.rest().is_empty() || batch.must_return() || self.coordinator.is_set() {
                break;
            }
        }
        self.processed += batch.taken() as u64;
        match messages[..batch.taken()].last() {
            Some(last) => *next = last.offset + 1,
            None if code.in_flight() > 0 => self.complete(w, true)?,
            None => return Err(Failure::of(&w.tasks[*n].name, "process_batch", "it took no message".into())),
        }
        Ok(true)
    }

    /// The next messages, all of one source: those that were sent before any other's, or what the seed says.
    fn choose(&self, w: &mut World, limit: usize) -> Option<(usize, Vec<Unread>)> {
        let first =
            |source: &Source| w.streams.unread(&source.stream, source.at.partition, source.next).next();
        let firsts: Vec<Option<Unread>> = self.sources.iter().map(first).collect();
        // What is below the end and can never be seen keeps nobody waiting.
        let is_behind = |n: usize| {
            let until = self.sources[n].bootstrap_until.zip(firsts[n].as_ref());
            until.is_some_and(|(until, (_, next))| next.offset < until)
        };
        let mut ready: Vec<(u64, usize)> =
            (0..self.sources.len()).filter_map(|n| firsts[n].as_ref().map(|(sent, _)| (*sent, n))).collect();
        if ready.iter().any(|(_, n)| is_behind(*n)) {
            ready.retain(|(_, n)| self.sources[*n].bootstrap_until.is_some());
        }
        let highest = ready.iter().map(|(_, n)| self.sources[*n].priority).max()?;
        ready.retain(|(_, n)| self.sources[*n].priority == highest);
        ready.sort_unstable();
        let drawn = w.draw(ready.len());
        let n = ready[drawn.unwrap_or(0)].1;
        let other = ready.get(1).copied().filter(|_| drawn.is_none());
        let limit = limit.min(w.draw(5).map_or(usize::MAX, |more| more + 1));
        let source = &self.sources[n];
        // A bootstrap stream that is read up to its end goes on as any other.
        let until = source.bootstrap_until.filter(|_| is_behind(n)).unwrap_or(u64::MAX);
        let mine = |(at, unread): &(usize, Unread)| {
            *at == 0 || (unread.1.offset < until && other.is_none_or(|other| (unread.0, n) < other))
        };
        let unread = w.streams.unread(&source.stream, source.at.partition, source.next);
        let unread =
            unread.enumerate().take_while(mine).take(limit.max(1)).map(|(_, unread)| unread).collect();
        Some((n, unread))
    }

    /// Finishes messages in flight.
    fn complete(&mut self, w: &mut World, all: bool) -> Result<(), Failure> {
        for n in 0..self.tasks.len() {
            let code = &mut self.tasks[n].code;
            loop {
                let before = code.in_flight();
                if before == 0 {
                    break;
                }
                let done = code.complete(all, &mut w.streams, &mut self.coordinator);
                let Err(cause) = done else { break };
                match of_message(cause, None) {
                    Ok((message, cause)) if code.in_flight() < before => {
                        leave_out(w, n, &What::Message(message), cause)?;
                    }
                    Ok((_, cause)) | Err(cause) => {
                        return Err(Failure::of(&w.tasks[n].name, "completion", cause));
                    }
                }
            }
        }
        Ok(())
    }

    fn anything(&self, w: &World) -> bool {
        self.processed > 0 || w.streams.uncommitted > 0 || w.stores().any(|store| store.borrow().is_dirty())
    }

    /// Does what the tasks wish for, and commits when it is time.
    fn settle(&mut self, w: &mut World) -> Result<(), Failure> {
        loop {
            let (commit, shutdown) = self.coordinator.take();
            self.commit_requested |= commit;
            if shutdown {
                return self.stop(w);
            }
            let is_time = w.now().saturating_sub(self.last_commit) >= w.job.task.commit_ms;
            if self.anything(w) && (is_time || self.commit_requested || w.full.load(Ordering::Relaxed)) {
                self.commit(w)?;
            }
            if !self.coordinator.is_set() {
                return Ok(());
            }
        }
    }

    /// Commits, if anything has happened since the last commit.
    pub(super) fn commit(&mut self, w: &mut World) -> Result<(), Failure> {
        self.complete(w, true)?;
        if let Some(error) = w.streams.failed.take() {
            return Err(Failure::during("commit: an earlier send", error));
        }
        if !self.anything(w) {
            return Ok(());
        }
        w.streams.decide(true);
        self.checkpoint(w);
        w.stores().for_each(|store| store.borrow_mut().commit());
        w.full.store(false, Ordering::Relaxed);
        w.commits += 1;
        self.processed = 0;
        self.commit_requested = false;
        self.last_commit = w.now();
        Ok(())
    }
}

impl<T> Life<T> {
    /// Keeps the positions of tasks that have moved or whose rows have changed.
    fn checkpoint(&self, w: &mut World) {
        for (n, place) in w.tasks.iter_mut().enumerate() {
            let mine = || self.sources.iter().filter(|source| source.task == n);
            let at = |source: &Source| place.positions.get(&source.at).copied().unwrap_or(source.start);
            let has_moved = mine().any(|source| source.next != at(source));
            if has_moved || place.stores.values().any(|store| store.borrow().is_dirty()) {
                place.positions.extend(mine().map(|source| (source.at.clone(), source.next)));
            }
        }
    }
}

fn as_message<'a>(source: usize, output: &'a super::Output) -> Message<'a> {
    Message {
        source,
        offset: output.offset,
        key: output.key.as_deref(),
        value: output.value.as_deref(),
        timestamp_ms: Some(output.timestamp_ms),
        headers: output.headers.get(),
    }
}

fn sources(w: &World) -> Vec<Source> {
    let mut sources = Vec::new();
    for (task, place) in w.tasks.iter().enumerate() {
        for at in &place.inputs {
            let spec = w.job.stream(&at.stream);
            let stream = at.stream.to_string();
            let start = w.streams.start(&stream, at.partition, spec.offset_default);
            let end = w.streams.end(&stream, at.partition);
            sources.push(Source {
                task,
                at: at.clone(),
                priority: spec.priority,
                bootstrap_until: spec.bootstrap.then_some(end),
                start,
                next: place.positions.get(at).copied().filter(|_| !spec.reset_offset).unwrap_or(start),
                stream,
            });
        }
    }
    sources
}

/// Why a method failed whose errors no policy forgives.
fn unforgiven(streams: &mut Streams, task: &TaskName, what: &str, cause: TaskError) -> Failure {
    match streams.failed.take() {
        Some(error) => Failure::during("sending", error),
        None => Failure { what: format!("{task} failed: {what}"), cause },
    }
}

/// What failed.
enum What {
    Message(OwnedMessage),
    /// Its key and its time.
    Timer(Vec<u8>, u64),
}

/// The message that an error is of: the one that it names, or else the one taken last; of none, the error itself.
fn of_message(
    cause: TaskError,
    last: Option<IncomingMessageEnvelope<'_>>,
) -> Result<(OwnedMessage, TaskError), TaskError> {
    match (cause.downcast::<FailedMessage>(), last) {
        (Ok(failed), _) => Ok((failed.message, failed.cause)),
        (Err(cause), Some(last)) => Ok((OwnedMessage::of(&last), cause)),
        (Err(cause), None) => Err(cause),
    }
}

/// Lets the job go on after an error if it says so.
fn leave_out(w: &mut World, task: usize, what: &What, cause: TaskError) -> Result<(), Failure> {
    let Place { name, .. } = &w.tasks[task];
    // An error that a system or a store caused is not the message's.
    if let Some(error) = w.streams.failed.take() {
        return Err(Failure::during("sending", error));
    }
    let letter = match what {
        What::Message(message) => DeadLetter::of_message(name, message),
        What::Timer(key, due) => DeadLetter::of_timer(name, key, *due),
    };
    let stage = Stage::of(&cause);
    let policy = match stage {
        Stage::Decode => w.job.errors.decode,
        Stage::Process => w.job.errors.process,
    };
    let count = |what| count_error(&w.metrics, letter.stream(), stage.name(), what);
    let is_engine = cause.downcast_ref().is_some_and(|error| matches!(error, StoreError::Engine(_)));
    match (policy, &w.job.errors.dead_letter) {
        _ if is_engine => return Err(Failure::failed(name, &letter, cause)),
        (OnError::Fail, _) | (OnError::DeadLetter, None) => {
            count(Outcome::Failed).inc();
            return Err(Failure::failed(name, &letter, cause));
        }
        (OnError::Skip, _) => count(Outcome::Skipped).inc(),
        (OnError::DeadLetter, Some(stream)) => {
            let mut send = |letter: &OutgoingMessage<'_>, _| w.streams.send_output(letter);
            let sent = letter.send(stream, stage, &cause, &mut send);
            sent.map_err(|error| Failure::during("dead letter", error))?;
            count(Outcome::DeadLettered).inc();
        }
    }
    w.left_out += 1;
    Ok(())
}
