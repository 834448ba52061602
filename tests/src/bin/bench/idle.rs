//! A job that reads two systems of which one is idle, beside the same job that reads the busy one alone.

use ::tests::{Brokers, Topics};
use anyhow::Result;

use crate::cases::Input;
use crate::cpu::{PARTITIONS, fill};
use crate::figures::{Figure, Figures};
use crate::ours::{Ours, PREFIX};
use crate::peers::{self, Measured, Span};

const INPUT: Input = Input { keys: 200_000, value: 100, headers: false };
const SPAN: Span = Span { warm_up: 1_000_000, window: 3_000_000 };
/// Of the rate of one system alone, what should be left beside an idle one.
const SHARE: f64 = 0.95;

/// Measures both.
pub fn measure(brokers: &'static Brokers, figures: &mut Figures, divisor: u64) -> Result<()> {
    let topics = Topics::on(brokers);
    let (busy, idle) = (format!("{PREFIX}busy"), format!("{PREFIX}idle"));
    let span = Span { warm_up: SPAN.warm_up / divisor, window: SPAN.window / divisor };
    println!("idle: filling {busy} with {} messages", span.warm_up + span.window);
    topics.create(&busy, PARTITIONS);
    topics.create(&idle, PARTITIONS);
    fill(brokers, &busy, INPUT, span.warm_up + span.window)?;
    let ours = Ours::start(brokers);
    let run = |other: &[String]| -> Measured {
        let mut job = ours.job("consume", &busy, None, span);
        job.other_inputs = other.to_vec();
        job.delivery = "at-least-once".into();
        job.stores.clear();
        ours.cluster.submit(&job);
        let measured = ours.printed(&job);
        ours.cluster.stop(&job);
        measured
    };
    let (alone, beside) = (run(&[]), run(std::slice::from_ref(&idle)));
    let each = |of: &Measured| 1e9 / of.msgs_per_s;
    let figure = Figure::new("two-systems-one-idle", each(&beside), "ns/message");
    figures.add(figure.beside("one system", each(&alone)).at_most_share(Some(1.0 / SHARE)))?;
    drop(ours);
    peers::delete_topics(brokers, &format!("{PREFIX}.*"))
}
