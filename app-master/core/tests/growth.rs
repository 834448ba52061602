//! Inputs that change shape: taken up, told, or refused with the way out.

mod stage;

use std::collections::BTreeMap;

use am_core::growth::{Running, look, partition_counts};
use am_core::job_model::{ModelError, build, changelog_mapping};
use am_core::place::{Facts, PartitionPlace, RememberedModel, Topology};
use am_core::{AmCore, Command, Event, Failure, HelloAnswer};
use proptest::prelude::*;
use stage::*;
use types::*;

fn stream(name: &str) -> SystemStream {
    SystemStream { system: "kafka".into(), stream: name.into() }
}

fn stateless(containers: u32) -> JobSpec {
    let mut spec = spec(containers);
    spec.stores.clear();
    spec
}

fn places(count: usize) -> Vec<PartitionPlace> {
    vec![PartitionPlace { leader: Some(1), replicas: vec![1] }; count]
}

fn topics(of: &[(&str, usize)]) -> Topology {
    let mut topology = topology(3, &[]);
    topology.streams = of.iter().map(|(name, count)| (stream(name), places(*count))).collect();
    topology
}

fn known(made: &RememberedModel, topology: Topology) -> Facts {
    let mut facts = Facts { topology, ..Facts::default() };
    facts.remembered.changelog = changelog_mapping(&made.model);
    facts.remembered.model = Some(made.clone());
    facts
}

/// A model for another application, `before` being remembered and `now` being there.
fn resubmit(
    first: &JobSpec,
    then: &JobSpec,
    before: &[(&str, usize)],
    now: &[(&str, usize)],
) -> Result<RememberedModel, ModelError> {
    let made = build(first, &"app".into(), &Facts { topology: topics(before), ..Facts::default() })?;
    build(then, &"app2".into(), &known(&made, topics(now)))
}

fn tasks(model: &JobModel) -> BTreeMap<String, &TaskModel> {
    model.containers.values().flat_map(|c| &c.tasks).map(|t| (t.name.0.clone(), t)).collect()
}

#[test]
fn a_job_without_stores_takes_added_partitions_up_at_its_next_submit_and_reads_them_from_their_beginning() {
    let job = stateless(2);
    let made = resubmit(&job, &job, &[("in", 2)], &[("in", 5)]).expect("nothing is lost by it");
    let tasks = tasks(&made.model);
    assert_eq!(tasks.len(), 5);
    assert_eq!(tasks["Partition 4"].changelog_partition, 4);
    assert_eq!((tasks["Partition 1"].added.len(), tasks["Partition 4"].added.len()), (0, 1));
}

#[test]
fn a_job_with_stores_is_refused_when_an_input_grew_unless_it_says_extend() {
    let mut job = spec(1);
    let error = resubmit(&job, &job, &[("in", 2)], &[("in", 3)]).expect_err("keys part from their state");
    let told = error.to_string();
    assert!(told.contains("kafka.in has 3 partitions and had 2"), "{told}");
    assert!(told.contains("on-input-growth = \"extend\"") && told.contains("another [job] id"), "{told}");
    job.task.on_input_growth = OnInputGrowth::Extend;
    let made = resubmit(&job, &job, &[("in", 2)], &[("in", 3)]).expect("it says so");
    assert_eq!(changelog_mapping(&made.model)[&TaskName("Partition 2".into())], 2);
}

#[test]
fn growth_of_broadcasts_and_of_a_single_task_moves_no_key() {
    let mut two = spec(1);
    two.task.inputs.push("kafka.rules".into());
    two.streams
        .insert("kafka.rules".into(), StreamSpec { broadcast: true, ..StreamSpec::default_for("rules") });
    let made = resubmit(&two, &two, &[("in", 2), ("rules", 1)], &[("in", 2), ("rules", 3)])
        .expect("every task gets it");
    assert!(tasks(&made.model).values().all(|task| task.inputs.len() == 4 && task.added.len() == 2));
    let mut single = spec(1);
    single.task.grouper = Grouper::Single;
    let made = resubmit(&single, &single, &[("in", 2)], &[("in", 3)]).expect("one task keeps all keys");
    assert_eq!(
        tasks(&made.model)["Partition 0"].added,
        [SystemStreamPartition { stream: stream("in"), partition: 2 }]
    );
}

#[test]
fn an_added_partition_is_known_as_such_for_ever() {
    let job = stateless(1);
    let at_first = build(&job, &"a".into(), &Facts { topology: topics(&[("in", 1)]), ..Facts::default() });
    let grown =
        build(&job, &"b".into(), &known(&at_first.expect("a model"), topics(&[("in", 2)]))).expect("grows");
    let again = build(&job, &"c".into(), &known(&grown, topics(&[("in", 2)]))).expect("a model");
    assert_eq!(tasks(&again.model)["Partition 1"].added.len(), 1);
}

#[test]
fn what_would_leave_positions_behind_is_refused_by_name() {
    let (job, no_store) = (spec(1), stateless(1));
    for job in [&job, &no_store] {
        let shrank = resubmit(job, job, &[("in", 4)], &[("in", 3)]).expect_err("partition 3 has a position");
        assert!(shrank.to_string().contains("kafka.in has 3 partitions and had 4"), "{shrank}");
        let mut single = job.clone();
        single.task.grouper = Grouper::Single;
        let told = resubmit(job, &single, &[("in", 4)], &[("in", 4)]).expect_err("other tasks").to_string();
        assert!(told.contains("grouper is \"single\" and was \"partition\""), "{told}");
        let told = resubmit(&single, job, &[("in", 4)], &[("in", 4)]).expect_err("other tasks").to_string();
        assert!(told.contains("grouper is \"partition\" and was \"single\""), "{told}");
        let mut renamed = job.clone();
        renamed.task.inputs = vec!["kafka.other".into()];
        let told =
            resubmit(job, &renamed, &[("in", 2)], &[("other", 2)]).expect_err("forgets in").to_string();
        assert!(
            told.contains("kafka.in is not in [task] inputs") && told.contains("former-inputs"),
            "{told}"
        );
        renamed.task.former_inputs = vec!["kafka.in".into()];
        resubmit(job, &renamed, &[("in", 2)], &[("other", 2)]).expect("it is meant");
    }
    let mut single = spec(1);
    single.task.grouper = Grouper::Single;
    resubmit(&spec(1), &single, &[("in", 1)], &[("in", 1)]).expect("with one partition it is the same");
}

#[test]
fn an_input_that_is_no_broadcast_any_more_or_becomes_one_takes_no_position_from_a_task() {
    let mut shared = stateless(1);
    shared.task.inputs.push("kafka.b".into());
    let mut broadcast = shared.clone();
    broadcast
        .streams
        .insert("kafka.b".into(), StreamSpec { broadcast: true, ..StreamSpec::default_for("b") });
    let of = [("in", 1), ("b", 2)];
    for (first, then, task) in [(&broadcast, &shared, "Partition 0"), (&shared, &broadcast, "Partition 1")] {
        let told = resubmit(first, then, &of, &of).expect_err("a position is left behind").to_string();
        assert!(told.contains(&format!("task {task} has a position in partition 1 of kafka.b")), "{told}");
        assert!(told.contains("`broadcast` in [streams.\"kafka.b\"]"), "{told}");
    }
    let of = [("in", 2), ("b", 2)];
    resubmit(&shared, &broadcast, &of, &of).expect("all tasks go on, with more inputs");
    // The tasks of an input that is given up go with it, and others have read the broadcast as well.
    let mut three = broadcast.clone();
    three.task.inputs.push("kafka.c".into());
    let mut then = three.clone();
    then.task.inputs.retain(|input| input != "kafka.in");
    then.task.former_inputs = vec!["kafka.in".into()];
    resubmit(&three, &then, &[("in", 4), ("b", 1), ("c", 2)], &[("b", 1), ("c", 2)]).expect("it is meant");
}

#[test]
fn a_record_that_does_not_name_its_grouper_is_told_by_its_tasks() {
    let (job, mut single) = (spec(1), spec(1));
    single.task.grouper = Grouper::Single;
    for (first, then) in [(&job, &single), (&single, &job)] {
        let mut made =
            build(first, &"app".into(), &Facts { topology: topics(&[("in", 3)]), ..Facts::default() })
                .expect("a model");
        (made.grouper, made.home) = (None, None);
        let refused = build(then, &"app2".into(), &known(&made, topics(&[("in", 3)])));
        assert!(matches!(refused, Err(ModelError::GrouperChanged { .. })), "{refused:?}");
        build(first, &"app2".into(), &known(&made, topics(&[("in", 3)]))).expect("the same grouper");
    }
}

#[test]
fn a_pattern_reads_what_matches_it_by_the_same_rules() {
    let mut job = stateless(1);
    job.task.inputs = vec!["kafka./orders-.*/".into()];
    job.streams.insert(
        "kafka./orders-.*/".into(),
        StreamSpec { offset_default: OffsetDefault::Newest, ..StreamSpec::default_for("/orders-.*/") },
    );
    let there = [("orders-de", 1), ("orders-fr", 2)];
    let made = resubmit(&job, &job, &[("orders-de", 1)], &there).expect("a topic appeared");
    let of = tasks(&made.model);
    assert_eq!((of["Partition 0"].inputs.len(), of["Partition 1"].inputs.len()), (2, 1));
    assert_eq!(
        of["Partition 0"].added,
        [SystemStreamPartition { stream: stream("orders-fr"), partition: 0 }]
    );
    assert_eq!(job.stream(&stream("orders-fr")).offset_default, OffsetDefault::Newest);
    let made = resubmit(&job, &job, &there, &[("orders-fr", 2)]).expect("one that is gone is let go");
    assert_eq!(partition_counts(&made.model), BTreeMap::from([(stream("orders-fr"), 2)]));
    let mut stateful = job.clone();
    stateful.stores = spec(1).stores;
    let refused =
        resubmit(&stateful, &stateful, &[("orders-de", 1)], &there).expect_err("a new topic is growth");
    assert!(refused.to_string().contains("kafka.orders-fr is new with 2 partitions"), "{refused}");
}

/// Stage of a job that runs, all its containers talking and processing.
fn begun(job: &JobSpec, topology: Topology) -> (Stage, Vec<(Ask, ContainerId)>) {
    let mut stage = Stage::of(job.clone(), 1);
    let asked = asks(&stage.begin(Facts { topology, ..Facts::default() }, Vec::new()));
    let mut first: BTreeMap<u32, Ask> = BTreeMap::new();
    asked.into_iter().for_each(|ask| drop(first.insert(ask.request.slot, ask)));
    let launched = first.into_values().map(|ask| (ask.clone(), launch(&mut stage, &ask))).collect();
    (stage, launched)
}

fn launch(stage: &mut Stage, ask: &Ask) -> ContainerId {
    let container = stage.launch(ask, &format!("n{}", ask.request.slot));
    processes(stage, container);
    container
}

fn processes(stage: &mut Stage, container: ContainerId) {
    let status = ContainerStatus { phase: ContainerPhase::Running, ..ContainerStatus::default() };
    stage.core.container_status(stage.now, container, status);
}

fn plan(out: &[Command]) -> am_core::plan::Plan {
    let of = |c: &Command| if let Command::Prepare(plan) = c { Some((**plan).clone()) } else { None };
    out.iter().find_map(of).unwrap_or_else(|| panic!("no plan in {out:?}"))
}

fn model_of(stage: &mut Stage, container: ContainerId, slot: u32) -> ContainerModel {
    match stage.hello(container, slot) {
        Ok(HelloAnswer::Model(model)) => model,
        other => panic!("{other:?}"),
    }
}

/// Lets every container that is told to stop exit and start again; the slots in the order in which they were stopped.
fn roll(stage: &mut Stage, launched: &mut [(Ask, ContainerId)], mut out: Vec<Command>) -> Vec<u32> {
    let mut order = Vec::new();
    for _ in 0..100 {
        let stopped = stops(&out);
        assert!(stopped.len() <= 1, "one after the other: {stopped:?}");
        let Some((id, grace_ms)) = stopped.first().copied() else {
            if stage.core.next_deadline().is_some_and(|at| at <= stage.now) {
                out = stage.run(AmCore::handle_deadline);
                continue;
            }
            return order;
        };
        assert!(grace_ms > 0, "it commits before it ends");
        let (ask, at) = launched.iter_mut().find(|(_, at)| *at == id).expect("one of ours");
        order.push(ask.request.slot);
        let out_of_exit =
            stage.exit(ask.request, id, &format!("n{}", ask.request.slot), ExitCause::KilledByAm);
        assert!(stops(&out_of_exit).is_empty(), "the next waits until this one processes again");
        *ask = asks(&out_of_exit).pop().expect("it is asked for again at once");
        *at = launch(stage, ask);
        out = Vec::new();
    }
    panic!("it never ends");
}

#[test]
fn a_running_job_takes_added_partitions_up_one_container_after_the_other() {
    let (mut stage, mut launched) = begun(&stateless(3), topics(&[("in", 3)]));
    let out = stage.run(|c, now, out| c.topology_read(now, topics(&[("in", 5)]), out));
    assert!(stops(&out).is_empty(), "first the model is remembered");
    let plan = plan(&out);
    assert!(plan.extend && plan.model.generation == 2);
    assert_eq!(
        plan.topics.iter().map(|t| t.partitions).max(),
        Some(5),
        "a checkpoint partition for each task"
    );
    let out = stage.run(|c, now, out| c.prepared(now, Ok(Vec::new()), out));
    let order = roll(&mut stage, &mut launched, out);
    assert_eq!(order, [0, 1], "those that get a task, and no others");
    let mut all: Vec<String> = Vec::new();
    for (ask, container) in launched.clone() {
        let model = model_of(&mut stage, container, ask.request.slot);
        all.extend(model.tasks.iter().map(|t| t.name.0.clone()));
    }
    all.sort();
    assert_eq!(all, ["Partition 0", "Partition 1", "Partition 2", "Partition 3", "Partition 4"]);
    let status = stage.core.job_status(stage.now);
    assert_eq!((status.message.as_str(), status.warnings.len()), ("running", 0));
}

#[test]
fn a_running_job_with_stores_says_that_it_leaves_added_partitions_unread() {
    let (mut stage, _) = begun(&spec(1), topics(&[("in", 2)]));
    let out = stage.run(|c, now, out| c.topology_read(now, topics(&[("in", 4)]), out));
    assert!(stops(&out).is_empty() && !out.iter().any(|c| matches!(c, Command::Prepare(_))), "{out:?}");
    let warnings = stage.core.job_status(stage.now).warnings;
    assert!(warnings[0].contains("kafka.in has 4 partitions and had 2"), "{warnings:?}");
    stage.run(|c, now, out| c.topology_read(now, topics(&[("in", 1)]), out));
    let warnings = stage.core.job_status(stage.now).warnings;
    assert!(
        warnings[0].contains("kafka.in has 1 partition and had 2: was its topic made again?"),
        "{warnings:?}"
    );
    stage.run(|c, now, out| c.topology_read(now, topics(&[]), out));
    let warnings = stage.core.job_status(stage.now).warnings;
    assert!(warnings[0].contains("kafka.in is gone"), "{warnings:?}");
    stage.run(|c, now, out| c.topology_read(now, topics(&[("in", 2)]), out));
    assert!(stage.core.job_status(stage.now).warnings.is_empty(), "all is well again");
}

#[test]
fn topics_that_cannot_be_extended_leave_the_job_running_and_are_tried_again() {
    let (mut stage, _) = begun(&stateless(1), topics(&[("in", 1)]));
    stage.run(|c, now, out| c.topology_read(now, topics(&[("in", 2)]), out));
    let out = stage.run(|c, now, out| c.prepared(now, Err(Failure::Fatal("no right".into())), out));
    assert!(stops(&out).is_empty() && finish(&out).is_none(), "{out:?}");
    assert!(stage.core.job_status(stage.now).warnings[0].contains("not read yet: no right"));
    let out = stage.run(|c, now, out| c.topology_read(now, topics(&[("in", 2)]), out));
    plan(&out);
}

#[test]
fn the_next_master_restarts_those_that_still_have_the_old_model() {
    let job = stateless(2);
    let before = build(&job, &"app".into(), &Facts { topology: topics(&[("in", 2)]), ..Facts::default() })
        .expect("one");
    let changelog = changelog_mapping(&before.model);
    let there = topics(&[("in", 4)]);
    let running =
        Running { spec: &job, model: &before, changelog: &changelog, topology: &there, open: &[0, 1] };
    let grown = look(&running).model.expect("two more");
    let mut stage = Stage::of(job, 2);
    let request = |slot| RequestId { attempt: 1, slot, try_no: 1 };
    let live = |slot| placed(request(slot), id(u64::from(slot) + 1), "n", ContainerState::Running);
    stage.begin(known(&grown, there.clone()), vec![live(0), live(1)]);
    stage.seq = 9;
    let mut says = |slot: u32, model: &JobModel| {
        let status = ContainerStatus { phase: ContainerPhase::Running, ..ContainerStatus::default() };
        let model = Some(model.containers[&slot].clone());
        let hello = ContainerHello {
            app: "app".into(),
            container: id(u64::from(slot) + 1),
            slot,
            status,
            model,
            tells_metrics: false,
        };
        stage.core.container_hello(stage.now, &hello).expect("it is ours");
    };
    says(0, &grown.model);
    says(1, &before.model);
    assert!(stage.core.next_deadline().is_some_and(|at| at <= stage.now), "there is something to do at once");
    let out = stage.run(AmCore::handle_deadline);
    assert_eq!(stops(&out).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id(2)]);
}

#[test]
fn an_answer_that_comes_when_the_job_ends_changes_nothing() {
    let (mut stage, _) = begun(&stateless(1), topics(&[("in", 1)]));
    stage.run(|c, now, out| c.topology_read(now, topics(&[("in", 2)]), out));
    stage.run(|c, now, out| c.stop(now, StopJob { kill: false }, out));
    let out = stage.run(|c, now, out| c.apply(now, Event::Prepared(Ok(Vec::new())), out));
    assert!(out.is_empty(), "{out:?}");
}

#[test]
fn ten_thousand_tasks_are_modelled_and_grown_in_a_moment() {
    let mut job = stateless(1_000);
    job.task.inputs.push("kafka.rules".into());
    job.streams
        .insert("kafka.rules".into(), StreamSpec { broadcast: true, ..StreamSpec::default_for("rules") });
    let leaders = |n: usize| {
        (0..n).map(|p| PartitionPlace {
            leader: Some(i32::try_from(p % 7 % 3).expect("small") + 1),
            replicas: vec![],
        })
    };
    let of = |n: usize, rules: usize| {
        let mut topology = topics(&[("rules", rules)]);
        topology.streams.insert(stream("in"), leaders(n).collect());
        topology
    };
    let began = std::time::Instant::now();
    let made =
        build(&job, &"a".into(), &Facts { topology: of(10_000, 3), ..Facts::default() }).expect("a model");
    let again = build(&job, &"b".into(), &known(&made, of(10_000, 3))).expect("a model");
    assert_eq!(changelog_mapping(&again.model).len(), 10_000);
    let changelog = changelog_mapping(&made.model);
    let (there, open) = (of(12_000, 4), (0..1_000).collect::<Vec<u32>>());
    let grown =
        look(&Running { spec: &job, model: &made, changelog: &changelog, topology: &there, open: &open });
    assert_eq!(changelog_mapping(&grown.model.expect("grown").model).len(), 12_000);
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn growth_while_running_moves_nothing_and_ends_where_a_new_submit_would(
        before in proptest::collection::vec(1..6usize, 1..3), more in proptest::collection::vec(0..4usize, 3),
        slots in 1..4u32, broadcast in any::<bool>(), single in any::<bool>(),
    ) {
        let names = ["in", "b", "c"];
        let mut job = stateless(1);
        job.task.inputs = before.iter().zip(names).map(|(_, name)| format!("kafka.{name}")).collect();
        job.task.grouper = if single { Grouper::Single } else { Grouper::Partition };
        if broadcast && before.len() > 1 {
            job.streams.insert("kafka.b".into(), StreamSpec { broadcast: true, ..StreamSpec::default_for("b") });
        }
        let of = |more: &[usize]| topics(&before.iter().zip(names).zip(more).map(|((n, name), m)| (name, n + m)).collect::<Vec<_>>());
        let at_first = of(&[0, 0, 0]);
        let made = build(&job, &"a".into(), &Facts { topology: at_first, ..Facts::default() }).expect("a model");
        let changelog = changelog_mapping(&made.model);
        let open: Vec<u32> = (0..slots).collect();
        let there = of(&more);
        let grown = look(&Running { spec: &job, model: &made, changelog: &changelog, topology: &there, open: &open });
        prop_assert!(grown.warnings.is_empty());
        let now = grown.model.clone().unwrap_or_else(|| made.clone());
        let (old, new) = (tasks(&made.model), tasks(&now.model));
        for (name, task) in &old {
            let kept = new[name];
            prop_assert_eq!(kept.changelog_partition, task.changelog_partition);
            prop_assert!(task.inputs.iter().all(|input| kept.inputs.contains(input)));
            prop_assert!(kept.inputs.iter().all(|input| task.inputs.contains(input) || kept.added.contains(input)));
        }
        for (slot, container) in &made.model.containers {
            let names: Vec<&TaskName> = now.model.containers[slot].tasks.iter().map(|t| &t.name).collect();
            prop_assert!(container.tasks.iter().all(|t| names.contains(&&t.name)), "a task left slot {}", slot);
        }
        // The same tasks with the same inputs as if it were submitted anew.
        let anew = build(&job, &"b".into(), &known(&made, there.clone())).expect("a model");
        let sorted = |model: &JobModel| tasks(model).into_iter().map(|(name, t)| {
            let mut inputs = t.inputs.clone();
            inputs.sort();
            (name, inputs)
        }).collect::<Vec<_>>();
        prop_assert_eq!(sorted(&now.model), sorted(&anew.model));
        // And there is nothing left to do.
        let changelog = changelog_mapping(&now.model);
        let after = look(&Running { spec: &job, model: &now, changelog: &changelog, topology: &there, open: &open });
        prop_assert_eq!(after.model, None);
    }
    #[test]
    fn whatever_changes_at_a_new_submit_no_position_and_no_key_is_left_behind_unless_the_job_says_so(
        before in proptest::collection::vec(1..5usize, 1..4), now in proptest::collection::vec(0..6usize, 3),
        (stores, extend, former, broadcast) in any::<(bool, bool, bool, bool)>(), (single, other_grouper) in any::<(bool, bool)>(),
        containers in 1..3u32,
    ) {
        let names = ["in", "b", "c"];
        let had: Vec<(&str, usize)> = names.into_iter().zip(before).collect();
        // None: the job does not read it any more.
        let has: Vec<(&str, usize)> = had.iter().zip(now).map(|((name, _), n)| (*name, n)).filter(|(_, n)| *n > 0).collect();
        if has.is_empty() {
            return Ok(());
        }
        let job = |of: &[(&str, usize)], single: bool| {
            let mut job = if stores { spec(1) } else { stateless(1) };
            job.task.inputs = of.iter().map(|(name, _)| format!("kafka.{name}")).collect();
            job.task.grouper = if single { Grouper::Single } else { Grouper::Partition };
            job.task.on_input_growth = if extend { OnInputGrowth::Extend } else { OnInputGrowth::Fail };
            if broadcast && of.iter().any(|(name, _)| *name == "b") {
                job.streams.insert("kafka.b".into(), StreamSpec { broadcast: true, ..StreamSpec::default_for("b") });
            }
            job
        };
        let first = job(&had, single);
        let mut then = job(&has, single != other_grouper);
        then.containers.count = containers;
        let gone: Vec<&str> = had.iter().map(|(name, _)| *name).filter(|name| has.iter().all(|(n, _)| n != name)).collect();
        if former {
            then.task.former_inputs = gone.iter().map(|name| format!("kafka.{name}")).collect();
        }
        let made = build(&first, &"a".into(), &Facts { topology: topics(&had), ..Facts::default() }).expect("a model");
        let again = match build(&then, &"b".into(), &known(&made, topics(&has))) {
            Ok(again) => again,
            Err(error) => {
                prop_assert!(other_grouper || has != had || containers as usize > tasks(&made.model).len(), "nothing differs: {}", error);
                // It says what is there and what was, or which key to set.
                let told = error.to_string();
                prop_assert!(told.contains("had ") || matches!(error, ModelError::Tasks(_)) || told.contains("was ") || told.contains("[task]") || told.contains("[containers]"), "{}", told);
                return Ok(());
            }
        };
        let (old, new) = (tasks(&made.model), tasks(&again.model));
        let positions = |of: &BTreeMap<String, &TaskModel>| of.iter().flat_map(|(name, task)| {
            task.inputs.iter().map(|input| (name.clone(), input.clone())).collect::<Vec<_>>()
        }).collect::<std::collections::BTreeSet<_>>();
        // Of a task that is gone, what others have read and go on with.
        let is_kept = |of: &String, input: &SystemStreamPartition| {
            let goes_on = |(name, task): (&String, &&TaskModel)| task.inputs.contains(input) && new.get(name).is_some_and(|now| now.inputs.contains(input));
            !new.contains_key(of) && old.iter().any(goes_on)
        };
        for (name, input) in positions(&old).difference(&positions(&new)) {
            prop_assert!(
                former && gone.contains(&&*input.stream.stream) || is_kept(name, input),
                "the position of {} in {:?} is left behind", name, input
            );
        }
        for (name, task) in &old {
            let kept = new.get(name).map(|kept| kept.changelog_partition);
            prop_assert!(kept.is_none_or(|kept| kept == task.changelog_partition), "{} has the state of another", name);
            let is_given_up = former && task.inputs.iter().all(|input| gone.contains(&&*input.stream.stream) || is_kept(name, input));
            prop_assert!(!stores || kept.is_some() || is_given_up, "the state of {} is left behind", name);
        }
        let mut changelogs: Vec<i32> = new.values().map(|task| task.changelog_partition).collect();
        changelogs.sort_unstable();
        changelogs.dedup();
        prop_assert_eq!(changelogs.len(), new.len(), "two tasks share a changelog partition");
        if stores && !extend {
            prop_assert!(new.len() <= old.len(), "keys part from the state of their tasks");
        }
    }
}
