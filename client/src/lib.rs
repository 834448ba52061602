//! What `samza-submit` and `samza` share: the calls to the resource manager, what is printed, how they exit.
//!
//! Data goes to stdout, everything else to stderr. Every failure is one message that names the thing and the way
//! out, and one code of the table in [`failure::Code`].

pub mod args;
pub mod brokers;
pub mod failure;
pub mod find;
pub mod logs;
pub mod metrics;
pub mod new;
pub mod output;
pub mod package;
pub mod resource_manager;
pub mod run;
pub mod submit;
pub mod tables;
mod topics;
pub mod wait;
