//! Reads files of JSON lines, stdin among them, to their ends.
//!
//! An offset is the place, in bytes, of the last byte of a line (its newline, but perhaps at the file's end), so the
//! next line begins one after it. What cannot be read again, such as stdin, is read from where it is.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use task_api::Headers;
use task_api::system::{Message, Offset, StartAt, SystemConsumer, SystemError, TopicPartition};
use tracing::warn;

use super::files::{Files, Place};
use super::line::{self, Malformed, Parsed, Shape};

/// So much is read and handed over at once.
const CHUNK: usize = 256 << 10;
/// A line that is longer is no line.
const LONGEST_LINE: usize = 256 << 20;

/// What was read, for the last words of the process.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Lines that were left out because they are no messages.
    pub(crate) skipped: AtomicU64,
}

/// A consumer of files.
pub(crate) struct FileConsumer {
    files: Arc<Files>,
    tally: Arc<Tally>,
    sources: Vec<Source>,
    turn: usize,
}

struct Source {
    place: Place,
    file: File,
    /// Whether it can be read again.
    is_file: bool,
    shape: Shape,
    /// Read and not handed over.
    buffer: Vec<u8>,
    /// What of the buffer was handed over.
    done: usize,
    /// The place of the buffer's first byte.
    at: u64,
    /// Lines before the buffer's `done`, since reading began.
    lines: u64,
    /// The place where reading began.
    began: u64,
    at_end: bool,
    paused: bool,
    /// Lines before this time are passed over.
    from_unix_ms: Option<u64>,
}

impl FileConsumer {
    pub(crate) fn new(files: &Arc<Files>, tally: &Arc<Tally>) -> FileConsumer {
        FileConsumer { files: Arc::clone(files), tally: Arc::clone(tally), sources: Vec::new(), turn: 0 }
    }

    fn open(&self, at: &TopicPartition, start: &StartAt) -> Result<Source, SystemError> {
        let places = self.files.partitions(&at.topic)?;
        let place = usize::try_from(at.partition).ok().and_then(|n| places.get(n)).cloned();
        let place = place.ok_or_else(|| SystemError::Fatal(format!("{} is not there", at.topic)))?;
        let opened = match &place {
            Place::Stdio => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            Place::At(path) => File::open(path),
        };
        let fail = |e: io::Error| SystemError::Fatal(format!("{place}: {e}"));
        let mut file = opened.map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let is_file = metadata.is_file() && place != Place::Stdio;
        let began = match start {
            _ if !is_file => {
                if matches!(start, StartAt::At(_)) {
                    warn!("{place} cannot be read again: going on with what comes");
                }
                0
            }
            StartAt::Oldest | StartAt::Timestamp(_) => 0,
            StartAt::Newest => metadata.len(),
            StartAt::At(offset) => place_of(offset)?,
        };
        if is_file {
            file.seek(SeekFrom::Start(began)).map_err(fail)?;
        }
        let from_unix_ms = match start {
            StartAt::Timestamp(unix_ms) => Some(*unix_ms),
            StartAt::Oldest | StartAt::Newest | StartAt::At(_) => None,
        };
        let shape = self.files.read_shape(&at.topic);
        let (buffer, paused, at_end) = (Vec::new(), false, false);
        let source = Source {
            place,
            file,
            is_file,
            shape,
            buffer,
            done: 0,
            at: began,
            lines: 0,
            began,
            at_end,
            paused,
            from_unix_ms,
        };
        Ok(source)
    }
}

/// The byte that `offset` stands for.
pub(crate) fn place_of(offset: &Offset) -> Result<u64, SystemError> {
    offset.0.parse().map_err(|_| SystemError::Fatal(format!("`{offset}` is not a place in a file")))
}

impl Source {
    /// Whether there may be more to hand over.
    fn is_live(&self) -> bool {
        !self.paused && !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.at_end && self.done == self.buffer.len()
    }

    /// The place of the first byte that was not handed over.
    fn next(&self) -> u64 {
        self.at + self.done as u64
    }

    /// Reads once, unless nothing comes within `timeout`.
    fn fill(&mut self, timeout: Duration) -> Result<(), SystemError> {
        let fail = |place: &Place, e: io::Error| SystemError::Fatal(format!("{place}: {e}"));
        if !self.is_file && !is_readable(&self.file, timeout).map_err(|e| fail(&self.place, e))? {
            return Ok(());
        }
        self.buffer.drain(..self.done);
        self.at += self.done as u64;
        self.done = 0;
        let filled = self.buffer.len();
        if filled > LONGEST_LINE {
            return Err(SystemError::Fatal(format!(
                "{} has a line of more than {LONGEST_LINE} bytes",
                self.place
            )));
        }
        self.buffer.resize(filled + CHUNK, 0);
        let read = loop {
            match self.file.read(&mut self.buffer[filled..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(filled + read.as_ref().map_or(0, |n| *n));
        self.at_end = read.map_err(|e| fail(&self.place, e))? == 0;
        Ok(())
    }

    /// Hands over the lines that are in the buffer as a whole, up to the first that is malformed; if that one is first,
    /// it is an error, or skipped.
    fn hand_over(
        &mut self,
        number: usize,
        skip_malformed: Option<&AtomicU64>,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<usize, SystemError> {
        let mut made = Vec::new();
        let mut parsed: Vec<(usize, Parsed, u64)> = Vec::new();
        let (mut done, mut lines) = (self.done, self.lines);
        while done < self.buffer.len() {
            let rest = &self.buffer[done..];
            let length = match rest.iter().position(|b| *b == b'\n') {
                Some(newline) => newline,
                None if self.at_end => rest.len(),
                None => break,
            };
            let next = (done + length + 1).min(self.buffer.len());
            match line::parse(&rest[..length], &self.shape, &mut made) {
                Ok(Some(message))
                    if self.from_unix_ms.is_none_or(|from| message.timestamp_ms >= Some(from)) =>
                {
                    self.from_unix_ms = None;
                    parsed.push((done, message, self.at + next as u64 - 1));
                }
                Ok(_) => {}
                Err(malformed) => match skip_malformed {
                    Some(skipped) => {
                        skipped.fetch_add(1, Ordering::Relaxed);
                        warn!("{}", self.told(done, lines, &malformed));
                    }
                    None if parsed.is_empty() => {
                        return Err(SystemError::Fatal(format!(
                            "{} (`decode = \"skip\"` in [errors] leaves such lines out)",
                            self.told(done, lines, &malformed)
                        )));
                    }
                    None => break,
                },
            }
            (done, lines) = (next, lines + 1);
        }
        let message = |(start, line, offset): &(usize, Parsed, u64)| Message {
            source: number,
            offset: *offset,
            key: line.key.bytes(&self.buffer[*start..], &made),
            value: line.value.bytes(&self.buffer[*start..], &made),
            timestamp_ms: line.timestamp_ms,
            headers: Headers::packed(&made[line.headers.clone()]),
        };
        let messages: Vec<Message<'_>> = parsed.iter().map(message).collect();
        if !messages.is_empty() {
            take(&messages)?;
        }
        let count = messages.len();
        (self.done, self.lines) = (done, lines);
        Ok(count)
    }

    /// Where and what, for people.
    fn told(&self, start: usize, lines: u64, malformed: &Malformed) -> String {
        let Malformed { column, what } = malformed;
        // Only now it matters how many lines are before where reading began.
        let before = match &self.place {
            Place::At(path) if self.is_file => lines_before(path, self.began).unwrap_or(0),
            Place::At(_) | Place::Stdio => 0,
        };
        let unfinished = self.at_end && !self.buffer[start..].contains(&b'\n');
        let hint = if unfinished { "; the line has no end: is it still being written?" } else { "" };
        format!("{} line {}, column {column}: {what}{hint}", self.place, before + lines + 1)
    }
}

fn lines_before(path: &std::path::Path, end: u64) -> io::Result<u64> {
    let mut count = 0;
    let mut chunk = vec![0; CHUNK];
    let mut file = File::open(path)?.take(end);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(count),
            read => count += chunk[..read].iter().filter(|b| **b == b'\n').count() as u64,
        }
    }
}

fn is_readable(file: &File, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl SystemConsumer for FileConsumer {
    fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), SystemError> {
        self.sources = partitions.iter().map(|(at, start)| self.open(at, start)).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn poll(
        &mut self,
        timeout: Duration,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<usize, SystemError> {
        let skip_malformed = self.files.skip_malformed.then_some(&self.tally.skipped);
        let live = self.sources.iter().filter(|source| source.is_live()).count();
        if live == 0 && self.sources.iter().any(|source| !source.is_over()) {
            // Whoever has paused them waits for something else.
            std::thread::sleep(timeout.min(Duration::from_millis(1)));
        }
        for _ in 0..self.sources.len() {
            self.turn = (self.turn + 1) % self.sources.len();
            let source = &mut self.sources[self.turn];
            if !source.is_live() {
                continue;
            }
            if !source.at_end {
                source.fill(if live == 1 { timeout } else { timeout.min(Duration::from_millis(1)) })?;
            }
            let count = source.hand_over(self.turn, skip_malformed, take)?;
            if count > 0 {
                return Ok(count);
            }
        }
        Ok(0)
    }

    fn position_after(&self, source: usize, last_taken: Option<u64>) -> Offset {
        Offset(last_taken.map_or(self.sources[source].began, |last| last + 1).to_string())
    }

    /// In bytes: nobody knows how many lines there are.
    fn lag(&self, source: usize, last_taken: Option<u64>) -> Option<u64> {
        let source = &self.sources[source];
        let next = last_taken.map_or(source.began, |last| last + 1);
        if source.is_over() {
            return Some(source.next().saturating_sub(next));
        }
        let length = source.file.metadata().ok().filter(|_| source.is_file)?.len();
        Some(length.saturating_sub(next))
    }

    fn pause(&mut self, sources: &[usize]) -> Result<(), SystemError> {
        sources.iter().for_each(|n| self.sources[*n].paused = true);
        Ok(())
    }

    fn resume(&mut self, sources: &[usize]) -> Result<(), SystemError> {
        sources.iter().for_each(|n| self.sources[*n].paused = false);
        Ok(())
    }

    fn caught_up_at(&self, source: usize) -> Option<u64> {
        let source = &self.sources[source];
        source.is_over().then(|| source.next())
    }

    fn has_ended(&self, source: usize) -> bool {
        self.sources[source].is_over()
    }
}
