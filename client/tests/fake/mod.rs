//! A resource manager's client service that does what a test tells it to, on a port of its own.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use proto::pb;
use proto::pb::artefact_service_server::ArtefactService;
use proto::pb::client_service_server::ClientService;
use sha2::{Digest as _, Sha256};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use types::{
    AppContainer, AppReport, AppState, ClusterReport, ContainerPhase, ContainerState, ContainerStatus, JobId,
    JobSpec, JobStatus, NodeReport, NodeStateName, Pressure, Resource, SlotStatus, TaskStatus,
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What it was told to answer, and what it was asked.
#[derive(Default)]
pub struct State {
    pub apps: Vec<AppReport>,
    pub nodes: Vec<NodeReport>,
    pub watched: Vec<AppReport>,
    pub refuse: Option<Status>,
    pub lose_answers: u32,
    pub artefacts: BTreeMap<String, Vec<u8>>,
    pub uploads: u32,
    pub submitted: Vec<(String, JobSpec, bool)>,
    pub secrets: Vec<(String, String)>,
    pub stopped: Vec<(String, bool)>,
    pub drains: Vec<(String, Option<u64>)>,
}

/// The running fake; it ends with the test's process.
pub struct Fake {
    pub address: String,
    state: Arc<Mutex<State>>,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub fn start() -> Fake {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let state = Arc::new(Mutex::new(State::default()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("it is bound").to_string();
        let service = Service(Arc::clone(&state));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            tonic::transport::Server::builder()
                .add_service(proto::client_service(service.clone()))
                .add_service(proto::artefact_service(service))
                .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener))
                .await
        });
        Fake { address, state, _runtime: runtime }
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("not poisoned"))
    }
}

#[derive(Clone)]
struct Service(Arc<Mutex<State>>);

impl Service {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().expect("not poisoned"))
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("JSON")
}

#[tonic::async_trait]
impl ClientService for Service {
    type WatchStream = Answers<pb::GetResponse>;
    type LogsStream = Answers<pb::LogChunk>;

    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        let request = request.into_inner();
        let spec: JobSpec = serde_json::from_str(&request.job_json).expect("a job");
        self.with(|state| {
            if let Some(status) = &state.refuse {
                return Err(status.clone());
            }
            state.secrets = request.secrets.into_iter().collect();
            state.submitted.push((request.client_id, spec, request.replace));
            if state.lose_answers > 0 {
                state.lose_answers -= 1;
                return Err(Status::unavailable("the answer is lost"));
            }
            Ok(Response::new(pb::SubmitResponse {
                app_id: format!("application_7_{:04}", state.submitted.len()),
            }))
        })
    }
    async fn stop(&self, request: Request<pb::StopRequest>) -> Result<Response<pb::StopResponse>, Status> {
        let request = request.into_inner();
        self.with(|state| state.stopped.push((request.app, request.kill)));
        Ok(Response::new(pb::StopResponse {}))
    }
    async fn list(&self, _: Request<pb::ListRequest>) -> Result<Response<pb::ListResponse>, Status> {
        Ok(Response::new(pb::ListResponse { json: self.with(|state| json(&state.apps)) }))
    }
    async fn get(&self, _: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
    async fn nodes(&self, _: Request<pb::NodesRequest>) -> Result<Response<pb::NodesResponse>, Status> {
        let nodes = self.with(|state| state.nodes.clone());
        let cluster = ClusterReport { epoch: 7, version: "0.1.0".into(), started_unix_ms: 0, nodes };
        Ok(Response::new(pb::NodesResponse { json: json(&cluster) }))
    }
    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let reports: Vec<_> = self
            .with(|state| state.watched.iter().map(|app| Ok(pb::GetResponse { json: json(app) })).collect());
        let stream = tokio_stream::StreamExt::chain(tokio_stream::iter(reports), tokio_stream::pending());
        Ok(Response::new(Box::pin(stream)))
    }
    async fn logs(&self, request: Request<pb::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let container = request.container;
        let tail = request.tail_lines.map_or_else(|| "all".to_owned(), |lines| format!("tail {lines}"));
        let pieces = [format!("{container} {}\n{}", request.stream, &tail[..2]), format!("{}\n", &tail[2..])];
        let chunks = pieces.map(|data| Ok(pb::LogChunk { offset: 0, data: data.into() }));
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
    async fn purge(&self, _: Request<pb::PurgeRequest>) -> Result<Response<pb::PurgeResponse>, Status> {
        Ok(Response::new(pb::PurgeResponse {}))
    }
    async fn hold(&self, request: Request<pb::HoldRequest>) -> Result<Response<pb::HoldResponse>, Status> {
        let app = request.into_inner().app;
        Err(Status::unavailable(format!(
            "the application master of {app} is not connected now; try again in a moment"
        )))
    }
    async fn drain(&self, request: Request<pb::DrainRequest>) -> Result<Response<pb::DrainResponse>, Status> {
        let request = request.into_inner();
        let known = self.with(|state| state.nodes.iter().any(|node| node.node.0 == request.node));
        if !known {
            return Err(Status::not_found(format!(
                "no node `{}`; `samza nodes` shows what there is",
                request.node
            )));
        }
        self.with(|state| state.drains.push((request.node, request.grace_ms)));
        Ok(Response::new(pb::DrainResponse {}))
    }
}

#[tonic::async_trait]
impl ArtefactService for Service {
    type FetchStream = Answers<pb::ArtefactChunk>;

    async fn has(&self, request: Request<pb::HasRequest>) -> Result<Response<pb::HasResponse>, Status> {
        let digest = request.into_inner().digest;
        Ok(Response::new(pb::HasResponse {
            present: self.with(|state| state.artefacts.contains_key(&digest)),
        }))
    }
    async fn upload(
        &self,
        request: Request<Streaming<pb::UploadChunk>>,
    ) -> Result<Response<pb::UploadResponse>, Status> {
        let mut chunks = request.into_inner();
        let mut content = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            content.extend_from_slice(&chunk.chunk);
        }
        let digest: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        let bytes = content.len() as u64;
        self.with(|state| {
            state.uploads += 1;
            state.artefacts.insert(digest.clone(), content);
        });
        Ok(Response::new(pb::UploadResponse { digest, bytes }))
    }
    async fn fetch(&self, _: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

pub fn app(id: &str, name: &str, state: AppState) -> AppReport {
    AppReport {
        app: id.into(),
        job: JobId { name: name.into(), id: "1".into() },
        state,
        diagnostics: String::new(),
        queue: "default".into(),
        submitted_unix_ms: 1,
        ended_unix_ms: None,
        attempt: 1,
        master_address: None,
        containers_wanted: 1,
        containers_running: 0,
        containers: Vec::new(),
        waiting: Vec::new(),
        status: None,
        status_age_ms: None,
    }
}

/// One container that runs one task on its preferred node.
pub fn live_app(id: &str, name: &str) -> AppReport {
    let container = AppContainer {
        container: "container_7_000002".parse().expect("an id"),
        role: "slot 0".into(),
        slot: Some(0),
        node: "node-a".into(),
        state: ContainerState::Running,
        resource: Resource { memory_bytes: 512 << 20, cpu_millis: 500 },
        pid: Some(42),
        started_unix_ms: Some(1),
        ended_unix_ms: None,
        memory_bytes: Some(300 << 20),
        cpu_millis: Some(250),
        pressure: Some(Pressure { cpu: 12, memory: 0, io: 3 }),
    };
    AppReport {
        containers_running: 1,
        containers: vec![container],
        status: Some(JobStatus {
            attempt: 1,
            slots: vec![slot_status(0)],
            message: "running".into(),
            ..JobStatus::default()
        }),
        status_age_ms: Some(100),
        ..app(id, name, AppState::Running)
    }
}

pub fn slot_status(slot: u32) -> SlotStatus {
    let task = format!("Partition {slot}");
    SlotStatus {
        slot,
        container: Some("container_7_000002".parse().expect("an id")),
        node: Some("node-a".into()),
        tasks: vec![task.as_str().into()],
        status: ContainerStatus {
            phase: ContainerPhase::Running,
            tasks: vec![TaskStatus {
                task: task.as_str().into(),
                lag: Some(812),
                lag_ms: Some(2_000),
                processed: 5,
                ..TaskStatus::default()
            }],
            processed: 5,
            commits: 1,
        },
        on_preferred: Some(true),
        ..SlotStatus::default()
    }
}

pub fn node(name: &str, rack: &str) -> NodeReport {
    NodeReport {
        node: name.into(),
        state: NodeStateName::Active,
        unhealthy: None,
        hosts: vec![name.into(), "127.0.0.1".into()],
        rack: rack.into(),
        labels: BTreeMap::new(),
        total: Resource { memory_bytes: 4 << 30, cpu_millis: 2_000 },
        used: Resource { memory_bytes: 1 << 30, cpu_millis: 500 },
        lease_age_ms: 120,
        containers: 1,
        address: "127.0.0.1:4000".into(),
    }
}
