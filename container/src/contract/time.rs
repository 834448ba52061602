//! Time inside a batch: commits, stops, windows and timers come when they are due, whatever one message costs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use task_api::store::StoreError;
use task_api::{KeyValueStore, StringSerde, TaskError};

use super::*;
use crate::board::Told;
use crate::end::Over;
use crate::fake::Idle;

pub(super) type Init = Box<dyn FnMut(&mut TaskContext) -> TaskResult>;
pub(super) type Method<Of> = Option<Box<dyn FnMut(Of) -> TaskResult>>;

/// A task of which only what a test is about is written down.
#[derive(Default)]
pub(super) struct Plain {
    pub(super) init: Option<Init>,
    /// Gets the message's value.
    pub(super) process: Method<String>,
    pub(super) window: Method<()>,
    /// Gets the timer's key.
    pub(super) timer: Method<Vec<u8>>,
}

impl StreamTask for Plain {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.init.as_mut().map_or(Ok(()), |init| init(context))
    }
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        let value = text(envelope.value);
        self.process.as_mut().map_or(Ok(()), |process| process(value))
    }
    fn window(&mut self, _: &mut dyn MessageCollector, _: &mut TaskCoordinator) -> TaskResult {
        self.window.as_mut().map_or(Ok(()), |window| window(()))
    }
    fn timer(
        &mut self,
        key: &[u8],
        _: u64,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        self.timer.as_mut().map_or(Ok(()), |timer| timer(key.to_vec()))
    }
}

/// A job on one partition, its broker, a time, and a way to run it.
pub(super) struct Stage {
    pub(super) job: JobSpec,
    pub(super) broker: Broker,
    pub(super) time: Arc<SetTime>,
    story: Story,
    pub(super) state: tempfile::TempDir,
    tasks: i32,
}

impl Stage {
    pub(super) fn new(tasks: i32, extra: &str) -> Stage {
        let job = job(extra);
        let broker = broker(&job, &["in", "out"], tasks);
        let (time, story, state) = (SetTime::at(1_000_000), Story::default(), folder());
        Stage { job, broker, time, story, state, tasks }
    }
    fn commits(&self) -> impl Fn() -> usize + 'static {
        let (broker, job, tasks) = (self.broker.clone(), self.job.clone(), self.tasks);
        move || (0..tasks).map(|task| checkpoints(&broker, &job, task).len()).sum()
    }
    pub(super) fn life(&self, seq: u64) -> Life<'_> {
        let clock = Clock::Set(Arc::clone(&self.time));
        Life {
            seq,
            clock,
            ..Life::new(&self.broker, &self.job, model(self.tasks, &["in"], &[]), self.state.path())
        }
    }
    fn tell(&self) -> impl Fn(String) + Clone + Send + Sync + 'static {
        let story = Arc::clone(&self.story);
        move |what| story.lock().expect("no teller panics").push(what)
    }
}

#[test]
fn a_commit_comes_when_it_is_due_and_not_when_the_batch_is_over() {
    let stage = Stage::new(1, "task = { inputs = [\"kafka.in\"], commit = \"1s\" }");
    fill(&stage.broker, "in", 0, &TEN);
    let (tell, time, commits) = (stage.tell(), Arc::clone(&stage.time), Arc::new(stage.commits()));
    let factory = move || {
        let (tell, time, commits) = (tell.clone(), Arc::clone(&time), Arc::clone(&commits));
        let process = move |value: String| {
            tell(format!("{value} after {} commits", commits()));
            time.advance(500);
            Ok(())
        };
        Plain { process: Some(Box::new(process)), ..Plain::default() }
    };
    stage.life(1).live(factory).expect("it ends in order");
    // The first commit is that of the start.
    let expected: Vec<String> = (0..10).map(|n| format!("{n} after {} commits", 1 + n / 2)).collect();
    // The system hands over three at a time.
    assert_eq!(told(&stage.story), expected);
    assert_eq!(stage.commits()(), 6);
}

#[test]
fn a_stop_is_seen_before_the_next_message_and_is_told_as_what_it_is() {
    let stage = Stage::new(1, "task = { inputs = [\"kafka.in\"] }");
    fill(&stage.broker, "in", 0, &TEN);
    let board = Arc::new(Board::default());
    let system = FakeSystem::new(&stage.broker, None, None, None);
    let shared = shared(&stage.job, 1, stage.state.path(), &system, &board);
    let (tell, stopped) = (stage.tell(), Arc::clone(&board));
    let factory = move || {
        let (tell, board) = (tell.clone(), Arc::clone(&stopped));
        let process = move |value: String| {
            let is_fifth = value == "4";
            tell(value);
            if is_fifth {
                board.stop(Told::Signal(15));
            }
            Ok(())
        };
        Plain { process: Some(Box::new(process)), ..Plain::default() }
    };
    let over = run_threads(&shared, &model(1, &["in"], &[]), &factory).expect("it ends in order");
    assert_eq!(told(&stage.story), ["0", "1", "2", "3", "4"]);
    assert_eq!((over, over.exit_code(board.told())), (Over::Told, 143));
}

#[test]
fn a_timer_that_is_set_to_now_whenever_it_goes_off_stops_nobody() {
    let stage = Stage::new(1, "task = { inputs = [\"kafka.in\"], timers = true }");
    fill(&stage.broker, "in", 0, &TEN);
    let (tell, time) = (stage.tell(), Arc::clone(&stage.time));
    let factory = move || {
        let timers: Rc<RefCell<Option<Timers>>> = Rc::default();
        let (tell, time) = (tell.clone(), Arc::clone(&time));
        let (of_init, of_timer) = (Rc::clone(&timers), timers);
        let again = move |key: Vec<u8>| {
            of_timer.borrow().as_ref().expect("init ran").set(&key, time.now())?;
            Ok(())
        };
        let process = move |value: String| {
            tell(value);
            Ok(())
        };
        let init = move |context: &mut TaskContext| {
            let timers = context.timers()?;
            timers.set(b"again", 0)?;
            *of_init.borrow_mut() = Some(timers);
            Ok(())
        };
        Plain {
            init: Some(Box::new(init)),
            process: Some(Box::new(process)),
            timer: Some(Box::new(again)),
            ..Plain::default()
        }
    };
    stage.life(1).live(factory).expect("it ends in order");
    assert_eq!(told(&stage.story), TEN);
}

/// Sets as many timers as its message says, all due; each of them takes 10 ms.
struct Backlog {
    timers: Option<Timers>,
    time: Arc<SetTime>,
    went_off: Cell<usize>,
    tell: Box<dyn Fn(String)>,
}

impl StreamTask for Backlog {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.timers = Some(context.timers()?);
        Ok(())
    }
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        let value = text(envelope.value);
        (self.tell)(format!("{value} after {} timers", self.went_off.get()));
        for n in 0..value.parse().unwrap_or(0_u64) {
            self.timers.as_ref().expect("init ran").set(&n.to_be_bytes(), n)?;
        }
        Ok(())
    }
    fn timer(
        &mut self,
        _: &[u8],
        _: u64,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        self.went_off.set(self.went_off.get() + 1);
        if self.went_off.get().is_multiple_of(1_000) {
            (self.tell)(format!("{} timers", self.went_off.get()));
        }
        self.time.advance(10);
        Ok(())
    }
}

#[test]
fn many_due_timers_are_worked_through_with_commits_and_messages_in_between() {
    let stage = Stage::new(1, "task = { inputs = [\"kafka.in\"], timers = true, commit = \"1s\" }");
    fill(&stage.broker, "in", 0, &["3000", "a", "b", "c", "d", "e", "f"]);
    let (tell, time) = (stage.tell(), Arc::clone(&stage.time));
    stage
        .life(1)
        .live(move || Backlog {
            timers: None,
            time: Arc::clone(&time),
            went_off: Cell::new(0),
            tell: Box::new(tell.clone()),
        })
        .expect("it ends in order");
    let told = told(&stage.story);
    let last_message = told.iter().position(|line| line.starts_with('f')).expect("all are processed");
    let first_thousand = told.iter().position(|line| line == "1000 timers");
    assert!(first_thousand.is_none_or(|at| last_message < at), "messages wait for no backlog: {told:?}");
    let commits = stage.commits()();
    assert!(commits >= 3, "{commits} commits");
}

#[test]
fn a_commit_comes_between_the_windows_of_two_tasks() {
    let stage = Stage::new(2, "task = { inputs = [\"kafka.in\"], window = \"1s\", commit = \"1s\" }");
    (0..2).for_each(|partition| fill(&stage.broker, "in", partition, &["x"]));
    let (tell, time) = (stage.tell(), Arc::clone(&stage.time));
    let broker = (stage.broker.clone(), JobTopics::of(&stage.job.job).checkpoint);
    let factory = move || {
        let (tell, time, broker) = (tell.clone(), Arc::clone(&time), broker.clone());
        let of_window = Arc::clone(&time);
        let process = move |_: String| {
            // Now a window is due, and the commit with it.
            time.advance(1_000);
            Ok(())
        };
        let window = move |()| {
            let ends = (0..2).map(|partition| broker.0.committed(&broker.1, partition).len()).sum::<usize>();
            tell(format!("window at {ends} rows"));
            of_window.advance(1_500);
            Ok(())
        };
        Plain { process: Some(Box::new(process)), window: Some(Box::new(window)), ..Plain::default() }
    };
    stage.life(1).live(factory).expect("it ends in order");
    let told = told(&stage.story);
    assert!(told.len() >= 2 && told[0] != told[1], "nothing was committed between two windows: {told:?}");
}

/// The store of a task that reads what it wrote before, and makes nothing of an error.
struct Careless {
    store: Option<KeyValueStore<String, String>>,
    writes: bool,
}

impl StreamTask for Careless {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.store = Some(context.store("rows", StringSerde, StringSerde)?);
        Ok(())
    }
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        let store = self.store.as_mut().expect("init ran");
        if self.writes {
            store.put(&"k".to_owned(), &"short".to_owned())?;
            return Ok(());
        }
        let known = store.get(&"k".to_owned()).unwrap_or(None);
        collector.send(OutgoingMessage::new(
            "kafka.out",
            envelope.key,
            Some(known.is_none().to_string().as_bytes()),
        ))
    }
}

#[test]
fn nothing_is_committed_after_an_error_of_a_store_whatever_the_task_makes_of_it() {
    let text =
        "task = { inputs = [\"kafka.in\"], delivery = \"exactly-once\" }\nstores.rows = { changelog = true";
    let mut stage = Stage::new(1, &format!("{text} }}"));
    let careless = |writes| move || Careless { store: None, writes };
    fill(&stage.broker, "in", 0, &["a"]);
    stage.life(1).live(careless(true)).expect("it ends in order");
    let commits = stage.commits()();
    // Its rows have no times: a store with a ttl cannot read them.
    stage.job = job(&format!("{text}, ttl = \"1h\" }}"));
    fill(&stage.broker, "in", 0, &["b"]);
    let Err(End::Failed(why)) = stage.life(2).live(careless(false)) else { panic!("it went on") };
    assert!(why.contains("no time of its write"), "{why}");
    assert_eq!(stage.commits()(), commits, "{why}");
    assert_eq!(values(&stage.broker, "out"), Vec::<String>::new());
}

#[test]
fn a_call_that_writes_more_than_memory_holds_is_told_so_before_the_kernel_ends_it() {
    let text = "task = { inputs = [\"kafka.in\"] }\nstores.rows = { changelog = true, cache-rows = 1000 }";
    let stage = Stage::new(1, text);
    fill(&stage.broker, "in", 0, &["x"]);
    let written = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&written);
    struct Floods(Option<KeyValueStore<String, String>>, Arc<AtomicU64>);
    impl StreamTask for Floods {
        fn init(&mut self, context: &mut TaskContext) -> TaskResult {
            self.0 = Some(context.store("rows", StringSerde, StringSerde)?);
            Ok(())
        }
        fn process(
            &mut self,
            _: &IncomingMessageEnvelope<'_>,
            _: &mut dyn MessageCollector,
            _: &mut TaskCoordinator,
        ) -> TaskResult {
            for n in 0..1_000_000 {
                let error = self.0.as_mut().expect("init ran").put(&format!("row {n}"), &"x".to_owned());
                if matches!(error, Err(StoreError::TooMuchAtOnce { .. })) {
                    // A task that makes nothing of it gets no further.
                    return Ok(());
                }
                error.map_err(TaskError::from)?;
                self.1.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    }
    let ended = stage.life(1).live(move || Floods(None, Arc::clone(&counted)));
    let Err(End::Failed(why)) = ended else { panic!("it went on") };
    assert!(why.contains("one call wrote more") && why.contains("write in parts"), "{why}");
    let written = written.load(Ordering::Relaxed);
    assert!((10_000..900_000).contains(&written), "{written} rows of memory for 64 MiB");
    assert_eq!(stage.commits()(), 1, "nothing but the start is committed");
}

/// Asynchronous, with everything that may be due.
struct Everything {
    timers: Option<Timers>,
    tell: Box<dyn Fn(String)>,
}

impl AsyncStreamTask for Everything {
    type Reply = String;

    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        self.timers = Some(context.timers()?);
        Ok(())
    }
    fn call(&mut self, message: &OwnedMessage) -> Reply<String> {
        let value = text(message.value.as_deref());
        Box::pin(async move { Ok(value) })
    }
    fn process(
        &mut self,
        _: &OwnedMessage,
        reply: String,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        self.timers.as_ref().expect("init ran").set(reply.as_bytes(), 1)?;
        (self.tell)(reply);
        Ok(())
    }
    fn timer(
        &mut self,
        key: &[u8],
        _: u64,
        _: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        (self.tell)(format!("timer {}", text(Some(key))));
        Ok(())
    }
    fn end_of_stream(&mut self, _: &mut dyn MessageCollector, _: &mut TaskCoordinator) -> TaskResult {
        (self.tell)("end".to_owned());
        Ok(())
    }
}

#[test]
fn an_asynchronous_task_has_timers_and_an_end_of_stream_after_its_calls() {
    let stage = Stage::new(1, "task = { inputs = [\"kafka.in\"], timers = true }");
    fill(&stage.broker, "in", 0, &["a", "b"]);
    let runtime = tokio::runtime::Runtime::new().expect("tokio starts");
    let (handle, tell) = (runtime.handle().clone(), stage.tell());
    let factory = move || {
        let task = Everything { timers: None, tell: Box::new(tell.clone()) };
        InOrder::new(task, OnRuntime::new(handle.clone()))
    };
    let (story, since) = (Arc::clone(&stage.story), Instant::now());
    let timers_went_off = move || story.lock().expect("no teller panics").len() >= 4;
    let until_then = move || match timers_went_off() || since.elapsed() > Duration::from_secs(60) {
        true => Idle::Ends,
        false => Idle::GoesOn,
    };
    let system = FakeSystem::asking(&stage.broker, Box::new(until_then));
    let shared = shared(&stage.job, 1, stage.state.path(), &system, &Arc::new(Board::default()));
    let over = run_threads(&shared, &model(1, &["in"], &[]), &factory).expect("it ends by itself");
    assert_eq!(over, Over::Inputs);
    let mut told = told(&stage.story);
    assert_eq!(told.pop().as_deref(), Some("end"));
    let of_timers = told.iter().filter(|line| line.starts_with("timer"));
    assert_eq!(of_timers.collect::<Vec<_>>(), ["timer a", "timer b"]);
    let of_calls = told.iter().filter(|line| !line.starts_with("timer"));
    assert_eq!(of_calls.collect::<Vec<_>>(), ["a", "b"]);
}
