//! Tests of the Kafka side with inputs that change: what is extended, what is remembered, what is refused.

use std::collections::BTreeMap;

use am_core::place::{Facts, RememberedModel};
use am_core::plan::Plan;
use am_core::{AmCore, AmIdentity, Command, Event, Failure};
use task_api::system::{NewTopic, PlainMessage, SystemAdmin, TopicPartition};
use task_core::ownership::OwnerRecord;
use types::{
    ContainerModel, Epoch, Incarnation, JobModel, JobSpec, SystemStream, SystemStreamPartition, TaskModel,
    TaskName, Timestamp,
};

use crate::coordinator::Writer;
use crate::kafka_side::{Answer, KafkaSide, Request};
use crate::testing::{Clusters, Memory, spec};

fn side(spec: &JobSpec, memory: impl crate::systems::Systems + 'static, seq: u64) -> KafkaSide {
    let owner = OwnerRecord::of_app_master(&spec.job, Incarnation { epoch: Epoch(7), seq });
    KafkaSide::new(spec.clone(), Writer { job: spec.job.clone(), attempt: 1, owner }, Box::new(memory))
}

fn create(memory: &Memory, topic: &str, partitions: i32) {
    let new = NewTopic { topic: topic.into(), partitions, replication: 1, config: BTreeMap::new() };
    memory.create(&[new]).expect("created");
}

fn facts(side: &mut KafkaSide) -> Result<Facts, Failure> {
    match side.handle(Request::ReadFacts) {
        Some(Answer::Event(Event::FactsRead(read))) => *read,
        other => panic!("{other:?}"),
    }
}

fn plan(spec: &JobSpec, facts: Facts, app: &str) -> Box<Plan> {
    let identity = AmIdentity { app: app.into(), attempt: 1, spec: spec.clone(), unix_offset_ms: 0 };
    let (mut core, mut out) = (AmCore::new(identity), Vec::new());
    core.facts_read(Timestamp(0), Ok(facts), &mut out);
    match out.pop() {
        Some(Command::Prepare(plan)) => plan,
        other => panic!("no plan: {other:?}"),
    }
}

fn run_once(spec: &JobSpec, memory: &Memory, seq: u64, app: &str) -> Option<Answer> {
    let mut side = side(spec, memory.clone(), seq);
    let facts = facts(&mut side).expect("readable");
    side.handle(Request::Prepare(plan(spec, facts, app)))
}

#[test]
fn topics_of_tasks_are_extended_with_their_inputs_and_never_otherwise() {
    let mut job = spec();
    job.task.on_input_growth = types::OnInputGrowth::Extend;
    let memory = Memory::default();
    let is_done = |answer: &Option<Answer>| matches!(answer, Some(Answer::Event(Event::Prepared(Ok(_)))));
    create(&memory, "in", 2);
    assert!(is_done(&run_once(&job, &memory, 1, "a")));
    memory.extend("in", 3).expect("grows");
    assert!(is_done(&run_once(&job, &memory, 2, "b")));
    let of = |name: &str| memory.topic(name).map(|topic| topic.partitions);
    assert_eq!(of("__samza_checkpoint_ver_1_for_j_1"), Some(3));
    assert_eq!(of("j-1-seen-changelog"), Some(3));
    memory.extend("in", 4).expect("grows");
    memory.set_locked(true);
    let Some(Answer::Event(Event::Prepared(Err(Failure::Doubtful(why))))) = run_once(&job, &memory, 3, "c")
    else {
        panic!("it may not be extended")
    };
    assert!(why.contains("cannot be extended: not authorized"), "{why}");
    // Made again with too few partitions while no task is added: that is no growth.
    let shorter = Memory::default();
    create(&shorter, "in", 2);
    create(&shorter, "j-1-seen-changelog", 1);
    let refused = run_once(&spec(), &shorter, 1, "a");
    assert!(
        matches!(refused, Some(Answer::Event(Event::Prepared(Err(Failure::Doubtful(_)))))),
        "{refused:?}"
    );
}

#[test]
fn a_pattern_is_what_matches_it_and_waits_for_the_first_topic() {
    let mut job = spec();
    job.stores.clear();
    job.containers.count = 1;
    job.task.inputs = vec!["kafka./orders-.*/".into()];
    job.errors.dead_letter = Some("kafka.orders-dead".into());
    let memory = Memory::default();
    create(&memory, "__samza_orders-", 1);
    create(&memory, "orders-dead", 1);
    create(&memory, "old-orders-de", 1);
    let Err(Failure::Waiting(why)) = facts(&mut side(&job, memory.clone(), 1)) else {
        panic!("nothing matches")
    };
    assert!(why.contains("kafka./orders-.*/"), "{why}");
    create(&memory, "orders-de", 2);
    create(&memory, "orders-fr", 1);
    let mut side = side(&job, memory.clone(), 2);
    let found: Vec<String> =
        facts(&mut side).expect("some match").topology.streams.keys().map(ToString::to_string).collect();
    assert_eq!(found, ["kafka.orders-de", "kafka.orders-fr"]);
    memory.remove("orders-fr");
    let Some(Answer::Event(Event::TopologyRead(now))) = side.handle(Request::ReadTopology) else {
        panic!("it can be read")
    };
    assert_eq!(now.streams.len(), 1, "what is gone is not there");
}

#[test]
fn an_input_that_is_gone_while_the_job_runs_is_told_and_not_waited_for() {
    let memory = Memory::default();
    create(&memory, "in", 2);
    let mut side = side(&spec(), memory.clone(), 1);
    facts(&mut side).expect("readable");
    memory.remove("in");
    let Some(Answer::Event(Event::TopologyRead(now))) = side.handle(Request::ReadTopology) else {
        panic!("it can be read")
    };
    assert!(now.streams.is_empty());
}

#[test]
fn a_job_does_not_begin_anew_on_another_of_its_systems() {
    let (first, second) = (Memory::default(), Memory::default());
    create(&first, "in", 2);
    create(&second, "other", 2);
    let clusters = Clusters(BTreeMap::from([("kafka".into(), first.clone()), ("k2".into(), second.clone())]));
    let mut job = spec();
    job.systems.insert("k2".into(), job.systems["kafka"].clone());
    job.task.inputs = vec!["kafka.in".into(), "k2.other".into()];
    facts(&mut side(&job, clusters.clone(), 1)).expect("its first start");
    job.task.inputs.reverse();
    let Err(Failure::Fatal(why)) = facts(&mut side(&job, clusters.clone(), 2)) else {
        panic!("it would begin anew")
    };
    assert!(why.contains("are on system kafka") && why.contains("Name an input of kafka first"), "{why}");
    assert!(second.topic("__samza_coordinator_j_1").is_none(), "nothing was made");
    job.job.id = "2".into();
    facts(&mut side(&job, clusters, 3)).expect("another id may begin anew");
}

fn large(tasks: i32) -> RememberedModel {
    let task = |n: i32| TaskModel {
        name: TaskName(format!("Partition {n}")),
        inputs: vec![SystemStreamPartition {
            stream: SystemStream { system: "kafka".into(), stream: "ün".into() },
            partition: n,
        }],
        changelog_partition: n,
        added: Vec::new(),
    };
    let containers = (0..100_u32).map(|slot| {
        (
            slot,
            ContainerModel {
                tasks: (0..tasks).filter(|n| n % 100 == slot.cast_signed()).map(task).collect(),
            },
        )
    });
    RememberedModel {
        app: "app".into(),
        generation: 3,
        model: JobModel { containers: containers.collect() },
        grouper: Some(types::Grouper::Partition),
        home: Some("kafka".into()),
    }
}

#[test]
fn a_model_of_ten_thousand_tasks_is_remembered_in_messages_that_fit() {
    let (job, memory) = (spec(), Memory::default());
    create(&memory, "in", 2);
    for (seq, tasks) in [(1, 10_000), (2, 4), (3, 9_000)] {
        let mut writes = side(&job, memory.clone(), 2 * seq);
        facts(&mut writes).expect("readable");
        let made = RememberedModel { generation: seq, ..large(tasks) };
        let plan = Plan { topics: Vec::new(), extend: false, model: made.clone() };
        let done = writes.handle(Request::Prepare(Box::new(plan)));
        assert!(matches!(done, Some(Answer::Event(Event::Prepared(Ok(_))))), "{done:?}");
        assert!(memory.largest_value("__samza_coordinator_j_1") < 1_000_000);
        let known = facts(&mut side(&job, memory.clone(), 2 * seq + 1)).expect("readable");
        assert!(known.remembered.model == Some(made), "{tasks} tasks are read as they were written");
    }
}

#[test]
fn the_record_of_an_older_version_is_read() {
    let (job, memory) = (spec(), Memory::default());
    create(&memory, "in", 2);
    create(&memory, "__samza_coordinator_j_1", 1);
    let value = r#"{"app":"app","attempt":1,"incarnation":"7-1","generation":4,"model":{"containers":{"0":{"tasks":
        [{"name":"Partition 0","inputs":[{"stream":{"system":"kafka","stream":"in"},"partition":0}],"changelog_partition":0}]}}}}"#;
    let to = TopicPartition { topic: "__samza_coordinator_j_1".into(), partition: 0 };
    let key = br#"{"type":"job-model"}"#.to_vec();
    memory.append(&[PlainMessage { to, key, value: Some(value.into()) }]).expect("appended");
    let model = facts(&mut side(&job, memory, 1)).expect("readable").remembered.model.expect("it is there");
    assert_eq!((model.generation, model.grouper, model.home), (4, None, None));
    assert_eq!(model.model.containers[&0].tasks.len(), 1);
}
