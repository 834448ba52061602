//! Tasks that wait for something outside: lookups, calls to services. Several messages are in flight at once, and what
//! they come to is applied in the order of the messages, so that state stays exact.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use crate::task::{
    FailedMessage, IncomingMessageEnvelope, MessageBatch, MessageCollector, OwnedMessage, StreamTask,
    TaskContext, TaskCoordinator, TaskError, TaskResult,
};

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

    /// As [`crate::StreamTask::window`]; nothing of the task is in flight then.
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

    /// As [`crate::StreamTask::timer`]; nothing of the task is in flight then.
    ///
    /// # Errors
    /// As [`crate::StreamTask::timer`].
    fn timer(
        &mut self,
        key: &[u8],
        due_unix_ms: u64,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let _ = (key, due_unix_ms, collector, coordinator);
        Ok(())
    }

    /// As [`crate::StreamTask::end_of_stream`]; nothing of the task is in flight then.
    ///
    /// # Errors
    /// Any error ends the container.
    fn end_of_stream(
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

/// Where calls run; for runtimes.
pub trait Calls<R>: 'static {
    /// Starts a call.
    fn start(&mut self, reply: Reply<R>);
    /// Takes what the oldest call came to: if it is done, or, with `wait`, when it is. None if there is no such call.
    fn next(&mut self, wait: bool) -> Option<Result<R, TaskError>>;
}

/// Runs an [`AsyncStreamTask`] as a [`StreamTask`]: calls wait side by side, their replies are taken in order. For
/// runtimes.
#[derive(Debug)]
pub struct InOrder<A, C> {
    task: A,
    calls: C,
    /// Of the calls, in their order.
    messages: VecDeque<OwnedMessage>,
    /// How many calls may be in flight.
    concurrency: usize,
}

impl<A: AsyncStreamTask, C: Calls<A::Reply>> InOrder<A, C> {
    /// `task` with its calls on `calls`.
    pub fn new(task: A, calls: C) -> InOrder<A, C> {
        InOrder { task, calls, messages: VecDeque::new(), concurrency: 1 }
    }

    fn call(&mut self, envelope: &IncomingMessageEnvelope<'_>) {
        let message = OwnedMessage::of(envelope);
        self.calls.start(self.task.call(&message));
        self.messages.push_back(message);
    }
}

impl<A: AsyncStreamTask, C: Calls<A::Reply>> StreamTask for InOrder<A, C> {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.concurrency = context.concurrency.max(1) as usize;
        self.task.init(context)
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.call(envelope);
        self.complete(true, collector, coordinator)
    }

    fn process_batch(
        &mut self,
        batch: &mut MessageBatch<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        loop {
            while self.messages.len() < self.concurrency {
                let Some(envelope) = batch.next() else { break };
                self.call(&envelope);
            }
            let before = self.messages.len();
            self.complete(false, collector, coordinator)?;
            // Going round only pays while replies are there already.
            if self.messages.len() == before || batch.rest().is_empty() || coordinator.is_set() {
                return Ok(());
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.messages.len()
    }

    fn complete(
        &mut self,
        all: bool,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        while let Some(reply) = self.calls.next(all) {
            let Some(message) = self.messages.pop_front() else { break };
            let done = reply.and_then(|reply| self.task.process(&message, reply, collector, coordinator));
            done.map_err(|cause| FailedMessage { message, cause })?;
        }
        Ok(())
    }

    fn window(
        &mut self,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.task.window(collector, coordinator)
    }

    fn timer(
        &mut self,
        key: &[u8],
        due_unix_ms: u64,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.task.timer(key, due_unix_ms, collector, coordinator)
    }

    fn end_of_stream(
        &mut self,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.task.end_of_stream(collector, coordinator)
    }

    fn close(&mut self) -> TaskResult {
        self.task.close()
    }
}
