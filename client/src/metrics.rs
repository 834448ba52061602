//! `samza metrics`: Prometheus' text as rows for people and programs; a histogram is one row with its quantiles.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::output::Rows;

/// One metric with its labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value; of a histogram, how many values were seen.
    pub value: f64,
    /// Of a histogram.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantiles: Option<Quantiles>,
}

/// What a histogram's buckets tell: the upper bounds of the buckets that the quantiles are in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half of the values are at most this.
    pub p50: f64,
    /// 99 of 100 values are.
    pub p99: f64,
    /// The mean of all.
    pub mean: f64,
}

/// The metrics of `page` whose names begin with `prefix`, in its order. Lines that are none are left out.
#[must_use]
pub fn read(page: &str, prefix: &str) -> Vec<Shown> {
    let mut shown: Vec<Shown> = Vec::new();
    let mut kind = ("", "");
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    let mut sum = 0.0;
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            kind = declared.split_once(' ').unwrap_or((declared, ""));
            continue;
        }
        let Some((name, mut labels, value)) = sample(line) else { continue };
        if !kind.0.starts_with(prefix) {
            continue;
        }
        let part = if kind.1 == "histogram" { name.strip_prefix(kind.0).unwrap_or_default() } else { "" };
        match part {
            "_bucket" => {
                let bound = labels.remove("le").and_then(|bound| bound.parse().ok()).unwrap_or(f64::INFINITY);
                buckets.push((bound, value));
            }
            "_sum" => sum = value,
            "_count" => {
                let quantiles = Quantiles {
                    p50: quantile(&buckets, value * 0.5),
                    p99: quantile(&buckets, value * 0.99),
                    mean: if value > 0.0 { sum / value } else { 0.0 },
                };
                buckets.clear();
                shown.push(Shown { name: kind.0.to_owned(), labels, value, quantiles: Some(quantiles) });
            }
            _ => shown.push(Shown { name: name.to_owned(), labels, value, quantiles: None }),
        }
    }
    shown
}

fn quantile(buckets: &[(f64, f64)], rank: f64) -> f64 {
    if rank <= 0.0 {
        return 0.0;
    }
    buckets.iter().find(|(_, seen)| *seen >= rank).map_or(0.0, |(bound, _)| *bound)
}

/// `name{a="b",c="d"} 1`: name, labels, value.
fn sample(line: &str) -> Option<(&str, BTreeMap<String, String>, f64)> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.trim().split(' ').next()?;
    Some((name, labels, value.parse().ok()?))
}

/// The text up to the closing quote, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            char => value.push(char),
        }
    }
    None
}

/// The rows for people. The job is the one that was asked for, so its label is left out.
#[must_use]
pub fn table(shown: &[Shown], headers: bool) -> String {
    let mut rows = Rows::new(&["METRIC", "OF", ">VALUE", ">P50", ">P99", ">MEAN"], headers);
    for metric in shown {
        let of: Vec<String> = metric
            .labels
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "samza_job" | "container" | "node"))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let quantile =
            |of: fn(&Quantiles) -> f64| metric.quantiles.as_ref().map_or_else(String::new, |q| number(of(q)));
        rows.add(vec![
            metric.name.clone(),
            of.join(","),
            number(metric.value),
            quantile(|q| q.p50),
            quantile(|q| q.p99),
            quantile(|q| q.mean),
        ]);
    }
    rows.text()
}

/// Whole numbers as such, others with three digits behind the point.
fn number(value: f64) -> String {
    if value.fract() == 0.0 || !value.is_finite() { value.to_string() } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# TYPE samza_commits_total counter
samza_commits_total{samza_job=\"count-1\",slot=\"0\"} 7
# TYPE samza_lag gauge
samza_lag{task=\"a \\\"b\\\", {c}\"} 2.5
samza_lag{} NaN
# TYPE took_us histogram
took_us_bucket{slot=\"0\",le=\"10\"} 60
took_us_bucket{slot=\"0\",le=\"20\"} 100
took_us_bucket{slot=\"0\",le=\"+Inf\"} 100
took_us_sum{slot=\"0\"} 900
took_us_count{slot=\"0\"} 100
nonsense
";

    #[test]
    fn a_page_is_read_and_a_histogram_becomes_one_row() {
        let shown = read(PAGE, "");
        assert_eq!(shown.len(), 4);
        assert_eq!((shown[0].name.as_str(), shown[0].value), ("samza_commits_total", 7.0));
        assert_eq!(shown[1].labels["task"], "a \"b\", {c}");
        assert!(shown[2].value.is_nan());
        assert_eq!(shown[3].name, "took_us");
        assert_eq!(shown[3].quantiles, Some(Quantiles { p50: 10.0, p99: 20.0, mean: 9.0 }));
        assert_eq!(read(PAGE, "samza_c").len(), 1);
    }

    #[test]
    fn the_table_leaves_out_what_was_asked_for() {
        let text = table(&read(PAGE, "samza_c"), true);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["METRIC", "OF", "VALUE", "P50", "P99", "MEAN"]);
        assert_eq!(lines[1], ["samza_commits_total", "slot=0", "7", "-", "-", "-"]);
    }
}
