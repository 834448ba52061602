//! How a task thread, and with the last of them the process, ends; and the exit code that says it.

use task_api::StoreError;
use task_api::system::SystemError;
use types::{EXIT_FENCED, EXIT_STUCK, EXIT_TRANSACTION_TIMEOUT};

use crate::board::Told;

const EXIT_FAILED: i32 = 1;
/// A process that a signal ends has this and the signal's number, as shells say it.
const EXIT_SIGNAL: i32 = 128;
/// Its number.
pub(crate) const TERM: i32 = 15;

/// How a thread ends in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// Every input of its tasks is over.
    Inputs,
    /// It was told to.
    Told,
}

impl Over {
    /// The exit code of a container whose threads all ended in order, one of them so at least; `told` is who told it
    /// to end, if anybody did. 0 says that there is nothing left to do: whoever was only stopped must not say it.
    pub(crate) fn exit_code(self, told: Option<Told>) -> i32 {
        match (self, told) {
            (Over::Inputs, _) | (Over::Told, Some(Told::Task)) => 0,
            (Over::Told, Some(Told::Signal(signal))) => EXIT_SIGNAL + signal,
            (Over::Told, Some(Told::Master)) => EXIT_SIGNAL + TERM,
            // A failed thread's own end says more than this.
            (Over::Told, Some(Told::Failure) | None) => EXIT_FAILED,
        }
    }

    /// Of the whole container: it is over if all its threads are.
    pub(crate) fn and(self, other: Over) -> Over {
        if self == Over::Inputs { other } else { self }
    }
}

/// Why a task thread is over that does not end in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// A newer incarnation owns its tasks.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The broker has aborted its transaction, which was open for too long.
    #[error("transaction timeout: {0}")]
    TransactionTimeout(String),
    /// A call of a task does not return.
    #[error("stuck: {0}")]
    Stuck(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<SystemError> for End {
    fn from(error: SystemError) -> End {
        match error {
            SystemError::Fenced(text) => End::Fenced(text),
            SystemError::Retriable(text) | SystemError::Fatal(text) | SystemError::Refused(text) => {
                End::Failed(text)
            }
        }
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> End {
        End::Failed(error.to_string())
    }
}

impl End {
    /// Says where it happened.
    pub(crate) fn during(self, what: &str) -> End {
        let at = |text| format!("{what}: {text}");
        match self {
            End::Fenced(text) => End::Fenced(at(text)),
            End::TransactionTimeout(text) => End::TransactionTimeout(at(text)),
            End::Stuck(text) => End::Stuck(at(text)),
            End::Failed(text) => End::Failed(at(text)),
        }
    }

    /// The process's.
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            End::Fenced(_) => EXIT_FENCED,
            End::TransactionTimeout(_) => EXIT_TRANSACTION_TIMEOUT,
            End::Stuck(_) => EXIT_STUCK,
            End::Failed(_) => EXIT_FAILED,
        }
    }

    /// The last line of the log.
    pub(crate) fn say(&self) {
        match self {
            End::Failed(why) => tracing::error!("failed: {why}"),
            named => tracing::error!("{named}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_said_only_when_inputs_are_over_or_a_task_asked_for_it() {
        let told = [None, Some(Told::Task), Some(Told::Signal(2)), Some(Told::Signal(15))];
        let told = told.into_iter().chain([Some(Told::Master), Some(Told::Failure)]);
        let codes = |over: Over| told.clone().map(move |told| over.exit_code(told)).collect::<Vec<_>>();
        assert_eq!(codes(Over::Inputs), [0, 0, 0, 0, 0, 0]);
        assert_eq!(codes(Over::Told), [1, 0, 130, 143, 143, 1]);
        assert_eq!(Over::Inputs.and(Over::Told), Over::Told);
        assert_eq!(Over::Inputs.and(Over::Inputs), Over::Inputs);
    }
}
