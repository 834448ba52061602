//! The numbers that the runtime tells of itself, by a time that is set.

use std::cell::RefCell;
use std::rc::Rc;

use super::time::{Plain, Stage};
use super::*;
use crate::fake::{Idle, Whole};
use crate::meters::TURN_MS;

/// The value of the metric that begins so.
fn value(metrics: &MetricsRegistry, beginning: &str) -> f64 {
    let text = metrics.render();
    let line = text.lines().find(|line| line.starts_with(beginning));
    let value = line.and_then(|line| line.rsplit_once(' ')).and_then(|(_, value)| value.parse().ok());
    value.unwrap_or_else(|| panic!("{beginning} is not in\n{text}"))
}

/// To within what a summary keeps.
fn is_about(metrics: &MetricsRegistry, beginning: &str, seconds: f64) {
    let found = value(metrics, beginning);
    assert!((found - seconds).abs() <= seconds / 16.0, "{beginning} is {found} and not about {seconds}");
}

fn of_task(name: &str, more: &str) -> String {
    format!("{name}{{task=\"Partition 0\"{more}}}")
}

const P50: &str = ",quantile=\"0.5\"";
const P99: &str = ",quantile=\"0.99\"";

#[test]
fn the_time_of_messages_is_told_by_task_and_that_of_threads_by_what_they_do() {
    let stage = Stage::new(1, "task = { inputs = [\"kafka.in\"], commit = \"1h\" }");
    fill(&stage.broker, "in", 0, &TEN);
    let (metrics, time) = (MetricsRegistry::default(), Arc::clone(&stage.time));
    let factory = move || {
        let time = Arc::clone(&time);
        let process = move |value: String| {
            time.advance(if value == "9" { 400 } else { 4 });
            Ok(())
        };
        Plain { process: Some(Box::new(process)), ..Plain::default() }
    };
    // The system hands over three at a time: the last one comes alone.
    Life { metrics: metrics.clone(), ..stage.life(1) }.live(factory).expect("it ends in order");
    let process = "samza_task_process_seconds";
    is_about(&metrics, &of_task(process, P50), 0.004);
    is_about(&metrics, &of_task(process, P99), 0.4);
    assert_eq!(value(&metrics, &of_task(&format!("{process}_sum"), "")), 0.436);
    assert_eq!(value(&metrics, &of_task(&format!("{process}_count"), "")), 10.0);
    let state = |state| format!("samza_thread_seconds_total{{thread=\"0\",state=\"{state}\"}}");
    assert_eq!(value(&metrics, &state("process")), 0.436);
    // No other time went by.
    assert_eq!((value(&metrics, &state("poll")), value(&metrics, &state("other"))), (0.0, 0.0));
    assert!(value(&metrics, "samza_commit_seconds_count{thread=\"0\"}") >= 1.0);
    assert!(!metrics.render().contains("samza_task_window_seconds"), "the job has no windows");
}

#[test]
fn the_time_of_windows_and_timers_is_told_and_old_quantiles_are_forgotten() {
    let stage = Stage::new(1, "task = { inputs = [\"kafka.in\"], window = \"1s\", timers = true }");
    fill(&stage.broker, "in", 0, &["go", "later"]);
    let (metrics, time) = (MetricsRegistry::default(), Arc::clone(&stage.time));
    let factory = move || {
        let timers: Rc<RefCell<Option<task_api::Timers>>> = Rc::default();
        let of_init = Rc::clone(&timers);
        let times = [(); 3].map(|()| Arc::clone(&time));
        let [of_process, of_window, of_timer] = times;
        let init = move |context: &mut TaskContext| {
            *of_init.borrow_mut() = Some(context.timers()?);
            Ok(())
        };
        let process = move |value: String| {
            if value == "go" {
                timers.borrow().as_ref().expect("init ran").set(b"t", 0)?;
            }
            of_process.advance(1_100);
            Ok(())
        };
        let window = move |()| {
            of_window.advance(50);
            Ok(())
        };
        let timer = move |_| {
            of_timer.advance(20);
            Ok(())
        };
        Plain {
            init: Some(Box::new(init)),
            process: Some(Box::new(process)),
            window: Some(Box::new(window)),
            timer: Some(Box::new(timer)),
        }
    };
    Life { metrics: metrics.clone(), ..stage.life(1) }.live(factory).expect("it ends in order");
    is_about(&metrics, &of_task("samza_task_window_seconds", P99), 0.05);
    is_about(&metrics, &of_task("samza_task_timer_seconds", P99), 0.02);
    let timed = value(&metrics, "samza_thread_seconds_total{thread=\"0\",state=\"timed\"}");
    let windows = value(&metrics, "samza_task_window_seconds_count");
    assert!(windows >= 1.0 && (timed - (windows * 0.05 + 0.02)).abs() < 1e-9, "{windows} windows, {timed} s");
}

#[test]
fn lag_is_told_in_messages_and_in_time_by_input_partition() {
    let stage = Stage::new(1, "task = { inputs = [\"kafka.in\"], commit = \"1h\" }");
    let now = stage.time.now();
    for age_ms in [9_000, 8_000, 7_000, 6_000] {
        let value = Some(age_ms.to_string().into_bytes());
        let message =
            Whole { key: None, value, timestamp_ms: Some(now - age_ms), headers: Default::default() };
        stage.broker.append_whole("in", 0, &message);
    }
    let (metrics, time) = (MetricsRegistry::default(), Arc::clone(&stage.time));
    let seen: Arc<Mutex<Vec<[f64; 2]>>> = Arc::default();
    let (of_task, told) = (metrics.clone(), Arc::clone(&seen));
    let factory = move || {
        let (metrics, time, told) = (of_task.clone(), Arc::clone(&time), Arc::clone(&told));
        let process = move |value: String| {
            if value == "6000" {
                // What was told after the first three.
                let lag = ["samza_input_lag_messages{", "samza_input_lag_seconds{"];
                told.lock()
                    .expect("nobody panics")
                    .push(lag.map(|name| super::meters::value(&metrics, name)));
            }
            time.advance(300);
            Ok(())
        };
        Plain { process: Some(Box::new(process)), ..Plain::default() }
    };
    Life { metrics: metrics.clone(), ..stage.life(1) }.live(factory).expect("it ends in order");
    // The third is 7 s old, and 0.9 s have passed.
    assert_eq!(*seen.lock().expect("nobody panics"), [[1.0, 7.9]]);
    let labels = "{task=\"Partition 0\",stream=\"kafka.in\",partition=\"0\"}";
    assert_eq!(value(&metrics, &format!("samza_input_lag_messages{labels}")), 0.0);
    assert_eq!(value(&metrics, &format!("samza_input_lag_seconds{labels}")), 0.0, "it has caught up");
    assert_eq!(value(&metrics, "samza_task_lag_messages{task=\"Partition 0\"}"), 0.0);
}

#[test]
fn a_turn_of_summaries_is_as_long_as_is_said() {
    let metrics = MetricsRegistry::default();
    let mut thread = crate::meters::ThreadMeters::new(&metrics, 3);
    let at = types::Timestamp;
    assert!(thread.turn(at(0)) && !thread.turn(at(TURN_MS - 1)) && thread.turn(at(TURN_MS)));
    thread.step(task_core::commit::CommitStep::DrainCaches, 2_000_000_000);
    is_about(&metrics, "samza_commit_part_seconds{thread=\"3\",part=\"rows\",quantile=\"0.99\"}", 2.0);
    thread.report(1_000_000_000);
    thread.spent(crate::meters::Spent::Poll, 300_000_000);
    thread.report(1_500_000_000);
    let other = "samza_thread_seconds_total{thread=\"3\",state=\"other\"}";
    assert_eq!(value(&metrics, other), 0.2);
    assert!(thread.turn(at(2 * TURN_MS)) && thread.turn(at(3 * TURN_MS)));
    let old = value(&metrics, "samza_commit_part_seconds{thread=\"3\",part=\"rows\",quantile=\"0.99\"}");
    assert!(old.is_nan());
}

#[test]
fn an_input_that_waits_for_an_open_transaction_is_in_the_status_and_among_the_metrics() {
    let stage = Stage::new(1, "task = { inputs = [\"kafka.in\"] }");
    fill(&stage.broker, "in", 0, &["a"]);
    stage.broker.append_open("tx", "in", 0, b"open");
    let (board, metrics) = (Arc::new(Board::default()), MetricsRegistry::default());
    let seen: Arc<Mutex<Option<(types::OpenTransaction, f64)>>> = Arc::default();
    let (time, broker, of_idle) = (Arc::clone(&stage.time), stage.broker.clone(), Arc::clone(&seen));
    let (status, told) = (Arc::clone(&board), metrics.clone());
    let on_idle = move || {
        let began = time.now();
        time.advance(1_000);
        let task = status.status().tasks.remove(0);
        let mut seen = of_idle.lock().expect("nobody panics");
        match task.waits.into_iter().next() {
            Some(open) if open.age_ms >= 20_000 && seen.is_none() => {
                *seen = Some((open, value(&told, "samza_input_open_transaction_seconds")));
                broker.decide("tx", true);
                Idle::GoesOn
            }
            None if seen.is_some() && task.processed == 2 => Idle::Ends,
            // Long before a test would be given up.
            _ if began > 2_000_000 => Idle::Ends,
            _ => Idle::GoesOn,
        }
    };
    let system = FakeSystem::asking(&stage.broker, Box::new(on_idle));
    let mut shared = shared(&stage.job, 1, stage.state.path(), &system, &board);
    (shared.clock, shared.metrics) = (Clock::Set(Arc::clone(&stage.time)), metrics.clone());
    let factory = Plain::default;
    run_threads(&shared, &model(1, &["in"], &[]), &factory).expect("it ends by itself");
    let (open, seconds) = seen.lock().expect("nobody panics").clone().expect("it was told");
    let input = format!("{}.{}", open.input.stream, open.input.partition);
    assert_eq!((input.as_str(), seconds), ("kafka.in.0", open.age_ms as f64 / 1e3));
    assert_eq!(value(&metrics, "samza_input_open_transaction_seconds"), 0.0, "it is decided");
    assert_eq!(board.status().tasks[0].waits, []);
}
