//! Test only: named points at which the node manager kills itself (SIGKILL), as `SAMZA_NM_TEST_CRASH_AT=<point>` says.
//! Nothing is armed in production: a point then costs one look at a static.

use std::sync::OnceLock;

use rustix::process::{Signal, getpid, kill_process};

/// The process comes to `point`.
pub(crate) fn at(point: &str) {
    static ARMED: OnceLock<Option<String>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| std::env::var("SAMZA_NM_TEST_CRASH_AT").ok());
    if armed.as_deref() == Some(point) {
        tracing::warn!(point, "kills itself, as the environment says");
        if let Err(error) = kill_process(getpid(), Signal::KILL) {
            tracing::warn!(%error, "cannot kill itself");
        }
        // The signal may take a moment; nothing more may happen here meanwhile.
        loop {
            std::thread::park();
        }
    }
}
