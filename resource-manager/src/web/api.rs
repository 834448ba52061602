//! Reports as JSON.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

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
    let view = web.view.borrow().clone();
    match find_app(&view, &name) {
        Some(app) => Json(app).into_response(),
        None => (StatusCode::NOT_FOUND, format!("no application or job `{name}`")).into_response(),
    }
}
