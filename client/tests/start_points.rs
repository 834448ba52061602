//! `samza checkpoint` against a real broker: `make test` starts one and names it in `SAMZA_TEST_KAFKA`.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kafka::{KafkaAdmin, KafkaProducer};
use task_api::system::{
    Isolation, NewTopic, PlainMessage, ProducerRecord, SystemAdmin, SystemError, SystemProducer,
    TopicPartition, TransactionalProducer,
};
use task_core::ownership::OwnerRecord;
use task_core::record::{self, Checkpoint, Record};
use types::{Epoch, Incarnation, JobId, JobTopics, TaskName};

const SOON: Duration = Duration::from_secs(30);
const RAN: Incarnation = Incarnation { epoch: Epoch(7), seq: 4 };

/// A job of two partitions that has run and stopped: six messages in each, a checkpoint at 2 and an owner of each task.
struct Ran {
    folder: tempfile::TempDir,
    admin: KafkaAdmin,
    job: JobId,
    owner: OwnerRecord,
    /// The job's own producer, as a container that sleeps has it.
    asleep: KafkaProducer,
}

fn bootstrap() -> String {
    std::env::var("SAMZA_TEST_KAFKA").expect("SAMZA_TEST_KAFKA names the brokers; `make test` starts them")
}

impl Ran {
    fn new(name: &str) -> Ran {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let job = JobId { name, id: "1".into() };
        let admin = KafkaAdmin::new(&bootstrap(), &BTreeMap::new()).expect("settings are right");
        let topic =
            |topic: String| NewTopic { topic, partitions: 2, replication: 1, config: BTreeMap::new() };
        let input = format!("{}-in", job.name);
        let checkpoints = JobTopics::of(&job).checkpoint;
        admin.create(&[topic(input.clone()), topic(checkpoints.clone())]).expect("created");
        let owner = OwnerRecord::of_thread(&job, 0, 0, RAN);
        let mut asleep = KafkaProducer::transactional(&bootstrap(), &owner.id, &BTreeMap::new())
            .expect("settings are right");
        asleep.init(SOON).expect("init");
        let mut ran = Ran { folder: tempfile::tempdir().expect("a folder"), admin, job, owner, asleep };
        ran.write_job(&input);
        for partition in 0..2 {
            let to = TopicPartition { topic: input.clone(), partition };
            let message = |n: u8| PlainMessage { to: to.clone(), key: vec![n], value: Some(vec![n]) };
            ran.admin.append(&(0..6).map(message).collect::<Vec<_>>()).expect("appended");
            let to = TopicPartition { topic: checkpoints.clone(), partition };
            let (key, value) = (record::owner_key(&ran.owner.id), Some(record::owner_value(&ran.owner)));
            ran.admin.append(&[PlainMessage { to, key, value }]).expect("appended");
        }
        ran.commit("2").expect("the job runs");
        ran
    }

    fn write_job(&self, input: &str) {
        let text = format!(
            "[job]\nname = \"{}\"\n[package]\npath = \"x\"\n[task]\ninputs = [\"kafka.in\"]\n[systems.kafka]\n\
             type = \"kafka\"\nbootstrap = \"{}\"\n[streams.\"kafka.in\"]\ntopic = \"{input}\"\n",
            self.job.name,
            bootstrap()
        );
        std::fs::write(self.folder.path().join("job.toml"), text).expect("a file");
    }

    /// What the job's container does: both checkpoints in one transaction.
    fn commit(&mut self, offset: &str) -> Result<(), SystemError> {
        let topic = self.asleep.topic(&JobTopics::of(&self.job).checkpoint)?;
        self.asleep.begin()?;
        for partition in 0..2 {
            let mut checkpoint = Checkpoint { incarnation: RAN, ..Checkpoint::default() };
            checkpoint.set_offset("kafka.in", partition, offset.into());
            checkpoint.set_offset("kafka.gone", partition, "77".into());
            let key = record::checkpoint_key(&TaskName(format!("Partition {partition}")));
            let value = record::checkpoint_value(&checkpoint);
            self.asleep.send(&ProducerRecord::new(topic, Some(&key), Some(&value)).to(partition))?;
        }
        self.asleep.commit(SOON)
    }

    fn checkpoint(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_samza"));
        command.current_dir(self.folder.path()).args(["checkpoint", "job.toml"]).args(args);
        command.output().expect("the program runs")
    }

    /// The last committed checkpoint of a partition, and the owners that stand there.
    fn stored(&self, partition: i32) -> (Checkpoint, Vec<OwnerRecord>) {
        let at = TopicPartition { topic: JobTopics::of(&self.job).checkpoint, partition };
        let until = self.admin.watermarks(std::slice::from_ref(&at)).expect("watermarks")[0].high;
        let (mut last, mut owners) = (Checkpoint::default(), BTreeMap::new());
        let mut take = |messages: &[task_api::system::Message<'_>]| {
            for message in messages {
                match record::decode(message.key, message.value) {
                    Some(Record::Checkpoint(_, checkpoint)) => last = checkpoint,
                    Some(Record::Owner(owner)) => drop(owners.insert(owner.id.clone(), owner)),
                    Some(Record::OwnerGone(id)) => drop(owners.remove(&id)),
                    None => {}
                }
            }
            Ok(())
        };
        self.admin.read_range(&at, 0, until, Isolation::ReadCommitted, &mut take).expect("read");
        (last, owners.into_values().collect())
    }
}

#[track_caller]
fn rows(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn it_shows_how_far_each_task_is() {
    let ran = Ran::new("shows");
    let output = ran.checkpoint(&[]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "TASK         STREAM    PARTITION  CHECKPOINT  FIRST  LAST  LEFT  NOTE\n\
         Partition 0  kafka.in          0           2      0     5     4  -\n\
         Partition 1  kafka.in          1           2      0     5     4  -\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rows = rows(&ran.checkpoint(&["-o", "json"]));
    assert_eq!((rows[1]["checkpoint"].as_u64(), rows[1]["left"].as_u64()), (Some(2), Some(4)));
}

#[test]
fn start_points_move_in_one_go_and_what_sleeps_cannot_move_them_back() {
    let mut ran = Ran::new("moves");
    let output = ran.checkpoint(&[
        "--offline",
        "-o",
        "json",
        "--set",
        "kafka.in=oldest",
        "--set",
        "kafka.in:1=offset:5",
    ]);
    let rows = rows(&output);
    let moved =
        |n: usize| (rows[n]["checkpoint"].as_u64(), rows[n]["moved_to"].as_u64(), rows[n]["left"].as_u64());
    assert_eq!((moved(0), moved(1)), ((Some(2), Some(0), Some(6)), (Some(2), Some(5), Some(1))));
    for (partition, offset) in [(0, "0"), (1, "5")] {
        let (checkpoint, owners) = ran.stored(partition);
        assert_eq!(checkpoint.offset("kafka.in", partition), Some(offset));
        assert_eq!(checkpoint.offset("kafka.gone", partition), Some("77"), "what is not moved stays");
        assert_eq!(owners.len(), 1, "the job's owner is gone: {owners:?}");
        assert!(owners[0].id.starts_with(&format!("{}-user-", ran.job)), "{owners:?}");
        assert_eq!(owners[0].incarnation, RAN, "no container that comes later is below it");
    }
    let woken = ran.commit("6");
    assert!(matches!(woken, Err(SystemError::Fenced(_))), "{woken:?}");
    assert_eq!(ran.stored(0).0.offset("kafka.in", 0), Some("0"));
    let again = ran.checkpoint(&["--offline", "--set", "kafka.in=newest"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(ran.stored(1).0.offset("kafka.in", 1), Some("6"), "and once more");
}

#[test]
fn a_time_is_the_first_message_from_then_on() {
    let ran = Ran::new("times");
    let past = rows(&ran.checkpoint(&[
        "--dry-run",
        "-o",
        "json",
        "--set",
        "kafka.in=timestamp:2020-01-01T00:00:00Z",
    ]));
    let future =
        rows(&ran.checkpoint(&["--dry-run", "-o", "json", "--set", "kafka.in:0=timestamp:4102444800000"]));
    assert_eq!(past[0]["moved_to"].as_u64(), Some(0));
    assert_eq!((future[0]["moved_to"].as_u64(), future.as_array().map(Vec::len)), (Some(6), Some(1)));
    assert_eq!(ran.stored(0).0.offset("kafka.in", 0), Some("2"), "a dry run moves nothing");
}

#[test]
fn what_cannot_be_is_told_before_anything_is_fenced() {
    let mut ran = Ran::new("refuses");
    for (set, told) in [
        ("kafka.out=oldest", "kafka.out is no input of the job; its inputs: kafka.in"),
        ("kafka.in:2=oldest", "kafka.in has partitions 0 to 1 only"),
        ("kafka.in:1=offset:7", "partition 1 of kafka.in has no offset 7; valid: 0 to 6"),
    ] {
        let output = ran.checkpoint(&["--offline", "--set", set]);
        assert_eq!(output.status.code(), Some(2), "{set}");
        assert!(String::from_utf8_lossy(&output.stderr).ends_with(&format!("samza: {told}\n")), "{output:?}");
    }
    ran.commit("3").expect("its container was left alone");
}

#[test]
fn a_job_that_never_ran_has_no_start_points_to_move() {
    let ran = Ran::new("never");
    let text = std::fs::read_to_string(ran.folder.path().join("job.toml")).expect("a file");
    let other = text.replace("[package]", "id = \"2\"\n[package]");
    std::fs::write(ran.folder.path().join("job.toml"), other).expect("a file");
    let output = ran.checkpoint(&["--offline", "--set", "kafka.in=oldest"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("-2 has never run: there is no topic "),
        "{output:?}"
    );
}
