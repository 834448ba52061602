//! What a container's threads say of themselves, for the application master: written a few times a second by each
//! task thread, read by the session.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use types::{CallStatus, ContainerModel, ContainerPhase, ContainerStatus, TaskName, TaskStatus};

use crate::pulse::Pulse;

/// Who told a container to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// One of its tasks: it is done.
    Task,
    /// A signal, by its number.
    Signal(i32),
    /// Its application master.
    Master,
    /// A thread of it that failed.
    Failure,
}

/// Shared by all threads of a container.
#[derive(Debug, Default)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    stop: AtomicBool,
    /// Who said it first.
    told: Mutex<Option<Told>>,
}

#[derive(Debug, Default)]
struct Inner {
    status: ContainerStatus,
    /// By task thread; the container is where its last thread is.
    phases: Vec<ContainerPhase>,
    /// By task thread.
    pulses: Vec<Arc<Pulse>>,
}

fn order(phase: &ContainerPhase) -> u8 {
    match phase {
        ContainerPhase::Starting => 0,
        ContainerPhase::Claiming => 1,
        ContainerPhase::Restoring => 2,
        ContainerPhase::Running => 3,
        ContainerPhase::Stopping => 4,
    }
}

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A status is written whole or not at all, so one of a thread that panicked is still good.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The container has its tasks.
    pub(crate) fn begin(&self, model: &ContainerModel, threads: usize) {
        let mut inner = self.lock();
        inner.phases = vec![ContainerPhase::Starting; threads];
        inner.pulses = (0..threads).map(|_| Arc::default()).collect();
        inner.status.tasks = model
            .tasks
            .iter()
            .map(|t| TaskStatus { task: t.name.clone(), ..TaskStatus::default() })
            .collect();
    }

    /// A thread enters a phase. Returns whether the whole container does.
    pub(crate) fn phase(&self, thread: usize, phase: ContainerPhase) -> bool {
        let mut inner = self.lock();
        if let Some(of) = inner.phases.get_mut(thread) {
            *of = phase;
        }
        let before = inner.status.phase;
        let behind = inner.phases.iter().min_by_key(|p| order(p)).copied().unwrap_or(phase);
        inner.status.phase =
            if inner.phases.contains(&ContainerPhase::Stopping) { ContainerPhase::Stopping } else { behind };
        inner.status.phase != before
    }

    /// Changes what is said of a task.
    pub(crate) fn task(&self, name: &TaskName, change: impl FnOnce(&mut TaskStatus)) {
        if let Some(task) = self.lock().status.tasks.iter_mut().find(|t| t.task == *name) {
            change(task);
        }
    }

    /// Adds to the container's counters.
    pub(crate) fn add(&self, processed: u64, commits: u64) {
        let mut inner = self.lock();
        inner.status.processed += processed;
        inner.status.commits += commits;
    }

    /// What the container says now.
    pub(crate) fn status(&self) -> ContainerStatus {
        self.lock().status.clone()
    }

    /// What `task` has been called for since a while; none: nothing of the kind.
    pub(crate) fn call(&self, task: &TaskName, call: Option<CallStatus>) {
        self.task(task, |status| status.call = call);
    }

    /// The pulse of a task thread.
    pub(crate) fn pulse(&self, thread: usize) -> Arc<Pulse> {
        self.lock().pulses.get(thread).cloned().unwrap_or_default()
    }
    /// Of all task threads.
    pub(crate) fn pulses(&self) -> Vec<Arc<Pulse>> {
        self.lock().pulses.clone()
    }

    /// Every thread shall commit and end, from the next message on.
    pub(crate) fn stop(&self, told: Told) {
        self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(told);
        self.stop.store(true, Ordering::SeqCst);
        self.lock().pulses.iter().for_each(|pulse| pulse.ring());
    }
    /// Whether it shall.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
    /// Who said so first.
    pub(crate) fn told(&self) -> Option<Told> {
        *self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_where_its_last_thread_is() {
        let board = Board::default();
        board.begin(&ContainerModel::default(), 2);
        assert!(!board.phase(0, ContainerPhase::Running));
        assert_eq!(board.status().phase, ContainerPhase::Starting);
        assert!(board.phase(1, ContainerPhase::Restoring));
        assert!(board.phase(1, ContainerPhase::Running));
        assert_eq!(board.status().phase, ContainerPhase::Running);
        assert!(board.phase(0, ContainerPhase::Stopping));
        assert_eq!(board.status().phase, ContainerPhase::Stopping);
    }
}
