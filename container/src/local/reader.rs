//! Reads files of JSON lines, stdin among them, to their ends.
//!
//! What cannot be read again, such as stdin, is read from where it is.

use std::sync::Arc;
use std::time::Duration;

use task_api::system::{Message, Offset, StartAt, SystemConsumer, SystemError, TopicPartition, Unreadable};
use tracing::warn;

use super::files::{Files, Place};
use super::input::Input;
use super::position::Position;
use super::source::Source;
use super::tally::Tally;

/// A consumer of files.
pub(crate) struct FileConsumer {
    files: Arc<Files>,
    tally: Arc<Tally>,
    sources: Vec<Source>,
    turn: usize,
}

impl FileConsumer {
    pub(crate) fn new(files: &Arc<Files>, tally: &Arc<Tally>) -> FileConsumer {
        FileConsumer { files: Arc::clone(files), tally: Arc::clone(tally), sources: Vec::new(), turn: 0 }
    }

    fn open(&self, at: &TopicPartition, start: &StartAt) -> Result<Source, SystemError> {
        let place = self.files.partition(&at.topic, at.partition)?;
        let mut input = Input::open(&place, &self.tally.bytes_read)?;
        let fail = |e: std::io::Error| SystemError::Fatal(format!("{place}: {e}"));
        self.tally.inputs.add(1);
        let began = match (input.file(), start) {
            (None, StartAt::At(_)) => {
                warn!("{place} cannot be read again: going on with what comes");
                0
            }
            (None, StartAt::Oldest | StartAt::Newest | StartAt::Timestamp(_)) => 0,
            (Some(file), _) => {
                self.tally.bytes_there.add(file.metadata().map_err(fail)?.len());
                let to = match start {
                    StartAt::Oldest | StartAt::Timestamp(_) => 0,
                    StartAt::Newest => u64::MAX,
                    StartAt::At(offset) => Position::parse(offset)?.next,
                };
                let (began, _) = input.go_to(to).map_err(fail)?;
                match start {
                    StartAt::At(_) if began < to => {
                        return Err(SystemError::Fatal(format!(
                            "{place} ends at byte {began}, before byte {to}, where the job is to go on"
                        )));
                    }
                    StartAt::At(_) => self.tally.known_before.add(began),
                    StartAt::Newest => self.tally.began_at_end.add(1),
                    StartAt::Oldest | StartAt::Timestamp(_) => {}
                }
                began
            }
        };
        if place == Place::Stdio && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
            warn!("reads lines from the terminal: Ctrl-D ends them");
        }
        let spec = self.files.input(&at.topic);
        let mut source = Source::new(place, input, spec, began, &self.files);
        if let StartAt::Timestamp(unix_ms) = start {
            source.from_unix_ms = Some(*unix_ms);
        }
        Ok(source)
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
        let is_fatal = self.files.malformed_is_fatal;
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
            if !source.is_at_end() {
                source.fill(if live == 1 { timeout } else { timeout.min(Duration::from_millis(1)) })?;
            }
            let count = source.hand_over(self.turn, is_fatal, &self.tally, take)?;
            if count > 0 || source.unreadable.is_some() {
                return Ok(count);
            }
        }
        Ok(0)
    }

    fn take_unreadable(&mut self) -> Option<Unreadable> {
        let unreadable = self.sources.iter_mut().find_map(|source| source.unreadable.take());
        self.tally.malformed.add(u64::from(unreadable.is_some()));
        unreadable
    }

    /// Where reading begins at a time, only the first line of that time tells.
    fn start(&self, source: usize) -> Option<u64> {
        let source = &self.sources[source];
        source.from_unix_ms.is_none().then_some(source.began)
    }

    fn offset(&self, source: usize, position: u64) -> Offset {
        self.sources[source].position(position).offset()
    }

    /// In bytes: nobody knows how many lines there are.
    fn lag(&self, source: usize, position: u64) -> Option<u64> {
        let source = &self.sources[source];
        if source.is_over() {
            return Some(source.next().saturating_sub(position));
        }
        let length = source.input.file().filter(|_| source.input.is_plain())?.metadata().ok()?.len();
        Some(length.saturating_sub(position))
    }

    fn pause(&mut self, sources: &[usize]) -> Result<(), SystemError> {
        sources.iter().for_each(|n| self.sources[*n].paused = true);
        Ok(())
    }

    fn resume(&mut self, sources: &[usize]) -> Result<(), SystemError> {
        sources.iter().for_each(|n| self.sources[*n].paused = false);
        Ok(())
    }

    /// An offset is where its line ends.
    fn position_of(&self, _offset: u64) -> Option<u64> {
        None
    }

    fn caught_up_at(&self, source: usize) -> Option<u64> {
        let source = &self.sources[source];
        source.is_over().then(|| source.next())
    }

    fn has_ended(&self, source: usize) -> bool {
        self.sources[source].is_over()
    }
}
