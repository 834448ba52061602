//! Reading containers' logs from their nodes.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use proto::{Link, Token};
use tonic::Status;
use types::ContainerId;

/// Which output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogStream {
    Stdout,
    Stderr,
}

impl LogStream {
    pub(crate) fn parse(text: &str) -> Option<LogStream> {
        match text {
            "stdout" | "" => Some(LogStream::Stdout),
            "stderr" => Some(LogStream::Stderr),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        }
    }
}

/// What to read.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) container: ContainerId,
    pub(crate) stream: LogStream,
    /// Only the last lines; none reads all.
    pub(crate) tail_lines: Option<u64>,
    pub(crate) follow: bool,
}

/// Reads from nodes' log services.
#[derive(Clone)]
pub(crate) struct NodeLogs {
    token: Option<Token>,
}

impl NodeLogs {
    pub(crate) fn new(token: Option<Token>) -> NodeLogs {
        NodeLogs { token }
    }

    /// Opens a log at the node that listens on `address`.
    pub(crate) async fn read(
        &self,
        address: &str,
        read: Read,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + 'static + use<>, Status> {
        let link: Link = proto::connect(address, self.token.as_ref())
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = proto::node_log_service_client(&link);
        let request = proto::pb::ReadLogRequest {
            container: read.container.to_string(),
            stream: read.stream.name().to_owned(),
            offset: None,
            tail_lines: read.tail_lines,
            follow: read.follow,
        };
        let chunks = client.read(request).await?.into_inner();
        Ok(chunks.map(|chunk| chunk.map(|chunk| chunk.data)))
    }
}
