//! The session with the resource manager: dial, say Hello, carry items, and again.

use std::sync::Arc;
use std::time::Duration;

use proto::{DialError, Token};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::driver::Inbox;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Keeps a session open until the driver is gone.
pub(crate) async fn run(rm: String, token: Option<Token>, inbox: mpsc::UnboundedSender<Inbox>) {
    let mut backoff = BACKOFF_MIN;
    let mut said = String::new();
    loop {
        let begun = tokio::time::Instant::now();
        match once(&rm, token.as_ref(), &inbox).await {
            Ok(Ended { reason }) => {
                tracing::warn!(rm, reason, "the session is over; dialling again");
                backoff = BACKOFF_MIN;
                said.clear();
            }
            Err(Failed::Driver) => return,
            Err(Failed::Dial(error)) => {
                let text = error.to_string();
                if text != said {
                    tracing::warn!(rm, error = text, "no session with the resource manager; dialling on");
                    said = text;
                }
            }
        }
        // From one dial to the next: what nobody answered has taken its time already.
        tokio::time::sleep_until(begun + backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

struct Ended {
    reason: String,
}

enum Failed {
    /// It shuts down.
    Driver,
    Dial(DialError),
}

async fn once(
    rm: &str,
    token: Option<&Token>,
    inbox: &mpsc::UnboundedSender<Inbox>,
) -> Result<Ended, Failed> {
    let link = proto::connect_leased(rm, token).await.map_err(Failed::Dial)?;
    let (reply, hello) = oneshot::channel();
    inbox.send(Inbox::Hello(reply)).map_err(|_| Failed::Driver)?;
    let (hello, sent_at) = hello.await.map_err(|_| Failed::Driver)?;
    let dialled = proto::dial_node(&link, hello).await.map_err(Failed::Dial)?;
    let close = Arc::new(Notify::new());
    let opened = Inbox::Opened { session: close.clone(), welcome: dialled.welcome, sent_at, tx: dialled.tx };
    inbox.send(opened).map_err(|_| Failed::Driver)?;
    let mut rx = dialled.rx;
    let reason = loop {
        tokio::select! {
            item = rx.recv() => match item {
                Some((stamp, item)) => inbox.send(Inbox::Item(stamp, item)).map_err(|_| Failed::Driver)?,
                None => break rx.reason(),
            },
            () = close.notified() => break "closed from here".to_owned(),
        }
    };
    inbox.send(Inbox::Closed).map_err(|_| Failed::Driver)?;
    Ok(Ended { reason })
}
