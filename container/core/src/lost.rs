//! Whether what a task's state rests on is still there: its last checkpoint, and the changelogs that the checkpoint
//! remembers; and what follows if it is not.
//!
//! State is lost when a changelog is another one, or shorter, than the checkpoint says, and when there is no checkpoint,
//! or an older one, although this disk or the changelogs show that there was. Nothing is changed before a decision is
//! made here: the copy on disk may be the last there is.
//!
//! That copy is all that a flush has left: the rows of all stores with a changelog, and a [`LocalMemory`], which says of
//! which commit they are. Whatever writes rows takes the memory away first and puts the new one there last, so a memory
//! vouches for every row.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use types::{Delivery, StateLost, TaskName};

use crate::record::{Checkpoint, LogMemory};
use crate::restore::Changelog;

/// Which commit the rows on a disk are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalMemory {
    /// The job, so that a folder of another one is told from its own.
    pub job: String,
    /// The task.
    pub task: TaskName,
    /// The checkpoint of that commit.
    pub checkpoint: Checkpoint,
}

impl LocalMemory {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts, numbers and maps with text keys always serialise")
    }
    /// Reads it; none if it is not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<LocalMemory> {
        serde_json::from_slice(bytes).ok()
    }
}

/// What happened to a changelog partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// The topic is another one of the same name.
    Recreated {
        /// The id it had.
        had: String,
        /// The id it has.
        has: String,
    },
    /// A broker became its leader that did not have everything, and it has grown again since.
    Cut {
        /// It had come to there at least.
        had: u64,
    },
    /// It ends before what was committed.
    Shorter {
        /// It had come to there at least.
        had: u64,
        /// Its end.
        has: u64,
    },
    /// It begins later than it did.
    Truncated {
        /// Its first offset as it was.
        had: u64,
        /// Its first offset.
        has: u64,
    },
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::Recreated { had, has } => write!(f, "was made again: its id was {had} and is {has} now"),
            Loss::Cut { had } => write!(
                f,
                "was cut before {had}, up to where it was committed, and has grown again: a broker became its leader \
                 that did not have everything"
            ),
            Loss::Shorter { had, has } => write!(f, "ends at {has} now, and was committed up to {had}"),
            Loss::Truncated { had, has } => write!(f, "begins at {has} now, and began at {had}"),
        }
    }
}

/// What was lost of a changelog since its memory. None too if nothing is remembered of it, or of another topic: then
/// the store is a new one, or the job file names another topic for it. A changelog `ages` if brokers may delete its
/// rows: then it may begin anywhere. Compaction alone never moves the first offset.
#[must_use]
pub fn lost(memory: Option<&LogMemory>, topic: &str, now: &Changelog, ages: bool) -> Option<Loss> {
    let memory = memory.filter(|memory| memory.topic == topic)?;
    if memory.id != now.topic_id {
        Some(Loss::Recreated { had: memory.id.clone(), has: now.topic_id.clone() })
    } else if now.high < memory.end {
        Some(Loss::Shorter { had: memory.end, has: now.high })
    } else if now.was_cut {
        Some(Loss::Cut { had: memory.end })
    } else if now.low > memory.start && !ages {
        Some(Loss::Truncated { had: memory.start, has: now.low })
    } else {
        None
    }
}

/// A store with a changelog, as it is found.
#[derive(Debug, Clone)]
pub struct Store<'a> {
    /// Its name.
    pub name: &'a str,
    /// What of its changelog is lost.
    pub loss: Option<Loss>,
    /// What the job file says to that.
    pub policy: StateLost,
    /// Whether this disk has rows of it, with an offsets row.
    pub has_copy: bool,
}

/// A task, as it is found.
#[derive(Debug, Clone)]
pub struct Found<'a> {
    /// Its stores with changelogs.
    pub stores: Vec<Store<'a>>,
    /// Its last checkpoint.
    pub checkpoint: Option<&'a Checkpoint>,
    /// The one that this disk is of.
    pub copy: Option<&'a Checkpoint>,
    /// There are rows, here or in a changelog, that only a commit can have left.
    pub has_rows: bool,
    /// The job's delivery: outputs may be repeated, or not.
    pub delivery: Delivery,
}

/// What a lost store is filled from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The rows on this disk.
    Copy,
    /// Nothing: it begins without rows.
    Nothing,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// All is there.
    Whole,
    /// These changelogs are written anew, from there; if `back`, the task goes back to the positions of the copy.
    Mend {
        /// By store.
        stores: BTreeMap<String, From>,
        /// Whether positions are those of the copy.
        back: bool,
    },
    /// The container must not start.
    Refuse(Refusal),
}

/// What is lost, and why nothing mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The checkpoint is: the numbers of the one found, if there is one, and of the copy, if there is one.
    pub checkpoint: bool,
    /// Stores whose changelogs are.
    pub stores: Vec<(String, Loss)>,
    /// Why the copy on this disk is of no use where the job file asks for it.
    pub no_copy: Option<&'static str>,
}

/// Decides.
#[must_use]
pub fn decide(found: &Found<'_>) -> Decision {
    let checkpoint = match (found.checkpoint, found.copy) {
        (None, None) => found.has_rows,
        (None, Some(_)) => true,
        (Some(has), Some(copy)) => copy.number() > has.number(),
        (Some(_), None) => false,
    };
    let losses = found.stores.iter().filter_map(|s| Some((s.name.to_owned(), s.loss.clone()?)));
    let stores: Vec<(String, Loss)> = losses.collect();
    if !checkpoint && stores.is_empty() {
        return Decision::Whole;
    }
    let refuse = |no_copy| Decision::Refuse(Refusal { checkpoint, stores: stores.clone(), no_copy });
    // A lost checkpoint concerns every store: without it nobody knows which rows belong to which position.
    let concerned = || found.stores.iter().filter(|s| checkpoint || s.loss.is_some());
    let says = |policy| concerned().any(|s| s.policy == policy);
    if says(StateLost::Fail) || checkpoint && says(StateLost::Local) && says(StateLost::Empty) {
        return refuse(None);
    }
    let from = |stores: &mut dyn Iterator<Item = &Store<'_>>| -> BTreeMap<String, From> {
        let of = |s: &Store<'_>| if s.policy == StateLost::Local { From::Copy } else { From::Nothing };
        stores.map(|s| (s.name.to_owned(), of(s))).collect()
    };
    if !says(StateLost::Local) {
        return Decision::Mend { stores: from(&mut concerned()), back: false };
    }
    let Some(copy) = found.copy else { return refuse(Some("this disk has no whole copy")) };
    if concerned().any(|s| s.policy == StateLost::Local && !s.has_copy) {
        return refuse(Some("this disk has no copy of it"));
    }
    if !checkpoint && found.checkpoint.is_some_and(|last| last.number() == copy.number()) {
        return Decision::Mend { stores: from(&mut concerned()), back: false };
    }
    // All of the task goes back to the copy, so all of it must be there.
    if found.stores.iter().any(|s| !s.has_copy) || says(StateLost::Empty) {
        return refuse(Some(
            "this disk has an older copy, and not of all stores: the task cannot go back to it",
        ));
    }
    // Without a checkpoint nothing newer than the copy is known.
    if found.delivery == Delivery::ExactlyOnce && !checkpoint {
        return refuse(Some("this disk has an older copy: going back to it would repeat outputs"));
    }
    let stores = found.stores.iter().map(|s| (s.name.to_owned(), From::Copy)).collect();
    Decision::Mend { stores, back: true }
}

#[cfg(test)]
mod tests {
    use types::{Epoch, Incarnation};

    use super::*;

    fn memory() -> LogMemory {
        LogMemory { topic: "log".into(), id: "a".into(), start: 10, end: 100, leader_epoch: Some(3) }
    }
    fn log(id: &str, low: u64, high: u64) -> Changelog {
        Changelog { topic_id: id.into(), low, high, keeps_tombstones_ms: 1_000, was_cut: false }
    }

    #[test]
    fn a_changelog_is_lost_if_it_is_another_one_or_shorter_or_begins_later() {
        let lost = |now: &Changelog| lost(Some(&memory()), "log", now, false);
        assert_eq!(lost(&log("a", 10, 100)), None);
        assert_eq!(lost(&log("a", 10, 5_000)), None, "what follows a flush is not remembered");
        assert_eq!(lost(&log("b", 0, 500)), Some(Loss::Recreated { had: "a".into(), has: "b".into() }));
        assert_eq!(lost(&log("a", 10, 99)), Some(Loss::Shorter { had: 100, has: 99 }));
        assert_eq!(lost(&log("a", 11, 100)), Some(Loss::Truncated { had: 10, has: 11 }));
        let cut = |log: Changelog| lost(&Changelog { was_cut: true, ..log });
        assert_eq!(cut(log("a", 10, 500)), Some(Loss::Cut { had: 100 }));
        assert_eq!(cut(log("a", 10, 99)), Some(Loss::Shorter { had: 100, has: 99 }), "as it is seen");
    }

    #[test]
    fn what_is_not_remembered_or_may_be_deleted_is_not_lost() {
        assert_eq!(lost(None, "log", &log("b", 5, 5), false), None, "a new store, or an earlier version");
        assert_eq!(
            lost(Some(&memory()), "other", &log("b", 0, 0), false),
            None,
            "the job file says otherwise"
        );
        assert_eq!(lost(Some(&memory()), "log", &log("a", 100, 100), true), None, "rows that end");
        assert!(lost(Some(&memory()), "log", &log("a", 0, 0), true).is_some(), "not like that");
    }

    fn at(seq: u64, commit: u64) -> Checkpoint {
        Checkpoint { incarnation: Incarnation { epoch: Epoch(1), seq }, commit, ..Checkpoint::default() }
    }

    struct Case {
        checkpoint: Option<Checkpoint>,
        copy: Option<Checkpoint>,
        has_rows: bool,
        delivery: Delivery,
        /// By store: whether its changelog is lost, the policy, whether there is a copy.
        stores: Vec<(bool, StateLost, bool)>,
    }

    impl Case {
        fn new(
            checkpoint: Option<Checkpoint>,
            copy: Option<Checkpoint>,
            stores: &[(bool, StateLost, bool)],
        ) -> Case {
            Case {
                checkpoint,
                copy,
                has_rows: false,
                delivery: Delivery::ExactlyOnce,
                stores: stores.to_vec(),
            }
        }
        fn decide(&self) -> Decision {
            let store = |(n, (lost, policy, has_copy)): (usize, &(bool, StateLost, bool))| Store {
                name: ["a", "b"][n],
                loss: lost.then_some(Loss::Shorter { had: 2, has: 1 }),
                policy: *policy,
                has_copy: *has_copy,
            };
            decide(&Found {
                stores: self.stores.iter().enumerate().map(store).collect(),
                checkpoint: self.checkpoint.as_ref(),
                copy: self.copy.as_ref(),
                has_rows: self.has_rows,
                delivery: self.delivery,
            })
        }
        fn refused(&self) -> Refusal {
            match self.decide() {
                Decision::Refuse(refusal) => refusal,
                other => panic!("{other:?}"),
            }
        }
        fn mended(&self) -> (Vec<(&'static str, From)>, bool) {
            let Decision::Mend { stores, back } = self.decide() else { panic!("{:?}", self.decide()) };
            let name = |name: &str| if name == "a" { "a" } else { "b" };
            (stores.into_iter().map(|(n, from)| (name(&n), from)).collect(), back)
        }
    }

    use StateLost::{Empty, Fail, Local};

    #[test]
    fn a_first_start_and_a_start_after_a_crash_find_all_there() {
        assert_eq!(Case::new(None, None, &[(false, Fail, false)]).decide(), Decision::Whole);
        assert_eq!(Case::new(Some(at(1, 9)), None, &[(false, Fail, false)]).decide(), Decision::Whole);
        // The copy is older, as after a crash, or when the task ran elsewhere.
        assert_eq!(
            Case::new(Some(at(2, 9)), Some(at(1, 30)), &[(false, Fail, true)]).decide(),
            Decision::Whole
        );
        assert_eq!(
            Case::new(Some(at(2, 9)), Some(at(2, 9)), &[(false, Fail, true)]).decide(),
            Decision::Whole
        );
    }

    #[test]
    fn a_checkpoint_that_is_gone_or_older_than_the_copy_is_lost() {
        for (checkpoint, copy, has_rows) in
            [(None, Some(at(1, 1)), false), (None, None, true), (Some(at(1, 8)), Some(at(1, 9)), true)]
        {
            let case = Case { has_rows, ..Case::new(checkpoint, copy, &[(false, Fail, true)]) };
            assert_eq!(case.refused(), Refusal { checkpoint: true, stores: Vec::new(), no_copy: None });
        }
        let lost = |policies: &[(bool, StateLost, bool)]| Case::new(None, Some(at(1, 1)), policies);
        assert_eq!(lost(&[(false, Local, true)]).mended(), (vec![("a", From::Copy)], true));
        assert_eq!(lost(&[(true, Empty, true)]).mended(), (vec![("a", From::Nothing)], false));
        assert!(lost(&[(false, Local, true), (false, Empty, true)]).refused().checkpoint, "what of it?");
        assert!(lost(&[(false, Local, true), (false, Fail, true)]).refused().checkpoint);
        assert!(lost(&[(false, Local, true), (false, Local, false)]).refused().no_copy.is_some());
    }

    #[test]
    fn a_lost_changelog_is_filled_from_a_copy_of_the_last_commit_or_begins_empty() {
        let last = |policies: &[(bool, StateLost, bool)]| Case::new(Some(at(1, 9)), Some(at(1, 9)), policies);
        let refusal = last(&[(true, Fail, true), (false, Local, true)]).refused();
        assert_eq!((refusal.checkpoint, refusal.stores.len(), refusal.no_copy), (false, 1, None));
        assert_eq!(
            last(&[(true, Local, true), (false, Fail, true)]).mended(),
            (vec![("a", From::Copy)], false)
        );
        assert_eq!(
            last(&[(true, Local, true), (true, Empty, false)]).mended(),
            (vec![("a", From::Copy), ("b", From::Nothing)], false)
        );
        assert!(last(&[(true, Local, false)]).refused().no_copy.is_some());
        let elsewhere = Case::new(Some(at(1, 9)), None, &[(true, Local, true)]);
        assert!(elsewhere.refused().no_copy.is_some());
    }

    #[test]
    fn to_an_older_copy_the_whole_task_goes_back_unless_outputs_would_be_repeated() {
        let old = |policies: &[(bool, StateLost, bool)]| Case {
            delivery: Delivery::AtLeastOnce,
            ..Case::new(Some(at(1, 9)), Some(at(1, 7)), policies)
        };
        let all = vec![("a", From::Copy), ("b", From::Copy)];
        assert_eq!(old(&[(true, Local, true), (false, Fail, true)]).mended(), (all, true));
        assert!(
            old(&[(true, Local, true), (false, Fail, false)]).refused().no_copy.is_some(),
            "one in memory"
        );
        assert!(old(&[(true, Local, true), (true, Empty, true)]).refused().no_copy.is_some());
        let exactly = Case { delivery: Delivery::ExactlyOnce, ..old(&[(true, Local, true)]) };
        assert!(exactly.refused().no_copy.is_some());
    }
}
