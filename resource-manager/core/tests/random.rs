//! Random histories: any order of submissions, asks, exits, cuts, power losses, silences and restarts of the
//! resource manager keeps the invariants, and once the trouble ends every job is as it should be.

mod world;

use proptest::prelude::*;
use rm_core::{Config, Event};
use types::{AppId, AppState, ExitCause, FromAm, JobOutcome, NodeId, Role};
use world::{World, ask, prefer, request, spec};

const NODES: [&str; 4] = ["a", "b", "c", "d"];
const JOBS: [&str; 3] = ["one", "two", "three"];
const SLOTS: u32 = 3;

#[derive(Debug, Clone)]
enum Step {
    Submit { job: usize, replace: bool },
    Stop { job: usize, kill: bool },
    Register { job: usize },
    AskAll { job: usize },
    Finish { job: usize },
    ExitOne { pick: usize, code: i32 },
    Cut { node: usize },
    PowerOff { node: usize },
    Connect { node: usize },
    Deafen { node: usize },
    Drain { node: usize, back: bool },
    RestartRm,
    Pass { ms: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let job = 0..JOBS.len();
    let node = 0..NODES.len();
    let step = prop_oneof![
        3 => (job.clone(), any::<bool>()).prop_map(|(job, replace)| Step::Submit { job, replace }),
        1 => (job.clone(), any::<bool>()).prop_map(|(job, kill)| Step::Stop { job, kill }),
        5 => job.clone().prop_map(|job| Step::Register { job }),
        6 => job.clone().prop_map(|job| Step::AskAll { job }),
        1 => job.prop_map(|job| Step::Finish { job }),
        4 => (any::<usize>(), 0..3i32).prop_map(|(pick, code)| Step::ExitOne { pick, code }),
        2 => node.clone().prop_map(|node| Step::Cut { node }),
        1 => node.clone().prop_map(|node| Step::PowerOff { node }),
        4 => node.clone().prop_map(|node| Step::Connect { node }),
        1 => node.clone().prop_map(|node| Step::Deafen { node }),
        2 => (node, any::<bool>()).prop_map(|(node, back)| Step::Drain { node, back }),
        1 => Just(Step::RestartRm),
        4 => prop_oneof![Just(100u64), Just(600), Just(2_000), Just(7_000), Just(12_000)]
            .prop_map(|ms| Step::Pass { ms }),
    ];
    prop::collection::vec(step, 1..80)
}

fn live_app(world: &World, job: usize) -> Option<AppId> {
    world
        .core
        .view(world.now)
        .apps
        .into_iter()
        .find(|app| app.job.name == JOBS[job] && !app.state.is_over())
        .map(|it| it.app)
}

/// Its master, if one runs on a node that is connected, says Hello.
fn register(world: &mut World, app: &AppId) {
    let there = world
        .master_container(app)
        .is_some_and(|(node, report)| !report.state.is_exited() && world.nodes[&node].session.is_some());
    if there {
        let _ = world.try_register(app, vec![]);
    }
}

/// A master that wants every slot filled: acts on exits, asks for what is not there.
fn ask_all(world: &mut World, app: &AppId) {
    let Some(master) = world.masters.get(app).cloned().filter(|it| it.session.is_some()) else { return };
    let report = world.report(app);
    for slot in 0..SLOTS {
        let of_slot: Vec<_> = report.containers.iter().filter(|it| it.slot == Some(slot)).collect();
        for it in of_slot.iter().filter(|it| it.state.is_exited()) {
            world.say(app, FromAm::AckExit(it.container));
        }
        let waits = report.waiting.iter().any(|it| it.slot == slot);
        if !waits && of_slot.iter().all(|it| it.state.is_exited()) {
            let tries = world.tries.entry((app.clone(), master.attempt, slot)).or_default();
            *tries += 1;
            let mut it = ask(request(master.attempt, slot, *tries));
            it.preferences = vec![prefer(NODES[slot as usize], "r1", 3), prefer("nowhere", "", 2)];
            world.say(app, FromAm::Ask(it));
        }
    }
}

fn exit_one(world: &mut World, pick: usize, code: i32) {
    let live: Vec<_> = world
        .nodes
        .values()
        .flat_map(|node| node.containers.values())
        .filter(|it| !it.state.is_exited())
        .map(|it| it.id)
        .collect();
    if !live.is_empty() {
        let cause = if code == 0 { ExitCause::Success } else { ExitCause::Failed { code } };
        world.exit(live[pick % live.len()], cause);
    }
}

fn apply(world: &mut World, step: Step) {
    match step {
        Step::Submit { job, replace } => {
            let _ = world.submit_as(spec(JOBS[job], SLOTS), replace);
        }
        Step::Stop { job, kill } => {
            let name = format!("{}-1", JOBS[job]);
            let _ = world.try_apply(Event::Stop { name, kill });
            world.settle();
        }
        Step::Register { job } => {
            if let Some(app) = live_app(world, job) {
                register(world, &app);
            }
        }
        Step::AskAll { job } => {
            if let Some(app) = live_app(world, job) {
                ask_all(world, &app);
            }
        }
        Step::Finish { job } => {
            if let Some(app) = live_app(world, job) {
                world.say(&app, FromAm::Finish(JobOutcome::Finished));
            }
        }
        Step::ExitOne { pick, code } => exit_one(world, pick, code),
        Step::Cut { node } => world.cut(NODES[node]),
        Step::PowerOff { node } => world.power_off(NODES[node]),
        Step::Connect { node } => world.connect(NODES[node]),
        Step::Deafen { node } => {
            world.nodes.get_mut(&NodeId::from(NODES[node])).expect("joined").session = None;
        }
        Step::Drain { node, back } => {
            let grace_ms = (!back).then_some(1_000);
            world.try_apply(Event::Drain { node: NODES[node].into(), grace_ms }).expect("it has joined");
            world.settle();
        }
        Step::RestartRm => world.restart(),
        Step::Pass { ms } => world.pass(ms, &[]),
    }
}

/// No more trouble: nodes connect, masters beat and ask.
fn calm(world: &mut World) {
    for node in NODES {
        world.try_apply(Event::Drain { node: node.into(), grace_ms: None }).expect("it has joined");
    }
    for _ in 0..8 {
        for node in NODES {
            if world.nodes[&NodeId::from(node)].session.is_none() {
                world.connect(node);
            }
        }
        masters_act(world);
        world.pass(7_000, &[]);
    }
    masters_act(world);
    world.pass(2_000, &[]);
}

/// Every live application's master registers, fills its slots, or ends the job if it is told to.
fn masters_act(world: &mut World) {
    let live: Vec<_> =
        world.core.view(world.now).apps.into_iter().filter(|app| !app.state.is_over()).collect();
    for app in live {
        register(world, &app.app);
        match app.state {
            AppState::Stopping => world.say(&app.app, FromAm::Finish(JobOutcome::Finished)),
            _ => ask_all(world, &app.app),
        }
    }
}

fn everything_is_as_it_should_be(world: &World) {
    let view = world.core.view(world.now);
    assert!(!view.recovering);
    for app in view.apps.iter().filter(|app| !app.state.is_over()) {
        let (_, master) = world.master_container(&app.app).expect("a live application has a master");
        assert!(!master.state.is_exited());
        if app.state == AppState::Running {
            for slot in 0..SLOTS {
                let running = workers(world, &app.app, slot);
                assert_eq!(running, 1, "slot {slot} of {} in {:#?}", app.app, app);
            }
        }
    }
    for node in world.nodes.values() {
        for report in node.containers.values().filter(|it| !it.state.is_exited()) {
            let app = view.apps.iter().find(|app| app.app == report.app);
            assert!(app.is_some_and(|app| !app.state.is_over()), "{} is left behind", report.id);
        }
        let held = node.containers.values().filter(|it| !it.state.is_exited());
        let memory: u64 = held.map(|it| it.resource.memory_bytes).sum();
        assert!(memory <= node.hello.total.memory_bytes, "{} is over capacity", node.hello.node);
    }
    assert!(world.starts().values().all(|starts| *starts == 1), "one id runs at most once");
}

fn workers(world: &World, app: &AppId, slot: u32) -> usize {
    world
        .nodes
        .values()
        .flat_map(|node| node.containers.values())
        .filter(|it| it.app == *app && !it.state.is_exited())
        .filter(|it| matches!(it.role, Role::Worker { request } if request.slot == slot))
        .count()
}

/// How many histories: 1,500, or `RM_CORE_HISTORIES` for a longer look.
fn histories() -> u32 {
    std::env::var("RM_CORE_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(), ..ProptestConfig::default() })]
    #[test]
    fn any_history_keeps_the_invariants_and_heals(steps in steps()) {
        // Attempts die often here, and a failed application would have nothing left to check.
        let mut world = World::with(Config { am_failures: 10_000, ..Config::default() });
        for (at, node) in NODES.iter().enumerate() {
            world.join(node, if at < 2 { "r1" } else { "r2" });
        }
        for step in steps {
            apply(&mut world, step);
        }
        calm(&mut world);
        everything_is_as_it_should_be(&world);
    }
}
