//! The wish that the process ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cheap to clone; all clones see the same wish.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    /// The signal that began it, 0 if none did.
    signal: Arc<AtomicI32>,
}

impl Shutdown {
    /// One that only [`Shutdown::begin`] triggers.
    #[must_use]
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// One that SIGTERM and SIGINT trigger. The second signal ends the process at once, with 128 and its number.
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
                    _ = terminate.recv() => SignalKind::terminate(),
                    _ = interrupt.recv() => SignalKind::interrupt(),
                }
            };
            wish.signal.store(either().await.as_raw_value(), Ordering::SeqCst);
            wish.begin();
            std::process::exit(128 + either().await.as_raw_value());
        });
        shutdown
    }

    /// The number of the signal that it began with, if it was one.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }

    /// Asks everyone to end.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// For selects that want a token.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until the end is asked for.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }
}
