//! The dialler's side of sessions.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_stream::StreamExt;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tower::ServiceExt;
use types::{
    AmHello, AmWelcome, CommandStamp, ContainerHello, ContainerWelcome, FromAm, FromContainer, FromNode,
    NodeHello, NodeWelcome, ToAm, ToContainer, ToNode,
};

use crate::channel::{self, Rx, Tx};
use crate::pb::Frame;
use crate::pb::app_master_sessions_client::AppMasterSessionsClient;
use crate::pb::container_sessions_client::ContainerSessionsClient;
use crate::pb::node_sessions_client::NodeSessionsClient;
use crate::{AddToken, MAX_MESSAGE, Token};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody answered; trying again makes sense.
    #[error("cannot reach {addr}: {reason}")]
    Unreachable {
        /// Whom.
        addr: String,
        /// Why.
        reason: String,
    },
    /// The listener does not want this session; trying the same again is in vain.
    #[error("refused: {0}")]
    Refused(String),
    /// The other side speaks something else.
    #[error("protocol error: {0}")]
    Protocol(String),
}

/// A connection to one server; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    channel: Channel,
    token: AddToken,
    addr: String,
}

impl Link {
    pub(crate) fn intercepted(&self) -> InterceptedService<Channel, AddToken> {
        InterceptedService::new(self.channel.clone(), self.token.clone())
    }
}

/// How soon a connection notices that its peer is not there.
struct Patience {
    /// Until an answer to a dial.
    dial: Duration,
    /// Silence before the peer is asked for a sign of life.
    quiet: Duration,
    /// Until that sign.
    sign: Duration,
}

/// Connects to `addr` (`host:port`). A peer that vanished without a word is noticed within five seconds.
///
/// # Errors
/// [`DialError::Unreachable`], or [`DialError::Protocol`] if `addr` is no address.
pub async fn connect(addr: &str, token: Option<&Token>) -> Result<Link, DialError> {
    let patience = Patience {
        dial: Duration::from_secs(2),
        quiet: Duration::from_secs(2),
        sign: Duration::from_secs(3),
    };
    connect_with(&patience, addr, token).await
}

/// Connects for a session that carries a lease of five seconds. The network may be away for a shorter time than that,
/// and TCP would not find out before the lease is over: it asks again after as long a time as it was away. So a peer
/// that vanished is noticed within two seconds, and each dial after that takes half a second.
///
/// # Errors
/// As [`connect`].
pub async fn connect_leased(addr: &str, token: Option<&Token>) -> Result<Link, DialError> {
    let patience = Patience {
        dial: Duration::from_millis(500),
        quiet: Duration::from_millis(750),
        sign: Duration::from_millis(1_250),
    };
    connect_with(&patience, addr, token).await
}

async fn connect_with(patience: &Patience, addr: &str, token: Option<&Token>) -> Result<Link, DialError> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|e| DialError::Protocol(format!("`{addr}` is not host:port: {e}")))?
        .connect_timeout(patience.dial)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(patience.quiet)
        .keep_alive_timeout(patience.sign)
        .keep_alive_while_idle(true);
    let channel = endpoint
        .connect()
        .await
        .map_err(|e| DialError::Unreachable { addr: addr.to_owned(), reason: root_cause(&e) })?;
    Ok(Link { channel, token: AddToken(token.cloned()), addr: addr.to_owned() })
}

/// The innermost error: the one that says what happened.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// A session, dialled.
#[derive(Debug)]
pub struct Dialled<W, O, I> {
    /// The listener's answer.
    pub welcome: W,
    /// To it.
    pub tx: Tx<O>,
    /// From it.
    pub rx: Rx<I>,
}

/// How long a listener may take to answer a Hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

async fn open<H, W, O, I, F, R>(link: &Link, hello: &H, call: F) -> Result<Dialled<W, O, I>, DialError>
where
    H: Serialize,
    W: DeserializeOwned,
    O: Serialize + Send + 'static,
    I: DeserializeOwned,
    F: FnOnce(Request<channel::Frames>) -> R,
    R: Future<Output = Result<Response<Streaming<Frame>>, Status>>,
{
    let (outgoing, frames) = channel::outgoing::<O, H>(hello);
    let opening = async {
        let mut answers =
            call(Request::new(frames)).await.map_err(|status| refusal(link, &status))?.into_inner();
        match answers.next().await {
            Some(Ok(first)) => Ok((channel::decode_first(&first).map_err(DialError::Protocol)?, answers)),
            Some(Err(status)) => Err(refusal(link, &status)),
            None => Err(unreachable(link, "the session ended before it began")),
        }
    };
    let (welcome, answers) = tokio::time::timeout(WELCOME_TIMEOUT, opening)
        .await
        .map_err(|_| unreachable(link, "no answer to the first words of the session"))??;
    let (tx, rx) = outgoing.into_session(answers);
    Ok(Dialled { welcome, tx, rx })
}

fn unreachable(link: &Link, reason: &str) -> DialError {
    DialError::Unreachable { addr: link.addr.clone(), reason: reason.to_owned() }
}

fn refusal(link: &Link, status: &Status) -> DialError {
    match status.code() {
        Code::FailedPrecondition | Code::Unauthenticated | Code::PermissionDenied => {
            DialError::Refused(status.message().to_owned())
        }
        Code::Unimplemented | Code::InvalidArgument => DialError::Protocol(status.message().to_owned()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => unreachable(link, status.message()),
    }
}

/// Opens a node manager's session with the resource manager.
///
/// # Errors
/// See [`DialError`].
pub async fn dial_node(
    link: &Link,
    hello: NodeHello,
) -> Result<Dialled<NodeWelcome, FromNode, (CommandStamp, ToNode)>, DialError> {
    let mut client = NodeSessionsClient::new(link.intercepted()).max_decoding_message_size(MAX_MESSAGE);
    open(link, &hello, async move |frames| client.open(frames).await).await
}

/// Opens an application master's session with the resource manager.
///
/// # Errors
/// See [`DialError`].
pub async fn dial_app_master(
    link: &Link,
    hello: AmHello,
) -> Result<Dialled<AmWelcome, FromAm, ToAm>, DialError> {
    let mut client = AppMasterSessionsClient::new(link.intercepted()).max_decoding_message_size(MAX_MESSAGE);
    open(link, &hello, async move |frames| client.open(frames).await).await
}

/// Opens a container's session with its application master.
///
/// # Errors
/// See [`DialError`].
pub async fn dial_container(
    link: &Link,
    hello: ContainerHello,
) -> Result<Dialled<ContainerWelcome, FromContainer, ToContainer>, DialError> {
    let mut client = ContainerSessionsClient::new(link.intercepted()).max_decoding_message_size(MAX_MESSAGE);
    open(link, &hello, async move |frames| client.open(frames).await).await
}

/// Reads the page at `path` of a server that has pages beside its services, such as an application master's metrics.
///
/// # Errors
/// [`DialError::Refused`] if the server wants another token, [`DialError::Protocol`] if it has no such page or one
/// of more than [`MAX_MESSAGE`] bytes; else see [`DialError`].
pub async fn read_page(link: &Link, path: &str) -> Result<String, DialError> {
    let uri = format!("http://{}{path}", link.addr);
    let request = http::Request::get(&uri)
        .body(tonic::body::Body::empty())
        .map_err(|error| DialError::Protocol(format!("{uri}: {error}")))?;
    let reading = async {
        let answer =
            link.intercepted().oneshot(request).await.map_err(|e| unreachable(link, &root_cause(&e)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_MESSAGE).collect().await;
        let body = body.map_err(|error| DialError::Protocol(format!("{uri}: {error}")))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        match status {
            http::StatusCode::OK => Ok(text),
            http::StatusCode::UNAUTHORIZED => Err(DialError::Refused(text.trim().to_owned())),
            status => Err(DialError::Protocol(format!("{uri}: {status} {}", text.trim()))),
        }
    };
    let late = |_| unreachable(link, "no answer to a request for a page");
    tokio::time::timeout(WELCOME_TIMEOUT, reading).await.map_err(late)?
}
