//! The real process over the real wire, with a node and an application master played by the test.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proto::{DialError, Dialled, Link, pb};
use tonic::Code;
use types::{
    AmHello, AmWelcome, AppReport, AppState, Ask, ClusterReport, CommandStamp, ContainerId, ContainerReport,
    ContainerState, FromAm, FromNode, JobOutcome, JobSpec, NodeBeat, NodeHello, NodeIncarnation, NodeWelcome,
    RequestId, Resource, Role, Spread, StartContainer, ToAm, ToNode,
};

const MIB: u64 = 1 << 20;
const WAIT: Duration = Duration::from_secs(10);

type NodeSession = Dialled<NodeWelcome, FromNode, (CommandStamp, ToNode)>;
type AmSession = Dialled<AmWelcome, FromAm, ToAm>;

/// A resource manager; killed when dropped.
struct Rm {
    child: Child,
    grpc: String,
    http: String,
}

impl Drop for Rm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rm {
    /// Starts one over `data`; `listen` is `127.0.0.1:0`, or a former one's address.
    fn start(data: &Path, listen: &str, more: &[&str]) -> Rm {
        let addresses = data.join("addresses.json");
        let _ = std::fs::remove_file(&addresses);
        let master = data.join("any-binary");
        std::fs::write(&master, "#!/bin/sh\n").expect("the folder is writable");
        let child = Command::new(env!("CARGO_BIN_EXE_resource-manager"))
            .args(["--listen", listen, "--http", "127.0.0.1:0"])
            .args(["--data".as_ref(), data.as_os_str(), "--app-master".as_ref(), master.as_os_str()])
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let text = eventually("addresses.json", || std::fs::read_to_string(&addresses).ok());
        let found: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        let address = |key: &str| found[key].as_str().expect("it has both").to_owned();
        Rm { child, grpc: address("grpc"), http: address("http") }
    }

    async fn link(&self) -> Link {
        proto::connect(&self.grpc, None).await.expect("it listens")
    }

    /// GET over plain HTTP; returns the whole answer.
    fn get(&self, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(&self.http).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        text
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = std::time::Instant::now() + WAIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn data() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn spec(name: &str) -> JobSpec {
    let mut spec: JobSpec =
        serde_json::from_str(include_str!("../core/examples/job.json")).expect("a valid job");
    spec.job.name = name.to_owned();
    spec
}

fn submission(client_id: &str, spec: &JobSpec) -> pb::SubmitRequest {
    let job_json = serde_json::to_string(spec).expect("jobs are JSON");
    pb::SubmitRequest { client_id: client_id.into(), job_json, ..Default::default() }
}

fn node_hello(containers: Vec<ContainerReport>) -> NodeHello {
    NodeHello {
        node: "n1".into(),
        incarnation: NodeIncarnation { boot_id: "boot".into(), state_id: "state".into() },
        total: Resource { memory_bytes: 1024 * MIB, cpu_millis: 2000 },
        hosts: vec!["127.0.0.1".into()],
        rack: "r1".into(),
        labels: Default::default(),
        address: "127.0.0.1:1".into(),
        containers,
        state: vec![],
        lease_lapsed: false,
        version: "test".into(),
    }
}

fn am_hello(start: &StartContainer) -> AmHello {
    let Role::AppMaster { attempt } = start.role else { panic!("{:?} is no master", start.role) };
    AmHello {
        app: start.app.clone(),
        attempt,
        container: start.id,
        address: "127.0.0.1:2".into(),
        asks: vec![],
    }
}

fn ask(slot: u32) -> Ask {
    Ask {
        request: RequestId { attempt: 1, slot, try_no: 1 },
        resource: Resource { memory_bytes: 64 * MIB, cpu_millis: 100 },
        preferences: vec![],
        wait_ms: 0,
        rack_wait_ms: 0,
        avoid: vec![],
        spread: Spread::None,
        labels: Default::default(),
    }
}

fn running(start: &StartContainer) -> ContainerReport {
    ContainerReport {
        id: start.id,
        app: start.app.clone(),
        job: start.job.clone(),
        role: start.role,
        resource: start.resource,
        state: ContainerState::Running,
        pid: Some(7),
        started_unix_ms: Some(1),
        ended_unix_ms: None,
    }
}

/// The next Start, reported as running. Beats meanwhile are the caller's.
async fn next_start(node: &mut NodeSession) -> StartContainer {
    loop {
        let item = tokio::time::timeout(WAIT, node.rx.recv()).await.expect("a Start comes");
        if let (_, ToNode::Start(start)) = item.expect("the session is up") {
            node.tx.send(FromNode::Container(running(&start))).expect("the session is up");
            return *start;
        }
    }
}

async fn hears(am: &mut AmSession, what: &str, matches: impl Fn(&ToAm) -> bool) -> ToAm {
    loop {
        let item = tokio::time::timeout(WAIT, am.rx.recv()).await;
        let item = item.unwrap_or_else(|_| panic!("{what} did not come")).expect("the session is up");
        if matches(&item) {
            return item;
        }
    }
}

fn runs(id: ContainerId) -> impl Fn(&ToAm) -> bool {
    move |item| matches!(item, ToAm::Container(it) if it.report.id == id && it.report.state == ContainerState::Running)
}

async fn report(link: &Link, app: &str) -> AppReport {
    let request = pb::GetRequest { app: app.into() };
    let answer = proto::client_service_client(link).get(request).await.expect("it is known");
    serde_json::from_str(&answer.into_inner().json).expect("a report")
}

/// A job with its master and one container running.
async fn job(rm: &Rm, name: &str) -> (NodeSession, AmSession, StartContainer, StartContainer) {
    let link = rm.link().await;
    let mut client = proto::client_service_client(&link);
    client.submit(submission(name, &spec(name))).await.expect("admitted");
    let mut node = proto::dial_node(&link, node_hello(vec![])).await.expect("welcome");
    let master = next_start(&mut node).await;
    let mut am = proto::dial_app_master(&link, am_hello(&master)).await.expect("welcome");
    am.tx.send(FromAm::Ask(ask(0))).expect("the session is up");
    let container = next_start(&mut node).await;
    hears(&mut am, "the container's start", runs(container.id)).await;
    (node, am, master, container)
}

#[tokio::test]
async fn a_job_runs_over_the_wire_and_its_report_is_everywhere_the_same() {
    let data = data();
    let rm = Rm::start(data.path(), "127.0.0.1:0", &[]);
    let (node, am, master, container) = job(&rm, "flights").await;
    assert_eq!(master.command, ["app-master"]);
    assert_eq!(master.artefacts[0].name, "app-master");
    assert_eq!(container.command, ["sleep", "60"]);
    assert_eq!(container.am_address.as_deref(), Some("127.0.0.1:2"));
    assert_eq!(container.token, master.token);

    let link = rm.link().await;
    let app = eventually_report(&link, "flights-1", |it| it.containers_running == 1).await;
    assert_eq!(app.state, AppState::Running);
    let page = rm.get("/apps/flights-1");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("<html"), "{page}");
    let json = rm.get(&format!("/api/v1/apps/{}", app.app));
    assert!(json.contains(&container.id.to_string()), "{json}");
    assert!(rm.get("/api/v1/apps/none").starts_with("HTTP/1.1 404"));
    let nodes =
        proto::client_service_client(&link).nodes(pb::NodesRequest {}).await.expect("answered").into_inner();
    let cluster: ClusterReport = serde_json::from_str(&nodes.json).expect("a report");
    assert_eq!(cluster.nodes[0].containers, 2);

    am.tx.send(FromAm::Finish(JobOutcome::Finished)).expect("the session is up");
    let ended = eventually_report(&link, "flights-1", |it| it.state.is_over()).await;
    assert_eq!(ended.state, AppState::Finished);
    drop(node);
}

async fn eventually_report(link: &Link, app: &str, is: impl Fn(&AppReport) -> bool) -> AppReport {
    let end = tokio::time::Instant::now() + WAIT;
    loop {
        let report = report(link, app).await;
        if is(&report) {
            return report;
        }
        assert!(tokio::time::Instant::now() < end, "it stays {report:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn killed_and_started_again_it_disturbs_nothing() {
    let data = data();
    let mut rm = Rm::start(data.path(), "127.0.0.1:0", &[]);
    let (mut node, am, master, container) = job(&rm, "flights").await;
    rm.child.kill().expect("it runs");
    rm.child.wait().expect("it is ours");
    while tokio::time::timeout(WAIT, node.rx.recv()).await.expect("the session ends").is_some() {}
    drop(am);

    let rm = Rm::start(data.path(), &rm.grpc.clone(), &[]);
    let link = rm.link().await;
    // The master is first; its answer waits until the node has reported.
    let hello = am_hello(&master);
    let dial = tokio::spawn({
        let link = link.clone();
        async move { proto::dial_app_master(&link, hello).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!dial.is_finished(), "its list of containers would have holes");
    let inventory = vec![running(&master), running(&container)];
    let mut node = proto::dial_node(&link, node_hello(inventory)).await.expect("welcome");
    let mut am = dial.await.expect("no panic").expect("welcome");
    assert_eq!(am.welcome.containers.len(), 1);
    assert_eq!(am.welcome.containers[0].report.id, container.id);
    assert!(am.welcome.epoch > container.id.0.epoch);
    am.tx.send(FromAm::Mint { nonce: 3 }).expect("the session is up");
    let minted = hears(&mut am, "the minted", |item| matches!(item, ToAm::Minted { .. })).await;
    let ToAm::Minted { incarnation, .. } = minted else { panic!("just matched") };
    assert!(incarnation > container.id.0);
    // Nothing is started or stopped: a beat's answer comes, and before it only the master's address.
    node.tx.send(FromNode::Beat(NodeBeat { sent_at_ms: 9, unhealthy: None })).expect("the session is up");
    loop {
        let (stamp, item) = node.rx.recv().await.expect("the session is up");
        assert_eq!(stamp.session, node.welcome.session);
        match item {
            ToNode::BeatAck { sent_at_ms: 9 } => break,
            ToNode::AmAddress { .. } => {}
            other => panic!("{other:?} disturbs"),
        }
    }
}

#[tokio::test]
async fn refusals_have_codes_and_say_the_way_out() {
    let data = data();
    let rm = Rm::start(data.path(), "127.0.0.1:0", &[]);
    let link = rm.link().await;
    let mut client = proto::client_service_client(&link);
    let first = client.submit(submission("c1", &spec("flights"))).await.expect("admitted").into_inner();
    let again = client.submit(submission("c1", &spec("flights"))).await.expect("the same").into_inner();
    assert_eq!(first.app_id, again.app_id);
    let second = client.submit(submission("c2", &spec("flights"))).await.expect_err("one is live");
    assert_eq!(second.code(), Code::AlreadyExists);
    assert!(second.message().contains(&first.app_id) && second.message().contains("--replace"), "{second}");
    let unknown =
        client.stop(pb::StopRequest { app: "none".into(), kill: false }).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
    let mut missing = spec("other");
    missing.package.artefact = Some(types::Artefact {
        name: "job".into(),
        digest: types::Digest("ab".repeat(32)),
        bytes: 1,
        from: None,
    });
    let missing = client.submit(submission("c3", &missing)).await.expect_err("it was not uploaded");
    assert_eq!(missing.code(), Code::FailedPrecondition);
    client.stop(pb::StopRequest { app: "flights".into(), kill: false }).await.expect("it is live");
    assert!(report(&link, "flights-1").await.state.is_over(), "seen as soon as it is answered");
}

#[tokio::test]
async fn artefacts_are_checked_kept_and_served() {
    let data = data();
    let rm = Rm::start(data.path(), "127.0.0.1:0", &[]);
    let link = rm.link().await;
    let mut store = proto::artefact_service_client(&link);
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let chunks = |digest: Option<String>| {
        let mut chunks: Vec<_> = content
            .chunks(1 << 20)
            .map(|chunk| pb::UploadChunk { name: None, digest: None, chunk: chunk.to_vec().into() })
            .collect();
        chunks[0].digest = digest;
        tokio_stream::iter(chunks)
    };
    let wrong = store.upload(chunks(Some("00".repeat(32)))).await.expect_err("it is something else");
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let stored = store.upload(chunks(None)).await.expect("stored").into_inner();
    assert_eq!(stored.bytes, content.len() as u64);
    let has =
        store.has(pb::HasRequest { digest: stored.digest.clone() }).await.expect("answered").into_inner();
    assert!(has.present);
    let mut fetch =
        store.fetch(pb::FetchRequest { digest: stored.digest }).await.expect("there").into_inner();
    let mut fetched = Vec::new();
    while let Some(chunk) = fetch.message().await.expect("whole") {
        fetched.extend_from_slice(&chunk.chunk);
    }
    assert!(fetched == content);
    let none = store.fetch(pb::FetchRequest { digest: "11".repeat(32) }).await.expect_err("not there");
    assert_eq!(none.code(), Code::NotFound);
}

#[tokio::test]
async fn a_watch_tells_each_change_and_ends_with_the_job() {
    let data = data();
    let rm = Rm::start(data.path(), "127.0.0.1:0", &[]);
    let link = rm.link().await;
    let mut client = proto::client_service_client(&link);
    client.submit(submission("c1", &spec("flights"))).await.expect("admitted");
    let mut watch =
        client.watch(pb::WatchRequest { app: "flights".into() }).await.expect("known").into_inner();
    let state = |json: &str| serde_json::from_str::<AppReport>(json).expect("a report").state;
    let first = watch.message().await.expect("up").expect("at once");
    assert_eq!(state(&first.json), AppState::Accepted);
    client.stop(pb::StopRequest { app: "flights".into(), kill: true }).await.expect("it is live");
    let mut last = AppState::Accepted;
    while let Some(next) = tokio::time::timeout(WAIT, watch.message()).await.expect("it ends").expect("up") {
        last = state(&next.json);
    }
    assert_eq!(last, AppState::Killed);
}

#[tokio::test]
async fn events_carry_the_cluster_and_the_applications() {
    let data = data();
    let rm = Rm::start(data.path(), "127.0.0.1:0", &[]);
    let mut stream = std::net::TcpStream::connect(&rm.http).expect("it listens");
    stream.set_read_timeout(Some(WAIT)).expect("a valid time");
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: x\r\n\r\n").expect("written");
    let mut text = String::new();
    let mut until = |needle: &str| {
        let mut buffer = [0; 4096];
        while !text.contains(needle) {
            let read = stream.read(&mut buffer).expect("more comes");
            assert!(read > 0, "it ended before {needle}: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    until("event: cluster");
    until("event: apps\ndata: []");
    let link = rm.link().await;
    let mut client = proto::client_service_client(&link);
    client.submit(submission("c1", &spec("flights"))).await.expect("admitted");
    until("\"name\":\"flights\"");
}

#[tokio::test]
async fn a_master_that_is_not_the_current_one_is_refused_for_good() {
    let data = data();
    let rm = Rm::start(data.path(), "127.0.0.1:0", &[]);
    let (_node, _am, master, _) = job(&rm, "flights").await;
    let link = rm.link().await;
    let stale = AmHello { attempt: 0, ..am_hello(&master) };
    let refused = proto::dial_app_master(&link, stale).await.expect_err("it is not current");
    assert!(matches!(refused, DialError::Refused(_)), "{refused}");
}

#[tokio::test]
async fn term_ends_it_in_bounded_time_with_open_sessions() {
    let data = data();
    let mut rm = Rm::start(data.path(), "127.0.0.1:0", &[]);
    let (_node, _am, ..) = job(&rm, "flights").await;
    let pid = rm.child.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
    assert!(killed.success());
    let status = tokio::task::spawn_blocking(move || {
        let status = eventually("its end", || rm.child.try_wait().expect("it is ours"));
        (status, rm)
    });
    assert!(status.await.expect("no panic").0.success());
}

#[test]
fn beyond_loopback_a_token_is_required() {
    let data = data();
    let master = data.path().join("any-binary");
    std::fs::write(&master, "x").expect("the folder is writable");
    let output = Command::new(env!("CARGO_BIN_EXE_resource-manager"))
        .args(["--listen", "0.0.0.0:0", "--http", "127.0.0.1:0"])
        .args(["--data".as_ref(), data.path().as_os_str(), "--app-master".as_ref(), master.as_os_str()])
        .output()
        .expect("the binary starts");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--token-file"));
}

#[tokio::test]
async fn who_does_not_show_the_token_is_not_let_in() {
    let data = data();
    let file = data.path().join("token");
    std::fs::write(&file, "s3cret\n").expect("the folder is writable");
    let path = file.to_str().expect("a plain path");
    let rm = Rm::start(data.path(), "127.0.0.1:0", &["--token-file", path]);
    let without = proto::connect(&rm.grpc, None).await.expect("it listens");
    let refused =
        proto::client_service_client(&without).list(pb::ListRequest {}).await.expect_err("no token");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let token = proto::Token::load(&file).expect("a token");
    let with = proto::connect(&rm.grpc, Some(&token)).await.expect("it listens");
    proto::client_service_client(&with).list(pb::ListRequest {}).await.expect("let in");
}
