//! Tasks that wait for something outside: lookups, calls to services. Several messages are in flight at once, and what
//! they come to is applied in the order of the messages, so that state stays exact.

use std::future::Future;
use std::pin::Pin;

use crate::task::{MessageCollector, OwnedMessage, TaskContext, TaskCoordinator, TaskError, TaskResult};

/// What is waited for.
pub type Reply<R> = Pin<Box<dyn Future<Output = Result<R, TaskError>> + Send>>;

/// A job's code that waits for something outside (Samza's AsyncStreamTask), run by `samza::run_async`.
///
/// [`Self::call`] starts the waiting; up to `[task] concurrency` messages of a task wait at once. [`Self::process`] gets
/// each message with its reply, in the order of the messages; stores and outputs belong there. A commit waits for all
/// that is in flight, so that no input position is ever ahead of its effects.
pub trait AsyncStreamTask: 'static {
    /// What a call comes to.
    type Reply: Send + 'static;

    /// As [`crate::StreamTask::init`].
    ///
    /// # Errors
    /// Any error ends the container.
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        let _ = context;
        Ok(())
    }

    /// Starts what must be waited for. The future runs on a thread pool (tokio's) and must not block.
    fn call(&mut self, message: &OwnedMessage) -> Reply<Self::Reply>;

    /// Called with each message and its reply, in the order of the messages of a task.
    ///
    /// # Errors
    /// As [`crate::StreamTask::process`]; so is an error that the call came to.
    fn process(
        &mut self,
        message: &OwnedMessage,
        reply: Self::Reply,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult;

    /// As [`crate::StreamTask::window`].
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

    /// As [`crate::StreamTask::close`].
    ///
    /// # Errors
    /// Any error is logged and makes the exit code non-zero.
    fn close(&mut self) -> TaskResult {
        Ok(())
    }
}
