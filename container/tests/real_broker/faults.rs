//! What the container stands on fails: brokers die, leaders move, the network is cut, the disk is full, read-only or
//! damaged. Each time the container goes on by itself or ends with a cause on its log, and nothing is lost.
//!
//! Brokers that are hurt belong to their test alone. With SAMZA_SOAK_MINUTES set the network is cut for up to a
//! minute, otherwise for seconds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use task_api::system::SystemAdmin;
use types::{Delivery, EXIT_FENCED};

use crate::PATIENCE;
use crate::brokers::Brokers;
use crate::container::{Container, is_running};
use crate::job::Job;
use crate::master::Master;
use crate::proxy::Proxy;
use crate::tally::{Random, Tally};

/// A job at work that is to outlive faults.
struct Patient {
    tally: Tally,
    container: Container,
    /// Containers that ended for a fault.
    ended: u32,
}

impl Patient {
    fn new(name: &str, delivery: Delivery, brokers: Arc<Brokers>, replication: u16) -> Patient {
        let mut tally = Tally::new(name, delivery, brokers, replication);
        // Few rows: many commits, each with a flush, so that a fault meets one.
        tally.job.spec.stores.get_mut("counts").expect("the store").cache_rows = 50;
        tally.feed_every_key();
        let container = tally.start("state", &[]);
        tally.master.wait(&container, "processing", |status| status.processed > 0);
        Patient { tally, container, ended: 0 }
    }

    /// Lets `fault` strike, and end, while the container works; then waits until it has done all its work. A
    /// successor does it if it has ended.
    fn outlives(&mut self, fault: impl FnOnce(&mut Tally)) {
        self.tally.feed(2_000);
        fault(&mut self.tally);
        self.tally.feed(200);
        let start = Instant::now();
        while !self.tally.is_at_end() {
            let log = self.container.log();
            assert!(start.elapsed() < 2 * PATIENCE, "it neither goes on nor ends:\n{log}");
            if self.container.is_over() {
                assert_cause(&mut self.container, "");
                self.ended += 1;
                self.container = self.tally.start("state", &[]);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn finish(mut self) {
        println!("{}: {} containers ended for a fault", self.tally.job.spec.job.name, self.ended);
        self.container.kill();
        self.tally.finish("state");
    }
}

/// It has ended because something failed, and says what; `what` is part of that.
fn assert_cause(container: &mut Container, what: &str) {
    let code = container.ended().code();
    let log = container.log();
    assert!(code == Some(1) || code == Some(EXIT_FENCED), "{code:?}:\n{log}");
    let cause = log.lines().find(|line| line.contains("failed: ") || line.contains("fenced: "));
    assert!(cause.is_some_and(|line| line.contains(what)), "no cause with `{what}`:\n{log}");
}

/// Stops a container that came to run; one that did not has ended for a cause like `what`.
fn runs_or_ends(tally: &Tally, mut container: Container, what: &str) {
    let start = Instant::now();
    while !tally.master.status(&container).is_some_and(|status| is_running(&status)) {
        if container.is_over() {
            return assert_cause(&mut container, what);
        }
        assert!(start.elapsed() < PATIENCE, "it neither runs nor ends:\n{}", container.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    container.signal(Signal::TERM);
    assert_eq!(container.exit_code(), 143);
}

fn is_soak() -> bool {
    std::env::var_os("SAMZA_SOAK_MINUTES").is_some()
}

// ---------------------------------------------------------------- brokers

#[test]
fn a_broker_that_is_killed_and_comes_back_costs_nothing() {
    let brokers = Brokers::own(&[]);
    let mut patient = Patient::new("broker-killed", Delivery::ExactlyOnce, Arc::clone(&brokers), 1);
    for _ in 0..if is_soak() { 5 } else { 1 } {
        patient.outlives(|_| {
            brokers.kill(1);
            brokers.restart();
        });
    }
    patient.finish();
}

#[test]
#[ignore = "takes two minutes; make soak runs it"]
fn leaders_that_die_or_move_do_not_hold_the_job_up() {
    let brokers = Brokers::own(&["--brokers", "3"]);
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        let mut patient = Patient::new(&format!("leaders-{delivery:?}"), delivery, Arc::clone(&brokers), 3);
        let changelog = patient.tally.job.topic("changelog");
        let found = patient.tally.job.admin.describe(&[changelog]).expect("it is there");
        let leader = found[0].partitions[0].leader.expect("it has one");
        // The other two are enough: nothing waits for the return.
        patient.outlives(|_| brokers.kill(leader));
        patient.outlives(|_| brokers.restart());
        patient.outlives(|_| brokers.prefer_first_replicas());
        patient.finish();
    }
}

#[test]
fn a_network_that_is_cut_for_a_while_costs_nothing() {
    const LISTENS: &str = "127.0.0.1";
    let brokers = Brokers::own(&["--hosts", LISTENS, "--advertise", "127.0.0.101"]);
    let port = brokers.bootstrap.rsplit(':').next().expect("host:port");
    let proxy = Proxy::start(&brokers.bootstrap, &format!("{LISTENS}:{port}"));
    let cuts: &[u64] = if is_soak() { &[1, 5, 15, 30, 60] } else { &[1, 4] };
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let mut patient = Patient::new(&format!("cut-{delivery:?}"), delivery, Arc::clone(&brokers), 1);
        for seconds in cuts {
            patient.outlives(|_| {
                proxy.cut(true);
                std::thread::sleep(Duration::from_secs(*seconds));
                proxy.cut(false);
            });
        }
        // A broker that stands still is as silent, but keeps what has arrived.
        patient.outlives(|_| {
            brokers.signal(1, Signal::STOP);
            std::thread::sleep(Duration::from_secs(cuts[0]));
            brokers.signal(1, Signal::CONT);
        });
        patient.finish();
    }
}

// ---------------------------------------------------------------- disks

/// A small file system in memory, mounted over a folder.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: &Path) -> Disk {
        std::fs::create_dir_all(folder).expect("a folder");
        let disk = Disk(folder.to_owned());
        disk.run("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs"]);
        disk
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let status = Command::new(program).args(arguments).arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "{program} {arguments:?}: root only");
    }

    /// Takes all the room there is; the file is the room.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = std::fs::File::create(&path).expect("there is room");
        while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|written| written > 0) {}
        path
    }

    fn resize(&self, size: &str) {
        self.run("mount", &["-o", &format!("remount,size={size}")]);
    }

    fn read_only(&self, is: bool) {
        self.run("mount", &["-o", if is { "remount,ro" } else { "remount,rw" }]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left a container on it.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "cannot unmount {}", self.0.display());
    }
}

/// Feeds a container until a fault has ended it.
fn feed_until_it_ends(tally: &mut Tally, container: &mut Container) {
    let start = Instant::now();
    while !container.is_over() {
        assert!(start.elapsed() < PATIENCE, "it does not end:\n{}", container.log());
        tally.feed(200);
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_full_disk_ends_the_container_with_its_cause_and_loses_nothing() {
    let mut tally = Tally::new("disk-full", Delivery::AtLeastOnce, Brokers::shared(), 1);
    tally.job.spec.stores.get_mut("counts").expect("the store").cache_rows = 50;
    let disk = Disk::mount(&tally.job.folder.path().join("state"));
    tally.feed_every_key();
    // It is full while the container works, and when it stops.
    let mut first = tally.start("state", &[]);
    tally.await_checkpoints(&mut first);
    let ballast = disk.fill();
    feed_until_it_ends(&mut tally, &mut first);
    assert_cause(&mut first, "No space left");
    std::fs::remove_file(ballast).expect("it is there");

    let mut second = tally.start("state", &[]);
    tally.await_checkpoints(&mut second);
    let ballast = disk.fill();
    tally.feed(1_000);
    tally.await_checkpoints(&mut second);
    second.signal(Signal::TERM);
    assert_cause(&mut second, "No space left");
    // A start finds no room either, unless it makes some by giving up what is there.
    let third = tally.start("state", &[]);
    runs_or_ends(&tally, third, "No space left");
    std::fs::remove_file(ballast).expect("it is there");
    tally.finish("state");
}

#[test]
fn a_restore_that_meets_a_full_disk_says_so_and_the_next_start_goes_on_where_it_was() {
    // Some 30 MB that do not compress, in chunks of little more than one.
    const ROWS: u64 = 30_000;
    let (job, master) =
        (Job::new("counter", "restore-full", Delivery::ExactlyOnce, Brokers::shared(), 1), Master::start());
    job.fill_changelog(ROWS, |n| {
        let mut random = Random(n);
        (0..1_000).map(|_| random.below(256) as u8).collect()
    });
    let disk = Disk::mount(&job.folder.path().join("state"));
    let memory = [("SAMZA_MEMORY_BYTES", &*(44u64 << 20).to_string())];
    let mut first = Container::start(&job, &master, 1, "state", &memory);
    assert_cause(&mut first, "No space left");
    // A start that finds no more room does no harm to what is there.
    let mut second = Container::start(&job, &master, 2, "state", &memory);
    assert_cause(&mut second, "No space left");
    disk.resize("96m");
    let third = Container::start(&job, &master, 3, "state", &memory);
    let status = master.wait(&third, "running", is_running);
    let restore = status.tasks[0].restore.clone().expect("it has a store");
    assert!(restore.from_local && (1..ROWS).contains(&restore.rows), "{restore:?}");
    third.signal(Signal::TERM);
    assert_eq!(third.exit_code(), 143);
}

#[test]
fn a_disk_that_became_read_only_ends_the_container_with_its_cause_and_loses_nothing() {
    let mut tally = Tally::new("read-only", Delivery::ExactlyOnce, Brokers::shared(), 1);
    tally.job.spec.stores.get_mut("counts").expect("the store").cache_rows = 50;
    let disk = Disk::mount(&tally.job.folder.path().join("state"));
    tally.feed_every_key();
    let clean = tally.start("state", &[]);
    tally.master.wait(&clean, "running", is_running);
    clean.signal(Signal::TERM);
    assert_eq!(clean.exit_code(), 143);
    disk.read_only(true);
    let mut refused = tally.start("state", &[]);
    assert_cause(&mut refused, "Read-only file system");
    disk.read_only(false);
    tally.finish("state");
}

fn files_of_rows(state: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(state).expect("a folder").map(|entry| entry.expect("readable").path()) {
        if entry.is_dir() {
            found.extend(files_of_rows(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "sst") {
            found.push(entry);
        }
    }
    found
}

/// Runs a job to its end, lets `damage` have its files of rows, and expects everything back.
fn comes_back_after(name: &str, damage: impl Fn(&Path)) {
    let mut tally = Tally::new(name, Delivery::ExactlyOnce, Brokers::shared(), 1);
    tally.feed_every_key();
    let mut clean = tally.start("state", &[]);
    tally.await_checkpoints(&mut clean);
    clean.signal(Signal::TERM);
    assert_eq!(clean.exit_code(), 143);
    let files = files_of_rows(&tally.job.folder.path().join("state"));
    assert!(!files.is_empty());
    files.iter().for_each(|file| damage(file));
    // It may end of what it finds, but its successor must not find it again.
    let next = tally.start("state", &[]);
    runs_or_ends(&tally, next, "Corruption");
    tally.feed(1_000);
    tally.finish("state");
}

#[test]
fn a_truncated_file_of_rows_is_replaced_from_the_changelog() {
    comes_back_after("truncated", |file| {
        let file = std::fs::File::options().write(true).open(file).expect("writable");
        let len = file.metadata().expect("it is there").len();
        file.set_len(len / 2).expect("writable");
    });
}

#[test]
fn rows_that_rotted_on_disk_are_replaced_from_the_changelog() {
    comes_back_after("rotted", |path| {
        let mut bytes = std::fs::read(path).expect("readable");
        bytes[0..64].iter_mut().for_each(|byte| *byte ^= 0x5a);
        std::fs::write(path, bytes).expect("writable");
    });
}
