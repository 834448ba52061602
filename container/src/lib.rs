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

mod board;
mod budget;
mod carry;
mod claim;
mod collector;
mod container;
mod end;
mod engine;
mod environment;
mod master;
mod points;
mod restore;
mod stores;
mod systems;
mod task_thread;
mod transaction;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use task_api::*;
pub use types::{Delivery, JobId, SystemStream, SystemStreamPartition, TaskName};

/// Runs a container of a job; `factory` makes one task. To be called from `main` as its last act: the process exits
/// with 0 when it was told to stop, with `types::EXIT_FENCED` when a newer incarnation owns its tasks, and with 1
/// when something failed (the log says what).
pub fn run<T: StreamTask, F: Fn() -> T + Send + Sync + 'static>(factory: F) -> ! {
    daemon::init_logs("container");
    let code = container::run(&factory);
    std::process::exit(code)
}
