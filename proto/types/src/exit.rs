//! Why a container is over, and the exit codes that a container's process uses to say it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The exit code by which a container's process says that a newer incarnation fenced it in Kafka.
/// Node managers turn it into [`ExitCause::Fenced`] without knowing what fencing is.
pub const EXIT_FENCED: i32 = 90;

/// The exit code of a container that ends itself because one of its tasks did not return for longer than
/// `[task] stuck-after`.
pub const EXIT_STUCK: i32 = 91;
/// The exit code of a container whose transaction the broker aborted because it was open for too long.
pub const EXIT_TRANSACTION_TIMEOUT: i32 = 92;

/// What a container's exit code says beyond that it failed; for people.
fn meaning(code: i32) -> &'static str {
    match code {
        EXIT_FENCED => " (it says it is fenced, but nobody else owns its tasks)",
        EXIT_STUCK => " (a task hung for longer than [task] stuck-after)",
        EXIT_TRANSACTION_TIMEOUT => " (its transaction was open for too long)",
        130 => " (interrupted by a signal from outside)",
        143 => " (terminated by a signal from outside)",
        _ => "",
    }
}

/// Why a container is over.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "cause")]
pub enum ExitCause {
    /// Its process exited with 0.
    Success,
    /// Its process exited with another code.
    Failed {
        /// The code, 1 to 255.
        code: i32,
    },
    /// A signal ended it that nobody here sent.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// The kernel killed it at its memory limit.
    OutOfMemory {
        /// The most it used, bytes.
        peak_bytes: u64,
        /// Its limit, bytes.
        limit_bytes: u64,
    },
    /// Its node's disk is full.
    DiskFull,
    /// Its application master stopped it.
    KilledByAm,
    /// A user stopped it or its job.
    KilledByUser,
    /// It gave way to another queue.
    Preempted,
    /// Its node is gone, or came back as another boot.
    NodeLost,
    /// It never ran.
    LaunchFailed {
        /// What failed, for people.
        reason: String,
    },
    /// Its node's lease ended before it ran, or `on-lease-loss = "stop"` ended it.
    LeaseExpired,
    /// A newer incarnation of it has fenced it in Kafka.
    Fenced,
}

impl ExitCause {
    /// Whether it counts against the job's retries. `LaunchFailed` and `DiskFull` count
    /// once they were seen on two nodes; that is the caller's to remember.
    #[must_use]
    pub fn counts_as_failure(&self) -> bool {
        match self {
            ExitCause::Success
            | ExitCause::Failed { .. }
            | ExitCause::Signal { .. }
            | ExitCause::OutOfMemory { .. }
            | ExitCause::DiskFull
            | ExitCause::LaunchFailed { .. } => true,
            ExitCause::KilledByAm
            | ExitCause::KilledByUser
            | ExitCause::Preempted
            | ExitCause::NodeLost
            | ExitCause::LeaseExpired
            | ExitCause::Fenced => false,
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitCause::Success => f.write_str("success"),
            ExitCause::Failed { code } => write!(f, "failed with exit code {code}{}", meaning(*code)),
            ExitCause::Signal { signal } => write!(f, "killed by signal {signal}"),
            ExitCause::OutOfMemory { peak_bytes, limit_bytes } => {
                write!(f, "out of memory: peak {} MiB, limit {} MiB", peak_bytes >> 20, limit_bytes >> 20)
            }
            ExitCause::DiskFull => f.write_str("disk full"),
            ExitCause::KilledByAm => f.write_str("stopped by its application master"),
            ExitCause::KilledByUser => f.write_str("stopped by a user"),
            ExitCause::Preempted => f.write_str("preempted"),
            ExitCause::NodeLost => f.write_str("node lost"),
            ExitCause::LaunchFailed { reason } => write!(f, "launch failed: {reason}"),
            ExitCause::LeaseExpired => f.write_str("lease expired"),
            ExitCause::Fenced => f.write_str("fenced by a newer incarnation"),
        }
    }
}
