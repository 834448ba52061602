//! Tests only: a consumer of the system in memory.

use std::sync::atomic::Ordering;
use std::time::Duration;

use task_api::system::{LogEnd, Message, StartAt, SystemConsumer, SystemError, TopicPartition};

use super::{Entry, FakeSystem, Fate, HOLDS, Idle, Logs, message, parse};

/// Hands over up to three messages of one partition at a time.
pub(super) struct FakeConsumer {
    system: FakeSystem,
    /// With what is fetched next.
    assigned: Vec<(TopicPartition, u64)>,
    starts: Vec<u64>,
    /// By source: its end as of the last fetch.
    heard: Vec<Option<u64>>,
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
                let (low, log) = (logs.low(at), logs.log(at)?);
                let from = match start {
                    StartAt::Oldest => low,
                    // What is open is not there yet.
                    StartAt::Newest => Logs::stable(log),
                    StartAt::At(offset) => parse(offset)?,
                    // Of messages without a time the n-th is of the n-th millisecond.
                    StartAt::Timestamp(unix_ms) => {
                        let is_of = |(n, e): (usize, &Entry)| e.timestamp_ms.unwrap_or(n as u64) >= *unix_ms;
                        let first = log.iter().enumerate().position(is_of).map(|n| n as u64);
                        first.unwrap_or_else(|| Logs::stable(log)).max(low)
                    }
                };
                Ok((at.clone(), from))
            };
            partitions.iter().map(start).collect::<Result<_, SystemError>>()
        })?;
        self.starts = self.assigned.iter().map(|(_, next)| *next).collect();
        self.heard = vec![None; partitions.len()];
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
        self.system.broker.logs().polls += 1;
        for _ in 0..self.assigned.len() {
            self.turn = (self.turn + 1) % self.assigned.len();
            if self.paused[self.turn] {
                continue;
            }
            let (at, next) = &mut self.assigned[self.turn];
            let (low, log) = self.system.call(|logs| Ok((logs.low(at), logs.log(at)?.clone())))?;
            if !(low..=log.len() as u64).contains(next) {
                return Err(SystemError::Fatal(format!("{at:?} at {next}: offset out of range")));
            }
            self.heard[self.turn] = Some(log.len() as u64);
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
        self.system.broker.logs().questions += 1;
        Some(self.heard[source]?.saturating_sub(position))
    }
    fn read_to(&self, source: usize) -> Option<LogEnd> {
        let (at, next) = &self.assigned[source];
        let leader_epoch = Some(self.system.broker.logs().leader_epoch(at, *next));
        (*next > self.starts[source]).then_some(LogEnd { offset: *next, leader_epoch })
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
        self.system.broker.logs().questions += 1;
        self.read[source]
    }
    fn has_ended(&self, source: usize) -> bool {
        self.system.broker.logs().questions += 1;
        self.system.life.ended.load(Ordering::SeqCst) && self.read[source].is_some()
    }
}
