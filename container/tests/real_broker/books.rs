//! The books of a storm: every message that was ever committed to an input, also of topics that are gone, and what the
//! example `tally` must have made of them.

use std::collections::{BTreeMap, BTreeSet};

use task_api::system::{Isolation, Message, SystemAdmin, TopicPartition};
use task_core::record::Checkpoint;

use crate::job::{PARTITIONS, patiently};
use crate::operator::Operator;

/// A store's rows.
pub type Counts = BTreeMap<String, i64>;
/// By key, what is sent: the message's id and the count.
pub type Sent = BTreeMap<String, Vec<(u64, i64)>>;

/// A committed message.
struct Entry {
    offset: u64,
    id: u64,
    key: String,
    drop: bool,
}

/// What a topic held under one id, by partition.
struct Life {
    topic_id: String,
    entries: Vec<Vec<Entry>>,
}

/// One input.
pub struct Account {
    pub stream: &'static str,
    pub topic: String,
    lives: Vec<Life>,
    /// By partition of the last life: everything below is in the books.
    read_to: Vec<u64>,
}

impl Account {
    pub fn new(stream: &'static str, topic: String, id: String) -> Account {
        let mut account = Account { stream, topic, lives: Vec::new(), read_to: Vec::new() };
        account.begin(id);
        account
    }

    /// The topic is another one from now on.
    pub fn begin(&mut self, topic_id: String) {
        let entries = (0..PARTITIONS).map(|_| Vec::new()).collect();
        self.lives.push(Life { topic_id, entries });
        self.read_to = vec![0; PARTITIONS as usize];
    }

    /// Enters what was committed since.
    pub fn read(&mut self, operator: &Operator) {
        let Life { entries, .. } = self.lives.last_mut().expect("one life");
        for (partition, (entries, read_to)) in entries.iter_mut().zip(&mut self.read_to).enumerate() {
            let at = TopicPartition { topic: self.topic.clone(), partition: partition as i32 };
            let (_, stable, _) = operator.ends(&self.topic, at.partition);
            if stable <= *read_to {
                continue;
            }
            let known = entries.len();
            patiently(|| {
                entries.truncate(known);
                let mut take = |messages: &[Message<'_>]| {
                    entries.extend(messages.iter().map(Entry::of));
                    Ok(())
                };
                operator.admin.read_range(&at, *read_to, stable, Isolation::ReadCommitted, &mut take)
            });
            *read_to = stable;
        }
    }

    /// Whether the last message of the partition was processed, as this checkpoint says.
    pub fn is_done(&self, checkpoint: Option<&Checkpoint>, partition: i32) -> bool {
        let life = self.lives.last().expect("one life");
        let Some(last) = life.entries[partition as usize].last() else { return true };
        self.position(checkpoint, partition).is_some_and(|(id, at)| id == life.topic_id && at > last.offset)
    }

    /// Where a checkpoint is, with the id of its topic.
    pub fn position(&self, checkpoint: Option<&Checkpoint>, partition: i32) -> Option<(String, u64)> {
        let checkpoint = checkpoint?;
        let at = checkpoint.offset(self.stream, partition)?.parse().expect("Kafka's are numbers");
        Some((checkpoint.topics.get(self.stream).expect("with each offset").clone(), at))
    }

    /// In their order, those before the checkpoint; all of them without one.
    fn entries(&self, partition: i32, until: Option<&Checkpoint>) -> impl Iterator<Item = &Entry> {
        let until = until.map(|checkpoint| self.position(Some(checkpoint), partition));
        let life_of = |id: &str| self.lives.iter().position(|life| life.topic_id == *id).expect("a known id");
        let until = until.map(|at| at.map_or((0, 0), |(id, offset)| (life_of(&id), offset)));
        let of_lives = self.lives.iter().enumerate();
        let entries = of_lives.flat_map(move |(n, life)| {
            life.entries[partition as usize].iter().map(move |entry| ((n, entry.offset), entry))
        });
        entries.filter(move |(at, _)| until.is_none_or(|until| *at < until)).map(|(_, entry)| entry)
    }
}

impl Entry {
    fn of(message: &Message<'_>) -> Entry {
        let text =
            |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("text");
        let value = text(message.value);
        let (word, id) = value.split_once(' ').expect("two words");
        let (id, drop) = (id.parse().expect("an id"), word == "drop");
        Entry { offset: message.offset, id, key: text(message.key), drop }
    }
}

/// The store of a partition's task at a checkpoint, or at the end. Inputs share no keys, so their order does not matter.
pub fn counts(accounts: &[Account], partition: i32, until: Option<&Checkpoint>) -> Counts {
    let mut counts = Counts::new();
    for entry in accounts.iter().flat_map(|account| account.entries(partition, until)) {
        if entry.drop {
            counts.remove(&entry.key);
        } else {
            *counts.entry(entry.key.clone()).or_default() += 1;
        }
    }
    counts
}

/// What was to be sent, at the end.
pub fn outputs(accounts: &[Account]) -> Sent {
    let mut sent = Sent::new();
    for partition in 0..PARTITIONS {
        let mut counts = Counts::new();
        for entry in accounts.iter().flat_map(|account| account.entries(partition, None)) {
            let count = counts.entry(entry.key.clone()).or_default();
            *count = if entry.drop { 0 } else { *count + 1 };
            sent.entry(entry.key.clone()).or_default().push((entry.id, *count));
        }
    }
    sent
}

/// What was sent, of the rows of a topic; `once`: repetitions are left out.
pub fn sent(rows: impl Iterator<Item = (String, String)>, once: bool) -> Sent {
    let mut sent = Sent::new();
    for (key, value) in rows {
        let (id, count) = value.split_once(' ').expect("two words");
        let pair = (id.parse().expect("an id"), count.parse().expect("a count"));
        sent.entry(key).or_default().push(pair);
    }
    if once {
        for pairs in sent.values_mut() {
            let mut seen = BTreeSet::new();
            pairs.retain(|pair| seen.insert(*pair));
        }
    }
    sent
}

/// Asserts that two maps are the same, and tells the first keys that are not.
pub fn assert_same<V: PartialEq + std::fmt::Debug>(
    found: &BTreeMap<String, V>,
    expected: &BTreeMap<String, V>,
    what: &str,
) {
    let keys: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let differ: Vec<_> = keys.into_iter().filter(|key| found.get(*key) != expected.get(*key)).collect();
    let shown: Vec<String> = differ
        .iter()
        .take(5)
        .map(|key| format!("{key}: {:?}, expected {:?}", found.get(*key), expected.get(*key)))
        .collect();
    assert!(differ.is_empty(), "{what} differs in {} keys:\n{}", differ.len(), shown.join("\n"));
}
