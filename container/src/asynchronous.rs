//! The calls of asynchronous tasks, on tokio.

use std::collections::VecDeque;
use std::thread::Thread;

use task_api::{Calls, Reply, TaskError};
use tokio::runtime::Handle;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::JoinHandle;

/// Calls of one task.
pub(crate) struct OnRuntime<R> {
    runtime: Handle,
    calls: VecDeque<Call<R>>,
}

struct Call<R> {
    answer: oneshot::Receiver<Result<R, TaskError>>,
    task: JoinHandle<()>,
}

/// Where a call puts what it comes to. The thread that waits for it is woken, also if the call panics.
struct Answer<R> {
    to: Option<oneshot::Sender<Result<R, TaskError>>>,
    thread: Thread,
}

impl<R> Drop for Answer<R> {
    fn drop(&mut self) {
        // First: who is woken looks for it.
        drop(self.to.take());
        self.thread.unpark();
    }
}

impl<R> OnRuntime<R> {
    pub(crate) fn new(runtime: Handle) -> OnRuntime<R> {
        OnRuntime { runtime, calls: VecDeque::new() }
    }
}

impl<R: Send + 'static> Calls<R> for OnRuntime<R> {
    fn start(&mut self, reply: Reply<R>) {
        let (to, answer) = oneshot::channel();
        let mut here = Answer { to: Some(to), thread: std::thread::current() };
        let task = self.runtime.spawn(async move {
            let reply = reply.await;
            if let Some(to) = here.to.take() {
                // Nobody takes it when the task thread is over.
                let _ = to.send(reply);
            }
        });
        self.calls.push_back(Call { answer, task });
    }

    fn next(&mut self, wait: bool) -> Option<Result<R, TaskError>> {
        let mut answer = self.calls.front_mut()?.answer.try_recv();
        if matches!(answer, Err(TryRecvError::Empty)) && !wait {
            return None;
        }
        let Call { answer: to_come, task } = self.calls.pop_front()?;
        if matches!(answer, Err(TryRecvError::Empty)) {
            answer = self.runtime.block_on(to_come).map_err(|_| TryRecvError::Closed);
        }
        Some(answer.unwrap_or_else(|_| {
            let why = self.runtime.block_on(task).err().map_or_else(String::new, |error| error.to_string());
            Err(format!("the call panicked: {why}").into())
        }))
    }
}
