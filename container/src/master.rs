//! The session to the application master: gets the model, reports status, hears `Shutdown`; also the process's
//! signals. It has a thread of its own with a small runtime; the task threads never wait for it. A container that
//! has its model works on without a master, for as long as it takes.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use daemon::Shutdown;
use proto::{DialError, Token};
use task_api::metrics::MetricsRegistry;
use tracing::{debug, info, warn};
use types::{ContainerHello, ContainerModel, FromContainer, ToContainer};

use crate::board::{Board, Told};
use crate::end::TERM;
use crate::environment::Environment;
use crate::exposition;

/// Between attempts to reach the master: from here, doubling, to a second.
const BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// How often the address file is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a container without a model asks masters that refuse it.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// What the session's thread tells the main thread, once.
type First = Result<Option<ContainerModel>, String>;

/// The running session.
pub(crate) struct Session {
    first: mpsc::Receiver<First>,
    end: tokio::sync::watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl Session {
    /// Waits for the container's tasks; none if it was told to stop before it had any.
    pub(crate) fn model(&self) -> First {
        self.first.recv().unwrap_or_else(|_| Err("the session's thread is gone".into()))
    }
    /// Sends the last status and ends.
    pub(crate) fn finish(self) {
        // No receiver: the thread is over already.
        let _ = self.end.send(true);
        let start = Instant::now();
        while !self.thread.is_finished() && start.elapsed() < Duration::from_millis(500) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Starts the thread.
pub(crate) fn start(
    environment: Environment,
    board: Arc<Board>,
    metrics: MetricsRegistry,
) -> std::io::Result<Session> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tell, first) = mpsc::channel();
    let (end, ended) = tokio::sync::watch::channel(false);
    let thread = std::thread::Builder::new().name("session".into()).spawn(move || {
        runtime.block_on(async {
            // It ends with the runtime.
            tokio::spawn(exposition::serve(metrics.clone(), Shutdown::new()));
            let board_of = Arc::clone(&board);
            let dialler = Dialler { environment, board: board_of, metrics, tell, attempt: 0, model: None };
            tokio::join!(stop_on_signal(board, ended.clone()), dialler.run(ended));
        });
    })?;
    Ok(Session { first, end, thread })
}

async fn stop_on_signal(board: Arc<Board>, mut ended: tokio::sync::watch::Receiver<bool>) {
    let shutdown = Shutdown::on_signals();
    tokio::select! {
        () = shutdown.wait() => {
            let signal = shutdown.signal().unwrap_or(TERM);
            info!(signal, "told to stop by a signal: committing");
            board.stop(Told::Signal(signal));
        }
        _ = ended.wait_for(|ended| *ended) => {}
    }
}

struct Dialler {
    environment: Environment,
    board: Arc<Board>,
    metrics: MetricsRegistry,
    tell: mpsc::Sender<First>,
    /// The highest attempt of a master that was talked to; a lower one is refused.
    attempt: u32,
    model: Option<ContainerModel>,
}

impl Dialler {
    async fn run(mut self, mut ended: tokio::sync::watch::Receiver<bool>) {
        let mut backoff = BACKOFF;
        let mut refused_since: Option<Instant> = None;
        loop {
            if self.board.is_stopping() && self.model.is_none() {
                let _ = self.tell.send(Ok(None));
                return;
            }
            if *ended.borrow() {
                return;
            }
            let known = read_address(&self.environment.address_file);
            if let Some((attempt, address)) = &known
                && *attempt >= self.attempt
            {
                match self.session(address, known.clone(), &mut ended).await {
                    Ok(()) => backoff = BACKOFF,
                    Err(error) => {
                        let refused = matches!(error.downcast_ref(), Some(DialError::Refused(_)));
                        refused_since = if refused { refused_since.or(Some(Instant::now())) } else { None };
                        let too_long = refused_since.is_some_and(|since| since.elapsed() > REFUSED_FOR);
                        if too_long && self.model.is_none() {
                            let _ = self.tell.send(Err(format!("the application master refuses: {error:#}")));
                            return;
                        }
                        debug!(address, "no session with the application master: {error:#}");
                    }
                }
            }
            self.pause(backoff, &known, &mut ended).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Waits, but not longer than until the address changes or the container ends.
    async fn pause(
        &self,
        how_long: Duration,
        known: &Option<(u32, String)>,
        ended: &mut tokio::sync::watch::Receiver<bool>,
    ) {
        let start = Instant::now();
        while start.elapsed() < how_long && !*ended.borrow() {
            if read_address(&self.environment.address_file) != *known {
                return;
            }
            let _ = tokio::time::timeout(LOOK.min(how_long), ended.wait_for(|ended| *ended)).await;
        }
    }

    /// What the container says first: who it is, what it does, what it works on.
    fn hello(&self) -> ContainerHello {
        ContainerHello {
            app: self.environment.app.clone(),
            container: self.environment.container,
            slot: self.environment.slot,
            status: self.board.status(),
            model: self.model.clone(),
            tells_metrics: true,
        }
    }

    /// One session, from dialling to its end.
    async fn session(
        &mut self,
        address: &str,
        known: Option<(u32, String)>,
        ended: &mut tokio::sync::watch::Receiver<bool>,
    ) -> Result<()> {
        let token = match &self.environment.token_file {
            Some(file) => Some(Token::load(file).with_context(|| format!("token {}", file.display()))?),
            None => None,
        };
        let link = proto::connect(address, token.as_ref()).await?;
        let proto::Dialled { welcome, tx, mut rx } = proto::dial_container(&link, self.hello()).await?;
        if welcome.attempt < self.attempt {
            anyhow::bail!("attempt {} answers, but {} was talked to already", welcome.attempt, self.attempt);
        }
        self.attempt = welcome.attempt;
        info!(
            address,
            attempt = welcome.attempt,
            tasks = welcome.model.tasks.len(),
            "session with the application master"
        );
        self.take_model(welcome.model);
        let mut beat = tokio::time::interval(Duration::from_millis(welcome.beat_ms.max(10)));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK * 4);
        loop {
            tokio::select! {
                item = rx.recv() => match item {
                    Some(ToContainer::StatusAck) => {}
                    Some(ToContainer::Shutdown) => {
                        info!("told to stop by the application master: committing");
                        self.board.stop(Told::Master);
                    }
                    Some(ToContainer::AskMetrics { nonce }) => {
                        for part in exposition::parts(nonce, &self.metrics.render()) {
                            if tx.send(part).is_err() {
                                return Ok(());
                            }
                        }
                    }
                    None => {
                        warn!(reason = rx.reason(), "the session with the application master is over");
                        return Ok(());
                    }
                },
                _ = beat.tick() => {
                    if tx.send(FromContainer::Status(self.board.status())).is_err() {
                        return Ok(());
                    }
                }
                _ = look.tick() => {
                    let now = read_address(&self.environment.address_file);
                    if now != known && now.as_ref().is_some_and(|(attempt, _)| *attempt >= self.attempt) {
                        info!("the application master has another address");
                        return Ok(());
                    }
                }
                _ = ended.wait_for(|ended| *ended) => {
                    // Best effort: the exit code says it as well.
                    let _ = tx.send(FromContainer::Status(self.board.status()));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    return Ok(());
                }
            }
        }
    }

    fn take_model(&mut self, model: ContainerModel) {
        match &self.model {
            None => {
                self.model = Some(model.clone());
                // The main thread may be gone if the process is ending.
                let _ = self.tell.send(Ok(Some(model)));
            }
            Some(mine) if *mine != model => {
                // The master restarts it for them, when it is its turn.
                info!(
                    "its slot has other tasks or inputs now; a container's never change, so it keeps its own"
                );
            }
            Some(_) => {}
        }
    }
}

/// `attempt host:port`.
fn read_address(file: &Path) -> Option<(u32, String)> {
    let text = std::fs::read_to_string(file).ok()?;
    let (attempt, address) = text.trim().split_once(' ')?;
    Some((attempt.parse().ok()?, address.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::sync::mpsc as channel;
    use types::{ContainerPhase, ContainerStatus, ContainerWelcome, TaskModel};

    use super::*;

    type Incoming = proto::Incoming<ContainerHello, ContainerWelcome, ToContainer, FromContainer>;

    #[test]
    fn an_address_is_read_with_its_attempt_and_a_torn_one_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("am");
        assert_eq!(read_address(&file), None);
        for (text, address) in [
            ("2 127.0.0.1:4711\n", Some((2, "127.0.0.1:4711".to_owned()))),
            ("", None),
            ("127.0.0.1:4711\n", None),
        ] {
            std::fs::write(&file, text).expect("writable");
            assert_eq!(read_address(&file), address);
        }
    }

    /// A master that answers every Hello as `attempt`; the file names it.
    struct Master {
        hellos: channel::Receiver<Incoming>,
        serving: tokio::task::JoinHandle<()>,
    }

    impl Master {
        async fn start(attempt: u32, file: &Path) -> Master {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let address = listener.local_addr().expect("bound");
            let (to, hellos) = channel::channel(8);
            let routes = tonic::service::Routes::new(proto::container_service(to));
            let serving = tokio::spawn(async move {
                let served = daemon::serve_grpc(listener, routes, None, Shutdown::new()).await;
                served.expect("serves");
            });
            std::fs::write(file, format!("{attempt} {address}\n")).expect("writable");
            Master { hellos, serving }
        }
        async fn hello(&mut self) -> Incoming {
            let hello = tokio::time::timeout(Duration::from_secs(20), self.hellos.recv());
            hello.await.expect("a container dials within 20 s").expect("it serves")
        }
    }

    fn environment(file: PathBuf) -> Environment {
        Environment {
            app: "application_1_1".into(),
            container: "container_1_000007".parse().expect("an id"),
            slot: 3,
            state: PathBuf::new(),
            memory_bytes: 0,
            address_file: file,
            token_file: None,
            rack: String::new(),
            job: Arc::new(crate::tests::job(types::Delivery::ExactlyOnce, true)),
        }
    }

    fn welcome(attempt: u32, task: &str) -> ContainerWelcome {
        let task =
            TaskModel { name: task.into(), inputs: Vec::new(), changelog_partition: 0, added: Vec::new() };
        ContainerWelcome { attempt, model: ContainerModel { tasks: vec![task] }, beat_ms: 20 }
    }

    #[test]
    fn a_container_gets_its_tasks_reports_follows_its_master_and_stops_when_told() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("am");
        let board = Arc::new(Board::default());
        let metrics = MetricsRegistry::default();
        let session = start(environment(file.clone()), Arc::clone(&board), metrics.clone()).expect("starts");
        runtime.expect("a runtime").block_on(async {
            let mut first = Master::start(1, &file).await;
            let incoming = first.hello().await;
            assert_eq!(
                (incoming.hello.slot, incoming.hello.container.to_string().as_str()),
                (3, "container_1_000007")
            );
            let (_tx, mut rx) = incoming.accept(welcome(1, "Partition 1"));
            let model = session.model().expect("welcome").expect("not stopped");
            assert_eq!(model.tasks[0].name.0, "Partition 1");
            board.begin(&model, 1);
            board.phase(0, ContainerPhase::Running);
            loop {
                let Some(FromContainer::Status(ContainerStatus { phase, tasks, .. })) = rx.recv().await
                else {
                    panic!("the session is over: {}", rx.reason())
                };
                if phase == ContainerPhase::Running {
                    assert_eq!(tasks[0].task.0, "Partition 1");
                    break;
                }
            }
            // The master dies; the next one has another address, and hears what the container has.
            first.serving.abort();
            drop((first, _tx, rx));
            let mut second = Master::start(2, &file).await;
            let incoming = second.hello().await;
            assert_eq!(incoming.hello.status.tasks.len(), 1);
            let (tx, mut rx) = incoming.accept(welcome(2, "another"));
            assert!(rx.recv().await.is_some());
            assert!(!board.is_stopping());
            metrics.with_labels(&[]).counter("answers").add(42);
            tx.send(ToContainer::AskMetrics { nonce: 9 }).expect("the session is open");
            loop {
                if let Some(FromContainer::Metrics { nonce, text, last }) = rx.recv().await {
                    assert_eq!((nonce, last), (9, true));
                    assert!(text.contains("answers 42"), "{text}");
                    break;
                }
            }
            tx.send(ToContainer::Shutdown).expect("the session is open");
            while !board.is_stopping() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        session.finish();
    }
}
