//! The client service: submit, stop, look, watch, read logs.

use std::pin::Pin;
use std::sync::Arc;

use daemon::Shutdown;
use futures_util::stream::{Stream, StreamExt};
use proto::Token;
use proto::pb;
use proto::pb::client_service_server::{ClientService, ClientServiceServer};
use rm_core::{Denied, Submit, View};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use types::{AppReport, Artefact, ContainerId, JobId, JobSpec, Secrets};

use super::status_of;
use crate::artefacts::Artefacts;
use crate::driver::{Message, Reply};
use crate::logs::{LogStream, NodeLogs, Read};
use crate::lookup::{find_app, find_container, log_address};
use crate::secrets;

/// The service's state.
pub(crate) struct Client {
    pub(crate) driver: mpsc::Sender<Message>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) artefacts: Arc<Artefacts>,
    /// The application master's binary, pinned into each application at its submit.
    pub(crate) app_master: Artefact,
    pub(crate) logs: NodeLogs,
    /// The cluster's token, if it has one: application masters need it to be let in.
    pub(crate) token: Option<Token>,
    pub(crate) shutdown: Shutdown,
}

impl Client {
    pub(crate) fn into_service(self) -> ClientServiceServer<Client> {
        proto::client_service(self)
    }

    /// Hands a verb to the driver and awaits its answer, which comes once the effects are durable.
    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the resource manager is shutting down");
        self.driver.send(message(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(|denied| status_of(&denied))
    }

    fn app(&self, name: &str) -> Result<AppReport, Status> {
        let view = self.view.borrow().clone();
        find_app(&view, name).cloned().ok_or_else(|| status_of(&Denied::UnknownApp(name.to_owned())))
    }

    fn check_artefact(&self, spec: &JobSpec) -> Result<(), Status> {
        match &spec.package.artefact {
            Some(artefact) if artefact.from.is_none() && !self.artefacts.has(&artefact.digest) => {
                Err(Status::failed_precondition(format!(
                    "artefact {} ({}) is not stored here; upload it first",
                    artefact.name, artefact.digest
                )))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn json(value: &impl Serialize) -> Result<String, Status> {
    serde_json::to_string(value).map_err(|error| Status::internal(format!("writing a report: {error}")))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ClientService for Client {
    type WatchStream = Answers<pb::GetResponse>;
    type LogsStream = Answers<pb::LogChunk>;

    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        let request = request.into_inner();
        let spec: JobSpec = serde_json::from_str(&request.job_json)
            .map_err(|error| Status::invalid_argument(format!("the job cannot be read: {error}")))?;
        if request.client_id.is_empty() {
            return Err(Status::invalid_argument(
                "client_id is empty; make one, so that a repeated submit is one",
            ));
        }
        self.check_artefact(&spec)?;
        let token = match &self.token {
            Some(token) => token.text().to_owned(),
            None => {
                secrets::fresh().map_err(|error| Status::internal(format!("making a secret: {error}")))?
            }
        };
        let submit = Submit {
            client_id: request.client_id,
            spec,
            replace: request.replace,
            app_master: self.app_master.clone(),
            token,
            secrets: Secrets(request.secrets.into_iter().collect()),
        };
        let app = self.ask(|reply| Message::Submit(Box::new(submit), reply)).await?;
        Ok(Response::new(pb::SubmitResponse { app_id: app.0 }))
    }

    async fn stop(&self, request: Request<pb::StopRequest>) -> Result<Response<pb::StopResponse>, Status> {
        let request = request.into_inner();
        self.ask(|reply| Message::Stop(request.app, request.kill, reply)).await?;
        Ok(Response::new(pb::StopResponse {}))
    }

    async fn list(&self, _: Request<pb::ListRequest>) -> Result<Response<pb::ListResponse>, Status> {
        let view = self.view.borrow().clone();
        Ok(Response::new(pb::ListResponse { json: json(&view.apps)? }))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        let app = self.app(&request.into_inner().app)?;
        Ok(Response::new(pb::GetResponse { json: json(&app)? }))
    }

    async fn nodes(&self, _: Request<pb::NodesRequest>) -> Result<Response<pb::NodesResponse>, Status> {
        let view = self.view.borrow().clone();
        Ok(Response::new(pb::NodesResponse { json: json(&view.cluster)? }))
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // The id stays the same though the name may come to mean another application.
        let app = self.app(&request.into_inner().app)?.app;
        let (tx, rx) = mpsc::channel(4);
        let (mut view, token) = (self.view.clone(), self.shutdown.token());
        tokio::spawn(async move {
            let mut told: Option<AppReport> = None;
            loop {
                let current = view.borrow_and_update().clone();
                let Some(report) = find_app(&current, &app.0).cloned() else { return };
                let is_over =
                    report.state.is_over() && report.containers.iter().all(|it| it.state.is_exited());
                let ageless = without_ages(&report);
                if told.as_ref() != Some(&ageless) {
                    told = Some(ageless);
                    if tx.send(json(&report).map(|json| pb::GetResponse { json })).await.is_err() {
                        return;
                    }
                }
                if is_over {
                    return;
                }
                tokio::select! {
                    () = token.cancelled() => return,
                    () = tx.closed() => return,
                    changed = view.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(rx).boxed()))
    }

    async fn logs(&self, request: Request<pb::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let stream = LogStream::parse(&request.stream).ok_or_else(|| {
            Status::invalid_argument(format!("`{}` is neither stdout nor stderr", request.stream))
        })?;
        let id: ContainerId =
            request.container.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let view = self.view.borrow().clone();
        let container = find_container(&view, id)
            .ok_or_else(|| Status::not_found(format!("no container {id} is remembered here")))?;
        let address = log_address(&view, container).ok_or_else(|| {
            Status::unavailable(format!("node {} of {id} has not reported", container.node))
        })?;
        let read = Read {
            container: id,
            stream,
            offset: request.offset,
            tail_lines: request.tail_lines,
            follow: request.follow,
        };
        let chunks = self.logs.read(&address, read).await?;
        let chunks = chunks.map(|chunk| chunk.map(|it| pb::LogChunk { offset: it.offset, data: it.data }));
        let stopped = self.shutdown.clone();
        let until = async move { stopped.wait().await };
        Ok(Response::new(chunks.take_until(Box::pin(until)).boxed()))
    }

    async fn purge(&self, request: Request<pb::PurgeRequest>) -> Result<Response<pb::PurgeResponse>, Status> {
        let text = request.into_inner().job;
        let job = job_of(&text, &self.view.borrow())
            .ok_or_else(|| Status::invalid_argument(format!("`{text}` is not a job such as flights-1")))?;
        self.ask(|reply| Message::Purge(job, reply)).await?;
        Ok(Response::new(pb::PurgeResponse {}))
    }

    async fn hold(&self, request: Request<pb::HoldRequest>) -> Result<Response<pb::HoldResponse>, Status> {
        let pb::HoldRequest { app, slots, for_ms } = request.into_inner();
        self.ask(|reply| Message::Hold { app, slots, for_ms, reply }).await?;
        Ok(Response::new(pb::HoldResponse {}))
    }

    async fn drain(&self, request: Request<pb::DrainRequest>) -> Result<Response<pb::DrainResponse>, Status> {
        let request = request.into_inner();
        let node = types::NodeId(request.node);
        self.ask(|reply| Message::Drain(node, request.grace_ms, reply)).await?;
        Ok(Response::new(pb::DrainResponse {}))
    }
}

/// A report without what changes by itself.
fn without_ages(report: &AppReport) -> AppReport {
    let mut report = report.clone();
    report.status_age_ms = None;
    for ask in &mut report.waiting {
        ask.waited_ms = 0;
    }
    report
}

/// The job that `<name>-<id>` or a name means.
fn job_of(text: &str, view: &View) -> Option<JobId> {
    if let Some(app) = find_app(view, text) {
        return Some(app.job.clone());
    }
    let (name, id) = text.rsplit_once('-')?;
    Some(JobId { name: name.to_owned(), id: id.to_owned() })
}
