//! `samza metrics`: Prometheus' text as rows for people and programs; a histogram or a summary is one row with its
//! quantiles. From two looks at a page follow rates.

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
    /// Its value; of a histogram or a summary, how many values were seen.
    pub value: f64,
    /// Of what only grows, by how much it does in a second; none after one look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Of a histogram or a summary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantiles: Option<Quantiles>,
}

/// What a summary tells, or a histogram's buckets: the upper bounds of those that the quantiles are in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half of the values are at most this.
    pub p50: f64,
    /// 99 of 100 values are.
    pub p99: f64,
    /// The mean of all.
    pub mean: f64,
}

/// What of a histogram or a summary has been read.
#[derive(Default)]
struct Parts {
    /// Upper bounds, with how many values are at most these.
    buckets: Vec<(f64, f64)>,
    /// Quantiles and their values.
    quantiles: Vec<(f64, f64)>,
    sum: f64,
}

impl Parts {
    fn quantiles(&self, count: f64) -> Quantiles {
        let of = |quantile: f64| match self.quantiles.iter().find(|(of, _)| *of == quantile) {
            Some((_, value)) => *value,
            None => bucket(&self.buckets, count * quantile),
        };
        let mean = if count > 0.0 { self.sum / count } else { 0.0 };
        Quantiles { p50: of(0.5), p99: of(0.99), mean }
    }
}

/// The metrics of `page` whose names begin with `prefix`, in its order. Lines that are none are left out.
#[must_use]
pub fn read(page: &str, prefix: &str) -> Vec<Shown> {
    let mut shown: Vec<Shown> = Vec::new();
    let mut kind = ("", "");
    let mut parts = Parts::default();
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            kind = declared.split_once(' ').unwrap_or((declared, ""));
            continue;
        }
        let Some((name, mut labels, value)) = sample(line) else { continue };
        if !kind.0.starts_with(prefix) {
            continue;
        }
        let is_spread = matches!(kind.1, "histogram" | "summary");
        let part = if is_spread { name.strip_prefix(kind.0).unwrap_or_default() } else { "" };
        let number = |label: Option<String>| label.and_then(|text| text.parse().ok());
        match part {
            "_bucket" => {
                parts.buckets.push((number(labels.remove("le")).unwrap_or(f64::INFINITY), value));
            }
            "_sum" => parts.sum = value,
            "_count" => {
                let quantiles = Some(std::mem::take(&mut parts).quantiles(value));
                shown.push(Shown { name: kind.0.to_owned(), labels, value, rate: None, quantiles });
            }
            _ if is_spread => {
                parts.quantiles.extend(number(labels.remove("quantile")).map(|of| (of, value)));
            }
            _ => shown.push(Shown { name: name.to_owned(), labels, value, rate: None, quantiles: None }),
        }
    }
    shown
}

/// As [`read`], with the rates of what only grows: `earlier` is the page as it was so many seconds before.
#[must_use]
pub fn read_with_rates(earlier: &str, page: &str, seconds: f64, prefix: &str) -> Vec<Shown> {
    let key = |of: &Shown| (of.name.clone(), of.labels.clone());
    let before: BTreeMap<_, f64> = read(earlier, prefix).iter().map(|of| (key(of), of.value)).collect();
    let mut shown = read(page, prefix);
    for of in &mut shown {
        let grows = of.quantiles.is_some() || of.name.ends_with("_total");
        // What has become less begins anew with another container.
        let more = before.get(&key(of)).map(|before| of.value - before).filter(|more| *more >= 0.0);
        of.rate = more.filter(|_| grows && seconds > 0.0).map(|more| more / seconds);
    }
    shown
}

fn bucket(buckets: &[(f64, f64)], rank: f64) -> f64 {
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
    let mut rows = Rows::new(&["METRIC", "OF", ">VALUE", ">RATE/S", ">P50", ">P99", ">MEAN"], headers);
    for metric in shown {
        let of: Vec<String> = metric
            .labels
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "samza_job" | "container" | "node"))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let is_time = metric.name.contains("_seconds");
        let written = |value: f64| if is_time { time(value) } else { number(value) };
        let quantile = |of: fn(&Quantiles) -> f64| {
            metric.quantiles.as_ref().map_or_else(String::new, |q| written(of(q)))
        };
        rows.add(vec![
            metric.name.clone(),
            of.join(","),
            // Of a summary it is a number of things.
            if metric.quantiles.is_some() { number(metric.value) } else { written(metric.value) },
            metric.rate.map_or_else(String::new, number),
            quantile(|q| q.p50),
            quantile(|q| q.p99),
            quantile(|q| q.mean),
        ]);
    }
    rows.text()
}

/// Seconds in the unit that suits them.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        _ if seconds == 0.0 || !seconds.is_finite() || seconds >= 1.0 => (seconds, " s"),
        _ if seconds >= 1e-3 => (seconds * 1e3, " ms"),
        _ => (seconds * 1e6, " us"),
    };
    if value.is_finite() { format!("{}{unit}", number(value)) } else { String::new() }
}

/// Whole numbers as such, others with three digits behind the point.
fn number(value: f64) -> String {
    match value {
        _ if value.is_nan() => String::new(),
        _ if value.fract() == 0.0 || !value.is_finite() => value.to_string(),
        _ => format!("{value:.3}"),
    }
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
# TYPE took_seconds summary
took_seconds{slot=\"0\",quantile=\"0.5\"} 0.0025
took_seconds{slot=\"0\",quantile=\"0.99\"} 1.5
took_seconds_sum{slot=\"0\"} 8
took_seconds_count{slot=\"0\"} 40
took_seconds{slot=\"1\",quantile=\"0.5\"} NaN
took_seconds{slot=\"1\",quantile=\"0.99\"} NaN
took_seconds_sum{slot=\"1\"} 0
took_seconds_count{slot=\"1\"} 0
";

    #[test]
    fn a_page_is_read_and_a_histogram_or_a_summary_becomes_one_row() {
        let shown = read(PAGE, "");
        assert_eq!(shown.len(), 6);
        assert_eq!((shown[0].name.as_str(), shown[0].value), ("samza_commits_total", 7.0));
        assert_eq!(shown[1].labels["task"], "a \"b\", {c}");
        assert!(shown[2].value.is_nan());
        assert_eq!(shown[3].name, "took_us");
        assert_eq!(shown[3].quantiles, Some(Quantiles { p50: 10.0, p99: 20.0, mean: 9.0 }));
        assert_eq!((shown[4].name.as_str(), shown[4].value), ("took_seconds", 40.0));
        assert_eq!(shown[4].quantiles, Some(Quantiles { p50: 0.0025, p99: 1.5, mean: 0.2 }));
        assert_eq!((&shown[5].labels["slot"], shown[5].value), (&"1".to_owned(), 0.0));
        assert_eq!(read(PAGE, "samza_c").len(), 1);
    }

    #[test]
    fn what_grows_has_a_rate_after_two_looks_and_none_after_a_restart() {
        let later = PAGE
            .replace("slot=\"0\"} 7\n", "slot=\"0\"} 17\n")
            .replace("count{slot=\"0\"} 40", "count{slot=\"0\"} 30");
        let shown = read_with_rates(PAGE, &later, 2.0, "");
        let rate = |name: &str| shown.iter().find(|of| of.name == name).and_then(|of| of.rate);
        assert_eq!((rate("samza_commits_total"), rate("samza_lag")), (Some(5.0), None));
        assert_eq!((rate("took_us"), rate("took_seconds")), (Some(0.0), None));
    }

    #[test]
    fn times_are_written_in_the_unit_that_suits_them() {
        assert_eq!(["2.500 ms", "1.500 s", "200 ms"], [time(0.0025), time(1.5), time(0.2)]);
        assert_eq!([time(0.000_25), time(0.0), time(f64::NAN)], ["250 us", "0 s", ""]);
    }

    #[test]
    fn the_table_leaves_out_what_was_asked_for() {
        let text = table(&read(PAGE, "samza_c"), true);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["METRIC", "OF", "VALUE", "RATE/S", "P50", "P99", "MEAN"]);
        assert_eq!(lines[1], ["samza_commits_total", "slot=0", "7", "-", "-", "-", "-"]);
    }
}
