//! The words of samza-rs: what every crate of the house may name.
//!
//! Plain data with serde; no behaviour beyond parsing, ordering and printing. This crate knows no clock, no
//! randomness, no network and no other crate of ours.

mod client_settings;
mod container;
mod exit;
mod id;
mod job;
mod model;
mod names;
mod patterns;
mod report;
mod resource;
mod secret;
mod security;
mod session;
mod tasks;
mod topic_settings;
mod topics;

pub use client_settings::*;
pub use container::*;
pub use exit::*;
pub use id::*;
pub use job::*;
pub use model::*;
pub use names::*;
pub use patterns::*;
pub use report::*;
pub use resource::*;
pub use secret::*;
pub use security::*;
pub use session::*;
pub use tasks::*;
pub use topic_settings::*;
pub use topics::*;
