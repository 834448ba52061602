//! Rows that end. In a store with a ttl every value, in the cache, on disk and in the changelog, is led by the time
//! of its write:
//!
//! ```text
//!   8 bytes, unix ms, big-endian │ the task's value
//! ```
//!
//! A row is over when `written + ttl <= now`, where now is the task's clock (the time of the batch at hand). Rows that
//! are over are not seen by any read; they leave the disk when it is compacted, and a restore does not bring them
//! back. A store without a ttl has the values as they are, so a ttl can be neither added to nor taken from a store
//! that has rows; changing how long it is needs nothing.

use task_api::store::StoreError;

/// Bytes before the task's value.
pub(crate) const STAMP: usize = 8;

/// When the row was written, unix ms; none if the value has no such time.
fn written_at(stored: &[u8]) -> Option<u64> {
    stored.first_chunk::<STAMP>().map(|stamp| u64::from_be_bytes(*stamp))
}

/// Whether a row is over.
pub(crate) fn is_over(stored: &[u8], ttl_ms: u64, now_unix_ms: u64) -> bool {
    written_at(stored).is_some_and(|written| written.saturating_add(ttl_ms) <= now_unix_ms)
}

/// Appends the stored form of `value`.
pub(crate) fn stamp(value: &[u8], now_unix_ms: u64, stored: &mut Vec<u8>) {
    stored.extend_from_slice(&now_unix_ms.to_be_bytes());
    stored.extend_from_slice(value);
}

/// The task's value in a stored one; none if its row is over.
pub(crate) fn live(stored: &[u8], ttl_ms: u64, now_unix_ms: u64) -> Result<Option<&[u8]>, StoreError> {
    if is_over(stored, ttl_ms, now_unix_ms) {
        return Ok(None);
    }
    match stored.get(STAMP..) {
        Some(value) => Ok(Some(value)),
        None => Err(StoreError::Engine(
            "a value has no time of its write: was a ttl given to a store that had rows before?".into(),
        )),
    }
}
