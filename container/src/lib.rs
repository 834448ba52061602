//! The task runtime that job binaries link.
//!
//! ```no_run
//! use samza::{IncomingMessageEnvelope, MessageCollector, StreamTask, TaskCoordinator, TaskResult};
//!
//! #[derive(Default)]
//! struct Count(u64);
//!
//! impl StreamTask for Count {
//!     fn process(
//!         &mut self,
//!         _envelope: &IncomingMessageEnvelope<'_>,
//!         _collector: &mut dyn MessageCollector,
//!         _coordinator: &mut TaskCoordinator,
//!     ) -> TaskResult {
//!         self.0 += 1;
//!         Ok(())
//!     }
//! }
//!
//! fn main() {
//!     samza::run(Count::default)
//! }
//! ```
//!
//! A container is one process: a session to its application master (module `master`) and one or more task threads
//! (`task_thread`), each of which claims its tasks in Kafka (`claim`), restores them (`restore`), and then
//! processes and commits (`engine`, `transaction`). Decisions are in the crate `task-core`.

#[cfg(feature = "allocator")]
mod allocator;
mod asynchronous;
mod board;
mod budget;
mod claim;
mod clients;
mod clock;
mod collector;
mod container;
mod due;
mod end;
mod engine;
mod environment;
mod exposition;
mod failures;
mod files;
mod held;
mod inputs;
mod local;
mod lookout;
mod master;
mod meters;
mod pace;
mod points;
mod polling;
mod pulse;
mod restore;
mod stacks;
mod stores;
mod systems;
mod task_thread;
mod transaction;
mod watch;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod contract_reading;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod outputs;
#[cfg(test)]
mod replaced_tests;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;

pub use task_api::*;
pub use types::{Delivery, JobId, SystemStream, SystemStreamPartition, TaskName};

/// Runs a container of a job, or, if `--local` is among the arguments, the whole job in this process (`--local --help`
/// tells how); `factory` makes one task. To be called from `main` as its last act: the process exits with 0 when its
/// inputs are over or a task asked for its shutdown, with 143 (130) when SIGTERM (SIGINT) told it to stop, with
/// `types::EXIT_FENCED` when a newer incarnation owns its tasks, with `types::EXIT_STUCK` when a task hung, with
/// `types::EXIT_TRANSACTION_TIMEOUT` when its transaction was open for too long, and with 1 when anything else failed
/// (the log says what).
pub fn run<T: StreamTask, F: Fn() -> T + Send + Sync + 'static>(factory: F) -> ! {
    daemon::init_logs("container");
    let code = container::run(&factory);
    std::process::exit(code)
}

/// As [`run`], for tasks that wait for something outside.
pub fn run_async<A: AsyncStreamTask, F: Fn() -> A + Send + Sync + 'static>(factory: F) -> ! {
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    // A machine that cannot start two threads runs nothing.
    let runtime = threads.expect("tokio starts");
    let handle = runtime.handle().clone();
    run(move || InOrder::new(factory(), asynchronous::OnRuntime::new(handle.clone())))
}
