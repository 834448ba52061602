//! Kafka's log segments as brokers store them: who wrote which offset, and whether it was committed. Clients are
//! told neither, so the proof of fencing reads the brokers' files (record batches of magic 2; only their headers,
//! and the records of transaction markers and of `__transaction_state`, which brokers never compress).

use std::collections::BTreeMap;
use std::path::Path;

/// Bytes before a batch's records.
const HEADER: usize = 61;

/// One record batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its first offset.
    pub first: u64,
    /// Its last offset.
    pub last: u64,
    /// The producer that wrote it, -1 if it had no id.
    pub producer: i64,
    /// The producer's epoch.
    pub epoch: i16,
    /// Whether it belongs to a transaction.
    pub transactional: bool,
    /// For a transaction's end: whether that is a commit.
    pub marker: Option<bool>,
    /// Its records, as stored.
    records: Vec<u8>,
}

/// The batches of the partition whose log is in `folder`, by offset. What is being written is left out.
///
/// # Errors
/// The folder cannot be read.
pub fn batches(folder: &Path) -> std::io::Result<Vec<Batch>> {
    let mut segments: Vec<_> = std::fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    segments.sort();
    let mut batches = Vec::new();
    for segment in segments {
        let bytes = std::fs::read(segment)?;
        let mut at = 0;
        while let Some(batch) = Batch::parse(&bytes[at..]) {
            at += 12 + usize::try_from(int(&bytes[at + 8..at + 12])).unwrap_or(0);
            batches.push(batch);
        }
    }
    Ok(batches)
}

/// A big-endian signed integer of up to 8 bytes.
fn int(bytes: &[u8]) -> i64 {
    let start = if bytes[0] & 0x80 == 0 { 0 } else { -1 };
    bytes.iter().fold(start, |value, byte| (value << 8) | i64::from(*byte))
}

impl Batch {
    fn parse(bytes: &[u8]) -> Option<Batch> {
        let length = usize::try_from(int(bytes.get(8..12)?)).ok()?;
        let batch = bytes.get(..12 + length)?;
        if length < HEADER - 12 || batch[16] != 2 {
            return None;
        }
        let attributes = int(&batch[21..23]);
        let first = u64::try_from(int(&batch[0..8])).ok()?;
        let records = batch[HEADER..].to_vec();
        let control = attributes & 0x20 != 0;
        Some(Batch {
            first,
            last: first + u64::try_from(int(&batch[23..27])).ok()?,
            producer: int(&batch[43..51]),
            epoch: i16::try_from(int(&batch[51..53])).ok()?,
            transactional: attributes & 0x10 != 0,
            marker: if control {
                records_of(&records).first().map(|(key, _)| key.ends_with(&[0, 1]))
            } else {
                None
            },
            records,
        })
    }
}

/// Keys and values of uncompressed records.
fn records_of(bytes: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some((length, after)) = varint(bytes, at) else { break };
        let mut field = after + 1; // attributes
        for _ in 0..2 {
            let Some((_, after)) = varint(bytes, field) else { return found }; // timestamp and offset
            field = after;
        }
        let Some((key, field)) = field_of(bytes, field) else { break };
        let Some((value, _)) = field_of(bytes, field) else { break };
        found.push((key, value));
        at = after + usize::try_from(length).unwrap_or(usize::MAX - after);
    }
    found
}

fn field_of(bytes: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
    let (length, start) = varint(bytes, at)?;
    let length = usize::try_from(length).unwrap_or(0); // -1 is null
    Some((bytes.get(start..start + length)?.to_vec(), start + length))
}

/// A zigzag varint at `at` and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let mut value = 0_u64;
    for (place, byte) in bytes.get(at..)?.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(((value >> 1).cast_signed() ^ -(value & 1).cast_signed(), at + place + 1));
        }
    }
    None
}

/// Which transactional id each producer id belongs to, from the transaction log below the broker folder `broker`.
///
/// # Errors
/// The folder cannot be read.
pub fn transactional_ids(broker: &Path) -> std::io::Result<BTreeMap<i64, String>> {
    let mut ids = BTreeMap::new();
    for entry in std::fs::read_dir(broker)?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with("__transaction_state-") {
            continue;
        }
        for batch in batches(&entry.path())?.iter().filter(|batch| batch.marker.is_none()) {
            for (key, value) in records_of(&batch.records) {
                // key: version, length, transactional id; value: version, producer id, …
                if key.len() > 4 && value.len() >= 10 {
                    ids.insert(int(&value[2..10]), String::from_utf8_lossy(&key[4..]).into_owned());
                }
            }
        }
    }
    Ok(ids)
}

/// The transactional batches whose transaction was committed.
#[must_use]
pub fn committed(batches: &[Batch]) -> Vec<&Batch> {
    let mut committed = Vec::new();
    let mut open: BTreeMap<i64, Vec<&Batch>> = BTreeMap::new();
    for batch in batches.iter().filter(|batch| batch.transactional) {
        match batch.marker {
            None => open.entry(batch.producer).or_default().push(batch),
            Some(commit) => {
                let decided = open.remove(&batch.producer).unwrap_or_default();
                if commit {
                    committed.extend(decided);
                }
            }
        }
    }
    committed.sort_by_key(|batch| batch.first);
    committed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of one record without timestamps.
    fn stored(first: u64, producer: i64, attributes: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
        let zigzag = |n: usize| u8::try_from(n * 2).unwrap();
        let mut record = vec![0, 0, 0, zigzag(key.len())];
        record.extend(key);
        record.push(zigzag(value.len()));
        record.extend(value);
        record.push(0);
        record.insert(0, zigzag(record.len()));
        let mut batch = first.to_be_bytes().to_vec();
        batch.extend(u32::try_from(HEADER - 12 + record.len()).unwrap().to_be_bytes());
        batch.extend([0, 0, 0, 0, 2, 0, 0, 0, 0, 0, attributes, 0, 0, 0, 0]);
        batch.extend([0; 16]);
        batch.extend(producer.to_be_bytes());
        batch.extend([0, 3, 0, 0, 0, 0, 0, 0, 0, 1]);
        batch.extend(record);
        batch
    }

    #[test]
    fn committed_batches_are_told_from_aborted_ones_and_their_writers_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let log = [
            stored(0, 7, 0x10, b"k", b"v"),
            stored(1, 8, 0x10, b"k", b"v"),
            stored(2, 7, 0x30, &[0, 0, 0, 0], &[0; 6]),
            stored(3, 8, 0x30, &[0, 0, 0, 1], &[0; 6]),
            stored(4, -1, 0, b"plain", b"v"),
        ];
        let mut bytes = log.concat();
        bytes.extend([0; 30]); // a preallocated or half-written tail
        std::fs::write(folder.path().join("0.log"), bytes).unwrap();
        let found = batches(folder.path()).unwrap();
        assert_eq!(
            found.iter().map(|b| (b.first, b.producer, b.epoch)).collect::<Vec<_>>()[3..],
            [(3, 8, 3), (4, -1, 3)]
        );
        assert_eq!(committed(&found).iter().map(|b| b.first).collect::<Vec<_>>(), [1]);

        let state = folder.path().join("__transaction_state-0");
        std::fs::create_dir(&state).unwrap();
        let mut key = vec![0, 0, 0, 3];
        key.extend(b"job");
        let mut value = vec![0, 1];
        value.extend(7_i64.to_be_bytes());
        std::fs::write(state.join("0.log"), stored(0, -1, 0, &key, &value)).unwrap();
        assert_eq!(transactional_ids(folder.path()).unwrap(), BTreeMap::from([(7, "job".to_owned())]));
    }
}
