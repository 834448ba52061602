//! What was measured: kept, appended to `target/bench.jsonl`, printed as a table.

use std::fs::OpenOptions;
use std::io::Write as _;

use ::tests::brokers::repository;
use anyhow::{Context, Result};
use serde::Serialize;

/// One figure, as a line of `bench.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Which.
    pub name: String,
    /// Ours.
    pub value: f64,
    /// Of both values.
    pub unit: String,
    /// Whom it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_value: Option<f64>,
}

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Figures {
    all: Vec<Figure>,
    notes: Vec<String>,
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Figures {
    /// Keeps a figure and appends it to the file.
    pub fn add(&mut self, name: &str, value: f64, unit: &str, peer: Option<(&str, f64)>) -> Result<()> {
        let figure = Figure {
            name: name.to_owned(),
            value: rounded(value),
            unit: unit.to_owned(),
            peer: peer.map(|(name, _)| name.to_owned()),
            peer_value: peer.map(|(_, value)| rounded(value)),
        };
        let folder = repository().join("target");
        std::fs::create_dir_all(&folder).context("target")?;
        let path = folder.join("bench.jsonl");
        let mut file = OpenOptions::new().create(true).append(true).open(&path).context("bench.jsonl")?;
        writeln!(file, "{}", serde_json::to_string(&figure)?).context("bench.jsonl")?;
        println!("  {name}: {} {unit}{}", figure.value, beside(&figure));
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
        println!("\n{:30}{:>12}  {:18}beside", "figure", "ours", "unit");
        for figure in &self.all {
            let Figure { name, value, unit, .. } = figure;
            println!("{name:30}{value:>12}  {unit:18}{}", beside(figure).trim_start_matches(", "));
        }
        for note in &self.notes {
            println!("  {note}");
        }
    }
}

fn beside(figure: &Figure) -> String {
    match (&figure.peer, figure.peer_value) {
        (Some(peer), Some(value)) => {
            format!(", {peer}: {value} (ours is {:.2} of it)", figure.value / value)
        }
        _ => String::new(),
    }
}

/// The value below which a share `p` of `values` lies; 0 of none.
pub fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let place = ((values.len() as f64 * p).ceil() as usize).clamp(1, values.len().max(1)) - 1; // some hundreds
    values.get(place).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.5), 50.0);
        assert_eq!(percentile(&mut values, 0.99), 99.0);
        assert_eq!(percentile(&mut [7.0, 3.0, 5.0], 0.5), 5.0);
        assert_eq!(percentile(&mut [], 0.5), 0.0);
    }
}
