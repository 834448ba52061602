//! What the checkpoint topic (and the coordinator topic, for owners) holds: owner records and checkpoints, as JSON.
//!
//! Keys are written field by field in a fixed order, so that one owner or task has one key and compaction works.
//! Decoding never panics and takes anything it does not know for a foreign record, which is skipped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use task_api::system::LogEnd;
use types::{Incarnation, TaskName};

/// Says which transactional id writes for a partition; it stands until its tombstone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerRecord {
    /// The owner's incarnation: the first thing that owners are compared by.
    pub incarnation: Incarnation,
    /// The owner's transactional id, never used by another.
    pub id: String,
    /// Its slot, for people; none for an application master.
    pub slot: Option<u32>,
    /// Its task thread, for people; none for an application master.
    pub thread: Option<u32>,
}

/// How far a task has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// The next offset to read, by stream (`system.stream`) and partition number.
    pub offsets: BTreeMap<String, BTreeMap<String, String>>,
    /// The id of each stream's topic that the offsets are of: a topic that was made again has another.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<String, String>,
    /// How far of each partition messages were read, with the leader epoch of the last one: an input that was cut below
    /// is told from one that was not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub read_to: BTreeMap<String, BTreeMap<String, LogEnd>>,
    /// Where its writer's restore ended; only in its first checkpoint of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// With the incarnation it names one commit: each checkpoint of a task has a higher one than those before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub commit: u64,
    /// What is known of the task's changelogs, by store: what a later start must find there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changelogs: BTreeMap<String, LogMemory>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What is remembered of a changelog partition.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogMemory {
    /// The topic's name.
    pub topic: String,
    /// Its id: a topic that was made again has another.
    pub id: String,
    /// Its first offset.
    pub start: u64,
    /// It has come at least as far as this.
    pub end: u64,
    /// The leader epoch at `end`; none where nobody told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_epoch: Option<i32>,
}

impl LogMemory {
    /// How far it had come.
    #[must_use]
    pub fn reached(&self) -> LogEnd {
        LogEnd { offset: self.end, leader_epoch: self.leader_epoch }
    }
}

/// The watermarks that a restore went up to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Restored {
    /// Of the task's checkpoint partition.
    pub checkpoint: u64,
    /// Of its changelog partitions, by store.
    pub changelogs: BTreeMap<String, u64>,
}

impl Checkpoint {
    /// Which commit it is of: later ones are higher.
    #[must_use]
    pub fn number(&self) -> (Incarnation, u64) {
        (self.incarnation, self.commit)
    }
    /// The next offset to read of a partition of a stream.
    #[must_use]
    pub fn offset(&self, stream: &str, partition: i32) -> Option<&str> {
        self.offsets.get(stream)?.get(&partition.to_string()).map(String::as_str)
    }
    /// Sets the next offset to read, a place that was chosen. How far messages were read is forgotten: it says nothing of
    /// that place.
    pub fn set_offset(&mut self, stream: &str, partition: i32, offset: String) {
        put(&mut self.offsets, stream, partition, offset);
        if let Some(partitions) = self.read_to.get_mut(stream) {
            partitions.remove(&partition.to_string());
        }
        self.read_to.retain(|_, partitions| !partitions.is_empty());
    }
    /// Sets the next offset to read after messages were read up to `read_to`; none if they were, but are not processed
    /// yet: then what is known of those before stays.
    pub fn advance(&mut self, stream: &str, partition: i32, offset: String, read_to: Option<LogEnd>) {
        put(&mut self.offsets, stream, partition, offset);
        if let Some(read_to) = read_to.filter(|read_to| read_to.leader_epoch.is_some()) {
            put(&mut self.read_to, stream, partition, read_to);
        }
    }
    /// How far messages of a partition of a stream were read.
    #[must_use]
    pub fn read_to(&self, stream: &str, partition: i32) -> Option<LogEnd> {
        self.read_to.get(stream)?.get(&partition.to_string()).copied()
    }
}

fn put<V>(of: &mut BTreeMap<String, BTreeMap<String, V>>, stream: &str, partition: i32, value: V) {
    match of.get_mut(stream) {
        Some(partitions) => {
            partitions.insert(partition.to_string(), value);
        }
        None => {
            of.insert(stream.to_owned(), BTreeMap::from([(partition.to_string(), value)]));
        }
    }
}

/// One record of the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An owner of the partition.
    Owner(OwnerRecord),
    /// The owner with this id is fenced: its tombstone.
    OwnerGone(String),
    /// A task's checkpoint.
    Checkpoint(TaskName, Checkpoint),
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Key {
    Owner { id: String },
    Checkpoint { task: TaskName },
}

#[derive(Serialize, Deserialize)]
struct OwnerValue {
    incarnation: Incarnation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slot: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thread: Option<u32>,
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts, numbers and maps with text keys always serialise")
}

/// The key of the owner record of `id`; its tombstone has the same.
#[must_use]
pub fn owner_key(id: &str) -> Vec<u8> {
    json(&Key::Owner { id: id.to_owned() })
}

/// The value of an owner record.
#[must_use]
pub fn owner_value(owner: &OwnerRecord) -> Vec<u8> {
    json(&OwnerValue { incarnation: owner.incarnation, slot: owner.slot, thread: owner.thread })
}

/// The key of a task's checkpoint.
#[must_use]
pub fn checkpoint_key(task: &TaskName) -> Vec<u8> {
    json(&Key::Checkpoint { task: task.clone() })
}

/// The value of a checkpoint.
#[must_use]
pub fn checkpoint_value(checkpoint: &Checkpoint) -> Vec<u8> {
    json(checkpoint)
}

/// What a record says; none if it is not ours or not readable.
#[must_use]
pub fn decode(key: Option<&[u8]>, value: Option<&[u8]>) -> Option<Record> {
    match (serde_json::from_slice(key?).ok()?, value) {
        (Key::Owner { id }, None) => Some(Record::OwnerGone(id)),
        (Key::Owner { id }, Some(value)) => {
            let OwnerValue { incarnation, slot, thread } = serde_json::from_slice(value).ok()?;
            Some(Record::Owner(OwnerRecord { incarnation, id, slot, thread }))
        }
        (Key::Checkpoint { .. }, None) => None,
        (Key::Checkpoint { task }, Some(value)) => {
            Some(Record::Checkpoint(task, serde_json::from_slice(value).ok()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::Epoch;

    use super::*;

    fn incarnation(epoch: u64, seq: u64) -> Incarnation {
        Incarnation { epoch: Epoch(epoch), seq }
    }

    #[test]
    fn records_have_the_documented_bytes() {
        let owner = OwnerRecord {
            incarnation: incarnation(17, 3),
            id: "wordcount-1-0-0-17-3".into(),
            slot: Some(0),
            thread: Some(0),
        };
        assert_eq!(owner_key(&owner.id), br#"{"type":"owner","id":"wordcount-1-0-0-17-3"}"#);
        assert_eq!(owner_value(&owner), br#"{"incarnation":"17-3","slot":0,"thread":0}"#);
        assert_eq!(checkpoint_key(&"Partition 0".into()), br#"{"type":"checkpoint","task":"Partition 0"}"#);
        let mut checkpoint = Checkpoint { incarnation: incarnation(17, 3), ..Checkpoint::default() };
        checkpoint.set_offset("kafka.flights", 0, "123".into());
        assert_eq!(
            checkpoint_value(&checkpoint),
            br#"{"incarnation":"17-3","offsets":{"kafka.flights":{"0":"123"}}}"#
        );
        checkpoint.restored =
            Some(Restored { checkpoint: 5, changelogs: BTreeMap::from([("seen".to_owned(), 9)]) });
        assert_eq!(
            checkpoint_value(&checkpoint),
            br#"{"incarnation":"17-3","offsets":{"kafka.flights":{"0":"123"}},"restored":{"checkpoint":5,"changelogs":{"seen":9}}}"#
        );
    }

    #[test]
    fn checkpoints_of_earlier_versions_are_read_and_what_is_not_known_is_not_written() {
        let old = br#"{"incarnation":"17-3","offsets":{"kafka.flights":{"0":"123"}}}"#;
        let Some(Record::Checkpoint(_, mut checkpoint)) =
            decode(Some(&checkpoint_key(&"t".into())), Some(old))
        else {
            panic!("it is a checkpoint")
        };
        assert!(checkpoint.changelogs.is_empty() && checkpoint.number() == (incarnation(17, 3), 0));
        assert_eq!(checkpoint_value(&checkpoint), old);
        checkpoint.commit = 7;
        let memory = LogMemory { topic: "log".into(), id: "a".into(), start: 1, end: 9, leader_epoch: None };
        checkpoint.changelogs.insert("seen".into(), memory);
        assert_eq!(
            String::from_utf8(checkpoint_value(&checkpoint)).expect("text"),
            r#"{"incarnation":"17-3","offsets":{"kafka.flights":{"0":"123"}},"commit":7,"changelogs":{"seen":{"topic":"log","id":"a","start":1,"end":9}}}"#
        );
    }

    #[test]
    fn a_tombstone_of_an_owner_is_its_end_and_one_of_a_checkpoint_is_nothing() {
        assert_eq!(decode(Some(&owner_key("a")), None), Some(Record::OwnerGone("a".into())));
        assert_eq!(decode(Some(&checkpoint_key(&"t".into())), None), None);
        assert_eq!(decode(None, Some(b"{}")), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            id in ".*", epoch: u64, seq: u64, slot: Option<u32>, task in ".*",
            offsets in proptest::collection::vec((".*", 0..64i32, ".*"), 0..6),
            restored in proptest::option::of((any::<u64>(), proptest::collection::btree_map(".*", any::<u64>(), 0..4))),
        ) {
            let owner = OwnerRecord { incarnation: incarnation(epoch, seq), id, slot, thread: slot };
            prop_assert_eq!(
                decode(Some(&owner_key(&owner.id)), Some(&owner_value(&owner))),
                Some(Record::Owner(owner.clone()))
            );
            let mut checkpoint = Checkpoint { incarnation: owner.incarnation, ..Checkpoint::default() };
            for (stream, partition, offset) in offsets {
                checkpoint.set_offset(&stream, partition, offset.clone());
                prop_assert_eq!(checkpoint.offset(&stream, partition), Some(offset.as_str()));
            }
            checkpoint.restored = restored.map(|(checkpoint, changelogs)| Restored { checkpoint, changelogs });
            let task = TaskName(task);
            prop_assert_eq!(
                decode(Some(&checkpoint_key(&task)), Some(&checkpoint_value(&checkpoint))),
                Some(Record::Checkpoint(task, checkpoint))
            );
        }

        #[test]
        fn damaged_records_are_read_or_skipped_without_a_panic(
            at in any::<prop::sample::Index>(), byte: u8, in_key: bool, is_owner: bool,
        ) {
            let owner = OwnerRecord {
                incarnation: incarnation(17, 3), id: "count-1-0-0-17-3".into(), slot: Some(0), thread: Some(1),
            };
            let mut checkpoint = Checkpoint { incarnation: incarnation(17, 3), ..Checkpoint::default() };
            checkpoint.set_offset("kafka.flights", 0, "123".into());
            checkpoint.restored = Some(Restored { checkpoint: 5, changelogs: BTreeMap::new() });
            let (mut key, mut value) = if is_owner {
                (owner_key(&owner.id), owner_value(&owner))
            } else {
                (checkpoint_key(&"Partition 0".into()), checkpoint_value(&checkpoint))
            };
            let damaged = if in_key { &mut key } else { &mut value };
            let at = at.index(damaged.len());
            damaged[at] = byte;
            if let Some(Record::Checkpoint(_, checkpoint)) = decode(Some(&key), Some(&value)) {
                // An offset is text that only its system reads.
                let _ = checkpoint.offset("kafka.flights", 0);
            }
        }

        #[test]
        fn foreign_bytes_are_skipped_without_a_panic(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..64)),
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..64)),
            cut in 0usize..80,
        ) {
            prop_assert_eq!(decode(key.as_deref(), value.as_deref()), None);
            let whole = checkpoint_value(&Checkpoint::default());
            let part = &whole[..cut.min(whole.len() - 1)];
            prop_assert_eq!(decode(Some(&checkpoint_key(&"t".into())), Some(part)), None);
        }
    }
}
