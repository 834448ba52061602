//! The node manager is killed at every step of a container's start and stop. Its next life leaves no orphan: no process,
//! no cgroup, no folder; and a container ran at most once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use types::{ContainerState, ToNode};

use crate::stage::{FakeRm, Node, PATIENCE, Session, id, shell, until};

/// In the order in which a container comes to them (see `points::at` in nm).
const POINTS: [&str; 17] = [
    "recorded",
    "localized",
    "work-made",
    "limited",
    "shim-started",
    "launched",
    "terminate",
    "terminated",
    "kill",
    "killed",
    "emptied",
    "concluded",
    "exit-unrecorded",
    "exit-recorded",
    "unrecorded",
    // Points of nobody: the whole life without a crash, and a second time after another restart.
    "never",
    "never",
];

/// Waits for the state, or until nm is dead; whether nm still lives.
async fn state_or_death(
    node: &mut Node,
    session: &mut Session,
    wanted: impl Fn(&ContainerState) -> bool,
) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if node.has_ended() {
            return false;
        }
        if session.state(id(1)).as_ref().is_some_and(&wanted) {
            return true;
        }
        assert!(Instant::now() < deadline, "it is {:?}", session.state(id(1)));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A container's whole life, as far as nm lives: started, told to end, which it does not, killed, forgotten.
async fn live(node: &mut Node, session: &mut Session) {
    let script = "echo once >> $SAMZA_STATE_DIR/runs; trap '' TERM; setsid sleep 1000 & touch up; while :; do sleep 0.05; done";
    session.start(&shell(1, 1, script));
    if !state_or_death(node, session, |state| *state == ContainerState::Running).await {
        return;
    }
    let up = node.work(id(1)).join("up");
    until("its start", || up.exists()).await;
    session.stop(id(1), 100);
    if !state_or_death(node, session, ContainerState::is_exited).await {
        return;
    }
    // The exit may be told, and nm die of its kill, in either order.
    session.offer(ToNode::Forget { container: id(1) });
    let work = node.work(id(1));
    let container = work.parent().unwrap();
    until("the end", || node.has_ended() || !container.exists()).await;
}

/// Processes that work for a node: whose command, folder or environment names its root.
fn processes(root: &Path) -> Vec<PathBuf> {
    let root = root.to_str().unwrap().as_bytes();
    let names =
        |path: PathBuf| fs::read(path).is_ok_and(|text| text.windows(root.len()).any(|part| part == root));
    let folders = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    folders.filter(|folder| names(folder.join("environ")) || names(folder.join("cmdline"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nm_killed_at_any_step_leaves_no_orphan_after_its_next_start() {
    for point in POINTS {
        let mut rm = FakeRm::start().await;
        let mut node = Node::armed(&rm, point);
        let mut session = rm.join().await;
        live(&mut node, &mut session).await;
        if point != "never" {
            until("its death", || node.has_ended()).await;
        }
        assert_eq!(node.has_ended(), point != "never", "{point}");
        node.crash_at = None;
        node.kill();
        node.run();
        let mut session = rm.join().await;
        if session.state(id(1)).is_some() {
            session.stop(id(1), 0);
            session.exit(id(1)).await;
            session.send(ToNode::Forget { container: id(1) });
        }
        let containers = node.root.path().join("containers");
        until("the removal of its folder", || fs::read_dir(&containers).unwrap().count() == 0).await;
        assert_eq!(node.cgroups(), Vec::<PathBuf>::new(), "{point}");
        let runs = node.in_state("runs");
        assert!(runs.is_empty() || runs == "once\n", "{point}: {runs}");
        node.terminate();
        assert_eq!(processes(node.root.path()), Vec::<PathBuf>::new(), "{point}");
    }
}
