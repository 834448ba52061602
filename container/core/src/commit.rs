//! When a task thread commits, in which order, and after which commits its clean rows go to disk.

use task_api::system::LogEnd;
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
    /// Nothing has proven for a while that the thread still owns its tasks.
    Proof,
}

/// After the commit interval and so long again without a commit that proved anything, one is made for that alone: a
/// thread that is idle, or whose windows only send, notices that it was replaced.
const PROVE_MS: u64 = 60_000;

/// What a commit has shown: nobody had taken over the thread's tasks before it. Only [`Contents::committed`] makes one.
#[derive(Debug)]
pub struct Proof(());

/// What the open transaction holds. One that holds nothing is completed by the client alone, without a word to its
/// coordinator, so it succeeds also for a thread that was replaced long ago: it proves nothing.
#[derive(Debug, Default)]
pub struct Contents {
    messages: u64,
}

impl Contents {
    /// A message was taken into the transaction.
    pub fn sent(&mut self) {
        self.messages += 1;
    }
    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }
    /// The transaction is over, and was committed. Returns what that proves.
    pub fn committed(&mut self) -> Option<Proof> {
        (std::mem::take(&mut self.messages) > 0).then_some(Proof(()))
    }
    /// The transaction is over, and was not committed.
    pub fn dropped(&mut self) {
        self.messages = 0;
    }
}

/// Where changelogs end, read inside a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    ends: Vec<LogEnd>,
    read_at_unix_ms: u64,
}

impl Ends {
    /// The high watermarks as read at that time.
    #[must_use]
    pub fn new(ends: Vec<LogEnd>, read_at_unix_ms: u64) -> Ends {
        Ends { ends, read_at_unix_ms }
    }
    /// The changelogs have come at least as far as this; by whose rows is not said.
    #[must_use]
    pub fn at_least(&self) -> &[LogEnd] {
        &self.ends
    }
    /// The transaction was committed, and that proved something: all rows below are the thread's own or older.
    #[must_use]
    pub fn proven(self, _: &Proof) -> Positions {
        Positions(self)
    }
}

/// How far of the changelogs the rows of a thread are after a commit that proved that nobody else wrote there.
#[derive(Debug)]
pub struct Positions(Ends);

impl Positions {
    /// By changelog, in the order that they were asked for.
    pub fn offsets(&self) -> impl Iterator<Item = u64> {
        self.0.ends.iter().map(|end| end.offset)
    }
    /// When that was true, unix ms.
    #[must_use]
    pub fn read_at_unix_ms(&self) -> u64 {
        self.0.read_at_unix_ms
    }
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
    /// Wait for the rows' acknowledgements, then read the changelogs' high watermarks: every row of this transaction
    /// is below them, and nobody else's can be unless this commit fails.
    ChangelogEnds,
    /// Send the checkpoints, which tell how far the changelogs have come.
    Checkpoints,
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
    steps.extend([FlushOutputs, Begin, DrainCaches]);
    // Rows that need not be durable yet need no position: until then they are read again after a crash.
    if flush == Flush::Durable {
        steps.push(ChangelogEnds);
    }
    steps.push(Checkpoints);
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
    prove_ms: u64,
    last_commit: Timestamp,
    last_durable: Timestamp,
    last_proof: Timestamp,
    /// Rows were handed to the store below since it was last made durable.
    written: bool,
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
        Schedule {
            interval_ms,
            flush_ms,
            refresh_ms: (keeps_tombstones_ms / 4).max(flush_ms).max(1),
            prove_ms: interval_ms.saturating_add(PROVE_MS),
            last_commit: now,
            last_durable: now,
            last_proof: now,
            written: false,
        }
    }

    /// Whether there are rows whose place on disk is not sure yet.
    fn waits_for_disk(&self, pending: Pending) -> bool {
        pending.unflushed || self.written
    }

    /// Whether to commit now.
    #[must_use]
    pub fn due(&self, now: Timestamp, pending: Pending) -> Option<Due> {
        if now.since(self.last_durable) >= self.refresh_ms {
            return Some(Due::Refresh);
        }
        let proof = (now.since(self.last_proof) >= self.prove_ms).then_some(Due::Proof);
        // Rows that are clean but not safe on disk make a last commit worth its while: the restart then reads nothing.
        if !(pending.anything || pending.stopping && self.waits_for_disk(pending)) {
            return proof.filter(|_| !pending.stopping);
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
            proof
        }
    }

    /// Whether the transaction of this commit must hold something: a position of rows that go to disk rests on it, or it
    /// is made for that alone.
    #[must_use]
    pub fn must_prove(&self, due: Due, flush: Flush, pending: Pending) -> bool {
        match due {
            Due::Refresh | Due::Proof => true,
            Due::Interval | Due::CacheFull | Due::Requested | Due::Stopping => {
                flush == Flush::Durable && self.waits_for_disk(pending)
            }
        }
    }

    /// What shall become of clean rows after the commit that is due.
    #[must_use]
    pub fn flush_stores(&self, now: Timestamp, due: Due, pending: Pending) -> Flush {
        match due {
            Due::Stopping | Due::Refresh => Flush::Durable,
            Due::Interval | Due::CacheFull | Due::Requested | Due::Proof => {
                if self.waits_for_disk(pending) && now.since(self.last_durable) >= self.flush_ms {
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
    pub fn committed(&mut self, now: Timestamp, flush: Flush, proof: Option<&Proof>) {
        self.last_commit = now;
        if proof.is_some() {
            self.last_proof = now;
        }
        match flush {
            Flush::No => {}
            Flush::Written => self.written = true,
            Flush::Durable => (self.last_durable, self.written) = (now, false),
        }
    }

    /// Brokers did not say where the changelogs end, so what the last commit made durable has no position: it waits for the
    /// next flush, or for the last commit.
    pub fn without_positions(&mut self) {
        self.written = true;
    }

    /// When the last commit was.
    #[must_use]
    pub fn last(&self) -> Timestamp {
        self.last_commit
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
    fn a_transaction_that_holds_nothing_proves_nothing() {
        let mut contents = Contents::default();
        assert!(contents.is_empty() && contents.committed().is_none());
        contents.sent();
        assert!(!contents.is_empty() && contents.committed().is_some());
        assert!(contents.committed().is_none(), "the next one begins empty");
        contents.sent();
        contents.dropped();
        assert!(contents.committed().is_none());
    }

    #[test]
    fn a_thread_that_has_proven_nothing_for_a_while_does_so_for_its_own_sake() {
        let mut schedule = schedule();
        let wait = 1_000 + PROVE_MS;
        let sends = Pending { anything: true, ..Pending::default() };
        for pending in [Pending::default(), sends] {
            assert_ne!(schedule.due(Timestamp(wait - 1), pending), Some(Due::Proof));
        }
        assert_eq!(schedule.due(Timestamp(wait), Pending::default()), Some(Due::Proof));
        let stopping = Pending { stopping: true, ..Pending::default() };
        assert_eq!(schedule.due(Timestamp(wait), stopping), None, "it ends anyway");
        // Its windows send, and each commit of that is empty.
        schedule.committed(Timestamp(wait), Flush::No, None);
        assert_eq!(schedule.due(Timestamp(wait + 1), sends), Some(Due::Proof));
        schedule.committed(Timestamp(wait + 1), Flush::No, Some(&Proof(())));
        assert_eq!(schedule.due(Timestamp(wait + 2), sends), None);
        let must = |due, flush| schedule.must_prove(due, flush, SOMETHING);
        assert!(must(Due::Proof, Flush::No) && must(Due::Refresh, Flush::No));
        assert!(must(Due::Stopping, Flush::Durable), "a position follows");
        assert!(!must(Due::Interval, Flush::Written));
        assert!(!schedule.must_prove(Due::Stopping, Flush::Durable, sends), "no row goes to disk");
    }

    #[test]
    fn stores_are_flushed_now_and_then_and_at_the_end() {
        let mut schedule = schedule();
        let flush = |schedule: &Schedule, now, due| schedule.flush_stores(Timestamp(now), due, SOMETHING);
        assert_eq!(flush(&schedule, 1_000, Due::Interval), Flush::No);
        schedule.committed(Timestamp(1_000), Flush::No, None);
        assert_eq!(schedule.next(), Timestamp(2_000));
        assert_eq!(flush(&schedule, 10_000, Due::Interval), Flush::Durable);
        assert_eq!(flush(&schedule, 1_500, Due::Stopping), Flush::Durable);
        schedule.committed(Timestamp(10_000), Flush::Durable, None);
        assert_eq!(flush(&schedule, 19_999, Due::CacheFull), Flush::No);
        let full = Pending { clean_rows_full: true, ..SOMETHING };
        assert_eq!(schedule.flush_stores(Timestamp(10_001), Due::CacheFull, full), Flush::Written);
        schedule.committed(Timestamp(10_001), Flush::Written, None);
        assert_eq!(schedule.flush_stores(Timestamp(20_000), Due::CacheFull, full), Flush::Durable);
    }

    #[test]
    fn rows_that_were_handed_down_are_made_durable_at_the_end_also_if_nothing_else_is_left_to_do() {
        let mut schedule = schedule();
        schedule.committed(Timestamp(1_000), Flush::Written, None);
        let stopping = Pending { stopping: true, ..Pending::default() };
        assert_eq!(schedule.due(Timestamp(1_001), Pending::default()), None, "not before");
        assert_eq!(schedule.due(Timestamp(1_001), stopping), Some(Due::Stopping));
        let flush = schedule.flush_stores(Timestamp(1_001), Due::Stopping, stopping);
        assert_eq!(flush, Flush::Durable);
        assert!(schedule.must_prove(Due::Stopping, flush, stopping), "a position of theirs follows");
        schedule.committed(Timestamp(1_002), flush, None);
        assert_eq!(schedule.due(Timestamp(1_003), stopping), None);
        schedule.without_positions();
        assert_eq!(schedule.due(Timestamp(1_004), Pending::default()), None, "not before");
        assert_eq!(schedule.due(Timestamp(1_004), stopping), Some(Due::Stopping), "an end tells where it is");
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
                assert!(at(CommitStep::DrainCaches) < at(CommitStep::ChangelogEnds));
                assert!(at(CommitStep::ChangelogEnds) < at(CommitStep::Checkpoints));
            }
            let last = if how == Flush::No { CommitStep::Commit } else { CommitStep::FlushStores };
            assert_eq!(steps.last(), Some(&last));
        }
    }
}
