//! A container's life on its node, as a table.
//!
//! ```text
//!              Ready     Launched  Failed  Stop       LeaseEnded  Gone    ExitRecorded
//! Localizing   Starting  -         Ending  Ending     Ending      -       -
//! Starting     -         Running   Ending  Starting*  Starting*   Ending  -
//! Running      -         -         -       Stopping   Running**   Ending  -
//! Stopping     -         -         -       Stopping   Stopping    Ending  -
//! Ending       .         .         .       .          .           .       Exited
//! Exited       .         .         .       .          .           .       .
//! ```
//!
//! `-` cannot happen (the driver would be broken), `.` comes too late and changes nothing. `*` the order is kept
//! and carried out once the process runs. `**` `on-lease-loss = "stop"` is a Stop, see `containers`.
//! Ending: the exit is known, its record is not yet durable; only Exited is reported as an exit.

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Waits for its record to be durable, its artefacts, and the end of its predecessors.
    Localizing,
    /// Its shim is being started.
    Starting,
    /// Its process runs.
    Running,
    /// Its process was told to end.
    Stopping,
    /// It is over; the record of its exit is being written.
    Ending,
    /// It is over, durably.
    Exited,
}

impl Phase {
    /// Whether a process of it may exist.
    #[must_use]
    pub fn may_have_process(self) -> bool {
        match self {
            Phase::Starting | Phase::Running | Phase::Stopping => true,
            Phase::Localizing | Phase::Ending | Phase::Exited => false,
        }
    }
    /// Whether it is over, durably or not yet.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Phase::Ending | Phase::Exited)
    }
}

/// What can happen to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Record durable, artefacts there, predecessors over.
    Ready,
    /// Its process runs.
    Launched,
    /// It could not be started.
    Failed,
    /// Someone wants it to end.
    Stop,
    /// The node's lease ended.
    LeaseEnded,
    /// Its process and everything it left is gone.
    Gone,
    /// The record of its exit is durable.
    ExitRecorded,
}

/// The table. `None` means that this cannot happen in this phase.
#[must_use]
pub fn step(phase: Phase, input: Input) -> Option<Phase> {
    use Input as I;
    use Phase as P;
    match (phase, input) {
        (P::Localizing, I::Ready) => Some(P::Starting),
        (P::Localizing, I::Failed | I::Stop | I::LeaseEnded) => Some(P::Ending),
        (P::Localizing, I::Launched | I::Gone | I::ExitRecorded) => None,
        (P::Starting, I::Launched) => Some(P::Running),
        (P::Starting, I::Failed | I::Gone) => Some(P::Ending),
        (P::Starting, I::Stop | I::LeaseEnded) => Some(P::Starting),
        (P::Starting, I::Ready | I::ExitRecorded) => None,
        (P::Running, I::Stop) => Some(P::Stopping),
        (P::Running, I::LeaseEnded) => Some(P::Running),
        (P::Running, I::Gone) => Some(P::Ending),
        (P::Running, I::Ready | I::Launched | I::Failed | I::ExitRecorded) => None,
        (P::Stopping, I::Stop | I::LeaseEnded) => Some(P::Stopping),
        (P::Stopping, I::Gone) => Some(P::Ending),
        (P::Stopping, I::Ready | I::Launched | I::Failed | I::ExitRecorded) => None,
        (P::Ending, I::ExitRecorded) => Some(P::Exited),
        (P::Ending, I::Ready | I::Launched | I::Failed | I::Stop | I::LeaseEnded | I::Gone) => {
            Some(P::Ending)
        }
        (
            P::Exited,
            I::Ready | I::Launched | I::Failed | I::Stop | I::LeaseEnded | I::Gone | I::ExitRecorded,
        ) => Some(P::Exited),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 6] =
        [Phase::Localizing, Phase::Starting, Phase::Running, Phase::Stopping, Phase::Ending, Phase::Exited];
    const INPUTS: [Input; 7] = [
        Input::Ready,
        Input::Launched,
        Input::Failed,
        Input::Stop,
        Input::LeaseEnded,
        Input::Gone,
        Input::ExitRecorded,
    ];

    #[test]
    fn a_life_never_goes_backwards() {
        for phase in PHASES {
            for input in INPUTS {
                if let Some(next) = step(phase, input) {
                    assert!(next >= phase, "{phase:?} on {input:?} went back to {next:?}");
                }
            }
        }
    }

    #[test]
    fn only_ready_leads_to_a_process() {
        for phase in PHASES.into_iter().filter(|p| !p.may_have_process()) {
            for input in INPUTS {
                let starts = step(phase, input).is_some_and(Phase::may_have_process);
                assert_eq!(starts, phase == Phase::Localizing && input == Input::Ready);
            }
        }
    }
}
