//! What is below the cache of a store in memory: rows in order, of which a snapshot costs nothing.
//!
//! They are in leaves of some hundred rows. A leaf that a snapshot has is copied when it is written, the others are
//! shared with it: a flush or a sweep beside a snapshot costs what it changes, not all there is.

use std::sync::Arc;

use super::cache::Row;
use super::ttl;

type Leaf = Vec<(Arc<[u8]>, Arc<[u8]>)>;

/// Rows of a leaf before it is split.
const LEAF: usize = 256;

/// What a row costs besides its bytes: two pointers with lengths, the counts behind them, allocators' heads, and its
/// share of its leaf's free places.
const ROW_OVERHEAD: usize = 112;

/// The committed rows.
#[derive(Default)]
pub(crate) struct MemoryRows {
    /// In the order of keys; no leaf is empty.
    leaves: Arc<Vec<Arc<Leaf>>>,
    len: usize,
    bytes: usize,
    /// When rows that are over were last looked for, unix ms.
    swept: u64,
    taken: u64,
}

/// Where the first row is whose key is not less than `key`: its leaf and its place there.
fn seek(leaves: &[Arc<Leaf>], key: &[u8]) -> (usize, usize) {
    let leaf = leaves.partition_point(|leaf| leaf.last().is_some_and(|(last, _)| **last < *key));
    let place = leaves.get(leaf).map_or(0, |leaf| leaf.partition_point(|(at, _)| **at < *key));
    (leaf, place)
}

impl MemoryRows {
    /// Sets or, with no value, removes a row.
    pub(crate) fn apply(&mut self, (key, value): Row<'_>) {
        let (mut leaf, mut place) = seek(&self.leaves, key);
        let found = self.leaves.get(leaf).and_then(|leaf| leaf.get(place));
        let known = found.filter(|(at, _)| **at == *key).map(|(_, value)| row_bytes(key, value));
        self.bytes -= known.unwrap_or(0);
        let Some(value) = value else {
            if known.is_some() {
                self.len -= 1;
                let leaves = Arc::make_mut(&mut self.leaves);
                let rows = Arc::make_mut(&mut leaves[leaf]);
                rows.remove(place);
                if rows.is_empty() {
                    leaves.remove(leaf);
                }
            }
            return;
        };
        self.bytes += row_bytes(key, value);
        let leaves = Arc::make_mut(&mut self.leaves);
        if known.is_some() {
            Arc::make_mut(&mut leaves[leaf])[place].1 = value.into();
            return;
        }
        self.len += 1;
        if leaf == leaves.len() {
            // Behind all others.
            match leaves.last() {
                Some(last) if last.len() < LEAF => (leaf, place) = (leaf - 1, last.len()),
                _ => leaves.push(Arc::default()),
            }
        } else if leaves[leaf].len() >= LEAF {
            let upper = Arc::make_mut(&mut leaves[leaf]).split_off(LEAF / 2);
            leaves.insert(leaf + 1, Arc::new(upper));
            if place > LEAF / 2 {
                (leaf, place) = (leaf + 1, place - LEAF / 2);
            }
        }
        Arc::make_mut(&mut leaves[leaf]).insert(place, (key.into(), value.into()));
    }
    /// Takes the next row of a changelog, with the store's ttl and the time.
    pub(crate) fn take(&mut self, (key, value): Row<'_>, ttl: Option<(u64, u64)>) {
        let value = value.filter(|stored| ttl.is_none_or(|(ttl, now)| !ttl::is_over(stored, ttl, now)));
        self.apply((key, value));
        self.taken += 1;
    }
    /// How many rows were taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }
    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let (leaf, place) = seek(&self.leaves, key);
        let (at, value) = self.leaves.get(leaf)?.get(place)?;
        (**at == *key).then_some(value)
    }
    pub(crate) fn len(&self) -> usize {
        self.len
    }
    /// Bytes of all rows, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes rows that are over, twice in a ttl: at most half as many again as are seen are kept.
    pub(crate) fn sweep(&mut self, ttl_ms: u64, now_unix_ms: u64) {
        if now_unix_ms.saturating_sub(self.swept) < ttl_ms / 2 {
            return;
        }
        self.swept = now_unix_ms;
        let is_over = |value: &[u8]| ttl::is_over(value, ttl_ms, now_unix_ms);
        let leaves = Arc::make_mut(&mut self.leaves);
        for leaf in leaves.iter_mut().filter(|leaf| leaf.iter().any(|(_, value)| is_over(value))) {
            for (key, value) in leaf.iter().filter(|(_, value)| is_over(value)) {
                self.bytes -= row_bytes(key, value);
                self.len -= 1;
            }
            Arc::make_mut(leaf).retain(|(_, value)| !is_over(value));
        }
        leaves.retain(|leaf| !leaf.is_empty());
    }

    /// The rows with `from <= key < to` as they are now; `from < to`.
    pub(crate) fn snapshot(&self, from: Option<&[u8]>, to: Option<&[u8]>) -> MemorySnapshot {
        let leaves = Arc::clone(&self.leaves);
        let at = from.map_or((0, 0), |from| seek(&leaves, from));
        let end = to.map_or((leaves.len(), 0), |to| seek(&leaves, to));
        MemorySnapshot { leaves, at, end }
    }
}

fn row_bytes(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + ROW_OVERHEAD
}

/// Rows at one moment, one at hand.
pub(crate) struct MemorySnapshot {
    leaves: Arc<Vec<Arc<Leaf>>>,
    /// The leaf and the place there: of the row at hand, and of the first one after the last.
    at: (usize, usize),
    end: (usize, usize),
}

impl MemorySnapshot {
    pub(crate) fn item(&self) -> Option<(&[u8], &[u8])> {
        let (leaf, place) = self.at;
        let within = self.at < self.end;
        let (key, value) = self.leaves.get(leaf).filter(|_| within)?.get(place)?;
        Some((key, value))
    }
    pub(crate) fn advance(&mut self) {
        let (leaf, place) = self.at;
        let is_last = self.leaves.get(leaf).is_some_and(|leaf| place + 1 >= leaf.len());
        self.at = if is_last { (leaf + 1, 0) } else { (leaf, place + 1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: u32) -> MemoryRows {
        let mut rows = MemoryRows::default();
        // Up and down, so that leaves are split at their ends and in the middle.
        (0..count).for_each(|n| rows.apply((&(n * 7_919 % count).to_be_bytes(), Some(b"stored as is"))));
        rows
    }

    fn all(mut snapshot: MemorySnapshot) -> Vec<(Vec<u8>, Vec<u8>)> {
        let next = || {
            let row = snapshot.item().map(|(key, value)| (key.to_vec(), value.to_vec()));
            snapshot.advance();
            row
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_write_beside_a_snapshot_copies_one_leaf_and_a_sweep_only_what_is_over() {
        let mut rows = rows(50_000);
        let (snapshot, before) = (rows.snapshot(None, None), rows.leaves.len());
        assert!(before >= 50_000 / LEAF, "{before}");
        rows.apply((&77u32.to_be_bytes(), Some(b"another")));
        rows.apply((&78u32.to_be_bytes(), None));
        rows.sweep(2, u64::from_be_bytes(*b"stored a"));
        let copied = rows.leaves.iter().zip(snapshot.leaves.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b));
        assert_eq!(copied.count(), 1, "of {before} leaves");
        assert_eq!((rows.len(), all(rows.snapshot(None, None)).len()), (49_999, 49_999));
        let old = all(snapshot);
        assert!(
            old.len() == 50_000 && old.is_sorted() && old.iter().all(|(_, value)| value == b"stored as is")
        );
    }

    #[test]
    fn ranges_begin_and_end_within_between_and_behind_leaves() {
        let mut rows = rows(5_000);
        (0..5_000u32).filter(|n| n % 3 == 0).for_each(|n| rows.apply((&n.to_be_bytes(), None)));
        for (from, to) in [(0, 5_000), (1, 2), (255, 258), (700, 1_400), (4_999, 9_000), (6_000, 7_000)] {
            let found = all(rows.snapshot(Some(&u32::to_be_bytes(from)), Some(&u32::to_be_bytes(to))));
            let keys: Vec<_> = found.into_iter().map(|(key, _)| key).collect();
            let expected = (from..to.min(5_000)).filter(|n| n % 3 != 0);
            assert_eq!(keys, expected.map(|n| n.to_be_bytes().to_vec()).collect::<Vec<_>>(), "{from}..{to}");
        }
        (0..5_000u32).for_each(|n| rows.apply((&n.to_be_bytes(), None)));
        assert_eq!((rows.len(), rows.bytes(), rows.leaves.len()), (0, 0, 0));
    }
}
