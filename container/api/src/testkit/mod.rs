//! Runs a task against streams and stores in memory, with virtual time: for a job's own tests.
//!
//! ```
//! use std::time::Duration;
//! use task_api::testkit::TestKit;
//! use task_api::{
//!     I64Serde, IncomingMessageEnvelope, KeyValueStore, MessageCollector, OutgoingMessage, StreamTask, StringSerde,
//!     TaskContext, TaskCoordinator, TaskResult,
//! };
//!
//! #[derive(Default)]
//! struct WordCount {
//!     counts: Option<KeyValueStore<String, i64>>,
//! }
//!
//! impl StreamTask for WordCount {
//!     fn init(&mut self, context: &mut TaskContext) -> TaskResult {
//!         self.counts = Some(context.store("counts", StringSerde, I64Serde)?);
//!         Ok(())
//!     }
//!     fn process(
//!         &mut self,
//!         envelope: &IncomingMessageEnvelope<'_>,
//!         collector: &mut dyn MessageCollector,
//!         _: &mut TaskCoordinator,
//!     ) -> TaskResult {
//!         let counts = self.counts.as_mut().expect("init has run");
//!         for word in std::str::from_utf8(envelope.value.unwrap_or_default())?.split_whitespace() {
//!             let count = counts.get(&word.to_owned())?.unwrap_or(0) + 1;
//!             counts.put(&word.to_owned(), &count)?;
//!             let (key, value) = (word.as_bytes(), count.to_string());
//!             collector.send(OutgoingMessage::new("kafka.counts", Some(key), Some(value.as_bytes())))?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let mut kit = TestKit::new(WordCount::default).input("kafka.lines", 2).store("counts");
//! kit.send_to("kafka.lines", 0, None, "a b");
//! kit.send_to("kafka.lines", 0, None, "a");
//! kit.run();
//! assert_eq!(kit.outputs("kafka.counts"), [("a", "1"), ("b", "1"), ("a", "2")]);
//! assert_eq!(kit.task(0).store("counts", StringSerde, I64Serde).get(&"a".into()).unwrap(), Some(2));
//!
//! kit.commit();
//! kit.send_to("kafka.lines", 0, None, "a");
//! kit.run();
//! kit.crash(); // back to the last commit …
//! assert_eq!(kit.task(0).store("counts", StringSerde, I64Serde).get(&"a".into()).unwrap(), Some(2));
//! kit.run(); // … from where the message is read again
//! assert_eq!(kit.task(0).store("counts", StringSerde, I64Serde).get(&"a".into()).unwrap(), Some(3));
//! ```
//!
//! What the kit does is what the runtime does, only in one thread, and time passes in [`TestKit::advance`] alone:
//!
//! - All tasks of a job run in one container. Messages are processed in the order in which they were sent, or, with
//!   [`TestKit::shuffle`], in another that keeps the order of each partition.
//! - Commits happen as in the runtime: every `[task] commit` of virtual time, when a task asks for one, when a store's
//!   cache is full, and at an orderly end. [`TestKit::commit`] makes one at once.
//! - [`TestKit::crash`] ends the container between two steps and starts the next: stores, timers and positions are
//!   those of the last commit. With at-least-once delivery, what was sent since then stays and is sent again; with
//!   exactly-once, readers never see it. So with exactly-once nothing is seen in an output before its commit.
//! - An error that `[errors]` does not leave out ends the container. The methods named `try_…` return it, the others
//!   panic with it. After it the kit is where a crash would leave it, and [`TestKit::crash`] starts the next container.
//!
//! Asynchronous tasks run in [`TestKit::new_async`]; their calls must come to something without a runtime.

mod in_place;
mod life;
mod store;
mod streams;
#[cfg(test)]
mod tests;
mod world;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

pub use types::{
    Delivery, ErrorsSpec, Grouper, OffsetDefault, OnError, OnLargeValue, StoreKind, StoreSpec, StreamSpec,
};
use types::{JobId, SystemStreamPartition, TIMERS_STORE, TaskName, TaskSpec};

pub use self::in_place::InPlace;
pub use self::life::Failure;
use self::life::Life;
pub use self::streams::Output;
use self::world::World;
use crate::async_task::AsyncStreamTask;
use crate::metrics::TaskMetrics;
use crate::serde::Serde;
use crate::store::{KeyValueStore, RawStore};
use crate::task::{OutgoingMessage, StreamTask};

/// When virtual time begins, unless told: 2026-01-01, 00:00 UTC.
pub const START_UNIX_MS: u64 = 1_767_225_600_000;

/// A job under test; see the [module](self).
pub struct TestKit<T> {
    factory: Box<dyn Fn() -> T>,
    world: World,
    life: Option<Life<T>>,
    /// Why the last container has ended, if it failed.
    failed: Option<String>,
    concurrency: Rc<Cell<u32>>,
}

impl<T> std::fmt::Debug for TestKit<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestKit").field("now", &self.world.now()).finish_non_exhaustive()
    }
}

impl<T: AsyncStreamTask> TestKit<InPlace<T>> {
    /// A job of asynchronous tasks. Their futures are polled in place, by turns: one that needs a runtime to become
    /// ready is an error when it is waited for.
    #[must_use]
    pub fn new_async(factory: impl Fn() -> T + 'static) -> TestKit<InPlace<T>> {
        let concurrency = Rc::new(Cell::new(16));
        let shared = Rc::clone(&concurrency);
        let mut kit = TestKit::new(move || InPlace::new(factory(), &shared));
        kit.concurrency = concurrency;
        kit
    }

    /// How many messages of a task may be in flight (`[task] concurrency`).
    #[must_use]
    pub fn concurrency(self, messages: u32) -> Self {
        self.concurrency.set(messages);
        self
    }
}

/// What job.toml says. To be called before anything is run.
impl<T: StreamTask> TestKit<T> {
    /// A job whose tasks `factory` makes, one for each partition of its inputs.
    #[must_use]
    pub fn new(factory: impl Fn() -> T + 'static) -> TestKit<T> {
        let task = TaskSpec {
            inputs: Vec::new(),
            window_ms: None,
            commit_ms: 1_000,
            delivery: Delivery::AtLeastOnce,
            grouper: Grouper::Partition,
            timers: false,
            concurrency: 1,
            config: std::collections::BTreeMap::new(),
        };
        let mut world = World::new(JobId { name: "test".into(), id: "1".into() }, task);
        world.set_now(START_UNIX_MS);
        TestKit { factory: Box::new(factory), world, life: None, failed: None, concurrency: Rc::default() }
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
            world.task.inputs.push(stream.to_owned());
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
            let spec = world.stream_specs.entry(stream.to_owned());
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
            world.store_specs.insert(name.to_owned(), spec);
        })
    }

    /// A setting of the job's own, `[task] config`.
    #[must_use]
    #[track_caller]
    pub fn config(self, key: &str, value: &str) -> Self {
        self.set(|world| {
            world.task.config.insert(key.to_owned(), value.to_owned());
        })
    }

    /// How often `window` is called.
    #[must_use]
    #[track_caller]
    pub fn window(self, every: Duration) -> Self {
        self.set(|world| world.task.window_ms = Some(millis(every)))
    }

    /// How often the container commits; 1 s unless told. `Duration::MAX` leaves commits to the tasks and the test.
    #[must_use]
    #[track_caller]
    pub fn commit_every(self, interval: Duration) -> Self {
        self.set(|world| world.task.commit_ms = millis(interval))
    }

    /// Gives the tasks timers.
    #[must_use]
    #[track_caller]
    pub fn timers(self) -> Self {
        self.store(TIMERS_STORE).set(|world| world.task.timers = true)
    }

    /// What a reader of the outputs may rely on; at-least-once unless told.
    #[must_use]
    #[track_caller]
    pub fn delivery(self, delivery: Delivery) -> Self {
        self.set(|world| world.task.delivery = delivery)
    }

    /// How partitions become tasks.
    #[must_use]
    #[track_caller]
    pub fn grouper(self, grouper: Grouper) -> Self {
        self.set(|world| world.task.grouper = grouper)
    }

    /// What follows errors, as `[errors]` says: `.errors(|e| e.decode = OnError::Skip)`. By default every one ends the
    /// container.
    #[must_use]
    #[track_caller]
    pub fn errors(self, change: impl FnOnce(&mut ErrorsSpec)) -> Self {
        self.set(|world| change(&mut world.streams.errors.spec))
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

/// What happens.
impl<T: StreamTask> TestKit<T> {
    /// Appends a message of now. The key's hash chooses the partition as Java clients do; without a key they take turns.
    #[track_caller]
    pub fn send(&mut self, stream: &str, key: Option<&str>, value: &str) {
        self.send_message(
            OutgoingMessage::new(stream, key.map(str::as_bytes), Some(value.as_bytes())),
            self.world.now(),
        );
    }

    /// Appends a message of now to a partition.
    #[track_caller]
    pub fn send_to(&mut self, stream: &str, partition: i32, key: Option<&str>, value: &str) {
        let message = OutgoingMessage::new(stream, key.map(str::as_bytes), Some(value.as_bytes()));
        self.send_message(OutgoingMessage { partition: Some(partition), ..message }, self.world.now());
    }

    /// Appends any message, of any time.
    #[track_caller]
    pub fn send_message(&mut self, message: OutgoingMessage<'_>, timestamp_unix_ms: u64) {
        let known = self.world.streams.partitions(message.stream) > 0;
        assert!(known, "the job has no stream `{}`: declare it with `input`", message.stream);
        let timestamp = i64::try_from(timestamp_unix_ms).unwrap_or(i64::MAX);
        if let Err(error) = self.world.streams.append(&message, timestamp, false) {
            panic!("{error}");
        }
    }

    /// Processes all there is at this time.
    ///
    /// # Panics
    /// The container fails.
    #[track_caller]
    pub fn run(&mut self) {
        passed(self.try_run());
    }

    /// Processes one message, or has one timer go off that is due; returns whether there was one. After `shutdown`
    /// and after [`Self::end`] there never is.
    ///
    /// # Panics
    /// The container fails.
    #[track_caller]
    pub fn step(&mut self) -> bool {
        passed(self.try_step())
    }

    /// Lets time pass: what is there is processed first, then windows, timers and commits come in their order, and what
    /// follows from them is processed as it comes.
    ///
    /// # Panics
    /// The container fails.
    #[track_caller]
    pub fn advance(&mut self, time: Duration) {
        passed(self.try_advance(time));
    }

    /// Commits now, if anything has happened since the last commit.
    ///
    /// # Panics
    /// The container fails.
    #[track_caller]
    pub fn commit(&mut self) {
        passed(self.try_commit());
    }

    /// The inputs end here, as if all were bounded: what is there is processed, `end_of_stream` is called, the
    /// container commits and closes.
    ///
    /// # Panics
    /// The container fails.
    #[track_caller]
    pub fn end(&mut self) {
        passed(self.try_end());
    }

    /// Stops the container in order, as on TERM: it commits and closes. What it has not read stays unread.
    ///
    /// # Panics
    /// The container fails.
    #[track_caller]
    pub fn stop(&mut self) {
        passed(self.with(|life, world| life.stop(world)));
    }

    /// The container ends here and now, without a commit; the next one starts on the same node.
    ///
    /// # Panics
    /// The next one does not start.
    #[track_caller]
    pub fn crash(&mut self) {
        passed(self.try_start(false));
    }

    /// As [`Self::crash`], but the next one starts on another node: stores without a changelog are empty there.
    ///
    /// # Panics
    /// The next one does not start.
    #[track_caller]
    pub fn lose_node(&mut self) {
        passed(self.try_start(true));
    }

    /// As [`Self::run`].
    ///
    /// # Errors
    /// The container fails.
    pub fn try_run(&mut self) -> Result<(), Failure> {
        self.with(|life, world| life.run(world))
    }

    /// As [`Self::step`].
    ///
    /// # Errors
    /// The container fails.
    pub fn try_step(&mut self) -> Result<bool, Failure> {
        self.with(|life, world| life.step(world, 1))
    }

    /// As [`Self::advance`].
    ///
    /// # Errors
    /// The container fails.
    pub fn try_advance(&mut self, time: Duration) -> Result<(), Failure> {
        self.with(|life, world| {
            let until = world.now().saturating_add(millis(time));
            life.run(world)?;
            while world.now() < until && !life.stopped {
                let next = life.next_event(world).unwrap_or(until);
                world.set_now(next.clamp(world.now(), until));
                life.windows(world)?;
                life.run(world)?;
            }
            world.set_now(until);
            Ok(())
        })
    }

    /// As [`Self::commit`].
    ///
    /// # Errors
    /// The container fails.
    pub fn try_commit(&mut self) -> Result<(), Failure> {
        self.with(|life, world| life.commit(world))
    }

    /// As [`Self::end`].
    ///
    /// # Errors
    /// The container fails.
    pub fn try_end(&mut self) -> Result<(), Failure> {
        self.with(|life, world| life.end(world))
    }

    fn try_start(&mut self, on_another_node: bool) -> Result<(), Failure> {
        let world = &mut self.world;
        self.life = None;
        if world.tasks.is_empty() {
            let home = world.task.inputs.first().and_then(|input| input.split_once('.'));
            let home = home.expect("a job has inputs: declare one with `input`").0.to_owned();
            let is_exactly_once = world.task.delivery == Delivery::ExactlyOnce;
            world.streams.transactional = is_exactly_once.then_some(home);
            world.lay_out();
        }
        world.roll_back();
        world.reopen(on_another_node);
        self.failed = None;
        self.life = Some(self.noting(|kit| Life::start(&mut kit.world, &*kit.factory))?);
        Ok(())
    }

    /// Does something with the running container; the first one starts by itself.
    fn with<R>(
        &mut self,
        work: impl FnOnce(&mut Life<T>, &mut World) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        if let Some(why) = &self.failed {
            let cause = format!("{why}; `crash` starts the next one").into();
            return Err(Failure { what: "the container has failed".into(), cause });
        }
        if self.life.is_none() {
            self.try_start(false)?;
        }
        let mut life = self.life.take().expect("it was started");
        let done = self.noting(|kit| work(&mut life, &mut kit.world))?;
        self.life = Some(life);
        Ok(done)
    }

    /// A failure ends the container; nothing since the last commit is left.
    fn noting<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R, Failure>) -> Result<R, Failure> {
        let done = work(self);
        if let Err(failure) = &done {
            self.failed = Some(failure.to_string());
            self.world.roll_back();
        }
        done
    }
}

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

    /// How many commits there were.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.world.commits
    }

    /// How many messages, timers and outputs `[errors]` has left out.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.world.streams.errors.skipped
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
    fn place(&self) -> &world::Place {
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

#[track_caller]
fn passed<R, E: std::fmt::Display>(done: Result<R, E>) -> R {
    match done {
        Ok(done) => done,
        Err(failure) => panic!("{failure}"),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
