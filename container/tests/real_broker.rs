//! Job processes against a real Kafka, with a master that is played by the test: SIGKILL at any moment, SIGTERM,
//! and old containers that stop at each step of their start and wake up after a successor.
//!
//! The brokers are those of SAMZA_TEST_KAFKA, or one that is started for these tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use kafka::{KafkaAdmin, KafkaProducer};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use task_api::system::{Isolation, NewTopic, SystemAdmin, SystemProducer, TopicPartition};
use task_core::record::{self, Record};
use tokio::sync::mpsc;
use types::{
    ContainerHello, ContainerModel, ContainerPhase, ContainerStatus, ContainerWelcome, ContainersSpec,
    Delivery, ErrorsSpec, FromContainer, Grouper, JobId, JobSpec, JobTopics, OffsetDefault, OnExhausted,
    OnLeaseLoss, PackageSpec, PlacementSpec, Resource, RestartSpec, Spread, StoreSpec, StreamSpec,
    SystemKind, SystemSpec, SystemStream, SystemStreamPartition, TaskModel, TaskSpec, ToContainer,
};

const PARTITIONS: i32 = 2;
const PATIENCE: Duration = Duration::from_secs(60);

// ---------------------------------------------------------------- brokers

struct Brokers {
    bootstrap: String,
    /// Of brokers that these tests started.
    data: Option<tempfile::TempDir>,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kafka/kafka.sh")
}

/// One for all tests that run now.
fn brokers() -> Arc<Brokers> {
    static SHARED: Mutex<Weak<Brokers>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(brokers) = shared.upgrade() {
        return brokers;
    }
    let brokers = Arc::new(match std::env::var("SAMZA_TEST_KAFKA") {
        Ok(bootstrap) => Brokers { bootstrap, data: None },
        Err(_) => {
            let data = tempfile::tempdir().expect("a folder");
            let mut start = Command::new(script());
            start.args(["start", "--port", "0", "--data"]).arg(data.path());
            assert!(start.stdout(Stdio::null()).status().expect("kafka.sh runs").success());
            let bootstrap = std::fs::read_to_string(data.path().join("bootstrap")).expect("started");
            Brokers { bootstrap: bootstrap.trim().to_owned(), data: Some(data) }
        }
    });
    *shared = Arc::downgrade(&brokers);
    brokers
}

impl Drop for Brokers {
    fn drop(&mut self) {
        if let Some(data) = &self.data {
            let stopped = Command::new(script()).args(["stop", "--data"]).arg(data.path()).status();
            assert!(stopped.is_ok_and(|status| status.success()), "cannot stop the broker");
        }
    }
}

// ---------------------------------------------------------------- a job

struct Job {
    spec: JobSpec,
    brokers: Arc<Brokers>,
    admin: KafkaAdmin,
    folder: tempfile::TempDir,
}

type Rows = Vec<(String, String)>;

impl Job {
    fn new(name: &str, delivery: Delivery) -> Job {
        let brokers = brokers();
        let admin = KafkaAdmin::new(&brokers.bootstrap, &BTreeMap::new()).expect("an admin");
        let folder = tempfile::tempdir().expect("a folder");
        // Names of topics must not meet those of an earlier run on the same brokers.
        let name = format!("{name}-{}", std::process::id());
        let job = Job { spec: spec(&name, &brokers.bootstrap, delivery), brokers, admin, folder };
        let compacted = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
        let topic = |topic: String, config: &BTreeMap<String, String>| NewTopic {
            topic,
            partitions: PARTITIONS,
            replication: 1,
            config: config.clone(),
        };
        let none = BTreeMap::new();
        job.admin
            .create(&[
                topic(job.topic("in"), &none),
                topic(job.topic("out"), &none),
                topic(job.topic("changelog"), &compacted),
                topic(job.checkpoints(), &compacted),
            ])
            .expect("topics are made");
        job
    }

    fn topic(&self, what: &str) -> String {
        format!("{}-{what}", self.spec.job.name)
    }
    fn checkpoints(&self) -> String {
        JobTopics::of(&self.spec.job).checkpoint
    }

    /// Appends `count` messages with a few hundred keys.
    fn feed(&self, from: usize, count: usize) {
        let mut producer =
            KafkaProducer::idempotent(&self.brokers.bootstrap, "feed", &BTreeMap::new()).expect("a producer");
        let topic = producer.topic(&self.topic("in")).expect("a topic");
        for n in from..from + count {
            let key = format!("k{}", (n * n + n / 3) % 307);
            producer
                .send(topic, Some(n as i32 % PARTITIONS), Some(key.as_bytes()), Some(b"x"))
                .expect("sends");
        }
        producer.flush(PATIENCE).expect("flushes");
    }

    fn rows(&self, topic: &str, partition: i32) -> Vec<(u64, Vec<u8>, Option<Vec<u8>>)> {
        let at = TopicPartition { topic: topic.to_owned(), partition };
        let ends = self.admin.watermarks(std::slice::from_ref(&at)).expect("watermarks");
        let mut rows = Vec::new();
        let mut take = |messages: &[task_api::system::Message<'_>]| {
            for m in messages {
                rows.push((m.offset, m.key.unwrap_or_default().to_vec(), m.value.map(<[u8]>::to_vec)));
            }
            Ok(())
        };
        self.admin.read_range(&at, 0, ends[0].high, Isolation::ReadCommitted, &mut take).expect("reads");
        rows
    }

    fn texts(&self, topic: &str) -> Rows {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (0..PARTITIONS)
            .flat_map(|partition| self.rows(topic, partition))
            .map(|(_, key, value)| (text(key), text(value.unwrap_or_default())))
            .collect()
    }

    /// What the job must have sent: per task, each key's counts in order. A key goes to one output partition, but
    /// both tasks may count it, so rows are compared sorted.
    fn expected(&self) -> Rows {
        let mut rows = Rows::new();
        for partition in 0..PARTITIONS {
            let mut counts: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            for (_, key, _) in self.rows(&self.topic("in"), partition) {
                let count = counts.entry(key.clone()).or_default();
                *count += 1;
                rows.push((String::from_utf8(key).expect("text"), count.to_string()));
            }
        }
        rows.sort();
        rows
    }

    fn outputs(&self) -> Rows {
        let mut rows = self.texts(&self.topic("out"));
        rows.sort();
        rows
    }

    fn wait_for_outputs(&self, enough: usize) {
        let start = Instant::now();
        while self.outputs().len() < enough {
            assert!(
                start.elapsed() < PATIENCE,
                "{} of {enough} outputs after a minute",
                self.outputs().len()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn assert_exact(&self) {
        assert_eq!(self.outputs(), self.expected());
        for partition in 0..PARTITIONS {
            let mut counts: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
            for (_, key, _) in self.rows(&self.topic("in"), partition) {
                *counts.entry(key).or_default() += 1;
            }
            let mut folded = BTreeMap::new();
            for (_, key, value) in self.rows(&self.topic("changelog"), partition) {
                let value = value.expect("nothing is deleted").try_into().expect("eight bytes");
                folded.insert(key, i64::from_be_bytes(value));
            }
            assert_eq!(folded, counts, "changelog of partition {partition}");
        }
        self.assert_no_late_commits();
    }

    /// No committed checkpoint of an incarnation at or beyond the watermarks that a higher one restored to.
    fn assert_no_late_commits(&self) {
        for partition in 0..PARTITIONS {
            let checkpoints: Vec<_> = self
                .rows(&self.checkpoints(), partition)
                .into_iter()
                .filter_map(|(offset, key, value)| match record::decode(Some(&key), value.as_deref()) {
                    Some(Record::Checkpoint(_, checkpoint)) => Some((offset, checkpoint)),
                    Some(Record::Owner(_) | Record::OwnerGone(_)) | None => None,
                })
                .collect();
            for (_, newer) in &checkpoints {
                let Some(restored) = &newer.restored else { continue };
                for (offset, older) in checkpoints.iter().filter(|(_, c)| c.incarnation < newer.incarnation) {
                    assert!(*offset < restored.checkpoint, "{older:?} at {offset} is beyond {restored:?}");
                }
            }
        }
    }
}

fn spec(name: &str, bootstrap: &str, delivery: Delivery) -> JobSpec {
    let resource = Resource { memory_bytes: 256 << 20, cpu_millis: 100 };
    let stream = |what: &str| {
        let topic = format!("{name}-{what}");
        let offset_default = OffsetDefault::Oldest;
        (format!("kafka.{what}"), StreamSpec { topic, offset_default, ..StreamSpec::default_for(what) })
    };
    JobSpec {
        job: JobId { name: name.into(), id: "1".into() },
        queue: "default".into(),
        priority: 0,
        app_master: resource,
        package: PackageSpec { source: String::new(), artefact: None, command: vec![], env: BTreeMap::new() },
        containers: ContainersSpec { count: 1, resource, threads: 1 },
        task: TaskSpec {
            inputs: vec!["kafka.in".into()],
            window_ms: None,
            commit_ms: 100,
            delivery,
            grouper: Grouper::Partition,
            timers: false,
            concurrency: 16,
            config: BTreeMap::from([("output".to_owned(), "kafka.out".to_owned())]),
        },
        systems: BTreeMap::from([(
            "kafka".to_owned(),
            SystemSpec {
                kind: SystemKind::Kafka,
                bootstrap: bootstrap.to_owned(),
                consumer: BTreeMap::new(),
                producer: BTreeMap::new(),
                replication: None,
                path: None,
            },
        )]),
        streams: BTreeMap::from([stream("in"), stream("out")]),
        stores: BTreeMap::from([(
            "counts".to_owned(),
            StoreSpec {
                cache_rows: 100_000,
                ..StoreSpec::with_changelog(Some(format!("{name}-changelog")), "kafka")
            },
        )]),
        placement: PlacementSpec {
            wait_ms: 0,
            rack_wait_ms: 0,
            host_affinity: false,
            on_lease_loss: OnLeaseLoss::Keep,
            labels: BTreeMap::new(),
            spread: Spread::None,
        },
        errors: ErrorsSpec::default(),
        restart: RestartSpec {
            retries: 0,
            window_ms: 0,
            backoff_min_ms: 0,
            backoff_max_ms: 0,
            on_exhausted: OnExhausted::Fail,
        },
    }
}

fn model() -> ContainerModel {
    let task = |n| TaskModel {
        name: format!("Partition {n}").as_str().into(),
        inputs: vec![SystemStreamPartition {
            stream: SystemStream { system: "kafka".into(), stream: "in".into() },
            partition: n,
        }],
        changelog_partition: n,
    };
    ContainerModel { tasks: (0..PARTITIONS).map(task).collect() }
}

// ---------------------------------------------------------------- a master

/// Welcomes every container with the same tasks and keeps what each says last.
struct Master {
    address: String,
    statuses: Arc<Mutex<BTreeMap<String, ContainerStatus>>>,
    _runtime: tokio::runtime::Runtime,
}

type Incoming = proto::Incoming<ContainerHello, ContainerWelcome, ToContainer, FromContainer>;

impl Master {
    fn start() -> Master {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let statuses = Arc::new(Mutex::new(BTreeMap::new()));
        let kept = Arc::clone(&statuses);
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let address = listener.local_addr().expect("bound").to_string();
            let (to, hellos) = mpsc::channel(8);
            let routes = tonic::service::Routes::new(proto::container_service(to));
            tokio::spawn(daemon::serve_grpc(listener, routes, None, daemon::Shutdown::new()));
            tokio::spawn(welcome_all(hellos, kept));
            address
        });
        Master { address, statuses, _runtime: runtime }
    }

    fn status(&self, container: &Container) -> Option<ContainerStatus> {
        self.statuses.lock().expect("no panic").get(&container.id).cloned()
    }

    fn wait(
        &self,
        container: &Container,
        what: &str,
        is: impl Fn(&ContainerStatus) -> bool,
    ) -> ContainerStatus {
        let start = Instant::now();
        loop {
            let status = self.status(container);
            if let Some(status) = status.as_ref().filter(|status| is(status)) {
                return status.clone();
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{} is not {what}: {status:?}\n{}",
                container.id,
                container.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn welcome_all(
    mut hellos: mpsc::Receiver<Incoming>,
    statuses: Arc<Mutex<BTreeMap<String, ContainerStatus>>>,
) {
    while let Some(incoming) = hellos.recv().await {
        let id = incoming.hello.container.to_string();
        let (tx, mut rx) = incoming.accept(ContainerWelcome { attempt: 1, model: model(), beat_ms: 50 });
        let statuses = Arc::clone(&statuses);
        tokio::spawn(async move {
            let _open = tx;
            while let Some(FromContainer::Status(status)) = rx.recv().await {
                statuses.lock().expect("no panic").insert(id.clone(), status);
            }
        });
    }
}

// ---------------------------------------------------------------- containers

struct Container {
    id: String,
    process: Child,
    log: PathBuf,
}

impl Container {
    fn start(job: &Job, master: &Master, seq: u64, state: &str, pause_at: Option<&str>) -> Container {
        let id = format!("container_1_{seq:06}");
        let work = job.folder.path().join(&id);
        std::fs::create_dir_all(&work).expect("a folder");
        let file = |name: &str, text: &str| {
            std::fs::write(work.join(name), text).expect("writable");
            work.join(name)
        };
        let log = work.join("stderr");
        let mut command = Command::new(example("counter"));
        command
            .current_dir(&work)
            .env("SAMZA_APP_ID", "application_1_1")
            .env("SAMZA_CONTAINER_ID", &id)
            .env("SAMZA_SLOT", "0")
            .env("SAMZA_STATE_DIR", job.folder.path().join(state))
            .env("SAMZA_MEMORY_BYTES", (256u64 << 20).to_string())
            .env("SAMZA_JOB_FILE", file("job.json", &serde_json::to_string(&job.spec).expect("a job")))
            .env("SAMZA_AM_ADDRESS_FILE", file("am", &format!("1 {}\n", master.address)))
            .env("RUST_LOG", "info,samza=debug")
            .stderr(std::fs::File::create(&log).expect("a log"));
        if let Some(phase) = pause_at {
            command.env("SAMZA_TEST_PAUSE_AT", phase);
        }
        Container { id, process: command.spawn().expect("the example is built"), log }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it is a child of this test");
    }

    /// Waits until it has stopped itself.
    fn wait_until_stopped(&self) {
        let start = Instant::now();
        loop {
            let state =
                std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("it lives");
            if state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{} does not stop itself:\n{}", self.id, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(mut self) {
        self.signal(Signal::KILL);
        self.process.wait().expect("a child");
    }

    fn exit_code(mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("a child") {
                return status.code().unwrap_or_else(|| panic!("{status}:\n{}", self.log()));
            }
            assert!(start.elapsed() < PATIENCE, "{} does not end:\n{}", self.id, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Only if a test failed; an exited child is no longer there to be killed.
        if self.process.try_wait().is_ok_and(|over| over.is_none()) {
            let _ = self.process.kill();
            let _ = waitpid(Some(self.pid()), WaitOptions::empty());
        }
    }
}

/// An example beside this test's executable.
fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("a path");
    path.pop();
    path.pop();
    path.join("examples").join(name)
}

fn is_running(status: &ContainerStatus) -> bool {
    status.phase == ContainerPhase::Running
}

// ---------------------------------------------------------------- tests

#[test]
fn exactly_once_is_exact_when_the_process_is_killed_again_and_again() {
    let (job, master) = (Job::new("kills", Delivery::ExactlyOnce), Master::start());
    let mut seq = 0;
    for round in 0..5 {
        job.feed(round * 4_000, 4_000);
        seq += 1;
        let container = Container::start(&job, &master, seq, "state", None);
        master.wait(&container, "processing", |status| status.processed > 500);
        // At another point of the commit interval each time.
        std::thread::sleep(Duration::from_millis(37 * round as u64));
        container.kill();
    }
    seq += 1;
    let last = Container::start(&job, &master, seq, "state", None);
    job.wait_for_outputs(20_000);
    last.signal(Signal::TERM);
    assert_eq!(last.exit_code(), 0);
    job.assert_exact();
}

#[test]
fn sigterm_commits_and_the_restart_reads_nothing_again() {
    let (job, master) = (Job::new("term", Delivery::AtLeastOnce), Master::start());
    job.feed(0, 5_000);
    let first = Container::start(&job, &master, 1, "state", None);
    master.wait(&first, "done", |status| status.processed == 5_000);
    first.signal(Signal::TERM);
    assert_eq!(first.exit_code(), 0);
    let second = Container::start(&job, &master, 2, "state", None);
    let status = master.wait(&second, "running", is_running);
    for task in &status.tasks {
        let restore = task.restore.as_ref().expect("it has a store");
        assert!(restore.from_local && restore.rows == 0, "{restore:?}");
    }
    job.feed(5_000, 100);
    let status = master.wait(&second, "at the end", |status| status.processed >= 100);
    assert_eq!(status.processed, 100);
    second.signal(Signal::TERM);
    assert_eq!(second.exit_code(), 0);
    job.assert_exact();
    // Elsewhere, the whole changelog is read.
    let third = Container::start(&job, &master, 3, "another-state", None);
    let status = master.wait(&third, "running", is_running);
    for task in &status.tasks {
        let restore = task.restore.as_ref().expect("it has a store");
        assert!(!restore.from_local && restore.rows > 0 && restore.done == restore.total, "{restore:?}");
    }
    third.signal(Signal::TERM);
    assert_eq!(third.exit_code(), 0);
}

#[test]
fn an_old_container_that_sleeps_at_any_step_wakes_up_fenced_or_leaves_no_trace() {
    let (job, master) = (Job::new("sleepers", Delivery::ExactlyOnce), Master::start());
    let mut fed = 0;
    let mut seq = 0;
    for phase in
        ["init", "read", "append", "read-back", "watermarks", "restore", "run", "commit", "committed"]
    {
        job.feed(fed, 1_000);
        fed += 1_000;
        let old = Container::start(&job, &master, seq + 1, &format!("old-{phase}"), Some(phase));
        old.wait_until_stopped();
        let new = Container::start(&job, &master, seq + 2, "state", None);
        master.wait(&new, "running", is_running);
        job.wait_for_outputs(fed);
        old.signal(Signal::CONT);
        // Past its start order it learns of its fate when it has something to commit.
        job.feed(fed, 20);
        fed += 20;
        let log = old.log.clone();
        let code = old.exit_code();
        let log = std::fs::read_to_string(log).unwrap_or_default();
        assert_eq!(code, types::EXIT_FENCED, "paused at {phase}:\n{log}");
        job.wait_for_outputs(fed);
        new.signal(Signal::TERM);
        assert_eq!(new.exit_code(), 0);
        seq += 2;
    }
    job.assert_exact();
}
