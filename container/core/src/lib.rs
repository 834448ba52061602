//! The task runtime's decisions, without I/O: who owns a task ([`ownership`]), what the checkpoint topic holds
//! ([`record`]), when to commit ([`commit`]), what of a store must be restored ([`restore`]), which inputs must wait
//! for others ([`chooser`]), what follows when state is lost ([`lost`]), and whether a job's topics are what it needs
//! ([`topics`]).
//!
//! No clock, no randomness, no network: time and answers are parameters. [`ownership::drive`] and [`topics::ensure`]
//! alone call out, through the traits of `task-api`.

pub mod chooser;
pub mod commit;
pub mod lost;
pub mod names;
pub mod ownership;
pub mod record;
pub mod restore;
pub mod topics;
