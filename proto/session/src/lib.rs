//! Sessions without I/O: the numbering of items, what is not acknowledged yet, when to acknowledge, and how long
//! to wait before dialling again. The tonic driver of these is in `proto`; the simulator needs none of it, since
//! every item follows from its sender's state (see `types::session`).

mod backoff;
mod numbering;

pub use backoff::Backoff;
pub use numbering::{Gap, Inbound, Outbound, Stuck};
