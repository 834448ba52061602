//! What containers cost on this machine, beside what the kernel alone takes for the same: run by `make bench`.

#[path = "node/stage.rs"]
#[allow(dead_code)] // the tests use more of it
mod stage;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use stage::{FakeRm, Node, Session, id, shell};
use types::{ExitCause, StartContainer, ToNode};

const STARTS: u64 = 200;
const LIVES: u64 = 1_000;
const RUNNING: u64 = 500;
const IDLE: u64 = 200;
const IDLE_FOR: Duration = Duration::from_secs(10);
const PROCESSES: usize = 50;

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // Beside the usual sandbox: what it costs.
        println!("without a sandbox:");
        bare_containers().await;
        println!("as usual:");
        let mut rm = FakeRm::start().await;
        rm.beat_ms = 500;
        let node = Node::start(&rm, &["--memory", "256GiB", "--cpu", "256"]);
        let mut session = rm.join().await;
        let idle_kib = memory_kib(node.pid());
        starts(&mut session).await;
        lives(&mut session).await;
        kill(&mut session).await;
        running(&mut session, &node, idle_kib).await;
    });
    bare();
}

/// Starts and lives with nothing taken away from containers.
async fn bare_containers() {
    let mut rm = FakeRm::start().await;
    let _node = Node::start(&rm, &["--memory", "256GiB", "--cpu", "256", "--sandbox", "none"]);
    let mut session = rm.join().await;
    starts(&mut session).await;
    lives(&mut session).await;
}

fn program(seq: u64, command: &[&str]) -> StartContainer {
    let mut start = shell(seq, u32::try_from(seq).unwrap(), "");
    start.command = command.iter().map(|word| (*word).to_owned()).collect();
    start
}

/// The value below which a share `p` of the sorted `times` lies, ms.
fn percentile(times: &mut [Duration], p: f64) -> f64 {
    times.sort();
    let place = ((times.len() as f64 * p).ceil() as usize).clamp(1, times.len()) - 1;
    times[place].as_secs_f64() * 1e3
}

/// Ask received to process running, and kill asked to exit told, one container at a time, artefacts and limits as
/// always.
async fn starts(session: &mut Session) {
    let (mut started, mut ended) = (Vec::new(), Vec::new());
    for seq in 1..=STARTS {
        let asked = Instant::now();
        session.start(&program(seq, &["sleep", "1000"]));
        session.running(id(seq)).await;
        started.push(asked.elapsed());
        let asked = Instant::now();
        session.stop(id(seq), 0);
        session.exit(id(seq)).await;
        ended.push(asked.elapsed());
        session.send(ToNode::Forget { container: id(seq) });
    }
    let (p50, p99) = (percentile(&mut started, 0.5), percentile(&mut started, 0.99));
    println!("start to running      p50 {p50:.1} ms, p99 {p99:.1} ms (targets 5 and 25)");
    let (p50, p99) = (percentile(&mut ended, 0.5), percentile(&mut ended, 0.99));
    println!("kill to exit told     p50 {p50:.1} ms, p99 {p99:.1} ms");
}

/// As many as can be, a hundred at a time, that end at once.
async fn lives(session: &mut Session) {
    let asked = Instant::now();
    let all: Vec<u64> = (1_001..=1_000 + LIVES).collect();
    for some in all.chunks(100) {
        some.iter().for_each(|seq| session.start(&program(*seq, &["true"])));
        for seq in some {
            assert_eq!(session.exit(id(*seq)).await, ExitCause::Success);
            session.send(ToNode::Forget { container: id(*seq) });
        }
    }
    println!(
        "starts and exits      {:.0} per second (target 1000)",
        LIVES as f64 / asked.elapsed().as_secs_f64()
    );
}

async fn kill(session: &mut Session) {
    let script = format!("for i in $(seq {PROCESSES}); do sleep 1000 & done; wait");
    session.start(&shell(5_000, 5_000, &script));
    session.running(id(5_000)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked = Instant::now();
    session.stop(id(5_000), 0);
    session.exit(id(5_000)).await;
    println!("kill of {PROCESSES} processes  {:.1} ms", asked.elapsed().as_secs_f64() * 1e3);
    session.send(ToNode::Forget { container: id(5_000) });
}

/// Memory with many containers, and CPU while they do nothing.
async fn running(session: &mut Session, node: &Node, idle_kib: u64) {
    let all: Vec<u64> = (10_001..=10_000 + RUNNING).collect();
    for some in all.chunks(100) {
        some.iter().for_each(|seq| session.start(&program(*seq, &["sleep", "1000"])));
        for seq in some {
            session.running(id(*seq)).await;
        }
    }
    let shims: Vec<u64> = shims(node.root.path()).into_iter().map(memory_kib).collect();
    let each = shims.iter().sum::<u64>() / shims.len().max(1) as u64;
    println!(
        "nm's memory           {idle_kib} KiB idle (target 20480), {} KiB with {RUNNING} containers",
        memory_kib(node.pid())
    );
    println!("a shim's memory       {each} KiB (target 2048)");
    for seq in 10_001 + IDLE..=10_000 + RUNNING {
        session.stop(id(seq), 0);
        session.exit(id(seq)).await;
        session.send(ToNode::Forget { container: id(seq) });
    }
    let (before, begun) = (cpu(node.pid()), Instant::now());
    tokio::time::sleep(IDLE_FOR).await;
    let share = (cpu(node.pid()) - before).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
    println!("nm's CPU, {IDLE} idle containers  {share:.2} % of a core (target 1)");
}

/// What the kernel alone takes for a process and for the cgroups of a container.
fn bare() {
    let begun = Instant::now();
    for _ in 0..STARTS {
        assert!(Command::new("true").status().unwrap().success());
    }
    println!("bare: spawn, exec, wait      {:.2} ms", ms_each(begun));
    let controllers = ["cpu", "cpuacct", "freezer", "memory", "pids", "blkio", "."];
    let mounted = controllers.map(|c| Path::new("/sys/fs/cgroup").join(c));
    let mounted: Vec<_> = mounted.iter().filter(|m| m.join("cgroup.procs").exists()).collect();
    let begun = Instant::now();
    for n in 0..STARTS {
        let groups = mounted.iter().map(|mount| mount.join(format!("samza-bare-{}-{n}", std::process::id())));
        let groups: Vec<_> = groups.collect();
        groups.iter().for_each(|group| fs::create_dir(group).unwrap());
        groups.iter().for_each(|group| fs::remove_dir(group).unwrap());
    }
    println!("bare: {} cgroups made and removed  {:.2} ms", mounted.len(), ms_each(begun));
}

fn ms_each(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3 / STARTS as f64
}

/// Private memory of a process.
fn memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
}

fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn shims(root: &Path) -> Vec<u32> {
    let claims =
        fs::read_dir(root.join("containers")).unwrap().flatten().map(|entry| entry.path().join("shim.json"));
    let read = |path| serde_json::from_slice::<serde_json::Value>(&fs::read(path).ok()?).ok();
    claims.filter_map(|claim| u32::try_from(read(claim)?["shim"]["pid"].as_u64()?).ok()).collect()
}
