//! What a test says of its job: what job.toml says elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use types::{
    ContainersSpec, JobId, JobSpec, OnExhausted, OnLeaseLoss, PackageSpec, PlacementSpec, Resource,
    RestartSpec, Spread, StateLost, TIMERS_STORE, TaskSpec,
};

use super::in_place::{InPlace, InPlaceTask};
use super::world::World;
use super::{Delivery, ErrorsSpec, Grouper, OnError, StoreSpec, StreamSpec, TestKit, millis};
use crate::async_task::{AsyncStreamTask, InOrder};
use crate::task::StreamTask;

/// When virtual time begins, unless told: 2026-01-01, 00:00 UTC.
pub const START_UNIX_MS: u64 = 1_767_225_600_000;

impl<T: AsyncStreamTask> TestKit<InPlaceTask<T>> {
    /// A job of asynchronous tasks. Their futures are polled in place, by turns: one that needs a runtime to become
    /// ready is an error when it is waited for.
    #[must_use]
    pub fn new_async(factory: impl Fn() -> T + 'static) -> TestKit<InPlaceTask<T>> {
        TestKit::new(move || InOrder::new(factory(), InPlace::new()))
    }

    /// How many messages of a task may be in flight (`[task] concurrency`); 16 unless told.
    #[must_use]
    #[track_caller]
    pub fn concurrency(self, messages: u32) -> Self {
        self.set(|world| world.job.task.concurrency = messages)
    }
}

/// What job.toml says. To be called before anything is run.
impl<T: StreamTask> TestKit<T> {
    /// A job whose tasks `factory` makes, one for each partition of its inputs.
    #[must_use]
    pub fn new(factory: impl Fn() -> T + 'static) -> TestKit<T> {
        TestKit::of_job(empty_job(), 0, factory)
    }

    /// Job `job`, as a job.toml is read, whose inputs have so many partitions.
    ///
    /// # Panics
    /// An input is not `<system>.<stream>`.
    #[must_use]
    #[track_caller]
    pub fn of_job(job: JobSpec, partitions: i32, factory: impl Fn() -> T + 'static) -> TestKit<T> {
        let mut world = World::new(job);
        world.set_now(START_UNIX_MS);
        world.streams.systems.extend(world.job.systems.keys().cloned());
        for input in &world.job.task.inputs {
            world.streams.declare(input, partitions);
        }
        TestKit { factory: Box::new(factory), world, life: None, failed: None }
    }

    #[track_caller]
    fn set(mut self, set: impl FnOnce(&mut World)) -> Self {
        assert!(self.world.tasks.is_empty(), "the job runs already: its settings come first");
        set(&mut self.world);
        self
    }

    /// Adds an input with so many partitions.
    #[must_use]
    #[track_caller]
    pub fn input(self, stream: &str, partitions: i32) -> Self {
        self.set(|world| {
            world.streams.declare(stream, partitions);
            world.job.task.inputs.push(stream.to_owned());
        })
    }

    /// Gives an output so many partitions: a send to another one is refused. An output that is not declared has one
    /// partition, or those that are sent to.
    #[must_use]
    #[track_caller]
    pub fn output(self, stream: &str, partitions: i32) -> Self {
        self.set(|world| world.streams.declare(stream, partitions))
    }

    /// Changes the settings of a stream, as `[streams."<system>.<stream>"]` does:
    /// `.stream("kafka.rules", |rules| rules.broadcast = true)`.
    #[must_use]
    #[track_caller]
    pub fn stream(self, stream: &str, change: impl FnOnce(&mut StreamSpec)) -> Self {
        self.set(|world| {
            let spec = world.job.streams.entry(stream.to_owned());
            change(spec.or_insert_with(|| StreamSpec::default_for(stream)));
        })
    }

    /// Adds a store with a changelog.
    #[must_use]
    #[track_caller]
    pub fn store(self, name: &str) -> Self {
        self.store_with(name, |_| {})
    }

    /// Adds a store with other settings, as `[stores.<name>]` does: `.store_with("seen", |s| s.ttl_ms = Some(60_000))`.
    #[must_use]
    #[track_caller]
    pub fn store_with(self, name: &str, change: impl FnOnce(&mut StoreSpec)) -> Self {
        self.set(|world| {
            let mut spec = StoreSpec::with_changelog(Some(name.to_owned()), "kafka");
            change(&mut spec);
            world.job.stores.insert(name.to_owned(), spec);
        })
    }

    /// A setting of the job's own, `[task] config`.
    #[must_use]
    #[track_caller]
    pub fn config(self, key: &str, value: &str) -> Self {
        self.set(|world| {
            world.job.task.config.insert(key.to_owned(), value.to_owned());
        })
    }

    /// How often `window` is called.
    #[must_use]
    #[track_caller]
    pub fn window(self, every: Duration) -> Self {
        self.set(|world| world.job.task.window_ms = Some(millis(every)))
    }

    /// How often the container commits; 1 s unless told. `Duration::MAX` leaves commits to the tasks and the test.
    #[must_use]
    #[track_caller]
    pub fn commit_every(self, interval: Duration) -> Self {
        self.set(|world| world.job.task.commit_ms = millis(interval))
    }

    /// Gives the tasks timers.
    #[must_use]
    #[track_caller]
    pub fn timers(self) -> Self {
        self.store(TIMERS_STORE).set(|world| world.job.task.timers = true)
    }

    /// What a reader of the outputs may rely on; at-least-once unless told.
    #[must_use]
    #[track_caller]
    pub fn delivery(self, delivery: Delivery) -> Self {
        self.set(|world| world.job.task.delivery = delivery)
    }

    /// How partitions become tasks.
    #[must_use]
    #[track_caller]
    pub fn grouper(self, grouper: Grouper) -> Self {
        self.set(|world| world.job.task.grouper = grouper)
    }

    /// What follows errors, as `[errors]` says: `.errors(|e| e.decode = OnError::Skip)`. By default every one ends the
    /// container.
    #[must_use]
    #[track_caller]
    pub fn errors(self, change: impl FnOnce(&mut ErrorsSpec)) -> Self {
        self.set(|world| change(&mut world.job.errors))
    }

    /// The largest message, key and value, that streams take; 1,000,000 bytes unless told.
    #[must_use]
    #[track_caller]
    pub fn max_message(self, bytes: usize) -> Self {
        self.set(|world| world.streams.max_message_bytes = bytes)
    }

    /// Processes partitions in an order that comes from `seed`, in batches of any length: what must not depend on it
    /// can be tried with many.
    #[must_use]
    #[track_caller]
    pub fn shuffle(self, seed: u64) -> Self {
        // A state of zero would stay zero.
        self.set(|world| world.shuffle = Some(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    /// When virtual time begins, unix ms.
    #[must_use]
    #[track_caller]
    pub fn start_at(self, unix_ms: u64) -> Self {
        self.set(|world| world.set_now(unix_ms))
    }
}

/// What a job.toml says that says as little as it may, without inputs.
fn empty_job() -> JobSpec {
    let none = Resource { memory_bytes: 0, cpu_millis: 0 };
    let fail = OnError::Fail;
    JobSpec {
        job: JobId { name: "test".into(), id: "1".into() },
        queue: "default".into(),
        priority: 0,
        app_master: none,
        package: PackageSpec {
            source: String::new(),
            artefact: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
        },
        containers: ContainersSpec { count: 1, resource: none, threads: 1, cpu_limit_millis: None },
        task: TaskSpec {
            inputs: Vec::new(),
            former_inputs: Vec::new(),
            on_input_growth: types::OnInputGrowth::Fail,
            window_ms: None,
            commit_ms: 1_000,
            delivery: Delivery::AtLeastOnce,
            grouper: Grouper::Partition,
            timers: false,
            concurrency: 16,
            state_lost: StateLost::Fail,
            stuck_after_ms: None,
            config: BTreeMap::new(),
        },
        systems: BTreeMap::new(),
        streams: BTreeMap::new(),
        stores: BTreeMap::new(),
        placement: PlacementSpec {
            wait_ms: 0,
            rack_wait_ms: 0,
            host_affinity: false,
            on_lease_loss: OnLeaseLoss::Keep,
            labels: BTreeMap::new(),
            spread: Spread::None,
        },
        errors: ErrorsSpec { decode: fail, process: fail, send: fail, dead_letter: None },
        restart: RestartSpec {
            retries: 0,
            window_ms: 0,
            backoff_min_ms: 0,
            backoff_max_ms: 0,
            on_exhausted: OnExhausted::Fail,
        },
        metadata: types::MetadataSpec::default(),
    }
}
