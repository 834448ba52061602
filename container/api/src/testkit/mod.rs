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

#[cfg(test)]
mod async_tests;
#[cfg(test)]
mod crash_tests;
mod in_place;
mod life;
mod settings;
mod store;
mod streams;
#[cfg(test)]
mod tests;
mod view;
mod world;

use std::time::Duration;

pub use types::{
    Delivery, ErrorsSpec, Grouper, OffsetDefault, OnError, OnLargeValue, StoreKind, StoreSpec, StreamSpec,
};

pub use self::in_place::{InPlace, InPlaceTask};
pub use self::life::Failure;
use self::life::Life;
pub use self::settings::START_UNIX_MS;
pub use self::streams::Output;
pub use self::view::TaskView;
use self::world::World;
use crate::task::{OutgoingMessage, StreamTask};

/// A job under test; see the [module](self).
pub struct TestKit<T> {
    factory: Box<dyn Fn() -> T>,
    world: World,
    life: Option<Life<T>>,
    /// Why the last container has ended, if it failed.
    failed: Option<String>,
}

impl<T> std::fmt::Debug for TestKit<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestKit").field("now", &self.world.now()).finish_non_exhaustive()
    }
}

/// What happens.
impl<T: StreamTask> TestKit<T> {
    /// Appends a message of now. The key's hash chooses the partition as Java clients do; without a key they take turns.
    #[track_caller]
    pub fn send(&mut self, stream: &str, key: Option<&str>, value: &str) {
        self.send_message(OutgoingMessage::new(stream, key.map(str::as_bytes), Some(value.as_bytes())));
    }

    /// Appends a message of now to a partition.
    #[track_caller]
    pub fn send_to(&mut self, stream: &str, partition: i32, key: Option<&str>, value: &str) {
        let message = OutgoingMessage::new(stream, key.map(str::as_bytes), Some(value.as_bytes()));
        self.send_message(OutgoingMessage { partition: Some(partition), ..message });
    }

    /// Appends any message, of any time and with any headers.
    #[track_caller]
    pub fn send_message(&mut self, message: OutgoingMessage<'_>) {
        let known = self.world.streams.partitions(message.stream) > 0;
        assert!(known, "the job has no stream `{}`: declare it with `input`", message.stream);
        if let Err(error) = self.world.streams.append(&message, false) {
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
        self.with(|life, world| life.step(world))
    }

    /// As [`Self::advance`].
    ///
    /// # Errors
    /// The container fails.
    pub fn try_advance(&mut self, time: Duration) -> Result<(), Failure> {
        let until = self.world.now().saturating_add(millis(time));
        let done = self.with(|life, world| {
            life.run(world)?;
            while world.now() < until && !life.stopped {
                let next = life.next_event(world).unwrap_or(until);
                // A timer that is set to now again and again goes off once in each ms.
                world.set_now(next.clamp(world.now() + 1, until));
                life.windows(world)?;
                life.run(world)?;
            }
            Ok(())
        });
        // Time passes whatever has become of the container.
        self.world.set_now(until);
        done
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
            let home = world.job.task.inputs.first().and_then(|input| input.split_once('.'));
            let is_exactly_once = world.job.task.delivery == Delivery::ExactlyOnce;
            world.streams.transactional =
                home.map(|(system, _)| system.to_owned()).filter(|_| is_exactly_once);
            world.streams.on_refused = world.job.errors.send;
            world.streams.dead_letters.clone_from(&world.job.errors.dead_letter);
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
