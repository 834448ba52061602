//! Where artefacts come from: the resource manager's store, the web, S3, this node's own disk. Each is opened as a
//! stream of its bytes; what they must be is checked by who reads them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::{ClientOptions, ObjectStoreExt, RetryConfig};
use proto::Token;
use tokio::io::AsyncReadExt;
use types::Artefact;

/// How long a server may say nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// What is read of a file at once.
const CHUNK: usize = 256 << 10;

/// The content of an artefact, piece by piece. A piece that does not come in time is an error.
pub(crate) type Content = BoxStream<'static, Result<Bytes>>;

/// Trying again will not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Final(pub(crate) String);

/// The places that artefacts can be had from.
pub(crate) struct Sources {
    rm: String,
    token: Option<Token>,
}

impl Sources {
    /// Those of a node of the resource manager at `rm`.
    pub(crate) fn new(rm: String, token: Option<Token>) -> Sources {
        // Fails only if there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Sources { rm, token }
    }

    /// Begins to read an artefact.
    pub(crate) async fn open(&self, artefact: &Artefact) -> Result<Content> {
        let Some(url) = &artefact.from else { return soon(self.store(artefact)).await };
        let opened = match url.split_once("://") {
            Some(("http" | "https", _)) => soon(web(url)).await,
            Some(("s3", place)) => soon(s3(place)).await,
            Some(("file", path)) => soon(file(path)).await,
            Some(_) | None => bail!(Final(format!("{url}: nodes fetch from http, https, s3 and file"))),
        };
        opened.with_context(|| url.clone())
    }

    async fn store(&self, artefact: &Artefact) -> Result<Content> {
        let link = proto::connect(&self.rm, self.token.as_ref()).await?;
        let request = proto::pb::FetchRequest { digest: artefact.digest.0.clone() };
        let answer = proto::artefact_service_client(&link).fetch(request).await;
        let chunks = answer.context("the resource manager's store")?.into_inner();
        Ok(pieces(chunks.map(|chunk| Ok(chunk?.chunk))))
    }
}

/// The client is made anew each time: it wants the machine's certificates, and a node without any is to run all that
/// needs none.
async fn web(url: &str) -> Result<Content> {
    let agent = concat!("samza-nm/", env!("CARGO_PKG_VERSION"));
    let client = reqwest::Client::builder().connect_timeout(PATIENCE).user_agent(agent).build();
    let client =
        client.context("are there CA certificates on this node (Debian's package ca-certificates)?")?;
    let answer = client.get(url).send().await?;
    let status = answer.status();
    if status.is_client_error() && !matches!(status.as_u16(), 408 | 429) {
        bail!(Final(format!("the server says {status}")));
    }
    let body = answer.error_for_status()?.bytes_stream();
    Ok(pieces(body.map(|piece| Ok(piece?))))
}

/// An object in S3 or what speaks like it: credentials, region and endpoint are those of nm's own environment (AWS_*).
async fn s3(place: &str) -> Result<Content> {
    let (bucket, key) = place.split_once('/').context("a bucket and a key")?;
    let options = ClientOptions::new().with_connect_timeout(PATIENCE).with_timeout_disabled();
    let bucket = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        // Who asks tries again by itself.
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
        .with_client_options(options.with_allow_http(http_is_allowed()))
        .build()?;
    match bucket.get(&object_store::path::Path::parse(key)?).await {
        Ok(object) => Ok(pieces(object.into_stream().map(|piece| Ok(piece?)))),
        Err(
            error @ (object_store::Error::NotFound { .. } | object_store::Error::PermissionDenied { .. }),
        ) => {
            bail!(Final(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

/// As the AWS tools have it: an endpoint without TLS is used only when told to.
fn http_is_allowed() -> bool {
    std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value.eq_ignore_ascii_case("true"))
}

async fn file(path: &str) -> Result<Content> {
    let file = tokio::fs::File::open(path).await.map_err(|error| Final(error.to_string()))?;
    Ok(pieces(futures_util::stream::try_unfold(file, |mut file| async move {
        let mut piece = Vec::with_capacity(CHUNK);
        let read = file.read_buf(&mut piece).await?;
        Ok((read > 0).then(|| (Bytes::from(piece), file)))
    })))
}

/// A stream whose every piece comes in time or is an error.
fn pieces(stream: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Content {
    let stream = Box::pin(stream);
    futures_util::stream::unfold(Some(stream), |stream| async move {
        let mut stream = stream?;
        match soon(async { stream.next().await.transpose() }).await {
            Ok(piece) => piece.map(|piece| (Ok(piece), Some(stream))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

async fn soon<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    let silent = || format!("the store has said nothing for {} s", PATIENCE.as_secs());
    tokio::time::timeout(PATIENCE, answer).await.with_context(silent)?
}
