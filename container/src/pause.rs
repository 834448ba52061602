//! Test only: `SAMZA_TEST_PAUSE_AT=<phase>` makes the process stop itself (SIGSTOP), once, when it comes to that
//! phase: `init`, `read`, `append`, `read-back`, `fence`, `tombstone`, `watermarks`, `wait-stable`, `restore`,
//! `run`, `commit` (before a transaction is committed) or `committed` (after). It goes on when it gets SIGCONT.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Signal, getpid, kill_process};
use tracing::warn;

static WHERE: OnceLock<Option<String>> = OnceLock::new();
static DONE: AtomicBool = AtomicBool::new(false);

/// The process comes to `phase`.
pub(crate) fn at(phase: &str) {
    let wanted = WHERE.get_or_init(|| std::env::var("SAMZA_TEST_PAUSE_AT").ok());
    if wanted.as_deref() != Some(phase) || DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    warn!(phase, "stopping itself, as SAMZA_TEST_PAUSE_AT says");
    if let Err(error) = kill_process(getpid(), Signal::STOP) {
        warn!(%error, "cannot stop itself");
    }
}
