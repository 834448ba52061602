//! What containers are held to, whatever they try.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use types::{ContainerUsage, ExitCause, StartContainer};

use crate::stage::{FakeRm, NOBODY, Node, alive, id, is_v2, shell, until};

/// A container that has `cpu_millis` and never rests, on the first processor alone: there whatever else runs takes from
/// all alike.
fn spinning(seq: u64, cpu_millis: u32) -> StartContainer {
    let mut start = shell(seq, seq as u32, "exec taskset 1 sh -c 'while :; do :; done'");
    start.resource.cpu_millis = cpu_millis;
    start
}

/// Waits until all of `seqs` use CPU, then says how much each uses during `time`.
async fn cpu_during(node: &Node, seqs: &[u64], time: Duration) -> Vec<Duration> {
    let all = || seqs.iter().map(|seq| node.cpu(id(*seq))).collect::<Vec<_>>();
    until("their work", || all().iter().all(|used| *used > Duration::from_millis(50))).await;
    let before = all();
    tokio::time::sleep(time).await;
    all().iter().zip(before).map(|(after, before)| *after - before).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_set_as_asked() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let mut start = shell(1, 1, "sleep 1000");
    start.spec.containers.cpu_limit_millis = Some(750);
    session.start(&start);
    session.running(id(1)).await;
    let read = |v1, v2| {
        let file = node.cgroup_file(id(1), v1, v2);
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
    };
    let bytes = (64 << 20).to_string();
    assert_eq!(read(("memory", "memory.limit_in_bytes"), "memory.max"), bytes);
    let v2 = is_v2();
    assert_eq!(read(("cpu", "cpu.shares"), "cpu.weight"), if v2 { "50" } else { "512" });
    assert_eq!(read(("cpu", "cpu.cfs_quota_us"), "cpu.max"), if v2 { "75000 100000" } else { "75000" });
    assert_eq!(read(("pids", "pids.max"), "pids.max"), "8192");
    // A kernel that cannot swap has no such file.
    let swap = node.cgroup_file(id(1), ("memory", "memory.memsw.limit_in_bytes"), "memory.swap.max");
    if swap.exists() {
        assert_eq!(fs::read_to_string(swap).unwrap().trim(), if v2 { "0" } else { &bytes });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_contention_cpu_goes_by_the_shares() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    for (seq, cpu_millis) in [(1, 900), (2, 300)] {
        session.start(&spinning(seq, cpu_millis));
        session.running(id(seq)).await;
    }
    let used = cpu_during(&node, &[1, 2], Duration::from_secs(4)).await;
    let ratio = used[0].as_secs_f64() / used[1].as_secs_f64();
    assert!((2.7..3.3).contains(&ratio), "{used:?}: {ratio:.2} instead of 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_share_a_processor_are_told_as_waiting_for_it_where_the_kernel_knows() {
    let mut rm = FakeRm::start().await;
    let _node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    for seq in [1, 2] {
        session.start(&spinning(seq, 500));
        session.running(id(seq)).await;
    }
    for seq in [1, 2] {
        let waits = |usage: &ContainerUsage| match usage.pressure {
            Some(pressure) => is_v2() && pressure.cpu > 20 && pressure.cpu <= 100 && pressure.memory < 20,
            None => !is_v2() && usage.cpu_millis > 0,
        };
        let told = |usage: &ContainerUsage| usage.container == id(seq) && waits(usage);
        session.until("what it waits for", |seen| seen.usage.iter().any(told)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_a_cpu_limit_gets_no_more_on_an_idle_machine() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let mut start = spinning(1, 200);
    start.spec.containers.cpu_limit_millis = Some(200);
    session.start(&start);
    session.running(id(1)).await;
    let begun = Instant::now();
    let used = cpu_during(&node, &[1], Duration::from_secs(2)).await[0];
    // A period at either end may be counted whole.
    let most = begun.elapsed().mul_f64(0.2) + Duration::from_millis(40);
    assert!(used <= most, "{used:?}, at most {most:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_meets_its_limit_and_its_neighbour_forks_on() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &["--container-pids", "64"]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "while :; do n=$(true | cat | wc -l); echo $n > forked; done"));
    session.start(&shell(
        2,
        2,
        "trap '' TERM; bomb() { bomb | bomb & }; bomb; touch up; while :; do sleep 1; done",
    ));
    session.running(id(1)).await;
    session.running(id(2)).await;
    let events = node.cgroup_file(id(2), ("pids", "pids.events"), "pids.events");
    let refused = || fs::read_to_string(&events).is_ok_and(|text| text.trim() != "max 0");
    until("a fork that is refused", refused).await;
    let procs = node.cgroup_file(id(2), ("pids", "pids.current"), "pids.current");
    let now: u64 = fs::read_to_string(procs).unwrap().trim().parse().unwrap();
    assert!(now <= 64, "{now} processes");
    let forked = node.work(id(1)).join("forked");
    until("the neighbour's next fork", || fs::remove_file(&forked).is_ok()).await;
    session.stop(id(2), 0);
    // Its shell may have ended by itself, unable to fork; whatever it was, nothing is left.
    session.exit(id(2)).await;
    assert!(!node.cgroups().iter().any(|group| group.ends_with(id(2).to_string())));
    session.stop(id(1), 0);
    assert_eq!(session.exit(id(1)).await, ExitCause::KilledByAm);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_container_out_of_memory_every_process_ends() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "setsid sleep 1000 & echo $! > child; tail /dev/zero & wait; sleep 1000"));
    let pid = session.running(id(1)).await.pid.unwrap();
    let cause = session.exit(id(1)).await;
    assert!(matches!(cause, ExitCause::OutOfMemory { .. }), "{cause}");
    let child: u32 = fs::read_to_string(node.work(id(1)).join("child")).unwrap().trim().parse().unwrap();
    assert!(!alive(pid) && !alive(child));
    assert_eq!(node.cgroups(), Vec::<std::path::PathBuf>::new());
}

/// On v1 the kernel kills one process alone, and nm is told of it at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_out_of_memory_kill_leaves_does_not_get_far() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    // Each line is 20 ms of a life that should be over.
    let script = "tail /dev/zero; while :; do echo on >> outlived; sleep 0.02; done";
    for seq in 1..=8 {
        session.start(&shell(seq, seq as u32, script));
    }
    let mut outlived = Vec::new();
    for seq in 1..=8 {
        let cause = session.exit(id(seq)).await;
        assert!(matches!(cause, ExitCause::OutOfMemory { .. }), "{cause}");
        let lines = fs::read_to_string(node.work(id(seq)).join("outlived")).unwrap_or_default();
        outlived.push(lines.lines().count());
    }
    // A look once a second would let them live for 25 of them on average.
    let total: usize = outlived.iter().sum();
    assert!(total < 8 * 10, "{outlived:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_sandbox_a_container_has_a_tmp_of_its_own_no_rights_of_root_and_writes_only_where_it_should() {
    let mut rm = FakeRm::start().await;
    let walls = "no-new-privileges,no-capabilities,private-tmp,read-only-root";
    let node = Node::start(&rm, &["--sandbox", walls]);
    let mut session = rm.join().await;
    let name = format!("samza-sandbox-{}", std::process::id());
    let script = format!(
        "touch /tmp/{name} mine $SAMZA_STATE_DIR/kept || exit 11; touch /dev/shm/{name} && rm /dev/shm/{name}; \
         touch ../../../{name} 2>/dev/null && exit 12; touch /{name} 2>/dev/null && exit 13; \
         grep -q 'NoNewPrivs:.*1' /proc/self/status || exit 14; \
         grep -q 'CapEff:.*0000000000000000' /proc/self/status || exit 15; exit 0"
    );
    session.start(&shell(1, 1, &script));
    assert_eq!(session.exit(id(1)).await, ExitCause::Success);
    assert!(!Path::new("/tmp").join(&name).exists(), "its /tmp is the machine's");
    assert!(node.work(id(1)).join("mine").exists());
    session.send(types::ToNode::Forget { container: id(1) });
    until("the removal of all of it", || !node.work(id(1)).parent().unwrap().exists()).await;
}

#[test]
fn nm_doctor_says_what_containers_are_held_to_and_leaves_nothing() {
    let doctor = |args: &[&str]| {
        let parent = format!("samza-test-doctor-{}", std::process::id());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nm"));
        command.args(["--cgroup-parent", &parent, "doctor"]).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let left = Node::groups_below(&parent);
        assert_eq!(left, Vec::<std::path::PathBuf>::new());
        String::from_utf8(output.stdout).unwrap()
    };
    let text = doctor(&[]);
    for held in ["memory limit", "cpu weight", "cpu limit", "pids", "kill of all at once"] {
        let line =
            text.lines().find(|line| line.starts_with(held)).unwrap_or_else(|| panic!("{held}: {text}"));
        assert!(line[held.len()..].trim().starts_with("yes "), "{line}");
    }
    let json: serde_json::Value = serde_json::from_str(&doctor(&["-o", "json"])).unwrap();
    assert_eq!(json["cgroups"].as_str().unwrap().starts_with("cgroup v2"), is_v2());
    assert_eq!(json["holds"][0]["what"], "memory limit");
}

/// As `systemd-run --user --scope -p Delegate=yes nm` would start it.
#[tokio::test(flavor = "multi_thread")]
async fn without_root_nm_limits_containers_in_the_group_that_was_delegated_to_it() {
    if !is_v2() {
        // v1 cannot delegate: nm must say so, and the way out.
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nm"));
        std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
        let output = command.arg("doctor").output();
        // Who may not even start the program has nothing to say either.
        let told = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        assert!(told.as_ref().map_or(true, |told| told.contains("--unlimited")), "{told:?}");
        return;
    }
    let group = Path::new("/sys/fs/cgroup").join(format!("delegated-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids").unwrap();
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        std::os::unix::fs::chown(group.join(file), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mut rm = FakeRm::start().await;
    let root = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(root.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let go = root.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done; exec \"$@\"", go.display());
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_nm"), "--rm", &rm.addr, "--host", "127.0.0.1"]);
    command.arg("--root").arg(root.path()).args(["--memory", "1GiB"]);
    std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
    let mut nm = command.spawn().unwrap();
    fs::write(group.join("cgroup.procs"), nm.id().to_string()).unwrap();
    fs::write(&go, "").unwrap();
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "exec tail /dev/zero"));
    let cause = session.exit(id(1)).await;
    assert!(matches!(cause, ExitCause::OutOfMemory { .. }), "{cause}");
    nm.kill().unwrap();
    nm.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unless_told_containers_have_no_way_to_the_machine_and_a_tmp_of_their_own() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let name = format!("samza-usual-{}", std::process::id());
    let script = format!(
        "touch /tmp/{name} || exit 11; [ ! -d /dev/shm ] || touch /dev/shm/{name} || exit 10; grep -q 'NoNewPrivs:.*1' /proc/self/status || exit 12; \
         grep -q 'Seccomp:.*2' /proc/self/status || exit 13; \
         grep -q 'CapBnd:.*0000000000000000' /proc/self/status || exit 14; \
         unshare -U true 2>/dev/null && exit 15; unshare -r true 2>/dev/null && exit 16; \
         (true | true) && sh -c true || exit 17; \
         [ ! -d /dev/shm ] || df -k /dev/shm | tail -1 | grep -qw 65536 || exit 18; exit 0"
    );
    session.start(&shell(1, 1, &script));
    assert_eq!(session.exit(id(1)).await, ExitCause::Success);
    for shared in ["/tmp", "/dev/shm"] {
        assert!(!Path::new(shared).join(&name).exists(), "{shared} is the machine's");
    }
    drop(node);
    if !Path::new("/dev/shm").is_dir() {
        return;
    }
    // What is in its /dev/shm is of its memory.
    let _node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(2, 2, "head -c 100000000 /dev/zero > /dev/shm/much; sleep 1000"));
    let cause = session.exit(id(2)).await;
    assert!(matches!(cause, ExitCause::OutOfMemory { .. }), "{cause}");
}
