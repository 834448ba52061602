//! The task's side: what users implement and what they are handed.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use types::{JobId, SystemStreamPartition, TaskName};

use crate::serde::Serde;
use crate::store::{KeyValueStore, RawStore, StoreError};

/// What a task's methods return; an error ends the container with its text as the reason.
pub type TaskResult = Result<(), TaskError>;

/// Any error of a task.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// A job's code, one instance per task (Samza's StreamTask with InitableTask, WindowableTask and ClosableTask).
///
/// Made, called and dropped on one thread; it need not be `Send`.
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
    /// Any error ends the container; the message will be processed again after the restart.
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult;

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
    /// Its timestamp, unix ms; -1 if its system gives none.
    pub timestamp_ms: i64,
}

/// One message to send.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingMessage<'a> {
    /// The stream, `system.stream` as in job.toml.
    pub stream: &'a str,
    /// The partition; none lets the key's murmur2 hash choose, as Java clients do.
    pub partition: Option<i32>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value, none for a tombstone.
    pub value: Option<&'a [u8]>,
}

/// Takes a task's outputs. What it took is sent before the input that caused it counts as processed.
pub trait MessageCollector {
    /// Sends one message; its bytes are copied.
    ///
    /// # Errors
    /// The stream's system is unknown or its producer failed.
    fn send(&mut self, message: OutgoingMessage<'_>) -> TaskResult;
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
    /// Its stores by name; containers put them here.
    pub stores: BTreeMap<String, Rc<RefCell<dyn RawStore>>>,
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
        Ok(KeyValueStore::new(Rc::clone(raw), Box::new(key), Box::new(value)))
    }
}
