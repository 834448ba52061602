//! The task's side: what users implement and what they are handed.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use types::{JobId, SystemStreamPartition, TaskName};

use crate::headers::{Headers, OwnedHeaders};
use crate::metrics::TaskMetrics;
use crate::serde::Serde;
use crate::store::{KeyValueStore, RawStore, StoreError};
use crate::system::Message;
use crate::timers::Timers;

/// What a task's methods return; an error ends the container with its text as the reason.
pub type TaskResult = Result<(), TaskError>;

/// Any error of a task.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// A job's code, one instance per task (Samza's StreamTask with InitableTask, WindowableTask, EndOfStreamListenerTask
/// and ClosableTask).
///
/// Made, called and dropped on one thread; it need not be `Send`. Only [`StreamTask::process`] must be written.
///
/// What follows an error of `process`, `process_batch` or `timer` is up to job.toml's `[errors]`: by default it ends
/// the container, which is then restarted and gets the message again. An error of any other method always does.
pub trait StreamTask: 'static {
    /// Called once, after the task's stores are restored and before its first message.
    ///
    /// # Errors
    /// Any error ends the container.
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        let _ = context;
        Ok(())
    }

    /// Called for each message, in the order of its partition.
    ///
    /// # Errors
    /// See [`StreamTask`]. A [`crate::DecodeError`] is one of the stage `decode`, every other of the stage `process`.
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult;

    /// Called with what has arrived of one partition; by default it calls [`Self::process`] for each message. For tasks
    /// that work on slices: what they take from the batch counts as processed when they return, the rest is given
    /// again later. A batch is as large as such a task gets through in a fraction of a second, as measured; see also
    /// [`MessageBatch::must_return`].
    ///
    /// # Errors
    /// As [`Self::process`]; the message that was taken last is the one that failed, or, if none was taken, the first.
    fn process_batch(
        &mut self,
        batch: &mut MessageBatch<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        for envelope in batch.by_ref() {
            self.process(&envelope, collector, coordinator)?;
            if coordinator.is_set() {
                break;
            }
        }
        Ok(())
    }

    /// Called every `task.window` of wall-clock time.
    ///
    /// # Errors
    /// Any error ends the container.
    fn window(
        &mut self,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let _ = (collector, coordinator);
        Ok(())
    }

    /// Called when a timer of [`TaskContext::timers`] is due; it is no longer set then.
    ///
    /// # Errors
    /// See [`StreamTask`].
    fn timer(
        &mut self,
        key: &[u8],
        due_unix_ms: u64,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let _ = (key, due_unix_ms, collector, coordinator);
        Ok(())
    }

    /// Called once, when every input of the task has ended (only bounded inputs do), before the last commit.
    ///
    /// # Errors
    /// Any error ends the container.
    fn end_of_stream(
        &mut self,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let _ = (collector, coordinator);
        Ok(())
    }

    /// How many messages were taken but are not processed yet. Only tasks that work on several at once have any:
    /// see [`crate::AsyncStreamTask`]. The runtime completes them all before it calls [`Self::window`], [`Self::timer`]
    /// or [`Self::end_of_stream`], and before it commits.
    fn in_flight(&self) -> usize {
        0
    }

    /// Finishes messages in flight, in their order: those that are done, or, with `all`, every one, waiting for it.
    /// Called between batches while any is in flight, and with `all` before each commit.
    ///
    /// # Errors
    /// See [`StreamTask`]; [`FailedMessage`] tells which message failed, which is in flight no more. Any other error ends
    /// the container, whatever `[errors]` says.
    fn complete(
        &mut self,
        all: bool,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let _ = (all, collector, coordinator);
        Ok(())
    }

    /// Called once, after the last commit, when the container ends in order.
    ///
    /// # Errors
    /// Any error is logged and makes the exit code non-zero.
    fn close(&mut self) -> TaskResult {
        Ok(())
    }
}

/// One message, borrowed from its batch.
#[derive(Debug, Clone, Copy)]
pub struct IncomingMessageEnvelope<'a> {
    /// Where it comes from.
    pub source: &'a SystemStreamPartition,
    /// Its place in its partition; ordered, opaque, formatted by its system.
    pub offset: u64,
    /// Its key, none if it has none.
    pub key: Option<&'a [u8]>,
    /// Its value, none for a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its timestamp, unix ms; none if its system gives none.
    pub timestamp_ms: Option<u64>,
    /// Its headers; not read before they are looked at.
    pub headers: Headers<'a>,
}

/// Messages of one partition, in order, borrowed from what was fetched. An iterator takes them one by one.
#[derive(Debug)]
pub struct MessageBatch<'a> {
    source: &'a SystemStreamPartition,
    messages: &'a [Message<'a>],
    taken: usize,
    /// Set, by whichever thread, when the runtime has something to do before the next message.
    return_first: &'a AtomicBool,
}

impl<'a> MessageBatch<'a> {
    /// For runtimes: all of `messages` are of `source`; none is taken while `return_first` is set.
    #[must_use]
    pub fn new(
        source: &'a SystemStreamPartition,
        messages: &'a [Message<'a>],
        return_first: &'a AtomicBool,
    ) -> MessageBatch<'a> {
        MessageBatch { source, messages, taken: 0, return_first }
    }
    /// Whether the runtime waits for `process_batch` to return, because a commit, a window or a timer is due or the
    /// container is to stop. The iterator ends by itself then; a loop over slices should look here after each slice,
    /// and return. What is not taken comes again.
    #[must_use]
    pub fn must_return(&self) -> bool {
        self.return_first.load(Ordering::Relaxed)
    }
    /// Where the messages come from.
    #[must_use]
    pub fn source(&self) -> &'a SystemStreamPartition {
        self.source
    }
    /// The messages that are not taken yet ([`Message::source`] means nothing here).
    #[must_use]
    pub fn rest(&self) -> &'a [Message<'a>] {
        &self.messages[self.taken..]
    }
    /// Takes the next `count` messages, or as many as there are.
    pub fn take_slice(&mut self, count: usize) -> &'a [Message<'a>] {
        let taken = &self.rest()[..count.min(self.messages.len() - self.taken)];
        self.taken += taken.len();
        taken
    }
    /// How many were taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken
    }
    /// For runtimes: the message that an error of [`StreamTask::process_batch`] is of, where `before` were taken when it was
    /// called: the one that was taken last, or, if none was, the next one, which is taken with it. So whoever goes on
    /// comes further. None if there is no message left.
    pub fn failed_since(&mut self, before: usize) -> Option<IncomingMessageEnvelope<'a>> {
        if self.taken == before {
            self.take_slice(1);
        }
        let last = self.messages[before..self.taken].last()?;
        Some(self.envelope(last))
    }
    /// `message` of this batch as an envelope.
    #[must_use]
    pub fn envelope(&self, message: &Message<'a>) -> IncomingMessageEnvelope<'a> {
        IncomingMessageEnvelope {
            source: self.source,
            offset: message.offset,
            key: message.key,
            value: message.value,
            timestamp_ms: message.timestamp_ms,
            headers: message.headers,
        }
    }
}

impl<'a> Iterator for MessageBatch<'a> {
    type Item = IncomingMessageEnvelope<'a>;

    /// Takes the next message; none if there is no other, or if [`MessageBatch::must_return`].
    fn next(&mut self) -> Option<Self::Item> {
        if self.must_return() {
            return None;
        }
        let message = self.messages.get(self.taken)?;
        self.taken += 1;
        Some(self.envelope(message))
    }
}

/// A message that outlives its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedMessage {
    /// Where it comes from.
    pub source: SystemStreamPartition,
    /// Its offset.
    pub offset: u64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Unix ms, none if unknown.
    pub timestamp_ms: Option<u64>,
    /// Its headers.
    pub headers: OwnedHeaders,
}

impl OwnedMessage {
    /// A copy of `envelope`.
    #[must_use]
    pub fn of(envelope: &IncomingMessageEnvelope<'_>) -> OwnedMessage {
        OwnedMessage {
            source: envelope.source.clone(),
            offset: envelope.offset,
            key: envelope.key.map(<[u8]>::to_vec),
            value: envelope.value.map(<[u8]>::to_vec),
            timestamp_ms: envelope.timestamp_ms,
            headers: OwnedHeaders::of(envelope.headers),
        }
    }
}

/// The error of a message that was not the one taken last.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct FailedMessage {
    /// The message.
    pub message: OwnedMessage,
    /// What went wrong.
    pub cause: TaskError,
}

/// One message to send.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingMessage<'a> {
    /// The stream, `system.stream` as in job.toml.
    pub stream: &'a str,
    /// The partition; none lets the partition key choose, or else the key.
    pub partition: Option<i32>,
    /// Bytes whose murmur2 hash chooses the partition in the key's place; the message itself keeps its key. None lets
    /// the key's hash choose, as Java clients do; without a key either the system chooses.
    pub partition_key: Option<&'a [u8]>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value, none for a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its timestamp, unix ms; none is now, by the system.
    pub timestamp_ms: Option<u64>,
    /// Its headers: those of an envelope as they are, or others ([`Headers::new`]).
    pub headers: Headers<'a>,
}

impl<'a> OutgoingMessage<'a> {
    /// A message of now without headers, whose key chooses the partition.
    #[must_use]
    pub fn new(stream: &'a str, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> OutgoingMessage<'a> {
        OutgoingMessage {
            stream,
            partition: None,
            partition_key: None,
            key,
            value,
            timestamp_ms: None,
            headers: Headers::NONE,
        }
    }
}

/// Takes a task's outputs. What it took is sent before the input that caused it counts as processed.
pub trait MessageCollector {
    /// Sends one message; its bytes are copied.
    ///
    /// # Errors
    /// The stream's system is unknown or its producer failed.
    fn send(&mut self, message: OutgoingMessage<'_>) -> TaskResult;

    /// How many partitions `stream` has, as heard some seconds ago at most: partitions may be added to it while the job
    /// runs. The first question about a stream may wait for its system, the others cost next to nothing.
    ///
    /// # Errors
    /// The stream's system is unknown, it has no such stream, or nobody answers.
    fn partitions(&mut self, stream: &str) -> Result<i32, TaskError>;
}

/// Takes a task's wishes to the container.
#[derive(Debug, Default)]
pub struct TaskCoordinator {
    commit: bool,
    shutdown: bool,
}

impl TaskCoordinator {
    /// Asks for a commit of this task's thread after the current message.
    pub fn commit(&mut self) {
        self.commit = true;
    }
    /// Asks the container to commit and exit with 0 after the current message.
    pub fn shutdown(&mut self) {
        self.shutdown = true;
    }
    /// Returns and clears (commit, shutdown); for the container.
    pub fn take(&mut self) -> (bool, bool) {
        let wishes = (self.commit, self.shutdown);
        (self.commit, self.shutdown) = (false, false);
        wishes
    }
    /// Whether anything was asked for.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.commit || self.shutdown
    }
}

/// What a task is given at `init`.
pub struct TaskContext {
    /// Its name.
    pub task: TaskName,
    /// Its job.
    pub job: JobId,
    /// What it reads.
    pub inputs: Vec<SystemStreamPartition>,
    /// `[task] config`.
    pub config: BTreeMap<String, String>,
    /// Its stores by name; runtimes put them here.
    pub stores: BTreeMap<String, Rc<RefCell<dyn RawStore>>>,
    /// `[task] concurrency`: how many messages of an asynchronous task may be in flight.
    pub concurrency: u32,
    /// The time as of the messages at hand.
    pub clock: TaskClock,
    /// Its own metrics, with its name as a label.
    pub metrics: TaskMetrics,
    /// See [`Self::timers`].
    pub timer_queue: Option<Timers>,
}

/// Wall-clock time, read once per batch: a look costs nothing, and tests set it.
#[derive(Debug, Clone, Default)]
pub struct TaskClock(Rc<Cell<u64>>);

impl TaskClock {
    /// Unix ms.
    #[must_use]
    pub fn now_unix_ms(&self) -> u64 {
        self.0.get()
    }
    /// For runtimes: sets it.
    pub fn set(&self, unix_ms: u64) {
        self.0.set(unix_ms);
    }
}

impl std::fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskContext")
            .field("task", &self.task)
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

impl TaskContext {
    /// A handle on store `name` with the given serdes; keep it in the task.
    ///
    /// # Errors
    /// job.toml has no `[stores.<name>]`.
    pub fn store<K: Any, V: Any>(
        &self,
        name: &str,
        key: impl Serde<K> + 'static,
        value: impl Serde<V> + 'static,
    ) -> Result<KeyValueStore<K, V>, StoreError> {
        let raw = self.stores.get(name).ok_or_else(|| StoreError::Unknown {
            name: name.to_owned(),
            known: self.stores.keys().cloned().collect::<Vec<_>>().join(", "),
        })?;
        Ok(KeyValueStore::new(Rc::clone(raw), Rc::new(key), Rc::new(value)))
    }

    /// The task's timers: set by key, kept with its state, due at a wall-clock time.
    ///
    /// # Errors
    /// job.toml has no `[task] timers = true`.
    pub fn timers(&self) -> Result<Timers, StoreError> {
        self.timer_queue.clone().ok_or(StoreError::NoTimers)
    }
}
