//! The write-back cache of one store: rows in memory, by key, in three conditions.
//!
//! ```text
//!              put, delete                   commit                      flush
//!   on disk ──────────────► dirty ──────────────────► clean, unflushed ─────────► on disk (may be evicted)
//! ```
//!
//! A row that is dirty or unflushed is never evicted, so only committed rows ever reach the disk. A hit allocates
//! nothing: slots keep their buffers. The index is a hash table of slot numbers, the order of keys is made when it
//! is needed (at a commit or a flush). A store whose ranges are read keeps the order of its rows that are not on disk
//! as well; one whose ranges are not read does not pay for it.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::{Bound, ControlFlow};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::order::{in_common, prefix};

/// How much a cache may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Dirty rows before a commit is forced; rows of every other kind are bounded by twice as many.
    pub(crate) rows: usize,
    /// Bytes of all rows, keys and slots.
    pub(crate) bytes: usize,
}

const PRESENT: u8 = 1;
const DIRTY: u8 = 2;
const UNFLUSHED: u8 = 4;
/// Read or written since the clock's hand last came by.
const USED: u8 = 8;

/// The slot holds no row.
const FREE: u8 = 16;

/// What a slot costs besides bytes on the heap: itself and its place in the table.
const SLOT_OVERHEAD: usize = std::mem::size_of::<Slot>() + 8;
/// What a row costs whose place in the order of keys is kept, besides its key: its place in a tree that is about two
/// thirds full, and an allocator's head.
const ORDERED_OVERHEAD: usize = 48;
/// Key and value that are together no longer are kept in the slot itself.
const INLINE: usize = 47;

/// A row's bytes: the key, then the value.
enum Bytes {
    Inline([u8; INLINE]),
    Heap(Vec<u8>),
}

/// One row, as large as a cache line, so that a hit on a small row touches one.
#[repr(align(64))]
struct Slot {
    bytes: Bytes,
    key_len: u32,
    /// 0 if the row is deleted or known not to be there.
    value_len: u32,
    flags: u8,
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("keys and values are smaller than 4 GiB: messages are")
}

impl Slot {
    fn free() -> Slot {
        Slot { bytes: Bytes::Inline([0; INLINE]), key_len: 0, value_len: 0, flags: FREE }
    }
    #[inline]
    fn all(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Inline(bytes) => bytes,
            Bytes::Heap(bytes) => bytes,
        }
    }
    #[inline]
    fn key(&self) -> &[u8] {
        &self.all()[..self.key_len as usize]
    }
    fn value(&self) -> Option<&[u8]> {
        let (start, len) = (self.key_len as usize, self.value_len as usize);
        (self.flags & PRESENT != 0).then(|| &self.all()[start..start + len])
    }
    /// Takes a new row in, absent and clean.
    fn set_key(&mut self, key: &[u8]) {
        match &mut self.bytes {
            Bytes::Inline(bytes) if key.len() <= INLINE => bytes[..key.len()].copy_from_slice(key),
            Bytes::Heap(bytes) if key.len() > INLINE => {
                bytes.clear();
                bytes.extend_from_slice(key);
            }
            Bytes::Heap(_) => {
                let mut bytes = [0; INLINE];
                bytes[..key.len()].copy_from_slice(key);
                self.bytes = Bytes::Inline(bytes);
            }
            Bytes::Inline(_) => self.bytes = Bytes::Heap(key.to_vec()),
        }
        (self.key_len, self.value_len, self.flags) = (length(key), 0, USED);
    }
    fn set_value(&mut self, value: Option<&[u8]>) {
        let key_len = self.key_len as usize;
        let Some(value) = value else {
            self.value_len = 0;
            self.flags &= !PRESENT;
            return;
        };
        let len = key_len + value.len();
        match &mut self.bytes {
            Bytes::Inline(bytes) if len <= INLINE => bytes[key_len..len].copy_from_slice(value),
            Bytes::Inline(bytes) => {
                let mut heap = Vec::with_capacity(len);
                heap.extend_from_slice(&bytes[..key_len]);
                heap.extend_from_slice(value);
                self.bytes = Bytes::Heap(heap);
            }
            Bytes::Heap(bytes) => {
                bytes.truncate(key_len);
                bytes.extend_from_slice(value);
            }
        }
        self.value_len = length(value);
        self.flags |= PRESENT;
    }
    fn pinned(&self) -> bool {
        self.flags & (DIRTY | UNFLUSHED) != 0
    }
    fn bytes(&self) -> usize {
        SLOT_OVERHEAD
            + match &self.bytes {
                Bytes::Inline(_) => 0,
                Bytes::Heap(bytes) => bytes.capacity() + 16,
            }
    }
}

/// The rows.
pub(crate) struct Cache {
    limits: Limits,
    hasher: DefaultHashBuilder,
    table: HashTable<u32>,
    slots: Vec<Slot>,
    /// Slots that are free again.
    free: Vec<u32>,
    /// The slot that was found last: tasks read a row and then write it.
    last: u32,
    dirty: Vec<u32>,
    unflushed: Vec<u32>,
    /// Bytes of all rows, and of those that may not be evicted.
    bytes: usize,
    pinned_bytes: usize,
    /// Where the clock's hand stands.
    hand: usize,
    /// Reused for sorting.
    order: Vec<(u64, u32)>,
    /// Pinned rows by key: from the first range that is read until a flush finds that none was read since the last.
    ordered: Option<BTreeMap<Box<[u8]>, u32>>,
    /// What that takes.
    ordered_bytes: usize,
    range_read: bool,
}

/// A row's key and its value, none if it is deleted.
pub(crate) type Row<'a> = (&'a [u8], Option<&'a [u8]>);

impl Cache {
    pub(crate) fn new(limits: Limits) -> Cache {
        Cache {
            limits,
            hasher: DefaultHashBuilder::default(),
            table: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            last: 0,
            dirty: Vec::new(),
            unflushed: Vec::new(),
            bytes: 0,
            pinned_bytes: 0,
            hand: 0,
            order: Vec::new(),
            ordered: None,
            ordered_bytes: 0,
            range_read: false,
        }
    }

    /// The slot of `key`; else the key's hash.
    fn find(&mut self, key: &[u8]) -> Result<u32, u64> {
        let is = |at: u32| self.slots.get(at as usize).is_some_and(|s| s.flags & FREE == 0 && s.key() == key);
        if is(self.last) {
            return Ok(self.last);
        }
        let hash = self.hasher.hash_one(key);
        let found = self.table.find(hash, |at| self.slots[*at as usize].key() == key);
        self.last = *found.ok_or(hash)?;
        Ok(self.last)
    }

    /// The slot of `key`, if it is known; a known row may be known to be absent.
    pub(crate) fn lookup(&mut self, key: &[u8]) -> Option<u32> {
        let at = self.find(key).ok()?;
        self.slots[at as usize].flags |= USED;
        Some(at)
    }

    /// The value in a slot that [`Self::lookup`] or [`Self::learn`] gave.
    pub(crate) fn value(&self, at: u32) -> Option<&[u8]> {
        self.slots[at as usize].value()
    }

    /// Takes in what the disk says of a key that is not known.
    pub(crate) fn learn(&mut self, key: &[u8], value: Option<&[u8]>) -> u32 {
        let at = self.insert(self.hasher.hash_one(key), key);
        let slot = &mut self.slots[at as usize];
        let was = slot.bytes();
        slot.set_value(value);
        self.bytes = self.bytes + slot.bytes() - was;
        at
    }

    /// Sets (or, with none, deletes) a row.
    pub(crate) fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        let at = match self.find(key) {
            Ok(at) => at,
            Err(hash) => self.insert(hash, key),
        };
        let slot = &mut self.slots[at as usize];
        let (was, was_pinned) = (slot.bytes(), slot.pinned());
        slot.set_value(value);
        if slot.flags & DIRTY == 0 {
            self.dirty.push(at);
        }
        slot.flags |= DIRTY | USED;
        if !was_pinned && let Some(ordered) = &mut self.ordered {
            ordered.insert(slot.key().into(), at);
            self.ordered_bytes += ORDERED_OVERHEAD + slot.key().len();
        }
        let is = slot.bytes();
        self.bytes = self.bytes + is - was;
        self.pinned_bytes = self.pinned_bytes + is - if was_pinned { was } else { 0 };
    }

    /// Puts `key` into a free slot as an absent, clean row.
    fn insert(&mut self, hash: u64, key: &[u8]) -> u32 {
        self.evict();
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                if self.slots.len() == self.slots.capacity() {
                    // Not doubled: the limits hold for what is allocated too, but for a quarter of the slots.
                    self.slots.reserve_exact((self.slots.len() / 4).max(64));
                }
                self.slots.push(Slot::free());
                u32::try_from(self.slots.len() - 1).expect("a cache holds fewer than 4 billion rows")
            }
        };
        let slot = &mut self.slots[at as usize];
        slot.set_key(key);
        self.bytes += slot.bytes();
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.table.insert_unique(hash, at, |at| hasher.hash_one(slots[*at as usize].key()));
        self.last = at;
        at
    }

    /// Makes room for one more row, if the limits ask for it and something can go.
    fn evict(&mut self) {
        // Pinned rows are bounded by commits and flushes; a short look is enough to keep pace with insertions.
        const LOOK: usize = 32;
        let mut looked = 0;
        while self.is_over() && looked < LOOK && !self.slots.is_empty() {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            looked += 1;
            let slot = &mut self.slots[self.hand];
            if slot.pinned() || slot.flags & FREE != 0 {
                continue;
            }
            if slot.flags & USED != 0 {
                slot.flags &= !USED;
                continue;
            }
            self.remove(self.hand);
        }
    }

    fn remove(&mut self, place: usize) {
        let slot = &self.slots[place];
        let hash = self.hasher.hash_one(slot.key());
        self.bytes -= slot.bytes();
        let number = place as u32;
        if let Ok(entry) = self.table.find_entry(hash, |at| *at == number) {
            entry.remove();
        }
        self.slots[place] = Slot::free();
        self.free.push(number);
    }

    fn is_over(&self) -> bool {
        self.table.len() >= 2 * self.limits.rows || self.bytes() >= self.limits.bytes
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether dirty rows force a commit.
    pub(crate) fn is_full(&self) -> bool {
        self.dirty.len() >= self.limits.rows
            || self.pinned_bytes + self.ordered_bytes >= self.limits.bytes / 2
    }
    /// Whether clean rows should be flushed with the next commit.
    pub(crate) fn wants_flush(&self) -> bool {
        self.unflushed.len() + self.dirty.len() >= self.limits.rows
            || self.pinned_bytes + self.ordered_bytes >= self.limits.bytes / 4
    }
    /// Rows written since the last commit.
    pub(crate) fn dirty_rows(&self) -> usize {
        self.dirty.len()
    }
    /// Rows committed since the last flush, and dirty ones.
    pub(crate) fn rows_not_on_disk(&self) -> usize {
        self.unflushed.len() + self.dirty.len()
    }

    /// Rows of any condition.
    pub(crate) fn rows_known(&self) -> usize {
        self.table.len()
    }

    /// Visits `of` in the order of keys.
    fn sorted<'a, B>(
        slots: &'a [Slot],
        order: &mut Vec<(u64, u32)>,
        of: &[u32],
        mut visit: impl FnMut(Row<'a>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let keys = || of.iter().map(|at| slots[*at as usize].key());
        let skip = in_common(keys());
        order.clear();
        order.extend(keys().map(|key| prefix(&key[skip..])).zip(of.iter().copied()));
        order.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0).then_with(|| slots[a.1 as usize].key().cmp(slots[b.1 as usize].key()))
        });
        for (_, at) in order.iter() {
            let slot = &slots[*at as usize];
            visit((slot.key(), slot.value()))?;
        }
        ControlFlow::Continue(())
    }

    /// Visits the dirty rows in the order of keys; they stay dirty.
    ///
    /// # Errors
    /// What `visit` gave; the rest is not visited.
    pub(crate) fn visit_dirty<E>(
        &mut self,
        mut visit: impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match Self::sorted(&self.slots, &mut self.order, &self.dirty, |row| match visit(row) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => ControlFlow::Break(e),
        }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(e) => Err(e),
        }
    }

    /// The dirty rows are committed.
    pub(crate) fn committed(&mut self) {
        for at in self.dirty.drain(..) {
            let slot = &mut self.slots[at as usize];
            slot.flags &= !DIRTY;
            if slot.flags & UNFLUSHED == 0 {
                slot.flags |= UNFLUSHED;
                self.unflushed.push(at);
            }
        }
    }

    /// Visits the committed rows that are not on disk, in the order of keys. There must be no dirty rows.
    pub(crate) fn visit_unflushed(&mut self, mut visit: impl FnMut(Row<'_>)) {
        assert!(self.dirty.is_empty(), "rows are flushed right after a commit");
        let ControlFlow::Continue(()) = Self::sorted(&self.slots, &mut self.order, &self.unflushed, |row| {
            visit(row);
            ControlFlow::<std::convert::Infallible>::Continue(())
        });
    }

    /// The unflushed rows are on disk; they stay known if `keep`.
    pub(crate) fn flushed(&mut self, keep: bool) {
        for at in std::mem::take(&mut self.unflushed) {
            let slot = &mut self.slots[at as usize];
            slot.flags &= !UNFLUSHED;
            self.pinned_bytes -= slot.bytes();
            if !keep {
                self.remove(at as usize);
            }
        }
        if self.order.capacity() > 4 * self.limits.rows.max(1024) {
            self.order = Vec::new();
        }
        // All pinned rows were unflushed ones: there are no dirty rows at a flush.
        self.ordered = if self.range_read { Some(BTreeMap::new()) } else { None };
        self.ordered_bytes = 0;
        self.range_read = false;
    }

    /// The rows with `from <= key < to` that the disk does not have as they are, in the order of keys.
    pub(crate) fn range_not_on_disk(
        &mut self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
    ) -> impl Iterator<Item = Row<'_>> {
        self.range_read = true;
        let slots = &self.slots;
        let ordered = self.ordered.get_or_insert_with(|| {
            let pinned = self.unflushed.iter().chain(&self.dirty);
            let ordered: BTreeMap<Box<[u8]>, u32> =
                pinned.map(|at| (slots[*at as usize].key().into(), *at)).collect();
            self.ordered_bytes = ordered.keys().map(|key| ORDERED_OVERHEAD + key.len()).sum();
            ordered
        });
        let is_empty = from.zip(to).is_some_and(|(from, to)| from >= to);
        let from = from.map_or(Bound::Unbounded, Bound::Included);
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let within = (!is_empty).then(|| ordered.range::<[u8], _>((from, to)));
        within.into_iter().flatten().map(|(key, at)| (&**key, slots[*at as usize].value()))
    }

    /// Bytes of all rows, and of their order.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.ordered_bytes
    }
}
