//! Reading containers' logs from their nodes.

use futures_util::Stream;
use proto::pb::LogData;
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
    /// From where.
    pub(crate) offset: Option<u64>,
    /// Else only the last lines; without either all.
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
    ) -> Result<impl Stream<Item = Result<LogData, Status>> + Send + 'static + use<>, Status> {
        let link: Link = proto::connect(address, self.token.as_ref())
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = proto::node_log_service_client(&link);
        let request = proto::pb::ReadLogRequest {
            container: read.container.to_string(),
            stream: read.stream.name().to_owned(),
            offset: read.offset,
            tail_lines: read.tail_lines,
            follow: read.follow,
        };
        Ok(client.read(request).await?.into_inner())
    }
}
