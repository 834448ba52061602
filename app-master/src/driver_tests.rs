//! The driver over real sessions: a resource manager and containers that do what the test says, Kafka in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use daemon::Shutdown;
use proto::{Dialled, Incoming, Rx, Tx};
use task_api::system::{NewTopic, SystemAdmin};
use task_core::ownership::OwnerRecord;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use types::{
    AmHello, AmWelcome, Ask, ContainerHello, ContainerId, ContainerReport, ContainerState, ContainerStatus,
    ContainerWelcome, Epoch, ExitCause, FromAm, FromContainer, Incarnation, JobOutcome, PlacedContainer,
    Role, StopJob, ToAm, ToContainer,
};

use crate::coordinator::Writer;
use crate::serve_job;
use crate::settings::Settings;
use crate::testing::{Memory, spec};

type Caller = Incoming<AmHello, AmWelcome, ToAm, FromAm>;

const SOON: Duration = Duration::from_secs(20);

fn id(seq: u64) -> ContainerId {
    ContainerId(Incarnation { epoch: Epoch(7), seq })
}

/// A resource manager's listener; each life of it has its own.
struct ResourceManager {
    callers: mpsc::Receiver<Caller>,
    shutdown: Shutdown,
    serving: JoinHandle<anyhow::Result<()>>,
    address: SocketAddr,
}

impl ResourceManager {
    async fn on(address: &str) -> ResourceManager {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (to, callers) = mpsc::channel(8);
        let shutdown = Shutdown::new();
        let routes = tonic::service::Routes::new(proto::app_master_service(to));
        let serving = tokio::spawn(daemon::serve_grpc(listener, routes, None, shutdown.clone()));
        ResourceManager { callers, shutdown, serving, address }
    }

    async fn accept(&mut self, containers: Vec<PlacedContainer>) -> (AmHello, Tx<ToAm>, Rx<FromAm>) {
        let caller = timeout(SOON, self.callers.recv()).await.expect("it dials").expect("the listener lives");
        let hello = caller.hello.clone();
        let welcome = AmWelcome {
            epoch: Epoch(7),
            spec: Box::new(spec()),
            containers,
            state: vec![],
            beat_ms: 200,
            stop: None,
        };
        let (tx, rx) = caller.accept(welcome);
        (hello, tx, rx)
    }

    async fn end(self) -> String {
        self.shutdown.begin();
        self.serving.await.expect("no panic").expect("served");
        self.address.to_string()
    }
}

/// The first item that `wanted` takes; beats and status reports pass by.
async fn next<T>(rx: &mut Rx<FromAm>, wanted: impl Fn(FromAm) -> Option<T>) -> T {
    timeout(SOON, async {
        loop {
            let item = rx.recv().await.expect("the session lives");
            if let Some(found) = wanted(item) {
                return found;
            }
        }
    })
    .await
    .expect("it comes in time")
}

fn ask(item: FromAm) -> Option<Ask> {
    if let FromAm::Ask(ask) = item { Some(ask) } else { None }
}

fn placed(ask: &Ask, container: ContainerId, state: ContainerState) -> PlacedContainer {
    let report = ContainerReport {
        id: container,
        app: "app".into(),
        job: spec().job,
        role: Role::Worker { request: ask.request },
        resource: ask.resource,
        state,
        pid: Some(1),
        started_unix_ms: None,
        ended_unix_ms: None,
    };
    PlacedContainer { report, node: "n".into(), hosts: vec!["127.0.0.1".into()], rack: "r1".into() }
}

async fn connect(
    address: &str,
    container: ContainerId,
    slot: u32,
) -> Result<Dialled<ContainerWelcome, FromContainer, ToContainer>, proto::DialError> {
    let link = proto::connect(address, None).await?;
    let hello = ContainerHello {
        app: "app".into(),
        container,
        slot,
        status: ContainerStatus::default(),
        model: None,
        tells_metrics: true,
    };
    proto::dial_container(&link, hello).await
}

fn master(memory: &Memory, rm: String, shutdown: Shutdown) -> JoinHandle<anyhow::Result<i32>> {
    let settings = Settings {
        app: "app".into(),
        attempt: 1,
        container: id(1),
        spec: spec(),
        rm,
        node_host: "127.0.0.1".into(),
        token_file: None,
    };
    let owner = OwnerRecord::of_app_master(&spec().job, id(1).0);
    let writer = Writer { job: spec().job, attempt: 1, owner };
    tokio::spawn(serve_job(settings, writer, Box::new(memory.clone()), shutdown))
}

fn with_input() -> Memory {
    let memory = Memory::default();
    let topic = NewTopic { topic: "in".into(), partitions: 4, replication: 1, config: BTreeMap::new() };
    memory.create(&[topic]).expect("created");
    memory
}

/// Answers both asks and returns their containers, running.
async fn run_both(tx: &Tx<ToAm>, rx: &mut Rx<FromAm>) -> Vec<(Ask, ContainerId)> {
    let mut running = Vec::new();
    for seq in 10..12 {
        let ask = next(rx, ask).await;
        for state in [ContainerState::Allocated, ContainerState::Running] {
            tx.send(ToAm::Container(placed(&ask, id(seq), state))).expect("the session lives");
        }
        running.push((ask, id(seq)));
    }
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_registers_asks_near_leaders_welcomes_its_containers_and_stops_the_job() {
    let memory = with_input();
    let mut rm = ResourceManager::on("127.0.0.1:0").await;
    let master = master(&memory, rm.address.to_string(), Shutdown::new());
    let (hello, tx, mut rx) = rm.accept(vec![]).await;
    assert_eq!((hello.attempt, hello.asks.len()), (1, 0), "a first Hello asks for nothing");

    let running = run_both(&tx, &mut rx).await;
    assert!(running.iter().all(|(a, _)| a.preferences[0].reason.starts_with("leader of")), "{running:?}");
    let mut sessions = Vec::new();
    for (ask, container) in &running {
        let dialled = connect(&hello.address, *container, ask.request.slot).await.expect("welcome");
        assert_eq!(dialled.welcome.model.tasks.len(), 2);
        sessions.push(dialled);
    }
    let status = ContainerStatus { processed: 77, ..ContainerStatus::default() };
    sessions[0].tx.send(FromContainer::Status(status)).expect("the session lives");
    assert_eq!(timeout(SOON, sessions[0].rx.recv()).await.expect("in time"), Some(ToContainer::StatusAck));
    let told = |item| {
        if let FromAm::Status(s) = item {
            s.slots.iter().find(|s| s.status.processed == 77).cloned()
        } else {
            None
        }
    };
    assert_eq!(next(&mut rx, told).await.on_preferred, Some(true));

    tx.send(ToAm::Stop(StopJob { kill: false })).expect("the session lives");
    for (ask, container) in &running {
        let stop = |item| {
            if let FromAm::Stop { container, grace_ms, .. } = item {
                Some((container, grace_ms))
            } else {
                None
            }
        };
        let (stopped, grace_ms) = next(&mut rx, stop).await;
        assert_eq!((stopped, grace_ms), (*container, 30_000));
        let exit = ContainerState::Exited { exit: ExitCause::KilledByUser };
        tx.send(ToAm::Container(placed(ask, *container, exit))).expect("the session lives");
    }
    let nonce =
        next(&mut rx, |item| if let FromAm::Mint { nonce } = item { Some(nonce) } else { None }).await;
    tx.send(ToAm::Minted { nonce, incarnation: id(50).0 }).expect("the session lives");
    let outcome = next(&mut rx, |item| if let FromAm::Finish(o) = item { Some(o) } else { None }).await;
    assert_eq!(outcome, JobOutcome::Finished);
    drop((tx, rx));
    let caller = timeout(SOON, rm.callers.recv()).await.expect("it dials again").expect("the listener lives");
    caller.refuse("app is already over".into());
    assert_eq!(timeout(SOON, master).await.expect("in time").expect("no panic").expect("no error"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_for_its_input_and_comes_back_to_a_restarted_resource_manager_with_its_asks() {
    let memory = Memory::default();
    let mut rm = ResourceManager::on("127.0.0.1:0").await;
    let shutdown = Shutdown::new();
    let master = master(&memory, rm.address.to_string(), shutdown.clone());
    let (hello, tx, mut rx) = rm.accept(vec![]).await;
    let waiting = |item| {
        if let FromAm::Status(s) = item {
            s.message.contains("waiting for input topic in").then_some(())
        } else {
            None
        }
    };
    next(&mut rx, waiting).await;
    let topic = NewTopic { topic: "in".into(), partitions: 4, replication: 1, config: BTreeMap::new() };
    memory.create(&[topic]).expect("created");
    let first = [next(&mut rx, ask).await, next(&mut rx, ask).await];

    drop((tx, rx));
    let address = rm.end().await;
    let mut rm = ResourceManager::on(&address).await;
    let one = placed(&first[0], id(10), ContainerState::Running);
    let (again, tx, mut rx) = rm.accept(vec![one]).await;
    assert_eq!(
        again.asks.iter().map(|a| a.request).collect::<Vec<_>>(),
        first.iter().map(|a| a.request).collect::<Vec<_>>()
    );
    let open = next(&mut rx, ask).await;
    assert_eq!(open.request, first[1].request, "only what has no container is asked for again");

    // A container that dials before the master has heard of it is kept waiting, not sent away.
    let early = tokio::spawn(async move { connect(&hello.address, id(11), 1).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!early.is_finished());
    tx.send(ToAm::Container(placed(&open, id(11), ContainerState::Running))).expect("the session lives");
    let dialled = timeout(SOON, early).await.expect("in time").expect("no panic").expect("welcome");
    assert_eq!(dialled.welcome.attempt, 1);

    shutdown.begin();
    assert_eq!(timeout(SOON, master).await.expect("in time").expect("no panic").expect("no error"), 143);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_a_newer_one_fenced_exits_with_its_own_code() {
    let memory = with_input();
    let mut rm = ResourceManager::on("127.0.0.1:0").await;
    let master = master(&memory, rm.address.to_string(), Shutdown::new());
    let (_, tx, mut rx) = rm.accept(vec![]).await;
    let asks = [next(&mut rx, ask).await, next(&mut rx, ask).await];
    memory.fence("j-1-am-7-1").expect("registered");
    tx.send(ToAm::Container(placed(&asks[0], id(10), ContainerState::Running))).expect("the session lives");
    let code = timeout(SOON, master).await.expect("in time").expect("no panic").expect("no error");
    assert_eq!(code, types::EXIT_FENCED);
}

/// Answers the next question for metrics on a container's session with two parts.
async fn tell_metrics(session: &mut Dialled<ContainerWelcome, FromContainer, ToContainer>, value: u64) {
    loop {
        let asked = timeout(SOON, session.rx.recv()).await.expect("in time").expect("the session lives");
        let ToContainer::AskMetrics { nonce } = asked else { continue };
        let head = "# TYPE samza_commits_total counter\n".to_owned();
        for (text, last) in [(head, false), (format!("samza_commits_total {value}\n"), true)] {
            session.tx.send(FromContainer::Metrics { nonce, text, last }).expect("the session lives");
        }
        return;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_of_all_containers_are_on_one_page_over_either_version_of_http() {
    let memory = with_input();
    let mut rm = ResourceManager::on("127.0.0.1:0").await;
    let shutdown = Shutdown::new();
    let master = master(&memory, rm.address.to_string(), shutdown.clone());
    let (hello, tx, mut rx) = rm.accept(vec![]).await;
    let mut sessions = Vec::new();
    for (ask, container) in run_both(&tx, &mut rx).await {
        sessions.push(connect(&hello.address, container, ask.request.slot).await.expect("welcome"));
    }
    let [first, second] = &mut sessions[..] else { panic!("two containers") };
    let link = proto::connect(&hello.address, None).await.expect("it listens");
    let (page, (), ()) =
        tokio::join!(proto::read_page(&link, "/metrics"), tell_metrics(first, 3), tell_metrics(second, 4));
    let page = page.expect("the page");
    for (slot, value) in [(0, 3), (1, 4)] {
        let of_slot = format!("samza_commits_total{{samza_job=\"j-1\",slot=\"{slot}\",container=");
        let line = page.lines().find(|line| line.starts_with(&of_slot)).unwrap_or_else(|| panic!("{page}"));
        assert!(line.ends_with(&format!(" {value}")), "{line}");
    }

    // A container that does not answer holds nobody up for long; scrapers speak HTTP/1.1.
    let (page, ()) = tokio::join!(http_1(&hello.address), tell_metrics(first, 5));
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("samza_container_up{samza_job=\"j-1\",slot=\"0\"} 1"), "{page}");
    assert!(page.contains("samza_container_up{samza_job=\"j-1\",slot=\"1\"} 0"), "{page}");
    shutdown.begin();
    assert_eq!(timeout(SOON, master).await.expect("in time").expect("no panic").expect("no error"), 143);
}

async fn http_1(address: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.expect("in time").expect("read");
    answer
}
