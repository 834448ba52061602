//! What a local run says of itself: while it reads for long, and at its end.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use serde::Serialize;
use task_api::metrics::MetricsRegistry;
use types::JobSpec;

use super::tally::Tally;
use crate::board::Board;

/// How often a run that reads for long says how far it has come.
const EVERY: Duration = Duration::from_secs(5);

/// A run as it was, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Summary {
    pub(crate) job: String,
    /// Files and pipes that were read.
    pub(crate) files: u64,
    pub(crate) lines_read: u64,
    pub(crate) blank_lines: u64,
    /// Lines before the time that `offset-default` names.
    pub(crate) passed_over: u64,
    /// Messages that tasks got.
    pub(crate) messages: u64,
    pub(crate) lines_written: u64,
    /// What `[errors]` left out: lines, messages and outputs.
    pub(crate) left_out: u64,
    pub(crate) dead_letters: u64,
    pub(crate) commits: u64,
    pub(crate) seconds: f64,
    pub(crate) messages_per_second: f64,
    /// Bytes that an earlier run had read.
    #[serde(skip)]
    pub(crate) known_before: u64,
    #[serde(skip)]
    pub(crate) began_at_end: u64,
}

impl Summary {
    pub(crate) fn of(
        job: &JobSpec,
        board: &Board,
        metrics: &MetricsRegistry,
        tally: &Tally,
        took: Duration,
    ) -> Summary {
        let status = board.status();
        let metrics = metrics.render();
        let errors =
            |outcome: &str| total(&metrics, "samza_errors_total{", &format!("outcome=\"{outcome}\"}}"));
        let seconds = took.as_secs_f64();
        Summary {
            job: job.job.to_string(),
            files: tally.inputs.get(),
            lines_read: tally.lines.get(),
            blank_lines: tally.blank.get(),
            passed_over: tally.passed_over.get(),
            messages: status.processed,
            lines_written: tally.written.get(),
            left_out: errors("skipped"),
            dead_letters: errors("dead-lettered"),
            commits: status.commits,
            seconds: (seconds * 1_000.0).round() / 1_000.0,
            messages_per_second: (status.processed as f64 / seconds.max(0.001)).round(),
            known_before: tally.known_before.get(),
            began_at_end: tally.began_at_end.get(),
        }
    }

    /// For people.
    pub(crate) fn to_text(&self) -> String {
        let Summary { job, messages, seconds, messages_per_second, commits, .. } = self;
        let mut text = format!(
            "{job}: {messages} messages in {seconds:.1} s, {messages_per_second} messages/s, {commits} commits"
        );
        let mut more = Vec::new();
        if self.files > 0 {
            let files = if self.files == 1 { "file" } else { "files" };
            more.push(format!("{} lines of {} {files} read", self.lines_read, self.files));
        }
        if self.files > 0 || self.lines_written > 0 {
            more.push(format!("{} lines written", self.lines_written));
        }
        for (count, what) in [
            (self.blank_lines, "blank"),
            (self.passed_over, "before the time to begin at"),
            (self.left_out, "left out"),
            (self.dead_letters, "sent to dead letters"),
        ] {
            if count > 0 {
                more.push(format!("{count} {what}"));
            }
        }
        if !more.is_empty() {
            text += &format!("\n{job}: {}", more.join(", "));
        }
        text
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Why nothing was processed, if nothing was.
    pub(crate) fn nothing_read(&self) -> Option<&'static str> {
        if self.messages > 0 {
            return None;
        }
        Some(if self.files == 0 {
            "nothing was read: the inputs had nothing new"
        } else if self.lines_read == self.blank_lines && self.known_before > 0 {
            "nothing new since the last run; --fresh starts over"
        } else if self.began_at_end > 0 {
            "nothing was read: `offset-default = \"newest\"` begins at the ends of files; leave it out to read what is there"
        } else if self.lines_read == 0 {
            "nothing was read: the inputs are empty"
        } else if self.lines_read == self.blank_lines {
            "nothing was processed: every line is blank"
        } else if self.passed_over > 0 {
            "nothing was processed: no line has a time that `offset-default` asks for; for rows, `timestamp` in [streams] \
             names the field of their time"
        } else {
            "nothing was processed: no line is a message"
        })
    }
}

/// The sum of the metrics that begin and end so.
fn total(rendered: &str, beginning: &str, ending: &str) -> u64 {
    let of_line = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        if name.starts_with(beginning) && name.ends_with(ending) { value.parse::<f64>().ok() } else { None }
    };
    rendered.lines().filter_map(of_line).sum::<f64>() as u64
}

/// Says a line, on stderr or stdout. Nobody may be there to hear it.
pub(crate) fn tell(line: &str, on_stdout: bool) {
    let _ =
        if on_stdout { writeln!(std::io::stdout(), "{line}") } else { writeln!(std::io::stderr(), "{line}") };
}

/// A thread that says how far a run has come, for as long as this is there.
pub(crate) struct Progress(Option<(Sender<()>, std::thread::JoinHandle<()>)>);

impl Progress {
    pub(crate) fn start(job: String, board: Arc<Board>, tally: Arc<Tally>) -> Progress {
        let (over, is_over) = mpsc::channel();
        let began = Instant::now();
        let report = move || {
            let mut before = 0;
            while let Err(RecvTimeoutError::Timeout) = is_over.recv_timeout(EVERY) {
                let messages = board.status().processed;
                let rate = (messages - before) / EVERY.as_secs();
                before = messages;
                let read = tally.bytes_read.load(Ordering::Relaxed);
                let known = tally.known_before.get();
                tell(
                    &line(&job, messages, rate, (known, read, tally.bytes_there.get()), began.elapsed()),
                    false,
                );
            }
        };
        // A run does without its words if there is no thread for them.
        let thread = std::thread::Builder::new().name("progress".into()).spawn(report).ok();
        Progress(thread.map(|thread| (over, thread)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((over, thread)) = self.0.take() {
            drop(over);
            let _ = thread.join();
        }
    }
}

/// How far a run has come: of the bytes that are `there` it has read some, of which it knew some before it began.
fn line(
    job: &str,
    messages: u64,
    rate: u64,
    (known, read, there): (u64, u64, u64),
    took: Duration,
) -> String {
    let mut line = format!("{job}: {messages} messages, {rate} messages/s");
    if there > 0 {
        let read = read.min(there);
        line += &format!(", {} % of {} MB", read * 100 / there, there.div_ceil(1_000_000));
        let (new, left) = (read.saturating_sub(known), there - read);
        if new > 0 {
            line += &format!(", about {:.0} s left", took.as_secs_f64() * left as f64 / new as f64);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_read_nothing_says_why() {
        let why = |summary: Summary| summary.nothing_read().unwrap_or_default();
        let one = Summary { files: 1, ..Summary::default() };
        assert_eq!(why(Summary { messages: 1, ..one.clone() }), "");
        assert!(why(Summary { known_before: 7, ..one.clone() }).contains("--fresh"));
        assert!(why(Summary { began_at_end: 1, ..one.clone() }).contains("newest"));
        assert!(why(one.clone()).contains("empty"));
        assert!(why(Summary { lines_read: 2, blank_lines: 2, ..one.clone() }).contains("blank"));
        assert!(why(Summary { lines_read: 2, passed_over: 2, ..one.clone() }).contains("`timestamp`"));
        assert!(why(Summary { lines_read: 2, left_out: 2, ..one }).contains("no line is a message"));
    }

    #[test]
    fn a_summary_is_for_people_and_for_programs() {
        let summary = Summary {
            job: "j-1".into(),
            files: 2,
            lines_read: 9,
            messages: 7,
            dead_letters: 2,
            seconds: 0.25,
            messages_per_second: 28.0,
            ..Summary::default()
        };
        assert_eq!(
            summary.to_text(),
            "j-1: 7 messages in 0.2 s, 28 messages/s, 0 commits\n\
             j-1: 9 lines of 2 files read, 0 lines written, 2 sent to dead letters"
        );
        let json: serde_json::Value = serde_json::from_str(&summary.to_json()).expect("JSON");
        assert_eq!((&json["lines-read"], &json["dead-letters"]), (&9.into(), &2.into()));
        let metrics = "# TYPE a counter\na{s=\"x y\",o=\"z\"} 2\na{o=\"z\"} 3\na{o=\"y\"} 9\nb{o=\"z\"} 9\n";
        assert_eq!(total(metrics, "a{", "o=\"z\"}"), 5);
    }

    #[test]
    fn progress_is_told_by_bytes() {
        let told = line("j-1", 10, 2, (1_000_000, 3_000_000, 5_000_000), Duration::from_secs(10));
        assert_eq!(told, "j-1: 10 messages, 2 messages/s, 60 % of 5 MB, about 10 s left");
        assert_eq!(line("j-1", 10, 2, (0, 0, 0), Duration::ZERO), "j-1: 10 messages, 2 messages/s");
    }
}
