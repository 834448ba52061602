//! Containers are kept running: restarts by exit cause, adoption, silence, fencing.

mod stage;

use am_core::slot::SlotState;
use am_core::{AmCore, Command, HelloAnswer};
use stage::*;
use types::*;

fn failed() -> ExitCause {
    ExitCause::Failed { code: 3 }
}

#[test]
fn nothing_is_asked_for_before_the_welcome() {
    let mut stage = Stage::of(spec(2), 1);
    stage.run(|c, now, out| c.facts_read(now, Ok(facts(&[1, 2])), out));
    let out = stage.run(|c, now, out| c.prepared(now, Ok(Vec::new()), out));
    assert_eq!(asks(&out), []);
    assert_eq!(stage.core.open_asks(stage.now), []);
    let out = stage.welcome(Vec::new());
    let slots: std::collections::BTreeSet<u32> = asks(&out).iter().map(|a| a.request.slot).collect();
    assert_eq!(slots, [0, 1].into());
}

#[test]
fn the_first_retry_is_immediate_and_the_second_waits() {
    let (mut stage, launched) = running(spec(2));
    let (ask, container) = &launched[0];
    let out = stage.exit(ask.request, *container, "n0", failed());
    let again = asks(&out);
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].request, RequestId { attempt: 1, slot: 0, try_no: 2 });
    assert_eq!(acks(&out), [*container]);
    let second = stage.launch(&again[0], "n0");
    let out = stage.exit(again[0].request, second, "n0", failed());
    assert_eq!(asks(&out), []);
    let other = launched[1].1;
    assert_eq!(asks(&stage.pass(900, &[other])), []);
    assert_eq!(asks(&stage.pass(200, &[other]))[0].request.try_no, 3);
}

#[test]
fn spent_retries_fail_the_job_with_the_last_cause() {
    let (mut stage, launched) = running(spec(2));
    let other = launched[1].1;
    let (mut ask, mut container) = launched[0].clone();
    let mut out = Vec::new();
    for round in 0..4 {
        out = stage.exit(ask.request, container, "n0", failed());
        if round < 3 {
            out.extend(stage.pass(5_000, &[other]));
            ask = asks(&out)[0].clone();
            container = stage.launch(&ask, "n0");
        }
    }
    assert_eq!(stops(&out), [(other, 30_000)], "the job's other containers may commit first");
    assert_eq!(asks(&out), []);
    let out = stage.exit(launched[1].0.request, other, "n1", ExitCause::KilledByAm);
    let Some(Command::Mint { nonce }) = out.iter().find(|c| matches!(c, Command::Mint { .. })) else {
        panic!("a fresh incarnation is asked for: {out:?}")
    };
    let incarnation = Incarnation { epoch: Epoch(7), seq: 99 };
    let out = stage.run(|c, now, out| c.minted(now, *nonce, incarnation, out));
    assert_eq!(out, [Command::Fence { incarnation, partitions: vec![0, 1] }]);
    let out = stage.run(|c, now, out| c.tasks_fenced(now, Ok(()), out));
    let Some(JobOutcome::Failed { reason }) = finish(&out) else { panic!("{out:?}") };
    assert!(reason.contains("container 0 failed 4 times"), "{reason}");
    assert!(reason.contains("exit code 3") && reason.contains("n0"), "{reason}");
}

#[test]
fn a_degraded_job_runs_on_without_the_slot() {
    let mut degraded = spec(2);
    degraded.restart.on_exhausted = OnExhausted::Degrade;
    degraded.restart.retries = 0;
    let (mut stage, launched) = running(degraded);
    let (ask, container) = &launched[0];
    let out = stage.exit(ask.request, *container, "n0", failed());
    assert_eq!((asks(&out), stops(&out), finish(&out)), (vec![], vec![], None));
    assert_eq!(stage.core.view(stage.now).slots[0].1, SlotState::GaveUp);
    assert!(stage.core.job_status(stage.now).message.contains("1 given up"));
}

#[test]
fn a_lost_node_is_no_failure_and_is_not_preferred() {
    let (mut stage, launched) = running(spec(1));
    let (mut ask, mut container) = launched[0].clone();
    let state = NodeState {
        node: "n0".into(),
        hosts: vec!["n0".into()],
        entries: vec![StateEntry {
            job: JobId { name: "j".into(), id: "1".into() },
            entry: "Partition-0".into(),
            bytes: 5 << 20,
            flushed_unix_ms: 1_000_000_000,
        }],
    };
    stage.run(|c, now, out| c.node_state(now, state, out));
    for _ in 0..10 {
        let out = stage.exit(ask.request, container, "n0", ExitCause::NodeLost);
        ask = asks(&out)[0].clone();
        assert!(ask.preferences.iter().all(|p| p.host != "n0"), "{:?}", ask.preferences);
        container = stage.launch(&ask, "n0");
    }
    let out = stage.exit(ask.request, container, "n0", failed());
    assert_eq!(asks(&out).len(), 1, "a first failure is still retried at once");
}

#[test]
fn a_launch_failure_counts_once_it_was_seen_on_two_nodes() {
    let mut strict = spec(1);
    strict.restart.retries = 0;
    let (mut stage, launched) = running(strict);
    let (ask, container) = launched[0].clone();
    let cause = ExitCause::LaunchFailed { reason: "no such file".into() };
    let out = stage.exit(ask.request, container, "n0", cause.clone());
    let again = asks(&out)[0].clone();
    assert_eq!(again.avoid, [NodeId::from("n0")]);
    let second = stage.launch(&again, "n1");
    let out = stage.exit(again.request, second, "n1", cause);
    assert_eq!(asks(&out), []);
    assert!(stage.core.job_status(stage.now).message.contains("no such file"));
}

#[test]
fn the_next_attempt_adopts_what_runs_and_asks_for_the_rest() {
    let mut stage = Stage::of(spec(3), 2);
    let old = |slot, try_no| RequestId { attempt: 1, slot, try_no };
    let out = stage.begin(
        facts(&[1, 2, 3]),
        vec![
            placed(old(0, 1), id(1), "n0", ContainerState::Running),
            placed(old(1, 1), id(2), "n1", ContainerState::Running),
            placed(old(1, 2), id(5), "n2", ContainerState::Running),
        ],
    );
    assert_eq!(stops(&out), [(id(2), 0)], "the older one of a slot is stopped");
    let asked: std::collections::BTreeSet<RequestId> = asks(&out).iter().map(|a| a.request).collect();
    assert_eq!(asked, [RequestId { attempt: 2, slot: 2, try_no: 1 }].into());
    assert!(matches!(stage.hello(id(1), 0), Ok(HelloAnswer::Model(m)) if m.tasks.len() == 1));
    assert!(stage.hello(id(2), 1).is_err());
    assert_eq!(stage.hello(id(9), 2), Ok(HelloAnswer::Wait));
}

#[test]
fn exits_that_came_while_no_master_was_there_are_acted_on() {
    let mut stage = Stage::of(spec(2), 2);
    let request = RequestId { attempt: 1, slot: 0, try_no: 1 };
    let mut known = facts(&[1, 2]);
    known.remembered.places = last_place(0, id(1));
    let out = stage.begin(known, vec![placed(request, id(1), "n0", exit(ExitCause::Signal { signal: 9 }))]);
    assert_eq!(acks(&out), [id(1)]);
    assert!(asks(&out).iter().any(|a| a.request == RequestId { attempt: 2, slot: 0, try_no: 1 }));
    let status = stage.core.job_status(stage.now);
    assert_eq!(status.slots[0].last_exit, Some(ExitCause::Signal { signal: 9 }));
}

#[test]
fn a_container_that_returns_late_is_adopted_in_place_of_the_ask() {
    let mut stage = Stage::of(spec(1), 2);
    let out = stage.begin(facts(&[1]), Vec::new());
    let open = asks(&out)[0].request;
    let old = RequestId { attempt: 1, slot: 0, try_no: 4 };
    let out = stage.report(placed(old, id(3), "n0", ContainerState::Running));
    assert!(out.contains(&Command::CancelAsk(open)), "{out:?}");
    assert_eq!(stage.core.open_asks(stage.now), []);
    let out = stage.report(placed(open, id(4), "n1", ContainerState::Allocated));
    assert_eq!(stops(&out), [(id(3), 0)], "if the ask was answered meanwhile, the newer one has the slot");
}

#[test]
fn a_silent_container_is_stopped_and_replaced_after_its_exit() {
    let (mut stage, launched) = running(spec(3));
    let talking = [launched[1].1, launched[2].1];
    let out = stage.pass(9_900, &talking);
    assert_eq!(stops(&out), []);
    let out = stage.pass(300, &talking);
    assert_eq!(stops(&out), [(launched[0].1, 0)]);
    assert_eq!(asks(&out), []);
    let out = stage.exit(launched[0].0.request, launched[0].1, "n0", ExitCause::KilledByAm);
    assert_eq!(asks(&out).len(), 1);
}

#[test]
fn a_container_whose_node_is_drained_may_commit_and_runs_elsewhere_without_a_failure() {
    let (mut stage, launched) = running(spec(2));
    let (ask, container) = &launched[0];
    let out = stage.run(|c, _, out| c.leave(*container, 20_000, out));
    assert_eq!(stops(&out), [(*container, 20_000)]);
    assert_eq!(asks(&out), [], "two of one slot would fence each other");
    let again = stage.run(|c, _, out| c.leave(*container, 19_000, out));
    assert_eq!(stops(&again), [(*container, 19_000)], "the shorter time counts");
    assert_eq!(stage.run(|c, _, out| c.leave(id(99), 20_000, out)), [], "it is none of ours");
    let out = stage.exit(ask.request, *container, "n0", ExitCause::Preempted);
    assert_eq!(asks(&out)[0].request, RequestId { attempt: 1, slot: 0, try_no: 2 });
}

#[test]
fn silence_is_not_judged_while_the_resource_manager_is_away() {
    let (mut stage, launched) = running(spec(3));
    stage.core.session_lost();
    let talking = [launched[1].1, launched[2].1];
    assert_eq!(stage.pass(60_000, &talking), []);
    let inventory = launched
        .iter()
        .map(|(a, c)| placed(a.request, *c, &format!("n{}", a.request.slot), ContainerState::Running))
        .collect();
    stage.welcome(inventory);
    assert_eq!(stops(&stage.pass(9_900, &talking)), []);
    assert_eq!(stops(&stage.pass(300, &talking)), [(launched[0].1, 0)]);
}

#[test]
fn when_most_are_silent_at_once_none_is_stopped() {
    let (mut stage, launched) = running(spec(3));
    let talking = [launched[2].1];
    let out = stage.pass(60_000, &talking);
    assert_eq!(stops(&out), []);
    assert!(stage.core.job_status(stage.now).message.contains("silent"));
    let out = stage.pass(15_000, &talking);
    assert!(out.iter().any(|c| matches!(c, Command::MoveMe(_))), "{out:?}");
}

#[test]
fn a_pause_of_its_own_makes_nobody_silent() {
    let (mut stage, _) = running(spec(1));
    stage.now = stage.now.plus(30_000);
    let out = stage.run(am_core::AmCore::handle_deadline);
    assert_eq!(stops(&out), []);
}

#[test]
fn a_container_that_no_inventory_has_is_lost_after_a_while() {
    let (mut stage, launched) = running(spec(1));
    stage.core.session_lost();
    stage.welcome(Vec::new());
    let out = stage.pass(15_000, &[launched[0].1]);
    assert_eq!(asks(&out), [], "it talks, so it lives");
    let out = stage.pass(25_000, &[]);
    assert_eq!(asks(&out).len(), 1);
    let out = stage.report(placed(launched[0].0.request, launched[0].1, "n0", ContainerState::Running));
    assert_eq!(stops(&out), [(launched[0].1, 0)], "should it come back, its successor has the slot");
}

#[test]
fn fenced_by_another_cluster_fails_the_job() {
    let (mut stage, launched) = running(spec(1));
    let (ask, container) = launched[0].clone();
    let out = stage.exit(ask.request, container, "n0", ExitCause::Fenced);
    assert_eq!(out, [Command::ReadOwners { slot: 0, container, partitions: vec![0] }]);
    let foreign = Incarnation { epoch: Epoch(9), seq: 1 };
    let out = stage.run(|c, now, out| c.owners_read(now, 0, container, Ok(Some(foreign)), out));
    assert_eq!(asks(&out), []);
    let message = stage.core.job_status(stage.now).message;
    assert!(message.contains("9-1") && message.contains("never started"), "{message}");
}

#[test]
fn fenced_by_nobody_is_started_again_and_by_a_successor_is_only_acknowledged() {
    let (mut stage, launched) = running(spec(1));
    let (ask, container) = launched[0].clone();
    stage.exit(ask.request, container, "n0", ExitCause::Fenced);
    let out = stage.run(|c, now, out| c.owners_read(now, 0, container, Ok(None), out));
    let again = asks(&out)[0].clone();
    let second = stage.launch(&again, "n1");
    let out = stage.exit(again.request, second, "n1", ExitCause::NodeLost);
    let third = stage.launch(&asks(&out)[0].clone(), "n2");
    let out = stage.exit(again.request, second, "n1", ExitCause::Fenced);
    assert_eq!((asks(&out), finish(&out)), (vec![], None));
    assert_eq!(stage.core.view(stage.now).slots[0].1, SlotState::Running { container: third });
}

#[test]
fn a_container_that_says_it_is_fenced_while_nobody_is_above_it_has_failed() {
    let (mut stage, launched) = running(spec(1));
    let (mut ask, mut container) = launched[0].clone();
    let retries = spec(1).restart.retries;
    for failed in 0..=retries {
        stage.exit(ask.request, container, "n0", ExitCause::Fenced);
        let out = stage.run(|c, now, out| c.owners_read(now, 0, container, Ok(Some(container.0)), out));
        if failed == retries {
            assert_eq!(asks(&out), []);
            break;
        }
        let mut asked = asks(&out);
        if asked.is_empty() {
            // After its backoff.
            asked = asks(&stage.pass(60_000, &[]));
        }
        ask = asked[0].clone();
        container = stage.launch(&ask, "n0");
    }
    let message = stage.core.job_status(stage.now).message;
    assert!(
        message.contains("exit code 90 (it says it is fenced, but nobody else owns its tasks)"),
        "{message}"
    );
}

#[test]
fn missing_inputs_are_waited_for_at_growing_intervals() {
    let mut stage = Stage::of(spec(1), 1);
    let mut waits = Vec::new();
    for _ in 0..7 {
        let failure = am_core::Failure::Waiting("waiting for input topic in".into());
        stage.run(|c, now, out| c.facts_read(now, Err(failure), out));
        assert_eq!(stage.core.job_status(stage.now).message, "waiting for input topic in");
        let due = stage.core.next_deadline().expect("it is tried again");
        waits.push(due.since(stage.now));
        stage.now = due;
        assert_eq!(stage.run(am_core::AmCore::handle_deadline), [Command::ReadFacts]);
    }
    assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
}

#[test]
fn what_a_system_calls_hopeless_is_tried_for_some_seconds_before_the_job_fails() {
    let mut stage = Stage::of(spec(1), 1);
    stage.welcome(Vec::new());
    let doubtful = || Err(am_core::Failure::Doubtful("system kafka: no such thing".into()));
    let began = stage.now;
    let mut failed = Vec::new();
    for tries in 1..20 {
        failed = stage.run(|c, now, out| c.facts_read(now, doubtful(), out));
        let Some(due) = stage.core.next_deadline() else { break };
        assert!(tries < 10, "it fails in the end");
        stage.now = due;
        stage.run(AmCore::handle_deadline);
    }
    assert!((8_000..20_000).contains(&stage.now.since(began)), "{}", stage.now.since(began));
    assert!(
        matches!(finish(&failed), Some(JobOutcome::Failed { reason }) if reason.contains("no such thing"))
    );
    let mut other = Stage::of(spec(1), 1);
    other.welcome(Vec::new());
    other.run(|c, now, out| c.facts_read(now, doubtful(), out));
    other.run(|c, now, out| c.facts_read(now, Ok(facts(&[1])), out));
    assert!(
        finish(&other.run(|c, now, out| c.prepared(now, Ok(Vec::new()), out))).is_none(),
        "it got better"
    );
}

#[test]
fn an_exit_in_an_inventory_asks_for_no_slot_that_a_later_line_fills() {
    let of = |slot| RequestId { attempt: 1, slot, try_no: 1 };
    let inventory = || {
        vec![
            placed(of(0), id(9), "n0", exit(ExitCause::Signal { signal: 9 })),
            placed(of(1), id(2), "n1", ContainerState::Running),
        ]
    };
    let only_the_first =
        |out: &[Command]| asks(out).iter().all(|a| a.request.slot == 0) && !asks(out).is_empty();
    let mut prepared_first = Stage::of(spec(2), 2);
    assert!(only_the_first(&prepared_first.begin(facts(&[1, 2]), inventory())));
    let mut welcomed_first = Stage::of(spec(2), 2);
    welcomed_first.welcome(inventory());
    welcomed_first.run(|c, now, out| c.facts_read(now, Ok(facts(&[1, 2])), out));
    assert!(only_the_first(&welcomed_first.run(|c, now, out| c.prepared(now, Ok(Vec::new()), out))));
}
