//! The proof that old containers are fenced, from Kafka's own files: who wrote what, and where a newer one's restore
//! ended.

use std::collections::{BTreeMap, BTreeSet};

use task_core::record::{Record, decode};
use types::Incarnation;

use crate::brokers::Brokers;
use crate::job::Job;
use crate::log_segment::{self, Batch};
use crate::topic::{self, Topics};

/// How much a proof rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// Incarnations that have restored and committed.
    pub incarnations: usize,
    /// Committed batches of incarnations that have a newer one.
    pub batches: usize,
}

/// Who wrote a batch, from the transactional id `<name>-<id>-<slot>-<thread>-<incarnation>`.
fn incarnation(batch: &Batch, writers: &BTreeMap<i64, String>) -> Incarnation {
    let id = writers.get(&batch.producer).unwrap_or_else(|| panic!("an unknown producer: {batch:?}"));
    let mut words = id.rsplitn(3, '-');
    let (seq, epoch) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    format!("{epoch}-{seq}").parse().unwrap_or_else(|e| panic!("{id}: {e}"))
}

/// Asserts that no incarnation of `job`, which has the store `counts`, has committed anything at or beyond the
/// watermarks of a newer one's first checkpoint.
///
/// # Panics
/// One has.
#[must_use]
pub fn assert_fenced(job: &Job, topics: &Topics, brokers: &Brokers) -> Judged {
    let writers = log_segment::transactional_ids(&brokers.data.join("k1")).expect("broker 1's files");
    let (checkpoints, changelog) = (job.checkpoints(), job.changelog("counts"));
    let mut firsts = Vec::new();
    for row in topics.read(&checkpoints) {
        if let Some(Record::Checkpoint(_, checkpoint)) =
            decode(Some(row.key.as_bytes()), row.value.as_deref())
        {
            firsts.extend(checkpoint.restored.map(|ends| (row.partition, checkpoint.incarnation, ends)));
        }
    }
    let mut judged = 0;
    for partition in 0..topics.partitions(&checkpoints) {
        for name in [&checkpoints, &changelog] {
            let folder = topic::log_folder(brokers, name, partition);
            let batches = log_segment::batches(&folder).expect("broker 1's files");
            let committed: Vec<(Incarnation, u64)> = log_segment::committed(&batches)
                .iter()
                .map(|batch| (incarnation(batch, &writers), batch.last))
                .collect();
            for (_, newer, ends) in firsts.iter().filter(|(at, ..)| *at == partition) {
                let end = if *name == checkpoints { ends.checkpoint } else { ends.changelogs["counts"] };
                judged += committed.iter().filter(|(older, _)| older < newer).count();
                let late = committed.iter().find(|(older, last)| older < newer && *last >= end);
                assert_eq!(late, None, "{name}-{partition}: beyond the restore of {newer} to {end}");
            }
        }
    }
    let incarnations: BTreeSet<_> = firsts.iter().map(|(_, incarnation, _)| incarnation).collect();
    Judged { incarnations: incarnations.len(), batches: judged }
}
