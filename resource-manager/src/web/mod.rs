//! The web UI and its JSON API. It holds only the view; nothing here decides.
//!
//! | path | what |
//! |---|---|
//! | `/`, `/apps/{id}` | the pages |
//! | `/assets/{file}` | what they load |
//! | `/api/v1/cluster` | ClusterReport |
//! | `/api/v1/apps` | every AppReport, newest first |
//! | `/api/v1/apps/{id}` | one, by application or job |
//! | `/api/v1/apps/{id}/history` | by slot, the last quarter of an hour: rate, lag, CPU, memory |
//! | `/api/v1/metrics-targets` | where the metrics of each live job are, as Prometheus' `http_sd_configs` reads it |
//! | `/api/v1/events` | server-sent events `cluster` and `apps`, whole, at once and on every change |
//! | `/api/v1/containers/{id}/logs/{stdout or stderr}?tail=N&follow=true` | a container's log, also after its exit |
//! | `/api/v1/apps/{id}/logs?container=…&stream=stdout&tail=N&follow=true` | the same |

mod api;
mod events;
mod guard;
mod history;
mod logs;

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use daemon::Shutdown;
use rm_core::View;
use tokio::sync::watch;

use crate::logs::NodeLogs;

pub(crate) use history::History;

const INDEX: &str = include_str!("assets/index.html");
const APP: &str = include_str!("assets/app.html");
const SCRIPT: &str = include_str!("assets/app.js");
const STYLE: &str = include_str!("assets/style.css");

/// What handlers see.
#[derive(Clone)]
pub(crate) struct Web {
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) logs: NodeLogs,
    pub(crate) history: History,
    pub(crate) shutdown: Shutdown,
}

/// The routes. With `secret`, whoever asks must show it.
pub(crate) fn router(web: Web, secret: Option<String>) -> Router {
    let router = Router::new()
        .route("/", get(|| async { Html(INDEX) }))
        .route("/apps/{id}", get(|| async { Html(APP) }))
        .route("/assets/{file}", get(asset))
        .route("/api/v1/cluster", get(api::cluster))
        .route("/api/v1/apps", get(api::apps))
        .route("/api/v1/apps/{id}", get(api::app))
        .route("/api/v1/apps/{id}/logs", get(logs::of_app))
        .route("/api/v1/containers/{id}/logs/{stream}", get(logs::of_container))
        .route("/api/v1/apps/{id}/history", get(api::history))
        .route("/api/v1/metrics-targets", get(api::metrics_targets))
        .route("/api/v1/events", get(events::events))
        .with_state(web);
    match secret {
        Some(secret) => guard::behind(router, secret),
        None => router,
    }
}

async fn asset(Path(file): Path<String>) -> Response {
    let (kind, text) = match file.as_str() {
        "app.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "style.css" => ("text/css; charset=utf-8", STYLE),
        _ => return (StatusCode::NOT_FOUND, "no such asset").into_response(),
    };
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}
