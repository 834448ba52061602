//! The listener's side of sessions: one tonic service per kind, which only hands streams to their driver.

use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};
use types::{
    AmHello, AmWelcome, CommandStamp, ContainerHello, ContainerWelcome, FromAm, FromContainer, FromNode,
    NodeHello, NodeWelcome, ToAm, ToContainer, ToNode,
};

use crate::MAX_MESSAGE;
use crate::channel::{self, BoxStream, Rx, Tx};
use crate::pb::Frame;
use crate::pb::app_master_sessions_server::{AppMasterSessions, AppMasterSessionsServer};
use crate::pb::container_sessions_server::{ContainerSessions, ContainerSessionsServer};
use crate::pb::node_sessions_server::{NodeSessions, NodeSessionsServer};

/// How long a dialler may take to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A dialler that said Hello and waits for an answer. Dropping it tells the dialler to try again.
pub struct Incoming<H, W, O, I> {
    /// What it said.
    pub hello: H,
    /// Its address, for the log.
    pub peer: String,
    stream: Streaming<Frame>,
    answer: oneshot::Sender<Result<channel::Frames, Status>>,
    words: PhantomData<fn(W, O) -> I>,
}

impl<H: std::fmt::Debug, W, O, I> std::fmt::Debug for Incoming<H, W, O, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("hello", &self.hello)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl<H, W: Serialize, O: Serialize + Send + 'static, I: DeserializeOwned> Incoming<H, W, O, I> {
    /// Opens the session. If the dialler is gone already, the halves are those of a session that is over.
    #[must_use]
    pub fn accept(self, welcome: W) -> (Tx<O>, Rx<I>) {
        let (outgoing, frames) = channel::outgoing::<O, W>(&welcome);
        let (tx, rx) = outgoing.into_session(self.stream);
        if self.answer.send(Ok(frames)).is_err() {
            tx.close();
        }
        (tx, rx)
    }

    /// Refuses for good: the dialler gets [`crate::DialError::Refused`] with `reason`.
    pub fn refuse(self, reason: String) {
        // A dialler that is gone needs no answer.
        let _ = self.answer.send(Err(Status::failed_precondition(reason)));
    }

    /// Refuses for now: the dialler gets [`crate::DialError::Unreachable`] and tries again.
    pub fn not_now(self, reason: String) {
        // A dialler that is gone needs no answer.
        let _ = self.answer.send(Err(Status::unavailable(reason)));
    }
}

/// One kind of sessions as a tonic service.
#[derive(Debug)]
pub struct Sessions<H, W, O, I> {
    to: mpsc::Sender<Incoming<H, W, O, I>>,
}

type Answer = Result<Response<BoxStream>, Status>;

impl<H: DeserializeOwned, W, O, I> Sessions<H, W, O, I> {
    async fn receive(&self, request: Request<Streaming<Frame>>) -> Answer {
        let peer = request.remote_addr().map_or_else(String::new, |addr| addr.to_string());
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, stream.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello"))?
            .ok_or_else(|| Status::cancelled("no Hello"))??;
        let hello = channel::decode_first(&first).map_err(Status::invalid_argument)?;
        let (answer, answered) = oneshot::channel();
        let incoming = Incoming { hello, peer, stream, answer, words: PhantomData };
        self.to.send(incoming).await.map_err(|_| Status::unavailable("shutting down"))?;
        let frames = answered.await.map_err(|_| Status::unavailable("not now"))??;
        Ok(Response::new(Box::pin(frames.map(Ok))))
    }
}

/// Implements one generated service by [`Sessions::receive`].
macro_rules! sessions {
    ($(#[$doc:meta])* $make:ident, $service:ident, $server:ident, $hello:ty, $welcome:ty, $out:ty, $in:ty) => {
        #[tonic::async_trait]
        impl $service for Sessions<$hello, $welcome, $out, $in> {
            type OpenStream = BoxStream;
            async fn open(&self, request: Request<Streaming<Frame>>) -> Answer {
                self.receive(request).await
            }
        }

        $(#[$doc])*
        #[must_use]
        pub fn $make(
            to: mpsc::Sender<Incoming<$hello, $welcome, $out, $in>>,
        ) -> $server<Sessions<$hello, $welcome, $out, $in>> {
            $server::new(Sessions { to }).max_decoding_message_size(MAX_MESSAGE)
        }
    };
}

sessions! {
    /// Node managers' sessions, for the resource manager.
    node_service, NodeSessions, NodeSessionsServer, NodeHello, NodeWelcome, (CommandStamp, ToNode), FromNode
}
sessions! {
    /// Application masters' sessions, for the resource manager.
    app_master_service, AppMasterSessions, AppMasterSessionsServer, AmHello, AmWelcome, ToAm, FromAm
}
sessions! {
    /// Containers' sessions, for their application master.
    container_service, ContainerSessions, ContainerSessionsServer, ContainerHello, ContainerWelcome, ToContainer,
    FromContainer
}
