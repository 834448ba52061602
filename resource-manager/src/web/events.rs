//! Server-sent events: the cluster and the applications, whole, at once and whenever they changed.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

use super::Web;

/// At most five a second reach a browser.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn events(State(mut web): State<Web>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (tx, rx) = tokio::sync::mpsc::channel(2);
    tokio::spawn(async move {
        let token = web.shutdown.token();
        loop {
            let view = web.view.borrow_and_update().clone();
            let cluster = Event::default().event("cluster").json_data(&view.cluster);
            let apps = Event::default().event("apps").json_data(&view.apps);
            let (Ok(cluster), Ok(apps)) = (cluster, apps) else {
                debug!("a report that JSON cannot carry");
                return;
            };
            if tx.send(cluster).await.is_err() || tx.send(apps).await.is_err() {
                return;
            }
            tokio::select! {
                () = token.cancelled() => return,
                () = tx.closed() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
            tokio::select! {
                () = token.cancelled() => return,
                () = tx.closed() => return,
                changed = web.view.changed() => if changed.is_err() { return },
            }
        }
    });
    Sse::new(ReceiverStream::new(rx).map(Ok)).keep_alive(KeepAlive::default())
}
