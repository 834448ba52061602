//! Which container gets which tasks. Lexicographic, in this order: an even count; the fewest moves from last time;
//! the leaders of a container's partitions on one host.
//!
//! The first two are exact: slots that had most keep most, and a task leaves only a slot that is over-full. The
//! third starts greedily, host by host, and is then improved by exchanges that cost no move, within a budget.

use std::collections::BTreeMap;

/// What grouping needs to know of one task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskPlace {
    /// How many of its partitions are led from each host.
    pub leaders: BTreeMap<String, u32>,
    /// The slot that had it last time.
    pub last: Option<u32>,
}

/// How many exchanges may be weighed; bounds the time that thousands of tasks take to well under a second.
const BUDGET: usize = 2_000_000;

/// The slot of each task, in the order given. Deterministic.
///
/// # Panics
/// `slots` is 0.
#[must_use]
pub fn group(tasks: &[TaskPlace], slots: u32) -> Vec<u32> {
    assert!(slots > 0, "a job has at least one container");
    let mut grouping = Grouping::new(tasks, slots as usize);
    grouping.keep_what_fits();
    grouping.place_the_rest();
    grouping.improve();
    grouping
        .slot_of
        .iter()
        .map(|s| u32::try_from(s.expect("every task was placed")).expect("slots fit u32"))
        .collect()
}

struct Grouping {
    /// Per task: (host number, partitions led there).
    weights: Vec<Vec<(usize, u32)>>,
    last: Vec<Option<usize>>,
    quota: Vec<usize>,
    slot_of: Vec<Option<usize>>,
    /// Per slot: partitions led from each host.
    led: Vec<Vec<u32>>,
    size: Vec<usize>,
    floor: usize,
}

impl Grouping {
    fn new(tasks: &[TaskPlace], slots: usize) -> Grouping {
        let mut hosts: BTreeMap<&str, usize> = BTreeMap::new();
        for host in tasks.iter().flat_map(|t| t.leaders.keys()) {
            hosts.insert(host, 0);
        }
        for (number, place) in hosts.values_mut().enumerate() {
            *place = number;
        }
        let weights =
            tasks.iter().map(|t| t.leaders.iter().map(|(h, n)| (hosts[h.as_str()], *n)).collect()).collect();
        let last: Vec<Option<usize>> =
            tasks.iter().map(|t| t.last.map(|s| s as usize).filter(|s| *s < slots)).collect();
        let (floor, extra) = (tasks.len() / slots, tasks.len() % slots);
        let mut had = vec![0_usize; slots];
        for slot in last.iter().flatten() {
            had[*slot] += 1;
        }
        let mut by_size: Vec<usize> = (0..slots).collect();
        by_size.sort_by_key(|s| (std::cmp::Reverse(had[*s]), *s));
        let mut quota = vec![floor; slots];
        for slot in by_size.into_iter().take(extra) {
            quota[slot] += 1;
        }
        Grouping {
            weights,
            last,
            quota,
            slot_of: vec![None; tasks.len()],
            led: vec![vec![0; hosts.len()]; slots],
            size: vec![0; slots],
            floor,
        }
    }

    fn put(&mut self, task: usize, slot: usize) {
        if let Some(old) = self.slot_of[task].replace(slot) {
            self.size[old] -= 1;
            for (host, n) in &self.weights[task] {
                self.led[old][*host] -= n;
            }
        }
        self.size[slot] += 1;
        for (host, n) in &self.weights[task] {
            self.led[slot][*host] += n;
        }
    }

    fn weight_on(&self, task: usize, host: usize) -> u32 {
        self.weights[task].iter().find(|(h, _)| *h == host).map_or(0, |(_, n)| *n)
    }

    /// Leaves each task where it was, up to the slot's quota; the tasks that fit the slot's main host stay first.
    fn keep_what_fits(&mut self) {
        let mut had: Vec<Vec<usize>> = vec![Vec::new(); self.quota.len()];
        for (task, slot) in self.last.iter().enumerate() {
            if let Some(slot) = slot {
                had[*slot].push(task);
            }
        }
        for (slot, mut here) in had.into_iter().enumerate() {
            if let Some(main) = self.main_host(&here) {
                here.sort_by_key(|t| (std::cmp::Reverse(self.weight_on(*t, main)), *t));
            }
            here.truncate(self.quota[slot]);
            for task in here {
                self.put(task, slot);
            }
        }
    }

    fn main_host(&self, tasks: &[usize]) -> Option<usize> {
        let hosts = self.led.first().map_or(0, Vec::len);
        (0..hosts).max_by_key(|h| {
            (tasks.iter().map(|t| self.weight_on(*t, *h)).sum::<u32>(), std::cmp::Reverse(*h))
        })
    }

    /// Fills the free places: each time the slot and host whose leaders come together in the greatest number.
    fn place_the_rest(&mut self) {
        let hosts = self.led.first().map_or(0, Vec::len);
        let is_free = |this: &Grouping, task: &usize| this.slot_of[*task].is_none();
        let mut free: Vec<usize> = (0..self.slot_of.len()).filter(|t| is_free(self, t)).collect();
        // By host the free tasks that are led from it, those with most partitions there first.
        let mut queues: Vec<Vec<usize>> = vec![Vec::new(); hosts];
        for task in &free {
            for (host, _) in self.weights[*task].iter().filter(|(_, n)| *n > 0) {
                queues[*host].push(*task);
            }
        }
        for (host, queue) in queues.iter_mut().enumerate() {
            queue.sort_by_key(|t| (std::cmp::Reverse(self.weight_on(*t, host)), *t));
        }
        while !free.is_empty() {
            let (slot, host) = self.best_place(&queues);
            let room = self.quota[slot] - self.size[slot];
            let order = host.map_or(&free, |host| &queues[host]);
            for task in order.iter().take(room).copied().collect::<Vec<_>>() {
                self.put(task, slot);
            }
            free.retain(|t| is_free(self, t));
            for queue in &mut queues {
                queue.retain(|t| is_free(self, t));
            }
        }
    }

    /// The slot with room and the host from which most leaders come together in it.
    fn best_place(&self, queues: &[Vec<usize>]) -> (usize, Option<usize>) {
        // By host: how many leaders its first n tasks bring.
        let sums: Vec<Vec<u32>> = queues
            .iter()
            .enumerate()
            .map(|(host, queue)| {
                let add = |sum: &mut u32, t: &usize| {
                    *sum += self.weight_on(*t, host);
                    Some(*sum)
                };
                std::iter::once(0).chain(queue.iter().scan(0, add)).collect()
            })
            .collect();
        // (leaders together, of them already there, slot, host): joining comes before opening a second place.
        let mut best: Option<(u32, u32, usize, Option<usize>)> = None;
        // Empty slots with the same room are equally good.
        let mut empty = std::collections::BTreeSet::new();
        for slot in 0..self.quota.len() {
            let room = self.quota[slot] - self.size[slot];
            if room == 0 || (self.size[slot] == 0 && !empty.insert(room)) {
                continue;
            }
            if best.is_none() {
                best = Some((0, 0, slot, None));
            }
            for (host, sums) in sums.iter().enumerate() {
                let gain = sums[room.min(sums.len() - 1)];
                let there = self.led[slot][host];
                let score = if gain == 0 { 0 } else { there + gain };
                if best.is_none_or(|(most, joined, _, _)| (score, there) > (most, joined)) {
                    best = Some((score, there, slot, (gain > 0).then_some(host)));
                }
            }
        }
        let (_, _, slot, host) = best.expect("quotas add up to the number of tasks");
        (slot, host)
    }

    fn score(&self, slot: usize, without: usize, with: Option<usize>) -> u32 {
        (0..self.led[slot].len())
            .map(|h| {
                self.led[slot][h] - self.weight_on(without, h) + with.map_or(0, |t| self.weight_on(t, h))
            })
            .max()
            .unwrap_or(0)
    }

    fn most(&self, slot: usize) -> u32 {
        self.led[slot].iter().copied().max().unwrap_or(0)
    }

    fn stays(&self, task: usize, slot: usize) -> i32 {
        i32::from(self.last[task] == Some(slot))
    }

    /// Exchanges pairs, and moves single tasks from a bigger to a smaller slot, as long as that brings leaders
    /// together and moves no more tasks than before.
    fn improve(&mut self) {
        let mut budget = BUDGET;
        let mut improved = true;
        while improved && budget > 0 {
            improved = false;
            for a in 0..self.slot_of.len() {
                for b in a + 1..self.slot_of.len() {
                    let (Some(sa), Some(sb)) = (self.slot_of[a], self.slot_of[b]) else { continue };
                    if sa == sb {
                        continue;
                    }
                    if budget == 0 {
                        return;
                    }
                    budget -= 1;
                    let moves = self.stays(a, sb) + self.stays(b, sa) - self.stays(a, sa) - self.stays(b, sb);
                    let before = self.most(sa) + self.most(sb);
                    if moves == 0 && self.score(sa, a, Some(b)) + self.score(sb, b, Some(a)) > before {
                        self.put(a, sb);
                        self.put(b, sa);
                        improved = true;
                    }
                }
                improved |= self.move_alone(a);
            }
        }
    }

    fn move_alone(&mut self, task: usize) -> bool {
        let from = self.slot_of[task].expect("every task was placed");
        if self.size[from] == self.floor {
            return false;
        }
        for to in 0..self.quota.len() {
            if self.size[to] > self.floor || to == from || self.stays(task, to) != self.stays(task, from) {
                continue;
            }
            let joined = self.weights[task]
                .iter()
                .map(|(h, n)| self.led[to][*h] + n)
                .max()
                .unwrap_or(0)
                .max(self.most(to));
            if self.score(from, task, None) + joined > self.most(from) + self.most(to) {
                self.put(task, to);
                return true;
            }
        }
        false
    }
}
