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
        logs: dir.to_owned(),
        log_bytes: 1 << 20,
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("GREETING".into(), "hello".into()), ("PATH".into(), "/usr/bin:/bin".into())]),
        join: Vec::new(),
        kill: KillPlan::Descendants,
        user: None,
        groups: Vec::new(),
        sandbox: files::Sandbox::default(),
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

/// What is kept of the standard output, and the offset at which that begins. Checks that it is in one piece.
fn kept(dir: &Path) -> (u64, String) {
    let mut files: Vec<(u64, String)> = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let Some(rest) = name.strip_prefix("stdout") else { continue };
        let start = if rest.is_empty() { 0 } else { rest[1..].parse().unwrap() };
        files.push((start, fs::read_to_string(entry.path()).unwrap()));
    }
    files.sort();
    for pair in files.windows(2) {
        assert_eq!(pair[0].0 + pair[0].1.len() as u64, pair[1].0, "a gap");
    }
    (files[0].0, files.into_iter().map(|(_, text)| text).collect())
}

#[test]
fn output_is_kept_up_to_its_bound_and_the_oldest_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut order = order(dir.path(), "seq 1 100000");
    order.log_bytes = 64 << 10;
    let (mut shim, reply) = start(&order);
    running(reply);
    shim.wait().unwrap();
    let (begins, text) = kept(dir.path());
    let all: u64 = (1..=100_000u64).map(|n| n.to_string().len() as u64 + 1).sum();
    assert_eq!(begins + text.len() as u64, all);
    assert!(text.len() <= 64 << 10 && text.len() > 48 << 10, "{} bytes are kept", text.len());
    assert!(text.ends_with("99999\n100000\n"));
}

#[test]
fn all_that_is_said_in_a_short_life_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shim, reply) = start(&order(dir.path(), "head -c 300000 /dev/zero | tr '\\0' x; echo end"));
    running(reply);
    shim.wait().unwrap();
    let (begins, text) = kept(dir.path());
    assert_eq!((begins, text.len()), (0, 300_004));
    assert!(text.ends_with("xend\n"));
}

#[test]
fn a_container_that_closes_its_output_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shim, reply) = start(&order(dir.path(), "exec >&- 2>&-; sleep 0.1; exit 3"));
    running(reply);
    shim.wait().unwrap();
    assert_eq!(exit(dir.path()).code, Some(3));
}

#[test]
fn a_full_disk_does_not_stop_a_container_that_talks_and_its_log_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=32k", "none"]).arg(&logs).status();
    assert!(mounted.unwrap().success(), "mount needs root");
    let script =
        "head -c 500000 /dev/zero | tr '\\0' x; touch said; while [ ! -e go ]; do sleep 0.02; done; echo end";
    let mut order = order(dir.path(), script);
    order.logs = logs.clone();
    fs::write(logs.join("ballast"), [0; 8 << 10]).unwrap();
    let (mut shim, reply) = start(&order);
    running(reply);
    until("the end of its speech", || dir.path().join("said").exists());
    fs::remove_file(logs.join("ballast")).unwrap();
    fs::write(dir.path().join("go"), "").unwrap();
    shim.wait().unwrap();
    let text = fs::read_to_string(logs.join("stdout")).unwrap();
    let unmounted = Command::new("umount").arg(&logs).status();
    assert!(unmounted.unwrap().success());
    assert_eq!(exit(dir.path()).code, Some(0));
    assert!(
        text.contains(" bytes of output could not be written here and are lost]\nend\n"),
        "{}",
        text.len()
    );
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
