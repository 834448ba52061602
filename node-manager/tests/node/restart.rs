//! The node manager comes and goes; its containers do not notice, and no exit is lost.

use std::fs;

use crate::stage::{self, FakeRm, Node, alive, id, shell, until};
use rustix::process::Signal;
use types::{ContainerReport, ContainerState, ExitCause, OnLeaseLoss, ToNode};

fn in_hello(session: &stage::Session, seq: u64) -> ContainerReport {
    session.hello.containers.iter().find(|c| c.id == id(seq)).expect("it is in the Hello").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_nm_takes_its_containers_over_and_learns_of_exits_meanwhile() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "trap 'exit 4' TERM; touch up; while :; do sleep 0.02; done"));
    session.start(&shell(2, 2, "while [ ! -e ../../../go ]; do sleep 0.02; done; exit 7"));
    session.start(&shell(3, 3, "tail /dev/zero & echo $! > hog; while [ ! -e never ]; do sleep 0.02; done"));
    let pids = [session.running(id(1)).await.pid.unwrap(), session.running(id(2)).await.pid.unwrap()];
    session.exit(id(3)).await;
    let before = session.hello.incarnation.clone();
    node.kill();
    assert!(pids.iter().all(|pid| alive(*pid)));
    fs::write(node.root.path().join("go"), "").unwrap();
    until("the exit", || !alive(pids[1])).await;
    node.run();
    let mut session = rm.join().await;
    assert_eq!(session.hello.incarnation, before);
    let kept = in_hello(&session, 1);
    assert_eq!((kept.state, kept.pid), (ContainerState::Running, Some(pids[0])));
    let mut exit = in_hello(&session, 2).state;
    if !exit.is_exited() {
        exit = ContainerState::Exited { exit: session.exit(id(2)).await };
    }
    assert_eq!(exit, ContainerState::Exited { exit: ExitCause::Failed { code: 7 } });
    let hog = in_hello(&session, 3).state;
    assert!(matches!(hog, ContainerState::Exited { exit: ExitCause::OutOfMemory { .. } }), "{hog:?}");
    session.stop(id(1), 5_000);
    assert_eq!(session.exit(id(1)).await, ExitCause::KilledByAm);
    for seq in 1..=3 {
        session.send(ToNode::Forget { container: id(seq) });
    }
    until("the removal", || (1..=3).all(|seq| !node.work(id(seq)).exists())).await;
    assert_eq!(node.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_container_whose_first_record_was_torn_nothing_is_left() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    rm.join().await;
    node.kill();
    for (seq, torn) in [(1, ""), (2, "{\"start\":{\"id\":")] {
        fs::create_dir_all(node.work(id(seq))).unwrap();
        fs::write(node.work(id(seq)).parent().unwrap().join("record.json"), torn).unwrap();
    }
    node.run();
    let session = rm.join().await;
    assert_eq!(session.hello.containers, []);
    let containers = node.root.path().join("containers");
    until("their removal", || fs::read_dir(&containers).unwrap().count() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_nm_and_leaves_containers_running() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "sleep 1000"));
    let pid = session.running(id(1)).await.pid.unwrap();
    node.terminate();
    assert!(alive(pid));
    node.run();
    let mut session = rm.join().await;
    assert_eq!(in_hello(&session, 1).pid, Some(pid));
    stage::signal(pid, Signal::SEGV);
    assert_eq!(session.exit(id(1)).await, ExitCause::Signal { signal: 11 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_was_killed_takes_its_container_along() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "setsid sleep 1000 & echo $! > child; wait"));
    let pid = session.running(id(1)).await.pid.unwrap();
    until("its child", || {
        fs::read_to_string(node.work(id(1)).join("child")).is_ok_and(|t| t.ends_with('\n'))
    })
    .await;
    let child: u32 = fs::read_to_string(node.work(id(1)).join("child")).unwrap().trim().parse().unwrap();
    stage::signal(node.shim(id(1)), Signal::KILL);
    assert_eq!(session.exit(id(1)).await, ExitCause::Signal { signal: 9 });
    assert!(!alive(pid) && !alive(child));
    assert_eq!(node.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_shim_does_not_keep_its_containers_successor_waiting() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "sleep 1000"));
    let pid = session.running(id(1)).await.pid.unwrap();
    stage::signal(node.shim(id(1)), Signal::STOP);
    stage::signal(pid, Signal::STOP);
    session.start(&shell(2, 1, "sleep 1000"));
    session.running(id(2)).await;
    assert!(!alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nm_a_lease_that_ends_stops_the_container_and_nm_learns_why() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    let mut session = rm.join_with_lease(800).await;
    let mut start = shell(1, 1, "sleep 1000");
    start.on_lease_loss = OnLeaseLoss::Stop;
    session.start(&start);
    let pid = session.running(id(1)).await.pid.unwrap();
    node.kill();
    assert!(alive(pid));
    until("the shim's kill", || !alive(pid)).await;
    node.run();
    let mut session = rm.join().await;
    let exit = match in_hello(&session, 1).state {
        ContainerState::Exited { exit } => exit,
        _ => session.exit(id(1)).await,
    };
    assert_eq!(exit, ExitCause::LeaseExpired);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_moves_is_told_to_its_containers() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "sleep 1000"));
    session.running(id(1)).await;
    let app = shell(1, 1, "").app;
    let file = node.given(id(1)).join("am-address");
    // One that a former version started looks for it in its own folder.
    session.start(&shell(3, 3, "sleep 1000"));
    session.running(id(3)).await;
    fs::remove_dir_all(node.given(id(3))).unwrap();
    for (attempt, address) in [(2, "127.0.0.1:5"), (1, "127.0.0.1:4")] {
        session.send(ToNode::AmAddress { app: app.clone(), attempt, address: address.into() });
    }
    session.start(&shell(2, 2, "sleep 1000"));
    session.running(id(2)).await;
    assert_eq!(fs::read_to_string(file).unwrap(), "2 127.0.0.1:5\n");
    assert_eq!(fs::read_to_string(node.work(id(3)).join("am-address")).unwrap(), "2 127.0.0.1:5\n");
    assert_eq!(fs::read_to_string(node.given(id(2)).join("am-address")).unwrap(), "2 127.0.0.1:5\n");
}
