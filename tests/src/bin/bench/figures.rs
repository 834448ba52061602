//! What was measured: kept beside what it is compared with and what it should be, appended to `target/bench.jsonl`,
//! printed as a table.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;

use ::tests::brokers::repository;
use anyhow::{Context, Result};
use serde::Serialize;

/// One figure, as a line of `bench.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    name: String,
    /// Ours.
    value: f64,
    /// Of all values.
    unit: String,
    /// Whom it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    /// The peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_value: Option<f64>,
    /// The most that ours should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
}

impl Figure {
    /// `value` of ours.
    pub fn new(name: impl Into<String>, value: f64, unit: &str) -> Figure {
        Figure {
            name: name.into(),
            value: rounded(value),
            unit: unit.to_owned(),
            peer: None,
            peer_value: None,
            target: None,
        }
    }

    /// Beside `value` of `peer`.
    pub fn beside(mut self, peer: &str, value: f64) -> Figure {
        (self.peer, self.peer_value) = (Some(peer.to_owned()), Some(rounded(value)));
        self
    }

    /// Which should be at most `target`.
    pub fn at_most(mut self, target: f64) -> Figure {
        self.target = Some(rounded(target));
        self
    }

    /// Which should be at most this share of the peer's, if there is such a target.
    pub fn at_most_share(self, share: Option<f64>) -> Figure {
        match (share, self.peer_value) {
            (Some(share), Some(theirs)) => self.at_most(share * theirs),
            _ => self,
        }
    }

    fn comparison(&self) -> String {
        let mut text = String::new();
        if let (Some(peer), Some(theirs)) = (&self.peer, self.peer_value) {
            let _ = write!(text, "{peer}: {theirs} (ours is {:.2} of it)  ", self.value / theirs);
        }
        if let Some(target) = self.target {
            let met = if self.value <= target { "met" } else { "MISSED" };
            let _ = write!(text, "target <= {target}: {met}");
        }
        text.trim_end().to_owned()
    }
}

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Figures {
    all: Vec<Figure>,
    notes: Vec<String>,
    /// Nothing is appended to the file.
    pub forgotten: bool,
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Figures {
    /// Keeps a figure and appends it to the file.
    pub fn add(&mut self, figure: Figure) -> Result<()> {
        println!("  {}: {} {}  {}", figure.name, figure.value, figure.unit, figure.comparison());
        if !self.forgotten {
            let folder = repository().join("target");
            std::fs::create_dir_all(&folder).context("target")?;
            let path = folder.join("bench.jsonl");
            let mut file = OpenOptions::new().create(true).append(true).open(&path).context("bench.jsonl")?;
            writeln!(file, "{}", serde_json::to_string(&figure)?).context("bench.jsonl")?;
        }
        self.all.push(figure);
        Ok(())
    }

    /// Keeps a remark on how something was measured, and tells it.
    pub fn note(&mut self, text: String) {
        println!("  {text}");
        self.notes.push(text);
    }

    /// Prints everything.
    pub fn print(&self) {
        println!("\n{:34}{:>12}  {:12}beside", "figure", "ours", "unit");
        for figure in &self.all {
            let Figure { name, value, unit, .. } = figure;
            println!("{name:34}{value:>12}  {unit:12}{}", figure.comparison());
        }
        for note in &self.notes {
            println!("  {note}");
        }
    }
}

/// The value below which a share `p` of `values` lies; 0 of none.
pub fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let place = ((values.len() as f64 * p).ceil() as usize).clamp(1, values.len().max(1)) - 1; // some millions
    values.get(place).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::{Figure, percentile};

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.5), 50.0);
        assert_eq!(percentile(&mut values, 0.99), 99.0);
        assert_eq!(percentile(&mut [7.0, 3.0, 5.0], 0.5), 5.0);
        assert_eq!(percentile(&mut [], 0.5), 0.0);
    }

    #[test]
    fn a_figure_tells_the_peer_the_ratio_and_whether_it_is_good_enough() {
        let figure = Figure::new("x", 300.0, "ns").beside("other", 1_000.0);
        assert_eq!(figure.comparison(), "other: 1000 (ours is 0.30 of it)");
        let good = figure.clone().at_most_share(Some(0.5));
        assert_eq!(good.comparison(), "other: 1000 (ours is 0.30 of it)  target <= 500: met");
        let bad = figure.at_most_share(Some(0.25));
        assert_eq!(bad.comparison(), "other: 1000 (ours is 0.30 of it)  target <= 250: MISSED");
        assert_eq!(Figure::new("x", 3.0, "ms").at_most(5.0).comparison(), "target <= 5: met");
    }
}
