//! One partition being read: bytes to lines, lines to messages.
//!
//! An offset is the place, in bytes, of the last byte of a line (its newline, but perhaps at the file's end), so the
//! next line begins one after it. What a reader keeps in memory is what it has read at once and one line.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use task_api::Headers;
use task_api::system::{Message, SystemError, Unreadable};
use tracing::warn;

use super::files::{Files, InputSpec, Place};
use super::input::{Input, bytes_before};
use super::line::{self, Kind, Malformed, Parsed};
use super::position::{Position, TRACE, Trace};
use super::tally::Tally;

/// What is kept of a line that is too long.
const HEAD: usize = 1 << 10;
/// A line without an end in a file that was written to so lately may get one.
const FRESH: Duration = Duration::from_secs(2);
/// How often its end is looked for, and the pause between.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// One partition being read.
pub(crate) struct Source {
    pub(crate) place: Place,
    pub(crate) input: Input,
    pub(crate) spec: InputSpec,
    /// The place where reading began.
    pub(crate) began: u64,
    /// Lines before this time are passed over.
    pub(crate) from_unix_ms: Option<u64>,
    pub(crate) paused: bool,
    /// Met, and not told yet.
    pub(crate) unreadable: Option<Unreadable>,
    /// Read and not handed over.
    buffer: Vec<u8>,
    /// What of the buffer was handed over.
    done: usize,
    /// There is no newline between `done` and this.
    scanned: usize,
    /// The place of the buffer's first byte.
    at: u64,
    /// The last bytes that were read, to notice a file that is changed meanwhile.
    tail: Vec<u8>,
    /// Lines before the buffer's `done`, since reading began.
    lines: u64,
    /// The beginning of a line that is too long, while its end is looked for.
    leaving_out: Option<Vec<u8>>,
    longest_line: usize,
    /// So much is read and handed over at once.
    chunk: usize,
    at_end: bool,
    looks: u32,
    looked_at_fields: bool,
    told_doubt: bool,
}

/// What a stretch of lines was made of.
#[derive(Default)]
struct Stretch {
    parsed: Vec<(usize, Parsed, u64)>,
    made: Vec<u8>,
    done: usize,
    lines: u64,
    malformed: Option<(usize, Malformed)>,
}

impl Source {
    /// One of `place` that reads on at byte `at`, where `input` is.
    pub(crate) fn new(place: Place, input: Input, spec: InputSpec, at: u64, files: &Files) -> Source {
        Source {
            place,
            input,
            spec,
            began: at,
            from_unix_ms: None,
            paused: false,
            unreadable: None,
            buffer: Vec::new(),
            done: 0,
            scanned: 0,
            at,
            tail: Vec::new(),
            lines: 0,
            leaving_out: None,
            longest_line: files.longest_line,
            chunk: files.chunk,
            at_end: false,
            looks: 0,
            looked_at_fields: false,
            told_doubt: false,
        }
    }

    /// Whether there may be more to hand over.
    pub(crate) fn is_live(&self) -> bool {
        // What is no message has its turn before what follows it.
        !self.paused && !self.is_over() && self.unreadable.is_none()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.at_end && self.done == self.buffer.len() && self.unreadable.is_none()
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// The place of the first byte that was not handed over.
    pub(crate) fn next(&self) -> u64 {
        self.at + self.done as u64
    }

    fn fail(&self, error: &io::Error) -> SystemError {
        SystemError::Fatal(format!("{}: {error}", self.place))
    }

    /// Reads once, unless nothing comes within `timeout`.
    ///
    /// # Errors
    /// The disk failed, or the file is another one meanwhile.
    pub(crate) fn fill(&mut self, timeout: Duration) -> Result<(), SystemError> {
        self.buffer.drain(..self.done);
        self.at += self.done as u64;
        self.scanned -= self.done;
        self.done = 0;
        let filled = self.buffer.len();
        if filled < self.chunk && self.buffer.capacity() > 8 * self.chunk {
            // Of a long line that is gone.
            self.buffer.shrink_to(2 * self.chunk);
        }
        self.look_for_changes()?;
        self.buffer.resize(filled + self.chunk, 0);
        let read = self.input.read(&mut self.buffer[filled..], timeout);
        self.buffer.truncate(filled + read.as_ref().map_or(0, |read| read.unwrap_or(0)));
        match read.map_err(|e| self.fail(&e))? {
            None => return Ok(()),
            Some(0) => self.end()?,
            Some(_) => self.looks = 0,
        }
        let fresh = &self.buffer[filled..];
        self.tail.extend_from_slice(&fresh[fresh.len().saturating_sub(TRACE)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TRACE));
        if self.at == 0 && (self.buffer.starts_with(&[0xff, 0xfe]) || self.buffer.starts_with(&[0xfe, 0xff]))
        {
            return Err(SystemError::Fatal(format!(
                "{0} line 1, column 1: the file is UTF-16, lines must be UTF-8: `iconv -f UTF-16 -t UTF-8 {0}` makes it so",
                self.place
            )));
        }
        Ok(())
    }

    /// Nothing more came: takes it for the end, unless a line may still be in the making.
    fn end(&mut self) -> Result<(), SystemError> {
        let Some(file) = self.input.file().filter(|_| self.input.is_plain()) else {
            self.at_end = true;
            return Ok(());
        };
        let metadata = file.metadata().map_err(|e| self.fail(&e))?;
        let is_fresh = || {
            let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            age.is_some_and(|age| age < FRESH)
        };
        let is_torn = self.buffer.last().is_some_and(|last| *last != b'\n');
        if is_torn && self.looks < LOOKS && is_fresh() {
            self.looks += 1;
            std::thread::sleep(PAUSE);
            return Ok(());
        }
        self.at_end = true;
        if let Place::At(path) = &self.place
            && std::fs::metadata(path)
                .map_or(true, |now| (now.dev(), now.ino()) != (metadata.dev(), metadata.ino()))
        {
            warn!(
                "{} was renamed, removed or replaced while it was read: it was read to its end as it was",
                self.place
            );
        }
        Ok(())
    }

    /// Whoever cuts a file, or writes over it, while it is read shall not make lines of pieces.
    fn look_for_changes(&self) -> Result<(), SystemError> {
        let Some(file) = self.input.file().filter(|_| self.input.is_plain()) else { return Ok(()) };
        let at = self.at + self.buffer.len() as u64;
        if self.tail.is_empty() || bytes_before(file, at, self.tail.len()).is_ok_and(|is| is == self.tail) {
            return Ok(());
        }
        Err(SystemError::Fatal(format!(
            "{} was cut or written over while it was read: what was before byte {at} is not there any more. Files may grow \
             while they are read, but not change; run the job again when the file is whole",
            self.place
        )))
    }

    /// Hands over the lines that are in the buffer as a whole, up to the first that is no message; if that one is first,
    /// it is what [`Self::unreadable`] tells next.
    ///
    /// # Errors
    /// What `take` says, or a field that the job names is in no row.
    pub(crate) fn hand_over(
        &mut self,
        number: usize,
        malformed_is_fatal: bool,
        tally: &Tally,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<usize, SystemError> {
        if self.unreadable.is_some() {
            return Ok(0);
        }
        if self.leaving_out.is_some() {
            self.leave_out(number, malformed_is_fatal, tally);
            return Ok(0);
        }
        let mut stretch = self.stretch(tally);
        if let Some((start, malformed)) = stretch.malformed.take().filter(|_| stretch.parsed.is_empty()) {
            let end = self.line_end(start).unwrap_or(self.buffer.len());
            let next = (end + 1).min(self.buffer.len());
            let why = self.told(start, stretch.lines, &malformed, malformed_is_fatal);
            let most =
                if end - start > self.longest_line { HEAD.min(self.longest_line) } else { end - start };
            let (offset, bytes) = (self.at + next as u64 - 1, self.buffer[start..start + most].to_vec());
            self.unreadable = Some(Unreadable { source: number, offset, bytes, why });
            (stretch.done, stretch.lines) = (next, stretch.lines + 1);
        }
        self.look_at_lines(&stretch)?;
        let message = |(start, parsed, offset): &(usize, Parsed, u64)| Message {
            source: number,
            offset: *offset,
            key: parsed.key.bytes(&self.buffer[*start..], &stretch.made),
            value: parsed.value.bytes(&self.buffer[*start..], &stretch.made),
            timestamp_ms: parsed.timestamp_ms,
            headers: Headers::packed(&stretch.made[parsed.headers.clone()]),
        };
        let messages: Vec<Message<'_>> = stretch.parsed.iter().map(message).collect();
        if !messages.is_empty() {
            take(&messages)?;
        }
        let count = messages.len();
        tally.lines.add(stretch.lines - self.lines);
        (self.done, self.lines) = (stretch.done, stretch.lines);
        self.scanned = self.scanned.max(self.done);
        let begun = self.buffer.len() - self.done;
        if begun > self.longest_line && self.scanned == self.buffer.len() && !self.at_end {
            self.leaving_out = Some(self.buffer[self.done..self.done + begun.min(HEAD)].to_vec());
            self.leave_out(number, malformed_is_fatal, tally);
        }
        Ok(count)
    }

    /// The end of the line that begins at `start`, if it is in the buffer: its newline or, at the file's end, that.
    fn line_end(&mut self, start: usize) -> Option<usize> {
        let from = self.scanned.max(start);
        match memchr::memchr(b'\n', &self.buffer[from..]) {
            Some(newline) => {
                self.scanned = from + newline;
                Some(from + newline)
            }
            None => {
                self.scanned = self.buffer.len();
                self.at_end.then_some(self.buffer.len())
            }
        }
    }

    /// Reads lines until one is no message or none is whole.
    fn stretch(&mut self, tally: &Tally) -> Stretch {
        let mut of = Stretch { done: self.done, lines: self.lines, ..Stretch::default() };
        while of.done < self.buffer.len() {
            let Some(end) = self.line_end(of.done) else { break };
            let next = (end + 1).min(self.buffer.len());
            let line = &self.buffer[of.done..end];
            let is_too_long = line.len() > self.longest_line;
            let parsed = if is_too_long {
                Err(self.too_long())
            } else {
                line::parse(line, &self.spec.shape, &mut of.made)
            };
            match parsed {
                Ok(Some(parsed)) => {
                    let is_early = |from| parsed.timestamp_ms.is_none_or(|time| time < from);
                    if self.from_unix_ms.is_some_and(is_early) {
                        tally.passed_over.add(1);
                    } else {
                        self.from_unix_ms = None;
                        of.parsed.push((of.done, parsed, self.at + next as u64 - 1));
                    }
                }
                Ok(None) => tally.blank.add(1),
                Err(malformed) => {
                    of.malformed = Some((of.done, malformed));
                    self.scanned = of.done;
                    break;
                }
            }
            (of.done, of.lines) = (next, of.lines + 1);
        }
        of
    }

    fn too_long(&self) -> Malformed {
        let longest = self.longest_line;
        let what =
            format!("a line of more than {longest} bytes, a quarter of the memory; --memory gives more");
        Malformed { column: longest + 1, what }
    }

    /// Drops what there is of a line that is too long, and tells it once its end is there.
    fn leave_out(&mut self, number: usize, malformed_is_fatal: bool, tally: &Tally) {
        let end = self.line_end(self.done);
        let Some(head) = self.leaving_out.take_if(|_| malformed_is_fatal || end.is_some()) else {
            (self.done, self.scanned) = (self.buffer.len(), self.buffer.len());
            return;
        };
        let end = end.unwrap_or(self.buffer.len());
        let why = self.told(self.done, self.lines, &self.too_long(), malformed_is_fatal);
        self.done = (end + 1).min(self.buffer.len());
        self.scanned = self.done;
        let offset = (self.at + self.done as u64).saturating_sub(1);
        self.unreadable = Some(Unreadable { source: number, offset, bytes: head, why });
        self.lines += 1;
        tally.lines.add(1);
    }

    /// Tells what a job may have got wrong about lines when the first of them are there.
    fn look_at_lines(&mut self, of: &Stretch) -> Result<(), SystemError> {
        let of_line = |n: usize| &self.buffer[of.parsed[n].0..];
        let line = |n: usize| of_line(n).split(|b| *b == b'\n').next().unwrap_or_default();
        let doubtful = of.parsed.iter().position(|(_, parsed, _)| parsed.is_doubtful);
        if let Some(n) = doubtful.filter(|_| !self.told_doubt) {
            let is = if of.parsed[n].1.kind == Kind::Envelope { "an envelope" } else { "a row" };
            warn!(
                "{}: lines such as {} could be envelopes or rows; this one is taken for {is}: say `envelope = true` or \
                 `envelope = false` in [streams.\"{}\"]",
                self.place,
                String::from_utf8_lossy(&line(n)[..line(n).len().min(80)]).trim(),
                self.spec.stream
            );
        }
        let rows =
            || of.parsed.iter().enumerate().filter(|(_, (_, p, _))| matches!(p.kind, Kind::Row { .. }));
        let first = rows().next().map(|(n, _)| n);
        if let Some(n) = first.filter(|_| !self.looked_at_fields) {
            let has = |which: fn(Kind) -> bool| rows().any(|(_, (_, parsed, _))| which(parsed.kind));
            let keyed = has(|kind| matches!(kind, Kind::Row { keyed: true, .. }));
            let timed = has(|kind| matches!(kind, Kind::Row { timed: true, .. }));
            let shape = &self.spec.shape;
            let missing = [("key", &shape.key_field, keyed), ("timestamp", &shape.time_field, timed)];
            for (setting, field, _) in missing.into_iter().filter(|(_, _, is_there)| !is_there) {
                let Some(field) = field else { continue };
                self.no_such_field(setting, field, rows().count(), &line::names(line(n)))?;
            }
        }
        self.looked_at_fields |= first.is_some();
        self.told_doubt |= doubtful.is_some();
        Ok(())
    }

    /// A field that the job names and no row has is an error at the beginning of a file, and worth a word elsewhere.
    fn no_such_field(
        &self,
        setting: &str,
        field: &str,
        rows: usize,
        names: &[String],
    ) -> Result<(), SystemError> {
        let near = job_file::nearest(field, names.iter().map(String::as_str));
        let meant = near.map(|near| format!("; did you mean `{setting} = \"{near}\"`?")).unwrap_or_default();
        let told = format!(
            "{}: none of its first {rows} rows has the field \"{field}\" that `{setting}` in [streams.\"{}\"] names{meant} \
             The first has: {}",
            self.place,
            self.spec.stream,
            names.join(", ")
        );
        if self.input.file().is_some() && self.began == 0 {
            return Err(SystemError::Fatal(told));
        }
        warn!("{told}");
        Ok(())
    }

    /// Where and what, for people.
    fn told(&self, start: usize, lines: u64, malformed: &Malformed, is_fatal: bool) -> String {
        let Malformed { column, what } = malformed;
        // Only now it matters how many lines are before where reading began.
        let before = match (&self.place, self.input.file()) {
            (Place::At(path), Some(_)) => lines_before(path, self.began).unwrap_or(0),
            (Place::At(_) | Place::Stdio, _) => 0,
        };
        let unfinished = self.at_end && !self.buffer[start..].contains(&b'\n');
        let unfinished = if unfinished { "; the line has no end: is it still being written?" } else { "" };
        let way_out = if is_fatal {
            " (`decode = \"skip\"` in [errors] leaves such lines out, \"dead-letter\" keeps them elsewhere)"
        } else {
            ""
        };
        format!("{} line {}, column {column}: {what}{unfinished}{way_out}", self.place, before + lines + 1)
    }

    /// The byte `next`, at which reading goes on, and, of a file as it is, what is before it.
    pub(crate) fn position(&self, next: u64) -> Position {
        let file = self.input.file().filter(|_| self.input.is_plain() && next > 0);
        let before = file.and_then(|file| bytes_before(file, next, TRACE).ok());
        Position { next, trace: before.map(|bytes| Trace::of(&bytes)) }
    }
}

fn lines_before(path: &Path, end: u64) -> io::Result<u64> {
    if end == 0 {
        return Ok(0);
    }
    let mut input =
        Input::open(&Place::At(path.to_owned()), &std::sync::Arc::default()).map_err(io::Error::other)?;
    let (mut count, mut at, mut chunk) = (0, 0, vec![0; 256 << 10]);
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(chunk.len());
        match input.read(&mut chunk[..most], Duration::ZERO)? {
            None | Some(0) => break,
            Some(read) => {
                count += chunk[..read].iter().filter(|b| **b == b'\n').count() as u64;
                at += read as u64;
            }
        }
    }
    Ok(count)
}
