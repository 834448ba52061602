//! Containers' logs as plain text, read from their nodes.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Deserialize;
use types::ContainerId;

use super::Web;
use crate::logs::{LogStream, Read};
use crate::lookup::{find_app, find_container, log_address};

/// `?container=…&stream=stdout&tail=500&follow=true`.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    container: Option<String>,
    stream: Option<String>,
    tail: Option<u64>,
    follow: Option<bool>,
}

pub(super) async fn of_container(
    State(web): State<Web>,
    Path((container, stream)): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
) -> Response {
    answer(&web, &container, &stream, &wanted).await
}

pub(super) async fn of_app(
    State(web): State<Web>,
    Path(name): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Response {
    let view = web.view.borrow().clone();
    let Some(app) = find_app(&view, &name) else {
        return (StatusCode::NOT_FOUND, format!("no application or job `{name}`")).into_response();
    };
    let newest = app.containers.first().map(|it| it.container.to_string());
    let Some(container) = wanted.container.clone().or(newest) else {
        return (StatusCode::NOT_FOUND, "no container has started yet").into_response();
    };
    answer(&web, &container, wanted.stream.as_deref().unwrap_or("stdout"), &wanted).await
}

async fn answer(web: &Web, container: &str, stream: &str, wanted: &Wanted) -> Response {
    let id: ContainerId = match container.parse() {
        Ok(id) => id,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}")).into_response(),
    };
    let Some(stream) = LogStream::parse(stream) else {
        return (StatusCode::BAD_REQUEST, format!("`{stream}` is neither stdout nor stderr")).into_response();
    };
    let view = web.view.borrow().clone();
    let Some(found) = find_container(&view, id) else {
        return (StatusCode::NOT_FOUND, format!("no container {id} is remembered")).into_response();
    };
    let Some(address) = log_address(&view, found) else {
        return (StatusCode::BAD_GATEWAY, format!("node {} has not reported", found.node)).into_response();
    };
    let read = Read {
        container: id,
        stream,
        offset: None,
        tail_lines: wanted.tail,
        follow: wanted.follow.unwrap_or(false),
    };
    match web.logs.read(&address, read).await {
        Ok(chunks) => {
            let headers =
                [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
            let data = chunks.map(|chunk| chunk.map(|chunk| chunk.data));
            (headers, Body::from_stream(data)).into_response()
        }
        Err(status) => {
            let why = format!("node {} at {address}: {}", found.node, status.message());
            (StatusCode::BAD_GATEWAY, why).into_response()
        }
    }
}
