//! The wall clock jumps, and nothing that counts notices. Only in the virtual machine, whose clock is its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use tokio::sync::{Mutex, MutexGuard};
use types::{ExitCause, JobId, OnLeaseLoss, ToNode};

use crate::stage::{FakeRm, Node, alive, id, shell, until};
use crate::vm::CLOCK_IS_FREE;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// The right to change the clock of this machine; set right again at the end.
struct Clock {
    ahead_s: i64,
    _one_at_a_time: MutexGuard<'static, ()>,
}

impl Clock {
    /// None where the clock is not ours.
    async fn take() -> Option<Clock> {
        static TURN: Mutex<()> = Mutex::const_new(());
        let is_free = fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains(CLOCK_IS_FREE));
        if !is_free {
            println!("the clock stays as it is: it is not a test's to change");
            return None;
        }
        Some(Clock { ahead_s: 0, _one_at_a_time: TURN.lock().await })
    }

    fn jump(&mut self, by_s: i64) {
        let now = clock_gettime(ClockId::Realtime);
        clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec + by_s, ..now }).unwrap();
        self.ahead_s += by_s;
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.jump(-self.ahead_s);
    }
}

/// When the node's lease ends, on the clock that does not jump, ms.
fn lease_end(node: &Node) -> u64 {
    fs::read_to_string(node.root.path().join("lease")).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_of_an_hour_either_way_disturbs_no_container_no_lease_and_no_log() {
    let Some(mut clock) = Clock::take().await else { return };
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let mut talks = shell(1, 1, "while :; do echo on; sleep 0.05; done");
    talks.on_lease_loss = OnLeaseLoss::Stop;
    session.start(&talks);
    session.start(&shell(2, 2, "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.05; done"));
    let pids = [session.running(id(1)).await.pid.unwrap(), session.running(id(2)).await.pid.unwrap()];
    let stdout = node.root.path().join("logs/application_1_1").join(id(1).to_string()).join("stdout");
    for by_s in [HOUR, -HOUR, -HOUR, HOUR] {
        let (lease, said) = (lease_end(&node), fs::metadata(&stdout).unwrap().len());
        session.seen.lock().unwrap().usage.clear();
        clock.jump(by_s);
        until("the next words", || fs::metadata(&stdout).unwrap().len() > said).await;
        session.until("usage", |seen| seen.usage.iter().any(|usage| usage.container == id(1))).await;
        until("leases that go on", || lease_end(&node) > lease + 1_000).await;
        assert!(lease_end(&node) < lease + 60_000, "a lease of an hour");
        assert!(pids.into_iter().all(alive), "{by_s}");
    }
    // In the same session as ever; and a stop in the middle of which the clock jumps keeps its grace.
    session.send(ToNode::Stop { container: id(2), grace_ms: 30_000, cause: ExitCause::KilledByUser });
    clock.jump(HOUR);
    assert_eq!(session.exit(id(2)).await, ExitCause::KilledByUser);
    session.start(&shell(3, 3, "exit 0"));
    assert_eq!(session.exit(id(3)).await, ExitCause::Success);
    assert!(alive(pids[0]));
}

/// A folder with a file that was last changed so long ago.
fn aged(dir: &Path, file: &str, content: &str, age: Duration) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(file), content).unwrap();
    let then = SystemTime::now() - age;
    for path in [dir.join(file), dir.to_owned()] {
        fs::File::open(path).unwrap().set_modified(then).unwrap();
    }
    dir.to_owned()
}

/// Another job's state, last used so long ago.
fn aged_state(root: &Path, age: Duration) -> PathBuf {
    aged(&root.join("jobs"), "gone-1.json", r#"{"job":{"name":"gone","id":"1"},"uid":null}"#, age);
    aged(&root.join("state/gone-1/Partition-0"), "data", "x", age)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_of_two_days_ages_neither_logs_nor_state_whether_nm_lives_through_it_or_not() {
    let Some(mut clock) = Clock::take().await else { return };
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let write = "mkdir -p $SAMZA_STATE_DIR/Partition-0; touch $SAMZA_STATE_DIR/Partition-0/data; echo word";
    session.start(&shell(1, 1, &format!("{write}; sleep 1000")));
    session.running(id(1)).await;
    // Of another job, of which nothing is left but its state and what it said.
    let mut unused = shell(2, 1, write);
    unused.job = JobId { name: "unused".into(), id: "1".into() };
    session.start(&unused);
    assert_eq!(session.exit(id(2)).await, ExitCause::Success);
    session.send(ToNode::Forget { container: id(2) });
    until("its removal", || !node.work(id(2)).exists()).await;
    let root = node.root.path().to_owned();
    let kept = [
        root.join("state/job-1/Partition-0/data"),
        root.join("state/unused-1/Partition-0/data"),
        root.join("logs/application_1_1").join(id(1).to_string()),
        root.join("logs/application_1_1").join(id(2).to_string()),
    ];
    // nm looks around when it starts: first it sees the clock as it was, then as it is.
    for (by_s, lives) in [(0, true), (2 * DAY, true), (2 * DAY, false)] {
        let age = Duration::from_secs(3 * 24 * 3600);
        let gone = [
            aged_state(&root, age),
            aged(&root.join("logs/application_1_0").join(id(900).to_string()), "stdout", "x", age),
        ];
        if !lives {
            node.kill();
        }
        clock.jump(by_s);
        if lives {
            node.kill();
        }
        node.run();
        rm.join().await;
        until("what is old to go", || !gone.iter().any(|path| path.exists())).await;
        assert!(kept.iter().all(|path| path.exists()), "{by_s}: {kept:?}");
    }
}
