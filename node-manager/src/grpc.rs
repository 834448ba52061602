//! The log service: decode, read, encode.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::pb;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use types::ContainerId;

use crate::logs::{self, Known};
use crate::root::Root;

/// How soon a follower sees new lines.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// Chunks on their way to one reader: enough to keep a network busy, little memory.
const CHUNKS_AHEAD: usize = 8;

/// Serves containers' output.
pub(crate) struct Logs {
    pub(crate) root: Arc<Root>,
    pub(crate) known: watch::Receiver<Arc<Known>>,
    pub(crate) shutdown: daemon::Shutdown,
}

#[tonic::async_trait]
impl pb::node_log_service_server::NodeLogService for Logs {
    type ReadStream = ReceiverStream<Result<pb::LogData, Status>>;

    async fn read(&self, request: Request<pb::ReadLogRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let id: ContainerId = request
            .container
            .parse()
            .map_err(|error: types::ParseIdError| Status::invalid_argument(error.to_string()))?;
        let stream = match request.stream.as_str() {
            "" | "stdout" => "stdout",
            "stderr" => "stderr",
            other => {
                return Err(Status::invalid_argument(format!(
                    "stream `{other}`: valid are stdout and stderr"
                )));
            }
        };
        let dir = logs::find(&self.root, id)
            .map_err(|error| Status::internal(error.to_string()))?
            .ok_or_else(|| {
                Status::not_found(format!("this node has no logs of {id}; they are kept a day after its end"))
            })?;
        let start = match (request.offset, request.tail_lines) {
            (Some(offset), _) => offset,
            (None, Some(lines)) => logs::tail_start(&dir, stream, lines).unwrap_or(0),
            (None, None) => 0,
        };
        let (tx, rx) = mpsc::channel(CHUNKS_AHEAD);
        let reader = Reader {
            dir,
            stream,
            id,
            follow: request.follow,
            known: self.known.clone(),
            shutdown: self.shutdown.clone(),
        };
        tokio::spawn(reader.run(start, tx));
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

struct Reader {
    dir: PathBuf,
    stream: &'static str,
    id: ContainerId,
    follow: bool,
    known: watch::Receiver<Arc<Known>>,
    shutdown: daemon::Shutdown,
}

impl Reader {
    /// Sends until the end of the stream; when following, until the container is over and all was sent.
    async fn run(self, mut offset: u64, tx: mpsc::Sender<Result<pb::LogData, Status>>) {
        loop {
            // Asked before reading, so that the last lines of a container that just ended are not missed.
            let over = self.known.borrow().over.get(&self.id).copied().unwrap_or(true);
            let (dir, stream) = (self.dir.clone(), self.stream);
            let read = tokio::task::spawn_blocking(move || logs::read_at(&dir, stream, offset)).await;
            let (from, data) = match read {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => {
                    let _ = tx.send(Err(Status::internal(error.to_string()))).await;
                    return;
                }
                Err(_) => return,
            };
            if data.is_empty() {
                if !self.follow || over {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(FOLLOW_EVERY) => continue,
                    () = tx.closed() => return,
                    () = self.shutdown.wait() => return,
                }
            }
            offset = from + data.len() as u64;
            if tx.send(Ok(pb::LogData { offset: from, data: data.into() })).await.is_err() {
                return;
            }
        }
    }
}
