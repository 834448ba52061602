//! How a task thread waits: for all of its systems at once, and for calls that are done.

use std::time::{Duration, Instant};

use task_api::serde::DecodeError;
use task_api::system::{Message, SystemError, Unreadable};
use task_api::{FailedMessage, Headers, OwnedHeaders, OwnedMessage, StreamTask};
use tracing::warn;
use types::Timestamp;

use crate::end::End;
use crate::engine::{Engine, Hands};
use crate::failures::Failed;
use crate::inputs::Reader;
use crate::meters::Spent;
use crate::pulse::Stage;

/// The longest wait for one of several things of which not all wake the thread.
const SLICE_MS: u64 = 2;
/// How long a consumer that failed is let alone.
const RETRY_MS: u64 = 100;
/// How long a stop waits to hear where its inputs end.
const SETTLE: Duration = Duration::from_millis(300);

impl<T: StreamTask> Engine<T> {
    /// Takes what is there of every system; waits only if there is nothing, for all of them at once.
    pub(crate) fn poll(&mut self, now: Timestamp, patience: Duration) -> Result<(), End> {
        let (began, inside) = (self.clock.nanos(), self.meters.spent_on(Spent::Process));
        let polled = self.poll_all(now, patience);
        let inside = self.meters.spent_on(Spent::Process) - inside;
        self.meters.spent(Spent::Poll, (self.clock.nanos() - began).saturating_sub(inside));
        polled
    }

    fn poll_all(&mut self, now: Timestamp, patience: Duration) -> Result<(), End> {
        #[cfg(test)]
        crate::fake::HOLDS.set(self.work.holding || self.inputs.sources().any(|s| !s.held.is_empty()));
        let open: Vec<usize> =
            (0..self.inputs.readers.len()).filter(|at| self.inputs.readers[*at].is_open(now)).collect();
        let in_flight = self.tasks.iter().any(|task| task.code.in_flight() > 0);
        if let ([alone], false) = (&*open, in_flight) {
            return self.poll_one(*alone, now, patience).map(|_| ());
        }
        let mut any = false;
        for at in &open {
            any |= self.poll_one(*at, now, Duration::ZERO)? > 0;
            if self.work.must_commit() {
                return Ok(());
            }
        }
        if any || patience.is_zero() {
            return Ok(());
        }
        let silent: Vec<usize> = open.into_iter().filter(|at| !self.inputs.readers[*at].wakes).collect();
        if silent.is_empty() {
            // Consumers and calls that are done unpark the thread. Whatever came since it was polled did so, too.
            std::thread::park_timeout(patience);
        }
        for at in silent {
            self.poll_one(at, now, patience.min(Duration::from_millis(SLICE_MS)))?;
        }
        Ok(())
    }

    /// Does with something that is no message what `[errors] decode` says; it counts as read by every task that reads
    /// its partition.
    fn unreadable(&mut self, reader: usize, unreadable: Unreadable, now: Timestamp) -> Result<(), End> {
        let Unreadable { source, offset, bytes, why } = unreadable;
        let Reader { sources, readers_of, .. } = &mut self.inputs.readers[reader];
        let mut first = None;
        let headers = Headers::NONE;
        let message = Message { source, offset, key: None, value: None, timestamp_ms: None, headers };
        for at in &readers_of[source] {
            let source = &mut sources[*at];
            if source.before_end(&[message], now) == 0 {
                continue;
            }
            source.took(offset, None);
            self.work.processed += 1;
            first.get_or_insert((source.task, source.partition.clone()));
        }
        let Some((task, source)) = first else { return Ok(()) };
        let message = OwnedMessage {
            source,
            offset,
            key: None,
            value: Some(bytes),
            timestamp_ms: None,
            headers: OwnedHeaders::default(),
        };
        let failed = FailedMessage { message, cause: DecodeError(why).into() };
        self.failures.judge(&self.tasks[task].name, &Failed::Named, failed.into(), &mut self.outputs)
    }

    /// Polls one reader; returns how many messages came.
    fn poll_one(&mut self, at: usize, now: Timestamp, timeout: Duration) -> Result<usize, End> {
        let choosing = self.inputs.are_chosen();
        self.work.pulse.enter(Stage::Reading, 0);
        let Reader { consumer, sources, readers_of, .. } = &mut self.inputs.readers[at];
        let mut hands = Hands {
            tasks: &mut self.tasks,
            outputs: &mut self.outputs,
            work: &mut self.work,
            failures: &self.failures,
            meters: &self.meters,
            choosing,
            now,
            clock: &self.clock,
        };
        match consumer.poll(timeout, &mut |messages| hands.take(messages, sources, readers_of)) {
            Ok(count) => Ok(count + self.take_unreadable(at, now)?),
            Err(error) => match self.work.failed.take() {
                Some(end) => Err(end),
                None => self.cannot_read(at, now, error).map(|()| 0),
            },
        }
    }

    /// What is no message has its turn when everything before it was taken.
    fn take_unreadable(&mut self, reader: usize, now: Timestamp) -> Result<usize, End> {
        let mut count = 0;
        let any_held = self.inputs.readers[reader].sources.iter().any(|source| !source.held.is_empty());
        while !any_held
            && !self.work.holding
            && let Some(unreadable) = self.inputs.readers[reader].consumer.take_unreadable()
        {
            self.unreadable(reader, unreadable, now)?;
            count += 1;
        }
        Ok(count)
    }

    fn cannot_read(&mut self, at: usize, now: Timestamp, error: SystemError) -> Result<(), End> {
        let SystemError::Retriable(error) = error else { return Err(self.inputs.cannot_read(error)) };
        if now >= self.work.next_warning {
            warn!(%error, "cannot read now: trying again");
            self.work.next_warning = now.plus(10_000);
        }
        self.inputs.readers[at].retry_at = now.plus(RETRY_MS);
        Ok(())
    }

    /// Finds out where inputs end behind what was taken, for the last positions to be behind what cannot be seen there:
    /// should it be all there is, and be deleted, nothing of it is missed.
    pub(crate) fn settle(&mut self, now: Timestamp) -> Result<(), End> {
        let since = Instant::now();
        self.work.holding = true;
        while since.elapsed() < SETTLE && !self.inputs.are_settled() {
            self.poll(now, Duration::from_millis(SLICE_MS))?;
        }
        Ok(())
    }
}
