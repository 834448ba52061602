//! When a slot whose container ended is tried again, and when it no longer is. Every exit cause by its kind:
//!
//! | Cause | Counts | Next try |
//! |---|---|---|
//! | Failed, Signal, OutOfMemory | yes | first in the window at once, then after the backoff |
//! | LaunchFailed, DiskFull | once seen on two nodes, or again on one that was to be avoided | as above |
//! | Fenced (by nobody that can be found) | no | as above |
//! | Fenced, but nobody is above it | yes, as Failed | as above |
//! | NodeLost, LeaseExpired, Preempted, KilledBy* | no | at once |
//! | Success | – | none: the slot is done |

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use types::{ExitCause, NodeId, RestartSpec, Timestamp};

/// One slot's record of failures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestartRecord {
    /// Failures that count, within the window.
    failures: VecDeque<Timestamp>,
    /// Exits that are followed by a backoff, within the window; counted ones among them.
    troubles: VecDeque<Timestamp>,
    /// Per node, when what counts against it happened.
    on_node: BTreeMap<NodeId, VecDeque<Timestamp>>,
    /// Nodes that could not launch it or had a full disk.
    refused_by: BTreeSet<NodeId>,
}

/// What follows an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Ask now.
    Now,
    /// Ask at this time.
    At(Timestamp),
    /// Its retries are spent: so many failures.
    Exhausted {
        /// Within the window.
        failures: usize,
    },
    /// It is done.
    Done,
}

/// A process that failed this often on one node is asked for elsewhere; what a node did to it, at once.
const FAILURES_BEFORE_AVOIDING: usize = 3;

impl RestartRecord {
    /// Takes note of an exit on `node` and says what follows.
    pub fn exited(
        &mut self,
        now: Timestamp,
        cause: &ExitCause,
        node: &NodeId,
        spec: &RestartSpec,
    ) -> Verdict {
        self.forget_before_window(now, spec);
        let counts = match cause {
            ExitCause::Success => return Verdict::Done,
            ExitCause::NodeLost
            | ExitCause::LeaseExpired
            | ExitCause::Preempted
            | ExitCause::KilledByAm
            | ExitCause::KilledByUser => return Verdict::Now,
            ExitCause::Fenced => false,
            ExitCause::Failed { .. } | ExitCause::Signal { .. } | ExitCause::OutOfMemory { .. } => {
                self.on_node.entry(node.clone()).or_default().push_back(now);
                true
            }
            ExitCause::LaunchFailed { .. } | ExitCause::DiskFull => {
                let again = !self.refused_by.insert(node.clone());
                again || self.refused_by.len() >= 2
            }
        };
        self.troubles.push_back(now);
        if counts {
            self.failures.push_back(now);
        }
        if self.failures.len() > spec.retries as usize {
            return Verdict::Exhausted { failures: self.failures.len() };
        }
        match self.troubles.len() {
            0 | 1 => Verdict::Now,
            n => Verdict::At(now.plus(backoff_ms(n - 2, spec))),
        }
    }

    /// Nodes to avoid when another will do.
    #[must_use]
    pub fn avoid(&self) -> Vec<NodeId> {
        let failing =
            self.on_node.iter().filter(|(_, t)| t.len() >= FAILURES_BEFORE_AVOIDING).map(|(n, _)| n);
        let all: BTreeSet<&NodeId> = failing.chain(&self.refused_by).collect();
        all.into_iter().cloned().collect()
    }

    /// Failures that count now.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failures.len()
    }

    fn forget_before_window(&mut self, now: Timestamp, spec: &RestartSpec) {
        let old = |t: &Timestamp| now.since(*t) >= spec.window_ms;
        let prune = |times: &mut VecDeque<Timestamp>| {
            while times.front().is_some_and(old) {
                times.pop_front();
            }
        };
        prune(&mut self.failures);
        prune(&mut self.troubles);
        self.on_node.values_mut().for_each(prune);
        self.on_node.retain(|_, times| !times.is_empty());
        if self.troubles.is_empty() {
            self.refused_by.clear();
        }
    }
}

/// The wait before retry number `doublings` + 2 of a window, ms.
fn backoff_ms(doublings: usize, spec: &RestartSpec) -> u64 {
    let factor = 1_u64 << doublings.min(32);
    spec.backoff_min_ms.saturating_mul(factor).min(spec.backoff_max_ms.max(spec.backoff_min_ms))
}
