//! Every interleaving of two or three claims, of one task or of two that change hands, on a tiny model of Kafka's
//! partitions.
//!
//! The claims are the real [`Claim`] machines; the model is of the brokers alone: a commit returns before its
//! markers are written, a partition's last stable offset stays at its first entry without a marker, fencing an id
//! aborts what it has open and returns when its markers are written, owner records are plain. Any claim may be
//! paused for any time between two of its steps. Checked at every step:
//!
//! 1. no transaction of a lower incarnation commits after a higher one took its watermarks (or stopped the job);
//! 2. what a restore sees is whole, unless the restorer is fenced already: the committed checkpoints and changelog
//!    rows below its watermarks are of the same transactions.
//!
//! That the exploration would notice is shown by brokers that answer the read back, or the fencing, with a lie.

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
    Commit,
    Over,
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
            Watermarks { low: 0, high, stable }
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
                Run::Restore | Run::WriteRow | Run::WriteCheckpoint | Run::Commit => {
                    worlds.extend(self.run_step(i)?);
                }
            }
        }
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

    fn run_step(&self, i: usize) -> Result<Vec<(String, World)>, String> {
        let mut world = self.clone();
        let fenced = self.epoch[i] != 1;
        let run = self.containers[i].run;
        world.containers[i].run = match run {
            Run::Restore => {
                self.check_restore(i)?;
                Run::WriteRow
            }
            _ if fenced => Run::Over,
            Run::WriteRow | Run::WriteCheckpoint => {
                if self.txn[i] == Txn::Aborting || self.txn[i] == Txn::Committing {
                    return Ok(Vec::new());
                }
                let p = if run == Run::WriteRow { ROWS } else { CHECKPOINTS };
                for task in &self.containers[i].tasks {
                    world.log[2 * task + p].push(Entry::Row(i, Fate::Open));
                }
                world.txn[i] = Txn::Open;
                if run == Run::WriteRow { Run::WriteCheckpoint } else { Run::Commit }
            }
            Run::Commit => {
                let tasks = &self.containers[i].tasks;
                let shares = |higher: &Container| higher.tasks.iter().any(|task| tasks.contains(task));
                if self.containers.iter().skip(i + 1).any(|higher| higher.restores && shares(higher)) {
                    return Err(format!("{i} commits after a higher one restored or stopped the job"));
                }
                world.txn[i] = Txn::Committing;
                Run::Over
            }
            Run::Claiming | Run::Over => return Ok(Vec::new()),
        };
        Ok(vec![(format!("{i}: {run:?}"), world)])
    }

    fn check_restore(&self, i: usize) -> Result<(), String> {
        let Container { claim, tasks, .. } = &self.containers[i];
        for (task, high) in tasks.iter().zip(claim.high_watermarks()) {
            self.check_restore_of(i, *task, high)?;
        }
        Ok(())
    }

    fn check_restore_of(&self, i: usize, task: usize, high: &[u64]) -> Result<(), String> {
        let committed = |p: usize| -> BTreeSet<usize> {
            let rows = self.log[2 * task + p].iter().take(high[p] as usize);
            rows.filter_map(|e| match e {
                Entry::Row(j, Fate::Committed) => Some(*j),
                Entry::Row(_, Fate::Open | Fate::Aborted) | Entry::Owner(_) | Entry::Gone(_) => None,
            })
            .collect()
        };
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
fn what_the_wait_for_the_stable_offset_adds_is_known() {
    // Fencing waits for the markers, so with one task and no foreign writer the wait finds nothing to wait for.
    let worlds =
        explore(&[&[0], &[0], &[0]], None, Lie::NoWaitForStable).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(worlds > 10_000, "{worlds}");
}
