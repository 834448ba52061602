//! The calls of asynchronous tasks, on tokio.

use std::collections::VecDeque;

use task_api::{Calls, Reply, TaskError};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Calls of one task.
pub(crate) struct OnRuntime<R> {
    runtime: Handle,
    calls: VecDeque<JoinHandle<Result<R, TaskError>>>,
}

impl<R> OnRuntime<R> {
    pub(crate) fn new(runtime: Handle) -> OnRuntime<R> {
        OnRuntime { runtime, calls: VecDeque::new() }
    }
}

impl<R: Send + 'static> Calls<R> for OnRuntime<R> {
    fn start(&mut self, reply: Reply<R>) {
        self.calls.push_back(self.runtime.spawn(reply));
    }

    fn next(&mut self, wait: bool) -> Option<Result<R, TaskError>> {
        if !wait && !self.calls.front()?.is_finished() {
            return None;
        }
        match self.runtime.block_on(self.calls.pop_front()?) {
            Ok(reply) => Some(reply),
            Err(panicked) => Some(Err(format!("the call panicked: {panicked}").into())),
        }
    }
}
