//! The wish that the process ends.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cheap to clone; all clones see the same wish.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// One that only [`Shutdown::begin`] triggers.
    #[must_use]
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// One that SIGTERM and SIGINT trigger. The second signal ends the process at once with 130.
    ///
    /// # Panics
    /// Outside a tokio runtime, or if the kernel refuses a signal handler.
    #[must_use]
    pub fn on_signals() -> Shutdown {
        let shutdown = Shutdown::new();
        let mut terminate = signal(SignalKind::terminate()).expect("a process may handle SIGTERM");
        let mut interrupt = signal(SignalKind::interrupt()).expect("a process may handle SIGINT");
        let wish = shutdown.clone();
        tokio::spawn(async move {
            let mut either = async || {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            };
            either().await;
            wish.begin();
            either().await;
            std::process::exit(130);
        });
        shutdown
    }

    /// Asks everyone to end.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// For selects that want a token.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the end is asked for.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}
