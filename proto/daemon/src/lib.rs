//! What every process of ours has: logs, signals, the token, servers that shut down in bounded time, clocks, and
//! files that are whole or not there.

mod auth;
mod clock;
mod files;
mod limits;
mod logs;
mod serve;
mod shutdown;

pub use auth::require_token_unless_loopback;
pub use clock::{boottime_ms, unix_ms};
pub use files::write_atomically;
pub use limits::raise_open_files;
pub use logs::init_logs;
pub use serve::{serve_grpc, serve_http};
pub use shutdown::Shutdown;
