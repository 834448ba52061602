//! The task runtime's decisions, without I/O: who owns a task ([`ownership`]), what the checkpoint topic holds
//! ([`record`]), when to commit ([`commit`]), and what of a store must be restored ([`restore`]).
//!
//! No clock, no randomness, no network: time and answers are parameters. [`ownership::drive`] alone calls out,
//! through the traits of `task-api`.

pub mod commit;
pub mod ownership;
pub mod record;
pub mod restore;
