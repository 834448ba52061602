//! Each exit cause, provoked by real processes. Those that are not here are where the rest of their story is:
//! `LaunchFailed` and `OutOfMemory` in `containers`, `LeaseExpired` in `containers` (nm lives) and `restart` (it does
//! not), `Fenced` by a successor on the same node in `containers`.

use std::fs;
use std::path::Path;
use std::process::Command;

use types::{ExitCause, ToNode};

use crate::stage::{FakeRm, Node, Session, alive, id, shell, signal, until};
use rustix::process::Signal;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_does_by_itself_names_its_exit() {
    let mut rm = FakeRm::start().await;
    let _node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let ways = [
        ("exit 0", ExitCause::Success),
        ("exit 3", ExitCause::Failed { code: 3 }),
        // What `samza::run` says when a newer incarnation has fenced it.
        ("exit 90", ExitCause::Fenced),
        ("kill -SEGV $$", ExitCause::Signal { signal: 11 }),
        // Its own TERM is nobody's stop.
        ("kill -TERM $$", ExitCause::Signal { signal: 15 }),
    ];
    for (seq, (script, _)) in (1..).zip(&ways) {
        session.start(&shell(seq, seq as u32, script));
    }
    for (seq, (script, cause)) in (1..).zip(ways) {
        assert_eq!(session.exit(id(seq)).await, cause, "{script}");
    }
}

/// Starts a container that does `at_term` when it is told to end, and waits until it is ready to.
async fn ready(session: &mut Session, node: &Node, seq: u64, at_term: &str) {
    let script = format!("trap '{at_term}' TERM; touch up; while :; do sleep 0.02; done");
    session.start(&shell(seq, seq as u32, &script));
    session.running(id(seq)).await;
    until("its start", || node.work(id(seq)).join("up").exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wanted_a_container_to_end_names_its_exit_however_it_ends() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    let ends = ["exit 0", "exit 3", "kill -SEGV $$", "exit 90", "tail /dev/zero; exit 1"];
    let mut seq = 0;
    for cause in [ExitCause::KilledByUser, ExitCause::Preempted, ExitCause::KilledByAm] {
        for at_term in ends {
            seq += 1;
            ready(&mut session, &node, seq, at_term).await;
            session.send(ToNode::Stop { container: id(seq), grace_ms: 60_000, cause: cause.clone() });
            assert_eq!(session.exit(id(seq)).await, cause, "{at_term}");
        }
        // One that does not listen is killed after its grace.
        seq += 1;
        ready(&mut session, &node, seq, "").await;
        session.send(ToNode::Stop { container: id(seq), grace_ms: 50, cause: cause.clone() });
        assert_eq!(session.exit(id(seq)).await, cause);
    }
    // Two want it: the first one's word stays, the second one's haste counts.
    ready(&mut session, &node, 100, "").await;
    session.send(ToNode::Stop { container: id(100), grace_ms: 600_000, cause: ExitCause::Preempted });
    session.send(ToNode::Stop { container: id(100), grace_ms: 0, cause: ExitCause::KilledByUser });
    assert_eq!(session.exit(id(100)).await, ExitCause::Preempted);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fills_the_disk_and_fails_is_told_as_disk_full_though_nothing_can_be_written_down() {
    let disk = tempfile::tempdir().unwrap();
    let mut mount = Command::new("mount");
    let mounted = mount.args(["-t", "tmpfs", "-o", "size=96m", "none"]).arg(disk.path()).status();
    assert!(mounted.unwrap().success(), "mount needs root");
    let mut rm = FakeRm::start().await;
    let mut node = Node::below(disk.path(), &rm, &[]);
    node.run();
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "exit 1"));
    let with_room = session.exit(id(1)).await;
    let mut filler = shell(2, 2, "cat /dev/zero > fill; exit 7");
    // What it writes there counts as its memory.
    filler.resource.memory_bytes = 256 << 20;
    session.start(&filler);
    let without = session.exit(id(2)).await;
    drop(node);
    assert!(Command::new("umount").arg(disk.path()).status().unwrap().success());
    assert_eq!(with_room, ExitCause::Failed { code: 1 });
    assert_eq!(without, ExitCause::DiskFull);
}

/// Another boot, as far as nm can see: the processes of the last one are gone, and the kernel says another id.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_what_ran_is_told_as_lost_with_its_node_and_what_had_ended_as_it_was() {
    let mut rm = FakeRm::start().await;
    let mut node = Node::start(&rm, &[]);
    let mut session = rm.join().await;
    session.start(&shell(1, 1, "sleep 1000"));
    let pid = session.running(id(1)).await.pid.unwrap();
    session.start(&shell(2, 2, "exit 3"));
    assert_eq!(session.exit(id(2)).await, ExitCause::Failed { code: 3 });
    let before = session.hello.incarnation.clone();
    node.kill();
    signal(node.shim(id(1)), Signal::KILL);
    signal(pid, Signal::KILL);
    until("the end of all processes", || !alive(pid)).await;
    let boot_id = node.root.path().join("boot-id");
    fs::write(&boot_id, "00000000-0000-4000-8000-000000000000\n").unwrap();
    node.run_inside(&["sh", "-c", &in_another_boot(&boot_id), "sh"]);
    let mut session = rm.join().await;
    assert_ne!(session.hello.incarnation.boot_id, before.boot_id);
    assert_eq!(session.hello.incarnation.state_id, before.state_id);
    assert_eq!(session.exit(id(1)).await, ExitCause::NodeLost);
    assert_eq!(session.exit(id(2)).await, ExitCause::Failed { code: 3 });
    assert_eq!(node.cgroups(), Vec::<std::path::PathBuf>::new());
}

/// A script that runs its arguments where the kernel's boot id is what `file` says.
fn in_another_boot(file: &Path) -> String {
    let mount = format!("mount --bind {} /proc/sys/kernel/random/boot_id", file.display());
    format!("exec unshare -m sh -c '{mount} && exec \"$@\"' sh \"$@\"")
}
