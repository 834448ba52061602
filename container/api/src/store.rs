//! Key-value stores: the untyped trait that runtimes implement and the typed handle that tasks hold.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use crate::serde::Serde;

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
}

/// What a visitor of rows wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// The next row.
    Continue,
    /// No more.
    Stop,
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
    /// The engine failed.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError>;
    /// Removes `key`.
    ///
    /// # Errors
    /// The engine failed.
    fn delete(&mut self, key: &[u8]) -> Result<(), StoreError>;
    /// Visits the rows with `from <= key < to` in key order; none leaves that end open.
    ///
    /// # Errors
    /// The engine or the visitor failed.
    fn scan(
        &mut self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        visit: &mut Visitor<'_>,
    ) -> Result<(), StoreError>;
}

/// Called with each key and value of a scan.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<Visit, StoreError> + 'a;

/// A typed handle on a store.
pub struct KeyValueStore<K, V> {
    raw: Rc<RefCell<dyn RawStore>>,
    key: Box<dyn Serde<K>>,
    value: Box<dyn Serde<V>>,
    /// Reused for encoding, so that a put allocates nothing.
    key_bytes: Vec<u8>,
    value_bytes: Vec<u8>,
    types: PhantomData<(K, V)>,
}

impl<K, V> std::fmt::Debug for KeyValueStore<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyValueStore")
    }
}

impl<K, V> KeyValueStore<K, V> {
    /// A handle on `raw`; tasks get theirs from [`crate::TaskContext::store`].
    #[must_use]
    pub fn new(raw: Rc<RefCell<dyn RawStore>>, key: Box<dyn Serde<K>>, value: Box<dyn Serde<V>>) -> Self {
        KeyValueStore { raw, key, value, key_bytes: Vec::new(), value_bytes: Vec::new(), types: PhantomData }
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

    /// The rows with `from <= key < to`, in the order of the encoded keys.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn range(&mut self, from: &K, to: &K) -> Result<Vec<(K, V)>, StoreError> {
        let mut to_bytes = Vec::new();
        self.key.encode(to, &mut to_bytes);
        self.encode_key(from);
        let from_bytes = std::mem::take(&mut self.key_bytes);
        let rows = self.collect(Some(&from_bytes), Some(&to_bytes));
        self.key_bytes = from_bytes;
        rows
    }

    /// Every row, in the order of the encoded keys.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn all(&mut self) -> Result<Vec<(K, V)>, StoreError> {
        self.collect(None, None)
    }

    fn collect(&mut self, from: Option<&[u8]>, to: Option<&[u8]>) -> Result<Vec<(K, V)>, StoreError> {
        let decode_error = |e: crate::serde::DecodeError| StoreError::Decode(e.to_string());
        let mut rows = Vec::new();
        let (key_serde, value_serde) = (&self.key, &self.value);
        self.raw.borrow_mut().scan(from, to, &mut |key, value| {
            rows.push((
                key_serde.decode(key).map_err(decode_error)?,
                value_serde.decode(value).map_err(decode_error)?,
            ));
            Ok(Visit::Continue)
        })?;
        Ok(rows)
    }
}
