//! The sole owner of the core: takes what comes in, calls the verb, runs the commands, reports the job's status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc as blocking;
use std::time::Duration;

use am_core::{AmCore, Command, HelloAnswer, Phase};
use daemon::Shutdown;
use proto::{DialError, Dialled, Incoming, Link, Token, Tx};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use types::{
    AmHello, AmWelcome, ContainerHello, ContainerId, ContainerState, ContainerWelcome, EXIT_FENCED, FromAm,
    FromContainer, JobStatus, Role, Timestamp, ToAm, ToContainer,
};

use crate::kafka_side::{Answer, Request};
use crate::metrics::{self, Looks};
use crate::settings::Settings;

/// Hands a session's items to the inbox until it is over.
macro_rules! forward {
    ($rx:expr, $inbox:expr, $item:expr, $gone:expr) => {{
        let (mut rx, inbox) = ($rx, $inbox);
        tokio::spawn(async move {
            while let Some(item) = rx.recv().await {
                if inbox.send($item(item)).await.is_err() {
                    return;
                }
            }
            let reason = rx.reason();
            let _ = inbox.send($gone(reason)).await;
        });
    }};
}

/// A container's session, before it was answered.
pub type Caller = Incoming<ContainerHello, ContainerWelcome, ToContainer, FromContainer>;
type RmDialled = Dialled<AmWelcome, FromAm, ToAm>;

/// What comes in.
pub enum Input {
    /// From Kafka.
    Kafka(Answer),
    /// A dial to the resource manager ended.
    Dialled(Box<Result<RmDialled, DialError>>),
    /// It said something.
    FromRm {
        /// On this session.
        session: u64,
        /// This.
        item: ToAm,
    },
    /// The session is over.
    RmGone {
        /// Which.
        session: u64,
        /// Why.
        reason: String,
    },
    /// A container dials.
    Caller(Box<Caller>),
    /// One said something.
    FromContainer {
        /// Which.
        container: ContainerId,
        /// On this session.
        session: u64,
        /// This.
        item: FromContainer,
    },
    /// Its session is over.
    ContainerGone {
        /// Which.
        container: ContainerId,
        /// The session.
        session: u64,
    },
    /// Somebody wants to see the job's metrics.
    Look(oneshot::Sender<String>),
}

/// A container whose Hello cannot be answered yet waits so long.
const HOLD: Duration = Duration::from_secs(30);
/// A refusal by the resource manager is final when it lasted so long: an older attempt must not linger.
const REFUSED_FOR: Duration = Duration::from_secs(20);
/// Waits between dials.
const DIAL_MIN: Duration = Duration::from_millis(50);
const DIAL_MAX: Duration = Duration::from_secs(1);
/// The status goes out at most, and at least, so often.
const STATUS_MIN: Duration = Duration::from_millis(250);
const STATUS_MAX: Duration = Duration::from_secs(2);
/// The inputs are looked at again so often: for their places, and for partitions and topics that came or went. A
/// request or three for metadata.
const TOPOLOGY_EVERY: Duration = Duration::from_secs(10);
/// Containers report so often, ms.
const CONTAINER_BEAT_MS: u64 = 500;
/// This process ends so long after the job's end at the latest.
const LINGER: Duration = Duration::from_secs(30);
/// SIGTERM.
const TERM: i32 = 15;

struct RmSession {
    number: u64,
    tx: Tx<FromAm>,
    beat: Duration,
    next_beat: Instant,
    since: Instant,
}

struct ContainerSession {
    number: u64,
    tx: Tx<ToContainer>,
    tells_metrics: bool,
}

/// The driver.
pub struct Driver {
    core: AmCore,
    settings: Settings,
    address: String,
    token: Option<Token>,
    inbox: mpsc::Receiver<Input>,
    to_inbox: mpsc::Sender<Input>,
    kafka: blocking::Sender<Request>,
    rm: Option<RmSession>,
    dialling: bool,
    dial_at: Instant,
    dial_wait: Duration,
    refused_since: Option<Instant>,
    containers: BTreeMap<ContainerId, ContainerSession>,
    looks: Looks<oneshot::Sender<String>>,
    held: Vec<(Box<Caller>, Instant)>,
    sessions: u64,
    told: (JobStatus, Instant),
    topology_at: Instant,
    /// Since when the job is over. The resource manager ends the session when it has heard of it, and refuses the
    /// next: that is the answer.
    over_since: Option<Instant>,
    exit: Option<i32>,
}

/// The ends of the channels a driver works with.
pub struct Channels {
    /// What comes in.
    pub inbox: mpsc::Receiver<Input>,
    /// For those that the driver starts.
    pub to_inbox: mpsc::Sender<Input>,
    /// To the Kafka thread.
    pub kafka: blocking::Sender<Request>,
}

fn now() -> Timestamp {
    Timestamp(daemon::boottime_ms())
}

impl Driver {
    /// A driver that has done nothing yet.
    #[must_use]
    pub fn new(
        core: AmCore,
        settings: Settings,
        address: String,
        token: Option<Token>,
        channels: Channels,
    ) -> Driver {
        let start = Instant::now();
        Driver {
            core,
            settings,
            address,
            token,
            inbox: channels.inbox,
            to_inbox: channels.to_inbox,
            kafka: channels.kafka,
            rm: None,
            dialling: false,
            dial_at: start,
            dial_wait: DIAL_MIN,
            refused_since: None,
            containers: BTreeMap::new(),
            looks: Looks::default(),
            held: Vec::new(),
            sessions: 0,
            told: (JobStatus::default(), start),
            topology_at: start + TOPOLOGY_EVERY,
            over_since: None,
            exit: None,
        }
    }

    /// Runs until the job is over, this master is not the right one any more, or it is told to end. Returns the
    /// exit code.
    pub async fn run(mut self, shutdown: Shutdown) -> i32 {
        self.verb(|core, _, out| core.start(out));
        loop {
            self.housekeeping();
            if let Some(code) = self.exit {
                return code;
            }
            let wake = self.wake_at();
            tokio::select! {
                biased;
                () = shutdown.wait() => {
                    let signal = shutdown.signal().unwrap_or(TERM);
                    tracing::info!(signal, "told to end; containers run on");
                    return 128 + signal;
                }
                input = self.inbox.recv() => {
                    let Some(input) = input else { return 1 };
                    self.take(input);
                    // Whatever has come in meanwhile is older than any deadline: a pause must make nobody silent.
                    while let Ok(input) = self.inbox.try_recv() {
                        self.take(input);
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Calls a verb and runs what it wants done.
    fn verb(&mut self, verb: impl FnOnce(&mut AmCore, Timestamp, &mut Vec<Command>)) {
        let mut out = Vec::new();
        verb(&mut self.core, now(), &mut out);
        if cfg!(debug_assertions)
            && let Err(violation) = self.core.check()
        {
            tracing::error!(%violation);
        }
        for command in out {
            self.run_command(command);
        }
    }

    fn wake_at(&self) -> Instant {
        let mut wake = Instant::now() + STATUS_MIN;
        if let Some(due) = self.core.next_deadline() {
            wake = wake.min(Instant::now() + Duration::from_millis(due.since(now())));
        }
        if let Some(due) = self.looks.next_deadline_ms() {
            wake = wake.min(Instant::now() + Duration::from_millis(due.saturating_sub(now().0)));
        }
        match &self.rm {
            Some(rm) => wake.min(rm.next_beat),
            None if !self.dialling => wake.min(self.dial_at),
            None => wake,
        }
    }

    fn housekeeping(&mut self) {
        if self.core.next_deadline().is_some_and(|due| due <= now()) {
            self.verb(AmCore::handle_deadline);
        }
        self.answer_held();
        self.answer_looks();
        let at = Instant::now();
        if self.rm.is_none() && !self.dialling && self.dial_at <= at {
            self.dial();
        }
        if let Some(rm) = self.rm.as_mut().filter(|rm| rm.next_beat <= at) {
            rm.next_beat = at + rm.beat;
            let _ = rm.tx.send(FromAm::Beat { sent_at_ms: now().0 });
        }
        if self.topology_at <= at {
            self.topology_at = at + TOPOLOGY_EVERY;
            self.run_command(Command::ReadTopology);
        }
        self.report_status(at);
        if self.over_since.is_some_and(|since| at >= since + LINGER) {
            self.exit = Some(0);
        }
    }

    fn report_status(&mut self, at: Instant) {
        let age = at.duration_since(self.told.1);
        if self.rm.is_none() || age < STATUS_MIN {
            return;
        }
        let status = self.core.job_status(now());
        if status == self.told.0 && age < STATUS_MAX {
            return;
        }
        if status.message != self.told.0.message {
            tracing::info!(status = status.message);
        }
        for warning in status.warnings.iter().filter(|warning| !self.told.0.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        self.to_rm(FromAm::Status(Box::new(status.clone())));
        self.told = (status, at);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Kafka(Answer::Event(event)) => self.verb(|core, now, out| core.apply(now, event, out)),
            Input::Kafka(Answer::Fenced(why)) => {
                tracing::error!(why, "fenced: a newer application master has taken over");
                self.exit = Some(EXIT_FENCED);
            }
            Input::Kafka(Answer::Broken(why)) => {
                tracing::error!(why, "ending, so that another attempt reads what was written");
                self.exit = Some(1);
            }
            Input::Dialled(result) => self.dialled(*result),
            Input::FromRm { session, item } => self.rm_said(session, item),
            Input::RmGone { session, reason } => {
                if self.rm.as_ref().is_some_and(|rm| rm.number == session) {
                    tracing::warn!(
                        reason,
                        "the session with the resource manager is over; containers run on"
                    );
                    self.rm = None;
                    self.dial_at = Instant::now() + DIAL_MIN;
                    self.core.session_lost();
                }
            }
            Input::Caller(caller) => self.held.push((caller, Instant::now() + HOLD)),
            Input::FromContainer { container, session, item } => {
                self.container_said(container, session, item);
            }
            Input::ContainerGone { container, session } => {
                if self.containers.get(&container).is_some_and(|of| of.number == session) {
                    self.containers.remove(&container);
                    self.looks.gone(container);
                    self.core.container_gone(container);
                }
            }
            Input::Look(answer) => self.look(answer),
        }
    }

    // ------------------------------------------------------------ the resource manager

    fn dial(&mut self) {
        self.dialling = true;
        let hello = AmHello {
            app: self.settings.app.clone(),
            attempt: self.settings.attempt,
            container: self.settings.container,
            address: self.address.clone(),
            asks: self.core.open_asks(now()),
        };
        let (to, token, inbox) = (self.settings.rm.clone(), self.token.clone(), self.to_inbox.clone());
        tokio::spawn(async move {
            let result = dial_rm(&to, token.as_ref(), hello).await;
            let _ = inbox.send(Input::Dialled(Box::new(result))).await;
        });
    }

    fn dialled(&mut self, result: Result<RmDialled, DialError>) {
        self.dialling = false;
        let dialled = match result {
            Ok(dialled) => dialled,
            Err(error) => return self.dial_failed(&error),
        };
        (self.dial_wait, self.refused_since) = (DIAL_MIN, None);
        self.sessions += 1;
        let (number, to_inbox) = (self.sessions, self.to_inbox.clone());
        let Dialled { welcome, tx, rx } = dialled;
        let beat = Duration::from_millis(welcome.beat_ms.max(50));
        self.rm = Some(RmSession { number, tx, beat, next_beat: Instant::now(), since: Instant::now() });
        tracing::info!(epoch = welcome.epoch.0, containers = welcome.containers.len(), "registered");
        forward!(rx, to_inbox, |item| Input::FromRm { session: number, item }, |reason| Input::RmGone {
            session: number,
            reason
        });
        self.verb(|core, now, out| core.welcome(now, welcome, out));
    }

    fn dial_failed(&mut self, error: &DialError) {
        let at = Instant::now();
        if let DialError::Refused(reason) = error {
            let since = *self.refused_since.get_or_insert(at);
            if self.over_since.is_some() {
                tracing::info!("the resource manager knows that the job is over");
                self.exit = Some(0);
                return;
            }
            if at.duration_since(since) >= REFUSED_FOR {
                tracing::error!(reason, "the resource manager does not want this attempt");
                self.exit = Some(EXIT_FENCED);
            }
        } else {
            self.refused_since = None;
        }
        tracing::warn!(%error, "the resource manager cannot be reached");
        self.dial_at = at + self.dial_wait;
        self.dial_wait = (self.dial_wait * 2).min(DIAL_MAX);
    }

    fn rm_said(&mut self, session: u64, item: ToAm) {
        if self.rm.as_ref().is_none_or(|rm| rm.number != session) {
            return;
        }
        match item {
            ToAm::BeatAck { .. } => {}
            ToAm::Container(placed) => {
                if let (Role::Worker { request }, ContainerState::Running) =
                    (placed.report.role, &placed.report.state)
                {
                    tracing::info!(%request, node = %placed.node, "running");
                }
                self.verb(|core, now, out| core.container(now, placed, out));
            }
            ToAm::Waiting { request, reasons } => self.core.waiting(request, reasons),
            ToAm::Minted { nonce, incarnation } => {
                self.verb(|core, now, out| core.minted(now, nonce, incarnation, out));
            }
            ToAm::State(state) => self.verb(|core, now, out| core.node_state(now, state, out)),
            ToAm::Leave { container, within_ms } => {
                self.verb(|core, _, out| core.leave(container, within_ms, out));
            }
            ToAm::Hold { slots, for_ms } => {
                tracing::info!(?slots, for_ms, "a user has slots held");
                self.verb(|core, now, out| core.hold(now, &slots, for_ms, out));
            }
            ToAm::Stop(stop) => self.verb(|core, now, out| core.stop(now, stop, out)),
        }
    }

    fn to_rm(&self, item: FromAm) {
        if let Some(rm) = &self.rm {
            // A session that just ended is found out by its reader; the next welcome repeats what holds.
            let _ = rm.tx.send(item);
        }
    }

    // ------------------------------------------------------------ containers

    fn answer_held(&mut self) {
        for (caller, until) in std::mem::take(&mut self.held) {
            let (id, tells_metrics) = (caller.hello.container, caller.hello.tells_metrics);
            match self.core.container_hello(now(), &caller.hello) {
                Ok(HelloAnswer::Model(model)) => {
                    self.sessions += 1;
                    let session = self.sessions;
                    let attempt = self.settings.attempt;
                    let (tx, rx) =
                        caller.accept(ContainerWelcome { attempt, model, beat_ms: CONTAINER_BEAT_MS });
                    let of = ContainerSession { number: session, tx, tells_metrics };
                    if self.containers.insert(id, of).is_some() {
                        self.looks.gone(id);
                    }
                    tracing::info!(container = %id, "connected");
                    forward!(
                        rx,
                        self.to_inbox.clone(),
                        |item| Input::FromContainer { container: id, session, item },
                        |_: String| Input::ContainerGone { container: id, session }
                    );
                }
                Ok(HelloAnswer::Wait) if Instant::now() < until => self.held.push((caller, until)),
                Ok(HelloAnswer::Wait) if self.knows_all() => {
                    tracing::warn!(container = %id, "refused: the resource manager never spoke of it");
                    caller.refuse(format!("{id} is not known to this application master"));
                }
                Ok(HelloAnswer::Wait) => caller.not_now("the application master is not ready".into()),
                Err(denied) => {
                    tracing::warn!(container = %id, %denied, "refused");
                    caller.refuse(denied.to_string());
                }
            }
        }
    }

    fn container_said(&mut self, container: ContainerId, session: u64, item: FromContainer) {
        let Some(of) = self.containers.get(&container).filter(|of| of.number == session) else { return };
        match item {
            FromContainer::Status(status) => {
                let _ = of.tx.send(ToContainer::StatusAck);
                self.core.container_status(now(), container, status);
            }
            FromContainer::Metrics { nonce, text, last } => self.looks.told(container, nonce, &text, last),
        }
    }

    /// Asks every container for its metrics.
    fn look(&mut self, answer: oneshot::Sender<String>) {
        let tells = self.containers.iter().filter(|(_, of)| of.tells_metrics);
        let asked: BTreeSet<ContainerId> = tells.clone().map(|(id, _)| *id).collect();
        let nonce = self.looks.begin(now().0, asked, answer);
        for (_, of) in tells {
            // A session that just ended is found out by its reader, which ends the waiting for it.
            let _ = of.tx.send(ToContainer::AskMetrics { nonce });
        }
    }

    fn answer_looks(&mut self) {
        for (answer, told) in self.looks.take_done(now().0) {
            let page = metrics::page(&self.settings.spec.job, &self.core.job_status(now()), &told);
            // Whoever asked may be gone.
            let _ = answer.send(page);
        }
    }

    /// Whether the resource manager has had time to speak of every container.
    fn knows_all(&self) -> bool {
        *self.core.phase() == Phase::Running && self.rm.as_ref().is_some_and(|rm| rm.since.elapsed() >= HOLD)
    }

    // ------------------------------------------------------------ commands

    fn run_command(&mut self, command: Command) {
        match command {
            Command::Ask(ask) => {
                tracing::info!(request = %ask.request, "asked");
                self.to_rm(FromAm::Ask(*ask));
            }
            Command::CancelAsk(request) => self.to_rm(FromAm::CancelAsk(request)),
            Command::Stop { container, grace_ms, cause } => {
                tracing::info!(%container, grace_ms, %cause, "stopping");
                self.to_rm(FromAm::Stop { container, grace_ms, cause });
            }
            Command::AckExit(container) => self.to_rm(FromAm::AckExit(container)),
            Command::Mint { nonce } => self.to_rm(FromAm::Mint { nonce }),
            Command::Finish(outcome) => {
                tracing::info!(?outcome, "the job is over");
                self.over_since.get_or_insert_with(Instant::now);
                self.told.1 = Instant::now();
                self.told.0 = self.core.job_status(now());
                self.to_rm(FromAm::Status(Box::new(self.told.0.clone())));
                self.to_rm(FromAm::Finish(outcome));
            }
            Command::ReadFacts => self.ask_kafka(Request::ReadFacts),
            Command::Prepare(plan) => self.ask_kafka(Request::Prepare(plan)),
            Command::ReadTopology => self.ask_kafka(Request::ReadTopology),
            Command::ReadOwners { slot, container, partitions } => {
                self.ask_kafka(Request::ReadOwners { slot, container, partitions });
            }
            Command::Fence { incarnation, partitions } => {
                self.ask_kafka(Request::Fence { incarnation, partitions })
            }
            Command::Remember { slot, place } => self.ask_kafka(Request::Remember(vec![(slot, place)])),
            Command::AnswerContainer { .. } => {}
            Command::MoveMe(reason) => {
                tracing::error!(reason, "ending, so that another attempt runs elsewhere");
                self.exit = Some(1);
            }
        }
    }

    fn ask_kafka(&mut self, request: Request) {
        if self.kafka.send(request).is_err() {
            tracing::error!("the Kafka thread has ended");
            self.exit = Some(1);
        }
    }
}

async fn dial_rm(to: &str, token: Option<&Token>, hello: AmHello) -> Result<RmDialled, DialError> {
    let link: Link = proto::connect(to, token).await?;
    proto::dial_app_master(&link, hello).await
}
