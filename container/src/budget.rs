//! What a container's memory is spent on, from its cgroup's limit.

use std::fmt;

const MIB: u64 = 1 << 20;

/// Bytes by purpose; printed at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// The limit.
    pub(crate) limit: u64,
    /// Write-back caches of all stores.
    pub(crate) caches: u64,
    /// RocksDB's block cache.
    pub(crate) blocks: u64,
    /// RocksDB's memtables.
    pub(crate) memtables: u64,
    /// Messages fetched and not yet processed, all consumers.
    pub(crate) fetched: u64,
    /// Messages sent and not yet acknowledged, all producers.
    pub(crate) unsent: u64,
    /// Chunks of restores that run side by side.
    pub(crate) restore: u64,
}

impl Budget {
    /// What one of so many consumers in the container may have fetched.
    fn fetched_by_each(&self, consumers: u32) -> u64 {
        self.fetched / u64::from(consumers.max(1))
    }

    /// How much of that may wait for tasks outside the client: for a commit, or for inputs that go first.
    pub(crate) fn held(&self, consumers: u32) -> u64 {
        (self.fetched_by_each(consumers) / 4).min(MOST_HELD)
    }

    /// Settings of one of so many consumers, unless the job has its own.
    pub(crate) fn consumer(&self, consumers: u32) -> Vec<(&'static str, String)> {
        running(self.fetched_by_each(consumers) - self.held(consumers))
    }

    /// Settings of the consumers that restores read with, so many at once in place of one: nothing else is fetched then,
    /// and nothing is sent.
    pub(crate) fn reader(&self, consumers: u32, at_once: u64) -> Vec<(&'static str, String)> {
        let each = (self.fetched + self.unsent) / u64::from(consumers.max(1));
        restoring(each / at_once.max(1))
    }

    /// Settings of one of so many producers, unless the job has its own.
    pub(crate) fn producer(&self, producers: u32) -> Vec<(&'static str, String)> {
        let bytes = self.unsent / u64::from(producers.max(1));
        let messages = bytes / 2 / PER_UNSENT_MESSAGE;
        vec![
            // Half of it, because what is on its way is there twice: as messages and as the request.
            ("queue.buffering.max.kbytes", kib(bytes / 2)),
            ("queue.buffering.max.messages", messages.clamp(1_000, 500_000).to_string()),
        ]
    }

    /// What is left of `limit` when every container's own costs are paid, but for a quarter: that is for the task's own
    /// data, for what allocators waste and, above all, for the page cache. A container whose heap fills its limit reads
    /// its files, and its own code, again and again.
    fn usable(limit: u64) -> u64 {
        limit.saturating_sub(BASE).max(limit / 4) / 4 * 3
    }

    /// Whether so many tasks with `stores` stores each fit in at all.
    ///
    /// # Errors
    /// They do not, and how much they need.
    pub(crate) fn has_room_for(&self, tasks: usize, stores: usize) -> Result<(), String> {
        if stores == 0 {
            return Ok(());
        }
        let databases = tasks as u64 * (DATABASE + stores as u64 * (STORE + LEAST_CACHE));
        let need = BASE + databases;
        if need <= self.limit {
            return Ok(());
        }
        Err(format!(
            "{tasks} tasks with {stores} stores each need {} MiB, and `[containers] memory` is {} MiB: raise it, or \
             have more `[containers] count`",
            need.div_ceil(MIB),
            self.limit / MIB
        ))
    }

    /// Shares out `limit` among `threads` task threads; `stateful` if there are stores.
    pub(crate) fn new(limit: u64, threads: u32, stateful: bool) -> Budget {
        let usable = Self::usable(limit);
        let parts = |n: u64| usable / 16 * n;
        let (kafka, state) = if stateful { (2, 1) } else { (6, 0) };
        let threads = u64::from(threads.max(1));
        Budget {
            limit,
            caches: parts(6 * state),
            blocks: parts(3 * state),
            memtables: parts(2 * state),
            // More than this buys no throughput.
            fetched: parts(kafka).min(threads * 64 * MIB).max(MIB),
            unsent: parts(kafka).min(threads * 64 * MIB).max(MIB),
            // While restoring nothing is cached, fetched or sent yet.
            restore: parts(6 * state).max(MIB),
        }
    }
}

/// Code, threads and clients of Kafka, whatever the limit.
const BASE: u64 = 40 * MIB;
/// A pause of a partition throws away what was fetched ahead, so it is put off for so long.
const MOST_HELD: u64 = 2 * MIB;
/// What a database costs that is open, and each of its stores that has rows, before anything is cached: measured.
const DATABASE: u64 = 192 << 10;
const STORE: u64 = 64 << 10;
/// The smallest share that a store's cache has.
pub(crate) const LEAST_CACHE: u64 = 64 << 10;
/// What librdkafka spends on a message that it holds, besides the message.
const PER_FETCHED_MESSAGE: u64 = 400;
const PER_UNSENT_MESSAGE: u64 = 256;
/// Partitions that a consumer is supposed to read, for bounds that it only has per partition.
const PARTITIONS: u64 = 4;
/// A row in an answer, with its key and what a batch adds to it, that is called small. Smaller ones cost more than their
/// part, and so does a batch that is larger than an answer may be: brokers send the first one whole.
const SMALL_ROW: u64 = 32;

/// Settings of a consumer that holds `bytes` while a job runs. Its own bounds know neither what a message costs besides
/// its bytes nor how large the answer is that comes when it was last below them. With bounds as narrow as those of
/// [`restoring`] a message of 100 bytes that is sent on costs a seventh more.
fn running(bytes: u64) -> Vec<(&'static str, String)> {
    let messages = bytes / 2 / PER_FETCHED_MESSAGE / PARTITIONS;
    let answer = (bytes / 4).clamp(MIB, 50 * MIB);
    vec![
        ("queued.max.messages.kbytes", kib(bytes / 2)),
        ("queued.min.messages", messages.clamp(1_000, 100_000).to_string()),
        ("fetch.max.bytes", answer.to_string()),
        // A message of a few bytes costs some hundred here, and what comes at once is not counted before it is here.
        ("max.partition.fetch.bytes", (bytes / 8 / PARTITIONS).clamp(64 << 10, MIB).to_string()),
    ]
}

/// Settings of a consumer of one broker that holds `bytes`, in its queue and in an answer, of rows of any size: a restore
/// reads as fast as it can. What is in an answer is in the queue at once, however many messages it is.
fn restoring(bytes: u64) -> Vec<(&'static str, String)> {
    // Small rows reach their number first, large ones their bytes. At worst, in between, that is twice this.
    let queued = bytes / 4;
    let in_answer = bytes / 2 * SMALL_ROW / (SMALL_ROW + PER_FETCHED_MESSAGE);
    let answer = in_answer.clamp(64 << 10, MIB);
    vec![
        ("queued.max.messages.kbytes", kib(queued)),
        ("queued.min.messages", (queued / PER_FETCHED_MESSAGE).clamp(1_000, 100_000).to_string()),
        ("fetch.max.bytes", answer.to_string()),
        ("max.partition.fetch.bytes", answer.to_string()),
    ]
}

fn kib(bytes: u64) -> String {
    (bytes / 1024).clamp(1024, 2_000_000).to_string()
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes / MIB;
        write!(
            f,
            "limit {} MiB: store caches {}, RocksDB blocks {} and memtables {}, fetched and held {}, unsent {}, the rest is free (restore uses {})",
            mib(self.limit),
            mib(self.caches),
            mib(self.blocks),
            mib(self.memtables),
            mib(self.fetched),
            mib(self.unsent),
            mib(self.restore),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_leave_room_for_the_rest() {
        for limit in [32 * MIB, 64 * MIB, 512 * MIB, 16 << 30] {
            for (threads, stateful) in [(1, true), (8, true), (1, false)] {
                let b = Budget::new(limit, threads, stateful);
                assert!(b.caches + b.blocks + b.memtables + b.fetched + b.unsent <= limit / 4 * 3, "{b}");
                assert!(b.restore <= b.caches.max(MIB));
                assert_eq!(b.caches > 0, stateful);
            }
        }
    }

    fn setting(of: &[(&'static str, String)], key: &str) -> u64 {
        of.iter().find(|(name, _)| *name == key).and_then(|(_, value)| value.parse().ok()).expect("it is set")
    }

    /// What a consumer with these settings holds at most of rows that have `row` bytes each, from one broker.
    fn holds(of: &[(&'static str, String)], row: u64) -> u64 {
        let queued =
            setting(of, "queued.min.messages").min((setting(of, "queued.max.messages.kbytes") << 10) / row);
        let answers = setting(of, "fetch.max.bytes") / row;
        (queued + answers) * (row + PER_FETCHED_MESSAGE)
    }

    #[test]
    fn what_all_consumers_fetch_and_hold_is_within_their_part() {
        for limit in [256 * MIB, 1 << 30, 16 << 30] {
            let b = Budget::new(limit, 2, true);
            for consumers in [2, 4, 6] {
                let queued = setting(&b.consumer(consumers), "queued.max.messages.kbytes") << 10;
                let answer = setting(&b.consumer(consumers), "fetch.max.bytes");
                let all = u64::from(consumers) * (queued + answer + b.held(consumers));
                assert!(all <= b.fetched, "{consumers} of {b}: {all}");
            }
        }
    }

    #[test]
    fn what_restores_fetch_is_within_their_part_whatever_the_size_of_rows() {
        for limit in [256 * MIB, 1 << 30, 16 << 30] {
            for consumers in [1, 2, 4] {
                let b = Budget::new(limit, consumers, true);
                let at_once = 4;
                for row in [SMALL_ROW, 100, 400, 1_000, 100_000] {
                    let restoring =
                        u64::from(consumers) * at_once * holds(&b.reader(consumers, at_once), row);
                    assert!(
                        restoring <= b.fetched + b.unsent,
                        "{consumers} of {b}: {restoring} in rows of {row}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_container_that_is_too_small_for_its_tasks_is_refused_with_what_they_need() {
        let b = Budget::new(64 * MIB, 1, true);
        assert_eq!(b.has_room_for(16, 3), Ok(()));
        let why = b.has_room_for(300, 3).expect_err("it is too small");
        assert!(why.contains("300 tasks with 3 stores each need 209 MiB"), "{why}");
        assert!(why.contains("`[containers] memory` is 64 MiB"), "{why}");
        assert_eq!(Budget::new(209 * MIB, 1, true).has_room_for(300, 3), Ok(()));
        assert_eq!(b.has_room_for(10_000, 0), Ok(()), "tasks without stores cost little");
    }
}
