//! Metrics: counters, gauges, histograms and summaries that tasks and the runtime write and that are shown as Prometheus'
//! text.
//!
//! Writing is one atomic operation without a lock, but for summaries; names are looked up once, when the handle is made.

mod summary;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use summary::Summary;

/// Upper bounds of a histogram's buckets, in its own unit: 1, 2, 5, 10, … 5·10⁹.
const BOUNDS: [u64; 30] = bounds();

const fn bounds() -> [u64; 30] {
    let mut bounds = [0; 30];
    let (mut at, mut power) = (0, 1);
    while at < 30 {
        bounds[at] = power;
        bounds[at + 1] = 2 * power;
        bounds[at + 2] = 5 * power;
        power *= 10;
        at += 3;
    }
    bounds
}

/// A count that only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    /// Takes over a count that is kept elsewhere.
    pub fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }
}

/// A value that goes up and down.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
    /// The value.
    #[must_use]
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// How often values of each size were seen.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    sum: AtomicU64,
}

impl Histogram {
    /// Takes note of `value`, in the unit that the metric's name ends in.
    pub fn observe(&self, value: u64) {
        if let Some(bucket) = self.0.counts.get(BOUNDS.partition_point(|bound| *bound < value)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.sum.fetch_add(value, Ordering::Relaxed);
    }
    /// How many values were seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone)]
enum Metric {
    Counter(Counter),
    /// Of nanoseconds, shown as seconds.
    Time(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
    Summary(Summary),
}

/// By name and labels (as Prometheus writes them).
type Metrics = BTreeMap<(String, String), Metric>;

/// What sets metrics that are only looked up when somebody asks.
type Source = Arc<dyn Fn() + Send + Sync>;

/// Every metric of a process; a handle, cheap to clone.
#[derive(Clone, Default)]
pub struct MetricsRegistry {
    metrics: Arc<Mutex<Metrics>>,
    sources: Arc<Mutex<Vec<Source>>>,
}

impl std::fmt::Debug for MetricsRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MetricsRegistry({})", self.lock().len())
    }
}

impl MetricsRegistry {
    fn lock(&self) -> std::sync::MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same metrics, for a `set` of [`Self::before_showing`] to write: one that had what calls it would never be
    /// dropped.
    #[must_use]
    pub fn without_sources(&self) -> MetricsRegistry {
        MetricsRegistry { metrics: Arc::clone(&self.metrics), sources: Arc::default() }
    }

    /// Has `set` called before each time that the metrics are shown, on the thread that shows them.
    pub fn before_showing(&self, set: impl Fn() + Send + Sync + 'static) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(set));
    }

    /// The metrics that carry `labels`.
    #[must_use]
    pub fn with_labels(&self, labels: &[(&str, &str)]) -> TaskMetrics {
        let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let written: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        TaskMetrics { registry: self.clone(), labels: written.join(",") }
    }

    /// Prometheus' text format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sources.iter().for_each(|set| set());
        let metrics = self.lock();
        let mut text = String::new();
        let mut last = "";
        for ((name, labels), metric) in metrics.iter() {
            let kind = match metric {
                Metric::Counter(_) | Metric::Time(_) => "counter",
                Metric::Gauge(_) => "gauge",
                Metric::Histogram(_) => "histogram",
                Metric::Summary(_) => "summary",
            };
            if last != name {
                let _ = writeln!(text, "# TYPE {name} {kind}");
                last = name;
            }
            write_metric(&mut text, name, labels, metric);
        }
        text
    }
}

fn write_metric(text: &mut String, name: &str, labels: &str, metric: &Metric) {
    let braced = |extra: &str| match (labels.is_empty(), extra.is_empty()) {
        (true, true) => String::new(),
        (false, false) => format!("{{{labels},{extra}}}"),
        _ => format!("{{{labels}{extra}}}"),
    };
    // Writing into a String does not fail.
    let _ = match metric {
        Metric::Counter(counter) => writeln!(text, "{name}{} {}", braced(""), counter.get()),
        Metric::Time(counter) => writeln!(text, "{name}{} {}", braced(""), seconds(counter.get())),
        Metric::Gauge(gauge) => writeln!(text, "{name}{} {}", braced(""), gauge.get()),
        Metric::Histogram(Histogram(buckets)) => {
            let mut seen = 0;
            for (bound, count) in BOUNDS.iter().zip(&buckets.counts) {
                seen += count.load(Ordering::Relaxed);
                let _ = writeln!(text, "{name}_bucket{} {seen}", braced(&format!("le=\"{bound}\"")));
            }
            let count = buckets.count.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{} {count}", braced("le=\"+Inf\""));
            let _ = writeln!(text, "{name}_sum{} {}", braced(""), buckets.sum.load(Ordering::Relaxed));
            writeln!(text, "{name}_count{} {count}", braced(""))
        }
        Metric::Summary(summary) => {
            let shown = summary.show();
            for (quantile, value) in shown.quantiles {
                let _ = writeln!(text, "{name}{} {value}", braced(&format!("quantile=\"{quantile}\"")));
            }
            let _ = writeln!(text, "{name}_sum{} {}", braced(""), shown.sum);
            writeln!(text, "{name}_count{} {}", braced(""), shown.count)
        }
    };
}

#[expect(clippy::cast_precision_loss)] // Prometheus' numbers are floats
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Metrics with fixed labels: those of one task. Names are letters, digits and `_`; other characters become `_`.
#[derive(Debug, Clone, Default)]
pub struct TaskMetrics {
    registry: MetricsRegistry,
    labels: String,
}

impl TaskMetrics {
    fn metric(&self, name: &str, new: impl FnOnce() -> Metric) -> Metric {
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
        self.registry.lock().entry((name, self.labels.clone())).or_insert_with(new).clone()
    }

    /// The counter `name`; the same name gives the same counter. One that is taken by a metric of another kind gives
    /// a counter that is not shown.
    #[must_use]
    pub fn counter(&self, name: &str) -> Counter {
        match self.metric(name, || Metric::Counter(Counter::default())) {
            Metric::Counter(counter) => counter,
            _ => Counter::default(),
        }
    }

    /// A counter of nanoseconds that is shown in seconds; as [`Self::counter`].
    #[must_use]
    pub fn time(&self, name: &str) -> Counter {
        match self.metric(name, || Metric::Time(Counter::default())) {
            Metric::Time(counter) => counter,
            _ => Counter::default(),
        }
    }

    /// The gauge `name`; as [`Self::counter`].
    #[must_use]
    pub fn gauge(&self, name: &str) -> Gauge {
        match self.metric(name, || Metric::Gauge(Gauge::default())) {
            Metric::Gauge(gauge) => gauge,
            _ => Gauge::default(),
        }
    }

    /// The histogram `name`; as [`Self::counter`].
    #[must_use]
    pub fn histogram(&self, name: &str) -> Histogram {
        let new = || Histogram(Arc::default());
        match self.metric(name, || Metric::Histogram(new())) {
            Metric::Histogram(histogram) => histogram,
            _ => new(),
        }
    }

    /// The summary `name`; as [`Self::counter`].
    #[must_use]
    pub fn summary(&self, name: &str) -> Summary {
        match self.metric(name, || Metric::Summary(Summary::default())) {
            Metric::Summary(summary) => summary,
            _ => Summary::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_shown_as_prometheus_reads_them() {
        let registry = MetricsRegistry::default();
        let task = registry.with_labels(&[("task", "Partition \"0\"")]);
        task.counter("late-records").add(3);
        task.counter("late-records").inc();
        task.gauge("queue").set(1.5);
        task.histogram("took_ms").observe(3);
        task.histogram("took_ms").observe(5);
        registry.with_labels(&[]).counter("commits").inc();
        let text = registry.render();
        for line in [
            "# TYPE late_records counter\nlate_records{task=\"Partition \\\"0\\\"\"} 4\n",
            "# TYPE queue gauge\nqueue{task=\"Partition \\\"0\\\"\"} 1.5\n",
            "took_ms_bucket{task=\"Partition \\\"0\\\"\",le=\"2\"} 0\n",
            "took_ms_bucket{task=\"Partition \\\"0\\\"\",le=\"5\"} 2\n",
            "took_ms_bucket{task=\"Partition \\\"0\\\"\",le=\"+Inf\"} 2\n",
            "took_ms_sum{task=\"Partition \\\"0\\\"\"} 8\n",
            "# TYPE commits counter\ncommits 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_name_taken_by_another_kind_gives_one_that_is_not_shown() {
        let registry = MetricsRegistry::default();
        let metrics = registry.with_labels(&[]);
        metrics.counter("n").inc();
        metrics.gauge("n").set(7.0);
        assert_eq!(registry.render(), "# TYPE n counter\nn 1\n");
    }

    #[test]
    fn times_are_shown_in_seconds_and_summaries_with_their_quantiles() {
        let registry = MetricsRegistry::default();
        let task = registry.with_labels(&[("task", "t")]);
        task.time("wait_seconds_total").add(1_500_000_000);
        task.summary("took_seconds").observe(6_000_000_000, 3);
        let text = registry.render();
        for line in [
            "# TYPE wait_seconds_total counter\nwait_seconds_total{task=\"t\"} 1.5\n",
            "# TYPE took_seconds summary\ntook_seconds{task=\"t\",quantile=\"0.5\"} 2",
            "took_seconds_sum{task=\"t\"} 6\ntook_seconds_count{task=\"t\"} 3\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_kept_elsewhere_is_looked_up_when_somebody_asks() {
        let registry = MetricsRegistry::default();
        let (counter, asked) = (registry.with_labels(&[]).counter("n"), Arc::new(AtomicU64::new(4)));
        let of = Arc::clone(&asked);
        registry.before_showing(move || counter.set(of.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(registry.render(), "# TYPE n counter\nn 4\n");
        assert_eq!(registry.render(), "# TYPE n counter\nn 5\n");
    }
}
