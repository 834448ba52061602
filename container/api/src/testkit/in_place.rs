//! Asynchronous tasks without a runtime: their futures are polled in place.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::async_task::{AsyncStreamTask, Reply};
use crate::task::{
    FailedMessage, IncomingMessageEnvelope, MessageBatch, MessageCollector, OwnedMessage, StreamTask,
    TaskContext, TaskCoordinator, TaskError, TaskResult,
};

/// How often a future that only wakes itself is polled before it counts as stuck.
const PATIENCE: u32 = 100_000;

/// A reply that nothing will ever bring about here.
#[derive(Debug, thiserror::Error)]
#[error(
    "the reply to message {offset} of {stream} never becomes ready: the test kit has no runtime, so that a call must \
     return a future that is ready or wakes itself (give the task a stand-in for what it calls)"
)]
pub(super) struct Stuck {
    offset: u64,
    stream: String,
}

struct Call<R> {
    message: OwnedMessage,
    reply: Reply<R>,
    done: Option<Result<R, TaskError>>,
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs an [`AsyncStreamTask`] as a [`StreamTask`].
pub struct InPlace<T: AsyncStreamTask> {
    task: T,
    concurrency: Rc<Cell<u32>>,
    calls: VecDeque<Call<T::Reply>>,
    woken: Arc<Woken>,
}

impl<T: AsyncStreamTask> InPlace<T> {
    pub(super) fn new(task: T, concurrency: &Rc<Cell<u32>>) -> InPlace<T> {
        let concurrency = Rc::clone(concurrency);
        InPlace { task, concurrency, calls: VecDeque::new(), woken: Arc::default() }
    }

    /// Polls every call that is not done; returns whether that may have changed anything.
    fn poll(&mut self) -> bool {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut context = Context::from_waker(&waker);
        let mut any = false;
        for call in self.calls.iter_mut().filter(|call| call.done.is_none()) {
            if let Poll::Ready(reply) = call.reply.as_mut().poll(&mut context) {
                call.done = Some(reply);
                any = true;
            }
        }
        any || self.woken.0.load(Ordering::Relaxed)
    }

    /// Has the task process what is done, in the order of the messages.
    fn take_done(
        &mut self,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        while let Some(reply) = self.calls.front_mut().and_then(|call| call.done.take()) {
            let Some(Call { message, .. }) = self.calls.pop_front() else { break };
            let processed =
                reply.and_then(|reply| self.task.process(&message, reply, collector, coordinator));
            processed.map_err(|cause| FailedMessage { message, cause })?;
        }
        Ok(())
    }
}

impl<T: AsyncStreamTask> StreamTask for InPlace<T> {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.task.init(context)
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        let message = OwnedMessage::of(envelope);
        let reply = self.task.call(&message);
        self.calls.push_back(Call { message, reply, done: None });
        Ok(())
    }

    fn process_batch(
        &mut self,
        batch: &mut MessageBatch<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        while self.calls.len() < self.concurrency.get().max(1) as usize {
            let Some(envelope) = batch.next() else { break };
            self.process(&envelope, collector, coordinator)?;
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

    fn in_flight(&self) -> usize {
        self.calls.len()
    }

    fn complete(
        &mut self,
        all: bool,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        for _ in 0..PATIENCE {
            let changed = self.poll();
            self.take_done(collector, coordinator)?;
            if !all || self.calls.is_empty() {
                return Ok(());
            }
            if !changed {
                break;
            }
        }
        let Some(call) = self.calls.front() else { return Ok(()) };
        Err(Stuck { offset: call.message.offset, stream: call.message.source.stream.to_string() }.into())
    }

    fn close(&mut self) -> TaskResult {
        self.task.close()
    }
}
