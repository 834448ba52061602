//! Where containers go.

mod world;

use types::{Ask, FromAm, Resource, Spread, ToAm};
use world::{MIB, World, ask, prefer, request, small, spec};

/// Three nodes in two racks, one application with its master on the first; returns the node each ask got.
fn placed(asks: Vec<Ask>) -> Vec<Option<String>> {
    let (world, app) = asked(asks.clone());
    asks.iter().map(|it| world.container_of(&app, it.request.slot).map(|(_, node)| node.0)).collect()
}

fn asked(asks: Vec<Ask>) -> (World, types::AppId) {
    let mut world = World::new();
    for (node, rack) in [("a", "r1"), ("b", "r1"), ("c", "r2")] {
        world.join(node, rack);
    }
    let app = world.submit(spec("flights", 3)).expect("admitted");
    world.register(&app, asks);
    (world, app)
}

fn preferring(slot: u32, host: &str, rack: &str) -> Ask {
    Ask { preferences: vec![prefer(host, rack, 1)], ..ask(request(1, slot, 1)) }
}

#[test]
fn a_preferred_host_is_taken_whatever_its_case_and_alias() {
    let mut by_alias = preferring(2, "broker-3", "r2");
    by_alias.preferences[0].aliases = vec!["C".into()];
    let got = placed(vec![preferring(0, "B", "r1"), preferring(1, "a", "r1"), by_alias]);
    assert_eq!(got, [Some("b".into()), Some("a".into()), Some("c".into())]);
}

#[test]
fn the_heavier_preference_wins() {
    let mut it = ask(request(1, 0, 1));
    it.preferences = vec![prefer("a", "r1", 1), prefer("c", "r2", 9)];
    assert_eq!(placed(vec![it]), [Some("c".into())]);
}

#[test]
fn containers_without_preference_go_where_few_of_the_job_are() {
    let mut got = placed((0..3).map(|slot| ask(request(1, slot, 1))).collect());
    got.sort();
    assert_eq!(got, [Some("a".into()), Some("b".into()), Some("c".into())]);
}

#[test]
fn masters_go_to_the_least_used_node() {
    let mut world = World::new();
    world.join("a", "r1");
    world.join("b", "r1");
    let first = world.submit(spec("one", 1)).expect("admitted");
    let second = world.submit(spec("two", 1)).expect("admitted");
    let node = |app| world.master_container(app).expect("placed").0;
    assert_ne!(node(&first), node(&second));
}

/// Fills node `b`, then asks for a container that prefers it.
fn full_preferred() -> (World, types::AppId) {
    let (mut world, app) = asked(vec![]);
    let mut filler = preferring(0, "b", "r1");
    filler.resource = Resource { memory_bytes: 2000 * MIB, cpu_millis: 1000 };
    world.say(&app, FromAm::Ask(filler));
    assert_eq!(world.container_of(&app, 0).map(|it| it.1.0), Some("b".into()));
    world.say(&app, FromAm::Ask(preferring(1, "b", "r1")));
    (world, app)
}

#[test]
fn a_full_preferred_host_is_waited_for_then_its_rack() {
    let (mut world, app) = full_preferred();
    world.pass(900, &[&app]);
    assert_eq!(world.container_of(&app, 1), None);
    let reasons = &world.report(&app).waiting[0].reasons;
    assert_eq!(reasons, &["holds out for preferred hosts that are full: b"]);
    world.pass(200, &[&app]);
    assert_eq!(world.container_of(&app, 1).map(|it| it.1.0), Some("a".into()), "rack r1");
}

#[test]
fn a_full_rack_is_waited_for_then_anywhere() {
    let (mut world, app) = full_preferred();
    let mut filler = preferring(2, "a", "r1");
    filler.resource = Resource { memory_bytes: 1900 * MIB, cpu_millis: 1000 };
    world.say(&app, FromAm::Ask(filler));
    world.pass(1_400, &[&app]);
    assert_eq!(world.container_of(&app, 1), None);
    assert_eq!(world.report(&app).waiting[0].reasons, ["holds out for racks of preferred hosts: r1"]);
    world.pass(200, &[&app]);
    assert_eq!(world.container_of(&app, 1).map(|it| it.1.0), Some("c".into()));
}

#[test]
fn room_on_the_preferred_host_ends_the_wait() {
    let (mut world, app) = full_preferred();
    let (filler, _) = world.container_of(&app, 0).expect("it runs");
    world.pass(300, &[&app]);
    world.exit(filler, types::ExitCause::Success);
    assert_eq!(world.container_of(&app, 1).map(|it| it.1.0), Some("b".into()));
}

#[test]
fn a_preference_that_names_no_node_is_told_and_does_not_make_the_ask_wait() {
    let (mut world, app) = asked(vec![preferring(0, "elsewhere", "r2")]);
    assert_eq!(world.container_of(&app, 0).map(|it| it.1.0), Some("c".into()), "its rack still counts");
    let status = types::JobStatus {
        slots: vec![types::SlotStatus { slot: 0, ..Default::default() }],
        ..Default::default()
    };
    world.say(&app, FromAm::Status(Box::new(status)));
    let shown = world.report(&app).status.expect("it came").slots[0].unmatched.clone();
    assert_eq!(shown, ["no node is named elsewhere (leader)"]);
}

#[test]
fn a_preference_for_a_lost_node_does_not_make_the_ask_wait() {
    let (mut world, app) = asked(vec![]);
    let (master_on, _) = world.master_container(&app).expect("placed");
    assert_ne!(master_on.0, "c");
    world.power_off("c");
    world.pass(6_000, &[&app]);
    world.say(&app, FromAm::Ask(preferring(0, "c", "r2")));
    assert!(world.container_of(&app, 0).is_some());
}

#[test]
fn avoided_nodes_are_used_only_when_no_other_will_do() {
    let mut avoiding = preferring(0, "a", "r1");
    avoiding.avoid = vec!["a".into(), "b".into()];
    let mut no_choice = ask(request(1, 1, 1));
    no_choice.avoid = vec!["a".into(), "b".into(), "c".into()];
    let got = placed(vec![avoiding, no_choice]);
    assert_eq!(got[0], Some("c".into()));
    assert!(got[1].is_some());
}

#[test]
fn spread_keeps_containers_on_different_racks_when_possible() {
    let mut asks: Vec<Ask> = (0..3).map(|slot| preferring(slot, "a", "r1")).collect();
    for it in &mut asks {
        it.spread = Spread::Rack;
    }
    let got = placed(asks);
    assert_eq!(got[0], Some("a".into()));
    assert_eq!(got[1], Some("c".into()));
    assert!(got[2].is_some());
}

#[test]
fn labels_are_hard() {
    let mut it = ask(request(1, 0, 1));
    it.labels.insert("disk".into(), "ssd".into());
    let (mut world, app) = asked(vec![it]);
    assert_eq!(world.report(&app).waiting[0].reasons, ["3 nodes lack label disk=ssd"]);
    world.nodes.get_mut(&"b".into()).expect("joined").hello.labels.insert("disk".into(), "ssd".into());
    world.connect("b");
    assert_eq!(world.container_of(&app, 0).map(|it| it.1.0), Some("b".into()));
}

#[test]
fn reasons_are_counted_and_told_once() {
    let mut world = World::new();
    world.join_with("a", "r1", Resource { memory_bytes: 600 * MIB, cpu_millis: 2000 });
    world.join_with("b", "r1", Resource { memory_bytes: 600 * MIB, cpu_millis: 2000 });
    let app = world.submit(spec("flights", 3)).expect("admitted");
    let mut asks: Vec<Ask> = (0..3).map(|slot| ask(request(1, slot, 1))).collect();
    for it in &mut asks {
        it.resource = Resource { memory_bytes: 512 * MIB, ..small() };
    }
    world.register(&app, asks);
    let waits = |world: &World| {
        world.heard(&app).iter().filter(|it| matches!(it, ToAm::Waiting { .. })).cloned().collect::<Vec<_>>()
    };
    let reason = "2 nodes lack memory (need 512 MiB, most free 88 MiB)".to_owned();
    assert_eq!(world.report(&app).waiting[0].reasons, [reason]);
    assert_eq!(waits(&world).len(), 1);
    world.pass(5_000, &[&app]);
    assert_eq!(waits(&world).len(), 1);
}

#[test]
fn the_queue_is_served_by_priority_then_by_submission() {
    let mut world = World::new();
    let late = world.submit(spec("plain", 1)).expect("admitted");
    let mut urgent = spec("urgent", 1);
    urgent.priority = 5;
    let early = world.submit(urgent).expect("admitted");
    world.join_with("a", "r1", Resource { memory_bytes: 100 * MIB, cpu_millis: 2000 });
    assert!(world.master_container(&early).is_some());
    assert!(world.master_container(&late).is_none());
}
