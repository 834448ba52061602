//! Applications, attempts and containers through their lives.

mod world;

use rm_core::{Config, Denied};
use types::{AppState, ContainerState, ExitCause, FromAm, JobOutcome, Role, StopJob, ToAm};
use world::{World, ask, request, small, spec};

#[test]
fn a_job_is_admitted_placed_registered_asked_for_and_finished() {
    let mut world = World::new();
    world.join("a", "r1");
    world.join("b", "r2");
    let (app, ids) = world.running_job("flights", 2);
    let report = world.report(&app);
    assert_eq!(report.state, AppState::Running);
    assert_eq!(report.containers_running, 2);
    let told: Vec<_> = world
        .heard(&app)
        .iter()
        .filter(|it| matches!(it, ToAm::Container(placed) if placed.report.id == ids[0]))
        .collect();
    assert_eq!(told.len(), 2, "allocated, then running: {told:?}");

    world.say(&app, FromAm::Finish(JobOutcome::Finished));
    assert_eq!(world.report(&app).state, AppState::Finished);
    assert_eq!(world.masters[&app].session, None, "the end of its session is its receipt");
    assert_eq!(world.container_of(&app, 0), None, "what was left is stopped");
    assert!(world.master_container(&app).is_some(), "its master has a moment");
    world.pass(6_000, &[]);
    assert!(world.nodes.values().all(|node| node.containers.is_empty()), "and all is forgotten");
}

#[test]
fn the_same_submission_twice_is_one_application() {
    let mut world = World::new();
    let first = world.submit(spec("flights", 1)).expect("admitted");
    world.submissions -= 1;
    assert_eq!(world.submit(spec("flights", 1)), Ok(first));
}

#[test]
fn a_second_live_application_of_a_job_is_refused_and_the_refusal_says_the_way_out() {
    let mut world = World::new();
    let first = world.submit(spec("flights", 1)).expect("admitted");
    let refusal = world.submit(spec("flights", 1)).expect_err("one is live");
    assert!(matches!(&refusal, Denied::LiveJob { app, .. } if *app == first));
    let text = refusal.to_string();
    assert!(text.contains(&first.0) && text.contains("--replace") && text.contains("samza stop"), "{text}");
    world.submit(spec("other", 1)).expect("another name is another job");
}

#[test]
fn a_job_that_would_share_topics_with_a_live_one_is_refused_and_told_which() {
    let mut world = World::new();
    world.submit(spec("air-traffic", 1)).expect("admitted");
    for name in ["air_traffic", "Air-Traffic", "air.traffic"] {
        let refusal = world.submit(spec(name, 1)).expect_err("its names are too much alike").to_string();
        assert!(refusal.contains(name) && refusal.contains("`air-traffic-1`"), "{refusal}");
    }
    world.submit(spec("air-traffic-2", 1)).expect("another name is another job");
}

#[test]
fn a_replacement_starts_when_the_former_application_is_over() {
    let mut world = World::new();
    world.join("a", "r1");
    let (old, _) = world.running_job("flights", 1);
    let new = world.submit_as(spec("flights", 1), true).expect("replace is allowed");
    assert!(world.heard(&old).contains(&ToAm::Stop(StopJob { kill: false })));
    assert!(world.master_container(&new).is_none());
    world.say(&old, FromAm::Finish(JobOutcome::Finished));
    assert!(world.master_container(&new).is_some());
    assert!(world.report(&old).diagnostics.contains(&new.0));
}

#[test]
fn a_replacement_that_waits_survives_a_restart() {
    let mut world = World::new();
    world.join("a", "r1");
    let (old, _) = world.running_job("flights", 1);
    let new = world.submit_as(spec("flights", 1), true).expect("replace is allowed");
    world.restart();
    world.connect("a");
    let welcome = world.register(&old, vec![]);
    assert_eq!(welcome.stop, Some(StopJob { kill: false }));
    world.say(&old, FromAm::Finish(JobOutcome::Finished));
    assert!(world.master_container(&new).is_some());
}

#[test]
fn a_dead_master_is_followed_by_the_next_attempt_and_its_containers_run_on() {
    let mut world = World::new();
    world.join("a", "r1");
    world.join("b", "r2");
    let (app, ids) = world.running_job("flights", 2);
    for attempt in 2..=20 {
        world.pass(11_000, &[&app]);
        let (_, master) = world.master_container(&app).expect("it runs");
        world.exit(master.id, ExitCause::Signal { signal: 9 });
        let (_, next) = world.master_container(&app).expect("the next attempt is placed at once");
        assert_eq!(next.role, Role::AppMaster { attempt });
        let welcome = world.register(&app, vec![]);
        let adopted: Vec<_> = welcome.containers.iter().map(|it| it.report.id).collect();
        assert_eq!(adopted, ids, "the next attempt is given what runs");
        let address = (app.clone(), attempt, format!("am:{attempt}"));
        assert!(world.nodes.values().any(|node| node.addresses.last() == Some(&address)));
    }
    assert_eq!(world.report(&app).state, AppState::Running);
    assert!(ids.iter().all(|id| world.starts()[id] == 1));
}

#[test]
fn attempts_that_fail_again_and_again_fail_the_application_with_the_reason() {
    let mut world = World::new();
    world.join("a", "r1");
    world.nodes.get_mut(&"a".into()).expect("joined").launch_failure =
        Some("no such file: app-master".into());
    let app = world.submit(spec("flights", 1)).expect("admitted");
    world.pass(60_000, &[]);
    let report = world.report(&app);
    assert_eq!(report.state, AppState::Failed);
    assert!(report.diagnostics.contains("failed 8 times"), "{}", report.diagnostics);
    assert!(report.diagnostics.contains("no such file: app-master"), "{}", report.diagnostics);
    assert!(world.nodes.values().all(|node| node.containers.is_empty()));
}

#[test]
fn a_silent_master_is_stopped_and_followed_only_after_its_exit() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, _) = world.running_job("flights", 1);
    let node = world.nodes.get_mut(&"a".into()).expect("joined");
    node.stubborn = true;
    let (_, first) = world.master_container(&app).expect("it runs");
    world.pass(9_000, &[]);
    assert!(world.report(&app).diagnostics.is_empty());
    world.pass(2_000, &[]);
    assert!(world.report(&app).diagnostics.contains("silent"), "{}", world.report(&app).diagnostics);
    assert_eq!(world.master_container(&app).map(|it| it.1.id), Some(first.id), "it is still there");
    assert!(world.try_register(&app, vec![]).is_err(), "it comes back too late");
    world.exit(first.id, ExitCause::KilledByAm);
    let (_, second) = world.master_container(&app).expect("the next attempt");
    assert_eq!(second.role, Role::AppMaster { attempt: 2 });
}

#[test]
fn stop_reaches_the_master_and_starts_one_if_there_is_none() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, _) = world.running_job("flights", 1);
    let (_, master) = world.master_container(&app).expect("it runs");
    world.core.stop(world.now, "flights-1", false, &mut vec![]).expect("it is live");
    world.exit(master.id, ExitCause::Signal { signal: 9 });
    assert_eq!(world.report(&app).state, AppState::Stopping);
    let welcome = world.register(&app, vec![]);
    assert_eq!(welcome.stop, Some(StopJob { kill: false }), "the next attempt does the fencing stop");
    world.say(&app, FromAm::Finish(JobOutcome::Finished));
    let report = world.report(&app);
    assert_eq!((report.state, report.diagnostics.as_str()), (AppState::Finished, "stopped by a user"));
    assert!(matches!(world.core.stop(world.now, "flights-1", false, &mut vec![]), Err(Denied::Over(_))));
}

#[test]
fn a_job_that_never_registered_stops_at_once() {
    let mut world = World::new();
    let app = world.submit(spec("flights", 1)).expect("admitted");
    assert!(world.report(&app).diagnostics.contains("no node has joined"));
    let mut out = vec![];
    world.core.stop(world.now, "flights", false, &mut out).expect("it is live");
    world.run(out);
    assert_eq!(world.report(&app).state, AppState::Finished);
}

#[test]
fn a_kill_that_the_master_does_not_obey_is_done_by_the_resource_manager() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, _) = world.running_job("flights", 2);
    let mut out = vec![];
    world.core.stop(world.now, &app.0, true, &mut out).expect("it is live");
    world.run(out);
    assert!(world.heard(&app).contains(&ToAm::Stop(StopJob { kill: true })));
    world.pass(14_000, &[&app]);
    assert_eq!(world.report(&app).state, AppState::Stopping);
    world.pass(8_000, &[&app]);
    assert_eq!(world.report(&app).state, AppState::Killed);
    assert!(world.nodes.values().all(|node| node.containers.is_empty()), "nothing of it is left");
}

#[test]
fn an_exit_is_kept_until_the_master_has_acted_on_it() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, ids) = world.running_job("flights", 1);
    world.exit(ids[0], ExitCause::Failed { code: 3 });
    assert!(world.nodes[&"a".into()].containers.contains_key(&ids[0]));
    let welcome = world.register(&app, vec![]);
    let exit = ContainerState::Exited { exit: ExitCause::Failed { code: 3 } };
    assert_eq!(welcome.containers[0].report.state, exit, "a master that missed it is told");
    world.say(&app, FromAm::AckExit(ids[0]));
    assert!(world.nodes[&"a".into()].forgotten.contains(&ids[0]));
    assert!(world.register(&app, vec![]).containers.is_empty());
    assert_eq!(world.report(&app).containers.len(), 2, "users still see it");
}

#[test]
fn an_ask_is_answered_at_most_once() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, ids) = world.running_job("flights", 1);
    world.say(&app, FromAm::Ask(ask(request(1, 0, 1))));
    assert_eq!(world.starts().len(), 2, "master and container");
    world.exit(ids[0], ExitCause::Failed { code: 1 });
    world.say(&app, FromAm::AckExit(ids[0]));
    world.say(&app, FromAm::Ask(ask(request(1, 0, 1))));
    assert_eq!(world.starts().len(), 2, "that try is spent");
    world.say(&app, FromAm::Ask(ask(request(1, 0, 2))));
    assert_eq!(world.starts().len(), 3);
}

#[test]
fn a_cancelled_ask_is_not_answered() {
    let mut world = World::new();
    world.join("a", "r1");
    let app = world.submit(spec("flights", 1)).expect("admitted");
    world.register(&app, vec![]);
    let mut large = ask(request(1, 0, 1));
    large.resource.memory_bytes = 1 << 40;
    world.say(&app, FromAm::Ask(large));
    assert_eq!(world.report(&app).waiting.len(), 1);
    world.say(&app, FromAm::CancelAsk(request(1, 0, 1)));
    assert!(world.report(&app).waiting.is_empty());
    world.join("b", "r1");
    assert_eq!(world.starts().len(), 1);
}

#[test]
fn every_minted_incarnation_is_higher_than_those_before_it_across_restarts() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, ids) = world.running_job("flights", 2);
    world.say(&app, FromAm::Mint { nonce: 7 });
    let minted = |world: &World| match world.heard(&app).last() {
        Some(ToAm::Minted { nonce: 7, incarnation }) => *incarnation,
        other => panic!("minted, not {other:?}"),
    };
    let first = minted(&world);
    assert!(ids.iter().all(|id| id.0 < first));
    world.restart();
    world.connect("a");
    world.register(&app, vec![]);
    world.say(&app, FromAm::Mint { nonce: 7 });
    assert!(minted(&world) > first);
}

#[test]
fn applications_that_ended_long_ago_are_dropped_from_the_store() {
    let mut world = World::with(Config { keep_apps: 3, ..Config::default() });
    for n in 0..6 {
        let app = world.submit(spec("flights", 1)).expect("admitted");
        let mut out = vec![];
        world.core.stop(world.now, &app.0, true, &mut out).expect("it is live");
        world.run(out);
        assert_eq!(world.store.len(), (n + 1).min(3));
    }
}

#[test]
fn a_master_too_large_for_every_node_says_so() {
    let mut world = World::new();
    world.join("a", "r1");
    let mut large = spec("flights", 1);
    large.app_master = types::Resource { memory_bytes: 1 << 40, ..small() };
    let app = world.submit(large).expect("admitted");
    let report = world.report(&app);
    assert!(report.diagnostics.contains("1 node is too small"), "{}", report.diagnostics);
}
