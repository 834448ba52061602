//! Serves the container's metrics as Prometheus' text at `/metrics`, and cuts the same text for the session to the
//! application master, which shows the metrics of the whole job in one place.
//!
//! The listener is `METRICS_LISTEN` of the container's environment (`[package] env`), by default a free port of
//! 127.0.0.1; the address is logged and written to the file `metrics-address` in the container's work directory.

use anyhow::{Context, Result, ensure};
use daemon::Shutdown;
use task_api::metrics::MetricsRegistry;
use tokio::net::TcpListener;
use tracing::{info, warn};
use types::FromContainer;

/// Where scrapers find the address.
const ADDRESS_FILE: &str = "metrics-address";

/// A part of the text in one item of a session: well below what a frame may carry.
const PART: usize = 256 << 10;

/// `text` as the items that answer the question `nonce`, cut between lines.
pub(crate) fn parts(nonce: u64, text: &str) -> Vec<FromContainer> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let fitting = rest.as_bytes().get(..PART).and_then(|bytes| bytes.iter().rposition(|b| *b == b'\n'));
        // A line that is longer than a part is one by itself.
        let end = if rest.len() <= PART { None } else { fitting.or_else(|| rest.find('\n')) };
        let (part, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        parts.push(FromContainer::Metrics { nonce, text: part.to_owned(), last: after.is_empty() });
        if after.is_empty() {
            return parts;
        }
        rest = after;
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_told_in_parts_of_whole_lines() {
        let line = format!("samza_rows_total{{task=\"Partition é {}\"}} 1\n", "x".repeat(100));
        let text = line.repeat(10_000);
        let parts = parts(7, &text);
        assert!(parts.len() > 3);
        let mut joined = String::new();
        for (at, part) in parts.iter().enumerate() {
            let FromContainer::Metrics { nonce, text, last } = part else { panic!("{part:?}") };
            assert_eq!((*nonce, *last), (7, at + 1 == parts.len()));
            assert!(text.len() <= PART && text.ends_with('\n'));
            joined.push_str(text);
        }
        assert_eq!(joined, text);
        assert_eq!(
            super::parts(1, ""),
            [FromContainer::Metrics { nonce: 1, text: String::new(), last: true }]
        );
    }
}
