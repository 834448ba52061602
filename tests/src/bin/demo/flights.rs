//! The flights as messages, and the truth about them, counted without any of the machinery under test.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Minutes after which a departure counts as delayed.
const LATE: i64 = 15;

/// One message of the input topic.
pub struct Flight {
    /// Carrier and flight number.
    pub key: String,
    /// The row of the file as a JSON object; what is missing there is null.
    pub value: String,
    carrier: String,
    departed: bool,
    delay: Option<i64>,
}

/// A carrier's totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Totals {
    /// Flights.
    pub flights: i64,
    /// Without a departure time.
    pub cancelled: i64,
    /// Departed more than [`LATE`] minutes late.
    pub delayed: i64,
    /// The sum of departure delays, minutes.
    pub delay_minutes: i64,
}

impl Totals {
    /// Adds `other`.
    pub fn add(&mut self, other: &Totals) {
        self.flights += other.flights;
        self.cancelled += other.cancelled;
        self.delayed += other.delayed;
        self.delay_minutes += other.delay_minutes;
    }
}

/// Reads flights.csv; no field of it is quoted.
pub fn read(path: &Path) -> Result<Vec<Flight>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().context("an empty file")?.split(',').collect();
    lines.map(|line| flight(&names, line)).collect()
}

fn flight(names: &[&str], line: &str) -> Result<Flight> {
    let mut row = Map::new();
    for (name, field) in names.iter().zip(line.split(',')) {
        let value = match (field, field.parse::<i64>()) {
            ("NA" | "", _) => Value::Null,
            (_, Ok(number)) => number.into(),
            (text, Err(_)) => text.into(),
        };
        row.insert((*name).to_owned(), value);
    }
    let carrier = row["carrier"].as_str().with_context(|| format!("no carrier: {line}"))?.to_owned();
    Ok(Flight {
        key: format!("{carrier}{}", row["flight"]),
        departed: !row["dep_time"].is_null(),
        delay: row["dep_delay"].as_i64(),
        carrier,
        value: Value::Object(row).to_string(),
    })
}

/// The truth.
pub fn totals(flights: &[Flight]) -> BTreeMap<String, Totals> {
    let mut totals: BTreeMap<String, Totals> = BTreeMap::new();
    for flight in flights {
        totals.entry(flight.carrier.clone()).or_default().add(&Totals {
            flights: 1,
            cancelled: i64::from(!flight.departed),
            delayed: i64::from(flight.delay.is_some_and(|delay| delay > LATE)),
            delay_minutes: flight.delay.unwrap_or(0),
        });
    }
    totals
}

/// Prints both sides and says whether they are equal.
pub fn compare(truth: &BTreeMap<String, Totals>, found: &BTreeMap<String, Totals>) -> bool {
    let names = ["flights", "cancelled", "delayed", "delay min"];
    println!("\n{:8}{:>44}   {:>44}", "", "from the output topic", "counted from the file");
    let columns = names.map(|name| format!("{name:>11}")).concat();
    println!("{:8}{columns}   {columns}", "carrier");
    let mut equal = truth.len() == found.len();
    for (carrier, wanted) in truth {
        let seen = found.get(carrier).copied().unwrap_or_default();
        let text = |t: &Totals| {
            [t.flights, t.cancelled, t.delayed, t.delay_minutes].map(|n| format!("{n:>11}")).concat()
        };
        let mark = if seen == *wanted { "" } else { "  ≠" };
        println!("{carrier:8}{}   {}{mark}", text(&seen), text(wanted));
        equal &= seen == *wanted;
    }
    println!("\n{}", if equal { "equal: nothing lost, nothing counted twice" } else { "NOT equal" });
    equal
}
