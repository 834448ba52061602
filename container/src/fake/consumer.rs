//! Tests only: a consumer of the system in memory.

use std::sync::atomic::Ordering;
use std::time::Duration;

use task_api::system::{Message, StartAt, SystemConsumer, SystemError, TopicPartition};

use super::{Entry, FakeSystem, Fate, HOLDS, Idle, Logs, message};

/// Hands over up to three messages of one partition at a time.
pub(super) struct FakeConsumer {
    system: FakeSystem,
    /// With what is fetched next.
    assigned: Vec<(TopicPartition, u64)>,
    starts: Vec<u64>,
    /// By source: whether it was fetched from.
    heard: Vec<bool>,
    paused: Vec<bool>,
    /// By source: where its end was met.
    read: Vec<Option<u64>>,
    turn: usize,
}

impl FakeConsumer {
    pub(super) fn new(system: &FakeSystem) -> FakeConsumer {
        FakeConsumer {
            system: system.clone(),
            assigned: Vec::new(),
            starts: Vec::new(),
            heard: Vec::new(),
            paused: Vec::new(),
            read: Vec::new(),
            turn: 0,
        }
    }
}

impl SystemConsumer for FakeConsumer {
    fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), SystemError> {
        self.assigned = self.system.call(|logs| {
            let start = |(at, start): &(TopicPartition, StartAt)| {
                let from = match start {
                    StartAt::Oldest => 0,
                    StartAt::Newest => logs.log(at)?.len() as u64,
                    StartAt::At(offset) => offset.0.parse().expect("an offset of ours"),
                    // Messages of the fake have no times: the n-th is of the n-th millisecond.
                    StartAt::Timestamp(unix_ms) => *unix_ms,
                };
                Ok((at.clone(), from))
            };
            partitions.iter().map(start).collect::<Result<_, SystemError>>()
        })?;
        self.starts = self.assigned.iter().map(|(_, next)| *next).collect();
        self.heard = vec![false; partitions.len()];
        self.paused = vec![false; partitions.len()];
        self.read = vec![None; partitions.len()];
        Ok(())
    }

    /// Batches of up to three messages of one partition.
    fn poll(
        &mut self,
        _: Duration,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<usize, SystemError> {
        for _ in 0..self.assigned.len() {
            self.turn = (self.turn + 1) % self.assigned.len();
            if self.paused[self.turn] {
                continue;
            }
            let (at, next) = &mut self.assigned[self.turn];
            let log = self.system.call(|logs| logs.log(at).cloned())?;
            self.heard[self.turn] = true;
            let seen = |e: &Entry| matches!(e.fate, Fate::Plain | Fate::Committed);
            let stable = Logs::stable(&log);
            let messages: Vec<Message<'_>> = (*next..stable)
                .filter(|n| seen(&log[*n as usize]))
                .take(3)
                .map(|n| message(self.turn, n, &log[n as usize]))
                .collect();
            if let Some(last) = messages.last() {
                *next = last.offset + 1;
                take(&messages)?;
                return Ok(messages.len());
            }
            self.read[self.turn] = Some(stable);
        }
        if HOLDS.get() || self.paused.iter().any(|paused| *paused) {
            return Ok(0);
        }
        let life = &self.system.life;
        if let Some(board) = &life.board {
            board.stop(crate::board::Told::Signal(15));
        }
        match life.on_idle.as_ref().map(|on_idle| on_idle()) {
            Some(Idle::Crashes) => {
                life.crashed.store(true, Ordering::SeqCst);
                return Err(SystemError::Fatal("crashed".into()));
            }
            Some(Idle::Ends) => life.ended.store(true, Ordering::SeqCst),
            Some(Idle::GoesOn) | None => {}
        }
        Ok(0)
    }
    fn start(&self, source: usize) -> Option<u64> {
        Some(self.starts[source])
    }
    fn lag(&self, source: usize, position: u64) -> Option<u64> {
        // Nothing is known before the first fetch.
        self.heard[source].then_some(())?;
        let high = self.system.broker.logs().log(&self.assigned[source].0).ok()?.len() as u64;
        Some(high.saturating_sub(position))
    }
    fn pause(&mut self, sources: &[usize]) -> Result<(), SystemError> {
        sources.iter().for_each(|at| self.paused[*at] = true);
        self.system.broker.logs().pauses += sources.len();
        Ok(())
    }
    fn resume(&mut self, sources: &[usize]) -> Result<(), SystemError> {
        sources.iter().for_each(|at| self.paused[*at] = false);
        Ok(())
    }
    fn caught_up_at(&self, source: usize) -> Option<u64> {
        self.read[source]
    }
    fn has_ended(&self, source: usize) -> bool {
        self.system.life.ended.load(Ordering::SeqCst) && self.read[source].is_some()
    }
}
