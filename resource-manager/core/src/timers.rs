//! Deadlines, at most one per key. They are lazy: what a deadline guards may move on without touching it, so a
//! handler looks at the state again and re-arms. A node's 500 ms beats therefore cost nothing here.

use std::collections::{BTreeMap, BTreeSet};

use types::{AppId, RequestId, Timestamp};

use crate::node::NodeIx;

/// What a deadline is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimerKey {
    /// A node's lease.
    Node(NodeIx),
    /// The masters' time to move away from a node that is draining.
    Drain(NodeIx),
    /// An application: its master's silence, its backoff, its end.
    App(AppId),
    /// An ask's wait for a better place.
    Ask(AppId, RequestId),
}

/// The deadlines.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeSet<(Timestamp, TimerKey)>,
    armed: BTreeMap<TimerKey, Timestamp>,
}

impl Timers {
    /// Makes sure that `key` fires at `at` or earlier.
    pub(crate) fn arm(&mut self, key: TimerKey, at: Timestamp) {
        match self.armed.get(&key) {
            Some(armed) if *armed <= at => return,
            Some(armed) => {
                self.queue.remove(&(*armed, key.clone()));
            }
            None => {}
        }
        self.queue.insert((at, key.clone()));
        self.armed.insert(key, at);
    }

    pub(crate) fn disarm(&mut self, key: &TimerKey) {
        if let Some(at) = self.armed.remove(key) {
            self.queue.remove(&(at, key.clone()));
        }
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes one deadline that is due.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<TimerKey> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.queue.pop_first()?;
        self.armed.remove(&key);
        Some(key)
    }
}
