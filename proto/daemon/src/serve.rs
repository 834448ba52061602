//! Servers that end when they are told to: streams do not keep a process alive.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context;
use proto::Token;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Server;
use tower::ServiceExt;

use crate::Shutdown;
use crate::auth;

/// How long calls under way may take after shutdown began. Sessions and log streams never end by themselves, so
/// this is what ends them.
const GRACE: Duration = Duration::from_millis(500);

/// Serves gRPC until shutdown, then for a short grace. Peers that vanish without a word are noticed within five
/// seconds. Calls need `token` if there is one. Pages among the `routes` are served over HTTP/1.1 as well, for
/// scrapers.
///
/// # Errors
/// The listener failed.
pub async fn serve_grpc(
    listener: TcpListener,
    routes: Routes,
    token: Option<Token>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let is_grpc = auth::is_grpc(&request);
        let (routes, denied) = (routes.clone(), auth::check(token.as_ref(), &request).err());
        async move {
            match denied {
                Some(status) if is_grpc => Ok::<_, Infallible>(status.into_http()),
                Some(status) => Ok(unauthorized(status.message())),
                None => routes.oneshot(request).await,
            }
        }
    });
    let incoming = tokio_stream::StreamExt::map(TcpListenerStream::new(listener), |stream| {
        stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream))
    });
    let serving = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .serve_with_incoming_shutdown(
            tower::service_fn(move |request| service.clone().oneshot(request)),
            incoming,
            {
                let shutdown = shutdown.clone();
                async move { shutdown.wait().await }
            },
        );
    tokio::select! {
        served = serving => served.context("the gRPC server failed"),
        () = after(&shutdown) => Ok(()),
    }
}

fn unauthorized(why: &str) -> http::Response<Body> {
    let mut answer = http::Response::new(Body::new(format!("{why}\n")));
    *answer.status_mut() = http::StatusCode::UNAUTHORIZED;
    answer
}

/// Serves HTTP until shutdown, then for a short grace. Adds `/healthz`.
///
/// # Errors
/// The listener failed.
pub async fn serve_http(
    listener: TcpListener,
    router: axum::Router,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let router = router.route("/healthz", axum::routing::get(async || "ok\n"));
    let stop = shutdown.clone();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move { stop.wait().await });
    tokio::select! {
        served = serving => served.context("the web server failed"),
        () = after(&shutdown) => Ok(()),
    }
}

async fn after(shutdown: &Shutdown) {
    shutdown.wait().await;
    tokio::time::sleep(GRACE).await;
}
