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
    /// Shares out `limit` among `threads` task threads; `stateful` if there are stores.
    pub(crate) fn new(limit: u64, threads: u32, stateful: bool) -> Budget {
        // A quarter stays for code, threads, the task's own data and what allocators waste.
        let usable = limit / 4 * 3;
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
    fn the_parts_fit_into_three_quarters_of_the_limit() {
        for limit in [64 * MIB, 512 * MIB, 16 << 30] {
            for (threads, stateful) in [(1, true), (8, true), (1, false)] {
                let b = Budget::new(limit, threads, stateful);
                assert!(b.caches + b.blocks + b.memtables + b.fetched + b.unsent <= limit / 4 * 3, "{b}");
                assert!(b.restore <= b.caches.max(MIB));
                assert_eq!(b.caches > 0, stateful);
            }
        }
    }
}
