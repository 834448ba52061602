//! Logs to stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to stderr: `RUST_LOG` filters (default `info`), `SAMZA_LOG_FORMAT=json` makes one JSON object a
/// line. Call once, first thing in `main`; `process` is logged with the start.
pub fn init_logs(process: &'static str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Nobody may read stderr any more, and that is no reason to panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let json = std::env::var("SAMZA_LOG_FORMAT").is_ok_and(|format| format == "json");
    let started = if json {
        builder.json().try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    if started.is_ok() {
        tracing::debug!(process, version = env!("CARGO_PKG_VERSION"), "starting");
    }
}
