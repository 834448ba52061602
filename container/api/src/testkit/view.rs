//! What a test looks at.

use std::rc::Rc;

use types::{SystemStreamPartition, TIMERS_STORE, TaskName};

use super::streams::Output;
use super::world::{Place, World};
use super::{TestKit, passed};
use crate::metrics::TaskMetrics;
use crate::serde::Serde;
use crate::store::{KeyValueStore, RawStore};
use crate::task::StreamTask;

/// What came of it.
impl<T: StreamTask> TestKit<T> {
    /// All messages of a stream that a reader of committed messages sees, in the order in which they were sent.
    #[must_use]
    pub fn outputs(&self, stream: &str) -> Vec<Output> {
        self.world.streams.all(stream)
    }

    /// As [`Self::outputs`], read by serdes.
    ///
    /// # Panics
    /// A serde refuses a message.
    #[must_use]
    #[track_caller]
    pub fn outputs_as<K, V>(&self, stream: &str, key: impl Serde<K>, value: impl Serde<V>) -> Vec<(K, V)> {
        let all = self.outputs(stream);
        all.iter()
            .map(|output| passed(output.decode(&key, &value).map_err(|e| format!("{e}: {output:?}"))))
            .collect()
    }

    /// Those of [`Self::outputs`] that this method has not given yet.
    pub fn take(&mut self, stream: &str) -> Vec<Output> {
        self.world.streams.take(stream)
    }

    /// Task `Partition <n>`: its stores, metrics and positions.
    ///
    /// # Panics
    /// There is none, or the first container does not start.
    #[track_caller]
    pub fn task(&mut self, n: usize) -> TaskView<'_> {
        if self.world.tasks.is_empty() {
            passed(self.try_start(false));
        }
        let tasks = self.world.tasks.len();
        assert!(n < tasks, "there are {tasks} tasks, numbered from 0: none is {n}");
        TaskView { world: &self.world, n }
    }

    /// How many tasks there are.
    ///
    /// # Panics
    /// The first container does not start.
    #[track_caller]
    pub fn tasks(&mut self) -> usize {
        self.task(0).world.tasks.len()
    }

    /// Whether the container runs: it was not shut down and has not failed.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.life.as_ref().is_some_and(|life| !life.stopped)
    }

    /// Virtual time, unix ms.
    #[must_use]
    pub fn now_unix_ms(&self) -> u64 {
        self.world.now()
    }

    /// The container's metrics as Prometheus' text.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.world.metrics.render()
    }

    /// How many commits there were.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.world.commits
    }

    /// How many messages, timers and outputs `[errors]` has left out.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.world.left_out + self.world.streams.refused
    }
}

/// One task of a [`TestKit`].
#[derive(Clone, Copy)]
pub struct TaskView<'a> {
    world: &'a World,
    n: usize,
}

impl std::fmt::Debug for TaskView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name())
    }
}

impl TaskView<'_> {
    fn place(&self) -> &Place {
        &self.world.tasks[self.n]
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &TaskName {
        &self.place().name
    }

    /// One of its stores, as it is now: with what is not committed yet.
    ///
    /// # Panics
    /// The job has no such store.
    #[must_use]
    #[track_caller]
    pub fn store<K, V>(
        &self,
        name: &str,
        key: impl Serde<K> + 'static,
        value: impl Serde<V> + 'static,
    ) -> KeyValueStore<K, V> {
        let Some(store) = self.place().stores.get(name) else {
            panic!("the job has no store `{name}`: declare it with `store`")
        };
        KeyValueStore::new(store.clone(), Rc::new(key), Rc::new(value))
    }

    /// When its timer `key` goes off, unix ms.
    ///
    /// # Panics
    /// The job has no timers.
    #[must_use]
    #[track_caller]
    pub fn timer(&self, key: &[u8]) -> Option<u64> {
        let Some(timers) = self.place().stores.get(TIMERS_STORE) else {
            panic!("the job has no timers: give it some with `timers`")
        };
        let mut timers = timers.borrow_mut();
        let due = passed(timers.get(key))?;
        due.try_into().ok().map(u64::from_be_bytes)
    }

    /// Its metrics: those of the container that runs, or ran last.
    #[must_use]
    pub fn metrics(&self) -> &TaskMetrics {
        &self.place().metrics
    }

    /// The offset of `stream`'s partition that is read next after a crash; none if it has not committed any.
    #[must_use]
    pub fn committed(&self, stream: &str, partition: i32) -> Option<u64> {
        let is = |at: &&SystemStreamPartition| at.partition == partition && at.stream.to_string() == stream;
        let positions = &self.place().positions;
        positions.keys().find(is).and_then(|at| positions.get(at)).copied()
    }
}
