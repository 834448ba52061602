//! When a task thread commits, in which order, and after which commits its clean rows go to disk.

use types::Timestamp;

/// Why a commit is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// `task.commit` has passed since the last.
    Interval,
    /// A cache is full of dirty rows.
    CacheFull,
    /// A task asked for it.
    Requested,
    /// The container ends.
    Stopping,
    /// Local state would get too old to be used: a commit proves that the thread still owns its tasks.
    Refresh,
}

/// The steps of a commit. Their order is what makes state exact: see [`steps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitStep {
    /// Wait until every output that is no part of the transaction is acknowledged by its system.
    FlushOutputs,
    /// Open the transaction, unless outputs have.
    Begin,
    /// Send dirty rows to the changelogs, sorted by key.
    DrainCaches,
    /// Send the checkpoints.
    Checkpoints,
    /// Wait for the acknowledgements, then read the changelogs' high watermarks: everything of this transaction is
    /// below them, and nobody else's can be unless this commit fails.
    ChangelogEnds,
    /// Commit the transaction. Only now are the rows clean.
    Commit,
    /// Write the clean rows to disk, with the offsets row if the ends are known.
    FlushStores,
}

/// The steps of a commit that is (or is not) followed by a flush of the stores.
///
/// In both delivery modes an output must be safe before the position that caused it is: with exactly-once those are the
/// outputs to other systems than the one that has the transaction. They come first, so that a system that is away for a
/// minute holds up no transaction, which a broker would abort, and so that what it refuses may become dead letters.
#[must_use]
pub fn steps(flush: Flush) -> Vec<CommitStep> {
    use CommitStep::{Begin, ChangelogEnds, Checkpoints, Commit, DrainCaches, FlushOutputs, FlushStores};
    let mut steps = Vec::with_capacity(7);
    steps.extend([FlushOutputs, Begin, DrainCaches, Checkpoints]);
    // Rows that need not be durable yet need no position: until then they are read again after a crash.
    if flush == Flush::Durable {
        steps.push(ChangelogEnds);
    }
    steps.push(Commit);
    if flush != Flush::No {
        steps.push(FlushStores);
    }
    steps
}

/// What becomes of clean rows after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// They stay in the caches.
    No,
    /// They make room: they are handed to the store below, which need not make them durable yet.
    Written,
    /// They are handed to the store below and made durable.
    Durable,
}

/// A thread's clock of commits and of flushes to disk.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval_ms: u64,
    flush_ms: u64,
    refresh_ms: u64,
    last_commit: Timestamp,
    last_durable: Timestamp,
}

/// What has happened since the last commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending {
    /// A message was processed, a row written or an output sent.
    pub anything: bool,
    /// A cache holds as many dirty rows or bytes as it may.
    pub cache_full: bool,
    /// A task asked for a commit.
    pub requested: bool,
    /// The container is to end.
    pub stopping: bool,
    /// Clean rows wait for the disk and take up much of the cache.
    pub clean_rows_full: bool,
    /// Clean or dirty rows wait for the disk.
    pub unflushed: bool,
}

impl Schedule {
    /// Commits every `interval_ms`, flushes stores every `flush_ms`, and refreshes the age of local state that
    /// is `keeps_tombstones_ms / 4` old, where that is not sooner.
    #[must_use]
    pub fn new(interval_ms: u64, flush_ms: u64, keeps_tombstones_ms: u64, now: Timestamp) -> Schedule {
        let refresh_ms = (keeps_tombstones_ms / 4).max(flush_ms).max(1);
        Schedule { interval_ms, flush_ms, refresh_ms, last_commit: now, last_durable: now }
    }

    /// Whether to commit now.
    #[must_use]
    pub fn due(&self, now: Timestamp, pending: Pending) -> Option<Due> {
        if now.since(self.last_durable) >= self.refresh_ms {
            return Some(Due::Refresh);
        }
        // Rows that are clean but not on disk make a last commit worth its while: the restart then reads nothing.
        if !(pending.anything || pending.stopping && pending.unflushed) {
            return None;
        }
        if pending.stopping {
            Some(Due::Stopping)
        } else if pending.cache_full {
            Some(Due::CacheFull)
        } else if pending.requested {
            Some(Due::Requested)
        } else if now.since(self.last_commit) >= self.interval_ms {
            Some(Due::Interval)
        } else {
            None
        }
    }

    /// What shall become of clean rows after the commit that is due.
    #[must_use]
    pub fn flush_stores(&self, now: Timestamp, due: Due, pending: Pending) -> Flush {
        match due {
            Due::Stopping | Due::Refresh => Flush::Durable,
            Due::Interval | Due::CacheFull | Due::Requested => {
                if pending.unflushed && now.since(self.last_durable) >= self.flush_ms {
                    Flush::Durable
                } else if pending.clean_rows_full {
                    // Small flushes would only make work for compactions: durable now and then is enough.
                    Flush::Written
                } else {
                    Flush::No
                }
            }
        }
    }

    /// A commit is done.
    pub fn committed(&mut self, now: Timestamp, flush: Flush) {
        self.last_commit = now;
        if flush == Flush::Durable {
            self.last_durable = now;
        }
    }

    /// When to look again if nothing happens.
    #[must_use]
    pub fn next(&self) -> Timestamp {
        self.last_commit.plus(self.interval_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> Schedule {
        Schedule::new(1_000, 10_000, 86_400_000, Timestamp(0))
    }
    const SOMETHING: Pending = Pending {
        anything: true,
        cache_full: false,
        requested: false,
        stopping: false,
        clean_rows_full: false,
        unflushed: true,
    };

    #[test]
    fn nothing_happened_nothing_committed() {
        assert_eq!(schedule().due(Timestamp(5_000), Pending::default()), None);
        assert_eq!(schedule().due(Timestamp(5_000), Pending { requested: true, ..Pending::default() }), None);
        assert_eq!(schedule().due(Timestamp(5_000), Pending { stopping: true, ..Pending::default() }), None);
    }

    #[test]
    fn each_cause_makes_a_commit_due() {
        let due = |now, pending| schedule().due(Timestamp(now), pending);
        assert_eq!(due(999, SOMETHING), None);
        assert_eq!(due(1_000, SOMETHING), Some(Due::Interval));
        assert_eq!(due(1, Pending { cache_full: true, ..SOMETHING }), Some(Due::CacheFull));
        assert_eq!(due(1, Pending { requested: true, ..SOMETHING }), Some(Due::Requested));
        assert_eq!(due(1, Pending { stopping: true, ..SOMETHING }), Some(Due::Stopping));
        let clean_only = Pending { stopping: true, unflushed: true, ..Pending::default() };
        assert_eq!(due(1, clean_only), Some(Due::Stopping));
        assert_eq!(due(86_400_000 / 4, Pending::default()), Some(Due::Refresh));
    }

    #[test]
    fn stores_are_flushed_now_and_then_and_at_the_end() {
        let mut schedule = schedule();
        let flush = |schedule: &Schedule, now, due| schedule.flush_stores(Timestamp(now), due, SOMETHING);
        assert_eq!(flush(&schedule, 1_000, Due::Interval), Flush::No);
        schedule.committed(Timestamp(1_000), Flush::No);
        assert_eq!(schedule.next(), Timestamp(2_000));
        assert_eq!(flush(&schedule, 10_000, Due::Interval), Flush::Durable);
        assert_eq!(flush(&schedule, 1_500, Due::Stopping), Flush::Durable);
        schedule.committed(Timestamp(10_000), Flush::Durable);
        assert_eq!(flush(&schedule, 19_999, Due::CacheFull), Flush::No);
        let full = Pending { clean_rows_full: true, ..SOMETHING };
        assert_eq!(schedule.flush_stores(Timestamp(10_001), Due::CacheFull, full), Flush::Written);
        schedule.committed(Timestamp(10_001), Flush::Written);
        assert_eq!(schedule.flush_stores(Timestamp(20_000), Due::CacheFull, full), Flush::Durable);
    }

    #[test]
    fn outputs_are_safe_before_positions_and_rows_are_clean_only_after_the_commit() {
        for how in [Flush::No, Flush::Written, Flush::Durable] {
            let steps = steps(how);
            let at = |step| steps.iter().position(|s| *s == step);
            assert_eq!(
                at(CommitStep::FlushOutputs),
                Some(0),
                "a system that is away holds up no transaction"
            );
            assert!(at(CommitStep::Begin) < at(CommitStep::DrainCaches));
            assert!(at(CommitStep::DrainCaches) < at(CommitStep::Checkpoints));
            assert!(at(CommitStep::Checkpoints) < at(CommitStep::Commit));
            assert_eq!(at(CommitStep::ChangelogEnds).is_some(), how == Flush::Durable);
            if how == Flush::Durable {
                assert!(at(CommitStep::Checkpoints) < at(CommitStep::ChangelogEnds));
                assert!(at(CommitStep::ChangelogEnds) < at(CommitStep::Commit));
            }
            let last = if how == Flush::No { CommitStep::Commit } else { CommitStep::FlushStores };
            assert_eq!(steps.last(), Some(&last));
        }
    }
}
