//! A place in a file as checkpoints keep it: the next byte, and what tells the file from another. Pure.

use task_api::system::{Offset, SystemError};

/// So many bytes before a place tell whether it is in the file that it was taken from.
pub(crate) const TRACE: usize = 64;

/// Where reading goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The next byte.
    pub(crate) next: u64,
    /// Of the bytes before it; none if nobody knew.
    pub(crate) trace: Option<Trace>,
}

/// What is left of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trace(u32);

impl Trace {
    /// Of the bytes before a place, the last [`TRACE`] of which count.
    pub(crate) fn of(before: &[u8]) -> Trace {
        Trace(crc32fast::hash(&before[before.len().saturating_sub(TRACE)..]))
    }
}

impl Position {
    /// As an offset: `<byte>` or `<byte>~<trace>`.
    pub(crate) fn offset(&self) -> Offset {
        Offset(match self.trace {
            Some(Trace(trace)) => format!("{}~{trace:08x}", self.next),
            None => self.next.to_string(),
        })
    }

    /// What `offset` stands for.
    ///
    /// # Errors
    /// It is none of a file.
    pub(crate) fn parse(offset: &Offset) -> Result<Position, SystemError> {
        let (next, trace) = match offset.0.split_once('~') {
            Some((next, trace)) => {
                (next.parse().ok(), u32::from_str_radix(trace, 16).map(|t| Some(Trace(t))).ok())
            }
            None => (offset.0.parse().ok(), Some(None)),
        };
        let told = || SystemError::Fatal(format!("`{offset}` is not a place in a file"));
        next.zip(trace).map(|(next, trace)| Position { next, trace }).ok_or_else(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_an_offset_and_back() {
        for trace in [None, Some(Trace(0)), Some(Trace::of(b"some line\n")), Some(Trace(u32::MAX))] {
            let position = Position { next: 1 << 40, trace };
            assert_eq!(Position::parse(&position.offset()), Ok(position));
        }
        for bad in ["", "x", "1~", "1~xyz", "~1", "-1"] {
            assert!(Position::parse(&Offset(bad.into())).is_err(), "{bad}");
        }
        assert_eq!(Trace::of(&[7; 100]), Trace::of(&[7; TRACE]));
        assert_ne!(Trace::of(b"{\"n\":1}\n"), Trace::of(b"{\"n\":2}\n"));
    }
}
