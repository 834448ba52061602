//! The runtime's own metrics, beside those that tasks make; served as Prometheus' text.

use task_api::TaskMetrics;
use task_api::metrics::{Counter, Gauge, Histogram, MetricsRegistry};

/// One task's.
pub(crate) struct TaskMeters {
    processed: Gauge,
    lag: Gauge,
}

impl TaskMeters {
    pub(crate) fn new(metrics: &TaskMetrics) -> TaskMeters {
        TaskMeters {
            processed: metrics.gauge("samza_task_messages_processed"),
            lag: metrics.gauge("samza_task_lag_messages"),
        }
    }

    #[expect(clippy::cast_precision_loss)] // Prometheus' numbers are floats
    pub(crate) fn report(&self, processed: u64, lag: Option<u64>) {
        self.processed.set(processed as f64);
        self.lag.set(lag.map_or(f64::NAN, |lag| lag as f64));
    }
}

/// One thread's.
pub(crate) struct ThreadMeters {
    pub(crate) commits: Counter,
    pub(crate) commit_us: Histogram,
    pub(crate) changelog_rows: Counter,
}

impl ThreadMeters {
    pub(crate) fn new(registry: &MetricsRegistry, thread: usize) -> ThreadMeters {
        let metrics = registry.with_labels(&[("thread", &thread.to_string())]);
        ThreadMeters {
            commits: metrics.counter("samza_commits_total"),
            commit_us: metrics.histogram("samza_commit_microseconds"),
            changelog_rows: metrics.counter("samza_changelog_rows_total"),
        }
    }
}
