//! What goes wrong around containers: stores, disks, groups, and what containers leave behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use types::{ExitCause, ToNode};

use crate::stage::{FakeRm, Node, alive, id, is_v2, shell, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_says_nothing_is_asked_again() {
    let mut rm = FakeRm::start().await;
    let _node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let mut start = shell(1, 1, "");
    start.artefacts = vec![rm.upload("job.sh", b"#!/bin/sh\nexit 0\n")];
    start.command = Vec::new();
    rm.hangs.store(1, Ordering::SeqCst);
    session.start(&start);
    assert_eq!(session.exit(id(1)).await, ExitCause::Success);
    assert_eq!(rm.fetches.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_launches_and_containers_by_its_name_and_keeps_no_half_of_an_artefact() {
    let disk = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(disk.path()).status();
    assert!(mounted.unwrap().success(), "mount needs root");
    let mut rm = FakeRm::start().await;
    let mut node = Node::below(disk.path(), &rm, &[]);
    node.run();
    let mut session = rm.join().await;
    let mut start = shell(1, 1, "");
    start.artefacts = vec![rm.upload("big", &vec![b'x'; 16 << 20])];
    session.start(&start);
    let cause = session.exit(id(1)).await;
    session.start(&shell(2, 2, "exit 1"));
    let failed = session.exit(id(2)).await;
    let left: Vec<PathBuf> =
        fs::read_dir(node.root.path().join("cache")).unwrap().flatten().map(|entry| entry.path()).collect();
    drop(node);
    assert!(Command::new("umount").arg(disk.path()).status().unwrap().success());
    let ExitCause::LaunchFailed { reason } = cause else { panic!("{cause}") };
    assert!(reason.contains("space"), "{reason}");
    assert_eq!(failed, ExitCause::DiskFull, "who fails on a full disk has that excuse");
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_cgroup_was_removed_under_it_is_killed_nevertheless() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "setsid sleep 1000 & echo $! > child; wait"));
    let pid = session.running(id(1)).await.pid.unwrap();
    let file = node.work(id(1)).join("child");
    until("its child", || fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))).await;
    let child: u32 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    for group in node.cgroups() {
        // The root of the group's hierarchy takes every process.
        let root = group.ancestors().filter(|dir| dir.join("cgroup.procs").exists()).last().unwrap();
        for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap().lines() {
            fs::write(root.join("cgroup.procs"), pid).unwrap();
        }
        fs::remove_dir(&group).unwrap();
    }
    session.stop(id(1), 0);
    assert_eq!(session.exit(id(1)).await, ExitCause::KilledByAm);
    assert!(!alive(pid) && !alive(child));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_made_hard_to_remove_is_removed() {
    let mut rm = FakeRm::start().await;
    // Only root makes what even root cannot change.
    let node = Node::start(&rm, &["--allow-root"]);
    let mut session = rm.join().await;
    let script = "mkdir -p closed/inner; touch closed/inner/file fixed; chattr +i fixed 2>/dev/null; \
                  chattr +i closed/inner 2>/dev/null; chmod 000 closed; exit 4";
    session.start(&shell(1, 1, script));
    assert_eq!(session.exit(id(1)).await, ExitCause::Failed { code: 4 });
    session.send(ToNode::Forget { container: id(1) });
    let work = node.work(id(1));
    until("the removal", || !work.parent().is_some_and(Path::exists)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_containers_that_end_at_once_are_all_told() {
    // Emulated processors take their time.
    let count = if is_v2() { 100 } else { 500 };
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &["--memory", "64GiB", "--cpu", "64"]);
    let mut session = rm.join().await;
    for seq in 1..=count {
        session.start(&shell(seq, seq as u32, "while [ ! -e ../../../go ]; do sleep 0.3; done; exit 6"));
    }
    for seq in 1..=count {
        session.running(id(seq)).await;
    }
    fs::write(node.root.path().join("go"), "").unwrap();
    for seq in 1..=count {
        let cause = session.exit(id(seq)).await;
        assert_eq!(cause, ExitCause::Failed { code: 6 }, "{seq}");
    }
    assert_eq!(node.cgroups(), Vec::<PathBuf>::new());
}
