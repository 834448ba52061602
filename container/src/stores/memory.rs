//! What is below the cache of a store in memory: an ordered map, of which a snapshot costs nothing.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;
use std::sync::Arc;

use self_cell::self_cell;

use super::cache::Row;
use super::ttl;

type Map = BTreeMap<Arc<[u8]>, Arc<[u8]>>;

/// What a row costs besides its bytes: two pointers with lengths, the counts behind them, allocators' heads, and its
/// share of the tree's free places.
const ROW_OVERHEAD: usize = 112;

/// The committed rows.
#[derive(Default)]
pub(crate) struct MemoryRows {
    /// Shared with snapshots; a write while there is one copies the tree, not the bytes of rows.
    rows: Arc<Map>,
    bytes: usize,
    /// When rows that are over were last looked for, unix ms.
    swept: u64,
    taken: u64,
}

impl MemoryRows {
    /// Sets or, with no value, removes a row.
    pub(crate) fn apply(&mut self, (key, value): Row<'_>) {
        let rows = Arc::make_mut(&mut self.rows);
        let gone = match value {
            Some(value) => {
                self.bytes += row_bytes(key, value);
                rows.insert(key.into(), value.into())
            }
            None => rows.remove(key),
        };
        self.bytes -= gone.map_or(0, |gone| row_bytes(key, &gone));
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
        self.rows.get(key).map(|value| &**value)
    }
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
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
        let bytes = &mut self.bytes;
        Arc::make_mut(&mut self.rows).retain(|key, value| {
            let over = ttl::is_over(value, ttl_ms, now_unix_ms);
            *bytes -= if over { row_bytes(key, value) } else { 0 };
            !over
        });
    }

    /// The rows with `from <= key < to` as they are now; `from < to`.
    pub(crate) fn snapshot(&self, from: Option<&[u8]>, to: Option<&[u8]>) -> MemorySnapshot {
        let from = from.map_or(Bound::Unbounded, Bound::Included);
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = Rest::new(Arc::clone(&self.rows), |rows| rows.range::<[u8], _>((from, to)));
        let mut snapshot = MemorySnapshot { rest, at: None };
        snapshot.advance();
        snapshot
    }
}

fn row_bytes(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + ROW_OVERHEAD
}

type RangeOf<'a> = Range<'a, Arc<[u8]>, Arc<[u8]>>;

self_cell!(
    struct Rest {
        owner: Arc<Map>,
        #[covariant]
        dependent: RangeOf,
    }
);

/// Rows at one moment, one at hand.
pub(crate) struct MemorySnapshot {
    rest: Rest,
    at: Option<(Arc<[u8]>, Arc<[u8]>)>,
}

impl MemorySnapshot {
    pub(crate) fn item(&self) -> Option<(&[u8], &[u8])> {
        self.at.as_ref().map(|(key, value)| (&**key, &**value))
    }
    pub(crate) fn advance(&mut self) {
        let next = self.rest.with_dependent_mut(|_, rest| rest.next());
        self.at = next.map(|(key, value)| (Arc::clone(key), Arc::clone(value)));
    }
}
