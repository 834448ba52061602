//! Machines as they are: umasks, mounts, modes, and what else lies in nm's folders. It works there, or says what is wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use types::ExitCause;

use crate::stage::{FakeRm, Node, id, shell, until};

#[tokio::test(flavor = "multi_thread")]
async fn under_any_umask_containers_run_with_the_usual_one() {
    for mask in ["0777", "0077", "0027", "0000"] {
        let mut rm = FakeRm::start().await;
        let mut node = Node::below("/var/tmp".as_ref(), &rm, &[]);
        node.run_inside(&["sh", "-c", &format!("umask {mask}; exec \"$@\""), "sh"]);
        let mut session = rm.join().await;
        let script =
            "touch mine $SAMZA_STATE_DIR/mine && cat $SAMZA_TOKEN_FILE > /dev/null && [ $(umask) = 0022 ]";
        let mut start = shell(1, 1, script);
        start.artefacts = vec![rm.upload("job.sh", b"")];
        session.start(&start);
        assert_eq!(session.exit(id(1)).await, ExitCause::Success, "{mask}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_nms_in_its_folders_is_left_alone() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    rm.join().await;
    node.kill();
    let root = node.root.path().to_owned();
    let mut strange = Vec::new();
    for folder in ["", "containers", "logs", "logs/lost+found", "state", "cache", "jobs"] {
        let folder = root.join(folder);
        fs::create_dir_all(folder.join("lost+found/deep")).unwrap();
        fs::set_permissions(folder.join("lost+found"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(folder.join("README"), "of an operator").unwrap();
        std::os::unix::fs::symlink("/nowhere", folder.join("link")).unwrap();
        strange.extend(["lost+found/deep", "README"].map(|name| folder.join(name)));
    }
    node.run();
    let mut session = rm.join().await;
    let mut start = shell(1, 1, "echo word");
    start.artefacts = vec![rm.upload("job.sh", b"")];
    session.start(&start);
    assert_eq!(session.exit(id(1)).await, ExitCause::Success);
    session.send(types::ToNode::Forget { container: id(1) });
    until("the removal of its folder", || !node.work(id(1)).exists()).await;
    node.kill();
    node.run();
    rm.join().await;
    assert!(strange.iter().all(|path| path.exists()), "{strange:?}");
}

/// nm, which cannot start on this root.
fn refused(root: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nm"));
    let Output { status, stderr, .. } =
        command.args(["--rm", "127.0.0.1:1", "--unlimited", "--root"]).arg(root).output().unwrap();
    let text = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success(), "{text}");
    text
}

#[test]
fn a_root_that_containers_cannot_get_to_is_told_at_start_with_the_folder_that_is_closed() {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let text = refused(&base.path().join("deeper/root"));
    assert!(text.contains(&format!("chmod o+x {}`", base.path().display())), "{text}");
    assert_eq!(fs::read_dir(base.path().join("deeper/root/containers")).unwrap().count(), 0);
}

#[test]
fn a_root_where_nothing_can_be_run_or_written_is_told_at_start() {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (options, expected) in [("noexec", "is mounted noexec"), ("ro", "Read-only file system")] {
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(base.path()).status();
        assert!(mount.unwrap().success(), "mount needs root");
        let text = refused(&base.path().join("root"));
        assert!(Command::new("umount").arg(base.path()).status().unwrap().success());
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_without_set_user_programs_is_good_enough() {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "nosuid,nodev", "none"]).arg(base.path()).status();
    assert!(mount.unwrap().success(), "mount needs root");
    let mut rm = FakeRm::start().await;
    let mut node = Node::below(base.path(), &rm, &[]);
    node.run();
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "exit 3"));
    assert_eq!(session.exit(id(1)).await, ExitCause::Failed { code: 3 });
    drop(node);
    assert!(Command::new("umount").arg(base.path()).status().unwrap().success());
}
