//! What outlives a container: streams, what is committed, and the time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use types::{Grouper, JobId, StoreSpec, StreamSpec, SystemStream, SystemStreamPartition, TaskName, TaskSpec};

use super::store::KitStore;
use super::streams::Streams;
use crate::metrics::TaskMetrics;
use crate::task::TaskClock;

/// Everything but a running container.
pub(super) struct World {
    pub(super) job: JobId,
    pub(super) task: TaskSpec,
    pub(super) stream_specs: BTreeMap<String, StreamSpec>,
    pub(super) store_specs: BTreeMap<String, StoreSpec>,
    pub(super) streams: Streams,
    pub(super) clock: TaskClock,
    pub(super) tasks: Vec<Place>,
    pub(super) commits: u64,
    /// The seed of the order of partitions; none: in the order of sending.
    pub(super) shuffle: Option<u64>,
    /// Set by a store that wants a commit before the next message.
    pub(super) full: Rc<Cell<bool>>,
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
    pub(super) fn new(job: JobId, task: TaskSpec) -> World {
        World {
            job,
            task,
            stream_specs: BTreeMap::new(),
            store_specs: BTreeMap::new(),
            streams: Streams::new(),
            clock: TaskClock::default(),
            tasks: Vec::new(),
            commits: 0,
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

    pub(super) fn spec_of(&self, stream: &SystemStream) -> StreamSpec {
        let found = self.stream_specs.get(&stream.to_string()).cloned();
        found.unwrap_or_else(|| StreamSpec::default_for(&stream.stream))
    }

    /// Makes the tasks, once: task n gets partition n of every input, and all partitions of broadcast ones.
    pub(super) fn lay_out(&mut self) {
        let mut by_partition: BTreeMap<i32, Vec<SystemStreamPartition>> = BTreeMap::new();
        let mut broadcast = Vec::new();
        for input in &self.task.inputs {
            let stream = SystemStream::parse(input).expect("it was checked when it was declared");
            let to_all = self.spec_of(&stream).broadcast;
            for partition in 0..i32::try_from(self.streams.partitions(input)).unwrap_or(i32::MAX) {
                let part = SystemStreamPartition { stream: stream.clone(), partition };
                match (to_all, self.task.grouper) {
                    (true, _) => broadcast.push(part),
                    (false, Grouper::Partition) => by_partition.entry(partition).or_default().push(part),
                    (false, Grouper::Single) => by_partition.entry(0).or_default().push(part),
                }
            }
        }
        if by_partition.is_empty() {
            by_partition.insert(0, Vec::new());
        }
        for (n, mut inputs) in by_partition {
            inputs.extend(broadcast.iter().cloned());
            let store = |(name, spec): (&String, &StoreSpec)| {
                (name.clone(), Rc::new(RefCell::new(KitStore::new(name, spec, &self.clock, &self.full))))
            };
            self.tasks.push(Place {
                name: TaskName(format!("Partition {n}")),
                inputs,
                stores: self.store_specs.iter().map(store).collect(),
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
        self.full.set(false);
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
