//! Orders to start that come too late, twice, or to another life of the node: they run nothing.

use rustix::process::Signal;
use types::{CommandStamp, ContainerState, ExitCause, StartContainer};

use crate::stage::{self, FakeRm, Node, Session, id, shell, until};

/// A container that notes that it ran, and runs on.
fn noting(seq: u64, slot: u32) -> StartContainer {
    shell(seq, slot, &format!("echo {seq} >> $SAMZA_STATE_DIR/runs; exec sleep 1000"))
}

/// What ran on a node, in order.
fn runs(node: &Node) -> String {
    node.in_state("runs")
}

/// Sends container 1 under `stamp` and then container 2 as it should be: once that runs, the first was dealt with.
async fn start_stale_then_good(node: &Node, session: &mut Session, stamp: CommandStamp) {
    session.start_as(&stamp, &noting(1, 1));
    session.start(&noting(2, 2));
    session.running(id(2)).await;
    until("the good one's note", || runs(node).ends_with("2\n")).await;
    assert_eq!(runs(node), "2\n");
    assert_eq!(session.state(id(1)), None);
    assert!(!node.work(id(1)).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_comes_again_tells_the_state_and_runs_nothing() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&noting(1, 1));
    let pid = session.running(id(1)).await.pid;
    until("its note", || runs(&node) == "1\n").await;
    session.start(&noting(1, 1));
    let again = session.report(id(1)).await;
    assert_eq!((again.state, again.pid), (ContainerState::Running, pid));
    session.stop(id(1), 0);
    assert_eq!(session.exit(id(1)).await, ExitCause::KilledByAm);
    session.start(&noting(1, 1));
    let over = session.report(id(1)).await.state;
    assert_eq!(over, ContainerState::Exited { exit: ExitCause::KilledByAm });
    // Whatever it would have run ran before the next one of its slot.
    session.start(&noting(2, 1));
    session.running(id(2)).await;
    until("the next one's note", || runs(&node).ends_with("2\n")).await;
    assert_eq!(runs(&node), "1\n2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_of_a_former_session_runs_nothing() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    let former = rm.join().await.stamp.clone();
    node.kill();
    node.run();
    let mut session = rm.join().await;
    assert_ne!(session.stamp, former);
    start_stale_then_good(&node, &mut session, former).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_for_a_former_boot_runs_nothing() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let mut former = session.stamp.clone();
    former.incarnation.boot_id = "00000000-0000-0000-0000-000000000000".into();
    start_stale_then_good(&node, &mut session, former).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waited_while_nm_slept_through_its_lease_runs_nothing() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let session = rm.join_with_lease(1_000).await;
    stage::signal(node.pid(), Signal::STOP);
    session.start(&noting(1, 1));
    // The end of the lease cannot be seen from outside, only waited for.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    stage::signal(node.pid(), Signal::CONT);
    let mut session = rm.join().await;
    assert!(session.hello.lease_lapsed);
    assert_eq!(session.state(id(1)), None);
    session.start(&noting(2, 2));
    session.running(id(2)).await;
    until("the good one's note", || runs(&node).ends_with("2\n")).await;
    assert_eq!(runs(&node), "2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_artefact_is_on_its_way_when_the_lease_ends_runs_nothing() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let artefact = rm.upload("job.sh", b"#!/bin/sh\necho $1 >> $SAMZA_STATE_DIR/runs\nexec sleep 1000\n");
    let start = |seq: u64| {
        let mut start = shell(seq, seq as u32, "");
        start.artefacts = vec![artefact.clone()];
        start.command = vec!["./job.sh".into(), seq.to_string()];
        start
    };
    let gate = rm.gate.clone().lock_owned().await;
    let mut session = rm.join_with_lease(1_000).await;
    session.start(&start(1));
    assert_eq!(session.report(id(1)).await.state, ContainerState::Localizing);
    session.seen.lock().unwrap().deaf = true;
    let mut session = rm.join().await;
    assert!(session.hello.lease_lapsed);
    assert_eq!(session.exit_told(id(1)).await, ExitCause::LeaseExpired);
    // The artefact arrives after all, and is good for another one.
    drop(gate);
    session.start(&start(2));
    session.running(id(2)).await;
    until("the other one's note", || runs(&node).ends_with("2\n")).await;
    session.start(&start(1));
    assert_eq!(session.exit(id(1)).await, ExitCause::LeaseExpired);
    assert_eq!(runs(&node), "2\n");
}
