//! The test kit's own behaviour.

use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::{
    Header, Headers, I64Serde, IncomingMessageEnvelope, KeyValueStore, MessageBatch, MessageCollector, Serde,
    StringSerde, TaskClock, TaskContext, TaskCoordinator, TaskMetrics, TaskResult, Timers,
};

/// Counts by key; obeys some words.
#[derive(Default)]
struct Count {
    counts: Option<KeyValueStore<String, i64>>,
    timers: Option<Timers>,
    metrics: TaskMetrics,
    windows: i64,
    closed: Rc<Cell<u32>>,
}

impl StreamTask for Count {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        if context.config.contains_key("broken") {
            return Err("no init".into());
        }
        self.counts = Some(context.store("counts", StringSerde, I64Serde)?);
        self.timers = context.timers().ok();
        self.metrics = context.metrics.clone();
        Ok(())
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        self.metrics.counter("seen").inc();
        let value = StringSerde.decode(envelope.value.unwrap_or_default())?;
        match value.split_once(' ').unwrap_or((&value, "")) {
            ("fail", why) => return Err(why.into()),
            ("commit", _) => coordinator.commit(),
            ("shutdown", _) => coordinator.shutdown(),
            ("timer", after_ms) => {
                let timers = self.timers.as_ref().ok_or("no timers")?;
                let due = envelope.timestamp_ms.unwrap_or(0) + after_ms.parse::<u64>()?;
                timers.set(envelope.key.unwrap_or_default(), due)?;
            }
            ("send", stream) => {
                let large = "x".repeat(200);
                collector.send(OutgoingMessage::new(stream, None, Some(large.as_bytes())))?;
            }
            _ => {}
        }
        let key = String::from_utf8(envelope.key.unwrap_or_default().to_vec())?;
        let counts = self.counts.as_mut().ok_or("no init")?;
        let count = counts.get(&key)?.unwrap_or(0) + 1;
        counts.put(&key, &count)?;
        let text = count.to_string();
        collector.send(OutgoingMessage {
            partition: Some(envelope.source.partition),
            ..OutgoingMessage::new("kafka.counts", envelope.key, Some(text.as_bytes()))
        })
    }

    fn window(&mut self, collector: &mut dyn MessageCollector, _: &mut TaskCoordinator) -> TaskResult {
        self.windows += 1;
        let text = format!("window {}", self.windows);
        collector.send(OutgoingMessage::new("kafka.events", None, Some(text.as_bytes())))
    }

    fn timer(
        &mut self,
        key: &[u8],
        due_unix_ms: u64,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        let text = format!("timer {} {}", String::from_utf8_lossy(key), due_unix_ms - START_UNIX_MS);
        if key == b"bad" {
            return Err(text.into());
        }
        collector.send(OutgoingMessage::new("kafka.events", None, Some(text.as_bytes())))
    }

    fn end_of_stream(&mut self, collector: &mut dyn MessageCollector, _: &mut TaskCoordinator) -> TaskResult {
        collector.send(OutgoingMessage::new("kafka.events", None, Some(b"end")))
    }

    fn close(&mut self) -> TaskResult {
        self.closed.set(self.closed.get() + 1);
        Ok(())
    }
}

fn kit() -> TestKit<Count> {
    TestKit::new(Count::default).input("kafka.in", 2).output("kafka.counts", 2).store("counts")
}

fn count(kit: &mut TestKit<Count>, task: usize, key: &str) -> Option<i64> {
    kit.task(task).store("counts", StringSerde, I64Serde).get(&key.into()).expect("a count")
}

#[test]
fn keys_choose_partitions_as_java_does_and_messages_without_one_take_turns() {
    let mut kit = kit();
    for key in ["21", "foobar", "abc"] {
        kit.send("kafka.in", Some(key), "x");
        kit.run();
        let task = crate::murmur2_partition(key.as_bytes(), 2) as usize;
        assert_eq!((count(&mut kit, task, key), count(&mut kit, 1 - task, key)), (Some(1), None));
    }
    (0..4).for_each(|_| kit.send("kafka.in", None, "x"));
    kit.run();
    assert_eq!((count(&mut kit, 0, ""), count(&mut kit, 1, "")), (Some(2), Some(2)));
}

#[test]
fn a_step_is_one_message_in_the_order_of_sending() {
    let mut kit = kit();
    for (partition, key) in [(1, "a"), (0, "b"), (1, "c")] {
        kit.send_to("kafka.in", partition, Some(key), "x");
    }
    let mut seen = Vec::new();
    while kit.step() {
        seen.extend(kit.take("kafka.counts"));
    }
    assert_eq!(seen, [("a", "1"), ("b", "1"), ("c", "1")]);
    assert_eq!(kit.take("kafka.counts"), Vec::<Output>::new());
    assert_eq!(kit.outputs_as("kafka.counts", StringSerde, StringSerde).len(), 3);
}

#[test]
fn at_least_once_outputs_stay_after_a_crash_and_come_again() {
    let mut kit = kit();
    kit.send_to("kafka.in", 0, Some("a"), "x");
    kit.run();
    kit.commit();
    kit.send_to("kafka.in", 0, Some("a"), "x");
    kit.run();
    assert_eq!(kit.task(0).committed("kafka.in", 0), Some(1));
    assert_eq!(kit.task(1).committed("kafka.in", 1), Some(0), "it has read nothing");
    kit.crash();
    assert_eq!(count(&mut kit, 0, "a"), Some(1));
    kit.run();
    assert_eq!(kit.outputs("kafka.counts"), [("a", "1"), ("a", "2"), ("a", "2")]);
    assert_eq!(count(&mut kit, 0, "a"), Some(2));
}

#[test]
fn exactly_once_outputs_are_seen_after_their_commit_and_never_after_a_crash() {
    let mut kit = kit().delivery(Delivery::ExactlyOnce);
    kit.send_to("kafka.in", 0, Some("a"), "x");
    kit.run();
    assert_eq!(kit.outputs("kafka.counts"), Vec::<Output>::new());
    kit.crash();
    kit.run();
    kit.commit();
    kit.crash();
    assert!(!kit.step());
    assert_eq!(kit.outputs("kafka.counts"), [("a", "1")]);
    assert_eq!(kit.outputs("kafka.counts")[0].offset, 2, "what was aborted and its marker take offsets");
    assert_eq!(kit.commits(), 1);
}

#[test]
fn windows_and_timers_go_off_in_their_order_and_timers_survive_a_crash() {
    let mut kit = kit().window(Duration::from_secs(10)).timers().commit_every(Duration::from_secs(3));
    kit.send_to("kafka.in", 0, Some("late"), "timer 15000");
    kit.send_to("kafka.in", 0, Some("soon"), "timer 2000");
    kit.advance(Duration::from_secs(12));
    assert_eq!(kit.take("kafka.events"), ["timer soon 2000", "window 1", "window 1"]);
    assert_eq!(kit.task(0).timer(b"late"), Some(START_UNIX_MS + 15_000));
    kit.crash();
    kit.advance(Duration::from_secs(2));
    assert_eq!(kit.take("kafka.events"), Vec::<Output>::new());
    kit.advance(Duration::from_secs(8));
    assert_eq!(kit.take("kafka.events"), ["timer late 15000", "window 1", "window 1"]);
    assert_eq!(kit.task(0).timer(b"late"), None);
    assert_eq!(kit.now_unix_ms(), START_UNIX_MS + 22_000);
}

#[test]
fn a_timer_that_went_off_before_a_crash_goes_off_again_unless_it_was_committed() {
    let mut kit = kit().timers().commit_every(Duration::MAX).delivery(Delivery::ExactlyOnce);
    kit.send_to("kafka.in", 0, Some("a"), "timer 1000");
    kit.run();
    kit.commit();
    kit.advance(Duration::from_secs(1));
    kit.crash();
    kit.run();
    kit.commit();
    kit.crash();
    kit.advance(Duration::from_secs(9));
    kit.commit();
    assert_eq!(kit.outputs("kafka.events"), ["timer a 1000"]);
}

/// Sends what it gets; its timer is set by the first message and sets itself to now whenever it goes off.
#[derive(Default)]
struct Again(Option<Timers>, TaskClock);

impl StreamTask for Again {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        (self.0, self.1) = (Some(context.timers()?), context.clock.clone());
        Ok(())
    }
    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        collector.send(OutgoingMessage::new("kafka.events", None, envelope.value))?;
        let timers = self.0.as_ref().ok_or("no timers")?;
        Ok(timers.set(b"t", timers.get(b"t")?.unwrap_or(self.1.now_unix_ms()))?)
    }
    fn timer(
        &mut self,
        key: &[u8],
        _: u64,
        collector: &mut dyn MessageCollector,
        _: &mut TaskCoordinator,
    ) -> TaskResult {
        collector.send(OutgoingMessage::new("kafka.events", None, Some(b"timer")))?;
        Ok(self.0.as_ref().ok_or("no timers")?.set(key, self.1.now_unix_ms())?)
    }
}

#[test]
fn a_timer_that_sets_itself_to_now_lets_messages_time_and_commits_have_their_turn() {
    let mut kit = TestKit::new(Again::default).input("kafka.in", 1).timers();
    kit.send_to("kafka.in", 0, None, "first");
    kit.run();
    assert_eq!(kit.take("kafka.events"), ["first", "timer"], "time stands still, so the next round is later");
    kit.send_to("kafka.in", 0, None, "second");
    assert!(kit.step() && kit.step() && kit.step());
    assert_eq!(kit.take("kafka.events"), ["second", "timer", "timer"]);
    kit.advance(Duration::from_millis(3));
    assert_eq!(kit.take("kafka.events"), ["timer"; 4], "once at first and once in each ms");
    let commits = kit.commits();
    kit.advance(Duration::from_secs(1));
    assert!(kit.commits() > commits);
}

#[test]
fn commits_come_by_time_by_wish_and_by_a_full_cache_but_not_for_nothing() {
    let mut kit = kit().store_with("counts", |store| store.cache_rows = 2);
    kit.advance(Duration::from_secs(5));
    assert_eq!(kit.commits(), 0);
    kit.send_to("kafka.in", 0, Some("a"), "x");
    kit.run();
    assert_eq!(kit.commits(), 1, "the interval had passed");
    kit.send_to("kafka.in", 0, Some("a"), "x");
    kit.run();
    assert_eq!(kit.commits(), 1);
    kit.advance(Duration::from_millis(1_000));
    assert_eq!(kit.commits(), 2);
    kit.send_to("kafka.in", 0, Some("a"), "commit");
    kit.run();
    assert_eq!(kit.commits(), 3);
    ["a", "b", "c", "d", "e"].iter().for_each(|key| kit.send_to("kafka.in", 0, Some(key), "x"));
    kit.run();
    assert_eq!(kit.commits(), 5, "two rows are a full cache");
}

#[test]
fn shutdown_commits_and_closes_and_a_successor_goes_on() {
    let closed = Rc::new(Cell::new(0));
    let counter = Rc::clone(&closed);
    let factory = move || Count { closed: Rc::clone(&counter), ..Count::default() };
    let mut kit = TestKit::new(factory).input("kafka.in", 2).store("counts");
    kit.send_to("kafka.in", 0, Some("a"), "shutdown");
    kit.send_to("kafka.in", 0, Some("a"), "x");
    kit.run();
    assert!(!kit.is_running() && !kit.step());
    assert_eq!((kit.commits(), closed.get(), count(&mut kit, 0, "a")), (1, 2, Some(1)));
    kit.crash();
    kit.run();
    assert_eq!(count(&mut kit, 0, "a"), Some(2));
    kit.stop();
    assert_eq!((kit.commits(), closed.get()), (2, 4));
}

#[test]
fn at_the_end_of_the_inputs_tasks_are_told_and_all_is_committed() {
    let mut kit = kit().delivery(Delivery::ExactlyOnce);
    kit.send_to("kafka.in", 1, Some("a"), "x");
    kit.end();
    assert_eq!(kit.outputs("kafka.counts"), [("a", "1")]);
    assert_eq!(kit.outputs("kafka.events"), ["end", "end"]);
    assert!(!kit.is_running());
    assert_eq!(kit.task(1).committed("kafka.in", 1), Some(1));
}

#[test]
fn an_error_ends_the_container_with_its_reason_and_leaves_the_last_commit() {
    let mut kit = kit().delivery(Delivery::ExactlyOnce);
    kit.send_to("kafka.in", 0, Some("a"), "commit");
    kit.send_to("kafka.in", 0, Some("a"), "x");
    kit.send_to("kafka.in", 0, Some("a"), "fail too much");
    let failure = kit.try_run().expect_err("it fails").to_string();
    assert_eq!(failure, "Partition 0 failed: message 2 of kafka.in.0: too much");
    assert_eq!((count(&mut kit, 0, "a"), kit.outputs("kafka.counts").len()), (Some(1), 1));
    assert!(!kit.is_running());
    let again = kit.try_run().expect_err("it has ended").to_string();
    assert!(again.contains("too much") && again.contains("crash"), "{again}");
    kit.crash();
    assert!(kit.try_run().is_err(), "it meets the message again");
}

#[test]
fn errors_that_are_left_out_are_counted_and_dead_letters_tell_the_cause() {
    let mut kit = kit().timers().errors(|errors| {
        errors.decode = OnError::DeadLetter;
        errors.process = OnError::Skip;
        errors.dead_letter = Some("kafka.failed".into());
    });
    kit.send_to("kafka.in", 0, Some("a"), "fail once");
    kit.send_to("kafka.in", 0, Some("bad"), "timer 1");
    let value = Some(b"\xff".as_slice());
    let headers = [Header::new("trace", b"1"), Header::new("samza.error", b"an older one")];
    kit.send_message(OutgoingMessage {
        partition: Some(1),
        timestamp_ms: Some(7),
        headers: Headers::from(&headers),
        ..OutgoingMessage::new("kafka.in", Some(b"k"), value)
    });
    kit.send_to("kafka.in", 1, Some("a"), "x");
    kit.advance(Duration::from_secs(1));
    assert_eq!(kit.left_out(), 3, "a message, a timer, a message that is no text");
    for line in [
        "samza_errors_total{stream=\"kafka.in\",stage=\"decode\",outcome=\"dead-lettered\"} 1",
        "samza_errors_total{stream=\"kafka.in\",stage=\"process\",outcome=\"skipped\"} 1",
        "samza_errors_total{stream=\"timers\",stage=\"process\",outcome=\"skipped\"} 1",
    ] {
        assert!(kit.metrics().contains(line), "{line} is not in\n{}", kit.metrics());
    }
    assert_eq!(count(&mut kit, 1, "a"), Some(1));
    let failed = kit.outputs("kafka.failed");
    assert_eq!(
        (failed.len(), failed[0].value.as_deref(), failed[0].key.as_deref()),
        (1, value, Some(&b"k"[..]))
    );
    assert!(failed[0].header("samza.error").expect("a cause").contains("UTF-8"), "{failed:?}");
    assert_eq!((failed[0].timestamp_ms, failed[0].header("trace").as_deref()), (7, Some("1")));
    let first = failed[0].headers.get().iter().take(2).collect::<Vec<_>>();
    assert_eq!(first, headers, "its own come first");
}

#[test]
fn a_refused_output_follows_its_policy_and_an_unknown_system_is_always_fatal() {
    let large = |kit: TestKit<Count>, stream: &str| {
        let mut kit = kit.max_message(100);
        kit.send_to("kafka.in", 0, Some("a"), &format!("send {stream}"));
        (kit.try_run().and_then(|()| kit.try_commit()), kit)
    };
    let (failed, _) = large(kit(), "kafka.other");
    assert!(failed.expect_err("it is refused").to_string().contains("more than 100 bytes"));
    let (passed, mut skipping) = large(kit().errors(|errors| errors.send = OnError::Skip), "kafka.other");
    passed.expect("it is left out");
    assert_eq!((skipping.left_out(), count(&mut skipping, 0, "a")), (1, Some(1)));
    let (failed, _) = large(kit().errors(|errors| errors.send = OnError::Skip), "kinesis.x");
    let why = failed.expect_err("there is no such system").to_string();
    assert!(why.contains("no system `kinesis`") && why.contains("it has: kafka"), "{why}");
}

#[test]
fn rows_of_a_store_with_a_ttl_go_by_virtual_time() {
    let mut kit = kit().store_with("counts", |store| store.ttl_ms = Some(60_000));
    kit.send_to("kafka.in", 0, Some("a"), "x");
    kit.advance(Duration::from_secs(59));
    assert_eq!(count(&mut kit, 0, "a"), Some(1));
    kit.crash();
    kit.advance(Duration::from_secs(1));
    assert_eq!(count(&mut kit, 0, "a"), None);
    assert_eq!(kit.task(0).store("counts", StringSerde, I64Serde).all().expect("rows").count(), 0);
    kit.send_to("kafka.in", 0, Some("a"), "x");
    kit.run();
    assert_eq!(count(&mut kit, 0, "a"), Some(1));
}

#[test]
fn large_values_are_refused_or_dropped_with_a_count() {
    let key = "k".repeat(100);
    let limited = |on_large| {
        let mut kit = kit().store_with("counts", |store| {
            store.max_value_bytes = 50;
            store.on_large_value = on_large;
        });
        kit.send_to("kafka.in", 0, Some(&key), "x");
        kit
    };
    let failure = limited(OnLargeValue::Fail).try_run().expect_err("it is refused").to_string();
    assert!(failure.contains("108 bytes"), "{failure}");
    let mut dropping = limited(OnLargeValue::Drop);
    dropping.run();
    assert_eq!(count(&mut dropping, 0, &key), None);
    let line = "samza_store_large_values_dropped_total{task=\"Partition 0\",store=\"counts\"} 1\n";
    assert!(dropping.metrics().contains(line), "{}", dropping.metrics());
}

#[test]
fn stores_without_a_changelog_are_lost_with_their_node_or_their_process() {
    let survives = |kind: StoreKind, changelog: Option<&str>, on_another_node: bool| {
        let mut kit = kit().store_with("counts", |store| {
            store.kind = kind;
            store.changelog = changelog.map(str::to_owned);
        });
        kit.send_to("kafka.in", 0, Some("a"), "x");
        kit.run();
        kit.commit();
        if on_another_node {
            kit.lose_node()
        } else {
            kit.crash()
        }
        count(&mut kit, 0, "a").is_some()
    };
    assert!(survives(StoreKind::RocksDb, Some("log"), true));
    assert!(survives(StoreKind::Memory, Some("log"), true));
    assert!(survives(StoreKind::RocksDb, None, false));
    assert!(!survives(StoreKind::RocksDb, None, true));
    assert!(!survives(StoreKind::Memory, None, false));
}

#[test]
fn bootstrap_streams_and_higher_priorities_are_read_first_and_broadcasts_by_all() {
    let mut kit = kit()
        .input("kafka.rules", 1)
        .input("kafka.fast", 2)
        .stream("kafka.rules", |rules| (rules.bootstrap, rules.broadcast) = (true, true))
        .stream("kafka.fast", |fast| fast.priority = 1);
    kit.send_to("kafka.in", 0, Some("slow"), "x");
    kit.send_to("kafka.fast", 0, Some("fast"), "x");
    kit.send_to("kafka.rules", 0, Some("rule"), "x");
    kit.run();
    assert_eq!(kit.outputs("kafka.counts"), [("rule", "1"), ("rule", "1"), ("fast", "1"), ("slow", "1")]);
    assert_eq!((kit.tasks(), count(&mut kit, 0, "rule"), count(&mut kit, 1, "rule")), (2, Some(1), Some(1)));
}

#[test]
fn metrics_can_be_read_and_start_anew_with_each_container() {
    let mut kit = kit();
    kit.send_to("kafka.in", 1, Some("a"), "x");
    kit.run();
    assert_eq!(kit.task(1).metrics().counter("seen").get(), 1);
    assert_eq!(kit.task(0).metrics().counter("seen").get(), 0);
    kit.crash();
    assert_eq!(kit.task(1).metrics().counter("seen").get(), 0);
}

#[test]
fn a_task_that_cannot_start_says_so() {
    let mut kit = kit().config("broken", "yes");
    assert_eq!(kit.try_run().expect_err("init fails").to_string(), "init of Partition 0: no init");
}

#[test]
fn tasks_that_take_slices_get_the_rest_again() {
    #[derive(Default)]
    struct Slices;
    impl StreamTask for Slices {
        fn process(
            &mut self,
            _: &IncomingMessageEnvelope<'_>,
            _: &mut dyn MessageCollector,
            _: &mut TaskCoordinator,
        ) -> TaskResult {
            Err("not called".into())
        }
        fn process_batch(
            &mut self,
            batch: &mut MessageBatch<'_>,
            collector: &mut dyn MessageCollector,
            _: &mut TaskCoordinator,
        ) -> TaskResult {
            let slice: Vec<String> = batch.take_slice(2).iter().map(|m| m.offset.to_string()).collect();
            collector.send(OutgoingMessage::new("kafka.out", None, Some(slice.join("+").as_bytes())))
        }
    }
    let mut kit = TestKit::new(Slices::default).input("kafka.in", 1);
    (0..5).for_each(|_| kit.send("kafka.in", None, "x"));
    kit.run();
    assert_eq!(kit.outputs("kafka.out"), ["0+1", "2+3", "4"]);
}
