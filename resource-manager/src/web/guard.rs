//! The web UI beyond loopback: whoever asks must show the cluster's token, as a bearer, or once in the address
//! (`/?token=…`), which sets a cookie.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Redirect, Response};

const COOKIE: &str = "samza_token";

/// Puts `router` behind `secret`.
pub(super) fn behind(router: Router, secret: String) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| {
        let secret = secret.clone();
        async move { check(&secret, request, next).await }
    }))
}

async fn check(secret: &str, request: Request, next: Next) -> Response {
    if shown(request.headers()).any(|token| is_same(token, secret)) {
        return next.run(request).await;
    }
    let query = request.uri().query().unwrap_or_default();
    let token = query.split('&').find_map(|pair| pair.strip_prefix("token="));
    if token.is_some_and(|token| is_same(token, secret)) {
        let cookie = format!("{COOKIE}={secret}; HttpOnly; SameSite=Strict; Path=/");
        return ([(header::SET_COOKIE, cookie)], Redirect::to(request.uri().path())).into_response();
    }
    (StatusCode::UNAUTHORIZED, "open this page with ?token=<the cluster's token>").into_response()
}

fn shown(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let bearer =
        headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let cookie = cookies
        .flat_map(|text| text.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='));
    bearer.into_iter().chain(cookie)
}

/// Compares in a time that does not tell where they differ.
fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}
