//! The runtime's own metrics, beside those that tasks make; served as Prometheus' text. `docs/metrics.md` has them all, and
//! a test compares it with the page of a job.
//!
//! Whoever writes them looks at the clock once a batch or once a call that is no message's, never once a message.

use task_api::TaskMetrics;
use task_api::metrics::{Counter, Gauge, MetricsRegistry, Summary};
use task_core::commit::CommitStep;
use types::{TaskName, Timestamp};

/// How long a turn of summaries is: their quantiles are of the last one to two of them.
pub(crate) const TURN_MS: u64 = 30_000;

/// One task's.
pub(crate) struct TaskMeters {
    processed: Counter,
    lag: Gauge,
    pub(crate) process: Summary,
    pub(crate) window: Option<Summary>,
    pub(crate) timer: Option<Summary>,
}

impl TaskMeters {
    pub(crate) fn new(metrics: &TaskMetrics, has_windows: bool, has_timers: bool) -> TaskMeters {
        TaskMeters {
            processed: metrics.counter("samza_task_messages_processed_total"),
            lag: metrics.gauge("samza_task_lag_messages"),
            process: metrics.summary("samza_task_process_seconds"),
            window: has_windows.then(|| metrics.summary("samza_task_window_seconds")),
            timer: has_timers.then(|| metrics.summary("samza_task_timer_seconds")),
        }
    }

    #[expect(clippy::cast_precision_loss)] // Prometheus' numbers are floats
    pub(crate) fn report(&self, processed: u64, lag: Option<u64>) {
        self.processed.set(processed);
        self.lag.set(lag.map_or(f64::NAN, |lag| lag as f64));
    }

    pub(crate) fn turn(&self) {
        self.process.turn();
        self.window.iter().chain(&self.timer).for_each(Summary::turn);
    }
}

/// One input partition's, as one task reads it.
#[derive(Default)]
pub(crate) struct InputMeters {
    lag: Gauge,
    lag_seconds: Gauge,
    open_transaction: Gauge,
}

impl InputMeters {
    pub(crate) fn new(
        registry: &MetricsRegistry,
        task: &TaskName,
        stream: &str,
        partition: i32,
    ) -> InputMeters {
        let partition = partition.to_string();
        let labels = [("task", task.0.as_str()), ("stream", stream), ("partition", &partition)];
        let metrics = registry.with_labels(&labels);
        InputMeters {
            lag: metrics.gauge("samza_input_lag_messages"),
            lag_seconds: metrics.gauge("samza_input_lag_seconds"),
            open_transaction: metrics.gauge("samza_input_open_transaction_seconds"),
        }
    }

    #[expect(clippy::cast_precision_loss)] // Prometheus' numbers are floats
    pub(crate) fn report(&self, lag: Option<u64>, lag_ms: Option<u64>, stands_ms: u64) {
        self.lag.set(lag.map_or(f64::NAN, |lag| lag as f64));
        self.lag_seconds.set(lag_ms.map_or(f64::NAN, |ms| ms as f64 / 1e3));
        self.open_transaction.set(stands_ms as f64 / 1e3);
    }
}

/// What a restore of one store has read.
#[expect(clippy::cast_precision_loss)] // Prometheus' numbers are floats
pub(crate) fn restored(
    registry: &MetricsRegistry,
    (task, store): (&TaskName, &str),
    took: std::time::Duration,
    (rows, bytes): (u64, u64),
) {
    let metrics = registry.with_labels(&[("task", task.0.as_str()), ("store", store)]);
    metrics.gauge("samza_store_restore_seconds").set(took.as_secs_f64());
    metrics.gauge("samza_store_restored_rows").set(rows as f64);
    metrics.gauge("samza_store_restored_bytes").set(bytes as f64);
}

/// What a thread does with its time.
#[derive(Clone, Copy)]
pub(crate) enum Spent {
    /// Waiting for messages and taking them from clients.
    Poll,
    /// In tasks: messages.
    Process,
    /// In tasks: windows, timers.
    Timed,
    Commit,
}

/// One thread's.
pub(crate) struct ThreadMeters {
    pub(crate) commits: Counter,
    pub(crate) changelog_rows: Counter,
    pub(crate) commit: Summary,
    /// By part of a commit.
    parts: [Summary; PARTS.len()],
    /// By [`Spent`], then what is none of them.
    spent: [Counter; 5],
    /// When the thread began to work, ns.
    began: Option<u64>,
    next_turn: Timestamp,
}

/// The parts of a commit that may take long.
const PARTS: [&str; 5] = ["outputs", "rows", "ends", "transaction", "disk"];

impl ThreadMeters {
    pub(crate) fn new(registry: &MetricsRegistry, thread: usize) -> ThreadMeters {
        let thread = thread.to_string();
        let metrics = registry.with_labels(&[("thread", &thread)]);
        let of = |label, value| registry.with_labels(&[("thread", thread.as_str()), (label, value)]);
        ThreadMeters {
            commits: metrics.counter("samza_commits_total"),
            changelog_rows: metrics.counter("samza_changelog_rows_total"),
            commit: metrics.summary("samza_commit_seconds"),
            parts: PARTS.map(|part| of("part", part).summary("samza_commit_part_seconds")),
            spent: ["poll", "process", "timed", "commit", "other"]
                .map(|state| of("state", state).time("samza_thread_seconds_total")),
            began: None,
            next_turn: Timestamp::default(),
        }
    }

    /// A step of a commit took so long.
    pub(crate) fn step(&self, step: CommitStep, took_ns: u64) {
        let part = match step {
            CommitStep::FlushOutputs => 0,
            CommitStep::DrainCaches => 1,
            CommitStep::ChangelogEnds => 2,
            CommitStep::Commit => 3,
            CommitStep::FlushStores => 4,
            CommitStep::Begin | CommitStep::Checkpoints => return,
        };
        self.parts[part].observe(took_ns, 1);
    }

    pub(crate) fn spent(&self, on: Spent, ns: u64) {
        self.spent[on as usize].add(ns);
    }
    pub(crate) fn spent_on(&self, on: Spent) -> u64 {
        self.spent[on as usize].get()
    }

    /// What time went by and was spent on nothing that is told went to the thread itself.
    pub(crate) fn report(&mut self, now_ns: u64) {
        let began = *self.began.get_or_insert(now_ns);
        let (other, told) = self.spent.split_last().expect("there are five");
        let told: u64 = told.iter().map(Counter::get).sum();
        other.set(other.get().max((now_ns - began).saturating_sub(told)));
    }

    /// Whether a turn of summaries is over; those of the thread are turned then.
    pub(crate) fn turn(&mut self, now: Timestamp) -> bool {
        if now < self.next_turn {
            return false;
        }
        self.next_turn = now.plus(TURN_MS);
        self.parts.iter().chain([&self.commit]).for_each(Summary::turn);
        true
    }
}
