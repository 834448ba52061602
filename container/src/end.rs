//! How a task thread ends when it does not end in order.

use task_api::StoreError;
use task_api::system::SystemError;

/// Why a task thread is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// A newer incarnation owns its tasks.
    #[error("fenced: {0}")]
    Fenced(String),
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
        match self {
            End::Fenced(text) => End::Fenced(format!("{what}: {text}")),
            End::Failed(text) => End::Failed(format!("{what}: {text}")),
        }
    }
}
