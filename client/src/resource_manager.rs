//! The calls to the resource manager, and what its refusals mean for the exit code.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use proto::{DialError, Link, Token, pb};
use tokio::io::AsyncReadExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use types::{AppId, AppReport, Artefact, ClusterReport, ContainerId, Digest, JobSpec, Secrets};

use crate::args::Common;
use crate::failure::{Code, Failure};

/// Bytes of a package that go into one message.
const CHUNK: usize = 256 << 10;

/// A connection to the resource manager.
#[derive(Clone)]
pub struct ResourceManager {
    address: String,
    token: Option<Token>,
    link: Link,
}

/// Which log is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// Of which container.
    pub container: ContainerId,
    /// stderr instead of stdout.
    pub stderr: bool,
    /// Go on as it grows.
    pub follow: bool,
    /// From where; none: from `tail`.
    pub offset: Option<u64>,
    /// Only that many last lines.
    pub tail: Option<u64>,
}

/// What is handed in.
#[derive(Debug, Clone, Copy)]
pub struct Submission<'a> {
    /// The job.
    pub spec: &'a JobSpec,
    /// The content of its secrets.
    pub secrets: &'a Secrets,
    /// Whether a live application of the same (name, id) is to be rolled.
    pub replace: bool,
}

impl ResourceManager {
    /// Connects.
    ///
    /// # Errors
    /// `Unreachable` if nothing answers there, `Refused` if the token is not the cluster's.
    pub async fn connect(common: &Common) -> Result<ResourceManager, Failure> {
        let token = match &common.token_file {
            None => None,
            Some(path) => {
                Some(Token::load(path).map_err(|error| Failure::new(Code::Usage, error.to_string()))?)
            }
        };
        let link = dial(&common.rm, token.as_ref()).await?;
        Ok(ResourceManager { address: common.rm.clone(), token, link })
    }

    /// Connects anew, after it was away.
    ///
    /// # Errors
    /// As [`ResourceManager::connect`].
    pub async fn reconnect(&mut self) -> Result<(), Failure> {
        self.link = dial(&self.address, self.token.as_ref()).await?;
        Ok(())
    }

    /// Whether the artefact store has this content.
    ///
    /// # Errors
    /// As all calls: by the answer's status, see [`Code`].
    pub async fn has(&mut self, digest: &Digest) -> Result<bool, Failure> {
        let request = pb::HasRequest { digest: digest.0.clone() };
        let answer = proto::artefact_service_client(&self.link).has(request).await;
        Ok(answer.map_err(|status| self.failed(&status))?.into_inner().present)
    }

    /// Sends a file to the artefact store, telling how many bytes are on their way.
    ///
    /// # Errors
    /// As all calls; also when the file cannot be read or was changed meanwhile.
    pub async fn upload(
        &mut self,
        path: &Path,
        artefact: &Artefact,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Failure> {
        let failed =
            |error: std::io::Error| Failure::other(format!("cannot read {}: {error}", path.display()));
        let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        let mut client = proto::artefact_service_client(&self.link);
        let call = tokio::spawn(async move { client.upload(ReceiverStream::new(rx)).await });
        let mut first = Some((artefact.name.clone(), artefact.digest.0.clone()));
        let mut sent = 0;
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = file.read(&mut chunk).await.map_err(failed)?;
            if read == 0 {
                break;
            }
            chunk.truncate(read);
            let (name, digest) = first.take().unzip();
            if tx.send(pb::UploadChunk { name, digest, chunk: chunk.into() }).await.is_err() {
                break;
            }
            sent += read as u64;
            progress(sent);
        }
        drop(tx);
        let answer = call.await.map_err(|error| Failure::other(error.to_string()))?;
        let answer = answer.map_err(|status| self.failed(&status))?.into_inner();
        if answer.digest != artefact.digest.0 {
            return Err(Failure::other(format!(
                "{} was changed while it was uploaded; submit again",
                path.display()
            )));
        }
        Ok(())
    }

    /// Submits a job. The same `client_id` again gives the same application.
    ///
    /// # Errors
    /// As all calls; `Refused` if a live job has the name, `BadJobFile` if the resource manager finds the job wrong.
    pub async fn submit(&mut self, client_id: &str, submission: &Submission<'_>) -> Result<AppId, Failure> {
        let job_json =
            serde_json::to_string(submission.spec).map_err(|error| Failure::other(error.to_string()))?;
        let request = pb::SubmitRequest {
            client_id: client_id.to_owned(),
            job_json,
            replace: submission.replace,
            secrets: submission.secrets.0.clone().into_iter().collect(),
        };
        match proto::client_service_client(&self.link).submit(request).await {
            Ok(answer) => Ok(AppId(answer.into_inner().app_id)),
            Err(status) if status.code() == tonic::Code::InvalidArgument => {
                Err(Failure::new(Code::BadJobFile, status.message()))
            }
            Err(status) => Err(self.failed(&status)),
        }
    }

    /// Tells a job to end.
    ///
    /// # Errors
    /// As all calls; `Refused` if it is over.
    pub async fn stop(&mut self, app: &AppId, kill: bool) -> Result<(), Failure> {
        let request = pb::StopRequest { app: app.0.clone(), kill };
        let answer = proto::client_service_client(&self.link).stop(request).await;
        answer.map(drop).map_err(|status| self.failed(&status))
    }

    /// All applications.
    ///
    /// # Errors
    /// As all calls.
    pub async fn list(&mut self) -> Result<Vec<AppReport>, Failure> {
        let answer = proto::client_service_client(&self.link).list(pb::ListRequest {}).await;
        parse(&answer.map_err(|status| self.failed(&status))?.into_inner().json)
    }

    /// The nodes.
    ///
    /// # Errors
    /// As all calls.
    pub async fn nodes(&mut self) -> Result<ClusterReport, Failure> {
        let answer = proto::client_service_client(&self.link).nodes(pb::NodesRequest {}).await;
        parse(&answer.map_err(|status| self.failed(&status))?.into_inner().json)
    }

    /// Every change of an application.
    ///
    /// # Errors
    /// As all calls.
    pub async fn watch(&mut self, app: &AppId) -> Result<Reports, Failure> {
        let request = pb::WatchRequest { app: app.0.clone() };
        let answer = proto::client_service_client(&self.link).watch(request).await;
        let stream = answer.map_err(|status| self.failed(&status))?.into_inner();
        Ok(Reports { address: self.address.clone(), stream })
    }

    /// What a container wrote.
    ///
    /// # Errors
    /// As all calls.
    pub async fn logs(&mut self, query: LogQuery) -> Result<Log, Failure> {
        let request = pb::LogsRequest {
            container: query.container.to_string(),
            stream: if query.stderr { "stderr" } else { "stdout" }.to_owned(),
            follow: query.follow,
            offset: query.offset,
            tail_lines: query.tail,
        };
        let answer = proto::client_service_client(&self.link).logs(request).await;
        let stream = answer.map_err(|status| self.failed(&status))?.into_inner();
        Ok(Log { address: self.address.clone(), stream })
    }

    /// Empties a node, each container having so long from TERM to KILL; without a time, takes that back.
    ///
    /// # Errors
    /// As all calls.
    pub async fn drain(&mut self, node: &str, grace: Option<Duration>) -> Result<(), Failure> {
        let grace_ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        let request = pb::DrainRequest { node: node.to_owned(), grace_ms };
        let answer = proto::client_service_client(&self.link).drain(request).await;
        answer.map(drop).map_err(|status| self.failed(&status))
    }

    /// Has containers of a live application commit and stop, and keeps their slots empty for so long; zero lets them
    /// start again.
    ///
    /// # Errors
    /// As all calls.
    pub async fn hold(&mut self, app: &AppId, slots: &[u32], how_long: Duration) -> Result<(), Failure> {
        let for_ms = u64::try_from(how_long.as_millis()).unwrap_or(u64::MAX);
        let request = pb::HoldRequest { app: app.0.clone(), slots: slots.to_vec(), for_ms };
        let answer = proto::client_service_client(&self.link).hold(request).await;
        answer.map(drop).map_err(|status| self.failed(&status))
    }

    /// Has the nodes remove what they keep of a job.
    ///
    /// # Errors
    /// As all calls; `Refused` if the job is live.
    pub async fn purge(&mut self, job: &str) -> Result<(), Failure> {
        let request = pb::PurgeRequest { job: job.to_owned() };
        let answer = proto::client_service_client(&self.link).purge(request).await;
        answer.map(drop).map_err(|status| self.failed(&status))
    }

    /// The page of metrics of the application whose master is at `address`.
    ///
    /// # Errors
    /// `Unreachable` if the master does not answer, `Refused` if it wants another token.
    pub async fn metrics(&self, address: &str) -> Result<String, Failure> {
        let read = async {
            let link = proto::connect(address, self.token.as_ref()).await?;
            proto::read_page(&link, "/metrics").await
        };
        read.await.map_err(|error| match error {
            DialError::Unreachable { reason, .. } => Failure::new(
                Code::Unreachable,
                format!(
                    "the job's application master at {address} does not answer ({reason}); it may be about to \
                     move: try again"
                ),
            ),
            DialError::Refused(reason) => Failure::new(Code::Refused, reason),
            DialError::Protocol(reason) => Failure::other(reason),
        })
    }

    fn failed(&self, status: &Status) -> Failure {
        failure_of(&self.address, status)
    }
}

/// The reports of a watched application.
pub struct Reports {
    address: String,
    stream: Streaming<pb::GetResponse>,
}

impl Reports {
    /// The next one; none when the resource manager has no more to say.
    ///
    /// # Errors
    /// As all calls.
    pub async fn next(&mut self) -> Result<Option<AppReport>, Failure> {
        let report = self.stream.message().await.map_err(|status| failure_of(&self.address, &status))?;
        report.map(|report| parse(&report.json)).transpose()
    }
}

/// A log as it comes.
pub struct Log {
    address: String,
    stream: Streaming<pb::LogChunk>,
}

impl Log {
    /// The next piece, and where what follows it begins; none at the end.
    ///
    /// # Errors
    /// As all calls.
    pub async fn next(&mut self) -> Result<Option<(Bytes, u64)>, Failure> {
        let chunk = self.stream.message().await.map_err(|status| failure_of(&self.address, &status))?;
        Ok(chunk.map(|chunk| (chunk.data.clone(), chunk.offset + chunk.data.len() as u64)))
    }
}

async fn dial(address: &str, token: Option<&Token>) -> Result<Link, Failure> {
    proto::connect(address, token).await.map_err(|error| match error {
        DialError::Unreachable { reason, .. } => unreachable(address, &reason),
        DialError::Refused(reason) => Failure::new(Code::Refused, reason),
        DialError::Protocol(reason) => {
            Failure::other(format!("{address} does not speak as a resource manager does: {reason}"))
        }
    })
}

fn unreachable(address: &str, reason: &str) -> Failure {
    let hint = "is it running there? --rm or SAMZA_RM names another";
    Failure::new(
        Code::Unreachable,
        format!("the resource manager at {address} does not answer ({reason}); {hint}"),
    )
}

/// A status as a failure: the resource manager's message says the way out, the code is ours.
fn failure_of(address: &str, status: &Status) -> Failure {
    let message = status.message();
    match status.code() {
        tonic::Code::NotFound => Failure::new(Code::NotFound, message),
        tonic::Code::AlreadyExists | tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied => {
            Failure::new(Code::Refused, message)
        }
        tonic::Code::Unauthenticated => {
            let hint = "give the cluster's token with --token-file or SAMZA_TOKEN_FILE";
            Failure::new(
                Code::Refused,
                format!("the resource manager at {address} refuses: {message}; {hint}"),
            )
        }
        tonic::Code::InvalidArgument => Failure::new(Code::Usage, message),
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
            unreachable(address, message)
        }
        _ if message.contains("h2 protocol error") || message.contains("transport error") => {
            unreachable(address, message)
        }
        code => Failure::other(format!("the resource manager at {address} failed: {message} ({code:?})")),
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, Failure> {
    serde_json::from_str(json).map_err(|error| {
        Failure::other(format!(
            "the resource manager's answer cannot be read ({error}); is it of another version?"
        ))
    })
}
