//! The shim by itself, without cgroups: exits, orphans, the lease, a node manager that never comes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nm_shim::files::{self, EXIT};
use nm_shim::{ByShim, Claim, ExitFile, KillPlan, Order, ProcessFile, Reply};
use rustix::time::{ClockId, clock_gettime};

fn order(dir: &Path, script: &str) -> Order {
    File::create(dir.join("nm.lock")).unwrap();
    Order {
        dir: dir.to_owned(),
        work: dir.to_owned(),
        stdout: dir.join("stdout"),
        stderr: dir.join("stderr"),
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("GREETING".into(), "hello".into()), ("PATH".into(), "/usr/bin:/bin".into())]),
        join: Vec::new(),
        kill: KillPlan::Descendants,
        user: None,
        lease: None,
        nm_lock: dir.join("nm.lock"),
        abandon_ms: 600_000,
    }
}

fn start(order: &Order) -> (Child, Reply) {
    let mut shim = Command::new(env!("CARGO_BIN_EXE_nm-shim"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shim.stdin.take().unwrap().write_all(&serde_json::to_vec(order).unwrap()).unwrap();
    let mut line = String::new();
    BufReader::new(shim.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (shim, serde_json::from_str(&line).unwrap())
}

fn running(reply: Reply) -> ProcessFile {
    match reply {
        Reply::Running(process) => process,
        Reply::Failed(reason) => panic!("it does not run: {reason}"),
    }
}

fn exit(dir: &Path) -> ExitFile {
    files::read(dir, EXIT).unwrap().expect("the shim ended without an exit file")
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_exit_code_is_kept_and_output_is_appended() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("stdout"), "before\n").unwrap();
    let (mut shim, reply) = start(&order(dir.path(), "echo $GREETING $(pwd); exit 7"));
    running(reply);
    shim.wait().unwrap();
    let end = exit(dir.path());
    assert_eq!((end.code, end.signal, end.by_shim), (Some(7), None, None));
    let printed = fs::read_to_string(dir.path().join("stdout")).unwrap();
    assert_eq!(printed, format!("before\nhello {}\n", dir.path().display()));
}

#[test]
fn a_signal_is_told_from_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shim, reply) = start(&order(dir.path(), "kill -SEGV $$"));
    running(reply);
    shim.wait().unwrap();
    assert_eq!((exit(dir.path()).code, exit(dir.path()).signal), (None, Some(11)));
}

#[test]
fn what_the_process_left_behind_dies_with_it() {
    let dir = tempfile::tempdir().unwrap();
    // Double-forked, in a session of its own, ignoring TERM.
    let script = "setsid sh -c 'trap \"\" TERM; sleep 1000 & echo $! > child; wait' & \
                  while [ ! -s child ]; do sleep 0.01; done";
    let (mut shim, reply) = start(&order(dir.path(), script));
    running(reply);
    shim.wait().unwrap();
    let child: u32 = fs::read_to_string(dir.path().join("child")).unwrap().trim().parse().unwrap();
    until("the orphan's death", || files::start_ticks(child).is_err());
    assert_eq!(exit(dir.path()).code, Some(0));
}

#[test]
fn a_command_that_cannot_run_is_told_and_leaves_no_exit() {
    let dir = tempfile::tempdir().unwrap();
    let mut order = order(dir.path(), "");
    order.argv = vec!["/no/such/program".into()];
    let (mut shim, reply) = start(&order);
    let Reply::Failed(reason) = reply else { panic!("it runs") };
    assert!(reason.contains("/no/such/program"), "{reason}");
    shim.wait().unwrap();
    assert_eq!(files::read::<ExitFile>(dir.path(), EXIT).unwrap(), None);
}

#[test]
fn a_container_that_was_given_up_is_never_started() {
    let dir = tempfile::tempdir().unwrap();
    assert!(files::claim(dir.path(), &Claim { shim: None }).unwrap());
    let (mut shim, reply) = start(&order(dir.path(), "touch ran"));
    assert!(matches!(reply, Reply::Failed(_)));
    shim.wait().unwrap();
    assert!(!dir.path().join("ran").exists());
}

#[test]
fn at_lease_end_the_shim_kills_without_term_and_a_renewal_puts_it_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut order = order(dir.path(), "trap 'touch termed' TERM; touch up; while :; do sleep 0.05; done");
    let lease = dir.path().join("lease");
    let now = || {
        let now = clock_gettime(ClockId::Boottime);
        now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
    };
    let begun = now();
    fs::write(&lease, format!("{:020}\n", begun + 300)).unwrap();
    order.lease = Some(lease.clone());
    let (mut shim, reply) = start(&order);
    running(reply);
    fs::write(&lease, format!("{:020}\n", begun + 900)).unwrap();
    shim.wait().unwrap();
    assert!(now() >= begun + 900, "it ended before the renewed lease did");
    let end = exit(dir.path());
    assert_eq!((end.signal, end.by_shim), (Some(9), Some(ByShim::LeaseEnded)));
    assert!(dir.path().join("up").exists() && !dir.path().join("termed").exists());
}

#[test]
fn without_a_node_manager_for_too_long_the_container_is_asked_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut order = order(dir.path(), "trap 'touch termed; exit 0' TERM; while :; do sleep 0.02; done");
    order.abandon_ms = 100;
    let (mut shim, reply) = start(&order);
    running(reply);
    shim.wait().unwrap();
    assert!(dir.path().join("termed").exists());
    assert_eq!(exit(dir.path()).code, Some(0));
}

#[test]
fn the_shim_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shim, reply) = start(&order(dir.path(), "sleep 1000"));
    let process = running(reply);
    let status = fs::read_to_string(format!("/proc/{}/status", shim.id())).unwrap();
    let anon = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib: u64 = anon.trim().trim_end_matches("kB").trim().parse().unwrap();
    assert!(kib <= 2048, "RssAnon is {kib} KiB");
    let pid = rustix::process::Pid::from_raw(process.process.pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    shim.wait().unwrap();
    assert_eq!(exit(dir.path()).signal, Some(9));
}
