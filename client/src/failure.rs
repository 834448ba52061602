//! How a command fails: one message, one exit code.

use std::fmt;
use std::process::ExitCode;

/// The exit codes of both programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// It failed for a reason that has no code of its own; or the job that was waited for ended unwell.
    Failure = 1,
    /// The command line is wrong (clap exits with it too).
    Usage = 2,
    /// There is no such job, container or node.
    NotFound = 3,
    /// The cluster refuses: a live job has the name, the job is over, the token is wrong.
    Refused = 4,
    /// The resource manager or a Kafka broker does not answer, or not in time.
    Unreachable = 5,
    /// The job file or what it points to is not valid.
    BadJobFile = 65,
    /// The job file cannot be read.
    NoJobFile = 66,
}

/// The table of codes for `--help`; docs/cli.md has it too.
pub const CODES: &str = "\
Exit codes:
  0   done
  1   failed, or the job that was waited for ended unwell
  2   the command line is wrong
  3   no such job, container or node
  4   refused: a live job has this name, the job is over, the token is wrong
  5   the resource manager or a Kafka broker does not answer
  65  the job file, or what it points to, is not valid
  66  the job file cannot be read";

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    /// What the process exits with.
    pub code: Code,
    /// For people; may have several lines.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    /// A failure with this code.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    /// A failure without a code of its own.
    pub fn other(message: impl Into<String>) -> Failure {
        Failure::new(Code::Failure, message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::other(error.to_string())
    }
}

/// What `main` returns: prints a failure to stderr. A reader of our stdout that went away is no failure.
#[must_use]
pub fn exit(program: &str, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    if failure.code == Code::BadJobFile {
        eprintln!("{failure}");
    } else {
        eprintln!("{program}: {failure}");
    }
    ExitCode::from(failure.code as u8)
}
