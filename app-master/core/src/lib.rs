//! The application master's decisions: the job model, where its containers would rather run, and how they are
//! kept running. Pure: time is a parameter, effects are [`Command`]s, refusals carry a reason.
//!
//! The floor plan: [`job_model`] and [`grouping`] say which container has which tasks, [`growth`] what follows when
//! inputs change; [`preference`] where it
//! should run; [`slot`] is the state machine of one logical container; [`restart`] says when a failed one is
//! tried again; [`plan`] which topics there must be. [`AmCore`] holds them together and is the only thing a
//! driver (the process, or the simulator) talks to.
//!
//! am-core knows no backend: its commands ask for, stop and acknowledge containers, and a driver maps them onto a
//! resource manager or onto anything else that can run processes.

mod check;
mod containers;
mod core;
mod ending;
mod event;
mod exits;
pub mod grouping;
pub mod growth;
mod holding;
pub mod job_model;
pub mod place;
pub mod plan;
pub mod preference;
pub mod restart;
mod rolling;
pub mod slot;
mod status;

pub use check::Violation;
pub use containers::{DEAF_MS, SILENCE_MS, UNLISTED_MS};
pub use core::{AmCore, AmIdentity, Denied, HelloAnswer, Phase};
pub use ending::{Ending, EndingStep, STOP_GRACE_MS};
pub use event::{Command, Event, Failure};
pub use status::View;
