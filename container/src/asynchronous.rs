//! Runs an [`AsyncStreamTask`] as a [`StreamTask`]: calls wait side by side, their replies are taken in order.

use std::collections::VecDeque;

use task_api::{
    AsyncStreamTask, FailedMessage, IncomingMessageEnvelope, MessageBatch, MessageCollector, OwnedMessage,
    StreamTask, TaskContext, TaskCoordinator, TaskError, TaskResult,
};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A task whose calls run on tokio.
pub(crate) struct Waiting<A: AsyncStreamTask> {
    task: A,
    runtime: Handle,
    /// How many calls may be in flight.
    concurrency: usize,
    /// In the order of the messages.
    flight: VecDeque<Call<A::Reply>>,
}

struct Call<R> {
    message: OwnedMessage,
    reply: JoinHandle<Result<R, TaskError>>,
}

impl<A: AsyncStreamTask> Waiting<A> {
    pub(crate) fn new(task: A, runtime: Handle) -> Waiting<A> {
        Waiting { task, runtime, concurrency: 1, flight: VecDeque::new() }
    }

    fn call(&mut self, envelope: &IncomingMessageEnvelope<'_>) {
        let message = OwnedMessage::of(envelope);
        let reply = self.runtime.spawn(self.task.call(&message));
        self.flight.push_back(Call { message, reply });
    }
}

impl<A: AsyncStreamTask> StreamTask for Waiting<A> {
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
            while self.flight.len() < self.concurrency {
                let Some(envelope) = batch.next() else { break };
                self.call(&envelope);
            }
            let before = self.flight.len();
            self.complete(false, collector, coordinator)?;
            // Going round only pays while replies are there already.
            if self.flight.len() == before || batch.rest().is_empty() || coordinator.is_set() {
                return Ok(());
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.flight.len()
    }

    fn complete(
        &mut self,
        all: bool,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        while self.flight.front().is_some_and(|call| all || call.reply.is_finished()) {
            let Some(Call { message, reply }) = self.flight.pop_front() else { break };
            let done = match self.runtime.block_on(reply) {
                Ok(Ok(reply)) => self.task.process(&message, reply, collector, coordinator),
                Ok(Err(error)) => Err(error),
                Err(panicked) => Err(format!("the call panicked: {panicked}").into()),
            };
            if let Err(cause) = done {
                return Err(FailedMessage { message, cause }.into());
            }
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

    fn close(&mut self) -> TaskResult {
        self.task.close()
    }
}
