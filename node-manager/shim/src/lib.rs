//! What a shim and its node manager share: the order, the files they leave for each other, and how a container is
//! killed.
//!
//! A container's folder holds `shim.json` (the shim's claim: whoever creates it first decides whether the
//! container is ever started), `process.json` (the process, once it runs) and `exit.json` (how it ended).

pub mod files;
pub mod folder;
pub mod groups;
pub mod kill;

pub use files::{ByShim, Claim, ExitFile, Order, ProcessFile, Reply, User};
pub use folder::Folder;
pub use kill::KillPlan;
