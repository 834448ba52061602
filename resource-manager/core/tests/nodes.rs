//! Leases, resync, and a resource manager that comes back.

mod world;

use std::collections::BTreeSet;

use rm_core::Denied;
use rm_core::Event;
use types::{
    AppId, AppState, ContainerId, ContainerState, ContainerUsage, ExitCause, FromAm, FromNode, NodeBeat,
    NodeStateName, Pressure, ToAm,
};
use world::{World, ask, request, spec};

#[test]
fn a_node_that_misses_three_beats_is_suspect_and_gets_nothing_new() {
    let mut world = World::new();
    world.join("a", "r1");
    let app = world.submit(spec("flights", 1)).expect("admitted");
    world.register(&app, vec![]);
    world.cut("a");
    world.pass(1_000, &[&app]);
    assert_eq!(world.node_report("a").state, NodeStateName::Active);
    world.pass(1_000, &[&app]);
    assert_eq!(world.node_report("a").state, NodeStateName::Suspect);
    world.say(&app, FromAm::Ask(ask(request(1, 0, 1))));
    assert_eq!(world.report(&app).waiting[0].reasons, ["1 node is suspect"]);
    world.connect("a");
    assert_eq!(world.node_report("a").state, NodeStateName::Active);
    assert!(world.container_of(&app, 0).is_some(), "it is placed as soon as the node is back");
}

#[test]
fn a_lost_session_alone_replaces_nobody() {
    let mut world = World::new();
    world.join("a", "r1");
    world.join("b", "r1");
    let (app, ids) = world.running_job("flights", 2);
    for _ in 0..5 {
        world.cut("a");
        world.pass(3_000, &[&app]);
        world.connect("a");
    }
    assert!(ids.iter().all(|id| world.starts()[id] == 1));
    assert_eq!(world.starts().len(), 3);
    assert_eq!(world.report(&app).containers_running, 2);
}

#[test]
fn a_lost_nodes_containers_are_node_lost_after_the_lease_and_its_margin_and_not_before() {
    let mut world = World::new();
    world.join("a", "r1");
    world.join("b", "r2");
    let (app, _) = world.running_job("flights", 2);
    let (master_on, _) = world.master_container(&app).expect("it runs");
    let other = if master_on.0 == "a" { "b" } else { "a" };
    let lost: Vec<_> =
        (0..2).filter_map(|slot| world.container_of(&app, slot)).filter(|it| it.1.0 == other).collect();
    assert!(!lost.is_empty());
    world.power_off(other);
    world.pass(5_400, &[&app]);
    assert!(!world.heard(&app).iter().any(is_node_lost));
    world.pass(300, &[&app]);
    assert!(world.heard(&app).iter().any(is_node_lost));
    assert_eq!(world.node_report(other).state, NodeStateName::Lost);
    assert!(world.node_store[&other.into()].lost);
}

fn is_node_lost(item: &ToAm) -> bool {
    matches!(item, ToAm::Container(it) if it.report.state == ContainerState::Exited { exit: ExitCause::NodeLost })
}

#[test]
fn what_was_replaced_is_stopped_when_its_node_is_back() {
    let mut world = World::new();
    world.join("a", "r1");
    world.join("b", "r2");
    let (app, ids) = world.running_job("flights", 2);
    let (master_on, _) = world.master_container(&app).expect("it runs");
    let away = if master_on.0 == "a" { "b" } else { "a" };
    let slot =
        (0..2).find(|slot| world.container_of(&app, *slot).is_some_and(|it| it.1.0 == away)).expect("spread");
    world.cut(away);
    world.pass(6_000, &[&app]);
    world.say(&app, FromAm::AckExit(ids[slot as usize]));
    world.say(&app, FromAm::Ask(ask(request(1, slot, 2))));
    let (successor, _) = world.container_of(&app, slot).expect("it is replaced");
    assert!(successor > ids[slot as usize]);
    assert_eq!(world.nodes[&away.into()].containers[&ids[slot as usize]].state, ContainerState::Running);
    world.connect(away);
    assert!(world.nodes[&away.into()].forgotten.contains(&ids[slot as usize]), "stopped, told, forgotten");
    assert_eq!(world.container_of(&app, slot).map(|it| it.0), Some(successor));
}

#[test]
fn another_boot_means_that_the_old_containers_are_lost() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, _) = world.running_job("flights", 1);
    world.power_off("a");
    world.connect("a");
    let (_, next) = world.master_container(&app).expect("the next attempt is placed at once");
    assert_eq!(next.role, types::Role::AppMaster { attempt: 2 });
    let welcome = world.register(&app, vec![]);
    assert_eq!(welcome.containers[0].report.state, ContainerState::Exited { exit: ExitCause::NodeLost });
}

#[test]
fn a_start_that_was_lost_on_the_way_is_said_again() {
    let mut world = World::new();
    world.join("a", "r1");
    let app = world.submit(spec("flights", 1)).expect("admitted");
    world.register(&app, vec![]);
    // The node is deaf, and the core does not know it yet.
    let session = world.nodes.get_mut(&"a".into()).expect("joined").session.take();
    world.say(&app, FromAm::Ask(ask(request(1, 0, 1))));
    assert!(session.is_some() && world.container_of(&app, 0).is_none());
    world.connect("a");
    assert!(world.container_of(&app, 0).is_some());
    assert_eq!(world.starts().values().max(), Some(&1));
}

#[test]
fn two_machines_of_one_node_id_do_not_take_turns() {
    let mut world = World::new();
    world.join("a", "r1");
    let node = world.nodes.get_mut(&"a".into()).expect("joined");
    let own = node.hello.incarnation.clone();
    node.hello.incarnation.state_id = "another root".into();
    assert_eq!(world.try_connect("a"), Err(Denied::NodeIdTaken("a".into())));
    world.nodes.get_mut(&"a".into()).expect("joined").hello.incarnation = own;
    world.try_connect("a").expect("the same machine may always come back");
}

#[test]
fn a_restart_disturbs_nothing() {
    let mut world = World::new();
    for node in ["a", "b", "c"] {
        world.join(node, "r1");
    }
    let (app, ids) = world.running_job("flights", 3);
    world.restart();
    world.pass(400, &[]);
    world.connect("a");
    world.connect("b");
    assert!(world.core.recovering());
    let (_, master) = world.master_container(&app).expect("it runs");
    assert_eq!(world.try_register(&app, vec![]), Err(Denied::Recovering), "its list would have holes");
    world.connect("c");
    let welcome = world.register(&app, vec![]);
    assert_eq!(welcome.containers.iter().map(|it| it.report.id).collect::<Vec<_>>(), ids);
    world.pass(20_000, &[&app]);
    assert_eq!(world.starts().len(), 4, "nothing was started");
    assert_eq!(world.master_container(&app).map(|it| it.1.id), Some(master.id), "nothing was stopped");
    assert_eq!(world.report(&app).state, AppState::Running);
}

#[test]
fn an_exit_during_the_restart_is_told_with_its_code_and_answered() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, ids) = world.running_job("flights", 1);
    world.restart();
    world.exit(ids[0], ExitCause::Failed { code: 7 });
    world.connect("a");
    let welcome = world.register(&app, vec![]);
    assert_eq!(
        welcome.containers[0].report.state,
        ContainerState::Exited { exit: ExitCause::Failed { code: 7 } }
    );
    world.say(&app, FromAm::AckExit(ids[0]));
    world.say(&app, FromAm::Ask(ask(request(1, 0, 2))));
    assert!(world.container_of(&app, 0).is_some());
    assert!(world.nodes[&"a".into()].forgotten.contains(&ids[0]));
}

#[test]
fn a_stored_node_that_never_reports_is_lost_after_a_full_lease_from_the_start() {
    let mut world = World::new();
    world.join("a", "r1");
    world.join("b", "r2");
    let (app, _) = world.running_job("flights", 2);
    let (master_on, _) = world.master_container(&app).expect("it runs");
    let (stays, goes) = if master_on.0 == "a" { ("a", "b") } else { ("b", "a") };
    world.power_off(goes);
    world.pass(60_000, &[]);
    let (_, master) = world.master_container(&app).map_or((None, None), |it| (Some(it.0), Some(it.1)));
    assert!(master.is_some());
    world.register(&app, vec![]);
    // Down for long: the leases of those who are still there count from the new start.
    world.restart();
    world.now = world.now.plus(1_000);
    world.connect(stays);
    world.pass(30_000, &[]);
    assert_eq!(world.node_report(stays).state, NodeStateName::Active);
    assert_eq!(world.node_report(goes).state, NodeStateName::Lost);
    assert!(!world.core.recovering());
}

#[test]
fn containers_of_unknown_applications_are_stopped_and_forgotten() {
    let mut world = World::new();
    world.join("a", "r1");
    world.running_job("flights", 2);
    world.store.clear();
    world.restart();
    world.connect("a");
    assert!(world.nodes[&"a".into()].containers.is_empty());
    assert_eq!(world.node_report("a").used, types::Resource::default());
}

#[test]
fn what_was_replaced_is_stopped_though_the_resource_manager_was_replaced_too() {
    let mut world = World::new();
    world.join("a", "r1");
    world.join("b", "r2");
    let (app, ids) = world.running_job("flights", 2);
    let (master_on, _) = world.master_container(&app).expect("it runs");
    let (stays, away) = if master_on.0 == "a" { ("a", "b") } else { ("b", "a") };
    let slot =
        (0..2).find(|slot| world.container_of(&app, *slot).is_some_and(|it| it.1.0 == away)).expect("spread");
    world.cut(away);
    world.pass(6_000, &[&app]);
    world.say(&app, FromAm::Ask(ask(request(1, slot, 2))));
    let (successor, _) = world.container_of(&app, slot).expect("it is replaced");
    world.restart();
    world.connect(away);
    world.connect(stays);
    world.register(&app, vec![]);
    assert!(world.nodes[&away.into()].forgotten.contains(&ids[slot as usize]), "stopped, told, forgotten");
    assert_eq!(world.container_of(&app, slot).map(|it| it.0), Some(successor));
}

#[test]
fn after_a_pause_of_its_own_it_listens_before_it_judges() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, _) = world.running_job("flights", 1);
    world.now = world.now.plus(60_000);
    world.settle();
    assert_ne!(world.node_report("a").state, NodeStateName::Lost);
    world.pass(5_000, &[&app]);
    assert_eq!(world.node_report("a").state, NodeStateName::Active);
    assert_eq!(world.starts().len(), 2, "nobody was replaced");
}

#[test]
fn an_unhealthy_node_gets_nothing_new_and_says_why() {
    let mut world = World::new();
    world.join("a", "r1");
    let session = world.nodes[&"a".into()].session.as_ref().expect("connected").session;
    let beat = NodeBeat { sent_at_ms: 1, unhealthy: Some("disk full".into()) };
    world.apply(Event::NodeItem { node: "a".into(), session, item: FromNode::Beat(beat) });
    let app = world.submit(spec("flights", 1)).expect("admitted");
    assert!(world.report(&app).diagnostics.contains("1 node is unhealthy: disk full"));
    world.pass(1_000, &[]);
    assert!(world.master_container(&app).is_some(), "its next beat was well again");
}

#[test]
fn what_a_container_uses_and_waits_for_is_shown_while_it_lives() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, ids) = world.running_job("flights", 1);
    let session = world.nodes[&"a".into()].session.as_ref().expect("connected").session;
    let pressure = Some(Pressure { cpu: 7, memory: 0, io: 90 });
    let usage = ContainerUsage { container: ids[0], memory_bytes: 5, cpu_millis: 30, pressure };
    world.apply(Event::NodeItem { node: "a".into(), session, item: FromNode::Usage(vec![usage]) });
    let shown = |world: &World| {
        let report = world.report(&app);
        let container = report.containers.into_iter().find(|it| it.container == ids[0]).expect("known");
        (container.memory_bytes, container.cpu_millis, container.pressure)
    };
    assert_eq!(shown(&world), (Some(5), Some(30), pressure));
    world.exit(ids[0], ExitCause::Failed { code: 1 });
    assert_eq!(shown(&world), (None, None, None));
}

#[test]
fn words_of_a_former_session_change_nothing() {
    let mut world = World::new();
    world.join("a", "r1");
    let old = world.nodes[&"a".into()].session.as_ref().expect("connected").session;
    world.connect("a");
    let item = FromNode::Beat(NodeBeat::default());
    let event = Event::NodeItem { node: "a".into(), session: old, item };
    assert_eq!(world.try_apply(event), Err(Denied::StaleSession));
}

/// A job on node a, which has 5 s to be empty and ends nothing by itself, beside an empty node b.
fn drained() -> (World, AppId, Vec<ContainerId>) {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, ids) = world.running_job("flights", 1);
    world.join("b", "r2");
    world.nodes.get_mut(&"a".into()).expect("joined").stubborn = true;
    world.apply(Event::Drain { node: "a".into(), grace_ms: Some(5_000) });
    (world, app, ids)
}

/// What node a was told to stop.
fn told(world: &World) -> BTreeSet<ContainerId> {
    world.nodes[&"a".into()].stops.clone()
}

#[test]
fn a_drained_node_gives_its_containers_away_the_master_last_and_stays_empty_until_it_is_taken_back() {
    let (mut world, app, ids) = drained();
    let leave = ToAm::Leave { container: ids[0], within_ms: 5_000 };
    assert!(world.heard(&app).contains(&leave), "the master is asked first");
    assert_eq!(told(&world), [].into());
    let stop = FromAm::Stop { container: ids[0], grace_ms: 5_000, cause: ExitCause::Preempted };
    world.say(&app, stop);
    assert_eq!(told(&world), [ids[0]].into(), "the container is told to end, the master is not yet");
    assert_eq!(world.node_report("a").state, NodeStateName::Draining);
    world.restart();
    world.connect("a");
    world.connect("b");
    world.register(&app, vec![]);
    assert_eq!(world.node_report("a").state, NodeStateName::Draining, "it is remembered");
    world.exit(ids[0], ExitCause::Preempted);
    let (_, master) = world.master_container(&app).expect("it lives");
    assert_eq!(told(&world), [ids[0], master.id].into(), "now the master goes");
    world.exit(master.id, ExitCause::Preempted);
    let (place, next) = world.master_container(&app).expect("the next attempt is placed at once");
    assert_eq!((place.0.as_str(), next.role), ("b", types::Role::AppMaster { attempt: 2 }));
    assert_eq!(world.node_report("a").state, NodeStateName::Drained);
    world.register(&app, vec![]);
    world.say(&app, FromAm::AckExit(ids[0]));
    world.say(&app, FromAm::Ask(ask(request(2, 0, 1))));
    assert_eq!(world.container_of(&app, 0).map(|it| it.1.0), Some("b".to_owned()));
    world.apply(Event::Drain { node: "a".into(), grace_ms: None });
    assert_eq!(world.node_report("a").state, NodeStateName::Active);
}

#[test]
fn containers_whose_masters_do_nothing_are_told_to_leave_at_half_of_the_time() {
    let (mut world, app, ids) = drained();
    world.pass(2_000, &[&app]);
    assert_eq!(told(&world), [].into());
    world.pass(600, &[&app]);
    assert_eq!(told(&world), [ids[0]].into());
}

#[test]
fn containers_whose_master_is_away_are_told_to_leave_at_once() {
    let mut world = World::new();
    world.join("a", "r1");
    let (app, ids) = world.running_job("flights", 1);
    world.nodes.get_mut(&"a".into()).expect("joined").stubborn = true;
    let session = world.masters[&app].session.expect("it has registered");
    world.apply(Event::AmGone { app, session });
    world.apply(Event::Drain { node: "a".into(), grace_ms: Some(5_000) });
    assert_eq!(world.nodes[&"a".into()].stops, [ids[0]].into());
}

#[test]
fn an_unknown_node_cannot_be_drained() {
    let mut world = World::new();
    let denied =
        world.try_apply(Event::Drain { node: "z".into(), grace_ms: None }).expect_err("it never joined");
    assert_eq!(denied.to_string(), "no node `z`; `samza nodes` shows what there is");
}
