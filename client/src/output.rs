//! Writing to stdout and stderr.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Writes text to stdout. A reader that went away (`| head`) ends the process quietly.
///
/// # Errors
/// Any other error of stdout.
pub fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// As [`print`], for what may not be UTF-8.
///
/// # Errors
/// As [`print`].
pub fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

/// Writes a value to stdout as indented JSON.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::other(error.to_string()))?;
    print(&format!("{text}\n"))
}

/// Says something to the person at the terminal; lost if there is none.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Rows under headers, without borders, so that `awk` and `cut` can read them.
pub struct Rows {
    columns: Vec<&'static str>,
    headers: bool,
    rows: Vec<Vec<String>>,
}

impl Rows {
    /// A table with these columns; those that begin with `>` are aligned to the right.
    #[must_use]
    pub fn new(columns: &[&'static str], headers: bool) -> Rows {
        Rows { columns: columns.to_vec(), headers, rows: Vec::new() }
    }

    /// Adds a row. An empty cell becomes a dash, so that fields can be counted.
    pub fn add(&mut self, cells: Vec<String>) {
        let one_line = cells.into_iter().map(|cell| cell.replace(['\n', '\r', '\t'], " "));
        self.rows.push(one_line.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }).collect());
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, each line ended.
    #[must_use]
    pub fn text(&self) -> String {
        let names: Vec<String> =
            self.columns.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
        let lines: Vec<&Vec<String>> = self.headers.then_some(&names).into_iter().chain(&self.rows).collect();
        let width = |index: usize| lines.iter().map(|line| line[index].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for line in lines {
            let mut shown = String::new();
            for ((cell, width), column) in line.iter().zip(&widths).zip(&self.columns) {
                let padding = " ".repeat(width - cell.chars().count());
                let (before, after) =
                    if column.starts_with('>') { (&padding[..], "") } else { ("", &padding[..]) };
                shown.push_str(&format!("{before}{cell}{after}  "));
            }
            text.push_str(shown.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Progress of something with a known end, on stderr, only if that is a terminal.
pub struct Progress {
    what: String,
    total: u64,
    shown: Option<u64>,
}

impl Progress {
    /// `what` of `total` bytes.
    #[must_use]
    pub fn new(what: String, total: u64) -> Progress {
        Progress { what, total, shown: io::stderr().is_terminal().then_some(u64::MAX) }
    }

    /// `done` bytes are done.
    pub fn at(&mut self, done: u64) {
        let percent = done.saturating_mul(100).checked_div(self.total).unwrap_or(100);
        if self.shown.is_some_and(|shown| shown != percent) {
            self.shown = Some(percent);
            let _ = write!(io::stderr(), "\r\x1b[K{} {percent} %", self.what);
        }
    }

    /// Wipes the line.
    pub fn done(self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Memory as people read it: `455 MiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let scaled = |unit: u64| bytes as f64 / unit as f64;
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{:.0} KiB", scaled(1 << 10)),
        0x10_0000..0x4000_0000 => format!("{:.0} MiB", scaled(1 << 20)),
        _ => format!("{:.1} GiB", scaled(1 << 30)),
    }
}

/// A duration as people read it: `3m 12s`.
#[must_use]
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..10 => format!("{}.{}s", s, ms % 1000 / 100),
        10..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Cores as people read them.
#[must_use]
pub fn cores(millis: u32) -> String {
    format!("{:.2}", f64::from(millis) / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!(bytes(455 << 20), "455 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(duration(9_250), "9.2s");
        assert_eq!(duration(192_000), "3m 12s");
        assert_eq!(duration(90_000_000), "1d 1h");
    }

    #[test]
    fn rows_are_aligned_without_borders_and_an_empty_cell_is_a_dash() {
        let columns = ["NAME", ">N"];
        let mut rows = Rows::new(&columns, true);
        rows.add(vec!["a".into(), "7".into()]);
        rows.add(vec!["longer".into(), String::new()]);
        assert_eq!(rows.text(), "NAME    N\na       7\nlonger  -\n");
        let mut rows = Rows::new(&columns, false);
        rows.add(vec!["a".into(), "7".into()]);
        assert_eq!(rows.text(), "a  7\n");
        assert_eq!(Rows::new(&columns, false).text(), "");
    }
}
