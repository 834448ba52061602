//! Every interleaving of two or three claims, of one task or of two that change hands, on a tiny model of Kafka's
//! partitions.
//!
//! The claims are the real [`Claim`] machines; the model is of the brokers alone: a commit returns before its
//! markers are written, a partition's last stable offset stays at its first entry without a marker, fencing an id
//! aborts what it has open and returns when its markers are written, owner records are plain, a transaction without
//! any entry is completed by its client alone. Any claim may be paused for any time between two of its steps, and so
//! may a container between the steps of its commits. It makes two: one of a row and a checkpoint, and one that is to
//! flush its store when it has nothing to write; each ends with an offsets row on its disk. Checked at every step:
//!
//! 1. no transaction of a lower incarnation commits after a higher one took its watermarks (or stopped the job);
//! 2. what a restore sees is whole, unless the restorer is fenced already: the committed checkpoints and changelog
//!    rows below its watermarks are of the same transactions;
//! 3. whatever is on whichever disk may be used: it has every committed row below its offsets row.
//!
//! That the exploration would notice is shown by brokers that answer the read back, or the fencing, with a lie, and by
//! containers that take a position from a transaction that holds nothing.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use task_api::system::{TopicPartition, Watermarks};
use task_core::ownership::{Answer, Claim, OwnerRecord, Partitions, Phase, Purpose, Step};
use task_core::record::Record;
use types::{Epoch, Incarnation};

/// What is left out.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    None,
    /// The read back sees no records.
    EmptyReadBack,
    /// Fencing answers without doing anything.
    NoFencing,
    /// The last stable offset is said to be the high watermark.
    NoWaitForStable,
    /// A flush takes its position from a transaction that holds nothing.
    EmptyTransaction,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Txn {
    None,
    Open,
    Committing,
    Aborting,
}

/// An entry of a partition: what, whose, and for rows their fate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Entry {
    Owner(usize),
    Gone(usize),
    Row(usize, Fate),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Fate {
    Open,
    Committed,
    Aborted,
}

/// What a container does once it owns its task.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Run {
    Claiming,
    Restore,
    WriteRow,
    WriteCheckpoint,
    ReadEnds,
    Commit,
    /// As `ReadEnds`, with nothing to write.
    IdleEnds,
    /// A checkpoint that says nothing new.
    IdleCheckpoint,
    IdleCommit,
    Over,
}

/// What is on a container's disk of a task: the transactions whose rows it has, and its offsets row.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Disk {
    rows: BTreeSet<usize>,
    offset: u64,
}

#[derive(Clone)]
struct Container {
    claim: Claim,
    /// In the order of the claim's partitions.
    tasks: Vec<usize>,
    run: Run,
    /// It has asked for watermarks (or, stopping a job, is done): lower ones must not commit from here on.
    restores: bool,
    /// Whose fencing has been sent: it is answered once the markers are written.
    fencing: BTreeSet<usize>,
    /// By task the changelog's end, read in the open transaction.
    ends: Vec<u64>,
    /// By task.
    disks: Vec<Disk>,
}

#[derive(Clone)]
struct World {
    containers: Vec<Container>,
    /// 0 not initialised, 1 its owner's, 2 fenced.
    epoch: Vec<u8>,
    txn: Vec<Txn>,
    /// By task the checkpoint partition, then the changelog partition.
    log: Vec<Vec<Entry>>,
}

const CHECKPOINTS: usize = 0;
const ROWS: usize = 1;

impl World {
    fn new(tasks: &[&[usize]], stops: Option<usize>) -> World {
        let container = |i: usize| {
            let purpose = if stops == Some(i) { Purpose::Stop } else { Purpose::Run };
            let partitions = |task: &usize| {
                let at = |topic: &str| TopicPartition { topic: topic.into(), partition: *task as i32 };
                Partitions { owners: at("checkpoint"), follow: vec![at("changelog")] }
            };
            Container {
                claim: Claim::new(owner(i), purpose, tasks[i].iter().map(partitions).collect()),
                tasks: tasks[i].to_vec(),
                run: Run::Claiming,
                restores: false,
                fencing: BTreeSet::new(),
                ends: Vec::new(),
                disks: vec![Disk::default(); tasks[i].len()],
            }
        };
        let n = tasks.len();
        let logs = 2 * (tasks.iter().copied().flatten().max().expect("a task") + 1);
        World {
            containers: (0..n).map(container).collect(),
            epoch: vec![0; n],
            txn: vec![Txn::None; n],
            log: vec![Vec::new(); logs],
        }
    }

    /// A fingerprint of all that matters for what may follow.
    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for c in &self.containers {
            (c.claim.phase(), c.claim.steps(), c.claim.high_watermarks(), c.run, c.restores, &c.fencing)
                .hash(&mut hasher);
            (&c.ends, &c.disks).hash(&mut hasher);
        }
        (&self.epoch, &self.txn, &self.log).hash(&mut hasher);
        hasher.finish()
    }

    fn stable(&self, p: usize) -> u64 {
        let open = |e: &Entry| matches!(e, Entry::Row(_, Fate::Open));
        self.log[p].iter().position(open).unwrap_or(self.log[p].len()) as u64
    }

    fn watermarks(&self, i: usize, lie: Lie) -> Answer {
        let of = |p: usize| {
            let high = self.log[p].len() as u64;
            let stable = if lie == Lie::NoWaitForStable { high } else { self.stable(p) };
            Watermarks { low: 0, high, stable, leader_epoch: None }
        };
        let tasks = self.containers[i].tasks.iter();
        Answer::Watermarks(tasks.map(|task| vec![of(2 * task + CHECKPOINTS), of(2 * task + ROWS)]).collect())
    }

    /// Every world that may come next, with what happened; or what went wrong.
    fn next(&self, lie: Lie) -> Result<Vec<(String, World)>, String> {
        let mut worlds = self.markers();
        for i in 0..self.containers.len() {
            match self.containers[i].run {
                Run::Claiming => worlds.extend(self.claim_steps(i, lie)),
                Run::Over => {}
                Run::Restore
                | Run::WriteRow
                | Run::WriteCheckpoint
                | Run::ReadEnds
                | Run::Commit
                | Run::IdleEnds
                | Run::IdleCheckpoint
                | Run::IdleCommit => worlds.extend(self.run_step(i, lie)?),
            }
        }
        worlds.iter().try_for_each(|(what, world)| {
            world.check_disks().map_err(|wrong| format!("{wrong}, after {what}"))
        })?;
        Ok(worlds)
    }

    /// The coordinator writes markers, partition by partition, in any order.
    fn markers(&self) -> Vec<(String, World)> {
        let mut worlds = Vec::new();
        for (i, txn) in self.txn.iter().enumerate() {
            let fate = match txn {
                Txn::Committing => Fate::Committed,
                Txn::Aborting => Fate::Aborted,
                Txn::None | Txn::Open => continue,
            };
            let open = |p: &usize| self.log[*p].contains(&Entry::Row(i, Fate::Open));
            let parts: Vec<usize> = (0..self.log.len()).filter(open).collect();
            for p in &parts {
                let mut world = self.clone();
                for entry in &mut world.log[*p] {
                    if *entry == Entry::Row(i, Fate::Open) {
                        *entry = Entry::Row(i, fate);
                    }
                }
                if parts.len() == 1 {
                    world.txn[i] = Txn::None;
                }
                worlds.push((format!("marker of {i} in {p}"), world));
            }
        }
        worlds
    }

    fn claim_steps(&self, i: usize, lie: Lie) -> Vec<(String, World)> {
        let mut worlds = Vec::new();
        for step in self.containers[i].claim.steps().to_vec() {
            let mut world = self.clone();
            let Some(answer) = world.perform(i, &step, lie) else {
                // It waits: only a change by others brings it on; a fence that was sent is a change.
                if world.containers[i].fencing != self.containers[i].fencing {
                    worlds.push((format!("{i}: {step:?} sent"), world));
                }
                continue;
            };
            let container = &mut world.containers[i];
            container.claim.answer(&step, answer);
            container.restores |= step == Step::Watermarks;
            match container.claim.phase() {
                Phase::Done if container.claim.high_watermarks().is_empty() => {
                    container.restores = true;
                    container.run = Run::Over;
                }
                Phase::Done => container.run = Run::Restore,
                Phase::Exit => container.run = Run::Over,
                Phase::Init
                | Phase::Read
                | Phase::Append
                | Phase::ReadBack
                | Phase::Fence
                | Phase::Tombstone
                | Phase::Watermarks
                | Phase::WaitStable => {}
            }
            // Waiting for the stable offset is no change until it is there.
            if world.key() != self.key() {
                worlds.push((format!("{i}: {step:?}"), world));
            }
        }
        worlds
    }

    /// What the brokers do and answer; none if the answer has to wait.
    fn perform(&mut self, i: usize, step: &Step, lie: Lie) -> Option<Answer> {
        let tasks = self.containers[i].tasks.clone();
        let checkpoints = |at: usize| 2 * tasks[at] + CHECKPOINTS;
        match step {
            Step::Init => self.epoch[i] = 1,
            Step::ReadOwners { at, from } => {
                let log = &self.log[checkpoints(*at)];
                let until = log.len() as u64;
                let blind = lie == Lie::EmptyReadBack && self.containers[i].claim.phase() == Phase::ReadBack;
                let record = |entry: &Entry| match entry {
                    Entry::Owner(j) => Some(Record::Owner(owner(*j))),
                    Entry::Gone(j) => Some(Record::OwnerGone(owner(*j).id)),
                    Entry::Row(..) => None,
                };
                let records = log.iter().skip(*from as usize).filter_map(record);
                let records = if blind { Vec::new() } else { records.collect() };
                return Some(Answer::Owners { records, until });
            }
            Step::AppendOwner { at } => self.log[checkpoints(*at)].push(Entry::Owner(i)),
            Step::Fence { id } => {
                let j = number(id);
                if lie == Lie::NoFencing {
                    return Some(Answer::Done);
                }
                if !self.containers[i].fencing.contains(&j) {
                    // Taking the id over waits while its last transaction is being committed.
                    if self.txn[j] == Txn::Committing {
                        return None;
                    }
                    self.epoch[j] = 2;
                    if self.txn[j] == Txn::Open {
                        self.txn[j] = Txn::Aborting;
                    }
                    self.containers[i].fencing.insert(j);
                    return None;
                }
                if self.txn[j] != Txn::None {
                    return None;
                }
                self.containers[i].fencing.remove(&j);
            }
            Step::Tombstone { at, id } => self.log[checkpoints(*at)].push(Entry::Gone(number(id))),
            Step::Watermarks | Step::WaitStable => return Some(self.watermarks(i, lie)),
        }
        Some(Answer::Done)
    }

    fn run_step(&self, i: usize, lie: Lie) -> Result<Vec<(String, World)>, String> {
        let mut world = self.clone();
        let fenced = self.epoch[i] != 1;
        let run = self.containers[i].run;
        let tasks = self.containers[i].tasks.clone();
        world.containers[i].run = match run {
            Run::Restore => {
                self.check_restore(i)?;
                for (at, task) in tasks.iter().enumerate() {
                    let offset = self.containers[i].claim.high_watermarks()[at][ROWS];
                    let rows = self.committed(2 * task + ROWS, offset);
                    world.containers[i].disks[at] = Disk { rows, offset };
                }
                Run::WriteRow
            }
            // Asked without a transaction, and answered to everyone.
            Run::ReadEnds | Run::IdleEnds => {
                let end = |task: &usize| self.log[2 * task + ROWS].len() as u64;
                world.containers[i].ends = tasks.iter().map(end).collect();
                match (run, lie) {
                    (Run::ReadEnds, _) => Run::Commit,
                    (_, Lie::EmptyTransaction) => Run::IdleCommit,
                    _ => Run::IdleCheckpoint,
                }
            }
            // Nobody is asked: it succeeds.
            Run::IdleCommit if lie == Lie::EmptyTransaction => {
                world.flush_store(i);
                Run::Over
            }
            _ if fenced => Run::Over,
            Run::WriteRow | Run::WriteCheckpoint | Run::IdleCheckpoint => {
                if self.txn[i] == Txn::Aborting || self.txn[i] == Txn::Committing {
                    return Ok(Vec::new());
                }
                let p = if run == Run::WriteRow { ROWS } else { CHECKPOINTS };
                for task in &tasks {
                    world.log[2 * task + p].push(Entry::Row(i, Fate::Open));
                }
                world.txn[i] = Txn::Open;
                match run {
                    Run::WriteRow => Run::WriteCheckpoint,
                    Run::WriteCheckpoint => Run::ReadEnds,
                    _ => Run::IdleCommit,
                }
            }
            Run::Commit | Run::IdleCommit => {
                let shares = |higher: &Container| higher.tasks.iter().any(|task| tasks.contains(task));
                if self.containers.iter().skip(i + 1).any(|higher| higher.restores && shares(higher)) {
                    return Err(format!("{i} commits after a higher one restored or stopped the job"));
                }
                world.txn[i] = Txn::Committing;
                world.containers[i].disks.iter_mut().for_each(|disk| disk.rows.extend([i]));
                world.flush_store(i);
                if run == Run::Commit && self.idles(i) { Run::IdleEnds } else { Run::Over }
            }
            Run::Claiming | Run::Over => return Ok(Vec::new()),
        };
        Ok(vec![(format!("{i}: {run:?}"), world)])
    }

    /// Whether it flushes once more with nothing to write. Of three only the first does: what comes after it is the same
    /// with two, and there are ten times fewer worlds.
    fn idles(&self, i: usize) -> bool {
        i == 0 || self.containers.len() < 3
    }

    /// The offsets rows say what the ends were.
    fn flush_store(&mut self, i: usize) {
        let Container { disks, ends, .. } = &mut self.containers[i];
        for (disk, end) in disks.iter_mut().zip(std::mem::take(ends)) {
            disk.offset = end;
        }
    }

    /// The transactions whose entries in partition `p` below `high` are committed.
    fn committed(&self, p: usize, high: u64) -> BTreeSet<usize> {
        let rows = self.log[p].iter().take(high as usize);
        rows.filter_map(|e| match e {
            Entry::Row(j, Fate::Committed) => Some(*j),
            Entry::Row(_, Fate::Open | Fate::Aborted) | Entry::Owner(_) | Entry::Gone(_) => None,
        })
        .collect()
    }

    fn check_disks(&self) -> Result<(), String> {
        for (i, container) in self.containers.iter().enumerate() {
            for (task, disk) in container.tasks.iter().zip(&container.disks) {
                let committed = self.committed(2 * task + ROWS, disk.offset);
                if !committed.is_subset(&disk.rows) {
                    let Disk { rows, offset } = disk;
                    return Err(format!(
                        "the disk of {i} has rows of {rows:?} and says {offset}: {committed:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_restore(&self, i: usize) -> Result<(), String> {
        let Container { claim, tasks, .. } = &self.containers[i];
        for (task, high) in tasks.iter().zip(claim.high_watermarks()) {
            self.check_restore_of(i, *task, high)?;
        }
        Ok(())
    }

    fn check_restore_of(&self, i: usize, task: usize, high: &[u64]) -> Result<(), String> {
        let committed = |p: usize| self.committed(2 * task + p, high[p]);
        let (checkpoints, rows) = (committed(CHECKPOINTS), committed(ROWS));
        if checkpoints != rows && self.epoch[i] == 1 {
            return Err(format!("{i} restores checkpoints of {checkpoints:?} but rows of {rows:?}"));
        }
        Ok(())
    }
}

fn owner(i: usize) -> OwnerRecord {
    let incarnation = Incarnation { epoch: Epoch(1), seq: i as u64 + 1 };
    OwnerRecord { incarnation, id: i.to_string(), slot: None, thread: None }
}

fn number(id: &str) -> usize {
    id.parse().expect("an id of this test")
}

/// Explores every world; returns how many there are, or the way to the first that is wrong.
fn explore(tasks: &[&[usize]], stops: Option<usize>, lie: Lie) -> Result<usize, String> {
    let start = World::new(tasks, stops);
    let mut came_by: HashMap<u64, (u64, String)> = HashMap::from([(start.key(), (0, "start".into()))]);
    let mut todo = VecDeque::from([start]);
    let mut finished = 0;
    while let Some(world) = todo.pop_front() {
        let key = world.key();
        let next = world.next(lie).map_err(|wrong| format!("{wrong}; by {}", way(&came_by, key)))?;
        if next.is_empty() {
            finished += 1;
            // Nobody waits for ever: where nothing can happen any more, everyone is over.
            if !world.containers.iter().all(|c| c.run == Run::Over) {
                return Err(format!("stuck; by {}", way(&came_by, key)));
            }
        }
        for (what, world) in next {
            let to = world.key();
            came_by.entry(to).or_insert_with(|| {
                todo.push_back(world);
                (key, what)
            });
        }
    }
    assert!(finished > 0);
    Ok(came_by.len())
}

fn way(came_by: &HashMap<u64, (u64, String)>, mut at: u64) -> String {
    let mut steps = Vec::new();
    while let Some((before, what)) = came_by.get(&at) {
        steps.push(what.as_str());
        if *before == 0 {
            break;
        }
        at = *before;
    }
    steps.reverse();
    steps.join("; ")
}

#[test]
fn two_incarnations_are_safe_in_every_order() {
    let worlds = explore(&[&[0], &[0]], None, Lie::None).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(worlds > 200, "{worlds}");
}

#[test]
fn three_incarnations_are_safe_in_every_order() {
    let worlds = explore(&[&[0], &[0], &[0]], None, Lie::None).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(worlds > 10_000, "{worlds}");
}

#[test]
fn a_job_stopped_under_a_fresh_incarnation_commits_nothing_afterwards() {
    let worlds = explore(&[&[0], &[0], &[0]], Some(2), Lie::None).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(worlds > 1_000, "{worlds}");
}

#[test]
fn a_container_of_two_tasks_and_its_rivals_for_one_or_both_are_safe_in_every_order() {
    for (tasks, at_least) in [
        ([[0, 1].as_slice(), [1].as_slice()], 500),
        ([[1].as_slice(), [0, 1].as_slice()], 500),
        ([[0, 1].as_slice(), [0, 1].as_slice()], 500),
    ] {
        let worlds = explore(&tasks, None, Lie::None).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(worlds > at_least, "{worlds}");
    }
}

#[test]
fn a_task_that_moves_between_slots_is_safe_in_every_order() {
    // 0 has both tasks; 1 takes one of them in another slot, 2 the other.
    let worlds = explore(&[&[0, 1], &[0], &[1]], None, Lie::None).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(worlds > 10_000, "{worlds}");
}

#[test]
fn without_reading_back_an_older_one_commits_after_a_newer_restore() {
    let wrong = explore(&[&[0], &[0]], None, Lie::EmptyReadBack).expect_err("a shortcut");
    assert!(wrong.contains("0 commits after a higher one restored"), "{wrong}");
}

#[test]
fn without_fencing_an_older_one_commits_after_a_newer_restore() {
    let wrong = explore(&[&[0], &[0]], None, Lie::NoFencing).expect_err("a shortcut");
    assert!(wrong.contains("0 commits after a higher one restored"), "{wrong}");
}

#[test]
fn without_the_wait_for_the_stable_offset_a_restorer_that_is_fenced_leaves_a_wrong_disk() {
    // Its successor's transaction is being committed below the watermarks that it takes.
    let wrong = explore(&[&[0], &[0]], None, Lie::NoWaitForStable).expect_err("a shortcut");
    assert!(wrong.contains("the disk of 0 has rows of {} and says"), "{wrong}");
}

#[test]
fn a_position_from_a_transaction_that_holds_nothing_is_wrong_once_a_newer_one_has_written() {
    let wrong = explore(&[&[0], &[0]], None, Lie::EmptyTransaction).expect_err("a shortcut");
    assert!(wrong.contains("the disk of 0 has rows of {0} and says"), "{wrong}");
}
