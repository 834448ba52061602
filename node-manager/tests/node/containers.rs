//! Containers from their start to their end.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::stage::{FakeRm, Node, alive, id, shell, until};
use proto::pb;
use types::{ContainerState, ExitCause, OnLeaseLoss, ToNode};

async fn logs(address: &str, container: String, follow: bool) -> String {
    let link = proto::connect(address, None).await.unwrap();
    let request =
        pb::ReadLogRequest { container, stream: "stdout".into(), offset: None, tail_lines: None, follow };
    let mut stream = proto::node_log_service_client(&link).read(request).await.unwrap().into_inner();
    let mut text = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        text.extend_from_slice(&part.data);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_its_files_and_environment_and_its_exit_is_told_until_forgotten() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    assert_eq!(session.hello.total.memory_bytes, 1 << 30);
    let script = "#!/bin/sh\necho $SAMZA_CONTAINER_ID $SAMZA_SLOT $SAMZA_REQUEST $SAMZA_RACK $EXTRA $1\n\
                  cat $SAMZA_TOKEN_FILE; echo; stat -c %a $SAMZA_TOKEN_FILE; cat $SAMZA_AM_ADDRESS_FILE\n\
                  grep -c '\"queue\"' $SAMZA_JOB_FILE; pwd | grep -c work; exit 3\n";
    let mut start = shell(1, 4, "");
    start.artefacts = vec![rm.upload("job.sh", script.as_bytes())];
    start.command = vec!["job.sh".into(), "argument".into()];
    start.env.insert("EXTRA".into(), "extra".into());
    start.am_address = Some("127.0.0.1:99".into());
    session.start(&start);
    let running = session.running(id(1)).await;
    assert!(running.pid.is_some() && running.started_unix_ms.is_some());
    assert_eq!(session.exit(id(1)).await, ExitCause::Failed { code: 3 });
    let text = logs(&session.hello.address, id(1).to_string(), false).await;
    let expected = format!("{} 4 1.4.1 r1 extra argument\nsecret\n400\n1 127.0.0.1:99\n1\n1\n", id(1));
    assert_eq!(text, expected);
    assert!(node.work(id(1)).exists());
    session.send(ToNode::Forget { container: id(1) });
    until("the removal of its folder", || !node.work(id(1)).exists()).await;
    assert_eq!(logs(&session.hello.address, id(1).to_string(), true).await, expected);
    assert_eq!(node.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_start_together_share_one_download_and_a_wrong_digest_runs_nothing() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let mut big = b"#!/bin/sh\nexit 0\n".to_vec();
    big.resize(4 << 20, b'#');
    let artefact = rm.upload("big.sh", &big);
    for seq in 1..=4 {
        let mut start = shell(seq, seq as u32, "");
        start.artefacts = vec![artefact.clone()];
        start.command = Vec::new();
        session.start(&start);
    }
    for seq in 1..=4 {
        assert_eq!(session.exit(id(seq)).await, ExitCause::Success);
    }
    assert_eq!(rm.fetches.load(Ordering::SeqCst), 1);
    let bad = rm.upload("bad.sh", b"#!/bin/sh\n");
    rm.files.lock().unwrap().insert(bad.digest.0.clone(), b"something else".to_vec());
    let mut start = shell(5, 5, "");
    start.artefacts = vec![bad];
    session.start(&start);
    let ExitCause::LaunchFailed { reason } = session.exit(id(5)).await else { panic!("it ran") };
    assert!(reason.contains("digest"), "{reason}");
    assert!(!node.root.path().join("logs/application_1_1").join(id(5).to_string()).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_unpacked_into_the_work_directory_also_for_another_user() {
    let mut rm = FakeRm::start().await;
    let _node = Node::start(&rm, &["--user", "65534:65534"]);
    let mut session = rm.join().await;
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("bin")).unwrap();
    fs::write(folder.path().join("bin/run"), "#!/bin/sh\ncat conf && echo more >> conf\n").unwrap();
    fs::write(folder.path().join("conf"), "of the archive\n").unwrap();
    let pack = "chmod 700 bin bin/run && tar -c bin conf | gzip > job.tar.gz";
    let packed = std::process::Command::new("sh").args(["-c", pack]).current_dir(folder.path()).status();
    assert!(packed.unwrap().success());
    for seq in 1..=2 {
        let mut start = shell(seq, seq as u32, "");
        start.artefacts = vec![rm.upload("job.tar.gz", &fs::read(folder.path().join("job.tar.gz")).unwrap())];
        start.command = vec!["./bin/run".into()];
        session.start(&start);
        assert_eq!(session.exit(id(seq)).await, ExitCause::Success);
        let text = logs(&session.hello.address, id(seq).to_string(), false).await;
        assert_eq!(text, "of the archive\n", "each container has its own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_hog_is_killed_as_out_of_memory_and_its_neighbour_is_not() {
    let mut rm = FakeRm::start().await;
    let _node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "sleep 1000"));
    let neighbour = session.running(id(1)).await.pid.unwrap();
    session.start(&shell(2, 2, "exec tail /dev/zero"));
    // The hog is a child here; the shell would go on without it.
    session.start(&shell(3, 3, "tail /dev/zero & wait; sleep 1000"));
    for seq in [2, 3] {
        match session.exit(id(seq)).await {
            ExitCause::OutOfMemory { peak_bytes, limit_bytes } => {
                assert_eq!(limit_bytes, 64 << 20);
                assert!(peak_bytes > 60 << 20 && peak_bytes <= limit_bytes, "peak {peak_bytes}");
            }
            other => panic!("container {seq}: {other}"),
        }
    }
    assert!(alive(neighbour));
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_leaves_no_process_and_no_cgroup_also_of_double_forked_children() {
    for extra in [&[][..], &["--unlimited"]] {
        let mut rm = FakeRm::start().await;
        let node = Node::start(&rm, extra);
        let mut session = rm.join().await;
        let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; setsid sleep 1000 & echo $! > child; wait' & \
                      while [ ! -s child ]; do sleep 0.01; done; touch up; while :; do sleep 1; done";
        session.start(&shell(1, 1, script));
        let pid = session.running(id(1)).await.pid.unwrap();
        until("its start", || node.work(id(1)).join("up").exists()).await;
        let child: u32 = fs::read_to_string(node.work(id(1)).join("child")).unwrap().trim().parse().unwrap();
        assert!(alive(child));
        let asked = Instant::now();
        session.stop(id(1), 300);
        assert_eq!(session.exit(id(1)).await, ExitCause::KilledByAm);
        assert!(asked.elapsed().as_millis() >= 300, "it was killed before its grace was over");
        assert!(!alive(pid) && !alive(child), "{extra:?}");
        assert_eq!(node.cgroups(), Vec::<std::path::PathBuf>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn term_lets_a_container_end_by_itself_and_the_stop_still_names_the_exit() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(
        1,
        1,
        "trap 'touch committed; exit 0' TERM; touch up; while :; do sleep 0.02; done",
    ));
    session.running(id(1)).await;
    until("its start", || node.work(id(1)).join("up").exists()).await;
    session.stop(id(1), 30_000);
    assert_eq!(session.exit(id(1)).await, ExitCause::KilledByAm);
    assert!(node.work(id(1)).join("committed").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slots_new_container_starts_only_after_the_old_one_is_killed() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "trap '' TERM; touch up; while :; do sleep 1; done"));
    let old = session.running(id(1)).await.pid.unwrap();
    until("its start", || node.work(id(1)).join("up").exists()).await;
    let check = format!("if kill -0 {old} 2>/dev/null; then exit 9; fi; sleep 1000");
    session.start(&shell(2, 1, &check));
    assert_eq!(session.exit(id(1)).await, ExitCause::Fenced);
    let new = session.running(id(2)).await;
    assert!(!alive(old));
    session.start(&shell(3, 2, "sleep 1000"));
    session.running(id(3)).await;
    assert!(alive(new.pid.unwrap()), "another slot's start killed it, or it met its predecessor");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_id_only_reports_and_stale_commands_are_refused() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let start = shell(1, 1, "echo once >> $SAMZA_STATE_DIR/runs; sleep 1000");
    session.start(&start);
    let first = session.running(id(1)).await;
    let current = session.stamp.clone();
    for stale in [
        types::CommandStamp { epoch: types::Epoch(7), ..current.clone() },
        types::CommandStamp { session: 99, ..current.clone() },
        types::CommandStamp { incarnation: types::NodeIncarnation::default(), ..current.clone() },
    ] {
        session.stamp = stale;
        session.stop(id(1), 0);
    }
    session.stamp = current;
    session.start(&start);
    let again = session.report(id(1)).await;
    assert_eq!((again.state, again.pid), (ContainerState::Running, first.pid));
    // That a process runs says nothing yet of how far its shell is.
    until("the first line", || !node.in_state("runs").is_empty()).await;
    assert_eq!(node.in_state("runs"), "once\n");
    session.stop(id(9), 0);
    assert_eq!(session.exit(id(9)).await, ExitCause::KilledByAm);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_and_state_are_told() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let script = "mkdir -p $SAMZA_STATE_DIR/Partition-0; printf 12345 > $SAMZA_STATE_DIR/Partition-0/data; \
                  touch wrote; while :; do :; done";
    session.start(&shell(1, 1, script));
    session.running(id(1)).await;
    session.until("usage", |seen| seen.usage.iter().any(|usage| usage.cpu_millis > 100)).await;
    until("its state", || node.work(id(1)).join("wrote").exists()).await;
    session.stop(id(1), 0);
    session.exit(id(1)).await;
    session.until("state", |seen| seen.state.iter().any(|e| e.entry == "Partition-0" && e.bytes == 5)).await;
    session.send(ToNode::Purge { job: shell(1, 1, "").job });
    session.until("the purge", |seen| seen.state.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_lease_end_only_those_that_asked_for_it_are_stopped() {
    let mut rm = FakeRm::start().await;
    let _node = Node::start(&rm, &[]);
    let mut session = rm.join_with_lease(1_000).await;
    session.start(&shell(1, 1, "sleep 1000"));
    let keeps = session.running(id(1)).await.pid.unwrap();
    let mut start = shell(2, 2, "sleep 1000");
    start.on_lease_loss = OnLeaseLoss::Stop;
    session.start(&start);
    let stops = session.running(id(2)).await.pid.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert!(alive(stops), "the lease was not renewed");
    session.seen.lock().unwrap().deaf = true;
    until("the stop", || !alive(stops)).await;
    let session = rm.join().await;
    assert!(session.hello.lease_lapsed);
    let state = |seq| session.hello.containers.iter().find(|c| c.id == id(seq)).unwrap().state.clone();
    assert_eq!(state(1), ContainerState::Running);
    assert!(alive(keeps));
    if let ContainerState::Exited { exit } = state(2) {
        assert_eq!(exit, ExitCause::LeaseExpired);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_followed_while_they_grow() {
    let mut rm = FakeRm::start().await;
    let _node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "for i in 1 2 3; do echo line $i; sleep 0.2; done"));
    session.running(id(1)).await;
    let followed = logs(&session.hello.address, id(1).to_string(), true).await;
    assert_eq!(followed, "line 1\nline 2\nline 3\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_containers_that_come_and_go_at_once_leave_nothing() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    for seq in 1..=100 {
        let mut start = shell(seq, seq as u32, "");
        start.command = vec!["true".into()];
        session.start(&start);
    }
    for seq in 1..=100 {
        assert_eq!(session.exit(id(seq)).await, ExitCause::Success);
        session.send(ToNode::Forget { container: id(seq) });
    }
    until("the removal of their folders", || {
        fs::read_dir(node.root.path().join("containers")).unwrap().count() == 0
    })
    .await;
    assert_eq!(node.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_run_as_the_user_that_nm_was_told() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &["--user", "65534:65534"]);
    let mut session = rm.join().await;
    let script = "id -u; cat $SAMZA_TOKEN_FILE; mkdir $SAMZA_STATE_DIR/Partition-0 && touch mine && \
                  cat $SAMZA_JOB_FILE > /dev/null && cat ../record.json || exit 5";
    let mut start = shell(1, 1, script);
    start.artefacts = vec![rm.upload("file", b"content")];
    session.start(&start);
    // Everything of its own works; the record, which is the node's, it may not read.
    assert_eq!(session.exit(id(1)).await, ExitCause::Failed { code: 5 });
    assert_eq!(logs(&session.hello.address, id(1).to_string(), false).await, "65534\nsecret");
    assert!(node.work(id(1)).join("mine").exists());
}
