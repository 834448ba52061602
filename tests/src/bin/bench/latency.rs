//! End-to-end latency: from the moment a message should be sent until its output can be read, at half of the rate that
//! the same setup holds at most, and of ours at the peer's rate too. Each message is counted in a store and sent on;
//! sender and reader are this process, on the same machine as the broker and the job.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use ::tests::{Brokers, Topics};
use anyhow::{Context, Result, anyhow, ensure};
use kafka::{KafkaConsumer, KafkaProducer};
use task_api::system::{Offset, ProducerRecord, StartAt, SystemConsumer, SystemProducer, TopicPartition};

use crate::cases::Selection;
use crate::cpu::PARTITIONS;
use crate::figures::{Figure, Figures, percentile};
use crate::ours::{Ours, PREFIX};
use crate::peers::{self, STREAMS, Span, Streams, StreamsRun};

const KEYS: u64 = 10_000;
const VALUE: usize = 100;
/// Messages that may be under way while the highest rate is looked for: at most so many, and at first, when it is not
/// known how slow the job is, few.
const UNDER_WAY: u64 = 100_000;
const UNDER_WAY_AT_FIRST: u64 = 1_000;
/// How long the highest rate is looked for; the first half is for warming up.
const SEARCH: Duration = Duration::from_secs(8);
/// Fewer outputs tell no rate.
const FEW: u64 = 1_000;
/// How long latency is measured, after a while at the same rate.
const MEASURE: Duration = Duration::from_secs(8);
const SETTLE: Duration = Duration::from_secs(2);
/// For outputs to come.
const LIMIT: Duration = Duration::from_secs(90);
/// Between two sends at a given rate.
const TICK: Duration = Duration::from_millis(1);

/// By name: the commit interval, and whether exactly once.
pub const CASES: [(&str, u64, bool); 4] = [
    ("latency-10ms", 10, false),
    ("latency-10ms-eos", 10, true),
    ("latency-100ms", 100, false),
    ("latency-100ms-eos", 100, true),
];

/// Measures what is selected; `quick` looks for a moment only.
pub fn measure(
    brokers: &'static Brokers,
    figures: &mut Figures,
    selection: &Selection,
    quick: bool,
) -> Result<()> {
    let names = CASES.map(|(name, ..)| name.to_owned());
    let selected = selection.of(&names, &CASES.map(|(name, ..)| name));
    let topics = Topics::on(brokers);
    let ours = Ours::start(brokers);
    let mut jvm = Streams::start(brokers)?;
    let divisor = if quick { 8 } else { 1 };
    for (name, commit_ms, exactly_once) in CASES {
        if !selected.iter().any(|selected| selected == name) {
            continue;
        }
        println!("{name}: {KEYS} keys counted and sent on, {VALUE}-byte values");
        let line = |who: &str| {
            let (input, output) = (format!("{PREFIX}{name}-{who}-in"), format!("{PREFIX}{name}-{who}-out"));
            topics.create(&input, PARTITIONS);
            topics.create(&output, PARTITIONS);
            Line { brokers, input, output, divisor }
        };
        let theirs = streams(&mut jvm, &line("streams"), commit_ms, exactly_once);
        let rate = theirs.as_ref().ok().map(|theirs| theirs.highest / 2.0);
        let mine = our_job(&ours, &line("ours"), commit_ms, exactly_once, rate)?;
        report(figures, name, mine, theirs)?;
        peers::delete_topics(brokers, &format!("{PREFIX}.*"))?;
    }
    Ok(())
}

fn our_job(
    ours: &Ours,
    line: &Line,
    commit_ms: u64,
    exactly_once: bool,
    rate: Option<f64>,
) -> Result<Latencies> {
    let mut job = ours.job("forward", &line.input, Some(&line.output), Span { warm_up: 0, window: 0 });
    job.delivery = if exactly_once { "exactly-once" } else { "at-least-once" }.into();
    job.commit = format!("{commit_ms}ms");
    ours.cluster.submit(&job);
    let measured = line.measure(rate);
    ours.cluster.stop(&job);
    measured
}

fn streams(jvm: &mut Streams, line: &Line, commit_ms: u64, exactly_once: bool) -> Result<Latencies> {
    jvm.begin(&StreamsRun {
        mode: "forward",
        application: &line.output.replace("-out", ""),
        input: &line.input,
        output: Some(&line.output),
        exactly_once,
        commit_ms,
        changelog: true,
        span: Span { warm_up: 0, window: 0 },
    })?;
    let measured = line.measure(None);
    jvm.end()?;
    measured
}

/// The peer may not hold any rate with commits so close to each other: it is left out then.
fn report(
    figures: &mut Figures,
    name: &str,
    mut mine: Latencies,
    mut theirs: Result<Latencies>,
) -> Result<()> {
    for (suffix, p) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        let mut figure = Figure::new(format!("{name}-{suffix}"), percentile(&mut mine.ms, p), "ms");
        if let Ok(theirs) = &mut theirs {
            figure = figure.beside(STREAMS, percentile(&mut theirs.ms, p));
        }
        figures.add(figure)?;
        // At the same rate.
        if let (Some(ours), Ok(theirs)) = (&mut mine.ms_at_other_rate, &mut theirs) {
            let figure = Figure::new(format!("{name}-same-rate-{suffix}"), percentile(ours, p), "ms");
            figures.add(figure.beside(STREAMS, percentile(&mut theirs.ms, p)))?;
        }
    }
    let rates =
        |of: &Latencies| format!("at {:.0} messages/s of at most {:.0}", of.highest / 2.0, of.highest);
    let theirs = theirs.as_ref().map_or_else(|error| format!("failed: {error}"), rates);
    figures.note(format!("{name}: {}; {STREAMS} {theirs}", rates(&mine)));
    Ok(())
}

/// What was measured of one side.
struct Latencies {
    /// Messages per second that it holds at most.
    highest: f64,
    /// At half of that.
    ms: Vec<f64>,
    /// At the rate that was asked for, if it holds that.
    ms_at_other_rate: Option<Vec<f64>>,
}

/// A job's topics.
struct Line {
    brokers: &'static Brokers,
    input: String,
    output: String,
    /// Of all times.
    divisor: u32,
}

impl Line {
    /// Finds the highest rate, then measures at half of it and at `other_rate`.
    fn measure(&self, other_rate: Option<f64>) -> Result<Latencies> {
        let epoch = Instant::now();
        let reader = Reader::start(self, epoch)?;
        let mut sender = Sender::new(self, epoch)?;
        // Until it runs.
        sender.send(sender.now(), 100)?;
        reader.shared.wait_for(100)?;
        let search = SEARCH / self.divisor;
        let begun = Instant::now();
        let (mut half_way, mut received) = (None, 0);
        while begun.elapsed() < search || half_way.is_none_or(|(_, before)| received < before + FEW) {
            ensure!(begun.elapsed() < LIMIT, "{received} outputs came while the highest rate was looked for");
            received = reader.shared.received.load(Ordering::Relaxed);
            if sender.sent - received < UNDER_WAY.min(UNDER_WAY_AT_FIRST + received) {
                sender.send(sender.now(), 100)?;
            } else {
                sleep(TICK);
            }
            if half_way.is_none() && begun.elapsed() > search / 2 {
                half_way = Some((Instant::now(), received));
            }
        }
        let (since, before) = half_way.context("the search took no time")?;
        #[expect(clippy::cast_precision_loss)] // some millions
        let highest = (received - before) as f64 / since.elapsed().as_secs_f64();
        reader.shared.wait_for(sender.sent)?;

        let ms = self.measure_at(highest / 2.0, &mut sender, &reader)?;
        let other_rate = other_rate.filter(|rate| *rate < highest);
        let other = other_rate.map(|rate| self.measure_at(rate, &mut sender, &reader)).transpose()?;
        reader.finish()?;
        Ok(Latencies { highest, ms, ms_at_other_rate: other })
    }

    fn measure_at(&self, per_second: f64, sender: &mut Sender, reader: &Reader) -> Result<Vec<f64>> {
        sender.pace(per_second, SETTLE / self.divisor)?;
        reader.shared.measured_from.store(nanos(sender.now()), Ordering::Relaxed);
        sender.pace(per_second, MEASURE / self.divisor)?;
        reader.shared.wait_for(sender.sent)?;
        reader.shared.measured_from.store(u64::MAX, Ordering::Relaxed);
        let ms = std::mem::take(&mut *reader.shared.ms.lock().expect("the reader lives"));
        ensure!(!ms.is_empty(), "nothing was measured");
        Ok(ms)
    }
}

/// Writes messages that carry when they should have been sent, in ns since an epoch.
struct Sender {
    producer: KafkaProducer,
    handle: task_api::system::TopicHandle,
    epoch: Instant,
    sent: u64,
}

impl Sender {
    fn new(line: &Line, epoch: Instant) -> Result<Sender> {
        let settings = BTreeMap::from([
            ("linger.ms".to_owned(), "1".to_owned()),
            ("compression.type".to_owned(), "none".to_owned()),
        ]);
        let mut producer = KafkaProducer::idempotent(&line.brokers.bootstrap, "bench", &settings)?;
        let handle = producer.topic(&line.input)?;
        Ok(Sender { producer, handle, epoch, sent: 0 })
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn send(&mut self, when: Duration, count: u64) -> Result<()> {
        let mut value = [b'v'; VALUE];
        value[..8].copy_from_slice(&nanos(when).to_be_bytes());
        for _ in 0..count {
            self.sent += 1;
            let key = format!("k{:07}", self.sent.wrapping_mul(7_919) % KEYS);
            self.producer.send(&ProducerRecord::new(self.handle, Some(key.as_bytes()), Some(&value)))?;
        }
        Ok(())
    }

    /// Sends at a rate. What comes late carries the time that it should have come at.
    fn pace(&mut self, per_second: f64, time: Duration) -> Result<()> {
        let begun = self.now();
        let mut owed = 0.0;
        let mut tick = begun;
        while tick < begun + time {
            tick += TICK;
            owed += per_second * TICK.as_secs_f64();
            sleep(tick.saturating_sub(self.now()));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // some hundreds
            let due = owed as u64;
            #[expect(clippy::cast_precision_loss)]
            let done = due as f64;
            owed -= done;
            self.send(tick, due)?;
        }
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What the reader tells.
struct Shared {
    received: AtomicU64,
    /// The latencies of what should be sent from then on are kept.
    measured_from: AtomicU64,
    ms: Mutex<Vec<f64>>,
    over: AtomicBool,
}

impl Shared {
    fn wait_for(&self, count: u64) -> Result<()> {
        let begun = Instant::now();
        while self.received.load(Ordering::Relaxed) < count {
            if begun.elapsed() > LIMIT {
                return Err(anyhow!("{} of {count} outputs came", self.received.load(Ordering::Relaxed)));
            }
            sleep(TICK);
        }
        Ok(())
    }
}

/// Reads committed outputs on a thread of its own.
struct Reader {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<()>>,
}

impl Reader {
    fn start(line: &Line, epoch: Instant) -> Result<Reader> {
        let shared = Arc::new(Shared {
            received: AtomicU64::new(0),
            measured_from: AtomicU64::new(u64::MAX),
            ms: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let mut consumer = KafkaConsumer::new(&line.brokers.bootstrap, "bench", "bench", &BTreeMap::new())?;
        let partition = |partition| TopicPartition { topic: line.output.clone(), partition };
        // Asks nothing of a leader that may not know yet that it is one.
        let beginning = || StartAt::At(Offset("0".into()));
        consumer.assign(&(0..PARTITIONS).map(|n| (partition(n), beginning())).collect::<Vec<_>>())?;
        let told = Arc::clone(&shared);
        let thread = std::thread::Builder::new().spawn(move || {
            while !told.over.load(Ordering::Relaxed) {
                consumer.poll(Duration::from_millis(50), &mut |messages| {
                    let now = nanos(epoch.elapsed());
                    let from = told.measured_from.load(Ordering::Relaxed);
                    told.ms.lock().expect("nobody panics with it").extend(messages.iter().filter_map(
                        |message| {
                            let sent = u64::from_be_bytes(message.value?.get(..8)?.try_into().ok()?);
                            #[expect(clippy::cast_precision_loss)] // some seconds
                            (sent >= from).then(|| now.saturating_sub(sent) as f64 / 1e6)
                        },
                    ));
                    told.received.fetch_add(messages.len() as u64, Ordering::Relaxed);
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(Reader { shared, thread })
    }

    fn finish(self) -> Result<()> {
        self.shared.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the reader panicked"))?
    }
}
