//! Fills a store from its changelog: rows come in log order, go to disk in chunks, sorted, the last of each key.
//!
//! Chunks are of bounded size, with all that is made on the way: they are sorted in place. Within a chunk the last
//! write wins; chunks reach the disk in log order. A large chunk becomes a file of its own that RocksDB takes as it
//! is, a small one a batch. In the first chunk of an empty store tombstones delete nothing and are left out. In a
//! store with a ttl a row that is over is a tombstone.
//!
//! The index of timers ([`super::disk`]) is filled beside their rows, from the same chunks.
//!
//! After each chunk the store's offsets row says how far its rows are, so that a restore that is cut short goes on from
//! there. A file is durable once it is taken and its row follows; a batch holds both.

use std::cmp::Ordering;

use task_api::store::StoreError;
use task_api::timers::index_entry;
use task_core::restore::OffsetsRow;

use super::cache::Row;
use super::disk::TaskDisk;
use super::order::{in_common, prefix};
use super::ttl;
use crate::points;

/// Chunks with fewer rows are written as a batch: a file of its own is not worth it.
const ROWS_FOR_A_FILE: usize = if cfg!(test) { 8 } else { 4096 };

struct Place {
    /// Of its key, after what all keys of the chunk have in common: known when that is.
    prefix: u64,
    key: u32,
    key_len: u32,
    /// None for a tombstone.
    value_len: Option<u32>,
}

const PLACE_BYTES: usize = std::mem::size_of::<Place>();

impl Place {
    /// Compares keys whose prefixes, which end after `whole` bytes, are equal. Those that are whole in them are not
    /// looked up.
    fn cmp_rest<'b>(&self, other: &Place, whole: u32, key: impl Fn(&Place) -> &'b [u8]) -> Ordering {
        if self.key_len <= whole && other.key_len <= whole {
            // A prefix is filled up with zeros, so the longer one has more of them.
            self.key_len.cmp(&other.key_len)
        } else {
            key(self).cmp(key(other))
        }
    }
}

/// What an index has of a chunk, in its order.
struct Entries {
    bytes: Vec<u8>,
    /// The time, and where the entry is in the bytes.
    places: Vec<(u64, u32, u32)>,
}

impl Entries {
    fn of<'r>(rows: impl Iterator<Item = Row<'r>>) -> Result<Entries, StoreError> {
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        for (key, value) in rows {
            let Some(value) = value else { continue };
            let start = bytes.len() as u32;
            index_entry(key, value, &mut bytes)?;
            places.push((prefix(value), start, bytes.len() as u32));
        }
        let entry = |(_, start, end): &(u64, u32, u32)| &bytes[*start as usize..*end as usize];
        places.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| entry(a).cmp(entry(b))));
        Ok(Entries { bytes, places })
    }

    fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.places.iter().map(|(_, start, end)| (&self.bytes[*start as usize..*end as usize], Some(&[][..])))
    }
}

/// The rows of one restore on their way to disk.
pub(crate) struct Fill<'a> {
    disk: &'a TaskDisk,
    store: &'a str,
    /// The store's ttl and the time.
    ttl: Option<(u64, u64)>,
    chunk_bytes: usize,
    /// Keys and values of the chunk, end to end.
    bytes: Vec<u8>,
    places: Vec<Place>,
    /// Nothing has reached the disk yet, and it was empty.
    into_empty: bool,
    /// Files taken by RocksDB.
    files: u32,
    rows: u64,
    /// The offsets row after each chunk, but for its offset, if there is to be one.
    mark: Option<OffsetsRow>,
    /// All rows of the log below it were taken.
    next: u64,
}

impl<'a> Fill<'a> {
    /// Fills `store`, `is_empty` if it has no rows, in chunks of about `chunk_bytes`; `ttl` is its ttl and the time.
    pub(crate) fn new(
        disk: &'a TaskDisk,
        store: &'a str,
        is_empty: bool,
        ttl: Option<(u64, u64)>,
        chunk_bytes: usize,
    ) -> Fill<'a> {
        // Entries of an index are about as large as its rows.
        let copies = if disk.index_of(store).is_some() { 2 } else { 1 };
        let chunk_bytes = (chunk_bytes / copies).clamp(1, 1 << 30);
        let (mut bytes, mut places) = (Vec::new(), Vec::<Place>::new());
        // Room that is not used costs nothing but addresses, and growing would copy all there is again and again. Where
        // not even that is to be had, they grow.
        let _ = bytes.try_reserve_exact(chunk_bytes);
        let _ = places.try_reserve_exact(chunk_bytes / PLACE_BYTES);
        let (mark, next) = (None, 0);
        Fill {
            disk,
            store,
            ttl,
            chunk_bytes,
            bytes,
            places,
            into_empty: is_empty,
            files: 0,
            rows: 0,
            mark,
            next,
        }
    }

    /// Has an offsets row like this one follow each chunk.
    pub(crate) fn mark_with(&mut self, row: OffsetsRow) {
        (self.next, self.mark) = (row.offset, Some(row));
    }

    /// All rows below offset `next` of the log were taken.
    pub(crate) fn at(&mut self, next: u64) {
        self.next = next;
    }

    /// Takes the next row of the log.
    pub(crate) fn take(&mut self, (key, value): Row<'_>) -> Result<(), StoreError> {
        let len = |bytes: &[u8]| {
            u32::try_from(bytes.len()).map_err(|_| StoreError::Engine("a row is larger than 4 GiB".into()))
        };
        let value = value.filter(|stored| self.ttl.is_none_or(|(ttl, now)| !ttl::is_over(stored, ttl, now)));
        let row_bytes = PLACE_BYTES + 1 + key.len() + value.map_or(0, <[u8]>::len);
        if self.bytes.len() + self.places.len() * PLACE_BYTES + row_bytes > self.chunk_bytes {
            self.write(true)?;
        }
        let at = len(&self.bytes)?;
        let value_len = value.map(len).transpose()?;
        self.places.push(Place { prefix: 0, key: at, key_len: len(key)?, value_len });
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        if self.bytes.len() == at as usize {
            // No two rows have one place: places tell which came last.
            self.bytes.push(0);
        }
        self.rows += 1;
        Ok(())
    }

    /// Writes what is left, with the offsets row, and makes all of it durable. Returns how many rows were taken.
    pub(crate) fn finish(mut self, offsets_row: &[u8]) -> Result<u64, StoreError> {
        self.write(false)?;
        if self.files > 1 {
            self.disk.merge_later(self.store, false)?;
        }
        let mut batch = self.disk.batch();
        batch.offsets_row(self.store, offsets_row)?;
        batch.write()?;
        self.disk.flush(true)?;
        Ok(self.rows)
    }

    /// Writes the chunk, and, if `mark`, how far it is.
    fn write(&mut self, mark: bool) -> Result<(), StoreError> {
        let bytes = &self.bytes;
        let key = |p: &Place| &bytes[p.key as usize..(p.key + p.key_len) as usize];
        let skip = in_common(self.places.iter().map(key));
        for place in &mut self.places {
            place.prefix = prefix(&key(place)[skip..]);
        }
        let whole = u32::try_from(skip + 8).unwrap_or(u32::MAX);
        // The place breaks ties, so that of one key the last in the log is the last.
        self.places.sort_unstable_by(|a, b| {
            a.prefix.cmp(&b.prefix).then_with(|| a.cmp_rest(b, whole, key)).then_with(|| a.key.cmp(&b.key))
        });
        let places = &self.places;
        let keep_tombstones = !self.into_empty;
        let rows = places.iter().enumerate().filter_map(|(i, place)| {
            let next = places.get(i + 1).filter(|next| next.prefix == place.prefix);
            if next.is_some_and(|next| place.cmp_rest(next, whole, key).is_eq()) {
                return None;
            }
            let end = (place.key + place.key_len) as usize;
            match place.value_len {
                Some(len) => Some((key(place), Some(&bytes[end..end + len as usize]))),
                None => keep_tombstones.then_some((key(place), None)),
            }
        });
        let count = rows.clone().take(ROWS_FOR_A_FILE).count();
        let here = |row: &OffsetsRow| OffsetsRow { offset: self.next, ..row.clone() }.encode();
        let mark = self.mark.as_ref().filter(|_| mark).map(here);
        if count >= ROWS_FOR_A_FILE {
            if self.files == 1 {
                self.disk.merge_later(self.store, true)?;
            }
            if let Some(index) = self.disk.index_of(self.store) {
                let entries = Entries::of(rows.clone())?;
                // Tombstones have none, and there are no files without rows.
                if entries.rows().next().is_some() {
                    self.disk.ingest(index, self.files, entries.rows())?;
                }
            }
            self.disk.ingest(self.store, self.files, rows)?;
            self.files += 1;
            points::at("restore-chunk");
            if let Some(row) = mark {
                let mut batch = self.disk.batch();
                batch.offsets_row(self.store, &row)?;
                batch.write()?;
                self.disk.flush(true)?;
            }
        } else if count > 0 {
            let mut batch = self.disk.batch();
            batch.rows(self.store, rows)?;
            if let Some(row) = mark {
                batch.offsets_row(self.store, &row)?;
            }
            batch.write()?;
            points::at("restore-chunk");
        }
        self.into_empty &= count == 0;
        self.bytes.clear();
        self.places.clear();
        Ok(())
    }
}
