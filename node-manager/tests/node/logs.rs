//! What containers said: bounded for the node, whoever said it.

use std::fs;
use std::path::PathBuf;

use types::{ExitCause, ToNode};

use crate::stage::{FakeRm, Node, Session, id, shell, until};

/// What `talk` writes.
const SAID: u64 = 720_000;

/// A container that says much and then does `then`.
fn talk(session: &Session, seq: u64, then: &str) {
    session.start(&shell(seq, seq as u32, &format!("head -c {SAID} /dev/zero; {then}")));
}

/// The files of a container's standard output and how much is in them; none if they are gone.
fn stdout(node: &Node, seq: u64) -> Option<u64> {
    let dir: PathBuf = node.root.path().join("logs/application_1_1").join(id(seq).to_string());
    let files = fs::read_dir(dir).ok()?.flatten();
    let of_stdout = files.filter(|file| file.file_name().to_string_lossy().starts_with("stdout"));
    Some(of_stdout.map(|file| file.metadata().map_or(0, |meta| meta.len())).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_nodes_bound_the_logs_that_ended_first_go_and_those_of_who_runs_stay() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &["--logs-total", "2MiB"]);
    let mut session = rm.join().await;
    talk(&session, 1, "sleep 1000");
    session.running(id(1)).await;
    until("its words", || stdout(&node, 1) == Some(SAID)).await;
    // Started before the next one, and ended after it.
    talk(&session, 2, "while [ ! -e ../../../go ]; do sleep 0.05; done");
    talk(&session, 3, "exit 0");
    assert_eq!(session.exit(id(3)).await, ExitCause::Success);
    session.send(ToNode::Forget { container: id(3) });
    fs::write(node.root.path().join("go"), "").unwrap();
    assert_eq!(session.exit(id(2)).await, ExitCause::Success);
    until("the end of the first", || stdout(&node, 3).is_none()).await;
    assert_eq!((stdout(&node, 1), stdout(&node, 2)), (Some(SAID), Some(SAID)));
    talk(&session, 4, "exit 0");
    assert_eq!(session.exit(id(4)).await, ExitCause::Success);
    until("the end of the second", || stdout(&node, 2).is_none()).await;
    assert_eq!((stdout(&node, 1), stdout(&node, 4)), (Some(SAID), Some(SAID)));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_those_who_run_exceed_the_bound_alone_nm_says_so_and_the_way_out() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::below("/var/tmp".as_ref(), &rm, &["--logs-total", "1MiB"]);
    let said = node.root.path().join("nm.log");
    node.run_inside(&["sh", "-c", &format!("exec \"$@\" 2> {}", said.display()), "sh"]);
    let mut session = rm.join().await;
    for seq in [1, 2] {
        talk(&session, seq, "sleep 1000");
        session.running(id(seq)).await;
        until("its words", || stdout(&node, seq) == Some(SAID)).await;
    }
    talk(&session, 3, "exit 0");
    assert_eq!(session.exit(id(3)).await, ExitCause::Success);
    let told = || fs::read_to_string(&said).unwrap().matches("larger --logs-total").count();
    until("the word of it", || told() > 0).await;
    until("the end of who is over", || stdout(&node, 3).is_none()).await;
    assert_eq!((stdout(&node, 1), stdout(&node, 2)), (Some(SAID), Some(SAID)));
    // It is said when it begins, not again and again.
    talk(&session, 4, "exit 0");
    assert_eq!(session.exit(id(4)).await, ExitCause::Success);
    until("the next look", || stdout(&node, 4).is_none()).await;
    assert_eq!(told(), 1);
}
