//! The gRPC services: decode, call, encode. No decisions.

pub(crate) mod artefact;
pub(crate) mod client;

use rm_core::Denied;
use tonic::Status;

/// The one place where a refusal becomes a gRPC status.
pub(crate) fn status_of(denied: &Denied) -> Status {
    let text = denied.to_string();
    match denied {
        Denied::Recovering | Denied::NoMaster(_) => Status::unavailable(text),
        Denied::UnknownApp(_) | Denied::UnknownNode(_) => Status::not_found(text),
        Denied::LiveJob { .. } => Status::already_exists(text),
        Denied::Over(_) => Status::failed_precondition(text),
        Denied::BadJob(_) => Status::invalid_argument(text),
        Denied::NotCurrentAttempt { .. } | Denied::NodeIdTaken(_) | Denied::StaleSession => {
            Status::failed_precondition(text)
        }
    }
}
