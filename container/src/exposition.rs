//! Serves the container's metrics as Prometheus' text at `/metrics`.
//!
//! The listener is `METRICS_LISTEN` of the container's environment (`[package] env`), by default a free port of
//! 127.0.0.1; the address is logged and written to the file `metrics-address` in the container's work directory.

use anyhow::{Context, Result, ensure};
use daemon::Shutdown;
use task_api::metrics::MetricsRegistry;
use tokio::net::TcpListener;
use tracing::{info, warn};

/// Where scrapers find the address.
const ADDRESS_FILE: &str = "metrics-address";

/// Serves until shutdown. Metrics are for people: that they cannot be served ends nothing.
pub(crate) async fn serve(registry: MetricsRegistry, shutdown: Shutdown) {
    if let Err(error) = try_serve(registry, shutdown).await {
        warn!("metrics are not served: {error:#}");
    }
}

async fn try_serve(registry: MetricsRegistry, shutdown: Shutdown) -> Result<()> {
    let address = std::env::var("METRICS_LISTEN").unwrap_or_else(|_| "127.0.0.1:0".into());
    let listener = TcpListener::bind(&address).await.with_context(|| format!("METRICS_LISTEN {address}"))?;
    let bound = listener.local_addr()?;
    ensure!(
        bound.ip().is_loopback(),
        "METRICS_LISTEN {address} is not loopback: nothing here asks for a token"
    );
    if let Some(folder) = std::env::var_os("SAMZA_WORK_DIR") {
        let file = std::path::Path::new(&folder).join(ADDRESS_FILE);
        std::fs::write(&file, format!("{bound}\n")).with_context(|| file.display().to_string())?;
    }
    info!("metrics at http://{bound}/metrics");
    let metrics = move || async move { registry.render() };
    let router = axum::Router::new().route("/metrics", axum::routing::get(metrics));
    daemon::serve_http(listener, router, shutdown).await
}
