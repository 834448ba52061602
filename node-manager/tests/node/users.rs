//! Whom containers run as.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use types::{AppId, ExitCause, JobId, StartContainer, ToNode};

use crate::stage::{FakeRm, Node, id, shell, until};

/// A container of another job than [`shell`]'s.
fn of_job(name: &str, seq: u64, script: &str) -> StartContainer {
    let mut start = shell(seq, seq as u32, script);
    start.job = JobId { name: name.into(), id: "1".into() };
    start.app = AppId(format!("application_1_{seq}"));
    start
}

fn said(node: &Node, seq: u64) -> String {
    let logs = node.root.path().join("logs").join(format!("application_1_{seq}")).join(id(seq).to_string());
    fs::read_to_string(logs.join("stdout")).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_users_of_their_own_who_can_do_nothing_to_each_other() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let victim = "echo mine > $SAMZA_STATE_DIR/file; echo mine > file; id -u; exec sleep 1000";
    session.start(&of_job("victim", 1, victim));
    let pid = session.running(id(1)).await.pid.unwrap();
    until("its words", || !said(&node, 1).is_empty()).await;
    let container = node.work(id(1)).parent().unwrap().to_owned();
    let script = format!(
        "id -u; id -G; for file in {0}/work {0}/work/file {0}/given/token {0}/given/job.json {1}/state/victim-1/file \
         {2} /proc/{pid}/environ /proc/{pid}/fd; do ls $file >/dev/null 2>&1 && [ -d $file ] && echo lists $file; \
         cat $file 2>/dev/null && echo reads $file; echo x 2>/dev/null >> $file && echo writes $file; done; \
         kill -9 {pid} 2>/dev/null && echo kills; grep CapEff /proc/self/status",
        container.display(),
        node.root.path().display(),
        node.root.path().join("logs/application_1_1").join(id(1).to_string()).join("stdout").display(),
    );
    session.start(&of_job("liar", 2, &script));
    session.exit(id(2)).await;
    let (uid, own): (u32, u32) =
        (said(&node, 1).trim().parse().unwrap(), said(&node, 2).lines().next().unwrap().parse().unwrap());
    assert_ne!(uid, own);
    assert_eq!(said(&node, 2), format!("{own}\n{own}\nCapEff:\t0000000000000000\n"));
    // A job is the same user whenever it comes, as its state is.
    session.start(&of_job("liar", 3, "id -u"));
    session.exit(id(3)).await;
    assert_eq!(said(&node, 3), format!("{own}\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_user_outlives_restarts_and_is_given_back_when_its_state_is_gone() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &["--uids", "1900000007-1900000009"]);
    let mut session = rm.join().await;
    for (seq, job) in [(1, "a"), (2, "b")] {
        session.start(&of_job(job, seq, "id -u; echo mine > $SAMZA_STATE_DIR/file"));
        session.exit(id(seq)).await;
    }
    assert_eq!((said(&node, 1).as_str(), said(&node, 2).as_str()), ("1900000007\n", "1900000008\n"));
    session.start(&of_job("c", 3, "id -u"));
    let ExitCause::LaunchFailed { reason } = session.exit(id(3)).await else { panic!("it ran") };
    assert!(reason.contains("--uids 1900000007-1900000009"), "{reason}");
    node.kill();
    node.run();
    let mut session = rm.join().await;
    session.start(&of_job("b", 4, "id -u; cat $SAMZA_STATE_DIR/file"));
    session.exit(id(4)).await;
    assert_eq!(said(&node, 4), "1900000008\nmine\n");
    for seq in 1..=4 {
        session.send(ToNode::Forget { container: id(seq) });
    }
    session.send(ToNode::Purge { job: JobId { name: "a".into(), id: "1".into() } });
    let jobs = node.root.path().join("jobs/a-1.json");
    until("the end of what is known of it", || !jobs.exists()).await;
    session.start(&of_job("c", 5, "id -u; cat $SAMZA_STATE_DIR/file 2>/dev/null"));
    session.exit(id(5)).await;
    assert_eq!(said(&node, 5), "1900000007\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn state_of_another_user_is_not_given_to_a_job_and_what_a_former_version_left_is_kept() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &["--user", "65534:65534"]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "echo mine > $SAMZA_STATE_DIR/file"));
    session.exit(id(1)).await;
    session.send(ToNode::Forget { container: id(1) });
    // As it was before: the fact about the state in the folder itself.
    let state = node.root.path().join("state/job-1");
    fs::write(state.join(".job"), r#"{"name":"job","id":"1"}"#).unwrap();
    node.kill();
    fs::remove_dir_all(node.root.path().join("jobs")).unwrap();
    node.run();
    let mut session = rm.join().await;
    assert!(node.root.path().join("jobs/job-1.json").exists());
    session.start(&shell(2, 1, "cat $SAMZA_STATE_DIR/file || exit 9"));
    assert_eq!(session.exit(id(2)).await, ExitCause::Success);
    std::os::unix::fs::chown(&state, Some(7), Some(7)).unwrap();
    session.start(&shell(3, 1, "[ ! -e $SAMZA_STATE_DIR/file ] && touch $SAMZA_STATE_DIR/file"));
    assert_eq!(session.exit(id(3)).await, ExitCause::Success);
    assert_eq!(fs::metadata(&state).unwrap().uid(), 65_534);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_containers_that_a_former_nm_started_as_another_user_run_their_job_starts_none_here() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &["--allow-root"]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "echo mine > $SAMZA_STATE_DIR/file; touch up; exec sleep 1000"));
    session.running(id(1)).await;
    until("its start", || node.work(id(1)).join("up").exists()).await;
    node.kill();
    node.without(&["--allow-root"]);
    node.run();
    let mut session = rm.join().await;
    session.start(&shell(2, 2, "exit 0"));
    let ExitCause::LaunchFailed { reason } = session.exit(id(2)).await else { panic!("it ran") };
    assert!(reason.contains("must end first"), "{reason}");
    assert_eq!(node.in_state("file"), "mine\n");
    session.stop(id(1), 0);
    session.exit(id(1)).await;
    session.start(&shell(3, 2, "[ ! -e $SAMZA_STATE_DIR/file ] && touch $SAMZA_STATE_DIR/file"));
    assert_eq!(session.exit(id(3)).await, ExitCause::Success);
}

#[test]
fn root_as_the_user_of_containers_must_be_asked_for_by_name() {
    let root = tempfile::tempdir_in("/var/tmp").unwrap();
    let told = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nm"));
        command.args(["--rm", "127.0.0.1:1", "--unlimited", "--root"]).arg(root.path()).args(args);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // The small machine of the other kind of cgroups has no users with names.
    let named = fs::read_to_string("/etc/passwd").is_ok().then_some("root");
    for user in named.into_iter().chain(["0:0"]) {
        let text = told(&["--user", user]);
        assert!(text.contains("--allow-root"), "{text}");
    }
    assert!(told(&["--user", "no-such-user"]).contains("UID:GID"));
    let text = told(&["--uids", "0-5"]);
    assert!(text.contains("FIRST-LAST"), "{text}");
}
