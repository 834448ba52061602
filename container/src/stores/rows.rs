//! A snapshot of a store: the rows that only the cache has, copied, merged on the way with an iterator of what is
//! below it. Rows below are not copied.

use std::cmp::Ordering;
use std::rc::Rc;

use task_api::store::{RawRows, StoreError};

use super::cache::Row;
use super::disk::DiskSnapshot;
use super::link::Link;
use super::memory::MemorySnapshot;
use super::ttl;

/// Rows copied end to end, in the order of keys.
#[derive(Default)]
pub(crate) struct Copied {
    bytes: Vec<u8>,
    /// Where a row begins, how long its key is, and its value, none for a deleted row.
    rows: Vec<(usize, usize, Option<usize>)>,
    next: usize,
}

impl Copied {
    pub(crate) fn of<'a>(rows: impl Iterator<Item = Row<'a>>) -> Copied {
        let mut copied = Copied::default();
        for (key, value) in rows {
            copied.rows.push((copied.bytes.len(), key.len(), value.map(<[u8]>::len)));
            copied.bytes.extend_from_slice(key);
            copied.bytes.extend_from_slice(value.unwrap_or_default());
        }
        copied
    }
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }
    pub(crate) fn last_key(&self) -> Option<&[u8]> {
        self.rows.last().map(|(start, key_len, _)| &self.bytes[*start..start + key_len])
    }
    fn item(&self) -> Option<Row<'_>> {
        let (start, key_len, value_len) = *self.rows.get(self.next)?;
        let value = start + key_len;
        Some((&self.bytes[start..value], value_len.map(|len| &self.bytes[value..value + len])))
    }
}

/// The rows below a cache.
pub(crate) enum BelowRows {
    Disk(DiskSnapshot),
    Memory(MemorySnapshot),
    /// A range with no keys.
    Empty,
}

impl BelowRows {
    fn item(&self) -> Option<(&[u8], &[u8])> {
        match self {
            BelowRows::Disk(rows) => rows.item(),
            BelowRows::Memory(rows) => rows.item(),
            BelowRows::Empty => None,
        }
    }
    fn advance(&mut self) -> Result<(), StoreError> {
        match self {
            BelowRows::Disk(rows) => rows.advance()?,
            BelowRows::Memory(rows) => rows.advance(),
            BelowRows::Empty => {}
        }
        Ok(())
    }
}

/// What [`task_api::store::RawStore::rows`] gives.
pub(crate) struct Snapshot {
    mine: Copied,
    below: BelowRows,
    /// The store's ttl and the time of the snapshot.
    ttl: Option<(u64, u64)>,
    /// What was given out last and must be passed by: (of the cache, of what is below).
    given: (bool, bool),
    link: Rc<Link>,
}

impl Snapshot {
    pub(crate) fn new(mine: Copied, below: BelowRows, ttl: Option<(u64, u64)>, link: Rc<Link>) -> Snapshot {
        Snapshot { mine, below, ttl, given: (false, false), link }
    }

    /// Moves to the next row that is there; whether the cache has it, none at the end.
    fn seek(&mut self) -> Result<Option<bool>, StoreError> {
        loop {
            let (mine, below) = std::mem::take(&mut self.given);
            self.mine.next += usize::from(mine);
            if below {
                self.link.note(self.below.advance())?;
            }
            // What the cache has stands for the row of the same key below.
            self.given = match (self.mine.item(), self.below.item()) {
                (None, None) => return Ok(None),
                (Some(_), None) => (true, false),
                (None, Some(_)) => (false, true),
                (Some((mine, _)), Some((below, _))) => match mine.cmp(below) {
                    Ordering::Less => (true, false),
                    Ordering::Equal => (true, true),
                    Ordering::Greater => (false, true),
                },
            };
            let of_cache = self.given.0;
            let stored = if of_cache {
                self.mine.item().and_then(|(_, value)| value)
            } else {
                self.below.item().map(|(_, value)| value)
            };
            let Some(stored) = stored else { continue };
            if self.ttl.is_none_or(|(ttl, now)| !ttl::is_over(stored, ttl, now)) {
                return Ok(Some(of_cache));
            }
        }
    }
}

impl RawRows for Snapshot {
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>, StoreError> {
        let Some(of_cache) = self.seek()? else { return Ok(None) };
        let row = if of_cache {
            self.mine.item().and_then(|(key, value)| value.map(|value| (key, value)))
        } else {
            self.below.item()
        };
        let Some((key, stored)) = row else { return Ok(None) };
        match self.ttl {
            None => Ok(Some((key, stored))),
            Some((ttl, now)) => Ok(self.link.note(ttl::live(stored, ttl, now))?.map(|value| (key, value))),
        }
    }
}
