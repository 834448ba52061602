//! The artefact service: has, upload, fetch.

use std::sync::Arc;

use proto::pb;
use proto::pb::artefact_service_server::{ArtefactService, ArtefactServiceServer};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::Digest;

use crate::artefacts::{Artefacts, CHUNK, UploadError};

/// The service over `artefacts`.
pub(crate) fn service(artefacts: Arc<Artefacts>) -> ArtefactServiceServer<Service> {
    proto::artefact_service(Service { artefacts })
}

/// Its state.
pub(crate) struct Service {
    artefacts: Arc<Artefacts>,
}

fn status_of(error: UploadError) -> Status {
    match &error {
        UploadError::WrongDigest { .. } | UploadError::NotADigest(_) => {
            Status::invalid_argument(error.to_string())
        }
        UploadError::Io(_) => Status::internal(error.to_string()),
    }
}

#[tonic::async_trait]
impl ArtefactService for Service {
    type FetchStream = ReceiverStream<Result<pb::ArtefactChunk, Status>>;

    async fn has(&self, request: Request<pb::HasRequest>) -> Result<Response<pb::HasResponse>, Status> {
        let present = self.artefacts.has(&Digest(request.into_inner().digest));
        Ok(Response::new(pb::HasResponse { present }))
    }

    async fn upload(
        &self,
        request: Request<Streaming<pb::UploadChunk>>,
    ) -> Result<Response<pb::UploadResponse>, Status> {
        let mut chunks = request.into_inner();
        let mut receiving = self.artefacts.receive().await.map_err(|error| status_of(error.into()))?;
        let mut expected = None;
        while let Some(chunk) = chunks.message().await? {
            expected = expected.or(chunk.digest.filter(|digest| !digest.is_empty()).map(Digest));
            receiving.write(&chunk.chunk).await.map_err(|error| status_of(error.into()))?;
        }
        let (digest, bytes) = receiving.finish(expected).await.map_err(status_of)?;
        Ok(Response::new(pb::UploadResponse { digest: digest.0, bytes }))
    }

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let digest = Digest(request.into_inner().digest);
        let file = self.artefacts.read(&digest).await.map_err(status_of)?;
        let mut file = file.ok_or_else(|| Status::not_found(format!("no artefact {digest} is stored")))?;
        let (tx, rx) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let mut chunk = vec![0; CHUNK];
                let item = match file.read(&mut chunk).await {
                    Ok(0) => return,
                    Ok(read) => {
                        chunk.truncate(read);
                        Ok(pb::ArtefactChunk { chunk: chunk.into() })
                    }
                    Err(error) => Err(status_of(error.into())),
                };
                let is_over = item.is_err();
                if tx.send(item).await.is_err() || is_over {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}
