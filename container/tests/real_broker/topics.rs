//! A job's own topics on a real Kafka: what is there is read, altered or refused, and what is not is created in full.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::KafkaAdmin;
use task_api::system::{NewTopic, SystemAdmin, SystemError};
use task_core::topics::{self, Unready};
use types::{JobSpec, TopicPlan, TopicStatus};

use crate::PATIENCE;
use crate::brokers::Brokers;
use crate::job::patiently;

const STORE: &str = "seen";

struct Stage {
    spec: JobSpec,
    bootstrap: String,
    admin: KafkaAdmin,
    /// They run for as long as somebody has them.
    _brokers: Arc<Brokers>,
}

impl Stage {
    /// A job with one store, of which nothing is there yet.
    fn new(brokers: Arc<Brokers>, name: &str, store: &str) -> Stage {
        let name = format!("{name}-{}", std::process::id());
        let bootstrap = brokers.bootstrap.clone();
        let text = format!(
            "[job]\nname = \"{name}\"\n[package]\npath = \"j\"\n[task]\ninputs = [\"kafka.in\"]\n[systems.kafka]\n\
             type = \"kafka\"\nbootstrap = \"{bootstrap}\"\n[stores.{STORE}]\n{store}"
        );
        let spec = job_file::parse(&text, "job.toml").unwrap_or_else(|e| panic!("{e}")).spec;
        let admin = KafkaAdmin::new(&bootstrap, &BTreeMap::new()).expect("an admin");
        Stage { spec, bootstrap, admin, _brokers: brokers }
    }
    fn plans(&self) -> Vec<TopicPlan> {
        types::coordinator_topic(&self.spec).into_iter().chain(types::job_topics(&self.spec, 2)).collect()
    }
    fn look(&self) -> Result<Vec<TopicStatus>, Unready> {
        let plans = self.plans();
        topics::ensure(&self.admin, &self.bootstrap, &plans.iter().collect::<Vec<_>>())
    }
    /// Looks again, as masters do, while a broker does not know yet of what was just created.
    fn ensure(&self) -> Result<Vec<TopicStatus>, Unready> {
        let start = Instant::now();
        loop {
            match self.look() {
                Err(Unready::System(SystemError::Retriable(_))) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                other => return other,
            }
        }
    }
    fn changelog(&self) -> String {
        self.spec.stores[STORE].changelog.clone().expect("it has one")
    }
    fn setting(&self, topic: &str, key: &str) -> String {
        let topics = [topic.to_owned()];
        patiently(|| self.admin.describe_configs(&topics))[topic][key].value.clone()
    }
    /// A changed setting is known to one broker sooner than to another.
    fn expect(&self, topic: &str, key: &str, value: &str) {
        let start = Instant::now();
        while self.setting(topic, key) != value {
            assert!(start.elapsed() < PATIENCE, "{topic} has {key}={}", self.setting(topic, key));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    fn make(&self, topic: &str, config: &[(&str, &str)]) {
        let config = config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let replication = u16::try_from(self.admin.live_brokers().expect("alive").min(3)).expect("few");
        self.admin
            .create(&[NewTopic { topic: topic.to_owned(), partitions: 2, replication, config }])
            .expect("made");
        // Each look may go to another broker: all of them know of it when none misses it any more.
        let start = Instant::now();
        let mut found = 0;
        while found < 10 {
            assert!(start.elapsed() < PATIENCE, "{topic} is not there");
            let there = patiently(|| self.admin.describe(&[topic.to_owned()]));
            found = if there.is_empty() { 0 } else { found + 1 };
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn what_job_toml_asks_for_later_reaches_topics_that_exist() {
    let mut stage = Stage::new(Brokers::shared(), "asks", "ttl = \"1h\"\n");
    let ready = stage.ensure().expect("created");
    assert_eq!(ready.len(), 3, "{ready:?}");
    let changelog = stage.changelog();
    stage.expect(&changelog, "retention.ms", "3600000");
    let checkpoint = &stage.plans()[1].topic;
    stage.expect(checkpoint, "delete.retention.ms", "60000");
    // What an operator has set, and loses nothing, is left alone.
    stage
        .admin
        .alter_configs(&changelog, &[("segment.ms".to_owned(), "86400000".to_owned())].into())
        .expect("set");
    stage.expect(&changelog, "segment.ms", "86400000");
    let store = stage.spec.stores.get_mut(STORE).expect("there");
    (store.ttl_ms, store.max_value_bytes) = (Some(7 * 86_400_000), 5_000_000);
    store.changelog_config.insert("delete.retention.ms".into(), "604800000".into());
    stage.ensure().expect("altered");
    stage.expect(&changelog, "retention.ms", "604800000");
    stage.expect(&changelog, "delete.retention.ms", "604800000");
    stage.expect(&changelog, "max.message.bytes", "5065536");
    stage.expect(&changelog, "segment.ms", "86400000");
    stage.expect(&changelog, "cleanup.policy", "compact,delete");
}

#[test]
fn a_changelog_that_drops_rows_by_age_is_mended_if_it_is_ours_and_refused_if_it_is_named() {
    let stage = Stage::new(Brokers::shared(), "drops", "");
    let changelog = stage.changelog();
    stage.make(&changelog, &[]);
    stage.expect(&changelog, "cleanup.policy", "delete");
    stage.ensure().expect("mended");
    stage.expect(&changelog, "cleanup.policy", "compact");
    let theirs = format!("theirs-{}", std::process::id());
    let named = Stage::new(Brokers::shared(), "named", &format!("changelog = \"{theirs}\"\n"));
    named.make(&theirs, &[("cleanup.policy", "compact,delete"), ("retention.ms", "3600000")]);
    let refused = named.ensure().expect_err("it would lose rows");
    let Unready::System(SystemError::Fatal(why)) = &refused else { panic!("{refused:?}") };
    assert!(why.contains("--add-config cleanup.policy=compact"), "{why}");
    let names: Vec<String> = named.plans().into_iter().map(|plan| plan.topic).collect();
    let there = patiently(|| named.admin.describe(&names));
    assert_eq!(there.len(), 1, "nothing was created beside it: {there:?}");
}

#[test]
fn a_broker_that_is_down_at_the_first_submit_is_waited_for() {
    let brokers = Brokers::own(&["--brokers", "3"]);
    brokers.kill(3);
    let stage = Stage::new(Arc::clone(&brokers), "down", "");
    let start = Instant::now();
    while patiently(|| stage.admin.live_brokers()) > 2 {
        assert!(start.elapsed() < PATIENCE, "the controller does not miss it");
        std::thread::sleep(Duration::from_millis(100));
    }
    // No topic tells of the third: the brokers' own settings do.
    assert_eq!(patiently(|| stage.admin.cluster_size()), 3);
    let why = match stage.ensure() {
        Err(Unready::TooFewBrokers(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(why.contains("3 copies") && why.contains("[systems.kafka] replication"), "{why}");
    let names: Vec<String> = stage.plans().into_iter().map(|plan| plan.topic).collect();
    assert!(patiently(|| stage.admin.describe(&names)).is_empty(), "nothing is made with fewer copies");
    brokers.restart();
    let start = Instant::now();
    let ready = loop {
        match stage.ensure() {
            Ok(ready) => break ready,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(ready.iter().map(|topic| topic.replication).collect::<Vec<_>>(), [3, 3, 3]);
    stage.expect(&names[0], "min.insync.replicas", "2");
}
