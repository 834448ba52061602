//! The task runtime's decisions, without I/O: who owns a task ([`ownership`]), what the checkpoint topic holds
//! ([`record`]), when to commit ([`commit`]), what of a store must be restored ([`restore`]), and which inputs must wait
//! for others ([`chooser`]).
//!
//! No clock, no randomness, no network: time and answers are parameters. [`ownership::drive`] alone calls out,
//! through the traits of `task-api`.

pub mod chooser;
pub mod commit;
pub mod ownership;
pub mod record;
pub mod restore;
