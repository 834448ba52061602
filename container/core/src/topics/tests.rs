//! Topics of any shape against the rules: whatever there is, afterwards it keeps state or it is refused by name.

use std::sync::Mutex;

use proptest::prelude::*;
use task_api::system::{
    Isolation, Lost, Message, Offset, PartitionMetadata, PlainMessage, TopicPartition, Watermarks, configs_of,
};

use super::*;

const HOUR: u64 = 3_600_000;
const CLUSTER: Cluster<'_> = Cluster { bootstrap: "b:9092", live: 3, size: 3 };

fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn plan(config: &[(&str, &str)]) -> TopicPlan {
    TopicPlan {
        system: "kafka".into(),
        topic: "j-1-s-changelog".into(),
        role: TopicRole::Changelog("s".into()),
        partitions: 2,
        replication: None,
        config: set(config),
        asked: BTreeMap::new(),
        named: false,
        ttl_ms: None,
        batch_bytes: 1_001_024,
    }
}

fn forgetful(ttl_ms: u64) -> TopicPlan {
    let asked = set(&[("cleanup.policy", "compact,delete")]);
    TopicPlan { ttl_ms: Some(ttl_ms), asked, ..plan(&[]) }
}

fn named(plan: TopicPlan) -> TopicPlan {
    TopicPlan { named: true, asked: BTreeMap::new(), topic: "theirs".into(), ..plan }
}

fn there(plan: &TopicPlan, partitions: i32, copies: usize) -> TopicMetadata {
    let replicas: Vec<i32> = (0..).take(copies).collect();
    let of = |partition| PartitionMetadata { partition, leader: Some(0), replicas: replicas.clone() };
    TopicMetadata {
        topic: plan.topic.clone(),
        topic_id: "id".into(),
        partitions: (0..partitions).map(of).collect(),
        brokers: Vec::new(),
    }
}

fn judged(plan: &TopicPlan, config: &[(&str, &str)]) -> Verdict {
    let mut config = set(config);
    config.entry("min.insync.replicas".into()).or_insert_with(|| "2".into());
    judge(plan, &there(plan, 2, 3), &configs_of(&config), &CLUSTER)
}

fn altered(plan: &TopicPlan, config: &[(&str, &str)]) -> BTreeMap<String, String> {
    let verdict = judged(plan, config);
    assert_eq!(verdict.refused, Vec::<String>::new(), "{config:?}");
    verdict.alter
}

fn refused(plan: &TopicPlan, config: &[(&str, &str)]) -> String {
    let verdict = judged(plan, config);
    assert_eq!(verdict.refused.len(), 1, "{verdict:?}");
    verdict.refused[0].clone()
}

#[test]
fn a_longer_ttl_reaches_the_topic_and_a_longer_retention_is_left_alone() {
    let day = forgetful(24 * HOUR);
    let hour = [("cleanup.policy", "compact,delete"), ("retention.ms", "3600000")];
    assert_eq!(altered(&day, &hour), set(&[("retention.ms", "86400000")]));
    let week = [("cleanup.policy", "delete,compact"), ("retention.ms", "604800000")];
    let verdict = judged(&day, &week);
    assert_eq!((verdict.alter, verdict.refused), (BTreeMap::new(), vec![]));
    assert!(verdict.notes[0].contains("--add-config retention.ms=86400000"), "{:?}", verdict.notes);
    let ever = [("cleanup.policy", "compact,delete"), ("retention.ms", "-1")];
    assert_eq!(altered(&day, &ever), BTreeMap::new());
    let theirs = altered(&named(forgetful(24 * HOUR)), &hour);
    assert_eq!(theirs, set(&[("retention.ms", "86400000")]), "job.toml asks for it");
}

#[test]
fn what_job_toml_asks_for_is_altered_on_any_topic() {
    let mut asks = plan(&[]);
    asks.asked = set(&[("delete.retention.ms", "604800000"), ("segment.bytes", "16777216")]);
    let now = [("cleanup.policy", "compact"), ("segment.bytes", "16777216")];
    assert_eq!(altered(&asks, &now), set(&[("delete.retention.ms", "604800000")]));
    let large = TopicPlan { batch_bytes: 5_065_536, ..plan(&[]) };
    for plan in [large.clone(), named(large)] {
        assert_eq!(altered(&plan, &now), set(&[("max.message.bytes", "5065536")]));
    }
}

#[test]
fn a_topic_that_drops_rows_by_age_is_mended_if_it_is_ours_and_refused_if_it_is_named() {
    assert_eq!(altered(&plan(&[]), &[]), set(&[("cleanup.policy", "compact")]), "Kafka's default is delete");
    let both = [("cleanup.policy", "compact,delete"), ("retention.ms", "1000")];
    assert_eq!(altered(&plan(&[]), &both), set(&[("cleanup.policy", "compact")]));
    for config in [&[][..], &both] {
        let why = refused(&named(plan(&[])), config);
        assert!(why.contains("topic theirs has cleanup.policy="), "{why}");
        let command = "kafka-configs.sh --bootstrap-server b:9092 --alter --entity-type topics --entity-name theirs \
                       --add-config cleanup.policy=compact";
        assert!(why.ends_with(command), "{why}");
    }
    let harmless = [("cleanup.policy", "compact,delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
    assert_eq!(altered(&named(plan(&[])), &harmless), BTreeMap::new());
    let small =
        [("cleanup.policy", "compact,delete"), ("retention.ms", "-1"), ("retention.bytes", "1000000")];
    assert!(refused(&named(forgetful(HOUR)), &small).contains("retention.bytes=1000000"));
    assert_eq!(altered(&forgetful(HOUR), &small), set(&[("retention.bytes", "-1")]));
    let command = refused(&named(forgetful(HOUR)), &[]);
    assert!(
        command.ends_with("--add-config cleanup.policy=[compact,delete]"),
        "a list is in brackets: {command}"
    );
}

#[test]
fn what_an_older_job_file_asks_for_and_would_lose_state_is_refused_by_its_key() {
    let mut asks = plan(&[]);
    asks.asked = set(&[("cleanup.policy", "delete")]);
    let why = refused(&asks, &[]);
    assert!(why.contains("`stores.s.changelog-config` asks for cleanup.policy=delete"), "{why}");
}

#[test]
fn a_topic_whose_commits_could_not_succeed_is_mended_or_refused() {
    let small = [("cleanup.policy", "compact"), ("max.message.bytes", "100000")];
    assert_eq!(altered(&plan(&[]), &small), set(&[("max.message.bytes", "1001024")]));
    assert!(refused(&named(plan(&[])), &small).contains("max.message.bytes=100000"));
    let quorum = [("cleanup.policy", "compact"), ("min.insync.replicas", "4")];
    assert_eq!(altered(&plan(&[]), &quorum), set(&[("min.insync.replicas", "2")]));
    assert!(refused(&named(plan(&[])), &quorum).contains("it has 3 copies"));
    let unclean = [("cleanup.policy", "compact"), ("unclean.leader.election.enable", "true")];
    assert_eq!(altered(&plan(&[]), &unclean), set(&[("unclean.leader.election.enable", "false")]));
    let few = judge(&plan(&[]), &there(&plan(&[]), 1, 3), &configs_of(&BTreeMap::new()), &CLUSTER);
    assert!(few.refused[0].contains("1 partitions and the job needs 2"), "{few:?}");
    assert!(few.refused[0].contains("kafka-topics.sh --bootstrap-server b:9092 --alter"), "{few:?}");
}

#[test]
fn too_few_copies_are_told_and_no_reason_to_stop() {
    let one = [("cleanup.policy", "compact"), ("min.insync.replicas", "1")];
    let lone = |live, replication| {
        let plan = TopicPlan { replication, ..plan(&[]) };
        let cluster = Cluster { live, size: live, ..CLUSTER };
        let verdict = judge(&plan, &there(&plan, 2, 1), &configs_of(&set(&one)), &cluster);
        assert!(verdict.refused.is_empty() && verdict.alter.is_empty(), "{verdict:?}");
        verdict.notes
    };
    assert_eq!(lone(1, None), Vec::<String>::new(), "a single broker is a cluster for development");
    assert!(lone(3, None)[0].contains("one copy only"));
    assert_eq!(lone(3, Some(1)), Vec::<String>::new(), "it was asked for");
    let verdict = judged(&plan(&[]), &one);
    assert!(verdict.notes[0].contains("min.insync.replicas=1"), "{verdict:?}");
    let short = judged(&plan(&[]), &[("cleanup.policy", "compact"), ("delete.retention.ms", "60000")]);
    assert!(short.notes[0].contains("keeps tombstones for 1m only"), "{short:?}");
}

#[test]
fn nobody_settles_for_fewer_copies_because_a_broker_is_down() {
    let of = |replication, live, size| {
        creation(&TopicPlan { replication, ..plan(&[]) }, &Cluster { live, size, ..CLUSTER })
            .map(|new| (new.replication, new.config["min.insync.replicas"].clone()))
    };
    assert_eq!(of(None, 1, 1), Ok((1, "1".into())));
    assert_eq!(of(None, 3, 3), Ok((3, "2".into())));
    assert_eq!(of(None, 9, 9), Ok((3, "2".into())));
    assert_eq!(of(None, 2, 2), Ok((2, "1".into())));
    assert_eq!(of(Some(2), 2, 3), Ok((2, "1".into())));
    for (told, live, size) in [(None, 2, 3), (None, 1, 3), (Some(3), 2, 2)] {
        let why = of(told, live, size).expect_err("a broker is down");
        assert!(why.contains("shall have 3 copies") && why.contains("[systems.kafka] replication"), "{why}");
    }
    assert_eq!(of(None, 0, 0), Ok((1, "1".into())), "a system without brokers");
}

#[test]
fn settings_that_somebody_made_are_not_wished_otherwise() {
    let mut checkpoint = plan(&[("segment.ms", "600000"), ("delete.retention.ms", "60000")]);
    checkpoint.role = TopicRole::Checkpoint;
    let verdict = judged(&checkpoint, &[("cleanup.policy", "compact"), ("segment.ms", "1000")]);
    assert_eq!((verdict.wishes, verdict.alter), (set(&[("delete.retention.ms", "60000")]), BTreeMap::new()));
}

/// A cluster whose topics are as a test made them.
struct Made {
    topics: Mutex<BTreeMap<String, (TopicMetadata, BTreeMap<String, String>)>>,
    /// Topics that somebody else creates just before us.
    races: Vec<NewTopic>,
    may_alter: bool,
    created: Mutex<Vec<String>>,
}

impl Made {
    fn new(topics: &[(&TopicPlan, &[(&str, &str)])]) -> Made {
        let of = |(plan, config): &(&TopicPlan, &[(&str, &str)])| {
            (plan.topic.clone(), (there(plan, plan.partitions, 3), set(config)))
        };
        let topics = Mutex::new(topics.iter().map(of).collect());
        Made { topics, races: Vec::new(), may_alter: true, created: Mutex::default() }
    }
    fn config(&self, topic: &str) -> BTreeMap<String, String> {
        self.topics.lock().expect("no panic")[topic].1.clone()
    }
}

impl SystemAdmin for Made {
    fn live_brokers(&self) -> Result<usize, SystemError> {
        Ok(3)
    }
    fn describe(&self, names: &[String]) -> Result<Vec<TopicMetadata>, SystemError> {
        let topics = self.topics.lock().expect("no panic");
        Ok(names.iter().filter_map(|name| Some(topics.get(name)?.0.clone())).collect())
    }
    fn describe_configs(&self, names: &[String]) -> Result<BTreeMap<String, Configs>, SystemError> {
        let topics = self.topics.lock().expect("no panic");
        Ok(names.iter().filter_map(|name| Some((name.clone(), configs_of(&topics.get(name)?.1)))).collect())
    }
    fn alter_configs(&self, topic: &str, set: &BTreeMap<String, String>) -> Result<(), SystemError> {
        if !self.may_alter {
            return Err(SystemError::Fatal("no right AlterConfigs".into()));
        }
        self.topics.lock().expect("no panic").get_mut(topic).expect("there").1.extend(set.clone());
        Ok(())
    }
    fn create(&self, orders: &[NewTopic]) -> Result<(), SystemError> {
        let mut topics = self.topics.lock().expect("no panic");
        for new in self.races.iter().chain(orders) {
            self.created.lock().expect("no panic").push(new.topic.clone());
            let shape = TopicPlan { topic: new.topic.clone(), ..plan(&[]) };
            let made = there(&shape, new.partitions, usize::from(new.replication));
            topics.entry(new.topic.clone()).or_insert((made, new.config.clone()));
        }
        Ok(())
    }
    fn topics(&self) -> Result<Vec<String>, SystemError> {
        Ok(self.topics.lock().expect("no panic").keys().cloned().collect())
    }
    fn extend(&self, _: &str, _: i32) -> Result<(), SystemError> {
        Err(SystemError::Fatal("not asked for".into()))
    }
    fn watermarks(&self, _: &[TopicPartition]) -> Result<Vec<Watermarks>, SystemError> {
        Err(SystemError::Fatal("not asked for".into()))
    }
    fn read_range(
        &self,
        _: &TopicPartition,
        _: u64,
        _: u64,
        _: Isolation,
        _: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        Err(SystemError::Fatal("not asked for".into()))
    }
    fn append(&self, _: &[PlainMessage]) -> Result<(), SystemError> {
        Err(SystemError::Fatal("not asked for".into()))
    }
    fn lost(&self, _: &[(TopicPartition, Offset)]) -> Result<Vec<Option<Lost>>, SystemError> {
        Err(SystemError::Fatal("not asked for".into()))
    }
    fn fence(&self, _: &str) -> Result<(), SystemError> {
        Err(SystemError::Fatal("not asked for".into()))
    }
}

#[test]
fn only_what_is_missing_is_created_and_nothing_is_changed_where_one_is_refused() {
    let (ours, mut theirs) = (plan(&[("cleanup.policy", "compact")]), named(plan(&[])));
    let made = Made::new(&[(&theirs, &[("cleanup.policy", "compact"), ("min.insync.replicas", "2")])]);
    let ready = ensure(&made, "b:9092", &[&ours, &theirs]).expect("ready");
    assert_eq!(*made.created.lock().expect("no panic"), ["j-1-s-changelog"]);
    assert_eq!(ready.iter().map(|t| (t.partitions, t.replication)).collect::<Vec<_>>(), [(2, 3), (2, 3)]);
    theirs.topic = "other".into();
    let made = Made::new(&[(&theirs, &[])]);
    let Err(Unready::System(SystemError::Fatal(why))) = ensure(&made, "b:9092", &[&ours, &theirs]) else {
        panic!("it would drop rows")
    };
    assert!(why.contains("topic other has cleanup.policy=delete"), "{why}");
    assert!(made.created.lock().expect("no panic").is_empty(), "nothing was created");
}

#[test]
fn a_topic_that_another_creates_meanwhile_is_looked_at_too() {
    let ours = plan(&[("cleanup.policy", "compact")]);
    let race = NewTopic { topic: ours.topic.clone(), partitions: 2, replication: 3, config: set(&[]) };
    let made = Made { races: vec![race], ..Made::new(&[]) };
    ensure(&made, "b:9092", &[&ours]).expect("ready");
    assert_eq!(made.config(&ours.topic)["cleanup.policy"], "compact");
}

#[test]
fn without_the_right_to_alter_the_error_has_the_command_and_wishes_are_forgone() {
    let ours = plan(&[]);
    let made = Made { may_alter: false, ..Made::new(&[(&ours, &[])]) };
    let Err(Unready::System(SystemError::Fatal(why))) = ensure(&made, "b:9092", &[&ours]) else {
        panic!("it may not")
    };
    assert!(why.contains("AlterConfigs") && why.contains("--add-config cleanup.policy=compact"), "{why}");
    let wishful = plan(&[("segment.ms", "600000")]);
    let made = Made { may_alter: false, ..Made::new(&[(&wishful, &[("cleanup.policy", "compact")])]) };
    ensure(&made, "b:9092", &[&wishful]).expect("it is good as it is");
}

fn value_of(key: &'static str) -> impl Strategy<Value = String> {
    let values: &[&str] = match key {
        "cleanup.policy" => &["delete", "compact", "compact,delete", "delete,compact"],
        "retention.ms" | "delete.retention.ms" => &["1000", "3600000", "86400000", "604800000"],
        "retention.bytes" => &["-1", "1000000"],
        "max.message.bytes" => &["1000", "1048588", "5065536", "90000000"],
        "min.insync.replicas" => &["1", "2", "3", "5"],
        "segment.bytes" => &["1048576", "1073741824"],
        _ => &["true", "false"],
    };
    prop::sample::select(values).prop_map(str::to_owned)
}

fn configs() -> impl Strategy<Value = BTreeMap<String, String>> {
    const KEYS: [&str; 8] = [
        "cleanup.policy",
        "retention.ms",
        "retention.bytes",
        "delete.retention.ms",
        "max.message.bytes",
        "min.insync.replicas",
        "segment.bytes",
        "unclean.leader.election.enable",
    ];
    prop::sample::subsequence(&KEYS[..], 0..=KEYS.len()).prop_flat_map(|keys| {
        let pairs: Vec<_> = keys.into_iter().map(|key| (Just(key.to_owned()), value_of(key))).collect();
        pairs.prop_map(|pairs| pairs.into_iter().collect())
    })
}

fn number(configs: &Configs, key: &str) -> i64 {
    configs[key].value.parse().expect("a number")
}

/// Whether a topic keeps every row that it must, and takes every commit.
fn keeps_state(plan: &TopicPlan, configs: &Configs, copies: usize) -> bool {
    let policy = &configs["cleanup.policy"].value;
    let (ms, bytes) = (number(configs, "retention.ms"), number(configs, "retention.bytes"));
    let by_age = !policy.contains("delete")
        || match plan.ttl_ms {
            Some(ttl) => bytes == -1 && (ms == -1 || ms >= i64::try_from(ttl).expect("small")),
            None => bytes == -1 && ms == -1,
        };
    policy.contains("compact")
        && by_age
        && number(configs, "max.message.bytes") >= i64::try_from(plan.batch_bytes).expect("small")
        && number(configs, "min.insync.replicas") <= i64::try_from(copies).expect("small")
        && configs["unclean.leader.election.enable"].value == "false"
}

proptest! {
    #[test]
    fn whatever_is_there_keeps_state_afterwards_or_is_refused_with_what_mends_it(
        has in configs(),
        asks in configs(),
        ttl_ms in prop::option::of(prop::sample::select(vec![HOUR, 24 * HOUR])),
        (is_named, is_large) in (any::<bool>(), any::<bool>()),
        (partitions, copies) in (1i32..4, 1usize..4),
    ) {
        let mut plan = ttl_ms.map_or_else(|| plan(&[]), forgetful);
        if is_named {
            plan = named(plan);
        }
        if is_large {
            plan.batch_bytes = 5_065_536;
        }
        plan.asked.extend(asks);
        let verdict = judge(&plan, &there(&plan, partitions, copies), &configs_of(&has), &CLUSTER);
        let mut after = has.clone();
        after.extend(verdict.wishes.clone());
        after.extend(verdict.alter.clone());
        let after = configs_of(&after);
        if verdict.refused.is_empty() {
            prop_assert!(keeps_state(&plan, &after, copies), "{:?}\n{:?}", verdict, after);
            prop_assert!(partitions >= plan.partitions);
            for (key, value) in &plan.asked {
                prop_assert!(same(key, &after[key].value, value), "{key} was asked for: {:?}", verdict);
            }
            // Once it is ready there is nothing more to do.
            let again = judge(&plan, &there(&plan, partitions, copies), &after, &CLUSTER);
            prop_assert!(again.refused.is_empty() && again.alter.is_empty(), "{:?}", again);
        }
        for why in &verdict.refused {
            prop_assert!(why.contains(&plan.topic), "{why}");
            prop_assert!(why.contains(".sh --bootstrap-server b:9092") || why.contains("leave it out"), "{why}");
        }
        let was = configs_of(&has);
        if keeps_state(&plan, &was, copies) && partitions >= plan.partitions && plan.asked.is_empty() {
            prop_assert!(verdict.alter.is_empty() && verdict.refused.is_empty(), "it is harmless: {:?}", verdict);
        }
    }
}
