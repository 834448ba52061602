//! The node manager's decisions, without I/O: which container may start, when it must end, what its exit is
//! called, and which commands are still current.
//!
//! [`Core`] owns every container of the node. Verbs take the time as a parameter and push [`Command`]s; the
//! driver runs them and brings back what came of them as further verbs ([`Event`] lists them all). Files:
//! `lifecycle` (the leaf state machine and its table), `lease` (lease arithmetic), `exit` (what an exit is
//! called), `core` (sessions, stamps, beats), `all` (containers and what finds them), `containers` (the verbs on
//! them), `check` (invariants).
//!
//! What holds, whatever arrives in whatever order:
//! - An id is launched at most once, and only after its record is durable.
//! - A container is launched only while the lease holds and after every older container of its slot on this node
//!   is over.
//! - An exit is reported only after it is durable, and then it never changes.

mod all;
mod check;
mod containers;
mod core;
mod exit;
mod lease;
mod lifecycle;
mod words;

pub use check::Violation;
pub use core::Core;
pub use exit::{Evidence, Outcome, ShimReason, cause_of};
pub use lease::Lease;
pub use lifecycle::{Input, Phase, step};
pub use words::{
    Command, ContainerView, Denied, Event, Found, HelloFacts, Master, Process, Record, RecordedExit,
    RecordedStop, Recovered, View,
};
