//! The log service: decode, read, encode.

use std::sync::Arc;
use std::time::Duration;

use nm_shim::Folder;
use proto::pb;
use tokio::sync::{Semaphore, mpsc};
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
    pub(crate) known: Arc<Known>,
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
        let root = self.root.clone();
        let dir = read(move || logs::find(&root, id)).await?.ok_or_else(|| {
            Status::not_found(format!("this node has no logs of {id}; they are kept a day after its end"))
        })?;
        let (tx, rx) = mpsc::channel(CHUNKS_AHEAD);
        let reader = Reader {
            dir: Arc::new(dir),
            stream,
            id,
            follow: request.follow,
            known: self.known.clone(),
            shutdown: self.shutdown.clone(),
        };
        tokio::spawn(async move {
            let end = match reader.start(request.offset, request.tail_lines, &tx).await {
                Ok(start) => reader.run(start, &tx).await,
                Err(error) => Err(error),
            };
            if let Err(error) = end {
                // A reader that is gone needs no reason.
                let _ = tx.send(Err(error)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

/// Reads of disks at once, of all readers together: they may take long, and others want threads too.
const READS: usize = 16;

/// Does a read of the disk where it holds up nobody else.
async fn read<T: Send + 'static>(
    doing: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    static TURNS: Semaphore = Semaphore::const_new(READS);
    let _turn = TURNS.acquire().await.map_err(|error| Status::internal(error.to_string()))?;
    let done = tokio::task::spawn_blocking(doing).await;
    let done = done.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| Status::internal(error.to_string()))
}

type Sender = mpsc::Sender<Result<pb::LogData, Status>>;

struct Reader {
    dir: Arc<Folder>,
    stream: &'static str,
    id: ContainerId,
    follow: bool,
    known: Arc<Known>,
    shutdown: daemon::Shutdown,
}

impl Reader {
    /// Where to begin.
    async fn start(&self, offset: Option<u64>, lines: Option<u64>, tx: &Sender) -> Result<u64, Status> {
        let (None, Some(lines)) = (offset, lines) else { return Ok(offset.unwrap_or(0)) };
        let (dir, stream, tx) = (self.dir.clone(), self.stream, tx.clone());
        read(move || logs::tail_start(&dir, stream, lines, &|| tx.is_closed())).await
    }

    /// Sends until the end of the stream; when following, until the container is over and all was sent.
    async fn run(&self, mut offset: u64, tx: &Sender) -> Result<(), Status> {
        loop {
            // Asked before reading, so that the last lines of a container that just ended are not missed.
            let over = self.known.is_over(self.id).unwrap_or(true);
            let (dir, stream) = (self.dir.clone(), self.stream);
            let (from, data) = read(move || logs::read_at(&dir, stream, offset)).await?;
            if data.is_empty() {
                if !self.follow || over {
                    return Ok(());
                }
                tokio::select! {
                    () = tokio::time::sleep(FOLLOW_EVERY) => continue,
                    () = tx.closed() => return Ok(()),
                    () = self.shutdown.wait() => return Ok(()),
                }
            }
            offset = from.saturating_add(data.len() as u64);
            if tx.send(Ok(pb::LogData { offset: from, data: data.into() })).await.is_err() {
                return Ok(());
            }
        }
    }
}
