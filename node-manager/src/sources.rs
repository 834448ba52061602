//! Where artefacts come from: the resource manager's store, the web, S3, this node's own disk. Each is opened as a
//! stream of its bytes; what they must be is checked by who reads them.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use nm_shim::User;
use object_store::aws::AmazonS3Builder;
use object_store::{ClientOptions, ObjectStoreExt, RetryConfig};
use proto::Token;
use tokio::io::AsyncReadExt;
use types::Artefact;
use url::Url;

use crate::origins::{Origins, Refused};

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
    origins: Arc<Origins>,
    /// Whom files of this node are read as.
    reader: Option<User>,
}

impl Sources {
    /// Those of a node of the resource manager at `rm`.
    pub(crate) fn new(rm: String, token: Option<Token>, origins: Origins, reader: Option<User>) -> Sources {
        // Fails only if there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Sources { rm, token, origins: Arc::new(origins), reader }
    }

    /// Begins to read an artefact.
    pub(crate) async fn open(&self, artefact: &Artefact) -> Result<Content> {
        let Some(url) = &artefact.from else { return soon(self.store(artefact)).await };
        let opened = match url.split_once("://") {
            Some(("http" | "https", _)) => soon(self.web(url)).await,
            Some(("s3", place)) => soon(self.s3(place)).await,
            Some(("file", path)) => soon(self.file(path)).await,
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

    /// The client is made anew each time: it wants the machine's certificates, and a node without any is to run all that
    /// needs none.
    async fn web(&self, url: &str) -> Result<Content> {
        let url: Url = url.parse().map_err(|error: url::ParseError| Final(error.to_string()))?;
        self.origins.check(&url).map_err(|refused| Final(refused.to_string()))?;
        let (names, redirects) = self.origins.rules();
        let agent = concat!("samza-nm/", env!("CARGO_PKG_VERSION"));
        let client = reqwest::Client::builder().connect_timeout(PATIENCE).user_agent(agent);
        let client = client.dns_resolver(names).redirect(redirects).build();
        let client =
            client.context("are there CA certificates on this node (Debian's package ca-certificates)?")?;
        let answer = client.get(url).send().await.map_err(|error| match refusal(&error) {
            Some(refused) => anyhow::Error::from(Final(refused.to_string())),
            None => error.into(),
        })?;
        let status = answer.status();
        if status.is_client_error() && !matches!(status.as_u16(), 408 | 429) {
            bail!(Final(format!("the server says {status}")));
        }
        let body = answer.error_for_status()?.bytes_stream();
        Ok(pieces(body.map(|piece| Ok(piece?))))
    }

    /// An object in S3 or what speaks like it: region and endpoint are those of nm's own environment (AWS_*); so are the
    /// credentials, for buckets of which the operator says so.
    async fn s3(&self, place: &str) -> Result<Content> {
        let (name, key) = place.split_once('/').context("a bucket and a key")?;
        let options = ClientOptions::new().with_connect_timeout(PATIENCE).with_timeout_disabled();
        let bucket = AmazonS3Builder::from_env()
            .with_bucket_name(name)
            .with_skip_signature(!self.origins.trusts_bucket(name))
            // Who asks tries again by itself.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_client_options(options.with_allow_http(http_is_allowed()))
            .build()?;
        match bucket.get(&object_store::path::Path::parse(key)?).await {
            Ok(object) => Ok(pieces(object.into_stream().map(|piece| Ok(piece?)))),
            Err(
                error @ (object_store::Error::NotFound { .. } | object_store::Error::PermissionDenied { .. }),
            ) => {
                let way_out = if self.origins.trusts_bucket(name) {
                    String::new()
                } else {
                    format!(
                        "; it was asked for without credentials: nm's own are for buckets of --artefact-bucket {name}"
                    )
                };
                bail!(Final(format!("{error}{way_out}")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Read by a process of the container's user, so that the kernel says what that may read.
    async fn file(&self, path: &str) -> Result<Content> {
        let (origins, path) = (self.origins.clone(), PathBuf::from(path));
        // A disk may hang.
        let real = tokio::task::spawn_blocking(move || origins.file(&path)).await?;
        let real = real.map_err(|refused| Final(refused.to_string()))?;
        // As willingly killed as containers where the machine is out of memory.
        let mut command = tokio::process::Command::new("sh");
        command
            .args(["-c", "echo 0 > /proc/self/oom_score_adj; exec cat -- \"$1\"", "sh"])
            .arg(real)
            .env_clear()
            .current_dir("/")
            .kill_on_drop(true);
        command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(user) = self.reader {
            command.uid(user.uid).gid(user.gid);
        }
        let mut child = command.spawn().context("`cat`, to read it as the container's user")?;
        let output = child.stdout.take().context("it was piped")?;
        let end = Some((child, output));
        Ok(pieces(futures_util::stream::try_unfold(end, |end| async move {
            let Some((child, mut output)) = end else { return Ok(None) };
            let mut piece = Vec::with_capacity(CHUNK);
            if output.read_buf(&mut piece).await? > 0 {
                return Ok(Some((Bytes::from(piece), Some((child, output)))));
            }
            let ended = child.wait_with_output().await?;
            if !ended.status.success() {
                bail!(Final(String::from_utf8_lossy(&ended.stderr).trim().to_owned()));
            }
            Ok(None)
        })))
    }
}

/// As the AWS tools have it: an endpoint without TLS is used only when told to.
fn http_is_allowed() -> bool {
    std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value.eq_ignore_ascii_case("true"))
}

/// What our own rules said, if that is why there is no answer.
fn refusal(error: &reqwest::Error) -> Option<&Refused> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref() {
            return Some(refused);
        }
        cause = error.source();
    }
    None
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
