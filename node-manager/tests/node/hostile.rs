//! Containers that leave in their folders whatever hurts who goes there: links, pipes, depths, sizes, locks. Their node
//! manager goes on, and starts again; what is not theirs stays as it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::pb;
use types::{ContainerState, ExitCause, JobId, StateEntry, ToNode};

use crate::stage::{FakeRm, NOBODY, Node, Session, id, shell, until};

/// How soon a node manager that was killed must have joined again.
const JOINS: Duration = Duration::from_secs(2);

/// What a container leaves in each folder that it may write, as a script. `$1` is a file of somebody else's.
const RUBBISH: &str = r#"
rubbish() {
    cd "$1" || return
    for name in .job .am-address.draft am-address.draft stdout.8388608 stdout.99999999 stderr.1 exit.json.draft; do
        rm -f $name; ln -s "$VICTIM" $name
    done
    for name in record.json shim.json process.json exit.json token job.json stdout.5; do mkfifo $name; done
    truncate -s 4T sparse
    mkdir -p closed/inner Partition-9; touch closed/inner/file; chmod 000 closed
    mkfifo Partition-9/data
    ln -s / Partition-9/root
    long=$(printf 'd%.0s' $(seq 250))
    n=0; while [ $n -lt 60 ]; do mkdir $long && cd $long; n=$((n + 1)); done
}
rubbish $SAMZA_STATE_DIR
rubbish $SAMZA_WORK_DIR
"#;

async fn tail(address: &str, seq: u64) -> String {
    let link = proto::connect(address, None).await.unwrap();
    let (container, stream) = (id(seq).to_string(), "stdout".into());
    let request = pb::ReadLogRequest { container, stream, offset: None, tail_lines: Some(5), follow: false };
    let mut stream = proto::node_log_service_client(&link).read(request).await.unwrap().into_inner();
    let mut text = Vec::new();
    while let Some(part) =
        tokio::time::timeout(Duration::from_secs(20), stream.message()).await.unwrap().unwrap()
    {
        text.extend_from_slice(&part.data);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A file of somebody else's: what it has in it, whose it is and what its mode is.
struct Victim(PathBuf);

impl Victim {
    fn new(dir: &Path) -> Victim {
        let victim = Victim(dir.join("victim"));
        fs::write(&victim.0, "precious\n").unwrap();
        fs::set_permissions(&victim.0, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        victim
    }

    fn check(&self) {
        let meta = fs::metadata(&self.0).unwrap();
        assert_eq!(fs::read_to_string(&self.0).unwrap(), "precious\n");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 0, 0o600));
    }
}

/// Starts the hostile container and, of another job, one that minds its own business; waits until both are done with it.
async fn begin(session: &mut Session, victim: &Victim) {
    let mut hostile = shell(1, 1, &format!("{RUBBISH}\necho done; exec sleep 1000"));
    hostile.env.insert("VICTIM".into(), victim.0.display().to_string());
    session.start(&hostile);
    let mut other = shell(
        2,
        2,
        "mkdir $SAMZA_STATE_DIR/P; printf 12345 > $SAMZA_STATE_DIR/P/data; echo done; exec sleep 1000",
    );
    other.job = JobId { name: "other".into(), id: "1".into() };
    other.app = types::AppId("application_1_2".into());
    session.start(&other);
    for seq in [1, 2] {
        session.running(id(seq)).await;
        let address = session.hello.address.clone();
        let deadline = Instant::now() + Duration::from_secs(60);
        while tail(&address, seq).await != "done\n" {
            assert!(Instant::now() < deadline, "{}", tail(&address, seq).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn is_others(entry: &StateEntry) -> bool {
    entry.job.name == "other" && entry.entry == "P" && entry.bytes == 5
}

/// The whole sequence against one node manager.
async fn survives(rm: &mut FakeRm, node: &mut Node) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let victim = Victim::new(dir.path());
    let mut session = rm.join().await;
    begin(&mut session, &victim).await;
    // Its master moves: that is written for it.
    let app = shell(1, 1, "").app;
    session.send(ToNode::AmAddress { app, attempt: 2, address: "127.0.0.1:5".into() });
    let told = node.given(id(1)).join("am-address");
    until("the address", || fs::read_to_string(&told).is_ok_and(|text| text == "2 127.0.0.1:5\n")).await;
    // The end of one makes nm look at all state.
    session.start(&shell(3, 3, "exit 0"));
    session.exit(id(3)).await;
    session.until("the other's state", |seen| seen.state.iter().any(is_others)).await;
    victim.check();
    node.kill();
    let begun = Instant::now();
    node.run();
    let mut session = rm.join().await;
    assert!(begun.elapsed() < JOINS, "it joined after {:?}", begun.elapsed());
    session.until("the other's state", |seen| seen.state.iter().any(is_others)).await;
    for seq in [1, 2] {
        assert_eq!(session.state(id(seq)), Some(ContainerState::Running));
        session.stop(id(seq), 0);
        assert_eq!(session.exit(id(seq)).await, ExitCause::KilledByAm);
        session.send(ToNode::Forget { container: id(seq) });
    }
    session.send(ToNode::Forget { container: id(3) });
    let containers = node.root.path().join("containers");
    until("the removal of all of it", || fs::read_dir(&containers).unwrap().count() == 0).await;
    session.send(ToNode::Purge { job: shell(1, 1, "").job });
    let state = node.root.path().join("state");
    let left = || fs::read_dir(&state).unwrap().flatten().map(|entry| entry.file_name()).collect::<Vec<_>>();
    until("the end of its state", || left() == ["other-1"]).await;
    victim.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_a_user_of_its_own_hurts_nobody_by_what_it_leaves() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    survives(&mut rm, &mut node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_the_user_that_nm_was_told_hurts_nobody_by_what_it_leaves() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &["--user", "65534:65534"]);
    survives(&mut rm, &mut node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_an_nm_that_is_not_root_hurts_nobody_by_what_it_leaves() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::without_root(&rm, NOBODY);
    survives(&mut rm, &mut node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_can_write_nowhere_but_into_its_own_folders_and_cannot_hold_nms_lock() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let given = "$SAMZA_JOB_FILE $SAMZA_TOKEN_FILE $SAMZA_AM_ADDRESS_FILE";
    let script = format!(
        "for dir in ../../../logs/application_1_1/* .. ../given ../.. ../../.. ../../../jobs ../../../state ../../../cache; do \
           touch $dir/x 2>/dev/null && echo wrote $dir; ls $dir >/dev/null 2>&1 && echo read $dir; done; \
         for file in {given}; do rm -f $file 2>/dev/null && echo removed $file; done; \
         cat ../record.json ../../../node.json 2>/dev/null && echo read; \
         flock -n -x ../../../nm.lock true 2>/dev/null && echo locked; \
         flock -n -s ../../../nm.lock true 2>/dev/null && echo shared; echo end; exec sleep 1000"
    );
    let mut start = shell(1, 1, &script);
    start.am_address = Some("127.0.0.1:4".into());
    session.start(&start);
    session.running(id(1)).await;
    until("its end", || fs::read_to_string(stdout(&node, 1)).is_ok_and(|text| text.ends_with("end\n"))).await;
    let text = fs::read_to_string(stdout(&node, 1)).unwrap();
    // Its own log folder it may not even list.
    assert_eq!(text, "end\n");
    node.kill();
    node.run();
    rm.join().await;
}

fn stdout(node: &Node, seq: u64) -> PathBuf {
    node.root.path().join("logs/application_1_1").join(id(seq).to_string()).join("stdout")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artefact_may_have_any_name_and_the_cached_one_stays_what_it_is() {
    let mut rm = FakeRm::start().await;
    for extra in [&[][..], &["--allow-root"]] {
        let node = Node::start(&rm, extra);
        let mut session = rm.join().await;
        let program = b"#!/bin/sh\necho right\n";
        for (seq, name) in (1..).zip(["token", "job.json", "given", "am-address", "stdout"]) {
            let mut start = shell(seq, seq as u32, "");
            start.artefacts = vec![rm.upload(name, program)];
            // It is changed where the container can change it.
            start.command = [
                "sh",
                "-c",
                &format!("./{name}; chmod u+w {name}; echo echo wrong >> {name}; cat $SAMZA_TOKEN_FILE"),
            ]
            .map(str::to_owned)
            .to_vec();
            session.start(&start);
            assert_eq!(session.exit(id(seq)).await, ExitCause::Success);
            assert_eq!(fs::read_to_string(stdout(&node, seq)).unwrap(), "right\nsecret", "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_puts_into_groups_of_its_own_dies_with_it() {
    let mut rm = FakeRm::start().await;
    // Only who is root can make any.
    let mut node = Node::start(&rm, &["--allow-root"]);
    let mut session = rm.join().await;
    let group = node.cgroup_file(id(1), ("freezer", "x/y"), "x/y");
    let script = format!(
        "mkdir -p {0} && (echo 0 > {0}/cgroup.procs; setsid sleep 1000 & echo $! > child); touch up; exec sleep 1000",
        group.display()
    );
    for restarts in [false, true] {
        let seq = 1 + u64::from(restarts);
        session.start(&shell(seq, 1, &script.replace(&id(1).to_string(), &id(seq).to_string())));
        session.running(id(seq)).await;
        until("its child", || node.work(id(seq)).join("up").exists()).await;
        let child = fs::read_to_string(node.work(id(seq)).join("child")).unwrap().trim().parse().unwrap();
        assert!(crate::stage::alive(child));
        if restarts {
            node.kill();
            node.run();
            session = rm.join().await;
        }
        session.stop(id(seq), 0);
        assert_eq!(session.exit(id(seq)).await, ExitCause::KilledByAm);
        assert!(!crate::stage::alive(child));
        assert_eq!(node.cgroups(), Vec::<PathBuf>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_state_that_no_task_makes_are_not_told_and_many_take_nothing_from_others() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let mut other = shell(1, 1, "mkdir $SAMZA_STATE_DIR/P; printf 12345 > $SAMZA_STATE_DIR/P/data");
    other.job = JobId { name: "other".into(), id: "1".into() };
    session.start(&other);
    session.exit(id(1)).await;
    let script = r#"cd $SAMZA_STATE_DIR; long=$(printf 'd%.0s' $(seq 200)); mkdir $long "$(printf 'a\001b')" fine;
        seq 25000 | xargs mkdir"#;
    session.start(&shell(2, 2, script));
    assert_eq!(session.exit(id(2)).await, ExitCause::Success);
    // Half of what is told of all.
    session.until("its share", |seen| seen.state.len() == 20_001).await;
    session.until("the other's", |seen| seen.state.iter().any(is_others)).await;
    let names: Vec<String> = session.seen.lock().unwrap().state.iter().map(|e| e.entry.clone()).collect();
    assert!(names.iter().all(|name| name.len() < 129 && !name.contains('\u{1}')));
    node.kill();
    node.run();
    rm.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_into_what_is_being_removed_keeps_nothing_of_others() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "exit 0"));
    session.exit(id(1)).await;
    let work = node.work(id(1));
    let script = format!(
        "cd {} && touch $SAMZA_STATE_DIR/up && n=0 && while :; do n=$((n + 1)); mkdir -p $n/x 2>/dev/null; done",
        work.display()
    );
    session.start(&shell(2, 2, &script));
    session.running(id(2)).await;
    until("its start", || node.root.path().join("state/job-1/up").exists()).await;
    session.send(ToNode::Forget { container: id(1) });
    until("the first out of the way", || !work.exists()).await;
    let mut other = shell(3, 3, "mkdir $SAMZA_STATE_DIR/P");
    other.job = JobId { name: "other".into(), id: "1".into() };
    session.start(&other);
    assert_eq!(session.exit(id(3)).await, ExitCause::Success);
    session.send(ToNode::Forget { container: id(3) });
    session.send(ToNode::Purge { job: other.job.clone() });
    let (jobs, state) = (node.root.path().join("jobs/other-1.json"), node.root.path().join("state/other-1"));
    until("the other's end", || !jobs.exists() && !state.exists()).await;
    session.stop(id(2), 0);
    assert_eq!(session.exit(id(2)).await, ExitCause::KilledByAm);
}

/// A disk without room: nothing can be made on it, also not by root.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_a_container_filled_keeps_no_nm_from_starting() {
    let disk = tempfile::tempdir_in("/var/tmp").unwrap();
    let options = "mode=755,nr_inodes=200,size=64m";
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(disk.path());
    assert!(mount.status().unwrap().success(), "mount needs root");
    let mut rm = FakeRm::start().await;
    let mut node = Node::below(disk.path(), &rm, &["--min-free", "1MiB"]);
    node.run();
    let mut session = rm.join().await;
    session.start(&shell(
        1,
        1,
        "n=0; while touch $n 2>/dev/null; do n=$((n + 1)); done; echo full; exec sleep 1000",
    ));
    let pid = session.running(id(1)).await.pid.unwrap();
    until("no room", || fs::read_to_string(stdout(&node, 1)).is_ok_and(|text| text == "full\n")).await;
    node.kill();
    node.run();
    let mut session = rm.join().await;
    assert_eq!(session.state(id(1)), Some(ContainerState::Running));
    assert!(crate::stage::alive(pid));
    session.stop(id(1), 0);
    assert_eq!(session.exit(id(1)).await, ExitCause::KilledByAm);
    drop(node);
    assert!(std::process::Command::new("umount").arg(disk.path()).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_root_a_container_has_its_secrets_too() {
    let mut rm = FakeRm::start().await;
    let _node = Node::without_root(&rm, NOBODY);
    let mut session = rm.join().await;
    let mut start =
        shell(1, 1, "[ $(cat $SAMZA_SECRETS_DIR/password) = swordfish ] && cat $SAMZA_TOKEN_FILE");
    start.secrets = types::Secrets([("password".to_owned(), "swordfish".to_owned())].into());
    session.start(&start);
    assert_eq!(session.exit(id(1)).await, ExitCause::Success);
}
