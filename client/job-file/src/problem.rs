//! What is wrong with a job file, and where.

use std::fmt;
use std::ops::Range;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The file's name.
    pub file: String,
    /// The line, from 1; none for what is not there at all.
    pub line: Option<usize>,
    /// The key's full path, such as `task.inputs`; empty if it is the syntax.
    pub key: String,
    /// What is wrong and what would be valid, for people; names the key.
    pub message: String,
}

impl fmt::Display for Problem {
    /// `job.toml:12: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

/// Everything that is wrong with a file, by line; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    /// One line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// A file's name and where its lines begin.
pub(crate) struct Source {
    pub(crate) name: String,
    starts: Vec<usize>,
}

impl Source {
    pub(crate) fn new(name: &str, text: &str) -> Source {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Source { name: name.to_owned(), starts }
    }

    /// The line, from 1, that holds byte `at`.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    /// A syntax error.
    pub(crate) fn syntax(&self, span: Option<Range<usize>>, message: &str) -> Problem {
        Problem {
            file: self.name.clone(),
            line: span.map(|span| self.line(span.start)),
            key: String::new(),
            message: format!("not valid TOML: {}", message.replace('\n', "; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_on_the_line_that_holds_it() {
        let source = Source::new("x", "ab\ncd\n\ne");
        let lines: Vec<usize> = (0..8).map(|at| source.line(at)).collect();
        assert_eq!(lines, [1, 1, 1, 2, 2, 2, 3, 4]);
    }
}
