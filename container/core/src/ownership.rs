//! Who owns a task: the start order by which a container, or an application master on its coordinator topic,
//! becomes the only writer of partitions, as a step machine ([`Claim`]) and the loop that runs it ([`drive`]).
//!
//! ```text
//!  Init ──► Read ──► Append ──► ReadBack ──► Fence ──► Tombstone ──► Watermarks ──► WaitStable ──► Done
//!             │                    │                        │                          ▲      │
//!             ▼                    ▼                        └► Done (to stop a job)    └──────┘ until the
//!        Exit(higher)         Exit(higher)                                              LSO is there
//! ```
//!
//! 1. *Init*: init_transactions on one's own id.
//! 2. *Read*: the owner records of every partition, uncommitted, to a high watermark taken now; one of a higher
//!    owner ends the claim.
//! 3. *Append*: one's own record, plain and acknowledged by all replicas, to every partition.
//! 4. *ReadBack*: the records again, to a high watermark taken after the acknowledgement; a higher one ends the
//!    claim. *Fence*: every lower id, which aborts what it had open, waits for what it was committing, and shuts
//!    it out for ever. *Tombstone*: the record of each fenced id.
//! 5. *Watermarks* of each partition and of those that follow it; *WaitStable* until every transaction below them
//!    is decided. What a restore then reads committed up to there is whole.
//!
//! The log of each partition orders the rivals, so no clock is needed: of two claims one sees the other's record
//! in its read back. Stopping a job is steps 2 to 4 under a fresh incarnation: nothing of it that still sleeps can
//! ever commit. The simulator explores every interleaving of these steps (`tests/explore.rs`), and shows that the
//! order without the read back, or without the fencing, is unsafe.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use task_api::system::{
    Isolation, Message, PlainMessage, SystemAdmin, SystemError, TopicPartition, Watermarks,
};

use types::{Incarnation, JobId, TaskName};

use crate::names;
use crate::record::{self, Checkpoint, Record};

pub use crate::record::OwnerRecord;

/// Partitions that one owner writes together: owner records are on the first, the others follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitions {
    /// The checkpoint (or coordinator) partition.
    pub owners: TopicPartition,
    /// Changelog partitions of the same task.
    pub follow: Vec<TopicPartition>,
}

impl OwnerRecord {
    /// The owner of a task thread: `<name>-<id>-<slot>-<thread>-<incarnation>`.
    #[must_use]
    pub fn of_thread(job: &JobId, slot: u32, thread: u32, incarnation: Incarnation) -> OwnerRecord {
        let id = format!("{job}-{slot}-{thread}-{incarnation}");
        OwnerRecord { incarnation, id, slot: Some(slot), thread: Some(thread) }
    }
    /// An application master on its coordinator topic: `<name>-<id>-am-<incarnation>`.
    #[must_use]
    pub fn of_app_master(job: &JobId, incarnation: Incarnation) -> OwnerRecord {
        OwnerRecord { incarnation, id: format!("{job}-am-{incarnation}"), slot: None, thread: None }
    }
    /// Whoever stops a job under a fresh incarnation: `<name>-<id>-stop-<incarnation>`. Nothing is ever sent with
    /// this id; its record keeps lower owners from starting.
    #[must_use]
    pub fn of_stop(job: &JobId, incarnation: Incarnation) -> OwnerRecord {
        OwnerRecord { incarnation, id: format!("{job}-stop-{incarnation}"), slot: None, thread: None }
    }
    /// Whoever moves start points of a job that does not run: `<name>-<id>-user-<unix ms>`. Only the resource manager
    /// mints incarnations, so it has that of the newest owner there was, and its id ranks above that owner's: a task
    /// thread's begins with a digit here, a stop's with a lower letter. Every later container is above it.
    #[must_use]
    pub fn of_user(job: &JobId, newest: Incarnation, unix_ms: u64) -> OwnerRecord {
        OwnerRecord { incarnation: newest, id: format!("{job}-user-{unix_ms}"), slot: None, thread: None }
    }
}

/// What the claim is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To write: all steps.
    Run,
    /// That nobody of a lower incarnation writes any more: steps 2 to 4.
    Stop,
}

/// The phases of a claim, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Registering one's own transactional id.
    Init,
    /// Reading owner records.
    Read,
    /// Appending one's own.
    Append,
    /// Reading them again.
    ReadBack,
    /// Fencing the lower owners.
    Fence,
    /// Writing their tombstones.
    Tombstone,
    /// Taking high watermarks.
    Watermarks,
    /// Waiting for the last stable offsets.
    WaitStable,
    /// Over: it owns its partitions (or has fenced them all).
    Done,
    /// Over: a higher owner was found.
    Exit,
}

impl Phase {
    /// Its name in logs and in the tests' named points.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Init => "init",
            Phase::Read => "read",
            Phase::Append => "append",
            Phase::ReadBack => "read-back",
            Phase::Fence => "fence",
            Phase::Tombstone => "tombstone",
            Phase::Watermarks => "watermarks",
            Phase::WaitStable => "wait-stable",
            Phase::Done => "done",
            Phase::Exit => "exit",
        }
    }
}

/// One thing to do. `at` is a place in [`Claim::partitions`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// Run init_transactions on one's own id.
    Init,
    /// Read the owner records of partition `at` from offset `from`, uncommitted, to its high watermark of now.
    ReadOwners {
        /// Which.
        at: usize,
        /// From there.
        from: u64,
    },
    /// Append one's own record to partition `at`, plainly, and wait for the acknowledgement.
    AppendOwner {
        /// Which.
        at: usize,
    },
    /// Run init_transactions on this id.
    Fence {
        /// Which.
        id: String,
    },
    /// Append the tombstone of a fenced id to partition `at`.
    Tombstone {
        /// Which.
        at: usize,
        /// Whose.
        id: String,
    },
    /// Take the watermarks of every partition.
    Watermarks,
    /// Take them again, after a short wait.
    WaitStable,
}

/// What a step brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// The records read, in their order, and the offset up to which was read.
    Owners {
        /// Records of other kinds may be among them.
        records: Vec<Record>,
        /// The high watermark.
        until: u64,
    },
    /// By partition: first of the owners' partition, then of those that follow it.
    Watermarks(Vec<Vec<Watermarks>>),
}

/// One claim on all partitions of one writer (a task thread, an application master).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    me: OwnerRecord,
    purpose: Purpose,
    partitions: Vec<Partitions>,
    phase: Phase,
    /// Steps of this phase that are not done; any order, also at once.
    open: Vec<Step>,
    /// Standing owners by partition, as read so far.
    owners: Vec<BTreeMap<String, OwnerRecord>>,
    read_to: Vec<u64>,
    rival: Option<OwnerRecord>,
    /// An owner of another job, whose topic this is.
    foreign: Option<OwnerRecord>,
    high: Vec<Vec<u64>>,
}

impl Claim {
    /// A claim by `me` on `partitions`.
    #[must_use]
    pub fn new(me: OwnerRecord, purpose: Purpose, partitions: Vec<Partitions>) -> Claim {
        let n = partitions.len();
        let mut claim = Claim {
            me,
            purpose,
            partitions,
            phase: Phase::Init,
            open: vec![Step::Init],
            owners: vec![BTreeMap::new(); n],
            read_to: vec![0; n],
            rival: None,
            foreign: None,
            high: Vec::new(),
        };
        if purpose == Purpose::Stop {
            claim.open.clear();
            claim.advance();
        }
        claim
    }

    /// Who claims.
    #[must_use]
    pub fn me(&self) -> &OwnerRecord {
        &self.me
    }
    /// What is claimed.
    #[must_use]
    pub fn partitions(&self) -> &[Partitions] {
        &self.partitions
    }
    /// The phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }
    /// The steps that may be run now, in any order, also at the same time. None when it is over.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.open
    }
    /// The higher owner, once the phase is [`Phase::Exit`].
    #[must_use]
    pub fn rival(&self) -> Option<&OwnerRecord> {
        self.rival.as_ref()
    }
    /// An owner of another job, if one was found; then the phase is [`Phase::Exit`], and nothing was written or fenced.
    #[must_use]
    pub fn foreign(&self) -> Option<&OwnerRecord> {
        self.foreign.as_ref()
    }
    /// The high watermarks of step 5 by partition, the owners' first; empty before, and when stopping a job.
    #[must_use]
    pub fn high_watermarks(&self) -> &[Vec<u64>] {
        &self.high
    }

    /// Takes the answer to `step`. One that is not open, or an answer of the wrong kind, changes nothing.
    pub fn answer(&mut self, step: &Step, answer: Answer) {
        let Some(place) = self.open.iter().position(|open| open == step) else { return };
        match (step, answer) {
            (Step::ReadOwners { at, .. }, Answer::Owners { records, until }) => {
                self.take_owners(*at, records, until);
                if self.phase == Phase::Exit {
                    return;
                }
            }
            (Step::Watermarks, Answer::Watermarks(found)) => {
                self.high = found.iter().map(|of| of.iter().map(|w| w.high).collect()).collect();
                if !self.is_stable(&found) {
                    self.open = vec![Step::WaitStable];
                    self.phase = Phase::WaitStable;
                    return;
                }
                self.phase = Phase::WaitStable;
            }
            (Step::WaitStable, Answer::Watermarks(found)) => {
                if !self.is_stable(&found) {
                    return;
                }
            }
            (
                Step::Init | Step::AppendOwner { .. } | Step::Fence { .. } | Step::Tombstone { .. },
                Answer::Done,
            ) => {}
            (_, Answer::Done | Answer::Owners { .. } | Answer::Watermarks(_)) => return,
        }
        self.open.remove(place);
        if self.open.is_empty() {
            self.advance();
        }
    }

    fn take_owners(&mut self, at: usize, records: Vec<Record>, until: u64) {
        if let Some(owner) = records.iter().find_map(|record| names::of_another_job(&self.me, record)) {
            self.foreign = Some(owner.clone());
            self.phase = Phase::Exit;
            self.open.clear();
            return;
        }
        for record in records {
            match record {
                Record::Owner(owner) if owner.id != self.me.id => {
                    self.owners[at].insert(owner.id.clone(), owner);
                }
                Record::OwnerGone(id) => {
                    self.owners[at].remove(&id);
                }
                Record::Owner(_) | Record::Checkpoint(..) => {}
            }
        }
        self.read_to[at] = until;
        // Incarnations are minted once, so two ids of one incarnation never meet; if they did, the id decides.
        let rank = |owner: &OwnerRecord| (owner.incarnation, owner.id.clone());
        let highest = self.owners[at].values().max_by_key(|owner| rank(owner));
        if let Some(rival) = highest.filter(|rival| rank(rival) > rank(&self.me)) {
            self.rival = Some(rival.clone());
            self.phase = Phase::Exit;
            self.open.clear();
        }
    }

    fn is_stable(&self, found: &[Vec<Watermarks>]) -> bool {
        let ends = |of: &[u64], now: &[Watermarks]| {
            of.len() == now.len() && of.iter().zip(now).all(|(high, now)| now.stable >= *high)
        };
        self.high.len() == found.len() && self.high.iter().zip(found).all(|(of, now)| ends(of, now))
    }

    /// Enters the next phase that has steps.
    fn advance(&mut self) {
        while self.open.is_empty() {
            let all = 0..self.partitions.len();
            (self.phase, self.open) = match self.phase {
                Phase::Init => (Phase::Read, all.map(|at| Step::ReadOwners { at, from: 0 }).collect()),
                Phase::Read => (Phase::Append, all.map(|at| Step::AppendOwner { at }).collect()),
                Phase::Append => {
                    (Phase::ReadBack, all.map(|at| Step::ReadOwners { at, from: self.read_to[at] }).collect())
                }
                Phase::ReadBack => {
                    let lower: BTreeMap<&String, ()> =
                        self.owners.iter().flat_map(|of| of.keys().map(|id| (id, ()))).collect();
                    (Phase::Fence, lower.into_keys().map(|id| Step::Fence { id: id.clone() }).collect())
                }
                Phase::Fence => {
                    let of = |at: usize| {
                        self.owners[at].keys().map(move |id| Step::Tombstone { at, id: id.clone() })
                    };
                    (Phase::Tombstone, all.flat_map(of).collect())
                }
                Phase::Tombstone => match self.purpose {
                    Purpose::Run => (Phase::Watermarks, vec![Step::Watermarks]),
                    Purpose::Stop => (Phase::Done, Vec::new()),
                },
                Phase::Watermarks | Phase::WaitStable => (Phase::Done, Vec::new()),
                Phase::Done | Phase::Exit => return,
            };
        }
    }
}

/// What [`drive`] needs from its process.
pub trait Claimant {
    /// Runs init_transactions on one's own id. Not called when stopping a job.
    ///
    /// # Errors
    /// The system failed.
    fn init(&mut self) -> Result<(), SystemError>;
    /// The committed checkpoints below offset `until` that partition `at` of the claim has, each task's last one last:
    /// found on the way, so that a restore reads on from there.
    fn found(&mut self, at: usize, checkpoints: Vec<(TaskName, Checkpoint)>, until: u64) {
        let _ = (at, checkpoints, until);
    }
    /// A phase begins.
    fn entering(&mut self, phase: Phase) {
        let _ = phase;
    }
    /// Waits a little before something is tried again: `again` counts from 0, `error` is why, none while waiting
    /// for last stable offsets. An error gives up.
    ///
    /// # Errors
    /// The claimant has waited long enough, or is to end.
    fn wait(&mut self, again: u32, error: Option<&SystemError>) -> Result<(), SystemError>;
    /// Calls `run` with each number below `count`, in any order: one after the other, unless the claimant has
    /// threads to do it side by side. Returns when all are done.
    fn all(&mut self, count: usize, run: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(run);
    }
}

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The partitions are the claimant's; by partition the high watermarks to restore to, the owners' first
    /// (empty when stopping a job).
    Owned(Vec<Vec<u64>>),
    /// A higher owner was there: exit as fenced.
    Fenced {
        /// The higher owner.
        by: OwnerRecord,
    },
}

/// Runs a claim to its end. Reads and fences of several partitions run side by side, if the claimant can.
///
/// # Errors
/// A step failed for good, or the claimant gave up waiting. Nothing is owned then.
pub fn drive(
    mut claim: Claim,
    admin: &dyn SystemAdmin,
    claimant: &mut dyn Claimant,
) -> Result<Claimed, SystemError> {
    let mut phase = None;
    let mut again = 0;
    loop {
        if phase != Some(claim.phase()) {
            phase = Some(claim.phase());
            claimant.entering(claim.phase());
            again = 0;
        }
        if let Some(owner) = claim.foreign() {
            return Err(names::belongs_to_another(&claim.partitions[0].owners.topic, &owner.id));
        }
        if let Some(by) = claim.rival() {
            return Ok(Claimed::Fenced { by: by.clone() });
        }
        if claim.steps().is_empty() {
            return Ok(Claimed::Owned(claim.high_watermarks().to_vec()));
        }
        if claim.phase() == Phase::WaitStable {
            claimant.wait(again, None)?;
            again += 1;
        }
        let steps = claim.steps().to_vec();
        let answers = match claim.phase() {
            Phase::Init => vec![claimant.init().map(|()| (Answer::Done, None))],
            Phase::Read | Phase::ReadBack | Phase::Fence => side_by_side(&claim, &steps, admin, claimant),
            Phase::Append | Phase::Tombstone => {
                let appended = append(&claim, &steps, admin);
                steps.iter().map(|_| appended.clone().map(|()| (Answer::Done, None))).collect()
            }
            Phase::Watermarks | Phase::WaitStable => {
                vec![watermarks(&claim, admin).map(|answer| (answer, None))]
            }
            Phase::Done | Phase::Exit => Vec::new(),
        };
        let mut later = None;
        for (step, answer) in steps.iter().zip(answers) {
            match answer {
                Ok((answer, found)) => {
                    if let (Step::ReadOwners { at, .. }, Some(Found { checkpoints, until })) = (step, found) {
                        claimant.found(*at, checkpoints, until);
                    }
                    claim.answer(step, answer);
                }
                Err(error @ SystemError::Retriable(_)) => later = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = later {
            // Every step may be run twice: appends are compacted away, fencing a fenced id changes nothing.
            claimant.wait(again, Some(&error))?;
            again += 1;
        }
    }
}

/// Checkpoints that were found on the way.
struct Found {
    checkpoints: Vec<(TaskName, Checkpoint)>,
    until: u64,
}

type Answered = Result<(Answer, Option<Found>), SystemError>;

fn side_by_side(
    claim: &Claim,
    steps: &[Step],
    admin: &dyn SystemAdmin,
    claimant: &mut dyn Claimant,
) -> Vec<Answered> {
    let answers: Vec<OnceLock<_>> = steps.iter().map(|_| OnceLock::new()).collect();
    claimant.all(steps.len(), &|at| {
        // A step that is run twice has answered already.
        let _ = answers[at].set(read_or_fence(claim, &steps[at], admin));
    });
    let left_out = || Err(SystemError::Fatal("a step of the start order was left out".into()));
    answers.into_iter().map(|answer| answer.into_inner().unwrap_or_else(left_out)).collect()
}

fn read_or_fence(claim: &Claim, step: &Step, admin: &dyn SystemAdmin) -> Answered {
    match step {
        Step::ReadOwners { at, from } => read_owners(&claim.partitions[*at].owners, *from, admin),
        Step::Fence { id } => admin.fence(id).map(|()| (Answer::Done, None)),
        Step::Init
        | Step::AppendOwner { .. }
        | Step::Tombstone { .. }
        | Step::Watermarks
        | Step::WaitStable => Err(SystemError::Fatal(format!("{step:?} is neither a read nor a fence"))),
    }
}

/// Below the last stable offset everything is decided, and owner records, being plain, are seen by everyone: there the
/// owners and the committed checkpoints are read together. Beyond it owners stand among what may yet be aborted.
fn read_owners(partition: &TopicPartition, from: u64, admin: &dyn SystemAdmin) -> Answered {
    let found = admin.watermarks(std::slice::from_ref(partition))?;
    let (until, stable) = found.first().map_or((0, 0), |w| (w.high, w.stable.min(w.high)));
    let mut records = Vec::new();
    let mut checkpoints: Vec<(TaskName, Checkpoint)> = Vec::new();
    let mut take = |messages: &[Message<'_>]| {
        for record in messages.iter().filter_map(|m| record::decode(m.key, m.value)) {
            match record {
                // Of a task only the last one counts; a partition has one task, or a few that once had it.
                Record::Checkpoint(task, checkpoint) => {
                    checkpoints.retain(|(of, _)| *of != task);
                    checkpoints.push((task, checkpoint));
                }
                owner @ (Record::Owner(_) | Record::OwnerGone(_)) => records.push(owner),
            }
        }
        Ok(())
    };
    // The read back looks for owners only: the first read has come far enough with checkpoints.
    let decided = if from == 0 { stable } else { from };
    if from < decided {
        admin.read_range(partition, from, decided, Isolation::ReadCommitted, &mut take)?;
    }
    let committed = std::mem::take(&mut checkpoints);
    let mut take = |messages: &[Message<'_>]| {
        let of = messages.iter().filter_map(|m| record::decode(m.key, m.value));
        records.extend(of.filter(|record| !matches!(record, Record::Checkpoint(..))));
        Ok(())
    };
    if decided < until {
        admin.read_range(partition, decided, until, Isolation::ReadUncommitted, &mut take)?;
    }
    let found = (from == 0).then_some(Found { checkpoints: committed, until: decided });
    Ok((Answer::Owners { records, until }, found))
}

/// All appends of a phase go together.
fn append(claim: &Claim, steps: &[Step], admin: &dyn SystemAdmin) -> Result<(), SystemError> {
    let message = |at: usize, id: &str, value| PlainMessage {
        to: claim.partitions[at].owners.clone(),
        key: record::owner_key(id),
        value,
    };
    let messages: Vec<PlainMessage> = steps
        .iter()
        .filter_map(|step| match step {
            Step::AppendOwner { at } => {
                Some(message(*at, &claim.me.id, Some(record::owner_value(&claim.me))))
            }
            Step::Tombstone { at, id } => Some(message(*at, id, None)),
            Step::Init
            | Step::ReadOwners { .. }
            | Step::Fence { .. }
            | Step::Watermarks
            | Step::WaitStable => None,
        })
        .collect();
    admin.append(&messages)
}

fn watermarks(claim: &Claim, admin: &dyn SystemAdmin) -> Result<Answer, SystemError> {
    let all: Vec<TopicPartition> = claim
        .partitions
        .iter()
        .flat_map(|of| std::iter::once(&of.owners).chain(&of.follow).cloned())
        .collect();
    let found = admin.watermarks(&all)?;
    if found.len() != all.len() {
        return Err(SystemError::Fatal(format!("asked for {} watermarks, got {}", all.len(), found.len())));
    }
    let mut found = found.into_iter();
    let of = |of: &Partitions| found.by_ref().take(1 + of.follow.len()).collect();
    Ok(Answer::Watermarks(claim.partitions.iter().map(of).collect()))
}
