//! How tasks stand with their inputs: lag in messages and in time, and what waits for an open transaction.

use task_api::metrics::MetricsRegistry;
use task_api::system::SystemConsumer;
use tracing::warn;
use types::{OpenTransaction, TaskModel, Timestamp};

use super::{Inputs, Reader, Source};
use crate::meters::InputMeters;

/// An input that stands behind an open transaction for so long is told, and again after so long.
const STANDS_MS: u64 = 15_000;

/// An input that is at an end that is not the log's.
#[derive(Clone, Copy)]
pub(super) struct Stands {
    at: u64,
    since: Timestamp,
    told: Timestamp,
}

/// How a task stands with its inputs.
#[derive(Default)]
pub(crate) struct Standing {
    /// Messages between it and their ends; none if not all are known.
    pub(crate) lag: Option<u64>,
    /// How old the last message is that was taken of the input that is furthest behind in time, ms: 0 if there is nothing
    /// more to be taken, none if nobody knows.
    pub(crate) lag_ms: Option<u64>,
    /// What waits for an open transaction.
    pub(crate) waits: Vec<OpenTransaction>,
}

impl Source {
    /// Messages to the end; none if it is not known.
    fn lag(&self, consumer: &dyn SystemConsumer) -> Option<u64> {
        let position = self.position(consumer).unwrap_or(0);
        if self.ended { Some(0) } else { consumer.lag(self.place, position) }
    }

    /// How old the last message taken is, ms.
    fn lag_ms(&self, lag: Option<u64>, unix_ms: u64) -> Option<u64> {
        if lag == Some(0) { Some(0) } else { self.last_unix_ms.map(|last| unix_ms.saturating_sub(last)) }
    }

    /// For how long it has stood behind an open transaction, ms.
    fn stands_ms(&self, now: Timestamp) -> u64 {
        self.stands.map_or(0, |stands| now.since(stands.since))
    }
}

impl Reader {
    /// Finds out which inputs stand behind an open transaction, and tells it now and then.
    fn look_at_standing(&mut self, now: Timestamp) {
        for source in &mut self.sources {
            let at = source.position(&*self.consumer).unwrap_or(0);
            let lag = source.lag(&*self.consumer).unwrap_or(0);
            let goes_on = source.ends_at.map_or(lag > 0, |end| at < end);
            if source.ended || !goes_on || !source.is_caught_up(&*self.consumer) {
                source.stands = None;
                continue;
            }
            match &mut source.stands {
                Some(stands) if stands.at == at => {
                    if now.since(stands.told) >= STANDS_MS {
                        stands.told = now;
                        let open_s = now.since(stands.since) / 1_000;
                        let (stream, partition) = (&source.stream, source.partition.partition);
                        let is_bounded = source.ends_at.is_some();
                        warn!(
                            at,
                            lag,
                            is_bounded,
                            "{stream}-{partition} goes on behind a transaction of its producers that is open since {open_s} s \
                             or longer: nothing of it can be read before that is decided (`kafka-transactions.sh find-hanging` tells whose it is)"
                        );
                    }
                }
                _ => source.stands = Some(Stands { at, since: now, told: now }),
            }
        }
    }
}

impl Inputs {
    /// Finds out which inputs stand behind an open transaction, and tells it now and then.
    pub(crate) fn look_at_standing(&mut self, now: Timestamp) {
        self.readers.iter_mut().for_each(|reader| reader.look_at_standing(now));
    }

    /// Shows each input as a metric from now on.
    pub(crate) fn show(&mut self, models: &[TaskModel], metrics: &MetricsRegistry) {
        for source in self.readers.iter_mut().flat_map(|reader| &mut reader.sources) {
            let task = &models[source.task].name;
            source.meters = InputMeters::new(metrics, task, &source.stream, source.partition.partition);
        }
    }

    /// How a task stands with its inputs; shown as metrics too.
    pub(crate) fn standing(&self, task: usize, now: Timestamp, unix_ms: u64) -> Standing {
        let mut all = Standing { lag: Some(0), lag_ms: Some(0), waits: Vec::new() };
        for (reader, source) in self.of_task(task) {
            let lag = source.lag(&*reader.consumer);
            let (lag_ms, stands_ms) = (source.lag_ms(lag, unix_ms), source.stands_ms(now));
            source.meters.report(lag, lag_ms, stands_ms);
            all.lag = all.lag.zip(lag).map(|(all, one)| all + one);
            all.lag_ms = all.lag_ms.zip(lag_ms).map(|(all, one)| all.max(one));
            if stands_ms >= STANDS_MS {
                all.waits.push(OpenTransaction { input: source.partition.clone(), age_ms: stands_ms });
            }
        }
        all
    }
}
