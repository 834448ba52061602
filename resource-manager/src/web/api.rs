//! Reports as JSON.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rm_core::View;
use serde::Serialize;
use types::AppReport;

use super::Web;
use crate::lookup::find_app;

pub(super) async fn cluster(State(web): State<Web>) -> Response {
    let view = web.view.borrow().clone();
    Json(&view.cluster).into_response()
}

pub(super) async fn apps(State(web): State<Web>) -> Response {
    let view = web.view.borrow().clone();
    Json(&view.apps).into_response()
}

pub(super) async fn app(State(web): State<Web>, Path(name): Path<String>) -> Response {
    of_app(&web, &name, |app| Json(app).into_response())
}

pub(super) async fn history(State(web): State<Web>, Path(name): Path<String>) -> Response {
    of_app(&web, &name, |app| Json(web.history.of(&app.app)).into_response())
}

fn of_app(web: &Web, name: &str, answer: impl FnOnce(&AppReport) -> Response) -> Response {
    let view = web.view.borrow().clone();
    match find_app(&view, name) {
        Some(app) => answer(app),
        None => (StatusCode::NOT_FOUND, format!("no application or job `{name}`")).into_response(),
    }
}

/// One entry of Prometheus' HTTP service discovery.
#[derive(Serialize)]
struct Target<'a> {
    targets: [&'a str; 1],
    labels: Labels<'a>,
}

#[derive(Serialize)]
struct Labels<'a> {
    /// What the metrics are of. Their own lines carry the job as `samza_job`.
    __meta_samza_job: String,
    __meta_samza_app: &'a str,
}

pub(super) async fn metrics_targets(State(web): State<Web>) -> Response {
    let view = web.view.borrow().clone();
    Json(targets(&view)).into_response()
}

fn targets(view: &View) -> Vec<Target<'_>> {
    view.apps.iter().filter_map(target).collect()
}

fn target(app: &AppReport) -> Option<Target<'_>> {
    let labels = Labels { __meta_samza_job: app.job.to_string(), __meta_samza_app: &app.app.0 };
    Some(Target { targets: [app.master_address.as_deref()?], labels })
}
