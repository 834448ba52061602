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
    /// Settings of a consumer of one of `threads` task threads, unless the job has its own.
    pub(crate) fn consumer(&self, threads: u32) -> Vec<(&'static str, String)> {
        fetches(self.fetched / u64::from(threads.max(1)), PARTITIONS)
    }

    /// Settings of the consumers that restores read with, so many at once per thread: nothing else is fetched then.
    pub(crate) fn reader(&self, threads: u32, at_once: u64) -> Vec<(&'static str, String)> {
        fetches(self.fetched / u64::from(threads.max(1)) / at_once.max(1), 1)
    }

    /// Settings of a producer of one of `threads` task threads, unless the job has its own.
    pub(crate) fn producer(&self, threads: u32) -> Vec<(&'static str, String)> {
        let bytes = self.unsent / u64::from(threads.max(1));
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

/// Code, threads, clients of Kafka and databases, whatever the limit.
const BASE: u64 = 40 * MIB;
/// What librdkafka spends on a message that it holds, besides the message.
const PER_FETCHED_MESSAGE: u64 = 400;
const PER_UNSENT_MESSAGE: u64 = 256;
/// Partitions that a consumer is supposed to read, for bounds that it only has per partition.
const PARTITIONS: u64 = 4;

/// Settings of a consumer that holds `bytes`. Its own bounds know neither what a message costs besides its bytes nor
/// how large the answer is that comes when it was last below them.
fn fetches(bytes: u64, partitions: u64) -> Vec<(&'static str, String)> {
    let messages = bytes / 2 / PER_FETCHED_MESSAGE / partitions;
    let answer = (bytes / 4).clamp(MIB, 50 * MIB);
    vec![
        ("queued.max.messages.kbytes", kib(bytes / 2)),
        ("queued.min.messages", messages.clamp(1_000, 100_000).to_string()),
        ("fetch.max.bytes", answer.to_string()),
        ("max.partition.fetch.bytes", (answer / partitions).clamp(256 << 10, MIB).to_string()),
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
            "limit {} MiB: store caches {}, RocksDB blocks {} and memtables {}, fetched {}, unsent {}, the rest is free (restore uses {})",
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
}
