//! CPU per message and messages per second: ours, a plain rust-rdkafka loop and Kafka Streams, one process at a time,
//! over the same input.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant};

use ::tests::{Brokers, Topics};
use anyhow::Result;
use kafka::KafkaProducer;
use task_api::system::{ProducerRecord, SystemProducer};
use task_api::{Header, Headers};

use crate::cases::{Case, HEADER_BYTES, Input, Work};
use crate::figures::{Figure, Figures};
use crate::ours::{Ours, PREFIX};
use crate::peers::{self, Measured, RDKAFKA, STREAMS, Span, Streams, StreamsRun};

/// Partitions of every topic here.
pub const PARTITIONS: i32 = 4;
/// What programs without a JVM need to reach their pace, and a warm JVM with the next topology. What follows is
/// measured; ours takes some seconds for it: long enough for flushes to disk to be among it.
const WARM_UP: u64 = 2_000_000;
/// What a JVM is measured over.
const JVM_WINDOW: u64 = 2_000_000;
/// What inputs of large values and of few keys have.
const LARGE_MESSAGES: u64 = 3_000_000;
const FEW_KEYS_MESSAGES: u64 = 8_000_000;

/// What headers at which nobody looks may cost: with them a message may take so much of what one of the same size takes.
const UNREAD_HEADERS: f64 = 1.02;

/// How much is read.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Messages that a cold JVM works on before it is measured.
    pub jvm_warm_up: u64,
    /// Everything is divided by this.
    pub divisor: u64,
}

impl Sizes {
    /// Messages of an input.
    fn messages(self, input: Input) -> u64 {
        let messages = match input {
            Input { value: 1_000.., .. } => LARGE_MESSAGES,
            Input { keys: 1_000_000.., .. } => 8 * input.keys / 5,
            Input { keys: ..100_000, .. } => FEW_KEYS_MESSAGES,
            Input { .. } => self.jvm_warm_up.max(WARM_UP) + JVM_WINDOW,
        };
        messages / self.divisor
    }

    /// What comes before all keys are known and a warm program has its pace.
    fn warm_up(self, input: Input) -> u64 {
        let warm_up = if input.value >= 1_000 { LARGE_MESSAGES / 3 } else { WARM_UP };
        warm_up.max(6 * input.keys / 5) / self.divisor
    }

    /// For programs without a JVM.
    fn span(self, input: Input) -> Span {
        let warm_up = self.warm_up(input);
        Span { warm_up, window: self.messages(input) - warm_up }
    }

    /// For a JVM, warm by then or not.
    fn jvm_span(self, input: Input, warm: bool) -> Span {
        let window = JVM_WINDOW / self.divisor;
        let warm_up = if warm { self.warm_up(input) } else { self.jvm_warm_up.max(WARM_UP) / self.divisor };
        Span { warm_up: warm_up.min(self.messages(input) - window), window }
    }
}

/// Sends `count` messages whose keys are spread evenly and in no order. Half of a value is the same in all messages,
/// the other half is not; they are not compressed.
pub fn fill(brokers: &Brokers, topic: &str, input: Input, count: u64) -> Result<()> {
    let settings = BTreeMap::from([
        ("linger.ms".to_owned(), "20".to_owned()),
        ("compression.type".to_owned(), "none".to_owned()),
    ]);
    let mut producer = KafkaProducer::idempotent(&brokers.bootstrap, "bench", &settings)?;
    let handle = producer.topic(topic)?;
    let mut state: u64 = 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    // Letters in no order, longer than what compressors remember.
    let letters: Vec<u8> = (0..1 << 20).map(|_| b'0' + (next() % 64) as u8).collect();
    let mut value = vec![b'v'; input.value];
    let of_message = [
        Header::new("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        Header::new("content-type", b"application/octet-stream"),
        Header::new("origin", b"bench"),
    ];
    let bytes = |header: &Header<'_>| header.name.len() + header.value.map_or(0, <[u8]>::len);
    let (lengths, most) = (2 * of_message.len(), HEADER_BYTES);
    assert_eq!(of_message.iter().map(bytes).sum::<usize>() + lengths, most, "a length takes a byte");
    let headers = Headers::new(if input.headers { &of_message } else { &[] });
    let half = input.value / 2;
    for _ in 0..count {
        let key = format!("k{:07}", next() % input.keys);
        let from = next() as usize % (letters.len() - half);
        value[half..half + half].copy_from_slice(&letters[from..from + half]);
        let record = ProducerRecord::new(handle, Some(key.as_bytes()), Some(&value));
        producer.send(&ProducerRecord { headers, ..record })?;
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}

/// Measures `cases`.
pub fn measure(brokers: &'static Brokers, figures: &mut Figures, cases: &[Case], sizes: Sizes) -> Result<()> {
    let topics = Topics::on(brokers);
    let mut bench = Bench { brokers, topics, inputs: BTreeMap::new(), loops: BTreeMap::new(), sizes };
    for case in cases {
        bench.fill(case.input)?;
    }
    let streams = bench.streams(cases)?;
    let ours = Ours::start(brokers);
    let mut of_ours = BTreeMap::new();
    for (case, streams) in cases.iter().zip(streams) {
        println!("cpu: {}", case.name());
        let output = bench.output(case.sends(), case, "ours");
        let input = &bench.inputs[&case.input];
        let mine = ours.measure(case, input, output.as_deref(), sizes.span(case.input));
        let rdkafka = bench.rdkafka(case)?;
        report(figures, case, &mine, &rdkafka, &streams)?;
        of_ours.insert(case.name(), mine.cpu_ns_per_message);
        if let Some(plain) = case.without_headers().map(|plain| plain.name())
            && let Some(cpu) = of_ours.get(&plain)
        {
            let figure = Figure::new("unread-headers-cpu", mine.cpu_ns_per_message, "ns/message");
            figures.add(figure.beside(&plain, *cpu).at_most_share(Some(UNREAD_HEADERS)))?;
        }
        if case.sends() || case.changelog {
            peers::delete_topics(brokers, &format!("{PREFIX}{}-.*", case.name()))?;
        }
    }
    drop(ours);
    peers::delete_topics(brokers, &format!("{PREFIX}.*"))
}

fn report(
    figures: &mut Figures,
    case: &Case,
    ours: &Measured,
    rdkafka: &Measured,
    streams: &Measured,
) -> Result<()> {
    let (cpu, rate) = (format!("{}-cpu", case.name()), format!("{}-rate", case.name()));
    let peers = [(STREAMS, streams, case.share_of_streams()), (RDKAFKA, rdkafka, case.share_of_rdkafka())];
    for (peer, theirs, share) in peers {
        let figure = Figure::new(&cpu, ours.cpu_ns_per_message, "ns/message");
        figures.add(figure.beside(peer, theirs.cpu_ns_per_message).at_most_share(share))?;
        figures.add(Figure::new(&rate, ours.msgs_per_s, "messages/s").beside(peer, theirs.msgs_per_s))?;
    }
    println!(
        "  measured over {} messages, {STREAMS} over {}, {RDKAFKA} over {}",
        ours.messages, streams.messages, rdkafka.messages
    );
    Ok(())
}

struct Bench {
    brokers: &'static Brokers,
    topics: Topics,
    /// Topics that are filled.
    inputs: BTreeMap<Input, String>,
    /// What the plain loop took, by the case that it stands for.
    loops: BTreeMap<String, Measured>,
    sizes: Sizes,
}

impl Bench {
    /// Fills a topic, unless it is.
    fn fill(&mut self, input: Input) -> Result<()> {
        if let Entry::Vacant(place) = self.inputs.entry(input) {
            let topic = place.insert(format!("{PREFIX}in-{}", input.name()));
            let messages = self.sizes.messages(input);
            println!("cpu: filling {topic} with {messages} messages");
            self.topics.create(topic, PARTITIONS);
            fill(self.brokers, topic, input, messages)?;
        }
        Ok(())
    }

    /// Measures the plain loop, unless another case has done what is the same to it.
    fn rdkafka(&mut self, case: &Case) -> Result<Measured> {
        let same = case.without_mode().name();
        if let Some(measured) = self.loops.get(&same) {
            return Ok(measured.clone());
        }
        let output = self.output(case.sends() || case.changelog, case, "rdkafka");
        let (input, span) = (&self.inputs[&case.input], self.sizes.span(case.input));
        let measured = peers::rdkafka(self.brokers, case, input, output.as_deref(), span)?;
        self.loops.insert(same, measured.clone());
        Ok(measured)
    }

    /// A new topic for what a program sends, if it sends.
    fn output(&self, sends: bool, case: &Case, who: &str) -> Option<String> {
        sends.then(|| {
            let topic = format!("{PREFIX}{}-{who}", case.name());
            self.topics.create(&topic, PARTITIONS);
            topic
        })
    }

    /// Measures Kafka Streams, in the order of `cases`. One JVM counts, another does not: each has its code compiled
    /// for what it does.
    fn streams(&self, cases: &[Case]) -> Result<Vec<Measured>> {
        let mut measured = BTreeMap::new();
        for counts in [false, true] {
            let mut jvm = None;
            for (at, case) in cases.iter().enumerate().filter(|(_, c)| (c.work == Work::Count) == counts) {
                let span = self.sizes.jvm_span(case.input, jvm.is_some());
                let jvm = match &mut jvm {
                    Some(jvm) => jvm,
                    none => none.insert(Streams::start(self.brokers)?),
                };
                measured.insert(at, self.streams_case(jvm, case, span)?);
            }
        }
        Ok(measured.into_values().collect())
    }

    fn streams_case(&self, jvm: &mut Streams, case: &Case, span: Span) -> Result<Measured> {
        let begun = Instant::now();
        let output = self.output(case.sends(), case, "streams");
        jvm.begin(&StreamsRun {
            mode: case.work.mode(),
            application: &format!("{PREFIX}streams-{}", case.name()),
            input: &self.inputs[&case.input],
            output: output.as_deref(),
            exactly_once: case.exactly_once,
            commit_ms: case.commit_ms,
            changelog: case.changelog,
            span,
        })?;
        let measured = jvm.measured()?;
        println!(
            "cpu: {STREAMS}, {}: {:.0} ns, took {:.0} s",
            case.name(),
            measured.cpu_ns_per_message,
            begun.elapsed().as_secs_f32()
        );
        Ok(measured)
    }
}
