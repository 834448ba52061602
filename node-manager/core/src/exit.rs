//! What a container's exit is called: the process's own word, the cgroup's evidence, and who wanted it to end.

use serde::{Deserialize, Serialize};
use types::{EXIT_FENCED, ExitCause};

/// How a container's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It exited.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// Its shim vanished without a word; the rest was killed.
    Unknown,
}

/// Why a shim killed its container without being told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShimReason {
    /// The lease ended and the job said `on-lease-loss = "stop"`.
    LeaseEnded,
    /// There was no node manager for too long.
    Abandoned,
}

/// What the machine shows about an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evidence {
    /// Processes of the container that the kernel killed at the memory limit.
    pub oom_kills: u64,
    /// The most memory it used, bytes.
    pub peak_bytes: u64,
    /// Its limit, bytes.
    pub limit_bytes: u64,
    /// Whether the node's disk was full when it ended.
    pub disk_full: bool,
    /// Whether its shim ended it, and why.
    pub by_shim: Option<ShimReason>,
}

/// Names an exit. `stop` is the cause of a stop in force when it ended: it wins, since whatever the process did
/// then, it did because it was told to end.
#[must_use]
pub fn cause_of(outcome: Outcome, evidence: &Evidence, stop: Option<&ExitCause>) -> ExitCause {
    if let Some(cause) = stop {
        return cause.clone();
    }
    if evidence.by_shim.is_some() {
        return ExitCause::LeaseExpired;
    }
    let out_of_memory = evidence.oom_kills > 0;
    let oom = ExitCause::OutOfMemory { peak_bytes: evidence.peak_bytes, limit_bytes: evidence.limit_bytes };
    match outcome {
        Outcome::Code(0) => ExitCause::Success,
        Outcome::Code(EXIT_FENCED) => ExitCause::Fenced,
        Outcome::Code(_) | Outcome::Signal(_) | Outcome::Unknown if out_of_memory => oom,
        // A shim vanishes without a word also when there is no room for one.
        Outcome::Code(_) | Outcome::Unknown if evidence.disk_full => ExitCause::DiskFull,
        Outcome::Code(code) => ExitCause::Failed { code },
        Outcome::Signal(signal) => ExitCause::Signal { signal },
        Outcome::Unknown => ExitCause::Signal { signal: 9 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oom() -> Evidence {
        Evidence { oom_kills: 1, peak_bytes: 64, limit_bytes: 64, ..Evidence::default() }
    }

    #[test]
    fn codes_and_signals_are_named() {
        let none = Evidence::default();
        assert_eq!(cause_of(Outcome::Code(0), &none, None), ExitCause::Success);
        assert_eq!(cause_of(Outcome::Code(90), &none, None), ExitCause::Fenced);
        assert_eq!(cause_of(Outcome::Code(3), &none, None), ExitCause::Failed { code: 3 });
        assert_eq!(cause_of(Outcome::Signal(11), &none, None), ExitCause::Signal { signal: 11 });
        assert_eq!(cause_of(Outcome::Unknown, &none, None), ExitCause::Signal { signal: 9 });
    }

    #[test]
    fn out_of_memory_is_told_by_the_cgroup_and_not_by_the_signal() {
        let exit = cause_of(Outcome::Signal(9), &oom(), None);
        assert_eq!(exit, ExitCause::OutOfMemory { peak_bytes: 64, limit_bytes: 64 });
        assert_eq!(cause_of(Outcome::Signal(9), &Evidence::default(), None), ExitCause::Signal { signal: 9 });
        // A child was killed at the limit, but the process itself coped.
        assert_eq!(cause_of(Outcome::Code(0), &oom(), None), ExitCause::Success);
    }

    #[test]
    fn a_stop_in_force_names_the_exit() {
        let stop = ExitCause::KilledByAm;
        assert_eq!(cause_of(Outcome::Code(0), &Evidence::default(), Some(&stop)), stop);
        assert_eq!(cause_of(Outcome::Signal(9), &Evidence::default(), Some(&stop)), stop);
    }

    #[test]
    fn what_the_shim_ends_by_itself_is_a_lost_lease() {
        let evidence = Evidence { by_shim: Some(ShimReason::LeaseEnded), ..Evidence::default() };
        assert_eq!(cause_of(Outcome::Signal(9), &evidence, None), ExitCause::LeaseExpired);
    }

    #[test]
    fn a_failure_on_a_full_disk_is_called_disk_full() {
        let evidence = Evidence { disk_full: true, ..Evidence::default() };
        assert_eq!(cause_of(Outcome::Code(1), &evidence, None), ExitCause::DiskFull);
        assert_eq!(cause_of(Outcome::Unknown, &evidence, None), ExitCause::DiskFull);
        assert_eq!(cause_of(Outcome::Code(0), &evidence, None), ExitCause::Success);
    }
}
