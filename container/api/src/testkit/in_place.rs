//! The calls of asynchronous tasks without a runtime: their futures are polled in place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::async_task::{AsyncStreamTask, Calls, InOrder, Reply};
use crate::task::TaskError;

/// An [`AsyncStreamTask`] in the test kit.
pub type InPlaceTask<A> = InOrder<A, InPlace<<A as AsyncStreamTask>::Reply>>;

/// How often a future that only wakes itself is polled before it counts as stuck.
const PATIENCE: u32 = 100_000;

/// Of a call that nothing will ever bring to an end here.
#[derive(Debug, thiserror::Error)]
#[error(
    "its reply never becomes ready: the test kit has no runtime, so that a call must return a future that is ready or \
     wakes itself (give the task a stand-in for what it calls)"
)]
struct Stuck;

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

enum Call<R> {
    Waits(Reply<R>),
    Done(Result<R, TaskError>),
}

/// Calls of one task.
pub struct InPlace<R> {
    calls: VecDeque<Call<R>>,
    woken: Arc<Woken>,
}

impl<R> InPlace<R> {
    pub(super) fn new() -> InPlace<R> {
        InPlace { calls: VecDeque::new(), woken: Arc::default() }
    }

    /// Polls every call that is not done; returns whether that may have changed anything.
    fn poll(&mut self) -> bool {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut context = Context::from_waker(&waker);
        let mut any = false;
        for call in &mut self.calls {
            if let Call::Waits(reply) = call
                && let Poll::Ready(reply) = reply.as_mut().poll(&mut context)
            {
                *call = Call::Done(reply);
                any = true;
            }
        }
        any || self.woken.0.load(Ordering::Relaxed)
    }
}

impl<R: 'static> Calls<R> for InPlace<R> {
    fn start(&mut self, reply: Reply<R>) {
        self.calls.push_back(Call::Waits(reply));
    }

    fn next(&mut self, wait: bool) -> Option<Result<R, TaskError>> {
        for _ in 0..PATIENCE {
            let changed = self.poll();
            match self.calls.pop_front()? {
                Call::Done(reply) => return Some(reply),
                waits => self.calls.push_front(waits),
            }
            if !wait {
                return None;
            }
            if !changed {
                break;
            }
        }
        self.calls.pop_front().map(|_| Err(Stuck.into()))
    }
}
