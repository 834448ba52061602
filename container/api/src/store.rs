//! Key-value stores: the untyped trait that runtimes implement and the typed handle that tasks hold.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use crate::serde::{DecodeError, Serde};

/// A store's errors.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// job.toml names no such store.
    #[error("no store `{name}` in job.toml; it has: {known}")]
    Unknown {
        /// As asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The engine below failed.
    #[error("store failed: {0}")]
    Engine(String),
    /// Bytes that the serde cannot read.
    #[error("cannot decode: {0}")]
    Decode(String),
    /// The job has no timers.
    #[error("job.toml has no `[task] timers = true`")]
    NoTimers,
    /// A value that is larger than the store takes.
    #[error("store {store}: a value of {bytes} bytes is larger than max-value = {limit}")]
    TooLarge {
        /// The store.
        store: String,
        /// The value's size.
        bytes: usize,
        /// What job.toml allows.
        limit: usize,
    },
    /// One call of the task has written more than memory has room for until the next commit.
    #[error(
        "store {store}: one call wrote more than memory holds until a commit ({bytes} bytes; its cache has {limit}): \
         write in parts, over several messages, windows or timers, between which the container commits, or raise \
         `[containers] memory`"
    )]
    TooMuchAtOnce {
        /// The store.
        store: String,
        /// What its cache holds now.
        bytes: usize,
        /// The share of memory that its cache has.
        limit: usize,
    },
}

/// A store of bytes, ordered by key. Writes are seen by later reads at once and are durable at the next commit.
pub trait RawStore {
    /// The value of `key`, borrowed until the next call.
    ///
    /// # Errors
    /// The engine failed.
    fn get(&mut self, key: &[u8]) -> Result<Option<&[u8]>, StoreError>;
    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// The engine failed, or the value is larger than the store takes.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError>;
    /// Removes `key`.
    ///
    /// # Errors
    /// The engine failed.
    fn delete(&mut self, key: &[u8]) -> Result<(), StoreError>;
    /// The rows with `from <= key < to` in key order as they are now, whatever is written later; none leaves that
    /// end open.
    ///
    /// # Errors
    /// The engine failed.
    fn rows(&mut self, from: Option<&[u8]>, to: Option<&[u8]>) -> Result<Box<dyn RawRows>, StoreError>;
    /// The first keys from `from` on, at most `most`. Unlike [`Self::rows`] it need not copy what comes after them.
    ///
    /// # Errors
    /// The engine failed.
    fn first_keys(&mut self, from: &[u8], most: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let (mut rows, mut keys) = (self.rows(Some(from), None)?, Vec::new());
        while keys.len() < most
            && let Some((key, _)) = rows.next()?
        {
            keys.push(key.to_vec());
        }
        Ok(keys)
    }
}

/// Rows of a store at one moment, one after the other.
pub trait RawRows {
    /// The next key and value, borrowed until the next call.
    ///
    /// # Errors
    /// The engine failed.
    #[allow(clippy::should_implement_trait)] // it lends
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>, StoreError>;
}

/// A store in memory: for tests, and for stores of `type = "memory"`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct MemoryStore(pub BTreeMap<Vec<u8>, Vec<u8>>);

impl MemoryStore {
    /// The rows with `from <= key < to`.
    pub fn range<'a>(
        &'a self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
    ) -> impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)> + use<'a> {
        let from = from.map_or(Bound::Unbounded, |from| Bound::Included(from.to_vec()));
        // An end before the start is an empty range, not a panic.
        let to = match (&from, to) {
            (Bound::Included(from), Some(to)) if to < from.as_slice() => Bound::Excluded(from.clone()),
            (_, Some(to)) => Bound::Excluded(to.to_vec()),
            (_, None) => Bound::Unbounded,
        };
        let is_empty = matches!((&from, &to), (Bound::Included(a), Bound::Excluded(b)) if a == b);
        let rows = (!is_empty).then(|| self.0.range((from, to)));
        rows.into_iter().flatten()
    }
}

impl RawStore for MemoryStore {
    fn get(&mut self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        Ok(self.0.get(key).map(Vec::as_slice))
    }
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.0.insert(key.to_vec(), value.to_vec());
        Ok(())
    }
    fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.0.remove(key);
        Ok(())
    }
    fn rows(&mut self, from: Option<&[u8]>, to: Option<&[u8]>) -> Result<Box<dyn RawRows>, StoreError> {
        let rows: Vec<_> = self.range(from, to).map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Box::new(CopiedRows { rows, next: 0 }))
    }
}

struct CopiedRows {
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    next: usize,
}

impl RawRows for CopiedRows {
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>, StoreError> {
        self.next += 1;
        Ok(self.rows.get(self.next - 1).map(|(key, value)| (key.as_slice(), value.as_slice())))
    }
}

/// The first key after every key that begins with `prefix`; none if there is no such key.
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut after = prefix[..=keep].to_vec();
    after[keep] += 1;
    Some(after)
}

/// A typed handle on a store.
pub struct KeyValueStore<K, V> {
    raw: Rc<RefCell<dyn RawStore>>,
    key: Rc<dyn Serde<K>>,
    value: Rc<dyn Serde<V>>,
    /// Reused for encoding, so that a put allocates nothing.
    key_bytes: Vec<u8>,
    value_bytes: Vec<u8>,
}

impl<K, V> std::fmt::Debug for KeyValueStore<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyValueStore")
    }
}

impl<K, V> KeyValueStore<K, V> {
    /// A handle on `raw`; tasks get theirs from [`crate::TaskContext::store`].
    #[must_use]
    pub fn new(raw: Rc<RefCell<dyn RawStore>>, key: Rc<dyn Serde<K>>, value: Rc<dyn Serde<V>>) -> Self {
        KeyValueStore { raw, key, value, key_bytes: Vec::new(), value_bytes: Vec::new() }
    }

    fn encode_key(&mut self, key: &K) {
        self.key_bytes.clear();
        self.key.encode(key, &mut self.key_bytes);
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// The engine failed, or the bytes are not a `V`.
    pub fn get(&mut self, key: &K) -> Result<Option<V>, StoreError> {
        self.encode_key(key);
        match self.raw.borrow_mut().get(&self.key_bytes)? {
            Some(bytes) => self.value.decode(bytes).map(Some).map_err(|e| StoreError::Decode(e.to_string())),
            None => Ok(None),
        }
    }

    /// The values of `keys`, in their order.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_all(&mut self, keys: &[K]) -> Result<Vec<Option<V>>, StoreError> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// The engine failed.
    pub fn put(&mut self, key: &K, value: &V) -> Result<(), StoreError> {
        self.encode_key(key);
        self.value_bytes.clear();
        self.value.encode(value, &mut self.value_bytes);
        self.raw.borrow_mut().put(&self.key_bytes, &self.value_bytes)
    }

    /// Sets every key to its value.
    ///
    /// # Errors
    /// The engine failed; some may be set.
    pub fn put_all(&mut self, rows: &[(K, V)]) -> Result<(), StoreError> {
        rows.iter().try_for_each(|(key, value)| self.put(key, value))
    }

    /// Removes `key`.
    ///
    /// # Errors
    /// The engine failed.
    pub fn delete(&mut self, key: &K) -> Result<(), StoreError> {
        self.encode_key(key);
        self.raw.borrow_mut().delete(&self.key_bytes)
    }

    /// The rows with `from <= key < to`, in the order of the encoded keys, as they are now: the store may be written
    /// while they are read.
    ///
    /// # Errors
    /// The engine failed.
    pub fn range(&mut self, from: &K, to: &K) -> Result<Rows<K, V>, StoreError> {
        let mut to_bytes = Vec::new();
        self.key.encode(to, &mut to_bytes);
        self.encode_key(from);
        self.rows(Some(&self.key_bytes), Some(&to_bytes))
    }

    /// The rows whose encoded key begins with the encoded `prefix`; as [`Self::range`].
    ///
    /// # Errors
    /// The engine failed.
    pub fn prefix(&mut self, prefix: &K) -> Result<Rows<K, V>, StoreError> {
        self.encode_key(prefix);
        let to = after_prefix(&self.key_bytes);
        self.rows(Some(&self.key_bytes), to.as_deref())
    }

    /// Every row, in the order of the encoded keys; as [`Self::range`].
    ///
    /// # Errors
    /// The engine failed.
    pub fn all(&mut self) -> Result<Rows<K, V>, StoreError> {
        self.rows(None, None)
    }

    fn rows(&self, from: Option<&[u8]>, to: Option<&[u8]>) -> Result<Rows<K, V>, StoreError> {
        let raw = self.raw.borrow_mut().rows(from, to)?;
        Ok(Rows { raw, key: Rc::clone(&self.key), value: Rc::clone(&self.value), over: false })
    }
}

/// Rows of a store at one moment: an iterator that ends after its first error.
pub struct Rows<K, V> {
    raw: Box<dyn RawRows>,
    key: Rc<dyn Serde<K>>,
    value: Rc<dyn Serde<V>>,
    over: bool,
}

impl<K, V> std::fmt::Debug for Rows<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rows")
    }
}

impl<K, V> Iterator for Rows<K, V> {
    type Item = Result<(K, V), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let decode_error = |e: DecodeError| StoreError::Decode(e.to_string());
        let row = match self.raw.next() {
            Ok(None) => None,
            Ok(Some((key, value))) => Some(
                self.key
                    .decode(key)
                    .and_then(|key| self.value.decode(value).map(|value| (key, value)))
                    .map_err(decode_error),
            ),
            Err(error) => Some(Err(error)),
        };
        self.over = !matches!(row, Some(Ok(_)));
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serde::{I64Serde, StringSerde};

    fn store(keys: &[&str]) -> KeyValueStore<String, i64> {
        let raw = Rc::new(RefCell::new(MemoryStore::default()));
        let mut store = KeyValueStore::new(raw, Rc::new(StringSerde), Rc::new(I64Serde));
        for (key, n) in keys.iter().zip(0..) {
            store.put(&(*key).to_owned(), &n).expect("put");
        }
        store
    }
    fn keys(rows: Result<Rows<String, i64>, StoreError>) -> Vec<String> {
        rows.expect("rows").map(|row| row.expect("a row").0).collect()
    }

    #[test]
    fn ranges_and_prefixes_are_cut_out_in_order() {
        let mut store = store(&["b", "ab", "a", "abc", "c"]);
        assert_eq!(keys(store.all()), ["a", "ab", "abc", "b", "c"]);
        assert_eq!(keys(store.range(&"ab".into(), &"c".into())), ["ab", "abc", "b"]);
        assert_eq!(keys(store.range(&"c".into(), &"a".into())), Vec::<String>::new());
        assert_eq!(keys(store.prefix(&"ab".into())), ["ab", "abc"]);
        assert_eq!(keys(store.prefix(&String::new())), ["a", "ab", "abc", "b", "c"]);
    }

    #[test]
    fn rows_stay_as_they_were_when_the_store_is_written() {
        let mut store = store(&["a", "b"]);
        let rows = store.all().expect("rows");
        store.delete(&"a".into()).expect("deleted");
        store.put(&"c".into(), &7).expect("put");
        assert_eq!(keys(Ok(rows)), ["a", "b"]);
        assert_eq!(store.get_all(&["a".into(), "c".into()]).expect("read"), [None, Some(7)]);
    }

    #[test]
    fn the_end_of_a_prefix_is_after_all_its_keys() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }
}
