//! One slot: a logical container, and where the real one in it stands.
//!
//! | State \ Input | Ask | Placed | Running | StopSent | Check | Retry | RetryAt | Finish | GiveUp |
//! |---|---|---|---|---|---|---|---|---|---|
//! | Waiting  | Asked | Placed | Running | – | Checking | Waiting | Backoff | Done | GaveUp |
//! | Asked    | –     | Placed | Running | – | Checking | Waiting | Backoff | Done | GaveUp |
//! | Placed   | –     | Placed | Running | Stopping | Checking | Waiting | Backoff | Done | GaveUp |
//! | Running  | –     | Placed | Running | Stopping | Checking | Waiting | Backoff | Done | GaveUp |
//! | Stopping | –     | Placed | Running | Stopping | Checking | Waiting | Backoff | Done | GaveUp |
//! | Checking | –     | Placed | Running | – | – | Waiting | Backoff | – | GaveUp |
//! | Backoff  | –     | Placed | Running | – | Checking | Waiting | Backoff | Done | GaveUp |
//! | Done, GaveUp | – | –      | –       | – | – | – | – | – | – |
//!
//! Placed and Running may come in any state but the last two, because a container of an earlier attempt, or of a
//! node that was away, is adopted whenever it is reported; a newer container takes the place of an older one.

use types::{ContainerId, RequestId, Timestamp};

/// Where a slot stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing is under way; it is asked for as soon as that is allowed.
    Waiting,
    /// An ask is open.
    Asked {
        /// The ask.
        request: RequestId,
    },
    /// A node was found; the process does not run yet.
    Placed {
        /// The container.
        container: ContainerId,
    },
    /// Its process runs.
    Running {
        /// The container.
        container: ContainerId,
    },
    /// It was silent and is being stopped; replaced after its exit.
    Stopping {
        /// The container.
        container: ContainerId,
    },
    /// It was fenced; who did it is being looked up.
    Checking {
        /// The container that was fenced.
        container: ContainerId,
    },
    /// The next try has to wait.
    Backoff {
        /// Until then.
        until: Timestamp,
    },
    /// It ended well; never started again.
    Done,
    /// Its retries are spent and the job runs on without it.
    GaveUp,
}

/// What can happen to a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotInput {
    /// An ask was made.
    Ask(RequestId),
    /// A container was allocated to it.
    Placed(ContainerId),
    /// A container of it runs.
    Running(ContainerId),
    /// Its container is being stopped.
    StopSent,
    /// Its container was fenced.
    Check(ContainerId),
    /// It may be asked for at once.
    Retry,
    /// It may be asked for then.
    RetryAt(Timestamp),
    /// Its container ended well.
    Finish,
    /// Its retries are spent.
    GiveUp,
}

impl SlotState {
    /// The container that occupies the slot.
    #[must_use]
    pub fn container(&self) -> Option<ContainerId> {
        match self {
            SlotState::Placed { container }
            | SlotState::Running { container }
            | SlotState::Stopping { container } => Some(*container),
            SlotState::Waiting
            | SlotState::Asked { .. }
            | SlotState::Checking { .. }
            | SlotState::Backoff { .. }
            | SlotState::Done
            | SlotState::GaveUp => None,
        }
    }

    /// The open ask.
    #[must_use]
    pub fn request(&self) -> Option<RequestId> {
        if let SlotState::Asked { request } = self { Some(*request) } else { None }
    }

    /// Whether nothing more will run in it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, SlotState::Done | SlotState::GaveUp)
    }

    /// The state after `input`; none if the table has no such step.
    #[must_use]
    pub fn after(&self, input: &SlotInput) -> Option<SlotState> {
        use SlotInput as I;
        use SlotState as S;
        let next = match (self, input) {
            (S::Done | S::GaveUp, _) => return None,
            (S::Waiting, I::Ask(request)) => S::Asked { request: *request },
            (
                S::Asked { .. }
                | S::Placed { .. }
                | S::Running { .. }
                | S::Stopping { .. }
                | S::Checking { .. }
                | S::Backoff { .. },
                I::Ask(_),
            ) => return None,
            (_, I::Placed(container)) => S::Placed { container: *container },
            (_, I::Running(container)) => S::Running { container: *container },
            (S::Placed { container } | S::Running { container } | S::Stopping { container }, I::StopSent) => {
                S::Stopping { container: *container }
            }
            (S::Waiting | S::Asked { .. } | S::Checking { .. } | S::Backoff { .. }, I::StopSent)
            | (S::Checking { .. }, I::Check(_) | I::Finish) => return None,
            (_, I::Check(container)) => S::Checking { container: *container },
            (_, I::Retry) => S::Waiting,
            (_, I::RetryAt(until)) => S::Backoff { until: *until },
            (_, I::Finish) => S::Done,
            (_, I::GiveUp) => S::GaveUp,
        };
        Some(next)
    }
}
