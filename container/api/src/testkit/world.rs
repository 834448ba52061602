//! What outlives a container: streams, what is committed, and the time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use types::{JobSpec, StoreSpec, SystemStreamPartition, TaskName};

use super::store::KitStore;
use super::streams::Streams;
use crate::metrics::{MetricsRegistry, TaskMetrics};
use crate::task::TaskClock;

/// Everything but a running container.
pub(super) struct World {
    pub(super) job: JobSpec,
    pub(super) streams: Streams,
    pub(super) clock: TaskClock,
    pub(super) tasks: Vec<Place>,
    pub(super) commits: u64,
    /// Messages and timers that `[errors]` left out.
    pub(super) left_out: u64,
    /// Of the container that runs, or ran last.
    pub(super) metrics: MetricsRegistry,
    /// The seed of the order of partitions; none: in the order of sending.
    pub(super) shuffle: Option<u64>,
    /// Set by a store that wants a commit before the next message.
    pub(super) full: Rc<AtomicBool>,
}

/// A task's place: what each of its lives finds.
pub(super) struct Place {
    pub(super) name: TaskName,
    pub(super) inputs: Vec<SystemStreamPartition>,
    pub(super) stores: BTreeMap<String, Rc<RefCell<KitStore>>>,
    /// The next offset of each input, as committed.
    pub(super) positions: BTreeMap<SystemStreamPartition, u64>,
    pub(super) metrics: TaskMetrics,
}

impl World {
    pub(super) fn new(job: JobSpec) -> World {
        World {
            job,
            streams: Streams::new(),
            clock: TaskClock::default(),
            tasks: Vec::new(),
            commits: 0,
            left_out: 0,
            metrics: MetricsRegistry::default(),
            shuffle: None,
            full: Rc::default(),
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.clock.now_unix_ms()
    }

    pub(super) fn set_now(&mut self, unix_ms: u64) {
        self.clock.set(unix_ms);
        self.streams.now = unix_ms;
    }

    /// Makes the tasks, once, as an application master would.
    ///
    /// # Panics
    /// The job has no inputs.
    pub(super) fn lay_out(&mut self) {
        let partitions = |stream: &types::SystemStream| self.streams.partitions(&stream.to_string());
        let job = types::expand(&self.job, &|system| self.streams.names_of(system));
        let tasks = types::tasks(&job, &partitions);
        let tasks = tasks.unwrap_or_else(|error| panic!("{error}: declare an input with `input`"));
        for (name, inputs) in tasks {
            let store = |(name, spec): (&String, &StoreSpec)| {
                (name.clone(), Rc::new(RefCell::new(KitStore::new(name, spec, &self.clock, &self.full))))
            };
            self.tasks.push(Place {
                name,
                inputs,
                stores: self.job.stores.iter().map(store).collect(),
                positions: BTreeMap::new(),
                metrics: TaskMetrics::default(),
            });
        }
    }

    pub(super) fn stores(&self) -> impl Iterator<Item = &Rc<RefCell<KitStore>>> {
        self.tasks.iter().flat_map(|place| place.stores.values())
    }

    /// Back to the last commit.
    pub(super) fn roll_back(&mut self) {
        self.stores().for_each(|store| store.borrow_mut().roll_back());
        self.streams.decide(false);
        self.streams.failed = None;
        self.full.store(false, Ordering::Relaxed);
    }

    /// What a new process finds, here or on another node.
    pub(super) fn reopen(&mut self, on_another_node: bool) {
        self.stores().for_each(|store| store.borrow_mut().reopen(on_another_node));
    }

    /// A number below `bound` (at least 1), from the seed (xorshift).
    pub(super) fn draw(&mut self, bound: usize) -> Option<usize> {
        let state = self.shuffle.as_mut()?;
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        Some((*state % bound.max(1) as u64) as usize)
    }
}
