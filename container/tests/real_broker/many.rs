//! Many of everything in one container: tasks, stores, files, rows to restore, timers that are due.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kafka::{KafkaAdmin, KafkaProducer};
use rustix::process::Signal;
use task_api::system::{NewTopic, ProducerRecord, SystemAdmin, SystemProducer};
use types::{ContainerStatus, JobTopics};

use crate::brokers::Brokers;
use crate::container::{Container, is_running};
use crate::job::{Job, model};
use crate::master::Master;

/// How long the large ones may take.
const LONG: Duration = Duration::from_secs(1_200);
const MIB: u64 = 1 << 20;

/// A job of the example `crowd`.
struct Crowd {
    job: Job,
    master: Master,
    tasks: i32,
    fed: u64,
    /// The most memory that its containers were seen to have, KiB.
    peak: Cell<u64>,
}

fn number_from(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().expect("a number"))
}

impl Crowd {
    /// With `more` in `[task]`.
    fn new(name: &str, tasks: i32, stores: &[&str], more: &str) -> Crowd {
        let brokers = Brokers::shared();
        let name = format!("{name}-{}", std::process::id());
        let each = |line: &dyn Fn(&str) -> String| stores.iter().map(|store| line(store)).collect::<String>();
        let tables = each(&|store| format!("stores.{store} = {{ changelog = \"{name}-{store}\" }}\n"));
        let text = format!(
            "job.name = \"{name}\"\npackage.path = \"played by the test\"\n\
             systems.kafka = {{ type = \"kafka\", bootstrap = \"{}\" }}\n\
             streams.\"kafka.in\".topic = \"{name}-in\"\n{tables}\
             [task]\ninputs = [\"kafka.in\"]\n{more}\nconfig.stores = \"{}\"\n",
            brokers.bootstrap,
            stores.join(",")
        );
        let spec = job_file::parse(&text, "job.toml").unwrap_or_else(|problems| panic!("{problems}")).spec;
        let admin = KafkaAdmin::new(&brokers.bootstrap, &Default::default()).expect("an admin");
        let folder = tempfile::tempdir().expect("a folder");
        let (topics, logs) = (JobTopics::of(&spec.job), spec.stores.values());
        let compacted = logs.filter_map(|store| store.changelog.clone()).chain([topics.checkpoint]);
        let topic = |topic: String, policy: &str| NewTopic {
            topic,
            partitions: tasks,
            replication: 1,
            config: [("cleanup.policy".to_owned(), policy.to_owned())].into(),
        };
        let all: Vec<NewTopic> = compacted.map(|name| topic(name, "compact")).collect();
        admin.create(&all).expect("topics are made");
        admin.create(&[topic(format!("{name}-in"), "delete")]).expect("a topic is made");
        let job = Job { spec, example: "crowd", brokers, admin, folder };
        Crowd {
            job,
            master: Master::with(model(&["kafka.in".to_owned()], tasks)),
            tasks,
            fed: 0,
            peak: Cell::new(0),
        }
    }

    /// Feeds keys that were not fed before, or those from 0 on once more, to all tasks in turn.
    fn feed(&mut self, keys: std::ops::Range<u64>, value: &[u8]) {
        let of = &self.job.brokers.bootstrap;
        let mut producer = KafkaProducer::idempotent(of, "feed", &Default::default()).expect("a producer");
        let topic = producer.topic(&self.job.topic("in")).expect("a topic");
        for n in keys {
            let partition = i32::try_from(n % self.tasks as u64).expect("few");
            // Keys of one task are spread, not in order.
            let key = n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
            producer.send(&ProducerRecord::new(topic, Some(&key), Some(value)).to(partition)).expect("sends");
            self.fed += 1;
        }
        producer.flush(crate::PATIENCE).expect("flushes");
    }

    fn start(&self, seq: u64, state: &str, memory: u64, limits: &str) -> Container {
        let memory = memory.to_string();
        Container::limited(&self.job, &self.master, seq, state, &[("SAMZA_MEMORY_BYTES", &memory)], limits)
    }

    fn wait(
        &self,
        container: &Container,
        what: &str,
        is: impl Fn(&ContainerStatus) -> bool,
    ) -> ContainerStatus {
        self.master.wait_long(container, LONG, what, |status| {
            self.peak.set(self.peak.get().max(memory_kib(container)));
            is(status)
        })
    }

    fn peak_mib(&self) -> u64 {
        self.peak.get() / 1024
    }

    /// The peak since it was last asked for, in MiB, which is within `limit`.
    fn take_peak(&self, limit: u64) -> u64 {
        let peak = self.peak.take() / 1024;
        assert!(peak <= limit / MIB, "{peak} MiB of {}", limit / MIB);
        peak
    }

    fn wait_for_all(&self, container: &Container) {
        self.wait(container, "through", |status| status.processed >= self.fed);
    }

    /// So many are in the changelog of `store` and not deleted.
    fn rows_of(&self, store: &str) -> usize {
        let topic = self.job.spec.stores[store].changelog.as_ref().expect("it has one");
        let of = |partition| {
            let mut live = BTreeSet::new();
            for (_, key, value) in self.job.rows(topic, partition) {
                if value.is_some() {
                    live.insert(key)
                } else {
                    live.remove(&key)
                };
            }
            live.len()
        };
        (0..self.tasks).map(of).sum()
    }

    /// Files that databases have made so far: each of them was forced to the disk.
    fn files_made(&self, state: &str) -> u64 {
        let number = |name: &str| name.split('.').next().and_then(|stem| stem.parse::<u64>().ok());
        let of_folder = |folder: std::fs::DirEntry| {
            let files = std::fs::read_dir(folder.path()).expect("a folder").flatten();
            files.filter_map(|file| number(file.file_name().to_str()?)).max().unwrap_or(0)
        };
        let folders = std::fs::read_dir(self.job.folder.path().join(state)).expect("state").flatten();
        folders.map(of_folder).sum()
    }
}

fn proc_of(container: &Container, what: &str) -> std::path::PathBuf {
    std::path::PathBuf::from(format!("/proc/{}/{what}", container.pid().as_raw_nonzero()))
}

/// What it has allocated and used: its code and its files can be read again, so they do not count.
fn memory_kib(container: &Container) -> u64 {
    let status = std::fs::read_to_string(proc_of(container, "status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse().expect("a number"))
}

fn open_files(container: &Container) -> usize {
    std::fs::read_dir(proc_of(container, "fd")).expect("it lives").count()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("before the year 500 million")
}

// ---------------------------------------------------------------- files

fn tasks_and_files(name: &str, tasks: i32, soft: u64, hard: u64) {
    let mut crowd = Crowd::new(name, tasks, &["rows"], "");
    crowd.feed(0..tasks as u64 * 20, b"value");
    let refused = crowd.start(1, "state", 1024 * MIB, &format!("ulimit -n {hard};"));
    let log = refused.log.clone();
    assert_eq!(refused.exit_code(), 1);
    let log = std::fs::read_to_string(log).expect("a log");
    for word in [format!("{tasks} tasks"), format!("allows {hard}"), "ulimit -Hn".into()] {
        assert!(log.contains(&word), "`{word}` is not in\n{log}");
    }
    let container = crowd.start(2, "state", 1024 * MIB, &format!("ulimit -Sn {soft};"));
    crowd.wait_for_all(&container);
    let (peak, files) = (crowd.peak_mib(), open_files(&container));
    println!("{tasks} tasks with a store each: {files} open files, {peak} MiB at most");
    assert!(files as u64 > soft, "{files} files: the soft limit was not in the way");
    container.signal(Signal::TERM);
    assert_eq!(container.exit_code(), 143);
    assert_eq!(crowd.rows_of("rows"), tasks as usize * 20);
}

#[test]
fn a_container_of_many_tasks_raises_its_limit_of_open_files_or_says_that_it_must_be_raised() {
    tasks_and_files("files", 30, 100, 256);
}

#[test]
#[ignore = "nine hundred partitions; make soak runs it"]
fn three_hundred_tasks_run_in_one_container_under_a_soft_limit_of_1024_files() {
    tasks_and_files("files-300", 300, 1_024, 1_024);
}

// ---------------------------------------------------------------- memory

fn tasks_and_stores(name: &str, tasks: i32, limit: u64, rounds: u64) {
    let mut crowd = Crowd::new(name, tasks, &["a", "b", "c"], "");
    let container = crowd.start(1, "state", limit, "");
    crowd.wait(&container, "running", is_running);
    let start = Instant::now();
    for round in 0..rounds {
        // Every store of every task has something to write all the time.
        crowd.feed(round * 1_000..(round + 1) * 1_000, &[7; 100]);
        crowd.wait_for_all(&container);
    }
    let (peak, files) = (crowd.peak_mib(), crowd.files_made("state"));
    let took = start.elapsed();
    let commits = crowd.master.status(&container).map_or(0, |status| status.commits);
    println!(
        "{tasks} tasks with three stores: {peak} MiB of {} at most, {files} files made in {took:?} ({commits} commits)",
        limit / MIB
    );
    assert!(peak <= limit / MIB, "{peak} MiB");
    // Five seconds for each eight tasks lie between two flushes; a flush makes a file for each store and one for
    // positions, and some of them are merged.
    let flushes = took.as_secs() * 8 / (5 * tasks as u64) + 2;
    assert!(files <= tasks as u64 * (12 + 8 * flushes), "{files} files in {flushes} flushes");
    container.signal(Signal::TERM);
    assert_eq!(container.exit_code(), 143);
    assert_eq!(crowd.rows_of("c") as u64, rounds * 1_000);
}

#[test]
fn stores_of_several_tasks_that_are_all_written_stay_within_a_small_container() {
    tasks_and_stores("stores", 8, 96 * MIB, 10);
}

#[test]
#[ignore = "two hundred stores; make soak runs it"]
fn sixty_four_tasks_with_three_stores_each_stay_within_256_mib() {
    tasks_and_stores("stores-64", 64, 256 * MIB, 100);
}

fn restores(name: &str, keys: u64, limit: u64) {
    let mut crowd = Crowd::new(name, 2, &["rows"], "");
    let container = crowd.start(1, "state", limit, "");
    for from in (0..keys).step_by(500_000) {
        crowd.feed(from..keys.min(from + 500_000), &[7; 16]);
        crowd.wait_for_all(&container);
    }
    println!("{keys} keys written: {} MiB of {} at most", crowd.take_peak(limit), limit / MIB);
    container.signal(Signal::TERM);
    assert_eq!(container.exit_code(), 143);
    let start = Instant::now();
    let container = crowd.start(2, "elsewhere", limit, "");
    crowd.wait(&container, "running", is_running);
    let took = start.elapsed();
    println!("{keys} keys restored in {took:?}: {} MiB of {} at most", crowd.take_peak(limit), limit / MIB);
    container.signal(Signal::TERM);
    assert_eq!(container.exit_code(), 143);
}

#[test]
fn a_restore_stays_within_a_small_container() {
    restores("restores", 100_000, 80 * MIB);
}

#[test]
#[ignore = "millions of keys; make soak runs it"]
fn a_restore_of_millions_of_keys_stays_within_a_small_container() {
    restores("restores-many", number_from("SAMZA_RESTORE_KEYS", 2_000_000), 160 * MIB);
}

// ---------------------------------------------------------------- timers

fn due_timers(name: &str, timers: u64, limit: u64, set_within: Duration) {
    let mut crowd = Crowd::new(name, 2, &[], "timers = true");
    let due = now_ms() + u64::try_from(set_within.as_millis()).expect("soon");
    crowd.job.spec.task.config.insert("due".into(), due.to_string());
    crowd.feed(0..timers, b"");
    let container = crowd.start(1, "state", limit, "");
    crowd.wait_for_all(&container);
    container.signal(Signal::TERM);
    assert_eq!(container.exit_code(), 143);
    assert!(now_ms() < due, "setting them took longer than {set_within:?}");
    assert_eq!(crowd.rows_of("timers") as u64, timers);
    println!("{timers} timers set: {} MiB at most", crowd.take_peak(limit));
    std::thread::sleep(Duration::from_millis(due.saturating_sub(now_ms())));

    // What the next messages set goes off at once, too.
    let mut container = crowd.start(2, "elsewhere", limit, "");
    crowd.wait(&container, "running", is_running);
    let start = Instant::now();
    let before = crowd.fed;
    crowd.feed(timers..timers + 100, b"");
    let status =
        crowd.wait(&container, "reading beside due timers", |status| status.processed >= crowd.fed - before);
    println!(
        "{timers} timers due: messages taken after {:?}, {} commits by then",
        start.elapsed(),
        status.commits
    );
    let asked = Instant::now();
    container.signal(Signal::TERM);
    assert_eq!(container.ended().code(), Some(143));
    let took = asked.elapsed();
    let left = crowd.rows_of("timers");
    println!("stopped within {took:?}, {left} timers left: {} MiB at most", crowd.take_peak(limit));
    assert!(took < Duration::from_secs(10), "{took:?}");

    let container = crowd.start(3, "state", limit, "");
    let start = Instant::now();
    crowd.wait(&container, "running", is_running);
    println!("started again: {} MiB at most", crowd.take_peak(limit));
    // To look means to read all of the changelog.
    let (looked, every) = (Cell::new(Instant::now()), Duration::from_millis(500 + timers / 200));
    crowd.wait(&container, "done with all timers", |_| {
        let looks = looked.get().elapsed() > every;
        if looks {
            looked.set(Instant::now());
        }
        looks && crowd.rows_of("timers") == 0
    });
    let took = start.elapsed();
    println!("all went off within {took:?} of the last start: {} MiB at most", crowd.take_peak(limit));
}

#[test]
fn many_timers_that_are_due_after_a_downtime_hold_up_neither_messages_nor_a_stop() {
    due_timers("timers", 20_000, 80 * MIB, Duration::from_secs(25));
}

#[test]
#[ignore = "a million timers take minutes; make soak runs it"]
fn a_million_timers_that_are_due_after_a_downtime_hold_up_nothing_and_fit_a_small_container() {
    let timers = number_from("SAMZA_DUE_TIMERS", 1_000_000);
    due_timers("timers-million", timers, 128 * MIB, Duration::from_millis(60_000 + timers / 5));
}
